"""Arrow messages for tests: events as record batches, and as the bytes of a Kafka record."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from monitor import config
from monitor.flow import Part
from monitor.ingest.arrow import ArrowDecoder
from monitor.ingest.schema import StreamSchema
from tests.unit.ingest.test_decode import Column

T0 = 1_700_000_000_000
COLUMNS = [Column("age", "numeric"), Column("sex", "category"), Column("member", "boolean"), Column("note", "text"),
           Column("vec", "embedding"), Column("answer", "category", "prediction")]
SCHEMA = config.Schema(timestamp="ts", id="id", columns={
    "age": config.SchemaColumn(aliases=["years"]), "answer": config.SchemaColumn(path="out.answer"),
    "truth": config.SchemaColumn(role="label", kind="category")})
TYPES = pa.schema([("ts", pa.int64()), ("id", pa.string()), ("age", pa.float64()), ("years", pa.float64()), ("sex", pa.string()),
                   ("member", pa.bool_()), ("note", pa.string()), ("vec", pa.list_(pa.float64())),
                   ("out", pa.struct([("answer", pa.string())])), ("truth", pa.string())])


def message(*batches: pa.RecordBatch, as_file: bool = False, schema: pa.Schema | None = None, **options) -> bytes:
    """The bytes of one IPC stream (or file) with these record batches."""
    sink = pa.BufferOutputStream()
    make = pa.ipc.new_file if as_file else pa.ipc.new_stream
    with make(sink, schema or batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def of_events(events, schema: pa.Schema = TYPES, **options) -> bytes:
    """One message of these events, given as JSON objects."""
    return message(pa.RecordBatch.from_pylist(list(events), schema=schema), **options)


def resolved(schema=SCHEMA, columns=COLUMNS) -> StreamSchema:
    return StreamSchema.resolve(schema, columns, "schema", dimensions={"vec": 2})


def decoder(schema=SCHEMA, columns=COLUMNS, limits=None, **options) -> ArrowDecoder:
    return ArrowDecoder("m", resolved(schema, columns), limits or config.Limits(), clock=lambda: T0 / 1000, **options)


def part_of(values, first_offset=100, partition=3, time=T0 + 5) -> Part:
    n = len(values)
    return Part("topic", partition, list(values), np.arange(first_offset, first_offset + n), np.full(n, time), first_offset + n)
