"""The command line: one thin function per command; each imports its room when it runs, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liuli.errors import LiuliError

if TYPE_CHECKING:
    from liuli.assistant.voices import Voice

app = typer.Typer(
    name="liuli",
    help="Liuli 琉璃: build, use and see through a ChatGPT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at text, clean it, remove duplicates, turn it into rows.")
curriculum_app = typer.Typer(no_args_is_help=True, help="The built-in classroom: make its data, look at it.")
app.add_typer(data_app, name="data")
app.add_typer(curriculum_app, name="curriculum")
keys_app = typer.Typer(no_args_is_help=True, help="Who may use a server: make keys, list them, remove them.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure.")
app.add_typer(keys_app, name="keys")
app.add_typer(bench_app, name="bench")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text for people.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on the terminal.")]
Minutes = Annotated[float | None, typer.Option(help="Budget: minutes of training.")]
Steps = Annotated[int | None, typer.Option(help="Budget: optimizer steps.")]
Tokens = Annotated[float | None, typer.Option(help="Budget: training tokens.")]
Options = Annotated[list[str] | None, typer.Option(help="key=value training option; may be given often.")]


Sources = Annotated[
    list[str], typer.Argument(help="Files, folders or Hub datasets (owner/name), each perhaps with a weight: news=0.5")
]
Field = Annotated[str, typer.Option(help="The key or column that holds the text, in .jsonl and .parquet.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count bad rows and go on.")]
STORE = "Where keys, chats and judgements are kept: a path or URL. Default: in the run folder."


@app.callback()
def root() -> None:
    """Liuli 琉璃: build, use and see through a ChatGPT."""


# --- commands, in the order in which data flows ----------------------------------------------------------------------


@data_app.command(name="stats")
def data_stats(
    sources: Sources,
    tokenizer: Annotated[Path | None, typer.Option(help="Count tokens with this one; default: an estimate.")] = None,
    field: Field = "text",
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Languages, documents, bytes and tokens of text. Example: liuli data stats books news.jsonl.gz --skip-bad"""
    from liuli.text import commands

    commands.stats_here(sources, tokenizer, field, skip_bad, as_json)


@data_app.command(name="clean")
def data_clean(
    sources: Sources,
    out: Annotated[Path, typer.Argument(help="The folder to write: text.jsonl and report.json.")],
    shortest: Annotated[int, typer.Option(min=0, help="Characters a document must have.")] = 30,
    symbols: Annotated[float, typer.Option(help="Most symbols, as a share of the characters; 1 allows all.")] = 0.25,
    lines: Annotated[float, typer.Option(help="Most characters in repeated lines, as a share.")] = 0.3,
    phrase: Annotated[float, typer.Option(help="Most words taken by one phrase of four, as a share.")] = 0.16,
    passages: Annotated[float, typer.Option(help="Most words in repeated passages of ten, as a share.")] = 0.4,
    field: Field = "text",
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Remove short, repetitive and symbol-ridden documents, and say why. Example: liuli data clean raw clean"""
    from liuli.text import Rules, commands

    rules = Rules(shortest, symbols=symbols, repeated_lines=lines, repeated_phrase=phrase, repeated_passages=passages)
    commands.clean_here(sources, out, rules, field, skip_bad, as_json)


@data_app.command(name="dedup")
def data_dedup(
    sources: Sources,
    out: Annotated[Path, typer.Argument(help="The folder to write: text.jsonl and report.json.")],
    threshold: Annotated[float, typer.Option(help="Similarity from which two documents are the same.")] = 0.8,
    exact: Annotated[bool, typer.Option("--exact", help="Remove only documents that are equal.")] = False,
    field: Field = "text",
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Remove equal and nearly equal documents; the first one stays. Example: liuli data dedup clean unique"""
    from liuli.text import commands

    commands.dedup_here(sources, out, None if exact else threshold, field, skip_bad, as_json)


@app.command(name="tokenizer")
def tokenizer_command(
    sources: Sources,
    out: Annotated[Path, typer.Argument(help="The folder to write; transformers opens it too.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens: small models want few (2048), large ones many.")] = 4096,
    digits: Annotated[int, typer.Option(min=1, max=2, help="Longest group of digits in one token.")] = 2,
    field: Field = "text",
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Learn a vocabulary from text. Example: liuli tokenizer unique runs/my/tokenizer --vocab-size 4096"""
    from liuli.text import commands

    commands.tokenizer_here(sources, out, vocab_size, digits, field, skip_bad, as_json)


@data_app.command(name="rows")
def data_rows(
    sources: Sources,
    out: Annotated[Path, typer.Argument(help="The folder of rows to write.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer.")],
    context: Annotated[int, typer.Option(min=1, help="Tokens a row (T); each row stores one more.")] = 256,
    chat: Annotated[bool, typer.Option("--chat", help="The sources are conversations, in any known format.")] = False,
    field: Field = "text",
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Pack text or conversations into rows of tokens, ready to train on.

    Example: liuli data rows unique runs/my/rows --tokenizer runs/my/tokenizer
    """
    from liuli.text import commands

    commands.rows_here(sources, out, tokenizer, context, chat, field, skip_bad, as_json)


@data_app.command(name="mask")
def data_mask(
    sources: Sources,
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer.")],
    n: Annotated[int, typer.Option("--n", min=0, help="Conversations to show; the counts are over all.")] = 3,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """What a model is trained on, in colour.

    Example: liuli data mask chats.jsonl --tokenizer runs/my/tokenizer --n 3
    """
    from liuli.text.mask import mask_here

    mask_here(sources, tokenizer, n, skip_bad, as_json)


@app.command("eval")
def eval_(
    model: Annotated[Path, typer.Argument(help="A model folder, for example runs/laptop/chat.")],
    curriculum: Annotated[
        Path | None, typer.Option(help="Folder with the questions (eval.jsonl). Default: that of the model's run.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Held-out text for bits per byte: a file or folder; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each skill, language and split.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Stop asking in time for this many seconds in all.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write eval.json into. Default: only print.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps. Default: cuda if present, else cpu.")] = None,
    json: Json = False,
) -> None:
    """How good a model is: bits per byte, skills with intervals, manners, memory and speed.

    Example: liuli eval runs/laptop/chat --text held-out.txt --limit 20
    """
    from liuli.evals import eval_with_progress

    eval_with_progress(model, curriculum, text or [], limit, seconds, out, device, json)


EngineName = Annotated[
    str, typer.Option("--engine", help="Who computes: liuli, llamacpp, vllm (the same model there), openai (any).")
]
EngineUrl = Annotated[str | None, typer.Option(help="The server of vllm or openai. Its key: LIULI_ENGINE_KEY.")]


Weights = Annotated[
    str | None, typer.Option(help="Quantise weights to generate faster: int8 or int4 for a few at once, bf16 for many.")
]
Compiled = Annotated[bool, typer.Option("--compiled", help="Compile the step that writes; takes up to a minute, once.")]
Draft = Annotated[
    str, typer.Option(help="Guess tokens ahead; same answers, sooner: lookup, or the folder of a smaller model.")
]


def sooner(weights: str | None, compiled: bool, draft: str) -> dict[str, Any]:
    """How our engine writes sooner; says so where that takes a while first."""
    if compiled:
        print("Compiling the step that writes: up to a minute the first time …", file=sys.stderr, flush=True)
    return {"weights": weights, "compiled": compiled, "draft": draft}


def engine_key() -> str | None:
    """The key for another server; from the environment alone, for everyone can read a command line."""
    return os.environ.get("LIULI_ENGINE_KEY") or None


@app.command()
def chat(
    model: Annotated[Path, typer.Argument(help="A model folder; with --engine openai the model's name there.")],
    system: Annotated[str, typer.Option(help="The system message: who the model is.")] = "",
    temperature: Annotated[float, typer.Option(help="0: always the likeliest word; higher: more surprise.")] = 0.5,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest words that together have this share.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 512,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers. Default: a new one.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps. Default: the fastest there is.")] = None,
    engine: EngineName = "liuli",
    engine_url: EngineUrl = None,
    weights: Weights = None,
    compiled: Compiled = False,
    draft: Draft = "",
    as_json: Json = False,
) -> None:
    """Talk to a model in the terminal; /help lists what one can do there. --json: one object for each answer.

    Example: liuli chat runs/laptop/chat --temperature 0
    """
    from liuli import terminal
    from liuli.assistant.elsewhere import voice_of
    from liuli.engine import Sampling

    sampling = Sampling(temperature, top_p=top_p, max_tokens=max_tokens, seed=seed, alternatives=5)
    how = sooner(weights, compiled, draft)
    voice = voice_of(engine, model, engine_url, name=str(model), key=engine_key(), device=device, **how)
    terminal.chat_here(voice, sampling, system, str(model), as_json)


@app.command()
def serve(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="A run folder, also while it trains, or model folders.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8365,
    store: Annotated[str | None, typer.Option(envvar="LIULI_STORE", help=STORE)] = None,
    drain: Annotated[int, typer.Option(min=0, help="Seconds that running answers have to end, once stopped.")] = 30,
    loaded: Annotated[int, typer.Option(min=1, help="Models in memory at once; the rest is loaded when asked.")] = 2,
    seconds_per_answer: Annotated[int, typer.Option(min=0, help="Then it is cut, as if too long; 0: no limit.")] = 0,
    engine: EngineName = "liuli",
    engine_url: EngineUrl = None,
    engine_model: Annotated[str, typer.Option(help="With --engine openai: the model's name. Default: the first.")] = "",
    weights: Weights = None,
    compiled: Compiled = False,
    draft: Draft = "",
    prefix_int8: Annotated[bool, typer.Option("--prefix-int8", help="Remember more texts, inexactly.")] = False,
    ends_with_input: Annotated[bool, typer.Option("--ends-with-input", hidden=True)] = False,
) -> None:
    """Open models as a web page and as an OpenAI-compatible API. MODEL:NAME is its adapter in MODEL/adapters/NAME.

    Example: liuli serve runs/laptop
    """
    from liuli import server

    def ready(url: str) -> None:
        print(f"Liuli: {url}  (Ctrl-C stops it)", flush=True)

    def load(model: Path) -> Voice:
        from liuli.assistant.elsewhere import voice_of

        how = sooner(weights, compiled, draft) | {"prefix_int8": prefix_int8}
        return voice_of(engine, model, engine_url, name=engine_model, key=engine_key(), **how)

    if ends_with_input:
        server.end_with_input()
    elsewhere = (engine_model or engine_url or "") if engine == "openai" else ""
    options = {"load": load, "elsewhere": elsewhere, "more": models[1:], "seconds": seconds_per_answer}
    server.serve(models[0], host=host, port=port, store=store, drain=drain, ready=ready, loaded=loaded, **options)


StoreOption = Annotated[str, typer.Option("--store", envvar="LIULI_STORE", help="The server's store: a path or URL.")]
PerMinute = Annotated[int | None, typer.Option(min=1, help="Limit. Default: none.")]


@keys_app.command(name="add")
def keys_add(
    name: Annotated[str, typer.Argument(help="Whose key it is; chats belong to this name.")],
    store: StoreOption,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: PerMinute = None,
) -> None:
    """Make a key and print it, this once. Example: liuli keys add ada --store runs/laptop/judgements.sqlite"""
    from liuli import server

    print(server.keys_in(store).add(name, requests_per_minute, tokens_per_minute))


@keys_app.command(name="list")
def keys_list(store: StoreOption, as_json: Json = False) -> None:
    """The names of the keys and their limits. Example: liuli keys list --store runs/laptop/judgements.sqlite"""
    from liuli import server

    server.list_keys_here(store, as_json)


@keys_app.command(name="remove")
def keys_remove(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    store: StoreOption,
) -> None:
    """Remove a key. A running server refuses it within two seconds. Example: liuli keys remove ada --store …"""
    from liuli import server

    server.keys_in(store).remove(name)


@bench_app.command(name="serve")
def bench_serve(
    url: Annotated[str, typer.Argument(help="The server, for example http://127.0.0.1:8365")],
    model: Annotated[str, typer.Option(help="Which model. Default: the server's first.")] = "",
    clients: Annotated[int, typer.Option(min=1, help="Closed load: how many ask at once.")] = 64,
    requests: Annotated[int, typer.Option(min=1, help="Questions in all.")] = 256,
    rate: Annotated[float, typer.Option(min=0, help="Open load: questions a second, at random. 0: closed.")] = 0.0,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of a question, about.")] = 64,
    shared_prefix: Annotated[int, typer.Option(min=0, help="Of these tokens, how many all questions share.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    spread: Annotated[float, typer.Option(help="Longest answers of (1 - this) to (1 + this) times that.")] = 0.0,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Answers as long as allowed.")] = False,
    warm_up: Annotated[int, typer.Option(min=1, help="Questions before the clock starts.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the questions, their times and the answers.")] = 0,
    key: Annotated[str, typer.Option(envvar="LIULI_KEY", help="The key, if the server wants one.")] = "",
    as_json: Json = False,
) -> None:
    """How fast a running server answers many at once. Example: liuli bench serve http://127.0.0.1:8365 --clients 16"""
    from liuli.server import load

    asked = load.Load(
        url, model, clients, requests, rate, prompt_tokens, shared_prefix, max_tokens, spread, ignore_eos, warm_up, seed
    )
    load.bench_here(asked, key, as_json)


@app.command(name="plan")
def plan_command(
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


@app.command(name="pretrain")
def pretrain_command(
    rows: Annotated[Path, typer.Argument(help="Folder of rows (liuli data rows).")],
    out: Annotated[Path, typer.Argument(help="The model folder to write; its parent is the run folder.")],
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


@app.command(name="sft")
def sft_command(
    model: Annotated[Path, typer.Argument(help="The model folder to start from.")],
    data: Annotated[Path, typer.Argument(help="Conversations (formats: docs/build.md), or a folder of chat rows.")],
    out: Annotated[Path, typer.Argument(help="The model folder to write; its parent is the run folder.")],
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
Trained = Annotated[Path, typer.Argument(help="The model folder to write; its parent is the run folder.")]
Rounds = Annotated[int | None, typer.Option(help="Budget: rounds of answers.")]
ChatModel = Annotated[Path, typer.Argument(help="The chat model to start from.")]


@app.command(name="reward")
def reward_command(
    model: ChatModel,
    preferences: Preferences,
    out: Annotated[Path, typer.Option(help="The model folder to write; its parent is the run folder.")],
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


@app.command(name="ppo")
def ppo_command(
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


@app.command(name="grpo")
def grpo_command(
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


@app.command(name="best")
def best_command(
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


@app.command(name="dpo")
def dpo_command(
    model: ChatModel,
    preferences: Preferences,
    out: Annotated[Path, typer.Option(help="The model folder to write; its parent is the run folder.")],
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


@app.command(name="export")
def export_command(
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


@app.command(name="import")
def import_command(
    source: Annotated[Path, typer.Argument(help="A Hugging Face folder: Qwen3 or Llama, with a tokenizer of Liuli's.")],
    out: Annotated[Path, typer.Argument(help="The model folder to write.")],
) -> None:
    """Bring a model back from other programs. Example: liuli import tuned-elsewhere runs/laptop/tuned"""
    from liuli.model import convert

    convert.import_folder(source, out)
    print(out)


@app.command(name="label")
def label_command(
    path: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, or a run folder.")],
    prompts: Annotated[
        Path | None, typer.Option(help="What to ask: conversations, or .txt, one prompt a line. Default: the run's.")
    ] = None,
    store: Annotated[str | None, typer.Option(envvar="LIULI_STORE", help=STORE)] = None,
    export: Annotated[str | None, typer.Option(help="Write what was judged and stop: dpo, sft or kto.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file for --export. Default: dpo.jsonl and so on.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8365,
) -> None:
    """Compare, rank and edit a model's answers by hand: what it can then be taught with.

    Example: liuli label runs/laptop
    """
    import webbrowser

    from liuli import assistant, server

    if export is not None:
        out = out or Path(f"{export}.jsonl")
        done = assistant.export(server.judgements(path, store), out, export)
        less = f"{done.duplicates} duplicates, {done.contradictions} contradictions, {done.empty} empty answers"
        print(f"{out}: {done.rows} rows; left out: {less}")
        return

    def ready(url: str) -> None:
        print(f"Liuli: {url}  (Ctrl-C stops it)", flush=True)
        webbrowser.open(url)

    server.label(path, host=host, port=port, store=store, prompts=prompts, ready=ready)


@app.command(name="build")
def build_command(
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


@curriculum_app.command(name="make")
def curriculum_make(
    out: Annotated[Path, typer.Argument(help="The folder to write: text.jsonl, chat.jsonl, eval.jsonl, about.json.")],
    seed: Annotated[int, typer.Option(help="Another seed, other people and other examples.")] = 0,
    size: Annotated[str, typer.Option(help="Bytes of text and chats together: 500KB, 50MB, 1GB.")] = "50MB",
    workers: Annotated[int, typer.Option(min=1, help="Processes; the bytes written do not depend on it.")] = 1,
    replace: Annotated[bool, typer.Option("--replace", help="Write over a folder that is there already.")] = False,
    as_json: Json = False,
) -> None:
    """Write the classroom: same seed and size, same bytes. Example: liuli curriculum make --size 50MB school"""
    from liuli.curriculum import show

    show.make_here(out, seed, size, workers, replace, as_json)


@curriculum_app.command(name="show")
def curriculum_show(
    skill: Annotated[str | None, typer.Option(help="One skill; default: all of them.")] = None,
    language: Annotated[str | None, typer.Option(help="en or zh; default: both.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples of each skill and language.")] = 1,
    seed: Annotated[int, typer.Option(help="Another seed, other samples.")] = 0,
    as_json: Json = False,
) -> None:
    """Read samples of what is taught. Example: liuli curriculum show --skill add_steps --language zh --n 3"""
    from liuli.curriculum import show

    show.show_here(skill, language, n, seed, as_json)


def main() -> None:
    """Run a command; an error the user can act on is one message and exit code 1 or 2, never a traceback."""
    # An idle thread spins for some microseconds, then sleeps. Spinning on and on, two torch programs on the same cores
    # (a build and its page) stall one another tenfold; without spinning a training step takes 30% longer. Between the
    # small products of a step that writes lies more Python: whoever sleeps there is woken too late (all measured).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "4000" if sys.argv[1:2] in (["serve"], ["chat"]) else "1000")
    try:
        app(standalone_mode=True)
    except LiuliError as error:
        print(f"liuli: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
