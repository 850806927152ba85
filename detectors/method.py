"""What a detector is called and what it takes: one entry of the catalogue of methods.

Idea: a name in the configuration (`psi`, `evidently:psi`, `river:ADWIN`, `mmd`) is looked up once, at start, and the
entry says which columns it fits, what it needs of the stream and how its numbers read. A method that does not fit a
column's kind is refused there, not answered with a number that means nothing.

Invariant: one sense everywhere, larger is more drift; a p-value is handed on as -log10 p.

Cost: none; these are constants.

Neighbours: `methods` is the catalogue of all of them; `distances` and `tests` compute from counts, `parity` and
`kernels` from a sample of rows, `streaming` from a series of numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What a method is computed from: binned counts of a window, a sample of raw rows, or one number after another.
Source = Literal["counts", "sample", "series"]
NUMERIC = frozenset({"numeric"})
LEVELS = frozenset({"category", "boolean"})
ANY = NUMERIC | LEVELS


@dataclass(frozen=True, slots=True)
class Method:
    """One detector by name.

    source    : what it is computed from
    unit      : unit and range of its number, in words: "nats, 0 and up", "share of events, 0 to 1", "-log10 p"
    kinds     : column kinds that it is defined for
    joint     : it takes all columns together and gives one number
    threshold : the number from which on its own authors call it drift; None where it has no such default
    help      : one exact sentence
    """

    name: str
    source: Source
    unit: str
    kinds: frozenset[str]
    help: str
    joint: bool = False
    threshold: float | None = None
