"""Arrow messages on a real broker, through `tidemark run` that is killed: what the same events say as JSON, no more."""

from __future__ import annotations

import base64
import functools
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import yaml

from monitor.state.captured_rows import unpacked
from monitor.state.store import Store
from tests.conftest import Process, wait_until
from tests.crash import world
from tests.crash.arrow_world import TYPES, batch_of, events, run_as_json, told
from tests.unit.ingest.arrow_messages import message

LIMIT = 65_536


def hostile(rng, n):
    """(message, reason) of one that no event can be read from, each kind as often as the others."""
    good = message(batch_of(events()[0][:50]))
    rows = 3_000_000
    return (
        lambda: (message(pa.record_batch({"x": np.zeros(rows), "ts": np.full(rows, world.START_MS)}), compression="zstd"),
                 "too_large"),
        lambda: (message(pa.record_batch({"x": pa.nulls(1_000_000)})), "too_large"),
        lambda: (good[:rng.randrange(9, len(good) - 8)], "arrow"),
        lambda: (good + good, "arrow"),
        lambda: (message(pa.record_batch({"x": pa.array([1.0, 2.0])})), "timestamp"),
        lambda: (message(pa.record_batch({"x": pa.array(["no"] * 9), "ts": pa.array([world.START_MS] * 9)})), "type"),
        lambda: (json.dumps(events()[0][0]).encode(), "arrow"), lambda: (b"", "arrow"), lambda: (None, "tombstone"),
        lambda: (rng.randbytes(300), "arrow"), lambda: (b"\xff\xff\xff\xff" + rng.randbytes(300), "arrow"),
        lambda: (good + b" " * LIMIT, "too_large"),
    )[n % 12]()


@functools.cache
def messages():
    """Per partition: messages of one to sixty events, some with a bad row, every fifth followed by a hostile one; and of
    each partition what is to be refused, (offset, row) -> reason."""
    rng = random.Random(5)
    values, refused = {}, {}
    for partition, found in events().items():
        values[partition], refused[partition] = [], {}
        while found:
            n = rng.randint(1, 60)
            taken, found = found[:n], found[n:]
            offset = len(values[partition])
            if rng.random() < 0.2:
                row = rng.randrange(len(taken) + 1)
                taken = [*taken[:row], taken[0] | {"x": float("inf"), "id": f"bad-{offset}"}, *taken[row:]]
                refused[partition][offset, row] = "type"
            batches = [batch_of(taken[:7]), batch_of([]), batch_of(taken[7:])]
            values[partition].append(message(*batches, compression=rng.choice([None, "zstd", "lz4"])))
            if rng.random() < 0.2:
                value, reason = hostile(rng, len(refused[partition]))
                refused[partition][len(values[partition]), None] = reason
                values[partition].append(value)
            if rng.random() < 0.1:
                values[partition].append(message(schema=TYPES))
    return values, refused


def configured(folder, broker, topic, transport="kafka-python", **schema):
    path = world.configuration(folder, broker.bootstrap_servers, topic, promote=False)
    tree = yaml.safe_load(path.read_text())
    tree["limits"] = {"message_bytes": LIMIT, "open_panes": 40}
    tree["kafka"] |= {"poll_records": 20, "transport": transport}       # many turns, so that kills fall between them
    tree["monitors"][0]["schema"] |= schema
    tree["monitors"][0]["retrain"] |= {"collect_events": 10**9, "capture_seconds": 1}
    path.write_text(yaml.safe_dump(tree))
    return path


def read_all(folder, path, total, kills):
    """Run to the end of the topic, with SIGKILL `kills` times once some more records have been passed; what the state says."""
    def passed():
        found = world.state(folder)
        return sum(position[1] for position in found["positions"]) if found else 0

    for life in range(kills + 1):
        wanted = total if life == kills else passed() + 1
        process = Process(world.command(path), folder / "log.txt")
        try:
            def is_there(life=life, wanted=wanted, process=process):
                log = (folder / "log.txt").read_text()
                assert process.popen.poll() is None, log[-2_000:]
                return log.count("Watching.") > life and passed() >= min(wanted, total)

            wait_until(is_there, 120, f"{wanted} records being passed")
            if life == kills:
                process.popen.terminate()
                assert process.popen.wait(30) == 0
        finally:
            process.kill()
    assert "Traceback" not in (folder / "log.txt").read_text()
    return world.state(folder)


def captured(folder):
    """Every captured event, in files or waiting for one in the state."""
    store = Store(folder / "state.db", read_only=True)
    tables = [ds.dataset(folder / "captured" / "events", partitioning="hive").to_table()] if store.captures("m") else []
    tables += [unpacked(blob) for _, blob in store.pending_captures("m")]
    store.close()
    rows = [row for table in tables for row in table.select(["id", "timestamp", "x", "c", "y", "truth"]).to_pylist()]
    return sorted(rows, key=lambda row: (row["id"], row["timestamp"]))


@pytest.fixture(scope="module")
def as_json(tmp_path_factory, kafka_broker):
    """The run over the same events as JSON, in memory: its folder, and what its state says."""
    folder = tmp_path_factory.mktemp("json")
    run_as_json(configured(folder, kafka_broker, "t"))
    return folder, world.state(folder)


@pytest.mark.parametrize(("transport", "kills"), [("kafka-python", 2), ("librdkafka", 1)])
def test_arrow_messages_say_what_the_same_events_say_as_json_killed_or_not(
        transport, kills, as_json, tmp_path, kafka_broker, unique_name):
    folder, expected = as_json
    values, refused = messages()
    topic = kafka_broker.create_topic(unique_name("topic"), world.PARTITIONS)
    for partition, found in values.items():
        kafka_broker.produce(topic, found, partition=partition)
    total = sum(map(len, values.values()))
    found = read_all(tmp_path, configured(tmp_path, kafka_broker, topic, transport, format="arrow"), total, kills)
    assert told(found) == told(expected)
    assert told(found)["alarms"] != []
    assert [position[1] for position in found["positions"]] == [len(values[partition]) for partition in sorted(values)]
    counters, theirs = found["counters"][0], expected["counters"][0]
    assert counters["outcomes"]["counted"] == theirs["outcomes"]["counted"] == sum(map(len, events().values()))
    assert captured(tmp_path) == captured(folder)
    letters = {}
    for line in map(json.loads, (tmp_path / "dead.jsonl").read_text().splitlines()):
        letters[line["partition"], line["offset"], line.get("row")] = line      # a kill may write one again
    assert {place: letter["reason"] for place, letter in letters.items()} == {
        (partition, *place): reason for partition, places in refused.items() for place, reason in places.items()}
    for (partition, offset, row), letter in letters.items():
        value = None if letter["value"] is None else base64.b64decode(letter["value"])
        assert value == values[partition][offset] if row is None else json.loads(value)["id"] == f"bad-{offset}"
    assert sum(letter.get("events", 1) for letter in letters.values()) == sum(
        count for name, count in counters["outcomes"].items() if name.startswith("refused:"))
