"""Values to bins: quantile edges with atoms for numbers, a table of levels for categories.

Idea: the reference fixes the bins once, and from then on a value is nothing but the number of its bin. Both kinds keep
bins for what the reference could not show, so that no value is ever lost or stretches a scale: *missing*, *below* and
*above* the reference's range for numbers (one value of 1e300 is one event in the last bin), *rest* and *unseen* for
categories.

Two resolutions share one count: the *fine* bins (64 or 128) are stored, shown and used for distances; the *scan* bins
(16 or 32) are unions of consecutive fine bins, so summing slices of the fine counts gives the scan's counts exactly.

Invariant: every value, finite or not, falls into exactly one fine bin: the counts of n values add up to n.

Cost, per value: numbers 6-13 ns in batches of 4,000 and more (sort in single precision, then search the edges), 25-50 ns
below 300 rows (search each value); categories 30-60 ns (one `Counter` pass) plus about 1 us per distinct level that is not
kept.
Memory: edges or levels (about 1 kB a column) and 8 bytes for every level that the reference has seen.

Neighbours: `reference` fits one binning per column; `statistics`' sections are cited as "section n" of the manual.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detectors.coded import Coded

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Bins aimed at for numbers; atoms add to them. The scan's number weighs resolution against the number of tests.
FINE_BINS, SCAN_BINS = 64, 16
#: Edges end here, so that the width of a bin is finite: what lies beyond is below or above the range.
LARGEST_EDGE = 8e307
#: Most levels kept by name, and the share of events from which on one is kept (and 5 events at least).
FINE_LEVELS, SCAN_LEVELS = 128, 32
FINE_LEVEL_SHARE, SCAN_LEVEL_SHARE = 0.0005, 0.002
LEVEL_EVENTS_MIN = 5
#: Below this many rows searching every value costs less than sorting first (measured, section "Accumulate").
SORT_ROWS_MIN = 300
#: From here on numbers are sorted in single precision first, which takes two thirds of the sorting; where at most so many edges
#: meet a value that is equal to them in single precision, those are counted one by one, and else everything in double.
SINGLE_ROWS_MIN, SINGLE_TIES_MAX = 4_000, 8


def numeric_edges(values: Floats, bins: int) -> Floats:
    """Rising bin edges of the finite `values` for a target of `bins` bins: quantiles, and atoms on their own.

    At most `bins` distinct values: each is a bin. Otherwise the quantiles 1/bins ... as elements of `values`, and
    every value with more than 1/bins of the events apart. The last edge is just above the largest value.

    >>> numeric_edges(np.array([0.0] * 6 + [*range(1, 15)]), 4).round(9).tolist()
    [0.0, 0.0, 5.0, 10.0, 14.0]
    """
    distinct, counts = np.unique(values, return_counts=True)
    last = np.nextafter(distinct[-1:], np.inf)
    if len(distinct) <= bins:
        return np.concatenate([distinct, last])
    quantiles = np.quantile(values, np.arange(1, bins) / bins, method="higher")
    atoms = distinct[counts > len(values) / bins]
    return np.unique(np.concatenate([distinct[:1], quantiles, atoms, np.nextafter(atoms, np.inf), last]))


@dataclass(frozen=True, slots=True)
class NumericBinning:
    """Bins of one numeric column: 0 missing, 1 below, 2 ... regular, the last one above.

    edges      : float64, rising, shape (fine bins - 2,); a value v has the bin `searchsorted(edges, v, "right") + 1`
    scan_edges : float64, the subset of `edges` that bounds the scan's bins
    """

    edges: Floats
    scan_edges: Floats
    _cuts: Floats = field(init=False, repr=False, compare=False)
    _single: NDArray[np.float32] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # NaN sorts last: searched for like an edge, it is where the missing values begin.
        object.__setattr__(self, "_cuts", np.append(self.edges, np.nan))
        object.__setattr__(self, "_single", _rounded(self._cuts))

    @classmethod
    def fit(cls, values: Floats) -> NumericBinning:
        """Edges of a reference column; NaN is missing, infinities lie outside. No finite value: any number is new."""
        finite = np.clip(values[np.isfinite(values)], -LARGEST_EDGE, LARGEST_EDGE)
        if not len(finite):
            finite = np.zeros(1)                    # a lone bin at 0 that the reference never filled
        scan = numeric_edges(finite, SCAN_BINS)
        return cls(np.union1d(numeric_edges(finite, FINE_BINS), scan), scan)

    @property
    def bins(self) -> int:
        """Number of fine bins."""
        return len(self.edges) + 2

    @property
    def scan_bins(self) -> int:
        """Number of scan bins."""
        return len(self.scan_edges) + 2

    @property
    def scan_of_fine(self) -> Ints:
        """The scan bin of every fine bin, shape (bins,), never falling."""
        inner = np.searchsorted(self.scan_edges, self.edges, side="right") + 1
        return np.concatenate([[0, 1], inner]).astype(np.int64)

    def codes(self, values: Floats) -> Ints:
        """The fine bin of every value, shape (n,)."""
        codes = np.searchsorted(self.edges, values, side="right") + 1
        codes[np.isnan(values)] = 0
        return codes.astype(np.int64, copy=False)

    def count(self, values: Floats) -> Ints:
        """Events in every fine bin, shape (bins,); the input is left as it is."""
        if len(values) < SORT_ROWS_MIN:
            return np.bincount(self.codes(values), minlength=self.bins)
        single = self._single                       # another thread may have found too many ties meanwhile
        below = None if single is None or len(values) < SINGLE_ROWS_MIN else self._below_single(values, single)
        if below is None:
            ordered = values.copy()
            ordered.sort()
            below = ordered.searchsorted(self._cuts)        # values below each edge; at the end, those that are present
        counts = np.empty(self.bins, np.int64)
        counts[0], counts[1] = len(values) - below[-1], below[0]
        np.subtract(below[1:], below[:-1], out=counts[2:])
        return counts

    def _below_single(self, values: Floats, cuts: NDArray[np.float32]) -> Ints | None:
        """Values below each edge, as doubles compare, from their order in single precision; None: too many ties to tell.

        Rounding never turns two numbers round, so what is below in single precision is below; only equals are looked at.
        """
        ordered = _rounded(values)
        ordered.sort()
        below = ordered.searchsorted(cuts)
        tied = np.flatnonzero(ordered.take(below, mode="clip") == cuts)
        if len(tied) > SINGLE_TIES_MAX:             # rounded values, whole numbers: it will be so again
            object.__setattr__(self, "_single", None)
            return None
        for i in tied.tolist():
            below[i] = np.count_nonzero(values < self.edges[i])
        return below

    def labels(self) -> list[str]:
        """The fine bins in words."""
        return _interval_words(self.edges)

    def scan_words(self) -> list[str]:
        """The scan bins in words, as an alarm says them."""
        words = _interval_words(self.scan_edges)
        return [*words[:2], *(f"bin {word}" if word[-1] == ")" else f"value {word}" for word in words[2:-1]), words[-1]]


def _rounded(values: Floats) -> NDArray[np.float32]:
    """The nearest single-precision numbers; beyond their range, infinity."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _interval_words(edges: Floats) -> list[str]:
    """The bins between `edges` in words; a bin of a single float is named by its value, and left out of the next."""
    words = ["missing", f"below {edges[0]:.6g}"]
    alone = np.nextafter(edges[:-1], np.inf) == edges[1:]
    for i, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):     # some 100 bins
        opening = f"({edges[i - 1]:.6g}" if i and alone[i - 1] else f"[{low:.6g}"
        words.append(f"{low:.6g}" if alone[i] else f"{opening}, {high:.6g})")
    return [*words, f"above {np.nextafter(edges[-1], -np.inf):.6g}"]


def level_hash(level: str) -> int:
    """A 64-bit hash of a level that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(level.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class CategoryBinning:
    """Bins of one category column: 0 missing, then the kept levels by falling frequency, rest, unseen.

    levels      : the levels kept by name
    scan_levels : how many of them, from the first, are also bins of the scan
    seen        : hashes of the other levels that the reference has seen; they are the bin *rest*
    """

    levels: tuple[str, ...]
    scan_levels: int
    seen: frozenset[int] = frozenset()
    _bins: dict[str | None, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table: dict[str | None, int] = {level: code for code, level in enumerate(self.levels, start=1)}
        object.__setattr__(self, "_bins", {None: 0, **table})

    @classmethod
    def fit(cls, counts: Counter[str | None]) -> CategoryBinning:
        """The table of a reference column from the counts of its values; None is missing and is no level."""
        levels = sorted(((level, count) for level, count in counts.items() if level is not None),
                        key=lambda pair: (-pair[1], pair[0]))
        events = sum(count for _, count in levels)
        kept = kept_levels(levels, events, FINE_LEVEL_SHARE, FINE_LEVELS)
        scan = kept_levels(levels, events, SCAN_LEVEL_SHARE, SCAN_LEVELS)
        return cls(tuple(level for level, _ in levels[:kept]), scan,
                   frozenset(level_hash(level) for level, _ in levels[kept:]))

    @property
    def bins(self) -> int:
        """Number of fine bins."""
        return len(self.levels) + 3

    @property
    def scan_bins(self) -> int:
        """Number of scan bins."""
        return self.scan_levels + 3

    @property
    def scan_of_fine(self) -> Ints:
        """The scan bin of every fine bin, shape (bins,), never falling: levels the scan does not keep are its rest."""
        inner = np.minimum(np.arange(len(self.levels) + 2), self.scan_levels + 1)
        return np.append(inner, self.scan_levels + 2).astype(np.int64)

    def code(self, level: str | None) -> int:
        """The fine bin of one value."""
        code = self._bins.get(level)
        if code is None:
            if not isinstance(level, str):
                raise TypeError(f"level: expected text or None, got {level!r:.60} ({type(level).__name__}); give it as text")
            code = len(self.levels) + (1 if level_hash(level) in self.seen else 2)
        return code

    def codes(self, values: Sequence[str | None]) -> Ints:
        """The fine bin of every value, shape (n,)."""
        if isinstance(values, Coded):
            bins = np.zeros(len(values.levels), np.int64)
            for code in values.used().tolist():     # turns: the distinct values of the batch
                bins[code] = self.code(values.levels[code])
            return bins[values.codes]
        table = {level: self.code(level) for level in set(values)}
        return np.fromiter(map(table.__getitem__, values), np.int64, len(values))

    def count(self, values: Iterable[str | None]) -> Ints:
        """Events in every fine bin, shape (bins,)."""
        if isinstance(values, Coded):
            return np.bincount(self.codes(values), minlength=self.bins)
        counts = np.zeros(self.bins, np.int64)
        for level, count in Counter(values).items():             # turns: the distinct values of the batch
            counts[self.code(level)] += count
        return counts

    def labels(self) -> list[str]:
        """The fine bins in words."""
        return ["missing", *self.levels, "rest", "unseen"]

    def scan_words(self) -> list[str]:
        """The scan bins in words, as an alarm says them."""
        return ["missing", *(f"level {level}" for level in self.levels[:self.scan_levels]), "rest", "unseen"]


Binning = NumericBinning | CategoryBinning


def kept_levels(levels: Sequence[tuple[str, int]], events: int, share: float, most: int) -> int:
    """How many of `levels`, given with counts by falling count, are frequent enough to be bins of their own."""
    least = max(LEVEL_EVENTS_MIN, share * events)
    return sum(count >= least for _, count in levels[:most])
