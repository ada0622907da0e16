"""An answer's work ends with its response, at whatever point the sending ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from liuli.server.streaming import AnswerStream


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
