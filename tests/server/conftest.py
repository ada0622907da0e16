"""Servers behind real sockets: a scripted model, and a tiny random one, which cannot speak, but what it says must hold
together."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
import torch

from liuli.model import Transformer, qwen3, save
from liuli.server.app import create_app
from liuli.text import Tokenizer
from tests.server.scripted import LiveServer, make_model

TEXT = 'hello world, how are you? 你好，世界！ {"city": "Paris", "days": 3, "expression": "12*7"}\n'


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose model is scripted."""
    with LiveServer(make_model(tmp_path_factory.mktemp("models") / "tiny")) as server:
        yield server


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The server; its `path` is the model's folder, `model`, its `desk` the one behind the API."""
    folder = tmp_path_factory.mktemp("random")
    tokenizer = Tokenizer.train([TEXT * 20], 320)
    tokenizer.save(folder / "tokenizer")
    torch.manual_seed(1)
    model = Transformer(qwen3(tokenizer.vocab_size, 32, 2, context=512))
    save(model, folder / "model", tokenizer_folder=folder / "tokenizer", provenance={"stage": "chat"})
    app = create_app(folder / "model")
    with LiveServer(folder / "model", app=app) as live:
        live.path, live.desk = folder / "model", app.state.desk
        yield live


@pytest.fixture(scope="session")
def real_client(real: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client
