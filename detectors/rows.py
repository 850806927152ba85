"""One row of the reference: a watched column with its bins, its counts and everything the scan needs of them.

Idea: a row is fitted alone, from one column's values in time order, in the order that the formulas need: bins, counts,
the allowance for what the reference could not show (Good-Turing), directions, design effects, centres, and only then
the wider allowance of dependent rows. Rows that are made of columns (joint rows, the axes of an embedding, the figures of a text)
have the same form; they are counted on the half of the events that they were not learnt on.

Invariant: a row is a pure function of its column's values and of whether they are in time order.

Cost: about 0.3 us a value for numbers, 0.2 us for categories; 10 to 30 kB a row.

Neighbours: `binning`, `directions`, `dependence` do the parts; `reference` pads rows into matrices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from detectors.binning import Binning, CategoryBinning, NumericBinning
from detectors.dependence import DesignEffect, design_effect
from detectors.directions import DIRECTIONS, directions
from detectors.distances import simulated_null

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Values = NDArray[np.generic] | Sequence[object]

Kind = Literal["numeric", "category", "boolean", "embedding", "text"]
Role = Literal["input", "prediction", "score", "path", "label", "ignored"]
KINDS: tuple[str, ...] = get_args(Kind)
ROLES: tuple[str, ...] = get_args(Role)
#: Roles that no reference watches: labels come late and by another road.
UNWATCHED = frozenset({"label", "ignored"})


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the events: its name, kind and role."""

    name: str
    kind: Kind
    role: Role = "input"

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {self.role})"


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row of the reference matrices.

    counts    : int64, raw reference events of the fine bins
    positions : float64, where a fine bin lies on the column's axis (mean of its reference values); empty for categories
    sd, minimum, maximum : of the finite reference values; NaN for categories
    nulls     : mean and 95 % quantile of distances without drift at unit variance, by name (`distances.simulated_null`)
    c0        : float64, reference events of the scan bins, allowances included
    weights   : float64, shape (scan bins, 4), the directions     centre : (4,), their reference means
    effect    : design effects
    """

    name: str
    binning: Binning
    counts: Ints
    positions: Floats
    sd: float
    minimum: float
    maximum: float
    nulls: dict[str, tuple[float, float]]
    c0: Floats
    weights: Floats
    centre: Floats
    effect: DesignEffect

    @property
    def is_numeric(self) -> bool:
        """Whether the bins have an order of their own."""
        return isinstance(self.binning, NumericBinning)

    @property
    def deff(self) -> float:
        """The row's design effect: the larger one of location and scale."""
        return float(self.effect.g_directions[:2].max())


def fit_row(column: Column, values: Values, *, ordered: bool, counted: Bools | None = None) -> Row:
    """The row of one column from its reference values.

    ordered : the values are in time order
    counted : bool (n,), the values that bins and counts rest on; all, unless the column was itself learnt on the others.
              How dependent events are is measured on all of them: half of them has gaps
    """
    binning: Binning
    positions, (sd, low, high), once = np.empty(0), (np.nan,) * 3, 0
    if column.kind == "numeric":
        everything = as_numbers(values)
        numbers = everything if counted is None else everything[counted]
        binning = numeric = NumericBinning.fit(numbers)
        codes = binning.codes(numbers)
        finite = numbers[np.isfinite(numbers)]
        positions = _positions(numeric, codes, numbers)
        if len(finite):
            sd, low, high = _sd(finite), float(finite.min()), float(finite.max())
    else:
        levels = as_levels(values)
        occurrences = Counter(levels)
        binning = category = CategoryBinning.fit(occurrences)
        codes = category.codes(levels)
        once = sum(count == 1 for level, count in occurrences.items() if level is not None)
    counts = np.bincount(codes, minlength=binning.bins)
    scan_codes = binning.scan_of_fine[codes]
    in_order = scan_codes if counted is None else binning.scan_of_fine[numeric.codes(everything)]
    raw = np.bincount(scan_codes, minlength=binning.scan_bins)
    c0 = raw.astype(np.float64)
    # An empty bin of probability 0 would make one event infinite evidence (Good-Turing: the mass of the unseen).
    if column.kind == "numeric":
        c0[1] += 1
        c0[-1] += 1
    else:
        c0[-1] += once + 1
    # One filled bin has no location: only its bins are tested, so any other value shows at once.
    filled = np.count_nonzero(raw[1:] if column.kind == "category" else raw[2:-1])
    weights = directions(c0) if filled > 1 else np.zeros((len(c0), DIRECTIONS))
    p = c0 / c0.sum()
    effect = _independent(len(c0)) if not ordered else design_effect(in_order, weights, p, raw)
    centre = p @ weights                            # before the wider allowance below: after it, it would alarm falsely
    if column.kind == "numeric":
        c0[[1, -1]] += effect.g_bins[[1, -1]] - 1   # one effective unseen event instead of one raw event
    nulls = simulated_null(counts, positions, sd)
    return Row(column.name, binning, counts, positions, sd, low, high, nulls, c0, weights, centre, effect)


def _independent(bins: int) -> DesignEffect:
    """The design effect of independent rows."""
    return DesignEffect(np.ones(DIRECTIONS), np.ones(bins), np.full(DIRECTIONS, np.inf), np.full(bins, np.inf))


def _positions(binning: NumericBinning, codes: Ints, numbers: Floats) -> Floats:
    """Mean reference value of every fine bin, shape (bins,); the middle of a bin that the reference left empty."""
    edges, counts = binning.edges, np.bincount(codes, minlength=binning.bins)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.bincount(codes, weights=np.where(np.isfinite(numbers), numbers, 0.0), minlength=binning.bins)
        middles = edges[:-1] + (edges[1:] - edges[:-1]) / 2
        means = np.divide(sums[2:-1], counts[2:-1], out=middles, where=counts[2:-1] > 0)
    # Clipped, because the rounding of a sum may leave a bin of equal values by one float.
    inner = np.clip(np.nan_to_num(means), edges[:-1], np.nextafter(edges[1:], -np.inf))
    return np.concatenate([[0.0, edges[0]], inner, [np.nextafter(edges[-1], -np.inf)]])


def _sd(finite: Floats) -> float:
    """Standard deviation; of values near the end of float64, whose squares are not finite, the largest that is."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.nan_to_num(finite.std(), nan=np.finfo(float).max))


def as_numbers(values: Values) -> Floats:
    """Values as float64; None is NaN."""
    return np.asarray(values, dtype=np.float64)


def as_levels(values: Values) -> list[str | None]:
    """Values as levels: text as it is, True and False as JSON writes them, 3.0 as 3, None and NaN as missing."""
    plain: list[object] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    if set(map(type, plain)) <= {str, type(None)}:
        return cast("list[str | None]", plain)
    return [_level(value) for value in plain]


def _level(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        # pandas turns whole numbers into broken ones as soon as one of them is missing: 3.0 is the level that 3 is.
        return None if value != value else str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)
    return str(value)
