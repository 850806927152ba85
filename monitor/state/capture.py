"""Captured events: what a retraining learns from, as Parquet files beside the counts.

    <uri>/events/model=<model>/day=<UTC day of event time>/<topic>-<partition>-<first offset>-<end>.parquet
    <uri>/<model>/launches/<launch>/data      what one launch reads; later captures do not change it

Counted rows wait in the store's own transaction (`store.save_captures`: the *pending* rows) and go to files every
`seconds`, or when there are many. A file holds the rows of one partition and one day whose offsets lie in one span; the
spans are multiples of a fixed length, so a topic that is read again, by whatever cuts, rewrites the same files with the same
rows. Where records hold many events, a span is of fewer offsets, by a power of two, and a file that is full all the same is
followed by another in the same span. A file grows by being replaced as a whole, and the store says how many of its rows
count: what a crash left beyond them is cut off at start.

Invariant: the rows that count in the files and the pending rows together are exactly the counted events, each once (with
`share` below 1: those whose hash of the offset is below it). A storage that is slow holds the loop, and so the intake. One
that cannot be reached stops nothing: rows go on waiting, up to `waiting_max` bytes, beyond which the oldest of them are
dropped, counted (`tidemark_capture_dropped_total`) and told.

Columns: every watched column and label by its own name, `timestamp` in milliseconds, and `id`: the schema's, else the
event's place as topic:partition:offset. Memory: pending rows, at most `waiting_max` bytes, and while writing as much again
and `WRITERS` files of about `FILE_BYTES`. Neighbours: `panes.kept` brings the rows, `captured_rows` makes tables of them,
`place` reads and writes, `store` names the files, a launch takes a `snapshot`. These three are the ones of the stage that
know pyarrow.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from monitor.errors import ConfigError
from monitor.flow import Clock, Rows
from monitor.state.captured_rows import OFFSET, PARTITION, Pending, labelled, packed, since, table_of, unpacked
from monitor.state.place import Place, filesystem, read_text
from monitor.state.tables import Captured, CaptureStep

__all__ = ["Capture", "filesystem", "read_text"]

log = logging.getLogger("tidemark")

DAY_MS = 86_400_000
#: Rows that a file holds when its span is full: a twentieth of what is kept, so that dropping the oldest file is no large step.
FILE_ROWS_MIN, FILE_ROWS_MAX = 1_000, 50_000
#: A file of so many times the rows that it is meant to hold, and of more than its span has offsets, grows no more.
FILES_FULL = 2
#: Bytes of a file's rows in memory, about: a file grows by being read and written whole, and WRITERS of them at a time.
FILE_BYTES, VALUE_BYTES = 16 << 20, 16
#: Pending rows go to files when they are so many, or take a quarter of what may wait.
PENDING_ROWS_MAX = 200_000
#: Bytes of pending rows without a storage, where nobody says another bound.
WAITING_BYTES_MAX = 256 << 20
#: After a storage error, the next try comes so much later.
AGAIN_SECONDS = 30.0
#: Files of one model; events from thousands of days would else make thousands of tiny ones. The oldest go.
FILES_MAX = 5_000
#: Days that the data of an ended launch is kept, for people who look into it, where `capture_days` does not say.
LAUNCH_DAYS = 30.0
#: Uploads at a time.
WRITERS = 8
_NAME = re.compile(r".*/(?P<topic>[^/]+)-(?P<partition>\d+)-(?P<first>\d+)-(?P<end>\d+)\.parquet")


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one file: of one partition, one day and one span.

    series : the file's name without its span      first, end : of the span      offset : of the first of these rows
    """

    series: str
    first: int
    end: int
    offset: int
    table: pa.Table

    @property
    def name(self) -> str:
        """The file's name, in an order that is that of the offsets."""
        return f"{self.series}-{self.first:012d}-{self.end:012d}.parquet"


@dataclass(slots=True)
class Capture:
    """The captured events of one model.

    uri    : a folder, or s3://bucket/prefix; credentials as pyarrow finds them in the environment
    names  : columns that are kept        labels : those of them that must be there for a row to count as labelled
    events_max, days_max : how many events, and events of how many days, are kept; the newest ones, in whole files
    share  : of the events, chosen by a hash of their offset: reading again chooses the same
    seconds : rows wait for their file no longer than that
    waiting_max : bytes of rows that wait at most; at a quarter of it they go to files
    """

    model: str
    uri: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    events_max: int
    share: float = 1.0
    days_max: float | None = None
    seconds: float = 300.0
    file_rows: int = 0                              # 0: a twentieth of `events_max`, within bounds
    waiting_max: int = WAITING_BYTES_MAX
    clock: Clock = time.time
    elapsed: Clock | None = None                    # what waiting is measured by; the clock where none is given
    files: list[Captured] = field(default_factory=list)
    dropped: int = 0                                # rows that no storage could be found for, since the start
    _pending: list[Pending] = field(default_factory=list)
    _rows: list[Rows] = field(default_factory=list)
    _gone: list[Captured] = field(default_factory=list)     # files that somebody else removed
    _is_ahead: bool = False                         # files may hold rows that wait, too: a write of some of them failed
    _number: int = 0
    _since: float | None = None                     # when the first pending row came
    _again_at: float = -math.inf
    _waits: Clock = field(init=False)
    _place: Place = field(init=False)

    def __post_init__(self) -> None:
        self._waits = self.elapsed or self.clock
        self._place = Place(self.uri)
        most = max(FILE_ROWS_MIN, min(FILE_ROWS_MAX, FILE_BYTES // (VALUE_BYTES * max(1, len(self.names)))))
        self.file_rows = self.file_rows or min(max(self.events_max // 20, FILE_ROWS_MIN), most)
        try:
            self._place.make(self._folder)
        except OSError as error:
            raise ConfigError(
                f"retrain.capture_uri: expected a place that can be written, got {self.uri} ({str(error)[:160]})"
            ) from None

    @property
    def _folder(self) -> str:
        return f"events/model={self.model}"

    # -- a checkpoint ----------------------------------------------------------------------------------------------------

    def restore(self, files: Sequence[Captured], pending: Iterable[tuple[int, bytes]] = ()) -> None:
        """Go on with what the store holds.

        What a crash left is mended: files that the store does not name are removed, and rows behind those that count. A
        store that knows of nothing removes nothing: the files are another state's, or the state was lost.
        """
        found = [name for name in self._place.files(self._folder) if name.endswith((".parquet", ".tmp"))]
        self.files = [captured for captured in files if captured.file in found]
        self._gone = [captured for captured in files if captured.file not in found]
        if self._gone:
            log.warning("Captured files are gone; their events are forgotten.", extra={
                "model": self.model, "files": len(self._gone), "events": sum(captured.rows for captured in self._gone)})
        self._pending = [Pending(number, unpacked(blob)) for number, blob in pending]
        self._number = max((waiting.number for waiting in self._pending), default=0)
        self._since = self._waits() if self._pending else None
        unnamed = sorted(set(found) - {captured.file for captured in files})
        if unnamed and not (files or self._pending):
            log.warning("Captured events of another state found; they are left as they are.", extra={
                "model": self.model, "folder": self._place.outside(self._folder), "files": len(unnamed)})
            unnamed = []
        for name in unnamed:
            self._place.delete(name)
        newest: dict[str, int] = {}
        for captured in self.files:
            topic, end = _series(captured.file)
            newest[topic] = max(newest.get(topic, 0), end)
        for captured in self.files:                 # only the last span of a partition was still growing
            topic, end = _series(captured.file)
            if end == newest[topic] and (self._place.rows(captured.file) or 0) > captured.rows:
                table = self._place.read(captured.file)
                if table is not None:
                    self._place.write(captured.file, table.slice(0, captured.rows))

    def add(self, rows: Rows) -> None:
        """Keep counted rows for the next checkpoint."""
        self._rows.append(rows)

    def write(self, *, whole: bool = False) -> CaptureStep:
        """Step 2 of a checkpoint: what of the rows since the last one is to be stored, and what is in files now.

        whole : all pending rows go to files, however few
        """
        step = CaptureStep(self.model, removed=self._gone)
        self._gone = []
        tables = [table for rows in self._rows if (table := table_of(rows, self.names, self.share)).num_rows]
        self._rows = []
        if tables:
            self._number += 1
            self._pending.append(Pending(self._number, pa.concat_tables(tables).combine_chunks()))
            self._since = self._waits() if self._since is None else self._since
        if self._pending and (whole or self._is_due()) and self._waits() >= self._again_at:
            try:
                self._to_files(step)
            except OSError as error:
                self._is_ahead = True
                self._again_at = self._waits() + AGAIN_SECONDS
                log.error("Captured events not written; they wait in the state.", extra={
                    "model": self.model, "uri": self.uri, "events": self.waiting, "error": " ".join(str(error).split())[:200]})
        self._drop_excess(step)
        if self._pending and self._pending[-1].number == self._number and tables:
            step.pending = (self._number, packed(self._pending[-1].table))
        return step

    def forget(self, removed: Iterable[Captured]) -> None:
        """Delete files after the transaction that no longer names them."""
        for captured in removed:
            try:
                self._place.delete(captured.file)
            except OSError as error:                # it is removed at the next start
                log.warning("Captured file not removed.", extra={"file": captured.file, "error": str(error)[:200]})

    # -- what others ask -------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Rows that wait for their file."""
        return sum(waiting.table.num_rows for waiting in self._pending)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the rows that wait for their file."""
        return sum(waiting.bytes for waiting in self._pending)

    @property
    def newest_time(self) -> int:
        """The latest event time that was captured, in milliseconds; -1 before the first."""
        pending = [int(pc.max(waiting.table["timestamp"]).as_py()) for waiting in self._pending]
        return max([*(captured.last_time for captured in self.files), *pending], default=-1)

    def labelled_since(self, since_ms: int) -> int:
        """Captured events with a label from an event time on."""
        count = 0
        for captured in self.files:
            if captured.first_time >= since_ms:
                count += captured.labelled
            elif captured.last_time >= since_ms:
                count += labelled(self._since_time(captured, since_ms, self.labels), self.labels)
        return count + sum(labelled(since(waiting.table, since_ms), self.labels) for waiting in self._pending)

    def events_since(self, since_ms: int, names: Sequence[str]) -> pa.Table:
        """Some columns of the captured events from an event time on, and `timestamp` and `id`; in no order."""
        wanted = [*dict.fromkeys([*names, "id", "timestamp"])]
        parts = [self._since_time(captured, since_ms, wanted) for captured in self.files if captured.last_time >= since_ms]
        parts += [since(waiting.table, since_ms).select(wanted) for waiting in self._pending
                  if set(wanted) <= set(waiting.table.column_names)]
        return pa.concat_tables(parts, promote_options="permissive") if parts else pa.table({name: [] for name in wanted})

    def snapshot(self, launch_id: str) -> str:
        """Keep what is captured now for one launch, whatever is dropped later; returns its folder.

        Repeating it before the launch was started is harmless: the folder then holds what is captured by then.
        """
        folder = f"{self.model}/launches/{launch_id}/data"
        self._place.make(folder)
        wanted = {f"{folder}/{_flat(captured.file)}": captured.file for captured in self.files}
        waiting = f"{folder}/waiting.parquet"
        for name in self._place.files(folder):
            if name not in wanted:
                self._place.delete(name)
        self._place.make(folder)                    # it may have gone with its last file
        counting = {captured.file: captured.rows for captured in self.files}
        for target, source in wanted.items():
            if self._is_ahead and (self._place.rows(source) or 0) > counting[source]:
                table = self._place.read(source)
                if table is not None:
                    self._place.write(target, table.slice(0, counting[source]))
            else:
                self._place.same(source, target)
        if self._pending:
            tables = [waiting.table.drop_columns([PARTITION, OFFSET]) for waiting in self._pending]
            self._place.write(waiting, pa.concat_tables(tables, promote_options="permissive"))
        return self._place.outside(folder)

    def release(self, ended: Mapping[str, float]) -> list[str]:
        """Remove the data of launches that ended `days_max` days ago, or 30; what they left behind (`output`) stays.

        ended : launch -> when it ended, in seconds since 1970; a launch that is not in it is never touched
        A storage that does not answer now is asked at the next end of a launch.
        """
        keep_seconds = (self.days_max or LAUNCH_DAYS) * 86_400
        try:
            return self._released(ended, keep_seconds)
        except OSError as error:
            log.warning("Data of ended launches not removed.", extra={"model": self.model, "error": str(error)[:200]})
            return []

    def _released(self, ended: Mapping[str, float], keep_seconds: float) -> list[str]:
        old = [name for name in self._place.folders(f"{self.model}/launches")
               if name in ended and self.clock() - ended[name] > keep_seconds]
        gone = [name for name in old if "data" in self._place.folders(f"{self.model}/launches/{name}")]
        for name in gone:
            self._place.delete_folder(f"{self.model}/launches/{name}/data")
        return gone

    # -- files -----------------------------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        return (self._waits() - (self._since or 0.0) >= self.seconds or self.waiting >= PENDING_ROWS_MAX
                or self.waiting_bytes >= self.waiting_max // 4)

    def _to_files(self, step: CaptureStep) -> None:
        """Every pending row into its file; `step` and `files` are changed when all of them are written."""
        files = {captured.file: captured for captured in self.files}
        written: dict[str, Captured] = {}
        # Rows of other columns (a state that is older than the configuration) do not go into one file with ours.
        for (_, topic), same in itertools.groupby(self._pending, key=lambda waiting: (waiting.table.schema, waiting.topic)):
            parts = self._parted(topic, pa.concat_tables([waiting.table for waiting in same]), files)
            with ThreadPoolExecutor(WRITERS) as pool:
                grown = list(pool.map(lambda part: self._grown(files.get(part.name), part), parts))
            for captured in grown:
                files[captured.file] = written[captured.file] = captured
        kept, removed = self._retained(sorted(files.values(), key=lambda one: (one.last_time, one.file)))
        step.added = [captured for captured in written.values() if captured not in removed]
        step.removed = [*step.removed, *removed]
        step.done = [waiting.number for waiting in self._pending]
        self.files, self._pending, self._since, self._is_ahead = kept, [], None, False

    def _parted(self, topic: str, table: pa.Table, files: Mapping[str, Captured]) -> list[Part]:
        """The rows of each file, by partition, span and day, in the order of their offsets."""
        partitions, offsets = table[PARTITION].to_numpy(), table[OFFSET].to_numpy()
        days = table["timestamp"].to_numpy() // DAY_MS
        firsts, ends = self._spans(topic, partitions, offsets, files)
        order = np.lexsort((offsets, days, firsts, partitions))
        keys = np.stack([partitions, firsts, days])[:, order]
        cuts = np.flatnonzero(np.any(keys[:, 1:] != keys[:, :-1], axis=0)) + 1
        plain = table.drop_columns([PARTITION, OFFSET])
        parts = []
        for rows in np.split(order, cuts):          # turns: files, usually one per partition
            at = rows[0]
            day = datetime.fromtimestamp(int(days[at]) * 86_400, UTC).date()
            series = f"{self._folder}/day={day}/{topic}-{int(partitions[at])}"
            parts.append(Part(series, int(firsts[at]), int(ends[at]), int(offsets[at]), plain.take(pa.array(rows))))
        return parts

    def _spans(self, topic: str, partitions: NDArray[np.int64], offsets: NDArray[np.int64], files: Iterable[str]
               ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First offset and end of the span of each row: the multiple that it lies in, or the span of a file that has it."""
        lengths = np.full(len(offsets), max(1, round(self.file_rows / self.share)))
        for partition in np.unique(partitions).tolist():        # turns: partitions
            ours = partitions == partition
            density = np.count_nonzero(ours) / len(np.unique(offsets[ours]))
            if density > 1:                         # records of many events: kept rows of each, so `share` is in it
                lengths[ours] = max(1, self.file_rows >> round(math.log2(density)))
        firsts = offsets // lengths * lengths
        ends = firsts + lengths
        known: dict[int, set[tuple[int, int]]] = {}
        for name in files:
            match = _NAME.fullmatch(name)
            if match is not None and match["topic"] == topic:
                known.setdefault(int(match["partition"]), set()).add((int(match["first"]), int(match["end"])))
        for partition, spans in known.items():      # turns: partitions
            ours = partitions == partition
            ordered = np.array(sorted(spans))
            at = np.searchsorted(ordered[:, 0], offsets[ours], side="right") - 1
            begin, end = ordered[np.maximum(at, 0)].T
            inside = (at >= 0) & (offsets[ours] < end)
            behind = np.where(at >= 0, end, 0)      # where another length was configured before, a span may begin later
            firsts[ours] = np.where(inside, begin, np.maximum(firsts[ours], behind))
            ends[ours] = np.where(inside, end, ends[ours])
        return firsts, ends

    def _grown(self, before: Captured | None, part: Part) -> Captured:
        """Write a file: its rows that count, and these behind them."""
        table = part.table
        if before is not None and before.rows + table.num_rows > max(FILES_FULL * self.file_rows, part.end - part.first):
            return self._grown(None, replace(part, first=part.offset))
        if before is not None:
            kept = self._place.read(part.name)
            if kept is not None and not kept.schema.equals(table.schema):
                # The columns are others now: that file stays as it is, and a new one begins inside its span.
                return self._grown(None, replace(part, first=part.offset))
            if kept is not None:
                table = pa.concat_tables([kept.slice(0, before.rows), table])
        table = table.combine_chunks()              # the same rows are the same bytes, however they came together
        times = table["timestamp"].to_numpy()
        self._place.write(part.name, table)
        return Captured(self.model, part.name, table.num_rows, int(times.min()), int(times.max()), labelled(table, self.labels))

    def _retained(self, files: list[Captured]) -> tuple[list[Captured], list[Captured]]:
        """(what is kept, what goes), both by rising last event time."""
        oldest = files[-1].last_time - self.days_max * DAY_MS if self.days_max is not None and files else -1
        total, go = sum(captured.rows for captured in files), 0
        while go < len(files) - 1 and (
            total - files[go].rows >= self.events_max or files[go].last_time < oldest or len(files) - go > FILES_MAX
        ):
            total -= files[go].rows
            go += 1
        return files[go:], files[:go]

    def _drop_excess(self, step: CaptureStep) -> None:
        """Without a storage for long, the oldest waiting rows are dropped: monitoring goes on in bounded memory."""
        while self.waiting_bytes > self.waiting_max:
            gone = self._pending.pop(0)
            self.dropped += gone.table.num_rows
            step.done.append(gone.number)
            log.error("Captured events dropped: their storage cannot be written for too long.", extra={
                "model": self.model, "uri": self.uri, "events": gone.table.num_rows, "in_all": self.dropped})

    def _since_time(self, captured: Captured, since_ms: int, names: Sequence[str]) -> pa.Table:
        table = self._place.read(captured.file, [*dict.fromkeys([*names, "timestamp"])])
        if table is None:
            return pa.table({name: pa.array([], pa.null()) for name in [*dict.fromkeys([*names, "timestamp"])]})
        return since(table.slice(0, captured.rows), since_ms)

def _series(file: str) -> tuple[str, int]:
    """The partition that a file is of, and where its span ends."""
    match = _NAME.fullmatch(file)
    return (file, 0) if match is None else (f"{match['topic']}-{match['partition']}", int(match["end"]))


def _flat(file: str) -> str:
    """A captured file's name in a launch's one folder: the day and the name.

    >>> _flat("events/model=m/day=2026-01-31/orders-0-000000000000-000000010000.parquet")
    '2026-01-31-orders-0-000000000000-000000010000.parquet'
    """
    *_, day, name = file.split("/")
    return f"{day.removeprefix('day=')}-{name}"
