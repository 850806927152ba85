"""What every test may ask for: the shared data, a real Kafka, an in-process Kafka, Prometheus.

A component is started if it is there; its tests are skipped, aloud, if it is not; and TIDEMARK_REQUIRE turns that skip
into an error (`all`, or names: `kafka,prometheus`). With `all`, any other skip fails the run, too. CI sets `all`.

Rules for tests that use them: a port is asked for with `free_port()`, never fixed; a readiness check, never a sleep;
one broker for the whole run, so every name (topic, group) comes from `unique_name()`; only processes that the test
started are ended, by their handle. TIDEMARK_CACHE and `tests/setup_components.sh` say where components come from.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

REQUIRED = set(os.environ.get("TIDEMARK_REQUIRE", "").replace(",", " ").split())
CHECKOUT = Path(__file__).resolve().parent.parent


def missing(name: str, why: str) -> NoReturn:
    """End this test: an error where the component is required, a skip elsewhere."""
    if REQUIRED & {"all", name}:
        pytest.fail(f"component {name}: {why}", pytrace=False)
    pytest.skip(f"component {name}: {why}")


def package(name: str) -> Any:
    """An optional package, imported: an error where everything is required, a skip elsewhere; also at a module's head."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if REQUIRED & {"all", name}:
            pytest.fail(f"package {name}: {error}", pytrace=False)
        pytest.skip(f"package {name}: {error}", allow_module_level=True)


#: Ports that one process of tests hands out in turn: far fewer are asked for within the life of any server.
PORTS = 500


@functools.cache
def _ports() -> Iterator[int]:
    """The ports of a block that is this process's own until it ends, over and over.

    They lie below those that the system gives to outgoing connections, so that a port which was free a moment ago is not
    taken by some client in between; and a name in the system's abstract sockets, which ends with the process, keeps other
    processes of tests away from the block.
    """
    lowest_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for first in range(10_500, lowest_outgoing - PORTS, PORTS):     # from above 10080, which browsers refuse
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0tidemark-tests-{first}")
        except OSError:                             # another process's
            claim.close()
            continue
        _claims.append(claim)
        return itertools.cycle(range(first, first + PORTS))
    return itertools.repeat(0)                      # no block is left: any port of the system's


#: What keeps the block of this process.
_claims: list[socket.socket] = []


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, and that nobody else is given meanwhile (see `_ports`)."""
    for port in _ports():
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return int(s.getsockname()[1])
    raise AssertionError("the ports never end")


class Process:
    """A program that a test started: its output in a file, ended with the test."""

    def __init__(self, argv: list[Any], log: str | Path, **options: Any) -> None:
        self.log = open(log, "ab")  # noqa: SIM115 (closed in stop)
        self.popen = subprocess.Popen([str(arg) for arg in argv], stdout=self.log, stderr=subprocess.STDOUT,
                                      stdin=subprocess.DEVNULL, **options)

    def wait_port(self, port: int, timeout: float = 30) -> None:
        """Return when something accepts connections on the port; raise if the program ends or time is up first."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.popen.poll() is not None:
                raise RuntimeError(f"{self.popen.args[0]} ended with {self.popen.returncode}; see {self.log.name}")
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError(f"{self.popen.args[0]}: port {port} still closed after {timeout} s; see {self.log.name}")

    def wait_said(self, *words: str, timeout: float = 90) -> None:
        """Return when all of this is in the log; raise, with the log, if the program ends or time is up first."""
        end = time.monotonic() + timeout
        while not all(one in (said := Path(self.log.name).read_text()) for one in words):
            if (code := self.popen.poll()) is not None:
                raise AssertionError(f"ended with {code} instead of saying {words}: {said[-4000:]}")
            if time.monotonic() > end:
                self.popen.send_signal(signal.SIGABRT)          # with PYTHONFAULTHANDLER it tells where every thread is
                self.popen.wait()
                raise AssertionError(f"did not say {words} within {timeout} s: {Path(self.log.name).read_text()[-8000:]}")
            time.sleep(0.02)

    def stop(self, timeout: float = 5) -> None:
        """SIGTERM, then SIGKILL after `timeout` seconds; safe to call twice."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        self.log.close()

    def kill(self) -> None:
        """SIGKILL, as a node that dies."""
        self.popen.kill()
        self.popen.wait()


class Stopwatch:
    """Seconds that something takes on a machine of its own, as far as that can be told on a shared one.

    What other programs kept its processors busy with since is taken off; what this test and the processes that it has
    waited for did is not. A wait, on the clock or on a lock, counts in full.
    """

    def __init__(self) -> None:
        self._begun, self._others = time.monotonic(), self._of_others()

    def seconds(self) -> float:
        """The seconds since it was made."""
        return time.monotonic() - self._begun - max(0.0, self._of_others() - self._others)

    @staticmethod
    def _of_others() -> float:
        """Processor seconds of all others since the machine began, for each processor."""
        lines = Path("/proc/stat").read_text().splitlines()
        user, nice, system, _, _, irq, softirq, steal, *_ = map(int, lines[0].split()[1:])
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        ours = sum(os.times()[:4])
        return (busy - ours) / max(1, sum(re.match(r"cpu\d", line) is not None for line in lines))


def wait_until(condition: Callable[[], Any], timeout: float = 60, what: str = "the condition") -> Any:
    """The first true value that `condition` gives, asked every 20 ms; TimeoutError after `timeout` seconds.

    The time only bounds how long a failure takes, so it is far more than a busy machine needs.
    """
    end = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not hold within {timeout} s")
        time.sleep(0.02)


@pytest.fixture
def unique_name(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """A function that makes a topic's or group's name which no other test has: `unique_name("topic")`."""
    test = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:60].strip("-")
    return lambda kind="name": f"{kind}-{test}-{secrets.token_hex(4)}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the shared real streams: TIDEMARK_SHARED, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("TIDEMARK_SHARED") or CHECKOUT.parent / "shared" / "data")
    if not folder.is_dir():
        missing("shared", f"no folder {folder}; set TIDEMARK_SHARED")
    return folder


@pytest.fixture(scope="session")
def prometheus_binary() -> str:
    """Path of the `prometheus` program; `promtool` stands beside it."""
    return shutil.which("prometheus") or missing("prometheus", "no `prometheus` on PATH; run tests/setup_components.sh")


@pytest.fixture(scope="session")
def promtool_binary() -> str:
    """Path of the `promtool` program."""
    return shutil.which("promtool") or missing("prometheus", "no `promtool` on PATH; run tests/setup_components.sh")


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real Apache Kafka (tests.kafka_broker.KafkaBroker), one for the whole run."""
    from tests.kafka_broker import KafkaBroker, why_not

    if lack := why_not():
        missing("kafka", lack)
    broker = KafkaBroker(tmp_path_factory.mktemp("kafka"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def kafka_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two Kafka nodes (tests.kafka_broker.KafkaPair), for leaders that move; one pair for the whole run."""
    from tests.kafka_broker import KafkaPair, why_not

    if lack := why_not():
        missing("kafka", lack)
    pair = KafkaPair(tmp_path_factory.mktemp("pair"))
    pair.start()
    yield pair
    pair.stop()


@pytest.fixture(scope="session")
def mock_cluster() -> Iterator[Any]:
    """librdkafka's in-process broker (monitor.demo.broker.InProcessBroker): fast, one member per group, no security."""
    if importlib.util.find_spec("confluent_kafka") is None:
        missing("mock", "no confluent-kafka; install the extra `demo`")
    from monitor.demo.broker import InProcessBroker

    with InProcessBroker() as broker:
        yield broker


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say that a skip counts as a failure where everything is required."""
    skipped = len(terminalreporter.stats.get("skipped", []))
    if skipped and "all" in REQUIRED:
        terminalreporter.write_line(f"TIDEMARK_REQUIRE=all, yet {skipped} skipped", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With TIDEMARK_REQUIRE=all, a run that skipped anything is not a success."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if "all" in REQUIRED and reporter and reporter.stats.get("skipped") and session.exitstatus == 0:
        session.exitstatus = 1
