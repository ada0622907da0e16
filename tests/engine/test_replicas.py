"""Replicas: processes that write together what one engine would, and of which none takes others with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from liuli.engine import Constraint, Engine, Model, Sampling, reply_many
from liuli.errors import LiuliError, UsageError
from liuli.model import save
from tests.engine.conftest import byte_tokenizer, make_model
from tests.server.scripted import until

PROMPTS = [[20 + at, 30, 40, 50 + at] for at in range(12)]
SAMPLINGS = [
    Sampling(0, max_tokens=20),
    Sampling(1.0, max_tokens=20, seed=3, alternatives=2),
    Sampling(1.0, max_tokens=20, seed=4, ignore_eos=True, stop=("a", "é")),
    Sampling(1.0, max_tokens=20, seed=5, logit_bias=((40, 5.0),), frequency_penalty=0.5),
    Sampling(1.0, max_tokens=40, seed=6, constraint=Constraint("choice", '["yes", "no"]')),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("replicas")
    byte_tokenizer().save(place / "tokenizer")
    model = make_model("qwen3", context=512)
    save(model, place / "model", tokenizer_folder=place / "tokenizer", provenance={"stage": "test"})
    return place / "model"


@pytest.fixture(scope="module")
def one(folder: Path) -> Engine:
    return Model(folder, "cpu").engine


@pytest.fixture(scope="module")
def two(folder: Path) -> Engine:
    return Model(folder, "cpu", replicas=2).engine


def processes(engine: Engine) -> list[int]:
    """The numbers of the processes that write."""
    assert engine.replicas is not None
    return [each.process.pid for each in engine.replicas.replicas]


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z" if Path("/proc").exists() else True


def test_replicas_write_what_one_engine_writes(one: Engine, two: Engine) -> None:
    samplings = [SAMPLINGS[at % len(SAMPLINGS)] for at in range(len(PROMPTS))]
    alone, together = one.generate(PROMPTS, samplings), two.generate(PROMPTS, samplings)
    for expected, found in zip(alone, together, strict=True):
        assert (found.ids, found.text, found.stopped_by) == (expected.ids, expected.text, expected.stopped_by)
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        assert [[other.id for other in token.alternatives] for token in found.tokens] == [
            [other.id for other in token.alternatives] for token in expected.tokens
        ]
    streamed = list(two.stream(PROMPTS[1], SAMPLINGS[1]))
    assert [token.id for token in streamed] == alone[1].ids


def test_conversations_go_on_in_replicas(one: Engine, two: Engine) -> None:
    asked = [[{"role": "user", "content": f"question {at}"}] for at in range(5)]
    sampling = Sampling(1.0, max_tokens=30, seed=1)
    assert reply_many(two, asked, sampling) == reply_many(one, asked, sampling)


def test_an_answer_goes_where_its_beginning_was_read(two: Engine) -> None:
    long = [20 + at % 200 for at in range(400)]
    assert two.generate([long], Sampling(0, max_tokens=2))[0].tokens[0].reused == 0
    for _ in range(3):
        assert two.generate([long], Sampling(0, max_tokens=2))[0].tokens[0].reused > 300
    assert two.generate([[*long[:-1], 5]], Sampling(0, max_tokens=2))[0].tokens[0].reused > 300


def test_an_answer_that_nobody_waits_for_ends(two: Engine) -> None:
    stream = two.poll(PROMPTS[0], Sampling(1.0, max_tokens=400, ignore_eos=True, seed=0))
    until(lambda: next(stream) is not None)
    stream.close()
    assert two.replicas is not None and len(two.replicas) == 0
    written = two.stats.written
    two.generate([PROMPTS[1], PROMPTS[2]], Sampling(0, max_tokens=3))  # both replicas have told what they did
    assert two.stats.written < written + 300


def test_replicas_are_for_a_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liuli.engine.loaded.pick_device", lambda wanted: torch.device("cuda"))
    with pytest.raises(UsageError, match="cores of a CPU"):
        Model(folder, replicas=2)


def test_a_process_that_dies_fails_its_own_answers_alone(one: Engine, two: Engine) -> None:
    victim = processes(two)[0]
    os.kill(victim, signal.SIGSTOP)  # so that it is still asked when it dies
    streams = [two.poll(prompt, SAMPLINGS[1]) for prompt in PROMPTS[:2]]
    said: list[list[int]] = [[], []]

    def listen() -> bool:
        for stream, tokens in zip(streams, said, strict=True):
            tokens += [token.id for token in [next(stream, None)] if token]
        return any(len(tokens) == 20 for tokens in said)

    until(listen)
    os.kill(victim, signal.SIGKILL)
    slow = min(range(2), key=lambda at: len(said[at]))
    with pytest.raises(RuntimeError, match="died"):
        list(streams[slow])
    assert said[1 - slow] == one.generate(PROMPTS[:2], SAMPLINGS[1])[1 - slow].ids
    expected = one.generate(PROMPTS, SAMPLINGS[0])
    assert [answer.ids for answer in two.generate(PROMPTS, SAMPLINGS[0])] == [answer.ids for answer in expected]
    assert len(processes(two)) == 2


def test_replicas_end_with_the_process_that_started_them(folder: Path) -> None:
    program = f"""
import os, signal
from liuli.engine import Model, Sampling
model = Model({str(folder)!r}, "cpu", replicas=2)
print(*(each.process.pid for each in model.engine.replicas.replicas), flush=True)
model.engine.generate([[5], [6]], Sampling(max_tokens=3))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    pids = [int(pid) for pid in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(pids) == 2, done.stderr
    until(lambda: not any(map(lives, pids)))


def test_processes_that_cannot_begin_are_told_and_not_tried_for_ever(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    engine = Model(tmp_path / "model", "cpu", replicas=2).engine
    (tmp_path / "model" / "model.safetensors").unlink()  # before they have read it
    with pytest.raises((RuntimeError, LiuliError), match="died"):
        engine.generate(PROMPTS, SAMPLINGS[0])
    until(lambda: fails(engine))
    with pytest.raises(LiuliError, match="no process could begin"):
        engine.generate(PROMPTS, SAMPLINGS[0])


def fails(engine: Engine) -> bool:
    """Whether none is left, as the next step sees."""
    assert engine.replicas is not None
    engine.replicas.step()
    return not engine.replicas.replicas
