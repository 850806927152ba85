"""Reading a source to the end of a condition, and the sources that every test of a broker's faults is run on."""

import time

from monitor.config import Kafka
from monitor.ingest.kafka import KafkaSource
from monitor.ingest.librdkafka import LibrdkafkaSource

WAIT_SECONDS = 90

#: What reads Kafka, by `kafka.transport`. One that joins this list must hold the contract of `flow.Source` as these tests
#: see it; what is not obvious from its words:
#: - a partition that is new in `Batch.assigned` brings no records in that batch, so that a state may be sought in between;
#: - where a partition was placed, an empty part says where it goes on; so does one past markers and aborted records;
#: - `kafka.start: latest` is the end when the source was made, and a partition added later begins at its beginning;
#: - records that retention took are in `Batch.lost`, a log that was cut back or made anew is SourceFailed;
#: - `Batch.topic_ids` are as Kafka's tools write them, and a topic with another id than `topic_ids=` says is SourceFailed;
#: - away brokers, wrong passwords, corrupt bytes end no source that has read: empty batches with `away`, one log line;
#: - `connection.METADATA_SECONDS`, `connection.REQUEST_SECONDS` and `outage.GRACE_SECONDS` are read when it is made.
TRANSPORTS = {"kafka-python": KafkaSource, "librdkafka": LibrdkafkaSource}


class Reading:
    """Takes batches until a condition holds and keeps what came, per partition."""

    def __init__(self, source):
        self.source, self.batches = source, iter(source)
        self.offsets, self.values, self.lost, self.caught_up, self.next_offsets = {}, {}, {}, frozenset(), {}
        self.longest_seconds, self.assigned, self.away, self.topic_ids = 0.0, frozenset(), "", {}

    def until(self, condition, seconds=WAIT_SECONDS):
        end = time.monotonic() + seconds
        while not condition(self):
            assert time.monotonic() < end, f"not within {seconds} s: {self.offsets}, lost {self.lost}"
            begun = time.monotonic()
            self.take(next(self.batches))
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - begun)
        return self

    def take(self, batch):
        for part in batch.parts:
            key = (part.topic, part.partition)
            assert part.next_offset >= self.next_offsets.get(key, 0)
            self.next_offsets[key] = part.next_offset
            if not len(part):                       # where it begins, or went past what is no event
                continue
            self.offsets.setdefault(key, []).extend(part.offsets.tolist())
            self.values.setdefault(key, []).extend(part.values)
            assert part.next_offset == part.offsets[-1] + 1
        for key, count in batch.lost.items():
            self.lost[key] = self.lost.get(key, 0) + count
        self.assigned, self.caught_up, self.away, self.topic_ids = batch.assigned, batch.caught_up, batch.away, batch.topic_ids

    def count(self):
        return sum(map(len, self.offsets.values()))


def has(n):
    return lambda reading: reading.count() >= n


def quick(broker, group, **options):
    return Kafka(bootstrap_servers=[broker.bootstrap_servers], group=group, session_timeout_seconds=6, **options)


def numbers(first, last):
    return [b'{"n": %d}' % n for n in range(first, last)]
