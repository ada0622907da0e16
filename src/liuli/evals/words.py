"""Numbers and sentences as a reader of the report sees them: short, and in both languages."""

from __future__ import annotations

import html
import math
from typing import Any


def escape(text: str) -> str:
    """Text that came from elsewhere, harmless inside HTML."""
    return html.escape(text, quote=True)


def both(en: str, zh: str) -> str:
    """The same in English and Chinese; the page shows one of them."""
    return f'<span class="en">{en}</span><span class="zh" lang="zh">{zh}</span>'


def percent(share: float) -> str:
    """0.983 -> 98.3%; never 100% for anything less than all, nor 0% for anything more than none."""
    text = f"{100 * share:.1f}"
    if text == "100.0" and share < 1:
        text = "99.9"
    if text == "0.0" and share > 0:
        text = "0.1"
    return text.removesuffix(".0") + "%"


def number(value: Any) -> str:
    """A figure with three significant digits or so; empty for none."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def count_text(value: Any) -> str:
    """2160000 -> 2.16M; empty for none."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P"), "")


def bytes_text(value: Any) -> str:
    """Bytes in binary units; empty for none."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"), " ")


def clock(seconds: Any) -> str:
    """Seconds as minutes:seconds or hours:minutes:seconds, read the same in every language; empty for none."""
    if not isinstance(seconds, (int, float)):
        return ""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _scaled(value: Any, base: int, units: tuple[str, ...], space: str) -> str:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return ""
    scaled, unit = float(value), 0
    while abs(scaled) >= base and unit < len(units) - 1:
        scaled, unit = scaled / base, unit + 1
    digits = f"{scaled:.0f}" if unit == 0 or scaled >= 100 else f"{scaled:.1f}" if scaled >= 10 else f"{scaled:.2f}"
    return f"{digits}{space}{units[unit]}"
