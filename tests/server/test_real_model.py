"""The real engine behind the API: a random model cannot speak, but its answers must hold together."""

from __future__ import annotations

import math
from collections.abc import Iterator

import openai
import pytest
import torch

from liuli.model import Transformer, qwen3, save
from liuli.server.app import create_app
from liuli.text import Tokenizer
from tests.server.scripted import LiveServer

HI = [{"role": "user", "content": "你好 hello 7"}]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("random")
    tokenizer = Tokenizer.train(["hello world, how are you? 你好，世界！" * 20], 300)
    tokenizer.save(folder / "tokenizer")
    torch.manual_seed(1)
    model = Transformer(qwen3(tokenizer.vocab_size, 32, 2, context=64))
    save(model, folder / "model", tokenizer_folder=folder / "tokenizer", provenance={"stage": "chat"})
    with LiveServer(folder / "model", app=create_app(folder / "model")) as live:
        yield openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def test_stream_and_whole_answer_are_the_same_and_end_at_the_context(client: openai.OpenAI) -> None:
    asked = {"model": "model", "messages": HI, "seed": 3, "temperature": 1.3, "logprobs": True, "top_logprobs": 5}
    whole = client.chat.completions.create(**asked)
    parts = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    choice = whole.choices[0]
    assert choice.message.content == "".join(part.delta.content or "" for part in parts)
    assert choice.finish_reason == parts[-1].finish_reason
    tokens = choice.logprobs.content
    assert [token.logprob for token in tokens] == [
        t.logprob for part in parts if part.logprobs for t in part.logprobs.content
    ]
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 5
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1 + 1e-6
    assert whole.usage.total_tokens <= 64 + 1  # nothing is computed after the last token


def test_the_bytes_of_all_tokens_are_the_answer(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(model="model", messages=HI, seed=5, logprobs=True, max_tokens=30).choices[0]
    said = b"".join(bytes(token.bytes) for token in choice.logprobs.content if not token.token.startswith("<|"))
    assert choice.message.content in (said.decode(errors="replace"), said.decode(errors="ignore"))


def test_a_seed_gives_the_same_answer_again(client: openai.OpenAI) -> None:
    def answer(seed: int) -> str:
        return (
            client.chat.completions.create(model="model", messages=HI, seed=seed, max_tokens=20)
            .choices[0]
            .message.content
        )

    assert answer(1) == answer(1) != answer(2)


def test_a_conversation_too_long_for_the_model_is_refused(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "hello world, " * 60}]
    with pytest.raises(openai.BadRequestError, match="at most 64") as error:
        client.chat.completions.create(model="model", messages=long)
    assert error.value.code == "context_length_exceeded"
