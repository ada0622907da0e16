"""The desk where both APIs hand in a question: it finds the model, fits the question to it, streams the answer.

In: messages, sampling, names of tools, a stage (none: the newest model). Out: Started, then what the voice says, ending
in Ended. Raises ApiError: before Started when the question cannot be answered, later when the model breaks. It knows
nothing of wire formats.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from liuli.assistant.voices import Ended, Event, Voice
from liuli.engine import Sampling, Token
from liuli.errors import LiuliError
from liuli.server.errors import ApiError
from liuli.server.voices import Keeper
from liuli.server.worker import Busy, Worker
from liuli.text import Message


@dataclass(frozen=True)
class Started:
    """The first event: the prompt's length, how many front messages were left out, the seed, the model that answers.

    bytes_of: the bytes that a token of this model stands for.
    """

    prompt_tokens: int
    left_out: int
    seed: int
    model: dict[str, Any]
    bytes_of: Callable[[int], bytes]


class Desk:
    """One keeper of models, one worker. before: called in the worker's thread when an answer begins."""

    def __init__(self, keeper: Keeper, worker: Worker, before: Callable[[], object] = lambda: None) -> None:
        self.keeper, self.worker, self.before = keeper, worker, before

    async def answer(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        tools: Sequence[str],
        *,
        stage: str = "",
        trim: bool = False,
    ) -> AsyncIterator[Started | Event]:
        """The answer of the newest model, or of a stage's, as it comes.

        With `trim`, old turns are left out of a conversation that is too long.
        """
        seed = secrets.randbits(31) if sampling.seed is None else sampling.seed

        def work() -> Generator[Started | Event, None, None]:
            self.before()
            found = self.keeper.voice(stage)
            if found is None:
                raise missing(self.keeper, stage)
            model, voice = found
            kept, prompt_tokens = fit(voice, messages, trim)
            room = voice.context - prompt_tokens
            fitted = replace(sampling, seed=seed, max_tokens=min(sampling.max_tokens, room))
            yield Started(prompt_tokens, len(messages) - len(kept), seed, model.about(), voice.bytes_of)
            yield from voice.reply(kept, fitted, tools)

        stream = self.worker.run(work)
        try:
            async for event in stream:
                if isinstance(event, Token | Ended) and event.stopped_by == "error":  # its figures are no numbers
                    raise ApiError(500, "The model computes no numbers any more (NaN).", code="model_error")
                yield event
        except Busy:
            raise ApiError(
                429, "Too many answers are waited for; try again in a moment.", code="rate_limit_exceeded"
            ) from None
        except LiuliError as error:
            raise ApiError(500, error.what, code="model_error") from error
        finally:
            await stream.aclose()  # type: ignore[attr-defined]


def missing(keeper: Keeper, stage: str) -> ApiError:
    """Why there is no such model to answer."""
    if not stage:
        return ApiError(503, "The model is still learning to speak; its first words come soon.", code="still_learning")
    have = ", ".join(repr(model.stage) for model in keeper.models()) or "none yet"
    message = f"There is no model of a stage {stage!r} to talk to; there is: {have}."
    return ApiError(404, message, param="model", code="model_not_found")


def fit(voice: Voice, messages: Sequence[Message], trim: bool) -> tuple[list[Message], int]:
    """The messages that fit into the model's context with room for an answer, and their number of tokens.

    With `trim` the oldest turns go first; the system message and the last question stay.
    """
    kept = list(messages)
    least_room = 1 if not trim else max(1, min(64, voice.context // 4))
    while (tokens := voice.prompt_tokens(kept)) > voice.context - least_room:
        first = 1 if kept[0].role == "system" else 0
        turn = next((i for i in range(first + 1, len(kept)) if kept[i].role == "user"), None)
        if not trim or turn is None:
            raise ApiError(
                400,
                f"The messages are {tokens} tokens long; this model reads at most {voice.context} with its answer.",
                param="messages",
                code="context_length_exceeded",
            )
        del kept[first:turn]
    return kept, tokens
