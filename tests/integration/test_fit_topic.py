"""`tidemark fit --topic` on a real broker: the newest events exactly, whatever a message is, and one line for what is none."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pyarrow as pa
import pytest
import yaml

from detectors.reference import Reference
from monitor.cli import main
from monitor.config import Kafka, Limits
from monitor.errors import ConfigError
from monitor.ingest import span
from monitor.ingest.span import read_span
from tests.unit.ingest.arrow_messages import message

START_MS = 1_767_225_600_000


def batch(numbers, **more):
    return pa.record_batch({"n": pa.array(numbers, pa.int64())} | more)


def numbers(found):
    return np.asarray(found.data.columns["n"], float).tolist()


def test_a_span_is_the_newest_objects_in_the_order_of_time(kafka_broker, unique_name):
    topic = kafka_broker.create_topic(unique_name("topic"), partitions=2)
    kafka_broker.produce(topic, [b'{"n": 0}', b"not json", b'{"n": 2}', None], partition=0, times=[10, 20, 30, 40])
    kafka_broker.produce(topic, [b'{"n": 1}', b'{"n": NaN}', b"[3]"], partition=1, times=[15, 35, 36])
    told = []
    found = read_span(Kafka(bootstrap_servers=[kafka_broker.bootstrap_servers]), topic, 100, told.append)
    assert json.dumps(found.data.columns["n"]) == "[0, 1, 2, NaN]"
    assert told[-1] == 4
    assert re.match(r"3 records left out \(2 json, 1 tombstone\); the first is partition \d offset \d: ", found.left_out)


@pytest.mark.parametrize("form", ["json", "arrow"])
def test_the_newest_events_come_exactly_also_from_partitions_that_are_not_alike(form, kafka_broker, unique_name):
    rng = random.Random(3)
    kafka = Kafka(bootstrap_servers=[kafka_broker.bootstrap_servers])
    topic = kafka_broker.create_topic(unique_name("topic"), partitions=3)
    expected, written = [], {0: ([], []), 1: ([], []), 2: ([], [])}
    for at in range(1500):                          # most events go to one partition, and one has none of the newest
        partition = rng.choices([0, 1, 2], (20, 1, 0 if at > 900 else 5))[0]
        rows = [10 * at + row for row in range(rng.choice([0, 1, 3, 7]) if form == "arrow" else 1)]
        values, times = written[partition]
        if form == "json":
            values.append(json.dumps({"n": rows[0]}).encode())
        else:
            cut = rng.randint(0, len(rows))
            values.append(message(batch(rows[:cut]), batch(rows[cut:]), compression=rng.choice([None, "zstd"])))
        if at % 50 == 49:
            values[-1], rows = values[-1][:-20] or b"{", []
        times.append(START_MS + at)
        expected += rows
    for partition, (values, times) in written.items():
        kafka_broker.produce(topic, values, partition=partition, times=times)
    for events in (1, 2, 5, 500, len(expected) - 1, len(expected) + 1):
        assert numbers(read_span(kafka, topic, events, form=form)) == expected[-events:]


def test_a_reference_of_arrow_messages_is_that_of_the_same_events_as_json_and_its_entry_is_accepted(
        kafka_broker, unique_name, tmp_path, capsys):
    rng = np.random.default_rng(4)
    events = [{"ts": START_MS + n, "features": {"age": float(rng.normal()), "sex": "fm"[n % 2]}, "vec": [float(n % 5), 1.0],
               "note": None if n % 7 == 0 else f"level {n % 4}", "y": str(n % 3)} for n in range(2_400)]
    types = pa.schema([
        ("ts", pa.timestamp("ms", tz="UTC")), ("features", pa.struct([("age", pa.float64()), ("sex", pa.string_view())])),
        ("vec", pa.list_(pa.float64(), 2)), ("note", pa.dictionary(pa.int8(), pa.string())), ("y", pa.large_string())])
    older = pa.schema([field for field in types if field.name != "note"])           # the producer of the first messages
    topics = {form: kafka_broker.create_topic(unique_name(form), 2) for form in ("json", "arrow")}
    for first in range(0, len(events), 200):
        schema = older if first < 600 else types
        few = [{name: event[name] for name in schema.names} for event in events[first:first + 200]]
        times, partition = [START_MS + first], first // 200 % 2
        stamped = [event | {"ts": pa.scalar(event["ts"], types.field("ts").type).as_py()} for event in few]
        kafka_broker.produce(topics["arrow"], [message(pa.RecordBatch.from_pylist(stamped, schema=schema))],
                             partition=partition, times=times)
        kafka_broker.produce(topics["json"], [json.dumps(event).encode() for event in few], partition=partition,
                             times=times * len(few))
    kafka_broker.produce(topics["arrow"], [b"\xff\xff\xff\xffno", None], partition=1, times=[START_MS + 9_000] * 2)
    digests, entries = {}, {}
    for form, topic in topics.items():
        path = tmp_path / f"{form}.json"
        assert main(["fit", "--topic", topic, "--bootstrap-servers", kafka_broker.bootstrap_servers, "--events", "2100",
                     "--format", form, "-o", str(path), "--model", "m", "--timestamp", "ts", "--prediction", "y",
                     "--category", "note"]) == 0
        said = capsys.readouterr()
        reference, entries[form] = Reference.load(path), yaml.safe_load(said.out)
        assert reference.events == 2100
        digests[form] = reference.digest
        words = "2 records left out (1 arrow, 1 tombstone); the first is partition 1 offset 6: "
        assert (words in said.err) == (form == "arrow")
        config = tmp_path / "tidemark.yaml"
        config.write_text(yaml.safe_dump(entries[form] | {"kafka": {"bootstrap_servers": [kafka_broker.bootstrap_servers]}}))
        assert main(["check-config", "-c", str(config)]) == 0
        capsys.readouterr()
    assert digests["arrow"] == digests["json"]
    schemas = {form: entry["monitors"][0]["schema"] for form, entry in entries.items()}
    assert schemas["arrow"] == {"format": "arrow"} | schemas["json"]


def test_messages_of_another_format_and_bombs_are_left_out_in_one_line(kafka_broker, unique_name, tmp_path, capsys):
    topic = kafka_broker.create_topic(unique_name("topic"))
    bomb = message(pa.record_batch({"n": np.zeros(3_000_000)}), compression="zstd")
    kafka_broker.produce(topic, [bomb, message(batch([1, 2]))[:-30], b'{"n": 3}'])
    kafka = Kafka(bootstrap_servers=[kafka_broker.bootstrap_servers])
    found = read_span(kafka, topic, 10, form="arrow")
    assert len(found.data) == 0
    assert found.left_out.startswith("3 records left out (2 arrow, 1 too_large); the first is partition 0 offset 0: 3000000 rows")
    assert main(["fit", "--topic", topic, "--bootstrap-servers", kafka_broker.bootstrap_servers, "--format", "arrow",
                 "-o", str(tmp_path / "r"), "--model", "m"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tidemark fit: ")]
    assert line.startswith(f"tidemark fit: --topic: expected Arrow messages of a row or more in {topic!r}, got none: 3 records")
    assert line.endswith("; produce events, or give files")


def test_arrow_messages_read_as_json_are_refused_with_the_flag_that_reads_them(kafka_broker, unique_name, tmp_path, capsys):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, [message(batch([1, 2]))])
    assert main(["fit", "--topic", topic, "--bootstrap-servers", kafka_broker.bootstrap_servers, "-o", str(tmp_path / "r"),
                 "--model", "m"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tidemark fit: ")]
    assert line.endswith("offset 0: it looks like an Arrow message, which --format arrow reads; produce events, or give files")


def test_events_that_take_more_than_may_be_held_are_refused_in_one_line_and_fewer_are_read(
        kafka_broker, unique_name, monkeypatch):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, [message(batch([n], text=pa.array(["x" * 100_000])), compression="zstd") for n in range(60)])
    kafka = Kafka(bootstrap_servers=[kafka_broker.bootstrap_servers])
    monkeypatch.setattr(span, "KEPT_BYTES", 2 << 20)
    with pytest.raises(ConfigError, match=r"^--events: expected events of at most 2 MiB, got more in the newest \d+; ask for"):
        read_span(kafka, topic, 50, form="arrow")
    found = read_span(kafka, topic, 15, form="arrow", limits=Limits(unpacked_bytes=150_000))
    assert numbers(found) == list(range(45, 60))
    assert len(read_span(kafka, topic, 15, form="arrow", limits=Limits(unpacked_bytes=50_000)).data) == 0


def test_brokers_that_ask_for_a_password_are_reached_by_the_configuration_that_is_being_written(
        kafka_broker, unique_name, tmp_path, capsys):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, [b'{"n": %d.5}' % (n % 40) for n in range(300)] + [b'{"n": "%s"}' % (b"9" * 3000)])
    (tmp_path / "password").write_text("alice-secret")
    tree = {"kafka": {"bootstrap_servers": [kafka_broker.secure_bootstrap], "security": {
        "protocol": "SASL_SSL", "mechanism": "PLAIN", "username": "alice", "password_file": str(tmp_path / "password"),
        "ca_file": str(kafka_broker.ca)}}, "limits": {"message_bytes": 2000}}
    (tmp_path / "tidemark.yaml").write_text(yaml.safe_dump(tree))                  # no monitor yet: its reference comes now
    flags = ["fit", "--topic", topic, "-c", str(tmp_path / "tidemark.yaml"), "-o", str(tmp_path / "r.json"), "--model", "m"]
    assert main(flags) == 0
    assert Reference.load(tmp_path / "r.json").events == 300
    assert "1 record left out (1 too_large)" in capsys.readouterr().err
    (tmp_path / "password").write_text("another")
    assert main(flags) == 1
    told = capsys.readouterr().err
    assert "kafka.security" in told
    assert "another" not in told


@pytest.mark.parametrize(("text", "flags", "words"), [
    ("kafka: {bootstrap_servers: ['a:1']}", ["--bootstrap-servers", "a:1"], "expected either it or --config, got both"),
    ("kafka: {bootstrap_servers: [a]}", [], r"kafka.bootstrap_servers\[0\]: expected HOST:PORT, got 'a'"),
    ("kafka: {bootstrap_server: [a]}", [], "kafka.bootstrap_server"),
    ("monitors: []", [], "kafka.bootstrap_servers: expected brokers, got none"),
])
def test_a_configuration_that_reaches_no_broker_is_refused_in_one_line(text, flags, words, tmp_path, capsys):
    (tmp_path / "tidemark.yaml").write_text(text)
    assert main(["fit", "--topic", "t", "-c", str(tmp_path / "tidemark.yaml"), "-o", str(tmp_path / "r.json"), "--model", "m",
                 *flags]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert re.search(words, line)
