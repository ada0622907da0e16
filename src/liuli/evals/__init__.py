"""How good a model is. Comes in: a model folder, the curriculum's questions, held-out text, a run folder. Goes out:
figures with intervals (`eval.json`) and a page for people (`report.html`). Does not know how the model was trained.
"""

from liuli.evals.headline import HEADLINES, Headline, headline
from liuli.evals.proportion import score, wilson
from liuli.evals.report import write_report

__all__ = ["HEADLINES", "Headline", "headline", "score", "wilson", "write_report"]
