"""vLLM as the engine of rollouts, over HTTP: `roll_out(RemoteEngine(...), prompts, ...)` and everything else stays.

In: a server's address, our tokenizer, the model's config. Out: what `roll_out` asks of an engine (`request`, `work`,
`context`, `tokenizer`), so prompts, tools and masks are made in one place for both. vLLM is never imported. Start it as
`VLLM_SERVER_DEV_MODE=1 vllm serve MODEL_FOLDER`, where nobody else can reach it: that mode lets a caller run anything.

Requests and answers: https://docs.vllm.ai/en/latest/serving/online_serving/openai_compatible_server/ (Completions API,
its extra parameters, Tokenizer API). Prompts go as token ids and tokens come back as ids, so no text is cut anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from liuli.engine import Request, Sampling, StoppedBy, Token
from liuli.engine.engine import barred
from liuli.engine.http import ask
from liuli.errors import LiuliError, UsageError
from liuli.files import remove
from liuli.model import ModelConfig, Transformer
from liuli.model.convert import is_known_elsewhere
from liuli.stages.training import write_model
from liuli.text import Tokenizer

PROBE = "琉璃 Liuli: 12 × 3.5 = 42?\n\tdef f(x): return x**2  # naïve 😀 العربية"
# as vLLM's and our own Sampling call them; all said aloud, for vLLM takes the others from generation_config.json
SAID = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed")
BAR = -100.0  # the lowest bias that the protocol takes: exp(-100) of what it was, which float32 cannot tell from never


class RemoteEngine:
    """Draws answers from a vLLM server. concurrent: requests under way at once; the server makes batches of them.

    Log-probabilities are vLLM's default (`--logprobs-mode raw_logprobs`): before temperature and bars, as our engine's.
    Raises LiuliError where the server cannot be reached, holds another vocabulary, or leaves out what learning needs.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Tokenizer,
        config: ModelConfig,
        *,
        key: str | None = None,
        concurrent: int = 256,
        timeout_s: float = 600.0,
    ) -> None:
        self.url, self.tokenizer, self.key = url.rstrip("/"), tokenizer, key
        self.concurrent, self.timeout_s = concurrent, timeout_s
        if not is_known_elsewhere(config):
            raise UsageError(f"vLLM does not know the preset {config.preset}", self.url, "train one with preset=qwen3")
        served = (self.call("/v1/models").get("data") or [{}])[0]
        self.name = str(served.get("id"))
        self.context = min(config.context, int(served.get("max_model_len") or config.context))
        probe = {"model": self.name, "prompt": PROBE, "add_special_tokens": False}
        if self.call("/tokenize", probe).get("tokens") != tokenizer.encode(PROBE):
            raise LiuliError("the server has another tokenizer", self.url, "serve the model folder that is trained")
        self.names = [tokenizer.decode([id]) for id in range(tokenizer.vocab_size)]
        never = barred(tokenizer, config.vocab_size)
        self.ban_V = torch.zeros(config.vocab_size)
        self.ban_V[never] = -math.inf
        self.always: dict[str, Any] = {
            "model": self.name,
            "stop_token_ids": sorted(tokenizer.stops),
            "logit_bias": {str(id): BAR for id in never},
            "logprobs": 0,  # of the drawn token alone
            "return_token_ids": True,
        }

    def request(self, prompt: Sequence[int], sampling: Sampling, number: int = 0) -> Request:
        """Check a prompt and make it ready to run."""
        room = self.context - len(prompt)
        if not prompt or room < 1:
            what = f"the prompt has {len(prompt)} tokens, the server's context is {self.context}"
            raise LiuliError(what, f"prompt {number}", "shorten it, or start the server with a longer --max-model-len")
        if sampling.stop or sampling.alternatives:
            raise UsageError("rollouts have no stop strings and no alternatives", "sampling", "leave them out")
        return Request(prompt, replace(sampling, max_tokens=min(sampling.max_tokens, room)), number)

    def work(self, requests: Sequence[Request], then: Callable[[Request], Request | None] | None = None) -> None:
        """Write all answers. then: called with each finished request, one at a time; may give a new one."""
        pool = ThreadPoolExecutor(self.concurrent)
        try:
            running = {pool.submit(self._write, request) for request in requests}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for request in [future.result() for future in done]:
                    if then is not None and (more := then(request)) is not None:
                        running.add(pool.submit(self._write, more))
        finally:
            pool.shutdown(cancel_futures=True)

    def _write(self, request: Request) -> Request:
        """One answer, token by token, into its request."""
        where = f"prompt {request.number}"
        asked = {"prompt": list(request.prompt)} | {name: getattr(request.sampling, name) for name in SAID}
        choice = (self.call("/v1/completions", self.always | asked).get("choices") or [{}])[0]
        ids, log_probs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if ids is None or choice.get("prompt_token_ids") != asked["prompt"]:
            fix = "take a vLLM whose completions know return_token_ids"
            raise LiuliError("the server does not say which tokens it read and drew", where, fix)
        if not ids or not all(0 <= id < self.tokenizer.vocab_size for id in ids):
            raise LiuliError("the server drew a token outside the vocabulary", where, "serve the model that is trained")
        if log_probs is None or [x is not None and math.isfinite(x) for x in log_probs] != [True] * len(ids):
            raise LiuliError("the server gave no log-probability for some token", where, "look at the server's log")
        ended = ids[-1] in self.tokenizer.stops
        if choice.get("finish_reason") != ("stop" if ended else "length"):
            what = f"the answer stops by {choice.get('finish_reason')!r} after token {ids[-1]}"
            raise LiuliError(what, where, "does the model folder name other eos_token_id than the tokenizer?")
        for at, (id, log_prob) in enumerate(zip(ids, log_probs, strict=True), 1):
            stopped_by: StoppedBy | None = None if at < len(ids) else "end" if ended else "length"
            text = request.text.feed(self.tokenizer.bytes_of(id), last=stopped_by is not None)
            request.tokens.append(Token(id, text, log_prob, stopped_by=stopped_by))
        return request

    def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """GET, or POST of a body; the JSON that comes back, or {} where nothing does."""
        return ask(self.url + path, body, self.key, self.timeout_s)


# --- new weights -----------------------------------------------------------------------------------------------------


def publish(engine: RemoteEngine, model: Transformer, folder: Path, step: int, tokenizer_folder: Path) -> None:
    """Have the server draw from the model as it is now. folder: where the server, too, finds what is written.

    Each step has a folder of its own, so that no cache can take one for another (vLLM's issue 32718).
    """
    made = folder / f"weights-{step:06d}"
    write_model(model, made, engine.tokenizer, tokenizer_folder, {"stage": "rollouts", "step": step})
    load_weights(engine, made)
    for other in folder.glob("weights-*"):
        if other != made:
            remove(other)


def load_weights(engine: RemoteEngine, folder: Path) -> None:
    """Ask the server to read its weights anew: the one place that knows how this version of vLLM does it."""
    # https://docs.vllm.ai/en/latest/features/sleep_mode/ has `/collective_rpc` with reload_weights, vLLM's pull request
    # 48284 its weights_path. Without a folder that both see: https://docs.vllm.ai/en/latest/training/weight_transfer/
    engine.call("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}})
    # keys and values of prompts read before are the old weights' (https://docs.vllm.ai/en/latest/usage/security/)
    engine.call("/reset_prefix_cache", {})
