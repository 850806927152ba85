"""What people and programs asked over HTTP, waiting for the loop: the server notes, the loop acts and answers.

    inbox.put(asked)                 note it and go on: for whoever does not wait (an Alertmanager's receiver)
    inbox.ask(asked)                 note it and wait for the loop's reply: for whoever is shown the answer
    inbox.take(), inbox.reply(...)   the loop: everything that was noted, and what came of it once it is stored

Bounded: beyond INBOX_MAX the server says that it is busy, and nothing grows; beyond WAITING_MAX nobody waits any more,
because each waiting request holds a thread that a scrape needs, too. The loop takes everything once a turn, before its
checkpoint, so that an answer is stored together with what it changes, and replies after it: what somebody was told
has happened survives a kill. Neighbours: `answers` and the receiver put, `monitor.pipeline` takes.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

from monitor.decisions import Action, Limit

#: By the word that stands in the request's path: answers to a proposed launch.
ACTIONS: dict[str, Action] = {"approve": "approve", "reject": "reject"}
#: Answers that may wait for one turn of the loop; people give one or two a day.
INBOX_MAX = 64
#: Requests that may wait for the loop at a time; the server has 40 threads for all its requests.
WAITING_MAX = 16
#: How long a request waits for the loop, which turns at least once a second; a large batch may take it longer.
WAIT_SECONDS = 5.0


class Asked(NamedTuple):
    """What somebody asks the loop to do.

    launch : of an answer: the launch that is answered        model : of a launch that is asked for
    by     : who asked, as far as is known                    why   : the words that came with it
    key    : asking again with the same key is asking once; empty where every ask counts
    at     : wall-clock seconds since 1970
    force  : whether the limits of the policy are set aside (never the one launch in flight of a model)
    dry_run : only say what the answer would be      version : of a roll-back: where to; empty for the version before
    """

    action: Action
    launch: str = ""
    model: str = ""
    by: str = ""
    why: str = ""
    key: str = ""
    at: float = 0.0
    force: bool = False
    dry_run: bool = False
    version: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of it.

    taken  : whether it was done, or would be in a dry run        words : the answer, one sentence
    launch : the launch that it is about, and its state           reason : of a `no` (`metrics.DECISION_REASONS`)
    until  : event time from which the answer may be another; 0 where that is not known
    limits : how every limit of the model's policy stands, where a launch was asked for
    """

    taken: bool
    words: str
    launch: str = ""
    state: str = ""
    reason: str = ""
    until: float = 0.0
    limits: tuple[Limit, ...] = ()


@dataclass(slots=True, eq=False)
class _Slot:
    """Where one reply is waited for."""

    asked: Asked                                    # held, so that its identity is nobody else's
    done: threading.Event = field(default_factory=threading.Event)
    reply: Reply | None = None


class Inbox:
    """What was asked: `put` and `ask` by the server's threads, `take` and `reply` by the loop."""

    def __init__(self, wait_seconds: float = WAIT_SECONDS) -> None:
        """wait_seconds : how long `ask` waits for a reply."""
        self._seconds = wait_seconds
        self._noted: queue.Queue[Asked] = queue.Queue(INBOX_MAX)
        self._slots: dict[int, _Slot] = {}          # by the identity of what was asked
        self._room = threading.BoundedSemaphore(WAITING_MAX)

    def put(self, asked: Asked) -> bool:
        """Note it; False when too many wait."""
        try:
            self._noted.put_nowait(asked)
        except queue.Full:
            return False
        return True

    def ask(self, asked: Asked) -> Reply | bool:
        """Note it and wait for the reply; True where it is noted but not answered in time, False when too many wait."""
        slot = _Slot(asked)
        has_room = self._room.acquire(blocking=False)
        try:
            if has_room:
                self._slots[id(asked)] = slot
            if not self.put(asked):
                return False
            if has_room:
                slot.done.wait(self._seconds)
            return slot.reply or True
        finally:
            self._slots.pop(id(asked), None)
            if has_room:
                self._room.release()

    def take(self) -> list[Asked]:
        """Everything that was noted since the last call, oldest first."""
        taken = []
        while True:
            try:
                taken.append(self._noted.get_nowait())
            except queue.Empty:
                return taken

    def reply(self, asked: Asked, reply: Reply) -> None:
        """Tell whoever waits for it; nobody may."""
        slot = self._slots.get(id(asked))
        if slot is not None:
            slot.reply = reply
            slot.done.set()

    def close(self) -> None:
        """The loop is over: nobody waits any longer, and what was noted since is not done."""
        self._seconds = 0.0
        for slot in list(self._slots.values()):
            slot.done.set()
