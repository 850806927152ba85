"""P-values that mean it: two-sample tests on counts which treat the reference as a sample, too.

Idea: both sides of a comparison are noisy. The one-sample chi-square of other tools takes the reference's counts as
exact and alarms on most windows without drift when the two are of like size; here the reference's own variance is in
every test. Dependence between events divides a statistic by the design effect g.

Invariants: a p-value is for people to read beside an effect; none of these decides under the false-alarm budget. Rows
without events on either side have p = NaN. Inputs are left as they are.

Cost: `chi2_two_sample` and `g_test` are one numpy pass over (columns, bins); the order tests take the eigenvalues of
one bins x bins matrix per column, 1 ms at 64 bins, so they run on demand.

Neighbours: `distances` shows how far, these how surely.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Counts = NDArray[np.int64] | NDArray[np.float64]

#: Bins that expect fewer events on either side are merged into one: the chi-square law does not hold there.
EXPECTED_MIN = 5.0


def chi2_two_sample(reference: Counts, window: Counts, g: Floats | float = 1.0) -> tuple[Floats, Floats, Floats]:
    """Pearson's two-sample statistic, its degrees of freedom and p-value of each column.

    reference, window : counts, shape (columns, bins)         g : design effect, shape (columns,)
    returns           : three arrays of shape (columns,); p is 1 where one bin is left, NaN where a side has no events

    >>> x2, df, p = chi2_two_sample(np.array([[10, 20, 30, 40]]), np.array([[15, 15, 10, 10]]))
    >>> x2.round(6).tolist(), df.tolist(), p.round(6).tolist()
    ([14.678571], [3.0], [0.002113])
    """
    n, c, e1, e0, df = _merged(reference, window)
    statistic = _over((n - e1) ** 2, e1).sum(axis=-1) + _over((c - e0) ** 2, e0).sum(axis=-1)
    return _with_p(statistic / g, df, reference, window)


def g_test(reference: Counts, window: Counts, g: Floats | float = 1.0) -> tuple[Floats, Floats, Floats]:
    """The likelihood-ratio statistic (G) of two samples, as `chi2_two_sample`."""
    n, c, e1, e0, df = _merged(reference, window)
    statistic = 2 * (special.xlogy(n, _over(n, e1)) + special.xlogy(c, _over(c, e0))).sum(axis=-1)
    return _with_p(np.maximum(statistic, 0.0) / g, df, reference, window)


def ks_p(statistic: Floats | float, h: Floats | float) -> Floats:
    """Asymptotic p-value of a Kolmogorov-Smirnov statistic; h = g (1/N + 1/m). Conservative on bins."""
    return np.asarray(special.kolmogorov(np.asarray(statistic) / np.sqrt(h)))


@dataclass(frozen=True, slots=True)
class OrderTest:
    """A quadratic test on the distance of two cumulative shares, and the scaled chi-square law it has without drift.

    statistic : T        null_mean : its mean without drift       a, nu : T / a is about chi-square with nu degrees
    """

    statistic: float
    null_mean: float
    a: float
    nu: float
    p: float


def cvm(reference: Counts, window: Counts, g: float = 1.0) -> OrderTest:
    """Cramér-von Mises test of one column, from counts of shape (bins,) in order (two samples: Anderson 1962)."""
    return _order_test(reference, window, lambda share, below: share, g)


def anderson(reference: Counts, window: Counts, g: float = 1.0) -> OrderTest:
    """Anderson-Darling test of one column, from counts of shape (bins,) in order: the tails weigh more."""
    return _order_test(reference, window, lambda share, below: _over(share, below * (1 - below)), g)


def energy(reference: Counts, window: Counts, positions: Floats, g: float = 1.0) -> OrderTest:
    """Energy test of one column (Székely and Rizzo), from counts and positions of shape (bins,) in order."""
    gaps = np.diff(positions)
    return _order_test(reference, window, lambda share, below: 2 * gaps, g)


def energy_distance(reference: Counts, window: Counts, positions: Floats) -> float:
    """The distance behind `energy`, in the square root of the column's unit."""
    steps = np.cumsum(window / window.sum() - reference / reference.sum())[:-1]
    return float(np.sqrt(2 * (np.diff(positions) * steps**2).sum()))


def _order_test(reference: Counts, window: Counts, weigh: Callable[[Floats, Floats], Floats], g: float) -> OrderTest:
    m, N = float(reference.sum()), float(window.sum())
    if not m or not N:
        return OrderTest(*[float("nan")] * 5)
    steps = np.cumsum(window / N - reference / m)[:-1]
    share = (reference + window) / (N + m)
    H = np.cumsum(share)[:-1]
    w = weigh(share[:-1], H)
    statistic = float(N * m / (N + m) * (w * steps**2).sum())
    kernel = np.sqrt(np.outer(w, w)) * (np.minimum.outer(H, H) - np.outer(H, H))
    total, squares = float(np.trace(kernel)), float((kernel * kernel).sum())     # sums of eigenvalues and their squares
    if total <= 0:
        return OrderTest(statistic, 0.0, 0.0, 0.0, 1.0)
    a, nu = squares / total, total**2 / squares
    return OrderTest(statistic, total, a, nu, float(special.chdtrc(nu, statistic / (g * a))))


def _merged(reference: Counts, window: Counts) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Counts and expectations of both sides with thin bins merged into one more bin, and degrees of freedom."""
    m, N = reference.sum(axis=-1, keepdims=True), window.sum(axis=-1, keepdims=True)
    both = reference + window
    share = _over(both, N + m)
    e1, e0 = share * N, share * m
    thin = np.minimum(e1, e0) < EXPECTED_MIN

    def merged(values: Counts) -> Floats:
        small = np.where(thin, values, 0.0)
        return np.concatenate([values - small, small.sum(axis=-1, keepdims=True)], axis=-1)

    bins = (~thin).sum(axis=-1) + ((both > 0) & thin).any(axis=-1)
    return merged(window), merged(reference), merged(e1), merged(e0), np.maximum(bins - 1.0, 0.0)


def _with_p(statistic: Floats, df: Floats, reference: Counts, window: Counts) -> tuple[Floats, Floats, Floats]:
    p = np.where(df > 0, special.chdtrc(np.maximum(df, 1.0), statistic), 1.0)
    known = (reference.sum(axis=-1) > 0) & (window.sum(axis=-1) > 0)
    return np.where(known, statistic, np.nan), df, np.where(known, p, np.nan)


def _over(part: Counts, whole: Counts) -> Floats:
    """part / whole, 0 where there is nothing to divide by."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole != 0)
