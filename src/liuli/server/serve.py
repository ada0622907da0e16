"""Listens: binds the port first, so that a port already taken is one clear message, then runs the application."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liuli.assistant import Judgements, Store
from liuli.errors import LiuliError, UsageError
from liuli.server.runs import check_servable, store_of

if TYPE_CHECKING:
    from liuli.server.keys import Keys

PORT = 8365
OPEN_FILES = 65_536


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
    store: str | Path | None = None,
    drain: int = 30,
    ready: Callable[[str], None] = print,
    **options: Any,
) -> None:
    """Serve a model folder or a run folder until SIGTERM or Ctrl-C; answers then have `drain` seconds to end.

    port: 0 takes a free one. store, options: see `create_app`. ready: called with the page's address once requests are
    answered. Raises LiuliError when the port is taken, UsageError when `path` cannot be served or is open to the
    network without a key, DamagedError for a damaged model.
    """
    check_servable(path)
    has_keys = check_keys(path, store, host)
    with bind(host, port) as sock:
        import uvicorn

        from liuli.server.app import create_app
        from liuli.server.connection import Server, settings

        app = create_app(path, host=host, store=store, **options)
        # what was imported stays: to look through it again, as Python would now and then, stops all for a quarter of a
        # second. Not so models, which come and go
        gc.freeze()
        # a model that cannot be read is told now, not with the first question. In a thread that ends: while another
        # than the answers' own has helpers for products, OpenMP counts more threads than cores, and none waits awake
        with ThreadPoolExecutor(1) as reader:
            reader.submit(app.state.desk.keeper.voice).result()
        login = f"/?login={app.state.logins.token('')}" if has_keys else ""
        allow_connections()
        ready(address_of(sock, host) + login)
        Server(uvicorn.Config(app, **settings(drain))).run(sockets=[sock])


def keys_in(store: str | Path) -> Keys:
    """The keys in a store."""
    from liuli.server.keys import Keys

    return Keys(Store(store))


def list_keys_here(store: str | Path, as_json: bool) -> None:
    """Print the names of the keys and their limits."""
    fields = ("name", "requests_per_minute", "tokens_per_minute")
    rows = [{name: getattr(key, name) for name in fields} for key in keys_in(store).all()]
    if as_json:
        print(json.dumps({"keys": rows}))
        return
    if not rows:
        there = "://" in str(store) or Path(store).exists()
        print("no keys" if there else f"no keys: there is no file {store} yet")
    for row in rows:
        limits = [f"{row[field]} {field.replace('_', ' ')}" for field in fields[1:] if row[field]]
        print(f"{row['name']:20} {', '.join(limits) or 'no limits'}")


def check_keys(path: Path, store: str | Path | None, host: str) -> bool:
    """Whether there are keys. Raises UsageError where a server open to the network has none."""
    from liuli.server.guard import is_local

    place = store_of(path, store)
    found = bool(place and keys_in(place).all())
    if not found and not is_local(host):
        fix = f"make a key: liuli keys add me --store {place or 'store.sqlite'}"
        fix += "" if place else "   and serve with the same --store"
        raise UsageError("Without a key anyone on the network could use this server.", f"--host {host}", fix)
    return found


def allow_connections() -> None:
    """As many open files as this user may have: each connection is one, and the usual limit is 1,024."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(most, OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def end_with_input() -> None:
    """End this process, as SIGTERM does, once its standard input ends: with the process that holds the other side."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="liuli-input", daemon=True).start()


def label(path: Path, *, store: str | Path | None = None, ready: Callable[[str], None] = print, **options: Any) -> None:
    """Serve as `serve` does, same options; `ready` is called with the address of the page where answers are judged.

    Raises LiuliError, before anything is served, for judgements that cannot be read or have no place.
    """
    judgements(path, store).counts()
    serve(path, store=store, ready=lambda url: ready(label_page(url)), **options)


def label_page(url: str) -> str:
    """The page where answers are judged; a login stays in front of the part that the server never sees."""
    return f"{url}#/label" if "?" in url else f"{url}/#/label"


def judgements(path: Path, store: str | Path | None = None) -> Judgements:
    """The judgements on the answers of a model or a run. Raises UsageError where they have no place."""
    check_servable(path)
    place = store_of(path, store)
    if place is None:
        fix = "say where: --store judgements.sqlite"
        raise UsageError("This model lies in no run folder, so judgements on it have no place.", path, fix)
    return Judgements(place)
