"""The captured events as a trainer sees them: read, split by blocks of time, turned into numbers.

    read      a folder of Parquet -> Events, in time order, each id once
    split     which rows train, which stop the training early, which nobody trains on
    Encoder   columns -> one float32 matrix; numbers standardised, categories one-hot, unknown levels hashed

The invariant: an event that is held out has no influence on the challenger, neither as a row nor through a mean, a
scale or a list of levels. Rows are split by blocks of consecutive events and never by shuffling, because neighbours in
time resemble each other, and a shuffled split would test the model on near copies of what it was trained on. Blocks
that are held out lie spread over the newest events, so that they show every hour since the drift began.

Nothing here needs torch: wrong input is refused before the seconds that its import takes. Memory is that of the
columns in float64, time that of one sort.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

TRAIN, CHECK, HELD, UNUSED = 0, 1, 2, 3
#: Rows per block when there are enough of them: the design effect of a reference is measured on blocks of 50 rows.
BLOCK_EVENTS = 50
#: A reference on fewer rows cannot measure dependence and is called inadequate by the scan.
REFERENCE_EVENTS_MIN = 1_000

Values = NDArray[np.float64] | NDArray[np.object_]


class BadInput(Exception):
    """Data or options that no second attempt can mend; one line that says where, expected, got and what to do."""


@dataclass(frozen=True)
class Events:
    """Events in time order.

    times     : int64 (n,), milliseconds since 1970       ids : object (n,)
    features  : per column float64 (n,) with NaN for missing, or object (n,) of str with None
    labels    : object of str with None (classes), or float64 with NaN (regression)
    champion  : what the model in production answered, like `labels`; None where the data does not have it
    paths     : category columns that only the reference describes
    """

    times: NDArray[np.int64]
    ids: NDArray[np.object_]
    features: Mapping[str, Values]
    labels: Values
    champion: Values | None
    paths: Mapping[str, Values]

    def __len__(self) -> int:
        return len(self.times)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Rows whose label is known."""
        return ~missing(self.labels)

    def rows(self, chosen: NDArray[Any]) -> Events:
        """The chosen rows (a mask or indices)."""
        return replace(
            self, times=self.times[chosen], ids=self.ids[chosen], labels=self.labels[chosen],
            features={name: values[chosen] for name, values in self.features.items()},
            champion=None if self.champion is None else self.champion[chosen],
            paths={name: values[chosen] for name, values in self.paths.items()},
        )


def missing(values: Values) -> NDArray[np.bool_]:
    """Which values are absent (NaN or None)."""
    if values.dtype == object:
        return np.fromiter((value is None for value in values), bool, len(values))
    return np.isnan(values)


def as_classes(values: Values) -> NDArray[np.object_]:
    """Labels or predictions as text: 3.0 and '3' are the same class."""
    if values.dtype == object:
        return values.astype(object)
    return np.array([None if value != value else f"{value:g}" for value in values.tolist()], dtype=object)


def as_numbers(name: str, values: Values) -> NDArray[np.float64]:
    """Labels or predictions of a regression."""
    if values.dtype == object:
        raise BadInput(f"column {name}: expected numbers for a regression, got text; use --task classification")
    return values.astype(np.float64)


def read(
    uri: str, *, label: str, prediction: str, score: str, paths: Sequence[str], features: Sequence[str], task: str,
) -> Events:
    """All events of a folder of Parquet files (or of one file), in time order; of events with one id the first.

    features : names to train on; empty means every column that has no other use
    task     : "classification" or "regression", or "auto": text and whole-number labels are classes
    """
    table = parquet(uri)
    names = table.column_names
    for wanted in ("id", "timestamp", label, *features, *paths):
        if wanted not in names:
            raise BadInput(f"{uri}: expected a column {wanted!r}, got {', '.join(names[:12])}"
                           f"{' ...' if len(names) > 12 else ''}; name your columns by --label, --features, --path")
    used = {"id", "timestamp", label, prediction, score, *paths}
    chosen = list(features) or [name for name in names if name not in used]
    if not chosen:
        raise BadInput(f"{uri}: expected at least one input column besides {', '.join(sorted(used & set(names)))}")
    columns = {name: column(name, table[name]) for name in (label, *chosen, *paths)}
    champion = column(prediction, table[prediction]) if prediction in names else None
    labels = columns[label]
    if task == "auto":
        whole = labels.dtype == object or bool(np.all(labels[~missing(labels)] % 1 == 0))
        task = "classification" if whole else "regression"
    if task == "classification":
        labels, champion = as_classes(labels), None if champion is None else as_classes(champion)
    else:
        labels = as_numbers(label, labels)
        champion = None if champion is None else as_numbers(prediction, champion)
    ids = np.array(table["id"].to_pylist(), dtype=object)
    events = Events(
        times=milliseconds(table["timestamp"]), ids=ids, labels=labels, champion=champion,
        features={name: columns[name] for name in chosen}, paths={name: columns[name] for name in paths},
    )
    order = np.argsort(events.times, kind="stable")
    seen: set[object] = set()
    kept = [i for i in order.tolist() if ids[i] is None or not (ids[i] in seen or seen.add(ids[i]))]  # type: ignore[func-returns-value]
    return events.rows(np.asarray(kept, dtype=np.int64))


def parquet(uri: str) -> Any:
    """The folder's Parquet files as one table; BadInput where there is nothing to read."""
    import pyarrow
    from pyarrow import dataset, fs

    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        table = dataset.dataset(path, filesystem=filesystem, format="parquet").to_table()
    except FileNotFoundError as error:
        raise BadInput(f"TIDEMARK_DATA_URI: expected a folder of Parquet files, got nothing at {uri}") from error
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise BadInput(f"TIDEMARK_DATA_URI: {uri}: not readable as Parquet: {str(error).splitlines()[0]}") from error
    if table.num_rows == 0:
        raise BadInput(f"TIDEMARK_DATA_URI: expected captured events, got none in {uri}")
    return table


def column(name: str, values: Any) -> Values:
    """One Parquet column: numbers as float64 with NaN, everything else as text with None."""
    import pyarrow
    from pyarrow import compute, types

    kind = values.type.value_type if types.is_dictionary(values.type) else values.type
    if types.is_dictionary(values.type):
        values = compute.cast(values, kind)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        numbers = compute.cast(values, pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
        return np.asarray(numbers, dtype=np.float64)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind) or types.is_null(kind):
        texts = compute.cast(values, pyarrow.string()).to_pylist()
        return np.array(texts, dtype=object)
    raise BadInput(f"column {name}: expected numbers, text or booleans, got {kind}; leave it out by --features")


def milliseconds(values: Any) -> NDArray[np.int64]:
    """Event times as int64 milliseconds since 1970, from milliseconds or a Parquet timestamp."""
    import pyarrow
    from pyarrow import compute, types

    if types.is_timestamp(values.type):
        values = compute.cast(values, pyarrow.timestamp("ms"), safe=False)
    if values.null_count:
        raise BadInput(f"column timestamp: expected a time on every event, got {values.null_count} without")
    return np.asarray(compute.cast(values, pyarrow.int64(), safe=False).to_numpy(), dtype=np.int64)


def split(
    events: Events, since_ms: int | None, *, holdout_share: float, check_share: float, older_events: int,
) -> NDArray[np.int8]:
    """The role of every row: TRAIN, CHECK (stops the training early), HELD (nobody trains on it) or UNUSED.

    since_ms : when the drift began; None where there was none, and then all events count as recent
    Recent events are cut into some 40 blocks, of which evenly spread ones are held out or check; older events only
    train, the newest `older_events` of them.
    """
    n = len(events)
    first = 0 if since_ms is None else int(np.searchsorted(events.times, since_ms))
    first = min(first, max(0, n - REFERENCE_EVENTS_MIN))     # too little is recent: the newest events stand in for it
    recent = n - first
    block = recent // 40
    block = max(1, block - block % BLOCK_EVENTS if block >= BLOCK_EVENTS else block)
    number = np.arange(recent) // block
    held = np.floor((number + 1) * holdout_share) > np.floor(number * holdout_share)
    # Every 1/share-th of the blocks that are left, counted among themselves, so that held and check never coincide.
    rank = np.cumsum(np.diff(number, prepend=-1) * ~held) - 1
    share = check_share / max(1e-9, 1 - holdout_share)
    check = ~held & (np.floor((rank + 1) * share) > np.floor(rank * share))
    roles = np.full(n, TRAIN, dtype=np.int8)
    roles[:max(0, first - older_events)] = UNUSED
    roles[first:][held] = HELD
    roles[first:][check] = CHECK
    roles[~events.labelled & (roles != HELD)] = UNUSED
    return roles


def weights(events: Events, since_ms: int | None, recent_weight: float) -> NDArray[np.float32]:
    """How much each row counts in the loss: `recent_weight` since the drift began, 1 before."""
    recent = np.zeros(len(events), bool) if since_ms is None else events.times >= since_ms
    return np.where(recent, recent_weight, 1.0).astype(np.float32)


def reference_rows(
    events: Events, roles: NDArray[np.int8], since_ms: int | None, at_ms: int | None,
) -> NDArray[np.int64]:
    """Rows that describe the new world: held out, and after the change was certain.

    Held out, because a model is surer of events that it was trained on, and a reference made of those would call
    every later event drift. After `at_ms`, the end of the window that decided, because that window may still hold
    events from before the change. Where this leaves too few rows for a reference, first the second condition goes,
    then the first.
    """
    recent = np.ones(len(events), bool) if since_ms is None else events.times >= since_ms
    settled = recent if at_ms is None else recent & (events.times >= at_ms)
    for rows in (settled & (roles == HELD), recent & (roles == HELD), settled, recent):
        if rows.sum() >= REFERENCE_EVENTS_MIN:
            return np.flatnonzero(rows)
    return np.flatnonzero(roles == HELD)


class Encoder:
    """Columns as one float32 matrix, by numbers that the training rows fixed.

    A numeric column becomes (x - mean) / scale, cut at 8, with 0 for missing and, where training rows missed it, an
    indicator. A category column becomes one column per frequent level (at most 64), one for missing, and
    `HASH_BUCKETS` for all other levels, by CRC-32: a level never seen still lands somewhere, always the same.
    """

    LEVELS_MAX = 64
    HASH_BUCKETS = 8
    CUT = 8.0

    def __init__(self, columns: Sequence[Mapping[str, Any]]) -> None:
        self.columns = [dict(column) for column in columns]

    @classmethod
    def fit(cls, features: Mapping[str, Values]) -> Encoder:
        """The encoder of these training rows."""
        columns: list[dict[str, Any]] = []
        for name, values in features.items():            # one turn per column
            absent = missing(values)
            present = values[~absent]
            if values.dtype == object:
                levels, counts = np.unique(present.astype(str), return_counts=True)
                order = np.lexsort((levels, -counts))[:cls.LEVELS_MAX]
                columns.append({"name": name, "kind": "category", "levels": sorted(levels[order].tolist())})
                continue
            finite = present[np.isfinite(present)]
            mean = float(finite.mean()) if len(finite) else 0.0
            scale = float(finite.std()) if len(finite) else 0.0
            columns.append({"name": name, "kind": "numeric", "mean": mean, "scale": scale or 1.0,
                            "missing": bool(absent.any())})
        return cls(columns)

    def width(self) -> int:
        """Columns of the matrix."""
        return sum(1 + column["missing"] if column["kind"] == "numeric"
                   else len(column["levels"]) + 1 + self.HASH_BUCKETS for column in self.columns)

    def matrix(self, features: Mapping[str, Values]) -> NDArray[np.float32]:
        """Rows of features as float32 (n, width)."""
        parts = []
        for column in self.columns:                      # one turn per column
            values = features[column["name"]]
            if column["kind"] == "numeric":
                scaled = np.clip((values - column["mean"]) / column["scale"], -self.CUT, self.CUT)
                parts.append(np.nan_to_num(scaled)[:, None])
                if column["missing"]:
                    parts.append(np.isnan(values)[:, None])
            else:
                parts.append(self.one_hot(column["levels"], values))
        return np.concatenate(parts, axis=1, dtype=np.float32, casting="unsafe")

    def one_hot(self, levels: Sequence[str], values: Values) -> NDArray[np.float32]:
        """One category column as float32 (n, levels + 1 + HASH_BUCKETS)."""
        places: dict[str | None, int] = {level: i for i, level in enumerate(levels)}
        places[None] = len(levels)
        for level in set(values.tolist()) - places.keys():
            places[level] = len(levels) + 1 + zlib.crc32(str(level).encode()) % self.HASH_BUCKETS
        hot = np.zeros((len(values), len(levels) + 1 + self.HASH_BUCKETS), np.float32)
        hot[np.arange(len(values)), [places[value] for value in values.tolist()]] = 1.0
        return hot
