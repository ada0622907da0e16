"""Reading: passages about invented things, a question, the answer copied with the number of its passage."""
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from liuli.curriculum.draw import Draw
from liuli.curriculum.invent import first_name, thing
from liuli.curriculum.items import Item, asked


@dataclass(frozen=True)
class Schema:
    """A sentence about {e} with the value {v}, and its questions (the last one held out), in one language."""

    entity: str  # a use of `invent.thing`, or "person"
    value: str  # the same, or "number", "year"
    sentence: str
    questions: tuple[str, ...]


NAMED: dict[str, tuple[Schema, ...]] = {
    "en": (
        Schema("city", "person", "The mayor of {e} is {v}.", ("Who is the mayor of {e}?", "What is the name of the mayor of {e}?", "Who leads {e}?", "Tell me the mayor of {e}.")),
        Schema("city", "river", "The river of {e} is {v}.", ("Which river flows through {e}?", "What is the name of the river of {e}?", "What is the river of {e}?", "Tell me the river of {e}.")),
        Schema("country", "city", "The capital of {e} is {v}.", ("What is the capital of {e}?", "Which city is the capital of {e}?", "What is the name of the capital of {e}?", "Tell me the capital of {e}.")),
        Schema("company", "person", "The boss of {e} is {v}.", ("Who is the boss of {e}?", "Who runs {e}?", "What is the name of the boss of {e}?", "Tell me the boss of {e}.")),
        Schema("company", "city", "The home of {e} is {v}.", ("Where is {e}?", "In which city is {e}?", "What is the home of {e}?", "Tell me the home of {e}.")),
        Schema("person", "city", "The home of {e} is {v}.", ("Where does {e} live?", "In which city does {e} live?", "What is the home of {e}?", "Tell me the home of {e}.")),
        Schema("person", "person", "The best friend of {e} is {v}.", ("Who is the best friend of {e}?", "What is the name of the best friend of {e}?", "Who is close to {e}?", "Tell me the best friend of {e}.")),
        Schema("person", "animal", "The favourite animal of {e} is {v}.", ("What is the favourite animal of {e}?", "Which animal does {e} like?", "What animal is dear to {e}?", "Tell me the favourite animal of {e}.")),
    ),
    "zh": (
        Schema("city", "person", "{e}的市长是{v}。", ("{e}的市长是谁？", "谁是{e}的市长？", "{e}的市长叫什么？", "告诉我{e}的市长。")),
        Schema("city", "river", "{e}的河是{v}。", ("流过{e}的是哪条河？", "{e}有哪条河？", "{e}的河叫什么？", "告诉我{e}的河。")),
        Schema("country", "city", "{e}的首都是{v}。", ("{e}的首都是什么？", "{e}的首都是哪座城市？", "{e}的首都叫什么？", "告诉我{e}的首都。")),
        Schema("company", "person", "{e}的老板是{v}。", ("{e}的老板是谁？", "谁是{e}的老板？", "{e}的老板叫什么？", "告诉我{e}的老板。")),
        Schema("company", "city", "{e}的总部是{v}。", ("{e}的总部在哪里？", "{e}在哪座城市？", "{e}的总部是哪里？", "告诉我{e}的总部。")),
        Schema("person", "city", "{e}的家乡是{v}。", ("{e}的家乡在哪里？", "{e}是哪里人？", "{e}的家乡是哪里？", "告诉我{e}的家乡。")),
        Schema("person", "person", "{e}最好的朋友是{v}。", ("{e}最好的朋友是谁？", "谁是{e}最好的朋友？", "{e}最好的朋友叫什么？", "告诉我{e}最好的朋友。")),
        Schema("person", "animal", "{e}最爱的动物是{v}。", ("{e}最爱的动物是什么？", "{e}最爱什么动物？", "{e}最爱哪种动物？", "告诉我{e}最爱的动物。")),
    ),
}
NUMBERED: dict[str, tuple[Schema, ...]] = {
    "en": (
        Schema("city", "number", "The number of people in {e} is {v}.", ("How many people live in {e}?", "What is the number of people in {e}?", "How many people does {e} have?", "Tell me the number of people in {e}.")),
        Schema("river", "number", "The length in miles of {e} is {v}.", ("How long is {e}?", "How many miles long is {e}?", "What is the length in miles of {e}?", "Tell me the length of {e}.")),
        Schema("city", "year", "The founding year of {e} is {v}.", ("When was {e} founded?", "In which year was {e} founded?", "What is the founding year of {e}?", "Tell me the founding year of {e}.")),
        Schema("company", "year", "The founding year of {e} is {v}.", ("When was {e} founded?", "In which year was {e} founded?", "What is the founding year of {e}?", "Tell me the founding year of {e}.")),
        Schema("company", "number", "The number of workers at {e} is {v}.", ("How many workers does {e} have?", "What is the number of workers at {e}?", "How many people work at {e}?", "Tell me the number of workers at {e}.")),
        Schema("person", "number", "The room number of {e} is {v}.", ("What is the room number of {e}?", "In which room is {e}?", "Which room does {e} have?", "Tell me the room number of {e}.")),
        Schema("person", "year", "The birth year of {e} is {v}.", ("When was {e} born?", "In which year was {e} born?", "What is the birth year of {e}?", "Tell me the birth year of {e}.")),
    ),
    "zh": (
        Schema("city", "number", "{e}的人口是{v}。", ("{e}有多少人？", "{e}的人口是多少？", "{e}住着多少人？", "告诉我{e}的人口。")),
        Schema("river", "number", "{e}的公里数是{v}。", ("{e}有多长？", "{e}有多少公里？", "{e}的公里数是多少？", "告诉我{e}的公里数。")),
        Schema("city", "year", "{e}的建城年份是{v}。", ("{e}是哪年建的？", "{e}建于哪一年？", "{e}的建城年份是什么？", "告诉我{e}的建城年份。")),
        Schema("company", "year", "{e}的成立年份是{v}。", ("{e}是哪年成立的？", "{e}成立于哪一年？", "{e}的成立年份是什么？", "告诉我{e}的成立年份。")),
        Schema("company", "number", "{e}的员工数是{v}。", ("{e}有多少员工？", "{e}的员工数是多少？", "多少人在{e}工作？", "告诉我{e}的员工数。")),
        Schema("person", "number", "{e}的房号是{v}。", ("{e}的房号是多少？", "{e}住几号房？", "{e}在哪个房间？", "告诉我{e}的房号。")),
        Schema("person", "year", "{e}的出生年份是{v}。", ("{e}是哪年出生的？", "{e}生于哪一年？", "{e}的出生年份是什么？", "告诉我{e}的出生年份。")),
    ),
}
NOT_THERE = {"en": "The passages do not say.", "zh": "资料里没有说。"}


def cite(schemas: dict[str, tuple[Schema, ...]]) -> Callable[[Draw], Item]:
    """The skill that finds the passage about the thing asked for and copies its value with its number."""

    def ask(draw: Draw) -> Item:
        schema, lines, entities, values = passages(draw, schemas)
        which = draw.number(0, len(lines) - 1)
        question = draw.form(schema[which].questions).format(e=entities[which])
        answer = f"是{values[which]}[{which + 1}]。" if draw.zh else f"It is {values[which]} [{which + 1}]."
        others = tuple(v for i, v in enumerate(values) if i != which and v != values[which])
        return asked(_page(lines, question), answer, values[which], check="cite", reject=others)

    return ask


def cite_none(draw: Draw) -> Item:
    """A question about a thing that no passage mentions: the honest answer."""
    schema, lines, entities, _ = passages(draw, NAMED if draw.chance(0.5) else NUMBERED)
    asked_of = draw.pick(schema)
    stranger = _new(draw, asked_of.entity, entities)
    question = draw.form(asked_of.questions).format(e=stranger)
    return asked(_page(lines, question), NOT_THERE[draw.language], check="exact")


def read_aloud(draw: Draw) -> str:
    """Text for the same skill: passages, then their questions and answers."""
    schema, lines, entities, values = passages(draw, NAMED if draw.chance(0.6) else NUMBERED)
    answers = []
    for i in draw.pick_some(range(len(lines)), len(lines)):
        question = draw.pick(schema[i].questions[:-1]).format(e=entities[i])
        answers.append(f"{question}是{values[i]}[{i + 1}]。" if draw.zh else f"{question} It is {values[i]} [{i + 1}].")
    return "\n".join(lines + answers)


def passages(draw: Draw, schemas: dict[str, tuple[Schema, ...]]) -> tuple[list[Schema], list[str], list[str], list[str]]:
    """Two to four numbered passages: their schemas, lines, entities and values. Half of the pages hold one kind of sentence."""
    count = draw.pick((2, 3, 3, 4))
    own = schemas[draw.language]
    chosen = [draw.pick(own)] * count if draw.chance(0.5) else [draw.pick(own) for _ in range(count)]
    lines: list[str] = []
    entities: list[str] = []
    values: list[str] = []
    for i, schema in enumerate(chosen):
        entity, value = _new(draw, schema.entity, entities), _new(draw, schema.value, values)
        gap = "" if draw.zh else " "
        lines.append(f"[{i + 1}]{gap}" + schema.sentence.format(e=entity, v=value))
        entities.append(entity)
        values.append(value)
    return chosen, lines, entities, values


def _page(lines: list[str], question: str) -> str:
    return "\n".join((*lines, question))


def _new(draw: Draw, use: str, taken: list[str]) -> str:
    """An invented name or number that is not yet on the page."""
    while (name := _invent(draw, use)) in taken:
        pass
    return name


def _invent(draw: Draw, use: str) -> str:
    if use == "person":
        return first_name(draw)
    if use == "number":
        return str(draw.number(12, 9999))
    if use == "year":
        return str(draw.number(1100, 2020))
    return thing(draw, use)
