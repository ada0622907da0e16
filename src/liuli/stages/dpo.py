"""DPO and its relatives: comparisons (or thumbs) teach the policy itself, without a reward model (arXiv 2305.18290)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from liuli.errors import LiuliError, UsageError
from liuli.files import remove
from liuli.model import load
from liuli.stages.reward import Comparisons, check_apart
from liuli.stages.rollout import Actor, Batches, ModelActor, Rollouts, as_rollouts, parts, score_all, sequence_log_probs
from liuli.stages.training import begin, checkpoints_of, content_hash, write_model
from liuli.text import Judged, Tokenizer, as_messages, render
from liuli.text.chat import Messages
from liuli.train import Pace, RunLog, one_rate, schedule
from liuli.train.parallel import across, from_first, load_gathered, sharded, state_of, whole
from liuli.train.preference import dpo_loss, kto_loss, mismatched_kl
from liuli.train.steps import run_steps

LEAST_STEPS = 16  # of an epoch: the rates of the first and the last are near 0


@dataclass(frozen=True)
class DPOOptions:
    """How the policy learns from comparisons."""

    minutes: float | None = None
    epochs: float = 1.0  # where no minutes are given
    kind: Literal["sigmoid", "ipo", "kto"] = "sigmoid"
    pairs: int = 64  # of one step (kto: answers); less where an epoch would be under sixteen steps
    lr: float = 3e-5
    beta: float = 0.3
    smoothing: float = 0.0  # share of comparisons taken to be flipped
    micro_tokens: int = 8192
    save_every_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise UsageError(f"at beta = {self.beta} nothing is learned", "beta", "give a number above 0")
        if self.smoothing >= 0.5:
            what = f"smoothing = {self.smoothing} takes most comparisons to be flipped"
            raise UsageError(what, "smoothing", "give a number below 0.5")


@dataclass(frozen=True)
class Thumbs:
    """Answers judged one by one, as tokens; mismatched: the same answers under each other's prompts."""

    answers: Rollouts
    mismatched: Rollouts
    good_B: Tensor
    skipped: int = 0


def thumbs(judged: Sequence[Judged], tokenizer: Tokenizer, context: int) -> Thumbs:
    """Thumbs to train on; answers too long for the context are left out and counted.

    Raises LiuliError if all that are left point one way.
    """
    kept = [one for one in judged if fits(one.prompt, one.answer, tokenizer, context)]
    good = torch.tensor([one.good for one in kept])
    if judged and not kept:
        raise LiuliError(f"no judged answer fits the context of {context} tokens", "thumbs", "give shorter ones")
    if not kept or good.all() or not good.any():
        raise LiuliError("every thumb points the same way", "thumbs", "give good answers and bad ones")
    prompts, answers, places = zip(*((one.prompt, one.answer, one.source) for one in kept), strict=True)
    turned = [another(n, prompts, answers, tokenizer, context) for n in range(len(kept))]
    return Thumbs(
        as_rollouts(prompts, answers, tokenizer, context, places),
        as_rollouts(prompts, turned, tokenizer, context, places),
        good,
        len(judged) - len(kept),
    )


def another(
    number: int, prompts: Sequence[Messages], answers: Sequence[Messages], tokenizer: Tokenizer, context: int
) -> Messages:
    """An answer to another prompt that fits behind this one: one prompt's answers often stand side by side."""
    count = len(prompts)
    for place in ((number + step) % count for step in range(1, count)):
        if prompts[place] != prompts[number] and fits(prompts[number], answers[place], tokenizer, context):
            return answers[place]
    return answers[number]


def fits(prompt: Messages, answer: Messages, tokenizer: Tokenizer, context: int) -> bool:
    """Whether prompt and answer together are no longer than the context."""
    return len(render([*as_messages(prompt), *as_messages(answer)], tokenizer).tokens) <= context


def dpo(
    model_folder: str | Path,
    data: Comparisons | Thumbs,
    out: str | Path,
    *,
    options: DPOOptions,
    log: RunLog,
    held_out: Comparisons | None = None,
) -> dict[str, float]:
    """Teach the model in `model_folder` by comparisons (kto: by thumbs) and write it to `out`; the last figures.

    held_out: comparisons of which the share that the policy's own reward ranks rightly is told (`held_out_accuracy`).
    Raises UsageError for the wrong kind of data, and where an unfinished run was begun with other data or options.
    """
    if isinstance(data, Thumbs) != (options.kind == "kto"):
        raise UsageError(f"{options.kind} does not learn from this kind of data", "kind", "kto: thumbs; others: pairs")
    if isinstance(data, Comparisons):
        check_apart(data, held_out)
    out, tokenizer = Path(out), Tokenizer.load(model_folder)
    count = len(data.good_B) if isinstance(data, Thumbs) else len(data)
    checkpoints = checkpoints_of(log.folder, out.name)
    known = {"judged": count, "judged_hash": content_hash(data)}
    origin, machine = begin("dpo", model_folder, known, options, checkpoints)
    model = load(model_folder, machine.device)
    model.compute_dtype = machine.compute_dtype
    optimizer = sharded(model, one_rate(options.lr, beta2=0.98, adam_eps=1e-8))
    actor = across(ModelActor(model))

    def log_probs(answers: Rollouts) -> Tensor:
        return sequence_log_probs(score_all(actor, answers, options.micro_tokens))

    # the reference is the model as it is now: its log-probabilities are taken once
    reference_B = log_probs(data.answers)
    tested_B = log_probs(held_out.answers) if held_out is not None else reference_B
    far_B = log_probs(data.mismatched) if isinstance(data, Thumbs) else None
    size = min(options.pairs, math.ceil(count / LEAST_STEPS))
    batches = Batches(count, size, options.seed)
    pace = Pace.of(options.minutes, math.ceil(options.epochs * count / size), checkpoints)

    def one_step(done: int) -> dict[str, float]:
        rows = torch.tensor(batches[done])
        if isinstance(data, Thumbs):
            assert far_B is not None
            loss, figures = thumbs_loss(actor, data, rows, reference_B, far_B, options)
        else:
            loss, figures = pairs_loss(actor, data, rows, reference_B, options)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(schedule(pace.progress, 0.1, 0.9, 0.0))
        optimizer.zero_grad()
        return figures

    done, figures = run_steps(
        one_step,
        pace,
        log=log,
        state=partial(state_of, model, optimizer),
        load_state=partial(load_gathered, model, optimizer),
        checkpoints=checkpoints,
        save_every_s=options.save_every_s,
        shown=("loss", "accuracy"),
    )
    if held_out is not None:
        gain_B = log_probs(held_out.answers) - tested_B
        right_P = gain_B[held_out.chosen_P] > gain_B[held_out.rejected_P]
        figures |= {"held_out": float(len(held_out)), "held_out_accuracy": float(right_P.float().mean())}
    provenance = origin | {"options": asdict(options), "figures": figures, "seed": options.seed, "step": done}
    from_first(write_model, whole(model), out, tokenizer, Path(model_folder), provenance)
    remove(checkpoints)
    return figures


def summed(actor: Actor, answers: Rollouts, micro_tokens: int) -> Tensor:
    """log p(answer | prompt) of each answer (B,), with gradients."""
    pieces = parts(answers.lengths_B, micro_tokens)
    return torch.cat([sequence_log_probs(actor.score(answers.part(index))) for index in pieces])


def pairs_loss(
    actor: Actor, data: Comparisons, rows: Tensor, reference_B: Tensor, options: DPOOptions
) -> tuple[Tensor, dict[str, float]]:
    """The mean loss of some pairs, and how often the policy's own reward ranks them as the judge did."""
    places_P2 = torch.stack((data.chosen_P[rows], data.rejected_P[rows]), dim=1)  # neighbours share their prompt
    log_probs_P2 = summed(actor, data.answers.part(places_P2.flatten()), options.micro_tokens).view(-1, 2)
    reference_P2 = reference_B[places_P2].to(log_probs_P2.device)
    kind: Literal["sigmoid", "ipo"] = "ipo" if options.kind == "ipo" else "sigmoid"
    sides = (log_probs_P2[:, 0], log_probs_P2[:, 1], reference_P2[:, 0], reference_P2[:, 1])
    loss = dpo_loss(*sides, options.beta, kind, options.smoothing).mean()
    chosen_P, rejected_P = (log_probs_P2 - reference_P2).detach().unbind(1)
    figures = {
        "loss": float(loss.detach()),
        "accuracy": float((chosen_P > rejected_P).float().mean()),
        "chosen_gain": float(chosen_P.mean()),  # log-probability won by the better answers: it may well fall
        "rejected_gain": float(rejected_P.mean()),
    }
    return loss, figures


def thumbs_loss(
    actor: Actor, data: Thumbs, rows: Tensor, reference_B: Tensor, far_B: Tensor, options: DPOOptions
) -> tuple[Tensor, dict[str, float]]:
    """KTO's mean loss of some answers."""
    log_probs = summed(actor, data.answers.part(rows), options.micro_tokens)
    with torch.no_grad():
        far = summed(actor, data.mismatched.part(rows), options.micro_tokens)
        kl = mismatched_kl(far, far_B[rows].to(far.device))
    good = data.good_B[rows].to(log_probs.device)
    reference = reference_B[rows].to(log_probs.device)
    loss = kto_loss(log_probs, reference, good, kl, options.beta).mean()
    gain = (log_probs - reference).detach()
    right = torch.where(good, gain > kl, gain < kl).float().mean()
    return loss, {"loss": float(loss.detach()), "accuracy": float(right), "kl": float(kl)}
