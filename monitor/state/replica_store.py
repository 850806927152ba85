"""The store of an owner: a state file whose truth is the state topic.

Every transaction of the store is first written to the topic, row by row, and only when that is committed to the file. So the
file is a cache: whoever owns the models next builds it anew from the topic, and what an owner did not get into the topic has
not happened. A launch is in the topic before any launcher is called, because `Store.save_launch` is such a transaction.

    row/<table>/<key>       one row of the store, as it is now; without a value where the row is gone
    share/<model>/<id>      what a replica counted (`replica_share`); removed when it is part of the rows
    reference/<model>       by what a promoted model is judged; in the topic of references, which every replica reads

Invariant: the rows in the topic are those of the last committed transaction; `meta` says up to which offset of the partition
the shares of a model are part of them, and what was last told of its reference.

Cost: temporary triggers note the keys of changed rows; a row that did not change is not written again. A take-over reads one
partition: a week of panes is some 20 MB per model. Neighbours: `store` is unchanged beneath, `replicas` gives the writer.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from detectors.profile import Profile
from monitor.errors import CheckpointRefused
from monitor.state.panes import Stream
from monitor.state.replica_share import JudgedBy, packed
from monitor.state.store import Store

#: table -> what names a row, and whether the order in which rows came matters
TABLES: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "meta": (("key",), False), "refs": (("digest",), False), "streams": (("model",), False),
    "positions": (("model", "topic", "partition"), False), "panes": (("model", "version", "segment", "pane"), False),
    "alarms": (("seq",), False), "decisions": (("seq",), False), "launches": (("id",), True),
    "captures": (("model", "file"), True), "cutovers": (("model", "version", "topic", "partition"), False),
    "samples": (("model", "version", "segment", "pane"), False), "audit": (("seq",), False),
    "captured_rows": (("model", "number"), False),
}
ROW, SHARE, REFERENCE = b"row/", b"share/", b"reference/"
#: Of `meta`, what is told to the next owner; the rest is about the file itself.
_TOLD = ("checks:", "shared:", "judged:", "clock")
_decoder = msgspec.msgpack.Decoder(dict[str, Any])

Changes = Sequence[tuple[bytes, bytes | None]]


class MirroredStore(Store):
    """A store whose transactions are in the topic before they are in its file.

    write : puts changes into the topic in one transaction, or raises        rows : what the topic holds, key -> row
    """

    def __init__(self, path: Path, rows: Mapping[bytes, bytes], write: Callable[[Changes], None]) -> None:
        self._write: Callable[[Changes], None] | None = None
        self._known: dict[bytes, bytes] = {}        # key -> digest of what the topic holds
        self._folded: dict[str, list[tuple[int, bytes]]] = {}
        self._saved: set[str] = set()
        self._judged: dict[bytes, bytes] = {}       # what replicas are to be told of references with this transaction
        for left in ("", "-wal", "-shm", "-journal", ".new"):
            with suppress(FileNotFoundError):
                Path(f"{path}{left}").unlink()
        super().__init__(path)
        try:
            self._db.execute("PRAGMA synchronous=OFF")      # the truth is elsewhere
            with super().transaction() as db:
                self._fill(db, rows)
            self._watch()
        except BaseException:
            self.close()
            raise
        self._write = write

    def _fill(self, db: sqlite3.Connection, rows: Mapping[bytes, bytes]) -> None:
        for key, value in rows.items():
            table = key[len(ROW):].split(b"/", 1)[0].decode()
            try:
                row = _decoder.decode(value)
            except msgspec.DecodeError:
                row = {}
            if table not in TABLES or not row:
                raise CheckpointRefused(f"state topic: expected rows of our own, got {key[:80]!r}; another version of tidemark "
                                        "wrote it: use that one, or begin with another service.replicas.topic")
            names = ", ".join(row)
            db.execute(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
            self._known[key] = hashlib.blake2b(value, digest_size=12).digest()

    def _watch(self) -> None:
        self._db.execute("CREATE TEMP TABLE mirror_changed (tab TEXT, id TEXT, PRIMARY KEY (tab, id)) WITHOUT ROWID")
        for table, (names, _) in TABLES.items():
            for event, state in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
                key = ", ".join(f"{state}.{name}" for name in names)
                self._db.execute(
                    f"CREATE TEMP TRIGGER mirror_{table}_{event} AFTER {event} ON main.{table} BEGIN "
                    f"INSERT OR IGNORE INTO mirror_changed VALUES ('{table}', json_array({key})); END")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing, in the topic and then in the file; what `write` raises leaves the file as it was."""
        if self._write is None:                     # the file is being made
            with super().transaction() as db:
                yield db
            return
        with super().transaction() as db:
            self._saved.clear()
            self._judged.clear()
            yield db
            changes = [*self._changes(db), *self._judged.items()]
            settled = {model: self._folded[model] for model in self._saved if self._folded.get(model)}
            changes += [(key, None) for shares in settled.values() for _, key in shares]
            if changes:
                self._write(changes)
            for key, value in changes:
                if not key.startswith(ROW):
                    continue
                if value is None:
                    self._known.pop(key, None)
                else:
                    self._known[key] = hashlib.blake2b(value, digest_size=12).digest()
            for model in settled:
                self._folded[model] = []

    def _changes(self, db: sqlite3.Connection) -> Iterator[tuple[bytes, bytes | None]]:
        changed = db.execute("SELECT tab, id FROM mirror_changed ORDER BY tab, id").fetchall()
        db.execute("DELETE FROM mirror_changed")
        for table, text in changed:
            identity = json.loads(text)
            if table == "meta" and not str(identity[0]).startswith(_TOLD):
                continue
            names, is_ordered = TABLES[table]
            where = " AND ".join(f"{name} = ?" for name in names)
            cursor = db.execute(f"SELECT {'rowid AS rowid, ' if is_ordered else ''}* FROM {table} WHERE {where}", identity)
            found = cursor.fetchone()
            key = ROW + f"{table}/{text}".encode()
            if found is None:
                if key in self._known:
                    yield key, None
                continue
            value = msgspec.msgpack.encode({column[0]: one for column, one in zip(cursor.description, found, strict=True)})
            if self._known.get(key) != hashlib.blake2b(value, digest_size=12).digest():
                yield key, value

    # -- shares ----------------------------------------------------------------------------------------------------------

    def folded(self, model: str, offset: int, key: bytes) -> None:
        """Note that a share is part of the stream from now on; with the stream's next save it is part of the rows."""
        self._folded.setdefault(model, []).append((offset, key))

    def shared(self, model: str) -> int:
        """Offset in the state topic behind the last share of a model that is part of the rows; 0 before the first."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (f"shared:{model}",)).fetchone()
        return 0 if row is None else int(row[0])

    def save_stream(self, db: sqlite3.Connection, stream: Stream, configured: tuple[str, str], policy: str,
                    decided: Mapping[int, Profile]) -> None:
        """As the store's; and how far the shares of the model are part of it."""
        super().save_stream(db, stream, configured, policy, decided)
        self._tell(db, stream, configured[1])
        if shares := self._folded.get(stream.model):
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"shared:{stream.model}", str(shares[-1][0] + 1)))
        self._saved.add(stream.model)


    def _tell(self, db: sqlite3.Connection, stream: Stream, configured: str) -> None:
        """Tell the replicas by what a model is judged, where that is not what the configuration says or they heard otherwise."""
        judged = f"{configured}:{stream.reference.digest}"
        told = db.execute("SELECT value FROM meta WHERE key = ?", (f"judged:{stream.model}",)).fetchone()
        if judged == told[0] if told is not None else configured == stream.reference.digest:
            return
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"judged:{stream.model}", judged))
        self._judged[REFERENCE + stream.model.encode()] = packed(
            JudgedBy(stream.model, configured, stream.version, stream.reference.to_json()))


def latest(records: Iterable[tuple[int, bytes, bytes | None]]) -> tuple[dict[bytes, bytes], list[tuple[int, bytes, bytes]]]:
    """What a partition of the state topic holds: the rows as they are now, and the shares that nobody has removed, in order."""
    rows: dict[bytes, bytes] = {}
    shares: dict[bytes, tuple[int, bytes]] = {}
    for offset, key, value in records:
        if key.startswith(ROW):
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        elif key.startswith(SHARE):
            if value is None:
                shares.pop(key, None)
            else:
                shares[key] = (offset, value)
    return rows, sorted((offset, key, value) for key, (offset, value) in shares.items())
