"""A process that has imported the service and forks replicas: each is a real process, and starts in no time.

    start CONFIG LOG [STEP CALL]  -> its process id; with a step of tests.crash.killed it kills itself there
    poll ID                       -> its exit code, or `running`

Importing takes seconds of a processor; a test that kills thirty replicas would else spend its time on that, and kill most
of them before they had begun.
"""

from __future__ import annotations

import faulthandler
import os
import sys

from monitor import cli
from monitor.replicas import Replica
from monitor.retrain.promotions.file import File
from tests.crash.killed import STEPS, kill_at

STEPS |= {"promote": (File, "promote"), "judge": (Replica, "_judge")}


def child(config: str, log: str, step: str = "", call: str = "1") -> None:
    """Become a replica; never returns."""
    os.setsid()
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(target, 1)
    os.dup2(target, 2)
    faulthandler.enable()                           # SIGABRT tells where every thread is
    code = 1
    try:
        if step:
            kill_at(step, int(call))
        code = cli.main(["run", "-c", config])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import monitor.commands.run  # noqa: F401 (what a replica needs is here before the first fork)

    print("ready", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "start":
            number = os.fork()
            if number == 0:
                child(*rest)
            print(number, flush=True)
        else:
            found, status = os.waitpid(int(rest[0]), os.WNOHANG)
            print(os.waitstatus_to_exitcode(status) if found else "running", flush=True)
