"""Two replicas against one process: how many more events a second, on a real broker.

    one      `tidemark run` with its own state file, all partitions
    two      two `tidemark run` with `service.replicas`, each its share of the partitions; both decide and write the topic

What limits a process is its processor: a process that has a core to itself takes as many seconds as it uses of it. So the ratio
is CPU of the one / CPU of the busier of the two, from the moment in which all have their partitions to the last counted event;
it is what two cores give, whatever else this machine does and wherever the broker runs. The ratio of the wall-clock times is
printed beside it, with nothing asked of it: the broker shares the cores here. Both must count the same events in the same
panes before anything is compared.

The events are in the topic before the span begins: the processes stand still (SIGSTOP) while they are sent, so that the sender
takes no time of theirs. What a process does by the clock and not by the event (checkpoints, heartbeats, looking for a change of
the group) is in its CPU as long as the span lasts.

    python -m benchmarks.replicas --quick              a tenth of the events, one turn

It needs Java and the jars of tests/setup_components.sh, so it is not among those that `python -m benchmarks` runs.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from benchmarks.events import MODEL, PANE_SECONDS, messages, reference_of
from benchmarks.measure import Bench
from monitor.config import load
from monitor.ingest.state_topic import StateReader
from monitor.replicas import partition_of
from monitor.state.replica_store import MirroredStore, latest
from tests.conftest import Process
from tests.kafka_broker import KafkaBroker, why_not

FEATURES, EVENTS, PARTITIONS = 20, 600_000, 4
TARGET = 1.7
_SECONDS_MAX = 600.0


def _cpu(process: Process) -> float:
    """Seconds of processor that a process has used, all threads."""
    fields = Path(f"/proc/{process.popen.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _until(condition: Callable[[], bool], what: str, processes: list[Process]) -> None:
    end = time.monotonic() + _SECONDS_MAX
    while not condition():
        if time.monotonic() > end or any(process.popen.poll() is not None for process in processes):
            raise SystemExit(f"benchmarks.replicas: {what} did not come; see the logs beside the configuration")
        time.sleep(0.1)


class World:
    """A topic and one way of reading it."""

    def __init__(self, folder: Path, broker: KafkaBroker, name: str) -> None:
        self.folder, self.broker, self.name = folder / name, broker, name
        self.folder.mkdir()
        broker.create_topic(name, PARTITIONS)
        reference_of(FEATURES).save(self.folder / "reference.json")

    def config(self, replica: str) -> Path:
        """The configuration of one process; of the only one where `replica` is empty."""
        service: dict[str, object] = {"listen": "127.0.0.1:0", "dead_letters": "none",
                                      "state": f"sqlite:///{self.folder}/state{replica}.db"}
        if replica:
            service["replicas"] = {"topic": f"{self.name}.state", "partitions": 4, "replication": 1, "name": replica,
                                   "transaction_seconds": 120.0}
        document = {
            "service": service, "reports": {"enabled": False},
            "kafka": {"bootstrap_servers": [self.broker.bootstrap_servers], "group": self.name, "session_timeout_seconds": 120.0,
                      "idle_seconds": 600.0},
            "monitors": [{"model": MODEL, "topic": self.name, "reference": str(self.folder / "reference.json"),
                          "schema": {"prefix": "features", "timestamp": "ts"},
                          "pane": {"seconds": PANE_SECONDS, "lateness_seconds": PANE_SECONDS}}],
        }
        path = self.folder / f"tidemark{replica}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def run(self, replicas: list[str], values: list[bytes]) -> tuple[float, list[float], dict[int, int]]:
        """(wall-clock seconds, CPU seconds of each process, events by pane) of counting the values."""
        configs = [self.config(replica) for replica in replicas]
        logs = [self.folder / f"log{replica}.txt" for replica in replicas]
        processes = [Process([sys.executable, "-m", "monitor.cli", "run", "-c", config], log, env={
            **os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
            for config, log in zip(configs, logs, strict=True)]
        reader: StateReader | None = None
        try:
            if replicas[0]:
                share = PARTITIONS // len(replicas)
                _until(lambda: all((text := log.read_text()) and "Counting." in text and text.rpartition("Counting.")[2].count(
                    f"{self.name}:") >= share for log in logs) and any("Deciding." in log.read_text() for log in logs),
                    "a share for everyone", processes)
                config = load(configs[0])
                assert config.service.replicas is not None
                reader = StateReader(config.kafka, config.service.replicas, partition_of(MODEL, 4))
            else:
                _until(lambda: "Watching." in logs[0].read_text(), "the start", processes)
            records: list[tuple[int, bytes, bytes | None]] = []
            for process in processes:
                process.popen.send_signal(signal.SIGSTOP)
            for partition in range(PARTITIONS):
                self.broker.produce(self.name, values[partition::PARTITIONS], partition=partition, codec="lz4")
            begun, used = time.monotonic(), [_cpu(process) for process in processes]
            for process in processes:
                process.popen.send_signal(signal.SIGCONT)

            def counted() -> dict[int, int]:
                if reader is None:
                    return _panes(self.folder / "state.db")
                while found := reader.poll():
                    records.extend(found)
                rows, _ = latest(records)
                MirroredStore(self.folder / "seen.db", rows, lambda changes: None).close()
                return _panes(self.folder / "seen.db")

            _until(lambda: sum(counted().values()) >= len(values), "the last event", processes)
            wall = time.monotonic() - begun
            spent = [_cpu(process) - before for process, before in zip(processes, used, strict=True)]
            return wall, spent, counted()
        finally:
            if reader is not None:
                reader.close()
            for process in processes:
                process.popen.send_signal(signal.SIGCONT)
                process.stop(20)


def _panes(path: Path) -> dict[int, int]:
    """Events by pane, open ones too, as a state file says."""
    if not path.exists():
        return {}
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        return dict(db.execute("SELECT pane, sum(events) FROM panes GROUP BY pane"))
    except sqlite3.OperationalError:
        return {}
    finally:
        db.close()


def main() -> int:
    """Run it."""
    bench = Bench("two replicas against one process", repeat=3)
    if lack := why_not():
        print(f"benchmarks.replicas: no broker: {lack}", file=sys.stderr)
        return 2
    values = list(messages(FEATURES, bench.sized(EVENTS, 2_000)))
    ratios, walls = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "broker").mkdir()
        broker = KafkaBroker(folder / "broker")
        broker.start()
        try:
            for turn in range(bench.repeat):
                wall, (alone,), panes = World(folder, broker, f"one{turn}").run([""], values)
                wall_two, both, panes_two = World(folder, broker, f"two{turn}").run(["-a", "-b"], values)
                if panes != panes_two:
                    bench.bound("throughput, two / one", float("nan"), at_least=TARGET, detail="results differ")
                    return bench.finish()
                ratios.append(alone / max(both))
                walls.append(wall / wall_two)
                bench.fact(f"turn {turn}: one process", alone / len(values) * 1e6, "us CPU/event", f"wall {wall:.1f} s")
                bench.fact(f"turn {turn}: two replicas", sum(both) / len(values) * 1e6, "us CPU/event",
                           f"{both[0]:.2f} s and {both[1]:.2f} s, wall {wall_two:.1f} s")
        finally:
            broker.stop()
    bench.fact("wall-clock, one / two, the broker on the same cores", statistics.median(walls), "x")
    bench.bound("throughput by CPU, two / one", statistics.median(ratios), at_least=TARGET)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
