"""A Transformer that gives numbers instead of words: the reward model, and PPO's value function.

A qwen3 one is written as a Hugging Face `Qwen3ForSequenceClassification`, a label a member, which transformers opens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from liuli.errors import LiuliError
from liuli.folder import read_model_folder, write_model_folder
from liuli.model.convert import CLASSES, export_config, export_tensors, fill, import_config, is_known_elsewhere
from liuli.model.transformer import Branches, Linear, Transformer

SCORE = "score.weight"
CARD = """# A reward model

Made with Liuli: it gives the answer at the end of a conversation a number; each label is the opinion of one member of
an ensemble that shares a body. `score_offsets` in `config.json` are added to the scores.

用琉璃 Liuli 训练的奖励模型：给对话末尾的回答打分；每个标签是集成中一个成员的意见，它们共用一个主体。`config.json` 里的
`score_offsets` 会加到分数上。
"""


class ScalarModel(nn.Module):
    """A Transformer's body with a head of E numbers at every position, one for each member of an ensemble.

    offsets_E: added to the scores, so that those of some known answers have mean 0; they are no weights (a constant
    changes no comparison) and stand in config.json as `score_offsets`.
    """

    offsets_E: Tensor

    def __init__(self, body: Transformer, members: int = 1) -> None:
        """The body is taken over, not copied, and loses its head."""
        super().__init__()
        body.head = None
        self.body, self.score = body, Linear(body.config.width, members)
        self.register_buffer("offsets_E", torch.zeros(members))
        # arXiv 2009.01325, appendix C: N(0, 1/(d+1))
        nn.init.normal_(self.score.weight, std=(body.config.width + 1) ** -0.5)

    def forward(
        self, tokens_BT: Tensor, documents_BT: Tensor | None = None, branches: Branches | None = None
    ) -> Tensor:
        """(B, T, E) float32: the numbers read off the state after each token."""
        state_BTD = self.body.hidden(tokens_BT, documents_BT=documents_BT, branches=branches)
        numbers: Tensor = self.score(state_BTD.float()) + self.offsets_E
        return numbers


def save_scalar(
    model: ScalarModel,
    path: str | Path,
    *,
    tokenizer_folder: str | Path,
    provenance: Mapping[str, Any],
    special: Mapping[str, Any],
) -> None:
    """Write the model folder, whole or not at all."""
    config = export_config(model.body.config, special)
    config |= {"tie_word_embeddings": False, "score_offsets": model.offsets_E.tolist()}
    if is_known_elsewhere(model.body.config):
        names = [f"member {number}" for number in range(1, len(model.offsets_E) + 1)]
        config["architectures"] = [f"{CLASSES[model.body.config.preset]}ForSequenceClassification"]
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
        config["label2id"] = {name: number for number, name in enumerate(names)}
    write_model_folder(
        path,
        config=config,
        tensors=export_tensors(model.body) | {SCORE: model.score.weight.detach().cpu()},
        tokenizer_folder=tokenizer_folder,
        generation={},
        provenance=provenance,
        card=CARD,
        replace=True,
    )


def load_scalar(path: str | Path, device: str | torch.device | None = None) -> ScalarModel:
    """The reward model in a folder, in eval mode. Raises LiuliError where the folder gives no scores."""
    folder = read_model_folder(path, tokenizer=False)
    found = folder.tensors(device="cpu")
    if SCORE not in found:
        raise LiuliError("this model writes words, it gives no scores", folder.path, "make one: liuli reward")
    score, config = found.pop(SCORE), import_config(folder.config, folder.path, scores=True)
    model = ScalarModel(Transformer(config), len(score))
    fill(model.body, found, folder.path)
    with torch.no_grad():
        model.score.weight.copy_(score)
        model.offsets_E.copy_(torch.tensor(folder.config.get("score_offsets", [0.0] * len(score))))
    return model.to(device or "cpu").eval()
