"""What a skill draws from: a source of chance, a language, a split, and its turn in the round of facts.

What is held out is decided by a hash of the thing itself, not by chance: a held-out name, wording or combination never
occurs in training whatever the seed or size, and a split that wants one asks for nothing else.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

T = TypeVar("T")
HELD_ONE_IN = 12
CAPITAL = re.compile("(?!I[ '’])[A-Z](?![A-Z])")  # one that a careless hand leaves out: not of I, nor of OK
SMALL = 0.2  # of English questions: fewer, and what is rarely asked is not known in small letters
CONTRACTED = re.compile(r"\b(What|Who|How|Where|I) [ia](?=[sm]\b)")  # What is, I am: what an apostrophe stands for
SYMBOL = re.compile(r"(?<= )[A-Z][a-z]?\b")  # Fe, which is not fe
APOSTROPHES = ("'", "’", "")


@dataclass(slots=True)
class Draw:
    """The argument of every skill.

    rng: the only source of chance. language: en or zh. split: train, names, templates or combinations.
    index: how many items of this skill, language and kind came before. seed: the classroom's, names its people.
    alone: one question, as people ask it, where a lesson asks several of one page.
    """

    rng: Random
    language: str
    split: str
    index: int
    seed: int
    alone: bool = False

    @property
    def training(self) -> Draw:
        """The same, drawing what training may see: for what comes before the question that a split is about."""
        return Draw(self.rng, self.language, "train", self.index, self.seed)

    @property
    def zh(self) -> bool:
        """Whether this item is Chinese."""
        return self.language == "zh"

    def pick(self, options: Sequence[T]) -> T:
        """One of them, each as likely."""
        return options[int(self.rng.random() * len(options))]

    def chance(self, probability: float) -> bool:
        """True this often."""
        return self.rng.random() < probability

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.rng.random() * (high - low + 1))

    def pick_some(self, options: Sequence[T], count: int) -> list[T]:
        """Several different ones."""
        return self.rng.sample(options, count)

    def cycle(self, options: Sequence[T], index: int | None = None) -> T:
        """The next of them in a shuffled round: every one comes equally often, in a new order each round."""
        lap, place = divmod(self.index if index is None else index, len(options))
        return options[_order(self.seed, lap, len(options))[place]]

    def form(self, forms: Sequence[str]) -> str:
        """A wording; the last one of each list is held out for the `templates` split."""
        if self.split == "templates" and len(forms) > 2:
            return forms[-1]
        return self.casual(self.pick(forms[:-1] if len(forms) > 2 else forms))

    def casual(self, form: str) -> str:
        """The wording as some people type it: now and then, in training, "What's", no last mark, no first capital."""
        if self.split != "train":
            return form
        if self.chance(0.12):
            form = CONTRACTED.sub(rf"\1{self.pick(APOSTROPHES)}", form)
        if not self.chance(0.12):
            return form
        lower = CAPITAL.match(form) and self.chance(0.5)
        form = form[0].lower() + form[1:] if lower else form
        return form[:-1] if form[-1] in "?？.。!！" else form

    def typed(self, question: str) -> str:
        """The question as some type it: now and then, in training, without “”, as a mere noun, in small letters."""
        if self.split != "train":
            return question
        if any(mark in question for mark in "“《") and self.chance(0.2):
            question = re.sub("[“”《》]", self.pick(("", '"')) if "“" in question else "", question)
        if self.chance(0.08):
            question = re.sub(r"^(?:What is|Tell me) the (.+)[?.]$", r"\1", question)
        return question.lower() if not self.zh and not SYMBOL.search(question) and self.chance(SMALL) else question

    def name(self, invent: Callable[[], str]) -> str:
        """An invented name: a held-out one in the `names` split; elsewhere one with nothing held out in it."""
        return self._until(invent, held if self.split == "names" else lambda name: not held_within(name))

    def combination(self, invent: Callable[[], T], key: Callable[[T], str] = str) -> T:
        """Things put together: a held-out combination in the `combinations` split, any other elsewhere."""
        return self._until(invent, lambda value: held(key(value)) == (self.split == "combinations"))

    def wording(self, key: str, forms: Sequence[str]) -> str | None:
        """A wording for one thing. Some of a thing's wordings, but never its first, are held out for `combinations`.

        None if that split is asked for and nothing of this thing is held out; then ask about another thing.
        """
        if self.split == "templates":
            return forms[-1]
        known = usable(key, forms)
        if self.split == "combinations":
            out = [form for form in forms[:-1] if form not in known]
            return self.pick(out) if out else None
        return self.pick(known)

    def _until(self, invent: Callable[[], T], wanted: Callable[[T], bool]) -> T:
        for _ in range(10_000):
            value = invent()
            if wanted(value):
                return value
        raise AssertionError("nothing of the wanted split among 10,000 draws")


def held(key: str) -> bool:
    """Whether this name or combination is kept out of training (one in twelve)."""
    return zlib.crc32(key.encode()) % HELD_ONE_IN == 0


def held_within(name: str) -> bool:
    """Whether a name is kept out or, as Chinese writes no spaces, a shorter one in it: 王小明 holds 小明."""
    if name.isascii():
        return held(name)
    return any(held(name[i:j]) for i in range(len(name) - 1) for j in range(i + 2, len(name) + 1))


def usable(key: str, forms: Sequence[str]) -> list[str]:
    """The wordings of a thing that training may use: the first, and most of the others but the last."""
    return [form for form in forms[:-1] if form == forms[0] or not held(f"{key}/{form}")]


@functools.lru_cache(maxsize=4096)
def _order(seed: int, lap: int, count: int) -> list[int]:
    order = list(range(count))
    Random(f"{seed}/{lap}/{count}").shuffle(order)
    return order
