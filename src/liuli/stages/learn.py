"""The loop that PPO and GRPO share: prompts -> rollouts -> scores -> advantages -> a few steps, again and again.

`Experience` is what one round of answers taught; how it is made of scores is the algorithm's (ppo.py, grpo.py), how the
policy learns from it is `update`. Both are pure but for the weights, and the tests run them on tabular policies.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from liuli.engine import Engine
from liuli.errors import LiuliError, UsageError
from liuli.files import remove
from liuli.model import Transformer, load
from liuli.stages.remote import RemoteEngine, publish
from liuli.stages.rollout import (
    Actor,
    Batches,
    Critic,
    ModelActor,
    Rollouts,
    Scores,
    Writer,
    parts,
    roll_out,
    score_all,
)
from liuli.stages.training import write_model
from liuli.text import Loader, Rows, Tokenizer
from liuli.text.chat import Messages
from liuli.train import Optimizer, Pace, RunLog, measure_machine, next_target, one_rate, schedule
from liuli.train.loop import to_tensors
from liuli.train.parallel import across, from_first, gathered, load_gathered, rank, ranks, sharded
from liuli.train.policy import KL, Spread, clipped_loss, explained_variance, kl_terms, token_weights, value_loss
from liuli.train.steps import run_steps
from liuli.train.trace import write_trace


class Experience(NamedTuple):
    """What a round taught, (B, T) float32 each; log-probabilities and values are those before the first step."""

    rollouts: Rollouts
    log_probs_BT: Tensor
    reference_BT: Tensor
    values_BT: Tensor
    kl_BT: Tensor  # k1, whatever the rewards were made of
    rewards_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor


@dataclass(frozen=True)
class PracticeOptions:
    """What PPO and GRPO have in common: the budget, how answers are drawn, how the run is watched."""

    minutes: float | None = None
    steps: int | None = None
    answers: int = 256  # of one round
    beta: float = 0.05  # the leash: nats of KL cost this much score
    lr: float = 2e-4
    no_end: float = -1.0  # the score of an answer that did not end by itself
    temperature: float = 1.0
    max_tokens: int = 96
    engine_url: str = ""  # a vLLM server that draws the answers; "": our own engine
    most_drift: float = 0.02  # nats a token between engine and trainer, mean; more stops the run
    trace_every: int = 10  # steps between traces for the microscope; 0: none
    save_every_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UsageError("at temperature 0 there is nothing to explore", "temperature", "give a number above 0")


@dataclass(frozen=True)
class Step:
    """How the policy learns from one experience. What is 0 is left out."""

    epochs: int = 4
    minibatches: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.2
    value_weight: float = 0.0  # of the value loss beside the policy's
    value_clip: float = 0.2
    leash: float = 0.0  # weight of a KL term in the loss itself
    leash_kind: KL = "k2"
    spread: Spread = "token"
    constant: float = 1.0  # tokens that `spread = constant` divides by
    micro_tokens: int = 8192
    stop_kl: float = 0.0  # nats a token between policy before and now at which a round's steps end early


def objective(scores: Scores, e: Experience, weights_BT: Tensor, step: Step) -> tuple[Tensor, dict[str, float]]:
    """The loss of some answers of a minibatch: a scalar that the parts of the minibatch add up to; and figures.

    weights_BT: what each token counts (`token_weights` of the whole minibatch).
    """
    policy_BT, clipped_BT = clipped_loss(
        scores.log_probs_BT, e.log_probs_BT, e.advantages_BT, step.clip_low, step.clip_high
    )
    loss_BT = policy_BT
    figures = {"policy_loss": policy_BT, "clip_fraction": clipped_BT.float(), "entropy": scores.entropy_BT}
    figures["kl_from_old"] = kl_terms(e.log_probs_BT, scores.log_probs_BT.detach(), "k3")
    if step.value_weight:
        critic_BT = value_loss(scores.values_BT, e.values_BT, e.returns_BT, step.value_clip)
        loss_BT = loss_BT + step.value_weight * critic_BT
        figures["value_loss"] = critic_BT
    if step.leash:
        loss_BT = loss_BT + step.leash * kl_terms(scores.log_probs_BT, e.reference_BT, step.leash_kind)
    with torch.no_grad():
        means = {name: float((weights_BT * value).sum()) for name, value in figures.items()}
    return (weights_BT * loss_BT).sum(), means


def update(
    actor: Actor,
    optimizer: Optimizer,
    e: Experience,
    step: Step,
    *,
    scale: float = 1.0,
    seed: int = 0,
    extra: Callable[[], Tensor] | None = None,
) -> dict[str, float]:
    """Several epochs of steps on one experience. Changes the actor's weights; returns means over all steps.

    scale: on all learning rates. extra: a loss added to each step's (PPO-ptx). `first_ratio` is the largest distance of
    a probability ratio from 1 before the first step: anything but about 0 means that sampling and training disagree.
    """
    pieces = parts(e.rollouts.lengths_B, step.micro_tokens)
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, float] = {}
    steps, first_ratio = 0, 0.0
    for batch in chain.from_iterable(deal(pieces, step.minibatches, generator) for _ in range(step.epochs)):
        rows = torch.cat(batch)
        weights_BT = torch.zeros(e.rollouts.mask_BT.shape)
        weights_BT[rows] = token_weights(e.rollouts.mask_BT[rows], step.spread, step.constant)
        means: dict[str, float] = {}
        for index in batch:
            part = select(e, index)
            scores = actor.score(part.rollouts)
            device = scores.log_probs_BT.device
            part = Experience(part.rollouts, *(x.to(device) for x in part[1:]))
            if not steps:
                first_ratio = max(first_ratio, largest_ratio(scores, part))
            loss, figures = objective(scores, part, weights_BT[index, : part.kl_BT.shape[1]].to(device), step)
            loss.backward()  # type: ignore[no-untyped-call]
            means = {name: means.get(name, 0.0) + value for name, value in figures.items()}
        if step.stop_kl and means["kl_from_old"] > step.stop_kl:
            optimizer.zero_grad()
            break
        if extra is not None:
            extra().backward()  # type: ignore[no-untyped-call]
        optimizer.step(scale)
        optimizer.zero_grad()
        steps += 1
        sums = {name: sums.get(name, 0.0) + value for name, value in means.items()}
    means = {name: value / max(1, steps) for name, value in sums.items()}
    return means | {"first_ratio": first_ratio, "steps": float(steps)}


def deal(pieces: Sequence[Tensor], minibatches: int, generator: torch.Generator) -> list[list[Tensor]]:
    """The parts in a new order, in so many minibatches (or as many as there are parts)."""
    order = torch.randperm(len(pieces), generator=generator).tolist()
    count = min(minibatches, len(pieces))
    return [[pieces[i] for i in order[number::count]] for number in range(count)]


def select(e: Experience, index_N: Tensor) -> Experience:
    """Some answers of an experience, cut to the longest of them."""
    rollouts = e.rollouts.part(index_N)
    return Experience(rollouts, *(x[index_N, : rollouts.mask_BT.shape[1]] for x in e[1:]))


@torch.no_grad()
def largest_ratio(scores: Scores, e: Experience) -> float:
    """The largest |ratio - 1| over the drawn tokens."""
    return float((torch.exp(scores.log_probs_BT - e.log_probs_BT) - 1).abs().max())


# --- the loop --------------------------------------------------------------------------------------------------------


class Reward(NamedTuple):
    """What answers earned: scores_B float32; members_EB: of each of an ensemble; truth_B: the ground truth's own grade,
    NaN where there is none. Only scores_B is learned from."""

    scores_B: Tensor
    members_EB: Tensor | None = None
    truth_B: Tensor | None = None


@dataclass
class Learner:
    """Everything of a run that changes, and what it needs to go on."""

    policy: ModelActor
    reference: ModelActor
    optimizer: Optimizer
    engine: Writer
    prompts: Sequence[Messages]
    reward: Callable[[Rollouts], Reward]
    experience: Callable[[Rollouts, Scores, Tensor, Tensor, float], Experience]
    step: Step
    pace: Pace
    log: RunLog
    stage: str
    answers_per_step: int
    group: int = 1  # answers of one prompt
    max_tokens: int = 128
    beta: float = 0.05
    steer: Callable[[float, float, int], float] | None = None  # (beta, KL, answers) -> the next beta
    texts: Loader | None = None  # rows for the pretraining loss of PPO-ptx, and its weight
    ptx: float = 0.0
    most_drift: float = 0.02  # nats a token between engine and trainer, mean
    warmup: float = 0.05
    cooldown: float = 1.0
    trace_every: int = 10
    seed: int = 0
    checkpoints: Path | None = None
    save_every_s: float = 60.0
    renew: Callable[[int], None] = lambda done: None  # gives an engine with weights of its own those of now
    done: int = 0  # steps
    tokens: int = 0

    def run(self) -> dict[str, float]:
        """Learn until the budget is used; the figures of the last step. Goes on from a checkpoint if there is one."""
        batches = Batches(len(self.prompts), max(1, self.answers_per_step // self.group), self.seed)

        def one_step(done: int) -> dict[str, float]:
            self.done = done
            return self.take_step(batches[done])

        self.done, figures = run_steps(
            one_step,
            self.pace,
            log=self.log,
            state=self.state,
            load_state=self.load_state,
            checkpoints=self.checkpoints,
            save_every_s=self.save_every_s,
            shown=("score", "kl", "stop_rate"),
        )
        return figures

    def take_step(self, chosen: list[int]) -> dict[str, float]:
        """One round: draw, score, learn."""
        numbers = [number for number in chosen for _ in range(self.group)]
        seeds = [((self.seed * 100_003 + self.done) * 8_192 + place) * 8 for place in range(len(numbers))]
        self.renew(self.done)
        rollouts = roll_out(
            self.engine,
            [self.prompts[number] for number in numbers],
            temperature=self.policy.temperature,
            max_tokens=self.max_tokens,
            seeds=seeds,
        )
        rollouts = replace(rollouts, prompt_B=torch.tensor(numbers))
        reward = from_first(self.reward, rollouts)
        if not torch.isfinite(reward.scores_B).all():
            raise LiuliError("the reward of an answer is not a number", f"step {self.done}", "look at the reward model")
        old = score_all(across(self.policy), rollouts, self.step.micro_tokens)
        reference = score_all(across(self.reference), rollouts, self.step.micro_tokens)
        e = self.experience(rollouts, old, reference.log_probs_BT, reward.scores_B, self.beta)
        drift = self.check(rollouts)
        scale = schedule(self.pace.progress, self.warmup, self.cooldown, 0.02)
        means = update(
            across(self.policy),
            self.optimizer,
            e,
            self.step,
            scale=scale,
            seed=self.seed + self.done,
            extra=self.text_loss if self.texts is not None else None,
        )
        self.check_ratio(means["first_ratio"])
        kl = float(e.kl_BT.sum(1).mean())
        figures = means | round_figures(e, reward) | {"kl": kl, "beta": self.beta, "drift": drift}
        if self.trace_every and self.done % self.trace_every == 0:
            self.trace(e, reward, old)
        if self.steer is not None:
            self.beta = self.steer(self.beta, kl, len(rollouts))
        self.tokens += int(rollouts.lengths_B.sum())
        return figures | {"tokens": float(self.tokens)}

    def check(self, rollouts: Rollouts) -> float:
        """How far the engine's log-probabilities are from the trainer's, mean of nats a token; refuses a wide gap."""
        few = rollouts.part(torch.arange(min(32, len(rollouts))))
        bare = replace(self.policy, temperature=1.0, ban_V=None, critic=None)
        plain = score_all(across(bare), few, self.step.micro_tokens)
        drift = float((plain.log_probs_BT - few.sampler_BT)[few.mask_BT].abs().mean())
        if drift > self.most_drift or math.isnan(drift):
            raise LiuliError(
                f"engine and trainer disagree by {drift:.3f} nats a token: what is learned from is not what was drawn",
                f"step {self.done}",
                "give both the same weights and a dtype of more bits",
            )
        return drift

    def check_ratio(self, first_ratio: float) -> None:
        if first_ratio > 1e-3:
            raise LiuliError(
                f"before the first step a token's probability is off its own by {first_ratio:.2g}",
                f"step {self.done}",
                "the model is not the same twice: is dropout on, or a temperature left out?",
            )

    def trace(self, e: Experience, reward: Reward, old: Scores) -> None:
        """The columnar record of this step: one row a token, one row an answer."""
        new = score_all(across(self.policy), e.rollouts, self.step.micro_tokens)
        columns = trace_columns(e, reward, old, new, self.step, self.engine, self.prompts)
        from_first(write_trace, self.log.folder, self.stage, self.done + 1, *columns)  # rounds count from 1, as logged

    def text_loss(self) -> Tensor:
        """PPO-ptx: the loss of the next rows of text, times its weight (arXiv 2203.02155, eq. 2)."""
        assert self.texts is not None
        batch = next(self.texts)
        device = str(self.policy.model.embedding.weight.device)
        # documents of a row are kept apart, as in every stage
        part = to_tensors(batch, slice(rank(), None, ranks()), device, self.engine.tokenizer.bos)
        # of the mean over processes that sharding takes, a sum is wanted
        loss: Tensor = self.ptx * ranks() * next_target(self.policy.model, part) / float(batch.weights_BT.sum())
        return loss

    def state(self) -> dict[str, Any]:
        return {
            "weights": gathered(dict(self.policy.learning.state_dict())),
            "optimizer": gathered(self.optimizer.state()),
            "beta": self.beta,
            "tokens": self.tokens,
            "texts": self.texts.position if self.texts is not None else 0,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        load_gathered(self.policy.learning, self.optimizer, state["weights"], state["optimizer"])
        self.beta, self.tokens = state["beta"], state["tokens"]
        if self.texts is not None:
            self.texts.position = state["texts"]


def round_figures(e: Experience, reward: Reward) -> dict[str, float]:
    """What the round's answers were like."""
    r = e.rollouts
    figures = {
        "score": float(reward.scores_B.mean()),
        "length": float(r.mask_BT.sum(1).float().mean()),
        "stop_rate": float(r.finished_B.float().mean()),
        "explained_variance": explained_variance(e.values_BT, e.returns_BT, r.mask_BT),
    }
    if reward.truth_B is not None and not reward.truth_B.isnan().all():
        figures["true_score"] = float(reward.truth_B.nanmean())
    if reward.members_EB is not None:
        figures["disagreement"] = float(reward.members_EB.std(0, correction=0).mean())
    return figures


def trace_columns(
    e: Experience,
    reward: Reward,
    old: Scores,
    new: Scores,
    step: Step,
    engine: Writer,
    prompts: Sequence[Messages],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of a trace (train/trace.py): of every token, and of every answer."""
    r = e.rollouts
    real_BT = torch.arange(r.tokens_BT.shape[1])[None, :] < r.lengths_B[:, None]
    sequence_N, position_N = real_BT.nonzero(as_tuple=True)
    table = {
        "logprob_sampler": r.sampler_BT,
        "logprob_old": e.log_probs_BT,
        "logprob_new": new.log_probs_BT,
        "logprob_ref": e.reference_BT,
        "kl": e.kl_BT,
        "reward": e.rewards_BT,
        "value": e.values_BT,
        "advantage": e.advantages_BT,
        "return": e.returns_BT,
        "ratio": torch.exp(new.log_probs_BT - e.log_probs_BT),
        "entropy": old.entropy_BT,
    }
    nothing = torch.full(r.mask_BT.shape, math.nan)
    tokens: dict[str, Any] = {name: torch.where(r.mask_BT, x, nothing)[real_BT].numpy() for name, x in table.items()}
    ids = r.tokens_BT[real_BT].tolist()
    tokens |= {"sequence": sequence_N.numpy(), "position": position_N.numpy(), "token": ids}
    tokens |= {"text": [engine.names[id] for id in ids], "drawn": r.mask_BT[real_BT].numpy()}
    held_BT = clipped_loss(new.log_probs_BT, e.log_probs_BT, e.advantages_BT, step.clip_low, step.clip_high)[1]
    tokens["clipped"] = (held_BT & r.mask_BT)[real_BT].numpy()
    truth = reward.truth_B if reward.truth_B is not None else torch.full((len(r),), math.nan)
    members = reward.members_EB if reward.members_EB is not None else reward.scores_B[None]
    sequences: dict[str, Any] = {
        "sequence": list(range(len(r))),
        "prompt": [_last_words(prompts[number]) for number in r.prompt_B.tolist()],
        "answer": [said[-1].content if said else "" for said in r.produced],
        "score": reward.scores_B.tolist(),
        "members": members.T.tolist(),
        "length": r.mask_BT.sum(1).tolist(),
        "finished": r.finished_B.tolist(),
        "advantage": ((e.advantages_BT * r.mask_BT).sum(1) / r.mask_BT.sum(1).clamp_min(1)).tolist(),
        "right": [None if math.isnan(value) else value > 0 for value in truth.tolist()],
    }
    return tokens, sequences


def _last_words(prompt: Messages) -> str:
    message = list(prompt)[-1] if not hasattr(prompt, "messages") else prompt.messages[-1]
    return str(message["content"] if isinstance(message, dict) else getattr(message, "content", ""))


# --- from a model folder to a better one -----------------------------------------------------------------------------


def reinforce(
    model_folder: Path,
    out: Path,
    prompts: Sequence[Messages],
    *,
    kind: str,
    reward: Callable[[Rollouts], Reward],
    experience: Callable[[Rollouts, Scores, Tensor, Tensor, float], Experience],
    step: Step,
    options: PracticeOptions,
    log: RunLog,
    critic: Callable[[Transformer], Critic | None] = lambda model: None,
    steer: Callable[[float, float, int], float] | None = None,
    ptx_rows: Rows | None = None,
    group: int = 1,
    provenance: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Set a run up on the model in a folder, run it, write the model it leads to; the figures of the last step.

    critic: makes what gives values (arXiv 2203.02155 takes the reward model).
    Raises LiuliError for prompts that do not fit, for none at all, and where engine and trainer disagree.
    """
    if not prompts:
        raise LiuliError("there are no prompts to answer", str(out), "give a file of prompts")
    machine, tokenizer = from_first(measure_machine), Tokenizer.load(model_folder)
    torch.manual_seed(options.seed)
    model, before = load(model_folder, machine.device), load(model_folder, machine.device)
    # of shards no engine can write, and another engine than ours reads a folder: both get the weights by `renew`
    writer = model if ranks() == 1 and not options.engine_url else load(model_folder, machine.device)
    model.compute_dtype = before.compute_dtype = writer.compute_dtype = machine.compute_dtype
    url, key = options.engine_url, os.environ.get("LIULI_ENGINE_KEY")
    engine: Writer = RemoteEngine(url, tokenizer, model.config, key=key) if url else Engine(writer, tokenizer, rows=256)
    ban_V = engine.ban_V.to(machine.device)
    policy = ModelActor(model, options.temperature, ban_V, critic(model))
    optimizer = sharded(policy.learning, one_rate(options.lr, beta2=0.95, adam_eps=1e-5))
    published = log.folder / f"{out.name}-weights"

    def copy_weights() -> None:
        if writer is not model:
            writer.load_state_dict(gathered(model.state_dict()))

    def renew(done: int) -> None:
        copy_weights()
        if isinstance(engine, RemoteEngine):
            from_first(publish, engine, writer, published, done, model_folder)

    checkpoints = log.folder / "checkpoints" / out.name
    learner = Learner(
        policy,
        ModelActor(before, options.temperature, ban_V),
        optimizer,
        engine,
        prompts,
        reward,
        experience,
        step,
        Pace.of(options.minutes, options.steps or 1, checkpoints),
        log,
        out.name,
        options.answers,
        group=group,
        max_tokens=options.max_tokens,
        beta=options.beta,
        steer=steer,
        texts=Loader(ptx_rows, 8, options.seed) if ptx_rows is not None else None,
        ptx=getattr(options, "ptx", 0.0),
        most_drift=options.most_drift,
        trace_every=options.trace_every,
        seed=options.seed,
        checkpoints=checkpoints,
        save_every_s=options.save_every_s,
        renew=renew,
    )
    figures = learner.run()
    remove(published)
    copy_weights()
    writer.compute_dtype = None
    from_first(
        write_model,
        writer.cpu(),
        out,
        tokenizer,
        model_folder,
        {"stage": kind, "parent": str(model_folder), "options": asdict(options), "figures": figures}
        | {"seed": options.seed, "step": learner.done, "tokens": learner.tokens}
        | (provenance or {}),
    )
    remove(checkpoints)
    return figures
