"""Values to bins: the worked examples of the specification, and the values that break naive bins."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from detectors import binning as bins
from detectors.binning import CategoryBinning, NumericBinning, level_hash, numeric_edges
from detectors.rows import Column, fit_row


def test_an_atom_gets_a_bin_of_its_own_and_edges_are_values_of_the_reference():
    values = np.array([0.0] * 6 + [*range(1, 15)])
    edges = numeric_edges(values, 4)
    assert edges.tolist() == [0.0, np.nextafter(0, 1), 5.0, 10.0, np.nextafter(14, 15)]
    binning = NumericBinning(edges, edges)
    assert binning.count(values).tolist() == [0, 0, 6, 4, 5, 5, 0]
    codes = binning.codes(np.array([np.nan, -1, 0, 0.5, 9, 14, 14.5]))
    assert codes.tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_few_distinct_values_are_bins_each_and_a_value_between_falls_into_the_lower_one():
    binning = NumericBinning.fit(np.array([1.0, 2.0, 2.0, 5.0]))
    assert binning.edges.tolist() == [1.0, 2.0, 5.0, np.nextafter(5, 6)]
    assert binning.codes(np.array([1.5, 4.999, 5.0])).tolist() == [2, 3, 4]


def test_scan_bins_are_unions_of_fine_bins():
    values = np.random.default_rng(3).standard_normal(5000).round(2)
    values[:600] = 0.25                                     # an atom of the scan's bins, too
    binning = NumericBinning.fit(values)
    direct = NumericBinning(binning.scan_edges, binning.scan_edges).count(values)
    folded = np.bincount(binning.scan_of_fine, weights=binning.count(values), minlength=binning.scan_bins)
    assert folded.tolist() == direct.tolist()
    assert 50 <= binning.bins <= 100


def test_no_value_is_lost_however_absurd():
    binning = NumericBinning.fit(np.linspace(0, 1, 1000))
    absurd = np.array([np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, 0.0, -0.0, 1.0, np.nextafter(1, 2)])
    counts = binning.count(absurd)
    assert counts.sum() == len(absurd)
    assert (counts[0], counts[1], counts[-1]) == (1, 2, 3)


def test_sorting_first_counts_as_searching_every_value_does():
    rng = np.random.default_rng(5)
    binning = NumericBinning.fit(rng.standard_normal(2000))
    values = np.where(rng.random(1000) < 0.1, np.nan, 3 * rng.standard_normal(1000))
    values[:3] = [np.inf, -np.inf, binning.edges[7]]
    searched = np.bincount(binning.codes(values), minlength=binning.bins)
    assert binning.count(values).tolist() == searched.tolist()


NEAR = np.array([np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, -5e-324, 0.0, -0.0, 3.5e38, 3.4028235e38, 1e-46, 16777217.0])


@pytest.mark.parametrize("of", [
    lambda rng, n: rng.gamma(2.0, 3.0, n), lambda rng, n: rng.standard_normal(n).round(2),
    lambda rng, n: rng.integers(0, 40, n).astype(float), lambda rng, n: 1e9 + rng.random(n),
    lambda rng, n: rng.standard_normal(n) * 1e300, lambda rng, n: rng.standard_normal(n) * 1e-310,
    lambda rng, n: np.where(rng.random(n) < 0.5, 0.1, rng.random(n)), lambda rng, n: np.exp(40 * rng.standard_normal(n))])
def test_single_precision_counts_as_double_does(of):
    rng = np.random.default_rng(11)
    binning = NumericBinning.fit(of(rng, 4000))
    for _ in range(2):                                      # what the first batch says of ties is known to the second
        values = of(rng, bins.SINGLE_ROWS_MIN + 500)
        values[rng.random(len(values)) < 0.05] = np.nan
        values[:len(NEAR)] = NEAR
        beside = [np.nextafter(binning.edges, side) for side in (-np.inf, np.inf)]
        for some in (values, np.concatenate([values, binning.edges, *beside]),
                     np.concatenate([values, beside[0][:3]]), np.full(bins.SINGLE_ROWS_MIN, np.nan)):
            kept = some.copy()
            searched = np.bincount(binning.codes(some), minlength=binning.bins)
            assert binning.count(some).tolist() == searched.tolist()
            assert np.array_equal(kept, some, equal_nan=True)


def test_a_few_ties_do_not_cost_a_column_its_single_precision_and_many_do():
    rng = np.random.default_rng(12)
    binning = NumericBinning.fit(rng.standard_normal(4000))
    values = rng.standard_normal(bins.SINGLE_ROWS_MIN)
    values[:50] = binning.edges[3]
    binning.count(values)
    assert binning._single is not None
    binning.count(np.concatenate([values, binning.edges]))
    assert binning._single is None


def test_a_column_that_was_always_missing_shows_every_number_as_new():
    row = fit_row(Column("x", "numeric"), np.full(500, np.nan), ordered=True)
    assert row.binning.count(np.full(500, np.nan)).tolist() == row.counts.tolist()
    assert row.binning.count(np.array([-1.0, 1.0]))[[1, -1]].tolist() == [1, 1]
    assert not row.weights.any()


def test_rest_and_unseen_are_told_apart_and_unseen_gets_the_mass_of_the_singletons():
    values = ["0"] * 50 + ["1"] * 30 + ["2"] * 15 + ["3"] * 3 + ["4", "5"]
    binning = CategoryBinning.fit(Counter(values))
    assert binning.levels == ("0", "1", "2")
    assert binning.count(values).tolist() == [0, 50, 30, 15, 5, 0]
    assert (binning.code("5"), binning.code("77")) == (4, 5)
    row = fit_row(Column("x", "category"), values, ordered=True)
    assert row.c0.tolist() == [0, 50, 30, 15, 5, 3]


def test_equal_counts_of_levels_are_ordered_by_value():
    assert CategoryBinning.fit(Counter(["b"] * 9 + ["a"] * 9 + ["c"] * 10)).levels == ("c", "a", "b")


def test_the_scan_keeps_fewer_levels_and_calls_the_others_rest():
    counts = Counter({f"v{i:03}": 2000 - i for i in range(150)})
    binning = CategoryBinning.fit(counts)
    assert (len(binning.levels), binning.scan_levels) == (128, 32)
    rest = binning.scan_of_fine[[binning.code("v031"), binning.code("v032"), binning.code("v140"), binning.code("new")]]
    assert rest.tolist() == [32, 33, 33, 34]


def test_hashes_of_levels_are_the_same_in_another_process():
    code = "from detectors.binning import level_hash; print(level_hash('Zürich'), level_hash('\\ud800'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert other.stdout.split() == [str(level_hash("Zürich")), str(level_hash("\ud800"))]


def test_bins_have_words():
    assert NumericBinning.fit(np.array([1.0, 2.0, 2.0, 5.0])).labels() == [
        "missing", "below 1", "[1, 2)", "[2, 5)", "5", "above 5"]
    numeric = NumericBinning.fit(np.array([0.0] * 50 + [*range(1, 100)]))
    assert numeric.scan_words()[:4] == ["missing", "below 0", "value 0", "bin (0, 7)"]
    category = CategoryBinning.fit(Counter({"a": 40, "b": 30, None: 9}))
    assert category.labels() == ["missing", "a", "b", "rest", "unseen"]
    assert category.scan_words() == ["missing", "level a", "level b", "rest", "unseen"]
