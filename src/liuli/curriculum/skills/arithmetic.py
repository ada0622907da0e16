"""Arithmetic: through the calculator, in word problems that lead to it, and by hand in written steps."""
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from liuli.curriculum.draw import Draw
from liuli.curriculum.invent import first_name
from liuli.curriculum.items import Item, assistant, calculator, user
from liuli.curriculum.numbers import number_text

SIGNS = {"+": "+", "-": "-", "*": "×", "/": "÷"}
ASKED = {  # operation -> language -> wordings, the last one held out
    "+": {
        "en": ("What is {a} + {b}?", "{a} + {b}", "{a}+{b}=?", "How much is {a} plus {b}?", "Add {a} and {b}.", "Compute {a} + {b}.",
               "What is {a} plus {b}?"),
        "zh": ("{a} + {b}等于多少？", "{a}加{b}等于多少？", "{a}+{b}=?", "{a}加{b}是多少？", "算一算{a}+{b}。", "把{a}和{b}加起来。", "计算{a}加{b}。"),
    },
    "-": {
        "en": ("What is {a} - {b}?", "{a} - {b}", "{a}-{b}=?", "How much is {a} minus {b}?", "Subtract {b} from {a}.", "Compute {a} - {b}.",
               "What is {a} minus {b}?"),
        "zh": ("{a} - {b}等于多少？", "{a}减{b}等于多少？", "{a}-{b}=?", "{a}减{b}是多少？", "算一算{a}-{b}。", "从{a}里减去{b}。", "计算{a}减{b}。"),
    },
    "*": {
        "en": ("What is {a} × {b}?", "{a} * {b}", "{a}*{b}=?", "How much is {a} times {b}?", "Multiply {a} by {b}.", "Compute {a} x {b}.",
               "What is {a} times {b}?"),
        "zh": ("{a} × {b}等于多少？", "{a}乘{b}等于多少？", "{a}*{b}=?", "{a}乘以{b}是多少？", "算一算{a}×{b}。", "{a}的{b}倍是多少？", "计算{a}乘{b}。"),
    },
    "/": {
        "en": ("What is {a} ÷ {b}?", "{a} / {b}", "{a}/{b}=?", "How much is {a} divided by {b}?", "Divide {a} by {b}.", "Compute {a} / {b}.",
               "What is {a} divided by {b}?"),
        "zh": ("{a} ÷ {b}等于多少？", "{a}除以{b}等于多少？", "{a}/{b}=?", "{a}除以{b}是多少？", "算一算{a}÷{b}。", "把{a}平均分成{b}份。", "计算{a}除以{b}。"),
    },
}
ASKED_TWO = {
    "en": ("What is {e}?", "{e}", "{e}=?", "How much is {e}?", "Please compute {e}.", "Work out {e}.", "Compute {e}."),
    "zh": ("{e}等于多少？", "{e}", "{e}=?", "{e}是多少？", "请计算{e}。", "算一算{e}。", "计算{e}。"),
}


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
    result = number_text(_value(expression))
    end = "。" if draw.zh else "."
    return Item([user(question), *calculator(expression, result), assistant(start + result + end)], "call", (result,))


def _value(expression: str) -> Fraction:
    """Our own expressions hold only digits, signs and parentheses."""
    if "/" in expression:
        a, b = expression.split("/")
        return Fraction(int(a), int(b))
    return Fraction(eval(expression, {"__builtins__": {}}))


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

THINGS = {
    "en": ("apples", "pears", "books", "coins", "stamps", "eggs", "shells", "marbles", "cards", "stones", "flowers", "pencils", "nuts",
           "cookies", "buttons", "balloons"),
    "zh": ("个苹果", "个梨", "本书", "枚硬币", "张邮票", "个鸡蛋", "枚贝壳", "颗弹珠", "张卡片", "块石头", "朵花", "支铅笔", "颗坚果", "块饼干", "粒纽扣",
           "只气球"),
}
PROBLEMS = {
    "+": {
        "en": ("{n} has {a} {t} and buys {b} more. How many {t} does {n} have now?", "{n} finds {a} {t}, then {b} more. How many {t} are there?",
               "There are {a} {t} in a box. {n} adds {b}. How many {t} are in the box?", "{n} has {a} {t} and gets {b} more. How many {t} are there now?",
               "{n} buys {a} {t}, then {b} more. How many {t} does {n} have?"),
        "zh": ("{n}有{a}{t}，又买了{b}{t}。现在有多少{t}？", "{n}先找到{a}{t}，又找到{b}{t}。一共有多少{t}？", "盒子里有{a}{t}，{n}放进{b}{t}。现在有多少{t}？",
               "{n}有{a}{t}，又得到{b}{t}。现在有多少{t}？", "{n}买了{a}{t}，又买了{b}{t}。一共有多少{t}？"),
    },
    "-": {
        "en": ("{n} has {a} {t} and gives away {b}. How many {t} are left?", "{n} had {a} {t} and lost {b}. How many {t} are left?",
               "There are {a} {t} in a box. {n} takes {b}. How many {t} are in the box?", "{n} has {a} {t} and sells {b}. How many {t} does {n} have now?",
               "{n} had {a} {t} and gives away {b}. How many {t} does {n} have now?"),
        "zh": ("{n}有{a}{t}，送出{b}{t}。还剩多少{t}？", "{n}有{a}{t}，丢了{b}{t}。还剩多少{t}？", "盒子里有{a}{t}，{n}拿走{b}{t}。还有多少{t}？",
               "{n}有{a}{t}，卖掉{b}{t}。还剩多少{t}？", "{n}有{a}{t}，拿走{b}{t}。还剩多少{t}？"),
    },
    "*": {
        "en": ("{n} has {a} boxes with {b} {t} each. How many {t} are there?", "{a} bags hold {b} {t} each. How many {t} are there?",
               "{n} buys {a} packs of {b} {t}. How many {t} does {n} have?", "There are {a} rows of {b} {t}. How many {t} are there?",
               "{n} has {a} bags of {b} {t}. How many {t} are there?"),
        "zh": ("{n}有{a}个盒子，每盒{b}{t}。一共有多少{t}？", "{a}个袋子，每袋{b}{t}。一共有多少{t}？", "{n}买了{a}包，每包{b}{t}。一共有多少{t}？",
               "有{a}排，每排{b}{t}。一共有多少{t}？", "{n}有{a}个袋子，每袋{b}{t}。有多少{t}？"),
    },
    "/": {
        "en": ("{n} shares {a} {t} among {b} friends. How many {t} does each get?", "{a} {t} are put into {b} bags. How many {t} are in each bag?",
               "{n} puts {a} {t} into {b} equal rows. How many {t} are in a row?", "{b} friends share {a} {t}. How many {t} does each get?",
               "{n} puts {a} {t} into {b} bags. How many {t} are in each bag?"),
        "zh": ("{n}把{a}{t}平均分给{b}个朋友。每人有多少{t}？", "{a}{t}平均装进{b}个袋子。每袋有多少{t}？", "{n}把{a}{t}平均摆成{b}排。每排有多少{t}？",
               "{b}个朋友平分{a}{t}。每人有多少{t}？", "{n}把{a}{t}平均装进{b}个袋子。每袋有多少{t}？"),
    },
}


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

STEP_FORMS = {
    "+": {
        "en": ("Add {a} + {b} step by step.", "Compute {a} + {b} step by step.", "{a} + {b}, with steps", "Show the steps: {a} + {b}",
               "Step by step: what is {a} + {b}?", "Show the steps of {a} + {b}.", "Compute {a} + {b} with steps."),
        "zh": ("一步一步算{a} + {b}。", "请列出{a} + {b}的步骤。", "{a} + {b}，写出步骤", "写出步骤：{a} + {b}", "一步一步算：{a} + {b}等于多少？",
               "写出{a} + {b}的步骤。", "请一步一步算{a} + {b}。"),
    },
    "-": {
        "en": ("Subtract {a} - {b} step by step.", "Compute {a} - {b} step by step.", "{a} - {b}, with steps", "Show the steps: {a} - {b}",
               "Step by step: what is {a} - {b}?", "Show the steps of {a} - {b}.", "Compute {a} - {b} with steps."),
        "zh": ("一步一步算{a} - {b}。", "请列出{a} - {b}的步骤。", "{a} - {b}，写出步骤", "写出步骤：{a} - {b}", "一步一步算：{a} - {b}等于多少？",
               "写出{a} - {b}的步骤。", "请一步一步算{a} - {b}。"),
    },
}


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
    """The working of a + b or a - b (a >= b >= 0): `4 8 + 0 7. 8+7=15, write 5, carry 1. 4+0+1=5, write 5. 5 5. It is 55.`"""
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
