"""The API keeps what it describes: schemathesis over /openapi.json, and every chunk of a stream against its type."""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from openai.types import Completion, CreateEmbeddingResponse, ErrorObject
from openai.types import completion_create_params as text_params
from openai.types import embedding_create_params as embedding_params
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import Response
from openai.types.responses import response_create_params as response_params
from pydantic import TypeAdapter
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.scripted import LiveServer
from tests.server.test_openai_api import HI, WEATHER

REF = "#/components/schemas/{model}"
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def described(real: LiveServer) -> Any:
    return schemathesis.openapi.from_url(f"{real.url}/openapi.json")


PATHS = [
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/responses/input_tokens",
    "/v1/responses/{id}", "/v1/models", "/v1/models/{name}", "/tokenize", "/detokenize", "/apply-template",
    "/tokenizer_info",
]  # fmt: skip


def test_the_api_is_described_without_another_host(real: LiveServer, described: Any) -> None:
    assert set(PATHS) <= set(described.raw_schema["paths"])
    docs = httpx.get(f"{real.url}/docs")
    assert docs.status_code == 200 and "/openapi.json" in docs.text and "http" not in docs.text


@pytest.mark.parametrize("path", PATHS)
def test_schemathesis_finds_nothing(real: LiveServer, described: Any, path: str) -> None:
    for method in described.raw_schema["paths"][path]:
        find_nothing(described[path][method.upper()], path)


def find_nothing(operation: Any, path: str, examples: int = 12) -> set[int]:
    """Send what the specification allows, and hold the answers against it; the statuses that came."""
    came = set[int]()

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def holds(case: Any) -> None:
        if isinstance(case.body, dict):
            for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
                if isinstance(case.body.get(name), int):
                    case.body[name] = min(case.body[name], 4)
            case.body.setdefault("max_tokens" if "chat" in path or path == "/v1/completions" else "seed", 4)
        came.add(case.call_and_validate(checks=CHECKS, timeout=30).status_code)

    holds()
    return came


PUBLIC = {  # OpenAI's public specification of our endpoints, as its client states it
    "/v1/chat/completions": (chat_params.CompletionCreateParamsNonStreaming, ChatCompletion),
    "/v1/completions": (text_params.CompletionCreateParamsNonStreaming, Completion),
    "/v1/embeddings": (embedding_params.EmbeddingCreateParams, CreateEmbeddingResponse),
    "/v1/responses": (response_params.ResponseCreateParamsNonStreaming, Response),
}


def public_specification(model: str) -> dict[str, Any]:
    """An OpenAPI document of OpenAI's own types; the model's name is ours, and errors have the shape of theirs."""
    schemas: dict[str, Any] = {"Error": TypeAdapter(dict[Literal["error"], ErrorObject]).json_schema(ref_template=REF)}
    paths: dict[str, Any] = {}
    for path, (body, answer) in PUBLIC.items():
        name = path.replace("/", "_")
        for side, kind in (("asked", body), ("told", answer)):
            schemas[side + name] = TypeAdapter(kind).json_schema(ref_template=REF)
        schemas["asked" + name]["properties"]["model"] = {"const": model}
        asked, told = ({"$ref": REF.format(model=side + name)} for side in ("asked", "told"))
        paths[path] = {
            "post": {
                "requestBody": {"required": True, "content": {"application/json": {"schema": asked}}},
                "responses": {
                    "200": {"description": "", "content": {"application/json": {"schema": told}}},
                    "4XX": {
                        "description": "",
                        "content": {"application/json": {"schema": {"$ref": REF.format(model="Error")}}},
                    },
                },
            }
        }
    for schema in list(schemas.values()):
        schemas |= schema.pop("$defs", {})
    return {
        "openapi": "3.1.0",
        "info": {"title": "OpenAI", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


@pytest.mark.parametrize("path", list(PUBLIC))
def test_schemathesis_finds_nothing_with_the_public_specification(real: LiveServer, path: str) -> None:
    public = schemathesis.openapi.from_dict(public_specification(real.path.name))
    public.config.update(base_url=real.url)
    assert find_nothing(public[path]["POST"], path, examples=40) <= {200, 400}


def parts(live: LiveServer, path: str, **body: Any) -> list[str]:
    """The data lines of a stream."""
    said = httpx.post(f"{live.url}/v1/{path}", json={"stream": True, "max_tokens": 24, **body}, timeout=60)
    assert said.status_code == 200 and said.headers["content-type"].startswith("text/event-stream"), said.text
    blocks = said.text.split("\n\n")
    assert blocks.pop() == "" and all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


def walk(chunks: list[dict[str, Any]], n: int, usage: bool) -> None:
    """The order of a chat's chunks: role, then content and calls, then finish, for each choice; then usage."""
    state = ["begin"] * n
    last = chunks.pop() if usage else None
    for chunk in chunks:
        assert ("usage" in chunk) == usage and (not usage or chunk["usage"] is None)
        for choice in chunk["choices"]:
            index, delta = choice["index"], choice["delta"]
            assert state[index] == ("begin" if "role" in delta else "open")
            state[index] = "over" if choice["finish_reason"] else "open"
            assert not choice["finish_reason"] or not delta
    assert state == ["over"] * n
    assert last is None or (last["choices"] == [] and last["usage"]["completion_tokens"] > 0)


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(
    n=st.integers(1, 3), usage=st.booleans(), logprobs=st.booleans(), seed=st.integers(0, 9), stop=st.booleans(),
    tools=st.sampled_from([None, "auto", "required"]), temperature=st.sampled_from([0, 1, 1.7]),
)  # fmt: skip
def test_every_chat_chunk_has_its_type_and_place(
    real: LiveServer, n: int, usage: bool, logprobs: bool, seed: int, stop: bool, tools: str | None, temperature: float
) -> None:
    body: dict[str, Any] = {"messages": HI, "n": n, "seed": seed, "logprobs": logprobs, "temperature": temperature}
    body |= {"stream_options": {"include_usage": usage}} | ({"stop": ["l", "世"]} if stop else {})
    body |= {"tools": [WEATHER], "tool_choice": tools} if tools else {}
    *lines, done = parts(real, "chat/completions", **body)
    assert done == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    for chunk in chunks:
        assert ChatCompletionChunk.model_validate(chunk, strict=True).object == "chat.completion.chunk"
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    walk(chunks, n, usage)


def test_every_text_chunk_has_its_type(real: LiveServer) -> None:
    *lines, done = parts(real, "completions", prompt=["hello", "你好"], echo=True, logprobs=1, n=2, seed=3)
    assert done == "[DONE]"
    over = []
    for line in lines:
        for choice in json.loads(line)["choices"]:
            assert choice["index"] not in over
            over += [choice["index"]] if choice["finish_reason"] else []
        told = {**json.loads(line)}
        for choice in told["choices"]:  # the client's type does not know that a stream's choice may go on
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        Completion.model_validate(told, strict=True)
    assert sorted(over) == [0, 1, 2, 3]
