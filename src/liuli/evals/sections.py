"""The parts of the report: each takes a run and gives HTML, or nothing where the run has nothing to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from liuli.evals.aligned import forgetting, judging, preferences
from liuli.evals.charts import Band, Line, accuracy_bar, plot, share_bar, smooth
from liuli.evals.headline import HEADLINES, Headline
from liuli.evals.proportion import score
from liuli.evals.runfolder import Facts, Run, finite
from liuli.evals.words import (
    both,
    bytes_text,
    clock,
    count_text,
    escape,
    number,
    percent,
    section,
    skill_title,
    stage_title,
    table,
    value_text,
)

LANGUAGES = (("en", "EN"), ("zh", "中文"))
SPLITS = {
    "train": both("As trained", "训练同类"),
    "names": both("New names", "新名字"),
    "templates": both("New wording", "新说法"),
    "combinations": both("New combinations", "新组合"),
}


def headlines(run: Run) -> str:
    """The promises with their targets, by language."""
    rows = {row["name"]: row for row in run.eval.get("headline", [])}
    tiles = "".join(_tile(headline, rows[headline.name]) for headline in HEADLINES if headline.name in rows)
    if not tiles:
        return ""
    return section(
        both("What it can do", "它会什么"),
        both(
            "Greedy answers to questions it has not seen in this form. "
            "The shaded stretch is the 95% interval, the tick the target.",
            "贪心解码，题目的形式未曾见过。阴影段为 95% 区间，竖线为目标。",
        ),
        f'<div class="grid4">{tiles}</div>',
    )


def curves(run: Run) -> str:
    """Loss over working time with the stages marked; bits per byte, learning rate and speed in small."""
    names = list(dict.fromkeys(str(record["stage"]) for record in run.log if finite(record.get("bpb"))))
    if not names:
        return ""
    bands = []
    for name in names:
        at = [record["at"] for record in run.log if record.get("stage") == name]
        bands.append(Band(min(at), max(at), stage_title(name)))
    expected = run.plan.get("bpb")
    marks = [(float(expected), both("expected", "预期") + f" {number(expected)}")] if finite(expected) else []
    small = [
        (both("Bits per byte", "每字节比特"), plot(_lines(run, names, "bpb"), y_text=number, marks=marks, log=True)),
        (
            both("Learning rate, of its peak", "学习率（相对峰值）"),
            plot(_lines(run, names, "lr", rough=False), y_text=lambda v: f"{v:.3g}"),
        ),
        (both("Tokens per second", "每秒词元数"), plot(_lines(run, names, "tokens_per_s"), y_text=count_text)),
    ]
    large = plot(_lines(run, names, "loss"), y_text=number, bands=bands, log=True, large=True)
    cards = "".join(f'<div class="card"><h3>{title}</h3>{chart}</div>' for title, chart in small)
    return section(
        both("How it learned", "它怎么学会的"),
        both(
            "Loss over minutes of work: the surprise at every next token, in nats, on a log scale. "
            "Pale: each step. Strong: smoothed.",
            "损失随训练时间的变化：对每个下一个词元的惊讶程度，单位奈特，对数刻度。浅线为每步，深线为平滑。",
        ),
        f'<div class="card">{large}</div><div class="grid3">{cards}</div>',
    )


def _lines(run: Run, stages: list[str], figure: str, rough: bool = True) -> list[Line]:
    """One line a stage; rough: the figure jumps from step to step, so draw it pale and its smoothed form over it."""
    drawn = []
    for colour, name in enumerate(stages):
        points = [(r["at"], float(r[figure])) for r in run.log if r.get("stage") == name and finite(r.get(figure))]
        drawn += [Line(points, colour, "faint"), Line(smooth(points), colour)] if rough else [Line(points, colour)]
    return drawn


def times(run: Run) -> str:
    """Time per stage as one bar."""
    parts = [(stage_title(stage["name"]), float(stage["seconds"]), clock(stage["seconds"])) for stage in run.stages]
    if not parts:
        return ""
    return section(both("Where the time went", "时间花在哪里"), "", f'<div class="card">{share_bar(parts)}</div>')


def skills(run: Run) -> str:
    """Skills by split, English over Chinese: the families for the eye, every single skill behind a click."""
    rows = run.eval.get("skills", [])
    if not rows:
        return ""
    number_of_skills = len({row["skill"] for row in rows})
    right, asked = sum(row["right"] for row in rows), sum(row["n"] for row in rows)
    key = '<p class="key"><span><i class="s0"></i>English</span><span><i class="s2"></i>中文</span></p>'
    every = both(f"All {number_of_skills} skills one by one", f"全部 {number_of_skills} 项技能")
    return section(
        both("Skill by skill", "逐项技能"),
        both(
            f"{number_of_skills} skills, {asked:,} questions, {percent(right / asked)} right. Small: how many.",
            f"{number_of_skills} 项技能，{asked:,} 道题，答对 {percent(right / asked)}。小字为题数。",
        ),
        f"{key}{_grid(rows, 'family')}<details><summary>{every}</summary>{_grid(rows, 'skill')}</details>",
    )


def _grid(rows: list[Facts], by: str) -> str:
    """A table of pooled scores, a line for each value of `by`, a column for each split, the surest lines first."""
    pooled: dict[tuple[str, str, str], list[int]] = {}
    for row in rows:
        cell = pooled.setdefault((str(row.get(by, row["skill"])), row["split"], row["language"]), [0, 0])
        cell[0] += row["right"]
        cell[1] += row["n"]
    cells = {place: score(right, n) for place, (right, n) in pooled.items()}
    splits = [split for split in SPLITS if any(place[1] == split for place in cells)]
    means: dict[str, list[float]] = {}
    for (name, _, _), cell_score in cells.items():
        means.setdefault(name, []).append(cell_score["accuracy"])
    names = sorted(means, key=lambda name: (-sum(means[name]) / len(means[name]), name))
    body = [[skill_title(name), *("".join(_scores(cells, name, split)) for split in splits)] for name in names]
    return table([both("Skill", "技能"), *(SPLITS[split] for split in splits)], body)


def chats(run: Run) -> str:
    """Conversations it got right, and, not hidden, some that it got wrong."""
    right = "".join(_chat(example) for example in run.eval.get("examples", []))
    wrong = "".join(_chat(example) for example in run.eval.get("mistakes", []))
    html = ""
    if right:
        html += section(both("Talking to it", "和它聊天"), "", f'<div class="grid2">{right}</div>')
    if wrong:
        html += section(
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
    return section(
        both("The same questions, again and again", "同样的问题，一遍又一遍"),
        both("What the snapshots answered while the model trained.", "训练途中各个快照的回答。"),
        f'<div class="grid2">{cards}</div>',
    )


def manners(run: Run) -> str:
    """How it talks: endings, loops, length. What it costs: memory, tokens per second."""
    talk, speed = run.eval.get("talk", {}), run.eval.get("speed", {})
    rows: list[tuple[str, str, Callable[[float], str]]] = [
        (both("Answers that end by themselves", "自行结束的回答"), "ended", percent),
        (both("Answers that fall into a loop", "陷入循环的回答"), "looping", percent),
        (both("Repeated four-grams", "重复的 4-gram"), "repeated", percent),
        (both("Mean length in tokens", "平均长度（词元）"), "length", lambda v: f"{v:.0f}"),
    ]
    costs = [
        (both("Weights in memory", "权重占用内存"), bytes_text(speed.get("parameter_bytes"))),
        (both("Peak memory of the process", "进程内存峰值"), bytes_text(speed.get("peak_rss_bytes"))),
        (both("Reading prompts", "读取提示"), _per_second(speed.get("prefill_tokens_per_s"))),
        (both("Writing, one chat", "生成，单个对话"), _per_second(speed.get("decode_1_tokens_per_s"))),
        (both("Writing, sixteen at once", "生成，十六个并行"), _per_second(speed.get("decode_16_tokens_per_s"))),
    ]
    spoken = [(code, label) for code, label in LANGUAGES if code in talk]
    cards = ""
    if spoken:
        body = [[name, *(text(talk[code][key]) for code, _ in spoken)] for name, key, text in rows]
        cards += table(["", *(label for _, label in spoken)], body)
    if speed:
        cards += table([], [[name, f"<b>{value}</b>"] for name, value in costs if value])
    return section(both("Manners and cost", "举止与开销"), "", f'<div class="grid2">{cards}</div>') if cards else ""


def _tile(headline: Headline, row: Facts) -> str:
    bars = ""
    for colour, (code, label) in enumerate(LANGUAGES):
        cell = row.get(code)
        if cell and cell["n"]:
            met = "met" if cell["accuracy"] >= headline.target else "missed"
            bar = accuracy_bar(cell["accuracy"], cell["low"], cell["high"], colour, headline.target)
            bars += f'<div class="row"><span>{label}</span>{bar}<b class="{met}">{percent(cell["accuracy"])}</b></div>'
            bars += f'<div class="row"><small>{_interval(cell)} · n {cell["n"]:,}</small></div>'
    title = both(headline.title, headline.title_zh)
    target = both("target", "目标") + f" {percent(headline.target)}"
    return f'<div class="card tile"><h3>{title}<small>{target}</small></h3>{bars}</div>'


def _scores(cells: Mapping[tuple[str, str, str], Facts], skill: str, split: str) -> Iterator[str]:
    for colour, (code, _) in enumerate(LANGUAGES):
        cell = cells.get((skill, split, code))
        if cell and cell["n"]:
            bar = accuracy_bar(cell["accuracy"], cell["low"], cell["high"], colour)
            share = f"<b>{percent(cell['accuracy'])}</b><small>{cell['n']}</small>"
            yield f'<div class="score" title="{_interval(cell)}">{bar}{share}</div>'
        else:
            yield '<div class="score"><small>–</small></div>'


def _interval(cell: Facts) -> str:
    return f"{percent(cell['low'])} – {percent(cell['high'])}"


def _chat(example: Facts) -> str:
    """One conversation as bubbles. example: {"skill", "language", "messages", "said", "answer", "right"}."""
    bubbles = ""
    for message in [*example["messages"], *example["said"]]:
        role, content = escape(message["role"]), escape(message.get("content") or "")
        for call in message.get("tool_calls") or []:
            function = call["function"]
            bubbles += f'<div class="call">→ {escape(function["name"])} {escape(function["arguments"])}</div>'
        if content:
            bubbles += (
                f'<div class="tool">← {content}</div>' if role == "tool" else f'<div class="say {role}">{content}</div>'
            )
    if not example["right"]:
        bubbles += f'<div class="want">{both("expected: ", "应为：")}{escape(value_text(example["answer"]))}</div>'
    return f'<div class="card chat"><h3>{skill_title(example["skill"])}</h3>{bubbles}</div>'


def _timeline(prompt: str, told: list[tuple[Facts, str]]) -> str:
    changed = [one for n, one in enumerate(told) if n in (0, len(told) - 1) or one[1] != told[n - 1][1]]
    kept = changed if len(changed) <= 6 else [changed[round(i * (len(changed) - 1) / 5)] for i in range(6)]
    items = "".join(
        f"<li><time>{clock(sample['at'])} · {stage_title(str(sample['stage']))} {sample.get('progress', 0):.0%}</time>"
        f"{escape(answer) or '∅'}</li>"
        for sample, answer in kept
    )
    return f'<div class="card"><h3>{escape(prompt)}</h3><ol class="steps">{items}</ol></div>'


def _per_second(value: Any) -> str:
    return f"{count_text(value)} {both('tokens/s', '词元/秒')}" if finite(value) else ""


PARTS = (headlines, preferences, judging, forgetting, curves, times, skills, chats, learning, manners)
