"""A stage that is killed at any moment and started again ends in the same weights, bit for bit.

The runs are real (model, optimizer, dropout, loader, checkpoints, snapshots), only small. Most live in children forked
from this process, which has torch loaded already. When to kill follows the run's own checkpoints, never a time taken
before, so that a busy machine changes nothing. SEED repeats a failure, but for the moment within a step.
"""

from __future__ import annotations

import hashlib
import itertools
import json
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

from liuli import files, running
from liuli.files import lock, read_json, read_lines, verify_folder
from liuli.model import Transformer, qwen3, save
from liuli.stages.pretrain import Shape, pretrain
from liuli.stages.training import TrainOptions
from liuli.text import Tokenizer, pack_documents
from liuli.train import RunLog, StageState, measure_machine

SEED = 0
KILLS = 20
DEAD = 9  # the exit status of a child that died where it was told to
OPTIONS = TrainOptions(steps=24, batch_tokens=512, save_every_steps=2, snapshot_every_s=0.5, compile="no", dropout=0.1)
SHAPE = Shape(layers=1, width=64)


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
    with (folder / "chats.jsonl").open("w") as file:
        for asked, answered in itertools.pairwise(texts):
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            file.write(json.dumps({"messages": turns}) + "\n")
    model = Transformer(qwen3(tokenizer.vocab_size, 64, 1, context=128))
    save(model, folder / "model", tokenizer_folder=folder / "tokenizer", provenance={"stage": "pretrain"})
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


def killed(work: Callable[[], None], run: Path, draw: random.Random) -> bool:
    """Start the work and kill it a random number of steps further on, within a step; False if it was done first."""
    goal, pid = newest(run) + draw.randrange(9), start(work)
    while newest(run) < goal and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.1))
    os.kill(pid, signal.SIGKILL)
    status = wait(pid)
    assert status in (0, -signal.SIGKILL)
    return status != 0


def newest(run: Path) -> int:
    """The step of the newest checkpoint of a run; 0 where there is none. Folders may come and go while this looks."""
    names = [name for _, folders, _ in os.walk(run / "checkpoints") for name in folders]
    return max((int(name) for name in names if name.isdigit()), default=0)


def continuations(run: Path) -> int:
    return sum(line.get("event") == "continued from checkpoint" for line in read_lines(run / "log.jsonl"))


def weights(run: Path, name: str = "pretrain") -> str:
    return hashlib.sha256((run / name / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A forked child has none of its parent's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_twenty_kills_do_not_change_one_bit_of_the_weights(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "whole")  # in this process: what torch loads lazily, the children then have
    draw = random.Random(SEED)
    kills = continued = 0
    while kills < KILLS:
        run = tmp_path / f"run-{kills}"
        while kills < KILLS and killed(lambda run=run: train(data, run), run, draw):
            kills += 1
        if not (run / "pretrain").exists() or newest(run):
            assert wait(start(lambda run=run: train(data, run))) == 0
        assert weights(run) == weights(tmp_path / "whole"), f"after {kills} kills"
        assert [path.name for path in run.rglob(".*")] == [".lock"]
        continued += continuations(run)
        shutil.rmtree(run)
    assert continued >= KILLS // 4  # the kills fell into the training, not before its first checkpoint


@pytest.mark.slow
def test_sft_killed_at_random_moments_ends_in_the_weights_of_the_uninterrupted_run(data: Path, tmp_path: Path) -> None:
    """From conversations: some kills fall into the packing of the rows."""

    def sft(run: Path) -> None:
        changes = ("batch_tokens=512", "save_every_steps=2", "compile=no", "dropout=0.1")
        running.sft_here(data / "model", data / "chats.jsonl", run / "chat", {"steps": 60}, changes, False, True)

    sft(tmp_path / "whole")
    run, draw = tmp_path / "run", random.Random(SEED)
    kills = sum(itertools.takewhile(bool, (killed(lambda: sft(run), run, draw) for _ in range(4))))
    assert wait(start(lambda: sft(run))) == 0
    assert kills >= 2 and continuations(run) >= 1
    assert weights(run, "chat") == weights(tmp_path / "whole", "chat")


def command(data: Path, run: Path, *options: str, threads: int = 1) -> subprocess.Popen[bytes]:
    """`liuli pretrain` as a person runs it."""
    size = ["--steps", "60", "--depth", "1", "--width", "64", "--quiet"]
    changes = [part for option in ("batch_tokens=512", *options) for part in ("--option", option)]
    start = [sys.executable, "-m", "liuli", "pretrain", str(data / "rows"), str(run / "pretrain")]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": str(run.parent / "kernels")}
    return subprocess.Popen([*start, "--tokenizer", str(data / "tokenizer"), *size, *changes], env=environment)


def kill_after(step: int, process: subprocess.Popen[bytes], run: Path) -> None:
    while process.poll() is None and newest(run) < step:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_the_same_command_again_goes_on_where_the_killed_one_was(data: Path, tmp_path: Path) -> None:
    options = ("save_every_steps=4", "compile=no")
    assert command(data, tmp_path / "whole", *options).wait() == 0
    run = tmp_path / "killed"
    kill_after(4, command(data, run, *options), run)
    assert command(data, run, *options).wait() == 0
    assert weights(run) == weights(tmp_path / "whole") and continuations(run) == 1


@pytest.mark.slow
def test_a_compiled_run_on_two_threads_that_is_killed_ends_in_the_same_weights(data: Path, tmp_path: Path) -> None:
    machine = measure_machine()
    if machine.device != "cpu" or not machine.compiler:
        pytest.skip("torch.compile takes a C++ compiler (g++), and the promise is the CPU's")
    options = ("save_every_steps=4", "compile=yes", "dropout=0.1")
    assert command(data, tmp_path / "whole", *options, threads=2).wait() == 0
    run = tmp_path / "killed"
    kill_after(8, command(data, run, *options, threads=2), run)
    assert read_json(run / "checkpoints" / "pretrain" / "decided.json")["compile"] is True
    assert command(data, run, *options, threads=2).wait() == 0
    assert weights(run) == weights(tmp_path / "whole") and continuations(run) == 1


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
