"""The classroom's invented people: told in text in many orders and wordings, asked about in chat."""
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable

from liuli.curriculum.draw import Draw, held
from liuli.curriculum.invent import Neighbour, neighbours
from liuli.curriculum.items import Item, asked
from liuli.curriculum.questions import article

ATTRIBUTES = ("city", "job", "pet", "hobby", "age")
ASKS: dict[str, dict[str, tuple[str, ...]]] = {
    "city": {
        "en": ("Where does {n} live?", "In which city does {n} live?", "Which city is home to {n}?", "Tell me where {n} lives.",
               "Do you know where {n} lives?"),
        "zh": ("{n}住在哪里？", "{n}住在哪座城市？", "{n}的家在哪里？", "告诉我{n}住在哪里。", "你知道{n}住在哪里吗？"),
    },
    "job": {
        "en": ("What is the job of {n}?", "What does {n} do for a living?", "What is {n}'s job?", "Tell me the job of {n}.",
               "Do you know the job of {n}?"),
        "zh": ("{n}的工作是什么？", "{n}是做什么工作的？", "{n}从事什么职业？", "告诉我{n}的工作。", "你知道{n}的工作吗？"),
    },
    "pet": {
        "en": ("What pet does {n} have?", "Which animal does {n} keep?", "What is {n}'s pet?", "Tell me the pet of {n}.", "Do you know the pet of {n}?"),
        "zh": ("{n}养了什么宠物？", "{n}养什么动物？", "{n}的宠物是什么？", "告诉我{n}的宠物。", "你知道{n}养什么宠物吗？"),
    },
    "hobby": {
        "en": ("What is the hobby of {n}?", "What does {n} like to do?", "What is {n}'s hobby?", "Tell me the hobby of {n}.", "Do you know the hobby of {n}?"),
        "zh": ("{n}的爱好是什么？", "{n}喜欢做什么？", "{n}有什么爱好？", "告诉我{n}的爱好。", "你知道{n}的爱好吗？"),
    },
    "age": {
        "en": ("How old is {n}?", "What is the age of {n}?", "What is {n}'s age?", "Tell me the age of {n}.", "Do you know how old {n} is?"),
        "zh": ("{n}多大了？", "{n}今年几岁？", "{n}的年龄是多少？", "告诉我{n}的年龄。", "你知道{n}几岁吗？"),
    },
}
ANSWERS: dict[str, dict[str, str]] = {
    "city": {"en": "In {v}.", "zh": "住在{v}。"},
    "job": {"en": "{P} is {a}.", "zh": "是{v}。"},
    "pet": {"en": "{P} has {a}.", "zh": "养了{v}。"},
    "hobby": {"en": "{P} likes {v}.", "zh": "喜欢{v}。"},
    "age": {"en": "{P} is {v}.", "zh": "{v}岁。"},
}
TELLS: dict[str, dict[str, tuple[str, ...]]] = {
    "city": {"en": ("{n} lives in {v}.", "{n}'s home is in {v}.", "{n} lives in {v}."), "zh": ("{n}住在{v}。", "{n}的家在{v}。")},
    "job": {"en": ("{n} is {a}.", "{n} works as {a}."), "zh": ("{n}是{v}。", "{n}的工作是{v}。")},
    "pet": {"en": ("{n} has {a}.", "{n} keeps {a}."), "zh": ("{n}养了{v}。", "{n}的宠物是{v}。")},
    "hobby": {"en": ("{n} likes {v}.", "{n}'s hobby is {v}."), "zh": ("{n}喜欢{v}。", "{n}的爱好是{v}。")},
    "age": {"en": ("{n} is {v} years old.", "{n}'s age is {v}."), "zh": ("{n}今年{v}岁。", "{n}的年龄是{v}岁。")},
}


def ask_person(attribute: str) -> Callable[[Draw], Item]:
    """The skill that asks for one attribute of one person after the other."""

    def ask(draw: Draw) -> Item:
        person = draw.cycle(neighbours(draw.seed, draw.language))
        return person_item(draw, person, attribute)

    return ask


def person_item(draw: Draw, person: Neighbour, attribute: str) -> Item:
    """One question about one person."""
    question = question_about(draw, person.name, attribute)
    value = str(getattr(person, attribute))
    return asked(question, _fill(ANSWERS[attribute][draw.language], person, value), value)


def question_about(draw: Draw, name: str, attribute: str) -> str:
    """A wording of a question about somebody, known or not."""
    forms = ASKS[attribute][draw.language]
    if draw.split in ("train", "combinations"):
        wanted = draw.split == "combinations"
        fitting = [form for form in forms[:-1] if held(f"{name}/{form}") == wanted]
        return draw.pick(fitting or forms[:-1]).format(n=name)
    return draw.form(forms).format(n=name)


def tell_people(attributes: tuple[str, ...], people: int) -> Callable[[Draw], str]:
    """Text about some people: all their attributes in a new order each time; the name is said again in every sentence."""

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
        sentences.append(_fill(form, person, str(getattr(person, attribute))))
    return ("" if draw.zh else " ").join(sentences)


def _with_pronoun(form: str, gender: str, language: str) -> str:
    if language == "zh":
        return form.replace("{n}", "她" if gender == "f" else "他")
    form = form.replace("{n}'s", "Her" if gender == "f" else "His")
    return form.replace("{n}", "She" if gender == "f" else "He")


def _fill(form: str, person: Neighbour, value: str) -> str:
    pronoun = "She" if person.gender == "f" else "He"
    return form.format(n=person.name, v=value, a=article(value), P=pronoun)
