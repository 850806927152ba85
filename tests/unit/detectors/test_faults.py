"""Data faults: each is told from a drift, named with its shares, and no drift of the specification is taken for one."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from detectors.faults import faults
from detectors.reference import Column, Reference
from detectors.synthetic import Quantity, Stream

SHAPES = {"normal": Quantity(), "lognormal": Quantity("lognormal"), "poisson": Quantity("poisson"),
          "zero_inflated": Quantity("zero_inflated"), "rounded": Quantity("rounded"), "missing": Quantity("missing"),
          "10 levels": Quantity(levels=10), "300 levels": Quantity(levels=300)}
DRIFTS = {"mean +0.1": {"mean": 0.1}, "mean +0.25": {"mean": 0.25}, "mean +0.5": {"mean": 0.5}, "mean +1": {"mean": 1.0},
          "mean -1": {"mean": -1.0}, "s.d. x 1.3": {"spread": 1.3}, "s.d. / 1.3": {"spread": 1 / 1.3},
          "two humps": {"two_humps": True}, "ramp": {"mean": 0.5, "ramp_rows": 4_000}, "none": {}}


@functools.cache
def reference_of(shape, ar=0.0):
    """The reference of a column of that shape beside a normal one; several tests look at it."""
    stream = Stream(1, [SHAPES[shape], Quantity()], ar=ar)
    return Reference.fit(stream.rows(10_000), stream.columns)


def found(shape, events, drift=None, transform=None, seed=1, ar=0.0):
    """The fault that a window of `events` shows in column c0 after the drift and the transformation."""
    reference, stream = reference_of(shape, ar), Stream(100 + seed, [SHAPES[shape], Quantity()], ar=ar)
    if drift:
        stream.start(**drift)
    rows = stream.rows(events)
    if transform is not None:
        rows["c0"] = transform(rows["c0"])
    return faults(reference, 0, reference.profile(rows).counts[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("drift", DRIFTS)
def test_no_drift_is_taken_for_a_fault(shape, drift):
    taken = {events: found(shape, events, DRIFTS[drift], seed=seed) for events, seed in ((250, 1), (4_000, 2))}
    assert {events: fault for events, fault in taken.items() if fault is not None} == {}


@pytest.mark.parametrize("shape", ["normal", "lognormal"])
def test_a_mode_of_one_in_ten_values_is_no_fault(shape):
    assert found(shape, 2_000, {"replaced": 0.1, "constant": 1.0}) is None


@pytest.mark.parametrize(("shape", "drift", "kind", "share"), [
    ("normal", {"replaced": 0.03}, "missing", 0.03), ("10 levels", {"replaced": 0.03, "constant": None}, "missing", 0.03),
    ("missing", {"replaced": 0.05}, "missing", 0.0975), ("normal", {"replaced": 0.01, "constant": 6.0}, "above", 0.01),
    ("poisson", {"replaced": 0.02, "constant": -1.0}, "below", 0.02),
    ("10 levels", {"replaced": 0.02, "constant": "new"}, "unseen", 0.02)])
def test_values_where_the_reference_has_nothing_are_named_with_their_share(shape, drift, kind, share):
    for events in (1_000, 8_000):
        fault = found(shape, events, drift)
        assert fault is not None
        assert fault.kind == kind
        assert fault.share_after == pytest.approx(share, abs=4 * np.sqrt(share / events))
        assert f"{100 * fault.share_after:.1f} % of events" in fault.words


def test_the_words_say_what_is_wrong_before_and_after():
    stream = Stream(4, [Quantity("missing"), Quantity()])
    reference = Reference.fit(stream.rows(10_000), stream.columns)
    counts = reference.records[0].counts.copy()
    counts[0] = counts.sum() // 4
    fault = faults(reference, 0, counts)
    before = reference.records[0].counts[0] / 10_000
    assert fault is not None
    assert fault.words == f"missing in {100 * counts[0] / counts.sum():.1f} % of events, {100 * before:.1f} % in the reference"


def test_missing_values_that_come_back_are_a_fault_of_the_same_name():
    fault = found("missing", 8_000, transform=lambda values: np.nan_to_num(values, nan=0.1))
    assert fault is not None
    assert (fault.kind, fault.share_after) == ("missing", 0.0)


@pytest.mark.parametrize(("shape", "value"), [("normal", 0.3), ("poisson", 2.0), ("10 levels", "v0"), ("300 levels", "v1")])
def test_a_column_that_stands_still_is_constant(shape, value):
    fault = found(shape, 250, {"replaced": 1.0, "constant": value})
    assert fault is not None
    assert fault.kind == "constant"


def test_a_few_equal_values_are_not_constant():
    assert found("normal", 3, {"replaced": 1.0, "constant": 0.3}) is None
    assert found("10 levels", 25, {"replaced": 1.0, "constant": "v0"}) is None       # one in three: by chance 1e-12


@pytest.mark.parametrize("events", [1_000, 16_000])
@pytest.mark.parametrize("shape", ["normal", "missing", "poisson", "zero_inflated"])
def test_inches_in_centimetres_are_a_unit_change(shape, events):
    fault = found(shape, events, transform=lambda values: values * 2.54)
    assert fault is not None
    assert fault.kind == "unit"


def test_a_known_conversion_is_named_once_the_window_can_tell():
    fault = found("normal", 16_000, transform=lambda values: values * 2.54)
    assert fault is not None
    assert fault.words.startswith("scaled or shifted as a whole: x 2.54 (inches to centimetres), fits to ")


def temperature(scale=1.0, shift=0.0, spread=1.0, events=3_000):
    rng = np.random.default_rng(0)
    reference = Reference.fit({"t": rng.normal(15, 8, 10_000)}, [Column("t", "numeric")])
    values = 15 + (rng.normal(15, 8, events) - 15) * spread
    return faults(reference, 0, reference.profile({"t": values * scale + shift}).counts[0])


def test_degrees_fahrenheit_are_named_though_most_lie_out_of_range():
    fault = temperature(1.8, 32.0)
    assert fault is not None
    assert "x 1.8 + 32 (degrees Celsius to Fahrenheit)" in fault.words


def test_kelvin_leaves_the_range_and_is_above_it():
    fault = temperature(1.0, 273.15)
    assert fault is not None
    assert (fault.kind, fault.share_after) == ("above", 1.0)


@pytest.mark.parametrize("spread", [1.3, 1.7])
def test_a_spread_that_widens_about_its_own_middle_is_a_drift(spread):
    assert temperature(spread=spread) is None


@pytest.mark.parametrize(("factor", "events"), [(2.72, 4_000), (1.65, 4_000), (1 / 2.72, 4_000)])
def test_a_skewed_column_that_drifts_by_a_factor_is_no_unit_change(factor, events):
    """A lognormal column whose logarithm moves by one standard deviation is scaled by 2.72."""
    assert found("lognormal", events, transform=lambda values: values * factor) is None


def test_a_skewed_column_times_ten_is_a_unit_change():
    fault = found("lognormal", 8_000, transform=lambda values: values * 10)
    assert fault is not None
    assert (fault.kind, fault.words.split(": ")[1].split(",")[0]) == ("unit", "x 10")


def test_a_sign_that_was_turned_round_is_found():
    rng = np.random.default_rng(2)
    gains = np.where(rng.random(20_000) < 0.8, rng.normal(-1.0, 0.4, 20_000), rng.normal(1.5, 0.3, 20_000))
    reference = Reference.fit({"gain": gains[:10_000]}, [Column("gain", "numeric")])
    fault = faults(reference, 0, reference.profile({"gain": -gains[10_000:]}).counts[0])
    assert fault is not None
    assert "x -1 (the sign is turned round)" in fault.words


def test_dependent_streams_are_not_called_constant_or_rescaled():
    assert [found("normal", 250, {"mean": 0.5}, seed=seed, ar=0.9) for seed in range(5)] == [None] * 5


def test_joint_rows_have_no_faults_of_their_own():
    stream = Stream(1, [Quantity(), Quantity()])
    reference = Reference.fit(stream.rows(10_000), stream.columns)
    stream.start(replaced=0.3)
    profile = reference.profile(stream.rows(1_000))
    assert [faults(reference, j, profile.counts[j]) for j in range(2, len(reference.rows))] == [None] * (len(reference.rows) - 2)


@pytest.mark.parametrize("values", [[None] * 500, [1.0] * 500, [float("inf")] * 500])
def test_odd_references_and_empty_windows_give_an_answer(values):
    reference = Reference.fit({"x": np.array(values, float)}, [Column("x", "numeric")])
    for window in ([], [np.nan] * 40, [2.0] * 40, [1.0] * 40, [np.inf] * 40):
        fault = faults(reference, 0, reference.profile({"x": np.array(window)}, len(window)).counts[0])
        assert fault is None or fault.words


def test_the_first_values_of_an_empty_column_are_unseen():
    reference = Reference.fit({"x": np.full(500, np.nan)}, [Column("x", "numeric")])
    fault = faults(reference, 0, reference.profile({"x": np.arange(40.0)}).counts[0])
    assert fault is not None
    assert fault.words == "a value in 100.0 % of events, none in the reference"
