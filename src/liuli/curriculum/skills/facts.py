"""Real facts: asked one by one in chat, told densely and in both directions in text."""
# ruff: noqa: E501

from __future__ import annotations

import functools
from collections.abc import Callable

from liuli.curriculum.draw import Draw, held
from liuli.curriculum.items import Item, asked
from liuli.curriculum.knowledge import Fact
from liuli.curriculum.questions import UNIT, Relation, about_subject, article, fill, subject_of, taught, value_of

FACTS_A_DOCUMENT = 8
Pair = tuple[Relation, Fact]

SKILLS: dict[str, tuple[str, ...]] = {  # skill -> its relations
    "capital": ("country.capital",),
    "currency": ("country.currency",),
    "country_language": ("country.language",),
    "country_place": ("country.continent", "country.region", "country.coast"),
    "element_symbol": ("element.symbol",),
    "element_number": ("element.number",),
    "element_family": ("element.category", "element.period", "element.group", "element.state"),
    "planets": tuple(f"planet.{a}" for a in ("order", "kind", "size_rank", "year", "moons", "rings", "colour", "feature")),
    "animal_class": ("animal.animal_class",),
    "animal_life": ("animal.diet", "animal.habitat", "animal.legs"),
    "animal_ways": ("animal.feature", "animal.young", "animal.sound"),
    "foods": ("food.kind", "food.colour", "food.grows"),
    "works": ("work.kind", "work.creator"),
    "famous_people": ("person.field", "person.country", "person.known_for", "person.born"),
    "landmarks": ("landmark.kind", "landmark.country", "landmark.continent"),
    "jobs": ("job.does", "job.place"),
    "opposites": ("opposite.opposite",),
    "word_kinds": ("word.category",),
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
    forms = relation.forms(draw.language)
    if draw.split == "templates":
        form = forms[-1]
    else:
        wanted = draw.split == "combinations"
        start = draw.number(0, len(forms) - 2)
        turned = [forms[(start + i) % (len(forms) - 1)] for i in range(len(forms) - 1)]
        form = next((f for f in turned if held(f"{fact.subject_en}/{f}") == wanted), "" if wanted else turned[0])
        if not form:  # no wording of this fact is held out: ask another fact
            return fact_item(draw, *draw.pick(taught()[fact.kind]))
    language = draw.language
    answer = subject_of(fact, language) if relation.back else value_of(fact, language)
    wording = relation.wording(language)
    contrary = ("没",) if answer.startswith("有") else ()  # "没有光环" holds "有光环"
    return asked(fill(form, fact, language), fill(wording.answer, fact, language), answer, reject=contrary)


def tell_about(skill: str) -> Callable[[Draw], str]:
    """The text of a skill: a list of facts of the kind, or all that is known of two or three subjects."""

    def tell(draw: Draw) -> str:
        pairs = pairs_of(skill)
        first = draw.index * FACTS_A_DOCUMENT
        some = [draw.cycle(pairs, first + i) for i in range(min(FACTS_A_DOCUMENT, len(pairs)))]
        sentences = [tell_fact(draw, *pair) for pair in some]
        return join(sentences, draw)

    return tell


def tell_fact(draw: Draw, relation: Relation, fact: Fact) -> str:
    """The fact as a sentence, or as a question and its answer."""
    wording = relation.wording(draw.language)
    if draw.chance(0.7):
        return fill(draw.pick(wording.tells), fact, draw.language)
    question = fill(draw.pick(relation.forms(draw.language)[:-1]), fact, draw.language)
    if held(f"{fact.subject_en}/{question}"):
        return fill(wording.tells[0], fact, draw.language)
    answer = fill(wording.answer, fact, draw.language)
    return f"{question}{'' if draw.zh else ' '}{answer}"


def profile(draw: Draw, kind: str, count: int) -> str:
    """All that is known of some subjects of a kind, subject by subject."""
    subjects = list(about_subject(kind))
    parts = []
    for i in range(count):
        pairs = about_subject(kind)[draw.cycle(subjects, draw.index * count + i)]
        parts.append(join([fill(draw.pick(r.wording(draw.language).tells), f, draw.language) for r, f in pairs], draw))
    return "\n".join(parts)


def join(sentences: list[str], draw: Draw) -> str:
    """Sentences one after the other; English puts a space between."""
    return ("" if draw.zh else " ").join(sentences)


__all__ = ["SKILLS", "UNIT", "article", "ask_about", "fact_item", "join", "pairs_of", "profile", "tell_about"]
