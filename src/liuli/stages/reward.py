"""The reward model: comparisons of two answers -> a model that gives an answer a number (arXiv 2203.02155, 3.5).

It begins as the chat model with new heads on the state after the last token. Each head is a member of an ensemble that
learns from two thirds of the comparisons, its own choice of them; the body is shared, since a laptop has no time for
three (docs/notebook.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from liuli.engine import Engine
from liuli.errors import LiuliError
from liuli.files import remove
from liuli.folder import TOKENIZER, context_in, read_model_folder
from liuli.model import load
from liuli.model.scalar import ScalarModel, load_scalar, save_scalar
from liuli.stages.experience import Reward
from liuli.stages.rollout import Answering, Batches, Rollouts, fitting, given, judge_all, judged, padded, roll_out
from liuli.stages.training import begin, check_finite, checkpoints_of, content_hash
from liuli.text import Preference, Tokenizer, as_messages
from liuli.text.chat import Messages
from liuli.train import Machine, Optimizer, OptimizerOptions, Pace, RunLog, measure_machine, schedule
from liuli.train.parallel import from_first, load_gathered, sharded, state_of, whole
from liuli.train.preference import Combine, combine, pairwise_loss
from liuli.train.steps import run_steps

OWN_ANSWERS = 256  # of the chat model, over which scores have mean 0 and standard deviation 1


@dataclass(frozen=True)
class RewardOptions:
    """How reward models are trained."""

    minutes: float | None = None
    epochs: float = 1.0  # where no minutes are given; more than one overfits (arXiv 2203.02155)
    members: int = 3
    prompts: int = 16  # of one step, with all their answers
    matrix_lr: float = 0.01  # Muon's; AdamW learned little in a minute (docs/notebook.md)
    adam_lr: float = 0.003
    centring: float = 0.0  # weight of (chosen + rejected)^2, which keeps scores near 0
    micro_tokens: int = 8192
    save_every_s: float = 60.0
    seed: int = 0


@dataclass(frozen=True)
class Comparisons:
    """Pairs as tokens. Each different answer of a prompt stands once in `answers`.

    chosen_P, rejected_P: rows of `answers`; group_P: the pair's prompt, 0..; margin_P: how much better (0: not said),
    or None. asked: the prompts themselves, of a group the first.
    """

    answers: Rollouts
    chosen_P: Tensor
    rejected_P: Tensor
    group_P: Tensor
    margin_P: Tensor | None
    asked: tuple[Messages, ...]
    skipped: int = 0
    kinds: tuple[str, ...] = ()  # what each pair is about, where that is known
    kept: tuple[int, ...] = ()  # the places of the pairs among those that were given

    def __len__(self) -> int:
        return len(self.chosen_P)

    @property
    def prompts(self) -> int:
        return len(self.asked)


def compare(
    preferences: Sequence[Preference], tokenizer: Tokenizer, context: int, kinds: Sequence[str] = ()
) -> Comparisons:
    """Comparisons to train on. Pairs too long for the context, or that the template refuses, are counted and left out.

    Raises LiuliError if nothing is left.
    """
    each = [*dict.fromkeys((p.prompt, said) for p in preferences for said in (p.chosen, p.rejected))]
    read = zip(each, given(each, tokenizer, context), strict=True)
    answers = {key: one for key, one in read if isinstance(one, Answering)}
    rows = {key: row for row, key in enumerate(answers)}
    kept = [n for n, p in enumerate(preferences) if {(p.prompt, p.chosen), (p.prompt, p.rejected)} <= rows.keys()]
    if not kept:
        raise LiuliError("no comparison is left to learn from", "preferences", "give shorter answers, or others")
    pairs = [preferences[n] for n in kept]
    names = [p.group or str(p.prompt) for p in pairs]
    groups = {name: group for group, name in enumerate(dict.fromkeys(names))}
    firsts = dict(zip(names[::-1], pairs[::-1], strict=True))  # of each group
    margins = torch.tensor([math.nan if p.margin is None else p.margin for p in pairs])
    return Comparisons(
        padded([*answers.values()], tokenizer.pad),
        torch.tensor([rows[p.prompt, p.chosen] for p in pairs]),
        torch.tensor([rows[p.prompt, p.rejected] for p in pairs]),
        torch.tensor([groups[name] for name in names]),
        None if margins.isnan().all() else margins.nan_to_num(0.0),
        tuple(firsts[name].prompt for name in groups),
        len(preferences) - len(kept),
        tuple(kinds[number] for number in kept) if kinds else (),
        tuple(kept),
    )


def reward(
    model_folder: str | Path,
    train: Comparisons,
    out: str | Path,
    *,
    options: RewardOptions,
    log: RunLog,
    held_out: Comparisons | None = None,
    prompts: Sequence[Messages] = (),
) -> dict[str, float]:
    """Train a reward model from the chat model in `model_folder`, write it to `out`; figures on held-out comparisons.

    Scores have mean 0 and standard deviation 1 over what the chat model itself answers (arXiv 1909.08593, section 2.2)
    to `prompts`, those that practice will ask; default: those that were compared. UsageError where an unfinished run
    was begun with others.
    """
    check_apart(train, held_out)
    out, tokenizer, asked = Path(out), Tokenizer.load(model_folder), prompts or train.asked
    sums = {"pairs_hash": content_hash(train), "prompts_hash": content_hash(*asked)}
    checkpoints = checkpoints_of(log.folder, out.name)
    origin, machine = begin("reward", model_folder, {"pairs": len(train)} | sums, options, checkpoints)
    model, steps, seen, seconds = train_scores(model_folder, train, options, machine, log, checkpoints)
    skipped = train.skipped + (held_out.skipped if held_out is not None else 0)
    figures = {"seconds": seconds, "pairs": float(len(train)), "skipped": float(skipped)}
    figures |= {"steps": float(steps), "seen": float(seen)}
    own = own_answers(model_folder, asked, tokenizer, options.seed, machine, log)

    def end() -> dict[str, float]:
        found = figures | (examine(model, held_out) if held_out is not None else {})  # unscaled: these are log-odds
        normalise(model, own)
        check_finite(model, out)
        save_scalar(
            model,
            out,
            tokenizer_folder=model_folder,
            provenance=origin | {"options": asdict(options), "figures": found, "seed": options.seed, "step": steps},
            special=tokenizer.special_ids,
        )
        return found

    figures = from_first(end)
    remove(checkpoints)
    return figures


def check_apart(train: Comparisons, held_out: Comparisons | None) -> None:
    """LiuliError where a held-out prompt is among those learned from."""
    if held_out is not None and (shared := set(train.asked) & set(held_out.asked)):
        what = f"{len(shared)} held-out prompts are among those learned from, and would tell how well it remembers"
        raise LiuliError(what, as_messages(min(shared, key=str))[-1].content[:60], "keep each prompt on one side")


def train_scores(
    model_folder: str | Path,
    data: Comparisons,
    options: RewardOptions,
    machine: Machine,
    log: RunLog,
    checkpoints: Path,
) -> tuple[ScalarModel, int, int, float]:
    """The ensemble, trained, the steps taken, the pairs seen in them, and the seconds that they took, over all starts;
    goes on from a checkpoint if there is one."""
    model = ScalarModel(load(model_folder), options.members).to(machine.device)
    model.body.compute_dtype = machine.compute_dtype
    rates = OptimizerOptions(
        matrix_lr=options.matrix_lr,
        adam_lr=options.adam_lr,
        embedding_lr=options.adam_lr,
        lookup_lr=options.adam_lr,
        adam_eps=1e-8,
    )
    optimizer = sharded(model, rates, machine.compute_dtype)
    by_prompt = pairs_by_prompt(data)
    prompts = min(options.prompts, len(by_prompt))
    pace = Pace.of(options.minutes, max(1, math.ceil(options.epochs * len(by_prompt) / prompts)), checkpoints)
    batches = Batches(len(by_prompt), prompts, options.seed)
    shares_PE = shares(data, options)

    def one_step(done: int) -> dict[str, float]:
        rows = torch.cat([by_prompt[prompt] for prompt in batches[done]])
        return take_step(model, optimizer, data, rows, shares_PE, options, schedule(pace.progress, 0.05, 0.8, 0.0))

    model.train()
    steps, _ = run_steps(
        one_step,
        pace,
        log=log,
        state=partial(state_of, model, optimizer),
        load_state=partial(load_gathered, model, optimizer),
        checkpoints=checkpoints,
        save_every_s=options.save_every_s,
        shown=("loss", "accuracy"),
    )
    seen = sum(len(by_prompt[prompt]) for step in range(steps) for prompt in batches[step])
    return whole(model).eval(), steps, seen, pace.seconds_spent()


def shares(data: Comparisons, options: RewardOptions) -> Tensor:
    """Which members learn from which prompts' comparisons (P, E) bool: two thirds each, so that they differ."""
    if options.members == 1:
        return torch.ones(len(data), 1, dtype=torch.bool)
    generator = torch.Generator().manual_seed(options.seed)
    by_group = torch.rand(data.prompts, options.members, generator=generator) < 2 / 3
    idle = ~by_group.any(1)  # that nobody learned from
    by_group[idle, torch.arange(data.prompts)[idle] % options.members] = True
    return by_group[data.group_P]


def take_step(
    model: ScalarModel,
    optimizer: Optimizer,
    data: Comparisons,
    rows: Tensor,
    shares_PE: Tensor,
    options: RewardOptions,
    scale: float,
) -> dict[str, float]:
    """One step on the pairs `rows`: every answer among them is read once, whatever the number of its pairs."""
    unique, place = torch.unique(torch.cat((data.chosen_P[rows], data.rejected_P[rows])), return_inverse=True)
    answers = data.answers.part(unique)
    device = model.score.weight.device
    group = torch.unique(data.group_P[rows], return_inverse=True)[1].to(device)
    margin = data.margin_P[rows].to(device) if data.margin_P is not None else None
    scores_BE = judged(model, answers, options.micro_tokens, shared=True)
    chosen_PE, rejected_PE = scores_BE[place[: len(rows)].to(device)], scores_BE[place[len(rows) :].to(device)]
    loss = torch.zeros((), device=device)
    for member in range(options.members):
        own = shares_PE[rows, member].to(device)
        if own.any():
            marginal = margin[own] if margin is not None else None
            total = pairwise_loss(chosen_PE[own, member], rejected_PE[own, member], group[own], marginal)
            loss = loss + total / len(torch.unique(group[own])) / options.members
    if options.centring:
        loss = loss + options.centring * (chosen_PE + rejected_PE).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step(scale)
    optimizer.zero_grad()
    right = (chosen_PE.mean(1) > rejected_PE.mean(1)).float().mean()
    return {"loss": float(loss.detach()), "accuracy": float(right)}


def pairs_by_prompt(data: Comparisons) -> list[Tensor]:
    """The rows of each prompt's pairs."""
    order = torch.argsort(data.group_P, stable=True)
    return list(torch.split(order, torch.bincount(data.group_P, minlength=data.prompts).tolist()))


def own_answers(
    model_folder: str | Path,
    prompts: Sequence[Messages],
    tokenizer: Tokenizer,
    seed: int,
    machine: Machine,
    log: RunLog,
) -> Rollouts:
    """What the chat model answers to some of these prompts: where practice begins. Those that ended, unless hardly any
    did."""
    model = load(model_folder, machine.device)
    model.compute_dtype = machine.compute_dtype
    engine = Engine(model, tokenizer, rows=256)
    dealt = Batches(len(prompts), min(len(prompts), OWN_ANSWERS), seed)[0]  # however they are sorted
    some = [prompts[number] for number in dealt]
    fit = fitting(some, tokenizer, engine.context, log.warn)  # of thousands these alone: rendering takes seconds
    seeds = [(seed * 8_191 + place) * 8 for place in range(len(fit))]
    drawn = roll_out(engine, [some[place] for place in fit], max_tokens=200, seeds=seeds)
    return drawn.part(drawn.finished_B.nonzero().flatten()) if int(drawn.finished_B.sum()) > 32 else drawn


@torch.no_grad()
def normalise(model: ScalarModel, answers: Rollouts) -> None:
    """Scale heads and offsets so that these answers' scores have mean 0 and standard deviation 1: each member's first,
    then those of all, which are lower and closer together where the members disagree."""
    scores_BE = judge_all(model, answers).to(model.score.weight.device)
    spread_E, mean_E = scores_BE.std(0, correction=0).clamp_min(1e-6), scores_BE.mean(0)
    score_B = combine(((scores_BE - mean_E) / spread_E).T, "cautious")
    spread, mean = score_B.std(correction=0).clamp_min(1e-6), score_B.mean()
    model.score.weight.div_(spread_E[:, None] * spread)
    model.offsets_E.copy_(((model.offsets_E - mean_E) / spread_E - mean) / spread)


def load_judge(folder: str | Path, model_folder: str | Path) -> ScalarModel:
    """The reward model in a folder, to score what the model in another writes; where and as this machine is fastest.

    Raises LiuliError where the two read different tokens, where it reads fewer at once, and where held-out pairs showed
    it no better than a coin.
    """
    first, second = (read_model_folder(path, verify=False) for path in (model_folder, folder))
    if (first.path / TOKENIZER).read_bytes() != (second.path / TOKENIZER).read_bytes():
        what = "the reward model reads other tokens than the model"
        raise LiuliError(what, folder, "train it from this model: liuli reward")
    reads, writes = (context_in(model.config) or math.inf for model in (second, first))
    if reads < writes:
        what = f"the reward model reads {reads} tokens at most, the model's context is {writes}"
        raise LiuliError(what, folder, "train it from this model: liuli reward")
    check_better_than_chance(second.provenance.get("figures", {}), folder)
    machine = measure_machine()
    judge = load_scalar(folder, machine.device)
    judge.body.compute_dtype = machine.compute_dtype
    return judge


def score_answers(model: ScalarModel, answers: Rollouts, kind: Combine = "cautious") -> tuple[Tensor, Tensor]:
    """The ensemble's score of each answer (B,), and each member's (E, B)."""
    each_EB = judge_all(model, answers).T.contiguous()
    return combine(each_EB, kind), each_EB


def scored_by(
    model: ScalarModel, truth: Callable[[Rollouts], Tensor] | None = None, combine: Combine = "cautious"
) -> Callable[[Rollouts], Reward]:
    """What answers earn: the reward model's scores, and beside them the ground truth's grades where there is one."""

    def earn(rollouts: Rollouts) -> Reward:
        return Reward(*score_answers(model, rollouts, combine), truth(rollouts) if truth is not None else None)

    return earn


def examine(model: ScalarModel, data: Comparisons) -> dict[str, float]:
    """Held-out comparisons: the share foretold by the members' mean, and how far its probabilities are from the truth.

    calibration: mean distance, over twentieths of the predicted probability, from the share that came true. margin:
    mean score of the chosen above that of the rejected, also by kind of pair where that is known.
    """
    scores_B, each_EB = score_answers(model, data.answers, "mean")
    gap = scores_B[data.chosen_P] - scores_B[data.rejected_P]
    right = (gap > 0).float()
    predicted = torch.sigmoid(gap.abs()).clamp_max(1 - 1e-6)  # of a wide gap it is 1, in none of the twentieths
    error = 0.0
    for low in np.arange(0.5, 1.0, 0.05):
        inside = (predicted >= low) & (predicted < low + 0.05)
        if inside.any():
            error += float(inside.float().mean() * (predicted[inside].mean() - right[inside].mean()).abs())
    alone = [float((own[data.chosen_P] > own[data.rejected_P]).float().mean()) for own in each_EB]
    figures = {
        "accuracy": float(right.mean()),
        "held_out": float(len(data)),
        "accuracy_alone": sum(alone) / len(alone),
        "calibration": error,
        "margin": float(gap.mean()),
        "disagreement": float(each_EB.std(0, correction=0).mean()),
    }
    for kind in dict.fromkeys(data.kinds):
        own = torch.tensor([n for n, other in enumerate(data.kinds) if other == kind])
        figures |= {f"accuracy, {kind}": float(right[own].mean()), f"margin, {kind}": float(gap[own].mean())}
    return figures


def check_better_than_chance(figures: dict[str, float], where: str | Path) -> None:
    """Refuse a reward model that foretells comparisons no better than a coin (arXiv 2203.02155 reports 69.6%); one that
    was never examined passes."""
    n, share = figures.get("held_out", 0.0), figures.get("accuracy", 1.0)
    if n and share <= 0.5 + 2 * math.sqrt(0.25 / n):
        raise LiuliError(
            f"this reward model is right about {share:.0%} of {n:.0f} held-out comparisons: no better than chance",
            where,
            "give it more comparisons, or more minutes",
        )
