"""What one round of answers taught, and how a policy learns from it.

`Experience` is made of scores by the algorithm (ppo.py, grpo.py); `update` takes a few steps on it. All here is pure
but for the weights, and the tests run it on tabular policies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from liuli.errors import UsageError
from liuli.stages.rollout import Actor, Rollouts, Scores, minibatches
from liuli.train import Optimizer
from liuli.train.policy import KL, Spread, clipped_loss, kl_terms, token_weights, value_loss


class Reward(NamedTuple):
    """What answers earned: scores_B float32; members_EB: of each of an ensemble; truth_B: the ground truth's own grade,
    NaN where there is none."""

    scores_B: Tensor
    members_EB: Tensor | None = None
    truth_B: Tensor | None = None

    def earned(self, weight: float) -> Tensor:
        """What is learned from: the scores, and with this weight the ground truth's grades where there are any."""
        if not weight:
            return self.scores_B
        if self.truth_B is None:
            raise UsageError("nothing says which answers are right", "truth", "leave it at 0, or ask a curriculum")
        return self.scores_B + weight * self.truth_B.nan_to_num(0.0)


class Experience(NamedTuple):
    """What a round taught, (B, T) float32 each; log-probabilities and values are those before the first step."""

    rollouts: Rollouts
    log_probs_BT: Tensor
    reference_BT: Tensor
    values_BT: Tensor
    kl_BT: Tensor  # k1, whatever the rewards were made of
    rewards_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor


@dataclass(frozen=True)
class Step:
    """How the policy learns from one experience. What is 0 is left out."""

    epochs: int = 4
    minibatches: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.2
    value_weight: float = 0.0  # of the value loss beside the policy's
    value_clip: float = 0.2
    leash: float = 0.0  # weight of a KL term in the loss itself
    leash_kind: KL = "k2"
    spread: Spread = "token"
    constant: float = 1.0  # tokens that `spread = constant` divides by
    micro_tokens: int = 8192
    stop_kl: float = 0.0  # nats a token between policy before and now at which a round's steps end early


def objective(scores: Scores, e: Experience, weights_BT: Tensor, step: Step) -> tuple[Tensor, dict[str, float]]:
    """The loss of some answers of a minibatch: a scalar that the parts of the minibatch add up to; and figures.

    weights_BT: what each token counts (`token_weights` of the whole minibatch).
    """
    policy_BT, clipped_BT = clipped_loss(
        scores.log_probs_BT, e.log_probs_BT, e.advantages_BT, step.clip_low, step.clip_high
    )
    loss_BT = policy_BT
    figures = {"policy_loss": policy_BT, "clip_fraction": clipped_BT.float(), "entropy": scores.entropy_BT}
    figures["kl_from_old"] = kl_terms(e.log_probs_BT, scores.log_probs_BT.detach(), "k3")
    if step.value_weight:
        critic_BT = value_loss(scores.values_BT, e.values_BT, e.returns_BT, step.value_clip)
        loss_BT = loss_BT + step.value_weight * critic_BT
        figures["value_loss"] = critic_BT
    if step.leash:
        loss_BT = loss_BT + step.leash * kl_terms(scores.log_probs_BT, e.reference_BT, step.leash_kind)
    with torch.no_grad():
        means = {name: float((weights_BT * value).sum()) for name, value in figures.items()}
    return (weights_BT * loss_BT).sum(), means


def update(
    actor: Actor,
    optimizer: Optimizer,
    e: Experience,
    step: Step,
    *,
    scale: float = 1.0,
    seed: int = 0,
    extra: Callable[[], Tensor] | None = None,
    scored: Scores | None = None,
) -> dict[str, float]:
    """Several epochs of steps on one experience. Changes the actor's weights; returns means over all steps.

    scale: on all learning rates. extra: a loss added to each step's (PPO-ptx). scored: the actor's scores with their
    gradients, where all is one step of one part and they are known. `first_ratio` is the largest distance of a
    probability ratio from 1 before the first step: anything but about 0 means that sampling and training disagree.
    """
    batches = minibatches(e.rollouts.lengths_B, step.micro_tokens, step.minibatches)
    generator = torch.Generator().manual_seed(seed)
    order = [n for _ in range(step.epochs) for n in torch.randperm(len(batches), generator=generator).tolist()]
    sums: dict[str, float] = {}
    steps, first_ratio = 0, 0.0
    for batch in (batches[n] for n in order):
        rows = torch.cat(batch)
        weights_BT = torch.zeros(e.rollouts.mask_BT.shape)
        weights_BT[rows] = token_weights(e.rollouts.mask_BT[rows], step.spread, step.constant)
        means: dict[str, float] = {}
        for index in batch:
            part = select(e, index)
            scores = actor.score(part.rollouts) if scored is None else scored
            device = scores.log_probs_BT.device
            part = Experience(part.rollouts, *(x.to(device) for x in part[1:]))
            if not steps:
                first_ratio = max(first_ratio, largest_ratio(scores, part))
            loss, figures = objective(scores, part, weights_BT[index, : part.kl_BT.shape[1]].to(device), step)
            loss.backward()  # type: ignore[no-untyped-call]
            means = {name: means.get(name, 0.0) + value for name, value in figures.items()}
        if step.stop_kl and means["kl_from_old"] > step.stop_kl:
            optimizer.zero_grad()
            break
        if extra is not None:
            extra().backward()  # type: ignore[no-untyped-call]
        optimizer.step(scale)
        optimizer.zero_grad()
        steps += 1
        sums = {name: sums.get(name, 0.0) + value for name, value in means.items()}
    means = {name: value / max(1, steps) for name, value in sums.items()}
    return means | {"first_ratio": first_ratio, "steps": float(steps)}


def select(e: Experience, index_N: Tensor) -> Experience:
    """Some answers of an experience, cut to the longest of them."""
    rollouts = e.rollouts.part(index_N)
    return Experience(rollouts, *(x[index_N, : rollouts.mask_BT.shape[1]] for x in e[1:]))


@torch.no_grad()
def largest_ratio(scores: Scores, e: Experience) -> float:
    """The largest |ratio - 1| over the drawn tokens; infinite where one is no number."""
    return float((torch.exp(scores.log_probs_BT - e.log_probs_BT) - 1).abs().nan_to_num(math.inf).max())
