"""The calculator is exact, bounded, and never raises for what a model wrote."""

from __future__ import annotations

import json
from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuli.engine import TOOLS, calculate, number_text
from liuli.engine.tools import run_call


def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    sign = st.sampled_from(["+", "-", "*", "/", "//", "%"])
    joined = st.builds("{} {} {}".format, inner, sign, inner)
    return st.one_of(
        joined, st.builds("({})".format, inner), st.builds("-{}".format, inner), st.builds("{}**2".format, inner)
    )


expressions = st.recursive(st.integers(0, 99).map(str), nested, max_leaves=8).filter(lambda text: len(text) <= 100)


@settings(max_examples=200, deadline=None)
@given(expressions)
def test_values_equal_pythons_over_exact_fractions(expression: str) -> None:
    exact = "".join(f"Fraction({part})" if part.isdigit() else part for part in _parts(expression))
    try:
        wanted = number_text(Fraction(eval(exact)))
    except ZeroDivisionError:
        wanted = "error: division by zero"
    except ValueError:  # Python prints no integer of more than 4,300 digits
        wanted = "error: number too large"
    assert calculate(expression) in (wanted, "error: number too large")


def _parts(expression: str) -> list[str]:
    """Numbers and the rest; the exponent 2 stays a plain integer."""
    spaced = expression.replace("**2", " POWER ")
    for sign in ("//", "/", "+", "-", "*", "%", "(", ")"):
        spaced = spaced.replace(sign, f" {sign} ") if sign != "/" else spaced
    spaced = " ".join(spaced.replace(" // ", " FLOOR ").replace("/", " / ").replace("FLOOR", "//").split())
    return [part.replace("POWER", "**2") for part in spaced.split(" ")]


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("12*7", "84"),
        ("10/4", "2.5"),
        ("0.1+0.2", "0.3"),
        ("-2**2", "-4"),
        ("2**3**2", "512"),
        ("2/3", "0.666667"),
        ("-1/3", "-0.333333"),
        ("1/2000000", "0"),
        ("3/2000000", "0.000002"),
        ("-7//2", "-4"),
        ("7%-3", "-2"),
        ("（3+4）×6÷2", "21"),
        ("1/0", "error: division by zero"),
        ("0**-1", "error: division by zero"),
        ("9**9**9", "error: number too large"),
        ("2**0.5", "error: exponent is not a whole number"),
        ("", "error: empty expression"),
        ("12*", "error: expression ends too early"),
        ("(1+2", "error: a parenthesis is not closed"),
        ("12 7", "error: did not expect '7'"),
        ("__import__('os')", "error: cannot read \"__import__('os')\""),
        ("1" * 201, "error: expression longer than 200 characters"),
    ],
)
def test_calculator_says(expression: str, says: str) -> None:
    assert calculate(expression) == says


@settings(max_examples=200, deadline=timedelta(seconds=30))  # a guard against lingering, no measurement
@given(st.text(alphabet="0123456789.*/+-()% eE_jx", max_size=200))
def test_no_text_makes_the_calculator_raise_or_linger(expression: str) -> None:
    assert calculate(expression)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("calculator", json.dumps({"expression": "6*7"}), "42"),
        ("calculator", '{"expression": 5}', "5"),
        ("calculator", "{6*7}", "error: arguments are not JSON"),
        ("calculator", "[" * 100_000, "error: arguments are not JSON"),
        ("calculator", "[1]", "error: arguments are not a JSON object"),
        ("calculator", "{}", "error: argument 'expression' is missing"),
        ("clock", "{}", "error: no tool named 'clock'"),
    ],
)
def test_every_mistake_in_a_call_comes_back_as_text(name: str, arguments: str, says: str) -> None:
    assert run_call(name, arguments, TOOLS) == says
