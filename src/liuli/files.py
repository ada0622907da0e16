"""The only writer: whole or not at all, checksummed, locked.

In: bytes, text, JSON values and folders that must survive kill -9, a full disk and a flipped bit. Out: files and
folders that are either as they were or as they should be. It knows nothing of what it writes.

A file is written under a temporary name beside its final one, synced, then renamed; a folder likewise, with a manifest
of sha256 sums. After a kill at any moment the old state or the new one is there, and `sweep` removes what was left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import math
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from liuli.errors import DamagedError, LiuliError, UsageError

MANIFEST = "manifest.json"
CHUNK = 1 << 20  # bytes a write; a crash test makes it small to die inside a file

_OLD = ".liuli-old-"  # begins the name of a folder that is being replaced
_MACHINE = f"{zlib.crc32(os.uname().nodename.encode()):08x}"  # others may share the disk; their processes are not seen
_PROCESS = _MACHINE + secrets.token_hex(4)  # tells our temporaries from those of an earlier process of the same number
_counter = itertools.count()
_held: dict[Path, int] = {}  # locks of this process: lock file -> descriptor

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space, then run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, then run the same command again"),
    errno.EROFS: ("this place is read-only", "choose a folder that can be written"),
    errno.EACCES: ("no permission to write here", "choose a folder that can be written"),
    errno.EPERM: ("no permission to write here", "choose a folder that can be written"),
    errno.EFBIG: ("the file would be larger than allowed here", "choose another disk, or raise the limit (ulimit -f)"),
    errno.EIO: ("the disk reported an error", "check the disk, then run the same command again"),
    errno.EMFILE: ("too many open files", "raise the limit (ulimit -n), then run the same command again"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter name"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another path"),
    errno.EISDIR: ("the path is a folder, not a file", "choose another path"),
    errno.EEXIST: ("the path is a file, not a folder", "choose another path"),
}


def _io(operation: str, path: Path) -> None:
    """Called before every operation that changes the disk; crash tests replace it to fail or die at the k-th one."""


@contextlib.contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors that a user can act on into a LiuliError; others pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        reason, fix = _REASONS[error.errno]
        raise LiuliError(f"Cannot write: {reason}", where=path, fix=fix) from error


def make_folder(path: Path) -> Path:
    """The folder, made if it is not there, parents and all."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # /proc and its like; elsewhere no such error means a fault of ours
        fix = "choose a folder that can be written"
        raise LiuliError("Cannot write: no folder can be made here", where=path.parent, fix=fix) from error
    return path


# --- one file --------------------------------------------------------------------------------------------------------


def write_file(path: str | Path, data: bytes | str | Iterable[bytes | memoryview], *, durable: bool = True) -> None:
    """Write a file so that, whatever happens, it holds its old content or all of the new one.

    data: the content, or its pieces in order. durable: also survive a power cut (False: rewritten each second anyway).
    """
    data = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    with new_file(path, durable) as temporary:
        _write_pieces(temporary, [data] if isinstance(data, bytes) else data)


@contextlib.contextmanager
def new_file(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Yield a name beside `path` for others to write a file under; when the block ends well it appears at `path`.

    durable: as in `write_file`; and what killed processes of this machine left beside it is removed first.
    """
    path = Path(path)
    with clear_errors(path):
        make_folder(path.parent)
        temporary = _temporary(path)
        try:
            if durable:
                _recover(path)
            yield temporary
            if durable:
                _sync(temporary)
            _rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        if durable:
            _sync(path.parent)


def write_json(path: str | Path, value: Any, *, durable: bool = True) -> None:
    """Write a value as indented JSON, readable by any JSON reader: NaN and infinity, which JSON lacks, become null."""
    write_file(path, _json(value, indent=2), durable=durable)


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the JSON object in a file; DamagedError if the file is missing or holds anything else."""
    path = Path(path)
    fix = "use a copy of this file, or make it again"
    if not path.is_file():
        raise DamagedError(f"{path.name} is missing", where=path, fix=fix)
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedError(f"{path.name} is not JSON: {error}", where=path, fix=fix) from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path.name} holds no JSON object", where=path, fix=fix)
    return value


def append_line(path: str | Path, value: dict[str, Any]) -> None:
    """Add one JSON line in one write; what a killed process left of its last line is cut off first."""
    path = Path(path)
    line = _json(value)
    with clear_errors(path):
        make_folder(path.parent)
        _io("open", path)
        with open(path, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                size = _end_last_line(file, path)
            _io("write", path)
            if (file.write(line) or 0) < len(line):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _end_last_line(file: FileIO, path: Path) -> int:
    """End a last line that lacks its line feed, or cut it off where it is torn; return the size of the file."""
    lines, tail = _split_lines(path)
    _io("truncate", path)
    if tail is None:
        file.truncate(sum(len(line) + 1 for line in lines))
    else:
        file.write(b"\n")
    return file.seek(0, os.SEEK_END)


def _split_lines(path: Path) -> tuple[list[bytes], bytes | None]:
    """Return the lines of a file and its last one if it lacks the line feed but is whole: part of {…} is never JSON."""
    *lines, tail = path.read_bytes().split(b"\n")
    try:
        json.loads(tail)
    except ValueError:
        return lines, None
    return lines, tail


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a JSON-lines file in order; [] if there is none. A torn last line (kill -9) is dropped."""
    path = Path(path)
    if not path.exists():
        return []
    lines, tail = _split_lines(path)
    values = []
    for number, line in enumerate(lines if tail is None else [*lines, tail], 1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            where = f"{path}, line {number}"
            raise DamagedError("This line is not JSON", where=where, fix="remove the line") from error
    return values


def _json(value: Any, indent: int | None = None) -> bytes:
    """One JSON value and a line feed; a lone surrogate, which UTF-8 cannot hold, becomes JSON's escape of it."""
    return (json.dumps(_plain(value), ensure_ascii=False, indent=indent) + "\n").encode("utf-8", "backslashreplace")


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch become Python's, a path text, NaN and infinity null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    number = value.item() if hasattr(value, "item") else value
    return None if isinstance(number, float) and not math.isfinite(number) else number


# --- one folder ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends well it gets a manifest and appears at `path` by one rename.

    What killed processes of this machine left beside it is removed first. Raises UsageError if `path` exists, unless
    `replace` is true and it is empty or a folder made here (it has a manifest): what a person keeps there is never
    replaced. If the block fails, nothing remains of it.
    """
    path = Path(path)
    with clear_errors(path):
        make_folder(path.parent)
        _recover(path)
        if path.exists() and not (replace and _may_go(path)):
            what = "This folder holds files that Liuli did not write" if replace else "This folder exists already"
            raise UsageError(what, where=path, fix="choose another name, or remove it first")
        stage = _temporary(path)
        try:
            _io("mkdir", stage)
            make_folder(stage)
            yield stage
            _write_pieces(stage / MANIFEST, [_manifest_text(_sums(stage))])
            for inside, _, names in os.walk(stage):
                for name in (*names, ""):
                    _sync(Path(inside, name))
            if path.exists():
                _rename(path, _old(path))
            _rename(stage, path)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            _recover(path)
            raise
        _sync(path.parent)
        remove(_old(path))


def _may_go(path: Path) -> bool:
    return path.is_dir() and ((path / MANIFEST).is_file() or not any(path.iterdir()))


def verify_folder(path: str | Path) -> dict[str, Any]:
    """Compare every file with the manifest and return it; DamagedError names the first file that differs."""
    path = Path(path)
    fix = "use a copy of this folder, or make it again"
    if not (path / MANIFEST).is_file():
        raise DamagedError(f"{MANIFEST} is missing", where=path, fix=fix)
    text = (path / MANIFEST).read_bytes()
    try:
        manifest: dict[str, Any] = json.loads(text)
        expected = {str(name): (str(entry["sha256"]), int(entry["bytes"])) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        expected = {}
    if text != _manifest_text(expected):
        raise DamagedError(f"{MANIFEST} is damaged", where=path / MANIFEST, fix=fix)
    for name, (digest, size) in expected.items():
        file = path / name
        if not file.is_file():
            raise DamagedError(f"{name} is missing", where=file, fix=fix)
        if file.stat().st_size != size:
            what = f"{name} is damaged: it has {file.stat().st_size} bytes, {size} were written"
            raise DamagedError(what, where=file, fix=fix)
        if _sha256(file) != digest:
            raise DamagedError(f"{name} is damaged: its content is not what was written", where=file, fix=fix)
    return manifest


def folder_hash(path: str | Path) -> str:
    """Return the sha256 over the manifest; where there is none (made elsewhere), over the one it would have."""
    manifest = Path(path) / MANIFEST
    text = manifest.read_bytes() if manifest.is_file() else _manifest_text(_sums(Path(path)))
    return hashlib.sha256(text).hexdigest()


def remove(path: str | Path) -> None:
    """Remove a file or folder; it is gone by one rename, so that a kill never leaves half a folder under its name."""
    path = Path(path)
    if not path.exists():
        return
    with clear_errors(path):
        temporary = _temporary(path)
        _rename(path, temporary)
        _remove_tree(temporary)


def sweep(folder: str | Path) -> None:
    """Remove what dead processes left in a folder and three below it; finish a replacement that was cut short."""
    with clear_errors(Path(folder)):
        for inside, folders, names in os.walk(folder):
            for name in (*folders, *names):
                if name.startswith(_OLD):
                    _recover(Path(inside, name.removeprefix(_OLD)))
                elif _is_leftover(name):
                    _remove_tree(Path(inside, name))
            deep = len(Path(inside).relative_to(folder).parts) >= 3
            folders[:] = [name for name in folders if not deep and not name.startswith(".")]


@contextlib.contextmanager
def lock(run_folder: str | Path) -> Iterator[None]:
    """Hold a run folder for this process; a second one gets a LiuliError with the first one's process number.

    The system frees the lock when the process dies, however it dies. The same process may take it again inside. What
    earlier processes left half done in the folder is swept.
    """
    path = (Path(run_folder) / ".lock").absolute()
    if path in _held:
        yield
        return
    with clear_errors(path):
        make_folder(path.parent)
        _io("open", path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        fix = f"wait for it, or stop it (kill {owner}), or use another folder"
        raise LiuliError(f"Process {owner} is at work on this folder", where=run_folder, fix=fix) from None
    _held[path] = descriptor
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        sweep(run_folder)  # nobody else writes here now
        yield
    finally:
        if _held.pop(path, None) is not None:  # a forked child has let go of it already
            os.close(descriptor)


def _release_in_child() -> None:
    """A forked worker must not keep its dead parent's lock alive."""
    while _held:
        os.close(_held.popitem()[1])


os.register_at_fork(after_in_child=_release_in_child)


# --- the operations below change the disk, each announced to `_io` ---------------------------------------------------


def _write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    _io("open", path)
    with open(path, "xb", buffering=0) as file:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            while len(view):
                _io("write", path)
                view = view[file.write(view[:CHUNK]) :]


def _rename(source: Path, target: Path) -> None:
    _io("rename", target)
    os.replace(source, target)


def _sync(path: Path) -> None:
    """Wait until the disk holds the file's bytes, or the folder's names."""
    _io("fsync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_tree(path: Path) -> None:
    for file in [*path.rglob("*")] if path.is_dir() else [path]:
        if not file.is_dir():
            _io("unlink", file)
            file.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _recover(path: Path) -> None:
    """Finish what a dead process left: put the old folder back if no new one came, remove leftovers beside `path`."""
    if _old(path).exists():
        if path.exists():
            _remove_tree(_old(path))
        else:
            _rename(_old(path), path)
    for leftover in path.parent.glob(f".tmp-*-{_MACHINE}*"):
        with contextlib.suppress(PermissionError, FileNotFoundError):  # another user's; swept by another at this moment
            if _is_leftover(leftover.name):
                _remove_tree(leftover)


# --- names and sums --------------------------------------------------------------------------------------------------


def _temporary(path: Path) -> Path:
    path = Path(os.path.abspath(path))
    return path.with_name(f".tmp-{os.getpid()}-{_PROCESS}-{next(_counter)}-{path.name[:50]}")


def _old(path: Path) -> Path:
    path = Path(os.path.abspath(path))
    return path.with_name(_OLD + path.name)


def _is_leftover(name: str) -> bool:
    """True if the maker of this temporary no longer runs, or was an earlier process with our own number."""
    parts = name.split("-", 4)
    if len(parts) < 5 or parts[0] != ".tmp" or not parts[1].isdecimal():
        return False
    if int(parts[1]) == os.getpid():
        return parts[2] != _PROCESS
    try:
        os.kill(int(parts[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _sums(folder: Path) -> dict[str, tuple[str, int]]:
    """Return {relative path: (sha256, bytes)} of every file that a manifest lists."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = {file.relative_to(folder).as_posix(): file for file in files if not file.name.startswith(".tmp-")}
    return {name: (_sha256(file), file.stat().st_size) for name, file in names.items() if name != MANIFEST}


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _manifest_text(sums: dict[str, tuple[str, int]]) -> bytes:
    """The one way to write a manifest; its own sum in it tells a damaged manifest from a damaged file."""
    files = {name: {"sha256": digest, "bytes": size} for name, (digest, size) in sorted(sums.items())}
    own = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    manifest = {"format": "liuli-manifest-1", "sha256": own, "files": files}
    return (json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode()
