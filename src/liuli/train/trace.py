"""What one step of reinforcement learning saw and did, token by token: what the page's microscope looks at.

In: columns of figures from a trainer. Out: two parquet files a step, which any tool opens, and the same columns again.
It knows no torch, and nothing of how a figure is made.

    RUN/traces/STAGE/00000012.tokens.parquet      one row a token
    RUN/traces/STAGE/00000012.sequences.parquet   one row an answer; written last: without it the step is not there yet
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from liuli.errors import DamagedError, LiuliError, UsageError
from liuli.files import remove, write_file
from liuli.text.tokenizer import whole

KEEP = 200  # traced steps of a stage: the first one, which the newest is compared with, and the last ones


def _schema(always: Mapping[str, pa.DataType], figures: Mapping[str, pa.DataType]) -> pa.Schema:
    """Columns that every row has, then those that are null where they are not defined."""
    return pa.schema([pa.field(name, kind, name not in always) for name, kind in {**always, **figures}.items()])


INT, FLOAT, TEXT, BOOL = pa.int32(), pa.float32(), pa.string(), pa.bool_()
_PROBABILITIES = ("logprob_sampler", "logprob_old", "logprob_new", "logprob_ref")
_FIGURES = (*_PROBABILITIES, "kl", "reward", "value", "advantage", "return", "ratio")

TOKENS = _schema(
    {"sequence": INT, "position": INT, "token": INT, "text": TEXT, "drawn": BOOL},
    dict.fromkeys(_FIGURES, FLOAT) | {"clipped": BOOL, "entropy": FLOAT},
)
"""drawn: the policy chose it, so it is trained; prompts and tool results are not. logprob: in nats, of the engine that
drew it, of the policy before and after the step, of the reference. ratio: new to old probability."""

SEQUENCES = _schema(
    {"sequence": INT, "prompt": TEXT, "answer": TEXT, "length": INT, "finished": BOOL},
    {"score": FLOAT, "members": pa.list_(FLOAT), "advantage": FLOAT, "right": BOOL},
)
"""members: the score by each model of an ensemble. right: the truth, where it is known."""

_NAME = re.compile(r"(\d{8,})\.sequences\.parquet")


def write_trace(
    folder: str | Path, stage: str, step: int, tokens: Mapping[str, Any], sequences: Mapping[str, Any]
) -> None:
    """Write one step into a run folder; at most KEEP steps of a stage stay.

    tokens, sequences: every column of TOKENS and SEQUENCES, each a list or an array, NaN or None where a figure is not
    defined; None for a whole column that the method does not have. Raises LiuliError for other columns or values.
    """
    place = _place(folder, stage)
    where = f"{place}, step {step}"
    pieces = {"tokens": _bytes(tokens, TOKENS, where), "sequences": _bytes(sequences, SEQUENCES, where)}
    remove(_file(place, step, "sequences"))  # of an earlier try at this step: old and new are never seen together
    for kind, piece in pieces.items():
        write_file(_file(place, step, kind), [piece])
    steps = _steps(place)
    for old in steps[1 : 1 - KEEP]:
        remove(_file(place, old, "sequences"))
        remove(_file(place, old, "tokens"))


def traced_steps(folder: str | Path) -> dict[str, list[int]]:
    """{stage: its traced steps in order} of a run folder; {} where nothing was traced."""
    root = Path(folder) / "traces"
    stages = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = {stage: _steps(root / stage) for stage in stages if not stage.startswith(".")}
    return {stage: steps for stage, steps in found.items() if steps}


def read_trace(
    folder: str | Path, stage: str, step: int, sequence: int | None = None
) -> dict[str, dict[str, list[Any]]]:
    """{"tokens": columns, "sequences": columns} of a step, or of one sequence of it; None where nothing is defined.

    Raises LiuliError where there is no such step or sequence, DamagedError where a file is not as it was written.
    """
    tables = dict(zip(("tokens", "sequences"), read_tables(folder, stage, step), strict=True))
    if sequence is not None:
        tables = {kind: table.filter(pc.field("sequence") == sequence) for kind, table in tables.items()}
        if not tables["sequences"].num_rows:
            where = f"{_place(folder, stage)}, step {step}"
            raise LiuliError(f"there is no sequence {sequence}", where, "leave out the sequence to see which there are")
    return {kind: table.to_pydict() for kind, table in tables.items()}


def read_tables(folder: str | Path, stage: str, step: int) -> tuple[pa.Table, pa.Table]:
    """`read_trace` as Arrow tables: tokens, sequences."""
    place = _place(folder, stage)
    return _read(_file(place, step, "tokens"), TOKENS), _read(_file(place, step, "sequences"), SEQUENCES)


def _place(folder: str | Path, stage: str) -> Path:
    if not re.fullmatch(r"\w[\w.-]*", stage):
        raise UsageError(f"a stage cannot be called {stage!r}", fix="letters, digits, - and _")
    return Path(folder) / "traces" / stage


def _file(place: Path, step: int, kind: str) -> Path:
    return place / f"{step:08d}.{kind}.parquet"


def _steps(place: Path) -> list[int]:
    names = [found[1] for path in place.iterdir() if (found := _NAME.fullmatch(path.name))] if place.is_dir() else []
    return sorted(int(name) for name in names if (place / f"{name}.tokens.parquet").is_file())


def _bytes(columns: Mapping[str, Any], schema: pa.Schema, where: str) -> memoryview:
    """The columns as a parquet file, with checksums."""
    wrong = _differences(columns, schema)
    if wrong:
        raise LiuliError(f"the trace has {wrong}", where, f"give all of these, or None: {', '.join(schema.names)}")
    try:
        count = len(columns["sequence"])
        arrays = [_array(columns[field.name], field.type, count) for field in schema]
        table = pa.Table.from_arrays(arrays, schema=schema)
        pq.write_table(table, sink := pa.BufferOutputStream(), compression="zstd", write_page_checksum=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise LiuliError(
            f"the trace cannot be written: {error}", where, "give equally long columns of figures"
        ) from error
    return memoryview(sink.getvalue())


def _array(values: Any, kind: pa.DataType, count: int) -> pa.Array:
    values = [None] * count if values is None else values.tolist() if hasattr(values, "tolist") else values
    if kind == pa.string():
        values = [whole(value) for value in values]
    return pa.array(values, kind, from_pandas=True)  # NaN becomes null


def _read(file: Path, schema: pa.Schema) -> pa.Table:
    fix = "choose another step; remove this file if it is of no more use"
    try:
        table = pq.ParquetFile(pa.BufferReader(file.read_bytes()), page_checksum_verification=True).read(
            use_threads=False  # its threads and torch's do not leave the interpreter together
        )
        if wrong := _differences(table.schema.names, schema):
            raise DamagedError(f"{file.name} has {wrong}: another version of Liuli wrote it", file, fix)
        return table.select(schema.names).cast(schema)
    except FileNotFoundError:
        raise LiuliError(f"step {file.name.split('.')[0]} is not traced, or no longer kept", file, fix) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{file.name} is damaged: {error}", file, fix) from error


def _differences(names: Any, schema: pa.Schema) -> str:
    missing = [name for name in schema.names if name not in names]
    unknown = [name for name in names if name not in schema.names]
    said = (("no column", missing), ("an unknown column", unknown))
    return " and ".join(f"{what} {', '.join(which)}" for what, which in said if which)
