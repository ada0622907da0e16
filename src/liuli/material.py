"""What a build learns from: the lessons, the user's text and conversations, and which of it is held out.

In: a recipe, and the lessons and the plan in its run folder. Out: documents and rendered conversations. Nothing here is
random: what is kept and what is held out follows from the words or the place of a text alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from liuli.errors import LiuliError
from liuli.files import read_json
from liuli.recipe import Recipe
from liuli.text import (
    Conversation,
    Document,
    ReadReport,
    Rendered,
    Source,
    Tokenizer,
    find_files,
    fit_conversation,
    read_conversations,
    read_documents,
    render_many,
)
from liuli.train import RunLog

MOST_TIMES = 50  # that one conversation of the user's is learned from
PIECE = 2_000  # characters of a text, at least: a book is kept and held out in pieces
LONGEST_PIECE = 2 * PIECE  # where no line ends


class Material:
    """All that a build reads, of one recipe in one run folder."""

    def __init__(self, recipe: Recipe, folder: Path, log: RunLog) -> None:
        self.recipe, self.folder, self.log = recipe, folder, log

    def check(self) -> None:
        """Before anything is made: own text is there and does not say one thing over and over; own conversations can
        be read, or are an error with file and row."""
        if self.recipe.text:
            lines = [
                line.strip()
                for document in itertools.islice(self.documents(), 1000)
                for line in document.text.splitlines()[:200]
            ]
            if len(lines) > 20 and len(set(lines)) < 0.02 * len(lines):
                raise LiuliError(
                    f"the text says the same thing over and over: {len(set(lines))} different lines in {len(lines)}",
                    ", ".join(self.recipe.text),
                    "remove repeats with `liuli data dedup`, or give other text",
                )
        if self.recipe.chats:
            self.log.say(f"own conversations: {len(self.own_chats):,}")

    # --- conversations -----------------------------------------------------------------------------------------------

    @cached_property
    def own_chats(self) -> list[Conversation]:
        if not self.recipe.chats:
            return []
        report = ReadReport()
        chats = list(read_conversations(self.recipe.chats, self.recipe.skip_bad, report))
        tell_skipped(report, self.log)
        return chats

    def chats(self, tokenizer: Tokenizer) -> list[Rendered]:
        """The lessons' conversations and the user's own; those that no row can hold are left out and counted."""
        lessons = render_many([line["messages"] for line in self.lessons("chat")], tokenizer)
        if not self.recipe.chats:
            return lessons
        T = self.recipe.context
        own = render_many([conversation.messages for conversation in self.own_chats], tokenizer)
        fitted = [(chat, len(cut[0])) for chat in own if (cut := fit_conversation(chat, T + 1))]
        shortened = sum(size < len(chat.tokens) for chat, size in fitted)
        tell_too_long(len(own) - len(fitted), shortened, T, self.log)
        if not fitted:
            raise LiuliError("none is left", ", ".join(self.recipe.chats), "shorten them, or give a larger context")
        return mixed(lessons, fitted, self.recipe.chats_share)

    # --- text --------------------------------------------------------------------------------------------------------

    def lessons(self, kind: str) -> Iterator[dict[str, Any]]:
        """Lines of the curriculum: kind is "text", "chat", "pairs" or "eval"."""
        with (self.folder / "curriculum" / f"{kind}.jsonl").open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)

    def texts(self, chats: bool = False) -> Iterator[Document]:
        """All text that the model reads; chats: conversations too, as bare text (for the tokenizer)."""
        yield from self.lesson_texts(held_out=False)
        for line in self.lessons("chat") if chats else ():
            words = "\n".join(message.get("content") or "" for message in line["messages"])
            yield Document(words, language=line["language"])
        for conversation in self.own_chats if chats else ():
            yield Document("\n".join(message.content for message in conversation.messages))
        yield from self.real_texts(held_out=False)

    def lesson_texts(self, held_out: bool) -> Iterator[Document]:
        """Documents of the curriculum; one in a hundred is held out, of a small one more, for some of each language."""
        share = share_held_out(read_json(self.folder / "curriculum" / "about.json")["texts"])
        for line in self.lessons("text"):
            if held_out == (place_of(line["text"]) > 1 - share):  # by the words, for a text may stand there twice
                yield Document(line["text"], language=line["language"])

    def real_texts(self, held_out: bool) -> Iterator[Document]:
        """The user's text in pieces, as many as the budget can read; one in a hundred is held out, of little more."""
        if not self.recipe.text:
            return
        tokens = read_json(self.folder / "plan.json")["tokens"]
        keep = 1.2 * tokens * 3.5 * self.recipe.pretrain_share * self.recipe.text_share / self.text_bytes
        share = share_held_out(self.text_bytes // PIECE)
        report = ReadReport()
        for document in self.documents(report):
            for number, text in enumerate(pieces(document.text)):
                place = place_of(f"{document.id} {number}")
                if held_out == (place > 1 - share) and (held_out or place < keep):
                    yield replace(document, text=text)
        if not held_out:
            tell_skipped(report, self.log)

    @cached_property
    def text_bytes(self) -> int:
        """`source_bytes` of the user's text, over which its folders are walked once."""
        return max(1, source_bytes(self.recipe.text))

    def documents(self, report: ReadReport | None = None) -> Iterator[Document]:
        """The user's text as it stands."""
        return read_documents(self.recipe.text, skip_bad=self.recipe.skip_bad, report=report)

    def held_out_texts(self) -> list[Document]:
        """At most about a megabyte of each language that nothing is trained on.

        The curriculum stands in only for a language without the user's text: it is easier, and mixed in would flatter.
        """
        room = {"en": 1_000_000, "zh": 1_000_000, "other": 300_000}
        kept: list[Document] = []
        for texts in (self.real_texts(held_out=True), self.lesson_texts(held_out=True)):
            measured = {document.language for document in kept}
            for document in texts:
                if room[document.language] > 0 and document.language not in measured:
                    room[document.language] -= len(document.text.encode())
                    kept.append(document)
            if self.recipe.text and not kept:
                self.log.warn("none of the text is held out, so little is it: what the report measures is lessons")
        return kept


def tell_skipped(read: ReadReport, log: RunLog) -> None:
    """How many bad rows were left out, and why."""
    if read.skipped:
        log.warn(read.told())


def tell_too_long(left_out: int, shortened: int, T: int, log: RunLog) -> None:
    """How many conversations did not fit into rows of T tokens."""
    if left_out:
        log.warn(f"{left_out:,} conversations have no answer that fits {T} tokens and are left out")
    if shortened:
        log.warn(f"{shortened:,} conversations are longer than {T} tokens and lose their first turns")


def share_held_out(texts: int) -> float:
    """One in a hundred; of a few thousand more, so that there are about a hundred; one in ten at the most."""
    return max(0.01, min(0.1, 100 / max(1, texts)))


def pieces(text: str) -> Iterator[str]:
    """A text in pieces that end where a line does: PIECE characters and the rest of the line, if it ends in time."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + PIECE, start + LONGEST_PIECE) + 1 or start + LONGEST_PIECE
        yield text[start:end]
        start = end


def mixed(lessons: list[Rendered], own: list[tuple[Rendered, int]], share: float) -> list[Rendered]:
    """Lessons, and own conversations so often that they are `share` of all tokens, at most MOST_TIMES.

    own: each with how many tokens of it fit a row. Of too many a part is taken, evenly from all of them.
    """
    taught = sum(len(chat.tokens) for chat in lessons)
    times = min(MOST_TIMES, share / (1 - share) * taught / sum(size for _, size in own))
    copies = [round((number + 1) * times) - round(number * times) for number in range(len(own))]
    return lessons + [chat for (chat, _), count in zip(own, copies, strict=True) for _ in range(count)]


def place_of(text: str) -> float:
    """A number in [0, 1) that is always the same for a text and as good as chance between texts."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 16**8


def source_bytes(sources: Sequence[str]) -> int:
    """Roughly how much text there is: file sizes, packed ones threefold, each by its weight."""
    total = 0.0
    for source in map(Source.of, sources):
        for file in find_files(source.path):
            total += source.weight * file.stat().st_size * (3 if file.suffix in (".gz", ".zst", ".parquet") else 1)
    return round(total)
