"""A full disk under the state while Arrow messages are read: a message is counted whole or not at all."""

from __future__ import annotations

import os

from tests.conftest import wait_until
from tests.crash import arrow_world, world
from tests.crash.test_full_disk import Service, disk  # noqa: F401 (a fixture)


def test_events_of_messages_that_span_panes_and_pieces_are_counted_once_when_the_disk_was_full_between_them(
        disk, tmp_path, kafka_broker, unique_name):  # noqa: F811
    expected = arrow_world.expected()
    topic = kafka_broker.create_topic(unique_name("full-arrow"), world.PARTITIONS)

    def change(tree):
        tree["service"]["state"] = f"sqlite:///{disk.folder}/state.db"
        tree["monitors"][0]["schema"]["format"] = "arrow"
        # A piece is about one message of 120 events; one of more than two panes is the rule.
        tree["limits"] = {"unpacked_bytes": 16_384}

    service = Service(tmp_path, kafka_broker, topic, change)
    service.values = arrow_world.messages()
    service.total = sum(map(len, service.values.values()))
    service.produce(1)
    half = sum(len(values) // 2 for values in service.values.values())
    service.until(lambda: service.read() == half, "the first half")
    disk.fill(service.pid)
    if disk.is_mounted:                             # room for some commits, so that it fails between two pieces of a turn
        os.truncate(disk.folder / "filler", (disk.folder / "filler").stat().st_size - (96 << 10))
    service.produce(2)
    wait_until(lambda: service.running.popen.poll() is not None, 120, "the end")
    assert service.running.popen.poll() == 1, service.text()[-2000:]
    assert "Traceback" not in service.text()
    service.running.stop()
    assert half <= service.read() < service.total
    disk.empty()
    service.start()
    service.until(lambda: service.read() == service.total, "the rest")
    service.end()
    assert arrow_world.told(service.state_now()) == expected
