"""Directions and design effects: the worked examples of the specification, and independence left alone."""

import numpy as np
import pytest

from detectors.dependence import _design_effect, design_effect, long_run_variance
from detectors.directions import directions
from detectors.rows import Column, fit_row

C0 = np.array([0, 1, 250, 250, 250, 250, 1], float)


def test_directions_are_the_clipped_orthonormal_powers_of_the_normal_scores():
    weights = directions(C0)
    expected = [
        [0, -3.384523, -1.348466, -0.373925, 0.373925, 1.348466, 3.384523],
        [0, 4, 0.852467, -0.896030, -0.896030, 0.852467, 4],
        [0, -4, 0.091597, 0.438432, -0.438432, -0.091597, 4],
        [0, 4, -0.237180, 0.165601, 0.165601, -0.237180, 4],
    ]
    np.testing.assert_allclose(weights.T, expected, atol=5e-7)
    p = C0 / C0.sum()
    np.testing.assert_allclose(p @ weights, [0, -0.013754, 0, -0.027734], atol=5e-7)
    np.testing.assert_allclose(p @ weights**3, [0, 0.077891, 0, 0.123353], atol=5e-7)


BLOCKS = np.array([.3, .2, .25, .1, -.1, -.2, -.3, -.2, -.1, .05, .2, .3, .2, .1, -.05, -.2, -.25, -.2, -.1, .1])


def test_the_long_run_variance_adds_pairs_of_autocovariances_until_they_die_out():
    long_run, stop = long_run_variance(BLOCKS[:, None])
    assert stop.tolist() == [1]
    assert 50 * long_run[0] == pytest.approx(5.753375, abs=5e-7)
    centred = BLOCKS - BLOCKS.mean()
    a = [centred[: 20 - lag] @ centred[lag:] / 20 for lag in range(3)]
    assert long_run[0] == pytest.approx(a[0] + 2 * (a[1] + a[2]))


def test_the_first_pair_must_be_twice_as_far_from_noise_as_later_ones():
    """Of 20 blocks, the first pair of this series lies between one and two times a_0 / sqrt(20): it is noise."""
    wave = next(s for s in (np.cos(np.arange(20) * w) for w in np.linspace(0.5, 1.5, 400)) if 1.2 < _pair(s) < 1.8)
    assert long_run_variance(wave[:, None])[1].tolist() == [0]


def _pair(series):
    """The first pair of autocovariances in units of a_0 / sqrt(blocks)."""
    centred = series - series.mean()
    a = [centred[: len(series) - lag] @ centred[lag:] for lag in range(3)]
    return (a[1] + a[2]) / a[0] * np.sqrt(len(series))


def test_a_dependent_series_is_taken_one_standard_error_up_with_its_degrees_of_freedom():
    v, stop = np.array([5.753375, 1.0, 1.0, 1.0, 1.0, 1.0]), np.array([1, 0, 0, 0, 0, 0])
    effect = _design_effect(v, stop, 20, np.array([1000.0, 1000.0]))
    assert effect is not None
    assert effect.g_directions.tolist() == pytest.approx([9.392129, 1.948683, 1.948683, 1.948683], abs=1e-6)
    assert effect.nu_directions.tolist() == [7.5, np.inf, np.inf, np.inf]


def test_a_row_below_the_trigger_of_five_is_independent():
    v = np.array([2.58, 2.58, 9.0, 9.0, 9.0])
    assert _design_effect(v, np.zeros(5, int), 20, np.array([1000.0])) is None
    assert _design_effect(v + np.array([0.01, 0, 0, 0, 0]), np.zeros(5, int), 20, np.array([1000.0])) is not None


def test_a_bin_too_rare_to_measure_borrows_the_worst_of_the_row():
    v = np.array([6.0, 1, 1, 1, 5.0, 3.0, 80.0])
    stop = np.array([1, 0, 0, 0, 1, 0, 7])
    effect = _design_effect(v, stop, 100, np.array([500.0, 500.0, 99.0]))
    assert effect is not None
    assert effect.g_bins[2] == effect.g_bins[0] == 5 * (1 + np.sqrt(2 * 4 / 100))
    assert effect.nu_bins.tolist() == [37.5, 75.0, 37.5]


@pytest.mark.parametrize("ar", [0.0, 0.5, 0.9])
def test_the_design_effect_follows_the_autocorrelation(ar):
    """AR(1): the variance of a mean is inflated by (1 + a) / (1 - a); one standard error up leaves room above."""
    rng = np.random.default_rng(11)
    z = np.empty(20_000)
    z[0] = 0
    for i in range(1, len(z)):
        z[i] = ar * z[i - 1] + np.sqrt(1 - ar**2) * rng.standard_normal()
    row = fit_row(Column("x", "numeric"), z, ordered=True)
    truth = (1 + ar) / (1 - ar)
    assert (row.deff == 1.0) if ar == 0 else (0.8 * truth < row.deff < 1.8 * truth)
    shuffled = fit_row(Column("x", "numeric"), rng.permutation(z), ordered=True)
    assert shuffled.deff == 1.0


def test_fewer_than_twenty_blocks_cannot_show_dependence():
    codes = np.repeat(np.arange(2, 6), 249)[:999].astype(np.int64)
    effect = design_effect(codes, directions(C0), C0 / C0.sum(), C0)
    assert effect.g_directions.tolist() == [1.0] * 4


def test_dependent_rows_allow_one_effective_unseen_event_and_keep_their_centre():
    z = np.repeat(np.random.default_rng(2).standard_normal(400), 50)
    row = fit_row(Column("x", "numeric"), z, ordered=True)
    assert row.c0[[1, -1]].tolist() == pytest.approx((row.effect.g_bins[[1, -1]]).tolist())
    before = row.c0.copy()
    before[[1, -1]] = 1
    np.testing.assert_allclose(row.centre, before / before.sum() @ row.weights, atol=1e-12)
