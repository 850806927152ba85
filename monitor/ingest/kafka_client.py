"""The Kafka client library, made safe: clients that say why they cannot be had, a writer, and looks at a topic.

`open_consumer` and `KafkaWriter` are the ways in; `probe` is what `tidemark doctor` asks. Topics are looked up by
`partitions_of`, which names the nearest one where there is none. `keep_joining` and `committed_now` are for members of a group.

Invariants: a client that cannot be had leaves no thread behind and says why in one line; between attempts to reach a
broker there are growing pauses; no call waits without end. Neighbours: `kafka` reads events with it, `span` the newest ones
for a reference, `state_topic` writes and reads a state, `deadletters` writes what was refused, `connection` gives options
and reasons.
"""

from __future__ import annotations

import difflib
import logging
import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaConsumer, KafkaProducer
from kafka import TopicPartition as ClientPartition
from kafka.errors import AuthorizationError, KafkaError, KafkaTimeoutError
from kafka.future import Future
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.record import util as record_util
from kafka.structs import MemberState, OffsetAndMetadata

from monitor.config import Kafka
from monitor.errors import SourceFailed, TidemarkError
from monitor.ingest import connection
from monitor.ingest.connection import START_SECONDS, ClientLog, connect

log = logging.getLogger("tidemark")

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
        "metadata_max_age_ms": int(connection.METADATA_SECONDS * 1000),
        "request_timeout_ms": int(connection.REQUEST_SECONDS * 1000),
    }
    return connect(lambda common: _made(KafkaConsumer, common | fixed | options), kafka, api_version=api_version,
                   wait_seconds=wait_seconds)


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    """The client's connections, with pauses between attempts also where TCP succeeds and nothing behind it.

    kafka-python 3.0 forgets its back-off as soon as a port accepts, and so asks a load balancer without a backend, or a
    broker that refuses our password, hundreds of times a second.
    """

    def reset_backoff(self, node_id: Any) -> None:
        """Called after each attempt, whether the broker let us in or not."""
        connection = self._conns.get(node_id)
        if connection is not None and connection.connected:
            super().reset_backoff(node_id)
        else:
            self.update_backoff(node_id)


def _made(kind: Any, options: dict[str, Any]) -> Any:
    """The client, or TimeoutError with its threads ended: a constructor that fails leaves them running."""
    inner: list[Any] = []

    def net_client(**settings: Any) -> Any:
        network = NetworkSelector(**settings)
        inner.append(KafkaNetClient(net=network, manager=_Connections(network, **settings), **settings))
        return inner[0]

    try:
        client = kind(**options, kafka_client=net_client)
        if client.config.get("api_version") and "api_version" in options:
            client.bootstrap(timeout_ms=options["bootstrap_timeout_ms"])    # a told version skips the eager one
        client.network = inner[0]                   # it has no public way of saying whether a broker is connected
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
        unanswered = ""
        try:
            if found := consumer.partitions_for_topic(topic):
                return sorted(found)
        except AuthorizationError as error:
            raise SourceFailed(f"kafka topic {topic!r}: expected the right to read it, got {_named(error)}; "
                               "ask for READ and DESCRIBE on it") from None
        except KafkaError as error:
            unanswered = _named(error)
        if time.monotonic() >= end:
            break
        time.sleep(_BACKOFF_SECONDS)
    if unanswered:
        raise SourceFailed(f"kafka topic {topic!r}: expected an answer about it, got {unanswered!r}; can the addresses in the "
                           "brokers' advertised.listeners be reached from here?")
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


class _Kept(Future):  # type: ignore[misc]
    """What a join came to, which counts as not known until somebody waits for it."""

    def __init__(self, inner: Future) -> None:
        super().__init__()
        self.inner = inner
        self._is_asked = False

    def _ask(self) -> None:
        if not self._is_asked:
            self._is_asked = True
            self.inner.chain(self)

    def add_callback(self, *args: Any, **kwargs: Any) -> Future:
        """Somebody waits."""
        self._ask()
        return super().add_callback(*args, **kwargs)

    def add_errback(self, *args: Any, **kwargs: Any) -> Future:
        """Somebody waits."""
        self._ask()
        return super().add_errback(*args, **kwargs)


def keep_joining(consumer: KafkaConsumer) -> None:
    """Call it after each poll of a group's member: sees that a join that outlasts the poll is gone on with.

    kafka-python 3.0 mistakes such a join in two ways. One that ends between two polls it throws away, and begins another,
    for which all members have to join again; busy ones may never come to an end so. And where it joined because a topic's
    partitions had changed, it forgets why as soon as it has shared them out: if the poll ends just then, no later one goes on.
    The member then sends no heartbeats any more, is given nothing, and never learns that others have gone.
    """
    coordinator = consumer._coordinator
    if (joining := getattr(coordinator, "_join_task", None)) is not None:
        coordinator._join_task = _Kept(joining.inner if isinstance(joining, _Kept) else joining)
    if coordinator.state is MemberState.REBALANCING and not coordinator.need_rejoin():
        coordinator.request_rejoin()


def committed_now(consumer: KafkaConsumer, key: ClientPartition, timeout_ms: int) -> OffsetAndMetadata | None:
    """What the group has committed of a partition, as it stands now; None where it has not. Raises KafkaError.

    kafka-python 3.0 gives the answer to a question for which nobody waited to the end to whoever asks the same next, however
    much later. So only the answer to a second question, asked when the first was answered, is believed.
    """
    consumer.committed(key, metadata=True, timeout_ms=timeout_ms)
    return consumer.committed(key, metadata=True, timeout_ms=timeout_ms)


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
