"""Texts to tokens and back, and what the model reads of a conversation: the names are vLLM's and llama.cpp's.

POST /tokenize, /detokenize, /apply-template; GET /tokenizer_info, by which lm-eval finds that it can ask here.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field

from liuli.assistant.voices import ModelVoice
from liuli.server.desk import Desk, check_ids
from liuli.server.errors import ApiError
from liuli.server.openapi import describes
from liuli.server.replies import Detokenised, Templated, Tokenised, TokenizerInfo
from liuli.server.wire import FunctionSpec, Items, MessageIn, Strict, TokenId, ToolIn, read_body, tools_of
from liuli.text import SPECIALS, Message, render


class TokenizeRequest(Strict):
    """A text (`prompt` or `content`) or a conversation. add_special_tokens: `<|bos|>` before a text."""

    model: str = ""
    prompt: str | None = None
    content: str | None = None
    messages: Items[MessageIn] | None = Field(default=None, min_length=1, max_length=2000)
    add_special_tokens: bool = True


class DetokenizeRequest(Strict):
    """Ids to a text."""

    model: str = ""
    tokens: Items[TokenId] = Field(max_length=1_000_000)


class TemplateRequest(Strict):
    """A conversation whose next message is the model's."""

    model: str = ""
    messages: Items[MessageIn] = Field(min_length=1, max_length=2000)
    tools: Items[ToolIn] | None = None

    def told(self) -> list[Message]:
        """The messages as the model is asked, tools declared."""
        specs: list[FunctionSpec] | None = None if self.tools is None else [tool.function for tool in self.tools]
        return tools_of(specs, None, parallel=True).told([message.message() for message in self.messages])


def token_routes(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.post("/tokenize", **describes(TokenizeRequest, Tokenised))
    async def tokenize(request: Request) -> Tokenised:
        asked = await read_body(request, TokenizeRequest)
        given = [value for value in (asked.prompt, asked.content, asked.messages) if value is not None]
        if len(given) != 1:
            raise ApiError(400, "Give one of `prompt`, `content` and `messages`.", param="prompt")
        return await desk.ask(desk.stage_of(asked.model), lambda voice: tokenised(voice, given[0], asked))

    @routes.post("/detokenize", **describes(DetokenizeRequest, Detokenised))
    async def detokenize(request: Request) -> Detokenised:
        asked = await read_body(request, DetokenizeRequest)

        def text(voice: ModelVoice) -> str:
            check_ids(asked.tokens, voice.tokenizer.vocab_size, "tokens")
            return voice.tokenizer.decode(asked.tokens)

        said = await desk.ask(desk.stage_of(asked.model), text)
        return {"prompt": said, "content": said}

    @routes.post("/apply-template", **describes(TemplateRequest, Templated))
    async def apply_template(request: Request) -> Templated:
        asked = await read_body(request, TemplateRequest)

        def templated(voice: ModelVoice) -> Templated:
            tokens = render(asked.told(), voice.tokenizer, answer=True).tokens
            return {"prompt": voice.tokenizer.decode(tokens), "tokens": tokens}

        return await desk.ask(desk.stage_of(asked.model), templated)

    @routes.get("/tokenizer_info", **describes(None, TokenizerInfo))
    async def tokenizer_info() -> TokenizerInfo:
        def info(voice: ModelVoice) -> TokenizerInfo:
            t = voice.tokenizer
            return {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "vocab_size": t.vocab_size,
                "bos_token": SPECIALS[t.bos],
                "eos_token": SPECIALS[t.end],
                "pad_token": SPECIALS[t.pad],
                "chat_template": t.chat_template,
            }

        return await desk.ask("", info)

    return routes


def tokenised(voice: ModelVoice, given: str | list[MessageIn], asked: TokenizeRequest) -> Tokenised:
    """The tokens of a text or of a conversation."""
    t = voice.tokenizer
    if isinstance(given, str):
        tokens = [t.bos] * asked.add_special_tokens + t.encode(given)
    else:
        tokens = render([message.message() for message in given], t, answer=True).tokens
    return {
        "tokens": tokens,
        "count": len(tokens),
        "max_model_len": voice.context,
        "token_strs": [t.decode([token]) for token in tokens],
    }
