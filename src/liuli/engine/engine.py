"""The engine: prompts in, tokens out, many different prompts at once.

Whoever asks for one answer gets the same tokens as in any batch. `stream` is for many that come and go: all streams of
an engine are written together, each step by whoever waits for its next token. `generate` and `work` are for many that
are there from the beginning. The scheduler knows how.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from liuli.engine.answer import Alternative, Answer, StoppedBy, Token
from liuli.engine.cache import KeyValueCache
from liuli.engine.constraints import check
from liuli.engine.decode import Decoder
from liuli.engine.quantise import Kind, check_kind
from liuli.engine.replicas import Replicas
from liuli.engine.sampling import Sampling, check_ids
from liuli.engine.scheduler import PREFIX_BYTES, Scheduler, Stats
from liuli.engine.speculate import MOST, Drafter
from liuli.engine.stops import TextStream
from liuli.errors import LiuliError
from liuli.model import Transformer
from liuli.text.tokenizer import Tokenizer


@dataclass(eq=False)
class Request:
    """One prompt being answered.

    ids: the prompt and the answer so far. salt: only texts of the same salt share what was computed for them. priority:
    the higher goes first. deadline: by time.monotonic(), in seconds; the answer is cut there. conversation: calls and
    thoughts are not shown, so no stop string cuts them. reused: tokens of the prompt that were not computed again.
    hope: the share of drafted tokens that came true lately. failed: why it ends without an answer. alone: it is read by
    itself, for it was among prompts that could not be read together.
    """

    prompt: Sequence[int]
    sampling: Sampling
    number: int = 0
    salt: str = ""
    priority: int = 0
    deadline: float = math.inf
    conversation: bool = False
    tokens: list[Token] = field(default_factory=list)
    text: TextStream = field(default_factory=TextStream)
    hidden: bool = False  # what is written now is a call or a thought of a conversation
    cancelled: bool = False
    failed: Exception | None = None
    alone: bool = False
    arrival: int | None = None
    reused: int = 0
    hope: float = 1.0
    ids: list[int] = field(init=False)
    pairs: dict[tuple[int, int], int] = field(default_factory=dict)  # where each pair of tokens was last followed
    looked_up: int = 2  # tokens of `ids` that `pairs` knows

    def __post_init__(self) -> None:
        self.ids = list(self.prompt)

    @property
    def slots(self) -> int:
        """How many tokens it may come to in the cache; the last one is never fed."""
        return len(self.prompt) + self.sampling.max_tokens - 1

    @property
    def stopped_by(self) -> StoppedBy | None:
        return self.tokens[-1].stopped_by if self.tokens else None

    @property
    def over(self) -> bool:
        return self.failed is not None or self.stopped_by is not None

    def judge_drafts(self, drafted: int, accepted: int) -> None:
        """Remember how many of the drafted tokens came true."""
        if drafted:
            self.hope += 0.2 * (accepted / drafted - self.hope)

    def answer(self) -> Answer:
        return Answer(tuple(self.tokens), "".join(token.text for token in self.tokens), self.stopped_by or "cancel")


class Engine:
    """Writes answers with a model. rows: how many at once; more wait until a row is free.

    weights: "bf16", "int8" or "int4" rounds the matrices for writing, which is fastest with a model in bfloat16 where
    the machine multiplies it.
    compiled: fuse the step that writes, which takes some seconds the first time, a C++ compiler and a second copy of
    the matrices. drafter: what foretells tokens (speculate.py). prefix_bytes: memory for what streams have in common
    with earlier ones; prefix_int8: keep it in bytes, two to four times as much of it, no longer exactly. replicas: what
    writes instead of this process.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        rows: int = 64,
        *,
        weights: Kind | None = None,
        compiled: bool = False,
        drafter: Drafter | None = None,
        prefix_bytes: int = PREFIX_BYTES,
        prefix_int8: bool = False,
        replicas: Replicas | None = None,
    ) -> None:
        config = model.config
        if tokenizer.vocab_size > config.vocab_size:
            what = f"the tokenizer has {tokenizer.vocab_size} tokens, the model knows {config.vocab_size}"
            raise LiuliError(what, "engine", "use the tokenizer that the model was trained with")
        if weights is not None:
            check_kind(weights)
        self.model, self.tokenizer, self.rows, self.drafter = model, tokenizer, rows, drafter
        self.weights, self.compiled = weights, compiled
        self.prefix_bytes, self.prefix_int8 = prefix_bytes, prefix_int8
        self._decoder: Decoder | None = None
        self.replicas = replicas
        self._streams: Scheduler | None = None
        self._turn = threading.RLock()  # held in a step, where a stream that nobody holds any more may be closed
        self.stops = frozenset(tokenizer.stops)
        self.bytes_of = [tokenizer.bytes_of(id) for id in range(tokenizer.vocab_size)]
        self.names = [tokenizer.decode([id]) for id in range(tokenizer.vocab_size)]  # as alternatives are shown
        self.ban_V = torch.zeros(config.vocab_size, device=self.device)
        self.ban_V[barred(tokenizer, config.vocab_size)] = -math.inf

    def decoder(self) -> Callable[[Tensor, KeyValueCache], Tensor]:
        """What computes the next tokens: prepared weights, made anew when the model has learned, or the model."""
        if self._decoder is not None and not self._decoder.fresh():
            self._decoder = None
        asked = self.weights is not None or self.compiled
        if self._decoder is None and isinstance(self.model, Transformer) and (asked or Decoder.pays(self.model)):
            self._decoder = Decoder(self.model, self.weights, self.compiled)
        return self._decoder or self.model

    @property
    def device(self) -> torch.device:
        return self.model.embedding.weight.device

    @property
    def context(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self.model.config.context

    @property
    def streams(self) -> Scheduler:
        """What writes all streams together, where no replicas do."""
        if self._streams is None:
            self._streams = Scheduler(
                self, self.rows, self.context, prefix_bytes=self.prefix_bytes, prefix_int8=self.prefix_int8
            )
        return self._streams

    @property
    def stats(self) -> Stats:
        """What its streams have done so far."""
        writer = self._streams if self.replicas is None else self.replicas
        return Stats() if writer is None else writer.stats

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile the step now, for one row and for several, rather than while the first question waits."""
        streams, lengths = self.streams, [7, 7]
        for B in range(1, min(2, streams.rows) + 1):
            for T in (1, 1 + MOST) if self.drafter else (1,):
                places_B1 = torch.full((B, 1), lengths[0], device=self.device)
                streams.cache.follow(places_B1, places_B1 - 1, lengths[:B], T)
                streams.decode(torch.zeros((B, T), dtype=torch.int64, device=self.device), streams.cache)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling]) -> list[Answer]:
        """An answer for each prompt, in order. sampling: one for all, or one each.

        Raises LiuliError for a prompt that is empty, too long or holds an id the model does not know.
        """
        each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        requests = [self.request(p, s, number) for number, (p, s) in enumerate(zip(prompts, each, strict=True))]
        self.work(requests)
        return [request.answer() for request in requests]

    def stream(self, prompt: Sequence[int], sampling: Sampling, **more: Any) -> Generator[Token, None, None]:
        """The tokens of one answer as they are written; closing the iterator stops the work.

        more: salt, priority, deadline, conversation of the Request. All streams are written together, by whoever asks
        first.
        """
        with closing(self.poll(prompt, sampling, **more)) as polled:
            yield from (token for token in polled if token is not None)

    def poll(self, prompt: Sequence[int], sampling: Sampling, **more: Any) -> Generator[Token | None, None, None]:
        """`stream`, for one thread that serves many: None where the next token is not there yet, and others may go on.

        Of those who ask in turn only the first makes a step; so nobody runs ahead of the one who waits for a place, and
        nobody lags behind. What breaks there is raised for those alone whom it concerns.
        """
        request = self.request(prompt, sampling, **more)
        writer = self.streams if self.replicas is None else self.replicas
        with self._turn:
            writer.submit(request)
            seen = writer.stats.steps  # made when it last looked
        try:
            for at in range(sampling.max_tokens):
                while at == len(request.tokens):
                    if request.failed is not None:
                        raise request.failed
                    yield None
                    with self._turn:
                        if at == len(request.tokens) and seen == writer.stats.steps:
                            writer.step()
                        seen = writer.stats.steps
                yield request.tokens[at]
                if request.tokens[at].stopped_by is not None:
                    return
        finally:
            with self._turn:
                writer.cancel(request)

    def work(self, requests: Sequence[Request], then: Callable[[Request], Request | None] | None = None) -> None:
        """Write all answers. then: called with each finished request; may give a new one, which joins the batch."""
        if self.replicas is not None:
            self._hand_out(self.replicas, requests, then)
            return
        waiting = deque(sorted(requests, key=lambda request: -len(request.prompt)))  # similar lengths side by side
        while waiting:
            # what `then` gives is longer than what it was called with: leave room, but not the whole of a long context
            longest = max(request.slots for request in waiting)
            slots = min(self.context, longest * (1 if then is None else 2))
            waiting = self._work(waiting, slots, then)

    def _work(
        self, waiting: deque[Request], slots: int, then: Callable[[Request], Request | None] | None
    ) -> deque[Request]:
        """Write all answers that fit in so many slots. Returns the new requests that do not."""
        reuse = self.prefix_bytes if then is not None else 0
        scheduler = Scheduler(self, min(self.rows, len(waiting)), slots, prefix_bytes=reuse, patient=True)
        for request in waiting:
            scheduler.submit(request)
        too_long: deque[Request] = deque()
        while len(scheduler):
            for request in scheduler.step():
                if request.failed is not None:
                    raise request.failed
                if then is None or (more := then(request)) is None:
                    continue
                if more.slots <= slots:
                    scheduler.submit(more)
                else:
                    too_long.append(more)
        return too_long

    def _hand_out(
        self, replicas: Replicas, requests: Sequence[Request], then: Callable[[Request], Request | None] | None
    ) -> None:
        """`work` by replicas, which may be writing streams as well."""
        waiting = list(requests)
        try:
            with self._turn:
                for request in requests:
                    replicas.submit(request)
            while waiting:
                with self._turn:
                    replicas.step()  # what it returns may be another thread's
                over, waiting = [each for each in waiting if each.over], [each for each in waiting if not each.over]
                for request in over:
                    if request.failed is not None:
                        raise request.failed
                    if then is not None and (more := then(request)) is not None:
                        waiting.append(more)
                        with self._turn:
                            replicas.submit(more)
        finally:
            with self._turn:
                for request in waiting:
                    replicas.cancel(request)

    def request(self, prompt: Sequence[int], sampling: Sampling, number: int = 0, **more: Any) -> Request:
        """Check a prompt and make it ready to run."""
        where = f"prompt {number}"
        if not prompt:
            raise LiuliError("the prompt is empty", where, "begin it with the tokenizer's bos token")
        if len(prompt) > self.context:
            what = f"the prompt has {len(prompt)} tokens, the model's context is {self.context}"
            raise LiuliError(what, where, "shorten it or start a new conversation")
        if min(prompt) < 0 or max(prompt) >= self.model.config.vocab_size:
            raise LiuliError("the prompt holds an id that is not in the vocabulary", where, "use the model's tokenizer")
        # the last token needs no slot of its own: nothing is computed after it
        room = self.context - len(prompt) + 1
        # a seed of its own, so that an answer can be had again, and go on where it was interrupted
        seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
        most, least = min(sampling.max_tokens, room), min(sampling.min_tokens, room)
        sampling = replace(sampling, max_tokens=most, min_tokens=least, seed=seed)
        check_ids(sampling, self.model.config.vocab_size)
        if sampling.constraint is not None:
            check(sampling.constraint, self.tokenizer)
        return Request(prompt, sampling, number, text=TextStream(sampling.stop), **more)

    def token(
        self, request: Request, id: int, logprob: float, alternatives: tuple[Alternative, ...], broken: bool = False
    ) -> Token:
        """Write one token into a request: what of its text may be shown, and whether the answer ends with it.

        broken: the constraint can be followed no further.
        """
        stopped_by: StoppedBy | None = None
        if broken or logprob != logprob:
            stopped_by = "error"  # the latter: the model gave NaN
        elif id in self.stops:
            stopped_by = "end"
        elif id in request.sampling.stop_tokens:
            stopped_by = "stop"
        elif len(request.tokens) + 1 >= request.sampling.max_tokens or time.monotonic() > request.deadline:
            stopped_by = "length"
        shown = self.bytes_of[id] if stopped_by in (None, "length") else b""
        hidden = request.hidden
        # a control token is a border: nothing held back before it can still be completed
        text = request.text.feed(shown, last=stopped_by is not None or not shown)
        if request.text.stopped:
            stopped_by = "stop"
        if not shown:
            request.hidden = request.conversation and hides(id, request.hidden, self.tokenizer)
            request.text = TextStream(() if request.hidden else request.sampling.stop)
        token = Token(id, text, logprob, alternatives, False, stopped_by, hidden, request.reused)
        request.tokens.append(token)
        request.ids.append(id)
        return token


def barred(tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """The ids that no answer holds: they stand for no text, and neither end an answer nor open a call or thought."""
    allowed = {tokenizer.call, tokenizer.think, tokenizer.end_think, *tokenizer.stops}
    shown = {id for id in range(tokenizer.vocab_size) if tokenizer.bytes_per_id[id] > 0}
    kept = allowed | shown
    return [id for id in range(vocab_size) if id not in kept]


def hides(id: int, hidden: bool, tokenizer: Tokenizer) -> bool:
    """Whether what follows this token belongs to a call or a thought. hidden: whether the token itself does."""
    return id in (tokenizer.call, tokenizer.think) or (hidden and id != tokenizer.end_think)
