"""Logits to the next token: penalty, temperature, top-k, top-p, min-p, one draw. Pure functions on tensors, by row.

Every row has its own settings and its own random numbers, so an answer does not depend on who else is in the batch.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from liuli.errors import UsageError

MOST_ALTERNATIVES = 50


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn. Filters apply in the order penalty, temperature, top-k, top-p, min-p.

    temperature: divides the logits; 0 takes the likeliest token. top_k: keep this many (0: all). top_p: keep the
    likeliest tokens until their sum reaches it (1: all). min_p: keep tokens with at least this share of the likeliest
    one's probability. repetition_penalty: tokens of the prompt and answer so far have positive logits divided, negative
    ones multiplied by it (arXiv 1909.05858, section 4.1). max_tokens: of the answer. seed: None draws a new one.
    stop: strings that end the answer and are not part of it. alternatives: how many likeliest tokens are reported at
    each step.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()
    alternatives: int = 0

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0 <= self.temperature < math.inf, "a number from 0 up"),
            "top_k": (self.top_k >= 0, "0 (off) or a number of tokens"),
            "top_p": (0 < self.top_p <= 1, "over 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "over 0; 1 is off"),
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "stop": (not isinstance(self.stop, str) and all(self.stop), "a tuple of strings that are not empty"),
            "alternatives": (0 <= self.alternatives <= MOST_ALTERNATIVES, f"from 0 to {MOST_ALTERNATIVES}"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                raise UsageError(f"{name} cannot be {getattr(self, name)!r}", "sampling", f"give {wanted}")


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty_B1: Tensor) -> Tensor:
    """Make tokens already seen less likely (arXiv 1909.05858, section 4.1). seen_BV: bool."""
    lowered = torch.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return torch.where(seen_BV, lowered, logits_BV)


def keep_top(probs_BV: Tensor, top_k_B1: Tensor, top_p_B1: Tensor) -> Tensor:
    """Zero what top-k and then top-p leave out. probs_BV: sorted, likeliest first; result: not normalised.

    Top-p (arXiv 1904.09751) keeps the smallest set of likeliest tokens whose share of what top-k left reaches p; the
    first token always stays.
    """
    ranks_V = torch.arange(probs_BV.shape[-1], device=probs_BV.device)
    kept = probs_BV * ((ranks_V < top_k_B1) | (top_k_B1 == 0))
    before = kept.cumsum(-1) - kept
    return kept * ((before < top_p_B1 * kept.sum(-1, keepdim=True)) | (ranks_V == 0))


def keep_min(probs_BV: Tensor, min_p_B1: Tensor) -> Tensor:
    """Zero tokens below min_p times the likeliest one's probability (arXiv 2407.01082)."""
    return probs_BV * (probs_BV >= min_p_B1 * probs_BV.amax(-1, keepdim=True))


def draw(probs_BV: Tensor, uniform_B1: Tensor) -> Tensor:
    """Index (B, 1) of the token into whose share of the row's sum `uniform` in [0, 1) falls; never one of share 0."""
    total_BV = probs_BV.cumsum(-1, dtype=torch.float64)
    chosen = torch.searchsorted(total_BV, uniform_B1 * total_BV[:, -1:], right=True)
    return chosen.clamp_(max=probs_BV.shape[-1] - 1)  # only a row of NaN gets there; the engine ends such a row


class Sampler:
    """The settings of all rows of a batch as tensors. Rows are added at the end and picked by index."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size, self.device = vocab_size, device
        self.rows: list[Sampling] = []
        self.uniform_BN = torch.empty(0, 0, dtype=torch.float64, device=device)
        self.drawn_B1 = torch.empty(0, 1, dtype=torch.int64, device=device)
        self.seen_BV: Tensor | None = None

    def add(self, samplings: Sequence[Sampling], prompts: Sequence[Sequence[int]]) -> None:
        """Rows that begin now. Their random numbers are drawn at once, each row's from a generator of its own."""
        draws = [_uniform(s) for s in samplings]
        longest = max([self.uniform_BN.shape[1], *(len(row) for row in draws)])
        padded = [torch.nn.functional.pad(row, (0, longest - len(row))) for row in draws]
        old = torch.nn.functional.pad(self.uniform_BN, (0, longest - self.uniform_BN.shape[1]))
        self.uniform_BN = torch.cat((old, torch.stack(padded).to(self.device)))
        self.drawn_B1 = torch.cat((self.drawn_B1, self.drawn_B1.new_zeros(len(draws), 1)))
        if self.seen_BV is not None or any(s.repetition_penalty != 1 for s in samplings):
            self._add_seen(prompts)
        self._set([*self.rows, *samplings])

    def _add_seen(self, prompts: Sequence[Sequence[int]]) -> None:
        if self.seen_BV is None:  # rows already running had no penalty, so theirs may start empty
            self.seen_BV = torch.zeros(len(self.rows), self.vocab_size, dtype=torch.bool, device=self.device)
        new = torch.zeros(len(prompts), self.vocab_size, dtype=torch.bool, device=self.device)
        for row, prompt in zip(new, prompts, strict=True):
            row[torch.tensor(prompt, device=self.device)] = True
        self.seen_BV = torch.cat((self.seen_BV, new))

    def select(self, order: list[int]) -> None:
        """Keep these rows, in this order."""
        index = torch.tensor(order, dtype=torch.int64, device=self.device)
        self.uniform_BN, self.drawn_B1 = self.uniform_BN[index], self.drawn_B1[index]
        if self.seen_BV is not None:
            self.seen_BV = self.seen_BV[index]
        self._set([self.rows[i] for i in order])

    def _set(self, rows: list[Sampling]) -> None:
        """Turn settings into tensors, and note which steps no row needs."""
        self.rows = rows
        table = [
            (s.temperature or 1.0, s.top_k, s.top_p, s.min_p, s.repetition_penalty, s.temperature == 0) for s in rows
        ]
        settings_B6 = torch.tensor(table, dtype=torch.float32, device=self.device).view(-1, 6)
        columns = torch.tensor_split(settings_B6, 6, dim=1)
        self.temperature_B1, self.top_k_B1, self.top_p_B1, self.min_p_B1, self.penalty_B1, greedy = columns
        self.greedy_B1 = greedy > 0
        self.advance_B1 = (greedy == 0).long()
        self.any_drawn = any(s.temperature > 0 for s in rows)
        self.any_greedy = any(s.temperature == 0 for s in rows)
        self.any_top = any(s.temperature > 0 and (s.top_k or s.top_p < 1) for s in rows)
        self.any_min = any(s.temperature > 0 and s.min_p > 0 for s in rows)
        top_k = [s.top_k for s in rows if s.temperature > 0]
        self.most_kept = 0 if 0 in top_k else max(top_k, default=0)
        self.alternatives = max((s.alternatives for s in rows), default=0)

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """The next token of every row, (B, 1) int64. logits_BV: float32, banned tokens at -inf."""
        if self.seen_BV is not None:
            logits_BV = penalise(logits_BV, self.seen_BV, self.penalty_B1)
        chosen = self._drawn(logits_BV) if self.any_drawn else logits_BV.argmax(-1, keepdim=True)
        if self.any_drawn and self.any_greedy:
            chosen = torch.where(self.greedy_B1, logits_BV.argmax(-1, keepdim=True), chosen)
        if self.seen_BV is not None:
            self.seen_BV.scatter_(1, chosen, True)
        return chosen

    def _drawn(self, logits_BV: Tensor) -> Tensor:
        probs_BV = torch.softmax(logits_BV / self.temperature_B1, dim=-1)
        if self.any_top:
            # when every row keeps few tokens, the few largest will do; else sort them all
            few = 0 < self.most_kept < self.vocab_size
            sort = (
                torch.topk(probs_BV, self.most_kept)
                if few
                else torch.sort(probs_BV, stable=True, dim=-1, descending=True)
            )
            kept = keep_top(sort[0], self.top_k_B1, self.top_p_B1)
            # back in the vocabulary's order: the draw must not depend on whether another row asked for a sort
            probs_BV = torch.zeros_like(probs_BV).scatter_(1, sort[1], kept)
        if self.any_min:
            probs_BV = keep_min(probs_BV, self.min_p_B1)
        chosen = draw(probs_BV, self.uniform_BN.gather(1, self.drawn_B1))
        self.drawn_B1 += self.advance_B1
        return chosen


def _uniform(sampling: Sampling) -> Tensor:
    """One number in [0, 1) for every token that this request may draw, float64."""
    if sampling.temperature == 0:
        return torch.empty(0, dtype=torch.float64)
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed % 2**63
    generator = torch.Generator().manual_seed(seed)
    # below 1 by more than rounding can take back: u * sum must stay under the sum
    return torch.rand(sampling.max_tokens, generator=generator, dtype=torch.float64).clamp_(max=1 - 2.0**-40)
