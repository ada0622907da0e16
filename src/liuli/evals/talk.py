"""How a model talks, whatever it says: does it end by itself, does it go round in circles, how long is an answer.

Comes in: an engine and prompts as tokens. Goes out: shares and means. Answers are sampled as a chat samples them,
because loops that greedy decoding falls into may never be seen by a user, and the other way round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from liuli.engine import Engine, Sampling

CHAT = Sampling(temperature=0.8, top_p=0.95, max_tokens=200, seed=0)
GRAM = 4
AT_LEAST = 8  # answers listened to, whatever the time; they show how fast this machine is
LOOP_TURNS, LOOP_TOKENS = 3, 8  # a loop: a block three times in a row, eight tokens or more in all ("ha ha ha" is none)


def repeated_share(tokens: Sequence[int], n: int = GRAM) -> float:
    """Share of the n-grams that stood before in the same answer: 1 - distinct / all; 0 when it is too short."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def has_loop(tokens: Sequence[int]) -> bool:
    """Whether a block of tokens stands LOOP_TURNS times in a row somewhere, LOOP_TOKENS tokens or more in all."""
    for period in range(1, len(tokens) // LOOP_TURNS + 1):
        needed, run = max(LOOP_TURNS * period, LOOP_TOKENS) - period, 0
        for here, there in zip(tokens, tokens[period:], strict=False):
            run = run + 1 if here == there else 0
            if run >= needed:
                return True
    return False


def talk(
    engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling = CHAT, seconds: float = math.inf
) -> dict[str, Any]:
    """Figures over the answers: n, and ended, looping, repeated (shares) and length (mean, in tokens).

    seconds: only as many of the prompts, from the front, as at the speed of the first ones end in time.
    """
    began = time.monotonic()
    answers = engine.generate(prompts[:AT_LEAST], sampling)
    spent = time.monotonic() - began
    more = min(float(len(prompts)), AT_LEAST * (seconds - spent) / max(spent, 1e-9))
    answers += engine.generate(prompts[AT_LEAST : AT_LEAST + max(0, int(more))], sampling)
    stops = set(engine.tokenizer.stops)
    told = [[token.id for token in answer.tokens if token.id not in stops] for answer in answers]
    n = max(len(answers), 1)
    return {
        "n": len(answers),
        "ended": sum(answer.stopped_by == "end" for answer in answers) / n,
        "looping": sum(map(has_loop, told)) / n,
        "repeated": sum(map(repeated_share, told)) / n,
        "length": sum(map(len, told)) / n,
    }
