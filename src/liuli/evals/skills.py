"""Skills: what share of the curriculum's questions a model answers rightly, by skill, language and split.

Comes in: an engine and the curriculum's items. Goes out: one result per item, and a table of cells. What is right is
decided by `curriculum.judge` alone; what a tool returns, by the engine's own tools. Knows nothing of files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Any

from liuli.curriculum import judge
from liuli.engine import TOOLS, Engine, Sampling, reply_many
from liuli.evals.headline import Cell, family, weights
from liuli.evals.proportion import score
from liuli.text import Message, render_many

Item = dict[str, Any]
LONGEST = 200  # tokens of an answer: room for nearly every story of the lessons (the longest has 202)
AT_ONCE = 512  # items in one stretch of work: the engine keeps its rows full until the last few
AT_LEAST = 64  # asked whatever the time, and the least worth a stretch: any batch lasts as long as its longest answer


@dataclass(frozen=True)
class Result:
    """One question put to the model: what it said (messages after the question) and whether that is right."""

    item: Item
    said: list[dict[str, Any]]
    right: bool

    @property
    def cell(self) -> Cell:
        return cell_of(self.item)


def cell_of(item: Item) -> Cell:
    return item["skill"], item["language"], item["split"]


def deal(
    items: Iterable[Item], limit: int | None = None, often: Mapping[Cell, int] = MappingProxyType({})
) -> list[list[Item]]:
    """Rounds: each takes one item from every cell that has any left, so that any number of whole rounds is fair.

    limit: at most this many items of a cell. often: take so many of a cell each round instead of one.
    """
    cells: dict[Cell, list[Item]] = {}
    for item in items:
        cells.setdefault(cell_of(item), []).append(item)
    rounds: list[list[Item]] = []
    for key in sorted(cells):
        kept, step = cells[key][:limit], often.get(key, 1)
        for number, start in enumerate(range(0, len(kept), step)):
            if number == len(rounds):
                rounds.append([])
            rounds[number] += kept[start : start + step]
    return rounds


def in_time(done: int, spent: float, seconds: float) -> int:
    """How many items to ask next: as many as end in time at the speed of those before them; 0 for too few."""
    if not done:
        return AT_ONCE if seconds == math.inf else AT_LEAST
    left = 0.9 * (seconds - spent)  # a smaller batch takes longer for each item
    fitting = min(float(AT_ONCE), done * left / max(spent, 1e-9))
    return int(fitting) if fitting >= AT_LEAST else 0


def replies(engine: Engine, items: Sequence[Item], sampling: Sequence[Sampling]) -> list[list[dict[str, Any]]]:
    """What the model says to each item, tools run on the way, all in one go; nothing to one that fills the context."""
    prompts = render_many([item["messages"] for item in items], engine.tokenizer, answer=True)
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt.tokens) < engine.context]
    asked = [[Message.from_dict(message) for message in items[i]["messages"]] for i in fitting]
    said: list[list[dict[str, Any]]] = [[] for _ in items]
    for i, messages in zip(fitting, reply_many(engine, asked, [sampling[i] for i in fitting], TOOLS), strict=True):
        said[i] = [message.to_dict() for message in messages]
    return said


def ask(engine: Engine, items: Sequence[Item], max_tokens: int) -> list[Result]:
    """Put the items to the model, greedy; results in the order of the items. No answer is a wrong one."""
    said = replies(engine, items, [Sampling(temperature=0.0, max_tokens=max_tokens)] * len(items))
    return [Result(item, own, bool(own) and judge(item, own)) for item, own in zip(items, said, strict=True)]


def ask_all(
    engine: Engine,
    items: Iterable[Item],
    *,
    limit: int | None = None,
    seconds: float = math.inf,
    max_tokens: int = LONGEST,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """Results of as many items as `limit` and `seconds` allow: whole rounds over the cells, and a part of the next one.

    A round has an order of chance (always the same), so that any part of it is fair too.
    """
    items = list(items)
    rounds = deal(items, limit, weights(map(cell_of, items)))
    queue = [item for one in rounds for item in Random(0).sample(one, len(one))]
    began, results = time.monotonic(), list[Result]()
    while work := queue[len(results) :][: in_time(len(results), time.monotonic() - began, seconds)]:
        results.extend(ask(engine, work, max_tokens))
        progress(len(results), len(queue))
    return results


def table(results: Iterable[Result]) -> list[dict[str, Any]]:
    """One row a cell: skill, its family, language, split and the score, sorted by these names."""
    counts: dict[Cell, list[int]] = {}
    for result in results:
        cell = counts.setdefault(result.cell, [0, 0])
        cell[0] += result.right
        cell[1] += 1
    return [
        {"skill": skill, "family": family(skill), "language": language, "split": split, **score(right, n)}
        for (skill, language, split), (right, n) in sorted(counts.items())
    ]
