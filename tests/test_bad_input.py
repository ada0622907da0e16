"""Bad input through the command line: each ends in one clear message and exit code 1 or 2, and nothing is lost.

Commands run in this process (`liuli.cli.main`), so that a run costs milliseconds.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from liuli import cli, files
from liuli.files import lock, read_lines
from liuli.folder import read_model_folder, write_model_folder
from liuli.model import Transformer, load, qwen3, save
from liuli.model.scalar import ScalarModel, save_scalar
from liuli.text import Tokenizer, pack_documents

SECONDS = 30  # that a command may take; they need far less
TEXTS = [f"The {n % 17}th tiger of glass number {n} saw river {n * n}. 第{n}只琉璃虎看见了河。" for n in range(200)]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and all that it printed."""

    code: int
    message: str


Run = Callable[..., Ended]


@pytest.fixture
def liuli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def too_long(*_: object, **__: object) -> None:
        raise AssertionError("the command went on instead of refusing")

    monkeypatch.setattr("uvicorn.Server.run", too_long)

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr("sys.argv", ["liuli", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(SECONDS)
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.alarm(0)
        printed = capfd.readouterr()
        return Ended(code, printed.out + printed.err)

    return run


def says(ended: Ended, code: int, *parts: str) -> None:
    """The command failed with this exit code and one message that holds these parts."""
    assert ended.code == code, ended.message
    for part in parts:
        assert part in ended.message, ended.message
    assert ended.message.count("liuli: ") == 1 or code == 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, rows and a tiny model, made once; tests copy what they damage."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = Tokenizer.train(TEXTS, 320)
    tokenizer.save(folder / "tokenizer")
    pack_documents(tokenizer.encode_batch(TEXTS), 64, folder / "rows", vocab_size=tokenizer.vocab_size)
    Tokenizer.train(TEXTS, 280).save(folder / "small-tokenizer")
    model = Transformer(qwen3(tokenizer.vocab_size, 64, 1, context=64))
    save(model, folder / "model", tokenizer_folder=folder / "tokenizer", provenance={"stage": "pretrain"})
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pretrain(made: Path, out: Path, *more: str, tokenizer: str = "tokenizer", steps: int = 4) -> list[str | Path]:
    size = ["--depth", "1", "--width", "64", "--steps", str(steps)]
    options = ["--option", "batch_tokens=64", "--option", "save_every_steps=1", "--option", "compile=no", "--quiet"]
    return ["pretrain", made / "rows", out, "--tokenizer", made / tokenizer, *size, *options, *more]


# --- options and recipes ---------------------------------------------------------------------------------------------


def test_an_unknown_option_in_a_recipe_names_the_nearest(liuli: Run, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('name = "my"\n[pretrain]\nmatrix_ir = 0.1\n')
    says(liuli("build", tmp_path / "my.toml", "--out", tmp_path / "run"), 2, "matrix_ir", "matrix_lr", "my.toml")
    (tmp_path / "my.toml").write_text('name = "my"\nminuts = 3\n')
    says(liuli("build", tmp_path / "my.toml", "--out", tmp_path / "run"), 2, "minuts", "minutes")
    (tmp_path / "my.toml").write_text('name = "my"\n')
    says(liuli("build", tmp_path / "my.toml", "name.first=1", "--out", tmp_path / "run"), 2, "name has no parts")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        ("minutes = ", "TOML"),
        ('minutes = "ten"', "minutes"),
        ("minutes = -1", "minutes"),
        ("minutes = inf", "minutes = inf is out of range"),
        ("context = 0", "context = 0 is out of range"),
        ("layers = -2", "layers = -2 is out of range"),
        ("preset = 3", "preset"),
        ('preset = "llama"', "llama"),
        ('pretrain = "much"', "pretrain"),
        ("text = 3", "text"),
        ("text = [1]", "text"),
        ("[pretrain]\nbatch_tokens = 'many'", "my.toml, [pretrain]"),
        ("[pretrain]\nsteps = 10", "a stage of a build has no steps of its own"),
        ("vocab = 100", "vocab = 100 is too little"),
        ("curriculum_mb = 0.05", "curriculum_mb = 0.05 is too little"),
        ("text_share = 3.0", "text_share"),
        ('name = ""', "a recipe needs a name"),
        (None, "recipe"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(liuli: Run, tmp_path: Path, recipe: str | None, part: str) -> None:
    if recipe is not None:
        (tmp_path / "my.toml").write_text(recipe)
    says(liuli("build", tmp_path / "my.toml", "--out", tmp_path / "run"), 2, part)
    assert not (tmp_path / "run").exists()  # so the recipe put right finds nothing of this one


def test_a_run_folder_in_place_of_a_recipe_names_the_recipe_in_it(liuli: Run, tmp_path: Path) -> None:
    says(liuli("build", tmp_path), 2, "a folder is no recipe", str(tmp_path / "recipe.toml"))


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--option", "matrix_ir=1"], "matrix_lr"),
        (["--option", "matrix_lr"], "key=value"),
        (["--minutes", "3"], "budget"),
        (["--option", "matrix_lr=fast"], "matrix_lr"),
        (["--option", "optimizer=sgd"], "sgd"),
        (["--option", "batch_tokens=-1"], "batch_tokens"),
        (["--preset", "llama"], "llama"),
    ],
)
def test_a_training_option_that_cannot_be_meant_is_refused(
    liuli: Run, made: Path, tmp_path: Path, more: list[str], part: str
) -> None:
    says(liuli(*pretrain(made, tmp_path / "out", *more)), 2, part)
    assert not (tmp_path / "out").exists()


def test_an_option_like_no_other_is_answered_with_all_that_there_are(liuli: Run, made: Path, tmp_path: Path) -> None:
    ended = liuli(*pretrain(made, tmp_path / "out", "--option", "zzz=1"))
    says(ended, 2, "known: minutes, steps, tokens", "matrix_lr")
    assert "did you mean" not in ended.message


@pytest.mark.parametrize("command", [["plan", "--context", "0"], ["pretrain", "--depth", "-2"]])
def test_a_size_below_any_that_there_is_is_refused_by_its_option(
    liuli: Run, made: Path, tmp_path: Path, command: list[str]
) -> None:
    own = pretrain(made, tmp_path / "out")[1:] if command[0] == "pretrain" else []
    says(liuli(command[0], *own, *command[1:]), 2, command[1], "greater than or equal to")


def writes(command: str, made: Path, chats: Path, out: Path) -> list[str | Path]:
    """A command that makes `out` of the model and the conversations."""
    model, short = made / "model", ["--steps", "1", "--quiet"]
    return {
        "pretrain": pretrain(made, out),
        "sft": ["sft", model, chats, out, *short],
        "reward": ["reward", model, chats, "--out", out, "--quiet"],
        "dpo": ["dpo", model, chats, "--out", out, "--quiet"],
        "ppo": ["ppo", model, model, chats, out, *short],
        "grpo": ["grpo", model, out, "--tasks", chats, *short],
        "best": ["best", model, out, "--tasks", chats, "--quiet"],
    }[command]


@pytest.mark.parametrize("command", ["pretrain", "sft", "reward", "dpo", "ppo", "grpo", "best"])
def test_what_is_read_and_what_is_finished_is_never_written_over(
    liuli: Run, made: Path, tmp_path: Path, command: str
) -> None:
    chats, read = tmp_path / "chats.jsonl", made / ("rows" if command == "pretrain" else "model")
    chats.write_text('{"question": "2 + 3?", "answer": "5"}\n')
    given, end = (chats, ".jsonl") if command == "best" else (read, "")
    finished, link = tmp_path / f"finished{end}", tmp_path / f"link{end}"
    (shutil.copytree if given.is_dir() else shutil.copy)(given, finished)
    link.symlink_to(given)
    before = {path: path.read_bytes() for place in (given, tmp_path) for path in place.rglob("*") if path.is_file()}
    says(liuli(*writes(command, made, chats, given)), 2, "cannot be written over", str(given), "another name")
    says(liuli(*writes(command, made, chats, link)), 2, "cannot be written over")
    says(liuli(*writes(command, made, chats, finished)), 2, "exists already", str(finished), "or remove it")
    after = {path: path.read_bytes() for place in (given, tmp_path) for path in place.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("minutes", ["-1", "0", "nan", "inf"])
def test_a_build_of_no_time_or_no_end_is_refused(liuli: Run, tmp_path: Path, minutes: str) -> None:
    (tmp_path / "my.toml").write_text('name = "my"\n')
    says(liuli("build", tmp_path / "my.toml", "--minutes", minutes, "--out", tmp_path / "run"), 2, "minutes")
    assert not (tmp_path / "run").exists()


# --- disks -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_stops_training_with_one_message_and_loses_nothing(
    liuli: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(operation: str, path: Path) -> None:
        if operation == "write" and "00000003" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    command = pretrain(made, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(files, "_io", full)
        says(liuli(*command), 1, "the disk is full", "run the same command again")
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob(".tmp-*"))
    assert liuli(*command).code == 0
    assert any(line.get("event") == "continued from checkpoint" for line in read_lines(tmp_path / "log.jsonl"))
    read_model_folder(tmp_path / "out")


@pytest.mark.parametrize("kind", ["rows", "chat rows", "tokenizer", "dedup", "curriculum"])
def test_a_disk_that_takes_no_more_is_one_message_and_nothing_half_written(
    liuli: Run, made: Path, tmp_path: Path, kind: str
) -> None:
    text, chats, out = tmp_path / "text.txt", tmp_path / "chats.jsonl", tmp_path / "out"
    text.write_text("\n".join(TEXTS))
    chats.write_text("".join(json.dumps({"prompt": line, "completion": line}) + "\n" for line in TEXTS))
    command = {
        "rows": ["data", "rows", text, out, "--tokenizer", made / "tokenizer", "--context", "64"],
        "chat rows": ["data", "rows", chats, out, "--tokenizer", made / "tokenizer", "--chat"],
        "tokenizer": ["tokenizer", text, out, "--vocab-size", "300"],
        "dedup": ["data", "dedup", text, out],
        "curriculum": ["curriculum", "make", out, "--size", "200KB"],
    }[kind]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        ended = liuli(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    says(ended, 1, "Cannot write", "larger than allowed", "where", "to do")
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "chats.jsonl"}
    assert liuli(*command).code == 0


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing can be written: a read-only mount for root, whom permissions do not stop."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=100k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("root cannot mount here, and permissions do not stop root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_folder_is_one_message(liuli: Run, made: Path, read_only: Path, tmp_path: Path) -> None:
    says(liuli(*pretrain(made, read_only / "out")), 1, "read-only", str(read_only))
    says(liuli("data", "rows", tmp_path, read_only / "rows", "--tokenizer", made / "tokenizer"), 1, str(read_only))
    says(liuli("export", made / "model", read_only / "model.gguf"), 1, "read-only", str(read_only))


def test_a_build_in_a_read_only_folder_is_one_message(liuli: Run, read_only: Path, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("minutes = 1\n")
    says(liuli("build", tmp_path / "my.toml", "--out", read_only / "run", "--quiet"), 1, "write", str(read_only))


def test_two_trainings_in_one_folder_name_the_first(liuli: Run, made: Path, tmp_path: Path) -> None:
    ready, tell = os.pipe()
    done, end = os.pipe()
    if (child := os.fork()) == 0:
        with lock(tmp_path):
            os.write(tell, b"!")
            os.read(done, 1)
            os._exit(0)
    os.read(ready, 1)
    try:
        says(liuli(*pretrain(made, tmp_path / "out")), 1, f"Process {child}")
    finally:
        os.write(end, b"!")
        os.waitpid(child, 0)
        for descriptor in (ready, tell, done, end):
            os.close(descriptor)


# --- damaged and mismatched folders ----------------------------------------------------------------------------------


def test_truncated_checkpoints_are_one_message_when_none_is_left(
    liuli: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(operation: str, path: Path) -> None:
        if operation == "write" and "00000004" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    command = pretrain(made, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(files, "_io", full)
        says(liuli(*command), 1, "the disk is full")
    saved = sorted((tmp_path / "checkpoints" / "out").glob("0*"))
    assert len(saved) == 2
    os.truncate(saved[1] / "tensors.safetensors", 1000)
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as warned:
        patch.setattr(files, "_io", full)
        ended = liuli(*command)  # goes on from the other one, and says so
    says(ended, 1, "the disk is full")
    told = [str(warning.message) for warning in warned] + [ended.message, (tmp_path / "log.jsonl").read_text()]
    assert any("Checkpoint 3 is passed over: tensors.safetensors is damaged" in text for text in told)
    for checkpoint in (tmp_path / "checkpoints" / "out").glob("0*"):
        os.truncate(checkpoint / "tensors.safetensors", 1000)
    with warnings.catch_warnings(record=True):
        says(liuli(*command), 1, "None of the 2 checkpoints is whole", "checkpoints")
    assert not (tmp_path / "out").exists()


def opens(kind: str, model: Path, tmp_path: Path) -> list[str | Path]:
    """A command that opens a model folder."""
    chats = tmp_path / "chats.jsonl"
    message = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    chats.write_text((json.dumps(message) + "\n") * 3)
    return {
        "eval": ["eval", model],
        "serve": ["serve", model, "--port", "0"],
        "chat": ["chat", model],
        "sft": ["sft", model, chats, tmp_path / "tuned", "--steps", "1", "--quiet"],
    }[kind]


COMMANDS = ("eval", "serve", "chat", "sft")
AT_ONCE = ("eval", ("serve"), "chat", "sft")


@pytest.mark.parametrize("kind", COMMANDS)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_folder_that_lacks_a_file_is_one_message(
    liuli: Run, made: Path, tmp_path: Path, kind: str, name: str
) -> None:
    model = Path(shutil.copytree(made / "model", tmp_path / "model"))
    (model / name).unlink()
    ended = liuli(*opens(kind, model, tmp_path))
    says(ended, ended.code, name, str(model))
    assert ended.code in (1, 2)


@pytest.mark.parametrize("kind", AT_ONCE)
def test_a_model_folder_with_a_flipped_byte_is_one_message(liuli: Run, made: Path, tmp_path: Path, kind: str) -> None:
    model = Path(shutil.copytree(made / "model", tmp_path / "model"))
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-100] ^= 4
    (model / "model.safetensors").write_bytes(weights)
    says(liuli(*opens(kind, model, tmp_path)), 1, "model.safetensors is damaged", str(model))


@pytest.mark.parametrize("kind", AT_ONCE)
def test_a_reward_model_in_place_of_a_chat_model_is_told_apart(
    liuli: Run, made: Path, tmp_path: Path, kind: str
) -> None:
    judge = ScalarModel(load(made / "model"), 2)
    save_scalar(judge, tmp_path / "judge", tokenizer_folder=made / "tokenizer", provenance={}, special={})
    says(liuli(*opens(kind, tmp_path / "judge", tmp_path)), 1, "it scores, it does not write", "give the chat model")


@pytest.mark.parametrize("kind", ["reward", "dpo", "ppo"])
def test_a_run_or_nothing_in_place_of_a_model_is_a_wrong_path_in_preferences_too(
    liuli: Run, made: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text("{}")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 3)
    for place, part in (("run", "This is a run"), ("nowhere", "no such model folder")):
        command = writes(kind, made, pairs, tmp_path / "out")
        command[command.index(made / "model")] = tmp_path / place
        says(liuli(*command), 2, part, place)
    judge = ["ppo", made / "model", tmp_path / "nowhere", pairs, tmp_path / "out", "--steps", "1", "--quiet"]
    says(liuli(*judge), 2, "no such model folder", "nowhere")


@pytest.mark.parametrize("kind", AT_ONCE)
def test_a_model_with_a_wrong_shape_names_the_tensor(liuli: Run, made: Path, tmp_path: Path, kind: str) -> None:
    whole = read_model_folder(made / "model")
    tensors = whole.tensors()
    name = next(name for name in tensors if name.endswith("down_proj.weight"))
    tensors[name] = tensors[name][:, :-1]
    write_model_folder(
        tmp_path / "model",
        config=whole.config,
        tensors=tensors,
        tokenizer_folder=made / "tokenizer",
        generation={},
        provenance={},
    )
    says(liuli(*opens(kind, tmp_path / "model", tmp_path)), 1, "has shape (64, 191), the config asks for (64, 192)")


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_path_that_is_no_model_is_a_wrong_path(liuli: Run, tmp_path: Path, kind: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    says(liuli(*opens(kind, tmp_path / "photos", tmp_path)), 2, "photos")
    says(liuli(*opens(kind, tmp_path / "nowhere", tmp_path)), 2, "nowhere")


@pytest.mark.parametrize("kind", AT_ONCE)
def test_a_tokenizer_that_does_not_match_the_model_is_one_message(
    liuli: Run, made: Path, tmp_path: Path, kind: str
) -> None:
    model = Transformer(qwen3(280, 64, 1, context=64))
    save(model, tmp_path / "model", tokenizer_folder=made / "tokenizer", provenance={})
    says(liuli(*opens(kind, tmp_path / "model", tmp_path)), 1, "okenizer", "320", "280")


def test_rows_of_another_tokenizer_are_one_message(liuli: Run, made: Path, tmp_path: Path) -> None:
    says(liuli(*pretrain(made, tmp_path / "out", tokenizer="small-tokenizer")), 1, "tokenizer")
    assert not (tmp_path / "out").exists()


def test_damaged_rows_are_named(liuli: Run, made: Path, tmp_path: Path) -> None:
    for name in ("rows", "tokenizer"):
        shutil.copytree(made / name, tmp_path / name)
    tokens = bytearray((tmp_path / "rows" / "tokens.bin").read_bytes())
    tokens[100] ^= 1
    (tmp_path / "rows" / "tokens.bin").write_bytes(tokens)
    says(liuli(*pretrain(tmp_path, tmp_path / "out")), 1, "tokens.bin is damaged")
    (tmp_path / "rows" / "tokens.bin").unlink()
    says(liuli(*pretrain(tmp_path, tmp_path / "out")), 1, "tokens.bin is missing")
    shutil.rmtree(tmp_path / "rows")
    assert liuli(*pretrain(tmp_path, tmp_path / "out")).code in (1, 2)


# --- corpora ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "part"),
    [("", "empty"), ("The same line again.\n" * 5000, "repeats itself"), (None, "no file here can be read")],
    ids=["empty", "one repeated line", "no text files"],
)
def test_a_corpus_that_teaches_nothing_is_one_message(
    liuli: Run, made: Path, tmp_path: Path, content: str | None, part: str
) -> None:
    (tmp_path / "corpus").mkdir()
    if content is not None:
        (tmp_path / "corpus" / "a.txt").write_text(content)
    ended = liuli("data", "rows", tmp_path / "corpus", tmp_path / "rows", "--tokenizer", made / "tokenizer")
    says(ended, 1, part)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]


@pytest.mark.slow
def test_a_build_from_a_corpus_without_text_is_refused(liuli: Run, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "my.toml").write_text("minutes = 0.2\ncurriculum_mb = 0.2\n")
    recipe = tmp_path / "my.toml"
    says(liuli("build", recipe, "--text", tmp_path / "corpus", "--out", tmp_path / "run", "--quiet"), 1, "corpus")


# --- make ------------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]


def test_make_leaves_no_half_made_environment_and_says_what_to_install(tmp_path: Path) -> None:
    python = tmp_path / "python-without-venv"  # as Debian's without python3-venv: it fails after making its own link
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\nmkdir -p .venv/bin && touch .venv/bin/python\nexit 1\n')
    python.chmod(0o755)
    command = ["make", "-f", ROOT / "Makefile", ".venv/bin/python", f"PYTHON={python}"]
    for _ in range(2):
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode and "apt install python3-venv" in ended.stdout
        assert not (tmp_path / ".venv").exists()


def test_make_help_names_every_target_and_variable() -> None:
    text = (ROOT / "Makefile").read_text()
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split()
    variables = re.findall(r"^\w+(?= \?=)|(?<=\$\(if \$\()\w+", text, re.MULTILINE)
    assert targets and not [name for name in targets if f"make {name}" not in told]
    assert variables and not [name for name in variables if f"{name}=" not in told]


# --- the network -----------------------------------------------------------------------------------------------------


def test_a_port_already_taken_is_one_message(liuli: Run, made: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        says(liuli("serve", made / "model", "--port", str(port)), 1, f"{port}", "already taken", "--port")
        recipe, run = tmp_path / "my.toml", tmp_path / "run"
        recipe.write_text('name = "my"\n')
        says(liuli("build", recipe, "--serve", "--port", str(port), "--out", run), 1, f"{port}", "already taken")
        assert not run.exists()
