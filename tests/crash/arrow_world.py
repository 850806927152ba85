"""The world of the crash tests as Arrow messages, what the same events say as JSON, and how a state is held against that."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from monitor.config import load
from monitor.flow import Batch
from monitor.ingest.source import MemorySource, records
from monitor.service import build
from tests.crash import world
from tests.unit.ingest.arrow_messages import message

TYPES = pa.schema([("id", pa.string()), ("ts", pa.timestamp("ms", tz="UTC")), ("x", pa.float64()),
                   ("c", pa.dictionary(pa.int8(), pa.string())), ("y", pa.large_string()), ("truth", pa.string())])


@functools.cache
def events() -> dict[int, list[dict[str, Any]]]:
    """The world's events per partition, without the ones that are no JSON."""
    return {partition: [json.loads(value) for value in values if value.endswith(b"}")]
            for partition, values in world.messages().items()}


def batch_of(found: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([event | {"ts": event["ts"] and pa.scalar(event["ts"], TYPES.field("ts").type).as_py()}
                                       for event in found], schema=TYPES)


def messages(most: int = 120) -> dict[int, list[bytes]]:
    """Per partition its messages: each of one to `most` events, of which a partition has 50 in a pane."""
    rng = random.Random(6)
    values: dict[int, list[bytes]] = {}
    for partition, found in events().items():
        values[partition] = []
        while found:
            n = rng.randint(1, most)
            values[partition].append(message(batch_of(found[:n])))
            found = found[n:]
    return values


def as_arrow(config: Path, **limits: int) -> Path:
    """The same configuration for these messages; a training never has enough of them."""
    tree = yaml.safe_load(config.read_text())
    tree["limits"] = limits
    tree["monitors"][0]["schema"]["format"] = "arrow"
    tree["monitors"][0]["retrain"]["collect_events"] = 10**9
    config.write_text(yaml.safe_dump(tree))
    return config


def run_as_json(config: Path) -> None:
    """The service over the world's events as JSON, in memory, with this configuration."""
    parts = tuple(records("t", partition, [json.dumps(event).encode() for event in found])
                  for partition, found in events().items())
    stages = build(load(config), source=MemorySource([Batch(
        parts=parts, assigned=frozenset(("t", partition) for partition in events()))]))
    stages.run()
    stages.close()


@functools.cache
def expected() -> dict[str, Any]:
    """What one service in memory tells of the same events as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        run_as_json(world.configuration(Path(folder), "127.0.0.1:9", "t", promote=False))
        found = world.state(Path(folder))
    assert found is not None
    return told(found)


def told(state: dict[str, Any]) -> dict[str, Any]:
    """What a state says that does not depend on the format of the messages, nor on when they were read."""
    counters = state["counters"][0]
    return {
        # The source in memory ends, and with it the last pane; that of a topic stays open.
        "panes": [(pane, events, profile) for _, pane, events, _, profile in state["panes"]],
        "clocks": [position[2] for position in state["positions"]],
        "alarms": [{name: alarm[name] for name in ("state", "kind", "since", "at", "episode")} for alarm in state["alarms"]
                   if alarm["kind"] == "drift"],
        "counted": counters["outcomes"]["counted"], "late": counters["late"]}
