"""The ways in which a row of counts can differ from its reference: location, scale and two shapes.

Idea: besides every single bin, the scan looks at four weighted sums of all bins of a row. The weights (directions) are
polynomials of degree 1 to 4 in the bins' normal scores, made orthonormal under the reference's own shares, so that each
sum has variance 1/N without drift and its size is in reference standard deviations.

Invariant: a direction is 0 on the missing bin and at most 4 in size (one far bin must not rule the sum); a row with
fewer bins than needed has zero directions, which are tested and never speak.

Cost: at fit only, a few dozen passes over one row's bins. The scan multiplies counts with the result, K x 4 a row.

Neighbours: `dependence` measures how much more the sums vary on dependent data; `reference` keeps both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Floats = NDArray[np.float64]

DIRECTIONS = 4
#: Mid-ranks are kept away from 0 and 1 and the weights from the far tail: no bin speaks louder than 4 s.d.
_RANK_MIN, _WEIGHT_MAX = 0.002, 4.0


def directions(c0: Floats) -> Floats:
    """Weights of the bins in each direction, shape (bins, 4), from the counts `c0` of one row, shape (bins,).

    Bin 0 is missing; the others are taken in their order. Rows with at most one bin that the reference filled beyond
    the allowance for unseen values are the caller's to zero: there is nothing to be located in.
    """
    p = c0 / c0.sum()
    scores = normal_scores(p)
    present = np.ones(len(p))
    present[0] = 0.0
    basis = [present]
    for power in range(1, DIRECTIONS + 1):
        v = scores**power * present
        for b in basis:                                          # at most 4 turns
            norm = p @ (b * b)
            if norm > 1e-9:
                v = v - (p @ (v * b)) / norm * b
        size = p @ (v * v)
        v = np.clip(v / np.sqrt(size), -_WEIGHT_MAX, _WEIGHT_MAX) if size > 1e-6 else np.zeros_like(v)
        v[0] = 0.0
        basis.append(v)
    return np.stack(basis[1:], axis=1)


def normal_scores(p: Floats) -> Floats:
    """Normal score of every bin's mid-rank among the bins 1 ..., shape (bins,); 0 for missing."""
    inner = p[1:]
    rank = (np.cumsum(inner) - inner / 2) / inner.sum()
    return np.concatenate([[0.0], ndtri(np.clip(rank, _RANK_MIN, 1 - _RANK_MIN))])
