"""What the commands that learn from preferences do around their stages: read, hold out, check, say how it went."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liuli.build import messages_of, practice_items, split_by_prompt, unexamined, worths
from liuli.curriculum import judge, practice
from liuli.curriculum.skills import skills as all_skills
from liuli.engine import Model
from liuli.errors import LiuliError, UsageError
from liuli.evals.proportion import wilson
from liuli.files import folder_hash, write_file
from liuli.folder import read_model_folder
from liuli.material import tell_skipped
from liuli.recipe import options_of
from liuli.running import context_of, end, own_run, tell_forgotten
from liuli.stages.best import Best, best_of, most_kl
from liuli.stages.dpo import DPOOptions, dpo, thumbs
from liuli.stages.experience import Reward
from liuli.stages.grpo import GRPOOptions, grpo
from liuli.stages.ppo import PPOOptions, ppo
from liuli.stages.programs import passed
from liuli.stages.reward import (
    Comparisons,
    RewardOptions,
    check_better_than_chance,
    compare,
    load_judge,
    reward,
    scored_by,
)
from liuli.stages.rollout import Rollouts
from liuli.stages.training import content_hash
from liuli.text import (
    Conversation,
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
from liuli.train import RunLog, measure_machine, tell_left_out
from liuli.train.preference import Combine

LEAST_GAP = 0.3
"""Between the best answer and the worst, in scores (of a reward model: standard deviations), to be compared."""
Prompt = tuple[Message, ...]
Truth = Callable[[Rollouts], Tensor]

# --- comparisons -----------------------------------------------------------------------------------------------------


def read_pairs(
    sources: Sequence[Path], tokenizer: Tokenizer, context: int, skip_bad: bool, log: RunLog
) -> tuple[Comparisons, Comparisons]:
    """Comparisons to learn from and held-out ones, no prompt in both."""
    report = ReadReport()
    pairs = list(read_preferences(list(sources), skip_bad, report))
    tell_skipped(report, log)
    tell_repeated(pairs, log)
    return hold_out(pairs, tokenizer, context)


def tell_repeated(pairs: Sequence[Preference], log: RunLog) -> None:
    """How many comparisons stand more than once, and how many say the opposite of another."""
    times = Counter((p.prompt, p.chosen, p.rejected) for p in pairs)
    repeated = len(pairs) - len(times)
    opposed = sum(count for (prompt, a, b), count in times.items() if (prompt, b, a) in times)
    if repeated or opposed:
        log.warn(f"of {len(pairs):,} comparisons {repeated:,} stand twice, {opposed:,} are contradicted by another")


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
        tell_left_out(train.skipped + held_out.skipped, "comparisons", log.warn)
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
    with own_run(out, "learning from comparisons", quiet, (model, *data)) as log:
        tokenizer, context = facts_of(model)
        if options.kind == "kto":
            report = ReadReport()
            judged = list(read_judged(list(data), skip_bad, report))
            tell_skipped(report, log)
            data_here = thumbs(judged, tokenizer, context)
            tell_left_out(data_here.skipped, "answers", log.warn)
            figures = dpo(model, data_here, out, options=options, log=log)
        else:
            train, held_out = read_pairs(data, tokenizer, context, skip_bad, log)
            tell_left_out(train.skipped + held_out.skipped, "comparisons", log.warn)
            figures = dpo(model, train, out, options=options, log=log, held_out=held_out)
        tell_forgotten(model, out, log)
        done(log, out, figures, ("loss", "accuracy", "held_out_accuracy"))


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
    if bool(options.ptx) != (texts is not None):
        raise UsageError("the pretraining loss needs its weight and its rows", "ptx", "--option ptx=0.5 --replay ROWS")
    inputs = (model, judge_folder, prompts, texts)
    with own_run(out, "learning what the reward model likes", quiet, inputs) as log:
        report = ReadReport()
        asked, truth = questions(prompts, skip_bad, report)
        tell_skipped(report, log)
        rows = Rows.open(texts) if texts is not None else None
        figures = ppo(model, judge_folder, asked, out, options=options, log=log, truth=truth, ptx_rows=rows)
        tell_forgotten(model, out, log)
        done(log, out, figures, ("score", "true_score", "kl"))


def grpo_here(
    model: Path,
    tasks: Path | None,
    skills: Sequence[str],
    judge_folder: Path | None,
    out: Path,
    budget: dict[str, Any],
    changes: Sequence[str],
    run_python: bool,
    skip_bad: bool,
    quiet: bool,
) -> None:
    """`liuli grpo`: on tasks with known answers, on skills of the classroom, or on a reward model."""
    options = options_of(GRPOOptions, budget, changes)
    with own_run(out, "learning from its own answers", quiet, (model, tasks, judge_folder)) as log:
        source = exercises(model, tasks, skills, judge_folder, options.seed, run_python, skip_bad, log, options.combine)
        asked, earn, known = source
        figures = grpo(model, asked, out, reward=earn, options=options, log=log, data=known)
        tell_forgotten(model, out, log)
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
    run_python: bool,
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
    with own_run(out, "drawing and choosing answers", quiet, (model, tasks, judge_folder), divided=False) as log:
        asked, earn, _ = exercises(model, tasks, skills, judge_folder, seed, run_python, skip_bad, log)
        least = -math.inf if judge_folder is not None else 1.0  # where the right answer is known, no other is learned
        machine = measure_machine()
        engine = Model(model, device=machine.device, dtype=machine.compute_dtype).engine
        kept: list[Best] = []
        for best in best_of(engine, asked, earn, n, max_tokens=max_tokens, seed=seed, warn=log.warn):
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
    run_python: bool,
    skip_bad: bool,
    log: RunLog,
    combine: Combine = "cautious",
) -> tuple[list[Prompt], Callable[[Rollouts], Reward], dict[str, Any]]:
    """Prompts, and what their answers earn: on skills of the classroom, on tasks that can be checked, or by a reward
    model, with the truth beside its scores where that is known; and what the provenance says of that."""
    if bool(skills) == (tasks is not None):
        raise UsageError("what is to be learned comes from one place", "--tasks", "give --tasks FILE or --skill NAME")
    report, known = ReadReport(), dict[str, Any]()
    truth: Truth | None
    if tasks is None:
        items = items_of(skills, model, seed)
        asked, truth = [messages_of(item["messages"]) for item in items], graded(items)
        known["skills"] = list(skills)
    elif judge_folder is None:
        given = list(read_tasks([tasks], skip_bad, report))
        if any(task.tests for task in given) and not run_python:
            fix = "give --run-python, where what a model writes can do no harm"
            raise UsageError("these tests run the programs that the model writes", tasks, fix)
        asked, truth = [task.prompt for task in given], checked(given)
        known |= {"tasks": str(tasks), "answers_hash": content_hash(*(task.answer + task.tests for task in given))}
    else:
        asked, truth = questions(tasks, skip_bad, report)
    tell_skipped(report, log)
    if judge_folder is not None:
        known |= {"reward": str(judge_folder), "reward_hash": folder_hash(judge_folder)}
        return asked, scored_by(load_judge(judge_folder, model), truth, combine), known
    assert truth is not None
    return asked, known_by(truth), known


def items_of(skills: Sequence[str], model: Path, seed: int) -> list[dict[str, Any]]:
    """Questions of these skills about what the lessons of the model's run told, none that its examination asks."""
    if unknown := set(skills) - set(all_skills()):
        raise UsageError(f"there is no skill {min(unknown)!r}", "--skill", "liuli curriculum show lists them")
    lessons = model.resolve().parent / "curriculum"
    draw = unexamined(lessons) if (lessons / "eval.jsonl").exists() else practice
    return draw(seed + 1, 400, only=skills)


def questions(path: Path, skip_bad: bool, report: ReadReport) -> tuple[list[Prompt], Truth | None]:
    """Prompts of a file of conversations (each up to its last question), or of a curriculum folder, whose answers the
    ground truth can grade."""
    if (path / "eval.jsonl").exists():
        items = practice_items(path, 0)
        return [messages_of(item["messages"]) for item in items], lambda rollouts: worths(items, rollouts)
    return list(last_questions(read_conversations([path], skip_bad, report), report)), None


def last_questions(conversations: Iterator[Conversation], report: ReadReport) -> Iterator[Prompt]:
    for conversation in conversations:
        asked = [place for place, message in enumerate(conversation.messages) if message.role == "user"]
        if asked:
            yield conversation.messages[: asked[-1] + 1]
        else:
            report.skip(LiuliError("nobody asks anything", conversation.id))


def known_by(truth: Truth) -> Callable[[Rollouts], Reward]:
    """A reward that is the truth itself."""

    def earn(rollouts: Rollouts) -> Reward:
        grades_B = truth(rollouts)
        return Reward(grades_B, None, grades_B)

    return earn


def graded(items: Sequence[dict[str, Any]]) -> Truth:
    """1 for a right answer, 0 for any other."""

    def grades(rollouts: Rollouts) -> Tensor:
        pairs = zip(rollouts.prompt_B.tolist(), rollouts.produced, strict=True)
        return torch.tensor([float(judge(items[number], [m.to_dict() for m in said])) for number, said in pairs])

    return grades


def checked(tasks: Sequence[Task]) -> Truth:
    """1 where an answer's program passes the task's tests, or its last number or words are the expected ones."""

    def grades(rollouts: Rollouts) -> Tensor:
        said = [last_words(messages) for messages in rollouts.produced]
        own = [tasks[number] for number in rollouts.prompt_B.tolist()]
        ran = passed(said, [task.tests for task in own])
        each = zip(said, own, ran, strict=True)
        return torch.tensor([float(good if task.tests else ends_with(text, task.answer)) for text, task, good in each])

    return grades


def last_words(messages: Sequence[Message]) -> str:
    """What an answer ends in; nothing where the result of a tool filled the context."""
    return messages[-1].content if messages and messages[-1].role == "assistant" else ""


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


# --- small things ----------------------------------------------------------------------------------------------------


def facts_of(model: Path) -> tuple[Tokenizer, int]:
    """Tokenizer and context of a model folder."""
    context = context_of(read_model_folder(model).config)  # first: it says what is wrong with a folder that is no model
    return Tokenizer.load(model), context


def done(log: RunLog, out: Path, figures: dict[str, float], shown: Sequence[str]) -> None:
    end(log, f"{out}: " + ", ".join(f"{name} {figures[name]:.3f}" for name in shown if name in figures))
