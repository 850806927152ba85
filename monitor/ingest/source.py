"""What every source of events shares, and a source of batches in memory for tests and examples.

A source is iterated and yields a `Batch` at least once a second, even an empty one, because the loop that reads it also
closes panes and follows training jobs. It starts where `seek` says, per partition; what `seek` does not name starts at
the source's own default. `committed` only tells the outside how far the stored state has come.

`MemorySource([batch, Crash(), batch])` makes a crash an item of the input: iterating raises it there, once. Whoever
builds the service again on the same source and seeks to its stored offsets reads on as after a real crash, so a test
of recovery is: run, assert, run again, assert.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from monitor.flow import Batch, Part, TopicPartition


class Crash(BaseException):
    """The process dies here; no handler of exceptions is meant to survive it."""


def records(topic: str, partition: int, values: Sequence[bytes | None], *, first_offset: int = 0,
            times: Iterable[int] | None = None) -> Part:
    """A part of consecutive records; `times` are milliseconds since 1970, 0 without."""
    n = len(values)
    stamps = np.zeros(n, np.int64) if times is None else np.fromiter(times, np.int64, n)
    return Part(topic, partition, list(values), np.arange(first_offset, first_offset + n, dtype=np.int64), stamps,
                first_offset + n)


def from_offset(part: Part, offset: int) -> Part:
    """The records of a part at and behind an offset."""
    skip = int(np.searchsorted(part.offsets, offset))
    if skip == 0:
        return part
    return replace(part, values=part.values[skip:], offsets=part.offsets[skip:], times=part.times[skip:])


class MemorySource:
    """A source that yields the batches it was given, raises its crashes, and ends.

    items : batches and Crash() in any order; records below the sought offsets are left out, a crash happens once
    committed_offsets : what `committed` was told last
    """

    def __init__(self, items: Iterable[Batch | Crash]) -> None:
        self.items = list(items)
        self.committed_offsets: dict[TopicPartition, int] = {}
        self.closed = False
        self._crashed: set[int] = set()
        self._next: dict[TopicPartition, int] = {}
        self._assigned = frozenset((part.topic, part.partition) for item in self.items if isinstance(item, Batch)
                                   for part in item.parts)

    def __iter__(self) -> Iterator[Batch]:
        ended = False
        for place, item in enumerate(self.items):
            if isinstance(item, Crash):
                if place not in self._crashed:
                    self._crashed.add(place)
                    raise item
                continue
            parts = []
            for part in item.parts:
                key = (part.topic, part.partition)
                rest = from_offset(part, self._next.get(key, 0))
                if len(rest):
                    parts.append(rest)
                    self._next[key] = rest.next_offset
            ended = item.ended
            yield replace(item, parts=tuple(parts), assigned=item.assigned or self._assigned)
        if not ended:
            yield Batch(assigned=self._assigned, caught_up=self._assigned, ended=True)

    def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Go on from these offsets; every other partition begins again."""
        self._next = dict(offsets)

    def hold(self, partitions: Collection[TopicPartition]) -> None:
        """Nothing: what is read is there already."""

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Keep what was told, for assertions."""
        self.committed_offsets.update(offsets)

    def lag(self) -> Mapping[TopicPartition, int]:
        """Records that were not yielded yet, per partition."""
        lag = dict.fromkeys(self._assigned, 0)
        for item in self.items:
            for part in item.parts if isinstance(item, Batch) else ():
                key = (part.topic, part.partition)
                lag[key] += len(from_offset(part, self._next.get(key, 0)))
        return lag

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True
