"""Other people's programs talk to the server as to any: LangChain, the `llm` command, lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from click.testing import CliRunner
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from llm.cli import cli
from pydantic import BaseModel, ConfigDict

import liuli
from liuli.cli import app
from liuli.evals.skills import Item, ask
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


def lm_eval_scores(real: LiveServer, name: str, path: str, docs: list[dict[str, str]], **task: Any) -> dict[str, Any]:
    """What lm-eval says of the model on these documents, by a task of its own kind."""
    import lm_eval
    from datasets import Dataset, DatasetDict
    from lm_eval.tasks import TaskManager

    task |= {"custom_dataset": lambda **_: DatasetDict(test=Dataset.from_list(docs)), "test_split": "test"}
    found = lm_eval.simple_evaluate(
        model=name,
        model_args={
            "base_url": f"{real.url}/v1/{path}",
            "model": "model",
            "max_retries": 1,
            "tokenizer_backend": "remote" if "chat" not in name else None,
            "max_length": 512,
            "custom_prefix_token_id": 0,  # ours is 0, which it takes for none
        },
        tasks=[{"task": "ours", **task}],
        task_manager=TaskManager(include_defaults=False),  # the thousands of its own tasks take 20 s to look through
        apply_chat_template="chat" in name,
        bootstrap_iters=0,
        log_samples=False,
    )
    assert found is not None
    scores: dict[str, Any] = found["results"]["ours"]
    return scores


def test_lm_eval_reads_a_text_with_the_bits_per_byte_of_liuli_eval(real: LiveServer, tmp_path: Path) -> None:
    texts = ["hello world, how are you?", "你好，世界！", "12*7, how?"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = ["eval", str(real.path), "--text", str(tmp_path / "texts.jsonl"), "--seconds", "5", "--json"]
    done = CliRunner().invoke(typer.main.get_command(app), command)
    assert done.exit_code == 0, done.output
    ours = json.loads(done.stdout)["bits"]["all"]["per_byte"]
    scores = lm_eval_scores(
        *(real, "local-completions", "completions", [{"text": text} for text in texts]),
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )
    assert scores["bits_per_byte,none"] == pytest.approx(ours, rel=1e-4)


def test_lm_eval_finds_as_many_answers_right_as_liuli_eval(real: LiveServer) -> None:
    """The model speaks at random; what it says to every other question is made the right answer."""
    engine = liuli.load(real.path).engine
    items: list[Item] = [
        {
            "messages": [{"role": "user", "content": f"hello {number}"}],
            "check": "exact",
            "accept": ["no"],
            "answer": "no",
            **{"skill": "ours", "language": "en", "split": "names"},
        }
        for number in range(6)
    ]
    for item, result in zip(items[::2], ask(engine, items[::2], 12), strict=True):
        item["accept"] = [result.said[-1]["content"]]
    ours = [result.right for result in ask(engine, items, 12)]
    assert ours == [True, False] * 3
    scores = lm_eval_scores(
        *(real, "local-chat-completions", "chat/completions"),
        [{"question": item["messages"][0]["content"], "answer": item["accept"][0]} for item in items],
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": [], "max_gen_toks": 12, "temperature": 0},
        metric_list=[{"metric": "exact_match", "ignore_case": True}],
    )
    assert scores["exact_match,none"] == sum(ours) / len(ours)
