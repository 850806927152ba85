"""Design effects: by how much dependence between consecutive events inflates the variance of a count.

Idea: real streams are dependent, and N events then carry the information of only N/g independent ones. From the
time-ordered reference, cut into blocks of 50 rows, the long-run variance of each direction and each bin is the sum of
the autocovariances of its block means, taken in pairs until they die out (initial positive sequence, Geyer 1992).

Invariant: a row that shows no dependence beyond doubt gets g = 1 everywhere. Where a variance had to be estimated, it
is taken one standard error up and kept with its degrees of freedom, because an estimated variance has fat tails.

Cost: at fit only: one FFT of (rows / 50) x (bins + 4) block means per row of the reference.

Neighbours: `directions` gives the sums, `reference` keeps (g, nu), `scan` multiplies variances by g.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCK_ROWS = 50
#: With fewer blocks nothing can be said about dependence.
BLOCKS_MIN = 20
#: A bin with fewer reference events borrows the row's worst design effect.
BIN_EVENTS_MIN = 100
_FFT_PADDING = 2


@dataclass(frozen=True, slots=True)
class DesignEffect:
    """How much more a row's sums vary than on independent data, and how well that is known.

    g_directions (4,), g_bins (bins,)   : factors on variances, 1 when the row is independent
    nu_directions (4,), nu_bins (bins,) : degrees of freedom of the estimate; infinite where nothing was estimated
    """

    g_directions: Floats
    g_bins: Floats
    nu_directions: Floats
    nu_bins: Floats


def block_counts(codes: Ints, bins: int) -> Ints:
    """Events of every block of 50 consecutive rows in every bin, (blocks, bins), without a last, partial block."""
    blocks = len(codes) // BLOCK_ROWS
    inside = codes[: blocks * BLOCK_ROWS]
    flat = np.repeat(np.arange(blocks), BLOCK_ROWS) * bins + inside
    return np.bincount(flat, minlength=blocks * bins).reshape(blocks, bins)


def long_run_variance(series: Floats) -> tuple[Floats, Ints]:
    """Long-run variance of block means, times the number of blocks, and the number of pairs that it rests on.

    series  : shape (blocks, series), one column per sum
    returns : G and stop, each of shape (series,)
    """
    blocks = len(series)
    centred = series - series.mean(axis=0)
    spectrum = rfft(centred, n=next_fast_len(_FFT_PADDING * blocks, real=True), axis=0)
    lags = irfft(spectrum.real**2 + spectrum.imag**2, n=next_fast_len(_FFT_PADDING * blocks, real=True), axis=0)
    a = lags[: blocks // 2] / blocks
    pairs = (len(a) - 1) // 2
    summed = a[1 : 1 + 2 * pairs].reshape(pairs, 2, -1).sum(axis=1)
    limits = np.tile(a[0] / np.sqrt(blocks), (pairs, 1))
    limits[0] *= 2
    ends = summed <= limits
    stop = np.where(ends.any(axis=0), ends.argmax(axis=0), pairs)
    kept = np.arange(pairs)[:, None] < stop
    return a[0] + 2 * (summed * kept).sum(axis=0), stop


def design_effect(codes: Ints, weights: Floats, p: Floats, events: Floats | Ints) -> DesignEffect:
    """The design effect of one row from the scan bins `codes` of all its reference rows in time order.

    weights : directions, shape (bins, 4)     p : shares of the bins     events : reference events of the bins
    """
    bins = len(p)
    ones = DesignEffect(np.ones(4), np.ones(bins), np.full(4, np.inf), np.full(bins, np.inf))
    if len(codes) // BLOCK_ROWS < BLOCKS_MIN:
        return ones
    shares = block_counts(codes, bins) / BLOCK_ROWS
    variance = np.concatenate([np.ones(4), p * (1 - p)])
    long_run, stop = long_run_variance(np.hstack([shares @ weights, shares]))
    v = np.divide(BLOCK_ROWS * long_run, variance, out=np.zeros_like(variance), where=variance > 0)
    return _design_effect(v, stop, len(shares), np.asarray(events, np.float64)) or ones


def design_effect_of_panes(counts: Floats | Ints, weights: Floats, p: Floats, events: Floats) -> DesignEffect:
    """The design effect of one row from a live stream: the scan counts of consecutive panes, shape (panes, bins).

    For references whose rows are in no order; other arguments as for `design_effect`. Panes without events are left out.
    """
    bins, sizes = len(p), counts.sum(axis=1)
    counts, sizes = counts[sizes > 0], sizes[sizes > 0]
    ones = DesignEffect(np.ones(4), np.ones(bins), np.full(4, np.inf), np.full(bins, np.inf))
    if len(sizes) < BLOCKS_MIN:
        return ones
    shares = counts / sizes[:, None]
    variance = np.concatenate([np.ones(4), p * (1 - p)])
    long_run, stop = long_run_variance(np.hstack([shares @ weights, shares]))
    v = np.divide(sizes.mean() * long_run, variance, out=np.zeros_like(variance), where=variance > 0)
    return _design_effect(v, stop, len(shares), events) or ones


def _design_effect(v: Floats, stop: Ints, blocks: int, events: Floats) -> DesignEffect | None:
    """Factors and degrees of freedom from the raw variance ratios `v`, directions first; None for independence."""
    noise = np.sqrt(2 / blocks)
    # Five times the noise of independent blocks, and three times that of a sum over so many lags: where to stop was chosen
    # on the same data. Over many rows a laxer trigger fires on independent noise and makes rare outliers 5 times slower;
    # without the second part one row in 20 of independent data was called dependent, and half as many are with it.
    limit = 1 + np.maximum(5 * noise, 3 * np.sqrt(2 * (2 * stop[:2] + 2) / blocks))
    if not (v[:2] > limit).any():
        return None
    passed = v > 1 + 3 * noise
    g = np.where(passed, v * (1 + np.sqrt(2 * (2 * stop + 2) / blocks)), 1 + 3 * noise)
    nu = np.where(passed, 1.5 * blocks / (2 * stop + 2), np.inf)
    g_bins, nu_bins = g[4:], nu[4:]
    rare = events < BIN_EVENTS_MIN
    if (passed[4:] & ~rare).any():
        g_bins[rare], nu_bins[rare] = g_bins[~rare].max(), nu_bins[~rare].min()
    else:
        g_bins[rare], nu_bins[rare] = 1 + 3 * noise, np.inf
    return DesignEffect(g[:4], g_bins, nu[:4], nu_bins)
