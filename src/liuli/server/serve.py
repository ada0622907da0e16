"""Listens: binds the port first, so that a port already taken is one clear message, then runs the application."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from liuli.assistant import Judgements
from liuli.errors import LiuliError, UsageError
from liuli.server.runs import check_servable, store_of

PORT = 8365


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises LiuliError when the port is taken, UsageError for an address not of this machine."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, OverflowError, UnicodeError) as error:
        raise UsageError(
            f"{host!r} is not an address of this machine.", f"--host {host}", "Leave --host out."
        ) from error
    sock = socket.socket(family, kind, proto)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(128)
    except OSError as error:
        sock.close()
        where = f"{host}:{port}"
        if error.errno == errno.EADDRINUSE:
            fix = f"Stop the program that uses it, or choose another port: --port {port + 1 if port < 65535 else PORT}"
            raise LiuliError(f"Port {port} is already taken.", where, fix) from error
        if error.errno == errno.EACCES:
            raise LiuliError(
                f"Port {port} may not be used by this user.", where, "Choose a port from 1024 up."
            ) from error
        raise UsageError(f"Cannot listen there: {error.strerror}.", where, "Leave --host out.") from error
    return sock


def address_of(sock: socket.socket, host: str) -> str:
    """The address a browser opens."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{sock.getsockname()[1]}"


def serve(
    path: Path,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    store: Path | None = None,
    prompts: Path | None = None,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve a model folder or a run folder until interrupted.

    port: 0 takes a free one. store, prompts: see `create_app`. ready: called with the page's address once requests are
    answered. Raises LiuliError when the port is taken, UsageError when `path` cannot be served, DamagedError for a
    damaged model.
    """
    check_servable(path)
    with bind(host, port) as sock:
        import uvicorn

        from liuli.server.app import create_app

        app = create_app(path, host=host, store=store, prompts=prompts)
        app.state.desk.keeper.voice()  # a model that cannot be read is told now, not with the first question
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        ready(address_of(sock, host))
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[sock])


def label(path: Path, *, store: Path | None = None, ready: Callable[[str], None] = print, **options: Any) -> None:
    """Serve as `serve` does, same options; `ready` is called with the address of the page where answers are judged.

    Raises LiuliError, before anything is served, for judgements that cannot be read or have no place.
    """
    judgements(path, store).counts()
    serve(path, store=store, ready=lambda url: ready(f"{url}/#/label"), **options)


def judgements(path: Path, store: Path | None = None) -> Judgements:
    """The judgements on the answers of a model or a run. Raises UsageError where they have no place."""
    check_servable(path)
    place = store_of(path, store)
    if place is None:
        fix = "say where: --store judgements.sqlite"
        raise UsageError("This model lies in no run folder, so judgements on it have no place.", path, fix)
    return Judgements(place)
