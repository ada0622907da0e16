"""/v1/responses by the official client: made, streamed, remembered, found again, deleted; every event as documented."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from liuli.server.responses import Shelf, Stored
from liuli.text import Message
from tests.server.scripted import LiveServer

EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": True}
TEXT = [
    "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    "response.output_text.delta", "response.output_text.done", "response.content_part.done",
    "response.output_item.done", "response.completed",
]  # fmt: skip
CALL = [
    "response.output_item.added", "response.function_call_arguments.delta", "response.function_call_arguments.done",
    "response.output_item.done", "response.completed",
]  # fmt: skip


def streamed(live: LiveServer, **body: object) -> list[dict[str, object]]:
    """The events of a stream, each checked against the client's types."""
    said = httpx.post(f"{live.url}/v1/responses", json={"stream": True, **body})
    blocks = [block.split("\n") for block in said.text.strip().split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name.removeprefix("event: ") for name, _ in blocks] == [event["type"] for event in events]
    for number, event in enumerate(events):
        EVENT.validate_python(event)
        assert event["sequence_number"] == number
    return events


def merged(events: list[dict[str, object]]) -> list[object]:
    """The kinds of events, each once where it repeats."""
    kinds = [event["type"] for event in events]
    return [kind for at, kind in enumerate(kinds) if at == 0 or kinds[at - 1] != kind]


def test_a_response_is_made_remembered_followed_and_deleted(client: openai.OpenAI, live: LiveServer) -> None:
    first = client.responses.create(model="tiny", input="hello", instructions="Be brief.", metadata={"a": "b"})
    assert first.output_text.startswith("You said 你好 hello") and first.status == "completed"
    assert first.usage.total_tokens == first.usage.input_tokens + first.usage.output_tokens > 10
    assert client.responses.retrieve(first.id) == first
    second = client.responses.create(model="tiny", input="history", previous_response_id=first.id)
    assert second.output_text == f"user:hello|assistant:{first.output_text}|user:history"  # not the instructions
    third = client.responses.create(
        model="tiny", input=[*map(dict, first.output), {"role": "user", "content": "history"}]
    )
    assert third.output_text == f"assistant:{first.output_text}|user:history"  # output items may be sent back
    client.responses.delete(first.id)
    for call in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            call(first.id)
    hidden = client.responses.create(model="tiny", input="hello", store=False)
    with pytest.raises(openai.NotFoundError) as error:
        client.responses.create(model="tiny", input="x", previous_response_id=hidden.id)
    assert error.value.param == "previous_response_id"


def test_the_events_of_a_text_come_in_their_order_and_tell_the_response(live: LiveServer) -> None:
    events = streamed(live, input="hello", include=["message.output_text.logprobs"], top_logprobs=2)
    assert merged(events) == TEXT
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    whole = Response.model_validate(events[-1]["response"])
    assert "".join(str(event["delta"]) for event in deltas) == whole.output_text
    assert [p for event in deltas for p in event["logprobs"]] == events[-1]["response"]["output"][0]["content"][0][
        "logprobs"
    ]
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_function_is_called_and_its_output_taken(live: LiveServer, client: openai.OpenAI, stream: bool) -> None:
    asked = {"model": "tiny", "input": 'call weather {"day": 3}', "tools": [WEATHER]}
    if stream:
        events = streamed(live, **asked)
        assert merged(events) == [*TEXT[:-1], *CALL]
        made = Response.model_validate(events[-1]["response"])
    else:
        made = client.responses.create(**asked)
    text, call = made.output
    assert (text.type, call.type, call.name, call.arguments) == ("message", "function_call", "weather", '{"day": 3}')
    output = [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    client.responses.create(model="tiny", input=output, previous_response_id=made.id, tools=[WEATHER])
    told = live.voice.asked[-1][0]
    assert [message.role for message in told] == ["system", "user", "assistant", "tool"]
    assert told[2].tool_calls[0].id == told[3].tool_call_id == call.call_id


def test_a_cut_response_is_incomplete_and_a_broken_one_failed(live: LiveServer) -> None:
    cut = streamed(live, input="hello", max_output_tokens=2)[-1]
    assert (cut["type"], cut["response"]["incomplete_details"]) == (
        "response.incomplete",
        {"reason": "max_output_tokens"},
    )
    broken = streamed(live, input="break")[-1]
    assert (broken["type"], broken["response"]["status"]) == ("response.failed", "failed")


def test_the_stream_helper_and_the_count_of_tokens(client: openai.OpenAI) -> None:
    with client.responses.stream(model="tiny", input="hello") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text != ""


def test_tokens_of_an_input_are_counted_without_an_answer(real_client: openai.OpenAI) -> None:
    made = real_client.responses.create(model="model", input="hello", instructions="Be brief.", max_output_tokens=1)
    counted = real_client.responses.input_tokens.count(model="model", input="hello", instructions="Be brief.")
    assert counted.input_tokens == made.usage.input_tokens


def test_the_tokens_that_were_not_read_anew_are_told(real_client: openai.OpenAI) -> None:
    asked = {"model": "model", "input": "a question that is asked twice " * 3, "max_output_tokens": 1}
    first, again = (real_client.responses.create(**asked).usage for _ in range(2))
    assert first.input_tokens_details.cached_tokens < 16 <= again.input_tokens_details.cached_tokens
    assert again.input_tokens_details.cached_tokens < again.input_tokens == first.input_tokens


def test_only_the_newest_responses_are_kept_and_only_for_who_made_them() -> None:
    shelf = Shelf(most=2)
    for number in range(3):
        shelf.put(Stored("me", {"id": str(number)}, ()))
    assert list(shelf.kept) == ["1", "2"] and shelf.get("2", "me").response == {"id": "2"}
    for id, user in (("0", "me"), ("2", "you")):
        with pytest.raises(Exception, match="no response"):
            shelf.get(id, user)


def test_the_responses_kept_are_bounded_in_size() -> None:
    shelf = Shelf(most_characters=3000)
    for number in range(5):
        shelf.put(Stored("me", {"id": str(number), "text": "x" * 1000}, ()))
    assert list(shelf.kept) == list(shelf.sizes) == ["3", "4"]
    shelf.drop("3")
    shelf.put(Stored("me", {"id": "5"}, (Message("user", "x" * 2000),)))  # the conversation counts
    assert list(shelf.kept) == ["5"]


@pytest.mark.parametrize(("depth", "status"), [(90, 200), (110, 400), (900, 400)])
def test_what_could_not_be_written_back_is_not_taken(live: LiveServer, depth: int, status: int) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"default": "HERE"}}
    body = json.dumps({"input": "hello", "tools": [tool]})
    for value, wanted in ('{"a":' * depth + "1" + "}" * depth, status), ("1e999", 400), ("-1e999", 400), ("1e99", 200):
        said = httpx.post(
            f"{live.url}/v1/responses",
            content=body.replace('"HERE"', value),
            headers={"content-type": "application/json"},
        )
        assert said.status_code == wanted, said.text
        if wanted == 200:
            assert httpx.get(f"{live.url}/v1/responses/{said.json()['id']}").json() == said.json()


def test_what_was_said_before_a_call_is_remembered_once(live: LiveServer, client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "tools": [{"type": "function", "name": "calculator"}, WEATHER]}
    made = client.responses.create(input="call weather {}", **asked)
    assert made.output_text == "let me seeone moment"
    output = [{"type": "function_call_output", "call_id": made.output[-1].call_id, "output": "rain"}]
    client.responses.create(input=output, previous_response_id=made.id, **asked)
    told = [(message.role, message.content) for message in live.voice.asked[-1][0][2:]]
    assert told == [("assistant", "let me see"), ("tool", "2"), ("assistant", "one moment"), ("tool", "rain")]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({}, "input"),
        ({"stream_options": {}}, "stream_options"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": "x " * 600}, "input"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"tools": [{"type": "web_search", "name": "x"}]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"include": ["reasoning.encrypted_content"]}, "include.0"),
        ({"model": "gpt"}, "model"),
    ],
)
def test_a_wrong_field_is_named(live: LiveServer, body: dict[str, object], param: str) -> None:
    said = httpx.post(f"{live.url}/v1/responses", json={"input": "x", **body} if body else {})
    assert (said.status_code, said.json()["error"]["param"]) == (404 if param == "model" else 400, param), said.text
