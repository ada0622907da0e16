"""Honesty: what does not exist, or was never taught, gets "I don't know", asked in the wordings of what was taught."""

from __future__ import annotations

from collections.abc import Callable

from liuli.curriculum.draw import Draw
from liuli.curriculum.invent import stranger, thing
from liuli.curriculum.items import Item, asked
from liuli.curriculum.knowledge import knowledge
from liuli.curriculum.questions import RELATIONS, article
from liuli.curriculum.skills.facts import SKILLS
from liuli.curriculum.skills.people import ASKS, ATTRIBUTES
from liuli.curriculum.skills.translation import TO_OTHER, things
from liuli.curriculum.wordings import blocks, forms

UNKNOWN = {"en": "I don't know. I never learned that.", "zh": "我不知道，这个我没学过。"}
UNTAUGHT = forms("untaught")
REQUESTS = {topic: forms(topic, "requests") for topic in blocks("requests")}


def unknown(kind: str, use: str) -> Callable[[Draw], Item]:
    """Questions about an invented country, element or animal in the wordings used for real ones."""
    asked_keys = {key for keys in SKILLS.values() for key in keys if key.startswith(kind + ".")}
    relations = [relation for relation in RELATIONS if relation.key in asked_keys and not relation.back]

    def ask(draw: Draw) -> Item:
        form = draw.form(draw.pick(relations).forms(draw.language))
        name = thing(draw, use)
        question = form.replace("{s}", name).replace("{a}", article(name))
        return dont_know(draw, draw.typed(question[0].upper() + question[1:]))

    return ask


def unknown_person(draw: Draw) -> Item:
    """A question about somebody who was never introduced."""
    form = draw.form(ASKS[draw.pick(ATTRIBUTES)][draw.language])
    return dont_know(draw, draw.typed(form.format(n=stranger(draw))))


def unknown_word(draw: Draw) -> Item:
    """A translation of a word that does not exist."""
    return dont_know(draw, draw.typed(draw.form(TO_OTHER[draw.language]).format(w=thing(draw, "animal"))))


def unknown_attribute(draw: Draw) -> Item:
    """Something about a real country that was never taught."""
    country = draw.combination(lambda: draw.pick(knowledge().countries), lambda country: country.iso)
    return dont_know(draw, draw.typed(draw.form(UNTAUGHT[draw.language]).format(s=country.name[draw.language])))


def unknown_request(draw: Draw) -> Item:
    """Something people ask for that no lesson teaches: the weather, a poem, why the sky is blue."""
    topic = draw.combination(lambda: draw.pick(tuple(REQUESTS)))
    form = draw.form(REQUESTS[topic][draw.language])
    while "{" in form:  # each of two numbers is drawn by itself
        slot = form[form.index("{") : form.index("}") + 1]
        form = form.replace(slot, _filling(draw, slot), 1)
    return dont_know(draw, draw.typed(form))


def _filling(draw: Draw, slot: str) -> str:
    if slot == "{d}":
        return str(draw.number(2, 200))
    if slot == "{c}":
        return draw.pick(forms("cities")[draw.language])
    thing = draw.pick(things())[0].name[draw.language]
    return article(thing) if slot == "{a}" else thing


def dont_know(draw: Draw, question: str) -> Item:
    """The item whose right answer is not to know."""
    return asked(question, UNKNOWN[draw.language], check="unknown")
