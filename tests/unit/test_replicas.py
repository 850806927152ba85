"""What several replicas cannot do is refused before anything starts; what each model falls on never changes."""

from __future__ import annotations

import pytest

from monitor.config import parse
from monitor.errors import ConfigError
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


RETRAIN = ", retrain: {launcher: {type: local, command: [x]}, promote: {type: file, path: p.json}}"


@pytest.mark.parametrize(("options", "words"), [
    ({"kafka": ", transport: librdkafka"}, "kafka.transport: expected kafka-python"),
    ({"monitor": RETRAIN}, r"monitors\[0\].retrain.promote: expected none"),
    ({"more": "reports: {enabled: true}"}, "reports.enabled"),
    ({"more": 'alertmanager: {urls: ["http://127.0.0.1:9093"]}'}, "alertmanager.urls"),
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


def test_the_partition_of_a_model_is_the_same_for_ever():
    assert [partition_of(model, 8) for model in ("m", "employment", "fraud")] == [0, 0, 2]
