"""`report.html`: what a build made, how, and how good it is, on one page that needs no network and no second file.

Comes in: a run folder (design.md names its files). Goes out: the page. Whatever is missing in the folder is missing on
the page, no more: a report of a run that was stopped halfway is still a report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from liuli.errors import UsageError
from liuli.evals import sections
from liuli.evals.runfolder import Facts, Run, finite, read_run
from liuli.evals.words import both, clock, count_text, escape, machine_text, number, percent, section, table
from liuli.files import write_file

PREPARING = ("curriculum", "tokenizer", "rows", "pretrain", "reward", "evaluate")  # stages that make no chat model


def write_report(run_folder: str | Path) -> Path:
    """Read the run folder, write its `report.html`, return that path."""
    folder = Path(run_folder)
    if not folder.is_dir():
        raise UsageError("There is no such run folder.", folder, "Name the folder that `liuli build` made.")
    target = folder / "report.html"
    write_file(target, page(read_run(folder)))
    return target


def page(run: Run) -> str:
    """The whole document."""
    body = "".join(part(run) for part in (opening, *sections.PARTS, commands, machine))
    style, script = (_beside(name) for name in ("report.css", "report.js"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Liuli 琉璃 · {escape(run.path.name)}</title><style>{style}</style></head><body>"
        '<input type="radio" name="language" id="en" checked aria-label="English">'
        '<input type="radio" name="language" id="zh" aria-label="中文">'
        f"<main>{body}<footer>Liuli 琉璃</footer></main><script>{script}</script></body></html>\n"
    )


def opening(run: Run) -> str:
    """Title, what was asked for, and the plan beside what came of it."""
    boxes = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in facts(run)
    )
    lead = both(
        "This page records how a model that was a table of random numbers learned to talk: the plan, what happened, "
        "what it can do and what it cannot. Every figure comes from the files of this run.",
        "本页记录一张随机数表如何学会说话：计划、经过、它会什么、不会什么。每个数字都来自这次运行的文件。",
    )
    return (
        '<header><div class="switch"><label for="en">EN</label><label for="zh">中文</label></div>'
        f'<h1>{_title(run)}</h1><p class="lead">{lead}</p></header><dl class="facts">{boxes}</dl>'
    )


def facts(run: Run) -> list[tuple[str, str, str]]:
    """The few figures at the top: (name, value, note), those that are known."""
    plan, bits, before = run.plan, run.eval.get("bits", {}), run.eval.get("bits_before", {})
    tokens = sum(run.last("tokens").values()) or plan.get("tokens")
    flops = plan["flops"] * tokens / plan["tokens"] if finite(plan.get("flops")) else None
    reached = next(iter(run.last("bpb").values()), None)
    budget = 60 * plan["minutes"] if finite(plan.get("minutes")) else None
    right, asked = (sum(row[key] for row in run.eval.get("skills", [])) for key in ("right", "n"))
    rows = [
        (both("Parameters", "参数"), count_text(_parameters(run)), escape(_shape(plan))),
        (both("Tokens trained on", "训练词元"), count_text(tokens), _planned(plan.get("taught"), count_text)),
        (both("Compute", "计算量"), _flops(flops), both("floating-point operations", "次浮点运算")),
        (both("Bits per byte", "每字节比特"), number(reached), _planned(plan.get("bpb"), number)),
        (both("Time", "用时"), clock(run.seconds) if run.seconds else "", _planned(budget, clock)),
    ]
    for code, label in (*sections.LANGUAGES, ("other", "…")):
        if code in bits:
            rows.append((both(f"Unseen text, {label}", f"未见文本，{label}"), *unseen(bits, before, code)))
    if asked:
        rows.append(
            (both("Questions right", "答对题目"), percent(right / asked), both(f"of {asked:,}", f"共 {asked:,} 道"))
        )
    return [row for row in rows if row[1]]


def unseen(bits: dict[str, Any], before: dict[str, Any], code: str) -> tuple[str, str]:
    """Bits per byte of a language as (value, note); where known, before the model was tuned to answer, and after."""
    after = number(bits[code]["per_byte"])
    if code not in before:
        return after, both("bits per byte", "每字节比特")
    note = both(f"bits per byte; {after} once it answers", f"每字节比特；学会回答后 {after}")
    return number(before[code]["per_byte"]), note


def commands(run: Run) -> str:
    """What to type next."""
    models = [stage["name"] for stage in run.stages if (run.path / stage["name"] / "config.json").exists()]
    models = [name for name in models if name != "reward"]
    model = run.path / models[-1] if models else run.path
    lines = f"liuli chat {model}\nliuli serve {model}\nliuli eval {model}"
    return section(both("Now you", "轮到你了"), "", f"<pre><code>{escape(lines)}</code></pre>")


def machine(run: Run) -> str:
    """Where and with what it was made; the plan and the recipe word by word."""
    known = {**run.eval.get("machine", {}), **run.plan.get("machine", {}), **run.eval.get("versions", {})}
    if "cpu" in known:
        known.pop("name", None)  # the same said shorter
    rows = [[escape(str(name).replace("_", " ")), escape(machine_text(name, value))] for name, value in known.items()]
    html = table([], rows) if rows else ""
    plan = escape(json.dumps(run.plan, indent=2, ensure_ascii=False)) if run.plan else ""
    for title, text in ((both("The plan in full", "完整计划"), plan), (both("The recipe", "配方"), escape(run.recipe))):
        if text:
            html += f"<details><summary>{title}</summary><pre><code>{text}</code></pre></details>"
    return section(both("Machine and versions", "机器与版本"), "", html) if html else ""


def _title(run: Run) -> str:
    talks = any(stage["name"] not in PREPARING for stage in run.stages)
    size = count_text(_parameters(run))
    en = "A chat model" if talks else "A language model"
    zh = "对话模型" if talks else "语言模型"
    if size:
        en, zh = f"{en} of {size} parameters", f"{size} 参数的{zh}"
    if run.seconds:
        en, zh = f"{en}, built in {clock(run.seconds)}", f"{zh}，用时 {clock(run.seconds)}"
    return both(en, zh)


def _parameters(run: Run) -> Any:
    return run.eval.get("model", {}).get("parameters") or run.plan.get("parameters")


def _planned(value: Any, text: Callable[[Any], str]) -> str:
    return both(f"planned {text(value)}", f"计划 {text(value)}") if finite(value) else ""


def _shape(plan: Facts) -> str:
    shape = plan.get("shape") or plan.get("config") or plan
    size = f"{shape['layers']} × {shape['width']}" if shape.get("layers") and shape.get("width") else ""
    named = [f"{letter} {shape[key]}" for key, letter in (("vocab_size", "V"), ("context", "T")) if shape.get(key)]
    return " · ".join(part for part in (size, *named) if part)


def _flops(value: Any) -> str:
    if not finite(value) or value <= 0:
        return ""
    power = math.floor(math.log10(value))
    return f"{value / 10**power:.1f} × 10<sup>{power}</sup>"


def _beside(name: str) -> str:
    return package_files("liuli.evals").joinpath(name).read_text("utf-8")
