"""evidently's own tests by name, run by evidently's own code: `evidently:psi` is theirs, `psi` is ours.

Idea: whoever comes from evidently wants the numbers of before beside the new ones, and sees where they differ. So a
name is looked up in evidently's registry and called as evidently calls it, on the raw values of one column of both
samples; the raw number, its verdict at its own threshold and a score in our sense come back. Nothing here decides.

Invariants: larger score is more drift: the number itself for distances, -log10 p for p-values, 300 at most. Missing and
infinite values are left out first, as there; a side without values is the state `insufficient_data`; an error of theirs
is the state `failed` with their words in one line. Inputs, numpy's global random state and warning filters are as
before; the tests that draw at random start from a fixed seed. Nothing is sent anywhere.

Cost: the first call imports evidently, 2-10 s and 250 MB; then 1-5 ms a column of 1,000 rows, for display and on demand
only. `TVD` and `empirical_mmd` permute: seconds, so they see a sample of at most `ROWS_MAX` rows a side.

Neighbours: `method` describes, `methods` is the catalogue, `parity_report` draws evidently's HTML; docs/parity.md shows where
theirs errs, and `distances` and `tests` do the same on counts.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import math
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detectors.method import ANY, LEVELS, NUMERIC, Method

#: Raw values of one column: numbers (NaN is missing) or levels (None is missing).
Values = NDArray[np.generic] | Sequence[object]
State = Literal["ok", "insufficient_data", "failed"]
#: Objects of evidently and pandas, whose classes cannot be named without importing them.
Theirs = Any

PREFIX = "evidently:"
#: Rows of a side that the permuting tests see: 100 shuffles of a 2,000 x 2,000 matrix, 1,000 recounts of 4,000 values.
ROWS_MAX = {"empirical_mmd": 1000, "TVD": 2000}
#: Their permutations: a p-value of 0 from 100 of them says "below .01", so its score is 2 and not 300.
_PERMUTATIONS = {"empirical_mmd": 100, "TVD": 1000}
LOG10_P_MAX = 300.0
_WORDS_MAX = 240
_SEED = 0
#: One call at a time: warning filters and numpy's global random state belong to the process.
_ONE_AT_A_TIME = threading.Lock()
#: What evidently, pandas, numpy and scipy raise on data that they do not take.
_THEIR_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Parity:
    """What evidently says of one column.

    name      : the test that ran, with prefix; with `evidently:default` the one that evidently chose
    statistic : their number; NaN unless the state is `ok`      score : ours of it; larger is more drift
    is_p      : the number is a p-value                         threshold : theirs, in the terms of `statistic`
    drift     : their verdict; False unless the state is `ok`
    state     : `ok`, `insufficient_data` (a side has no values), `failed` (`why` has their words)
    exact     : all values were used, not a sample of them      reference_rows, window_rows : values used
    """

    name: str
    statistic: float
    score: float
    is_p: bool
    drift: bool
    threshold: float
    state: State
    why: str = ""
    exact: bool = True
    reference_rows: int = 0
    window_rows: int = 0


@dataclass(frozen=True, slots=True)
class DatasetParity:
    """evidently's verdict on the whole data set: the share of drifted columns against theirs, .5 by default.

    share : of the columns that could be tested; NaN where none could      columns : what was said of each
    """

    share: float
    drifted: int
    tested: int
    drift: bool
    threshold: float
    columns: Mapping[str, Parity]


@dataclass(frozen=True, slots=True)
class _Test:
    """One entry of evidently's registry, as version 0.7 has it."""

    is_p: bool
    kinds: frozenset[str]
    threshold: float
    unit: str
    help: str


_P = "-log10 p"
_TESTS: dict[str, _Test] = {
    "psi": _Test(False, ANY, 0.1, "nats, 0 and up", "Population stability index on equal-width bins of both samples."),
    "kl_div": _Test(False, ANY, 0.1, "nats, 0 and up", "Divergence of the reference from the window on equal-width bins."),
    "jensenshannon": _Test(False, ANY, 0.1, "root of nats, 0 to 0.833", "Jensen-Shannon distance in nats on equal-width bins."),
    "hellinger": _Test(False, ANY, 0.1, "0 to 1", "Hellinger distance on equal-width bins of the distinct values."),
    "wasserstein": _Test(False, NUMERIC, 0.1, "reference s.d., 0 and up", "Wasserstein-1 distance over the reference's s.d."),
    "ed": _Test(False, NUMERIC, 0.1, "root of the column's unit, 0 and up", "Energy distance, not normed."),
    "ks": _Test(True, NUMERIC, 0.05, _P, "Two-sample Kolmogorov-Smirnov test."),
    "anderson": _Test(True, NUMERIC, 0.1, _P, "Two-sample Anderson-Darling test; p is cut to .001 ... .25."),
    "cramer_von_mises": _Test(True, NUMERIC, 0.1, _P, "Two-sample Cramér-von Mises test."),
    "t_test": _Test(True, NUMERIC, 0.05, _P, "Two-sample t test, equal variances."),
    "mannw": _Test(True, NUMERIC, 0.05, _P, "Mann-Whitney test, one-sided: a window of larger values only."),
    "es": _Test(True, NUMERIC, 0.05, _P, "Epps-Singleton test."),
    "empirical_mmd": _Test(True, NUMERIC, 0.1, _P, "Maximum mean discrepancy, 100 permutations."),
    "chisquare": _Test(True, LEVELS, 0.05, _P, "One-sample chi-square test: the reference's shares count as exact."),
    "g_test": _Test(True, LEVELS, 0.1, _P, "One-sample G test on raw counts: fails unless the samples are of equal size."),
    "fisher_exact": _Test(True, LEVELS, 0.1, _P, "Fisher's exact test of two levels, samples of equal size only."),
    "z": _Test(True, LEVELS, 0.05, _P, "Test of the share of all levels but the first in order."),
    "TVD": _Test(True, LEVELS, 0.1, _P, "Total variation distance, 1,000 permutations."),
}
#: The test that evidently itself would choose for the column.
DEFAULT = "default"
METHODS: tuple[Method, ...] = (
    *(Method(PREFIX + name, "sample", test.unit, test.kinds, f"{test.help[:-1]}, by evidently.",
             threshold=-math.log10(test.threshold) if test.is_p else test.threshold) for name, test in _TESTS.items()),
    Method(PREFIX + DEFAULT, "sample", "as the test that evidently chooses", ANY,
           "The test that evidently chooses by kind, rows and distinct values, by evidently."),
)


def evaluate(name: str, reference: Values, window: Values, kind: str) -> Parity:
    """What evidently's test `name` says of one column.

    name              : `evidently:` and a name of its registry, or `evidently:default`
    reference, window : raw values of the column in both samples, numbers or levels, missing ones included
    kind              : `numeric`, `category` or `boolean`
    raises            : ValueError (unknown name, a kind that the test is not for, text in a numeric column) and
                        ImportError (no evidently), one line each
    """
    short = _short(name, kind)
    before, after = _present(name, reference, kind), _present(name, window, kind)
    if not len(before) or not len(after):
        return _not_tested(short, "insufficient_data", "no values in the " + ("window" if len(before) else "reference"),
                           before, after)
    registry, pandas = _evidently(name)
    with quietly():
        chosen = None if short == DEFAULT else short
        return _run(registry, pandas, chosen, before, after, "num" if kind == "numeric" else "cat")


def data_drift_share(reference: Mapping[str, Values], window: Mapping[str, Values], kinds: Mapping[str, str], *,
                     tests: Mapping[str, str] | None = None, threshold: float = 0.5) -> DatasetParity:
    """evidently's verdict on a data set: drift if the share of drifted columns is at least the threshold.

    reference, window : values by column      kinds : kind by column, which says what is compared
    tests             : test by column where it is not `evidently:default`
    A column that is absent, empty or fails is not drifted and does not count as tested (evidently stops there).
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"data_drift_share.threshold: expected a share from 0 to 1, got {threshold!r}")
    unknown = sorted(set(tests or {}) - set(kinds))
    if unknown:
        raise ValueError(f"data_drift_share.tests: expected names of columns ({', '.join(kinds)}), got {unknown[0]!r}")
    columns = {name: evaluate((tests or {}).get(name, PREFIX + DEFAULT), reference.get(name, ()), window.get(name, ()), kind)
               for name, kind in kinds.items()}
    tested = sum(said.state == "ok" for said in columns.values())
    drifted = sum(said.drift for said in columns.values())
    share = drifted / tested if tested else math.nan
    return DatasetParity(share, drifted, tested, bool(tested) and share >= threshold, threshold, columns)


def _run(registry: Theirs, pandas: Theirs, chosen: str | None, before: NDArray[Any], after: NDArray[Any],
         their_kind: str) -> Parity:
    """Their test on values without missing ones; `chosen` None lets them choose."""
    short = chosen or DEFAULT
    try:
        column_type = registry.ColumnType(their_kind)
        # They choose by the number of rows, so all rows are shown to the choice.
        stattest = registry.get_stattest(pandas.Series(before), pandas.Series(after), column_type, chosen)
        short = stattest.name
        used_before, used_after = (_sampled(values, ROWS_MAX.get(short)) for values in (before, after))
        # Fresh series: hellinger drops missing values in place.
        result = stattest(pandas.Series(used_before), pandas.Series(used_after), column_type, None)
        statistic, drift, threshold = float(result.drift_score), bool(result.drifted), float(result.actual_threshold)
    except _THEIR_ERRORS as error:
        return _not_tested(short, "failed", f"{type(error).__name__}: {error}", before, after)
    if not math.isfinite(statistic):
        return _not_tested(short, "failed", f"its number is {statistic} on these values", used_before, used_after)
    is_p = _TESTS[short].is_p if short in _TESTS else "p_value" in stattest.display_name
    smallest = 1 / _PERMUTATIONS[short] if short in _PERMUTATIONS else 10**-LOG10_P_MAX
    score = max(-math.log10(max(statistic, smallest)), 0.0) if is_p else statistic
    exact = len(used_before) == len(before) and len(used_after) == len(after)
    return Parity(PREFIX + short, statistic, score, is_p, drift, threshold, "ok", "", exact, len(used_before), len(used_after))


def _not_tested(short: str, state: State, why: str, before: NDArray[Any], after: NDArray[Any]) -> Parity:
    test = _TESTS.get(short)
    words = " ".join(why.split())
    words = words if len(words) <= _WORDS_MAX else words[:_WORDS_MAX - 3] + "..."
    return Parity(PREFIX + short, math.nan, math.nan, bool(test and test.is_p), False, test.threshold if test else math.nan,
                  state, words, True, len(before), len(after))


def _short(name: str, kind: str) -> str:
    """The name without its prefix, known and fit for the kind."""
    short = name.removeprefix(PREFIX)
    known = [*_TESTS, DEFAULT]
    if not name.startswith(PREFIX) or short not in known:
        near = difflib.get_close_matches(short, known, 1)
        raise ValueError(f"{name}: expected evidently: and one of {', '.join(known)}, got an unknown name"
                         + (f"; did you mean {PREFIX}{near[0]}?" if near else ""))
    kinds = _TESTS[short].kinds if short in _TESTS else ANY
    if kind not in kinds:
        raise ValueError(f"{name}: expected a column of kind {' or '.join(sorted(kinds))}, got kind {kind!r}; "
                         "take another test for this column")
    return short


def _present(name: str, values: Values, kind: str) -> NDArray[Any]:
    """The values that are neither missing nor infinite: float64, or objects for levels."""
    if kind == "numeric":
        try:
            numbers = np.asarray(values, np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"{name}: expected numbers in a numeric column, got text; declare the column a category") from None
        if numbers.ndim != 1:
            raise ValueError(f"{name}: expected one value per row, got an array of shape {numbers.shape}")
        return numbers[np.isfinite(numbers)]
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuU":     # no place for a missing one
        return values.astype(object)
    kept = [value for value in values
            if value is not None and not (isinstance(value, (float, np.floating)) and not math.isfinite(value))]
    levels = np.empty(len(kept), object)
    levels[:] = kept
    return levels


def _sampled(values: NDArray[Any], rows_max: int | None) -> NDArray[Any]:
    """At most so many of the values, drawn without replacement from a fixed seed, in their order."""
    if rows_max is None or len(values) <= rows_max:
        return values
    chosen: NDArray[Any] = values[np.sort(np.random.default_rng(_SEED).choice(len(values), rows_max, replace=False))]
    return chosen


@lru_cache(maxsize=1)
def _imported() -> tuple[Theirs, Theirs]:
    """evidently's registry of tests and pandas, imported once, by name: the type checker need not have them."""
    os.environ.setdefault("DO_NOT_TRACK", "1")             # read by evidently's telemetry, which our calls do not touch either
    with quietly():
        pandas = importlib.import_module("pandas")
        importlib.import_module("evidently.legacy.calculations.stattests")
        return importlib.import_module("evidently.legacy.calculations.stattests.registry"), pandas


def _evidently(name: str) -> tuple[Theirs, Theirs]:
    try:
        return _imported()
    except (ImportError, AttributeError, TypeError) as error:   # with pandas 3 evidently 0.7 fails while it is imported
        words = " ".join(str(error).split())[:_WORDS_MAX]
        raise ImportError(f"{name}: expected evidently and the pandas that it imports, got {words}; "
                          "pip install 'tidemark[report]'") from None


def theirs(name: str) -> Theirs:
    """pandas, where evidently can be imported beside it; ImportError that says what to install, for `name`."""
    return _evidently(name)[1]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """No warning, and numpy's global random numbers from a fixed seed which are put back afterwards."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = np.random.get_state()
        np.random.seed(_SEED)
        try:
            with np.errstate(all="ignore"):
                yield
        finally:
            np.random.set_state(before)
