"""Several replicas on a real broker: what they count, decide and launch together is what one process does alone."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import numpy as np
import pytest

from tests.conftest import wait_until
from tests.crash import world
from tests.integration.alerting import Receiver, shipped_alertmanager
from tests.replicas.replica_world import Nursery, Replicas, configuration, unhurried

#: Kills of one run over three replicas; `TIDEMARK_REPLICA_KILLS=300` for a long one.
KILLS = int(os.environ.get("TIDEMARK_REPLICA_KILLS", "10"))
SEEDS = tuple(range(3))
FIRST_PANE = world.START_MS // 1000
TOTAL = sum(len(values) for values in world.messages().values())


def comparable(found):
    """What must be equal byte for byte; a launch's wall-clock times may differ, and only one process keeps its topics' ids."""
    for counters in found["counters"]:
        counters.pop("topic_ids", None)
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
    config = unhurried(world.configuration(folder, kafka_broker.bootstrap_servers, topic, promote=False))
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
def alertmanager(tmp_path):
    """A real Alertmanager: who hears of its messages, and its port."""
    receiver = Receiver()
    process, port = shipped_alertmanager(tmp_path, receiver.routes(), "the-token")
    yield receiver, port
    process.stop()
    receiver.server.shutdown()
    receiver.server.server_close()


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
    found = replicas.wait_done(TOTAL, 600)
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
    found = replicas.wait_done(TOTAL, 600)
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
    owner, *_ = replicas.wait(lambda: replicas.said("Deciding."), 120, "an owner")
    wait_until(lambda: replicas.state(), 60, "counts")
    os.kill(replicas.running[owner], signal.SIGSTOP)            # it holds partitions, the model and open transactions
    feed(kafka_broker, topic, 1, 3)
    replicas.wait(lambda: len(replicas.said("Deciding.")) > 1, 120, "another owner")
    feed(kafka_broker, topic, 2, 3)
    os.kill(replicas.running[owner], signal.SIGCONT)
    found = replicas.wait_done(TOTAL, 600)
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

    replicas.wait(done, 300, "everything counted, judged and ended")
    assert died
    assert comparable(replicas.state()) == alone
    assert len(replicas.trained()) == 1


def test_a_partition_without_events_holds_nobody_up_whoever_decides(replicas_on, kafka_broker):
    topic = kafka_broker.create_topic(f"replicas-silent-{time.time_ns()}", world.PARTITIONS)
    replicas = replicas_on(topic, idle_seconds=2.0)
    replicas.start("a")
    replicas.start("b")

    def feed_some(first, last):
        for partition in (0, 1):
            kafka_broker.produce(topic, world.messages()[partition][first:last], partition=partition)

    def decided(pane):
        replicas.assert_running()
        found = replicas.state()
        return found and found["counters"][0]["last_decided"] >= pane

    feed_some(0, 1000)                                          # 50 to a pane and partition
    replicas.wait(lambda: decided(FIRST_PANE + 15), 120, "panes without the silent partition")
    owner, *_ = replicas.said("Deciding.")
    replicas.kill(owner)
    feed_some(1000, 2000)
    replicas.wait(lambda: decided(FIRST_PANE + 35), 120, "panes of the next owner")


def later(seed, panes, start):
    """Per partition events of further panes, in the world after the shift, with the answers of a model that knows it."""
    rng = np.random.default_rng(seed)
    parts = {partition: [] for partition in range(world.PARTITIONS)}
    for pane in range(start, start + panes):
        x, c, _, truth = world._values(rng, world.PER_PANE, 1.2)
        for i in range(world.PER_PANE):
            parts[i % world.PARTITIONS].append(json.dumps({
                "id": f"{pane}-{i}", "ts": world.START_MS + pane * 1000 + i * 1000 // world.PER_PANE, "x": round(float(x[i]), 6),
                "c": str(c[i]), "y": str(truth[i]), "truth": str(truth[i])}).encode())
    return parts


def test_owners_that_die_around_a_promotion_promote_once_and_every_replica_counts_by_the_new_reference(
        replicas_on, kafka_broker, alertmanager):
    receiver, port = alertmanager
    topic = kafka_broker.create_topic(f"replicas-promoted-{time.time_ns()}", world.PARTITIONS)
    replicas, died, sent = replicas_on(topic, promote=True, sections={
        "alertmanager": {"urls": [f"http://127.0.0.1:{port}"], "resend_seconds": 20}}), [], 0
    for name, step in (("a", "promote:after"), ("b", "promote:after"), ("c", "cutover:before")):
        replicas.start(name, step, 1)
    feed(kafka_broker, topic, 0, 1)

    def launch():
        for name in list(replicas.running):
            if (code := replicas.code(name)) is not None:
                assert code == -signal.SIGKILL, replicas.log(name).read_text()[-3000:]
                replicas.start(name, *(() if died else ("cutover:after", 1)))
                died.append(name)
        found = replicas.state()
        return died and found and found["launches"] and found["launches"][-1].get("cut_over_at") and found["launches"]

    def counts_by(version, panes, start):
        """Everyone counts by this version's reference, and of what comes then nothing is left out."""
        nonlocal sent
        replicas.wait(lambda: launch() and len(replicas.said(f'model="m" version="{version}"')) == 3, 120,
                   f"all count by {version}")
        sent += panes * world.PER_PANE
        for partition, values in later(sent, panes, start).items():
            kafka_broker.produce(topic, values, partition=partition)
        replicas.wait(lambda: sum(offset for _, offset, _ in replicas.state()["positions"]) == TOTAL + sent, 120, "the events")
        return sum(events for of, pane, events, *_ in replicas.state()["panes"] if of == version and pane >= FIRST_PANE + start)

    (promoted,) = replicas.wait(launch, 300, "a promotion and its cut-over")
    assert promoted["state"] == "promoted"
    assert len(replicas.trained()) == 1
    assert counts_by("1.new", 20, 300) == 20 * world.PER_PANE
    found = replicas.state()
    assert not [alarm for alarm in found["alarms"] if alarm["version"] == "1.new"]

    # Whoever owned the model told Alertmanager of its drift, and of the end of it.
    wait_until(lambda: receiver.alerts("tidemark-now", "TidemarkSevereDrift", "firing"), 60, "the alert")
    wait_until(lambda: receiver.alerts("tidemark-now", "TidemarkSevereDrift", "resolved"), 120, "its end")

    # Back again: asked of all, taken by the one that decides.
    answers = replicas.ask("/api/v1/monitors/m/rollback", {"why": "test"})
    assert sorted(status for status, _ in answers)[0] < 300, answers
    replicas.wait(lambda: len(launch() or ()) == 2, 120, "the roll-back")
    assert counts_by("1", 5, 400) == 5 * world.PER_PANE
    assert [launch["state"] for launch in replicas.state()["launches"]] == ["promoted", "promoted"]
    assert replicas.stop_all() == [0, 0, 0]


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

    replicas.wait(settled, 120, "all partitions counted")
    pauses.clear()
    replicas.start("b")

    def shared():
        turn()
        return "Counting. partitions=[\"" in replicas.log("b").read_text() and moved.keys() == offsets.keys()

    replicas.wait(shared, 120, "the new replica counts")
    end = {partition: offset + 3 for partition, offset in offsets.items()}

    def gone_on():
        turn()
        return all(offsets[partition] >= end[partition] for partition in end)

    replicas.wait(gone_on, 120, "every partition went on")
    assert max(pauses) <= 10.0
