"""The whole of the tests as three runs of pytest, two side by side: `python -m tests.streams [options of pytest]`.

    computing   everything else: units, laws, quality, golden files, fuzzing, the documents' examples
    serving     what starts real servers and mostly waits for them
    killing     what kills one process of ours after the other, and restarts it

As soon as one of the first two has ended the third begins, on a machine of four cores and more at once: that takes little
more than half of their sum. Each has servers of its own, where it needs any (0.3 GB for a Kafka; a pytest holds 0.5 to 1 GB,
a training with PyTorch half of one more), its own ports (tests.conftest.free_port) and its own folder. What computing says
is seen at once; what the others say lies in files meanwhile and is shown behind it, so that nothing is torn. Options go to
all. The exit code is 0 only if all ended with 0; a stream in which nothing was collected (pytest's 5) has failed, too, for it
was to have tests. Nothing can fall between the streams: computing is told of nothing but what it leaves out, and that is what
the others are given (tests/test_streams.py).

With names of tests or options such as -k, which choose tests, use pytest itself, as `make test ARGS=...` does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

CHECKOUT = Path(__file__).resolve().parent.parent
#: After how long one that still runs is named, for those who end what says nothing.
SILENT_SECONDS = 240.0
WAITING = {"serving": ("tests/integration", "tests/replicas"), "killing": ("tests/crash",)}
#: Streams at a time: two of them keep two cores busy, three would make their tests slow, and waits for others miss their end.
SIDE_BY_SIDE = 2 if len(os.sched_getaffinity(0)) < 4 else 3


def commands(options: list[str]) -> dict[str, list[str]]:
    """What runs each stream."""
    pytest = [sys.executable, "-m", "pytest", *options]
    left_out = [f"--ignore={folder}" for folders in WAITING.values() for folder in folders]
    return {"computing": [*pytest, *left_out]} | {name: [*pytest, *folders] for name, folders in WAITING.items()}


def _interruptible() -> None:
    """What a shell starts in the background ignores SIGINT, and with it all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(streams: dict[str, list[str]], side_by_side: int = SIDE_BY_SIDE) -> int:
    """Run them, so many side by side in their order, the first one seen; 0 if all ended with 0."""
    begun = said = time.monotonic()
    ended: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, subprocess.Popen[bytes]] = {}
        kept: dict[str, IO[bytes]] = {}
        stopped: list[int] = []

        def begin(name: str) -> None:
            if running:
                kept[name] = stack.enter_context(tempfile.NamedTemporaryFile("w+b", prefix=f"tidemark-{name}-"))
                print(f"streams: {name} runs beside this and is shown behind it; until then see {kept[name].name}", flush=True)
            log = kept.get(name)
            running[name] = subprocess.Popen(streams[name], cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             preexec_fn=_interruptible)

        def end(number: int, _: object) -> None:
            stopped.append(number)                  # what has not begun does not
            for one in running.values() if number == signal.SIGTERM else ():    # Ctrl-C reaches them by itself
                one.send_signal(signal.SIGINT)      # pytest ends its servers on this one

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        while len(ended) < (len(running) if stopped else len(streams)):
            for name in [name for name in streams if name not in running]:
                if not stopped and len(running) - len(ended) < side_by_side:
                    begin(name)
                    if stopped:                     # told to end in this moment
                        running[name].send_signal(signal.SIGINT)
            time.sleep(0.2)
            for name, one in running.items():
                if name not in ended and one.poll() is not None:
                    ended[name], said = one.returncode, time.monotonic()
                    print(f"\nstreams: {name} ended with {one.returncode} after {(said - begun) / 60:.1f} min", flush=True)
            if ended and time.monotonic() > said + SILENT_SECONDS:
                said = time.monotonic()
                still = ", ".join(sorted(running.keys() - ended))
                print(f"streams: {still} still running after {(said - begun) / 60:.0f} min", flush=True)
        for name, log in kept.items():
            print(f"\nstreams: what {name} said", flush=True)
            log.seek(0)
            shutil.copyfileobj(log, sys.stdout.buffer)
            sys.stdout.flush()
    failed = [f"{name} ({ended.get(name, 'not begun')})" for name in streams if ended.get(name, 1)]
    print(f"streams: {'failed: ' + ', '.join(failed) if failed else 'all ended well'}, "
          f"after {(time.monotonic() - begun) / 60:.1f} min", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run(commands(sys.argv[1:])))
