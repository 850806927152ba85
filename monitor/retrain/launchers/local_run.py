"""The companion process of one local training: claims the launch, runs the trainer, writes down how it ended.

    python -I -S local_run.py LAUNCH_ID OUTPUT_FOLDER COMMAND...

The service may be killed at any instruction, so it must be no ancestor that anyone waits for. This companion leads a
session of its own and is the one that knows:

 1. It writes `launch.json` (launch id, its process id, its start in clock ticks, the boot's id) by a hard link, which
    fails where one exists: whoever starts the same launch twice gets one training, and the second companion leaves.
 2. It runs the trainer in its own process group, with the output it inherited (log.txt).
 3. It writes `exit.json` (code, or why the command could not start) through a rename, whole or not at all.

When the companion itself is killed, the kernel kills the trainer with it (PR_SET_PDEATHSIG), so a launch whose
companion is gone and that has no exit.json is over. Asked to end (SIGTERM goes to the whole group), the companion
stays to write down the trainer's end. It is run by its path and imports the standard library only: it starts in 20 ms
and sees no configuration and no secret. `local` starts it and reads what it writes.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1                      # <sys/prctl.h>
COMMAND_NOT_STARTED = 127                 # what a shell answers for a command that it cannot find


def start_ticks(pid: int) -> int | None:
    """Clock ticks from boot to the start of a living process; None when it is gone or only waits to be reaped.

    With the boot's id it tells a process from a later one of the same number.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat[stat.rindex(")") + 2:].split()      # the name in parentheses may hold spaces and ")"
    return None if state in "ZX" else int(fields[18])         # field 22 of proc(5), counted from field 4


def boot_id() -> str:
    """What the kernel drew at its start."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def write_whole(path: Path, content: dict[str, object], *, claim: bool = False) -> bool:
    """Write JSON so that a reader sees all of it or nothing; with `claim`, False where the file is already there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    if not claim:
        draft.replace(path)
        return True
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def _die_with_companion() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(launch_id: str, folder: Path, command: list[str]) -> int:
    """Claim, run, write the end; returns 0 when this companion did its work, also where another had claimed."""
    # A function, not SIG_IGN: ignoring would be inherited by the trainer, which then could not be asked to end.
    signal.signal(signal.SIGTERM, lambda *_: None)
    own = os.getpid()
    claim = {"id": launch_id, "pid": own, "ticks": start_ticks(own), "boot": boot_id(), "started": time.time()}
    if not write_whole(folder / "launch.json", claim, claim=True):
        return 0
    try:
        trainer = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_companion)
    except OSError as error:
        reason = f"cannot run {command[0]!r}: {error.strerror or error}"
        write_whole(folder / "exit.json", {"id": launch_id, "code": COMMAND_NOT_STARTED, "error": reason})
        return 0
    code = trainer.wait()
    write_whole(folder / "exit.json", {"id": launch_id, "code": code, "ended": time.time()})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
