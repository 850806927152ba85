"""One window against one reference: any number of distances and tests by name, in one pass.

Idea: most methods need the same few things (shares, smoothed shares, steps of the cumulative shares, the two-by-two
table), so a `Comparison` computes each once, when it is first asked for, and all eighteen together cost little more than
the dearest. `applies` says on which rows a method is defined, `bands` what it reads there without drift in a window of
that size, `approximate` where that is only nearly true.

Invariants: every answer has one number per row, in the order of the reference's rows, derived rows included; a row's
number depends on nothing in other rows; a missing answer is NaN, never 0. Distances take the reference's counts as they
are; bands and chi-square also know what a reference happened to miss (`_with_unseen`).

Cost: 250 ns per cell for the six that are displayed (1.1 ms for 33 rows of 131 bins, one busy core), 1 us for all
eighteen; bands 5 to 170 ns per cell each.

Neighbours: formulas are in `distances`, `tests` and `null_laws`; `methods` is the catalogue that configuration reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detectors import distances, tests
from detectors.distances import EVIDENCE
from detectors.null_laws import has_values_for_bins, largest_null, scaled_point, sum_null

if TYPE_CHECKING:
    from detectors.reference import Reference

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Counts = NDArray[np.int64] | NDArray[np.float64]
Bools = NDArray[np.bool_]
Band = tuple[Floats, Floats]

#: What `display` computes, in the order it is shown.
DISPLAYED = ("psi", "ks", "js", "wasserstein", "tv", "chi2")
#: Mean and 95 % point of -log10 p where p is uniform.
_LOG10_E, _EVIDENCE_95 = float(np.log10(np.e)), float(-np.log10(0.05))
#: Events that a group of neighbouring bins expects on the smaller side, so that few groups stay below EXPECTED_MIN.
_GROUP_EVENTS = 8


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """What every comparison with one reference needs of it.

    counts (J, B) with the unseen allowed for     middle (J, B) cumulative share of the middle of a bin, by these counts
    places (J, B - 1) see `_places`               filled (J,) bins with values         regular (J,) bins of present values
    shares, smoothed (J, B), present (J, B - 1)   shares of all bins, smoothed, and of present values
    """

    counts: Counts
    middle: Floats
    places: Floats
    filled: Ints
    regular: Ints
    shares: Floats
    smoothed: Floats
    present: Floats

    @classmethod
    def of(cls, reference: Reference) -> _Prepared:
        """From the reference's matrices."""
        ref = reference.arrays
        counts = _with_unseen(reference)
        below = np.cumsum(counts, axis=1) - counts[:, :1]
        return cls(counts=counts, middle=np.clip(_over(below - counts / 2, below[:, -1:]), 0.0, 1.0), places=_places(reference),
                   filled=(ref.counts[:, 1:] > 0).sum(axis=1), regular=ref.fine_live.sum(axis=1) - 1,
                   shares=distances.shares(ref.counts), smoothed=distances.smoothed(ref.counts, ref.fine_live),
                   present=distances.shares(ref.counts[:, 1:]))


#: A reference is used for months and replaced: what is prepared goes with it.
_PREPARED: WeakKeyDictionary[Reference, _Prepared] = WeakKeyDictionary()


def _prepared(reference: Reference) -> _Prepared:
    found = _PREPARED.get(reference)
    if found is None:
        found = _PREPARED[reference] = _Prepared.of(reference)
    return found


@dataclass(frozen=True, eq=False)
class Comparison:
    """A window's counts beside the reference's, with what several distances share, each computed once when asked for.

    counts : fine counts of the window, shape (J, B), missing first
    """

    reference: Reference
    counts: Counts

    @cached_property
    def shares(self) -> tuple[Floats, Floats]:
        """p and q over all bins, missing included."""
        return _prepared(self.reference).shares, distances.shares(self.counts)

    @cached_property
    def smoothed(self) -> tuple[Floats, Floats, Floats]:
        """P, Q and ln(Q / P); NaN in rows where a side has no events."""
        P, Q = _prepared(self.reference).smoothed, distances.smoothed(self.counts, self.reference.arrays.fine_live)
        Q[self.counts.sum(axis=1) == 0] = np.nan
        return P, Q, np.log(Q / P)

    @cached_property
    def present(self) -> tuple[Counts, Counts]:
        """Counts of both sides without the missing values."""
        return self.reference.arrays.counts[:, 1:], self.counts[:, 1:]

    @cached_property
    def grouped(self) -> tuple[Counts, Counts]:
        """Counts of both sides for chi-square: unseen levels allowed for, thin neighbours on an axis put together."""
        return _grouped(self.reference, self.counts)

    @cached_property
    def steps(self) -> Floats:
        """Sizes of the steps between the two cumulative shares of present values."""
        return np.abs(np.cumsum(distances.shares(self.present[1]) - _prepared(self.reference).present, axis=-1))

    @cached_property
    def table(self) -> tuple[Counts, Counts]:
        """Events of the reference's first value and all other present ones, (J, 2) of either side."""
        return _first_and_others(self.reference, self.present[0]), _first_and_others(self.reference, self.present[1])

    @cached_property
    def is_small(self) -> Bools:
        """Rows with so few events that the exact test of two shares serves, and not the normal law."""
        small: Bools = self.present[0].sum(axis=1) + self.present[1].sum(axis=1) < tests.FISHER_EVENTS_MAX
        return small

    @property
    def places(self) -> Floats:
        """Places of the bins of `present`, in reference s.d."""
        return _prepared(self.reference).places

    @property
    def g(self) -> Floats:
        """Design effects."""
        return self.reference.deff


def _evidence(test: Callable[[Comparison], Floats]) -> Callable[[Comparison], Floats]:
    return lambda one: tests.minus_log10(test(one))


#: Name -> its number for every row, whether or not it is defined there.
_VALUES: dict[str, Callable[[Comparison], Floats]] = {
    "psi": lambda one: distances.jeffreys(*one.smoothed),
    "kl": lambda one: distances.divergence(*one.smoothed),
    "js": lambda one: distances.jensen_shannon(*one.shares),
    "hellinger": lambda one: distances.hellinger_of(*one.shares),
    "tv": lambda one: distances.moved(*one.shares),
    "linf": lambda one: np.abs(one.shares[1] - one.shares[0]).max(axis=-1),
    "ks": lambda one: np.minimum(one.steps.max(axis=-1), 1.0),
    "wasserstein": lambda one: distances.travelled(one.steps, one.places),
    "wasserstein_plain": lambda one: _in_unit(distances.travelled(one.steps, one.places), one.reference),
    "energy": lambda one: tests.energy_distance(*one.present, one.places),
    "cvm": _evidence(lambda one: tests.cvm(*one.present, one.g).p),
    "anderson": _evidence(lambda one: tests.anderson(*one.present, one.g).p),
    "chi2": _evidence(lambda one: tests.chi2_two_sample(*one.grouped, one.g)[2]),
    "g": _evidence(lambda one: tests.g_test(*one.grouped, one.g)[2]),
    "fisher": _evidence(lambda one: _exact(one)),
    "z": _evidence(lambda one: np.where(one.is_small, np.nan, tests.z_test(*one.table, one.g)[1])),
    "t": _evidence(lambda one: tests.welch(*one.present, one.places, one.g)[2]),
    "mannwhitney": _evidence(lambda one: tests.mann_whitney(*one.present, one.g)[1]),
}
_ORDERED = frozenset({"ks", "cvm", "anderson", "mannwhitney"})
_PLACED = frozenset({"wasserstein", "wasserstein_plain", "energy", "t"})
_TWO_LEVELS = frozenset({"fisher", "z"})
#: Methods that put thin neighbours together first.
_GROUPED = frozenset({"chi2", "g"})
#: Methods that count missing values as one more bin.
_EVERY_BIN = frozenset(_VALUES) - _ORDERED - _PLACED - _TWO_LEVELS


def applies(name: str, reference: Reference) -> Bools:
    """Rows on which a method is defined, shape (J,); its number is NaN on all others, whatever the window.

    Order needs a numeric row; distances along the axis also two different reference values; fisher and z at most two.
    """
    ref = reference.arrays
    filled = _prepared(reference).filled
    rows: Bools = np.ones(len(ref.counts), bool)
    if name in _TWO_LEVELS:
        rows = (filled >= 1) & (filled <= 2)
    elif name in _PLACED:
        rows = ref.numeric & (ref.sd > 0) & (filled > 1)
    elif name in _ORDERED:
        rows = ref.numeric.copy()
    return rows


def evaluate(names: Iterable[str], reference: Reference, counts: Counts, events: int) -> dict[str, Floats]:
    """Methods of the catalogue that are computed from counts, by name, each of shape (J,), in one pass.

    counts : fine counts of the window, shape (J, B), missing first      events : in the window
    returns: distances in their units, tests as -log10 p, 0 to 300; NaN where a method is not defined on a row, and where
             window or reference hold no event that it looks at
    raises : KeyError for a name that is not computed from counts; `methods.method` says it better, at start
    """
    one = Comparison(reference, counts)
    known = events > 0
    return {name: np.where(applies(name, reference) & known, _VALUES[name](one), np.nan) for name in names}


def bands(names: Iterable[str], reference: Reference, events: float) -> dict[str, Band]:
    """What methods by name read without drift in a window of `events` events: mean and 95 % point, each (J,).

    Means of js, hellinger and energy are those of the square, as `corrected` takes them. Tests, whose p is uniform, have
    0.434 and 1.301 in every window. NaN where a row has no such method, and for an empty window.
    """
    found, unknown = {}, np.full(len(reference.records), np.nan)
    for name in names:                                          # turns: the methods asked for
        rows = applies(name, reference)
        mean, high = _band(name, reference, events) if events > 0 else (unknown, unknown)
        found[name] = np.where(rows, mean, np.nan), np.where(rows, high, np.nan)
    return found


def approximate(name: str, reference: Reference, events: float) -> Bools:
    """Rows whose 95 % band, or p-value, is only near its level in a window of `events` events, shape (J,).

    Sums over bins: more than a fifth of the filled bins expect under 5 events on the smaller side (Cochran 1954), or
    levels that the reference missed, which no count can tell, are 0.5 % of events. Locations and shares: under 5 events
    of the smaller side lie outside the fullest bin. fisher is conservative everywhere, and never approximate.
    """
    raw, counts = reference.arrays.counts, _prepared(reference).counts
    m = raw.sum(axis=1)
    size = np.minimum(events / reference.deff, m / reference.deff)[:, None]
    expected = _over(raw, m[:, None]) * size
    if name in _ORDERED | _PLACED | _TWO_LEVELS:
        few: Bools = (size[:, 0] - expected.max(axis=1) < tests.EXPECTED_MIN) & (name != "fisher")
        return few
    thin: Bools = ((expected < tests.EXPECTED_MIN) & (raw > 0)).sum(axis=1) > 0.2 * (raw > 0).sum(axis=1)
    missed: Bools = ~reference.arrays.numeric & ((counts - raw).max(axis=1) > 0.005 * m)
    return missed if name in _GROUPED else thin | missed


def _band(name: str, reference: Reference, events: float) -> Band:
    """`bands` of one name, for all rows, whether or not it is defined there."""
    ref = reference.arrays
    m = ref.counts.sum(axis=1)
    seen = m if name in _EVERY_BIN else ref.counts[:, 1:].sum(axis=1)         # order and tables leave missing values out
    window = events * _over(seen, m)
    if name in EVIDENCE:
        exists = seen > 0
        if name in _TWO_LEVELS:
            exists &= (seen + window < tests.FISHER_EVENTS_MAX) == (name == "fisher")
        return np.where(exists, _LOG10_E, np.nan), np.where(exists, _EVIDENCE_95, np.nan)
    raw, p = ref.counts, np.nan_to_num(distances.shares(_prepared(reference).counts))
    h = np.where(seen > 0, reference.deff * (_over(1.0, window) + _over(1.0, seen)), np.nan)
    if name in ("psi", "kl"):
        P, Q = distances.smoothed(raw, ref.fine_live), distances.smoothed(p * events, ref.fine_live)
        offset = (distances.jeffreys if name == "psi" else distances.divergence)(P, Q, np.log(Q / P))
        mean, high = sum_null(name, p, h, events / (events + distances.PSEUDO_COUNT * ref.fine_live.sum(axis=1)))
        return offset + mean, offset + high
    if name in ("js", "hellinger"):
        offset = (distances.js if name == "js" else distances.hellinger)(raw, p) ** 2
        mean, high = sum_null(name, p, h)
        return offset + mean, np.sqrt(offset + high)
    if name == "energy":
        total, squares = tests.quadratic_law(*tests.cumulative(_prepared(reference).counts[:, 1:]),
                                             2 * np.diff(_prepared(reference).places, axis=-1))
        return total * h, np.sqrt(scaled_point(total, squares) * h)
    unit = np.array([row.nulls.get(name.removesuffix("_plain"), (np.nan, np.nan)) for row in reference.records])
    mean, high = unit[:, 0] * np.sqrt(h), unit[:, 1] * np.sqrt(h)
    if name == "tv":                                           # thin bins: the mean is less than the normal law's
        thin = sum_null(name, p, h)[0] + distances.tv(raw, p)
        return thin, high + thin - distances.tv_null_mean(raw, h)
    if name == "linf":
        high = largest_null(p, h, unit[:, 1])
    elif name == "ks":
        high = np.minimum(high, distances.KS_95 * np.sqrt(h))
    elif name == "wasserstein_plain":
        mean, high = _in_unit(mean, reference), _in_unit(high, reference)
    return mean, high


def display(reference: Reference, counts: Ints, events: int) -> dict[str, Floats]:
    """All distances that are shown of a window, each of shape (J,), in one pass.

    counts : fine counts of the window, shape (J, B)      events : in the window; without any, everything is NaN
    returns: psi (nats), ks (0..1), js (0..1), wasserstein (reference s.d.), tv (0..1), and chi2, the two-sample
             test's -log10 p at the row's design effect, at most 300. Categories have no ks and no wasserstein: NaN
    """
    return evaluate(DISPLAYED, reference, counts, events)


def null_bands(reference: Reference, events: float) -> dict[str, Band]:
    """`bands` of every distance."""
    return bands([name for name in _VALUES if name not in EVIDENCE], reference, events)


def _in_unit(normed: Floats, reference: Reference) -> Floats:
    """Reference s.d. in the column's unit, at most the largest number: between values near it, more is not finite."""
    with np.errstate(over="ignore"):
        return np.minimum(normed * reference.arrays.sd, np.finfo(np.float64).max)


def _places(reference: Reference) -> Floats:
    """Places of the bins but missing in s.d. from the first one, (J, B - 1); padding is where the last bin is."""
    ref = reference.arrays
    sd = np.where(ref.sd > 0, ref.sd, 1.0)[:, None]
    places = np.fmax.accumulate(ref.positions[:, 1:] / sd, axis=1)              # divided first: differences stay finite
    return np.where(ref.numeric[:, None], places - places[:, :1], 0.0)


def _first_and_others(reference: Reference, counts: Counts) -> Counts:
    first = (reference.arrays.counts[:, 1:] > 0).argmax(axis=1)[:, None]
    one = np.take_along_axis(counts, first, axis=1)[:, 0]
    return np.stack([one, counts.sum(axis=1) - one], axis=1)


def _with_unseen(reference: Reference) -> Counts:
    """Reference counts with what a fresh sample of its size would show beside them (Good 1953).

    Levels seen once move from rest to unseen; a number beyond either end is worth one event, unless that end is a value
    that was seen more than once. Taken as 0, what a reference happened to miss is drift in every window.
    """
    ref = reference.arrays
    counts = ref.counts.copy()
    last = ref.fine_live.sum(axis=1) - 1
    rows = np.flatnonzero(~ref.numeric)
    once = ref.c0[rows, ref.live[rows].sum(axis=1) - 1] - 1                     # the scan's allowance is once + 1
    once = np.clip(once, 0, counts[rows, last[rows] - 1]).astype(np.int64)
    counts[rows, last[rows]] += once
    counts[rows, last[rows] - 1] -= once
    rows = np.flatnonzero(ref.numeric)
    values = np.array([has_values_for_bins(row.binning.bins) for row in reference.records])[rows]
    counts[rows, 1] += ~values | (ref.counts[rows, 2] == 1)
    counts[rows, last[rows]] += ~values | (ref.counts[rows, last[rows] - 1] == 1)
    return counts


def _grouped(reference: Reference, counts: Counts) -> tuple[Counts, Counts]:
    """Counts of both sides, (J, B), with neighbouring bins of a numeric row summed until a group expects enough events.

    By the reference alone: its bins hold what they hold by construction, so that choosing by the sum of both sides, as
    for categories, would choose bins where the window has little.
    """
    prepared, bins = _prepared(reference), counts.shape[1]
    before = prepared.counts
    m, events = before[:, 1:].sum(axis=1), counts[:, 1:].sum(axis=1)
    groups = np.maximum(np.minimum(m, events) // _GROUP_EVENTS, 1)
    thin = reference.arrays.numeric & (groups < prepared.regular)
    if not thin.any():
        return before, counts
    groups = groups[:, None]
    group = np.minimum((prepared.middle * groups).astype(np.int64), groups - 1) + 1
    group[:, 0] = 0                                                              # missing stays apart
    group = np.where(thin[:, None], np.minimum(group, bins - 1), np.arange(bins))
    cell = (group + bins * np.arange(len(counts))[:, None]).ravel()
    # Sums of whole counts below 2^53: exact.
    old, new = (np.bincount(cell, side.ravel(), cell.size).reshape(counts.shape) for side in (before, counts))
    return old, new


def _exact(one: Comparison) -> Floats:
    rows = one.is_small & applies("fisher", one.reference)
    p = np.full(len(rows), np.nan)
    if rows.any():
        p[rows] = tests.fisher(one.table[0][rows], one.table[1][rows])
    return p


def _over(part: ArrayLike, whole: ArrayLike) -> Floats:
    """part / whole, 0 where there is nothing to divide by."""
    ratio: Floats = np.divide(part, whole, out=np.zeros(np.broadcast_shapes(np.shape(part), np.shape(whole))),
                              where=np.asarray(whole) > 0)
    return ratio
