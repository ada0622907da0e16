"""Promises of `liuli data …` and `liuli tokenizer`: raw files to rows by commands alone, for people and machines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from liuli.cli import main
from liuli.text import Rows, Tokenizer

from .test_quality import prose


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """(exit code, what was printed, what was complained)."""
    monkeypatch.setattr(sys, "argv", ["liuli", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_raw_text_becomes_rows_by_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def ask(*arguments: object) -> dict[str, Any]:
        code, out, _ = run(capsys, monkeypatch, *arguments, "--json")
        assert code == 0
        return json.loads(out)

    texts = [prose(n) for n in range(12)] + [
        prose(0),
        prose(1)[:-5],
        "short",
        "中文的文本。" + "很好" * 3 + "今天天气不错，我们去公园走走吧，那里的花开了。",
    ]
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts) + "not json\n")
    stats = ask("data", "stats", raw, "--field", "body", "--skip-bad")
    assert stats["languages"]["en"]["documents"] == 15 and stats["languages"]["zh"]["documents"] == 1
    assert stats["skipped"] == 1 and stats["estimated"] and stats["languages"]["en"]["tokens"] > 100
    cleaned = ask("data", "clean", raw, tmp_path / "clean", "--field", "body", "--skip-bad")
    assert cleaned["kept"] == 15 and cleaned["removed"]["shorter than 30 characters"]["documents"] == 1
    unique = ask("data", "dedup", tmp_path / "clean", tmp_path / "unique")
    assert (unique["kept"], unique["equal"], unique["near"]) == (13, 1, 1)
    made = ask("tokenizer", tmp_path / "unique", tmp_path / "tokenizer", "--vocab-size", 300)
    assert made["vocab_size"] == Tokenizer.load(tmp_path / "tokenizer").vocab_size == 300
    assert set(made["bytes_per_token"]) == {"en", "zh", "all"}
    exact = ask("data", "stats", tmp_path / "unique", "--tokenizer", tmp_path / "tokenizer")
    packed = ask(
        "data", "rows", tmp_path / "unique", tmp_path / "rows", "--tokenizer", tmp_path / "tokenizer", "--context", 64
    )
    assert packed["rows"] == len(Rows.open(tmp_path / "rows")) and packed["T"] == 64
    assert packed["languages"] == exact["languages"]
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"prompt": "Hi", "completion": "Hello"}) + "\n")
    chat = ask(
        "data", "rows", chats, tmp_path / "chat", "--tokenizer", tmp_path / "tokenizer", "--chat", "--context", 64
    )
    assert (chat["kind"], chat["pieces"], chat["rows"]) == ("chat", 1, 1)


def test_bytes_per_token_of_all_are_those_of_the_text_and_not_the_mean_of_its_languages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("liuli.text.commands.ESTIMATE_CHARACTERS", 1000)
    texts = [prose(n, 1000) for n in range(12)] + ["今天天气不错，我们去公园走走吧，那里的花开了。" * 40]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    _, out, _ = run(
        capsys, monkeypatch, "tokenizer", tmp_path / "a.jsonl", tmp_path / "t", "--vocab-size", 400, "--json"
    )
    tokens = sum(map(len, Tokenizer.load(tmp_path / "t").encode_batch(texts)))
    assert json.loads(out)["bytes_per_token"]["all"] == pytest.approx(len("".join(texts).encode()) / tokens, rel=0.02)


def test_what_commands_say_to_people_and_their_exit_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("\n".join(prose(n, 30) for n in range(20)))
    (tmp_path / "one.txt").write_text("The same line.\n" * 3000)
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "few.txt").write_text("few")
    (tmp_path / "s_\udcff.txt").write_text(prose(1))
    (tmp_path / "tokenizer.json").write_text("no json")
    tokenizer = tmp_path / "tokenizer"
    for expected, words, arguments in [
        (0, "bytes per token", ["tokenizer", tmp_path / "a.txt", tokenizer, "--vocab-size", 300]),
        (0, "Tokens are estimated", ["data", "stats", tmp_path / "a.txt"]),
        (0, "1 of 1 documents kept", ["data", "clean", tmp_path / "a.txt", tmp_path / "clean"]),
        (0, "1 documents kept", ["data", "dedup", tmp_path / "a.txt", tmp_path / "unique"]),
        (
            0,
            "rows of 64 + 1",
            ["data", "rows", tmp_path / "a.txt", tmp_path / "r", "--tokenizer", tokenizer, "--context", 64],
        ),
        (1, "repeats itself", ["data", "rows", tmp_path / "one.txt", tmp_path / "r1", "--tokenizer", tokenizer]),
        (1, "invalid UTF-8", ["data", "stats", tmp_path / "bad.txt"]),
        (1, "empty", ["tokenizer", tmp_path / "bad.txt", tmp_path / "t1", "--skip-bad"]),
        (0, "1 documents kept", ["data", "dedup", tmp_path / "a.txt", tmp_path / "u1", "--threshold", 1]),
        (0, "1 of 1 documents kept", ["data", "clean", tmp_path / "s_\udcff.txt", tmp_path / "c1"]),
        (1, "no document is left: 1 shorter", ["data", "clean", tmp_path / "few.txt", tmp_path / "c3"]),
        (
            1,
            "make the tokenizer again",
            ["data", "rows", tmp_path / "a.txt", tmp_path / "r3", "--tokenizer", tmp_path / "tokenizer.json"],
        ),
        (2, "under 1000", ["data", "stats", f"{tmp_path}/a.txt=inf"]),
        (2, "--lines", ["data", "clean", tmp_path / "a.txt", tmp_path / "c4", "--lines", -3]),
        (2, "--symbols", ["data", "clean", tmp_path / "a.txt", tmp_path / "c5", "--symbols", "nan"]),
        (2, "--field body", ["data", "stats", tmp_path / "a.txt", "--field", "body"]),
        (
            2,
            "fields of their own",
            ["data", "rows", tmp_path, tmp_path / "r4", "--tokenizer", tokenizer, "--chat", "--field", "body"],
        ),
        (2, "exists already", ["tokenizer", tmp_path / "a.txt", tokenizer]),
        (2, "too small", ["tokenizer", tmp_path / "a.txt", tmp_path / "t2", "--vocab-size", 3]),
        (2, "no such file", ["data", "clean", tmp_path / "nowhere", tmp_path / "c2"]),
        (2, "similarity", ["data", "dedup", tmp_path / "a.txt", tmp_path / "d2", "--threshold", 3]),
    ]:
        code, out, err = run(capsys, monkeypatch, *arguments)
        assert (code, words in " ".join((err if expected else out).split())) == (expected, True), (arguments, out, err)
        assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        "c1",
        "clean",
        "r",
        "tokenizer",
        "u1",
        "unique",
    ]


def test_text_does_without_torch() -> None:
    code = "import sys, liuli.text, liuli.text.commands; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
