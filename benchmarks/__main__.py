"""Every benchmark of this folder, one after the other in a process of its own; 1 if any missed a target.

    python -m benchmarks                     all of them
    python -m benchmarks export_100k         those that are named
    python -m benchmarks --quick             on a tenth of the input, one turn each; options go to every benchmark
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")     # as the service has it: idle threads that spin are no work

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
    for name in names or known():
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], cwd=_FOLDER.parent, check=False).returncode:
            missed.append(name)
        print(flush=True)
    if missed:
        print(f"benchmarks: missed a target or failed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
