"""Writes the classroom: text, chats and tests, the same bytes for the same seed and size, with any number of workers.

The plan says how many items of every skill, language and kind there are; they are cut into chunks, each with its own
chance, and an item's turn in the round of facts is its number, so that chunks can be made anywhere in any order.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from liuli.curriculum.draw import Draw
from liuli.curriculum.invent import neighbours
from liuli.curriculum.items import LANGUAGES, Item, chat_line, estimated_tokens, eval_line, item_tokens, text_line
from liuli.curriculum.preferences import pair_lines
from liuli.curriculum.skills import LARGEST_SHARE, LONGEST_TALK, shares, skills
from liuli.curriculum.skills.dialogue import distinct_dialogues
from liuli.curriculum.skills.facts import SKILLS, pairs_of
from liuli.curriculum.skills.stories import distinct_sentences
from liuli.errors import UsageError
from liuli.files import new_folder, read_json, write_json

PART = {"en": 0.555, "zh": 0.445}  # of the tokens: English takes more of them to say the same
CHUNK_BYTES = 400_000
PROBES = 80  # items made to learn a stream's mean size
TESTS = 40  # items a skill, language and split
PAIRS = 16_000  # comparisons of two answers, roughly: as many as a laptop's reward model sees, for twice is by heart


@dataclass(frozen=True)
class Stream:
    """All items of one skill, language and kind ("chat" or "text"). count: how many in the whole classroom."""

    skill: str
    language: str
    kind: str
    count: int
    tokens: float  # estimated, of one item
    bytes: float  # of one line of the file


def make(
    out: str | Path, seed: int = 0, size: int = 50_000_000, workers: int = 1, replace: bool = False
) -> dict[str, Any]:
    """Write text, chat, eval and pairs.jsonl and about.json into the folder `out`; return what about.json says.

    size: bytes of text.jsonl and chat.jsonl together, kept to within some percent.
    """
    if size < 100_000:
        raise UsageError("A classroom this small cannot hold every skill", f"--size {size}", "ask for at least 100KB")
    streams = plan(seed, size)
    chunks = max(1, size // CHUNK_BYTES)
    with new_folder(out, replace) as stage:
        with open(stage / "text.jsonl", "wb") as text_file, open(stage / "chat.jsonl", "wb") as chat_file:
            for text, chat in _chunks(seed, streams, chunks, workers):
                text_file.write(text)
                chat_file.write(chat)
        with open(stage / "eval.jsonl", "wb") as file:
            tests = 0
            for line in eval_lines(seed):
                tests += 1
                file.write(line.encode())
        pairs = list(pair_lines(seed, PAIRS))
        with open(stage / "pairs.jsonl", "wb") as file:
            file.write("".join(pairs).encode())
        about = _about(seed, size, streams, tests) | {"pairs": len(pairs)}
        write_json(stage / "about.json", about)
    return about


def seed_of(folder: Path) -> int:
    """The seed of the lessons in a folder, which names their people; 0 where nothing says."""
    about = folder / "about.json"
    return int(read_json(about)["seed"]) if about.exists() else 0


def plan(seed: int, size: int) -> list[Stream]:
    """How many items every stream has, so that tokens are shared as `shares` says and the files have this size."""
    probes = []
    for name, share in shares().items():
        skill = skills()[name]
        for kind, part in (("chat", 1 - skill.text_part), ("text", skill.text_part)):
            for language in LANGUAGES:
                if part:
                    probes.append((share * PART[language] * part, _probe(seed, name, language, kind)))
    tokens = size / sum(part * stream.bytes / stream.tokens for part, stream in probes)
    return [
        Stream(s.skill, s.language, s.kind, max(1, round(tokens * part / s.tokens)), s.tokens, s.bytes)
        for part, s in probes
    ]


def make_chunk(seed: int, streams: list[Stream], chunk: int, chunks: int) -> tuple[bytes, bytes]:
    """The lines of text.jsonl and of chat.jsonl in one chunk, in an order of their own."""
    texts, lessons = list[str](), list[Lesson]()
    for stream in streams:
        numbers = range(stream.count * chunk // chunks, stream.count * (chunk + 1) // chunks)
        skill, salt = skills()[stream.skill], f"{stream.skill}/{stream.language}/{stream.kind}/{chunk}"
        draw = Draw(Random(f"{seed}/{salt}"), stream.language, "train", 0, seed)
        for draw.index in numbers:
            if stream.kind == "chat":
                lessons.append(Lesson(skill.item(draw), stream.skill, stream.language))
            else:
                assert skill.text is not None
                texts.append(text_line(skill.text(draw), stream.skill, stream.language))
    order = Random(f"{seed}/order/{chunk}")
    order.shuffle(texts)
    order.shuffle(lessons)
    chats = [chat_line(*lesson) for lesson in conversations(lessons, order)]
    return "".join(texts).encode(), "".join(chats).encode()


class Lesson(NamedTuple):
    """An item, and where it comes from."""

    item: Item
    skill: str
    language: str


def conversations(lessons: Sequence[Lesson], rng: Random) -> Iterator[Lesson]:
    """The same items, about half of the conversations by themselves and the others two to four in one, as people ask
    one thing after another. Those of a conversation share its language; its skill names theirs.
    """
    waiting: dict[str, tuple[int, float, list[Lesson]]] = {language: (0, 0.0, []) for language in LANGUAGES}
    for lesson in lessons:
        wanted, tokens, own = waiting[lesson.language]
        more = item_tokens(lesson.item)
        if own and tokens + more > LONGEST_TALK:
            yield _joined(own)
            own = []
        if not own:
            wanted, tokens = rng.choices((1, 2, 3, 4), (50, 25, 15, 10))[0], 0.0
        own.append(lesson)
        tokens += more
        if len(own) == wanted:
            yield _joined(own)
            own = []
        waiting[lesson.language] = wanted, tokens, own
    yield from (_joined(own) for _, _, own in waiting.values() if own)


def _joined(lessons: Sequence[Lesson]) -> Lesson:
    messages = [turn for lesson in lessons for turn in lesson.item.messages]
    return Lesson(Item(messages), ", ".join(lesson.skill for lesson in lessons), lessons[0].language)


def eval_lines(seed: int, count: int = TESTS) -> Iterator[str]:
    """The tests: for every skill, language and split that makes sense, up to `count` different questions."""
    for name, skill in skills().items():
        for language in LANGUAGES:
            for split in skill.splits:
                for number, item in enumerate(eval_items(seed, name, language, split, count)):
                    yield eval_line(item, name, language, split, number)


def eval_items(seed: int, name: str, language: str, split: str, count: int) -> list[Item]:
    """Different questions of one skill, language and split."""
    draw = Draw(Random(f"{seed}/eval/{name}/{language}/{split}"), language, split, 0, seed)
    found: dict[str, Item] = {}
    for turn in range(count * 4):
        draw.index = turn
        item = skills()[name].item(draw)
        found.setdefault(str(item.messages[:-1]), item)
        if len(found) == count:
            break
    return list(found.values())


def _chunks(seed: int, streams: list[Stream], chunks: int, workers: int) -> Iterator[tuple[bytes, bytes]]:
    if workers <= 1 or chunks == 1:
        for chunk in range(chunks):
            yield make_chunk(seed, streams, chunk, chunks)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(min(workers, chunks), mp_context=context) as pool:
        yield from pool.map(make_chunk, *zip(*((seed, streams, chunk, chunks) for chunk in range(chunks)), strict=True))


def _probe(seed: int, name: str, language: str, kind: str) -> Stream:
    """Mean tokens and bytes of a stream, from a few items of it."""
    skill = skills()[name]
    draw = Draw(Random(f"{seed}/probe/{name}/{language}/{kind}"), language, "train", 0, seed)
    tokens, size = 0.0, 0
    for draw.index in range(PROBES):
        if kind == "chat":
            item = skill.item(draw)
            tokens += item_tokens(item)
            size += len(chat_line(item, name, language).encode())
        else:
            assert skill.text is not None
            text = skill.text(draw)
            tokens += 1 + estimated_tokens(text)
            size += len(text_line(text, name, language).encode())
    return Stream(name, language, kind, 0, tokens / PROBES, size / PROBES)


def _about(seed: int, size: int, streams: list[Stream], tests: int) -> dict[str, Any]:
    total = sum(stream.count * stream.tokens for stream in streams)
    table = {}
    for name, skill in skills().items():
        own = [stream for stream in streams if stream.skill == name]
        table[name] = {
            "family": skill.family,
            "share": round(sum(stream.count * stream.tokens for stream in own) / total, 5),
            "tokens": round(sum(stream.count * stream.tokens for stream in own)),
            "chats": {s.language: s.count for s in own if s.kind == "chat"},
            "texts": {s.language: s.count for s in own if s.kind == "text"},
            "splits": list(skill.splits),
        }
    return {
        "seed": seed,
        "size": size,
        "skills": table,
        "largest_share": LARGEST_SHARE,
        "estimated_tokens": round(total),
        "tokens_by_language": {
            x: round(sum(s.count * s.tokens for s in streams if s.language == x)) for x in LANGUAGES
        },
        "chats": sum(stream.count for stream in streams if stream.kind == "chat"),
        "texts": sum(stream.count for stream in streams if stream.kind == "text"),
        "tests": tests,
        "facts": len({(relation.key, fact) for name in SKILLS for relation, fact in pairs_of(name)}),
        "people": sum(len(neighbours(seed, language)) for language in LANGUAGES),
        "story_sentences": {language: distinct_sentences(language) for language in LANGUAGES},
        "dialogues": {language: distinct_dialogues(language) for language in LANGUAGES},
    }
