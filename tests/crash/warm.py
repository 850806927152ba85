"""A parent that has imported the service and forks it: `python -m tests.crash.warm`, one life after the other.

A life is the real command (`tidemark run -c FILE`) in a process of its own; it only skips the 2 s that Python needs for
imports, so that hundreds of kills fit into a test. It reads lines `{"argv": [...], "log": PATH, "board": PATH}` and
answers each with `{"pid": N}`, and with `{"code": N}` when that process has ended (-9: SIGKILL). With `"kill": [STEP, CALL]`
the life ends itself there (tests.crash.killed).

The board is a small shared file on which a life notes in which phase it is, so that whoever kills it can aim, and can say
afterwards what was hit. The kill itself comes from outside, at any instruction, inside SQLite and the kernel, too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import mmap
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.crash import killed

PHASES = ("start", "read", "count", "judge", "letters", "capture", "files", "transaction", "forget", "outbox", "snapshot",
          "launch", "cutover", "ending", "ended")
#: The board: how often each phase was entered, then the phase of now.
COUNTS = struct.Struct(f"<{len(PHASES)}I")
BOARD_BYTES = COUNTS.size + 1


class Board:
    """The shared page, as the life sees it and as the killer does."""

    def __init__(self, path: str | Path) -> None:
        with open(path, "r+b") as file:
            self._page = mmap.mmap(file.fileno(), BOARD_BYTES)

    @staticmethod
    def make(path: Path) -> Board:
        path.write_bytes(bytes(BOARD_BYTES))
        return Board(path)

    @property
    def phase(self) -> str:
        return PHASES[self._page[COUNTS.size]]

    def entered(self, phase: str) -> int:
        """How often a phase was entered."""
        return int(COUNTS.unpack_from(self._page)[PHASES.index(phase)])

    def enter(self, phase: str) -> int:
        """Note a phase; returns the one before."""
        number, before = PHASES.index(phase), self._page[COUNTS.size]
        (count,) = struct.unpack_from("<I", self._page, 4 * number)
        struct.pack_into("<I", self._page, 4 * number, count + 1)
        self._page[COUNTS.size] = number
        return before

    def back(self, number: int) -> None:
        self._page[COUNTS.size] = number


def noted(board: Board) -> None:
    """Let the phases of this process be seen."""
    from monitor.cutover import CutOver
    from monitor.decide.policy import Judge, Policy
    from monitor.ingest.deadletters import DeadLetters
    from monitor.pipeline import Stages
    from monitor.retrain.launch import Retraining
    from monitor.retrain.launchers.local import Local
    from monitor.state.capture import Capture
    from monitor.state.panes import Panes
    from monitor.state.store import Store

    def around(owner: Any, name: str, phase: str) -> None:
        whole: Callable[..., Any] = getattr(owner, name)

        def seen(*args: Any, **kwargs: Any) -> Any:
            before = board.enter(phase)
            try:
                return whole(*args, **kwargs)
            finally:
                board.back(before)

        setattr(owner, name, seen)

    for owner, name, phase in (
        (Stages, "run", "read"), (Panes, "add", "count"), (Judge, "__call__", "judge"), (Policy, "__call__", "judge"),
        (DeadLetters, "flush", "letters"), (Capture, "write", "capture"), (Capture, "_to_files", "files"),
        (Capture, "forget", "forget"), (Retraining, "advance", "outbox"), (Capture, "snapshot", "snapshot"),
        (Local, "start", "launch"), (CutOver, "begin", "cutover"), (Stages, "close", "ending"),
    ):
        around(owner, name, phase)
    transaction = Store.transaction

    @contextlib.contextmanager
    def seen(store: Store) -> Iterator[Any]:
        before = board.enter("transaction")
        try:
            with transaction(store) as db:
                yield db
        finally:
            board.back(before)

    Store.transaction = seen  # type: ignore[method-assign]


def live(life: dict[str, Any]) -> int:
    """The child: the command, with its output in a file."""
    from monitor import cli

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.open(life["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    random.seed()                                   # jitter must not be the same in every life
    if life.get("board"):
        noted(Board(life["board"]))
    if life.get("kill"):
        killed.kill_at(*life["kill"])
    return cli.main(life["argv"])


def main() -> int:
    for module in ("monitor.commands.run", "monitor.retrain.launchers.local", "pyarrow.parquet"):
        importlib.import_module(module)
    importlib.import_module("pyarrow").array(["a"])  # it imports pandas at its first array
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            return live(json.loads(line))
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
