"""Traces: what was written is read again, damage is told, and a run that still writes is read as far as it is whole."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuli.errors import DamagedError, LiuliError, UsageError
from liuli.train import trace
from liuli.train.trace import SEQUENCES, TOKENS, read_trace, traced_steps, write_trace

FLOATS = [field.name for field in TOKENS if field.type == pa.float32()]


def tokens(texts: list[str], sequence: list[int] | None = None) -> dict[str, Any]:
    """Columns of tokens, the first one not drawn, so that its figures are not defined."""
    count = len(texts)
    figures = {name: np.array([math.nan, *range(1, count)], np.float32) / 8 for name in FLOATS}
    return {
        "sequence": sequence or [0] * count,
        "position": range(count),
        "token": np.arange(count),
        "text": texts,
        "drawn": np.arange(count) > 0,
        "clipped": [None, *[False] * (count - 1)],
        **figures,
    }


def sequences(prompts: list[str], **change: Any) -> dict[str, Any]:
    count = len(prompts)
    return {
        "sequence": list(range(count)),
        "prompt": prompts,
        "answer": ["yes"] * count,
        "score": [0.5] * count,
        "members": [[0.25, math.nan]] * count,
        "length": [3] * count,
        "finished": [True] * count,
        "advantage": [None] * count,
        "right": [None, *[True] * (count - 1)],
    } | change


ODD = st.one_of(
    st.text(st.characters(), max_size=8), st.sampled_from(["", "\x00", "\ud800", "\ufffd", "<|end|>", "🙂"])
)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(ODD, min_size=1, max_size=6), prompts=st.lists(ODD, min_size=1, max_size=3))
def test_what_was_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, texts: Any, prompts: Any) -> None:
    run = tmp_path_factory.mktemp("run")
    write_trace(run, "ppo", 12, tokens(texts), sequences(prompts))
    read = read_trace(run, "ppo", 12)
    whole = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
    assert read["tokens"]["text"] == whole
    assert read["tokens"]["drawn"] == [False, *[True] * (len(texts) - 1)]
    for name in FLOATS:
        assert read["tokens"][name] == [None, *(n / 8 for n in range(1, len(texts)))]
    assert read["sequences"]["members"] == [[0.25, None]] * len(prompts)
    assert read["sequences"]["right"] == [None, *[True] * (len(prompts) - 1)]
    assert list(read["tokens"]) == TOKENS.names and list(read["sequences"]) == SEQUENCES.names


def test_one_sequence_is_read_alone_and_a_missing_one_is_told(tmp_path: Path) -> None:
    write_trace(tmp_path, "grpo", 3, tokens(["a", "b", "c"], [0, 1, 1]), sequences(["p", "q"]))
    one = read_trace(tmp_path, "grpo", 3, sequence=1)
    assert (one["tokens"]["text"], one["sequences"]["prompt"]) == (["b", "c"], ["q"])
    with pytest.raises(LiuliError, match="no sequence 7"):
        read_trace(tmp_path, "grpo", 3, sequence=7)


def test_a_method_without_a_value_function_says_none(tmp_path: Path) -> None:
    write_trace(tmp_path, "grpo", 1, tokens(["a", "b"]) | {"value": None}, sequences(["p"], members=None))
    assert read_trace(tmp_path, "grpo", 1)["tokens"]["value"] == [None, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewrad": [1.0, 2.0]}, "unknown column rewrad"),
        ({"text": None}, "cannot be written"),
        ({"kl": [1.0]}, "cannot be written"),
        ({"kl": ["one", "two"]}, "cannot be written"),
        ({"drawn": [True, None]}, "cannot be written"),
    ],
)
def test_wrong_columns_are_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(LiuliError, match=message):
        write_trace(tmp_path, "ppo", 1, tokens(["a", "b"]) | change, sequences(["p"]))
    with pytest.raises(LiuliError, match="no column score"):
        write_trace(tmp_path, "ppo", 1, tokens(["a"]), {k: v for k, v in sequences(["p"]).items() if k != "score"})
    assert traced_steps(tmp_path) == {}
    for name in ("../evil", "", ".hidden", "a/b"):
        with pytest.raises(UsageError):
            write_trace(tmp_path, name, 1, tokens(["a"]), sequences(["p"]))


def test_a_damaged_file_is_told_with_what_to_do(tmp_path: Path) -> None:
    write_trace(tmp_path, "ppo", 1, tokens(["one", "two", "three"] * 50), sequences(["p"]))
    (file,) = tmp_path.rglob("*.tokens.parquet")
    good = file.read_bytes()
    flipped = good[:40] + bytes([good[40] ^ 1]) + good[41:]
    for bad in (b"", b"PAR1", good[:100], good[:-1], flipped):
        file.write_bytes(bad)
        with pytest.raises(DamagedError, match=r"tokens\.parquet is damaged(.|\n)*to do"):
            read_trace(tmp_path, "ppo", 1)
    pq.write_table(pa.table({"sequence": [1], "colour": ["red"]}), file)
    with pytest.raises(DamagedError, match=r"no column position.* and an unknown column colour"):
        read_trace(tmp_path, "ppo", 1)
    file.unlink()
    assert traced_steps(tmp_path) == {}
    with pytest.raises(LiuliError, match="not traced"):
        read_trace(tmp_path, "ppo", 1)


def test_a_step_is_listed_when_both_its_files_are_there(tmp_path: Path) -> None:
    assert traced_steps(tmp_path) == {}
    for step in (5, 123_456_789, 40):
        write_trace(tmp_path, "ppo", step, tokens(["a"]), sequences(["p"]))
    place = tmp_path / "traces" / "ppo"
    (place / "00000041.tokens.parquet").write_bytes(b"PAR1")  # what a killed writer left
    (place / ".tmp-1-x-00000042.sequences.parquet").write_bytes(b"")
    (place / "00000043.sequences.parquet").write_bytes(b"PAR1")
    (tmp_path / "traces" / ".tmp-grpo").mkdir()
    (tmp_path / "traces" / "empty").mkdir()
    assert traced_steps(tmp_path) == {"ppo": [5, 40, 123_456_789]}


def test_the_first_step_and_the_last_ones_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "KEEP", 7)
    for step in range(0, 70, 10):
        write_trace(tmp_path, "ppo", step, tokens(["a"]), sequences(["p"]))
        assert len(traced_steps(tmp_path)["ppo"]) == step // 10 + 1
    monkeypatch.setattr(trace, "KEEP", 4)
    for step in (70, 80):
        write_trace(tmp_path, "ppo", step, tokens(["a"]), sequences(["p"]))
    assert traced_steps(tmp_path) == {"ppo": [0, 60, 70, 80]}
    assert len([*tmp_path.rglob("*.parquet")]) == 8
    write_trace(tmp_path, "ppo", 70, tokens(["again"]), sequences(["p"]))  # a resumed run does a step again
    assert traced_steps(tmp_path) == {"ppo": [0, 60, 70, 80]}
    assert read_trace(tmp_path, "ppo", 70)["tokens"]["text"] == ["again"]


def test_traces_need_no_torch_of_their_own() -> None:
    code = """
import importlib.util, sys, types
sys.modules["liuli.train"] = types.ModuleType("liuli.train")  # the room's own door opens on training, which has torch
spec = importlib.util.spec_from_file_location("liuli.train.trace", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, trace.__file__], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("False", "")
