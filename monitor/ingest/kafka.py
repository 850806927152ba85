"""Events from Kafka, read by kafka-python.

One consumer-group member reads all monitors' topics by the client's public `poll`. Offsets live in our own state, not in
Kafka: on assignment each partition is sought to where the state ends (`seek`, then our own progress), and a partition
that the state does not know starts at `kafka.start`. The group's committed offsets follow the checkpoint, for lag tools
only, and are never read. The client's automatic reset is off: whatever would move a position silently comes to us.

Invariant: of every partition that stays with us, records are delivered in order, each once, none skipped but those that
retention removed, and these are counted in `Batch.lost`. A rebalance or an overtaken position is only noted where the
client tells it; the loop acts: it drops what a new partition already fetched, and seeks. `kafka.start: latest` means the
topic's end when the source was made; a partition that is added later is read from its beginning. Where a partition was
placed, and where its position moves without an event (transaction markers, aborted records), a part without records
tells the state. A log that is not the one that was read (cut back, topic made anew) is refused.

Brokers that go away, refuse us or answer nonsense do not end a source that has read: it yields empty batches whose `away`
says why, while the client reconnects, or is made anew where it would not come back of itself (`outage`).

Cost: the client's `poll` is 5-8 µs per record and the largest part of the whole path; our share on top of it is about
0.2 µs per record. Memory: `fetch_bytes` plus what `unpack` lets it become. Neighbours: `kafka_client` makes clients, `connection`
explains failures.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from kafka import ConsumerRebalanceListener, KafkaConsumer
from kafka import TopicPartition as ClientPartition
from kafka.errors import (
    AuthorizationError,
    KafkaError,
    LogTruncationError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    SaslAuthenticationFailedError,
    UnknownTopicOrPartitionError,
)
from kafka.structs import OffsetAndMetadata

from monitor.config import Kafka
from monitor.errors import SourceFailed
from monitor.flow import Batch, Part, TopicPartition
from monitor.ingest import connection, unpack
from monitor.ingest.connection import START_SECONDS, ClientLog, refuse_another_topic, shown_id
from monitor.ingest.kafka_client import (
    ApiVersion,
    KafkaWriter,
    _known_topics,
    _made,
    _named,
    check_crc32c,
    keep_joining,
    open_consumer,
    partitions_of,
    probe,
)
from monitor.ingest.outage import Opening, Outage, Pauses

__all__ = ["ApiVersion", "KafkaSource", "KafkaWriter", "_made", "check_crc32c", "open_consumer", "partitions_of", "probe"]

log = logging.getLogger("tidemark")

_POLL_MS = 500                                      # an empty batch at least once a second, with room to spare
_EVERYTHING = 2**31                                 # records of one poll: all that was fetched, a few MB per partition
_LOOKUP_MS = 900                                    # asking for a partition's ends; asked again in the next turn
_BACKOFF_SECONDS = 0.2                              # after an error that may pass
_FETCH_BYTES_MIN = 131_072
_REOPEN_SECONDS = 5.0                               # for one attempt to make the client anew


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

    def __bool__(self) -> bool:
        """Whether something changed since the last `take`."""
        return bool(self._changed)


class KafkaSource:
    """Batches from topics, as a member of the group `kafka.group`.

    kafka  : where and how      topics : all of them must exist
    api_version  : told to the client instead of asked from the broker; only the in-process broker needs it
    wait_seconds : how long to wait for the brokers at the start; later they are waited for without end
    topic_ids    : of the topics that the state's offsets are of; another one under such a name is refused
    """

    def __init__(self, kafka: Kafka, topics: Sequence[str], *, api_version: ApiVersion = None,
                 wait_seconds: float = START_SECONDS, topic_ids: Mapping[str, str] | None = None) -> None:
        self._kafka, self._read_topics, self._api_version = kafka, tuple(topics), api_version
        self._fetch_bytes, self._unpacked_bytes = kafka.fetch_bytes, unpack.unpacked_bytes(kafka.fetch_bytes)
        if lack := unpack.install():
            log.warning("Record batches are unpacked without a bound.", extra={"error": lack})
        self._rebalances = _Rebalances()
        self._next: dict[ClientPartition, int] = {}         # where reading goes on: the state's offsets, then our own
        self._placed: set[ClientPartition] = set()          # assigned, and sought to where it goes on
        self._held: set[ClientPartition] = set()            # too far ahead of the others: to be paused
        self._positions: dict[ClientPartition, int | None] = {}    # of the placed ones, at the end of the last turn
        self._ends: dict[ClientPartition, int] = {}         # with `latest`: the topics' ends when we began
        self._counted: set[str] = set()                     # topics of which the state knows a partition
        self._topic_ids = dict(topic_ids or {})             # the state's, then as they were told first
        self._cut_back: LogTruncationError | None = None
        self._has_read = self._closed = False
        self._outage, self._pauses = Outage(), Pauses()
        self._opening: Opening[tuple[KafkaConsumer, ClientLog]] | None = None
        self._consumer, self._client_log = self._open(wait_seconds)
        if kafka.start == "latest":
            try:
                keys = [ClientPartition(topic, number) for topic in topics for number in partitions_of(self._consumer, topic)]
                self._ends = self._consumer.end_offsets(keys, timeout_ms=int(1000 * START_SECONDS))
            except BaseException as error:
                self.close()
                if isinstance(error, KafkaError):
                    raise SourceFailed(f"kafka: expected the topics' ends, got {_named(error)}; check the brokers") from None
                raise

    def _open(self, wait_seconds: float) -> tuple[KafkaConsumer, ClientLog]:
        """A subscribed client; SourceFailed with one line if it cannot be had."""
        kafka, session_ms = self._kafka, int(self._kafka.session_timeout_seconds * 1000)
        consumer, client_log = open_consumer(
            kafka, api_version=self._api_version, wait_seconds=wait_seconds, group_id=kafka.group,
            session_timeout_ms=session_ms, heartbeat_interval_ms=min(3000, session_ms // 3),
            fetch_max_bytes=self._fetch_bytes, max_partition_fetch_bytes=min(self._fetch_bytes, 8 << 20))
        try:
            consumer.subscribe(topics=list(self._read_topics), listener=self._rebalances)
            # The client must know the topics' partitions before it joins: a look-up that is answered after that makes
            # it join a second time, which costs a whole session timeout where members are slow to be forgotten.
            _known_topics(consumer)
            for topic in self._read_topics:
                partitions_of(consumer, topic)
        except BaseException:
            _leave((consumer, client_log))
            raise
        return consumer, client_log

    def __iter__(self) -> Iterator[Batch]:
        while not self._closed:
            yield self._take()

    def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Go on from these offsets; partitions that are not named start at `kafka.start`, new ones of a named topic at 0."""
        self._next.update({ClientPartition(*key): offset for key, offset in offsets.items()})
        self._counted |= {topic for topic, _ in offsets}
        self._placed.clear()

    def hold(self, partitions: Collection[TopicPartition]) -> None:
        """Pause these, resume all others, from the next batch on; what the client has fetched of them is kept for later."""
        self._held = {ClientPartition(*key) for key in partitions}

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tell Kafka what is stored; it is told again with the next checkpoint, so a failure is only noted."""
        if self._opening is not None:
            return
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
            if self._opening is not None:
                self._opening.give_up()
            else:
                _leave((self._consumer, self._client_log))

    def _take(self) -> Batch:
        """One poll: what came, and what a rebalance or retention asks us to do."""
        if self._opening is not None:
            return self._await_opening()
        polled: Mapping[ClientPartition, list[Any]] = {}
        overtaken: set[ClientPartition] = set()
        self._placed -= self._moved_by_others()
        fresh = (self._held & self._consumer.assignment()) - self._consumer.paused()
        if over := self._consumer.paused() - self._held:
            self._consumer.resume(*over)
        try:
            # kafka-python 3.0 never gives back the rest of a fetch that it was in the middle of when its partition was
            # paused: before a pause, everything that it has fetched is taken.
            with unpack.one_turn(self._unpacked_bytes):
                polled = self._consumer.poll(timeout_ms=_POLL_MS, max_records=_EVERYTHING if fresh else None)
            keep_joining(self._consumer)
            if fresh := fresh & self._consumer.assignment():
                self._consumer.pause(*fresh)
        except OffsetOutOfRangeError as error:
            overtaken = set(error.args[0])
        except NoOffsetForPartitionError:
            pass                                    # a new partition; it is placed below
        except LogTruncationError as error:
            self._cut_back = error
        except KafkaError as error:
            self._wait_out(error)
        self._refuse_another_log()
        assigned = self._consumer.assignment()
        self._placed -= self._rebalances.take() | overtaken
        self._placed &= assigned
        # As in `_moved_by_others`, within this poll.
        self._placed -= {key for key, found in polled.items() if key in self._placed and found[0].offset < self._next[key]}
        before = frozenset(self._placed)
        ready = {key: found for key, found in polled.items() if key in before}
        lost = self._place(assigned - self._placed) if self._opening is None else {}
        parts = [self._part(key, found) for key, found in ready.items()]
        parts += [self._nothing(key) for key in sorted(self._placed - before)] + self._moved_on(before - ready.keys())
        self._look_around(assigned)
        caught_up = frozenset((key.topic, key.partition) for key in self._placed if self._is_caught_up(key))
        self._positions = {key: self._position(key) for key in self._placed}
        return Batch(parts=tuple(parts), assigned=frozenset((key.topic, key.partition) for key in assigned),
                     caught_up=caught_up, lost=lost, away=self._outage.away, topic_ids=dict(self._topic_ids))

    def _moved_by_others(self) -> set[ClientPartition]:
        """Partitions whose position moved between two polls, to be placed again.

        A look-up of the group's offsets that was under way when we sought may end behind our seek, and move the position to
        what the group has committed: back, or, where the state is a copy of an earlier day, forward over what it lacks.
        """
        return {key for key in self._placed & self._positions.keys() if self._position(key) != self._positions[key]}

    def _part(self, key: ClientPartition, found: Sequence[Any]) -> Part:
        n = len(found)
        offsets = np.fromiter((record.offset for record in found), np.int64, n)
        assert offsets[0] >= self._next[key], f"{key}: {offsets[0]} was delivered before {self._next[key]}"
        self._next[key] = int(offsets[-1]) + 1
        times = np.fromiter((record.timestamp for record in found), np.int64, n)
        return Part(key.topic, key.partition, [record.value for record in found], offsets, times, self._next[key])

    def _nothing(self, key: ClientPartition) -> Part:
        """A part without records, which says where its partition goes on."""
        empty = np.empty(0, np.int64)
        return Part(key.topic, key.partition, [], empty, empty, self._next[key])

    def _moved_on(self, silent: Collection[ClientPartition]) -> list[Part]:
        """Of partitions that brought nothing, those whose position moved nevertheless: past markers and aborted records.

        Without it a state would go on before them, and count them as lost when retention takes them.
        """
        moved = {key: position for key in sorted(silent)
                 if (position := self._position(key)) is not None and position > self._next[key]}
        if not moved or self._rebalances:           # after a rebalance a position is the group's, not ours
            return []
        self._next.update(moved)
        return [self._nothing(key) for key in moved]

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
            is_new = self._kafka.start == "earliest" or key.topic in self._counted
            wanted = self._next.get(key, first[key] if is_new else self._ends.get(key, first[key]))
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
            self._has_read = True
        return lost

    def _refuse_another_log(self) -> None:
        """SourceFailed where what we read on is not what we have read: a log cut back, a topic made anew under its name."""
        if self._cut_back is not None:
            (key, end), *_ = self._cut_back.divergent_offsets.items()
            raise SourceFailed(
                f"kafka topic {key.topic!r} partition {key.partition}: expected the log that was read up to offset "
                f"{self._next.get(key)}, got one that was cut back to {'an unknown offset' if end is None else end.offset}; was "
                "a leader elected uncleanly, or the topic made anew? Start with another service.state")
        for topic in self._read_topics:
            found = self._consumer.network.cluster.topic_id(topic)
            if found is not None and (topic_id := shown_id(found.bytes)):
                refuse_another_topic(topic, self._topic_ids.setdefault(topic, topic_id), topic_id)

    def _wait_out(self, error: KafkaError) -> None:
        """Wait a moment after an error that may pass; for another, make the client anew, or SourceFailed before it has read."""
        if getattr(error, "retriable", False):
            log.debug("Kafka error, trying again.", extra={"error": str(error)})
            time.sleep(_BACKOFF_SECONDS)
        elif self._has_read and not isinstance(error, UnknownTopicOrPartitionError):
            self._reopen(_named(error))
        elif isinstance(error, SaslAuthenticationFailedError | AuthorizationError):
            raise SourceFailed(f"kafka: expected the right to read as group {self._kafka.group!r}, got {_named(error)}; "
                               "ask for READ on the topics and the group") from None
        else:
            raise SourceFailed(f"kafka: {_named(error)}; the broker's log may say more") from None

    def _look_around(self, assigned: set[ClientPartition]) -> None:
        """Tell the outage whether all that we need is connected; make a client anew that does not help itself."""
        if self._opening is not None:
            return
        log_of_client = self._client_log
        if log_of_client.refused and self._has_read:
            self._reopen(f"kafka.security: expected to be let in as {self._kafka.security.username!r}, got "
                         f"{log_of_client.refused!r}; check password_file, which is read again")
        elif log_of_client.timed_out >= 2 and self._fetch_bytes > _FETCH_BYTES_MIN:
            self._fetch_bytes = max(self._fetch_bytes // 8, _FETCH_BYTES_MIN)
            self._reopen(f"no answer within {connection.REQUEST_SECONDS:.0f} s; asking for at most {self._fetch_bytes} bytes "
                         "from now on")
        elif why := self._missing(assigned):
            self._outage.missed(why)
            if self._outage.away and "certificate" in why.lower():
                self._reopen(why)
        else:
            self._outage.reached()

    def _missing(self, assigned: set[ClientPartition]) -> str:
        """Why something that we need is not connected, asked of nobody; empty where all is."""
        network = self._consumer.network
        cluster, why = network.cluster, self._client_log.failed or "not connected"
        for topic in self._read_topics:
            if not cluster.partitions_for_topic(topic):
                return f"topic {topic!r} does not exist (any more)"
        needed = assigned - self._consumer.paused()
        for key in needed:
            leader = cluster.leader_for_partition(key)
            if leader is None or leader == -1:
                return f"partition {key.partition} of topic {key.topic!r} has no leader"
            if not network.connected(leader):
                return why
        nodes = [broker.node_id for broker in cluster.brokers()]
        is_member = any(network.connected(node) or network.connected(f"coordinator-{node}") for node in nodes)
        return "" if needed or is_member else why

    def _reopen(self, why: str) -> None:
        """Give this client up and make another one, on a thread of its own; what was not delivered is read again."""
        self._outage.missed(why, at_once=True)
        self._placed.clear()
        _leave((self._consumer, self._client_log), timeout_ms=500)
        self._rebalances.take()
        self._opening = Opening(lambda: self._open(_REOPEN_SECONDS), _leave, self._pauses)

    def _await_opening(self) -> Batch:
        """An empty batch while there is no client."""
        assert self._opening is not None
        found = self._opening.take(_POLL_MS / 1000)
        if found is not None:
            (self._consumer, self._client_log), self._opening = found, None
        elif self._opening.error:
            self._outage.missed(self._opening.error)
        return Batch(away=self._outage.away)

    def _position(self, key: ClientPartition) -> int | None:
        try:
            position: int | None = self._consumer.position(key, timeout_ms=0)
        except LogTruncationError as error:
            self._cut_back = error                  # told once, by whichever call comes first
            return None
        except (KafkaError, AssertionError):
            return None
        return position

    def _is_caught_up(self, key: ClientPartition) -> bool:
        try:
            newest, position = self._consumer.highwater(key), self._position(key)
        except KafkaError:
            return False                            # no longer ours
        return newest is not None and position is not None and position >= newest


def _leave(client: tuple[KafkaConsumer, ClientLog], timeout_ms: int = 3000) -> None:
    """Leave the group and end the client."""
    consumer, client_log = client
    try:
        consumer.close(autocommit=False, timeout_ms=timeout_ms)
    except KafkaError as error:
        log.debug("Kafka did not hear our leaving.", extra={"error": str(error)})
    client_log.close()
