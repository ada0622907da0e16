"""`liuli.load`: the Python door of the design page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import liuli
from liuli.errors import UsageError
from liuli.model import save
from liuli.text.tokenizer import Tokenizer
from tests.engine.conftest import byte_tokenizer, make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    byte_tokenizer().save(place / "tokenizer")
    save(make_model("qwen3"), place / "chat", tokenizer_folder=place / "tokenizer", provenance={"stage": "sft"})
    return place / "chat"


def test_the_lines_of_the_design_page_work(folder: Path) -> None:
    model = liuli.load(folder, device="cpu")
    logits = model.logits([1, 2, 3])
    assert (tuple(logits.shape), logits.dtype) == ((3, 272), torch.float32)
    answer = model.generate([{"role": "user", "content": "Hi"}], temperature=0, max_tokens=6)
    again = model.generate([{"role": "user", "content": "Hi"}], temperature=0, max_tokens=6)
    assert answer == again
    assert len(answer.tokens) == len(answer.logprobs) <= 6
    assert answer.stopped_by in ("end", "length")
    assert model.tokenizer.decode(model.tokenizer.encode("琉璃")) == "琉璃"


@pytest.mark.parametrize(
    ("tokens", "what"),
    [([1, 272], "token 272 is outside"), ([-1], "token -1 is outside"), ([], "0 tokens"), ([1] * 49, "49 tokens")],
)
def test_logits_of_no_tokens_too_many_or_none_of_the_models_are_refused(
    folder: Path, tokens: list[int], what: str
) -> None:
    with pytest.raises(UsageError, match=f"{what}(?s:.*)logits(?s:.*)give"):
        liuli.load(folder, device="cpu").logits(tokens)


@pytest.mark.parametrize("how", [{"draft": "lookup"}, {"draft": "folder"}, {"weights": "int8"}, {"weights": "int4"}])
def test_ways_to_write_sooner_give_an_answer_and_drafts_the_same_one(folder: Path, how: dict[str, str]) -> None:
    how = {name: str(folder) if value == "folder" else value for name, value in how.items()}
    hello, greedy = [{"role": "user", "content": "Hi"}], {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
    model = liuli.load(folder, device="cpu", **how)
    answer = model.generate(hello, **greedy)
    assert len(answer.tokens) == 20
    if "draft" in how:
        assert answer.ids == liuli.load(folder, device="cpu").generate(hello, **greedy).ids


def test_a_draft_of_another_tokenizer_and_unknown_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    Tokenizer.train(["other words, other tokens"] * 9, 300).save(tmp_path / "tokenizer")
    other = make_model("qwen3", vocab_size=300)
    save(other, tmp_path / "other", tokenizer_folder=tmp_path / "tokenizer", provenance={"stage": "sft"})
    with pytest.raises(UsageError, match="another tokenizer"):
        liuli.load(folder, device="cpu", draft=str(tmp_path / "other"))
    with pytest.raises(UsageError, match="int3") as raised:
        liuli.load(folder, device="cpu", weights="int3")
    assert "int8 or int4" in str(raised.value.fix)


def test_a_wrong_setting_names_the_known_ones(folder: Path) -> None:
    with pytest.raises(UsageError, match="warmth") as raised:
        liuli.load(folder, device="cpu").generate([{"role": "user", "content": "Hi"}], warmth=1)
    assert "temperature" in str(raised.value.fix)


def test_importing_liuli_does_not_import_torch() -> None:
    code = "import sys, liuli; assert 'torch' not in sys.modules; liuli.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("device", ["toaster", "cuda:0:1", "meta"])
def test_a_device_that_is_not_here_is_named(folder: Path, device: str) -> None:
    with pytest.raises(UsageError, match=device) as raised:
        liuli.load(folder, device=device)
    assert "cpu" in str(raised.value.fix)
