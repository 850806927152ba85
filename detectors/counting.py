"""Events to counts: the hot path of the detectors.

Idea: a batch is counted column by column, each in one pass: numbers by sorting and searching the edges, categories by one
`Counter` or, where joint rows need every event's score anyway, by one table of codes. Embeddings and texts first become
a few numbers each; the joint rows are one matrix product over the scores.

Invariant: the counts do not depend on how events are cut into batches, on their order, or on which of the ways below
counted them.

Cost, per event: 6-7 ns per number and 30-60 ns per category in batches of 4,000 events and more (about 5 times that
below 300), plus what the joint rows cost (`derived`: 0.4 us at 20 columns). Memory: rows x bins x 8 bytes for every
profile made, and a block of 2,048 events x columns x 8 bytes.

Neighbours: `binning` finds bins, `derived` the joint values, `profile` is what comes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from detectors.binning import SORT_ROWS_MIN, NumericBinning
from detectors.coded import Coded
from detectors.derived import CHUNK_ROWS, Joint, number_scores
from detectors.expansions import Expansion
from detectors.profile import Profile
from detectors.rows import Column, Floats, Ints, Row

#: Sets that `profiles` counts together: bounds its block to this many profiles (100 columns: 16 MB).
GROUPS_AT_ONCE = 256

#: Columns of a batch by name: float64 (n,) with NaN for missing, a sequence of str | None, or float64 (n, dimension).
Batch = Mapping[str, Floats | Sequence[str | None]]


class Counting:
    """How one reference counts."""

    def __init__(self, columns: Sequence[Column], records: Sequence[Row], expansions: Mapping[str, Expansion],
                 joint: Joint | None, digest: str) -> None:
        self._records, self._digest, self._joint = records, digest, joint
        self._shape = len(records), max(row.binning.bins for row in records)
        self._plain: list[tuple[int, str]] = []                 # row number and name of the columns that are one row
        self._expanded: list[tuple[int, str, Expansion]] = []   # first row, name and expansion of the others
        j = 0
        for column in columns:                                  # turns: the columns, once per reference
            expansion = expansions.get(column.name)
            if expansion is None:
                self._plain.append((j, column.name))
                j += 1
            else:
                self._expanded.append((j, column.name, expansion))
                j += len(expansion.names)
        self._first_joint = j
        self._fine_scores = tuple(
            score[records[row].binning.scan_of_fine]
            for score, (row, _) in zip(joint.scores, self._plain, strict=True)) if joint else ()

    def profile(self, columns: Batch, n: int | None = None) -> Profile:
        """The counts of a batch.

        columns : values by column name; others than the reference's are not looked at
        n       : events, needed only where no column may be present; an absent column is missing in all of them
        """
        if n is None:
            n = len(next((columns[name] for name in self._names() if name in columns), ()))
        counts = np.zeros(self._shape, np.int64)
        codes: dict[int, Ints] = {}
        for place, (j, name) in enumerate(self._plain):         # turns: the columns; each counts its batch in one pass
            values, binning = columns.get(name), self._records[j].binning
            if values is None:
                counts[j, 0] = n
            elif isinstance(binning, NumericBinning) or self._joint is None:
                counts[j, : binning.bins] = binning.count(values)  # type: ignore[arg-type]
            else:
                codes[place] = binning.codes(values)  # type: ignore[arg-type]
                counts[j, : binning.bins] = np.bincount(codes[place], minlength=binning.bins)
        for first, name, expansion in self._expanded:
            for j, numbers in enumerate(self._expand(columns, name, expansion, n), start=first):
                counts[j, : self._records[j].binning.bins] = self._numeric(j).count(numbers)
        if self._joint is not None and n:
            for j, numbers in enumerate(self._joint_values(columns, codes, n), start=self._first_joint):
                counts[j, : self._records[j].binning.bins] = self._numeric(j).count(numbers)
        assert (counts.sum(axis=1) == n).all(), "columns of a batch differ in length"
        return Profile(counts, n, self._digest)

    def profiles(self, columns: Batch, group: Ints, groups: int) -> Iterator[Profile]:
        """The counts of each of several sets of events, in their order.

        columns : as `profile` takes them, of all events together
        group   : int (n,), the set 0 ... groups - 1 of every event; every set has one at least

        Sets of 300 events and more are counted one by one, as `profile` does (6-7 ns per number); many small ones at
        once, value by value (40-50 ns), so that 100 columns x 40 sets do not cost 4,000 numpy calls of some us each.
        """
        at_once = 1 if len(group) >= groups * SORT_ROWS_MIN else GROUPS_AT_ONCE
        if groups > at_once and np.any(group[1:] < group[:-1]):
            order = np.argsort(group, kind="stable")
            group, columns = group[order], {name: _ordered(values, order) for name, values in columns.items()}
        starts = np.arange(0, groups, at_once)
        cuts = [*np.searchsorted(group, starts).tolist(), len(group)] if len(starts) > 1 else [0, len(group)]
        for first, (start, end) in zip(starts.tolist(), pairwise(cuts), strict=True):       # turns: blocks of sets
            block = columns if len(starts) == 1 else {name: values[start:end] for name, values in columns.items()}
            if at_once == 1 or groups == 1:
                yield self.profile(block, end - start)
            else:
                yield from self._profiles(block, group[start:end] - first, min(at_once, groups - first))

    def _profiles(self, columns: Batch, group: Ints, groups: int) -> Iterator[Profile]:
        """`profiles` by one count of (set, bin) pairs per row."""
        n, events = len(group), np.bincount(group, minlength=groups)
        counts = np.zeros((groups, *self._shape), np.int64)
        codes: dict[int, Ints] = {}

        def count(j: int, found: Ints) -> None:
            bins = self._records[j].binning.bins
            counts[:, j, :bins] = np.bincount(group * bins + found, minlength=groups * bins).reshape(groups, bins)

        for place, (j, name) in enumerate(self._plain):         # turns: the columns
            values = columns.get(name)
            if values is None:
                counts[:, j, 0] = events
            else:
                codes[place] = self._records[j].binning.codes(values)  # type: ignore[arg-type]
                count(j, codes[place])
        for first, name, expansion in self._expanded:
            for j, numbers in enumerate(self._expand(columns, name, expansion, n), start=first):
                count(j, self._numeric(j).codes(numbers))
        if self._joint is not None:
            for j, numbers in enumerate(self._joint_values(columns, codes, n), start=self._first_joint):
                count(j, self._numeric(j).codes(numbers))
        assert (counts.sum(axis=2) == events[:, None]).all(), "columns of a batch differ in length"
        for size, one in zip(events.tolist(), counts, strict=True):
            yield Profile(one.copy(), size, self._digest)       # a copy: a view would keep the whole block alive

    def _joint_values(self, columns: Batch, codes: Mapping[int, Ints], n: int) -> Floats:
        """The joint rows of a batch, (rows, n); `codes` holds the fine bins of columns where they are known already."""
        assert self._joint is not None
        values = np.empty((self._joint.rows, n))
        scores = np.empty((len(self._plain), min(n, CHUNK_ROWS)))
        for start in range(0, n, CHUNK_ROWS):                   # turns: the batch / 2,048
            part = slice(start, min(start + CHUNK_ROWS, n))
            chunk = scores[:, : part.stop - start]
            for place, (j, name) in enumerate(self._plain):     # turns: the columns
                given = columns.get(name)
                if place in codes:
                    self._fine_scores[place].take(codes[place][part], out=chunk[place], mode="clip")
                elif given is None:
                    chunk[place] = 0.0
                else:
                    number_scores(self._numeric(j), self._joint.scores[place], given[part],  # type: ignore[arg-type]
                                  chunk[place])
            values[:, part] = self._joint.values(chunk)
        return values

    def _expand(self, columns: Batch, name: str, expansion: Expansion, n: int) -> Floats:
        """The rows of one expanded column, (rows, n); all missing where the column is absent."""
        values = columns.get(name)
        if values is None:
            return np.full((len(expansion.names), n), np.nan)
        return np.ascontiguousarray(expansion.rows(values).T)

    def _numeric(self, j: int) -> NumericBinning:
        binning = self._records[j].binning
        assert isinstance(binning, NumericBinning)
        return binning

    def _names(self) -> Iterator[str]:
        yield from (name for _, name in self._plain)
        yield from (name for _, name, _ in self._expanded)


def scores_of(records: Sequence[Row], prepared: Sequence[Floats | Sequence[str | None]],
              scores: Sequence[Floats], events: int) -> Iterator[tuple[int, Floats]]:
    """First row and scores (columns, n) of every chunk of reference rows, for fitting."""
    for start in range(0, events, CHUNK_ROWS):                  # turns: the reference / 2,048
        end = min(start + CHUNK_ROWS, events)
        chunk = np.empty((len(records), end - start))
        for place, (row, values, score) in enumerate(zip(records, prepared, scores, strict=True)):
            if isinstance(row.binning, NumericBinning):
                number_scores(row.binning, score, values[start:end], chunk[place])  # type: ignore[arg-type]
            else:
                chunk[place] = score[row.binning.scan_of_fine][row.binning.codes(values[start:end])]  # type: ignore[arg-type]
        yield start, chunk


def _ordered(values: Floats | Sequence[str | None], order: Ints) -> Floats | Sequence[str | None]:
    if isinstance(values, Coded):
        return values.take(order)
    return values[order] if isinstance(values, np.ndarray) else [values[i] for i in order.tolist()]
