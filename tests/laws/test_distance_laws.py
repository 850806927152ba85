"""One suite over every distance and test: zero for equals, one direction, finite, columns independent."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from detectors import distances
from detectors.tests import chi2_two_sample, g_test

BINS = 7
POSITIONS = np.array([-2.0, -1, 0, 0.5, 1, 4, 9])


def wasserstein(c, n):
    return distances.wasserstein(c, n, np.broadcast_to(POSITIONS, c.shape), np.full(len(c), 2.0))


BOUNDED = [distances.js, distances.hellinger, distances.tv, distances.linf, distances.ks]
EVERY = [*BOUNDED, distances.psi, distances.kl, wasserstein, lambda c, n: chi2_two_sample(c, n)[0],
         lambda c, n: g_test(c, n)[0]]
SYMMETRIC = [*BOUNDED, distances.psi, wasserstein]
#: These smooth shares by half an event, so that equal shares of unequal sizes differ by that much.
SMOOTHED = (distances.psi, distances.kl)

counts = arrays(np.int64, st.tuples(st.integers(1, 4), st.just(BINS)), elements=st.integers(0, 10_000))
pairs = counts.flatmap(lambda c: st.tuples(st.just(c), arrays(np.int64, c.shape, elements=st.integers(0, 10_000))))


def filled(*sides):
    assume(all((side.sum(axis=1) > 0).all() for side in sides))


@pytest.mark.parametrize("distance", EVERY)
@given(counts)
@settings(deadline=None, max_examples=25)
def test_equal_counts_have_no_distance(distance, c):
    filled(c)
    np.testing.assert_allclose(distance(c, c), 0, atol=1e-7)


@pytest.mark.parametrize("distance", EVERY)
@given(counts, st.integers(2, 50))
@settings(deadline=None, max_examples=25)
def test_equal_shares_have_no_distance(distance, c, factor):
    filled(c)
    if distance in SMOOTHED:
        c = c + 10                                               # half an event is little in bins that hold some
        noise = (BINS - 1) * (1 / c.sum(axis=1) + 1 / (factor * c.sum(axis=1)))
        assert (distance(c, factor * c) <= noise).all()          # below what is expected without drift
    else:
        np.testing.assert_allclose(distance(c, factor * c), 0, atol=2e-5)


@pytest.mark.parametrize("distance", EVERY)
@given(pairs)
@settings(deadline=None, max_examples=25)
def test_any_pair_of_filled_sides_is_finite_and_not_negative(distance, pair):
    c, n = pair
    filled(c, n)
    found = distance(c, n)
    assert found.shape == (len(c),)
    assert np.isfinite(found).all()
    assert (found >= -1e-12).all()
    if distance in BOUNDED:
        assert (found <= 1).all()


@pytest.mark.parametrize("distance", SYMMETRIC)
@given(pairs)
@settings(deadline=None, max_examples=25)
def test_symmetric_distances_are(distance, pair):
    filled(*pair)
    np.testing.assert_allclose(distance(*pair), distance(*pair[::-1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("distance", EVERY)
@given(pairs)
@settings(deadline=None, max_examples=25)
def test_columns_are_independent_and_inputs_untouched(distance, pair):
    c, n = pair
    before = c.copy(), n.copy()
    whole = distance(c, n)
    one_by_one = [distance(c[i : i + 1], n[i : i + 1])[0] for i in range(len(c))]
    np.testing.assert_allclose(whole, one_by_one, rtol=1e-12)
    assert (c == before[0]).all()
    assert (n == before[1]).all()


@pytest.mark.parametrize("distance", EVERY)
def test_more_drift_is_a_larger_distance(distance):
    """Events move step by step from the first bin to the last one."""
    c = np.array([[1000, 800, 600, 400, 300, 200, 100]])
    found = [distance(c, c + step * np.array([[-1, 0, 0, 0, 0, 0, 1]]))[0] for step in range(0, 1000, 100)]
    assert (np.diff(found) > 0).all(), found


@pytest.mark.parametrize("distance", EVERY)
@pytest.mark.parametrize("bin_", range(BINS))
def test_one_sided_counts_are_finite(distance, bin_):
    c, n = np.zeros((1, BINS), int), np.zeros((1, BINS), int)
    c[0, 0], n[0, bin_] = 50, 3
    assert np.isfinite(distance(c, n)).all()


@given(pairs, st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_padded_bins_change_nothing(pair, padding):
    c, n = pair
    filled(c, n)
    wide = [np.pad(side, ((0, 0), (0, padding))) for side in pair]
    live = np.arange(BINS + padding) < np.full((len(c), 1), BINS)
    np.testing.assert_allclose(distances.psi(*wide, live=live), distances.psi(c, n), rtol=1e-12)
    np.testing.assert_allclose(distances.kl(*wide, live=live), distances.kl(c, n), rtol=1e-9, atol=1e-12)
    for distance in (*BOUNDED, lambda c, n: chi2_two_sample(c, n)[0]):
        np.testing.assert_allclose(distance(*wide), distance(c, n), rtol=1e-9, atol=1e-9)
    places = np.pad(np.broadcast_to(POSITIONS, c.shape), ((0, 0), (0, padding)), constant_values=np.nan)
    found = distances.wasserstein(*wide, places, np.full(len(c), 2.0))
    np.testing.assert_allclose(found, wasserstein(c, n), rtol=1e-9, atol=1e-9)
