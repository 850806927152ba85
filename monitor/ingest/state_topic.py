"""Kafka's side of replicas: the state topic, transactions on it, and the two groups that say who does what.

    ReplicaSource   reads this replica's share of the event partitions; where they go on stands in the group's own offsets
    StateWriter     one transaction at a time: records of the state topic and, where events were counted, the group's offsets
    StateReader     one partition of the state topic from its beginning, or the topic of references; committed records only
    Membership      which partitions of the state topic are ours, and so which models we decide about

Invariants. A transaction is in the topic whole or not at all, together with the offsets that it moves on. Where its end is
not known, or anything about it failed, `write` raises TransactionLost and the writer is of no use any more: whoever held it
reads the topic anew. Two things fence a replica that was thought dead: offsets are committed under the generation of the
group in which the partition was placed, and of two writers with one name only the younger can commit.

The client library (kafka-python) may answer an outdated epoch by asking for a new one, and then commit on: every record's
answer is therefore looked at, and the epoch compared, before a commit is asked for.

Cost: a transaction is four to six round trips, 5-20 ms. Neighbours: `replicas` assembles, `state.replica_*` say what is written.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from kafka import KafkaAdminClient, KafkaProducer
from kafka import TopicPartition as ClientPartition
from kafka.admin import NewTopic
from kafka.errors import AuthorizationError, KafkaError, TopicAlreadyExistsError
from kafka.structs import OffsetAndMetadata

from monitor.config import Kafka, Replicas
from monitor.errors import ConfigError, SourceFailed, TidemarkError
from monitor.flow import Batch, Part, TopicPartition
from monitor.ingest.connection import START_SECONDS, client_options, connect
from monitor.ingest.kafka import KafkaSource, _made, open_consumer, partitions_of
from monitor.ingest.kafka_client import _known_topics, committed_now, keep_joining

log = logging.getLogger("tidemark")

#: (partition of the state topic, or REFERENCES, key, value); a value of None removes the key
Record = tuple[int, bytes, bytes | None]
#: In place of a partition: the topic beside the state topic that says by which reference a promoted model is judged. Every
#: replica reads all of it, which of the state topic would be too much.
REFERENCES = -1

#: Largest record that we write, and that the topic takes: sampled or captured rows of one step.
RECORD_BYTES = 8 << 20
TOPIC_OPTIONS = {
    "cleanup.policy": "compact",
    "max.message.bytes": str(2 * RECORD_BYTES),
    "segment.bytes": str(64 << 20),                 # only whole segments are compacted, and a take-over reads what is not
    "min.cleanable.dirty.ratio": "0.2",
}
_POLL_MS = 200
_LOOKUP_MS = 900
_TOLD_SECONDS = 20.0                                # a wait of longer than this is told of, so often
_RIGHTS = "WRITE and DESCRIBE on the transactional id and on the topic, and READ on the group"
_CALL_SECONDS = 15.0                                # for what the client library waits for without a limit of its own


class TransactionLost(TidemarkError):
    """A transaction is not in the topic, or we cannot know whether it is; read the topic anew before anything else."""


def topics_of(replicas: Replicas) -> dict[str, int]:
    """The state topic and that of the references, each with the partitions that it must have."""
    return {replicas.topic: replicas.partitions, f"{replicas.topic}.references": 1}


def options_of(replicas: Replicas) -> dict[str, str]:
    """The settings of these topics: what was committed outlives a broker where there are three copies."""
    return TOPIC_OPTIONS | {"min.insync.replicas": str(2 if replicas.replication > 2 else 1)}


def creation(replicas: Replicas, name: str) -> str:
    """The command that makes one of these topics."""
    return (f"kafka-topics.sh --create --topic {name} --partitions {topics_of(replicas)[name]} --replication-factor "
            f"{replicas.replication} " + " ".join(f"--config {key}={value}" for key, value in options_of(replicas).items()))


def ensure_topics(kafka: Kafka, replicas: Replicas, *, promotes: bool) -> bool:
    """See that the topics are there and as they must be; make them where we may. ConfigError with what to do.

    promotes : whether the topic of references is needed; else it is used where it is there, which is returned
    """
    consumer, client_log = open_consumer(kafka, group_id=None)
    try:
        state, references = topics_of(replicas)
        _ensure(kafka, replicas, consumer, state)
        if promotes:
            _ensure(kafka, replicas, consumer, references)
            return True
        try:
            return bool(consumer.partitions_for_topic(references))
        except KafkaError:                          # nobody who promotes has given us the right to see it
            return False
    finally:
        consumer.close(autocommit=False, timeout_ms=3000)
        client_log.close()


def _ensure(kafka: Kafka, replicas: Replicas, consumer: Any, name: str) -> None:
    where, partitions = "service.replicas", topics_of(replicas)[name]
    if not _is_there(consumer, name, where):
        admin = KafkaAdminClient(**client_options(kafka), request_timeout_ms=10_000)
        try:
            admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=replicas.replication,
                                          topic_configs=options_of(replicas))])
            log.info("State topic made.", extra={"topic": name, "partitions": partitions})
        except TopicAlreadyExistsError:
            pass                                    # another replica was faster
        except KafkaError as error:
            raise ConfigError(f"{where}.topic: expected the topic {name!r} or the right to make it, got "
                              f"{type(error).__name__}: {str(error)[:200]}; create it with: {creation(replicas, name)}") from None
        finally:
            admin.close()
    if len(numbers := partitions_of(consumer, name)) != partitions:
        what = "set it so" if name == replicas.topic else "make that topic anew"
        raise ConfigError(f"{where}.partitions: expected the {len(numbers)} partitions that {name!r} has, got "
                          f"{partitions}; {what}: which partition holds a model follows from their number")


def _is_there(consumer: Any, name: str, where: str) -> bool:
    """Whether the topic exists; a cluster that cannot tell now is asked again."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            return bool(consumer.partitions_for_topic(name))
        except AuthorizationError:
            raise ConfigError(f"{where}.topic: expected the right to read {name!r}, got a refusal; ask for READ, WRITE and "
                              "DESCRIBE on it") from None
        except KafkaError as error:
            if time.monotonic() > end:
                raise SourceFailed(f"kafka: expected to be told of the topic {name!r}, got {type(error).__name__}; "
                                   "check that its brokers run") from None
            time.sleep(_POLL_MS / 1000)


def _within(seconds: float, call: Callable[[], None], what: str, ask: str = _RIGHTS) -> None:
    """Run a call that may wait for ever on a thread of its own; TransactionLost where it is not over in time."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:              # told to the caller below
            failed.append(error)

    thread = threading.Thread(target=run, name="kafka-call", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TransactionLost(f"kafka: expected {what} within {seconds:g} s, got no answer")
    if failed:
        error = failed[0]
        if isinstance(error, AuthorizationError):
            raise SourceFailed(f"kafka: expected the right to {what}, got {type(error).__name__}: {str(error)[:200]}; "
                               f"ask for {ask}")
        raise TransactionLost(f"kafka: {what}: {type(error).__name__}: {str(error)[:200]}") from None


class StateWriter:
    """Writes to the state topic under a transactional name; of two writers with one name only the younger can commit."""

    def __init__(self, kafka: Kafka, replicas: Replicas, name: str, *, ask: str = _RIGHTS) -> None:
        options = {"transactional_id": name, "transaction_timeout_ms": int(replicas.transaction_seconds * 1000), "acks": "all",
                   "compression_type": "lz4", "max_request_size": 2 * RECORD_BYTES, "linger_ms": 0, "metrics_enabled": False,
                   "delivery_timeout_ms": 12_000, "request_timeout_ms": 8_000, "max_block_ms": 10_000,
                   "allow_auto_create_topics": False}
        self._topic, self._references = topics_of(replicas)
        self._producer, self._client_log = connect(lambda common: _made(KafkaProducer, common | options), kafka)
        try:
            _within(_CALL_SECONDS, self._producer.init_transactions, f"make transactions as {name!r}", ask)
            self._epoch = self._identity()
        except BaseException:
            self.close()
            raise

    def _identity(self) -> tuple[int, int]:
        known = self._producer._transaction_manager.producer_id_and_epoch
        return known.producer_id, known.epoch

    def write(self, records: Sequence[Record], offsets: Mapping[TopicPartition, tuple[int, str]] | None = None,
              member: Any = None) -> None:
        """One transaction; TransactionLost where it is not known to be in the topic.

        offsets : next offset and note of each event partition that moves on      member : the group's generation that placed them
        """
        def whole() -> None:
            producer = self._producer
            producer.begin_transaction()
            sent = [producer.send(self._references, value=value, key=key, partition=0) if number == REFERENCES
                    else producer.send(self._topic, value=value, key=key, partition=number) for number, key, value in records]
            producer.flush(_CALL_SECONDS)
            for one in sent:
                if not one.is_done or one.failed():
                    raise one.exception if one.is_done else TimeoutError("a record was not answered for")
            if offsets:
                producer.send_offsets_to_transaction(
                    {ClientPartition(*key): OffsetAndMetadata(offset, note, -1) for key, (offset, note) in offsets.items()},
                    member)
            if self._identity() != self._epoch:
                raise KafkaError("the writer's epoch is not the one that it began with")
            producer.commit_transaction()

        _within(2 * _CALL_SECONDS, whole, "a transaction")

    def rehearse(self, topic: str, offset: TopicPartition | None, group: str, what: str, ask: str) -> None:
        """A transaction with one record for a topic, or one offset of a group, that is given up again: nothing comes of it.

        Raises SourceFailed where the right is lacking, and says what to ask for; TransactionLost for whatever else.
        """
        def whole() -> None:
            producer = self._producer
            producer.begin_transaction()
            try:
                if offset is None:
                    sent = producer.send(topic, value=None, key=b"doctor", partition=0)
                    producer.flush(_CALL_SECONDS)
                    sent.get(_CALL_SECONDS)
                else:
                    producer.send_offsets_to_transaction({ClientPartition(*offset): OffsetAndMetadata(0, "", -1)}, group)
            finally:
                producer.abort_transaction()

        _within(2 * _CALL_SECONDS, whole, what, ask)

    def close(self, *, abort: bool = False) -> None:
        """End the connection; `abort` gives up the transaction that is open, so that readers need not wait for its time-out."""
        try:
            if abort:
                _within(3.0, self._producer.abort_transaction, "the end of a transaction")
        except TidemarkError as error:
            log.debug("Transaction not given up.", extra={"error": str(error)})
        try:
            self._producer.close(2)
        except KafkaError as error:
            log.debug("Writer not closed.", extra={"error": str(error)})
        self._client_log.close()


class ReplicaSource(KafkaSource):
    """A source whose partitions go on where the group's committed offsets say, as they stand whenever the group changes.

    Whatever changes in the group, everything is placed anew: what was read but not committed is read again. `moved` tells it
    once: per partition the committed offset with its note, None where there is none.
    """

    def __init__(self, kafka: Kafka, topics: Sequence[str], *, wait_seconds: float = START_SECONDS) -> None:
        self.member: Any = None                     # the group's generation under which all that we hold was placed
        self._is_reset = False
        self._known: set[ClientPartition] = set()
        self._moved: dict[TopicPartition, tuple[int, str] | None] | None = None
        self._topics = list(topics)
        self._waits_since = self._told_at = 0.0     # for the group's offsets
        super().__init__(kafka, topics, wait_seconds=wait_seconds)

    def moved(self) -> dict[TopicPartition, tuple[int, str] | None] | None:
        """What was placed anew since the last call; None where nothing was, empty where all was taken from us."""
        moved, self._moved = self._moved, None
        return moved

    def forget(self) -> None:
        """Place everything anew in the next turn: what was read since the last commit is read again."""
        self._placed.clear()
        self._known = {ClientPartition("", -1)}     # of no group: sure to differ

    def noted(self) -> dict[TopicPartition, str]:
        """The notes of all partitions of the topics as the whole group committed them; what cannot be had now is absent."""
        notes = {}
        try:
            for topic in self._topics:
                for number in sorted(self._consumer.partitions_for_topic(topic) or ()):
                    found = self._consumer.committed(ClientPartition(topic, number), metadata=True, timeout_ms=_LOOKUP_MS)
                    if found is not None:
                        notes[topic, number] = str(found.metadata)
        except KafkaError as error:
            log.debug("The group's offsets were not told.", extra={"error": str(error)})
        return notes

    def _take(self) -> Batch:
        self._is_reset = False
        batch = super()._take()
        if not self._is_reset:
            return batch
        nothing = np.empty(0, np.int64)             # where each goes on is told even where it brings nothing
        return replace(batch, parts=tuple(Part(key.topic, key.partition, [], nothing, nothing, self._next[key])
                                          for key in sorted(self._placed)))

    def _part(self, key: ClientPartition, found: Sequence[Any]) -> Part:
        if self._is_reset:                          # read before the group changed: it is read again
            nothing = np.empty(0, np.int64)
            return Part(key.topic, key.partition, [], nothing, nothing, self._next.get(key, 0))
        return super()._part(key, found)

    def _moved_on(self, silent: Collection[ClientPartition]) -> list[Part]:
        return [] if self._is_reset else super()._moved_on(silent)

    def _place(self, new: set[ClientPartition]) -> dict[TopicPartition, int]:
        if not new and self._placed == self._known:
            return {}
        self._is_reset = True
        self._moved = {}
        self._known, self._placed = {ClientPartition("", -1)}, set()
        member, everything = self._consumer.group_metadata(), self._consumer.assignment()
        if not everything:
            self._known = set()
            return {}
        if member.generation_id <= 0 or not member.member_id:
            return {}                               # not joined (any more); the next turn looks again
        try:
            found = {key: committed_now(self._consumer, key, _LOOKUP_MS) for key in sorted(everything)}
        except KafkaError as error:                 # a transaction of the one before us is still open, perhaps
            self._tell_of_waiting(error)
            self._wait_out(error)
            return {}
        self._waits_since = 0.0
        for key, committed in found.items():
            self._next.pop(key, None)
            if committed is not None:
                self._next[key] = committed.offset
        lost = super()._place(set(everything))
        now = self._consumer.group_metadata()
        if self._placed != everything or (now.generation_id, now.member_id) != (member.generation_id, member.member_id):
            self._placed = set()
            return {}
        self.member, self._known = member, set(everything)
        self._moved = {(key.topic, key.partition): None if committed is None else (committed.offset, str(committed.metadata))
                       for key, committed in found.items()}
        return lost

    def _tell_of_waiting(self, error: KafkaError) -> None:
        """Say that the group's offsets are not told, where that lasts for longer than any transaction does."""
        now = time.monotonic()
        self._waits_since = self._waits_since or now
        if min(now - self._waits_since, now - self._told_at) > _TOLD_SECONDS:
            self._told_at = now
            log.warning("Nothing can be counted until the group's offsets are told; does kafka-transactions.sh find-hanging name "
                        "a transaction?", extra={"seconds": round(now - self._waits_since), "error": str(error)})


class StateReader:
    """One partition of the state topic, or the topic of REFERENCES, from its beginning on; committed records only."""

    def __init__(self, kafka: Kafka, replicas: Replicas, partition: int) -> None:
        state, references = topics_of(replicas)
        self._kafka = kafka
        self._key = ClientPartition(references, 0) if partition == REFERENCES else ClientPartition(state, partition)
        self._consumer, self._client_log = open_consumer(
            kafka, group_id=None, max_partition_fetch_bytes=4 << 20, fetch_max_wait_ms=500)
        self._consumer.assign([self._key])
        self._consumer.seek_to_beginning(self._key)

    def end(self) -> int:
        """Where the partition ends now, open transactions included: what the owner before us wrote lies before that."""
        consumer, client_log = open_consumer(self._kafka, group_id=None, isolation_level="read_uncommitted")
        try:
            return int(consumer.end_offsets([self._key], timeout_ms=5000)[self._key])
        except KafkaError as error:
            raise self._lost(error) from None
        finally:
            consumer.close(autocommit=False, timeout_ms=1000)
            client_log.close()

    def position(self) -> int:
        """The offset behind everything that was read; -1 while the broker has not said where the partition begins."""
        try:
            return -1 if (found := self._consumer.position(self._key, timeout_ms=5000)) is None else int(found)
        except KafkaError as error:
            raise self._lost(error) from None

    def poll(self, timeout_ms: int = _POLL_MS) -> list[tuple[int, bytes, bytes | None]]:
        """The next records: (offset, key, value); none where nothing came in time."""
        try:
            polled = self._consumer.poll(timeout_ms=timeout_ms)
        except KafkaError as error:
            if not getattr(error, "retriable", False):
                raise self._lost(error) from None
            time.sleep(0.2)
            return []
        return [(record.offset, record.key or b"", record.value) for found in polled.values() for record in found]

    def ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Where partitions of event topics end now."""
        try:
            found = self._consumer.end_offsets([ClientPartition(*key) for key in partitions], timeout_ms=5000)
        except KafkaError as error:
            raise self._lost(error) from None
        return {(key.topic, key.partition): int(offset) for key, offset in found.items()}

    @staticmethod
    def _lost(error: KafkaError) -> TidemarkError:
        if isinstance(error, AuthorizationError):
            return SourceFailed(f"kafka: expected the right to read the state topic, got {type(error).__name__}; ask for READ "
                                "and DESCRIBE on it")
        return TransactionLost(f"kafka: the state topic could not be read: {type(error).__name__}: {str(error)[:200]}")

    def partitions(self, topic: str) -> list[int]:
        """The numbers of an event topic's partitions; none where they are not known now."""
        try:
            return sorted(self._consumer.partitions_for_topic(topic) or ())
        except KafkaError:
            return []

    def close(self) -> None:
        """End the connection."""
        self._consumer.close(autocommit=False, timeout_ms=1000)
        self._client_log.close()


class Membership:
    """Our part in the group that shares the state topic's partitions out; it reads none of them."""

    def __init__(self, kafka: Kafka, replicas: Replicas) -> None:
        from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

        session_ms = int(kafka.session_timeout_seconds * 1000)
        self._consumer, self._client_log = open_consumer(
            kafka, group_id=f"{kafka.group}.owners", session_timeout_ms=session_ms,
            heartbeat_interval_ms=min(3000, session_ms // 3), auto_offset_reset="latest",
            partition_assignment_strategy=[StickyPartitionAssignor])
        self._consumer.subscribe(topics=[replicas.topic])
        _known_topics(self._consumer)               # else it shares nothing out when it joins, and joins anew

    def __iter__(self) -> Iterator[tuple[int, frozenset[int]]]:
        """(generation of the group, our partitions), a few times a second."""
        while True:
            try:
                self._consumer.poll(timeout_ms=_POLL_MS, max_records=1)
                keep_joining(self._consumer)
                if more := self._consumer.assignment() - self._consumer.paused():
                    self._consumer.pause(*more)
                found = self._consumer.group_metadata()
                yield int(found.generation_id), frozenset(key.partition for key in self._consumer.assignment())
            except KafkaError as error:
                if isinstance(error, AuthorizationError):
                    raise SourceFailed(f"kafka: expected the right to join the group of owners, got {type(error).__name__}; "
                                       "ask for READ on it") from None
                log.debug("Group of owners: trying again.", extra={"error": str(error)})
                time.sleep(_POLL_MS / 1000)

    def close(self) -> None:
        """Leave the group."""
        try:
            self._consumer.close(autocommit=False, timeout_ms=2000)
        except KafkaError as error:
            log.debug("Kafka did not hear our leaving.", extra={"error": str(error)})
        self._client_log.close()
