"""A Transformer that gives a number instead of words: the reward model, and PPO's value function.

A qwen3 one is written as a Hugging Face `Qwen3ForSequenceClassification` of one label, which transformers opens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from liuli.errors import LiuliError
from liuli.folder import check_shapes, read_model_folder, write_model_folder
from liuli.model.convert import NAMES, export_config, export_tensors, import_config, is_qwen3, rename
from liuli.model.transformer import Linear, Transformer

SCORE = "score.weight"
ARCHITECTURE = "Qwen3ForSequenceClassification"


class ScalarModel(nn.Module):
    """A Transformer's body with a head of one number at every position.

    offset: added to every score, so that the scores of some known answers have mean 0; it is no weight (a constant
    changes no comparison) and stands in config.json as `score_offset`.
    """

    def __init__(self, body: Transformer) -> None:
        """The body is taken over, not copied, and loses its head."""
        super().__init__()
        body.head = None
        self.body, self.score, self.offset = body, Linear(body.config.width, 1), 0.0
        # arXiv 2009.01325, appendix C: N(0, 1/(d+1))
        nn.init.normal_(self.score.weight, std=(body.config.width + 1) ** -0.5)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """(B, T) float32: the number read off the state after each token."""
        return self.read(self.body.hidden(tokens_BT))

    def read(self, x_BTD: Tensor) -> Tensor:
        """The head alone, in float32: (..., D) to (...)."""
        numbers: Tensor = self.score(x_BTD.float()).squeeze(-1) + self.offset
        return numbers

    def scores(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """(B,) float32: the number after the last real token of each row (padded right)."""
        x_BTD = self.body.hidden(tokens_BT)
        return self.read(x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), lengths_B - 1])


def save_scalar(
    model: ScalarModel,
    path: str | Path,
    *,
    tokenizer_folder: str | Path,
    provenance: Mapping[str, Any],
    special: Mapping[str, Any],
) -> None:
    """Write a model folder with the body's weights and the head's, without the words' head."""
    config = export_config(model.body.config, special) | {"score_offset": model.offset}
    if is_qwen3(model.body.config):
        config |= {"architectures": [ARCHITECTURE], "id2label": {"0": "score"}, "label2id": {"score": 0}}
    tensors = {name: tensor for name, tensor in export_tensors(model.body).items() if name not in _heads()}
    write_model_folder(
        path,
        config=config | {"liuli_kind": "scalar"},
        tensors=tensors | {SCORE: model.score.weight.detach().cpu()},
        tokenizer_folder=tokenizer_folder,
        generation={},
        provenance=dict(provenance),
        replace=True,
    )


def load_scalar(path: str | Path, device: str | torch.device | None = None) -> ScalarModel:
    """The reward model or value function in a folder, in eval mode. Raises LiuliError where there is none."""
    folder = read_model_folder(path, tokenizer=False)
    found = folder.tensors(device="cpu")
    if SCORE not in found:
        raise LiuliError("this model writes words, it gives no scores", folder.path, "make one: liuli reward")
    config = import_config(folder.config, folder.path)
    back = {theirs: ours for ours, theirs in NAMES.items()}
    score = found.pop(SCORE)
    if is_qwen3(config):
        found = {rename(name, back): tensor for name, tensor in found.items()}
    model = ScalarModel(Transformer(replace(config, tied=False)))
    expected = {name: tuple(tensor.shape) for name, tensor in model.body.named_parameters()}
    check_shapes(expected, {name: tuple(tensor.shape) for name, tensor in found.items()}, folder.path)
    model.body.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    with torch.no_grad():
        model.score.weight.copy_(score)
    model.offset = float(folder.config.get("score_offset", 0.0))
    return model.to(device or "cpu").eval()


def _heads() -> tuple[str, str]:
    return "head.weight", NAMES["head.weight"]
