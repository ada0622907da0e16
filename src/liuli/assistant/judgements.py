"""Judgements: every answer that was shown to a person, and what the person said of it, in the store.

In: prompts with candidate answers, then judgements on them. Out: the same, counted; and .jsonl of comparisons ("dpo"),
of good answers ("sft") and of thumbs ("kto") in the format of `liuli.text.preferences`. Any number of processes may
write at once. A database keeps itself whole; all that is exported goes through files.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import sqlalchemy as sql

from liuli import files
from liuli.assistant.store import ANSWERS, FILE, JUDGEMENTS, PROMPTS, Store, insert
from liuli.errors import LiuliError, UsageError
from liuli.text.chat import Message
from liuli.text.preferences import Judged, Preference, judged_line, preference_line

_ANSWERS_OF = {"choice": (2, 2), "ranking": (2, 9), "edit": (1, 1), "thumb": (1, 1)}  # fewest, most


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer (all that the assistant did) and how it came about; model "": a person wrote it."""

    messages: tuple[Message, ...]
    model: str = ""
    model_hash: str = ""
    sampling: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a person said. answers: ids, the best first. good: of a thumb. edited: the last message of an answer, anew.

    skipped: shown, but neither is better; for a thumb: taken back.
    """

    kind: Literal["choice", "ranking", "edit", "thumb"]
    answers: tuple[int, ...]
    who: str = ""
    good: bool | None = None
    edited: str | None = None
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Exported:
    """Rows written; and what was left out: repeated, judged both ways (pairs, or thumbs of one answer), empty."""

    rows: int = 0
    duplicates: int = 0
    contradictions: int = 0
    empty: int = 0


class _Said(NamedTuple):
    """A judgement that says something, with the texts (canonical JSON) of prompt and answers, the best first."""

    id: int
    kind: str
    who: str
    good: bool | None  # of a thumb; None: taken back
    digest: str
    prompt: str
    answers: list[str]


def default_store(run: Path) -> Path:
    """Where the judgements of a run folder are kept."""
    return run / FILE


class Judgements:
    """The judgements in a store, or at a path or URL. Every method raises LiuliError when it cannot."""

    def __init__(self, store: Store | str | Path) -> None:
        self.store = store if isinstance(store, Store) else Store(store)
        self.path = self.store.path

    def show(self, prompt: Sequence[Message], candidates: Sequence[Candidate]) -> list[int]:
        """Keep a prompt and the answers that a person will see; return the answers' ids."""
        digest = digest_of(prompt)
        with self.store.writing() as connection:
            known = connection.scalar(sql.select(PROMPTS.c.id).where(PROMPTS.c.digest == digest))
            number = known or insert(connection, PROMPTS, digest=digest, messages=_text(prompt))
            return [_keep(connection, number, each) for each in candidates]

    def judge(self, judgement: Judgement) -> int:
        """Keep a judgement and return its id. Raises UsageError for answers that are unknown or do not go together."""
        fewest, most = _ANSWERS_OF[judgement.kind]
        ids = list(judgement.answers)
        if len(set(ids)) != len(ids) or not (1 if judgement.skipped else fewest) <= len(ids) <= most:
            raise UsageError(f"A {judgement.kind} cannot be of these answers: {ids}.")
        _text([Message("user", judgement.who)])  # a name is text, too
        if judgement.kind == "thumb" and (judgement.good is None) != judgement.skipped:
            raise UsageError("A thumb is up or down, or taken back.")
        with self.store.writing() as connection:
            found = connection.execute(sql.select(ANSWERS).where(ANSWERS.c.id.in_(ids))).all()
            prompts = {row.prompt for row in found}
            if len(found) != len(ids) or len(prompts) != 1:
                raise UsageError(f"These are not answers to one prompt: {ids}.")
            (prompt,) = prompts
            if judgement.kind == "edit" and not judgement.skipped:
                ids = [_keep(connection, prompt, Candidate(_edited(found[0].messages, judgement.edited))), *ids]
            about = {"good": judgement.good, "skipped": judgement.skipped, "who": judgement.who.strip()}
            return insert(connection, JUDGEMENTS, prompt=prompt, kind=judgement.kind, answers=ids, **about)

    def counts(self) -> dict[str, int]:
        """How many judgements of each kind there are, and how many were skipped."""
        kind, skipped = JUDGEMENTS.c.kind, JUDGEMENTS.c.skipped
        counts = dict.fromkeys((*_ANSWERS_OF, "skipped"), 0)
        for row in self.store.rows(sql.select(kind, skipped, sql.func.count().label("n")).group_by(kind, skipped)):
            counts["skipped" if row.skipped else row.kind] += row.n
        return counts

    def times_judged(self) -> dict[str, int]:
        """How often each prompt (by its digest) was judged or skipped; thumbs, which nobody asked for, do not count."""
        query = sql.select(PROMPTS.c.digest, sql.func.count().label("n")).join_from(JUDGEMENTS, PROMPTS)
        rows = self.store.rows(query.where(JUDGEMENTS.c.kind != "thumb").group_by(PROMPTS.c.digest))
        return {row.digest: row.n for row in rows}

    def said(self) -> list[_Said]:
        """Every judgement in order, without those that were skipped, and of the edits of an answer only the last."""
        j, p = JUDGEMENTS.c, PROMPTS.c
        query = sql.select(j.id, j.kind, j.who, j.good, p.digest, p.messages, j.answers).join_from(JUDGEMENTS, PROMPTS)
        rows = self.store.rows(query.where(~j.skipped | (j.kind == "thumb")).order_by(j.id))
        texts = {row.id: row.messages for row in self.store.rows(sql.select(ANSWERS))}  # after: others write meanwhile
        last = {row.answers[1]: row.id for row in rows if row.kind == "edit"}
        kept = [row for row in rows if row.kind != "edit" or row.id == last[row.answers[1]]]
        return [_Said._make((*row[:6], [texts[number] for number in row.answers])) for row in kept]


def _keep(connection: sql.Connection, prompt: int, candidate: Candidate) -> int:
    about = {"model": candidate.model, "model_hash": candidate.model_hash, "sampling": candidate.sampling}
    return insert(connection, ANSWERS, prompt=prompt, messages=_text(candidate.messages), **about)


def _edited(original: str, text: str | None) -> tuple[Message, ...]:
    """The answer with its last message in the person's words; what it did with tools before stays."""
    *before, last = _messages(original)
    if not text or not text.strip() or text == last.content:
        raise UsageError("An edit is a text that differs from the answer.")
    return (*before, replace(last, content=text))


def digest_of(prompt: Sequence[Message]) -> str:
    """What tells prompts apart, and groups the comparisons of one."""
    return hashlib.blake2b(_text(prompt).encode(), digest_size=8).hexdigest()


def _text(messages: Sequence[Message]) -> str:
    """Canonical JSON: equal texts are equal messages."""
    text = json.dumps([message.to_dict() for message in messages], ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("The text holds half a character (a lone surrogate).") from None
    return text


def _messages(text: str) -> tuple[Message, ...]:
    return tuple(Message.from_dict(value) for value in json.loads(text))


# --- what is learned from ---------------------------------------------------------------------------------------------


def export(store: Judgements, out: str | Path, kind: str) -> Exported:
    """Write what was judged as .jsonl: "dpo", "sft" or "kto" (see `lines_of`)."""
    lines, exported = lines_of(store, kind)
    if not lines:
        against = f" ({exported.contradictions} judged one way and the other)" if exported.contradictions else ""
        what = f"Nothing was judged that {kind} learns from{against}"
        raise LiuliError(what, store.path, "judge more: liuli label MODEL")
    files.write_file(out, lines)
    return exported


def lines_of(store: Judgements, kind: str) -> tuple[list[bytes], Exported]:
    """The lines of an export and what was left out of it.

    dpo: {"prompt", "chosen", "rejected", "who", "group"}, a ranking's pairs all, an edit above its original; a group is
    a prompt's. sft: {"messages"}, edits and best answers, but none that was edited or judged both ways.
    kto: {"prompt", "completion", "label"}; of one person's thumbs on one answer the last counts.
    Raises UsageError for another kind.
    """
    kinds = {"dpo": _comparisons, "sft": _good_answers, "kto": _thumbs}
    if kind not in kinds:
        raise UsageError(f"There is no export {kind!r}.", "kind", f"choose one of {', '.join(kinds)}")
    rows, exported = kinds[kind](store)
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
    return lines, replace(exported, rows=len(lines))


Rows = tuple[list[dict[str, Any]], Exported]


def _comparisons(store: Judgements) -> Rows:
    pairs, against, exported = _pairs(store.said())
    rows = []
    for (prompt, better, worse), said in pairs.items():
        if (prompt, better, worse) not in against:
            source = f"{store.path.name}:{said.id}"
            texts = _messages(prompt), _messages(better), _messages(worse)
            rows.append(preference_line(Preference(*texts, said.who, said.digest, source=source)))
    return rows, exported


def _good_answers(store: Judgements) -> Rows:
    said = store.said()
    _, against, exported = _pairs(said)
    replaced = {(each.prompt, each.answers[1]) for each in said if each.kind == "edit"}
    best = [(each.prompt, each.answers[0]) for each in said if each.kind != "thumb" and not _is_empty(each.answers[0])]
    quarrels = {(prompt, better) for prompt, better, _ in against}
    kept = [each for each in best if each not in replaced | quarrels]
    good = dict.fromkeys(kept)
    rows = [{"messages": [*json.loads(prompt), *json.loads(answer)]} for prompt, answer in good]
    return rows, replace(exported, duplicates=len(kept) - len(good))


def _thumbs(store: Judgements) -> Rows:
    last = {(each.who, each.prompt, each.answers[0]): each for each in store.said() if each.kind == "thumb"}
    votes: dict[tuple[str, str], list[_Said]] = {}
    for (_, prompt, answer), each in last.items():
        if each.good is not None:
            votes.setdefault((prompt, answer), []).append(each)
    rows, against, empty = [], 0, 0
    for (prompt, answer), given in votes.items():
        if len({each.good for each in given}) > 1:
            against += 1
        elif _is_empty(answer):
            empty += 1
        else:
            source = f"{store.path.name}:{given[0].id}"
            rows.append(judged_line(Judged(_messages(prompt), _messages(answer), bool(given[0].good), source)))
    repeated = sum(len(given) for given in votes.values()) - len(votes)
    return rows, Exported(duplicates=repeated, contradictions=against, empty=empty)


Pair = tuple[str, str, str]  # prompt, better, worse


def _pairs(said: Sequence[_Said]) -> tuple[dict[Pair, _Said], set[Pair], Exported]:
    """Every pair with who said it first, those of them that were also said the other way round, and the counts."""
    pairs: dict[Pair, _Said] = {}
    repeated = empty = 0
    for each in said:
        for better, worse in combinations(each.answers, 2):
            if _is_empty(better) or _is_empty(worse):
                empty += 1
            elif better != worse:
                repeated += (each.prompt, better, worse) in pairs
                pairs.setdefault((each.prompt, better, worse), each)
    against = {pair for pair in pairs if (pair[0], pair[2], pair[1]) in pairs}
    return pairs, against, Exported(duplicates=repeated, contradictions=len(against) // 2, empty=empty)


def _is_empty(answer: str) -> bool:
    """Whether a model said nothing: nobody can be trained on that."""
    last = _messages(answer)[-1]
    return not (last.content.strip() or last.tool_calls)
