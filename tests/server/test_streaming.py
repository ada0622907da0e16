"""Answers take turns; an answer's work ends with its response, at whatever point the sending ends."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from liuli.engine import Token
from liuli.server import chat_completions, completions, responses
from liuli.server.streaming import AnswerStream, Reply, batches, begun, guarded
from liuli.server.worker import ASIDE, Busy, Worker


@pytest.mark.parametrize("sent", [0, 1, 2])
def test_an_answer_is_closed_when_its_client_leaves_while_a_chunk_is_sent(sent: int) -> None:
    closed = []

    async def answer() -> AsyncIterator[int]:
        try:
            for number in range(100):
                yield number
        finally:
            closed.append("answer")

    async def chunks(numbers: AsyncIterator[int]) -> AsyncIterator[bytes]:
        async for number in numbers:
            yield b"%d" % number

    async def leave() -> None:
        stuck, messages = asyncio.Event(), []

        async def send(message: object) -> None:
            messages.append(message)
            if len(messages) > sent:  # the client reads no more
                stuck.set()
                await asyncio.Event().wait()

        numbers = answer()
        await anext(numbers)  # as the routes do, so that early errors have a status of their own
        task = asyncio.create_task(AnswerStream(chunks(numbers), [numbers], "text/plain").stream_response(send))
        await stuck.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert closed == ["answer"]

    gc.disable()  # closing must not depend on the collector
    try:
        with ThreadPoolExecutor(1) as thread:  # the loop of a browser may be running in this one
            thread.submit(asyncio.run, leave()).result()
    finally:
        gc.enable()


def said(*events: object, pause: float = 0.0, closed: list[str] | None = None) -> AsyncIterator[object]:
    async def answer() -> AsyncIterator[object]:
        try:
            for event in events:
                await asyncio.sleep(pause)
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            if closed is not None:
                closed.append("answer")

    return answer()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    with ThreadPoolExecutor(1) as thread:  # the loop of a browser may be running in this one
        return thread.submit(asyncio.run, work).result(timeout=50)


REPLIES: list[Callable[[], Reply]] = [
    lambda: chat_completions.Reply(chat_completions.ChatRequest(messages=[{"role": "user"}]), "m", []),
    lambda: completions.Reply(completions.CompletionRequest(prompt="x"), "m"),
    lambda: responses.Reply(responses.ResponseRequest(input="x"), "m", [], "", [], responses.Shelf()),
]


@pytest.mark.parametrize("reply", REPLIES)
def test_an_answer_that_is_being_read_is_closed_when_its_chunk_is_stuck(reply: Callable[[], Reply]) -> None:
    closed: list[str] = []

    async def leave() -> None:
        stuck = asyncio.Event()

        async def send(message: dict[str, Any]) -> None:
            if b'"x' in message.get("body", b""):
                stuck.set()
                await asyncio.Event().wait()

        answers = [said(*(Token(id, "x", -1.0) for id in range(999)), pause=0.001, closed=closed)]
        chunks = guarded(reply().chunks(await begun(answers), answers), lambda error: b"")
        stream = AnswerStream(chunks, answers, "text/event-stream")
        task = asyncio.create_task(stream.stream_response(send))  # type: ignore[arg-type]
        await stuck.wait()
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert closed == ["answer"]

    run(leave())


def test_the_first_token_goes_at_once_and_what_comes_in_the_pause_goes_together() -> None:
    async def collect() -> list[list[int]]:
        tokens = [Token(id, "x", -1.0) for id in range(50)]
        return [[event.id for _, event in batch] async for batch in batches([said(*tokens)], pause=60.0)]

    began = time.monotonic()
    assert run(collect()) == [[0], list(range(1, 50))]
    assert time.monotonic() - began < 50  # an answer that is over waits for no pause


def test_an_error_of_one_answer_comes_after_what_was_said_and_closes_the_others() -> None:
    closed: list[str] = []

    async def collect() -> list[tuple[int, object]]:
        endless = said(*range(10_000), pause=0.01, closed=closed)
        heard: list[tuple[int, object]] = []
        with pytest.raises(ValueError, match="broke"):
            async for batch in batches([said("a", "b", ValueError("broke"), closed=closed), endless], pause=0.0):
                heard += batch
        return heard

    heard = run(collect())
    assert [event for number, event in heard if number == 0] == ["a", "b"] and closed == ["answer"] * 2


def test_one_answer_that_cannot_begin_closes_those_that_could() -> None:
    closed: list[str] = []

    async def begin() -> None:
        with pytest.raises(ValueError, match="full"):
            await begun([said(1, 2, closed=closed), said(ValueError("full"), closed=closed)])

    run(begin())
    assert closed == ["answer"] * 2


def test_an_answer_aside_that_was_left_keeps_its_place_until_its_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liuli.server.worker.WAITING_AT_MOST", 2)
    go_on = threading.Event()

    def blocks() -> Generator[str | None, None, None]:
        yield ASIDE
        go_on.wait(5)
        yield "a"

    async def leave() -> None:
        worker = Worker()
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(worker.run(blocks)), 0.1)
        assert len(worker) == 0  # nobody waits
        with pytest.raises(Busy):
            await anext(worker.run(blocks))
        go_on.set()
        await asyncio.sleep(0.1)
        assert [word async for word in worker.run(blocks)] == ["a"]
        worker.close()

    run(leave())


def test_a_turn_takes_all_that_is_there_and_then_others_have_theirs() -> None:
    order: list[str] = []
    begin = threading.Event()

    def first() -> Generator[str | None, None, None]:
        begin.wait(5)  # until the second one is in the line
        for word in ("a", "b", None, "c"):
            order.append(f"first {word}")
            yield word

    def second() -> Generator[str | None, None, None]:
        for word in (None, "d", "e"):
            order.append(f"second {word}")
            yield word

    async def both() -> list[list[str | None]]:
        worker = Worker()

        async def told(make: Callable[[], Generator[str | None, None, None]]) -> list[str | None]:
            return [word async for word in worker.run(make)]

        answers = asyncio.gather(told(first), told(second))
        await asyncio.sleep(0.05)
        begin.set()
        found = await answers
        worker.close()
        return found

    assert asyncio.run(both()) == [["a", "b", "c"], ["d", "e"]]
    assert order == [f"first {word}" for word in ("a", "b", None)] + ["second None", "first c", "second d", "second e"]
