"""The figures a build is judged by, each with its target, in one place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from liuli.curriculum import skills
from liuli.evals.proportion import score

LANGUAGES = ("en", "zh")
A_ROUND = 12  # questions of each figure and language in a round of asking
Cell = tuple[str, str, str]  # skill, language, split


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
        return skill in self.skills or family(skill) == self.family


CALCULATE = tuple(f"calculate_{what}" for what in ("add", "subtract", "multiply", "divide", "two"))
UNKNOWN = tuple(f"unknown_{what}" for what in ("country", "element", "animal", "person", "word"))

HEADLINES = (
    Headline("facts", "Real facts", "真实知识", 0.98, family="facts"),
    Headline("calculator", "Calculator call", "调用计算器", 0.99, CALCULATE),
    Headline("names", "Names, three turns", "三轮对话记住名字", 0.98, ("remember_name",)),
    Headline("later", "After other questions", "换了话题再问", 0.9, ("later",)),
    Headline("translation", "Translations", "翻译", 0.95, ("translate_word", "translate_back")),
    Headline("unknown", "“I don’t know”", "“我不知道”", 0.95, UNKNOWN),
    Headline("addition", "Addition in steps", "分步加法", 0.95, ("add_steps",)),
    Headline("citation", "Copying, cited", "带标注的引用", 0.95, ("cite_name", "cite_number")),
    Headline("stories", "Stories, no loops", "故事不打转", 0.98, ("story", "story_named")),
)


def family(skill: str) -> str:
    """The family a skill belongs to; its own name if the curriculum does not know it."""
    known = skills().get(skill)
    return known.family if known else skill


def headline(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """These figures from the table of cells: `{"name", "title", "target", "en": score, "zh": score}` each.

    Held-out splits only, pooled; a skill that has none counts as it is. A figure nothing was asked about is left out.
    """
    cells = {(row["skill"], row["language"], row["split"]): row for row in rows}
    result = []
    for one in HEADLINES:
        entry: dict[str, Any] = {"name": one.name, "title": one.title, "target": one.target}
        for language in LANGUAGES:
            if own := [cells[cell] for cell in held_out_cells(one, language, cells)]:
                entry[language] = score(sum(row["right"] for row in own), sum(row["n"] for row in own))
        if any(language in entry for language in LANGUAGES):
            result.append(entry)
    return result


def held_out_cells(one: Headline, language: str, cells: Iterable[Cell]) -> list[Cell]:
    """The cells a figure is measured on."""
    own = [cell for cell in cells if one.covers(cell[0]) and cell[1] == language]
    held_out = {skill for skill, _, split in own if split != "train"}
    return [cell for cell in own if cell[2] != "train" or cell[0] not in held_out]


def weights(cells: Iterable[Cell]) -> dict[Cell, int]:
    """Questions of a cell in a round, so that a figure resting on few cells is as sure as one on many."""
    known = sorted(set(cells))
    often: dict[Cell, int] = {}
    for one in HEADLINES:
        for language in LANGUAGES:
            own = held_out_cells(one, language, known)
            often |= {cell: math.ceil(A_ROUND / len(own)) for cell in own}
    return often
