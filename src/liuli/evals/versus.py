"""Two models on the same questions, by the ground truth: who wins, who claims what nobody knows, who refuses.

Comes in: the engines of two models (before and after learning from preferences) and questions. Goes out: figures.
Answers are drawn at temperature 1, as people meet them, with the same seeds; what an answer is worth is decided by
`curriculum.worth` alone, never by a reward model.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from liuli.curriculum import practice, worth
from liuli.curriculum.preferences import ASKED, NEEDLESS
from liuli.engine import Engine, Sampling
from liuli.evals.proportion import score
from liuli.evals.skills import LONGEST, Item, replies

SPLITS = ("names", "templates")


def held_out(seed: int, count: int, classroom: int = 0) -> list[Item]:
    """Questions of held-out names and wordings, up to `count` of each skill and language, in an order of chance.

    classroom: the seed of the lessons (`curriculum.seed_of`), whose people are asked about.
    """
    items = [item for split in SPLITS for item in practice(seed, count, split=split, only=ASKED, classroom=classroom)]
    return Random(seed).sample(items, len(items))


def worths(engine: Engine, items: Sequence[Item], temperature: float = 1.0, seed: int = 0) -> list[float]:
    """What one answer to each question is worth: 1 right, -0.5 a needless "I don't know", -1 wrong or none at all."""
    seeds = (8 * (seed * len(items) + i) for i in range(len(items)))
    drawn = [Sampling(temperature, max_tokens=LONGEST, seed=own) for own in seeds]
    return [worth(item, said) for item, said in zip(items, replies(engine, items, drawn), strict=True)]


def versus(before: Sequence[float], after: Sequence[float], items: Sequence[Item]) -> dict[str, Any]:
    """The figures of two lists of worths.

    wins: of the questions where the two differ, those where the later model's answer is better, with a 95% interval.
    claims: wrong answers to what nobody taught, of those asked. refusals: "I don't know" to what was taught.
    """
    pairs = list(zip(before, after, strict=True))
    wins, losses = sum(b > a for a, b in pairs), sum(b < a for a, b in pairs)
    unknown = [i for i, item in enumerate(items) if item["check"] == "unknown"]
    known = [i for i, item in enumerate(items) if item["check"] != "unknown"]

    def share(values: Sequence[float], places: Sequence[int], value: float) -> dict[str, float | int]:
        return score(sum(values[i] == value for i in places), len(places))

    skills = {}
    for name in sorted({item["skill"] for item in items}):
        own = [i for i, item in enumerate(items) if item["skill"] == name]
        skills[name] = {"before": share(before, own, 1.0), "after": share(after, own, 1.0)}
    return {
        "wins": score(wins, wins + losses),
        "ties": len(items) - wins - losses,
        "asked": len(items),
        "right": {"before": share(before, range(len(items)), 1.0), "after": share(after, range(len(items)), 1.0)},
        "claims": {"before": share(before, unknown, -1.0), "after": share(after, unknown, -1.0)},
        "refusals": {"before": share(before, known, NEEDLESS), "after": share(after, known, NEEDLESS)},
        "skills": skills,
    }


def compare(before: Engine, after: Engine, *, seed: int = 3, count: int = 12, classroom: int = 0) -> dict[str, Any]:
    """`versus` of two models on fresh held-out questions."""
    items = held_out(seed, count, classroom)
    return versus(worths(before, items), worths(after, items), items)
