"""GRPO, RLOO and REINFORCE: no value function; an answer is as good as it beats the others to its prompt.

One function of three choices: the advantage, where the leash is, and what a token counts. The default (mean, leash in
the reward, every token alike) has the optimum that PPO has. `grpo` as published does not: its k3 in the loss pulls to
beta * reference / (c - reward) (docs/preferences.md shows both).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from liuli.errors import UsageError
from liuli.stages.experience import Experience, Reward, Step
from liuli.stages.learn import PracticeOptions, reinforce
from liuli.stages.rollout import Rollouts, Scores
from liuli.text.chat import Messages
from liuli.train import RunLog
from liuli.train.policy import KL, Advantage, Spread, group_advantages, kl_terms


@dataclass(frozen=True)
class GRPOOptions(PracticeOptions):
    """How GRPO learns."""

    group: int = 8  # answers to one prompt
    epochs: int = 1
    minibatches: int = 4  # steps of an epoch
    beta: float = 0.02  # the leash
    leash: Literal["reward", "loss"] = "reward"
    kl: KL = "k1"  # k1 in the reward or k2 in the loss have the right optimum
    advantage: Advantage = "mean"
    spread: Spread = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    max_tokens: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 2:
            raise UsageError("a group of one answer has nothing to be compared with", "group", "give 2 or more")


def grpo_experience(
    rollouts: Rollouts, old: Scores, reference_BT: Tensor, scores_B: Tensor, beta: float, options: GRPOOptions
) -> Experience:
    """Advantages of a round, answers of one prompt standing side by side: a pure function."""
    mask_BT, o = rollouts.mask_BT, options
    kl_BT = torch.where(mask_BT, kl_terms(old.log_probs_BT, reference_BT), torch.zeros_like(reference_BT))
    scores_B = torch.where(rollouts.finished_B, scores_B, torch.full_like(scores_B, o.no_end))
    if o.leash == "reward":
        cost_BT = torch.where(mask_BT, kl_terms(old.log_probs_BT, reference_BT, o.kl), torch.zeros_like(kl_BT))
        scores_B = scores_B - beta * cost_BT.sum(1)
    advantages_B = group_advantages(scores_B.view(-1, o.group), o.advantage).flatten()
    advantages_BT = torch.where(mask_BT, advantages_B[:, None], torch.zeros_like(kl_BT))
    zeros_BT = torch.zeros_like(kl_BT)
    return Experience(rollouts, old.log_probs_BT, reference_BT, zeros_BT, kl_BT, advantages_BT, advantages_BT, zeros_BT)


def grpo_step(options: GRPOOptions, micro_tokens: int = 8192) -> Step:
    """How the policy learns from such an experience."""
    o = options
    return Step(
        epochs=o.epochs,
        minibatches=o.minibatches,
        clip_low=o.clip_low,
        clip_high=o.clip_high,
        leash=o.beta if o.leash == "loss" else 0.0,
        leash_kind=o.kl,
        spread=o.spread,
        constant=float(o.max_tokens),
        micro_tokens=micro_tokens,
    )


def grpo(
    model_folder: str | Path,
    prompts: Sequence[Messages],
    out: str | Path,
    *,
    reward: Callable[[Rollouts], Reward],
    options: GRPOOptions,
    log: RunLog,
    data: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Teach the model in `model_folder` on prompts whose answers `reward` can score; write it to `out`.

    data: what the reward knows, for the provenance: a run that goes on must have the same sums in it (`begin`).
    """
    return reinforce(
        Path(model_folder),
        Path(out),
        prompts,
        kind="grpo",
        reward=reward,
        experience=lambda r, old, reference, scores, beta: grpo_experience(r, old, reference, scores, beta, options),
        step=grpo_step(options),
        options=options,
        log=log,
        group=options.group,
        data=data or {},
    )
