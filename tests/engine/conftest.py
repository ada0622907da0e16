"""A byte tokenizer with the house's special ids, and tiny random models of both presets."""

from __future__ import annotations

import pytest
import torch

from liuli.engine import Engine
from liuli.model import Transformer, qwen3, racer

SPECIALS = 16


class ByteTokenizer:
    """Ids 0..15 are control tokens, 16 + b is byte b."""

    vocab_size = SPECIALS + 256
    bos, system, user, assistant, tool, end, think, end_think, call, pad = range(10)
    stops = (5, 0)
    bytes_per_id = [0] * SPECIALS + [1] * 256

    def bytes_of(self, id: int) -> bytes:
        return bytes([id - SPECIALS]) if id >= SPECIALS else b""

    def encode(self, text: str) -> list[int]:
        return [SPECIALS + byte for byte in text.encode()]


def make_model(preset: str, context: int = 48, seed: int = 0, kv_heads: int = 2) -> Transformer:
    """A random model whose every weight differs from its start value, so that no part is silently zero."""
    torch.manual_seed(seed)
    make = {"qwen3": qwen3, "racer": racer}[preset]
    model = Transformer(make(ByteTokenizer.vocab_size, 32, 3, context=context, head_size=8, heads=4, kv_heads=kv_heads))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model.eval()


@pytest.fixture(params=["qwen3", "racer"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(make_model(request.param), ByteTokenizer())
