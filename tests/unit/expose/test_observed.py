"""What further detectors say, in the scrape: complete where there is room, folded where there is none."""

from __future__ import annotations

import math

import pytest

from monitor import metrics
from monitor.expose.exporter import Exporter
from monitor.expose.exposition import Page
from monitor.expose.observed import Observed
from monitor.flow import Reading
from monitor.metrics import OTHER
from tests.catalogue import differences, series_of
from tests.unit.expose.shown import POSTS, World, snapshot, status

KEY = ("loans", "1", "all")


def readings(columns=3, detector="hellinger", scores=None, **options):
    values = {"drift": False, "threshold": 0.2, "null": 0.1, "corrected": 0.0} | options
    return [Reading(detector, f"column_{i}", "input", 7, 480.0, (scores or range(columns))[i], **values) for i in range(columns)]


def shown(room, *said):
    observed, page = Observed(KEY), Page()
    observed.update([reading for one in said for reading in one])
    observed.put(page, room)
    assert page.series <= max(room, 0) + observed.fixed
    return {(name, *(dict(labels).get(label, "") for label in ("detector", "column", "role"))): value
            for (name, labels), value in series_of(page.text()).items()}


def test_a_reading_shows_what_it_has_and_nothing_else():
    found = shown(100, readings(1), readings(1, "mmd", [math.nan], drift=None, threshold=None, null=None, corrected=None))
    assert {key[:3]: value for key, value in found.items() if key[1] == "hellinger"} == {
        ("tidemark_score", "hellinger", "column_0"): 0.0, ("tidemark_detector_drift", "hellinger", "column_0"): 0.0,
        ("tidemark_score_null", "hellinger", "column_0"): 0.1, ("tidemark_score_corrected", "hellinger", "column_0"): 0.0,
        ("tidemark_threshold", "hellinger", ""): 0.2, ("tidemark_detector_pane_timestamp_seconds", "hellinger", ""): 480.0}
    assert [key[0] for key in found if key[1] == "mmd"] == ["tidemark_score", "tidemark_detector_pane_timestamp_seconds"]


def test_without_room_the_highest_scores_stay_and_one_stands_for_the_rest():
    scores = [0.1, 0.9, 0.3, 0.8, 0.2]
    said = readings(5, scores=scores)
    said[2] = Reading("hellinger", "column_2", "input", 7, 480.0, 0.3, True, 0.2, 0.1, 0.0)
    found = shown(12, said)
    assert {key[2]: value for key, value in found.items() if key[0] == "tidemark_score"} == {
        "column_1": 0.9, "column_3": 0.8, OTHER: 0.3}
    assert found["tidemark_detector_drift", "hellinger", OTHER, ""] == 1
    assert found["tidemark_score", "hellinger", OTHER, OTHER] == 0.3


@pytest.mark.parametrize("room", [-5, 0, 3, 4, 7, 8, 11, 15, 16, 31, 32, 100])
def test_whatever_the_room_it_is_kept(room):
    shown(room, readings(5), readings(3, "js"))


def test_two_columns_with_the_same_beginning_have_labels_of_their_own():
    said = [Reading("psi", "x" * 200 + end, "input", 1, 60.0, 1.0) for end in "ab"]
    assert len({key[2] for key in shown(100, said) if key[0] == "tidemark_score"}) == 2


def test_the_whole_scrape_holds_the_limit_and_the_catalogue():
    world = World(columns=30)
    exporter = Exporter(400)
    world.show(exporter)
    exporter.observe(KEY, readings(20))
    exporter.alert_posts = lambda: POSTS
    exporter.reported("loans", 14.0)
    exporter.service(snapshot(status(skipped={"mmd": 2}, failed={"mmd": 0, "hellinger": 1})))
    text = exporter.scrape().decode()
    series = series_of(text)
    assert differences(text, complete=True) == []
    assert len(series) <= 400
    assert series["tidemark_detector_skipped_total", frozenset({("model", "loans"), ("detector", "mmd")})] == 2
    assert series["tidemark_detector_failures_total", frozenset({("model", "loans"), ("detector", "hellinger")})] == 1
    assert len([key for key in series if key[0] == metrics.DETECTOR_DRIFT.name]) > 1


def test_what_is_forgotten_is_shown_no_more():
    exporter = Exporter(1_000)
    World().show(exporter)
    exporter.observe(KEY, readings())
    exporter.service(snapshot())
    assert exporter.published.observed[KEY] == tuple(readings())
    exporter.forget("loans", "1")
    exporter.service(snapshot())
    assert "hellinger" not in exporter.scrape().decode()
    exporter.observe(("gone", "1", "all"), readings())
    exporter.service(snapshot())                    # the configuration has no such model
    assert exporter.published.observed == {}
