"""Bytes to columns: the decoder of one monitor's events.

Idea. The schema becomes one msgspec struct that holds only the fields that are needed; everything else in a message is
skipped by the parser without making objects. Each message is parsed in a `try` of its own, so one bad event is refused
alone, under a bounded reason, with its bytes and its place. The good rows then become columns: numbers through one flat
array, categories and texts through one transposition, vectors through one matrix.

Invariant: every record of a part is either a row or a refusal, `len(rows) + len(rows.refusals) == rows.read`; nothing
raises on input. A NaN literal, which Python's own JSON writer emits, is not JSON: such a message is read a second
time by the standard library and its NaN is missing; Infinity and numbers beyond a double stay refused. Of a duplicate
key the last one wins.

Cost per event, one core: about 2 µs with 20 columns and 8 µs with 100, of which two thirds are the parser's; a NaN
retry costs 10-15 µs. Vectors cost 60-80 ns per entry, three quarters of it the parser's; they are parsed in blocks
of `_BLOCK_ENTRIES`, since as Python numbers they take four times their size as columns. Structs are outside the garbage
collector's sight (`gc=False`), without which every live row is walked again and again. `benchmarks/decode_columns` holds
it. Where the compiled scanner is given (`scan`), it reads what is plain, six times faster, and only the rest comes the way
above; values and refusals are the same. Neighbours: `columns_json` and `columns_scan` are that scanner,
`columnar` does the same for tables of files, `values` has the rules of kinds that both share.
"""

from __future__ import annotations

import functools
import json
import math
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain, compress
from operator import attrgetter
from typing import Annotated, Any, Literal, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.coded import Coded
from monitor.config import Limits
from monitor.flow import Clock, Part, Refusal, Rows
from monitor.ingest.columnar import decode_table
from monitor.ingest.columns_json import ColumnParser, Scan
from monitor.ingest.schema import Path, StreamColumn, StreamSchema
from monitor.ingest.values import (
    FUTURE_SECONDS,
    NO_TIME,
    TIME_LIMIT_MS,
    TIME_LIMIT_SECONDS,
    TRUTH,
    category_text,
    milliseconds,
)

DETAIL_CHARACTERS = 200
#: Entries of vectors that are held as Python numbers at a time: 32 bytes each.
_BLOCK_ENTRIES = 1 << 19

Values = NDArray[np.float64] | Sequence[str | None]

#: What a parser may raise on bytes from outside; the last two are no msgspec errors (invalid UTF-8, deep nesting).
_REFUSABLE = (msgspec.DecodeError, UnicodeError, RecursionError)

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
#: Bytes at a message's end in which the parser takes a lone surrogate for the beginning of a pair that is cut off.
_ESCAPE_PAIR = 12

_TYPES: dict[str, Any] = {
    "numeric": float | None,
    "category": str | int | float | bool | None,
    "text": str | int | float | bool | None,
    "boolean": bool | Literal["true", "false"] | Annotated[int, msgspec.Meta(ge=0, le=1)] | None,
    "seconds": Annotated[float, msgspec.Meta(ge=0, lt=TIME_LIMIT_SECONDS)] | None,
    "milliseconds": Annotated[float, msgspec.Meta(ge=0, lt=TIME_LIMIT_MS)] | None,
    "iso8601": datetime | None,
}
#: What a value that is no number becomes, as the column decoder needs to know it; datetimes stay as they are.
_LEVELS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "category": (_TYPES["category"], category_text), "text": (_TYPES["text"], category_text),
    "boolean": (_TYPES["boolean"], TRUTH.__getitem__), "iso8601": (_TYPES["iso8601"], lambda time: time),
}
#: Events of a part from which the scanner pays, and parts that it leaves out after one of which it read less than a half.
_SCAN_MIN, _SCAN_REST = 16, 8
#: Events that are read together: a matrix of 20 columns stays within 2 MB.
_TOGETHER = 12_000
_DEFAULTS: dict[str, float | None] = {"numeric": math.nan}


class Decoder:
    """Decodes the parts of one monitor's topic; made once per schema.

    model  : the monitor's name, carried into Rows
    schema : which columns, of which kinds, where
    limits : `message_bytes` is the largest event that is parsed at all
    clock  : event times more than a day ahead of it are refused
    scan   : the compiled scanner of `columns_json.scan_of`, which reads what is plain; None reads all by msgspec
    """

    def __init__(self, model: str, schema: StreamSchema, limits: Limits, *, clock: Clock = time.time,
                 scan: Scan | None = None) -> None:
        self.model = model
        self._clock = clock
        self.schema = schema
        self._limit = limits.message_bytes
        kinds: dict[Path, str] = {path: column.kind for column in (*schema.columns, *schema.labels)
                                  for path in column.paths}
        dims = {path: column.dim for column in schema.columns for path in column.paths if column.dim}
        self._block = max(1, _BLOCK_ENTRIES // sum(dims.values())) if dims else 0
        if schema.id:
            kinds[schema.id] = "category"
        if schema.timestamp:
            kinds[schema.timestamp] = schema.timestamp_unit
        self._tree = _Object(kinds, dims)
        self._parser: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self._tree.type)
        self._timestamp_place = "`$." + ".".join(schema.timestamp or ()) + "`"
        self._columns: ColumnParser | None = None
        self._columns_rest = 0                      # parts for which the scanner is left out, since it read few of the last
        if scan is not None:
            loose = {path for path, kind in kinds.items() if kind in ("text", "iso8601")} | {schema.id or ()}
            self._columns = ColumnParser(kinds, dims, scan, _LEVELS, frozenset(loose))

    def decode(self, part: Part) -> Rows:
        """The rows of a part and the records that had to be refused."""
        return self.decode_all([part])[0]

    def decode_all(self, parts: Sequence[Part]) -> list[Rows]:
        """The rows of each of several parts; small ones cost the scanner less together."""
        latest = int((self._clock() + FUTURE_SECONDS) * 1000)
        if self._columns is None or any(not isinstance(part.values, (list, tuple)) for part in parts):
            return [self._decode_one(part, latest) for part in parts]
        decoded: list[Rows] = []
        for group in _groups(parts, _TOGETHER):     # turns: one as a rule
            events = sum(map(len, group))
            if events < _SCAN_MIN or self._columns_rest:
                self._columns_rest = max(0, self._columns_rest - 1)
                decoded += [self._decode_one(part, latest) for part in group]
                continue
            bad: list[tuple[int, str, str]] = []
            values, retried = self._by_columns(self._columns, list(chain.from_iterable(part.values for part in group)), bad)
            refused = [i for i, _, _ in bad]
            kept = np.delete(np.arange(events), refused)
            times = None if self.schema.timestamp is None else _event_times(
                values[self.schema.timestamp], self.schema.timestamp_unit)
            first = 0
            for place, part in enumerate(group):                      # turns: parts; each takes its rows and its refusals
                last = first + len(part)
                start, end = np.searchsorted(kept, (first, last)).tolist()
                own = [(i - first, reason, detail) for i, reason, detail in bad[bisect_left(refused, first):
                                                                                bisect_left(refused, last)]]
                taken = values if end - start == len(kept) else {path: column[start:end] for path, column in values.items()}
                decoded.append(self._rows(part, taken, kept[start:end] - first, own, 0 if place else retried, latest,
                                          None if times is None else times[start:end]))
                first = last
        return decoded

    def _decode_one(self, part: Part, latest: int) -> Rows:
        if not isinstance(part.values, (list, tuple)):
            return decode_table(self.model, self.schema, part, latest)
        bad: list[tuple[int, str, str]] = []
        values, retried = self._by_rows(part.values, range(len(part)), bad)
        kept = np.delete(np.arange(len(part)), [i for i, _, _ in bad])
        return self._rows(part, values, kept, bad, retried, latest)

    def _rows(self, part: Part, values: dict[Path, Any], kept: NDArray[np.intp], bad: list[tuple[int, str, str]],
              retried: int, latest: int, times: NDArray[np.int64] | None = None) -> Rows:
        """The part's rows from its good events' values; `kept` are their places, `times` those in the events if known."""
        if times is None:
            times = part.times[kept]
            if self.schema.timestamp:
                times = _event_times(values[self.schema.timestamp], self.schema.timestamp_unit)
        in_time = (times >= 0) & (times <= latest)
        if not in_time.all():
            bad += [(i, "timestamp", NO_TIME) for i in kept[~in_time].tolist()]
            bad.sort()
            kept, times = kept[in_time], times[in_time]
            chosen, flags = np.flatnonzero(in_time), in_time.tolist()
            values = {path: _chosen(column, chosen, flags) for path, column in values.items()}
        others = {column.name: _first(column, values) for column in self.schema.labels}
        if self.schema.id:
            others["id"] = _texts(values[self.schema.id])
        refused_at: list[int] = part.offsets[[i for i, _, _ in bad]].tolist() if bad else []
        return Rows(
            model=self.model, topic=part.topic, partition=part.partition, offsets=part.offsets[kept], times=times,
            columns={column.name: _first(column, values) for column in self.schema.columns}, others=others,
            next_offset=part.next_offset, read=len(part), retried=retried,
            refusals=tuple(Refusal(part.topic, part.partition, offset, reason, detail[:DETAIL_CHARACTERS], part.values[i])
                           for offset, (i, reason, detail) in zip(refused_at, bad, strict=True)))

    def _by_rows(self, values: Sequence[Any], places: Sequence[int], bad: list[tuple[int, str, str]]) -> tuple[
            dict[Path, Any], int]:
        """The values of the good events and how many were read twice, by msgspec; `places` are the events' in the part."""
        size, pieces, retried = self._block or len(values) or 1, [], 0
        for start in range(0, len(values), size) or (0,):       # turns: one, or the blocks of a schema with vectors
            rows, retried_here = self._parse(values[start:start + size], places[start:start + size], bad)
            pieces.append(self._tree.columns(rows))
            retried += retried_here
        return (pieces[0] if len(pieces) == 1 else
                {path: _joined([piece[path] for piece in pieces]) for path in pieces[0]}), retried

    def _by_columns(self, columns: ColumnParser, values: Sequence[Any], bad: list[tuple[int, str, str]]) -> tuple[
            dict[Path, Any], int]:
        """The same by the scanner; what it leaves is read by msgspec and put in its place."""
        found, plain = columns.parse(values, self._limit)
        rest = np.flatnonzero(~plain)
        if not len(rest):
            return found, 0
        if 2 * len(rest) > len(values):             # another kind of stream: the scanner has a look again later
            self._columns_rest = _SCAN_REST
        read, retried = self._by_rows([values[i] for i in rest.tolist()], rest.tolist(), bad)
        refused = np.array([i for i, _, _ in bad], np.int64)
        index = rest[~np.isin(rest, refused)]
        if len(index):
            for path, column in read.items():
                found[path] = columns.place(path, found[path], index, column)
        if len(refused):
            plain[:] = True
            plain[refused] = False
            chosen, flags = np.flatnonzero(plain), plain.tolist()
            found = {path: _chosen(column, chosen, flags) for path, column in found.items()}
        return found, retried

    def _parse(self, values: Sequence[Any], places: Sequence[int], bad: list[tuple[int, str, str]]) -> tuple[list[Any], int]:
        """Parsed rows, and how many were read a second time; (place, reason, detail) of the others goes to `bad`."""
        rows: list[Any] = []
        retried = 0
        parse, keep, limit = self._parser.decode, rows.append, self._limit
        for i, value in zip(places, values, strict=True):
            try:
                if len(value) > limit:
                    bad.append((i, "too_large", f"{len(value)} bytes, limits.message_bytes is {limit}"))
                    continue
                keep(parse(value))
            except _REFUSABLE as error:
                if type(error) is msgspec.DecodeError and b"NaN" in value:
                    retried += 1
                    try:
                        keep(_parse_with_nan(value, parse))
                        continue
                    except (*_REFUSABLE, ValueError, OverflowError) as second:
                        error = second  # type: ignore[assignment]
                bad.append((i, *self._reason(value, error)))
            except TypeError:
                if value is not None:
                    raise
                bad.append((i, "tombstone", "a record without a value"))
        return rows, retried

    def _reason(self, value: bytes, error: Exception) -> tuple[str, str]:
        """The bounded reason and the parser's own words."""
        detail = str(error)
        if isinstance(error, RecursionError):
            return "depth", detail
        if isinstance(error, msgspec.ValidationError) and not detail.startswith("Number out of range"):   # 1e400
            return ("timestamp" if detail.endswith(self._timestamp_place) else "type"), detail
        if isinstance(error, UnicodeError):
            return "encoding", detail
        if value.startswith(b"\xef\xbb\xbf"):
            return "encoding", "a byte order mark before the document"
        if "surrogate" in detail:
            return "encoding", "a lone surrogate escape"
        # One near the end the parser calls truncated. Only there: a message of nothing but escapes must not cost more.
        end = value[-_ESCAPE_PAIR:]
        if b"\\u" in end and _SURROGATE.search(end) and _is_json(value[:-_ESCAPE_PAIR] + _SURROGATE.sub(rb"\\u0041", end)):
            return "encoding", "a lone surrogate escape"
        return "json", detail


class _Object:
    """One JSON object of the schema: its struct type, its values, the objects inside it.

    Fields are named f0, f1 ... whatever their keys are, so that every key can be read.
    """

    def __init__(self, kinds: Mapping[Path, str], dims: Mapping[Path, int], depth: int = 0) -> None:
        inner = {path[depth] for path in kinds if len(path) > depth + 1}
        self.children = {key: _Object({p: k for p, k in kinds.items() if len(p) > depth + 1 and p[depth] == key},
                                      dims, depth + 1) for key in sorted(inner)}
        leaves = {path: kind for path, kind in kinds.items() if len(path) == depth + 1}
        self.numbers = [path for path, kind in leaves.items() if _is_number(kind)]
        self.objects = [path for path, kind in leaves.items() if not _is_number(kind)]
        self.kinds, self.dims = leaves, dims
        keys = [path[-1] for path in (*self.numbers, *self.objects)] + list(self.children)
        types = [(_vector(dims[path]) if path in dims else _TYPES[leaves[path]], _DEFAULTS.get(leaves[path]))
                 for path in (*self.numbers, *self.objects)]
        types += [(child.type | None, None) for child in self.children.values()]
        names = [f"f{i}" for i in range(len(keys))]
        self.type: Any = msgspec.defstruct(
            "Event" if depth == 0 else "Object",
            [(name, kind, default) for name, (kind, default) in zip(names, types, strict=True)],
            rename=dict(zip(names, keys, strict=True)), gc=False)
        self._numbers = _getter(names[:len(self.numbers)])
        self._objects = _getter(names[len(self.numbers):len(self.numbers) + len(self.objects)])
        self._children = names[len(self.numbers) + len(self.objects):]
        self._empty = self.type()

    def columns(self, rows: Sequence[Any]) -> dict[Path, Values]:
        """The values of every path below this object, one per row."""
        columns: dict[Path, Values] = {}
        if self.numbers:
            flat = np.array(list(chain.from_iterable(map(self._numbers, rows))), dtype=np.float64)   # None becomes NaN
            columns.update(zip(self.numbers, np.ascontiguousarray(flat.reshape(-1, len(self.numbers)).T), strict=True))
        if self.objects:
            transposed = list(zip(*map(self._objects, rows), strict=True)) or [()] * len(self.objects)
            for path, values in zip(self.objects, transposed, strict=True):
                columns[path] = (_vectors(values, self.dims[path]) if path in self.dims
                                 else _plain(values, self.kinds[path]))
        for name, child in zip(self._children, self.children.values(), strict=True):
            inner = list(map(attrgetter(name), rows))
            if None in inner:                                   # absent or null: everything inside is missing
                inner = [child._empty if row is None else row for row in inner]
            columns.update(child.columns(inner))
        return columns


def _groups(parts: Sequence[Part], events: int) -> Iterator[list[Part]]:
    """Consecutive parts of at least one, and together of no more than so many events."""
    group: list[Part] = []
    size = 0
    for part in parts:
        if group and size + len(part) > events:
            yield group
            group, size = [], 0
        group.append(part)
        size += len(part)
    if group:
        yield group


def _chosen(column: Any, index: NDArray[np.intp], flags: Sequence[bool]) -> Any:
    """The values at some places, given as places and as flags."""
    if isinstance(column, np.ndarray):
        return column[index]
    return column.take(index) if isinstance(column, Coded) else list(compress(column, flags))


def _is_number(kind: str) -> bool:
    return kind in ("numeric", "seconds", "milliseconds")


def _getter(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """attrgetter that gives a tuple for one name, too."""
    if len(names) == 1:
        one = attrgetter(names[0])
        return lambda row: (one(row),)
    return attrgetter(*names) if names else lambda row: ()


def _plain(values: Sequence[Any], kind: str) -> Sequence[Any]:
    """Texts of a category or boolean column; datetimes stay as they are."""
    if kind == "boolean":
        return [TRUTH[value] for value in values]
    if kind in ("category", "text") and not set(map(type, values)) <= {str, type(None)}:
        return [category_text(value) for value in values]
    return values


def _vector(dim: int) -> Any:
    """What msgspec takes as a vector."""
    return Annotated[list[float | None], msgspec.Meta(min_length=dim, max_length=dim)] | None


def _vectors(values: Sequence[Sequence[float | None] | None], dim: int) -> NDArray[np.float64]:
    """Vectors as float64 (n, dim); one with a missing entry is missing: NaN throughout."""
    found = np.full((len(values), dim), math.nan)
    present = np.array([value is not None for value in values], dtype=bool)
    vectors = [value for value in values if value is not None]
    try:
        flat = np.fromiter(chain.from_iterable(vectors), np.float64, len(vectors) * dim)
    except TypeError:                               # a None somewhere: the slower way, in which None becomes NaN
        flat = np.array(list(chain.from_iterable(vectors)), dtype=np.float64)
    found[present] = flat.reshape(-1, dim)
    found[np.isnan(found).any(axis=1)] = math.nan
    return found


def _joined(pieces: Sequence[Any]) -> Values:
    """One column's values in several blocks, one behind the other."""
    return np.concatenate(pieces) if isinstance(pieces[0], np.ndarray) else list(chain.from_iterable(pieces))


def _event_times(values: Any, unit: str) -> NDArray[np.int64]:
    """Whole milliseconds since 1970, rounded down; -1 where there is none."""
    if unit == "iso8601":
        return np.array([-1 if time is None else milliseconds(time) for time in values], dtype=np.int64)
    # Half a microsecond, so that 1.001 s is not cut to 1000 ms by its nearest double.
    scaled = np.asarray(values, dtype=np.float64) * 1000 + 5e-4 if unit == "seconds" else np.asarray(values)
    return np.where(np.isnan(scaled), -1, np.floor(np.nan_to_num(scaled))).astype(np.int64)


def _first(column: StreamColumn, values: Mapping[Path, Values]) -> Values:
    """The column's values; where the path has none, the first alias that has one."""
    found = [values[path] for path in column.paths]
    if len(found) == 1:
        return found[0]
    if column.kind in ("numeric", "embedding"):                 # a missing vector is NaN throughout
        return functools.reduce(lambda a, b: np.where(np.isnan(a), b, a), cast("list[NDArray[np.float64]]", found))
    return [next((text for text in texts if text is not None), None) for texts in zip(*found, strict=True)]


def _texts(values: Iterable[Any]) -> list[str | None]:
    return [category_text(value) for value in values]


def _parse_with_nan(value: bytes, parse: Callable[[bytes], Any]) -> Any:
    """The event, read by the standard library, which knows NaN, then by the decoder's own rules.

    Decoded here because the library would guess other encodings; encoded again so that one set of rules holds for
    both ways: NaN becomes null, a lone surrogate fails.
    """
    document = json.loads(value.decode("utf-8"), parse_constant=_nan_only, parse_float=_finite, parse_int=_whole)
    return parse(msgspec.json.encode(document))


def _is_json(value: bytes) -> bool:
    try:
        msgspec.json.decode(value)
    except _REFUSABLE:
        return False
    return True


def _nan_only(literal: str) -> None:
    if literal != "NaN":
        raise ValueError(f"{literal} is not a JSON number")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"number out of range: {text[:40]}")
    return number


def _whole(text: str) -> int | float:
    return int(text) if len(text) <= 18 else _finite(text)      # longer ones may not fit 64 bits
