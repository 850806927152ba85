"""Several replicas on a real broker: what they count, decide and launch together is what one process does alone."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.conftest import wait_until
from tests.crash import world
from tests.replicas.replica_world import Nursery, Replicas, configuration

#: Kills of one run over three replicas; `TIDEMARK_REPLICA_KILLS=300` for a long one.
KILLS = int(os.environ.get("TIDEMARK_REPLICA_KILLS", "10"))
SEEDS = tuple(range(3))
TOTAL = sum(len(values) for values in world.messages().values())


def comparable(found):
    """What must be equal byte for byte; a launch's wall-clock times may differ."""
    launches = [(launch["id"], launch["state"], launch["verdict"], launch["decided_at"]) for launch in found["launches"]]
    return {**{name: found[name] for name in ("panes", "positions", "counters", "alarms", "decisions")}, "launches": launches}


@pytest.fixture(scope="module")
def topic(kafka_broker):
    name = kafka_broker.create_topic("replicas-input", world.PARTITIONS)
    for partition, values in world.messages().items():
        kafka_broker.produce(name, values, partition=partition)
    return name


@pytest.fixture(scope="module")
def nursery():
    """The process that all replicas of this module are forked from."""
    made = Nursery()
    yield made
    made.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory, kafka_broker, topic, nursery):
    """What one process with its own state file makes of the topic."""
    folder = tmp_path_factory.mktemp("alone")
    config = world.configuration(folder, kafka_broker.bootstrap_servers, topic, promote=False)
    number = nursery.ask("start", config, folder / "log.txt")

    def done():
        assert nursery.ask("poll", number) == "running", (folder / "log.txt").read_text()[-2000:]
        found = world.state(folder)
        return bool(found) and sum(offset for _, offset, _ in found["positions"]) == TOTAL and bool(found["launches"]) and all(
            launch["state"] == "refused" for launch in found["launches"])

    wait_until(done, 240, "one process is done")
    os.kill(int(number), signal.SIGKILL)
    wait_until(lambda: nursery.ask("poll", number) != "running", 30, "its end")
    return comparable(world.state(folder))


@pytest.fixture
def replicas_on(nursery, tmp_path, kafka_broker):
    """Makes replicas that read a topic, each time with a state topic and a group of their own; all are ended."""
    made = []

    def make(topic, **more):
        made.append(Replicas(nursery, tmp_path, configuration(
            tmp_path, kafka_broker.bootstrap_servers, topic, state_topic=f"state-{time.time_ns()}", **more)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def feed(kafka_broker, topic, step, steps):
    """Send one of `steps` equal pieces of every partition's messages."""
    for partition, values in world.messages().items():
        first, last = (len(values) * at // steps for at in (step, step + 1))
        kafka_broker.produce(topic, values[first:last], partition=partition)


def test_three_replicas_count_decide_and_launch_what_one_process_does(replicas_on, topic, alone):
    replicas = replicas_on(topic)
    for name in ("a", "b", "c"):
        replicas.start(name)
    found = replicas.wait_done(TOTAL, 240)
    assert replicas.stop_all() == [0, 0, 0]
    assert comparable(found) == alone
    assert len(replicas.trained()) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_random_moments_three_replicas_lose_nothing_and_do_nothing_twice(
        seed, replicas_on, kafka_broker, alone):
    rng = random.Random(seed)
    topic = kafka_broker.create_topic(f"replicas-killed-{time.time_ns()}", world.PARTITIONS)
    replicas = replicas_on(topic)
    for name in ("a", "b", "c"):
        replicas.start(name)
    for kill in range(KILLS):
        feed(kafka_broker, topic, kill, KILLS)                  # the stream goes on while replicas die
        until = time.monotonic() + rng.uniform(0.2, 3.0)
        wait_until(lambda until=until: time.monotonic() > until, 10)
        replicas.assert_running()
        name = rng.choice(sorted(replicas.running))
        replicas.kill(name)
        replicas.start(name)
    found = replicas.wait_done(TOTAL, 240)
    assert comparable(found) == alone
    assert len(replicas.trained()) == 1
    assert replicas.stop_all() == [0, 0, 0]


def test_a_replica_that_was_stopped_for_longer_than_its_session_does_no_harm_when_it_wakes(
        replicas_on, kafka_broker, alone):
    topic = kafka_broker.create_topic(f"replicas-stopped-{time.time_ns()}", world.PARTITIONS)
    replicas = replicas_on(topic)
    for name in ("a", "b", "c"):
        replicas.start(name)
    feed(kafka_broker, topic, 0, 3)
    (owner,) = wait_until(lambda: replicas.said("Deciding."), 120, "an owner")
    wait_until(lambda: replicas.state(), 60, "counts")
    os.kill(replicas.running[owner], signal.SIGSTOP)            # it holds partitions, the model and open transactions
    feed(kafka_broker, topic, 1, 3)
    wait_until(lambda: len(replicas.said("Deciding.")) > 1, 120, "another owner")
    feed(kafka_broker, topic, 2, 3)
    os.kill(replicas.running[owner], signal.SIGCONT)
    found = replicas.wait_done(TOTAL, 240)
    assert comparable(found) == alone
    assert len(replicas.trained()) == 1
    assert replicas.stop_all() == [0, 0, 0]


def test_owners_that_die_around_the_call_of_the_launcher_launch_once(replicas_on, topic, alone):
    replicas, died = replicas_on(topic), []
    for name, step in (("a", "start:before"), ("b", "start:after"), ("c", "snapshot:after")):
        replicas.start(name, step, 1)

    def done():
        for name in list(replicas.running):
            if (code := replicas.code(name)) is not None:
                assert code == -signal.SIGKILL, replicas.log(name).read_text()[-3000:]
                died.append(name)
                replicas.start(name)
        return replicas.is_done(TOTAL)

    wait_until(done, 300, "everything counted, judged and ended")
    assert died
    assert comparable(replicas.state()) == alone
    assert len(replicas.trained()) == 1


def test_a_replica_that_joins_takes_partitions_over_without_a_long_pause(replicas_on, kafka_broker):
    topic = kafka_broker.create_topic(f"replicas-joined-{time.time_ns()}", world.PARTITIONS)
    replicas = replicas_on(topic)
    replicas.start("a")
    messages = {partition: iter(values) for partition, values in world.messages().items()}
    moved: dict[int, float] = {}
    offsets: dict[int, int] = {}
    pauses: list[float] = []

    def turn():
        """Send one more event to each partition; note how long each stood still."""
        for partition, values in messages.items():
            kafka_broker.produce(topic, [next(values)], partition=partition)
        found, now = replicas.state(), time.monotonic()
        for partition, offset, _ in found["positions"] if found else ():
            if offset != offsets.get(partition):
                if partition in moved:
                    pauses.append(now - moved[partition])
                offsets[partition], moved[partition] = offset, now
        replicas.assert_running()

    def settled():
        turn()
        return len(moved) == world.PARTITIONS

    wait_until(settled, 120, "all partitions counted")
    pauses.clear()
    replicas.start("b")

    def shared():
        turn()
        return "Counting. partitions=[\"" in replicas.log("b").read_text() and moved.keys() == offsets.keys()

    wait_until(shared, 120, "the new replica counts")
    end = {partition: offset + 3 for partition, offset in offsets.items()}

    def gone_on():
        turn()
        return all(offsets[partition] >= end[partition] for partition in end)

    wait_until(gone_on, 120, "every partition went on")
    assert max(pauses) <= 10.0
