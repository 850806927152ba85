"""`python -m monitor.commands.report_worker ROWS HTML SECONDS NICENESS`: one report of evidently, made where it can harm nobody.

The process limits itself before it loads anything: its priority, so many seconds (an alarm clock that ends it even
if evidently hangs), MEMORY_BYTES of memory, first in the row when the system is short of it, gone when the service is gone,
and no network: an audit hook refuses every connection and every look-up of a name, whoever asks for it.

ROWS holds what `packed` wrote: the reference's rows, and the stored samples of the window's panes as they are. The document
appears under its name whole or not at all. The last line on stderr says how many rows went in and what was left out, or
what was wrong. Neighbours: `monitor.expose.report_maker` runs it, `detectors.parity_report` draws.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Address space, bytes: evidently takes 0.7 GB of it (350 MB of memory) at 24 columns; beyond it allocations fail.
MEMORY_BYTES = 6 << 30
#: Rows of a side that evidently is given: its pictures and tests say no more with more, and its pictures grow.
ROWS_MAX = 5_000
_PR_SET_PDEATHSIG = 1


def limit(seconds: float, niceness: int) -> None:
    """Take every limit that this process puts on itself; what the system does not know of is left out."""
    os.nice(niceness)
    signal.setitimer(signal.ITIMER_REAL, seconds)               # SIGALRM ends a process that does not expect it
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.addaudithook(_refuse_network)


def _refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        raise PermissionError(f"a report reaches nobody: {event} refused")


def main(argv: Sequence[str]) -> int:
    """Make one report; 0 when it is there."""
    rows, made = Path(argv[0]), Path(argv[1])
    limit(float(argv[2]), int(argv[3]))
    import warnings

    import msgspec

    warnings.simplefilter("ignore")
    from detectors.parity_report import drift_html
    from monitor.errors import TidemarkError
    from monitor.expose.report_maker import Said
    from monitor.reporting import Packed, unpacked

    try:
        reference, window, kinds = unpacked(msgspec.msgpack.decode(rows.read_bytes(), type=Packed), ROWS_MAX)
        drawn = drift_html(reference, window, kinds)
        waiting = made.with_name(f".{made.name}.{os.getpid()}")
        waiting.write_text(drawn.html, encoding="utf-8")
        os.replace(waiting, made)
    except (ImportError, OSError, ValueError, MemoryError, TidemarkError, msgspec.DecodeError) as error:
        print(str(error) or type(error).__name__, file=sys.stderr)
        return 1
    why = "; ".join(f"{name}: {words}" for name, words in list(drawn.left_out.items())[:10])
    said = Said((_rows(window), _rows(reference)), f"Left out: {why}." if why else "")
    print(msgspec.json.encode(said).decode(), file=sys.stderr)
    return 0


def _rows(side: Mapping[str, NDArray[np.float64] | Sequence[str | None]]) -> int:
    return max((len(values) for values in side.values()), default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
