"""LoRA adapters against PEFT: the same folder, the same logits; what is not the plain sum is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from liuli.engine import Model
from liuli.errors import LiuliError, UsageError
from liuli.model import Transformer, qwen3, racer, save
from liuli.model.adapters import PLAIN, adapters_of, base_of, merge, refuse_variants
from liuli.model.convert import export_tensors
from liuli.text import Tokenizer

peft = pytest.importorskip("peft", reason="the judge is not installed: pip install peft")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("adapted")
    tokenizer = Tokenizer.train(["a"], 272)
    tokenizer.save(tmp / "tokenizer")
    torch.manual_seed(0)
    model = Transformer(qwen3(tokenizer.vocab_size, 32, 2, context=48, heads=4, kv_heads=2, head_size=8))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    save(model, tmp / "model", tokenizer_folder=tmp / "tokenizer", provenance={"stage": "test"})
    return tmp / "model"


def adapt(folder: Path, name: str, **options: Any) -> Any:
    """PEFT's model with a random adapter, which is saved into the folder."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **options}
    model = peft.get_peft_model(base, peft.LoraConfig(**settings))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "lora_" in key:
                weight.copy_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder / "adapters" / name)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain", {}),
        ("rank-stabilised", {"use_rslora": True}),
        ("two", {"target_modules": ["q_proj", "down_proj"], "r": 2, "lora_alpha": 3}),
        ("patterns", {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 32, "layers.1.mlp.up_proj": 1}}),
        ("some-layers", {"layers_to_transform": [1]}),
    ],
)
def test_a_merged_adapter_gives_pefts_logits(folder: Path, name: str, options: dict[str, Any]) -> None:
    theirs = adapt(folder, name, **options)
    tokens = list(range(100, 130))
    with torch.no_grad():
        wanted_TV = theirs(torch.tensor([tokens])).logits[0]
    ours_TV = Model(folder / "adapters" / name, device="cpu").logits(tokens)
    assert (ours_TV - wanted_TV).abs().max() < 1e-4
    assert (Model(folder, device="cpu").logits(tokens) - wanted_TV).abs().max() > 0.05  # it did something
    assert adapters_of(folder)[name] == folder / "adapters" / name


def test_merged_and_beside_the_weights_an_adapter_does_the_same_in_float64(folder: Path) -> None:
    """Numbers of few bits, whose sums and products float32 holds whole: what is left is the arithmetic's own."""
    adapt(folder, "exact")
    file = folder / "adapters" / "exact" / "adapter_model.safetensors"
    parts = {name: (part * 64).round() / 64 for name, part in load_file(file).items()}
    save_file(parts, file, {"format": "pt"})
    model = Model(folder, device="cpu").transformer
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((weight * 1024).round() / 1024)
    base = {name: tensor.double() for name, tensor in export_tensors(model).items()}
    merge(model, file.parent)
    x = torch.randn(50, 100, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    adapted = 0
    for name, merged in export_tensors(model).items():
        A, B = (parts.get(f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight") for side in "AB")
        if A is None or B is None:
            assert torch.equal(merged.double(), base[name])
            continue
        adapted += 1
        x_ND = x[:, : merged.shape[1]]
        beside = x_ND @ base[name].T + 8 / 4 * ((x_ND @ A.double().T) @ B.double().T)
        torch.testing.assert_close(x_ND @ merged.double().T, beside, rtol=0, atol=1e-10)
        assert torch.linalg.matrix_rank(merged.double() - base[name]) <= 4
    assert adapted == 2 * len(LINEAR)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("kasa_config", {"beta": 0.1}),
        ("velora_config", {"num_groups": 2}),
        ("monteclora_config", {"num_samples": 4}),
        ("use_bdlora", {"nblocks": 2}),
        ("an_option_of_next_year", {"angle": 1.5}),
        ("use_something_new", True),
    ],
)
def test_an_adapter_with_an_option_that_is_not_known_to_be_plain_is_refused_by_its_name(
    tmp_path: Path, option: str, value: object
) -> None:
    config = {"peft_type": "LORA", "lora_alpha": 8, "bias": "none", "loftq_config": {}}
    refuse_variants(config | {option: None}, tmp_path)
    with pytest.raises(LiuliError, match=f"plain LoRA adapters; this one has {option}"):
        refuse_variants(config | {option: value}, tmp_path)


def test_every_option_of_peft_is_known_to_be_plain_or_refused_where_it_is_set(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "lora_alpha": 8}
    options = {part.name for part in dataclasses.fields(peft.LoraConfig)} - {"lora_alpha", "init_lora_weights"}
    assert {"kasa_config", "velora_config", "use_dora"} <= options
    for option in options - PLAIN:
        with pytest.raises(LiuliError, match=option):
            refuse_variants(config | {option: {"some": "setting"}}, tmp_path)


def test_an_adapter_that_is_not_the_plain_sum_or_another_models_is_refused(folder: Path, tmp_path: Path) -> None:
    adapt(folder, "good")
    good = folder / "adapters" / "good"
    config = json.loads((good / "adapter_config.json").read_text())
    changes = [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"peft_type": "IA3"}]
    changes += [{"init_lora_weights": "pissa"}, {"alora_invocation_tokens": [1]}]  # the base changed; not everywhere
    model = Model(folder, device="cpu").transformer
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for change in [*changes, {"lora_alpha": None}]:
        wrong = tmp_path / next(iter(change))
        wrong.mkdir()
        (wrong / "adapter_config.json").write_text(json.dumps({**config, **change}))
        (wrong / "adapter_model.safetensors").write_bytes((good / "adapter_model.safetensors").read_bytes())
        with pytest.raises(LiuliError, match="plain LoRA"):
            merge(model, wrong)
    for other in (qwen3(272, 48, 2, context=48), qwen3(272, 32, 1, context=48, heads=4, kv_heads=2, head_size=8)):
        with pytest.raises(LiuliError, match="does not fit"):
            merge(Transformer(other), good)
    with pytest.raises(LiuliError, match="does not fit"):
        merge(Transformer(racer(272, 64, 2, context=32)), good)
    (good / "adapter_model.safetensors").unlink()
    with pytest.raises(LiuliError, match="missing"):
        merge(model, good)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="no model folder"):
        base_of(tmp_path / "alone")
    assert base_of(folder) == folder
