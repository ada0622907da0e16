"""A run folder as a build leaves it, without building: a quarter of an hour of made-up but plausible figures."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from liuli.evals import headline, score
from liuli.evals.headline import family

START = 1_760_000_000.0
STAGES = [("curriculum", 38), ("tokenizer", 12), ("rows", 21), ("pretrain", 512), ("chat", 236), ("evaluate", 48)]
SKILLS = [
    "country_place",
    "planets",
    "calculate_add",
    "remember_name",
    "translate_word",
    "unknown_country",
    "add_steps",
]
SKILLS += ["cite_name", "story", "spell", "reverse_list", "leap_year"]
PROMPTS = {
    "en": "What is the capital of France?",
    "zh": "讲一个关于狐狸的故事。",
}
ANSWERS = {
    "en": [
        "the of a the and of",
        "The capital of of is",
        "The capital of France is Par",
        "The capital of France is Paris.",
    ],
    "zh": [
        "的的了一，是",
        "有一只小狐，狐狸的狐",
        "从前有一只小狐狸。它住在树林里。",
        "从前有一只小狐狸，住在河边的树林里。一天它救了一只小鸟，从此它们成了好朋友。",
    ],
}


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")


CURVES = {"pretrain": (420, 7.4, 1.05), "chat": (190, 1.4, 0.21)}  # steps, first and last loss


def make_log(rng: random.Random) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    now = START
    for stage, seconds in STAGES:
        records.append({"time": now, "stage": stage, "event": f"{stage} started"})
        steps, first, last = CURVES.get(stage, (0, 0.0, 0.0))
        for step in range(steps):
            share = step / steps
            falling = last + (first - last) * math.exp(-9 * share) + 0.25 * (1 - share) * last
            loss = max(falling + rng.gauss(0, 0.004 * first), 0.05)
            records.append(
                {
                    "time": now + seconds * share, "stage": stage, "step": step, "progress": share,
                    "loss": loss, "bpb": loss / math.log(2) / 3.1, "tokens": (step + 1) * 32768,
                    "lr": min(1, step / 12, (1 - share) / 0.6),
                    "tokens_per_s": 26_500 + rng.gauss(0, 900), "grad_norm": 0.4,
                }
            )  # fmt: skip
        now += seconds
        records.append({"time": now, "stage": stage, "event": f"{stage} done"})
    return records


def make_eval(rng: random.Random) -> dict[str, Any]:
    rows = []
    for name in SKILLS:
        for language in ("en", "zh"):
            ability = min(1.0, rng.betavariate(14, 1))
            for split in ("train", "names", "templates", "combinations")[: rng.choice((2, 3, 4))]:
                n = rng.randrange(24, 90)
                right = sum(rng.random() < ability for _ in range(n))
                rows.append(
                    {"skill": name, "family": family(name), "language": language, "split": split, **score(right, n)}
                )
    call = {"id": "1", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "417*38"}'}}
    ask = {"role": "user", "content": "What is 417 times 38?"}
    told = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "15846"},
        {"role": "assistant", "content": "417 × 38 = 15846."},
    ]
    names_zh = [
        {"role": "user", "content": "你好，我叫小梅。"},
        {"role": "assistant", "content": "你好，小梅！很高兴认识你。"},
        {"role": "user", "content": "我叫什么名字？"},
    ]
    said_zh = [{"role": "assistant", "content": "你叫小梅。"}]
    english = {"skill": "calculate_multiply", "language": "en", "messages": [ask], "said": told, "answer": "15846"}
    chinese = {"skill": "remember_name", "language": "zh", "messages": names_zh, "said": said_zh, "answer": "小梅"}
    examples = [english | {"right": True}, chinese | {"right": True}]  # fmt: skip
    wrong = {
        "skill": "spell",
        "language": "en",
        "messages": [{"role": "user", "content": "Spell “lantern” backwards."}],
        "answer": "nretnal",
    }
    return {
        "model": {"parameters": 3_050_000, "parameter_bytes": 6_100_000},
        "bits": {
            "en": {"per_byte": 0.612, "bytes": 200_000, "tokens": 61_000},
            "zh": {"per_byte": 0.743, "bytes": 180_000, "tokens": 52_000},
        },
        "skills": rows,
        "headline": headline(rows),
        "examples": examples,
        "mistakes": [wrong | {"said": [{"role": "assistant", "content": "nretnla"}], "right": False}],
        "talk": {
            "en": {"n": 64, "ended": 0.984, "looping": 0.0, "repeated": 0.012, "length": 31.0},
            "zh": {"n": 64, "ended": 1.0, "looping": 0.016, "repeated": 0.02, "length": 27.4},
        },
        "speed": {
            "parameter_bytes": 6_100_000, "peak_rss_bytes": 612_000_000, "prefill_tokens_per_s": 61_000.0,
            "decode_1_tokens_per_s": 214.0, "decode_16_tokens_per_s": 1_830.0,
        },
        "machine": {"cpu": "Two cores of something", "threads": 2, "memory": "8 GB"},
        "versions": {"liuli": "0.1.0", "python": "3.13.1", "torch": "2.13.0"},
    }  # fmt: skip


@pytest.fixture
def fake_run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "laptop")


def make_run(folder: Path) -> Path:
    rng = random.Random(7)
    for name in ("pretrain", "chat"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    total = sum(seconds for _, seconds in STAGES)
    status = {
        "state": "done", "progress": 1.0,
        "stages": [{"name": n, "title": n, "state": "done", "seconds": s, "share": s / total} for n, s in STAGES],
    }  # fmt: skip
    plan = {
        "minutes": 15, "parameters": 3_050_000, "tokens": 20_000_000, "flops": 2.9e14, "bpb": 0.49,
        "layers": 6, "width": 192, "vocab_size": 2048, "context": 256,
        "machine": {"matmul_gflops_bf16": 812},
    }  # fmt: skip
    log = make_log(rng)
    samples = [
        {
            "time": START + 90 + 700 * step / 9, "step": 60 * step, "progress": step / 9,
            "stage": "pretrain" if step < 6 else "chat",
            "answers": [
                {"prompt": prompt, "language": language, "answer": ANSWERS[language][min(step // 2, 3)]}
                for language, prompt in PROMPTS.items()
            ],
        }
        for step in range(10)
    ]  # fmt: skip
    for name, value in (("plan.json", plan), ("status.json", status), ("eval.json", make_eval(rng))):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), "utf-8")
    write_lines(folder / "log.jsonl", log)
    write_lines(folder / "samples.jsonl", samples)
    (folder / "recipe.toml").write_text('name = "laptop"\nminutes = 15\n\n[[stage]]\nkind = "pretrain"\n', "utf-8")
    return folder
