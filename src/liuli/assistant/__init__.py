"""assistant: what people say of a model's answers, kept and handed on to training.

Comes in: prompts, the answers that were shown, and a person's word on them: better, best to worst, corrected, thumb up.
Goes out: one store of all of it, and of chats; .jsonl of comparisons, good answers and thumbs that `liuli.text` reads.
It does not know how an answer is made, nor what a page looks like; it needs no torch.
"""

from liuli.assistant.chats import Chats
from liuli.assistant.judgements import Candidate, Exported, Judgement, Judgements, default_store, export, lines_of
from liuli.assistant.prompts import Prompts, read_prompts
from liuli.assistant.store import Store

__all__ = ["Candidate", "Chats", "Exported", "Judgement", "Judgements", "Prompts", "Store"]
__all__ += ["default_store", "export", "lines_of", "read_prompts"]
