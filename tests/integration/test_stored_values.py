"""What of the events is stored where: everything that a shadow needs, and with `histograms_only` no value at all."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.dataset as ds
import pytest
import yaml

from monitor.config import parse
from monitor.flow import Batch
from monitor.ingest.source import MemorySource, records
from monitor.service import build
from monitor.state.store import Store
from tests.crash import world

TOPIC, SECRET = "t", "hush-hush-level"


def messages():
    rng = np.random.default_rng(1)
    for n in range(3_000):
        yield json.dumps({"id": f"person-{n}", "ts": world.START_MS + 20 * n, "x": 1234.5 + rng.normal(), "truth": "1",
                          "c": SECRET if n % 10 == 0 else "a", "y": "0", "shadow": "1" if n > 1_000 else None}).encode()
    yield b'{"id": "person-broken", "ts": "' + SECRET.encode()


def run(folder, **changes):
    path = world.configuration(folder, "127.0.0.1:9", TOPIC, promote=True)
    tree = yaml.safe_load(path.read_text())
    tree["service"]["dead_letters"] = "none"
    tree["monitors"][0] |= {name: value for name, value in changes.items() if name != "retrain"}
    tree["monitors"][0]["retrain"] |= {"collect_events": 10**9, **changes.get("retrain", {})}
    values = list(messages())
    batches = [Batch(parts=(records(TOPIC, 0, values[start: start + 500], first_offset=start, times=[0] * len(values)),),
                     assigned=frozenset({(TOPIC, 0)})) for start in range(0, len(values), 500)]
    stages = build(parse(yaml.safe_dump(tree)), source=MemorySource(batches))
    stages.run()
    stages.close()
    return stages


def everything_written(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in (
        "reference.json", "tidemark.yaml")}


@pytest.mark.parametrize("histograms_only", [True, False])
def test_with_histograms_only_no_value_of_an_event_is_in_any_file(tmp_path, histograms_only):
    changes = {"histograms_only": True, "retrain": {"data_uri": "/data"}} if histograms_only else {}
    stages = run(tmp_path, **changes)
    assert stages.panes.streams["m"].outcomes["counted"] == 3_000
    assert any(alarm.state == "severe" for alarm in stages.alarms)
    found = [path.name for path, content in everything_written(tmp_path).items()
             if SECRET.encode() in content or b"person-" in content]
    assert (found == []) == histograms_only
    store = Store(tmp_path / "state.db")
    assert (store.captures("m") == [] == store.pending_captures("m")) == histograms_only
    assert (store._db.execute("SELECT count(*) FROM samples").fetchone()[0] == 0) or not histograms_only
    (launch,) = stages.trigger.ledger.launches.values()
    store.close()
    assert (launch.state == "approved", launch.data_uri) == ((False, "/data") if histograms_only else (True, ""))


def test_the_challengers_answers_in_shadow_are_captured_and_are_no_label_of_the_trainer(tmp_path):
    stages = run(tmp_path, retrain={"shadow": {"prediction": "shadow"}})
    table = ds.dataset(tmp_path / "captured" / "events", partitioning="hive").to_table()
    assert table["shadow"].null_count == 1_001
    assert stages.captures["m"].labelled_since(0) == 3_000
    assert [column.name for column in stages.retraining._labels["m"]] == ["truth"]
    found = stages.captures["m"].events_since(world.START_MS + 20 * 2_990, ["truth", "y", "shadow"])
    assert found.to_pylist()[0] == {"truth": "1", "y": "0", "shadow": "1", "id": "person-2990",
                                    "timestamp": world.START_MS + 20 * 2_990}


def test_a_share_and_days_of_the_configuration_reach_the_capture(tmp_path):
    stages = run(tmp_path, retrain={"capture_share": 0.25, "capture_days": 3, "capture_seconds": 60})
    capture = stages.captures["m"]
    # 750 expected of 3,000; 5 standard errors
    assert abs(sum(captured.rows for captured in capture.files) - 750) < 5 * np.sqrt(3_000 * 0.25 * 0.75)
    assert (capture.days_max, capture.seconds, capture.waiting) == (3, 60, 0)
