"""What a model is made of: sizes, preset, and what they cost in parameters and FLOPs.

No torch here: a plan can be drawn up before torch is loaded.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from liuli.errors import LiuliError

PRESETS = ("qwen3", "llama", "racer")  # llama: qwen3 without the norm over queries and keys (arXiv 2302.13971)
_KINDS = {"int": int, "float": int | float, "bool": bool, "str": str, "tuple[int, ...]": tuple}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a Transformer. Widths are numbers of channels, `context` is in tokens."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ff_width: int
    context: int = 256
    preset: str = "qwen3"
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    tied: bool = True
    dropout: float = 0.0
    softcap: float = 0.0  # logits become softcap * tanh(logits / softcap); 0 switches it off
    bigram_rows: int = 0  # rows of the hashed bigram table (racer); 0: no table
    value_layers: tuple[int, ...] = ()  # layers that own a value-embedding table (racer)

    def __post_init__(self) -> None:
        for part in fields(self):
            if not isinstance(value := getattr(self, part.name), _KINDS[str(part.type)]):
                raise TypeError(f"{part.name} = {value!r} is not {part.type}")
        if self.preset not in PRESETS:
            raise LiuliError(f"unknown preset {self.preset!r}", "model config", f"use one of {', '.join(PRESETS)}")
        if min(self.heads, self.kv_heads) < 1 or self.heads % self.kv_heads:
            raise LiuliError(
                f"{self.heads} heads cannot share {self.kv_heads} key/value heads",
                "model config",
                "choose kv_heads that divides heads",
            )
        if self.head_size % 2:
            raise LiuliError(f"head_size {self.head_size} is odd", "model config", "RoPE turns pairs: use an even size")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"value_layers": list(self.value_layers)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ModelConfig:
        known = {field.name for field in fields(ModelConfig)}
        taken = {name: value for name, value in values.items() if name in known}
        return ModelConfig(**taken | {"value_layers": tuple(taken.get("value_layers", ()))})


def qwen3(vocab_size: int, width: int, layers: int, *, context: int = 256, **changes: Any) -> ModelConfig:
    """The default preset: what Qwen3 is made of (arXiv 2505.09388), at the width given.

    SwiGLU's three matrices at 8/3 of the width cost what a plain MLP at 4 times the width costs (arXiv 2002.05202).
    Head and embedding are two matrices: sharing one saves no FLOPs and costs loss at every size tried here
    (docs/notebook.md); `tied=True` shares it, as small Qwen3 models do.
    """
    sizes = {"context": context, "ff_width": round_up(8 * width / 3, 32)}
    return _made("qwen3", vocab_size, width, layers, sizes | changes)


def racer(vocab_size: int, width: int, layers: int, *, context: int = 256, **changes: Any) -> ModelConfig:
    """The preset with most quality per FLOP at small sizes; it does not export.

    Untied head, squared ReLU (arXiv 2109.08668), value embeddings (arXiv 2410.17897) in every second layer and the
    last, a hashed bigram table, learned residual scalars, zero-initialised projections and capped logits
    (arXiv 2408.00118): the parts that the speed-running community found to pay at 124M parameters and below.
    """
    sizes = {
        "context": context,
        "ff_width": 4 * width,
        "softcap": 15.0,
        "bigram_rows": min(5 * vocab_size, vocab_size * vocab_size + 1),
        "value_layers": tuple(range((layers - 1) % 2, layers, 2)),
    }
    return _made("racer", vocab_size, width, layers, sizes | changes)


def _made(preset: str, vocab_size: int, width: int, layers: int, sizes: dict[str, Any]) -> ModelConfig:
    head_size = sizes.get("head_size", 32 if width <= 128 else 64)
    heads = sizes.get("heads", max(1, width // head_size))
    shared = {"heads": heads, "kv_heads": heads, "head_size": head_size, "tied": False}
    return ModelConfig(vocab_size, width, layers, preset=preset, **shared | sizes)


def round_up(value: float, multiple: int) -> int:
    return int(-(-value // multiple) * multiple)


def parameter_count(config: ModelConfig) -> dict[str, int]:
    """Exact number of weights by part: `embedding`, `blocks`, `head`, `lookup` (racer's tables), `other`, `total`."""
    c = config
    attention = c.width * c.head_size * (2 * c.heads + 2 * c.kv_heads)
    mlp = (2 if c.preset == "racer" else 3) * c.width * c.ff_width
    parts = {
        "embedding": c.vocab_size * c.width,
        "blocks": c.layers * (attention + mlp),
        "head": 0 if c.tied else c.vocab_size * c.width,
        "lookup": c.bigram_rows * c.width + len(c.value_layers) * c.vocab_size * c.kv_heads * c.head_size,
    }
    if c.preset == "racer":
        parts["other"] = 3 * c.layers + len(c.value_layers) * c.kv_heads * GATE_CHANNELS
    else:
        head_gains = 2 * c.head_size if c.preset == "qwen3" else 0
        parts["other"] = c.layers * (2 * c.width + head_gains) + c.width
    return parts | {"total": sum(parts.values())}


GATE_CHANNELS = 12  # channels of the residual stream that open the value-embedding gate


def flops_per_token(config: ModelConfig, T: int | None = None) -> dict[str, float]:
    """Matrix-multiplication FLOPs of one token in a sequence of T tokens (default: the context).

    Two FLOPs per weight and token forward, four backward (arXiv 2001.08361, section 2.1); attention with the full
    T x T square of scores, 4 * T * H * E a layer forward, of which blocks of queries leave out what they can. `model`
    counts only the causal half of it (the usual figure for the share of the machine's peak), `head` is the share that
    the vocabulary costs.
    """
    T = T or config.context
    parts = parameter_count(config)
    head = 2.0 * config.vocab_size * config.width
    gates = 2.0 * len(config.value_layers) * config.kv_heads * GATE_CHANNELS
    square = 4.0 * T * config.heads * config.head_size * config.layers
    forward = 2.0 * parts["blocks"] + head + gates + square
    return {
        "forward": forward,
        "train": 3.0 * forward,
        "model": 3.0 * (forward - square / 2),
        "head": head / (forward - square / 2),
    }
