"""The pure functions of learning from rewards against closed forms, brute force and hand arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liuli.train.policy import (
    AdaptiveKL,
    clipped_loss,
    explained_variance,
    gae,
    group_advantages,
    kl_terms,
    last_drawn,
    token_rewards,
    token_weights,
    value_loss,
    whiten,
)

torch.set_default_dtype(torch.float32)


def _mask(lengths: list[int], T: int) -> torch.Tensor:
    return torch.arange(T)[None, :] < torch.tensor(lengths)[:, None]


def _random(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- P1: advantages --------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 1.0), st.floats(0.0, 0.99), st.lists(st.integers(1, 7), min_size=1))
def test_gae_is_the_weighted_mixture_of_n_step_advantages(
    seed: int, discount: float, trace: float, lengths: list[int]
) -> None:
    T = 7
    mask = _mask(lengths, T)
    rewards, values = _random(mask.shape, seed) * mask, _random(mask.shape, seed + 1) * mask
    found, returns = gae(rewards, values, mask, discount, trace)
    for b, L in enumerate(lengths):
        r, v = rewards[b], torch.cat((values[b, :L], torch.zeros(T, dtype=torch.float64)))
        for t in range(L):
            steps = L - t  # the last of them, and all after it, are the whole rest of the text

            def n_step(n: int, t: int = t, r: torch.Tensor = r, v: torch.Tensor = v) -> torch.Tensor:
                return sum(discount**k * r[t + k] for k in range(n)) + discount**n * v[t + n] - v[t]

            mixture = (1 - trace) * sum(trace ** (n - 1) * n_step(n) for n in range(1, steps))
            mixture = mixture + trace ** (steps - 1) * n_step(steps)
            assert abs(float(found[b, t] - mixture)) < 1e-10
    assert torch.equal(found[~mask], torch.zeros_like(found[~mask]))
    torch.testing.assert_close(returns[mask], (found + values)[mask], rtol=0, atol=1e-12)


def test_gae_at_the_ends_of_lambda_is_the_return_and_the_temporal_difference() -> None:
    mask = _mask([4, 2], 4)
    rewards, values = _random((2, 4)) * mask, _random((2, 4), 1) * mask
    monte_carlo = rewards.flip(1).cumsum(1).flip(1) - values
    torch.testing.assert_close(gae(rewards, values, mask, 1.0, 1.0)[0][mask], monte_carlo[mask])
    after = torch.cat((values[:, 1:], torch.zeros(2, 1, dtype=torch.float64)), 1)
    torch.testing.assert_close(gae(rewards, values, mask, 0.9, 0.0)[0][mask], (rewards + 0.9 * after - values)[mask])


def test_gae_skips_what_a_tool_said() -> None:
    mask = torch.tensor([[False, True, True, False, False, True, True, False]])
    rewards, values = _random((1, 8)), _random((1, 8), 1)  # rubbish outside the mask
    squeezed = gae(rewards[mask][None], values[mask][None], torch.ones(1, 4, dtype=torch.bool), 0.9, 0.8)[0]
    torch.testing.assert_close(gae(rewards, values, mask, 0.9, 0.8)[0][mask][None], squeezed, rtol=0, atol=1e-12)


def test_an_answer_that_ended_is_worth_nothing_more() -> None:
    advantages, _ = gae(torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 9.0]]), _mask([2], 3), 1.0, 1.0)
    torch.testing.assert_close(advantages, torch.tensor([[-1.0, -1.0, 0.0]]))  # 9 belongs to the padding


# --- P2: clipping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(1.5, 1.0, 0.0), (0.5, -1.0, 0.0), (1.5, -1.0, 1.5), (0.5, 1.0, -0.5), (1.0, 2.0, -2.0), (1.0, -3.0, 3.0)],
)
def test_the_clip_holds_only_what_has_gained_enough(ratio: float, advantage: float, slope: float) -> None:
    log_probs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    loss, clipped = clipped_loss(log_probs, torch.zeros(1, 1), torch.full((1, 1), advantage, dtype=torch.float64))
    loss.sum().backward()
    assert float(log_probs.grad) == pytest.approx(slope, abs=1e-12)
    assert bool(clipped) == (slope == 0.0)


def test_the_value_loss_takes_the_worse_of_free_and_clipped() -> None:
    returns = torch.tensor([0.0, 3.0])
    free, both = value_loss(torch.full((2,), 1.0), torch.zeros(2), returns, 0.0), torch.zeros(2)
    both = value_loss(torch.full((2,), 1.0), torch.zeros(2), returns, 0.2)
    torch.testing.assert_close(free, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(both, torch.tensor([0.5, 0.5 * 2.8**2]))


# --- P4, P5, P6: masks, whitening, what a token counts ----------------------------------------------------------------


def test_the_score_is_paid_once_at_the_last_drawn_token() -> None:
    mask = torch.tensor([[False, True, True, False], [False, True, False, True]])
    paid = token_rewards(torch.tensor([5.0, 7.0]), torch.full((2, 4), 2.0), mask, beta=0.1)
    torch.testing.assert_close(paid, torch.tensor([[0.0, -0.2, 4.8, 0.0], [0.0, -0.2, 0.0, 6.8]]))
    assert last_drawn(mask).sum(1).tolist() == [1, 1]


def test_whitening_knows_nothing_of_padding() -> None:
    mask = _mask([5, 2, 4], 6)
    x = _random((3, 6)) * 3 + 4
    white = whiten(x, mask)
    assert abs(float(white[mask].mean())) < 1e-9
    assert abs(float(white[mask].var(correction=0)) - 1) < 1e-8  # 1e-8 is added under the root
    other = torch.where(mask, x, _random((3, 6), 9) * 100)
    assert torch.equal(white, whiten(other, mask))
    kept = whiten(x, mask, shift_mean=False)
    torch.testing.assert_close(kept[mask].mean(), x[mask].mean())


def test_each_spread_weighs_tokens_by_its_formula() -> None:
    mask = _mask([1, 9], 9)
    token, sequence, constant = (token_weights(mask, kind, 16.0) for kind in ("token", "sequence", "constant"))
    torch.testing.assert_close(token[mask], torch.full((10,), 0.1))
    torch.testing.assert_close(sequence[0, 0], torch.tensor(0.5))
    torch.testing.assert_close(sequence[1, 0], torch.tensor(0.5 / 9))
    torch.testing.assert_close(constant[mask], torch.full((10,), 1 / 32))
    assert float(token[~mask].abs().sum()) == 0.0


# --- P7: the leash ---------------------------------------------------------------------------------------------------


def test_the_adaptive_coefficient_follows_the_arithmetic() -> None:
    leash = AdaptiveKL(0.15, target=6.0, horizon=10_000)
    for kl in (12.0, 12.0, 3.0, 6.0):
        leash.update(kl, 512)
    assert leash.coefficient == pytest.approx(0.15 * 1.01024 * 1.01024 * 0.98976, abs=1e-12)
    assert leash.coefficient == pytest.approx(0.151520110, abs=1e-9)
    assert AdaptiveKL(0.15, target=6.0, horizon=1).update(0.0, 512) > 0  # or a leash would pay for going astray


# --- P12: estimators -------------------------------------------------------------------------------------------------


def test_estimators_of_the_divergence_have_the_means_and_gradients_that_theory_gives_them() -> None:
    logits, reference = _random((12,)).requires_grad_(), torch.log_softmax(_random((12,), 1), 0)
    log_p = torch.log_softmax(logits, 0)
    p = log_p.exp()
    forward = (p * (log_p - reference)).sum()
    backward = (reference.exp() * (reference - log_p)).sum()
    mean = {kind: (p.detach() * kl_terms(log_p, reference, kind)).sum() for kind in ("k1", "k2", "k3")}
    for kind in ("k1", "k3"):
        torch.testing.assert_close(mean[kind], forward, rtol=0, atol=1e-12)
    assert abs(float((mean["k2"] - forward).detach())) > 1e-3

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(x, logits, retain_graph=True)[0]

    torch.testing.assert_close(gradient(mean["k2"]), gradient(forward), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(mean["k3"]), gradient(backward), rtol=0, atol=1e-12)
    assert float(gradient(mean["k1"]).abs().max()) < 1e-12


# --- 3.5: groups -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(0, 10_000))
def test_group_advantages_keep_their_identities(G: int, seed: int) -> None:
    rewards = _random((3, G), seed)
    mean, rloo, std = (group_advantages(rewards, kind) for kind in ("mean", "rloo", "std"))
    torch.testing.assert_close(mean, (G - 1) / G * rloo)
    for i in range(G):
        others = torch.cat((rewards[:, :i], rewards[:, i + 1 :]), 1).mean(1)
        torch.testing.assert_close(rloo[:, i], rewards[:, i] - others)
    torch.testing.assert_close(std.square().mean(1), torch.ones(3, dtype=torch.float64))
    order = torch.randperm(G, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(group_advantages(rewards[:, order]), mean[:, order])


def test_a_group_of_equal_rewards_teaches_nothing_and_a_group_of_one_is_refused() -> None:
    equal = torch.full((2, 3), 0.1)  # its mean is not exactly 0.1
    for kind in ("mean", "rloo", "std"):
        assert torch.equal(group_advantages(equal, kind), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="2 or more"):
        group_advantages(torch.zeros(2, 1))


def test_explained_variance_is_one_for_a_perfect_and_zero_for_a_constant_critic() -> None:
    returns, mask = _random((2, 4)), _mask([4, 3], 4)
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.full((2, 4), 2.0, dtype=torch.float64), returns, mask) == pytest.approx(0.0)
