"""PPO: a policy learns what the reward model likes, on a KL leash to where it began (InstructGPT, arXiv 2203.02155)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from liuli.files import folder_hash
from liuli.model import Transformer
from liuli.stages.experience import Experience, Step
from liuli.stages.learn import PracticeOptions, reinforce
from liuli.stages.reward import load_judge, scored_by
from liuli.stages.rollout import Critic, Rollouts, Scores
from liuli.text import Rows
from liuli.text.chat import Messages
from liuli.train import RunLog
from liuli.train.policy import KL, AdaptiveKL, gae, kl_terms, token_rewards, whiten


@dataclass(frozen=True)
class PPOOptions(PracticeOptions):
    """How PPO learns. Defaults are the ones measured to have the right optimum (docs/preferences.md)."""

    epochs: int = 4
    minibatches: int = 4
    kl_target: float = 0.0  # nats an answer that the leash is steered to (arXiv 1909.08593); 0: a fixed leash
    kl_horizon: float = 10_000.0  # answers over which it is steered
    kl: KL = "k1"  # in the reward; all but k1 have another optimum
    discount: float = 1.0
    trace: float = 0.95  # lambda of the advantages
    clip: float = 0.2
    value_clip: float = 0.2
    stop_kl: float = 0.0  # nats a token from the round's first policy at which its steps end early; 0: never
    value_weight: float = 0.1
    whiten_rewards: Literal["off", "scale", "full"] = "off"  # both have another optimum
    whiten_advantages: bool = True
    critic: Literal["shared", "reward"] = "shared"  # a head on the policy's states, or the reward model as a start
    critic_lr: float = 1e-2  # of that head, which begins at 0: at the policy's rate it would never get as far as scores
    ptx: float = 0.0  # weight of the pretraining loss beside PPO's


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


def ppo_step(options: PPOOptions, micro_tokens: int = 4096) -> Step:
    """How the policy learns from such an experience."""
    o = options
    return Step(
        epochs=o.epochs,
        minibatches=o.minibatches,
        clip_low=o.clip,
        clip_high=o.clip,
        value_weight=o.value_weight,
        value_clip=o.value_clip,
        stop_kl=o.stop_kl,
        micro_tokens=micro_tokens,
    )


def ppo(
    model_folder: str | Path,
    reward_folder: str | Path,
    prompts: Sequence[Messages],
    out: str | Path,
    *,
    options: PPOOptions,
    log: RunLog,
    truth: Callable[[Rollouts], Tensor] | None = None,
    ptx_rows: Rows | None = None,
) -> dict[str, float]:
    """Teach the chat model in `model_folder` what the reward model likes, on these prompts; write it to `out`.

    truth: the ground truth's grade of each answer; learned from only with `options.truth`. ptx_rows: text for the
    pretraining loss (options.ptx). Raises LiuliError for a reward model of another tokenizer, or no better than chance.
    """
    judge_model = load_judge(reward_folder, model_folder)

    def critic(model: Transformer) -> Critic:
        if options.critic == "reward":
            return copy.deepcopy(judge_model).requires_grad_(True)
        head = nn.Linear(model.config.width, 1).to(model.embedding.weight.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    def steer(beta: float, kl: float, answers: int) -> float:
        return AdaptiveKL(beta, options.kl_target, options.kl_horizon).update(kl, answers)

    return reinforce(
        Path(model_folder),
        Path(out),
        prompts,
        kind="ppo",
        reward=scored_by(judge_model, truth, options.combine),
        experience=lambda r, old, reference, scores, beta: ppo_experience(r, old, reference, scores, beta, options),
        step=ppo_step(options),
        options=options,
        log=log,
        critic=critic,
        critic_lr=options.critic_lr,
        steer=steer if options.kl_target else None,
        ptx_rows=ptx_rows if options.ptx else None,
        ptx=options.ptx,
        data={"reward": str(reward_folder), "reward_hash": folder_hash(reward_folder)},
    )
