"""The newest events of a topic, for `tidemark fit --topic`: read backwards from its end, without joining the group.

Idea. Each partition is read in steps from its end towards its beginning, each step forwards, until none can hold an event
that is newer than the oldest of those that are kept. So a few steps are enough where partitions are alike, and partitions
that are not alike, markers of transactions, and records that are no events cost further steps, never events.

Invariant: what comes back are the newest events by their records' times, as many as were asked for where the topic has them
(exactly, where the times of a partition do not run backwards). An Arrow message holds many events; of the oldest one the
last rows are taken. A record that the service would refuse whole is left out, and said.

Bounds: a message is looked at by the service's own decoder under the service's own limits, and what is kept at a time
takes at most `KEPT_BYTES`. Neighbours: `kafka_client` connects, `arrow` reads messages, `tables` makes columns of events.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition
from kafka.errors import KafkaError

from monitor.config import Kafka, Limits
from monitor.errors import ConfigError, SourceFailed
from monitor.ingest.arrow import ArrowDecoder
from monitor.ingest.arrow_headers import Unreadable
from monitor.ingest.connection import START_SECONDS
from monitor.ingest.kafka_client import ApiVersion, _named, open_consumer, partitions_of
from monitor.ingest.schema import StreamSchema
from monitor.ingest.tables import DataSet, as_document, from_batches, from_documents

#: Bytes of the events that are held while they are read, unpacked: JSON takes several times as many as Python objects.
KEPT_BYTES = 2 << 30
_POLL_MS = 500
#: Arrow messages of a partition that are read at first; how many events one holds is not known before.
_FIRST_MESSAGES = 16
_ARROW_MARKS = (b"\xff\xff\xff\xff", b"ARROW1")

Format = Literal["json", "arrow"]
#: A record's events, their number, the bytes that they take; Unreadable for a record that the service would refuse whole.
Reader = Callable[[bytes | None], tuple[Any, int, int]]


@dataclass(frozen=True, slots=True)
class _Record:
    """A readable record: where it stands (time, partition, offset), what it holds, events and bytes of it."""

    place: tuple[int, int, int]
    held: Any
    events: int
    size: int


@dataclass(slots=True)
class _Kept:
    """The newest records so far, and what was left out.

    records : in the order of their places, once `trim` was called      cut : time of the oldest, None while there are too few
    """

    wanted: int
    records: list[_Record] = field(default_factory=list)
    events: int = 0
    size: int = 0
    cut: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def add(self, record: _Record) -> None:
        """Keep a record; ConfigError where the newest events take too much."""
        self.records.append(record)
        self.events += record.events
        self.size += record.size
        if self.size > KEPT_BYTES or self.events > 4 * self.wanted + (1 << 20):
            self.trim()
        if self.size > KEPT_BYTES:
            raise ConfigError(f"--events: expected events of at most {KEPT_BYTES >> 20} MiB, got more in the newest "
                              f"{self.events}; ask for fewer of them")

    def trim(self) -> None:
        """Leave out the records all of whose events are older than the newest so many."""
        self.records.sort(key=lambda record: record.place)
        gone = 0
        while gone < len(self.records) and self.events - self.records[gone].events >= self.wanted:
            self.events -= self.records[gone].events
            self.size -= self.records[gone].size
            gone += 1
        del self.records[:gone]
        self.cut = self.records[0].place[0] if self.events >= self.wanted else None

    def refuse(self, partition: int, offset: int, unreadable: Unreadable) -> None:
        """Note a record that is left out."""
        self.first = self.first or f"partition {partition} offset {offset}: {unreadable.detail[:160]}"
        self.left_out[unreadable.reason] += 1


@dataclass(frozen=True, slots=True)
class Span:
    """The newest events, oldest first, and one line about records that were left out; empty where none was."""

    data: DataSet
    left_out: str


def read_span(kafka: Kafka, topic: str, events: int, progress: Callable[[int], None] | None = None, *, form: Format = "json",
              limits: Limits | None = None, api_version: ApiVersion = None) -> Span:
    """The newest `events` events of a topic in the order of their records' times.

    form : what a record is, as `schema.format`      limits : of a message, the service's own by default
    progress : called with the number of events read so far
    """
    limits = limits or Limits()
    kept = _Kept(events)
    consumer, client_log = open_consumer(kafka, api_version=api_version)
    try:
        keys = [ClientPartition(topic, number) for number in partitions_of(consumer, topic)]
        step = -(-events * 11 // (10 * len(keys))) + 10
        _read_back(consumer, keys, _arrow(limits) if form == "arrow" else _json(limits), kept,
                   min(step, _FIRST_MESSAGES) if form == "arrow" else step, progress)
    except KafkaError as error:
        raise SourceFailed(f"kafka topic {topic!r}: {_named(error)}; check the right to read it") from None
    finally:
        consumer.close(autocommit=False, timeout_ms=3000)
        client_log.close()
    spare = max(0, kept.events - events)            # of the oldest record
    if form == "arrow":
        found = from_batches(f"topic {topic}", _behind([batch for record in kept.records for batch in record.held], spare))
    else:
        found = from_documents(record.held for record in kept.records)
    return Span(found, _words(kept))


def _words(kept: _Kept) -> str:
    if not kept.left_out:
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in kept.left_out.most_common())
    n = kept.left_out.total()
    return f"{n} record{'s' if n > 1 else ''} left out ({reasons}); the first is {kept.first}"


def _read_back(consumer: KafkaConsumer, keys: Sequence[ClientPartition], reader: Reader, kept: _Kept, step: int,
               progress: Callable[[int], None] | None) -> None:
    """Read from the ends backwards until nothing that is left can be among the newest."""
    first, low = consumer.beginning_offsets(keys), dict(consumer.end_offsets(keys))
    oldest: dict[ClientPartition, int] = {}         # time of the oldest record that was read
    while True:                                     # turns: steps, twice as long each
        needed = [key for key in keys if low[key] > first[key]
                  and (kept.cut is None or key not in oldest or oldest[key] > kept.cut)]
        if not needed:
            return
        begin = {key: max(first[key], low[key] - step) for key in needed}
        _read_step(consumer, begin, low, reader, kept, oldest, progress)
        low |= begin
        kept.trim()
        if progress is not None:
            progress(min(kept.events, kept.wanted))
        step = min(2 * step, max(step, kept.wanted))


def _read_step(consumer: KafkaConsumer, begin: dict[ClientPartition, int], end: dict[ClientPartition, int], reader: Reader,
               kept: _Kept, oldest: dict[ClientPartition, int], progress: Callable[[int], None] | None) -> None:
    """Read each partition from one offset to another."""
    consumer.assign(list(begin))
    for key, offset in begin.items():
        consumer.seek(key, offset)
    seen: set[ClientPartition] = set()
    quiet_until = time.monotonic() + START_SECONDS
    while going := [key for key in begin if consumer.position(key) < end[key]]:
        consumer.pause(*(key for key in begin if key not in going))
        for key, found in consumer.poll(timeout_ms=_POLL_MS).items():
            quiet_until = time.monotonic() + START_SECONDS
            for record in found:
                if record.offset >= end[key]:
                    break
                if key not in seen:
                    seen.add(key)
                    oldest[key] = record.timestamp
                try:
                    held, events, size = reader(record.value)
                except Unreadable as unreadable:
                    kept.refuse(key.partition, record.offset, unreadable)
                    continue
                if events:
                    kept.add(_Record((record.timestamp, key.partition, record.offset), held, events, size))
        if progress is not None:
            progress(min(kept.events, kept.wanted))
        if time.monotonic() > quiet_until:
            raise SourceFailed(f"kafka topic {going[0].topic!r}: expected records, got none for {START_SECONDS:.0f} s; "
                               "check that its brokers run")


def _json(limits: Limits) -> Reader:
    """Records that are one JSON object each."""
    def read(value: bytes | None) -> tuple[Any, int, int]:
        if value is None:
            raise Unreadable("tombstone", "a record without a value")
        if len(value) > limits.message_bytes:
            raise Unreadable("too_large", f"{len(value)} bytes, limits.message_bytes is {limits.message_bytes}")
        if value.startswith(_ARROW_MARKS):
            raise Unreadable("json", "it looks like an Arrow message, which --format arrow reads")
        try:
            return as_document(value), 1, len(value)
        except RecursionError as error:
            raise Unreadable("depth", str(error)) from None
        except ValueError as error:
            raise Unreadable("json", f"expected a JSON object, got: {error}") from None

    return read


def _arrow(limits: Limits) -> Reader:
    """Records that are one Arrow IPC stream each."""
    decoder = ArrowDecoder("", StreamSchema(()), limits)

    def read(value: bytes | None) -> tuple[Any, int, int]:
        batches, size = decoder.batches(value)
        return batches, sum(map(len, batches)), size

    return read


def _behind(batches: Sequence[Any], spare: int) -> list[Any]:
    """Record batches without so many rows at the beginning."""
    left = []
    for batch in batches:
        taken = batch.slice(spare)
        spare = max(0, spare - len(batch))
        if len(taken):
            left.append(taken)
    return left
