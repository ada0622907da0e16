"""Small talk: greetings, thanks, goodbyes, and who Liuli is. One question has one answer, so greedy is right."""

from __future__ import annotations

from collections.abc import Callable

from liuli.curriculum.draw import Draw
from liuli.curriculum.items import Item, asked
from liuli.curriculum.wordings import blocks, split

Pairs = tuple[tuple[tuple[str, ...], str], ...]  # (wordings, the last held out; the answer)


def _talk() -> dict[str, dict[str, Pairs]]:
    talk: dict[str, dict[str, Pairs]] = {}
    for block, lines in blocks("smalltalk").items():
        kind, language = block.split()
        talk.setdefault(kind, {})[language] = tuple((tuple(split(forms)), answer) for answer, forms in lines)
    return talk


TALK = _talk()


def small_talk(kind: str) -> Callable[[Draw], Item]:
    """The skill of one kind of small talk."""

    def talk(draw: Draw) -> Item:
        forms, answer = draw.cycle(TALK[kind][draw.language])
        return asked(draw.typed(draw.form(forms)), answer, check="exact")

    return talk


def pleasantry(draw: Draw) -> Item:
    """Any small talk that may stand in the middle of a conversation."""
    kind = draw.pick(("identity", "feelings", "feelings", "farewell"))
    forms, answer = draw.pick(pleasantries(draw.language)[kind])
    return asked(draw.typed(draw.form(forms)), answer, check="exact")


def pleasantries(language: str) -> dict[str, Pairs]:
    """Who Liuli is, feelings, and of farewells the thanks."""
    talk = {kind: pairs[language] for kind, pairs in TALK.items()}
    return {"identity": talk["identity"], "feelings": talk["feelings"], "farewell": talk["farewell"][:1]}
