"""All rows of a reference side by side, padded into matrices: what the vectorised decisions read.

Idea: rows have different numbers of bins; in matrices as wide as the widest row, padded bins hold no counts, no weight
and take part in nothing, so one numpy pass serves every row.

Invariant: read-only; a pure function of the rows, in their order.

Cost: once per reference, some 20 bytes per row and fine bin and 80 per row and scan bin.

Neighbours: `rows` fits what is padded here; `scan`, `esr` and `distances` read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.binning import NumericBinning
from detectors.rows import Bools, Floats, Ints, Row


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


class Fold:
    """Sums of consecutive fine bins into scan bins, for all rows and windows in two numpy calls."""

    def __init__(self, arrays: Arrays, shape: tuple[int, int], bins: int) -> None:
        starts, targets = [], []
        for j, scan_of_fine in enumerate(arrays.scan_of_fine):  # turns: the rows, once per scan
            first = np.flatnonzero(np.diff(scan_of_fine, prepend=-1))
            starts.append(j * shape[1] + first)
            targets.append(j * bins + scan_of_fine[first])
        # Padding on the right of a row joins its last bin: it holds no counts.
        self._starts, self._targets = np.concatenate(starts), np.concatenate(targets)
        self._rows, self._bins = shape[0], bins

    def __call__(self, fine: Ints) -> Floats:
        """Scan counts (W, J, K) of fine counts (W, J, B)."""
        scan = np.zeros((len(fine), self._rows * self._bins))
        scan[:, self._targets] = np.add.reduceat(fine.reshape(len(fine), -1), self._starts, axis=1)
        return scan.reshape(len(fine), self._rows, self._bins)
