"""A small world for trainers: captured events of two classes, of which the newer half has drifted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

ROOT = Path(__file__).resolve().parents[3]
TRAINER = ROOT / "deploy" / "trainer" / "train.py"
# As the script does for itself: its folder is no package. Most tests call it in this process, where torch is loaded once.
sys.path.insert(0, str(TRAINER.parent))
START_MS = 1_700_000_000_000
#: Event time at which the world changes, and at which that was certain, seconds since 1970.
SINCE, AT = START_MS / 1000 + 2_000, START_MS / 1000 + 2_050


def captured(folder: Path, events: int = 6_000, *, seed: int = 3) -> None:
    """One event a second; from the 2,000th on the classes have changed their places, so the champion is mostly wrong."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, events)
    after = np.arange(events) >= 2_000
    x = rng.normal(np.where(labels ^ after, 1.0, -1.0), 0.5)
    colour = np.where(rng.random(events) < 0.9, np.where(labels, "red", "blue"), "green").astype(object)
    colour[::50] = None
    columns = {
        "id": [f"e{i}" for i in range(events)], "timestamp": START_MS + np.arange(events) * 1000,
        "x": np.where(rng.random(events) < 0.02, np.nan, x), "noise": rng.normal(0, 1, events),
        "colour": pyarrow.array(colour.tolist(), pyarrow.string()),
        "label": [("no", "yes")[label] for label in labels],
        "prediction": ["yes" if value > 0 else "no" for value in x], "score": rng.uniform(0.5, 1, events),
    }
    folder.mkdir(parents=True)
    table = pyarrow.table(columns)
    parquet.write_table(table.slice(3_000), folder / "0000000002.parquet")      # files need not be in time order
    parquet.write_table(table.slice(0, 3_000), folder / "0000000001.parquet")


def environment(data: Path, output: Path, **changes: str) -> dict[str, str]:
    """What a launcher gives to a trainer."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    reason = json.dumps({"columns": ["x"], "window": {"since": SINCE, "at": AT}})
    return kept | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TIDEMARK_LAUNCH_ID": "0123456789ab", "TIDEMARK_MODEL": "m",
        "TIDEMARK_VERSION": "7", "TIDEMARK_REASON": reason, "TIDEMARK_DATA_URI": str(data),
        "TIDEMARK_COLUMNS": watched(),
        "TIDEMARK_OUTPUT_URI": str(output)} | changes


def watched(**kinds: str) -> str:
    """TIDEMARK_COLUMNS of the captured events; `kinds` of columns that are otherwise."""
    columns = (("x", "numeric", "input"), ("noise", "numeric", "input"), ("colour", "category", "input"),
               ("prediction", "category", "prediction"), ("score", "numeric", "score"), ("label", "category", "label"))
    return json.dumps([{"name": name, "kind": kinds.get(name, kind), "role": role} for name, kind, role in columns])


def rewritten(folder: Path, source: Path, **columns: object) -> Path:
    """Captured events in one file of another folder, with these columns in place of or beside their own."""
    table = parquet.read_table(source, partitioning=None).sort_by("timestamp")
    for name, values in columns.items():
        array = values if isinstance(values, (pyarrow.Array, pyarrow.ChunkedArray)) else pyarrow.array(values)
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, array)
        else:
            table = table.append_column(name, array)
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, folder / "events.parquet")
    return folder


Train = Callable[..., "subprocess.CompletedProcess[str]"]
#: Trains in this process: (output folder, *options, **environment) -> exit code.
Here = Callable[..., int]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer") / "data"
    captured(folder)
    return folder


@pytest.fixture
def train(data: Path) -> Train:
    """Run the trainer to its end as a launcher would."""
    def run(output: Path, *arguments: str, launch: Sequence[str] = (), **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *launch, str(TRAINER), *arguments],
            env=environment(data, output, **changes), capture_output=True, text=True, timeout=240, check=False)
    return run


@pytest.fixture
def here(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """Run the trainer's command in this process, and leave torch as it was."""
    import train as trainer

    def run(output: Path, *arguments: str, **changes: str) -> int:
        for name, value in environment(data, output, **changes).items():
            monkeypatch.setenv(name, value)
        return trainer.main(arguments)

    yield run
    if "torch" in sys.modules:
        sys.modules["torch"].use_deterministic_algorithms(False)
