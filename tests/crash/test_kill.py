"""The service as a real process on a real broker, killed with SIGKILL between any two steps and started again.

Each is a fork of one that has imported everything (tests.crash.warm): three in four seconds of such a life are imports, which
test_random_kills and test_signals have in full.
"""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from tests.conftest import wait_until
from tests.crash import world
from tests.crash.killed import STEPS
from tests.crash.lives import Life, Warm

#: Which call of each step is the last one, in turn over the steps: early, in the middle, around the alarm.
CALLS = (1, 4, 31)
LAUNCH_STEPS = ("snapshot", "start")
READING_STEPS = tuple(step for step in STEPS if step not in (*LAUNCH_STEPS, "cutover", "advance"))


@pytest.fixture(scope="module")
def topic(kafka_broker):
    name = kafka_broker.create_topic("crash-input", world.PARTITIONS)
    for partition, values in world.messages().items():
        kafka_broker.produce(name, values, partition=partition)
    return name


class Service:
    """One state folder and the processes that work on it, one after the other."""

    def __init__(self, folder, kafka_broker, topic, warm, *, promote=False):
        self.folder, self.warm, self.number = folder, warm, 0
        self.config = world.configuration(folder, kafka_broker.bootstrap_servers, topic, promote=promote)
        self.total = sum(len(values) for values in world.messages().values())

    def start(self, kill=None):
        self.number += 1
        log = self.folder / f"log-{self.number}.txt"
        log.touch()
        pid = self.warm.fork(["run", "-c", str(self.config)], log, kill=kill)
        return Life(pid, os.pidfd_open(pid), log, warm=self.warm)

    def text(self):
        return (self.folder / f"log-{self.number}.txt").read_text()

    def run_until_killed(self, step, call):
        """Start with a kill at this call; whether it came to that before everything was done."""
        life = self.start((step, call))
        try:
            wait_until(lambda: life.is_over() or self.is_done(), 90, f"kill at {step} {call}")
            with contextlib.suppress(TimeoutError):     # done; the kill may come a moment later, after that very step
                wait_until(life.is_over, 1)
            is_killed = life.is_over()
        finally:
            life.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                wait_until(life.is_over, 5)
            life.signal(signal.SIGKILL)
            code = life.code()
        if is_killed:
            assert code == -signal.SIGKILL, self.text()[-2000:]
        return is_killed

    def run_to_the_end(self):
        life = self.start()

        def done():
            assert not life.is_over(), self.text()[-2000:]
            # A signal before the handlers are there would end the process as the system does.
            return "Watching." in self.text() and self.is_done()

        try:
            wait_until(done, 120, "everything read, judged and ended")
            life.signal(signal.SIGTERM)
            wait_until(life.is_over, 60, "the orderly end")     # how long it may take is for test_signals to say
        finally:
            life.signal(signal.SIGKILL)
            code = life.code()
        assert code == 0, self.text()[-2000:]
        return world.state(self.folder)

    def is_done(self):
        found = world.state(self.folder)
        if not found or sum(offset for _, offset, _ in found["positions"]) < self.total:
            return False
        return bool(found["launches"]) and all(
            launch["state"] in ("refused", "failed", "timed_out") or launch["cut_over_at"] for launch in found["launches"])

    def starts(self):
        notes = (self.folder / "captured" / "m" / "launches").glob("*/starts.txt")
        return [line for note in notes for line in note.read_text().split()]


@pytest.fixture(scope="module")
def warm():
    parent = Warm()
    yield parent
    parent.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, kafka_broker, topic, warm):
    service = Service(tmp_path_factory.mktemp("undisturbed"), kafka_broker, topic, warm)
    return service.run_to_the_end(), service


def comparable(found):
    """What must be equal byte for byte; a launch's wall-clock times may differ."""
    launches = [(launch["id"], launch["state"], launch["verdict"], launch["decided_at"]) for launch in found["launches"]]
    return {**{name: found[name] for name in ("panes", "positions", "counters", "alarms", "decisions")}, "launches": launches}


def test_an_undisturbed_run_counts_everything_once_and_launches_once(undisturbed):
    found, service = undisturbed
    (counters,) = found["counters"]
    assert counters["outcomes"] == {"counted": service.total - world.PANES, "refused:type": world.PANES}
    assert sum(events for _, _, events, _, _ in found["panes"]) == counters["outcomes"]["counted"]
    assert counters["late"] > 0
    assert [alarm["state"] for alarm in found["alarms"] if not alarm["cause"]][:2] == ["raised", "severe"]
    assert [launch["verdict"] for launch in found["launches"]] == ["better"]
    assert len(service.starts()) == 1


@pytest.mark.parametrize("step", READING_STEPS)
def test_killed_at_a_step_of_the_loop_the_final_state_is_that_of_an_undisturbed_run(
        step, undisturbed, tmp_path, kafka_broker, topic, warm):
    service = Service(tmp_path, kafka_broker, topic, warm)
    kills = [service.run_until_killed(f"{step}:{when}", call)
             for call, when in zip(CALLS, ("before", "after", "before"), strict=True)]
    assert kills[0]
    found = service.run_to_the_end()
    assert comparable(found) == comparable(undisturbed[0])
    assert len(service.starts()) == 1


@pytest.mark.parametrize("step", LAUNCH_STEPS)
def test_killed_around_a_launch_there_is_exactly_one_job(step, undisturbed, tmp_path, kafka_broker, topic, warm):
    service = Service(tmp_path, kafka_broker, topic, warm)
    assert service.run_until_killed(f"{step}:before", 1)
    service.run_until_killed(f"{step}:after", 1)
    assert comparable(service.run_to_the_end()) == comparable(undisturbed[0])
    assert len(service.starts()) == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_a_cut_over_it_happens_once_and_no_event_is_lost(
        when, tmp_path, kafka_broker, topic, warm):
    service = Service(tmp_path, kafka_broker, topic, warm, promote=True)
    assert service.run_until_killed(f"cutover:{when}", 1)
    found = service.run_to_the_end()
    (counters,) = found["counters"]
    assert counters["outcomes"] == {"counted": service.total - world.PANES, "refused:type": world.PANES}
    assert sum(events for _, _, events, _, _ in found["panes"]) == counters["outcomes"]["counted"]
    assert {version for version, *_ in found["panes"]} >= {"1"}
    assert [launch["state"] for launch in found["launches"]] == ["promoted"]
    assert [alarm["state"] for alarm in found["alarms"] if not alarm["cause"]].count("cleared") == 1
    assert len(service.starts()) == 1
