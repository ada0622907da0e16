"""Numbers as pictures for the report: inline SVG and HTML that need nothing from outside the page.

Lines are drawn in a 100 by 100 box stretched to whatever width the reader's screen has; labels are HTML laid over it at
percentages, so that text stays readable on a phone and the picture fills a desktop. Knows nothing of models or runs.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from liuli.evals.words import clock

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve. points: (x, y) in data units, x ascending. style: "main", "faint" (behind) or "dashed"."""

    points: Sequence[Point]
    colour: int = 0
    style: str = "main"


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis with a name, drawn as a tinted background. label is HTML."""

    start: float
    end: float
    label: str


def smooth(points: Sequence[Point], share: float = 0.02) -> list[Point]:
    """Mean of y over a window of that share of the points, centred, so that a falling curve is not drawn late."""
    reach = int(len(points) * share / 2)
    sums = [0.0, *accumulate(y for _, y in points)]
    result = []
    for i, (x, _) in enumerate(points):
        half = min(reach, i, len(points) - 1 - i)
        result.append((x, (sums[i + half + 1] - sums[i - half]) / (2 * half + 1)))
    return result


def thin(points: Sequence[Point], most: int = 300) -> list[Point]:
    """At most `most` of the points, evenly spaced, first and last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], about `count` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def time_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round moments of a clock (in seconds) inside [low, high], about `count` of them."""
    steps = [1, 2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 900, 1200, 1800, 3600, 7200, 14400, 43200, 86400]
    step = min(steps, key=lambda s: abs((high - low) / s - count))
    return [n * float(step) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers for a logarithmic axis; falls back on linear ones within less than a factor of three."""
    if high / low < 3:
        return ticks(low, high, count)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [m * 10.0**p for p in powers for m in (1, 1.5, 2, 3, 5, 7)]
    inside = [t for t in fine if low <= t <= high]
    return inside if len(inside) <= 1.5 * count else inside[:: math.ceil(len(inside) / count)]


def plot(
    lines: Sequence[Line],
    *,
    y_text: Callable[[float], str],
    x_text: Callable[[float], str] | None = None,
    bands: Sequence[Band] = (),
    marks: Sequence[tuple[float, str]] = (),
    log: bool = False,
    large: bool = False,
) -> str:
    """A chart as HTML, x in seconds, or in what `x_text` tells. marks: dashed horizontal lines (y, HTML label).
    log: logarithmic y axis."""
    drawn = [Line([p for p in line.points if not log or p[1] > 0], line.colour, line.style) for line in lines]
    xs = [x for line in drawn for x, _ in line.points] + [x for band in bands for x in (band.start, band.end)]
    ys = [y for line in drawn if line.style != "faint" for _, y in line.points] + [y for y, _ in marks]
    if not xs or not ys:
        return '<p class="none">–</p>'
    left, right = min(xs), max(max(xs), min(xs) + 1e-9)
    low, high = _range(ys, log)

    def across(x: float) -> float:
        return 100 * (x - left) / (right - left)

    def scale(y: float) -> float:
        return math.log(y) if log else y

    def down(y: float) -> float:
        return 100 * (scale(high) - scale(y)) / (scale(high) - scale(low))

    parts = [f'<div class="plot{" large" if large else ""}"><div class="box">']
    for number, band in enumerate(bands):
        start, width = across(band.start), across(band.end) - across(band.start)
        parts.append(f'<div class="band b{number % 2}" style="left:{start:.2f}%;width:{width:.2f}%"></div>')
        if width > 7:
            parts.append(f'<span class="stage" style="left:{start:.2f}%;width:{width:.2f}%">{band.label}</span>')
    for tick in (log_ticks if log else ticks)(low, high, 7 if large else 4):
        text = re.sub(r"\.0+(?=\D|$)", "", y_text(tick))
        parts.append(f'<i class="grid" style="top:{down(tick):.2f}%"><b>{html.escape(text)}</b></i>')
    parts.append('<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">')
    parts.extend(_path(line, across, down) for line in drawn)
    parts.extend(f'<line class="mark" x1="0" x2="100" y1="{down(y):.2f}" y2="{down(y):.2f}"/>' for y, _ in marks)
    parts.append("</svg>")
    parts.extend(f'<span class="note" style="top:{down(y):.2f}%">{label}</span>' for y, label in marks)
    parts.append('<u class="cursor"></u><output></output></div><div class="axis">')
    told = x_text or clock
    for tick in (ticks if x_text else time_ticks)(left, right, 8 if large else 4):
        parts.append(f'<b style="left:{across(tick):.2f}%">{told(tick)}</b>')
    hover = [
        [round(across(x), 2), round(down(y), 2), f"{told(x)} · {y_text(y)}"]
        for line in drawn
        if line.style == "main"
        for x, y in thin(line.points, 120)
    ]
    parts.append(f'</div><script type="application/json">{json.dumps(hover)}</script></div>')
    return "".join(parts)


def accuracy_bar(accuracy: float, low: float, high: float, colour: int, target: float | None = None) -> str:
    """A 0 to 100% bar with its interval as a paler stretch and, if given, a tick at the target. All in 0..1."""
    tick = "" if target is None else f'<s style="left:{100 * target:.1f}%"></s>'
    return (
        f'<span class="bar c{colour}"><i style="width:{100 * accuracy:.1f}%"></i>'
        f'<em style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></em>{tick}</span>'
    )


def figure_bar(share: float, colour: int, text: str, note: str = "") -> str:
    """A figure beside a bar as long as its share of the largest one. text, note: HTML."""
    bar = f'<span class="bar c{colour}"><i style="width:{100 * max(0.0, share):.1f}%"></i></span>'
    return f'<div class="score">{bar}<b>{text}</b><small>{note}</small></div>'


def share_bar(parts: Sequence[tuple[str, float, str]]) -> str:
    """One stacked bar of shares with a legend beneath. parts: (HTML label, amount, text of the amount)."""
    total = sum(amount for _, amount, _ in parts) or 1.0
    stretches = "".join(
        f'<i class="s{n % 8}" style="flex:{max(amount / total, 0.004):.4f}"></i>'
        for n, (_, amount, _) in enumerate(parts)
    )
    legend = "".join(
        f'<li><i class="s{n % 8}"></i>{label} <b>{text}</b> <small>{100 * amount / total:.0f}%</small></li>'
        for n, (label, amount, text) in enumerate(parts)
    )
    return f'<div class="shares">{stretches}</div><ul class="legend">{legend}</ul>'


def _range(ys: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(ys), max(ys)
    if log:
        return low / 1.06, max(high * 1.06, low * 1.12)
    low = min(low, 0.0)
    return low, high + max(0.08 * abs(high), 1e-9)


def _path(line: Line, across: Callable[[float], float], down: Callable[[float], float]) -> str:
    points = thin(line.points)
    if not points:
        return ""
    steps = " ".join(f"{across(x):.2f},{max(-2.0, min(102.0, down(y))):.2f}" for x, y in points)
    return f'<polyline class="{line.style} l{line.colour % 8}" points="{steps}"/>'
