"""A problem small enough to know the answer of: every text of up to three tokens, a table as the policy.

Token 0 ends a text; 1 to 3 go on. There are 40 texts for each of two prompts: 13 that end, 27 that are cut at the third
token (they count as whole). The optimum of max E[r] - beta KL(policy || reference) is reference * exp(r / beta) / Z.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from liuli.model import Transformer, qwen3
from liuli.stages.rollout import Rollouts, Scores

V, T, PROMPTS = 4, 3, 2
TEXTS = [
    *[(*head, 0) for n in range(T) for head in itertools.product(range(1, V), repeat=n)],
    *itertools.product(range(1, V), repeat=T),
]
NODES = sum((V - 1) ** n for n in range(T))  # states: what was written so far


def rollouts(texts: list[tuple[int, ...]], prompts: list[int]) -> Rollouts:
    """Texts as rollouts: the prompt's number stands as the first token, padding is V."""
    width = T + 1
    tokens = torch.tensor(
        [[p, *text, *([V] * (T - len(text)))] for p, text in zip(prompts, texts, strict=True)], dtype=torch.int64
    )
    lengths = torch.tensor([1 + len(text) for text in texts])
    places = torch.arange(width)[None, :]
    mask = (places > 0) & (places < lengths[:, None])
    finished = torch.ones(len(texts), dtype=torch.bool)
    return Rollouts(tokens, mask, torch.zeros(tokens.shape), lengths, finished, torch.tensor(prompts))


def everything() -> Rollouts:
    """All texts of all prompts, prompt by prompt."""
    return rollouts(TEXTS * PROMPTS, [p for p in range(PROMPTS) for _ in TEXTS])


EVERYTHING = everything()


def nodes(tokens_BT: Tensor) -> Tensor:
    """The row of the tables for the state before each token (B, T); the first column is meaningless."""
    B = len(tokens_BT)
    node = torch.zeros(B, dtype=torch.int64)
    found = [node]
    first, count = 0, 1
    place = torch.zeros(B, dtype=torch.int64)  # within the nodes of this depth
    for t in range(1, tokens_BT.shape[1]):
        found.append(tokens_BT[:, 0] * NODES + first + place)
        place = place * (V - 1) + (tokens_BT[:, t] - 1).clamp(0, V - 2)
        first, count = first + count, count * (V - 1)
        place = place.clamp(max=count - 1)
    return torch.stack(found, 1).clamp(max=PROMPTS * NODES - 1)


class Table(nn.Module):
    """Policy and values as tables: an Actor."""

    def __init__(self, logits: Tensor | None = None) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(PROMPTS * NODES, V) if logits is None else logits.clone())
        self.values = nn.Parameter(torch.zeros(PROMPTS * NODES, 1))

    def score(self, r: Rollouts) -> Scores:
        at_BT = nodes(r.tokens_BT)
        log_probs = torch.log_softmax(self.logits, -1)
        taken = log_probs[at_BT, r.tokens_BT.clamp(max=V - 1)]
        entropy = -(log_probs.exp() * log_probs).sum(-1).detach()[at_BT]
        zero = torch.zeros(r.mask_BT.shape, dtype=self.logits.dtype)
        return Scores(*(torch.where(r.mask_BT, x, zero) for x in (taken, entropy, self.values[at_BT, 0])))

    def probabilities(self) -> Tensor:
        """Of every text, (PROMPTS, 40)."""
        return self.score(EVERYTHING).log_probs_BT.sum(1).exp().view(PROMPTS, -1)

    @torch.no_grad()
    def draw(self, prompts: list[int], generator: torch.Generator) -> tuple[Rollouts, Tensor]:
        """One text for each prompt, and its number in TEXTS."""
        numbers = torch.multinomial(
            self.probabilities()[torch.tensor(prompts)], 1, replacement=True, generator=generator
        ).squeeze(1)
        return EVERYTHING.part(torch.tensor(prompts) * len(TEXTS) + numbers), numbers


@dataclass
class Problem:
    """A random reference and random rewards, with the known optimum."""

    reference: Table
    rewards: Tensor  # (PROMPTS, 40)
    beta: float

    @staticmethod
    def random(seed: int, beta: float = 0.5) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        reference = Table(torch.randn(PROMPTS * NODES, V, generator=generator))
        return Problem(reference, torch.randn(PROMPTS, len(TEXTS), generator=generator), beta)

    def optimum(self) -> Tensor:
        """reference * exp(r / beta) / Z, (PROMPTS, 40)."""
        weights = self.reference.probabilities().detach() * torch.exp(self.rewards / self.beta)
        return weights / weights.sum(1, keepdim=True)

    def objective(self, p: Tensor) -> float:
        """E[r] - beta KL(p || reference), mean over the prompts."""
        q = self.reference.probabilities().detach()
        inner = torch.where(p > 0, p * (self.rewards - self.beta * torch.log(p / q)), torch.zeros_like(p))
        return float(inner.sum(1).mean())


def distance(p: Tensor, q: Tensor) -> float:
    """Total variation, the largest over the prompts."""
    return float(0.5 * (p - q).abs().sum(1).max())


# --- the same with a Transformer: 781 texts for each of four prompts --------------------------------------------------

LETTERS, LONGEST, ASKED = 5, 4, 4
WORDS = [
    *[(*head, 0) for n in range(LONGEST) for head in itertools.product(range(1, LETTERS + 1), repeat=n)],
    *itertools.product(range(1, LETTERS + 1), repeat=LONGEST),
]
BAN_V = torch.tensor([0.0] * (LETTERS + 1) + [-torch.inf] * ASKED)  # the prompts' own tokens are never written


def every_word() -> Rollouts:
    """All texts of all prompts; token LETTERS + 1 + p is prompt p, texts are padded with 0."""
    rows = [[LETTERS + 1 + p, *text, *([0] * (LONGEST - len(text)))] for p in range(ASKED) for text in WORDS]
    tokens = torch.tensor(rows)
    lengths = torch.tensor([1 + len(text) for _ in range(ASKED) for text in WORDS])
    places = torch.arange(LONGEST + 1)[None, :]
    mask = (places > 0) & (places < lengths[:, None])
    finished = torch.ones(len(rows), dtype=torch.bool)
    return Rollouts(tokens, mask, torch.zeros(tokens.shape), lengths, finished, torch.arange(len(rows)) // len(WORDS))


HEADS = list(itertools.product(range(1, LETTERS + 1), repeat=LONGEST - 1))
ROW = {head[:n]: number for number, head in enumerate(HEADS) for n in range(LONGEST)}  # of one that begins so
ROWS_WT = torch.tensor([[ROW[word[: min(t, len(word) - 1)]] for t in range(LONGEST)] for word in WORDS])
LETTERS_WT = torch.tensor([[*word, *[-1] * (LONGEST - len(word))] for word in WORDS])


def word_log_probs(model: Transformer) -> Tensor:
    """Of every text, (ASKED, len(WORDS)). Only what is a letter short of the longest is read: it foretells, letter by
    letter, all that begins as it does."""
    tokens = torch.tensor([[LETTERS + 1 + p, *head] for p in range(ASKED) for head in HEADS])
    log_probs_AHTV = torch.log_softmax(model(tokens).float() + BAN_V, -1).view(ASKED, len(HEADS), LONGEST, -1)
    found_AWT = log_probs_AHTV[:, ROWS_WT, torch.arange(LONGEST), LETTERS_WT.clamp(min=0)]
    return torch.where(LETTERS_WT >= 0, found_AWT, 0.0).sum(-1)


def small_transformer(seed: int) -> Transformer:
    """Two layers of 32 with weights large enough to have opinions."""
    torch.manual_seed(seed)
    model = Transformer(qwen3(len(BAN_V), 32, 2, context=LONGEST + 1, head_size=16, heads=2, kv_heads=2))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
    return model
