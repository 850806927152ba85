"""Run one target under atheris, guided by the coverage of our own modules.

    python -m tests.fuzz.drive TARGET [libFuzzer's options: -max_total_time=60 -runs=1000 -seed=1 CORPUS ...]

New inputs that reach new code go to the first folder that is named, found defects to the working folder as `crash-*`.
`make fuzz SECONDS=600` runs every target so. A defect that was found becomes a file of `corpus/TARGET`, and stays.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path


def main(argv: list[str]) -> None:
    """Instrument, then fuzz until libFuzzer's own limits end it."""
    import atheris

    name, *options = argv[1:]
    with atheris.instrument_imports(include=["monitor", "detectors", "yaml"]):
        from tests.fuzz.targets import TARGETS
    logging.disable(logging.CRITICAL)
    target = TARGETS[name]
    atheris.Setup([f"fuzz-{name}", *options, str(Path(__file__).parent / "corpus" / name)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
