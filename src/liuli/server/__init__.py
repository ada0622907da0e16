"""server: HTTP.

Comes in: a model folder, or a run folder that may still be training. Goes out: OpenAI's chat API, Liuli's own API and
the web page, on this machine only unless told otherwise. It does not know how an answer is made, nor how a run is.
"""

from liuli.server.app import create_app
from liuli.server.serve import PORT, serve
from liuli.server.voices import Ended, Keeper, Voice

__all__ = ["PORT", "Ended", "Keeper", "Voice", "create_app", "serve"]
