"""Lives of the service on one state folder, killed from outside at drawn moments: what `test_random_kills` is made of.

A round is one topic, one state folder and a number of kills. The stream grows with the round, a slice before each life, so
every life has something to read. Each life ends in one of these ways, drawn from the seed:

    time      SIGKILL so many seconds after its process began
    phase     SIGKILL so many microseconds after it entered a phase for the n-th time: a transaction, dead letters, files ...
    ending    SIGTERM, and SIGKILL so many milliseconds later, into its orderly end
    fresh     as `time`, with a new interpreter (`python -m monitor.cli`) instead of a fork of a warm one

Most lives join a group of their own, because a broker takes a whole session timeout to believe that a member is dead; one in
twelve, and the fresh ones, take the dead member's place and wait for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.conftest import CHECKOUT, wait_until
from tests.crash import world
from tests.crash.warm import Board

#: Phases that are aimed at, by weight: the short ones that a clock would hardly ever hit.
AIMS = {"transaction": 6, "count": 2, "judge": 2, "letters": 3, "capture": 1, "files": 3, "outbox": 2, "ending": 1}
#: Phases that come once in a round: whenever one is seen, this life ends in it with this probability.
RARE = {"snapshot": 0.6, "launch": 0.6, "cutover": 0.5, "forget": 0.0}
LIFE_SECONDS = 0.9
FRESH_SECONDS = 4.0
AIM_SECONDS = 1.5


@dataclass(frozen=True)
class Death:
    """How a life is to end."""

    kind: str
    seconds: float                                  # after the process began, or after the phase, or after SIGTERM
    phase: str = ""
    entry: int = 1

    @staticmethod
    def drawn(rng: Random, fresh_share: float) -> Death:
        if rng.random() < fresh_share:
            return Death("fresh", rng.uniform(0.0, FRESH_SECONDS))
        kind = rng.choices(("time", "phase", "ending"), (35, 50, 15))[0]
        if kind == "phase":
            phase = rng.choices(list(AIMS), list(AIMS.values()))[0]
            entry = 1 if phase in ("files", "ending") else 1 + min(int(rng.expovariate(0.4)), 9)
            return Death(kind, rng.choice((0.0, 0.0005, 0.002, 0.006)) * rng.random(), phase, entry)
        return Death(kind, rng.uniform(0.0, LIFE_SECONDS if kind == "time" else 0.3))


class Warm:
    """The warm parent: forks a life when asked."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen([sys.executable, "-m", "tests.crash.warm"], cwd=CHECKOUT, text=True, bufsize=1,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def fork(self, argv: list[str], log: Path, board: Path | None = None, kill: tuple[str, int] | None = None) -> int:
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps({"argv": argv, "log": str(log), "board": board and str(board), "kill": kill}) + "\n")
        return int(self._answer()["pid"])

    def code(self) -> int:
        """The exit code of the life; returns when it has ended."""
        return int(self._answer()["code"])

    def close(self) -> None:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.close()
        self._popen.wait(10)
        self._popen.stdout.close()

    def _answer(self) -> dict[str, int]:
        assert self._popen.stdout is not None
        return dict(json.loads(self._popen.stdout.readline()))


@dataclass
class Life:
    """A running service. Its number is held by a handle, so a signal never meets another process."""

    pid: int
    handle: int
    log: Path
    warm: Warm | None = None
    popen: subprocess.Popen[bytes] | None = None

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, number)

    def is_over(self) -> bool:
        import select

        return bool(select.select([self.handle], [], [], 0)[0])

    def code(self) -> int:
        code = self.warm.code() if self.warm is not None else self.popen.wait(30)  # type: ignore[union-attr]
        os.close(self.handle)
        return code


@dataclass
class Round:
    """One state folder, one growing topic, and the lives on it."""

    folder: Path
    broker: Any
    topic: str
    warm: Warm
    promote: bool = False
    group: int = 0
    number: int = 0
    produced: dict[int, int] = field(default_factory=dict)
    hits: Counter[str] = field(default_factory=Counter)
    deaths: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.messages = world.messages()
        self.config = world.configuration(self.folder, self.broker.bootstrap_servers, self.topic, promote=self.promote)
        tree = yaml.safe_load(self.config.read_text())
        tree["kafka"] |= {"poll_records": 150, "idle_seconds": 3600.0}
        tree["service"]["checkpoint_seconds"] = 0.02
        tree["monitors"][0]["retrain"]["capture_seconds"] = 1.0
        self.tree = tree
        self.total = sum(map(len, self.messages.values()))

    def grow(self, share: float, producer: Any) -> None:
        """Let the topic hold this share of the whole stream."""
        for partition, values in self.messages.items():
            begin, end = self.produced.get(partition, 0), round(share * len(values))
            for value in values[begin:end]:
                producer.send(self.topic, value, partition=partition)
            self.produced[partition] = max(begin, end)
        producer.flush()

    def begin(self, *, fresh: bool = False, new_group: bool = True) -> tuple[Life, Board]:
        """Start the service."""
        self.number += 1
        self.group += new_group
        self.tree["kafka"]["group"] = f"{self.topic}-{self.folder.name}-{self.group}"
        self.config.write_text(yaml.safe_dump(self.tree))
        log, board = self.folder / "log.txt", self.folder / "board"
        seen = Board.make(board)
        if fresh:
            with open(log, "ab") as output:
                popen = subprocess.Popen(world.command(self.config), cwd=CHECKOUT, stdout=output, stderr=output)
            return Life(popen.pid, os.pidfd_open(popen.pid), log, popen=popen), seen
        pid = self.warm.fork(["run", "-c", str(self.config)], log, board)
        return Life(pid, os.pidfd_open(pid), log, warm=self.warm), seen

    def kill_once(self, death: Death, rng: Random) -> None:
        """One life with this death; every other end of it is a failure."""
        life, board = self.begin(fresh=death.kind == "fresh", new_group=death.kind != "fresh" and rng.random() > 1 / 12)
        try:
            phase = self._wait(life, board, death, rng)
        finally:
            life.signal(signal.SIGKILL)
            code = life.code()
        last = self.last_lines()
        self.deaths.append(f"{self.number}: {death.kind} {death.phase} {death.entry} {death.seconds:.4f} s -> {phase}")
        # An orderly end may have come before the kill; any other end is the service's own failure.
        assert code == -signal.SIGKILL or (code == 0 and death.kind == "ending") or (
            death.phase == "ending" and code == 0), f"exit code {code} of {self.deaths[-1]}\n{last}"
        self.hits["ended" if code == 0 else phase] += 1

    def _wait(self, life: Life, board: Board, death: Death, rng: Random) -> str:
        """Return when it is time; the phase that the life is in then."""
        begun = time.monotonic()
        rare = {phase for phase, share in RARE.items() if rng.random() < share}
        aim = "read" if death.kind == "ending" or death.phase == "ending" else death.phase
        while not life.is_over():
            now = time.monotonic() - begun
            if death.kind in ("time", "fresh"):
                if now >= death.seconds:
                    break
            elif (board.phase == aim or aim == "read") and board.entered(aim) >= death.entry:
                if death.kind == "ending" or death.phase == "ending":
                    return self._into_the_end(life, board, death)
                _spin(death.seconds)
                break
            elif now > AIM_SECONDS:
                break
            if board.phase in rare and death.kind != "fresh":
                _spin(rng.random() * 0.03)
                break
            time.sleep(0.0001)
        return f"{death.kind}" if death.kind == "fresh" else board.phase

    def _into_the_end(self, life: Life, board: Board, death: Death) -> str:
        _spin(0.1 * death.seconds)
        life.signal(signal.SIGTERM)
        if death.phase == "ending":
            end = time.monotonic() + 1
            while board.phase != "ending" and time.monotonic() < end and not life.is_over():
                time.sleep(0.0001)
        _spin(death.seconds)
        return "ending" if not life.is_over() else "ended"

    def last_lines(self) -> str:
        log = self.folder / "log.txt"
        return log.read_text(errors="replace")[-2000:] if log.exists() else ""

    def run_to_the_end(self) -> dict[str, Any]:
        """A life that nobody kills: it reads the rest, SIGTERM ends it with 0; what the folder holds then."""
        life, _ = self.begin()
        try:
            wait_until(lambda: life.is_over() or self.is_done(), 180, "everything read, judged and in files")
            assert not life.is_over(), self.last_lines()
            life.signal(signal.SIGTERM)
            wait_until(life.is_over, 60, "the orderly end")     # how long it may take is for test_signals to say
        finally:
            life.signal(signal.SIGKILL)
            code = life.code()
        assert code == 0, self.last_lines()
        return self.dump()

    def is_done(self) -> bool:
        found = world.state(self.folder)
        if not found or sum(offset for _, offset, _ in found["positions"]) < self.total:
            return False
        with contextlib.closing(sqlite3.connect(f"file:{self.folder}/state.db?mode=ro", uri=True, timeout=5)) as db:
            if db.execute("SELECT count(*) FROM captured_rows").fetchone()[0]:
                return False
        return bool(found["launches"]) and all(
            launch["state"] in ("refused", "failed", "timed_out") or launch["cut_over_at"] for launch in found["launches"])

    def dump(self) -> dict[str, Any]:
        """Everything that must not depend on when the service died: the state's rows, the captured files' bytes, the letters.

        What may differ is a launch's wall-clock times, how the clock was last read, and what its trainer had been given by then.
        """
        with contextlib.closing(sqlite3.connect(f"file:{self.folder}/state.db?mode=ro", uri=True, timeout=5)) as db:
            found: dict[str, Any] = {
                table: db.execute(f"SELECT * FROM {table} ORDER BY {order}").fetchall() for table, order in (
                    ("refs", "digest"), ("streams", "model"), ("positions", "model, topic, partition"),
                    ("panes", "model, version, segment, pane"), ("alarms", "seq"), ("decisions", "seq"),
                    ("captures", "model, file"), ("captured_rows", "model, number"), ("cutovers", "model, version"),
                    ("samples", "model, version, segment, pane"))}
            found["meta"] = db.execute("SELECT * FROM meta WHERE key NOT IN ('seal', 'clock') ORDER BY key").fetchall()
            found["launches"] = [
                (launch["id"], launch["state"], launch["verdict"], launch["decided_at"], [state for state, _ in launch["steps"]])
                for (document,) in db.execute("SELECT document FROM launches ORDER BY rowid")
                for launch in [json.loads(document)]]
        files = self.folder / "captured" / "events"
        found["files"] = {str(path.relative_to(files)): hashlib.sha256(path.read_bytes()).hexdigest()
                          for path in sorted(files.rglob("*")) if path.is_file()}
        return found

    def letters(self) -> list[tuple[int, int, str, str]]:
        """Every dead letter as a reader finds it; a line that is not whole fails here."""
        lines = (self.folder / "dead.jsonl").read_bytes().split(b"\n")
        assert lines[-1] == b"", "the last line is torn"
        documents = [json.loads(line) for line in lines[:-1]]
        return [(one["partition"], one["offset"], one["reason"], one["value"]) for one in documents]

    def starts(self) -> list[str]:
        notes = (self.folder / "captured" / "m" / "launches").glob("*/starts.txt")
        return [line for note in notes for line in note.read_text().split()]


def _spin(seconds: float) -> None:
    """Wait exactly: sleeping is too coarse for what lasts a millisecond."""
    end = time.perf_counter() + seconds
    if seconds > 0.005:
        time.sleep(seconds - 0.002)
    while time.perf_counter() < end:
        pass


@contextlib.contextmanager
def producing(broker: Any) -> Iterator[Any]:
    """A producer that writes each partition in order."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, acks="all", linger_ms=2)
    try:
        yield producer
    finally:
        producer.close()
