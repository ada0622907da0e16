"""What the label page asks: a prompt with answers to judge, and a person's word on them; the chat's judgements too.

In: the desk, a store of judgements (None: this server keeps none, and every route says so), a file of prompts. What is
kept is told as JSON; what is learned from it is downloaded as .jsonl.

    POST /api/label/next     {"answers": 2..4}                                a prompt and its answers, newly drawn
    POST /api/label/judge    {"kind", "answers": best first, "text", "skipped", "who"}
    GET  /api/label/counts                                                    judgements of each kind, prompts done
    GET  /api/label/export   ?kind=dpo|sft|kto
    POST /api/thumb          {"messages": with the answer, "good": true, false or null (taken back), "who", …}
    POST /api/prefer         {"messages": up to the question, "answers": [the better, the worse], "who"}
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from liuli.assistant import Candidate, Judgement, Judgements, Prompts, lines_of, read_prompts
from liuli.engine import TOOLS, Sampling, Token
from liuli.errors import LiuliError, UsageError
from liuli.files import folder_hash
from liuli.server.desk import Desk, Started
from liuli.server.errors import ApiError
from liuli.server.runs import ModelFile, run_of
from liuli.server.streaming import unless_disconnected
from liuli.server.wire import Items, MessageIn, Strict, read_body
from liuli.text import Message

MAX_TOKENS = 256  # of an answer to be judged: more than that nobody compares
PROMPTS_TRIED = 4  # where the model gives the same answer every time there is nothing to compare
T = TypeVar("T")


class NextIn(Strict):
    """POST /api/label/next."""

    answers: int = Field(default=2, ge=2, le=4)


class JudgeIn(Strict):
    """POST /api/label/judge. text: of an edit."""

    kind: Literal["choice", "ranking", "edit"]
    answers: Items[Annotated[int, Field(ge=0, lt=2**63)]] = Field(min_length=1, max_length=4)  # as SQL counts
    text: str | None = None
    skipped: bool = False
    who: str = Field(default="", max_length=80)


class Given(Strict):
    """An answer of the chat. model: the name that was told with it; sampling: how the page had it drawn."""

    messages: Items[MessageIn] = Field(min_length=1, max_length=2000)
    model: str = Field(default="", max_length=200)
    sampling: dict[str, float | int] | None = Field(default=None, max_length=9)


class ThumbIn(Given):
    """POST /api/thumb. messages: the whole conversation up to the answer."""

    good: bool | None
    who: str = Field(default="", max_length=80)


class PreferIn(Strict):
    """POST /api/prefer. answers: what two models did after `messages`, the better one first."""

    messages: Items[MessageIn] = Field(min_length=1, max_length=2000)
    answers: Items[Given] = Field(min_length=2, max_length=2)
    who: str = Field(default="", max_length=80)


def label_routes(desk: Desk, store: Judgements | None, prompts: Path | None = None) -> APIRouter:
    """The routes under /api/label, /api/thumb, /api/prefer. Raises LiuliError for a file of prompts that holds none."""
    routes = APIRouter(prefix="/api")
    given = Prompts(read_prompts(prompts, None)) if prompts else None

    async def kept(work: Callable[[Judgements], T]) -> T:
        """The store's work, beside the event loop: another process may be writing. Its errors go to who asked."""
        if store is None:
            raise ApiError(404, "This server keeps no judgements: start it with `liuli label`.", code="no_store")
        try:
            return await run_in_threadpool(work, store)
        except UsageError as error:
            raise ApiError(400, error.what, code="not_judged") from error
        except LiuliError as error:
            raise ApiError(500, error.what, code="store_error") from error

    @functools.cache
    def own(with_model: bool) -> Prompts:  # read anew with the first model: before it a run may have no questions
        return Prompts(read_prompts(None, run_of(desk.keeper.path)))

    def dealer(_: Judgements) -> Prompts:
        return given or own(desk.keeper.newest() is not None)

    async def task(wanted: int) -> dict[str, Any]:
        prompts = await kept(dealer)
        for left in reversed(range(PROMPTS_TRIED)):
            prompt = prompts.next(await kept(Judgements.times_judged))
            candidates = await draw(desk, prompt, wanted)
            if len(candidates) > 1 or not left:
                break
        ids = await kept(lambda store: store.show(prompt, candidates))
        answers = [{"id": id, "messages": _out(each.messages)} for id, each in zip(ids, candidates, strict=True)]
        return {"messages": _out(prompt), "answers": answers}

    @routes.post("/label/next")
    async def next_task(request: Request) -> Response:
        asked = await read_body(request, NextIn)
        return await unless_disconnected(request, task(asked.answers))

    @routes.get("/label/counts")
    async def counts() -> dict[str, int]:
        prompts, judged = await kept(dealer), await kept(Judgements.times_judged)
        return {**await kept(Judgements.counts), "prompts_done": prompts.done(judged), "prompts": len(prompts)}

    @routes.post("/label/judge")
    async def judge(request: Request) -> dict[str, int]:
        said = await read_body(request, JudgeIn)
        judgement = Judgement(said.kind, tuple(said.answers), said.who, edited=said.text, skipped=said.skipped)
        await kept(lambda store: store.judge(judgement))
        return await counts()

    @routes.get("/label/export")
    async def export(kind: str = "dpo") -> Response:
        lines, exported = await kept(lambda store: lines_of(store, kind))
        headers = {"content-disposition": f'attachment; filename="{kind}.jsonl"', "cache-control": "no-store"}
        headers["x-liuli-contradictions"] = str(exported.contradictions)
        return Response(b"".join(lines), media_type="application/x-ndjson", headers=headers)

    @routes.post("/thumb")
    async def thumb(request: Request) -> dict[str, int]:
        said = await read_body(request, ThumbIn)

        def keep(store: Judgements) -> int:
            prompt, candidate = given_answer(desk, [], said)
            ids = store.show(prompt, [candidate])
            return store.judge(Judgement("thumb", tuple(ids), said.who, said.good, skipped=said.good is None))

        return {"id": await kept(keep)}

    @routes.post("/prefer")
    async def prefer(request: Request) -> dict[str, int]:
        said = await read_body(request, PreferIn)

        def keep(store: Judgements) -> int:
            (prompt, better), (other, worse) = [given_answer(desk, said.messages, each) for each in said.answers]
            if prompt != other:
                raise UsageError("These are not answers to one prompt.")
            return store.judge(Judgement("choice", tuple(store.show(prompt, [better, worse])), said.who))

        return {"id": await kept(keep)}

    return routes


def given_answer(desk: Desk, before: list[MessageIn], given: Given) -> tuple[tuple[Message, ...], Candidate]:
    """The prompt and the answer as it is kept. Raises UsageError where one of them is missing."""
    prompt, answer = split([*before, *given.messages])
    return prompt, Candidate(answer, given.model, hash_of(desk.keeper.loaded(given.model)), given.sampling)


async def draw(desk: Desk, prompt: tuple[Message, ...], wanted: int) -> list[Candidate]:
    """Up to `wanted` different answers at temperature 1; twice as many are drawn at most."""
    found: dict[tuple[Message, ...], Candidate] = {}
    for _ in range(2 * wanted):
        candidate = await _answer(desk, prompt)
        found.setdefault(candidate.messages, candidate)
        if len(found) == wanted:
            break
    return list(found.values())


async def _answer(desk: Desk, prompt: tuple[Message, ...]) -> Candidate:
    sampling = Sampling(temperature=1.0, max_tokens=MAX_TOKENS, seed=secrets.randbits(31))
    text, model = "", ""
    steps: list[Message] = []
    async for event in desk.answer(prompt, sampling, list(TOOLS), trim=True):
        if isinstance(event, Started):
            model = str(event.model["name"])
        elif isinstance(event, Message):
            steps.append(event)
            text = ""  # what was said before a call is in its message
        elif isinstance(event, Token):
            text += event.text
    digest = await run_in_threadpool(hash_of, desk.keeper.loaded(model))
    return Candidate((*steps, Message("assistant", text)), model, digest, asdict(sampling))


def split(messages: list[MessageIn]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The prompt, up to the last question, and the answer. Raises UsageError where one of them is missing."""
    whole = tuple(message.message() for message in messages)
    asked = [number for number, message in enumerate(whole) if message.role == "user"]
    if not asked or whole[-1].role != "assistant":
        raise UsageError("`messages` must be a question and its answer.")
    return whole[: asked[-1] + 1], whole[asked[-1] + 1 :]


@functools.lru_cache(maxsize=8)
def hash_of(model: ModelFile | None) -> str:
    """The hash of a model that is in memory, "" for one that is not."""
    return folder_hash(model.path) if model and model.path.exists() else ""


def _out(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    return [message.to_dict() for message in messages]
