"""What people asked over HTTP, waiting for the loop: the server notes, the loop acts.

Bounded: beyond INBOX_MAX the server says that it is busy, and nothing grows. The loop takes everything once a turn,
before its checkpoint, so that an answer is stored together with what it changes.
"""

from __future__ import annotations

import queue
from typing import Literal, NamedTuple

Action = Literal["approve", "reject"]
#: By the word that stands in the request's path.
ACTIONS: dict[str, Action] = {"approve": "approve", "reject": "reject"}
#: Answers that may wait for one turn of the loop; people give one or two a day.
INBOX_MAX = 64


class Asked(NamedTuple):
    """What somebody asks the loop to do.

    launch : of an answer: the launch that is answered        model : of a launch that is asked for
    by     : who asked, as far as is known                    why   : the words that came with it
    key    : asking again with the same key is asking once; empty where every ask counts
    at     : wall-clock seconds since 1970
    """

    action: Action
    launch: str = ""
    model: str = ""
    by: str = ""
    why: str = ""
    key: str = ""
    at: float = 0.0


class Inbox:
    """What was asked: `put` by the server's threads, `take` by the loop."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Asked] = queue.Queue(INBOX_MAX)

    def put(self, asked: Asked) -> bool:
        """Note it; False when too many wait."""
        try:
            self._waiting.put_nowait(asked)
        except queue.Full:
            return False
        return True

    def take(self) -> list[Asked]:
        """Everything that was noted since the last call, oldest first."""
        taken = []
        while True:
            try:
                taken.append(self._waiting.get_nowait())
            except queue.Empty:
                return taken
