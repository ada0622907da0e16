"""A proportion and how far it can be trusted."""

from __future__ import annotations

import math


def wilson(right: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); z: the normal quantile, here of 95%. n = 0: (0, 1)."""
    if n == 0:
        return 0.0, 1.0
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # at none and all the ends are exactly 0 and 1; rounding would leave a crumb
    return (middle - half if right else 0.0), (middle + half if right < n else 1.0)


def score(right: int, n: int) -> dict[str, float | int]:
    """A proportion with everything one needs to judge it: n, right, accuracy, low, high."""
    low, high = wilson(right, n)
    return {"n": n, "right": right, "accuracy": right / n if n else 0.0, "low": low, "high": high}
