"""Which alerts the service gives itself: when they begin and end, and what they say."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dashboards.rules import Settings
from dashboards.rules_alerts import alerts
from monitor import alert_words
from monitor.alert_limits import COLLECTING_SECONDS_MAX, NEWS_SECONDS, PROPOSED_SECONDS_MAX, STALE_SECONDS, Limits
from monitor.expose.alert_desk import RESOLVED_SECONDS, Desk
from monitor.expose.alert_facts import Links, columns, duration, timestamp
from monitor.expose.exporter import Exporter
from monitor.expose.snapshot import OpenAlarm, ServiceSnapshot
from tests.unit.expose.shown import World, launch, policy, snapshot, status

LINKS = Links("http://service", "http://grafana", "http://runbooks")
RAISED, SEVERE = ("loans", "1", "all", "drift", "columns", "raised"), ("loans", "1", "all", "drift", "columns", "severe")
WRONG_TYPE = ("loans", "1", "all", "quality", "wrong_type", "raised")
NOW = 1_000_000.0


class Shown:
    """One model that is shown, and a desk that looks at it."""

    def __init__(self, *, links=LINKS, **options):
        self.now, self.world = NOW, World(6)
        self.exporter = Exporter(10_000, clock=lambda: self.now)
        self.desk = Desk({}, links, {"job": "tidemark"}, started=NOW, **options)
        self.world.show(self.exporter, shift=1.5, state="drift")

    def look(self, *opened, after=0.0, ready=True, **more):
        """Look at a snapshot with these open alarms so many seconds later: names of what fires, and of what has ended."""
        self.now += after
        alarms = {place: OpenAlarm(2, 60.0) for place in opened}
        options = {"open_alarms": alarms, "launches": (), **{key: value for key, value in more.items() if key == "launches"}}
        shown = snapshot(status(**{key: value for key, value in more.items() if key != "launches"}), **options)
        self.exporter.service(replace(shown, ready=ready))
        self.changed = self.desk.look(self.exporter.published, self.now)
        told = self.desk.told()
        return ([one.labels["alertname"] for one in told if one.ends_at is None],
                [one.labels["alertname"] for one in told if one.ends_at is not None])

    def judge(self):
        self.world.show(self.exporter, shift=1.5, state="drift")


def test_an_alarm_that_is_open_fires_from_the_first_look_to_the_one_that_no_longer_finds_it():
    shown = Shown()
    assert shown.look() == ([], [])
    assert shown.look(RAISED, after=1) == (["TidemarkDrift"], [])
    assert shown.look(RAISED, SEVERE, after=1) == (["TidemarkDrift", "TidemarkSevereDrift"], [])
    assert shown.look(RAISED, SEVERE, after=1)[1] == []
    assert not shown.changed
    assert shown.look(after=1) == ([], ["TidemarkDrift", "TidemarkSevereDrift"])
    [drift, severe] = shown.desk.told()
    assert (drift.starts_at, severe.starts_at, drift.ends_at, severe.ends_at) == (NOW + 1, NOW + 2, NOW + 4, NOW + 4)
    assert drift.annotations["description"].startswith("Model loans, version 1, segment all, moved further than")


def test_what_has_ended_is_told_for_a_quarter_of_an_hour_and_then_forgotten():
    shown = Shown()
    shown.look(RAISED)
    shown.look()
    shown.judge()
    assert shown.look(after=RESOLVED_SECONDS)[1] == ["TidemarkDrift"]
    shown.judge()
    assert shown.look(after=1) == ([], [])


def test_one_that_comes_again_is_another_alert():
    shown = Shown()
    shown.look(RAISED)
    shown.look(after=1)
    assert shown.look(RAISED, after=1) == (["TidemarkDrift"], [])
    [again] = shown.desk.told()
    assert (again.starts_at, again.ends_at) == (NOW + 2, None)


def test_a_service_that_is_not_ready_neither_begins_nor_ends_anything():
    shown = Shown()
    assert shown.look(RAISED, ready=False) == ([], [])
    shown.look(RAISED)
    assert shown.look(ready=False, after=5) == (["TidemarkDrift"], [])
    assert not shown.changed
    shown.exporter.service(ServiceSnapshot())
    assert not shown.desk.look(shown.exporter.published, NOW)


def test_what_was_judged_too_long_ago_is_no_news_and_that_itself_is_told_five_minutes_later():
    shown = Shown()
    assert shown.look(RAISED, WRONG_TYPE) == (["TidemarkDrift", "TidemarkDataFault"], [])
    assert shown.look(RAISED, WRONG_TYPE, after=STALE_SECONDS)[0] == ["TidemarkDrift", "TidemarkDataFault"]
    assert shown.look(RAISED, WRONG_TYPE, after=1) == (["TidemarkDataFault"], ["TidemarkDrift"])
    assert "TidemarkNoData" not in shown.look(after=299)[0]
    assert "TidemarkNoData" in shown.look(after=1)[0]
    said = next(one for one in shown.desk.told() if one.labels["alertname"] == "TidemarkNoData").annotations["description"]
    assert said.startswith("Model loans was last judged 20m 1s ago (or not since the service started)")
    shown.judge()
    assert "TidemarkNoData" in shown.look(after=1)[1]


def test_a_model_that_was_never_judged_is_silent_from_the_start_on():
    shown = Shown()
    shown.exporter = Exporter(10_000)
    assert shown.look(after=STALE_SECONDS)[0] == []
    assert shown.look(after=1)[0] == []
    assert shown.look(after=300)[0] == ["TidemarkNoData"]


@pytest.mark.parametrize(("state", "age", "more", "name", "after"), [
    ("failed", NEWS_SECONDS - 1, {}, "TidemarkRetrainingFailed", 0), ("failed", NEWS_SECONDS, {}, None, 0),
    ("timed_out", 5, {}, "TidemarkRetrainingFailed", 0), ("promoted", 5, {}, None, 0),
    ("running", 7 * 3_600 + 1, {}, "TidemarkRetrainingStuck", 300), ("running", 7 * 3_600 - 301, {}, None, 300),
    ("approved", COLLECTING_SECONDS_MAX + 1, {}, "TidemarkRetrainingStuck", 300), ("approved", 8 * 3_600, {}, None, 300),
    ("proposed", PROPOSED_SECONDS_MAX + 1, {}, "TidemarkApprovalWaiting", 0), ("proposed", PROPOSED_SECONDS_MAX, {}, None, 0),
    ("refused", 5, {"champion": 0.9, "challenger": 0.8}, "TidemarkChallengerWorse", 0),
    ("refused", 5, {"champion": 0.8, "challenger": 0.9}, None, 0), ("refused", 5, {"champion": None}, None, 0),
])
def test_what_a_launch_needs_somebody_for_is_an_alert_of_its_launcher(state, age, more, name, after):
    shown = Shown()
    one = replace(launch(state, **more), steps=(("proposed", NOW - age), (state, NOW - age)))
    firing, _ = shown.look(launches=(one,))
    if after:
        assert firing == []
        shown.judge()
        firing, _ = shown.look(launches=(one,), after=after)
    assert firing == ([name] if name else [])
    if name:
        [told] = shown.desk.told()
        assert told.labels == {"alertname": name, "severity": "warning", "model": "loans", "launcher": "local", "job": "tidemark"}


def test_of_an_error_less_is_better():
    shown = Shown()
    one = replace(launch("refused", champion=1.0, challenger=2.0), steps=(("refused", NOW - 5),))
    assert shown.look(launches=(one,), metric="mean_absolute_error")[0] == ["TidemarkChallengerWorse"]
    assert "By mean_absolute_error the challenger reached 2, the champion 1." in shown.desk.told()[0].annotations["description"]
    assert Shown().look(launches=(replace(one, challenger=0.5),), metric="mean_absolute_error")[0] == []


def test_a_spent_budget_is_told_where_a_severe_drift_stands_and_nothing_is_under_way():
    refused = replace(launch("refused", champion=0.8, challenger=0.9), steps=(("refused", NOW - 5),))
    for alarms, left, latest, told in (((RAISED, SEVERE), 0, refused, True), ((RAISED,), 0, refused, False),
                                       ((RAISED, SEVERE), 1, refused, False), ((RAISED, SEVERE), None, refused, False),
                                       ((RAISED, SEVERE), 0, replace(refused, state="running"), False)):
        shown = Shown()
        standing = {"policy": None if left is None else replace(policy(), budget_remaining=left), "budget_remaining": left}
        shown.look(*alarms, **standing, launches=(latest,))
        firing, _ = shown.look(*alarms, **standing, launches=(latest,), after=600)
        assert ("TidemarkRetrainingBudgetSpent" in firing) == told


def test_a_refusal_that_is_commonest_in_the_last_five_minutes_is_named():
    shown = Shown()
    before = {("refused", "json"): 500, ("refused", "type"): 3, ("refused", "tombstone"): 0}
    shown.look(WRONG_TYPE, events=before)
    [told] = shown.desk.told()
    assert " Too many records are refused. Nothing is retrained" in told.annotations["description"]
    shown.look(WRONG_TYPE, events=before | {("refused", "type"): 9, ("refused", "tombstone"): 99}, after=30)
    assert " Too many records are refused. Mostly: type. Nothing" in shown.desk.told()[0].annotations["description"]
    for _ in range(12):
        shown.look(WRONG_TYPE, events=before | {("refused", "type"): 9}, after=30)
    assert " Too many records are refused. Nothing is retrained" in shown.desk.told()[0].annotations["description"]


def test_the_label_that_asks_for_a_retraining_is_on_severe_drift_only_and_only_where_it_is_wanted():
    for wanted in (True, False):
        shown = Shown(retrain_label=wanted)
        shown.look(RAISED, SEVERE)
        carried = [one.labels["alertname"] for one in shown.desk.told() if one.labels.get("tidemark_action") == "retrain"]
        assert carried == (["TidemarkSevereDrift"] if wanted else [])


def test_an_address_that_is_not_known_gives_no_link():
    shown = Shown(links=Links(grafana_url="http://grafana"))
    shown.look(RAISED)
    assert set(shown.desk.told()[0].annotations) == {"summary", "description", "dashboard_url"}


def test_the_columns_that_moved_are_named_and_what_stands_for_several_only_where_none_did():
    shown = Shown()
    shown.look(RAISED)
    said = shown.desk.told()[0].annotations["description"]
    assert re.search(r" Most: column_0 \(input\) by 1\.\d\d reference s\.d\., surely [01]\.\d\d or more, evidence \d+\.\d", said)
    assert "joint" not in said
    [(judged, _)] = shown.exporter.published.judged
    assert columns(judged, judged.score * 0) == " No column has a score now."
    faint = columns(judged, judged.score / judged.score.max() / 2)
    assert faint.count(";") == 2
    assert columns(None, None) == " No column has a score now."


def test_every_alert_that_the_service_gives_has_the_name_severity_and_wait_of_its_rule():
    rules = {alert.name: alert for alert in alerts(Settings())}
    for words in alert_words.ALL:
        rule = rules[words.name]
        assert (rule.severity, rule.words.waits, rule.words.summary) == (words.severity, words.waits, words.summary)


def test_times_and_durations_are_written_as_prometheus_writes_them():
    assert timestamp(1_763_800_000.5) == "2025-11-22 08:26:40.5 +0000 UTC"
    assert timestamp(0.25) == "1970-01-01 00:00:00.25 +0000 UTC"
    assert timestamp(1_763_800_000) == "2025-11-22 08:26:40 +0000 UTC"
    assert [duration(value) for value in (0, 0.5, 59.99, 60, 3_600, 90_061.9, -61, 1e-7)] == [
        "0s", "500ms", "59.99s", "1m 0s", "1h 0m 0s", "1d 1h 1m 1s", "-1m 1s", "100ns"]


def test_limits_follow_the_pane_and_the_deadline_of_a_monitor():
    desk = Desk({"loans": Limits("loans", 10, 20)}, LINKS, {}, started=NOW)
    shown = Shown()
    shown.desk = desk
    assert shown.look(RAISED, after=10)[0] == ["TidemarkDrift"]
    assert shown.look(RAISED, after=1)[0] == []
