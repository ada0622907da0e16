"""Many-turn talk: names and things remembered over other talk, corrections, follow-up questions."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from liuli.curriculum.draw import Draw, usable
from liuli.curriculum.invent import HOBBIES, first_name, given_name, thing
from liuli.curriculum.items import Item, Turn, after, assistant, user
from liuli.curriculum.questions import about_subject, fill, taught
from liuli.curriculum.skills.facts import SKILLS, answered, fact_item, pairs_of, question_key
from liuli.curriculum.skills.smalltalk import pleasantries, pleasantry
from liuli.curriculum.wordings import forms, rows, split


@dataclass(frozen=True)
class Memory:
    """Something told, acknowledged, and asked for later, in one language. The last of tells and asks is held out."""

    value: str  # name, given name, number, hobby, or a kind of invented thing
    tells: tuple[str, ...]
    reply: str
    asks: tuple[str, ...]
    answer: str


def _memories() -> dict[str, dict[str, Memory]]:
    found: dict[str, dict[str, Memory]] = {}
    for row in rows("memories"):
        tells, asks = tuple(split(row["tells"])), tuple(split(row["asks"]))
        memory = Memory(row["value"], tells, row["reply"], asks, row["answer"])
        found.setdefault(row["what"], {})[row["language"]] = memory
    return found


MEMORIES = _memories()
CORRECTIONS = {"en": "Sorry, {v}! Now I know.", "zh": "对不起，{v}！我记住了。"}
SISTERS = {"en": "Say hello to {v} from me!", "zh": "替我向{v}问好！"}


def remember(what: str) -> Callable[[Draw], Item]:
    """Told at the start, asked for after some turns of other talk."""

    def talk(draw: Draw) -> Item:
        memory = MEMORIES[what][draw.language]
        value = _value(draw, memory.value)
        messages = [*_told(draw, memory, value), *filler(draw, draw.number(1, 2))]
        return _asked_back(draw, memory, value, messages)

    return talk


def remember_corrected(draw: Draw) -> Item:
    """A name that is corrected at once: the second one counts."""
    memory = MEMORIES["name"][draw.language]
    wrong, right = first_name(draw), first_name(draw)
    reply = CORRECTIONS[draw.language]
    messages = [
        *_told(draw, memory, wrong),
        user(draw.form(forms("corrections")[draw.language]).format(v=right)),
        assistant(reply.format(v=right)),
    ]
    return _asked_back(
        draw, memory, right, [*messages, *filler(draw, draw.number(0, 1))], reject=(wrong,) if wrong != right else ()
    )


def remember_among(draw: Draw) -> Item:
    """One's own name, after somebody else's was said too."""
    memory = MEMORIES["name"][draw.language]
    own, other = first_name(draw), first_name(draw)
    reply = SISTERS[draw.language]
    other_told = [
        user(draw.pick(forms("somebody_else")[draw.language]).format(v=other)),
        assistant(reply.format(v=other)),
    ]
    own_told = _told(draw, memory, own)
    first, second = (own_told, other_told) if draw.chance(0.6) else (other_told, own_told)
    return _asked_back(
        draw, memory, own, [*first, *second, *filler(draw, draw.number(0, 1))], reject=(other,) if other != own else ()
    )


def remember_two(draw: Draw) -> Item:
    """Two things told, one of them asked for."""
    named = ("name", "town", "pet")
    whats = draw.pick_some(named if draw.split == "names" else (*named, "number", "hobby"), 2)
    memories = [MEMORIES[what][draw.language] for what in whats]
    values = [_value(draw, memory.value) for memory in memories]
    messages = [turn for memory, value in zip(memories, values, strict=True) for turn in _told(draw, memory, value)]
    which = draw.number(0, 1)
    return _asked_back(draw, memories[which], values[which], [*messages, *filler(draw, draw.number(0, 1))])


def follow_up(draw: Draw) -> Item:
    """A question about a country, then one that says only "its"."""
    turn = draw.cycle(_countries())
    country, *aspects = draw.combination(
        lambda: (draw.pick(_countries()) if draw.split == "combinations" else turn, *draw.pick_some(ASPECTS, 2)),
        "/".join,
    )
    pairs = {fact.attribute: (relation, fact) for relation, fact in about_subject("country")[country]}
    first, second = (pairs[aspect] for aspect in aspects)
    opening = fact_item(draw.training, *first)
    return after([opening], answered(draw.form(FOLLOW_UPS[aspects[1]][draw.language]), *second, draw.language))


def follow_other(draw: Draw) -> Item:
    """A question about one thing, then only another's name: "And of Japan?"."""
    language = draw.language
    relation, fact = draw.combination(
        lambda: draw.pick(pairs_of(draw.pick(OTHER_SKILLS))), lambda pair: f"{question_key(*pair)}/other"
    )
    first = draw.pick([other for same, other in taught()[fact.kind] if same is relation and other is not fact])
    opening = fact_item(draw.training, relation, first)
    named = _NAMED.search(relation.forms(language)[0])
    assert named is not None
    question = fill(draw.form(OTHERS[language]).replace("{s}", named.group()), fact, language)
    return after([opening], answered(draw.typed(question), relation, fact, language))


OTHERS = forms("follow_other")
OTHER_SKILLS = tuple(name for name in SKILLS if name != "units")  # of those a unit is asked for too
_NAMED = re.compile(r"“?{[sav]}”?")  # what a question is about
COUNTRY_SKILLS = ("capital", "currency", "country_language", "country_place")
ASPECTS = ("capital", "currency", "language", "continent")
FOLLOW_UPS = {key: forms(f"follow_up.{key}") for key in ("capital", "currency", "language", "continent")}


def filler(draw: Draw, turns: int) -> list[Turn]:
    """Other talk in between: a pleasantry, or a fact asked and answered."""
    messages: list[Turn] = []
    for _ in range(turns):
        if draw.chance(0.5):
            messages += pleasantry(draw.training).messages
        else:
            messages += fact_item(draw.training, *draw.pick(pairs_of(draw.pick(COUNTRY_SKILLS)))).messages
    return messages


def distinct_dialogues(language: str) -> int:
    """In how many ways training can tell, talk of other things and ask back, what is told (a name, say) not counted."""
    between = distinct_fillers(language)
    ways = {what: (len(told[language].tells) - 1, len(told[language].asks) - 1) for what, told in MEMORIES.items()}
    name = math.prod(ways["name"])
    remembered = sum(map(math.prod, ways.values())) * (between + between**2)
    corrected = name * (len(forms("corrections")[language]) - 1)
    among = name * 2 * len(forms("somebody_else")[language])
    two = sum(a * b * (ask_a + ask_b) for (a, ask_a), (b, ask_b) in itertools.permutations(ways.values(), 2))
    return remembered + (corrected + among + two) * (1 + between)


def distinct_fillers(language: str) -> int:
    """How many different questions training can put in between: pleasantries, and wordings of facts not held out."""
    polite = sum(len(wordings) - 1 for pairs in pleasantries(language).values() for wordings, _ in pairs)
    pairs = [pair for skill in COUNTRY_SKILLS for pair in pairs_of(skill)]
    return polite + sum(len(usable(question_key(*pair), pair[0].forms(language))) for pair in pairs)


@functools.cache
def _countries() -> tuple[str, ...]:
    """Countries of which every aspect is known, in English."""
    known = about_subject("country").items()
    return tuple(name for name, pairs in known if set(ASPECTS) <= {fact.attribute for _, fact in pairs})


def _told(draw: Draw, memory: Memory, value: str) -> list[Turn]:
    return [user(draw.form(memory.tells).format(v=value)), assistant(memory.reply.format(v=value))]


def _asked_back(draw: Draw, memory: Memory, value: str, before: list[Turn], reject: tuple[str, ...] = ()) -> Item:
    question, answer = draw.form(memory.asks), memory.answer.format(v=value)
    return Item([*before, user(question), assistant(answer)], "value", (value,), reject)


def _value(draw: Draw, kind: str) -> str:
    if kind == "name":
        return first_name(draw)
    if kind == "given name":
        return given_name(draw)
    if kind == "number":
        return str(draw.number(10, 9999))
    if kind == "hobby":
        return draw.pick(HOBBIES[draw.language])
    return thing(draw, kind)
