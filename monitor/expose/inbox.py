"""What people asked over HTTP, waiting for the loop: the server notes, the loop acts.

Bounded: beyond INBOX_MAX the server says that it is busy, and nothing grows. The loop takes everything once a turn,
before its checkpoint, so that an answer is stored together with what it changes.
"""

from __future__ import annotations

import queue
from typing import Literal

Action = Literal["approve", "reject"]
#: By the word that stands in the request's path.
ACTIONS: dict[str, Action] = {"approve": "approve", "reject": "reject"}
#: Answers that may wait for one turn of the loop; people give one or two a day.
INBOX_MAX = 64


class Inbox:
    """Answers to proposed launches: `put` by the server's threads, `take` by the loop."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Action, str]] = queue.Queue(INBOX_MAX)

    def put(self, action: Action, launch: str) -> bool:
        """Note an answer; False when too many wait."""
        try:
            self._waiting.put_nowait((action, launch))
        except queue.Full:
            return False
        return True

    def take(self) -> list[tuple[Action, str]]:
        """Everything that was noted since the last call, oldest first."""
        taken = []
        while True:
            try:
                taken.append(self._waiting.get_nowait())
            except queue.Empty:
                return taken
