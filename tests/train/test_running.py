"""`liuli pretrain` and `liuli sft` by themselves: begun once, stopped, refused, continued; budgets to the step."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from liuli import running
from liuli.errors import LiuliError, UsageError
from liuli.files import folder_hash, lock, read_json, read_lines
from liuli.folder import read_model_folder
from liuli.model import Transformer, flops_per_token, load, qwen3, save
from liuli.stages import pretrain as pretrain_stage
from liuli.stages import training
from liuli.stages.training import TrainOptions, make_pace
from liuli.text import Rows, Tokenizer, commands, pack_documents
from liuli.train import Pace, RunLog, StageState, next_token
from liuli.train.checkpoint import load_checkpoint
from liuli.train.steps import run_steps

OPTIONS = ("batch_tokens=128", "compile=no", "snapshot_every_s=1e9")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, rows of 64 tokens, other rows, conversations (two of five bad), and a model."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(0)
    words = ["glass", "tiger", "琉璃", "river", "runs", "into", "the", "old", "house", "12", "7"]
    texts = [" ".join(draw.choices(words, k=20)) for _ in range(90)]
    tokenizer = Tokenizer.train(texts, 320)
    tokenizer.save(folder / "tokenizer")
    for name, part in (("rows", texts), ("other-rows", texts[::-1])):
        pack_documents(tokenizer.encode_batch(part), 64, folder / name, vocab_size=tokenizer.vocab_size)
    good = {"messages": [{"role": "user", "content": "the river?"}, {"role": "assistant", "content": "runs into 7"}]}
    chats = [good, {"messages": "[red] glass"}, good, {"colour": 3}, good]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    model = Transformer(qwen3(tokenizer.vocab_size, 64, 1, context=64))
    save(model, folder / "model", tokenizer_folder=folder / "tokenizer", provenance={"stage": "pretrain"})
    return folder


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread; Ctrl-C as in a terminal, where a test run in the background ignores it; no measured plan."""
    threads, before = torch.get_num_threads(), signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    monkeypatch.setattr(running, "make_plan", lambda *args, **kwargs: pytest.fail("the shape was measured"))
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, before)


def pretrain(data: Path, out: Path, *changes: str, rows: str = "rows", depth: int = 1, width: int = 64) -> None:
    tokenizer, budget = data / "tokenizer", {"steps": 6}
    running.pretrain_here(data / rows, tokenizer, out, "qwen3", depth, width, budget, [*OPTIONS, *changes], True)


def at_step(step: int, happens: Callable[[], Any]) -> Callable[..., torch.Tensor]:
    """The objective of pretraining in which something happens at that step (a step has two rows, one forward)."""
    calls = iter(range(1, 1000))

    def objective(model: Any, batch: Any) -> torch.Tensor:
        if next(calls) == step:
            happens()
        return next_token(model, batch)

    return objective


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fail() -> None:
    raise LiuliError("the disk is full")


def stopped_at(step: int, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(pretrain_stage, "next_token", at_step(step, ctrl_c))
        pretrain(data, out, **more)
    assert end.value.code == 130


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# --- stopped, failed, refused ----------------------------------------------------------------------------------------


def test_ctrl_c_saves_the_step_says_so_and_the_same_command_goes_on_bit_for_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_at(3, data, tmp_path / "run" / "base", monkeypatch)
    assert "The same command goes on" in capsys.readouterr().err
    status = read_json(tmp_path / "run" / "status.json")
    assert status["state"] == "stopped" and "the same command goes on" in status["message"]
    found = load_checkpoint(tmp_path / "run" / "checkpoints" / "base")
    assert found is not None and found[0] == 3
    pretrain(data, tmp_path / "run" / "base")
    pretrain(data, tmp_path / "whole" / "base")
    assert weights(tmp_path / "run" / "base") == weights(tmp_path / "whole" / "base")
    assert read_json(tmp_path / "run" / "status.json")["state"] == "done"


def test_killed_before_the_model_is_written_a_run_ends_with_its_figures(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = {name: tmp_path / name / "base" for name in ("whole", "killed")}
    pretrain(data, out["whole"], "save_every_steps=1")
    with monkeypatch.context() as patch, pytest.raises(LiuliError, match="disk"):
        patch.setattr(training, "write_model", lambda *parts: fail())
        pretrain(data, out["killed"], "save_every_steps=1")
    pretrain(data, out["killed"], "save_every_steps=1")
    whole, killed = (read_json(path / "liuli.json")["figures"] for path in out.values())
    assert (killed["loss"], killed["bpb"]) == (whole["loss"], whole["bpb"]) and killed["tokens_per_s"] > 0


def test_a_run_stopped_in_its_last_step_keeps_its_figures(data: Path, tmp_path: Path) -> None:
    log = RunLog(tmp_path, [StageState("s", "s")], quiet=True, tensorboard=False)
    log.begin("s")

    def take_step(done: int) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return {"loss": 7.0}

    def go_on() -> tuple[int, dict[str, float]]:
        own = {"state": dict, "load_state": lambda state: None, "checkpoints": tmp_path / "c"}
        return run_steps(take_step, Pace(steps=1), log=log, **own)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        go_on()
    assert go_on() == (1, {"loss": 7.0})


def test_a_second_ctrl_c_does_not_wait_for_the_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        ctrl_c()
        ctrl_c()
        pytest.fail("the step went on")

    monkeypatch.setattr(pretrain_stage, "next_token", at_step(2, twice))
    with pytest.raises(SystemExit):
        pretrain(data, tmp_path / "base")
    assert load_checkpoint(tmp_path / "checkpoints" / "base") is None  # half a step is not saved
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failure_is_in_the_status_with_its_message(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain_stage, "next_token", at_step(2, fail))
    with pytest.raises(LiuliError, match="disk is full"):
        pretrain(data, tmp_path / "base")
    status = read_json(tmp_path / "status.json")
    assert (status["state"], status["message"]) == ("failed", "the disk is full")


def test_a_refused_second_process_leaves_log_and_status_alone(data: Path, tmp_path: Path) -> None:
    with lock(tmp_path):
        child = os.fork()  # it has let go of the lock
        if child == 0:
            try:
                pretrain(data, tmp_path / "base")
            except LiuliError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


# --- begun once ------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_in_the_shape_that_was_measured_at_its_beginning(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(running, "make_plan", lambda *args, **kwargs: SimpleNamespace(layers=1, width=64))
        stopped_at(2, data, tmp_path / "base", patch, depth=0, width=0)
    pretrain(data, tmp_path / "base", depth=0, width=0)  # the fixture fails if it measures
    config = read_model_folder(tmp_path / "base").config
    assert (config["num_hidden_layers"], config["hidden_size"]) == (1, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 96}, "width 64, now 96"),
        ({"rows": "other-rows"}, "rows_hash .*, now "),
        ({"changes": ("matrix_lr=0.01", "seed=1")}, "matrix_lr 0.004, now 0.01; seed 0, now 1"),
    ],
    ids=["shape", "rows", "options"],
)
def test_a_run_begun_with_other_options_is_refused_by_their_names(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    stopped_at(2, data, tmp_path / "base", monkeypatch)
    with pytest.raises(UsageError, match=f"begun with other options: {message}") as refused:
        pretrain(data, tmp_path / "base", *change.pop("changes", ()), **change)
    assert str(tmp_path / "checkpoints" / "base") in str(refused.value.fix)
    pretrain(data, tmp_path / "base", "save_every_steps=1")  # how often it saves may change


def test_a_run_that_never_came_to_a_checkpoint_binds_nobody(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(LiuliError, match="disk is full"):
        patch.setattr(pretrain_stage, "next_token", at_step(1, fail))
        pretrain(data, tmp_path / "base", "seed=1")
    pretrain(data, tmp_path / "base")
    pretrain(data, tmp_path / "other" / "base")
    assert weights(tmp_path / "base") == weights(tmp_path / "other" / "base")


def test_a_run_killed_after_it_wrote_its_model_ends_where_a_finished_one_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(data, tmp_path / "whole" / "base")
    stopped_at(3, data, tmp_path / "run" / "base", monkeypatch)
    shutil.copytree(tmp_path / "whole" / "base", tmp_path / "run" / "base")
    pretrain(data, tmp_path / "run" / "base")
    assert weights(tmp_path / "run" / "base") == weights(tmp_path / "whole" / "base")
    with pytest.raises(UsageError, match="exists already"):
        pretrain(data, tmp_path / "run" / "base")


def test_the_provenance_holds_the_sums_of_what_was_learned_from(data: Path, tmp_path: Path) -> None:
    pretrain(data, tmp_path / "base")
    said = read_json(tmp_path / "base" / "liuli.json")["data"]
    assert said["rows"] == str(data / "rows") and said["rows_hash"] == folder_hash(data / "rows")


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def test_sft_says_how_many_bad_rows_it_skipped_and_why(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running.sft_here(data / "model", data / "chats.jsonl", tmp_path / "chat", {"steps": 1}, OPTIONS, True, False)
    (warning,) = (line["message"] for line in read_lines(tmp_path / "log.jsonl") if line.get("event") == "warning")
    assert "2 bad rows were skipped" in warning and "row 2" in warning and "row 4" in warning
    assert "2 bad rows were skipped" in capsys.readouterr().err


def test_sft_says_how_many_conversations_do_not_fit_and_how_many_lose_turns(data: Path, tmp_path: Path) -> None:
    def turn(role: str, words: int) -> dict[str, str]:
        return {"role": role, "content": "glass tiger " * words}

    talks = [[turn("user", 1), turn("assistant", n)] for n in (1, 99, 99)]
    talks.append([turn("user", 25), turn("assistant", 25), turn("user", 1), turn("assistant", 1)])
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    running.sft_here(
        data / "model", tmp_path / "own.jsonl", tmp_path / "r" / "chat", {"steps": 1}, OPTIONS, False, True
    )
    told = [line["message"] for line in read_lines(tmp_path / "r" / "log.jsonl") if line.get("event") == "warning"]
    assert ["2 conversations have no answer" in told[0], "1 conversations are longer" in told[1]] == [True, True]


def test_sft_renders_no_more_than_a_thousand_conversations_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    real = commands.render_many
    monkeypatch.setattr(
        commands, "render_many", lambda many, tokenizer: held.append(len(many)) or real(many, tokenizer)
    )
    line = (data / "chats.jsonl").read_text().splitlines(keepends=True)[0]
    (tmp_path / "own.jsonl").write_text(line * 1003)
    rows, _ = running.packed(tmp_path / "own.jsonl", data / "model", 64, tmp_path / "rows", False)
    assert held == [1000, 3] and Rows.open(rows).info.pieces == 1003


# --- budgets and dropout ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "T", "tokens", "steps"),
    [(2048, 256, 20_480, 10), (2048, 256, 20_481, 11), (2048, 256, 1, 1), (500, 128, 3840, 10), (64, 128, 1280, 10)],
)
def test_budgets_of_tokens_and_flops_are_the_fewest_steps_that_use_them_up(
    batch: int, T: int, tokens: int, steps: int
) -> None:
    """A step has whole rows: 500 tokens are three rows of 128, 64 are one."""
    model = Transformer(qwen3(320, 64, 1, context=T))
    flops = tokens * flops_per_token(model.config, T)["train"]
    for budget in ({"tokens": tokens}, {"flops": flops}):
        options = TrainOptions(batch_tokens=batch, **budget)  # type: ignore[arg-type]
        assert make_pace(options, model, T, None).steps == steps


def test_a_run_with_a_budget_of_tokens_takes_them_and_no_more(data: Path, tmp_path: Path) -> None:
    running.pretrain_here(
        data / "rows", data / "tokenizer", tmp_path / "base", "qwen3", 1, 64, {"tokens": 640}, OPTIONS, True
    )
    made = read_json(tmp_path / "base" / "liuli.json")
    assert (made["step"], made["tokens"]) == (5, 640)


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_dropout_is_an_option_that_changes_training_and_not_the_model_folder(
    data: Path, tmp_path: Path, stage: str
) -> None:
    for name, change in (("without", ()), ("with", ("dropout=0.5",))):
        if stage == "pretrain":
            pretrain(data, tmp_path / name, *change)
        else:
            rows, budget = data / "chats.jsonl", {"steps": 2}
            running.sft_here(data / "model", rows, tmp_path / name, budget, [*OPTIONS, *change], True, True)
    assert weights(tmp_path / "with") != weights(tmp_path / "without")
    assert load(tmp_path / "with").config.dropout == 0.0


@pytest.mark.parametrize("dropout", [-0.1, 1, 1.5])
def test_dropout_of_nothing_or_all_is_refused(dropout: float) -> None:
    with pytest.raises(UsageError, match="dropout"):
        TrainOptions(steps=1, dropout=dropout)


def test_a_rate_that_the_optimizer_does_not_use_is_refused() -> None:
    with pytest.raises(UsageError, match="adamw takes no matrix_lr"):
        TrainOptions(steps=1, optimizer="adamw", matrix_lr=0.5)
    assert TrainOptions(steps=1, optimizer="adamw", adam_lr=0.5).adam_lr == 0.5
