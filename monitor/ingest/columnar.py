"""Tables to columns: what `decode` does for JSON, for pyarrow tables out of Parquet, CSV and Arrow messages.

A column is looked for under its dotted path as a flat name (`features.age`), then as nested structs, then under its
bare name, so that the file that a reference was fitted from can be replayed under the schema of the live topic. The
rules of kinds, missing values and refusals are those of `values`; a whole column of a wrong type refuses every row that
has a value there. Of two columns of one name the last one counts, as of two keys of a JSON object. Dictionaries and
extension types are read as what they hold. Cells of CSV are all text: there, and only there, text is read as a number or
a boolean (`TEXT_CELLS` marks the table).

A refused row's bytes are the row as one JSON object. Cost per value: numbers 2-5 ns, categories and booleans 15-35 ns (one
Python object per level, none per event), texts and ISO times 0.1-0.5 us. Neighbours: `files` and `arrow` bring the tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.coded import Coded
from monitor.flow import Part, Refusal, Rows
from monitor.ingest.schema import Path, StreamColumn, StreamSchema
from monitor.ingest.values import NO_TIME, TIME_LIMIT_MS, TIME_LIMIT_SECONDS, TRUTH, category_text, milliseconds

#: Key in a table's metadata: every cell is text, as in CSV.
TEXT_CELLS = b"tidemark.text_cells"

_MISSING_TEXTS = frozenset({"", "nan", "null", "na", "n/a", "none", "<na>"})
VALUE_BYTES = 65_536                                # of a refused row that are kept; JSON events are kept whole
#: Milliseconds that one unit of a timestamp has, or units that one millisecond has.
_TIMESTAMPS = {"s": (1_000, 1), "ms": (1, 1), "us": (1, 1_000), "ns": (1, 1_000_000)}
_DAY_MS = 86_400_000
#: What a cell may raise on its way to JSON: a date of the year 10000, a time zone that there is not.
_UNTELLABLE = (pa.ArrowException, ValueError, TypeError, OverflowError, KeyError, RecursionError)

Values = NDArray[np.float64] | Sequence[str | None]


def decode_table(model: str, schema: StreamSchema, part: Part, latest: int = TIME_LIMIT_MS) -> Rows:
    """The rows of a part whose values are a pyarrow table, and its refused rows; `latest` is the last usable time."""
    table: pa.Table = part.values
    reader = TableReader(table)
    columns, others, times = reader.all(schema, part.times, latest)
    good = np.flatnonzero(~reader.bad)
    refusals: tuple[Refusal, ...] = ()
    if len(good) < len(table):
        bad = np.flatnonzero(reader.bad)
        refusals = tuple(
            Refusal(part.topic, part.partition, int(part.offsets[i]), *reader.why[i], row)
            for i, row in zip(bad.tolist(), rows_as_json(table.take(pa.array(bad))), strict=True))
        columns = {name: chosen(values, good) for name, values in columns.items()}
        others = {name: chosen(values, good) for name, values in others.items()}
    return Rows(model=model, topic=part.topic, partition=part.partition, offsets=part.offsets[good], times=times[good],
                columns=columns, next_offset=part.next_offset, read=len(part), others=others, refusals=refusals)


class TableReader:
    """One table's columns by path, and why rows of it are refused (the first reason stays).

    bad : bool (n,), the refused rows      why : of each of them its reason and detail
    by_name : whether a column that is not at its path may stand under its bare name, as in the file of a reference
    """

    def __init__(self, table: pa.Table, *, by_name: bool = True) -> None:
        self.table, self.by_name = table, by_name
        self.is_text = by_name and TEXT_CELLS in (table.schema.metadata or {})
        self.bad = np.zeros(len(table), dtype=bool)
        self.why: dict[int, tuple[str, str]] = {}
        self._places = {name: place for place, name in enumerate(table.schema.names)}

    def all(self, schema: StreamSchema, times: NDArray[np.int64], latest: int) -> tuple[
            dict[str, Values], dict[str, Values], NDArray[np.int64]]:
        """Watched columns, the others and event times of every row; `times` where the schema has no time of its own."""
        columns = {column.name: self.column(column) for column in schema.columns}
        others = {column.name: self.column(column) for column in schema.labels}
        if schema.id:
            others["id"] = self.column(StreamColumn("id", "text", "id", (schema.id,)))
        if schema.timestamp:
            times = self.times(schema.timestamp, schema.timestamp_unit)
        self.refuse((times < 0) | (times > latest), "timestamp", NO_TIME)
        return columns, others, times

    def refuse(self, rows: NDArray[np.bool_], reason: str, detail: str) -> None:
        """Mark the rows where `rows` holds."""
        fresh = rows & ~self.bad
        if fresh.any():
            self.why.update(dict.fromkeys(np.flatnonzero(fresh).tolist(), (reason, detail)))
            self.bad |= fresh

    def find(self, path: Path) -> pa.ChunkedArray | None:
        """The array at a path, or None."""
        for flat in (".".join(path), *([path[-1]] if self.by_name else [])):
            if flat in self._places:
                return _plain(self.table.column(self._places[flat]))
            if flat == ".".join(path) and path[0] in self._places:
                array = _plain(self.table.column(self._places[path[0]]))
                for key in path[1:]:
                    places = array.type.get_all_field_indices(key) if pa.types.is_struct(array.type) else []
                    if not places:
                        break
                    array = _plain(pc.struct_field(array, [places[-1]]))
                else:
                    return array
        return None

    def column(self, column: StreamColumn) -> Values:
        """The values of a column; where the path has none, the first alias that has one."""
        found = [array for path in column.paths if (array := self.find(path)) is not None]
        read = {"numeric": self._numbers, "embedding": self._vectors, "text": self._texts}.get(column.kind, self._levels)
        results: list[Any] = [read(array, column) for array in found]
        if not results:
            return self._missing(column)
        first = results[0]
        for other in results[1:]:
            if column.kind in ("numeric", "embedding"):
                first = np.where(np.isnan(first), other, first)
            else:
                first = [b if a is None else a for a, b in zip(first, other, strict=True)]
        return first  # type: ignore[no-any-return]

    def _missing(self, column: StreamColumn) -> Values:
        n = len(self.table)
        if column.kind in ("numeric", "embedding"):
            return np.full((n, column.dim) if column.dim else n, math.nan)
        return [None] * n if column.kind == "text" else Coded(np.zeros(n, np.int32), [None])

    def _numbers(self, array: pa.ChunkedArray, column: StreamColumn) -> NDArray[np.float64]:
        kind = array.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
            if _is_number(kind):
                array = array.cast(kind)
        if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
            array = array.cast(pa.float64(), safe=False)
        elif pa.types.is_null(kind):
            return np.full(len(array), math.nan)
        elif self.is_text and _is_string(kind):
            array = pa.chunked_array([self._parsed(array, column.name)])
        elif not _is_number(kind):
            self.refuse(array.is_valid().to_numpy(), "type", f"expected numbers, got {kind} in column {column.name}")
            return np.full(len(array), math.nan)
        numbers = np.asarray(array.to_numpy(), dtype=np.float64)        # null becomes NaN
        self.refuse(np.isinf(numbers), "type", f"expected a finite number in column {column.name}")
        return numbers

    def _vectors(self, array: pa.ChunkedArray, column: StreamColumn) -> NDArray[np.float64]:
        """Lists of numbers as float64 (n, dim)."""
        kind, dim = array.type, column.dim
        found = np.full((len(array), dim), math.nan)
        present = array.is_valid().to_numpy().astype(bool)
        if pa.types.is_null(kind):
            return found
        entry = kind.value_type if is_list(kind) else None
        if entry is None or not _is_number(entry):
            hint = "; CSV has no lists, give Parquet or JSON lines" if self.is_text else ""
            self.refuse(present, "type", f"expected lists of {dim} numbers, got {kind} in column {column.name}{hint}")
            return found
        lengths = pc.list_value_length(array).fill_null(dim).to_numpy()
        self.refuse(lengths != dim, "type", f"expected a list of {dim} numbers in column {column.name}")
        usable = present & (lengths == dim)
        entries = pc.list_flatten(array.filter(pa.array(usable))).cast(pa.float64(), safe=False).fill_null(math.nan)
        found[usable] = entries.to_numpy().reshape(-1, dim)
        self.refuse(np.isinf(found).any(axis=1), "type", f"expected finite numbers in column {column.name}")
        found[np.isnan(found).any(axis=1)] = math.nan
        return found

    def _parsed(self, array: pa.ChunkedArray, name: str) -> NDArray[np.float64]:
        """Numbers from text cells: all at once, or, if one of them is no number, cell by cell."""
        try:
            return np.asarray(array.cast(pa.float64()).fill_null(math.nan).to_numpy())
        except pa.ArrowInvalid:
            numbers = np.full(len(array), math.nan)
        wrong = np.zeros(len(array), dtype=bool)
        for i, text in enumerate(array.to_pylist()):
            if text is not None and text.strip().lower() not in _MISSING_TEXTS:
                try:
                    numbers[i] = float(text)
                except ValueError:
                    wrong[i] = True
        self.refuse(wrong, "type", f"expected a number in column {name}")
        return numbers

    def _readable(self, array: pa.ChunkedArray, column: StreamColumn) -> pa.ChunkedArray | None:
        """The array if its values can be texts; else None, and the rows that have one are refused."""
        kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
        if pa.types.is_decimal(kind):
            return array.cast(kind).cast(pa.float64(), safe=False)
        if _is_string(kind) or pa.types.is_boolean(kind) or _is_number(kind) or pa.types.is_null(kind):
            return array
        self.refuse(array.is_valid().to_numpy(), "type", f"expected text, got {kind} in column {column.name}")
        return None

    def _texts(self, array: pa.ChunkedArray, column: StreamColumn) -> Values:
        """Texts as a list: they are many and differ."""
        if (found := self._readable(array, column)) is None:
            return [None] * len(array)
        values = _listed(found)
        return values if _is_string(found.type) else [category_text(value) for value in values]

    def _levels(self, array: pa.ChunkedArray, column: StreamColumn) -> Coded:
        """Categories and booleans by code; each level is looked at once."""
        if (found := self._readable(array, column)) is None:
            return Coded(np.zeros(len(array), np.int32), [None])
        codes, values = _coded(found)
        if column.kind != "boolean":
            return Coded(codes, [None, *map(category_text, values)])
        if self.is_text:
            values = [None if value is None else {"1": 1, "0": 0}.get(value, value.lower()) for value in values]
        values = [None if value != value else value for value in values]        # NaN is missing
        wrong = np.array([False, *(value not in TRUTH for value in values)], dtype=bool)
        if wrong.any():
            self.refuse(wrong[codes], "type", f"expected true or false in column {column.name}")
        return Coded(codes, [None, *(TRUTH.get(value) for value in values)])

    def times(self, path: Path, unit: str) -> NDArray[np.int64]:
        """Whole milliseconds since 1970, rounded down; -1 where there is none."""
        array = self.find(path)
        if array is None:
            return np.full(len(self.table), -1, dtype=np.int64)
        if pa.types.is_dictionary(array.type) and pa.types.is_temporal(array.type.value_type):
            array = array.cast(array.type.value_type)
        if pa.types.is_timestamp(array.type):
            times, per = _TIMESTAMPS[array.type.unit]
            return _scaled(array, pa.int64(), times, per)
        if pa.types.is_date(array.type):
            return _scaled(array, *((pa.int32(), _DAY_MS) if pa.types.is_date32(array.type) else (pa.int64(), 1)), 1)
        if unit == "iso8601":
            return np.array([_iso_milliseconds(value) for value in _listed(array)], dtype=np.int64)
        column = StreamColumn("time", "numeric", "timestamp", (path,))
        aside = TableReader(self.table, by_name=self.by_name)       # a wrong time is refused as a time, not as a value
        numbers = aside._numbers(array, column)
        scaled = numbers * 1000 + 5e-4 if unit == "seconds" else numbers
        usable = np.isfinite(scaled) & (np.abs(scaled) < 2**62)
        return np.where(usable, np.floor(np.where(usable, scaled, 0)), -1).astype(np.int64)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def chosen(values: Any, index: NDArray[np.intp]) -> Any:
    """The values at some places."""
    if isinstance(values, np.ndarray):
        return values[index]
    return values.take(index) if isinstance(values, Coded) else [values[i] for i in index.tolist()]


def rows_as_json(table: pa.Table) -> list[bytes]:
    """Each row as one JSON object, cut at `VALUE_BYTES`: what a dead letter keeps of it."""
    columns = {name: _documents(table.column(place)) for place, name in enumerate(table.schema.names)}
    return [msgspec.json.encode({name: values[i] for name, values in columns.items()}, enc_hook=str)[:VALUE_BYTES]
            for i in range(len(table))]


def _documents(array: pa.ChunkedArray) -> list[Any]:
    """The cells as Python objects that can be written as JSON."""
    try:
        if pa.types.is_timestamp(array.type):       # nanoseconds are more than a datetime holds
            array = array.cast(pa.timestamp("us", array.type.tz), safe=False)
        values = array.to_pylist()
        msgspec.json.encode(values, enc_hook=str)
        return values  # type: ignore[no-any-return]
    except _UNTELLABLE:
        return [_document(value) for value in array]


def _document(value: pa.Scalar) -> Any:
    """One cell; where it cannot be told, its type."""
    try:
        document = value.as_py()
        msgspec.json.encode(document, enc_hook=str)
    except _UNTELLABLE:
        return f"({value.type})"[:100]
    return document


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _plain(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """An extension type's storage; every other array as it is."""
    while isinstance(array.type, pa.BaseExtensionType):
        bare = pa.types.is_int8(array.type.storage_type) and array.type.extension_name == "arrow.bool8"
        array = pa.chunked_array([chunk.storage for chunk in array.chunks], array.type.storage_type)
        if bare:
            return pc.not_equal(array, pa.scalar(0, pa.int8()))
    return array


def _listed(array: pa.ChunkedArray) -> list[Any]:
    """The cells as Python objects; of a dictionary one object per level, not one per cell."""
    if not pa.types.is_dictionary(array.type):
        return array.to_pylist()  # type: ignore[no-any-return]
    codes, found = _coded(array)
    levels = np.empty(len(found) + 1, dtype=object)
    levels[1:] = found
    return levels[codes].tolist()  # type: ignore[no-any-return]


def _coded(array: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[Any]]:
    """Codes int32 (n,), 0 where missing, and the levels of the codes from 1 on."""
    if pa.types.is_null(array.type):
        return np.zeros(len(array), np.int32), []
    if pa.types.is_dictionary(array.type):
        return _coded_dictionaries(array)
    if pa.types.is_float16(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(pa.string() if _is_string(array.type) else pa.float64())
    encoded = array.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):        # beyond 2 GiB, or of none
        encoded = encoded.unify_dictionaries().combine_chunks()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    codes += 1
    return codes, encoded.dictionary.to_pylist()


def _coded_dictionaries(array: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[Any]]:
    """The same of dictionaries, which need not agree from chunk to chunk, and are not unfolded."""
    places: dict[Any, int] = {}
    codes, known, table = [np.zeros(0, np.int32)], None, np.zeros(1, np.int32)
    for chunk in array.chunks:                      # turns: messages
        if known is None or not chunk.dictionary.equals(known):
            known = chunk.dictionary
            levels = known.to_pylist()
            table = np.array([0, *(0 if level is None else places.setdefault(level, len(places) + 1) for level in levels)],
                             np.int32)
        codes.append(table[chunk.indices.cast(pa.int64(), safe=False).fill_null(-1).to_numpy() + 1])
    return np.concatenate(codes), list(places)


def _scaled(array: pa.ChunkedArray, storage: pa.DataType, times: int, per: int) -> NDArray[np.int64]:
    """Whole milliseconds of times in another unit, without overflow; -1 where there is none."""
    stamps = np.asarray(array.cast(storage).fill_null(-1).to_numpy(), dtype=np.int64)
    usable = (stamps >= 0) & (stamps <= TIME_LIMIT_SECONDS * 1_000 // times * per)
    return np.where(usable, np.where(usable, stamps, 0) * times // per, -1)


def _iso_milliseconds(value: object) -> int:
    """Milliseconds of an RFC 3339 text, by the parser that JSON events go through; -1 where it is none."""
    try:
        return milliseconds(msgspec.convert(value, datetime))
    except msgspec.ValidationError:
        return -1
