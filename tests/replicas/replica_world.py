"""Replicas on the world of the crash tests: their configuration, their processes, and what the state topic says at the end."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import yaml

from monitor.config import load
from monitor.ingest.state_topic import StateReader
from monitor.replicas import partition_of
from monitor.state.replica_store import MirroredStore, latest
from tests.conftest import wait_until
from tests.crash import world

STATE_PARTITIONS = 2
TOKEN = "a-token-of-the-replicas-test"


def configuration(folder: Path, broker: str, topic: str, *, state_topic: str, promote: bool = False,
                  sections: dict[str, object] | None = None, **more) -> Path:
    """The crash tests' configuration for several processes: each has a folder of its own below `folder`."""
    path = unhurried(world.configuration(folder, broker, topic, promote=promote))
    config = yaml.safe_load(path.read_text())
    config["service"] |= {"checkpoint_seconds": 0.2, "dead_letters": "none",
                          "replicas": {"topic": state_topic, "partitions": STATE_PARTITIONS, "replication": 1,
                                       "transaction_seconds": 2.0}}
    if promote:                                     # and may be asked for something
        (folder / "token").write_text(TOKEN)
        (folder / "token").chmod(0o600)
        config["service"]["token_file"] = str(folder / "token")
        config["monitors"][0]["retrain"]["promote"]["settle_seconds"] = 0.2
        config["monitors"][0]["retrain"]["model_uri"] = "file:///first"
    config |= sections or {}
    config["kafka"] |= {"group": state_topic, "session_timeout_seconds": 3.0, "poll_records": 40} | more
    path.write_text(yaml.safe_dump(config))
    return path


def unhurried(path: Path) -> Path:
    """The configuration without the alarm for silence, which comes by the wall clock: what must be equal leaves it out."""
    config = yaml.safe_load(path.read_text())
    config["monitors"][0]["quality"] = {"silent_panes": None}
    path.write_text(yaml.safe_dump(config))
    return path


class Nursery:
    """The process that forks replicas (tests.replicas.nursery)."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen([sys.executable, "-m", "tests.replicas.nursery"], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
                                      env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
        assert self.popen.stdout.readline() == "ready\n"

    def ask(self, *words: object) -> str:
        """One line there, one line back."""
        self.popen.stdin.write(" ".join(map(str, words)) + "\n")
        self.popen.stdin.flush()
        return self.popen.stdout.readline().strip()

    def close(self) -> None:
        """End it; its children go on."""
        self.popen.stdin.close()
        self.popen.wait(60)
        self.popen.stdout.close()


class Replicas:
    """Processes of one group, started and ended one by one."""

    def __init__(self, nursery: Nursery, folder: Path, config: Path) -> None:
        self.nursery, self.folder, self.config = nursery, folder, config
        self.running: dict[str, int] = {}           # name -> process id
        self.reader: StateReader | None = None
        self.records: list[tuple[int, bytes, bytes | None]] = []
        self.last: dict[str, object] | None = None  # what the records say
        self.starts = 0

    def log(self, name: str) -> Path:
        """The log of the replica of this name that was started last."""
        return sorted(self.folder.glob(f"log-*-{name}.txt"))[-1]

    def start(self, name: str, *kill_at: object) -> None:
        """Start (again) the replica of this name; `kill_at`: a step and a call of tests.crash.killed, at which it dies."""
        own = self.folder / name
        own.mkdir(exist_ok=True)
        config = yaml.safe_load(self.config.read_text())
        config["service"]["state"] = f"sqlite:///{own}/state.db"
        config["service"]["replicas"]["name"] = name
        (own / "tidemark.yaml").write_text(yaml.safe_dump(config))
        self.starts += 1
        log = self.folder / f"log-{self.starts:03d}-{name}.txt"
        log.touch()
        self.running[name] = int(self.nursery.ask("start", own / "tidemark.yaml", log, *kill_at))

    def code(self, name: str) -> int | None:
        """The exit code of a replica; None while it runs."""
        said = self.nursery.ask("poll", self.running[name])
        return None if said == "running" else int(said)

    def end(self, name: str, how: int) -> int:
        """Send a signal that ends it and wait; its exit code."""
        os.kill(self.running[name], how)
        ended: list[int] = []

        def over() -> bool:
            ended.extend(code for code in (self.code(name),) if code is not None)
            return bool(ended)

        wait_until(over, 30, f"the end of {name}")
        del self.running[name]
        return ended[0]

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self.end(name, signal.SIGKILL)

    def stop_all(self) -> list[int]:
        """SIGTERM to every one; their exit codes."""
        for number in self.running.values():
            os.kill(number, signal.SIGTERM)
        return [self.end(name, signal.SIGTERM) for name in list(self.running)]

    def close(self) -> None:
        """End whatever still runs, and the reader."""
        for name in list(self.running):
            os.kill(self.running[name], signal.SIGCONT)
            self.kill(name)
        if self.reader is not None:
            self.reader.close()

    def logs(self) -> str:
        """What every process said."""
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("log-*.txt")))

    def state(self) -> dict[str, object] | None:
        """What the state topic holds of the model, as the crash tests read a state file; None before the first row."""
        config = load(self.config)
        replicas = config.service.replicas
        if self.reader is None:
            if not any("Counting." in path.read_text() for path in self.folder.glob("log-*.txt")):
                return None
            self.reader = StateReader(config.kafka, replicas, partition_of("m", replicas.partitions))
        known = len(self.records)
        while found := self.reader.poll():
            self.records += found
        if len(self.records) > known:               # tests ask all the time, and building a state costs more than a poll
            rows, _ = latest(self.records)
            if rows:
                (self.folder / "seen").mkdir(exist_ok=True)
                MirroredStore(self.folder / "seen" / "state.db", rows, lambda changes: None).close()
                self.last = world.state(self.folder / "seen")
        return copy.deepcopy(self.last)

    def assert_running(self) -> None:
        """Nobody has ended by itself."""
        for name in list(self.running):
            code = self.code(name)
            if code is not None:
                del self.running[name]
                raise AssertionError(f"{name} ended with {code}: {self.log(name).read_text()[-3000:]}")

    def said(self, words: str) -> list[str]:
        """The running replicas whose last life said this."""
        return [name for name in self.running if words in self.log(name).read_text()]

    def is_done(self, total: int) -> bool:
        """Whether everything was counted and every launch has ended."""
        found = self.state()
        if not found or sum(offset for _, offset, _ in found["positions"]) < total:
            return False
        return bool(found["launches"]) and all(
            launch["state"] in ("refused", "failed", "timed_out", "judged", "promoted") for launch in found["launches"])

    def wait_done(self, total: int, seconds: float = 90.0) -> dict[str, object]:
        """Wait for that, and return what the topic holds."""
        self.wait(lambda: self.assert_running() or self.is_done(total), seconds, "everything counted, judged and ended")
        return self.state()

    def wait(self, condition, seconds: float, what: str):
        """As `wait_until`; what is told of a failure is what the replicas said, and where each of their threads is."""
        try:
            return wait_until(condition, seconds, what)
        except TimeoutError as error:
            raise AssertionError(f"{error}; {self.so_far()}") from None

    def so_far(self) -> str:
        """What is in the topic and what the last replicas said, for a failure's message; ends them."""
        found = self.state() or {"positions": [], "launches": []}
        launches = [(launch["id"], launch["state"]) for launch in found["launches"]]
        for name in sorted(self.running):           # where each thread is, is told at its end
            os.kill(self.running[name], signal.SIGCONT)
            self.end(name, signal.SIGABRT)
        logs = "\n".join(f"== {path.name}\n{path.read_text()[-6000:]}" for path in sorted(self.folder.glob("log-*.txt"))[-4:])
        return f"positions {found['positions']}, launches {launches}, {len(self.records)} records read\n{logs}"

    def ask(self, path: str, body: dict[str, object]) -> list[tuple[int, str]]:
        """What every running replica answers to a request with the token: (status, text)."""
        answers = []
        for name in self.running:
            address = re.findall(r'address="([^"]+)"', self.log(name).read_text())[-1]
            request = Request(f"http://{address}{path}", json.dumps(body).encode(), {
                "authorization": f"Bearer {TOKEN}", "content-type": "application/json"})
            try:
                with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
                    answers.append((answer.status, answer.read().decode()))
            except HTTPError as error:
                answers.append((error.code, error.read().decode()))
        return answers

    def trained(self) -> list[str]:
        """One entry per start of a training."""
        notes = (self.folder / "captured" / "m" / "launches").glob("*/starts.txt")
        return [line for note in notes for line in note.read_text().split()]
