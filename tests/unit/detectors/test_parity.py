"""evidently's tests by name: its own numbers to six digits, its known faults, its states, and nothing of it leaking out."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from detectors import parity
from detectors.method import ANY
from detectors.parity import METHODS, Parity, data_drift_share, evaluate
from detectors.tests import chi2_two_sample

ROOT = Path(__file__).resolve().parents[3]
NAMES = [method.name for method in METHODS]

#: In CI a skip is a failure; elsewhere this says why.
needs_evidently = pytest.mark.skipif(importlib.util.find_spec("evidently") is None,
                                     reason="no evidently; pip install 'tidemark[report]'")


def levels(counts: list[int]) -> list[str]:
    return [name for name, count in zip("abcdefgh", counts, strict=False) for _ in range(count)]


def shares_to_levels(shares: list[float]) -> list[str]:
    return levels([round(1000 * share) for share in shares])


@needs_evidently
@pytest.mark.parametrize(("name", "expected"), [("psi", 0.712399), ("kl_div", 0.110770), ("jensenshannon", 0.193496)])
def test_distances_on_shares_give_the_worked_example(name, expected):
    """Ex 17: shares (.5, .3, .2, 0) and (.4, .3, .2, .1)."""
    said = evaluate(f"evidently:{name}", shares_to_levels([0.5, 0.3, 0.2, 0]), shares_to_levels([0.4, 0.3, 0.2, 0.1]), "category")
    assert said.statistic == pytest.approx(expected, abs=5e-7)
    assert (said.score, said.is_p, said.drift, said.threshold, said.state) == (said.statistic, False, True, 0.1, "ok")


@needs_evidently
def test_chisquare_gives_the_worked_example_and_ours_another_number():
    """Ex 15's counts: theirs p 2.065916e-6, ours 0.002113."""
    said = evaluate("evidently:chisquare", levels([10, 20, 30, 40]), levels([15, 15, 10, 10]), "category")
    assert said.statistic == pytest.approx(2.065916e-6, abs=5e-13)
    assert said.score == pytest.approx(-math.log10(2.065916e-6), abs=1e-6)
    assert (said.is_p, said.drift, said.threshold) == (True, True, 0.05)
    p = chi2_two_sample(np.array([[10, 20, 30, 40]]), np.array([[15, 15, 10, 10]]))[2]
    assert float(p[0]) == pytest.approx(0.002113, abs=5e-7)


# ---- the known faults ---------------------------------------------------------------------------------------------------


@needs_evidently
def test_chisquare_ignores_the_references_noise():
    """1,000 rows against 1,000, 20 levels, no drift: 73 % alarms at 5 %; 200 runs, three standard errors."""
    rng = np.random.default_rng(1)
    runs = [evaluate("evidently:chisquare", rng.integers(20, size=1000), rng.integers(20, size=1000), "category").drift
            for _ in range(200)]
    assert abs(np.mean(runs) - 0.73) <= 3 * math.sqrt(0.73 * 0.27 / 200)


@needs_evidently
def test_chisquare_gives_p_0_for_one_unseen_level():
    said = evaluate("evidently:chisquare", levels([500, 500]), levels([500, 500, 1]), "category")
    assert (said.statistic, said.score, said.drift) == (0.0, 300.0, True)


@needs_evidently
def test_one_absurd_value_hides_a_shift_from_psi_and_makes_one_for_wasserstein():
    """5,000 rows a side: psi .95 -> .00007 with the mean moved by 1 s.d.; wasserstein 200 with nothing moved."""
    rng = np.random.default_rng(2)
    reference, same = rng.standard_normal(5000), rng.standard_normal(5000)
    absurd = same.copy()
    absurd[0] = 1e6
    assert evaluate("evidently:psi", reference, same + 1, "numeric").statistic == pytest.approx(0.95, abs=0.08)
    hidden = evaluate("evidently:psi", reference, np.where(absurd > 1e5, absurd, absurd + 1), "numeric")
    assert hidden.statistic == pytest.approx(0.00007, abs=5e-6)
    assert not hidden.drift
    assert not evaluate("evidently:wasserstein", reference, same, "numeric").drift
    assert evaluate("evidently:wasserstein", reference, absurd, "numeric").statistic == pytest.approx(200, abs=6)


@needs_evidently
@pytest.mark.parametrize(("name", "kind"), [("psi", "numeric"), ("jensenshannon", "numeric"), ("wasserstein", "numeric"),
                                            ("psi", "category"), ("jensenshannon", "category")])
def test_thresholds_ignore_the_size_of_a_window(name, kind):
    """No drift, windows of 100 rows: 69 to 100 % alarms; windows of 2,000 rows: next to none."""
    rng = np.random.default_rng(3)
    shares = np.arange(1, 21) ** -1.3 / (np.arange(1, 21) ** -1.3).sum()

    def rows(n):
        return rng.standard_normal(n) if kind == "numeric" else rng.choice(20, size=n, p=shares)

    small, large = ([evaluate(f"evidently:{name}", rows(5000), rows(n), kind).drift for _ in range(runs)]
                    for n, runs in ((100, 60), (2000, 20)))
    assert np.mean(small) >= 0.5
    assert np.mean(large) <= 0.2


@needs_evidently
def test_g_test_fails_when_sizes_differ_and_works_when_they_do_not():
    failed = evaluate("evidently:g_test", levels([500, 500]), levels([100, 150]), "category")
    assert (failed.state, failed.drift) == ("failed", False)
    assert "sum of the observed frequencies" in failed.why
    assert "\n" not in failed.why
    assert len(failed.why) <= 240
    assert math.isnan(failed.statistic)
    assert math.isnan(failed.score)
    assert evaluate("evidently:g_test", levels([500, 500]), levels([450, 550]), "category").state == "ok"


@needs_evidently
def test_fisher_exact_needs_equal_sizes():
    failed = evaluate("evidently:fisher_exact", [True, False] * 50, [True, False] * 30, "boolean")
    assert (failed.state, failed.drift) == ("failed", False)
    assert "not of equal length" in failed.why
    assert evaluate("evidently:fisher_exact", [True, False] * 50, [True] * 100, "boolean").drift


@needs_evidently
def test_mannw_sees_a_rise_and_not_a_fall():
    values = np.random.default_rng(4).standard_normal(500)
    assert evaluate("evidently:mannw", values, values + 0.5, "numeric").drift
    assert evaluate("evidently:mannw", values, values - 0.5, "numeric").statistic > 0.99


# ---- what is chosen, states, input --------------------------------------------------------------------------------------


@needs_evidently
@pytest.mark.parametrize(("rows", "distinct", "kind", "chosen"), [
    (1000, 6, "numeric", "ks"), (1000, 5, "numeric", "chisquare"), (1000, 2, "numeric", "z"),
    (1000, 3, "category", "chisquare"), (1000, 2, "category", "z"), (1000, 2, "boolean", "z"),
    (1001, 6, "numeric", "wasserstein"), (1001, 5, "numeric", "jensenshannon"), (1001, 3, "category", "jensenshannon"),
    (1001, 2, "boolean", "jensenshannon")])
def test_the_default_is_the_test_that_evidently_chooses(rows, distinct, kind, chosen):
    values = np.arange(rows) % distinct
    column = values.astype(float) if kind == "numeric" else [f"v{i}" for i in values] if kind == "category" else values == 1
    said = evaluate("evidently:default", column, column[:300], kind)
    assert (said.name, said.state) == (f"evidently:{chosen}", "ok")
    assert said.is_p == (chosen in ("ks", "chisquare", "z"))


@needs_evidently
@pytest.mark.parametrize("name", NAMES)
def test_missing_and_infinite_values_are_left_out_and_inputs_left_alone(name):
    kinds = next(method.kinds for method in METHODS if method.name == name)
    rng = np.random.default_rng(5)
    for kind in sorted(kinds & {"numeric", "boolean"}):
        def column(n, kind=kind):
            return rng.standard_normal(n) if kind == "numeric" else rng.random(n) < 0.4
        a, b = column(120), column(120)
        holed = [None, *a.tolist()[:60], float("nan"), float("inf"), *a.tolist()[60:], float("-inf")]
        kept = list(holed)
        clean, dirty = evaluate(name, a, b, kind), evaluate(name, holed, b, kind)
        assert clean.state == "ok"
        assert clean == dirty
        assert all(x is y for x, y in zip(holed, kept, strict=True))
        assert (dirty.reference_rows, dirty.window_rows, dirty.exact) == (120, 120, True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("reference", "window", "side"), [
    ([1.0, 2.0], [], "window"), ([], [1.0], "reference"), ([math.nan, None, math.inf], [1.0], "reference"),
    ([], [], "reference")])
def test_a_column_without_values_is_insufficient_data_and_no_error(name, reference, window, side):
    kind = next("numeric" if "numeric" in method.kinds else "category" for method in METHODS if method.name == name)
    said = evaluate(name, reference, window, kind)
    assert (said.state, said.drift, said.why) == ("insufficient_data", False, f"no values in the {side}")
    assert math.isnan(said.score)


@needs_evidently
@pytest.mark.parametrize("name", NAMES)
def test_odd_samples_give_a_number_or_a_state_and_never_a_traceback(name):
    kinds = next(method.kinds for method in METHODS if method.name == name)
    numeric = [([1.0], [1.0]), ([1.0] * 50, [1.0] * 50), ([1.0] * 50, [2.0] * 3), (list(range(50)), [1e300, -1e300, 0.0] * 9)]
    other = [(["a"], ["a"]), (["a"] * 9, ["b"] * 9), (["a", 1, True] * 9, [2, "b"] * 9), ([("a", 1)] * 9, [("b",)] * 9),
             ([{}] * 9, [{}] * 9)]
    for kind, pairs in (("numeric", numeric), ("category", other)):
        for reference, window in pairs if kind in kinds else []:
            said = evaluate(name, reference, window, kind)
            assert said.state in ("ok", "failed")
            assert (said.state == "ok") == math.isfinite(said.score)
            assert bool(said.why) == (said.state == "failed")
            assert "\n" not in said.why
            assert said.drift in (True, False)


@needs_evidently
def test_permuting_tests_see_a_sample_of_long_columns_and_say_so(monkeypatch):
    monkeypatch.setattr(parity, "ROWS_MAX", {"TVD": 30, "empirical_mmd": 40})
    rng = np.random.default_rng(6)
    said = evaluate("evidently:TVD", rng.integers(3, size=500), rng.integers(3, size=20), "category")
    assert (said.exact, said.reference_rows, said.window_rows) == (False, 30, 20)
    far = evaluate("evidently:empirical_mmd", rng.standard_normal(500), rng.standard_normal(500) + 5, "numeric")
    assert (far.statistic, far.score, far.exact) == (0.0, 2.0, False)      # below 1/100: no more can be said of 100 permutations
    assert far == evaluate("evidently:empirical_mmd", *_again(6), "numeric")


def _again(seed):
    rng = np.random.default_rng(seed)
    rng.integers(3, size=500)
    rng.integers(3, size=20)
    return rng.standard_normal(500), rng.standard_normal(500) + 5


@pytest.mark.parametrize(("name", "kind", "values", "words"), [
    ("evidently:pis", "numeric", [1.0], "evidently:pis: expected evidently: and one of psi, .*did you mean evidently:psi"),
    ("psi", "numeric", [1.0], "psi: expected evidently: and one of"),
    ("evidently:chisquare", "numeric", [1.0], "kind boolean or category, got kind 'numeric'"),
    ("evidently:wasserstein", "category", ["a"], "kind numeric, got kind 'category'"),
    ("evidently:default", "text", ["a"], "got kind 'text'"),
    ("evidently:psi", "numeric", ["fast", "slow"], "expected numbers in a numeric column, got text"),
    ("evidently:psi", "numeric", [[1.0, 2.0]], "expected one value per row"),
])
def test_what_cannot_be_asked_is_refused_in_one_line(name, kind, values, words):
    with pytest.raises(ValueError, match=words) as refused:
        evaluate(name, values, values, kind)
    assert "\n" not in str(refused.value)


def test_without_evidently_the_error_says_which_extra_to_install(monkeypatch):
    parity._imported.cache_clear()
    monkeypatch.setitem(sys.modules, "evidently.legacy.calculations.stattests", None)
    with pytest.raises(ImportError, match=r"pip install 'tidemark\[report\]'") as refused:
        evaluate("evidently:psi", [1.0], [1.0], "numeric")
    assert "\n" not in str(refused.value)
    parity._imported.cache_clear()


# ---- the data set -------------------------------------------------------------------------------------------------------


@needs_evidently
def test_a_data_set_has_drifted_when_half_of_the_tested_columns_have():
    rng = np.random.default_rng(7)
    reference = {name: rng.standard_normal(2000) for name in "abcd"}
    window = {"a": reference["a"], "b": reference["b"] + 1, "c": reference["c"] + 1, "d": np.full(10, np.nan)}
    kinds = dict.fromkeys("abcd", "numeric")
    said = data_drift_share(reference, window, kinds)
    assert (said.drifted, said.tested, said.drift) == (2, 3, True)
    assert said.share == pytest.approx(2 / 3)
    assert said.columns["d"].state == "insufficient_data"
    assert not data_drift_share(reference, window, kinds, threshold=0.7).drift
    assert data_drift_share(reference, window, kinds, tests={"a": "evidently:ks"}).columns["a"].name == "evidently:ks"
    assert not data_drift_share(reference, {}, kinds).drift
    with pytest.raises(ValueError, match="expected names of columns"):
        data_drift_share(reference, window, kinds, tests={"z": "evidently:ks"})


# ---- nothing leaks ------------------------------------------------------------------------------------------------------


@needs_evidently
def test_the_catalogue_agrees_with_evidentlys_own_registry():
    registry = parity._imported()[0]._registered_stat_tests
    theirs = {name: by_kind for name, by_kind in registry.items() if not name.endswith("text_content_drift")}
    assert {f"evidently:{name}" for name in theirs} | {"evidently:default"} == set(NAMES)
    for name, by_kind in theirs.items():
        kinds = {kind.value for kind in by_kind}
        test = parity._TESTS[name]
        assert test.threshold == next(iter(by_kind.values())).default_threshold
        assert ("num" in kinds, "cat" in kinds) == ("numeric" in test.kinds, "category" in test.kinds)
    assert all(method.source == "sample" and not method.joint for method in METHODS)
    assert METHODS[-1].kinds == ANY


@needs_evidently
def test_random_state_and_warning_filters_are_as_before_and_draws_repeat(capfd):
    a, b = np.random.default_rng(8).integers(3, size=(2, 40))
    np.random.seed(123)
    before, filters = np.random.get_state()[1].copy(), list(warnings.filters)
    first = evaluate("evidently:TVD", a, b, "category")
    assert first == evaluate("evidently:TVD", a, b, "category")
    assert (np.random.get_state()[1] == before).all()
    assert list(warnings.filters) == filters
    assert capfd.readouterr() == ("", "")


@needs_evidently
def test_a_first_call_sends_nothing_prints_nothing_and_leaves_logging_alone():
    """In a process of its own, without DO_NOT_TRACK set, with every way out of the machine broken and warnings as errors."""
    program = """
import logging, os, socket, threading
def nowhere(*args, **options): raise SystemExit("a connection was asked for")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = nowhere
os.environ.pop("DO_NOT_TRACK", None)
before = list(logging.getLogger().handlers), logging.getLogger().level
from detectors.parity import evaluate
assert evaluate("evidently:ks", [1.0, 2.0, 3.0], [2.0, 3.0, 5.0], "numeric").state == "ok"
assert (list(logging.getLogger().handlers), logging.getLogger().level) == before
assert threading.active_count() == 1
assert os.environ["DO_NOT_TRACK"] == "1"
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240,
                          check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_catalogues_imports_neither_evidently_nor_river_nor_pandas():
    program = ("import sys; from detectors import parity, streaming; "
               "sys.exit(bool({'evidently', 'river', 'pandas'} & {name.split('.')[0] for name in sys.modules}))")
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=120, check=False).returncode == 0


# ---- the page -----------------------------------------------------------------------------------------------------------


def committed():
    return json.loads((ROOT / "docs" / "figures" / "parity.json").read_text())


def test_the_pages_tables_are_the_committed_measurements():
    from benchmarks.parity_figures import tables

    page = (ROOT / "docs" / "parity.md").read_text()
    assert [name for name, table in tables(committed()).items() if table not in page] == []
    assert f"p = {committed()['chisquare']['one unseen level']['ours']:.2f} for it" in page


@needs_evidently
def test_the_quick_measurement_of_the_page_is_reproduced():
    from benchmarks.parity_figures import absurd_value

    again, before = absurd_value(), committed()["absurd"]
    assert again["values"] == before["values"]
    for name, values in before["statistics"].items():
        assert again["statistics"][name] == pytest.approx(values, rel=1e-4)


def test_a_result_is_frozen():
    with pytest.raises(AttributeError):
        evaluate("evidently:psi", [], [], "numeric").score = 1.0  # type: ignore[misc]
    assert isinstance(evaluate("evidently:psi", [], [], "numeric"), Parity)
