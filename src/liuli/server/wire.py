"""Reading requests: bytes to typed values, or an error that names the field.

Every field of OpenAI's chat request is honoured, refused with a reason, or in IGNORED; none is dropped silently.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from liuli.engine import TOOLS, Sampling
from liuli.server.errors import ApiError
from liuli.text import Message, ToolCall

BODY_BYTES = 1_000_000
DEFAULT_TOKENS = 1024  # when the request sets no limit; the model's context may be less

# Fields that say nothing about the answer: who asks, how the vendor bills, caches or files it.
IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier")
# Fields whose neutral values are taken and whose other values are refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),  # this model makes one call at a time, which both allow
    "verbosity": ("medium",),
    "reasoning_effort": ("none",),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "functions": (),
    "function_call": ("none", "auto"),
}


class Strict(BaseModel):
    """A body that holds what it should and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class PartIn(Strict):
    """A part of a message's content; only text is read."""

    type: Literal["text"]
    text: str


class FunctionIn(Strict):
    """The function of a call in an earlier answer."""

    name: str
    arguments: str


class CallIn(Strict):
    """A call in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionIn


class MessageIn(Strict):
    """A message of the conversation. What clients send back of our own answers is accepted and not read."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[PartIn] | None = None
    tool_calls: list[CallIn] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    steps: list[Any] | None = None

    def message(self) -> Message:
        """The project's own form."""
        parts = self.content or ""
        content = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        role = "system" if self.role == "developer" else self.role
        calls = tuple(
            ToolCall(name=c.function.name, arguments=c.function.arguments, id=c.id) for c in self.tool_calls or ()
        )
        return Message(role=role, content=content, tool_calls=calls, tool_call_id=self.tool_call_id)


class FunctionSpec(Strict):
    """A tool's declaration; the model knows its tools from training, so only the name counts."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolIn(Strict):
    """A tool the model may use."""

    type: Literal["function"]
    function: FunctionSpec


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


Probability = Annotated[float, Field(ge=0, le=1)]


class Knobs(Strict):
    """What both APIs take: the conversation and how to sample."""

    messages: list[MessageIn] = Field(min_length=1, max_length=2000)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1_000_000)
    min_p: Probability | None = None
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None

    def conversation(self) -> list[Message]:
        """The messages, the last of which must be answered."""
        if self.messages[-1].role == "assistant":
            raise ApiError(400, "The last message is the assistant's; there is nothing to answer.", param="messages")
        return [message.message() for message in self.messages]

    def sampling(self, alternatives: int, max_tokens: int | None = None) -> Sampling:
        """Sampling with OpenAI's defaults where the request says nothing."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > 4 or any(not text or len(text) > 200 for text in stop):
            raise ApiError(400, "`stop` takes up to 4 strings of 1 to 200 characters.", param="stop")
        given = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
        return Sampling(
            **{name: value for name, value in given.items() if value is not None},
            max_tokens=max_tokens or self.max_tokens or DEFAULT_TOKENS,
            seed=None if self.seed is None else self.seed % 2**31,
            stop=tuple(stop),
            alternatives=alternatives,
        )


class ChatRequest(Knobs):
    """POST /v1/chat/completions."""

    model: str = ""
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    n: int | None = Field(default=None, ge=1, le=8)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[ToolIn] | None = None
    tool_choice: Literal["none", "auto"] | None = None

    def tool_names(self) -> list[str]:
        """The server's own tools the answer may use: those named, or all where the request names none."""
        if self.tool_choice == "none":
            return []
        if self.tools is None:
            return list(TOOLS)
        names = [tool.function.name for tool in self.tools]
        for name in names:
            if name not in TOOLS:
                have = ", ".join(TOOLS) or "none"
                raise ApiError(400, f"Unknown tool {name!r}; this server runs its own tools: {have}.", param="tools")
        return names


Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, kind: type[Body]) -> Body:
    """The request's JSON as `kind`; ApiError with the field's name when it is not that."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > BODY_BYTES:
            raise ApiError(413, f"The body is larger than {BODY_BYTES} bytes.")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.")
    try:
        return kind.model_validate(_take_neutral(value) if kind is ChatRequest else value)
    except ValidationError as error:
        raise _field_error(error) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _take_neutral(body: dict[str, Any]) -> dict[str, Any]:
    """The body without fields that are ignored or neutral; ApiError for a value that is not supported."""
    taken = dict(body)
    for name in IGNORED:
        taken.pop(name, None)
    for name, neutral in NEUTRAL.items():
        if name in taken and taken[name] is not None and taken[name] not in neutral:
            raise ApiError(400, f"{name!r} is not supported with this value.", param=name, code="unsupported_value")
        if name != "tool_choice":
            taken.pop(name, None)
    return taken


def _field_error(error: ValidationError) -> ApiError:
    first = max(error.errors(), key=lambda each: len(each["loc"]))  # of a union's complaints, the one that got furthest
    where: Sequence[int | str] = [part for part in first["loc"] if part not in ("str", "list[PartIn]")]
    param = ".".join(str(part) for part in where)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown field {param!r}.", param=param, code="unknown_parameter")
    return ApiError(400, f"{param}: {first['msg']}.", param=param)
