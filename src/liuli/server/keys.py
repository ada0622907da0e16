"""Who may ask: keys that are shown once and kept as hashes, and the page's way in.

In: a store. Out: keys, and ASGI middleware that finds out whose a request is (`request.state.user`, "" on this machine
without keys), refuses strangers with 401 and holds each key to its limits. Without any key the server is open, but then
it answers on this machine only. It does not know what is asked.

The page comes in with a login: a token in the address that is good for one request, which trades it for a cookie that
scripts cannot read and other sites cannot send. Tokens and cookies live in memory: a new server, a new login.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

import sqlalchemy as sql
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from liuli.assistant import Store
from liuli.assistant.store import KEYS, insert
from liuli.errors import LiuliError, UsageError
from liuli.server.errors import ApiError, error_response
from liuli.server.limits import ASKER, Limits

OPEN = ("/health", "/ready", "/icon.svg")  # told to anyone: they say nothing of models or people
FRESH_SECONDS = 2.0  # a key that was removed is refused after this long
LOGINS_AT_MOST = 1000  # tokens, and sessions; the oldest go first
NAME = re.compile(r"[\w.@+-]{1,80}")
COME_IN = (
    "This page needs a login: open the address that `liuli serve` printed. It is good for one browser; another one gets"
    ' its own from\n  curl -X POST -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" '
    "ADDRESS/api/login\n"
    "这个页面需要登录：请打开 `liuli serve` 打印的地址。一个地址只够一个浏览器用，"
    "另一个浏览器用上面的命令要自己的地址。\n"
)


@dataclass(frozen=True)
class Key:
    """A key as it is kept. Limits are per minute; None: none."""

    name: str
    digest: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


def digest_of(token: str) -> str:
    """What is kept of a key.

    One sha256, no slow hash: those make up for passwords that can be guessed, and nobody guesses 256 random bits.
    """
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


class Keys:
    """The keys in a store (None: there is no place for any). Methods raise LiuliError when the store fails."""

    def __init__(self, store: Store | None) -> None:
        self.store = store
        self._known: list[Key] = []
        self._until = 0.0

    def add(self, name: str, requests_per_minute: int | None = None, tokens_per_minute: int | None = None) -> str:
        """Make a key; it is told this once. Raises UsageError for a name that is taken or no name."""
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name for a key.", "NAME", "use up to 80 letters, digits and . @ + - _")
        if self.store is None:
            raise UsageError("There is no store to keep keys in.", "--store", "give one: --store PATH or URL")
        token = "liuli-" + secrets.token_urlsafe(32)
        limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        with self.store.writing() as connection:
            if connection.execute(sql.select(KEYS.c.id).where(KEYS.c.name == name)).first():
                fix = f"choose another name, or first: liuli keys remove {name}"
                raise UsageError(f"There is a key {name!r} already.", self.store.where, fix)
            insert(connection, KEYS, name=name, digest=digest_of(token), **limits)
        return token

    def all(self) -> list[Key]:
        """Every key, in the order they were made."""
        if self.store is None:
            return []
        columns = (KEYS.c.name, KEYS.c.digest, KEYS.c.requests_per_minute, KEYS.c.tokens_per_minute)
        return [Key(*row) for row in self.store.rows(sql.select(*columns).order_by(KEYS.c.id))]

    def remove(self, name: str) -> None:
        """Remove a key. Raises UsageError where there is none of this name."""
        found = False
        if self.store is not None:
            with self.store.writing() as connection:
                found = connection.execute(KEYS.delete().where(KEYS.c.name == name)).rowcount > 0
        if not found:
            have = ", ".join(key.name for key in self.all()) or "none"
            raise UsageError(f"There is no key {name!r}.", "NAME", f"there is: {have}")

    async def known(self) -> list[Key]:
        """Every key, as of at most FRESH_SECONDS ago."""
        if time.monotonic() >= self._until:
            self._known = await run_in_threadpool(self.all) if self.store else []
            self._until = time.monotonic() + FRESH_SECONDS
        return self._known


def key_of(token: str, keys: Sequence[Key]) -> Key | None:
    """The key that a token is. Takes as long whichever it is, and whether it is one."""
    digest, found = digest_of(token), None
    for key in keys:
        if hmac.compare_digest(digest, key.digest):
            found = key
    return found


class Logins:
    """Tokens that are good for one login, and the sessions they were traded for; both known by hash alone."""

    def __init__(self) -> None:
        self._tokens: dict[str, str] = {}
        self._sessions: dict[str, str] = {}

    def token(self, name: str) -> str:
        """A login for the key of this name; "": for who started the server."""
        return _remember(self._tokens, name)

    def trade(self, token: str) -> str | None:
        """A session for a token, which is worth nothing from now on; None for one that is worth nothing."""
        name = self._tokens.pop(digest_of(token), None)
        return None if name is None else _remember(self._sessions, name)

    def name(self, session: str) -> str | None:
        """Whose session it is."""
        return self._sessions.get(digest_of(session))


def _remember(values: dict[str, str], name: str) -> str:
    token = secrets.token_urlsafe(32)
    values[digest_of(token)] = name
    if len(values) > LOGINS_AT_MOST:
        del values[next(iter(values))]
    return token


class Door:
    """ASGI middleware: lets in who has a key, or everyone where there are none and the server is `local`."""

    def __init__(self, app: ASGIApp, keys: Keys, logins: Logins, limits: Limits, local: bool) -> None:
        self.app, self.keys, self.logins, self.limits, self.local = app, keys, logins, limits, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an error or a redirection, or pass the request on with its user's name."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        login = parse_qs(scope["query_string"].decode("latin-1")).get("login") if scope["path"] == "/" else None
        if login:
            await self._log_in(scope, login[0])(scope, receive, send)
            return
        try:
            key = None if scope["path"] in OPEN else await self._whose(scope)
        except ApiError as refused:
            await _refuse(scope, refused)(scope, receive, send)
            return
        name = key.name if key else ""
        scope.setdefault("state", {})["user"] = name
        ASKER.set(name)
        headers: dict[str, str] = {}
        if key and scope["method"] == "POST":  # what makes work; reading is free
            refusal, headers = self.limits.admit(name, key.requests_per_minute, key.tokens_per_minute)
            if refusal:
                response = error_response(refusal)
                response.headers.update(headers)
                await response(scope, receive, send)
                return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        await self.app(scope, receive, send_with_limits if headers else send)

    async def _whose(self, scope: Scope) -> Key | None:
        """The key of a request; None for who started the server, or where none is needed."""
        try:
            keys = await self.keys.known()
        except LiuliError as error:
            raise ApiError(503, f"The keys cannot be read: {error.what}", code="store_error") from error
        if not keys and self.local:
            return None
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if token and scheme.lower() == "bearer":
            key = key_of(token.strip(), keys)
            if key:
                return key
            raise ApiError(401, "This key is not one of this server's.", code="invalid_api_key")
        name = self.logins.name(_cookie(headers.get("cookie", ""), cookie_name(scope)))
        if name is None:
            message = "This server needs a key: send the header Authorization: Bearer KEY."
            raise ApiError(401, message, code="invalid_api_key")
        owner = next((key for key in keys if key.name == name), None)
        if name and owner is None:
            raise ApiError(401, "The key of this login was removed.", code="invalid_api_key")
        return owner

    def _log_in(self, scope: Scope, token: str) -> Response:
        """To the page without the token in its address; with a cookie, if the token is good."""
        response = RedirectResponse("/", status_code=303, headers={"cache-control": "no-store"})
        session = self.logins.trade(token)
        if session:
            response.set_cookie(cookie_name(scope), session, httponly=True, samesite="strict", path="/")
        return response


def _refuse(scope: Scope, error: ApiError) -> Response:
    if scope["path"] == "/" and error.status == 401:  # a person with a browser
        return PlainTextResponse(f"{error.message}\n{COME_IN}", status_code=401)
    response = error_response(error)
    if error.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


def cookie_name(scope: Scope) -> str:
    """One for each port: browsers send cookies to every server of a machine."""
    return f"liuli-{(scope.get('server') or ('', 0))[1]}"


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def login_routes(logins: Logins) -> APIRouter:
    """POST /api/login: the address (from `/`) that logs a browser in as the key that asks."""
    routes = APIRouter(prefix="/api")

    @routes.post("/login")
    async def login(request: Request) -> dict[str, str]:
        return {"login": f"/?login={logins.token(request.state.user)}"}

    return routes
