"""Text to rows: 100 MB through the commands a user types, timed by the wall clock.

    python benchmarks/text.py [SOURCE ...] [--megabytes 100]

SOURCE: folders or files of text, cut off at that many bytes; without any, the built-in classroom writes them. Reported:
seconds of each command, tokens, bytes per token by language.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from liuli.curriculum import make
from liuli.text import read_documents

VOCABULARY = 4096


def collect(sources: list[str], size: int, out: Path) -> int:
    """Documents of the sources, turn by turn, as one JSON lines file of `size` bytes of text; gives the bytes."""
    readers = [iter(read_documents([source])) for source in sources]
    written = 0
    with out.open("w", encoding="utf-8") as file:
        while readers and written < size:
            for reader in list(readers):
                document = next(reader, None)
                if document is None:
                    readers.remove(reader)
                    continue
                file.write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
                written += len(document.text.encode())
    return written


def timed(*arguments: str) -> tuple[float, dict[str, object]]:
    """Seconds and the JSON of `liuli ARGUMENTS --json`."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "liuli", *arguments, "--json"], stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - start, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--megabytes", type=float, default=100.0)
    options = parser.parse_args()
    size = int(options.megabytes * 1e6)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        start = time.perf_counter()
        make(work / "lessons", size=min(size * 3, 300_000_000), workers=2)
        wrote = sum(f.stat().st_size for f in (work / "lessons").glob("*.jsonl"))
        print(f"curriculum: {wrote / 1e6:.0f} MB in {time.perf_counter() - start:.1f} s, 2 processes")
        written = collect(options.sources or [str(work / "lessons" / "text.jsonl")], size, work / "text.jsonl")
        print(f"text: {written / 1e6:.1f} MB from {', '.join(options.sources) or 'the classroom'}")
        text, tokenizer = str(work / "text.jsonl"), str(work / "tokenizer")
        seconds, _ = timed("tokenizer", text, tokenizer, "--vocab-size", str(VOCABULARY))
        print(f"liuli tokenizer, {VOCABULARY:,} tokens: {seconds:.1f} s")
        seconds, info = timed("data", "rows", text, str(work / "rows"), "--tokenizer", tokenizer)
        print(f"liuli data rows: {seconds:.1f} s, {written / seconds / 1e6:.1f} MB/s")
        print(json.dumps(info, ensure_ascii=False))


if __name__ == "__main__":
    main()
