"""A stage that is killed at any moment and started again ends in the same weights, bit for bit.

The runs are real (`stages.pretrain`: model, optimizer, dropout, loader, checkpoints, snapshots), only small, and live
in children forked from this process, which has torch loaded already. SEED repeats a failure, but for the clock.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from liuli import files
from liuli.files import lock, read_lines, verify_folder
from liuli.stages.pretrain import Shape, pretrain
from liuli.stages.training import TrainOptions
from liuli.text import Tokenizer, pack_documents
from liuli.train import RunLog, StageState, measure_machine

SEED = 0
KILLS = 20
DEAD = 9  # the exit status of a child that died where it was told to
OPTIONS = TrainOptions(steps=24, batch_tokens=512, save_every_steps=2, snapshot_every_s=0.2, compile="no")
SHAPE = Shape(layers=1, width=64, dropout=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and rows of a few made-up sentences."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(SEED)
    words = ["glass", "tiger", "琉璃", "river", "runs", "into", "the", "old", "stone", "house", "12", "7", "and"]
    texts = [" ".join(draw.choices(words, k=draw.randrange(5, 40))) for _ in range(300)]
    tokenizer = Tokenizer.train(texts, 320)
    tokenizer.save(folder / "tokenizer")
    pack_documents(tokenizer.encode_batch(texts), 128, folder / "rows", vocab_size=tokenizer.vocab_size)
    measure_machine()  # once, here: the children inherit the answer, which is a measurement and may waver
    return folder


def train(data: Path, run: Path, options: TrainOptions = OPTIONS) -> None:
    """One start of the stage, in this process."""
    with lock(run):
        log = RunLog(run, [StageState("pretrain", "Pretraining")], quiet=True, tensorboard=False)
        log.begin("pretrain")
        pretrain(data / "rows", data / "tokenizer", run / "pretrain", shape=SHAPE, options=options, log=log)
        log.end("done")


def start(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def wait(pid: int) -> int:
    """The exit status of a child, negative when a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def weights(run: Path) -> str:
    return hashlib.sha256((run / "pretrain" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A forked child has none of its parent's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_twenty_kills_do_not_change_one_bit_of_the_weights(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "warm-up")  # what torch loads lazily, the children then have
    begin = time.monotonic()
    assert wait(start(lambda: train(data, tmp_path / "whole"))) == 0
    seconds = time.monotonic() - begin
    expected = weights(tmp_path / "whole")
    draw = random.Random(SEED)
    kills = continued = 0
    while kills < KILLS:
        run = tmp_path / f"run-{kills}"
        finished = False
        while not finished:
            pid = start(lambda run=run: train(data, run))
            if kills < KILLS:
                time.sleep(draw.uniform(0.1, 0.8) * seconds)
                os.kill(pid, signal.SIGKILL)
            status = wait(pid)
            kills += status == -signal.SIGKILL
            finished = status == 0
            assert status in (0, -signal.SIGKILL)
        assert weights(run) == expected, f"after {kills} kills"
        assert [path.name for path in run.rglob(".*")] == [".lock"]
        continued += sum(line.get("event") == "continued from checkpoint" for line in read_lines(run / "log.jsonl"))
        shutil.rmtree(run)
    assert continued >= KILLS // 4  # the kills fell into the training, not before its first checkpoint


@pytest.mark.slow
def test_the_same_command_again_goes_on_where_the_killed_one_was(data: Path, tmp_path: Path) -> None:
    """`liuli pretrain` as a person runs it, killed twice after a checkpoint."""

    def command(run: Path) -> subprocess.Popen[bytes]:
        size = ["--steps", "40", "--depth", "1", "--width", "64", "--quiet"]
        options = ["--option", "batch_tokens=512", "--option", "save_every_steps=4", "--option", "compile=no"]
        start = [sys.executable, "-m", "liuli", "pretrain", str(data / "rows"), str(run / "pretrain")]
        return subprocess.Popen([*start, "--tokenizer", str(data / "tokenizer"), *size, *options])

    assert command(tmp_path / "whole").wait() == 0
    run = tmp_path / "killed"
    for step in (4, 16):
        process = command(run)
        while process.poll() is None and not newest(run) >= step:
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert command(run).wait() == 0
    assert weights(run) == weights(tmp_path / "whole")
    assert sum(line.get("event") == "continued from checkpoint" for line in read_lines(run / "log.jsonl")) == 2


def newest(run: Path) -> int:
    """The step of the newest checkpoint of a run; 0 where there is none."""
    return max((int(path.name) for path in run.glob("checkpoints/pretrain/0*")), default=0)


@pytest.mark.slow
def test_dying_at_any_operation_of_a_stage_from_log_to_model_folder_loses_nothing(data: Path, tmp_path: Path) -> None:
    """Every 13th operation of a short run, its figures, checkpoints, last snapshot and model folder among them."""
    options = replace(OPTIONS, steps=3, save_every_steps=1, snapshot_every_s=1e9)
    operations: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_io", lambda operation, path: operations.append(operation))
        train(data, tmp_path / "whole", options)

    def die_at(k: int, run: Path) -> None:
        count = iter(range(1 << 30))
        files._io = lambda operation, path: os._exit(DEAD) if next(count) == k else None
        train(data, run, options)

    for k in range(SEED % 13, len(operations), 13):
        run = tmp_path / f"run-{k}"
        status = wait(start(lambda k=k, run=run: die_at(k, run)))
        assert status == DEAD or (status == 0 and k > len(operations) - 20)  # status.json follows the clock
        assert wait(start(lambda run=run: train(data, run, options))) == 0
        assert weights(run) == weights(tmp_path / "whole"), f"died before operation {k}, {operations[k]}"
        verify_folder(run / "pretrain")
        steps = [line["step"] for line in read_lines(run / "log.jsonl") if "loss" in line]
        assert steps[-1] == 3
