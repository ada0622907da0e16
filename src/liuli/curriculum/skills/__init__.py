"""The skills of the classroom and how much of it each one is: the one table to change.

A skill is a pure function from a `Draw` to an `Item` (and often one to a text). Shares are of the tokens of everything;
they are scaled to add up to one, and no skill may pass 8%.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from liuli.curriculum.draw import Draw
from liuli.curriculum.items import Item, after, item_tokens
from liuli.curriculum.skills import (
    arithmetic,
    calendar,
    citation,
    dialogue,
    facts,
    honesty,
    people,
    smalltalk,
    stories,
    strings,
)
from liuli.curriculum.skills import translation as words
from liuli.curriculum.wordings import rows

LARGEST_SHARE = 0.08
FACTS_SHARE = 37.0  # of all fact skills together, dealt out by their number of facts
# few values: fewer examples will do; values much alike, or letters: more are needed
EASE = {
    "country_place": 0.8,
    "element_family": 0.8,
    "planets": 1.5,
    "units": 1.3,
    "element_symbol": 1.3,
    "capital": 1.15,
}
ALL = ("train", "names", "templates", "combinations")
SEEN = ("train", "templates")
PARTS = ("train", "templates", "combinations")
NAMED = ("train", "names", "templates")


@dataclass(frozen=True)
class Skill:
    """One thing to learn. share: of all tokens, before scaling. text_part: how much of it is plain text, not chat."""

    name: str
    family: str
    item: Callable[[Draw], Item]
    share: float
    splits: tuple[str, ...]
    text: Callable[[Draw], str] | None = None
    text_part: float = 0.0


LONGEST_TALK = 200
"""Estimated tokens of a conversation of several items: it fits a context of 256."""
SHORT = 30  # tokens: many items are shorter


def later(draw: Draw) -> Item:
    """Any question, after one to three others that have nothing to do with it."""
    others = [skill for skill in skills().values() if skill.name != "later"]
    last = draw.pick([skill for skill in others if draw.split in skill.splits]).item(draw)
    before, room, wanted = list[Item](), LONGEST_TALK - item_tokens(last), draw.number(1, 3)
    while len(before) < wanted and room > SHORT:
        item = draw.pick(others).item(draw.training)
        if item_tokens(item) <= room:
            before.append(item)
            room -= item_tokens(item)
    return after(before, last)


def _skills() -> list[Skill]:
    s = Skill
    lives = people.tell_people(people.ATTRIBUTES, 2)
    table = [
        # name, family, function, share, splits, text, text part
        s("person_city", "people", people.ask_person("city"), 1.3, PARTS, lives, 0.6),
        s("person_job", "people", people.ask_person("job"), 1.3, PARTS, lives, 0.6),
        s("translate_word", "translation", words.translate_word, 3.0, SEEN, words.word_list, 0.4),
        s("translate_back", "translation", words.translate_back, 3.0, SEEN, words.word_list, 0.4),
        s("translate_phrase", "translation", words.translate_phrase, 0.8, PARTS),
        s("translate_sentence", "translation", words.translate_sentence, 0.9, PARTS),
        s("calculate_add", "tools", arithmetic.calculate("+"), 1.3, PARTS),
        s("calculate_subtract", "tools", arithmetic.calculate("-"), 1.3, PARTS),
        s("calculate_multiply", "tools", arithmetic.calculate("*"), 1.3, PARTS),
        s("calculate_divide", "tools", arithmetic.calculate("/"), 1.3, PARTS),
        s("calculate_two", "tools", arithmetic.calculate_two, 1.0, PARTS),
        s("problem_add", "tools", arithmetic.word_problem("+"), 0.8, ALL),
        s("problem_subtract", "tools", arithmetic.word_problem("-"), 0.8, ALL),
        s("problem_multiply", "tools", arithmetic.word_problem("*"), 0.8, ALL),
        s("problem_share", "tools", arithmetic.word_problem("/"), 0.8, ALL),
        s("convert_units", "tools", calendar.convert, 1.0, PARTS),
        s("age", "tools", calendar.age, 0.5, PARTS),
        s("add_steps", "steps", arithmetic.steps("+"), 5.4, PARTS),
        s("subtract_steps", "steps", arithmetic.steps("-"), 1.6, PARTS),
        s("remember_name", "memory", dialogue.remember("name"), 4.0, NAMED),
        s("remember_town", "memory", dialogue.remember("town"), 1.0, NAMED),
        s("remember_pet", "memory", dialogue.remember("pet"), 1.0, NAMED),
        s("remember_number", "memory", dialogue.remember("number"), 0.6, SEEN),
        s("remember_hobby", "memory", dialogue.remember("hobby"), 0.4, SEEN),
        s("remember_corrected", "memory", dialogue.remember_corrected, 0.8, NAMED),
        s("remember_among", "memory", dialogue.remember_among, 0.9, NAMED),
        s("remember_two", "memory", dialogue.remember_two, 0.8, NAMED),
        s("cite_name", "citation", citation.cite(citation.NAMED), 8.2, NAMED, citation.read_aloud, 0.25),
        s("cite_number", "citation", citation.cite(citation.NUMBERED), 7.6, NAMED, citation.read_aloud, 0.25),
        s("cite_none", "citation", citation.cite_none, 1.6, NAMED),
        s("unknown_country", "honesty", honesty.unknown("country", "country"), 1.2, NAMED),
        s("unknown_element", "honesty", honesty.unknown("element", "element"), 0.6, NAMED),
        s("unknown_animal", "honesty", honesty.unknown("animal", "animal"), 0.6, NAMED),
        s("unknown_person", "honesty", honesty.unknown_person, 2.4, NAMED),
        s("unknown_word", "honesty", honesty.unknown_word, 0.6, NAMED),
        s("unknown_attribute", "honesty", honesty.unknown_attribute, 0.5, PARTS),
        s("unknown_request", "honesty", honesty.unknown_request, 1.2, PARTS),
        s("repeat", "strings", strings.repeat, 6.0, NAMED),
        s("reverse_list", "strings", strings.reverse_list, 0.6, PARTS),
        s("count_words", "strings", strings.count_words, 0.4, PARTS),
        s("spell", "strings", strings.spell, 0.5, SEEN),
        s("first_or_last", "strings", strings.first_or_last, 0.5, SEEN),
        s("odd_one_out", "strings", strings.odd_one_out, 0.5, PARTS),
        s("yes_or_no", "strings", strings.yes_or_no, 0.4, PARTS),
        s("compare", "numbers", strings.compare, 0.6, PARTS),
        s("sort_numbers", "numbers", strings.sort_numbers, 0.5, PARTS),
        s("even_or_odd", "numbers", strings.even_or_odd, 0.3, PARTS),
        s("next_number", "numbers", strings.next_number, 0.4, PARTS),
        s("after_or_before", "calendar", calendar.after_or_before, 0.4, SEEN),
        s("leap_year", "calendar", calendar.leap_year, 0.3, PARTS),
        s("follow_up", "dialogue", dialogue.follow_up, 1.2, PARTS),
        s("follow_other", "dialogue", dialogue.follow_other, 2.0, PARTS),
        s("later", "dialogue", later, 1.0, NAMED),
        s("greeting", "dialogue", smalltalk.small_talk("greeting"), 0.45, SEEN),
        s("identity", "dialogue", smalltalk.small_talk("identity"), 0.5, SEEN),
        s("reactions", "dialogue", smalltalk.small_talk("reactions"), 0.35, SEEN),
        s("farewell", "dialogue", smalltalk.small_talk("farewell"), 0.3, SEEN),
        s("feelings", "dialogue", smalltalk.small_talk("feelings"), 0.35, SEEN),
        s("story", "stories", stories.tell_story, 3.8, SEEN, stories.story_text, 0.55),
        s("story_named", "stories", stories.tell_named, 4.2, NAMED),
    ]
    weights = {name: len(facts.pairs_of(name)) * EASE.get(name, 1.0) for name in facts.SKILLS}
    for name, weight in weights.items():
        share = FACTS_SHARE * weight / sum(weights.values())
        table.append(s(name, "facts", facts.ask_about(name), share, PARTS, facts.tell_about(name), 0.45))
    return table


@functools.cache
def skills() -> dict[str, Skill]:
    """Every skill by its name."""
    return {skill.name: skill for skill in _skills()}


@functools.cache
def shares() -> dict[str, float]:
    """Skill -> its share of all tokens; they add up to one."""
    total = sum(skill.share for skill in skills().values())
    return {name: skill.share / total for name, skill in skills().items()}


@functools.cache
def chinese_titles() -> dict[str, str]:
    """Skill -> what a Chinese report calls it; in English its name will do."""
    return {row["skill"]: row["zh"] for row in rows("skills")}


__all__ = ["LARGEST_SHARE", "LONGEST_TALK", "Skill", "chinese_titles", "shares", "skills"]
