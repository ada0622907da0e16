"""Rollouts from a server that speaks vLLM's protocol are those of our own engine; a server that does not is found out.

The stand-in answers as vLLM's documentation has it (https://docs.vllm.ai/en/latest/serving/online_serving/
openai_compatible_server/ and features/sleep_mode/): unknown fields, a prompt too long for the context or a bias out of
range are refused, and what is not asked for is not told.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch

from liuli.engine import TOOLS, Engine, Sampling
from liuli.errors import LiuliError, UsageError
from liuli.model import Transformer, load
from liuli.stages.experience import Reward, Step
from liuli.stages.grpo import GRPOOptions, grpo
from liuli.stages.learn import Learner, PracticeOptions
from liuli.stages.remote import RemoteEngine, load_weights, publish
from liuli.stages.rollout import ModelActor, Rollouts, roll_out, score_all
from liuli.stages.training import write_model
from liuli.text import Message, Tokenizer
from liuli.train import RunLog, StageState, measure_machine
from tests.engine.conftest import byte_tokenizer, make_model, scripted

T = byte_tokenizer()
CONTEXT = 96
FIELDS = {
    *("model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"),
    *("stop_token_ids", "logit_bias", "logprobs", "return_token_ids"),
}


@dataclass
class StandIn:
    """What vLLM would hold: a model, a tokenizer, prompts read before. spoil: changes an answer on its way out."""

    engine: Engine
    keeps_old_weights: bool = False
    spoil: Callable[[dict[str, Any]], None] = lambda choice: None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and what is said: JSON, or None for nothing."""
        with self.lock:
            self.asked.append((path, body))
            match path:
                case "/v1/models":
                    return 200, {"object": "list", "data": [{"id": "tiny", "max_model_len": self.engine.context}]}
                case "/tokenize":
                    tokens = self.engine.tokenizer.encode(body["prompt"])
                    return 200, {"count": len(tokens), "max_model_len": self.engine.context, "tokens": tokens}
                case "/v1/completions":
                    return self.complete(body)
                case "/collective_rpc":
                    assert body["method"] == "reload_weights"
                    if not self.keeps_old_weights:
                        self.engine = Engine(load(body["kwargs"]["weights_path"]), self.engine.tokenizer)
                    return 200, {"results": [None]}
                case "/reset_prefix_cache":
                    return 200, None
            return 404, {"detail": "Not Found"}

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        prompt, bias = body["prompt"], body["logit_bias"]
        if body.keys() - FIELDS or body["model"] != "tiny" or any(abs(value) > 100 for value in bias.values()):
            return 400, {"error": {"message": f"bad request: {sorted(body.keys() - FIELDS)}"}}
        if len(prompt) + body["max_tokens"] > self.engine.context:
            return 400, {"error": {"message": f"maximum context length is {self.engine.context} tokens"}}
        self.engine.ban_V = torch.zeros_like(self.engine.ban_V)
        self.engine.ban_V[[int(id) for id in bias]] = torch.tensor(list(bias.values()))
        assert set(body["stop_token_ids"]) == self.engine.stops
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed")
        answer = self.engine.generate([prompt], Sampling(**{name: body[name] for name in names}))[0]
        choice = {
            "index": 0,
            "text": answer.text,
            "logprobs": {"token_logprobs": answer.logprobs} if body.get("logprobs") is not None else None,
            "finish_reason": {"end": "stop", "length": "length"}[answer.stopped_by],
            "prompt_token_ids": prompt if body.get("return_token_ids") else None,
            "token_ids": answer.ids if body.get("return_token_ids") else None,
        }
        self.spoil(choice)
        return 200, {"object": "text_completion", "model": "tiny", "choices": [choice]}


@pytest.fixture
def serve(listen: Callable[[type[BaseHTTPRequestHandler]], str]) -> Callable[[StandIn], str]:
    """Starts stand-ins; gives their addresses."""

    def start(stand_in: StandIn) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply({})

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def reply(self, body: dict[str, Any]) -> None:
                status, said = stand_in.answer(self.path, body)
                data = b"" if said is None else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        return listen(Handler)

    return start


def tiny(seed: int = 0) -> Transformer:
    """A random model whose answers, of these few steps, sometimes end by themselves."""
    model = make_model("qwen3", context=CONTEXT, seed=seed)
    with torch.no_grad():
        model.head_VD[T.end] *= 3
    return model


def user(text: str) -> list[Message]:
    return [Message("user", text)]


PROMPTS = [user(text) for text in ("Hi", "What is 6*7?", "琉璃", "Tell me a story.")] * 6
DRAW: dict[str, Any] = {"max_tokens": 24, "seeds": [1000 + 8 * n for n in range(len(PROMPTS))]}


def assert_same(found: Rollouts, expected: Rollouts) -> None:
    for name in ("tokens_BT", "mask_BT", "lengths_B", "finished_B", "prompt_B"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.sampler_BT, expected.sampler_BT, rtol=0, atol=1e-5)
    assert found.produced == expected.produced


def write_tokenizer(folder: Path) -> Path:
    T.save(folder)
    return folder


# --- the same rollouts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollouts_of_a_server_are_those_of_our_engine(serve: Any, temperature: float) -> None:
    model = tiny()
    remote = RemoteEngine(serve(StandIn(Engine(model, T))), T, model.config, concurrent=5)
    expected = roll_out(Engine(model, T), PROMPTS, temperature=temperature, **DRAW)
    assert_same(roll_out(remote, PROMPTS, temperature=temperature, **DRAW), expected)
    assert 0 < int(expected.finished_B.sum()) < len(PROMPTS)  # both kinds of ending were seen
    assert torch.equal(remote.ban_V, Engine(model, T).ban_V)
    assert remote.names == Engine(model, T).names


def test_tools_are_run_on_the_way(serve: Any) -> None:
    call = [T.call, *T.encode('calculator {"expression": "6*7"}'), T.end]
    script = {"What is 6*7?": call, "42": [*T.encode("It is 42."), T.end], "Hi": [*T.encode("Hello"), T.end]}
    prompts, draw = [user("What is 6*7?"), user("Hi")], {"max_tokens": 60, "seeds": [1, 2], "temperature": 1.0}
    expected = roll_out(scripted(script), prompts, **draw)
    remote = RemoteEngine(serve(StandIn(scripted(script))), T, replace(tiny().config, context=256))
    found = roll_out(remote, prompts, **draw)
    assert_same(found, expected)
    assert [message.content for message in found.produced[0]] == ["", "42", "It is 42."]
    told = T.decode(found.tokens_BT[0][~found.mask_BT[0]].tolist())
    assert "42" in told and "It is" not in told  # what the tool said was not drawn
    assert set(TOOLS) == {"calculator"}


def test_an_answer_ends_where_the_context_does(serve: Any) -> None:
    model = tiny()
    remote = RemoteEngine(serve(StandIn(Engine(model, T))), T, model.config)
    prompts, draw = [user("x" * 60)] * 4, {"max_tokens": 1000, "seeds": [0, 8, 16, 24]}
    found = roll_out(remote, prompts, **draw)
    assert_same(found, roll_out(Engine(model, T), prompts, **draw))
    assert int(found.lengths_B.max()) == CONTEXT
    with pytest.raises(LiuliError, match=f"context is {CONTEXT}"):
        remote.request([1] * CONTEXT, Sampling())
    with pytest.raises(LiuliError, match="0 tokens"):
        remote.request([], Sampling())
    short = RemoteEngine(serve(StandIn(Engine(make_model("qwen3", context=48), T))), T, model.config)
    assert short.context == 48  # the server's, where it is shorter than the model's


# --- new weights -----------------------------------------------------------------------------------------------------


def learner_of(model: Transformer, engine: Any) -> Learner:
    nothing: Any = None
    actor = ModelActor(model, ban_V=engine.ban_V)
    options = PracticeOptions()
    return Learner(
        actor, actor, nothing, engine, PROMPTS, nothing, nothing, Step(), nothing, nothing, "ppo", options, options.beta
    )


def test_a_server_draws_from_the_weights_that_it_was_given_last(serve: Any, tmp_path: Path) -> None:
    old, new = tiny(), tiny(seed=1)
    stand_in = StandIn(Engine(old, T))
    remote = RemoteEngine(serve(stand_in), T, old.config)
    before = roll_out(remote, PROMPTS, **DRAW)
    folder = write_tokenizer(tmp_path / "tokenizer")
    for step, model in enumerate((old, new)):
        publish(remote, model, tmp_path / "weights", step, folder)
    after = roll_out(remote, PROMPTS, **DRAW)
    assert_same(after, roll_out(Engine(new, T), PROMPTS, **DRAW))
    scored = score_all(ModelActor(new), after).log_probs_BT
    torch.testing.assert_close(after.sampler_BT, scored, rtol=0, atol=1e-4)
    assert not torch.equal(after.tokens_BT, before.tokens_BT)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["weights-000001"]
    paths = [path for path, _ in stand_in.asked]
    last = max(at for at, path in enumerate(paths) if path == "/collective_rpc")
    assert paths[last + 1] == "/reset_prefix_cache" and set(paths[last + 2 :]) == {"/v1/completions"}
    assert learner_of(new, remote).check(after) < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_grpo_learns_from_a_server_what_it_learns_from_our_engine(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    monkeypatch.setattr("liuli.stages.training.measure_machine", lambda: replace(measure_machine(), dtype="float32"))
    write_model(tiny(), tmp_path / "model", T, write_tokenizer(tmp_path / "tokenizer"), {"seed": 0})
    stand_in = StandIn(Engine(load(tmp_path / "model"), T))
    found = {}
    for name, url in (("ours", ""), ("theirs", serve(stand_in))):
        log = RunLog(tmp_path / name, [StageState("out", "out")], quiet=True, tensorboard=False)
        log.begin("out")
        options = GRPOOptions(
            steps=3, answers=24, group=6, max_tokens=12, lr=3e-3, temperature=temperature, engine_url=url
        )
        pays = lambda rollouts: Reward(rollouts.mask_BT.sum(1).float())  # noqa: E731
        grpo(tmp_path / "model", PROMPTS[:4], tmp_path / name / "out", reward=pays, options=options, log=log)
        found[name] = load(tmp_path / name / "out").state_dict()
        assert [path.name for path in (tmp_path / name).iterdir() if "weights" in path.name] == []
    published = [body for path, body in stand_in.asked if path == "/collective_rpc"]
    assert [body["kwargs"]["weights_path"][-6:] for body in published] == ["000000", "000001", "000002"]
    before = load(tmp_path / "model").state_dict()
    for name, weight in found["ours"].items():
        torch.testing.assert_close(found["theirs"][name], weight, rtol=0, atol=1e-5)
    assert not torch.equal(before["embedding.weight"], found["ours"]["embedding.weight"])


def test_a_server_that_keeps_old_weights_is_found_out(serve: Any, tmp_path: Path) -> None:
    old, new = tiny(), tiny(seed=1)
    remote = RemoteEngine(serve(StandIn(Engine(old, T), keeps_old_weights=True)), T, old.config)
    publish(remote, new, tmp_path / "weights", 0, write_tokenizer(tmp_path / "tokenizer"))
    with pytest.raises(LiuliError, match="engine and trainer disagree"):
        learner_of(new, remote).check(roll_out(remote, PROMPTS, **DRAW))


def test_a_server_that_cannot_load_says_so(serve: Any, tmp_path: Path) -> None:
    stand_in = StandIn(Engine(tiny(), T))
    remote = RemoteEngine(serve(stand_in), T, tiny().config)
    stand_in.answer = lambda path, body: (404, {"detail": "Not Found"})  # type: ignore[method-assign]
    with pytest.raises(LiuliError, match=r"answers 404(.|\n)*collective_rpc"):
        load_weights(remote, tmp_path)


# --- servers that will not do ----------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(LiuliError, match=r"no answer from the server(.|\n)*127.0.0.1:1(.|\n)*is the server running"):
        RemoteEngine("http://127.0.0.1:1", T, tiny().config)


def test_another_tokenizer_is_refused(serve: Any) -> None:
    other = Tokenizer.train(["Liuli Liuli return return 琉璃琉璃 def def "] * 5, 290)
    model = make_model("qwen3", vocab_size=other.vocab_size)
    with pytest.raises(LiuliError, match="another tokenizer"):
        RemoteEngine(serve(StandIn(Engine(model, other))), T, model.config)


def test_a_preset_that_vllm_does_not_know_is_refused() -> None:
    with pytest.raises(UsageError, match="preset racer"):
        RemoteEngine("http://127.0.0.1:1", T, make_model("racer").config)


SPOILT: list[tuple[str, Callable[[dict[str, Any]], None]]] = [
    ("which tokens", lambda choice: choice.pop("token_ids")),
    ("which tokens", lambda choice: choice.update(prompt_token_ids=choice["prompt_token_ids"][1:])),
    ("outside the vocabulary", lambda choice: choice["token_ids"].__setitem__(0, T.vocab_size)),
    ("outside the vocabulary", lambda choice: choice["token_ids"].__setitem__(0, -1)),
    ("outside the vocabulary", lambda choice: choice["token_ids"].clear()),
    ("log-probability", lambda choice: choice.update(logprobs=None)),
    ("log-probability", lambda choice: choice["logprobs"]["token_logprobs"].pop()),
    ("log-probability", lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(0, None)),
    ("log-probability", lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(0, float("nan"))),
    ("stops by 'abort'", lambda choice: choice.update(finish_reason="abort")),
    ("stops by 'stop' after token 99", lambda choice: (choice.update(finish_reason="stop"), cut(choice))),
]


def cut(choice: dict[str, Any]) -> None:
    choice["token_ids"][-1] = 99  # as if the token that ends an answer were left out


@pytest.mark.parametrize(("said", "spoil"), SPOILT)
def test_an_answer_that_one_cannot_learn_from_is_refused(
    serve: Any, said: str, spoil: Callable[[dict[str, Any]], None]
) -> None:
    model = tiny()
    remote = RemoteEngine(serve(StandIn(Engine(model, T), spoil=spoil)), T, model.config)
    with pytest.raises(LiuliError, match=said) as caught:
        roll_out(remote, PROMPTS, **DRAW)
    assert caught.value.where is not None and "prompt" in str(caught.value.where)


def test_what_the_server_cannot_do_in_rollouts_is_refused(serve: Any) -> None:
    remote = RemoteEngine(serve(StandIn(Engine(tiny(), T))), T, tiny().config)
    for sampling in (Sampling(stop=("x",)), Sampling(alternatives=3)):
        with pytest.raises(UsageError, match="no stop strings"):
            remote.request([1, 2], sampling)


def test_all_that_vllm_would_take_from_the_model_folder_is_said(serve: Any) -> None:
    """write_model puts temperature 0.7 and top_p 0.95 into generation_config.json, which vLLM takes as defaults."""
    stand_in = StandIn(Engine(tiny(), T))
    roll_out(RemoteEngine(serve(stand_in), T, tiny().config), PROMPTS[:1], max_tokens=3, seeds=[1])
    asked = stand_in.asked[-1][1]
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert {name: asked[name] for name in plain} == plain
    assert asked.keys() == FIELDS
