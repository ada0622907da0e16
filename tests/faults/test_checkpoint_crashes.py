"""Checkpoints under every fault: dying at each I/O operation, a disk that refuses, flipped, cut and missing files.

Every write goes through files.py, which announces each operation to `files._io`: so "the k-th operation" is well
defined, and a forked child can be made to die right before it. Large files are written in small pieces here, so that
half-written ones are among the deaths.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from liuli import files
from liuli.errors import DamagedError, LiuliError
from liuli.train.checkpoint import load_checkpoint, save_checkpoint

State = dict[str, Any]
FINE, CLEAR_ERROR, DEAD = 0, 3, 9


def make_state(seed: int) -> State:
    """A small state with everything a training run keeps."""
    generator = torch.Generator().manual_seed(seed)
    weights = {"embed.weight": torch.randn(16, 8, generator=generator), "scale": torch.randn((), generator=generator)}
    moments = {0: {"step": torch.tensor(float(seed)), "exp_avg": torch.randn(16, 8, generator=generator).bfloat16()}}
    return {
        "model": weights,
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1 / 3, "betas": (0.9, 0.95), "params": [0]}]},
        "rng": {
            "torch": generator.get_state(),
            "numpy": np.random.default_rng(seed).bit_generator.state,
            "numpy_legacy": np.random.RandomState(seed).get_state(),
            "python": random.Random(seed).getstate(),
        },
        "position": 1234 * seed,
        "best": float("inf") if seed == 1 else -0.0,
        "text": "琉璃 \u2028",
        "masks": [torch.tensor([True, False]), None, torch.empty(0, 3)],
    }


def same(left: Any, right: Any) -> bool:
    """Equal in type and in every bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return repr(left) == repr(right)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save_checkpoint(tmp_path / "base", step, make_state(step))
    return tmp_path / "base"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 1500)


def in_child(work: Callable[[], object], on_io: Callable[[int, str], None]) -> int:
    """Fork, run work with `on_io(k, operation)` before its k-th operation, return the exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            count = iter(range(1 << 30))
            files._io = lambda operation, path: on_io(next(count), operation)
            work()
            status = FINE
        except LiuliError as error:
            status = CLEAR_ERROR if error.fix and "Cannot write" in error.what else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def copies(base: Path, work: Callable[[Path], object]) -> Iterator[tuple[int, Path]]:
    """A fresh copy of base for each I/O operation that the work does: (k, copy)."""
    operations: list[str] = []
    counted = base.with_name("counted")
    shutil.copytree(base, counted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_io", lambda operation, path: operations.append(operation))
        work(counted)
    assert {"mkdir", "open", "write", "fsync", "rename", "unlink"} <= set(operations)
    for k in range(len(operations)):
        folder = base.with_name(f"copy-{k}")
        shutil.copytree(base, folder)
        yield k, folder
        shutil.rmtree(folder)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def no_warning(message: str) -> None:
    raise AssertionError(message)


def test_a_state_comes_back_in_every_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 7, make_state(1))
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and loaded[0] == 7 and same(loaded[1], make_state(1))
    random.Random().setstate(loaded[1]["rng"]["python"])
    np.random.RandomState().set_state(loaded[1]["rng"]["numpy_legacy"])


def test_none_is_found_where_none_was_saved(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "nowhere") is None


def test_the_last_k_are_kept_and_later_ones_of_an_abandoned_future_go(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save_checkpoint(tmp_path, step, make_state(1), keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000020", "00000030", "00000040"]
    save_checkpoint(tmp_path, 25, make_state(1), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["00000025"]


@pytest.mark.parametrize("step", [3, 2], ids=["a new step", "the same step again"])
def test_dying_at_any_operation_of_a_save_leaves_the_old_state_or_the_new_one(base: Path, step: int) -> None:
    def save(folder: Path) -> None:
        save_checkpoint(folder, step, make_state(9), keep=2)

    seen = set()
    for k, folder in copies(base, save):

        def die(count: int, operation: str, k: int = k) -> None:
            if count == k:
                os._exit(DEAD)

        assert in_child(lambda folder=folder: save(folder), die) == DEAD
        loaded = load_checkpoint(folder, no_warning)
        assert loaded is not None
        is_new = same(loaded[1], make_state(9))
        assert is_new or (loaded[0] == 2 and same(loaded[1], make_state(2))), f"died before operation {k}"
        seen.add(is_new)
        assert not hidden(folder)
        save(folder)
        assert len(list(folder.iterdir())) == 2
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("code", "lasting"),
    [(errno.ENOSPC, False), (errno.ENOSPC, True), (errno.EROFS, True)],
    ids=["full once", "full from then on", "read-only from then on"],
)
def test_a_disk_that_refuses_any_operation_is_one_clear_error_and_loses_nothing(
    base: Path, code: int, lasting: bool
) -> None:
    def save(folder: Path) -> None:
        save_checkpoint(folder, 3, make_state(3), keep=2)

    for k, folder in copies(base, save):

        def refuse(count: int, operation: str, k: int = k) -> None:
            full = code == errno.ENOSPC and operation == "unlink"  # a full disk still lets go
            if not full and (count == k or (lasting and count > k)):
                raise OSError(code, os.strerror(code))

        assert in_child(lambda folder=folder: save(folder), refuse) in (CLEAR_ERROR, FINE)
        loaded = load_checkpoint(folder, no_warning)
        assert loaded is not None and same(loaded[1], make_state(loaded[0])) and loaded[0] in (2, 3)
        assert not hidden(folder)


def test_a_really_full_disk_is_one_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root; the injected full disk above covers every write")
    try:
        save_checkpoint(tmp_path / "run", 1, make_state(1))
        large = {**make_state(2), "more": torch.zeros(100_000)}
        with pytest.raises(LiuliError, match="the disk is full"):
            save_checkpoint(tmp_path / "run", 2, large)
        loaded = load_checkpoint(tmp_path / "run", no_warning)
        assert loaded is not None and loaded[0] == 1 and same(loaded[1], make_state(1))
        assert not hidden(tmp_path / "run")
        remount = ["mount", "-o", "remount,ro", str(tmp_path)]
        subprocess.run(remount, check=True, capture_output=True)
        with pytest.raises(LiuliError, match="read-only"):
            save_checkpoint(tmp_path / "run", 2, make_state(2))
        assert load_checkpoint(tmp_path / "run", no_warning) is not None
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def damages(folder: Path, seed: int = 0) -> Iterator[Path]:
    """Damage each file of a folder in many ways, one at a time: flipped bits, cut, longer, empty, missing."""
    draw = random.Random(seed)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        good = file.read_bytes()
        places = {0, len(good) - 1, *(draw.randrange(len(good)) for _ in range(40))}
        flipped = [good[:at] + bytes([good[at] ^ (1 << draw.randrange(8))]) + good[at + 1 :] for at in sorted(places)]
        for content in (*flipped, good[: len(good) // 2], good[:-1], good + b"\0", b""):
            file.write_bytes(content)
            yield file
        file.unlink()
        yield file
        file.write_bytes(good)


def test_any_damage_is_noticed_by_name_and_the_last_whole_checkpoint_is_used(base: Path) -> None:
    for file in damages(base / "00000002"):
        warnings: list[str] = []
        loaded = load_checkpoint(base, warnings.append)
        assert loaded is not None and loaded[0] == 1 and same(loaded[1], make_state(1))
        assert len(warnings) == 1 and file.name in warnings[0]
    assert same(load_checkpoint(base, no_warning), (2, make_state(2)))


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_reached_again(base: Path) -> None:
    for name in ("manifest.json", "state.json"):
        (base / "00000002" / name).unlink()
        save_checkpoint(base, 2, make_state(2))
        assert same(load_checkpoint(base, no_warning), (2, make_state(2)))


def test_no_whole_checkpoint_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, make_state(1))
    (tmp_path / "00000001" / "state.json").unlink()
    with pytest.raises(DamagedError, match="None of the 1"):
        load_checkpoint(tmp_path, lambda message: None)


def test_a_renamed_checkpoint_is_noticed(base: Path) -> None:
    (base / "00000002").rename(base / "00000005")
    warnings: list[str] = []
    loaded = load_checkpoint(base, warnings.append)
    assert loaded is not None and loaded[0] == 1 and "step 2" in warnings[0]


def test_a_name_appears_only_after_its_bytes_are_on_disk(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may drop what was not synced: no rename before the fsync of all that was written."""
    unsynced: set[Path] = set()

    def watch(operation: str, path: Path) -> None:
        if operation in ("write", "mkdir"):
            unsynced.add(path)
        elif operation == "fsync":
            unsynced.discard(path)
        elif operation == "rename":
            assert not unsynced - {path.parent, *(p for p in unsynced if p.is_dir() and path.parent == p)}, unsynced

    monkeypatch.setattr(files, "_io", watch)
    save_checkpoint(base, 3, make_state(3))
