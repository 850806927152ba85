"""The machine's clock is set forward and back by hours and days while the service runs: what it decides does not change.

Event time decides; the wall clock only says when something was done. What is waited for (checkpoints, idle partitions, files
of captured events) is measured by a clock that cannot be set.
"""

from __future__ import annotations

import sqlite3
from random import Random

import pytest

from monitor.flow import Batch
from monitor.ingest.source import Crash, MemorySource
from monitor.service import build
from tests.crash import world
from tests.crash.test_schedules import configuration, schedule

HOUR = 3600.0
JUMPS = (-30 * 24 * HOUR, -25 * HOUR, -2 * HOUR, -60.0, 60.0, 2 * HOUR, 25 * HOUR, 30 * 24 * HOUR)


class Clock:
    """A wall clock that jumps at drawn calls; a second passes at each call otherwise."""

    def __init__(self, seed, share):
        self.rng, self.share, self.now, self.jumps = Random(seed), share, world.START_MS / 1000, 0

    def __call__(self):
        self.now += 1.0
        if self.rng.random() < self.share:
            self.now = max(1.0, self.now + self.rng.choice(JUMPS))
            self.jumps += 1
        return self.now


def run(folder, items, clock):
    """To the end through every crash, on a steady clock for what is waited for."""
    source, steady = MemorySource(items), iter(range(10**9))
    while True:
        stages = build(configuration(folder), source=source, clock=clock, elapsed=lambda: float(next(steady)))
        try:
            stages.run()
            break
        except Crash:
            pass
        finally:
            stages.store.close()
    found = world.state(folder)
    found["launches"] = [(one["id"], one["state"], one["decided_at"], one["reason"]) for one in found["launches"]]
    return found


@pytest.fixture(scope="module")
def messages():
    return world.messages(back_at=36)


@pytest.fixture(scope="module")
def steady(messages, tmp_path_factory):
    return run(tmp_path_factory.mktemp("steady"), schedule(messages, 0), Clock(0, 0.0))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_clock_that_jumps_changes_no_count_no_alarm_no_decision_and_no_launch(seed, messages, steady, tmp_path):
    clock = Clock(seed, 0.3)
    found = run(tmp_path, schedule(messages, 0), clock)
    assert clock.jumps >= 10
    assert found == steady, f"seed {seed}"


@pytest.mark.parametrize("jump", [-24 * HOUR, 24 * HOUR])
def test_after_a_jump_checkpoints_go_on_and_no_partition_is_called_silent(jump, messages, tmp_path):
    steady, wall, set_by = iter(range(10**9)), iter(range(10**9)), [0.0]
    stages = build(configuration(tmp_path), source=MemorySource([]), elapsed=lambda: next(steady) / 100,
                   clock=lambda: world.START_MS / 1000 + next(wall) / 100 + set_by[0])
    batches = [item for item in schedule(messages, 0) if isinstance(item, Batch)][:30]
    offsets = []
    for number, batch in enumerate(batches):
        if number == 10:
            set_by[0] = jump
        stages.panes.add(batch, stages._decode(batch))
        for window in stages.panes.closed():
            scores = stages._scan(window)
            stages.publish(window, scores, stages._decide(window, scores))
        for _ in range(100):                        # a second passes: the next checkpoint is due
            next(steady)
        stages.commit(Batch())
        db = sqlite3.connect(f"file:{tmp_path}/state.db?mode=ro", uri=True)
        offsets.append(db.execute("SELECT sum(next_offset) FROM positions").fetchone()[0])
        db.close()
        assert all(silent is None or 0 <= silent < 60 for silent in [stages.panes.silent_seconds("m")])
    stages.store.close()
    assert offsets[-1] > offsets[12] > offsets[9]
    assert {alarm.cause for alarm in stages.alarms} <= {"", "wrong_type"}            # the refused ones are really there
