"""Asking a server that holds a model: JSON there and back, or a stream of events. Every failure is a readable error.

In: an address, a body, perhaps a key. Out: a JSON object, or the objects of a stream one by one. It knows no protocol
beyond that of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from liuli.errors import LiuliError, UsageError

LONGEST = 16 * 2**20  # bytes of one line of a stream
FIXES = {
    401: "put the right key into LIULI_ENGINE_KEY",
    403: "put the right key into LIULI_ENGINE_KEY",
    404: "does the server hold this model, and is this its address?",
    429: "wait a moment, or ask less at once",
}


def ask(url: str, body: dict[str, Any] | None = None, key: str | None = None, timeout_s: float = 600) -> dict[str, Any]:
    """GET, or POST of a body; the JSON object that comes back, or {} where nothing does."""
    with _asked(url, body, key, timeout_s) as reply:
        text = reply.read()
        found = json.loads(text) if text.strip() else {}
    return _object(found, url)


def ask_stream(
    url: str, body: dict[str, Any], key: str | None = None, timeout_s: float = 600
) -> Iterator[dict[str, Any]]:
    """POST; the JSON objects of the events as they come, up to `[DONE]`. Closing the iterator hangs up.

    Raises LiuliError for an error that the server tells in mid-stream. A stream that ends without `[DONE]` just ends:
    whoever reads it knows whether it was whole.
    """
    with _asked(url, body, key, timeout_s) as reply:
        while line := reply.readline(LONGEST):
            if not line.startswith(b"data:"):
                continue
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            event = _object(json.loads(data), url)
            if event.get("error"):
                said = event["error"]
                what = said.get("message", said) if isinstance(said, dict) else said
                raise LiuliError(f"the server fails in mid-answer: {str(what)[:300]}", url, "look at its log")
            yield event


@contextmanager
def _asked(url: str, body: dict[str, Any] | None, key: str | None, timeout_s: float) -> Iterator[HTTPResponse]:
    if not url.startswith(("http://", "https://")):
        raise UsageError("this is no address of a server", url, "give one such as http://127.0.0.1:8000")
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, {"Content-Type": "application/json"})
    if key:
        request.add_unredirected_header("Authorization", f"Bearer {key}")  # not for whoever it is redirected to
    try:
        with urlopen(request, timeout=timeout_s) as reply:
            yield reply
    except HTTPError as error:
        said = error.read().decode("utf-8", "replace")[:300]
        fix = FIXES.get(error.code, "look at the server's log")
        raise LiuliError(f"the server answers {error.code}: {said}", url, fix) from error
    except (OSError, HTTPException, ValueError) as error:  # refused, timed out, cut off, no JSON
        fix = "is the server running, and is this its address?"
        raise LiuliError(f"no answer from the server: {error}", url, fix) from error


def _object(value: Any, url: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LiuliError("the server answers with no JSON object", url, "is this the address of a model's API?")
    return value
