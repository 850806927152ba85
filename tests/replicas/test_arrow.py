"""Arrow messages with replicas: a message of many events is counted whole by one of them, whichever dies meanwhile."""

from __future__ import annotations

import time

from tests.crash import arrow_world, world
from tests.replicas.replica_world import Nursery, Replicas, configuration


def test_two_replicas_of_which_one_is_killed_count_each_event_of_arrow_messages_once(tmp_path, kafka_broker):
    expected = arrow_world.expected()
    values = arrow_world.messages(60)
    total = sum(map(len, values.values()))
    topic = kafka_broker.create_topic(f"replicas-arrow-{time.time_ns()}", world.PARTITIONS)
    config = configuration(tmp_path, kafka_broker.bootstrap_servers, topic, state_topic=f"state-{time.time_ns()}",
                           poll_records=5)          # many turns, so that the kill falls between them
    nursery = Nursery()
    replicas = Replicas(nursery, tmp_path, arrow_world.as_arrow(config, unpacked_bytes=16_384, open_panes=40))

    def passed():
        replicas.assert_running()
        found = replicas.state()
        return sum(offset for _, offset, _ in found["positions"]) if found else 0

    try:
        for name in ("a", "b"):
            replicas.start(name)
        replicas.wait(lambda: len(replicas.said("Counting. partitions=[\"")) == 2, 120, "both counting")
        (owner,) = replicas.wait(lambda: replicas.said("Deciding."), 120, "an owner")
        for partition, found in values.items():
            kafka_broker.produce(topic, found, partition=partition)
        replicas.wait(lambda: passed() > 0, 120, "counts")
        replicas.kill(owner)
        replicas.wait(lambda: passed() == total, 120, "every message counted")
        replicas.wait(lambda: arrow_world.told(replicas.state())["alarms"] == expected["alarms"], 60, "the same alarms")
        found = replicas.state()
        assert replicas.stop_all() == [0]
    finally:
        replicas.close()
        nursery.close()
    assert arrow_world.told(found) == expected
    assert expected["alarms"] != []
    assert "Traceback" not in replicas.logs()
