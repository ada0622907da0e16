"""Commands that make models, and that carry them to and from other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from liuli.cli.options import Json, Quiet, SkipBad

Minutes = Annotated[float | None, typer.Option(help="Budget: minutes of training.")]
Steps = Annotated[int | None, typer.Option(help="Budget: optimizer steps.")]
Tokens = Annotated[float | None, typer.Option(help="Budget: training tokens.")]
Trained = Annotated[Path, typer.Argument(help="The model folder to write; its parent is the run folder.")]
# behind any number of files
TrainedOption = Annotated[Path, typer.Option("--out", help="The model folder to write; its parent is the run folder.")]
Options = Annotated[list[str] | None, typer.Option(help="key=value training option; may be given often.")]


def plan(
    minutes: Annotated[float, typer.Option(help="Minutes of training.")] = 15.0,
    preset: Annotated[str, typer.Option(help="qwen3 (exports) or racer (more quality per FLOP).")] = "qwen3",
    context: Annotated[int, typer.Option(min=1, help="Tokens a row.")] = 256,
    text: Annotated[bool, typer.Option("--text", help="Expect real text, not the built-in curriculum.")] = False,
    fit: Annotated[Path | None, typer.Option(help="Re-fit the plan's law on this folder of rows or text.")] = None,
    fit_minutes: Annotated[float, typer.Option(min=0.1, help="Minutes that the sweep of --fit takes.")] = 4.0,
    out: Annotated[Path, typer.Option(help="Where --fit writes law.json and isoflop.svg.")] = Path("runs/law"),
    as_json: Json = False,
) -> None:
    """What a budget buys on this machine: shape, tokens, expected bits per byte. Example: liuli plan --minutes 15"""
    from liuli import planning

    kind = "text" if text else "curriculum"
    if fit is not None:
        kind = planning.fit_here(fit, minutes=fit_minutes, preset=preset, context=context, out=out)
    planning.show(minutes, preset=preset, context=context, kind=kind, as_json=as_json)


def pretrain(
    rows: Annotated[Path, typer.Argument(help="Folder of rows (liuli data rows).")],
    out: Trained,
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer that made the rows.")],
    minutes: Minutes = None,
    steps: Steps = None,
    tokens: Tokens = None,
    flops: Annotated[float | None, typer.Option(help="Budget: training FLOPs.")] = None,
    preset: Annotated[str, typer.Option(help="qwen3 (exports) or racer (more quality per FLOP).")] = "qwen3",
    depth: Annotated[int, typer.Option(min=0, help="Layers; 0: from the budget.")] = 0,
    width: Annotated[int, typer.Option(min=0, help="Channels; 0: from depth or the budget.")] = 0,
    option: Options = None,
    quiet: Quiet = False,
) -> None:
    """Train a new model on rows of text.

    Example: liuli pretrain runs/my/rows runs/my/base --tokenizer runs/my/tokenizer --minutes 5
    """
    from liuli import running

    budget = {"minutes": minutes, "steps": steps, "tokens": tokens, "flops": flops}
    running.pretrain_here(rows, tokenizer, out, preset, depth, width, budget, option or [], quiet)


def sft(
    model: Annotated[Path, typer.Argument(help="The model folder to start from.")],
    data: Annotated[Path, typer.Argument(help="Conversations (formats: docs/build.md), or a folder of chat rows.")],
    out: Trained,
    minutes: Minutes = None,
    steps: Steps = None,
    tokens: Tokens = None,
    replay: Annotated[
        Path | None, typer.Option(help="Rows of pretraining to go on with; how many: --option replay=0.2")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Count bad conversations and go on.")] = False,
    option: Options = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on conversations; the loss is on what the assistant says alone.

    Example: liuli sft runs/my/base chats.jsonl runs/my/chat --minutes 3
    """
    from liuli import running

    budget = {"minutes": minutes, "steps": steps, "tokens": tokens}
    running.sft_here(model, data, out, budget, option or [], skip_bad, quiet, replay)


Preferences = Annotated[list[Path], typer.Argument(help="Comparisons, in any known format (docs/preferences.md).")]
Rounds = Annotated[int | None, typer.Option(help="Budget: rounds of answers.")]
ChatModel = Annotated[Path, typer.Argument(help="The chat model to start from.")]


def reward(
    model: ChatModel,
    preferences: Preferences,
    out: TrainedOption,
    minutes: Minutes = None,
    skip_bad: SkipBad = False,
    option: Options = None,
    quiet: Quiet = False,
) -> None:
    """Train a reward model: which of two answers do people prefer?

    Example: liuli reward runs/laptop/chat pairs.jsonl --out runs/mine/reward --minutes 2
    """
    from liuli import aligning

    aligning.reward_here(model, preferences, out, {"minutes": minutes}, option or [], skip_bad, quiet)


def ppo(
    model: ChatModel,
    judge: Annotated[Path, typer.Argument(metavar="REWARD", help="The reward model (liuli reward).")],
    prompts: Annotated[Path, typer.Argument(help="Conversations whose last question is asked, or a curriculum.")],
    out: Trained,
    minutes: Minutes = None,
    steps: Rounds = None,
    replay: Annotated[Path | None, typer.Option(help="Rows that go on beside it, with --option ptx=0.5")] = None,
    skip_bad: SkipBad = False,
    option: Options = None,
    quiet: Quiet = False,
) -> None:
    """Teach a chat model what a reward model likes, on a leash to where it began.

    Example: liuli ppo runs/laptop/chat runs/mine/reward runs/laptop/curriculum runs/mine/ppo --minutes 3
    """
    from liuli import aligning

    budget = {"minutes": minutes, "steps": steps}
    aligning.ppo_here(model, judge, prompts, out, budget, option or [], replay, skip_bad, quiet)


Tasks = Annotated[Path | None, typer.Option(help="Prompts with known answers, or with --reward any prompts.")]
RunPython = Annotated[
    bool, typer.Option("--run-python", help="Run the programs that the model writes, for tasks with tests.")
]
Skill = Annotated[list[str] | None, typer.Option(help="A skill of the classroom; may be given often.")]
Judge = Annotated[Path | None, typer.Option("--reward", help="A reward model instead of known answers.")]


def grpo(
    model: ChatModel,
    out: Trained,
    tasks: Tasks = None,
    skill: Skill = None,
    judge: Judge = None,
    minutes: Minutes = None,
    steps: Rounds = None,
    run_python: RunPython = False,
    skip_bad: SkipBad = False,
    option: Options = None,
    quiet: Quiet = False,
) -> None:
    """Teach a model by comparing its own answers to one question with each other.

    Example: liuli grpo runs/laptop/chat runs/mine/adder --skill add_steps --minutes 3
    """
    from liuli import aligning

    budget = {"minutes": minutes, "steps": steps}
    aligning.grpo_here(model, tasks, skill or [], judge, out, budget, option or [], run_python, skip_bad, quiet)


def best(
    model: ChatModel,
    out: Annotated[Path, typer.Argument(help="The .jsonl file of conversations to write.")],
    tasks: Tasks = None,
    skill: Skill = None,
    judge: Judge = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Answers to each prompt, of which the best is kept.")] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 128,
    seed: Annotated[int, typer.Option(help="The same seed, the same answers.")] = 0,
    pairs: Annotated[bool, typer.Option("--pairs", help="The best beside the worst, for liuli dpo.")] = False,
    run_python: RunPython = False,
    skip_bad: SkipBad = False,
    quiet: Quiet = False,
) -> None:
    """Write down the best of n answers to each prompt; liuli sft on them is rejection sampling.

    Example: liuli best runs/laptop/chat runs/mine/best.jsonl --tasks runs/laptop/curriculum --reward runs/mine/reward
    """
    from liuli import aligning

    aligning.best_here(model, tasks, skill or [], judge, out, n, max_tokens, seed, pairs, run_python, skip_bad, quiet)


def dpo(
    model: ChatModel,
    preferences: Preferences,
    out: TrainedOption,
    minutes: Minutes = None,
    skip_bad: SkipBad = False,
    option: Options = None,
    quiet: Quiet = False,
) -> None:
    """Teach a model by comparisons alone, without a reward model (option kind=ipo, kind=kto: its relatives).

    Example: liuli dpo runs/laptop/chat pairs.jsonl --out runs/mine/dpo --minutes 2
    """
    from liuli import aligning

    aligning.dpo_here(model, preferences, out, {"minutes": minutes}, option or [], skip_bad, quiet)


def export(
    model: Annotated[Path, typer.Argument(help="A model folder of the preset qwen3.")],
    out: Annotated[Path, typer.Argument(help="The file (gguf) or folder (hf) to write.")],
    to: Annotated[str, typer.Option(help="gguf: one file for llama.cpp; hf: a folder for transformers.")] = "gguf",
    kind: Annotated[
        str | None, typer.Option("--type", help="gguf: f32, f16, bf16, q8_0 (default), q4_0; hf: f32 (default), …")
    ] = None,
) -> None:
    """Write a model for other programs. Example: liuli export runs/laptop/chat chat.gguf --type q8_0"""
    from liuli.errors import UsageError
    from liuli.model import convert, gguf

    match to:
        case "gguf":
            gguf.export_gguf(model, out, kind or "q8_0")
        case "hf":
            convert.export_folder(model, out, kind or "f32")
        case _:
            raise UsageError(f"a model cannot be exported to {to!r}", "--to", "use gguf or hf")
    print(out)


def import_(
    source: Annotated[Path, typer.Argument(help="A Hugging Face folder: Qwen3 or Llama, with a tokenizer of Liuli's.")],
    out: Annotated[Path, typer.Argument(help="The model folder to write.")],
) -> None:
    """Bring a model back from other programs. Example: liuli import tuned-elsewhere runs/laptop/tuned"""
    from liuli.model import convert

    convert.import_folder(source, out)
    print(out)


def build(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/laptop.toml.")],
    changes: Annotated[list[str] | None, typer.Argument(help="key=value changes to the recipe.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Budget of the whole build.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Real text to learn from too; may be given often.")] = None,
    chats: Annotated[list[str] | None, typer.Option(help="Own conversations to learn from too, likewise.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; default runs/NAME.")] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Open the web page at once and keep it after the build.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The page's port, with --serve.")] = 8365,
    skip_bad: SkipBad = False,
    quiet: Quiet = False,
) -> None:
    """The whole pipeline: text to a chat model and a report. Stops and goes on anywhere.

    Example: liuli build recipes/laptop.toml --minutes 5 --serve
    """
    from liuli import running

    running.build_here(recipe, changes or [], minutes, text or [], chats or [], out, serve, port, skip_bad, quiet)
