"""The held-back events that a trainer left, read carefully: `holdout.parquet`, and what it was trained on.

    id                                          each once, and none that the challenger was trained on, as far as it says
    label, champion_prediction,
    challenger_prediction                       numbers, booleans or strings, a value in every row
    champion_score, challenger_score            numbers; read for the metrics on scores alone

Labels and answers often come by different ways, so what means the same is made the same: 1, 1.0, true and "1" are one class,
where the columns' types differ. Where they do not differ, a text is the text it is ("01" is not "1"). When no answer is ever a
label (of both models, or of one whose type differs), they were written by different codes: a defect, and no verdict.

What is said to be there is not believed: the size is bounded before anything is read, texts stay dictionaries (a thousand
bytes may stand for a terabyte), types are looked at before values. A defect is one line, ContractBroken; a store that does
not answer is LaunchFailed(retry=True).

Cost: one read of at most HOLDOUT_BYTES_MAX bytes; of five million rows 10 s of CPU and up to 2 GiB while it is judged, of a
million a fifth of that. pyarrow is imported late, and in no other
module of the stage, because a service that never retrains need not load it. Neighbours: `challenger` judges.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.config_retrain import Metric
from monitor.errors import LaunchFailed
from monitor.retrain.outputs import ContractBroken, opened, refuse_outside
from monitor.retrain.quality_metrics import SCORES, Answers, Values, as_number

HOLDOUT_BYTES_MAX = 256 << 20             # read into memory whole
HOLDOUT_EVENTS_MAX = 5_000_000            # the interval is far below any effect that matters long before
#: Uncompressed bytes of all columns, as the file itself says.
HOLDOUT_MEMORY_MAX = 1 << 30
TRAINING_IDS_MAX = 50_000_000

HOLDOUT_COLUMNS = ("id", "label", "champion_prediction", "challenger_prediction")
SCORE_COLUMNS = ("champion_score", "challenger_score")
#: Whole numbers beyond are not told apart as float64.
_EXACT = 2**53


def read_output(uri: str, bytes_max: int, roots: Sequence[str] = ()) -> bytes | None:
    """The bytes at a path or URI (file, s3 and what else pyarrow reaches); None where nothing is.

    roots : the folders that it must lie in; without any, it is one of ours or of the configuration

    Raises ContractBroken when there is more than `bytes_max` or no file, LaunchFailed(retry=True) when the store fails.
    The S3 client of pyarrow gives up by itself after its own time limits (3 s a request, three tries).
    """
    import pyarrow as pa
    from pyarrow import fs

    refuse_outside(uri, uri, roots)
    try:
        if "://" in uri:
            filesystem, path = fs.FileSystem.from_uri(uri)
        else:
            filesystem, path = fs.LocalFileSystem(), os.path.abspath(uri)
        if isinstance(filesystem, fs.LocalFileSystem):
            if (file := opened(path, roots)) is None:
                return None
            with file:
                return _bounded(file.read(bytes_max + 1), uri, bytes_max)
        found = filesystem.get_file_info(path)
        if found.type == fs.FileType.NotFound:
            return None
        if found.type != fs.FileType.File:
            raise ContractBroken(f"{uri}: expected a file, got a folder; let the trainer write a file of that name")
        # Read one byte more than allowed instead of trusting the size: a file may still grow.
        with filesystem.open_input_stream(path) as stream:
            return _bounded(stream.read(bytes_max + 1), uri, bytes_max)
    except pa.ArrowInvalid as error:
        raise ContractBroken(f"{uri}: expected a path or a URI that can be read, got: {line(error)}") from None
    except OSError as error:
        raise LaunchFailed(f"{uri}: cannot be read now: {line(error)}", retry=True) from None


def _bounded(content: bytes, uri: str, bytes_max: int) -> bytes:
    if len(content) > bytes_max:
        raise ContractBroken(f"{uri}: expected at most {bytes_max:,} bytes, got more; write a smaller file")
    return content


def read_holdout(uri: str, metric: Metric, roots: Sequence[str] = ()) -> tuple[Answers, Any]:
    """The answers of holdout.parquet, checked, and its ids (a pyarrow array); raises ContractBroken with the defect."""
    wanted = (*HOLDOUT_COLUMNS, *(SCORE_COLUMNS if metric in SCORES else ()))
    table = _table(uri, wanted, "the held-back events", "let the trainer write them", HOLDOUT_EVENTS_MAX, roots)
    columns = {name: table[name] for name in wanted}
    for name, column in columns.items():
        if column.null_count:
            raise ContractBroken(f"{uri}: column {name}: expected a value in every row, "
                                 f"got {column.null_count:,} missing; leave such events out")
    distinct = _distinct(columns["id"])
    if distinct != table.num_rows:
        raise ContractBroken(f"{uri}: column id: expected every id once, got {table.num_rows - distinct:,} repeated; "
                             "hold every event back once, or the interval is too narrow")
    answers = answers_of(*(columns[name] for name in HOLDOUT_COLUMNS[1:]), where=uri,
                         scores=[columns[name] for name in SCORE_COLUMNS] if metric in SCORES else None)
    return answers, columns["id"]


def refuse_trained_on(ids: Any, uri: str, offsets: Mapping[str, Sequence[tuple[int, int]]] | None,
                      ids_uri: str | None, roots: Sequence[str] = ()) -> None:
    """Refuse held-back events that the trainer says it trained on: its challenger would look better than it is.

    offsets : "topic:partition" -> [first, end) of the offsets that were trained on, for ids that are topic:partition:offset
    ids_uri : a Parquet file whose column `id` names the events that were trained on
    """
    if not offsets and not ids_uri:
        return
    held = [str(one) for one in ids.to_pylist()]
    trained: set[str] = set()
    if ids_uri:
        table = _table(ids_uri, ("id",), "the ids that were trained on", "write them, or leave training_ids_uri out",
                       TRAINING_IDS_MAX, roots)
        trained = {str(one) for one in _plain(table["id"]).unique().to_pylist()} & set(held)
    if offsets:
        spans = {place: sorted((int(first), int(end)) for first, end in ranges) for place, ranges in offsets.items()}
        for name in held:                           # turns: held-back events
            place, _, offset = name.rpartition(":")
            if place in spans and offset.isdecimal() and any(first <= int(offset) < end for first, end in spans[place]):
                trained.add(name)
    if trained:
        raise ContractBroken(f"{uri}: expected events that the challenger was not trained on, got {len(trained):,} that "
                             f"result.json says it was, such as {min(trained)[:80]!r}; hold them back from the training")


def answers_of(label: Any, champion: Any, challenger: Any, *, where: str, scores: Sequence[Any] | None = None) -> Answers:
    """Answers from pyarrow columns of one length without missing values; ContractBroken for what cannot be compared."""
    named = {"label": label, "champion_prediction": champion, "challenger_prediction": challenger}
    read = {name: _values(column, f"{where}: column {name}") for name, column in named.items()}
    kinds = {name: "numbers" if isinstance(values, np.ndarray) else "strings" for name, values in read.items()}
    values, classes = _alike(list(read.values()))
    if classes is not None or len(set(kinds.values())) > 1:
        labels = set(np.unique(values[0]).tolist())
        never = [name for name, answered in zip(HOLDOUT_COLUMNS[2:], values[1:], strict=True)
                 if labels.isdisjoint(np.unique(answered).tolist())]
        # Of one type, a model may be wrong throughout; that both are is the way they are written.
        for name in never:
            if len(never) == 2 or kinds[name] != kinds["label"]:
                raise ContractBroken(
                    f"{where}: expected label and predictions written alike, got label {kinds['label']} such as "
                    f"{_example(named['label'])}, {name} {kinds[name]} such as {_example(named[name])}, and never the same; "
                    "write one of them by the other's names")
    given = [_numbers(column, f"{where}: column {name}") for name, column in zip(SCORE_COLUMNS, scores or (), strict=False)]
    return Answers(values[0], values[1], values[2], classes, *given)


def _table(uri: str, wanted: Sequence[str], what: str, mend: str, rows_max: int, roots: Sequence[str] = ()) -> Any:
    """Some columns of a Parquet file, as small as they can be in memory."""
    import pyarrow as pa
    from pyarrow import parquet

    content = read_output(uri, HOLDOUT_BYTES_MAX, roots)
    if content is None:
        raise ContractBroken(f"{uri}: expected {what}, got nothing; {mend}")
    try:
        schema = parquet.read_schema(pa.BufferReader(content))
        missing = [name for name in wanted if name not in schema.names]
        if missing:
            raise ContractBroken(f"{uri}: expected the columns {', '.join(wanted)}, "
                                 f"got {', '.join(schema.names[:20])[:400]}; add {', '.join(missing)}")
        twice = [name for name in wanted if schema.names.count(name) > 1]
        if twice:
            raise ContractBroken(f"{uri}: expected each column once, got {twice[0]} {schema.names.count(twice[0])} times; "
                                 "write it once")
        for name in wanted:
            _refuse_type(schema.field(name).type, f"{uri}: column {name}", is_id=name == "id")
        texts = [name for name in wanted if _is_text(_inner(schema.field(name).type))]
        file = parquet.ParquetFile(pa.BufferReader(content), read_dictionary=texts)
        rows = file.metadata.num_rows
        if not 1 <= rows <= rows_max:
            raise ContractBroken(f"{uri}: expected 1 to {rows_max:,} rows, got {rows:,}; hold back a part of the captured events")
        # Of the whole row group: a damaged column's own metadata ends the process inside pyarrow, past every handler.
        sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
        size = sum(sizes)
        if min(sizes, default=0) < 0:
            raise ContractBroken(f"{uri}: expected a Parquet file, got sizes below zero; write it with pyarrow or pandas")
        if size > HOLDOUT_MEMORY_MAX:
            raise ContractBroken(f"{uri}: expected at most {HOLDOUT_MEMORY_MAX >> 20:,} MiB uncompressed, got {size >> 20:,}; "
                                 "hold fewer events back, or shorten their texts")
        return file.read(columns=list(wanted))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:    # names of columns that are no UTF-8, too
        raise ContractBroken(f"{uri}: expected a Parquet file, got: {line(error)}; write it with pyarrow or "
                             "pandas") from None


def _inner(kind: Any) -> Any:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _refuse_type(kind: Any, where: str, *, is_id: bool) -> None:
    import pyarrow as pa

    plain = _inner(kind)
    is_number = (pa.types.is_boolean(plain) or pa.types.is_integer(plain) or pa.types.is_floating(plain)
                 or pa.types.is_decimal(plain) or pa.types.is_null(plain))
    if not (is_number or _is_text(plain) or (is_id and (pa.types.is_binary(plain) or pa.types.is_fixed_size_binary(plain)))):
        raise ContractBroken(f"{where}: expected numbers, booleans or strings, got {str(kind)[:80]}; write one of these")


def _distinct(column: Any) -> int:
    """Different values of a column, also of one that is a dictionary."""
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_integer(column.type):            # a sort takes a fifth of a hash table's memory
        return 1 + int(np.count_nonzero(np.diff(np.sort(column.to_numpy()))))
    if not pa.types.is_dictionary(column.type):
        return int(compute.count_distinct(column, mode="all").as_py())
    joined = _joined(column)
    used = compute.unique(joined.indices)
    # Names that stand twice in the dictionary are one value; texts stay where they are, as they may be millions.
    return int(compute.count_distinct(joined.dictionary.take(used), mode="all").as_py())


def _joined(column: Any) -> Any:
    """A dictionary column as one array with one dictionary."""
    joined = column.unify_dictionaries().combine_chunks()
    return joined.chunk(0) if hasattr(joined, "num_chunks") else joined


def _coded(column: Any) -> tuple[NDArray[np.int64], list[str]]:
    """A dictionary column as codes of distinct names."""
    joined = _joined(column)
    names = joined.dictionary.to_pylist()
    codes = joined.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    distinct = {name: at for at, name in reversed(list(enumerate(names)))}
    return np.array([distinct[name] for name in names], np.int64)[codes], names


def _plain(column: Any) -> Any:
    """A column without its dictionary."""
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _values(column: Any, where: str) -> NDArray[np.float64] | tuple[NDArray[np.int64], list[str]]:
    """A column as numbers, or as codes of names."""
    import pyarrow as pa
    from pyarrow import compute

    _refuse_type(column.type, where, is_id=False)
    if _is_text(_inner(column.type)):
        return _coded(column if pa.types.is_dictionary(column.type) else column.dictionary_encode())
    if pa.types.is_integer(_inner(column.type)):
        ends = compute.min_max(_plain(column)).as_py()
        if max(abs(ends["min"]), abs(ends["max"])) > _EXACT:    # keys of classes, not amounts
            return _coded(_plain(column).cast(pa.string()).dictionary_encode())
    return _numbers(column, where)


def _numbers(column: Any, where: str) -> NDArray[np.float64]:
    """A column as finite float64."""
    import pyarrow as pa

    plain = _plain(column)
    if _is_text(plain.type):
        raise ContractBroken(f"{where}: expected numbers, got strings such as {_example(column)}; write numbers")
    if pa.types.is_boolean(plain.type):
        plain = plain.cast(pa.int8())
    values = np.asarray(plain.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    if not np.isfinite(values).all():
        raise ContractBroken(f"{where}: expected finite numbers, got {int((~np.isfinite(values)).sum()):,} that "
                             "are not; leave such events out")
    return values


def _alike(columns: Sequence[NDArray[np.float64] | tuple[NDArray[np.int64], list[str]]]
           ) -> tuple[list[Values], tuple[str, ...] | None]:
    """Columns of numbers, or of codes of the same names: as numbers where every text among them is one, else as names."""
    texts = [one for one in columns if not isinstance(one, np.ndarray)]
    if not texts:
        return [one for one in columns if isinstance(one, np.ndarray)], None
    parsed = [[as_number(name) for name in names] for _, names in texts]
    if len(texts) < len(columns) and all(number is not None for numbers in parsed for number in numbers):
        read = iter(parsed)
        return [one if isinstance(one, np.ndarray) else np.array(next(read), np.float64)[one[0]] for one in columns], None
    known: dict[str, int] = {}
    values: list[Values] = []
    for one in columns:
        if isinstance(one, np.ndarray):
            distinct, codes = np.unique(one, return_inverse=True)
            names = [f"{value:.0f}" if value.is_integer() else repr(value) for value in distinct.tolist()]
        else:
            codes, names = one
        values.append(np.array([known.setdefault(name, len(known)) for name in names], np.int64)[codes])
    return values, tuple(known)


def _example(column: Any) -> str:
    return repr(column[0].as_py())[:40]


def line(error: Exception) -> str:
    """An outside error's text as one line of bounded length, without credentials that a URI may hold."""
    return re.sub(r"://[^/\s@]*@", "://...@", " ".join(str(error).split()))[:300]
