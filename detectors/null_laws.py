"""What distances read without drift, in a window of any size: their means and their 95 % points.

Idea: a distance is above 0 without drift and the more so, the smaller the window; a threshold that ignores this alarms on
every small window. Differences of two shares have the covariance h (diag p - p p') with h = g (1/N + 1/m), and there
are three ways from it to a law. Sums over bins (psi, kl, js, hellinger) are scaled chi-square; with 5 events in
most bins that is the textbook's (K - 1) h and `analytic_null` says so. In thin bins it is not: there the two first
moments of each bin's term come from a table over Poisson counts, and the smoothing's own offset is added. Energy is a
quadratic form with known eigenvalue sums. All others are simulated once per row and scale with sqrt(h).

Invariants: a band belongs to one reference and one number of events; its 95 % point is above its mean; NaN where a
row has no such distance or no event is expected.

Cost: 60 ns per cell, once per number of events and reference; the tables take 5 ms, once per process, and the
simulation 1,000 draws per row at fit, 10 ms.

Neighbours: `distances` computes the values, `tests` the eigenvalue sums, `rows` keeps the simulated ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from detectors.binning import FINE_BINS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_LN2 = float(np.log(2))
_DRAWS, _SEED = 1000, 20_240_501
#: Expected events of a bin that the tables cover: below, terms are as good as linear; above, as good as chi-square.
_EXPECTED = np.geomspace(0.003, 300.0, 96)


def analytic_null(bins: Floats | Ints, h: Floats) -> dict[str, tuple[Floats, Floats]]:
    """Mean and 95 % point without drift of psi, kl, js and hellinger (means of the square for the last two).

    bins : live bins K of each column          h : design effect x (1/N + 1/m)
    The law for large counts: approximate unless most bins expect 5 events.
    """
    df = np.asarray(bins, np.float64) - 1.0
    point: Floats = special.chdtri(df, 0.05)
    return {"psi": (df * h, point * h), "kl": (df * h / 2, point * h / 2),
            "js": (df * h / (8 * _LN2), np.sqrt(point * h / (8 * _LN2))),
            "hellinger": (df * h / 8, np.sqrt(point * h / 8))}


def sum_null(name: str, p: Floats, h: Floats, shrink: Floats | float = 1.0) -> tuple[Floats, Floats]:
    """Mean and 95 % point without drift of psi, kl, js^2, hellinger^2 (mean also of tv) from any bins, thin ones included.

    p      : shares, shape (columns, bins)                  h : design effect x (1/N + 1/m), shape (columns,)
    shrink : what smoothing leaves of a difference, N / (N + K/2)

    Noise of both sides is taken as one Poisson count of mean p/h, exact for m >> N and for large counts; mean and squared
    norm of its terms' covariance give the scaled chi-square law.
    """
    means, squares = _terms(name)
    expected = p / h[:, None]
    size = np.sqrt(expected) if name == "tv" else 1.0          # the table holds what is left of a term beside this
    mean = _at(expected, means) * size
    total = (mean * (1 - p)).sum(axis=-1)
    if name == "tv":                                           # a size, no square: its variance goes with the root
        total = (mean * np.sqrt(1 - p)).sum(axis=-1)
    # The shares add up to 1, so terms are not independent: covariance of squares is that of a multinomial's residuals.
    norm = ((_at(expected, squares) * size**2 * (1 - p) ** 2).sum(axis=-1)
            + (mean * p).sum(axis=-1) ** 2 - (mean**2 * p**2).sum(axis=-1))
    return shrink * h * total, shrink * h * scaled_point(total, norm)


def scaled_point(total: Floats, squares: Floats) -> Floats:
    """95 % point of a sum of squared normals with eigenvalues of that sum and that sum of squares (Satterthwaite)."""
    a, nu = _ratio(squares, total), _ratio(total**2, squares)
    point: Floats = a * np.where(nu > 0, special.chdtri(np.maximum(nu, 1e-9), 0.05), 0.0)
    return point


def largest_null(p: Floats, h: Floats, unit_point: Floats) -> Floats:
    """95 % point without drift of the largest difference of a share, from the simulated one at h = 1.

    Counts lean to the right, the simulation's normal law does not: its quantile is moved by the first term of Cornish
    and Fisher (1937) for the largest bin, which decides.
    """
    most = p.max(axis=-1)
    sd = np.sqrt(most * (1 - most))
    z = _ratio(unit_point, sd)
    skew = _ratio((1 - 2 * most) * np.sqrt(h), sd)
    lean = np.maximum(skew, 0.0) * np.maximum(z**2 - 1, 0.0) / 6
    point: Floats = np.sqrt(h) * (unit_point + sd * np.minimum(lean, z))
    return point


def simulated_null(counts: Ints, positions: Floats, sd: float) -> dict[str, tuple[float, float]]:
    """Mean and 95 % point at h = 1 of the distances whose law has no formula, for one row of reference counts.

    counts : fine bins with missing first       positions : of the bins, empty for categories (no order, no ks)
    Differences of shares without drift are Normal(0, h (diag p - p p')): 1,000 draws from a fixed seed.
    """
    rng = np.random.default_rng(_SEED)
    drawn = {}
    if counts.sum() > 0:
        xi = np.abs(_share_noise(counts / counts.sum(), rng))
        drawn = {"tv": xi.sum(axis=1) / 2, "linf": xi.max(axis=1)}
    present = counts[1:].astype(np.float64)
    if len(positions) and not has_values_for_bins(len(counts)):
        present[[0, -1]] += 1                                  # a fresh sample goes beyond either end once
    if len(positions) and present.sum() > 0:
        steps = np.abs(np.cumsum(_share_noise(present / present.sum(), rng), axis=1))
        drawn["ks"] = steps.max(axis=1)
        if sd > 0:
            drawn["wasserstein"] = steps[:, :-1] @ np.diff(positions[1:] / sd)   # divided first: finite
    return {name: (float(values.mean()), float(np.quantile(values, 0.95))) for name, values in drawn.items()}


def has_values_for_bins(bins: int) -> bool:
    """Whether a numeric column has so few values that every one of them is a bin."""
    return bins < FINE_BINS + 3


def _share_noise(p: Floats, rng: np.random.Generator) -> Floats:
    """Draws from Normal(0, diag p - p p'), shape (draws, bins)."""
    root = np.sqrt(p)
    g = rng.standard_normal((_DRAWS, len(p)))
    return root * g - p * (g @ root)[:, None]


#: One bin's term in events squared over events, of its count n and its expectation e; kl without its linear part,
#: which adds up to nothing.
_TERMS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "psi": lambda n, e: (n - e) * np.log((n + 0.5) / (e + 0.5)),
    "kl": lambda n, e: (n + 0.5) * np.log((n + 0.5) / (e + 0.5)) - (n - e),
    "js": lambda n, e: (special.rel_entr(n, (n + e) / 2) + special.rel_entr(e, (n + e) / 2)) / (2 * _LN2),
    "hellinger": lambda n, e: (np.sqrt(n) - np.sqrt(e)) ** 2 / 2,
    "tv": lambda n, e: np.abs(n - e) / 2,
}


@lru_cache(maxsize=len(_TERMS))
def _terms(name: str) -> tuple[Floats, Floats]:
    """Mean of a bin's term, and half its variance, over Poisson counts of the expectations `_EXPECTED`.

    Beyond the last of them psi, kl, js and hellinger no longer change; tv is given over the root of what is expected.
    """
    e = _EXPECTED[:, None]
    n = np.arange(np.ceil(_EXPECTED[-1] + 12 * np.sqrt(_EXPECTED[-1])) + 1)
    mass = np.exp(special.xlogy(n, e) - e - special.gammaln(n + 1))
    term = _TERMS[name](np.broadcast_to(n, mass.shape), np.broadcast_to(e, mass.shape))
    mean = (mass * term).sum(axis=1)
    half_variance = (mass * (term - mean[:, None]) ** 2).sum(axis=1) / 2
    return (mean / np.sqrt(_EXPECTED), half_variance / _EXPECTED) if name == "tv" else (mean, half_variance)


def _at(expected: Floats, table: Floats) -> Floats:
    """A table's value at any expectation: linear to 0 below it, its last value above it."""
    inside = np.interp(np.log(np.maximum(expected, _EXPECTED[0])), np.log(_EXPECTED), table)
    value: Floats = inside * np.minimum(expected / _EXPECTED[0], 1.0)
    return value


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, 0 where there is nothing to divide by."""
    return np.divide(part, whole, out=np.zeros(np.broadcast_shapes(part.shape, whole.shape)), where=whole > 0)
