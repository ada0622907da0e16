"""What learning from comparisons consists of: pure functions on tensors.

Log-probabilities of answers are *summed* over the tokens that the assistant produced, the end token among them; a mean
would be another objective.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["sigmoid", "ipo"]
Combine = Literal["mean", "min", "cautious"]


# --- reward models ---------------------------------------------------------------------------------------------------


def pairwise_loss(chosen_P: Tensor, rejected_P: Tensor, group_P: Tensor, margin_P: Tensor | None = None) -> Tensor:
    """Bradley-Terry: -log sigmoid(chosen - rejected - margin), each prompt one unit: float scalar, a sum over prompts.

    group_P: int64, which prompt a pair belongs to (0..). The pairs of a prompt are averaged first, so that one with
    many answers counts as much as one with two (arXiv 2203.02155, eq. 1).
    """
    gap = chosen_P - rejected_P if margin_P is None else chosen_P - rejected_P - margin_P
    each = -F.logsigmoid(gap)  # log(1 + exp(x)) would be infinite at 800
    groups = int(group_P.max()) + 1
    total = torch.zeros(groups, dtype=each.dtype, device=each.device).index_add(0, group_P, each)
    count = torch.bincount(group_P, minlength=groups).clamp_min(1)
    return (total / count).sum()


def combine(scores_EB: Tensor, kind: Combine = "cautious", caution: float = 0.5) -> Tensor:
    """One score for each answer from an ensemble's (E, B): mean, min, or mean - caution * standard deviation."""
    if kind == "min":
        return scores_EB.amin(0)
    mean = scores_EB.mean(0)
    return mean if kind == "mean" else mean - caution * scores_EB.std(0, correction=0)


def bayes_accuracy(probability_P: Tensor) -> float:
    """The best share of comparisons anyone can foretell when the judge picks the first with these probabilities."""
    return float(torch.maximum(probability_P, 1 - probability_P).mean())


# --- learning from comparisons without a reward model ----------------------------------------------------------------


def dpo_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    reference_chosen_P: Tensor,
    reference_rejected_P: Tensor,
    beta: float = 0.1,
    kind: Kind = "sigmoid",
    smoothing: float = 0.0,
) -> Tensor:
    """The loss of each pair from summed log-probabilities (arXiv 2305.18290, eq. 7); ipo: arXiv 2310.12036, eq. 17.

    smoothing: the share of comparisons taken to be flipped (cDPO, https://ericmitchell.ai/cdpo.pdf).
    """
    gap = (chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P)
    if kind == "ipo":
        return (gap - 1 / (2 * beta)).square()
    return -(1 - smoothing) * F.logsigmoid(beta * gap) - smoothing * F.logsigmoid(-beta * gap)


def kto_loss(log_probs_B: Tensor, reference_B: Tensor, good_B: Tensor, kl: Tensor, beta: float = 0.1) -> Tensor:
    """The loss of each answer with a thumb (arXiv 2402.01306, eq. 8).

    good_B: bool. kl: scalar, the divergence of policy from reference, estimated on answers to *other* prompts
    (`mismatched_kl`); no gradient flows through it.
    """
    gain = log_probs_B - reference_B
    sign = torch.where(good_B, 1.0, -1.0).to(gain.dtype)
    return 1 - torch.sigmoid(beta * sign * (gain - kl.detach()))


def mismatched_kl(log_probs_B: Tensor, reference_B: Tensor) -> Tensor:
    """KTO's estimate of the divergence: the mean gain of answers under prompts they do not belong to, at least 0."""
    return (log_probs_B - reference_B).mean().clamp_min(0).detach()
