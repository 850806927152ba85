"""The store: panes, next offsets, alarm states and the outbox, written in one transaction.

SQLite in WAL mode. What a crash leaves is always one whole checkpoint: either everything that a batch brought was
counted *and* its offsets moved on, or neither. On start the service loads it, seeks to the stored offsets and goes on;
Kafka's own group offsets are written afterwards, for lag tools only, and are never read.

A checkpoint, in this order:
  1. the dead letters of refused records are flushed          (again after a crash: at least once)
  2. captured events whose time has come are in their files    (rows behind those that count are cut off at start)
  3. one transaction: offsets, panes, alarm states, captured files and rows that wait for one, outbox, history
  4. the source is told which offsets are safe
  5. whoever asked for something is told that it is done

One process holds a state file, by a lock that the system takes away when the process dies. The file carries a format
number and a seal over its rows; it is inspected before anything is written to it. A newer format, a damaged file, one that
something else wrote to, or a state that belongs to another reference is refused with what to do; an older format is
migrated in one transaction. A new file appears whole, by a rename: an empty one is damage, never a beginning.

Cost: one upsert per pane that changed (its counts compressed, 0.5-3 kB for 20 columns; where rows are sampled, up to 30 kB
more for 200 rows) and one commit, 1-5 ms; at most one a second while nothing is decided.
Neighbours: `panes` is what is written, `tables` where to, `seal` guards the file, `pipeline` says when.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO

import msgspec

from detectors.profile import Profile
from detectors.reference import Reference
from monitor.errors import CheckpointFailed, CheckpointRefused, StateInUse
from monitor.flow import Sample
from monitor.state.panes import NO_PANE, SEGMENT, Position, Stream
from monitor.state.sample import from_bytes, in_time_order, to_bytes
from monitor.state.seal import Seal, connect, inspect
from monitor.state.tables import FORMATS, TABLES, Captured, CaptureStep, Counters, stored, unpacked

#: Decided panes that stay in the file, for `explain` and for looking back: a week of minutes.
KEPT_PANES = 10_080
KEPT_ALARMS = 1_000
#: Lines of the audit trail per model: at one an hour, more than a year.
KEPT_AUDIT = 10_000
#: Rows of the history that are read in one go: of the largest, some 5 MB.
HISTORY_PAGE = 500

class Store:
    """One state file, held by one process."""

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        """Open or create the file; `read_only` looks at it beside the process that holds it."""
        self.path = Path(path)
        self._lock: IO[str] | None = None
        try:
            if read_only:
                if not self.path.is_file():
                    raise CheckpointRefused(f"{path}: expected a state file, got none; is `service.state` the running service's?")
                inspect(self.path, FORMATS)
                self._db = connect(self.path, read_only=True)
                return
            if str(path) != ":memory:":
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._take_lock()
                if self.path.exists():
                    inspect(self.path, FORMATS)
                else:
                    self._create()
            self._db = connect(path)
            self._seal = Seal(self._db)
            self._db.execute("PRAGMA journal_mode=WAL")
            # FULL: a commit that returned survives a power cut, not only a crash of the process.
            self._db.execute("PRAGMA synchronous=FULL")
            self._migrate()
            self._seal.watch()
        except OSError as error:
            self.close()
            kind = CheckpointFailed if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else CheckpointRefused
            raise kind(f"{self.path}: expected a state file that can be opened and written, got: {error.strerror}; "
                       "check the folder's rights and room") from None
        except CheckpointRefused:
            self.close()
            raise

    def close(self) -> None:
        """Give the file back."""
        if hasattr(self, "_db"):
            self._db.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing; a full disk or a lost file ends the process with one clear line (CheckpointFailed)."""
        committed = False
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._seal.write()
            self._db.execute("COMMIT")
            committed = True
        finally:
            if not committed and self._db.in_transaction:       # a full disk has ended it already
                with suppress(CheckpointRefused):               # the first failure is the one to tell
                    self._db.execute("ROLLBACK")
            self._seal.settle(committed=committed)

    # -- streams -------------------------------------------------------------------------------------------------------

    def save_reference(self, db: sqlite3.Connection, reference: Reference) -> None:
        """Keep the reference itself: the state must be readable when its file has moved."""
        db.execute("INSERT OR IGNORE INTO refs VALUES (?, ?)", (reference.digest, reference.to_json()))

    def reference(self, digest: str) -> Reference:
        """A reference that was kept."""
        row = self._db.execute("SELECT document FROM refs WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            raise CheckpointRefused(f"{self.path}: expected the reference {digest[:12]}, got none; restore the file from a copy")
        return Reference.from_json(row[0], f"{self.path} (reference {digest[:12]})")

    def known(self, model: str) -> tuple[str, str, str, str, str] | None:
        """(version, digest, configured version, configured digest, policy) of a model that was counted before."""
        row: tuple[str, str, str, str, str] | None = self._db.execute(
            "SELECT version, digest, configured_version, configured_digest, policy FROM streams WHERE model = ?", (model,)
        ).fetchone()
        return row

    def load(self, stream: Stream) -> None:
        """Fill a stream with what was stored for its model and version."""
        row = self._db.execute("SELECT counters FROM streams WHERE model = ?", (stream.model,)).fetchone()
        if row is None:
            return
        counters = stored(row[0], Counters)
        stream.last_decided, stream.origin = counters.last_decided, counters.origin
        stream.decided_panes, stream.decided_events = counters.decided_panes, counters.decided_events
        stream.late, stream.outcomes = counters.late, Counter(counters.outcomes)
        stream.notes, stream.topic_ids = counters.notes, counters.topic_ids
        stream.positions = {
            (topic, partition): Position(next_offset, clock, counters.in_a_row.get(f"{topic}:{partition}", 0))
            for topic, partition, next_offset, clock in self._db.execute(
                "SELECT topic, partition, next_offset, clock FROM positions WHERE model = ?", (stream.model,))
        }
        key = (stream.model, stream.version, SEGMENT)
        for (pane_ms,) in self._db.execute(
            "SELECT DISTINCT pane_ms FROM panes WHERE model = ? AND version = ? AND segment = ?", key
        ):
            if pane_ms != stream.pane_ms:
                raise CheckpointRefused(
                    f"{self.path}: expected panes of {pane_ms / 1000:g} s as they were counted for model {stream.model}, got "
                    f"pane.seconds {stream.pane_ms / 1000:g}; give the monitor a new version, or set it back"
                )
        for pane, profile in self._db.execute(
            "SELECT pane, profile FROM panes WHERE model = ? AND version = ? AND segment = ? AND decided = 0", key
        ):
            stream.open[pane] = unpacked(profile)

    def decided(self, stream: Stream, panes: int) -> list[tuple[int, Profile]]:
        """The last decided panes of a stream after its origin, oldest first: what the windows are made of."""
        if stream.last_decided == NO_PANE:          # those that are there were decided before the version came back
            return []
        rows = self._db.execute(
            "SELECT pane, profile FROM panes WHERE model = ? AND version = ? AND segment = ? AND decided = 1 AND pane > ? "
            "AND pane > ? ORDER BY pane",
            (stream.model, stream.version, SEGMENT, stream.origin, stream.last_decided - panes),
        ).fetchall()
        return [(pane, unpacked(profile)) for pane, profile in rows]

    def decided_panes(self, model: str) -> tuple[str, int]:
        """The version that a model is counted under now, and how many panes were decided under it, kept or not."""
        row = self._db.execute("SELECT version, counters FROM streams WHERE model = ?", (model,)).fetchone()
        return ("", 0) if row is None else (row[0], stored(row[1], Counters).decided_panes)

    def kept(self, model: str) -> Iterator[tuple[str, int, int, Profile]]:
        """(version, pane length in ms, pane, counts) of every decided pane in the file, one version after the other.

        Panes are read one at a time: a week of minutes is 0.2 GB at 20 columns.
        """
        versions = self._db.execute(
            "SELECT version FROM panes WHERE model = ? AND segment = ? AND decided = 1 GROUP BY version ORDER BY MIN(pane)",
            (model, SEGMENT)).fetchall()
        for (version,) in versions:
            for pane_ms, pane, profile in self._db.execute(
                "SELECT pane_ms, pane, profile FROM panes WHERE model = ? AND version = ? AND segment = ? AND decided = 1 "
                "ORDER BY pane", (model, version, SEGMENT),
            ):
                yield version, pane_ms, pane, unpacked(profile)

    def save_stream(
        self, db: sqlite3.Connection, stream: Stream, configured: tuple[str, str], policy: str,
        decided: Mapping[int, Profile],
    ) -> None:
        """One stream's offsets, counters, changed open panes and the panes that were decided since the last time."""
        counters = Counters(
            stream.last_decided, stream.origin, stream.decided_panes, stream.decided_events, stream.late,
            {name: count for name, count in sorted(stream.outcomes.items()) if count}, stream.notes,
            {f"{topic}:{partition}": position.in_a_row for (topic, partition), position in stream.positions.items()
             if position.in_a_row}, stream.topic_ids,
        )
        db.execute(
            "INSERT OR REPLACE INTO streams VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (stream.model, stream.version, stream.reference.digest, stream.topic, *configured,
             msgspec.json.encode(counters).decode(), policy),
        )
        db.executemany(
            "INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?, ?)",
            [(stream.model, topic, partition, position.next_offset, position.clock)
             for (topic, partition), position in stream.positions.items()],
        )
        written = [(pane, 0, stream.open[pane]) for pane in sorted(stream.changed) if pane in stream.open]
        written += [(pane, 1, profile) for pane, profile in decided.items()]
        db.executemany(
            "INSERT OR REPLACE INTO panes VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(stream.model, stream.version, SEGMENT, pane, stream.pane_ms, profile.events, flag, profile.to_bytes())
             for pane, flag, profile in written],
        )
        if decided:
            db.execute(
                "DELETE FROM panes WHERE model = ? AND version = ? AND segment = ? AND decided = 1 AND pane < ?",
                (stream.model, stream.version, SEGMENT, stream.last_decided - KEPT_PANES),
            )

    def forget_topic_ids(self) -> None:
        """Take the stored offsets for those of whatever topics have the names now: for topics mirrored with their offsets."""
        with self.transaction() as db:
            for model, document in db.execute("SELECT model, counters FROM streams").fetchall():
                counters = msgspec.structs.replace(stored(document, Counters), topic_ids={})
                db.execute("UPDATE streams SET counters = ? WHERE model = ?", (msgspec.json.encode(counters).decode(), model))

    def restore_samples(self, db: sqlite3.Connection, stream: Stream) -> list[tuple[int, Sample, int]]:
        """Fill in the sampled rows of the open panes; those of the decided panes that are looked back at, oldest first.

        returns : (pane, its rows in time order, events of the pane)

        What no detector of the stream asks for any more is dropped, and a sample that lacks a column is of no use.
        """
        sampling, since = stream.sampling, 2**62
        if sampling is not None:
            since = stream.last_decided - sampling.panes
        db.execute("DELETE FROM samples WHERE model = ? AND (version <> ? OR pane <= ?)", (stream.model, stream.version, since))
        decided = []
        for pane, blob, events in db.execute(
            "SELECT pane, document, events FROM samples JOIN panes USING (model, version, segment, pane) WHERE model = ? "
            "ORDER BY pane", (stream.model,)
        ):
            sample = from_bytes(blob)
            if sampling is None or not set(sampling.names) <= sample.columns.keys():
                continue
            if pane in stream.open:
                stream.samples[pane] = sample
            elif pane <= stream.last_decided:
                decided.append((pane, in_time_order(sample), events))
        return decided

    def save_samples(self, db: sqlite3.Connection, stream: Stream, decided: Mapping[int, Sample],
                     keep_from: int | None = None) -> None:
        """The sampled rows of the changed open panes and of those that were decided since the last time.

        keep_from : this pane and later ones are still needed, whatever the sampling forgets
        """
        if stream.sampling is None:
            return
        last = stream.last_decided - stream.sampling.panes
        last = last if keep_from is None else min(last, keep_from - 1)
        written = [(pane, stream.samples[pane]) for pane in sorted(stream.changed) if pane in stream.samples]
        decided = {pane: sample for pane, sample in decided.items() if pane > last}     # of a long stretch only its end
        db.executemany(
            "INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?)",
            [(stream.model, stream.version, SEGMENT, pane, to_bytes(sample)) for pane, sample in (*written, *decided.items())])
        if decided:
            db.execute("DELETE FROM samples WHERE model = ? AND (version <> ? OR pane <= ?)",
                       (stream.model, stream.version, last))

    def window(self, model: str, version: str, first: int, last: int) -> list[Profile]:
        """The counts of the decided panes from `first` to `last`, oldest first; those that are no longer kept are absent."""
        rows = self._db.execute(
            "SELECT profile FROM panes WHERE model = ? AND version = ? AND segment = ? AND decided = 1 AND pane BETWEEN ? AND ? "
            "ORDER BY pane", (model, version, SEGMENT, first, last))
        return [unpacked(profile) for (profile,) in rows]

    def samples(self, model: str, version: str, first: int, last: int) -> list[bytes]:
        """The sampled rows of these panes as they are stored, oldest first; none where none were kept."""
        if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'samples'").fetchone():
            return []                               # a state of before, looked at without being opened for writing
        rows = self._db.execute(
            "SELECT document FROM samples WHERE model = ? AND version = ? AND segment = ? AND pane BETWEEN ? AND ? ORDER BY pane",
            (model, version, SEGMENT, first, last))
        return [document for (document,) in rows]

    def save_checks(self, db: sqlite3.Connection, model: str, document: str) -> None:
        """What the checks of data quality remember of one model."""
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"checks:{model}", document))

    def checks(self, model: str) -> str | None:
        """What `save_checks` kept; None where there is nothing yet."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (f"checks:{model}",)).fetchone()
        return None if row is None else str(row[0])

    def rates(self, model: str, pane_ms: int) -> list[tuple[int, int]]:
        """(pane, events) of the decided panes of a model, all its versions, oldest first."""
        return list(self._db.execute(
            "SELECT pane, sum(events) FROM panes WHERE model = ? AND pane_ms = ? AND decided = 1 GROUP BY pane ORDER BY pane",
            (model, pane_ms)))

    def save_cutover(self, db: sqlite3.Connection, stream: Stream, previous: str, at: float, reason: str) -> None:
        """Note from which offsets on a version's reference counts."""
        db.executemany(
            "INSERT OR REPLACE INTO cutovers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(stream.model, stream.version, previous, topic, partition, position.next_offset, at, reason)
             for (topic, partition), position in stream.positions.items()],
        )
        db.execute("DELETE FROM cutovers WHERE model = ? AND rowid <= (SELECT rowid FROM cutovers WHERE model = ? "
                   "ORDER BY rowid DESC LIMIT 1 OFFSET ?)", (stream.model, stream.model, KEPT_ALARMS))

    def forget_open(self, db: sqlite3.Connection, model: str, version: str) -> None:
        """Set aside (2) what an earlier stream of this version left undecided: a version that comes back begins anew."""
        db.execute("UPDATE panes SET decided = 2 WHERE model = ? AND version = ? AND decided = 0", (model, version))
        db.execute("DELETE FROM samples WHERE model = ? AND version = ?", (model, version))

    # -- history and outbox --------------------------------------------------------------------------------------------

    def append(self, db: sqlite3.Connection, table: str, model: str, documents: Iterable[str], keep: int = KEPT_ALARMS) -> None:
        """Add to `alarms`, `decisions` or `audit`, which keep their newest entries."""
        assert table in ("alarms", "decisions", "audit")
        rows = [(model, document) for document in documents]
        if rows:
            db.executemany(f"INSERT INTO {table} (model, document) VALUES (?, ?)", rows)
            db.execute(
                f"DELETE FROM {table} WHERE model = ? AND seq <= "
                f"(SELECT seq FROM {table} WHERE model = ? ORDER BY seq DESC LIMIT 1 OFFSET ?)", (model, model, keep),
            )

    def history(self, table: str, model: str | None = None, latest: int | None = None) -> list[str]:
        """The documents of `alarms`, `decisions`, `launches` or `audit`, oldest first; a state begun without one has none.

        latest : only so many, the newest
        """
        if latest is None:
            return list(self.each(table, model))
        return list(islice(self.each(table, model, newest_first=True), latest))[::-1]

    def each(self, table: str, model: str | None = None, *, newest_first: bool = False) -> Iterator[str]:
        """The same, a page of HISTORY_PAGE rows in memory at a time; what is written meanwhile may be seen or not."""
        assert table in ("alarms", "decisions", "launches", "audit")
        if table == "audit" and not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'audit'").fetchone():
            return                                  # only looked at, and written by a service that had no such table
        order, at = "rowid" if table == "launches" else "seq", 2**62 if newest_first else -(2**62)
        beyond, way = ("<", "DESC") if newest_first else (">", "ASC")
        where, values = ("AND model = ?", (model,)) if model else ("", ())
        while rows := self._db.execute(f"SELECT {order}, document FROM {table} WHERE {order} {beyond} ? {where} "
                                       f"ORDER BY {order} {way} LIMIT {HISTORY_PAGE}", (at, *values)).fetchall():
            yield from (document for _, document in rows)
            at = rows[-1][0]

    def save_launch(self, db: sqlite3.Connection, launch_id: str, model: str, document: str) -> None:
        """One launch as it is now; the row keeps its place in the order."""
        db.execute(
            "INSERT INTO launches VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET document = excluded.document",
            (launch_id, model, document),
        )

    def captures(self, model: str) -> list[Captured]:
        """The files of captured events, oldest first."""
        rows = self._db.execute(
            "SELECT model, file, rows, first_time, last_time, labelled FROM captures WHERE model = ? ORDER BY rowid", (model,))
        return [Captured(*row) for row in rows]

    def pending_captures(self, model: str) -> list[tuple[int, bytes]]:
        """The captured rows that wait for their file, oldest first: (number, rows)."""
        return list(self._db.execute(
            "SELECT number, document FROM captured_rows WHERE model = ? ORDER BY number", (model,)))

    def save_captures(self, db: sqlite3.Connection, step: CaptureStep) -> None:
        """Name new files and forget old ones; keep rows that wait, and drop those that wait no longer."""
        removed, added = step.removed, step.added
        db.executemany("DELETE FROM captured_rows WHERE model = ? AND number = ?", [(step.model, n) for n in step.done])
        if step.pending is not None:
            db.execute("INSERT OR REPLACE INTO captured_rows VALUES (?, ?, ?)", (step.model, *step.pending))
        db.executemany("DELETE FROM captures WHERE model = ? AND file = ?", [(c.model, c.file) for c in removed])
        db.executemany(
            "INSERT OR REPLACE INTO captures VALUES (?, ?, ?, ?, ?, ?)",
            [(c.model, c.file, c.rows, c.first_time, c.last_time, c.labelled) for c in added],
        )

    # -- the file ------------------------------------------------------------------------------------------------------

    def _take_lock(self) -> None:
        # The handle must live as long as the store: closing it gives the lock back.
        self._lock = open(f"{self.path}.lock", "w", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateInUse(
                f"{self.path}: expected a state file of our own, got one that another tidemark process holds; "
                "stop that process or give this one its own service.state"
            ) from None

    def _create(self) -> None:
        """Make the file beside its place and move it there whole, so that half a beginning is never found."""
        for left in ("-wal", "-journal"):
            if Path(f"{self.path}{left}").exists():
                raise CheckpointRefused(
                    f"{self.path}: expected the state file beside its {left}, got none; restore it from a copy together with "
                    f"that file, or move {self.path.name}{left} away to start counting anew")
        new = Path(f"{self.path}.new")
        for left in ("", "-wal", "-shm", "-journal"):
            Path(f"{new}{left}").unlink(missing_ok=True)
        # Events and references are in it; SQLite gives its further files the same mode.
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        self._db = connect(new)
        self._seal = Seal(self._db)
        try:
            self._db.execute("PRAGMA synchronous=FULL")
            self._migrate()
        finally:
            self._db.close()
        os.replace(new, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _migrate(self) -> None:
        """From any format to the newest: one transaction, so a kill leaves the file as it was or as it is to be."""
        before = dict(self._db.execute("SELECT name, sql FROM sqlite_master"))
        known = "meta" in before and self._db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
        statements = [statement for text in TABLES.split(";") if (statement := text.strip())]
        if known == (str(FORMATS[-1]),) and all(statement.split()[5] in before for statement in statements):
            return
        with self.transaction() as db:
            for statement in statements:
                db.execute(statement)
            db.execute("INSERT OR REPLACE INTO meta VALUES ('format', ?)", (str(FORMATS[-1]),))
            self._seal.begin()
