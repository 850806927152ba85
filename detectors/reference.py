"""A reference: what "no drift" means for one model version, fitted once and never changed.

Idea: fitting turns the rows that a model was accepted on into bins, counts, directions and design effects; after that a
stream is only ever compared with these numbers, never with the rows. The reference knows how much it is worth itself:
a short or dependent one is declared inadequate, still raises alarms and starts no retraining.

Invariant: a reference is a pure function of its rows, their order and the columns' kinds and roles; its digest names
exactly that. The false-alarm budget and the tolerances are not in it, they may change without a new fit.

Cost: `profile`, the hot path, is 6-7 ns per number and 30-60 ns per category in batches of 4,000 events and more (about
5 times that below 300), so about 300 ns per event of 16 numbers and 4 categories. Fitting is 0.3 us per value. Memory:
10 to 30 kB per column, and rows x bins x 8 bytes for every profile made.

Neighbours: `rows` fits one column, `reference_file` is the file, `profile` the counts, `scan` the decision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detectors.binning import SORT_ROWS_MIN, NumericBinning
from detectors.dependence import BLOCK_ROWS, BLOCKS_MIN
from detectors.profile import Profile, ReferenceMismatch
from detectors.proposal import Proposal, propose
from detectors.reference_file import Content, decode, digest_of, encode
from detectors.rows import UNWATCHED, Column, Floats, Ints, Row, Values, fit_row

__all__ = ["Arrays", "Column", "Proposal", "Reference", "ReferenceMismatch"]

Bools = NDArray[np.bool_]

#: Below this many rows there is no decision, only distances.
ROWS_MIN = 200
#: Below this many effective rows a reference may alarm but not start a retraining (extrapolated from simulations).
EFFECTIVE_ROWS_MIN = 300
#: Sets that `profiles` counts together: bounds its block to this many profiles (100 columns: 16 MB).
GROUPS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Reference:
    """What a stream is compared with.

    columns : the watched columns (neither labels nor ignored ones), in schema order
    records : one `Row` for each, and room for derived rows behind them
    events  : reference rows      ordered : whether they were in time order
    span    : time of the first and the last of them, seconds since 1970, where known
    digest  : sha256 of all of this, 64 hex digits
    """

    model: str
    version: str
    events: int
    ordered: bool
    span: tuple[float, float] | None
    columns: tuple[Column, ...]
    records: tuple[Row, ...] = field(repr=False)
    digest: str

    @classmethod
    def fit(cls, data: Mapping[str, Values], columns: Sequence[Column], *, model: str, version: str,
            ordered: bool = True, span: tuple[float, float] | None = None,
            progress: Callable[[int, int], None] | None = None) -> Reference:
        """The reference of `data`: per column an array with NaN, or a sequence of str or None, for missing.

        columns  : the schema; labels and ignored columns are left out
        ordered  : rows are in time order; if not, their dependence cannot be measured and the reference is inadequate
        progress : called with (columns done, columns in all) after every column
        raises   : ReferenceMismatch, one line, for an absent column, unequal lengths, no rows or no columns
        """
        where = f"reference of {model} {version}"
        watched = tuple(column for column in columns if column.role not in UNWATCHED)
        if not watched:
            raise ReferenceMismatch(f"{where}: expected a column to watch, got none; name inputs or predictions")
        absent = [column.name for column in watched if column.name not in data]
        if absent:
            raise ReferenceMismatch(f"{where}: expected column {absent[0]!r}, got {', '.join(map(repr, data))[:300]}; "
                                    "correct the schema or the data")
        lengths = {column.name: len(data[column.name]) for column in watched}
        events = lengths[watched[0].name]
        if not events or set(lengths.values()) != {events}:
            raise ReferenceMismatch(f"{where}: expected columns of one length above 0, got {lengths}; check the data")
        rows = []
        for done, column in enumerate(watched, start=1):        # turns: the columns
            rows.append(_fit_row(column, data[column.name], ordered, where))
            if progress is not None:
                progress(done, len(watched))
        return cls._of(Content(model, version, events, ordered, span, watched, tuple(rows)))

    @classmethod
    def _of(cls, content: Content, digest: str | None = None) -> Reference:
        return cls(content.model, content.version, content.events, content.ordered, content.span, content.columns,
                   content.rows, digest or digest_of(encode(content)))

    @staticmethod
    def propose(data: Mapping[str, Values]) -> tuple[Proposal, ...]:
        """Kinds and roles for raw data, each with its reason; see `proposal.propose`."""
        return propose(data)

    # ---- the file -------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The reference's file as text; the digest stands first."""
        content = Content(self.model, self.version, self.events, self.ordered, self.span, self.columns, self.records)
        return json.dumps({"digest": self.digest, **encode(content)}) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "reference") -> Reference:
        """The reference in `text`; ReferenceMismatch that starts with `where` if it is not exactly what was saved."""
        return cls._of(*decode(text, where))

    def save(self, path: str | Path) -> None:
        """Write the file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Reference:
        """Read and verify the file; ReferenceMismatch for a defect of it, OSError where it cannot be read."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ReferenceMismatch(f"{path}: expected UTF-8 text, got {error}; restore the file") from None
        return cls.from_json(text, str(path))

    # ---- what it is worth -----------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """Names of the J rows: the columns, then derived rows."""
        return tuple(row.name for row in self.records)

    @cached_property
    def deff(self) -> Floats:
        """Design effect of every row, shape (J,): N events carry the information of N / deff."""
        return np.array([row.deff for row in self.records])

    @cached_property
    def m_eff(self) -> float:
        """Effective reference rows: the least of rows / design effect over the columns."""
        return float((self.arrays.m / self.deff).min())

    @property
    def too_small(self) -> bool:
        """Whether there are too few rows for any decision."""
        return self.events < ROWS_MIN

    @cached_property
    def inadequate(self) -> str:
        """Why this reference may not start a retraining; empty if it may."""
        if self.events < BLOCK_ROWS * BLOCKS_MIN:
            return f"{self.events} rows, {BLOCK_ROWS * BLOCKS_MIN} are needed to measure how dependent events are"
        if not self.ordered:
            return "rows are not in time order, so that how dependent events are is not known"
        if self.m_eff < EFFECTIVE_ROWS_MIN:
            worst = self.rows[int(np.argmin(self.arrays.m / self.deff))]
            return (f"{self.events} rows are worth {self.m_eff:.0f} independent ones in column {worst}, "
                    f"{EFFECTIVE_ROWS_MIN} are needed: too dependent or too short")
        return ""

    # ---- counting -------------------------------------------------------------------------------------------------

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and fine bins of every profile under this reference."""
        return len(self.records), max(row.binning.bins for row in self.records)

    def profile(self, columns: Mapping[str, Floats | Sequence[str | None]], n: int | None = None) -> Profile:
        """The counts of a batch: the hot path.

        columns : per column float64 (n,) with NaN for missing, or a sequence of str | None; others are not looked at
        n       : events, needed only where no column may be present; an absent column is missing in all of them
        """
        if n is None:
            n = len(next((columns[name] for name in self.rows if name in columns), ()))
        counts = np.zeros(self.shape, np.int64)
        for j, row in enumerate(self.records):                  # turns: the columns; each counts its batch in one pass
            values = columns.get(row.name)
            if values is None:
                counts[j, 0] = n
            else:
                counts[j, : row.binning.bins] = row.binning.count(values)  # type: ignore[arg-type]
        assert (counts.sum(axis=1) == n).all(), "columns of a batch differ in length"
        return Profile(counts, n, self.digest)

    def profiles(self, columns: Mapping[str, Floats | Sequence[str | None]], group: Ints, groups: int) -> Iterator[Profile]:
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

    def _profiles(self, columns: Mapping[str, Floats | Sequence[str | None]], group: Ints, groups: int) -> Iterator[Profile]:
        """`profiles` by one count of (set, bin) pairs per column."""
        events = np.bincount(group, minlength=groups)
        counts = np.zeros((groups, *self.shape), np.int64)
        for j, row in enumerate(self.records):                  # turns: the columns
            values, bins = columns.get(row.name), row.binning.bins
            if values is None:
                counts[:, j, 0] = events
            else:
                codes: Ints = row.binning.codes(values)  # type: ignore[arg-type]
                counts[:, j, :bins] = np.bincount(group * bins + codes, minlength=groups * bins).reshape(groups, bins)
        assert (counts.sum(axis=2) == events[:, None]).all(), "columns of a batch differ in length"
        for n, one in zip(events.tolist(), counts, strict=True):
            yield Profile(one.copy(), n, self.digest)           # a copy: a view would keep the whole block alive

    def bin_labels(self, row: int) -> list[str]:
        """The fine bins of a row in words: "missing", "below 3.1", "[3.1, 4)", level names, "rest", "unseen"."""
        return self.records[row].binning.labels()

    def compare(self, columns: Sequence[Column]) -> list[str]:
        """What differs between a schema's watched columns and this reference's, in words; empty for nothing."""
        own = {column.name: column for column in self.columns}
        other = {column.name: column for column in columns if column.role not in UNWATCHED}
        return [
            *(f"column {column} is not in the schema" for name, column in own.items() if name not in other),
            *(f"column {column} is not in the reference" for name, column in other.items() if name not in own),
            *(f"column {own[name]} is {column.kind}, {column.role} in the schema"
              for name, column in other.items() if name in own and own[name] != column),
        ]

    def require(self, columns: Sequence[Column]) -> None:
        """Refuse another schema than the one this reference was fitted for, naming what differs."""
        differences = self.compare(columns)
        if differences:
            raise ReferenceMismatch(f"reference of {self.model} {self.version}: expected the columns it was fitted on, "
                                    f"got another schema ({'; '.join(differences)}); fit it again or correct the schema")

    @cached_property
    def arrays(self) -> Arrays:
        """The rows as padded matrices."""
        return Arrays.of(self.records)


def _ordered(values: Floats | Sequence[str | None], order: Ints) -> Floats | Sequence[str | None]:
    return values[order] if isinstance(values, np.ndarray) else [values[i] for i in order.tolist()]


def _fit_row(column: Column, values: Values, ordered: bool, where: str) -> Row:
    try:
        return fit_row(column, values, ordered=ordered)
    except (TypeError, ValueError) as error:
        raise ReferenceMismatch(f"{where}: expected {column.kind} values in column {column.name!r}, got {error}; "
                                "correct the column's kind or the data") from error


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """All rows of a reference side by side, read-only; J rows, K scan bins, B fine bins, padding holds 0 and False.

    counts (J, B)    raw events of the fine bins           fine_live (J, B)  fine bins that exist
    positions (J, B) places of the fine bins, or NaN        sd (J,)          s.d. of numeric rows, else NaN
    numeric (J,)     rows whose bins have an order          scan_of_fine     per row, fine bin -> scan bin
    c0, p0 (J, K)    scan events and shares                 m (J,)           their totals
    live (J, K)      scan bins that exist                   one_sided (J, K) bins that only count when they gain
    fault (J, K)     bins that speak of data quality        weights (J, K, 4), centre, skew (J, 4)  directions
    g_directions (J, 4), g_bins (J, K), nu_directions (J, 4), nu_bins (J, K)                        design effects
    """

    counts: Ints
    fine_live: Bools
    positions: Floats
    sd: Floats
    numeric: Bools
    scan_of_fine: tuple[Ints, ...]
    c0: Floats
    p0: Floats
    m: Floats
    live: Bools
    one_sided: Bools
    fault: Bools
    weights: Floats
    centre: Floats
    skew: Floats
    g_directions: Floats
    g_bins: Floats
    nu_directions: Floats
    nu_bins: Floats

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Arrays:
        """Pad the rows to the widest one."""
        fine, scan = [row.binning.bins for row in rows], [row.binning.scan_bins for row in rows]
        c0 = _pad([row.c0 for row in rows], scan)
        m = c0.sum(axis=1)
        p0 = c0 / m[:, None]
        weights = np.stack([_pad([row.weights[:, r] for row in rows], scan) for r in range(4)], axis=2)
        one_sided, fault = np.zeros(c0.shape, bool), np.zeros(c0.shape, bool)
        for j, row in enumerate(rows):                          # turns: the rows, once per reference
            last = row.binning.scan_bins - 1
            one_sided[j, [1 if row.is_numeric else last - 1, last]] = True       # below, above; rest, unseen
            fault[j, [0, 1, last] if row.is_numeric else [0, last]] = True       # rest is no fault
        empty = np.empty(0)
        return cls(
            counts=_pad([row.counts for row in rows], fine).astype(np.int64),
            fine_live=np.arange(max(fine)) < np.array(fine)[:, None],
            positions=_pad([row.positions if row.is_numeric else empty for row in rows], fine, np.nan),
            sd=np.array([row.sd for row in rows]),
            numeric=np.array([isinstance(row.binning, NumericBinning) for row in rows]),
            scan_of_fine=tuple(row.binning.scan_of_fine for row in rows),
            c0=c0, p0=p0, m=m, live=np.arange(max(scan)) < np.array(scan)[:, None], one_sided=one_sided, fault=fault,
            weights=weights, centre=np.stack([row.centre for row in rows]),
            skew=np.einsum("jk,jkr->jr", p0, weights**3),
            g_directions=np.stack([row.effect.g_directions for row in rows]),
            g_bins=_pad([row.effect.g_bins for row in rows], scan, 1.0),
            nu_directions=np.stack([row.effect.nu_directions for row in rows]),
            nu_bins=_pad([row.effect.nu_bins for row in rows], scan, np.inf))


def _pad(rows: Sequence[NDArray[np.generic]], widths: Sequence[int], fill: float = 0.0) -> Floats:
    """Rows of different length as one matrix as wide as the widest."""
    matrix = np.full((len(rows), max(widths)), fill)
    for j, row in enumerate(rows):                              # turns: the rows, once per reference
        matrix[j, : len(row)] = row
    return matrix
