"""What several replicas cannot do is refused before anything starts; what each model falls on never changes."""

from __future__ import annotations

import pytest

from monitor.alert_limits import STALE_SECONDS
from monitor.commands.check_config import shared
from monitor.config import parse
from monitor.errors import ConfigError
from monitor.expose.alert_desk import Desk
from monitor.expose.alert_facts import Links
from monitor.expose.exporter import Exporter
from monitor.expose.snapshot import MonitorStatus, OpenAlarm, ServiceSnapshot
from monitor.replicas import partition_of, refuse_unsupported

BASE = """
service: {{state: "sqlite:///state.db", replicas: {{}}}}
kafka: {{bootstrap_servers: ["127.0.0.1:9092"]{kafka}}}
monitors:
  - {{model: m, topic: t, reference: r.json{monitor}}}
{more}
"""


def config(kafka="", monitor="", more=""):
    return parse(BASE.format(kafka=kafka, monitor=monitor, more=more))


def test_replicas_are_off_unless_they_are_asked_for():
    text = BASE.format(kafka="", monitor="", more="").replace(", replicas: {}", "")
    assert parse(text).service.replicas is None
    assert config().service.replicas.partitions == 8
    refuse_unsupported(config())


@pytest.mark.parametrize(("options", "words"), [
    ({"kafka": ", transport: librdkafka"}, "kafka.transport: expected kafka-python"),
    ({"more": "reports: {enabled: true}"}, "reports.enabled"),
])
def test_what_needs_one_process_is_refused_beside_replicas(options, words):
    with pytest.raises(ConfigError, match=words):
        refuse_unsupported(config(**options))


def test_files_are_refused_beside_replicas():
    brokers = 'kafka: {bootstrap_servers: ["127.0.0.1:9092"]}'
    text = BASE.format(kafka="", monitor="", more="files: {paths: [a.parquet]}").replace(brokers, "")
    with pytest.raises(ConfigError, match=r"files\.paths"):
        refuse_unsupported(parse(text))


def test_more_models_on_one_topic_than_a_note_beside_an_offset_holds_are_refused():
    more = "\n".join(f"  - {{model: model-with-a-rather-long-name-{i}, topic: t, reference: r.json}}" for i in range(100))
    with pytest.raises(ConfigError, match="101 models on 't'"):
        refuse_unsupported(config(more=more))


def test_promotion_and_alerts_of_their_own_are_not_refused_beside_replicas():
    refuse_unsupported(config(
        monitor=", retrain: {launcher: {type: local, command: [x]}, promote: {type: file, path: p.json}}",
        more='alertmanager: {urls: ["http://127.0.0.1:9093"]}'))


def test_check_config_says_that_the_launches_in_flight_are_bounded_for_each_partition():
    more = "  - {model: fraud, topic: u, reference: r.json, retrain: {launcher: {type: local, command: [x]}}}"
    both = config(monitor=", retrain: {launcher: {type: local, command: [x]}}", more=more)
    assert f"so up to {2 * both.limits.launches} launches may be in flight in all" in "\n".join(shared(both))
    assert "Warning" not in "\n".join(shared(config(monitor=", retrain: {launcher: {type: local, command: [x]}}")))
    assert shared(parse(BASE.format(kafka="", monitor="", more="").replace(", replicas: {}", ""))) == []


def looked(desk, exporter, now, *models):
    """Names of what fires, and of what ended, where these models are shown with an alarm that is open."""
    opened = {(model, "1", "all", "drift", "columns", "raised"): OpenAlarm(2, 60.0) for model in models}
    exporter.service(ServiceSnapshot(ready=True, monitors=tuple(MonitorStatus(model, "1") for model in models),
                                     open_alarms=opened))
    desk.look(exporter.published, now)
    told = desk.told()
    return [one.labels["alertname"] for one in told if one.ends_at is None], [one for one in told if one.ends_at is not None]


def test_of_a_model_that_another_replica_took_no_alert_is_told_as_over():
    exporter = Exporter(1_000)
    mine, alone = (Desk({}, Links(), {}, started=1e6, shared=shared) for shared in (True, False))
    for desk in (mine, alone):
        assert looked(desk, exporter, 1e6, "m")[0] == ["TidemarkDrift"]
    assert looked(mine, exporter, 1e6 + 1) == ([], [])
    assert len(looked(alone, exporter, 1e6 + 1)[1]) == 1


def test_a_model_that_was_taken_over_is_told_of_before_its_next_pane_is_judged():
    exporter, later = Exporter(1_000), 1e6 + 7 * 86_400
    desk = Desk({}, Links(), {}, started=1e6, shared=True)
    assert looked(desk, exporter, later, "m") == (["TidemarkDrift"], [])
    assert looked(desk, exporter, later + STALE_SECONDS + 1, "m")[0] == []        # but not for ever on the word of another
    assert looked(desk, exporter, later + STALE_SECONDS + 400, "m")[0] == ["TidemarkNoData"]


def test_the_partition_of_a_model_is_the_same_for_ever():
    assert [partition_of(model, 8) for model in ("m", "employment", "fraud")] == [0, 0, 2]
