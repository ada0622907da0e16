"""A qwen3 model folder as one GGUF file, for llama.cpp and everything built on it.

In: a model folder, a number type. Out: the file, whole or not at all: weights, tokens, merges, chat template. The
`gguf` package writes it (pip install liuli[gguf]); names and keys are those of its architecture "qwen3".

llama.cpp cuts text before it merges, by a pattern that is compiled into it and that the file can only name. None of its
patterns is ours (text/tokenizer.py: Han apart, digits in twos), so the nearest is named, and some texts, mostly those
with long numbers, get other tokens than in training. Token ids are safe: `liuli serve --engine llamacpp` sends them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from liuli.errors import LiuliError, UsageError
from liuli.files import new_file
from liuli.folder import TOKENIZER, ModelFolder, read_model_folder
from liuli.model.config import ModelConfig
from liuli.model.convert import import_config, rename
from liuli.text import Tokenizer
from liuli.text.tokenizer import SPECIALS

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
BLOCK = 32  # weights that share a scale in q8_0 and q4_0; rows that are no multiple of it stay f16
PRE = "kimi-k2"  # the pattern whose tokens equal ours most often (docs/design.md)

# Hugging Face's names -> llama.cpp's; {} is the layer
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.layers.{}.input_layernorm.weight": "blk.{}.attn_norm.weight",
    "model.layers.{}.post_attention_layernorm.weight": "blk.{}.ffn_norm.weight",
    "model.layers.{}.self_attn.q_proj.weight": "blk.{}.attn_q.weight",
    "model.layers.{}.self_attn.k_proj.weight": "blk.{}.attn_k.weight",
    "model.layers.{}.self_attn.v_proj.weight": "blk.{}.attn_v.weight",
    "model.layers.{}.self_attn.o_proj.weight": "blk.{}.attn_output.weight",
    "model.layers.{}.self_attn.q_norm.weight": "blk.{}.attn_q_norm.weight",
    "model.layers.{}.self_attn.k_norm.weight": "blk.{}.attn_k_norm.weight",
    "model.layers.{}.mlp.gate_proj.weight": "blk.{}.ffn_gate.weight",
    "model.layers.{}.mlp.up_proj.weight": "blk.{}.ffn_up.weight",
    "model.layers.{}.mlp.down_proj.weight": "blk.{}.ffn_down.weight",
}


def export_gguf(model: str | Path, out: str | Path, kind: str = "q8_0") -> None:
    """Write the model of a folder as a GGUF file. kind: one of TYPES, of the matrices; gains stay f32.

    With q4_0 the embedding and the head are q8_0: their errors go straight into the result. Raises UsageError for an
    unknown type or without the package, LiuliError for a model that is no qwen3.
    """
    gguf = gguf_package()
    out = Path(out)
    if kind not in TYPES:
        raise UsageError(f"there is no number type {kind!r}", "--type", f"use one of {', '.join(TYPES)}")
    if out.exists():
        raise UsageError("This file exists already", out, "choose another name, or remove it")
    folder = read_model_folder(model)
    config = import_config(folder.config, folder.path)
    if config.preset != "qwen3":
        raise LiuliError(
            f"a {config.preset} model cannot be written as GGUF", folder.path, "train one with preset=qwen3"
        )
    with new_file(out) as draft:
        writer = gguf.GGUFWriter(draft, "qwen3")
        writer.add_file_type(getattr(gguf.LlamaFileType, "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, folder, config)
        _add_tokenizer(writer, gguf, folder, config.vocab_size)
        for name, tensor in folder.tensors().items():
            if not (config.tied and name == "lm_head.weight"):
                _add_tensor(writer, gguf, rename(name, NAMES), tensor, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def gguf_package() -> Any:
    """The `gguf` package. Raises UsageError that says how to get it."""
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise UsageError("GGUF files need the gguf package", "export", "pip install 'liuli[gguf]'") from error
    return gguf


def _add_shape(writer: Any, folder: ModelFolder, config: ModelConfig) -> None:
    c = config
    writer.add_name(folder.path.resolve().name)
    writer.add_block_count(c.layers)
    writer.add_context_length(c.context)
    writer.add_embedding_length(c.width)
    writer.add_feed_forward_length(c.ff_width)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_size)
    writer.add_value_length(c.head_size)
    writer.add_rope_dimension_count(c.head_size)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_vocab_size(c.vocab_size)


def _add_tokenizer(writer: Any, gguf: Any, folder: ModelFolder, vocab_size: int) -> None:
    """Tokens by id; rows of the embedding that no token has are filled with names that no text can hold."""
    tokenizer = Tokenizer.load(folder.path)
    model = json.loads((folder.path / TOKENIZER).read_text("utf-8"))["model"]
    spare = range(tokenizer.vocab_size, vocab_size)
    kinds = gguf.TokenType
    named = [tokenizer.backend.id_to_token(id) for id in range(tokenizer.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE)
    writer.add_token_list([*named, *(f"[PAD{id}]" for id in spare)])
    plain = tokenizer.vocab_size - len(SPECIALS)
    writer.add_token_types([kinds.CONTROL] * len(SPECIALS) + [kinds.NORMAL] * plain + [kinds.UNUSED] * len(spare))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(tokenizer.end)
    writer.add_eot_token_id(tokenizer.end)
    writer.add_pad_token_id(tokenizer.pad)
    writer.add_add_bos_token(False)  # the chat template writes it
    writer.add_chat_template(plain_template(tokenizer.chat_template))


def plain_template(template: str) -> str:
    """The chat template without the marks of what is trained, which only transformers knows."""
    return re.sub(r"[ \t]*{%-? *(end)?generation *-?%}\n?", "", template)


def _add_tensor(writer: Any, gguf: Any, name: str, tensor: Tensor, kind: str) -> None:
    values = tensor.to(torch.float32).numpy()
    if kind == "q4_0" and name in ("token_embd.weight", "output.weight"):
        kind = "q8_0"
    if kind.startswith("q") and values.shape[-1] % BLOCK:
        kind = "f16"
    if values.ndim == 1 or kind == "f32":
        writer.add_tensor(name, values)
    elif kind == "f16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        number = getattr(gguf.GGMLQuantizationType, kind.upper())
        writer.add_tensor(name, gguf.quants.quantize(values, number), raw_dtype=number)
