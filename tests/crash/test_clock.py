"""The machine's clock is set forward and back by hours and days while the service runs: what it decides does not change.

Event time decides; the wall clock only says when something was done. What is waited for (checkpoints, idle partitions, files
of captured events) is measured by a clock that cannot be set, and a launch's times go on as if its machine's had not been.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from functools import cache
from itertools import pairwise
from random import Random

import msgspec
import pytest

from detectors.reference import Reference
from monitor.config import FilePromotion, LocalLauncher
from monitor.expose.inbox import Asked
from monitor.flow import FINAL_STATES, Batch, JobStatus
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


# ---- launches ------------------------------------------------------------------------------------------------------------

MINUTE = 60.0


class Machine:
    """Where it runs: a wall clock that is set, a clock that is not, and a training that takes so many minutes."""

    name = "local"

    def __init__(self, minutes):
        self.wall, self.elapsed, self.seconds, self.started, self.ended = world.START_MS / 1000, 1.0, minutes * MINUTE, None, 0

    def passes(self, seconds):
        self.wall, self.elapsed = self.wall + seconds, self.elapsed + seconds

    def start(self, launch):
        self.started = self.elapsed if self.started is None else self.started
        return "1"

    def status(self, launch):
        ran = self.elapsed - self.started
        return JobStatus("running") if ran < self.seconds else JobStatus("failed", "out of memory")

    def cancel(self, launch):
        self.ended += 1


def limited(folder):
    """Half an hour for a training, one for an answer, twenty minutes for serving to switch: less than most settings."""
    config = configuration(folder)
    (monitor,) = config.monitors
    retrain = msgspec.structs.replace(
        monitor.retrain, approval="manual", approval_hours=1.0, collect_events=1,
        launcher=LocalLauncher(command=["x"], deadline_hours=0.5),
        promote=FilePromotion(path=str(folder / "promoted.json"), settle_seconds=1200.0))
    return msgspec.structs.replace(config, monitors=[msgspec.structs.replace(monitor, retrain=retrain, detectors=[])])


def started(folder, machine, items=()):
    stages = build(limited(folder), source=MemorySource(items), clock=lambda: machine.wall, elapsed=lambda: machine.elapsed)
    stages.retraining.launchers["m"] = machine
    return stages


@pytest.fixture(scope="module")
def proposed(messages, tmp_path_factory):
    """A folder in whose state a launch waits for its answer."""
    folder = tmp_path_factory.mktemp("proposed")
    stages = started(folder, Machine(0), [item for item in schedule(messages, 0) if isinstance(item, Batch)])
    stages.run()
    stages.close()
    assert [launch["state"] for launch in world.state(folder)["launches"]] == ["proposed"]
    return folder


def story(proposed, folder, minutes, seed, answered=40):
    """The launch's states, what they are about, and how long it was in each, where the clock is set and the service killed."""
    shutil.copytree(proposed, folder)
    rng, machine, settings = Random(seed), Machine(minutes), 0
    stages = started(folder, machine)
    for minute in range(1, 200):
        if seed and rng.random() < 0.2:
            machine.wall, settings = machine.wall + rng.choice(JUMPS), settings + 1
            if rng.random() < 0.5:                  # killed before the setting was seen, or, below, right behind that
                stages.store.close()
                stages = started(folder, machine)
        if minute == answered:
            stages.inbox.put(Asked("approve", *stages.trigger.ledger.launches))
        stages.commit(Batch())
        stages.advance()
        if seed and rng.random() < 0.2:
            stages.store.close()
            stages = started(folder, machine)
        machine.passes(MINUTE)
        if all(launch.state in FINAL_STATES for launch in stages.trigger.ledger.launches.values()):
            break
    stages.commit(Batch(), now=True)
    stages.close()
    assert not seed or settings >= 3
    (launch,) = world.state(folder)["launches"]
    steps = launch["steps"]
    return ([state for state, _ in steps], launch["detail"], machine.ended,
            [round(after - before) for (_, before), (_, after) in pairwise(steps)])


@pytest.fixture(scope="module")
def undisturbed(proposed, tmp_path_factory):
    return cache(lambda minutes, answered: story(proposed, tmp_path_factory.mktemp("undisturbed") / "it", minutes, 0, answered))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("minutes", "answered", "end"), [
    (20, 40, "failed"),                             # within its deadline
    (999, 40, "timed_out"),                         # never ends by itself
    (20, 999, "refused"),                           # nobody answers
])
def test_launches_with_limits_shorter_than_the_jumps_end_as_in_a_run_without_them(
        minutes, answered, end, seed, proposed, undisturbed, tmp_path):
    found = story(proposed, tmp_path / "set", minutes, seed, answered)
    assert found[0][-1] == end
    assert found == undisturbed(minutes, answered), f"seed {seed}"


@pytest.mark.parametrize("jump", [0.0, -25 * HOUR, 25 * HOUR])
def test_serving_has_its_time_to_switch_and_data_is_kept_its_time_whatever_the_clock_is_set_to(jump, proposed, tmp_path):
    shutil.copytree(proposed, folder := tmp_path / "set")
    machine = Machine(0)
    stages = started(folder, machine)
    (launch,) = stages.trigger.ledger.launches.values()
    Reference.from_json(stages.judge.scans["m"].reference.to_json()).save(folder / "new.json")
    stages.trigger.ledger.put(replace(launch, state="promoted", steps=(*launch.steps, ("promoted", machine.wall)),
                                      new_version="2", reference_uri=str(folder / "new.json")))
    versions = []
    for minute in range(30):
        machine.wall += jump if minute == 5 else 0.0
        stages.commit(Batch())
        stages.advance()
        versions.append(stages.panes.streams["m"].version)
        machine.passes(MINUTE)
    assert versions.index("2") == 20
    assert stages._ended("m") == {launch.id: pytest.approx(machine.wall - 30 * MINUTE)}
    (shown,) = map(stages.clock.shown, stages.trigger.ledger.launches.values())
    assert shown.steps[-1][1] == pytest.approx(machine.wall - 30 * MINUTE)
    stages.close()
    db = sqlite3.connect(f"file:{folder}/state.db?mode=ro", uri=True)
    (stored,) = db.execute("SELECT value FROM meta WHERE key = 'clock'").fetchone()
    db.close()
    assert json.loads(stored)["set_by"] == jump
