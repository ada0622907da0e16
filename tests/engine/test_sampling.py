"""Sampling against closed forms: sets by brute force, frequencies by chi-square."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liuli.engine.sampling import Sampler, Sampling, draw, keep_min, keep_top, penalise
from liuli.errors import UsageError

weights = st.lists(st.integers(0, 50), min_size=2, max_size=12).filter(any)


def allowed(sampling: Sampling, logits: list[float]) -> list[float]:
    """Probabilities that remain, from the definitions, in plain Python."""
    powers = [math.exp(logit / sampling.temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda i: -powers[i])
    if sampling.top_k:
        order = order[: sampling.top_k]
    total, nucleus, mass = sum(powers[i] for i in order), [], 0.0
    for i in order:
        if mass >= sampling.top_p * total:
            break
        nucleus.append(i)
        mass += powers[i]
    kept = [p if i in nucleus and p >= sampling.min_p * max(powers) else 0.0 for i, p in enumerate(powers)]
    return [p / sum(kept) for p in kept]


def frequencies(sampler: Sampler, logits: list[float], rows: int) -> list[int]:
    return torch.bincount(sampler(torch.tensor([logits] * rows))[:, 0], minlength=len(logits)).tolist()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=1.7, top_k=3),
        Sampling(top_p=0.6),
        Sampling(min_p=0.3),
        Sampling(temperature=1.4, top_k=6, top_p=0.85, min_p=0.05),
    ],
)
def test_tokens_come_as_often_as_the_definitions_say(sampling: Sampling) -> None:
    logits, rows = [2.0, -1.0, 0.5, 1.9, 0.0, -3.0, 1.2, 0.7], 20_000
    sampler = Sampler(len(logits), torch.device("cpu"))
    sampler.add([Sampling(**{**vars(sampling), "seed": seed, "max_tokens": 1}) for seed in range(rows)], [[]] * rows)
    wanted, found = allowed(sampling, logits), frequencies(sampler, logits, rows)
    assert all(count == 0 for count, p in zip(found, wanted, strict=True) if p == 0)
    chi_square = sum((n - rows * p) ** 2 / (rows * p) for n, p in zip(found, wanted, strict=True) if p)
    assert chi_square < 24.3  # 0.1% of chance at 7 degrees of freedom; the seeds are fixed, so it never flickers


@settings(max_examples=200, deadline=None)
@given(weights, st.integers(0, 12), st.sampled_from([0.05, 0.31, 0.5, 0.77, 0.93, 1.0]))
def test_top_k_and_top_p_keep_the_smallest_set_that_reaches_p(counts: list[int], k: int, p: float) -> None:
    sorted_counts = sorted(counts, reverse=True)
    probs = torch.tensor([sorted_counts], dtype=torch.float32)
    kept = keep_top(probs, torch.tensor([[float(k)]]), torch.tensor([[p]], dtype=torch.float64))[0].tolist()
    size = sum(value > 0 for value in kept)
    among = sorted_counts[: k or None]
    assert kept[:size] == sorted_counts[:size]
    assert sum(sorted_counts[:size]) >= p * sum(among) - 1e-9
    assert size == 1 or sum(sorted_counts[: size - 1]) < p * sum(among)


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
    sampler = Sampler(4, torch.device("cpu"))
    logits = torch.tensor([[1.0, 0.9, 0.8, 0.7]] * 2)
    sampler.add([Sampling(temperature=0)], [[0]])
    sampler.add([Sampling(temperature=0, repetition_penalty=10)], [[0]])
    assert [sampler(logits)[:, 0].tolist() for _ in range(3)] == [[0, 1], [0, 2], [0, 3]]
    sampler.select([1])
    assert sampler(logits[:1])[:, 0].tolist() == [0]  # all seen: the first is the likeliest again


def test_a_longer_answer_begins_with_the_same_draws() -> None:
    logits = torch.zeros(1, 1000)
    drawn = []
    for max_tokens in (5, 40):
        sampler = Sampler(1000, torch.device("cpu"))
        sampler.add([Sampling(seed=-3, max_tokens=max_tokens)], [[]])
        drawn.append([int(sampler(logits)) for _ in range(5)])
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": math.nan},
        {"repetition_penalty": 0.0},
        {"max_tokens": 0},
        {"stop": "END"},
        {"stop": ("",)},
        {"alternatives": 51},
    ],
)
def test_a_setting_without_a_meaning_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]
