"""A Kafka topic in a process of its own, so that neither its broker nor its producer is in what is measured.

The child plays the broker (`monitor.demo.broker`), fills the topics with lz4 batches of 128 KiB, says where it listens
and lives until its standard input is closed. The mock broker keeps 5 MiB of compressed bytes per partition and drops the
oldest silently: 60 MB of events need 16 partitions, and the reader must count what it got.

    with Topics((Topic("narrow", 20, 128_000),)) as topics:
        KafkaSource(Kafka(bootstrap_servers=topics.servers), ["narrow"], api_version=API_VERSION)
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

PARTITIONS = 16
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of the benchmarks' events; event i is in partition i modulo `partitions`."""

    name: str
    features: int
    events: int
    partitions: int = PARTITIONS


class Topics:
    """A broker that holds these topics, in a child process; a context manager.

    servers : where it listens, as `kafka.bootstrap_servers` wants it
    """

    def __init__(self, topics: tuple[Topic, ...]) -> None:
        order = json.dumps([asdict(topic) for topic in topics])
        self._child = subprocess.Popen([sys.executable, "-m", "benchmarks.topic", order], cwd=_ROOT, stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        answer = self._child.stdout.readline()
        if not answer:
            raise RuntimeError(f"the benchmark's broker ended with code {self._child.wait()} before it was ready")
        self.servers: list[str] = json.loads(answer)

    def __enter__(self) -> Topics:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._child.communicate()                   # closes its standard input, by which it ends


def serve(topics: list[Topic]) -> None:
    """The child: broker, producer, one line on standard output, then wait."""
    from confluent_kafka import Producer

    from benchmarks.events import START_MS, messages
    from monitor.demo.broker import InProcessBroker

    with InProcessBroker() as broker:
        producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "compression.type": "lz4", "log_level": 2,
                             "batch.size": 131_072, "linger.ms": 200, "queue.buffering.max.messages": 1_000_000})
        for topic in topics:
            broker.create_topic(topic.name, topic.partitions)
            for i, value in enumerate(messages(topic.features, topic.events)):
                producer.produce(topic.name, value, partition=i % topic.partitions, timestamp=START_MS + i)
                if not i % 20_000:
                    producer.poll(0)
            if left := producer.flush(120):
                raise RuntimeError(f"{left} events of topic {topic.name} were not stored")
        print(json.dumps(broker.bootstrap_servers.split(",")), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    serve([Topic(**topic) for topic in json.loads(sys.argv[1])])
