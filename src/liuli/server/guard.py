"""What every request must pass: only this machine's own pages may speak to the server.

A web page anywhere can send requests to 127.0.0.1, and a name that is rebound to it (DNS rebinding) makes them look
like its own. So the Host header must be one of the names the server was started for, a request that another site's page
sent is refused, and a body must say that it is JSON (a form cannot).
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from liuli.server.errors import ApiError, error_response

HEADER_BYTES = 32_768
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::", ""})
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def is_local(bound_to: str) -> bool:
    """Whether a server that listens on `bound_to` is heard on this machine only."""
    try:
        return bound_to == "localhost" or ipaddress.ip_address(bound_to).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    """The name in a Host header without port and brackets, in lower case; "" if it is malformed."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def allowed(name: str, bound_to: str) -> bool:
    """Whether a request for host `name` may be answered by a server that listens on `bound_to`.

    A server open to the network answers for addresses and its own name: other names can be rebound, addresses cannot.
    """
    if name in LOCAL or (name and name == bound_to.lower()):
        return True
    if bound_to not in EVERYWHERE:
        return False
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return name == socket.gethostname().lower()


def refusal(method: str, headers: Headers, bound_to: str) -> ApiError | None:
    """Why this request is refused, or None."""
    host = headers.get("host", "")
    if not allowed(host_name(host), bound_to):
        return ApiError(400, f"This server does not answer for the host {host!r}.", code="host_not_allowed")
    if sum(len(name) + len(value) for name, value in headers.raw) > HEADER_BYTES:
        return ApiError(431, f"The headers are larger than {HEADER_BYTES} bytes.")
    origin = headers.get("origin")
    foreign = origin is not None and origin.lower().partition("://")[2] != host.lower()
    if method not in ("GET", "HEAD") and (foreign or headers.get("sec-fetch-site") == "cross-site"):
        return ApiError(403, "Requests from other sites' pages are refused.", code="origin_not_allowed")
    if (
        method in ("POST", "PUT")
        and headers.get("content-type", "").split(";")[0].strip().lower() != "application/json"
    ):
        return ApiError(415, "The body must be JSON: send the header Content-Type: application/json.")
    return None


class Guard:
    """ASGI middleware: refuses foreign requests."""

    def __init__(self, app: ASGIApp, bound_to: str) -> None:
        self.app, self.bound_to = app, bound_to

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an error, or pass the request on."""
        http = scope["type"] == "http"
        refused = refusal(scope["method"], Headers(scope=scope), self.bound_to) if http else None
        app = error_response(refused) if refused else self.app
        await app(scope, receive, send)
