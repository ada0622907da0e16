"""What the commands that learn from preferences do around their stages: read, hold out, check, say how it went."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from liuli.build import messages_of, practice_items, split_by_prompt, worths
from liuli.curriculum import judge, practice
from liuli.engine import Model
from liuli.errors import LiuliError, UsageError
from liuli.evals.proportion import wilson
from liuli.files import folder_hash, write_file
from liuli.folder import TOKENIZER, read_model_folder
from liuli.recipe import option_values
from liuli.running import context_of, end, own_run, tell_skipped
from liuli.stages.best import Best, best_of, most_kl
from liuli.stages.dpo import DPOOptions, dpo, thumbs
from liuli.stages.experience import Reward
from liuli.stages.grpo import GRPOOptions, grpo
from liuli.stages.ppo import PPOOptions, ppo
from liuli.stages.reward import (
    Comparisons,
    RewardOptions,
    check_better_than_chance,
    compare,
    load_judge,
    reward,
    score_answers,
)
from liuli.stages.rollout import Rollouts
from liuli.stages.training import content_hash
from liuli.text import (
    Message,
    Preference,
    ReadReport,
    Rows,
    Task,
    Tokenizer,
    preference_line,
    read_conversations,
    read_judged,
    read_preferences,
    read_tasks,
)
from liuli.train import RunLog, measure_machine

LEAST_GAP = 0.3
"""Between the best answer and the worst, in scores (of a reward model: standard deviations), to be compared."""
Prompt = tuple[Message, ...]
O = TypeVar("O", RewardOptions, PPOOptions, GRPOOptions, DPOOptions)


def options_of(kind: type[O], budget: dict[str, Any], changes: Sequence[str]) -> O:
    """The budget and key=value changes as the options of a stage; an unknown key names the nearest."""
    return kind(**option_values(kind, budget, changes))


# --- comparisons -----------------------------------------------------------------------------------------------------


def read_pairs(
    sources: Sequence[Path], tokenizer: Tokenizer, context: int, skip_bad: bool, log: RunLog
) -> tuple[Comparisons, Comparisons]:
    """Comparisons to learn from and held-out ones, no prompt in both."""
    report = ReadReport()
    pairs = list(read_preferences(list(sources), skip_bad, report))
    tell_skipped(report, log)
    return hold_out(pairs, tokenizer, context)


def hold_out(pairs: Sequence[Preference], tokenizer: Tokenizer, context: int) -> tuple[Comparisons, Comparisons]:
    """Split by prompt. Raises LiuliError where one side would be empty."""
    sides = split_by_prompt(pairs)
    if not all(sides):
        raise LiuliError(f"{len(pairs)} comparisons are too few to hold some out", "preferences", "give at least 100")
    first, second = (compare([pairs[n] for n in own], tokenizer, context) for own in sides)
    return first, second


def reward_here(
    model: Path,
    data: Sequence[Path],
    out: Path,
    budget: dict[str, Any],
    changes: Sequence[str],
    skip_bad: bool,
    quiet: bool,
) -> None:
    """`liuli reward`."""
    options = options_of(RewardOptions, budget, changes)
    with own_run(out, "learning what people prefer", quiet, (model, *data)) as log:
        train, held_out = read_pairs(data, *facts_of(model), skip_bad, log)
        figures = reward(model, train, out, options=options, log=log, held_out=held_out)
        n = round(figures["held_out"])
        low, high = wilson(round(figures["accuracy"] * n), n)
        end(
            log,
            f"{out}: right about {figures['accuracy']:.1%} of {n:,} held-out comparisons "
            f"(95%: {low:.1%} to {high:.1%}); {figures['steps']:,.0f} steps in {figures['seconds']:.0f} s saw "
            f"{figures['seen']:,.0f} comparisons, of {len(train):,} to learn from",
        )
        if figures["skipped"]:
            log.warn(f"{figures['skipped']:.0f} comparisons were too long for the context and left out")
        check_better_than_chance(figures, out)


def dpo_here(
    model: Path,
    data: Sequence[Path],
    out: Path,
    budget: dict[str, Any],
    changes: Sequence[str],
    skip_bad: bool,
    quiet: bool,
) -> None:
    """`liuli dpo`: from comparisons, or with kind=kto from thumbs."""
    options = options_of(DPOOptions, budget, changes)
    with own_run(out, "learning from comparisons", quiet, (model, *data), divided=True) as log:
        tokenizer, context = facts_of(model)
        if options.kind == "kto":
            report = ReadReport()
            judged = list(read_judged(list(data), skip_bad, report))
            tell_skipped(report, log)
            data_here = thumbs(judged, tokenizer, context)
            if data_here.skipped:
                log.warn(f"{data_here.skipped} answers were too long for the context and left out")
            figures = dpo(model, data_here, out, options=options, log=log)
        else:
            figures = dpo(model, read_pairs(data, tokenizer, context, skip_bad, log)[0], out, options=options, log=log)
        done(log, out, figures, ("loss", "accuracy"))


# --- prompts ---------------------------------------------------------------------------------------------------------


def ppo_here(
    model: Path,
    judge_folder: Path,
    prompts: Path,
    out: Path,
    budget: dict[str, Any],
    changes: Sequence[str],
    texts: Path | None,
    skip_bad: bool,
    quiet: bool,
) -> None:
    """`liuli ppo`."""
    options = options_of(PPOOptions, budget, changes)
    check_tokenizers(model, judge_folder)
    if bool(options.ptx) != (texts is not None):
        raise UsageError("the pretraining loss needs its weight and its rows", "ptx", "--option ptx=0.5 --replay ROWS")
    inputs = (model, judge_folder, prompts, texts)
    with own_run(out, "learning what the reward model likes", quiet, inputs, divided=True) as log:
        report = ReadReport()
        asked, truth = questions(prompts, skip_bad, report)
        tell_skipped(report, log)
        rows = Rows.open(texts) if texts is not None else None
        figures = ppo(model, judge_folder, asked, out, options=options, log=log, truth=truth, ptx_rows=rows)
        done(log, out, figures, ("score", "true_score", "kl"))


def grpo_here(
    model: Path,
    tasks: Path | None,
    skills: Sequence[str],
    judge_folder: Path | None,
    out: Path,
    budget: dict[str, Any],
    changes: Sequence[str],
    skip_bad: bool,
    quiet: bool,
) -> None:
    """`liuli grpo`: on tasks with known answers, on skills of the classroom, or on a reward model."""
    options = options_of(GRPOOptions, budget, changes)
    with own_run(out, "learning from its own answers", quiet, (model, tasks, judge_folder), divided=True) as log:
        asked, earn, known = exercises(model, tasks, skills, judge_folder, options.seed, skip_bad, log)
        figures = grpo(model, asked, out, reward=earn, options=options, log=log, data=known)
        done(log, out, figures, ("score", "kl"))


def best_here(
    model: Path,
    tasks: Path | None,
    skills: Sequence[str],
    judge_folder: Path | None,
    out: Path,
    n: int,
    max_tokens: int,
    seed: int,
    pairs: bool,
    skip_bad: bool,
    quiet: bool,
) -> None:
    """`liuli best`: the best of n answers to each prompt, as conversations to learn from; wrong ones are left out.

    pairs: comparisons of the best with the worst instead, where they differ.
    """
    if out.suffix != ".jsonl":
        raise UsageError("the chosen answers are lines of JSON", out, f"name it {out.name}.jsonl")
    if pairs and n < 2:
        raise UsageError("one answer has nothing to be compared with", "--n", "give 2 or more")
    with own_run(out, "drawing and choosing answers", quiet, (model, tasks, judge_folder)) as log:
        asked, earn, _ = exercises(model, tasks, skills, judge_folder, seed, skip_bad, log)
        least = -math.inf if judge_folder is not None else 1.0  # where the right answer is known, no other is learned
        engine = Model(model, dtype=measure_machine().compute_dtype).engine
        kept: list[Best] = []
        for best in best_of(engine, asked, earn, n, max_tokens=max_tokens, seed=seed):
            log.progress((best.number + 1) / len(asked))
            if best.score >= least and (not pairs or comparable(best)):
                kept.append(best)
        if not kept:
            what = f"none of {len(asked)} prompts got a right answer" + " beside a wrong one" * pairs
            raise LiuliError(what, model, "draw more (--n), or teach it first (liuli sft)")
        write_file(out, ((pair_line if pairs else line)(asked[best.number], best) for best in kept))
        score, mean = (sum(getattr(best, name) for best in kept) / len(kept) for name in ("score", "mean"))
        end(
            log,
            f"{out}: {len(kept):,} of {len(asked):,} prompts, best of {n} {score:.3f} where the mean is {mean:.3f}, "
            f"KL at most {most_kl(n):.2f} nats an answer; learn it with liuli {'dpo' if pairs else 'sft'}",
        )


def line(prompt: Prompt, best: Best) -> bytes:
    """A conversation of which the chosen answer alone is trained."""
    before = [replace(message, train=False).to_dict() for message in prompt]
    row = {"messages": [*before, *(message.to_dict() for message in best.produced)]}
    return json.dumps(row | {"score": best.score, "mean": best.mean}, ensure_ascii=False).encode() + b"\n"


def comparable(best: Best) -> bool:
    """Whether best and worst are two answers of different worth; an empty one teaches nothing but silence."""
    said = best.produced[-1].content, best.worst[-1].content
    return best.score - best.worst_score >= LEAST_GAP and all(text.strip() for text in said)


def pair_line(prompt: Prompt, best: Best) -> bytes:
    """The best answer beside the worst."""
    row = preference_line(Preference(prompt, best.produced, best.worst))
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def exercises(
    model: Path,
    tasks: Path | None,
    skills: Sequence[str],
    judge_folder: Path | None,
    seed: int,
    skip_bad: bool,
    log: RunLog,
) -> tuple[list[Prompt], Callable[[Rollouts], Reward], dict[str, Any]]:
    """Prompts, and what their answers earn: on skills of the classroom, tasks with known answers, or a reward model;
    and what the provenance says of that."""
    report = ReadReport()
    if skills:
        items = practice(seed + 1, 400, only=skills)
        if not items:
            raise UsageError(f"there are no questions of {', '.join(skills)}", "--skill", "liuli curriculum show")
        return [messages_of(item["messages"]) for item in items], graded(items), {"skills": list(skills)}
    if tasks is None:
        raise UsageError("nothing says what is to be learned", "--tasks", "give --tasks FILE or --skill NAME")
    if judge_folder is None:
        given = list(read_tasks([tasks], skip_bad, report))
        asked, earn = [task.prompt for task in given], checked(given)
        known = {"tasks": str(tasks), "answers_hash": content_hash(*(task.answer for task in given))}
    else:
        check_tokenizers(model, judge_folder)
        (asked, _), earn = questions(tasks, skip_bad, report), judged_by(judge_folder)
        known = {"reward": str(judge_folder), "reward_hash": folder_hash(judge_folder)}
    tell_skipped(report, log)
    return asked, earn, known


def questions(
    path: Path, skip_bad: bool, report: ReadReport
) -> tuple[list[Prompt], Callable[[Rollouts], Tensor] | None]:
    """Prompts of a file of conversations (each up to its last question), or of a curriculum folder, whose answers the
    ground truth can grade."""
    if (path / "eval.jsonl").exists():
        items = practice_items(path, 0)
        return [messages_of(item["messages"]) for item in items], lambda rollouts: worths(items, rollouts)
    return list(last_questions(read_conversations([path], skip_bad, report))), None


def last_questions(conversations: Iterator[Any]) -> Iterator[Prompt]:
    for conversation in conversations:
        asked = [place for place, message in enumerate(conversation.messages) if message.role == "user"]
        if asked:
            yield conversation.messages[: asked[-1] + 1]


def graded(items: Sequence[dict[str, Any]]) -> Callable[[Rollouts], Reward]:
    """1 for a right answer, 0 for any other."""

    def earn(rollouts: Rollouts) -> Reward:
        pairs = zip(rollouts.prompt_B.tolist(), rollouts.produced, strict=True)
        right = torch.tensor([float(judge(items[number], [m.to_dict() for m in said])) for number, said in pairs])
        return Reward(right, None, right)

    return earn


def checked(tasks: Sequence[Task]) -> Callable[[Rollouts], Reward]:
    """1 where the last number of an answer, or its last words, are the expected ones."""

    def earn(rollouts: Rollouts) -> Reward:
        pairs = zip(rollouts.prompt_B.tolist(), rollouts.produced, strict=True)
        right = torch.tensor([float(ends_with(said[-1].content if said else "", tasks[n].answer)) for n, said in pairs])
        return Reward(right, None, right)

    return earn


NUMBER = re.compile(
    r"""(?:(?<![A-Za-z\d)])[-−+])?                                  # a sign, but no minus between two numbers
    (?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?<![A-Za-z\d.])(?=\.\d))     # digits, perhaps with thousands' commas; or .5
    (?:\.\d+)?(?:/0*[1-9]\d*)?                                  # decimals; what it is divided by""",
    re.VERBOSE,
)
TORN = re.compile(r"[A-Za-zÀ-ɏ\d]{2}|[-−./]\d|[〇零一二三四五六七八九十百千万亿两点负]{2}")
"""What a word or number may not be cut out of: two letters, a sign or point and its digits, two Chinese numerals."""


def ends_with(answer: str, expected: str) -> bool:
    """Whether the last number of an answer is the expected one, whichever way it is written; where no number is
    expected, whether the answer ends in what is, as words of its own. Marks at the end do not count."""
    said, wanted = (text.replace(",", "").strip().rstrip(".!。！ ").lower() for text in (answer, expected))
    if NUMBER.fullmatch(wanted):
        found = NUMBER.findall(answer)
        return bool(found) and value_of(found[-1]) == value_of(wanted)
    border = said[: len(said) - len(wanted) + 1][-2:]
    return bool(wanted) and said.endswith(wanted) and not TORN.fullmatch(border)


def value_of(number: str) -> Fraction:
    """The value of what NUMBER matches."""
    above, _, below = number.replace(",", "").replace("−", "-").partition("/")
    return Fraction(above) / int(below or 1)


def judged_by(judge_folder: Path) -> Callable[[Rollouts], Reward]:
    """The score of a reward model."""
    judge_model = load_judge(judge_folder)
    return lambda rollouts: Reward(*score_answers(judge_model, rollouts))


# --- small things ----------------------------------------------------------------------------------------------------


def facts_of(model: Path) -> tuple[Tokenizer, int]:
    """Tokenizer and context of a model folder."""
    context = context_of(read_model_folder(model).config)  # first: it says what is wrong with a folder that is no model
    return Tokenizer.load(model), context


def check_tokenizers(model: Path, judge_folder: Path) -> None:
    """Two models that read different tokens cannot speak of the same answer."""
    first, second = (read_model_folder(folder, verify=False).path / TOKENIZER for folder in (model, judge_folder))
    if first.read_bytes() != second.read_bytes():
        raise LiuliError(
            "the reward model reads other tokens than the model",
            judge_folder,
            "train it from this model: liuli reward",
        )


def done(log: RunLog, out: Path, figures: dict[str, float], shown: Sequence[str]) -> None:
    end(log, f"{out}: " + ", ".join(f"{name} {figures[name]:.3f}" for name in shown if name in figures))
