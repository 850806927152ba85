"""The captured events as a trainer sees them: read from either layout, made into arrays, split by blocks of time.

    read      a folder of Parquet, flat or in day=... folders -> Events, in time order, each id once
    split     which rows train, which stop the training early, which nobody trains on

The invariant: an event that is held out has no influence on the challenger, neither as a row nor through a mean, a
scale or a list of levels. Rows are split by blocks of consecutive events and never by shuffling, because neighbours in
time resemble each other, and a shuffled split would test the model on near copies of what it was trained on. Blocks
that are held out lie spread over the newest events, so that they show every hour since the drift began (rule
`spread`), or are the very newest (rule `newest`).

Only the columns that are needed are read. Memory is that of these columns in float64 (vectors in float32), time that of
one sort. Neighbours: `contract` says what the columns are for, `encode` makes numbers of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from contract import BadInput, Roles, lasting, one_line, store
from numpy.typing import NDArray

TRAIN, CHECK, HELD, UNUSED = 0, 1, 2, 3
#: Rows per block when there are enough of them: the design effect of a reference is measured on blocks of 50 rows.
BLOCK_EVENTS = 50
#: A reference on fewer rows cannot measure dependence and is called inadequate by the scan.
REFERENCE_EVENTS_MIN = 1_000
#: Whole numbers with more different values are amounts (a count, a price), not names of classes.
WHOLE_CLASSES_MAX = 50

Values = NDArray[np.float64] | NDArray[np.float32] | NDArray[np.object_]


@dataclass(frozen=True)
class Events:
    """Events in time order.

    times     : int64 (n,), milliseconds since 1970       ids : object (n,)
    features  : per column float64 (n,) with NaN for missing, object (n,) of str with None, or float32 (n, d): a vector
    labels    : object of str with None (classes), or float64 with NaN (regression)
    champion  : what the model in production answered, like `labels`; None where the data does not have it
    score     : the champion's score, float64 with NaN; None where the data does not have it
    others    : columns that only the reference describes
    shapes    : (height, width) or (height, width, channels) of vectors that were captured as nested lists
    """

    times: NDArray[np.int64]
    ids: NDArray[np.object_]
    features: Mapping[str, Values]
    labels: Values
    champion: Values | None
    score: NDArray[np.float64] | None
    others: Mapping[str, Values]
    shapes: Mapping[str, tuple[int, ...]]

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
            score=None if self.score is None else self.score[chosen],
            others={name: values[chosen] for name, values in self.others.items()},
        )


def missing(values: Values) -> NDArray[np.bool_]:
    """Which values are absent (NaN, None, or a vector of NaN throughout)."""
    if values.dtype == object:
        return np.fromiter((value is None for value in values), bool, len(values))
    return np.isnan(values) if values.ndim == 1 else np.isnan(values).all(axis=1)


def class_text(value: float) -> str | None:
    """A number as a class's name, as tidemark writes categories: 3.0 is '3'; None for NaN."""
    if value != value:
        return None
    return str(int(value)) if value == int(value) else repr(value)


def as_classes(values: Values) -> NDArray[np.object_]:
    """Labels or predictions as text: 3.0 and '3' are the same class."""
    if values.dtype == object:
        return values.astype(object)
    finite = np.where(np.isfinite(values), values, np.nan)
    return np.array([class_text(value) for value in finite.tolist()], dtype=object)


def as_numbers(name: str, values: Values) -> NDArray[np.float64]:
    """Labels or predictions of a regression; what is not finite is unknown."""
    if values.dtype == object:
        raise BadInput(f"column {name}: expected numbers for a regression, got text; use --task classification")
    return np.where(np.isfinite(values), values, np.nan).astype(np.float64)


def read(uri: str, roles: Roles, *, task: str) -> Events:
    """All events of a folder of Parquet files (or of one file), in time order; of events with one id the first.

    task : "classification" or "regression", or "auto": text is classes, and so are whole numbers of at most 50 different values
    """
    table = parquet(uri, roles)
    names = table.column_names
    used = {"id", "timestamp", roles.label, roles.prediction, roles.score, *roles.paths,
            *(column.name for column in roles.kept)}
    inputs = roles.inputs or tuple(name for name in names if name not in used and roles.kinds.get(name) is None)
    if not inputs:
        raise BadInput(f"{uri}: expected at least one input column besides {', '.join(sorted(used & set(names)))}; "
                       "name them by --features")
    shapes: dict[str, tuple[int, ...]] = {}
    columns: dict[str, Values] = {}
    for name in (roles.label, *inputs, *roles.paths, *(column.name for column in roles.kept)):     # turns: the columns
        columns[name] = column(name, table[name], roles.kinds.get(name), shapes)
    champion, score = ((column(name, table[name], roles.kinds.get(name), {}) if name in names else None)
                       for name in (roles.prediction, roles.score))
    labels = columns[roles.label]
    if labels.ndim != 1 or (champion is not None and champion.ndim != 1):
        raise BadInput(f"column {roles.label}: expected one label and one prediction per event, got lists; "
                       "choose other columns by --label and --prediction")
    if task == "auto":
        task = "classification" if is_classes(labels, roles.kinds.get(roles.label)) else "regression"
    if task == "classification":
        labels, champion = as_classes(labels), None if champion is None else as_classes(champion)
    else:
        labels = as_numbers(roles.label, labels)
        champion = None if champion is None else as_numbers(roles.prediction, champion)
    if score is not None and score.dtype == object:
        raise BadInput(f"column {roles.score}: expected numbers, got text; choose another column by --score")
    events = Events(
        times=milliseconds(table["timestamp"]), ids=np.array(table["id"].to_pylist(), dtype=object), labels=labels,
        champion=champion, score=None if score is None else score.astype(np.float64),
        features={name: columns[name] for name in inputs}, shapes=shapes,
        others={name: columns[name] for name in (*roles.paths, *(column.name for column in roles.kept))})
    order = np.argsort(events.times, kind="stable")
    seen: set[object] = set()
    kept = [i for i in order.tolist()
            if events.ids[i] is None or not (events.ids[i] in seen or seen.add(events.ids[i]))]  # type: ignore[func-returns-value]
    return events.rows(np.asarray(kept, dtype=np.int64))


def is_classes(labels: Values, kind: str | None) -> bool:
    """Whether labels are classes: by their kind where it says so, else text, and whole numbers of few different values."""
    if kind in ("category", "boolean", "text") or labels.dtype == object:
        return True
    known = labels[np.isfinite(labels)]
    return bool(np.all(known % 1 == 0)) and len(np.unique(known)) <= WHOLE_CLASSES_MAX


def parquet(uri: str, roles: Roles) -> Any:
    """The needed columns of all Parquet files below the folder as one table; BadInput where there is nothing to read.

    Files are found at any depth, so that `part.parquet` and `day=2025-11-22/part.parquet` are read alike. Names of
    folders are no columns: a column that is called like a partition's key is the file's own. A file may lack a column
    that others have, or hold it in a narrower type.
    """
    import pyarrow
    from pyarrow import dataset, fs

    filesystem, path = store(uri, "TIDEMARK_DATA_URI")
    try:
        if filesystem.get_file_info(path).type == fs.FileType.File:
            files = [path]
        else:
            found = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
            files = sorted(info.path for info in found if info.type == fs.FileType.File and is_data(info.path, path))
        if not files:
            raise BadInput(f"TIDEMARK_DATA_URI: expected Parquet files, got none in {uri}; "
                           "raise retrain.collect_events, or check where events are captured")
        layout = pyarrow.unify_schemas(
            [dataset.dataset([file], filesystem=filesystem, format="parquet", partitioning=None).schema for file in files],
            promote_options="permissive")
        table = dataset.dataset(files, schema=layout, filesystem=filesystem, format="parquet",
                                partitioning=None).to_table(columns=needed(uri, layout.names, roles))
    except FileNotFoundError as error:
        raise BadInput(f"TIDEMARK_DATA_URI: expected a folder of Parquet files, got nothing at {uri}; "
                       "check that the volume or bucket is the service's") from error
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise BadInput(f"TIDEMARK_DATA_URI: expected Parquet files of one layout, got at {uri}: "
                       f"{one_line(error)[:200]}; remove what is damaged") from error
    except OSError as error:
        raise lasting(error, uri, "TIDEMARK_DATA_URI") from None
    if table.num_rows == 0:
        raise BadInput(f"TIDEMARK_DATA_URI: expected captured events, got none in {uri}; raise retrain.collect_events")
    return table


def is_data(path: str, folder: str) -> bool:
    """Whether a file is events: a Parquet file, not half written or hidden, nor in a hidden folder."""
    inside = path[len(folder):].strip("/").split("/")
    return path.endswith((".parquet", ".parq")) and not any(part.startswith((".", "_")) for part in inside)


def needed(uri: str, names: Sequence[str], roles: Roles) -> list[str]:
    """The columns to read; BadInput where one is absent."""
    wanted = ["id", "timestamp", roles.label, *roles.inputs, *roles.paths, *(column.name for column in roles.kept)]
    for name in wanted:
        if name not in names:
            raise BadInput(f"{uri}: expected a column {name!r}, got {', '.join(names[:12])}"
                           f"{' ...' if len(names) > 12 else ''}; name your columns by --label, --features, --path")
    optional = [name for name in (roles.prediction, roles.score) if name in names]
    everything = [] if roles.inputs else list(names)
    return list(dict.fromkeys([*wanted, *optional, *everything]))


def column(name: str, values: Any, kind: str | None, shapes: dict[str, tuple[int, ...]]) -> Values:
    """One Parquet column as an array, as its kind says, or as its type says where the kind is not known."""
    import pyarrow
    from pyarrow import compute, types

    if types.is_dictionary(values.type):
        values = compute.cast(values, values.type.value_type)
    type_ = values.type
    if is_list(type_):
        return vectors(name, values, shapes)
    is_number = types.is_integer(type_) or types.is_floating(type_) or types.is_decimal(type_)
    is_text = any(check(type_) for check in (types.is_string, types.is_large_string, types.is_string_view))
    if not (is_number or is_text or types.is_boolean(type_) or types.is_null(type_)) or kind == "embedding":
        if types.is_null(type_):
            return np.full((len(values), 1), np.nan, np.float32)
        raise BadInput(f"column {name}: expected {'lists of numbers' if kind == 'embedding' else 'numbers, text or booleans'}"
                       f", got {type_}; leave it out by --features")
    if kind == "numeric" or (kind is None and is_number):
        try:
            numbers = compute.cast(values, pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
        except pyarrow.ArrowInvalid as error:
            raise BadInput(f"column {name}: expected numbers, as TIDEMARK_COLUMNS says, got text "
                           f"({one_line(error)[:100]}); correct the column's kind") from None
        return np.asarray(numbers, dtype=np.float64)
    if is_number:
        return as_classes(np.asarray(compute.cast(values, pyarrow.float64(), safe=False).to_numpy(), dtype=np.float64))
    return np.array(compute.cast(values, pyarrow.string()).to_pylist(), dtype=object)


def is_list(type_: Any) -> bool:
    """Whether a Parquet type holds lists."""
    from pyarrow import types

    return bool(types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_))


def vectors(name: str, values: Any, shapes: dict[str, tuple[int, ...]]) -> NDArray[np.float32]:
    """A column of lists as float32 (n, d), a missing list as NaN; nested lists are laid flat and their shape is noted."""
    import pyarrow
    from pyarrow import compute, types

    whole = values.combine_chunks() if isinstance(values, pyarrow.ChunkedArray) else values
    valid = whole.is_valid().to_numpy(zero_copy_only=False)
    inner, shape = whole.drop_null(), []
    while is_list(inner.type):
        lengths = compute.unique(compute.list_value_length(inner)).to_pylist()
        if len(lengths) > 1 or lengths == [None] or inner.null_count:
            raise BadInput(f"column {name}: expected lists of one length, got {len(lengths)} lengths "
                           f"({', '.join(map(str, lengths[:5]))}); leave it out by --features")
        shape.append(int(lengths[0]) if lengths else 1)
        inner = inner.flatten()
    if not (types.is_integer(inner.type) or types.is_floating(inner.type) or types.is_boolean(inner.type)
            or types.is_null(inner.type)):
        raise BadInput(f"column {name}: expected lists of numbers, got lists of {inner.type}; leave it out by --features")
    if len(shape) > 1:
        shapes[name] = tuple(shape)
    size = int(np.prod(shape))
    if size == 0:
        raise BadInput(f"column {name}: expected lists of at least one number, got empty ones; leave it out by --features")
    flat = np.full((len(whole), size), np.nan, np.float32)
    numbers = compute.cast(inner, pyarrow.float32(), safe=False).to_numpy(zero_copy_only=False)
    flat[valid] = np.asarray(numbers, np.float32).reshape(-1, size)
    return flat


def milliseconds(values: Any) -> NDArray[np.int64]:
    """Event times as int64 milliseconds since 1970, from milliseconds or a Parquet timestamp."""
    import pyarrow
    from pyarrow import compute, types

    if values.null_count:
        raise BadInput(f"column timestamp: expected a time on every event, got {values.null_count} without; "
                       "capture the events by tidemark, or fill the column")
    if types.is_timestamp(values.type):
        values = compute.cast(values, pyarrow.timestamp("ms"), safe=False)
    elif not (types.is_integer(values.type) or types.is_floating(values.type)):
        raise BadInput(f"column timestamp: expected milliseconds since 1970, got {values.type}; convert the column")
    return np.asarray(compute.cast(values, pyarrow.int64(), safe=False).to_numpy(), dtype=np.int64)


def split(
    events: Events, since_ms: int | None, *, holdout_share: float, check_share: float, older_events: int,
    rule: str = "spread",
) -> NDArray[np.int8]:
    """The role of every row: TRAIN, CHECK (stops the training early), HELD (nobody trains on it) or UNUSED.

    since_ms : when the drift began; None where there was none, and then all events count as recent
    rule     : "spread": recent events are cut into some 40 blocks, of which evenly spread ones are held out or check;
               "newest": the newest blocks are held out, those right before them check. Older events only train, the
               newest `older_events` of them.
    """
    n = len(events)
    first = 0 if since_ms is None else int(np.searchsorted(events.times, since_ms))
    first = min(first, max(0, n - REFERENCE_EVENTS_MIN))     # too little is recent: the newest events stand in for it
    recent = n - first
    block = recent // 40
    block = max(1, block - block % BLOCK_EVENTS if block >= BLOCK_EVENTS else block)
    number = np.arange(recent) // block
    if rule == "newest":
        blocks = -(-recent // block)
        held = number >= blocks - max(1, round(blocks * holdout_share))
        check = ~held & (number >= blocks - max(2, round(blocks * (holdout_share + check_share))))
    else:
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
