"""The loop that PPO and GRPO share: prompts -> rollouts -> scores -> advantages -> a few steps, again and again.

What a round teaches and how it is learned is in experience.py; here is the run around it: drawing, checking, tracing,
and the way from one model folder to the next.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liuli.engine import Engine
from liuli.errors import LiuliError, UsageError
from liuli.files import folder_hash, remove
from liuli.folder import context_in, read_model_folder
from liuli.model import Transformer, load
from liuli.stages.experience import Experience, Reward, Step, update
from liuli.stages.pretrain import check_rows
from liuli.stages.remote import RemoteEngine, publish
from liuli.stages.rollout import (
    Batches,
    Critic,
    ModelActor,
    Rollouts,
    Scores,
    Writer,
    fitting,
    parts,
    roll_out,
    score_all,
)
from liuli.stages.training import ask_prompts, begin, checkpoints_of, content_hash, write_model
from liuli.text import Loader, Rows, Tokenizer
from liuli.text.chat import Messages, as_messages
from liuli.train import Pace, RunLog, next_target, one_rate, schedule
from liuli.train.loop import to_tensors
from liuli.train.optimizer import Optimizer
from liuli.train.parallel import across, from_first, gathered, load_gathered, rank, ranks, sharded, state_of
from liuli.train.policy import clipped_loss, explained_variance, importance_weights
from liuli.train.preference import Combine
from liuli.train.steps import run_steps
from liuli.train.trace import write_trace

WARMUP, COOLDOWN = 0.05, 1.0  # shares of a run in which learning rates rise and fall
CHECKED = 10  # rounds from one comparison of engine and trainer to the next; the first of a process always


@dataclass(frozen=True)
class PracticeOptions:
    """What PPO and GRPO have in common: the budget, how answers are drawn, how the run is watched."""

    minutes: float | None = None
    steps: int | None = None
    answers: int = 256  # of one round
    beta: float = 0.05  # the leash: nats of KL cost this much score
    lr: float = 1e-4  # twice as much moves further from where it began, and loses as much as it wins (docs/notebook.md)
    no_end: float = -1.0  # the score of an answer that did not end by itself
    combine: Combine = "cautious"  # how the scores of a reward model's members become one
    truth: float = 0.0  # weight of the ground truth's grade beside the score, where it is known (arXiv 2411.15124, 6)
    temperature: float = 1.0
    max_tokens: int = 96
    compiled: bool = False  # the step that draws, which takes a minute once and then a third less time
    engine_url: str = ""  # a vLLM server that draws the answers; "": our own engine
    most_drift: float = 0.02  # nats a token between engine and trainer, mean; more stops the run
    most_weight: float = 0.0  # of a token that the engine drew less often than the trainer would (TIS); 0: all weigh 1
    trace_every: int = 10  # steps between traces for the microscope; 0: none
    save_every_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UsageError("at temperature 0 there is nothing to explore", "temperature", "give a number above 0")


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
    options: PracticeOptions
    beta: float  # the leash now
    group: int = 1  # answers of one prompt
    steer: Callable[[float, float, int], float] | None = None  # (beta, KL, answers) -> the next beta
    texts: Loader | None = None  # rows for the pretraining loss of PPO-ptx, and its weight
    ptx: float = 0.0
    checkpoints: Path | None = None
    renew: Callable[[int], None] = lambda done: None  # gives an engine with weights of its own those of now
    done: int = 0  # steps
    tokens: int = 0
    drift: float = math.nan  # between engine and trainer when they were last compared, nats a token

    def run(self) -> dict[str, float]:
        """Learn until the budget is used; the figures of the last step. Goes on from a checkpoint if there is one."""
        o = self.options
        fit = fitting(self.prompts, self.engine.tokenizer, self.engine.context, self.log.warn)
        batches = Batches(len(fit), max(1, o.answers // self.group), o.seed)

        def one_step(done: int) -> dict[str, float]:
            self.done = done
            return self.take_step([fit[place] for place in batches[done]])

        self.done, figures = run_steps(
            one_step,
            self.pace,
            log=self.log,
            state=self.state,
            load_state=self.load_state,
            checkpoints=self.checkpoints,
            save_every_s=o.save_every_s,
            shown=("score", "kl", "stop_rate"),
        )
        return figures

    def take_step(self, chosen: list[int]) -> dict[str, float]:
        """One round: draw, score, learn."""
        o = self.options
        numbers = [number for number in chosen for _ in range(self.group)]
        seeds = [((o.seed * 100_003 + self.done) * 8_192 + place) * 8 for place in range(len(numbers))]
        self.renew(self.done)
        rollouts = roll_out(
            self.engine,
            [self.prompts[number] for number in numbers],
            temperature=self.policy.temperature,
            max_tokens=o.max_tokens,
            seeds=seeds,
        )
        rollouts = replace(rollouts, prompt_B=torch.tensor(numbers))
        reward = from_first(self.reward, rollouts)
        if not torch.isfinite(reward.scores_B).all():
            raise LiuliError("the reward of an answer is not a number", f"step {self.done}", "look at the reward model")
        # a round that is one step of one part is scored once, by the pass that its gradient is taken of
        alone = self.step.epochs * len(parts(rollouts.lengths_B, self.step.micro_tokens, self.step.minibatches)) == 1
        scored = across(self.policy).score(rollouts) if alone else None
        if scored is not None:
            old = Scores(*(value.detach().float().cpu() for value in scored))
        else:
            old = score_all(across(self.policy), rollouts, self.step.micro_tokens, self.step.minibatches)
        reference = score_all(across(self.reference), rollouts, self.step.micro_tokens, self.step.minibatches)
        e = self.experience(rollouts, old, reference.log_probs_BT, reward.earned(o.truth), self.beta)
        if self.done % CHECKED == 0 or math.isnan(self.drift):
            self.drift = self.check(rollouts)
        if o.most_weight:
            plain = self.as_sampled(rollouts)
            weights_BT = importance_weights(plain, rollouts.sampler_BT, rollouts.mask_BT, o.most_weight)
            e = e._replace(advantages_BT=e.advantages_BT * weights_BT)
        scale = schedule(self.pace.progress, WARMUP, COOLDOWN, 0.02)
        means = update(
            across(self.policy),
            self.optimizer,
            e,
            self.step,
            scale=scale,
            seed=o.seed + self.done,
            extra=self.text_loss if self.texts is not None else None,
            scored=scored,
        )
        self.check_ratio(means["first_ratio"])
        kl = float(e.kl_BT.sum(1).mean())
        figures = means | round_figures(e, reward) | {"kl": kl, "beta": self.beta, "drift": self.drift}
        if self.step.value_weight:
            figures["explained_variance"] = explained_variance(e.values_BT, e.returns_BT, rollouts.mask_BT)
        if o.trace_every and self.done % o.trace_every == 0:
            self.trace(e, reward, old)
        if self.steer is not None:
            self.beta = self.steer(self.beta, kl, len(rollouts))
        self.tokens += int(rollouts.lengths_B.sum())
        return figures | {"tokens": float(self.tokens)}

    def check(self, rollouts: Rollouts) -> float:
        """How far the engine's log-probabilities are from the trainer's, mean of nats a token; refuses a wide gap."""
        few = rollouts.part(torch.arange(0, len(rollouts), max(1, min(8, len(rollouts) // 8))))  # of many prompts
        drift = self.distance(few)
        if drift > self.options.most_drift or math.isnan(drift):
            raise LiuliError(
                f"engine and trainer disagree by {drift:.3f} nats a token: what is learned from is not what was drawn",
                f"step {self.done}",
                self.cause(few, drift),
            )
        return drift

    def as_sampled(self, rollouts: Rollouts) -> Tensor:
        """The trainer's log-probabilities (B, T) as the engine reports its own: at temperature 1, nothing barred."""
        bare = replace(self.policy, temperature=1.0, ban_V=None, critic=None)
        return score_all(across(bare), rollouts, self.step.micro_tokens).log_probs_BT

    def distance(self, rollouts: Rollouts) -> float:
        """Nats a token between engine and trainer, mean."""
        return float((self.as_sampled(rollouts) - rollouts.sampler_BT)[rollouts.mask_BT].abs().mean())

    def cause(self, few: Rollouts, drift: float) -> str:
        """Why engine and trainer disagree, as far as trying shows it; said as what to do."""
        model, writer = self.policy.model, getattr(self.engine, "model", None)
        if self.dropped_out:
            return "dropout is on in the policy: call eval() on it, or set dropout to 0"
        if writer is not None and ranks() == 1:
            theirs = writer.state_dict()
            if any(not torch.equal(weight, theirs[name]) for name, weight in model.state_dict().items()):
                return "the engine has other weights than the trainer: give it those of now before each round"
        narrow, model.compute_dtype = model.compute_dtype, None
        exact = self.distance(few)
        model.compute_dtype = narrow
        if exact < drift / 2:
            return f"{narrow} is too coarse here ({exact:.3f} nats in float32): let both compute in float32"
        if writer is None:
            return "does the server have this round's weights, and draw at temperature 1 without top-k and top-p?"
        return "are the engine's weights quantised, or is one of the two asked with another temperature?"

    @property
    def dropped_out(self) -> bool:
        return self.policy.model.training and self.policy.model.config.dropout > 0

    def check_ratio(self, first_ratio: float) -> None:
        if first_ratio > 1e-3:
            unknown = "the model is not the same twice: is a temperature or a barred token left out in one place?"
            raise LiuliError(
                f"before the first step a token's probability is off its own by {first_ratio:.2g}",
                f"step {self.done}",
                "dropout is on: call eval() on the policy, or set it to 0" if self.dropped_out else unknown,
            )

    def trace(self, e: Experience, reward: Reward, old: Scores) -> None:
        """The columnar record of this step: one row a token, one row an answer."""
        new = score_all(across(self.policy), e.rollouts, self.step.micro_tokens, self.step.minibatches)
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
        return state_of(self.policy.learning, self.optimizer) | {
            "beta": self.beta,
            "tokens": self.tokens,
            "texts": self.texts.position if self.texts is not None else 0,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        load_gathered(self.policy.learning, self.optimizer, state)
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
    }
    if reward.truth_B is not None and not reward.truth_B.isnan().all():
        figures["true_score"] = float(reward.truth_B.nanmean())
    if reward.members_EB is not None:
        figures["disagreement"] = float(reward.members_EB.std(0, correction=0).mean())
        figures["member_score"] = float(reward.members_EB[0].mean())
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
    if not step.value_weight:  # there is no value function
        tokens |= {"value": None, "return": None}
    ids = r.tokens_BT[real_BT].tolist()
    tokens |= {"sequence": sequence_N.numpy(), "position": position_N.numpy(), "token": ids}
    tokens |= {"text": [engine.names[id] for id in ids], "drawn": r.mask_BT[real_BT].numpy()}
    held_BT = clipped_loss(new.log_probs_BT, e.log_probs_BT, e.advantages_BT, step.clip_low, step.clip_high)[1]
    tokens["clipped"] = (held_BT & r.mask_BT)[real_BT].numpy()
    truth = reward.truth_B if reward.truth_B is not None else torch.full((len(r),), math.nan)
    members = reward.members_EB if reward.members_EB is not None else reward.scores_B[None]
    sequences: dict[str, Any] = {
        "sequence": list(range(len(r))),
        "prompt": [as_messages(prompts[number])[-1].content for number in r.prompt_B.tolist()],
        "answer": [said[-1].content if said else "" for said in r.produced],
        "score": reward.scores_B.tolist(),
        "members": members.T.tolist(),
        "length": r.mask_BT.sum(1).tolist(),
        "finished": r.finished_B.tolist(),
        "advantage": ((e.advantages_BT * r.mask_BT).sum(1) / r.mask_BT.sum(1).clamp_min(1)).tolist(),
        "right": [None if math.isnan(value) else value > 0 for value in truth.tolist()],
    }
    return tokens, sequences


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
    critic_lr: float = 0.0,
    steer: Callable[[float, float, int], float] | None = None,
    ptx_rows: Rows | None = None,
    ptx: float = 0.0,
    group: int = 1,
    data: Mapping[str, Any],
) -> dict[str, float]:
    """Set a run up on the model in a folder, run it, write the model it leads to; the figures of the last step.

    critic: makes what gives values (arXiv 2203.02155 takes the reward model). critic_lr: of a head that gives
    them. ptx: weight of the loss on ptx_rows. data: what the reward knows, for the provenance (`begin`).
    Raises LiuliError for prompts that do not fit, for none at all, and where engine and trainer disagree; UsageError
    where an unfinished run was begun with other options or data.
    """
    if (options.minutes is None) == (options.steps is None):
        raise UsageError("the budget is given once", "minutes or steps", "give --minutes, or --steps (rounds)")
    if not prompts:
        raise LiuliError("there are no prompts to answer", str(out), "give a file that holds some (grpo: --tasks FILE)")
    data = {**data, "prompts": len(prompts), "prompts_hash": content_hash(*prompts)}
    tokenizer, config = Tokenizer.load(model_folder), read_model_folder(model_folder, verify=False).config
    if ptx_rows is not None:
        check_rows(ptx_rows, tokenizer, context_in(config) or ptx_rows.T)
        data |= {"rows": str(ptx_rows.folder), "rows_hash": folder_hash(ptx_rows.folder)}
    checkpoints = checkpoints_of(log.folder, out.name)
    origin, machine = begin(kind, model_folder, data, options, checkpoints)
    model, before = load(model_folder, machine.device), load(model_folder, machine.device)
    # of shards no engine can write, and another engine than ours reads a folder: both get the weights by `renew`
    writer = model if ranks() == 1 and not options.engine_url else load(model_folder, machine.device)
    model.compute_dtype = before.compute_dtype = writer.compute_dtype = machine.compute_dtype
    url, key = options.engine_url, os.environ.get("LIULI_ENGINE_KEY")
    if url:
        engine: Writer = RemoteEngine(url, tokenizer, model.config, key=key)
    else:
        engine = Engine(writer, tokenizer, rows=256, compiled=options.compiled)
    ban_V = engine.ban_V.to(machine.device)
    policy = ModelActor(model, options.temperature, ban_V, critic(model))
    optimizer = sharded(policy.learning, one_rate(options.lr, critic_lr=critic_lr, beta2=0.95, adam_eps=1e-5))
    published = log.folder / f"{out.name}-weights"

    def copy_weights() -> None:
        if writer is not model:
            writer.load_state_dict(gathered(model.state_dict()))

    def renew(done: int) -> None:
        copy_weights()
        if isinstance(engine, RemoteEngine):
            from_first(publish, engine, writer, published, done, model_folder)

    learner = Learner(
        policy,
        ModelActor(before, options.temperature, ban_V),
        optimizer,
        engine,
        prompts,
        reward,
        experience,
        step,
        Pace.of(options.minutes, options.steps or 0, checkpoints),
        log,
        out.name,
        options,
        options.beta,
        group=group,
        steer=steer,
        texts=Loader(ptx_rows, 8, options.seed) if ptx_rows is not None else None,
        ptx=ptx,
        checkpoints=checkpoints,
        renew=renew,
    )

    def ask_first() -> None:  # the first process alone sees the checkpoints; a run that goes on was asked when it began
        if not any(checkpoints.glob("[0-9]*")):
            ask_prompts(writer, tokenizer, 0, log)

    from_first(ask_first)
    figures = learner.run()
    remove(published)
    copy_weights()
    from_first(ask_prompts, writer, tokenizer, learner.done, log)
    provenance = origin | {"options": asdict(options), "figures": figures, "seed": options.seed}
    provenance |= {"step": learner.done, "tokens": learner.tokens}
    from_first(write_model, writer, out, tokenizer, model_folder, provenance)
    remove(checkpoints)
    return figures
