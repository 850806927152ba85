"""Classifier two-sample test: can a model tell rows of the reference from rows of the window that it has not seen?

Idea (Lopez-Paz and Oquab, arXiv 1610.06545): if one distribution made both samples, no classifier beats chance on held
out rows. Its accuracy is the statistic, and what it leans on is the explanation: which columns tell the samples apart.

Invariant: convex, so the same rows and seed give the same model on every device up to rounding; the seed only thins
rows and permutes columns for the importances. Nothing is learnt from a test row, nor from its neighbours in time: whole
pieces of time are trained and tested on in turn, with a gap of one block between.

Cost: nine fits, each some 20 to 200 pairs of products with a matrix of (training rows) x (d + at most 528) float64.

Neighbours: `kernels` checks the rows and finds torch; `encoding` makes matrices of tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan, sqrt
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.stats import norm, rankdata

from detectors.kernels import ROWS_LIMIT, Floats, State, expect_whole, samples_of, shared_out, thinned, torch_on

if TYPE_CHECKING:
    from detectors.kernels import Tensor


#: Ridge penalties that are tried, per mean log loss on columns of unit variance; from "hardly any rows" to "plenty".
PENALTIES = (1.0, 0.1, 0.01, 0.001)
#: Directions whose products enter the model: all columns of a small table, the leading components of a wide one.
PRODUCT_DIRECTIONS = 32
#: Time is cut into this many pieces, used for training and testing in turn, if blocks are short enough.
_PIECES = 8
_TEST_ROWS_MIN = 10
#: Standardised values are cut here, so that one wild row does not decide the fit.
_CLIP = 5.0
_IMPORTANCE_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class ClassifierTest:
    """What `classifier` found on rows that it was not trained on.

    accuracy    : mean of the shares of either sample's test rows that were recognised, 0 to 1; chance is 0.5
    z, p        : of the accuracy, one-sided (`accuracy_test`)         auc : area under the ROC curve, 0 to 1
    n, m        : test rows of x and of y        n_test : rows of a balanced test of the same variance, before deff
    importances : per column, largest first: by how much the AUC falls when its test values are permuted
    exact       : every row took part          state : `too_few_rows` (numbers are NaN), `constant` (0.5, p 1), or `ok`
    """

    accuracy: float
    z: float
    p: float
    auc: float
    n: int
    m: int
    n_test: float
    importances: Mapping[str, float]
    exact: bool
    state: State = "ok"

    @property
    def score(self) -> float:
        """-log10 p, 0 and up (finite while p underflows); NaN where nothing was tested."""
        return float(-norm.logsf(self.z) / np.log(10.0))


def accuracy_test(accuracy: float, n_test: float, deff: float = 1.0) -> tuple[float, float]:
    """z and one-sided p of an accuracy on `n_test` balanced rows that carry the information of n_test / deff.

    >>> [round(number, 6) for number in accuracy_test(0.56, 400)]
    [2.4, 0.008198]
    """
    z = (accuracy - 0.5) / sqrt(0.25 * deff / n_test)
    return z, float(norm.sf(z))


def classifier(x: ArrayLike, y: ArrayLike, *, seed: int, block_rows: int = 1, deff: float = 1.0,
               names: Sequence[str] | None = None, rows_max: int = 20_000, device: str = "auto") -> ClassifierTest:
    """Classifier two-sample test: can a model tell rows of x from rows of y that it has not seen (arXiv 1610.06545)?

    x, y       : as in `mmd`
    block_rows : rows left out of the test on each side of a cut in time, so that no test row is a neighbour of a
                 training row; 1 for independent rows
    deff       : design effect of the rows, at least 1: the test rows carry the information of n_test / deff
    names      : of the columns, in order; equal names are one column to `importances` (default "0", "1" ...)

    The model is a logistic regression on the standardised columns and, where an inner validation prefers it, on the
    products of up to 32 directions (the columns, or their leading components): shifts, spreads and correlations. Both
    samples weigh the same. Pieces of time are trained and tested on in turn, none is split or shuffled.
    """
    first, second = samples_of("classifier", x, y)
    expect_whole("classifier block_rows", block_rows, 1, None)
    expect_whole("classifier rows_max", rows_max, 4 * block_rows, ROWS_LIMIT)
    if not (isfinite(deff) and deff >= 1):
        raise ValueError(f"classifier deff: expected a finite number >= 1, got {deff!r}; independent rows have 1")
    labels = [str(at) for at in range(first.shape[1])] if names is None else list(names)
    if len(labels) != first.shape[1]:
        raise ValueError(f"classifier names: expected {first.shape[1]} names, got {len(labels)}; name every column once")
    torch, where = torch_on("classifier", device)
    rng = np.random.default_rng(seed)
    blocks = len(first) // block_rows, len(second) // block_rows
    shares = shared_out(blocks, rows_max // block_rows)
    kept = [rows if sum(blocks) * block_rows <= rows_max else thinned(rng, rows, take, block_rows)
            for rows, take in zip((first, second), shares, strict=True)]
    exact = len(kept[0]) == len(first) and len(kept[1]) == len(second)
    trained, tested = zip(*(_pieces(rows, block_rows) for rows in kept), strict=True)
    n, m = len(tested[0]), len(tested[1])
    if min(n, m, *map(len, trained)) < _TEST_ROWS_MIN:
        return ClassifierTest(nan, nan, nan, nan, n, m, 0.0, {}, exact, "too_few_rows")
    n_test = 4 * n * m / (n + m)
    train = np.concatenate(trained)
    if (train == train[0]).all() and (np.concatenate(tested) == train[0]).all():
        return ClassifierTest(0.5, 0.0, 1.0, 0.5, n, m, n_test, dict.fromkeys(labels, 0.0), exact, "constant")
    model = _Quadratic.fit(torch, where, trained)
    rows = np.concatenate(tested)
    logits = model.logits(rows)
    recalled = [np.mean(np.sign(side) / 2 + 0.5) for side in (-logits[:n], logits[n:])]      # a logit of 0 is half right
    accuracy = float(sum(recalled) / 2)
    z, p = accuracy_test(accuracy, n_test, deff)
    importances = _importances(rng, model, rows, n, labels)
    return ClassifierTest(accuracy, z, p, _auc(logits, n), n, m, n_test, importances, exact)


def _pieces(rows: Floats, block_rows: int) -> tuple[Floats, Floats]:
    """Rows to train on and rows to test on: consecutive pieces in turn, with a gap of a block (if any) round test pieces."""
    pieces = min(max(len(rows) // (4 * block_rows) // 2 * 2, 2), _PIECES)
    edges = np.linspace(0, len(rows), pieces + 1).astype(int)
    gap = block_rows if block_rows > 1 else 0
    train = [rows[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=False)]
    test = [rows[start + gap : (stop - gap if stop < len(rows) else stop)]
            for start, stop in zip(edges[1::2], edges[2::2], strict=True)]
    return np.concatenate(train), np.concatenate(test)


def _auc(logits: Floats, n: int) -> float:
    """Area under the ROC curve of the last rows against the first n; ties count half."""
    m = len(logits) - n
    return float((rankdata(logits)[n:].sum() - m * (m + 1) / 2) / (n * m))


def _importances(rng: np.random.Generator, model: _Quadratic, rows: Floats, n: int, names: Sequence[str]) -> dict[str, float]:
    """Fall of the AUC per column name, on at most 2,000 test rows; one turn per name."""
    if len(rows) > _IMPORTANCE_ROWS:
        share = _IMPORTANCE_ROWS / len(rows)
        chosen = [start + np.linspace(0, size - 1, max(_TEST_ROWS_MIN, int(size * share))).astype(int)
                  for start, size in ((0, n), (n, len(rows) - n))]
        rows, n = rows[np.concatenate(chosen)], len(chosen[0])
    z, order = model.standardised(rows), rng.permutation(len(rows))
    linear, q = z @ model.linear + model.offset, z @ model.basis
    whole = _auc(model.joined(linear, q), n)
    members: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        members.setdefault(name, []).append(at)
    falls: dict[str, float] = {}
    for name, at_columns in members.items():
        here = z[:, at_columns]
        step = here[order] - here
        falls[name] = whole - _auc(model.joined(linear + step @ model.linear[at_columns], q + step @ model.basis[at_columns]), n)
    return dict(sorted(falls.items(), key=lambda item: -item[1]))


@dataclass(frozen=True, slots=True, eq=False)
class _Quadratic:
    """A logistic regression on columns and products of directions: logit = offset + z'linear + q'products q, q = z'basis.

    mean, sd, linear : (d,), z = clipped (row - mean) / sd          basis : (d, q), q <= 32, q of unit variance
    products         : (q, q), upper triangle
    """

    mean: Floats
    sd: Floats
    basis: Floats
    linear: Floats
    products: Floats
    offset: float

    def standardised(self, rows: Floats) -> Floats:
        """z of the rows, (n, d), within +-5; 0 in columns that were constant in training."""
        return np.clip((rows - self.mean) / self.sd, -_CLIP, _CLIP)

    def logits(self, rows: Floats) -> Floats:
        """Log odds that each row is from the second sample, (n,)."""
        z = self.standardised(rows)
        return self.joined(z @ self.linear + self.offset, z @ self.basis)

    def joined(self, linear: Floats, q: Floats) -> Floats:
        """Log odds from the linear part, (n,), and the directions, (n, q)."""
        logits: Floats = linear + ((q @ self.products) * q).sum(axis=1) if self.products.any() else linear
        return logits

    @classmethod
    def fit(cls, torch: ModuleType, where: str, samples: Sequence[Floats]) -> _Quadratic:
        """The model of the penalty, with or without products, that does best on each sample's last quarter."""
        rows = np.concatenate(samples)
        mean, sd = rows.mean(axis=0), rows.std(axis=0)
        varies = (rows != rows[0]).any(axis=0) & (sd > 0)
        mean, sd = np.where(varies, mean, 0.0), np.where(varies, sd, np.inf)        # a constant column gives z = 0
        z = np.clip((rows - mean) / sd, -_CLIP, _CLIP)
        d = z.shape[1]
        basis = np.eye(d)
        if d > PRODUCT_DIRECTIONS:
            values, vectors = np.linalg.eigh(z.T @ z / len(z))
            values, vectors = values[-PRODUCT_DIRECTIONS:], vectors[:, -PRODUCT_DIRECTIONS:]
            basis = vectors / np.sqrt(np.where(values > 1e-9, values, np.inf))
        q = z @ basis
        upper = np.triu_indices(q.shape[1])
        pairs = q[:, upper[0]] * q[:, upper[1]]
        pair_mean, pair_sd = pairs.mean(axis=0), pairs.std(axis=0)
        pair_sd[pair_sd < 1e-9] = np.inf
        pairs = (pairs - pair_mean) / pair_sd

        sizes = [len(sample) for sample in samples]
        target = np.repeat([-1.0, 1.0], sizes)
        last = np.concatenate([np.arange(size) >= size - size // 4 for size in sizes])
        wide = torch.from_numpy(np.concatenate([z, pairs], axis=1)).to(where)
        best, chosen = inf, (d, PENALTIES[0])
        for width in (d, wide.shape[1]):
            fitting = _LogLoss(torch, wide[~last, :width], target[~last])
            checking = _LogLoss(torch, wide[last, :width], target[last])
            weights = np.zeros(width + 1)
            for penalty in PENALTIES:
                weights = fitting.least(penalty, weights)
                loss, _ = checking(weights)
                # The wider model has to be better, not only as good: it names more columns.
                if loss < best * (1 - 1e-3):
                    best, chosen = loss, (width, penalty)
        width, penalty = chosen
        fitted = _LogLoss(torch, wide[:, :width], target).least(penalty, np.zeros(width + 1))
        products = np.zeros((q.shape[1], q.shape[1]))
        offset = float(fitted[-1])
        if width > d:
            per_pair = fitted[d:-1] / pair_sd
            products[upper] = per_pair
            offset -= float(per_pair @ pair_mean)
        return cls(mean, sd, basis, fitted[:d], products, offset)


class _LogLoss:
    """Mean log loss, nats, of a linear model on rows of two samples that weigh the same; the last weight is the offset."""

    def __init__(self, torch: ModuleType, rows: Tensor, target: Floats) -> None:
        second = target > 0
        share = np.where(second, 0.5 / max(second.sum(), 1), 0.5 / max((~second).sum(), 1))
        self._torch, self._rows = torch, rows
        self._target, self._share = (torch.from_numpy(values).to(rows.device) for values in (target, share))

    def __call__(self, weights: Floats, penalty: float = 0.0) -> tuple[float, Floats]:
        """Loss with penalty / 2 times the sum of squares (offset excepted), and its gradient."""
        slope = self._torch.from_numpy(weights[:-1]).to(self._rows.device)
        margin = self._target * (self._rows @ slope + weights[-1])
        pull = -self._target * self._share * self._torch.sigmoid(-margin)
        loss = float((self._torch.nn.functional.softplus(-margin) * self._share).sum())
        gradient = np.append((pull @ self._rows).cpu().numpy(), float(pull.sum()))
        gradient[:-1] += penalty * weights[:-1]
        return loss + penalty / 2 * float(weights[:-1] @ weights[:-1]), gradient

    def least(self, penalty: float, start: Floats) -> Floats:
        """The weights of least penalised loss; convex, so the start only saves time."""
        found = minimize(self, start, args=(penalty,), jac=True, method="L-BFGS-B", options={"maxiter": 200, "gtol": 1e-6})
        weights: Floats = found.x
        return weights
