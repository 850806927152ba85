"""Columns that become several numeric rows: embeddings by their axes, texts by a few figures.

Idea: a vector or a text has no bins of its own. What is learnt of such columns on one half of the reference (directions,
vocabulary) turns every event's value into a handful of numbers, and from there on those are numeric rows like any other:
they cost as much, are counted, scanned and shown in the same way, and stand in the same budget.

Invariant: an event's numbers do not depend on the batch that it came in.

Cost: that of the expansion's matrix product or word count, see there, and 6-7 ns per event and row.

Neighbours: `embedding` and `text` are the two kinds; `reference` fits, keeps and stores them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from detectors.embedding import Embedding
from detectors.text import Text

Floats = NDArray[np.float64]


class Expansion(Protocol):
    """What turns one column into several numeric rows."""

    @classmethod
    def fit(cls, values: Any, half_a: NDArray[np.bool_]) -> Self:
        """Learn from the values that `half_a` (n,) marks; `values` are (n, dimension) float64, or texts and None."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the rows are called, behind the column's name."""

    def rows(self, values: Any) -> Floats:
        """The rows' values, float64 (n, rows), NaN for missing; the same for an event in every batch."""

    def encode(self) -> dict[str, Any]:
        """Everything learnt, ready for JSON, exactly."""

    @classmethod
    def decode(cls, item: Mapping[str, Any]) -> Self:
        """What `encode` wrote; ValueError, one line, for anything else."""


#: Column kinds that are expanded.
EXPANDED: Mapping[str, type[Expansion]] = {"embedding": Embedding, "text": Text}


def encode_expansions(expansions: Mapping[str, Expansion], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Expansions by column, ready for JSON."""
    return {name: {"kind": kinds[name], **expansion.encode()} for name, expansion in expansions.items()}


def decode_expansions(items: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, Expansion]:
    """Expansions by column; ValueError where one is lacking or of another kind than its column."""
    expected: Sequence[str] = sorted(name for name, kind in kinds.items() if kind in EXPANDED)
    if sorted(items) != expected:
        raise ValueError(f"expected expansions of the columns {expected}, got {sorted(items)}")
    for name, item in items.items():
        if item.get("kind") != kinds[name]:
            raise ValueError(f"expected an expansion of kind {kinds[name]} for column {name!r}, got {item.get('kind')!r}")
    return {name: EXPANDED[kinds[name]].decode(item) for name, item in items.items()}
