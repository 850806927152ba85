"""The folder of reports: one set of files per alarm, written whole, bounded in number, never named by a stranger.

    NAME.facts        our half (`report_facts.Facts`, msgpack)
    NAME.html         evidently's half, once it is made
    NAME.rows         what evidently is given, while it waits

The invariant: what is read is either whole or not there, since every file appears by a rename. A name from outside is
looked up only after it was turned into a file name that cannot leave the folder: a plain name stays as it is, any
other one becomes a digest. Files that are damaged count as absent: a report can always be made again.

The loop writes; the HTTP threads read; the process that makes a report writes its one file. At most `keep` alarms have
files, the latest ones; 5 MB each where evidently's half is there. Neighbours: `report_maker`, `report`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from monitor.documents import read_msgpack
from monitor.expose.report_facts import ENDING, Facts

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SUFFIXES = (".facts", ".html", ".rows")


def file_stem(name: str) -> str:
    """The name of a report's files, without a folder or a suffix, whatever the name holds.

    >>> file_stem("loans-1-drift-3"), file_stem("../../etc/passwd")
    ('loans-1-drift-3', 'x-3754d6cb3a38e1185e5b382d')
    """
    if _PLAIN.fullmatch(name) and ENDING.search(name):
        return name
    return f"x-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"


class Shelf:
    """The reports of one service in one folder.

    keep : alarms that have files, the latest ones
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def put(self, facts: Facts) -> None:
        """Keep our half, in place of an older one of the name; the oldest alarms beyond `keep` go. OSError on a full disk."""
        self._write(facts.name, ".facts", msgspec.msgpack.encode(facts))
        self._prune()

    def put_rows(self, name: str, content: bytes) -> Path:
        """Keep what evidently will be given."""
        return self._write(name, ".rows", content)

    def facts(self, name: str) -> Facts | None:
        """Our half of a report; None where there is none, or none that can be read."""
        return _read(self.path(name, ".facts"))

    def all(self) -> Iterator[Facts]:
        """Every report on the shelf, the newest first."""
        for path in sorted(self._known(), key=_age):
            facts = _read(path)
            if facts is not None:
                yield facts

    def path(self, name: str, suffix: str) -> Path:
        """Where one of a report's files is, if it is there."""
        assert suffix in _SUFFIXES
        return self.folder / f"{file_stem(name)}{suffix}"

    def remove(self, name: str, suffix: str) -> None:
        """Remove one of its files, if it is there."""
        self.path(name, suffix).unlink(missing_ok=True)

    def _known(self) -> list[Path]:
        try:
            return list(self.folder.glob("*.facts"))
        except OSError:
            return []

    def _write(self, name: str, suffix: str, content: bytes) -> Path:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)     # sampled rows are nobody else's to read
        path = self.path(name, suffix)
        waiting = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            waiting.write_bytes(content)
            os.replace(waiting, path)
        except OSError:
            waiting.unlink(missing_ok=True)
            raise
        return path

    def _prune(self) -> None:
        for path in sorted(self._known(), key=_age)[self._keep:]:
            for suffix in _SUFFIXES:
                path.with_suffix(suffix).unlink(missing_ok=True)


def _age(path: Path) -> tuple[float, str]:
    """What the newest has least of; a file that went away meanwhile is the oldest."""
    try:
        return -path.stat().st_mtime, path.name
    except OSError:
        return 0.0, path.name


def _read(path: Path) -> Facts | None:
    try:
        return read_msgpack(path.read_bytes(), Facts)
    except (OSError, msgspec.DecodeError):
        return None
