"""What the engine gives back: tokens as they come, and whole answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

StoppedBy = Literal["end", "stop", "length", "cancel", "error"]


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood there. logprob: natural logarithm, of the unmodified distribution."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer.

    text: what may be shown now; empty while half a character or the beginning of a stop string is held back, so the
    texts of all tokens joined are the answer. logprob: of the unmodified distribution (before temperature, filters,
    penalty and banned tokens). forced: put there, not sampled. stopped_by: why the answer ends here; None before.
    hidden: of a conversation's call or thought. reused: how many tokens of its prompt were not computed anew.
    """

    id: int
    text: str
    logprob: float
    alternatives: tuple[Alternative, ...] = ()
    forced: bool = False
    stopped_by: StoppedBy | None = None
    hidden: bool = False
    reused: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Ended:
    """A conversation's last event: why the answer ended (as a token says, or "call": of a tool that is run elsewhere),
    how many tokens it took in all, and how many of its prompt's were not computed anew.
    """

    stopped_by: StoppedBy | Literal["call"]
    tokens: int
    reused: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. tokens: all that were sampled, the one that ended it included."""

    tokens: tuple[Token, ...]
    text: str
    stopped_by: StoppedBy

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def logprobs(self) -> list[float]:
        """Natural logarithms of the probabilities of the tokens, of the unmodified distribution."""
        return [token.logprob for token in self.tokens]


def likeliest(logprobs_BV: Tensor, names: Sequence[str], counts: Sequence[int]) -> list[tuple[Alternative, ...]]:
    """The likeliest tokens of every row, as many as its count says; only tokens that have a name."""
    most = min(max(counts), len(names))
    if not most:
        return [()] * len(counts)
    values_BN, ids_BN = logprobs_BV[:, : len(names)].topk(most)
    rows = zip(ids_BN.tolist(), values_BN.tolist(), counts, strict=True)
    return [
        tuple(Alternative(id, names[id], value) for id, value in zip(ids[:count], values[:count], strict=True))
        for ids, values, count in rows
    ]
