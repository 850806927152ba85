"""Seeded schedules of crashes, duplicates and reordering over the whole pipeline in memory: the end is always the same.

A crash is an item of the input. After it the service is built again from its state file, on the same source, as a new
process would be. A failing schedule prints its seed.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from monitor.config import parse
from monitor.flow import Batch
from monitor.ingest.source import Crash, MemorySource, records
from monitor.service import build
from monitor.state.store import Store
from tests.crash import world

TOPIC = "t"


@pytest.fixture(scope="module")
def messages():
    return world.messages(back_at=36)               # the alarm is cleared, too: rings begin anew behind it


def configuration(folder):
    folder.mkdir(parents=True, exist_ok=True)
    path = world.configuration(folder, "127.0.0.1:9", TOPIC, promote=False)
    tree = yaml.safe_load(path.read_text())
    tree["service"]["dead_letters"] = "none"
    tree["monitors"][0]["retrain"]["collect_events"] = 10**9      # the launch waits: no process in these tests
    tree["monitors"][0]["detectors"] = [
        {"name": "psi"}, {"name": "cusum", "columns": ["x"], "sample_rows": 20, "window_panes": 128}]
    return parse(yaml.safe_dump(tree))


def schedule(messages, seed):
    """Batches of random sizes from random partitions, with repeated ones and crashes in between."""
    rng = np.random.default_rng(seed)
    following = dict.fromkeys(messages, 0)
    items = []
    while any(following[p] < len(messages[p]) for p in messages):
        parts = []
        for partition in rng.permutation(list(messages))[: rng.integers(1, 4)].tolist():
            start = following[partition]
            if start > 0 and rng.random() < 0.2:
                start = max(0, start - int(rng.integers(1, 400)))  # the broker gives some again
            values = messages[partition][start: start + int(rng.integers(1, 500))]
            if values:
                parts.append(records(TOPIC, partition, values, first_offset=start, times=[0] * len(values)))
                following[partition] = max(following[partition], start + len(values))
        items.append(Batch(parts=tuple(parts), assigned=frozenset((TOPIC, p) for p in messages)))
        if rng.random() < 0.25:
            items.append(Crash())
    return items


def run(folder, items):
    """Run to the end through every crash; what the state file then says."""
    source = MemorySource(items)
    now = iter(range(10**9))
    crashes = 0
    while True:
        stages = build(configuration(folder), source=source, clock=lambda: float(next(now)))
        try:
            stages.run()
            break
        except Crash:
            crashes += 1
        finally:
            stages.store.close()
    found = world.state(folder)
    found["launches"] = [(launch["id"], launch["state"], launch["decided_at"], launch["reason"]) for launch in found["launches"]]
    return found, crashes


@pytest.fixture(scope="module")
def undisturbed(messages, tmp_path_factory):
    items = [item for item in schedule(messages, 0) if not isinstance(item, Crash)]
    return run(tmp_path_factory.mktemp("undisturbed"), items)[0]


def test_the_undisturbed_run_raises_one_alarm_and_decides_one_launch(undisturbed):
    assert [alarm["state"] for alarm in undisturbed["alarms"] if not alarm["cause"]] == ["raised", "severe", "cleared"]
    assert len(undisturbed["launches"]) == 1
    assert len(undisturbed["samples"]) > 20         # rows that a further detector looks back at


@pytest.mark.parametrize("seed", range(1, 13))
def test_whatever_the_schedule_of_crashes_the_state_is_that_of_an_undisturbed_run(seed, messages, undisturbed, tmp_path):
    found, crashes = run(tmp_path, schedule(messages, seed))
    assert crashes > 0
    assert found == undisturbed, f"seed {seed}"


def test_captured_events_are_exactly_the_counted_ones(messages, tmp_path):
    import pyarrow.parquet as pq

    run(tmp_path, schedule(messages, 5))
    table = pq.read_table(tmp_path / "captured" / "events" / "model=m")
    ids = [value for value in table["id"].to_pylist() if value != "end"]
    wanted = [event["id"] for part in messages.values() for value in part if not value.startswith(b'{"ts": 1,')
              for event in [json.loads(value)] if event["id"] != "end"]
    assert sorted(ids) == sorted(wanted)
    store = Store(tmp_path / "state.db")
    named = {captured.file for captured in store.captures("m")}
    store.close()
    root = tmp_path / "captured"
    assert {str(path.relative_to(root)) for path in (root / "events").rglob("*") if path.is_file()} == named
