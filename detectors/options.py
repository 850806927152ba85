"""Options of detectors by name, checked before anything is made of them: one line that says where, expected and got.

Neighbours: `streaming` and `streaming_river` ask; an error here is a ValueError whose first word is the option's place.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

import numpy as np


def known_options(name: str, options: Iterable[str], known: list[str]) -> None:
    """ValueError where an option is none of the known, naming the nearest."""
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name}.{option}: expected one of the options {', '.join(known)}, got an unknown one{meant}")


def within(where: str, value: object, low: float, high: float, *, closed: bool = False) -> float:
    """The number, if it lies between the bounds; a ValueError of one line if not."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if number and (low <= value <= high if closed else low < value < high):  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    if math.isinf(high):
        bounds = f"above {low:g}"
    else:
        bounds = f"from {low:g} to {high:g}" if closed else f"between {low:g} and {high:g}"
    raise ValueError(f"{where}: expected a number {bounds}, got {value!r}")
