"""What the state forgets when a version ends, so that its file does not grow with the number of versions.

The store keeps the last `KEPT_PANES` decided panes of the version that it counts under, and drops one for every one that it
adds. The panes of earlier versions no longer move on, so they are dropped here, when yet another version begins and at
every start, by the same age: event time older than so many panes of the version that counts now. What the panes of an
earlier version still serve (the usual rate of events, reports of its last alarms, `tidemark thresholds`) looks back no
further.

Invariant: a pane that is younger, and every pane that is still open under the present version, stays. Cost: one pass over
the model's panes, at a cut-over and at start alone. Neighbours: `store` writes panes, `cutover` and `service` call this.
"""

from __future__ import annotations

import sqlite3

from monitor.state.panes import NO_PANE, Stream
from monitor.state.store import KEPT_PANES


def forget_old_versions(db: sqlite3.Connection, stream: Stream, last_pane: int) -> int:
    """Drop what other versions of the model have left behind `KEPT_PANES` panes ago; how many panes that were.

    last_pane : the last decided pane of the version that counted before, in panes of the stream's length; NO_PANE: none
    """
    if last_pane == NO_PANE:
        return 0
    before_ms = (last_pane + 1 - KEPT_PANES) * stream.pane_ms
    return db.execute("DELETE FROM panes WHERE model = ? AND version <> ? AND (pane + 1) * pane_ms <= ?",
                      (stream.model, stream.version, before_ms)).rowcount
