"""Makes evidently's half of reports, one at a time, in a process of its own: the loop gives, looks in, and never waits.

    offer     the alarm's facts are kept, and what evidently needs is written down; it waits for its turn
    advance   look whether the running process has ended or is over its time; start the next one

Nothing that evidently does reaches the loop: it runs at the lowest priority, with a limit of time that is enforced twice
(here, and by the process itself should we be gone), with a limit of memory, without a network, and is the first that the
system ends when memory is short. A crash, a hang or a full disk is one more `failed` report, which says why.

The invariant: every report that was offered ends in exactly one outcome: made, plain (there is nothing to give to evidently),
failed or dropped (QUEUE waited already, or newer alarms needed the shelf). One that is interrupted by the service's end stays
`waiting` on the shelf, and begins anew at the next start. Cost in the loop: one small file per alarm, one poll per turn.
Neighbours: `report_shelf` has the files, `monitor.reporting` offers, `commands.report_worker` is the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from monitor.documents import read_json
from monitor.errors import one_line
from monitor.expose.report_facts import Facts, State
from monitor.expose.report_shelf import Shelf

log = logging.getLogger("tidemark")

#: Reports that wait at most; more alarms at once are one fault upstream, and one report shows it as well as sixteen.
QUEUE = 16
#: The process: it is not imported here, as it knows stages that this one does not.
WORKER = "monitor.commands.report_worker"
#: What of our environment the process is given: no secret stands in these.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT")
#: Between the end of its time and the end of our patience with a process that cannot be killed.
_KILL_SECONDS = 5.0
#: Characters of what a process said that are kept.
_WORDS_MAX = 600


@dataclass(slots=True)
class _Running:
    name: str
    model: str
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    begun: float


@dataclass(slots=True)
class Maker:
    """The reports of one service.

    seconds : that one may take          note : told (model, seconds) of every one that was made
    """

    shelf: Shelf
    seconds: float
    note: Callable[[str, float], None] = lambda model, seconds: None
    monotonic: Callable[[], float] = time.monotonic
    worker: str = WORKER
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    _waiting: dict[str, str] = field(default_factory=dict)          # report -> model, the oldest first
    _running: _Running | None = None

    def offer(self, facts: Facts, rows: bytes | None) -> None:
        """Keep our half of a report and, with rows, have evidently's made; a newer one of the same alarm takes its place."""
        model = facts.alarm.model
        with self._guarded(facts.name, model):
            if rows is None:
                self.shelf.remove(facts.name, ".html")
                self.shelf.put(replace(facts, state="none"))
                self.outcomes[model, "plain"] += 1
            elif len(self._waiting) >= QUEUE and facts.name not in self._waiting:
                self.shelf.put(replace(facts, state="failed", why=f"{QUEUE} other reports waited already"))
                self.outcomes[model, "dropped"] += 1
            else:
                if self._running is not None and self._running.name == facts.name:
                    self._stop()                    # it is about an earlier change of the same alarm
                    self.outcomes[model, "dropped"] += 1
                elif facts.name in self._waiting:
                    self.outcomes[model, "dropped"] += 1
                self.shelf.put_rows(facts.name, rows)
                self.shelf.put(replace(facts, state="waiting"))
                self._waiting[facts.name] = model

    def resume(self, facts: Facts) -> None:
        """Have a report made that waited when the service ended, from what was written down then."""
        if len(self._waiting) < QUEUE:
            self._waiting[facts.name] = facts.alarm.model

    def update(self, facts: Facts) -> None:
        """Keep newer facts (a further change of the alarm) of a report whatever becomes of evidently's half."""
        with self._guarded(facts.name, facts.alarm.model):
            self.shelf.put(facts)

    def advance(self) -> None:
        """One look: end what is over, begin what is next. Microseconds where nothing is to do."""
        running = self._running
        if running is not None:
            code = running.process.poll()
            if code is None and self.monotonic() - running.begun <= self.seconds:
                return
            self._stop() if code is None else self._ended()
            is_late = code is None or code == -signal.SIGALRM
            why = f"it took more than reports.seconds = {self.seconds:g}" if is_late else _words(running.said)
            self._settle(running, code, why)
        while self._running is None and self._waiting:
            name = next(iter(self._waiting))
            self._begin(name, self._waiting.pop(name))

    def counts(self, model: str) -> dict[str, int]:
        """Reports of a model by their outcome."""
        return {outcome: count for (of, outcome), count in self.outcomes.items() if of == model}

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return self._running is None and not self._waiting

    def wait(self, seconds: float = 600.0) -> None:
        """Until everything that was offered has ended, or so long: at the end of a bounded source."""
        end = self.monotonic() + seconds
        while not self.is_idle and self.monotonic() < end:
            self.advance()
            if self._running is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._running.process.wait(0.1)

    def close(self) -> None:
        """End what runs; it stays on the shelf as waiting."""
        if self._running is not None:
            self._stop()

    def _begin(self, name: str, model: str) -> None:
        rows, made = self.shelf.path(name, ".rows"), self.shelf.path(name, ".html")
        with self._guarded(name, model):
            if not rows.is_file():
                self.fail(name, model, "its rows are gone", "dropped")
                return
            said = tempfile.TemporaryFile(dir=self.shelf.folder)  # noqa: SIM115 (closed when the process has ended)
            try:
                process = subprocess.Popen(
                    command(rows, made, self.seconds, self.worker), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=said, env=environment(), start_new_session=True)
            except OSError:
                said.close()
                raise
            self._running = _Running(name, model, process, said, self.monotonic())

    def _stop(self) -> None:
        """End the running process with all that it began."""
        running = self._running
        assert running is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(running.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(_KILL_SECONDS)
        self._ended()

    def _ended(self) -> None:
        self._running = None

    def _settle(self, running: _Running, code: int | None, why: str) -> None:
        """Note how a process ended."""
        name, model, seconds = running.name, running.model, self.monotonic() - running.begun
        running.said.close()
        if code == 0 and self.shelf.path(name, ".html").is_file():
            with self._guarded(name, model):
                self._state(name, "made", *_told(why))
                self.shelf.remove(name, ".rows")
                self.outcomes[model, "made"] += 1
                self.note(model, seconds)
                log.info("Report made.", extra={"report": name, "seconds": round(seconds, 1)})
            return
        if code is not None:
            ended = f"signal {-code}" if code < 0 else f"code {code}"
            why = why or f"the process ended with {ended}" + (", out of memory perhaps" if code in (-9, -11) else "")
        self.fail(name, model, why)

    def fail(self, name: str, model: str, why: str, outcome: str = "failed") -> None:
        """Count a report that is not made, and say why in the log and on its page."""
        self.outcomes[model, outcome] += 1
        log.warning("Report not made.", extra={"report": name, "error": why})
        with contextlib.suppress(OSError):
            self._state(name, "failed", why)
            self.shelf.remove(name, ".rows")

    def _state(self, name: str, state: State, why: str, rows: tuple[int, int] = (0, 0)) -> None:
        facts = self.shelf.facts(name)
        if facts is not None:
            self.shelf.put(replace(facts, state=state, why=why, rows=rows))

    @contextlib.contextmanager
    def _guarded(self, name: str, model: str) -> Iterator[None]:
        """A folder that cannot be written costs a report, never the loop."""
        try:
            yield
        except OSError as error:
            self.fail(name, model, f"{error.filename or self.shelf.folder}: {error.strerror}")


def command(rows: Path, made: Path, seconds: float, worker: str = WORKER, *, niceness: int = 19) -> list[str]:
    """The process that turns rows into evidently's document; -P keeps the working directory out of what is imported.

    niceness : 19 is the lowest priority, for a report that nobody waits for
    """
    return [sys.executable, "-P", "-m", worker, str(rows), str(made), str(seconds), str(niceness)]


def environment() -> Mapping[str, str]:
    """What the process is given: no secret of ours, one thread, no telemetry, and the place that we were imported from."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    here = str(Path(__file__).resolve().parents[2])
    return kept | {"DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": here}


class Said(Struct, frozen=True):
    """The last line of a process that made its report: what went in, and what was left out of it."""

    rows: tuple[int, int]
    why: str = ""


def _told(line: str) -> tuple[str, tuple[int, int]]:
    try:
        said = read_json(line, Said)
    except msgspec.DecodeError:
        return "", (0, 0)
    return said.why, said.rows


def _words(said: IO[bytes]) -> str:
    """The last line that a process said, cut to length."""
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - 4_096))
    lines = said.read().decode("utf-8", "replace").strip().splitlines()
    return one_line(lines[-1])[:_WORDS_MAX] if lines else ""
