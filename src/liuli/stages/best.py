"""Best of n: answers are drawn, a reward chooses one of n. Trained on what was chosen, this is rejection sampling.

The baseline of learning from preferences: no gradient is taken until `liuli sft` learns what was kept (arXiv
2307.09288, section 3.2.3; 2304.06767). The best of n is at most log n - (n - 1)/n nats from the model (2401.01879).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from liuli.errors import UsageError
from liuli.stages.experience import Reward
from liuli.stages.rollout import Rollouts, Writer, roll_out
from liuli.text import Message
from liuli.text.chat import Messages

AT_ONCE = 1024  # answers that are drawn and scored together


@dataclass(frozen=True)
class Best:
    """The answer to prompt `number` that scored highest of n, and the mean score of those that ended by themselves."""

    number: int
    produced: tuple[Message, ...]
    score: float
    mean: float


def best_of(
    engine: Writer,
    prompts: Sequence[Messages],
    reward: Callable[[Rollouts], Reward],
    n: int = 16,
    *,
    temperature: float = 1.0,
    max_tokens: int = 128,
    seed: int = 0,
) -> Iterator[Best]:
    """The best of n answers to each prompt, in order; prompts to which no answer ended by itself are left out.

    Of equal scores the first counts. Raises UsageError for n below 1, LiuliError for a prompt that does not fit.
    """
    if n < 1:
        raise UsageError(f"the best of {n} answers is none", "n", "give 1 or more")
    size = max(1, AT_ONCE // n)
    for start in range(0, len(prompts), size):
        numbers = [number for number in range(start, min(start + size, len(prompts))) for _ in range(n)]
        seeds = [((seed * 1_000_003 + start) * n + place) * 8 for place in range(len(numbers))]
        asked = [prompts[number] for number in numbers]
        rollouts = roll_out(engine, asked, temperature=temperature, max_tokens=max_tokens, seeds=seeds)
        rollouts = replace(rollouts, prompt_B=torch.tensor(numbers))
        scores_PN = torch.where(rollouts.finished_B, reward(rollouts).scores_B, -math.inf).view(-1, n)
        for place, scores_N in enumerate(scores_PN):
            best = int(scores_N.argmax())
            if math.isfinite(score := float(scores_N[best])):
                produced = rollouts.produced[place * n + best]
                yield Best(start + place, produced, score, float(scores_N[scores_N.isfinite()].mean()))


def most_kl(n: int) -> float:
    """The most that the best of n can be away from the model, in nats an answer."""
    return math.log(n) - (n - 1) / n
