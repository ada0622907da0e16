"""Between our Transformer and a model folder. Renaming alone makes qwen3 and llama folders Hugging Face's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liuli.errors import LiuliError, UsageError
from liuli.files import new_folder, read_json, write_file, write_json
from liuli.folder import (
    CONFIG,
    TOKENIZER_FILES,
    WEIGHTS,
    check_shapes,
    read_model_folder,
    write_model_folder,
    write_tensors,
)
from liuli.model.config import ModelConfig
from liuli.model.transformer import Transformer
from liuli.text import Tokenizer
from liuli.text.chat import check_round_trip

# ours -> Hugging Face's; {} is the layer
NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "final_gain": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "blocks.{}.attention_gain": "model.layers.{}.input_layernorm.weight",
    "blocks.{}.feed_forward_gain": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.{}.attention.query.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blocks.{}.attention.key.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blocks.{}.attention.value.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blocks.{}.attention.output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blocks.{}.attention.query_gain": "model.layers.{}.self_attn.q_norm.weight",
    "blocks.{}.attention.key_gain": "model.layers.{}.self_attn.k_norm.weight",
    "blocks.{}.feed_forward.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blocks.{}.feed_forward.up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blocks.{}.feed_forward.down.weight": "model.layers.{}.mlp.down_proj.weight",
}
CLASSES = {"qwen3": "Qwen3", "llama": "Llama"}  # of transformers, by preset and model_type
LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


BACK = {theirs: ours for ours, theirs in NAMES.items()}


def rename(name: str, table: Mapping[str, str]) -> str:
    """The name in the other convention; a name that the table lacks stays."""
    layer = LAYER.search(name)
    pattern = LAYER.sub("{}", name, count=1) if layer else name
    return table.get(pattern, name).format(layer.group() if layer else "")


def export_tensors(model: Transformer) -> dict[str, Tensor]:
    """The weights under the names that the folder uses (float32, contiguous, on the CPU)."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.named_parameters()}
    names = NAMES if is_known_elsewhere(model.config) else {}
    return {rename(name, names): tensor for name, tensor in tensors.items()}


def is_known_elsewhere(config: ModelConfig) -> bool:
    """Whether transformers and vLLM have code for such a model."""
    return config.preset in CLASSES


def export_config(config: ModelConfig, special: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """config.json. special: bos_token_id, eos_token_id and the like, taken over as they are."""
    c = config
    if not is_known_elsewhere(c):
        return {"model_type": "liuli_racer"} | c.to_dict() | dict(special or {})
    if c.softcap or c.bigram_rows or c.value_layers:
        raise LiuliError(f"a {c.preset} model cannot hold softcap, bigram table or value embeddings", "model config")
    return {
        "architectures": [f"{CLASSES[c.preset]}ForCausalLM"],
        "model_type": c.preset,
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
        "intermediate_size": c.ff_width,
        "hidden_act": "silu",
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base},
        "tie_word_embeddings": c.tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "use_cache": True,
    } | dict(special or {})


def import_config(values: Mapping[str, Any], where: str | Path, scores: bool = False) -> ModelConfig:
    """Our config from a config.json of ours or of any Qwen3 or Llama model that uses no feature that we lack.

    scores: a reward model will do; else it is refused, for it has no head to write with.
    """
    try:
        return _imported(values, where, scores)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = f"this config.json describes no model: {type(error).__name__}, {error}"
        raise LiuliError(what, where, "use the config.json that came with these weights") from error


def _imported(values: Mapping[str, Any], where: str | Path, scores: bool) -> ModelConfig:
    if not scores and ("score_offsets" in values or "SequenceClassification" in str(values.get("architectures"))):
        raise LiuliError("this is a reward model: it scores, it does not write", where, "give the chat model")
    kind = values.get("model_type")
    if kind == "liuli_racer":
        return ModelConfig.from_dict(dict(values))
    if kind not in CLASSES:
        fix = "use a qwen3, llama or liuli_racer folder"
        raise LiuliError(f"model_type {kind!r} is not one that Liuli reads", where, fix)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    lacking = {
        "attention_bias": bool(values.get("attention_bias")),
        "mlp_bias": bool(values.get("mlp_bias")),
        "hidden_act": values.get("hidden_act", "silu") != "silu",
        "rope type": rope.get("rope_type", rope.get("type", "default")) != "default",
        "sliding window": bool(values.get("use_sliding_window")),
    }
    if any(lacking.values()):
        used = ", ".join(name for name, is_used in lacking.items() if is_used)
        raise LiuliError(f"this {CLASSES[kind]} model uses what Liuli has no code for: {used}", where)
    heads, width = int(values["num_attention_heads"]), int(values["hidden_size"])
    return ModelConfig(
        vocab_size=int(values["vocab_size"]),
        width=width,
        layers=int(values["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(values.get("num_key_value_heads", heads)),
        head_size=int(values.get("head_dim") or width // heads),
        ff_width=int(values["intermediate_size"]),
        context=int(values.get("max_position_embeddings", 2048)),
        preset=kind,
        rope_base=float(rope.get("rope_theta", values.get("rope_theta", 10_000.0))),
        norm_eps=values.get("rms_norm_eps", 1e-6),
        tied=values.get("tie_word_embeddings", False),
    )


def load(path: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Transformer:
    """The model in a folder, ready to run (eval mode).

    device: default is the CPU. dtype: of the weights; default float32. Raises LiuliError naming the tensor that is
    missing, left over or of a wrong shape, DamagedError when a checksum differs.
    """
    folder = read_model_folder(path, tokenizer=False)
    config = import_config(folder.config, folder.path)
    with torch.device("meta"):
        model = Transformer(config)
    fill(model, folder.tensors(device="cpu"), folder.path, dtype or torch.float32)
    model.set_rotary()  # the tables were left on meta
    return model.to(device or "cpu").eval()


def fill(model: Transformer, found: Mapping[str, Tensor], where: Path, dtype: torch.dtype = torch.float32) -> None:
    """Give a model the tensors of a folder, under that folder's names; LiuliError where they are not its own."""
    back = BACK if is_known_elsewhere(model.config) else {}
    found = {rename(name, back): tensor for name, tensor in found.items()}
    if model.config.tied:
        found.pop("head.weight", None)  # some writers store the tied matrix twice
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    check_shapes(expected, {name: tuple(tensor.shape) for name, tensor in found.items()}, where)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in found.items()}, assign=True)


def save(
    model: Transformer,
    path: str | Path,
    *,
    tokenizer_folder: str | Path,
    provenance: Mapping[str, Any],
    special: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> None:
    """Write a model folder: it appears whole or not at all. special: token ids for config.json."""
    write_model_folder(
        path,
        config=export_config(model.config, special),
        tensors=export_tensors(model),
        tokenizer_folder=tokenizer_folder,
        generation=dict(generation or {}) | dict(special or {}),
        provenance=dict(provenance),
        replace=replace,
    )


# --- other people's tools --------------------------------------------------------------------------------------------

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def export_folder(model: str | Path, out: str | Path, kind: str = "f32") -> None:
    """Write a model as a plain Hugging Face folder, without what only Liuli reads. kind: f32, f16 or bf16."""
    if kind not in DTYPES:
        raise UsageError(f"there is no number type {kind!r} in a folder", "--type", f"use one of {', '.join(DTYPES)}")
    folder = read_model_folder(model)
    if not is_known_elsewhere(import_config(folder.config, folder.path, scores=True)):
        raise LiuliError("transformers has no code for this model", folder.path, "train one with preset=qwen3")
    with new_folder(out) as stage:
        number = str(DTYPES[kind]).removeprefix("torch.")
        write_json(stage / CONFIG, {k: v for k, v in folder.config.items() if k != "dtype"} | {"torch_dtype": number})
        for name in (*TOKENIZER_FILES, "generation_config.json", "README.md"):
            if (folder.path / name).is_file():
                write_file(stage / name, (folder.path / name).read_bytes())
        write_tensors(stage / WEIGHTS, {name: tensor.to(DTYPES[kind]) for name, tensor in folder.tensors().items()})


def import_folder(source: str | Path, out: str | Path) -> None:
    """Make a model folder, float32 and checksummed, of a Hugging Face folder with a Qwen3 model and our tokenizer.

    Raises LiuliError for what Liuli has no code for, for a tokenizer without our control tokens, and for a chat
    template that cannot be used.
    """
    folder = read_model_folder(source)
    tokenizer, generation = Tokenizer.load(folder.path), folder.path / "generation_config.json"
    check_round_trip(tokenizer.chat_template)
    save(
        load(folder.path),
        out,
        tokenizer_folder=folder.path,
        provenance={"stage": "import", "parent": str(source)},
        special=tokenizer.special_ids,
        generation=read_json(generation) if generation.is_file() else None,
    )
