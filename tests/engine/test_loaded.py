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
