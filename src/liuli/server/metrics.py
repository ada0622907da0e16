"""What Prometheus reads at /metrics, and the measuring: of each request as it passes, of each answer as it is written.

The names and buckets are near vLLM's, so that its dashboards need little change. A request's path is its route's, never
what was asked for, so that a stranger cannot make a thousand series.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TypeVar

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from liuli.engine import Ended, Token
from liuli.server.desk import Looked, Started
from liuli.server.errors import ApiError, error_response
from liuli.server.guard import HEADERS
from liuli.server.limits import ASKER, Limits

LOG = logging.getLogger("liuli.server")
BODY_SECONDS = 30.0  # from a request's headers to the end of its body
REQUEST_ID = re.compile(r"[\w.:-]{1,128}")  # a client's own is kept if it can do no harm in a log
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
_SOON = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TOKEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
T = TypeVar("T")


class Metrics:
    """The figures of one server, in a registry of their own. reused: how many prompt tokens were not computed anew."""

    def __init__(self, reused: Callable[[], float]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        count, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        spread = partial(Histogram, registry=registry)
        self.requests = count("liuli_requests", "Requests answered.", ["method", "route", "status"])
        soon = "From the question to its answer's first token."
        self.first = spread("liuli_time_to_first_token_seconds", soon, buckets=_SOON)
        after = "Of one answer, after its first token."
        self.next = spread("liuli_time_per_output_token_seconds", after, buckets=_TOKEN)
        self.whole = spread("liuli_answer_seconds", "From the question to the end of its answer.", buckets=_WHOLE)
        self.prompt_tokens = count("liuli_prompt_tokens", "Tokens of the questions.")
        self.answer_tokens = count("liuli_answer_tokens", "Tokens of the answers.")
        self.ended = count("liuli_answers", "Answers, by how they ended.", ["ended"])
        self.waiting = gauge("liuli_answers_waiting", "Answers that have not begun.")
        self.running = gauge("liuli_answers_running", "Answers that are being written.")
        gauge("liuli_prefix_cache_tokens", "Prompt tokens that were not computed anew.").set_function(reused)


def metrics_routes(metrics: Metrics) -> APIRouter:
    """GET /metrics, in Prometheus' text format."""
    routes = APIRouter()

    @routes.get("/metrics")
    def read() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes


class Front:
    """ASGI middleware: gives a request its id, a time and a place in the figures, and every answer the security
    headers; what breaks is a 500 with that id.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in {**HEADERS, "x-request-id": request_id}.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, body_in_time(receive), send_with_headers)
        except ClientDisconnect:
            pass  # in the midst of its body: nobody waits for an answer
        except Exception:
            LOG.exception("request %s failed", request_id)
            if status:  # it has begun: the client sees it break off
                raise
            await error_response(ApiError(500, "The server failed; its log says why."))(
                scope, receive, send_with_headers
            )
        finally:
            route = getattr(scope.get("route"), "path", "") or "other"
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.requests.labels(method, route, str(status or 499)).inc()


def body_in_time(receive: Receive) -> Receive:
    """`receive`, but a body that is not whole after BODY_SECONDS is a 408."""
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS
    whole = False

    async def receive_in_time() -> Message:
        nonlocal whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise ApiError(408, f"The body did not come within {BODY_SECONDS:.0f} seconds.") from None
        whole = not message.get("more_body", False)
        return message

    return receive_in_time


async def measured(stream: AsyncIterator[T], metrics: Metrics, limits: Limits) -> AsyncIterator[T]:
    """What a worker tells of one answer, measured, and charged to the key that asked."""
    watch = Watch(metrics)
    try:
        async for event in stream:
            watch.see(event)
            yield event
    except Exception:
        watch.ended = "error"
        raise
    finally:
        watch.close()
        limits.charge(ASKER.get(), watch.prompt_tokens + watch.tokens)
        await stream.aclose()  # type: ignore[attr-defined]


class Watch:
    """One answer, from the question on."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.began = time.monotonic()
        self.first = 0.0
        self.prompt_tokens = self.tokens = 0
        self.running = False
        self.ended = "cancelled"
        metrics.waiting.inc()

    def see(self, event: object) -> None:
        """An event of the answer."""
        if isinstance(event, Token):
            self.tokens += 1
            if not self.first:
                self.first = time.monotonic()
                self.metrics.first.observe(self.first - self.began)
        elif isinstance(event, Started):
            self.running, self.prompt_tokens = True, event.prompt_tokens
            self.metrics.waiting.dec()
            self.metrics.running.inc()
        elif isinstance(event, Ended):
            self.tokens, self.ended = event.tokens, event.stopped_by
        elif isinstance(event, Looked):
            self.prompt_tokens, self.ended = event.tokens, ""

    def close(self) -> None:
        """It is over, however it ended."""
        now = time.monotonic()
        (self.metrics.running if self.running else self.metrics.waiting).dec()
        self.metrics.prompt_tokens.inc(self.prompt_tokens)
        if not self.ended:  # it was no answer
            return
        self.metrics.answer_tokens.inc(self.tokens)
        self.metrics.ended.labels(self.ended).inc()
        if self.ended in ("cancelled", "error"):
            return
        self.metrics.whole.observe(now - self.began)
        if self.first and self.tokens > 1:
            self.metrics.next.observe((now - self.first) / (self.tokens - 1))
