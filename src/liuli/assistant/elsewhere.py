"""Engines that compute elsewhere, behind the interface that `liuli.engine.reply` asks for: vLLM and llama.cpp.

In: prompts as token ids, Sampling. Out: our Tokens. Both hold the very model of a folder, so prompts are rendered, text
is cut and tools are run exactly as with our own engine; only the numbers come from somewhere else.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from ctypes import c_int32
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liuli.assistant.remote import RemoteVoice, refuse_unless_default
from liuli.assistant.voices import EngineVoice, ModelVoice, Voice
from liuli.engine import Alternative, Engine, Sampling, Token
from liuli.engine.answer import likeliest
from liuli.engine.engine import barred
from liuli.engine.http import ask_stream
from liuli.engine.sampling import Sampler
from liuli.errors import LiuliError, UsageError
from liuli.folder import read_model_folder
from liuli.model import ModelConfig, Transformer
from liuli.model.convert import import_config
from liuli.model.gguf import export_gguf
from liuli.stages.remote import BAR, SAID, RemoteEngine
from liuli.text import Tokenizer

ENGINES = ("liuli", "vllm", "openai", "llamacpp")
MOST_ALTERNATIVES = 20  # vLLM's --max-logprobs unless told otherwise
VLLM_KNOWS = (*SAID, "presence_penalty", "frequency_penalty", "min_tokens", "ignore_eos")
# constraints in vLLM's words (https://docs.vllm.ai/en/latest/features/structured_outputs/)
VLLM_FORMS: dict[str, Callable[[str], dict[str, Any]]] = {
    "json_schema": lambda text: {"json": json.loads(text)},
    "json_object": lambda _: {"json_object": True},
    "choice": lambda text: {"choice": json.loads(text)},
    "regex": lambda text: {"regex": text},
    "grammar": lambda text: {"grammar": text},
}
# fields of Sampling that are turned into others
OURS = ("logit_bias", "stop", "stop_tokens", "alternatives", "constraint")
READ_AT_ONCE = 512  # tokens of a prompt; llama.cpp's own default
SPARE = 4  # llama.cpp contexts kept for the next turn of a conversation


def voice_of(
    engine: str,
    path: Path,
    url: str | None = None,
    *,
    name: str = "",
    key: str | None = None,
    device: str | None = None,
    **how: Any,
) -> Voice:
    """The voice of a model folder behind an engine, or with "openai" of a model that lies in no folder here.

    url, key: of the server of "vllm" or "openai". name: what "openai" asks for; "": the first. device, how: of our
    engine, as in Model.
    """
    if engine not in ENGINES:
        raise UsageError(f"there is no engine {engine!r}", "--engine", f"use one of {', '.join(ENGINES)}")
    if (engine in ("vllm", "openai")) != bool(url):
        if url:
            raise UsageError(f"the engine {engine} is no server", "--engine-url", "leave it out, or name --engine vllm")
        raise UsageError(f"where is the {engine} server?", "--engine", "--engine-url http://127.0.0.1:8000")
    if engine != "liuli" and any(how.values()):
        options = "--weights, --compiled, --draft, --prefix-int8, --replicas"
        raise UsageError(f"the engine {engine} writes in its own way", options, "leave it out")
    match engine:
        case "vllm":
            return EngineVoice(VllmEngine(path, str(url), key), blocks=True)
        case "openai":
            return RemoteVoice(str(url), name, key)
        case "llamacpp":
            return EngineVoice(LlamaCppEngine(path))
        case _:
            return ModelVoice(path, device, **how)


def rules(config: ModelConfig, tokenizer: Tokenizer) -> Engine:
    """Our engine without weights: it checks prompts, and says of each token what it shows and whether it ends."""
    with torch.device("meta"):
        return Engine(Transformer(config).eval(), tokenizer)


class VllmEngine:
    """A vLLM server that serves the same model folder. Raises LiuliError where it is not there or serves another."""

    def __init__(self, folder: Path, url: str, key: str | None = None) -> None:
        config = import_config(read_model_folder(folder).config, folder)
        self.tokenizer = Tokenizer.load(folder)
        self.remote = RemoteEngine(url.rstrip("/").removesuffix("/v1"), self.tokenizer, config, key=key)
        self.context = self.remote.context
        self.rules = rules(replace(config, context=self.context), self.tokenizer)

    def poll(self, prompt: Sequence[int], sampling: Sampling, **more: Any) -> Generator[Token | None, None, None]:
        """The tokens of one answer as they come, None before it is asked for; closing the iterator hangs up.

        more: as in Engine.
        """
        # the server counts one place more than our engine: nothing is computed after the last token
        room = self.context - len(prompt)
        if room < 1:
            raise LiuliError("the prompt fills the server's context", self.remote.url, "shorten it")
        request = self.rules.request(prompt, replace(sampling, max_tokens=min(sampling.max_tokens, room)), **more)
        url, asked = f"{self.remote.url}/v1/completions", self._asked(request.prompt, request.sampling, request.salt)
        yield None
        for event in ask_stream(url, asked, self.remote.key):
            for choice in event.get("choices") or ():
                for id, logprob, others in self._tokens(choice, url):
                    yield (token := self.rules.token(request, id, logprob, others))
                    if token.stopped_by is not None:
                        return
        raise LiuliError(f"the answer breaks off after {len(request.tokens)} tokens", url, "look at the server's log")

    def _asked(self, prompt: Sequence[int], sampling: Sampling, salt: str) -> dict[str, Any]:
        refuse_unless_default(sampling, (*VLLM_KNOWS, *OURS), self.remote.url)
        always = self.remote.always
        form = sampling.constraint
        if form and form.kind not in VLLM_FORMS:
            what = f"this engine does not know the constraint {form.kind}"
            raise UsageError(what, self.remote.url, "leave it out, or use --engine liuli")
        ends = {str(id): BAR for id in self.tokenizer.stops if sampling.ignore_eos}
        return always | {
            "prompt": list(prompt),
            **{name: getattr(sampling, name) for name in VLLM_KNOWS},
            "stop_token_ids": [*always["stop_token_ids"], *sampling.stop_tokens],
            "logit_bias": always["logit_bias"] | ends | {str(id): bias for id, bias in sampling.logit_bias},
            **({"structured_outputs": VLLM_FORMS[form.kind](form.text)} if form else {}),
            **({"cache_salt": hashlib.sha256(salt.encode()).hexdigest()} if salt else {}),  # names stay here
            "logprobs": min(sampling.alternatives, MOST_ALTERNATIVES),
            "return_tokens_as_token_ids": True,
            "stream": True,
        }

    def _tokens(self, choice: dict[str, Any], url: str) -> list[tuple[int, float, tuple[Alternative, ...]]]:
        """Id, log-probability and alternatives of each token that an event brings."""
        ids, said = choice.get("token_ids") or [], choice.get("logprobs") or {}
        logprobs, tops = said.get("token_logprobs") or [], said.get("top_logprobs") or [None] * len(ids)
        if not len(ids) == len(logprobs) == len(tops) or not all(0 <= id < self.tokenizer.vocab_size for id in ids):
            fix = "take a vLLM whose completions know return_token_ids"
            raise LiuliError("the server does not say which tokens it drew, and how likely they were", url, fix)
        names = self.rules.names
        found = []
        for id, logprob, top in zip(ids, logprobs, tops, strict=True):
            pairs = [(int(name.removeprefix("token_id:")), value) for name, value in (top or {}).items()]
            ordered = sorted(pairs, key=lambda pair: -pair[1])
            others = tuple(Alternative(other, names[other], value) for other, value in ordered if other < len(names))
            found.append((id, float(logprob), others))
        return found


class LlamaCppEngine:
    """llama.cpp in this process, over our GGUF export of a model folder; it gives the logits, our sampler draws.

    kind: number type of matrices; f32: of attention too, for the model's own numbers. threads: default torch's.
    Each answer under way has a context of its own; what a conversation has in common with an earlier one of its salt in
    a spare context is not read again.
    """

    def __init__(self, folder: Path, kind: str = "q8_0", threads: int | None = None) -> None:
        self.lib, self.kind, self.threads = llama_cpp(), kind, threads or torch.get_num_threads()
        self._spare, self._lock = list[_Reader](), threading.Lock()
        config = import_config(read_model_folder(folder).config, folder)
        self.tokenizer, self.context, self.vocab_size = Tokenizer.load(folder), config.context, config.vocab_size
        self.rules = rules(config, self.tokenizer)
        self.ban_V = torch.zeros(config.vocab_size)
        self.ban_V[barred(self.tokenizer, config.vocab_size)] = -math.inf
        with tempfile.TemporaryDirectory(prefix="liuli-gguf-") as made:
            export_gguf(folder, Path(made) / "model.gguf", kind)
            model = load_gguf(self.lib, str(Path(made) / "model.gguf"))
        self.model = _Owned(model, self.lib.llama_model_free, f"a model of {folder}")

    def poll(self, prompt: Sequence[int], sampling: Sampling, **more: Any) -> Generator[Token | None, None, None]:
        """The tokens of one answer as they are written, None before each: others may go on. Closing the iterator stops
        the work. more: as in Engine."""
        request = self.rules.request(prompt, sampling, **more)
        sampler = Sampler(self.vocab_size, torch.device("cpu"), self.tokenizer.stops, self.tokenizer)
        sampler.add([request.sampling], [request.prompt])
        with self._reader(request.ids, request.salt) as reader:
            while request.stopped_by is None:
                yield None
                logits_1V = torch.from_numpy(reader.read(request.ids)).unsqueeze(0)
                with torch.inference_mode():
                    id = int(sampler(logits_1V + self.ban_V))
                    logprobs_1V = torch.log_softmax(logits_1V, -1)
                others = likeliest(logprobs_1V, self.rules.names, [sampling.alternatives])
                yield self.rules.token(request, id, float(logprobs_1V[0, id]), others[0], broken=sampler.broken(0))

    @contextmanager
    def _reader(self, ids: Sequence[int], salt: str) -> Generator[_Reader, None, None]:
        """The spare context of this salt that has most in common with these tokens, or a new one; it is spare again
        afterwards."""
        with self._lock:
            ours = [reader for reader in self._spare if reader.salt == salt]
            reader = max(ours, key=lambda reader: common(reader.ids, ids), default=None) or _Reader(self, salt)
            self._spare = [each for each in self._spare if each is not reader]
        try:
            yield reader
        finally:
            with self._lock:
                self._spare.append(reader)
                del self._spare[:-SPARE]


class _Owned:
    """Something that llama.cpp made, freed with its last user; it keeps alive what it `needs`."""

    def __init__(self, made: Any, free: Callable[[Any], None], what: str, needs: Any = None) -> None:
        if not made:
            raise LiuliError(f"llama.cpp cannot make {what}", "llama.cpp", "is there memory, and is it new enough?")
        self.made, self.needs = made, needs
        weakref.finalize(self, free, made)


class _Reader:
    """One context of llama.cpp: the tokens `ids` are read. salt: only texts of the same share it."""

    def __init__(self, engine: LlamaCppEngine, salt: str) -> None:
        self.lib, self.vocab_size, self.ids, self.salt = engine.lib, engine.vocab_size, list[int](), salt
        params = self.lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = engine.context, READ_AT_ONCE, READ_AT_ONCE
        params.n_threads = params.n_threads_batch = engine.threads
        if engine.kind == "f32":
            params.type_k = params.type_v = self.lib.GGML_TYPE_F32
            params.flash_attn_type = self.lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        made = self.lib.llama_init_from_model(engine.model.made, params)
        self.owned = _Owned(made, self.lib.llama_free, "a context", engine.model)

    def read(self, ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Log-odds (V,) float32 of what follows these tokens; only what is new of them is computed."""
        known = min(common(self.ids, ids), len(ids) - 1)  # the last one is read again, for its logits
        self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(self.owned.made), -1, known, -1)
        self.ids = list(ids[:known])
        for start in range(known, len(ids), READ_AT_ONCE):
            piece = ids[start : start + READ_AT_ONCE]
            tokens = (c_int32 * len(piece))(*piece)  # the batch only points to it
            if self.lib.llama_decode(self.owned.made, self.lib.llama_batch_get_one(tokens, len(piece))) != 0:
                raise LiuliError("llama.cpp cannot go on", "llama.cpp", "begin a new conversation")
            self.ids += piece
        return np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.owned.made, -1), (self.vocab_size,)).copy()


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens are the same."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def llama_cpp() -> Any:
    """The bindings of llama.cpp, quiet. Raises UsageError that says how to get them."""
    try:
        import llama_cpp as lib
        from llama_cpp._logger import set_verbose
    except ImportError as error:
        fix = "pip install 'liuli[llamacpp]' (a C++ compiler builds it, some minutes)"
        raise UsageError("this engine needs llama-cpp-python", "--engine llamacpp", fix) from error
    set_verbose(False)
    return lib


def load_gguf(lib: Any, file: str) -> Any:
    """llama.cpp's model of a GGUF file."""
    params = lib.llama_model_default_params()
    params.use_extra_bufts = False  # its code for Intel's matrix tiles (AMX) ends with an illegal instruction
    return lib.llama_model_load_from_file(file.encode(), params)
