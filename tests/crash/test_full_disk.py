"""A disk that is full or read-only: one clear line or backpressure, and nothing is lost when there is room again.

A real small file system (tmpfs) where one may be mounted; elsewhere the system's limit on the size of a file (RLIMIT_FSIZE),
set on the running process and lifted again: the same calls fail, with another number.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections import Counter

import pytest
import yaml

from tests.conftest import CHECKOUT, Process, missing, wait_until
from tests.crash import world

#: What the disk holds when it is not filled, in bytes.
ROOM = 24 << 20


class SmallDisk:
    """A folder whose room can be taken away from a process and given back."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.is_mounted = os.geteuid() == 0 and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)], capture_output=True).returncode == 0

    def must_be_one(self):
        """For tests of a full disk beside which another has room: a limit on every file would fill both."""
        if not self.is_mounted:
            missing("tmpfs", "no small file system can be mounted here (that needs root and CAP_SYS_ADMIN), so nothing says what "
                    "a full disk of captures or dead letters does while the state has room")

    def fill(self, pid):
        """No file in the folder can grow any more."""
        if not self.is_mounted:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return
        with open(self.folder / "filler", "wb", buffering=0) as file:
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)

    def empty(self, pid=None):
        if not self.is_mounted:
            if pid is not None:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
            return
        (self.folder / "filler").unlink(missing_ok=True)

    @contextlib.contextmanager
    def read_only(self):
        """Nothing in the folder can be written: the file system, or (who is not root) its rights."""
        if self.is_mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
        else:
            os.chmod(self.folder, 0o555)
        try:
            yield
        finally:
            if self.is_mounted:
                subprocess.run(["mount", "-o", "remount,rw", str(self.folder)], check=True)
            else:
                os.chmod(self.folder, 0o755)

    def close(self):
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    small = SmallDisk(tmp_path / "small")
    yield small
    small.close()


class Service:
    """The command on a topic that grows by halves."""

    def __init__(self, folder, broker, topic, change):
        self.folder, self.broker, self.topic, self.number = folder, broker, topic, 0
        self.config = world.configuration(folder, broker.bootstrap_servers, topic, promote=False)
        tree = yaml.safe_load(self.config.read_text())
        tree["service"]["checkpoint_seconds"] = 0.05
        tree["kafka"] |= {"idle_seconds": 3600.0, "session_timeout_seconds": 10.0}
        tree["monitors"][0]["retrain"] |= {"capture_seconds": 1.0, "collect_events": 10**9}
        change(tree)
        self.state = tree["service"]["state"].removeprefix("sqlite:///")
        self.config.write_text(yaml.safe_dump(tree))
        self.values = world.messages()
        self.total = sum(map(len, self.values.values()))
        self.start()

    def produce(self, half):
        for partition, values in self.values.items():
            middle = len(values) // 2
            self.broker.produce(self.topic, values[:middle] if half == 1 else values[middle:], partition=partition)

    def start(self):
        self.number += 1
        self.log = self.folder / f"log-{self.number}.txt"
        self.running = Process(world.command(self.config), self.log, cwd=CHECKOUT)
        self.pid = self.running.popen.pid

    def text(self):
        return self.log.read_text()

    def until(self, condition, what):
        def held():
            assert self.running.popen.poll() is None, self.text()[-2000:]
            return condition()
        wait_until(held, 120, what)

    def state_now(self):
        folder = self.folder if "small" not in self.state else self.folder / "small"
        return world.state(folder)

    def read(self):
        found = self.state_now()
        return sum(offset for _, offset, _ in found["positions"]) if found else 0

    def end(self):
        self.running.popen.send_signal(signal.SIGTERM)
        code = self.running.popen.wait(60)
        self.running.stop()
        assert code == 0, self.text()[-2000:]

    def letters(self, path):
        return [json.loads(line)["offset"] for line in path.read_text().splitlines()]


def whole(service):
    """Every event was counted once, every letter and every captured row is there."""
    found = service.state_now()
    (counters,) = found["counters"]
    assert counters["outcomes"] == {"counted": service.total - world.PANES, "refused:type": world.PANES}
    assert sum(events for _, _, events, _, _ in found["panes"]) == counters["outcomes"]["counted"]


def captured(service, folder):
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "events" / "model=m")
    counts = Counter(table["id"].to_pylist())
    assert counts.pop("end") == world.PARTITIONS
    assert set(counts.values()) == {1}
    return len(counts)


def test_when_the_state_s_disk_is_full_it_ends_with_1_and_one_line_and_goes_on_when_there_is_room(
        disk, tmp_path, kafka_broker, unique_name):
    topic = kafka_broker.create_topic(unique_name("full-state"), world.PARTITIONS)
    service = Service(tmp_path, kafka_broker, topic, lambda tree: tree["service"].update(
        state=f"sqlite:///{disk.folder}/state.db"))
    service.produce(1)
    half = sum(len(values) // 2 for values in service.values.values())
    service.until(lambda: service.read() == half, "the first half")
    disk.fill(service.pid)
    service.produce(2)
    wait_until(lambda: service.running.popen.poll() is not None, 120, "the end")
    assert service.running.popen.poll() == 1, service.text()[-2000:]
    last = service.text().splitlines()[-1]
    assert last.startswith(f"tidemark run: {disk.folder}/state.db: expected a state file that can be written, got: "), last
    assert last.endswith("make room or mend the rights, and start again")
    assert "Traceback" not in service.text()
    service.running.stop()
    disk.empty()
    service.start()
    service.until(lambda: service.read() == service.total, "the rest")
    service.end()
    whole(service)


def test_when_the_captures_disk_is_full_rows_wait_in_the_state_and_none_is_lost(disk, tmp_path, kafka_broker, unique_name):
    disk.must_be_one()
    topic = kafka_broker.create_topic(unique_name("full-capture"), world.PARTITIONS)
    service = Service(tmp_path, kafka_broker, topic, lambda tree: tree["monitors"][0]["retrain"].update(
        capture_uri=str(disk.folder / "captured")))
    service.until(lambda: service.read() is not None and "Watching." in service.text(), "the start")
    disk.fill(service.pid)
    service.produce(1)
    service.until(lambda: "Captured events not written; they wait in the state." in service.text(), "the error")
    service.produce(2)
    service.until(lambda: service.read() == service.total, "everything read")       # the stream does not stop
    assert service.text().count("Captured events not written") <= 3
    assert not list((disk.folder / "captured").rglob("*.tmp")), "what could not be written takes room"
    service.end()
    disk.empty()
    service.start()
    wait_for = service.total - world.PANES - world.PARTITIONS

    def there():
        with contextlib.suppress(OSError, AssertionError, KeyError, ValueError):     # it is being written
            return captured(service, disk.folder / "captured") == wait_for
    service.until(there, "every row in its file")
    service.end()
    whole(service)


def test_when_the_dead_letters_disk_is_full_they_wait_and_none_is_lost(disk, tmp_path, kafka_broker, unique_name):
    disk.must_be_one()
    topic = kafka_broker.create_topic(unique_name("full-letters"), world.PARTITIONS)
    path = disk.folder / "dead.jsonl"
    service = Service(tmp_path, kafka_broker, topic, lambda tree: tree["service"].update(dead_letters=f"file:{path}"))
    service.produce(1)
    half = sum(len(values) // 2 for values in service.values.values())
    service.until(lambda: service.read() == half, "the first half")
    disk.fill(service.pid)
    service.produce(2)
    service.until(lambda: "Dead letters wait." in service.text(), "the error")
    service.until(lambda: service.read() == service.total, "everything read")       # the stream does not stop
    assert len(service.letters(path)) < world.PANES
    disk.empty()
    service.until(lambda: len(service.letters(path)) == world.PANES, "every letter in the file")
    assert service.text().count("Dead letters wait.") == 1
    service.end()
    assert len(service.letters(path)) == world.PANES
    whole(service)


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_state_that_is_read_only_is_refused_in_one_line(what, disk, tmp_path):
    config = world.configuration(tmp_path, "127.0.0.1:9", "nowhere", promote=False)
    tree = yaml.safe_load(config.read_text())
    tree["service"]["state"] = f"sqlite:///{disk.folder}/state.db"
    config.write_text(yaml.safe_dump(tree))
    if what == "file":
        from monitor.state.store import Store

        Store(disk.folder / "state.db").close()
    before = sorted(path.name for path in disk.folder.iterdir())
    with disk.read_only():
        ended = subprocess.run([sys.executable, "-m", "monitor.cli", "run", "-c", str(config)], cwd=CHECKOUT, text=True,
                               capture_output=True, timeout=120)
        (line,) = [line for line in ended.stderr.splitlines() if " INFO " not in line]
        assert ended.returncode in (1, 2), line
        assert line.startswith(f"tidemark run: {disk.folder}/state.db: expected"), line
        assert "check the folder's rights" in line or "mend the rights" in line, line
        assert sorted(path.name for path in disk.folder.iterdir()) == before
