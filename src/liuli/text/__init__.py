"""Text to rows: documents and conversations become rows of tokens that a model can be trained on.

In: files of text and of conversations, in the formats people have. Out: a tokenizer, rows of T+1 tokens on disk, and
batches of them; the rendering of messages to tokens for training and serving alike. Knows nothing of models or torch.
"""

from liuli.text.chat import Conversation, Message, Rendered, ToolCall, as_messages, parse_answer, render, render_many
from liuli.text.clean import Rules
from liuli.text.corpus import encode_documents
from liuli.text.formats import read_conversations
from liuli.text.loader import Batch, Loader
from liuli.text.preferences import (
    Judged,
    Preference,
    Task,
    preference_line,
    read_judged,
    read_preferences,
    read_tasks,
)
from liuli.text.rows import Rows, fit_conversation, pack_conversations, pack_documents
from liuli.text.sources import Document, ReadReport, Source, find_files, read_documents
from liuli.text.tokenizer import SPECIALS, Tokenizer

__all__ = [
    "SPECIALS",
    "Batch",
    "Conversation",
    "Document",
    "Judged",
    "Loader",
    "Message",
    "Preference",
    "ReadReport",
    "Rendered",
    "Rows",
    "Rules",
    "Source",
    "Task",
    "Tokenizer",
    "ToolCall",
    "as_messages",
    "encode_documents",
    "find_files",
    "fit_conversation",
    "pack_conversations",
    "pack_documents",
    "parse_answer",
    "preference_line",
    "read_conversations",
    "read_documents",
    "read_judged",
    "read_preferences",
    "read_tasks",
    "render",
    "render_many",
]
