"""What kafka-python forgets when a poll ends at the wrong moment: that it joins, and how old an answer is. We see to both."""

from __future__ import annotations

import time

import pytest

from monitor.config import Replicas
from monitor.ingest import connection
from monitor.ingest.kafka import KafkaSource
from monitor.ingest.kafka_client import committed_now, open_consumer
from monitor.ingest.state_topic import Membership, ReplicaSource, ensure_topics
from tests.conftest import wait_until
from tests.integration.reading import Reading, has, numbers, quick


@pytest.fixture
def slow_sharing(monkeypatch):
    """Partitions are shared out by a leader that takes longer for it than any poll of ours lasts."""
    from kafka.coordinator.consumer import ConsumerCoordinator

    share_out = ConsumerCoordinator._perform_assignment

    def slow(self, *args):
        found = share_out(self, *args)
        time.sleep(0.7)
        return found

    monkeypatch.setattr(connection, "METADATA_SECONDS", 0.5)
    monkeypatch.setattr(ConsumerCoordinator, "_perform_assignment", slow)


def grown(broker, topic):
    """The topic has one partition more, which brokers take events for."""
    broker.add_partitions(topic, 2)

    def is_written():
        try:
            broker.produce(topic, numbers(0, 7), partition=1)
        except Exception:                           # not known everywhere yet
            return False
        return True

    wait_until(is_written, 30, "the new partition being written to")


def test_a_join_that_outlasts_a_poll_is_gone_on_with_when_partitions_were_added(kafka_broker, unique_name, slow_sharing):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, numbers(0, 5))
    source = KafkaSource(quick(kafka_broker, unique_name("group")), [topic])
    try:
        reading = Reading(source).until(has(5))
        grown(kafka_broker, topic)
        assert reading.until(has(12), 40).values[topic, 1] == numbers(0, 7)
    finally:
        source.close()


def test_an_owner_to_be_is_given_partitions_that_it_had_not_heard_of_when_it_joined(kafka_broker, unique_name, slow_sharing):
    kafka = quick(kafka_broker, unique_name("owners"))
    replicas = Replicas(topic=unique_name("state"), partitions=1, replication=1)
    ensure_topics(kafka, replicas, promotes=False)
    members = Membership(kafka, replicas)
    found = iter(members)
    try:
        wait_until(lambda: next(found)[1] == {0}, 30, "its first partition")
        grown(kafka_broker, replicas.topic)
        wait_until(lambda: next(found)[1] != {0}, 40, "the partition that was added")
        assert next(found)[1] == {0, 1}
    finally:
        members.close()


def test_what_is_told_of_a_groups_offsets_is_as_new_as_the_question(kafka_broker, unique_name):
    from kafka import KafkaProducer, TopicPartition
    from kafka.structs import OffsetAndMetadata

    topic, group = kafka_broker.create_topic(unique_name("topic")), unique_name("group")
    kafka_broker.produce(topic, numbers(0, 9))
    key, kafka = TopicPartition(topic, 0), quick(kafka_broker, group)

    def commit(offset):
        producer.begin_transaction()
        producer.send_offsets_to_transaction({key: OffsetAndMetadata(offset, f"note-{offset}", -1)}, group)
        producer.commit_transaction()

    def given_up_waiting(consumer):
        """Ask, and be away before the answer comes; it comes then."""
        from kafka.errors import KafkaTimeoutError

        with pytest.raises(KafkaTimeoutError):
            consumer.committed(key, metadata=True, timeout_ms=0)
        time.sleep(1)

    with KafkaProducer(bootstrap_servers=kafka_broker.bootstrap_servers, transactional_id=group) as producer:
        producer.init_transactions()
        commit(3)
        consumer, client_log = open_consumer(kafka, group_id=group)
        assert committed_now(consumer, key, 10_000).offset == 3
        given_up_waiting(consumer)
        commit(5)
        assert committed_now(consumer, key, 10_000)[:2] == (5, "note-5")
        consumer.close(autocommit=False)
        client_log.close()

        source = ReplicaSource(kafka, [topic])
        try:
            placed = []
            reading = Reading(source)
            reading.until(lambda _: placed.append(source.moved()) or placed[-1])
            assert placed[-1] == {(topic, 0): (5, "note-5")}
            given_up_waiting(source._consumer)
            # What was counted up to here is committed under the group's generation, as replicas do it.
            producer.begin_transaction()
            producer.send_offsets_to_transaction({key: OffsetAndMetadata(8, "note-8", -1)}, source.member)
            producer.commit_transaction()
            source.forget()
            reading.until(lambda _: placed.append(source.moved()) or placed[-1])
            assert placed[-1] == {(topic, 0): (8, "note-8")}
        finally:
            source.close()
