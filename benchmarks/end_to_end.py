"""From the topic to decisions: the whole service, against the pipeline that one would write first, on one transport.

    ours    KafkaSource -> Decoder -> panes of 10,000 events -> scan, policy -> store, by `monitor.pipeline.run`
    naive   kafka-python's `poll` -> `orjson.loads` per message -> per window of 10,000 events and column one list
            comprehension and `np.histogram`, scipy's Kolmogorov-Smirnov test on the raw values; for categories a
            `Counter` and scipy's chi-square test

Broker and producer are another process (`benchmarks.topic`); what is counted is the CPU of this one, all threads, from
the first poll to the last decision. The collector stays on, as it is in production. Both must agree on the number of
events in every bin, level and missing slot before anything is compared. `after the transport` is what is left when the
CPU of the polls is taken off both; `without tests` takes scipy's tests off the naive side only, and is asked nothing.

Memory: the service in child processes over 1x and 4x the events; peak resident memory must be flat within 5 %.

    python -m benchmarks end_to_end --quick            a tenth of the events, one turn
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
from kafka import KafkaConsumer
from numpy.typing import NDArray
from scipy import stats

from benchmarks.events import MODEL, PANE_EVENTS, PANE_SECONDS, SCHEMA, reference_of, values_of
from benchmarks.measure import Bench, ratio_of
from benchmarks.topic import Topic, Topics
from monitor import config as configuration
from monitor.demo.broker import API_VERSION
from monitor.flow import Alarm, Batch, Rows, Source, Window
from monitor.ingest.collector import settle
from monitor.ingest.kafka import KafkaSource
from monitor.ingest.librdkafka import LibrdkafkaSource
from monitor.pipeline import Stages, run
from monitor.service import build
from monitor.state.panes import Panes

#: Features -> events, and the least ratio end to end and after the transport.
EVENTS = {20: 128_000, 100: 32_000}
TARGETS = {20: 1.1, 100: 1.6}
TARGET_AFTER_TRANSPORT = 1.4
#: With the transport librdkafka: default transport / it and naive / it, by msgspec; default pipeline / it by columns.
TARGET_TRANSPORT, TARGET_NAIVE, TARGET_COLUMNS = 1.8, 2.0, 3.5
MEMORY_FLAT = 1.05
STAGES = ("transport", "decode", "count", "decide", "store")
MEMORY_EVENTS = 128_000
_SECONDS_MAX = 180.0
_groups = count()

Result = TypeVar("Result")
Totals = dict[str, list[int]]


@dataclass(slots=True)
class Turn:
    """One pass over a topic.

    seconds : CPU per stage      events : read      totals : per column [missing, bins ...] or [missing, levels ...]
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    events: int = 0
    windows: int = 0
    totals: Totals = field(default_factory=dict)

    @property
    def cpu(self) -> float:
        """All of it."""
        return sum(self.seconds.values())

    def timed(self, stage: str, work: Callable[[], Result]) -> Result:
        """The result of `work`, its CPU noted under `stage`."""
        start = time.process_time()
        try:
            return work()
        finally:
            self.seconds[stage] += time.process_time() - start


class Until:
    """A source that ends after so many events; everything else is the source's own."""

    def __init__(self, source: Source, events: int) -> None:
        self._source, self._events = source, events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __iter__(self) -> Iterator[Batch]:
        read, deadline = 0, time.monotonic() + _SECONDS_MAX
        for batch in self._source:
            yield batch
            read += len(batch)
            if read >= self._events:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"expected {self._events} events within {_SECONDS_MAX:.0f} s, got {read}")
        yield Batch(ended=True)


class MeteredPanes:
    """Panes whose counting and closing are noted as `count`."""

    def __init__(self, panes: Panes, turn: Turn) -> None:
        self._panes, self._turn = panes, turn

    def add(self, batch: Batch, decoded: Sequence[Rows]) -> None:
        self._turn.timed("count", lambda: self._panes.add(batch, decoded))
        self._turn.events += len(batch)

    def closed(self) -> Iterator[Window]:
        closed = self._panes.closed()
        while (window := self._turn.timed("count", lambda: next(closed, None))) is not None:
            yield window


def metered(stages: Stages, turn: Turn) -> Iterator[Batch]:
    """The batches, the CPU of getting each noted as `transport`; between them the source is told whom to hold."""
    batches = iter(stages.source)
    while (batch := turn.timed("transport", lambda: next(batches, None))) is not None:
        yield batch
        turn.timed("transport", lambda: stages.source.hold(stages.panes.waiting()))


@contextmanager
def service(servers: Sequence[str], topic: Topic, transport: str = "kafka-python", decoder: str = "auto") -> Iterator[Stages]:
    """The service as `tidemark run` builds it, with its state in a file and everything else by default, over one topic."""
    with tempfile.TemporaryDirectory(prefix="tidemark-bench-") as folder:
        reference = Path(folder, "reference.json")
        reference_of(topic.features).save(reference)
        config = configuration.Config(
            monitors=[configuration.Monitor(MODEL, topic.name, str(reference), schema=SCHEMA,
                                            pane=configuration.Pane(PANE_SECONDS, 0))],
            kafka=configuration.Kafka(list(servers), group=f"ours-{os.getpid()}-{next(_groups)}",
                                      transport=transport, decoder=decoder),  # type: ignore[arg-type]
            service=configuration.Service(state=f"sqlite:///{folder}/state.db", dead_letters=f"file:{folder}/dead.jsonl"))
        make = LibrdkafkaSource if transport == "librdkafka" else KafkaSource
        source = Until(make(config.kafka, [topic.name], api_version=API_VERSION), topic.events)
        stages = build(config, source=source, launching=False)  # type: ignore[arg-type]
        thresholds = gc.get_threshold()
        settle()                                    # as `tidemark run` does between building and reading
        try:
            yield stages
        finally:
            gc.set_threshold(*thresholds)           # the naive pipeline has the collector as Python has it
            gc.unfreeze()
            stages.close()


def ours(servers: Sequence[str], topic: Topic, transport: str = "kafka-python", decoder: str = "auto") -> Turn:
    """One pass of the service."""
    turn = Turn()
    with service(servers, topic, transport, decoder) as stages:
        reference = reference_of(topic.features)
        counts = np.zeros(reference.shape, np.int64)

        def decode(batch: Batch) -> Sequence[Rows]:
            return turn.timed("decode", lambda: stages.decode(batch))

        def publish(window: Window, scores: Any, alarms: tuple[Alarm, ...]) -> None:
            np.add(counts, window.profile.counts, out=counts)
            turn.windows += 1
            turn.timed("decide", lambda: stages.publish(window, scores, alarms))

        run(metered(stages, turn), decode, MeteredPanes(stages.panes, turn),  # type: ignore[arg-type]
            lambda window: turn.timed("decide", lambda: stages.judge(window)),
            lambda window, scores: turn.timed("decide", lambda: stages.policy(window, scores)),
            publish, lambda window, scores, alarms: turn.timed("decide", lambda: stages.offer(window, scores, alarms)),
            lambda batch: turn.timed("store", lambda: stages.commit(batch)),
            lambda: turn.timed("store", stages.advance))
        for row, record in zip(counts[: len(reference.columns)], reference.records, strict=False):    # joint rows are ours alone
            # The bins below and above are no bins of `np.histogram`; rest and unseen are no levels.
            inner = row[2:record.binning.bins - 1] if record.is_numeric else row[1:record.binning.bins - 2]
            turn.totals[record.name] = [int(row[0]), *inner.tolist()]
    return turn


def naive(servers: Sequence[str], topic: Topic) -> Turn:
    """One pass of the pipeline that one would write first, with the client's options as ours are."""
    turn, first = Turn(), values_of(topic.features, PANE_EVENTS, seed=1)
    reference = reference_of(topic.features)
    records = {record.name: record for record in reference.records[: len(reference.columns)]}
    known = {name: values[~np.isnan(values)] if isinstance(values, np.ndarray) else Counter(values)
             for name, values in first.items()}
    turn.totals = {name: [0] * (1 + (len(records[name].binning.edges) - 1 if records[name].is_numeric
                                     else len(records[name].binning.levels))) for name in known}
    fetch = configuration.Kafka().fetch_bytes
    consumer = KafkaConsumer(
        topic.name, bootstrap_servers=list(servers), api_version=API_VERSION, auto_offset_reset="earliest",
        group_id=f"naive-{os.getpid()}-{next(_groups)}", enable_auto_commit=False, max_poll_records=10_000,
        fetch_max_bytes=fetch, max_partition_fetch_bytes=min(fetch, 8 << 20), metrics_enabled=False)
    rows: list[dict[str, Any]] = []
    deadline = time.monotonic() + _SECONDS_MAX
    try:
        while turn.events < topic.events:
            polled = turn.timed("transport", lambda: consumer.poll(timeout_ms=500))
            values = [record.value for found in polled.values() for record in found]
            turn.events += len(values)
            rows += turn.timed("decode", lambda values=values: [orjson.loads(value) for value in values])  # type: ignore[misc]
            while len(rows) >= PANE_EVENTS:
                naive_window(turn, rows[:PANE_EVENTS], records, known)
                rows = rows[PANE_EVENTS:]
            if time.monotonic() > deadline:
                raise TimeoutError(f"expected {topic.events} events within {_SECONDS_MAX:.0f} s, got {turn.events}")
        if rows:
            naive_window(turn, rows, records, known)
    finally:
        consumer.close(autocommit=False, timeout_ms=3000)
    return turn


def naive_window(turn: Turn, rows: list[dict[str, Any]], records: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """One window: a list comprehension, a histogram and a test per column."""
    turn.windows += 1
    for name, record in records.items():
        totals = turn.totals[name]
        if record.is_numeric:
            values, histogram = turn.timed("count", lambda: numbers(rows, name, record.binning.edges))  # noqa: B023
            turn.timed("decide", lambda: stats.ks_2samp(known[name], values, method="asymp"))  # noqa: B023
            found = [len(rows) - len(values), *histogram.tolist()]
        else:
            counter = turn.timed("count", lambda: Counter([row["features"][name] for row in rows]))  # noqa: B023
            turn.timed("decide", lambda: chi_square(known[name], counter))  # noqa: B023
            found = [counter[None], *(counter[level] for level in record.binning.levels)]
        turn.totals[name] = [a + b for a, b in zip(totals, found, strict=True)]


def numbers(rows: list[dict[str, Any]], name: str, edges: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The present values of a column and their histogram."""
    values = np.array([row["features"][name] for row in rows], dtype=np.float64)
    present = values[~np.isnan(values)]
    return present, np.histogram(present, edges)[0]


def chi_square(reference: Counter[str | None], window: Counter[str | None]) -> float:
    """Scipy's test of the two tables of levels."""
    levels = [level for level in reference | window if level is not None]
    table = [[reference[level] for level in levels], [window[level] for level in levels]]
    return float(stats.chi2_contingency(table, correction=False).pvalue)


def compare(bench: Bench, servers: Sequence[str], topic: Topic) -> None:
    """The rows of one width: ratios, then what each stage costs."""
    name = f"{topic.features} features"
    pairs = [(naive(servers, topic), ours(servers, topic))]                      # the rehearsal, not counted
    theirs, own = pairs[0]
    if (theirs.events, theirs.totals) != (own.events, own.totals):
        bench.bound(f"{name}: results differ", float("nan"), at_least=TARGETS[topic.features], detail="results differ")
        return
    turns = []
    faster: dict[str, list[Turn]] = {"msgspec": [], "columns": []}
    for turn in range(bench.repeat + 1):            # in turn, so that a machine that slows down slows all; the first of
        pair = (naive(servers, topic), ours(servers, topic)) if turn else pairs[0]      # each is the rehearsal
        for decoder, found in faster.items():
            found.append(ours(servers, topic, "librdkafka", decoder))
        turns.append(pair)
        print(f"{name}: {'turn ' + str(turn) if turn else 'rehearsal'} of {bench.repeat} done", file=sys.stderr, flush=True)
    turns = turns[1:]
    faster = {decoder: found[1:] for decoder, found in faster.items()}

    def ratio(cost: Callable[[Turn], float], own_cost: Callable[[Turn], float] | None = None) -> tuple[float, str]:
        costs = [(cost(theirs), (own_cost or cost)(own)) for theirs, own in turns]
        slow, fast = (statistics.median(cost[side] for cost in costs) / topic.events * 1e9 for side in (0, 1))
        value, words = ratio_of(costs)
        return value, f"naive {slow:.0f} ns, ours {fast:.0f} ns an event, {words}"

    def rest(turn: Turn) -> float:
        return turn.cpu - turn.seconds["transport"]

    value, detail = ratio(lambda turn: turn.cpu)
    bench.bound(f"{name}, end to end", value, at_least=TARGETS[topic.features], detail=detail)
    value, detail = ratio(rest)
    bench.bound(f"{name}, after the transport", value, at_least=TARGET_AFTER_TRANSPORT, detail=detail)
    value, detail = ratio(lambda turn: turn.cpu - turn.seconds["decide"], lambda turn: turn.cpu)
    bench.fact(f"{name}, end to end, naive without tests", value, "x", detail)
    value, detail = ratio(lambda turn: rest(turn) - turn.seconds["decide"], rest)
    bench.fact(f"{name}, after the transport, naive without tests", value, "x", detail)
    if any((turn.events, turn.totals) != (own.events, own.totals) for found in faster.values() for turn in found):
        bench.bound(f"{name}, librdkafka: results differ", float("nan"), at_least=TARGET_TRANSPORT, detail="results differ")
        return
    for what, slow, decoder, target in (
            ("default transport / librdkafka", [own for _, own in turns], "msgspec", TARGET_TRANSPORT),
            ("naive / librdkafka", [theirs for theirs, _ in turns], "msgspec", TARGET_NAIVE),
            ("default pipeline / librdkafka and columns", [own for _, own in turns], "columns", TARGET_COLUMNS)):
        value, words = ratio_of([(a.cpu, b.cpu) for a, b in zip(slow, faster[decoder], strict=True)])
        detail = f"{statistics.median(turn.cpu for turn in faster[decoder]) / topic.events * 1e9:.0f} ns an event, {words}"
        if topic.features == 20:
            bench.bound(f"{name}, {what}", value, at_least=target, detail=detail)
        else:
            bench.fact(f"{name}, {what}", value, "x", detail)
    for decoder, found in faster.items():
        for stage in STAGES:
            own_ns = statistics.median(turn.seconds.get(stage, 0.0) for turn in found) / topic.events * 1e9
            bench.fact(f"{name}, librdkafka and {decoder}, {stage}", own_ns, "ns/event")
    for stage in STAGES:
        theirs_ns, own_ns = (statistics.median(pair[side].seconds.get(stage, 0.0) for pair in turns) / topic.events * 1e9
                             for side in (0, 1))
        bench.fact(f"{name}, {stage}", own_ns, "ns/event", f"naive {theirs_ns:.0f}")


def peak_bytes(servers: Sequence[str], topic: Topic) -> float:
    """Peak resident memory of a process that runs the service over a topic."""
    order = json.dumps([list(servers), topic.name, topic.features, topic.events, topic.partitions])
    done = subprocess.run([sys.executable, "-m", "benchmarks.end_to_end", "--memory-of", order], check=True,
                          capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent)
    return float(done.stdout)


def memory_of(order: str) -> int:
    """The child of `peak_bytes`: one pass, then its peak, bytes."""
    servers, *topic = json.loads(order)
    with service(servers, Topic(*topic)) as stages:
        stages.run()
    status = Path("/proc/self/status").read_text()              # not getrusage: its peak is inherited from the parent
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--memory-of"]:
        return memory_of(arguments[1])
    bench = Bench("end_to_end: naive pipeline / ours, process CPU", arguments, repeat=5)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    wide = {features: Topic(f"features-{features}", features, bench.sized(events)) for features, events in EVENTS.items()}
    flat = [Topic(f"memory-{times}x", 20, bench.sized(MEMORY_EVENTS) * times, 64) for times in (1, 4)]
    with Topics((*wide.values(), *flat)) as topics:
        for topic in wide.values():
            compare(bench, topics.servers, topic)
        peaks = [(peak_bytes(topics.servers, flat[0]), peak_bytes(topics.servers, flat[1])) for _ in range(min(bench.repeat, 3))]
    small, large = (statistics.median(pair[i] for pair in peaks) for i in (0, 1))
    bench.bound("peak resident memory, 4x / 1x events", large / small, at_most=MEMORY_FLAT,
                detail=f"{small / 2**20:.0f} MiB at {flat[0].events} events, {large / 2**20:.0f} MiB at {flat[1].events}")
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
