"""Best of n: answers are drawn, a reward chooses one of n. Trained on what was chosen, this is rejection sampling.

The baseline of learning from preferences: no gradient is taken until `liuli sft` learns what was kept (arXiv
2307.09288, section 3.2.3; 2304.06767). The best of n is at most log n - (n - 1)/n nats from the model (2401.01879).
The best beside the worst is a comparison of the model's own answers, for `liuli dpo` (2309.06657).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from liuli.errors import LiuliError, UsageError
from liuli.stages.experience import Reward
from liuli.stages.rollout import Rollouts, Writer, fitting, roll_out
from liuli.text import Message
from liuli.text.chat import Messages

AT_ONCE = 1024  # answers that are drawn and scored together


@dataclass(frozen=True)
class Best:
    """The answer to prompt `number` that scored highest of n; of those that ended by themselves the mean score, and
    the answer that scored lowest."""

    number: int
    produced: tuple[Message, ...]
    score: float
    mean: float
    worst: tuple[Message, ...]
    worst_score: float


def best_of(
    engine: Writer,
    prompts: Sequence[Messages],
    reward: Callable[[Rollouts], Reward],
    n: int = 16,
    *,
    temperature: float = 1.0,
    max_tokens: int = 128,
    seed: int = 0,
    warn: Callable[[str], None] = lambda what: None,
) -> Iterator[Best]:
    """The best of n answers to each prompt, in order; prompts to which no answer ended by itself are left out.

    Of equal scores the first counts. warn: is told how many prompts do not fit. Raises UsageError for n below 1,
    LiuliError where no prompt fits, and for a reward that is no number.
    """
    if n < 1:
        raise UsageError(f"the best of {n} answers is none", "n", "give 1 or more")
    size, fit = max(1, AT_ONCE // n), fitting(prompts, engine.tokenizer, engine.context, warn)
    for start in range(0, len(fit), size):
        some = fit[start : start + size]
        numbers = [number for number in some for _ in range(n)]
        seeds = [((seed * 1_000_003 + start) * n + place) * 8 for place in range(len(numbers))]
        asked = [prompts[number] for number in numbers]
        rollouts = roll_out(engine, asked, temperature=temperature, max_tokens=max_tokens, seeds=seeds)
        rollouts = replace(rollouts, prompt_B=torch.tensor(numbers))
        scores_PN, ended_PN = reward(rollouts).scores_B.view(-1, n), rollouts.finished_B.view(-1, n)
        if not scores_PN.isfinite().all():
            raise LiuliError("the reward of an answer is not a number", f"prompts from {start}", "look at the reward")
        for place, (scores_N, ended_N) in enumerate(zip(scores_PN, ended_PN, strict=True)):
            if ended_N.any():
                best = int(torch.where(ended_N, scores_N, -math.inf).argmax())
                worst = int(torch.where(ended_N, scores_N, math.inf).argmin())
                said, scores = rollouts.produced[place * n : (place + 1) * n], scores_N.tolist()
                mean = float(scores_N[ended_N].mean())
                yield Best(some[place], said[best], scores[best], mean, said[worst], scores[worst])


def most_kl(n: int) -> float:
    """The most that the best of n can be away from the model, in nats an answer."""
    return math.log(n) - (n - 1) / n
