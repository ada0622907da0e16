"""The eight figures a build is judged by, each with its target, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from liuli.curriculum import skills
from liuli.evals.proportion import score

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Headline:
    """One promise. target: the share of answers that must be right. skills, family: what it is measured on."""

    name: str
    title: str
    title_zh: str
    target: float
    skills: tuple[str, ...] = ()
    family: str = ""

    def covers(self, skill: str) -> bool:
        known = skills().get(skill)
        return skill in self.skills or (known is not None and known.family == self.family)


CALCULATE = tuple(f"calculate_{what}" for what in ("add", "subtract", "multiply", "divide", "two"))
UNKNOWN = tuple(f"unknown_{what}" for what in ("country", "element", "animal", "person", "word"))

HEADLINES = (
    Headline("facts", "Real facts", "真实知识", 0.98, family="facts"),
    Headline("calculator", "Calculator call", "调用计算器", 0.99, CALCULATE),
    Headline("names", "Names, three turns", "三轮记住名字", 0.98, ("remember_name",)),
    Headline("translation", "Translations", "翻译", 0.95, ("translate_word", "translate_back")),
    Headline("unknown", "“I don’t know”", "“我不知道”", 0.95, UNKNOWN),
    Headline("addition", "Addition in steps", "分步加法", 0.95, ("add_steps",)),
    Headline("citation", "Copying, cited", "带标注的引用", 0.95, ("cite_name", "cite_number")),
    Headline("stories", "Stories, no loops", "故事不打转", 0.98, ("story", "story_named")),
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
            own = [row for row in rows if one.covers(row["skill"]) and row["language"] == language]
            held_out = [row for row in own if row["split"] != "train" or not _has_held_out(own, row["skill"])]
            if held_out:
                entry[language] = score(sum(row["right"] for row in held_out), sum(row["n"] for row in held_out))
        if any(language in entry for language in LANGUAGES):
            result.append(entry)
    return result


def _has_held_out(rows: Sequence[dict[str, Any]], skill: str) -> bool:
    return any(row["skill"] == skill and row["split"] != "train" for row in rows)
