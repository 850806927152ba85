"""One window judged whole: 10,000 events against a reference of 10,000, from columns to every score that is shown.

Ours is `Reference.profile` (binning, categories included) and `distances.display` (PSI, KS, Jensen-Shannon, Wasserstein,
total variation, chi-square), from the columns that the decoder gives. The peers get the same columns in their own best
form, made outside the time:

    evidently   one run of `DataDriftPreset` on two data frames
    scipy       `ks_2samp` per number (asymptotic, the cheap way), `Counter` and `chi2_contingency` per category

Like is held against like: for these ratios the reference has no joint rows, which look at how columns depend on one another
and which no peer computes. What a window costs with them, as the service counts it, is told beside, and held against evidently.
First our KS must be scipy's on the same bins, and our chi-square scipy's on the same table, within 1e-9. The scan that
decides comes on top: it is stated, and asked nothing, since no peer has one. evidently runs once: a turn takes seconds.
"""

from __future__ import annotations

import json
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.events import Values, reference_of, values_of
from benchmarks.measure import Bench, cpu_of
from detectors.comparison import display
from detectors.distances import ks
from detectors.reference import Reference
from detectors.reference_file import decode, digest_of, encode
from detectors.scan import Ring, Scan
from detectors.tests import EXPECTED_MIN, chi2_two_sample

ROWS = 10_000
EVIDENTLY_TARGET, SCIPY_TARGET = 200, 8
CLOSE = 1e-9


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("window_scores: peers / ours, binning and all scores of one window", argv, repeat=15)
    rows = bench.sized(ROWS, 300)
    for features in (20, 100):
        first, window = values_of(features, rows, seed=1), values_of(features, rows, seed=5)
        reference = reference_of(features, rows)
        name = f"{rows} x {features}"
        counts = reference.profile(window).counts
        if (gap := largest_gap(reference, counts)) > CLOSE:
            bench.bound(f"{name}: results differ", gap, at_most=CLOSE, unit="", detail="results differ")
            continue
        bench.bound(f"{name}, KS and chi-square from scipy's", gap, at_most=CLOSE, unit="")

        def ours(reference: Reference = reference, window: Values = window) -> object:
            profile = reference.profile(window)
            with np.errstate(all="ignore"):
                return display(reference, profile.counts, profile.events)

        # Ten calls make one turn: a single one is a few milliseconds, near the clock's noise on a shared machine.
        alone = without_joint(reference)
        bench.compare(f"{name}, against scipy KS + chi-square", peer=ten(scipy_loop(first, window)),
                      ours=ten(partial(ours, alone)), target=SCIPY_TARGET, peer_name="scipy")
        own = statistics.median(cpu_of(ours) for _ in range(bench.repeat))
        bench.fact(f"{name}, with joint rows", own * 1e3, "ms")
        if features == 20:
            theirs = cpu_of(evidently(first, window))
            bench.bound(f"{name}, with joint rows, against evidently's drift preset", theirs / own, at_least=EVIDENTLY_TARGET,
                        detail=f"evidently {theirs * 1e3:.0f} ms, ours {own * 1e3:.2f} ms")
        ring, scan = Ring(reference), Scan(reference)
        ring.push(reference.profile(window))
        for _ in range(2):
            scan(ring)
        bench.fact(f"{name}, the scan on top", statistics.median(cpu_of(lambda: scan(ring)) for _ in range(15)) * 1e3, "ms")  # noqa: B023
    return bench.finish()


def without_joint(reference: Reference) -> Reference:
    """The reference with its columns' own rows alone."""
    content, _ = decode(reference.to_json(), "reference")
    rows = tuple(row for row, column in zip(content.rows, reference.column_of_row, strict=True) if column is not None)
    document = encode(replace(content, rows=rows, joint=None))
    return Reference.from_json(json.dumps({"digest": digest_of(document), **document}))


def ten(work: Callable[[], object]) -> Callable[[], object]:
    """The same work ten times."""
    return lambda: [work() for _ in range(10)]


def scipy_loop(reference: Values, window: Values) -> Callable[[], object]:
    """A test per column, on present values that were taken out before."""
    numbers = [tuple(side[name][~np.isnan(side[name])] for side in (reference, window))     # type: ignore[index,arg-type]
               for name, values in window.items() if isinstance(values, np.ndarray)]
    levels = [(reference[name], window[name]) for name, values in window.items() if not isinstance(values, np.ndarray)]

    def run() -> object:
        p: list[float] = [stats.ks_2samp(first, second, method="asymp").pvalue for first, second in numbers]
        for first, second in levels:
            before, after = Counter(first), Counter(second)
            names = [level for level in before | after if level is not None]
            table = [[before[level] for level in names], [after[level] for level in names]]
            p.append(stats.chi2_contingency(table, correction=False).pvalue)
        return p

    return run


def evidently(reference: Values, window: Values) -> Callable[[], object]:
    """One run of the preset; imports and frames are made here, and a run over two columns warms it up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pandas as pd
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

    numbers = [name for name, values in window.items() if isinstance(values, np.ndarray)]
    levels = [name for name in window if name not in numbers]
    sides = [pd.DataFrame({name: values if isinstance(values, np.ndarray) else pd.Series(values, dtype=object)
                           for name, values in side.items()}) for side in (window, reference)]

    def run(most: int | None = None) -> object:
        names = [*numbers[:most], *levels[:most]]
        definition = DataDefinition(numerical_columns=numbers[:most], categorical_columns=levels[:most])
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            current, before = (Dataset.from_pandas(side[names], data_definition=definition) for side in sides)
            return Report([DataDriftPreset()]).run(current, before)

    run(1)
    return run


def largest_gap(reference: Reference, counts: Any) -> float:
    """Largest difference of our KS and chi-square from scipy's on the same bins, over all columns."""
    gaps = []
    own_ks = ks(reference.arrays.counts[:, 1:], counts[:, 1:])
    statistic, freedom, p = chi2_two_sample(reference.arrays.counts, counts)
    for j, row in enumerate(reference.records):
        before, after = row.counts, counts[j, :row.binning.bins]
        if row.is_numeric:
            places = np.arange(len(before) - 1)
            theirs = stats.ks_2samp(np.repeat(places, before[1:]), np.repeat(places, after[1:]), method="asymp")
            gaps.append(abs(theirs.statistic - own_ks[j]))
        # Bins that expect fewer than five events on either side are one bin, by the test's own definition.
        share = (before + after) / (before.sum() + after.sum())
        thin = share * min(before.sum(), after.sum()) < EXPECTED_MIN
        table = np.array([[*side[~thin], side[thin].sum()] for side in (before, after)])
        theirs = stats.chi2_contingency(table[:, table.sum(axis=0) > 0], correction=False)
        gaps += [abs(theirs.statistic - statistic[j]) / max(1.0, theirs.statistic), abs(theirs.dof - freedom[j]),
                 abs(theirs.pvalue - p[j])]
    return float(max(gaps))


if __name__ == "__main__":
    sys.exit(main())
