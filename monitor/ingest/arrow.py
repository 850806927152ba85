"""Arrow messages to columns: one Kafka record is one Arrow IPC stream, and each row of its record batches is one event.

Idea. Columns arrive as columns, so nothing is parsed: the messages of a turn that have one schema become one table, and the
table becomes columns as those of files do (`columnar`). An event's place is the record's offset and its row.

What is refused. A message that cannot be read, or that would unpack to more than `limits.unpacked_bytes`, is refused whole,
as one event of which nothing is known. A row with a bad value is refused alone, with the row as JSON for its bytes; where
all rows of a message are bad (a column of a wrong type), the message is kept whole and counts for all of its events.

Bounds come before memory. How much the buffers unpack to and how many rows there are is read from the messages' own headers
(`declared`), which Arrow holds itself to; then every array is validated in full, because Arrow's readers trust offsets and
lengths that somebody else wrote. `apart` cuts a turn into pieces of about `limits.unpacked_bytes`. A message's events lie
in at most half of `limits.open_panes` panes, since it is counted whole; those of further panes are refused.

Invariant: every row of every readable message is an event or a refusal, and which of them it is depends on its message and the
clock alone, so any cut of the stream gives the same. Cost per event at 20 columns, one core: 0.3-0.5 us in messages of 1,000
rows, 0.7-1 us in messages of 100, some 60 us for each message however few rows it has, a sixth and a third of JSON; zstd costs
1 us besides. Held by `benchmarks/arrow`. Neighbours: `arrow_headers` looks before anything is unpacked, `columnar` reads the
table, `decode` does the same for JSON, `service` chooses by `schema.format`, `span` reads a reference's messages with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.coded import Coded
from monitor.config import Limits
from monitor.flow import ROW_BITS, Batch, Clock, Part, Refusal, Rows
from monitor.ingest.arrow_headers import Declared, Unreadable, declared
from monitor.ingest.columnar import TableReader, chosen, rows_as_json
from monitor.ingest.schema import StreamSchema
from monitor.ingest.values import FUTURE_SECONDS

DETAIL_CHARACTERS = 200
#: Bytes of text that are not worth counting.
_UNFOLDED_SURELY = 1 << 20
#: Schemas whose field choice is remembered: a topic has one or two.
_SCHEMAS_KEPT = 64
#: Bytes of one event's values as columns, by kind; an embedding has 8 for each number.
_VALUE_BYTES: Mapping[str, int] = {"numeric": 8, "category": 4, "boolean": 4, "text": 64, "embedding": 0}
#: What reading bytes from outside may raise: pyarrow's own errors, and those of field names, types and metadata.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
               NotImplementedError, MemoryError, RecursionError)


@dataclass(frozen=True, slots=True)
class _Schema:
    """Messages of one schema: their number, how they are read, and which of the columns that are read may share texts."""

    number: int
    options: pa.ipc.IpcReadOptions
    sharing: list[int]


@dataclass(slots=True)
class _Message:
    """One readable message: where it stands in the turn, its batches, its place."""

    part: int
    place: int                                      # in its part
    value: bytes
    batches: list[pa.RecordBatch]
    schema: int                                     # messages of one number go into one table
    rows: int


@dataclass(slots=True)
class _Found:
    """The rows of a turn's messages as columns, in the order of the messages.

    message : of each row, its place among the messages     within : its row in it
    """

    message: NDArray[np.int64]
    within: NDArray[np.int64]
    times: NDArray[np.int64]
    columns: dict[str, Any]
    others: dict[str, Any]
    bad: NDArray[np.bool_]
    why: dict[int, tuple[str, str]]


class ArrowDecoder:
    """Decodes the parts of one monitor's topic whose records are Arrow IPC streams; made once per schema.

    model, schema, limits, clock : as of `decode.Decoder`      pane_ms : length of a pane
    """

    def __init__(self, model: str, schema: StreamSchema, limits: Limits, *, pane_ms: int = 60_000,
                 clock: Clock = time.time) -> None:
        self.model, self.schema = model, schema
        self._clock, self._pane_ms = clock, pane_ms
        self._limits = limits
        self._panes_max = max(1, limits.open_panes // 2)
        columns = (*schema.columns, *schema.labels)
        self._row_bytes = 32 + sum(_VALUE_BYTES[column.kind] + 8 * column.dim for column in columns)
        paths = [path for column in columns for path in column.paths]
        paths += [path for path in (schema.id, schema.timestamp) if path is not None]
        self._names = {name for path in paths for name in (path[0], ".".join(path))}
        self._schemas: dict[bytes, _Schema] = {}
        self._numbered = 0

    def decode(self, part: Part) -> Rows:
        """The rows of a part and what had to be refused."""
        return self.decode_all([part])[0]

    def decode_all(self, parts: Sequence[Part]) -> list[Rows]:
        """The rows of each of several parts; together, since a table costs as much for few rows as for many."""
        latest = int((self._clock() + FUTURE_SECONDS) * 1000)
        refusals: list[list[Refusal]] = [[] for _ in parts]
        messages: list[_Message] = []
        for number, part in enumerate(parts):
            for place, value in enumerate(part.values):
                try:
                    messages.append(self._message(number, place, value))
                except Unreadable as unreadable:
                    refusals[number].append(_whole(part, place, unreadable.reason, unreadable.detail))
        found = self._found(parts, messages, latest, refusals)
        counts = np.bincount(found.message, minlength=len(messages)).astype(np.int64)
        self._refuse_far(found, counts)
        if found.bad.any():
            self._set_aside(parts, messages, found, counts, refusals)
        good = np.flatnonzero(~found.bad)
        if len(good) < len(found.bad):
            found = _taken(found, good)
        owners = np.array([message.part for message in messages], np.int64)
        offsets = np.array([parts[message.part].offsets[message.place] for message in messages], np.int64)
        cuts = np.searchsorted(owners[found.message], np.arange(len(parts) + 1)).tolist()
        decoded = []
        for number, part in enumerate(parts):       # turns: parts
            start, end = cuts[number], cuts[number + 1]
            own = sorted(refusals[number], key=lambda refusal: (refusal.offset, refusal.row or 0))
            decoded.append(Rows(
                model=self.model, topic=part.topic, partition=part.partition,
                offsets=offsets[found.message[start:end]], times=found.times[start:end], within=found.within[start:end],
                columns={name: values[start:end] for name, values in found.columns.items()},
                others={name: values[start:end] for name, values in found.others.items()},
                next_offset=part.next_offset, refusals=tuple(own),
                read=end - start + sum(refusal.events for refusal in own)))
        return decoded

    def weight(self, value: bytes | None) -> int:
        """Bytes that a message's events will take; 0 of one that will be refused."""
        try:
            return self._weighed(self._headers(value))
        except Unreadable:
            return 0

    def _weighed(self, headers: Declared) -> int:
        return max(headers.unpacked, headers.rows * self._row_bytes)

    def _headers(self, value: bytes | None) -> Declared:
        """The headers of a message that may be read."""
        if value is None:
            raise Unreadable("tombstone", "a record without a value")
        if len(value) > self._limits.message_bytes:
            raise Unreadable("too_large", f"{len(value)} bytes, limits.message_bytes is {self._limits.message_bytes}")
        headers = declared(value)
        if (weight := self._weighed(headers)) > self._limits.unpacked_bytes:
            raise Unreadable("too_large", f"{headers.rows} rows, {weight} bytes unpacked, limits.unpacked_bytes is "
                                          f"{self._limits.unpacked_bytes}")
        if headers.rows >> ROW_BITS:
            raise Unreadable("too_large", f"{headers.rows} rows, at most {(1 << ROW_BITS) - 1} can be told apart")
        return headers

    def batches(self, value: bytes | None) -> tuple[list[pa.RecordBatch], int]:
        """A message's record batches, and the bytes that they take; Unreadable where it is refused.

        For a decoder without a schema, by which `tidemark fit` looks at messages: all fields are read.
        """
        _, batches, headers, unfolded = self._read(value)
        return batches, max(self._weighed(headers), unfolded)

    def _message(self, part: int, place: int, value: bytes | None) -> _Message:
        """A message's batches with the fields that are watched; Unreadable where it cannot be read."""
        known, batches, headers, _ = self._read(value)
        assert value is not None
        return _Message(part, place, value, batches, known.number, headers.rows)

    def _read(self, value: bytes | None) -> tuple[_Schema, list[pa.RecordBatch], Declared, int]:
        """What a message's schema is, its batches, its headers, and the bytes of its largest text column written out."""
        headers = self._headers(value)
        assert value is not None
        stream = value[headers.stream] if headers.stream.start else value
        try:
            known = self._schemas.get(headers.head) or self._new_schema(headers.head)
            batches = _batches(stream, known.options)
        except _UNREADABLE as error:
            raise Unreadable("arrow", _words(error)) from None
        size = max((_unfolded(batch.column(place)) for place in known.sharing for batch in batches), default=0)
        if size > self._limits.unpacked_bytes:
            raise Unreadable("too_large", f"{size} bytes of text unfolded, limits.unpacked_bytes is "
                                          f"{self._limits.unpacked_bytes}")
        if sum(map(len, batches)) != headers.rows:
            raise Unreadable("arrow", f"{headers.rows} rows are announced, got {sum(map(len, batches))}")
        return known, batches, headers, size

    def _new_schema(self, head: bytes) -> _Schema:
        """What is done with messages of this schema."""
        if len(self._schemas) >= _SCHEMAS_KEPT:
            self._schemas.clear()
        with pa.ipc.open_stream(head) as reader:
            schema = reader.schema
        fields = [place for place, name in enumerate(schema.names) if name in self._names] or list(range(len(schema)))
        self._numbered += 1
        known = self._schemas[head] = _Schema(
            self._numbered, pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields),
            [place for place, field in enumerate(fields) if _may_share(schema.field(field).type)])
        return known

    def _found(self, parts: Sequence[Part], messages: list[_Message], latest: int,
               refusals: list[list[Refusal]]) -> _Found:
        """All rows of the messages as columns; a message that cannot be is taken out of the list and refused."""
        groups: dict[int, list[int]] = {}
        for place, message in enumerate(messages):
            groups.setdefault(message.schema, []).append(place)
        pieces: list[tuple[list[int], _Found]] = []
        broken: set[int] = set()
        for group in groups.values():               # turns: schemas, one as a rule
            try:
                pieces.append((group, self._as_columns(parts, [messages[place] for place in group], latest)))
            except _UNREADABLE:
                for place in group:                 # one of them is to blame
                    try:
                        pieces.append(([place], self._as_columns(parts, [messages[place]], latest)))
                    except _UNREADABLE as error:
                        broken.add(place)
                        message = messages[place]
                        refusals[message.part].append(_whole(parts[message.part], message.place, "arrow", _words(error)))
        if broken:
            kept = [place for place in range(len(messages)) if place not in broken]
            renamed = {place: number for number, place in enumerate(kept)}
            messages[:] = [messages[place] for place in kept]
            pieces = [([renamed[place] for place in group], found) for group, found in pieces]
        if not pieces:
            return self._as_columns(parts, [], latest)
        for group, found in pieces:
            found.message = np.array(group, np.int64)[found.message]
        return pieces[0][1] if len(pieces) == 1 else _joined([found for _, found in pieces])

    def _as_columns(self, parts: Sequence[Part], messages: Sequence[_Message], latest: int) -> _Found:
        """The rows of messages of one schema."""
        batches = [batch for message in messages for batch in message.batches]
        table = pa.Table.from_batches(batches) if batches else pa.table({})
        lengths = np.array([message.rows if message.batches else 0 for message in messages], np.int64)
        message = np.repeat(np.arange(len(messages)), lengths)
        within = np.arange(len(message)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        stamps = np.array([parts[one.part].times[one.place] for one in messages], np.int64)
        reader = TableReader(table, by_name=False)
        columns, others, times = reader.all(self.schema, stamps[message], latest)
        return _Found(message, within, times, columns, others, reader.bad, reader.why)

    def _refuse_far(self, found: _Found, counts: NDArray[np.int64]) -> None:
        """Refuse the rows of a message that lie in more panes than may be opened at once: those of its last panes."""
        starts = np.cumsum(counts) - counts
        filled = np.flatnonzero(counts)
        if not len(filled):
            return
        panes = np.where(found.bad, -1, found.times // self._pane_ms)
        highest = np.maximum.reduceat(panes, starts[filled])
        lowest = np.minimum.reduceat(np.where(found.bad, 2**62, panes), starts[filled])
        for place in filled[highest - lowest >= self._panes_max].tolist():          # turns: messages that span very long
            own = slice(starts[place], starts[place] + counts[place])
            distinct, first = np.unique(panes[own][~found.bad[own]], return_index=True)
            if len(distinct) <= self._panes_max:
                continue
            allowed = distinct[np.argsort(first)][:self._panes_max]
            far = np.flatnonzero(~found.bad[own] & ~np.isin(panes[own], allowed)) + own.start
            words = (f"its message has events of {len(distinct)} panes, of which {self._panes_max} can be opened at once: "
                     "half of limits.open_panes")
            found.bad[far] = True
            found.why.update(dict.fromkeys(far.tolist(), ("timestamp", words)))

    def _set_aside(self, parts: Sequence[Part], messages: Sequence[_Message], found: _Found, counts: NDArray[np.int64],
                   refusals: list[list[Refusal]]) -> None:
        """One refusal per bad row; or one per message of which every row is bad."""
        bad = np.flatnonzero(found.bad)
        cuts = np.searchsorted(found.message[bad], np.arange(len(messages) + 1))
        for place in np.flatnonzero(np.diff(cuts)).tolist():                        # turns: messages with bad rows
            message, rows = messages[place], bad[cuts[place]:cuts[place + 1]]
            part = parts[message.part]
            reasons = [found.why[row] for row in rows.tolist()]
            if len(rows) == counts[place]:
                reason, detail = max(set(reasons), key=reasons.count) if len(set(reasons)) < 10 else reasons[0]
                refusals[message.part].append(_whole(part, message.place, reason, f"all {len(rows)} rows: {detail}", len(rows)))
                continue
            within = found.within[rows]
            for row, (reason, detail), value in zip(within.tolist(), reasons, _rows_of(message, within), strict=True):
                refusals[message.part].append(Refusal(
                    part.topic, part.partition, int(part.offsets[message.place]), reason, detail[:DETAIL_CHARACTERS], value, row))


def apart(batch: Batch, weigh: Mapping[str, ArrowDecoder], most: int) -> Iterator[Batch]:
    """The batch in pieces whose Arrow messages take about `most` bytes each; `weigh` has a decoder for each topic of them."""
    if not any(part.topic in weigh for part in batch.parts):
        yield batch
        return
    pieces: list[list[Part]] = [[]]
    room = most
    for part in batch.parts:
        begun = 0
        for place, value in enumerate(part.values if part.topic in weigh else ()):
            weight = weigh[part.topic].weight(value)
            if weight > room and (place > begun or pieces[-1]):
                if place > begun:
                    pieces[-1].append(_piece(part, begun, place))
                pieces.append([])
                begun, room = place, most
            room -= weight
        pieces[-1].append(_piece(part, begun, len(part)) if begun else part)
    later = [{(part.topic, part.partition) for part in piece} for piece in pieces]
    for number, parts in enumerate(pieces):
        is_last = number == len(pieces) - 1
        busy = frozenset().union(*later[number + 1:])
        yield replace(batch, parts=tuple(parts), ended=batch.ended and is_last, caught_up=batch.caught_up - busy,
                      lost={} if number else batch.lost)


def _piece(part: Part, start: int, end: int) -> Part:
    """Consecutive records of a part; what is behind its last record belongs to the last piece."""
    return replace(part, values=part.values[start:end], offsets=part.offsets[start:end], times=part.times[start:end],
                   next_offset=part.next_offset if end == len(part) else int(part.offsets[end]))


def _batches(stream: bytes, options: pa.ipc.IpcReadOptions | None = None) -> list[pa.RecordBatch]:
    """The record batches of a stream, each of them checked: offsets, lengths, codes and texts."""
    with pa.ipc.open_stream(stream, options=options) as reader:
        batches = list(reader)
    for batch in batches:
        batch.validate(full=True)
    return batches


def _may_share(kind: pa.DataType) -> bool:
    return bool(pa.types.is_dictionary(kind) or pa.types.is_string_view(kind) or pa.types.is_struct(kind)
                or isinstance(kind, pa.BaseExtensionType))


def _unfolded(array: pa.Array) -> int:
    """Bytes of a text column with every text written out: rows may share one, in a dictionary or by views."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _unfolded(array.storage)
    if pa.types.is_struct(kind):
        return max((_unfolded(array.field(i)) for i in range(kind.num_fields)), default=0)
    if pa.types.is_string_view(kind):
        buffer = array.buffers()[1]
        views = np.frombuffer(b"" if buffer is None else buffer, "<i4")[4 * array.offset:4 * (array.offset + len(array)):4]
        return int(views[array.is_valid().to_numpy(zero_copy_only=False)].sum(dtype=np.int64))
    # Where the whole dictionary times the rows is little, there is nothing to count.
    if (pa.types.is_dictionary(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type))
            and array.dictionary.nbytes * len(array) > _UNFOLDED_SURELY):
        return pc.sum(pc.binary_length(array.dictionary).take(array.indices).cast(pa.int64())).as_py() or 0
    return 0


def _rows_of(message: _Message, within: NDArray[np.int64]) -> list[bytes]:
    """Some rows of a message as JSON, with all of its fields."""
    try:
        batches = _batches(message.value[declared(message.value).stream])
    except _UNREADABLE:                             # a field that is not watched is broken
        batches = message.batches
    try:
        return rows_as_json(pa.Table.from_batches(batches).take(pa.array(within)))
    except _UNREADABLE:
        return [b"null"] * len(within)


def _whole(part: Part, place: int, reason: str, detail: str, events: int = 1) -> Refusal:
    return Refusal(part.topic, part.partition, int(part.offsets[place]), reason, detail[:DETAIL_CHARACTERS],
                   part.values[place], None, events)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:DETAIL_CHARACTERS] or type(error).__name__


def _taken(found: _Found, index: NDArray[np.intp]) -> _Found:
    """Some of the rows, none of them bad."""
    return _Found(found.message[index], found.within[index], found.times[index],
                  {name: chosen(values, index) for name, values in found.columns.items()},
                  {name: chosen(values, index) for name, values in found.others.items()},
                  np.zeros(len(index), dtype=bool), {})


def _joined(pieces: Sequence[_Found]) -> _Found:
    """The rows of messages of several schemas, in the order of the messages."""
    message = np.concatenate([found.message for found in pieces])
    order = np.argsort(message, kind="stable")
    back = np.argsort(order)
    starts = np.cumsum([0, *(len(found.message) for found in pieces)]).tolist()
    why = {int(back[start + row]): reason for start, found in zip(starts, pieces, strict=False)
           for row, reason in found.why.items()}

    def column(of: str, name: str) -> Any:
        parts = [getattr(found, of)[name] for found in pieces]
        if isinstance(parts[0], np.ndarray):
            return np.concatenate(parts)[order]
        if all(isinstance(part, Coded) for part in parts):
            return Coded.join(parts).take(order)
        return chosen([value for part in parts for value in part], order)

    return _Found(
        message[order], np.concatenate([found.within for found in pieces])[order],
        np.concatenate([found.times for found in pieces])[order],
        {name: column("columns", name) for name in pieces[0].columns},
        {name: column("others", name) for name in pieces[0].others},
        np.concatenate([found.bad for found in pieces])[order], why)
