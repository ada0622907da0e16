"""`report.html`: what a build made, how, and how good it is, on one page that needs no network and no second file.

Comes in: a run folder (design.md names its files). Goes out: the page. Whatever is missing in the folder is missing on
the page, no more: a report of a run that was stopped halfway is still a report.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from liuli.errors import UsageError
from liuli.evals.charts import Band, Line, accuracy_bar, plot, share_bar, smooth
from liuli.evals.headline import HEADLINES, Headline
from liuli.evals.words import both, bytes_text, clock, count_text, escape, number, percent
from liuli.files import read_lines, write_file

Facts = dict[str, Any]
LANGUAGES = (("en", "EN"), ("zh", "中文"))
PAUSE = 120.0  # seconds between two log lines after which the run is taken to have stood still (stopped, later resumed)


@dataclass(frozen=True)
class Run:
    """The files of a run folder, read; empty where there is none. log and samples carry `at`, seconds of work so far."""

    path: Path
    plan: Facts
    status: Facts
    eval: Facts
    log: list[Facts]
    samples: list[Facts]
    recipe: str

    @property
    def stages(self) -> list[Facts]:
        return [stage for stage in self.status.get("stages", []) if stage.get("seconds")]


def write_report(run_folder: str | Path) -> Path:
    """Read the run folder, write its `report.html`, return that path."""
    folder = Path(run_folder)
    if not folder.is_dir():
        raise UsageError("There is no such run folder.", folder, "Name the folder that `liuli build` made.")
    target = folder / "report.html"
    write_file(target, page(read_run(folder)))
    return target


def read_run(folder: Path) -> Run:
    """All a report needs from a run folder."""
    records = {name: read_lines(folder / name) if (folder / name).exists() else [] for name in ("log.jsonl", "samples.jsonl")}
    clocked = work_clock([*records["log.jsonl"], *records["samples.jsonl"]])
    log, samples = clocked[: len(records["log.jsonl"])], clocked[len(records["log.jsonl"]) :]
    recipe = folder / "recipe.toml"
    return Run(
        folder,
        _json(folder / "plan.json"),
        _json(folder / "status.json"),
        _json(folder / "eval.json"),
        log,
        samples,
        recipe.read_text("utf-8") if recipe.exists() else "",
    )


def work_clock(records: list[Facts]) -> list[Facts]:
    """The records with `at`: seconds since the first of them, pauses (the run lay stopped) taken out."""
    times = sorted({float(record["time"]) for record in records})
    at, now = {}, 0.0
    for before, moment in zip([times[0], *times] if times else [], times, strict=False):
        step = moment - before
        now += step if step < PAUSE else 0.0
        at[moment] = now
    return [record | {"at": at[float(record["time"])]} for record in records]


def page(run: Run) -> str:
    """The whole document."""
    sections = (opening, headlines, curves, times, skills, chats, learning, talk_and_speed, commands, machine)
    body = "".join(section(run) for section in sections)
    style, script = (package_files("liuli.evals").joinpath(name).read_text("utf-8") for name in ("report.css", "report.js"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,'
        f'initial-scale=1"><title>Liuli 琉璃 · {escape(run.path.name)}</title><style>{style}</style></head><body>'
        '<input type="radio" name="language" id="en" checked aria-label="English">'
        f'<input type="radio" name="language" id="zh" aria-label="中文"><main>{body}</main><script>{script}</script></body></html>\n'
    )


def opening(run: Run) -> str:
    """Title, what was asked for, and the plan beside what came of it."""
    plan, model, bits = run.plan, run.eval.get("model", {}), run.eval.get("bits", {})
    reached = _last(run.log, "bpb")
    spent = sum(stage["seconds"] for stage in run.stages)
    budget = 60 * plan["minutes"] if plan.get("minutes") else None
    right, asked = (sum(row[key] for row in run.eval.get("skills", [])) for key in ("right", "n"))
    facts = [
        (both("Parameters", "参数"), count_text(plan.get("parameters") or model.get("parameters")), escape(_shape(plan))),
        (both("Tokens trained on", "训练词元"), count_text(_last(run.log, "tokens", total=True) or plan.get("tokens")), ""),
        (both("Compute", "计算量"), _flops(plan.get("flops")), both("floating-point operations", "次浮点运算")),
        (both("Bits per byte", "每字节比特"), number(reached), _expected(plan.get("bpb"), number) or both("in training", "训练中")),
        (both("Time", "用时"), clock(spent), _expected(budget, clock)),
        *((both(f"Held-out text, {label}", f"未见文本，{label}"), number(bits[code]["per_byte"]), both("bits per byte", "每字节比特"))
          for code, label in LANGUAGES if code in bits),
        (both("Questions right", "答对题目"), percent(right / asked) if asked else "", both(f"of {asked:,}", f"共 {asked:,} 道")),
    ]  # fmt: skip
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in facts if value)
    return (
        '<header><div class="switch"><label for="en">EN</label><label for="zh">中文</label></div>'
        f"<h1>{_title(run)}</h1><p class='lead'>"
        + both(
            "This page records how a model that was a table of random numbers learned to talk: the plan, what happened, "
            "what it can do and what it cannot. Every figure comes from the files of this run.",
            "本页记录一张随机数表如何学会说话：计划、经过、它会什么、不会什么。每个数字都来自这次运行的文件。",
        )
        + f"</p></header><dl class='facts'>{cells}</dl>"
    )


def headlines(run: Run) -> str:
    """The eight promises with their targets, by language."""
    rows = {row["name"]: row for row in run.eval.get("headline", [])}
    tiles = "".join(_tile(headline, rows[headline.name]) for headline in HEADLINES if headline.name in rows)
    if not tiles:
        return ""
    return _section(
        both("What it can do", "它会什么"),
        both(
            "Greedy answers to questions it has not seen in this form. The pale stretch is the 95% interval, the tick the target.",
            "贪心解码，题目的形式未曾见过。浅色段为 95% 区间，竖线为目标。",
        ),
        f'<div class="grid4">{tiles}</div>',
    )


def curves(run: Run) -> str:
    """Loss over working time with the stages marked; bits per byte, learning rate and speed in small."""
    names = list(dict.fromkeys(record["stage"] for record in run.log if record.get("loss") is not None))
    if not names:
        return ""
    titles = {stage.get("name"): _stage_title(stage) for stage in run.status.get("stages", [])}

    def lines(figure: str, faint: bool = True) -> list[Line]:
        drawn = []
        for colour, name in enumerate(names):
            points = [(r["at"], r[figure]) for r in run.log if r.get("stage") == name and _finite(r.get(figure))]
            if faint:
                drawn += [Line(points, colour, "faint"), Line(smooth(points), colour)]
            else:
                drawn.append(Line(points, colour))
        return drawn

    spans = [(name, [r["at"] for r in run.log if r.get("stage") == name]) for name in names]
    bands = [Band(min(at), max(at), titles.get(name, escape(name))) for name, at in spans]
    expected = run.plan.get("bpb")
    marks = [(float(expected), both("expected", "预期") + f" {number(expected)}")] if _finite(expected) else []
    small = [
        (both("Bits per byte", "每字节比特"), plot(lines("bpb"), y_text=number, marks=marks, log=True)),
        (both("Learning rate", "学习率"), plot(lines("lr", faint=False), y_text=lambda v: f"{v:.3g}")),
        (both("Tokens per second", "每秒词元"), plot(lines("tokens_per_s"), y_text=count_text)),
    ]
    large = plot(lines("loss"), y_text=number, bands=bands, log=True, large=True)
    return _section(
        both("How it learned", "它怎么学会的"),
        both(
            "Loss in nats per token (log scale) over minutes of work: the surprise at every next token. Pale: each step; strong: smoothed.",
            "损失（每词元奈特，对数刻度）随训练时间的变化，即对下一个词元的惊讶程度。浅线为每步，深线为平滑。",
        ),
        f'<div class="card">{large}</div><div class="grid3">'
        + "".join(f'<div class="card"><h3>{title}</h3>{chart}</div>' for title, chart in small)
        + "</div>",
    )


def times(run: Run) -> str:
    """Time per stage as one bar."""
    parts = [(_stage_title(stage), float(stage["seconds"]), clock(stage["seconds"])) for stage in run.stages]
    if not parts:
        return ""
    return _section(both("Where the time went", "时间花在哪里"), "", f'<div class="card">{share_bar(parts)}</div>')


def skills(run: Run) -> str:
    """Every skill by split, English over Chinese."""
    rows = run.eval.get("skills", [])
    if not rows:
        return ""
    cells = {(row["skill"], row["split"], row["language"]): row for row in rows}
    splits = [split for split in SPLITS if any(row["split"] == split for row in rows)]
    names = sorted({row["skill"] for row in rows}, key=lambda name: (-_mean(rows, name), name))
    head = "".join(f"<th>{SPLITS[split]}</th>" for split in splits)
    lines = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td>"
        + "".join("<td>" + "".join(_score(cells.get((name, split, code)), n) for n, (code, _) in enumerate(LANGUAGES)) + "</td>" for split in splits)
        + "</tr>"
        for name in names
    )  # fmt: skip
    right, asked = sum(row["right"] for row in rows), sum(row["n"] for row in rows)
    return _section(
        both("Skill by skill", "逐项技能"),
        both(
            f"{len(names)} skills, {asked:,} questions, {percent(right / asked)} right. Small: the number of questions.",
            f"{len(names)} 项技能，{asked:,} 道题，答对 {percent(right / asked)}。小字为题数。",
        ),
        '<p class="key"><span><i class="s0"></i>English</span><span><i class="s2"></i>中文</span></p>'
        f'<div class="card wide" style="padding:4px 0"><table><thead><tr><th>{both("Skill", "技能")}</th>{head}</tr></thead><tbody>{lines}</tbody></table></div>',
    )


def chats(run: Run) -> str:
    """Conversations it got right, and, not hidden, some that it got wrong."""
    right = "".join(_chat(example) for example in run.eval.get("examples", []))
    wrong = "".join(_chat(example) for example in run.eval.get("mistakes", []))
    html = ""
    if right:
        html += _section(both("Talking to it", "和它聊天"), "", f'<div class="grid2">{right}</div>')
    if wrong:
        html += _section(
            both("Where it goes wrong", "它在哪里出错"),
            both("Answers the judge did not accept.", "未被判对的回答。"),
            f'<div class="grid2">{wrong}</div>',
        )
    return html


def learning(run: Run) -> str:
    """How the answers to the fixed prompts changed while it trained."""
    prompts: dict[str, list[tuple[Facts, str]]] = {}
    for sample in run.samples:
        for answer in sample.get("answers", []):
            prompts.setdefault(answer["prompt"], []).append((sample, answer["answer"]))
    if not prompts:
        return ""
    cards = "".join(_timeline(prompt, told) for prompt, told in prompts.items())
    return _section(
        both("The same questions, again and again", "同样的问题，一遍又一遍"),
        both("What the snapshots answered while the model trained.", "训练途中各个快照的回答。"),
        f'<div class="grid2">{cards}</div>',
    )


def talk_and_speed(run: Run) -> str:
    """How it talks (endings, loops, length) and what it costs (memory, tokens per second)."""
    talk, speed = run.eval.get("talk", {}), run.eval.get("speed", {})
    if not talk and not speed:
        return ""
    rows = [
        (both("Answers that end by themselves", "自行结束的回答"), "ended", percent),
        (both("Answers that fall into a loop", "陷入循环的回答"), "looping", percent),
        (both("Repeated four-grams", "重复的四元组"), "repeated", percent),
        (both("Mean length in tokens", "平均长度（词元）"), "length", lambda v: f"{v:.0f}"),
    ]
    spoken = [(code, label) for code, label in LANGUAGES if code in talk]
    head = "<th></th>" + "".join(f"<th>{label}</th>" for _, label in spoken)
    body = "".join(
        f"<tr><td>{name}</td>" + "".join(f"<td>{text(talk[code][key])}</td>" for code, _ in spoken) + "</tr>"
        for name, key, text in rows
    )
    costs = [
        (both("Weights in memory", "权重占用内存"), bytes_text(speed.get("parameter_bytes"))),
        (both("Peak memory of the process", "进程内存峰值"), bytes_text(speed.get("peak_rss_bytes"))),
        (both("Reading a prompt", "读取提示"), _per_second(speed.get("prefill_tokens_per_s"))),
        (both("Writing, one chat", "生成，单个对话"), _per_second(speed.get("decode_1_tokens_per_s"))),
        (both("Writing, sixteen at once", "生成，十六个并行"), _per_second(speed.get("decode_16_tokens_per_s"))),
    ]
    table = "".join(f"<tr><td>{name}</td><td><b>{value}</b></td></tr>" for name, value in costs if value)
    left = f'<div class="card wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>' if spoken else ""
    right = f'<div class="card wide"><table><tbody>{table}</tbody></table></div>' if table else ""
    return _section(both("Manners and cost", "举止与开销"), "", f'<div class="grid2">{left}{right}</div>')


def commands(run: Run) -> str:
    """What to type next."""
    models = [stage["name"] for stage in run.stages if (run.path / stage["name"] / "config.json").exists()]
    model = run.path / models[-1] if models else run.path
    lines = f"liuli chat {model}\nliuli serve {model}\nliuli eval {model}"
    return _section(both("Now you", "轮到你了"), "", f"<pre><code>{escape(lines)}</code></pre>")


def machine(run: Run) -> str:
    """Where and with what it was made; the plan and the recipe word by word."""
    facts = {**run.plan.get("machine", {}), **run.eval.get("machine", {}), **run.eval.get("versions", {})}
    rows = "".join(f"<tr><td>{escape(str(k).replace('_', ' '))}</td><td>{escape(_text(v))}</td></tr>" for k, v in facts.items())
    html = f'<div class="card wide"><table><tbody>{rows}</tbody></table></div>' if rows else ""
    plan = escape(json.dumps(run.plan, indent=2, ensure_ascii=False)) if run.plan else ""
    for title, text in ((both("The plan in full", "完整计划"), plan), (both("The recipe", "配方"), escape(run.recipe))):
        if text:
            html += f"<details><summary>{title}</summary><pre><code>{text}</code></pre></details>"
    return _section(both("Machine and versions", "机器与版本"), "", html) + "<footer>Liuli 琉璃</footer>" if html else ""


SPLITS = {
    "train": both("As trained", "训练同类"),
    "names": both("New names", "新名字"),
    "templates": both("New wording", "新说法"),
    "combinations": both("New combinations", "新组合"),
}


def _section(title: str, lead: str, content: str) -> str:
    return f"<section><h2>{title}</h2>" + (f'<p class="lead">{lead}</p>' if lead else "") + content + "</section>"


def _tile(headline: Headline, row: Facts) -> str:
    bars = ""
    for colour, (code, label) in enumerate(LANGUAGES):
        cell = row.get(code)
        if cell and cell["n"]:
            met = "met" if cell["accuracy"] >= headline.target else "missed"
            bar = accuracy_bar(cell["accuracy"], cell["low"], cell["high"], colour, headline.target)
            bars += f'<div class="row"><span>{label}</span>{bar}<b class="{met}">{percent(cell["accuracy"])}</b></div>'
            bars += f'<div class="row"><small>{percent(cell["low"])} – {percent(cell["high"])} · n {cell["n"]:,}</small></div>'
    target = both("target", "目标") + f" {percent(headline.target)}"
    return f'<div class="card tile"><h3>{both(headline.title, headline.title_zh)}<small>{target}</small></h3>{bars}</div>'


def _score(cell: Facts | None, colour: int) -> str:
    if not cell or not cell["n"]:
        return '<div class="score"><small>–</small></div>'
    bar = accuracy_bar(cell["accuracy"], cell["low"], cell["high"], colour)
    title = f"{percent(cell['low'])} – {percent(cell['high'])}"
    return f'<div class="score" title="{title}">{bar}<b>{percent(cell["accuracy"])}</b><small>{cell["n"]}</small></div>'


def _chat(example: Facts) -> str:
    """One conversation as bubbles. example: {"skill", "language", "messages", "said", "answer", "right"}."""
    bubbles = ""
    for message in [*example["messages"], *example["said"]]:
        for call in message.get("tool_calls") or []:
            bubbles += f'<div class="call">→ {escape(call["function"]["name"])} {escape(call["function"]["arguments"])}</div>'
        if message.get("content"):
            arrow = "← " if message["role"] == "tool" else ""
            bubbles += f'<div class="{"" if arrow else "say "}{escape(message["role"])}">{arrow}{escape(message["content"])}</div>'
    if not example["right"]:
        bubbles += f'<div class="want">{both("expected", "应为")}: {escape(_text(example["answer"]))}</div>'
    return f'<div class="card chat"><h3>{escape(example["skill"].replace("_", " "))}</h3>{bubbles}</div>'


def _timeline(prompt: str, told: list[tuple[Facts, str]]) -> str:
    changed = [one for n, one in enumerate(told) if n in (0, len(told) - 1) or one[1] != told[n - 1][1]]
    kept = changed if len(changed) <= 6 else [changed[round(i * (len(changed) - 1) / 5)] for i in range(6)]
    items = "".join(
        f"<li><time>{clock(sample['at'])} · {escape(str(sample['stage']))} {percent(sample.get('progress', 0))}</time>"
        f"{escape(answer) or '∅'}</li>"
        for sample, answer in kept
    )
    return f'<div class="card"><h3>{escape(prompt)}</h3><ol class="steps">{items}</ol></div>'


def _title(run: Run) -> str:
    talks = any(stage["name"] not in ("curriculum", "tokenizer", "rows", "pretrain", "eval") for stage in run.stages)
    spent = sum(stage["seconds"] for stage in run.stages)
    size = count_text(run.plan.get("parameters") or run.eval.get("model", {}).get("parameters")) or "?"
    return both(
        f"{'A chat model' if talks else 'A language model'} of {size} parameters, built in {clock(spent)}",
        f"{size} 参数的{'对话' if talks else '语言'}模型，用时 {clock(spent)}",
    )


def _stage_title(stage: Facts) -> str:
    title = stage.get("title") or stage["name"]
    if isinstance(title, dict):
        return both(str(title.get("en", stage["name"])), str(title.get("zh", stage["name"])))
    return escape(str(title))


def _expected(value: Any, text: Any) -> str:
    return both(f"planned {text(value)}", f"计划 {text(value)}") if _finite(value) else ""


def _shape(plan: Facts) -> str:
    shape = plan.get("shape") or plan.get("config") or plan
    parts = [f"{shape[key]} {word}" for key, word in (("layers", "×"),) if shape.get(key)]
    if parts and shape.get("width"):
        parts = [f"{shape['layers']} × {shape['width']}"]
    parts += [f"V {shape['vocab_size']}"] if shape.get("vocab_size") else []
    parts += [f"T {shape['context']}"] if shape.get("context") else []
    return " · ".join(parts)


def _flops(value: Any) -> str:
    if not _finite(value):
        return ""
    power = math.floor(math.log10(value))
    return f"{value / 10**power:.1f} × 10<sup>{power}</sup>"


def _per_second(value: Any) -> str:
    return f"{count_text(value)} {both('tokens/s', '词元/秒')}" if _finite(value) else ""


def _mean(rows: list[Facts], skill: str) -> float:
    own = [row["accuracy"] for row in rows if row["skill"] == skill]
    return sum(own) / len(own)


def _last(log: list[Facts], figure: str, total: bool = False) -> float | None:
    """The last value of a figure; with total, the sum of the last values of every stage (for counters)."""
    last: dict[str, float] = {}
    for record in log:
        if _finite(record.get(figure)):
            last[record["stage"]] = record[figure]
    return (sum(last.values()) if total else list(last.values())[0]) if last else None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(path: Path) -> Facts:
    value = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return value if isinstance(value, dict) else {}
