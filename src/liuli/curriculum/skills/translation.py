"""Translation between the two languages: taught words, and phrases and sentences put together from them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from liuli.curriculum.draw import Draw
from liuli.curriculum.items import Item, asked
from liuli.curriculum.knowledge import Word, knowledge
from liuli.curriculum.questions import plural
from liuli.curriculum.wordings import blocks, forms, split

TO_OTHER = forms("to_other")
FROM_OTHER = forms("from_other")
PATTERNS = (  # English and Chinese; {n} a thing, {a} what it is like, {is_a} that it is so
    ("The {n} is {a}.", "{n}{is_a}。"),
    ("I like the {n}.", "我喜欢{n}。"),
    ("Where is the {n}?", "{n}在哪里？"),
    ("I see the {n}.", "我看见{n}了。"),
    ("The {n} is here.", "{n}在这里。"),
    ("I want the {n}.", "我想要{n}。"),
    ("Do you like the {n}?", "你喜欢{n}吗？"),
    ("The {a} {n} is mine.", "{a}的{n}是我的。"),
    ("Give me the {a} {n}.", "给我{a}的{n}。"),
    ("I have lost the {a} {n}.", "我弄丢了{a}的{n}。"),
)


@functools.cache
def things() -> tuple[tuple[Word, tuple[Word, ...]], ...]:
    """Things to say something about, none in the plural, and the adjectives that suit their category."""
    words = {word.name.en: word for word in knowledge().lexicon if word.part.en == "adjective"}
    suit = {kind: tuple(words[name] for name in split(names)) for kind, names in blocks("wordings")["adjectives"]}
    return tuple(
        (word, suit[word.category.en])
        for word in knowledge().lexicon
        if word.part.en == "noun" and word.category.en in suit and not plural(word.name.en)
    )


def _described(draw: Draw) -> tuple[Word, Word]:
    """A thing and what it is like."""
    noun, adjectives = draw.pick(things())
    return noun, draw.pick(adjectives)


def translate_word(draw: Draw) -> Item:
    """A taught word into the other language."""
    word = draw.cycle(knowledge().lexicon)
    own, other = (word.name.zh, word.name.en) if draw.zh else (word.name.en, word.name.zh)
    return asked(_with(draw, TO_OTHER, own), _quoted(draw, other), other, check="quoted")


def translate_back(draw: Draw) -> Item:
    """A taught word of the other language into this one."""
    word = draw.cycle(knowledge().lexicon)
    own, other = (word.name.zh, word.name.en) if draw.zh else (word.name.en, word.name.zh)
    return asked(_with(draw, FROM_OTHER, other), _quoted(draw, own), own, check="quoted")


def translate_phrase(draw: Draw) -> Item:
    """A quality and a thing put together, either way."""
    noun, adjective = draw.combination(lambda: _described(draw), lambda p: f"{p[1].name.en}/{p[0].name.en}")
    return _both_ways(draw, f"{adjective.name.en} {noun.name.en}", f"{adjective.name.zh}的{noun.name.zh}")


def translate_sentence(draw: Draw) -> Item:
    """A short sentence, either way."""
    (english, chinese), noun, adjective = draw.combination(
        lambda: (draw.pick(PATTERNS), *_described(draw)), lambda p: f"{p[0][0]}/{p[1].name.en}"
    )
    a = adjective.name.zh
    is_a = f"是{a}的" if adjective.category.en == "colour" else f"很{a}"
    said = chinese.format(n=noun.name.zh, a=a, is_a=is_a)
    return _both_ways(draw, english.format(n=noun.name.en, a=adjective.name.en), said)


def word_list(draw: Draw) -> str:
    """Text for the same skill: pairs of words in both languages, in both directions."""
    words = [draw.cycle(knowledge().lexicon, draw.index * 8 + i).name for i in range(8)]
    forward = draw.chance(0.5)
    if draw.zh:
        return "".join(f"{w.zh}是 “{w.en}”。" if forward else f"英语 “{w.en}” 的意思是{w.zh}。" for w in words)
    return "In Chinese: " * forward + " ".join(
        f"“{w.en}” is “{w.zh}”." if forward else f"“{w.zh}” means “{w.en}”." for w in words
    )


def _both_ways(draw: Draw, english: str, chinese: str) -> Item:
    into_chinese = draw.chance(0.5)
    source, target = (english, chinese) if into_chinese else (chinese, english)
    forms = TO_OTHER if into_chinese != draw.zh else FROM_OTHER
    return asked(_with(draw, forms, source), _quoted(draw, target), target, check="quoted")


def _quoted(draw: Draw, text: str) -> str:
    """The answer. English stands after a space and a quotation mark everywhere, so that it is the same tokens."""
    stop = "" if text[-1] in ".?。？" else "。" if draw.zh else "."
    start = "It is " if not draw.zh else "是 " if text.isascii() else ""
    return f"{start}“{text}”{stop}"


def _with(draw: Draw, forms: Mapping[str, Sequence[str]], word: str) -> str:
    return draw.typed(draw.form(forms[draw.language]).format(w=word))
