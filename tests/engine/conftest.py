"""A tokenizer of bytes alone, and tiny random models of every preset."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from liuli.engine import Engine, KeyValueCache
from liuli.model import Transformer, qwen3, racer
from liuli.text.tokenizer import SMALLEST, Tokenizer


@functools.cache
def byte_tokenizer() -> Tokenizer:
    """The smallest vocabulary there is: ids 0 to 15 are special, 16 to 271 the bytes."""
    return Tokenizer.train(["a"], SMALLEST)


def make_model(
    preset: str, context: int = 48, seed: int = 0, kv_heads: int = 2, vocab_size: int = SMALLEST, layers: int = 3
) -> Transformer:
    """A random model whose every weight differs from its start value, so that no part is silently zero."""
    torch.manual_seed(seed)
    sizes = {"context": context, "head_size": 8, "heads": 4, "kv_heads": kv_heads}
    config = (racer if preset == "racer" else qwen3)(vocab_size, 32, layers, **sizes)
    model = Transformer(replace(config, preset=preset))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model.eval()


@pytest.fixture(params=["qwen3", "racer"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(make_model(request.param), byte_tokenizer())


class ScriptedModel:
    """Stands in for a Transformer: `answer(tokens so far)` names the next token. Keys are the tokens themselves, so
    what it sees of the past is what the cache gives back."""

    def __init__(self, answer: Callable[[list[int]], int], context: int = 256) -> None:
        self.config = SimpleNamespace(vocab_size=SMALLEST, context=context, layers=1, kv_heads=1, head_size=1)
        self.embedding = SimpleNamespace(weight=torch.empty(0))
        self.dtype, self.training, self.answer = torch.float32, False, answer
        self.fed: list[int] = []  # rows of each forward

    def parameters(self) -> tuple[torch.Tensor, ...]:
        return ()

    def hidden(self, tokens_BT: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
        self.fed.append(len(tokens_BT))
        keys_BSKE, _ = cache.extend(0, *[tokens_BT[..., None, None].float()] * 2)
        seen = cache.mask_BTS.expand(*tokens_BT.shape, -1)
        rows = [
            [self.answer(row[mask, 0, 0].int().tolist()) for mask in masks]
            for row, masks in zip(keys_BSKE, seen, strict=True)
        ]
        return torch.tensor(rows)

    def __call__(self, tokens_BT: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
        return self.logits(self.hidden(tokens_BT, cache))

    def logits(self, next_B: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(next_B, self.config.vocab_size) * 20.0


def scripted(answers: dict[str, list[int]], context: int = 256, rows: int = 64) -> Engine:
    """An engine that answers a prompt by what was said last: answers maps the end of the prompt's text to tokens."""
    tokenizer = byte_tokenizer()

    def answer(tokens: list[int]) -> int:
        begin = (
            max(at for at, token in enumerate(tokens) if token == tokenizer.assistant) + 1
            if (tokenizer.assistant in tokens)
            else 0
        )
        asked = tokenizer.decode(tokens[:begin], specials=False)
        script = next((ids for text, ids in answers.items() if asked.endswith(text)), [tokenizer.end])
        written = len(tokens) - begin
        return script[written] if written < len(script) else tokenizer.end

    return Engine(cast(Transformer, ScriptedModel(answer, context)), tokenizer, rows=rows)
