"""Brokers that went away: what is said of it, how often, and how a client is made anew.

`Outage` is told every turn whether the brokers are there. It waits a moment, for connections come and go, then says once
that they are away and why, reminds with growing pauses or when the sure cause is found ("disconnected" becomes "wrong
password"), and says once that they are back: a night without brokers is a dozen lines. `Opening` makes a client on a
thread of its own, with growing pauses between attempts, so that the loop that closes panes and answers signals never
waits for a network.

Neither knows a client library, so that every transport shares them. Neighbours: `kafka` tells and asks them,
`connection` reads password and certificates anew at each attempt, `flow.Batch.away` carries the words to the metrics.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from monitor.errors import TidemarkError

log = logging.getLogger("tidemark")

T = TypeVar("T")

#: Shorter absences are nobody's business: a leader moves, an idle connection is opened again.
GRACE_SECONDS = 3.0
_REMIND_SECONDS = 60.0                              # doubled each time
_REMIND_SECONDS_MAX = 3600.0
_PAUSE_SECONDS = 0.5                                # before the first attempt, doubled each time
_PAUSE_SECONDS_MAX = 30.0
_SOUND_SECONDS = 60.0                               # who has read for that long begins again with the first pause


class Outage:
    """Whether the brokers are away, and the log lines about it.

    away : why nothing can be read; empty while all is well, and in the first GRACE_SECONDS of an absence
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.away = ""
        self._clock = clock
        self._since: float | None = None
        self._remind_at, self._remind_pause = 0.0, _REMIND_SECONDS
        self._told: set[str] = set()                # sure causes of this absence that the log names already

    def reached(self) -> None:
        """The brokers are there."""
        if self.away and self._since is not None:
            log.info("Kafka answers again.", extra={"seconds": round(self._clock() - self._since, 1)})
        self.away, self._since = "", None
        self._told.clear()

    def missed(self, why: str, *, at_once: bool = False) -> None:
        """They are not, and why; `at_once` where that is sure and will not mend itself in a moment."""
        now = self._clock()
        if self._since is None:
            self._since = now
        if not self.away:
            if not at_once and now - self._since < GRACE_SECONDS:
                return
            log.warning("Kafka does not answer; trying again.", extra={"error": why})
            self._remind_pause = _REMIND_SECONDS
            self._remind_at = now + self._remind_pause
        elif now >= self._remind_at or (at_once and why not in self._told):
            log.warning("Kafka still does not answer.", extra={"error": why, "seconds": round(now - self._since)})
            if now >= self._remind_at:
                self._remind_pause = min(2 * self._remind_pause, _REMIND_SECONDS_MAX)
                self._remind_at = now + self._remind_pause
        if at_once:
            self._told.add(why)
        self.away = why


class Pauses:
    """How long to wait before the next attempt: doubled each time, from the beginning after a sound while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = _PAUSE_SECONDS
        self._last: float | None = None

    def take(self) -> float:
        """Seconds to wait now."""
        now = self._clock()
        if self._last is None or now - self._last > _PAUSE_SECONDS_MAX + _SOUND_SECONDS:
            self._next = _PAUSE_SECONDS
        pause, self._next, self._last = self._next, min(2 * self._next, _PAUSE_SECONDS_MAX), now
        return pause


class Opening(Generic[T]):
    """Makes something that may fail, again and again on a thread of its own, until it succeeds or is given up.

    make : called with pauses between; a TidemarkError is noted in `error` and tried again, anything else ends it
    discard : what is done with a result that nobody wants any more
    """

    def __init__(self, make: Callable[[], T], discard: Callable[[T], None], pauses: Pauses) -> None:
        self.error = ""
        self._make, self._discard, self._pauses = make, discard, pauses
        self._result: T | None = None
        self._defect: BaseException | None = None
        self._is_wanted = True
        self._lock, self._given_up, self._ended = threading.Lock(), threading.Event(), threading.Event()
        threading.Thread(target=self._run, name="kafka-opening", daemon=True).start()

    def take(self, seconds: float) -> T | None:
        """The result, waited for that long; None where there is none yet."""
        self._ended.wait(seconds)
        if self._defect is not None:
            raise self._defect
        return self._result

    def give_up(self) -> None:
        """Make no more; what is being made now is discarded as soon as it is there."""
        with self._lock:
            self._is_wanted = False
            result, self._result = self._result, None
        self._given_up.set()
        if result is not None:
            self._discard(result)

    def _run(self) -> None:
        while not self._given_up.wait(self._pauses.take()):
            try:
                result = self._make()
            except TidemarkError as error:
                self.error = str(error)
                continue
            except BaseException as error:          # a defect of ours: raised where somebody looks
                self._defect = error
                self._ended.set()
                return
            with self._lock:
                if self._is_wanted:
                    self._result = result
                    self._ended.set()
                    return
            self._discard(result)
            return
