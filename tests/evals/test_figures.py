"""Every figure against what it must be by hand."""

from __future__ import annotations

import math
import re

import pytest

from liuli.evals import headline, score, wilson
from liuli.evals.charts import Line, log_ticks, plot, smooth, ticks, time_ticks
from liuli.evals.words import clock, count_text, number, percent


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_the_published_ones(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_ends_where_the_score_test_says() -> None:
    # the ends are the p at which (share - p)^2 = z^2 p (1 - p) / n
    z = 1.959963984540054
    for p in wilson(37, 50):
        assert (37 / 50 - p) ** 2 == pytest.approx(z * z * p * (1 - p) / 50, rel=1e-9)


def test_interval_of_none_begins_at_zero_and_of_all_ends_at_one_exactly() -> None:
    assert all(wilson(0, n)[0] == 0.0 and wilson(n, n)[1] == 1.0 for n in range(1, 200))


def test_nothing_asked_is_no_knowledge_not_a_crash() -> None:
    assert score(0, 0) == {"n": 0, "right": 0, "accuracy": 0.0, "low": 0.0, "high": 1.0}


def test_headline_pools_held_out_cells_and_leaves_training_ones_out() -> None:
    def cell(skill: str, split: str, right: int, n: int, language: str = "en") -> dict[str, object]:
        return {"skill": skill, "language": language, "split": split, **score(right, n)}

    skill = "add_steps"
    rows = [cell(skill, "train", 0, 50), cell(skill, "names", 9, 10), cell(skill, "combinations", 30, 30)]
    (one,) = headline([*rows, cell(skill, "train", 5, 8, "zh")])
    assert one["en"] == score(39, 40)
    assert one["zh"] == score(5, 8)  # nothing held out was asked in Chinese: what there is counts


def test_percent_never_rounds_up_to_all_or_down_to_none() -> None:
    assert [percent(share) for share in (1.0, 0.9999, 0.0001, 0.0, 0.5)] == ["100%", "99.9%", "0.1%", "0%", "50%"]


def test_times_and_counts_read_well() -> None:
    assert [clock(s) for s in (0, 59.6, 867, 3661)] == ["0:00", "1:00", "14:27", "1:01:01"]
    assert [count_text(n) for n in (999, 3_050_000, 26_500, 999_600)] == ["999", "3.05M", "26.5k", "1.00M"]


def test_figures_near_zero_are_told_apart_and_a_chart_below_zero_holds_its_line() -> None:
    assert [number(x) for x in (0.005, 0.01, 0.015, 0.0, -0.25)] == ["0.005", "0.010", "0.015", "0.00", "-0.25"]
    chart = plot([Line([(0.0, -0.9), (1.0, -0.6), (2.0, -0.3)], 0)], y_text=number)
    heights = [float(point.split(",")[1]) for point in re.findall(r'points="([^"]+)"', chart)[0].split()]
    assert min(heights) > 0 and max(heights) < 100.01


def test_axis_marks_are_round_and_inside() -> None:
    assert ticks(0, 0.02) == pytest.approx([0, 0.005, 0.01, 0.015, 0.02])
    assert time_ticks(71, 867) == [180, 360, 540, 720]
    assert all(0.2 <= t <= 8 for t in log_ticks(0.2, 8)) and len(log_ticks(0.2, 8)) >= 4


def test_smoothing_neither_shifts_a_straight_line_nor_changes_a_mean() -> None:
    line = [(float(x), 3.0 * x) for x in range(500)]
    assert [y for _, y in smooth(line)] == pytest.approx([y for _, y in line])
    noise = smooth([(float(x), math.sin(x)) for x in range(500)])
    assert max(abs(y) for _, y in noise[20:-20]) < 0.25
