"""GRPO on addition of two- and three-digit numbers with written steps and no tool: what it wins.

    python benchmarks/addition.py runs/laptop [--taught 3.5] [--minutes 2] [--seeds 0 1 2]

RUN is a build's folder (pretrain, rows). A chat model that was taught for `--taught` minutes, not long enough to add
well, practises (`liuli grpo --skill add_steps`); only a right answer earns anything. Before and after: held-out sums
and wordings, exact match of the answer, steps and all, greedy and drawn at temperature 1.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from liuli.aligning import graded, known_by
from liuli.build import messages_of
from liuli.curriculum import practice
from liuli.engine import Model
from liuli.evals.proportion import score
from liuli.evals.versus import worths
from liuli.recipe import option_values
from liuli.stages.grpo import GRPOOptions, grpo
from liuli.stages.sft import sft
from liuli.stages.training import TrainOptions
from liuli.train import RunLog, StageState

SKILL = "add_steps"


def quiet_log(folder: Path, name: str) -> RunLog:
    log = RunLog(folder, [StageState(name, name)], quiet=True, tensorboard=False)
    log.begin(name)
    return log


def examined(model: Path) -> dict[str, Any]:
    """Right answers to held-out questions, with n and a 95% interval."""
    items = [item for split in ("names", "templates", "combinations") for item in held_out(split)]
    engine = Model(model).engine
    right = {name: sum(w == 1 for w in worths(engine, items, t)) for name, t in (("greedy", 0.0), ("drawn", 1.0))}
    return {name: score(count, len(items)) for name, count in right.items()}


def held_out(split: str) -> list[dict[str, Any]]:
    return practice(9, 120, split=split, only=[SKILL])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--taught", type=float, default=3.5, help="minutes of fine-tuning before")
    parser.add_argument("--minutes", type=float, default=2.0, help="of GRPO")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--option", nargs="*", default=[], help="key=value, of GRPOOptions")
    parser.add_argument("--out", type=Path, default=Path("runs/addition"))
    options = parser.parse_args()
    chat = options.out / "chat"
    if not chat.exists():
        taught = TrainOptions(minutes=options.taught, warmup=0.01, cooldown=0.7)
        log = quiet_log(options.out, "chat")
        sft(options.run / "pretrain", options.run / "rows" / "chat", chat, options=taught, log=log)
    print(json.dumps({"before": examined(chat)}), flush=True)
    items = practice(1, 400, only=[SKILL])
    asked = [messages_of(item["messages"]) for item in items]
    for seed in options.seeds:
        began, out = time.monotonic(), options.out / f"seed-{seed}" / "model"
        log = quiet_log(out.parent, "model")
        budget = {"minutes": options.minutes, "seed": seed, "max_tokens": 160}
        practised = GRPOOptions(**option_values(GRPOOptions, budget, options.option))
        grpo(chat, asked, out, reward=known_by(graded(items)), options=practised, log=log)
        seconds = round(time.monotonic() - began, 1)
        print(json.dumps({"seed": seed, "seconds": seconds, "after": examined(out)}), flush=True)


if __name__ == "__main__":
    main()
