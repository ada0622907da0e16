"""The built-in classroom: exercises that know their right answer, in Chinese and English.

In come a seed and a size; out come text, conversations and tests, made from a hand-written knowledge base, invented
people and grammars, the same to the byte each time. It knows nothing of tokens, models or training.
"""

from liuli.curriculum.judge import judge
from liuli.curriculum.make import make, seed_of
from liuli.curriculum.preferences import key_of, practice, prefers, worth
from liuli.curriculum.skills import skills

__all__ = ["judge", "key_of", "make", "practice", "prefers", "seed_of", "skills", "worth"]
