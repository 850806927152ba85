"""Peers that look at all columns together: windowed MMD and PCA reconstruction, in numpy.

What each is:
    MMD                 unbiased squared maximum mean discrepancy (Gretton et al. 2012) between the last 500 rows and a
                        fixed sample of 1,000 reference rows, Gaussian kernel at the median distance; drift above the
                        95 % point of 100 random splits, as alibi-detect has it (which takes all reference rows: slower)
    PCA reconstruction  mean length of what the leading components (65 % of the variance) leave over, against its mean
                        and three s.d. over ten stretches of the reference, as NannyML has it

Columns are standardised by the reference, categories through their frequency, missing values at the mean.

Cost: 2 ms of kernel a pane for MMD, a matrix product for PCA.

Neighbours: `encode.Encoder.matrix` gives the rows; `runs` counts.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.encode import Encoded, Encoder
from benchmarks.quality.streams import PANE_EVENTS

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

SAMPLE_ROWS, SPLITS = 1_000, 100
#: MMD's window, in panes: the two newest.
MMD_PANES = 2
KEPT_VARIANCE, STRETCHES = 0.65, 10
PCA_WINDOWS = (250, 1_000)


class Mmd:
    """MMD of the two newest panes from a reference sample."""

    name = f"MMD, {MMD_PANES * PANE_EVENTS}"

    def __init__(self, encoder: Encoder, rng: np.random.Generator) -> None:
        rows = encoder.matrix(encoder.reference).astype(np.float32)
        window = min(MMD_PANES * PANE_EVENTS, len(rows) // 2)
        chosen = rows[rng.permutation(len(rows))[: SAMPLE_ROWS + window]]
        self._sample = chosen[: len(chosen) - window]
        squares = _squares(self._sample[:300], self._sample[:300])
        self._scale = 1.0 / float(np.median(squares[np.triu_indices_from(squares, 1)]))
        self._own = _inside(self._kernel(self._sample, self._sample))
        self.default = self._split_point(chosen, window, rng)
        self._encoder = encoder

    def _kernel(self, x: Singles, y: Singles) -> Singles:
        kernel: Singles = np.exp(_squares(x, y) * np.float32(-self._scale))
        return kernel

    def _split_point(self, rows: Singles, window: int, rng: np.random.Generator) -> float:
        """The 95 % point of the statistic over random splits of reference rows."""
        kernel = self._kernel(rows, rows)
        n, m = window, len(rows) - window
        inside = np.zeros((len(rows), SPLITS), np.float32)
        for split in range(SPLITS):                             # turns: the splits
            inside[rng.permutation(len(rows))[:n], split] = 1
        outside = 1 - inside
        product = kernel @ inside
        own, cross = (inside * product).sum(axis=0) - n, (outside * product).sum(axis=0)
        other = (outside * (kernel @ outside)).sum(axis=0) - m
        return float(np.quantile(own / (n * (n - 1)) + other / (m * (m - 1)) - 2 * cross / (n * m), 0.95))

    def statistics(self, seen: Encoded) -> Floats:
        """Statistic of every pane, (panes,), -inf for the first."""
        rows = self._encoder.matrix(seen).astype(np.float32)
        panes = [rows[start : start + PANE_EVENTS] for start in range(0, len(rows) - PANE_EVENTS + 1, PANE_EVENTS)]
        n = PANE_EVENTS
        cross = np.array([self._kernel(pane, self._sample).mean(dtype=np.float64) for pane in panes])
        own = np.array([self._kernel(pane, pane).sum(dtype=np.float64) - n for pane in panes])
        between = np.array([self._kernel(a, b).sum(dtype=np.float64) for a, b in pairwise(panes)])
        inside = (own[:-1] + own[1:] + 2 * between) / (2 * n * (2 * n - 1))
        return np.concatenate([[-np.inf], inside + self._own - (cross[:-1] + cross[1:])])


class Pca:
    """Length of what principal components leave over."""

    names = tuple(f"PCA reconstruction, {window:,}" for window in PCA_WINDOWS)
    #: In s.d. over stretches of the reference.
    default = 3.0

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        rows = encoder.matrix(encoder.reference)
        variances, vectors = np.linalg.eigh(np.cov(rows.T))
        kept = np.cumsum(variances[::-1]) / variances.sum() < KEPT_VARIANCE
        self._rest = vectors[:, ::-1][:, int(kept.sum()) + 1:]
        lengths = self._lengths(rows)
        stretches = np.array([part.mean() for part in np.array_split(lengths, STRETCHES)])
        self._mean, self._sd = stretches.mean(), stretches.std()

    def _lengths(self, rows: Floats) -> Floats:
        lengths: Floats = np.sqrt(((rows @ self._rest) ** 2).sum(axis=1))
        return lengths

    def statistics(self, seen: Encoded) -> dict[str, Floats]:
        """Statistic of every pane in s.d., (panes,), -inf while the window is not full."""
        lengths = self._lengths(self._encoder.matrix(seen))
        panes = lengths[: len(lengths) // PANE_EVENTS * PANE_EVENTS].reshape(-1, PANE_EVENTS).mean(axis=1)
        found = {}
        for window, name in zip(PCA_WINDOWS, self.names, strict=True):
            w = window // PANE_EVENTS
            means = np.convolve(panes, np.full(w, 1 / w), mode="valid")
            found[name] = np.concatenate([np.full(w - 1, -np.inf), np.abs(means - self._mean) / self._sd])
        return found


def _squares(x: Singles, y: Singles) -> Singles:
    """Squared distances of all pairs."""
    squares: Singles = np.maximum((x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2 * (x @ y.T), 0)
    return squares


def _inside(kernel: Singles) -> float:
    """Mean over pairs of different rows."""
    n = len(kernel)
    return float((kernel.sum(dtype=np.float64) - np.trace(kernel)) / (n * (n - 1)))
