"""Arithmetic: through the calculator, in word problems that lead to it, and by hand in written steps."""

from __future__ import annotations

from collections.abc import Callable

from liuli.curriculum.draw import Draw
from liuli.curriculum.invent import first_name
from liuli.curriculum.items import Item, assistant, calculator, user
from liuli.curriculum.numbers import evaluate, number_text
from liuli.curriculum.wordings import forms

SIGNS = {"+": "+", "-": "-", "*": "×", "/": "÷"}
ASKED = {key: forms(f"calculate.{key}") for key in ("+", "-", "*", "/")}
ASKED_TWO = forms("calculate_two")


def calculate(operation: str) -> Callable[[Draw], Item]:
    """The skill of one operation: a question, the call, the result, the sentence."""

    def ask(draw: Draw) -> Item:
        a, b = draw.combination(lambda: _operands(draw, operation), lambda pair: f"{pair[0]}{operation}{pair[1]}")
        question = draw.form(ASKED[operation][draw.language]).format(a=a, b=b)
        return called(draw, question, f"{a}{operation}{b}", f"{a} {SIGNS[operation]} {b} = ")

    return ask


def calculate_two(draw: Draw) -> Item:
    """Two operations, sometimes with parentheses."""

    def expression() -> str:
        a, b, c = _size(draw, 3), _size(draw, 2), _size(draw, 2)
        first, second = draw.pick("+-*"), draw.pick("+-*")
        style = draw.number(0, 2)
        return (f"{a}{first}{b}{second}{c}", f"({a}{first}{b}){second}{c}", f"{a}{first}({b}{second}{c})")[style]

    plain = draw.combination(expression)
    shown = plain.replace("*", draw.pick("×*")) if draw.chance(0.7) else plain
    return called(draw, draw.form(ASKED_TWO[draw.language]).format(e=shown), plain, plain.replace("*", "×") + " = ")


def called(draw: Draw, question: str, expression: str, start: str) -> Item:
    """The item whose answer goes through the calculator; `start` stands before the result."""
    result = number_text(evaluate(expression))
    end = "" if start.endswith("= ") else "。" if draw.zh else "."  # an equation is the same in both languages
    return Item([user(question), *calculator(expression, result), assistant(start + result + end)], "call", (result,))


def _operands(draw: Draw, operation: str) -> tuple[int, int]:
    if operation == "*":
        return _size(draw, 3), _size(draw, 2)
    if operation == "/":
        b = _size(draw, 2) + 1
        return (b * _size(draw, 2) if draw.chance(0.6) else _size(draw, 3) + 1), b
    a, b = _size(draw, 4), _size(draw, 4)
    return (max(a, b), min(a, b)) if operation == "-" and draw.chance(0.85) else (a, b)


def _size(draw: Draw, digits: int) -> int:
    """A number of one to `digits` digits, each length as likely."""
    length = draw.number(1, digits)
    return draw.number(10 ** (length - 1) if length > 1 else 1, 10**length - 1)


# --- word problems ---------------------------------------------------------------------------------------------------

THINGS = forms("things")
PROBLEMS = {key: forms(f"problem.{key}") for key in ("+", "-", "*", "/")}


def word_problem(operation: str) -> Callable[[Draw], Item]:
    """A little story whose question is one operation."""

    def ask(draw: Draw) -> Item:
        def operands() -> tuple[int, int]:
            if operation == "*":
                return draw.number(2, 60), draw.number(2, 60)
            if operation == "/":
                b = draw.number(2, 30)
                return b * draw.number(2, 40), b
            a, b = draw.number(2, 500), draw.number(2, 500)
            return (a, b) if operation == "+" else (max(a, b) + 1, min(a, b))

        a, b = draw.combination(operands, lambda pair: f"{pair[0]}{operation}{pair[1]}")
        form = draw.form(PROBLEMS[operation][draw.language])
        question = form.format(n=first_name(draw), a=a, b=b, t=draw.pick(THINGS[draw.language]))
        return called(draw, question, f"{a}{operation}{b}", "答案是" if draw.zh else "The answer is ")

    return ask


# --- steps -----------------------------------------------------------------------------------------------------------

STEP_FORMS = {key: forms(f"steps.{key}") for key in ("+", "-")}


def steps(operation: str) -> Callable[[Draw], Item]:
    """Addition or subtraction by hand: digits one by one from the right, with carries, then the answer."""

    def ask(draw: Draw) -> Item:
        def operands() -> tuple[int, int]:
            digits = draw.number(2, 4)
            low, high = 10 ** (digits - 1), 10**digits - 1
            a, b = draw.number(low, high), draw.number(low if draw.chance(0.7) else 10, high)
            return (a, b) if operation == "+" else (max(a, b), min(a, b))

        a, b = draw.combination(operands, lambda pair: f"{pair[0]}{operation}{pair[1]}")
        question = draw.form(STEP_FORMS[operation][draw.language]).format(a=a, b=b)
        result = a + b if operation == "+" else a - b
        working = write_steps(a, b, operation, draw.language)
        return Item([user(question), assistant(working)], "steps", (str(result),))

    return ask


def write_steps(a: int, b: int, operation: str, language: str) -> str:
    """The working of a + b or a - b (a >= b >= 0), as `4 8 + 0 7. 8+7=15, write 5, carry 1. 4+0+1=5, write 5. 5 5.`"""
    width = max(len(str(a)), len(str(b)))
    top, bottom = str(a).zfill(width), str(b).zfill(width)
    zh = language == "zh"
    stop, comma, write = ("。", "，", "写") if zh else (". ", ", ", "write ")
    word = ("进1" if zh else "carry 1") if operation == "+" else ("借1" if zh else "borrow 1")
    parts, digits, carry = [f"{' '.join(top)} {operation} {' '.join(bottom)}"], "", 0
    for x, y in zip(reversed(top), reversed(bottom), strict=True):
        extra = f"{operation}1" if carry else ""
        if operation == "+":
            total = int(x) + int(y) + carry
            carry = total // 10
            sum_text = f"{x}+{y}{extra}={total}"
        else:
            borrow = int(int(x) < int(y) + carry)
            total = int(x) - int(y) - carry + 10 * borrow
            sum_text = f"{'1' if borrow else ''}{x}-{y}{extra}={total}"
            carry = borrow
        digits = str(total % 10) + digits
        parts.append(f"{sum_text}{comma}{write}{total % 10}{comma + word if carry else ''}")
    digits = ("1" if operation == "+" and carry else "") + digits
    parts.append(" ".join(digits))
    result = int(digits)
    return stop.join(parts) + stop + (f"答案是{result}。" if zh else f"The answer is {result}.")
