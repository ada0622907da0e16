"""The official client chats with a model made here; a wrong request is told what is wrong with it."""

from __future__ import annotations

import json
import math
import socket
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.server.scripted import LiveServer, make_model, pieces, until

HI = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Today's weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL = [{"role": "user", "content": 'call weather {"city": "巴黎"}'}]


def post(live: LiveServer, **body: object) -> httpx.Response:
    return httpx.post(f"{live.url}/v1/chat/completions", json={"messages": HI, **body})


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "liuli"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt/5")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


def test_create_returns_whole_answers_with_usage(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=HI, n=2, seed=5)
    assert [choice.index for choice in done.choices] == [0, 1]
    assert done.choices[0].message.content.startswith("You said 你好 hello")
    assert done.choices[0].finish_reason == "stop"
    assert [choice.model_extra["seed"] for choice in done.choices] == [5, 6]
    assert done.usage.prompt_tokens == 3
    assert done.usage.completion_tokens > 10 and done.usage.total_tokens == done.usage.completion_tokens + 3


def test_limits_are_kept_and_told(client: openai.OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        done = client.chat.completions.create(model="tiny", messages=HI, **{name: 2})
        assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("You said", "length")
        assert done.usage.completion_tokens == 2


def test_stream_is_the_same_text_with_usage_at_the_end(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(model="tiny", messages=HI, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text.startswith("You said 你好 hello at ")
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert not chunks[-1].choices and chunks[-1].usage.completion_tokens == len(pieces(text)) + 1
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1


def test_stream_helper_accepts_the_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=HI, logprobs=True, top_logprobs=3) as stream:
        kinds = {event.type for event in stream}
        done = stream.get_final_completion()
    assert {"content.delta", "content.done", "logprobs.content.delta"} <= kinds
    assert done.choices[0].message.content == "".join(token.token for token in done.choices[0].logprobs.content)


def test_logprobs_carry_the_alternatives_and_bytes(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=HI, logprobs=True, top_logprobs=4, max_tokens=3)
    third = done.choices[0].logprobs.content[2]
    assert (third.token, bytes(third.bytes).decode()) == (" 你好 ", " 你好 ")
    assert [round(math.exp(other.logprob), 3) for other in third.top_logprobs] == [0.6, 0.15, 0.1, 0.05]
    assert client.chat.completions.create(model="tiny", messages=HI).choices[0].logprobs is None


def test_the_servers_own_tools_run_on_the_server_and_show_their_steps(client: openai.OpenAI) -> None:
    question = [{"role": "user", "content": "calculate 12*7"}]
    by_name = [{"type": "function", "function": {"name": "calculator"}}]
    for tools in ({}, {"tools": by_name}):
        message = client.chat.completions.create(model="tiny", messages=question, **tools).choices[0].message
        assert message.content == "The result is 84." and message.tool_calls is None
        assert [step["role"] for step in message.model_extra["steps"]] == ["assistant", "tool"]
    again = client.chat.completions.create(model="tiny", messages=[*question, message.model_dump(), *HI])
    assert again.choices[0].message.content  # what we send may be sent back
    chunks = list(client.chat.completions.create(model="tiny", messages=question, stream=True))
    steps = [step for chunk in chunks for step in chunk.choices[0].delta.model_extra.get("steps", [])]
    assert [step["role"] for step in steps] == ["assistant", "tool"] and steps[1]["content"] == "84"
    none = client.chat.completions.create(model="tiny", messages=question, tool_choice="none").choices[0].message
    assert none.content.startswith("You said")


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_of_the_clients_is_called_by_the_client(live: LiveServer, client: openai.OpenAI, stream: bool) -> None:
    if stream:
        with client.chat.completions.stream(model="tiny", messages=CALL, tools=[WEATHER]) as events:
            kinds = [event.type for event in events]
            choice = events.get_final_completion().choices[0]
        assert "tool_calls.function.arguments.delta" in kinds and kinds.count("tool_calls.function.arguments.done") == 1
    else:
        choice = client.chat.completions.create(model="tiny", messages=CALL, tools=[WEATHER]).choices[0]
    call = choice.message.tool_calls[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "one moment")
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "巴黎"})
    told = live.voice.asked[-1][0][0]
    assert told.role == "system" and "Today's weather." in told.content and live.voice.asked[-1][2] == []
    back = [*CALL, choice.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    assert client.chat.completions.create(model="tiny", messages=back, tools=[WEATHER]).choices[0].message.content


def test_the_tokens_told_of_a_call_are_those_that_the_voice_wrote(live: LiveServer) -> None:
    ours = {"type": "function", "function": {"name": "calculator"}}
    for tools, written in ([WEATHER], 22), ([ours, WEATHER], 33):
        assert post(live, messages=CALL, tools=tools).json()["usage"]["completion_tokens"] == written


def test_the_first_fragment_of_a_streamed_call_has_its_name_and_the_later_ones_its_arguments(live: LiveServer) -> None:
    lines = post(live, messages=CALL, tools=[WEATHER], stream=True).text.strip().split("\n\n")
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines[:-1]]
    first, *later = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert set(first) == {"index", "id", "type", "function"} and first["function"] == {
        "name": "weather",
        "arguments": "",
    }
    assert all(set(part) == {"index", "function"} and set(part["function"]) == {"arguments"} for part in later)


def test_sampling_reaches_the_engine(live: LiveServer, client: openai.OpenAI) -> None:
    extra = {
        "top_k": 7, "min_p": 0.1, "typical_p": 0.8, "repetition_penalty": 1.2, "min_tokens": 2, "ignore_eos": True,
        "stop_token_ids": [9],
    }  # fmt: skip
    given = {"temperature": 0.3, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": -0.5, **extra}
    client.chat.completions.create(
        model="tiny", messages=HI, seed=11, stop=["a", "b"], n=2, extra_body=given, logit_bias={"7": -100}
    )
    asked = sorted((asked[1] for asked in live.voice.asked[-2:]), key=lambda sampling: sampling.seed)
    for index, sampling in enumerate(asked):
        stop_tokens = sampling.stop_tokens
        expected = {name: value for name, value in given.items() if name != "stop_token_ids"}
        assert {name: getattr(sampling, name) for name in expected} == expected
        assert (sampling.stop, stop_tokens, sampling.logit_bias) == (("a", "b"), (9,), ((7, -100.0),))
        assert sampling.seed == 11 + index


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 100}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x " * 600}]}, "messages"),
        ({"messages": [{**CALL[0], "tool_calls": [{"id": "c", "function": WEATHER["function"]}]}]},
         "messages.0.tool_calls.0.function.arguments"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"response_format": {"type": "json_object"}, "tools": [WEATHER]}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tempreature": 1}, "tempreature"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(live: LiveServer, body: dict[str, object], param: str) -> None:
    said = post(live, **body)
    assert said.status_code == 400
    error = said.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize("path", ["chat/completions", "completions", "embeddings", "responses"])
@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"[1]", b'{"model": NaN}', b"[" * 100_000, b'{"model": "\\ud800"}'])
def test_a_body_that_is_no_json_object_is_refused(live: LiveServer, path: str, raw: bytes) -> None:
    said = httpx.post(f"{live.url}/v1/{path}", content=raw, headers={"content-type": "application/json"})
    assert (said.status_code, said.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_huge_body_is_refused(live: LiveServer) -> None:
    assert post(live, messages=[{"role": "user", "content": "x" * 1_100_000}]).status_code == 413


def test_an_engine_failure_ends_only_its_own_answer(live: LiveServer) -> None:
    broken = {"messages": [{"role": "user", "content": "break"}]}
    assert post(live, **broken).status_code == 500
    lines = post(live, **broken, stream=True).text.strip().split("\n\n")
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert post(live).status_code == 200


def test_an_answer_that_the_model_could_not_finish_is_an_error_and_never_a_stop(live: LiveServer) -> None:
    nan = {"messages": [{"role": "user", "content": "nan"}], "logprobs": True}
    said = post(live, **nan)
    assert (said.status_code, said.json()["error"]["code"]) == (500, "model_error")
    assert set(said.json()["error"]) == {"message", "type", "param", "code"}
    lines = [line.removeprefix("data: ") for line in post(live, **nan, stream=True).text.strip().split("\n\n")]
    events = [json.loads(line, parse_constant=pytest.fail) for line in lines]  # NaN is no JSON
    assert events[-1] == said.json()
    assert not any(choice["finish_reason"] for event in events[:-1] for choice in event["choices"])


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_work(tmp_path: Path, stream: bool) -> None:
    with LiveServer(make_model(tmp_path / "slow"), pause=0.02) as live:
        body = {"messages": [{"role": "user", "content": "long"}], "stream": stream, "n": 2}
        if stream:
            with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=body) as said:
                next(line for line in said.iter_lines() if '"word' in line)
        else:
            sent, place = json.dumps(body).encode(), urlsplit(live.url)
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            with socket.create_connection((place.hostname, place.port)) as line:
                line.sendall(f"{head}content-length: {len(sent)}\r\n\r\n".encode() + sent)
                until(lambda: bool(live.voices) and len(live.voice.asked) == 2)  # then it hangs up
        until(lambda: httpx.get(f"{live.url}/health").json()["answers"] == 0)
        assert live.voice.closed == len(live.voice.asked) > 0  # all that had begun were stopped


def test_answers_take_turns(tmp_path: Path) -> None:
    with LiveServer(make_model(tmp_path / "slow"), pause=0.005) as live:
        long = {"messages": [{"role": "user", "content": "long"}], "max_tokens": 400}
        first = threading.Thread(target=post, args=(live,), kwargs=long)
        first.start()
        until(lambda: live.voices and live.voice.asked)
        assert post(live).status_code == 200
        assert first.is_alive()  # the short answer did not wait for the long one
        first.join()


def test_more_than_the_queue_holds_is_told_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liuli.server.worker.WAITING_AT_MOST", 2)
    with LiveServer(make_model(tmp_path / "tiny"), pause=0.01) as live, ExitStack() as held:
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": "long"}], "stream": True}
        stream_one = partial(httpx.stream, "POST", f"{live.url}/v1/chat/completions", json=asked)
        said = [held.enter_context(stream_one()).iter_bytes() for _ in range(2)]
        assert all(map(next, said))  # httpx hangs up when they are let go
        for stream in (False, True):
            full = httpx.post(f"{live.url}/v1/chat/completions", json={**asked, "stream": stream})
            assert (full.status_code, full.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert full.headers["retry-after"] == "2"
        held.close()
        until(lambda: httpx.get(f"{live.url}/health").json()["answers"] == 0)
        assert httpx.post(f"{live.url}/v1/chat/completions", json={"messages": HI}).status_code == 200
