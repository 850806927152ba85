"""The e-SR decision: the numbers of its specification, and the inequality that its bound rests on."""

import numpy as np
import pytest
from scipy import stats

from detectors.esr import (
    ESR,
    ODDS,
    TILTS,
    Evidence,
    ball_radius,
    bin_stakes,
    e_benjamini_hochberg,
    limit_risk,
    share_limits,
    tilt_cost,
)
from detectors.profile import Profile, ReferenceMismatch
from detectors.reference import Column, Reference
from detectors.synthetic import MIXED, Stream

FEW = (*MIXED[:2], *MIXED[8:14:2], MIXED[17], MIXED[18])


@pytest.fixture(scope="module")
def stream():
    return Stream(5, FEW)


@pytest.fixture(scope="module")
def reference(stream):
    return Reference.fit(stream.rows(4_000), stream.columns, model="m", version="1")


def panes(seed, reference, number, events=100, **drift):
    stream = Stream(seed, FEW)
    if drift:
        stream.start(**drift)
    return [reference.profile(stream.rows(events)) for _ in range(number)]


def radius_of(tolerance, deff, m, *, rows):
    """rho of the specification, by scipy's normal quantile."""
    return tolerance + stats.norm.isf(0.05 / (40 * rows)) * np.sqrt(deff / m)


def stakes_of_one_event(esr):
    """The log stakes of one event in bin k of every row, times the design effect: g of the specification, (K, bets)."""
    rows, bins = esr.reference.arrays.c0.shape
    deff = esr.reference.deff[esr._row]
    return np.stack([esr.log_stakes(np.eye(bins)[[k] * rows]) * deff for k in range(bins)])


def test_a_tilt_bet_has_the_stakes_of_the_specification():
    """Ex 13."""
    p, weights = np.full((1, 4), 0.25), np.array([[-1.348466, -0.373925, 0.373925, 1.348466]])
    stakes = 0.4 * weights[0] - tilt_cost(p, 0.4 * weights, np.array([0.05]))
    assert stakes == pytest.approx([-0.635699, -0.245883, 0.053257, 0.443073], abs=1e-6)
    assert (p[0] * np.exp(stakes)).sum() == pytest.approx(0.980942, abs=1e-6)
    pane = np.array([40, 60, 70, 80]) @ stakes
    assert pane == pytest.approx(-1.007076, abs=2e-6)
    first = np.exp(pane)
    assert (first, (first + 1) * np.exp(pane)) == pytest.approx((0.365285, 0.498719), abs=1e-6)


def test_a_bin_bet_has_the_stakes_of_the_specification():
    """Ex 14."""
    lower, upper = share_limits(np.array([100.0]), np.array([1000.0]), 3.787879e-5)
    assert (lower[0], upper[0]) == pytest.approx((0.066351, 0.142377), abs=1e-6)
    inside, outside = bin_stakes(upper, 2.5)
    assert (inside[0], outside[0]) == pytest.approx((0.722728, -0.193563), abs=1e-6)
    assert upper[0] * np.exp(inside[0]) == pytest.approx(0.293303, abs=1e-6)


def test_the_ball_has_the_radius_of_the_specification():
    """Ex 13: J = 33 rows, m = 10,000, no tolerance: a = 3.787879e-5, rho = 0.039574."""
    assert limit_risk(33) == pytest.approx(3.787879e-5, rel=1e-6)
    assert ball_radius(0.0, np.array([1.0]), np.array([10_000.0]), limit_risk(33))[0] == pytest.approx(0.039574, abs=1e-6)


def test_names_are_those_of_the_e_values_procedure():
    """Ex 14."""
    assert e_benjamini_hochberg(np.array([900, 60, 25, 4, 0.5])).tolist() == [0, 1, 2]
    assert e_benjamini_hochberg(np.array([0.5, 25, 4, 900, 60])).tolist() == [3, 4, 1]
    assert e_benjamini_hochberg(np.zeros(4)).tolist() == []


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 0.3])
def test_no_bet_wins_on_average_under_any_law_within_its_limits(reference, tolerance):
    """Tilts: laws on the edge of the chi-square ball, random ones and each bet's worst; bins: shares up to their limits."""
    esr, arrays, rng = ESR(reference, tolerance=tolerance), reference.arrays, np.random.default_rng(3)
    pays = np.exp(stakes_of_one_event(esr))                                       # (K, bets)
    for j in range(len(arrays.m)):
        live = arrays.live[j]
        p = (arrays.c0[j] + 0.5)[live] / (arrays.m[j] + 0.5 * live.sum())
        radius = radius_of(tolerance, reference.deff[j], arrays.m[j], rows=len(arrays.m))
        tilts = np.flatnonzero((esr._row == j) & (esr._test < 4))
        ways = [rng.standard_normal(live.sum()) * np.sqrt(p) for _ in range(40)]
        ways += [p * (pays[live, bet] - p @ pays[live, bet]) for bet in tilts]
        for way in ways:
            way = way - p * way.sum()
            size = radius / np.sqrt((way**2 / p).sum())
            near = p + way * min(size, 1 / max((-way / p).max(), 1e-12))           # no share below 0
            assert (near @ pays[np.ix_(live, tilts)]).max() <= 1 + 1e-9
        for k in np.flatnonzero(live):
            bets = np.flatnonzero((esr._row == j) & (esr._test == 4 + k))
            other = pays[(k + 1) % live.sum(), bets]
            share = arrays.c0[j, k] / arrays.m[j]
            step = tolerance * np.sqrt(share * (1 - share))
            for near in (share - step, share, share + step):                       # the reference itself, and the edges
                assert (near * pays[k, bets] + (1 - near) * other).max() < 1


def test_a_tilt_bet_is_even_at_its_worst_law(reference):
    """The bound is not slack: somewhere on the ball the mean is 1."""
    esr, arrays = ESR(reference, tolerance=0.05), reference.arrays
    pays, j = np.exp(stakes_of_one_event(esr)), 0
    live = arrays.live[j]
    p = (arrays.c0[j] + 0.5)[live] / (arrays.m[j] + 0.5 * live.sum())
    radius = radius_of(0.05, 1.0, arrays.m[j], rows=len(arrays.m))
    bet = np.flatnonzero((esr._row == j) & (esr._test == 0))[4]                    # location up by 0.2
    h = pays[live, bet] / (p @ pays[live, bet])
    worst = p + radius * p * (h - 1) / np.sqrt(p @ (h - 1) ** 2)
    assert worst.min() > 0
    assert worst @ pays[live, bet] == pytest.approx(1.0, abs=1e-9)


def test_structured_stakes_are_those_of_the_dense_definition(reference):
    """l = sum n g / deff of every bet, from g written out bin by bin."""
    esr = ESR(reference)
    counts = np.random.default_rng(1).integers(0, 9, reference.arrays.c0.shape) * reference.arrays.live.astype(float)
    stakes = np.array([counts[row] @ g for row, g in zip(esr._row, stakes_of_one_event(esr).T, strict=True)])
    assert esr.log_stakes(counts) == pytest.approx(stakes / reference.deff[esr._row], abs=1e-9)


def test_rows_have_the_bets_of_the_specification(reference):
    """24 tilts where all directions exist; three up-bets on a rare bin, and no down-bet on one that may only gain."""
    esr, arrays = ESR(reference), reference.arrays
    assert sum(2 * len(sizes) for sizes in TILTS) == np.count_nonzero((esr._row == 0) & (esr._test < 4))
    assert (arrays.one_sided & (arrays.c0 > 200)).any()                            # `rest` of the 300 levels
    for j, k in np.argwhere(arrays.live):
        bets = np.count_nonzero((esr._row == j) & (esr._test == 4 + k))
        if arrays.one_sided[j, k] or arrays.c0[j, k] < 80:                         # surely not surely above 2 %
            assert bets == len(ODDS)
        elif 200 < arrays.c0[j, k] < 3_000:
            assert bets == 2 * len(ODDS)


def test_fortunes_grow_as_the_specification_says(reference):
    """M <- (M + 1) exp(l) for every bet; the total is the mean over rows of the mean over bets."""
    esr = ESR(reference)
    fortunes, expected = esr.begin(), np.zeros(len(esr._row))
    for pane in panes(16, reference, 3):
        expected = (expected + 1) * np.exp(esr.log_stakes(esr._fold(pane.counts[None])[0]))
        evidence = esr.update(fortunes, pane)
        assert fortunes.values == pytest.approx(expected, rel=1e-12)
    rows = [expected[esr._row == j].mean() for j in range(len(reference.rows))]
    assert evidence.rows == pytest.approx(rows, rel=1e-12)
    assert evidence.total == pytest.approx(np.mean(rows), rel=1e-12)
    for j, test in enumerate(esr.strongest(fortunes)):
        assert test == esr._test[esr._row == j][expected[esr._row == j].argmax()]


def test_a_shift_is_found_and_named_and_the_quiet_stream_is_quiet(reference):
    esr = ESR(reference, tolerance=0.0, panes_per_false_alarm=4_000)
    quiet, moved = esr.begin(), esr.begin()
    assert not any(esr.update(quiet, pane).alarm for pane in panes(8, reference, 60))
    seen = [esr.update(moved, pane).alarm for pane in panes(9, reference, 20, mean=0.5)]
    assert seen[-1]
    assert seen.index(True) < 12
    assert 0 in esr.named(moved)
    assert esr.strongest(moved)[0] == 0                                            # location


def test_a_shift_within_the_tolerance_is_no_alarm(reference):
    shifted = panes(10, reference, 100, mean=0.2)
    strict, tolerant = (ESR(reference, tolerance=t, panes_per_false_alarm=4_000) for t in (0.0, 0.25))
    ends = []
    for esr in (strict, tolerant):
        fortunes = esr.begin()
        ends.append(max(esr.update(fortunes, pane).total for pane in shifted))
    assert ends[0] > 4_000 > ends[1]


def test_an_empty_pane_is_no_evidence(reference):
    esr = ESR(reference)
    fortunes = esr.begin()
    for pane in panes(11, reference, 3):
        before = esr.update(fortunes, pane)
    for _ in range(1_000):
        after = esr.update(fortunes, Profile.empty(reference))
    assert (before.total, before.panes) == (after.total, after.panes)


def test_fortunes_survive_a_restart_to_the_last_bit(reference):
    esr, all_panes = ESR(reference), panes(12, reference, 12, mean=0.3)
    whole, half = esr.begin(), esr.begin()
    for pane in all_panes[:5]:
        esr.update(whole, pane)
        esr.update(half, pane)
    half = ESR(reference).restore(half.to_bytes())
    for pane in all_panes[5:]:
        expected, found = esr.update(whole, pane), esr.update(half, pane)
        assert (expected.total, expected.panes) == (found.total, found.panes)
        assert np.array_equal(expected.rows, found.rows)


def test_fortunes_of_other_bets_are_refused(reference, stream):
    other = Reference.fit(stream.rows(1_000), stream.columns, model="m", version="2")
    stored = ESR(reference).begin().to_bytes()
    with pytest.raises(ReferenceMismatch, match="another reference or tolerance"):
        ESR(other).restore(stored)
    with pytest.raises(ReferenceMismatch, match="another reference or tolerance"):
        ESR(reference, tolerance=0.2).restore(stored)
    ESR(reference, panes_per_false_alarm=7).restore(stored)                        # the budget is not in the fortunes
    for damaged in (b"", b"TME0" + stored[4:], stored[:-3]):
        with pytest.raises(ValueError, match="stored fortunes: expected"):
            ESR(reference).restore(damaged)
    esr, pane = ESR(reference), Profile.empty(other)
    with pytest.raises(ReferenceMismatch, match="e-SR: expected a profile"):
        esr.update(esr.begin(), pane)


def test_cleared_fortunes_are_new(reference):
    esr = ESR(reference)
    fortunes = esr.begin()
    first = [esr.update(fortunes, pane).total for pane in panes(13, reference, 3)]
    fortunes.clear()
    assert first == [esr.update(fortunes, pane).total for pane in panes(13, reference, 3)]


def test_money_stays_finite_under_the_grossest_change(reference):
    esr = ESR(reference)
    fortunes = esr.begin()
    shifted = panes(14, reference, 40, events=2_000, mean=9.0)
    with np.errstate(all="raise", under="ignore"):
        for pane in shifted:
            evidence = esr.update(fortunes, pane)
    assert evidence.alarm
    assert np.isfinite([evidence.total, evidence.score]).all()


@pytest.mark.parametrize("values", [np.zeros(1_000), np.full(1_000, np.nan), np.arange(1_000) % 2.0], ids=str)
def test_rows_without_directions_bet_on_their_bins_alone(values):
    columns = (Column("x", "numeric"), Column("y", "numeric"))
    data = {"x": values, "y": np.random.default_rng(2).standard_normal(1_000)}
    reference = Reference.fit(data, columns, model="m", version="1")
    esr = ESR(reference, panes_per_false_alarm=1_000)
    fortunes = esr.begin()
    sure = np.argwhere(reference.arrays.c0 > 0.95 * reference.arrays.m[:, None])
    for j, k in sure:                                                              # nothing could be won on more of it
        assert np.count_nonzero((esr._row == j) & (esr._test == 4 + k)) == len(ODDS)
    for _ in range(20):
        assert not esr.update(fortunes, reference.profile({"x": values[:50], "y": data["y"][:50]})).alarm
    for _ in range(10):
        evidence = esr.update(fortunes, reference.profile({"x": np.full(50, 7.0), "y": data["y"][:50]}))
    assert evidence.alarm
    assert esr.named(fortunes)[0] == 0


def test_dependent_rows_win_slower():
    """At a design effect of g a pane of N events is worth N / g of them."""
    stream = Stream(15, FEW[:1], ar=0.9)
    reference = Reference.fit(stream.rows(20_000), stream.columns, model="m", version="1")
    assert reference.deff[0] > 10
    esr, arrays = ESR(reference), reference.arrays
    bet = np.flatnonzero((esr._row == 0) & (esr._test == 0))[0]                    # location up by 0.05
    counts = np.arange(arrays.c0.shape[1]) * arrays.live.astype(float)
    tilt = 0.05 * arrays.weights[0, :, 0]
    p = (arrays.c0[0] + 0.5)[arrays.live[0]] / (arrays.m[0] + 0.5 * arrays.live[0].sum())
    radius = radius_of(0.1, reference.deff[0], arrays.m[0], rows=len(arrays.m))
    cost = tilt_cost(p[None], tilt[None, arrays.live[0]], np.array([radius]))[0]
    assert esr.log_stakes(counts)[bet] == pytest.approx(
        (counts[0] @ tilt - counts[0].sum() * cost) / reference.deff[0], rel=1e-9)


def test_the_score_reads_1_at_the_threshold():
    assert Evidence(500.0, np.zeros(1), 500.0, 3).score == 1.0
    assert Evidence(500.0, np.zeros(1), 500.0, 3).alarm
    assert not Evidence(499.0, np.zeros(1), 500.0, 3).alarm
    assert Evidence(0.0, np.zeros(1), 500.0, 0).score == 0.0
