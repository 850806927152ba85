"""One thread beside the loop, for detectors that take seconds.

Idea: the loop hands over work that needs nothing but what it carries (arrays that nobody writes to), and fetches what is
finished when it shows something. Of each detector at most one piece of work waits: a newer one takes its place in the
queue, since an answer about an old pane is of no use once there is a newer pane. So the loop never waits, and the
memory is one window of rows per detector.

Invariant: results come in the order in which the work was begun; what was replaced never runs and is told to the giver.
An exception of the work is its result: nothing that a detector does ends the thread or the service.

Cost: nothing until work is given; the thread is started then. Python runs one thread at a time: work in numpy or torch
lets the loop go on meanwhile, work in plain Python shares the core with it. Neighbours: `observe` gives and fetches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

#: How long the end of the service waits for the work in hand; it cannot be interrupted.
CLOSE_SECONDS = 10.0

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Background(Generic[Key, Result]):
    """Work by key, one waiting piece each, done one after the other in one daemon thread."""

    def __init__(self, name: str = "detectors") -> None:
        self._name = name
        self._changed = threading.Condition()
        self._waiting: dict[Key, Callable[[], Result]] = {}
        self._finished: list[tuple[Key, Result | Exception]] = []
        self._busy = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def give(self, key: Key, work: Callable[[], Result]) -> bool:
        """Have this done; whether it took the place of older work that had not begun."""
        with self._changed:
            if self._closed:
                return True
            replaced = key in self._waiting
            self._waiting[key] = work               # a key that waits keeps its place
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return replaced

    def take(self) -> list[tuple[Key, Result | Exception]]:
        """What was finished since the last call, or the exceptions that ended it."""
        with self._changed:
            finished, self._finished = self._finished, []
            return finished

    def wait(self) -> None:
        """Until nothing waits and nothing runs."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy)

    def close(self) -> None:
        """Leave what has not begun, and wait a while for what has; safe to call twice."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                key = next(iter(self._waiting))
                work = self._waiting.pop(key)
                self._busy = True
            try:
                result: Result | Exception = work()
            except Exception as error:              # told to the giver, who counts and logs it
                result = error
            with self._changed:
                self._finished.append((key, result))
                self._busy = False
                self._changed.notify_all()
