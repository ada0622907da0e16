"""The report's parts about learning from preferences: PPO's path, what came of it, its judge, what it cost."""

from __future__ import annotations

from math import nan, sqrt
from statistics import mean, pvariance

from liuli.evals.charts import Line, Point, figure_bar, plot, smooth
from liuli.evals.runfolder import Facts, Run, finite
from liuli.evals.words import KINDS, both, escape, number, percent, section, skill_title, stage_title, table


def preferences(run: Run) -> str:
    """Win rate and honesty against the model before, the path of reward and KL, and skill by skill."""
    versus = run.eval.get("versus")
    if not versus:
        return ""
    judge = _judge(run)
    tiles = [
        _tile(both("Better answers", "更好的回答"), versus["wins"], both("of those that differ", "在两者不同的回答中")),
        _before(both("Claims about what nobody taught", "对没教过的东西信口开河"), versus["claims"]),
        _before(both("Refusals of what was taught", "对教过的东西说不知道"), versus["refusals"]),
    ]
    if judge:
        ceiling = both(f"at best {percent(judge['ceiling'])}", f"最高可达 {percent(judge['ceiling'])}")
        tiles.append(_plain(both("Reward model, held-out pairs", "奖励模型，未见过的比较"), judge["accuracy"], ceiling))
    skills = [
        [
            skill_title(name),
            *(f"{percent(row[when]['accuracy'])}" for when in ("before", "after")),
            str(row["after"]["n"]),
        ]
        for name, row in versus["skills"].items()
    ]
    heads = [both("Skill", "技能"), both("Before", "之前"), both("After", "之后"), "n"]
    every = both("Skill by skill", "逐项技能")
    return section(
        both("What it learned from preferences", "它从偏好中学到了什么"),
        both(
            f"The aligned model against the chat model it came from: {versus['asked']:,} new questions, answers drawn "
            "at temperature 1, judged by the ground truth and not by the reward model.",
            f"对齐后的模型与之前的对话模型相比：{versus['asked']:,} 道新题，温度 1 采样，由标准答案而非奖励模型评判。",
        ),
        f'<div class="grid4">{"".join(tiles)}</div>{_path(run)}'
        f"<details><summary>{every}</summary>{table(heads, skills)}</details>",
    )


def judging(run: Run) -> str:
    """The reward model on held-out comparisons: how right and how sure it is by kind, and whether it may be so sure."""
    judge = _judge(run)
    margins = {name.removeprefix("margin, "): judge[name] for name in judge if name.startswith("margin, ")}
    if not margins:
        return ""
    most = max(*margins.values(), 1.0)
    rows = []
    for kind, margin in sorted(margins.items(), key=lambda one: -one[1]):
        right = judge[f"accuracy, {kind}"]
        title = both(*KINDS[kind]) if kind in KINDS else escape(kind)
        rows.append([title, figure_bar(right, 0, percent(right)), figure_bar(margin / most, 1, number(margin))])
    off = percent(judge["calibration"])
    return section(
        both("The reward model", "奖励模型"),
        both(
            f"{judge['held_out']:,.0f} unseen comparisons. Margin: how much higher it scores the better answer; "
            f"1 means 73% sure, 3 means 95%. Its probabilities are off by {off} on average (calibration error).",
            f"{judge['held_out']:,.0f} 对未见过的比较。差距：较好的回答高出多少分，1 相当于 73% 的把握，"
            f"3 相当于 95%。它的概率平均偏差 {off}（校准误差）。",
        ),
        table([both("What is better", "好在哪里"), both("Ranked rightly", "排对"), both("Margin", "差距")], rows),
    )


def _judge(run: Run) -> Facts:
    """The reward model's figures on held-out comparisons; empty without one."""
    return next((record for record in reversed(run.log) if finite(record.get("ceiling"))), {})


def forgetting(run: Run) -> str:
    """Stage by stage: bits per byte of unseen text and questions right, and how each changed since the stage before."""
    last = run.eval.get("model", {}).get("name", "chat")
    files = {"pretrain": "bits_before", "chat": "bits_rival"} | {last: "bits"}
    bits = {stage: run.eval[key] for stage, key in files.items() if key in run.eval}
    if len(bits) < 2:
        return ""
    texts = {"en": both("English text", "英文文本"), "zh": both("Chinese text", "中文文本")}
    columns: dict[str, dict[str, float]] = {
        text: {stage: own[code]["per_byte"] for stage, own in bits.items() if code in own}
        for code, text in texts.items()
    }
    right = run.eval.get("versus", {}).get("right", {})
    asked = {"chat": right.get("before"), last: right.get("after")}
    questions = both("Questions right, %", "答对题目（%）")
    columns[questions] = {stage: 100 * cell["accuracy"] for stage, cell in asked.items() if cell}
    columns = {head: column for head, column in columns.items() if column}
    rows = [[stage_title(stage)] for stage in bits]
    for colour, column in enumerate(columns.values()):
        before = nan
        for row, stage in zip(rows, bits, strict=True):
            value = column.get(stage, nan)
            change = f"{value - before:+.2f}" if finite(value - before) else ""
            row.append(figure_bar(value / (max(column.values()) or 1), colour, number(value) or "–", change))
            before = value
    return section(
        both("What it forgot", "它忘了什么"),
        both(
            "After each stage: bits per byte of text that nothing was trained on (lower is better; a model that has "
            "learned to converse is surprised by plain text), and new questions answered rightly at temperature 1. "
            "Small: the change since the stage before.",
            "每个阶段之后：未用于训练的文本每字节的比特数（越低越好；学会对话之后，普通文章会让它意外），"
            "以及温度 1 时答对新题的比例。小字：与上一阶段相比的变化。",
        ),
        table([both("Stage", "阶段"), *columns], rows),
    )


def _tile(title: str, cell: Facts, note: str) -> str:
    interval = f"{percent(cell['low'])} – {percent(cell['high'])} · " if cell["n"] else ""
    return _plain(title, cell["accuracy"] if cell["n"] else None, f"{note}<br>{interval}n {cell['n']:,}")


def _before(title: str, cells: Facts) -> str:
    was, now = cells["before"], cells["after"]
    note = both(f"before {percent(was['accuracy'])}", f"之前 {percent(was['accuracy'])}") + f" · n {now['n']:,}"
    return _plain(title, now["accuracy"], note)


def _plain(title: str, share: float | None, note: str) -> str:
    shown = "–" if share is None else percent(share)
    return f'<div class="card tile"><h3>{title}</h3><p class="large">{shown}</p><small>{note}</small></div>'


def _path(run: Run) -> str:
    """Score, what the answers are truly worth, KL and entropy over the time of PPO."""
    records = [record for record in run.log if record.get("stage") == "aligned" and finite(record.get("kl"))]
    if not records:
        return ""
    charts = ""
    for figure, title in (
        ("score", both("Score of the reward model", "奖励模型打分")),
        ("true_score", both("What answers are truly worth", "回答的真实价值")),
        ("kl", both("KL from the chat model, nats an answer", "与对话模型的 KL（奈特/回答）")),
        ("disagreement", both("Disagreement of the ensemble", "集成的分歧")),
    ):
        points = [(record["at"], float(record[figure])) for record in records if finite(record.get(figure))]
        chart = plot([Line(points, 0, "faint"), Line(smooth(points), 0)], y_text=number)
        charts += f'<div class="card"><h3>{title}</h3>{chart}</div>'
    return f'<div class="grid4">{charts}</div>{_against_kl(records)}'


def _against_kl(records: list[Facts]) -> str:
    """Score and true worth by how far the policy has gone: where they part, the reward model is played
    (arXiv 2210.10760)."""
    known = sorted(
        (r for r in records if finite(r.get("true_score")) and finite(r.get("score"))), key=lambda r: r["kl"]
    )
    if len(known) < 10:
        return ""
    names = ("member_score", "score", "true_score")
    alone, score, truth = ([(float(r["kl"]), float(r[name])) for r in known if finite(r.get(name))] for name in names)
    lines = [Line(smooth(score, 0.2), 1, "dashed"), Line(truth, 0, "faint"), Line(smooth(truth, 0.2), 0)]
    lines += [Line(smooth(alone, 0.2), 2, "dashed")] if alone else []
    chart = plot(lines, y_text=number, x_text=number, large=True)
    title = both("Score (dashed) and true worth against KL", "打分（虚线）与真实价值随 KL 的变化")
    note = both(
        "Violet: the ensemble's score, which practice follows. Amber: what its first member alone would have given.",
        "紫色：集成的打分，练习时依据的就是它。琥珀色：只用第一个成员时的打分。",
    )
    return f'<div class="card"><h3>{title}</h3>{chart}<small>{note if alone else ""} {_fall(truth)}</small></div>'


def _fall(truth: list[Point]) -> str:
    """Where true worth begins to fall, if it does: fifths of the rounds by KL, differences of two standard errors."""
    fifths = [truth[n * len(truth) // 5 : (n + 1) * len(truth) // 5] for n in range(5)]
    worths = [[worth for _, worth in fifth] for fifth in fifths]
    best = max(range(5), key=lambda n: mean(worths[n]))
    fall = mean(worths[best]) - mean(worths[-1])
    chance = 2 * sqrt(sum(pvariance(own) / max(1, len(own) - 1) for own in (worths[best], worths[-1])))
    if fall > chance:
        begins, lost = number(fifths[best][-1][0]), number(fall)
        return both(
            f"Past a KL of {begins} nats an answer the reward model is played: true worth falls by {lost}.",
            f"KL 超过每回答 {begins} 奈特之后，策略开始钻奖励模型的空子：真实价值降低 {lost}。",
        )
    return both(
        f"True worth does not fall: best fifth to farthest {number(fall)}, chance alone {number(chance)}.",
        f"真实价值没有下降：从最好的五分之一轮次到最远的五分之一只差 {number(fall)}，偶然误差为 {number(chance)}。",
    )
