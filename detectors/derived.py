"""Joint rows: numbers made of all columns of an event, so that a change of the dependence between columns is seen.

Idea: two columns can drift together while each keeps its own distribution. Every column gives each event a normal score
(the location score of its scan bin), and the directions in which the scores of the reference vary least and most, plus
their overall length (Mahalanobis), are watched as further numeric rows. A broken dependence shows first where the
reference hardly varied.

Invariants. The structure is learnt on the even blocks of 50 rows, the rows are binned and counted on the odd ones: on
the same rows the reference would look calmer than fresh data. The joint values of an event do not depend on the batch it
came in: scores and weights are rounded to binary fractions so coarse that every sum of their products is exact in
float64, in whatever order a matrix product adds them.

Cost, per event: 6-12 ns per column for its score, columns x (rows + spread) multiplications, and a numeric row's count
for each joint row: 0.4 us at 20 columns. The spread rests on at most 128 components, so the cost stays linear in the
columns. Memory: columns x 140 x 8 bytes.

Neighbours: `reference` counts these rows like any other, `directions` gives the scores, `scan` decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detectors.binning import NumericBinning
from detectors.dependence import BLOCK_ROWS
from detectors.directions import directions
from detectors.rows import Row

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Components of least and of largest variance that become rows of their own: six of each, fewer below 12 columns.
COMPONENTS_MAX = 6
#: Components that the spread is taken over; beyond so many columns those of least and of largest variance stand for all.
SPREAD_MAX = 128
#: Added to the diagonal of the correlations, and least variance of a component: copies of a column have variance 0.
RIDGE = 1e-3
#: Rows looked at together: small enough for the second-level cache at 100 columns.
CHUNK_ROWS = 2048
#: Below so many rows there is no honest half to count on.
ROWS_MIN = 200
#: Share of a component's largest weight from which on a column has a say in it.
NOTICEABLE = 0.1
#: Binary digits behind the point of a score; with the weights' it must fit into float64's 53.
_SCORE_BITS = 18
_SPREAD_DECIMALS = 9
#: From so many values on comparing all edges at once beats searching each value.
_COMPARE_MIN = 1500


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """How the joint rows of an event are computed from the scan bins of its columns.

    scores     : per column, the score of each scan bin; 0 for missing
    components : float64 (columns, rows - 1), weights of the component rows, in the order of the rows
    whitening  : float64 (columns, at most 128), weights of the components whose mean square is the last row
    """

    scores: tuple[Floats, ...]
    components: Floats
    whitening: Floats
    _weights: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_weights", np.ascontiguousarray(np.hstack([self.components, self.whitening]).T))

    @property
    def rows(self) -> int:
        """Number of joint rows."""
        return int(self.components.shape[1]) + 1

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the joint rows: components from the least variance to the largest, then the spread."""
        return (*(f"joint[{i}]" for i in range(1, self.rows)), "joint[spread]")

    @classmethod
    def fit(cls, records: Sequence[Row], chunks: Iterator[tuple[int, Floats]]) -> Joint:
        """Components of the scores' correlations on the even blocks.

        records : the rows of the columns that take part, two or more
        chunks  : pairs (first row, scores (columns, n)) over all reference rows in time order
        """
        d = len(records)
        sums, squares, n = np.zeros(d), np.zeros((d, d)), 0
        for first, scores in chunks:                            # turns: chunks of the reference
            part = scores[:, even_blocks(first, scores.shape[1])]
            sums, squares, n = sums + part.sum(axis=1), squares + part @ part.T, n + part.shape[1]
        covariance = squares / n - np.outer(sums / n, sums / n)
        sd = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        flat = sd <= 1e-9
        sd[flat] = 1.0
        correlation = covariance / np.outer(sd, sd)
        correlation[flat, :] = correlation[:, flat] = 0.0       # a constant column depends on nothing
        np.fill_diagonal(correlation, 1.0)
        variance, vectors = np.linalg.eigh(correlation + RIDGE * np.eye(d))
        top = np.abs(vectors).argmax(axis=0)
        vectors *= np.where(vectors[top, np.arange(d)] < 0, -1.0, 1.0)
        scaled = vectors / np.sqrt(np.maximum(variance, RIDGE))
        q = min(COMPONENTS_MAX, d // 2)
        chosen = [*range(q), *range(d - q, d)]
        half = SPREAD_MAX // 2
        spread = range(d) if d <= SPREAD_MAX else [*range(half), *range(d - half, d)]
        return cls(tuple(score_of_bins(row) for row in records), exact(scaled[:, chosen]), exact(scaled[:, list(spread)]))

    def values(self, scores: Floats) -> Floats:
        """The joint rows, shape (rows, n), of events with the scores (columns, n)."""
        mixed = self._weights @ scores
        components = self.rows - 1
        out = np.empty((self.rows, scores.shape[1]))
        out[:components] = mixed[:components]
        white = np.square(mixed[components:], out=mixed[components:])
        # Summed one component after another: numpy's own order of a reduction depends on the shape.
        total = white[0].copy()
        for row in white[1:]:                                   # at most 127 turns a chunk
            total += row
        np.round(total / len(white), _SPREAD_DECIMALS, out=out[components])
        return out

    def leading(self, row: int, shift: Floats | None, most: int = 3) -> Ints:
        """The columns that matter most to a joint row, strongest first.

        shift : difference of each column's mean score in the window, for a component whose mean moved; None otherwise
        """
        if row < self.rows - 1:
            weight = np.abs(self.components[:, row])
        else:
            weight = np.sqrt(np.square(self.whitening).sum(axis=1))
        order: Ints = np.argsort(-(weight if shift is None else weight * np.abs(shift)), kind="stable")
        return order[:most]


    def involves(self, columns: Bools) -> Bools:
        """Which joint rows (rows,) a change of the marked columns (columns,) would move noticeably; the spread always."""
        weight = np.abs(self.components)
        touched = (weight[columns].max(axis=0, initial=0.0) >= NOTICEABLE * weight.max(axis=0)) & columns.any()
        return np.append(touched, columns.any())


def even_blocks(first: int, rows: int) -> Bools:
    """Which of `rows` reference rows from `first` on lie in even blocks of 50: the half that structure is learnt on."""
    even: Bools = (np.arange(first, first + rows) // BLOCK_ROWS) % 2 == 0
    return even


def score_of_bins(row: Row) -> Floats:
    """The score of each scan bin of a row: its location weight from the raw counts, rounded to 2^-18.

    A value that the reference never showed must not act as an extreme: unseen and rest count as the rarest kept level.
    """
    raw = np.bincount(row.binning.scan_of_fine, weights=row.counts, minlength=row.binning.scan_bins).astype(np.float64)
    inner = raw[2:-1] if row.is_numeric else raw[1:]
    if np.count_nonzero(inner) < 2:
        return np.zeros(len(raw))
    score = directions(raw)[:, 0]
    if not row.is_numeric:
        score[-2:] = score[-3] if len(score) > 3 else 0.0
    return np.ldexp(np.round(np.ldexp(score, _SCORE_BITS)), -_SCORE_BITS)


def exact(weights: Floats) -> Floats:
    """Weights rounded so that any sum of products with scores (at most 4, in steps of 2^-18) is exact in float64."""
    largest = 4.0 * np.abs(weights).sum(axis=0).max(initial=1.0) + 1.0
    bits = 53 - _SCORE_BITS - int(np.ceil(np.log2(largest))) - 1
    return np.ldexp(np.round(np.ldexp(weights, bits)), -bits)


def number_scores(binning: NumericBinning, score: Floats, values: Floats, out: Floats) -> None:
    """Scores of the numbers `values` into `out`, both (n,); the bins are those of `binning.scan_edges`."""
    edges = binning.scan_edges
    if len(values) >= _COMPARE_MIN:
        code = np.add.reduce((values >= edges[:, None]).view(np.uint8), axis=0, dtype=np.uint8)
    else:
        code = edges.searchsorted(values, side="right")
    score[1:].take(code, out=out, mode="clip")
    missing = np.isnan(values)
    if missing.any():
        out[missing] = 0.0
