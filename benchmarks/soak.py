"""Hours of traffic in minutes: does anything grow with events, categories, models, alarms, launches or time?

    python -m benchmarks.soak --events 50000000             all scenarios, in shares of their sizes; each in its own process
    python -m benchmarks.soak --scenario wide --events 300000
    python -m benchmarks.soak --scenario models --events 500000 --json -

Each scenario (`soak_world`) runs the whole service in a process of its own over records that are made in place: decoding,
panes, decisions, further detectors, capture, launches, dead letters, store, exposition. It asks for what operations.md
promises: resident memory at most what the formula says for the configuration (`monitor.sizing`), and flat: of the second
half, and of it what follows when the rings of panes are full, the slope over events with its 95 % interval from block
differences (a run too short to fill them says so, and nothing of flatness); open files and threads flat; and every container
in the service: one that grows all through that half must have a stated bound (`BOUNDS`) and be below it. Where the half has
filled what a week of panes fills (`--pane-events` makes panes smaller and so more), the state file, too.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.soak_world import PARTITIONS, SCENARIOS, Endless, Scenario, configuration, sized
from detectors.ring import PANES_MAX
from monitor.config import parse
from monitor.decide.quality import HISTORY_PANES
from monitor.display import ALARMS_SHOWN
from monitor.expose.history import PANES_KEPT
from monitor.flow import Batch
from monitor.pipeline import Stages
from monitor.retrain.ledger import DECISIONS_MAX, ENTRIES_MAX, KEPT
from monitor.service import build
from monitor.sizing import MIB, sizing
from monitor.watched import watched

#: Measurements of a run; those of the first half are the warming up.
POINTS = 40
#: Growth of the second half, by the upper end of its interval, against the resident memory at the half.
GROWTH_MAX = 0.03
#: Points behind the filling of the rings from which on a slope is told.
FILLED_POINTS_MIN = 8
#: Panes of one model from which on nothing grows any more by its bound: a quarter more than the 10,080 that the store keeps.
FULL_PANES = 12_600
#: Of the state file, once it is full.
FILE_GROWTH_MAX = 0.05
#: Places of the second half at which every container is looked at. One grew that never shrank between them, rose in three
#: of four stretches, and by so many entries in all: one in a hundred panes of a full run. What goes up and down does not.
LOOKS = (*range(POINTS // 2, POINTS - 3, 2), POINTS - 1)
CONTAINER_GROWTH = 50
#: Where a container may still be filling: a part of the way to it, and how many entries it has at most for each model. What its
#: entries hold themselves may be `WITHIN` times as many.
BOUNDS: Mapping[str, int] = {
    ".history{}": PANES_KEPT, "._history{}._kept": PANES_KEPT, ".rates": HISTORY_PANES, ".rings": PANES_MAX + 1,
    ".alarms": ALARMS_SHOWN,
    ".ledger._decisions": DECISIONS_MAX, ".ledger._entries": ENTRIES_MAX, ".decided": DECISIONS_MAX, ".audit": ENTRIES_MAX,
    ".ledger._launches": sum(KEPT.values()), ".ledger._of_model": sum(KEPT.values()), ".launches": sum(KEPT.values()),
}
WITHIN = 40


@dataclass(frozen=True, slots=True)
class Point:
    """What is measured after so many events."""

    events: int
    panes: float                                    # decided, per model
    resident: int
    file: int
    files_open: int
    threads: int
    series: int


class Watcher:
    """The source, with a look at the process at POINTS places of the run."""

    def __init__(self, source: Endless, folder: Path, *, quiet: bool) -> None:
        self.source, self.folder, self.quiet = source, folder, quiet
        self.points: list[Point] = []
        self.stages: Stages | None = None
        self.sizes: list[Counter[str]] = []
        self.began = time.monotonic()

    def __iter__(self) -> Iterator[Batch]:
        step = self.source.events // POINTS
        for batch in self.source:
            yield batch
            if self.source.given >= step * (len(self.points) + 1) and len(self.points) < POINTS:
                self.look()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def look(self) -> None:
        """One measurement; at LOOKS also of every container."""
        assert self.stages is not None
        if len(self.points) in LOOKS:
            gc.collect()
            self.sizes.append(containers(self.stages))
        state = self.folder / "state.db"
        decided = [stream.decided_panes for stream in self.stages.panes.streams.values()]
        self.points.append(Point(
            self.source.given, sum(decided) / len(decided), resident(), state.stat().st_size, len(os.listdir("/proc/self/fd")),
            threading.active_count(), self.stages.exporter.published.exposition.text().count(b"\n")))
        if not self.quiet:
            point, seconds = self.points[-1], time.monotonic() - self.began
            print(f"{point.events:>12,} of {self.source.events:,} events  {point.resident / MIB:7.1f} MiB  state "
                  f"{point.file / MIB:6.1f} MiB  {point.panes:,.0f} panes  {point.files_open} files  {point.threads} threads  "
                  f"{point.events / seconds:,.0f} events/s", file=sys.stderr, flush=True)


def resident() -> int:
    """Resident memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def containers(root: object) -> Counter[str]:
    """Entries of every dict, list, set and deque that the service holds, by the way of attributes that leads there.

    Of what a container holds, all of one kind count together, so that a hundred dicts that each grow show, too.
    """
    found: Counter[str] = Counter()
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("stages", root)]
    while waiting:
        path, one = waiting.pop()
        if id(one) in seen or isinstance(one, (str, bytes, int, float, type(None), type, np.ndarray)) or callable(one):
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            found[path] += len(one)
            waiting += [(f"{path}{{}}", value) for value in one.values()]
        elif isinstance(one, (list, set, frozenset, tuple)) or type(one).__name__ in ("deque", "array"):
            found[path] += len(one)                                             # type: ignore[arg-type]
            if type(one).__name__ != "array":
                waiting += [(f"{path}[]", value) for value in one]              # type: ignore[attr-defined]
        elif type(one).__module__.startswith(("monitor", "detectors")):
            names = [*getattr(one, "__dict__", ()), *getattr(one, "__struct_fields__", ())]
            names += [name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ())]
            waiting += [(f"{path}.{name}", getattr(one, name, None)) for name in dict.fromkeys(names)]
    return found


def grown(sizes: Sequence[Counter[str]], models: int) -> dict[str, int]:
    """Containers that grew from look to look, by how much in all, without those that are below a bound of theirs."""
    found = {}
    for path, size in sizes[-1].items() if sizes else ():
        steps = [later[path] - earlier[path] for earlier, later in pairwise(sizes)]
        rises = sum(step > 0 for step in steps)
        if sum(steps) >= CONTAINER_GROWTH and min(steps) >= 0 and 4 * rises >= 3 * len(steps) and size > bound(path, models):
            found[path] = sum(steps)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def bound(path: str, models: int) -> int:
    """The most entries that a container on this way has over all models; 0 where none is stated."""
    stated = [entries * models * (1 if path.endswith(part) else WITHIN) for part, entries in BOUNDS.items()
              if path.endswith(part) or f"{part}[" in path or f"{part}{{" in path]
    return max(stated, default=0)


def slope(points: Sequence[Point]) -> tuple[float, float, float]:
    """Growth of resident memory over these points, bytes, with the ends of its 95 % interval.

    The mean of differences of points half the span apart, scaled to the span: neighbours are dependent, these hardly are.
    """
    values = np.array([point.resident for point in points], float)
    half = len(values) // 2
    differences = 2 * (values[half:2 * half] - values[:half])
    error = differences.std(ddof=1) / np.sqrt(half) if half > 1 else 0.0
    mean = float(differences.mean())
    return mean, float(mean - 2.26 * error), float(mean + 2.26 * error)


def run(one: Scenario, events: int, folder: Path, *, quiet: bool = False) -> dict[str, Any]:
    """One scenario in this process: what was measured and what of it does not hold."""
    config = parse(configuration(one, folder))
    allowed = sizing(config, watched(config))
    watcher = Watcher(Endless(one, events), folder, quiet=quiet)
    stages = build(config, source=watcher)                                       # type: ignore[arg-type]
    watcher.stages = stages
    try:
        stages.run()
        decided = sum(stream.decided_panes for stream in stages.panes.streams.values())
        counted = sum(stream.outcomes["counted"] for stream in stages.panes.streams.values())
        alarms, launches = len(stages.alarms), len(stages.trigger.ledger.launches)
        more = grown(watcher.sizes, one.models)
    finally:
        stages.close()
    return verdict(one, watcher, allowed.bytes, decided, more) | {
        "counted": counted, "alarms_shown": alarms, "launches": launches,
        "seconds": round(time.monotonic() - watcher.began, 1)}


def verdict(one: Scenario, watcher: Watcher, allowed: int, decided: int, more: Mapping[str, int]) -> dict[str, Any]:
    """The figures of a run, and under `wrong` each promise that they break."""
    warm = watcher.points[len(watcher.points) // 2:]
    peak = max(point.resident for point in watcher.points)
    filled = [point for point in warm if point.panes > PANES_MAX]
    is_filling = len(filled) < FILLED_POINTS_MIN
    mean, low, high = slope(warm if is_filling else filled)
    wrong = []
    if peak > allowed:
        wrong.append(f"{peak / MIB:.0f} MiB resident, the formula allows {allowed / MIB:.0f}")
    if not is_filling and low > 0 and high > GROWTH_MAX * filled[0].resident:
        wrong.append(f"resident memory grew by {mean / MIB:.1f} [{low / MIB:.1f}, {high / MIB:.1f}] MiB in the second half")
    full = decided / one.models >= 2 * FULL_PANES
    wrong += [f"{name}: {count} more entries at the end than at the half" for name, count in list(more.items())[:8]]
    for what, values in (("open files", [point.files_open for point in warm]), ("threads", [point.threads for point in warm])):
        if values[-1] > values[0] + 2:
            wrong.append(f"{what}: {values[0]} at the half, {values[-1]} at the end")
    if full and warm[-1].file > warm[0].file * (1 + FILE_GROWTH_MAX):
        wrong.append(f"state file: {warm[0].file / MIB:.1f} MiB at the half, {warm[-1].file / MIB:.1f} at the end")
    return {
        "scenario": one.name, "events": watcher.source.given, "panes_decided": decided, "peak_mib": round(peak / MIB, 1),
        "formula_mib": round(allowed / MIB, 1), "pool_mib": round(watcher.source.pool_bytes / MIB, 1),
        "growth_mib": [round(value / MIB, 2) for value in (mean, low, high)],
        "state_mib": [round(warm[0].file / MIB, 1), round(warm[-1].file / MIB, 1)], "filling": is_filling, "full": full,
        "files_open": [warm[0].files_open, warm[-1].files_open], "threads": [warm[0].threads, warm[-1].threads],
        "series": [warm[0].series, warm[-1].series], "grown": dict(list(more.items())[:8]), "wrong": wrong,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Does anything grow?")
    parser.add_argument("--events", type=int, default=50_000_000, help="records, over all scenarios or of the named one")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), help="this one alone, in this process")
    parser.add_argument("--models", type=int, help="of the scenario, instead of its own number")
    parser.add_argument("--pane-events", type=int, help="records of a model in one pane, instead of the scenario's")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too; - is standard output")
    args = parser.parse_args(argv)
    if args.scenario:
        one = SCENARIOS[args.scenario]
        one = sized(one, models=args.models or one.models, panes_of=args.pane_events or one.panes_of)
        least = POINTS * max(one.batch, one.models * PARTITIONS)
        if args.events < least:
            parser.error(f"--events: expected at least {least} for {one.name}, got {args.events}; measure more")
        with tempfile.TemporaryDirectory(prefix="tidemark-soak-") as folder:
            figures = [run(one, args.events, Path(folder))]
    else:
        whole, figures = sum(one.events for one in SCENARIOS.values()), []
        for one in SCENARIOS.values():
            events = max(POINTS * max(one.batch, one.models * PARTITIONS), one.events * args.events // whole)
            done = subprocess.run([sys.executable, "-m", "benchmarks.soak", "--scenario", one.name, "--events", str(events),
                                   "--json", "-"], stdout=subprocess.PIPE, text=True, check=False)
            figures.append(json.loads(done.stdout) if done.stdout else {"scenario": one.name, "wrong": ["it ended early"]})
    return _told(figures, args.json)


def _told(figures: list[dict[str, Any]], target: str | None) -> int:
    for one in figures if target != "-" else ():
        print(json.dumps(one, indent=1))
    if target == "-":
        print(json.dumps(figures[0] if len(figures) == 1 else figures))
    elif target:
        Path(target).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for one in figures:
        for words in one["wrong"]:
            print(f"soak {one['scenario']}: {words}", file=sys.stderr)
    return 1 if any(one["wrong"] for one in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
