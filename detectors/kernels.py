"""Two samples of rows compared as a whole by a kernel: maximum mean discrepancy, exact and by random Fourier features.

Idea: counts per column cannot see everything that moves jointly. Two tests take the kept rows of a reference and of a
window as matrices and ask whether one distribution made both: the distance of their kernel means (MMD, Gretton et al.
2012), and the same at linear cost from sums that merge (Rahimi and Recht 2007). They *explain* and gate a retraining. A
p-value by permutation ends at 1/(1 + B), so none of them alarms by itself.

Invariant: the answer depends on rows, seed and options alone, never on a global generator, on the tile size or (up to
rounding) on the device. Rows that follow each other may be alike: blocks of `block_rows` consecutive rows are permuted,
split and resampled as a whole. What cannot be judged has a state and NaN; what is wrong is one line.

Cost: MMD takes N^2 (d + B) multiplications for N = n + m pooled rows of width d and B permutations, in tiles of the
kernel matrix, each used for all permutations by one matrix product. Memory: 16 N d bytes of rows, N (B + 1) bytes of
labels, 4096 N of labels at work and `TILE_BYTES` of kernel: 0.4 GB for 10,000 x 768 against 10,000 x 768, where the whole
matrix would take 3.2 GB and each permuted copy as much. Numbers are float64 on the CPU; on CUDA tiles are float32 and
their sums float64. Fourier features: d D multiplications a row, 8 D bytes a pane.

Neighbours: `classifier` is the third test of this kind and uses the same checks of rows, `encoding` makes matrices of
tables and runs any of the three by name, `dependence` knows the design effect, `scan` decides. torch is imported when
first needed (`pip install 'tidemark[torch]'`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from math import ceil, comb, exp, inf, isfinite, log10, nan, sqrt
from types import ModuleType
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist

from detectors.method import ANY, Method

if TYPE_CHECKING:
    from torch import Tensor as Tensor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
State = Literal["ok", "too_few_rows", "constant"]
Result = TypeVar("Result")

METHODS: tuple[Method, ...] = (
    Method("mmd", "sample", "-log10 p, 0 to log10(1 + permutations)", ANY | {"embedding"},
           "Maximum mean discrepancy of all columns together, Gaussian kernel, p by permuting blocks of rows.", joint=True),
    Method("c2st", "sample", "-log10 p, 0 and up", ANY | {"embedding"},
           "Classifier two-sample test: how much better than chance reference and window are told apart.", joint=True),
    Method("fourier_mmd", "sample", "-log10 p, 0 to log10(1 + resamples)", ANY | {"embedding"},
           "Maximum mean discrepancy by 256 random Fourier features, p by resampling blocks of the reference.", joint=True),
)

#: Bytes of the kernel matrix that exist at once. On the CPU more would leave the caches and be slower (256 MiB: by a half),
#: a quarter of it spends its time on converting labels; CUDA wants large products.
TILE_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
#: Pooled rows beyond which time, not memory, forbids the test: 10^10 kernel values.
ROWS_LIMIT = 100_000
PERMUTATIONS_LIMIT = 99_999
#: Rows of which the median heuristic takes all pairs: the median of half a million pairs is known to 1 %.
MEDIAN_ROWS = 1_000
#: Permutations in one matrix product.
_LABELS = 512
#: A tile that three arrays of its size pass through (distances, kernel, block sums).
_TILE_ARRAYS = 3
#: Off-diagonal kernel values lie around exp(-1) by the median heuristic; taking it off changes no MMD and saves digits.
_CENTRE = exp(-1.0)
_VALUE_MAX = 1e150
_REFERENCE_BLOCKS_MIN = 20
_NULL_BLOCKS_MAX = 4_096


@dataclass(frozen=True, slots=True)
class KernelTest:
    """What `mmd` and `FourierMMD.test` found.

    statistic : squared discrepancy; MMD2u may be a little below 0      p : share of splits at least as far apart
    bandwidth : 2 s^2 of the kernel, in squared units of the rows       n, m : rows that were compared
    splits    : splits that p was counted over, the observed one included
    exact     : every row took part; False where rows were left out (`rows_max`, or no whole block)
    state     : `too_few_rows` (statistic and p are NaN), `constant` (all rows are the same: 0 and 1), or `ok`
    """

    statistic: float
    p: float
    bandwidth: float
    n: int
    m: int
    splits: int
    exact: bool
    state: State = "ok"

    @property
    def score(self) -> float:
        """-log10 p, 0 and up; NaN where nothing was tested."""
        return -log10(self.p) if self.p > 0 else (inf if self.p == 0 else nan)


def block_rows_for(deff: float) -> int:
    """Rows of a block that rows of this design effect may be permuted by: 1 if independent, else 8 deff.

    For a first-order autoregression such blocks hold 94 % of the long-run variance; longer ones leave too few blocks.
    """
    if not (isfinite(deff) and deff > 0):
        raise ValueError(f"deff: expected a finite number > 0, got {deff!r}; take the reference's design effect")
    return 1 if deff <= 1.0 else ceil(8 * deff)


def mmd(x: ArrayLike, y: ArrayLike, *, seed: int, permutations: int = 499, block_rows: int = 1, rows_max: int = 4_000,
        bandwidth: float | None = None, device: str = "auto", tile_bytes: int | None = None) -> KernelTest:
    """Unbiased squared maximum mean discrepancy of two samples and its permutation p-value (Gretton et al. 2012, eq. 3).

    x, y         : float, shapes (n, d) and (m, d) (or (n,), (m,) for one column), finite, rows in time order
    permutations : B; p = (1 + #{permuted >= observed}) / (1 + B). If there are no more than B + 1 splits in all, every
                   one is taken, once
    block_rows   : length of the blocks that are permuted (`block_rows_for`); a last, partial block is left out
    rows_max     : pooled rows; more are thinned to a random choice of blocks. 20,000 takes 10,000 of each
    bandwidth    : 2 s^2 of k(x, y) = exp(-|x - y|^2 / (2 s^2)); default the median of |x - y|^2 over pairs of (at most
                   1,000 of) the pooled rows, or, where that is 0, the mean
    device       : "cpu", "cuda" or "auto" (CUDA where it is)
    tile_bytes   : of the kernel matrix that exist at once, default `TILE_BYTES`; speed alone depends on it

    >>> mmd([0.0, 1.0, 2.0], [2.0, 3.0, 5.0], seed=1, bandwidth=4.0).p
    0.3
    """
    first, second = samples_of("mmd", x, y)
    expect_whole("mmd permutations", permutations, 1, PERMUTATIONS_LIMIT)
    expect_whole("mmd block_rows", block_rows, 1, None)
    expect_whole("mmd rows_max", rows_max, 4 * block_rows, ROWS_LIMIT)
    if bandwidth is not None and not (isfinite(bandwidth) and bandwidth > 0):
        raise ValueError(f"mmd bandwidth: expected a finite number > 0, got {bandwidth!r}; leave it out for the median")
    torch, where = torch_on("mmd", device)
    blocks = len(first) // block_rows, len(second) // block_rows
    if min(blocks) < 2:
        return KernelTest(nan, nan, nan, len(first), len(second), 0, False, "too_few_rows")
    rng = np.random.default_rng(seed)
    kept = [thinned(rng, rows, take, block_rows) for rows, take in
            zip((first, second), shared_out(blocks, rows_max // block_rows), strict=True)]
    n, m = len(kept[0]), len(kept[1])
    exact = (n, m) == (len(first), len(second))
    pooled = np.concatenate(kept)
    # A middle that outliers do not move: rows shifted to 1e12 and back have lost their digits.
    pooled -= np.median(pooled[:: ceil(len(pooled) / MEDIAN_ROWS)], axis=0)
    if (pooled == pooled[0]).all():
        return KernelTest(0.0, 1.0, bandwidth or 0.0, n, m, 1, exact, "constant")
    two_s2 = _median_heuristic(rng, pooled) if bandwidth is None else bandwidth
    pooled /= sqrt(two_s2)
    labels = _splits(rng, n // block_rows, m // block_rows, permutations)
    with _full_precision(torch, where):
        inside, across, total = _kernel_sums(torch, where, pooled, labels, block_rows,
                                              tile_bytes or TILE_BYTES[where], single=where != "cpu")
    both = across - inside
    statistics = (inside / (n * (n - 1)) + (total - 2 * across + inside) / (m * (m - 1)) - 2 * both / (n * m))
    # Equal splits (ties in the data) differ by rounding; without the slack they would count as smaller.
    slack = 1e-11 if where == "cpu" else 2e-7
    reached = int((statistics >= statistics[0] - slack).sum())
    return KernelTest(float(statistics[0]), reached / len(statistics), two_s2, n, m, len(statistics), exact)


def _splits(rng: np.random.Generator, first: int, second: int, permutations: int) -> Bools:
    """Which blocks are in the first sample, shape (blocks, splits); the observed split stands in column 0."""
    blocks = first + second
    if comb(blocks, first) <= permutations + 1:
        chosen = np.array(list(combinations(range(blocks), first)))          # the observed one is the first of them
    else:
        # A block is in the first sample if its key is among the smallest `first` of its split.
        keys = (rng.permutation(blocks)[:first] for _ in range(permutations))
        chosen = np.stack([np.arange(first), *keys])
    labels = np.zeros((blocks, len(chosen)), dtype=np.bool_)
    labels[chosen.T, np.arange(len(chosen))] = True
    return labels


def _kernel_sums(torch: ModuleType, where: str, rows: Floats, labels: Bools, block_rows: int,
                 tile_bytes: int, *, single: bool) -> tuple[Floats, Floats, float]:
    """Sums of the kernel over pairs of different rows, per split: inside the first sample, from it to all, and of all.

    rows : centred and divided by the bandwidth's root, (N, d)      labels : (N / block_rows, splits)
    single : tiles in float32

    Only tiles on and above the diagonal are computed. A tile is summed over blocks first, as a block moves as a whole.
    """
    # Distances by |a|^2 + |b|^2 - 2 ab lose digits where rows lie far out; there they are taken difference by difference.
    far = float((rows * rows).sum(axis=1).max())
    real = torch.float32 if single and far <= 1e12 else torch.float64
    direct = far * float(torch.finfo(real).eps) > 1e-4
    points = torch.from_numpy(rows).to(device=where, dtype=real)
    split = torch.from_numpy(labels).to(where)
    norms = (points * points).sum(dim=1)
    count, splits = len(rows), labels.shape[1]

    def tile(start: int, stop: int) -> Tensor:
        here, rest = points[start:stop], points[start:]
        values: Tensor
        if direct:
            values = torch.cdist(here, rest, compute_mode="donot_use_mm_for_euclid_dist").square_()
        else:
            values = torch.addmm(norms[start:], here, rest.T, alpha=-2).add_(norms[start:stop, None]).clamp_(min=0)
        values.neg_().exp_().sub_(_CENTRE)
        torch.diagonal(values).zero_()
        if block_rows > 1:
            values = values.view((stop - start) // block_rows, block_rows, -1, block_rows).sum(dim=(1, 3))
        values[:, : len(values)] *= 0.5                       # both halves of the square on the diagonal are there
        return values

    def run(tile_rows: int) -> tuple[Floats, Floats, float]:
        inside = torch.zeros(splits, dtype=torch.float64, device=where)
        from_block = torch.zeros(len(labels), dtype=torch.float64, device=where)
        for start in range(0, count, tile_rows):
            values = tile(start, min(count, start + tile_rows))
            top = start // block_rows
            here = slice(top, top + len(values))
            from_block[here] += values.sum(dim=1, dtype=torch.float64)
            from_block[top:] += values.sum(dim=0, dtype=torch.float64)
            for at in range(0, splits, _LABELS):
                members = split[top:, at : at + _LABELS].to(real)
                pairs = (values @ members).mul_(members[: len(values)])
                inside[at : at + _LABELS] += 2 * pairs.sum(dim=0, dtype=torch.float64)
        chosen = [from_block @ split[:, at : at + _LABELS].to(torch.float64) for at in range(0, splits, _LABELS)]
        return inside.cpu().numpy(), torch.cat(chosen).cpu().numpy(), float(from_block.sum())

    fitting = tile_bytes // (_TILE_ARRAYS * count * points.element_size())
    return smaller_until_it_fits(run, min(max(fitting // block_rows, 1) * block_rows, count), block_rows)


def smaller_until_it_fits(run: Callable[[int], Result], rows: int, least: int) -> Result:
    """`run(rows)`, with half as many rows (a multiple of `least`) each time the device's memory does not suffice."""
    while True:
        try:
            return run(rows)
        except (RuntimeError, MemoryError) as error:          # torch's out-of-memory error is a RuntimeError
            lacking = isinstance(error, MemoryError) or any(
                words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory"))
            if not lacking:
                raise
            if rows <= least:
                raise ValueError(f"kernels: expected memory for a tile of {rows} rows, got none; lower rows_max") from None
        rows = max(least, rows // 2 // least * least)


def _median_heuristic(rng: np.random.Generator, rows: Floats) -> float:
    """Median squared distance of pairs; where that is 0 (more than half of the pairs are equal) the mean of all pairs."""
    some = rows if len(rows) <= MEDIAN_ROWS else rows[np.sort(rng.choice(len(rows), MEDIAN_ROWS, replace=False))]
    return float(np.median(pdist(some, "sqeuclidean"))) or 2 * float(rows.var(axis=0, ddof=1).sum())


def shared_out(blocks: tuple[int, int], most: int) -> tuple[int, int]:
    """How many blocks of either sample stay: halves, and what one does not need goes to the other."""
    first = min(blocks[0], max(most // 2, most - blocks[1]))
    return first, min(blocks[1], most - first)


def thinned(rng: np.random.Generator, rows: Floats, take: int, block_rows: int) -> Floats:
    """`take` whole blocks of the rows, chosen at random and left in time order."""
    blocks = len(rows) // block_rows
    rows = rows[: blocks * block_rows]
    if take >= blocks:
        return rows
    chosen = np.sort(rng.choice(blocks, take, replace=False))
    return rows.reshape(blocks, block_rows, -1)[chosen].reshape(take * block_rows, -1)


@dataclass(frozen=True, slots=True, eq=False)
class FourierSum:
    """Sum of the features of some rows, (D,), and how many rows; sums of panes and workers add."""

    total: Floats
    rows: int

    def __add__(self, other: FourierSum) -> FourierSum:
        if self.total.shape != other.total.shape:
            raise ValueError(f"FourierSum: expected {len(self.total)} features, got {len(other.total)}; add sums of one fit")
        return FourierSum(self.total + other.total, self.rows + other.rows)


@dataclass(frozen=True, slots=True, eq=False)
class FourierMMD:
    """Squared MMD at linear cost, by random features of the Gaussian kernel (Rahimi and Recht 2007); sums are mergeable.

    directions : Omega, (d, D), normal with variance 1 / s^2          phases : (D,), uniform on 0 to 2 pi
    bandwidth  : 2 s^2              reference : sum of the features of all reference rows
    blocks     : (blocks, D), mean features of at most 4,096 blocks of `block_rows` reference rows, for the null
    """

    directions: Floats
    phases: Floats
    bandwidth: float
    reference: FourierSum
    blocks: Floats
    block_rows: int
    device: str

    @classmethod
    def fit(cls, reference: ArrayLike, *, seed: int = 0, features: int = 256, bandwidth: float | None = None,
            block_rows: int = 1, device: str = "auto") -> FourierMMD:
        """Draw the features from `seed` and sum them over the reference's rows, which are in time order.

        bandwidth : 2 s^2; default the median heuristic on the reference, as in `mmd`

        At least 20 blocks of reference rows are needed, or a window's null cannot be drawn; else ValueError.
        """
        rows, _ = samples_of("FourierMMD reference", reference, reference)
        expect_whole("FourierMMD features", features, 1, 1 << 16)
        expect_whole("FourierMMD block_rows", block_rows, 1, None)
        blocks = len(rows) // block_rows
        if blocks < _REFERENCE_BLOCKS_MIN:
            raise ValueError(f"FourierMMD reference: expected at least {_REFERENCE_BLOCKS_MIN} blocks of {block_rows} rows, "
                             f"got {blocks}; take a longer reference or shorter blocks")
        _, where = torch_on("FourierMMD", device)
        rng = np.random.default_rng(seed)
        two_s2 = bandwidth
        if two_s2 is None:
            two_s2 = 0.0 if (rows == rows[0]).all() else _median_heuristic(rng, rows)
        if not (isfinite(two_s2) and two_s2 > 0):
            raise ValueError(f"FourierMMD bandwidth: expected a finite number > 0, got {two_s2!r}; "
                             "are all reference rows the same? Give a bandwidth in squared units of the rows")
        directions = rng.standard_normal((rows.shape[1], features)) * sqrt(2 / two_s2)
        empty = cls(directions, rng.uniform(0, 2 * np.pi, features), two_s2, FourierSum(np.zeros(features), 0),
                    np.zeros((0, features)), block_rows, where)
        spread = np.unique(np.linspace(0, blocks - 1, min(blocks, _NULL_BLOCKS_MAX)).astype(int))
        chosen = rows[: blocks * block_rows].reshape(blocks, -1)[spread].reshape(-1, rows.shape[1])
        means = np.concatenate(list(empty._sums(chosen, block_rows))) / block_rows
        return cls(empty.directions, empty.phases, two_s2, empty.features(rows), means, block_rows, where)

    def features(self, batch: ArrayLike) -> FourierSum:
        """Sum of phi(row) = sqrt(2 / D) cos(row Omega + b) over the batch's rows, and their number; no rows give 0."""
        rows = rows_of("FourierMMD batch", batch)
        if rows.shape[1] != len(self.directions):
            raise ValueError(f"FourierMMD batch: expected rows of width {len(self.directions)} as in the reference, "
                             f"got {rows.shape[1]}; encode both with one encoding")
        total = sum((sums.sum(axis=0) for sums in self._sums(rows, 1)), start=np.zeros(len(self.phases)))
        return FourierSum(total, len(rows))

    def _sums(self, rows: Floats, block_rows: int) -> Iterator[Floats]:
        """Feature sums of consecutive blocks, (some blocks, D) at a time, within the tile's memory; whole blocks only."""
        torch, where = torch_on("FourierMMD", self.device)
        directions, phases = torch.from_numpy(self.directions).to(where), torch.from_numpy(self.phases).to(where)
        D = len(self.phases)
        step = max(1, TILE_BYTES[where] // (_TILE_ARRAYS * 8 * D * block_rows)) * block_rows
        for start in range(0, len(rows), step):
            here = torch.from_numpy(rows[start : start + step]).to(where)
            waves = torch.addmm(phases, here, directions).cos_().mul_(sqrt(2 / D))
            yield (waves.view(-1, block_rows, D).sum(dim=1) if block_rows > 1 else waves).cpu().numpy()

    def statistic(self, window: FourierSum) -> float:
        """|mean phi(window) - mean phi(reference)|^2, 0 to 2; NaN for a window without rows."""
        if window.rows == 0:
            return nan
        gap = window.total / window.rows - self.reference.total / self.reference.rows
        return float(gap @ gap)

    def test(self, window: FourierSum, *, seed: int, resamples: int = 499) -> KernelTest:
        """The statistic and its p-value, (1 + #{null >= observed}) / (1 + resamples).

        Under the null, window and reference are both drawn from the reference's blocks with replacement: the reference
        has its own sampling error, which matters as soon as the window is not much smaller. A window that is no whole
        number of blocks has its deviation scaled to its rows.
        """
        expect_whole("FourierMMD resamples", resamples, 1, PERMUTATIONS_LIMIT)
        observed, whole = self.statistic(window), len(self.blocks)
        exact = whole * self.block_rows == self.reference.rows
        if window.rows < 2:
            return KernelTest(nan, nan, self.bandwidth, self.reference.rows, window.rows, 0, exact, "too_few_rows")
        rng = np.random.default_rng(seed)
        drawn = max(1, round(window.rows / self.block_rows))
        scale = sqrt(drawn * self.block_rows / window.rows)
        held = max(1, self.reference.rows // self.block_rows)
        middle, even = self.blocks.mean(axis=0), np.full(whole, 1 / whole)
        reached, left = 1, resamples
        while left:
            batch = min(left, _LABELS)
            ours = rng.multinomial(drawn, even, size=batch) / drawn @ self.blocks - middle
            theirs = rng.multinomial(held, even, size=batch) / held @ self.blocks - middle
            reached += int((((scale * ours - theirs) ** 2).sum(axis=1) >= observed).sum())
            left -= batch
        return KernelTest(observed, reached / (1 + resamples), self.bandwidth, self.reference.rows, window.rows,
                          1 + resamples, exact)


def rows_of(where: str, values: ArrayLike) -> Floats:
    """Values as float64 rows in one piece of memory, or one line on what is wrong with them."""
    try:
        rows = np.ascontiguousarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: expected numbers of shape (rows, width), got {type(values).__name__} that is not; "
                         "make tables into matrices with encode()") from None
    if rows.ndim == 1:
        rows = rows[:, None]
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{where}: expected shape (rows, width), got {rows.shape}; give one row per event")
    within = np.abs(rows) <= _VALUE_MAX                                       # False for NaN, too
    if not within.all():
        bad = np.flatnonzero(~within.all(axis=1))
        raise ValueError(f"{where}: expected finite numbers up to 1e150, got others in {len(bad)} rows, the first is row "
                         f"{bad[0]}; leave these rows out or use encode()")
    return rows


def samples_of(where: str, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    """Both samples as rows of one width."""
    first, second = rows_of(f"{where} x", x), rows_of(f"{where} y", y)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"{where}: expected rows of one width, got {first.shape[1]} and {second.shape[1]}; "
                         "encode both with one encoding")
    return first, second


def expect_whole(where: str, value: int, least: int, most: int | None) -> None:
    """Nothing, or one line if the value is no whole number within the limits."""
    fits = isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= least
    if not fits or (most is not None and value > most):
        limits = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{where}: expected a whole number {limits}, got {value!r}")


def torch_on(where: str, device: str) -> tuple[ModuleType, str]:
    """torch and the device to compute on."""
    try:
        import torch
    except ImportError:
        raise ValueError(f"{where}: expected torch, which is not installed; pip install 'tidemark[torch]'") from None
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"{where} device: expected auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{where} device: expected a CUDA device, got none that torch sees; take device='cpu' or 'auto'")
    return torch, ("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def _full_precision(torch: ModuleType, where: str) -> Iterator[None]:
    """Products in whole float32 on CUDA: ten-bit factors (TF32) would be wrong in the third digit of a distance."""
    if where == "cpu":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
