"""Other people's programs talk to the server as to any: LangChain, the `llm` command, lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from llm.cli import cli
from pydantic import BaseModel, ConfigDict

import liuli
from tests.server.scripted import LiveServer
from tests.server.test_real_model import own_logprobs


class Trip(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sunny: bool


@pytest.fixture(scope="module")
def chat(real: LiveServer) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{real.url}/v1",
        api_key="none",
        model="model",
        seed=3,
        max_tokens=60,
        stream_usage=True,
        max_retries=0,
    )


def test_langchain_invokes_and_streams_the_same(chat: ChatOpenAI) -> None:
    whole = chat.invoke("hello")
    parts = list(chat.stream("hello"))
    assert "".join(part.text for part in parts) == whole.text
    assert sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata) > 0


def test_langchain_gets_structured_output_and_calls(chat: ChatOpenAI) -> None:
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat.with_structured_output(Trip, method=method).invoke("hello"), Trip)


def test_langchain_embeds_with_token_lists_off(real: LiveServer) -> None:
    embeddings = OpenAIEmbeddings(
        base_url=f"{real.url}/v1", api_key="none", model="model", check_embedding_ctx_length=False
    )
    assert len(embeddings.embed_query("hello")) == 32


@pytest.mark.parametrize("option", [[], ["--no-stream"], ["--schema", "sunny bool"]])
def test_the_llm_command_answers(real: LiveServer, tmp_path: Path, option: list[str]) -> None:
    models = f"- model_id: liuli\n  model_name: model\n  api_base: {real.url}/v1\n  supports_schema: true\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    settings = ["-m", "liuli", "--no-log", "-o", "max_tokens", "30", "-o", "seed", "3", *option]
    environment = {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    done = CliRunner().invoke(cli, ["prompt", *settings, "hello"], env=environment)
    assert done.exit_code == 0, done.output
    assert done.output.strip()


def lm_eval_model(name: str, real: LiveServer, path: str, **more: Any) -> Any:
    from lm_eval.api.registry import get_model

    return get_model(name)(base_url=f"{real.url}/v1/{path}", model="model", max_retries=1, **more)


@pytest.mark.parametrize("backend", ["remote", "huggingface"])
def test_lm_evals_log_likelihoods_are_our_own(real: LiveServer, backend: str) -> None:
    from lm_eval.api.instance import Instance

    tokenizer = {} if backend == "remote" else {"tokenizer": str(real.path)}
    judge = lm_eval_model(
        "local-completions", real, "completions", tokenizer_backend=backend, max_length=512, batch_size=2, **tokenizer
    )
    pairs = [("hello", " world"), ("你好", "，世界！"), ("hello world, how", " are you?")]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    model = liuli.load(real.path)
    for (context, end), (told, greedy) in zip(pairs, judge.loglikelihood(requests), strict=True):
        before, whole = model.tokenizer.encode(context), model.tokenizer.encode(context + end)
        logprobs = own_logprobs(model, whole)[len(before) - 1 :]
        assert told == pytest.approx(sum(logprobs), abs=1e-3)
        best = torch.stack([model.logits(whole[:at])[-1] for at in range(len(before), len(whole))]).argmax(-1)
        assert greedy == (best.tolist() == whole[len(before) :])


def test_lm_eval_generates_by_chat_until(real: LiveServer) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.api_models import JsonChatStr

    judge = lm_eval_model("local-chat-completions", real, "chat/completions")
    asked = JsonChatStr('[{"role": "user", "content": "hello"}]')
    settings = {"until": ["\\n\\n"], "max_gen_toks": 12, "temperature": 0}
    told = judge.generate_until([Instance("generate_until", {}, (asked, settings), 0)])
    own = liuli.load(real.path).generate([{"role": "user", "content": "hello"}], temperature=0, max_tokens=12)
    assert told == [own.text]
