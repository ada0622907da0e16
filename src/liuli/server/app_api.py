"""What Liuli's own page asks: the state of a run, and a chat whose every token can be opened.

`POST /api/chat` answers in lines of JSON: {"type": "start" | "token" | "call" | "result" | "done" | "error", …}.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from liuli.assistant import Chats, Store
from liuli.engine import TOOLS, Ended, Event, Token
from liuli.errors import LiuliError, UsageError
from liuli.server.chat_completions import LOWEST_LOGPROB
from liuli.server.desk import Desk, Started
from liuli.server.errors import ApiError
from liuli.server.runs import RunReader
from liuli.server.streaming import AnswerStream, guarded
from liuli.server.wire import Items, Knobs, MessageIn, Strict, read_body, salt_of
from liuli.text import Message

ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
NO_NAME = re.compile("[\0\ud800-\udfff]")
T = TypeVar("T")


class AppChat(Knobs):
    """POST /api/chat. model: the stage whose model answers, by default the newest model.

    alternatives: how many likeliest tokens are told of each place.
    """

    model: str = Field(default="", max_length=200)
    alternatives: int = Field(default=8, ge=0, le=20)


class KeptMessage(Strict):
    """A message of a chat. parent_id: the earlier one that it follows; sampling: how it was drawn."""

    id: str = Field(min_length=1, max_length=100)
    parent_id: str | None = None
    message: MessageIn
    model: str = Field(default="", max_length=200)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    sampling: dict[str, Any] | None = None
    created: float = 0.0


class KeptChat(Strict):
    """PUT /api/chats/{id}."""

    title: str = Field(default="", max_length=500)
    messages: Items[KeptMessage] = Field(max_length=2000)

    def rows(self) -> list[dict[str, Any]]:
        """The messages as they are kept. Raises ApiError where they are no tree, or no text."""
        known = set[str | None]([None])
        for each in self.messages:
            if each.id in known or each.parent_id not in known:
                message = f"The message {each.id!r} stands there twice, or before the one it follows."
                raise ApiError(400, message, param="messages")
            known.add(each.id)
        rows = [{**dict(each), "message": each.message.model_dump(exclude_none=True)} for each in self.messages]
        names = [self.title, *(text for row in rows for text in (row["id"], row["model"]))]  # the rest is kept as JSON
        if any(NO_NAME.search(name) for name in names):
            raise ApiError(400, "A title or name holds a zero byte or half a character (a lone surrogate).")
        return rows


def app_routes(desk: Desk, store: Store | None = None) -> APIRouter:
    """The routes under /api. store: where chats are kept; None: nowhere, and judgements (label_api.py) neither."""
    routes = APIRouter(prefix="/api")
    routes.include_router(chat_routes(store))
    reader = RunReader(desk.keeper.run) if desk.keeper.run else None

    @routes.get("/run")
    async def run() -> dict[str, Any]:
        newest = desk.keeper.newest()
        shown = reader.read() if reader else {"status": None, "curves": [], "samples": [], "report": False}
        return {
            "kind": "run" if reader else "model",
            "name": desk.keeper.name,
            "training": desk.keeper.is_training(),
            "judging": store is not None,
            "model": newest.about() if newest else None,
            "models": [model.about() for model in desk.keeper.models()],
            "now": time.time(),
            **shown,
        }

    @routes.post("/chat")
    async def chat(request: Request) -> Response:
        asked = await read_body(request, AppChat)
        sampling = asked.sampling(asked.alternatives)
        salt = salt_of(request, asked)
        answer = desk.answer(asked.conversation(), sampling, list(TOOLS), stage=asked.model, trim=True, salt=salt)
        first = await anext(answer)  # errors up to here still have an HTTP status of their own
        chunks = guarded(lines(first, answer), lambda error: line(error_out(error)))
        return AnswerStream(chunks, [answer], "application/x-ndjson")

    return routes


def chat_routes(store: Store | None) -> APIRouter:
    """Chats that are kept: each request sees those of its own key, and another's is not there."""
    routes = APIRouter(prefix="/chats")

    async def kept(request: Request, work: Callable[[Chats], T]) -> T:
        if store is None:
            raise ApiError(404, "This server keeps no chats: start it with --store PATH.", code="no_store")
        try:
            return await run_in_threadpool(work, Chats(store, request.state.user))
        except KeyError:
            raise ApiError(404, "There is no such chat.", param="id", code="chat_not_found") from None
        except LiuliError as error:
            raise ApiError(400 if isinstance(error, UsageError) else 500, error.what, code="store_error") from error

    @routes.get("")
    async def all_chats(request: Request) -> dict[str, Any]:
        return {"chats": await kept(request, Chats.all)}

    @routes.get("/{id}")
    async def read(request: Request, id: str) -> dict[str, Any]:
        return await kept(request, lambda chats: chats.read(id))

    @routes.put("/{id}")
    async def save(request: Request, id: str) -> dict[str, Any]:
        if not ID.fullmatch(id):
            raise ApiError(400, "An id is up to 100 letters, digits, - and _.", param="id")
        chat = await read_body(request, KeptChat)
        return await kept(request, lambda chats: chats.save(id, chat.title, chat.rows()))

    @routes.delete("/{id}")
    async def delete(request: Request, id: str) -> dict[str, Any]:
        await kept(request, lambda chats: chats.delete(id))
        return {"id": id, "deleted": True}

    return routes


async def lines(first: Started | Event, answer: AsyncIterator[Started | Event]) -> AsyncIterator[bytes]:
    """The events as lines of JSON."""
    began = time.monotonic()
    for value in told(first, began):
        yield line(value)
    async for event in answer:
        for value in told(event, began):
            yield line(value)


def error_out(error: ApiError) -> dict[str, Any]:
    """A failure in the middle of an answer."""
    return {"type": "error", "message": error.message, "code": error.code}


def line(value: dict[str, Any]) -> bytes:
    """One JSON line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def told(event: Started | Event, began: float) -> list[dict[str, Any]]:
    """An event as the page reads it."""
    if isinstance(event, Started):
        return [{"type": "start", "model": event.model, "seed": event.seed, "left_out": event.left_out}]
    if isinstance(event, Ended):
        seconds = round(time.monotonic() - began, 3)
        return [{"type": "done", "stopped_by": event.stopped_by, "tokens": event.tokens, "seconds": seconds}]
    if isinstance(event, Message):
        if event.role == "tool":
            return [{"type": "result", "id": event.tool_call_id, "content": event.content}]
        return [{"type": "call", "id": c.id, "name": c.name, "arguments": c.arguments} for c in event.tool_calls]
    return [token_out(event)]


def token_out(token: Token) -> dict[str, Any]:
    """A token with what else could have stood there."""
    others = [
        {"id": other.id, "text": other.text, "logprob": round(max(other.logprob, LOWEST_LOGPROB), 4)}
        for other in token.alternatives
    ]
    out: dict[str, Any] = {"type": "token", "id": token.id, "text": token.text, "alternatives": others}
    out["logprob"] = round(max(token.logprob, LOWEST_LOGPROB), 4)
    if token.forced:
        out["forced"] = True
    return out
