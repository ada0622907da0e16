"""Promises of the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuli.errors import DamagedError, LiuliError, UsageError
from liuli.text import SPECIALS, Tokenizer
from liuli.text.corpus import bytes_per_token, count_tokens
from liuli.text.sources import Document
from liuli.text.tokenizer import byte_alphabet, split_pattern, spread_sample

from .conftest import TEXTS

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
HOSTILE = st.lists(st.one_of(st.sampled_from(SPECIALS), ANY_TEXT), max_size=6).map("".join)


@given(text=HOSTILE)
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_and_never_holds_a_control_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(i >= len(SPECIALS) for i in ids)
    assert b"".join(map(tokenizer.bytes_of, ids)) == text.encode()
    assert tokenizer.bytes_per_id[ids].sum() == len(text.encode())


@given(content=st.binary(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_bytes_read_as_text_come_back(tokenizer: Tokenizer, content: bytes) -> None:
    for text in (content.decode("latin-1"), content.decode("utf-8", "replace")):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(content.decode("utf-8", "surrogateescape"))) or not content


def test_half_a_surrogate_pair_is_encodable(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.encode_batch(["\udfff"])[0] == tokenizer.encode("\ufffd")


def test_ids_are_specials_then_bytes_then_merges(tokenizer: Tokenizer) -> None:
    assert [tokenizer.backend.id_to_token(i) for i in range(16)] == list(SPECIALS)
    assert SPECIALS[:10] == (
        "<|bos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>",
        "<|end|>", "<|think|>", "<|/think|>", "<|call|>", "<|pad|>",
    )  # fmt: skip
    named = (tokenizer.bos, tokenizer.system, tokenizer.user, tokenizer.assistant, tokenizer.tool)
    assert (*named, tokenizer.end, tokenizer.think, tokenizer.end_think, tokenizer.call) == tuple(range(9))
    assert tokenizer.stops == (tokenizer.end, tokenizer.bos)
    assert {tokenizer.bytes_of(i) for i in range(16, 272)} == {bytes([b]) for b in range(256)}
    assert not tokenizer.bytes_per_id[:16].any() and (tokenizer.bytes_per_id[272:] > 1).all()
    assert len(byte_alphabet()) == 256


def test_digits_come_in_pairs_and_han_runs_apart(tokenizer: Tokenizer) -> None:
    pieces = [piece for piece, _ in tokenizer.backend.pre_tokenizer.pre_tokenize_str("a12345 it's，我们abc")]
    to_bytes = byte_alphabet()
    assert [bytes(to_bytes[c] for c in p).decode() for p in pieces] == [
        "a", "12", "34", "5", " it", "'s", "，", "我们", "abc",
    ]  # fmt: skip
    single = Tokenizer.train(["12 12 12 12 34 34"], 300, digits=1)
    assert len(single.encode("1234")) == 4 and len(tokenizer.encode("12")) < len(single.encode("12"))
    assert "{1,1}" in split_pattern(1)


def test_training_is_deterministic_and_takes_any_amount_of_text(tokenizer: Tokenizer) -> None:
    again = Tokenizer.train(iter(TEXTS * 3), 400)
    assert again.backend.to_str() == tokenizer.backend.to_str()
    assert tokenizer.vocab_size == 400
    assert Tokenizer.train(["a"], 400).vocab_size == 272  # nothing to merge: smaller, but whole
    with pytest.raises(UsageError, match="too small"):
        Tokenizer.train(TEXTS, 271)
    with pytest.raises(LiuliError, match="no text"):
        Tokenizer.train(["", " "], 300)


def test_the_sample_for_training_is_spread_over_all_texts() -> None:
    texts = [f"{n:04d}" * 10 for n in range(1000)]  # 40,000 characters
    sample = spread_sample(texts, 4000)
    places = np.array([int(text[:4]) for text in sample])
    assert 4000 <= sum(map(len, sample)) <= 8000
    assert places[0] < 20 and places[-1] > 980 and np.diff(places).max() == np.diff(places).min()


def test_transformers_opens_it_with_equal_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))  # as in an exported model folder
    other = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, " a  b\n\n\tc ", "Ωμέγα नमस्ते 👩‍🚀 ﬁ é e\u0301", "x" * 50, "1234567"]
    assert [other(text)["input_ids"] for text in texts] == tokenizer.encode_batch(texts)
    assert [other.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts
    assert (other.bos_token_id, other.eos_token_id, other.pad_token_id) == (0, tokenizer.end, tokenizer.pad)
    assert len(other) == tokenizer.vocab_size


def test_what_transformers_saved_of_its_last_call_cuts_no_text_and_its_template_is_taken(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    other = AutoTokenizer.from_pretrained(tmp_path)
    other(TEXTS, truncation=True, max_length=4, padding=True)
    other.chat_template = "{{ messages[0]['content'] }}!"
    other.save_pretrained(tmp_path / "saved")
    loaded = Tokenizer.load(tmp_path / "saved")
    assert loaded.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS) and loaded.chat_template == other.chat_template
    settings = {"chat_template": [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Tokenizer.load(tmp_path).chat_template == "b"
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 5}')
    with pytest.raises(DamagedError, match="settings cannot be read"):
        Tokenizer.load(tmp_path)


def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.backend.to_str() == tokenizer.backend.to_str()
        assert loaded.chat_template == tokenizer.chat_template
        assert loaded.encode("<|end|>") == tokenizer.encode("<|end|>")


def test_a_damaged_or_foreign_tokenizer_is_one_clear_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(LiuliError, match="no tokenizer here"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    with pytest.raises(DamagedError, match="cannot be read"):
        Tokenizer.load(tmp_path)
    file.write_text(text.replace("<|user|>", "<|human|>"))
    with pytest.raises(LiuliError, match="control tokens"):
        Tokenizer.load(tmp_path)
    with pytest.raises(LiuliError, match="outside the vocabulary"):
        tokenizer.decode([400])


def test_bytes_per_token_are_reported_by_language(tokenizer: Tokenizer) -> None:
    documents = [Document("The dog, the dog.", language="en"), Document("法国的首都", language="zh")]
    figures = count_tokens(documents, tokenizer)
    assert figures["zh"] == {"documents": 1, "bytes": 15, "tokens": len(tokenizer.encode("法国的首都"))}
    ratios = bytes_per_token(figures)
    assert ratios["en"] == 17 / len(tokenizer.encode("The dog, the dog."))
    assert ratios["all"] == 32 / (figures["en"]["tokens"] + figures["zh"]["tokens"])
