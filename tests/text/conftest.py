"""A small tokenizer that all tests of this room share."""

from __future__ import annotations

import pytest

from liuli.text import Tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "What is 12 * 7? It is 84. What is 13 * 7? It is 91. Numbers like 2026 and 1,000,000 are cut in pairs.",
    "法国的首都是巴黎，德国的首都是柏林。我们今天去北京，明天去上海，后天回家。",
    "琉璃是一种玻璃。它很透明，可以看见里面的一切。",
    "def main(arguments: list[str]) -> int:\n    return len(arguments)\n",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, 400)
