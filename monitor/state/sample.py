"""A sample of a pane's rows: those whose place in the topic has the smallest hashes.

Idea: every event has a key, a 64-bit hash of its topic, partition and place (`flow.places_of`), and a pane keeps the rows with
the `rows` smallest keys. Which rows these are is a property of the set of events, as the counts are, not of the order in
which they came: the smallest of two parts' smallest are the smallest of the whole. So a sample is the same however the stream
was cut into batches, however partitions interleave, and after any crash; and since a hash knows nothing of values, it is
a simple random sample of the pane's events without replacement.

Invariant: merged(draw(A), draw(B)) = draw(A and B), for disjoint A and B. Texts are cut at `TEXT_CHARACTERS`, as
one event may be a megabyte and a sample must not grow with it.

Cost: nothing where no detector asks for rows (`Stream.sampling` is None and `state.panes` never comes here). Else 0.1-0.15
us per event in batches of 10,000 (hash, one comparison, values of the few rows that are kept) and 0.2 ms per batch. Memory:
rows x columns x 8 bytes (numbers) or 320 (texts) per pane, for the open panes and for as many decided ones as a detector
looks back. On disk 27 kB per pane of 200 rows and 20 columns.

Neighbours: `state.panes` draws, `state.store` writes them in the panes' own transaction, `decide.observe` reads them.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitor.errors import CheckpointRefused
from monitor.flow import TEXT_CHARACTERS, Columns, Rows, Sample, places_of

Keys = NDArray[np.uint64]
Values = NDArray[np.float64] | Sequence[str | None]

#: Bytes that one kept value takes, for the bound that is checked at start.
NUMBER_BYTES, TEXT_BYTES = 8, 320

_GOLDEN, _MIX_1, _MIX_2 = (np.uint64(word) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_EVERY_KEY = np.uint64(2**64 - 1)


@dataclass(frozen=True, slots=True)
class Sampling:
    """What is kept of each pane of a stream.

    rows  : at most so many rows a pane     panes : decided panes that are kept, the latest ones
    names : watched columns and labels whose values are kept
    """

    rows: int
    panes: int
    names: tuple[str, ...]


def keys_of(topic: str, partition: int, offsets: NDArray[np.int64]) -> Keys:
    """The key of each event, from its place: distinct in its partition and evenly spread (splitmix64, Steele et al. 2014).

    >>> keys_of("t", 0, np.array([0, 1])).tolist() == keys_of("t", 0, np.array([1, 0])).tolist()[::-1]
    True
    """
    seed = np.uint64(int.from_bytes(hashlib.blake2b(f"{topic}:{partition}".encode(), digest_size=8).digest(), "little"))
    with np.errstate(over="ignore"):                # arithmetic modulo 2**64 is meant
        mixed = offsets.astype(np.uint64) * _GOLDEN + seed
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    keys: Keys = mixed ^ (mixed >> np.uint64(31))
    return keys


def draw(
    sampling: Sampling, known: Mapping[int, Sample], parts: Sequence[Rows], joined: Columns, panes: NDArray[np.int64],
    group: NDArray[np.intp],
) -> dict[int, Sample]:
    """The samples of the panes that a batch touched, with what was kept of them before.

    known : pane -> its sample so far       parts, joined : what is counted, and its watched columns one behind the other
    panes : the distinct panes, rising      group : of each event, the place of its pane among them
    """
    places = [places_of(rows.offsets, rows.within) for rows in parts]
    keys = np.concatenate([keys_of(rows.topic, rows.partition, own) for rows, own in zip(parts, places, strict=True)])
    maybe = _small_keys(keys, group, sampling.rows, [known.get(pane) for pane in panes.tolist()])
    if not len(maybe):
        return {}
    partitions = np.repeat([rows.partition for rows in parts], [len(rows) for rows in parts])
    offsets = np.concatenate(places)
    times = np.concatenate([rows.times for rows in parts])
    found = {name: joined[name] if name in joined else _joined([rows.others[name] for rows in parts]) for name in sampling.names}
    order = maybe[np.lexsort((offsets[maybe], partitions[maybe], keys[maybe], group[maybe]))]
    cuts = np.searchsorted(group[order], np.arange(len(panes) + 1))
    samples = {}
    for place, pane in enumerate(panes.tolist()):               # turns: panes of the batch, usually one to forty
        index = order[cuts[place]: cuts[place + 1]][: sampling.rows]
        if len(index):
            sample = Sample(keys[index], partitions[index], offsets[index], times[index],
                            {name: _taken(values, index) for name, values in found.items()})
            samples[pane] = merged(known[pane], sample, sampling.rows) if pane in known else sample
    return samples


def _small_keys(keys: Keys, group: NDArray[np.intp], rows: int, known: Sequence[Sample | None]) -> NDArray[np.intp]:
    """Events that may be among their pane's smallest keys: few, so that few are sorted; never too few.

    A full sample bounds what can come in. Without one, keys being evenly spread, some more than `rows` of a pane's n events
    lie in the lowest rows/n of all keys; where fewer do, all are taken.
    """
    sizes = np.bincount(group, minlength=len(known))
    surely = np.array([_EVERY_KEY if one is None or len(one) < rows else one.keys[-1] for one in known], np.uint64)
    part = (rows + 6 * rows**0.5 + 20) / sizes
    likely = np.where(part < 1, (np.minimum(part, 1 - 1e-9) * 2.0**64).astype(np.uint64), _EVERY_KEY)
    maybe = np.flatnonzero(keys <= np.minimum(surely, likely)[group])
    enough = (np.bincount(group[maybe], minlength=len(known)) >= rows) | (likely >= surely)
    return maybe if enough.all() else np.flatnonzero(keys <= surely[group])


def merged(one: Sample, other: Sample, rows: int) -> Sample:
    """The sample of both samples' events together, which have none in common."""
    both = Sample(
        np.concatenate([one.keys, other.keys]), np.concatenate([one.partitions, other.partitions]),
        np.concatenate([one.offsets, other.offsets]), np.concatenate([one.times, other.times]),
        {name: _joined([values, other.columns[name]]) for name, values in one.columns.items()})
    return _picked(both, by_key(both)[:rows])


def by_key(sample: Sample) -> NDArray[np.intp]:
    """The places of the rows by rising key; should two partitions' keys ever be equal, by partition and offset."""
    return np.lexsort((sample.offsets, sample.partitions, sample.keys))


def in_time_order(sample: Sample) -> Sample:
    """The same rows by (time, partition, offset): the order in which a series of values is read."""
    return _picked(sample, np.lexsort((sample.offsets, sample.partitions, sample.times)))


def to_bytes(sample: Sample) -> bytes:
    """A sample as it is stored: exact, and the same bytes for the same rows in whatever order."""
    rows = _picked(sample, by_key(sample))
    document = {
        "keys": rows.keys.astype("<u8").tobytes(), "partitions": rows.partitions.astype("<i8").tobytes(),
        "offsets": rows.offsets.astype("<i8").tobytes(), "times": rows.times.astype("<i8").tobytes(),
        "columns": {name: (values.shape[1:], values.astype("<f8").tobytes()) if isinstance(values, np.ndarray) else values
                    for name, values in rows.columns.items()},
    }
    return zlib.compress(msgspec.msgpack.encode(document), 1)


def from_bytes(blob: bytes) -> Sample:
    """A stored sample, by rising key; CheckpointRefused where it is damaged."""
    try:
        document: dict[str, Any] = msgspec.msgpack.decode(zlib.decompress(blob))
        partitions, offsets, times = (np.frombuffer(document[name], "<i8").astype(np.int64)
                                      for name in ("partitions", "offsets", "times"))
        sample = Sample(
            np.frombuffer(document["keys"], "<u8").astype(np.uint64), partitions, offsets, times,
            {str(name): _read(values, len(times)) for name, values in document["columns"].items()})
        lengths = {len(sample.keys), len(sample.partitions), len(sample.offsets), len(sample.times),
                   *map(len, sample.columns.values())}
        if len(lengths) != 1:
            raise ValueError(f"columns of lengths {sorted(lengths)}")
    except (zlib.error, msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointRefused(f"stored sample: expected rows of equal length, got damage ({error}); "
                                "restore the state file from a copy") from None
    return sample


def _read(values: Any, rows: int) -> Values:
    """One stored column: numbers (of an embedding, some per row) as [shape of one, bytes], or texts."""
    if len(values) == 2 and isinstance(values[1], bytes):
        return np.frombuffer(values[1], "<f8").astype(np.float64).reshape(rows, *values[0])
    return list(values)


def _picked(sample: Sample, index: NDArray[np.intp]) -> Sample:
    """Some rows of a sample, in the order of `index`."""
    return Sample(sample.keys[index], sample.partitions[index], sample.offsets[index], sample.times[index],
                  {name: _taken(values, index) for name, values in sample.columns.items()})


def _taken(values: Values, index: NDArray[np.intp]) -> Values:
    """Values at some places, texts cut to length."""
    if isinstance(values, np.ndarray):
        return values[index]
    return [text if text is None or len(text) <= TEXT_CHARACTERS else text[:TEXT_CHARACTERS]
            for text in (values[i] for i in index.tolist())]


def _joined(parts: Sequence[Values]) -> Values:
    """The values of several parts, one behind the other."""
    numbers = [values for values in parts if isinstance(values, np.ndarray)]
    if numbers:
        return np.concatenate(numbers)
    return [text for values in parts if not isinstance(values, np.ndarray) for text in values]
