"""Peers that compare a window with the reference, column by column: KS, chi-square, PSI and differences of means.

Idea: each gives one statistic per pane, the strongest over columns of the last `window` events, so that besides its
own default threshold a matched one can be found from the statistic without drift. All of them look at every pane, on
windows that overlap: that is how they find a change soonest, and it is kinder to them than one look per window.

What each is:
    KS + chi-square  two-sample Kolmogorov-Smirnov for numbers, Pearson's chi-square over all levels for categories; drift
                     at p < 0.05 / columns (Bonferroni), as alibi-detect's tabular detector has it
    chi-square       Pearson's over reference deciles and a bin for missing values; over all levels for categories
    PSI              over the same bins, empty shares 0.0001; drift at 0.2, a rule of thumb
    mean shift       Welch's t per number; drift at p < 0.05, as TrustyAI has it

KS compares on 500 reference quantiles instead of every value: its D is at most 0.002 below the exact one.

Cost: a few numpy passes over (panes, columns, bins) per window length; nothing per event but one binary search a value.

Neighbours: `encode` makes the arrays; `runs` counts the alarms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import special

from benchmarks.quality.encode import Encoded
from benchmarks.quality.streams import PANE_EVENTS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KS_QUANTILES, PSI_BINS, PSI_EMPTY = 500, 10, 1e-4
WINDOWS = (250, 1_000, 5_000)
#: A p-value that underflowed.
P_LEAST = 1e-300


@dataclass(frozen=True, slots=True)
class Bins:
    """Counts of one kind of column in bins: of the reference (columns, bins), and edges of the numbers."""

    edges: tuple[Floats, ...]
    reference: Ints
    missing: bool

    @classmethod
    def of_numbers(cls, numbers: Floats, quantiles: int, *, missing: bool) -> Bins:
        """Bins between so many quantiles of the reference; the last bin holds missing values, where it is asked for."""
        share = np.arange(1, quantiles) / quantiles
        edges = tuple(np.unique(np.nanquantile(column, share, method="higher")) for column in numbers.T)
        bins = cls(edges, np.zeros((0, 0), np.int64), missing)
        return cls(edges, bins.count(numbers, len(numbers))[0], missing)

    def count(self, numbers: Floats, per_pane: int) -> Ints:
        """Counts (panes, columns, bins) of consecutive panes."""
        panes, width = len(numbers) // per_pane, max(len(edges) for edges in self.edges) + 2
        counts = np.empty((panes, len(self.edges), width), np.int64)
        offset = np.repeat(np.arange(panes) * width, per_pane)
        for j, edges in enumerate(self.edges):                  # turns: the columns
            column = numbers[: panes * per_pane, j]
            codes = np.where(np.isnan(column), width - 1, np.searchsorted(edges, column, side="right"))
            counts[:, j] = np.bincount(offset + codes, minlength=panes * width).reshape(panes, width)
        return counts if self.missing else counts[:, :, :-1]


def count_levels(levels: Ints, width: int, per_pane: int) -> Ints:
    """Counts (panes, columns, width) of level codes (n, columns)."""
    panes = len(levels) // per_pane
    offset = np.repeat(np.arange(panes) * width, per_pane)
    counts = [np.bincount(offset + column[: panes * per_pane], minlength=panes * width).reshape(panes, width)
              for column in levels.T]
    return np.stack(counts, axis=1) if counts else np.zeros((panes, 0, width), np.int64)


def last(counts: NDArray[np.generic], panes: int) -> NDArray[np.generic]:
    """Sums over the last `panes` panes, for the panes that have as many behind them."""
    sums = np.cumsum(np.concatenate([np.zeros_like(counts[:1]), counts]), axis=0)
    return sums[panes:] - sums[:-panes]


def ks_log_p(reference: Ints, window: Ints) -> Floats:
    """-log10 p of the two-sample KS test by its limit law, (..., columns)."""
    m, n = reference.sum(axis=-1), window.sum(axis=-1)
    share, own = (np.cumsum(counts, axis=-1) / np.maximum(events, 1)[..., None]
                  for counts, events in ((reference, m), (window, n)))
    distance = np.abs(own - share).max(axis=-1)
    return -np.log10(np.maximum(special.kolmogorov(distance * np.sqrt(n * m / np.maximum(n + m, 1))), P_LEAST))


def chi_square_log_p(reference: Ints, window: Ints) -> Floats:
    """-log10 p of Pearson's two-sample chi-square test over all cells that hold anything, (..., columns)."""
    m, n = reference.sum(axis=-1)[..., None], window.sum(axis=-1)[..., None]
    both = reference + window
    share = both / np.maximum(n + m, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = (window - n * share) ** 2 / (n * share) + (reference - m * share) ** 2 / (m * share)
    freedom = np.maximum((both > 0).sum(axis=-1) - 1, 1)
    return -np.log10(np.maximum(special.chdtrc(freedom, np.where(both > 0, terms, 0.0).sum(axis=-1)), P_LEAST))


def psi(reference: Ints, window: Ints) -> Floats:
    """Population stability index with empty shares as 0.0001, (..., columns)."""
    p = np.maximum(reference / np.maximum(reference.sum(axis=-1)[..., None], 1), PSI_EMPTY)
    q = np.maximum(window / np.maximum(window.sum(axis=-1)[..., None], 1), PSI_EMPTY)
    exists = (reference + window) > 0
    return np.where(exists, (q - p) * np.log(q / p), 0.0).sum(axis=-1)


class WindowPeers:
    """All window peers of one reference: statistics of every pane, by name."""

    #: Threshold of each family by its own default; p-values are divided by the columns where that is its custom.
    families: ClassVar[tuple[str, ...]] = ("KS + χ²", "χ²", "PSI", "mean shift")

    def __init__(self, reference: Encoded) -> None:
        self._fine = Bins.of_numbers(reference.numbers, KS_QUANTILES, missing=False) if reference.numbers.size else None
        self._coarse = Bins.of_numbers(reference.numbers, PSI_BINS, missing=True) if reference.numbers.size else None
        self._levels = count_levels(reference.levels, reference.width, len(reference.levels))[0]
        self._moments = moments(reference.numbers, len(reference.numbers))[0]
        self.columns = reference.numbers.shape[1] + reference.levels.shape[1]
        self._width = reference.width

    def default(self, name: str) -> float:
        """The threshold that a peer comes with, in units of its statistic."""
        bonferroni = -np.log10(0.05 / self.columns)
        return {"KS + χ²": bonferroni, "χ²": bonferroni, "PSI": 0.2, "mean shift": -np.log10(0.05)}[family_of(name)]

    def statistics(self, seen: Encoded, windows: Sequence[int] = WINDOWS) -> Mapping[str, Floats]:
        """Statistic of every pane, (panes,), -inf while the window is not full."""
        panes = max(len(seen.numbers), len(seen.levels)) // PANE_EVENTS
        fine = self._fine.count(seen.numbers, PANE_EVENTS) if self._fine else None
        coarse = self._coarse.count(seen.numbers, PANE_EVENTS) if self._coarse else None
        levels = count_levels(seen.levels, self._width, PANE_EVENTS)
        sums = moments(seen.numbers, PANE_EVENTS)
        found: dict[str, Floats] = {}
        for window in windows:
            w = window // PANE_EVENTS
            if panes < w:
                continue
            parts: dict[str, list[Floats]] = {family: [] for family in self.families}
            if levels.shape[1]:
                counted = last(levels, w)
                test = chi_square_log_p(self._levels, counted)
                parts["KS + χ²"].append(test)
                parts["χ²"].append(test)
                parts["PSI"].append(psi(self._levels, counted))
            if fine is not None and coarse is not None and self._fine and self._coarse:
                parts["KS + χ²"].append(ks_log_p(self._fine.reference, last(fine, w)))
                binned = last(coarse, w)
                parts["χ²"].append(chi_square_log_p(self._coarse.reference, binned))
                parts["PSI"].append(psi(self._coarse.reference, binned))
                parts["mean shift"].append(welch_log_p(self._moments, last(sums, w)))
            for family, columns in parts.items():
                if columns:
                    whole = np.full(panes, -np.inf)
                    whole[w - 1:] = np.concatenate(columns, axis=1).max(axis=1)
                    found[f"{family}, {window:,}"] = whole
        return found


def family_of(name: str) -> str:
    """The family of a window peer's name."""
    return name.rsplit(", ", 1)[0]


def moments(numbers: Floats, per_pane: int) -> Floats:
    """Number, sum and sum of squares of the present values, (panes, 3, columns)."""
    panes = len(numbers) // per_pane
    blocks = numbers[: panes * per_pane].reshape(panes, per_pane, -1)
    present = ~np.isnan(blocks)
    filled = np.where(present, blocks, 0.0)
    return np.stack([present.sum(axis=1), filled.sum(axis=1), (filled**2).sum(axis=1)], axis=1)


def welch_log_p(reference: Floats, window: Floats) -> Floats:
    """-log10 p of Welch's two-sided test, by the normal law (the windows have 250 events and more), (panes, columns)."""
    (m, sum0, square0), (n, sum1, square1) = reference, np.moveaxis(window, 1, 0)
    n = np.maximum(n, 2)
    mean0, mean1 = sum0 / m, sum1 / n
    variance = (square0 / m - mean0**2) / m + np.maximum(square1 / n - mean1**2, 0) / n
    t = np.abs(mean1 - mean0) / np.sqrt(np.maximum(variance, 1e-300))
    return -(special.log_ndtr(-t) + np.log(2)) / np.log(10)
