"""Arrow messages against JSON: the same events through the decoder that each has, and what counting them takes besides.

The peer is the default decoder of JSON (msgspec), one event in a record; ours reads them out of messages of 1,000 rows, and
out of smaller ones, where each message costs as much. Both give the same columns, compared value by value.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.decode_columns import equal
from benchmarks.events import MODEL, START_MS, Values, columns_of, messages, stream_schema, values_of
from benchmarks.measure import Bench, cpu_of
from monitor.config import Limits, Schema
from monitor.flow import Part
from monitor.ingest.arrow import ArrowDecoder
from monitor.ingest.decode import Decoder
from monitor.ingest.schema import StreamSchema
from monitor.ingest.source import records

#: Features -> events; no more than `benchmarks.events` has different rows of.
EVENTS = {20: 10_000, 100: 5_000}
#: Rows of a message -> the least ratio of JSON's cost to ours.
TARGETS = {1_000: 5.0, 100: 1.5}


def part_of(features: int, events: int, rows: int, compression: str | None = None) -> Part:
    """The events of `benchmarks.events` in messages of so many rows."""
    values = values_of(features, events, seed=2)
    table = pa.table({"ts": pa.array(START_MS + np.arange(events)), **{
        name: pa.array(column, from_pandas=True) for name, column in values.items()}})
    found = []
    for start in range(0, events, rows):
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table.slice(start, rows).combine_chunks())
        found.append(sink.getvalue().to_pybytes())
    return records("t", 0, found)


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("arrow: JSON by msgspec / Arrow messages", argv)
    for features, wanted in EVENTS.items():
        events = max(1_000, bench.sized(wanted))
        json = records("t", 0, list(messages(features, events)))
        peer = Decoder(MODEL, stream_schema(features), Limits())
        decoder = ArrowDecoder(MODEL, StreamSchema.resolve(Schema(timestamp="ts"), columns_of(features)), Limits())

        def decoded(part: Part, decoder: Any = decoder) -> Values:
            columns = decoder.decode(part).columns
            return {name: values if isinstance(values, np.ndarray) else list(values) for name, values in columns.items()}

        for rows, target in TARGETS.items():
            part = part_of(features, events, rows)
            bench.compare(f"{features} features, messages of {rows} events",
                          peer=lambda json=json, peer=peer: decoded(json, peer),  # type: ignore[misc]
                          ours=lambda part=part, decoder=decoder: decoded(part, decoder),  # type: ignore[misc]
                          target=target, equal=equal, peer_name="JSON")
        for name, compression in (("plain", None), ("lz4", "lz4"), ("zstd", "zstd")):
            part = part_of(features, events, 1_000, compression)
            seconds = min(cpu_of(lambda part=part, decoder=decoder: decoded(part, decoder)) for _ in range(bench.repeat))
            bench.fact(f"{features} features, {name}", events / seconds, "events/s per core")
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
