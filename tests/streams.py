"""The whole of the tests as two runs of pytest side by side: `python -m tests.streams [options of pytest]`.

    computing   everything else: units, laws, quality, golden files, fuzzing, the documents' examples
    serving     SERVING: what starts real servers and processes and mostly waits for them

On two cores that takes little more than the longer of the two instead of their sum. Each has servers of its own, where it
needs any (0.3 GB for a Kafka; the two pytests hold 1 and 0.5 GB, a training with PyTorch half of one more), its own ports
(tests.conftest.free_port) and its own folder. What computing says is seen at once; what serving says lies in a file
meanwhile and is shown as a whole behind it, so that neither is torn. Options go to both. The exit code is 0 only if both
ended with 0; a stream in which nothing was collected (pytest's 5) has failed, too, for it was to have tests. Nothing can
fall between the streams: computing is told of nothing but what it leaves out, and that is serving's list (tests/test_streams.py).

With names of tests or options such as -k, which choose tests, use pytest itself, as `make test ARGS=...` does.
"""

from __future__ import annotations

import contextlib
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
SERVING = ("tests/crash", "tests/integration", "tests/replicas")


def commands(options: list[str]) -> dict[str, list[str]]:
    """What runs each stream."""
    pytest = [sys.executable, "-m", "pytest", *options]
    return {"computing": [*pytest, *(f"--ignore={folder}" for folder in SERVING)], "serving": [*pytest, *SERVING]}


def _interruptible() -> None:
    """What a shell starts in the background ignores SIGINT, and with it all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(streams: dict[str, list[str]]) -> int:
    """Run them side by side, the first one seen; 0 if all ended with 0."""
    begun = said = time.monotonic()
    ended: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, subprocess.Popen[bytes]] = {}
        kept: dict[str, IO[bytes]] = {}
        for name, command in streams.items():
            if running:
                kept[name] = stack.enter_context(tempfile.NamedTemporaryFile("w+b", prefix=f"tidemark-{name}-"))
                print(f"streams: {name} runs beside this and is shown behind it; until then see {kept[name].name}", flush=True)
            log = kept.get(name)
            running[name] = subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             preexec_fn=_interruptible)

        def end(*_: object) -> None:
            for one in running.values():
                one.send_signal(signal.SIGINT)      # pytest ends its servers on this one

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, lambda *_: None)   # Ctrl-C reaches them by itself
        while len(ended) < len(running):
            time.sleep(0.2)
            for name, one in running.items():
                if name not in ended and one.poll() is not None:
                    ended[name], said = one.returncode, time.monotonic()
                    print(f"\nstreams: {name} ended with {one.returncode} after {(said - begun) / 60:.1f} min", flush=True)
            if ended and time.monotonic() > said + SILENT_SECONDS:
                said = time.monotonic()
                still = ", ".join(running.keys() - ended)
                print(f"streams: {still} still running after {(said - begun) / 60:.0f} min", flush=True)
        for name, log in kept.items():
            print(f"\nstreams: what {name} said", flush=True)
            log.seek(0)
            shutil.copyfileobj(log, sys.stdout.buffer)
            sys.stdout.flush()
    failed = [f"{name} ({code})" for name, code in ended.items() if code]
    print(f"streams: {'failed: ' + ', '.join(failed) if failed else 'all ended well'}, "
          f"after {(time.monotonic() - begun) / 60:.1f} min", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run(commands(sys.argv[1:])))
