"""The losses of comparisons against closed forms, and the fixed points they lead to."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from liuli.train.preference import (
    bayes_accuracy,
    combine,
    dpo_loss,
    kto_loss,
    mismatched_kl,
    pairwise_loss,
)


def _random(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- reward models ---------------------------------------------------------------------------------------------------


def test_the_pairwise_loss_has_bradley_terrys_gradient() -> None:
    chosen, rejected = _random((6,)).requires_grad_(), _random((6,), 1).requires_grad_()
    pairwise_loss(chosen, rejected, torch.arange(6)).backward()
    expected = -torch.sigmoid(rejected - chosen)
    torch.testing.assert_close(chosen.grad, expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(rejected.grad, -expected.detach(), rtol=0, atol=1e-12)


def test_the_pairwise_loss_is_finite_far_out_and_blind_to_a_constant() -> None:
    chosen, rejected, group = torch.tensor([-800.0]), torch.tensor([0.0]), torch.tensor([0])
    assert float(pairwise_loss(chosen, rejected, group)) == pytest.approx(800.0)
    a, b = _random((3,)), _random((3,), 1)
    torch.testing.assert_close(pairwise_loss(a, b, torch.arange(3)), pairwise_loss(a + 7, b + 7, torch.arange(3)))


def test_all_pairs_of_one_prompt_are_one_unit() -> None:
    ranked = _random((4,))  # best first
    pairs = list(itertools.combinations(range(4), 2))
    two = _random((2,), 5)
    chosen = torch.cat((torch.stack([ranked[i] for i, _ in pairs]), two[:1]))
    rejected = torch.cat((torch.stack([ranked[j] for _, j in pairs]), two[1:]))
    group = torch.tensor([0] * len(pairs) + [1])
    brute = sum(math.log1p(math.exp(float(ranked[j] - ranked[i]))) for i, j in pairs) / len(pairs)
    brute += math.log1p(math.exp(float(two[1] - two[0])))
    assert float(pairwise_loss(chosen, rejected, group)) == pytest.approx(brute, abs=1e-12)


def test_minimising_the_pairwise_loss_recovers_known_rewards() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(4, generator=generator, dtype=torch.float64)
    pairs = torch.tensor(list(itertools.permutations(range(4), 2)))
    pairs = pairs[torch.randint(0, len(pairs), (200_000,), generator=generator)]
    wins = torch.rand(len(pairs), generator=generator) < torch.sigmoid(truth[pairs[:, 0]] - truth[pairs[:, 1]])
    chosen, rejected = torch.where(wins[:, None], pairs, pairs.flip(1)).unbind(1)
    guess = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([guess], max_iter=100, line_search_fn="strong_wolfe")
    each = torch.arange(len(pairs))  # a prompt of its own

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = pairwise_loss(guess[chosen], guess[rejected], each) / len(pairs)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = (guess - guess.mean()).detach() - (truth - truth.mean())
    assert float(found.abs().max()) < 0.012  # two standard errors: each answer is in 100,000 comparisons


def test_ensembles_are_combined_by_their_formulas() -> None:
    scores = _random((3, 5))
    table = scores.numpy()
    np.testing.assert_allclose(combine(scores, "mean"), table.mean(0))
    np.testing.assert_allclose(combine(scores, "min"), table.min(0))
    np.testing.assert_allclose(combine(scores, "cautious", 0.5), table.mean(0) - 0.5 * table.std(0))
    assert bayes_accuracy(torch.tensor([0.9, 0.2, 0.5])) == pytest.approx((0.9 + 0.8 + 0.5) / 3)


# --- DPO and its relatives -------------------------------------------------------------------------------------------


def test_dpo_begins_at_log_two_and_has_its_gradient() -> None:
    logs = [_random((4,), seed).requires_grad_() for seed in range(2)]
    same = dpo_loss(*logs, *(x.detach() for x in logs))
    torch.testing.assert_close(same, torch.full((4,), math.log(2), dtype=torch.float64))
    reference = [_random((4,), seed) for seed in (2, 3)]
    dpo_loss(*logs, *reference, beta=0.3).sum().backward()
    gap = 0.3 * ((logs[0] - reference[0]) - (logs[1] - reference[1])).detach()
    torch.testing.assert_close(logs[0].grad, -0.3 * torch.sigmoid(-gap), rtol=0, atol=1e-12)
    torch.testing.assert_close(logs[1].grad, 0.3 * torch.sigmoid(-gap), rtol=0, atol=1e-12)


def _population(kind: str, beta: float, smoothing: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Policy after the population loss over all pairs of 12 answers; reference and rewards of the problem."""
    reference, rewards = torch.log_softmax(_random((12,)), 0), _random((12,), 1)
    first, second = torch.triu_indices(12, 12, 1)
    probability = torch.sigmoid(rewards[first] - rewards[second])
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=2000, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        log_p = torch.log_softmax(logits, 0)
        sides = [log_p[first], log_p[second]]
        ours = [reference[first], reference[second]]
        won = dpo_loss(*sides, *ours, beta=beta, kind=kind, smoothing=smoothing)
        lost = dpo_loss(*sides[::-1], *ours[::-1], beta=beta, kind=kind, smoothing=smoothing)
        loss = (probability * won + (1 - probability) * lost).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return torch.log_softmax(logits, 0).detach(), reference, rewards


def test_dpo_ends_at_the_optimum_of_reward_on_a_leash() -> None:
    beta = 0.5
    log_p, reference, rewards = _population("sigmoid", beta)
    optimum = torch.softmax(reference + rewards / beta, 0)
    assert 0.5 * float((log_p.exp() - optimum).abs().sum()) < 1e-3
    implied = beta * (log_p - reference)
    torch.testing.assert_close(implied - implied.mean(), rewards - rewards.mean(), rtol=0, atol=1e-3)


def test_ipo_ends_at_a_gap_of_half_over_beta() -> None:
    gap = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    for _ in range(200):
        (slope,) = torch.autograd.grad(dpo_loss(gap, zero, zero, zero, beta=0.2, kind="ipo").sum(), gap)
        gap = (gap - 0.2 * slope).detach().requires_grad_()
    assert float(gap) == pytest.approx(1 / (2 * 0.2), abs=1e-9)


def test_smoothed_dpo_ends_where_the_flips_say() -> None:
    gap = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    for _ in range(20_000):
        (slope,) = torch.autograd.grad(dpo_loss(gap, zero, zero, zero, beta=0.5, smoothing=0.1).sum(), gap)
        gap = (gap - 2.0 * slope).detach().requires_grad_()
    assert float(gap) == pytest.approx(math.log(0.9 / 0.1) / 0.5, abs=1e-6)


def test_kto_moves_good_answers_up_and_bad_ones_down_and_the_anchor_has_no_gradient() -> None:
    log_probs, reference = _random((4,)).requires_grad_(), _random((4,), 1)
    good = torch.tensor([True, False, True, False])
    kl = mismatched_kl(_random((4,), 2).requires_grad_(), reference)
    assert not kl.requires_grad
    kto_loss(log_probs, reference, good, kl, beta=0.3).sum().backward()
    assert bool(((log_probs.grad < 0) == good).all())
    assert float(mismatched_kl(reference - 1, reference)) == 0.0
