"""Connections that nobody holds by being slow, and a server that lets answers end before it does.

uvicorn waits for ever for a request's headers and for a reader that does not read; both have a time here. SIGTERM and
Ctrl-C stop the accepting, let running answers end, and exit with code 0; a second signal ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from liuli.server.guard import HEADER_BYTES

HEADER_SECONDS = 10.0  # from the first byte (or the connection) to the last of a request's headers
WRITE_SECONDS = 60.0  # without a byte taken by who asked
IDLE_SECONDS = 65  # a connection kept open between requests; longer than the usual proxy's


class Connection(HttpToolsProtocol):
    """uvicorn's connection with limits on time, and on the size of headers."""

    _reading: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None
    _unread = 0  # bytes since headers, a part of a body or a request were whole

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Headers must come."""
        super().connection_made(transport)
        self._headers_must_end()

    def on_message_begin(self) -> None:
        """Headers that have begun must end."""
        self._headers_must_end()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """They have ended."""
        self._unread = 0
        self._headers_are_here()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Who reads it counts it."""
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """What comes next is another request."""
        self._unread = 0
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Headers, and what may follow a body in their place, have some size only: httptools itself knows no limit."""
        self._unread += len(data)
        super().data_received(data)
        if self._unread <= HEADER_BYTES or self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:  # or it would stand in the midst of an answer
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
        self.transport.close()

    def pause_writing(self) -> None:
        """The reader is slow: it may be so for a while."""
        super().pause_writing()
        self._writing = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads on."""
        self._is_read()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """No more to wait for."""
        self._headers_are_here()
        self._is_read()
        super().connection_lost(exc)

    def _headers_must_end(self) -> None:
        if self._reading is None:
            self._reading = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _headers_are_here(self) -> None:
        if self._reading:
            self._reading.cancel()
        self._reading = None

    def _is_read(self) -> None:
        if self._writing:
            self._writing.cancel()
        self._writing = None


class Server(uvicorn.Server):
    """uvicorn's server that takes SIGTERM for an order, not for a failure."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take SIGINT and SIGTERM while it serves; uvicorn would raise them again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end, the second is the end."""
        if self.should_exit:
            self.force_exit = True
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        self.should_exit = True


def settings(drain: int) -> dict[str, Any]:
    """uvicorn's configuration. drain: seconds that running answers have to end."""
    return {
        "http": Connection,
        "ws": "none",
        "log_level": "warning",
        "access_log": False,
        "timeout_keep_alive": IDLE_SECONDS,
        "timeout_graceful_shutdown": drain,
    }
