"""The figures of `eval.json` as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from liuli.evals.headline import HEADLINES, LANGUAGES
from liuli.evals.proportion import score
from liuli.evals.words import bytes_text, count_text, number, percent

NAMES = {"en": "English", "zh": "中文"}


def show(figures: dict[str, Any], console: Console) -> None:
    """Print what was measured; parts that were not are left out."""
    model = figures["model"]
    shape = " · ".join(f"{key} {value}" for key, value in model["shape"].items())
    console.print(
        f"[bold]{model['name']}[/bold]  {count_text(model['parameters'])} parameters · {model['preset']} · {shape}"
    )
    for table in (_headline(figures), _skills(figures), _bits(figures), _talk(figures), _speed(figures)):
        if table.row_count:
            console.print(table)
    if "asked" in figures:
        asked = figures["asked"]
        console.print(f"{asked['asked']:,} of {asked['of']:,} questions asked, {figures['seconds']:.0f} s in all.")


def _headline(figures: dict[str, Any]) -> Table:
    table = Table("Held-out questions", "target", *NAMES.values(), title="What it can do", title_justify="left")
    targets = {one.name: one.target for one in HEADLINES}
    for row in figures.get("headline", []):
        target = targets.get(row["name"], row["target"])
        table.add_row(row["title"], percent(target), *(_interval(row.get(code), target) for code in LANGUAGES))
    return table


def _skills(figures: dict[str, Any]) -> Table:
    rows = figures.get("skills", [])
    columns = [f"{name}, {kind}" for name in NAMES.values() for kind in ("as trained", "held out")]
    table = Table("Skill", *columns, title="Skill by skill", title_justify="left")
    for skill in sorted({row["skill"] for row in rows}):
        own = [row for row in rows if row["skill"] == skill]
        cells = [_pooled(own, code, held) for code in LANGUAGES for held in (False, True)]
        table.add_row(skill, *(_interval(cell) for cell in cells))
    return table


def _bits(figures: dict[str, Any]) -> Table:
    table = Table("Held-out text", "bits per byte", "before tuning", "bytes", "bytes per token", title_justify="left")
    for code, bits in figures.get("bits", {}).items():
        per_token = bits["bytes"] / max(bits["tokens"], 1)
        before = figures.get("bits_before", {}).get(code)
        earlier = f"{before['per_byte']:.4f}" if before else "–"
        size = f"{bits['bytes']:,}"
        table.add_row(NAMES.get(code, code), f"{bits['per_byte']:.4f}", earlier, size, number(per_token))
    return table


def _talk(figures: dict[str, Any]) -> Table:
    table = Table("Sampled answers", "n", "end by themselves", "loop", "repeated 4-grams", "tokens")
    for code, talk in figures.get("talk", {}).items():
        shares = [percent(talk[key]) for key in ("ended", "looping", "repeated")]
        table.add_row(NAMES.get(code, code), str(talk["n"]), *shares, f"{talk['length']:.0f}")
    return table


def _speed(figures: dict[str, Any]) -> Table:
    speed = figures.get("speed", {})
    table = Table("Weights", "peak memory", "reading, tokens/s", "writing 1", "writing 16")
    if speed:
        rates = [count_text(speed[f"{key}_tokens_per_s"]) for key in ("prefill", "decode_1", "decode_16")]
        table.add_row(bytes_text(speed["parameter_bytes"]), bytes_text(speed.get("peak_rss_bytes")), *rates)
    return table


def _pooled(rows: Sequence[dict[str, Any]], language: str, held_out: bool) -> dict[str, Any]:
    own = [row for row in rows if row["language"] == language and (row["split"] != "train") == held_out]
    return score(sum(row["right"] for row in own), sum(row["n"] for row in own))


def _interval(cell: dict[str, Any] | None, target: float | None = None) -> str:
    if not cell or not cell["n"]:
        return "[dim]–[/dim]"
    colour = "" if target is None else "green" if cell["accuracy"] >= target else "red"
    text = f"{percent(cell['accuracy'])}"
    text = f"[{colour}]{text}[/{colour}]" if colour else text
    return f"{text} [dim]{percent(cell['low'])}–{percent(cell['high'])} n {cell['n']}[/dim]"
