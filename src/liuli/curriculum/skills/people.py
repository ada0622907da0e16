"""The classroom's invented people: told in text in many orders and wordings, asked about in chat."""

from __future__ import annotations

from collections.abc import Callable

from liuli.curriculum.draw import Draw
from liuli.curriculum.invent import Neighbour, neighbours
from liuli.curriculum.items import Item, asked
from liuli.curriculum.questions import article
from liuli.curriculum.wordings import forms

ATTRIBUTES = ("city", "job")  # two that stick; five were recalled one time in fifteen (docs/notebook.md)
ASKS = {key: forms(f"person.{key}") for key in ATTRIBUTES}
ANSWERS: dict[str, dict[str, str]] = {
    "city": {"en": "In {v}.", "zh": "住在{v}。"},
    "job": {"en": "{P} is {a}.", "zh": "是{v}。"},
}
TELLS = {key: forms(f"person_told.{key}") for key in ATTRIBUTES}


def ask_person(attribute: str) -> Callable[[Draw], Item]:
    """The skill that asks for one attribute of one person after the other."""

    def ask(draw: Draw) -> Item:
        person = draw.cycle(neighbours(draw.seed, draw.language))
        return person_item(draw, person, attribute)

    return ask


def person_item(draw: Draw, person: Neighbour, attribute: str) -> Item:
    """One question about one person."""
    form = draw.wording(person.name, ASKS[attribute][draw.language])
    if form is None:  # no wording for this person is held out: ask about another
        return person_item(draw, draw.pick(neighbours(draw.seed, draw.language)), attribute)
    value = getattr(person, attribute)
    answer = _fill(ANSWERS[attribute][draw.language], person, value)
    return asked(draw.typed(draw.casual(form).format(n=person.name)), answer, value)


def tell_people(attributes: tuple[str, ...], people: int) -> Callable[[Draw], str]:
    """Text about some people: their attributes in a new order each time, by name and by pronoun."""

    def tell(draw: Draw) -> str:
        everyone = neighbours(draw.seed, draw.language)
        some = [draw.cycle(everyone, draw.index * people + i) for i in range(people)]
        return "\n".join(tell_person(draw, person, attributes) for person in some)

    return tell


def tell_person(draw: Draw, person: Neighbour, attributes: tuple[str, ...]) -> str:
    """Some sentences about one person."""
    order = draw.pick_some(attributes, len(attributes))
    sentences = []
    for place, attribute in enumerate(order):
        form = draw.pick(TELLS[attribute][draw.language])
        if place and draw.chance(0.6):
            form = _with_pronoun(form, person.gender, draw.language)
        sentences.append(_fill(form, person, getattr(person, attribute)))
    return ("" if draw.zh else " ").join(sentences)


def _with_pronoun(form: str, gender: str, language: str) -> str:
    if language == "zh":
        return form.replace("{n}", "她" if gender == "f" else "他")
    form = form.replace("{n}'s", "Her" if gender == "f" else "His")
    return form.replace("{n}", "She" if gender == "f" else "He")


def _fill(form: str, person: Neighbour, value: str) -> str:
    pronoun = "She" if person.gender == "f" else "He"
    return form.format(n=person.name, v=value, a=article(value), P=pronoun)
