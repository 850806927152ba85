"""Values to counts: our bins against `np.digitize` and `np.bincount`, 20 columns with 1 % NaN.

256 bins as the manual's table has them, at 10,000 rows and at 500. The counts must be equal, bin by bin. How much faster
sorting first is depends on the processor's vector instructions; without any it is no loss from 500 rows on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Bench
from detectors.binning import NumericBinning, numeric_edges

COLUMNS, BINS, REFERENCE_ROWS = 20, 256, 100_000
#: Rows -> the least ratio, and how often one turn counts them.
CASES = {10_000: (5.0, 5), 500: (1.5, 50)}

Columns = list[NDArray[np.float64]]


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("accumulate: digitize + bincount / ours", argv, repeat=15)
    rng = np.random.default_rng(3)
    edges = [numeric_edges(column, BINS) for column in rng.gamma(2.0, 3.0, (COLUMNS, bench.sized(REFERENCE_ROWS, 2_000)))]
    binnings = [NumericBinning(one, one) for one in edges]
    for rows, (target, times) in CASES.items():
        values = rng.gamma(2.0, 3.0, (COLUMNS, rows))
        values[rng.random(values.shape) < 0.01] = np.nan
        columns = list(values)

        def peer(columns: Columns = columns, times: int = times) -> Any:
            for _ in range(times):
                counts = [digitized(column, own) for column, own in zip(columns, edges, strict=True)]
            return counts

        def ours(columns: Columns = columns, times: int = times) -> Any:
            for _ in range(times):
                counts = [own.count(column) for column, own in zip(columns, binnings, strict=True)]
            return counts

        bench.compare(f"{rows} rows, {COLUMNS} columns, {BINS} bins", peer=peer, ours=ours, target=target,
                      equal=np.array_equal, peer_name="digitize")
    return bench.finish()


def digitized(column: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts of missing, below, the bins, above."""
    present = column[~np.isnan(column)]
    counts = np.bincount(np.digitize(present, edges), minlength=len(edges) + 1)
    return np.concatenate([[len(column) - len(present)], counts])


if __name__ == "__main__":
    sys.exit(main())
