"""Translation between the two languages: taught words, and phrases and sentences put together from them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from liuli.curriculum.draw import Draw
from liuli.curriculum.items import Item, asked
from liuli.curriculum.knowledge import Word, knowledge
from liuli.curriculum.wordings import forms

# Words stand in quotation marks everywhere, so that a word is the same tokens in text, question and answer.
TO_OTHER = forms("to_other")
FROM_OTHER = forms("from_other")
CONCRETE = (
    "animal",
    "home",
    "plant",
    "transport",
    "clothes",
    "vegetable",
    "fruit",
    "toy",
    "tool",
    "kitchenware",
    "drink",
    "food",
    "school",
    "music",
)
PLAIN_ADJECTIVES = (
    "red",
    "yellow",
    "green",
    "blue",
    "black",
    "white",
    "grey",
    "brown",
    "pink",
    "purple",
    "big",
    "small",
    "new",
    "old",
    "clean",
    "dirty",
    "heavy",
    "light",
    "beautiful",
    "ugly",
    "strange",
    "wet",
    "dry",
    "cheap",
    "expensive",
    "famous",
    "important",
    "cold",
    "warm",
)
PATTERNS = (  # English and Chinese; {n} a thing, {a} what it is like
    ("The {n} is {a}.", "这{n}是{a}的。"),
    ("I like the {n}.", "我喜欢这{n}。"),
    ("Where is the {n}?", "{n}在哪里？"),
    ("I see the {n}.", "我看见{n}。"),
    ("The {n} is here.", "{n}在这里。"),
    ("I want the {n}.", "我想要{n}。"),
    ("Do you like the {n}?", "你喜欢这{n}吗？"),
    ("The {a} {n} is mine.", "{a}的{n}是我的。"),
    ("Give me the {a} {n}.", "给我{a}的{n}。"),
    ("I have lost the {a} {n}.", "我弄丢了{a}的{n}。"),
)
PATTERNS_PLAIN = tuple((en, zh.replace("这{n}", "{n}")) for en, zh in PATTERNS)


@functools.cache
def _nouns() -> tuple[Word, ...]:
    return tuple(word for word in knowledge().lexicon if word.part.en == "noun" and word.category.en in CONCRETE)


@functools.cache
def _adjectives() -> tuple[Word, ...]:
    return tuple(
        word for word in knowledge().lexicon if word.part.en == "adjective" and word.name.en in PLAIN_ADJECTIVES
    )


def translate_word(draw: Draw) -> Item:
    """A taught word into the other language."""
    word = draw.cycle(knowledge().lexicon)
    own, other = (word.name.zh, word.name.en) if draw.zh else (word.name.en, word.name.zh)
    return asked(_with(draw, TO_OTHER, own), f"“{other}”。" if draw.zh else f"“{other}”.", other, check="exact")


def translate_back(draw: Draw) -> Item:
    """A taught word of the other language into this one."""
    word = draw.cycle(knowledge().lexicon)
    own, other = (word.name.zh, word.name.en) if draw.zh else (word.name.en, word.name.zh)
    return asked(_with(draw, FROM_OTHER, other), f"“{own}”。" if draw.zh else f"“{own}”.", own, check="exact")


def translate_phrase(draw: Draw) -> Item:
    """A quality and a thing put together, either way."""
    adjective, noun = draw.combination(
        lambda: (draw.pick(_adjectives()), draw.pick(_nouns())), lambda p: f"{p[0].name.en}/{p[1].name.en}"
    )
    return _both_ways(draw, f"{adjective.name.en} {noun.name.en}", f"{adjective.name.zh}的{noun.name.zh}")


def translate_sentence(draw: Draw) -> Item:
    """A short sentence, either way."""
    pattern, adjective, noun = draw.combination(
        lambda: (draw.pick(PATTERNS_PLAIN), draw.pick(_adjectives()), draw.pick(_nouns())),
        lambda p: f"{p[0][0]}/{p[2].name.en}",
    )
    english, chinese = pattern
    return _both_ways(
        draw, english.format(n=noun.name.en, a=adjective.name.en), chinese.format(n=noun.name.zh, a=adjective.name.zh)
    )


def word_list(draw: Draw) -> str:
    """Text for the same skill: pairs of words in both languages, in both directions."""
    words = [draw.cycle(knowledge().lexicon, draw.index * 8 + i).name for i in range(8)]
    style = draw.number(0, 2)
    if style == 0:
        pairs = [f"“{word.zh}”是“{word.en}”" if draw.zh else f"“{word.en}” is “{word.zh}”" for word in words]
    elif style == 1:
        pairs = [f"“{word.en}”的意思是“{word.zh}”" if draw.zh else f"“{word.zh}” means “{word.en}”" for word in words]
    else:
        pairs = [f"{word.zh}：“{word.en}”" if draw.zh else f"{word.en}: “{word.zh}”" for word in words]
    return "。".join(pairs) + "。" if draw.zh else ". ".join(pairs) + "."


def _both_ways(draw: Draw, english: str, chinese: str) -> Item:
    into_chinese = draw.chance(0.5)
    source, target = (english, chinese) if into_chinese else (chinese, english)
    forms = TO_OTHER if into_chinese != draw.zh else FROM_OTHER
    return asked(_with(draw, forms, source), f"“{target}”", target, check="exact")


def _with(draw: Draw, forms: Mapping[str, Sequence[str]], word: str) -> str:
    return draw.form(forms[draw.language]).format(w=word)
