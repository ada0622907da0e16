"""What each way of learning from preferences makes of one chat model, judged by the ground truth.

    python benchmarks/alignment.py runs/laptop [--minutes 2] [--seeds 0 1 2] [--methods ppo own-dpo …] [--draws 4]

RUN is a build's folder (chat, reward, curriculum, rows). Every method starts from `chat`. `ppo`, as the build has it,
and `grpo` follow `reward` and the known answers to the questions of practice; `ppo-judge`, `grpo-judge`, `rejection`,
`own-dpo` (DPO on comparisons of the model's own answers) and `best-of-16` follow `reward` alone, `dpo` the comparisons
that it learned from. `cautious` and `one` are PPO without a leash, by the ensemble and by its first member alone: how
the true worth falls while the score still rises is drawn to over-optimisation.svg. Either model answers each question
`--draws` times; the pooled interval counts questions, for answers to one question are alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch

from liuli.aligning import comparable
from liuli.build import messages_of, practice_items, split_by_prompt, worths
from liuli.curriculum import seed_of, worth
from liuli.engine import Model
from liuli.evals.bits import bits_by_language
from liuli.evals.evaluate import read_held_out
from liuli.evals.proportion import score
from liuli.evals.skills import LONGEST
from liuli.evals.versus import held_out, versus
from liuli.evals.versus import worths as worths_of
from liuli.files import read_lines
from liuli.model.scalar import ScalarModel, load_scalar, save_scalar
from liuli.recipe import read_recipe
from liuli.stages.best import Best, best_of
from liuli.stages.dpo import DPOOptions, dpo
from liuli.stages.experience import Reward
from liuli.stages.grpo import GRPOOptions, grpo
from liuli.stages.ppo import PPOOptions, ppo
from liuli.stages.reward import compare, load_judge, scored_by
from liuli.stages.rollout import Rollouts
from liuli.stages.sft import sft
from liuli.stages.training import TrainOptions
from liuli.text import Message, Preference, Rows, Tokenizer, pack_conversations, render_many
from liuli.train import RunLog, StageState, measure_machine

COMPARED = ("ppo", "grpo", "dpo", "rejection", "best-of-16", "cautious", "one")
METHODS = (*COMPARED, "ppo-judge", "grpo-judge", "own-dpo")


class Graded(NamedTuple):
    """A question answered by both models, and what the answers are worth."""

    question: int
    skill: str
    before: float
    after: float


def train(method: str, run: Path, out: Path, minutes: float, seed: int) -> list[dict[str, Any]]:
    """One method, from `run/chat` to `out`; the lines of its log."""
    log = RunLog(out.parent, [StageState(out.name, method)], quiet=True, tensorboard=False)
    log.begin(out.name)
    items, judge, chat = practice_items(run / "curriculum", 0), run / "reward", run / "chat"
    asked = [messages_of(item["messages"]) for item in items]
    budget: dict[str, Any] = {"minutes": minutes, "seed": seed}
    as_built = PPOOptions(**read_recipe(run / "recipe.toml").ppo | budget)

    def truth(rollouts: Rollouts) -> torch.Tensor:
        return worths(items, rollouts)

    if method == "rejection":
        rejection(run, items, out, minutes, seed, log)
    elif method == "own-dpo":
        own_dpo(run, items, out, minutes, seed, log)
    elif method in ("ppo", "ppo-judge"):
        options = replace(as_built, truth=as_built.truth * (method == "ppo"))
        ppo(chat, judge, asked, out, options=options, log=log, truth=truth, ptx_rows=Rows.open(run / "rows" / "chat"))
    elif method in ("cautious", "one"):
        folder = judge if method == "cautious" else first_member(judge, out.parent / "one-member")
        options = PPOOptions(**budget, beta=0.0, lr=6e-4, max_tokens=LONGEST, most_drift=0.1)
        ppo(chat, folder, asked, out, options=options, log=log, truth=truth)
    elif method in ("grpo", "grpo-judge"):
        model = load_judge(judge, chat)
        shared = {key: getattr(as_built, key) for key in ("beta", "lr", "max_tokens")}
        known = GRPOOptions(**budget, **shared, truth=as_built.truth * (method == "grpo"))
        grpo(chat, asked, out, reward=scored_by(model, truth), options=known, log=log)
    else:
        pairs = read_lines(run / "curriculum" / "pairs.jsonl")
        preferences = [Preference(*map(messages_of, (p["prompt"], p["chosen"], p["rejected"]))) for p in pairs]
        data = compare([preferences[n] for n in split_by_prompt(preferences)[0]], Tokenizer.load(chat), 256)
        dpo(chat, data, out, options=DPOOptions(**budget), log=log)
    log.finish()
    return [line for line in read_lines(out.parent / "log.jsonl") if "kl" in line and "score" in line]


def first_member(judge: Path, out: Path) -> Path:
    """The reward model with its first head alone."""
    whole = load_scalar(judge)
    alone = ScalarModel(whole.body, 1)
    with torch.no_grad():
        alone.score.weight.copy_(whole.score.weight[:1])
        alone.offsets_E.copy_(whole.offsets_E[:1])
    save_scalar(alone, out, tokenizer_folder=judge, provenance={"stage": "reward", "parent": str(judge)}, special={})
    return out


def judged_by(run: Path) -> Callable[[Rollouts], Reward]:
    """The score of the run's reward model."""
    return scored_by(load_judge(run / "reward", run / "chat"))


def best_worths(run: Path, items: Sequence[dict[str, Any]]) -> list[float]:
    """What the answer is worth that the reward model likes best of 16; -1 where none ended by itself."""
    asked = [messages_of(item["messages"]) for item in items]
    found = [-1.0] * len(items)
    for best in best_of(Model(run / "chat").engine, asked, judged_by(run), 16, max_tokens=LONGEST):
        found[best.number] = worth(items[best.number], [message.to_dict() for message in best.produced])
    return found


def rejection(run: Path, items: Sequence[dict[str, Any]], out: Path, minutes: float, seed: int, log: RunLog) -> None:
    """Fine-tuning on the best of 16 of the model's own answers, half of the time for each, chat rows beside it."""
    chat, tokenizer, began = run / "chat", Tokenizer.load(run / "chat"), time.monotonic()
    kept = [
        [*(replace(message, train=False) for message in asked), *best.produced]
        for asked, best in drawn_for(30 * minutes, run, items, 16, seed)
    ]
    pack_conversations(render_many(kept, tokenizer), 256, out.parent / "best", vocab_size=tokenizer.vocab_size)
    left = minutes - (time.monotonic() - began) / 60
    rates = {"matrix_lr": 4e-4, "head_lr": 4e-4, "embedding_lr": 1e-3, "adam_lr": 3e-4}  # a tenth of fine-tuning's
    options = TrainOptions(minutes=left, seed=seed, replay=0.5, **rates)
    sft(chat, out.parent / "best", out, options=options, log=log, replay=run / "rows" / "chat")


def own_dpo(run: Path, items: Sequence[dict[str, Any]], out: Path, minutes: float, seed: int, log: RunLog) -> None:
    """DPO on the best of 8 of the model's own answers beside the worst, 60% of the time for drawing."""
    began = time.monotonic()
    pairs = [
        Preference(asked, best.produced, best.worst)
        for asked, best in drawn_for(36 * minutes, run, items, 8, seed)
        if comparable(best)
    ]
    data = compare(pairs, Tokenizer.load(run / "chat"), 256)
    left = minutes - (time.monotonic() - began) / 60
    dpo(run / "chat", data, out, options=DPOOptions(minutes=left, seed=seed), log=log)


def drawn_for(
    seconds: float, run: Path, items: Sequence[dict[str, Any]], n: int, seed: int
) -> Iterator[tuple[tuple[Message, ...], Best]]:
    """Questions of practice in an order of the seed's, and the best of n answers to each, until the time is used."""
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    asked = [messages_of(items[number]["messages"]) for number in order]
    engine, began = Model(run / "chat", dtype=measure_machine().compute_dtype).engine, time.monotonic()
    for start in range(0, len(asked), 64):
        some = asked[start : start + 64]
        for best in best_of(engine, some, judged_by(run), n, max_tokens=LONGEST, seed=seed * 10_000 + start):
            yield some[best.number], best
        if time.monotonic() - began > seconds:
            return


def curve(lines: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Score and true worth against KL, a colour a run."""
    from html import escape

    points = {
        f"{name}: {key}": sorted((max(line["kl"], 0.0), line[key]) for line in own)
        for name, own in lines.items()
        for key in ("score", "true_score")
    }
    right = max(x for own in points.values() for x, _ in own) or 1.0
    low, high = min(y for own in points.values() for _, y in own), max(y for own in points.values() for _, y in own)
    colours = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444")
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 360" font-family="sans-serif" font-size="12">',
        '<rect width="640" height="360" fill="white"/>',
        '<text x="320" y="352" text-anchor="middle">KL, nats an answer</text>',
        f'<text x="4" y="16">{high:.2f}</text><text x="4" y="328">{low:.2f}</text>'
        f'<text x="600" y="340">{right:.1f}</text>',
    ]
    for number, (name, own) in enumerate(points.items()):
        path_text = " ".join(
            f"{40 + 580 * x / right:.1f},{320 - 300 * (y - low) / (high - low):.1f}" for x, y in smooth(own)
        )
        dash = ' stroke-dasharray="5 4"' if "true" not in name else ""
        colour = colours[number // 2 * 2 % 4 + number % 2]
        parts.append(f'<polyline points="{path_text}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="420" y="{100 + 16 * number}" fill="{colour}">{escape(name)}</text>')
    path.write_text("".join(parts) + "</svg>", encoding="utf-8")


def smooth(points: Sequence[tuple[float, float]], width: int = 5) -> list[tuple[float, float]]:
    """Each y as the mean of its neighbours', `width` to each side."""
    return [(x, mean(y for _, y in points[max(0, i - width) : i + width + 1])) for i, (x, _) in enumerate(points)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=COMPARED, choices=METHODS)
    parser.add_argument("--count", type=int, default=24, help="held-out questions of each skill, language and split")
    parser.add_argument("--draws", type=int, default=4, help="answers of each model to each question")
    parser.add_argument("--out", type=Path, default=Path("runs/alignment"))
    options = parser.parse_args()
    questions = held_out(3, options.count, seed_of(options.run / "curriculum"))
    items = questions * options.draws
    chat = Model(options.run / "chat").engine
    before = cache(lambda seed: worths_of(chat, items, seed=seed))  # each seed draws its own answers
    texts = read_held_out(options.run / "rows" / "held_out.jsonl")
    drawn: dict[str, list[dict[str, Any]]] = {}
    for method in options.methods:
        found, graded = list[dict[str, Any]](), list[Graded]()
        for seed in options.seeds[:1] if method in ("best-of-16", "cautious", "one") else options.seeds:
            began, asked, figures = time.monotonic(), items, dict[str, Any]()
            if method == "best-of-16":
                asked = questions[: len(questions) // 3]
                after = best_worths(options.run, asked)
            else:
                out = options.out / f"{method}-{seed}" / "model"
                lines = train(method, options.run, out, options.minutes, seed)
                model = Model(out)
                after = worths_of(model.engine, items, seed=seed)
                bits = bits_by_language(model.transformer, model.tokenizer, texts, context=256, seconds=10)
                figures = {"bits": round(bits["all"]["per_byte"], 3)} | ({"kl": lines[-1]["kl"]} if lines else {})
                if method in ("cautious", "one"):
                    drawn[method] = lines
            first = before(seed)[: len(asked)]
            skills = (item["skill"] for item in asked)
            graded += (Graded(i % len(questions), *row) for i, row in enumerate(zip(skills, first, after, strict=True)))
            found.append(versus(first, after, asked))
            print(json.dumps({"method": method, "seed": seed} | figures | short(found[-1]) | since(began)), flush=True)
        print(json.dumps({"method": method, "seeds": len(found)} | pooled(found, graded)), flush=True)
    if drawn:
        curve(drawn, options.out / "over-optimisation.svg")


def since(began: float) -> dict[str, float]:
    return {"seconds": round(time.monotonic() - began, 1)}


def short(result: dict[str, Any]) -> dict[str, Any]:
    """The figures that the table shows."""
    falls = changes([result])
    worst = min(falls, key=lambda name: falls[name])
    table = {
        name: [round(result[name][when]["accuracy"], 4) for when in ("before", "after")]
        for name in ("right", "claims", "refusals")
    }
    return table | wins_of([result]) | {"asked": result["asked"], "worst": [worst, round(falls[worst], 3)]}


def pooled(found: Sequence[dict[str, Any]], graded: Sequence[Graded]) -> dict[str, Any]:
    """All seeds together: the wins, and the skills that lose more than two points of right answers, with how many were
    asked and what an answer was worth, before and after."""
    falls = {name: [round(change, 3)] for name, change in changes(found).items() if change < -0.02}
    for name, row in falls.items():
        own = [(case.before, case.after) for case in graded if case.skill == name]
        row += [len(own), *(round(mean(worths), 3) for worths in zip(*own, strict=True))]
    questions = len({case.question for case in graded if case.before != case.after})
    wins = wins_of(found) | {"interval": by_question(graded), "questions": questions}
    return wins | {"skills": len(found[0]["skills"]), "worse_by_more_than_2": falls}


def by_question(graded: Sequence[Graded]) -> list[float]:
    """The 95% interval of the wins' share, whose cases come in groups, a question each (Cochran 1977, section 3.12)."""
    outcomes: dict[int, list[int]] = {}
    for case in graded:
        own = outcomes.setdefault(case.question, [0, 0])
        own[0] += case.after > case.before
        own[1] += case.after != case.before
    right, n = sum(own for own, _ in outcomes.values()), max(1, sum(many for _, many in outcomes.values()))
    half = 1.96 * sum((own - right / n * many) ** 2 for own, many in outcomes.values()) ** 0.5 / n
    return [round(right / n - half, 3), round(right / n + half, 3)]


def wins_of(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the questions that two models answer differently, those won, with a 95% interval."""
    wins = score(*(sum(result["wins"][key] for result in found) for key in ("right", "n")))
    interval = [round(wins["low"], 3), round(wins["high"], 3)]
    return {"win_rate": round(wins["accuracy"], 4), "interval": interval, "decided": wins["n"]}


def changes(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By how much the share of right answers rises, skill by skill; every result asks the same questions."""

    def right(when: str, name: str) -> float:
        return mean(result["skills"][name][when]["accuracy"] for result in found)

    return {name: right("after", name) - right("before", name) for name in found[0]["skills"]}


if __name__ == "__main__":
    main()
