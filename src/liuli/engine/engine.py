"""The engine: prompts in, tokens out, many different prompts at once.

Prompts of similar length are read together (padded right), then every row writes one token a step. A row that ends
leaves at once and waiting prompts take its place, so a step never computes for a row that is done. Whoever asks for one
answer gets the same tokens as in any batch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from liuli.engine.answer import Alternative, Answer, StoppedBy, Token
from liuli.engine.cache import KeyValueCache
from liuli.engine.decode import Decoder
from liuli.engine.sampling import Sampler, Sampling
from liuli.engine.stops import TextStream
from liuli.errors import LiuliError
from liuli.model import Transformer
from liuli.text.tokenizer import Tokenizer

PREFILL_TOKENS = 8192  # read in one go, padding included: bounds the memory for scores
CHUNK = 1024  # tokens of a prompt read at once: scores are CHUNK times the prompt, not the prompt squared
CACHE_BYTES = 2**30  # fewer rows run at once when their cache would be larger than this


@dataclass
class Request:
    """One prompt being answered."""

    prompt: Sequence[int]
    sampling: Sampling
    number: int = 0
    tokens: list[Token] = field(default_factory=list)
    text: TextStream = field(default_factory=TextStream)
    hidden: bool = False  # what is written now is a call or a thought, which no stop string may cut

    @property
    def stopped_by(self) -> StoppedBy | None:
        return self.tokens[-1].stopped_by if self.tokens else None

    def answer(self) -> Answer:
        return Answer(tuple(self.tokens), "".join(token.text for token in self.tokens), self.stopped_by or "cancel")


class Engine:
    """Writes answers with a model. rows: how many at once; more wait until a row is free."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, rows: int = 64) -> None:
        config = model.config
        if tokenizer.vocab_size > config.vocab_size:
            raise LiuliError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model knows {config.vocab_size}",
                "engine",
                "use the tokenizer that the model was trained with",
            )
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self._decoder: Decoder | None = None
        self.stops = frozenset(tokenizer.stops)
        self.bytes_of = [tokenizer.bytes_of(id) for id in range(tokenizer.vocab_size)]
        self.names = [tokenizer.decode([id]) for id in range(tokenizer.vocab_size)]  # as alternatives are shown
        allowed = {tokenizer.call, tokenizer.think, tokenizer.end_think} | self.stops
        banned = [id for id in range(config.vocab_size) if id not in allowed and not self.may_show(id)]
        self.ban_V = torch.zeros(config.vocab_size, device=self.device)
        self.ban_V[banned] = -math.inf

    def may_show(self, id: int) -> bool:
        """Whether an id stands for bytes of text, not for a control token or nothing at all."""
        return id < len(self.bytes_of) and self.tokenizer.bytes_per_id[id] > 0

    def decoder(self) -> Callable[[Tensor, KeyValueCache], Tensor]:
        """What computes one token a row: prepared weights, made anew when the model has learned, or the model."""
        if self._decoder is not None and not self._decoder.fresh():
            self._decoder = None
        if self._decoder is None and isinstance(self.model, Transformer) and Decoder.pays(self.model):
            self._decoder = Decoder(self.model)
        return self._decoder or (lambda tokens_B1, cache: self.model(tokens_B1, cache)[:, -1])

    @property
    def device(self) -> torch.device:
        return self.model.embedding.weight.device

    @property
    def context(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self.model.config.context

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling]) -> list[Answer]:
        """An answer for each prompt, in order. sampling: one for all, or one each.

        Raises LiuliError for a prompt that is empty, too long or holds an id the model does not know.
        """
        each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        requests = [self.request(p, s, number) for number, (p, s) in enumerate(zip(prompts, each, strict=True))]
        self.work(requests)
        return [request.answer() for request in requests]

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Generator[Token, None, None]:
        """The tokens of one answer as they are written; closing the iterator stops the work."""
        request = self.request(prompt, sampling)
        batch = Batch(self, rows=1, slots=_slots([request]))
        batch.step([request])
        yield request.tokens[-1]
        while batch.running:
            batch.step()
            yield request.tokens[-1]

    def work(self, requests: Sequence[Request], then: Callable[[Request], Request | None] | None = None) -> None:
        """Write all answers. then: called with each finished request; may give a new one, which joins the batch."""
        waiting = deque(sorted(requests, key=lambda request: -len(request.prompt)))  # similar lengths side by side
        while waiting:
            # what `then` gives is longer than what it was called with: leave room, but not the whole of a long context
            slots = min(self.context, _slots(waiting) * (1 if then is None else 2))
            waiting = self._batch(waiting, slots, then)

    def _batch(
        self, waiting: deque[Request], slots: int, then: Callable[[Request], Request | None] | None
    ) -> deque[Request]:
        """Write all answers that fit in so many slots. Returns the new requests that do not."""
        batch = Batch(self, rows=min(self.rows, len(waiting)), slots=slots)
        too_long: deque[Request] = deque()
        while waiting or batch.running:
            free = batch.rows - len(batch.running)
            # a prefill for every freed row would hold up the others too often: wait until a quarter is free
            ready = min(free, len(waiting)) if free * 4 >= batch.rows or not batch.running else 0
            for request in batch.step([waiting.popleft() for _ in range(ready)]):
                if then is not None and (more := then(request)) is not None:
                    (waiting if _slots([more]) <= slots else too_long).append(more)
        return too_long

    def request(self, prompt: Sequence[int], sampling: Sampling, number: int = 0) -> Request:
        """Check a prompt and make it ready to run."""
        where = f"prompt {number}"
        if not prompt:
            raise LiuliError("the prompt is empty", where, "begin it with the tokenizer's bos token")
        if len(prompt) > self.context:
            raise LiuliError(
                f"the prompt has {len(prompt)} tokens, the model's context is {self.context}",
                where,
                "shorten it or start a new conversation",
            )
        if min(prompt) < 0 or max(prompt) >= self.model.config.vocab_size:
            raise LiuliError("the prompt holds an id that is not in the vocabulary", where, "use the model's tokenizer")
        # the last token needs no slot of its own: nothing is computed after it
        room = self.context - len(prompt) + 1
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        return Request(prompt, sampling, number, text=TextStream(sampling.stop))

    def token(self, request: Request, id: int, logprob: float, alternatives: tuple[Alternative, ...]) -> Token:
        """Write one token into a request: what of its text may be shown, and whether the answer ends with it."""
        stopped_by: StoppedBy | None = None
        if logprob != logprob:
            stopped_by = "error"  # the model gave NaN
        elif id in self.stops:
            stopped_by = "end"
        elif len(request.tokens) + 1 >= request.sampling.max_tokens:
            stopped_by = "length"
        shown = self.bytes_of[id] if stopped_by in (None, "length") else b""
        # a control token is a border: nothing held back before it can still be completed
        text = request.text.feed(shown, last=stopped_by is not None or not shown)
        if request.text.stopped:
            stopped_by = "stop"
        if not shown:
            request.hidden = hides(id, request.hidden, self.tokenizer)
            request.text = TextStream(() if request.hidden else request.sampling.stop)
        token = Token(id, text, logprob, alternatives, stopped_by=stopped_by)
        request.tokens.append(token)
        return token


def hides(id: int, hidden: bool, tokenizer: Tokenizer) -> bool:
    """Whether what follows this token belongs to a call or a thought. hidden: whether the token itself does."""
    return id in (tokenizer.call, tokenizer.think) or (hidden and id != tokenizer.end_think)


class Batch:
    """Answers being written together. Row i of every tensor belongs to running[i]."""

    def __init__(self, engine: Engine, rows: int, slots: int) -> None:
        config, self.engine, self.model = engine.model.config, engine, engine.model
        dtype, device = self.model.dtype, engine.device
        per_row = 2 * config.layers * slots * config.kv_heads * config.head_size * dtype.itemsize
        self.rows = max(1, min(rows, CACHE_BYTES // per_row))
        with torch.inference_mode():
            self.cache = KeyValueCache(
                layers=config.layers,
                rows=self.rows,
                slots=slots,
                kv_heads=config.kv_heads,
                head_size=config.head_size,
                dtype=dtype,
                device=device,
            )
        # tokens are drawn in float64, which Apple's GPUs lack
        drawn_on = torch.device("cpu") if device.type == "mps" else device
        self.sampler = Sampler(config.vocab_size, drawn_on, engine.tokenizer.stops, engine.tokenizer)
        self.fed_B1 = torch.empty(0, 1, dtype=torch.int64, device=device)  # the newest token, to be fed next
        self.previous_B1 = self.positions_B1 = self.fed_B1  # the token before it, and its own position
        self.decode = engine.decoder()
        self.running: list[Request] = []
        self.lengths: list[int] = []  # tokens in the cache, by row

    @torch.inference_mode()
    def step(self, new: Sequence[Request] = ()) -> list[Request]:
        """One token for every running request, and the first one for new ones. Returns those that ended with it."""
        training = self.model.training
        if training:
            self.model.eval()  # no dropout while writing
        try:
            logits_BV = self._logits(new)
        finally:
            if training:
                self.model.train()
        chosen_B1 = self.sampler((logits_BV + self.engine.ban_V).to(self.sampler.device)).to(logits_BV.device)
        self.fed_B1 = chosen_B1
        self._write(chosen_B1, logits_BV)
        return self._leave()

    def _logits(self, new: Sequence[Request]) -> Tensor:
        """Log-odds of the next token of every row (B, V) float32, after the new prompts have taken rows."""
        parts = []
        if self.running:
            self.cache.follow(self.positions_B1, self.previous_B1, self.lengths)
            parts.append(self.decode(self.fed_B1, self.cache))
            self.previous_B1, self.positions_B1 = self.fed_B1, self.positions_B1 + 1
            self.lengths = [length + 1 for length in self.lengths]
        for group in _groups(new):
            parts.append(self._read(group))
        if new:
            self.sampler.add([request.sampling for request in new], [request.prompt for request in new])
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).float()

    def _read(self, group: Sequence[Request]) -> Tensor:
        """Read new prompts into the next free rows; the logits after each one's last token (B, V)."""
        lengths = [len(request.prompt) for request in group]
        T = max(lengths)
        padded = [[*request.prompt, *([0] * (T - len(request.prompt)))] for request in group]
        tokens_BT = torch.tensor(padded, dtype=torch.int64, device=self.engine.device)
        lengths_B1 = torch.tensor(lengths, dtype=torch.int64, device=self.engine.device).unsqueeze(1)
        last_BD = self._last_hidden(tokens_BT, lengths_B1 - 1)
        self.running += group
        self.lengths += lengths
        self.positions_B1 = torch.cat((self.positions_B1, lengths_B1))
        self.previous_B1 = torch.cat((self.previous_B1, tokens_BT.gather(1, lengths_B1 - 1)))
        return self.model.logits(last_BD)

    def _last_hidden(self, tokens_BT: Tensor, last_B1: Tensor) -> Tensor:
        """The state (B, D) at position `last` of each row, read a chunk at a time into the rows after the running."""
        found_BD: Tensor | None = None
        for start in range(0, tokens_BT.shape[1], CHUNK):
            chunk_BT = tokens_BT[:, start : start + CHUNK]
            B, T = chunk_BT.shape
            self.cache.begin(len(self.running), B, T, start, tokens_BT[:, start - 1 : start] if start else None)
            x_BTD = self.model.hidden(chunk_BT, self.cache)
            at_B1 = last_B1 - start
            here_BD = x_BTD[torch.arange(B, device=x_BTD.device), at_B1[:, 0].clamp(0, T - 1)]
            found_BD = here_BD if found_BD is None else torch.where(at_B1 >= 0, here_BD, found_BD)
        assert found_BD is not None  # a prompt is never empty
        return found_BD

    def _write(self, chosen_B1: Tensor, logits_BV: Tensor) -> None:
        """Hand every row its token, with log-probabilities of the unmodified distribution."""
        logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
        ids = chosen_B1[:, 0].tolist()
        logprobs = logprobs_BV.gather(1, chosen_B1)[:, 0].tolist()
        others: list[tuple[Alternative, ...]] = [()] * len(ids)
        if self.sampler.alternatives:
            others = self._alternatives(logprobs_BV)
        for request, id, logprob, other in zip(self.running, ids, logprobs, others, strict=True):
            self.engine.token(request, id, logprob, other)

    def _alternatives(self, logprobs_BV: Tensor) -> list[tuple[Alternative, ...]]:
        """The likeliest tokens of every row, as many as its request asks for."""
        names = self.engine.names
        most = min(self.sampler.alternatives, len(names))
        values_BN, ids_BN = logprobs_BV[:, : len(names)].topk(most)
        rows = zip(self.running, ids_BN.tolist(), values_BN.tolist(), strict=True)
        return [
            tuple(Alternative(id, names[id], value) for id, value in zip(ids, values, strict=True))[
                : request.sampling.alternatives
            ]
            for request, ids, values in rows
        ]

    def _leave(self) -> list[Request]:
        """Let finished rows go: the last running row moves into each gap."""
        ended = [row for row, request in enumerate(self.running) if request.tokens[-1].stopped_by is not None]
        if not ended:
            return []
        done = [self.running[row] for row in ended]
        order = list(range(len(self.running)))
        for row in reversed(ended):  # from the back, so that the last row is always one that goes on, or this one
            last = len(order) - 1
            if row != last:
                self.cache.move(last, row, self.lengths[order[last]])
                order[row] = order[last]
            order.pop()
        self.running = [self.running[row] for row in order]
        self.lengths = [self.lengths[row] for row in order]
        index = torch.tensor(order, dtype=torch.int64, device=self.engine.device)
        self.fed_B1, self.previous_B1, self.positions_B1 = (
            rows[index] for rows in (self.fed_B1, self.previous_B1, self.positions_B1)
        )
        self.sampler.select(order)
        return done


def _groups(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    """Split new prompts so that each group, padded to its longest, has at most PREFILL_TOKENS tokens."""
    start = longest = 0
    for at, request in enumerate(requests):
        longest = max(longest, len(request.prompt))
        if at > start and longest * (at + 1 - start) > PREFILL_TOKENS:
            yield requests[start:at]
            start, longest = at, len(request.prompt)
    if requests:
        yield requests[start:]


def _slots(requests: Iterable[Request]) -> int:
    """Slots that the longest of these may fill; the last token is never fed."""
    return max(len(request.prompt) + request.sampling.max_tokens - 1 for request in requests)
