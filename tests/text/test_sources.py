"""Promises of reading: every kind of file, plain and packed; what is wrong is named by file and row, or counted."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from liuli.errors import LiuliError, UsageError
from liuli.material import source_bytes
from liuli.text import ReadReport, Source, read_documents
from liuli.text.sources import BLOCK, _split_lines, guess_language

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": lambda content: zstandard.compress(content[:5]) + zstandard.compress(content[5:]),  # two frames
}


def texts(*sources: Source | str | Path, **options: object) -> list[str]:
    return [document.text for document in read_documents(sources, **options)]  # type: ignore[arg-type]


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(column: str, values: list[str | None]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"number": list(range(len(values))), column: values}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("packed", PACK)
def test_every_kind_of_file_is_read_plain_and_packed(tmp_path: Path, packed: str) -> None:
    contents = {
        "a.txt": "第一\r\nline two".encode(),
        "b.md": b"\xef\xbb\xbf# Title\n",
        "c.jsonl": jsonl({"text": "one"}, {"text": "two \u2028 lines"}) + b"\n",
        "d.parquet": parquet("text", ["three", "four"]),
        "e.csv": b"not read",
        ".hidden.txt": b"not read",
    }
    (tmp_path / "sub").mkdir()
    for name, content in contents.items():
        (tmp_path / "sub" / f"{name}{packed}").write_bytes(PACK[packed](content))
    documents = list(read_documents([tmp_path]))
    assert [d.text for d in documents] == ["第一\nline two", "# Title", "one", "two \u2028 lines", "three", "four"]
    assert documents[3].id == f"{tmp_path}/sub/c.jsonl{packed}:2" and documents[3].source == str(tmp_path)
    assert texts(tmp_path / "sub" / f"c.jsonl{packed}") == ["one", "two \u2028 lines"]


BAD = {
    "utf8.txt": (b"good\n\xff\xfe bad\n", "invalid UTF-8: byte 0xff", "row 2"),
    "utf8.jsonl": (jsonl({"text": "a"}) + b'{"text": "\xe4\xb8"}\n', "invalid UTF-8", "row 2"),
    "field.jsonl": (jsonl({"text": "a"}, {"body": "b"}), "the row has no 'text'; it has: body", "row 2"),
    "number.jsonl": (jsonl({"text": 3}), "'text' is no text", "row 1"),
    "json.jsonl": (b'{"text": "a"}\n{"text": \n', "not JSON", "row 2"),
    "list.jsonl": (b"[1]\n", "no JSON object", "row 1"),
    "half.jsonl": (b'{"text": "\\ud800"}\n', "surrogate", "row 1"),
    "cut.txt.gz": (gzip.compress(b"line\n" * 9999)[:-20], "cannot be read past row", "row"),
    "flip.jsonl.gz": (gzip.compress(jsonl({"text": "a"}))[:12] + b"\0\0\0\0\0", "cannot be read past", "row 1"),
    "none.txt.gz": (b"no gzip", "cannot be read past row 0", "row 1"),
    "cut.jsonl.zst": (zstandard.compress(jsonl({"text": "a"}) * 99)[:-5], "cannot be read past", "row"),
    "none.txt.zst": (b"no zstd", "cannot be read past row 0", "row 1"),
    "none.parquet": (b"no parquet", "cannot be read past row 0", "row 1"),
    "column.parquet": (parquet("body", ["a"]), "no 'text'; it has: number, body", "row 1"),
    "null.parquet": (parquet("text", ["a", None]), "is no text", "row 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_an_error_with_file_and_row_or_is_counted(tmp_path: Path, name: str) -> None:
    content, what, where = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LiuliError) as caught:
        texts(tmp_path)
    assert what in caught.value.what
    assert str(tmp_path / name) in str(caught.value.where) and where in str(caught.value.where)
    (tmp_path / "z.txt").write_text("good")
    report = ReadReport()
    assert texts(tmp_path, skip_bad=True, report=report)[-1] == "good"
    assert report.skipped == 1 and what in report.reasons[0]
    assert report.documents == len(texts(tmp_path, skip_bad=True)) and report.files == 2


def test_the_field_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl({"body": "one"}))
    (tmp_path / "b.parquet").write_bytes(parquet("body", ["two"]))
    (tmp_path / "c.txt").write_text("three")
    assert texts(tmp_path, field="body") == ["one", "two", "three"]
    with pytest.raises(UsageError, match="no file here has fields"):
        texts(tmp_path / "c.txt", field="body")


def test_sources_have_weights(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(*({"text": f"{name}{n}"} for n in range(4))))
    read = texts(Source(tmp_path / "a.jsonl", 0.5), f"{tmp_path}/b.jsonl=1.5")
    assert read == ["a0", "a2", "b0", "b1", "b1", "b2", "b3", "b3"]
    for weight in (0.0, -1.0, 1e300, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="above 0 and under 1000"):
            texts(tmp_path / "a.jsonl", Source(tmp_path / "b.jsonl", weight))


def test_the_first_document_of_a_source_is_always_read(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one")
    assert texts(f"{tmp_path}/one.txt=0.5") == texts(f"{tmp_path}/one.txt=0.001") == ["one"]


def test_folders_that_links_lead_to_are_read_once_and_a_link_back_ends(tmp_path: Path) -> None:
    for folder in ("books", "corpus"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(folder)
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "books")
    (tmp_path / "books" / "back").symlink_to(tmp_path / "corpus")
    assert texts(tmp_path / "corpus") == ["corpus", "books"]


def test_an_empty_corpus_and_a_wrong_path_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(LiuliError, match="empty"):
        texts(tmp_path)
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(LiuliError, match="empty"):
        texts(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        texts(tmp_path / "nowhere")
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(UsageError, match=r"cannot read a \.pdf"):
        texts(tmp_path / "a.pdf")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Not to be root, whom permissions do not stop, in a folder from which relative paths lead on."""
    monkeypatch.chdir(tmp_path)
    me = os.geteuid()
    if me == 0:
        os.chown(tmp_path, 65534, 65534)
        os.seteuid(65534)
    yield
    os.seteuid(me)


@pytest.mark.parametrize("locked", ["folder", "folder/sub"])
def test_a_folder_that_may_not_be_read_is_named_never_passed_over(nobody: None, locked: str) -> None:
    Path("folder/sub").mkdir(parents=True)
    for name in ("folder/a.txt", "folder/sub/b.txt"):
        Path(name).write_text("text")
    for mode in (0o000, 0o400):
        Path(locked).chmod(mode)
        try:
            for source in ("folder", "folder/sub/b.txt"):
                with pytest.raises(LiuliError, match=rf"(?s)Permission denied.*where: .*{locked}"):
                    texts(source)
        finally:
            Path(locked).chmod(0o700)
    assert texts("folder") == ["text", "text"]


def test_a_name_that_no_disk_can_hold_is_named() -> None:
    for name in ("n" * 300, "n" * 300 + "=0.5"):
        with pytest.raises(UsageError, match=r"(?s)too long.*nnnn"):
            texts(name)


def test_a_file_whose_name_is_no_utf8_has_an_id_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "s_\udcff.txt").write_text("text")
    (document,) = read_documents([tmp_path / "s_\udcff.txt"])
    assert document.id.encode().endswith(rb"s_\udcff.txt:1") and document.source.encode().endswith(rb"s_\udcff.txt")


def test_a_big_text_file_is_read_in_pieces_at_empty_lines(tmp_path: Path) -> None:
    paragraphs = [f"{n} " + "word " * 2000 for n in range(300)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    read = texts(tmp_path)
    assert [len(text) // BLOCK for text in read] == [1, 1, 0]
    assert [p.strip() for text in read for p in text.split("\n\n") if p.strip()] == [p.strip() for p in paragraphs]


@given(content=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=5))
@settings(max_examples=200, deadline=None)
def test_lines_do_not_depend_on_how_a_file_is_read(content: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(content)]
    blocks = [content[a:b] for a, b in pairwise(places)]
    expected = [line.removesuffix(b"\r") for line in content.split(b"\n")]
    expected = expected[:-1] if content.split(b"\n")[-1] == b"" else expected
    assert list(_split_lines(blocks)) == expected


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat sat on the mat.", "en"),
        ("Où est la bibliothèque ?", "en"),  # by script: Latin
        ("今天天气很好。", "zh"),
        ("用 Python 写一个 hello world 程序，然后运行它看看结果。", "zh"),
        ("The word 琉璃 means coloured glaze in Chinese.", "en"),
        ("今日は天気がいいですね。", "other"),
        ("Сегодня хорошая погода", "other"),
        ("오늘은 날씨가 좋네요", "other"),
        ("12 + 34 = 46", "other"),
        ("", "other"),
    ],
)
def test_language_is_told_by_script(text: str, language: str) -> None:
    assert guess_language(text) == language


# --- the Hub ---------------------------------------------------------------------------------------------------------

FILES = {
    "README.md": b"about these texts",
    "zh/README.md": b"about a part of them",
    "data/train.jsonl": jsonl({"text": "from the hub"}),
    "zh/train.jsonl": jsonl({"text": "中"}),
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The two questions that huggingface_hub asks: which files are there, and each file."""

    def do_GET(self) -> None:
        name = self.path.split("?")[0]
        if name.startswith("/api/datasets/someone/texts/"):
            tree = [{"type": "file", "path": n, "size": len(c), "oid": COMMIT, "lfs": None} for n, c in FILES.items()]
            info = {"id": "someone/texts", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            self.answer(json.dumps(tree if "/tree/" in name else info).encode())
        elif (file := name.rpartition(f"/resolve/{COMMIT}/")[2]) in FILES:
            self.answer(FILES[file])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

    do_HEAD = do_GET

    def answer(self, content: bytes) -> None:
        self.send_response(200)
        for key, value in {
            "ETag": f'"{len(content)}"',
            "X-Repo-Commit": COMMIT,
            "Content-Length": str(len(content)),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", url)
    yield
    server.shutdown()


def test_a_hub_dataset_is_read_by_its_name_without_its_readme(hub: None, tmp_path: Path) -> None:
    assert texts("someone/texts") == ["from the hub", "中"]
    assert texts("hub:someone/texts/zh") == ["中"]
    assert not list((tmp_path / "cache").rglob("README.md"))
    for snapshot in (tmp_path / "cache").glob("datasets--*/snapshots/*"):  # as other tools leave it there
        (snapshot / "README.md").write_text("about these texts")
    assert texts("someone/texts") == ["from the hub", "中"]
    whole, part = source_bytes(["someone/texts"]), source_bytes(["someone/texts/zh"])
    assert whole > part > 0 and source_bytes(["someone/texts=0.5"]) == round(whole / 2)
    with pytest.raises(LiuliError, match="neither a file or folder here nor a dataset"):
        texts("someone/else")
