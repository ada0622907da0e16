"""Supervised fine-tuning: conversations -> a model that answers; loss on what the assistant must produce alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from liuli.errors import LiuliError, UsageError
from liuli.model import Transformer, load
from liuli.stages.pretrain import check_rows
from liuli.stages.training import TrainOptions, train_model
from liuli.text import Rows, Tokenizer
from liuli.train import FitResult, RunLog, next_target


def sft(
    model_folder: str | Path,
    rows_folder: str | Path,
    out: str | Path,
    *,
    options: TrainOptions,
    log: RunLog,
    replay: str | Path | None = None,
) -> FitResult:
    """Train the model in `model_folder` on packed conversations (`text.pack_conversations`) and write it to `out`.

    replay: a folder of pretraining rows, of which `options.replay` of each batch is made, against forgetting.

    Raises LiuliError when rows and model do not belong together: other vocabulary, rows longer than the context, rows
    without loss weights.
    """
    parent = load(model_folder)
    model = Transformer(replace(parent.config, dropout=options.dropout))
    model.load_state_dict(parent.state_dict())
    rows, tokenizer = Rows.open(rows_folder), Tokenizer.load(model_folder)
    check_rows(rows, tokenizer, model.config.context)
    if options.replay and replay is None:
        raise UsageError("there are no rows to replay", "replay", "give the rows of pretraining (--replay FOLDER)")
    if rows.weights is None:
        raise LiuliError("these rows have no loss weights: they are text, not conversations", rows_folder)
    old = Rows.open(replay) if replay is not None and options.replay else None
    if old is not None:
        check_rows(old, tokenizer, model.config.context)
    return train_model(
        model,
        rows,
        Path(out),
        objective=next_target,
        options=options,
        tokenizer=tokenizer,
        tokenizer_folder=Path(model_folder),
        log=log,
        replay=old,
        provenance={"stage": "sft", "parent": str(model_folder), "data": {"rows": str(rows_folder)}},
    )
