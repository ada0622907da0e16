"""How each kind of fact is asked, answered and told, in both languages.

A `Relation` belongs to one (kind, attribute) of the knowledge base; its wordings are in `data/relations.tsv`. They are
its own idiomatic questions and the common frames around its noun phrase ("the capital of X" -> "Tell me the capital
of X."). One frame a relation is held out: it is never asked with it in training, though other relations are.
`{s}` is the subject, `{a}` the subject with its English article, `{v}` the value (`{v:a}` with article), `{b}` a unit.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from liuli.curriculum.knowledge import Fact, facts
from liuli.curriculum.wordings import forms, rows, split

FRAMES = {
    "en": (
        "What is {n}?",
        "Tell me {n}.",
        "Do you know {n}?",
        "Please tell me {n}.",
        "I want to know {n}.",
        "Can you tell me {n}?",
    ),
    "zh": ("{n}是什么？", "告诉我{n}。", "请告诉我{n}。", "你知道{n}吗？", "{n}？", "我想知道{n}。", "能说说{n}吗？"),
}


@dataclass(frozen=True)
class Wording:
    """One language of a relation: noun phrase, own questions, the form of the answer, sentences that tell the fact."""

    noun: str
    asks: tuple[str, ...]
    answer: str
    tells: tuple[str, ...]


@dataclass(frozen=True)
class Relation:
    """One attribute of one kind of thing. back: the same fact asked the other way round, {v} and {s} exchanged."""

    key: str  # kind.attribute
    en: Wording
    zh: Wording
    back: bool = False  # this relation is itself such a reverse

    def wording(self, language: str) -> Wording:
        """The wording in a language."""
        return self.en if language == "en" else self.zh

    def label(self, language: str) -> str:
        """The name of the attribute alone, as a heading: "The capital", "首都"; empty if the noun phrase has none."""
        noun = self.wording(language).noun
        if language == "zh":
            return noun.removeprefix("{s}的") if noun.startswith("{s}的") else ""
        return noun.rsplit(" of {", 1)[0].capitalize() if noun.endswith((" of {s}", " of {a}")) else ""

    @functools.cache  # noqa: B019 - a relation lives as long as the program
    def forms(self, language: str) -> tuple[str, ...]:
        """All question forms with the noun phrase filled in; the last is held out for the `templates` split."""
        wording = self.wording(language)
        frames = [frame.format(n=wording.noun) for frame in FRAMES[language]] if wording.noun else []
        turn = _rank(self.key) % len(frames) if frames else 0
        return (*wording.asks, *frames[turn + 1 :], *frames[: turn + 1])


def _relations() -> tuple[Relation, ...]:
    table = rows("relations")
    pairs = zip(table[::2], table[1::2], strict=True)  # a row in English, the next one in Chinese
    return tuple(Relation(en["key"], _wording(en), _wording(zh), en["back"] == "yes") for en, zh in pairs)


def _wording(row: dict[str, str]) -> Wording:
    return Wording(row["noun"], tuple(split(row["asks"])), row["answer"], tuple(split(row["tells"])))


RELATIONS = tuple(relation for relation in _relations() if relation.key != "unit")
UNIT = next(relation for relation in _relations() if relation.key == "unit")


UNCOUNTED = frozenset(forms("uncounted")["en"])


def plural(noun: str) -> bool:
    """Whether an English noun is a plural: socks, but not grass, bus, tennis, gas or rhinoceros."""
    return noun.endswith("s") and not noun.endswith(("ss", "us", "is", "gas", "ros"))


def article(noun: str) -> str:
    """The noun with a or an: an owl, a unicorn, an hour; a plural has none, nor has rice."""
    if plural(noun) or noun in UNCOUNTED:
        return noun
    vowel = noun[0].lower() in "aeiou" and not noun.lower().startswith(("uni", "eu", "one", "use", "ewe"))
    return ("an " if vowel or noun.startswith("hour") else "a ") + noun


def fill(form: str, fact: Fact, language: str) -> str:
    """A form with the fact's subject and value; a sentence begins with a capital."""
    subject, value = subject_of(fact, language), value_of(fact, language)
    text = form.replace("{s}", subject).replace("{v}", value)
    if "{a}" in text:
        text = text.replace("{a}", article(subject))
    if "{v:a}" in text:
        text = text.replace("{v:a}", article(value))
    if "{b}" in text:
        base = fact.attribute.removeprefix("in ") if language == "en" else fact.value_zh.lstrip("0123456789.")
        text = text.replace("{b}", base).replace("成个", "成")  # 等于多少个月, but 换算成月
    text = text.replace("..", ".")  # of a value that ends in a dot, as in Washington, D.C.
    return text[0].upper() + text[1:] if language == "en" and text[0] != "“" else text


def subject_of(fact: Fact, language: str) -> str:
    """The fact's subject in a language."""
    return fact.subject_en if language == "en" else fact.subject_zh


def value_of(fact: Fact, language: str) -> str:
    """The fact's value in a language."""
    return fact.value_en if language == "en" else fact.value_zh


@functools.cache
def taught() -> dict[str, tuple[tuple[Relation, Fact], ...]]:
    """Kind of thing -> every (relation, fact) that is asked, in table order. Not back from a shared value."""
    result: dict[str, list[tuple[Relation, Fact]]] = {}
    everything = facts()
    for relation in RELATIONS:
        own = [fact for fact in everything if f"{fact.kind}.{fact.attribute}" == relation.key]
        if relation.back:
            own = [
                fact
                for fact in own
                if sum(fact.value_en == f.value_en or fact.value_zh == f.value_zh for f in own) == 1
            ]
        result.setdefault(relation.key.split(".")[0], []).extend((relation, fact) for fact in own)
    result["unit"] = [(UNIT, fact) for fact in everything if fact.kind == "unit"]
    return {kind: tuple(pairs) for kind, pairs in result.items()}


@functools.cache
def about_subject(kind: str) -> dict[str, tuple[tuple[Relation, Fact], ...]]:
    """English subject -> all (relation, fact) of it, for profiles."""
    result: dict[str, list[tuple[Relation, Fact]]] = {}
    for relation, fact in taught()[kind]:
        if not relation.back:
            result.setdefault(fact.subject_en, []).append((relation, fact))
    return {subject: tuple(pairs) for subject, pairs in result.items()}


def _rank(key: str) -> int:
    return sum(map(ord, key))
