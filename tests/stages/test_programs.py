"""Programs that a model writes, run against tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from liuli.aligning import checked, exercises
from liuli.errors import UsageError
from liuli.stages.programs import code_of, passed, passes
from liuli.stages.rollout import Rollouts
from liuli.text import Message, Task
from liuli.train import RunLog, StageState

ADD, TESTS = "def add(a, b):\n    return a + b\n", "assert add(2, 3) == 5"


def test_a_program_passes_alone_or_in_fences() -> None:
    assert passes(ADD, TESTS)
    assert passes(f"Of course:\n```python\n{ADD}```\nIt adds.", TESTS)
    assert code_of("```py\na = 1\n```\nand\n```\nb = 2") == "a = 1\n\nb = 2"
    assert passes("import collections, itertools, math, re\n" + ADD, TESTS)


@pytest.mark.parametrize(
    "program",
    [
        "def add(a, b):\n    return 0",
        "def add(",
        "",
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "while True:\n    pass",
        "while True:\n    print('x' * 1000)",
        "x = bytearray(4 << 30)\n" + ADD,
        "def f():\n    f()\nf()\n" + ADD,
        "open('made', 'w')\n" + ADD,
        "import os\nos.open('made', os.O_CREAT | os.O_WRONLY)\n" + ADD,
        "import os\nos.remove('/tmp/none')\n" + ADD,
        "import socket\nsocket.socket()\n" + ADD,
        "import subprocess\nsubprocess.run(['true'])\n" + ADD,
        "import os\nos.fork()\n" + ADD,
        "import ctypes\nctypes.CDLL(None)\n" + ADD,
        "import os\nassert 'HOME' in os.environ\n" + ADD,
    ],
)
def test_no_program_passes_that_is_wrong_ends_early_or_reaches_out(program: str) -> None:
    assert not passes(program, TESTS, seconds=1)


def test_answers_are_graded_by_their_own_tests_or_their_last_words() -> None:
    ask = (Message("user", "q"),)
    tasks = [Task(ask, "", tests=TESTS), Task(ask, "7"), Task(ask, "", tests="assert x == 1")]
    said = [(0, ADD), (1, "It is 7."), (2, "x = 2"), (2, "x = 1"), (1, "8")]
    length = len(said)
    rollouts = Rollouts(
        torch.zeros(length, 1, dtype=torch.int64),
        torch.ones(length, 1, dtype=torch.bool),
        torch.zeros(length, 1),
        torch.ones(length, dtype=torch.int64),
        torch.ones(length, dtype=torch.bool),
        torch.tensor([number for number, _ in said]),
        tuple((Message("assistant", text),) for _, text in said),
    )
    assert checked(tasks)(rollouts).tolist() == [1, 1, 0, 1, 0]
    assert passed(["x = 1", "x = 1"], ["", "assert x"]) == [False, True]


def test_programs_run_only_where_that_is_asked_for(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"prompt": "Write add.", "test_list": [TESTS]}) + "\n")
    log = RunLog(tmp_path, [StageState("stage", "stage")], quiet=True, tensorboard=False)
    with pytest.raises(UsageError, match="run the programs that the model writes"):
        exercises(tmp_path, tasks, [], None, 0, False, False, log)
    asked, _, known = exercises(tmp_path, tasks, [], None, 0, True, False, log)
    assert [prompt[-1].content for prompt in asked] == ["Write add."] and known["tasks"] == str(tasks)
    with pytest.raises(UsageError, match="one place"):
        exercises(tmp_path, tasks, ["add_steps"], None, 0, True, False, log)
    with pytest.raises(UsageError, match="no skill 'ad_steps'"):
        exercises(tmp_path, None, ["add_steps", "ad_steps"], None, 0, True, False, log)
