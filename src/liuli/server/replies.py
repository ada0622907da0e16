"""What the OpenAI API sends, as types: checked by mypy where it is made, and shown in /openapi.json."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict


class ErrorBody(TypedDict):
    """type is the kind, param the field at fault, code a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorOut(TypedDict):
    """Every error."""

    error: ErrorBody


class ModelOut(TypedDict):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    """GET /v1/models."""

    object: Literal["list"]
    data: list[ModelOut]


class Usage(TypedDict):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class FunctionOut(TypedDict):
    """A function that the model calls; its arguments are JSON text."""

    name: str
    arguments: str


class CallOut(TypedDict):
    """A call for the client to run."""

    id: str
    type: Literal["function"]
    function: FunctionOut


class OtherToken(TypedDict):
    """A token and the natural logarithm of its probability, before temperature and filters."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(OtherToken):
    """A token of the answer, with what else could have stood there."""

    top_logprobs: list[OtherToken]


class ChatLogprobs(TypedDict):
    """Of one choice."""

    content: list[TokenLogprob]
    refusal: None


class AnswerMessage(TypedDict):
    """The answer. steps: the calls that the server ran itself, and their results."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[CallOut]]
    steps: NotRequired[list[dict[str, Any]]]


class ChatChoice(TypedDict):
    """One of n answers. seed: with it, and n 1, the same answer is written again."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    seed: int


class ChatCompletion(TypedDict):
    """POST /v1/chat/completions without `stream`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class TextLogprobs(TypedDict):
    """Of a completion, one entry a token; None where nothing came before."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(TypedDict):
    """One completion of one prompt."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    seed: int


class TextCompletion(TypedDict):
    """POST /v1/completions without `stream`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class EmbeddingUsage(TypedDict):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingOut(TypedDict):
    """A vector of length 1, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(TypedDict):
    """POST /v1/embeddings."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingOut]
    usage: EmbeddingUsage


class Tokenised(TypedDict):
    """POST /tokenize. token_strs: the text of each token."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str]


class Detokenised(TypedDict):
    """POST /detokenize; `prompt` is vLLM's word for the text, `content` is llama.cpp's."""

    prompt: str
    content: str


class Templated(TypedDict):
    """POST /apply-template: the conversation as the model reads it, control tokens by their names."""

    prompt: str
    tokens: list[int]


class TokenizerInfo(TypedDict):
    """GET /tokenizer_info, as lm-eval asks of vLLM."""

    tokenizer_class: str
    vocab_size: int
    bos_token: str
    eos_token: str
    pad_token: str
    chat_template: str


class ResponseOut(TypedDict):
    """A response of /v1/responses; the whole of it is OpenAI's, these are the fields that always tell something."""

    id: str
    object: Literal["response"]
    created_at: float
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    usage: dict[str, Any] | None


class Deleted(TypedDict):
    """DELETE /v1/responses/{id}."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputTokens(TypedDict):
    """POST /v1/responses/input_tokens."""

    object: Literal["response.input_tokens"]
    input_tokens: int
