"""Panes: the counts of one short slice of event time each, open until event time has passed them.

An event belongs to pane floor(time / pane). A partition's *clock* is the latest event time that it has brought; the
*watermark* of a model is the smallest clock over the partitions that it reads, and a pane closes when the watermark is
`lateness` past its end. Whether an event is *late* is judged by its own partition's clock alone, and a late event joins
the pane that this clock holds open: so the counts of every pane depend on what each partition holds, not on how the
stream was cut into batches, in which order partitions came, or where a crash fell.

Invariants. Replaying a batch changes nothing: records below the next offset are left out. Counts are conserved:
events counted = sum over all panes. A pane that was decided never changes again.

A partition that has nothing more to read for `idle_seconds` no longer holds the watermark back. When all are idle,
the panes that are still open are closed as if event time had gone on just far enough.

A record may hold many events. It is counted whole or not at all, so that a next offset is all that must be remembered: where
one record's first event is within reach, all of it is.

A topic's partitions are not read in step. Events more than `limits.open_panes` panes ahead of the oldest open one
*wait*: they are not counted yet, their offsets are not passed, and the source is asked to hold their partition until
the slower ones have come closer. So a backlog gives the same panes as live traffic, in bounded memory.

Cost: the partitions' parts of a batch are joined and grouped by pane, so that the reference counts few large sets
and not many small ones: per event 1.5 us at 20 columns (polls of 4,000) and 7 us at 100 (polls of 1,000), a half and a
quarter of what counting every part alone costs (`benchmarks/end_to_end`, stage `count`). Rows are hashed and kept only
for a stream whose `sampling` is set, because one of its detectors asks for rows (`state.sample`). Memory: open panes
x rows x bins x 8 bytes, and at most one batch of waiting rows per partition.
Neighbours: `ingest.decode` gives Rows, `state.store` writes what changed, `decide` judges what closed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.coded import Coded
from detectors.profile import Profile
from detectors.reference import Reference
from monitor.errors import SourceFailed
from monitor.flow import Batch, Clock, Columns, Refusal, Rows, Sample, TopicPartition, Window
from monitor.state.notes import Notes, category_rows, closed_with, note_refusals, note_unseen
from monitor.state.sample import Sampling, draw, in_time_order

SEGMENT = "all"
#: Below every real pane number, so that arithmetic needs no None.
NO_PANE = -(2**62)
#: A reach that leaves nothing waiting.
EVERYTHING = 2**62
#: What a text of a row takes beside numbers of 8 bytes, as far as what is held is weighed.
TEXT_BYTES = 64


@dataclass(slots=True)
class Position:
    """How far one partition has been read for one model."""

    next_offset: int
    clock: int = -1                                 # latest event time, milliseconds; -1 before the first event
    in_a_row: int = 0                               # records refused since the last readable one


@dataclass(slots=True)
class Stream:
    """The counted state of one model version: what the store writes and reads back."""

    model: str
    version: str
    topic: str
    reference: Reference
    pane_ms: int
    lateness_ms: int
    positions: dict[TopicPartition, Position] = field(default_factory=dict)
    open: dict[int, Profile] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)  # open panes that the store has not written yet
    last_decided: int = NO_PANE
    origin: int = NO_PANE                           # panes up to here are not in the windows
    decided_panes: int = 0
    decided_events: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)     # counted, lost, refused:<reason>
    late: int = 0
    waiting: dict[TopicPartition, list[Rows]] = field(default_factory=dict)     # too far ahead to be counted yet
    ahead: dict[TopicPartition, int] = field(default_factory=dict)      # the clock at the first waiting event
    sampling: Sampling | None = None                # the rows that are kept of each pane; None: none are
    histograms_only: bool = False                   # no value is kept: no rows, and no names of levels
    samples: dict[int, Sample] = field(default_factory=dict)            # of the open panes
    notes: dict[int, Notes] = field(default_factory=dict)               # of the open panes; NO_PANE: before the first event
    topic_ids: dict[str, str] = field(default_factory=dict)             # of the topics that the positions are of, where told

    def successor(self, version: str, reference: Reference) -> Stream:
        """The stream of the model's next version: no panes yet, at the offsets that this one has reached."""
        positions = {key: Position(position.next_offset, position.clock, position.in_a_row)
                     for key, position in self.positions.items()}
        return Stream(self.model, version, self.topic, reference, self.pane_ms, self.lateness_ms, positions,
                      outcomes=self.outcomes, late=self.late, waiting=self.waiting, ahead=self.ahead, sampling=self.sampling,
                      histograms_only=self.histograms_only, topic_ids=dict(self.topic_ids))

    def watermark(self, idle: frozenset[TopicPartition], assigned: frozenset[TopicPartition]) -> int:
        """Event time, in milliseconds, up to which we believe to have seen everything; -1 when nothing is known."""
        mine = {key for key in assigned if key[0] == self.topic} or set(self.positions)
        clocks = {key: max(position.clock, self.ahead.get(key, -1)) for key, position in self.positions.items()}
        latest = max(clocks.values(), default=-1)
        if latest < 0:
            return -1
        expected = mine - (idle - self.waiting.keys())
        if not expected:                            # nothing more is coming: close what is open, and no further
            return latest + self.pane_ms + self.lateness_ms
        return min(clocks.get(key, -1) for key in expected)


class Panes:
    """The open panes of every model."""

    def __init__(
        self, streams: Iterable[Stream], *, clock: Clock, idle_seconds: float = 30.0, open_panes_max: int = 1000,
        keep: Collection[str] = ()
    ) -> None:
        """Begin with these streams; the rows of the models in `keep` are kept for the capture after they were counted."""
        self.streams = {stream.model: stream for stream in streams}
        self.refusals: list[Refusal] = []
        self.kept: list[Rows] = []                  # the rows that were counted since the last commit, for the capture
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._open_panes_max = open_panes_max
        self._keep = frozenset(keep)
        self._silent_since: dict[TopicPartition, float] = {}
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._ended = False

    def add(self, batch: Batch, decoded: Sequence[Rows]) -> None:
        """Count a decoded batch; what was counted before is left out."""
        self._watch_silence(batch)
        for (topic, partition), lost in batch.lost.items():
            for stream in self.streams.values():
                if stream.topic == topic:
                    self._lose(stream, (topic, partition), lost)
        for model, stream in self.streams.items():
            parts = []
            for rows in decoded:
                if rows.model != model:
                    continue
                if (rows.topic, rows.partition) in stream.waiting:      # in order: behind what waits already
                    stream.waiting[rows.topic, rows.partition].append(rows)
                else:
                    parts.append(rows)
            self._take(stream, parts)
            _name_topic(stream, batch.topic_ids.get(stream.topic))

    def closed(self) -> Iterator[Window]:
        """Every pane that event time has passed, oldest first, each exactly once."""
        for stream in self.streams.values():
            # At the end of a bounded source nobody brings any more; what waits is still ahead of itself.
            idle = frozenset(stream.positions) | self._assigned if self._ended else self._idle()
            is_moving = True
            while is_moving:
                mark = stream.watermark(idle, self._assigned)
                while stream.open:
                    pane = min(stream.open)
                    is_past = (pane + 1) * stream.pane_ms + stream.lateness_ms <= mark
                    if not is_past:
                        break
                    yield self._close(stream, pane)
                is_moving = self._admit(stream)     # room was made: what waited may come in, and close more

    def waiting(self) -> frozenset[TopicPartition]:
        """Partitions so far ahead that their events wait; the source should not read on from them."""
        return frozenset(key for stream in self.streams.values() for key in stream.waiting)

    def offsets(self, model: str) -> dict[TopicPartition, int]:
        """Where reading goes on, per partition of one model."""
        return {key: position.next_offset for key, position in self.streams[model].positions.items()}

    def watermark(self, model: str) -> int:
        """The model's watermark in milliseconds since 1970; -1 when nothing is known."""
        return self.streams[model].watermark(self._idle(), self._assigned)

    def silent_seconds(self, model: str) -> float | None:
        """For how long every partition of the model has been read to its end and brought nothing; None if one has not."""
        stream = self.streams[model]
        mine = [key for key in self._assigned if key[0] == stream.topic]
        if not mine or stream.waiting or self._ended or any(key not in self._silent_since for key in mine):
            return None
        return self._clock() - max(self._silent_since[key] for key in mine)

    def replace(self, stream: Stream) -> None:
        """Cut over to a new reference: its panes begin empty, at the offsets that the old ones had reached."""
        self.streams[stream.model] = stream

    def _take(self, stream: Stream, parts: Iterable[Rows], reach: int | None = None) -> bool:
        """Count what lies within `reach` panes of the oldest open one, `limits.open_panes` by default; whether anything did."""
        lowest: int | None = min(stream.open, default=None)
        placed = []
        for rows in parts:
            found = self._place(stream, rows, lowest, self._open_panes_max if reach is None else reach)
            if found is not None:
                first = int(found[1].min())
                lowest = first if lowest is None else min(lowest, first)
                placed.append(found)
        if placed:
            _count(stream, placed)
        return bool(placed)

    def _admit(self, stream: Stream) -> bool:
        """Count waiting rows that have come into reach; whether there were any."""
        is_moving = False
        for key in list(stream.waiting):            # turns: partitions that wait
            queue = stream.waiting.pop(key)
            stream.ahead.pop(key)
            while queue and key not in stream.waiting:
                is_moving |= self._take(stream, [queue.pop(0)])
            if queue:                               # a part of the first waits again, before the others
                stream.waiting[key] += queue
        return is_moving

    def _place(
        self, stream: Stream, rows: Rows, lowest: int | None, reach: int
    ) -> tuple[Rows, NDArray[np.int64]] | None:
        """The rows that were not counted before and the pane of each; None if there are none. Moves the partition on.

        lowest : the oldest open pane; rows `reach` panes and more ahead of it are put among the waiting
        """
        key = (rows.topic, rows.partition)
        position = stream.positions.get(key)
        first = position.next_offset if position else -1
        if position is not None and rows.next_offset <= first:
            return None                             # the whole part was counted before
        rows = _between(rows, first, rows.next_offset)
        if position is None:
            starts = [*rows.offsets[:1].tolist(), *(refusal.offset for refusal in rows.refusals[:1]), rows.next_offset]
            position = stream.positions[key] = Position(min(starts))
        running = np.maximum.accumulate(np.maximum(rows.times, position.clock))
        wanted = rows.times // stream.pane_ms
        open_from = np.maximum((running - stream.lateness_ms) // stream.pane_ms, stream.last_decided + 1)
        panes = np.maximum(wanted, open_from)
        if len(rows):
            firsts = None if rows.within is None else np.flatnonzero(np.diff(rows.offsets, prepend=-1))
            if firsts is not None:                  # a record opens up to half of the panes, so half of them are left to it
                reach = max(reach // 2, stream.lateness_ms // stream.pane_ms + 2)
            horizon = (int(panes[0]) if lowest is None else lowest) + reach
            beyond = np.flatnonzero((panes if firsts is None else panes[firsts]) >= horizon)
            if len(beyond):
                cut = int(beyond[0] if firsts is None else firsts[beyond[0]])
                stream.waiting[key] = [_between(rows, int(rows.offsets[cut]), rows.next_offset)]
                stream.ahead[key] = int(running[cut])
                rows = _between(rows, first, int(rows.offsets[cut]))
                running, wanted, open_from, panes = running[:cut], wanted[:cut], open_from[:cut], panes[:cut]
        self.refusals.extend(rows.refusals)
        before = NO_PANE if position.clock < 0 else max(position.clock // stream.pane_ms, stream.last_decided + 1)
        position.in_a_row = note_refusals(stream.notes, rows, panes, before, position.in_a_row)
        for refusal in rows.refusals:
            stream.outcomes[f"refused:{refusal.reason}"] += refusal.events
        position.next_offset = max(position.next_offset, rows.next_offset)
        if not len(rows):
            return None
        position.clock = int(running[-1])
        stream.late += int(np.count_nonzero(wanted < open_from))
        stream.outcomes["counted"] += len(rows)
        if rows.model in self._keep:
            self.kept.append(rows)
        return rows, panes

    def _close(self, stream: Stream, pane: int) -> Window:
        profile = stream.open.pop(pane)
        skipped = 0
        if stream.origin == NO_PANE:                # the first pane of a reference: windows begin here
            stream.origin = pane - 1
        else:
            skipped = pane - stream.last_decided - 1
        stream.last_decided = pane
        stream.decided_panes += 1
        stream.decided_events += profile.events
        seconds = stream.pane_ms / 1000
        sample, notes = stream.samples.pop(pane, None), closed_with(stream.notes, pane)
        return Window(stream.model, stream.version, SEGMENT, pane, pane * seconds, (pane + 1) * seconds, profile, skipped,
                      None if sample is None else in_time_order(sample), notes.refused, notes.in_a_row, notes.unseen)

    def _lose(self, stream: Stream, key: TopicPartition, lost: int) -> None:
        """Records that retention took before they were read: counted as lost, and the next offset moves past them."""
        stream.ahead.pop(key, None)
        for rows in stream.waiting.pop(key, ()):    # they lie before the lost ones: counted now, however far ahead
            self._take(stream, [rows], EVERYTHING)
        position = stream.positions.get(key)
        if position is not None:
            position.next_offset += lost
        stream.outcomes["lost"] += lost

    def _watch_silence(self, batch: Batch) -> None:
        """Note since when each assigned partition has had nothing to read."""
        now = self._clock()
        self._assigned = batch.assigned
        self._ended = batch.ended
        spoke = {(part.topic, part.partition) for part in batch.parts if len(part)}
        for key in batch.assigned:
            if key in spoke or key not in batch.caught_up:
                self._silent_since.pop(key, None)
            else:
                self._silent_since.setdefault(key, now)
        for key in set(self._silent_since) - batch.assigned:
            del self._silent_since[key]

    def _idle(self) -> frozenset[TopicPartition]:
        now = self._clock()
        return frozenset(key for key, since in self._silent_since.items() if now - since >= self._idle_seconds)


def _name_topic(stream: Stream, topic_id: str | None) -> None:
    """Note the id of the topic that the stream's positions are of; SourceFailed where they are of another one of its name."""
    topic = stream.topic
    if topic_id is None or not any(key[0] == topic for key in stream.positions):
        return
    if (known := stream.topic_ids.setdefault(topic, topic_id)) != topic_id:
        raise SourceFailed(f"kafka topic {topic!r}: expected the topic that model {stream.model} was counted from ({known}), got "
                           f"another one that was made under its name ({topic_id}); start with another service.state")


def _between(rows: Rows, first: int, following: int) -> Rows:
    """The rows and refusals from one offset up to, not including, another."""
    start, end = np.searchsorted(rows.offsets, (first, following)).tolist()
    refusals = tuple(refusal for refusal in rows.refusals if first <= refusal.offset < following)
    if start == 0 and end == len(rows):
        return replace(rows, refusals=refusals, next_offset=following)
    return replace(
        rows, offsets=rows.offsets[start:end], times=rows.times[start:end], next_offset=following, refusals=refusals,
        within=None if rows.within is None else rows.within[start:end],
        columns={name: values[start:end] for name, values in rows.columns.items()},
        others={name: values[start:end] for name, values in rows.others.items()})


def _count(stream: Stream, parts: Sequence[tuple[Rows, NDArray[np.int64]]]) -> None:
    """Add the events of a batch to the open panes, all of its parts at once."""
    distinct, group = np.unique(np.concatenate([panes for _, panes in parts]), return_inverse=True)
    columns = _joined([rows.columns for rows, _ in parts])
    profiles = stream.reference.profiles(columns, group, len(distinct))
    categories, seen = category_rows(stream.reference), set()
    for pane, profile in zip(distinct.tolist(), profiles, strict=True):         # turns: panes, usually one to forty
        known = stream.open.get(pane)
        stream.open[pane] = profile if known is None else known + profile
        stream.changed.add(pane)
        seen.update(categories[profile.counts[categories[:, 0], categories[:, 1]] > 0, 0].tolist())
    if seen and not stream.histograms_only:
        note_unseen(stream.notes, stream.reference, columns, distinct[group], sorted(seen))
    if stream.sampling is not None and not stream.histograms_only:
        stream.samples.update(draw(
            stream.sampling, stream.samples, [rows for rows, _ in parts], columns, distinct, group))


def _joined(parts: Sequence[Columns]) -> Columns:
    """The columns of several parts, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    return {name: _one_behind_the_other([part[name] for part in parts]) for name in parts[0]}


def _one_behind_the_other(values: Sequence[Any]) -> Any:
    """One column's values in several parts."""
    if all(isinstance(one, Coded) for one in values):
        return Coded.join(values)
    return np.concatenate(values) if isinstance(values[0], np.ndarray) else list(chain.from_iterable(values))


def weight(columns: Columns) -> int:
    """Bytes that the columns of some rows take."""
    return sum(values.nbytes if isinstance(values, np.ndarray) else TEXT_BYTES * len(values) for values in columns.values())


def bare(stream: Stream, pane: int) -> Window:
    """A pane without events: the time at which something was noticed between panes."""
    seconds = stream.pane_ms / 1000
    return Window(stream.model, stream.version, SEGMENT, pane, pane * seconds, (pane + 1) * seconds,
                  Profile.empty(stream.reference))
