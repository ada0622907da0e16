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
from liuli.stages.rollout import ModelActor, Rollouts, Scores, judge_all, score_all
from liuli.train import Optimizer, OptimizerOptions
from liuli.train.policy import AdaptiveKL, explained_variance, group_advantages, kl_terms, token_weights
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
    nodes,
    small_transformer,
    word_log_probs,
)

# the values of a table need no clip
PPO = PPOOptions(steps=1, value_clip=0.0, epochs=4, minibatches=1)


def learn(
    problem: Problem, options: PPOOptions = PPO, seed: int = 0, updates: int = 300, **changes: Any
) -> tuple[Table, Experience]:
    """Tabular PPO, by the functions that the stage calls: the table, and what the last round taught it."""
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
    return table, experience


@pytest.mark.parametrize("seed", range(5))
def test_ppo_finds_the_optimum_and_its_critic_what_is_left_to_earn(seed: int) -> None:  # P0, P10
    problem = Problem.random(seed)
    table, last = learn(problem, seed=seed + 100)
    found, best = table.probabilities().detach(), problem.optimum()
    assert distance(found, best) <= 0.001
    assert problem.objective(best) - problem.objective(found) <= 1e-3
    assert explained_variance(last.values_BT, last.returns_BT, last.rollouts.mask_BT) > 0.9


def test_a_constant_reward_leaves_the_policy_where_it_was() -> None:  # P8
    problem = Problem.random(0)
    problem = replace(problem, rewards=torch.full_like(problem.rewards, 0.7))
    found = learn(problem, updates=100)[0].probabilities().detach()
    q = problem.reference.probabilities().detach()
    assert float((found * (found / q).log()).sum(1).max()) < 1e-3


@pytest.mark.parametrize("trace", [0.0, 0.95, 1.0])
def test_with_exact_values_no_state_has_an_advantage_over_itself(trace: float) -> None:  # P10
    problem = Problem.random(1)
    table = Table(torch.randn(problem.reference.logits.shape, generator=torch.Generator().manual_seed(4))).double()
    scores, r = Scores(*(x.detach() for x in table.score(EVERYTHING))), EVERYTHING
    reference_BT = problem.reference.double().score(r).log_probs_BT.detach()
    p_BT = scores.log_probs_BT.sum(1, keepdim=True).exp() * r.mask_BT
    at_BT, states = nodes(r.tokens_BT), torch.zeros(len(table.values), dtype=torch.float64)

    def expected(x_BT: torch.Tensor) -> torch.Tensor:
        """The mean of x over what may follow each state."""
        sums, total = (states.index_add(0, at_BT.flatten(), y.flatten()) for y in (p_BT * x_BT, p_BT))
        return sums / total

    def learned(values_BT: torch.Tensor) -> Experience:
        options = replace(PPO, whiten_advantages=False, trace=trace)
        old = scores._replace(values_BT=values_BT)
        return ppo_experience(r, old, reference_BT, problem.rewards.double().flatten(), problem.beta, options)

    to_come_BT = learned(torch.zeros_like(p_BT)).rewards_BT.flip(1).cumsum(1).flip(1)
    exact = expected(to_come_BT)
    assert float(expected(learned(exact[at_BT] * r.mask_BT).advantages_BT).abs().max()) < 1e-12
    wrong = exact + torch.randn(exact.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert float(expected(learned(wrong[at_BT] * r.mask_BT).advantages_BT).abs().min()) > 1e-3


@pytest.mark.parametrize("beta", [0.2, 3.0])
def test_a_steered_leash_brings_the_divergence_to_its_target(beta: float) -> None:  # P7
    problem, leash, seen, target = Problem.random(0), AdaptiveKL(beta, target=1.0), [], 1.0
    table, q = Table(problem.reference.logits.detach()), problem.reference.probabilities().detach()
    optimizer = Optimizer(table, OptimizerOptions(kind="adamw", adam_lr=0.03, adam_eps=1e-5, beta2=0.999))
    generator, prompts = torch.Generator().manual_seed(0), [place % PROMPTS for place in range(512)]
    for number in range(500):
        rollouts, texts = table.draw(prompts, generator)
        old, reference = score_all(table, rollouts), score_all(problem.reference, rollouts).log_probs_BT
        scores = problem.rewards[torch.tensor(prompts), texts]
        e = ppo_experience(rollouts, old, reference, scores, leash.coefficient, PPO)
        update(table, optimizer, e, replace(ppo_step(PPO), epochs=1), seed=number)
        leash.update(float(e.kl_BT.sum(1).mean()), len(rollouts))
        p = table.probabilities().detach()
        seen.append(float((p * (p / q).log()).sum(1).mean()))  # the divergence itself, not an estimate
    assert abs(sum(seen[-100:]) / 100 - target) < 0.1 * target


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
        found = learn(problem, options, updates=150)[0].probabilities().detach()
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
        with torch.no_grad():
            chances = word_log_probs(policy).exp()
        drawn = torch.multinomial(chances, 128, replacement=True, generator=generator)
        index = (torch.arange(ASKED)[:, None] * len(WORDS) + drawn).flatten()
        rollouts = every.part(index)
        old, before_BT = score_all(actor, rollouts), leash.log_probs_BT[index, : rollouts.tokens_BT.shape[1]]
        e = ppo_experience(rollouts, old, before_BT, rewards.float().flatten()[index], beta, options)
        update(actor, optimizer, e, ppo_step(options, 100_000), scale=1 - number / updates, seed=number)
    found = log_probs(score_all(actor, every, 100_000))
    torch.testing.assert_close(word_log_probs(policy).double(), found, atol=1e-4, rtol=0)  # what was drawn was its own
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
    """A policy over A one-token answers, with one value: an Actor."""

    def __init__(self, reference: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(reference.clone())
        self.value = torch.nn.Parameter(torch.zeros((), dtype=reference.dtype))

    def score(self, r: Rollouts) -> Scores:
        log_probs = torch.log_softmax(self.logits, 0)
        entropy = -(log_probs.exp() * log_probs).sum().detach()
        taken_BT = log_probs[r.tokens_BT.clamp(max=A - 1)]
        each = (taken_BT, entropy.expand_as(taken_BT), self.value.expand_as(taken_BT))
        return Scores(*(torch.where(r.mask_BT, x, torch.zeros_like(x)) for x in each))


def one_token(answers_B: torch.Tensor) -> Rollouts:
    """Answers of one token to one prompt, token A."""
    tokens = torch.stack((torch.full_like(answers_B, A), answers_B), 1)
    B = len(tokens)
    mask = torch.tensor([[False, True]]).expand(B, 2)
    prompts = torch.zeros(B, dtype=torch.int64)
    return Rollouts(tokens, mask, torch.zeros(B, 2), prompts + 2, torch.ones(B, dtype=torch.bool), prompts)


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


def answers_problem(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the reference, and rewards."""
    generator = torch.Generator().manual_seed(seed)
    reference = torch.log_softmax(torch.randn(A, generator=generator, dtype=torch.float64), 0)
    return reference, torch.randn(A, generator=generator, dtype=torch.float64)


class Natural:
    """Stands in for an optimizer: the gradient over the probability, so that rare answers learn as fast as others."""

    def __init__(self, table: Answers, rate: float = 0.2) -> None:
        self.logits, self.rate = table.logits, rate

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        p = torch.softmax(self.logits, 0).clamp_min(1e-3)
        self.logits -= self.rate * scale * self.logits.grad / p

    def zero_grad(self) -> None:
        self.logits.grad = None


@pytest.mark.parametrize("beta", [0.5, 1.5])
@pytest.mark.parametrize(("leash", "kind", "advantage", "ends"), GROUPS)
def test_each_recipe_of_grpo_ends_at_its_own_fixed_point(
    leash: str, kind: str, advantage: str, ends: str, beta: float
) -> None:
    reference, rewards = answers_problem(3)
    options = GRPOOptions(steps=1, leash=leash, kl=kind, advantage=advantage)
    table = Answers(reference)
    optimizer = Natural(table)
    for number in range(1000):
        exact_step(table, reference, rewards, beta, options).backward()
        optimizer.step(1 - number / 1000)
        optimizer.zero_grad()
    p, tilt = torch.softmax(table.logits.detach(), 0), torch.softmax(reference + rewards / beta, 0)
    assert distance(p[None], closed_form(ends, reference, rewards, beta, p)[None]) <= 1e-3
    assert (distance(p[None], tilt[None]) <= 1e-3) == (ends == "tilt")  # the others end elsewhere
    collapses = ends == "argmax" or (ends == "tilt, scaled" and beta == 0.5)
    assert (float(p[rewards.argmax()]) > 0.999) == collapses


@pytest.mark.parametrize("beta", [0.5, 1.5])
@pytest.mark.parametrize(("leash", "kind", "advantage", "ends"), GROUPS)
def test_drawn_answers_lead_to_the_same_fixed_points(
    leash: str, kind: str, advantage: str, ends: str, beta: float
) -> None:
    reference, rewards = answers_problem(3)
    # one large group: the mean of G answers holds each of them, which in a loss weighs the leash G / (G - 1) times
    options = GRPOOptions(
        steps=1, group=1024, minibatches=1, leash=leash, kl=kind, advantage=advantage, beta=beta, no_end=0.0
    )
    table = Answers(reference)
    optimizer, generator = Natural(table), torch.Generator().manual_seed(0)
    for number in range(400):
        drawn = torch.multinomial(torch.softmax(table.logits.detach(), 0), 1024, replacement=True, generator=generator)
        rollouts = one_token(drawn)
        e = grpo_experience(
            rollouts, score_all(table, rollouts), score_all(Answers(reference), rollouts).log_probs_BT,
            rewards.float()[drawn], beta, options,
        )  # fmt: skip
        update(table, optimizer, e, grpo_step(options), scale=1 - number / 400)  # type: ignore[arg-type]
    p = torch.softmax(table.logits.detach(), 0)
    assert distance(p[None], closed_form(ends, reference, rewards, beta, p)[None]) <= 0.02


def test_ppo_on_answers_of_one_token_finds_the_best_of_them() -> None:  # P8, a bandit
    (reference, rewards), beta = answers_problem(4), 0.5
    table = Answers(reference)
    optimizer = Optimizer(table, OptimizerOptions(kind="adamw", adam_lr=0.03, adam_eps=1e-5, beta2=0.999))
    generator = torch.Generator().manual_seed(0)
    for number in range(400):
        drawn = torch.multinomial(torch.softmax(table.logits.detach(), 0), 512, replacement=True, generator=generator)
        rollouts = one_token(drawn)
        before_BT = score_all(Answers(reference), rollouts).log_probs_BT
        e = ppo_experience(rollouts, score_all(table, rollouts), before_BT, rewards.float()[drawn], beta, PPO)
        update(table, optimizer, e, ppo_step(PPO), scale=1 - number / 400, seed=number)
    p = torch.softmax(table.logits.detach(), 0)
    assert distance(p[None], torch.softmax(reference + rewards / beta, 0)[None]) <= 0.001
    worth = beta * torch.logsumexp(reference + rewards / beta, 0)  # of the state that all are in
    assert float(table.value.detach()) == pytest.approx(float(worth), abs=0.01)


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
    rollouts, reference = EVERYTHING, problem.reference.double()
    old = Scores(*(x.detach() for x in reference.score(rollouts)))
    moved = 0.1 * torch.randn(reference.logits.shape, generator=torch.Generator().manual_seed(1))
    for spread in ("token", "sequence", "constant"):
        found = []
        for micro_tokens in (10_000, 12):
            table = Table(reference.logits.detach() + moved).double()
            e = ppo_experience(rollouts, old, old.log_probs_BT, problem.rewards.double().flatten(), 0.5, PPO)
            step = Step(epochs=1, value_weight=0.1, spread=spread, micro_tokens=micro_tokens)
            kept: list[torch.Tensor] = []

            class Keep:
                def step(self, scale: float, table: Table = table, kept: list[torch.Tensor] = kept) -> None:
                    kept.append(torch.cat([w.grad.flatten() for w in table.parameters()]))

                def zero_grad(self) -> None:
                    pass

            update(table, Keep(), e, step)  # type: ignore[arg-type]
            found.append(kept[0])
        torch.testing.assert_close(*found, rtol=0, atol=1e-10)


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
