"""Our Kafka source against the bare loop over the client's `poll`: what offsets, rebalances and lag cost on top of it.

Both read the same lz4 topic of 16 partitions and 128 KiB batches from a broker in another process, with the same client
options, and must have read the same bytes: the sum of all values' hashes is compared, since the order of partitions is
the broker's affair. The CPU is that of this process from the first poll to the last.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from itertools import count

from kafka import KafkaConsumer

from benchmarks.measure import Bench, ratio_of
from benchmarks.topic import Topic, Topics
from monitor import config as configuration
from monitor.demo.broker import API_VERSION
from monitor.ingest.kafka import KafkaSource

EVENTS = 128_000
SECONDS_MAX = 120.0
_groups = count()


def bare(servers: Sequence[str], topic: Topic) -> tuple[float, list[bytes]]:
    """CPU seconds and values of the client's own loop."""
    fetch = configuration.Kafka().fetch_bytes
    consumer = KafkaConsumer(
        topic.name, bootstrap_servers=list(servers), api_version=API_VERSION, auto_offset_reset="earliest",
        group_id=f"bare-{os.getpid()}-{next(_groups)}", enable_auto_commit=False, max_poll_records=10_000,
        fetch_max_bytes=fetch, max_partition_fetch_bytes=min(fetch, 8 << 20), metrics_enabled=False,
        isolation_level="read_committed")
    values: list[bytes] = []
    start, deadline = time.process_time(), time.monotonic() + SECONDS_MAX
    while len(values) < topic.events and time.monotonic() < deadline:
        for found in consumer.poll(timeout_ms=500).values():
            values += [record.value for record in found]
    seconds = time.process_time() - start
    consumer.close(autocommit=False, timeout_ms=3000)
    return seconds, values


def ours(servers: Sequence[str], topic: Topic) -> tuple[float, list[bytes]]:
    """CPU seconds and values of the source."""
    kafka = configuration.Kafka(list(servers), group=f"ours-{os.getpid()}-{next(_groups)}")
    source = KafkaSource(kafka, [topic.name], api_version=API_VERSION)
    source.seek({})
    values: list[bytes] = []
    start, deadline = time.process_time(), time.monotonic() + SECONDS_MAX
    for batch in source:
        for part in batch.parts:
            values += part.values
        if len(values) >= topic.events or time.monotonic() > deadline:
            break
    seconds = time.process_time() - start
    source.close()
    return seconds, values


def digest(values: Iterable[bytes]) -> tuple[int, int]:
    """Number of the values and the sum of their hashes."""
    hashes = [int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little") for value in values]
    return len(hashes), sum(hashes)


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("transport: bare poll / our source", argv, repeat=7)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    topic = Topic("transport", 20, bench.sized(EVENTS))
    name = f"{topic.events} events of 20 features"
    with Topics((topic,)) as topics:
        (_, theirs), (_, own) = bare(topics.servers, topic), ours(topics.servers, topic)
        if len(own) != topic.events or digest(theirs) != digest(own):
            bench.bound(name, float("nan"), at_least=0.9, detail="results differ")
            return bench.finish()
        del theirs, own
        turns = [(bare(topics.servers, topic)[0], ours(topics.servers, topic)[0]) for _ in range(bench.repeat)]
    slow, fast = statistics.median(a for a, _ in turns), statistics.median(b for _, b in turns)
    ratio, words = ratio_of(turns)
    bench.bound(name, ratio, at_least=0.9,
                detail=f"poll {slow / topic.events * 1e9:.0f} ns, ours {fast / topic.events * 1e9:.0f} ns an event, {words}")
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
