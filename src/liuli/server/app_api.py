"""What Liuli's own page asks: the state of a run, and a chat whose every token can be opened.

`POST /api/chat` answers in lines of JSON: {"type": "start" | "token" | "call" | "result" | "done" | "error", …}.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from liuli.engine import TOOLS, Token
from liuli.server.desk import Desk, Started
from liuli.server.errors import ApiError
from liuli.server.openai_api import LOWEST_LOGPROB
from liuli.server.runs import RunReader
from liuli.server.streaming import AnswerStream
from liuli.server.voices import Ended, Event
from liuli.server.wire import Knobs, read_body
from liuli.text import Message

LOG = logging.getLogger("liuli.server")


class AppChat(Knobs):
    """POST /api/chat. model: the stage whose model answers, by default the newest model.

    alternatives: how many likeliest tokens are told of each place.
    """

    model: str = Field(default="", max_length=200)
    alternatives: int = Field(default=8, ge=0, le=20)


def app_routes(desk: Desk, judging: bool = False) -> APIRouter:
    """The routes under /api. judging: whether this server keeps judgements on answers (label_api.py)."""
    routes = APIRouter(prefix="/api")
    reader = RunReader(desk.keeper.run) if desk.keeper.run else None

    @routes.get("/run")
    async def run() -> dict[str, Any]:
        newest = desk.keeper.newest()
        shown = reader.read() if reader else {"status": None, "curves": [], "samples": [], "report": False}
        return {
            "kind": "run" if reader else "model",
            "name": desk.keeper.name,
            "training": desk.keeper.is_training(),
            "judging": judging,
            "model": newest.about() if newest else None,
            "models": [model.about() for model in desk.keeper.models()],
            "now": time.time(),
            **shown,
        }

    @routes.post("/chat")
    async def chat(request: Request) -> Response:
        asked = await read_body(request, AppChat)
        sampling = asked.sampling(asked.alternatives)
        answer = desk.answer(asked.conversation(), sampling, list(TOOLS), stage=asked.model, trim=True)
        first = await anext(answer)  # errors up to here still have an HTTP status of their own
        return AnswerStream(lines(first, answer), [answer], "application/x-ndjson")

    return routes


async def lines(first: Started | Event, answer: AsyncIterator[Started | Event]) -> AsyncIterator[bytes]:
    """The events as lines of JSON; a failure in the middle is the last line."""
    began = time.monotonic()
    try:
        for value in told(first, began):
            yield line(value)
        async for event in answer:
            for value in told(event, began):
                yield line(value)
    except ApiError as error:
        yield line(error_out(error))
    except Exception:
        LOG.exception("an answer failed")
        yield line(error_out(ApiError(500, "The server failed while it wrote this answer.")))


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
