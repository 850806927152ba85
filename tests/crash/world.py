"""The world of the crash tests: a topic with a shift in its middle, a configuration, and what a state file says."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path

import numpy as np
import yaml

from detectors.reference import Column, Reference

PARTITIONS, PANES, PER_PANE = 3, 60, 150
SHIFT_AT = 30                                       # pane from which x is 1.2 s.d. higher
START_MS = 1_700_000_000_000
COLUMNS = (Column("x", "numeric", "input"), Column("c", "category", "input"), Column("y", "category", "prediction"))


def _values(rng, n, shift):
    x = rng.normal(size=n)
    c = np.array(["a", "b", "c"])[rng.integers(0, 3, n)]
    truth = np.where(x > 0, "1", "0")
    y = np.where(x + shift > 0, "1", "0")           # the champion does not know of the shift
    return x + shift, c, y, truth


def reference(path: Path, model: str = "m") -> None:
    rng = np.random.default_rng(3)
    x, c, y, _ = _values(rng, 10_000, 0.0)
    Reference.fit({"x": x, "c": c.tolist(), "y": y.tolist()}, COLUMNS, model=model, version="1").save(path)


def messages(back_at: int = PANES) -> dict[int, list[bytes]]:
    """Per partition its messages in order; some are refused, some late, and a last one closes every pane.

    back_at : pane from which the shift is over
    """
    rng = np.random.default_rng(8)
    parts: dict[int, list[bytes]] = {p: [] for p in range(PARTITIONS)}
    for pane in range(PANES):
        x, c, y, truth = _values(rng, PER_PANE, 1.2 if SHIFT_AT <= pane < back_at else 0.0)
        for i in range(PER_PANE):
            partition = int(rng.integers(PARTITIONS))
            at = START_MS + pane * 1000 + i * 1000 // PER_PANE
            if i == 17:
                at -= 5_000                         # late
            event = {"id": f"{pane}-{i}", "ts": at, "x": round(float(x[i]), 6), "c": str(c[i]), "y": str(y[i]),
                     "truth": str(truth[i])}
            parts[partition].append(b'{"ts": 1, "x": "no"' if i == 31 else json.dumps(event).encode())
    for part in parts.values():
        part.append(json.dumps({"id": "end", "ts": START_MS + (PANES + 100) * 1000, "x": 0.0, "c": "a", "y": "1"}).encode())
    return parts


def configuration(folder: Path, broker: str, topic: str, *, promote: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    reference(folder / "reference.json")
    retrain = {
        "launcher": {"type": "local", "command": ["{python}", str(Path(__file__).with_name("trainer.py"))],
                     "environment": {"PYTHONPATH": str(Path(__file__).parents[2])}},
        "above": 0.3, "collect_events": 1000, "capture_uri": str(folder / "captured"), "cooldown_hours": 1,
    }
    if promote:
        retrain["promote"] = {"type": "file", "path": str(folder / "promoted.json")}
    config = {
        "service": {"listen": "127.0.0.1:0", "state": f"sqlite:///{folder}/state.db", "checkpoint_seconds": 0.05,
                    "dead_letters": f"file:{folder}/dead.jsonl"},
        "reports": {"enabled": False},              # one takes ten seconds of a processor; tests of reports switch them on
        "kafka": {"bootstrap_servers": [broker], "group": f"{topic}-{folder.name}", "session_timeout_seconds": 1.0,
                  "poll_records": 700},
        "monitors": [{
            "model": "m", "topic": topic, "reference": str(folder / "reference.json"),
            "schema": {"timestamp": "ts", "id": "id", "columns": {"truth": {"role": "label", "kind": "category"}}},
            "pane": {"seconds": 1, "lateness_seconds": 1}, "retrain": retrain,
        }],
    }
    path = folder / "tidemark.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "monitor.cli", "run", "-c", str(config)]


def state(folder: Path) -> dict[str, object] | None:
    """Everything that must not depend on crashes; None while there is no whole state yet."""
    path = folder / "state.db"
    if not path.exists():
        return None
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
    try:
        panes = db.execute("SELECT version, pane, events, decided, profile FROM panes ORDER BY version, pane").fetchall()
        samples = db.execute("SELECT version, pane, document FROM samples ORDER BY version, pane").fetchall()
        positions = db.execute("SELECT partition, next_offset, clock FROM positions ORDER BY partition").fetchall()
        counters = [json.loads(row[0]) for row in db.execute("SELECT counters FROM streams")]
        alarms = [json.loads(row[0]) for row in db.execute("SELECT document FROM alarms ORDER BY seq")]
        decisions = [json.loads(row[0]) for row in db.execute("SELECT document FROM decisions ORDER BY seq")]
        launches = [json.loads(row[0]) for row in db.execute("SELECT document FROM launches ORDER BY rowid")]
    except sqlite3.OperationalError:
        return None
    finally:
        db.close()
    return {"panes": panes, "samples": samples, "positions": positions, "counters": counters, "alarms": alarms,
            "decisions": decisions, "launches": launches}
