"""LoRA adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors, merged when loaded.

An adapter NAME of a model lies in the model's folder as `adapters/NAME`; its path stands for the model with it. Format:
https://huggingface.co/docs/peft/developer_guides/checkpoint; the sum: LoRA, https://arxiv.org/abs/2106.09685, eq. 3.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from liuli.errors import LiuliError, UsageError
from liuli.files import read_json
from liuli.folder import read_tensors
from liuli.model.convert import BACK, rename
from liuli.model.transformer import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FOLDER = "adapters"  # in a model folder
# of PEFT's LoraConfig: options that leave the plain sum what it is, whatever they say
PLAIN = {
    *("peft_version", "base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core"),
    *("r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "lora_dropout", "qalora_group_size"),
    *("init_lora_weights", "eva_config", "loftq_config", "corda_config", "lora_ga_config", "runtime_config"),
}
BASE_KEPT = (True, False, None, "gaussian", "orthogonal", "eva")  # first weights that leave the base model as it is
_PART = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def adapters_of(model: Path) -> dict[str, Path]:
    """The adapters that lie in a model folder, by name."""
    return {file.parent.name: file.parent for file in sorted(model.glob(f"{FOLDER}/*/{CONFIG}"))}


def base_of(path: Path) -> Path:
    """The model folder that an adapter belongs to; the path itself if it is no adapter's."""
    if not (path / CONFIG).is_file():
        return path
    if path.resolve().parent.name != FOLDER:
        raise UsageError("This adapter lies in no model folder.", path, f"move it to MODEL/{FOLDER}/{path.name}")
    return path.resolve().parent.parent


@torch.no_grad()
def merge(model: Transformer, path: Path) -> None:
    """Add an adapter to a model's weights: W += alpha / r * B A, in float32.

    Raises LiuliError for what is no plain LoRA, or does not fit this model; then the model is as it was.
    """
    config = read_json(path / CONFIG)
    refuse_variants(config, path)
    if not (path / WEIGHTS).is_file():
        raise LiuliError(f"{WEIGHTS} is missing", path, "save the adapter as safetensors: PEFT does so by itself")
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in read_tensors([path / WEIGHTS]).items():
        found = _PART.fullmatch(name)
        if not found:
            raise LiuliError(
                f"{name} is no part of a LoRA that Liuli knows", path / WEIGHTS, "adapt linear layers only"
            )
        sides.setdefault(found["module"], {})[found["side"]] = tensor.float()
    weights = dict(model.named_parameters())
    steps = []
    for module, pair in sides.items():
        weight = weights.get(rename(f"{module}.weight", BACK))
        fits = weight is not None and len(pair) == 2 and (len(pair["B"]), pair["A"].shape[1]) == tuple(weight.shape)
        if weight is None or not fits or pair["B"].shape[1] != len(pair["A"]):
            raise LiuliError(
                f"the adapter's {module} does not fit this model", path / WEIGHTS, "use it with its own model"
            )
        steps.append((weight, scale(config, module, rank=len(pair["A"])) * (pair["B"] @ pair["A"])))
    for weight, step in steps:
        weight.copy_(weight.float() + step.to(weight.device))


def scale(config: dict[str, Any], module: str, rank: int) -> float:
    """What B A is multiplied with. alpha_pattern: of modules whose name ends so."""
    patterns = (config.get("alpha_pattern") or {}).items()
    alpha = next((value for end, value in patterns if re.fullmatch(rf"(.*\.)?({end})", module)), config["lora_alpha"])
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def refuse_variants(config: dict[str, Any], path: Path) -> None:
    """Raises LiuliError for what is not the plain sum: an option that is set and is none of PLAIN, whether or not Liuli
    has heard of it."""
    usual = {"peft_type": "LORA", "bias": "none"}
    used = [
        name
        for name, value in config.items()
        if name not in PLAIN and value not in (None, False, [], {}, usual.get(name))
    ]
    if config.get("init_lora_weights", True) not in BASE_KEPT:
        used.append(f"init_lora_weights={config['init_lora_weights']}, which changes the base")
    if used or not isinstance(config.get("lora_alpha"), int | float):
        what = f"Liuli merges plain LoRA adapters; this one has {', '.join(used) or 'no lora_alpha'}"
        raise LiuliError(what, path / CONFIG, "train it without, or merge it with PEFT and serve the merged folder")
