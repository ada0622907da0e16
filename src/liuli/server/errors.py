"""Errors over HTTP, in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

_KINDS = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class ApiError(Exception):
    """A request that cannot be answered. `param` names the field at fault, `code` is for programs."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """{"error": {"message", "type", "param", "code"}}, all four keys always there."""
        kind = _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def error_response(error: ApiError) -> JSONResponse:
    """The error as an HTTP answer; the ones that pass by themselves say when to try again."""
    headers = {"retry-after": "2"} if error.status in (429, 503) else None
    return JSONResponse(error.body(), status_code=error.status, headers=headers)
