"""How good a model is. Comes in: a model folder, the curriculum's questions, held-out text, a run folder. Goes out:
figures with intervals (`eval.json`) and a page for people (`report.html`). Does not know how the model was trained.
"""

from liuli.evals.command import eval_with_progress
from liuli.evals.evaluate import evaluate, read_held_out
from liuli.evals.headline import HEADLINES, Headline, headline
from liuli.evals.proportion import score, wilson
from liuli.evals.report import write_report
from liuli.evals.show import show

__all__ = [
    "HEADLINES",
    "Headline",
    "eval_with_progress",
    "evaluate",
    "headline",
    "read_held_out",
    "score",
    "show",
    "wilson",
    "write_report",
]
