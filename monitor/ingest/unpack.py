"""Record batches unpacked within bounds: what a compressed bomb may take of us, and what becomes of it.

kafka-python unpacks a record batch whole, whatever it becomes: 32 KiB of zstd are 1 GiB. It has no setting for that, but it
looks its codecs, its batch and its reader of batches up in its modules by name. `install` puts bounded ones there; they act
inside of `one_turn` alone, which the source opens around its `poll`, and are the client's own everywhere else.

    one batch    unpacked up to `limit`; of one that is larger, or that cannot be unpacked, one record is given in its place,
                 at its first offset, whose value says how many records at which offsets were not read. The decoder refuses
                 it, so that it is counted, and in the dead letters with topic, partition and offset
    one turn     what was fetched is read on until `limit` bytes are unpacked; the rest is fetched again in the next turn

So a turn takes at most three times `limit` (what was read, the batch in hand, and its copy), nothing is skipped in silence and
no turn fails. Only today's record format (magic 2) is bounded: brokers have written nothing else since Kafka 3.0.

Cost: some 5 µs per batch. Neighbours: `kafka` opens a turn, `sizing` counts it. Where a later client looks elsewhere,
`install` says so, and `tests/unit/ingest/test_unpack.py` fails.
"""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import codec
from kafka.consumer import fetcher
from kafka.record import default_records, memory_records
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords

#: The least of the bound: a batch of 1 MiB, which is what brokers take, of JSON that is 30 times smaller when it is packed.
UNPACKED_BYTES_MIN = 32 << 20
#: The bound in `kafka.fetch_bytes`.
UNPACKED_TIMES = 2
#: Bytes that are asked of a decompressor at a time: it sets them aside before it knows whether they are needed.
_PIECE = 1 << 20
_XERIAL = b"\x82SNAPPY\x00"

Decode = Callable[[Any], Any]


class TooLarge(Exception):
    """A batch is larger, unpacked, than may be."""


@dataclass(slots=True)
class _Turn:
    limit: int
    left: int


_here = threading.local()


def unpacked_bytes(fetch_bytes: int) -> int:
    """The bound for a `kafka.fetch_bytes`.

    >>> unpacked_bytes(64 << 20) >> 20, unpacked_bytes(1 << 20) >> 20
    (128, 32)
    """
    return max(UNPACKED_TIMES * fetch_bytes, UNPACKED_BYTES_MIN)


@contextmanager
def one_turn(limit: int) -> Iterator[None]:
    """Inside of it, on this thread, batches are unpacked within `limit` bytes."""
    _here.turn = _Turn(limit, limit)
    try:
        yield
    finally:
        _here.turn = None


def install() -> str:
    """Put the bounded parts where the client looks them up, twice as well as once; empty, or which places are not there."""
    places: list[tuple[Any, str, Any]] = [(fetcher, "MemoryRecords", BoundedRecords),
                                          (memory_records, "DefaultRecordBatch", BoundedBatch)]
    places += [(default_records, f"{name}_decode", bounded) for name, bounded in _BOUNDED.items()]
    if lack := [f"{module.__name__}.{name}" for module, name, _ in places if not hasattr(module, name)]:
        return f"expected a Kafka client whose record batches can be bounded, found none of {', '.join(lack)}"
    for module, name, bounded in places:
        setattr(module, name, bounded)
    return ""


class BoundedRecords(MemoryRecords):  # type: ignore[misc]
    """What was fetched of a partition; it ends early where a turn has unpacked enough, as if no more had been fetched."""

    __slots__ = ()

    def next_batch(self, *args: Any, **options: Any) -> Any:
        """The next batch; None at the end."""
        turn = _turn()
        return None if turn is not None and turn.left <= 0 else super().next_batch(*args, **options)


class BoundedBatch(DefaultRecordBatch):  # type: ignore[misc]
    """A batch that gives one record, which says why, where it cannot be unpacked within bounds."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        turn = _turn()
        if turn is None or self.compression_type == self.CODEC_NONE:
            return super().__iter__()               # type: ignore[no-any-return]
        try:
            return super().__iter__()               # type: ignore[no-any-return]
        except TooLarge:
            why = f"more than {turn.limit >> 20} MiB unpacked (kafka.fetch_bytes x {UNPACKED_TIMES})"
        except Exception as error:                  # each codec has errors of its own; none of them may end the service
            why = f"cannot be unpacked ({type(error).__name__}: {str(error)[:100]})"
        words = (f"not read: a record batch of {self.records_count} records at offsets {self.base_offset} to "
                 f"{self.next_offset - 1}, {why}")
        return iter((DefaultRecord(len(words), self.base_offset, self.max_timestamp, self.timestamp_type, None, words.encode(),
                                   []),))


def _turn() -> _Turn | None:
    return getattr(_here, "turn", None)


def _bounded(inner: Callable[[Any, int], bytes], plain: Decode) -> Decode:
    """The client's own codec, and inside of a turn `inner`, which is told how many bytes it may make."""

    def decode(packed: Any) -> Any:
        turn = _turn()
        if turn is None:
            return plain(packed)
        try:
            unpacked = inner(packed, turn.limit)
        except TooLarge:
            turn.left = 0                           # a turn of nothing but bombs would take minutes
            raise
        turn.left -= len(unpacked)
        return unpacked

    return decode


def _joined(pieces: Iterator[bytes], limit: int) -> bytes:
    found, count = [], 0
    for piece in pieces:
        found.append(piece)
        count += len(piece)
        if count > limit:
            raise TooLarge
    return found[0] if len(found) == 1 else b"".join(found)


def _gzip(packed: Any, limit: int) -> bytes:
    def pieces() -> Iterator[bytes]:
        rest = bytes(packed)
        while rest:                                 # members, one behind the other
            member = zlib.decompressobj(31)
            while not member.eof:
                piece = member.decompress(rest, _PIECE)
                rest = member.unconsumed_tail or member.unused_data
                if not piece and not member.eof and not rest:
                    raise EOFError("the packed records end too early")
                yield piece
            rest = member.unused_data.lstrip(b"\0")

    return _joined(pieces(), limit)


def _zstd(packed: Any, limit: int) -> bytes:
    def pieces() -> Iterator[bytes]:
        with codec.zstd.ZstdDecompressor().stream_reader(io.BytesIO(packed), read_across_frames=True) as reader:
            while piece := reader.read(_PIECE):
                yield piece

    return _joined(pieces(), limit)


def _lz4(packed: Any, limit: int) -> bytes:
    def pieces() -> Iterator[bytes]:
        frame, rest = codec.lz4.LZ4FrameDecompressor(), packed
        while not frame.eof:
            piece = frame.decompress(rest, _PIECE)
            if not piece and frame.needs_input:
                raise EOFError("the packed records end too early")
            rest = b""
            yield piece

    return _joined(pieces(), limit)


def _snappy(packed: Any, limit: int) -> bytes:
    """Every block says first how large it becomes; one that lies is an error of the codec, which makes no more than was said."""
    blocks, at = [packed], 16
    if packed[:8] == _XERIAL:
        blocks = []
        while at < len(packed):
            size, = struct.unpack_from("!i", packed, at)
            if size < 0:
                raise EOFError("a block of less than nothing")
            blocks.append(packed[at + 4:at + 4 + min(size, 10)])
            at += 4 + size
    if sum(map(_said, blocks)) > limit:
        raise TooLarge
    return codec.snappy_decode(packed)              # type: ignore[no-any-return]


def _said(block: bytes) -> int:
    """The length that a block of snappy begins with: 7 bits a byte, the lowest first."""
    size = 0
    for place, byte in enumerate(block[:5]):
        size |= (byte & 127) << (7 * place)
        if byte < 128:
            break
    return size


_BOUNDED = {"gzip": _bounded(_gzip, codec.gzip_decode), "snappy": _bounded(_snappy, codec.snappy_decode),
            "lz4": _bounded(_lz4, codec.lz4_decode), "zstd": _bounded(_zstd, codec.zstd_decode)}
