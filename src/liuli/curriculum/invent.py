"""What is invented: names of people and things that exist nowhere, and the thousand people of the classroom.

Names are open-ended: two or three syllables and an ending, or a given name and a surname, so that a model has to read
them instead of knowing them. The people are fixed by the classroom's seed: they are taught, and asked for later.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from liuli.curriculum.draw import Draw, held, held_within
from liuli.curriculum.knowledge import facts, is_real, knowledge
from liuli.curriculum.wordings import forms

PEOPLE_EACH = 520  # a language
LONGEST_ZH = (
    4  # characters: with the few before it, a name fits in one piece of the tokenizer, so it copies token by token
)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One invented person, who lives in one language. gender: f or m."""

    name: str
    gender: str
    city: str
    job: str


PETS = forms("pets")
HOBBIES = forms("hobbies")
CITIES = forms("cities")


@functools.cache
def stems(language: str) -> tuple[str, ...]:
    """First syllables of invented names."""
    return tuple(syllable.name[language] for syllable in knowledge().syllables if syllable.use == "stem")


@functools.cache
def endings(use: str, language: str) -> tuple[str, ...]:
    """Last syllables of an invented city, country, animal, element, river or company."""
    return tuple(syllable.name[language] for syllable in knowledge().syllables if syllable.use == use)


@functools.cache
def given_names(language: str, gender: str = "", held_out: bool = False) -> tuple[str, ...]:
    """Given names of a language's own people, of one gender or of both; those kept out of training or the others."""
    return tuple(
        name.name[language]
        for name in knowledge().names
        if name.origin == language
        and name.kind == "given"
        and gender in ("", name.gender)
        and held(name.name[language]) == held_out
        and not (held_out and name.name[language] in _all_facts())
    )


@functools.cache
def _all_facts() -> str:
    """Everything taught in one text: a held-out name must not be that of a famous person either."""
    return " ".join(f"{fact.subject_en} {fact.value_en} {fact.subject_zh} {fact.value_zh}" for fact in facts())


@functools.cache
def surnames(language: str) -> tuple[str, ...]:
    """Surnames of a language's own people."""
    return tuple(
        name.name[language] for name in knowledge().names if name.origin == language and name.kind == "surname"
    )


def thing(draw: Draw, use: str) -> str:
    """An invented name of a kind of thing (city, country, animal, element, river, company), held out by split."""
    return draw.name(_thing(draw, use))


def _thing(draw: Draw, use: str) -> Callable[[], str]:
    language = draw.language

    def invent() -> str:
        count = 3 if draw.chance(0.15) else 2
        name = "".join(draw.pick(stems(language)) for _ in range(count)) + draw.pick(endings(use, language))
        if language == "en" and use not in ("animal", "element"):
            name = name.capitalize()
        too_long = language == "zh" and len(name) > LONGEST_ZH
        return invent() if too_long or is_real(name) else name

    return invent


def first_name(draw: Draw) -> str:
    """What somebody is called: a given name; in Chinese a whole name as often."""

    def invent() -> str:
        given = _given(draw)
        return draw.pick(surnames("zh")) + given if draw.zh and draw.chance(0.6) else given

    return draw.name(invent)


def given_name(draw: Draw) -> str:
    """What somebody or a pet is called, without a surname."""
    return draw.name(lambda: _given(draw))


def _given(draw: Draw) -> str:
    """A given name: one in four is real, the others are invented."""
    if draw.chance(0.25):
        return draw.pick(given_names(draw.language, held_out=draw.split == "names"))
    return coined(draw)


CONSONANTS = ("b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "y", "z")
ONSETS = (  # one consonant twice as often as two, as names have them
    *(*CONSONANTS, *CONSONANTS),
    *("bl", "br", "ch", "cl", "cr", "dr", "fl", "fr", "gl", "gr", "ph", "pl", "sh", "sl", "st", "th", "tr"),
)
VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "io")
CODAS = ("", "n", "l", "r", "s", "m", "th", "ck", "nd")


def coined(draw: Draw) -> str:
    """A given name that nobody has: so many are possible that they must be copied, not known by heart."""
    if draw.zh:
        return "".join(draw.pick(_characters()) for _ in range(2))
    syllables = [draw.pick(ONSETS) + draw.pick(VOWELS) for _ in range(draw.pick((2, 2, 3)))]
    return ("".join(syllables) + draw.pick(CODAS)).capitalize()


@functools.cache
def _characters() -> tuple[str, ...]:
    """Every character of the Chinese given names."""
    return tuple(sorted(set("".join(given_names("zh") + given_names("zh", held_out=True)))))


def stranger(draw: Draw) -> str:
    """A full name that none of the classroom's people has."""
    known = _names(draw.seed, draw.language)

    def invent() -> str:
        name = _full_name(draw.rng, draw.language, "fm"[draw.number(0, 1)])
        return invent() if name in known else name

    return draw.name(invent)


@functools.lru_cache(maxsize=8)
def neighbours(seed: int, language: str) -> tuple[Neighbour, ...]:
    """The classroom's people: the same for the same seed, no two with the same name."""
    rng, jobs = Random(f"people/{seed}/{language}"), [job.name[language] for job in knowledge().jobs]
    people: dict[str, Neighbour] = {}
    while len(people) < PEOPLE_EACH:
        gender = rng.choice("fm")
        name = _full_name(rng, language, gender)
        if name in people or held_within(name) or is_real(name):
            continue
        people[name] = Neighbour(name, gender, rng.choice(CITIES[language]), rng.choice(jobs))
        for once_told in (PETS[language], given_names(language), HOBBIES[language], range(62)):
            rng.choice(once_told)  # of the same length: else everybody after would be somebody else
    return tuple(people.values())


@functools.lru_cache(maxsize=8)
def _names(seed: int, language: str) -> frozenset[str]:
    return frozenset(person.name for person in neighbours(seed, language))


def _full_name(rng: Random, language: str, gender: str) -> str:
    given, surname = rng.choice(given_names(language, gender)), rng.choice(surnames(language))
    return f"{given} {surname}" if language == "en" else surname + given
