"""What learning from rewards consists of: pure functions on tensors, no models, no files.

One letter an axis: B answers, G answers of one prompt, T tokens. Everything per token is aligned with the token it
speaks of: log_probs_BT[b, t] is log p(token t | the tokens before it), values_BT[b, t] the worth of the state before
token t, rewards_BT[b, t] what token t earned. mask_BT is True at the tokens that the policy drew: not at prompts, at
what a tool answered, or at padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KL = Literal["k1", "k2", "k3", "abs"]
Spread = Literal["token", "sequence", "constant"]
Advantage = Literal["mean", "std", "rloo", "none"]


# --- the leash -------------------------------------------------------------------------------------------------------


def kl_terms(log_probs: Tensor, reference: Tensor, kind: KL = "k1") -> Tensor:
    """An estimate of KL(policy || reference) from one drawn token, in nats; any shape.

    k1 = log(p/q), k2 = log(p/q)^2 / 2, k3 = q/p - 1 + log(p/q) (http://joschu.net/blog/kl-approx.html). k1 and k3
    have the right mean. As a *reward* only k1 has the right optimum: the others' gradient is not that of the
    divergence. In a *loss* only k2 has the right gradient; k3's is that of KL(reference || policy).
    """
    ratio = log_probs - reference
    if kind == "k1":
        return ratio
    if kind == "k2":
        return 0.5 * ratio.square()
    if kind == "k3":
        return torch.expm1(-ratio) + ratio
    return ratio.abs()


@dataclass
class AdaptiveKL:
    """Steers the coefficient so that the KL of an answer settles at a target (arXiv 1909.08593, section 2.2).

    target: nats an answer. horizon: answers over which a full correction takes place.
    """

    coefficient: float
    target: float = 6.0
    horizon: float = 10_000.0

    def update(self, kl: float, answers: int) -> float:
        """The new coefficient after `answers` answers whose mean KL was `kl`."""
        error = min(0.2, max(-0.2, kl / self.target - 1))
        self.coefficient *= max(0.5, 1 + error * answers / self.horizon)  # of a horizon of a few answers no less
        return self.coefficient


# --- rewards and advantages ------------------------------------------------------------------------------------------


def last_drawn(mask_BT: Tensor) -> Tensor:
    """True at the last token that each answer's policy drew (B, T); there the score is paid."""
    after = mask_BT.flip(1).cumsum(1).flip(1)
    return mask_BT & (after == 1)


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, beta: float) -> Tensor:
    """-beta * KL at every drawn token, and the answer's score at its last one (arXiv 2203.02155, eq. 2)."""
    paid = last_drawn(mask_BT).to(kl_BT.dtype) * scores_B[:, None]
    return torch.where(mask_BT, paid - beta * kl_BT, torch.zeros_like(kl_BT))


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, discount: float = 1.0, trace: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, (B, T) each, zero outside the mask (arXiv 1506.02438, eq. 16).

    trace: lambda. An answer ends for good: the state after its last token is worth nothing. Tokens that the policy did
    not draw in between are skipped, as if they were not there.
    """
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value = next_advantage = torch.zeros_like(rewards_BT[:, 0])
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        drawn = mask_BT[:, t]
        surprise = rewards_BT[:, t] + discount * next_value - values_BT[:, t]
        advantage = surprise + discount * trace * next_advantage
        next_advantage = torch.where(drawn, advantage, next_advantage)
        next_value = torch.where(drawn, values_BT[:, t], next_value)
        advantages_BT[:, t] = torch.where(drawn, advantage, torch.zeros_like(advantage))
    returns_BT = torch.where(mask_BT, advantages_BT + values_BT, torch.zeros_like(values_BT))
    return advantages_BT, returns_BT


def whiten(x_BT: Tensor, mask_BT: Tensor, shift_mean: bool = True) -> Tensor:
    """Scaled to variance 1 (and mean 0) over the masked tokens of the whole batch; zero elsewhere."""
    chosen = x_BT[mask_BT]
    mean = chosen.mean()
    scaled = (x_BT - mean) * torch.rsqrt(chosen.var(correction=0) + 1e-8)
    return torch.where(mask_BT, scaled if shift_mean else scaled + mean, torch.zeros_like(x_BT))


def group_advantages(rewards_NG: Tensor, kind: Advantage = "mean", weights_NG: Tensor | None = None) -> Tensor:
    """How much better than the other answers of its prompt each answer is, (N, G).

    mean: r - mean (arXiv 2503.20783, Dr. GRPO); std: that over the group's standard deviation (arXiv 2402.03300, GRPO);
    rloo: r - mean of the others (arXiv 2402.14740); none: r itself (REINFORCE, Williams 1992). A group of equal rewards
    has advantages of exactly zero, but with none.
    weights_NG: how often each answer stands for one (an exact expectation: its probability); default: once.
    """
    if rewards_NG.shape[1] < 2:
        raise ValueError("a group of one answer has nothing to be compared with: give 2 or more")
    if kind == "none":
        return rewards_NG
    weights = torch.ones_like(rewards_NG) if weights_NG is None else weights_NG
    total = weights.sum(1, keepdim=True)
    centred = rewards_NG - (weights * rewards_NG).sum(1, keepdim=True) / total
    centred = torch.where(
        rewards_NG.amax(1, keepdim=True) == rewards_NG.amin(1, keepdim=True), torch.zeros_like(centred), centred
    )
    if kind == "mean":
        return centred
    if kind == "rloo":
        return centred * total / (total - weights)
    return centred / ((weights * centred.square()).sum(1, keepdim=True) / total).sqrt().clamp_min(1e-6)


def importance_weights(log_probs_BT: Tensor, sampler_BT: Tensor, mask_BT: Tensor, most: float) -> Tensor:
    """min(p of the trainer / p of the sampler, most) at every drawn token, 0 elsewhere: (B, T).

    Truncated importance sampling (Ionides 2008, doi 10.1198/106186008X320456): answers that an engine of other numerics
    drew teach what the trainer's own would have taught.
    """
    weights_BT = torch.exp(log_probs_BT - sampler_BT).clamp_max(most)
    return torch.where(mask_BT, weights_BT, torch.zeros_like(weights_BT))


# --- losses ----------------------------------------------------------------------------------------------------------


def clipped_loss(
    log_probs_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, low: float = 0.2, high: float = 0.2
) -> tuple[Tensor, Tensor]:
    """PPO's surrogate of each token, to be made small, and where the clip holds it (arXiv 1707.06347, eq. 7).

    low, high: how far the ratio of new to old probability may fall below and rise above 1 and still earn.
    """
    ratio = torch.exp(log_probs_BT - old_BT)
    free = -advantages_BT * ratio
    held = -advantages_BT * ratio.clamp(1 - low, 1 + high)
    return torch.maximum(free, held), held > free


def value_loss(values_BT: Tensor, old_BT: Tensor, returns_BT: Tensor, clip: float = 0.2) -> Tensor:
    """Half the squared error of each value, free or clipped, whichever is larger (arXiv 2005.12729, section 3)."""
    free = (values_BT - returns_BT).square()
    if not clip:
        return 0.5 * free
    held = old_BT + (values_BT - old_BT).clamp(-clip, clip)
    return 0.5 * torch.maximum(free, (held - returns_BT).square())


def token_weights(mask_BT: Tensor, spread: Spread = "token", constant: float = 1.0) -> Tensor:
    """What each token counts in the loss of a whole optimizer step: (B, T), so that loss = sum(weights * per token).

    token: every drawn token alike (DAPO, arXiv 2503.14476); sequence: every answer alike, whatever its length (GRPO);
    constant: 1 / (B * constant) a token (Dr. GRPO). Made of the whole step, so cutting it into parts changes nothing.
    """
    mask = mask_BT.float()
    if spread == "token":
        return mask / mask.sum().clamp_min(1)
    if spread == "sequence":
        return mask / mask.sum(1, keepdim=True).clamp_min(1) / mask.shape[0]
    return mask / (mask.shape[0] * constant)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> float:
    """1 - var(return - value) / var(return): 1 for a perfect value function, 0 for a constant one."""
    returns, values = returns_BT[mask_BT], values_BT[mask_BT]
    spread = returns.var(correction=0)
    return float(1 - (returns - values).var(correction=0) / spread) if spread > 0 else 0.0
