"""Checkpoints: the whole state of a training run on disk, so that a killed run continues bit for bit.

In: a step and a nested state (dicts, lists, tuples, numbers, strings, tensors, numpy arrays). Out: the same state,
every bit of it, from the newest checkpoint that is whole. It does not know what the state means, nor when to save.

A checkpoint is a folder `00001200/` with `tensors.safetensors`, `state.json` (all else, with references to the tensors)
and the manifest that is verified on load. Nothing is pickled: opening a checkpoint cannot run code.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liuli.errors import DamagedError
from liuli.files import MANIFEST, new_folder, read_json, remove, sweep, verify_folder, write_json
from liuli.folder import read_tensors, write_tensors

_TENSORS, _STATE = "tensors.safetensors", "state.json"


def save_checkpoint(folder: str | Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `folder/STEP` whole or not at all, then remove all but the last `keep` checkpoints; return its path.

    Checkpoints of later steps are removed too: they were passed over as damaged, or belong to an abandoned future.
    """
    sweep(folder)
    path = Path(folder) / f"{step:08d}"
    tensors: dict[str, torch.Tensor] = {}
    packed = _pack(state, "", tensors)
    if not (path / MANIFEST).is_file():
        remove(path)  # a damaged one of the same step
    with new_folder(path, replace=True) as stage:
        write_json(stage / _STATE, {"step": step, "state": packed})
        write_tensors(stage / _TENSORS, tensors)
    steps = _steps(folder)
    for old in [*(s for s in steps if s > step), *[s for s in steps if s <= step][: -max(keep, 1)]]:
        remove(Path(folder) / f"{old:08d}")
    return path


def load_checkpoint(
    folder: str | Path, warn: Callable[[str], None] = warnings.warn
) -> tuple[int, dict[str, Any]] | None:
    """Return (step, state) of the newest checkpoint that is whole, tensors on the CPU; None where none was ever saved.

    warn: told of every damaged one that is passed over, with the file's name. DamagedError if none is whole.
    """
    sweep(folder)
    steps = _steps(folder)
    for step in reversed(steps):
        path = Path(folder) / f"{step:08d}"
        try:
            return step, _read(path, step)
        except DamagedError as error:
            warn(f"Checkpoint {step} is passed over: {error.what} ({error.where})")
    if steps:
        fix = "remove the folder to start this stage again"
        raise DamagedError(f"None of the {len(steps)} checkpoints is whole", where=folder, fix=fix)
    return None


def _steps(folder: str | Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, oldest first."""
    if not Path(folder).is_dir():
        return []
    return sorted(int(path.name) for path in Path(folder).iterdir() if path.name.isdecimal() and path.is_dir())


def _read(path: Path, step: int) -> dict[str, Any]:
    verify_folder(path)
    content = read_json(path / _STATE)
    if content["step"] != step:
        raise DamagedError(f"it holds step {content['step']}", where=path, fix="remove this folder")
    state: dict[str, Any] = _unpack(content["state"], read_tensors([path / _TENSORS]))
    return state


# --- any state as JSON and tensors: what JSON lacks becomes {"$kind": value} -----------------------------------------


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return the JSON form of a value; its tensors go to `tensors` under their place in the state."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):  # JSON text of a finite float is its repr, which reads back as the same bits
        return float(value) if math.isfinite(value) else {"$float": float(value).hex()}
    if isinstance(value, torch.Tensor):
        return {"$tensor": _store(value, name, tensors)}
    if isinstance(value, np.ndarray):
        return {"$array": _store(torch.from_numpy(np.array(value)), name, tensors)}
    if isinstance(value, np.generic):
        return _pack(value.item(), name, tensors)
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, dict):
        pairs = [(key, _pack(item, f"{name}/{key}", tensors)) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(pairs)
        return {"$dict": [[_pack(key, name, tensors), item] for key, item in pairs]}
    raise TypeError(f"A checkpoint cannot hold {type(value).__name__} at {name or 'its root'}")


def _store(tensor: torch.Tensor, name: str, tensors: dict[str, torch.Tensor]) -> str:
    """Keep a tensor under its place, made unique where two places read alike (keys 1 and "1")."""
    key = name.removeprefix("/")
    while key in tensors:
        key += "'"
    tensors[key] = tensor
    return key


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    content: Any
    kind, content = next(iter(value.items()), ("", None))
    match kind:
        case "$float":
            return float.fromhex(content)
        case "$tensor":
            return tensors[content]
        case "$array":
            return tensors[content].numpy()
        case "$tuple":
            return tuple(_unpack(item, tensors) for item in content)
        case "$dict":
            return {_unpack(key, tensors): _unpack(item, tensors) for key, item in content}
    return {key: _unpack(item, tensors) for key, item in value.items()}
