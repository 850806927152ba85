"""A transaction that nobody ends holds back the group's offsets, and what lies behind it in the state topic: both are told of,
and its end lets replicas go on."""

from __future__ import annotations

import time

import pytest

from monitor import owner
from monitor.config import Replicas
from monitor.ingest import state_topic
from monitor.ingest.state_topic import ReplicaSource, StateReader, TransactionLost
from tests.integration.reading import Reading, has, numbers, quick


def test_a_transaction_that_is_left_open_is_told_of_and_its_end_lets_the_group_go_on(kafka_broker, caplog, monkeypatch):
    from kafka import KafkaProducer, TopicPartition
    from kafka.structs import OffsetAndMetadata

    monkeypatch.setattr(state_topic, "_TOLD_SECONDS", 0.5)
    group = f"held-back-{time.time_ns()}"
    topic = kafka_broker.create_topic(group)
    kafka_broker.produce(topic, numbers(0, 5))
    with KafkaProducer(bootstrap_servers=kafka_broker.bootstrap_servers, transactional_id=f"left-open-{group}",
                       transaction_timeout_ms=300_000) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send_offsets_to_transaction({TopicPartition(topic, 0): OffsetAndMetadata(3, "note", -1)}, group)
        source = ReplicaSource(quick(kafka_broker, group), [topic])
        try:
            placed = []
            reading = Reading(source)
            reading.until(lambda _: placed.append(source.moved()) or "find-hanging" in caplog.text)
            assert not any(placed)
            assert reading.count() == 0
            producer.commit_transaction()
            reading.until(lambda _: placed.append(source.moved()) or placed[-1])
            assert placed[-1] == {(topic, 0): (3, "note")}
            assert reading.until(has(2)).values == {(topic, 0): numbers(3, 5)}
        finally:
            source.close()


def test_an_owner_that_reads_up_to_an_open_transaction_says_where_it_stands_and_reads_on_behind_it(kafka_broker, monkeypatch):
    from kafka import KafkaProducer

    monkeypatch.setattr(owner, "STILL_SECONDS", 1.0)
    topic = kafka_broker.create_topic(f"held-back-{time.time_ns()}")
    kafka, replicas = quick(kafka_broker, topic), Replicas(topic=topic, partitions=1, replication=1)
    one = owner.Owner(None, 0, (), None, None, lambda: 1, lambda: True)
    with KafkaProducer(bootstrap_servers=kafka_broker.bootstrap_servers, transactional_id=topic,
                       transaction_timeout_ms=300_000) as producer:
        producer.init_transactions()
        for value in (b"first", b"second"):
            producer.begin_transaction()
            producer.send(topic, key=b"share/m/" + value, value=value, partition=0).get(30)
            if value == b"first":
                producer.commit_transaction()
        reader = StateReader(kafka, replicas, 0)
        with pytest.raises(TransactionLost, match=r"partition 0 up to 3, got nothing behind 2 for 1 s; .*find-hanging"):
            one._load(reader)
        reader.close()
        producer.commit_transaction()
        reader = StateReader(kafka, replicas, 0)
        rows, shares = one._load(reader)
        reader.close()
    assert rows == {}
    assert [(offset, value) for offset, _, value in shares] == [(0, b"first"), (2, b"second")]
