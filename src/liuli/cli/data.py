"""Commands about what is learned from: text, tokenizer, rows, the classroom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from liuli.cli.options import Json, SkipBad

Sources = Annotated[
    list[str], typer.Argument(help="Files, folders or Hub datasets (owner/name), each perhaps with a weight: news=0.5")
]
Field = Annotated[str, typer.Option(help="The key or column that holds the text, in .jsonl and .parquet.")]


def stats(
    sources: Sources,
    tokenizer: Annotated[Path | None, typer.Option(help="Count tokens with this one; default: an estimate.")] = None,
    field: Field = "text",
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Languages, documents, bytes and tokens of text. Example: liuli data stats books news.jsonl.gz --skip-bad"""
    from liuli.text import commands

    commands.stats_here(sources, tokenizer, field, skip_bad, as_json)


def clean(
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


def dedup(
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


def tokenizer(
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


def rows(
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


def mask(
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


def make(
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


def show(
    skill: Annotated[str | None, typer.Option(help="One skill; default: all of them.")] = None,
    language: Annotated[str | None, typer.Option(help="en or zh; default: both.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples of each skill and language.")] = 1,
    seed: Annotated[int, typer.Option(help="Another seed, other samples.")] = 0,
    as_json: Json = False,
) -> None:
    """Read samples of what is taught. Example: liuli curriculum show --skill add_steps --language zh --n 3"""
    from liuli.curriculum import show

    show.show_here(skill, language, n, seed, as_json)
