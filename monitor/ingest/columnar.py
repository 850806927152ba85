"""Tables to columns: what `decode` does for JSON, for pyarrow tables that come from Parquet and CSV files.

A column is looked for under its dotted path as a flat name (`features.age`), then as nested structs, then under its
bare name, so that the file that a reference was fitted from can be replayed under the schema of the live topic. The
rules of kinds, missing values and refusals are those of `values`; a whole column of a wrong type refuses every row.
Cells of CSV are all text: there, and only there, text is read as a number or a boolean (`TEXT_CELLS` marks the table).
A refused row's bytes are the row as one JSON object. Cost: below 0.3 µs per value; strings are the dear ones.
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

from monitor.flow import Part, Refusal, Rows
from monitor.ingest.schema import Path, StreamColumn, StreamSchema
from monitor.ingest.values import NO_TIME, TIME_LIMIT_MS, TRUTH, category_text, milliseconds

#: Key in a table's metadata: every cell is text, as in CSV.
TEXT_CELLS = b"tidemark.text_cells"

_MISSING_TEXTS = frozenset({"", "nan", "null", "na", "n/a", "none", "<na>"})
_VALUE_BYTES = 65_536                               # of a refused row that are kept; JSON events are kept whole


def decode_table(model: str, schema: StreamSchema, part: Part, latest: int = TIME_LIMIT_MS) -> Rows:
    """The rows of a part whose values are a pyarrow table, and its refused rows; `latest` is the last usable time."""
    table: pa.Table = part.values
    reader = _Reader(table)
    columns = {column.name: reader.column(column) for column in schema.columns}
    others = {column.name: reader.column(column) for column in schema.labels}
    if schema.id:
        others["id"] = reader.column(StreamColumn("id", "category", "id", (schema.id,)))
    times = part.times
    if schema.timestamp:
        times = reader.times(schema.timestamp, schema.timestamp_unit)
    reader.refuse(~((times >= 0) & (times <= latest)), "timestamp", NO_TIME)
    good = np.array([reason is None for reason in reader.reasons], dtype=bool)
    refusals = []
    for i in np.flatnonzero(~good).tolist():
        reason, detail = reader.reasons[i] or ("type", "")
        row = msgspec.json.encode(table.slice(i, 1).to_pylist()[0], enc_hook=str)
        refusals.append(Refusal(part.topic, part.partition, int(part.offsets[i]), reason, detail, row[:_VALUE_BYTES]))
    if refusals:
        columns = {name: _choose(values, good) for name, values in columns.items()}
        others = {name: _choose(values, good) for name, values in others.items()}
    return Rows(model=model, topic=part.topic, partition=part.partition, offsets=part.offsets[good], times=times[good],
                columns=columns, next_offset=part.next_offset, read=len(part), others=others, refusals=tuple(refusals))


class _Reader:
    """One table's columns by path, and why rows of it are refused (the first reason stays)."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.is_text = TEXT_CELLS in (table.schema.metadata or {})
        self.reasons: list[tuple[str, str] | None] = [None] * len(table)

    def refuse(self, rows: NDArray[np.bool_], reason: str, detail: str) -> None:
        """Mark the rows where `rows` holds."""
        for i in np.flatnonzero(rows).tolist():
            self.reasons[i] = self.reasons[i] or (reason, detail)

    def find(self, path: Path) -> pa.ChunkedArray | None:
        """The array at a path, or None."""
        names = self.table.schema.names
        for flat in (".".join(path), path[-1]):
            if flat in names:
                return self.table.column(flat)
            if flat == ".".join(path) and path[0] in names and pa.types.is_struct(self.table.column(path[0]).type):
                array = self.table.column(path[0])
                for key in path[1:]:
                    if not pa.types.is_struct(array.type) or array.type.get_field_index(key) < 0:
                        break
                    array = pc.struct_field(array, key)
                else:
                    return array
        return None

    def column(self, column: StreamColumn) -> NDArray[np.float64] | Sequence[str | None]:
        """The values of a column; where the path has none, the first alias that has one."""
        found = [array for path in column.paths if (array := self.find(path)) is not None]
        read = {"numeric": self._numbers, "embedding": self._vectors}.get(column.kind, self._texts)
        results: list[Any] = [read(array, column) for array in found]
        if not results:
            shape = (len(self.table), column.dim) if column.dim else len(self.table)
            return np.full(shape, math.nan) if column.kind in ("numeric", "embedding") else [None] * len(self.table)
        first = results[0]
        for other in results[1:]:
            if column.kind in ("numeric", "embedding"):
                first = np.where(np.isnan(first), other, first)
            else:
                first = [b if a is None else a for a, b in zip(first, other, strict=True)]
        return first  # type: ignore[no-any-return]

    def _numbers(self, array: pa.ChunkedArray, column: StreamColumn) -> NDArray[np.float64]:
        kind = array.type
        if pa.types.is_dictionary(kind):
            array = array.cast(kind.value_type)
            kind = array.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            numbers = array.cast(pa.float64(), safe=False).fill_null(math.nan).to_numpy()
        elif pa.types.is_null(kind):
            return np.full(len(array), math.nan)
        elif self.is_text and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            numbers = self._parsed(array, column.name)
        else:
            self.refuse(array.is_valid().to_numpy(), "type", f"expected numbers, got {kind} in column {column.name}")
            return np.full(len(array), math.nan)
        self.refuse(np.isinf(numbers), "type", f"expected a finite number in column {column.name}")
        return np.asarray(numbers, dtype=np.float64)

    def _vectors(self, array: pa.ChunkedArray, column: StreamColumn) -> NDArray[np.float64]:
        """Lists of numbers as float64 (n, dim)."""
        kind, dim = array.type, column.dim
        found = np.full((len(array), dim), math.nan)
        present = array.is_valid().to_numpy().astype(bool)
        if pa.types.is_null(kind):
            return found
        entry = kind.value_type if is_list(kind) else None
        if entry is None or not (pa.types.is_integer(entry) or pa.types.is_floating(entry) or pa.types.is_decimal(entry)):
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

    def _texts(self, array: pa.ChunkedArray, column: StreamColumn) -> list[str | None]:
        kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
        is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        scalar = is_string or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if not (scalar or pa.types.is_null(kind)):
            self.refuse(array.is_valid().to_numpy(), "type", f"expected text, got {kind} in column {column.name}")
            return [None] * len(array)
        values = _listed(array)
        if column.kind in ("category", "text"):
            return values if is_string else [category_text(value) for value in values]
        if self.is_text:
            values = [None if value is None else {"1": 1, "0": 0}.get(value, value.lower()) for value in values]
        values = [None if value != value else value for value in values]        # NaN is missing
        self.refuse(np.array([value not in TRUTH for value in values], dtype=bool), "type",
                    f"expected true or false in column {column.name}")
        return [TRUTH.get(value) for value in values]

    def times(self, path: Path, unit: str) -> NDArray[np.int64]:
        """Whole milliseconds since 1970, rounded down; -1 where there is none."""
        array = self.find(path)
        if array is None:
            return np.full(len(self.table), -1, dtype=np.int64)
        if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
            stamps = array.cast(pa.timestamp("us", tz=getattr(array.type, "tz", None)), safe=False).cast(pa.int64())
            return np.asarray(stamps.fill_null(-1000).to_numpy(), dtype=np.int64) // 1000
        if unit == "iso8601":
            return np.array([_iso_milliseconds(value) for value in array.to_pylist()], dtype=np.int64)
        numbers = _Reader(self.table)._numbers(array, StreamColumn("time", "numeric", "timestamp", (path,)))
        scaled = numbers * 1000 + 5e-4 if unit == "seconds" else numbers
        usable = np.isfinite(scaled) & (np.abs(scaled) < 2**62)
        return np.where(usable, np.floor(np.where(usable, scaled, 0)), -1).astype(np.int64)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _listed(array: pa.ChunkedArray) -> list[Any]:
    """The cells as Python objects. One object per level, not per cell: ten times faster for a column of few levels."""
    array = array.combine_chunks()
    if pa.types.is_null(array.type):
        return [None] * len(array)
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    levels = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
    return levels[encoded.indices.fill_null(len(levels) - 1).to_numpy()].tolist()  # type: ignore[no-any-return]


def _iso_milliseconds(value: object) -> int:
    """Milliseconds of an RFC 3339 text, by the parser that JSON events go through; -1 where it is none."""
    try:
        return milliseconds(msgspec.convert(value, datetime))
    except msgspec.ValidationError:
        return -1


def _choose(values: Any, good: NDArray[np.bool_]) -> Any:
    if isinstance(values, np.ndarray):
        return values[good]
    return [value for value, is_good in zip(values, good.tolist(), strict=True) if is_good]
