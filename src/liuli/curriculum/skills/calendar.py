"""Days, months, years and measures: what comes after what, and conversions through the calculator."""

from __future__ import annotations

from liuli.curriculum.draw import Draw
from liuli.curriculum.items import Item, asked
from liuli.curriculum.knowledge import Month, Weekday, knowledge
from liuli.curriculum.skills.arithmetic import called
from liuli.curriculum.wordings import forms

AFTER = forms("after")
BEFORE = forms("before")
LEAP = forms("leap")
CONVERT = forms("convert")
BORN = forms("born")


def after_or_before(draw: Draw) -> Item:
    """The day or month after or before one."""
    options: list[tuple[Weekday | Month, str, bool]] = []
    for things, kind in ((knowledge().weekdays, "day"), (knowledge().months, "month")):
        options += [(thing, kind, after) for thing in things for after in (True, False)]
    thing, kind, after = draw.cycle(options)
    row: tuple[Weekday | Month, ...] = knowledge().weekdays if kind == "day" else knowledge().months
    right = row[(thing.number - 1 + (1 if after else -1)) % len(row)].name[draw.language]
    question = draw.form((AFTER if after else BEFORE)[draw.language]).format(k=kind, x=thing.name[draw.language])
    return asked(question, f"{right}。" if draw.zh else f"It is {right}.", right)


def leap_year(draw: Draw) -> Item:
    """Whether a year has a February 29."""
    # as many that have one as not, so that a constant answer is worth no more than chance
    year = draw.combination(lambda: draw.number(476, 524) * 4 + draw.pick((0, 0, 0, 1, 2, 3)), lambda y: f"leap {y}")
    leap = year % 4 == 0
    answer = ("是的。" if leap else "不是。") if draw.zh else ("Yes." if leap else "No.")
    return asked(draw.form(LEAP[draw.language]).format(y=year), answer, check="exact")


def convert(draw: Draw) -> Item:
    """An amount in another unit: the taught factor, then the calculator."""
    units = [unit for unit in knowledge().units if unit.factor.isdigit()]
    unit, amount = draw.combination(lambda: (draw.pick(units), draw.number(2, 99)), lambda p: f"{p[1]} {p[0].plural}")
    subject, base = (unit.name.zh, unit.base.zh) if draw.zh else (unit.plural, unit.base.en)
    question = draw.form(CONVERT[draw.language]).format(a=amount, s=subject, b=base).replace("成个", "成")  # 换成月
    return called(draw, question, f"{amount}*{unit.factor}", "答案是" if draw.zh else "The answer is ")


def age(draw: Draw) -> Item:
    """An age from two years, through the calculator."""
    born, now = draw.combination(lambda: (draw.number(1920, 2005), draw.number(2006, 2060)), lambda p: f"age{p}")
    question = draw.form(BORN[draw.language]).format(y=born, z=now)
    return called(draw, question, f"{now}-{born}", "答案是" if draw.zh else "The answer is ")
