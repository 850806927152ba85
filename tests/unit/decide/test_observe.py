"""Further detectors over panes: what is fed in which order, what a failure does, and what a restart remembers."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from detectors.comparison import bands, evaluate
from detectors.reference import Column, Reference
from detectors.ring import Ring
from monitor.config import Detector
from monitor.decide import observe, sampled
from monitor.decide.observe import Asked, Kept, Observer
from monitor.flow import Sample, Window
from tests.conftest import package
from tests.unit.decide.test_plan import LABELS, REFERENCE, WHERE

N = 40


def rows(pane, n=N, shift=0.0):
    rng = np.random.default_rng(pane)
    columns = {
        "age": rng.normal(40 + 10 * shift, 10, n), "latency": rng.exponential(2.0, n), "constant": np.full(n, 3.0),
        "city": [("Oslo", "Rome", "Kyiv")[i] for i in rng.integers(0, 3, n)],
        "vip": [("true", "false", None)[i] for i in rng.integers(0, 3, n)], "y": [("0", "1")[i] for i in rng.integers(0, 2, n)],
        "truth": [("0", "1", None)[i] for i in rng.integers(0, 3, n)]}
    at = np.arange(n, dtype=np.int64)
    return Sample(at.astype(np.uint64), np.zeros(n, np.int64), at, at, columns)


def window(pane, skipped=0, sample=True, shift=0.0):
    kept = rows(pane, shift=shift)
    profile = REFERENCE.profile({name: kept.columns[name] for name in ("age", "latency", "constant", "city", "vip", "y")}, N)
    return Window("m", "1", "all", pane, pane * 60.0, pane * 60.0 + 60, profile, skipped, kept if sample else None)


@pytest.fixture
def watching():
    made = []

    def start(*said):
        observer = Observer({"m": Asked([Detector(**one) for one in said], LABELS, WHERE)})
        made.append(observer)
        observer.begin("m", "1", REFERENCE)
        return observer

    yield start
    for observer in made:
        observer.close()


def fed(observer, panes, ring=None, **options):
    ring = ring or Ring(REFERENCE)
    for pane in panes:
        one = window(pane, **options)
        ring.push(one.profile)
        observer(one, ring)
    return {(reading.detector, reading.column): reading for reading in observer.readings("m")}


def test_a_distance_on_counts_is_that_of_its_own_window_with_its_band(watching):
    ring = Ring(REFERENCE)
    found = fed(watching({"name": "psi", "columns": ["age"], "window_panes": 3}), range(5), ring)
    counts, events = ring.window(3)
    reading = found["psi", "age"]
    assert reading.score == evaluate(["psi"], REFERENCE, counts, events)["psi"][0]
    mean, high = bands(["psi"], REFERENCE, events)["psi"]
    assert reading.null == high[0]
    assert reading.corrected == pytest.approx(max(reading.score - mean[0], 0))
    assert (reading.pane, reading.end, reading.threshold, reading.drift) == (4, 300.0, 0.25, reading.score >= 0.25)


def test_a_detector_that_is_due_every_third_pane_keeps_its_last_reading_in_between(watching):
    found = fed(watching({"name": "psi", "every_panes": 3}, {"name": "js"}), range(1, 6))
    assert found["psi", "age"].pane == 3
    assert found["js", "age"].pane == 5


def test_a_series_is_the_kept_values_of_all_panes_in_order(watching):
    detector = {"name": "cusum", "columns": ["age"], "options": {"mean": 40, "sd": 10, "h": 1000}}
    observer = watching(detector)
    found = fed(observer, range(4))
    z = np.concatenate([(rows(pane).columns["age"] - 40) / 10 for pane in range(4)])
    up = down = 0.0
    for one in z:
        up, down = max(0.0, up + one - 0.5), max(0.0, down - one - 0.5)
    assert found["cusum", "age"].score == pytest.approx(max(up, down))
    assert found["cusum", "age"].drift is False
    assert found["cusum", "age"].threshold == 1000


def test_the_errors_are_those_of_the_labelled_events(watching):
    observer = watching({"name": "ewma", "columns": ["error"], "options": {"mean": 0, "sd": 1, "weight": 0.999999, "width": 9}})
    found = fed(observer, range(3))
    said, true = rows(2).columns["y"], rows(2).columns["truth"]
    errors = [float(a != b) for a, b in zip(said, true, strict=True) if b is not None]
    assert found["ewma", "error"].score == pytest.approx(errors[-1], abs=1e-5)
    assert found["ewma", "error"].role == "label"


def test_a_boolean_column_is_a_series_of_ones_and_zeros_without_the_missing_ones(watching):
    package("river")
    observer = watching({"name": "river:DDM", "columns": ["vip"]})
    fed(observer, range(3))
    known = sum(value is not None for pane in range(3) for value in rows(pane).columns["vip"])
    assert observer._watches["m"].series["river:DDM", "vip"].seen == known


def test_a_drift_is_shown_in_the_pane_that_completed_it_and_not_in_the_next(watching):
    observer = watching({"name": "cusum", "columns": ["age"], "options": {"h": 30}})
    ring = Ring(REFERENCE)
    assert fed(observer, [0], ring)["cusum", "age"].drift is False
    found = fed(observer, [1], ring, shift=3.0)["cusum", "age"]
    assert (found.drift, found.score > 30) == (True, True)
    assert fed(observer, [2], ring)["cusum", "age"].drift is False


def test_a_restart_feeds_the_retained_panes_again_and_shows_nothing_of_them(watching):
    detector = {"name": "cusum", "columns": ["age"], "window_panes": 10, "options": {"h": 1000}}
    whole = fed(watching(detector), range(6), shift=1.0)        # a sum that grows and forgets nothing
    again = watching(detector)
    again.restore("m", [Kept(pane, rows(pane, shift=1.0), N) for pane in range(5)])
    assert again.readings("m") == ()
    assert fed(again, [5], shift=1.0) == whole
    assert whole["cusum", "age"].score > 2 * N * 0.5


def test_a_detector_that_raises_is_counted_logged_once_and_stops_nothing(watching, monkeypatch, caplog):
    def broken(*args):
        raise ArithmeticError("nothing\nworks")

    monkeypatch.setattr(observe, "evaluate", broken)
    observer = watching({"name": "psi"}, {"name": "cusum", "columns": ["age"]})
    with caplog.at_level(logging.WARNING):
        found = fed(observer, range(3))
    assert set(found) == {("cusum", "age")}
    assert observer.counts("m") == {"skipped": {}, "failed": {"psi": 3, "cusum": 0}}
    (record,) = caplog.records
    assert (record.message, record.detector, record.kind, record.error) == (
        "Detector failed.", "psi", "ArithmeticError", r"nothing\nworks")


def test_one_column_that_fails_leaves_the_others_of_a_test_on_rows(watching, monkeypatch):
    package("evidently")

    def partly(name, reference, values, kind):
        if kind == "category":
            raise RuntimeError("no categories today")
        return sampled.parity.Parity(name, 0.3, 0.3, False, True, 0.1, "ok")

    monkeypatch.setattr(sampled.parity, "evaluate", partly)
    observer = watching({"name": "evidently:psi", "columns": ["age", "city"]})
    fed(observer, [0])
    observer.wait()
    found = {reading.column: reading for reading in observer.readings("m")}
    assert (found["age"].score, found["age"].drift) == (0.3, True)
    assert np.isnan(found["city"].score)
    assert found["city"].drift is None
    assert observer.counts("m")["failed"] == {"evidently:psi": 1}


def test_a_slow_test_on_rows_holds_up_no_pane_and_what_was_overtaken_is_counted(watching, monkeypatch):
    package("evidently")
    gate, begun, seen = threading.Event(), threading.Event(), []

    def slow(request):
        begun.set()
        gate.wait(10)
        seen.append((request.pane, len(request.panes), request.events))
        return [], []

    monkeypatch.setattr(observe, "answered", slow)
    observer = watching({"name": "evidently:psi", "columns": ["age"], "window_panes": 3}, {"name": "psi", "columns": ["age"]})
    ring = Ring(REFERENCE)
    fed(observer, [0], ring)
    assert begun.wait(10)
    assert fed(observer, range(1, 5), ring)["psi", "age"].pane == 4       # the loop went on
    gate.set()
    observer.wait()
    assert seen == [(0, 1, N), (4, 3, 3 * N)]
    assert observer.counts("m")["skipped"] == {"evidently:psi": 3}


def test_answers_about_a_version_that_is_gone_are_left(watching, monkeypatch):
    package("evidently")
    observer = watching({"name": "evidently:psi", "columns": ["age"]})
    fed(observer, [0])
    observer.wait()
    observer.begin("m", "2", REFERENCE)
    assert observer.readings("m") == ()


def test_joint_tests_see_a_changed_dependence_that_no_column_shows(watching):
    """age and latency swap from independent to rank-dependent with the same margins: psi is calm, mmd is not."""
    package("torch")
    observer = watching({"name": "mmd", "columns": ["age", "latency"], "threshold": 2, "window_panes": 10},
                        {"name": "psi", "columns": ["age", "latency"], "window_panes": 10})
    ring, n = Ring(REFERENCE), 400
    kept = rows(1, n)
    columns = dict(kept.columns)
    columns["latency"] = np.sort(columns["latency"])[np.argsort(np.argsort(columns["age"]))]
    profile = REFERENCE.profile({name: columns[name] for name in ("age", "latency", "constant", "city", "vip", "y")}, n)
    ring.push(profile)
    sample = Sample(kept.keys, kept.partitions, kept.offsets, kept.times, columns)
    observer(Window("m", "1", "all", 1, 60.0, 120.0, profile, 0, sample), ring)
    observer.wait()
    found = {(reading.detector, reading.column): reading for reading in observer.readings("m")}
    assert found["mmd", "__joint__"].drift is True
    assert observer.counts("m")["failed"]["mmd"] == 0
    for column in ("age", "latency"):
        assert found["psi", column].score < found["psi", column].null


def test_a_domain_classifier_tells_a_new_word_in_a_text_column(watching):
    rng = np.random.default_rng(3)

    def texts(n, *more):
        return [" ".join(rng.permutation(["red", "green", "blue", "grey", *more])) for _ in range(n)]

    reference = Reference.fit({"note": texts(2000), "x": rng.normal(size=2000)},
                              [Column("note", "text"), Column("x", "numeric")], model="m", version="1")
    observer = Observer({"m": Asked([Detector(name="domain_classifier")], {}, WHERE)})
    try:
        observer.begin("m", "1", reference)
        readings = []
        for pane, more in enumerate(((), ("pink",))):
            at, columns = np.arange(200, dtype=np.int64), {"note": texts(200, *more), "x": rng.normal(size=200)}
            profile, ring = reference.profile(columns, 200), Ring(reference)
            ring.push(profile)
            sample = Sample(at.astype(np.uint64), np.zeros(200, np.int64), at, at, columns)
            observer(Window("m", "1", "all", pane * 20, 0.0, 60.0, profile, 0, sample), ring)
            observer.wait()
            readings += observer.readings("m")
    finally:
        observer.close()
    assert [(reading.column, reading.drift) for reading in readings] == [("note", False), ("note", True)]
    assert readings[0].score < 0.6 < 0.7 < readings[1].score
