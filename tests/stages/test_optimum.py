"""PPO, GRPO and their relatives on problems whose optimum is known exactly: does the shipped code get there?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from liuli.model.scalar import ScalarModel
from liuli.stages.experience import Experience, Step, objective, update
from liuli.stages.grpo import GRPOOptions, grpo_experience, grpo_step
from liuli.stages.ppo import PPOOptions, ppo_experience, ppo_step
from liuli.stages.rollout import ModelActor, Scores, judge_all, score_all
from liuli.train import Optimizer, OptimizerOptions
from liuli.train.policy import group_advantages, kl_terms, token_weights
from tests.stages.tabular import (
    ASKED,
    BAN_V,
    EVERYTHING,
    PROMPTS,
    TEXTS,
    WORDS,
    Problem,
    Table,
    distance,
    every_word,
    small_transformer,
)

# the values of a table need no clip
PPO = PPOOptions(steps=1, value_clip=0.0, epochs=4, minibatches=1)


def learn(problem: Problem, options: PPOOptions = PPO, seed: int = 0, updates: int = 300, **changes: Any) -> Table:
    """Tabular PPO, by the functions that the stage calls."""
    table = Table(problem.reference.logits.detach())
    optimizer = Optimizer(table, OptimizerOptions(kind="adamw", adam_lr=0.03, adam_eps=1e-5, beta2=0.999))
    generator = torch.Generator().manual_seed(seed)
    prompts = [place % PROMPTS for place in range(512)]
    step = replace(ppo_step(options), **changes)
    for number in range(updates):
        rollouts, texts = table.draw(prompts, generator)
        old = score_all(table, rollouts)
        reference = score_all(problem.reference, rollouts).log_probs_BT
        scores = problem.rewards[torch.tensor(prompts), texts]
        experience = ppo_experience(rollouts, old, reference, scores, problem.beta, options)
        update(table, optimizer, experience, step, scale=1 - number / updates, seed=number)
    return table


@pytest.mark.parametrize("seed", range(5))
def test_ppo_finds_the_optimum(seed: int) -> None:  # P0
    problem = Problem.random(seed)
    found = learn(problem, seed=seed + 100).probabilities().detach()
    best = problem.optimum()
    assert distance(found, best) <= 0.001
    assert problem.objective(best) - problem.objective(found) <= 1e-3


def test_a_constant_reward_leaves_the_policy_where_it_was() -> None:  # P8
    problem = Problem.random(0)
    problem = replace(problem, rewards=torch.full_like(problem.rewards, 0.7))
    found = learn(problem, updates=100).probabilities().detach()
    q = problem.reference.probabilities().detach()
    assert float((found * (found / q).log()).sum(1).max()) < 1e-3


def test_the_critic_learns_what_the_answers_are_worth() -> None:  # P10
    problem = Problem.random(1, beta=0.0)  # no leash: the returns are the rewards
    table = Table(problem.reference.logits.detach())
    frozen = Optimizer(table, OptimizerOptions(kind="adamw", adam_lr=0.05, adam_eps=1e-5))
    with torch.no_grad():
        p = table.probabilities()
    for _ in range(300):  # values alone: every text at once, weighed by its probability
        scores = table.score(EVERYTHING)
        mask = EVERYTHING.mask_BT
        gap = scores.values_BT - torch.where(mask, problem.rewards.flatten()[:, None], torch.zeros(()))
        (p.flatten()[:, None] * mask * gap.square()).sum().backward()
        table.logits.grad = None
        frozen.step(1.0)
        frozen.zero_grad()
    old = score_all(table, EVERYTHING)
    experience = ppo_experience(
        EVERYTHING,
        old,
        old.log_probs_BT,
        problem.rewards.flatten(),
        0.0,
        replace(PPO, whiten_advantages=False, trace=0.0),
    )
    mean = (p.flatten()[:, None] * experience.advantages_BT)[:, 1].view(PROMPTS, -1).sum(1)
    assert float(mean.abs().max()) < 2e-3  # E[A | state] = 0 at the first state of both prompts


def test_ppo_with_pretraining_loss_finds_its_own_optimum() -> None:  # P9
    problem, weight = Problem.random(2), 0.3
    data = torch.softmax(torch.randn(PROMPTS, len(TEXTS), generator=torch.Generator().manual_seed(9)), 1)

    def texts_loss(table: Table) -> torch.Tensor:
        return -(data * table.score(EVERYTHING).log_probs_BT.sum(1).view(PROMPTS, -1)).sum(1).mean()

    exact = Table(problem.reference.logits.detach())
    optimizer = torch.optim.LBFGS([exact.logits], max_iter=3000, tolerance_grad=1e-9, line_search_fn="strong_wolfe")
    q = problem.reference.probabilities().detach()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        p = exact.probabilities()
        gain = (p * (problem.rewards - problem.beta * (p / q).log())).sum(1).mean()
        loss = -gain + weight * texts_loss(exact)
        loss.backward()
        return loss

    optimizer.step(closure)
    table = Table(problem.reference.logits.detach())
    ours = Optimizer(table, OptimizerOptions(kind="adamw", adam_lr=0.03, adam_eps=1e-5, beta2=0.999))
    generator = torch.Generator().manual_seed(5)
    prompts = [place % PROMPTS for place in range(512)]
    options = replace(PPO, whiten_advantages=False)  # whitening would rescale one loss against the other
    for number in range(400):
        rollouts, numbers = table.draw(prompts, generator)
        old, reference = score_all(table, rollouts), score_all(problem.reference, rollouts).log_probs_BT
        scores = problem.rewards[torch.tensor(prompts), numbers]
        experience = ppo_experience(rollouts, old, reference, scores, problem.beta, options)
        tokens = float(rollouts.mask_BT.sum()) / len(rollouts)  # PPO's loss is a mean over tokens, this one over texts
        update(
            table, ours, experience, replace(ppo_step(options), epochs=1), scale=1 - number / 400, seed=number,
            extra=lambda tokens=tokens: weight * texts_loss(table) / tokens,
        )  # fmt: skip
    assert distance(table.probabilities().detach(), exact.probabilities().detach()) < 0.01


def test_the_usual_tricks_with_another_optimum_are_told_apart() -> None:
    """Rewards scaled without their mean, and k3 as the reward, end elsewhere: the docs' warnings are true."""
    problem = Problem.random(0)
    for options in (replace(PPO, whiten_rewards="scale"), replace(PPO, kl="k3")):
        found = learn(problem, options, updates=150).probabilities().detach()
        assert distance(found, problem.optimum()) > 0.002


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_ppo_with_a_transformer_wins_nearly_all_that_can_be_won(seed: int) -> None:  # P0 again, a shared trunk
    beta, every = 0.5, every_word()
    policy, before = small_transformer(seed), small_transformer(seed)
    reference = ModelActor(before, 1.0, BAN_V)
    judge = ScalarModel(small_transformer(seed + 77))

    def log_probs(scores: Scores) -> torch.Tensor:
        return scores.log_probs_BT.sum(1).view(ASKED, -1).double()

    leash = score_all(reference, every, 100_000)
    q = log_probs(leash)
    rewards = judge_all(judge, every, 100_000)[:, 0].view(ASKED, -1).double()
    centred = rewards - (q.exp() * rewards).sum(1, keepdim=True)
    rewards = centred / (q.exp() * centred.square()).sum(1).mean().sqrt()
    best = torch.log_softmax(q + rewards / beta, 1)

    def objective(p: torch.Tensor) -> float:
        return float((p.exp() * (rewards - beta * (p - q))).sum(1).mean())

    head = torch.nn.Linear(32, 1)
    actor = ModelActor(policy, 1.0, BAN_V, head)
    rates = OptimizerOptions(kind="adamw", adam_lr=3e-3, beta2=0.99, adam_eps=1e-5)
    optimizer = Optimizer(torch.nn.ModuleList([policy, head]), rates)
    options = replace(PPO, beta=beta, value_weight=0.5)
    generator, updates = torch.Generator().manual_seed(seed), 200
    for number in range(updates):
        now = score_all(actor, every, 100_000)
        drawn = torch.multinomial(log_probs(now).exp(), 128, replacement=True, generator=generator)
        index = (torch.arange(ASKED)[:, None] * len(WORDS) + drawn).flatten()
        rollouts = every.part(index)
        T = rollouts.tokens_BT.shape[1]
        old, before_BT = Scores(*(values[index, :T] for values in now)), leash.log_probs_BT[index, :T]
        e = ppo_experience(rollouts, old, before_BT, rewards.float().flatten()[index], beta, options)
        update(actor, optimizer, e, ppo_step(options, 100_000), scale=1 - number / updates, seed=number)
    found = log_probs(score_all(actor, every, 100_000))
    assert (objective(found) - objective(q)) / (objective(best) - objective(q)) >= 0.99
    assert float((found.exp() * (found - best)).sum(1).mean()) <= 0.04


# --- GRPO's fixed points (posttraining 3.5): 12 one-token answers, exact expectations --------------------------------

A = 12
GROUPS = [
    # leash, kind, advantage, converges to
    ("reward", "k1", "mean", "tilt"),
    ("reward", "k1", "std", "tilt"),
    ("loss", "k2", "mean", "tilt"),
    ("loss", "k3", "mean", "inverse"),
    ("loss", "k3", "std", "inverse, scaled"),
    ("loss", "k2", "std", "tilt, scaled"),
    ("loss", "k1", "mean", "argmax"),
]


class Answers(torch.nn.Module):
    """A policy over A one-token answers; every answer stands in the batch once."""

    def __init__(self, reference: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(reference.clone())


def exact_step(
    table: Answers, reference: torch.Tensor, rewards: torch.Tensor, beta: float, options: GRPOOptions
) -> torch.Tensor:
    """The loss of the shipped code with every answer weighed by its probability: the expectation itself."""
    log_p = torch.log_softmax(table.logits, 0)
    p = log_p.detach().exp()
    earned = rewards.clone()
    if options.leash == "reward":
        earned = earned - beta * kl_terms(log_p.detach(), reference, options.kl)
    advantages = group_advantages(earned[None], options.advantage, p[None])[0]
    column = torch.zeros(A, 1, dtype=torch.float64)
    e = Experience(
        None, log_p.detach()[:, None], reference[:, None], column, column, column, advantages[:, None], column
    )
    scores = type("S", (), {"log_probs_BT": log_p[:, None], "entropy_BT": column, "values_BT": column})
    return objective(scores, e, p[:, None], grpo_step(replace(options, beta=beta)))[0]


def closed_form(
    kind: str, reference: torch.Tensor, rewards: torch.Tensor, beta: float, p: torch.Tensor
) -> torch.Tensor:
    """Where theory says that the recipe ends. Scaled ones depend on the spread at the end: taken from p."""
    mean = (p * rewards).sum()
    sigma = (p * (rewards - mean).square()).sum().sqrt()
    scale = beta * sigma if "scaled" in kind else torch.tensor(beta, dtype=torch.float64)
    if kind == "argmax":
        return torch.nn.functional.one_hot(rewards.argmax(), A).double()
    if kind.startswith("tilt"):
        return torch.softmax(reference + rewards / scale, 0)
    low, high = rewards.max(), rewards.max() + scale * 10  # scale * ref / (c - r), c so that it adds up to one
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if (scale * reference.exp() / (c - rewards)).sum() > 1 else (low, c)
    return scale * reference.exp() / (c - rewards)


@pytest.mark.parametrize(("leash", "kind", "advantage", "ends"), GROUPS)
def test_each_recipe_of_grpo_ends_at_its_own_fixed_point(leash: str, kind: str, advantage: str, ends: str) -> None:
    generator = torch.Generator().manual_seed(3)
    reference = torch.log_softmax(torch.randn(A, generator=generator, dtype=torch.float64), 0)
    rewards, beta = torch.randn(A, generator=generator, dtype=torch.float64), 1.5
    options = GRPOOptions(steps=1, leash=leash, kl=kind, advantage=advantage)
    table = Answers(reference)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.05)
    for number in range(6000):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - number / 6000)
        optimizer.zero_grad()
        exact_step(table, reference, rewards, beta, options).backward()
        optimizer.step()
    p = torch.softmax(table.logits.detach(), 0)
    assert 0.5 * float((p - closed_form(ends, reference, rewards, beta, p)).abs().sum()) <= 1e-3
    if "inverse" in ends:  # and that is not the optimum of reward on a leash
        assert 0.5 * float((p - torch.softmax(reference + rewards / beta, 0)).abs().sum()) > 0.02


def test_grpo_with_drawn_answers_finds_the_optimum() -> None:
    problem = Problem.random(3)
    options = GRPOOptions(steps=1, group=64, minibatches=1, beta=problem.beta)
    table = Table(problem.reference.logits.detach())
    optimizer = Optimizer(table, OptimizerOptions(kind="adamw", adam_lr=0.05, adam_eps=1e-5, beta2=0.999))
    generator = torch.Generator().manual_seed(0)
    prompts = [place // 64 % PROMPTS for place in range(512)]
    for number in range(400):
        rollouts, texts = table.draw(prompts, generator)
        old, reference = score_all(table, rollouts), score_all(problem.reference, rollouts).log_probs_BT
        scores = problem.rewards[torch.tensor(prompts), texts]
        experience = grpo_experience(rollouts, old, reference, scores, problem.beta, options)
        update(table, optimizer, experience, grpo_step(options), scale=1 - number / 400, seed=number)
    assert distance(table.probabilities().detach(), problem.optimum()) <= 0.02


# --- the path: parts of a batch, ratios ------------------------------------------------------------------------------


def test_a_step_is_the_same_in_one_piece_and_in_parts() -> None:  # P6
    problem = Problem.random(0)
    rollouts = EVERYTHING
    old = score_all(problem.reference, rollouts)
    generator = torch.Generator().manual_seed(1)
    for spread in ("token", "sequence", "constant"):
        found = []
        for micro_tokens in (10_000, 12):
            table = Table(problem.reference.logits.detach() + 0.1 * torch.randn(1, generator=generator))
            e = ppo_experience(rollouts, old, old.log_probs_BT, problem.rewards.flatten(), 0.5, PPO)
            step = Step(epochs=1, value_weight=0.1, spread=spread, micro_tokens=micro_tokens)
            kept: list[torch.Tensor] = []

            class Keep:
                def step(self, scale: float, table: Table = table, kept: list[torch.Tensor] = kept) -> None:
                    kept.append(torch.cat([w.grad.flatten() for w in table.parameters()]))

                def zero_grad(self) -> None:
                    pass

            update(table, Keep(), e, step)  # type: ignore[arg-type]
            found.append(kept[0])
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)


def test_the_first_ratio_is_one_and_padding_carries_no_gradient() -> None:  # P3, P4
    problem = Problem.random(0)
    table = Table(problem.reference.logits.detach())
    old = score_all(table, EVERYTHING)
    e = ppo_experience(EVERYTHING, old, old.log_probs_BT, problem.rewards.flatten(), 0.5, PPO)
    weights = token_weights(EVERYTHING.mask_BT)
    assert int((weights > 0).sum()) == int((EVERYTHING.lengths_B - 1).sum())
    optimizer = Optimizer(table, OptimizerOptions(kind="adamw", adam_lr=0.0))
    assert update(table, optimizer, e, Step(epochs=1))["first_ratio"] <= 1e-6
    shaken = EVERYTHING.tokens_BT.clone()
    pad = torch.arange(shaken.shape[1])[None, :] >= EVERYTHING.lengths_B[:, None]
    shaken[pad] = 1
    other = score_all(table, replace(EVERYTHING, tokens_BT=shaken))
    assert torch.equal(other.log_probs_BT, old.log_probs_BT)
