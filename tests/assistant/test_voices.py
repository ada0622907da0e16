"""Voices that compute elsewhere say what our own engine says; a server that misbehaves is one clear error.

The stand-in speaks OpenAI's protocol (https://platform.openai.com/docs/api-reference/chat-streaming) and vLLM's
completions (https://docs.vllm.ai/en/latest/serving/online_serving/openai_compatible_server/) over a real socket, and
may cut what it sends anywhere.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from liuli.assistant.elsewhere import LlamaCppEngine, VllmEngine, voice_of
from liuli.assistant.remote import RemoteVoice
from liuli.assistant.voices import Ended, EngineVoice, Event, ModelVoice, Voice
from liuli.engine import TOOLS, Engine, Sampling, Token
from liuli.engine.constraints import Constraint
from liuli.errors import LiuliError, UsageError
from liuli.model import load, save
from liuli.server.app import create_app
from liuli.text import Message, Tokenizer
from tests.engine.conftest import make_model
from tests.server.scripted import LiveServer, until

QUESTION = [Message("system", "Be brief."), Message("user", "你好 😀?")]
GREEDY = Sampling(temperature=0, max_tokens=20, seed=1)


# --- the stand-in ----------------------------------------------------------------------------------------------------


@dataclass
class StandIn:
    """answer: what to send for a body: (status, pieces of bytes). hangs_up: without an end. asked: all bodies."""

    answer: Callable[[str, dict[str, Any]], tuple[int, Sequence[bytes]]]
    hangs_up: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)  # the client hung up


@pytest.fixture
def serve(listen: Callable[[type[BaseHTTPRequestHandler]], str]) -> Callable[[StandIn], str]:
    """Starts stand-ins; gives their addresses."""

    def start(stand_in: StandIn) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply({})

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def reply(self, body: dict[str, Any]) -> None:
                stand_in.keys.append(self.headers["Authorization"])
                if body:
                    stand_in.asked.append(body)
                status, pieces = stand_in.answer(self.path, body)
                self.send_response(status)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                try:
                    for piece in pieces:
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                        self.wfile.flush()
                    if not stand_in.hangs_up:
                        self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    stand_in.left.set()
                self.close_connection = True

            def log_message(self, *args: Any) -> None:
                pass

        return listen(Handler)

    return start


MODELS = b'{"data": [{"id": "first", "max_model_len": 99}, {"id": "second"}]}'


def chats(*answers: list[dict[str, Any]], done: bool = True, cut: int = 0) -> StandIn:
    """A server that gives these answers in turn, each a list of choices. cut: bytes a piece; 0: an event a piece."""
    left = list(answers)

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Sequence[bytes]]:
        if path.endswith("/models"):
            return 200, [MODELS]
        assert path == "/v1/chat/completions" and body["stream"]
        events = [{"choices": [choice]} for choice in left.pop(0)]
        events += [{"choices": [], "usage": {"completion_tokens": 7}}] if body.get("stream_options") else []
        lines = [b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in events]
        lines += [b"data: [DONE]\n\n"] if done else []
        whole = b": a comment\n\n" + b"".join(lines)
        return 200, [whole[at : at + cut] for at in range(0, len(whole), cut)] if cut else lines

    return StandIn(answer)


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"delta": {"content": text}, **more}


def ends(reason: str = "stop", **more: Any) -> dict[str, Any]:
    return {"delta": {}, "finish_reason": reason, **more}


def calls(**piece: Any) -> dict[str, Any]:
    return {"delta": {"tool_calls": [piece]}}


CALL = [
    calls(index=0, id="c1", type="function", function={"name": "calculator", "arguments": ""}),
    calls(index=0, function={"arguments": '{"expr'}),
    calls(index=1, id="c2", function={"name": "calculator", "arguments": '{"expression": "2*3"}'}),
    calls(index=0, function={"arguments": 'ession": "6*7"}'}),
    ends("tool_calls"),
]


def hear(voice: Voice, sampling: Sampling = GREEDY, tools: Sequence[str] = ()) -> tuple[str, list[Message], Ended]:
    """The text, the messages between, the end of a reply."""
    events: list[Event] = list(voice.reply(QUESTION, sampling, tools))
    assert isinstance(events[-1], Ended)
    tokens = [event for event in events if isinstance(event, Token)]
    assert [token.stopped_by for token in tokens[:-1]] == [None] * (len(tokens) - 1)
    assert tokens[-1].stopped_by == events[-1].stopped_by
    return "".join(t.text for t in tokens), [e for e in events if isinstance(e, Message)], events[-1]


# --- any OpenAI-compatible endpoint ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_text_comes_whole_however_the_network_cuts_it(serve: Any, cut: int) -> None:
    pieces = ["你", "好", " naïve 😀", "", "\n\ndata: [DONE]\n", "end"]
    voice = RemoteVoice(serve(chats([*map(says, pieces), ends()], cut=cut)) + "/v1/")
    text, messages, ended = hear(voice)
    assert (text, messages, ended) == ("".join(pieces), [], Ended("end", 7))


def test_what_is_asked_is_what_was_meant(serve: Any) -> None:
    stand_in = chats([says("x"), ends("length")])
    voice = RemoteVoice(serve(stand_in), "second", "sesame")
    constraint = Constraint("json_schema", '{"type": "object"}')
    sampling = Sampling(0.5, top_k=3, max_tokens=9, seed=4, stop=("\n",), constraint=constraint)
    *_, ended = hear(voice, sampling, ["calculator"])
    assert ended.stopped_by == "length" and stand_in.keys == ["Bearer sesame"] * 2
    [asked] = stand_in.asked
    assert asked.pop("messages") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "你好 😀?"},
    ]
    [tool] = asked.pop("tools")
    about = {"name": "calculator", "description": TOOLS["calculator"].description}
    assert tool == {"type": "function", "function": about | {"parameters": dict(TOOLS["calculator"].parameters)}}
    schema = {"name": "answer", "strict": True, "schema": {"type": "object"}}
    assert asked == {
        **{"model": "second", "stream": True, "stream_options": {"include_usage": True}},
        **{"temperature": 0.5, "top_p": 1.0, "top_k": 3, "max_tokens": 9, "seed": 4, "stop": ["\n"]},
        "response_format": {"type": "json_schema", "json_schema": schema},
    }


def test_our_tools_run_here_and_the_model_goes_on(serve: Any) -> None:
    stand_in = chats([says("Let me see. "), *CALL], [says("42 and 6."), ends(stop_reason="\n")])
    text, messages, ended = hear(RemoteVoice(serve(stand_in)), tools=["calculator"])
    assert text == "Let me see. 42 and 6." and ended == Ended("stop", 14)
    assert [(m.role, m.content, m.tool_call_id) for m in messages[1:]] == [("tool", "42", "c1"), ("tool", "6", "c2")]
    assert [call.arguments for call in messages[0].tool_calls] == ['{"expression": "6*7"}', '{"expression": "2*3"}']
    assert stand_in.asked[1]["messages"][2:] == [message.to_dict() for message in messages]


def test_a_call_that_must_come_must_come_once(serve: Any) -> None:
    stand_in = chats(CALL, [says("42 and 6."), ends()])
    must = Constraint("tools", '{"calculator": {"type": "object"}}', required=True)
    text, *_ = hear(RemoteVoice(serve(stand_in)), Sampling(constraint=must), tools=["calculator"])
    assert text == "42 and 6." and [body["tool_choice"] for body in stand_in.asked] == ["required", "auto"]


def test_max_tokens_are_those_of_the_whole_answer_with_its_calls(serve: Any) -> None:
    stand_in = chats(*[CALL] * 9)  # of seven tokens each
    _, messages, ended = hear(RemoteVoice(serve(stand_in)), replace(GREEDY, max_tokens=14), tools=["calculator"])
    assert [body["max_tokens"] for body in stand_in.asked] == [14, 7]
    assert len(messages) == 2 * 3 and ended == Ended("length", 14)


def test_a_call_of_what_is_run_elsewhere_ends_the_answer(serve: Any) -> None:
    *_, message, ended = RemoteVoice(serve(chats(CALL))).reply(QUESTION, GREEDY, (), ["calculator"])
    assert isinstance(message, Message) and message.tool_calls and ended == Ended("call", 7)


def test_a_model_that_never_stops_calling_is_stopped(serve: Any) -> None:
    stand_in = chats(*[CALL] * 9)
    _, messages, ended = hear(RemoteVoice(serve(stand_in)), replace(GREEDY, max_tokens=99), tools=["calculator"])
    assert len(stand_in.asked) == 5 and len(messages) == 4 * 3 and ended.stopped_by == "end"


def test_half_a_call_is_not_run(serve: Any) -> None:
    _, messages, ended = hear(RemoteVoice(serve(chats([CALL[0], CALL[1], ends("length")]))), tools=["calculator"])
    assert messages == [] and ended.stopped_by == "length"


def test_tokens_and_alternatives_are_those_the_server_tells(serve: Any) -> None:
    def entry(piece: bytes, logprob: float, *top: Any) -> dict[str, Any]:
        told = {"token": piece.decode("utf-8", "replace"), "bytes": list(piece), "logprob": logprob}
        return {**told, "top_logprobs": list(top)}

    first, last = "你".encode()[:2], "你".encode()[2:]
    entries = [entry(b"a", -0.1, entry(b"a", -0.1), entry(b"b", -3.0)), entry(first, -1.0), entry(last, -2.0)]
    answer = [says("a你", logprobs={"content": entries}), says("<hidden>", logprobs={"content": [entry(b"?", -5.0)]})]
    stand_in = chats([*answer, ends()])
    voice = RemoteVoice(serve(stand_in))
    tokens = [e for e in voice.reply(QUESTION, Sampling(alternatives=50), ()) if isinstance(e, Token)]
    assert [(t.text, t.logprob) for t in tokens[:-1]] == [("a", -0.1), ("", -1.0), ("你", -2.0), ("<hidden>", -5.0)]
    assert [voice.bytes_of(t.id) for t in tokens] == [b"a", first, last, b"?", b""]
    assert [(voice.bytes_of(o.id), o.logprob) for o in tokens[0].alternatives] == [(b"a", -0.1), (b"b", -3.0)]
    assert stand_in.asked[0]["top_logprobs"] == 20


def test_options_that_a_model_refuses_are_left_out_and_nothing_else_is(serve: Any) -> None:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, Sequence[bytes]]:
        if path.endswith("/models"):
            return 200, [MODELS]
        if "max_tokens" in body:
            return 400, [b"Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."]
        if "logprobs" in body:
            return 403, [b"You are not allowed to request logprobs from this model"]
        return 200, [b'data: {"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}\n\n']

    stand_in = StandIn(answer)
    voice = RemoteVoice(serve(stand_in))
    for _ in range(2):
        assert hear(voice, Sampling(max_tokens=5, alternatives=2))[0] == "x"
    assert len(stand_in.asked) == 4 and stand_in.asked[-1]["max_completion_tokens"] == 5
    assert "stream_options" in stand_in.asked[-1]


FAILURES = [
    (401, b'{"error": "no"}', r"answers 401(.|\n)*LIULI_ENGINE_KEY"),
    (404, b'{"error": "no such model"}', r"answers 404: (.|\n)*no such model"),
    (500, b"boom", r"answers 500: boom"),
    (302, b"", r"answers 302|no answer"),
    (200, b"data: {broken\n\n", r"no answer from the server"),
    (200, b"data: [1]\n\n", r"no JSON object"),
    (200, b'data: {"error": {"message": "out of memory"}}\n\n', r"in mid-answer: out of memory"),
    (200, b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n', r"breaks off"),
]


@pytest.mark.parametrize(("status", "said", "match"), FAILURES)
def test_a_server_that_fails_is_one_clear_error(serve: Any, status: int, said: bytes, match: str) -> None:
    stand_in = StandIn(lambda path, body: (200, [MODELS]) if path.endswith("/models") else (status, [said]))
    voice = RemoteVoice(serve(stand_in))
    with pytest.raises(LiuliError, match=match):
        list(voice.reply(QUESTION, GREEDY, ()))


def test_a_connection_cut_in_mid_answer_is_told(serve: Any) -> None:
    stand_in = chats([says("half"), says(" an answer")], done=False)
    voice = RemoteVoice(serve(stand_in))
    stand_in.hangs_up = True
    said = voice.reply(QUESTION, GREEDY, ())
    assert next(said) is None and getattr(next(said), "text", "") == "half"
    with pytest.raises(LiuliError, match=r"breaks off|no answer"):
        list(said)


def test_leaving_an_answer_hangs_up(serve: Any) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b'data: {"choices": [{"delta": {"content": "again and again "}}]}\n\n'

    stand_in = StandIn(lambda path, body: (200, [MODELS] if path.endswith("/models") else endless()))  # type: ignore
    with closing(RemoteVoice(serve(stand_in)).reply(QUESTION, GREEDY, ())) as said:
        assert next(said) is None and next(said)
    assert stand_in.left.wait(5)


def test_what_cannot_be_passed_on_is_refused(serve: Any) -> None:
    voice = RemoteVoice(serve(chats()))
    refused = [
        Sampling(typical_p=0.5),
        Sampling(logit_bias=((3, 1.0),)),
        Sampling(stop_tokens=(3,)),
        Sampling(constraint=Constraint("regex", "a+")),
    ]
    for sampling in refused:
        with pytest.raises(UsageError, match="does not know"):
            list(voice.reply(QUESTION, sampling, ()))
    assert voice.name == "first" and voice.context == 99


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("engine", ["openai", "vllm"])
def test_what_cannot_be_passed_on_is_refused_before_anything_is_sent(
    serve: Any, folder: Path, engine: str, stream: bool
) -> None:
    stand_in = chats() if engine == "openai" else vllm(ModelVoice(folder).engine)
    voice = voice_of(engine, folder, serve(stand_in))
    with LiveServer(folder, app=create_app(folder, load=lambda path: voice, elsewhere="big-model")) as live:
        body = {"messages": [{"role": "user", "content": "Hi"}], "typical_p": 0.5, "stream": stream}
        said = httpx.post(f"{live.url}/v1/chat/completions", json=body)
    assert (said.status_code, said.json()["error"]["code"]) == (400, "unsupported_value")
    assert not any("messages" in body or "stream" in body for body in stand_in.asked)


def test_a_server_that_is_not_there_and_an_address_that_is_none() -> None:
    with pytest.raises(LiuliError, match=r"no answer(.|\n)*127.0.0.1:1"):
        RemoteVoice("http://127.0.0.1:1")
    with pytest.raises(UsageError, match="no address"):
        RemoteVoice("file:///etc")
    with pytest.raises(UsageError, match="no engine 'vlm'"):
        voice_of("vlm", Path("x"))
    with pytest.raises(UsageError, match="where is the vllm server"):
        voice_of("vllm", Path("x"))
    with pytest.raises(UsageError, match="no server"):
        voice_of("llamacpp", Path("x"), "http://127.0.0.1:1")
    with pytest.raises(UsageError, match="in its own way"):
        voice_of("llamacpp", Path("x"), weights="int8")


def test_the_page_talks_to_a_model_elsewhere(serve: Any, tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    voice = RemoteVoice(serve(chats([says("from afar"), ends()])))
    app = create_app(tmp_path, load=lambda path: voice, elsewhere="big-model")
    with TestClient(app, base_url="http://127.0.0.1") as client:
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        answer = client.post(
            "/v1/chat/completions", json={"model": client.get("/v1/models").json()["data"][0]["id"], **body}
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "from afar"


def test_a_server_that_hangs_holds_up_its_own_answer_alone_and_no_client_that_left(serve: Any, tmp_path: Path) -> None:
    hung, go_on = threading.Event(), threading.Event()

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Iterator[bytes]]:
        def pieces() -> Iterator[bytes]:
            if path.endswith("/models"):
                yield MODELS
                return
            yield b'data: {"choices": [{"delta": {"content": "from"}}]}\n\n'
            if body["messages"][-1]["content"] == "hang":
                hung.set()
                go_on.wait(30)
            yield b'data: {"choices": [{"delta": {"content": " afar"}, "finish_reason": "stop"}]}\n\n'

        return 200, pieces()

    voice = RemoteVoice(serve(StandIn(answer)))  # type: ignore[arg-type]
    app = create_app(tmp_path, load=lambda path: voice, elsewhere="big-model", seconds=0.5)
    with LiveServer(tmp_path, app=app) as live, ThreadPoolExecutor(2) as pool:

        def ask(text: str, timeout: float | httpx.Timeout = 30) -> Any:
            body = {"messages": [{"role": "user", "content": text}]}
            return httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=timeout).json()["choices"][0]

        held = pool.submit(ask, "hang")
        assert hung.wait(10)
        for _ in range(3):
            assert ask("hello")["message"]["content"] == "from afar"
        with pytest.raises(httpx.ReadTimeout):
            ask("hang", timeout=httpx.Timeout(30, read=0.3))
        until(lambda: httpx.get(f"{live.url}/health").json()["answers"] == 1)
        assert not held.done()
        time.sleep(0.5)
        go_on.set()
        assert (held.result()["message"]["content"], held.result()["finish_reason"]) == ("from afar", "length")


# --- our own model, computed elsewhere -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model folder whose answers sometimes end by themselves."""
    path = tmp_path_factory.mktemp("voices")
    tokenizer = Tokenizer.train(["The river runs to the sea. 河水流向大海。 calculator expression"] * 9, 330)
    model = make_model("qwen3", context=96, vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        model.head_VD[tokenizer.end] *= 3
    tokenizer.save(path / "tokenizer")
    save(model, path / "model", tokenizer_folder=path / "tokenizer", provenance={})
    return path / "model"


def vllm(engine: Engine, spoil: Callable[[dict[str, Any]], None] = lambda choice: None) -> StandIn:
    """vLLM's completions, two tokens an event, over our own engine."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Sequence[bytes]]:
        match path:
            case "/v1/models":
                return 200, [b'{"data": [{"id": "tiny", "max_model_len": 90}]}']
            case "/tokenize":
                return 200, [json.dumps({"tokens": engine.tokenizer.encode(body["prompt"])}).encode()]
        assert path == "/v1/completions" and body["return_token_ids"] and body["return_tokens_as_token_ids"]
        assert len(body["prompt"]) + body["max_tokens"] <= 90
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed")
        names += ("presence_penalty", "frequency_penalty", "min_tokens")
        settings = {name: body[name] for name in names}
        tokens = list(engine.stream(body["prompt"], Sampling(**settings, alternatives=body["logprobs"])))
        lines = []
        for two in (tokens[at : at + 2] for at in range(0, len(tokens), 2)):
            tops = [{f"token_id:{o.id}": o.logprob for o in token.alternatives} for token in two]
            said = {"token_logprobs": [token.logprob for token in two], "top_logprobs": tops}
            choice = {"token_ids": [token.id for token in two], "logprobs": said}
            spoil(choice)
            lines.append(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        return 200, [*lines, b"data: [DONE]\n\n"]

    return StandIn(answer)


ASKED = [
    GREEDY,
    Sampling(temperature=0.9, top_p=0.8, seed=5, max_tokens=30, alternatives=3),
    Sampling(temperature=1.3, seed=7, max_tokens=60, presence_penalty=0.5, repetition_penalty=1.2, stop=("e",)),
]


def test_an_answers_tokens_are_all_that_were_written_also_those_not_shown(folder: Path) -> None:
    voice = ModelVoice(folder)
    thinking = Sampling(max_tokens=9, ignore_eos=True, logit_bias=((voice.tokenizer.think, 100.0),), seed=0)
    *told, ended = (event for event in voice.reply(QUESTION, thinking, []) if event is not None)
    assert isinstance(ended, Ended) and ended == Ended("length", 9)
    assert len(told) < 9 and not any(token.text for token in told)


def test_vllm_with_our_model_says_what_our_engine_says(serve: Any, folder: Path) -> None:
    ours = ModelVoice(folder)
    theirs = voice_of("vllm", folder, serve(vllm(ours.engine)), key="k")
    assert theirs.context == 90 and theirs.blocks and not ours.blocks
    for sampling in ASKED:
        want, got = (events(voice.reply(QUESTION, sampling, ["calculator"])) for voice in (ours, theirs))
        assert [plain(event) for event in got] == [plain(event) for event in want]


FORMS = [
    (Constraint("json_object"), {"json_object": True}),
    (Constraint("json_schema", '{"type": "boolean"}'), {"json": {"type": "boolean"}}),
    (Constraint("regex", "a+"), {"regex": "a+"}),
    (Constraint("choice", '["the sea", "the river"]'), {"choice": ["the sea", "the river"]}),
    (Constraint("grammar", 'start: "a"'), {"grammar": 'start: "a"'}),
]


@pytest.mark.parametrize(("constraint", "told"), FORMS, ids=[form.kind for form, _ in FORMS])
def test_a_form_is_asked_of_vllm_in_its_own_words(
    serve: Any, folder: Path, constraint: Constraint, told: dict[str, Any]
) -> None:
    stand_in = vllm(ModelVoice(folder).engine)
    list(EngineVoice(VllmEngine(folder, serve(stand_in))).reply(QUESTION, replace(GREEDY, constraint=constraint), ()))
    assert stand_in.asked[-1]["structured_outputs"] == told


def test_what_vllm_does_not_know_is_refused_by_name(serve: Any, folder: Path) -> None:
    voice = EngineVoice(VllmEngine(folder, serve(vllm(ModelVoice(folder).engine))))
    for kind, text in (("tools", '{"f": {"type": "object"}}'), ("substring", "the sea")):
        with pytest.raises(UsageError, match=f"does not know the constraint {kind}"):
            list(voice.reply(QUESTION, Sampling(constraint=Constraint(kind, text)), ()))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="does not know typical_p"):
        list(voice.reply(QUESTION, Sampling(typical_p=0.5), ()))


def events(said: Iterator[Any]) -> list[Any]:
    """Without the pauses in which others have their turn."""
    return [event for event in said if event is not None]


def plain(event: Event) -> Event:
    """The event but for what was read before, and log-probabilities to the four decimals that do not hang on it."""
    if isinstance(event, Ended):
        return replace(event, reused=0)
    if not isinstance(event, Token):
        return event
    others = tuple(replace(other, logprob=round(other.logprob, 4)) for other in event.alternatives)
    return replace(event, logprob=round(event.logprob, 4), alternatives=others)


@pytest.mark.parametrize("salt", ["", "ann\n", "ann\nmine", "bob\n"])
def test_who_shares_what_was_read_is_told_to_vllm_without_any_name(serve: Any, folder: Path, salt: str) -> None:
    stand_in = vllm(ModelVoice(folder).engine)
    list(EngineVoice(VllmEngine(folder, serve(stand_in))).reply(QUESTION, GREEDY, (), salt=salt))
    told = stand_in.asked[-1].get("cache_salt")
    assert told == (hashlib.sha256(salt.encode()).hexdigest() if salt else None)


SPOILT: list[Callable[[dict[str, Any]], object]] = [
    lambda choice: choice.pop("token_ids"),
    lambda choice: choice.pop("logprobs"),
    lambda choice: choice["token_ids"].__setitem__(0, 10**6),
    lambda choice: choice["token_ids"].pop(),
]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_vllm_that_hides_its_tokens_is_found_out(serve: Any, folder: Path, spoil: Any) -> None:
    voice = EngineVoice(VllmEngine(folder, serve(vllm(ModelVoice(folder).engine, spoil))))
    with pytest.raises(LiuliError, match=r"which tokens it drew|breaks off"):
        list(voice.reply(QUESTION, GREEDY, ()))


@pytest.fixture(scope="module")
def llama(folder: Path) -> LlamaCppEngine:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    return LlamaCppEngine(folder, "f32", threads=1)


def test_llama_cpp_writes_what_our_engine_writes(llama: LlamaCppEngine, folder: Path) -> None:
    ours, theirs = ModelVoice(folder), EngineVoice(llama)
    for sampling in (*ASKED, Sampling(seed=3, constraint=Constraint("choice", '["the river", "the sea"]'))):
        want, got = (events(voice.reply(QUESTION, sampling, ["calculator"])) for voice in (ours, theirs))
        assert [e.id for e in got if isinstance(e, Token)] == [e.id for e in want if isinstance(e, Token)]
        assert [e.text for e in got if isinstance(e, Token)] == [e.text for e in want if isinstance(e, Token)]
        assert plain(got[-1]) == plain(want[-1])
        for mine, other in zip(got, want, strict=True):
            if isinstance(mine, Token) and isinstance(other, Token):
                assert abs(mine.logprob - other.logprob) < 1e-3


def test_answers_under_way_at_once_do_not_disturb_each_other(llama: LlamaCppEngine, folder: Path) -> None:
    engine, tokenizer = Engine(load(folder), llama.tokenizer), llama.tokenizer
    prompts = [[tokenizer.bos, *tokenizer.encode(text)] for text in ("The river", "The river runs", "河水")]
    want = [[token.id for token in engine.stream(prompt, GREEDY)] for prompt in prompts]
    got: list[list[int]] = [[] for _ in prompts]
    streams = [llama.poll(prompt, GREEDY) for prompt in prompts]
    live = list(range(len(prompts)))
    while live:
        for at in list(live):
            try:
                got[at] += [token.id for token in [next(streams[at])] if token is not None]
            except StopIteration:
                live.remove(at)
    assert got == want
    llama_reads = llama._spare[-1].ids
    assert len(llama._spare) <= 4 and llama_reads  # contexts are kept for the next turn, and not without end


def test_llama_cpp_says_when_a_constraint_can_be_followed_no_further(llama: LlamaCppEngine) -> None:
    costly = replace(GREEDY, constraint=Constraint("grammar", 'start: "a"{1000000}'))
    assert events(EngineVoice(llama).reply(QUESTION, costly, ()))[-1] == Ended("error", 1)


def test_llama_cpp_shares_what_was_read_under_one_salt_only(llama: LlamaCppEngine) -> None:
    for salt in ("mine", "yours", "mine"):
        events(EngineVoice(llama).reply(QUESTION, GREEDY, (), salt=salt))
    assert [reader.salt for reader in llama._spare].count("mine") == 1
    assert [reader.salt for reader in llama._spare][-2:] == ["yours", "mine"]


def test_without_llama_cpp_one_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", None)
    with pytest.raises(UsageError, match=r"liuli\[llamacpp\]"):
        voice_of("llamacpp", folder)


def test_the_key_is_read_from_the_environment_alone(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from liuli.cli import app

    stand_in = chats([says("hello from afar"), ends()])
    monkeypatch.setenv("LIULI_ENGINE_KEY", "sesame")
    done = CliRunner().invoke(
        app, ["chat", "second", "--engine", "openai", "--engine-url", serve(stand_in)], input="Hi\n"
    )
    assert done.exit_code == 0 and "hello from afar" in done.output, done.output
    assert stand_in.keys == ["Bearer sesame"] * 2 and stand_in.asked[0]["model"] == "second"
