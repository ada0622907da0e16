"""What an answer must be: JSON of a schema, one of some strings, a quote, well-formed calls.

In: a `Constraint` (a kind and its text) and the tokenizer. Out: at every step, which tokens may come next. The grammars
are followed byte by byte by llguidance; one that it cannot follow to the letter is refused, never approximated.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray
from torch import Tensor

from liuli.errors import UsageError
from liuli.text.tokenizer import SPECIALS, Tokenizer, whole

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar", "substring", "tools"]


@dataclass(frozen=True)
class Constraint:
    """What an answer must be.

    text, by kind: json_schema: the schema; json_object: nothing; regex: an expression that the whole answer matches;
    choice: a JSON list of strings; grammar: in Lark's notation; substring: the source that the answer quotes to the
    letter; tools: a JSON object from each tool's name to the schema of its arguments. required: an answer under "tools"
    is a call (else it may be text, or text and then a call). parallel: it may be several. asked_by: the field of a
    request, to be named where the constraint cannot be kept.
    """

    kind: Kind
    text: str = ""
    required: bool = False
    parallel: bool = True
    asked_by: str | None = field(default=None, compare=False)


def check(constraint: Constraint, tokenizer: Tokenizer) -> None:
    """Raise UsageError, with the keyword or place at fault, if the constraint cannot be followed to the letter."""
    _compiled(constraint, tokenizer)


class Matcher:
    """Follows one answer, token by token."""

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer) -> None:
        self._state = _compiled(constraint, tokenizer).deep_copy()
        self._begins_with = tokenizer.call if constraint.kind == "tools" and not constraint.required else None
        self.words = _words(tokenizer)

    @property
    def masks(self) -> bool:
        """Whether the next token is constrained; text before a call that need not come is not."""
        return self._begins_with is None

    @property
    def finished(self) -> bool:
        """Whether nothing can follow but the answer's end."""
        return self._state.is_stopped()

    @property
    def error(self) -> str:
        """Why the answer can be followed no further ("" if it can): a step too costly. What there is, is not whole."""
        return _said(self._state)

    def mask(self, out_W: NDArray[np.int32]) -> None:
        """Set bit i of the words for every token i that may come next; only ends once finished, none after an error."""
        if self._state.is_error():
            out_W[:] = 0
        else:
            self._state.unsafe_compute_mask_ptr(out_W.ctypes.data, out_W.nbytes)

    def advance(self, id: int) -> None:
        """Tell which token came."""
        if self._begins_with is None:
            self._state.consume_token(id)
        elif id == self._begins_with:
            self._begins_with = None


def masks(matchers: Sequence[Matcher], vocab_size: int) -> Tensor:
    """Which tokens may come next, (N, V) bool, one row a matcher."""
    words = matchers[0].words
    bits_NW = np.zeros((len(matchers), max(words, -(-vocab_size // 32))), dtype=np.int32)
    for row, matcher in zip(bits_NW, matchers, strict=True):
        matcher.mask(row[:words])
    bits_NV = np.unpackbits(bits_NW.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
    return torch.from_numpy(bits_NV).bool()


def _words(tokenizer: Tokenizer) -> int:
    return -(-tokenizer.vocab_size // 32)


# --- compiling -------------------------------------------------------------------------------------------------------

# What one request may cost; the largest of each kind compiles within about a second on a slow core.
CHARACTERS = {"regex": 10_000, "grammar": 20_000, "substring": 20_000}
MOST_CHARACTERS = 500_000  # of the other kinds
PARTS = 1000  # schemas in a schema: the time for an object's properties grows with their square
LIMITS = LLParserLimits(max_items_in_row=5000, max_grammar_size=30_000, verbose_errors=False)


@functools.lru_cache(maxsize=128)
def _compiled(constraint: Constraint, tokenizer: Tokenizer) -> LLMatcher:
    """A matcher at its start, to be copied."""
    try:
        grammar = _grammar(constraint)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # not JSON, too deep, or not a schema
        raise _refused(constraint, str(error)) from None
    state = LLMatcher(_vocabulary(tokenizer), grammar, log_level=0, limits=LIMITS)
    if problem := _said(state) or " ".join(state.get_grammar_warnings()):
        raise _refused(constraint, problem)
    begun, first_W = state.deep_copy(), np.zeros(_words(tokenizer), dtype=np.int32)
    begun.unsafe_compute_mask_ptr(first_W.ctypes.data, first_W.nbytes)
    if problem := _said(begun):
        raise _refused(constraint, f"no answer can satisfy it ({problem})")
    return state


def _refused(constraint: Constraint, why: str) -> UsageError:
    return UsageError(f"the {constraint.kind} cannot be followed: {why}", "constraint", "ask for something simpler")


def _said(state: LLMatcher) -> str:
    """What is wrong with a matcher, in one line, without the grammar that we wrote around a schema."""
    if not state.is_error():
        return ""
    said = state.get_error()
    lines = said.partition("failed to compile JSON schema: ")[2] or said
    return " ".join(line.strip() for line in lines.splitlines() if not _QUOTED.match(line))[:300]


_QUOTED = re.compile(r"\s*(\d+ \||\^|<non-verbose/>)")


def _grammar(constraint: Constraint) -> str:
    """The constraint in llguidance's notation, a dialect of Lark's. Raises ValueError with what is wrong."""
    text = whole(constraint.text)
    if len(text) > (most := CHARACTERS.get(constraint.kind, MOST_CHARACTERS)):
        raise ValueError(f"it has {len(text)} characters, at most {most} are allowed")
    match constraint.kind:
        case "json_schema":
            return f"start: {_json(json.loads(text))}"
        case "json_object":
            return f"start: {_json({'type': 'object'})}"
        case "regex":
            return str(LLMatcher.grammar_from_regex(text))
        case "choice":
            return _choice(json.loads(text))
        case "grammar":
            if found := _CONTROL.search(_LITERALS.sub("", text)):
                raise ValueError(f"control tokens are not for grammars: {found[0]}")
            return str(LLMatcher.grammar_from_lark(text))
        case "substring":
            return f"start: %regex {json.dumps({'substring_chars': text})}"
        case "tools":
            return _calls(json.loads(text), constraint)


# as llguidance reads them; one that does not end is refused there, and taken to its end here is read once
_LITERALS = re.compile(r'"(\\.|[^"\\\n])*"?|(//|#).*|/(\\.|[^/\\])+/?')
_CONTROL = re.compile(r"<[|\[][^>]*>?")


def _choice(options: Any) -> str:
    """One of some strings, as an expression: with thousands of them, alternatives of a grammar are slow."""
    if not (isinstance(options, list) and options and all(isinstance(option, str) for option in options)):
        raise ValueError("it is not a list of strings")
    literals = ("".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in whole(option)) for option in options)
    return str(LLMatcher.grammar_from_regex("|".join(literals)))


def _calls(tools: Any, constraint: Constraint) -> str:
    """`<|call|>name {arguments}`, once or more; where no call need come, what follows its `<|call|>`."""
    if not (isinstance(tools, dict) and tools and all(map(_NAME.fullmatch, tools))):
        raise ValueError("it is not an object from names of tools (letters, digits, _ - .) to schemas")
    calls = " | ".join(f'"{name} " {_json({"type": "object", **schema})}' for name, schema in tools.items())
    first, more = "<|call|>" * constraint.required, "(<|call|> call)*" * constraint.parallel
    return f"start: {first} call {more}\ncall: {calls}"


_NAME = re.compile(r"[\w.-]+", re.ASCII)


def _json(schema: Any) -> str:
    """JSON of a schema, with at most one space after a comma or colon: a weak model would pad for ever.

    Nor shall it invent keys: where the schema does not say whether there may be more than it lists there are none,
    unless one part of the schema may add to what another lists.
    """
    if not isinstance(schema, dict):
        raise ValueError("a schema is a JSON object")
    parts = list(_parts(schema))
    if len(parts) > PARTS:
        raise ValueError(f"it has {len(parts)} parts (properties, alternatives, …), at most {PARTS} are allowed")
    if not any("allOf" in part or ("properties" in part and part.keys() & _JOINS) for part in parts):
        for part in parts:
            if "properties" in part and set(part.get("required", ())) <= part["properties"].keys():
                part.setdefault("additionalProperties", False)
    style = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
    return f"%json {json.dumps(schema | {'x-guidance': style})}"


_JOINS = {"anyOf", "oneOf", "$ref"}
_NAMED_PARTS = {"properties", "patternProperties", "$defs", "definitions"}
_VALUES = {"enum", "const", "default", "examples"}


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and the schemas in it."""
    if isinstance(schema, list):
        for part in schema:
            yield from _parts(part)
    elif isinstance(schema, dict):
        yield schema
        for key, value in schema.items():
            if key not in _VALUES:
                yield from _parts(list(value.values()) if key in _NAMED_PARTS and isinstance(value, dict) else value)


@functools.lru_cache(maxsize=8)
def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)), eos_token=list(tokenizer.stops))


class _Vocabulary:
    """Our tokenizer as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.end, None
        self.special_token_ids = list(range(len(SPECIALS)))
        pieces = [tokenizer.bytes_of(id) for id in range(len(SPECIALS), tokenizer.vocab_size)]
        self.tokens = [name.encode() for name in SPECIALS] + pieces

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"))
