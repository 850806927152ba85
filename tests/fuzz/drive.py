"""Run targets under atheris, guided by the coverage of our own modules.

    python -m tests.fuzz.drive TARGET [libFuzzer's options: -max_total_time=60 -runs=1000 -seed=1 CORPUS ...]
    python -m tests.fuzz.drive TARGET=RUNS,TARGET=RUNS,... LOGS [options]

New inputs that reach new code go to the first folder that is named, found defects to the working folder as `crash-*`.
`make fuzz SECONDS=600` runs every target so. A defect that was found becomes a file of `corpus/TARGET`, and stays.

Several targets are several processes, one after the other, forked from one that has imported and instrumented everything:
that takes ten times as long as the inputs of a test run do. Each one's output goes to LOGS/TARGET.log, and its exit code, as
the last line, too.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from pathlib import Path


def main(argv: list[str]) -> None:
    """Instrument, then fuzz until libFuzzer's own limits end it."""
    import atheris

    names, *options = argv[1:]
    with atheris.instrument_imports(include=["monitor", "detectors", "yaml"]):
        from tests.fuzz.targets import TARGETS
    logging.disable(logging.CRITICAL)

    def fuzz(name: str, options: list[str]) -> None:
        # libFuzzer ends by exit() with Python's lock held, for which a thread of Arrow's may wait while exit() waits for it.
        libc = ctypes.CDLL(None)
        libc.on_exit(libc._exit, None)
        atheris.Setup([f"fuzz-{name}", *options, str(Path(__file__).parent / "corpus" / name)], TARGETS[name])
        atheris.Fuzz()

    if "=" not in names:
        fuzz(names, options)
        return
    logs, *options = options
    for name, runs in (one.split("=") for one in names.split(",")):
        path = Path(logs) / f"{name}.log"
        child = os.fork()
        if child == 0:
            log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            fuzz(name, [f"-runs={runs}", *options])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        with path.open("a") as file:
            file.write(f"\nexit code {os.waitstatus_to_exitcode(status)}\n")


if __name__ == "__main__":
    main(sys.argv)
