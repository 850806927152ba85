"""Members of one group that join, leave and die: who counts what, on a real broker."""

import sys
import threading
from contextlib import contextmanager

import pytest

from monitor.config import Kafka
from tests.conftest import CHECKOUT, Process, package, wait_until
from tests.integration.member import Member, counted
from tests.integration.reading import TRANSPORTS, Reading, has, numbers, quick


@contextmanager
def running(*members):
    """Members on threads of their own, each stopped at the end; yields a function that waits for something of them."""
    threads = [member.start() for member in members]

    def until(condition, what):
        def holds():
            failed = next((member.failed for member in members if member.failed is not None), None)
            if failed is not None:
                raise failed
            return condition()

        wait_until(holds, 90, what)

    try:
        yield until
    finally:
        for member in members:
            member.stopping = True
        for thread in threads:
            thread.join(30)


def whole(ranges):
    """How far a partition was counted without a gap and without a repetition; AssertionError where it was not."""
    reached = 0
    for first, _, after in ranges:
        assert first == reached, f"counted up to {reached}, then from {first}: {ranges}"
        reached = after
    return reached


@pytest.fixture(params=list(TRANSPORTS))
def transport(request):
    if request.param == "librdkafka":
        package("confluent_kafka")
    return request.param


def test_every_record_is_counted_once_by_members_that_join_leave_and_are_killed(kafka_broker, unique_name, tmp_path, transport):
    topic, group, partitions = kafka_broker.create_topic(unique_name("topic"), partitions=6), unique_name("group"), 6
    kafka = Kafka(bootstrap_servers=[kafka_broker.bootstrap_servers], group=group, session_timeout_seconds=2, poll_records=50)
    sent = 0

    def send(count):
        nonlocal sent
        for partition in range(partitions):
            kafka_broker.produce(topic, numbers(sent, sent + count), partition=partition)
        sent += count

    def program(name):
        return Process([sys.executable, "-m", "tests.integration.member", transport, kafka_broker.bootstrap_servers, group,
                        topic, tmp_path, name], tmp_path / f"{name}.txt", cwd=CHECKOUT)

    def progress(name):
        return any(line.endswith(f" {name}") for path in tmp_path.glob("*@*") for line in path.read_text().splitlines())

    def all_counted():
        found = counted(tmp_path)
        return len(found) == partitions and all(ranges[-1][2] >= sent for ranges in found.values())

    send(300)
    first = Member(TRANSPORTS[transport], kafka, [topic], tmp_path, "first")
    killed, leaving = program("killed"), program("leaving")
    try:
        with running(first) as until:
            until(lambda: len(first.assigned) == 2, "three members with two partitions each")
            send(300)
            until(lambda: progress("killed") and progress("leaving"), "something counted by each of the others")
            send(300)                               # under way while one is killed and one leaves
            killed.kill()
            until(all_counted, "all counted after one was killed")
            leaving.stop(timeout=20)
            send(100)
            until(lambda: len(first.assigned) == 6 and all_counted(), "all counted by the one that is left")
            joining = Member(TRANSPORTS[transport], kafka, [topic], tmp_path, "joining")
            with running(joining) as both:
                both(lambda: len(first.assigned) == len(joining.assigned) == 3, "two members with three partitions each")
                send(100)
                both(all_counted, "all counted by two")
                assert first.assigned.isdisjoint(joining.assigned)
    finally:
        killed.stop()
        leaving.stop()
    assert leaving.popen.returncode == 0, (tmp_path / "leaving.txt").read_text()
    assert {key: whole(ranges) for key, ranges in counted(tmp_path).items()} == {
        (topic, partition): sent for partition in range(partitions)}


def test_members_with_a_state_each_count_a_partition_that_came_back_from_where_each_of_them_was(
        kafka_broker, unique_name, opened):
    """Separate states are each whole in themselves; over both, what moved is counted by both. Sharing is for replicas."""
    topic, group = kafka_broker.create_topic(unique_name("topic"), partitions=2), unique_name("group")
    for partition in range(2):
        kafka_broker.produce(topic, numbers(0, 20), partition=partition)
    first = Reading(opened(quick(kafka_broker, group), [topic])).until(has(40))
    second, stop = Reading(opened(quick(kafka_broker, group), [topic])), threading.Event()
    thread = threading.Thread(target=lambda: second.until(lambda _: stop.is_set()))
    thread.start()
    try:
        first.until(lambda r: len(r.assigned) == 1 and second.count() >= 20)
        for partition in range(2):
            kafka_broker.produce(topic, numbers(20, 30), partition=partition)
        first.until(lambda _: first.count() >= 50 and second.count() >= 30)
    finally:
        stop.set()
        thread.join()
    ((moved, of_second),) = second.offsets.items()
    assert of_second == list(range(30))                                 # unknown to its state: from the beginning
    assert first.offsets[moved] == list(range(20))                      # revoked: nothing more of it was delivered
    second.source.close()
    first.until(lambda r: len(r.assigned) == 2).until(has(60))
    assert all(offsets == list(range(30)) for offsets in first.offsets.values())   # its own state had it up to 20
