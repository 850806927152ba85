"""P-values that mean it: two-sample tests on counts which treat the reference as a sample, too.

Idea: both sides of a comparison are noisy. The one-sample chi-square of other tools takes the reference's counts as
exact and alarms on most windows without drift when the two are of like size; here the reference's own variance is in
every test. Dependence between events divides a statistic by the design effect g.

Invariants: a p-value is for people to read beside an effect; none of these decides under the false-alarm budget. All
are two-sided, without continuity corrections. Rows without events on either side have p = NaN. Columns are the first
axis, bins the last one; columns do not influence one another. Inputs are left as they are.

Cost: one numpy pass over (columns, bins) each, 20 to 100 ns per cell; the eigenvalues of the quadratic order tests are
never found one by one, two sums over the bins hold all that is asked of them. `fisher` is 1,000 terms per column.

Neighbours: `distances` shows how far, these how surely; `methods` names them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]
Counts = NDArray[np.int64] | NDArray[np.float64]

#: Bins that expect fewer events on either side are merged into one: the chi-square law does not hold there.
EXPECTED_MIN = 5.0
#: From this many events on both sides together, the normal law of two shares serves and the exact test costs too much.
FISHER_EVENTS_MAX = 1000
#: Smallest p-value that is told apart: -log10 p ends here.
LOG10_P_MAX = 300.0
#: Tables whose probabilities differ by less than this are equally likely: rounding must not decide which ones count.
_EQUALLY_LIKELY = 1 + 1e-7


def minus_log10(p: Floats) -> Floats:
    """-log10 p, 0 to 300; NaN stays NaN."""
    with np.errstate(divide="ignore"):
        return np.minimum(-np.log10(p), LOG10_P_MAX) + 0.0                                   # + 0.0: no negative zero


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


# ---- two shares ---------------------------------------------------------------------------------------------------------

def z_test(reference: Counts, window: Counts, g: Floats | float = 1.0) -> tuple[Floats, Floats]:
    """Difference of two shares in its standard errors, with the pooled variance, and its p-value, of each column.

    reference, window : events with and without the property, shape (columns, 2)      g : design effect
    z                 : above 0 where the window's share is the larger one; 0 (p = 1) where all events are alike

    >>> z, p = z_test(np.array([[600, 400]]), np.array([[130, 70]]))
    >>> z.round(6).tolist(), p.round(6).tolist()
    ([1.322407], [0.186033])
    """
    m, N = (np.asarray(side.sum(axis=-1), np.float64) for side in (reference, window))
    pooled = _over(reference[..., 0] + window[..., 0], m + N)
    with np.errstate(divide="ignore", invalid="ignore"):                       # a side without events is NaN, as it should
        variance = pooled * (1 - pooled) * (1 / m + 1 / N) * g
        difference = window[..., 0] / N - reference[..., 0] / m
    z = _over(difference, np.sqrt(variance))
    z = np.where((m > 0) & (N > 0), z, np.nan)
    return z, 2 * special.ndtr(-np.abs(z))


def fisher(reference: Counts, window: Counts) -> Floats:
    """Fisher's exact two-sided p-value of each column: all tables that are no more likely than the one seen.

    reference, window : events with and without the property, shape (columns, 2); NaN where a side has none
    Exact for independent events; memory is columns x the fewest events of a margin.

    >>> fisher(np.array([[8, 2]]), np.array([[1, 5]])).round(6).tolist()
    [0.034965]
    """
    both = np.concatenate([reference, window], axis=-1).astype(np.float64)
    a, b, c, d = (both[..., [cell]] for cell in range(4))
    first, m, total = a + c, a + b, a + b + c + d
    k = np.arange(1.0 + np.minimum(first, m).max(initial=0.0))
    possible = (k <= np.minimum(first, m)) & (k >= m + first - total)
    k = np.where(possible, k, a)
    ways = _log_choose(first, k) + _log_choose(total - first, m - k)
    likely = np.where(possible, np.exp(ways - _log_choose(total, m)), 0.0)
    seen = np.exp(_log_choose(first, a) + _log_choose(total - first, m - a) - _log_choose(total, m))
    p = np.where(likely <= seen * _EQUALLY_LIKELY, likely, 0.0).sum(axis=-1)
    known = (m > 0) & (c + d > 0)
    return np.where(known[..., 0], np.minimum(p, 1.0), np.nan)


def _log_choose(n: Floats, k: Floats) -> Floats:
    ways: Floats = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    return ways


# ---- location -----------------------------------------------------------------------------------------------------------

def welch(reference: Counts, window: Counts, positions: Floats, g: Floats | float = 1.0) -> tuple[Floats, Floats, Floats]:
    """Welch's t, its degrees of freedom and p-value of each column, from counts and places of bins in order.

    positions : place of every bin, shape as counts (NaN where there is none)       g : design effect
    t         : above 0 where the window's mean is the larger one

    Binning error: an event counts at its bin's reference mean. The two means err by at most one mean bin width, the
    variances lack what lies within bins (some 1 % with 64 bins of a normal column, 10 to 40 % of a lognormal one, whose
    last bin is wide), and values out of range count at its end: |t| is that of the column so clipped and rounded, whose
    level is its own and honest. A side of one event takes the other side's variance.
    """
    x = np.nan_to_num(positions, nan=0.0)
    (m, mean0, v0), (N, mean1, v1) = _moments(reference, x), _moments(window, x)
    v0, v1 = np.where(m > 1, v0, v1), np.where(N > 1, v1, v0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        part0, part1 = v0 * g / m, v1 * g / N
        error = part0 + part1
        gap = mean1 - mean0
        gap = np.where(np.abs(gap) > 1e-12 * np.abs(x).max(axis=-1, initial=0.0), gap, 0.0)       # else: rounding
        t = np.where(gap == 0, 0.0, gap / np.sqrt(error))
        # Shares of the error, because squares of very small or large parts are not finite.
        share = np.where(error > 0, part1 / error, 0.5)
        df = 1 / (share**2 / np.maximum(N / g - 1, 1.0) + (1 - share) ** 2 / np.maximum(m / g - 1, 1.0))
        p = 2 * special.stdtr(df, -np.abs(t))
    known = (m > 0) & (N > 0)
    return np.where(known, t, np.nan), np.where(known, df, np.nan), np.where(known, p, np.nan)


def _moments(counts: Counts, x: Floats) -> tuple[Floats, Floats, Floats]:
    """Events, mean and variance (divided by events - 1) of counts at places x; 0 where there are none."""
    total = np.asarray(counts.sum(axis=-1), np.float64)
    mean = _over((counts * x).sum(axis=-1), total)
    squares = (counts * (x - mean[..., None]) ** 2).sum(axis=-1)
    return total, mean, squares / np.maximum(total - 1, 1.0)


def mann_whitney(reference: Counts, window: Counts, g: Floats | float = 1.0) -> tuple[Floats, Floats]:
    """The rank-sum statistic of each column in its standard errors, and its p-value (normal law), from bins in order.

    z : above 0 where the window's values are the larger ones; 0 (p = 1) where all events share one bin

    Events of one bin share their mid-rank and the variance is corrected for these ties. Against raw values the share
    of pairs (window above reference) errs by at most half the chance that a pair falls into one bin, 1/128 with 64 bins.

    >>> z, p = mann_whitney(np.array([[10, 20, 30, 40]]), np.array([[15, 15, 10, 10]]))
    >>> z.round(6).tolist(), p.round(6).tolist()
    ([-3.623713], [0.00029])
    """
    m, N = (np.asarray(side.sum(axis=-1), np.float64) for side in (reference, window))
    below = np.cumsum(reference, axis=-1) - reference / 2
    pairs = (window * below).sum(axis=-1)
    total = m + N
    tied = np.asarray(reference + window, np.float64)
    ties = _over((tied**3 - tied).sum(axis=-1), total * (total - 1))
    spread = np.sqrt(np.maximum(m * N / 12 * (total + 1 - ties) * g, 0.0))
    one_bin = ((reference + window) > 0).sum(axis=-1) < 2
    z = np.where(one_bin, 0.0, _over(pairs - m * N / 2, spread))
    z = np.where((m > 0) & (N > 0), z, np.nan)
    return z, 2 * special.ndtr(-np.abs(z))


# ---- quadratic order tests ----------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True, eq=False)
class OrderTest:
    """Quadratic tests on the distance of two cumulative shares, and the scaled chi-square law without drift, per column.

    statistic : T        null_mean : its mean without drift       a, nu : T / a is about chi-square with nu degrees
    """

    statistic: Floats
    null_mean: Floats
    a: Floats
    nu: Floats
    p: Floats


def cvm(reference: Counts, window: Counts, g: Floats | float = 1.0) -> OrderTest:
    """Cramér-von Mises test of each column, from counts of shape (..., bins) in order (two samples: Anderson 1962)."""
    share = _over(reference + window, (reference + window).sum(axis=-1, keepdims=True))
    return _order_test(reference, window, share[..., :-1], g)


def anderson(reference: Counts, window: Counts, g: Floats | float = 1.0) -> OrderTest:
    """Anderson-Darling test of each column, from counts of shape (..., bins) in order: the tails weigh more."""
    both = reference + window
    share = _over(both, both.sum(axis=-1, keepdims=True))[..., :-1]
    below, above = cumulative(both)
    return _order_test(reference, window, _over(share, below * above), g)


def energy(reference: Counts, window: Counts, positions: Floats, g: Floats | float = 1.0) -> OrderTest:
    """Energy test of each column (Székely and Rizzo), from counts and positions of shape (..., bins) in order."""
    return _order_test(reference, window, 2 * np.nan_to_num(np.diff(positions, axis=-1), nan=0.0), g)


def energy_distance(reference: Counts, window: Counts, positions: Floats) -> Floats:
    """The distance behind `energy`, in the square root of the column's unit; NaN where a side has no events.

    It errs by at most the square root of twice the mean bin width, and usually by far less; see `distances.wasserstein`.
    """
    return quadratic_distance(reference, window, 2 * np.nan_to_num(np.diff(positions, axis=-1), nan=0.0))


def quadratic_distance(reference: Counts, window: Counts, weights: Floats) -> Floats:
    """Root of the weighted squares of the steps between two cumulative shares; weights of shape (..., bins - 1)."""
    steps = _steps(reference, window)
    distance: Floats = np.sqrt((weights * steps**2).sum(axis=-1))
    return distance


def quadratic_law(below: Floats, above: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Sum of the eigenvalues l of sqrt(w_i w_j) (min(H_i, H_j) - H_i H_j), and of their squares, per column.

    below, above : H and 1 - H, shape (..., bins - 1)

    Trace and squared norm of that matrix, without making it: for i < j an entry's square is w_i H_i^2 w_j (1 - H_j)^2.
    """
    rising, falling = weights * below**2, weights * above**2
    total: Floats = (weights * below * above).sum(axis=-1)
    before = np.cumsum(rising, axis=-1) - rising
    squares: Floats = (rising * falling + 2 * before * falling).sum(axis=-1)
    return total, squares


def _order_test(reference: Counts, window: Counts, weights: Floats, g: Floats | float) -> OrderTest:
    m, N = (np.asarray(side.sum(axis=-1), np.float64) for side in (reference, window))
    statistic = _over(N * m, N + m) * (weights * _steps(reference, window) ** 2).sum(axis=-1)
    total, squares = quadratic_law(*cumulative(reference + window), weights)
    a, nu = _over(squares, total), _over(total**2, squares)
    p = np.where(nu > 0, special.chdtrc(np.maximum(nu, 1e-9), _over(statistic, g * a)), 1.0)
    known = (m > 0) & (N > 0)
    return OrderTest(*(np.where(known, values, np.nan) for values in (statistic, total, a, nu, p)))


def _steps(reference: Counts, window: Counts) -> Floats:
    """Differences of the cumulative shares between bins, shape (..., bins - 1); NaN where a side has no events."""
    with np.errstate(invalid="ignore", divide="ignore"):
        below1 = np.cumsum(window, axis=-1)[..., :-1] / window.sum(axis=-1, keepdims=True)
        below0 = np.cumsum(reference, axis=-1)[..., :-1] / reference.sum(axis=-1, keepdims=True)
    steps: Floats = below1 - below0
    return steps


def cumulative(counts: Counts) -> tuple[Floats, Floats]:
    """Shares up to and beyond every bin but the last, from whole counts, so that 0 and 1 are exact."""
    total, below = counts.sum(axis=-1, keepdims=True), np.cumsum(counts, axis=-1)[..., :-1]
    return _over(below, total), _over(total - below, total)


# ---- chi-square ---------------------------------------------------------------------------------------------------------

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


def _over(part: ArrayLike, whole: ArrayLike) -> Floats:
    """part / whole, 0 where there is nothing to divide by."""
    ratio: Floats = np.divide(part, whole, out=np.zeros(np.broadcast_shapes(np.shape(part), np.shape(whole))),
                              where=np.asarray(whole) != 0)
    return ratio
