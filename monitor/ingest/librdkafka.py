"""Events from Kafka by librdkafka: the optional, faster transport behind the same seam as `kafka`.

The C library fetches, checks and decompresses in threads of its own; the public `consume` hands over as many messages as
a batch takes, and from each only value, offset and time are taken. Everything else is as in `kafka`: offsets live in our
own state, the group's follow for lag tools and are never read, the automatic reset is off, and what retention removed
is counted. A rebalance gives us partitions without a position: none of them is fetched from before the loop has asked for
both its ends and placed it, so the broker's idea of where to go on never counts.

Invariant: of every partition that stays with us, records are delivered in order, each once, none skipped but those that
`Batch.lost` counts. Placing one partition places all anew, each at its own progress; what was fetched for them before is
thrown away by the client and, should it still come, by us, since its offsets are below that progress.

Where a partition ends is told by the client's end-of-partition events: they count past aborted transactions and their
markers, which no message shows.

Cost: about 1.6 us per event of 20 features on one core, of which a half is the client's message objects, 5 times less than
the default's. Memory: `fetch_bytes` of fetched messages, and one batch of message objects of 200 bytes each.
Neighbours: `connection` connects and explains failures; `kafka` is the default. The package is the extra `fast`.
"""

from __future__ import annotations

import difflib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np

from monitor.config import Kafka
from monitor.errors import ConfigError, SourceFailed, TidemarkError
from monitor.flow import Batch, Part, TopicPartition
from monitor.ingest.connection import START_SECONDS, ClientLog, connect, password

log = logging.getLogger("tidemark")

_CONSUME_SECONDS = 0.5                              # an empty batch at least once a second, with room to spare
_LOOKUP_SECONDS = 0.4                               # all look-ups of one turn together; what is left comes in the next
_TOPIC_SECONDS = 5.0                                # a topic made a moment ago is known everywhere after that
_CLOSE_SECONDS = 5.0
_RETRY_SECONDS = 0.2
#: A fetch may hold one message that is larger than all limits; a broker's answer beyond this is no answer.
_ANSWER_BYTES = 1 << 30


def client() -> Any:
    """The package confluent_kafka, imported now; ConfigError naming the extra without it."""
    try:
        import confluent_kafka
    except ImportError:
        raise ConfigError("kafka.transport: expected the package confluent-kafka for librdkafka, found none; "
                          "install it with: pip install 'tidemark[fast]', or remove `transport`") from None
    return confluent_kafka


def client_settings(kafka: Kafka, secret: str | None) -> dict[str, Any]:
    """The `kafka` section in librdkafka's words."""
    security = kafka.security
    settings: dict[str, Any] = {
        "bootstrap.servers": ",".join(kafka.bootstrap_servers), "client.id": kafka.client_id,
        "security.protocol": security.protocol, "reconnect.backoff.max.ms": 5_000, "log.connection.close": False,
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


class _Told:
    """What the client says outside of messages; its callbacks run within `consume` and only note."""

    def __init__(self, library: Any, secret: str | None) -> None:
        self._library, self._secret = library, secret
        self.granted: set[TopicPartition] = set()
        self.changed: set[TopicPartition] = set()
        self.refused: Any = None                    # the last refusal of our credentials or rights
        self.fatal: Any = None
        self._log = logging.getLogger("kafka.librdkafka")

    def error(self, error: Any) -> None:
        """A failure of a connection, or of everything."""
        words, kinds = str(error.str()), self._library.KafkaError
        if self._secret:
            words = words.replace(self._secret, "***")
        if error.code() == kinds._AUTHENTICATION:
            self.refused = words
        elif error.fatal():
            self.fatal = words
        else:
            self._log.warning("Connection failed: %s", words)

    def granted_now(self, consumer: Any, partitions: Sequence[Any]) -> None:
        """A rebalance gave us these, and only these; they are fetched from when they are placed."""
        consumer.assign([])
        self.granted = {(one.topic, one.partition) for one in partitions}
        self.changed |= self.granted

    def taken(self, consumer: Any, partitions: Sequence[Any]) -> None:
        """A rebalance began, or we were thrown out: nothing is ours."""
        self.changed |= self.granted | {(one.topic, one.partition) for one in partitions}
        self.granted = set()
        consumer.unassign()

    def take_changed(self) -> set[TopicPartition]:
        """What came or went since the last call."""
        changed, self.changed = self.changed, set()
        return changed


def open_consumer(kafka: Kafka, *, wait_seconds: float = START_SECONDS) -> tuple[Any, ClientLog, _Told]:
    """A connected consumer without a subscription; SourceFailed with one line if it cannot be had."""
    library = client()
    session_ms = int(kafka.session_timeout_seconds * 1000)
    fixed = {
        "group.id": kafka.group, "session.timeout.ms": session_ms, "heartbeat.interval.ms": min(3000, session_ms // 3),
        "partition.assignment.strategy": "range,roundrobin",        # as the default transport: both may share a group
        "enable.auto.commit": False, "enable.auto.offset.store": False, "auto.offset.reset": "error",
        "isolation.level": "read_committed", "enable.partition.eof": True, "check.crcs": True,
        "fetch.max.bytes": kafka.fetch_bytes, "max.partition.fetch.bytes": min(kafka.fetch_bytes, 8 << 20),
        "queued.max.messages.kbytes": max(1024, kafka.fetch_bytes >> 10), "receive.message.max.bytes": _ANSWER_BYTES,
    }
    made: list[_Told] = []

    def make(options: dict[str, Any]) -> Any:
        secret = options.get("sasl_plain_password")
        told = _Told(library, secret)
        try:
            consumer = library.Consumer(client_settings(kafka, secret) | fixed | {"error_cb": told.error},
                                        logger=logging.getLogger("kafka.librdkafka"))
        except library.KafkaException as error:
            words = error.args[0].str() if error.args and hasattr(error.args[0], "str") else str(error)
            raise SourceFailed(f"kafka: {words[:300]}; check the kafka section of the configuration") from None
        try:
            consumer.list_topics(timeout=options["bootstrap_timeout_ms"] / 1000)
        except library.KafkaException as error:
            consumer.poll(0.05)                     # what the client wants to tell of it
            _closed(consumer)
            raise TimeoutError(str(error)) from None
        made.append(told)
        return consumer

    consumer, client_log = connect(make, kafka, wait_seconds=wait_seconds)
    return consumer, client_log, made[-1]


def _closed(consumer: Any) -> None:
    """Leave the group and end the client's threads; a broker that does not answer is left behind after a while."""
    thread = threading.Thread(target=consumer.close, name="tidemark-kafka-close", daemon=True)
    thread.start()
    thread.join(_CLOSE_SECONDS)


def partitions_of(consumer: Any, topic: str, wait_seconds: float = _TOPIC_SECONDS) -> list[int]:
    """The topic's partition numbers; SourceFailed, naming the nearest topic, if there is none."""
    library = client()
    end, known = time.monotonic() + wait_seconds, {}
    while True:
        try:
            known = consumer.list_topics(timeout=2.0).topics
            found = known.get(topic)
            if found is not None and found.error is None and found.partitions:
                return sorted(found.partitions)
            is_refused = found is not None and found.error is not None
            if is_refused and found.error.code() == library.KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise SourceFailed(f"kafka topic {topic!r}: expected the right to read it, got {found.error.str()[:200]}; "
                                   "ask for READ and DESCRIBE on it")
        except library.KafkaException as error:
            log.debug("Topic look-up failed.", extra={"topic": topic, "error": str(error)})
        if time.monotonic() >= end:
            break
        time.sleep(_RETRY_SECONDS)
    near = difflib.get_close_matches(topic, sorted(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "create it, or mend monitors[].topic (or the right to see it)"
    raise SourceFailed(f"kafka topic {topic!r}: expected it to exist, got no such topic; {hint}")


class LibrdkafkaSource:
    """Batches from topics, as a member of the group `kafka.group`; arguments as `KafkaSource`'s.

    api_version : not needed, the library asks the broker; taken so that both transports are built alike
    """

    def __init__(self, kafka: Kafka, topics: Sequence[str], *, api_version: tuple[int, ...] | None = None,
                 wait_seconds: float = START_SECONDS) -> None:
        self._kafka, self._library, self._topics = kafka, client(), list(topics)
        self._consumer, self._client_log, self._told = open_consumer(kafka, wait_seconds=wait_seconds)
        self._next: dict[TopicPartition, int] = {}          # where reading goes on: the state's offsets, then our own
        self._ends: dict[TopicPartition, int] = {}          # where a partition was last read to its end
        self._latest: dict[TopicPartition, int] = {}        # the ends at our start, where `kafka.start` is `latest`
        self._placed: set[TopicPartition] = set()           # assigned, and fetched from where it goes on
        self._held: set[TopicPartition] = set()             # too far ahead of the others: to be paused
        self._paused: set[TopicPartition] = set()
        self._closed = False
        message = self._library.Message
        self._value, self._offset, self._error = message.value, message.offset, message.error
        self._partition, self._topic, self._timestamp = message.partition, message.topic, message.timestamp
        try:
            for topic in topics:
                for number in partitions_of(self._consumer, topic):
                    if kafka.start == "latest":     # a partition that is added later begins at its beginning
                        self._latest[topic, number] = self._consumer.get_watermark_offsets(
                            self._library.TopicPartition(topic, number), timeout=_TOPIC_SECONDS)[1]
            self._consumer.subscribe(list(topics), on_assign=self._told.granted_now, on_revoke=self._told.taken,
                                     on_lost=self._told.taken)
        except self._library.KafkaException as error:
            self.close()
            raise SourceFailed(f"kafka: {str(error)[:300]}; the broker's log may say more") from None
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Batch]:
        while not self._closed:
            yield self._take()

    def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Go on from these offsets; partitions that are not named start at `kafka.start`."""
        self._next.update(offsets)
        self._placed.clear()

    def hold(self, partitions: Collection[TopicPartition]) -> None:
        """Pause these, resume all others, from the next batch on."""
        self._held = set(partitions)

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tell Kafka what is stored; it is told again with the next checkpoint, so a failure is only noted."""
        told = [self._library.TopicPartition(*key, offset) for key, offset in offsets.items() if key in self._told.granted]
        if told:
            try:
                self._consumer.commit(offsets=told, asynchronous=True)
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
            _closed(self._consumer)
            self._client_log.close()

    def _newest(self, key: TopicPartition) -> int:
        """The end that the last fetch told; -1 before the first."""
        try:
            ends = self._consumer.get_watermark_offsets(self._library.TopicPartition(*key), cached=True)
        except self._library.KafkaException:
            return -1
        return int(ends[1]) if ends is not None else -1

    def _take(self) -> Batch:
        """One batch: what came, and what a rebalance or retention asks us to do."""
        self._pause()
        try:
            messages = self._consumer.consume(self._kafka.poll_records, _CONSUME_SECONDS)
        except self._library.KafkaException as error:
            messages = []
            log.debug("Kafka error, trying again.", extra={"error": str(error)})
            time.sleep(_RETRY_SECONDS)
        self._refuse_lasting()
        events = [i for i, error in enumerate(map(self._error, messages)) if error is not None]
        overtaken = self._note([messages[i] for i in events])
        if events:
            marked = set(events)
            messages = [message for i, message in enumerate(messages) if i not in marked]
        assigned = set(self._told.granted)
        self._placed -= self._told.take_changed() | overtaken
        self._placed &= assigned
        parts = [*self._parts(messages), *self._moved_on()]
        known = set(self._placed)
        lost = self._place(assigned - self._placed)
        parts += [self._nothing(key) for key in sorted(self._placed - known)]       # where each new one goes on
        caught_up = frozenset(key for key in self._placed
                              if self._ends.get(key, -1) >= self._next[key] or self._next[key] >= self._newest(key) >= 0)
        return Batch(parts=tuple(parts), assigned=frozenset(assigned), caught_up=caught_up, lost=lost)

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
            yield Part(*key, taken, offsets[places], times[places], self._next[key])

    def _note(self, events: Sequence[Any]) -> set[TopicPartition]:
        """Ends that were reached; the partitions whose position retention has overtaken are returned."""
        kinds, overtaken = self._library.KafkaError, set()
        for event in events:                        # turns: events that are no messages, few
            error, key = event.error(), (event.topic(), event.partition())
            code = error.code()
            if code == kinds._PARTITION_EOF:
                self._ends[key] = event.offset()
            elif code in (kinds._AUTO_OFFSET_RESET, kinds.OFFSET_OUT_OF_RANGE):
                overtaken.add(key)
            elif code in (kinds.TOPIC_AUTHORIZATION_FAILED, kinds.GROUP_AUTHORIZATION_FAILED):
                raise SourceFailed(f"kafka: expected the right to read as group {self._kafka.group!r}, got "
                                   f"{error.str()[:300]}; ask for READ on the topics and the group")
            else:
                log.debug("Kafka error, trying again.", extra={"error": str(error)})
        return overtaken

    def _refuse_lasting(self) -> None:
        """SourceFailed for what waiting does not mend; a password that was changed since is used from now on."""
        if self._told.fatal is not None:
            raise SourceFailed(f"kafka: {self._told.fatal[:300]}; the broker's log may say more")
        if self._told.refused is not None:
            words, self._told.refused = self._told.refused, None
            secret = password(self._kafka)
            if secret == self._told._secret:
                raise SourceFailed(f"kafka: expected the right to read as group {self._kafka.group!r}, got {words[:300]}; "
                                   "check mechanism, username and password_file")
            self._told._secret = secret
            self._consumer.set_sasl_credentials(self._kafka.security.username, secret)

    def _place(self, new: set[TopicPartition]) -> dict[TopicPartition, int]:
        """Begin to fetch new partitions where they go on; what retention removed before that is returned."""
        lost: dict[TopicPartition, int] = {}
        ready, end = False, time.monotonic() + _LOOKUP_SECONDS
        for key in sorted(new):                     # turns: new partitions, until this turn's time is up
            left = end - time.monotonic()
            if left <= 0:
                break
            try:
                ends = self._consumer.get_watermark_offsets(self._library.TopicPartition(*key), timeout=left)
            except self._library.KafkaException as error:
                log.debug("Offsets were not told, trying again.", extra={"error": str(error)})
                break                               # nothing of it is delivered; the next turn asks again
            if ends is None:
                break
            first, last = ends
            wanted = self._next.get(key, self._latest.get(key, first))
            if wanted > last:
                raise SourceFailed(
                    f"kafka topic {key[0]!r} partition {key[1]}: expected to go on at offset {wanted}, got an "
                    f"end of {last}; was the topic made anew? Start with another service.state, or restore the topic")
            if wanted < first:
                lost[key] = first - wanted
                log.warning("Retention overtook us.", extra={
                    "topic": key[0], "partition": key[1], "records": first - wanted})
                wanted = first
            self._next[key] = wanted
            self._placed.add(key)
            ready = True
        if ready:
            self._consumer.assign([self._library.TopicPartition(*key, self._next[key]) for key in sorted(self._placed)])
            self._ends.clear()                      # told again, from where each goes on
            self._paused.clear()
            self._pause()
        return lost

    def _pause(self) -> None:
        """Pause what is held, resume what is no longer."""
        try:
            if over := (self._paused - self._held) & self._placed:
                self._consumer.resume([self._library.TopicPartition(*key) for key in over])
            if fresh := (self._held & self._placed) - self._paused:
                self._consumer.pause([self._library.TopicPartition(*key) for key in fresh])
            self._paused = self._held & self._placed
        except self._library.KafkaException as error:
            log.debug("Partitions were not paused.", extra={"error": str(error)})


def probe(kafka: Kafka, topics: Sequence[str], *, wait_seconds: float = 10.0) -> list[tuple[str, bool, str]]:
    """Checks for `tidemark doctor`: (what, whether it is well, one line)."""
    try:
        library = client()
    except ConfigError as error:
        return [("kafka transport", False, str(error))]
    checks = [("kafka transport", True, f"librdkafka {library.libversion()[0]}")]
    try:
        consumer, client_log, _ = open_consumer(kafka, wait_seconds=wait_seconds)
    except TidemarkError as error:
        return [*checks, ("kafka brokers", False, str(error))]
    checks += [("kafka brokers", True, f"reached {', '.join(kafka.bootstrap_servers)} with {kafka.security.protocol}")]
    try:
        some = None
        for topic in topics:
            try:
                keys = [library.TopicPartition(topic, number) for number in partitions_of(consumer, topic, wait_seconds=1.0)]
                ends = [consumer.get_watermark_offsets(key, timeout=5.0) or (0, 0) for key in keys]
                some = some or keys[0]
                checks.append((f"kafka topic {topic}", True, f"{len(keys)} partitions, "
                               f"{sum(last - first for first, last in ends)} records kept"))
            except (SourceFailed, library.KafkaException) as error:
                checks.append((f"kafka topic {topic}", False, str(error)[:300]))
        if some is not None:
            try:
                offset = consumer.committed([some], timeout=5.0)[0].offset
                text = "nothing committed yet" if offset < 0 else "has committed offsets"
                checks.append((f"kafka group {kafka.group}", True, f"readable, {text}"))
            except library.KafkaException as error:
                checks.append((f"kafka group {kafka.group}", False, f"expected the right to read it, got {str(error)[:200]}; "
                               "ask for READ on the group"))
    finally:
        _closed(consumer)
        client_log.close()
    return checks
