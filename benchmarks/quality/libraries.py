"""Peers that run their own code: river's detectors on one series per column, evidently's tests on its own windows.

river's detectors take one value after another and know no reference: each numeric column, in reference s.d., is one
series; missing values are left out. They restart themselves after a detection.
    ADWIN         also with a `delta` of a hundredth of its default, four times over: the knob that matches its rate
    Page-Hinkley  its statistic is a running sum and can be matched; computed here for all columns at once by the same
                  recursion, without restart
    KSWIN         0.3 ms a value: some thousand values at its defaults, never matched

evidently chooses by itself: with more than 1,000 reference rows normed Wasserstein for numbers of more than five
different values and Jensen-Shannon else; below, KS and chi-square. One look per window: windows do not overlap, as its
users run it, and because a look takes it 2 ms a column.

Cost: 0.5 us a value (ADWIN), 0.8 (Page-Hinkley), 300 (KSWIN); evidently as said, and 5 to 10 seconds to import it.

Neighbours: `encode` standardises; `runs` says how much of each stream every peer gets.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from benchmarks.quality.streams import PANE_EVENTS
from detectors.synthetic import Batch

Floats = NDArray[np.float64]

#: ADWIN's own delta first.
DELTAS = (2e-3, 2e-5, 2e-7, 2e-9, 2e-11)
#: Page-Hinkley's own: what a value must exceed the mean by, the fading of its sum, and the sum that is drift.
PH_DELTA, PH_ALPHA, PH_THRESHOLD, PH_INSTANCES_MIN = 0.005, 0.9999, 50.0, 30
#: evidently takes the tests of small references up to here, and counts this share of columns as drift of the data.
EVIDENTLY_SMALL_ROWS, EVIDENTLY_SHARE = 1_000, 0.5
#: Those of evidently's tests that give a p-value.
WITH_P = ("ks", "chisquare")


def river_panes(name: str, numbers: Floats, delta: float = DELTAS[0]) -> NDArray[np.bool_]:
    """Whether river's detector of this name saw drift in any column, per pane; numbers (n, columns) in reference s.d."""
    from river import drift

    def detector() -> object:
        return {"ADWIN": lambda: drift.ADWIN(delta=delta), "Page-Hinkley": drift.PageHinkley,
                "KSWIN": lambda: drift.KSWIN(seed=1)}[name]()

    found = np.zeros(len(numbers) // PANE_EVENTS, bool)
    for column in numbers.T:                                    # turns: the columns; inside, the values: theirs is no array code
        one = detector()
        for row, value in enumerate(column[: len(found) * PANE_EVENTS].tolist()):
            if value == value:                                  # not missing
                one.update(value)                               # type: ignore[attr-defined]
                if one.drift_detected:                          # type: ignore[attr-defined]
                    found[row // PANE_EVENTS] = True
    return found


def adwin(numbers: Floats, deltas: Sequence[float]) -> Floats:
    """-log10 of the least of these deltas at which ADWIN sees drift in a pane, 0 for none, (panes,)."""
    found = np.zeros(len(numbers) // PANE_EVENTS)
    for delta in deltas:
        found = np.maximum(found, np.where(river_panes("ADWIN", numbers, delta), -np.log10(delta), 0.0))
    return found


def page_hinkley(numbers: Floats) -> Floats:
    """Page-Hinkley's largest sum over columns and both directions in every pane, (panes,), without restart."""
    n = len(numbers) // PANE_EVENTS * PANE_EVENTS
    best = np.zeros(n)
    for column in numbers.T:                                    # turns: the columns
        at = np.flatnonzero(~np.isnan(column[:n]))
        x = column[at]
        deviation = x - np.cumsum(x) / np.arange(1, len(x) + 1)
        for sign in (1.0, -1.0):
            total = lfilter([1.0], [1.0, -PH_ALPHA], sign * deviation - PH_DELTA)
            rise = total - np.minimum.accumulate(total)
            rise[: PH_INSTANCES_MIN - 1] = 0.0
            best[at] = np.maximum(best[at], rise)
    return best.reshape(-1, PANE_EVENTS).max(axis=1)


class Evidently:
    """evidently's own tests against one reference."""

    def __init__(self, reference: Batch) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pandas as pd
            from evidently.legacy.calculations import stattests
            from evidently.legacy.core import ColumnType
        self._series = lambda values: pd.Series(values) if isinstance(values, np.ndarray) else pd.Series(values, dtype=object)
        self._reference, self._tests = {}, {}
        for name, values in reference.items():
            whole = self._series(values)
            kind = ColumnType.Numerical if isinstance(values, np.ndarray) else ColumnType.Categorical
            numeric = kind is ColumnType.Numerical and whole.nunique() > 5
            if len(whole) <= EVIDENTLY_SMALL_ROWS:
                test = stattests.ks_stat_test if numeric else stattests.chi_stat_test
            else:
                test = stattests.wasserstein_stat_test if numeric else stattests.jensenshannon_stat_test
            self._reference[name], self._tests[name] = whole.dropna(), (test, kind)

    def statistic(self, window: Batch, columns: Sequence[str]) -> Floats:
        """Statistic over its own threshold, per column: 1 and more is drift to it; p-values as ratios of -log10."""
        found = []
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for name in columns:
                test, kind = self._tests[name]
                value = test(self._reference[name], self._series(window[name]).dropna(), kind, None).drift_score
                threshold = test.default_threshold
                found.append(np.log(max(value, 1e-300)) / np.log(threshold) if test.name in WITH_P else value / threshold)
        return np.array(found)
