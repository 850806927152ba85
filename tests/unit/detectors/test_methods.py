"""The catalogue of methods, and methods by name on a real reference."""

import numpy as np
import pytest

from detectors import comparison, methods
from detectors import tests as pvalues
from detectors.distances import EVIDENCE, SQUARED
from detectors.reference import Column, Reference

NAMES = [one.name for one in methods.COUNTED]
COLUMNS = (Column("x", "numeric"), Column("flag", "numeric"), Column("c", "category"), Column("b", "boolean"),
           Column("one", "numeric"), Column("gone", "numeric"))


def rows(rng, n, *, shift=0.0):
    return {"x": rng.standard_normal(n) + shift, "flag": (rng.random(n) < 0.3 + shift / 4).astype(float),
            "c": rng.choice(list("abcde"), n).tolist(), "b": np.where(rng.random(n) < 0.5, "true", "false").tolist(),
            "one": np.full(n, 0.1), "gone": np.full(n, np.nan)}


@pytest.fixture(scope="module")
def reference():
    return Reference.fit(rows(np.random.default_rng(1), 4000), COLUMNS, model="m", version="1")


@pytest.fixture(scope="module")
def small():
    return Reference.fit(rows(np.random.default_rng(1), 500), COLUMNS, model="m", version="1")


def read(reference, name, n=1000, shift=0.0, seed=2):
    profile = reference.profile(rows(np.random.default_rng(seed), n, shift=shift))
    return methods.evaluate([name], reference, profile.counts, profile.events)[name]


def test_the_names_are_those_of_the_specification():
    assert NAMES == ["psi", "kl", "js", "hellinger", "tv", "linf", "ks", "wasserstein", "wasserstein_plain", "energy", "cvm",
                     "anderson", "chi2", "g", "fisher", "z", "t", "mannwhitney"]


@pytest.mark.parametrize(("wrong", "advice"), [
    ("PSI", "did you mean 'psi'?"), ("wasserstien", "did you mean 'wasserstein'?"),
    ("evidently:kldiv", "did you mean 'evidently:kl_div'?"), ("river:adwin", "did you mean 'river:ADWIN'?"),
    ("qqqqqqqq", "take one of psi, kl,"),
])
def test_an_unknown_name_is_refused_with_the_nearest_known_one(wrong, advice):
    with pytest.raises(ValueError, match="detector: expected a known name, got") as error:
        methods.method(wrong)
    assert advice in str(error.value)
    assert "\n" not in str(error.value)


def test_order_does_not_fit_a_category_and_shares_fit_every_kind():
    assert [name for name in NAMES if not methods.fits(methods.method(name), "category")] == [
        "ks", "wasserstein", "wasserstein_plain", "energy", "cvm", "anderson", "t", "mannwhitney"]
    assert all(methods.fits(methods.method(name), "numeric") for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_number_is_missing_exactly_where_the_method_is_not_defined(reference, small, name):
    """Rows in order: a normal, a 0/1 number, a 5-level category, a boolean, a constant, an all-missing column."""
    source = small if name == "fisher" else reference
    found = read(source, name, 400 if name == "fisher" else 1000)[:6]
    expected = {"ks": [1, 1, 0, 0, 1, 0], "wasserstein": [1, 1, 0, 0, 0, 0], "fisher": [0, 1, 0, 1, 1, 0],
                "psi": [1, 1, 1, 1, 1, 1]}
    expected |= dict.fromkeys(("cvm", "anderson", "mannwhitney"), expected["ks"])
    expected |= dict.fromkeys(("wasserstein_plain", "energy", "t"), expected["wasserstein"])
    expected |= {"z": expected["fisher"]}
    assert np.isfinite(found).tolist() == list(map(bool, expected.get(name, expected["psi"])))
    assert (np.isfinite(found) <= methods.applies(name, source)[:6]).all()


@pytest.mark.parametrize("name", NAMES)
def test_bands_exist_where_values_do_and_the_95_percent_point_is_above_the_mean(reference, small, name):
    source, n = (small, 400) if name == "fisher" else (reference, 1000)
    mean, high = methods.bands([name], source, n)[name]
    values = read(source, name, n)
    assert np.isfinite(values).tolist() == np.isfinite(mean).tolist() == np.isfinite(high).tolist()
    known = np.isfinite(values) & (np.arange(len(values)) < 4)                # what holds one value cannot read two numbers
    assert (high[known] > (np.sqrt(mean) if name in SQUARED else mean)[known]).all()
    corrected = methods.corrected(name, values, mean)
    assert (corrected[known] <= values[known]).all()
    assert name in EVIDENCE or (corrected[known] < values[known]).all()


def test_the_exact_test_of_two_shares_ends_where_the_normal_one_begins(small):
    for n in (499, 500):
        fisher, z = read(small, "fisher", n)[1], read(small, "z", n)[1]
        assert np.isfinite(fisher) == (n == 499)
        assert np.isfinite(z) == (n == 500)
        bands = methods.bands(["fisher", "z"], small, n)
        assert (np.isfinite(bands["fisher"][1][1]), np.isfinite(bands["z"][1][1])) == (n == 499, n == 500)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_window_has_no_number_and_no_band(reference, name):
    empty = methods.evaluate([name], reference, np.zeros(reference.shape, np.int64), 0)[name]
    assert np.isnan(empty).all()
    assert np.isnan(methods.bands([name], reference, 0)[name]).all()


def test_all_names_at_once_are_what_each_is_alone(reference):
    profile = reference.profile(rows(np.random.default_rng(3), 700, shift=0.3))
    together = methods.evaluate(NAMES, reference, profile.counts, profile.events)
    for name in NAMES:
        alone = methods.evaluate([name], reference, profile.counts, profile.events)[name]
        np.testing.assert_array_equal(together[name], alone)
    shown = comparison.display(reference, profile.counts, profile.events)
    assert list(shown) == list(comparison.DISPLAYED)
    np.testing.assert_array_equal(shown["psi"], together["psi"])


def test_distances_have_their_units(reference):
    """The window's mean is half a reference s.d. up."""
    plain, normed = read(reference, "wasserstein_plain", 4000, 0.5)[0], read(reference, "wasserstein", 4000, 0.5)[0]
    sd = reference.arrays.sd[0]
    assert plain == pytest.approx(0.5, abs=0.06)
    assert plain == pytest.approx(normed * sd)
    energy = read(reference, "energy", 4000, 0.5)[0]
    profile = reference.profile(rows(np.random.default_rng(2), 4000, shift=0.5))
    ref = reference.arrays
    own = pvalues.energy_distance(ref.counts[0, 1:], profile.counts[0, 1:], ref.positions[0, 1:])
    assert energy == pytest.approx(own / np.sqrt(sd))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fisher"])
def test_a_shift_is_beyond_the_band_and_none_is_within_four_times_of_it(reference, name):
    row = 1 if name == "z" else 0                                # the 0/1 column, whose share rises by 15 points
    high = methods.bands([name], reference, 1000)[name][1][row]
    assert read(reference, name, shift=0.6)[row] > high
    assert read(reference, name)[row] < 4 * high


def test_numeric_windows_of_200_events_have_a_chi_square_test_with_power():
    """64 bins expect 3 events each: put into one bin, as thin ones, they would say p = 1 whatever happened."""
    reference = Reference.fit({"x": np.random.default_rng(1).standard_normal(10_000)}, [Column("x", "numeric")],
                              model="m", version="1")
    window = reference.profile({"x": np.random.default_rng(2).standard_normal(200) + 0.6})
    found = methods.evaluate(["chi2", "g"], reference, window.counts, 200)
    assert found["chi2"][0] > 5
    assert found["g"][0] > 5


def test_levels_that_the_reference_missed_are_no_drift_to_chi_square():
    """300 levels by 1/rank: each fresh window has 1 to 2 % of events in levels of which the reference saw nothing."""
    rng = np.random.default_rng(4)
    weights = 1 / np.arange(1, 1001)
    reference = Reference.fit({"c": rng.choice(1000, 5000, p=weights / weights.sum()).astype(str).tolist()},
                              [Column("c", "category")], model="m", version="1")
    found = []
    for _ in range(20):
        window = reference.profile({"c": rng.choice(1000, 1000, p=weights / weights.sum()).astype(str).tolist()})
        found.append(methods.evaluate(["chi2"], reference, window.counts, 1000)["chi2"][0])
    assert np.median(found) < 1.3
    assert methods.approximate("chi2", reference, 1000)[0]


def test_a_band_is_called_approximate_where_bins_expect_too_little(reference):
    assert methods.approximate("psi", reference, 100)[0]
    assert not methods.approximate("psi", reference, 2000)[0]
    assert not methods.approximate("chi2", reference, 100)[0]
    assert not methods.approximate("z", reference, 1000)[1]
    assert methods.approximate("z", reference, 10)[1]


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_every_method_says_what_it_is(name):
    one = methods.METHODS[name]
    assert one.name == name
    assert one.source in ("counts", "sample", "series")
    assert one.kinds
    assert one.kinds <= {"numeric", "category", "boolean", "embedding", "text"}
    assert one.unit
    assert one.help[0].isupper() or one.help.startswith(name)
    assert one.help.endswith(".")
    assert "|" not in one.help + one.unit
    assert one.threshold is None or (np.isfinite(one.threshold) and one.threshold > 0)
    assert (one.source == "counts") == (one in methods.COUNTED)


def test_columns_at_the_ends_of_float64_have_finite_numbers_and_bands():
    rng = np.random.default_rng(7)
    n = 1000
    data = {"huge": rng.standard_normal(n) * 1e307, "both ends": rng.choice([-1.7e308, 1.7e308], n),
            "tiny": rng.standard_normal(n) * 1e-310, "fine": 1e15 + rng.standard_normal(n)}
    for events in (2, 30, n):
        reference = Reference.fit({name: values[:events] for name, values in data.items()},
                                  [Column(name, "numeric") for name in data], model="m", version="1")
        window = reference.profile({name: values[-100:] for name, values in data.items()})
        found, bands = methods.evaluate(NAMES, reference, window.counts, 100), methods.bands(NAMES, reference, 100)
        for name in NAMES:
            assert not np.isinf(found[name]).any(), name
            assert not np.isinf(bands[name]).any(), name
