"""Distances between a window's counts and the reference's: numbers that people know, for display.

Idea: all of them are functions of two count matrices [columns, bins] under the same bins, so that all columns cost one
numpy pass. They describe and do not decide: every one of them is above 0 without drift and shrinks as windows grow, so
each comes with its mean without drift (subtracted by `corrected`) and its 95 % band, for the window's own size. The
second half of this file has the same formulas on what several of them share: shares, smoothed shares, cumulative steps.

Invariants: larger is more drift; 0 when the shares are equal (psi and kl: nearly, they add half an event to every bin);
NaN, never 0, where either side has no events; inputs are left as they are; columns do not influence one another. Padded
bins hold no counts and are kept out by `live`. Order-based distances leave missing values out.

Cost: 15 to 50 ns per cell each.

Neighbours: `comparison` computes them by name for a window and a reference; `tests` turns the same counts into p-values;
`null_laws` has the bands; `methods` is the catalogue.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from detectors.null_laws import analytic_null, simulated_null

__all__ = ["EVIDENCE", "KS_95", "SQUARED", "analytic_null", "corrected", "cumulative_steps", "divergence", "hellinger",
           "hellinger_of", "jeffreys", "jensen_shannon", "js", "kl", "known", "ks", "linf", "moved", "psi", "shares",
           "simulated_null", "smoothed", "travelled", "tv", "tv_null_mean", "wasserstein", "wasserstein_plain"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64] | NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Names whose number is a p-value, handed on as -log10 p.
EVIDENCE = frozenset({"cvm", "anderson", "chi2", "g", "fisher", "z", "t", "mannwhitney"})
#: Distances whose square, not themselves, has a mean without drift in closed form.
SQUARED = frozenset({"js", "hellinger", "energy"})
#: Asymptotic 95 % point of sqrt(n) D (Kolmogorov).
KS_95 = 1.358099
PSEUDO_COUNT = 0.5
_LN2 = float(np.log(2))


def shares(counts: Counts) -> Floats:
    """Share of each bin, shape as `counts`; NaN in rows without events."""
    total = counts.sum(axis=-1, keepdims=True)
    share: Floats = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    return share


def psi(reference: Counts, window: Counts, *, live: Bools | None = None) -> Floats:
    """Population stability index of each column, in nats: 0 for equal counts, no upper bound, symmetric.

    reference, window : counts, shape (columns, bins), same bins       live : bins that exist (default all)
    returns           : shape (columns,)

    The symmetric divergence KL(p, q) + KL(q, p) of Jeffreys (1946); half an event is added to every bin.

    >>> psi(np.array([[10, 20, 30, 40]]), np.array([[15, 15, 10, 10]])).round(6).tolist()
    [0.41581]
    """
    P, Q = smoothed(reference, live), smoothed(window, live)
    return known(reference, window, jeffreys(P, Q, np.log(Q / P)))


def kl(reference: Counts, window: Counts, *, live: Bools | None = None) -> Floats:
    """Divergence of the window from the reference, sum q ln(q / p), in nats; half an event is added to every bin."""
    P, Q = smoothed(reference, live), smoothed(window, live)
    return known(reference, window, divergence(P, Q, np.log(Q / P)))


def js(reference: Counts, window: Counts) -> Floats:
    """Jensen-Shannon distance of each column: the root of the divergence in bits, 0 to 1, symmetric (Lin 1991)."""
    return jensen_shannon(shares(reference), shares(window))


def hellinger(reference: Counts, window: Counts) -> Floats:
    """Hellinger distance of each column, 0 to 1, symmetric."""
    return hellinger_of(shares(reference), shares(window))


def tv(reference: Counts, window: Counts) -> Floats:
    """Total variation of each column: the share of events that would have to move to another bin, 0 to 1."""
    return moved(shares(reference), shares(window))


def linf(reference: Counts, window: Counts) -> Floats:
    """Largest difference of one bin's share in each column, 0 to 1."""
    largest: Floats = np.abs(shares(window) - shares(reference)).max(axis=-1)
    return largest


def ks(reference: Counts, window: Counts) -> Floats:
    """Kolmogorov-Smirnov statistic of each column, 0 to 1, from bins in order (missing left out by the caller).

    At most the largest share of a reference bin below the statistic of the raw values; atoms cost nothing.
    """
    largest: Floats = np.minimum(cumulative_steps(reference, window).max(axis=-1), 1.0)
    return largest


def wasserstein_plain(reference: Counts, window: Counts, positions: Floats) -> Floats:
    """Wasserstein-1 distance of each column in the column's unit, from bins in order (missing left out by the caller).

    positions : place of every bin, rising, shape as counts, NaN where there is none
    Against raw values it errs by at most the mean width of a bin. Values out of range count at the range's end, so that
    one absurd value can neither make nor hide drift.
    """
    return travelled(cumulative_steps(reference, window), positions)


def wasserstein(reference: Counts, window: Counts, positions: Floats, sd: Floats) -> Floats:
    """`wasserstein_plain` in reference s.d., so that one threshold suits every column.

    sd : shape (columns,); NaN for a constant column, whose s.d. is 0
    """
    distance = wasserstein_plain(reference, window, positions)
    scaled: Floats = np.divide(distance, sd, out=np.full(distance.shape, np.nan), where=sd > 0)
    return scaled


def corrected(name: str, value: Floats, null_mean: Floats) -> Floats:
    """A distance with its mean without drift taken off, not below 0, so that one threshold suits windows of any size.

    null_mean : of `bands`; for js, hellinger and energy that of the square, which is corrected before the root is taken
    A test's number is handed back as it is: its p-value knows the window's size.
    """
    if name in EVIDENCE:
        return value
    if name in SQUARED:
        return np.sqrt(np.maximum(value**2 - null_mean, 0.0))
    return np.maximum(value - null_mean, 0.0)


def tv_null_mean(reference: Counts, h: Floats) -> Floats:
    """Mean of the total variation without drift."""
    p = shares(reference)
    mean: Floats = np.sqrt(h / (2 * np.pi)) * np.sqrt(p * (1 - p)).sum(axis=-1)
    return mean


# ---- the formulas -------------------------------------------------------------------------------------------------------

def jeffreys(P: Floats, Q: Floats, log_ratio: Floats) -> Floats:
    """`psi` of smoothed shares and ln(Q / P)."""
    total: Floats = ((Q - P) * log_ratio).sum(axis=-1)
    return total


def divergence(P: Floats, Q: Floats, log_ratio: Floats) -> Floats:
    """`kl` of smoothed shares and ln(Q / P)."""
    total: Floats = (Q * log_ratio).sum(axis=-1)
    return np.maximum(total, 0.0)                              # rounding of equal shares; NaN passes


def jensen_shannon(p: Floats, q: Floats) -> Floats:
    """`js` of shares."""
    middle = (p + q) / 2
    bits = (special.rel_entr(p, middle) + special.rel_entr(q, middle)).sum(axis=-1) / (2 * _LN2)
    distance: Floats = np.sqrt(np.clip(bits, 0.0, 1.0))
    return distance


def hellinger_of(p: Floats, q: Floats) -> Floats:
    """`hellinger` of shares."""
    # Half the sum of squared root differences: exact near 0, where 1 - sum sqrt(p q) has lost its digits.
    distance: Floats = np.minimum(np.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum(axis=-1) / 2), 1.0)
    return distance


def moved(p: Floats, q: Floats) -> Floats:
    """`tv` of shares."""
    share: Floats = np.minimum(np.abs(q - p).sum(axis=-1) / 2, 1.0)
    return share


def travelled(steps: Floats, places: Floats) -> Floats:
    """`wasserstein_plain` of cumulative steps, in the unit of the places."""
    gaps = np.nan_to_num(np.diff(places, axis=-1), nan=0.0)
    distance: Floats = (steps[..., :-1] * gaps).sum(axis=-1)
    return distance


def cumulative_steps(reference: Counts, window: Counts) -> Floats:
    """Sizes of the differences of the cumulative shares up to and with every bin; NaN where a side has no events."""
    sizes: Floats = np.abs(np.cumsum(shares(window) - shares(reference), axis=-1))
    return sizes


def smoothed(counts: Counts, live: Bools | None) -> Floats:
    """Shares with half an event added to every live bin; 1 in others, which then drop out of every logarithm."""
    exists = np.ones(counts.shape, bool) if live is None else live
    total = counts.sum(axis=-1, keepdims=True) + PSEUDO_COUNT * exists.sum(axis=-1, keepdims=True)
    return np.where(exists, (counts + PSEUDO_COUNT) / total, 1.0)


def known(reference: Counts, window: Counts, value: Floats | float) -> Floats:
    """`value` where both sides have events, NaN elsewhere."""
    filled: Bools = (reference.sum(axis=-1) > 0) & (window.sum(axis=-1) > 0)
    return np.where(filled, value, np.nan)
