"""What the stages that train share: from a model and rows to a model folder, with snapshots on the way."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor

from liuli.engine import TOOLS, Engine, Sampling, reply_many
from liuli.errors import LiuliError, UsageError
from liuli.files import folder_hash, read_json, remove, write_json
from liuli.model import Transformer, flops_per_token, save
from liuli.text import Loader, Message, Rows, Tokenizer, render
from liuli.train import (
    FitResult,
    LoopOptions,
    Machine,
    Objective,
    OptimizerOptions,
    Pace,
    RunLog,
    fit,
    measure_machine,
)
from liuli.train.parallel import from_first, rank, ranks, sharded, whole

# What every snapshot is asked, so that one can watch it learn. Two languages, from easy to hard.
PROMPTS = (
    ("en", "What is the capital of France?"),
    ("zh", "法国的首都是哪里？"),
    ("en", "What is 23 times 17?"),
    ("zh", "请讲一个小故事。"),
    ("en", "Tell me a short story."),
    ("zh", "“苹果”用英语怎么说？"),
)


@dataclass(frozen=True)
class TrainOptions:
    """How a stage trains. Exactly one of minutes, steps, tokens and flops is the budget."""

    minutes: float | None = None
    steps: int | None = None
    tokens: float | None = None
    flops: float | None = None
    batch_tokens: int = 2048  # tokens of one optimizer step
    micro_tokens: int = 8192  # tokens of one forward pass at the most
    optimizer: Literal["muon", "adamw"] = "muon"
    matrix_lr: float = 0.004
    head_lr: float = 0.004
    embedding_lr: float = 0.01
    adam_lr: float = 0.003
    decay: float = 0.0  # weight decay
    dropout: float = 0.0  # share of each block's output set to zero; helps where the same rows come many times
    replay: float = 0.0  # fine-tuning: share of each batch that is rows of pretraining, against forgetting
    warmup: float = 0.02  # share of the run
    cooldown: float = 0.6  # share of the run over which learning rates fall
    compile: Literal["auto", "yes", "no"] = "auto"
    save_every_s: float = 60.0
    save_every_steps: int = 0
    snapshot_every_s: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        for part in fields(self):
            check_option(TrainOptions, part.name, getattr(self, part.name))
        if self.optimizer == "adamw" and self.matrix_lr != TrainOptions.matrix_lr:
            raise UsageError("adamw takes no matrix_lr", "training options", "adam_lr is that of its matrices too")
        given = [name for name in ("minutes", "steps", "tokens", "flops") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(
                f"the budget is given {len(given)} times" if given else "no budget is given",
                "training options",
                "give one of minutes, steps, tokens, flops",
            )


POSITIVE = (
    *("minutes", "steps", "tokens", "flops", "epochs", "batch_tokens", "micro_tokens", "max_tokens"),
    *("members", "prompts", "pairs", "answers", "minibatches", "context", "kl_horizon"),
)


def check_option(options: type[Any], name: str, value: Any, where: str | Path = "training options") -> None:
    """One option of a stage: its type (that of the default), its range, or that it is one of a few words."""
    default, words = options.__dataclass_fields__[name].default, get_args(get_type_hints(options)[name])
    if words and all(isinstance(word, str) for word in words):
        if value not in words:
            raise UsageError(f"{name} = {value!r} is not known", where, f"use one of {', '.join(words)}")
        return
    if value is None and default is None:
        return
    if kind := {bool: "true or false", str: "text"}.get(type(default)):
        if type(value) is not type(default):
            raise UsageError(f"{name} = {value!r} is not {kind}", where)
        return
    whole = isinstance(default, int) or name == "steps"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise UsageError(f"{name} = {value!r} is not a {'whole number' if whole else 'number'}", where)
    low = 0 if default is None or default >= 0 else -math.inf
    if not low <= value < math.inf or (value == 0 and name in POSITIVE):
        fix = "give a number above 0" if name in POSITIVE else "give 0 or more" if low == 0 else "give a finite number"
        raise UsageError(f"{name} = {value} is out of range", where, fix)
    if name in ("replay", "dropout") and value >= 1:
        raise UsageError(f"{name} = {value} leaves nothing to learn from", where, "give a number below 1")
    if name in ("discount", "trace") and value > 1:
        raise UsageError(f"{name} = {value} makes what is far away weigh most", where, "give a number of at most 1")


COMPILE_SECONDS = 30.0  # what torch.compile takes before the first step
# of the time of a step in bfloat16: 0.09 on Zen 4, 0.23 on Zen 5, whose matrix units are twice as fast. In float32, of
# processors without AVX-512, nothing (measured): products take nearly all of it
COMPILE_SAVES = 0.2


def wants_compile(options: TrainOptions, machine: Machine, seconds: float) -> bool:
    """Whether compiling pays: there is a compiler, weights are no shards, and it saves clearly more than it takes."""
    if options.compile != "auto":
        return options.compile == "yes"
    can = machine.compiler and machine.dtype == "bfloat16" and ranks() == 1
    return can and COMPILE_SAVES * seconds > 1.5 * COMPILE_SECONDS


# options that may change within a run
FREE = ("save_every_s", "save_every_steps", "snapshot_every_s", "trace_every")


def content_hash(*parts: Any) -> str:
    """The sha256 over tensors, dataclasses of them, and whatever else its repr tells apart."""
    made = hashlib.sha256()
    for part in parts:
        if is_dataclass(part):
            made.update(content_hash(*(getattr(part, own.name) for own in fields(part))).encode())
        else:
            made.update(part.numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode())
    return made.hexdigest()


def checkpoints_of(run: Path, name: str) -> Path:
    """Where the stage that writes `run/name` keeps its training state."""
    return run / "checkpoints" / name


def begun_with(checkpoints: Path) -> dict[str, Any]:
    """Shape, options and hashes of the data that an unfinished stage was begun with; empty where there is none."""
    path = checkpoints / "decided.json"
    return dict(read_json(path).get("begun", {})) if path.exists() else {}


def check_begun(checkpoints: Path, now: dict[str, Any]) -> None:
    """A stage that goes on must be the one that was begun: its checkpoint holds nothing for another. One that never
    came to a checkpoint binds nobody and is forgotten."""
    begun = begun_with(checkpoints)
    changed = [f"{name} {begun[name]}, now {value}" for name, value in now.items() if begun.get(name, value) != value]
    if changed and not any(checkpoints.glob("[0-9]*")):
        remove(checkpoints)
    elif changed:
        fix = f"give the same, or remove {checkpoints}"
        raise UsageError(f"this stage was begun with other options: {'; '.join(changed)}", checkpoints, fix)


def decide(
    checkpoints: Path,
    options: Any,
    facts: Mapping[str, Any],
    compiles: Callable[[Machine], bool] = lambda machine: False,
) -> tuple[Machine, bool]:
    """The machine with the dtype to compute in, and whether to compile: decided when a run starts, by measurement, and
    kept beside what it was begun with (options, and facts such as hashes), for a run that goes on computes as it began.
    """
    begun = {**facts, **{name: value for name, value in asdict(options).items() if name not in FREE}}
    check_begun(checkpoints, begun)
    machine, path = measure_machine(), checkpoints / "decided.json"
    if not path.exists():
        write_json(path, {"dtype": machine.dtype, "compile": compiles(machine), "begun": begun})
    kept = read_json(path)
    return replace(machine, dtype=kept["dtype"]), bool(kept["compile"])


def begin(
    stage: str, parent: str | Path, data: Mapping[str, Any], options: Any, checkpoints: Path
) -> tuple[dict[str, Any], Machine]:
    """The beginning of a stage that learns from preferences or rewards: where its model comes from, for the provenance,
    and the machine (`decide`). data: what it learns from, with a sum of each NAME as NAME_hash; it goes on from these
    sums alone."""
    origin = {"stage": stage, "parent": str(parent), "parent_hash": folder_hash(parent), "data": dict(data)}
    sums = {name: known[:12] for name, known in {**origin, **data}.items() if name.endswith("_hash")}
    machine, _ = from_first(decide, checkpoints, options, sums)
    torch.manual_seed(options.seed)
    return origin, machine


def rows_per_step(options: TrainOptions, T: int) -> int:
    return max(1, options.batch_tokens // T)


def make_pace(options: TrainOptions, model: Transformer, T: int, checkpoints: Path) -> Pace:
    """The budget as a pace: tokens and FLOPs (of all processes) become the fewest steps that use them up."""
    steps, tokens = options.steps or 0, options.tokens
    if options.flops is not None:
        tokens = options.flops / flops_per_token(model.config, T)["train"]
    if tokens is not None:
        steps = max(1, math.ceil(tokens / (rows_per_step(options, T) * T)))
    return Pace.of(options.minutes, steps, checkpoints)


def train_model(
    model: Transformer,
    rows: Rows,
    out: Path,
    *,
    objective: Objective,
    options: TrainOptions,
    tokenizer: Tokenizer,
    tokenizer_folder: Path,
    log: RunLog,
    provenance: dict[str, Any],
    replay: Rows | None = None,
) -> FitResult:
    """Train `model` (changed in place) on rows and write it to the folder `out`.

    Checkpoints go to run/checkpoints/NAME and snapshots to run/snapshots/NAME-STEP, where run is the log's folder and
    NAME that of `out`; a run that is killed goes on from there. Processes that torchrun started share each batch.
    UsageError where it was begun with other options, and for a batch that cannot be shared.
    """
    checkpoints = checkpoints_of(log.folder, out.name)
    read = {"rows": rows.folder} | ({"replay_rows": replay.folder} if replay is not None else {})
    sums = {f"{name}_hash": folder_hash(folder) for name, folder in read.items()}
    provenance = provenance | {"data": dict(provenance.get("data") or {}) | sums}
    facts = {name: getattr(model.config, name) for name in ("preset", "layers", "width", "vocab_size", "context")}
    # the tokenizer's folder is the parent model's in fine-tuning
    facts |= {name: found[:12] for name, found in (sums | {"tokenizer": folder_hash(tokenizer_folder)}).items()}
    seconds = 60 * (options.minutes or 0.0)
    pays = lambda machine: wants_compile(options, machine, seconds)  # noqa: E731
    machine, compiled = from_first(decide, checkpoints, options, facts, pays)
    pace = make_pace(options, model, rows.T, checkpoints)
    model.to(machine.device)
    model.compute_dtype = machine.compute_dtype
    torch.manual_seed(options.seed)
    batch_rows = rows_per_step(options, rows.T)
    loader = Loader(rows, batch_rows, options.seed, rank(), ranks(), replay=replay, share=options.replay)
    optimizer = sharded(model, optimizer_options(options), machine.compute_dtype)
    loop = LoopOptions(
        micro_rows=min(batch_rows // ranks(), max(1, options.micro_tokens // rows.T)),
        compile=compiled,
        warmup=options.warmup,
        decay=options.cooldown,
        save_every_s=options.save_every_s,
        save_every_steps=options.save_every_steps,
        snapshot_every_s=options.snapshot_every_s,
    )

    def take_snapshot(step: int) -> None:
        from_first(keep_snapshot, whole(model), step, out.name, tokenizer, tokenizer_folder, provenance, log)

    result = fit(
        model,
        optimizer,
        loader,
        objective,
        pace,
        log=log,
        machine=machine,
        options=loop,
        checkpoints=checkpoints,
        # packed documents that see one another cost much at this size: 1.50 against 1.33 nats (docs/notebook.md)
        bos=tokenizer.bos,
        bytes_per_id=tokenizer.bytes_per_id,
        on_snapshot=take_snapshot,
    )
    figures = {"loss": result.loss, "bpb": result.bpb, "tokens_per_s": result.tokens_per_s, "seconds": result.seconds}
    provenance |= {"options": asdict(options), "figures": figures, "step": result.steps, "tokens": result.tokens}
    provenance |= {"seed": options.seed}
    written = whole(model)
    from_first(write_model, written, out, tokenizer, tokenizer_folder, provenance)
    from_first(ask_prompts, written, tokenizer, result.steps, log)
    remove(checkpoints)
    return result


def optimizer_options(options: TrainOptions) -> OptimizerOptions:
    return OptimizerOptions(
        kind=options.optimizer,
        matrix_lr=options.matrix_lr,
        matrix_decay=options.decay if options.optimizer == "muon" else 0.0,
        adam_decay=options.decay if options.optimizer == "adamw" else 0.0,
        embedding_lr=options.embedding_lr,
        adam_lr=options.adam_lr,
        head_lr=options.head_lr,
    )


def check_finite(model: torch.nn.Module, out: Path) -> None:
    """LiuliError instead of a folder of weights that are no numbers."""
    if not all(weight.isfinite().all() for weight in model.state_dict().values()):
        raise LiuliError("the weights are no numbers any more", out, "lower the learning rates")


def write_model(
    model: Transformer, out: Path, tokenizer: Tokenizer, tokenizer_folder: Path, provenance: dict[str, Any]
) -> None:
    """The model folder, with the token ids that other tools look for. LiuliError for weights that are no numbers."""
    check_finite(model, out)
    save(
        model,
        out,
        tokenizer_folder=tokenizer_folder,
        provenance=provenance,
        special=tokenizer.special_ids,
        generation={"do_sample": True, "temperature": 0.7, "top_p": 0.95},
        replace=True,
    )


SNAPSHOTS = 2  # of a stage that are kept, the newest


def keep_snapshot(
    model: Transformer,
    step: int,
    stage: str,
    tokenizer: Tokenizer,
    tokenizer_folder: Path,
    provenance: dict[str, Any],
    log: RunLog,
) -> None:
    """Write the model folder of a step on the way to run/snapshots, drop older ones, ask it the prompts."""
    folder = log.folder / "snapshots"
    write_model(model, folder / f"{stage}-{step:08d}", tokenizer, tokenizer_folder, provenance | {"step": step})
    for old in sorted(folder.glob(f"{stage}-*"))[:-SNAPSHOTS]:
        remove(old)
    ask_prompts(model, tokenizer, step, log)


def ask_prompts(model: Transformer, tokenizer: Tokenizer, step: int, log: RunLog) -> None:
    """What a model answers to the fixed prompts, greedy, to samples.jsonl."""
    engine = Engine(model, tokenizer)
    asked = [(language, [Message("user", text)]) for language, text in PROMPTS]
    asked = [one for one in asked if len(render(one[1], tokenizer, answer=True).tokens) < engine.context // 2]
    made = reply_many(engine, [messages for _, messages in asked], Sampling(temperature=0.0, max_tokens=90), TOOLS)
    log.samples(
        step,
        [
            {"prompt": messages[0].content, "language": language, "answer": answer[-1].content if answer else ""}
            for (language, messages), answer in zip(asked, made, strict=True)
        ],
    )


def with_budget(options: TrainOptions, minutes: float) -> TrainOptions:
    """The same options with another number of minutes as the budget."""
    return replace(options, minutes=minutes, steps=None, tokens=None, flops=None)
