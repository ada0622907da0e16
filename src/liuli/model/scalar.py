"""A Transformer that gives a number instead of words: the reward model, and PPO's value function.

A qwen3 one is written as a Hugging Face `Qwen3ForSequenceClassification` of one label, which transformers opens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from liuli.errors import LiuliError
from liuli.files import new_folder
from liuli.folder import ModelFolder, check_shapes, fill_model_folder, read_model_folder
from liuli.model.convert import NAMES, export_config, export_tensors, import_config, is_qwen3, rename
from liuli.model.transformer import Linear, Transformer

SCORE = "score.weight"
ARCHITECTURE = "Qwen3ForSequenceClassification"
CARD = """# A reward model

Made with Liuli: it gives the answer at the end of a conversation a number. `member2`, `member3` are the other models of
the ensemble; `score_offset` in `config.json` is added to each score.

用琉璃 Liuli 训练的奖励模型：给对话末尾的回答打分。`member2`、`member3` 是集成中的其他模型；`config.json` 里的
`score_offset` 会加到每个分数上。
"""


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


def save_scalars(
    models: Sequence[ScalarModel],
    path: str | Path,
    *,
    tokenizer_folder: str | Path,
    provenance: Mapping[str, Any],
    special: Mapping[str, Any],
) -> None:
    """Write an ensemble as one folder, whole or not at all: the first model is the folder itself, the others lie in
    it as `member2`, `member3`."""
    with new_folder(path, replace=True) as stage:
        for number, model in enumerate(models, 1):
            config = export_config(model.body.config, special)
            config |= {"tie_word_embeddings": False, "score_offset": model.offset, "members": len(models)}
            if is_qwen3(model.body.config):
                config |= {"architectures": [ARCHITECTURE], "id2label": {"0": "score"}, "label2id": {"score": 0}}
            inside = stage if number == 1 else stage / f"member{number}"
            inside.mkdir(exist_ok=True)
            fill_model_folder(
                inside,
                config=config,
                tensors=export_tensors(model.body) | {SCORE: model.score.weight.detach().cpu()},
                tokenizer_folder=tokenizer_folder if number == 1 else None,
                generation={},
                provenance=provenance,
                card=CARD,
            )


def load_scalars(path: str | Path, device: str | torch.device | None = None) -> list[ScalarModel]:
    """The members of a reward model's folder, in eval mode. Raises LiuliError where the folder gives no scores."""
    folder = read_model_folder(path, tokenizer=False)
    members = int(folder.config.get("members", 1))
    inner = [Path(path) / f"member{number}" for number in range(2, members + 1)]
    # the manifest of the whole folder has vouched for them
    folders = [folder, *(read_model_folder(place, verify=False, tokenizer=False) for place in inner)]
    return [_load(one).to(device or "cpu").eval() for one in folders]


def _load(folder: ModelFolder) -> ScalarModel:
    found = folder.tensors(device="cpu")
    if SCORE not in found:
        raise LiuliError("this model writes words, it gives no scores", folder.path, "make one: liuli reward")
    score, config = found.pop(SCORE), import_config(folder.config, folder.path)
    back = {theirs: ours for ours, theirs in NAMES.items()}
    if is_qwen3(config):
        found = {rename(name, back): tensor for name, tensor in found.items()}
    found.pop("head.weight", None)
    model = ScalarModel(Transformer(config))
    expected = {name: tuple(tensor.shape) for name, tensor in model.body.named_parameters()}
    check_shapes(expected, {name: tuple(tensor.shape) for name, tensor in found.items()}, folder.path)
    model.body.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    with torch.no_grad():
        model.score.weight.copy_(score)
    model.offset = float(folder.config.get("score_offset", 0.0))
    return model
