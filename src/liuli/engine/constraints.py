"""What an answer must be: JSON of a schema, one of some strings, a quote, well-formed calls.

In: a `Constraint` (a kind and its text) and the tokenizer. Out: at every step, which tokens may come next. The grammars
are followed byte by byte by llguidance; one that it cannot follow to the letter is refused, never approximated.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray
from torch import Tensor

from liuli.errors import UsageError
from liuli.text.tokenizer import SPECIALS, Tokenizer

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar", "substring", "tools"]


@dataclass(frozen=True)
class Constraint:
    """What an answer must be.

    text, by kind: json_schema: the schema; json_object: nothing; regex: an expression that the whole answer matches;
    choice: a JSON list of strings; grammar: in Lark's notation; substring: the source that the answer quotes to the
    letter; tools: a JSON object from each tool's name to the schema of its arguments. required: an answer under "tools"
    is a call (else it may be text, or text and then a call). parallel: it may be several.
    """

    kind: Kind
    text: str = ""
    required: bool = False
    parallel: bool = True


def check(constraint: Constraint, tokenizer: Tokenizer) -> None:
    """Raise UsageError, with the keyword or place at fault, if the constraint cannot be followed to the letter."""
    _compiled(constraint, tokenizer)


class Matcher:
    """Follows one answer. masks: whether the next token is constrained at all."""

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer) -> None:
        self._state = _compiled(constraint, tokenizer).deep_copy()
        self.words = -(-tokenizer.vocab_size // 32)
        self._begins = tokenizer.call if constraint.kind == "tools" and not constraint.required else None

    @property
    def masks(self) -> bool:
        """Whether the next token is constrained: text before a call that need not come is not."""
        return self._begins is None

    @property
    def finished(self) -> bool:
        """Whether nothing can follow but the answer's end."""
        return self._state.is_stopped()

    def mask(self, out_W: NDArray[np.int32]) -> None:
        """Set bit i of the words for every token i that may come next; none once finished."""
        if self.finished:
            out_W[:] = 0
        else:
            self._state.unsafe_compute_mask_ptr(out_W.ctypes.data, out_W.nbytes)

    def advance(self, id: int) -> None:
        """Tell which token came."""
        if self._begins is None:
            self._state.consume_token(id)
        elif id == self._begins:
            self._begins = None


def masks(matchers: Sequence[Matcher], vocab_size: int) -> Tensor:
    """Which tokens may come next, (N, V) bool, one row a matcher; a row of none has finished."""
    words = max(matcher.words for matcher in matchers)
    bits_NW = np.zeros((len(matchers), max(words, -(-vocab_size // 32))), dtype=np.int32)
    for row, matcher in zip(bits_NW, matchers, strict=True):
        matcher.mask(row[: matcher.words])
    bits_NV = np.unpackbits(bits_NW.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
    return torch.from_numpy(bits_NV).bool()


# --- compiling -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _compiled(constraint: Constraint, tokenizer: Tokenizer) -> LLMatcher:
    """A matcher at its start, to be copied."""
    state = LLMatcher(_vocabulary(tokenizer), _grammar(constraint), log_level=0, limits=LIMITS)
    if state.is_error():
        raise UsageError(state.get_error(), f"the answer's {constraint.kind}")
    return state


def _grammar(constraint: Constraint) -> str:
    """The constraint in llguidance's notation, a dialect of Lark's."""
    text = constraint.text
    match constraint.kind:
        case "json_schema":
            return f"start: {_json(json.loads(text))}"
        case "json_object":
            return f"start: {_json({'type': 'object'})}"
        case "regex":
            return str(LLMatcher.grammar_from_regex(text))
        case "choice":
            return f"start: {' | '.join(_quoted(option) for option in json.loads(text))}"
        case "grammar":
            return str(LLMatcher.grammar_from_lark(text))
        case "substring":
            return f"start: %regex {_quoted({'substring_chars': text})}"
        case "tools":
            calls = " | ".join(f"{_quoted(name + ' ')} {_json(schema)}" for name, schema in json.loads(text).items())
            more = "(<|call|> call)*" if constraint.parallel else ""
            return f"start: {'<|call|>' if constraint.required else ''} call {more}\ncall: {calls}"


def _json(schema: dict[str, Any]) -> str:
    """JSON of a schema, with at most one space after a comma or colon: a weak model would pad for ever."""
    style = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
    return f"%json {_quoted(schema | {'x-guidance': style})}"


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


LIMITS = LLParserLimits(verbose_errors=False)


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
