"""`torchrun -m liuli STAGE …` learns what `liuli STAGE …` learns, and leaves the same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liuli.errors import UsageError
from liuli.files import read_json, read_lines
from liuli.running import own_run
from liuli.stages.reward import RewardOptions, compare, reward
from liuli.stages.training import write_model
from liuli.text import Message, Preference, pack_documents
from liuli.train import RunLog, StageState
from tests.engine.conftest import byte_tokenizer, make_model

# Stages one after another, for processes start slowly; the last ends as the command does. In float32: in bfloat16 other
# rows beside a row change its last bits.
PROGRAM = """
import sys
from contextlib import suppress
from dataclasses import replace
import torch.distributed as dist
import liuli.running, liuli.train
from liuli.cli import app, main
measured = liuli.train.measure_machine()
liuli.train.measure_machine = lambda: replace(measured, dtype="float32")
class Left(Exception): pass
def stay():
    dist.barrier()
    raise Left
leave, liuli.running.leave = liuli.running.leave, stay
*stages, last = sys.argv[1:]
for stage in stages:
    with suppress(Left):
        app(stage.split(), standalone_mode=False)
liuli.running.leave, sys.argv[1:] = leave, last.split()
main()
"""
SHORT = "--steps 3 --option max_tokens=8 --option most_drift=1 --option trace_every=1"
ROWS = "--steps 4 --option batch_tokens=384 --option micro_tokens=64 --option compile=no"  # 6 rows of 64, one a pass
STAGES = {
    "pretrain": f"pretrain text OUT --tokenizer tokenizer --depth 2 --width 32 {ROWS}",
    "racer": f"pretrain text OUT --tokenizer tokenizer --preset racer --depth 3 --width 32 {ROWS} --option decay=0.1",
    "sft": f"sft model chats.jsonl OUT {ROWS} --replay text --option replay=0.34",
    "reward": "reward model many.jsonl --out OUT --option prompts=9 --option micro_tokens=200",
    "ppo": f"ppo model judge talks.jsonl OUT {SHORT} --option answers=10 --option minibatches=1",
    "grpo": f"grpo model OUT --tasks talks.jsonl --reward judge {SHORT} --option answers=8 --option group=4",
    "dpo": "dpo model pairs.jsonl --out OUT --option pairs=5",
    "kto": "dpo model thumbs.jsonl --out OUT --option kind=kto --option pairs=5",
}
TEXT = ("pretrain", "racer", "sft")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that now and then ends an answer, a judge of it, rows of text, conversations, prompts and pairs."""
    folder, tokenizer = tmp_path_factory.mktemp("torchrun"), byte_tokenizer()
    tokenizer.save(folder / "tokenizer")
    model = make_model("qwen3", 64)
    with torch.no_grad():
        model.head_VD[tokenizer.end] *= 3
    write_model(model, folder / "model", tokenizer, folder / "tokenizer", {"seed": 0})
    said = [(f"q{n}", f"{n} yes!", f"{n} well") for n in range(20)]
    pairs = [
        Preference((Message("user", q),), (Message("assistant", a),), (Message("assistant", b),)) for q, a, b in said
    ]
    log = RunLog(folder / "log", [StageState("judge", "judge")], quiet=True, tensorboard=False)
    data = compare(pairs, tokenizer, 64)
    reward(folder / "model", data, folder / "judge", options=RewardOptions(members=2), log=log)
    lines = {
        "pairs.jsonl": [{"prompt": q, "chosen": a, "rejected": b} for q, a, b in said],
        "talks.jsonl": [{"prompt": q, "completion": a} for q, a, _ in said],
        "thumbs.jsonl": [{"prompt": q, "completion": s, "label": s == a} for q, a, b in said for s in (a, b)],
    }
    lines["many.jsonl"] = [{"prompt": f"q{n}", "chosen": f"{n} yes!", "rejected": f"{n} well"} for n in range(160)]
    lines["chats.jsonl"] = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a, _ in said * 8
    ]
    for name, rows in lines.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    texts = [f"{n} times {n} is {n * n}. " * (n % 5 + 1) for n in range(60)]
    pack_documents(tokenizer.encode_batch(texts), 64, folder / "text")
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    return folder


def run(folder: Path, stages: Sequence[str], processes: int) -> None:
    """Stages in so many processes, each into `folder/PROCESSES/STAGE`."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] * (processes > 1)
    commands = [STAGES[stage].replace("OUT", f"{processes}/{stage}") for stage in stages]
    command, environment = [sys.executable, *launch, "program.py", *commands], os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "stages", [TEXT, [stage for stage in STAGES if stage not in TEXT]], ids=["text", "preferences"]
)
def test_two_processes_leave_what_one_leaves(folder: Path, stages: Sequence[str]) -> None:
    for processes in (1, 2):
        run(folder, stages, processes)
    for stage in stages:
        one, two = (load_file(folder / number / stage / "model.safetensors") for number in "12")
        assert two.keys() == one.keys(), stage
        before = {} if "pretrain" in STAGES[stage] else load_file(folder / "model" / "model.safetensors")
        moved = torch.cat([(x - before.get(name, torch.zeros_like(x))).flatten() for name, x in one.items()])
        apart = torch.cat([(one[name] - two[name]).flatten() for name in one])
        assert moved.norm() > 0, stage
        assert apart.norm() < 1e-3 * moved.norm(), stage  # Adam divides by gradients that are almost nothing
        figures = [read_json(folder / number / stage / "liuli.json")["figures"] for number in "12"]
        clocks = ("seconds", "tokens_per_s")
        figures = [{name: x for name, x in found.items() if name not in clocks} for found in figures]
        assert figures[1] == pytest.approx(figures[0], rel=1e-3, abs=1e-3), stage
    logs = [[line.get("step") for line in read_lines(folder / number / "log.jsonl")] for number in "12"]
    assert logs[0] == logs[1]  # one diary, not two
    assert left(folder / "2") == left(folder / "1")


def left(run: Path) -> list[str]:
    """The names of all files of a run but TensorBoard's, which hold the time."""
    names = [path.relative_to(run).as_posix() for path in run.rglob("*")]
    return sorted(name for name in names if "tfevents" not in name)


def test_a_stage_that_is_work_for_one_process_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = pytest.raises(UsageError, match="drawing is done in one process")
    with refused, own_run(tmp_path, "drawing", True, divided=False):
        pass
