"""The model folder: the one noun every stage reads and writes, in the Hugging Face layout.

In: a config, named tensors, a tokenizer's files, and where they came from. Out: a folder that Liuli, transformers, vLLM
and llama.cpp open, whole and checksummed, with `liuli.json` (its provenance) and a model card. It knows nothing of what
the tensors mean; torch is imported only when tensors are read or written.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liuli import __version__
from liuli.errors import DamagedError, LiuliError, UsageError
from liuli.files import MANIFEST, folder_hash, new_folder, read_json, verify_folder, write_file, write_json

if TYPE_CHECKING:
    import torch

MODEL_TYPES = ("qwen3", "llama", "liuli_racer")
PROVENANCE_KEYS = (
    *("stage", "parent", "parent_hash", "data", "options"),
    *("figures", "versions", "seed", "step", "tokens"),
)
CONFIG, PROVENANCE, TOKENIZER = "config.json", "liuli.json", "tokenizer.json"
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

# torch's dtype -> the safetensors name (https://huggingface.co/docs/safetensors, "Format")
_DTYPES = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"},
    **{"uint64": "U64", "uint32": "U32", "uint16": "U16"},
}


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that was checked: path, config.json, liuli.json ({} when the folder was made elsewhere)."""

    path: Path
    config: dict[str, Any]
    provenance: dict[str, Any]

    def tensors(self, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Return every tensor by its name in the file, in the dtype of the file."""
        return read_tensors(_weight_files(self.path), device)


def context_in(config: Mapping[str, Any]) -> int | None:
    """Tokens of a model's context, by its config.json: Hugging Face's name for it, or a racer's."""
    found: int | None = config.get("max_position_embeddings", config.get("context"))
    return found


def read_model_folder(path: str | Path, verify: bool = True, tokenizer: bool = True) -> ModelFolder:
    """Open a model folder; every way in which it can be wrong is an error that says what to do.

    verify: compare all files with the manifest (folders made elsewhere have none). tokenizer: demand one that fits.
    Raises UsageError where there is no model folder, LiuliError where a part is missing or unknown, DamagedError where
    a file is not what was written.
    """
    path = Path(path)
    _demand_model_folder(path)
    if verify and ((path / MANIFEST).exists() or (path / PROVENANCE).exists()):
        verify_folder(path)
    config = read_json(path / CONFIG)
    if config.get("model_type") not in MODEL_TYPES:
        raise LiuliError(
            f"Unknown model_type {config.get('model_type')!r}",
            where=path / CONFIG,
            fix=f"Liuli runs {', '.join(MODEL_TYPES[:-1])} and {MODEL_TYPES[-1]}",
        )
    for name in ("vocab_size", "max_position_embeddings", "context"):  # which others read before there is a model
        if not isinstance(config.get(name, 0), int):
            fix = "use the config.json that came with these weights"
            raise LiuliError(f"{name} = {config[name]!r} is no whole number", path / CONFIG, fix)
    _weight_files(path)
    if tokenizer:
        _demand_tokenizer(path, config.get("vocab_size", 0))
    return ModelFolder(path, config, read_json(path / PROVENANCE) if (path / PROVENANCE).exists() else {})


def write_model_folder(
    path: str | Path,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    tokenizer_folder: str | Path | None,
    generation: Mapping[str, Any],
    provenance: Mapping[str, Any],
    card: str | None = None,
    replace: bool = False,
) -> None:
    """Write a model folder, whole or not at all.

    config, generation: config.json and generation_config.json. tokenizer_folder: whose tokenizer files are copied.
    provenance: any of PROVENANCE_KEYS; the parent's hash and the versions are filled in. card: the README.md, or None
    for the usual one.
    """
    origin = _whole_provenance(provenance)
    with new_folder(path, replace=replace) as stage:
        write_json(stage / CONFIG, dict(config))
        write_json(stage / "generation_config.json", dict(generation))
        write_json(stage / PROVENANCE, origin)
        for name in TOKENIZER_FILES if tokenizer_folder is not None else ():
            if (source := Path(str(tokenizer_folder)) / name).is_file():
                write_file(stage / name, source.read_bytes())
        write_file(stage / "README.md", card or model_card(Path(path).name, config, origin))
        write_tensors(stage / WEIGHTS, tensors)


# --- tensors in a file -----------------------------------------------------------------------------------------------


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write named tensors of any shape and dtype as safetensors, one at a time: no second copy of the model in memory.

    Layout: 8 bytes of header length, a JSON header, the raw little-endian values, wide dtypes first so that all are
    aligned (https://huggingface.co/docs/safetensors, "Format"). Equal tensors give equal bytes.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        dtype = _DTYPES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def pieces() -> Iterator[bytes | memoryview]:
        import torch

        yield len(text).to_bytes(8, "little") + text
        for name in names:
            if tensors[name].numel():
                flat = tensors[name].detach().cpu().contiguous().reshape(-1)
                yield flat.view(torch.uint8).numpy().data

    write_file(path, pieces())


def read_tensors(files: Sequence[str | Path], device: str = "cpu") -> dict[str, torch.Tensor]:
    """Return the tensors of safetensors files by name; DamagedError names a file that cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            tensors.update(load_file(file, device=device))
        except SafetensorError as error:
            fix = "use a copy of this file, or make it again"
            raise DamagedError(f"{Path(file).name} is damaged: {error}", where=file, fix=fix) from error
    return tensors


def check_shapes(
    expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], where: str | Path | None = None
) -> None:
    """Raise a LiuliError naming the first tensor that is missing, unknown or misshapen, and how many more there are."""
    wrong = [f"tensor {name} is missing" for name in expected if name not in found]
    wrong += [f"tensor {name} is not part of this model" for name in found if name not in expected]
    wrong += [
        f"tensor {name} has shape {tuple(found[name])}, the config asks for {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise LiuliError(
            f"The weights do not fit the config: {wrong[0]}{more}", where, fix="use the config.json of this model"
        )


# --- what a folder must hold -----------------------------------------------------------------------------------------


def _demand_model_folder(path: Path) -> None:
    if not path.exists():
        raise UsageError("There is no such model folder", where=path, fix="check the path; `ls` its parent")
    if not path.is_dir():
        raise UsageError("A model is a folder, this is a file", where=path, fix=f"give the folder: {path.parent}")
    if (path / "status.json").exists() and not (path / CONFIG).exists():
        raise UsageError(
            "This is a run, not a model folder", where=path, fix=f"give one of its models, e.g. {path}/chat"
        )
    if not (path / CONFIG).exists() and not _has_weights(path):
        raise UsageError("This is not a model folder", where=path, fix=f"a model folder holds {CONFIG} and {WEIGHTS}")


def _has_weights(path: Path) -> bool:
    return (path / WEIGHTS).is_file() or (path / SHARDS).is_file()


def _weight_files(path: Path) -> list[Path]:
    """Return the folder's weight files: one, or those that the index of a sharded model names."""
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / SHARDS).is_file():
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
        fix = "copy the folder again" if not pickled else f"{pickled[0]} can run code when opened: save as safetensors"
        raise DamagedError(f"{WEIGHTS} is missing", where=path, fix=fix)
    listed = read_json(path / SHARDS).get("weight_map")
    if not isinstance(listed, dict):
        raise DamagedError(f"{SHARDS} names no files", path / SHARDS, "copy the folder again")
    names = sorted({str(name) for name in listed.values()})
    for name in names:
        if Path(name).name != name or not (path / name).is_file():
            raise DamagedError(f"{name} is missing", where=path, fix="copy the folder again")
    return [path / name for name in names]


def _demand_tokenizer(path: Path, vocab_size: int) -> None:
    tokenizer = read_json(path / TOKENIZER)
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    ids += [int(token["id"]) for token in tokenizer.get("added_tokens") or ()]
    if max(ids, default=0) >= vocab_size:
        what = f"The tokenizer does not match the model: it has {max(ids) + 1} tokens, the model {vocab_size}"
        raise LiuliError(what, where=path / TOKENIZER, fix="use the tokenizer the model was trained with")


# --- where it came from ----------------------------------------------------------------------------------------------


def _whole_provenance(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every key of the contract, the parent's hash and the versions filled in."""
    origin = {**dict.fromkeys(PROVENANCE_KEYS), **given}
    if origin["parent"] and not origin["parent_hash"] and Path(str(origin["parent"])).is_dir():
        origin["parent_hash"] = folder_hash(str(origin["parent"]))
    if not origin["versions"]:
        libraries = {name: importlib.metadata.version(name) for name in ("torch", "tokenizers", "safetensors")}
        origin["versions"] = {"liuli": __version__, "python": platform.python_version(), **libraries}
    return origin


def model_card(name: str, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Return the README.md of a model folder: what it is, where it came from, how to open it; English, then Chinese."""
    stage, parent = provenance.get("stage") or "–", Path(str(provenance.get("parent") or "–")).name
    seen = f"{provenance['tokens']:,}" if provenance.get("tokens") else "–"
    figures = provenance.get("figures") or {}
    rows = "\n".join(f"| {key} | {value:.4g} |" for key, value in figures.items() if isinstance(value, int | float))
    table = f"| figure · 指标 | value · 数值 |\n|---|---|\n{rows}\n" if rows else ""
    transformers = config.get("model_type") != "liuli_racer"
    library = "transformers" if transformers else "liuli"
    code = (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        'model = AutoModelForCausalLM.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")\n```\n'
    )
    return f"""---
library_name: {library}
pipeline_tag: text-generation
tags: [liuli]
---
# {name}

A model made with Liuli 琉璃: stage `{stage}`, from `{parent}`, {seen} tokens seen. `liuli.json` holds its data,
options, seed and versions; `manifest.json` the sha256 of every file.

用琉璃 Liuli 训练的模型：阶段 `{stage}`，父模型 `{parent}`，见过 {seen} 个词元。`liuli.json` 记录数据、选项、
随机种子和版本；`manifest.json` 记录每个文件的 sha256。

{table}
## Open it · 打开它
```sh
liuli chat .     # in the terminal · 在终端里对话
liuli serve .    # in the browser · 在浏览器里对话
```
{code if transformers else ""}"""
