"""An owner among replicas: decides about the models of one partition of the state topic, on a thread of its own.

It fences the owner before it, builds the models' store from the topic, and runs the pipeline of one process on the shares that
replicas wrote there, until the partition is given to another or the process ends. Whatever fails on the way to the topic
(`TransactionLost`) ends this attempt: all that it held is dropped, and where the partition is still ours it begins anew.

Invariant: nothing is done about a model but by whoever could write to its partition since it last read it.

What owners of one process share: the exporter (`Shown`, one snapshot of all of theirs) and the inbox (`Box`, the requests about
the models of one of them). Neighbours: `replicas` starts and stops owners as the group says; `service` builds their stages.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from monitor.config import Config, state_path
from monitor.errors import SourceFailed
from monitor.expose.exporter import Exporter
from monitor.expose.inbox import Asked, Inbox, Reply
from monitor.expose.snapshot import ServiceSnapshot
from monitor.flow import Batch, Rows, TopicPartition
from monitor.ingest.state_topic import REFERENCES, StateReader, StateWriter, TransactionLost
from monitor.pipeline import Stages
from monitor.service import Seat, build
from monitor.state.replica_share import MergedPanes, Share, SharedRows, read
from monitor.state.replica_store import REFERENCE, SHARE, MirroredStore, latest
from monitor.watched import Watched

log = logging.getLogger("tidemark")

#: After a failure an owner begins anew, so much later.
AGAIN_SECONDS = 0.5
#: A transaction that nobody ends is given up by the broker long before that.
STILL_SECONDS = 60.0
#: The key of a record that says nothing: whoever could write it is the owner.
OWNER = b"owner"
_NOTHING = np.empty(0, np.int64)


class Shown:
    """The exporter of the process, shared by the counting side and every owner: one snapshot of all of theirs."""

    def __init__(self, exporter: Exporter) -> None:
        self.exporter, self.lock = exporter, threading.RLock()
        self.parts: dict[str, ServiceSnapshot] = {}

    def put(self, name: str, snapshot: ServiceSnapshot | None) -> None:
        """Show what one of them says; None: it is gone."""
        with self.lock:
            if snapshot is None:
                self.parts.pop(name, None)
            else:
                self.parts[name] = snapshot
            counting = self.parts.get("", ServiceSnapshot())
            owners = [part for key, part in sorted(self.parts.items()) if key]
            self.exporter.service(replace(
                counting, monitors=tuple(one for part in owners for one in part.monitors),
                alarm_counts={key: count for part in owners for key, count in part.alarm_counts.items()},
                open_alarms={key: one for part in owners for key, one in part.open_alarms.items()},
                alarms=tuple(sorted((one for part in owners for one in part.alarms), key=lambda one: one.at)),
                launches=tuple(one for part in owners for one in part.launches),
                decided=tuple(one for part in owners for one in part.decided),
                audit=tuple(one for part in owners for one in part.audit),
                reports=next((part.reports for part in owners if part.reports is not None), None)))


class View(Exporter):
    """What one owner sees of the shared exporter."""

    def __init__(self, shown: Shown, name: str) -> None:   # the parts of an exporter are the shared one's
        self._shown, self._name = shown, name

    def __getattribute__(self, name: str) -> Any:
        if name in ("show", "record", "observe", "reported", "forget"):
            shown: Shown = object.__getattribute__(self, "_shown")
            method = getattr(shown.exporter, name)

            def locked(*args: Any, **kwargs: Any) -> Any:
                with shown.lock:
                    return method(*args, **kwargs)

            return locked
        return object.__getattribute__(self, name)

    def service(self, snapshot: ServiceSnapshot) -> None:
        """Show this together with what the others say."""
        self._shown.put(self._name, snapshot)


class Box(Inbox):
    """The requests for one owner's models."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__()
        self._inbox = inbox

    def reply(self, asked: Asked, reply: Reply) -> None:
        """Tell whoever waits at the process' own inbox."""
        self._inbox.reply(asked, reply)


class OwnerSource:
    """The shares of one partition of the state topic, as turns of the pipeline: each yields a batch without records.

    topics   : the event topics of the partition's models
    patience : after a turn that took so many seconds, `prove` is asked: it raises where somebody else owns the partition now
    """

    def __init__(self, reader: StateReader, topics: Collection[str], backlog: Sequence[tuple[int, bytes, bytes]],
                 patience: float, prove: Callable[[], None]) -> None:
        self._reader, self._topics, self._patience, self._prove = reader, sorted(topics), patience, prove
        self._backlog = list(backlog)
        self._fresh: list[tuple[int, bytes, Share | SharedRows]] = []
        self._keys: frozenset[TopicPartition] = frozenset()
        #: The offsets that we count up to, while somebody needs to know what lies behind them; None else.
        self.awaited: Callable[[], Mapping[TopicPartition, int] | None] = lambda: None
        self._looked_at = -60.0
        self._closed = False

    def __iter__(self) -> Iterator[Batch]:
        turned = time.monotonic()
        while not self._closed:
            if time.monotonic() - self._looked_at > 30:
                self._keys |= {(topic, number) for topic in self._topics for number in self._reader.partitions(topic)}
                self._looked_at = time.monotonic()
            records = self._backlog[:500] or self._reader.poll()
            self._backlog = self._backlog[500:]
            if time.monotonic() - turned > self._patience:
                self._prove()                       # stopped, or only slow: before anything is done about it, we know
            turned = time.monotonic()
            self._fresh = [(offset, key, read(value)) for offset, key, value in records
                           if value is not None and key.startswith(SHARE)]
            yield Batch(assigned=self._keys)

    def take(self) -> list[tuple[int, bytes, Share | SharedRows]]:
        """The shares of this turn."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def retried(self, batch: Batch) -> list[Rows]:
        """What this turn's shares say of decoding, as rows without events."""
        return [Rows(share.model, share.topic, 0, _NOTHING, _NOTHING, {}, 0, 0, retried=share.retried)
                for _, _, share in self._fresh if isinstance(share, Share) and share.retried]

    def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Nothing: the counting side reads events."""

    def hold(self, partitions: Collection[TopicPartition]) -> None:
        """Nothing: the counting side holds what is too far ahead."""

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Nothing: offsets were committed with the counts."""

    def lag(self) -> Mapping[TopicPartition, int]:
        """Only while a cut-over waits for what the champion still answered; else the counting side tells it."""
        offsets = self.awaited()
        return {key: max(0, end - offsets[key]) for key, end in self._reader.ends(offsets).items()} if offsets else {}

    def close(self) -> None:
        """End after this turn."""
        self._closed = True


@dataclass(slots=True)
class Owner:
    """Decides about the models of one partition of the state topic, on a thread of its own, as long as it is ours."""

    config: Config
    partition: int
    monitors: Sequence[Watched]
    shown: Shown
    inbox: Box
    generation: Callable[[], int]
    is_patient: Callable[[], bool]                  # whether brokers that refuse us are waited for
    stages: Stages | None = None
    failed: BaseException | None = None
    leaving: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name=f"owner-{self.partition}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the turn in hand."""
        self.leaving.set()
        if self.stages is not None:
            self.stages.stop()

    def join(self, seconds: float) -> None:
        """Wait for the end."""
        if self._thread is not None:
            self._thread.join(seconds)

    @property
    def is_over(self) -> bool:
        """Whether its thread has ended."""
        return self._thread is not None and not self._thread.is_alive()

    def _run(self) -> None:
        while not self.leaving.is_set():
            begun = self.generation()
            try:
                self._own()
            except (TransactionLost, SourceFailed) as error:
                if isinstance(error, SourceFailed) and not self.is_patient():
                    self.failed = error
                    return
                log.warning("Ownership lost; building anew.", extra={"partition": self.partition, "error": str(error)})
                # Whoever is fenced may have been replaced: only a group that goes on with us says that we are not.
                end = time.monotonic() + self.config.kafka.session_timeout_seconds
                while (not self.leaving.wait(AGAIN_SECONDS) and self.generation() == begun and time.monotonic() < end):
                    pass
            except BaseException as error:          # told by the counting thread, which ends the process
                self.failed = error
                return
            finally:
                self.shown.put(str(self.partition), None)

    def _own(self) -> None:
        kafka, replicas = self.config.kafka, self.config.service.replicas
        assert replicas is not None
        begun = time.monotonic()
        writer = StateWriter(kafka, replicas, f"{kafka.group}.{replicas.topic}.{self.partition}")     # fences the one before us
        reader: StateReader | None = None
        try:
            reader = StateReader(kafka, replicas, self.partition)
            found = self._load(reader)
            if found is None:
                return
            rows, shares = found
            models = {one.monitor.model for one in self.monitors}
            path = Path(f"{state_path(self.config.service.state)}.{self.partition}")

            def write(changes: Sequence[tuple[bytes, bytes | None]]) -> None:
                writer.write([(REFERENCES if key.startswith(REFERENCE) else self.partition, key, value)
                              for key, value in changes])

            store = MirroredStore(path, rows, write)
            folded = {model: store.shared(model) for model in models}
            backlog = [share for share in shares if share[0] >= min(folded.values())]
            source = OwnerSource(reader, {one.monitor.topic for one in self.monitors}, backlog, kafka.session_timeout_seconds,
                                 lambda: writer.write([(self.partition, OWNER, b"")]))

            def fresh() -> list[Share | SharedRows]:
                taken = []
                for offset, key, message in source.take():
                    if message.model in models and offset >= folded[message.model]:
                        store.folded(message.model, offset, key)
                        taken.append(message)
                return taken

            stages = build(self._owned(), source=source, exporter=View(self.shown, str(self.partition)), inbox=self.inbox,
                           state=":memory:", seat=Seat(self.monitors, store, source.retried, partial(MergedPanes, fresh=fresh)))
            source.awaited = lambda: stages.stored_offsets() if any(stages.trigger.ledger.awaiting_cut_over()) else None
            try:
                stages.dead_letters.discard()
                self.stages = stages
                log.info("Deciding.", extra={"partition": self.partition, "models": sorted(models), "shares": len(backlog),
                                             "seconds": round(time.monotonic() - begun, 3)})
                if not self.leaving.is_set():
                    stages.run()
            finally:
                self.stages = None
                stages.close()
        finally:
            if reader is not None:
                reader.close()
            writer.close(abort=True)

    def _owned(self) -> Config:
        """The configuration of our models. Their reports are made of counts, in a folder that all owners of the process share."""
        reports = self.config.reports
        folder = reports.folder or f"{state_path(self.config.service.state)}.reports"
        return msgspec.structs.replace(self.config, monitors=[one.monitor for one in self.monitors],
                                       reports=msgspec.structs.replace(reports, enabled=False, folder=folder))

    def _load(self, reader: StateReader) -> tuple[dict[bytes, bytes], list[tuple[int, bytes, bytes]]] | None:
        """What the partition holds; None where we are to leave. What is still open in it is waited for.

        Raises TransactionLost where it stands still for longer than any transaction lasts: it is read anew, and that is told.
        """
        end, records = reader.end(), []
        told = moved = time.monotonic()
        before = -1
        while (position := reader.position()) < end:
            if self.leaving.is_set():
                return None
            records += reader.poll()
            now = time.monotonic()
            if position != before:
                before, moved = position, now
            if now - moved > STILL_SECONDS:
                raise TransactionLost(f"kafka: expected to read the state topic's partition {self.partition} up to {end}, got "
                                      f"nothing behind {position} for {STILL_SECONDS:g} s; does kafka-transactions.sh "
                                      "find-hanging name a transaction?")
            if now - told > 5:
                told = now
                log.info("Reading the state topic.", extra={"partition": self.partition, "position": position, "end": end})
        return latest(records)
