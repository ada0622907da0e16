"""Exact numbers: the value of a small expression, and how a number is printed (as the calculator prints it)."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from fractions import Fraction

DECIMALS = 6  # as in engine/tools.py; a test holds the two equal

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate(expression: str) -> Fraction:
    """Exact value of an expression of + - * / and parentheses; ValueError if it is anything else."""
    if len(expression) > 100:
        raise ValueError("expression too long")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body, expression.strip())
    except (SyntaxError, ZeroDivisionError) as error:
        raise ValueError(str(error)) from error


def number_text(value: Fraction | int) -> str:
    """An integer as one, anything else rounded half to even to 6 decimals without trailing zeros."""
    if isinstance(value, int) or value.denominator == 1:
        return str(int(value))
    scaled = round(value * 10**DECIMALS)
    whole, part = divmod(abs(scaled), 10**DECIMALS)
    decimals = f"{part:0{DECIMALS}d}".rstrip("0")
    return ("-" if scaled < 0 else "") + str(whole) + ("." + decimals if decimals else "")


def _value(node: ast.expr, source: str) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(ast.get_source_segment(source, node) or "")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, source)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, source), _value(node.right, source))
    raise ValueError(f"cannot read {source!r}")
