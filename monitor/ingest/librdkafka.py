"""Events from Kafka by librdkafka: the optional, faster transport behind the same seam as `kafka`.

The C library fetches, checks and decompresses in threads of its own; the public `consume` hands over as many messages as
a batch takes, and from each only value, offset and time are taken. Everything else is as in `kafka`: offsets live in our
own state, the group's follow for lag tools and are never read, the automatic reset is off, and what retention removed
is counted. A rebalance gives us partitions without a position: none of them is fetched from before the loop has learned
both its ends and placed it, so the broker's idea of where to go on never counts.

Invariant: of every partition that stays with us, records are delivered in order, each once, none skipped but those that
`Batch.lost` counts. Placing one partition places all anew, each at its own progress; what was fetched for them before is
thrown away by the client and, should it still come, by us, since its offsets are below that progress. A partition with an
error that stands (the client would go on behind it) brings nothing of that turn and is placed again. A log that is not the
one that was read (cut back, topic made anew) is refused: a topic's id is asked for every METADATA_SECONDS and before each
placing, and the epoch of what was read last goes with the place, for the brokers to check.

Where a partition ends is told by the client's end-of-partition events: they count past aborted transactions and their
markers, which no message shows. Brokers that go away do not end a source that has read, as in `kafka`.

Cost: about 1.6 us per event of 20 features on one core, of which a half is the client's message objects, 5 times less than
the default's. Memory: `fetch_bytes` of fetched messages, and one batch of message objects of 200 bytes each.
Neighbours: `librdkafka_client` makes clients, `outage` tells of their brokers; `kafka` is the default. Extra: `fast`.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np

from monitor.config import Kafka
from monitor.errors import SourceFailed
from monitor.flow import Batch, Part, TopicPartition
from monitor.ingest import connection
from monitor.ingest.connection import START_SECONDS
from monitor.ingest.librdkafka_client import (
    Client,
    Inquiry,
    Standing,
    client_settings,
    library,
    open_client,
    partitions_of,
    probe,
)
from monitor.ingest.outage import Opening, Outage, Pauses

__all__ = ["LibrdkafkaSource", "client_settings", "probe"]

log = logging.getLogger("tidemark")

_CONSUME_SECONDS = 0.5                              # an empty batch at least once a second, with room to spare
_LOOKUP_SECONDS = 0.4                               # how long an idle turn waits for an answer; else it comes in the next
_RETRY_SECONDS = 0.2
_ABSENT_SECONDS = 1.0                               # how often a topic that is gone is asked for
_FETCH_BYTES_MIN = 131_072
_REOPEN_SECONDS = 5.0                               # for one attempt to make the client anew
_CUT_OFF_SECONDS = 60.0                             # who has no broker for so long asks with growing pauses, as a new client


class LibrdkafkaSource:
    """Batches from topics, as a member of the group `kafka.group`; arguments as `KafkaSource`'s.

    api_version : not needed, the library asks the broker; taken so that both transports are built alike
    """

    def __init__(self, kafka: Kafka, topics: Sequence[str], *, api_version: tuple[int, ...] | None = None,
                 wait_seconds: float = START_SECONDS, topic_ids: Mapping[str, str] | None = None) -> None:
        self._kafka, self._library, self._topics = kafka, library(), list(topics)
        self._fetch_bytes, self._metadata_seconds = kafka.fetch_bytes, connection.METADATA_SECONDS
        self._next: dict[TopicPartition, int] = {}          # where reading goes on: the state's offsets, then our own
        self._epochs: dict[TopicPartition, int] = {}        # the leader's epoch of what was read last, where it is told
        self._ends: dict[TopicPartition, int] = {}          # where a partition was last read to its end
        self._latest: dict[TopicPartition, int] = {}        # the ends at our start, where `kafka.start` is `latest`
        self._counted: set[str] = set()                     # topics of which the state knows a partition
        self._placed: set[TopicPartition] = set()           # assigned, and fetched from where it goes on
        self._held: set[TopicPartition] = set()             # too far ahead of the others: to be paused
        self._paused: set[TopicPartition] = set()
        self._topic_ids = dict(topic_ids or {})             # the state's, then as they were told first
        self._absent: set[str] = set()                      # topics that a broker does not know (any more)
        self._inquiry: Inquiry | None = None
        self._inquire_at = self._retry_at = 0.0
        self._connected_at = time.monotonic()               # when the client last had a broker
        self._unnamed = self._why_unnamed = ""              # a topic whose id is waited for, and what was said
        self._fault = ""                                    # what a new client may mend
        self._has_read = self._closed = False
        self._outage, self._pauses = Outage(), Pauses()
        self._opening: Opening[Client] | None = None
        message = self._library.Message
        self._value, self._offset, self._error = message.value, message.offset, message.error
        self._partition, self._topic, self._timestamp = message.partition, message.topic, message.timestamp
        self._client = self._open(wait_seconds)
        if kafka.start == "latest":                 # a partition that is added later begins at its beginning
            try:
                keys = [(topic, number) for topic in topics for number in partitions_of(self._client.consumer, topic)]
                inquiry = Inquiry(self._client.admin, topics, keys)
                inquiry.is_done(START_SECONDS, with_ids=False)
                self._latest = {key: end for key, (_, end) in inquiry.ends().items()}
                if len(self._latest) < len(keys):
                    raise SourceFailed(f"kafka: expected the topics' ends, got {inquiry.failure()!r}; check the brokers")
            except BaseException:
                self.close()
                raise

    def _open(self, wait_seconds: float) -> Client:
        """A subscribed client; SourceFailed with one line if it cannot be had."""
        client = open_client(self._kafka, wait_seconds=wait_seconds, fetch_bytes=self._fetch_bytes)
        try:
            for topic in self._topics:
                partitions_of(client.consumer, topic)
            told = client.told
            client.consumer.subscribe(self._topics, on_assign=told.granted_now, on_revoke=told.taken, on_lost=told.taken)
        except self._library.KafkaException as error:
            client.leave()
            raise SourceFailed(f"kafka: {str(error)[:300]}; the broker's log may say more") from None
        except BaseException:
            client.leave()
            raise
        return client

    def __iter__(self) -> Iterator[Batch]:
        while not self._closed:
            yield self._take()

    def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Go on from these offsets; partitions that are not named start at `kafka.start`, new ones of a named topic at 0."""
        self._next.update(offsets)
        self._counted |= {topic for topic, _ in offsets}
        for key in offsets:
            self._epochs.pop(key, None)
        self._placed.clear()
        self._inquiry = None                        # what it answers may be older than these offsets

    def hold(self, partitions: Collection[TopicPartition]) -> None:
        """Pause these, resume all others, from the next batch on."""
        self._held = set(partitions)

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tell Kafka what is stored; it is told again with the next checkpoint, so a failure is only noted."""
        told = [self._library.TopicPartition(*key, offset) for key, offset in offsets.items()
                if key in self._client.told.granted]
        if told and self._opening is None:
            try:
                self._client.consumer.commit(offsets=told, asynchronous=True)
            except self._library.KafkaException as error:
                log.debug("Group offsets were not committed.", extra={"error": str(error)})

    def lag(self) -> Mapping[TopicPartition, int]:
        """Records between our position and the newest known one, per partition that was fetched from."""
        return {key: max(0, newest - max(self._next[key], self._ends.get(key, 0)))
                for key in self._placed if (newest := self._newest(key)) >= 0}

    def close(self) -> None:
        """Leave the group; safe to call twice."""
        if not self._closed:
            self._closed = True
            if self._opening is not None:
                self._opening.give_up()
            else:
                self._client.leave()

    def _newest(self, key: TopicPartition) -> int:
        """The end that the last fetch told; -1 before the first."""
        try:
            ends = self._client.consumer.get_watermark_offsets(self._library.TopicPartition(*key), cached=True)
        except self._library.KafkaException:
            return -1
        return int(ends[1]) if ends is not None else -1

    def _take(self) -> Batch:
        """One batch: what came, and what a rebalance or retention asks us to do."""
        if self._opening is not None:
            return self._await_opening()
        self._pause()
        try:
            messages = self._client.consumer.consume(self._kafka.poll_records, _CONSUME_SECONDS)
        except self._library.KafkaException as error:
            messages = []
            log.debug("Kafka error, trying again.", extra={"error": str(error)})
            time.sleep(_RETRY_SECONDS)
        told = self._client.told
        events = [i for i, error in enumerate(map(self._error, messages)) if error is not None]
        stopped = self._note([messages[i] for i in events])
        if events:
            marked = set(events)
            messages = [message for i, message in enumerate(messages) if i not in marked]
        assigned = frozenset(told.granted)
        if stopped := stopped | told.take_changed():
            self._inquiry = None                    # it may be older than what happened to these
        self._placed -= stopped
        self._placed &= assigned
        self._learn()
        parts = [*self._parts(messages), *self._moved_on()]
        known = set(self._placed)
        lost = self._place(assigned - self._placed, 0.0 if messages else _LOOKUP_SECONDS)
        parts += [self._nothing(key) for key in sorted(self._placed - known)]       # where each new one goes on
        caught_up = frozenset(key for key in self._placed
                              if self._ends.get(key, -1) >= self._next[key] or self._next[key] >= self._newest(key) >= 0)
        self._look_around(assigned)
        return Batch(parts=tuple(parts), assigned=assigned, caught_up=caught_up, lost=lost, away=self._outage.away,
                     topic_ids=dict(self._topic_ids))

    def _moved_on(self) -> Iterator[Part]:
        """Empty parts of partitions that were read past their last record: markers and aborted records stand there."""
        for key, end in self._ends.items():
            if key in self._placed and end > self._next[key]:
                self._next[key] = end
                yield self._nothing(key)

    def _nothing(self, key: TopicPartition) -> Part:
        return Part(*key, [], np.empty(0, np.int64), np.empty(0, np.int64), self._next[key])

    def _parts(self, messages: Sequence[Any]) -> Iterator[Part]:
        """The messages by partition, in the order of their offsets."""
        n = len(messages)
        if not n:
            return
        topics = self._topics * n if len(self._topics) == 1 else list(map(self._topic, messages))
        partitions = np.fromiter(map(self._partition, messages), np.int64, n)
        offsets = np.fromiter(map(self._offset, messages), np.int64, n)
        times = np.fromiter(map(itemgetter(1), map(self._timestamp, messages)), np.int64, n)
        values = list(map(self._value, messages))
        changes = partitions[1:] != partitions[:-1]
        if len(self._topics) > 1:
            changes |= np.fromiter((a != b for a, b in pairwise(topics)), bool, n - 1)
        cuts = [0, *(np.flatnonzero(changes) + 1).tolist(), n]
        runs: defaultdict[TopicPartition, list[slice]] = defaultdict(list)
        for start, end in pairwise(cuts):                             # turns: runs of one partition
            runs[topics[start], int(partitions[start])].append(slice(start, end))
        for key, own in runs.items():
            if key not in self._placed:
                continue                            # it came or went in this moment: fetched again from its place
            places = np.concatenate([np.arange(one.start, one.stop) for one in own])
            places = places[offsets[places] >= self._next[key]]
            if not len(places):
                continue
            is_one = len(places) == places[-1] + 1 - places[0]
            taken = values[places[0]:places[-1] + 1] if is_one else [values[i] for i in places.tolist()]
            self._next[key] = int(offsets[places[-1]]) + 1
            if (epoch := messages[places[-1]].leader_epoch()) is not None:
                self._epochs[key] = epoch
            yield Part(*key, taken, offsets[places], times[places], self._next[key])

    def _note(self, events: Sequence[Any]) -> set[TopicPartition]:
        """Ends that were reached, and errors; the partitions that must be placed again because of one are returned."""
        kinds, stopped = self._library.KafkaError, set()
        for event in events:                        # turns: events that are no messages, few
            error, key = event.error(), (event.topic(), event.partition())
            code, words = error.code(), self._client.told.blanked(error.str())
            if code == kinds._PARTITION_EOF:
                self._ends[key] = event.offset()
                continue
            log.debug("Kafka error.", extra={"error": words, "topic": key[0], "partition": key[1]})
            if code == kinds._LOG_TRUNCATION or "truncation" in words:
                raise SourceFailed(
                    f"kafka topic {key[0]!r} partition {key[1]}: expected the log that was read up to offset "
                    f"{self._next.get(key)}, got one that was cut back ({words}); was a leader elected uncleanly, or the "
                    "topic made anew? Start with another service.state")
            if code in (kinds._AUTO_OFFSET_RESET, kinds.OFFSET_OUT_OF_RANGE):
                stopped.add(key)                    # by retention, most often
            elif code in (kinds.UNKNOWN_TOPIC_OR_PART, kinds._UNKNOWN_TOPIC):
                self._absent |= {key[0]} & set(self._topics)
                self._inquire_at = 0.0
            elif code in (kinds.TOPIC_AUTHORIZATION_FAILED, kinds.GROUP_AUTHORIZATION_FAILED):
                self._fault = (f"expected the right to read as group {self._kafka.group!r}, got {words}; "
                               "ask for READ on the topics and the group")
            elif key in self._placed and not error.retriable():
                stopped.add(key)                    # the client would go on behind it
                if code == kinds._BAD_MSG:
                    words = f"record batch at offset {event.offset()} failed crc check, or cannot be read"
                self._fault = self._fault or f"topic {key[0]!r} partition {key[1]}: {words}"
        return stopped

    def _learn(self) -> None:
        """What an inquiry found out about the topics; SourceFailed for one that was made anew under its name."""
        if self._inquiry is None or not self._inquiry.is_done():
            return
        for topic, topic_id in self._inquiry.topics().items():
            if topic_id is None:
                self._absent.add(topic)
                continue
            self._absent.discard(topic)
            if topic_id:
                connection.refuse_another_topic(topic, self._topic_ids.setdefault(topic, topic_id), topic_id)
        if self._inquiry.keys <= self._placed:      # its ends have been used
            self._inquiry = None

    def _place(self, new: frozenset[TopicPartition], wait_seconds: float) -> dict[TopicPartition, int]:
        """Begin to fetch new partitions where they go on; what retention removed before that is returned."""
        now = time.monotonic()
        if self._inquiry is None or (new and self._inquiry.keys != new):
            if now < (self._retry_at if new else self._inquire_at):
                return {}
            self._inquiry = Inquiry(self._client.admin, self._topics, new)
            self._inquire_at = now + (min(_ABSENT_SECONDS, self._metadata_seconds) if self._absent else self._metadata_seconds)
        if not new or not self._inquiry.is_done(wait_seconds, with_ids=any(topic in self._topic_ids for topic, _ in new)):
            return {}
        inquiry, lost = self._inquiry, {}
        self._learn()
        topics, placed = inquiry.topics(), len(self._placed)
        for key, (first, last) in sorted(inquiry.ends().items()):
            if key[0] in self._topic_ids and topics.get(key[0]) is None:
                self._unnamed = key[0]              # whether it is the topic that was read, is not known
                continue
            is_new = self._kafka.start == "earliest" or key[0] in self._counted
            wanted = self._next.get(key, first if is_new else self._latest.get(key, first))
            if wanted > last:
                raise SourceFailed(
                    f"kafka topic {key[0]!r} partition {key[1]}: expected to go on at offset {wanted}, got an "
                    f"end of {last}; was the topic made anew? Start with another service.state, or restore the topic")
            if wanted < first:
                lost[key] = first - wanted
                log.warning("Retention overtook us.", extra={
                    "topic": key[0], "partition": key[1], "records": first - wanted})
                wanted = first
                self._epochs.pop(key, None)
            self._next[key] = wanted
            self._placed.add(key)
            self._absent.discard(key[0])
        if len(self._placed) > placed:
            self._assign()
        if not new <= self._placed:
            self._why_unnamed = inquiry.failure()
            log.debug("Offsets were not told, trying again.", extra={"error": inquiry.failure()})
            self._retry_at, self._inquiry = now + _RETRY_SECONDS, None
        return lost

    def _assign(self) -> None:
        """Fetch every placed partition from where it goes on, and none else."""
        self._client.consumer.assign([
            self._library.TopicPartition(*key, self._next[key], leader_epoch=self._epochs.get(key, -1))
            for key in sorted(self._placed)])
        self._has_read = True
        self._ends.clear()                          # told again, from where each goes on
        self._paused.clear()
        self._pause()

    def _pause(self) -> None:
        """Pause what is held, resume what is no longer."""
        consumer = self._client.consumer
        try:
            if over := (self._paused - self._held) & self._placed:
                consumer.resume([self._library.TopicPartition(*key) for key in over])
            if fresh := (self._held & self._placed) - self._paused:
                consumer.pause([self._library.TopicPartition(*key) for key in fresh])
            self._paused = self._held & self._placed
        except self._library.KafkaException as error:
            log.debug("Partitions were not paused.", extra={"error": str(error)})

    def _look_around(self, assigned: Collection[TopicPartition]) -> None:
        """Tell the outage whether all that we need is connected; make a client anew that does not help itself."""
        told, group = self._client.told, self._kafka.group
        if told.refused and self._has_read:
            self._reopen(f"kafka.security: expected to be let in as {self._kafka.security.username!r}, got "
                         f"{told.refused!r}; check password_file, which is read again")
        elif told.refused:
            raise SourceFailed(f"kafka: expected the right to read as group {group!r}, got {told.refused}; "
                               "check mechanism, username and password_file")
        elif fault := self._fault or told.fatal:
            if not self._has_read:
                raise SourceFailed(f"kafka: {fault}; the broker's log may say more")
            self._reopen(fault)
        elif (standing := told.take_standing()) is not None:
            self._judge(standing, assigned)

    def _judge(self, standing: Standing, assigned: Collection[TopicPartition]) -> None:
        """As the client says that it stands: is all well, must one wait, or does another client help?"""
        if not standing.is_cut_off():
            self._connected_at = time.monotonic()
        absent = sorted(self._absent)
        why = (f"topic {absent[0]!r} does not exist (any more)" if absent else
               f"the id of topic {self._unnamed!r} was not told: {self._why_unnamed}"
               if any(topic == self._unnamed for topic, _ in set(assigned) - self._placed) else
               standing.lack(set(assigned) - self._held, self._client.told.failed or "not connected"))
        if standing.timed_out >= 2 and self._fetch_bytes > _FETCH_BYTES_MIN:
            self._fetch_bytes = max(self._fetch_bytes // 8, _FETCH_BYTES_MIN)
            self._reopen(f"no answer within {connection.REQUEST_SECONDS:.0f} s; asking for at most {self._fetch_bytes} bytes "
                         "from now on")
        elif why:
            self._outage.missed(why)
            is_over = standing.is_cut_off() and time.monotonic() > self._connected_at + _CUT_OFF_SECONDS
            if self._outage.away and (is_over or "certificate" in why.lower()):
                self._reopen(why)
        else:
            self._outage.reached()

    def _reopen(self, why: str) -> None:
        """Give this client up and make another one, on a thread of its own; what was not delivered is read again."""
        self._outage.missed(why, at_once=True)
        self._placed.clear()
        self._inquiry, self._fault = None, ""
        self._client.leave(0.0)
        self._opening = Opening(lambda: self._open(_REOPEN_SECONDS), Client.leave, self._pauses)

    def _await_opening(self) -> Batch:
        """An empty batch while there is no client."""
        assert self._opening is not None
        found = self._opening.take(_CONSUME_SECONDS)
        if found is not None:
            self._client, self._opening, self._connected_at = found, None, time.monotonic()
            self._ends.clear()
            self._paused.clear()
        elif self._opening.error:
            self._outage.missed(self._opening.error)
        return Batch(away=self._outage.away)
