"""One of several replicas: it counts its share of the partitions, and decides about the models that it owns.

    events ──> counting (this thread) ──> state topic ──> an owner's stages (one thread per partition of the state topic)

Kafka says who does what. The group `kafka.group` shares the event partitions out: whoever has one counts it and commits its
counts and its next offset in one transaction. The group `<kafka.group>.owners` shares the partitions of the state topic out:
a model belongs to the partition that its name falls on, and whoever has that builds the model's store from it, adds up what all
replicas counted, and judges, launches and shows as one process does (`pipeline`), each step in a transaction of its own.

Invariants. Of every event, its counts and the offset behind it are committed together, under the generation of the group that
gave us its partition. Of every partition of the state topic, only the youngest owner can commit. Whatever fails in between is
dropped with all that rests on it, and read again from what is committed.

Neighbours: `owner` decides, `ingest.state_topic` is Kafka's side, `state.replica_share` what is counted, `state.replica_store`
what is decided.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
import zlib
from collections.abc import Collection
from dataclasses import replace

from detectors.reference import Reference
from monitor.config import Config
from monitor.errors import CheckpointRefused, ConfigError, ReferenceMismatch, SourceFailed, TidemarkError
from monitor.expose.exporter import Exporter
from monitor.expose.inbox import Asked, Inbox, Reply
from monitor.expose.snapshot import ServiceSnapshot
from monitor.flow import TopicPartition
from monitor.ingest.deadletters import DeadLetters
from monitor.ingest.state_topic import (
    REFERENCES,
    Membership,
    Record,
    ReplicaSource,
    StateReader,
    StateWriter,
    TransactionLost,
    ensure_topics,
)
from monitor.owner import AGAIN_SECONDS, Box, Owner, Shown
from monitor.reporting import sampling_of
from monitor.service import cutting, decoding
from monitor.state.panes import NO_PANE, Stream
from monitor.state.replica_share import NOTE_BYTES, Counting, note_of, packed, read_judged
from monitor.state.replica_store import SHARE
from monitor.watched import Watched, watched

log = logging.getLogger("tidemark")

#: The clocks of the other replicas are asked for so often, and only where a partition could be too far ahead.
CLOCKS_SECONDS = 1.0
#: How long a start waits for the promoted references; what comes later is taken in at a commit.
REFERENCES_SECONDS = 15.0


def partition_of(model: str, partitions: int) -> int:
    """The partition of the state topic that holds a model; the same everywhere and for ever."""
    return zlib.crc32(model.encode()) % partitions


def refuse_unsupported(config: Config) -> None:
    """ConfigError for what several replicas cannot do (yet)."""
    where = "service.replicas"
    if config.files.paths:
        raise ConfigError(f"{where}: expected events from Kafka, got files.paths; remove one of them")
    if config.kafka.transport != "kafka-python":
        raise ConfigError(f"kafka.transport: expected kafka-python beside {where}, got {config.kafka.transport}; only its "
                          "offsets are committed together with the counts")
    if config.reports.enabled:
        raise ConfigError(f"{where}: expected reports.enabled left out or false beside replicas, got true; their reports are "
                          "made from counts alone: ask one process for evidently's half")
    names: dict[str, dict[str, tuple[int, int]]] = {}
    for monitor in config.monitors:
        names.setdefault(monitor.topic, {})[monitor.model] = (2**43, 2**31)
    for topic, models in names.items():
        if len(note_of(models)) > NOTE_BYTES - 96:
            raise ConfigError(f"{where}: expected at most some {NOTE_BYTES - 96} characters of model names on one topic, got "
                              f"{len(models)} models on {topic!r}; spread them over several topics or groups")


class Replica:
    """One process of several: what `build` makes of a configuration with `service.replicas`."""

    def __init__(self, config: Config, *, exporter: Exporter, inbox: Inbox) -> None:
        assert config.service.replicas is not None
        refuse_unsupported(config)
        self.config, self.replicas = config, config.service.replicas
        self.monitors = watched(config)
        self.committed_at: float | None = None      # for people; what is due is told by a clock that cannot be set
        self._due_at = 0.0
        self._shown, self._inbox = Shown(exporter), inbox
        self._stopping = False
        self._away = ""                             # why the brokers cannot be reached now
        self._offsets: dict[TopicPartition, int] = {}
        self._owners: dict[int, Owner] = {}
        self._generation = 0
        self._failed: BaseException | None = None
        self._writer: StateWriter | None = None
        self._name = f"{config.kafka.group}.counting.{self.replicas.name or uuid.uuid4().hex}"
        self._decode, self._apart = decoding(config, self.monitors), cutting(config, self.monitors)
        self._counting = Counting(
            [self._stream(one) for one in self.monitors], self._captured(), clock=time.monotonic,
            open_panes_max=config.limits.open_panes, retell_seconds=config.kafka.idle_seconds)
        self._dead_letters = DeadLetters(config.service.dead_letters, config.limits, config.kafka)
        self._references: StateReader | None = None
        self._promotes = ensure_topics(config.kafka, self.replicas, promotes=any(
            one.monitor.retrain is not None and one.monitor.retrain.promote is not None for one in self.monitors))
        self._source = ReplicaSource(config.kafka, sorted({one.monitor.topic for one in self.monitors}))
        self._members = threading.Thread(target=self._share_out, name="owners", daemon=True)

    def _stream(self, one: Watched) -> Stream:
        stream = Stream(one.monitor.model, one.version, one.monitor.topic, one.reference, one.monitor.pane.seconds * 1000,
                        one.monitor.pane.lateness_seconds * 1000, histograms_only=one.monitor.histograms_only)
        if not one.monitor.histograms_only:
            try:
                plan = one.plan() if one.monitor.detectors else None
            except ConfigError:                     # of a promoted reference; its owner says so
                plan = None
            stream.sampling = sampling_of(plan, one.reference, None)
        return stream

    def _captured(self) -> dict[str, tuple[Collection[str], float]]:
        return {one.monitor.model: ({column.name for column in one.reference.columns}, one.monitor.retrain.capture_share)
                for one in self.monitors if one.monitor.retrain is not None and one.monitor.retrain.data_uri is None}

    def stored_offsets(self) -> dict[TopicPartition, int]:
        """Next offsets of our partitions, as they were last committed."""
        return dict(self._offsets)

    def stop(self) -> None:
        """End after the batch in hand; safe to call from a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Count until told to end; what was counted by then is committed."""
        self._writer = self._new_writer()           # before any offset is read: it ends what our predecessor left open
        self._members.start()
        self._follow_references(REFERENCES_SECONDS)
        clocks_at, asked, notes = 0.0, NO_PANE, dict[TopicPartition, str]()
        for batch in self._source:
            if batch.away != self._away:
                self._away = batch.away
                self._show()
            placed = self._source.moved()
            if placed is not None:
                log.info("Counting.", extra={"partitions": sorted(f"{topic}:{number}" for topic, number in placed)})
                self._counting.begin(placed)
                self._offsets = {key: known[0] for key, known in placed.items() if known is not None}
            for piece in (batch,) if self._apart is None else self._apart(batch):
                self._counting.add(piece, self._decode(piece))
            if time.monotonic() >= self._due_at or self._stopping:
                self._commit()
            if self._stopping:
                return
            self._answer()
            self._raise_failed()
            held = self._counting.ahead(notes)
            is_far = bool(held) or self._counting.newest() >= asked + self.config.limits.open_panes // 4
            if is_far and time.monotonic() - clocks_at >= CLOCKS_SECONDS:
                notes, asked, clocks_at = self._source.noted(), self._counting.newest(), time.monotonic()
                held = self._counting.ahead(notes)
            self._source.hold(held)

    def _commit(self) -> None:
        """What was counted, and the offsets behind it, in one transaction; where that fails, it is counted again."""
        counting = self._counting
        self._dead_letters.write(counting.refusals)
        counting.refusals = []
        self._dead_letters.flush()
        records: list[Record] = [
            (partition_of(model, self.replicas.partitions), SHARE + f"{model}/{uuid.uuid4().hex}".encode(), packed(message))
            for model, message in counting.messages()]
        writer = self._writer
        if records and writer is not None and self._source.member is not None:
            try:
                offsets = counting.offsets()
                writer.write(records, offsets, self._source.member)
            except TransactionLost as error:
                log.warning("Counts not committed; their events are read again.", extra={"error": str(error)})
                # The new writer first: until it has fenced the old one, what was not committed may still be.
                writer.close(abort=True)
                self._writer = self._new_writer()
                self._source.forget()
                counting.begin({})
                return
            counting.committed()
            self._offsets |= {key: offset for key, (offset, _) in offsets.items()}
        self._follow_references()
        self.committed_at = time.time()
        self._due_at = time.monotonic() + self.config.service.checkpoint_seconds
        self._show()

    def _show(self) -> None:
        """What the counting side knows; owners tell of the models."""
        self._shown.put("", ServiceSnapshot(
            ready=self._source.member is not None, reason="starting: no partitions were given to this replica yet",
            lag=self._source.lag(), checkpoint=self.committed_at, dead_letters=self._dead_letters.counts(), away=self._away))

    def _follow_references(self, seconds: float = 0.0) -> None:
        """Count by the references that owners judge by since a promotion; waits so long for what is there."""
        if not self._promotes:
            return
        try:
            if self._references is None:
                self._references = StateReader(self.config.kafka, self.replicas, REFERENCES)
            end, until = self._references.end() if seconds else 0, time.monotonic() + seconds
            found = {key: value for _, key, value in self._references.poll(0)}
            while seconds and self._references.position() < end and time.monotonic() < until and not self._stopping:
                found |= {key: value for _, key, value in self._references.poll()}
        except (TransactionLost, SourceFailed) as error:
            if not isinstance(error, TransactionLost) and not self._has_counted():
                raise
            log.warning("References not read; trying again.", extra={"error": str(error)})
            if self._references is not None:
                self._references.close()
            self._references = None
            return
        for value in found.values():
            if value is not None:
                self._judge(value)

    def _judge(self, value: bytes) -> None:
        """Count a model as it is judged now, where that was said of the reference that we are configured with."""
        told = read_judged(value)
        for one in self.monitors:
            if one.monitor.model == told.model and one.reference.digest == told.configured:
                reference = Reference.from_json(told.reference, f"promoted reference of {told.model}")
                self._counting.judge(self._stream(replace(one, reference=reference, version=told.version)))
                log.info("Counting by another reference.", extra={"model": told.model, "version": told.version})

    def _new_writer(self) -> StateWriter:
        """A writer that fences every earlier one of its name."""
        while True:
            try:
                return StateWriter(self.config.kafka, self.replicas, self._name)
            except (TransactionLost, SourceFailed) as error:
                if self._stopping or (isinstance(error, SourceFailed) and not self._has_counted()):
                    raise
                log.warning("Transactions cannot begin yet; trying again.", extra={"error": str(error)})
                if self._has_counted():
                    self._away = str(error)
                    self._show()
                time.sleep(AGAIN_SECONDS)

    def _has_counted(self) -> bool:
        """Whether brokers have let us in: what they refuse from now on may pass, and is waited for."""
        return self.committed_at is not None

    def _answer(self) -> None:
        """Give what people asked to the owner of the model; where that is another replica, say so."""
        for asked in self._inbox.take():
            owner = next((one for one in list(self._owners.values()) if self._is_of(asked, one)), None)
            if owner is None or not owner.inbox.put(asked):
                self._inbox.reply(asked, Reply(False, f"{asked.model or asked.launch}: expected a model that this replica "
                                                      "decides about, got one of another replica; ask there", asked.launch))

    @staticmethod
    def _is_of(asked: Asked, owner: Owner) -> bool:
        stages = owner.stages
        if stages is None:
            return False
        return asked.model in stages.panes.streams if asked.model else asked.launch in stages.trigger.ledger.launches

    def _share_out(self) -> None:
        """Own what the group of owners gives us, and nothing else; on a thread of its own."""
        members: Membership | None = None
        try:
            members = Membership(self.config.kafka, self.replicas)
            by_partition: dict[int, list[Watched]] = {}
            for one in self.monitors:
                by_partition.setdefault(partition_of(one.monitor.model, self.replicas.partitions), []).append(one)
            for self._generation, ours in members:
                if self._stopping:
                    break
                for partition in self._owners.keys() - ours:
                    self._owners[partition].stop()
                for partition in [number for number, owner in self._owners.items() if owner.is_over]:
                    if (failed := self._owners[partition].failed) is not None:
                        raise failed
                    del self._owners[partition]
                for partition in sorted((ours & by_partition.keys()) - self._owners.keys()):
                    owner = self._owners[partition] = Owner(
                        self.config, partition, by_partition[partition], self._shown, Box(self._inbox),
                        lambda: self._generation, self._has_counted)
                    owner.start()
        except BaseException as error:              # told by the counting thread, which ends the process
            self._failed = error
        finally:
            for owner in self._owners.values():
                owner.stop()
            for owner in self._owners.values():
                owner.join(5.0)
            if members is not None:
                members.close()

    def _raise_failed(self) -> None:
        if self._failed is None:
            return
        if isinstance(self._failed, TidemarkError | ReferenceMismatch):
            raise self._failed
        raise CheckpointRefused(f"replica: an owner ended: {type(self._failed).__name__}: {self._failed}") from self._failed

    def close(self) -> None:
        """Leave both groups; what was not committed is read again by whoever comes next."""
        self._stopping = True
        if self._members.ident is not None:
            self._members.join(8.0)
        self._source.close()
        if self._writer is not None:
            self._writer.close()
        if self._references is not None:
            self._references.close()
        self._dead_letters.close()
        self._shown.put("", None)
