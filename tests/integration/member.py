"""A member of a consumer group whose state is a folder that all members share: a log of counted ranges per partition.

What a member counted is one line per part, `first last next member`, appended in one write; that is its checkpoint. When
partitions move, it goes on where the logs say. So the logs of all members together must hold every record exactly once,
whoever joined, left or was killed. Run as a program, it reads until SIGTERM and leaves cleanly, or until it is killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from monitor.config import Kafka
from tests.integration.reading import TRANSPORTS


def counted(folder: Path) -> dict[tuple[str, int], list[tuple[int, int, int]]]:
    """Per partition the ranges that were counted (first, last, next), in the order in which they were."""
    found: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
    for path in folder.glob("*@*"):
        topic, _, partition = path.name.partition("@")
        lines = [line.split() for line in path.read_text().splitlines()]
        found[topic, int(partition)] = [(int(first), int(last), int(after)) for first, last, after, _ in lines]
    return found


class Member:
    """Reads until `stop`, and keeps which partitions it has."""

    def __init__(self, make: Callable[..., Any], kafka: Kafka, topics: list[str], folder: Path, name: str) -> None:
        self.source, self.folder, self.name = make(kafka, topics), folder, name
        self.assigned: frozenset[tuple[str, int]] = frozenset()
        self.caught_up: frozenset[tuple[str, int]] = frozenset()
        self.stopping = False
        self.failed: BaseException | None = None

    def run(self) -> None:
        """Count batches until stopped, then leave the group."""
        try:
            batches: Iterator[Any] = iter(self.source)
            while not self.stopping:
                self.take(next(batches))
        except BaseException as error:
            self.failed = error
        finally:
            self.source.close()

    def take(self, batch: Any) -> None:
        """Count what came; where partitions moved, go on from the common state first."""
        moved = batch.assigned != self.assigned
        new, self.assigned, self.caught_up = batch.assigned - self.assigned, batch.assigned, batch.caught_up
        for part in batch.parts:
            key = (part.topic, part.partition)
            assert key not in new or not len(part), f"{key} was delivered in the batch in which it came"
            if len(part):
                assert (part.offsets[1:] > part.offsets[:-1]).all()
                line = f"{part.offsets[0]} {part.offsets[-1]} {part.next_offset} {self.name}\n".encode()
                log = os.open(self.folder / f"{part.topic}@{part.partition}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.write(log, line)
                os.close(log)
        if moved:
            self.source.seek({key: ranges[-1][2] for key, ranges in counted(self.folder).items() if ranges})

    def start(self) -> threading.Thread:
        """Run on a thread."""
        thread = threading.Thread(target=self.run, name=self.name)
        thread.start()
        return thread


def main(transport: str, servers: str, group: str, topic: str, folder: str, name: str) -> None:
    """A member as a program of its own."""
    kafka = Kafka(bootstrap_servers=[servers], group=group, session_timeout_seconds=2)
    member = Member(TRANSPORTS[transport], kafka, [topic], Path(folder), name)
    signal.signal(signal.SIGTERM, lambda *_: setattr(member, "stopping", True))
    member.run()
    if member.failed is not None:
        raise member.failed


if __name__ == "__main__":
    main(*sys.argv[1:])
