"""How things are said: wordings of questions and answers, kept beside the facts in `data/` so that they read as text.

In a list of forms, the last one is held out of training for the `templates` split.
"""

from __future__ import annotations

import functools

from liuli.curriculum.knowledge import DATA, read_table

Forms = dict[str, tuple[str, ...]]  # language -> forms


@functools.cache
def forms(name: str, file: str = "wordings") -> Forms:
    """The forms of a block of `data/wordings.txt`, or of another file made so, by language."""
    return {language: tuple(split(text)) for language, text in blocks(file)[name]}


@functools.cache
def blocks(name: str) -> dict[str, list[tuple[str, str]]]:
    """Block -> its (left, right) lines, of a file made of `[block]` and `left = right`."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in (DATA / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            found[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            left, _, right = line.partition(" = ")
            next(reversed(found.values())).append((left, right))
    return found


@functools.cache
def rows(name: str) -> tuple[dict[str, str], ...]:
    """The rows of a table of wordings, cell by column; a cell `-` is empty."""
    table = read_table(DATA / f"{name}.tsv")
    return tuple({column: "" if cell == "-" else cell for column, cell in row.items()} for _, row in table)


def split(text: str) -> list[str]:
    """The forms of a cell, between bars."""
    return [form.strip() for form in text.split(" | ")] if text else []
