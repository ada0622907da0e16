"""Conversations to tokens, with the loss mask and what each token belongs to.

In: messages (OpenAI's shape). Out: token ids, a weight per token (1 where the assistant must produce it), spans. The
same rendering is the prompt in serving and the row in training. What the text around the messages looks like is the
chat template's business (`template.py`); this file runs it once per *shape* of conversation (roles, thoughts, calls),
with a placeholder for every content, and then fills in the contents as plain text that cannot become a control token.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from liuli.errors import LiuliError
from liuli.text.tokenizer import SPECIALS, Tokenizer

ROLES = ("system", "user", "assistant", "tool")
Kind = Literal["text", "thought", "call", "result"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool. arguments: a JSON object, as the model writes it; it may be wrong JSON in a bad answer."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. thought: what the assistant thinks before it speaks. train: False keeps it out of the loss."""

    role: str
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    train: bool = True
    thought: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise LiuliError(f"a message has the role {self.role!r}", fix=f"known roles: {', '.join(ROLES)}")
        if self.role != "assistant" and (self.tool_calls or self.thought):
            raise LiuliError(f"a message of role {self.role} holds tool calls or thoughts", fix="only assistants do")
        for call in self.tool_calls:
            if not call.name or " " in call.name:
                raise LiuliError(f"a tool cannot be called {call.name!r}", fix="one word, no spaces")

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Message:
        """Read OpenAI's JSON: content a string, null or a list of text parts; arguments a JSON string or an object."""
        if not isinstance(value, Mapping):
            raise LiuliError(f"a message is {type(value).__name__}, not an object")
        if not isinstance(value.get("role"), str):
            raise LiuliError("a message has no role", fix=f"known roles: {', '.join(ROLES)}")
        calls = value.get("tool_calls") or ()
        try:
            calls = json.loads(calls) if isinstance(calls, str) else calls
        except ValueError as error:
            raise LiuliError(f"tool_calls is not JSON: {error}") from error
        if not isinstance(calls, list | tuple):
            raise LiuliError(f"tool_calls is {type(calls).__name__}, not a list")
        if not isinstance(number := value.get("tool_call_id"), str | None):
            raise LiuliError(f"tool_call_id is {type(number).__name__}, not a string")
        return cls(
            role="system" if value["role"] == "developer" else value["role"],
            content=_plain_text(value.get("content")),
            tool_calls=tuple(_read_call(call, number) for number, call in enumerate(calls)),
            tool_call_id=number,
            train=bool(value.get("train", value.get("weight", True))),  # "weight": OpenAI's fine-tuning files
            thought=_plain_text(value.get("reasoning_content")),
        )

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's JSON; keys with nothing to say are left out."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.thought:
            out["reasoning_content"] = self.thought
        if self.tool_calls:
            out["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        if not self.train:
            out["train"] = False
        return out


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order. id: unique within its source. source: the file it came from."""

    messages: tuple[Message, ...]
    id: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, end) are one part of message number `message` (from 0)."""

    start: int
    end: int
    message: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Rendered:
    """tokens, weights: same length. starts: where each message begins (its role token), one per message."""

    tokens: list[int]
    weights: list[int]
    spans: list[Span]
    starts: list[int]


Messages = Conversation | Sequence[Message | Mapping[str, Any]]


def as_messages(value: Messages) -> tuple[Message, ...]:
    """The messages of a conversation, or of a list of messages or of OpenAI's dicts."""
    if isinstance(value, Conversation):
        return value.messages
    return tuple(item if isinstance(item, Message) else Message.from_dict(item) for item in value)


# --- rendering -------------------------------------------------------------------------------------------------------


def render(value: Messages, tokenizer: Tokenizer, answer: bool = False) -> Rendered:
    """Tokens of a conversation. answer=True: as a prompt, ending in `<|assistant|>` for the model to go on from."""
    return render_many([value], tokenizer, answer)[0]


def render_many(values: Iterable[Messages], tokenizer: Tokenizer, answer: bool = False) -> list[Rendered]:
    """`render` for many conversations, with one call of the tokenizer for all their texts."""
    template = tokenizer.chat_template
    if answer:
        check_round_trip(template)
    filled = []
    texts: dict[str, int] = {}  # each different text is encoded once
    for value in values:
        messages = as_messages(value)
        shapes = tuple(map(_shape, messages))
        short = sum(1 + calls for _, _, calls in shapes) <= SHORT
        steps = (skeleton if short else skeleton.__wrapped__)(template, shapes, answer)
        numbers = []
        for step in steps:
            if step.control is None:
                numbers.append(texts.setdefault(_fill(step, messages), len(texts)))
        filled.append((messages, steps, numbers))
    encoded = tokenizer.encode_batch(list(texts))
    return [_join(*parts, encoded) for parts in filled]


def _join(
    messages: tuple[Message, ...], steps: tuple[Step, ...], numbers: list[int], encoded: list[list[int]]
) -> Rendered:
    """Put control tokens and encoded texts in order."""
    tokens: list[int] = []
    weights: list[int] = []
    spans: list[Span] = []
    starts: list[int] = []
    texts = iter(numbers)
    for step in steps:
        weight = int(step.trained and messages[step.message].train)
        if step.control is not None:
            if step.opens:
                starts.append(len(tokens))
            tokens.append(step.control)
            weights.append(weight)
            continue
        ids = encoded[next(texts)]
        if ids and step.kind:
            spans.append(Span(len(tokens), len(tokens) + len(ids), step.message, step.kind))
        tokens += ids
        weights += [weight] * len(ids)
    return Rendered(tokens, weights, spans, starts[: len(messages)])


def _fill(step: Step, messages: tuple[Message, ...]) -> str:
    """The text of a step: its literals and the contents that its slots name."""
    return "".join(piece if isinstance(piece, str) else _content(messages[piece.message], piece) for piece in step.text)


def _content(message: Message, slot: Slot) -> str:
    if slot.field == "content":
        return message.content
    if slot.field == "thought":
        return message.thought
    call = message.tool_calls[slot.call]
    return call.name if slot.field == "name" else call.arguments


# --- the shape of a conversation, rendered once ----------------------------------------------------------------------

Shape = tuple[str, bool, int]
"""All that the template may look at in a message: role, is there a thought, how many calls."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place that a content goes to."""

    message: int
    field: Literal["content", "thought", "name", "arguments"]
    call: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One control token, or one text (literals and slots) between two of them. opens: it begins a message."""

    control: int | None
    text: tuple[str | Slot, ...]
    message: int
    trained: bool
    kind: Kind | None = None
    opens: bool = False


def _shape(message: Message) -> Shape:
    return message.role, bool(message.thought), len(message.tool_calls)


# Only placeholders pass through the template, never a user's text, so characters from the private use area are safe.
SHORT = 32  # messages and calls of a conversation whose skeleton is kept: all that are take some 70 MB at most
_SLOT, _OPEN, _CLOSE = "\ue000{}\ue001", "\ue002", "\ue003"
_PARTS = re.compile("(\ue000\\d+\ue001|[\ue002\ue003]|" + "|".join(map(re.escape, SPECIALS)) + ")")


@functools.lru_cache(maxsize=4096)
def skeleton(template: str, shapes: tuple[Shape, ...], answer: bool) -> tuple[Step, ...]:
    """The steps that render every conversation of these shapes.

    Raises LiuliError if the template fails, or does not begin each message with its role token.
    """
    slots: list[Slot] = []
    messages = [_placeholder(number, shape, slots) for number, shape in enumerate(shapes)]
    try:
        text = _compiled(template).render(messages=messages, add_generation_prompt=answer)
    except Exception as error:  # a template is somebody's program: it may fail in any way
        raise LiuliError(
            f"the chat template fails: {error}", fix="repair chat_template in tokenizer_config.json"
        ) from error
    steps = tuple(_steps(text, slots, shapes))
    if sum(step.opens for step in steps) != len(shapes) + answer:
        raise LiuliError(
            "the chat template does not begin every message with its role token",
            fix="use the template that `liuli tokenizer` writes",
        )
    return steps


@functools.cache
def check_round_trip(template: str) -> None:
    """LiuliError unless a prompt is the beginning of its conversation: else a model is asked as it was never taught."""
    asked = skeleton(template, (("user", False, 0),), True)
    whole = skeleton(template, (("user", False, 0), ("assistant", False, 0)), False)
    ended = any(step.trained and step.control is not None for step in whole)
    if whole[: len(asked)] != asked or not ended:
        raise LiuliError(
            "the chat template does not render a prompt as the beginning of its conversation, or never ends an answer",
            "chat_template in tokenizer_config.json",
            "use the template that `liuli tokenizer` writes",
        )


def _placeholder(number: int, shape: Shape, slots: list[Slot]) -> dict[str, Any]:
    """A message of OpenAI's shape whose every content is the name of a slot; the slots are appended to the list."""

    def slot(field: Literal["content", "thought", "name", "arguments"], call: int = 0) -> str:
        slots.append(Slot(number, field, call))
        return _SLOT.format(len(slots) - 1)

    role, has_thought, calls = shape
    message: dict[str, Any] = {"role": role, "content": slot("content")}
    if has_thought:
        message["reasoning_content"] = slot("thought")
    if calls:
        functions = [{"name": slot("name", n), "arguments": slot("arguments", n)} for n in range(calls)]
        message["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return message


def _steps(text: str, slots: list[Slot], shapes: tuple[Shape, ...]) -> Iterator[Step]:
    """Cut a rendered skeleton at its control tokens."""
    controls = {name: number for number, name in enumerate(SPECIALS)}
    roles = {controls[f"<|{role}|>"] for role in ROLES}
    message, trained, pieces = -1, False, list[str | Slot]()

    def between() -> Iterator[Step]:
        if pieces:
            yield Step(None, tuple(pieces), message, trained, _kind(pieces, shapes))
            pieces.clear()

    for part in _PARTS.split(text):
        if part in (_OPEN, _CLOSE):
            yield from between()
            trained = part == _OPEN
        elif part in controls:
            yield from between()
            control = controls[part]
            message += control in roles
            yield Step(control, (), message, trained, opens=control in roles)
        elif part.startswith("\ue000"):
            pieces.append(slots[int(part[1:-1])])
        elif part:
            pieces.append(part)
    yield from between()


def _kind(pieces: Sequence[str | Slot], shapes: tuple[Shape, ...]) -> Kind | None:
    """What a text between two control tokens is; None for the template's own words."""
    slots = [piece for piece in pieces if isinstance(piece, Slot)]
    if not slots:
        return None
    if slots[0].field == "content":
        return "result" if shapes[slots[0].message][0] == "tool" else "text"
    return "thought" if slots[0].field == "thought" else "call"


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: in transformers' dialect, what the assistant must produce."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"


@functools.lru_cache(maxsize=64)
def _compiled(template: str) -> Any:
    """The template, in a sandbox (it comes from a folder someone may have downloaded), set up as transformers does."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template)


# --- reading answers and messages ------------------------------------------------------------------------------------

_ANSWER_PARTS = re.compile(
    "(" + "|".join(re.escape(f"<|{name}|>") for name in ("think", "/think", "call", "end", "bos")) + ")"
)


def parse_answer(answer: str | Sequence[int], tokenizer: Tokenizer) -> Message:
    """The message in what a model produced after `<|assistant|>`, up to the first `<|end|>` or `<|bos|>`.

    Give tokens where there are any: in a string a control token cannot be told from its name. A call without a tool's
    name stays content, so that nothing produced is lost; whether its arguments are good JSON is for the tool to say.
    """
    content, thought, calls = "", "", list[ToolCall]()
    mode = "content"
    for control, part in _answer_parts(answer, tokenizer):
        if control and part in ("<|end|>", "<|bos|>"):
            break
        if control and part in ("<|think|>", "<|call|>"):
            mode = part
        elif control:
            mode = "content"
            content += part if part != "<|/think|>" else ""  # one that no answer should hold is shown, not obeyed
        elif mode == "<|think|>":
            thought += part
        elif mode == "<|call|>" and (name := part.partition(" ")[0]):
            calls.append(ToolCall(name, part.partition(" ")[2], f"call_{len(calls)}"))
        else:
            content += part
    return Message("assistant", content, tuple(calls), thought=thought)


def _answer_parts(answer: str | Sequence[int], tokenizer: Tokenizer) -> Iterator[tuple[bool, str]]:
    """(is it a control token, its name or the text) in order."""
    if isinstance(answer, str):
        yield from ((part in SPECIALS, part) for part in _ANSWER_PARTS.split(answer) if part)
        return
    held: list[int] = []
    for i in [*answer, tokenizer.end]:
        if i >= len(SPECIALS):
            held.append(i)
            continue
        if held:
            yield False, tokenizer.decode(held)
            held = []
        yield True, SPECIALS[i]


def _plain_text(content: Any) -> str:
    """The text of OpenAI's content: a string, nothing, or a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    raise LiuliError("a message's content is not text", fix="a string, or a list of parts with a text each")


def _read_call(value: Any, number: int) -> ToolCall:
    """One entry of `tool_calls`, with or without OpenAI's `function` layer."""
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise LiuliError("a tool call has no name", fix='{"function": {"name": …, "arguments": …}}')
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(function["name"], text, str(value.get("id") or f"call_{number}"))
