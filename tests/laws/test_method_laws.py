"""Laws of every method that the catalogue computes from counts: a new name has them or cannot be added."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import distances, methods
from detectors import tests as pvalues
from detectors.reference import Column, Reference

NAMES = [one.name for one in methods.COUNTED]
COLUMNS = (Column("x", "numeric"), Column("tied", "numeric"), Column("heavy", "numeric"), Column("flag", "numeric"),
           Column("c", "category"), Column("b", "category"))
#: Over both sides together fewer than this for fisher, as many or more for z.
SMALL, LARGE = 400, 3000


def rows(rng, n, shift=0.0):
    """Draws whose location moves with `shift`, every column in its own way."""
    z = rng.standard_normal((6, n)) + shift
    return {"x": z[0], "tied": np.floor(2 * z[1]), "heavy": np.exp(z[2]), "flag": (z[3] > 0.4).astype(float),
            "c": np.array(list("abcdefgh"))[np.clip(np.floor(1.5 * z[4] + 4), 0, 7).astype(int)].tolist(),
            "b": np.where(z[5] > 0.2, "yes", "no").tolist()}


def fitted(n, columns=COLUMNS, order=slice(None)):
    return Reference.fit(rows(np.random.default_rng(11), n), columns[order], model="m", version="1")


REFERENCES = {"fisher": fitted(SMALL)}
REFERENCE = fitted(LARGE)


def reference_of(name):
    return REFERENCES.get(name, REFERENCE)


def values(name, reference, counts):
    return methods.evaluate([name], reference, counts, int(counts[0].sum()))[name]


@st.composite
def windows(draw, name):
    """Any counts over the bins that exist: from one event to many, from one filled bin to all."""
    reference = reference_of(name)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    events = draw(st.sampled_from([1, 2, 7, 50, 500] if name == "fisher" else [1, 2, 7, 50, 500, 20_000]))
    evenness = draw(st.sampled_from([0.01, 0.1, 1.0, 20.0]))
    counts = np.zeros(reference.shape, np.int64)
    for j, live in enumerate(reference.arrays.fine_live.sum(axis=1)):
        counts[j, :live] = rng.multinomial(events, rng.dirichlet(np.full(live, evenness)))
    return counts


@pytest.mark.parametrize("name", NAMES)
def test_equal_shares_say_nothing(name):
    """The reference's own counts. Chi-square knows that fresh samples also hold what the reference missed: p > 0.9."""
    reference = reference_of(name)
    found = values(name, reference, reference.arrays.counts)
    if name == "z":
        assert (np.nan_to_num(found) < 1e-9).all()
    known = found[methods.applies(name, reference)]
    assert len(known)
    np.testing.assert_allclose(known, 0, atol=0.05 if name in ("chi2", "g") else 1e-7)


@pytest.mark.parametrize("name", NAMES)
@given(st.data())
@settings(deadline=None, max_examples=30)
def test_any_window_has_a_number_where_the_method_is_defined_and_both_sides_have_values(name, data):
    counts = data.draw(windows(name))
    reference = reference_of(name)
    found = values(name, reference, counts)
    expected = methods.applies(name, reference)
    present = counts[:, 1:].sum(axis=1)
    if name not in ("psi", "kl", "js", "hellinger", "tv", "linf", "chi2", "g"):
        expected &= present > 0
    if name in ("fisher", "z"):
        total = present + reference.arrays.counts[:, 1:].sum(axis=1)
        expected &= (total < pvalues.FISHER_EVENTS_MAX) == (name == "fisher")
    assert np.isfinite(found).tolist() == expected.tolist()
    known = found[expected]
    assert (known >= 0).all()
    unit = methods.method(name).unit
    upper = 300 if "0 to 300" in unit else 1 if "0 to 1" in unit else np.inf
    assert (known <= upper).all()


@pytest.mark.parametrize("name", NAMES)
@given(st.data())
@settings(deadline=None, max_examples=15)
def test_rows_know_nothing_of_one_another_and_inputs_stay_as_they_are(name, data):
    counts = data.draw(windows(name))
    reference, before = reference_of(name), counts.copy()
    whole = values(name, reference, counts)
    assert (counts == before).all()
    other = counts.copy()
    other[1:] = reference.arrays.counts[1:]
    alone = methods.evaluate([name], reference, other, int(counts[0].sum()))[name]
    assert alone[0] == pytest.approx(whole[0], rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", NAMES)
def test_columns_in_another_order_have_the_same_numbers(name):
    order = [3, 1, 5, 0, 4, 2]
    n = SMALL if name == "fisher" else LARGE
    other = fitted(n, tuple(COLUMNS[i] for i in order))
    window = rows(np.random.default_rng(12), 300, 0.3)
    straight = values(name, reference_of(name), reference_of(name).profile(window).counts)
    turned = values(name, other, other.profile(window).counts)
    np.testing.assert_allclose(turned[:6], straight[order], rtol=1e-9, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sign", [1, -1])
def test_more_of_the_same_shift_never_reads_smaller(name, sign):
    """The same draws, moved further and further; 3 % is left to the bins that a step happens to cross."""
    reference = reference_of(name)
    found = []
    for shift in (0.4, 0.8, 1.2, 2.0, 3.0):
        counts = reference.profile(rows(np.random.default_rng(13), 300, sign * shift)).counts
        found.append(values(name, reference, counts)[:6])
    steps = np.array(found)
    rows_ = methods.applies(name, reference)[:6]
    assert (steps[1:, rows_] >= 0.97 * steps[:-1, rows_] - 1e-12).all(), steps[:, rows_]
    assert (steps[-1, rows_] > steps[0, rows_]).all()


@pytest.mark.parametrize("name", NAMES)
def test_one_absurd_value_neither_makes_nor_hides_drift(name):
    """One of 500 events: a number moves by what one event more in the last bin is worth, with drift and without.

    That is a quarter of the 95 % point at most; for t up to all of it, where the last bin of a heavy tail is 10 s.d. out.
    """
    reference = reference_of(name)
    slack = 1.0 if name == "t" else 0.25
    for shift in (0.0, 1.0):
        window = rows(np.random.default_rng(14), 500, shift)
        before = values(name, reference, reference.profile(window).counts)[:3]
        high = methods.bands([name], reference, 500)[name][1][:3]
        for absurd in (1e300, -1e300, np.inf, -np.inf):
            for column in ("x", "tied", "heavy"):
                window[column] = np.append(window[column][:-1], absurd)
            after = values(name, reference, reference.profile(window).counts)[:3]
            np.testing.assert_allclose(after, before, rtol=0.1, atol=slack * np.nanmax(np.nan_to_num(high)), equal_nan=True)


BIN_ORDER_DOES_NOT_MATTER = [distances.psi, distances.kl, distances.js, distances.hellinger, distances.tv, distances.linf,
                             lambda c, n: pvalues.chi2_two_sample(c, n)[0], lambda c, n: pvalues.g_test(c, n)[0]]


@pytest.mark.parametrize("distance", BIN_ORDER_DOES_NOT_MATTER)
@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_bins_in_another_order_have_the_same_distance_where_order_does_not_count(distance, seed):
    rng = np.random.default_rng(seed)
    c, n = rng.multinomial(900, rng.dirichlet(np.ones(9)), 2), rng.multinomial(300, rng.dirichlet(np.ones(9)), 2)
    order = rng.permutation(9)
    np.testing.assert_allclose(distance(c[:, order], n[:, order]), distance(c, n), rtol=1e-9, atol=1e-12)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_tests_are_symmetric_in_their_two_sides(seed):
    rng = np.random.default_rng(seed)
    c, n = rng.multinomial(900, rng.dirichlet(np.ones(9)), 2), rng.multinomial(300, rng.dirichlet(np.ones(9)), 2)
    x = np.sort(rng.standard_normal((2, 9)), axis=1)
    for p in (lambda a, b: pvalues.cvm(a, b).p, lambda a, b: pvalues.anderson(a, b).p, lambda a, b: pvalues.energy(a, b, x).p,
              lambda a, b: pvalues.welch(a, b, x)[2], lambda a, b: pvalues.mann_whitney(a, b)[1],
              lambda a, b: pvalues.z_test(a[:, :2], b[:, :2])[1], lambda a, b: pvalues.fisher(a[:, :2], b[:, :2])):
        np.testing.assert_allclose(p(c, n), p(n, c), rtol=1e-7, equal_nan=True)


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_eigenvalue_sums_are_those_of_the_matrix(seed, empty):
    rng = np.random.default_rng(seed)
    both = rng.multinomial(500, rng.dirichlet(np.ones(8)))
    both[rng.integers(0, 8, empty)] = 0
    below, above = pvalues.cumulative(both)
    w = rng.random(7)
    kernel = np.sqrt(np.outer(w, w)) * (np.minimum.outer(below, below) - np.outer(below, below))
    eigenvalues = np.linalg.eigvalsh(kernel)
    total, squares = pvalues.quadratic_law(below, above, w)
    assert (total, squares) == (pytest.approx(eigenvalues.sum(), abs=1e-12), pytest.approx((eigenvalues**2).sum(), abs=1e-12))
