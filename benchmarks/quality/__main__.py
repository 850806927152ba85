"""The proof of the detectors, from one seed: false alarms, honesty of the knob, delay; ours beside the peers.

    python -m benchmarks.quality --seed 7                      under five minutes on two cores
    python -m benchmarks.quality --seed 7 --quick              a minute and a half; too short to conclude from
    python -m benchmarks.quality --seed 7 --full --jobs 16     intervals a third as wide
    python -m benchmarks.quality --seed 7 --json result.json   everything that was counted
    python -m benchmarks.quality --from result.json            the tables of an earlier run
    python -m benchmarks.quality --seed 7 --write              docs/detection-quality.md and its pictures anew

Neighbours: `runs` computes, `tables` and `pictures` show.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, show, write; 0 unless the command line was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description="False alarms and delays, ours and peers'.")
    parser.add_argument("--seed", type=int, default=7, help="every stream is made from it (7)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="a few runs of each")
    size.add_argument("--full", dest="size", action="store_const", const="full", help="four times as many runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (as many as cores)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the counts there; - is standard output")
    parser.add_argument("--from", metavar="FILE", type=Path, dest="earlier", help="show the counts of this file; run nothing")
    parser.add_argument("--write", action="store_true", help="write the page, its pictures and its counts")
    options = parser.parse_args(argv)
    if options.jobs < 1 or options.seed < 0:
        print(f"quality: expected --jobs of 1 and --seed of 0 or more, got {options.jobs} and {options.seed}", file=sys.stderr)
        return 2
    console = Console(stderr=True)
    if options.earlier:
        try:
            result = json.loads(options.earlier.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            print(f"quality: {options.earlier}: expected the JSON of an earlier run, got {error}", file=sys.stderr)
            return 2
    else:
        # Before any process imports numpy: two threads in each of two processes only wait for one another.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("DO_NOT_TRACK", "1")
        result = _run(options.seed, options.size or "default", options.jobs, console)
        console.print(f"{sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]):.0f} s of processor time.")
    from benchmarks.quality import tables

    if options.json == Path("-"):
        print(tables.as_json(result), end="")
    else:
        if options.json:
            options.json.write_text(tables.as_json(result), encoding="utf-8")
        print("\n\n".join(tables.all_tables(result).values()))
    if options.write:
        from benchmarks.quality import pictures

        tables.write_page(ROOT / "docs" / "detection-quality.md", result)
        figures = ROOT / "docs" / "figures"
        figures.mkdir(exist_ok=True)
        (figures / "quality.json").write_text(tables.as_json(result), encoding="utf-8")
        pictures.draw(result, figures)
        console.print("Wrote docs/detection-quality.md and docs/figures/quality*.")
    return 0


def _run(seed: int, size: str, jobs: int, console: Console) -> dict[str, Any]:
    """The counts, with a bar for each of the two phases."""
    from benchmarks.quality import runs

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, Any] = {}

        def advance(phase: str, done: int, total: int) -> None:
            if phase not in bars:
                bars[phase] = progress.add_task(phase, total=total)
            progress.update(bars[phase], completed=done)

        return runs.run_all(seed, runs.SIZES[size], jobs, advance)


if __name__ == "__main__":
    sys.exit(main())
