"""The client library confluent-kafka, made safe: a consumer that says what it sees, and questions that nobody waits for.

    open_client   a connected consumer with its log, or one line that says why there is none
    Told          what the consumer says besides messages: refusals, failures, rebalances, whom it is connected to
    Inquiry       both ends of partitions and the ids of topics, asked at once and fetched when they are there
    probe         what `tidemark doctor` asks

The library hides most of what we must know: that a broker is away stands only in its statistics, that a topic was made
anew only in a description that another of its clients asks for. So every consumer has an admin client beside it (one more
connection to a broker), and its statistics are read four times per grace of an outage (`outage.GRACE_SECONDS`).

Invariants: a client that cannot be had leaves no thread behind and says why in one line; a password stands in no words;
no question waits in the loop; leaving does not either, unless it is the last thing that is done. Neighbours: `librdkafka`
reads events with it, `connection` gives reasons and secrets, `kafka_client` is the same for the default transport.
"""

from __future__ import annotations

import difflib
import logging
import re
import socket
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any

import msgspec

from monitor.config import Kafka
from monitor.documents import read_json
from monitor.errors import ConfigError, SourceFailed, TidemarkError
from monitor.flow import TopicPartition
from monitor.ingest import connection, outage
from monitor.ingest.connection import START_SECONDS, ClientLog, connect

log = logging.getLogger("tidemark")

_TOPIC_SECONDS = 5.0                                # a topic made a moment ago is known everywhere after that
_CLOSE_SECONDS = 5.0
_RETRY_SECONDS = 0.2
_KNOCK_SECONDS = 2.0                                # for a TCP connection to one broker
_FIRST_LOOK_SECONDS = 0.5                           # doubled each time
#: A fetch may hold one message that is larger than all limits; a broker's answer beyond this is no answer.
_ANSWER_BYTES = 1 << 30


def library() -> Any:
    """The package confluent_kafka, imported now; ConfigError naming the extra without it."""
    try:
        import confluent_kafka
        import confluent_kafka.admin
    except ImportError:
        raise ConfigError("kafka.transport: expected the package confluent-kafka for librdkafka, found none; "
                          "install it with: pip install 'tidemark[fast]', or remove `transport`") from None
    return confluent_kafka


def client_settings(kafka: Kafka, secret: str | None) -> dict[str, Any]:
    """The `kafka` section in librdkafka's words."""
    security, request_ms = kafka.security, int(connection.REQUEST_SECONDS * 1000)
    settings: dict[str, Any] = {
        "bootstrap.servers": ",".join(kafka.bootstrap_servers), "client.id": kafka.client_id,
        "security.protocol": security.protocol, "log.connection.close": False,
        # The pauses grow where nobody listens; a port that accepts and hangs up is asked again after the first one, always.
        "reconnect.backoff.ms": 1_000, "reconnect.backoff.max.ms": 5_000,
        "socket.timeout.ms": request_ms, "socket.connection.setup.timeout.ms": request_ms,
        "allow.auto.create.topics": False,
    }
    if security.protocol.endswith("SSL"):
        settings["ssl.ca.location"] = security.ca_file or "probe"
        settings["ssl.endpoint.identification.algorithm"] = "https" if security.check_hostname else "none"
        if security.certificate_file:
            settings["ssl.certificate.location"] = security.certificate_file
            settings["ssl.key.location"] = security.key_file or security.certificate_file
    if security.protocol.startswith("SASL"):
        settings |= {"sasl.mechanism": security.mechanism, "sasl.username": security.username, "sasl.password": secret}
    return settings


def consumer_settings(kafka: Kafka, fetch_bytes: int) -> dict[str, Any]:
    """What only a consumer is told, also in librdkafka's words; times are read from `connection` and `outage` now."""
    session_ms, refresh_ms = int(kafka.session_timeout_seconds * 1000), int(connection.METADATA_SECONDS * 1000)
    return {
        "group.id": kafka.group, "session.timeout.ms": session_ms, "heartbeat.interval.ms": min(3000, session_ms // 3),
        "partition.assignment.strategy": "range,roundrobin",        # as the default transport: both may share a group
        "enable.auto.commit": False, "enable.auto.offset.store": False, "auto.offset.reset": "error",
        "isolation.level": "read_committed", "enable.partition.eof": True, "check.crcs": True,
        # message.max.bytes is a producer's, but the library fetches no less than it at once.
        "message.max.bytes": min(fetch_bytes, 1_000_000), "fetch.max.bytes": fetch_bytes,
        "max.partition.fetch.bytes": min(fetch_bytes, 8 << 20), "queued.max.messages.kbytes": max(1024, fetch_bytes >> 10),
        "receive.message.max.bytes": _ANSWER_BYTES,
        "topic.metadata.refresh.interval.ms": refresh_ms, "metadata.max.age.ms": 3 * refresh_ms,
        "statistics.interval.ms": int(min(max(outage.GRACE_SECONDS * 250, 100), 1000)),
    }


class _Broker(msgspec.Struct):
    nodeid: int = -1
    state: str = ""
    req_timeouts: int = 0


class _Partition(msgspec.Struct):
    leader: int = -1
    broker: int = -1                                # whom it is fetched from: the leader, or a follower nearby


class _Topic(msgspec.Struct):
    partitions: dict[str, _Partition]


class Standing(msgspec.Struct):
    """The few fields that we need of the library's statistics (STATISTICS.md of librdkafka)."""

    brokers: dict[str, _Broker] = {}
    topics: dict[str, _Topic] = {}

    @property
    def timed_out(self) -> int:
        """How many requests were not answered in time, since the client was made."""
        return sum(broker.req_timeouts for broker in self.brokers.values())

    def is_cut_off(self) -> bool:
        """Whether not one broker is connected."""
        return not self._up()

    def _up(self) -> set[int]:
        return {broker.nodeid for broker in self.brokers.values() if broker.state in ("UP", "UPDATE")}

    def lack(self, needed: Collection[TopicPartition], why: str) -> str:
        """Why something that we need is not connected, in the words of `why` where a connection is; empty where all is.

        Without partitions it is enough that any broker is.
        """
        up = self._up()
        for topic, number in sorted(needed):
            known = self.topics.get(topic)
            partition = known.partitions.get(str(number)) if known is not None else None
            if partition is None or partition.leader < 0:
                return f"partition {number} of topic {topic!r} has no leader"
            if not {partition.leader, partition.broker} & up:
                return why
        return "" if up else why


class Told:
    """What the client says outside of messages; its callbacks run within `consume` and only note.

    refused : the brokers' words when they refused our credentials        fatal : what ends this client
    failed  : the last words about a connection that failed or was lost   granted : the partitions that are ours
    """

    def __init__(self, secret: str | None) -> None:
        self._kinds, self._secret = library().KafkaError, secret
        self.granted: set[TopicPartition] = set()
        self.refused = self.fatal = self.failed = ""
        self._changed: set[TopicPartition] = set()
        self._statistics: str | None = None

    def error(self, error: Any) -> None:
        """A failure of a connection, or of everything."""
        words = self.blanked(error.str())
        if error.code() == self._kinds._AUTHENTICATION:
            self.refused = words
        elif error.fatal():
            self.fatal = words
        elif error.code() != self._kinds._ALL_BROKERS_DOWN:             # it says of none why
            self.failed = words

    def blanked(self, words: str) -> str:
        """At most 300 characters of the client's words, without our password and what differs from time to time."""
        words = re.sub(r" \(after \d+ms in state .*", "", words)
        return (words.replace(self._secret, "***") if self._secret else words)[:300]

    def statistics(self, text: str) -> None:
        """How the client stands, a few times a second."""
        self._statistics = text

    def take_standing(self) -> Standing | None:
        """How it stands; None where it has not told since the last call."""
        text, self._statistics = self._statistics, None
        return read_json(text, Standing) if text is not None else None

    def granted_now(self, consumer: Any, partitions: Sequence[Any]) -> None:
        """A rebalance gave us these, and only these; they are fetched from when they are placed."""
        consumer.assign([])
        self.granted = {(one.topic, one.partition) for one in partitions}
        self._changed |= self.granted

    def taken(self, consumer: Any, partitions: Sequence[Any]) -> None:
        """A rebalance began, or we were thrown out: nothing is ours."""
        self._changed |= self.granted | {(one.topic, one.partition) for one in partitions}
        self.granted = set()
        consumer.unassign()

    def take_changed(self) -> set[TopicPartition]:
        """What came or went since the last call."""
        changed, self._changed = self._changed, set()
        return changed


@dataclass(slots=True)
class Client:
    """A consumer, the admin client beside it, what the consumer tells, and the log of both."""

    consumer: Any
    admin: Any
    told: Told
    log: ClientLog

    def leave(self, wait_seconds: float = _CLOSE_SECONDS) -> None:
        """Leave the group and end both clients; brokers that do not answer are left behind after a while."""
        thread = threading.Thread(target=_end, args=(self.consumer, [self.admin], self.log), name="kafka-leaving", daemon=True)
        self.admin = None
        thread.start()
        thread.join(wait_seconds)


def _end(consumer: Any, admin: list[Any], client_log: ClientLog | None = None) -> None:
    """The library ends an admin client where its last reference goes: here. Until then both may have something to log."""
    consumer.close()
    admin.clear()
    if client_log is not None:
        client_log.close()


def open_client(kafka: Kafka, *, wait_seconds: float = START_SECONDS, fetch_bytes: int | None = None) -> Client:
    """A connected consumer without a subscription; SourceFailed with one line if it cannot be had."""
    kinds = library()

    def make(options: dict[str, Any]) -> tuple[Any, Any, Told]:
        secret = options.get("sasl_plain_password")
        told, settings, client_log = Told(secret), client_settings(kafka, secret), logging.getLogger("kafka.librdkafka")
        own = consumer_settings(kafka, fetch_bytes or kafka.fetch_bytes)
        try:
            consumer = kinds.Consumer(settings | own | {"error_cb": told.error, "stats_cb": told.statistics}, logger=client_log)
            admin = kinds.admin.AdminClient(settings | {"reconnect.backoff.ms": 5_000}, logger=client_log)
        except kinds.KafkaException as error:
            words = error.args[0].str() if error.args and hasattr(error.args[0], "str") else str(error)
            raise SourceFailed(f"kafka: {told.blanked(words)}; check the kafka section of the configuration") from None
        try:
            found = _first_look(consumer, told, options["bootstrap_timeout_ms"] / 1000)
            _refuse_unreachable(kafka, [f"{one.host}:{one.port}" for one in found.brokers.values()])
        except BaseException:
            _end(consumer, [admin])
            raise
        return consumer, admin, told

    (consumer, admin, told), client_log = connect(make, kafka, wait_seconds=wait_seconds)
    told.failed = ""                                # of the first attempts
    return Client(consumer, admin, told, client_log)


def _first_look(consumer: Any, told: Told, seconds: float) -> Any:
    """The cluster as the first broker that answers knows it; TimeoutError in time, or as soon as we are refused."""
    end, slice_seconds = time.monotonic() + seconds, _FIRST_LOOK_SECONDS
    while True:
        try:
            return consumer.list_topics(timeout=max(0.1, min(slice_seconds, end - time.monotonic())))
        except library().KafkaException as error:
            consumer.poll(0.01)                     # what the client wants to tell of it
            if told.refused or time.monotonic() >= end:
                raise TimeoutError(str(error)) from None
            slice_seconds *= 2


def _refuse_unreachable(kafka: Kafka, brokers: Sequence[str]) -> None:
    """SourceFailed where none of the addresses can be reached that the brokers tell; the client would try without a word."""
    end = time.monotonic() + _TOPIC_SECONDS
    while brokers and not set(brokers) & set(kafka.bootstrap_servers):
        for server in brokers:                      # turns: brokers, until the first that is there
            host, _, port = server.rpartition(":")
            try:
                socket.create_connection((host, int(port)), _KNOCK_SECONDS).close()
                return
            except OSError:
                continue
        if time.monotonic() >= end:
            raise SourceFailed(f"kafka.bootstrap_servers: expected brokers that can be reached, got a cluster at "
                               f"{', '.join(brokers)[:200]!r}, which cannot; can the addresses in the brokers' "
                               "advertised.listeners be reached from here?")
        time.sleep(_RETRY_SECONDS)


def partitions_of(consumer: Any, topic: str, wait_seconds: float = _TOPIC_SECONDS) -> list[int]:
    """The topic's partition numbers; SourceFailed, naming the nearest topic, if there is none."""
    kinds = library()
    end, known = time.monotonic() + wait_seconds, {}
    while True:
        try:
            known = consumer.list_topics(timeout=2.0).topics
            found = known.get(topic)
            if found is not None and found.error is None and found.partitions:
                return sorted(found.partitions)
            is_refused = found is not None and found.error is not None
            if is_refused and found.error.code() == kinds.KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise SourceFailed(f"kafka topic {topic!r}: expected the right to read it, got {found.error.str()[:200]}; "
                                   "ask for READ and DESCRIBE on it")
        except kinds.KafkaException as error:
            log.debug("Topic look-up failed.", extra={"topic": topic, "error": str(error)})
        if time.monotonic() >= end:
            break
        time.sleep(_RETRY_SECONDS)
    near = difflib.get_close_matches(topic, sorted(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "create it, or mend monitors[].topic (or the right to see it)"
    raise SourceFailed(f"kafka topic {topic!r}: expected it to exist, got no such topic; {hint}")


class Inquiry:
    """Asks for the first and the next offset of partitions, and for the ids of topics; all at once, waited for by nobody.

    keys : the partitions that are asked for; may be none
    """

    def __init__(self, admin: Any, topics: Collection[str], keys: Iterable[TopicPartition]) -> None:
        kinds = library()
        self.keys = frozenset(keys)
        self._kinds, limit = kinds.KafkaError, connection.REQUEST_SECONDS
        admin.poll(0)                               # what it logged; nothing else is told there
        self._topics = admin.describe_topics(kinds.TopicCollection(list(topics)), request_timeout=limit)

        def offsets(spec: Any) -> Mapping[Any, Any]:
            asked = {kinds.TopicPartition(*key): spec for key in sorted(self.keys)}
            level = kinds.IsolationLevel.READ_COMMITTED
            found = admin.list_offsets(asked, isolation_level=level, request_timeout=limit) if asked else {}
            return {(key.topic, key.partition): future for key, future in found.items()}

        self._first = offsets(kinds.admin.OffsetSpec.earliest())
        self._end = offsets(kinds.admin.OffsetSpec.latest())

    def is_done(self, seconds: float = 0.0, *, with_ids: bool = True) -> bool:
        """Whether all was answered or given up, waited for that long; `with_ids` without which only the ends count."""
        asked = [*self._first.values(), *self._end.values(), *(self._topics.values() if with_ids else ())]
        return not wait(asked, seconds).not_done

    def ends(self) -> dict[TopicPartition, tuple[int, int]]:
        """Offset of the first record that is kept, and behind the last one, of every partition whose leader answered."""
        found = {}
        for key, first in self._first.items():
            if first.exception() is None and self._end[key].exception() is None:
                found[key] = (int(first.result().offset), int(self._end[key].result().offset))
        return found

    def failure(self) -> str:
        """Why an answer is lacking; empty where none is."""
        asked = (*self._first.values(), *self._end.values(), *self._topics.values())
        failed = (one.exception() for one in asked if one.done())
        return next((str(error)[:200] for error in failed if error is not None), "")

    def topics(self) -> dict[str, str | None]:
        """The ids of the topics that were answered for, "" where a broker knows of none; None of those that do not exist."""
        found: dict[str, str | None] = {}
        for topic, future in self._topics.items():
            if not future.done():
                continue
            if (error := future.exception()) is None:
                topic_id = future.result().topic_id
                halves = (topic_id.get_most_significant_bits(), topic_id.get_least_significant_bits()) if topic_id else ()
                found[topic] = connection.shown_id(b"".join((half % 2**64).to_bytes(8) for half in halves))
            elif error.args and getattr(error.args[0], "code", int)() == self._kinds.UNKNOWN_TOPIC_OR_PART:
                found[topic] = None
        return found


def probe(kafka: Kafka, topics: Sequence[str], *, wait_seconds: float = 10.0) -> list[tuple[str, bool, str]]:
    """Checks for `tidemark doctor`: (what, whether it is well, one line)."""
    try:
        kinds = library()
    except ConfigError as error:
        return [("kafka transport", False, str(error))]
    checks = [("kafka transport", True, f"librdkafka {kinds.libversion()[0]}")]
    try:
        client = open_client(kafka, wait_seconds=wait_seconds)
    except TidemarkError as error:
        return [*checks, ("kafka brokers", False, str(error))]
    checks += [("kafka brokers", True, f"reached {', '.join(kafka.bootstrap_servers)} with {kafka.security.protocol}")]
    consumer = client.consumer
    try:
        some = None
        for topic in topics:
            try:
                keys = [kinds.TopicPartition(topic, number) for number in partitions_of(consumer, topic, wait_seconds=1.0)]
                ends = [consumer.get_watermark_offsets(key, timeout=5.0) or (0, 0) for key in keys]
                some = some or keys[0]
                checks.append((f"kafka topic {topic}", True, f"{len(keys)} partitions, "
                               f"{sum(last - first for first, last in ends)} records kept"))
            except (SourceFailed, kinds.KafkaException) as error:
                checks.append((f"kafka topic {topic}", False, str(error)[:300]))
        if some is not None:
            try:
                offset = consumer.committed([some], timeout=5.0)[0].offset
                text = "nothing committed yet" if offset < 0 else "has committed offsets"
                checks.append((f"kafka group {kafka.group}", True, f"readable, {text}"))
            except kinds.KafkaException as error:
                checks.append((f"kafka group {kafka.group}", False, f"expected the right to read it, got {str(error)[:200]}; "
                               "ask for READ on the group"))
    finally:
        client.leave()
    return checks
