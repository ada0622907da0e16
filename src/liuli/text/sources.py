"""Files and datasets to documents: .txt .md .jsonl .parquet, each plain, .gz or .zst, from a folder, a file or the Hub.

In: paths, or names of Hub datasets, with weights. Out: documents in a fixed order. A file that is not what it claims
to be is an error that names the file and the row; with skip_bad it is counted and left out.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import zstandard

from liuli.errors import LiuliError, UsageError

Language = Literal["en", "zh", "other"]
T = TypeVar("T")
KINDS = (".txt", ".md", ".jsonl", ".parquet")
WITH_FIELDS = (".jsonl", ".parquet")
PACKED = ("", ".gz", ".zst")
BLOCK = 1 << 20  # bytes read at a time; a plain text of more characters becomes several documents of about so many


@dataclass(frozen=True, slots=True)
class Document:
    """One text. id: file and row. source: the source it came from, as the user wrote it."""

    text: str
    id: str = ""
    source: str = ""
    language: Language = "other"


@dataclass(frozen=True, slots=True)
class Source:
    """Where text comes from. weight: how often its documents are read; 2.0 twice, 0.5 the first, third, fifth…"""

    path: str | Path
    weight: float = 1.0

    @classmethod
    def of(cls, value: Source | str | Path) -> Source:
        """A source as a user writes it: a path, a Hub dataset's name, or either with its weight, "folder=0.5"."""
        if isinstance(value, Source):
            return value
        name, equals, weight = str(value).rpartition("=")
        if not equals or os.path.exists(value):
            return cls(value)
        try:
            return cls(name, float(weight))
        except ValueError:
            return cls(value)


@dataclass(slots=True)
class ReadReport:
    """What `read_documents` met so far; the first few bad rows are kept with their reasons."""

    files: int = 0
    documents: int = 0
    bytes: int = 0
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)

    def note(self, error: LiuliError) -> None:
        """Keep a reason, if it is one of the first."""
        if len(self.reasons) < 10:
            self.reasons.append(shown(f"{error.where}: {error.what}"))

    def skip(self, error: LiuliError) -> None:
        """Count a row that is left out, and why."""
        self.skipped += 1
        self.note(error)

    def told(self) -> str:
        """What was left out, for a person."""
        return "\n  ".join((f"{self.skipped:,} bad rows were skipped, the first of them:", *self.reasons))


Row = tuple[int, str | LiuliError]
"""A row's number from 1, and its text or what is wrong with it."""


def read_documents(
    sources: Sequence[Source | str | Path],
    field: str = "text",
    skip_bad: bool = False,
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """Read all documents of all sources in order.

    sources: files, folders (read through, in the order of names), or Hub datasets ("owner/name", or
    "owner/name/folder" for a part of one). field: the key or column that holds the text. report: filled as it goes.
    Raises LiuliError for a bad row unless skip_bad, and for sources without a single document.
    """
    report = report if report is not None else ReadReport()
    found = find_sources(sources)
    if field != "text" and found and not any(file_kind(file) in WITH_FIELDS for _, files in found for file in files):
        raise UsageError("no file here has fields", f"--field {field}", "leave it out: it is for .jsonl and .parquet")

    def documents(file: Path, source: Source) -> Iterator[Document | LiuliError]:
        for number, text in _rows(file, field):
            if isinstance(text, LiuliError):
                yield text
            elif text.strip():
                yield Document(text, shown(f"{file}:{number}"), shown(source.path), guess_language(text))

    for document in read_sources(found, documents, skip_bad, report):
        report.bytes += len(document.text.encode())
        yield document
    if not report.documents:
        where = ", ".join(str(source.path) for source, _ in found) or None
        bad = f" ({report.skipped} bad rows were skipped)" if report.skipped else ""
        raise LiuliError(f"the corpus is empty: no document found{bad}", where, "give a source that holds text")


def find_sources(
    sources: Iterable[Source | str | Path], kinds: tuple[str, ...] = KINDS
) -> list[tuple[Source, list[Path]]]:
    """Every source and its files, all found before the first is read. Raises UsageError for a weight that cannot be
    meant."""
    known = [Source.of(source) for source in sources]
    for source in known:
        if not 0 < source.weight < 1000:
            fix = "weights are above 0 and under 1000"
            raise UsageError(f"a weight of {source.weight} cannot be meant", source.path, fix)
    return [(source, find_files(source.path, kinds)) for source in known]


def read_sources(
    found: Iterable[tuple[Source, list[Path]]],
    read: Callable[[Path, Source], Iterator[T | LiuliError]],
    skip_bad: bool,
    report: ReadReport,
) -> Iterator[T]:
    """What `read` makes of all files, in order and as often as their sources weigh; what is wrong is raised, or with
    skip_bad counted."""

    def good(source: Source, files: list[Path]) -> Iterator[T]:
        for file in files:
            report.files += 1
            for item in read(file, source):
                if not isinstance(item, LiuliError):
                    yield item
                elif skip_bad:
                    report.skip(item)
                else:
                    raise item

    for source, files in found:
        for item in weighted(good(source, files), source.weight):
            report.documents += 1
            yield item


def weighted(items: Iterable[T], weight: float) -> Iterator[T]:
    """Each item as often as the weight says: 2.0 twice, 0.5 the first, third, fifth…"""
    due = max(1 - weight, 0.0)
    for item in items:
        due += weight
        yield from [item] * int(due + 1e-9)
        due -= int(due + 1e-9)


def in_row(error: LiuliError, file: Path, number: int) -> LiuliError:
    """What is wrong with a field, as what is wrong with the row of a file."""
    field = f", field {error.where}" if error.where else ""
    return LiuliError(error.what, f"{file}, row {number}{field}", error.fix or "repair it, or pass --skip-bad")


def shown(name: str | Path) -> str:
    """A path as text that can be written and printed anywhere: bytes of it that are no UTF-8 as escapes ("\\udcff")."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def guess_language(text: str) -> Language:
    """The language by its script, from the first 2,000 characters: "zh" Han, "en" Latin, "other" anything else.

    A Han character carries about as much as a word, so it counts threefold; with kana the text is Japanese.
    """
    sample = text[:2000]
    han = len(_HAN.findall(sample))
    latin = len(_LATIN.findall(sample))
    letters = sum(map(str.isalpha, sample))
    if not letters or (han and len(_KANA.findall(sample)) * 10 > han):
        return "other"
    if 3 * han >= latin and 2 * han >= letters - latin:
        return "zh"
    return "en" if 2 * latin >= letters else "other"


_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile("[\u3040-\u30ff]")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")


# --- finding files ---------------------------------------------------------------------------------------------------


def find_files(path: str | Path, kinds: tuple[str, ...] = KINDS) -> list[Path]:
    """The files of a source in the order of their names; hidden ones are passed over. Raises LiuliError if none.

    A Hub dataset's README.md describes it and is none of its text.
    """
    path, name = Path(path), str(path)
    hub = name.startswith("hub:")
    if not hub and not _exists(path):
        if not re.fullmatch(r"[\w.-]+/[\w./-]+", name) or file_kind(path, kinds):
            raise UsageError("no such file or folder", name, "check the path")
        hub = True
    if hub:
        path = _download(name.removeprefix("hub:"), kinds)
    if path.is_file():
        if not file_kind(path, kinds):
            raise UsageError(f"cannot read a {path.suffix or 'nameless'} file", path, f"known: {_known(kinds)}")
        return [path]
    files = [file for file in sorted(_walk(path)) if file_kind(file, kinds) and _exists(file) and file.is_file()]
    files = [file for file in files if not (hub and file.name == "README.md")]
    if not files:
        raise LiuliError("the corpus is empty: no file here can be read", name, f"known: {_known(kinds)}")
    return files


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(error) from error
    return True


def _walk(folder: Path) -> Iterator[Path]:
    """What lies below a folder and where links in it lead, once each, without what is hidden.

    Raises UsageError for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise _unreadable(error) from error

    seen = set[str]()
    for inside, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(inside)) in seen:  # a link back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(inside, name) for name in names if not name.startswith("."))


def _unreadable(error: OSError) -> UsageError:
    return UsageError(f"cannot be read: {error.strerror}", error.filename, "check the name and its permissions")


def file_kind(path: Path, kinds: tuple[str, ...] = KINDS) -> str | None:
    """The ending without compression, ".jsonl" for "a.jsonl.gz"; None for a kind that cannot be read."""
    name = path.name.lower()
    found = [kind for kind in kinds for packed in PACKED if name.endswith(kind + packed)]
    return found[0] if found else None


def _known(kinds: tuple[str, ...]) -> str:
    return " ".join(kinds) + ", each also .gz or .zst"


def _download(name: str, kinds: tuple[str, ...]) -> Path:
    """Fetch a Hub dataset's readable files into the Hub's own cache; only what is not there yet is transferred."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    owner, _, rest = name.partition("/")
    repo, _, folder = rest.partition("/")
    inside = f"{folder.strip('/')}/" if folder.strip("/") else ""
    patterns = [f"{inside}*{kind}{packed}" for kind in kinds for packed in PACKED]
    try:
        endpoint = os.environ.get("HF_ENDPOINT")  # a mirror, or a server of one's own
        root = snapshot_download(
            f"{owner}/{repo}",
            repo_type="dataset",
            allow_patterns=patterns,
            ignore_patterns=["README.md", "*/README.md"],
            endpoint=endpoint,
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        what = f"neither a file or folder here nor a dataset that the Hub would give: {reason}"
        raise LiuliError(what, name, "check the name, and the network") from error
    return Path(root) / inside


# --- reading one file ------------------------------------------------------------------------------------------------


def _rows(file: Path, field: str) -> Iterator[Row]:
    kind = file_kind(file)
    if kind not in WITH_FIELDS:
        yield from _read_plain(file)
        return
    for number, value in read_json_lines(file) if kind == ".jsonl" else read_parquet(file, field):
        if isinstance(value, LiuliError):
            yield number, value
        elif isinstance(text := value.get(field), str):
            yield number, whole_or_error(text, file, number)
        else:
            yield number, _missing(field, value, file, number)


def _read_plain(file: Path) -> Iterator[Row]:
    """A plain text as one document, or, above 1 MiB, as several that end at an empty line (or at any, above 2 MiB)."""
    held: list[str] = []
    size = first = 0
    for number, line in read_lines(file):
        if isinstance(line, LiuliError):
            yield number, line
            continue
        first = first or number
        held.append(line)
        size += len(line) + 1
        if size >= BLOCK and (not line.strip() or size >= 2 * BLOCK):
            yield first, "\n".join(held)
            held, size, first = [], 0, 0
    yield first, "\n".join(held)


def _missing(field: str, row: dict[str, Any], file: Path, number: int) -> LiuliError:
    keys = ", ".join(list(row)[:8])
    what = f"the row's {field!r} is no text" if field in row else f"the row has no {field!r}; it has: {keys}"
    return LiuliError(what, f"{file}, row {number}", "name the field with --field, or pass --skip-bad")


def whole_or_error(text: str, file: Path, number: int) -> str | LiuliError:
    """The text, unless it holds half a surrogate pair, which JSON can spell but no text can."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return LiuliError("the text holds half a surrogate pair", f"{file}, row {number}", "repair it, or --skip-bad")


def read_json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any] | LiuliError]]:
    """(row number, object or what is wrong with it) of every line that is not blank."""
    for number, line in read_lines(file):
        if isinstance(line, LiuliError):
            yield number, line
        elif line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, LiuliError(f"the row is not JSON: {error}", f"{file}, row {number}", _FIX)
                continue
            good = isinstance(value, dict)
            yield number, value if good else LiuliError("the row is no JSON object", f"{file}, row {number}", _FIX)


_FIX = "repair it, or pass --skip-bad"


def read_parquet(file: Path, column: str | None = None) -> Iterator[tuple[int, dict[str, Any] | LiuliError]]:
    """(row number, row or what is wrong with it), of a file that may have been packed again as a whole. column: where
    there is such a one, it alone is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        plain = file.name.lower().endswith(".parquet")
        table = pq.ParquetFile(file if plain else io.BytesIO(b"".join(read_bytes(file))))
        names = table.schema_arrow.names
        names = [name for name in names if name == column] or names
        for batch in table.iter_batches(batch_size=256, columns=names, use_threads=False):
            columns = {name: batch.column(name) for name in names}
            for place in range(batch.num_rows):
                number += 1
                try:
                    yield number, {name: values[place].as_py() for name, values in columns.items()}
                except UnicodeDecodeError as error:
                    yield number, _not_utf8(error, file, number)
    except (pa.ArrowException, OSError, ValueError, OverflowError, LookupError, *BROKEN) as error:
        yield number + 1, _broken(error, file, number)


def read_lines(file: Path) -> Iterator[tuple[int, str | LiuliError]]:
    """(line number from 1, text or what is wrong with it); a mark at the file's beginning and line ends are dropped."""
    number = 0
    try:
        for line in _split_lines(read_bytes(file)):
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                yield number, _not_utf8(error, file, number)
    except (OSError, *BROKEN) as error:
        yield number + 1, _broken(error, file, number)


BROKEN = (EOFError, zlib.error, zstandard.ZstdError)


def _not_utf8(error: UnicodeDecodeError, file: Path, number: int) -> LiuliError:
    found = error.object[error.start] if isinstance(error.object, bytes) else 0
    what = f"invalid UTF-8: byte 0x{found:02x} at place {error.start + 1} of the row"
    return LiuliError(what, f"{file}, row {number}", "convert the file to UTF-8, or pass --skip-bad")


def _broken(error: Exception, file: Path, number: int) -> LiuliError:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    what = f"the file cannot be read past row {number}: {reason}"
    return LiuliError(what, f"{file}, row {number + 1}", "get the file again, or pass --skip-bad")


def _split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends (LF or CR LF) of a stream of blocks."""
    held: list[bytes] = []
    for block in blocks:
        *lines, rest = block.split(b"\n")
        for line in lines:
            held.append(line)
            yield b"".join(held).removesuffix(b"\r")
            held.clear()
        held.append(rest)
    if last := b"".join(held):
        yield last.removesuffix(b"\r")


def read_bytes(file: Path) -> Iterator[bytes]:
    """The decompressed content in blocks. Raises OSError, EOFError, zlib.error or ZstdError for a broken file."""
    if file.suffix.lower() == ".zst":
        yield from _read_zst(file)
        return
    opener: Callable[..., Any] = gzip.open if file.suffix.lower() == ".gz" else open
    with opener(file, "rb") as stream:
        while block := stream.read1(BLOCK):  # of a file that was cut short all that is there; read() gives none of it
            yield block


def _read_zst(file: Path) -> Iterator[bytes]:
    """Every frame of the file; unlike the library's stream reader it notices a file that ends too soon."""
    with file.open("rb") as stream:
        frame = None
        while packed := stream.read(BLOCK):
            while packed:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if block := frame.decompress(packed):
                    yield block
                packed = frame.unused_data
                if frame.eof:
                    frame = None
        if frame is not None:
            raise EOFError("the file ended in the middle of a zstd frame")
