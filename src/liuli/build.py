"""The whole pipeline from a recipe: each stage reads what the ones before it wrote and writes one folder.

In: a recipe (TOML). Out: a run folder that ends in a chat model and a report. A stage whose folder is there is done: a
second start goes on with the first one that is missing. Folders appear whole or not at all, so that is all the state.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from difflib import ndiff
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liuli.curriculum import key_of, make, practice, seed_of, worth
from liuli.curriculum.preferences import PRACTISED
from liuli.errors import LiuliError, UsageError
from liuli.evals.words import STAGES
from liuli.files import lock, new_folder, read_json, read_lines, write_file, write_json
from liuli.material import Material, place_of
from liuli.recipe import Recipe, read_recipe, recipe_toml
from liuli.stages.ppo import PPOOptions, ppo
from liuli.stages.pretrain import Shape, pretrain
from liuli.stages.reward import RewardOptions, check_better_than_chance, compare, reward
from liuli.stages.rollout import Rollouts
from liuli.stages.sft import sft
from liuli.stages.training import TrainOptions, with_budget
from liuli.text import Message, Preference, Rows, Tokenizer, encode_documents, pack_conversations, pack_documents
from liuli.train import RunLog, StageState, tell_left_out
from liuli.train.preference import bayes_accuracy

REWARD_SHARE = 0.35  # of the time for preferences; the rest is PPO's
PRACTICE = 150  # questions of each skill and language for PPO

TITLES = {name: english for name, (english, _) in STAGES.items()}


class Build:
    """One build: the recipe, its run folder, and a method for each stage."""

    def __init__(self, recipe: Recipe, folder: Path, quiet: bool = False) -> None:
        self.recipe, self.folder = recipe, folder
        whole = max(0.2, 0.85 * recipe.minutes)
        training, aligning = whole * (1 - recipe.align_share), whole * recipe.align_share
        shares = {
            "curriculum": 0.04 * recipe.minutes,
            "tokenizer": 0.01 * recipe.minutes,
            "rows": 0.02 * recipe.minutes,
            "pretrain": training * recipe.pretrain_share,
            "chat": training * (1 - recipe.pretrain_share),
            "reward": aligning * REWARD_SHARE,
            "aligned": aligning * (1 - REWARD_SHARE),
            "evaluate": self.evaluate_seconds / 60,
        }
        if not recipe.align_share:
            del shares["reward"], shares["aligned"]
        self.log = RunLog(folder, [StageState(name, TITLES[name], share) for name, share in shares.items()], quiet)
        self.steps = tuple(shares)
        self.material = Material(recipe, folder, self.log)

    @property
    def evaluate_seconds(self) -> float:
        """At most a fifth of a short build."""
        asked = self.recipe.evaluate_minutes or self.recipe.minutes / 12
        return 60.0 * min(asked, self.recipe.minutes / 5)

    def run(self) -> None:
        """All stages that are not there yet; then the report."""
        with lock(self.folder):
            self.keep_recipe()
            if self.is_whole():
                self.log.say(f"{self.folder}: everything is built already")
                return
            try:
                if not self.is_done("rows"):
                    self.material.check()
                for name in self.steps:
                    if self.is_done(name):
                        self.log.skip(name, self.spent.get(name, 0.0))
                        continue
                    self.log.begin(name)
                    began = time.monotonic()
                    try:
                        getattr(self, name)()
                    finally:  # of a start that is stopped, too
                        self.remember_time(name, time.monotonic() - began)
                    self.log.finish()
                self.report()
                self.log.end("done")
            except KeyboardInterrupt:
                self.log.end("stopped", "stopped by hand; the same command goes on")
                raise
            except BaseException as error:
                self.log.end("failed", str(error))
                raise

    def keep_recipe(self) -> None:
        """Write down what was asked. Raises UsageError if this folder was begun with another recipe, and says how."""
        asked = self.folder / "recipe.toml"
        text = recipe_toml(self.recipe)
        if asked.exists() and (before := recipe_toml(read_recipe(asked))) != text:  # of an older Liuli, with new fields
            changed = [line for line in ndiff(before.splitlines(), text.splitlines()) if line[:2] in ("- ", "+ ")]
            raise UsageError(
                f"this run folder was begun with another recipe: {', '.join(changed)}",
                asked,
                f"remove {self.folder}, or build into another folder with --out",
            )
        write_file(asked, text)

    def is_whole(self) -> bool:
        """Whether nothing is left to do: one that was killed at its end may lack the report, or say it still runs."""
        status = self.folder / "status.json"
        ended = status.exists() and read_json(status).get("state") == "done"
        return ended and (self.folder / "report.html").exists() and all(self.is_done(name) for name in self.steps)

    def is_done(self, name: str) -> bool:
        left_out = name == "aligned" and "not_aligned" in self.plan
        return left_out or (self.folder / ("eval.json" if name == "evaluate" else name)).exists()

    @property
    def best(self) -> Path:
        """The model that the build is for."""
        return self.folder / ("aligned" if (self.folder / "aligned").exists() else "chat")

    # --- what is known between starts --------------------------------------------------------------------------------

    @property
    def plan(self) -> dict[str, Any]:
        path = self.folder / "plan.json"
        return read_json(path) if path.exists() else {}

    def keep(self, **values: Any) -> None:
        write_json(self.folder / "plan.json", self.plan | values)

    @property
    def spent(self) -> dict[str, float]:
        """The seconds that each stage took, over all starts."""
        return dict(self.plan.get("seconds", {}))

    def remember_time(self, name: str, seconds: float) -> None:
        spent = self.spent
        self.keep(seconds=spent | {name: round(spent.get(name, 0.0) + seconds, 2)})

    def seconds_left(self) -> float:
        """Of the budget, for training: less what is spent and what the examination will take."""
        spent = sum(self.spent.values())
        return max(5.0, 60 * self.recipe.minutes - spent - self.evaluate_seconds - 0.01 * 60 * self.recipe.minutes)

    # --- the stages --------------------------------------------------------------------------------------------------

    def make_plan(self) -> dict[str, Any]:
        """Shape, vocabulary and expected quality, decided once."""
        if "layers" not in self.plan:
            from liuli.plan import make_plan

            r = self.recipe
            batch = {**r.pretrain}.get("batch_tokens", TrainOptions(minutes=1).batch_tokens)
            plan = make_plan(
                max(0.1, 0.85 * r.minutes),
                preset=r.preset,
                context=r.context,
                vocab_size=r.vocab or None,
                layers=r.layers or None,
                width=r.width or None,
                batch_tokens=batch,
                kind="text" if r.text else "curriculum",
                reading=r.pretrain_share * (1 - r.align_share),
                probe_seconds=min(4.0, 0.01 * 60 * r.minutes),
            )
            self.keep(**asdict(plan) | {"minutes": r.minutes, "taught": round((1 - r.align_share) * plan.tokens)})
            p = self.plan
            self.log.say(
                f"plan: {p['preset']}, {p['layers']} layers of {p['width']}, vocabulary {p['vocab_size']:,}, "
                f"{p['parameters'] / 1e6:.1f}M parameters, {p['tokens'] / 1e6:.1f}M tokens"
            )
            wanted = 4 * p["parameters"]  # about what builds had that know their facts (docs/benchmarks.md)
            if p["tokens"] < wanted:
                minutes = r.minutes * wanted / p["tokens"]
                self.log.say(f"knowing its facts takes it {wanted / 1e6:.0f}M tokens: --minutes {minutes:.0f}")
        return self.plan

    def curriculum(self) -> None:
        plan = self.make_plan()
        # enough that training sees few items twice: an item takes about 8 bytes of file for a token
        size = 1e6 * self.recipe.curriculum_mb or min(60e6, max(2e6, 3.5 * plan["tokens"]))
        make(self.folder / "curriculum", seed=self.recipe.seed, size=int(size), workers=plan["machine"]["threads"])

    def tokenizer(self) -> None:
        texts = (document.text for document in self.material.texts(chats=True))
        with new_folder(self.folder / "tokenizer") as stage:
            Tokenizer.train(texts, self.make_plan()["vocab_size"]).save(stage)

    def rows(self) -> None:
        tokenizer, T, V = Tokenizer.load(self.folder / "tokenizer"), self.recipe.context, self.plan["vocab_size"]
        with new_folder(self.folder / "rows") as stage:
            self.log.progress(0.05)
            chats = self.material.chats(tokenizer)
            self.log.progress(0.4)
            pack_conversations(chats, T, stage / "chat", vocab_size=V)
            self.log.progress(0.6)
            languages: dict[str, dict[str, int]] = {}
            documents = encode_documents(self.material.texts(), tokenizer, languages)
            everything = itertools.chain[Any](documents, (chat.tokens for chat in chats))
            pack_documents(everything, T, stage / "pretrain", vocab_size=V, languages=languages)
            self.log.progress(0.95)
            held = [{"text": d.text, "language": d.language} for d in self.material.held_out_texts()]
            write_file(stage / "held_out.jsonl", "".join(json.dumps(h, ensure_ascii=False) + "\n" for h in held))

    def pretrain(self) -> None:
        plan, r = self.plan, self.recipe
        share = r.pretrain_share * (1 - r.align_share)
        options = self.stage_options("pretrain", share, {"seed": r.seed} | r.pretrain)
        shape = Shape(r.preset, plan["layers"], plan["width"])
        pretrain(
            self.folder / "rows" / "pretrain",
            self.folder / "tokenizer",
            self.folder / "pretrain",
            shape=shape,
            options=options,
            log=self.log,
        )

    def chat(self) -> None:
        r = self.recipe
        share = 1 - r.align_share / (1 - r.pretrain_share * (1 - r.align_share))  # of what is left now
        options = self.stage_options("chat", share, {"seed": r.seed + 1} | r.sft)
        sft(
            self.folder / "pretrain",
            self.folder / "rows" / "chat",
            self.folder / "chat",
            options=options,
            log=self.log,
            replay=self.folder / "rows" / "pretrain",
        )

    def reward(self) -> None:
        """Comparisons of the classroom, a tenth of their prompts held out; the best accuracy possible stands beside."""
        pairs = list(self.material.lessons("pairs"))
        preferences = [
            Preference(messages_of(pair["prompt"]), messages_of(pair["chosen"]), messages_of(pair["rejected"]))
            for pair in pairs
        ]
        sides = split_by_prompt(preferences)
        tokenizer = Tokenizer.load(self.folder / "chat")
        train, held_out = (
            compare(
                [preferences[n] for n in own], tokenizer, self.recipe.context, kinds=[pairs[n]["kind"] for n in own]
            )
            for own in sides
        )
        odds = torch.tensor([pairs[sides[1][place]]["odds"] for place in held_out.kept])
        tell_left_out(train.skipped + held_out.skipped, "comparisons", self.log.warn)
        minutes = self.stage_minutes("reward", REWARD_SHARE)
        options = RewardOptions(**{"seed": self.recipe.seed, "minutes": minutes} | self.recipe.reward)
        figures = reward(
            self.folder / "chat",
            train,
            self.folder / "reward",
            options=options,
            log=self.log,
            held_out=held_out,
            prompts=self.practice[1],
        )
        self.log.figures(**figures, ceiling=bayes_accuracy(odds))

    @cached_property
    def practice(self) -> tuple[list[dict[str, Any]], list[tuple[Message, ...]]]:
        """The questions that PPO asks, none of which the examination does: as items, and as messages."""
        items = practice_items(self.folder / "curriculum", self.recipe.seed)
        return items, [messages_of(item["messages"]) for item in items]

    def aligned(self) -> None:
        """PPO against the reward model, on questions that the examination does not ask."""
        figures = read_json(self.folder / "reward" / "liuli.json")["figures"]
        try:
            check_better_than_chance(figures, self.folder / "reward")
        except LiuliError as error:  # a build of a minute or two: it ends with the chat model
            self.keep(not_aligned=error.what)
            self.log.warn(f"PPO is left out: {error.what}")
            return
        items, asked = self.practice
        minutes = self.stage_minutes("aligned", 1.0)
        options = PPOOptions(**{"seed": self.recipe.seed, "minutes": minutes} | self.recipe.ppo)
        ppo(
            self.folder / "chat",
            self.folder / "reward",
            asked,
            self.folder / "aligned",
            options=options,
            log=self.log,
            truth=lambda rollouts: worths(items, rollouts),
            # with the option ptx, what it was tuned on goes on beside (InstructGPT mixes text in, to the same end)
            ptx_rows=Rows.open(self.folder / "rows" / "chat"),
        )

    def stage_options(self, name: str, share: float, values: dict[str, Any]) -> TrainOptions:
        """Options of a stage that takes this share of the time left; compiled if that pays over both stages."""
        compiled = {"compile": "yes" if self.plan["compile"] else "no"}
        return with_budget(TrainOptions(**{"minutes": 1.0} | compiled | values), self.stage_minutes(name, share))

    def stage_minutes(self, name: str, share: float) -> float:
        """Minutes for a training stage, decided when it first starts and kept, so that a resumed one is the same."""
        decided = dict(self.plan.get("stage_minutes", {}))
        if name not in decided:
            decided[name] = round(share * self.seconds_left() / 60, 3)
            self.keep(stage_minutes=decided)
        return float(decided[name])

    def evaluate(self) -> None:
        from liuli.evals import evaluate, read_held_out

        evaluate(
            self.best,
            curriculum=self.folder / "curriculum",
            texts=read_held_out(self.folder / "rows" / "held_out.jsonl"),
            before=self.folder / "pretrain",
            rival=self.folder / "chat" if self.best.name != "chat" else None,
            seconds=self.evaluate_seconds,
            out=self.folder,
            progress=lambda what, done, total: self.log.progress(done / max(1, total)),
        )

    def report(self) -> None:
        from liuli.evals import write_report

        self.log.say(f"report: {write_report(self.folder)}")


def practice_items(curriculum: Path, seed: int) -> list[dict[str, Any]]:
    """Questions to practise on, none of which the examination of this curriculum asks.

    To three pages that hold the answer come two that do not: with fewer it pays to answer anyway, with more to refuse.
    """
    draw = unexamined(curriculum)
    return draw(seed + 1, PRACTICE, only=PRACTISED) + draw(seed + 2, PRACTICE // 3, only=("cite_none",))


def unexamined(curriculum: Path) -> Callable[..., list[dict[str, Any]]]:
    """`practice` on what these lessons told, without the questions of their examination."""
    examined = {key_of(item) for item in read_lines(curriculum / "eval.jsonl")}
    return partial(practice, without=examined, classroom=seed_of(curriculum))


def messages_of(messages: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message.from_dict(message) for message in messages)


def split_by_prompt(preferences: Sequence[Preference]) -> tuple[list[int], list[int]]:
    """Numbers of the comparisons to learn from and of those held out: no prompt is in both."""
    sides: tuple[list[int], list[int]] = ([], [])
    for number, preference in enumerate(preferences):
        text = json.dumps([message.to_dict() for message in preference.prompt], ensure_ascii=False)
        sides[place_of(text) < 0.1].append(number)
    return sides


def worths(items: Sequence[dict[str, Any]], rollouts: Rollouts) -> Tensor:
    """What each answer is worth by the ground truth (curriculum/preferences.py)."""
    pairs = zip(rollouts.prompt_B.tolist(), rollouts.produced, strict=True)
    return torch.tensor([worth(items[number], [message.to_dict() for message in said]) for number, said in pairs])


def build(recipe: Recipe, folder: str | Path | None = None, *, quiet: bool = False) -> Path:
    """Run a recipe; the run folder is runs/NAME unless given. Gives the run folder."""
    run = Path(folder) if folder else Path("runs") / recipe.name
    if run.exists() and not run.is_dir():
        raise LiuliError("the run folder is a file", run, "choose another folder with --out")
    Build(recipe, run, quiet).run()
    return run
