"""Continuous batching: answers join and leave at every step, and each step writes for all of them.

In: requests. Out: tokens, in the requests. A step reads at most so many tokens of new prompts, so that nobody who is
being answered waits for a long one, and then writes one token, or a few verified ones, for every row. Rows 0..n-1 of
the cache are `running`, in this order; row n may hold a long prompt that is still being read.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from liuli.engine.answer import Alternative, likeliest
from liuli.engine.cache import BLOCK, Block, KeyValueCache, PrefixCache
from liuli.engine.decode import weight_versions
from liuli.engine.sampling import Sampler
from liuli.engine.speculate import MOST
from liuli.errors import LiuliError
from liuli.model import Transformer

if TYPE_CHECKING:
    from liuli.engine.engine import Engine, Request

READ_TOKENS = 8192  # of prompts read in one step when nobody is being answered, padding included
LONGEST = 1024  # tokens of one prompt read at once: scores are so many times the prompt, not the prompt squared
PASS = 128  # tokens that cost as much as reading them in a pass of their own
CHUNK = 256  # the same while few wait: how long the next token takes of those who are being answered
CACHE_BYTES = 2**32  # fewer rows run at once when their cache, full to the last token, would be larger than this
PREFIX_BYTES = 2**27  # for what earlier texts have in common with later ones


@dataclass
class Stats:
    """What a scheduler has done so far, in tokens, steps and requests."""

    steps: int = 0
    read: int = 0  # tokens of prompts that were computed
    reused: int = 0  # tokens of prompts that were copied from earlier texts
    written: int = 0
    drafted: int = 0
    accepted: int = 0
    preempted: int = 0


@dataclass
class _Reading:
    """A long prompt, the first `done` tokens of which are in the cache."""

    request: Request
    tokens: list[int]
    done: int


class Scheduler:
    """Rows for `rows` answers of at most `slots` tokens, prompt included, and a queue for more.

    prefix_bytes: memory for prefixes kept, 0: none; prefix_int8: keep them in bytes. patient: begin new prompts only
    when a quarter of the rows is free: more tokens a second when all requests are there from the beginning.
    """

    def __init__(
        self,
        engine: Engine,
        rows: int,
        slots: int,
        *,
        prefix_bytes: int = 0,
        prefix_int8: bool = False,
        patient: bool = False,
        chunk: int = CHUNK,
    ) -> None:
        config, self.engine, self.model = engine.model.config, engine, engine.model
        dtype, device = engine.model.dtype, engine.device
        self.slots, self.patient, self.chunk = slots, patient, chunk
        per_row = 2 * config.layers * slots * config.kv_heads * config.head_size * dtype.itemsize
        self.rows = max(1, min(rows, CACHE_BYTES // per_row))
        with torch.inference_mode():
            # never full: a compiled step need not tell a whole row from a part of it
            self.cache = KeyValueCache.of(config, rows=self.rows, slots=slots + 1, dtype=dtype, device=device)
            blocks = prefix_bytes // PrefixCache.bytes_per_block(self.cache, prefix_int8)
            self.prefixes = PrefixCache(self.cache, blocks, prefix_int8) if blocks else None
        # tokens are drawn in float64, which Apple's GPUs lack
        place = torch.device("cpu") if device.type == "mps" else device
        self.sampler = Sampler(config.vocab_size, place, engine.tokenizer.stops, engine.tokenizer)
        self.fed_B1 = torch.empty(0, 1, dtype=torch.int64, device=device)  # the newest token, to be fed next
        self.previous_B1 = self.positions_B1 = self.fed_B1  # the token before it, and its own position
        self.decode, self.versions = engine.decoder(), weight_versions(self.model)
        self.running: list[Request] = []
        self.lengths: list[int] = []  # tokens in the cache, by row
        self.reading: _Reading | None = None
        self.begun: list[Request] = []  # whose prompts this step reads
        self.waiting: list[tuple[int, int, Request]] = []  # a heap: priority, then who came first
        self.arrivals = itertools.count()
        self.stats = Stats()
        self.waited = 0.0  # seconds that prompts with a place have waited since some were read, summed over them
        self.pass_seconds = 0.0  # of a pass that reads hardly anything, as far as is known

    def __len__(self) -> int:
        """How many requests are being answered or waited for."""
        return len(self.running) + len(self.waiting) + (self.reading is not None)

    def submit(self, request: Request) -> None:
        """Take a request. Raises LiuliError when it could never fit."""
        if request.slots > self.slots:
            raise LiuliError(
                f"prompt and answer may have {self.slots} tokens together, {request.slots} are asked for",
                f"prompt {request.number}",
                "shorten the prompt or ask for fewer tokens",
            )
        if request.arrival is None:
            request.arrival = next(self.arrivals)
        heapq.heappush(self.waiting, (-request.priority, request.arrival, request))

    def cancel(self, request: Request) -> None:
        """Nobody waits for this answer any more: it ends with the next step, if there is one."""
        request.cancelled = True

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """One token or more for every running request, and the first for new ones. Returns those that ended.

        What breaks ends with `failed` those it can be the fault of: of prompts read together each is read again by
        itself first; of what is written together nobody knows whose it is. The others go on, and so does the scheduler.
        """
        self.stats.steps += 1
        there = [*self.running, *([self.reading.request] if self.reading else ())]
        with _evaluating(self.model):
            try:
                self._forget_cancelled()
                self._refresh()
                self._make_room()
                if self.running:
                    began, drafts = time.perf_counter(), self._drafts()
                    if any(drafts):
                        self._verify(drafts)
                    else:
                        self._write_one()
                    could = min(len(self.waiting), self.rows - len(self.running))
                    self.waited += could * (time.perf_counter() - began)
                return self._read() + self._leave()
            except Exception as error:
                return self._recover([], [*there, *self.running] or [each for *_, each in self.waiting], error)

    @torch.inference_mode()
    def preempt(self, request: Request) -> None:
        """Send a running request back to the queue; it goes on later as if nothing had happened."""
        row = self.running.index(request)
        self._remove([row])
        self.stats.preempted += 1
        self.submit(request)

    # --- what runs

    def _refresh(self) -> None:
        """Follow the model when its weights have changed; they never do while an answer is written."""
        if self.running or self.reading is not None or self.versions == (now := weight_versions(self.model)):
            return
        self.versions, self.decode = now, self.engine.decoder()
        if self.prefixes is not None:
            self.prefixes.clear()

    def _forget_cancelled(self) -> None:
        gone = [row for row, request in enumerate(self.running) if request.cancelled]
        if gone:
            self._remove(gone)
        if self.reading is not None and self.reading.request.cancelled:
            self.reading = None
        if any(request.cancelled for _, _, request in self.waiting):
            self.waiting = [entry for entry in self.waiting if not entry[2].cancelled]
            heapq.heapify(self.waiting)

    def _make_room(self) -> None:
        """Who matters more takes the row of the one who matters least and came last."""
        if not self.waiting or len(self.running) < self.rows or self.reading is not None:
            return
        last = max(self.running, key=lambda request: (-request.priority, request.arrival))
        if last.priority < self.waiting[0][2].priority:
            self.preempt(last)

    # --- writing

    def _write_one(self) -> None:
        """The next token of every running row."""
        self.cache.follow(self.positions_B1, self.previous_B1, self.lengths)
        logits_BV = self.decode(self.fed_B1, self.cache)[:, -1].float()
        chosen_B1 = self._choose(logits_BV)
        self.previous_B1, self.fed_B1, self.positions_B1 = self.fed_B1, chosen_B1, self.positions_B1 + 1
        self.lengths = [length + 1 for length in self.lengths]
        self._write(range(len(self.running)), chosen_B1, logits_BV)

    def _choose(self, logits_BV: Tensor, rows: list[int] | None = None) -> Tensor:
        banned_BV = (logits_BV + self.engine.ban_V).to(self.sampler.device)
        return self.sampler(banned_BV, rows).to(logits_BV.device)

    def _drafts(self) -> list[list[int]]:
        """For each running row tokens that may come next; nothing where there is no room or little hope."""
        drafter = self.engine.drafter
        if drafter is None:
            return []
        room = self.slots - max(self.lengths) - 1
        if self.engine.compiled and room < MOST:  # a compiled step checks always as many
            return []
        return [
            drafter(request, min(room, request.sampling.max_tokens - len(request.tokens) - 1))
            for request in self.running
        ]

    def _verify(self, drafts: list[list[int]]) -> None:
        """Feed the drafts at once, then draw each row's tokens one by one from the model's own distribution, for as
        long as what is drawn is what was drafted: the answer is the same as without drafts."""
        T, B = 1 + (MOST if self.engine.compiled else max(map(len, drafts))), len(drafts)
        rows = [[*draft, *([0] * (T - 1 - len(draft)))] for draft in drafts]
        tokens_BT = torch.cat((self.fed_B1, torch.tensor(rows, dtype=torch.int64, device=self.engine.device)), dim=1)
        self.cache.follow(self.positions_B1, self.previous_B1, self.lengths, T)
        logits_BTV = self.decode(tokens_BT, self.cache).float()
        active, written = list(range(B)), [0] * B
        chosen_B1 = torch.zeros_like(self.fed_B1)
        for at in range(T):
            index = torch.tensor(active, device=self.engine.device)
            logits_AV = logits_BTV[index, at]
            chosen_A1 = self._choose(logits_AV, active)
            chosen_B1[index] = chosen_A1
            self._write(active, chosen_A1, logits_AV)
            on = []
            for row, id in zip(active, chosen_A1[:, 0].tolist(), strict=True):
                written[row] += 1
                if at < len(drafts[row]) and id == drafts[row][at] and self.running[row].stopped_by is None:
                    on.append(row)
            active = on
            if not active:
                break
        for request, draft, count in zip(self.running, drafts, written, strict=True):
            request.judge_drafts(len(draft), count - 1)
            self.stats.drafted += len(draft)
            self.stats.accepted += count - 1
        moved_B1 = torch.tensor(written, device=self.engine.device)[:, None]
        self.previous_B1 = tokens_BT.gather(1, moved_B1 - 1)
        self.fed_B1, self.positions_B1 = chosen_B1, self.positions_B1 + moved_B1
        self.lengths = [length + count for length, count in zip(self.lengths, written, strict=True)]

    def _write(self, rows: Sequence[int], chosen_B1: Tensor, logits_BV: Tensor) -> None:
        """Hand the request of every row its token, with log-probabilities of the unmodified distribution."""
        requests = [self.running[row] for row in rows]
        logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
        logprobs_B = logprobs_BV.gather(1, chosen_B1)[:, 0]
        others: list[tuple[Alternative, ...]] = [()] * len(requests)
        if self.sampler.alternatives:
            others = likeliest(logprobs_BV, self.engine.names, [r.sampling.alternatives for r in requests])
        for row, request, id, logprob, other in zip(
            rows, requests, chosen_B1[:, 0].tolist(), logprobs_B.tolist(), others, strict=True
        ):
            self.engine.token(request, id, logprob, other, broken=self.sampler.broken(row))
        self.stats.written += len(requests)

    # --- reading

    def _budget(self) -> int:
        """Tokens of prompts to read now; none while it pays to wait for more prompts.

        A pass holds up each who is answered as long for one prompt as for a few. So prompts wait for one another until
        they have waited, together, as long as all others would be held up: where they come evenly nothing loses less,
        and however they come at most twice as much is lost as need be (the ski rental problem).
        A chunk more delays each who is answered once, and spares a step to each who waits: W * W / 2 of them in all.
        """
        W, R = len(self.waiting), len(self.running)
        if W and not self.patient and self.reading is None and self.waited < R * self.pass_seconds:
            return 0
        self.waited = 0.0
        each = READ_TOKENS if self.patient or not R else W * W // (2 * R)
        return min(READ_TOKENS, self.chunk * max(1, each))

    def _read(self) -> list[Request]:
        """Read prompts, a bounded number of tokens; each one that is read to its end gets a row and a first token.
        Returns one that cannot be read."""
        rows, self.begun = range(len(self.running)), [self.reading.request] if self.reading else []
        try:
            self._read_some()
        except Exception as error:
            if not self.begun:
                raise
            again = self.begun if len(self.begun) > 1 else []
            failed = self._recover(rows, [] if again else self.begun, error)
            for request in again:
                request.alone = True
                self.submit(request)
            return failed
        return []

    def _read_some(self) -> None:
        most = budget = self._budget()
        ready: list[Request] = []
        parts: list[Tensor] = []
        while budget > 0 and not (ready and ready[-1].alone):
            if self.reading is not None:
                budget -= self._read_on(budget, ready, parts)
                continue
            free = self.rows - len(self.running) - len(ready)
            if not self.waiting or not free or (self.patient and self.running and free * 4 < self.rows):
                break
            group = self._next_group(budget, free, len(self.running) + len(ready), begun=budget < most)
            if self.reading is not None:
                continue  # what came next is long: it is read by itself
            if not group:
                break
            start = min(len(chain) for _, chain in group) * BLOCK
            budget -= (max(len(request.ids) for request, _ in group) - start) * len(group)
            parts.append(self._read_group(group, start, ready))
        if ready:
            self._join(ready, torch.cat(parts))

    def _next_group(self, budget: int, free: int, row: int, begun: bool) -> list[tuple[Request, list[Block]]]:
        """New prompts to read side by side, each with the blocks that are known of it; a long one becomes `reading`.

        They are read from where the least is known, padded to the longest. begun: this step has read something; what
        does not fit into the rest of it is not cut, but waits for the next.
        """
        group: list[tuple[Request, list[Block]]] = []
        least, most, longest = math.inf, 0, 0
        while self.waiting and len(group) < free:
            request = self.waiting[0][2]
            tokens = request.ids
            chain = self.prefixes.find(tokens[:-1], request.salt) if self.prefixes is not None else []
            known = len(chain) * BLOCK
            least, most, longest = min(least, known), max(most, known), max(longest, len(tokens))
            alone = request.alone or len(tokens) - known > min(budget, LONGEST)
            if group and (alone or most - least > PASS or (longest - least) * (len(group) + 1) > budget):
                break
            if begun and len(tokens) - known > budget:
                break
            heapq.heappop(self.waiting)
            self.begun.append(request)
            if not alone:
                group.append((request, chain))
                continue
            self.reading = _Reading(request, list(tokens), known)
            self._take(request, chain, row)
            break
        return group

    def _take(self, request: Request, chain: list[Block], row: int) -> None:
        """Put what is known of a prompt into a row."""
        if chain and self.prefixes is not None:
            self.prefixes.take(chain, self.cache, row)
            request.reused = min(len(chain) * BLOCK, len(request.prompt))  # of the answer, too, where it goes on
            self.stats.reused += len(chain) * BLOCK

    def _read_on(self, budget: int, ready: list[Request], parts: list[Tensor]) -> int:
        """Read on in the prompt that is read by itself; at its end it is ready. Returns how many tokens were read."""
        reading = self.reading
        assert reading is not None
        tokens = reading.tokens[reading.done : reading.done + min(budget, LONGEST)]
        tokens_1T = torch.tensor([tokens], dtype=torch.int64, device=self.engine.device)
        before = None
        if reading.done:
            before = torch.tensor([[reading.tokens[reading.done - 1]]], device=self.engine.device)
        self.cache.begin(len(self.running) + len(ready), 1, len(tokens), reading.done, before)
        x_1TD = self.model.hidden(tokens_1T, self.cache)
        reading.done += len(tokens)
        self.stats.read += len(tokens)
        if reading.done == len(reading.tokens):
            ready.append(reading.request)
            parts.append(self.model.logits(x_1TD[:, -1]).float())
            self.reading = None
        return len(tokens)

    def _read_group(self, group: list[tuple[Request, list[Block]]], start: int, ready: list[Request]) -> Tensor:
        """Read new prompts side by side from `start` on; the logits (B, V) after each one's last token. Equal prompts
        are read once."""
        row, device = len(self.running) + len(ready), self.engine.device
        first: dict[tuple[int, ...], int] = {}
        of: list[int] = []
        for request, chain in group:
            of.append(first.setdefault(tuple(request.ids), len(first)))
            if of[-1] == len(first) - 1:
                self._take(request, chain[: start // BLOCK], row + of[-1])
        lengths = [len(tokens) - start for tokens in first]
        T = max(lengths)
        padded = [[*tokens[start:], *([0] * (T - length))] for tokens, length in zip(first, lengths, strict=True)]
        before = torch.tensor([[tokens[start - 1]] for tokens in first], device=device) if start else None
        self.cache.begin(row, len(first), T, start, before)
        began = time.perf_counter()
        x_BTD = self.model.hidden(torch.tensor(padded, dtype=torch.int64, device=device), self.cache)
        found = (time.perf_counter() - began) * PASS / (PASS + T * len(first))
        self.pass_seconds = min(found, self.pass_seconds or found)
        last_BD = x_BTD[torch.arange(len(first)), torch.tensor(lengths) - 1]
        self.stats.read += sum(lengths)
        if len(first) < len(group):
            self.cache.copy([row + at for at in of], row, start + T)
        ready += [request for request, _ in group]
        return self.model.logits(last_BD).float()[torch.tensor(of)]

    def _join(self, ready: list[Request], logits_BV: Tensor) -> None:
        """Give requests that were read their rows and their next token."""
        device, first = self.engine.device, len(self.running)
        fed = [list(request.ids) for request in ready]
        rows = list(range(first, first + len(ready)))
        self._keep(rows, ready, map(len, fed))
        self.running += ready
        self.lengths += map(len, fed)
        self.positions_B1 = torch.cat((self.positions_B1, torch.tensor([[len(ids)] for ids in fed], device=device)))
        last_B1 = torch.tensor([[tokens[-1]] for tokens in fed], device=device)
        self.previous_B1 = torch.cat((self.previous_B1, last_B1))
        self.sampler.add(
            [request.sampling for request in ready],
            [request.prompt for request in ready],
            [[token.id for token in request.tokens] for request in ready],
        )
        chosen_B1 = self._choose(logits_BV, rows)
        self.fed_B1 = torch.cat((self.fed_B1, chosen_B1))
        self._write(rows, chosen_B1, logits_BV)

    # --- leaving

    def _leave(self) -> list[Request]:
        ended = [row for row, request in enumerate(self.running) if request.stopped_by is not None]
        done = [self.running[row] for row in ended]
        if ended:
            self._remove(ended)
        return done

    def _remove(self, rows: list[int]) -> None:
        """Let rows go: the last row moves into each gap."""
        self._keep(rows, [self.running[row] for row in rows], [self.lengths[row] for row in rows])
        order = list(range(len(self.running)))
        for row in reversed(rows):  # from the back, so that the last row is always one that stays, or this one
            last = len(order) - 1
            if row != last:
                self.cache.copy([last], row, self.lengths[order[last]])
                order[row] = order[last]
            order.pop()
        if self.reading is not None:
            self.cache.copy([len(self.running)], len(order), self.reading.done)
        self._select(order)

    def _recover(self, rows: Sequence[int], requests: Iterable[Request], error: Exception) -> list[Request]:
        """Back to these rows: what else was begun is forgotten, and so is the shelf, which may be half written. Of the
        requests those that have not ended fail; they are returned."""
        failed = [request for request in dict.fromkeys(requests) if request.stopped_by is None]
        for request in failed:
            request.failed, request.cancelled = error, True  # where it waits, too, it is forgotten
        self.reading = None
        if self.prefixes is not None:
            self.prefixes.clear()
        self._select(rows)
        return failed

    def _select(self, order: Sequence[int]) -> None:
        """Only these rows stay, in this order."""
        self.running = [self.running[row] for row in order]
        self.lengths = [self.lengths[row] for row in order]
        index = torch.tensor(order, dtype=torch.int64, device=self.engine.device)
        self.fed_B1, self.previous_B1, self.positions_B1 = (
            each[index] for each in (self.fed_B1, self.previous_B1, self.positions_B1)
        )
        self.sampler.select(order)

    def _keep(self, rows: Iterable[int], requests: Iterable[Request], lengths: Iterable[int]) -> None:
        """Keep what rows hold for texts that begin alike; of requests that are all there, those that call a tool."""
        for row, request, length in zip(rows, requests, lengths, strict=True):
            again = not self.patient or self.engine.tokenizer.call in request.ids[len(request.prompt) :]
            if again and self.prefixes is not None:
                self.prefixes.keep(request.ids[:length], self.cache, row, request.salt)


@contextmanager
def _evaluating(model: Transformer) -> Iterator[None]:
    """No dropout while writing."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
