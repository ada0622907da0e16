"""files.py: what is written is there whole, what was changed is noticed, who holds a folder is known."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liuli import files
from liuli.errors import DamagedError, LiuliError, UsageError


def in_child(work: Callable[[], object]) -> int:
    """Run work in a forked process; return its exit status, negative when a signal ended it. LiuliError: 3."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except LiuliError:
            status = 3
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    files.write_file(tmp_path / "deep" / "note.txt", "琉璃")
    files.write_file(tmp_path / "deep" / "note.txt", iter([b"glass", memoryview(b" house")]))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["note.txt"]
    assert (tmp_path / "deep" / "note.txt").read_bytes() == b"glass house"


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    def pieces():  # type: ignore[no-untyped-def]
        yield b"half"
        raise KeyboardInterrupt

    files.write_file(tmp_path / "a", b"old")
    with pytest.raises(KeyboardInterrupt):
        files.write_file(tmp_path / "a", pieces())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
@given(value=st.dictionaries(st.text(), json_values))
def test_any_value_becomes_strict_json(value: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("json") / "value.json"
    files.write_json(path, value, durable=False)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(path.read_bytes(), parse_constant=refuse)
    assert read == json.loads(json.dumps(value), parse_constant=lambda _: None)


def test_a_torn_last_line_is_dropped_and_cut_off_by_the_next(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert files.read_lines(log) == []
    files.append_line(log, {"step": 1})
    with open(log, "ab") as torn:
        torn.write('{"text": "琉'.encode()[:-1])
    assert files.read_lines(log) == [{"step": 1}]
    files.append_line(log, {"step": 2})
    assert files.read_lines(log) == [{"step": 1}, {"step": 2}]
    log.write_bytes(log.read_bytes()[:-1])  # only the line feed is lost: nothing is
    assert files.read_lines(log) == [{"step": 1}, {"step": 2}]
    files.append_line(log, {"step": 3})
    assert files.read_lines(log) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_damaged_line_before_the_last_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"a": 1}\n{"a" 2}\n{"a": 3}\n')
    with pytest.raises(DamagedError, match=r"log\.jsonl, line 2"):
        files.read_lines(tmp_path / "log.jsonl")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "model") as stage:
        (stage / "half").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with files.new_folder(tmp_path / "model") as stage:
        assert not (tmp_path / "model").exists()
        (stage / "sub").mkdir()
        (stage / "sub" / "a").write_text("one")
    assert sorted(files.verify_folder(tmp_path / "model")["files"]) == ["sub/a"]


def test_an_existing_folder_is_replaced_only_on_request_and_survives_a_failure(tmp_path: Path) -> None:
    with files.new_folder(tmp_path / "model") as stage:
        (stage / "a").write_text("one")
    before = files.folder_hash(tmp_path / "model")
    with pytest.raises(UsageError, match="exists already"), files.new_folder(tmp_path / "model"):
        pass
    with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "model", replace=True):
        raise ZeroDivisionError
    assert files.folder_hash(tmp_path / "model") == before
    with files.new_folder(tmp_path / "model", replace=True) as stage:
        (stage / "b").write_text("two")
    assert files.folder_hash(tmp_path / "model") != before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_person_keeps_in_a_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "note").write_text("a file")
    for name in ("thesis", "note"):
        with pytest.raises(UsageError, match="did not write"), files.new_folder(tmp_path / name, replace=True):
            pass
    with files.new_folder(tmp_path / "empty", replace=True):
        pass
    assert (tmp_path / "thesis" / "chapter1.tex").exists() and (tmp_path / "empty" / "manifest.json").exists()


def test_every_flipped_byte_of_a_folder_is_noticed_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with files.new_folder(folder) as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "weights").write_bytes(bytes(range(256)))
        (stage / "config.json").write_text('{"layers": 4}')
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        good = file.read_bytes()
        for position in range(len(good)):
            file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
            with pytest.raises(DamagedError) as caught:
                files.verify_folder(folder)
            assert file.name in caught.value.what
        for wrong in (good[:-1], good + b"\n", b""):
            file.write_bytes(wrong)
            with pytest.raises(DamagedError, match=file.name):
                files.verify_folder(folder)
        file.unlink()
        with pytest.raises(DamagedError, match=f"{file.name} is missing"):
            files.verify_folder(folder)
        file.write_bytes(good)
    files.verify_folder(folder)


def test_sweep_removes_what_the_dead_left_and_spares_the_living(tmp_path: Path) -> None:
    def die_while_writing() -> None:
        with files.new_folder(tmp_path / "runs" / "model") as stage:
            (stage / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)

    with files.new_folder(tmp_path / "runs" / "other") as stage:
        assert in_child(die_while_writing) == -signal.SIGKILL
        assert len(list((tmp_path / "runs").iterdir())) == 2
        files.sweep(tmp_path)
        assert list((tmp_path / "runs").iterdir()) == [stage]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_a_new_folder_sweeps_what_a_killed_one_of_another_name_left(tmp_path: Path) -> None:
    def die_while_writing() -> None:
        with files.new_folder(tmp_path / "first") as stage:
            (stage / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die_while_writing) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    elsewhere = tmp_path / left.name.replace(files._MACHINE, "0" * 8)  # on a shared disk its process may well run
    elsewhere.mkdir()
    with files.new_folder(tmp_path / "second"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"second", elsewhere.name}


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    def take() -> None:
        with files.lock(tmp_path):
            pass

    with files.lock(tmp_path):
        take()  # the process that holds it may enter again
        assert in_child(take) == 3
        message = tmp_path / "message"

        def refused() -> None:
            with pytest.raises(LiuliError) as caught:
                take()
            message.write_text(str(caught.value))

        assert in_child(refused) == 0
        assert str(os.getpid()) in message.read_text()
    assert in_child(take) == 0


def test_a_killed_process_frees_its_lock_even_if_its_workers_live_on(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    ready_end, tell_end = os.pipe()

    def hold_and_die() -> None:
        with files.lock(tmp_path):
            if os.fork() == 0:
                os.close(write_end)
                os.write(tell_end, b"!")
                os.read(read_end, 1)  # the orphan waits until the test is over
                os._exit(0)
            os.read(ready_end, 1)
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(hold_and_die) == -signal.SIGKILL
    with files.lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    for end in (read_end, write_end, ready_end, tell_end):
        os.close(end)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO, errno.EMFILE])
def test_a_disk_that_refuses_is_one_clear_message(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_file(tmp_path / "a", b"old")
    files.write_file(tmp_path / "log", b"{}\n")

    def refuse(operation: str, path: Path) -> None:
        if operation == "write":
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "_io", refuse)
    message = "Cannot write: .*\n.*where: .*\n.*to do: "
    with pytest.raises(LiuliError, match=message):
        files.write_file(tmp_path / "a", b"new")
    with pytest.raises(LiuliError, match=message):
        files.append_line(tmp_path / "log", {})
    with pytest.raises(LiuliError, match=message), files.new_folder(tmp_path / "b"):
        pass
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "log": b"{}\n"}


def test_a_path_through_a_file_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    for write in (lambda p: files.write_file(p, b""), lambda p: files.append_line(p, {})):
        with pytest.raises(LiuliError, match="Cannot write"):
            write(tmp_path / "a" / "b")
    with pytest.raises(LiuliError, match="Cannot write"), files.new_folder(tmp_path / "a" / "b"):
        pass
    with pytest.raises(LiuliError, match="Cannot write"), files.lock(tmp_path / "a"):
        pass


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc here")
def test_a_place_where_no_folder_can_be_made_is_one_clear_message() -> None:
    for place in (Path("/proc/liuli"), Path("/proc/liuli/deep")):
        with pytest.raises(LiuliError, match="no folder can be made"), files.new_folder(place):
            pass
    with pytest.raises(LiuliError, match="no folder can be made"):
        files.write_file("/proc/liuli/deep", b"")
