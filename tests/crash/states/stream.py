"""The stream behind the stored states of older versions: small, and the same for whoever makes or reads one.

`python stream.py OUT.sql REFERENCE.json`, run with an older version's code on the path, writes the state that this version
has after the first half as SQL text; the reference is made where it is not there yet. The first version's references had
a form of their own, which later ones refuse; so there are two.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

from detectors.reference import Column, Reference
from monitor.config import parse
from monitor.flow import Batch
from monitor.ingest.source import Crash, MemorySource, records
from monitor.service import build

TOPIC, PANES, PER_PANE, START_MS = "t", 24, 25, 1_700_000_000_000
COLUMNS = [Column("x", "numeric", "input"), Column("c", "category", "input")]


def messages() -> list[bytes]:
    """One partition; the second half is shifted, a few are refused, and a last one closes every pane."""
    rng = np.random.default_rng(4)
    events = []
    for pane in range(PANES):
        for i in range(PER_PANE):
            shift = 1.5 if pane >= PANES // 2 else 0.0
            event = {"id": f"{pane}-{i}", "ts": START_MS + pane * 1000 + i * 1000 // PER_PANE,
                     "x": round(float(rng.normal()) + shift, 4), "c": "ab"[int(rng.integers(2))]}
            events.append(b"{broken" if i == 7 else json.dumps(event).encode())
    return [*events, json.dumps({"id": "end", "ts": START_MS + (PANES + 60) * 1000, "x": 0.0, "c": "a"}).encode()]


def half() -> int:
    """Where the older version ends: inside a pane."""
    return PANES // 2 * PER_PANE + 11


def configuration(folder: Path, reference: Path) -> str:
    return yaml.safe_dump({
        "service": {"listen": "127.0.0.1:0", "state": f"sqlite:///{folder}/state.db", "dead_letters": "none"},
        "kafka": {"bootstrap_servers": ["127.0.0.1:9"]},
        "monitors": [{
            "model": "m", "topic": TOPIC, "reference": str(reference),
            "schema": {"timestamp": "ts", "id": "id"}, "pane": {"seconds": 1, "lateness_seconds": 1},
            "retrain": {"launcher": {"type": "local", "command": ["true"]}, "above": 0.3, "collect_events": 10**9,
                        "capture_uri": str(folder / "captured"), "cooldown_hours": 1}}]})


def run(folder: Path, reference: Path, first: int, last: int | None) -> None:
    """Read a span of the stream on the state of a folder; one that has a `last` ends in a crash, for more is to come."""
    values = messages()[first:last]
    part = records(TOPIC, 0, values, first_offset=first, times=[0] * len(values))
    now = iter(range(10**9))
    items = [Batch(parts=(part,), assigned=frozenset({(TOPIC, 0)})), *([] if last is None else [Crash()])]
    stages = build(parse(configuration(folder, reference)), clock=lambda: float(next(now)), source=MemorySource(items))
    try:
        stages.run()
    except Crash:
        pass
    finally:
        stages.store.close()


def fit(reference: Path, version: str) -> None:
    """The reference of the stream's first half."""
    rng = np.random.default_rng(5)
    Reference.fit({"x": rng.normal(size=2000), "c": ["ab"[i] for i in rng.integers(0, 2, 2000).tolist()]}, COLUMNS,
                  model="m", version=version).save(reference)


def main(state: Path, reference: Path) -> None:
    if not reference.exists():
        fit(reference, "1")
    with tempfile.TemporaryDirectory() as name:
        run(Path(name), reference, 0, half())
        db = sqlite3.connect(f"{name}/state.db")
        state.write_text("\n".join(line for line in db.iterdump() if "sqlite_sequence" not in line) + "\n")
        db.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).absolute())
