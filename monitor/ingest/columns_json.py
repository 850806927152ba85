"""JSON events to columns without a Python object per value: what the compiled scanner needs, and what it gives.

The schema becomes tables: keys by object, where each value goes, and a dictionary of tokens. A category is looked up by
its bytes as they stand in the document, quotes included; bytes that were not seen before are given to msgspec once, under
the field's own type, and what it says is the level from then on. So text, numbers, escapes and `true` in a category
column follow exactly the rules of `decode`, and are still one look-up each.

Invariant: an event that is `plain` has, in every column, the value that `decode` would give it; all others are for
`decode`. Nothing is ever refused here.

Cost: 1.5-2 us per event of 20 features, 5-6 us of 100 (a third and a quarter of msgspec's). Starting: 10 s of compiling,
once per machine and version: the code is kept in the user's cache folder, if nobody else may write there, and then
loading takes 1 s. Memory: numba 120 MB; at most `TOKENS_MAX` tokens of `TOKEN_BYTES` per schema, `LEVELS_MAX` levels per column.
Neighbours: `columns_scan` is the compiled part, `decode` joins its events with msgspec's.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.coded import Coded
from monitor.config import Kafka
from monitor.errors import ConfigError
from monitor.ingest.schema import Path
from monitor.ingest.values import TIME_LIMIT_MS, TIME_LIMIT_SECONDS

log = logging.getLogger("tidemark")

#: Tokens that are looked up in machine code, all columns of a schema together, and the length of one.
TOKENS_MAX, TOKEN_BYTES = 8_192, 128
#: Levels of one column that are remembered from batch to batch.
LEVELS_MAX = 65_536
_NUMBERS = {"numeric": 0.0, "seconds": float(TIME_LIMIT_SECONDS), "milliseconds": float(TIME_LIMIT_MS)}
#: Events from which the first tokens are learnt.
_WARM_EVENTS = 250
_PROBE = b'{"a": 1.25}'

Scan = Callable[..., None]
#: From what msgspec made of a token to the level.
Level = Callable[[Any], Any]


def scan_of(kafka: Kafka) -> Scan | None:
    """The compiled scanner where the configuration asks for it; None leaves everything to msgspec.

    `auto` asks for it beside the fast transport, and says in one line where it cannot be had; `columns` insists.
    """
    if kafka.decoder == "msgspec" or (kafka.decoder == "auto" and kafka.transport != "librdkafka"):
        return None
    try:
        scan, seconds, words = _compiled()
    except Exception as error:
        why = (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:200]
        if kafka.decoder == "columns":
            raise ConfigError("kafka.decoder: expected the package numba for the columnar decoder, got none that works "
                              f"({why}); install it with: pip install 'tidemark[fast]', or take `auto`") from None
        log.info("Events are decoded by msgspec; the columnar decoder cannot be had.", extra={"reason": why})
        return None
    log.info("Columnar decoder ready.", extra={"seconds": round(seconds, 1), "code": words})
    return scan


@cache
def _compiled() -> tuple[Scan, float, str]:
    """The scanner, how long it took to get it, and whence it came."""
    start, folder = time.monotonic(), _folder()
    from monitor.ingest import columns_scan

    try:
        scan = columns_scan.compiled(folder)
    except (RuntimeError, OSError):                 # a folder that cannot be written to
        folder, scan = None, columns_scan.compiled(None)
    schema = ColumnParser({("a",): "numeric"}, {}, scan)
    values, plain = schema.parse([_PROBE])
    if not plain.all() or float(values["a",][0]) != 1.25:
        raise RuntimeError("the compiled scanner does not read a probe")
    return scan, time.monotonic() - start, "compiled for this process" if folder is None else f"kept in {folder}"


def _folder() -> str | None:
    """Where machine code is kept: a folder that only we can write to, since what lies there is run. None without one."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    here, digest = FilePath(__file__).parent, hashlib.sha256()
    for name in ("columns_numbers.py", "columns_scan.py"):      # numba itself looks at one of them, and at its time only
        digest.update((here / name).read_bytes())
    folder = FilePath(base, "tidemark", "numba", digest.hexdigest()[:16])
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except OSError:
        return None
    is_ours = about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return str(folder) if is_ours and os.access(folder, os.W_OK) else None


class ColumnParser:
    """One schema's tables for the scanner.

    kinds : what stands at every path     dims : lengths of the vectors among them
    types : msgspec's type and our reading of its value, by kind, for values that are not numbers
    """

    def __init__(self, kinds: Mapping[Path, str], dims: Mapping[Path, int], scan: Scan,
                 types: Mapping[str, tuple[Any, Level]] | None = None, loose: frozenset[Path] = frozenset()) -> None:
        from monitor.ingest import columns_scan as code

        self._scan, self._seed = scan, np.uint64(secrets.randbits(63))
        self._powers = code.FIVES_HIGH, code.FIVES_LOW, code.TENS
        self.numbers = [path for path, kind in kinds.items() if kind in _NUMBERS]
        self.texts = [path for path, kind in kinds.items() if kind not in _NUMBERS and path not in dims]
        self.vectors: dict[Path, slice] = {}
        for path, dim in dims.items():
            start = self._width
            self.vectors[path] = slice(start, start + dim)
        self.tokens = {path: _Tokens(*(types or {})[kinds[path]], path in loose) for path in self.texts}
        self._learnt = _Learnt(self._seed, code.PROBES)
        self._is_warm = False
        nodes: dict[Path, int] = {(): 0}
        for path in kinds:
            for length in range(1, len(path)):
                nodes.setdefault(path[:length], len(nodes))
        if max(map(len, kinds), default=0) >= code.DEPTH_MAX:
            raise ConfigError(f"schema: expected paths of fewer than {code.DEPTH_MAX} keys for kafka.decoder: columns")
        rows: list[tuple[int, bytes, int, int, int, float]] = []            # node, key, kind, place, extra, limit
        for path, kind in kinds.items():
            node, key = nodes[path[:-1]], path[-1].encode("utf-8", "surrogatepass")
            if path in dims:
                rows.append((node, key, code.VECTOR, self.vectors[path].start, dims[path], 0.0))
            elif kind in _NUMBERS:
                rows.append((node, key, code.NUMBER, self.numbers.index(path), 0, _NUMBERS[kind]))
            else:
                place = self.texts.index(path)
                rows.append((node, key, code.LOOSE if path in loose else code.TOKEN, place, 0, 0.0))
        rows += [(nodes[path[:-1]], path[-1].encode("utf-8", "surrogatepass"), code.OBJECT, 0, node, 0.0)
                 for path, node in nodes.items() if path]
        self._keys = np.array([(kind, place, extra, 0) for _, _, kind, place, extra, _ in rows], np.int64).reshape(-1, 4)
        self._limits = np.array([limit for *_, limit in rows], np.float64)
        self._hints = np.full(len(nodes) + len(rows), -1, np.int64)
        self._key_table, self._key_entries, self._key_bytes = _table(
            [(node, key, 0) for node, key, *_ in rows], self._seed, code.PROBES)
        for path, tokens in self.tokens.items():
            tokens.place = self.texts.index(path)

    @property
    def _width(self) -> int:
        return max((part.stop for part in self.vectors.values()), default=0)

    def parse(self, values: Sequence[bytes | None], largest: int = 2**62) -> tuple[dict[Path, Any], NDArray[np.bool_]]:
        """The values of every path, and which events were read; what stands at the others is arbitrary.

        Events of more than `largest` bytes are not read.

        Numbers are float64 (n,), vectors float64 (n, dim), texts a `Coded`, or a list where they are loose.
        """
        n = len(values)
        if not self._is_warm and n > 2 * _WARM_EVENTS:      # else every token of the first batch would be a new one
            self.parse(values[:_WARM_EVENTS], largest)
        self._is_warm = True
        try:
            sizes = np.fromiter(map(len, values), np.int64, n)  # type: ignore[arg-type]
        except TypeError:
            values = [value or b"" for value in values]
            sizes = np.fromiter(map(len, values), np.int64, n)  # type: ignore[arg-type]
        if sizes.max(initial=0) > largest:          # not even copied: who sends them would decide what we hold
            values = [b"" if len(value) > largest else value for value in values]  # type: ignore[arg-type]
            sizes[sizes > largest] = 0
        joined = b"\0".join([*values, b""])  # type: ignore[list-item]
        starts = np.zeros(n + 1, np.int64)
        np.cumsum(sizes + 1, out=starts[1:])
        numbers = np.full((len(self.numbers), n), np.nan)
        codes = np.zeros((len(self.texts), n), np.int32)
        spans = np.empty((len(self.texts), n, 2), np.int64)
        vectors = np.full((n if self.vectors else 0, self._width), np.nan)
        plain = np.zeros(n, np.uint8)
        self._scan(np.frombuffer(joined, np.uint8), starts, self._seed, self._key_table, self._key_entries, self._key_bytes,
                   self._keys, self._limits, self._hints, *self._learnt.tables, *self._powers,
                   numbers, codes, spans, vectors, plain, np.full(len(self._keys), -1, np.int64))
        good = plain.astype(bool)
        found: dict[Path, Any] = dict(zip(self.numbers, numbers, strict=True))
        for path, part in self.vectors.items():
            found[path] = np.ascontiguousarray(vectors[:, part])
        for path, tokens in self.tokens.items():
            own, at = codes[tokens.place], spans[tokens.place]
            new = np.flatnonzero((own < 0) & good)
            if tokens.loose:
                found[path] = tokens.values(joined, n, new, at, good)
            else:
                found[path] = tokens.coded(joined, own, new, at, good, self._learnt)
        return found, good

    def place(self, path: Path, column: Any, index: NDArray[np.intp], values: Any) -> Any:
        """A column with the values of other events put in at their places, in the rising order of `index`."""
        if isinstance(column, Coded):
            return self.tokens[path].place_texts(column, index, values)
        if isinstance(column, np.ndarray):
            column[index] = values
        else:
            for i, value in zip(index.tolist(), values, strict=True):           # turns: events that were not plain
                column[i] = value
        return column


class _Tokens:
    """One column of texts: its levels, and msgspec's word on every token that it has met."""

    def __init__(self, kind: Any, level: Level, loose: bool) -> None:
        self._read, self._level, self.loose = msgspec.json.Decoder(kind).decode, level, loose
        self.place = 0
        self.levels: list[str | None] = [None]
        self._codes: dict[str | None, int] = {None: 0}
        self._known: dict[bytes, int] = {}

    def values(self, joined: bytes, n: int, new: NDArray[np.intp], at: NDArray[np.int64], good: NDArray[np.bool_]) -> list[Any]:
        """One value per event, each read on its own; events whose token is none are no longer `good`."""
        found: list[Any] = [None] * n
        read, level = self._read, self._level
        for i, (start, end) in zip(new.tolist(), at[new].tolist(), strict=True):        # turns: events
            try:
                found[i] = level(read(joined[start:end]))
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                good[i] = False
        return found

    def coded(self, joined: bytes, codes: NDArray[np.int32], new: NDArray[np.intp], at: NDArray[np.int64],
              good: NDArray[np.bool_], learnt: _Learnt) -> Coded:
        """The column by code; events whose token is none are no longer `good`."""
        levels = self.levels
        added: dict[bytes, int] = {}
        codes[codes < 0] = 0
        for i, (start, end) in zip(new.tolist(), at[new].tolist(), strict=True):        # turns: events with unknown tokens
            token = joined[start:end]
            code = self._known.get(token)
            if code is None:
                code = added.get(token)
            if code is None:
                try:
                    text = self._level(self._read(token))
                except (msgspec.DecodeError, UnicodeError, RecursionError):
                    good[i] = False
                    continue
                code = self._code(text, grow=levels is self.levels)
                if code < 0:                        # no room: a level of this batch alone
                    if levels is self.levels:
                        levels = list(self.levels)
                    code = added[token] = len(levels)
                    levels.append(text)
                else:
                    self._keep(token, code, learnt)
            codes[i] = code
        return Coded(codes, levels)

    def place_texts(self, column: Coded, index: NDArray[np.intp], texts: Sequence[str | None]) -> Coded:
        """The column with other texts at some places: those of events that msgspec has read."""
        levels, codes = column.levels, []
        for text in texts:                                      # turns: events that were not plain
            code = self._code(text, grow=levels is self.levels)
            if code < 0:
                if levels is self.levels or not isinstance(levels, list):
                    levels = list(levels)
                code = len(levels)
                levels.append(text)
            codes.append(code)
        column.codes[index] = codes
        return Coded(column.codes, levels)

    def _code(self, text: str | None, *, grow: bool) -> int:
        """The level's code, a new one where there is room; -1 without. A batch with levels of its own lets none grow."""
        code = self._codes.get(text)
        if code is None:
            if not grow or len(self.levels) >= LEVELS_MAX or (text is not None and len(text) > TOKEN_BYTES):
                return -1
            code = self._codes[text] = len(self.levels)
            self.levels.append(text)
        return code

    def _keep(self, token: bytes, code: int, learnt: _Learnt) -> None:
        if len(token) <= TOKEN_BYTES and len(self._known) < LEVELS_MAX:
            self._known[token] = code
            learnt.add(self.place, token, code)


class _Learnt:
    """The dictionary of tokens as the scanner reads it: an open hash table at most half full.

    tables : places of entries int32 (2 * TOKENS_MAX,); entries int64 (m, 4): column, start, end, code; their bytes
    """

    def __init__(self, seed: np.uint64, probes: int) -> None:
        self._seed, self._probes, self._count, self._filled = int(seed), probes, 0, 0
        self.tables = (np.full(2 * TOKENS_MAX, -1, np.int32), np.zeros((64, 4), np.int64), np.zeros(1024, np.uint8))

    def add(self, owner: int, token: bytes, code: int) -> None:
        """Add a token; one that finds no free place nearby, or comes when all is full, stays unknown to the scanner."""
        table, entries, content = self.tables
        if self._count >= TOKENS_MAX:
            return
        place = _place(table, owner, token, self._seed, self._probes)
        if place < 0:
            return
        if self._count == len(entries):
            entries = np.concatenate([entries, np.zeros_like(entries)])
        start, end = self._filled, self._filled + len(token)
        if end > len(content):
            content = np.concatenate([content, np.zeros(max(len(content), len(token)), np.uint8)])
        content[start:end] = np.frombuffer(token, np.uint8)
        entries[self._count] = owner, start, end, code
        table[place] = self._count
        self._count, self._filled = self._count + 1, end
        self.tables = table, entries, content


def _table(rows: Sequence[tuple[int, bytes, int]], seed: np.uint64,
           probes: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.uint8]]:
    """A hash table of (owner, bytes, value) that finds each row: as large as that takes."""
    size = 16
    while size < 4 * len(rows):
        size *= 2
    while True:
        table, entries, content = np.full(size, -1, np.int32), np.zeros((max(1, len(rows)), 4), np.int64), b""
        for i, (owner, key, value) in enumerate(rows):
            place = _place(table, owner, key, int(seed), probes)
            if place < 0:
                break
            table[place] = i
            entries[i] = owner, len(content), len(content) + len(key), value
            content += key
        else:
            return table, entries, np.frombuffer(content + b"\0", np.uint8).copy()
        size *= 2


def _place(table: NDArray[np.int32], owner: int, key: bytes, seed: int, probes: int) -> int:
    """The first free place for some bytes; -1 where there is none nearby. The hash is the scanner's `_hash`."""
    word = 2**64 - 1
    h = 0xCBF29CE484222325 ^ ((seed + owner) & word)
    for byte in key:
        h = ((h ^ byte) * 0x100000001B3) & word
    h ^= h >> 32
    for step in range(probes):
        place = (h + step) & (len(table) - 1)
        if table[place] < 0:
            return place
    return -1
