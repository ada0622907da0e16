"""A model folder as one object, for notebooks and for every command that talks: model, tokenizer, engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liuli.engine.answer import Answer
from liuli.engine.chat import fit
from liuli.engine.engine import Engine
from liuli.engine.quantise import Kind
from liuli.engine.replicas import Replicas
from liuli.engine.sampling import Sampling
from liuli.engine.speculate import Drafter, DraftModel, lookup
from liuli.errors import UsageError
from liuli.model import load
from liuli.model.adapters import base_of, merge
from liuli.model.ops import multiplies_bfloat16
from liuli.text.chat import Messages, as_messages
from liuli.text.tokenizer import Tokenizer


class Model:
    """What `liuli.load` gives: logits of tokens, answers to messages.

    path: a model folder, or an adapter in one. device: default is the GPU where there is one, else the CPU. dtype:
    default is bfloat16 on a GPU, and with packed weights where the processor multiplies it; else float32, since on a
    CPU bfloat16 gains nothing where a single answer is written. draft: "lookup", or the folder of a smaller model with
    the same tokenizer, foretells tokens. replicas: so many processes write, each with its share of a CPU's cores (fewer
    than two: this one does); many answers of a small model are written sooner so. weights, how: of the Engine
    (compiled, prefix_int8). Raises LiuliError for a folder that cannot be used so.
    """

    def __init__(
        self,
        path: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        weights: Kind | None = None,
        draft: str = "",
        replicas: int = 0,
        **how: Any,
    ) -> None:
        self.path = Path(path)
        place = pick_device(device)
        if replicas > 1 and (place.type != "cpu" or os.name != "posix"):
            raise UsageError("replicas share the cores of a CPU, under Linux or macOS", "replicas", "leave them out")
        narrow = place.type == "cuda" or (weights is not None and multiplies_bfloat16(place))
        kind = dtype or (torch.bfloat16 if narrow else torch.float32)
        base = base_of(self.path)
        self.transformer = load(base, device=place, dtype=kind)
        if base != self.path:
            merge(self.transformer, self.path)
        self.tokenizer = Tokenizer.load(base)
        drafter = self._drafter(draft, place, kind) if draft else None
        several = None
        if replicas > 1:
            several = Replicas(str(path), replicas, device="cpu", dtype=dtype, weights=weights, draft=draft, **how)
        how |= {"weights": weights, "drafter": drafter, "replicas": several}
        self.engine = Engine(self.transformer, self.tokenizer, **how)
        if self.engine.compiled and several is None:
            self.engine.warm_up()

    def _drafter(self, draft: str, place: torch.device, kind: torch.dtype) -> Drafter:
        if draft == "lookup":
            return lookup
        if Tokenizer.load(draft).backend.get_vocab() != self.tokenizer.backend.get_vocab():
            raise UsageError("this model has another tokenizer", f"--draft {draft}", "take one of the same run")
        return DraftModel(load(draft, device=place, dtype=kind))

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Log-odds of every next token at every position: (T, V) float32, on the CPU. tokens: 1 to `context` ids."""
        if not tokens or len(tokens) > self.engine.context:
            raise UsageError(f"{len(tokens)} tokens given", "logits", f"give 1 to {self.engine.context}")
        V = self.transformer.config.vocab_size
        if unknown := [id for id in tokens if not 0 <= id < V]:
            raise UsageError(f"token {unknown[0]} is outside the vocabulary", "logits", f"give ids from 0 to {V - 1}")
        tokens_1T = torch.tensor([list(tokens)], device=self.engine.device)
        logits: Tensor = self.transformer(tokens_1T)[0].float().cpu()
        return logits

    def generate(self, messages: Messages, **settings: Any) -> Answer:
        """One answer to a conversation; no tool is run. settings: the fields of Sampling, for example temperature=0."""
        try:
            sampling = Sampling(**settings)
        except TypeError as error:
            known = ", ".join(Sampling.__dataclass_fields__)
            raise UsageError(
                str(error).replace("Sampling.__init__()", "generate()"), fix=f"settings: {known}"
            ) from error
        return self.engine.generate([fit(as_messages(messages), self.engine, sampling)], sampling)[0]

    def __repr__(self) -> str:
        return f"<liuli model {self.path} on {self.engine.device}>"


def pick_device(wanted: str | torch.device | None = None) -> torch.device:
    """The device asked for, or by default an NVIDIA or AMD GPU where there is one, else the CPU.

    Apple's GPU is used on request ("mps"): for models of some million parameters each of its operations takes longer to
    start than the CPU needs to do it. Raises UsageError for a device that is not here.
    """
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind, _, number = (name := str(wanted)).partition(":")
    if not here.get(kind, False) or (number and not number.isdigit()):
        found = ", ".join(kind for kind, is_here in here.items() if is_here)
        raise UsageError(f"there is no device {name!r} here", "device", f"use {found}")
    return torch.device(name)
