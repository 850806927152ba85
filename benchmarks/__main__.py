"""Every benchmark of this folder, one after the other in a process of its own; 1 if any missed a target.

One that fails, or is not done after ten minutes, does not stop the others. The rows go to standard output, the way there to
standard error.

    python -m benchmarks                     all of them
    python -m benchmarks export_100k         those that are named
    python -m benchmarks --quick             on a tenth of the input, one turn each; options go to every benchmark
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")     # as the service has it: idle threads that spin are no work

_SECONDS_MAX = 600
_FOLDER = Path(__file__).resolve().parent
_NOT_BENCHMARKS = {"__init__", "__main__", "events", "measure", "parity_figures", "replicas", "soak", "soak_world", "topic"}


def known() -> list[str]:
    """Names of all benchmarks."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem not in _NOT_BENCHMARKS)


def main(arguments: list[str]) -> int:
    """Run the benchmarks of these names, or all; from the first option on the words belong to them."""
    split = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    names, options = arguments[:split], arguments[split:]
    unknown = [name for name in names if name not in known()]
    if unknown:
        print(f"benchmarks: expected some of {', '.join(known())}, got {unknown[0]!r}; name one of them", file=sys.stderr)
        return 2
    missed = []
    chosen = names or known()
    for place, name in enumerate(chosen, start=1):
        print(f"benchmarks: {place} of {len(chosen)}, {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        if outcome := _outcome(name, options):
            missed.append(f"{name} ({outcome})")
        print(f"benchmarks: {name} took {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        print(flush=True)
    if missed:
        print(f"benchmarks: {len(missed)} of {len(chosen)} fell short: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def _outcome(name: str, options: list[str]) -> str:
    """What went wrong with one benchmark; empty where nothing did."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    try:
        code = subprocess.run(command, cwd=_FOLDER.parent, check=False, timeout=_SECONDS_MAX).returncode
    except subprocess.TimeoutExpired:
        return f"not done after {_SECONDS_MAX} s"
    return "" if code == 0 else "missed a target" if code == 1 else f"ended with code {code}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
