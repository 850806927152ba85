"""Whole data sets as columns, for `tidemark fit`: Parquet, CSV, JSON lines (also gzipped), or a span of a topic.

Unlike the stream's decoder there is no schema yet: every column is taken as it comes, nested objects become dotted
names, and `detectors` proposes what each one is. Values become what they will be in the stream (`values`, `columnar`),
so that a reference made here has the bins that the same values fall into later: cells of CSV are text that may be a
number, an empty cell is missing, times are times and no numbers. Lists of numbers are vectors where all have one length;
other lists, and bytes, are no columns.

Memory: the data set once as columns. Errors name the file and, where it has lines, the line. Neighbours: `span` reads
the topic, `files` and `columnar` read the same formats as a stream.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detectors.embedding import vectors
from monitor.errors import ConfigError, SourceFailed
from monitor.ingest.columnar import _MISSING_TEXTS as MISSING_TEXTS
from monitor.ingest.columnar import _plain as bare
from monitor.ingest.columnar import is_list
from monitor.ingest.files import file_format
from monitor.ingest.values import TRUTH, category_text

Values = NDArray[Any] | list[Any]
#: Nested deeper than this is not a column any more.
DEPTH_MAX = 8
#: Whole numbers from here on are no float64; JSON may hold them.
_WHOLE_MAX = 2**1023
_DOCUMENT = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class DataSet:
    """Rows as columns.

    columns : numbers as float64 or int64 arrays, times as datetime64[ms], vectors of one length as float64 (n, length) with
              NaN for missing, everything else as lists with None for missing
    paths   : of the columns that sit in nested objects, the path as `schema.columns.*.path` writes it
    """

    columns: dict[str, Values]
    paths: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))


def read_files(paths: Sequence[str], progress: Callable[[int], None] | None = None, *,
               text: Collection[str] = ()) -> DataSet:
    """All rows of the files, in order; `progress` is called with the rows of each file.

    text : columns of CSV files that stay text though all their cells are numbers, such as 007
    """
    parts = []
    for path in paths:
        parts.append(_read_file(Path(path), text))
        if progress is not None:
            progress(len(parts[-1]))
    whole = _joined(parts)
    if not len(whole):
        raise ConfigError(f"{', '.join(paths)}: expected rows, got none; give a file with data")
    return whole


def from_documents(documents: Iterable[Mapping[str, Any]]) -> DataSet:
    """Flatten JSON objects into columns; a key that an object lacks is missing there."""
    rows: list[dict[str, Any]] = []
    paths: dict[str, str] = {}
    for document in documents:
        row: dict[str, Any] = {}
        _flatten(document, "", "", row, paths, 0)
        rows.append(row)
    columns: dict[str, Values] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = _gathered([row.pop(name, None) for row in rows])           # popped: vectors are held once
        if values is not None:
            columns[name] = values
    return DataSet(columns, {name: path for name, path in paths.items() if name in columns and path != _escaped(name)})


def from_batches(where: str, batches: Iterable[pa.RecordBatch]) -> DataSet:
    """The record batches of Arrow messages, in order; a column that a schema lacks is missing there.

    As in the stream the last of two columns of one name counts. Batches of one schema that follow one another cost as one.
    """
    parts = []
    for schema, run in groupby(batches, key=lambda batch: batch.schema):
        last = {name: place for place, name in enumerate(schema.names)}
        parts.append(_from_table(where, pa.Table.from_batches(list(run)).select(sorted(last.values()))))
    return _joined(parts) if parts else DataSet({})


def as_kind(name: str, values: Values, kind: str) -> Any:
    """A raw column as the kind that it was decided to be; ConfigError for a value that cannot be one."""
    if _are_times(values):
        raise ConfigError(f"column {name}: expected numbers or text, got times; leave it out with --ignore {name}")
    if kind == "embedding":
        return _as_vectors(name, values)
    if isinstance(values, np.ndarray) and values.ndim == 2:
        raise ConfigError(f"column {name}: expected one value per row, got vectors; leave the column as the embedding it is")
    if kind == "numeric":
        if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
            return values.astype(float)
        wrong = next((v for v in values if v is not None and type(v) not in (int, float)), None)
        if wrong is not None:
            raise ConfigError(f"column {name}: expected numbers, got {str(wrong)[:60]!r}; take it with --category {name}")
        return np.array([np.nan if value is None else float(value) for value in values], float)
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    if kind == "boolean":
        wrong = next((value for value in plain if value not in TRUTH), None)
        if wrong is not None:
            raise ConfigError(f"column {name}: expected true or false, got {str(wrong)[:60]!r}; take it with --category {name}")
        return [TRUTH[value] for value in plain]
    wrong = next((value for value in plain if isinstance(value, (list, np.ndarray))), None)
    if wrong is not None:
        raise ConfigError(f"column {name}: expected one value per row, got lists; leave it out with --ignore {name}")
    return [category_text(value) for value in plain]


def _as_vectors(name: str, values: Values) -> NDArray[np.float64]:
    try:
        found = vectors(values)
    except ValueError as error:
        raise ConfigError(f"column {name}: {error}; or leave it out with --ignore {name}") from None
    if not found.shape[1]:
        raise ConfigError(f"column {name}: expected vectors, got none in any row; leave it out with --ignore {name}")
    return found


def _gathered(values: list[Any]) -> Values | None:
    """A column of JSON values; vectors of one length as a matrix, None for lists that have no values to watch."""
    kinds = set(map(type, values)) - {type(None)}
    if not kinds & {list, np.ndarray}:
        return values
    return None if list in kinds else _stacked(values)


def _stacked(values: list[Any]) -> Values:
    """Vectors as a matrix if they have one length and nothing else is among them; else as they are."""
    if not all(value is None or isinstance(value, np.ndarray) for value in values):
        return values
    lengths = {len(value) for value in values if value is not None}
    return vectors(values) if len(lengths) == 1 and 0 not in lengths else values


def _read_file(path: Path, text: Collection[str]) -> DataSet:
    if not path.is_file():
        raise ConfigError(f"{path}: expected a file, found none; check the path")
    try:
        kind = file_format(path)
        if kind == "parquet":
            return _from_table(path, pq.read_table(path))
        if kind == "csv":
            return _from_table(path, _csv(path), cells=True, text=text)
        with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as lines:
            return from_documents(_documents(path, lines))
    except SourceFailed as error:
        raise ConfigError(str(error)) from None
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        words = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: expected a readable file of the kind that its name says, got: {words}; "
                          "mend or convert it") from None


def _csv(path: Path) -> pa.Table:
    """All cells as text, as the stream reads them; an empty cell is missing."""
    # One thread: only so does the reader know the number of a row that is broken.
    one_thread = pacsv.ReadOptions(use_threads=False)
    with pa.input_stream(str(path), compression="detect") as file:
        names = pacsv.open_csv(file, read_options=one_thread).schema.names
    convert = pacsv.ConvertOptions(strings_can_be_null=True, null_values=[""], quoted_strings_can_be_null=False,
                                   column_types=dict.fromkeys(names, pa.string()))
    with pa.input_stream(str(path), compression="detect") as file:
        return pacsv.read_csv(file, convert_options=convert, read_options=one_thread)


def _documents(path: Path, lines: Iterable[bytes]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield as_document(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path}: line {number}: expected a JSON object on one line, got: {str(error)[:120]}; "
                "mend or remove it") from None


def as_document(text: bytes) -> dict[str, Any]:
    """The JSON object in some bytes, NaN included; ValueError or RecursionError for anything else."""
    try:
        document = _DOCUMENT(text)
    except msgspec.DecodeError as error:
        if b"NaN" not in text:
            raise ValueError(str(error)) from None
        document = json.loads(text)                     # the one deviation from JSON that the stream takes, too
        if not isinstance(document, dict):
            raise ValueError("another value") from None
    _refuse_huge(document)
    return document


def _refuse_huge(document: Mapping[str, Any]) -> None:
    for value in document.values():
        if isinstance(value, dict):
            _refuse_huge(value)
        elif type(value) is int and not -_WHOLE_MAX < value < _WHOLE_MAX:
            raise ValueError("a whole number of more than 308 digits")


def _from_table(path: Path | str, table: pa.Table, *, cells: bool = False, text: Collection[str] = ()) -> DataSet:
    columns: dict[str, Values] = {}
    paths: dict[str, str] = {}

    def add(name: str, where: str, array: pa.ChunkedArray, depth: int) -> None:
        array = bare(array)
        if pa.types.is_struct(array.type) and depth < DEPTH_MAX:
            for index in range(array.type.num_fields):
                key = array.type.field(index).name
                add(f"{name}.{key}", f"{where}.{_escaped(key)}", pc.struct_field(array, [index]), depth + 1)
            return
        values = _cells(array, stays_text=name in text) if cells else _values(array)
        if values is None:
            return
        if name in columns:
            raise ConfigError(f"{path}: expected each column once, got two named {name!r}; rename one")
        columns[name] = values
        if depth:
            paths[name] = where

    for name, array in zip(table.column_names, table.columns, strict=True):
        add(name, _escaped(name), array, 0)
    return DataSet(columns, paths)


def _values(array: pa.ChunkedArray) -> Values | None:
    """One column of a typed table; None for a type that has no values to watch, such as bytes or a list of texts."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array, kind = array.cast(kind.value_type), kind.value_type
    if pa.types.is_string_view(kind):
        array, kind = array.cast(pa.large_string()), pa.large_string()
    if pa.types.is_decimal(kind) or pa.types.is_floating(kind) or (pa.types.is_integer(kind) and array.null_count):
        return np.asarray(array.cast(pa.float64(), safe=False).to_numpy())
    if pa.types.is_integer(kind):
        return np.asarray(array.to_numpy())
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return np.asarray(array.cast(pa.timestamp("ms"), safe=False).to_numpy(), "datetime64[ms]")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        values: list[Any] = array.to_pylist()
        return values
    return _lists(array) if is_list(kind) else None


def _lists(array: pa.ChunkedArray) -> Values | None:
    """Vectors of a typed table: a matrix, or a list of vectors where their lengths differ; None for other lists."""
    entry = array.type.value_type
    if not (pa.types.is_integer(entry) or pa.types.is_floating(entry) or pa.types.is_decimal(entry)):
        return None
    lengths = pc.list_value_length(array).drop_null().unique().to_pylist()
    entries = pc.list_flatten(array.drop_null()).cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
    present = array.is_valid().to_numpy().astype(bool)
    if len(lengths) == 1 and lengths[0]:
        found = np.full((len(array), lengths[0]), np.nan)
        found[present] = entries.reshape(-1, lengths[0])
        return vectors(found)
    counts = pc.list_value_length(array).fill_null(0).to_numpy()
    pieces = np.split(entries, np.cumsum(counts)[:-1]) if len(counts) else []
    return [piece if is_present else None for piece, is_present in zip(pieces, present.tolist(), strict=True)]


def _cells(array: pa.ChunkedArray, *, stays_text: bool) -> Values:
    """One column of text cells: numbers or truth values if all of them are, else text."""
    texts: list[str | None] = array.to_pylist()
    if stays_text:
        return texts
    present = [None if text is None or text.strip().lower() in MISSING_TEXTS else text for text in texts]
    levels = {text.lower() for text in present if text is not None}
    if not levels:
        return texts
    if levels <= {"true", "false"}:
        return [None if text is None else text.lower() == "true" for text in present]
    try:
        return np.array([np.nan if text is None else float(text) for text in present])
    except ValueError:
        return texts


def _flatten(document: Mapping[str, Any], prefix: str, where: str, row: dict[str, Any], paths: dict[str, str],
             depth: int) -> None:
    for key, value in document.items():
        if isinstance(value, dict) and depth < DEPTH_MAX:
            _flatten(value, f"{prefix}{key}.", f"{where}{_escaped(key)}.", row, paths, depth + 1)
        elif not isinstance(value, dict):
            row[f"{prefix}{key}"] = _packed(value) if isinstance(value, list) else value
            if depth:
                paths[f"{prefix}{key}"] = f"{where}{_escaped(key)}"


def _packed(value: list[Any]) -> Any:
    """A list of numbers as an array, a quarter of its size; any other list as it is."""
    if not set(map(type, value)) <= {int, float, type(None)}:
        return value
    try:
        return np.array([np.nan if entry is None else float(entry) for entry in value])
    except OverflowError:
        return value


def _escaped(key: str) -> str:
    r"""A key as a path writes it: a dot inside it as `\.`."""
    return key.replace("\\", "\\\\").replace(".", "\\.")


def _joined(parts: Sequence[DataSet]) -> DataSet:
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part.columns)
    joined: dict[str, Values] = {}
    for name in names:
        pieces = [part.columns.get(name, [None] * len(part)) for part in parts]
        if any(map(_holds_vectors, pieces)):
            joined[name] = _stacked([value for piece in pieces for value in piece])
            continue
        if any(_are_times(piece) for piece in pieces) and all(_are_times(piece) or not any(piece) for piece in pieces):
            pieces = [piece if _are_times(piece) else np.full(len(piece), np.datetime64("NaT", "ms")) for piece in pieces]
        if all(isinstance(piece, np.ndarray) for piece in pieces) and len({_are_times(piece) for piece in pieces}) == 1:
            joined[name] = np.concatenate(pieces)
        else:
            joined[name] = [value for piece in pieces for value in (piece.tolist() if isinstance(piece, np.ndarray) else piece)]
    return DataSet(joined, {name: path for part in parts for name, path in part.paths.items()})


def _holds_vectors(values: Values) -> bool:
    return values.ndim == 2 if isinstance(values, np.ndarray) else any(isinstance(value, np.ndarray) for value in values)


def _are_times(values: Values) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind == "M"
