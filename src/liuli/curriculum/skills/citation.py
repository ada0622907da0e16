"""Reading: passages about invented things, a question, the answer copied with the number of its passage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from liuli.curriculum.draw import Draw
from liuli.curriculum.invent import first_name, thing
from liuli.curriculum.items import Item, Turn, asked, assistant, user
from liuli.curriculum.questions import FRAMES
from liuli.curriculum.wordings import rows, split


@dataclass(frozen=True)
class Schema:
    """A sentence about {e} with the value {v}, and its questions (the last one held out), in one language."""

    entity: str  # a use of `invent.thing`, or "person"
    value: str  # the same, or "number", "year"
    sentence: str
    questions: tuple[str, ...]

    @staticmethod
    def of(row: dict[str, str]) -> Schema:
        """Its own questions and the common frames around what the sentence names; many wordings, so that a new one is
        understood."""
        noun = row["sentence"].split(" is {v}" if row["language"] == "en" else "：{v}")[0]
        *own, held_out = split(row["questions"])
        fitting = FRAMES[row["language"]][row["value"] == "person" :]  # "What is the mayor?" is no question
        frames = [frame.format(n=noun[0].lower() + noun[1:]) for frame in fitting]
        others = [frame for frame in frames if frame not in (*own, held_out)]
        return Schema(row["entity"], row["value"], row["sentence"], (*own, *own, *others, held_out))


def _schemas(kind: str) -> dict[str, tuple[Schema, ...]]:
    found: dict[str, list[Schema]] = {}
    for row in rows("passages"):
        if row["kind"] == kind:
            found.setdefault(row["language"], []).append(Schema.of(row))
    return {language: tuple(schemas) for language, schemas in found.items()}


NAMED = _schemas("named")
NUMBERED = _schemas("numbered")
NOT_THERE = {"en": "not in the passages", "zh": "资料里没有说"}


def cite(schemas: dict[str, tuple[Schema, ...]]) -> Callable[[Draw], Item]:
    """The skill that finds the passage about the thing asked for and copies its value with its number."""

    def ask(draw: Draw) -> Item:
        schema, lines, entities, values = passages(draw, schemas)
        order = draw.pick_some(range(len(lines)), len(lines))
        last, turns = order[-1], list[tuple[str, str]]()
        # in training every passage is asked about, turn by turn: four answers to learn from for one page to read
        lesson = draw.split == "train" and not draw.alone
        for which in order if lesson else [last]:
            question = draw.form(schema[which].questions).format(e=entities[which])
            turns.append((question, said(draw, schema[which], entities[which], values[which], which + 1)))
        if lesson and draw.chance(0.5):
            turns = turns[-3:]  # a row has room for no more
            turns.insert(draw.number(0, len(turns) - 1), _about_a_stranger(draw, schema, [*entities, *values]))
        messages: list[Turn] = []
        for question, answer in turns:
            messages += [user(question if messages else _page(lines, question)), assistant(answer)]
        others = tuple(value for value in values if value != values[last])
        return Item(messages, "cite", (values[last],), others)

    return ask


def said(draw: Draw, schema: Schema, entity: str, value: str, number: int) -> str:
    """A passage and its number, and the answer that repeats it: what comes next can be found by what came before."""
    sentence = schema.sentence.format(e=entity, v=value)[:-1]
    return f"{sentence}[{number}]。" if draw.zh else f"{sentence} [{number}]."


def cite_none(draw: Draw) -> Item:
    """A question about a thing that no passage mentions: the honest answer."""
    schema, lines, entities, values = passages(draw, NAMED if draw.chance(0.5) else NUMBERED)
    question, answer = _about_a_stranger(draw, schema, [*entities, *values])
    return asked(_page(lines, question), answer, check="exact")


def _about_a_stranger(draw: Draw, schemas: list[Schema], taken: list[str]) -> tuple[str, str]:
    """What could be asked of this page, of something that is not on it, and the answer: it begins as a passage would,
    so that nothing need be known of the whole page, only that nothing there goes on from these words."""
    schema = draw.pick(schemas)
    entity = _new(draw, schema.entity, taken)
    question = draw.form(schema.questions).format(e=entity)
    return question, schema.sentence.format(e=entity, v=NOT_THERE[draw.language])


def read_aloud(draw: Draw) -> str:
    """Text for the same skill: passages, then their questions and answers."""
    schema, lines, entities, values = passages(draw, NAMED if draw.chance(0.6) else NUMBERED)
    answers = []
    for i in draw.pick_some(range(len(lines)), len(lines)):
        question = draw.pick(schema[i].questions[:-1]).format(e=entities[i])
        answers.append(question + ("" if draw.zh else " ") + said(draw, schema[i], entities[i], values[i], i + 1))
    return "\n".join(lines + answers)


def passages(
    draw: Draw, schemas: dict[str, tuple[Schema, ...]]
) -> tuple[list[Schema], list[str], list[str], list[str]]:
    """Schemas, lines, entities and values of two to four passages; half of the pages hold one kind of sentence."""
    count = draw.pick((2, 3, 3, 4))
    own = schemas[draw.language]
    chosen = [draw.pick(own)] * count if draw.chance(0.5) else [draw.pick(own) for _ in range(count)]
    lines: list[str] = []
    entities: list[str] = []
    values: list[str] = []
    for i, schema in enumerate(chosen):
        entity = _new(draw, schema.entity, [*entities, *values])
        value = _new(draw, schema.value, [*entities, *values, entity])
        lines.append(said(draw, schema, entity, value, i + 1))
        entities.append(entity)
        values.append(value)
    return chosen, lines, entities, values


def _page(lines: list[str], question: str) -> str:
    return "\n".join((*lines, question))


def _new(draw: Draw, use: str, taken: list[str]) -> str:
    """An invented name or number that is not yet on the page, be it in a longer one: 王小明 holds 小明."""
    name = _invent(draw, use)
    return _new(draw, use, taken) if any(name in other or other in name for other in taken) else name


def _invent(draw: Draw, use: str) -> str:
    if use == "person":
        return first_name(draw)
    if use == "number":
        return str(draw.number(12, 9999))
    if use == "year":
        return str(draw.number(1100, 2020))
    return thing(draw, use)
