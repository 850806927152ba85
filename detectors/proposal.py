"""Proposed kinds and roles for data that nobody has described yet.

Idea: numbers are numeric, truth values boolean, text a category, unless the values are identifiers, which are different
in every event and would alarm for ever: text with more than 50,000 levels, or of which more than half of the values
were seen once, and whole numbers that rise by the same step from row to row. Each proposal says why; a person decides.

Cost: one pass over the values, 0.1 us each.

Neighbours: `reference` offers it; `tidemark fit` prints it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from detectors.rows import Column, Kind, Role, Values, as_levels, as_numbers

#: More levels than this are an identifier, whatever their counts; also the bound on a category's memory.
LEVELS_MAX = 50_000
#: Names that say their role; everything else is proposed as an input.
_ROLE_OF_NAME: dict[str, Role] = {
    "prediction": "prediction", "predicted": "prediction", "score": "score", "probability": "score",
    "predicted_probability": "score", "label": "label", "target": "label", "path": "path", "route": "path",
}


@dataclass(frozen=True, slots=True)
class Proposal:
    """A column as proposed, and why, in words for a person; `warning` when somebody should look."""

    column: Column
    reason: str
    warning: bool = False


def propose(data: Mapping[str, Values]) -> tuple[Proposal, ...]:
    """A proposal for every column of raw data: arrays, or sequences of numbers, truth values, text and None."""
    return tuple(_propose(name, values) for name, values in data.items())


def _propose(name: str, values: Values) -> Proposal:
    role = _ROLE_OF_NAME.get(name.lower(), "input")
    kind = _kind(values)
    if kind == "numeric":
        steps = np.diff(as_numbers(values)[:LEVELS_MAX])
        if len(steps) > 1 and steps[0] != 0 and (steps == steps[0]).all():
            return Proposal(Column(name, kind, "ignored"), f"moves by {steps[0]:g} every row: a counter", warning=True)
        return Proposal(Column(name, kind, role), "numbers")
    if kind == "boolean":
        return Proposal(Column(name, kind, role), "truth values")
    counts = Counter(as_levels(values))
    counts.pop(None, None)
    once, events = sum(count == 1 for count in counts.values()), counts.total()
    if len(counts) > LEVELS_MAX or 2 * once > events:
        return Proposal(Column(name, "category", "ignored"),
                        f"{len(counts)} levels in {events} values, {once} of them seen once: an identifier", warning=True)
    reason = f"text with {len(counts)} levels" if counts else "no value at all"
    return Proposal(Column(name, "category", role), reason, warning=not counts)


def _kind(values: Values) -> Kind:
    """The kind that the values' types speak for; anything mixed with text is a category."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        return "boolean" if values.dtype.kind == "b" else "numeric" if values.dtype.kind in "iuf" else "category"
    kinds = {type(value) for value in values if value is not None}
    if kinds and kinds <= {bool, np.bool_}:
        return "boolean"
    return "numeric" if kinds and kinds <= {int, float, np.float64, np.int64} else "category"
