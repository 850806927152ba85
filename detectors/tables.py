"""Tables as people have them, as the columns that a reference takes: dicts, pandas DataFrames, pyarrow Tables.

Idea: everything behind this door knows few forms of a column: arrays of numbers, truth values or times, arrays
(events, dimensions), and lists of plain values with None for missing. Here the many other forms become one of those, once:
nullable and categorical series, arrow arrays, numpy scalars, decimals, masked arrays, pd.NA. `columns_of` does it without
knowing what a column is for; `as_kind` then makes what its kind counts by the rules that the service has for the values
of events: 3 and 3.0 are the level "3", 0 and 1 are truth values where those are expected, text is no number.

Invariant: a value has the same bin whichever container it came in. pandas and pyarrow are recognised by their methods and
never imported.

Cost: a dict of float64 arrays and lists of text, which is what every hot path has, costs one look at each column's type
(0.1 us) and is handed on as it is; anything else 0.02 to 0.3 us a value.

Neighbours: `reference` calls it at the beginning of `fit` and `profile`; `proposal` says what a plain column may be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol

import numpy as np

from detectors.counting import Batch
from detectors.embedding import vectors
from detectors.profile import ReferenceMismatch
from detectors.rows import Column, Floats, Values, as_levels, as_numbers

#: What a boolean column may hold; True == 1 and False == 0 as keys, too.
_TRUTH: dict[object, str | None] = {True: "true", False: "false", "true": "true", "false": "false", None: None}
_PLAIN = frozenset({str, int, float, bool, type(None)})
_NUMBERS = frozenset({int, float, bool, type(None)})
#: Whole numbers from here on are no float64: they count as infinite, outside every range.
_WHOLE_MAX = 2**1023
_FLOAT64 = np.dtype(np.float64)
_WIDEST = {"i": np.int64, "u": np.uint64, "f": np.float64, "b": np.bool_}


class Frame(Protocol):
    """A pandas DataFrame, as far as it is looked at."""

    @property
    def columns(self) -> Any:
        """The names."""

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Names and series."""


class ArrowTable(Protocol):
    """A pyarrow Table or RecordBatch, as far as it is looked at."""

    @property
    def column_names(self) -> list[str]:
        """The names."""

    def column(self, i: int) -> Any:
        """One of the columns."""


Table = Mapping[str, Values] | Frame | ArrowTable


def columns_of(table: Table, where: str) -> dict[str, Values]:
    """The columns of any table by name, in plain form; names that are no text are taken as `str` writes them.

    raises : ReferenceMismatch, one line, for anything that is no table, and for two columns of one name
    """
    return _named(_pairs(table, where), where)


def is_ready(table: Table, columns: Sequence[Column], n: int | None) -> bool:
    """Whether a batch can be counted as it is: float64 arrays and lists, of one length.

    The values of categories are not looked at: the count itself does, and raises TypeError for one that is no text.
    """
    if type(table) is not dict:
        return False
    for column in columns:                                      # turns: the columns, 0.1 us each
        values = table.get(column.name)
        if values is None:
            continue
        if column.kind == "numeric" or column.kind == "embedding":
            if type(values) is not np.ndarray or values.dtype != _FLOAT64 or values.ndim != 1 + (column.kind == "embedding"):
                return False
        elif type(values) is not list or (column.kind == "text" and not set(map(type, values)) <= {str, type(None)}):
            return False
        if n is None:
            n = len(values)
        elif len(values) != n:
            return False
    return n is not None


def batch_of(table: Table, columns: Sequence[Column], n: int | None, where: str) -> tuple[Batch, int]:
    """The batch in `table` as counting takes it, and its number of events.

    columns : the reference's; others in the table are not looked at, absent ones stay absent
    n       : events, where it is known
    returns : the columns, and their events
    raises  : ReferenceMismatch, one line, for values that cannot be of their column's kind, for columns of different
              lengths, and for a table that has columns, but none of the reference's
    """
    given = list(_pairs(table, where))
    names = {column.name for column in columns}
    plain = _named([(name, values) for name, values in given if values is not None and str(name) in names], where)
    batch: dict[str, Floats | list[str | None]] = {}
    lengths = {} if n is None else {"n": n}
    for column in columns:
        if column.name not in plain:
            continue
        values = plain[column.name]
        lengths[repr(column.name)] = len(values)
        try:
            found = as_kind(column, values)
        except ValueError as error:
            raise ReferenceMismatch(f"{where}: expected {column.kind} values in column {column.name!r}, got {error}; "
                                    "correct the data, or fit a reference to data of this kind") from None
        if not (isinstance(found, np.ndarray) and found.ndim == 2 and not found.shape[1]):      # else: missing in every event
            batch[column.name] = found
    if given and not lengths:
        own, other = ", ".join(map(repr, sorted(names)))[:200], ", ".join(repr(name) for name, _ in given)[:200]
        raise ReferenceMismatch(f"{where}: expected some of the columns {own}, got {other}; "
                                "rename them, or take the reference of this data")
    if len(set(lengths.values())) > 1:
        raise ReferenceMismatch(f"{where}: expected columns of one length, got {_shown(lengths)}; check the data")
    return batch, next(iter(lengths.values()), 0)


def as_kind(column: Column, values: Values, *, strict: bool = False) -> Floats | list[str | None]:
    """Plain values as their kind counts them: float64 (n,) or (n, dimensions) with NaN, or levels and texts with None.

    strict : a boolean column takes truth values only, else other values stay levels, which the reference has not seen
    raises : ValueError, which says what was found instead
    """
    if column.kind == "embedding":
        try:
            return vectors(values)
        except ValueError as error:
            # `vectors` says: embedding: expected ..., got <what>; what to do
            raise ValueError(str(error).partition(", got ")[2].partition("; ")[0] or str(error)) from None
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise ValueError(f"an array of shape {values.shape}")
    if column.kind == "numeric":
        return _as_numbers(values)
    if not isinstance(values, np.ndarray):
        wrong = next((kind for kind in set(map(type, values)) if issubclass(kind, (list, tuple, dict, set, np.ndarray))), None)
        if wrong is not None:
            raise ValueError(f"values of type {wrong.__name__}")
    if column.kind != "boolean":
        return as_levels(values)
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    levels = as_levels([_TRUTH.get(value, value) for value in plain])
    unknown = next((level for level in set(levels) if level not in _TRUTH), None)
    if strict and unknown is not None:
        raise ValueError(repr(unknown[:60]))
    return levels


def _as_numbers(values: Values) -> Floats:
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "iufb":
            raise ValueError("times" if values.dtype.kind in "mM" else f"values of type {values.dtype}")
        return as_numbers(values)
    if not set(map(type, values)) <= _NUMBERS:
        row, wrong = next((row, value) for row, value in enumerate(values) if type(value) not in _NUMBERS)
        raise ValueError(f"{str(wrong)[:60]!r} ({type(wrong).__name__}) in row {row}")
    return as_numbers(values)


def _shown(lengths: Mapping[str, int]) -> str:
    """A few of several lengths, of different ones first."""
    first: dict[int, str] = {}
    for name, length in lengths.items():
        first.setdefault(length, name)
    return ", ".join(f"{name}: {length}" for length, name in list(first.items())[:5])


# ---- containers -------------------------------------------------------------------------------------------------------

def _pairs(table: Any, where: str) -> Iterable[tuple[Any, Any]]:
    """Names and columns, in the table's order."""
    if isinstance(table, Mapping) or (hasattr(table, "columns") and hasattr(table, "items")):
        pairs: Iterable[tuple[Any, Any]] = table.items()
        return pairs
    if hasattr(table, "column_names") and hasattr(table, "column"):
        return [(name, table.column(i)) for i, name in enumerate(table.column_names)]
    raise ReferenceMismatch(f"{where}: expected a dict of columns, a pandas DataFrame or a pyarrow Table, got a "
                            f"{type(table).__name__}; give every column its name")


def _named(pairs: Iterable[tuple[Any, Any]], where: str) -> dict[str, Values]:
    columns: dict[str, Values] = {}
    for name, values in pairs:                                  # turns: the columns
        text = name if type(name) is str else str(name)
        if text in columns:
            raise ReferenceMismatch(f"{where}: expected every column once, got two named {text!r}; rename one")
        columns[text] = _plain(values, f"{where}: column {text!r}")
    return columns


def _plain(values: Any, where: str) -> Values:
    """One column in plain form: an array of numbers, truth values or times, or a list without foreign types."""
    if isinstance(values, np.ma.MaskedArray):
        return _plain_list(values.tolist())                     # None where masked
    if isinstance(values, np.ndarray):
        if not values.ndim:
            raise ReferenceMismatch(f"{where}: expected one value per event, got the single value {str(values)[:60]!r}; "
                                    "give an array or a list")
        return values if values.dtype.kind in "iufbmMcV" else _plain_list(values.tolist())
    if isinstance(values, list):
        return _plain_list(values)
    if hasattr(values, "to_pylist"):
        return _plain_arrow(values)
    if isinstance(getattr(values, "dtype", None), np.dtype):    # a series over numpy, or a numpy scalar, which has no length
        return _plain(np.asarray(values), where)
    if hasattr(values, "isna") and hasattr(values, "tolist"):
        return _plain_series(values)
    if hasattr(values, "__array__"):
        return _plain(np.asarray(values), where)
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise ReferenceMismatch(f"{where}: expected one value per event, got {str(values)[:60]!r} "
                                f"({type(values).__name__}); give an array or a list")
    return _plain_list(list(values))


def _plain_series(series: Any) -> Values:
    """A pandas series of one of its own types: nullable, categorical, time zones, sparse, arrow."""
    kind = getattr(series.dtype, "kind", "O")
    if hasattr(series.dtype, "categories"):
        levels: list[object] = list(as_levels(_plain_list(series.tolist())))
        return levels                                           # whoever made it categorical meant levels, of numbers, too
    if kind in "mM":
        return np.asarray(series.to_numpy(dtype=f"{kind}8[ns]"))
    if kind == "f":
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    if kind in "iub" and not series.isna().any():
        return np.asarray(series.to_numpy(dtype=_WIDEST[kind]))
    return _plain_list(series.tolist())


def _plain_arrow(array: Any) -> Values:
    """A pyarrow array, in chunks or not."""
    kind = str(array.type)
    if kind.startswith("dictionary"):
        levels: list[object] = list(as_levels(_plain_list(array.to_pylist())))
        return levels
    if array.null_count and kind.startswith(("int", "uint")):
        return _plain_list(array.to_pylist())                   # as float64, large ids would run together
    found = np.asarray(array.to_numpy(zero_copy_only=False))
    return found if found.dtype.kind in "iufbmM" else _plain_list(found.tolist())


def _plain_list(values: list[Any]) -> list[Any]:
    """A list of plain values: None for everything that is missing, Python's own numbers."""
    kinds = set(map(type, values))
    if not kinds <= _PLAIN:
        values = [value if type(value) in _PLAIN else _plain_value(value) for value in values]
        kinds = set(map(type, values))
    if int in kinds and any(type(value) is int and not -_WHOLE_MAX < value < _WHOLE_MAX for value in values):
        values = [value if type(value) is not int or -_WHOLE_MAX < value < _WHOLE_MAX else math.inf if value > 0 else -math.inf
                  for value in values]
        kinds.add(float)
    if float in kinds and not kinds <= {int, float, type(None)}:
        values = [None if type(value) is float and value != value else value for value in values]
    return values


def _plain_value(value: Any) -> object:
    """One value of another type."""
    # pandas' marks answer no comparison; numpy's is an array.
    if type(value).__name__ in ("NAType", "NaTType") or value is np.ma.masked:
        return None
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return None if np.isnat(value) else value
    if isinstance(value, (np.bool_, bool)):
        return bool(value)
    if isinstance(value, (np.integer, int)):
        return int(value)
    if isinstance(value, (np.floating, float, Decimal)):
        return float(value) if not (isinstance(value, Decimal) and value.is_nan()) else None
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value
