"""PPO: a policy learns what the reward model likes, on a KL leash to where it began (InstructGPT, arXiv 2203.02155)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from liuli.stages.learn import Experience, Step
from liuli.stages.rollout import Rollouts, Scores
from liuli.train.policy import KL, gae, kl_terms, token_rewards, whiten


@dataclass(frozen=True)
class PPOOptions:
    """How PPO learns. Defaults are the ones measured to have the right optimum (docs/preferences.md)."""

    minutes: float | None = None
    steps: int | None = None
    answers: int = 256  # of one round
    epochs: int = 4
    minibatches: int = 1
    lr: float = 3e-4
    beta: float = 0.05  # the leash: nats of KL cost this much score
    kl_target: float = 0.0  # nats an answer that the leash is steered to (arXiv 1909.08593); 0: a fixed leash
    kl: KL = "k1"  # in the reward; all but k1 have another optimum
    discount: float = 1.0
    trace: float = 0.95  # lambda of the advantages
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    whiten_rewards: Literal["off", "scale", "full"] = "off"  # "scale" pays for every token: another optimum
    whiten_advantages: bool = True
    no_end: float = -1.0  # the score of an answer that did not end by itself
    temperature: float = 1.0
    max_tokens: int = 96
    ptx: float = 0.0  # weight of the pretraining loss beside PPO's
    seed: int = 0


def ppo_experience(
    rollouts: Rollouts, old: Scores, reference_BT: Tensor, scores_B: Tensor, beta: float, options: PPOOptions
) -> Experience:
    """Rewards, advantages and returns of a round of answers: a pure function."""
    mask_BT, o = rollouts.mask_BT, options
    scores_B = torch.where(rollouts.finished_B, scores_B, torch.full_like(scores_B, o.no_end))
    cost_BT = kl_terms(old.log_probs_BT, reference_BT, o.kl)
    rewards_BT = token_rewards(scores_B, cost_BT, mask_BT, beta)
    if o.whiten_rewards != "off":
        rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=o.whiten_rewards == "full")
    advantages_BT, returns_BT = gae(rewards_BT, old.values_BT, mask_BT, o.discount, o.trace)
    if o.whiten_advantages:
        advantages_BT = whiten(advantages_BT, mask_BT)
    kl_BT = torch.where(mask_BT, kl_terms(old.log_probs_BT, reference_BT), torch.zeros_like(cost_BT))
    return Experience(
        rollouts, old.log_probs_BT, reference_BT, old.values_BT, kl_BT, rewards_BT, advantages_BT, returns_BT
    )


def ppo_step(options: PPOOptions, micro_tokens: int = 8192) -> Step:
    """How the policy learns from such an experience."""
    o = options
    return Step(
        epochs=o.epochs,
        minibatches=o.minibatches,
        clip_low=o.clip,
        clip_high=o.clip,
        value_weight=o.value_weight,
        value_clip=o.value_clip,
        micro_tokens=micro_tokens,
    )
