"""Promises of packing and dealing: nothing lost unseen, no row without a target, the same rows for every world size."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuli.errors import DamagedError, LiuliError, UsageError
from liuli.text import Batch, Loader, Message, Rows, Tokenizer, pack_conversations, pack_documents, render
from liuli.text.corpus import make_rows
from liuli.text.pack import SHORTEST_TAIL, lay_out, plan_text
from liuli.text.rows import check_variety, fit_conversation
from liuli.text.sources import Document

BOS, PAD = 0, 9
LENGTHS = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 400)), min_size=1, max_size=60)


def documents_of(lengths: list[int]) -> list[list[int]]:
    """Documents whose tokens are all different, so that each can be followed into the rows."""
    numbers = iter(range(16, 1 << 16))
    return [[next(numbers) for _ in range(length)] for length in lengths]


def pack(documents: list[list[int]], T: int, **options: bool) -> Rows | None:
    """Rows of the documents, their numbers read into memory, or None if they do not fill one row."""
    with TemporaryDirectory() as folder:
        try:
            rows = pack_documents(documents, T, Path(folder) / "rows", **options)
        except LiuliError as error:
            assert "too short" in error.what
            return None
        return Rows(rows.folder, rows.T, np.array(rows.tokens), None, rows.info)


@given(lengths=LENGTHS, T=st.integers(2, 130))
@settings(max_examples=80, deadline=None)
def test_packed_text_is_the_text_less_what_is_reported_cropped(lengths: list[int], T: int) -> None:
    documents = documents_of(lengths)
    rows = pack(documents, T)
    if rows is None:
        assert sum(lengths) + len(lengths) < (T + 1) + T * 2 + SHORTEST_TAIL
        return
    assert (rows.tokens[:, 0] == BOS).all() and rows.tokens.shape == (len(rows), T + 1)
    counts = Counter(rows.tokens.ravel().tolist())
    del counts[BOS]
    assert max(counts.values()) == 1  # nothing twice
    assert sum(lengths) == len(counts) + rows.info.cropped  # and what is missing is reported
    owner = {token: (d, place) for d, tokens in enumerate(documents) for place, token in enumerate(tokens)}
    for row in rows.tokens.tolist():
        for here, following in pairwise(row):
            if here == BOS or following != BOS:
                continue
            d, place = owner[here]  # inside a row a document ends only where it truly ends
            assert place == len(documents[d]) - 1
        for here, following in pairwise(row[1:]):
            if BOS not in (here, following):
                assert owner[following] == (owner[here][0], owner[here][1] + 1)


def test_a_long_document_fills_rows_and_loses_nothing() -> None:
    rows = pack([list(range(16, 16 + 1000))], 100)
    assert rows is not None and len(rows) == 10 and rows.info.cropped == 0
    assert rows.tokens[:, 1:].ravel().tolist() == list(range(16, 1016))


def test_best_fit_takes_the_longest_that_fits_and_crops_least() -> None:
    rows = pack(documents_of([5, 3, 2, 6, 1]), 9)  # with bos: 6 4 3 7 2
    assert rows is not None
    assert [sorted(np.diff([*np.flatnonzero(row == BOS), 10]).tolist()) for row in rows.tokens] == [[3, 7], [4, 6]]
    assert rows.info.cropped == 1 and rows.info.pieces == 4


def test_a_single_place_left_takes_a_beginning_and_loses_nothing() -> None:
    rows = pack(documents_of([8, 5, 3]), 9)  # with bos: 9 6 4
    assert rows is not None and rows.info.cropped == 0
    assert rows.tokens[:, -1].tolist() == [BOS, 31]


def test_the_plan_is_global_and_the_same_every_time(tmp_path: Path) -> None:
    lengths = np.random.RandomState(0).randint(1, 300, 2000)
    documents = [np.random.RandomState(n).randint(16, 900, size) for n, size in enumerate(lengths)]
    first = pack_documents(iter(documents), 128, tmp_path / "a")
    second = pack_documents([list(d) for d in documents], 128, tmp_path / "b")
    assert (tmp_path / "a/tokens.bin").read_bytes() == (tmp_path / "b/tokens.bin").read_bytes()
    assert first.info == second.info and first.info.cropped < 0.001 * first.info.tokens
    plan = plan_text(np.asarray(lengths) + 1, 129)
    blocks = np.concatenate(list(lay_out(plan, 129, rows_at_once=7)))
    assert np.array_equal(blocks, np.concatenate(list(lay_out(plan, 129))))


def test_rows_are_as_narrow_as_the_vocabulary_allows(tmp_path: Path) -> None:
    documents = [[70_000 + n for n in range(300)]]
    assert pack_documents(documents, 64, tmp_path / "wide", vocab_size=100_000).tokens.dtype == np.uint32
    assert pack_documents([range(16, 300)], 64, tmp_path / "narrow").tokens.dtype == np.uint16
    with pytest.raises(LiuliError, match="does not fit"):
        pack_documents(documents, 64, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_an_empty_a_short_and_a_repeated_text_are_clear_errors(tokenizer: Tokenizer, tmp_path: Path) -> None:
    line = "The same line, over and over.\n"
    for documents, word in [
        ([], "empty"),
        ([Document("short")], "too short"),
        ([Document(line * 5000)], "repeats itself"),
        ([Document(line)] * 5000, "repeats itself"),
    ]:
        with pytest.raises(LiuliError, match=word):
            make_rows(documents, tokenizer, 64, tmp_path / "rows")
        assert not (tmp_path / "rows").exists()
    with pytest.raises(UsageError, match="too short"):
        pack_documents([[1, 2, 3]], 1, tmp_path / "rows")
    check_variety(np.arange(5000))
    check_variety(np.tile(np.arange(100), 49))  # a curriculum may say things often


def test_the_order_of_sources_does_not_decide_whether_a_text_repeats_itself() -> None:
    same, varied = np.tile(np.arange(100), 1000), np.arange(500_000)
    for tokens in ([same, varied], [varied, same]):
        check_variety(np.concatenate(tokens), most=100_000)
    with pytest.raises(LiuliError, match="repeats itself"):
        check_variety(np.tile(same, 6), most=100_000)


def test_a_context_longer_than_the_text_costs_no_memory() -> None:
    tracemalloc.start()
    assert plan_text(np.array([100]), 300_001).rows == 0
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_figures_by_language_are_in_the_index(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [Document("The dog. " * 9, language="en"), Document("法国的首都是巴黎。", language="zh")]
    info = make_rows(documents, tokenizer, 16, tmp_path / "rows").info
    assert info.languages["zh"]["bytes"] == 27 and info.bytes == 27 + 81
    assert info.languages["en"]["tokens"] == len(tokenizer.encode("The dog. " * 9))


# --- conversations ---------------------------------------------------------------------------------------------------


def chat(*sizes: int, system: bool = True, train_last: bool = True) -> list[Message]:
    """A system message, then turns of which each question and answer has so many letters (a token each)."""
    messages = [Message("system", "S")] if system else []
    for number, size in enumerate(sizes):
        last = number == len(sizes) - 1
        messages += [Message("user", "q" * size), Message("assistant", "a" * size, train=train_last or not last)]
    return messages


def test_conversations_are_packed_whole_with_padding_of_no_weight(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rendered = [render(chat(*sizes), tokenizer) for sizes in ([3], [9, 2], [1], [5, 5], [2])]
    rows = pack_conversations(rendered, 63, tmp_path / "rows")
    assert rows.weights is not None and rows.tokens.shape == rows.weights.shape
    found = []
    for tokens, weights in zip(rows.tokens.tolist(), rows.weights.tolist(), strict=True):
        text = tokens[: tokens.index(PAD)] if PAD in tokens else tokens
        assert set(tokens[len(text) :]) <= {PAD} and not any(weights[len(text) :])
        assert any(weights[1:])
        starts = [place for place, token in enumerate(text) if token == BOS]
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
            found.append((text[start:end], weights[start:end]))
    assert sorted(found) == sorted((r.tokens, r.weights) for r in rendered)
    assert rows.info.padding == int((rows.tokens == PAD).sum()) and rows.info.targets == int(rows.weights.sum())


def test_a_long_conversation_loses_its_front_turns_never_its_last_answer(tokenizer: Tokenizer) -> None:
    messages = chat(7, 6, 5)
    whole = render(messages, tokenizer)
    for width in range(1, len(whole.tokens) + 1):
        fitted = fit_conversation(whole, width)
        best = [m for m in (messages, messages[:1] + messages[3:], messages[:1] + messages[5:])]
        fits = [r for r in (render(m, tokenizer) for m in best) if len(r.tokens) <= width]
        assert fitted == ((fits[0].tokens, fits[0].weights) if fits else None)


def test_conversations_without_a_target_are_left_out_and_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    good, silent = render(chat(2), tokenizer), render(chat(2)[:-1], tokenizer)
    muted, long = render(chat(2, train_last=False), tokenizer), render(chat(50), tokenizer)
    only_front = render(chat(20, 15, train_last=False), tokenizer)  # its target goes with its front turns
    rows = pack_conversations([good, silent, muted, long, only_front], 63, tmp_path / "rows")
    assert (rows.info.pieces, rows.info.left_out, rows.info.shortened) == (1, 4, 0)
    with pytest.raises(LiuliError, match="no conversation can be trained on: 2 read"):
        pack_conversations([silent, long], 63, tmp_path / "none")
    assert not (tmp_path / "none").exists()


# --- reading and dealing ---------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return pack_documents([range(16 + n, 316 + n) for n in range(20)], 15, tmp_path / "rows")


def deal(rows: Rows, batches: int, position: int = 0, **options: int) -> list[Batch]:
    loader = Loader(rows, 6, seed=3, position=position, **options)
    return [next(loader) for _ in range(batches)]


def test_any_world_size_deals_the_same_rows_in_the_same_order(rows: Rows) -> None:
    batches = len(rows) // 6 * 2 + 3  # over the end of an epoch
    alone = deal(rows, batches)
    for world in (2, 3, 6):
        shares = [deal(rows, batches, rank=rank, world=world) for rank in range(world)]
        for number, batch in enumerate(alone):
            together = np.concatenate([share[number].tokens_BT for share in shares])
            assert np.array_equal(together, batch.tokens_BT)
            assert {share[number].position for share in shares} == {batch.position}


def test_one_integer_resumes_anywhere(rows: Rows) -> None:
    batches = len(rows) // 6 * 2 + 3
    whole = deal(rows, batches)
    for number in range(batches - 1):
        resumed = deal(rows, batches - number - 1, position=whole[number].position)
        assert all(np.array_equal(a.tokens_BT, b.tokens_BT) for a, b in zip(resumed, whole[number + 1 :], strict=True))


def test_every_epoch_deals_every_row_once_in_a_new_order(rows: Rows) -> None:
    loader = Loader(rows, len(rows), seed=3)
    first, second = next(loader).tokens_BT, next(loader).tokens_BT
    assert not np.array_equal(first, second)
    for dealt in (first, second):
        assert sorted(map(tuple, dealt.tolist())) == sorted(map(tuple, rows.tokens[:, :-1].tolist()))
    assert not np.array_equal(first, next(Loader(rows, len(rows), seed=4)).tokens_BT)


def test_targets_are_the_next_tokens_and_weights_are_theirs(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rendered = render(chat(4), tokenizer)
    rows = pack_conversations([rendered], 39, tmp_path / "rows")
    batch = next(Loader(rows, 1, seed=0))
    size = len(rendered.tokens)
    assert batch.tokens_BT[0, :size].tolist() == rendered.tokens
    assert batch.targets_BT[0, : size - 1].tolist() == rendered.tokens[1:]
    assert (
        batch.weights_BT[0, : size - 1].tolist() == rendered.weights[1:] and not batch.weights_BT[0, size - 1 :].any()
    )
    assert (batch.tokens_BT.dtype, batch.targets_BT.dtype, batch.weights_BT.dtype) == (np.int64, np.int64, np.float32)


def test_the_order_of_rows_never_changes_between_versions(tmp_path: Path) -> None:
    rows = pack_documents([range(16, 16 + 15 * 8)], 15, tmp_path / "rows")
    dealt = next(Loader(rows, 8, seed=7)).tokens_BT[:, 1]
    assert ((dealt - 16) // 15).tolist() == [1, 7, 5, 6, 4, 3, 2, 0]


def test_a_loader_that_cannot_be_shared_is_an_error(rows: Rows) -> None:
    for options in ({"world": 4}, {"rank": 2, "world": 2}):
        with pytest.raises(UsageError):
            Loader(rows, 6, seed=0, **options)
    for share in (0.05, 0.95):  # none of six rows, and all of them
        with pytest.raises(UsageError, match="a share of"):
            Loader(rows, 6, seed=0, replay=rows, share=share)


def test_damaged_rows_are_noticed(rows: Rows) -> None:
    with pytest.raises(LiuliError, match="no rows"):
        Rows.open(rows.folder.parent)
    file = rows.folder / "tokens.bin"
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedError, match=r"tokens\.bin"):
        Rows.open(rows.folder)
    file.write_bytes(content[:100])
    with pytest.raises(DamagedError):
        Rows.open(rows.folder, verify=False)
