"""Numbers and sentences as a reader of the report sees them: short, and in both languages."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from typing import Any

from liuli.curriculum.skills import chinese_titles

STAGES = {  # of a build; the page (web/src/words.json) calls them the same
    "curriculum": ("Write the textbook", "编写教材"),
    "tokenizer": ("Learn the tokens", "学习词元"),
    "rows": ("Lay out the pages", "排好书页"),
    "pretrain": ("Read", "阅读"),
    "chat": ("Learn to converse", "学习对话"),
    "reward": ("Learn what people prefer", "学习人的偏好"),
    "aligned": ("Learn from the scores (PPO)", "从得分中学习（PPO）"),
    "evaluate": ("Take the exam", "考试"),
}

KINDS = {  # of comparisons (curriculum/preferences.py): what the better answer has before the worse one
    "claim": ("“I don’t know”, not a made-up fact", "“我不知道”胜过编造"),
    "not known": ("The answer, not “I don’t know”", "答案胜过“我不知道”"),
    "citation": ("A passage cited by its number", "注明了段落编号"),
    "story": ("A whole story", "故事完整"),
    "no call": ("The calculator called", "调用了计算器"),
}

FAMILIES = {
    "facts": "真实知识",
    "people": "人物",
    "translation": "翻译",
    "tools": "用计算器",
    "steps": "分步计算",
    "memory": "记忆",
    "citation": "引用",
    "honesty": "不知为不知",
    "strings": "字词",
    "numbers": "数字",
    "calendar": "日历",
    "dialogue": "对话",
    "stories": "故事",
}


def escape(text: str) -> str:
    """Text that came from elsewhere, harmless inside HTML."""
    return html.escape(text, quote=True)


def both(en: str, zh: str) -> str:
    """The same in English and Chinese; the page shows one of them."""
    return f'<span class="en">{en}</span><span class="zh" lang="zh">{zh}</span>'


def section(title: str, lead: str, content: str) -> str:
    """A titled part of the page; lead: a sentence under the title, or empty."""
    return f"<section><h2>{title}</h2>" + (f'<p class="lead">{lead}</p>' if lead else "") + content + "</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in a card that scrolls sideways where the screen is narrow. head and rows: HTML; head may be empty."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="card wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def stage_title(name: str) -> str:
    """What a stage is called: in both languages where it is one of a build."""
    return both(*STAGES[name]) if name in STAGES else escape(name)


def skill_title(name: str) -> str:
    """A skill or a family of skills."""
    plain = escape(name.replace("_", " "))
    chinese = FAMILIES.get(name) or chinese_titles().get(name)
    return both(plain, chinese) if chinese else plain


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
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 or not size else 3
    return f"{value:.{digits}f}"


def count_text(value: Any) -> str:
    """2160000 -> 2.16M; empty for none."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E"), "")


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


def machine_text(name: str, value: Any) -> str:
    """A fact about a machine: rates in FLOP/s and memory in bytes become readable."""
    if name.endswith("_rate"):
        return f"{count_text(value)}FLOP/s"
    return bytes_text(value) if name == "memory" else value_text(value)


def value_text(value: Any) -> str:
    """Anything from a JSON file as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _scaled(value: Any, base: int, units: tuple[str, ...], space: str) -> str:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return ""
    scaled, unit = float(value), 0
    while abs(scaled) >= base - 0.5 and unit < len(units) - 1:  # 999,600 is 1.00M, not 1000k
        scaled, unit = scaled / base, unit + 1
    digits = f"{scaled:.0f}" if unit == 0 or scaled >= 100 else f"{scaled:.1f}" if scaled >= 10 else f"{scaled:.2f}"
    return f"{digits}{space}{units[unit]}"
