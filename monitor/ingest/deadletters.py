"""Refused events on their way out of the stream: kept with reason, place and bytes, so that nothing disappears.

    file:PATH    one JSON object per line: topic, partition, offset, reason, detail, value (base64); of a record of many
                 events also row, where one row of it was refused (value: the row as JSON), or events, where all of them were
    topic:NAME   one Kafka record each: the event's bytes, and the rest as headers
    none         nothing is kept; they are counted as dropped

`write` buffers, `flush` stands before the checkpoint: first the dead letters, then the offsets behind them. A crash
between the two writes some of them again (at least once); topic, partition and offset name an event for whoever
reads them. A file is bounded by `limits.dead_letter_bytes`: at half of it, it becomes PATH.1 and the PATH.1 before is
dropped and counted. A destination that fails does not stop the stream: what it did not take is counted as dropped and
told in the log once a minute. A full or read-only disk may pass: 16 MiB of letters wait for it in memory, and are lost only
with the process or when more come. A line that a kill cut short is removed before the next one is written; its letter is
written again. Neighbours: `decode` makes the refusals, `pipeline` calls write and flush.
"""

from __future__ import annotations

import base64
import errno
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from monitor.config import Kafka, Limits
from monitor.errors import TidemarkError
from monitor.flow import Refusal
from monitor.ingest.kafka import ApiVersion, KafkaWriter

log = logging.getLogger("tidemark")

_BUFFER_BYTES = 16 << 20                            # more than this waiting for a checkpoint is flushed early
_RECORD_BYTES = 64 << 10                            # what a record takes besides its value, generously
_REPEAT_SECONDS = 60.0
_AGAIN_SECONDS = 1.0                                # a full disk is asked again after that
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


class DeadLetters:
    """Where refused events go.

    destination : service.dead_letters      limits : `dead_letter_bytes` bounds both files together
    """

    def __init__(self, destination: str, limits: Limits, kafka: Kafka, *, api_version: ApiVersion = None) -> None:
        kind, _, name = destination.partition(":")
        self._path = Path(name) if kind == "file" else None
        self._topic = name if kind == "topic" else None
        self._file_bytes = limits.dead_letter_bytes // 2
        self._kafka, self._api_version = kafka, api_version
        self._writer: KafkaWriter | None = None
        self._buffer: list[Refusal] = []
        self._buffered_bytes = 0
        self._counts = {"written": 0, "dropped": 0}
        self._told_at = self._tried_at = -_REPEAT_SECONDS
        self._again_at = 0.0                        # before that the file is not tried again
        self._is_whole = False                      # the file's end was looked at

    def write(self, refusals: Iterable[Refusal]) -> None:
        """Take refused events; they are safe after the next `flush`."""
        for refusal in refusals:
            self._buffer.append(refusal)
            self._buffered_bytes += len(refusal.value or b"")
            if self._buffered_bytes > _BUFFER_BYTES:
                self.flush()

    def flush(self) -> None:
        """Write out what was taken; what cannot be written waits while its disk is full, or is counted as dropped."""
        if time.monotonic() < self._again_at:
            self._drop_excess()
            return
        refusals, self._buffer, self._buffered_bytes = self._buffer, [], 0
        if not refusals:
            return
        try:
            if self._path is not None:
                self._append(self._path, refusals)
            elif self._topic is not None:
                self._send(self._topic, refusals)
            else:
                self._counts["dropped"] += len(refusals)
        except (OSError, TidemarkError) as error:
            if self._path is not None and isinstance(error, OSError) and error.errno in _PASSING:
                self._buffer, self._again_at = refusals, time.monotonic() + _AGAIN_SECONDS
                self._buffered_bytes = sum(len(refusal.value or b"") for refusal in refusals)
                self._tell(f"{error}; make room or mend the rights: up to {_BUFFER_BYTES >> 20} MiB wait", "Dead letters wait.")
                self._drop_excess()
            else:
                self._counts["dropped"] += len(refusals)
                self._tell(str(error))

    def _drop_excess(self) -> None:
        """The oldest of those that wait give way, counted, where they are too many."""
        gone = 0
        while self._buffered_bytes > _BUFFER_BYTES and gone < len(self._buffer):
            self._buffered_bytes -= len(self._buffer[gone].value or b"")
            gone += 1
        if gone:
            del self._buffer[:gone]
            self._counts["dropped"] += gone
            self._tell(f"their file cannot be written and more than {_BUFFER_BYTES >> 20} MiB wait")

    def counts(self) -> Mapping[str, int]:
        """Refused events so far, by outcome: `written` or `dropped`."""
        return dict(self._counts)

    def discard(self) -> None:
        """Keep nothing from now on, as with `none`."""
        self._path = self._topic = None

    def close(self) -> None:
        """Flush, and close the connection if there is one."""
        self._again_at = 0.0
        self.flush()
        if self._buffer:
            self._counts["dropped"] += len(self._buffer)
            log.error("Dead letters dropped.", extra={"error": "their file could not be written before the end",
                                                      "dropped": self._counts["dropped"]})
            self._buffer, self._buffered_bytes = [], 0
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _append(self, path: Path, refusals: list[Refusal]) -> None:
        """Write these; what is written is taken out of the list, so that after an error the rest is in it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._is_whole:
            _cut_torn_line(path)
            self._is_whole = True
        while refusals:
            size = path.stat().st_size if path.exists() else 0
            lines: list[bytes] = []
            room = self._file_bytes - size
            for refusal in refusals:
                line = _line(refusal, self._file_bytes)
                if (size or lines) and len(line) > room:
                    break
                lines.append(line)
                room -= len(line)
            if not lines:
                self._rotate(path)
                continue
            with open(path, "ab", buffering=0, opener=_private) as file:
                try:
                    content = memoryview(b"".join(lines))
                    while content:                  # a disk takes what it has room for, and says so only at the next call
                        content = content[file.write(content):]
                    os.fsync(file.fileno())         # the checkpoint that follows is durable, so this must be, too
                except OSError:
                    os.ftruncate(file.fileno(), size)
                    raise
            self._counts["written"] += len(lines)
            del refusals[:len(lines)]

    def _rotate(self, path: Path) -> None:
        old = path.with_name(path.name + ".1")
        if old.exists():
            with open(old, "rb") as file:
                dropped = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
            self._counts["dropped"] += dropped
            self._tell(f"limits.dead_letter_bytes reached: {dropped} old dead letters gave way")
        os.replace(path, old)

    def _send(self, topic: str, refusals: list[Refusal]) -> None:
        if self._writer is None:
            if time.monotonic() - self._tried_at < _REPEAT_SECONDS:
                self._counts["dropped"] += len(refusals)
                return
            self._tried_at = time.monotonic()
            self._writer = KafkaWriter(self._kafka, topic, api_version=self._api_version)
        failed = self._sent(refusals, with_value=True)
        # A record may be too large for this topic: its place and reason are worth keeping all the same.
        large = [refusal for refusal, why in failed if "TooLarge" in why]
        left = [(refusal, why) for refusal, why in failed if "TooLarge" not in why]
        left += self._sent(large, with_value=False) if large else []
        self._counts["written"] += len(refusals) - len(left)
        self._counts["dropped"] += len(left)
        if left:
            self._tell(left[0][1])

    def _sent(self, refusals: list[Refusal], *, with_value: bool) -> list[tuple[Refusal, str]]:
        """Send and wait; the ones that were not stored, with the reason."""
        assert self._writer is not None
        for refusal in refusals:
            self._writer.send(refusal.value if with_value else b"", _headers(refusal, with_value))
        outcomes = self._writer.flush()
        return [(refusal, why) for refusal, why in zip(refusals, outcomes, strict=True) if why]

    def _tell(self, error: str, words: str = "Dead letters dropped.") -> None:
        if time.monotonic() - self._told_at > _REPEAT_SECONDS:
            self._told_at = time.monotonic()
            log.error(words, extra={"error": error, "dropped": self._counts["dropped"]})


def _cut_torn_line(path: Path) -> None:
    """Remove what a killed process left behind the last whole line."""
    try:
        with open(path, "r+b") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end:
                begin = max(0, end - (64 << 10))
                file.seek(begin)
                if (at := file.read(end - begin).rfind(b"\n")) >= 0:
                    end = begin + at + 1
                    break
                end = begin
            if end < size:
                file.truncate(end)
    except FileNotFoundError:
        return


def _private(path: str, flags: int) -> int:
    """Open a file that, where it is made anew, only its owner may read: refused events are events."""
    return os.open(path, flags, 0o600)


def _line(refusal: Refusal, bytes_max: int) -> bytes:
    document: dict[str, object] = {
        "topic": refusal.topic, "partition": refusal.partition, "offset": refusal.offset,
        "reason": refusal.reason, "detail": refusal.detail,
    }
    document |= _within(refusal)
    value = refusal.value
    if value is not None and len(value) * 4 // 3 + _RECORD_BYTES > bytes_max:
        document["truncated"] = len(value)
        value = value[:max(0, (bytes_max - _RECORD_BYTES) * 3 // 4)]
    document["value"] = None if value is None else base64.b64encode(value).decode("ascii")
    return msgspec.json.encode(document) + b"\n"


def _within(refusal: Refusal) -> dict[str, int]:
    """What is told of a record of many events besides."""
    return ({} if refusal.row is None else {"row": refusal.row}) | ({} if refusal.events == 1 else {"events": refusal.events})


def _headers(refusal: Refusal, with_value: bool) -> list[tuple[str, bytes]]:
    headers = [("reason", refusal.reason), ("topic", refusal.topic), ("partition", str(refusal.partition)),
               ("offset", str(refusal.offset)), ("detail", refusal.detail)]
    headers += [(name, str(number)) for name, number in _within(refusal).items()]
    if not with_value:
        headers.append(("truncated", str(len(refusal.value or b""))))
    return [(name, text.encode("utf-8", "replace")) for name, text in headers]
