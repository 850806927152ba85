"""What is open is shown: each kind of alarm in its place, since when, and nothing of a version that is gone."""

from __future__ import annotations

from typing import get_args

import pytest

from monitor import flow, metrics
from monitor.decide import quality
from monitor.expose.exporter import Exporter
from monitor.expose.snapshot import OpenAlarm
from monitor.ingest.source import MemorySource
from monitor.metrics import ALARM_CAUSES, ALARM_KINDS, ALARM_PLACES
from monitor.service import build
from tests.catalogue import series_of
from tests.unit.expose.shown import World, snapshot, status
from tests.unit.test_pipeline import batches, configuration

PLACE = ("kind", "cause", "state")


def shown(exporter: Exporter, metric: metrics.Metric) -> dict[tuple[str, ...], float]:
    """Model, version and place -> value of every series of a family."""
    series = series_of(exporter.published.text.decode())
    return {tuple(dict(labels)[name] for name in ("model", "version", *PLACE)): value
            for (name, labels), value in series.items() if name == metric.name}


def test_the_closed_lists_are_those_of_the_alarms_and_the_checks():
    assert set(ALARM_KINDS) == set(get_args(flow.AlarmKind)) == {kind for kind, _, _ in ALARM_PLACES}
    assert set(ALARM_CAUSES) == {"columns", *get_args(quality.Cause)} == {cause for _, cause, _ in ALARM_PLACES}
    assert {state for _, _, state in ALARM_PLACES} == set(metrics.ALARM_STATES) - {"cleared"}


def test_every_place_of_a_judged_stream_is_shown_and_only_what_is_open_is_one():
    exporter = Exporter(10_000)
    World().show(exporter)
    opened = {("loans", "1", "all", "drift", "columns", "raised"): OpenAlarm(4, 120.0)}
    exporter.service(snapshot(open_alarms=opened))
    place = ("loans", "1", "drift", "columns", "raised")
    assert shown(exporter, metrics.ALARM_OPEN) == {
        ("loans", "1", *each): float(each == place[2:]) for each in ALARM_PLACES}
    assert shown(exporter, metrics.ALARM_SINCE) == {place: 120.0}
    assert shown(exporter, metrics.ALARM_EPISODE) == {place: 4.0}


def test_an_alarm_of_a_version_that_is_no_longer_watched_is_not_shown():
    exporter = Exporter(10_000)
    opened = {("loans", "1", "all", "drift", "columns", "raised"): OpenAlarm(4, 120.0)}
    exporter.service(snapshot(status(version="2"), open_alarms=opened))
    for metric in (metrics.ALARM_OPEN, metrics.ALARM_SINCE, metrics.ALARM_EPISODE):
        assert shown(exporter, metric) == {}


def test_a_launch_is_shown_with_the_time_of_its_last_step():
    exporter = Exporter(10_000)
    exporter.service(snapshot())
    assert ('tidemark_launch_state_timestamp_seconds{model="loans",launcher="local"} 1.0\n'
            in exporter.published.text.decode())


@pytest.fixture
def stages(tmp_path):
    made = build(configuration(tmp_path), source=MemorySource(batches()), clock=lambda: 0.0)
    yield made
    made.close()


def test_what_the_loop_shows_as_open_is_what_its_machines_say(stages):
    stages.run()
    state, checks = stages.judge.states["m"], stages.quality.states["m"]
    firing = {("drift", "columns", "raised"): state.alarm, ("drift", "columns", "severe"): state.severe,
              ("quality", "columns", "raised"): state.quality, ("quality", "wrong_type", "raised"): checks.wrong_type,
              ("quality", "volume", "raised"): checks.volume}
    assert state.alarm.firing                        # the world of these tests drifts,
    assert checks.wrong_type.firing                  # and one record in 150 is broken
    assert shown(stages.exporter, metrics.ALARM_OPEN) == {
        ("m", "1", *place): float(machine.firing) for place, machine in firing.items()}
    assert shown(stages.exporter, metrics.ALARM_SINCE) == {
        ("m", "1", *place): machine.since for place, machine in firing.items() if machine.firing}
    assert shown(stages.exporter, metrics.ALARM_EPISODE) == {
        ("m", "1", *place): machine.episode for place, machine in firing.items() if machine.firing}
