"""Shares: what one replica counted of one model between two of its commits, on its way to the owner of the model.

    Share       counts by pane, notes, samples, and how far each partition was read        counting replica -> owner
    SharedRows  counted events that the owner captures for a retraining                    counting replica -> owner
    JudgedBy    the reference of a promoted model: what is counted from now on fits it     owner -> every replica

`Counting` turns decoded batches into shares; `MergedPanes` adds shares up in the owner's open panes, where everything behind
them (watermark, closing, judging) is as in one process. Counts, notes and samples add up, whoever counted what.

Invariant: the shares of one partition continue one another without gap or overlap. Each says from which offset it counts to
which; the owner refuses a share that does not begin where the last one ended. A share whose pane was decided meanwhile (its
partition was silent, so nobody waited for it) joins the pane that is open, so that no count is lost.

Cost: one share per model and commit, 1-3 kB for 20 columns and a pane; where a model is retrained its captured rows besides.
Neighbours: `panes`, `notes`, `sample` do the counting; `replicas` sends and receives; `replica_store` keeps what was merged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from monitor.errors import CheckpointRefused
from monitor.flow import Batch, Clock, Refusal, Rows, TopicPartition, places_of
from monitor.state.notes import Notes
from monitor.state.panes import EVERYTHING, NO_PANE, Panes, Position, Stream
from monitor.state.sample import from_bytes, keys_of, merged, to_bytes
from monitor.state.tables import unpacked

log = logging.getLogger("tidemark")

#: Rows that stand in one record, at most, in bytes; twice that is refused by the topic.
ROWS_BYTES = 4 << 20
#: What one note beside an offset may take (Kafka: offset.metadata.max.bytes).
NOTE_BYTES = 4096


class Share(msgspec.Struct, frozen=True, tag="share", array_like=True):
    """Counts of one model by one replica.

    positions : partition -> (offset from which, offset up to which it counts, clock, refused in a row at its end); -1: not known
    silent    : partition -> since when it has nothing more to read, by the replica's own clock; -1 where it speaks
    panes     : pane -> counts      notes : pane -> what is noted      samples : pane -> sampled rows      late : late events
    """

    model: str
    version: str
    digest: str
    topic: str
    positions: dict[int, tuple[int, int, int, int]]
    silent: dict[int, float]
    panes: dict[int, bytes]
    notes: dict[int, Notes]
    samples: dict[int, bytes]
    outcomes: dict[str, int]
    late: int
    retried: int


class SharedRows(msgspec.Struct, frozen=True, tag="rows", array_like=True):
    """Counted events of one partition: numbers as (shape of one, bytes), texts as they are; `within` b"" for None."""

    model: str
    topic: str
    partition: int
    offsets: bytes
    times: bytes
    columns: dict[str, Any]
    others: dict[str, Any]
    within: bytes = b""


class JudgedBy(msgspec.Struct, frozen=True, tag="judged", array_like=True):
    """By which reference the owner judges a model since a promotion or a roll-back.

    configured : digest of the reference that the configuration named then; by another one this says nothing
    """

    model: str
    configured: str
    version: str
    reference: str                                  # Reference.to_json()


_decoder = msgspec.msgpack.Decoder(Share | SharedRows, strict=False)
_judged = msgspec.msgpack.Decoder(JudgedBy)


def packed(message: Share | SharedRows | JudgedBy) -> bytes:
    """A message as it stands in the topic."""
    return msgspec.msgpack.encode(message)


def read(value: bytes) -> Share | SharedRows:
    """A message of the topic; CheckpointRefused where it is none."""
    try:
        message: Share | SharedRows = _decoder.decode(value)
    except msgspec.DecodeError as error:
        raise CheckpointRefused(f"state topic: expected a share of counts, got damage ({str(error)[:200]}); "
                                "is the topic written by something else, or by another version of tidemark?") from None
    return message


def read_judged(value: bytes) -> JudgedBy:
    """A record of the topic of references; CheckpointRefused where it is none."""
    try:
        return _judged.decode(value)
    except msgspec.DecodeError as error:
        raise CheckpointRefused(f"topic of references: expected a reference of ours, got damage ({str(error)[:200]}); "
                                "is the topic written by something else?") from None


def _flat(values: Any) -> Any:
    return (values.shape[1:], np.ascontiguousarray(values, "<f8").tobytes()) if isinstance(values, np.ndarray) else list(values)


def _full(values: Any, rows: int) -> Any:
    if len(values) == 2 and isinstance(values[1], bytes):
        return np.frombuffer(values[1], "<f8").astype(np.float64).reshape(rows, *values[0])
    return list(values)


def shared(rows: Rows, names: Collection[str], share: float) -> Iterator[SharedRows]:
    """Counted rows as messages of bounded size; of those that are not captured (`share`) none."""
    if share < 1:
        keys = keys_of(rows.topic, rows.partition, places_of(rows.offsets, rows.within))
        keep = np.flatnonzero(keys < np.uint64(int(share * 2.0**64)))
    else:
        keep = np.arange(len(rows))
    columns = {name: values for name, values in rows.columns.items() if name in names}
    parts = [keep] if len(keep) else []
    while parts:
        index = parts.pop(0)
        pick = index.tolist()
        kept, besides = ({name: _flat(values[index] if isinstance(values, np.ndarray) else [values[i] for i in pick])
                          for name, values in of.items()} for of in (columns, rows.others))
        found = SharedRows(
            rows.model, rows.topic, rows.partition, rows.offsets[index].astype("<i8").tobytes(),
            rows.times[index].astype("<i8").tobytes(), kept, besides,
            b"" if rows.within is None else rows.within[index].astype("<i8").tobytes())
        if len(index) > 1 and len(packed(found)) > ROWS_BYTES:
            parts[:0] = [index[:len(index) // 2], index[len(index) // 2:]]
        else:
            yield found


def rows_of(message: SharedRows) -> Rows:
    """The rows of a message."""
    offsets = np.frombuffer(message.offsets, "<i8").astype(np.int64)
    n = len(offsets)
    return Rows(message.model, message.topic, message.partition, offsets, np.frombuffer(message.times, "<i8").astype(np.int64),
                {name: _full(values, n) for name, values in message.columns.items()},
                int(offsets[-1]) + 1, n, {name: _full(values, n) for name, values in message.others.items()},
                within=np.frombuffer(message.within, "<i8").astype(np.int64) if message.within else None)


# -- the counting side -------------------------------------------------------------------------------------------------


class Counting:
    """Counts this replica's partitions, and gives what was counted since the last commit.

    streams : one per model, with its reference and sampling      captured : model -> (columns to keep, share of the events)
    open_panes_max : panes that a partition may be ahead of the slowest one, before its reading is held
    retell_seconds : that a partition is still silent is told again so often: an owner that is new has not heard of it
    """

    def __init__(self, streams: Sequence[Stream], captured: Mapping[str, tuple[Collection[str], float]], *, clock: Clock,
                 open_panes_max: int, retell_seconds: float = 30.0) -> None:
        self.refusals: list[Refusal] = []
        self._models = [(stream.model, stream.version, stream.topic, stream.pane_ms) for stream in streams]
        self._fresh = {stream.model: stream for stream in streams}
        self._captured, self._clock, self._open_panes_max = captured, clock, open_panes_max
        self._begun: dict[str, dict[TopicPartition, int]] = {}
        self._told: dict[TopicPartition, float] = {}        # what the owners were told of silent partitions
        self._retell_seconds, self._retell_at = retell_seconds, 0.0
        self._retried: dict[str, int] = {}
        self._panes = self._new_panes({})
        self.begin({})

    def begin(self, placed: Mapping[TopicPartition, tuple[int, str] | None]) -> None:
        """Go on at these partitions, from what their offsets' notes say; what was not given away is forgotten."""
        notes = {key: known for key, known in placed.items() if known is not None}
        self._panes = self._new_panes({key: (offset, read_note(note)) for key, (offset, note) in notes.items()})
        self._begun = {model: {key: position.next_offset for key, position in stream.positions.items()}
                       for model, stream in self._panes.streams.items()}
        self._told = {}
        self._retried = {}

    def _new_panes(self, known: Mapping[TopicPartition, tuple[int, dict[str, tuple[int, int]]]]) -> Panes:
        streams = []
        for model, _, topic, _ in self._models:
            stream = self._bare(model)
            stream.positions = {key: Position(offset, *note.get(model, (-1, 0)))
                                for key, (offset, note) in known.items() if key[0] == topic}
            streams.append(stream)
        return Panes(streams, clock=self._clock, open_panes_max=EVERYTHING, keep=list(self._captured))

    def _bare(self, model: str) -> Stream:
        like = self._fresh[model]
        return Stream(model, like.version, like.topic, like.reference, like.pane_ms, like.lateness_ms, sampling=like.sampling,
                      histograms_only=like.histograms_only)

    def add(self, batch: Batch, decoded: Sequence[Rows]) -> None:
        """Count a decoded batch."""
        for rows in decoded:
            if rows.retried:
                self._retried[rows.model] = self._retried.get(rows.model, 0) + rows.retried
        self._panes.add(batch, decoded)
        self.refusals += self._panes.refusals
        self._panes.refusals = []

    def messages(self) -> Iterator[tuple[str, Share | SharedRows]]:
        """(model, message) of everything since the last commit; nothing of a model of which there is nothing new."""
        for rows in self._panes.kept:
            names, share = self._captured[rows.model]
            for message in shared(rows, names, share):
                yield rows.model, message
        silent = self._silent()
        for model, stream in self._panes.streams.items():
            begun = self._begun[model]
            positions = {key[1]: (begun.get(key, -1), one.next_offset, one.clock, one.in_a_row)
                         for key, one in stream.positions.items() if one.next_offset != begun.get(key)}
            told = {key[1]: since for key, since in silent.items() if key[0] == stream.topic and (
                self._told.get(key, 0.0) != since or (since >= 0 and self._clock() >= self._retell_at))}
            if positions or told:
                yield model, Share(
                    model, stream.version, stream.reference.digest, stream.topic, positions, told,
                    {pane: profile.to_bytes() for pane, profile in stream.open.items()}, dict(stream.notes),
                    {pane: to_bytes(sample) for pane, sample in stream.samples.items()},
                    {name: count for name, count in stream.outcomes.items() if count}, stream.late,
                    self._retried.get(model, 0))

    def offsets(self) -> dict[TopicPartition, tuple[int, str]]:
        """Where each partition goes on, and the note that its next reader needs; those that stand still are told, too,
        because whoever commits an offset is fenced."""
        found: dict[TopicPartition, int] = {}
        notes: dict[TopicPartition, dict[str, tuple[int, int]]] = {}
        for model, stream in self._panes.streams.items():
            for key, position in stream.positions.items():
                notes.setdefault(key, {})[model] = (position.clock, position.in_a_row)
                found[key] = position.next_offset
        return {key: (offset, note_of(notes[key])) for key, offset in found.items()}

    def committed(self) -> None:
        """What was given away is no longer ours."""
        self._told = self._silent()
        if self._clock() >= self._retell_at:
            self._retell_at = self._clock() + self._retell_seconds
        self._retried = {}
        positions = {model: stream.positions for model, stream in self._panes.streams.items()}
        for model in list(self._panes.streams):
            bare = self._bare(model)
            bare.positions = positions[model]
            self._panes.replace(bare)
        self._panes.kept = []
        self._begun = {model: {key: position.next_offset for key, position in held.items()} for model, held in positions.items()}

    def judge(self, stream: Stream) -> None:
        """Count a model by another reference: at once where nothing is counted since the last commit, else after the next."""
        self._fresh[stream.model] = stream
        old = self._panes.streams[stream.model]
        if not old.open and not old.notes:
            bare = self._bare(stream.model)
            bare.positions, bare.outcomes, bare.late = old.positions, old.outcomes, old.late
            self._panes.replace(bare)

    def ahead(self, notes: Mapping[TopicPartition, str]) -> frozenset[TopicPartition]:
        """Our partitions that are so far ahead of the slowest one of the group that their reading must be held."""
        held: set[TopicPartition] = set()
        for model, _, topic, pane_ms in self._models:
            mine = self._panes.streams[model].positions
            idle = self._silent()
            clocks = {key: position.clock for key, position in mine.items() if idle.get(key, -1.0) < 0}
            for key, note in notes.items():
                if key[0] == topic and key not in mine:
                    clocks[key] = read_note(note).get(model, (-1, 0))[0]
            floor = min((clock for clock in clocks.values() if clock >= 0), default=-1)
            if floor >= 0:
                held |= {key for key, position in mine.items() if position.clock - floor > self._open_panes_max * pane_ms}
        return frozenset(held)

    def newest(self) -> int:
        """The latest pane that any of our partitions has reached."""
        return max((position.clock // stream.pane_ms for stream in self._panes.streams.values()
                    for position in stream.positions.values() if position.clock >= 0), default=NO_PANE)

    def _silent(self) -> dict[TopicPartition, float]:
        since = self._panes._silent_since
        return {key: since.get(key, -1.0) for key in self._panes._assigned}


def note_of(clocks: Mapping[str, tuple[int, int]]) -> str:
    """The note beside a partition's offset: each model's clock and refused records in a row."""
    return ";".join(f"{model}={clock},{in_a_row}" for model, (clock, in_a_row) in sorted(clocks.items()))


def read_note(note: str) -> dict[str, tuple[int, int]]:
    """What `note_of` wrote; nothing of what is no such note."""
    found = {}
    for part in note.split(";"):
        model, _, numbers = part.rpartition("=")
        clock, _, in_a_row = numbers.partition(",")
        try:
            found[model] = (int(clock), int(in_a_row))
        except ValueError:
            continue
    return found


# -- the deciding side -------------------------------------------------------------------------------------------------


class MergedPanes(Panes):
    """The open panes of the models that we own, out of every replica's shares.

    fresh : the messages that came since the last call, in order
    """

    def __init__(self, streams: Sequence[Stream], *, fresh: Callable[[], Sequence[Share | SharedRows]], **options: Any) -> None:
        super().__init__(streams, **options)
        self._fresh = fresh
        self._strange: set[str] = set()
        self._heard: dict[TopicPartition, float] = {}       # partition -> the silence that its replica last told

    def add(self, batch: Batch, decoded: Sequence[Rows]) -> None:
        """Take in the shares that came with this turn."""
        self._assigned = batch.assigned
        for message in self._fresh():
            if message.model not in self.streams:
                continue                            # of a model that the configuration no longer has
            if isinstance(message, SharedRows):
                if message.model in self._keep:
                    self.kept.append(rows_of(message))
            else:
                self._fold(self.streams[message.model], message)

    def _fold(self, stream: Stream, share: Share) -> None:
        for partition, (first, following, clock, in_a_row) in share.positions.items():
            key = (share.topic, partition)
            known = stream.positions.get(key)
            if known is not None and known.next_offset != first:
                raise CheckpointRefused(
                    f"topic {share.topic!r} partition {partition}, model {share.model}: expected counts from offset "
                    f"{known.next_offset} on, got counts from {first if first >= 0 else 'the beginning'}; were the group's "
                    "offsets reset or forgotten? Set them back to where the counts end, or begin with another "
                    "service.replicas.topic and another kafka.group")
            stream.positions[key] = Position(following, clock, in_a_row)
        for partition, since in share.silent.items():
            # The replica's clock is not ours: what it says names a silence, and we measure since when we know of it.
            key = (share.topic, partition)
            if since < 0 or self._heard.get(key) != since:
                self._silent_since.pop(key, None)
            self._heard[key] = since
            if since >= 0:
                self._silent_since.setdefault(key, self._clock())
        stream.outcomes.update(share.outcomes)
        stream.late += share.late
        if share.digest != stream.reference.digest:
            if share.version not in self._strange:
                self._strange.add(share.version)
                log.warning("Counts of another version are not judged.", extra={
                    "model": share.model, "version": share.version, "judged": stream.version})
            return
        oldest = stream.last_decided + 1
        for pane, blob in share.panes.items():
            profile, place = unpacked(blob), max(pane, oldest)
            if place > pane:
                stream.late += profile.events
            known_profile = stream.open.get(place)
            stream.open[place] = profile if known_profile is None else known_profile + profile
            stream.changed.add(place)
        for pane, note in share.notes.items():
            stream.notes.setdefault(pane if pane == NO_PANE else max(pane, oldest), Notes()).join(note)
        if stream.sampling is not None:
            for pane, document in share.samples.items():
                sample, place = from_bytes(document), max(pane, oldest)
                if not set(stream.sampling.names) <= sample.columns.keys():
                    continue
                stream.samples[place] = merged(stream.samples[place], sample, stream.sampling.rows) if (
                    place in stream.samples) else replace(sample)
