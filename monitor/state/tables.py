"""The tables of a state file, and what their rows hold.

Idea: counts are compressed profiles, everything else is a JSON document of one type, so that a look with `sqlite3` tells a
person what is in it. `stored` and `unpacked` read a row back, and refuse damage by one line that names the kind.

Invariant: a table is only ever added, and each is made where it is absent; a column that changes its meaning is a new format.
Neighbours: `store` writes and reads the rows, `capture` and `retention` name some of them, `seal` covers all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from detectors.profile import Profile
from monitor.documents import read_json
from monitor.errors import CheckpointRefused
from monitor.state.notes import Notes

_Stored = TypeVar("_Stored")

#: 1: no seal, and in the beginning no samples, audit or captured_rows      2: sealed
FORMATS = (1, 2)
#: Each is made where it is absent: a state that was begun without it goes on.
TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS refs (digest TEXT PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS streams (
    model TEXT PRIMARY KEY, version TEXT NOT NULL, digest TEXT NOT NULL, topic TEXT NOT NULL,
    configured_version TEXT NOT NULL, configured_digest TEXT NOT NULL,
    counters TEXT NOT NULL, policy TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS positions (
    model TEXT, topic TEXT, partition INTEGER, next_offset INTEGER NOT NULL, clock INTEGER NOT NULL,
    PRIMARY KEY (model, topic, partition));
CREATE TABLE IF NOT EXISTS panes (
    model TEXT, version TEXT, segment TEXT, pane INTEGER, pane_ms INTEGER NOT NULL, events INTEGER NOT NULL,
    decided INTEGER NOT NULL, profile BLOB NOT NULL,
    PRIMARY KEY (model, version, segment, pane)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS alarms (seq INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, document TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS decisions (seq INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, document TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS launches (id TEXT PRIMARY KEY, model TEXT NOT NULL, document TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS captures (
    model TEXT, file TEXT, rows INTEGER NOT NULL, first_time INTEGER NOT NULL, last_time INTEGER NOT NULL,
    labelled INTEGER NOT NULL, PRIMARY KEY (model, file));
CREATE TABLE IF NOT EXISTS cutovers (
    model TEXT, version TEXT, previous TEXT, topic TEXT, partition INTEGER, next_offset INTEGER, at REAL, reason TEXT,
    PRIMARY KEY (model, version, topic, partition));
CREATE TABLE IF NOT EXISTS samples (
    model TEXT, version TEXT, segment TEXT, pane INTEGER, document BLOB NOT NULL,
    PRIMARY KEY (model, version, segment, pane)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS audit (seq INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, document TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS captured_rows (
    model TEXT, number INTEGER, document BLOB NOT NULL, PRIMARY KEY (model, number)) WITHOUT ROWID;
"""


class Counters(msgspec.Struct):
    """The numbers of a stream that are not panes."""

    last_decided: int
    origin: int
    decided_panes: int
    decided_events: int
    late: int
    outcomes: dict[str, int]
    notes: dict[int, Notes] = msgspec.field(default_factory=dict)
    in_a_row: dict[str, int] = msgspec.field(default_factory=dict)         # "topic:partition" -> refused records
    topic_ids: dict[str, str] = msgspec.field(default_factory=dict)        # topic -> the id that the positions are of


class Captured(msgspec.Struct, frozen=True):
    """One file of captured events, as a checkpoint names it."""

    model: str
    file: str
    rows: int
    first_time: int
    last_time: int
    labelled: int


@dataclass(slots=True)
class CaptureStep:
    """What one checkpoint changes of one model's captured events.

    added, removed : files that are named (anew), and files that no longer are
    pending        : rows that wait for their file, under a number      done : numbers of those that wait no longer
    """

    model: str
    added: list[Captured] = field(default_factory=list)
    removed: list[Captured] = field(default_factory=list)
    pending: tuple[int, bytes] | None = None
    done: list[int] = field(default_factory=list)


def stored(document: str | bytes, kind: type[_Stored]) -> _Stored:
    """A stored JSON document as what it was; damage is refused."""
    try:
        return read_json(document, kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise CheckpointRefused(f"stored {kind.__name__}: expected its fields, got damage ({str(error)[:200]}); "
                                "restore the state file from a copy") from None


def unpacked(blob: bytes) -> Profile:
    """A stored profile; damage is refused."""
    try:
        return Profile.from_bytes(blob)
    except ValueError as error:
        raise CheckpointRefused(
            f"stored pane: expected whole counts, got damage ({error}); restore the state file from a copy"
        ) from None
