"""How benchmarks here measure: ratios against a named peer in the same run, of process CPU, after equal results.

An absolute number says as much of the machine as of the code; a ratio survives another machine. So every benchmark runs
the peer and ours in turn in one process, compares the results first, takes the median of the turns' ratios and states the
ratio that it must reach. A missed target is exit code 1, so that CI can hold it.

    bench = Bench("export 100k series")                        # reads --repeat, --json, --scale and --quick
    series = bench.sized(100_000)
    bench.compare("changed each cycle", peer=peer, ours=ours, target=8, equal=same)
    bench.bound("resident memory, 4x / 1x events", ratio, at_most=1.05)
    bench.fact("bytes per series", 98.3, "B")
    sys.exit(bench.finish())

Process CPU counts all threads of this process and none of others. It is no constant, though: what shares the caches and
the core's other half makes the same work up to twice as dear, for seconds at a time. So the two are run directly one after
the other, whoever comes first changes from turn to turn, and each turn gives one ratio: a machine that slows down slows both
sides of it. The collector runs between turns and not within them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

#: Share of the input that `--quick` takes.
QUICK_SCALE = 0.1

Theirs = TypeVar("Theirs")
Ours = TypeVar("Ours")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result; `met` is None where nothing was asked for."""

    name: str
    value: float
    unit: str
    target: str = ""
    met: bool | None = None
    detail: str = ""


class Bench:
    """The rows of one benchmark, its table, its JSON and its exit code."""

    def __init__(self, title: str, argv: Sequence[str] | None = None, *, repeat: int = 5) -> None:
        parser = argparse.ArgumentParser(description=title)
        parser.add_argument("--repeat", type=int, default=repeat, help="turns of which the median is taken")
        parser.add_argument("--json", metavar="FILE", help="write the result there, too; - is standard output")
        parser.add_argument("--scale", type=float, default=1.0, help="share of the input; targets hold at 1 only")
        parser.add_argument("--quick", action="store_true", help="one turn on a tenth of the input")
        options = parser.parse_args(argv)
        if options.quick:
            options.repeat, options.scale = 1, min(options.scale, QUICK_SCALE)
        self.title, self.repeat, self._json = title, max(1, options.repeat), options.json
        self._scale: float = options.scale
        self.rows: list[Row] = []

    def sized(self, full: int, least: int = 1) -> int:
        """How much of an input of `full` items this run takes."""
        return max(least, round(full * self._scale))

    def compare(self, name: str, *, peer: Callable[[], Theirs], ours: Callable[[], Ours], target: float,
                equal: Callable[[Theirs, Ours], bool] | None = None, peer_name: str = "peer") -> float:
        """CPU of the peer / CPU of ours, at least `target`; `equal` sees both results of the rehearsal."""
        turns = self._turns(name, peer, ours, f">= {target:g}", equal)
        if turns is None:
            return float("nan")
        ratio, words = ratio_of(turns)
        slow, fast = (statistics.median(turn[side] for turn in turns) * 1e3 for side in (0, 1))
        self.bound(name, ratio, at_least=target, detail=f"{peer_name} {slow:.1f} ms, ours {fast:.1f} ms, {words}")
        return ratio

    def compare_at_most(self, name: str, *, easy: Callable[[], Theirs], hard: Callable[[], Ours], at_most: float,
                        equal: Callable[[Theirs, Ours], bool] | None = None, names: tuple[str, str] = ("easy", "hard"),
                        ) -> float:
        """CPU of ours on a hard input / CPU of ours on an easy one, at most `at_most`; `equal` as in `compare`."""
        turns = self._turns(name, easy, hard, f"<= {at_most:g}", equal)
        if turns is None:
            return float("nan")
        ratio, words = ratio_of([(hard_seconds, easy_seconds) for easy_seconds, hard_seconds in turns])
        low, high = (statistics.median(turn[side] for turn in turns) * 1e3 for side in (0, 1))
        self.bound(name, ratio, at_most=at_most, detail=f"{names[0]} {low:.2f} ms, {names[1]} {high:.2f} ms, {words}")
        return ratio

    def _turns(self, name: str, first: Callable[[], Theirs], second: Callable[[], Ours], asked: str,
               equal: Callable[[Theirs, Ours], bool] | None) -> list[tuple[float, float]] | None:
        """CPU of both in every turn; None, and a missed row, where their results differ."""
        one, other = first(), second()
        if equal is not None and not equal(one, other):
            self._add(Row(name, float("nan"), "x", asked, False, "results differ"))
            return None
        del one, other
        turns = []
        for turn in range(self.repeat):
            if turn % 2:
                other_seconds = cpu_of(second)
                turns.append((cpu_of(first), other_seconds))
            else:
                turns.append((cpu_of(first), cpu_of(second)))
        return turns

    def bound(self, name: str, value: float, *, at_least: float | None = None, at_most: float | None = None,
              unit: str = "x", detail: str = "") -> None:
        """A value that was measured elsewhere, with what it must reach."""
        asked = [f"{sign} {limit:g}" for sign, limit in ((">=", at_least), ("<=", at_most)) if limit is not None]
        met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)   # NaN meets nothing
        self._add(Row(name, value, unit, " and ".join(asked), met, detail))

    def fact(self, name: str, value: float, unit: str, detail: str = "") -> None:
        """A value that nothing is asked of."""
        self._add(Row(name, value, unit, detail=detail))

    def _add(self, row: Row) -> None:
        """Keep a row, and say on standard error that it is there: the table comes at the end."""
        self.rows.append(row)
        print(f"  {row.name}: {row.value:.4g} {row.unit}", file=sys.stderr, flush=True)

    def finish(self) -> int:
        """Print the table (and the JSON); 0 if every target was met, else 1."""
        missed = [row for row in self.rows if row.met is False]
        document = {"title": self.title, "python": platform.python_version(), "machine": platform.machine(),
                    "cores": os.cpu_count(), "repeat": self.repeat, "met": not missed,
                    "rows": [asdict(row) | {"value": None if row.value != row.value else row.value} for row in self.rows]}
        if self._json == "-":
            print(json.dumps(document))
        else:
            print(self._table())
            if self._json:
                Path(self._json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        for row in missed:
            print(f"{self.title}: {row.name}: expected {row.target} {row.unit}, got {row.value:.3g}", file=sys.stderr)
        return 1 if missed else 0

    def _table(self) -> str:
        cells = [("", "value", "target", "", "")]
        cells += [(row.name, f"{row.value:.4g} {row.unit}", row.target,
                   {None: "", True: "met", False: "MISSED"}[row.met], row.detail) for row in self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(4)]
        lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
                 for row in cells]
        return "\n".join([self.title, *lines])


def ratio_of(turns: Sequence[tuple[float, float]]) -> tuple[float, str]:
    """The median of the turns' ratios, first to second, and the middle half of them in words."""
    ratios = sorted(first / max(second, 1e-9) for first, second in turns)
    quarter = len(ratios) // 4
    return statistics.median(ratios), f"turns {ratios[quarter]:.3g} - {ratios[-1 - quarter]:.3g}"


def cpu_of(work: Callable[[], object]) -> float:
    """Process CPU of one call, seconds, with the collector off as `timeit` has it."""
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        work()
        return time.process_time() - start
    finally:
        gc.enable()
