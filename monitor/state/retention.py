"""What the state forgets when a version ends, so that its file does not grow with the number of versions.

The store keeps the last `KEPT_PANES` decided panes of the version that it counts under, and drops one for every one that it
adds. The panes of earlier versions no longer move on, so they are dropped here, when yet another version begins and at
every start, by the same age: event time older than so many panes of the version that counts now. What the panes of an
earlier version still serve (the usual rate of events, reports of its last alarms, `tidemark thresholds`) looks back no
further.

The references of earlier versions go, too, some 0.4 MB each: what is kept is what something still judges by or looks back
at, which is the present ones, those whose panes are there, and those that a roll-back may go back to (the last 20 promotions
of a model, `retrain.ledger`).

Invariant: a pane that is younger, and every pane that is still open under the present version, stays, and so does the
reference of every pane; where a pane cannot be read, every reference stays. Cost: one pass over the model's panes, and one
pane of each version, at a cut-over and at start alone. Neighbours: `store` writes panes, `cutover` and `service` call this.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from monitor.errors import CheckpointRefused
from monitor.state.panes import NO_PANE, Stream
from monitor.state.store import KEPT_PANES
from monitor.state.tables import unpacked


def forget_old_versions(db: sqlite3.Connection, stream: Stream, last_pane: int) -> int:
    """Drop what other versions of the model have left behind `KEPT_PANES` panes ago; how many panes that were.

    last_pane : the last decided pane of the version that counted before, in panes of the stream's length; NO_PANE: none
    """
    if last_pane == NO_PANE:
        return 0
    before_ms = (last_pane + 1 - KEPT_PANES) * stream.pane_ms
    return db.execute("DELETE FROM panes WHERE model = ? AND version <> ? AND (pane + 1) * pane_ms <= ?",
                      (stream.model, stream.version, before_ms)).rowcount


def forget_old_references(db: sqlite3.Connection, needed: Iterable[str]) -> int:
    """Drop the references that nothing judges by or looks back at any more; how many that were.

    needed : digests that launches name: what they replaced, and what a roll-back goes to
    """
    kept = {digest for row in db.execute("SELECT digest, configured_digest FROM streams") for digest in row} | set(needed)
    last = ("", "")
    while row := db.execute("SELECT model, version, profile FROM panes WHERE (model, version) > (?, ?) "
                            "ORDER BY model, version LIMIT 1", last).fetchone():
        last = (row[0], row[1])                     # one pane of a version tells: all of it were counted by one reference
        try:
            kept.add(unpacked(row[2]).reference_digest)
        except CheckpointRefused:                   # of a version before this form of counts: what it needs cannot be known
            return 0
    gone = [(digest,) for (digest,) in db.execute("SELECT digest FROM refs") if digest not in kept]
    db.executemany("DELETE FROM refs WHERE digest = ?", gone)
    return len(gone)
