"""A response that is sent while its answer is still being written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Send

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


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
            for generator in self.closing:
                await generator.aclose()  # type: ignore[attr-defined]
