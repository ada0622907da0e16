"""Pretraining: rows of text -> a model that continues text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from liuli.errors import LiuliError, UsageError
from liuli.model import ModelConfig, Transformer, qwen3, racer
from liuli.stages.training import TrainOptions, train_model
from liuli.text import Rows, Tokenizer
from liuli.train import FitResult, RunLog, next_token

MAKERS = {"qwen3": qwen3, "racer": racer}  # of a model to train; llama's is read alone


def check_preset(preset: str, where: str | Path) -> None:
    """Raises UsageError for one that nothing makes."""
    if preset not in MAKERS:
        raise UsageError(f"unknown preset {preset!r}", where, f"use one of {', '.join(MAKERS)}")


@dataclass(frozen=True)
class Shape:
    """The shape of a new model."""

    preset: str = "qwen3"  # qwen3 (exports) or racer (more quality per FLOP)
    layers: int = 4
    width: int = 256

    def config(self, vocab_size: int, context: int, dropout: float = 0.0) -> ModelConfig:
        check_preset(self.preset, "shape")
        return MAKERS[self.preset](vocab_size, self.width, self.layers, context=context, dropout=dropout)


def pretrain(
    rows_folder: str | Path,
    tokenizer_folder: str | Path,
    out: str | Path,
    *,
    shape: Shape,
    options: TrainOptions,
    log: RunLog,
) -> FitResult:
    """Train a new model on every token of the rows and write it to `out`.

    Raises LiuliError when the rows were made with another tokenizer than the one given.
    """
    rows, tokenizer = Rows.open(rows_folder), Tokenizer.load(tokenizer_folder)
    check_rows(rows, tokenizer, rows.T)
    torch.manual_seed(options.seed)
    model = Transformer(shape.config(tokenizer.vocab_size, rows.T, options.dropout))
    return train_model(
        model,
        rows,
        Path(out),
        objective=next_token,
        options=options,
        tokenizer=tokenizer,
        tokenizer_folder=Path(tokenizer_folder),
        log=log,
        provenance={"stage": "pretrain", "parent": None, "data": {"rows": str(rows_folder)}},
    )


def check_rows(rows: Rows, tokenizer: Tokenizer, context: int) -> None:
    """The largest id in the rows must be one that the tokenizer has, and a row no longer than the model's context."""
    largest = int(rows.tokens.max()) if len(rows) else -1
    if largest < 0:
        raise LiuliError("there are no rows to train on", rows.folder, "make rows from more text")
    if largest >= tokenizer.vocab_size:
        raise LiuliError(
            f"the rows hold token {largest}, the tokenizer has only {tokenizer.vocab_size}",
            rows.folder,
            "make the rows with this tokenizer (liuli data rows)",
        )
    if context < rows.T:
        what = f"rows of {rows.T} tokens do not fit the model's context of {context}"
        raise LiuliError(what, rows.folder, "make them again with a shorter row")
