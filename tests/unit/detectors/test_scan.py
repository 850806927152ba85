"""The decision: the worked examples of the specification, its rules one by one, and what is said of a row."""

import numpy as np
import pytest

from detectors.reference import Column, Reference
from detectors.ring import Ring
from detectors.scan import BIN_EXCESS_MIN, BIN_Z_MIN, WINDOWS, Scan, benjamini_hochberg, nu_factor
from detectors.seen import bin_deviance, direction_z


def near(value):
    return pytest.approx(value, abs=5e-7)


def watched(columns, **values):
    """A reference of the given values, a scan over it (4,000 panes per false alarm) and an empty ring."""
    return watched_at(0.1, columns, **values)


def watched_at(tolerance, columns, **values):
    reference = Reference.fit(values, columns, model="m", version="1")
    return reference, Scan(reference, tolerance=tolerance, panes_per_false_alarm=4000.0), Ring(reference)


# ---- the formulas ---------------------------------------------------------------------------------------------------


def test_the_threshold_is_the_normal_quantile_of_the_budget_over_all_tests():
    assert nu_factor(5.884791, 1.992781e-9, np.array([20.0, np.inf])).tolist() == [near(0.596634), 1.0]
    _, scan, _ = watched((Column("x", "numeric"),), x=np.random.default_rng(1).standard_normal(1000))
    assert scan.tests == 2 * 8 * (4 + 19)
    assert scan.alpha == 1 / (4000 * scan.tests)
    from scipy.stats import norm
    assert scan.threshold == pytest.approx(norm.isf(scan.alpha), rel=1e-12)
    assert norm.isf(1 / (43_200 * 11_616)) == near(5.884791)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_share_for_location_spends_the_same_false_alarms_and_lowers_the_bar_for_means_alone(share):
    from scipy.stats import norm
    values = np.random.default_rng(1).standard_normal(1000)
    reference, plain, _ = watched((Column("x", "numeric"),), x=values)
    scan = Scan(reference, tolerance=0.1, panes_per_false_alarm=4000.0, location_share=share)
    location = 2 * 8 * 1
    spent = location * norm.sf(scan.location_threshold[0]) + (scan.tests - location) * norm.sf(scan.threshold)
    assert spent == pytest.approx(1 / 4000, rel=1e-9)
    assert scan.location_threshold[0] < plain.threshold < scan.threshold
    assert scan.smallest_visible_shift()[0] < plain.smallest_visible_shift()[0]

    ring = Ring(reference)
    ring.push(reference.profile({"x": values[:400] + 0.3}))
    few, many = plain(ring), scan(ring)
    at_mean, others = ((scores._compare(scores._fold(ring.windows(np.array([1]))[0]), np.array([1])))
                       for scores in (plain, scan))
    assert many.z[0].max() == pytest.approx(few.z[0].max() * scan.threshold / scan.location_threshold[0])
    np.testing.assert_array_equal(at_mean.nu_directions[:, 1:], others.nu_directions[:, 1:])


def test_levels_have_no_location_and_keep_the_common_threshold():
    values = np.random.default_rng(1).integers(0, 3, 1000)
    reference, _, _ = watched((Column("c", "category"), Column("x", "numeric")), c=["abc"[v] for v in values],
                              x=values + 0.5 * np.random.default_rng(2).random(1000))
    scan = Scan(reference, location_share=0.5)
    assert scan.location_threshold[0] == scan.threshold > scan.location_threshold[1]
    levels_only, _, _ = watched((Column("c", "category"),), c=["abc"[v] for v in values])
    assert Scan(levels_only, location_share=0.5).threshold == Scan(levels_only).threshold


def test_a_share_for_location_of_everything_is_refused():
    reference, _, _ = watched((Column("x", "numeric"),), x=np.random.default_rng(1).standard_normal(1000))
    with pytest.raises(ValueError, match="expected location_share of 0 to below 1, got 1"):
        Scan(reference, location_share=1)


@pytest.fixture(scope="module")
def four_bins():
    """The reference of the specification's example: 250 events in each of four bins, so 1, 250, 250, 250, 250, 1."""
    reference, scan, _ = watched((Column("x", "numeric"),), x=np.tile([1.0, 2, 3, 4], 250))
    assert reference.arrays.c0.tolist() == [[0, 1, 250, 250, 250, 250, 1]]
    return scan


def compared(scan, *counts):
    """The comparisons of one window with these counts of (1, 2, 3, 4, 5 and above)."""
    values = np.repeat([1.0, 2, 3, 4, 5], counts)
    ring = Ring(scan.reference)
    ring.push(scan.reference.profile({"x": values}))
    return scan._compare(scan._fold(ring.windows(np.array([1]))[0]), np.array([1]))


def test_directions_have_the_values_of_the_worked_example(four_bins):
    seen = compared(four_bins, 40, 60, 70, 80, 0)
    difference, variance = seen.difference[0, 0], seen.variance[0, 0]
    np.testing.assert_allclose(difference, [0.230712, -0.042997, -0.032193, 0.0], atol=5e-7)
    np.testing.assert_allclose(variance, 0.004998, atol=5e-7)
    np.testing.assert_allclose(direction_z(difference, variance, seen.skew[0, 0], 0.0),
                               [3.263405, 0.608197, 0.455367, 0.000002], atol=1e-6)
    for g, tolerance, expected in ((1, 0.1, 1.848909), (1, 0.3, 0.0), (4, 0.0, 1.631703), (4, 0.1, 0.924455)):
        assert direction_z(difference[:1], g * variance[:1], np.zeros(1), tolerance)[0] == near(expected)
    assert 1.96 * np.sqrt(variance[0]) == near(0.138565)


def test_bins_have_the_values_of_the_worked_example(four_bins):
    seen = compared(four_bins, 40, 60, 70, 80, 0)
    strength, loss = bins_of(seen)
    assert strength[0, 0, 2] == near(3.099114)
    assert strength[0, 0, 2] - 0.1 * loss[0, 0, 2] == near(1.638310)
    strength, loss = bins_of(compared(four_bins, 61, 61, 61, 61, 6))
    assert strength[0, 0, 6] == near(3.760752)
    assert strength[0, 0, 6] - 0.1 * loss[0, 0, 6] == near(2.541654)
    few, _ = bins_of(compared(four_bins, 62, 62, 62, 61, 3))
    assert few[0, 0, 6] == 0                                                   # 2.75 events more than expected: too few


def bins_of(seen):
    """What single bins say, (W, J, K), 0 where a bin does not speak: strength, and loss to a tolerance of 1."""
    dense = np.zeros((2, *seen.bins.shape))
    for values, part in zip(dense, (seen.bins.strength, seen.bins.loss), strict=True):
        values.ravel()[seen.bins.at] = part
    return dense


@pytest.mark.parametrize("seed", range(5))
def test_only_bins_whose_z_is_below_the_bound_are_passed_over(seed, four_bins):
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(int(rng.integers(50, 20_000)), rng.dirichlet([5.0] * 4))
    seen, arrays = compared(four_bins, *counts, 0), four_bins.reference.arrays
    n, N = seen.n[0], seen.events[0][:, None]
    _, deviance = bin_deviance(n, N, arrays.c0, arrays.m[:, None])
    z = np.sqrt(2 * deviance / arrays.g_bins)
    speaks = (n - N * arrays.p0 >= BIN_EXCESS_MIN) | ((n - N * arrays.p0 <= -BIN_EXCESS_MIN) & ~arrays.one_sided)
    strength, _ = bins_of(seen)
    certain = speaks & (z >= BIN_Z_MIN)
    np.testing.assert_allclose(strength[0][certain], z[certain])
    assert np.all(z[speaks & (strength[0] == 0)] < BIN_Z_MIN)


def test_the_interval_is_that_of_the_winning_comparison(four_bins):
    ring = Ring(four_bins.reference)
    ring.push(four_bins.reference.profile({"x": np.repeat([1.0, 2, 3, 4], [40, 60, 70, 80])}))
    scores = four_bins(ring)
    assert (scores.what, scores.unit) == (("mean",), ("sd",))
    assert (scores.effect[0], scores.effect_upper[0] - scores.effect[0]) == (near(0.230712), near(0.138565))
    ring.clear()
    ring.push(four_bins.reference.profile({"x": np.repeat([1.0, 2, 3, 4], [40, 110, 50, 50])}))
    scores = four_bins(ring)
    assert (scores.what, scores.unit) == (("bin [2, 3)",), ("share",))
    q, p = 110 / 250, 250 / 1002
    assert scores.effect[0] == near(q - p)
    assert scores.effect[0] - scores.effect_lower[0] == near(1.96 * np.sqrt(q * (1 - q) / 250 + p * (1 - p) / 1002))


def test_a_skewed_score_needs_more_on_its_long_side():
    skew = np.array([2 / (6 * np.sqrt(400))])
    assert direction_z(np.array([5.0]), np.ones(1), skew, 0.0)[0] == near(4.6)
    assert direction_z(np.array([-5.0]), np.ones(1), skew, 0.0)[0] == near(5.4)


@pytest.mark.parametrize(("n", "N", "c", "m", "pooled", "deviance", "z"), [
    (40, 250, 250, 1002, 0.231629, 4.802252, 3.099114),
    (6, 250, 1, 1002, 0.005591, 7.071627, 3.760752),
    (3, 250, 1, 1002, 4 / 1252, None, 2.374316),
    (0, 8000, 8, 1001, 8 / 9001, None, 5.932822),
])
def test_deviances_have_the_values_of_the_worked_example(n, N, c, m, pooled, deviance, z):
    share, half = bin_deviance(*(np.array([float(v)]) for v in (n, N, c, m)))
    assert (share[0], np.sqrt(2 * half[0])) == (near(pooled), near(z))
    assert deviance is None or half[0] == near(deviance)


def test_the_interval_of_a_bin_has_the_value_of_the_worked_example():
    q, p = 40 / 250, 250 / 1002
    assert q - p == near(-0.089501)
    assert 1.96 * np.sqrt(q * (1 - q) / 250 + p * (1 - p) / 1002) == near(0.052756)


def test_names_are_drawn_by_the_rule_of_benjamini_and_hochberg():
    from scipy.special import ndtr
    p = np.minimum(1, 352 * ndtr(-np.array([7.2, 6.1, 3.4, 2.9, 4.1])))
    np.testing.assert_allclose(p, [1.059741e-10, 1.866805e-7, 0.118599, 0.656766, 0.00727144], rtol=5e-6)
    assert benjamini_hochberg(p).tolist() == [0, 1, 4]
    assert benjamini_hochberg(np.ones(5)).tolist() == []


@pytest.mark.parametrize(("tolerance", "published"), [
    (0.0, [2.302599, 2.851229, 2.453930, 2.487665, 9.779710, 13.301876, 13.006262, 17.785337]),
    (0.1, [1.002708, 1.423700, 1.012401, 0.782589, 8.236086, 11.169065, 10.753424, 14.897513]),
])
def test_end_to_end_scores_have_the_values_of_the_worked_example(tolerance, published):
    """Ex 11. The published figures count 1e6 degrees of freedom where we count infinitely many: 7e-6 less."""
    rng = np.random.default_rng(7)

    def rows(n, shift):
        z = rng.standard_normal((n, 3))
        z[:, 1] = 0.7 * z[:, 0] + np.sqrt(0.51) * z[:, 1]
        z[:, 2] = np.floor(2 * np.abs(z[:, 2]))
        z[:, 0] += shift
        return {"a": z[:, 0], "b": z[:, 1], "c": [str(int(level)) for level in z[:, 2]]}

    columns = (Column("a", "numeric"), Column("b", "numeric"), Column("c", "category"))
    reference = Reference.fit(rows(10_000, 0), columns, model="m", version="1")
    scan, ring = Scan(reference, tolerance=tolerance, panes_per_false_alarm=4000), Ring(reference)
    assert reference.arrays.c0[2, :10].tolist() == [0, 3817, 3030, 1818, 859, 347, 100, 26, 3, 2]
    assert reference.arrays.m.tolist() == [10002] * 3 + [5002] * 3
    assert reference.deff.tolist() == [1] * 6
    assert reference.arrays.live.sum(axis=1).tolist() == [19, 19, 10, 19, 19, 19]
    assert scan.threshold == near(5.163598)
    scores = []
    for pane in range(8):
        ring.push(reference.profile(rows(250, 0 if pane < 4 else 0.5)))
        scores.append(scan(ring))
    quantile = 0.9999930843                                  # what 1e6 degrees of freedom make of a z at that example's T
    np.testing.assert_allclose([one.score * scan.threshold * quantile for one in scores], published, atol=1.5e-6)
    if tolerance == 0:
        np.testing.assert_allclose(scores[4].z.max(axis=1) * quantile,
                                   [8.019226, 2.233481, 1.624809, 9.779710, 4.363035, 2.560887], atol=1e-6)
        assert [reference.rows[row] for row in scores[4].named[:2]] == ["joint[1]", "a"]
        assert scores[4].what[3].startswith("joint change of a, b")
    assert scores[4].state[0] == "drift"


def test_the_smallest_visible_shift_has_the_values_of_the_specification():
    _, scan, _ = watched((Column("x", "numeric"),), x=np.random.default_rng(1).standard_normal(9998))
    scan.location_threshold = np.array([5.884791])
    assert scan.smallest_visible_shift()[0] == near(0.078848)
    assert scan.smallest_visible_shift(128 * 250)[0] == near(0.190332)
    assert scan.smallest_visible_shift(0)[0] == np.inf


# ---- the rules ------------------------------------------------------------------------------------------------------

X = (Column("x", "numeric"),)
NORMAL = np.random.default_rng(3).standard_normal(10_000)


def pane(seed=0, n=250, **changes):
    rng = np.random.default_rng([17, seed])
    values = rng.standard_normal(n)
    for at, value in changes.items():
        values[: int(at[1:])] = value
    return {"x": values}


def scored(scan, ring, *panes):
    for batch in panes:
        ring.push(scan.reference.profile(batch))
    return scan(ring)


def test_nothing_takes_part_before_the_first_pane_in_empty_panes_and_under_twenty_events():
    _, scan, ring = watched(X, x=NORMAL)
    for scores in (scan(ring), scored(scan, ring, {"x": np.empty(0)}), scored(scan, ring, pane(n=19, _19=50.0))):
        assert np.isnan([scores.score, scores.severe]).all()
        assert scores.state == ("too_few_events",)
        assert not scores.z.any()
        assert scores.named == ()
    assert scored(scan, ring, pane(n=1, _1=50.0)).score > 1          # twenty absurd values together


def test_a_reference_under_two_hundred_rows_decides_nothing():
    _, scan, ring = watched(X, x=NORMAL[:199])
    assert np.isnan(scored(scan, ring, pane(_250=9.0)).score)
    _, scan, ring = watched(X, x=NORMAL[:200])
    assert scored(scan, ring, pane(_250=9.0)).score > 1


def test_a_shift_below_the_tolerance_is_sure_and_not_worth_an_alarm():
    _, scan, ring = watched(X, x=NORMAL)
    shifted = [{"x": pane(i)["x"] + 0.09} for i in range(128)]
    scores = scored(scan, ring, *shifted)
    assert scores.score < 1
    assert scores.state == ("below_ignore",)
    assert 0.05 < scores.effect_lower[0] < 0.09 < scores.effect_upper[0] < 0.15
    _, strict, ring = watched_at(0.0, X, x=NORMAL)
    assert scored(strict, ring, *shifted).state == ("drift",)


def test_a_missing_value_in_a_tenth_of_the_events_is_a_matter_of_quality():
    _, scan, ring = watched(X, x=NORMAL)
    scores = scored(scan, ring, pane(_25=np.nan))
    assert scores.score > 1
    assert (scores.what, scores.unit, scores.quality.tolist()) == (("missing",), ("share",), [True])
    assert scores.effect[0] == pytest.approx(0.1)


def test_values_out_of_range_are_a_matter_of_quality_and_never_severe():
    _, scan, ring = watched(X, x=NORMAL)
    few = scored(scan, ring, pane(1, _5=1e300), pane(2, _5=1e300))
    assert few.score > 1
    assert few.what[0].startswith("above ")
    assert few.quality[0]
    many = scored(scan, ring, *(pane(i, _50=1e300) for i in range(3, 7)))
    assert many.z_quality[0].max() > 3 * many.threshold
    assert (many.z.max(), many.severe) == (0, 0)
    assert many.faults[0].kind == "above"


def test_a_rare_new_level_is_an_alarm_and_never_severe():
    """2.8 % of events in a level that was never seen: many s.d. of so rare a bin, under 3 % of all events."""
    levels = np.random.default_rng(6).choice(["a", "b", "c"], 50_000).tolist()
    reference, scan, ring = watched((Column("c", "category"),), c=levels)
    for _ in range(16):
        ring.push(reference.profile({"c": [*levels[:243], *["new"] * 7]}))
        scores = scan(ring)
        assert scores.severe < 1
    assert scores.score > 1
    assert (scores.what, scores.quality[0]) == (("unseen",), True)


def test_a_moved_mean_is_drift_not_quality():
    _, scan, ring = watched(X, x=NORMAL)
    scores = scored(scan, ring, *({"x": pane(i)["x"] + 0.6} for i in range(4)))
    assert scores.score > 1
    assert scores.severe > 1
    assert (scores.what, scores.unit, scores.state, scores.named) == (("mean",), ("sd",), ("drift",), (0,))
    assert not scores.quality[0]
    assert scores.effect_lower[0] < 0.6 < scores.effect_upper[0]
    assert scores.shortest in WINDOWS
    assert (scores.z_quality.max(), scores.faults) == (0, {})


def test_the_absence_of_new_values_is_no_drift():
    """The allowance for unseen levels is no observation: a stream that never shows a new one stays quiet."""
    rng = np.random.default_rng(5)
    levels = [f"v{i}" for i in range(300)]
    draw = lambda n: rng.choice(levels, n).tolist()  # noqa: E731
    reference, scan, ring = watched((Column("c", "category"),), c=[*draw(900), *(f"once{i}" for i in range(100))])
    last = reference.records[0].binning.scan_bins - 1
    assert reference.arrays.p0[0, last] > 0.08
    common = [level for level in draw(4000) if level in set(reference.records[0].binning.levels)]
    ring.push(reference.profile({"c": common}))
    seen = scan._compare(scan._fold(ring.windows(np.array([1]))[0]), np.array([1]))
    strength, _ = bins_of(seen)
    assert strength[0, 0, last] == strength[0, 0, last - 1] == 0


def test_a_constant_column_shows_any_other_value_at_once():
    reference, scan, ring = watched(X, x=np.full(5000, 3.0))
    assert not reference.arrays.weights.any()
    assert scored(scan, ring, {"x": np.full(250, 3.0)}).score == 0
    other = scored(scan, ring, {"x": np.append(np.full(244, 3.0), np.full(6, 3.5))})
    assert other.score > 0.5
    assert other.what == ("above 3",)


def test_the_shortest_window_above_the_threshold_is_told():
    _, scan, ring = watched(X, x=NORMAL)
    for i in range(40):
        scores = scored(scan, ring, {"x": pane(i)["x"] + 0.3})
        if scores.score > 1:
            break
    first = int(np.argmax((scores.z > scan.threshold).any(axis=0)))
    assert scores.shortest == WINDOWS[first] > 1
    assert not (scores.z[:, :first] > scan.threshold).any()


def test_windows_longer_than_the_ring_wait():
    _, scan, ring = watched(X, x=NORMAL)
    scores = scored(scan, ring, *(pane(i) for i in range(3)))
    assert scores.z.shape == (1, 8)
    assert not scores.z[:, 2:].any()


def test_empty_panes_let_time_pass_and_long_silence_empties_every_window():
    reference, scan, ring = watched(X, x=NORMAL)
    ring.push(reference.profile(pane(_250=9.0)))
    ring.skip(3)
    assert ring.panes == 4
    assert [ring.window(w)[1] for w in (1, 2, 4)] == [0, 0, 250]
    ring.skip(1000)
    assert ring.panes == 1004
    assert [ring.window(w)[1] for w in WINDOWS] == [0] * 8
    assert np.isnan(scan(ring).score)
    ring.push(reference.profile(pane()))
    assert ring.window(128)[1] == 250
    with pytest.raises(ValueError, match="expected 1 to 128 panes"):
        ring.window(129)
    ring.clear()
    assert ring.panes == 0
    with pytest.raises(ValueError, match="expected 1 to 0 panes"):
        ring.window(1)


def test_a_dependent_row_needs_the_t_quantile_and_more_events():
    rng = np.random.default_rng(8)
    slow = np.repeat(rng.standard_normal(400), 50) + 0.3 * rng.standard_normal(20_000)
    reference, scan, ring = watched(X, x=slow)
    assert reference.deff[0] > 20
    assert scan._nu_directions[0, 0] < 1
    scores = scored(scan, ring, {"x": np.full(250, 3.0)})
    assert scores.state == ("too_few_events",)
