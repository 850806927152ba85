"""SIGTERM and SIGINT: the service commits what it has read, leaves its group and ends with 0 within 10 s, whatever it does."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import Process, Stopwatch, free_port, wait_until
from tests.crash import world

#: What the service has to end in; a cluster waits three times as long before it kills.
SECONDS = 10.0


@pytest.fixture(scope="module")
def topic(kafka_broker):
    name = kafka_broker.create_topic("signals", world.PARTITIONS)
    for partition, values in world.messages().items():
        kafka_broker.produce(name, values, partition=partition)
    return name


class Service:
    """The command in a process of its own."""

    def __init__(self, folder, bootstrap, topic, change=lambda tree: None):
        self.folder = folder
        self.config = world.configuration(folder, bootstrap, topic, promote=False)
        tree = yaml.safe_load(self.config.read_text())
        change(tree)
        self.group = tree["kafka"]["group"]
        self.config.write_text(yaml.safe_dump(tree))
        self.start()

    def start(self):
        self.log = self.folder / f"log-{time.monotonic_ns()}.txt"
        self.running = Process(world.command(self.config), self.log)

    def text(self):
        return self.log.read_text()

    def until(self, condition, what):
        def held():
            assert self.running.popen.poll() is None, self.text()[-2000:]
            return condition()
        wait_until(held, 90, what)

    def end(self, number):
        """Its exit code, and the seconds that it took."""
        watch = Stopwatch()
        self.running.popen.send_signal(number)
        code = self.running.popen.wait(60)
        self.running.stop()
        assert "Traceback" not in self.text(), self.text()[-2000:]
        return code, watch.seconds()


def read(folder):
    found = world.state(folder)
    return sum(offset for _, offset, _ in found["positions"]) if found else 0


def members(broker, group):
    admin = broker.admin()
    try:
        return admin.describe_groups([group])[group]["members"]
    finally:
        admin.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_reading_it_commits_leaves_the_group_and_ends_with_0(number, tmp_path, kafka_broker, topic):
    def slow(tree):
        tree["kafka"] |= {"poll_records": 20, "session_timeout_seconds": 60.0}
        tree["service"]["checkpoint_seconds"] = 60.0            # only the end commits
        del tree["monitors"][0]["retrain"]

    service = Service(tmp_path, kafka_broker.bootstrap_servers, topic, slow)
    service.until(lambda: read(tmp_path) > 0, "the first checkpoint")
    before = read(tmp_path)
    code, seconds = service.end(number)
    assert (code, seconds < SECONDS) == (0, True), f"{seconds:.1f} s\n{service.text()[-2000:]}"
    assert read(tmp_path) >= before
    assert "Ended." in service.text()
    assert members(kafka_broker, service.group) == []           # at once, not after its session
    wal = tmp_path / "state.db-wal"                 # looking at the state lays an empty one
    assert not wal.exists() or not wal.stat().st_size


def test_while_a_launch_runs_the_training_goes_on_and_is_found_again(tmp_path, kafka_broker, topic):
    gate = tmp_path / "gate"
    waiting = tmp_path / "waiting.py"
    waiting.write_text(
        "import os, sys, time\nopen(sys.argv[1] + '.begun', 'a').write('x')\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.02)\n"
        "from tests.crash import trainer\ntrainer.main()\n")

    def held(tree):
        tree["monitors"][0]["retrain"]["launcher"]["command"] = ["{python}", str(waiting), str(gate)]

    service = Service(tmp_path, kafka_broker.bootstrap_servers, topic, held)
    begun = Path(f"{gate}.begun")
    service.until(begun.exists, "the training")
    code, seconds = service.end(signal.SIGTERM)
    assert (code, seconds < SECONDS) == (0, True), f"{seconds:.1f} s\n{service.text()[-2000:]}"
    gate.touch()                                    # it ends while nobody looks
    service.start()
    service.until(lambda: world.state(tmp_path)["launches"][0]["verdict"], "the verdict")
    assert service.end(signal.SIGTERM)[0] == 0
    assert world.state(tmp_path)["launches"][0]["verdict"] == "better"
    assert begun.read_text() == "x"


def test_while_the_broker_is_away_it_ends_with_0_and_what_was_read_is_kept(tmp_path, tmp_path_factory):
    from tests.conftest import missing
    from tests.kafka_broker import KafkaBroker, why_not

    if lack := why_not():
        missing("kafka", lack)
    broker = KafkaBroker(tmp_path_factory.mktemp("broker"))
    broker.start()
    try:
        name = broker.create_topic("away", world.PARTITIONS)
        values = world.messages()
        for partition, some in values.items():
            broker.produce(name, some[:500], partition=partition)
        service = Service(tmp_path, broker.bootstrap_servers, name)
        service.until(lambda: read(tmp_path) == 500 * world.PARTITIONS, "everything read")
    finally:
        broker.stop()
    code, seconds = service.end(signal.SIGTERM)
    assert (code, seconds < SECONDS) == (0, True), f"{seconds:.1f} s\n{service.text()[-2000:]}"
    assert read(tmp_path) == 500 * world.PARTITIONS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_it_waits_for_a_broker_at_the_start_it_ends_at_once(number, tmp_path):
    service = Service(tmp_path, f"127.0.0.1:{free_port()}", "nowhere")
    service.until(lambda: "Listening." in service.text(), "the server")
    code, seconds = service.end(number)
    assert (code, seconds < SECONDS) == (0, True), f"{seconds:.1f} s\n{service.text()[-2000:]}"


def test_from_the_command_s_first_moment_on_a_signal_ends_it_with_0(tmp_path):
    """While Python still imports: as soon as the process takes SIGTERM itself."""
    service = Service(tmp_path, f"127.0.0.1:{free_port()}", "nowhere")
    status = Path(f"/proc/{service.running.popen.pid}/status")

    def taken():
        caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
        return int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1

    service.until(taken, "the handler")
    assert "Listening." not in service.text()       # it is there before the imports are done
    code, _ = service.end(signal.SIGTERM)
    assert code == 0, service.text()[-2000:]
    assert not (tmp_path / "state.db").exists() or os.path.getsize(tmp_path / "state.db") > 0
