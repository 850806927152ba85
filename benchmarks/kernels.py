"""Joint tests on samples of rows: MMD with its permutations against a plain numpy loop, and the full size in bounded memory.

The peer is what a drift library does on a CPU without a tensor library: one kernel matrix by scipy's `cdist`, and for each
permutation a copy of it in permuted order whose blocks are averaged. Both take the same bandwidth, the same number of
permutations and float64; first their MMD2u must agree within 1e-9. Ours takes tiles of the kernel matrix and all
permutations as one matrix product.

The full size, 10,000 rows of 768 numbers against as many, runs in a process of its own, so that its peak memory is its
own: the bound is the formula of `detectors.kernels` (rows, labels, tiles), its ratio to the whole kernel matrix is stated.
With a CUDA device the same call there is compared with the CPU in wall time, after equal results; without one it is said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from benchmarks.measure import Bench
from detectors.classifier import classifier
from detectors.kernels import TILE_BYTES, FourierMMD, mmd

Floats = NDArray[np.float64]

ROWS, WIDTH, PERMUTATIONS, TARGET = 1_000, 50, 199, 15
FULL_ROWS, FULL_WIDTH, FULL_PERMUTATIONS = 10_000, 768, 499
#: Beyond the formula: what the allocator and the libraries take for themselves.
MEMORY_EXTRA = 64 << 20
CLOSE, CLOSE_CUDA = 1e-9, 1e-5

_FULL = """
import json, resource, sys, time
import numpy as np
from detectors.kernels import mmd
rows, width, permutations = map(int, sys.argv[1:])
rng = np.random.default_rng(1)
x, y = rng.standard_normal((rows, width)), rng.standard_normal((rows, width))
mmd(x[:20], y[:20], seed=1, device="cpu")                    # what torch takes for itself is not the test's
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
wall, cpu = time.perf_counter(), time.process_time()
found = mmd(x, y, seed=1, permutations=permutations, rows_max=max(4, 2 * rows), device="cpu")
print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "exact": found.exact,
                  "bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}))
"""


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("kernels: joint tests of two samples of rows", argv, repeat=3)
    rows = bench.sized(ROWS, 40)
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((rows, WIDTH)), rng.standard_normal((rows, WIDTH)) + 0.02
    bandwidth = 2.0 * WIDTH
    bench.compare(f"MMD, 2 x {rows} x {WIDTH}, {PERMUTATIONS} permutations, against numpy and cdist",
                  peer=lambda: permutation_loop(x, y, bandwidth),
                  ours=lambda: mmd(x, y, seed=1, bandwidth=bandwidth, permutations=PERMUTATIONS, device="cpu").statistic,
                  target=TARGET, equal=lambda theirs, ours: abs(theirs[0] - ours) <= CLOSE, peer_name="numpy")
    full_size(bench, bench.sized(FULL_ROWS, 60))
    table = rng.standard_normal((bench.sized(FULL_ROWS, 400), 20))
    fourier = FourierMMD.fit(table, device="cpu")
    bench.fact(f"Fourier MMD, features of {len(table)} x 20", 1e9 * wall_of(lambda: fourier.features(table)) / len(table),
               "ns/row")
    halves = np.array_split(table, 2)
    bench.fact(f"classifier test, 2 x {len(halves[0])} x 20", wall_of(lambda: classifier(*halves, seed=1, device="cpu")), "s")
    on_cuda(bench, rows)
    return bench.finish()


def permutation_loop(x: Floats, y: Floats, bandwidth: float) -> tuple[float, float]:
    """MMD2u and its permutation p, one permuted kernel matrix after another."""
    pooled, n, m = np.concatenate([x, y]), len(x), len(y)
    kernel = np.exp(-cdist(pooled, pooled, "sqeuclidean") / bandwidth)
    np.fill_diagonal(kernel, 0.0)

    def statistic(matrix: Floats) -> float:
        return float(matrix[:n, :n].sum() / (n * (n - 1)) + matrix[n:, n:].sum() / (m * (m - 1)) - 2 * matrix[:n, n:].mean())

    rng = np.random.default_rng(1)
    observed = statistic(kernel)
    reached = 0
    for _ in range(PERMUTATIONS):
        order = rng.permutation(n + m)
        reached += statistic(kernel[order][:, order]) >= observed
    return observed, (1 + reached) / (1 + PERMUTATIONS)


def full_size(bench: Bench, rows: int) -> None:
    """Time and peak memory of the largest case, in a process of its own."""
    command = [sys.executable, "-c", _FULL, str(rows), str(FULL_WIDTH), str(FULL_PERMUTATIONS)]
    seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    pooled, name = 2 * rows, f"MMD, 2 x {rows} x {FULL_WIDTH}, {FULL_PERMUTATIONS} permutations"
    stated = 16 * pooled * FULL_WIDTH + pooled * (FULL_PERMUTATIONS + 1) + 4096 * pooled + TILE_BYTES["cpu"] + MEMORY_EXTRA
    assert seen["exact"]
    # A tiny run may stay below what the process had taken before: then a page stands for nothing.
    taken = max(seen["bytes"], 4096)
    bench.bound(f"{name}: peak memory / formula", taken / stated, at_most=1.0,
                detail=f"{taken / 1e6:.0f} MB, the kernel matrix alone would be {8 * pooled**2 / 1e6:.0f} MB")
    bench.fact(f"{name}: CPU", seen["cpu"], "s", f"{seen['wall']:.1f} s of wall time")


def on_cuda(bench: Bench, rows: int) -> None:
    """CPU / CUDA in wall time, or a line that there was no such device."""
    import torch

    if not torch.cuda.is_available():
        bench.fact("CUDA", float("nan"), "", "no GPU was there: nothing was measured on one")
        return
    rng = np.random.default_rng(2)
    full = bench.sized(FULL_ROWS, 60)
    for name, count, width in (("small", rows, WIDTH), ("full", full, FULL_WIDTH)):
        x, y = rng.standard_normal((count, width)), rng.standard_normal((count, width)) + 0.02

        def run(device: str, x: Floats = x, y: Floats = y) -> float:
            return mmd(x, y, seed=1, rows_max=max(4, 2 * len(x)), device=device).statistic

        gap = abs(run("cpu") - run("cuda"))
        bench.bound(f"{name}: CUDA from CPU", gap, at_most=CLOSE_CUDA, unit="", detail=torch.cuda.get_device_name())
        slow, fast = wall_of(lambda: run("cpu")), min(wall_of(lambda: run("cuda")) for _ in range(3))
        bench.fact(f"MMD, 2 x {count} x {width}: CPU / CUDA", slow / fast, "x", f"CPU {slow:.2f} s, CUDA {fast:.3f} s")


def wall_of(work: Callable[[], object]) -> float:
    """Seconds of one call after a rehearsal."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
