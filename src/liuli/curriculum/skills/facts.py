"""Real facts: asked one by one in chat, told densely and in both directions in text."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from liuli.curriculum.draw import Draw
from liuli.curriculum.items import Item, asked
from liuli.curriculum.knowledge import Fact
from liuli.curriculum.questions import Relation, fill, subject_of, taught, value_of

FACTS_A_DOCUMENT = 10
LISTED = 0.5  # of the documents whose relation has a name: a list costs half the tokens of sentences
Pair = tuple[Relation, Fact]

SKILLS: dict[str, tuple[str, ...]] = {  # skill -> its relations
    "capital": ("country.capital",),
    "currency": ("country.currency",),
    "country_language": ("country.language",),
    "country_place": ("country.continent",),
    "element_symbol": ("element.symbol",),
    "element_number": ("element.number",),
    "element_family": ("element.category", "element.state"),
    "planets": tuple(
        f"planet.{a}" for a in ("order", "kind", "size_rank", "year", "moons", "rings", "colour", "feature")
    ),
    "animal_class": ("animal.animal_class",),
    "animal_life": ("animal.diet", "animal.habitat", "animal.legs"),
    "animal_ways": ("animal.young", "animal.sound"),
    "foods": ("food.kind", "food.colour", "food.grows"),
    "works": tuple(f"work.{a}" for a in ("creator", "author", "inventor", "discoverer", "proposer")),
    "famous_people": ("person.field", "person.country"),
    "landmarks": ("landmark.country",),
    "jobs": ("job.does", "job.place"),
    "opposites": ("opposite.opposite",),
    "units": ("unit",),
    "calendar_facts": ("weekday.number", "month.number", "month.days", "month.season", "holiday.date"),
    "colours_shapes": ("colour.example", "shape.sides", "shape.corners"),
}


@functools.cache
def pairs_of(skill: str) -> tuple[Pair, ...]:
    """Every (relation, fact) of a skill."""
    keys = SKILLS[skill]
    return tuple(pair for pairs in taught().values() for pair in pairs if pair[0].key in keys)


def ask_about(skill: str) -> Callable[[Draw], Item]:
    """The skill that asks for one fact of this kind after the other."""

    def ask(draw: Draw) -> Item:
        return fact_item(draw, *draw.cycle(pairs_of(skill)))

    return ask


def fact_item(draw: Draw, relation: Relation, fact: Fact) -> Item:
    """One fact asked. A (subject, wording) pair may be held out, so that a question is new though its parts are not."""
    form = _form(draw, relation, fact)
    if form is None:  # no wording of this fact is held out: ask another fact
        return fact_item(draw, *draw.pick([pair for pair in taught()[fact.kind] if pair[0] is relation]))
    return answered(draw.typed(fill(draw.casual(form), fact, draw.language)), relation, fact, draw.language)


def answered(question: str, relation: Relation, fact: Fact, language: str) -> Item:
    """A question after a fact, however it is worded, with its answer."""
    answer = subject_of(fact, language) if relation.back else value_of(fact, language)
    contrary = tuple(value for value in _choices(relation.key, language) if value not in answer)
    contrary += ("没",) if answer.startswith("有") else ()  # "没有光环" holds "有光环"
    said = fill(relation.wording(language).answer, fact, language)
    return asked(question, said, answer, *_shorter(relation.key, answer), reject=contrary)


def _shorter(key: str, answer: str) -> tuple[str, ...]:
    """What says as much by itself: a number whose unit the question names, yes or no, a town without its district."""
    if key in ("unit", "month.days"):
        return ((" or " if answer.isascii() else "或").join(re.findall(r"[\d.]+", answer)),)
    if key == "planet.rings":
        return ({"has rings": "yes", "has no rings": "no", "有光环": "有", "没有光环": "没有"}[answer],)
    return (answer.partition(",")[0], answer.replace(",", "")) if "," in answer else ()


def _form(draw: Draw, relation: Relation, fact: Fact) -> str | None:
    return draw.wording(question_key(relation, fact), relation.forms(draw.language))


def question_key(relation: Relation, fact: Fact) -> str:
    """What a fact is called where its wordings are held out."""
    return f"{relation.key}/{fact.subject_en}"


@functools.cache
def _choices(key: str, language: str) -> tuple[str, ...]:
    """The values of a relation that has but a few: a question may name them all, so an answer must not."""
    values = dict.fromkeys(value_of(f, language) for pairs in taught().values() for r, f in pairs if r.key == key)
    return tuple(values) if len(values) <= 3 else ()


def tell_about(skill: str) -> Callable[[Draw], str]:
    """The text of a skill: some facts of one relation, as a list under its name or as sentences."""

    def tell(draw: Draw) -> str:
        relation, some = _page(draw, skill)
        label = relation.label(draw.language)
        if label and len(some) > 1 and draw.chance(LISTED):
            return _listed(draw, label, some)
        return join([tell_fact(draw, relation, fact) for fact in some], draw)

    return tell


def tell_fact(draw: Draw, relation: Relation, fact: Fact) -> str:
    """The fact as a sentence; now and then as a question and its answer."""
    wording = relation.wording(draw.language)
    question = None if draw.chance(0.85) else _form(draw, relation, fact)
    told = (question, wording.answer) if question else (draw.pick(wording.tells),)
    return join([fill(form, fact, draw.language) for form in told], draw)


@functools.cache
def _pages(skill: str) -> tuple[tuple[Relation, tuple[Fact, ...], int], ...]:
    """(relation, all its facts, the number of this page of them): every page of a skill's text."""
    pages: list[tuple[Relation, tuple[Fact, ...], int]] = []
    for relation in dict.fromkeys(relation for relation, _ in pairs_of(skill)):
        own = tuple(fact for other, fact in pairs_of(skill) if other is relation)
        pages += [(relation, own, page) for page in range(-(-len(own) // FACTS_A_DOCUMENT))]
    return tuple(pages)


def _page(draw: Draw, skill: str) -> tuple[Relation, list[Fact]]:
    """The next page in the round; which facts stand on it changes from round to round."""
    pages = _pages(skill)
    relation, own, page = draw.cycle(pages)
    first = draw.index // len(pages) * len(own) + page * FACTS_A_DOCUMENT
    size = min(FACTS_A_DOCUMENT, len(own) - page * FACTS_A_DOCUMENT)
    return relation, [draw.cycle(own, first + i) for i in range(size)]


def _listed(draw: Draw, label: str, some: list[Fact]) -> str:
    pairs = [(subject_of(fact, draw.language), value_of(fact, draw.language)) for fact in some]
    if draw.zh:
        return f"{label}。" + "；".join(f"{subject}：{value}" for subject, value in pairs) + "。"
    entries = "; ".join(f"{subject}: {value}" for subject, value in pairs)
    return f"{label}. {entries[0].upper()}{entries[1:]}."


def join(sentences: list[str], draw: Draw) -> str:
    """Sentences one after the other; English puts a space between."""
    return ("" if draw.zh else " ").join(sentences)
