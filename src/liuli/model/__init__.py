"""model: tokens -> logits.

Comes in: a batch of token ids. Goes out: logits, and on request every named activation. It does not know what a token
means, how it is trained, or how many answers are being written at once.
"""

from liuli.model.config import ModelConfig, flops_per_token, parameter_count, qwen3, racer
from liuli.model.convert import load, save
from liuli.model.transformer import Branches, Transformer

__all__ = [
    "Branches",
    "ModelConfig",
    "Transformer",
    "flops_per_token",
    "load",
    "parameter_count",
    "qwen3",
    "racer",
    "save",
]
