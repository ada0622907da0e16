"""Text to rows: documents and conversations become rows of tokens that a model can be trained on.

In: files of text and of conversations, in the formats people have. Out: a tokenizer, rows of T+1 tokens on disk, and
batches of them; the rendering of messages to tokens for training and serving alike. Knows nothing of models or torch.
"""

from liuli.text.chat import (
    Conversation,
    Message,
    Rendered,
    Span,
    ToolCall,
    as_messages,
    parse_answer,
    render,
    render_many,
)
from liuli.text.loader import Batch, Loader
from liuli.text.rows import Rows, pack_conversations, pack_documents
from liuli.text.tokenizer import SPECIALS, Tokenizer

__all__ = [
    "SPECIALS",
    "Batch",
    "Conversation",
    "Loader",
    "Message",
    "Rendered",
    "Rows",
    "Span",
    "Tokenizer",
    "ToolCall",
    "as_messages",
    "pack_conversations",
    "pack_documents",
    "parse_answer",
    "render",
    "render_many",
]
