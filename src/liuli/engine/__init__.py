"""Weights to text, fast.

In: a model (tokens to logits, with a cache it is handed), a tokenizer, prompts as tokens or messages.
Out: tokens one by one as they may be shown, or whole answers, of one prompt or a batch of different ones.
It does not know how the model computes, how it was trained, who asks, or what HTTP is.
"""

from liuli.engine.answer import Alternative, Answer, Ended, StoppedBy, Token
from liuli.engine.cache import KeyValueCache
from liuli.engine.chat import MAX_CALLS, Event, Turn, reply, reply_many, turns
from liuli.engine.constraints import Constraint, check
from liuli.engine.engine import Engine, Request
from liuli.engine.loaded import Model, pick_device
from liuli.engine.sampling import Sampling
from liuli.engine.stops import TextStream
from liuli.engine.tools import TOOLS, Tool, calculate, number_text

__all__ = [
    "MAX_CALLS",
    "TOOLS",
    "Alternative",
    "Answer",
    "Constraint",
    "Ended",
    "Engine",
    "Event",
    "KeyValueCache",
    "Model",
    "Request",
    "Sampling",
    "StoppedBy",
    "TextStream",
    "Token",
    "Tool",
    "Turn",
    "calculate",
    "check",
    "number_text",
    "pick_device",
    "reply",
    "reply_many",
    "turns",
]
