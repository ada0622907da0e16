"""Small tasks on the words and numbers in the question itself: repeat, reverse, count, sort, compare, spell."""

from __future__ import annotations

import functools
from collections.abc import Callable

from liuli.curriculum.draw import Draw
from liuli.curriculum.invent import first_name, thing
from liuli.curriculum.items import Item, asked
from liuli.curriculum.knowledge import Word, knowledge
from liuli.curriculum.wordings import blocks, forms, split

SEPARATOR = {"en": ", ", "zh": "、"}
NUMBERED = 0.35  # of what is repeated: a number in brackets is found by the word before it, as where passages are cited


def _ask(draw: Draw, task: str, **slots: str | int) -> str:
    return draw.form(forms(f"string.{task}")[draw.language]).format(**slots)


@functools.cache
def _groups() -> dict[str, tuple[Word, ...]]:
    """Categories with at least six nouns."""
    groups: dict[str, list[Word]] = {}
    for word in knowledge().lexicon:
        if word.part.en == "noun":
            groups.setdefault(word.category.en, []).append(word)
    return {name: tuple(words) for name, words in groups.items() if len(words) >= 6}


@functools.cache
def _apart(kind: str) -> list[str]:
    """The categories that a word of this one is not in: an apple is food, too, a teacher a person."""
    near = {name: split(others) for name, others in blocks("wordings")["overlap"]}
    far = [name for name in sorted(_groups()) if name != kind and name not in near.get(kind, ())]
    return [name for name in far if kind not in near.get(name, ())]


def _words(draw: Draw, count: int) -> list[str]:
    return [word.name[draw.language] for word in draw.pick_some(knowledge().lexicon, count)]


def repeat(draw: Draw) -> Item:
    """Words and invented names said again: pure copying."""
    makers: tuple[Callable[[], str], ...] = (
        lambda: first_name(draw),
        lambda: thing(draw, "city"),
        lambda: thing(draw, "animal"),
        lambda: _words(draw, 1)[0],
        lambda: str(draw.number(1, 9999)),
    )
    parts = [draw.pick(makers)() for _ in range(draw.number(2, 5))]
    if draw.chance(NUMBERED):
        numbers, gap = draw.pick_some(range(1, 10), len(parts)), "" if draw.zh else " "
        parts = [f"{part}{gap}[{number}]" for part, number in zip(parts, numbers, strict=True)]
    text = " ".join(parts)
    return asked(_ask(draw, "repeat", x=text), f"“{text}”" if draw.zh else f"Sure: “{text}”", text, check="quoted")


def reverse_list(draw: Draw) -> Item:
    """A list of words backwards."""
    words = draw.combination(lambda: _words(draw, draw.number(2, 4)), "/".join)
    gap = SEPARATOR[draw.language]
    answer = gap.join(words[::-1])
    return asked(_ask(draw, "reverse", x=gap.join(words)), answer if draw.zh else f"Backwards: {answer}", check="exact")


def count_words(draw: Draw) -> Item:
    """How many words a list has."""
    words = draw.combination(lambda: _words(draw, draw.number(2, 6)), "/".join)
    return asked(
        _ask(draw, "count", x=SEPARATOR[draw.language].join(words)),
        f"{len(words)}。" if draw.zh else f"{len(words)}.",
        str(len(words)),
    )


def spell(draw: Draw) -> Item:
    """A taught English word, letter by letter."""
    word = draw.cycle(
        [word for word in knowledge().lexicon if word.name.en.isalpha() and len(word.name.en) <= 8]
    ).name.en
    return asked(_ask(draw, "spell", x=word), " ".join(word), check="exact")


def first_or_last(draw: Draw) -> Item:
    """The first or last letter of a word; in Chinese its first or last character."""
    word = draw.cycle(knowledge().lexicon).name[draw.language]
    first = draw.chance(0.5)
    letter = word[0] if first else word[-1]
    return asked(
        _ask(draw, "first" if first else "last", x=word),
        f"“{letter}”。" if draw.zh else f"It is “{letter}”.",
        letter,
        check="quoted",
    )


def compare(draw: Draw) -> Item:
    """The larger or smaller of two numbers."""
    digits = draw.number(1, 4)
    a, b = draw.combination(
        lambda: tuple(draw.pick_some(range(10 ** (digits - 1), 10**digits), 2)), lambda p: f"{p[0]}?{p[1]}"
    )
    larger = draw.chance(0.6)
    right, wrong = (max(a, b), min(a, b)) if larger else (min(a, b), max(a, b))
    question = _ask(draw, "larger" if larger else "smaller", a=a, b=b)
    return asked(question, f"{right}。" if draw.zh else f"{right}.", str(right), reject=(str(wrong),))


def sort_numbers(draw: Draw) -> Item:
    """Three or four numbers from small to large."""
    numbers = draw.combination(
        lambda: draw.pick_some(range(1, 100), draw.number(3, 4)), lambda n: "/".join(map(str, n))
    )
    gap = SEPARATOR[draw.language]
    return asked(_ask(draw, "sort", x=gap.join(map(str, numbers))), gap.join(map(str, sorted(numbers))), check="exact")


def even_or_odd(draw: Draw) -> Item:
    """Even or odd."""
    number = draw.combination(lambda: draw.number(1, 9999), lambda n: f"even{n}")
    even = number % 2 == 0
    right, wrong = (
        (("偶数", "奇数") if even else ("奇数", "偶数")) if draw.zh else (("even", "odd") if even else ("odd", "even"))
    )
    return asked(_ask(draw, "even", a=number), f"{right}。" if draw.zh else f"It is {right}.", right, reject=(wrong,))


def next_number(draw: Draw) -> Item:
    """The next number of a row with equal steps."""
    start, step = draw.combination(
        lambda: (draw.number(1, 60), draw.pick((1, 1, 2, 3, 5, 10, -1, -2))), lambda p: f"next{p}"
    )
    if step < 0:
        start += 10
    row = [start + step * i for i in range(4)]
    gap = SEPARATOR[draw.language]
    return asked(
        _ask(draw, "next", x=gap.join(map(str, row[:3]))), f"{row[3]}。" if draw.zh else f"{row[3]}.", str(row[3])
    )


def odd_one_out(draw: Draw) -> Item:
    """The word that is of another kind than the rest."""

    def words() -> tuple[list[Word], Word]:
        same = draw.pick(sorted(_groups()))
        stranger = draw.pick(_groups()[draw.pick(_apart(same))])
        return draw.pick_some(_groups()[same], 3), stranger

    group, stranger = draw.combination(words, lambda w: "/".join(word.name.en for word in [*w[0], w[1]]))
    shown = [word.name[draw.language] for word in group]
    right = stranger.name[draw.language]
    shown.insert(draw.number(0, 3), right)
    reject = tuple(word for word in shown if word != right)
    return asked(
        _ask(draw, "odd_one", x=SEPARATOR[draw.language].join(shown)),
        f"{right}。" if draw.zh else f"It is {right}.",
        right,
        reject=reject,
    )


def yes_or_no(draw: Draw) -> Item:
    """Whether a word belongs to a kind."""

    def pair() -> tuple[Word, Word, bool]:
        right = draw.pick(sorted(_groups()))
        word = draw.pick(_groups()[right])
        yes = draw.chance(0.5)
        kind = right if yes else draw.pick(_apart(right))
        return word, _groups()[kind][0], yes

    word, sample, yes = draw.combination(pair, lambda p: f"{p[0].name.en}?{p[1].category.en}")
    question = _ask(draw, "kind", x=word.name[draw.language], k=sample.category[draw.language])
    if draw.zh:
        return asked(question, "是的。" if yes else "不是。", check="exact")
    return asked(question, "Yes." if yes else "No.", check="exact")
