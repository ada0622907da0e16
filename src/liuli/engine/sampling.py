"""Logits to the next token: bias, penalties, bars, constraint, temperature, filters, one draw. By row.

Every row has its own settings and its own random numbers, so an answer does not depend on who else is in the batch:
the same logits, bit by bit, give the same token. The filters are pure functions on tensors.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from liuli.engine.constraints import Constraint, Matcher, masks
from liuli.errors import UsageError
from liuli.text.tokenizer import Tokenizer

MOST_ALTERNATIVES = 50
BARRED = -100.0
"""A bias that forbids a token, as OpenAI documents it."""
FEW = 256
"""Tokens that are ranked before all are: enough for most top-p, and sorting a vocabulary costs ten times as much."""
FLOOR = 1e-6
"""Of temperature, top-p and typical-p: float32 makes infinities or nothing of less, and one token is left anyway."""


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn. What changes the logits comes in the order of the fields, then the constraint.

    temperature: divides the logits; 0 takes the likeliest token. top_k: keep this many (0: all). typical_p: keep the
    tokens whose surprise is nearest the entropy until their sum reaches it (1: all; arXiv 2202.00666). top_p: keep the
    likeliest tokens until their sum reaches it (1: all). min_p: keep tokens with at least this share of the likeliest
    one's probability. repetition_penalty: tokens of the prompt and answer so far have positive logits divided, negative
    ones multiplied by it (arXiv 1909.05858, section 4.1). presence_penalty, frequency_penalty: taken from the logit of
    a token that the answer holds, once and once for each time (OpenAI's). logit_bias: (id, added to its logit), from
    -100, which bars the token, to 100. max_tokens: of the answer. min_tokens: no end token before so many. ignore_eos:
    no end token at all. seed: None draws a new one. stop: strings that end the answer and are not part of it;
    stop_tokens: the same by id. constraint: what the answer must be; it stands above bias and bars. alternatives: how
    many likeliest tokens are reported at each step.
    """

    temperature: float = 1.0
    top_k: int = 0
    typical_p: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    max_tokens: int = 256
    min_tokens: int = 0
    ignore_eos: bool = False
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    constraint: Constraint | None = None
    alternatives: int = 0

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0 <= self.temperature < math.inf, "a number from 0 up"),
            "top_k": (self.top_k >= 0, "0 (off) or a number of tokens"),
            "typical_p": (0 < self.typical_p <= 1, "over 0 and at most 1"),
            "top_p": (0 < self.top_p <= 1, "over 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "over 0; 1 is off"),
            "presence_penalty": (math.isfinite(self.presence_penalty), "a number; 0 is off"),
            "frequency_penalty": (math.isfinite(self.frequency_penalty), "a number; 0 is off"),
            "logit_bias": (_are_biases(self.logit_bias), "pairs of different ids and numbers from -100 to 100"),
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "min_tokens": (0 <= self.min_tokens <= self.max_tokens, "from 0 to max_tokens"),
            "stop": (not isinstance(self.stop, str) and all(self.stop), "a tuple of strings that are not empty"),
            "stop_tokens": (isinstance(self.stop_tokens, tuple), "a tuple of ids"),
            "alternatives": (0 <= self.alternatives <= MOST_ALTERNATIVES, f"from 0 to {MOST_ALTERNATIVES}"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                raise UsageError(f"{name} cannot be {getattr(self, name)!r}", "sampling", f"give {wanted}")


def _are_biases(pairs: Sequence[tuple[int, float]]) -> bool:
    """Written so that NaN is refused too."""
    return len({id for id, _ in pairs}) == len(pairs) and all(BARRED <= bias <= -BARRED for _, bias in pairs)


def check_ids(sampling: Sampling, vocab_size: int) -> None:
    """Raise UsageError for an id that the vocabulary does not have."""
    for name, ids in (("logit_bias", [id for id, _ in sampling.logit_bias]), ("stop_tokens", sampling.stop_tokens)):
        if wrong := [id for id in ids if not 0 <= id < vocab_size]:
            fix = f"give ids from 0 to {vocab_size - 1}"
            raise UsageError(f"{name} names token {wrong[0]}, which the vocabulary does not have", "sampling", fix)


# --- pure functions --------------------------------------------------------------------------------------------------


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty_B1: Tensor) -> Tensor:
    """Make tokens already seen less likely (arXiv 1909.05858, section 4.1). seen_BV: bool."""
    lowered = torch.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return torch.where(seen_BV, lowered, logits_BV)


def keep_top(probs_BV: Tensor, top_k_B1: Tensor, top_p_B1: Tensor, few: int = FEW) -> Tensor:
    """Zero what top-k (inf: all) and then top-p leave out; the lower id comes first among equals. Not normalised.

    Top-p (arXiv 1904.09751) keeps the smallest set of likeliest tokens whose share of what top-k left reaches p.
    probs_BV: float32. few: so many tokens are ranked at first, and all of them only where a row needs more.
    """
    V, all_B1 = probs_BV.shape[-1], top_p_B1 >= 1
    few = V if probs_BV.is_cuda else min(few, V)  # there, asking a tensor costs more than sorting it
    while True:
        ids_BN = _ranked(probs_BV, few)
        among_BN = probs_BV.gather(1, ids_BN) * (torch.arange(few, device=probs_BV.device) < top_k_B1)
        sums_BN = among_BN.cumsum(-1)
        wanted_B1 = top_p_B1 * torch.where(top_k_B1 < V, sums_BN[:, -1:], _total(probs_BV))
        kept_BN = among_BN * ((sums_BN - among_BN < wanted_B1) | all_B1)
        enough_B1 = torch.where(top_k_B1 < V, top_k_B1 <= few, (sums_BN[:, -1:] >= wanted_B1) | all_B1)
        if few == V or bool(enough_B1.all()):
            # back in the vocabulary's order: the draw must not depend on whether another row asked for a ranking
            kept_BV = torch.zeros_like(probs_BV).scatter_(1, ids_BN, kept_BN)
            return torch.where(all_B1 & (top_k_B1 >= V), probs_BV, kept_BV)
        few = V


def _ranked(probs_BV: Tensor, most: int) -> Tensor:
    """Ids of the `most` likeliest tokens, likeliest first, the lower id first among equals."""
    if most == probs_BV.shape[-1]:
        return probs_BV.argsort(dim=-1, stable=True, descending=True)
    # topk leaves open which of equal tokens it takes: make them differ. As integers, floats over 0 keep their order
    return ((probs_BV.view(torch.int32).long() << 32) - torch.arange(probs_BV.shape[-1])).topk(most).indices


def keep_typical(probs_BV: Tensor, typical_p_B1: Tensor) -> Tensor:
    """Zero all but the tokens whose surprise is nearest the entropy, until their share reaches p (arXiv 2202.00666,
    section 3); the lower id comes first among equals."""
    share_BV = probs_BV / _total(probs_BV)
    entropy_B1 = _total(torch.special.entr(share_BV))
    order_BV = (share_BV.log() + entropy_B1).abs().argsort(dim=-1, stable=True)
    sorted_BV = share_BV.gather(1, order_BV)
    kept_BV = (sorted_BV.cumsum(-1) - sorted_BV < typical_p_B1) | (typical_p_B1 >= 1)
    return probs_BV * torch.zeros_like(kept_BV).scatter_(1, order_BV, kept_BV)


def _total(values_BV: Tensor) -> Tensor:
    """Sums (B, 1), added up one by one: neither zeros at the end nor other rows change how they are rounded."""
    return values_BV.cumsum(-1)[:, -1:]


def keep_min(probs_BV: Tensor, min_p_B1: Tensor) -> Tensor:
    """Zero tokens below min_p times the likeliest one's probability (arXiv 2407.01082)."""
    return probs_BV * (probs_BV >= min_p_B1 * probs_BV.amax(-1, keepdim=True))


def draw(probs_BV: Tensor, uniform_B1: Tensor) -> Tensor:
    """Index (B, 1) of the token into whose share of the row's sum `uniform` in [0, 1) falls; never one of share 0."""
    total_BV = probs_BV.cumsum(-1, dtype=torch.float64)
    chosen = torch.searchsorted(total_BV, uniform_B1 * total_BV[:, -1:], right=True)
    return chosen.clamp_(max=probs_BV.shape[-1] - 1)  # only a row of NaN gets there; the engine ends such a row


# --- the rows of a batch ---------------------------------------------------------------------------------------------


class _Columns(NamedTuple):
    """Settings of rows as tensors (B, 1), float32."""

    temperature: Tensor
    top_k: Tensor
    typical_p: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    least: Tensor  # no end token before so many tokens
    greedy: Tensor


def _columns(settings_BS: Tensor) -> _Columns:
    return _Columns(*torch.tensor_split(settings_BS, len(_Columns._fields), dim=1))


class Sampler:
    """The settings of all rows of a batch as tensors. Rows are added at the end and picked by index.

    ends: the ids that end an answer. tokenizer: what rows with a constraint need.
    """

    def __init__(
        self, vocab_size: int, device: torch.device, ends: Sequence[int] = (), tokenizer: Tokenizer | None = None
    ) -> None:
        self.vocab_size, self.device, self.tokenizer = vocab_size, device, tokenizer
        self.ends = torch.tensor(list(ends), dtype=torch.int64, device=device)
        self.matchers: list[Matcher | None] = []
        self.uniform_BN = torch.empty(0, 0, dtype=torch.float64, device=device)
        self.written_B1 = torch.empty(0, 1, dtype=torch.int64, device=device)
        # there once a row needs it: what prompt and answer hold, how often each token is in the answer, the bias
        self.seen_BV: Tensor | None = None
        self.count_BV: Tensor | None = None
        self.bias_BV: Tensor | None = None
        self._set([])

    def add(
        self,
        samplings: Sequence[Sampling],
        prompts: Sequence[Sequence[int]],
        written: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Rows that begin now, or that go on after the tokens already `written` for them.

        A row's random numbers are drawn here, from a generator of its own: one that goes on needs a seed to get the
        same again. Raises UsageError for an id outside the vocabulary and for a constraint that cannot be followed.
        """
        written = [()] * len(samplings) if written is None else written
        for sampling in samplings:
            check_ids(sampling, self.vocab_size)
        matchers = [self._matcher(s.constraint, ids) for s, ids in zip(samplings, written, strict=True)]
        if self.seen_BV is not None or any(s.repetition_penalty != 1 for s in samplings):
            seen = [dict.fromkeys([*prompt, *ids], 1) for prompt, ids in zip(prompts, written, strict=True)]
            self.seen_BV = self._grown(self.seen_BV, seen, torch.bool)
        if self.count_BV is not None or any(s.presence_penalty or s.frequency_penalty for s in samplings):
            self.count_BV = self._grown(self.count_BV, [Counter(ids) for ids in written], torch.float32)
        if self.bias_BV is not None or any(s.logit_bias for s in samplings):
            biases = [{id: bias if bias > BARRED else -math.inf for id, bias in s.logit_bias} for s in samplings]
            self.bias_BV = self._grown(self.bias_BV, biases, torch.float32)
        self._add_uniform([_uniform(s) for s in samplings])
        lengths_B1 = torch.tensor([len(ids) for ids in written], dtype=torch.int64, device=self.device).view(-1, 1)
        self.written_B1 = torch.cat((self.written_B1, lengths_B1))
        self.matchers += matchers
        self._set([*self.rows, *samplings])

    def _matcher(self, constraint: Constraint | None, written: Sequence[int]) -> Matcher | None:
        if constraint is None:
            return None
        if self.tokenizer is None:
            raise UsageError("a constraint needs a tokenizer", "sampling", "give Sampler the model's tokenizer")
        matcher = Matcher(constraint, self.tokenizer)
        for id in written:
            matcher.advance(id)
        return matcher

    def _grown(self, old_BV: Tensor | None, new: Sequence[Mapping[int, float]], dtype: torch.dtype) -> Tensor:
        """A table with rows for `new` (id to value, else 0). Rows from before there was one do not need it."""
        if old_BV is None:
            old_BV = torch.zeros(len(self.rows), self.vocab_size, dtype=dtype, device=self.device)
        new_BV = torch.zeros(len(new), self.vocab_size, dtype=dtype)
        for row, values in zip(new_BV, new, strict=True):
            row[list(values)] = torch.tensor(list(values.values()), dtype=dtype)
        return torch.cat((old_BV, new_BV.to(self.device)))

    def _add_uniform(self, draws: Sequence[Tensor]) -> None:
        longest = max([self.uniform_BN.shape[1], *(len(row) for row in draws)])
        padded = [torch.nn.functional.pad(row, (0, longest - len(row))) for row in draws]
        old = torch.nn.functional.pad(self.uniform_BN, (0, longest - self.uniform_BN.shape[1]))
        self.uniform_BN = torch.cat((old, torch.stack(padded).to(self.device))) if padded else old

    def select(self, order: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        index = torch.tensor(order, dtype=torch.int64, device=self.device)
        self.uniform_BN, self.written_B1 = self.uniform_BN[index], self.written_B1[index]
        tables = (self.seen_BV, self.count_BV, self.bias_BV)
        self.seen_BV, self.count_BV, self.bias_BV = (None if table is None else table[index] for table in tables)
        self.matchers = [self.matchers[i] for i in order]
        self._set([self.rows[i] for i in order])

    def _set(self, rows: list[Sampling]) -> None:
        """Turn settings into tensors, and note which steps no row needs."""
        self.rows = rows
        table = torch.tensor([_numbers(s) for s in rows], dtype=torch.float32, device=self.device)
        self.settings_BS = table.view(-1, len(_Columns._fields))
        self.columns = _columns(self.settings_BS)
        self.index_B = torch.arange(len(rows), device=self.device)
        drawn = [s for s in rows if s.temperature > 0]
        self.any_drawn, self.any_greedy = bool(drawn), len(drawn) < len(rows)
        self.any_typical = any(s.typical_p < 1 for s in drawn)
        self.any_top = any(s.top_k or s.top_p < 1 for s in drawn)
        self.any_min = any(s.min_p > 0 for s in drawn)
        self.any_least = any(s.min_tokens or s.ignore_eos for s in rows)
        self.any_constraint = any(s.constraint is not None for s in rows)
        top_k = [s.top_k for s in drawn]
        self.few = max(top_k, default=FEW) if all(top_k) else max(FEW, *top_k)
        self.alternatives = max((s.alternatives for s in rows), default=0)

    def __call__(self, logits_BV: Tensor, rows: list[int] | None = None) -> Tensor:
        """The next token of every row, (B, 1) int64. logits_BV: float32, banned tokens at -inf.

        rows: the logits are those of these rows, in this order, and only these move on.
        """
        own: Tensor | slice = slice(None)
        columns, matchers = self.columns, self.matchers
        if rows is not None:
            own = torch.tensor(rows, dtype=torch.int64, device=self.device)
            columns = _columns(self.settings_BS[own])
            matchers = [self.matchers[row] for row in rows]
        wanted_BV = self._changed(logits_BV, own, columns)
        if self.any_constraint or self.bias_BV is not None:
            wanted_BV = self._allowed(wanted_BV, logits_BV, matchers)
        chosen_B1 = self._drawn(wanted_BV, own, columns) if self.any_drawn else wanted_BV.argmax(-1, keepdim=True)
        if self.any_drawn and self.any_greedy:
            chosen_B1 = torch.where(columns.greedy > 0, wanted_BV.argmax(-1, keepdim=True), chosen_B1)
        self._remember(chosen_B1, self.index_B[own], matchers)
        return chosen_B1

    def broken(self, row: int) -> bool:
        """Whether what the row wrote is not what its constraint asks for, because it could be followed no further."""
        matcher = self.matchers[row]
        return matcher is not None and matcher.masks and bool(matcher.error)

    def _changed(self, logits_BV: Tensor, own: Tensor | slice, columns: _Columns) -> Tensor:
        """Logits after bias, penalties and bars."""
        if self.bias_BV is not None:
            logits_BV = logits_BV + self.bias_BV[own]
        if self.seen_BV is not None:
            logits_BV = penalise(logits_BV, self.seen_BV[own], columns.repetition)
        if self.count_BV is not None:
            count_BV = self.count_BV[own]
            logits_BV = logits_BV - columns.presence * (count_BV > 0) - columns.frequency * count_BV
        if self.any_least:
            early_B1 = self.written_B1[own] < columns.least
            logits_BV = logits_BV.index_fill(1, self.ends, -math.inf).where(early_B1, logits_BV)
        return logits_BV

    def _allowed(self, logits_BV: Tensor, given_BV: Tensor, matchers: Sequence[Matcher | None]) -> Tensor:
        """Leave each row what its constraint allows.

        Where bias and bars forbid all of that it is the constraint that holds; where nothing is left at all, the end.
        given_BV: the logits without bias and bars.
        """
        masking = {row: matcher for row, matcher in enumerate(matchers) if matcher is not None and matcher.masks}
        if masking:
            at, barred_NV = list(masking), ~masks(list(masking.values()), self.vocab_size)
            logits_BV = logits_BV.clone()
            logits_BV[at] = logits_BV[at].masked_fill(barred_NV, -math.inf)
        for row in torch.isneginf(logits_BV).all(-1).nonzero()[:, 0].tolist():
            if row in masking:
                logits_BV[row] = given_BV[row].masked_fill(barred_NV[at.index(row)], -math.inf)
            if torch.isneginf(logits_BV[row]).all():
                logits_BV[row, self.ends] = given_BV[row, self.ends]
        return logits_BV

    def _drawn(self, logits_BV: Tensor, own: Tensor | slice, columns: _Columns) -> Tensor:
        probs_BV = torch.softmax(logits_BV / columns.temperature, dim=-1)
        if self.any_typical and self.any_top:
            probs_BV = keep_top(probs_BV, columns.top_k, torch.ones_like(columns.top_p), self.few)
        if self.any_typical:
            probs_BV = keep_typical(probs_BV, columns.typical_p)
        if self.any_top:
            probs_BV = keep_top(probs_BV, columns.top_k, columns.top_p, self.few)
        if self.any_min:
            probs_BV = keep_min(probs_BV, columns.min_p)
        number_B1 = self.written_B1[own]
        if self.any_greedy:  # such a row has no random numbers
            number_B1 = torch.where(columns.greedy > 0, 0, number_B1)
        return draw(probs_BV, self.uniform_BN[own].gather(1, number_B1))

    def _remember(self, chosen_B1: Tensor, index_B: Tensor, matchers: Sequence[Matcher | None]) -> None:
        """Note each row's token wherever the next one depends on it."""
        if self.any_drawn or self.any_least:
            self.written_B1[index_B] += 1
        if self.seen_BV is not None:
            self.seen_BV[index_B, chosen_B1[:, 0]] = True
        if self.count_BV is not None:
            self.count_BV[index_B, chosen_B1[:, 0]] += 1
        if self.any_constraint:
            for matcher, id in zip(matchers, chosen_B1[:, 0].tolist(), strict=True):
                if matcher is not None:
                    matcher.advance(id)


def _numbers(s: Sampling) -> tuple[float, ...]:
    """A row of `_Columns`; what is not drawn needs no filter."""
    greedy, least = s.temperature == 0, math.inf if s.ignore_eos else s.min_tokens
    drawn = (1.0, math.inf, 1.0, 1.0, 0.0)
    if not greedy:
        temperature, typical_p, top_p = (max(each, FLOOR) for each in (s.temperature, s.typical_p, s.top_p))
        drawn = (temperature, s.top_k or math.inf, typical_p, top_p, s.min_p)
    return (*drawn, s.repetition_penalty, s.presence_penalty, s.frequency_penalty, least, greedy)


def _uniform(sampling: Sampling) -> Tensor:
    """One number in [0, 1) for every token that this request may draw, float64."""
    if sampling.temperature == 0:
        return torch.empty(0, dtype=torch.float64)
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed % 2**63
    generator = torch.Generator().manual_seed(seed)
    # below 1 by more than rounding can take back: u * sum must stay under the sum
    return torch.rand(sampling.max_tokens, generator=generator, dtype=torch.float64).clamp_(max=1 - 2.0**-40)
