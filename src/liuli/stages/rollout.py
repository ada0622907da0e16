"""Answers of a model, as tensors to learn from: drawn by the engine, scored by the trainer. The one place for both.

In: conversations that end in a question, a model. Out: `Rollouts`, whose mask says which tokens the policy drew (calls
and answers; not the prompt, not what a tool said), and `Scores` of any model for any rollouts. What is scored is what
was drawn: the same temperature, and the same tokens barred, in both.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from liuli.engine import MAX_CALLS, TOOLS, Request, Sampling, Tool
from liuli.engine.chat import answer_calls
from liuli.errors import LiuliError
from liuli.model import Branches, Transformer
from liuli.model.ops import token_log_probs
from liuli.model.scalar import ScalarModel
from liuli.text import Message, Rendered, Tokenizer, parse_answer, render, render_many
from liuli.text.chat import Messages, as_messages
from liuli.text.pack import plan_whole
from liuli.train import tell_left_out
from liuli.train.parallel import divided, from_each

ATTENTION = 480
"""Length of a row, in tokens, at which attention costs as much as all else; measured with 3M parameters."""


@dataclass(frozen=True)
class Rollouts:
    """B answers, padded right to T tokens.

    tokens_BT: int64, prompt and all. mask_BT: bool, drawn by the policy. sampler_BT: float32, the engine's
    log-probability of each drawn token at temperature 1, nothing barred. lengths_B: int64, real tokens. finished_B:
    bool, ended by itself. prompt_B: int64, which prompt each belongs to. produced: the messages of each.
    """

    tokens_BT: Tensor
    mask_BT: Tensor
    sampler_BT: Tensor
    lengths_B: Tensor
    finished_B: Tensor
    prompt_B: Tensor
    produced: tuple[tuple[Message, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.tokens_BT)

    def part(self, index_N: Tensor) -> Rollouts:
        """These rows, cut to the longest of them."""
        T = int(self.lengths_B[index_N].max())
        return Rollouts(
            self.tokens_BT[index_N, :T],
            self.mask_BT[index_N, :T],
            self.sampler_BT[index_N, :T],
            self.lengths_B[index_N],
            self.finished_B[index_N],
            self.prompt_B[index_N],
            tuple(self.produced[i] for i in index_N.tolist()) if self.produced else (),
        )


@dataclass
class Answering:
    """One conversation while it is written: all tokens so far, and which of them were drawn."""

    tokens: list[int]
    drawn: list[bool]
    log_probs: list[float]
    produced: list[Message]
    calls: int = 0
    finished: bool = False

    def extend(self, tokens: Sequence[int], log_probs: Sequence[float] | None = None) -> None:
        self.tokens += tokens
        self.drawn += [log_probs is not None] * len(tokens)
        self.log_probs += log_probs if log_probs is not None else [0.0] * len(tokens)


class Writer(Protocol):
    """What draws answers: our Engine, or a vLLM server behind a RemoteEngine."""

    tokenizer: Tokenizer
    names: list[str]
    ban_V: Tensor

    @property
    def context(self) -> int: ...

    def request(self, prompt: Sequence[int], sampling: Sampling, number: int = 0) -> Request: ...

    def work(self, requests: Sequence[Request], then: Callable[[Request], Request | None] | None = None) -> None: ...


def roll_out(
    engine: Writer,
    prompts: Sequence[Messages],
    *,
    temperature: float = 1.0,
    max_tokens: int = 128,
    seeds: Sequence[int],
    tools: Mapping[str, Tool] = TOOLS,
) -> Rollouts:
    """An answer to each prompt, tools run on the way. No top-k and no top-p: what they leave out could not be scored.

    seeds: one for each answer; the same seeds and weights give the same rollouts. max_tokens: of each message drawn.
    Raises LiuliError for a prompt that does not fit the context. In several processes each draws its share.
    """

    def share(numbers: Sequence[int]) -> list[Answering]:
        own, own_seeds = [prompts[number] for number in numbers], [seeds[number] for number in numbers]
        return answer(engine, own, temperature, max_tokens, own_seeds, tools)

    return padded(from_each(len(prompts), share), engine.tokenizer.pad)


def fitting(prompts: Sequence[Messages], tokenizer: Tokenizer, context: int, warn: Callable[[str], None]) -> list[int]:
    """Numbers of the prompts that leave room for an answer; how many do not is told. LiuliError if none does."""
    rendered = render_many(prompts, tokenizer, answer=True)
    found = [number for number, prompt in enumerate(rendered) if len(prompt.tokens) < context]
    if not found:
        raise LiuliError(f"no prompt fits the context of {context}", "prompts", "shorten them")
    tell_left_out(len(rendered) - len(found), "prompts", warn)
    return found


def answer(
    engine: Writer,
    prompts: Sequence[Messages],
    temperature: float,
    max_tokens: int,
    seeds: Sequence[int],
    tools: Mapping[str, Tool],
) -> list[Answering]:
    """An answer to each prompt, not yet padded; see `roll_out`."""
    histories = [list(as_messages(prompt)) for prompt in prompts]
    each = [Answering([], [], [], []) for _ in prompts]
    for own, rendered in zip(each, render_many(histories, engine.tokenizer, answer=True), strict=True):
        own.extend(rendered.tokens)

    def begin(number: int) -> Request:
        own = each[number]
        room = engine.context - len(own.tokens)  # the engine may write one token more, which no one could score
        if room < 1:
            raise LiuliError(f"a prompt fills the context of {engine.context}", f"prompt {number}", "shorten it")
        sampling = Sampling(temperature, max_tokens=min(max_tokens, room), seed=seeds[number] + own.calls)
        return engine.request(list(own.tokens), sampling, number)

    def then(request: Request) -> Request | None:
        own, said = each[request.number], request.answer()
        own.extend(said.ids, said.logprobs)
        message = parse_answer(said.ids, engine.tokenizer)
        own.produced.append(message)
        own.finished = said.stopped_by == "end" and not message.tool_calls  # a call is no answer yet
        if said.stopped_by != "end" or not message.tool_calls or own.calls == MAX_CALLS:
            return None
        own.calls += 1
        replies = answer_calls(message, tools)
        own.produced += replies
        # the tokens as they were drawn stay; only what the tools said is rendered
        whole = render([*histories[request.number], *own.produced], engine.tokenizer, answer=True)
        told = whole.tokens[whole.starts[-len(replies)] :]
        if len(own.tokens) + len(told) >= engine.context:
            return None
        own.extend(told)
        return begin(request.number)

    engine.work([begin(number) for number in range(len(each))], then)
    return each


def padded(each: Sequence[Answering], pad: int) -> Rollouts:
    """Answers side by side, padded right to the longest."""
    lengths_B = torch.tensor([len(own.tokens) for own in each])
    inside_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]

    def rows(name: str, fill: int | float, dtype: torch.dtype) -> Tensor:
        padded_BT = torch.full(inside_BT.shape, fill, dtype=dtype)
        padded_BT[inside_BT] = torch.tensor([x for own in each for x in getattr(own, name)], dtype=dtype)
        return padded_BT

    return Rollouts(
        rows("tokens", pad, torch.int64),
        rows("drawn", False, torch.bool),
        rows("log_probs", 0.0, torch.float32),
        lengths_B,
        torch.tensor([own.finished for own in each]),
        torch.arange(len(each)),
        tuple(tuple(own.produced) for own in each),
    )


def as_rollouts(
    prompts: Sequence[Messages],
    answers: Sequence[Messages],
    tokenizer: Tokenizer,
    context: int,
    places: Sequence[str] = (),
) -> Rollouts:
    """Given answers as rollouts: what the chat template says the assistant must produce counts as drawn.

    places: file and row of each. Raises LiuliError for an answer that does not fit the context or holds nothing to
    learn from.
    """
    each = given(list(zip(prompts, answers, strict=True)), tokenizer, context)
    for n, one in enumerate(each):
        if isinstance(one, str):
            raise LiuliError(one, places[n] if places else f"answer {n}", "give a whole answer, or a shorter one")
    return padded([one for one in each if isinstance(one, Answering)], tokenizer.pad)


def given(pairs: Sequence[tuple[Messages, Messages]], tokenizer: Tokenizer, context: int) -> list[Answering | str]:
    """Given answers, read together but not yet padded (see `as_rollouts`), or what is wrong with one."""
    try:
        wholes = render_many([(*as_messages(prompt), *as_messages(said)) for prompt, said in pairs], tokenizer)
    except LiuliError as error:  # the template refuses one of them
        half, rest = len(pairs) // 2, (tokenizer, context)
        return given(pairs[:half], *rest) + given(pairs[half:], *rest) if half else [error.what]
    return [taught(*pair, whole, context) for pair, whole in zip(pairs, wholes, strict=True)]


def taught(prompt: Messages, answer: Messages, whole: Rendered, context: int) -> Answering | str:
    """One given answer, of whose tokens those the assistant must write count as drawn."""
    begins = [*whole.starts, len(whole.tokens)][len(as_messages(prompt))]
    drawn = [at >= begins and weight > 0 for at, weight in enumerate(whole.weights)]
    if len(drawn) > context:
        return f"{len(drawn)} tokens, the model's context is {context}"
    if not any(drawn):
        return "there is no token of the assistant's"
    return Answering(whole.tokens, drawn, [0.0] * len(drawn), list(as_messages(answer)), 0, True)


# --- scoring ---------------------------------------------------------------------------------------------------------


class Packed(NamedTuple):
    """Answers laid side by side in rows, so that little is computed for padding, or again for a prompt they share.

    tokens_RW: int64, padded with 0. documents_RW: int64, which text each token belongs to, -1 for padding; None where
    every row holds but one. branches: of answers behind a prompt they share. place_BT: where among the R * W each
    answer's tokens lie, its prompt's included.
    """

    tokens_RW: Tensor
    documents_RW: Tensor | None
    branches: Branches | None
    place_BT: Tensor

    def through(self, read: Callable[..., Tensor], device: torch.device) -> Tensor:
        """What `read` (tokens, documents and branches to (R, W, ...)) makes of every place: (R * W, ...)."""
        documents_RW = None if self.documents_RW is None else self.documents_RW.to(device)
        branches = None if self.branches is None else Branches(*(x.to(device) for x in self.branches))
        return read(self.tokens_RW.to(device), documents_BT=documents_RW, branches=branches).flatten(0, 1)


def pack(rollouts: Rollouts) -> Packed:
    """Lay answers into rows, by best fit; those to one prompt stand behind it together, as many as a row may hold."""
    lengths_B, (B, T) = rollouts.lengths_B, rollouts.tokens_BT.shape
    units = together(rollouts)
    lengths = lengths_B.tolist()
    own = [[lengths[b] - unit.shared for b in unit.answers] for unit in units]  # tokens that each answer adds
    sizes = np.array([unit.shared + sum(adds) for unit, adds in zip(units, own, strict=True)])
    W = int(sizes.max())
    plan = plan_whole(sizes, W)
    starts = np.empty_like(sizes)
    starts[np.searchsorted(np.cumsum(sizes), plan.head, side="right")] = plan.row * W + plan.column
    # of each answer: tokens it shares, the first answer that shares them, where they lie, where its own would begin
    found = [(0, 0, 0, 0)] * B
    for unit, adds, start in zip(units, own, starts.tolist(), strict=True):
        for b, at in zip(unit.answers, itertools.accumulate(adds, initial=start), strict=False):
            found[b] = unit.shared, unit.answers[0], start, at
    shared_B1, first_B1, prompt_B1, own_B1 = torch.tensor(found).T.unsqueeze(-1)
    steps_T, number_B1 = torch.arange(T), torch.arange(B)[:, None]
    inside_BT, real_BT = steps_T < shared_B1, steps_T < lengths_B[:, None]
    place_BT = torch.where(inside_BT, prompt_B1, own_B1) + steps_T

    def laid(value_BT: Tensor, empty: int) -> Tensor:
        flat = torch.full((plan.rows * W,), empty)
        flat[place_BT[real_BT]] = value_BT.expand(B, T)[real_BT]
        return flat.view(-1, W)

    documents_RW, branches = None, None
    if plan.rows < B:
        documents_RW = laid(torch.where(inside_BT, B + first_B1, number_B1), -1)
    if len(units) < B:
        parents_BT = torch.where(inside_BT | (shared_B1 == 0), -2, B + first_B1)
        before_BT = torch.where(steps_T > 0, place_BT.roll(1, 1) % W, -1)
        branches = Branches(laid(parents_BT, -2), laid(steps_T, 0), laid(before_BT, -1))
    return Packed(laid(rollouts.tokens_BT, 0), documents_RW, branches, place_BT)


class Unit(NamedTuple):
    """Answers that are laid down as one, and how many tokens of a prompt they share."""

    shared: int
    answers: list[int]


def together(rollouts: Rollouts) -> list[Unit]:
    """The answers in units, none longer than the longest answer or what is best for prompts of the mean length.

    k answers of A tokens behind a prompt of P cost (A + P / k) (1 + W / ATTENTION) each in a row of W = P + k A: least
    at W = P + sqrt(P (P + ATTENTION)), whatever A is.
    """
    lengths, starts = rollouts.lengths_B.tolist(), rollouts.mask_BT.int().argmax(1).tolist()
    by_prompt: dict[bytes | int, list[int]] = {}
    for b, (tokens, start) in enumerate(zip(rollouts.tokens_BT.numpy(), starts, strict=True)):
        by_prompt.setdefault(tokens[:start].tobytes() if start else b, []).append(b)
    P = sum(starts) / len(starts)
    width = max(*lengths, int(P + math.sqrt(P * (P + ATTENTION))))
    units: list[Unit] = []
    for answers in by_prompt.values():
        shared, room = starts[answers[0]], 0
        for b in answers:
            own = lengths[b] - shared
            if own > room:
                units.append(Unit(shared, []))
                room = width - shared
            units[-1].answers.append(b)
            room -= own
    return [unit if len(unit.answers) > 1 else Unit(0, unit.answers) for unit in units]  # alone it shares nothing


class Scores(NamedTuple):
    """What a model thinks of rollouts: (B, T) float32 each, zero outside the mask; values only if asked for."""

    log_probs_BT: Tensor
    entropy_BT: Tensor
    values_BT: Tensor


class Actor(Protocol):
    """What learns. A tabular policy in the tests, a Transformer elsewhere."""

    def score(self, rollouts: Rollouts) -> Scores:
        """Log-probabilities (at the temperature of the rollouts), entropies and values, with gradients."""


Critic = ScalarModel | torch.nn.Linear


@dataclass
class ModelActor:
    """A Transformer as the policy. critic: None (values are 0), a head on the policy's own states, or a model."""

    model: Transformer
    temperature: float = 1.0
    ban_V: Tensor | None = None  # -inf at tokens that the engine never draws
    critic: Critic | None = None

    @property
    def learning(self) -> torch.nn.ModuleDict:
        """What training changes: the model, and the critic if there is one."""
        return torch.nn.ModuleDict({"model": self.model} | ({"critic": self.critic} if self.critic is not None else {}))

    def score(self, rollouts: Rollouts) -> Scores:
        device, mask_BT, packed = self.model.embedding.weight.device, rollouts.mask_BT, pack(rollouts)
        # the state before a drawn token is the one that foretells it
        before_N = packed.place_BT[:, :-1][mask_BT[:, 1:]].to(device)
        drawn_N = rollouts.tokens_BT[:, 1:][mask_BT[:, 1:]].to(device)
        x_ND = packed.through(self.model.hidden, device)[before_N]
        log_probs_N, entropy_N = token_log_probs(
            x_ND, self.model.head_VD, drawn_N, self.model.config.softcap, self.temperature, self.ban_V
        )
        values_N = self._values(x_ND, packed, before_N)
        return Scores(*(_spread(x, mask_BT.to(device)) for x in (log_probs_N, entropy_N, values_N)))

    def _values(self, x_ND: Tensor, packed: Packed, before_N: Tensor) -> Tensor:
        if self.critic is None:
            return torch.zeros(len(x_ND), device=x_ND.device)
        if isinstance(self.critic, ScalarModel):
            return packed.through(self.critic, x_ND.device)[before_N, 0]
        values: Tensor = self.critic(x_ND.float()).squeeze(-1)
        return values


def _spread(x_N: Tensor, mask_BT: Tensor) -> Tensor:
    """The numbers of the drawn tokens at their places, zero elsewhere: (B, T)."""
    return torch.zeros(mask_BT.shape, dtype=x_N.dtype, device=x_N.device).masked_scatter(mask_BT, x_N)


def parts(lengths_B: Tensor, tokens: int, least: int = 1) -> list[Tensor]:
    """Rows in their order, in parts of about so many tokens: those of `least` minibatches, one after the other."""
    return [part for minibatch in minibatches(lengths_B, tokens, least) for part in minibatch]


def minibatches(lengths_B: Tensor, tokens: int, count: int) -> list[list[Tensor]]:
    """Rows in their order, in `count` minibatches of equal numbers, each in parts of about so many tokens.

    Made alike for a batch each time: scored in the same parts, the same weights give the same bits.
    """
    blocks = torch.arange(len(lengths_B)).tensor_split(min(count, len(lengths_B)))
    wanted = [math.ceil(int(lengths_B[block].sum()) / tokens) for block in blocks]
    return [list(block.tensor_split(min(n, len(block)))) for block, n in zip(blocks, wanted, strict=True)]


@torch.no_grad()
def score_all(actor: Actor, rollouts: Rollouts, tokens: int = 8192, least: int = 1) -> Scores:
    """Scores of all rollouts, part by part, without gradients, on the CPU."""
    whole = [torch.zeros(rollouts.mask_BT.shape) for _ in Scores._fields]
    for index in parts(rollouts.lengths_B, tokens, least):
        part = rollouts.part(index)
        for target, value in zip(whole, actor.score(part), strict=True):
            target[index, : value.shape[1]] = value.float().cpu()
    return Scores(*whole)


def judged(judge: ScalarModel, answers: Rollouts, tokens: int = 8192, shared: bool = False) -> Tensor:
    """The members' scores of each answer (B, E), part by part, with gradients: what is read after its last token.

    shared: all processes ask this at once, and each reads some of every part.
    """
    device = judge.score.weight.device

    def scores(part: Rollouts) -> Tensor:
        packed = pack(part)
        last_B = packed.place_BT.gather(1, part.lengths_B[:, None] - 1).squeeze(1)
        return packed.through(judge, device)[last_B.to(device)]

    pieces = map(answers.part, parts(answers.lengths_B, tokens))
    return torch.cat([divided(piece, scores) if shared else scores(piece) for piece in pieces])


@torch.no_grad()
def judge_all(judge: ScalarModel, rollouts: Rollouts, tokens: int = 8192) -> Tensor:
    """`judged` without gradients, on the CPU."""
    return judged(judge, rollouts, tokens).cpu()


def sequence_log_probs(scores: Scores) -> Tensor:
    """log p(answer | prompt): summed over the drawn tokens (B,)."""
    return scores.log_probs_BT.sum(1)


class Batches:
    """Numbers 0..count-1 in batches without end, each number once a round, every round in an order of its own.

    batches[n] is the n-th batch, whichever was asked for before: a run that goes on deals what it would have dealt.
    """

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.count, self.size, self.seed = count, size, seed

    def __getitem__(self, number: int) -> list[int]:
        places = range(number * self.size, (number + 1) * self.size)
        return [self._round(place // self.count)[place % self.count] for place in places]

    @functools.lru_cache(maxsize=2)  # noqa: B019 - lives as long as its stage
    def _round(self, number: int) -> list[int]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        order: list[int] = torch.randperm(self.count, generator=generator).tolist()
        return order
