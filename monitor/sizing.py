"""How much memory a configuration can take: one formula, term by term, enforced at start.

Idea: everything that the process holds is bounded by the configuration and by constants of the code, never by events,
categories, launches or time. Each bound is a *term* below, with its formula in words and the setting that lowers it; their
sum must fit `limits.memory_mb`. `tidemark check-config` prints the table, `watched` refuses what cannot fit, and
`benchmarks/soak` and tests hold measured resident memory under it.

Invariant: a term is an upper bound of what is in use at once; the sum is made larger by what an allocator keeps beside
it. Two things lie outside of it, and `check-config` says so: trainers of the local launcher (processes of their own), and the
file that a challenger is judged on, whose size its trainer decides within bounds of its own (`retrain.holdout`).

Sources: sizes of Python and numpy objects, and measurements at 20, 100 and 1,000 columns (`benchmarks/soak`).
Neighbours: `service` knows what a monitor keeps (`Watched`) and asks, `commands.check_config` prints.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from detectors.embedding import dimensions
from detectors.reference import Reference
from detectors.ring import PANES_MAX
from monitor.config import Config, Monitor, Reports
from monitor.decide.plan import Plan
from monitor.decide.quality import HISTORY_PANES
from monitor.errors import ConfigError
from monitor.expose.history import PANES_KEPT
from monitor.ingest.files import BLOCK_BYTES
from monitor.ingest.unpack import unpacked_bytes
from monitor.pipeline import HELD_BYTES
from monitor.reporting import sampling_of, why_none
from monitor.retrain.ledger import kept_of
from monitor.state.capture import FILE_BYTES, WRITERS
from monitor.state.sample import NUMBER_BYTES, TEXT_BYTES
from monitor.state.store import KEPT_PANES

log = logging.getLogger("tidemark")

MIB = 1 << 20
COUNT_BYTES = 8
#: Interpreter, numpy, scipy, pyarrow, the Kafka client, the HTTP server with its threads and SQLite's pages.
PROCESS_BYTES = 200 * MIB
#: What further packages take once they are in use.
PACKAGE_BYTES: Mapping[str, int] = {"torch": 450 * MIB, "river": 120 * MIB, "kubernetes": 80 * MIB, "evidently": 400 * MIB,
                                    "numba": 120 * MIB}
#: Beginnings of detectors' names, and the package that computes them.
DETECTOR_PACKAGES = (("evidently:", "evidently"), ("river:", "river"), ("mmd", "torch"), ("c2st", "torch"),
                     ("fourier_mmd", "torch"))
#: evidently in its own process, while a report is made: it is in the container's memory, not in ours.
REPORT_BYTES = 480 * MIB
#: What is unpacked in a turn, the batch in hand and its copy (`ingest.unpack`); with librdkafka, what its queue and what is
#: on its way become: lz4 of JSON makes 3 to 4, and nothing bounds it.
UNPACKED_COPIES, UNPACKED_TIMES = 3, 5
#: An Arrow message's buffers, the table of a piece of a turn (up to twice as much), and its columns.
ARROW_COPIES = 5
#: A row that a replica has in the state topic: its key and a digest; rows of a model beside its panes; bytes of a stored count.
TOPIC_ROW_BYTES, TOPIC_ROWS, STORED_COUNT_BYTES = 250, 2_000, 1.5
#: One value of a row while a poll is decoded and counted, as message text, Python object, matrix and sorted copy; one row.
VALUE_BYTES, ROW_BYTES = 120, 400
#: A row of a reference: bins, directions, design effects; and what counting, scan, chart and exporter prepare for it.
REFERENCE_ROW_BYTES, PREPARED_ROW_BYTES = 18_000, 18_000
#: A row of the latest decision: scores, effects, distances and what the exporter keeps of them; its working copies.
JUDGED_ROW_BYTES, SCAN_ROW_BYTES = 2_500, 24_000
#: What any monitor takes: machines, schema, decoder, its fixed series; a decided pane on the page beside its scores.
MONITOR_BYTES, HISTORY_PANE_BYTES = 150_000, 450
#: One series: its prepared text, the text of now and of before, and the answers to two scrapes.
SERIES_BYTES, SERIES_PER_MONITOR, SERIES_PER_ROW = 700, 130, 45
#: Alarms, decisions, audit and answers of the API, of all models; a launch with its reason and columns.
KEPT_BYTES, LAUNCH_BYTES, LAUNCH_COLUMN_BYTES = 24 * MIB, 6_000, 80
#: Dead letters wait for a checkpoint up to 16 MiB, and take as much again as text.
DEAD_LETTER_BYTES = 40 * MIB
#: What the allocator keeps beside what is in use.
ALLOCATOR_SHARE = 0.1


class Sized(Protocol):
    """What is known of one monitor: `service.Watched`."""

    @property
    def monitor(self) -> Monitor:
        """Its node of the configuration."""

    @property
    def reference(self) -> Reference:
        """What it is compared with."""

    @property
    def reports(self) -> Reports | None:
        """What is kept for reports; None: nothing."""

    def plan(self) -> Plan:
        """Its further detectors."""


@dataclass(frozen=True, slots=True)
class Term:
    """One summand: what it is, its formula with numbers in it, bytes, and the setting that lowers it ("" where none does)."""

    name: str
    formula: str
    bytes: int
    setting: str = ""


@dataclass(frozen=True, slots=True)
class Sizing:
    """All terms of a configuration, in the order of an event's way."""

    terms: tuple[Term, ...]
    limit: int

    @property
    def bytes(self) -> int:
        """The sum: resident memory that the service stays below."""
        return sum(term.bytes for term in self.terms)

    def refuse(self) -> None:
        """ConfigError where it does not fit `limits.memory_mb`: by how much, and what mends it."""
        over = self.bytes - self.limit
        if over <= 0:
            return
        first = max((term for term in self.terms if term.setting), key=lambda term: term.bytes)
        raise ConfigError(
            f"limits.memory_mb: expected at least {_mib(self.bytes)} for this configuration, got {self.limit // MIB}, "
            f"{_mib(over)} too little; the largest part is {first.name} ({_mib(first.bytes)} MiB: {first.formula}): "
            f"{_mend(first.setting)}, or raise limits.memory_mb; `tidemark check-config` shows every part")


def _mend(setting: str) -> str:
    return f"set {setting}: false" if setting == "reports.enabled" else f"lower {setting}"


def sizing(config: Config, monitors: Sequence[Sized]) -> Sizing:
    """The terms of a configuration; nothing outside the given references is read."""
    terms = [Term("process", "Python, numpy, scipy, pyarrow, Kafka client, HTTP server", PROCESS_BYTES)]
    terms += _packages(config, monitors)
    terms += _intake(config, monitors)
    terms += _per_model(config, monitors)
    terms += _kept(config, monitors)
    allocator = int(sum(term.bytes for term in terms) * ALLOCATOR_SHARE)
    terms.append(Term("allocator", f"{ALLOCATOR_SHARE:.0%} of all above, freed and not given back", allocator))
    return Sizing(tuple(term for term in terms if term.bytes), config.limits.memory_mb * MIB)


def memory_of(config: Config, one: Sized) -> int:
    """Bytes that one monitor adds: its counts, references and what is remembered of it."""
    return sum(term.bytes for term in _per_model(config, [one]))


def _packages(config: Config, monitors: Sequence[Sized]) -> list[Term]:
    """What is imported only where it is used."""
    used: dict[str, str] = {}
    wanted = "columns" if config.kafka.transport == "librdkafka" and config.kafka.decoder == "auto" else config.kafka.decoder
    if wanted == "columns" and not config.files.paths:
        used["numba"] = "kafka.decoder"
    for index, one in enumerate(monitors):
        for place, said in enumerate(one.monitor.detectors):
            for prefix, package in DETECTOR_PACKAGES:
                if said.name.startswith(prefix):
                    used.setdefault(package, f"monitors[{index}].detectors[{place}]")
        retrain = one.monitor.retrain
        names = [] if retrain is None else [retrain.launcher.__struct_config__.tag,
                                            None if retrain.promote is None else retrain.promote.__struct_config__.tag]
        if {"kubernetes", "kserve"} & set(names):
            used.setdefault("kubernetes", "")
    return [Term(f"package {name}", "once imported", PACKAGE_BYTES[name], where) for name, where in used.items()]


def _intake(config: Config, monitors: Sequence[Sized]) -> list[Term]:
    """From the broker's bytes to rows that are counted, and what waits between two checkpoints."""
    by_topic: dict[str, int] = defaultdict(int)
    for one in monitors:
        by_topic[one.monitor.topic] += _values(one)
    widest = max(by_topic.values(), default=0)
    if config.kafka.bootstrap_servers:
        fetched, records = config.kafka.fetch_bytes, config.kafka.poll_records
        if config.kafka.transport == "librdkafka":
            waiting, words = fetched * (UNPACKED_TIMES + 1), f"kafka.fetch_bytes x (1 + {UNPACKED_TIMES} unpacked)"
        else:
            unpacked = unpacked_bytes(fetched)
            waiting = fetched + UNPACKED_COPIES * unpacked
            words = f"kafka.fetch_bytes and {UNPACKED_COPIES} x {unpacked // MIB} MiB unpacked"
        terms = [
            Term("fetched bytes", words, waiting, "kafka.fetch_bytes"),
            Term("one poll", f"{records:,} rows x ({widest:,} values x {VALUE_BYTES} B + {ROW_BYTES} B)",
                 min(records * (widest * VALUE_BYTES + ROW_BYTES), 6 * waiting), "kafka.poll_records"),
        ]
    else:
        terms = [Term("one block of a file", f"{BLOCK_BYTES // MIB} MiB x 6 as text, rows and columns", 6 * BLOCK_BYTES)]
    if any(one.monitor.schema.format == "arrow" for one in monitors):
        terms.append(Term("Arrow messages", f"limits.unpacked_bytes x {ARROW_COPIES} as buffers, table and columns",
                          ARROW_COPIES * config.limits.unpacked_bytes, "limits.unpacked_bytes"))
    return [*terms,
            Term("held for a checkpoint", f"{HELD_BYTES // MIB} MiB of decided panes, captured rows and refused records",
                 HELD_BYTES),
            Term("dead letters", "16 MiB of records, and as text", DEAD_LETTER_BYTES)]


def _per_model(config: Config, monitors: Sequence[Sized]) -> list[Term]:
    """Counts, references and what is remembered of every monitor."""
    cells = [int(np.prod(one.reference.shape)) for one in monitors]
    rows = [one.reference.shape[0] for one in monitors]
    held, models, all_rows, all_cells = config.limits.open_panes, len(monitors), sum(rows), sum(cells)
    largest = max(range(models), key=cells.__getitem__)
    copies = [2 if one.monitor.retrain is not None and one.monitor.retrain.promote is not None else 1 for one in monitors]
    references = sum(copy * (count * REFERENCE_ROW_BYTES + _sample_bytes(one.reference))
                     for one, count, copy in zip(monitors, rows, copies, strict=True))
    unordered = [2 * PANES_MAX * cell * COUNT_BYTES for one, cell in zip(monitors, cells, strict=True)
                 if not one.reference.ordered]
    history = sum(PANES_KEPT * (2 * count + HISTORY_PANE_BYTES) for count in rows)
    rates = sum(min(HISTORY_PANES, 7 * 86_400 // one.monitor.pane.seconds + 30) * 20 for one in monitors)
    sampled, samples_said = _sampled(monitors, held)
    esr = sum(count * 6_400 for one, count in zip(monitors, rows, strict=True) if one.monitor.alarm.method == "esr")
    return [
        Term("open panes", f"{all_cells:,} counts x {held} panes x {COUNT_BYTES} B", all_cells * held * COUNT_BYTES,
             "limits.open_panes"),
        Term("rings", f"{all_cells:,} counts x {PANES_MAX + 1} sums x {COUNT_BYTES} B",
             all_cells * (PANES_MAX + 1) * COUNT_BYTES, "the number of columns"),
        Term("references", f"{all_rows:,} rows x {REFERENCE_ROW_BYTES // 1000} kB and their kept rows, twice where promoted",
             references, "the number of columns"),
        Term("prepared", f"{all_rows:,} rows x {(PREPARED_ROW_BYTES + JUDGED_ROW_BYTES) / 1000:g} kB and 4 x counts",
             all_rows * (PREPARED_ROW_BYTES + JUDGED_ROW_BYTES) + 4 * all_cells * COUNT_BYTES + esr, "the number of columns"),
        Term("one decision", f"{rows[largest]:,} rows x {SCAN_ROW_BYTES // 1000} kB of the largest monitor",
             rows[largest] * SCAN_ROW_BYTES + 8 * cells[largest] * COUNT_BYTES + max(unordered, default=0)),
        Term("samples", samples_said, sampled, "limits.open_panes"),
        Term("page history and rates", f"{models:,} monitors x {PANES_KEPT} panes x (2 B a row + {HISTORY_PANE_BYTES} B), and a "
             "week of rates", history + rates),
        Term("monitors", f"{models:,} x {MONITOR_BYTES // 1000} kB of machines, schema, decoder", models * MONITOR_BYTES),
    ]


def _kept(config: Config, monitors: Sequence[Sized]) -> list[Term]:
    """What waits for storage, is shown, or is remembered over all models."""
    retrained = [one for one in monitors if one.monitor.retrain is not None]
    capturing = [one for one in retrained if one.monitor.retrain is not None and one.monitor.retrain.data_uri is None]
    terms = []
    if capturing:
        writing = WRITERS * FILE_BYTES
        terms.append(Term("captured rows", f"limits.capture_mb x 2 and {WRITERS} files x {FILE_BYTES // MIB} MiB being written",
                          2 * config.limits.capture_mb * MIB + writing, "limits.capture_mb"))
    if retrained:
        columns = max(len(one.reference.columns) for one in retrained)
        held = sum(sum(kept_of(one.monitor.retrain.max_per_week, one.monitor.retrain.useless_max).values()) + 1
                   for one in retrained if one.monitor.retrain is not None)
        terms.append(Term("launches", f"{held:,} open and latest ones x ({LAUNCH_BYTES} B + {columns:,} columns x "
                          f"{LAUNCH_COLUMN_BYTES} B)", held * (LAUNCH_BYTES + columns * LAUNCH_COLUMN_BYTES),
                          "retrain.max_per_week and useless_max"))
    if config.service.replicas is not None:
        terms.append(_topic(monitors))
    series = min(config.limits.series, sum(one.reference.shape[0] for one in monitors) * SERIES_PER_ROW)
    series += SERIES_PER_MONITOR * len(monitors)
    terms += [
        Term("exposition", f"{series:,} series x {SERIES_BYTES} B", series * SERIES_BYTES, "limits.series"),
        Term("alarms, decisions, audit, pages", "the latest of all models, and answers being made", KEPT_BYTES),
    ]
    if any(one.reports is not None and not why_none(one.reports, one.reference) for one in monitors):
        terms.append(Term("report", "evidently in a process of its own, one at a time", REPORT_BYTES, "reports.enabled"))
    return terms


def _topic(monitors: Sequence[Sized]) -> Term:
    """A replica that owns every model: what it knows of the state topic's rows, and those of the largest as it takes it over."""
    rows = len(monitors) * (KEPT_PANES + TOPIC_ROWS)
    largest = max(int(np.prod(one.reference.shape)) for one in monitors)
    taken = int(KEPT_PANES * largest * STORED_COUNT_BYTES)
    return Term("state topic", f"{rows:,} rows x {TOPIC_ROW_BYTES} B, and a week of panes of the largest model",
                rows * TOPIC_ROW_BYTES + taken)


def _values(one: Sized) -> int:
    """Numbers and texts of one event."""
    vectors = dimensions(one.reference.expansions)
    return sum(vectors.get(column.name, 1) for column in one.reference.columns) + 2


def _sample_bytes(reference: Reference) -> int:
    """The rows that a reference keeps."""
    return sum(values.nbytes if isinstance(values, np.ndarray) else sum(64 + len(value or "") for value in values)
               for values in (reference.sample or {}).values())


def _sampled(monitors: Sequence[Sized], open_panes: int) -> tuple[int, str]:
    """Kept rows of the open panes and of those that a further detector looks back at, and how that is said."""
    total = rows_most = 0
    for one in monitors:
        plan = one.plan()
        sampling = sampling_of(plan, one.reference, one.reports)
        if sampling is None:
            continue
        kinds = {column.name: column.kind for column in one.reference.columns}
        numbers = {name: NUMBER_BYTES for name, kind in kinds.items() if kind == "numeric"}
        numbers |= {name: NUMBER_BYTES * size for name, size in dimensions(one.reference.expansions).items()}
        width = sum(numbers.get(name, TEXT_BYTES) for name in sampling.names) + 4 * NUMBER_BYTES
        total += sampling.rows * width * (open_panes + plan.panes)
        rows_most = max(rows_most, sampling.rows)
    return total, f"up to {rows_most} rows of each open pane, and of those that detectors look back at"


def _mib(count: int) -> str:
    return f"{-(-count // MIB)}"


def memory_given(root: Path = Path("/sys/fs/cgroup"), machine: Path = Path("/proc/meminfo")) -> tuple[int, str] | None:
    """(bytes, whose limit) of the memory that this process may have; None where that is not told."""
    found = []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):         # cgroup 2, then 1
        try:
            text = (root / name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdigit() and int(text) < 1 << 60:
            found.append((int(text), "the container's limit"))
    try:
        line = next(line for line in machine.read_text(encoding="ascii").splitlines() if line.startswith("MemTotal:"))
        found.append((int(line.split()[1]) * 1024, "the machine's memory"))
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    return min(found, default=None)


def memory_warning(config: Config) -> str:
    """One sentence where `limits.memory_mb` is more than there is; empty where it fits or nobody says."""
    given = memory_given()
    if given is None or config.limits.memory_mb * MIB <= given[0]:
        return ""
    return (f"limits.memory_mb is {config.limits.memory_mb}, and {given[1]} is {given[0] // MIB} MiB: the process may be killed "
            "before it refuses anything; raise that limit, or lower limits.memory_mb")
