"""OpenAI's chat API, so that any of its clients talks to a model made here.

A model's id is the name of what is served, which means its newest model; in a run, NAME/STAGE is the model of a stage.
Tools are run by the server: an answer that used one carries the call and its result in `choices[].message.steps`, and
in a stream as `choices[].delta.steps`; clients that do not know the field skip it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from liuli.assistant.voices import Ended, Event
from liuli.engine import Token
from liuli.server.desk import Desk, Started
from liuli.server.errors import ApiError
from liuli.server.runs import ModelFile
from liuli.server.streaming import AnswerStream
from liuli.server.wire import ChatRequest, read_body
from liuli.text import Message

LOG = logging.getLogger("liuli.server")
LOWEST_LOGPROB = -9999.0  # OpenAI's way to write minus infinity, which JSON has no word for


def openai_routes(desk: Desk) -> APIRouter:
    """The routes under /v1."""
    routes = APIRouter(prefix="/v1")

    @routes.get("/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_out(id, model) for id, model in served(desk).items()]}

    @routes.get("/models/{name:path}")
    def model(name: str) -> dict[str, Any]:
        stage_of(desk, name)
        return model_out(name, served(desk).get(name))

    @routes.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        asked = await read_body(request, ChatRequest)
        stage = stage_of(desk, asked.model)
        if asked.top_logprobs and not asked.logprobs:
            raise ApiError(400, "`top_logprobs` needs `logprobs: true`.", param="top_logprobs")
        if asked.stream_options and not asked.stream:
            raise ApiError(400, "`stream_options` needs `stream: true`.", param="stream_options")
        answers = [desk_stream(desk, asked, stage, index) for index in range(asked.n or 1)]
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": asked.model or desk.keeper.name,
        }
        if not asked.stream:
            return await unless_disconnected(request, complete(asked, head, answers))
        first = await anext(answers[0])  # errors up to here still have an HTTP status of their own
        chunks = stream_chunks(asked, head, answers, first)
        return AnswerStream(chunks, answers, "text/event-stream")

    return routes


def served(desk: Desk) -> dict[str, ModelFile]:
    """The models there are by their ids, the default one first."""
    keeper = desk.keeper
    stages = {f"{keeper.name}/{model.stage}": model for model in keeper.models()} if keeper.run else {}
    newest = keeper.newest()
    return {keeper.name: newest, **stages} if newest else {}


def stage_of(desk: Desk, name: str) -> str:
    """The stage that a model's id names, "" for the newest model (as no name does); 404 for any other name."""
    if name in ("", desk.keeper.name):
        return ""
    models = served(desk)
    if name not in models:
        ids = ", ".join(repr(id) for id in models or [desk.keeper.name])
        message = f"The model {name!r} does not exist; this server serves {ids}."
        raise ApiError(404, message, param="model", code="model_not_found")
    return models[name].stage


def model_out(id: str, model: ModelFile | None) -> dict[str, Any]:
    """A model in OpenAI's shape; None: its first one is still to come."""
    return {"id": id, "object": "model", "created": int(model.made) if model else 0, "owned_by": "liuli"}


def desk_stream(desk: Desk, asked: ChatRequest, stage: str, index: int) -> AsyncIterator[Started | Event]:
    """The index-th of the n answers asked for: seeds count up, so that they differ and all can be had again."""
    sampling = asked.sampling(asked.top_logprobs or 0, asked.max_completion_tokens)
    if sampling.seed is not None:
        sampling = replace(sampling, seed=sampling.seed + index)
    return desk.answer(asked.conversation(), sampling, asked.tool_names(), stage=stage)


async def unless_disconnected(request: Request, work: Any) -> Response:
    """The work's answer; when the client goes away first, the work is cancelled."""
    task = asyncio.ensure_future(work)

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return JSONResponse(task.result())
        return Response(status_code=499)  # nobody reads it
    finally:
        task.cancel()
        watch.cancel()


@dataclass
class Collected:
    """What one answer has said so far."""

    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)
    finish: str = "stop"
    prompt_tokens: int = 0
    tokens: int = 0
    bytes_of: Callable[[int], bytes] = lambda _: b""

    def take(self, event: Started | Event, asked: ChatRequest) -> dict[str, Any]:
        """Add one event; the same as a stream's delta, {} if there is nothing to send."""
        if isinstance(event, Started):
            self.prompt_tokens, self.bytes_of = event.prompt_tokens, event.bytes_of
        elif isinstance(event, Ended):
            self.tokens = event.tokens
            self.finish = "length" if event.stopped_by == "length" else "stop"
        elif isinstance(event, Message):
            self.steps.append(message_out(event))
            self.pending.append(message_out(event))
        else:
            self.text += event.text
            if asked.logprobs:
                self.logprobs.append(logprob_out(self.bytes_of, event))
            if event.text:
                return {"content": event.text}
        return {}


async def complete(
    asked: ChatRequest, head: dict[str, Any], answers: Sequence[AsyncIterator[Started | Event]]
) -> dict[str, Any]:
    """The whole response of a request that does not stream."""
    choices, prompt_tokens, tokens = [], 0, 0
    for index, answer in enumerate(answers):
        said = Collected()
        async for event in answer:
            said.take(event, asked)
        message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
        if said.steps:
            message["steps"] = said.steps
        logprobs = {"content": said.logprobs, "refusal": None} if asked.logprobs else None
        choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": said.finish})
        prompt_tokens, tokens = said.prompt_tokens, tokens + said.tokens
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage(prompt_tokens, tokens)}


async def stream_chunks(
    asked: ChatRequest,
    head: dict[str, Any],
    answers: Sequence[AsyncIterator[Started | Event]],
    first: Started | Event,
) -> AsyncIterator[bytes]:
    """Server-sent events: role, content …, finish for each answer; then usage if asked for; then [DONE]."""
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    base = {**head, "object": "chat.completion.chunk", **({"usage": None} if with_usage else {})}

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return sse({**base, "choices": [choice]})

    prompt_tokens = tokens = 0
    try:
        for index, answer in enumerate(answers):
            said = Collected()
            if index == 0:
                said.take(first, asked)
            yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
            async for event in answer:
                delta = said.take(event, asked)
                if said.pending and isinstance(event, Message) and event.role == "tool":
                    delta, said.pending = {"steps": said.pending}, []
                logprobs = (
                    {"content": said.logprobs, "refusal": None} if said.logprobs and isinstance(event, Token) else None
                )
                if delta or logprobs:
                    yield chunk(index, delta, None, logprobs)
                    said.logprobs = []
            yield chunk(index, {}, said.finish)
            prompt_tokens, tokens = said.prompt_tokens, tokens + said.tokens
        if with_usage:
            yield sse({**base, "choices": [], "usage": usage(prompt_tokens, tokens)})
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield sse(error.body())
    except Exception:
        LOG.exception("an answer failed")
        yield sse(ApiError(500, "The server failed while it wrote this answer.").body())


def sse(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's count of tokens."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def message_out(message: Message) -> dict[str, Any]:
    """A tool step in OpenAI's message format."""
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content}
    calls = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in message.tool_calls
    ]
    return {"role": "assistant", "content": message.content, "tool_calls": calls}


def logprob_out(bytes_of: Callable[[int], bytes], token: Token) -> dict[str, Any]:
    """A token's log-probability and its alternatives', in OpenAI's shape; a control token's bytes are its name's."""

    def one(id: int, text: str, logprob: float) -> dict[str, Any]:
        spelt = list(bytes_of(id) or text.encode())
        return {"token": text, "logprob": max(logprob, LOWEST_LOGPROB), "bytes": spelt}

    top = [one(other.id, other.text, other.logprob) for other in token.alternatives]
    return {**one(token.id, token.text, token.logprob), "top_logprobs": top}
