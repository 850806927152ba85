"""Distances and p-values: the worked examples of the specification, and what is shown of a window."""

import numpy as np
import pytest

from detectors import comparison, distances
from detectors import tests as pvalues
from detectors.reference import Column, Reference

C, N = np.array([[10, 20, 30, 40]]), np.array([[15, 15, 10, 10]])
H, K = np.array([0.03]), np.array([4])
X = np.array([[1.0, 2, 3, 5]])
SD = np.array([1.428286])


def near(value):
    return pytest.approx(value, abs=5e-7)


def test_distances_have_the_values_of_the_worked_example():
    assert distances.psi(C, N)[0] == near(0.415810)
    assert distances.kl(C, N)[0] == near(0.218579)
    assert distances.js(C, N)[0] == near(0.277093)
    assert distances.js(C, N)[0] ** 2 == near(0.076780)
    assert distances.hellinger(C, N)[0] == near(0.232496)
    assert distances.tv(C, N)[0] == near(0.3)
    assert distances.linf(C, N)[0] == near(0.2)
    assert distances.ks(C, N)[0] == near(0.3)
    assert distances.wasserstein(C, N, X, SD)[0] == near(0.630126)
    assert distances.wasserstein_plain(C, N, X)[0] == near(0.9)
    assert pvalues.ks_p(0.3, 0.03) == near(0.004958)


def test_the_jensen_shannon_distance_is_in_bits_and_chi_square_has_two_samples():
    """Ex 17: its own part; evidently's numbers for the same shares are tested beside its adapter."""
    shares = np.array([[50, 30, 20, 0]]), np.array([[40, 30, 20, 10]])
    assert distances.js(*shares)[0] == near(0.232413)
    x2, _, p = pvalues.chi2_two_sample(C, N)
    assert (x2[0], p[0]) == (near(14.678571), near(0.002113))


def test_what_is_expected_without_drift_has_the_values_of_the_worked_example():
    bands = distances.analytic_null(K, H)
    assert (bands["psi"][0][0], bands["psi"][1][0]) == (near(0.09), near(0.234442))
    assert distances.corrected("psi", distances.psi(C, N), bands["psi"][0])[0] == near(0.325810)
    assert bands["js"][1][0] == near(np.sqrt(0.234442 / (8 * np.log(2))))
    assert distances.tv_null_mean(C, H)[0] == near(0.113886)
    assert distances.KS_95 * np.sqrt(0.03) == near(0.235230)


def test_p_values_have_the_values_of_the_worked_example():
    x2, df, p = pvalues.chi2_two_sample(C, N)
    assert (x2[0], df[0], p[0]) == (near(14.678571), 3, near(0.002113))
    g, _, p = pvalues.g_test(C, N)
    assert (g[0], p[0]) == (near(14.473046), near(0.002327))
    for test, expected in (
        (pvalues.cvm(C[0], N[0]), (1.277778, 0.138407, 0.075487, 1.833525, 0.000166)),
        (pvalues.anderson(C[0], N[0]), (6.116667, 0.666667, 0.340556, 1.957586, 0.000118)),
        (pvalues.energy(C[0], N[0], X[0]), (14.0, 1.646667, 0.917922, 1.793907, 0.000365)),
    ):
        assert (test.statistic, test.null_mean, test.a, test.nu, test.p) == tuple(map(near, expected))
    assert pvalues.energy_distance(C[0], N[0], X[0]) == near(0.648074)


def test_the_design_effect_divides_a_statistic():
    x2, _, _ = pvalues.chi2_two_sample(C, N, np.array([2.0]))
    assert x2[0] == near(14.678571 / 2)
    assert pvalues.cvm(C[0], N[0], 2.0).p > pvalues.cvm(C[0], N[0]).p


def test_thin_bins_are_merged_into_one():
    reference, window = np.array([[100, 100, 2, 1, 3]]), np.array([[90, 110, 1, 4, 2]])
    merged, df, _ = pvalues.chi2_two_sample(reference, window)
    plain, plain_df, _ = pvalues.chi2_two_sample(np.array([[100, 100, 6]]), np.array([[90, 110, 7]]))
    assert (merged[0], df[0]) == (near(plain[0]), plain_df[0])


@pytest.mark.parametrize(("c", "n"), [([0, 0, 0], [1, 2, 3]), ([1, 2, 3], [0, 0, 0]), ([0, 0, 0], [0, 0, 0])])
def test_an_empty_side_is_unknown_and_never_zero(c, n):
    c, n = np.array([c]), np.array([n])
    for distance in (distances.psi, distances.kl, distances.js, distances.hellinger, distances.tv, distances.linf, distances.ks):
        assert np.isnan(distance(c, n)).all(), distance.__name__
    assert np.isnan(distances.wasserstein(c, n, np.array([[0.0, 1, 2]]), np.ones(1))).all()
    assert np.isnan(pvalues.chi2_two_sample(c, n)[2]).all()
    assert np.isnan(pvalues.cvm(c[0], n[0]).p)


@pytest.fixture(scope="module")
def reference():
    rng = np.random.default_rng(1)
    data = {"x": rng.standard_normal(5000), "c": rng.choice(["a", "b", "c"], 5000).tolist(), "one": np.ones(5000)}
    columns = (Column("x", "numeric"), Column("c", "category"), Column("one", "numeric"))
    return Reference.fit(data, columns, model="m", version="1")


def test_a_shift_of_half_a_standard_deviation_reads_about_half_and_its_square(reference):
    rng = np.random.default_rng(2)
    shifted = {"x": rng.standard_normal(4000) + 0.5, "c": rng.choice(["a", "b", "c"], 4000).tolist(),
               "one": np.ones(4000)}
    profile = reference.profile(shifted)
    shown = comparison.display(reference, profile.counts, profile.events)
    assert list(shown) == list(comparison.DISPLAYED)
    assert shown["wasserstein"][0] == pytest.approx(0.5, abs=0.05)
    assert shown["psi"][0] == pytest.approx(0.25, abs=0.06)
    assert shown["ks"][0] == pytest.approx(0.197, abs=0.03)
    assert shown["chi2"][0] > 50
    assert shown["chi2"][1] < 4
    assert np.isnan([shown["ks"][1], shown["wasserstein"][1], shown["wasserstein"][2]]).all()
    assert shown["psi"][2] == pytest.approx(0, abs=1e-4)


def test_nothing_is_shown_of_an_empty_window(reference):
    shown = comparison.display(reference, np.zeros(reference.shape, np.int64), 0)
    assert all(np.isnan(values).all() for values in shown.values())
    assert all(np.isnan(mean).all() and np.isnan(high).all() for mean, high in comparison.null_bands(reference, 0).values())


def test_nineteen_of_twenty_windows_without_drift_stay_inside_the_band(reference):
    """400 windows; a share of 0.95 has s.e. 0.011, and the reference's own draw moves it: 0.90 to 0.99 is allowed."""
    rng = np.random.default_rng(3)
    bands = comparison.null_bands(reference, 1000)
    inside = dict.fromkeys(("psi", "js", "tv", "wasserstein"), 0)
    for _ in range(400):
        window = {"x": rng.standard_normal(1000), "c": rng.choice(["a", "b", "c"], 1000).tolist(), "one": np.ones(1000)}
        profile = reference.profile(window)
        shown = comparison.display(reference, profile.counts, 1000)
        for name in inside:
            inside[name] += bool(shown[name][0] <= bands[name][1][0])
    assert all(0.90 * 400 <= count <= 0.995 * 400 for count in inside.values()), inside
