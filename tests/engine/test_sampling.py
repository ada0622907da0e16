"""Sampling against closed forms: sets by brute force, frequencies by chi-square; rows against rows."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liuli.engine.constraints import Constraint
from liuli.engine.sampling import Sampler, Sampling, draw, keep_min, keep_top, keep_typical, penalise
from liuli.errors import UsageError
from liuli.text.tokenizer import SMALLEST

from .conftest import byte_tokenizer

CPU = torch.device("cpu")
LOGITS = [2.0, -1.0, 0.5, 1.9, 0.0, -3.0, 1.2, 0.7]
weights = st.lists(st.integers(0, 50), min_size=2, max_size=12).filter(any)


# --- frequencies -----------------------------------------------------------------------------------------------------


def exact(s: Sampling, logits: Sequence[float], prompt: Sequence[int], written: Sequence[int]) -> list[float]:
    """The distribution of the next token from the definitions, in plain Python. Tokens 0 and 1 are ends."""
    counts, values = Counter(written), list(logits)
    for id, bias in s.logit_bias:
        values[id] += bias if bias > -100 else -math.inf
    for id in {*prompt, *written}:
        values[id] = values[id] / s.repetition_penalty if values[id] > 0 else values[id] * s.repetition_penalty
    values = [v - s.presence_penalty * (counts[i] > 0) - s.frequency_penalty * counts[i] for i, v in enumerate(values)]
    if s.ignore_eos or len(written) < s.min_tokens:
        values[0] = values[1] = -math.inf
    probs = [math.exp(value / s.temperature) for value in values]
    if s.top_k:
        probs = keep(probs, sorted(range(len(probs)), key=lambda i: -probs[i])[: s.top_k])
    if s.typical_p < 1:
        shares = [p / sum(probs) for p in probs]
        entropy = -sum(p * math.log(p) for p in shares if p)
        probs = keep(probs, until(shares, s.typical_p, lambda i: abs(-math.log(shares[i] or 1e-300) - entropy)))
    if s.top_p < 1:
        probs = keep(probs, until(probs, s.top_p, lambda i: -probs[i]))
    probs = [p if p >= s.min_p * max(probs) else 0.0 for p in probs]
    return [p / sum(probs) for p in probs]


def keep(probs: Sequence[float], ids: Sequence[int]) -> list[float]:
    return [p if i in ids else 0.0 for i, p in enumerate(probs)]


def until(probs: Sequence[float], share: float, order) -> list[int]:  # type: ignore[no-untyped-def]
    """The first tokens in this order whose sum reaches a share of the whole."""
    ids: list[int] = []
    for i in sorted(range(len(probs)), key=order):
        if sum(probs[j] for j in ids) >= share * sum(probs):
            break
        ids.append(i)
    return ids


def chi_square(found: Sequence[int], wanted: Sequence[float]) -> float:
    rows = sum(found)
    assert all(count == 0 for count, p in zip(found, wanted, strict=True) if p == 0)
    return sum((n - rows * p) ** 2 / (rows * p) for n, p in zip(found, wanted, strict=True) if p)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=1.7, top_k=3),
        Sampling(top_p=0.6),
        Sampling(min_p=0.3),
        Sampling(typical_p=0.5),
        Sampling(repetition_penalty=1.5),
        Sampling(presence_penalty=0.8),
        Sampling(frequency_penalty=-0.6),
        Sampling(logit_bias=((5, 3.5), (0, -100.0), (3, -1.0))),
        Sampling(min_tokens=6),
        Sampling(min_tokens=5),  # reached
        Sampling(ignore_eos=True),
        Sampling(temperature=1.4, top_k=6, top_p=0.85, min_p=0.05),
        Sampling(temperature=1.3, top_k=7, typical_p=0.9, top_p=0.8, presence_penalty=0.3, logit_bias=((1, 2.0),)),
    ],
    ids=repr,
)
def test_tokens_come_as_often_as_the_definitions_say(sampling: Sampling) -> None:
    rows, prompt, written = 5000, [2, 3, 6], [7, 7, 3, 4, 7]
    sampler = Sampler(len(LOGITS), CPU, ends=(0, 1))
    each = [replace(sampling, seed=seed, max_tokens=6) for seed in range(rows)]
    sampler.add(each, [prompt] * rows, [written] * rows)
    found = torch.bincount(sampler(torch.tensor([LOGITS] * rows))[:, 0], minlength=len(LOGITS)).tolist()
    # 0.1% of chance at 7 degrees of freedom; the seeds are fixed, so it never flickers
    assert chi_square(found, exact(sampling, LOGITS, prompt, written)) < 24.3


def test_what_a_constraint_allows_comes_as_often_as_the_model_says() -> None:
    rows, tokenizer = 3000, byte_tokenizer()
    logits = torch.randn(SMALLEST, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(SMALLEST, CPU, tokenizer.stops, tokenizer)
    constraint = Constraint("choice", json.dumps(["ax", "by", "cz", "dw", ""]))
    sampler.add([Sampling(seed=seed, max_tokens=1, constraint=constraint) for seed in range(rows)], [[]] * rows)
    allowed = [*(tokenizer.encode(letter)[0] for letter in "abcd"), *tokenizer.stops]  # "": it may end at once
    wanted = torch.zeros(SMALLEST).index_put((torch.tensor(allowed),), logits[allowed].softmax(0)).tolist()
    found = torch.bincount(sampler(logits.expand(rows, -1))[:, 0], minlength=SMALLEST).tolist()
    assert chi_square(found, wanted) < 20.5  # 0.1% of chance at 5 degrees of freedom


# --- filters ---------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(weights, st.integers(0, 12), st.sampled_from([0.05, 0.31, 0.5, 0.77, 0.93, 1.0]), st.integers(1, 12))
def test_top_k_and_top_p_keep_the_smallest_set_that_reaches_p(counts: list[int], k: int, p: float, few: int) -> None:
    share = torch.tensor([[p]], dtype=torch.float64)
    kept = keep_top(torch.tensor([counts], dtype=torch.float32), torch.tensor([[k or math.inf]]), share, few)[
        0
    ].tolist()
    ranked = sorted(range(len(counts)), key=lambda i: (-counts[i], i))[: k or None]
    size = sum(value > 0 for value in kept)
    assert kept == keep(counts, ranked[:size])
    total = sum(counts[i] for i in ranked)
    assert sum(counts[i] for i in ranked[:size]) >= p * total - 1e-9
    assert size == 1 or sum(counts[i] for i in ranked[: size - 1]) < p * total


@settings(max_examples=200, deadline=None)
@given(weights, st.sampled_from([0.05, 0.31, 0.5, 0.77, 0.93, 1.0]))
def test_typical_keeps_the_fewest_of_the_least_surprising_that_reach_p(counts: list[int], p: float) -> None:
    kept = keep_typical(torch.tensor([counts], dtype=torch.float32), torch.tensor([[p]]))[0].tolist()
    assert all(value in (0, count) for value, count in zip(kept, counts, strict=True))
    assert sum(kept) >= p * sum(counts) - 1e-3
    shares = [count / sum(counts) for count in counts]
    entropy = -sum(share * math.log(share) for share in shares if share)
    odd = [abs(math.log(share) + entropy) if share else math.inf for share in shares]
    inside = [i for i, value in enumerate(kept) if value]
    assert max(odd[i] for i in inside) <= min((odd[i] for i in range(len(odd)) if i not in inside), default=9) + 1e-5
    worst = max(inside, key=lambda i: odd[i])
    assert (
        len(inside) == 1
        or p == 1
        or sum(kept) - min(kept[i] for i in inside if odd[i] > odd[worst] - 1e-5) < (p * sum(counts) + 1e-3)
    )


@settings(max_examples=200, deadline=None)
@given(weights, st.floats(0, 1))
def test_min_p_keeps_what_has_that_share_of_the_likeliest(counts: list[int], p: float) -> None:
    probs = torch.tensor([counts], dtype=torch.float64)
    kept = keep_min(probs, torch.tensor([[p]], dtype=torch.float64))[0].tolist()
    assert kept == [count if count >= p * max(counts) else 0 for count in counts]


@settings(max_examples=200, deadline=None)
@given(weights, st.floats(0, 1 - 2.0**-40))
def test_a_draw_falls_where_the_running_sum_passes_it_and_never_on_zero(counts: list[int], uniform: float) -> None:
    chosen = int(draw(torch.tensor([counts], dtype=torch.float32), torch.tensor([[uniform]], dtype=torch.float64)))
    assert counts[chosen] > 0
    assert sum(counts[:chosen]) <= uniform * sum(counts) <= sum(counts[: chosen + 1])


def test_penalty_divides_positive_and_multiplies_negative_logits_of_tokens_seen() -> None:
    logits = torch.tensor([[2.0, -2.0, 3.0, -3.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalise(logits, seen, torch.tensor([[2.0]])).tolist() == [[1.0, -4.0, 3.0, -3.0]]


def test_penalty_counts_prompt_and_answer_of_its_own_row_only() -> None:
    sampler = Sampler(4, CPU)
    logits = torch.tensor([[1.0, 0.9, 0.8, 0.7]] * 2)
    sampler.add([Sampling(temperature=0)], [[0]])
    sampler.add([Sampling(temperature=0, repetition_penalty=10)], [[0]])
    assert [sampler(logits)[:, 0].tolist() for _ in range(3)] == [[0, 1], [0, 2], [0, 3]]
    sampler.select([1])
    assert sampler(logits[:1])[:, 0].tolist() == [0]  # all seen: the first is the likeliest again


# --- rows do not see each other --------------------------------------------------------------------------------------

SCHEMA = json.dumps({"properties": {"n": {"type": "integer"}, "名": {"type": "string"}}, "required": ["n"]})
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.6]),
    top_k=st.sampled_from([0, 0, 3, 40]),
    typical_p=st.sampled_from([1.0, 1.0, 0.7]),
    top_p=st.sampled_from([1.0, 0.95, 0.5]),
    min_p=st.sampled_from([0.0, 0.02]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, -0.4]),
    logit_bias=st.sampled_from([(), ((40, 3.0), (60, -100.0))]),
    min_tokens=st.integers(0, 6),
    ignore_eos=st.booleans(),
    seed=st.integers(0, 3),
    constraint=st.sampled_from([None, None, Constraint("json_schema", SCHEMA), Constraint("regex", "[a-z]+[0-9]*")]),
    max_tokens=st.just(12),
)
# of bfloat16, as models give them: many are equal, and which of them is taken must not depend on the batch
TABLE = torch.randn(SMALLEST, SMALLEST, generator=torch.Generator().manual_seed(1)).mul(2).bfloat16().float()


def new_sampler() -> Sampler:
    return Sampler(SMALLEST, CPU, byte_tokenizer().stops, byte_tokenizer())


def after(tokens: Sequence[int]) -> torch.Tensor:
    return TABLE[tokens[-1] if tokens else 0]


def alone(sampling: Sampling, prompt: Sequence[int], steps: int = 12) -> list[int]:
    sampler, tokens = new_sampler(), list[int]()
    sampler.add([sampling], [prompt])
    for _ in range(steps):
        tokens.append(int(sampler(after(tokens).unsqueeze(0))))
    return tokens


@settings(max_examples=40, deadline=None)
@given(st.data(), st.lists(samplings, min_size=2, max_size=6))
def test_a_row_gets_the_same_tokens_whoever_is_in_the_batch(data: st.DataObject, each: list[Sampling]) -> None:
    prompts = [data.draw(st.lists(st.integers(0, SMALLEST - 1), max_size=3)) for _ in each]
    wanted = [alone(sampling, prompt) for sampling, prompt in zip(each, prompts, strict=True)]
    sampler, tokens = new_sampler(), [list[int]() for _ in each]
    first = data.draw(st.integers(0, len(each)))
    sampler.add(each[:first], prompts[:first])
    order = list(range(first))  # which answer each row of the sampler belongs to
    while order or first is not None:
        if first is not None and (not order or data.draw(st.booleans())):  # the others join
            sampler.add(each[first:], prompts[first:])
            order, first = [*order, *range(first, len(each))], None
            if not order:  # nobody was left to join
                break
        rows = data.draw(st.none() | st.permutations(range(len(order))).map(lambda rows: rows[: max(1, len(rows) - 1)]))
        drawn = [order[row] for row in (range(len(order)) if rows is None else rows)]
        chosen = sampler(torch.stack([after(tokens[answer]) for answer in drawn]), rows)
        for answer, token in zip(drawn, chosen[:, 0].tolist(), strict=True):
            tokens[answer].append(token)
        left = [row for row, answer in enumerate(order) if len(tokens[answer]) < 12]
        sampler.select(left)
        order = [order[row] for row in left]
    assert tokens == wanted


@settings(max_examples=40, deadline=None)
@given(samplings, st.lists(st.integers(0, SMALLEST - 1), max_size=3), st.integers(0, 11))
def test_a_row_that_goes_on_after_what_was_written_writes_the_same(
    sampling: Sampling, prompt: list[int], cut: int
) -> None:
    wanted = alone(sampling, prompt)
    sampler, tokens = new_sampler(), wanted[:cut]
    sampler.add([Sampling(temperature=0, max_tokens=3)], [[]])
    sampler.add([sampling], [prompt], [tokens])
    while len(tokens) < 12:
        tokens.append(int(sampler(after(tokens).unsqueeze(0), [1])))
    assert tokens == wanted


def test_a_longer_answer_begins_with_the_same_draws() -> None:
    logits = torch.zeros(1, 1000)
    drawn = []
    for max_tokens in (5, 40):
        sampler = Sampler(1000, CPU)
        sampler.add([Sampling(seed=-3, max_tokens=max_tokens)], [[]])
        drawn.append([int(sampler(logits)) for _ in range(5)])
    assert drawn[0] == drawn[1]


def test_an_answer_has_min_tokens_before_its_end_and_with_ignore_eos_none() -> None:
    sampler = Sampler(4, CPU, ends=(0, 1))
    greedy = [Sampling(temperature=0, min_tokens=2), Sampling(temperature=0, ignore_eos=True), Sampling(temperature=0)]
    sampler.add(greedy, [[]] * 3)
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 3)
    assert [sampler(logits)[:, 0].tolist() for _ in range(3)] == [[2, 2, 0], [2, 2, 0], [0, 2, 0]]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_k": -1},
        {"typical_p": 0.0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": math.nan},
        {"repetition_penalty": 0.0},
        {"presence_penalty": math.inf},
        {"frequency_penalty": math.nan},
        {"logit_bias": ((3, 101.0),)},
        {"logit_bias": ((3, math.nan),)},
        {"logit_bias": ((3, 1.0), (3, 2.0))},
        {"max_tokens": 0},
        {"min_tokens": 257},
        {"stop": "END"},
        {"stop": ("",)},
        {"alternatives": 51},
    ],
)
def test_a_setting_without_a_meaning_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [Sampling(logit_bias=((8, 1.0),)), Sampling(stop_tokens=(-1,))])
def test_an_id_outside_the_vocabulary_is_refused_and_no_row_is_added(wrong: Sampling) -> None:
    sampler = Sampler(8, CPU)
    with pytest.raises(UsageError, match=r"token (8|-1)"):
        sampler.add([Sampling(seed=0), wrong], [[], []])
    sampler.add([Sampling(temperature=0)], [[]])
    assert sampler(torch.tensor([LOGITS])).tolist() == [[0]]


@pytest.mark.parametrize("tiny", [5e-324, 1e-46, 1e-39, 1e-7])
@pytest.mark.parametrize(("name", "kept"), [("temperature", 0), ("top_p", 0), ("typical_p", 6), ("min_p", None)])
def test_the_smallest_numbers_leave_one_token_and_no_infinities(name: str, kept: int | None, tiny: float) -> None:
    sampler = Sampler(8, CPU, (7,))
    sampler.add([Sampling(**{name: tiny}, seed=seed) for seed in range(20)], [[]] * 20)
    drawn = {id for _ in range(5) for id in sampler(torch.tensor([LOGITS] * 20))[:, 0].tolist()}
    assert drawn == {kept} if kept is not None else len(drawn) > 2
