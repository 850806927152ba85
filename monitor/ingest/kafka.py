"""Events from Kafka: the only module that knows the client library.

One consumer-group member reads all monitors' topics by the client's public `poll`. Offsets live in our own state, not in
Kafka: on assignment each partition is sought to where the state ends (`seek`, then our own progress), and a partition
that the state does not know starts at `kafka.start`. The group's committed offsets follow the checkpoint, for lag tools
only, and are never read. The client's automatic reset is off: whatever would move a position silently comes to us.

Invariant: of every partition that stays with us, records are delivered in order, each once, none skipped but those that
retention removed, and these are counted in `Batch.lost`. A rebalance or an overtaken position is only noted where the
client tells it; the loop acts: it drops what a new partition already fetched, and seeks.

Cost: the client's `poll` is 5-8 µs per record and the largest part of the whole path; our share on top of it is about
0.2 µs per record. Memory: `fetch_bytes` plus what is decompressed. Neighbours: `connection` explains failures.
"""

from __future__ import annotations

import difflib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer
from kafka import TopicPartition as ClientPartition
from kafka.errors import (
    AuthorizationError,
    KafkaError,
    KafkaTimeoutError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    SaslAuthenticationFailedError,
)
from kafka.net.compat import KafkaNetClient
from kafka.record import util as record_util
from kafka.structs import OffsetAndMetadata

from monitor.config import Kafka
from monitor.errors import SourceFailed, TidemarkError
from monitor.flow import Batch, Part, TopicPartition
from monitor.ingest.connection import START_SECONDS, ClientLog, connect

log = logging.getLogger("tidemark")

_POLL_MS = 500                                      # an empty batch at least once a second, with room to spare
_EVERYTHING = 2**31                                 # records of one poll: all that was fetched, a few MB per partition
_LOOKUP_MS = 900                                    # asking for a partition's ends; asked again in the next turn
_TOPIC_SECONDS = 5.0                                # a topic made a moment ago is known everywhere after that
_BACKOFF_SECONDS = 0.2                              # after an error that may pass

ApiVersion = tuple[int, ...] | None


def check_crc32c() -> str:
    """Empty if checksums are computed natively; else what to do. The pure-Python fallback is 1000 times slower."""
    if record_util.crc32c_c is None:
        return "expected the native package crc32c, found none; install it with: pip install 'kafka-python[crc32c]'"
    return ""


def open_consumer(kafka: Kafka, *, api_version: ApiVersion = None, wait_seconds: float = START_SECONDS,
                  **options: Any) -> tuple[KafkaConsumer, ClientLog]:
    """A connected consumer without a subscription; SourceFailed with one line if it cannot be had."""
    if lack := check_crc32c():
        raise SourceFailed(f"kafka: {lack}")
    fixed = {
        "enable_auto_commit": False, "auto_offset_reset": "none", "allow_auto_create_topics": False,
        "isolation_level": "read_committed",        # events of aborted transactions never happened
        "max_poll_records": kafka.poll_records, "fetch_max_bytes": kafka.fetch_bytes,
        "max_partition_fetch_bytes": min(kafka.fetch_bytes, 8 << 20), "metrics_enabled": False,
    }
    return connect(lambda common: _made(KafkaConsumer, common | fixed | options), kafka, api_version=api_version,
                   wait_seconds=wait_seconds)


def _made(kind: Any, options: dict[str, Any]) -> Any:
    """The client, or TimeoutError with its threads ended: a constructor that fails leaves them running."""
    inner: list[Any] = []

    def net_client(**settings: Any) -> Any:
        inner.append(KafkaNetClient(**settings))
        return inner[0]

    try:
        client = kind(**options, kafka_client=net_client)
        if client.config.get("api_version") and "api_version" in options:
            client.bootstrap(timeout_ms=options["bootstrap_timeout_ms"])    # a told version skips the eager one
        return client
    except KafkaError as error:
        for one in inner:
            one.close()
        if isinstance(error, KafkaTimeoutError):
            raise TimeoutError(str(error)) from None
        raise SourceFailed(f"kafka: {_named(error)}; check the kafka section of the configuration") from None


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).removeprefix(type(error).__name__ + ': ')[:300]}"


def partitions_of(consumer: KafkaConsumer, topic: str, wait_seconds: float = _TOPIC_SECONDS) -> list[int]:
    """The topic's partition numbers; SourceFailed, naming the nearest topic, if there is none."""
    end = time.monotonic() + wait_seconds
    while True:
        try:
            if found := consumer.partitions_for_topic(topic):
                return sorted(found)
        except AuthorizationError as error:
            raise SourceFailed(f"kafka topic {topic!r}: expected the right to read it, got {_named(error)}; "
                               "ask for READ and DESCRIBE on it") from None
        except KafkaError as error:
            log.debug("Topic look-up failed.", extra={"topic": topic, "error": str(error)})
        if time.monotonic() >= end:
            break
        time.sleep(_BACKOFF_SECONDS)
    near = difflib.get_close_matches(topic, sorted(_known_topics(consumer)), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "create it, or mend monitors[].topic (or the right to see it)"
    raise SourceFailed(f"kafka topic {topic!r}: expected it to exist, got no such topic; {hint}")


def _known_topics(consumer: KafkaConsumer) -> set[str]:
    """All topics that we may see, asked from the broker now; empty if it does not answer."""
    try:
        return set(consumer.topics())
    except KafkaError as error:
        log.debug("Topics were not listed.", extra={"error": str(error)})
        return set()


class _Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes which partitions came or went; called on the client's thread."""

    def __init__(self) -> None:
        self._changed: list[ClientPartition] = []

    def on_partitions_revoked(self, revoked: Sequence[ClientPartition]) -> None:
        self._changed = [*self._changed, *revoked]

    on_partitions_assigned = on_partitions_lost = on_partitions_revoked

    def take(self) -> set[ClientPartition]:
        """What changed since the last call."""
        changed, self._changed = self._changed, []
        return set(changed)


class KafkaSource:
    """Batches from topics, as a member of the group `kafka.group`.

    kafka  : where and how      topics : all of them must exist
    api_version  : told to the client instead of asked from the broker; only the in-process broker needs it
    wait_seconds : how long to wait for the brokers at the start; later they are waited for without end
    """

    def __init__(self, kafka: Kafka, topics: Sequence[str], *, api_version: ApiVersion = None,
                 wait_seconds: float = START_SECONDS) -> None:
        self._kafka = kafka
        session_ms = int(kafka.session_timeout_seconds * 1000)
        self._consumer, self._client_log = open_consumer(
            kafka, api_version=api_version, wait_seconds=wait_seconds, group_id=kafka.group,
            session_timeout_ms=session_ms, heartbeat_interval_ms=min(3000, session_ms // 3))
        self._rebalances = _Rebalances()
        self._next: dict[ClientPartition, int] = {}         # where reading goes on: the state's offsets, then our own
        self._placed: set[ClientPartition] = set()          # assigned, and sought to where it goes on
        self._held: set[ClientPartition] = set()            # too far ahead of the others: to be paused
        self._closed = False
        try:
            self._consumer.subscribe(topics=list(topics), listener=self._rebalances)
            # The client must know the topics' partitions before it joins: a look-up that is answered after that makes
            # it join a second time, which costs a whole session timeout where members are slow to be forgotten.
            _known_topics(self._consumer)
            for topic in topics:
                partitions_of(self._consumer, topic)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Batch]:
        while not self._closed:
            yield self._take()

    def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Go on from these offsets; partitions that are not named start at `kafka.start`."""
        self._next.update({ClientPartition(*key): offset for key, offset in offsets.items()})
        self._placed.clear()

    def hold(self, partitions: Collection[TopicPartition]) -> None:
        """Pause these, resume all others, from the next batch on; what the client has fetched of them is kept for later."""
        self._held = {ClientPartition(*key) for key in partitions}

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tell Kafka what is stored; it is told again with the next checkpoint, so a failure is only noted."""
        assigned = self._consumer.assignment()
        known = {ClientPartition(*key): OffsetAndMetadata(offset, "", -1) for key, offset in offsets.items()}
        told = {key: value for key, value in known.items() if key in assigned}
        if told:
            try:
                self._consumer.commit_async(told)
            except KafkaError as error:
                log.debug("Group offsets were not committed.", extra={"error": str(error)})

    def lag(self) -> Mapping[TopicPartition, int]:
        """Records between our position and the newest known one, per partition that was fetched from."""
        lag = {}
        for key in self._placed & self._consumer.assignment():
            newest, position = self._consumer.highwater(key), self._position(key)
            if newest is not None and position is not None:
                lag[key.topic, key.partition] = max(0, newest - position)
        return lag

    def close(self) -> None:
        """Leave the group; safe to call twice."""
        if not self._closed:
            self._closed = True
            try:
                self._consumer.close(autocommit=False, timeout_ms=3000)
            except KafkaError as error:
                log.debug("Kafka did not hear our leaving.", extra={"error": str(error)})
            self._client_log.close()

    def _take(self) -> Batch:
        """One poll: what came, and what a rebalance or retention asks us to do."""
        polled: Mapping[ClientPartition, list[Any]] = {}
        overtaken: set[ClientPartition] = set()
        fresh = (self._held & self._consumer.assignment()) - self._consumer.paused()
        if over := self._consumer.paused() - self._held:
            self._consumer.resume(*over)
        try:
            # kafka-python 3.0 never gives back the rest of a fetch that it was in the middle of when its partition was
            # paused: before a pause, everything that it has fetched is taken.
            polled = self._consumer.poll(timeout_ms=_POLL_MS, max_records=_EVERYTHING if fresh else None)
            if fresh := fresh & self._consumer.assignment():
                self._consumer.pause(*fresh)
        except OffsetOutOfRangeError as error:
            overtaken = set(error.args[0])
        except NoOffsetForPartitionError:
            pass                                    # a new partition; it is placed below
        except KafkaError as error:
            self._wait_out(error)
        assigned = self._consumer.assignment()
        self._placed -= self._rebalances.take() | overtaken
        self._placed &= assigned
        ready = {key: found for key, found in polled.items() if key in self._placed}
        lost = self._place(assigned - self._placed)
        parts = tuple(self._part(key, found) for key, found in ready.items())
        caught_up = frozenset((key.topic, key.partition) for key in self._placed if self._is_caught_up(key))
        return Batch(parts=parts, assigned=frozenset((key.topic, key.partition) for key in assigned),
                     caught_up=caught_up, lost=lost)

    def _part(self, key: ClientPartition, found: Sequence[Any]) -> Part:
        n = len(found)
        offsets = np.fromiter((record.offset for record in found), np.int64, n)
        assert offsets[0] >= self._next[key], f"{key}: {offsets[0]} was delivered before {self._next[key]}"
        self._next[key] = int(offsets[-1]) + 1
        times = np.fromiter((record.timestamp for record in found), np.int64, n)
        return Part(key.topic, key.partition, [record.value for record in found], offsets, times, self._next[key])

    def _place(self, new: set[ClientPartition]) -> dict[TopicPartition, int]:
        """Seek new partitions to where they go on; what retention removed before that is returned."""
        if not new:
            return {}
        partitions, lost = sorted(new), {}
        try:
            first = self._consumer.beginning_offsets(partitions, timeout_ms=_LOOKUP_MS)
            end = self._consumer.end_offsets(partitions, timeout_ms=_LOOKUP_MS)
        except KafkaError as error:
            self._wait_out(error)
            return {}                               # not placed: nothing of them is delivered, the next turn asks again
        for key in partitions:
            default = first[key] if self._kafka.start == "earliest" else end[key]
            wanted = self._next.get(key, default)
            if wanted > end[key]:
                raise SourceFailed(
                    f"kafka topic {key.topic!r} partition {key.partition}: expected to go on at offset {wanted}, got an "
                    f"end of {end[key]}; was the topic made anew? Start with another service.state, or restore the topic")
            if wanted < first[key]:
                lost[key.topic, key.partition] = first[key] - wanted
                log.warning("Retention overtook us.", extra={
                    "topic": key.topic, "partition": key.partition, "records": first[key] - wanted})
                wanted = first[key]
            try:
                self._consumer.seek(key, wanted)
            except ValueError:                      # it was taken away again in this moment
                lost.pop((key.topic, key.partition), None)
                continue
            self._next[key] = wanted
            self._placed.add(key)
        return lost

    def _wait_out(self, error: KafkaError) -> None:
        """Wait a moment after an error that may pass; SourceFailed for one that does not."""
        if isinstance(error, SaslAuthenticationFailedError | AuthorizationError):
            raise SourceFailed(f"kafka: expected the right to read as group {self._kafka.group!r}, got {_named(error)}; "
                               "ask for READ on the topics and the group") from None
        if not getattr(error, "retriable", False):
            raise SourceFailed(f"kafka: {_named(error)}; the broker's log may say more") from None
        log.debug("Kafka error, trying again.", extra={"error": str(error)})
        time.sleep(_BACKOFF_SECONDS)

    def _position(self, key: ClientPartition) -> int | None:
        try:
            position: int | None = self._consumer.position(key, timeout_ms=0)
        except (KafkaError, AssertionError):
            return None
        return position

    def _is_caught_up(self, key: ClientPartition) -> bool:
        try:
            newest, position = self._consumer.highwater(key), self._position(key)
        except KafkaError:
            return False                            # no longer ours
        return newest is not None and position is not None and position >= newest


class KafkaWriter:
    """Sends records to one topic, for the dead letters; every send is answered for at `flush`."""

    def __init__(self, kafka: Kafka, topic: str, *, api_version: ApiVersion = None, wait_seconds: float = 5.0) -> None:
        fixed = {"acks": "all", "max_request_size": 64 << 20, "linger_ms": 5, "metrics_enabled": False,
                 "delivery_timeout_ms": 15_000, "request_timeout_ms": 10_000, "max_block_ms": 5_000,
                 "allow_auto_create_topics": False,
                 "enable_idempotence": False}       # one refused record must not end an idempotent producer
        self._topic = topic
        self._producer, self._client_log = connect(
            lambda common: _made(KafkaProducer, common | fixed), kafka, api_version=api_version, wait_seconds=wait_seconds)
        self._sent: list[Any] = []

    def send(self, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> None:
        """Queue a record; a failure shows at `flush`."""
        try:
            self._sent.append(self._producer.send(self._topic, value, headers=list(headers)))
        except KafkaError as error:
            self._sent.append(error)

    def flush(self, timeout_seconds: float = 15.0) -> list[str]:
        """Wait until all is stored; per record since the last flush an empty text or why it was not."""
        try:
            self._producer.flush(timeout_seconds)
        except KafkaError as error:
            log.debug("Flush failed.", extra={"error": str(error)})
        outcomes, self._sent = [_outcome(sent) for sent in self._sent], []
        return outcomes

    def close(self) -> None:
        """Close the connection."""
        self._producer.close(5)
        self._client_log.close()


def _outcome(sent: Any) -> str:
    if isinstance(sent, KafkaError):
        return _named(sent)
    if not sent.is_done:
        return "not answered in time"
    return _named(sent.exception) if sent.failed() else ""


def probe(kafka: Kafka, topics: Sequence[str], *, api_version: ApiVersion = None,
          wait_seconds: float = 10.0) -> list[tuple[str, bool, str]]:
    """Checks for `tidemark doctor`: (what, whether it is well, one line)."""
    lack = check_crc32c()
    checks = [("kafka checksums", not lack, lack or "crc32c is native")]
    if lack:
        return checks
    try:
        consumer, client_log = open_consumer(kafka, api_version=api_version, wait_seconds=wait_seconds, group_id=kafka.group)
    except TidemarkError as error:
        return [*checks, ("kafka brokers", False, str(error))]
    try:
        servers = ", ".join(kafka.bootstrap_servers)
        checks.append(("kafka brokers", True, f"reached {servers} with {kafka.security.protocol}"))
        some: ClientPartition | None = None
        for topic in topics:
            try:
                numbers = partitions_of(consumer, topic, wait_seconds=1.0)
                keys = [ClientPartition(topic, number) for number in numbers]
                first, end = consumer.beginning_offsets(keys), consumer.end_offsets(keys)
                some = some or keys[0]
                checks.append((f"kafka topic {topic}", True, f"{len(numbers)} partitions, "
                               f"{sum(end.values()) - sum(first.values())} records kept"))
            except (SourceFailed, KafkaError) as error:
                checks.append((f"kafka topic {topic}", False, str(error)))
        if some is not None:
            try:
                committed = consumer.committed(some, timeout_ms=5000)
                text = "nothing committed yet" if committed is None else "has committed offsets"
                checks.append((f"kafka group {kafka.group}", True, f"readable, {text}"))
            except KafkaError as error:
                checks.append((f"kafka group {kafka.group}", False, f"expected the right to read it, got {_named(error)}; "
                               "ask for READ on the group"))
    finally:
        consumer.close(autocommit=False, timeout_ms=3000)
        client_log.close()
    return checks


def read_span(kafka: Kafka, topic: str, events: int, progress: Callable[[int], None] | None = None, *,
              api_version: ApiVersion = None) -> list[dict[str, Any]]:
    """The newest `events` JSON objects of a topic in the order of their records' times, without joining the group.

    Records that are not JSON objects are left out. `progress` is called with the number read so far.
    """
    consumer, client_log = open_consumer(kafka, api_version=api_version)
    try:
        keys = [ClientPartition(topic, number) for number in partitions_of(consumer, topic)]
        consumer.assign(keys)
        first, end = consumer.beginning_offsets(keys), consumer.end_offsets(keys)
        share = -(-events // len(keys))
        for key in keys:
            consumer.seek(key, max(first[key], end[key] - share))
        rows: list[tuple[int, int, dict[str, Any]]] = []
        quiet_until = time.monotonic() + START_SECONDS
        while any(consumer.position(key) < end[key] for key in keys):
            for key, found in consumer.poll(timeout_ms=_POLL_MS).items():
                quiet_until = time.monotonic() + START_SECONDS
                rows += [(record.timestamp, record.offset, document) for record in found
                         if record.offset < end[key] and (document := _document(record.value)) is not None]
            if progress is not None:
                progress(min(len(rows), events))
            if time.monotonic() > quiet_until:
                raise SourceFailed(f"kafka topic {topic!r}: expected records, got none for {START_SECONDS:.0f} s; "
                                   "check that its brokers run")
    except KafkaError as error:
        raise SourceFailed(f"kafka topic {topic!r}: {_named(error)}; check the right to read it") from None
    finally:
        consumer.close(autocommit=False, timeout_ms=3000)
        client_log.close()
    rows.sort(key=lambda row: row[:2])
    return [document for _, _, document in rows[-events:]]


def _document(value: bytes | None) -> dict[str, Any] | None:
    """The JSON object in a record, NaN included; None for anything else."""
    try:
        document = json.loads(value) if value and b"NaN" in value else msgspec.json.decode(value or b"")
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
