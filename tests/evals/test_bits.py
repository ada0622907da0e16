"""Bits per byte against a closed form and against a calculation token by token."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch import Tensor

from liuli.errors import LiuliError
from liuli.evals.bits import Bits, bits_by_language, stream_bits, windows
from liuli.model import Transformer, qwen3
from liuli.text import Document, Tokenizer

TEXTS = ["The fox ran home. The fox was tired.", "狐狸跑回家。狐狸累了。", "A red fox and a café 🦊."]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 20, 320)


class Uniform(torch.nn.Module):
    """Knows nothing: every token is equally likely."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(vocab_size))

    def forward(self, tokens_BT: Tensor, documents_BT: Tensor) -> Tensor:
        return self.bias.expand(*tokens_BT.shape, -1)


def documents() -> list[Document]:
    return [Document(text, str(n), "test", "zh" if n == 1 else "en") for n, text in enumerate(TEXTS)]


def test_uniform_model_needs_log2_of_the_vocabulary_for_every_token(tokenizer: Tokenizer) -> None:
    V = tokenizer.vocab_size
    figures = bits_by_language(cast(Transformer, Uniform(V)), tokenizer, documents(), context=7)
    for language, indices in {"en": (0, 2), "zh": (1,), "all": (0, 1, 2)}.items():
        tokens = sum(len(tokenizer.encode(TEXTS[i])) for i in indices)
        size = sum(len(TEXTS[i].encode()) for i in indices)
        assert figures[language]["bytes"] == size  # the true UTF-8 bytes, each once
        assert figures[language]["tokens"] == tokens
        assert figures[language]["per_byte"] == pytest.approx(math.log2(V) * tokens / size, rel=1e-6)
    assert figures["en"]["ends"] == 1 and figures["zh"]["ends"] == 0
    with_end = math.log2(V) * (figures["en"]["tokens"] + 1) / figures["en"]["bytes"]
    assert figures["en"]["per_byte_with_ends"] == pytest.approx(with_end, rel=1e-6)


def test_batched_windows_equal_one_token_at_a_time(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Transformer(qwen3(tokenizer.vocab_size, 32, 2, context=16)).eval()
    stream = [i for text in TEXTS for i in (tokenizer.bos, *tokenizer.encode(text))]
    T, expected, ends = 16, 0.0, 0.0
    for place in range(1, len(stream)):
        begin = (place - 1) // T * T  # the window in which this token is predicted
        begin = max([begin, *(i for i in range(begin, place) if stream[i] == tokenizer.bos)])  # and its document
        with torch.inference_mode():
            logits_V = model.forward(torch.tensor([stream[begin:place]]))[0, -1].double()
        bits = float(torch.logsumexp(logits_V, 0) - logits_V[stream[place]]) / math.log(2)
        expected, ends = (expected, ends + bits) if stream[place] == tokenizer.bos else (expected + bits, ends)
    monkeypatch.setattr("liuli.evals.bits.LOGITS_AT_ONCE", 3 * T * tokenizer.vocab_size)  # several batches, one ragged
    got = stream_bits(model, stream, tokenizer.bytes_per_id, T, tokenizer.bos)
    assert got.bits == pytest.approx(expected, rel=1e-5)  # float32 logits
    assert got.end_bits == pytest.approx(ends, rel=1e-5)
    assert got.bytes == sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize("length", [0, 1, 2, 8, 9, 17])
def test_windows_predict_every_token_but_the_first_exactly_once(length: int) -> None:
    stream = list(range(length))
    assert [token for window in windows(stream, 8) for token in window[1:]] == stream[1:]


def test_out_of_time_leaves_whole_batches_out_and_says_what_it_rests_on(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liuli.evals.bits.LOGITS_AT_ONCE", 1)  # one window a batch
    model = cast(Transformer, Uniform(tokenizer.vocab_size))
    got = stream_bits(
        model, [tokenizer.bos, *tokenizer.encode(TEXTS[0])], tokenizer.bytes_per_id, 4, tokenizer.bos, seconds=0.0
    )
    assert got.tokens == 4
    assert got.bits == pytest.approx(4 * math.log2(tokenizer.vocab_size), rel=1e-6)


def test_no_text_is_an_error_and_no_figure(tokenizer: Tokenizer) -> None:
    with pytest.raises(LiuliError, match="no held-out text"):
        bits_by_language(cast(Transformer, Uniform(300)), tokenizer, [Document("", "0", "s", "en")], context=8)
    assert Bits().figures()["per_byte"] == 0.0
