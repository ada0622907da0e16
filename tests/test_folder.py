"""folder.py: a model folder is whole, says where it came from, opens elsewhere, and every way to be wrong is named."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from liuli.errors import DamagedError, LiuliError, UsageError
from liuli.files import folder_hash
from liuli.folder import check_shapes, model_card, read_model_folder, write_model_folder, write_tensors

CONFIG: dict[str, Any] = {"model_type": "qwen3", "vocab_size": 300, "hidden_size": 8}
TENSORS = {"model.embed_tokens.weight": torch.arange(2400).reshape(300, 8).float(), "model.norm.weight": torch.ones(8)}


def write_tokenizer(folder: Path, tokens: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    added = [{"id": 0, "content": "<|bos|>", "special": True}]
    vocabulary = {f"t{number}": number for number in range(1, tokens)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model_folder(
        tmp_path / "model",
        config=CONFIG,
        tensors=TENSORS,
        tokenizer_folder=write_tokenizer(tmp_path / "tokenizer", 300),
        generation={"temperature": 0.7},
        provenance={"stage": "pretrain", "figures": {"bpb": 1.25}, "tokens": 1000, "seed": 0},
    )
    return tmp_path / "model"


@pytest.fixture
def foreign(model: Path, tmp_path: Path) -> Path:
    """The folder as another tool would have written it: no manifest, no provenance."""
    shutil.copytree(model, tmp_path / "foreign")
    for name in ("manifest.json", "liuli.json"):
        (tmp_path / "foreign" / name).unlink()
    return tmp_path / "foreign"


def test_what_is_written_is_read(model: Path) -> None:
    folder = read_model_folder(model)
    assert folder.config == CONFIG
    read = folder.tensors()
    assert read.keys() == TENSORS.keys() and all(torch.equal(read[name], TENSORS[name]) for name in read)
    assert set(folder.provenance) >= {
        "stage",
        "parent",
        "parent_hash",
        "data",
        "options",
        "figures",
        "versions",
        "seed",
    }
    # an installed package need not say for which GPU it was built: 2.13.0 and 2.13.0+cu130
    assert folder.provenance["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {path.name for path in model.iterdir()} == {
        *("config.json", "generation_config.json", "liuli.json", "manifest.json", "model.safetensors"),
        *("README.md", "tokenizer.json", "tokenizer_config.json"),
    }


def test_the_parent_is_recorded_with_its_hash(model: Path, tmp_path: Path) -> None:
    parts: dict[str, Any] = {"config": CONFIG, "tensors": TENSORS, "tokenizer_folder": model, "generation": {}}
    write_model_folder(tmp_path / "chat", provenance={"stage": "sft", "parent": str(model)}, **parts)
    assert read_model_folder(tmp_path / "chat").provenance["parent_hash"] == folder_hash(model)


def test_a_folder_made_elsewhere_opens_without_a_manifest(foreign: Path) -> None:
    folder = read_model_folder(foreign)
    assert folder.provenance == {} and folder.tensors().keys() == TENSORS.keys()


def test_transformers_reads_our_folder_and_we_read_its_own(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    theirs = Qwen3ForCausalLM(Qwen3Config(vocab_size=300, head_dim=8, intermediate_size=32, **sizes))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()  # in several files
    read = read_model_folder(tmp_path / "theirs", tokenizer=False)
    parts: dict[str, Any] = {"tokenizer_folder": None, "generation": {}, "provenance": {}}
    write_model_folder(tmp_path / "ours", config=read.config, tensors=read.tensors(), **parts)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in theirs.state_dict().items())


def test_tensors_of_every_kind_come_back_in_every_bit(tmp_path: Path) -> None:
    tensors = {
        **{f"{dtype}": torch.randint(0, 2, (3, 5)).to(dtype) for dtype in (torch.bool, torch.uint8, torch.int64)},
        **{f"{dtype}": torch.randn(7).to(dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16)},
        "scalar": torch.tensor(-0.0),
        "empty": torch.zeros(0, 4),
        "transposed": torch.randn(4, 6).T,
        "琉璃": torch.tensor([float("nan"), float("inf")]),
    }
    write_tensors(tmp_path / "a.safetensors", tensors)
    write_tensors(tmp_path / "b.safetensors", dict(reversed(tensors.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    read = load_file(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name].nan_to_num(9), tensor.nan_to_num(9))


def test_a_flipped_byte_anywhere_is_noticed_by_file(model: Path) -> None:
    draw = random.Random(0)
    for file in sorted(model.iterdir()):
        good = file.read_bytes()
        for at in {0, len(good) - 1, *(draw.randrange(len(good)) for _ in range(30))}:
            file.write_bytes(good[:at] + bytes([good[at] ^ (1 << draw.randrange(8))]) + good[at + 1 :])
            with pytest.raises(DamagedError, match=file.name):
                read_model_folder(model)
        for content in (good[: len(good) // 2], b""):
            file.write_bytes(content)
            with pytest.raises(DamagedError, match=file.name):
                read_model_folder(model)
        file.unlink()
        with pytest.raises(DamagedError, match=f"{file.name} is missing"):
            read_model_folder(model)
        file.write_bytes(good)
    read_model_folder(model)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_made_elsewhere_that_lacks_a_file_is_named(foreign: Path, name: str) -> None:
    (foreign / name).unlink()
    with pytest.raises(LiuliError, match=f"{name} is missing"):
        read_model_folder(foreign)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_config_that_is_no_json_object_is_named(foreign: Path, content: bytes) -> None:
    (foreign / "config.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"config\.json"):
        read_model_folder(foreign)


@pytest.mark.parametrize("name", ["vocab_size", "max_position_embeddings", "context"])
@pytest.mark.parametrize("value", ["many", [300], None, 3.5])
def test_a_size_that_is_no_number_is_named(foreign: Path, name: str, value: object) -> None:
    (foreign / "config.json").write_text(json.dumps(CONFIG | {name: value}))
    with pytest.raises(LiuliError, match=rf"{name} = .* is no whole number[\s\S]*config\.json"):
        read_model_folder(foreign)


@pytest.mark.parametrize("index", [{"weight_map": ["model.safetensors"]}, {}], ids=["a list", "nothing"])
def test_an_index_of_weights_that_names_no_files_is_named(foreign: Path, index: dict[str, Any]) -> None:
    (foreign / "model.safetensors").rename(foreign / "model-00001-of-00001.safetensors")
    (foreign / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DamagedError, match=r"model\.safetensors\.index\.json names no files"):
        read_model_folder(foreign)


def test_a_truncated_weight_file_made_elsewhere_is_named(foreign: Path) -> None:
    for size in (0, 7, 100, 2000):
        weights = (foreign / "model.safetensors").read_bytes()
        (foreign / "model.safetensors").write_bytes(weights[:size])
        with pytest.raises(DamagedError, match=r"model\.safetensors is damaged"):
            read_model_folder(foreign).tensors()
        (foreign / "model.safetensors").write_bytes(weights)


def test_a_tokenizer_with_more_tokens_than_the_model_does_not_match(foreign: Path) -> None:
    write_tokenizer(foreign, 301)
    with pytest.raises(LiuliError, match="does not match the model: it has 301 tokens, the model 300"):
        read_model_folder(foreign)


def test_what_is_no_model_folder_is_a_usage_error_that_says_what_it_is(model: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text("{}")
    wrong = {
        tmp_path / "nowhere": "There is no such model folder",
        model / "config.json": "this is a file",
        tmp_path: "This is not a model folder",
        tmp_path / "run": "This is a run",
    }
    for path, message in wrong.items():
        with pytest.raises(UsageError, match=message):
            read_model_folder(path)


def test_an_unknown_kind_of_model_is_named_with_the_known_ones(foreign: Path) -> None:
    (foreign / "config.json").write_text(json.dumps(CONFIG | {"model_type": "mamba"}))
    with pytest.raises(LiuliError, match=r"'mamba'[\s\S]*qwen3, llama and liuli_racer"):
        read_model_folder(foreign)


def test_pickled_weights_are_never_opened(foreign: Path) -> None:
    (foreign / "model.safetensors").rename(foreign / "pytorch_model.bin")
    with pytest.raises(LiuliError, match=r"pytorch_model\.bin can run code"):
        read_model_folder(foreign)


def test_wrong_shapes_name_the_tensor_what_was_expected_and_what_is_there() -> None:
    expected = {"a": (2, 3), "b": (4,), "c": ()}
    check_shapes(expected, {"a": (2, 3), "b": (4,), "c": ()})
    with pytest.raises(LiuliError, match=r"tensor a has shape \(3, 2\), the config asks for \(2, 3\)"):
        check_shapes(expected, {"a": (3, 2), "b": (4,), "c": ()})
    with pytest.raises(LiuliError, match=r"tensor b is missing \(and 2 more\)"):
        check_shapes(expected, {"a": (3, 2), "c": (), "d": (1,)})


def test_the_model_card_tells_both_languages_how_to_open_it_and_no_private_path() -> None:
    card = model_card(
        "chat", CONFIG, {"stage": "sft", "parent": "/home/someone/runs/pretrain", "figures": {"bpb": 1.2}}
    )
    for part in ("stage `sft`", "`pretrain`", "| bpb | 1.2 |", "liuli chat .", "AutoModelForCausalLM", "用琉璃"):
        assert part in card
    assert "/home/someone" not in card
    assert "AutoModelForCausalLM" not in model_card("chat", {"model_type": "liuli_racer"}, {})
