"""Data faults through the whole loop: a producer that breaks for good, one that breaks a little, one that falls silent."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from detectors.reference import Column, Reference
from monitor.config import parse
from monitor.flow import Batch
from monitor.ingest.source import MemorySource, records
from monitor.service import build

TOPIC, KEY = "t", ("t", 0)
START_MS, PER_PANE = 1_700_000_000_000, 50


class Memory(MemorySource):
    """A memory source of which everything was read."""

    def lag(self):
        return {KEY: 0}


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(1)
    reference = Reference.fit({"x": rng.normal(size=4_000), "y": rng.normal(size=4_000)},
                              (Column("x", "numeric"), Column("y", "numeric")), model="m", version="1")
    reference.save(tmp_path / "reference.json")
    return parse(yaml.safe_dump({
        "kafka": {"bootstrap_servers": ["127.0.0.1:9"], "idle_seconds": 30},
        "reports": {"enabled": False},
        "service": {"dead_letters": "none", "state": f"sqlite:///{tmp_path}/state.db"},
        "monitors": [{"model": "m", "topic": TOPIC, "reference": str(tmp_path / "reference.json"),
                      "pane": {"seconds": 1, "lateness_seconds": 0}, "schema": {"timestamp": "ts"}}]}))


def message(rng, i, broken=False):
    x = "none" if broken else round(float(rng.normal()), 5)
    return json.dumps({"ts": START_MS + i * 1000 // PER_PANE, "x": x, "y": round(float(rng.normal()), 5)}).encode()


def batches(messages, size=400, offset=0):
    cuts = [(offset + i, messages[i:i + size]) for i in range(0, len(messages), size)]
    return [Batch(parts=(records(TOPIC, 0, part, first_offset=first, times=[0] * len(part)),), assigned=frozenset({KEY}))
            for first, part in cuts]


def found(config, items, clock=lambda: 0.0):
    stages = build(config, source=Memory(items), clock=clock)
    try:
        stages.run()
        return stages.alarms, stages.exporter.scrape().decode()
    finally:
        stages.close()


def test_a_producer_that_breaks_for_good_is_noticed_though_no_pane_can_close(config):
    rng = np.random.default_rng(2)
    good, broken = [message(rng, i) for i in range(40 * PER_PANE)], [message(rng, i, broken=True) for i in range(150)]
    stages = build(config, source=Memory([*batches(good), *batches(broken, offset=len(good))]), clock=lambda: 0.0)
    try:
        for batch in stages.source:                 # not to its end, where every pane is closed
            if not batch.parts:
                continue
            stages.panes.add(batch, stages.decode(batch))
            for window in stages.panes.closed():
                scores = stages.judge(window)
                stages.publish(window, scores, stages._decide(window, scores))
            stages.commit(batch)
        assert [(alarm.cause, alarm.state, alarm.words) for alarm in stages.alarms] == [
            ("wrong_type", "raised", "100 records in a row were refused in one partition, reason type")]
    finally:
        stages.close()


def test_a_few_broken_records_in_a_hundred_are_one_alarm_that_is_stored_counted_and_cleared(config, tmp_path):
    rng = np.random.default_rng(3)
    values = [message(rng, i, broken=1_000 <= i < 2_000 and i % 20 == 0) for i in range(5_000)]
    alarms, text = found(config, batches(values))
    assert [(alarm.kind, alarm.cause, alarm.state) for alarm in alarms] == [
        ("quality", "wrong_type", "raised"), ("quality", "wrong_type", "cleared")]
    assert 'kind="quality",state="raised"} 1' in text
    again = build(config, source=Memory([]))
    try:
        assert again.alarms == alarms
        assert again.quality is not None
        assert again.quality.states["m"].wrong_type.episode == 1
        assert len(again.quality.histories["m"].panes) == 100
    finally:
        again.close()


def test_a_restart_in_the_middle_of_a_fault_raises_it_once(config):
    rng = np.random.default_rng(4)
    values = [message(rng, i, broken=i >= 1_000 and i % 20 == 0) for i in range(4_000)]
    found(config, batches(values[:2_000]))
    alarms, _ = found(config, batches(values[2_000:], offset=2_000))
    assert [(alarm.cause, alarm.state) for alarm in alarms] == [("wrong_type", "raised")]


def test_a_stream_that_falls_silent_is_noticed_by_the_clock(config):
    rng, now = np.random.default_rng(5), [0.0]
    silent = Batch(assigned=frozenset({KEY}), caught_up=frozenset({KEY}))

    def clock():
        now[0] += 0.5
        return now[0]

    items = [*batches([message(rng, i) for i in range(60 * PER_PANE)]), *[silent] * 200]
    alarms, _ = found(config, items, clock)
    assert [(alarm.cause, alarm.state) for alarm in alarms] == [("volume", "raised")]
    assert alarms[0].words.startswith("no events for 1")
