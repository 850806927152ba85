"""What an Arrow IPC stream says of itself, read from its headers alone: nothing is unpacked, nothing is allocated.

Idea: a stream is messages one behind the other, each a FlatBuffer that names the length of its body, the rows of its batch and
where its buffers lie; a packed buffer says in its first eight bytes what it unpacks to, and Arrow holds itself to that.
So rows and bytes are known, and refused, before memory is asked for.

Invariants: every offset and length is checked against the message before it is followed; what does not fit is Unreadable,
never another exception. The loops end: batches, additions to dictionaries and fields are bounded.
Cost: some 10 us a message and 0.1 us a buffer. Formats: Arrow columnar format 1.x, "Encapsulated message format"; FlatBuffers'
internals page. A file (`ARROW1`) is a stream between two marks. Neighbour: `arrow` reads the rows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

#: Record and dictionary batches of one message, fields of its schema, and additions to dictionaries (each copies the whole).
BATCHES_MAX, FIELDS_MAX, DELTAS_MAX = 1_000, 10_000, 16
_FILE_MARK = b"ARROW1"
_CONTINUATION = b"\xff\xff\xff\xff"
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
#: Kinds of an Arrow message's header.
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3


class Unreadable(Exception):
    """A message that is no Arrow IPC stream, or too large a one: reason and detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Declared:
    """What a message's headers say.

    rows : of all record batches      unpacked : bytes that its buffers unpack to
    head : the bytes up to the end of its schema      stream : where the stream lies in the message
    """

    rows: int
    unpacked: int
    head: bytes
    stream: slice


def declared(value: bytes) -> Declared:
    """Read the headers of an Arrow IPC stream, nothing else; Unreadable where they are none."""
    try:
        return _declared(value)
    except (struct.error, ValueError, IndexError, OverflowError):
        raise Unreadable("arrow", "a damaged header") from None


def _declared(value: bytes) -> Declared:
    is_file = value.startswith(_FILE_MARK)
    start = at = 8 if is_file else 0
    if value[at:at + 4] != _CONTINUATION:
        raise Unreadable("arrow", f"expected an Arrow IPC stream, got bytes that begin with {value[:8].hex() or 'nothing'}")
    rows = unpacked = batches = deltas = 0
    head = b""
    while at < len(value):                          # turns: messages inside the stream, at most BATCHES_MAX
        if value[at:at + 8] == _END:
            at += 8
            break
        mark, length = struct.unpack_from("<4si", value, at)
        if mark != _CONTINUATION or length < 0:
            raise Unreadable("arrow", f"expected another message or the end at byte {at}, got other bytes")
        table, body = _Table.root(value, at + 8), at + 8 + length
        kind, body_bytes = table.number(1, "<B"), table.number(3, "<q")
        if body_bytes < 0 or body + body_bytes > len(value):
            raise Unreadable("arrow", f"cut short: {len(value)} bytes, {body + body_bytes} are announced")
        at = body + body_bytes
        if kind == _SCHEMA and not head:
            head = value[start:at]
            if table.table(2).count(1) > FIELDS_MAX:
                raise Unreadable("too_large", f"more than {FIELDS_MAX} fields")
            continue
        if not head or kind not in (_DICTIONARY, _BATCH):
            raise Unreadable("arrow", f"expected a schema, then record batches, got a message of kind {kind}")
        batch = table.table(2)
        if kind == _DICTIONARY:
            deltas += batch.number(2, "<B")
            batch = batch.table(1)
        batches += 1
        if batches > BATCHES_MAX or deltas > DELTAS_MAX:
            raise Unreadable("too_large", f"more than {BATCHES_MAX} batches or {DELTAS_MAX} additions to dictionaries")
        length = batch.number(0, "<q")
        if length < 0:
            raise Unreadable("arrow", "a batch of a negative length")
        rows += length if kind == _BATCH else 0
        unpacked += batch.unpacked(body, body_bytes)
    if not head:
        raise Unreadable("arrow", "a stream without a schema")
    if at < len(value) and not is_file:
        raise Unreadable("arrow", f"{len(value) - at} bytes behind the end of the stream")
    return Declared(rows, unpacked, head, slice(start, at))


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of a FlatBuffer: where it begins, and where each of its fields does (FlatBuffers' internals page)."""

    value: bytes
    at: int
    fields: tuple[int, ...]

    @classmethod
    def root(cls, value: bytes, at: int) -> _Table:
        return cls.of(value, at + struct.unpack_from("<I", value, at)[0])

    @classmethod
    def of(cls, value: bytes, at: int) -> _Table:
        names = at - struct.unpack_from("<i", value, at)[0]
        if names < 0:
            raise ValueError("a table outside of the message")
        size = struct.unpack_from("<H", value, names)[0]
        return cls(value, at, struct.unpack_from(f"<{max(0, size - 4) // 2}H", value, names + 4))

    def _place(self, field: int) -> int:
        """Where a field's value stands; 0 where it has its default."""
        return self.at + self.fields[field] if field < len(self.fields) and self.fields[field] else 0

    def number(self, field: int, kind: str) -> int:
        place = self._place(field)
        return int(struct.unpack_from(kind, self.value, place)[0]) if place else 0

    def table(self, field: int) -> _Table:
        place = self._place(field)
        if not place:
            raise ValueError("an absent table")
        return _Table.of(self.value, place + struct.unpack_from("<I", self.value, place)[0])

    def count(self, field: int) -> int:
        """Entries of a vector."""
        place = self._place(field)
        if not place:
            return 0
        vector = place + struct.unpack_from("<I", self.value, place)[0]
        return int(struct.unpack_from("<I", self.value, vector)[0])

    def unpacked(self, body: int, body_bytes: int) -> int:
        """Of a record batch: bytes of its buffers once they are unpacked; a buffer that is packed says so in its first 8."""
        if not self._place(3):
            return body_bytes
        place = self._place(2)
        vector = place + struct.unpack_from("<I", self.value, place)[0]
        n = struct.unpack_from("<I", self.value, vector)[0]
        buffers = np.frombuffer(self.value, "<i8", 2 * n, vector + 4).tolist()
        total = 0
        for start, length in zip(buffers[::2], buffers[1::2], strict=True):         # turns: buffers
            if length <= 0:
                continue
            if start < 0 or start + length > body_bytes:
                raise ValueError("a buffer outside of its message")
            size = struct.unpack_from("<q", self.value, body + start)[0]
            if size < -1:
                raise ValueError("a buffer of a negative length")
            total += length - 8 if size == -1 else size
        return total
