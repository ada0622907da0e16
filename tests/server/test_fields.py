"""Every field of OpenAI's requests is honoured, refused with its name, or ignored on purpose: each one is sent.

The names come from the official client's types, so a field that is new there fails here until it is decided on.
"""

from __future__ import annotations

import json
import time
from typing import Any, get_type_hints

import httpx
import openai.types.chat.completion_create_params as chat
import openai.types.completion_create_params as completions
import openai.types.embedding_create_params as embeddings
import openai.types.responses.input_token_count_params as counting
import openai.types.responses.response_create_params as responses
import pytest
from pydantic import ValidationError

from liuli.server.app_api import KeptChat
from liuli.server.chat_completions import ChatRequest
from liuli.server.completions import CompletionRequest
from liuli.server.embeddings import EmbeddingRequest
from liuli.server.label_api import ThumbIn
from liuli.server.responses import InputRequest, ResponseRequest
from liuli.server.token_api import DetokenizeRequest, TemplateRequest
from liuli.server.wire import Strict
from tests.server.scripted import LiveServer

HI = [{"role": "user", "content": "hello"}]
TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
NOT_OPENAIS = {
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "min_tokens",
    "frequency_penalty", "logit_bias", "max_tokens", "ignore_eos", "seed", "stop", "stop_token_ids", "guided_json",
    "guided_regex", "guided_choice", "guided_grammar", "cache_salt", "add_special_tokens", "best_of", "stream",
}  # fmt: skip

# what is sent beside the request, and what is done with it
CHAT: dict[str, tuple[Any, str]] = {
    "messages": (HI, "honoured"), "model": ("model", "honoured"), "frequency_penalty": (0.5, "honoured"),
    "logit_bias": ({"20": -5}, "honoured"), "logprobs": (True, "honoured"), "max_completion_tokens": (3, "honoured"),
    "max_tokens": (3, "honoured"), "n": (2, "honoured"), "parallel_tool_calls": (False, "honoured"),
    "presence_penalty": (0.5, "honoured"), "response_format": ({"type": "json_object"}, "honoured"),
    "seed": (7, "honoured"), "stop": (["."], "honoured"), "stream": (False, "honoured"),
    "temperature": (0.5, "honoured"), "tools": ([{"type": "function", "function": TOOL}], "honoured"),
    "tool_choice": ("none", "honoured"), "top_p": (0.9, "honoured"), "stream_options": (None, "honoured"),
    "top_logprobs": (0, "honoured"), "metadata": ({"a": "b"}, "ignored"), "prompt_cache_key": ("k", "ignored"),
    "prompt_cache_options": ({"mode": "implicit"}, "ignored"), "prompt_cache_retention": ("24h", "ignored"),
    "safety_identifier": ("me", "ignored"), "service_tier": ("auto", "ignored"), "user": ("me", "ignored"),
    "audio": ({"voice": "x", "format": "mp3"}, "refused"), "function_call": ({"name": "f"}, "refused"),
    "functions": ([TOOL], "refused"), "modalities": (["text", "audio"], "refused"),
    "moderation": ({"model": "m"}, "refused"), "prediction": ({"type": "content", "content": "x"}, "refused"),
    "reasoning_effort": ("high", "refused"), "store": (True, "refused"), "verbosity": ("low", "refused"),
    "web_search_options": ({}, "refused"),
}  # fmt: skip
COMPLETIONS: dict[str, tuple[Any, str]] = {
    "prompt": ([5, 20], "honoured"), "model": ("model", "honoured"), "best_of": (2, "honoured"),
    "echo": (True, "honoured"), "frequency_penalty": (0.5, "honoured"), "logit_bias": ({"20": 1}, "honoured"),
    "logprobs": (1, "honoured"), "max_tokens": (2, "honoured"), "n": (2, "honoured"),
    "presence_penalty": (0.5, "honoured"), "seed": (7, "honoured"), "stop": (".", "honoured"),
    "stream": (False, "honoured"), "stream_options": (None, "honoured"), "temperature": (0, "honoured"),
    "top_p": (0.5, "honoured"), "user": ("me", "ignored"), "suffix": ("end", "refused"),
}  # fmt: skip
EMBEDDINGS: dict[str, tuple[Any, str]] = {
    "input": ("hello", "honoured"), "model": ("model", "honoured"), "dimensions": (8, "honoured"),
    "encoding_format": ("base64", "honoured"), "user": ("me", "ignored"),
}  # fmt: skip
READ: dict[str, tuple[Any, str]] = {
    "input": ([{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}], "honoured"),
    "instructions": ("Be brief.", "honoured"), "model": ("model", "honoured"),
    "parallel_tool_calls": (False, "honoured"), "previous_response_id": (None, "honoured"),
    "text": ({"format": {"type": "text"}}, "honoured"), "tool_choice": ("none", "honoured"),
    "tools": ([{"type": "function", **TOOL}], "honoured"), "conversation": ("conv_1", "refused"),
    "reasoning": ({"effort": "high"}, "refused"), "truncation": ("auto", "refused"),
}  # fmt: skip
RESPONSES: dict[str, tuple[Any, str]] = {
    **READ,
    "include": (["message.output_text.logprobs"], "honoured"), "max_output_tokens": (3, "honoured"),
    "metadata": ({"a": "b"}, "honoured"), "store": (False, "honoured"), "stream": (False, "honoured"),
    "stream_options": (None, "honoured"), "temperature": (0.5, "honoured"), "top_logprobs": (2, "honoured"),
    "top_p": (0.9, "honoured"), "prompt_cache_key": ("k", "ignored"), "user": ("me", "ignored"),
    "prompt_cache_options": ({"mode": "implicit"}, "ignored"), "prompt_cache_retention": ("24h", "ignored"),
    "safety_identifier": ("me", "ignored"), "service_tier": ("auto", "ignored"),
    "access_programs": ({}, "refused"), "background": (True, "refused"), "background_options": ({}, "refused"),
    "context_management": ([], "refused"), "image": ({}, "refused"), "max_tool_calls": (3, "refused"),
    "moderation": ({"model": "m"}, "refused"), "prompt": ({"id": "p"}, "refused"),
}  # fmt: skip
COUNTED: dict[str, tuple[Any, str]] = {**READ, "personality": ("friendly", "refused")}

KINDS: dict[str, tuple[Any, type[Strict], dict[str, tuple[Any, str]], dict[str, Any]]] = {
    "chat/completions": (chat.CompletionCreateParamsBase, ChatRequest, CHAT, {"messages": HI}),
    "completions": (completions.CompletionCreateParamsBase, CompletionRequest, COMPLETIONS, {"prompt": "hello"}),
    "embeddings": (embeddings.EmbeddingCreateParams, EmbeddingRequest, EMBEDDINGS, {"input": "hello"}),
    "responses": (responses.ResponseCreateParamsBase, ResponseRequest, RESPONSES, {"input": "hello"}),
    "responses/input_tokens": (counting.InputTokenCountParams, InputRequest, COUNTED, {"input": "hello"}),
}
for path in ("chat/completions", "completions", "responses"):
    KINDS[path][3]["max_tokens"] = 2


@pytest.mark.parametrize("path", KINDS)
def test_every_field_of_the_official_clients_types_is_decided_on(path: str) -> None:
    theirs, ours, table, _ = KINDS[path]
    names = set(get_type_hints(theirs)) | ({"stream"} & set(ours.model_fields))
    assert names == set(table), "decide on the new fields"
    extras = set(ours.model_fields) - names
    assert extras <= NOT_OPENAIS, "an extra field that no document names"
    assert not set(ours.model_fields) & {*ours.ignored, *ours.neutral}


@pytest.mark.parametrize(("path", "name"), [(path, name) for path in KINDS for name in KINDS[path][2]])
def test_each_field_is_honoured_refused_or_ignored(real: LiveServer, path: str, name: str) -> None:
    _, ours, table, request = KINDS[path]
    value, fate = table[name]
    said = httpx.post(f"{real.url}/v1/{path}", json={**request, name: value})
    assert fate == ("ignored" if name in ours.ignored else "honoured" if name in ours.model_fields else "refused")
    if fate == "refused":
        error = said.json()["error"]
        assert (said.status_code, error["param"], error["code"]) == (400, name, "unsupported_value")
    else:
        assert said.status_code == 200, said.text


BAD = ["NaN", "-Infinity", "1e400", str(2**63), str(-(2**63) - 1), '"1"', "true", "[]", "{}", "9" * 400, "null"]
# ends of a field's range that another field or the model forbids
REFUSED = {"min_tokens": 1_000_000, "dimensions": 100_000, "top_logprobs": 20, "max_tokens": 0}


def ends(of: dict[str, Any]) -> list[float]:
    """The least and the largest value of a number."""
    number = next(each for each in [of, *of.get("anyOf", ())] if each.get("type") in ("number", "integer"))
    least = 5e-324 if "exclusiveMinimum" in number else number["minimum"]
    return [least, number["maximum"] if "maximum" in number else number["exclusiveMaximum"] - 1]


@pytest.mark.parametrize("path", KINDS)
def test_no_number_breaks_a_request_and_every_one_in_its_range_is_taken(real: LiveServer, path: str) -> None:
    _, ours, _, request = KINDS[path]
    schema = ours.model_json_schema()["properties"]
    numeric = [name for name, of in schema.items() if "'number'" in str(of) or "'integer'" in str(of)]
    numeric = [name for name in numeric if name not in ("prompt", "input", "stop_token_ids", "logit_bias")]
    valid = [(name, value) for name in numeric for value in ends(schema[name])]
    with httpx.Client(headers={"content-type": "application/json"}, timeout=60) as client:

        def ask(name: str, value: str) -> httpx.Response:
            body = json.dumps({**request, name: "HERE"}).replace('"HERE"', value)
            return client.post(f"{real.url}/v1/{path}", content=body)

        for name, text in [(name, text) for name in (*numeric, "logit_bias", "stop_token_ids") for text in BAD]:
            said = ask(name, text)
            assert said.status_code in (200, 400), (name, text, said.text)
            assert said.status_code == 200 or set(said.json()["error"]) == {"message", "type", "param", "code"}
        for name, value in valid:
            said = ask(name, json.dumps(value))
            refused = REFUSED.get(name) == value and not (path == "responses" and name == "top_logprobs")
            assert said.status_code == (400 if refused else 200), (name, value, said.text)
            assert not refused or said.json()["error"]["param"] == name


MESSAGE = '{"messages": [{"role": "user", "content": "x"}], '
LISTS: list[tuple[type[Strict], str, list[Any]]] = [
    *((CompletionRequest, '{"prompt": HERE}', items) for items in ([1.5], [1, "a"], [{}])),
    (CompletionRequest, '{"prompt": [HERE]}', [1.5]),
    *((CompletionRequest, f'{{"prompt": "x", "{name}": HERE}}', [{}]) for name in ("stop", "guided_choice")),
    (CompletionRequest, '{"prompt": "x", "stop_token_ids": HERE}', [-1]),
    (EmbeddingRequest, '{"input": HERE}', [{}]),
    (EmbeddingRequest, '{"input": [HERE]}', [{}]),
    (ChatRequest, '{"messages": HERE}', [{}]),
    *(
        (ChatRequest, f'{{"messages": [{{"role": "user", "{name}": HERE}}]}}', [{}])
        for name in ("content", "tool_calls")
    ),
    *((kind, MESSAGE + '"tools": HERE}', [{}]) for kind in (ChatRequest, TemplateRequest)),
    *((ResponseRequest, f'{{"input": "x", "{name}": HERE}}', [{}]) for name in ("tools", "include")),
    (ResponseRequest, '{"input": HERE}', [{}]),
    (ResponseRequest, '{"input": [{"role": "user", "content": HERE}]}', [{}]),
    (ResponseRequest, '{"input": [{"type": "function_call_output", "call_id": "c", "output": HERE}]}', [{}]),
    (DetokenizeRequest, '{"tokens": HERE}', [-1]),
    (KeptChat, '{"messages": HERE}', [{}]),
    (ThumbIn, '{"good": true, "messages": HERE}', [{}]),
]


@pytest.mark.parametrize(("kind", "body", "items"), LISTS)
def test_of_a_list_that_is_all_wrong_only_the_beginning_is_read(
    kind: type[Strict], body: str, items: list[Any]
) -> None:
    with pytest.raises(ValidationError) as error:
        kind.model_validate_json(body.replace("HERE", json.dumps(items * 1000)))
    assert error.value.error_count() < 25


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"min_tokens": 600, "max_tokens": None}, "min_tokens"),  # than the context has
    ({"min_tokens": 2000, "max_tokens": None}, "min_tokens"),  # than the default
    ({"logit_bias": {"7": 1, "07": 2}}, "logit_bias"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "param"), IMPOSSIBLE)
@pytest.mark.parametrize("path", ["v1/chat/completions", "v1/completions", "v1/responses", "api/chat"])
def test_fields_that_contradict_each_other_or_the_model_are_named(
    real: LiveServer, path: str, fields: dict[str, Any], param: str, stream: bool
) -> None:
    asked = {"prompt": "hello"} if path == "v1/completions" else {"messages": HI}
    body = {"input": "hello"} if path == "v1/responses" else asked
    body = {**body, **fields, **({} if path == "api/chat" else {"stream": stream})}
    said = httpx.post(f"{real.url}/{path}", json=body)
    assert (said.status_code, said.json()["error"]["param"]) == (400, param), said.text


FUNCTION = {"type": "function", "function": {**TOOL, "description": "d", "strict": True}}
FORM = {"name": "x", "description": "d", "strict": False, "schema": {"type": "boolean"}}
NESTED: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {"messages": [{"role": "user", "content": "hello", "name": "ada"}]}),
    ("chat/completions", {"tools": [FUNCTION], "tool_choice": "none"}),
    ("chat/completions", {"response_format": {"type": "json_schema", "json_schema": FORM}}),
    ("chat/completions", {"stream": True, "stream_options": {"include_obfuscation": True}}),
    ("completions", {"stream": True, "stream_options": {"include_obfuscation": False}}),
    ("responses", {"stream": True, "stream_options": {"include_obfuscation": True}}),
    ("responses", {"text": {"format": {"type": "json_schema", **FORM}}}),
]


@pytest.mark.parametrize(("path", "fields"), NESTED)
def test_fields_within_fields_that_say_nothing_about_the_answer_are_taken(
    real: LiveServer, path: str, fields: dict[str, Any]
) -> None:
    said = httpx.post(f"{real.url}/v1/{path}", json={**KINDS[path][3], **fields})
    assert said.status_code == 200 and '"error": {' not in said.text, said.text


@pytest.mark.parametrize("nested", [False, True])
def test_a_body_of_unknown_fields_is_refused_at_once_and_a_few_of_them_are_named(
    live: LiveServer, nested: bool
) -> None:
    unknown = {f"f{n}": n for n in range(60_000)}
    body = {"messages": [HI[0] | unknown]} if nested else {"messages": HI} | unknown
    raw = json.dumps(body, separators=(",", ":"))
    known = json.dumps({"messages": HI, "metadata": unknown, "n": 0}, separators=(",", ":"))
    times: dict[str, list[float]] = {raw: [], known: []}
    for sent in [*times] * 5:  # in turn, and of this process alone: machines have moods
        began = time.process_time()
        said = httpx.post(f"{live.url}/v1/chat/completions", content=sent, headers={"content-type": "application/json"})
        times[sent].append(time.process_time() - began)
        assert said.status_code == 400 and len(said.content) < 400
        if sent == raw:
            named = "60000 fields" if nested else "Unknown fields 'f0', 'f1', 'f2', 'f3', 'f4' and 59995 more."
            assert named in said.json()["error"]["message"]
    assert min(times[raw]) < 3 * min(times[known])  # than another wrong body as long
