"""Bytes to columns: the decoder against `orjson.loads` per message and one list comprehension per column.

Both give one float64 array per number, NaN for null, and one list per category; they are compared value by value.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from benchmarks.events import MODEL, Values, columns_of, messages, stream_schema
from benchmarks.measure import Bench
from monitor.config import Kafka, Limits
from monitor.ingest.columns_json import scan_of
from monitor.ingest.decode import Decoder
from monitor.ingest.source import records

#: Features -> events and the least ratio.
CASES = {20: (20_000, 1.5), 100: (5_000, 1.5)}
#: The least ratio of the compiled scanner.
COLUMNS_TARGET = 4.0


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("decode_columns: orjson + dictionary loop / ours", argv, repeat=15)
    scan = scan_of(Kafka(decoder="columns"))
    for features, (events, target) in CASES.items():
        part = records("t", 0, list(messages(features, bench.sized(events))))
        decoder = Decoder(MODEL, stream_schema(features), Limits())
        columns = [(column.name, column.kind == "numeric") for column in columns_of(features)]

        def peer(values: Any = part.values, columns: Any = columns) -> Values:
            rows = [orjson.loads(value)["features"] for value in values]
            return {name: np.array([row[name] for row in rows], np.float64) if is_number else [row[name] for row in rows]
                    for name, is_number in columns}

        def ours(part: Any = part, decoder: Any = decoder) -> Values:
            return decoder.decode(part).columns  # type: ignore[no-any-return]

        bench.compare(f"{len(part)} events of {features} features", peer=peer, ours=ours, target=target, equal=equal,
                      peer_name="orjson")
        compiled = Decoder(MODEL, stream_schema(features), Limits(), scan=scan)
        bench.compare(f"{len(part)} events of {features} features, columns", peer=peer,
                      ours=lambda part=part, decoder=compiled: ours(part, decoder),  # type: ignore[misc]
                      target=COLUMNS_TARGET, equal=equal, peer_name="orjson")
    return bench.finish()


def equal(theirs: Values, own: Values) -> bool:
    """The same columns with the same values, NaN included."""
    return theirs.keys() == own.keys() and all(
        np.array_equal(values, own[name], equal_nan=True) if isinstance(values, np.ndarray) else values == list(own[name])
        for name, values in theirs.items())


if __name__ == "__main__":
    sys.exit(main())
