"""Commands that use a model: measure it, talk to it, serve it, judge its answers; who may ask, and how fast it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liuli.cli.options import STORE, Json

if TYPE_CHECKING:
    from liuli.assistant.voices import Voice


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
    replicas: Annotated[int, typer.Option(min=0, help="Processes that write, for many at once: one a core.")] = 0,
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

        how = sooner(weights, compiled, draft) | {"prefix_int8": prefix_int8, "replicas": replicas}
        return voice_of(engine, model, engine_url, name=engine_model, key=engine_key(), **how)

    if ends_with_input:
        server.end_with_input()
    elsewhere = (engine_model or engine_url or "") if engine == "openai" else ""
    options = {"load": load, "elsewhere": elsewhere, "more": models[1:], "seconds": seconds_per_answer}
    server.serve(models[0], host=host, port=port, store=store, drain=drain, ready=ready, loaded=loaded, **options)


def label(
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


StoreOption = Annotated[str, typer.Option("--store", envvar="LIULI_STORE", help="The server's store: a path or URL.")]
PerMinute = Annotated[int | None, typer.Option(min=1, help="Limit. Default: none.")]


def add_key(
    name: Annotated[str, typer.Argument(help="Whose key it is; chats belong to this name.")],
    store: StoreOption,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: PerMinute = None,
) -> None:
    """Make a key and print it, this once. Example: liuli keys add ada --store runs/laptop/judgements.sqlite"""
    from liuli import server

    print(server.keys_in(store).add(name, requests_per_minute, tokens_per_minute))


def list_keys(store: StoreOption, as_json: Json = False) -> None:
    """The names of the keys and their limits. Example: liuli keys list --store runs/laptop/judgements.sqlite"""
    from liuli import server

    server.list_keys_here(store, as_json)


def remove_key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    store: StoreOption,
) -> None:
    """Remove a key. A running server refuses it within two seconds. Example: liuli keys remove ada --store …"""
    from liuli import server

    server.keys_in(store).remove(name)


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
