"""Good inputs that the fuzz targets start from: an event, a reference, a holdout, a state file, and ways to spoil them.

They are made by the program itself, once per process, from fixed seeds: a committed file would be of yesterday's format.
Neighbours: `targets` uses them; `tests/fuzz/corpus` holds the small texts that cannot be made so.
"""

from __future__ import annotations

import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

from detectors.reference import Column, Reference
from monitor.config import Config, parse
from monitor.flow import Batch
from monitor.ingest.source import MemorySource, records
from monitor.service import build
from monitor.state.store import Store

#: An event that the target's schemas all take, or at least two of them.
EVENT = (b'{"ts": 1700000000000, "at": "2023-11-14T22:13:20Z", "id": "e1", "answer": "yes", "truth": "no", "f0": 1, "f1": 2.5, '
         b'"f2": null, "f3": -3e4, "f4": 0, "f5": 12345678901, "v": [1, 2, 3.5], "n": 4, "age": 5, "sex": "f", "member": true, '
         b'"note": "a note", "x": {"age": 41.5, "sex": "f", "member": false, "note": "some words"}}')


@functools.cache
def reference() -> str:
    """A small reference's file."""
    rng = np.random.default_rng(1)
    columns = [Column("age", "numeric", "input"), Column("city", "category", "input"), Column("answer", "category", "prediction")]
    return Reference.fit({"age": rng.normal(size=300), "city": rng.choice(["a", "b"], 300).tolist(),
                          "answer": rng.choice(["0", "1"], 300).tolist()}, columns, model="m", version="1",
                         sample_rows=3).to_json()


@functools.cache
def parquet() -> bytes:
    """A good holdout."""
    rng = np.random.default_rng(2)
    label = rng.integers(0, 2, 40)
    table = pa.table({"id": [f"e{i}" for i in range(40)], "label": label, "champion_prediction": 1 - label,
                      "challenger_prediction": label, "champion_score": rng.random(40), "challenger_score": rng.random(40)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=20)
    return sink.getvalue()


@functools.cache
def arrow(kind: int) -> bytes:
    """A good Arrow message of four events: plain, packed, a file, with dictionaries and nested columns, without rows."""
    columns: dict[str, Any] = {
        "ts": pa.array([1_700_000_000_000] * 4, pa.timestamp("ms", tz="UTC")), "age": [1.5, None, 3.0, float("nan")],
        "sex": ["f", "m", None, "f"], "member": [True, None, False, True], "note": ["some words", "", None, "more"]}
    if kind % 5 == 3:
        columns |= {"sex": pa.array(["f", "m", None, "f"]).dictionary_encode(),
                    "v": [[1.0, 2.0, 3.0], None, [4.0, None, 5.0], []],
                    "x": pa.array([{"age": 1, "sex": "f"}, None, {"age": None, "sex": "m"}, {"age": 3, "sex": None}]),
                    "note": pa.array(["some longer words than fit", "", None, "more"], pa.string_view())}
    batch = pa.record_batch(columns)
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=("zstd", "lz4")[kind % 2] if kind % 5 in (1, 3) else None)
    with (pa.ipc.new_file if kind % 5 == 2 else pa.ipc.new_stream)(sink, batch.schema, options=options) as writer:
        for part in () if kind % 5 == 4 else (batch.slice(0, 3), batch.slice(3)):
            writer.write_batch(part)
    return sink.getvalue()


@functools.cache
def state() -> bytes:
    """A state file with panes, alarms and a decision in it, closed in good order."""
    with tempfile.TemporaryDirectory() as folder:
        config = _configuration(Path(folder))
        rng, first = np.random.default_rng(4), 1_700_000_000_000
        values = [json.dumps({"ts": first + i * 1_000, "age": round(float(rng.normal(3.0 if i > 600 else 0.0)), 3),
                              "city": "a", "answer": "1"}).encode() for i in range(1_800)]
        part = records("t", 0, values)
        source = MemorySource([Batch(parts=(part,), assigned=frozenset({("t", 0)}))])
        stages = build(config, source=source, state=Path(folder, "state.db"), launching=False)
        try:
            stages.run()
        finally:
            stages.close()
        store = Store(Path(folder, "state.db"))
        store._db.execute("PRAGMA journal_mode=DELETE")
        store.close()
        return Path(folder, "state.db").read_bytes()


def start(path: Path) -> None:
    """Build the service on a state file, as a start does, and let it go again."""
    stages = build(_configuration(path.parent), source=MemorySource([]), state=path, launching=False)
    stages.close()


def _configuration(folder: Path) -> Config:
    Path(folder, "reference.json").write_text(reference())
    return parse(json.dumps({
        "service": {"dead_letters": "none"}, "files": {"paths": ["none.jsonl"]}, "reports": {"enabled": False},
        "monitors": [{"model": "m", "topic": "t", "reference": f"{folder}/reference.json", "schema": {"timestamp": "ts"},
                      "pane": {"seconds": 60, "lateness_seconds": 0}}]}))


#: What stands where something else should.
HOSTILE = (None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**30), 0.5, float("nan"), float("inf"), 1e308, -1e308,
           "", "x", "age", "\ud800", "\n\x1b[2J", [], {}, [0], [None], ["age"], {"a": 1}, [[]], "AAAA", "numeric", "category",
           "embedding")


def edited(good: str, data: bytes) -> str:
    """A good JSON document in which three bytes each of `data` name one of its values and what stands in its place."""
    document = json.loads(good)
    for at in range(0, min(len(data) - 2, 30), 3):
        places: list[tuple[Any, Any]] = []
        waiting = [document]
        while waiting:
            here = waiting.pop()
            inside = list(here.items()) if isinstance(here, dict) else list(enumerate(here))
            places += [(here, key) for key, _ in inside]
            waiting += [value for _, value in inside if isinstance(value, (dict, list))]
        if not places:
            break
        here, key = places[int.from_bytes(data[at:at + 2], "big") % len(places)]
        choice = data[at + 2] % (len(HOSTILE) + 2)
        if choice < len(HOSTILE):
            here[key] = HOSTILE[choice]
        elif isinstance(here, list):
            here.append(here[key]) if choice % 2 else here.pop(key)
        elif choice % 2:
            here.pop(key)
        else:
            here[f"{key}2"] = here[key]
    return json.dumps(document)


def damaged(good: bytes, data: bytes) -> bytes:
    """A good file with bytes changed: five bytes of `data` each are a place and a value; an odd rest cuts the end off.

    >>> damaged(b"abcdef", bytes([0, 0, 0, 2, 120]))
    b'abxdef'
    """
    spoilt = bytearray(good)
    for at in range(0, len(data) - 4, 5):
        spoilt[int.from_bytes(data[at:at + 4], "big") % len(spoilt)] = data[at + 4]
    rest = data[len(data) // 5 * 5:]
    if rest:
        cut = int.from_bytes(rest, "big") % len(spoilt)
        del spoilt[len(spoilt) - cut:]
    return bytes(spoilt)

