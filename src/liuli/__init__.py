"""Liuli 琉璃: a ChatGPT one can build, use and see through.

>>> model = liuli.load("runs/laptop/chat")
>>> model.generate([{"role": "user", "content": "Hi"}], temperature=0).text
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from liuli.engine.loaded import Model as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`liuli.load` brings torch with it, so it is imported when it is first used."""
    if name == "load":
        from liuli.engine.loaded import Model

        return Model
    raise AttributeError(f"module 'liuli' has no attribute {name!r}")
