"""Reading requests: bytes to typed values, or an error that names the field.

Every field of OpenAI's requests is honoured, refused with a reason, or ignored on purpose (`ignored` of each request,
listed in docs/design.md); none is dropped silently.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import Request

from liuli.engine import TOOLS, Sampling
from liuli.engine.constraints import Constraint
from liuli.errors import LiuliError
from liuli.server.errors import ApiError
from liuli.text import Message, ToolCall

BODY_BYTES = 1_000_000
DEEPEST = 100  # objects and lists in one another; what writes them back has an end too, at 255
DEFAULT_TOKENS = 1024  # when the request sets no limit; the model's context may be less
MOST_CHOICES = 16
NAMED = 5  # of the fields that are not known
MOST_ERRORS = 1000  # of one body; to tell what each is takes some microseconds
_HALF_PAIR = re.compile(rb"\\ud[89a-f]", re.IGNORECASE)  # may be half of a surrogate pair, which no text holds

# Fields that say nothing about the answer: who asks, how the vendor bills, caches or files it.
IGNORED = (
    "user",
    "metadata",
    "safety_identifier",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
)


class Strict(BaseModel):
    """A body that holds what it should and nothing else.

    ignored: fields that are taken and not read. neutral: fields of which only these values (and null) are taken.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    ignored: ClassVar[tuple[str, ...]] = ()
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}


T = TypeVar("T")
Items = Annotated[list[T], Field(fail_fast=True)]
"""A body's list. Its first wrong item is told: to collect the errors of all takes seconds and gigabytes."""


# --- conversations ---------------------------------------------------------------------------------------------------

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class PartIn(Strict):
    """A part of a message's content; only text is read."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class FunctionIn(Strict):
    """The function of a call in an earlier answer."""

    name: ToolName
    arguments: str
    parsed_arguments: Any = None  # the official client's helpers leave it there


class CallIn(Strict):
    """A call in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionIn
    index: int | None = None


class MessageIn(Strict):
    """A message of the conversation. What clients send back of our own answers is accepted and not read; nor is `name`,
    for which the prompt has no place.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Items[PartIn] | None = None
    tool_calls: Items[CallIn] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    steps: list[Any] | None = None
    parsed: Any = None

    @model_validator(mode="after")
    def only_assistants_call(self) -> MessageIn:
        """A call in another's mouth would be refused deep inside."""
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant's message holds tool_calls")
        return self

    def message(self) -> Message:
        """The project's own form."""
        role = "system" if self.role == "developer" else self.role
        calls = tuple(ToolCall(c.function.name, c.function.arguments, c.id) for c in self.tool_calls or ())
        return Message(role=role, content=plain(self.content), tool_calls=calls, tool_call_id=self.tool_call_id)


def plain(content: str | list[PartIn] | None) -> str:
    """The text of a content."""
    return "".join(part.text for part in content) if isinstance(content, list) else content or ""


# --- tools and forms of the answer -----------------------------------------------------------------------------------


class FunctionSpec(Strict):
    """A tool's declaration. Without `parameters`, a tool that the server has itself is run by the server.

    `strict` or not, a call keeps to the parameters.
    """

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolIn(Strict):
    """A tool the model may use."""

    type: Literal["function"]
    function: FunctionSpec


class NameIn(Strict):
    """A function's name."""

    name: ToolName


class ChosenTool(Strict):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NameIn


class SchemaIn(Strict):
    """OpenAI's json_schema format. `strict` or not, the answer keeps to the schema; the model sees no `description`."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(default={}, alias="schema")
    strict: bool | None = None


class PlainFormat(Strict):
    """Text without a form, or any JSON object."""

    type: Literal["text", "json_object"]
    wanted: ClassVar[None] = None


class SchemaFormat(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaIn

    @property
    def wanted(self) -> dict[str, Any]:
        """The schema."""
        return self.json_schema.schema_


class SchemaText(SchemaIn):
    """The same in /v1/responses, where it has no layer of its own."""

    type: Literal["json_schema"]

    @property
    def wanted(self) -> dict[str, Any]:
        """The schema."""
        return self.schema_


Form = PlainFormat | SchemaFormat | SchemaText


@dataclass(frozen=True)
class Tools:
    """What of a request's tools the model is told and who runs them.

    here: those the server runs. declared: those the client runs. shape: how a call must look; None where the model
    calls as it learned to.
    """

    here: Sequence[str] = ()
    declared: Sequence[FunctionSpec] = ()
    shape: Constraint | None = None

    @property
    def names(self) -> list[str]:
        return [tool.name for tool in self.declared]

    def told(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with the client's tools declared in the system message, as lessons with tools have them."""
        if not self.declared:
            return list(messages)
        listed = [tool.model_dump(exclude_none=True, exclude={"strict"}) for tool in self.declared]
        said = f"Tools:\n{json.dumps(listed, ensure_ascii=False)}"
        has_system = bool(messages) and messages[0].role == "system"
        before = f"{messages[0].content}\n\n" if has_system and messages[0].content else ""
        return [Message("system", before + said), *messages[has_system:]]


Choice = Literal["none", "auto", "required"]


def tools_of(specs: Sequence[FunctionSpec] | None, choice: Choice | str | None, parallel: bool) -> Tools:
    """Who runs which tools. specs: None for the server's own. choice: how free the model is, or `=NAME` of the one tool
    that must be called. parallel: whether one answer may hold several calls.
    """
    if choice == "none":
        return Tools()
    named = choice.removeprefix("=") if choice and choice.startswith("=") else None
    if specs is None:
        if choice in (None, "auto"):
            return Tools(list(TOOLS))
        raise ApiError(400, "`tool_choice` needs `tools`.", param="tool_choice")
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names) or len(names) > 128:
        raise ApiError(400, "`tools` takes up to 128 tools of different names.", param="tools")
    if (named and named not in names) or (choice == "required" and not names):
        have = ", ".join(names) or "none"
        raise ApiError(400, f"`tool_choice` names no tool of `tools`: {have}.", param="tool_choice")
    here = [spec.name for spec in specs if spec.parameters is None and spec.name in TOOLS]
    declared = [spec for spec in specs if spec.name not in here]
    allowed = {
        spec.name: TOOLS[spec.name].parameters if spec.name in here else spec.parameters or {"type": "object"}
        for spec in specs
        if named in (None, spec.name)
    }
    must = choice == "required" or named is not None
    shape = Constraint("tools", json.dumps(allowed), must, parallel, "tools") if allowed else None
    return Tools(here, declared, shape)


# --- drawing ---------------------------------------------------------------------------------------------------------

Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Prompt = str | list[TokenId]
Prompts = str | Items[TokenId] | Items[str] | Items[Items[TokenId]]
Text = Annotated[str, Field(min_length=1, max_length=100_000)]


class Drawn(Strict):
    """How an answer is drawn: OpenAI's fields and those of vLLM that the engine knows."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1_000_000)
    min_p: Probability | None = None
    typical_p: float | None = Field(default=None, gt=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=10)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(default=None, max_length=1024)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    min_tokens: int | None = Field(default=None, ge=0, le=1_000_000)
    ignore_eos: bool | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | Items[str] | None = None
    stop_token_ids: Items[TokenId] | None = Field(default=None, max_length=64)
    guided_json: dict[str, Any] | None = None
    guided_regex: Text | None = None
    guided_choice: Items[Text] | None = Field(default=None, min_length=1, max_length=20_000)
    guided_grammar: Text | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=200)] | None = None

    def sampling(
        self, alternatives: int, max_tokens: int | None = None, constraint: Constraint | None = None
    ) -> Sampling:
        """Sampling with OpenAI's defaults where the request says nothing."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > 16 or any(not text or len(text) > 200 for text in stop):
            raise ApiError(400, "`stop` takes up to 16 strings of 1 to 200 characters.", param="stop")
        max_tokens = max_tokens or self.max_tokens or max(DEFAULT_TOKENS, self.min_tokens or 0)
        if (self.min_tokens or 0) > max_tokens:
            message = f"`min_tokens` is {self.min_tokens}, but the answer may have {max_tokens} tokens."
            raise ApiError(400, message, param="min_tokens")
        simple = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
                  "frequency_penalty", "min_tokens", "ignore_eos")  # fmt: skip
        return Sampling(
            **{name: value for name in simple if (value := getattr(self, name)) is not None},
            max_tokens=max_tokens,
            seed=None if self.seed is None else self.seed % 2**31,
            stop=tuple(stop),
            alternatives=alternatives,
            logit_bias=self.biases(),
            stop_tokens=tuple(self.stop_token_ids or ()),
            constraint=self.form(constraint),
        )

    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` with its keys as the token ids that they are."""
        wrong = [key for key in self.logit_bias or {} if not re.fullmatch(r"0|[1-9][0-9]{0,8}", key)]
        if wrong:
            raise ApiError(400, f"`logit_bias` has a key that is no token id: {wrong[0]!r}.", param="logit_bias")
        return tuple((int(key), value) for key, value in (self.logit_bias or {}).items())

    def form(self, other: Constraint | None) -> Constraint | None:
        """The one form asked for; 400 for two, for an answer has one."""
        asked = {
            "guided_json": self.guided_json is not None and Constraint("json_schema", json.dumps(self.guided_json)),
            "guided_regex": self.guided_regex and Constraint("regex", self.guided_regex),
            "guided_choice": self.guided_choice and Constraint("choice", json.dumps(self.guided_choice)),
            "guided_grammar": self.guided_grammar and Constraint("grammar", self.guided_grammar),
        }
        given = [(name, form) for name, form in asked.items() if form]
        if len(given) + (other is not None) > 1:
            raise ApiError(400, "An answer has one form; the request asks for more.", param=given[0][0])
        return replace(given[0][1], asked_by=given[0][0]) if given else other


def listed(prompts: Prompts) -> list[Prompt]:
    """One prompt or several, as several."""
    several = isinstance(prompts, list) and not (prompts and isinstance(prompts[0], int))
    return prompts if several else [prompts]  # type: ignore[return-value,list-item]


class Knobs(Drawn):
    """A conversation and how to draw its answer."""

    messages: Items[MessageIn] = Field(min_length=1, max_length=2000)

    def conversation(self) -> list[Message]:
        """The messages, the last of which must be answered."""
        if self.messages[-1].role == "assistant":
            raise ApiError(400, "The last message is the assistant's; there is nothing to answer.", param="messages")
        return [message.message() for message in self.messages]


class StreamOptions(Strict):
    """Options of a streamed answer. include_obfuscation is not read: chunks of many tokens hide their lengths."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Literal[False] | None = None


def check_options(options: Strict | None, stream: bool | None) -> None:
    """ApiError for options of a stream that is none."""
    if options and not stream:
        raise ApiError(400, "`stream_options` needs `stream: true`.", param="stream_options")


def salt_of(request: Request, asked: Drawn) -> str:
    """Who shares what was read before: each user alone, and each of a user's salts alone."""
    return f"{request.state.user}\n{asked.cache_salt or ''}"


# --- bytes to values -------------------------------------------------------------------------------------------------

Body = TypeVar("Body", bound=Strict)


async def read_body(request: Request, kind: type[Body]) -> Body:
    """The request's JSON as `kind`; ApiError with the field's name when it is not that."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > BODY_BYTES:
            raise ApiError(413, f"The body is larger than {BODY_BYTES} bytes.")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
        _check_depth(value)
        if _HALF_PAIR.search(raw):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {_short(error)}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.")
    taken = _known(value, kind)
    try:
        return kind.model_validate(taken)
    except ValidationError as error:
        raise _field_error(error, taken) from None
    except LiuliError as error:
        raise ApiError(400, error.what) from None


def _short(error: Exception) -> str:
    """An error's words without the body that some of them quote."""
    return (
        "half a character (a lone surrogate) is no text" if isinstance(error, UnicodeEncodeError) else str(error)[:200]
    )


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):  # 1e999 is JSON, but what it is read as is not
        raise ValueError(f"{number[:50]} is no number of JSON, or too large a one")
    return value


def _check_depth(value: Any) -> None:
    level: list[Any] = [value] if isinstance(value, dict) else []
    for _ in range(DEEPEST):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for each in itertools.chain.from_iterable(inner) if each and isinstance(each, (dict, list))]
    if level:
        raise ValueError(f"it is nested more than {DEEPEST} deep")


def _known(body: dict[str, Any], kind: type[Strict]) -> dict[str, Any]:
    """The body without fields that are ignored or neutral; ApiError for a value that is not supported, and for fields
    that are not known: the first of them are named, and the others cost nothing.
    """
    for name, neutral in kind.neutral.items():
        if body.get(name) is not None and body[name] not in neutral:
            raise ApiError(400, f"{name!r} is not supported with this value.", param=name, code="unsupported_value")
    left = {name: value for name, value in body.items() if name not in (*kind.ignored, *kind.neutral)}
    if unknown := [name[:80] for name in left if name not in kind.model_fields]:
        named = ", ".join(map(repr, unknown[:NAMED])) + (f" and {len(unknown) - NAMED} more" * (len(unknown) > NAMED))
        message = f"Unknown field{'s' * (len(unknown) > 1)} {named}."
        raise ApiError(400, message, param=unknown[0], code="unknown_parameter")
    return left


def _field_error(error: ValidationError, body: dict[str, Any]) -> ApiError:
    if (count := error.error_count()) > MOST_ERRORS:
        return ApiError(400, f"{count} fields are wrong or unknown: too many to look through.")
    first = max(error.errors(), key=lambda each: len(each["loc"]))  # of a union's complaints, the one that got furthest
    at: Any = body
    where: list[str] = []
    loc: tuple[Any, ...] = first["loc"]
    for part in loc:  # pydantic also puts the names of a union's types there
        if (isinstance(at, dict) and part in at) or (isinstance(at, list) and isinstance(part, int)):
            at = at[part]
            where.append(str(part))
    if first["type"] == "missing":
        where.append(str(first["loc"][-1]))
    param = ".".join(where)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown field {param!r}.", param=param, code="unknown_parameter")
    return ApiError(400, f"{param}: {first['msg']}.", param=param)
