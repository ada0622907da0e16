"""Learning from preferences beside TRL: DPO's step and GRPO's round, the same model, interleaved in one process.

    python benchmarks/preferences.py [--rounds 4] [--pairs 64] [--answers 64] [--prompt 32] [--answer 64] [--threads N]

Random weights, random words, every prompt and every answer of the same length, so that nothing is gained by padding or
by stopping early; that both compute the same loss is shown by tests/stages/test_peers.py. DPO: the reference's
log-probabilities, the loss, its gradient, a step. GRPO: answers drawn (by the engine; by transformers' `generate` with
its cache), the reference's log-probabilities, the loss, its gradient, a step; ours with the step that draws as it is
and compiled. TRL in float32 and in bfloat16 autocast, without gradient checkpointing, which would only slow it down,
and without the loop around its training_step. The best of the rounds counts, and the ratio is that of the faster ones.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from liuli.engine import Engine
from liuli.model import Transformer, load, parameter_count, qwen3
from liuli.stages.dpo import DPOOptions, pairs_loss
from liuli.stages.experience import Reward
from liuli.stages.grpo import GRPOOptions, grpo_experience, grpo_step
from liuli.stages.learn import Learner
from liuli.stages.reward import compare
from liuli.stages.rollout import ModelActor, Rollouts, score_all
from liuli.stages.training import write_model
from liuli.text import Message, Preference, Tokenizer
from liuli.text.tokenizer import SPECIALS
from liuli.train import Optimizer, OptimizerOptions, Pace, measure_machine

CONFIG = qwen3(2560, 192, 4, context=512)
GROUP, BETA, LR = 8, 0.02, 3e-4
AIMS = {"DPO": 2.0, "GRPO": 5.0}
TEMPLATE = 4  # tokens that the chat template puts around a prompt: bos, user, end, assistant
Step = Callable[[], None]
Pairs = Sequence[tuple[str, str, str]]
"""Prompt, chosen answer, rejected answer."""


# --- what both are given ---------------------------------------------------------------------------------------------


def make_model(folder: Path) -> Tokenizer:
    """A random model of 3M parameters with a vocabulary of its own, as a folder that transformers opens too."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 8))) for _ in range(3000)]
    tokenizer = Tokenizer.train([" ".join(words * 2)], CONFIG.vocab_size)
    tokenizer.save(folder / "tokenizer")
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    write_model(model, folder / "model", tokenizer, folder / "tokenizer", {"stage": "benchmark"})
    return tokenizer


class Words:
    """Texts of an exact number of tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = (tokenizer.decode([id]) for id in range(len(SPECIALS), tokenizer.vocab_size))
        self.single = [text for text in pieces if text.startswith(" ") and len(tokenizer.encode(text)) == 1]
        self.chance = random.Random(1)

    def text(self, tokens: int) -> str:
        return "".join(self.chance.choices(self.single, k=tokens))


# --- DPO -------------------------------------------------------------------------------------------------------------


def our_dpo(folder: Path, pairs: Pairs, tokenizer: Tokenizer, length: int) -> Step:
    """The stage's step, and the reference's log-probabilities that it takes once for each pair."""
    machine = measure_machine()
    model, before = load(folder / "model"), load(folder / "model")
    model.compute_dtype = before.compute_dtype = machine.compute_dtype
    optimizer = Optimizer(model, OptimizerOptions(kind="adamw", adam_lr=LR, beta2=0.98, adam_eps=1e-8))
    actor, reference, options = ModelActor(model), ModelActor(before), DPOOptions(beta=0.1)
    preferences = [
        Preference((Message("user", prompt),), (Message("assistant", chosen),), (Message("assistant", rejected),))
        for prompt, chosen, rejected in pairs
    ]
    data = compare(preferences, tokenizer, model.config.context)
    assert data.answers.lengths_B.unique().tolist() == [length]

    def step() -> None:
        reference_B = score_all(reference, data.answers, options.micro_tokens).log_probs_BT.sum(1)
        loss, _ = pairs_loss(actor, data, torch.arange(len(data)), reference_B, options)
        loss.backward()
        optimizer.step(1.0)
        optimizer.zero_grad()

    return step


def their_dpo(folder: Path, pairs: Pairs, length: int, autocast: bool) -> Step:
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {"prompt": said("user", prompt), "chosen": said("assistant", chosen), "rejected": said("assistant", rejected)}
        for prompt, chosen, rejected in pairs
    ]
    trainer = trl.DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        args=trl.DPOConfig(**settings(folder, len(pairs)), beta=0.1),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert batch["input_ids"].shape == (2 * len(pairs), length) and batch["attention_mask"].all()
    return their_step(trainer, lambda: dict(batch), autocast)


# --- GRPO ------------------------------------------------------------------------------------------------------------


def our_grpo(folder: Path, prompts: Sequence[str], tokenizer: Tokenizer, answer: int, compiled: bool) -> Step:
    """A whole round of the stage: its own loop body, checks included."""
    machine = measure_machine()
    model, before = load(folder / "model"), load(folder / "model")
    model.compute_dtype = before.compute_dtype = machine.compute_dtype
    engine = Engine(model, tokenizer, rows=256, compiled=compiled)
    engine.ban_V[: len(SPECIALS)] = -torch.inf  # nothing ends an answer early
    options = GRPOOptions(
        answers=len(prompts) * GROUP,
        group=GROUP,
        minibatches=1,
        beta=BETA,
        lr=LR,
        max_tokens=answer,
        steps=1,
        trace_every=0,
    )

    def reward(rollouts: Rollouts) -> Reward:
        assert rollouts.mask_BT.sum(1).unique().tolist() == [answer]
        return Reward((rollouts.tokens_BT * rollouts.mask_BT).sum(1).remainder(7).float())

    learner = Learner(
        ModelActor(model, options.temperature, engine.ban_V),
        ModelActor(before, options.temperature, engine.ban_V),
        Optimizer(torch.nn.ModuleList([model]), OptimizerOptions(kind="adamw", adam_lr=LR, beta2=0.95, adam_eps=1e-5)),
        engine,
        [(Message("user", prompt),) for prompt in prompts],
        reward,
        lambda r, old, reference, scores, beta: grpo_experience(
            replace(r, finished_B=torch.ones_like(r.finished_B)), old, reference, scores, beta, options
        ),
        grpo_step(options),
        Pace(steps=1_000_000),
        None,  # type: ignore[arg-type]
        "grpo",
        options,
        options.beta,
        group=GROUP,
    )

    def step() -> None:
        learner.take_step(list(range(len(prompts))))
        learner.done += 1

    return step


def their_grpo(folder: Path, prompts: Sequence[str], answer: int, autocast: bool) -> Step:
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        assert {len(ids) for ids in completion_ids} == {answer}
        return [float(sum(ids) % 7) for ids in completion_ids]

    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts]
    drawing = {"max_completion_length": answer, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        reward_funcs=reward,
        args=trl.GRPOConfig(
            **settings(folder, len(prompts) * GROUP),
            **drawing,
            num_generations=GROUP,
            beta=BETA,
            generation_kwargs={"min_new_tokens": answer},
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    batch = [row for row in rows for _ in range(GROUP)]
    return their_step(trainer, lambda: batch, autocast)


# --- TRL's side of both ----------------------------------------------------------------------------------------------


def settings(folder: Path, rows: int) -> dict[str, Any]:
    """One step a batch, float32, nothing written."""
    return {
        "output_dir": str(folder / "trainer"),
        "per_device_train_batch_size": rows,
        "learning_rate": LR,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def their_step(trainer: Any, batch: Callable[[], Any], autocast: bool) -> Step:
    """What the trainer's loop does for one batch. autocast: as accelerate does for bf16, around the model's forward."""
    models = [trainer.model, trainer.ref_model]
    if autocast:
        for model in models:
            model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    optimizer = trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1

    def step() -> None:
        trainer.training_step(trainer.model, batch(), None)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        optimizer.step()
        trainer.model.zero_grad()

    return step


# --- the run ---------------------------------------------------------------------------------------------------------


def measure(cases: dict[str, Step], rounds: int) -> dict[str, float]:
    """The best seconds of each case: A B C A B C, after one run of each that does not count."""
    best = dict.fromkeys(cases, float("inf"))
    for number in range(rounds + 1):
        for name, step in cases.items():
            start = time.perf_counter()
            step()
            if number:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def be_quiet() -> None:
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("trl").setLevel(logging.ERROR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=64, help="pairs of a DPO step")
    parser.add_argument("--answers", type=int, default=64, help=f"answers of a GRPO round, a multiple of {GROUP}")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt, those of the template included")
    parser.add_argument("--answer", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    be_quiet()
    prompt, answer = options.prompt, options.answer
    trl = {"trl fp32": False}  # whether in autocast, which takes minutes a step where bfloat16 is slow
    if measure_machine().dtype == "bfloat16":
        trl["trl bf16"] = True
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer = make_model(folder)
        words = Words(tokenizer)
        texts = [words.text(prompt - TEMPLATE) for _ in range(options.pairs)]
        pairs = [(text, words.text(answer - 1), words.text(answer - 1)) for text in texts]  # and the end token
        asked = [words.text(prompt - TEMPLATE) for _ in range(options.answers // GROUP)]
        tasks = {
            "DPO": (
                options.pairs,
                {
                    "liuli": our_dpo(folder, pairs, tokenizer, prompt + answer),
                    **{name: their_dpo(folder, pairs, prompt + answer, low) for name, low in trl.items()},
                },
            ),
            "GRPO": (
                len(asked) * GROUP,
                {
                    "liuli": our_grpo(folder, asked, tokenizer, answer, False),
                    "liuli compiled": our_grpo(folder, asked, tokenizer, answer, True),
                    **{name: their_grpo(folder, asked, answer, low) for name, low in trl.items()},
                },
            ),
        }
        best = {name: measure(cases, options.rounds) for name, (_, cases) in tasks.items()}
    machine, millions = measure_machine(), parameter_count(CONFIG)["total"] / 1e6
    load_now = os.getloadavg()[0]
    print(f"{machine.name}, {options.threads} threads (load {load_now:.1f}), liuli in {machine.dtype}; ", end="")
    print(f"{millions:.1f}M parameters, prompts of {prompt} tokens, answers of {answer}\n")
    print("| | DPO pairs/s | GRPO answers/s |\n|---|---:|---:|")
    speed = {name: {case: tasks[name][0] / s for case, s in found.items()} for name, found in best.items()}
    for case in speed["GRPO"]:
        dpo = f"{speed['DPO'][case]:.1f}" if case in speed["DPO"] else "–"
        print(f"| {case} | {dpo} | {speed['GRPO'][case]:.1f} |")
    fastest = {
        who: {name: max(s for case, s in found.items() if case.startswith(who)) for name, found in speed.items()}
        for who in ("liuli", "trl")
    }
    ratio = {name: fastest["liuli"][name] / fastest["trl"][name] for name in speed}
    print(f"| the faster of ours / of TRL's | {ratio['DPO']:.2f}x | {ratio['GRPO']:.2f}x |")
    print("| aim | " + " | ".join(f"{AIMS[name]:.0f}x" for name in speed) + " |")
    if options.json:
        options.json.write_text(json.dumps({"per_s": speed, "ratio": ratio, "load": load_now}, indent=1))


if __name__ == "__main__":
    main()
