"""POST /v1/embeddings: texts in, vectors of length 1 out.

A vector is the mean of the model's last hidden states (after the final norm) over the text's tokens, divided by its
length, so that the dot product of two is their cosine. The model was trained to go on with text, not to compare texts:
nearness means a likeness of topic and form. `dimensions` keeps the first numbers and normalises again; the model was
not trained for it (no Matryoshka), so it costs quality.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from liuli.assistant.voices import ModelVoice
from liuli.server.desk import Desk, prompt_ids
from liuli.server.errors import ApiError
from liuli.server.openapi import describes
from liuli.server.replies import EmbeddingList
from liuli.server.streaming import unless_disconnected
from liuli.server.wire import Prompt, Prompts, Strict, listed, read_body

MOST_INPUTS = 2048


class EmbeddingRequest(Strict):
    """POST /v1/embeddings."""

    model: str = ""
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1, le=100_000)

    ignored = ("user",)

    def inputs(self) -> list[Prompt]:
        """Each text or list of tokens; ApiError for none, or too many."""
        inputs = listed(self.input)
        if not 0 < len(inputs) <= MOST_INPUTS or not all(inputs):
            raise ApiError(
                400, f"`input` takes 1 to {MOST_INPUTS} texts or lists of tokens, none empty.", param="input"
            )
        return inputs


def embedding_routes(desk: Desk) -> APIRouter:
    """The route."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/embeddings", **describes(EmbeddingRequest, EmbeddingList))
    async def embeddings(request: Request) -> Response:
        asked = await read_body(request, EmbeddingRequest)
        return await unless_disconnected(request, embed(desk, asked))

    return routes


async def embed(desk: Desk, asked: EmbeddingRequest) -> EmbeddingList:
    """The whole response; every text is a question of its own, so that answers go on between them."""
    stage, read = desk.stage_of(asked.model), 0
    vectors = []
    for text in asked.inputs():
        tokens, vector = await desk.ask(stage, partial(vector_of, text=text), read=itemgetter(0))
        read += tokens
        vectors.append(shortened(vector, asked.dimensions))
    packed = asked.encoding_format == "base64"
    return {
        "object": "list",
        "model": asked.model or desk.keeper.name,
        "data": [
            {"object": "embedding", "index": index, "embedding": in_base64(vector) if packed else vector}
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": read, "total_tokens": read},
    }


def vector_of(voice: ModelVoice, text: str | Sequence[int]) -> tuple[int, list[float]]:
    """How many tokens were read, and the mean state over those of the text: a document's beginning has no say."""
    try:
        tokens = prompt_ids(voice, text, bos=isinstance(text, str))
    except ApiError as error:
        error.param = "input"
        raise
    return len(tokens), voice.embed(tokens, skip=int(isinstance(text, str)))


def shortened(vector: list[float], dimensions: int | None) -> list[float]:
    """The first numbers, of length 1 again."""
    if dimensions is not None and dimensions > len(vector):
        raise ApiError(400, f"`dimensions` is at most the model's width, {len(vector)}.", param="dimensions")
    kept = vector[:dimensions]
    length = math.sqrt(sum(number * number for number in kept)) or 1.0
    return [number / length for number in kept]


def in_base64(vector: Sequence[float]) -> str:
    """Little-endian float32, as the official client asks for it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
