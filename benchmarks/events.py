"""The events that all benchmarks read: 20 or 100 features in nested JSON, 1 % of them null, with a fitted reference.

    {"id": "e00000017", "ts": 1700000000017, "model": "bench",
     "features": {"n00": 0.496714153, ..., "c0": "level-3", ...}, "prediction": 0.61}

20 features are 16 numbers and 4 categories in about 480 bytes; 100 are 90 and 10 in about 2 kB. Events come a
millisecond apart, so that a pane of ten seconds holds 10,000 of them. Everything is a function of the seed. A long
stream repeats a pool of some ten thousand rows under new ids and times: making text must not take longer than reading it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from detectors.reference import Column, Reference
from monitor.config import Schema
from monitor.ingest.schema import StreamSchema

Values = Mapping[str, NDArray[np.float64] | list[str | None]]

MODEL = "bench"
#: Features -> how many of them are categories.
CATEGORIES = {20: 4, 100: 10}
START_MS = 1_700_000_000_000
PANE_SECONDS, PANE_EVENTS = 10, 10_000
NULL_SHARE = 0.01
LEVELS = tuple(f"level-{i}" for i in range(12))
SCHEMA = Schema(prefix="features", timestamp="ts")
#: A prime, so that the rows of one partition are not always the same few.
POOL_ROWS = 10_007


def columns_of(features: int) -> tuple[Column, ...]:
    """The watched columns, numbers first."""
    categories = CATEGORIES[features]
    return (*(Column(f"n{i:02}", "numeric") for i in range(features - categories)),
            *(Column(f"c{i}", "category") for i in range(categories)))


def values_of(features: int, rows: int, seed: int, nulls: float = NULL_SHARE) -> Values:
    """Columns as the decoder gives them: normal, skewed and heavy-tailed numbers; levels of falling frequency."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, len(LEVELS) + 1)
    shares /= shares.sum()
    values: dict[str, NDArray[np.float64] | list[str | None]] = {}
    for place, column in enumerate(columns_of(features)):
        missing = rng.random(rows) < nulls
        if column.kind == "numeric":
            draw = (rng.standard_normal, lambda n: rng.gamma(2.0, 3.0, n), lambda n: rng.standard_t(4, n))[place % 3]
            values[column.name] = np.where(missing, np.nan, np.round(draw(rows), 9))
        else:
            picks = rng.choice(len(LEVELS), rows, p=shares)
            values[column.name] = [None if gone else LEVELS[pick]
                                   for gone, pick in zip(missing.tolist(), picks.tolist(), strict=True)]
    return values


@cache
def reference_of(features: int, rows: int = 10_000, seed: int = 1) -> Reference:
    """A reference of events like these."""
    return Reference.fit(values_of(features, rows, seed), columns_of(features), model=MODEL, version="1")


def stream_schema(features: int, columns: Sequence[Column] | None = None) -> StreamSchema:
    """How the decoder reads them."""
    return StreamSchema.resolve(SCHEMA, columns or columns_of(features))


def messages(features: int, events: int, seed: int = 2) -> Iterator[bytes]:
    """The events as a producer sends them, in order of their times."""
    rows = min(events, POOL_ROWS)
    values = values_of(features, rows, seed)
    lists = [[None if value != value else value for value in column.tolist()] if isinstance(column, np.ndarray) else column
             for column in values.values()]
    names = list(values)
    tails = [json.dumps({"model": MODEL, "features": dict(zip(names, row, strict=True)), "prediction": round(i / rows, 3)})
             .encode()[1:] for i, row in enumerate(zip(*lists, strict=True))]
    for i in range(events):
        yield b'{"id": "e%08d", "ts": %d, ' % (i, START_MS + i) + tails[i % rows]
