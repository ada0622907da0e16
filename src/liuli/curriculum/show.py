"""Samples of each skill for a person to read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

from liuli.curriculum.draw import Draw
from liuli.curriculum.items import LANGUAGES, Item
from liuli.curriculum.make import make
from liuli.curriculum.skills import skills
from liuli.errors import UsageError


def samples(
    skill: str | None = None, language: str | None = None, count: int = 1, seed: int = 0
) -> Iterator[tuple[str, str, str]]:
    """(skill, language, what it looks like) of every skill, or of one; `count` chats and, if it has any, a text."""
    if skill is not None and skill not in skills():
        raise UsageError(f"There is no skill {skill!r}", "--skill", f"choose one of: {', '.join(skills())}")
    if language not in (None, *LANGUAGES):
        raise UsageError(f"There is no language {language!r}", "--language", "choose en or zh")
    for name in [skill] if skill else skills():
        for tongue in [language] if language else LANGUAGES:
            rng = Random(f"{seed}/show/{name}/{tongue}")
            for number in range(count):
                draw = Draw(rng, tongue, "train", rng.randrange(10_000), seed)
                yield name, tongue, chat_for_people(skills()[name].item(draw))
                text = skills()[name].text
                if text is not None and number == 0:
                    yield f"{name} (text)", tongue, text(draw)


def chat_for_people(item: Item) -> str:
    """A conversation, one turn a line."""
    lines = []
    for turn in item.messages:
        calls = "".join(f"⟨{c['function']['name']} {c['function']['arguments']}⟩" for c in turn.get("tool_calls", ()))
        lines.append(f"{turn['role']:>9}: {turn['content']}{calls}".replace("\n", "\n" + " " * 11))
    return "\n".join(lines)


def show_here(skill: str | None, language: str | None, count: int, seed: int, as_json: bool) -> None:
    """The command `liuli curriculum show`."""
    found = list(samples(skill, language, count, seed))
    if as_json:
        print(json.dumps([{"skill": s, "language": x, "sample": t} for s, x, t in found], ensure_ascii=False))
        return
    for name, tongue, text in found:
        print(f"--- {name} · {tongue}\n{text}\n")


def make_here(out: Path, seed: int, size: str, workers: int, replace: bool, as_json: bool) -> None:
    """The command `liuli curriculum make`."""
    about = make(out, seed, bytes_of(size), workers, replace)
    if as_json:
        print(json.dumps(about, ensure_ascii=False))
        return
    print(f"{out}: {about['texts']:,} texts, {about['chats']:,} chats, {about['tests']:,} tests")
    print(f"{len(about['skills'])} skills, {about['facts']:,} facts, {about['people']:,} people")
    print(f"about {about['estimated_tokens'] / 1e6:.1f} million tokens")


def bytes_of(size: str) -> int:
    """A size as people write it: 500KB, 50MB, 1.5GB or plain bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)b?", size.strip().lower())
    if match is None:
        raise UsageError(
            f"Cannot read the size {size!r}", "--size", "write a number and KB, MB or GB, for example 50MB"
        )
    return int(float(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[match[2]])
