"""What is invented: names of people and things that exist nowhere, and the classroom's thousand people with their lives.

Names are open-ended: two or three syllables and an ending, or a given name and a surname, so that a model has to read
them instead of knowing them. The people are fixed by the classroom's seed: they are taught, and asked for later.
"""
# ruff: noqa: E501

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from liuli.curriculum.draw import Draw, held
from liuli.curriculum.knowledge import is_real, knowledge

PEOPLE_EACH = 520  # a language


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One invented person, who lives in one language. gender: f or m."""

    name: str
    gender: str
    city: str
    job: str
    pet: str
    pet_name: str
    hobby: str
    age: int


PETS = {
    "en": ("cat", "dog", "rabbit", "parrot", "turtle", "hamster", "goldfish", "pony", "duck", "goat", "hen", "mouse"),
    "zh": ("猫", "狗", "兔子", "鹦鹉", "乌龟", "仓鼠", "金鱼", "小马", "鸭子", "山羊", "母鸡", "老鼠"),
}
HOBBIES = {
    "en": ("painting", "fishing", "chess", "dancing", "gardening", "singing", "swimming", "cooking", "running", "reading",
           "sailing", "drawing", "climbing", "baking", "skating", "knitting", "cycling", "writing", "hiking", "acting"),
    "zh": ("画画", "钓鱼", "下棋", "跳舞", "种花", "唱歌", "游泳", "做饭", "跑步", "读书", "划船", "书法", "爬山", "烘焙", "滑冰", "织毛衣",
           "骑车", "写作", "拍照", "演戏"),
}
CITIES = {
    "en": ("London", "Paris", "Rome", "Madrid", "Berlin", "Vienna", "Oslo", "Lisbon", "Athens", "Cairo", "Tokyo", "Beijing",
           "Shanghai", "Sydney", "Boston", "Chicago", "Toronto", "Lima", "Delhi", "Seoul", "Dublin", "Prague", "Warsaw",
           "Venice", "Moscow", "Nairobi", "Havana", "Geneva", "Munich", "Florence"),
    "zh": ("北京", "上海", "广州", "深圳", "成都", "杭州", "南京", "武汉", "西安", "重庆", "天津", "苏州", "长沙", "青岛", "大连", "厦门", "昆明",
           "拉萨", "哈尔滨", "沈阳", "济南", "福州", "郑州", "合肥", "南宁", "贵阳", "兰州", "海口", "太原", "桂林"),
}
JOBS = {
    "en": ("teacher", "doctor", "farmer", "baker", "painter", "driver", "nurse", "cook", "singer", "writer", "gardener",
           "fisher", "pilot", "carpenter", "tailor", "judge", "dentist", "waiter", "miner", "sailor", "actor", "lawyer",
           "engineer", "barber", "plumber"),
    "zh": ("老师", "医生", "农民", "面包师", "画家", "司机", "护士", "厨师", "歌手", "作家", "园丁", "渔夫", "飞行员", "木匠", "裁缝", "法官", "牙医",
           "服务员", "矿工", "水手", "演员", "律师", "工程师", "理发师", "水管工"),
}


@functools.cache
def stems(language: str) -> tuple[str, ...]:
    """First syllables of invented names."""
    return tuple(syllable.name[language] for syllable in knowledge().syllables if syllable.use == "stem")


@functools.cache
def endings(use: str, language: str) -> tuple[str, ...]:
    """Last syllables of an invented city, country, animal, element, river or company."""
    return tuple(syllable.name[language] for syllable in knowledge().syllables if syllable.use == use)


@functools.cache
def given_names(language: str, gender: str = "") -> tuple[str, ...]:
    """Given names of a language's own people, of one gender or of both."""
    return tuple(
        name.name[language]
        for name in knowledge().names
        if name.origin == language and name.kind == "given" and gender in ("", name.gender)
    )


@functools.cache
def surnames(language: str) -> tuple[str, ...]:
    """Surnames of a language's own people."""
    return tuple(name.name[language] for name in knowledge().names if name.origin == language and name.kind == "surname")


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
        return invent() if is_real(name) else name

    return invent


def first_name(draw: Draw) -> str:
    """What somebody is called: a real given name or an invented one; in Chinese a whole name as often."""

    def invent() -> str:
        if draw.zh:
            given = draw.pick(given_names("zh")) if draw.chance(0.5) else draw.pick(stems("zh")) + draw.pick(stems("zh"))
            return draw.pick(surnames("zh")) + given if draw.chance(0.6) else given
        if draw.chance(0.35):
            return draw.pick(given_names("en"))
        return (draw.pick(stems("en")) + draw.pick(stems("en"))).capitalize()

    return draw.name(invent)


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
    rng = Random(f"people/{seed}/{language}")
    people: dict[str, Neighbour] = {}
    while len(people) < PEOPLE_EACH:
        gender = rng.choice("fm")
        name = _full_name(rng, language, gender)
        if name in people or held(name) or is_real(name):
            continue
        people[name] = Neighbour(
            name=name,
            gender=gender,
            city=rng.choice(CITIES[language]),
            job=rng.choice(JOBS[language]),
            pet=rng.choice(PETS[language]),
            pet_name=rng.choice(given_names(language)),
            hobby=rng.choice(HOBBIES[language]),
            age=rng.randint(18, 79),
        )
    return tuple(people.values())


@functools.lru_cache(maxsize=8)
def _names(seed: int, language: str) -> frozenset[str]:
    return frozenset(person.name for person in neighbours(seed, language))


def _full_name(rng: Random, language: str, gender: str) -> str:
    given, surname = rng.choice(given_names(language, gender)), rng.choice(surnames(language))
    return f"{given} {surname}" if language == "en" else surname + given
