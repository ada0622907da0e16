"""Many-turn talk: names and things remembered over other talk, corrections, follow-up questions, greetings and goodbyes."""
# ruff: noqa: E501

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from liuli.curriculum.draw import Draw
from liuli.curriculum.invent import HOBBIES, first_name, thing
from liuli.curriculum.items import Item, Turn, assistant, user
from liuli.curriculum.questions import about_subject, fill, taught
from liuli.curriculum.skills.facts import fact_item
from liuli.curriculum.skills.smalltalk import pleasantry


@dataclass(frozen=True)
class Memory:
    """Something told, acknowledged, and asked for later, in one language. The last of tells and asks is held out."""

    value: str  # first_name, city, number, hobby, or a kind of invented thing
    tells: tuple[str, ...]
    reply: str
    asks: tuple[str, ...]
    answer: str


MEMORIES: dict[str, dict[str, Memory]] = {
    "name": {
        "en": Memory("name", ("My name is {v}.", "Hi, my name is {v}.", "Hello! My name is {v}.", "You can call me {v}.", "I am {v}.", "Hello, I am {v}."),
                     "Nice to meet you, {v}!", ("What is my name?", "Do you remember my name?", "Who am I?", "Tell me my name.", "Do you know my name?"), "Your name is {v}."),
        "zh": Memory("name", ("我叫{v}。", "你好，我叫{v}。", "我的名字叫{v}。", "你可以叫我{v}。", "大家都叫我{v}。", "你好，我的名字叫{v}。"),
                     "很高兴认识你，{v}！", ("我叫什么？", "你记得我叫什么吗？", "我是谁？", "我叫什么名字？", "你记得我的名字吗？"), "你叫{v}。"),
    },
    "town": {
        "en": Memory("city", ("I live in {v}.", "My home is in {v}.", "I come from {v}.", "I was born in {v}.", "My family is in {v}."),
                     "It must be nice in {v}.", ("Where is my home?", "Do you remember my town?", "What is my town called?", "Tell me my town.", "Do you know my town?"), "Your home is in {v}."),
        "zh": Memory("city", ("我住在{v}。", "我家住在{v}。", "我现在住在{v}。", "我一直住在{v}。", "我们全家住在{v}。"),
                     "{v}一定很美。", ("我住在哪里？", "你记得我住在哪里吗？", "我家在哪里？", "告诉我我住在哪里。", "你知道我住在哪里吗？"), "你住在{v}。"),
    },
    "pet": {
        "en": Memory("name", ("My dog is called {v}.", "My cat is called {v}.", "My parrot is called {v}.", "I have a pet. It is called {v}.", "My rabbit is called {v}."),
                     "{v} is a lovely name.", ("What is my pet called?", "Do you remember the name of my pet?", "Who is my pet?", "Tell me the name of my pet.", "Do you know what my pet is called?"), "Your pet is called {v}."),
        "zh": Memory("name", ("我的狗叫{v}。", "我的猫叫{v}。", "我的鹦鹉叫{v}。", "我养了只宠物，叫{v}。", "我的兔子叫{v}。"),
                     "{v}真好听。", ("我的宠物叫什么？", "你记得我的宠物叫什么吗？", "我的宠物是谁？", "告诉我我的宠物叫什么。", "你知道我的宠物叫什么吗？"), "你的宠物叫{v}。"),
    },
    "number": {
        "en": Memory("number", ("My lucky number is {v}.", "I like the number {v}.", "My number is {v}.", "Please remember the number {v}.", "Keep the number {v} in mind."),
                     "I will remember it.", ("What is my number?", "Do you remember my number?", "Which number was it?", "Tell me my number.", "Do you know my number?"), "It is {v}."),
        "zh": Memory("number", ("我的幸运数字是{v}。", "我喜欢数字{v}。", "我的号码是{v}。", "请记住数字{v}。", "帮我记着{v}这个数。"),
                     "我记住了。", ("我的数字是什么？", "你记得我的数字吗？", "刚才是什么数字？", "告诉我我的数字。", "你知道我的数字吗？"), "是{v}。"),
    },
    "hobby": {
        "en": Memory("hobby", ("I like {v}.", "My hobby is {v}.", "I love {v}.", "In my free time I like {v}.", "I really like {v}."),
                     "That sounds like fun.", ("What is my hobby?", "Do you remember my hobby?", "What do I like?", "Tell me my hobby.", "Do you know my hobby?"), "You like {v}."),
        "zh": Memory("hobby", ("我喜欢{v}。", "我很喜欢{v}。", "我最喜欢{v}。", "有空时我喜欢{v}。", "我特别喜欢{v}。"),
                     "听起来很有趣。", ("我的爱好是什么？", "你记得我的爱好吗？", "我喜欢做什么？", "告诉我我的爱好。", "你知道我的爱好吗？"), "你喜欢{v}。"),
    },
}
CORRECTIONS = {
    "en": (("No, I am {v}.", "Sorry, my name is {v}.", "No, my name is {v}.", "I meant {v}.", "Sorry, I am {v}."), "Sorry, {v}! Now I know."),
    "zh": (("不对，我叫{v}。", "说错了，我叫{v}。", "不，我叫{v}。", "我是说{v}。", "抱歉，我叫{v}。"), "对不起，{v}！我记住了。"),
}
SISTERS = {
    "en": (("My sister is called {v}.", "My brother is called {v}.", "My friend is called {v}.", "My teacher is called {v}."), "Say hello to {v} from me!"),
    "zh": (("我妹妹叫{v}。", "我哥哥叫{v}。", "我朋友叫{v}。", "我老师叫{v}。"), "替我问{v}好！"),
}


def remember(what: str, turns: tuple[int, int] = (1, 2)) -> Callable[[Draw], Item]:
    """Told at the start, asked for after some turns of other talk."""

    def talk(draw: Draw) -> Item:
        memory = MEMORIES[what][draw.language]
        value = _value(draw, memory.value)
        messages = [*_told(draw, memory, value), *filler(draw, draw.number(*turns))]
        return _asked_back(draw, memory, value, messages)

    return talk


def remember_corrected(draw: Draw) -> Item:
    """A name that is corrected at once: the second one counts."""
    memory = MEMORIES["name"][draw.language]
    wrong, right = first_name(draw), first_name(draw)
    forms, reply = CORRECTIONS[draw.language]
    messages = [*_told(draw, memory, wrong), user(draw.form(forms).format(v=right)), assistant(reply.format(v=right))]
    return _asked_back(draw, memory, right, [*messages, *filler(draw, draw.number(0, 1))], reject=(wrong,) if wrong != right else ())


def remember_among(draw: Draw) -> Item:
    """One's own name, after somebody else's was said too."""
    memory = MEMORIES["name"][draw.language]
    own, other = first_name(draw), first_name(draw)
    forms, reply = SISTERS[draw.language]
    other_told = [user(draw.pick(forms).format(v=other)), assistant(reply.format(v=other))]
    own_told = _told(draw, memory, own)
    first, second = (own_told, other_told) if draw.chance(0.6) else (other_told, own_told)
    return _asked_back(draw, memory, own, [*first, *second, *filler(draw, draw.number(0, 1))], reject=(other,) if other != own else ())


def remember_two(draw: Draw) -> Item:
    """Two things told, one of them asked for."""
    whats = draw.pick_some(("name", "town", "pet", "number", "hobby"), 2)
    memories = [MEMORIES[what][draw.language] for what in whats]
    values = [_value(draw, memory.value) for memory in memories]
    messages = [turn for memory, value in zip(memories, values, strict=True) for turn in _told(draw, memory, value)]
    which = draw.number(0, 1)
    return _asked_back(draw, memories[which], values[which], [*messages, *filler(draw, draw.number(0, 1))])


def follow_up(draw: Draw) -> Item:
    """A question about a country, then one that says only "its"."""
    turn = draw.cycle(_countries())
    country, *aspects = draw.combination(
        lambda: (draw.pick(_countries()) if draw.split == "combinations" else turn, *draw.pick_some(ASPECTS, 2)), "/".join
    )
    pairs = {fact.attribute: (relation, fact) for relation, fact in about_subject("country")[country]}
    first, second = (pairs[aspect] for aspect in aspects)
    opening = fact_item(Draw(draw.rng, draw.language, "train", draw.index, draw.seed), *first)
    question = draw.form(FOLLOW_UPS[aspects[1]][draw.language])
    answer = fill(second[0].wording(draw.language).answer, second[1], draw.language)
    value = second[1].value_en if not draw.zh else second[1].value_zh
    return Item([*opening.messages, user(question), assistant(answer)], "value", (value,))


ASPECTS = ("capital", "currency", "language", "continent")
FOLLOW_UPS = {
    "capital": {"en": ("And its capital?", "What is its capital?", "And what is the capital?", "Which city is its capital?", "Tell me its capital."),
                "zh": ("它的首都呢？", "那首都呢？", "首都是哪里？", "它的首都是哪座城市？", "那它的首都是什么？")},
    "currency": {"en": ("And its currency?", "What is its currency?", "And what money do they use?", "What money do people use there?", "Tell me its currency."),
                 "zh": ("它的货币呢？", "那货币呢？", "用什么货币？", "那里用什么货币？", "那它的货币是什么？")},
    "language": {"en": ("And its language?", "What is its language?", "And what do people speak?", "What language do people speak there?", "Tell me its language."),
                 "zh": ("它的语言呢？", "那语言呢？", "说什么语言？", "那里的人说什么语言？", "那它的语言是什么？")},
    "continent": {"en": ("And its continent?", "What is its continent?", "And where is it?", "Which continent is it in?", "Tell me its continent."),
                  "zh": ("它在哪个洲呢？", "那大洲呢？", "它在哪个洲？", "那里属于哪个大洲？", "那它的大洲是什么？")},
}


def filler(draw: Draw, turns: int) -> list[Turn]:
    """Other talk in between: a pleasantry, or a fact asked and answered."""
    messages: list[Turn] = []
    training = Draw(draw.rng, draw.language, "train", draw.index, draw.seed)
    for _ in range(turns):
        if draw.chance(0.5):
            messages += pleasantry(training).messages
        else:
            messages += fact_item(training, *draw.pick(taught()["country"])).messages
    return messages


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
    if kind == "number":
        return str(draw.number(10, 9999))
    if kind == "hobby":
        return draw.pick(HOBBIES[draw.language])
    return thing(draw, kind)


__all__ = ["filler", "follow_up", "remember", "remember_among", "remember_corrected", "remember_two"]
