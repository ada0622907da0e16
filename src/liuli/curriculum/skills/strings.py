"""Small tasks on the words and numbers in the question itself: repeat, reverse, count, sort, compare, spell."""
# ruff: noqa: E501

from __future__ import annotations

import functools
from collections.abc import Callable

from liuli.curriculum.draw import Draw
from liuli.curriculum.invent import first_name, thing
from liuli.curriculum.items import Item, asked
from liuli.curriculum.knowledge import Word, knowledge

FORMS = {
    "repeat": {
        "en": ("Repeat after me: {x}", "Say this again: {x}", "Repeat: {x}", "Please repeat: {x}", "Say after me: {x}"),
        "zh": ("跟我说：{x}", "重复一遍：{x}", "请重复：{x}", "再说一遍：{x}", "跟我重复：{x}"),
    },
    "reverse": {
        "en": ("Reverse this list: {x}", "Say this list backwards: {x}", "Turn this list around: {x}", "Backwards: {x}", "Reverse: {x}"),
        "zh": ("把这些倒过来说：{x}", "倒序：{x}", "倒着说：{x}", "把顺序反过来：{x}", "请倒序：{x}"),
    },
    "count": {
        "en": ("How many words are in this list: {x}", "Count these: {x}", "How many are there: {x}", "Count the words: {x}", "How many words: {x}"),
        "zh": ("数一数有几个词：{x}", "这里有几个词：{x}", "有几个：{x}", "数一数：{x}", "一共有几个词：{x}"),
    },
    "spell": {
        "en": ("Spell “{x}”.", "How do you spell “{x}”?", "Spell the word “{x}”.", "How is “{x}” spelled?", "Please spell “{x}”."),
        "zh": ("拼写“{x}”。", "“{x}”怎么拼？", "拼一下“{x}”。", "“{x}”怎么拼写？", "请拼写“{x}”。"),
    },
    "first": {
        "en": ("What is the first letter of “{x}”?", "Which letter does “{x}” start with?", "“{x}” starts with which letter?", "First letter of “{x}”?",
               "Tell me the first letter of “{x}”."),
        "zh": ("“{x}”的第一个字是什么？", "“{x}”以哪个字开头？", "“{x}”的首字是哪个？", "“{x}”的第一个字？", "告诉我“{x}”的第一个字。"),
    },
    "last": {
        "en": ("What is the last letter of “{x}”?", "Which letter does “{x}” end with?", "“{x}” ends with which letter?", "Last letter of “{x}”?",
               "Tell me the last letter of “{x}”."),
        "zh": ("“{x}”的最后一个字是什么？", "“{x}”以哪个字结尾？", "“{x}”的末字是哪个？", "“{x}”的最后一个字？", "告诉我“{x}”的最后一个字。"),
    },
    "larger": {
        "en": ("Which is larger, {a} or {b}?", "Which number is larger: {a} or {b}?", "{a} or {b}: which is larger?", "Which is more, {a} or {b}?",
               "Which number is more, {a} or {b}?"),
        "zh": ("{a}和{b}哪个大？", "{a}和{b}，哪个更大？", "哪个更大，{a}还是{b}？", "{a}大还是{b}大？", "哪个大，{a}还是{b}？"),
    },
    "smaller": {
        "en": ("Which is smaller, {a} or {b}?", "Which number is smaller: {a} or {b}?", "{a} or {b}: which is smaller?", "Which is less, {a} or {b}?",
               "Which number is less, {a} or {b}?"),
        "zh": ("{a}和{b}哪个小？", "{a}和{b}，哪个更小？", "哪个更小，{a}还是{b}？", "{a}小还是{b}小？", "哪个小，{a}还是{b}？"),
    },
    "sort": {
        "en": ("Sort these numbers: {x}", "Put these in order: {x}", "Order from small to large: {x}", "Sort: {x}", "Sort from small to large: {x}"),
        "zh": ("给这些数排序：{x}", "从小到大排列：{x}", "把这些数排好：{x}", "排序：{x}", "请从小到大排序：{x}"),
    },
    "even": {
        "en": ("Is {a} even or odd?", "Even or odd: {a}?", "Is the number {a} odd or even?", "{a}: odd or even?", "Odd or even: {a}?"),
        "zh": ("{a}是奇数还是偶数？", "{a}是偶数还是奇数？", "奇数还是偶数：{a}？", "{a}：奇数还是偶数？", "数字{a}是奇数还是偶数？"),
    },
    "next": {
        "en": ("What comes next: {x}", "Go on: {x}", "Which number is next: {x}", "Continue: {x}", "Which number comes next: {x}"),
        "zh": ("下一个数是什么：{x}", "接下来是：{x}", "继续往下数：{x}", "后面是什么数：{x}", "接下来是什么数：{x}"),
    },
    "odd_one": {
        "en": ("Which one does not belong: {x}?", "Which word is different: {x}?", "Find the odd one out: {x}", "Which one is of another kind: {x}?",
               "Which word does not belong: {x}?"),
        "zh": ("哪个不是一类：{x}？", "哪个词不一样：{x}？", "找出不同类的词：{x}", "哪个与众不同：{x}？", "哪个词不是一类：{x}？"),
    },
    "kind": {
        "en": ("Does “{x}” belong to {k}?", "{k}: does “{x}” belong to it?", "Is “{x}” a word for {k}?", "Does the word “{x}” belong to {k}?",
               "Is the word “{x}” a word for {k}?"),
        "zh": ("“{x}”属于{k}吗？", "“{x}”是不是属于{k}？", "“{x}”算{k}吗？", "“{x}”这个词属于{k}吗？", "“{x}”这个词算{k}吗？"),
    },
}
SEPARATOR = {"en": ", ", "zh": "、"}


def _ask(draw: Draw, task: str, **slots: str | int) -> str:
    return draw.form(FORMS[task][draw.language]).format(**slots)


@functools.cache
def _groups() -> dict[str, tuple[Word, ...]]:
    """Categories with at least six nouns."""
    groups: dict[str, list[Word]] = {}
    for word in knowledge().lexicon:
        if word.part.en == "noun":
            groups.setdefault(word.category.en, []).append(word)
    return {name: tuple(words) for name, words in groups.items() if len(words) >= 6}


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
    text = " ".join(parts)
    return asked(_ask(draw, "repeat", x=text), text, check="exact")


def reverse_list(draw: Draw) -> Item:
    """A list of words backwards."""
    words = draw.combination(lambda: _words(draw, draw.number(2, 4)), "/".join)
    gap = SEPARATOR[draw.language]
    return asked(_ask(draw, "reverse", x=gap.join(words)), gap.join(words[::-1]), check="exact")


def count_words(draw: Draw) -> Item:
    """How many words a list has."""
    words = draw.combination(lambda: _words(draw, draw.number(2, 6)), "/".join)
    return asked(_ask(draw, "count", x=SEPARATOR[draw.language].join(words)), f"{len(words)}。" if draw.zh else f"{len(words)}.", str(len(words)))


def spell(draw: Draw) -> Item:
    """A taught English word, letter by letter."""
    word = draw.cycle([word for word in knowledge().lexicon if word.name.en.isalpha() and len(word.name.en) <= 8]).name.en
    return asked(_ask(draw, "spell", x=word), " ".join(word), check="exact")


def first_or_last(draw: Draw) -> Item:
    """The first or last letter of a word; in Chinese its first or last character."""
    word = draw.cycle(knowledge().lexicon).name[draw.language]
    first = draw.chance(0.5)
    letter = word[0] if first else word[-1]
    return asked(_ask(draw, "first" if first else "last", x=word), f"“{letter}”。" if draw.zh else f"“{letter}”.", letter, check="exact")


def compare(draw: Draw) -> Item:
    """The larger or smaller of two numbers."""
    digits = draw.number(1, 4)
    a, b = draw.combination(lambda: tuple(draw.pick_some(range(10 ** (digits - 1), 10**digits), 2)), lambda p: f"{p[0]}?{p[1]}")
    larger = draw.chance(0.6)
    right, wrong = (max(a, b), min(a, b)) if larger else (min(a, b), max(a, b))
    question = _ask(draw, "larger" if larger else "smaller", a=a, b=b)
    return asked(question, f"{right}。" if draw.zh else f"{right}.", str(right), reject=(str(wrong),))


def sort_numbers(draw: Draw) -> Item:
    """Three or four numbers from small to large."""
    numbers = draw.combination(lambda: draw.pick_some(range(1, 100), draw.number(3, 4)), lambda n: "/".join(map(str, n)))
    gap = SEPARATOR[draw.language]
    return asked(_ask(draw, "sort", x=gap.join(map(str, numbers))), gap.join(map(str, sorted(numbers))), check="exact")


def even_or_odd(draw: Draw) -> Item:
    """Even or odd."""
    number = draw.combination(lambda: draw.number(1, 9999), lambda n: f"even{n}")
    even = number % 2 == 0
    right, wrong = (("偶数", "奇数") if even else ("奇数", "偶数")) if draw.zh else (("even", "odd") if even else ("odd", "even"))
    return asked(_ask(draw, "even", a=number), f"{right}。" if draw.zh else f"It is {right}.", right, reject=(wrong,))


def next_number(draw: Draw) -> Item:
    """The next number of a row with equal steps."""
    start, step = draw.combination(lambda: (draw.number(1, 60), draw.pick((1, 1, 2, 3, 5, 10, -1, -2))), lambda p: f"next{p}")
    if step < 0:
        start += 10
    row = [start + step * i for i in range(4)]
    gap = SEPARATOR[draw.language]
    return asked(_ask(draw, "next", x=gap.join(map(str, row[:3]))), f"{row[3]}。" if draw.zh else f"{row[3]}.", str(row[3]))


def odd_one_out(draw: Draw) -> Item:
    """The word that is of another kind than the rest."""

    def words() -> tuple[list[Word], Word]:
        same, other = draw.pick_some(sorted(_groups()), 2)
        stranger = draw.pick(_groups()[other])
        return draw.pick_some(_groups()[same], 3), stranger

    group, stranger = draw.combination(words, lambda w: "/".join(word.name.en for word in [*w[0], w[1]]))
    shown = [word.name[draw.language] for word in group]
    right = stranger.name[draw.language]
    shown.insert(draw.number(0, 3), right)
    reject = tuple(word for word in shown if word != right)
    return asked(_ask(draw, "odd_one", x=SEPARATOR[draw.language].join(shown)), f"{right}。" if draw.zh else f"It is {right}.", right, reject=reject)


def yes_or_no(draw: Draw) -> Item:
    """Whether a word belongs to a kind."""

    def pair() -> tuple[Word, Word, bool]:
        right = draw.pick(sorted(_groups()))
        word = draw.pick(_groups()[right])
        yes = draw.chance(0.5)
        kind = right if yes else draw.pick([name for name in sorted(_groups()) if name != right])
        return word, _groups()[kind][0], yes

    word, sample, yes = draw.combination(pair, lambda p: f"{p[0].name.en}?{p[1].category.en}")
    question = _ask(draw, "kind", x=word.name[draw.language], k=sample.category[draw.language])
    if draw.zh:
        return asked(question, "是的。" if yes else "不是。", check="exact")
    return asked(question, "Yes." if yes else "No.", check="exact")
