"""server: HTTP.

Comes in: a model folder, or a run folder that may still be training. Goes out: OpenAI's chat API, Liuli's own API and
the web page, on this machine only unless told otherwise. It does not know how an answer is made, nor how a run is.

This door is light: the engine is imported when serving begins, after the port is bound, so that a port already taken is
told at once and a browser that comes early waits instead of failing. `create_app` is in `liuli.server.app`.
"""

from liuli.server.serve import PORT, end_with_input, judgements, keys_in, label, list_keys_here, serve

__all__ = ["PORT", "end_with_input", "judgements", "keys_in", "label", "list_keys_here", "serve"]
