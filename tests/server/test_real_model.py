"""The real engine behind the API: a random model cannot speak, but what it says must hold together."""

from __future__ import annotations

import base64
import json
import math
import os
import signal
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx
import jsonschema_rs
import openai
import pytest
import torch
from pydantic import BaseModel, ConfigDict

import liuli
from liuli.assistant import Store
from liuli.assistant.voices import ModelVoice
from liuli.server.app import create_app
from liuli.server.keys import Keys
from tests.server.scripted import LiveServer, until
from tests.server.test_openai_api import WEATHER

HI = [{"role": "user", "content": "你好 hello 7"}]


class Trip(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "巴黎"]
    days: bool


@pytest.fixture(scope="module")
def model(real: LiveServer) -> liuli.Model:
    return liuli.load(real.path)


def test_stream_and_whole_answer_are_the_same_and_end_at_the_context(real_client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "hello " * 158}]  # three tokens each: little room is left
    asked: dict[str, Any] = {"model": "model", "messages": long, "seed": 3, "temperature": 1.3, "n": 2}
    asked |= {"logprobs": True, "top_logprobs": 5, "logit_bias": {"6": -100, "8": -100}}  # no thought, no call
    whole_text = {"ignore_eos": True}
    whole = real_client.chat.completions.create(**asked, extra_body=whole_text)
    chunks = list(real_client.chat.completions.create(**asked, stream=True, extra_body=whole_text))
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert choice.message.content == "".join(part.delta.content or "" for part in parts)
        assert choice.finish_reason == parts[-1].finish_reason == "length"
        tokens = choice.logprobs.content
        streamed = [token for part in parts if part.logprobs for token in part.logprobs.content]
        # read side by side or one by one, prompts differ in the last bit
        assert [token.logprob for token in streamed] == pytest.approx([token.logprob for token in tokens], abs=1e-5)
        for token in tokens:
            assert token.logprob <= 0 and len(token.top_logprobs) == 5
            assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1 + 1e-6
    assert whole.choices[0].message.content != whole.choices[1].message.content
    assert len(chunks) < sum(len(choice.logprobs.content) for choice in whole.choices) / 2  # many tokens a chunk
    room = 512 - whole.usage.prompt_tokens
    assert 20 < room < 60 and whole.usage.completion_tokens == 2 * room


def test_the_bytes_of_all_tokens_are_the_answer(real_client: openai.OpenAI) -> None:
    asked = real_client.chat.completions.create(model="model", messages=HI, seed=5, logprobs=True, max_tokens=30)
    choice = asked.choices[0]
    said = b"".join(bytes(token.bytes) for token in choice.logprobs.content if not token.token.startswith("<|"))
    assert choice.message.content in (said.decode(errors="replace"), said.decode(errors="ignore"))


@pytest.mark.parametrize("name", ["end", "think"])
def test_a_control_token_is_told_by_its_name(real: LiveServer, model: liuli.Model, name: str) -> None:
    asked = {"max_tokens": 1, "logit_bias": {str(getattr(model.tokenizer, name)): 100}}
    chat = {"messages": HI, "logprobs": True, "tool_choice": "none", **asked}
    told = httpx.post(f"{real.url}/v1/chat/completions", json=chat).json()["choices"][0]["logprobs"]["content"]
    assert [(token["token"], bytes(token["bytes"]).decode()) for token in told] == [(f"<|{name}|>",) * 2]
    told = httpx.post(f"{real.url}/v1/completions", json={"prompt": "x", "logprobs": 0, **asked}).json()["choices"][0]
    assert told["text"] == "" and told["logprobs"]["tokens"] == [f"<|{name}|>"] == list(
        told["logprobs"]["top_logprobs"][0]
    )


def test_a_seed_gives_the_same_answer_again_and_is_told(real_client: openai.OpenAI) -> None:
    def answer(seed: int | None) -> tuple[str, int]:
        asked: dict[str, Any] = {"model": "model", "messages": HI, "max_tokens": 20}
        choice = real_client.chat.completions.create(**asked, **({} if seed is None else {"seed": seed})).choices[0]
        return choice.message.content, choice.model_extra["seed"]

    assert answer(1) == answer(1) != answer(2)
    free = answer(None)
    assert answer(free[1]) == free


def test_a_conversation_too_long_for_the_model_is_refused(real_client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "hello world, " * 400}]
    with pytest.raises(openai.BadRequestError, match="at most 512") as error:
        real_client.chat.completions.create(model="model", messages=long)
    assert error.value.code == "context_length_exceeded"


@pytest.mark.parametrize("path", ["v1/completions", "v1/chat/completions", "api/chat"])
def test_what_was_read_is_shared_under_one_salt_only(real: LiveServer, path: str) -> None:
    text = f"{path} " * 12
    asked = {"prompt": text} if path == "v1/completions" else {"messages": [{"role": "user", "content": text}]}

    def reused(salt: str) -> int:
        _, voice = real.desk.keeper.voice()
        before = voice.engine.streams.stats.reused
        httpx.post(f"{real.url}/{path}", json={"max_tokens": 1, "cache_salt": salt, **asked}).raise_for_status()
        return voice.engine.streams.stats.reused - before

    assert [reused("mine") > 0, reused("mine") > 0, reused("yours") > 0, reused("yours") > 0] == [False, True] * 2


def test_what_breaks_in_one_answer_is_its_own_failure_and_the_next_is_answered(
    real: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, voice = real.desk.keeper.voice()
    poison, hidden = voice.tokenizer.encode("✂")[-1], voice.engine.model.hidden

    def broken(ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        if (ids == poison).any():
            raise MemoryError("no room for this one")
        return hidden(ids, cache)

    def ask(text: str) -> httpx.Response:
        said = {"messages": [{"role": "user", "content": text}], "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        return httpx.post(f"{real.url}/v1/chat/completions", json={**said, "logit_bias": {str(poison): -100}})

    texts = ["one", "two ✂", "three", "✂ " * 60, "five"]
    wanted = [ask(text).json()["choices"][0]["message"]["content"] for text in texts]
    monkeypatch.setattr(voice.engine.model, "hidden", broken)
    with ThreadPoolExecutor(5) as pool:
        said = list(pool.map(ask, texts))
    assert [each.status_code for each in said] == [200, 500, 200, 500, 200]
    for at in (0, 2, 4):
        assert said[at].json()["choices"][0]["message"]["content"] == wanted[at]
    assert ask("one").json()["choices"][0]["message"]["content"] == wanted[0] and len(voice.engine.streams) <= 1


def test_two_keys_share_nothing_of_what_was_read(real: LiveServer, tmp_path: Path) -> None:
    keys = Keys(Store(tmp_path / "store.sqlite"))
    ada, bob = keys.add("ada"), keys.add("bob")
    app = create_app(real.path, store=tmp_path / "store.sqlite")
    with LiveServer(real.path, app=app) as live:

        def reused(key: str, **more: str) -> bool:
            before = app.state.desk.keeper.reused()
            asked = {"messages": [{"role": "user", "content": "the same " * 12}], "max_tokens": 1, **more}
            headers = {"authorization": f"Bearer {key}"}
            httpx.post(f"{live.url}/v1/chat/completions", json=asked, headers=headers).raise_for_status()
            return bool(app.state.desk.keeper.reused() > before)

        assert [reused(ada), reused(ada), reused(bob), reused(bob)] == [False, True, False, True]
        assert not reused(bob, cache_salt="ada")  # nobody can name another's


def test_an_answer_that_takes_too_long_is_cut_as_too_long(real: LiveServer) -> None:
    app = create_app(real.path, seconds=0.2)
    with LiveServer(real.path, app=app) as live:
        _, voice = app.state.desk.keeper.voice()
        slow = voice.engine.streams.step
        voice.engine.streams.step = lambda: time.sleep(0.02) or slow()
        asked = {"max_tokens": 400, "ignore_eos": True}
        for path, body in (("chat/completions", {"messages": HI}), ("completions", {"prompt": "hello"})):
            began = time.monotonic()
            said = httpx.post(f"{live.url}/v1/{path}", json={**asked, **body}).json()
            assert said["choices"][0]["finish_reason"] == "length" and 0.2 < time.monotonic() - began < 8
            assert 0 < said["usage"]["completion_tokens"] < 40


# --- forms -----------------------------------------------------------------------------------------------------------


def test_parse_gives_the_pydantic_model_asked_for(real_client: openai.OpenAI) -> None:
    done = real_client.chat.completions.parse(model="model", messages=HI, response_format=Trip, seed=3, max_tokens=100)
    assert done.choices[0].finish_reason == "stop" and isinstance(done.choices[0].message.parsed, Trip)
    asked: dict[str, Any] = {"model": "model", "input": "Where to?", "temperature": 0.5, "max_output_tokens": 100}
    with real_client.responses.stream(**asked, text_format=Trip) as stream:
        response = stream.get_final_response()
    assert response.status == "completed" and isinstance(response.output_parsed, Trip)


FORMS: list[tuple[dict[str, Any], Any]] = [
    ({"guided_regex": "[a-c]{3}-[0-9]{2}"}, lambda text: len(text) == 6 and text[3] == "-" and text[4:].isdigit()),
    ({"guided_choice": ["你好", "hello world"]}, lambda text: text in ("你好", "hello world")),
    ({"guided_grammar": 'start: "a" "b"+ "c"'}, lambda text: text[0] == "a" and set(text[1:-1]) == {"b"}),
    ({"guided_json": {"enum": ["yes", 3]}}, lambda text: json.loads(text) in ("yes", 3)),
]


@pytest.mark.parametrize(
    ("form", "holds"), FORMS, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
def test_a_form_by_vllms_name_is_kept(real_client: openai.OpenAI, form: dict[str, Any], holds: Any) -> None:
    for seed in range(3):
        asked = real_client.chat.completions.create(model="model", messages=HI, seed=seed, extra_body=form)
        assert holds(asked.choices[0].message.content)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_required_call_is_well_formed_whatever_the_model(
    real_client: openai.OpenAI, choice: Any, stream: bool
) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    weather = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    other = {"type": "function", "function": {"name": "other", "parameters": schema}}
    asked: dict[str, Any] = {
        "model": "model",
        "messages": HI,
        "tools": [weather, other],
        "tool_choice": choice,
        "seed": 4,
    }
    asked["parallel_tool_calls"] = False
    if stream:
        with real_client.chat.completions.stream(**asked) as events:
            done = events.get_final_completion().choices[0]
    else:
        done = real_client.chat.completions.create(**asked).choices[0]
    assert done.finish_reason == "tool_calls" and len(done.message.tool_calls) == 1
    call = done.message.tool_calls[0]
    assert call.function.name == "weather" or (choice == "required" and call.function.name == "other")
    jsonschema_rs.validate(schema, json.loads(call.function.arguments))


def test_the_tokens_told_of_a_call_are_those_that_were_written(real: LiveServer, model: liuli.Model) -> None:
    spelt = {"type": "object", "properties": {"who": {"enum": ["hello world"]}}, "required": ["who"]}
    tool = {"type": "function", "function": {"name": "hello", "parameters": spelt}}
    asked = {"messages": HI, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    asked["logit_bias"] = {str(id): -100 for id in range(272, model.tokenizer.vocab_size)}  # not as it would be encoded
    stats = real.desk.keeper.voice()[1].engine.stats
    for seed in range(3):
        before = stats.written
        said = httpx.post(f"{real.url}/v1/chat/completions", json={**asked, "seed": seed}).json()
        assert said["choices"][0]["finish_reason"] == "tool_calls"
        assert said["usage"]["completion_tokens"] == stats.written - before


def test_a_call_that_the_server_runs_must_come_once_and_then_it_is_answered(real_client: openai.OpenAI) -> None:
    calculator = {"type": "function", "function": {"name": "calculator"}}
    no_call = {"8": -100}  # a constraint stands above it
    asked: dict[str, Any] = {"model": "model", "messages": HI, "tools": [calculator], "logit_bias": no_call}
    for choice in ("required", calculator):
        done = real_client.chat.completions.create(**asked, tool_choice=choice, seed=4, max_tokens=60).choices[0]
        assert [step["role"] for step in done.message.model_extra["steps"]] == ["assistant", "tool"]
        assert done.message.content and done.finish_reason in ("stop", "length")


def schema(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value, "strict": True}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": schema({"type": "nonsense"})}, "response_format"),
        ({"response_format": schema({"$ref": "https://x.y/z"})}, "response_format"),
        ({"response_format": schema({"type": "object", "unevaluatedProperties": False})}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}]}, "tools"),
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json"),
        ({"guided_grammar": "start: ??"}, "guided_grammar"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"stop_token_ids": [100000]}, "stop_token_ids"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_kept_is_refused_before_anything_is_written(
    real: LiveServer, body: dict[str, Any], param: str, stream: bool
) -> None:
    said = httpx.post(f"{real.url}/v1/chat/completions", json={"messages": HI, "stream": stream, **body})
    assert said.status_code == 400, said.text
    assert said.json()["error"]["param"] == param


# --- completions -----------------------------------------------------------------------------------------------------


def own_logprobs(model: liuli.Model, tokens: list[int]) -> list[float]:
    logprobs = torch.log_softmax(model.logits(tokens), dim=-1)
    return [float(logprobs[at, token]) for at, token in enumerate(tokens[1:])]


def test_echo_tells_the_log_probabilities_of_the_prompt(real_client: openai.OpenAI, model: liuli.Model) -> None:
    tokens = [model.tokenizer.bos, *model.tokenizer.encode("hello 你好 wörld")]
    asked: dict[str, Any] = {"model": "model", "echo": True, "logprobs": 2, "temperature": 0}
    for prompt in (tokens, "hello 你好 wörld"):
        for max_tokens in (0, 1):
            told = real_client.completions.create(prompt=prompt, max_tokens=max_tokens, **asked).choices[0]
            given = told.logprobs.token_logprobs
            shown = [given[0], *given][int(isinstance(prompt, str)) :]  # <|bos|> before a text is not echoed
            first = 1 if isinstance(prompt, list) else 0
            expected = own_logprobs(model, tokens)
            assert given[first : first + len(expected)] == pytest.approx(expected, abs=1e-4)
            assert isinstance(prompt, str) or shown[0] is None
            assert (
                len(given)
                == len(told.logprobs.tokens)
                == len(told.logprobs.text_offset)
                == len(tokens) - 1 + first + max_tokens
            )
            for logprob, top in list(zip(given, told.logprobs.top_logprobs, strict=True))[first:]:
                assert len(top) in (2, 3) and logprob in top.values()
            assert told.text.startswith(prompt if isinstance(prompt, str) else "<|bos|>hello 你好 wörld")


def test_completions_of_many_prompts_keep_their_order_and_stream_the_same(real_client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "model", "prompt": ["hello", "世界", "7"], "n": 2, "seed": 5, "max_tokens": 12}
    whole = real_client.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == list(range(6))
    texts = [""] * 6
    for chunk in real_client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices] and chunk.usage == whole.usage
    alone = real_client.completions.create(**asked | {"prompt": "世界", "n": 1})
    assert alone.choices[0].text == texts[2]


def test_best_of_gives_the_likeliest(real_client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "model", "prompt": "hello", "seed": 5, "max_tokens": 8, "logprobs": 0}

    def mean(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    all_four = real_client.completions.create(n=4, **asked).choices
    best = real_client.completions.create(best_of=4, **asked)
    assert best.choices[0].text == max(all_four, key=mean).text
    assert best.usage.completion_tokens == sum(len(choice.logprobs.tokens) for choice in all_four)


@pytest.mark.parametrize(
    ("body", "param"),
    [({"prompt": []}, "prompt"), ({"prompt": [100000]}, "prompt"), ({"prompt": [5] * 600}, "prompt"),
     ({"suffix": "x"}, "suffix"), ({"best_of": 1, "n": 2}, "best_of"), ({"max_tokens": 0}, "max_tokens"),
     ({"best_of": 2, "stream": True}, "best_of"), ({"prompt": ["x"] * 129}, "prompt"),
     ({"prompt": ["x"] * 9, "n": 16}, "prompt"), ({"prompt": ["x"] * 65, "best_of": 2}, "prompt"),
     ({"prompt": [["a"]]}, "prompt.0.0"), ({"logprobs": 21}, "logprobs")],
)  # fmt: skip
def test_a_wrong_completion_is_named(real: LiveServer, body: dict[str, Any], param: str) -> None:
    said = httpx.post(f"{real.url}/v1/completions", json={"prompt": "hello", **body})
    assert (said.status_code, said.json()["error"]["param"]) == (400, param), said.text


# --- embeddings, tokens ----------------------------------------------------------------------------------------------


def test_an_embedding_is_the_mean_state_of_length_one(real_client: openai.OpenAI, model: liuli.Model) -> None:
    texts = ["hello world", "你好，世界！"]
    done = real_client.embeddings.create(model="model", input=texts)  # the client asks for base64
    for text, told in zip(texts, done.data, strict=True):
        tokens = torch.tensor([[model.tokenizer.bos, *model.tokenizer.encode(text)]])
        with torch.inference_mode():
            mean = model.transformer.hidden(tokens)[0, 1:].mean(0)
        assert told.embedding == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)
    assert done.usage.prompt_tokens == sum(len(model.tokenizer.encode(text)) + 1 for text in texts)


def test_embeddings_as_floats_of_tokens_and_of_fewer_dimensions(real: LiveServer, model: liuli.Model) -> None:
    def ask(**body: Any) -> Any:
        return httpx.post(f"{real.url}/v1/embeddings", json=body).json()

    whole = ask(input="hello", encoding_format="float")["data"][0]["embedding"]
    packed = ask(input="hello", encoding_format="base64")["data"][0]["embedding"]
    assert list(struct.unpack("<32f", base64.b64decode(packed))) == pytest.approx(whole, abs=1e-6)
    short = ask(input="hello", dimensions=8)["data"][0]["embedding"]
    length = math.hypot(*whole[:8])
    assert short == pytest.approx([number / length for number in whole[:8]]) and math.hypot(*short) == pytest.approx(1)
    ids = model.tokenizer.encode("hello")
    assert len(ask(input=[ids, ids[:1]])["data"]) == 2 and len(ask(input=ids)["data"]) == 1
    for wrong, param in ({"input": ""}, "input"), ({"input": []}, "input"), ({"input": [[99999]]}, "input"), (
        {"input": "x", "dimensions": 33}, "dimensions"):  # fmt: skip
        assert ask(**wrong)["error"]["param"] == param


def test_tokens_come_back_as_text_and_no_text_becomes_a_control_token(real: LiveServer, model: liuli.Model) -> None:
    def ask(path: str, **body: Any) -> Any:
        return httpx.post(f"{real.url}/{path}", json=body).json()

    text = "hello <|end|> 你好"
    told = ask("tokenize", prompt=text, add_special_tokens=False)
    assert told["tokens"] == model.tokenizer.encode(text) and min(told["tokens"]) >= 16 and told["max_model_len"] == 512
    assert ask("detokenize", tokens=told["tokens"]) == {"prompt": text, "content": text}
    assert ask("tokenize", content=text)["tokens"] == [model.tokenizer.bos, *told["tokens"]]
    shown = ask("apply-template", messages=HI, tools=[WEATHER])
    assert shown["prompt"].startswith('<|bos|><|system|>Tools:\n[{"name": "weather"')
    assert shown["prompt"].endswith("<|end|><|assistant|>")
    told = shown["prompt"].removeprefix("<|bos|><|system|>").split("<|end|>")[0]
    same = ask("tokenize", messages=[{"role": "system", "content": told}, *HI])
    assert shown["tokens"] == same["tokens"]
    assert ask("detokenize", tokens=[99999])["error"]["param"] == "tokens"
    assert ask("tokenize")["error"]["param"] == "prompt"


def test_a_replica_that_dies_fails_what_it_wrote_and_the_next_answer_is_as_ever(real: LiveServer) -> None:
    asked: dict[str, Any] = {"messages": HI, "seed": 7, "max_tokens": 20, "ignore_eos": True, "tool_choice": "none"}

    def said(url: str, **more: Any) -> httpx.Response:
        return httpx.post(f"{url}/v1/chat/completions", json=asked | more, timeout=60)

    app = create_app(real.path, load=partial(ModelVoice, replicas=2))
    with LiveServer(real.path, app=app) as live, ThreadPoolExecutor(1) as pool:
        assert said(live.url).json()["choices"] == said(real.url).json()["choices"]
        voice = app.state.desk.keeper.voice()[1]
        processes = [each.process for each in voice.engine.replicas.replicas]
        for each in processes:
            os.kill(each.pid, signal.SIGSTOP)  # or the answer would be there before they are dead
        broken = pool.submit(said, live.url)
        until(lambda: httpx.get(f"{live.url}/health").json()["answers"])
        for each in processes:
            os.kill(each.pid, signal.SIGKILL)
        assert broken.result().status_code == 500 and len(processes) == 2
        assert said(live.url).json()["choices"] == said(real.url).json()["choices"]
        assert "liuli_answers_running 0" in httpx.get(f"{live.url}/metrics").text
