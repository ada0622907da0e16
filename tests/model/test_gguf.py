"""What other programs read of our models: GGUF by gguf's own reader and llama.cpp, folders by transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from liuli.errors import LiuliError, UsageError
from liuli.folder import read_model_folder
from liuli.model import Transformer, gguf, load, qwen3, racer, save
from liuli.model.convert import export_folder, import_folder
from liuli.model.scalar import ScalarModel, save_scalar
from liuli.text import Message, Tokenizer, render

gguf_package = pytest.importorskip("gguf")
reader = pytest.importorskip("gguf.gguf_reader")

TEXT = [
    "The river runs to the sea. 河水流向大海。 In 12 of 365 days it rains, 3.14 times!\n\n\tdef f(x):\n    return x\n",
    "naïve café Привет мир 你好，世界 😀",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT * 20, 400)


def make(path: Path, tokenizer: Tokenizer, tied: bool = False, layers: int = 3) -> Path:
    """A random model folder with two more rows than the tokenizer has tokens; its gains are not one."""
    torch.manual_seed(1)
    config = qwen3(tokenizer.vocab_size + 2, 64, layers, context=96, head_size=16, heads=4, kv_heads=2, tied=tied)
    model = Transformer(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    tokenizer.save(path.parent / "tokenizer")
    save(model, path, tokenizer_folder=path.parent / "tokenizer", provenance={"stage": "test"})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return make(tmp_path_factory.mktemp("gguf") / "tiny", tokenizer)


# largest error of one weight, in shares of the largest in its block of 32: half a step of each format
@pytest.mark.parametrize(
    ("kind", "error"),
    [("f32", 0), ("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 0.5 / 127 + 2**-11), ("q4_0", 1 / 8 + 2**-8)],
)
def test_every_tensor_read_back_is_the_models(folder: Path, tmp_path: Path, kind: str, error: float) -> None:
    gguf.export_gguf(folder, tmp_path / "m.gguf", kind)
    found = {t.name: t for t in reader.GGUFReader(tmp_path / "m.gguf").tensors}
    ours = read_model_folder(folder).tensors()
    assert len(found) == len(ours) == 3 + 3 * 11
    for name, tensor in ours.items():
        read = found[gguf.rename(name, gguf.NAMES)]
        values = gguf_package.quants.dequantize(read.data, read.tensor_type).reshape(tensor.shape)
        if tensor.dim() == 1:
            np.testing.assert_array_equal(values, tensor.numpy())
            continue
        blocks = tensor.view(-1, 32)
        apart = (torch.from_numpy(np.array(values)).view(-1, 32) - blocks).abs()
        assert (apart <= blocks.abs().amax(1, keepdim=True) * error).all(), name
        wanted = "q8_0" if kind == "q4_0" and name in ("model.embed_tokens.weight", "lm_head.weight") else kind
        assert read.tensor_type.name == wanted.upper()


def test_shape_and_tokens_stand_in_the_file(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    gguf.export_gguf(folder, tmp_path / "m.gguf")
    fields = reader.GGUFReader(tmp_path / "m.gguf").fields
    said = {key: field.contents() for key, field in fields.items()}
    shape = {"context_length": 96, "embedding_length": 64, "block_count": 3, "feed_forward_length": 192}
    heads = {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16}
    assert {key: said[f"qwen3.{key}"] for key in shape | heads} == shape | heads
    assert said["qwen3.rope.freq_base"] == 10_000 and said["qwen3.attention.layer_norm_rms_epsilon"] == np.float32(1e-6)
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == tokenizer.vocab_size + 2
    assert [tokenizer.backend.token_to_id(token) for token in tokens[:-2]] == list(range(tokenizer.vocab_size))
    assert kinds == [3] * 16 + [1] * (tokenizer.vocab_size - 16) + [5] * 2
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    assert [merge.split(" ") for merge in said["tokenizer.ggml.merges"]] == [list(merge) for merge in merges]
    assert (said["tokenizer.ggml.bos_token_id"], said["tokenizer.ggml.eos_token_id"]) == (tokenizer.bos, tokenizer.end)


def test_the_template_in_the_file_renders_what_we_render(folder: Path, tokenizer: Tokenizer) -> None:
    jinja2 = pytest.importorskip("jinja2")
    plain = gguf.plain_template(tokenizer.chat_template)
    assert "generation" in tokenizer.chat_template and "generation %" not in plain
    calls = [{"function": {"name": "calculator", "arguments": '{"expression": "1+1"}'}}]
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "content": "2"},
    ]
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(plain)
    text = template.render(messages=messages, add_generation_prompt=True)
    assert text == tokenizer.decode(render([Message.from_dict(m) for m in messages], tokenizer, answer=True).tokens)


@pytest.mark.parametrize("tied", [False, True])
def test_llama_cpp_computes_our_logits(tmp_path: Path, tokenizer: Tokenizer, tied: bool) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = make(tmp_path / "tiny", tokenizer, tied)
    tokens = [tokenizer.bos, *tokenizer.encode(TEXT[0])][:60]
    ours = load(model)(torch.tensor([tokens]))[0].detach().numpy()
    plain = {"type_k": 0, "type_v": 0, "flash_attn": False}  # keys, values and attention in float32 too
    for kind, tolerance in (("f32", 1e-5), ("q8_0", 0.05)):  # q8_0: half a step of 127 in weights and activations
        gguf.export_gguf(model, tmp_path / f"{kind}.gguf", kind)
        path, options = str(tmp_path / f"{kind}.gguf"), {"n_threads": 1, "logits_all": True, "verbose": False}
        judge = llama_cpp.Llama(path, n_ctx=96, **plain, **options)
        judge.eval(tokens)
        theirs = judge.scores[: len(tokens)]
        assert np.linalg.norm(theirs - ours) / np.linalg.norm(ours) < tolerance
        assert kind != "f32" or (theirs.argmax(1) == ours.argmax(1)).all()
        judge.close()


def test_a_file_appears_whole_and_is_never_written_over(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def fail(writer: object) -> None:
        seen.extend(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
        raise LiuliError("the disk is full")

    with monkeypatch.context() as patched, pytest.raises(LiuliError, match="disk"):
        patched.setattr(gguf_package.GGUFWriter, "write_tensors_to_file", fail)
        gguf.export_gguf(folder, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []
    (draft,) = seen  # had the process been killed here, the next export would find it as a dead one's
    (tmp_path / draft.replace(str(os.getpid()), str(2**22 + 1), 1)).write_bytes(b"half")
    gguf.export_gguf(folder, tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    with pytest.raises(UsageError, match="exists already"):
        gguf.export_gguf(folder, tmp_path / "m.gguf")


def test_what_cannot_be_exported_says_why(tmp_path: Path, folder: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="q5_k"):
        gguf.export_gguf(folder, tmp_path / "m.gguf", "q5_k")
    save(
        Transformer(racer(tokenizer.vocab_size, 64, 2)),
        tmp_path / "racer",
        tokenizer_folder=folder.parent / "tokenizer",
        provenance={},
    )
    with pytest.raises(LiuliError, match="racer"):
        gguf.export_gguf(tmp_path / "racer", tmp_path / "m.gguf")
    with pytest.raises(LiuliError, match="transformers"):
        export_folder(tmp_path / "racer", tmp_path / "hf")
    judge = ScalarModel(load(folder), 2)
    save_scalar(judge, tmp_path / "judge", tokenizer_folder=folder.parent / "tokenizer", provenance={}, special={})
    with pytest.raises(LiuliError, match="it scores, it does not write"):
        gguf.export_gguf(tmp_path / "judge", tmp_path / "m.gguf")
    export_folder(tmp_path / "judge", tmp_path / "hf")  # transformers has code for it
    assert read_model_folder(tmp_path / "hf").config["score_offsets"] == [0.0, 0.0]


def test_a_place_where_nothing_can_be_written_is_one_clear_message(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LiuliError, match="Cannot write: the path is a file"):
        gguf.export_gguf(folder, tmp_path / "file" / "m.gguf")
    with pytest.raises(LiuliError, match="Cannot write: "):
        gguf.export_gguf(folder, "/proc/liuli/m.gguf")


def test_without_the_package_one_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UsageError, match=r"liuli\[gguf\]"):
        gguf.gguf_package()


def test_a_folder_goes_through_transformers_and_comes_back(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export_folder(folder, tmp_path / "hf", "bf16")
    assert not (tmp_path / "hf" / "liuli.json").exists()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert theirs.dtype == torch.bfloat16
    theirs.float().save_pretrained(tmp_path / "theirs")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "theirs")
    import_folder(tmp_path / "theirs", tmp_path / "back")
    back, tokens = load(tmp_path / "back"), torch.arange(40)[None]
    assert read_model_folder(tmp_path / "back").provenance["stage"] == "import"
    for name, weight in load(folder).named_parameters():
        assert torch.equal(back.get_parameter(name), weight.bfloat16().float()), name
    torch.testing.assert_close(back(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)
