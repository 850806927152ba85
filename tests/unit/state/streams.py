"""Small streams for the tests of state: a reference of two columns, rows that fall into known panes."""

from __future__ import annotations

import numpy as np

from detectors.reference import Column, Reference
from monitor.flow import Batch, Rows
from monitor.state.panes import Panes, Stream

TOPIC = "t"
COLUMNS = (Column("x", "numeric", "input"), Column("c", "category", "input"))


def small_reference(version: str = "1", rows: int = 2_000, seed: int = 1) -> Reference:
    rng = np.random.default_rng(seed)
    data = {"x": rng.normal(size=rows), "c": [("a", "b", "c")[i] for i in rng.integers(0, 3, rows)]}
    return Reference.fit(data, COLUMNS, model="m", version=version)


def rows_at(times, partition=0, first_offset=0, seed=0) -> Rows:
    """Events with the given times in milliseconds; values depend on the offset alone, so any cut gives the same events."""
    n = len(times)
    offsets = np.arange(first_offset, first_offset + n, dtype=np.int64)
    x = np.sin(offsets * 12.9898 + partition + seed) * 2
    c = [("a", "b", "c", "new", None)[int(o) % 5] for o in offsets]
    return Rows("m", TOPIC, partition, offsets, np.asarray(times, np.int64), {"x": x, "c": c}, first_offset + n, n)


def stream(reference, pane_s=1, lateness_s=0) -> Stream:
    return Stream("m", reference.version, TOPIC, reference, pane_s * 1000, lateness_s * 1000)


def panes_of(reference, clock=lambda: 0.0, pane_s=1, lateness_s=0, **options) -> Panes:
    return Panes([stream(reference, pane_s, lateness_s)], clock=clock, **options)


def batch(partitions=(0,), caught_up=(), ended=False) -> Batch:
    return Batch(assigned=frozenset((TOPIC, p) for p in partitions), caught_up=frozenset((TOPIC, p) for p in caught_up),
                 ended=ended)


def cut(rows: Rows, at: int) -> tuple[Rows, Rows]:
    """The same events as two batches."""
    def part(a, b):
        return Rows(rows.model, rows.topic, rows.partition, rows.offsets[a:b], rows.times[a:b],
                    {name: values[a:b] for name, values in rows.columns.items()},
                    int(rows.offsets[b - 1]) + 1 if b > a else int(rows.offsets[0]), b - a)
    return part(0, at), part(at, len(rows))
