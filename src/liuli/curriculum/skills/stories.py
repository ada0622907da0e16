"""Short stories with a plot, from a grammar in `data/stories.*.txt`: eight plots, each step told in several ways.

The number of distinct sentences is counted exactly: of every way of telling a step, the product of the choices in it.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass

from liuli.curriculum.draw import Draw
from liuli.curriculum.invent import first_name, given_names
from liuli.curriculum.items import Item, asked
from liuli.curriculum.knowledge import DATA, knowledge
from liuli.curriculum.wordings import forms

PRONOUNS = {"f": {"he": "she", "his": "her", "him": "her"}, "m": {"he": "he", "his": "his", "him": "him"}}
_SLOT = re.compile(r"\{(\w+)\}")
ASKED = forms("story")
ASKED_NAMED = forms("story_named")
ASKED_ANY = forms("story_any")


@dataclass(frozen=True)
class Grammar:
    """slots: what may stand in each brace. plots: each a list of steps, each a list of ways to tell it."""

    slots: dict[str, tuple[str, ...]]
    plots: tuple[tuple[tuple[str, ...], ...], ...]


def tell_story(draw: Draw) -> Item:
    """A story about an animal asked for; now and then about any."""
    if draw.split == "train" and draw.chance(0.1):
        return asked(draw.pick(ASKED_ANY[draw.language]), story_text(draw), check="story")
    hero = draw.cycle(grammar(draw.language).slots["hero"])
    return asked(draw.form(ASKED[draw.language]).format(h=hero), write(draw, hero), hero, check="story")


def tell_named(draw: Draw) -> Item:
    """A story about an animal whose name the user gives."""
    hero = draw.cycle(grammar(draw.language).slots["hero"])
    name = first_name(draw)
    return asked(
        draw.form(ASKED_NAMED[draw.language]).format(h=hero, n=name), write(draw, hero, name), hero, name, check="story"
    )


def story_text(draw: Draw) -> str:
    """A story about any animal."""
    return write(draw, draw.cycle(grammar(draw.language).slots["hero"]))


def write(draw: Draw, hero: str, name: str | None = None) -> str:
    """Draw a plot, what stands in its slots, and a way to tell each step."""
    rules = grammar(draw.language)
    filled = {slot: draw.pick(options) for slot, options in rules.slots.items()}
    gender = _genders().get(name or "", "fm"[draw.number(0, 1)])
    filled |= {"hero": hero, "name": name or draw.pick(story_names(draw.language, "name", gender))}
    while filled["friend"] == hero:
        filled["friend"] = draw.pick(rules.slots["friend"])
    filled["pal"] = filled["name"]
    while filled["pal"] == filled["name"]:
        filled["pal"] = draw.pick(story_names(draw.language, "pal"))
    filled |= PRONOUNS[gender]
    sentences = []
    for ways in draw.pick(rules.plots):
        sentence = draw.pick(ways)
        for slot in _slots_of(sentence):
            word = filled[slot.lower()]
            sentence = sentence.replace("{" + slot + "}", word if slot.islower() else word.capitalize())
        sentences.append(sentence)
    return ("" if draw.zh else " ").join(sentences)


@functools.cache
def _genders() -> dict[str, str]:
    """English given name -> f or m, of those that somebody has; an invented one may be either."""
    return {one.name.en: one.gender for one in knowledge().names if (one.origin, one.kind) == ("en", "given")}


@functools.cache
def story_names(language: str, slot: str, gender: str = "") -> tuple[str, ...]:
    """Names of the animals in stories: English given names by gender; Chinese pet names, which have none.

    slot: "name" or "pal". No name is both, for a model that says the likeliest would give both the same.
    """
    groups = [given_names("en", x) for x in gender or "fm"] if language == "en" else [grammar("zh").slots["called"]]
    return tuple(name for group in groups for name in group[("name", "pal").index(slot) :: 2])


@functools.cache
def grammar(language: str) -> Grammar:
    """The story grammar of a language."""
    slots: dict[str, tuple[str, ...]] = {}
    plots: list[list[tuple[str, ...]]] = []
    for line in (DATA / f"stories.{language}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("[plot"):
            plots.append([])
        elif line and not line.startswith("#"):
            if plots:
                plots[-1].append(tuple(way.strip() for way in line.split(" | ")))
            else:
                slot, _, words = line.partition(" = ")
                slots[slot] = tuple(word.strip() for word in words.split(","))
    slots["friend"] = slots["hero"]
    return Grammar(slots, tuple(tuple(plot) for plot in plots))


def distinct_sentences(language: str) -> int:
    """How many different sentences the stories can hold, names given by a user not counted."""
    ways = {way for plot in grammar(language).plots for step in plot for way in step}
    return sum(count_expansions(way, language) for way in ways)


def count_expansions(way: str, language: str) -> int:
    """In how many ways a step can be filled: hero and friend differ; pronouns follow the name."""
    used = {slot.lower() for slot in _slots_of(way)}
    sizes = {slot: len(options) for slot, options in grammar(language).slots.items()}
    sizes |= {slot: len(story_names(language, slot)) for slot in ("name", "pal")}
    pronouns = used & {"he", "his", "him"}
    total = math.prod(sizes[slot] for slot in used - pronouns)
    if {"hero", "friend"} <= used:
        total = total // sizes["hero"] * (sizes["hero"] - 1)
    return total * (2 if pronouns and "name" not in used else 1)


@functools.cache
def _slots_of(way: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_SLOT.findall(way)))
