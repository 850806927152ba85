"""Real streams through the real service: census predictions on a real broker, INSECTS from a file.

What must and must not happen, and at which rows, is fixed by the data's known change points (see the cards of the shared
data). Thresholds are the defaults: one false alarm in 30 days of one-minute panes, shifts below 0.1 s.d. ignored.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from monitor.cli import main
from tests.conftest import Process, wait_until

START_MS = 1_767_225_600_000
REFERENCE_ROWS, PANE_ROWS = 55_535, 250
PARTITIONS = 4
FIT = ["--label", "employed", "--category", "prediction", "--prediction", "prediction", "--score", "predicted_probability",
       "--timestamp", "ts", "--quiet", "--model", "employment", "--version", "7"]
TRAINER = "import os, time; print('training', flush=True); time.sleep(1); raise SystemExit('no model: this is a test')"


def with_times(table: pa.Table, pane_rows: int) -> pa.Table:
    """The rows in order with event times such that `pane_rows` of them fall into a minute."""
    table = table.drop_columns([name for name in ("row", "shuffled_row", "year") if name in table.column_names])
    return table.append_column("ts", pa.array(START_MS + np.arange(table.num_rows) * (60_000 // pane_rows)))


def produce(broker: str, topic: str, table: pa.Table) -> None:
    """Every row as one JSON event, round robin over the partitions."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker, "compression.type": "lz4", "linger.ms": 50,
                         "queue.buffering.max.messages": 500_000})
    encode = msgspec.json.Encoder().encode
    for batch in table.to_batches(10_000):
        for number, row in enumerate(batch.to_pylist()):
            producer.produce(topic, encode(row), partition=number % PARTITIONS)
        producer.poll(0)
    assert producer.flush(60) == 0


def configuration(folder: Path, broker: str, topic: str) -> Path:
    path = folder / "tidemark.yaml"
    path.write_text(yaml.safe_dump({
        "service": {"listen": "127.0.0.1:0", "state": f"sqlite:///{folder}/state.db", "dead_letters": f"file:{folder}/dead"},
        "reports": {"enabled": False},
        "kafka": {"bootstrap_servers": [broker], "group": topic, "idle_seconds": 3, "session_timeout_seconds": 6},
        "monitors": [{
            "model": "employment", "topic": topic, "reference": str(folder / "reference.json"),
            "schema": {"timestamp": "ts", "columns": {"employed": {"role": "label", "kind": "numeric"}}},
            "pane": {"seconds": 60, "lateness_seconds": 120},
            "retrain": {"launcher": {"type": "local", "command": ["{python}", "-c", TRAINER]},
                        "capture_uri": str(folder / "captured")},
        }],
    }))
    return path


def watched(folder: Path, kafka_broker, topic: str, order: str, shared_data: Path) -> dict[str, list]:
    """Fit on the first 20 %, stream the rest through a service process, return its alarms, decisions and launches."""
    table = pq.read_table(shared_data / "census_employment_ma.parquet")
    table = with_times(table.sort_by(order), PANE_ROWS)
    pq.write_table(table.slice(0, REFERENCE_ROWS), folder / "reference.parquet")
    assert main(["fit", str(folder / "reference.parquet"), "-o", str(folder / "reference.json"), *FIT]) == 0
    kafka_broker.create_topic(topic, PARTITIONS)
    produce(kafka_broker.bootstrap_servers, topic, table.slice(REFERENCE_ROWS))
    config = configuration(folder, kafka_broker.bootstrap_servers, topic)
    service = Process([sys.executable, "-m", "monitor.cli", "run", "-c", config], folder / "log.txt")
    try:
        def read_all():
            assert service.popen.poll() is None, (folder / "log.txt").read_text()[-2000:]
            found = state(folder)
            is_over = all(launch["state"] == "failed" for launch in found["launches"])
            return found if found["events"] == table.num_rows - REFERENCE_ROWS and not found["open"] and is_over else None

        found = wait_until(read_all, 240, "all events decided")
        service.popen.send_signal(signal.SIGTERM)
        assert service.popen.wait(60) == 0
    finally:
        service.stop()
    return found


def state(folder: Path) -> dict:
    if not (folder / "state.db").exists():
        return {"events": 0, "open": 0, "launches": []}
    db = sqlite3.connect(f"file:{folder}/state.db?mode=ro", uri=True, timeout=10)
    try:
        events, still_open = db.execute("SELECT coalesce(sum(events), 0), coalesce(sum(1 - decided), 0) FROM panes").fetchone()
        tables = {name: [json.loads(row[0]) for row in db.execute(f"SELECT document FROM {name}")]
                  for name in ("alarms", "decisions", "launches")}
    except sqlite3.OperationalError:
        return {"events": 0, "open": 0, "launches": []}
    finally:
        db.close()
    return {"events": events, "open": still_open, **tables}


def last_row(alarm: dict, pane_rows: int = PANE_ROWS) -> int:
    """The last row that the deciding pane holds."""
    return round((alarm["at"] * 1000 - START_MS) / 60_000 * pane_rows) - 1


@pytest.mark.timeout(500)
def test_the_census_block_is_severe_in_its_first_panes_and_launches_once(tmp_path, kafka_broker, unique_name, shared_data):
    found = watched(tmp_path, kafka_broker, unique_name("census"), "row", shared_data)
    raised, severe = (next(a for a in found["alarms"] if a["state"] == state) for state in ("raised", "severe"))
    assert 137_911 <= last_row(raised) <= 140_000
    assert "relationship" in [mover["column"] for mover in raised["movers"]]
    assert 202_404 <= last_row(severe) <= 202_404 + 2 * PANE_ROWS
    assert severe["movers"][0]["column"] == "relationship"
    assert [alarm["state"] for alarm in found["alarms"]].count("severe") == 1
    assert [(d["outcome"], d["reason"]) for d in found["decisions"]] == [("launch", "")]
    assert len(found["launches"]) == 1


@pytest.mark.timeout(500)
def test_the_census_in_shuffled_order_is_never_severe(tmp_path, kafka_broker, unique_name, shared_data):
    found = watched(tmp_path, kafka_broker, unique_name("shuffled"), "shuffled_row", shared_data)
    assert [(alarm["state"], alarm["kind"]) for alarm in found["alarms"]] == [("raised", "quality")]
    (alarm,) = found["alarms"]
    assert alarm["movers"][0]["column"] == "age"
    assert 137_911 <= last_row(alarm) <= 137_911 + 11 * PANE_ROWS
    assert found["launches"] == []


def test_insects_alarms_where_they_change_and_never_retrains(tmp_path, shared_data, capsys):
    table = with_times(pq.read_table(shared_data / "insects_gradual_balanced.parquet").drop_columns(["insect_class"]), 50)
    pq.write_table(table.slice(0, 4_830), tmp_path / "reference.parquet")
    pq.write_table(table.slice(4_830), tmp_path / "rest.parquet")
    assert main(["fit", str(tmp_path / "reference.parquet"), "-o", str(tmp_path / "reference.json"), "--model", "insects",
                 "--timestamp", "ts", "--quiet"]) == 0
    (tmp_path / "tidemark.yaml").write_text(yaml.safe_dump({
        "files": {"paths": [str(tmp_path / "rest.parquet")]},
        "monitors": [{"model": "insects", "topic": "insects", "reference": str(tmp_path / "reference.json"),
                      "schema": {"timestamp": "ts"}, "pane": {"seconds": 60, "lateness_seconds": 0},
                      "retrain": {"launcher": {"type": "local", "command": ["true"]}}}],
    }))
    capsys.readouterr()
    assert main(["replay", "-c", str(tmp_path / "tidemark.yaml"), str(tmp_path / "rest.parquet"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = [(alarm["state"], last_row(alarm, 50)) for alarm in found["alarms"] if alarm["kind"] == "drift"]
    assert rows[0][0] == "raised"
    assert 10_000 <= rows[0][1] <= 11_700
    assert next(row for state, row in rows if state == "severe") <= 11_700
    assert "cleared" not in [state for state, _ in rows]
    assert {(d["outcome"], d["reason"]) for d in found["decisions"]} == {("no", "reference_inadequate")}
