"""What the soak feeds the service: endless streams in which everything that may come new comes new.

A scenario is a configuration of one or many monitors and a source that makes its records in place, so that nothing of the
input is held. Every record has an id of its own; a few in a hundred name a category level and a path that nobody has
seen, a few in a thousand are refused in ever new words, a few come late, and once in a while a column moves, so that alarms
are raised, launches are made and fail, and all is quiet again. A pool of rows is repeated under new ids and times: making
text must not take longer than reading it.

    narrow       20 columns, rows captured and sampled, a launcher that fails       wide    1,000 columns
    categories   10 columns of 100,000 levels each, none of which is seen twice in a row of the pool's length
    models       500 models of 20 columns, one topic each, at a low rate
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from detectors.reference import Column, Reference
from detectors.reference_file import Content, digest_of, encode
from monitor.flow import Batch, TopicPartition
from monitor.ingest.source import records

START_MS = 1_600_000_000_000
PANE_SECONDS = 60
PARTITIONS = 2
LEVELS = tuple(f"level-{i}" for i in range(12))
#: Columns move for the last of so many panes, by so many standard deviations.
CYCLE_PANES, MOVED_PANES, SHIFT = 1_000, 100, 1.5


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of traffic.

    events, panes_of : records in all at full size, and records of one model in one pane
    pool : rows that are repeated      batch : records of one poll
    """

    name: str
    events: int
    panes_of: int
    numbers: int = 16
    categories: int = 4
    models: int = 1
    pool: int = 4_001
    batch: int = 4_000
    unseen_levels: int = 0
    retrains: bool = False
    series: int = 50_000
    memory_mb: int = 2_048


SCENARIOS = {one.name: one for one in (
    Scenario("narrow", 40_000_000, 250, retrains=True),
    Scenario("wide", 2_000_000, 100, numbers=900, categories=100, pool=301, batch=1_000),
    Scenario("categories", 4_000_000, 200, numbers=0, categories=10, unseen_levels=100_000, pool=20_011),
    Scenario("models", 4_000_000, 40, models=500, pool=1_009, batch=10_000, memory_mb=4_096),
)}


def columns_of(one: Scenario) -> tuple[Column, ...]:
    """The watched columns: numbers, categories, the path."""
    return (*(Column(f"n{i}", "numeric", "input") for i in range(one.numbers)),
            *(Column(f"c{i}", "category", "input") for i in range(one.categories)), Column("path", "category", "path"))


def values_of(one: Scenario, rows: int, seed: int) -> dict[str, object]:
    """Rows as columns; of `unseen_levels`, every row has a level of its own."""
    rng = np.random.default_rng(seed)
    values: dict[str, object] = {f"n{i}": np.round(rng.normal(size=rows), 6) for i in range(one.numbers)}
    for i in range(one.categories):
        values[f"c{i}"] = ([f"id-{(seed * rows + row) % one.unseen_levels}" for row in range(rows)] if one.unseen_levels
                           else [LEVELS[k] for k in rng.integers(0, len(LEVELS), rows)])
    values["path"] = [("model", "fallback")[k] for k in (rng.random(rows) < 0.1).astype(int)]
    return values


def references(one: Scenario, folder: Path) -> list[str]:
    """A reference file for each model: fitted once, and named anew for each."""
    fitted = Reference.fit(values_of(one, 4_000 if one.numbers < 500 else 1_000, 1), columns_of(one), model="m0", version="1",
                           sample_rows=0 if one.models > 1 else 1_000)
    paths = []
    for index in range(one.models):
        content = Content(f"m{index}", "1", fitted.events, fitted.ordered, fitted.span, fitted.columns, fitted.records,
                          fitted.joint, fitted.expansions, fitted.sample, fitted.cycles)
        document = encode(content)
        path = folder / f"m{index}.json"
        path.write_text(json.dumps({"digest": digest_of(document), **document}) + "\n", encoding="utf-8")
        paths.append(str(path))
    return paths


def configuration(one: Scenario, folder: Path) -> str:
    """The configuration as YAML text."""
    monitors = []
    for index, path in enumerate(references(one, folder)):
        monitor: dict[str, object] = {
            "model": f"m{index}", "topic": f"t{index}", "reference": path,
            "schema": {"timestamp": "ts", "id": "id"}, "pane": {"seconds": PANE_SECONDS, "lateness_seconds": PANE_SECONDS},
        }
        if one.retrains:
            monitor["retrain"] = {"launcher": {"type": "local", "command": ["/bin/false"]}, "cooldown_hours": 1,
                                  "max_per_week": 1_000, "useless_max": None, "capture_events": 20_000, "collect_events": 0,
                                  "capture_uri": str(folder / "captured"), "capture_seconds": 5}
            monitor["detectors"] = [{"name": "cusum", "columns": ["n1", "n2"]}, {"name": "psi"}]
        monitors.append(monitor)
    return yaml.safe_dump({
        "kafka": {"bootstrap_servers": ["127.0.0.1:9"], "fetch_bytes": 1 << 20, "poll_records": one.batch},
        "service": {"state": f"sqlite:///{folder}/state.db", "dead_letters": f"file:{folder}/dead.jsonl"},
        "limits": {"memory_mb": one.memory_mb, "open_panes": 40, "dead_letter_bytes": 4 << 20, "capture_mb": 32,
                   "series": one.series},
        "reports": {"enabled": False}, "monitors": monitors,
    })


class Endless:
    """A source of `events` records, made when they are asked for; it says with every batch how many it has given."""

    def __init__(self, one: Scenario, events: int) -> None:
        self.one, self.events, self.given = one, events, 0
        self._tails = (self._pool(0.0), self._pool(SHIFT))
        self._next: dict[TopicPartition, int] = {}
        self.pool_bytes = sum(len(tail) for tails in self._tails for tail in tails)

    def _pool(self, shift: float) -> list[bytes]:
        values = values_of(self.one, self.one.pool, 2)
        if self.one.numbers:
            values["n0"] = values["n0"] + shift                     # type: ignore[operator]
        names = list(values)
        lists = [column.tolist() if isinstance(column, np.ndarray) else column for column in values.values()]
        return [json.dumps(dict(zip(names, row, strict=True))).encode()[1:] for row in zip(*lists, strict=True)]  # type: ignore[call-overload]

    def __iter__(self) -> Iterator[Batch]:
        keys = [(f"t{m}", p) for m in range(self.one.models) for p in range(PARTITIONS)]
        assigned, per_key = frozenset(keys), max(1, self.one.batch // len(keys))
        while self.given < self.events:
            parts = []
            for topic, partition in keys:
                first = self._next.get((topic, partition), 0)
                values = [self._record(first + i, partition) for i in range(per_key)]
                self._next[topic, partition] = first + per_key
                parts.append(records(topic, partition, values, first_offset=first))
            self.given += per_key * len(keys)
            yield Batch(parts=tuple(parts), assigned=assigned)
        yield Batch(assigned=assigned, caught_up=assigned, ended=True)

    def _record(self, offset: int, partition: int) -> bytes:
        """The record of a partition at an offset; both partitions of a topic have the same times."""
        one, number = self.one, offset * PARTITIONS + partition
        pane = number // one.panes_of
        at = START_MS + pane * PANE_SECONDS * 1000 + number % one.panes_of
        tail = self._tails[pane % CYCLE_PANES >= CYCLE_PANES - MOVED_PANES][number % one.pool]
        if number % 499 == 17:
            return b'{"ts": %d, "path": {"%d": "no' % (at, number)              # refused, in words of its own
        if number % 53 == 5:
            tail = b'"path": "route-%d", "c0": "new-%d", ' % (number, number) + tail.replace(b'"path"', b'"p"').replace(
                b'"c0"', b'"x"')
        if number % 101 == 9:
            at -= 10 * PANE_SECONDS * 1000                                       # late
        return b'{"id": "e%d", "ts": %d, ' % (number, at) + tail

    def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._next = dict(offsets)

    def hold(self, partitions: Collection[TopicPartition]) -> None:
        pass

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        pass

    def lag(self) -> Mapping[TopicPartition, int]:
        return {}

    def close(self) -> None:
        pass


def sized(one: Scenario, **changes: object) -> Scenario:
    """The scenario with other sizes."""
    return dataclasses.replace(one, **changes)                                   # type: ignore[arg-type]
