"""Responses that are sent while their answers are still being written.

Many clients at once must not cost more Python than the model does: what has come since the last chunk goes out as one.
A reader that is slow holds up only its own response; what waits for it is at most its own answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from liuli.engine import Token
from liuli.server.errors import ApiError

LOG = logging.getLogger("liuli.server")
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
PAUSE = 1 / 40  # seconds between chunks: reads as flowing, and 64 clients take 2,560 sendings a second at most
T = TypeVar("T")


class AnswerStream(StreamingResponse):
    """Sends `chunks`, then closes the answers they are made from, however the sending ended.

    A client that leaves while a chunk is on its way ends the sending outside the generator, which Python closes only
    when it is collected; the work would go on until then.
    """

    def __init__(self, chunks: AsyncIterator[bytes], answers: Sequence[AsyncIterator[Any]], media_type: str) -> None:
        super().__init__(chunks, media_type=media_type, headers=HEADERS)
        self.closing = (chunks, *answers)

    async def stream_response(self, send: Send) -> None:
        """Starlette's own, and the closing."""
        try:
            await super().stream_response(send)
        finally:
            await close(self.closing)


async def close(generators: Sequence[AsyncIterator[Any]]) -> None:
    """End generators that may not be at their end."""
    for generator in generators:
        await generator.aclose()  # type: ignore[attr-defined]


async def begun(answers: Sequence[AsyncIterator[T]]) -> list[T]:
    """The first event of every answer; when one cannot begin, none does, and its error is raised."""
    firsts = await asyncio.gather(*(anext(answer) for answer in answers), return_exceptions=True)
    failed = [first for first in firsts if isinstance(first, BaseException)]
    if failed:
        await close(answers)
        raise failed[0]
    return [first for first in firsts if not isinstance(first, BaseException)]


async def batches(answers: Sequence[AsyncIterator[T]], pause: float = PAUSE) -> AsyncGenerator[list[tuple[int, T]]]:
    """What all answers say, each event with its answer's number, as many at a time as have come.

    The first token comes at once, what follows at most every `pause` seconds. An error of one answer ends all, after
    what was said before it.
    """
    ready: list[tuple[int, T]] = []
    news = asyncio.Event()

    async def read(number: int, answer: AsyncIterator[T]) -> None:
        async for event in answer:
            ready.append((number, event))
            news.set()

    tasks = [asyncio.ensure_future(read(number, answer)) for number, answer in enumerate(answers)]
    work = asyncio.ensure_future(asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION))
    work.add_done_callback(lambda _: news.set())
    sent = 0.0
    try:
        while not work.done() or ready:
            await news.wait()
            if (left := sent + pause - time.monotonic()) > 0 and not work.done():
                await asyncio.wait((work,), timeout=left)
            news.clear()
            if batch := ready[:]:
                ready.clear()
                if any(isinstance(event, Token) for _, event in batch):
                    sent = time.monotonic()
                yield batch
            if work.done():
                news.set()
        for task in tasks:
            if task.done():  # raises what it ended by
                task.result()
    finally:
        work.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(work, *tasks, return_exceptions=True)
        await close(answers)


async def guarded(chunks: AsyncIterator[bytes], failed: Callable[[ApiError], bytes]) -> AsyncIterator[bytes]:
    """The chunks; when they fail, `failed` makes the last one, for the status was sent long ago."""
    try:
        async for chunk in chunks:
            yield chunk
    except ApiError as error:
        yield failed(error)
    except Exception:
        LOG.exception("an answer failed")
        yield failed(ApiError(500, "The server failed while it wrote this answer."))
    finally:
        await close((chunks,))


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


class Reply(Protocol):
    """One request's answers in the shape of an API: the whole of it, or the chunks of a stream."""

    def whole(self, answers: Sequence[AsyncIterator[Any]]) -> Coroutine[Any, Any, Any]: ...

    def chunks(self, firsts: Sequence[Any], answers: Sequence[AsyncIterator[Any]]) -> AsyncIterator[bytes]: ...


async def respond(
    request: Request,
    reply: Reply,
    answers: Sequence[AsyncIterator[Any]],
    stream: bool,
    failed: Callable[[ApiError], bytes] = lambda error: sse(error.body()),
) -> Response:
    """The reply, whole or as it is written. failed: the last chunk of a stream that breaks."""
    if not stream:
        return await unless_disconnected(request, reply.whole(answers))
    firsts = await begun(answers)  # errors up to here still have an HTTP status of their own
    return AnswerStream(guarded(reply.chunks(firsts, answers), failed), answers, "text/event-stream")


def sse(value: Any, event: str = "") -> bytes:
    """One server-sent event."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
