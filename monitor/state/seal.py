"""The seal of a state file: one number over all of its rows, kept in the transaction that changes them.

SQLite notices a damaged page; it does not notice a flipped bit inside a value, a `-wal` of another day beside the file, or
an old copy of some pages under new ones. Each of these would be counted on in silence. So every row has a 64-bit digest,
the seal is their sum, and `inspect` computes it anew before a file is used: what was verified just before writing is
verified again before reading. A sum, because it moves with each row that comes or goes and needs no second look at the
others: temporary triggers bring the rows, no table and no statement of the store knows of it.

The invariant: a file whose seal is right holds exactly the rows of one checkpoint of ours. A file that anything else wrote
to, a person included, is refused; whoever mended one by hand calls `reseal`.

Cost: 1-2 µs a row written and 1 ns a byte; at start as much for every row of the file, beside SQLite's own check of its
pages. Neighbours: `store` owns the tables and asks for all of this.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from monitor.errors import CheckpointFailed, CheckpointRefused

#: The seal is a sum modulo this.
SIZE = 2**64
KEY = "seal"
#: What may pass when there is room, when rights are mended, when a disk is back: the file itself is not to blame.
_PASSING = {
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM,
}
_MOVE = "restore it from a copy, or move it away (with its -wal) to start counting anew"


class Connection(sqlite3.Connection):
    """A connection whose failures are ours: one line that names the file."""

    path: str = ":memory:"

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """As sqlite3's; CheckpointFailed or CheckpointRefused where the file fails."""
        try:
            return super().execute(sql, parameters)
        except sqlite3.DatabaseError as error:
            raise told(self.path, error) from None

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """As sqlite3's; CheckpointFailed or CheckpointRefused where the file fails."""
        try:
            return super().executemany(sql, parameters)
        except sqlite3.DatabaseError as error:
            raise told(self.path, error) from None


def told(path: object, error: sqlite3.DatabaseError) -> Exception:
    """What an error of SQLite means to a person; a mistake in our own statements stays what it is."""
    if isinstance(error, (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.NotSupportedError)):
        return error
    words = " ".join(str(error).split())            # SQLite quotes what the file says, line ends and all
    if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _PASSING:
        return CheckpointFailed(f"{path}: expected a state file that can be written, got: {words}; nothing of this checkpoint "
                                "was kept and nothing before it is lost: make room or mend the rights, and start again")
    return CheckpointRefused(f"{path}: expected a whole state file, got damage: {words}; {_MOVE}")


def connect(path: Path | str, *, read_only: bool = False) -> Connection:
    """Open a file, or ":memory:"; nothing is read yet."""
    name = str(path) if str(path) == ":memory:" else f"{Path(path).absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    try:
        db = sqlite3.connect(name, uri=True, isolation_level=None, check_same_thread=False, timeout=5.0, factory=Connection)
    except sqlite3.DatabaseError as error:
        raise told(path, error) from None
    db.path = str(path)
    return db


def digest(*values: object) -> int:
    """64 bits of one row; a value's type counts, too."""
    whole = blake2b(digest_size=8)
    for value in values:
        content = value if isinstance(value, bytes) else repr(value).encode()
        whole.update(b"%d:%c:" % (len(content), b"b" if isinstance(value, bytes) else b"t"))
        whole.update(content)
    return int.from_bytes(whole.digest())


class Seal:
    """The seal of an open file, moved by every row that comes or goes from `watch` on."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._value = self._written = 0

    def watch(self) -> None:
        """Follow every table; call it again after a table was made."""
        self._value = self._written = stored(self._db) or 0
        # Without it the row that INSERT OR REPLACE replaces would go unseen.
        self._db.execute("PRAGMA recursive_triggers = ON")
        self._db.create_function("tidemark_came", -1, self._came)
        self._db.create_function("tidemark_went", -1, self._went)
        for table, columns in tables(self._db).items():
            # Two columns' names tell no more than where they are: those of `new` and `old` are the row's.
            for event, calls in (("INSERT", ("came", "NEW")), ("DELETE", ("went", "OLD")), ("UPDATE", ("", ""))):
                pairs = [calls] if calls[0] else [("went", "OLD"), ("came", "NEW")]
                body = " ".join(f"SELECT tidemark_{what}('{table}', {', '.join(f'{row}.{name}' for name in columns)});"
                                for what, row in pairs)
                row = "OLD" if event == "DELETE" else "NEW"
                when = f"WHEN {row}.key <> '{KEY}'" if table == "meta" else ""
                self._db.execute(f"CREATE TEMP TRIGGER IF NOT EXISTS seal_{table}_{event} AFTER {event} ON main.{table} {when} "
                                 f"BEGIN {body} END")

    def write(self) -> None:
        """Inside the transaction, last: note what it changed."""
        if self._value != self._written:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (KEY, f"{self._value:016x}"))

    def settle(self, *, committed: bool) -> None:
        """After the transaction: it holds, or it never was."""
        if committed:
            self._written = self._value
        else:
            self._value = self._written

    def begin(self) -> None:
        """Inside the transaction: seal what the file holds now, whatever it was."""
        self._value = computed(self._db)
        self._written = -1

    def _came(self, *row: object) -> None:
        self._value = (self._value + digest(*row)) % SIZE

    def _went(self, *row: object) -> None:
        self._value = (self._value - digest(*row)) % SIZE


def tables(db: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    """The tables of a file and their columns."""
    names = [name for (name,) in db.execute(
        "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")]
    return {name: tuple(row[1] for row in db.execute(f'PRAGMA main.table_info("{name}")')) for name in names}


def stored(db: sqlite3.Connection) -> int | None:
    """The seal that the file carries; None where it has none."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (KEY,)).fetchone()
    return int(row[0], 16) if row is not None else None


def computed(db: sqlite3.Connection) -> int:
    """The seal of the rows that the file holds, and of the statements that made its tables."""
    total = sum(digest("sqlite_master", *row) for row in db.execute("SELECT type, name, tbl_name, sql FROM main.sqlite_master"))
    for table, columns in tables(db).items():
        where = f"WHERE key <> '{KEY}'" if table == "meta" else ""
        quoted = ", ".join(f'"{name}"' for name in columns)
        for row in db.execute(f'SELECT {quoted} FROM main."{table}" {where}'):
            total += digest(table, *row)
    return total % SIZE


def inspect(path: Path, formats: Iterable[int]) -> int:
    """The format of a file that can be used; else CheckpointRefused. Nothing is changed, the -wal is left as it is.

    formats : those that this version reads, the newest last; the first one had no seal
    """
    _refuse_other_kinds(path)
    db = connect(path, read_only=True)
    try:
        db.execute("BEGIN")                         # one look: the process that holds the file may be writing
        return _inspected(path, db, list(formats))
    except sqlite3.DatabaseError as error:          # met while rows were fetched
        raise told(path, error) from None
    except (ValueError, OverflowError, UnicodeDecodeError) as error:
        words = " ".join(str(error).split())
        raise CheckpointRefused(f"{path}: expected a whole state file, got damage: {words}; {_MOVE}") from None
    finally:
        db.close()


def _inspected(path: Path, db: Connection, formats: list[int]) -> int:
    found = tables(db)
    if not found:
        raise CheckpointRefused(f"{path}: expected a state file, got a database without any table; {_MOVE}")
    if "meta" not in found or "streams" not in found:
        raise CheckpointRefused(f"{path}: expected a state file of tidemark, got another program's database (table "
                                f"{sorted(found)[0][:40]!r}); name a path of its own in service.state")
    check = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if check != "ok":
        raise CheckpointRefused(f"{path}: expected a whole state file, got damage: {' '.join(str(check).split())[:160]}; {_MOVE}")
    row = db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
    number = row[0] if row is not None else "none"
    if number not in [str(one) for one in formats]:
        newer = str(number).isdecimal() and int(number) > formats[-1]
        raise CheckpointRefused(
            f"{path}: expected state format {formats[-1]}{' or older' if len(formats) > 1 else ''}, got {str(number)[:20]}; " + (
                "a newer tidemark wrote it: start that version, or restore the copy from before the upgrade" if newer else _MOVE))
    if int(number) > formats[0] and stored(db) != computed(db):
        raise CheckpointRefused(
            f"{path}: expected the rows that tidemark sealed, got others: the file was damaged or changed by something else, "
            f"or its -wal belongs to another file; {_MOVE}")
    return int(number)


def _refuse_other_kinds(path: Path) -> None:
    """What is no database at all, each in words of its own."""
    with open(path, "rb") as file:
        head = file.read(16)
    if not head:
        raise CheckpointRefused(f"{path}: expected a state file, got an empty one; {_MOVE}")
    if head != b"SQLite format 3\x00":
        raise CheckpointRefused(
            f"{path}: expected a state file (SQLite), got something else, which begins with {head!r}; {_MOVE}")


def reseal(path: Path | str) -> None:
    """Seal a file as it is now: for somebody who has changed it by hand and knows what that means."""
    db = connect(path)
    try:
        seal = Seal(db)
        db.execute("BEGIN IMMEDIATE")
        seal.begin()
        seal.write()
        db.execute("COMMIT")
    finally:
        db.close()
