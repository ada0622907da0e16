"""The eight figures a build is judged by, each with its target, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from liuli.evals.proportion import score

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Headline:
    """One promise. skills: the curriculum's skills it is measured on. target: the share that must be right."""

    name: str
    title: str
    title_zh: str
    target: float
    skills: tuple[str, ...]


HEADLINES = (
    Headline("facts", "Real facts", "真实知识", 0.98, ("capital", "element")),
    Headline("calculator", "Calculator call", "调用计算器", 0.99, ("calculator",)),
    Headline("names", "Names, three turns", "三轮记住名字", 0.98, ("name_memory",)),
    Headline("translation", "Translations", "翻译", 0.95, ("translation",)),
    Headline("unknown", "“I don’t know”", "“我不知道”", 0.95, ("unknown",)),
    Headline("addition", "Addition in steps", "分步加法", 0.95, ("addition_steps",)),
    Headline("citation", "Copying, cited", "带标注的引用", 0.95, ("citation",)),
    Headline("stories", "Stories, no loops", "故事不打转", 0.98, ("story",)),
)


def headline(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The eight figures from the table of cells: `{"name", "title", "target", "en": score, "zh": score}` each.

    Held-out splits only, pooled; a skill that has none (a fact can be reworded but not held out) counts as it is.
    A figure nothing was asked about is left out.
    """
    result = []
    for one in HEADLINES:
        entry: dict[str, Any] = {"name": one.name, "title": one.title, "target": one.target}
        for language in LANGUAGES:
            own = [row for row in rows if row["skill"] in one.skills and row["language"] == language]
            held_out = [row for row in own if row["split"] != "train" or not _has_held_out(own, row["skill"])]
            if held_out:
                entry[language] = score(sum(row["right"] for row in held_out), sum(row["n"] for row in held_out))
        if any(language in entry for language in LANGUAGES):
            result.append(entry)
    return result


def _has_held_out(rows: Sequence[dict[str, Any]], skill: str) -> bool:
    return any(row["skill"] == skill and row["split"] != "train" for row in rows)
