"""A tiny chat model in a folder, and comparisons to learn from."""

from __future__ import annotations

from pathlib import Path

import pytest

from liuli.stages.reward import Comparisons, compare
from liuli.stages.training import write_model
from liuli.text import Message, Preference
from liuli.train import RunLog, StageState
from tests.engine.conftest import byte_tokenizer, make_model

CONTEXT = 64


@pytest.fixture
def model(tmp_path: Path) -> Path:
    byte_tokenizer().save(tmp_path / "tokenizer")
    write_model(make_model("qwen3", CONTEXT), tmp_path / "model", byte_tokenizer(), tmp_path / "tokenizer", {"seed": 0})
    return tmp_path / "model"


def quiet(folder: Path) -> RunLog:
    log = RunLog(folder, [StageState("stage", "stage")], quiet=True, tensorboard=False)
    log.begin("stage")
    return log


def say(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


def ask(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


# people like answers that end in "!"
PAIRS = [Preference(ask(f"q{n}"), say(f"{n} yes!"), say(f"{n} well")) for n in range(40)]


def comparisons(pairs: list[Preference] = PAIRS) -> Comparisons:
    return compare(pairs, byte_tokenizer(), CONTEXT)
