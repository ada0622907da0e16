"""Tools a model may call: a name, a JSON schema of the arguments, a function from arguments to text.

A tool never raises for what a model wrote: its errors are text beginning with `error: `, for the model to read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from operator import add, floordiv, mod, mul, sub, truediv
from typing import Any

MAX_CHARACTERS = 200  # of an expression; also bounds the parser's depth
MAX_DIGITS = 100  # of a result's numerator or denominator; a power that would pass it is never computed
DECIMALS = 6

_TOKEN = re.compile(r"\s*(?:(?P<number>\d+(?:\.\d*)?|\.\d+)|(?P<sign>\*\*|//|[-+*/%()]))", re.ASCII)
_PLAIN = str.maketrans({"×": "*", "÷": "/", "−": "-", "（": "(", "）": ")"})
# how tightly a sign binds, to the left, and what it does
_SIGNS = {"+": (1, add), "-": (1, sub), "*": (2, mul), "/": (2, truediv), "//": (2, floordiv), "%": (2, mod)}


class _Refused(Exception):
    """An expression that has no value here; the text is what the model reads."""


@dataclass(frozen=True)
class Tool:
    """What a model may call. `parameters` is the JSON schema of its arguments, `run` gives the text it reads back."""

    description: str
    parameters: Mapping[str, Any]
    run: Callable[[dict[str, Any]], str]


def calculate(expression: str) -> str:
    """Value of an arithmetic expression as text, exact inside: `0.1 + 0.2` is `0.3`, `2 / 3` is `0.666667`.

    Numbers, + - * / // % **, unary minus and parentheses, with Python's precedence and Python's // and %
    (also × ÷ − （ ）, and ^ for **). Whole results print as integers, others rounded half to even to 6 decimals without
    trailing zeros. Whatever cannot be computed gives `error: …`.
    """
    try:
        return number_text(_Parser(expression).value())
    except _Refused as refused:
        return f"error: {refused}"
    except ZeroDivisionError:
        return "error: division by zero"


def number_text(value: Fraction) -> str:
    """Print an exact number: an integer as one, anything else to 6 decimals without trailing zeros."""
    scaled = round(value * 10**DECIMALS)  # Fraction rounds half to even, exactly
    whole, part = divmod(abs(scaled), 10**DECIMALS)
    decimals = f"{part:0{DECIMALS}d}".rstrip("0")
    return ("-" if scaled < 0 else "") + str(whole) + ("." + decimals if decimals else "")


class _Parser:
    """Precedence climbing over a list of number and sign tokens (Richards, 1979)."""

    def __init__(self, expression: str) -> None:
        if len(expression) > MAX_CHARACTERS:
            raise _Refused(f"expression longer than {MAX_CHARACTERS} characters")
        self.tokens = _split(expression.translate(_PLAIN).replace("^", "**"))
        self.at = 0

    def value(self) -> Fraction:
        if not self.tokens:
            raise _Refused("empty expression")
        result = self.sum(1)
        if self.at < len(self.tokens):
            raise _Refused(f"did not expect {self.tokens[self.at]!r}")
        return result

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def sum(self, lowest: int) -> Fraction:
        """Everything joined by operators that bind at least as tightly as `lowest`."""
        left = self.signed()
        while (found := _SIGNS.get(self.peek())) and found[0] >= lowest:
            binding, does = found
            self.take()
            left = _bounded(Fraction(does(left, self.sum(binding + 1))))
        return left

    def signed(self) -> Fraction:
        """A power with any signs before it; as in Python, -2**2 is -4."""
        if self.peek() in ("-", "+"):
            return -self.signed() if self.take() == "-" else self.signed()
        base = self.atom()
        if self.peek() == "**":
            self.take()
            return _power(base, self.signed())  # binds to the right
        return base

    def atom(self) -> Fraction:
        if not self.peek():
            raise _Refused("expression ends too early")
        token = self.take()
        if token == "(":
            inner = self.sum(1)
            if self.peek() != ")":
                raise _Refused("a parenthesis is not closed")
            self.take()
            return inner
        if not (token[0].isdigit() or token[0] == "."):
            raise _Refused(f"did not expect {token!r}")
        return _bounded(Fraction(token))


def _split(expression: str) -> list[str]:
    tokens, at, end = [], 0, len(expression.rstrip())
    while at < end:
        match = _TOKEN.match(expression, at)
        if match is None:
            raise _Refused(f"cannot read {expression[at:].strip()[:20]!r}")
        tokens.append(match["number"] or match["sign"])
        at = match.end()
    return tokens


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise _Refused("exponent is not a whole number")
    size = max(abs(base.numerator), base.denominator)
    if abs(exponent) * (size.bit_length() - 1) > MAX_DIGITS * 4:  # a digit is under 4 bits; checked before the work
        raise _Refused("number too large")
    return _bounded(Fraction(base**exponent.numerator))


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) >= 10**MAX_DIGITS:
        raise _Refused("number too large")
    return value


def run_call(name: str, arguments: str, tools: Mapping[str, Tool]) -> str:
    """Run one call as the model wrote it (`arguments` is JSON text); every mistake comes back as text."""
    if name not in tools:
        return f"error: no tool named {name!r}"
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return "error: arguments are not JSON"
    if not isinstance(parsed, dict):
        return "error: arguments are not a JSON object"
    missing = [key for key in tools[name].parameters.get("required", ()) if key not in parsed]
    if missing:
        return f"error: argument {missing[0]!r} is missing"
    return tools[name].run(parsed)


TOOLS: dict[str, Tool] = {
    "calculator": Tool(
        description="Computes an arithmetic expression exactly.",
        parameters={
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "for example (12+3)*7"}},
            "required": ["expression"],
        },
        run=lambda arguments: calculate(str(arguments.get("expression", ""))),
    )
}
