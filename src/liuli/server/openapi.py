"""GET /openapi.json and /docs: the API describes itself, without anything from another host.

Bodies are read by `read_body`, which names the field at fault in OpenAI's shape; so routes say here what they take.
"""

from __future__ import annotations

import functools
import html
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse

from liuli.server.replies import ErrorOut

_BODIES: dict[str, type[BaseModel]] = {}
_REF = "#/components/schemas/{model}"
_STATUSES = {
    400: "A field is wrong; `param` names it.",
    401: "No key, or a wrong one.",
    403: "Another site's page asked.",
    404: "There is no such model or object.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too many requests; `retry-after` says when to come again.",
    500: "The model or the server failed.",
    503: "The first model is still being made.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOut, "description": said} for status, said in _STATUSES.items()
}


def describes(body: type[BaseModel] | None, reply: Any, *, stream: bool = False) -> dict[str, Any]:
    """What a route's decorator is told: the body it reads, what it answers, and whether that can be a stream."""
    answer: dict[str, Any] = {"model": reply, "description": "The answer."}
    if stream:
        answer["content"] = {"text/event-stream": {}}  # its events are described in words (docs/design.md)
    told: dict[str, Any] = {"responses": {**ERRORS, 200: answer}, "response_model": None}
    if body is not None:
        _BODIES[body.__name__] = body
        schema = {"$ref": _REF.format(model=body.__name__)}
        content = {"application/json": {"schema": schema}}
        told["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return told


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description of an application's routes."""
    described = get_openapi(title="Liuli", version="1", description=__doc__.split("\n")[0], routes=app.routes)
    kinds = [(body, "validation") for body in _BODIES.values()]
    bodies = models_json_schema(kinds, ref_template=_REF)[1]["$defs"]  # type: ignore[arg-type]
    described.setdefault("components", {}).setdefault("schemas", {}).update(bodies)
    for path in described["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # FastAPI's own error, which this server never sends
    return described


def page(described: dict[str, Any]) -> str:
    """The routes as a table; the page's policy allows no script or style of others, and it needs none."""
    rows = [
        f"<tr><td>{method.upper()}<td><code>{html.escape(path)}</code><td>{html.escape(operation.get('summary', ''))}"
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    ]
    return (
        "<!doctype html><meta charset=utf-8><title>Liuli's API</title><h1>Liuli's API</h1>"
        '<p>All of it, with every field: <a href="/openapi.json">/openapi.json</a>.'
        f"<table>{''.join(rows)}</table>"
    )


def openapi_routes() -> APIRouter:
    """The two routes."""
    routes = APIRouter(include_in_schema=False)
    made = functools.cache(document)  # of the one application

    @routes.get("/openapi.json")
    def openapi(request: Request) -> dict[str, Any]:
        return made(request.app)

    @routes.get("/docs")
    def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(page(made(request.app)))

    return routes
