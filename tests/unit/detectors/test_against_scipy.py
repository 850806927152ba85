"""Agreement with scipy on the same raw values, within the binning error that the docstrings state."""

import warnings

import numpy as np
import pytest
from scipy import stats

from detectors import methods
from detectors import tests as pvalues
from detectors.distances import ks, shares, wasserstein_plain
from detectors.reference import Column, Reference

M, N = 5000, 1200
#: Name -> draws of n values, moved by about half a standard deviation where asked.
DRAWS = {
    "normal": lambda rng, n, moved: rng.standard_normal(n) + 0.25 * moved,
    "lognormal": lambda rng, n, moved: np.exp(rng.standard_normal(n) + 0.25 * moved),
    "heavy ties": lambda rng, n, moved: rng.poisson(3 + 0.4 * moved, n).astype(float),
    "zero-inflated": lambda rng, n, moved: np.maximum(0, rng.standard_normal(n) - 0.25 + 0.25 * moved),
    "two values": lambda rng, n, moved: (rng.random(n) < 0.3 + 0.05 * moved).astype(float),
    "large and fine": lambda rng, n, moved: 1e6 + 1e-3 * (rng.standard_normal(n) + 0.25 * moved),
}
CASES = [(name, moved) for name in DRAWS for moved in (0, 1)]


class Case:
    """Raw values of both sides, and their counts with places under one reference."""

    def __init__(self, name, moved):
        rng = np.random.default_rng([sum(map(ord, name)), moved])
        self.x, self.y = DRAWS[name](rng, M, 0), DRAWS[name](rng, N, moved)
        self.reference = Reference.fit({"x": self.x}, [Column("x", "numeric")], model="m", version="1")
        self.window = self.reference.profile({"x": self.y}).counts
        ref = self.reference.arrays
        self.c, self.n, self.places = ref.counts[:1, 1:], self.window[:1, 1:], ref.positions[:1, 1:]
        self.g = self.reference.deff[:1]
        #: What a window looks like to bins: values out of range at the range's end.
        self.clipped = np.clip(self.y, self.x.min(), self.x.max())

    def evidence(self, name):
        return methods.evaluate([name], self.reference, self.window, N)[name][0]

    @property
    def width(self):
        """Mean width of the bin that an event of the reference or of the window, whichever is wider, falls into."""
        edges = self.reference.records[0].binning.edges
        widths = np.concatenate([[0], np.diff(edges), [0]])
        widths[1:-1][np.nextafter(edges[:-1], np.inf) == edges[1:]] = 0
        if len(np.unique(self.x)) < 64:
            return 1e-9                                          # every value is a bin: exact
        return max((shares(self.c) * widths).sum(), (shares(self.n) * widths).sum())

    @property
    def share(self):
        """Largest share of a bin with several values in it."""
        if len(np.unique(self.x)) < 64:
            return 1e-9
        atoms = np.isin(self.places, np.unique(self.x)[np.unique(self.x, return_counts=True)[1] > M / 64])
        return max(shares(self.c)[~atoms].max(), shares(self.n)[~atoms].max())


@pytest.fixture(params=CASES, ids=[f"{name}, {'moved' if moved else 'quiet'}" for name, moved in CASES])
def case(request):
    return Case(*request.param)


def alike(ours, theirs, relative, floor=0.05):
    """-log10 p of two computations agree within a relative error, or both say nothing."""
    assert ours == pytest.approx(theirs, rel=relative, abs=floor)


def test_ks_is_below_the_raw_statistic_by_at_most_the_largest_share_of_a_bin(case):
    exact = stats.ks_2samp(case.x, case.y).statistic
    assert exact - case.share <= ks(case.c, case.n)[0] <= exact + 1e-12


def test_wasserstein_is_the_raw_distance_within_the_mean_width_of_a_bin(case):
    exact = stats.wasserstein_distance(case.x, case.clipped)
    assert wasserstein_plain(case.c, case.n, case.places)[0] == pytest.approx(exact, abs=case.width)


def test_energy_distance_is_the_raw_one_within_a_few_percent(case):
    exact = stats.energy_distance(case.x, case.clipped)
    found = pvalues.energy_distance(case.c, case.n, case.places)[0]
    assert found == pytest.approx(exact, rel=0.02, abs=0.03 * np.sqrt(case.width))


def test_welch_is_scipys_on_values_rounded_to_their_bins_means_and_near_it_on_raw_values(case):
    x, y = (np.repeat(case.places[0], side[0]) for side in (case.c, case.n))
    rounded = stats.ttest_ind(y, x, equal_var=False)
    t, df, p = (found[0] for found in pvalues.welch(case.c, case.n, case.places))
    assert (t, df) == (pytest.approx(rounded.statistic, rel=1e-5, abs=1e-7), pytest.approx(rounded.df, rel=1e-5))
    assert p == pytest.approx(rounded.pvalue, rel=1e-4)
    raw = stats.ttest_ind(case.clipped, case.x, equal_var=False)
    error = np.hypot(case.x.std() / np.sqrt(M), case.clipped.std() / np.sqrt(N))
    assert t == pytest.approx(raw.statistic, rel=0.15, abs=case.width / error + 1e-3)


def test_mann_whitney_is_scipys_on_bins_and_near_it_on_raw_values(case):
    z, p = (found[0] for found in pvalues.mann_whitney(case.c, case.n))
    x, y = (np.repeat(np.arange(side.shape[1]), side[0]) for side in (case.c, case.n))
    binned = stats.mannwhitneyu(y, x, use_continuity=False, method="asymptotic")
    assert p == pytest.approx(binned.pvalue, rel=1e-9)
    raw = stats.mannwhitneyu(case.y, case.x, use_continuity=False, method="asymptotic")
    assert (z > 0) == (raw.statistic > M * N / 2)
    alike(-np.log10(p), -np.log10(raw.pvalue), 0.03)


def test_cramer_von_mises_is_near_the_raw_test(case):
    raw = stats.cramervonmises_2samp(case.x, case.y, method="asymptotic")
    if len(np.unique(case.x)) == M:                              # scipy's statistic takes no notice of ties
        assert pvalues.cvm(case.c, case.n).statistic[0] == pytest.approx(raw.statistic, rel=0.03, abs=0.02)
        if raw.pvalue > 1e-6:                                    # beyond, a matched chi-square law has another tail
            alike(-np.log10(pvalues.cvm(case.c, case.n).p[0]), -np.log10(raw.pvalue), 0.15, floor=0.08)


def test_anderson_darling_is_near_the_raw_test(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                          # scipy's p is floored, capped, and its words change
        raw = stats.anderson_ksamp([case.x, case.y], midrank=True).pvalue
    found = pvalues.anderson(case.c, case.n).p[0]
    if 0.002 < raw < 0.24:
        alike(-np.log10(found), -np.log10(raw), 0.15)
    else:
        assert found > 0.2 if raw >= 0.24 else found < 0.004


@pytest.mark.parametrize("seed", range(6))
def test_chi_square_and_g_are_scipys_where_no_bin_is_thin(seed):
    rng = np.random.default_rng(seed)
    c, n = rng.multinomial(3000, [0.1, 0.2, 0.3, 0.4]), rng.multinomial(400, [0.12, 0.2, 0.28, 0.4])
    for test, which in ((pvalues.chi2_two_sample, "pearson"), (pvalues.g_test, "log-likelihood")):
        theirs = stats.chi2_contingency([c, n], correction=False, lambda_=which)
        statistic, df, p = (found[0] for found in test(c[None], n[None]))
        assert (statistic, df, p) == (pytest.approx(theirs.statistic), theirs.dof, pytest.approx(theirs.pvalue))


@pytest.mark.parametrize("table", [
    [[8, 2], [1, 5]], [[10, 0], [0, 10]], [[3, 3], [3, 3]], [[0, 7], [0, 9]], [[500, 300], [90, 60]], [[1, 600], [3, 300]],
    [[450, 5], [400, 100]]])
def test_fishers_exact_test_is_scipys(table):
    c, n = (np.array([side]) for side in table)
    assert pvalues.fisher(c, n)[0] == pytest.approx(stats.fisher_exact(table).pvalue, rel=1e-9)


def test_the_z_test_is_the_chi_square_test_of_a_two_by_two_table():
    c, n = np.array([[600, 400]]), np.array([[130, 70]])
    z, p = pvalues.z_test(c, n)
    theirs = stats.chi2_contingency([c[0], n[0]], correction=False)
    assert (z[0] ** 2, p[0]) == (pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue))


def test_by_name_on_a_reference_the_tests_of_two_values_are_scipys():
    """Whatever value the column has first; missing values are left out."""
    rng = np.random.default_rng(5)
    for kind, values in (("numeric", (0.0, 1.0, np.nan)), ("category", ("no", "yes", None))):
        for m, name in ((600, "fisher"), (3000, "z")):
            x, y = rng.choice(3, m, p=[0.5, 0.4, 0.1]), rng.choice(3, 300, p=[0.35, 0.55, 0.1])
            before, after = ([values[code] for code in side] for side in (x, y))
            reference = Reference.fit({"v": before}, [Column("v", kind)], model="m", version="1")
            window = reference.profile({"v": np.array(after) if kind == "numeric" else after})
            table = [[(side == code).sum() for code in (0, 1)] for side in (x, y)]
            theirs = (stats.fisher_exact(table) if name == "fisher" else stats.chi2_contingency(table, correction=False)).pvalue
            found = methods.evaluate([name], reference, window.counts, 300)[name][0]
            assert found == pytest.approx(-np.log10(theirs), rel=1e-6)
