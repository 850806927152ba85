"""Streaming detectors: the worked example, strictness of options and input, and the law that feeding in parts is feeding."""

from __future__ import annotations

import inspect
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.method import Method
from detectors.streaming import METHODS, Step, Streaming, cusum_limit, detector
from detectors.streaming_river import ADAPTERS

NAMES = [method.name for method in METHODS]
BINARY = [method.name for method in METHODS if method.kinds == {"boolean"}]
NUMBERS = [name for name in NAMES if name not in BINARY]
#: Short windows, so that short series reach every branch.
SMALL = {"river:ADWIN": {"clock": 1, "grace_period": 2}, "river:PageHinkley": {"min_instances": 3, "threshold": 3.0},
         "river:KSWIN": {"window_size": 12, "stat_size": 4, "alpha": 0.1}, "river:DDM": {"warm_start": 3},
         "river:EDDM": {"warm_start": 3}, "river:FHDDM": {"sliding_window_size": 8, "confidence_level": 0.2},
         "cusum": {"h": 2.0}, "ewma": {}}

numbers = st.lists(st.one_of(st.floats(-50, 50), st.just(math.nan), st.just(math.inf)), max_size=60)
flags = st.lists(st.sampled_from([0.0, 1.0, 1.0, math.nan]), max_size=60)


def series(name: str) -> st.SearchStrategy[list[float]]:
    return flags if name in BINARY else numbers


def same(a: list[Step], b: list[Step]) -> bool:
    return len(a) == len(b) and all(
        (x.warning, x.drift) == (y.warning, y.drift)
        and (x.statistic == y.statistic or (math.isnan(x.statistic) and math.isnan(y.statistic)))
        for x, y in zip(a, b, strict=True))


def test_cusum_gives_the_worked_example():
    """Ex 18."""
    steps = detector("cusum").feed([0.2, 1.1, 1.4, 2.0, 1.6])
    assert [step.statistic for step in steps] == pytest.approx([0, 0.6, 1.5, 3.0, 4.1], abs=1e-12)
    assert not any(step.drift or step.warning for step in steps)


def test_ewma_gives_the_worked_example_and_alarms_at_its_fifth_value():
    """Ex 18."""
    ewma = detector("ewma")
    steps = ewma.feed([0.2, 1.1, 1.4, 2.0, 1.6])
    assert [step.statistic for step in steps] == pytest.approx([0.04, 0.252, 0.4816, 0.78528, 0.948224], abs=1e-12)
    assert ewma.limit == pytest.approx(0.944789, abs=5e-7)  # type: ignore[attr-defined]
    assert [step.drift for step in steps] == [False] * 4 + [True]


def test_page_hinkley_of_river_gives_the_worked_example():
    """Ex 18."""
    steps = detector("river:PageHinkley", min_instances=1, mode="up").feed([1, 1, 1, 5, 5, 5])
    assert [step.statistic for step in steps] == pytest.approx([0, 0, 0, 2.995001, 5.389703, 7.384166], abs=5e-7)


@pytest.mark.parametrize("two_sided", [True, False])
def test_cusum_standardises_and_sees_a_fall_only_two_sided(two_sided):
    steps = detector("cusum", mean=100, sd=10, two_sided=two_sided).feed([80.0] * 5)
    assert [step.statistic for step in steps] == pytest.approx([1.5, 3, 4.5, 6, 1.5] if two_sided else [0] * 5)
    assert [step.drift for step in steps] == [False, False, False, two_sided, False]


@pytest.mark.parametrize(("k", "h", "run_length"), [(0.5, 4.0, 336), (0.5, 5.0, 930), (1.0, 2.5, 717), (0.25, 8.0, 736)])
def test_the_limit_of_cusum_agrees_with_known_run_lengths(k, h, run_length):
    """One-sided run lengths of Hawkins and Olwell's tables; 5 % of run length is about .05/(2k) in h."""
    assert cusum_limit(run_length, k=k, two_sided=False) == pytest.approx(h, abs=0.06 / (2 * k))
    assert cusum_limit(run_length / 2, k=k, two_sided=True) == cusum_limit(run_length, k=k, two_sided=False)


def test_the_limit_of_cusum_gives_the_asked_spacing_of_false_alarms():
    """200,000 fresh normal values, 1 alarm per 500 asked: 400 expected, and three Poisson s.d. allowed."""
    values = np.random.default_rng(5).standard_normal(200_000).tolist()
    alarms = sum(step.drift for step in detector("cusum", values_per_false_alarm=500).feed(values))
    assert abs(alarms - 400) <= 3 * math.sqrt(400) + 0.06 * 400


def test_the_limit_of_cusum_grows_with_the_spacing_beyond_what_was_simulated():
    limits = [cusum_limit(10.0**power) for power in (2, 3, 6, 11, 12)]
    steps = np.diff(limits)
    assert (steps > 0).all()
    assert steps[-1] == pytest.approx(math.log(10), abs=1e-9)       # 2k = 1: ln(run length) has slope 1


@pytest.mark.parametrize("name", NAMES)
def test_feeding_in_two_parts_equals_feeding_once_and_so_does_rebuilding(name):
    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(series(name), st.integers(0, 60))
    def law(values, cut):
        options = SMALL.get(name, {})
        whole, parts = detector(name, **options), detector(name, **options)
        once = whole.feed(values)
        assert same(once, parts.feed(values[:cut]) + parts.feed(values[cut:]))
        rebuilt = parts.fresh()
        assert same(once, rebuilt.feed(values))
        more = [1.0, 0.0, 1.0]
        assert same(whole.feed(more), rebuilt.feed(more))
        assert (whole.seen, whole.skipped) == (rebuilt.seen, rebuilt.skipped)
        assert whole.seen + whole.skipped == len(values) + 3

    law()


def test_kswin_draws_the_same_values_after_a_rebuild_though_no_seed_is_given():
    values = np.random.default_rng(9).standard_normal(250).tolist()
    first = detector("river:KSWIN")
    assert first.feed(values) == first.fresh().feed(values)
    assert first.fresh().feed(values) != detector("river:KSWIN", seed=1).feed(values)


@pytest.mark.parametrize("name", NAMES)
def test_missing_values_change_nothing_but_their_count(name):
    rng = np.random.default_rng(3)
    values = (rng.random(300) < 0.3).astype(float).tolist()
    holes: list[float | None] = []
    for value in values:
        holes += [value, *rng.choice(np.array([math.nan, math.inf, -math.inf, None], object), rng.integers(3)).tolist()]
    plain, holed = detector(name, **SMALL.get(name, {})), detector(name, **SMALL.get(name, {}))
    expected, got = plain.feed(values), holed.feed(holes)
    kept = [step for step, value in zip(got, holes, strict=True) if value is not None and math.isfinite(value)]
    skipped = [step for step, value in zip(got, holes, strict=True) if value is None or not math.isfinite(value)]
    assert same(expected, kept)
    assert (holed.seen, holed.skipped) == (300, len(holes) - 300)
    assert skipped
    assert not any(step.drift or step.warning for step in skipped)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_jump_of_two_sd_is_seen_and_absurd_values_leave_no_detector_dead(name):
    rng = np.random.default_rng(8)
    options = {"river:PageHinkley": {"threshold": 20.0}}.get(name, {})
    jumping = detector(name, **options)
    jumping.feed([1e300, -1e300, 1e101])
    steps = jumping.feed(np.concatenate([rng.standard_normal(300), rng.standard_normal(200) + 2]).tolist())
    assert jumping.skipped == 3
    assert any(step.drift for step in steps[300:])
    assert all(math.isfinite(step.statistic) for step in steps)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_largest_values_that_are_taken_keep_the_statistic_a_number(name):
    extreme = detector(name, **SMALL.get(name, {}))
    steps = extreme.feed([1e100, -1e100, 1e99, 0.0, 1.0] * 20)
    assert extreme.skipped == 0
    assert all(math.isfinite(step.statistic) for step in steps)


@pytest.mark.parametrize("name", [name for name in BINARY if name != "river:EDDM"])
def test_binary_detectors_see_more_errors_and_not_fewer(name):
    """All of them take 1 for an error. EDDM alarms without drift, too, so that it cannot be told apart here."""
    rng = np.random.default_rng(4)
    rise = (rng.random(2000) < np.repeat([0.1, 0.5], 1000)).astype(float).tolist()
    fall = [1 - value for value in rise]
    assert any(step.drift for step in detector(name).feed(rise)[1000:1200])
    assert not any(step.drift for step in detector(name).feed(fall)[1000:1200])


def test_eddm_sees_errors_that_come_closer():
    rng = np.random.default_rng(4)
    errors = (rng.random(2000) < np.repeat([0.1, 0.5], 1000)).astype(float).tolist()
    assert any(step.drift for step in detector("river:EDDM").feed(errors)[1000:1100])


def test_ddm_that_began_with_31_right_answers_takes_the_first_error_for_drift():
    steps = detector("river:DDM").feed([0.0] * 31 + [1.0])
    assert [step.drift for step in steps] == [False] * 31 + [True]
    assert [step.statistic for step in steps] == [0.0] * 31 + [1000.0]       # divided by an s.d. of 0
    assert not any(step.drift for step in detector("river:DDM").feed([0.0] * 30 + [1.0]))


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("value", [0.5, 2.0, -1.0])
def test_a_binary_detector_refuses_what_is_neither_0_nor_1_in_one_line(name, value):
    with pytest.raises(ValueError, match=r"expected 0 \(right\) or 1") as refused:
        detector(name).update(value)
    assert "\n" not in str(refused.value)


def test_text_is_refused_as_a_value_in_one_line():
    with pytest.raises(ValueError, match="cusum: expected a number, got 'slow'"):
        detector("cusum").update("slow")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "threshold"), [(method.name, method.threshold) for method in METHODS
                                                 if method.threshold is not None and method.name != "river:KSWIN"])
def test_a_step_is_a_drift_where_its_statistic_passes_the_stated_threshold(name, threshold):
    """KSWIN asks for D > .1 besides; DDM and FHDDM pass strictly, EDDM below its share."""
    rng = np.random.default_rng(6)
    values = (rng.random(3000) < np.repeat([0.1, 0.4, 0.8], 1000)).astype(float) if name in BINARY else \
        np.concatenate([rng.standard_normal(1500), rng.standard_normal(1500) + 1])
    steps = detector(name).feed(values.tolist())
    assert any(step.drift for step in steps)
    if name == "river:EDDM":                                # its flag stays as it was between errors
        assert all(step.statistic > threshold for step in steps if step.drift)
    else:
        assert [step.drift for step in steps] == [step.statistic > threshold for step in steps]


@pytest.mark.parametrize(("name", "options", "words"), [
    ("cusum", {"treshold": 1}, "cusum.treshold: expected one of the options mean, sd, k, h"),
    ("cusum", {"sd": 0}, "cusum.sd: expected a number between 0 and"),
    ("cusum", {"h": "5"}, "cusum.h: expected a number above 0, got '5'"),
    ("cusum", {"h": math.nan}, "cusum.h: expected a number above 0, got nan"),
    ("cusum", {"h": 5.0, "values_per_false_alarm": 100}, "got both"),
    ("cusum", {"values_per_false_alarm": 1}, "cusum.values_per_false_alarm: expected a number from 2"),
    ("cusum", {"two_sided": 1}, "cusum.two_sided: expected true or false, got 1"),
    ("ewma", {"weight": 1.5}, "ewma.weight: expected a number between 0 and 1"),
    ("river:ADWIN", {"delt": 0.1}, "river:ADWIN.delt: expected one of the options delta, clock, .*did you mean delta"),
    ("river:ADWIN", {"delta": 0}, "river:ADWIN.delta: expected a number from"),
    ("river:ADWIN", {"clock": 1.5}, "river:ADWIN.clock: expected a whole number, got 1.5"),
    ("river:PageHinkley", {"mode": "sideways"}, "river:PageHinkley: expected options that river takes"),
    ("river:PageHinkley", {"mode": 3}, "river:PageHinkley.mode: expected a word"),
    ("river:KSWIN", {"window": [1.0]}, "river:KSWIN.window: expected one of the options alpha, window_size, stat_size, seed"),
    ("river:KSWIN", {"seed": None}, "river:KSWIN.seed: expected a number"),
    ("river:KSWIN", {"window_size": 40}, "at least twice stat_size"),
    ("river:EDDM", {"alpha": 0.5}, "river:EDDM: expected options that river takes"),
    ("river:HDDMA", {"two_sided_test": "no"}, "river:HDDMA.two_sided_test: expected true or false"),
    ("river:HDDMA", {"drift_confidence": True}, "river:HDDMA.drift_confidence: expected a number"),
    ("river:FHDDM", {"short_window_size": 101}, "at most sliding_window_size"),
    ("adwin", {}, "known: river:ADWIN$"),
    ("page_hinkley", {}, "known: river:PageHinkley$"),
    ("ADWIN", {}, "known: river:ADWIN$"),
    ("river:Adwin", {}, "known: river:ADWIN$"),
    ("river:../x", {}, "expected the name of a streaming detector"),
])
def test_a_wrong_name_or_option_is_one_line_that_names_what_is_known(name, options, words):
    with pytest.raises(ValueError, match=words) as refused:
        detector(name, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_every_number_among_rivers_options_has_limits(name):
    made = detector(f"river:{name}")
    parameters = inspect.signature(type(made._theirs)).parameters  # type: ignore[attr-defined]
    numbers_of = {option for option, parameter in parameters.items()
                  if not isinstance(parameter.default, (bool, str)) and option not in ADAPTERS[name].left_out}
    assert numbers_of <= set(ADAPTERS[name].limits)


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_is_not_pickled(name):
    with pytest.raises(TypeError, match="expected to be rebuilt from its series"):
        pickle.dumps(detector(name))


def test_without_river_a_detector_says_which_extra_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "river.drift", None)
    with pytest.raises(ImportError, match=r"pip install 'tidemark\[river\]'") as refused:
        detector("river:ADWIN")
    assert "\n" not in str(refused.value)


def test_the_catalogue_has_every_detector_as_a_series_method():
    assert all(isinstance(method, Method) and method.source == "series" and not method.joint for method in METHODS)
    assert {name.removeprefix("river:") for name in NAMES} == {*ADAPTERS, "cusum", "ewma"}
    assert all(isinstance(detector(name), Streaming) for name in NAMES)
