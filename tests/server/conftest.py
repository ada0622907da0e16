"""Makes `scripted` importable."""
