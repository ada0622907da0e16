"""Rows of T+1 tokens, ready to train on: packed once, stored as memory-mapped integers with an index.

In: token lists of documents, or rendered conversations. Out: a rows folder (`tokens.bin`, for conversations also
`weights.bin`, and `index.json`), the same on every machine. Knows nothing of models; the loader deals the rows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from liuli.errors import DamagedError, LiuliError, UsageError
from liuli.files import new_folder, verify_folder, write_json
from liuli.text.chat import Rendered
from liuli.text.pack import Plan, lay_out, plan_text, plan_whole
from liuli.text.tokenizer import CONTROLS

BOS, PAD, SYSTEM = CONTROLS.index("bos"), CONTROLS.index("pad"), CONTROLS.index("system")


@dataclass(frozen=True)
class Info:
    """`index.json`: what the rows hold and what they left out.

    kind: "text" or "chat". rows; T; dtype of tokens.bin. tokens: places that hold text (padding is not counted).
    targets: places whose weight is 1 (for text: every token but each row's first). cropped: tokens left out at cuts
    and for a last row that could not be filled. padding: places with `<|pad|>`. pieces: documents or conversations,
    or parts of them, in the rows. shortened: conversations that lost their front turns. left_out: conversations
    without a target, or whose last answer alone is too long. bytes, languages: of the text, where the caller said so.
    """

    kind: Literal["text", "chat"]
    rows: int
    T: int
    dtype: str
    tokens: int
    targets: int
    cropped: int
    padding: int
    pieces: int
    shortened: int = 0
    left_out: int = 0
    bytes: int = 0
    languages: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """An open rows folder. tokens: memory map (rows, T+1), uint16 or uint32. weights: uint8, the same; None: all 1."""

    folder: Path
    T: int
    tokens: NDArray[Any]
    weights: NDArray[np.uint8] | None
    info: Info

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> Rows:
        """Open what `pack_documents` or `pack_conversations` wrote; verify=False skips the checksums."""
        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise LiuliError("these are no rows: index.json is missing", folder, "make them with `liuli data rows`")
        if verify:
            verify_folder(folder)
        try:
            info = Info(**json.loads((folder / "index.json").read_text("utf-8")))
            tokens = np.memmap(folder / "tokens.bin", info.dtype, mode="r", shape=(info.rows, info.T + 1))
            has_weights = (folder / "weights.bin").is_file()
            shape = tokens.shape
            weights = np.memmap(folder / "weights.bin", np.uint8, mode="r", shape=shape) if has_weights else None
        except (TypeError, ValueError, OSError) as error:
            raise DamagedError(f"the rows cannot be read: {error}", folder, "make them again") from error
        return cls(folder, info.T, tokens, weights, info)


# --- text ------------------------------------------------------------------------------------------------------------


def pack_documents(
    token_lists: Iterable[Sequence[int] | NDArray[Any]],
    T: int,
    out: str | Path,
    *,
    vocab_size: int = 1 << 16,
    languages: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Rows:
    """Pack documents into rows of T+1 tokens by best fit, without padding; each row starts with a `<|bos|>`.

    token_lists: one document each, with or without its leading `<|bos|>` (it is added). A document longer than a row
    fills several, each behind a `<|bos|>`. vocab_size: above 65,536 the rows are uint32. languages: figures for the
    index, {language: {"bytes": …}}; read after the last document. Raises LiuliError if there are fewer tokens than
    one row, or if the text says the same thing over and over: nothing can be learned from it.
    """
    _check_width(T)
    with new_folder(out, replace=replace) as stage:
        stream = _Stream(stage / "stream.tmp", vocab_size)
        for tokens in token_lists:
            stream.add(tokens)
        tokens_N, lengths = stream.close()
        if not len(tokens_N):
            raise LiuliError("the corpus is empty: no tokens to pack", fix="give a source that holds text")
        check_variety(tokens_N)
        plan = plan_text(lengths, T + 1)
        if not plan.rows:
            what = f"the text is too short: {len(tokens_N)} tokens, and one row takes {T + 1}"
            raise LiuliError(what, fix="give more text, or a shorter context")
        _write(stage / "tokens.bin", tokens_N, plan, T + 1)
        info = Info(
            kind="text",
            rows=plan.rows,
            T=T,
            dtype=str(tokens_N.dtype),
            tokens=plan.rows * (T + 1),
            targets=plan.rows * T,
            cropped=plan.cropped,
            padding=0,
            pieces=len(plan.row),
            bytes=sum(part.get("bytes", 0) for part in (languages or {}).values()),
            languages=dict(languages or {}),
        )
        write_json(stage / "index.json", dataclasses.asdict(info))
        del tokens_N
        (stage / "stream.tmp").unlink()
    return Rows.open(out, verify=False)


def check_variety(tokens_N: NDArray[Any], window: int = 8, most: int = 1_000_000) -> None:
    """Raise LiuliError if fewer than one in fifty of the passages of 8 tokens is a new one (one line, repeated).

    most: tokens to look at; of more, a hundred slices from all of it, whatever the order of the sources.
    """
    if len(tokens_N) > most:
        starts = np.linspace(0, len(tokens_N) - most // 100, 100, dtype=np.int64)
        tokens_N = np.concatenate([tokens_N[start : start + most // 100] for start in starts])
    sample = tokens_N.astype(np.uint64)
    count = len(sample) - window + 1
    if count < 1000:
        return
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(window):  # a polynomial hash; wraps modulo 2^64
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + sample[offset : offset + count] + np.uint64(1)
    different = len(np.unique(hashes))
    if different * 50 < count:
        raise LiuliError(
            f"the text repeats itself: {len(sample):,} tokens hold only {different:,} different passages of {window}",
            fix="remove duplicates (`liuli data dedup`), or give more varied text",
        )


class _Stream:
    """All tokens in one file on disk, so that a corpus need not fit in memory."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.path = path
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self.limit = (1 << 8 * self.dtype.itemsize) - 1
        self._file = path.open("wb", buffering=1 << 20)
        self._lengths: list[int] = []

    def add(self, tokens: Sequence[int] | NDArray[Any]) -> None:
        """Append a document (nothing if it is empty), a `<|bos|>` before it if it has none."""
        array = np.asarray(tokens, dtype=np.int64)
        if not array.size:
            return
        if array[0] != BOS:
            array = np.concatenate([[BOS], array])
        if array.min() < 0 or array.max() > self.limit:
            raise LiuliError(f"token {array.max()} does not fit {self.dtype}", fix="pass the tokenizer's vocab_size")
        self._lengths.append(len(array))
        self._file.write(array.astype(self.dtype).tobytes())

    def close(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """(tokens, length of each document)."""
        self._file.close()
        lengths = np.array(self._lengths, dtype=np.int64)
        empty = not len(lengths)
        tokens = np.zeros(0, self.dtype) if empty else np.memmap(self.path, self.dtype, mode="r")
        return tokens, lengths


def _write(path: Path, values_N: NDArray[Any], plan: Plan, width: int) -> None:
    with path.open("wb") as file:
        for index in lay_out(plan, width):
            file.write(values_N[index].tobytes())


def _check_width(T: int) -> None:
    if T < 2:
        raise UsageError(f"a context of {T} tokens is too short for rows", fix="at least 2")


# --- conversations ---------------------------------------------------------------------------------------------------


def pack_conversations(
    rendered: Iterable[Rendered],
    T: int,
    out: str | Path,
    *,
    vocab_size: int = 1 << 16,
    replace: bool = False,
) -> Rows:
    """Pack conversations whole into rows of T+1 tokens by best fit, padded with `<|pad|>` at weight 0.

    A conversation longer than a row loses its front turns (the system message stays). Left out and counted: those
    without a target, and those whose last turn alone is too long. Every row has a target. Raises LiuliError if none
    is left.
    """
    _check_width(T)
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    kept, shortened, left_out, cropped = list[tuple[list[int], list[int]]](), 0, 0, 0
    for conversation in rendered:
        fitted = fit_conversation(conversation, T + 1)
        if fitted is None:
            left_out += 1
            continue
        lost = len(conversation.tokens) - len(fitted[0])
        shortened, cropped = shortened + (lost > 0), cropped + lost
        kept.append(fitted)
    if not kept:
        what = f"no conversation can be trained on: {left_out} read, none has an answer that fits {T + 1} tokens"
        raise LiuliError(what, fix="give conversations with assistant turns, or a longer context")
    lengths = np.array([len(tokens) for tokens, _ in kept], dtype=np.int64)
    plan = plan_whole(lengths, T + 1)
    tokens_N = np.concatenate([np.array(tokens, dtype) for tokens, _ in kept] + [np.array([PAD], dtype)])
    weights_N = np.concatenate([np.array(weights, np.uint8) for _, weights in kept] + [np.zeros(1, np.uint8)])
    with new_folder(out, replace=replace) as stage:
        _write(stage / "tokens.bin", tokens_N, plan, T + 1)  # index -1 is the pad at the end
        _write(stage / "weights.bin", weights_N, plan, T + 1)
        info = Info(
            kind="chat",
            rows=plan.rows,
            T=T,
            dtype=str(dtype),
            tokens=int(lengths.sum()),
            targets=int(weights_N.sum()),
            cropped=cropped,
            padding=plan.rows * (T + 1) - int(lengths.sum()),
            pieces=len(kept),
            shortened=shortened,
            left_out=left_out,
        )
        write_json(stage / "index.json", dataclasses.asdict(info))
    return Rows.open(out, verify=False)


def fit_conversation(rendered: Rendered, width: int) -> tuple[list[int], list[int]] | None:
    """(tokens, weights) of at most `width` tokens, or None if the conversation cannot be trained on.

    What comes before the first message (`<|bos|>`) and the system message stay; then as many of the last turns as fit,
    a turn beginning with a user's message. The last turn is never cut.
    """
    tokens, weights, starts = rendered.tokens, rendered.weights, rendered.starts
    if not any(weights[1:]):
        return None
    if len(tokens) <= width:
        return tokens, weights
    head = starts[1] if len(starts) > 1 and tokens[starts[0]] == SYSTEM else starts[0] if starts else 0
    user = CONTROLS.index("user")
    for start in starts:
        if start >= head and tokens[start] == user and head + len(tokens) - start <= width:
            cut = weights[:head] + weights[start:]
            return (tokens[:head] + tokens[start:], cut) if any(cut[1:]) else None
    return None
