"""The wall clock, and what it was set by: launches wait and time out by time that passes, not by the machine's date.

A wall clock is set now and then: by a person, by NTP after a start, by a host that gives a virtual machine its time back. We
read it beside `elapsed`, which cannot be set; where the two advanced differently by SET_SECONDS or more since the last look,
the clock was set, by the difference, and one log line says so. `set_by` is the sum of that. A launch is stored with the sum
at its beginning (`Launch.clock_set`), so

    wall clock - set_by + launch.clock_set

goes on evenly for each launch: what compares it with the launch's own times is blind to how often the clock was set since.
It is the clock as it was set when the launch began, so a clock that was wrong for a while is forgotten with its launches.

Over a restart the sum goes on from what was stored with the launches. On the same boot `elapsed` went on, too, and tells
what happened in between, as it does while we run. After a reboot, or on another machine, only the dates are left: the time
off is taken by the clock as it was last set, or as it was at first, whichever is shorter, and never as less than nothing.

A suspended machine: `elapsed` stands still (CLOCK_MONOTONIC), so its sleep looks like a clock set forward. That is right: we
could follow no job and take no answer meanwhile, and a local training slept, too. Neighbours: `pipeline` stores and asks.
"""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
import time
from pathlib import Path

import msgspec

from monitor.flow import Clock, Launch
from monitor.state.tables import stored

log = logging.getLogger("tidemark")

#: A smaller difference is no setting: NTP slews, and a process is stopped between two readings.
SET_SECONDS = 5.0
#: The stored readings are at most so old while a launch is in flight: what a reboot to a lost clock may add to a wait.
STORED_SECONDS = 60.0
#: What came into its state longer ago is shown with the times that it was stored with.
SHOWN_SECONDS = 30 * 86_400.0
KEY = "clock"


class Seen(msgspec.Struct, frozen=True):
    """One look at the clocks, as it is stored: seconds; `boot` is what `elapsed` is measured from, empty where unknown."""

    wall: float
    elapsed: float
    boot: str
    set_by: float


class SetClock:
    """Seconds since 1970, and how much of them came from setting the clock.

    elapsed : seconds that cannot be set; None: `wall` is none that is set, as where a test moves it
    boot    : what `elapsed` is measured from; two looks of the same boot can be compared
    """

    def __init__(self, wall: Clock = time.time, elapsed: Clock | None = None, *, boot: str = "") -> None:
        self._wall, self._elapsed, self._boot = wall, elapsed, boot
        self._stored: Seen | None = None
        self.set_by = 0.0
        self._seen = (0.0, 0.0, 0.0) if elapsed is None else (elapsed(), wall(), elapsed())

    @classmethod
    def restored(cls, db: sqlite3.Connection, wall: Clock, elapsed: Clock) -> SetClock:
        """The clock of a service, going on from what an earlier process stored; `wall` and `elapsed` may be the same."""
        made = cls(wall, None if elapsed is wall else elapsed, boot=boot() if elapsed is time.monotonic else "given")
        made.restore(db)
        return made

    def __call__(self) -> float:
        """The wall clock now; notices whether it was set since the last look."""
        if self._elapsed is None:
            return self._wall()
        # A process that is stopped between two readings must not look like a setting: the wall was read between these two.
        before, wall, after = seen = self._elapsed(), self._wall(), self._elapsed()
        earlier, then, later = self._seen
        self._seen = seen
        by = wall - then
        by -= min(max(by, before - later), after - earlier)
        if abs(by) >= SET_SECONDS:
            self.set_by += by
            log.warning("The machine's clock was set.", extra={"seconds": round(by, 3), "together": round(self.set_by, 3)})
        return wall

    def steady(self) -> float:
        """The wall clock without what it was set by; `+ launch.clock_set` is a launch's own time."""
        return self() - self.set_by

    def shown(self, launch: Launch) -> Launch:
        """The launch with its times on the clock as it is set now: what people and alerts compare with today's date.

        One whose last step is older than SHOWN_SECONDS stays as it is: many are held, and nothing looks at its age.
        """
        by = self.set_by - launch.clock_set
        if not by or self._seen[1] - launch.steps[-1][1] - by > SHOWN_SECONDS:
            return launch
        return dataclasses.replace(launch, steps=tuple((state, at + by) for state, at in launch.steps))

    def restore(self, db: sqlite3.Connection) -> None:
        """Go on from what is stored, which an earlier process saw."""
        row = db.execute("SELECT value FROM meta WHERE key = ?", (KEY,)).fetchone()
        if row is None or self._elapsed is None:
            return
        earlier, (elapsed, wall, _) = stored(row[0], Seen), self._seen
        self._stored, self.set_by = earlier, earlier.set_by
        if self._boot and earlier.boot == self._boot and elapsed >= earlier.elapsed:
            self._seen = earlier.elapsed, earlier.wall, earlier.elapsed     # the next look tells
            return
        steady = earlier.wall - earlier.set_by
        off = min((by for by in (wall - earlier.wall, wall - steady) if by >= 0), default=0.0)
        by = wall - steady - off - earlier.set_by
        if abs(by) >= SET_SECONDS:
            self.set_by += by
            log.warning("The machine's clock was set while we were off.",
                        extra={"seconds": round(by, 3), "together": round(self.set_by, 3)})

    def save(self, db: sqlite3.Connection, *, now: bool) -> None:
        """Store the last look with the launches that it counts for; where nothing of them changes, now and then."""
        if self._elapsed is None:
            return
        elapsed, wall, _ = self._seen
        seen, last = Seen(wall, elapsed, self._boot, self.set_by), self._stored
        if now or last is None or last.set_by != seen.set_by or not 0 <= seen.elapsed - last.elapsed < STORED_SECONDS:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (KEY, msgspec.json.encode(seen).decode()))
            self._stored = seen


def boot() -> str:
    """What `time.monotonic` is measured from: the kernel's boot and, of a container, its own offset; empty where unknown."""
    try:
        place = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        offsets = Path("/proc/self/timens_offsets")
        return f"{place} {' '.join(offsets.read_text(encoding='ascii').split())}" if offsets.exists() else place
    except OSError:
        return ""
