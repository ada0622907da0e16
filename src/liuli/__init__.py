"""Liuli 琉璃: a ChatGPT one can build, use and see through."""

__version__ = "0.1.0"
