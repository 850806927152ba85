"""The compiled scanner: JSON events in one joined buffer, straight into columns, without a Python object per value.

Idea: walk each document once, byte by byte, and write what the schema asks for where it belongs: numbers into a matrix,
categories as the code of their bytes, vectors into a matrix of their own. Keys may come in any order; the one that
followed the last time is tried first, so that a stream of one layout costs one comparison per key. What is not plain is
not decided here: the event is marked and goes to msgspec whole, which gives its value or its refusal.

Left to msgspec: numbers of more than 19 digits, at the ends of the double range and `-0`, keys that stand twice or hold
escapes, `\\u` in a value that is skipped, values of another kind than the schema's, NaN, nesting deeper than 60, and
everything malformed. So this may only ever *accept*, and what it accepts must equal msgspec's value, bit for bit.

Invariant: no byte outside the buffer is read. Every event is followed by a NUL, no step passes a byte that it has not
compared with something else than NUL, and no key holds one; so each walk ends at its event's NUL at the latest, which the
last line checks. `tests/unit/ingest/test_columns_memory.py` holds it with the events at the end of a mapped page.

Cost: 1.2-1.5 ns per byte on one core, without the GIL. Compiled for these signatures once, 5-10 s; `columns_json` keeps
the result. This module is imported late, and numba here and there alone. Neighbours: `columns_json` feeds it,
`columns_numbers` is its arithmetic.
"""

from __future__ import annotations

# mypy: disable-error-code="no-untyped-call,assignment,call-arg,attr-defined"
import math
from typing import Any

import numba as nb
import numpy as np
from numba import types
from numba.extending import intrinsic

from monitor.ingest.columns_numbers import FIVES_HIGH, FIVES_LOW, TENS, number

__all__ = ["FIVES_HIGH", "FIVES_LOW", "TENS", "compiled"]

#: What a key's value is: a number, a token that is looked up, one that is only found, a list of numbers, an object.
NUMBER, TOKEN, LOOSE, VECTOR, OBJECT = 0, 1, 2, 3, 4
#: Skipped values may be nested so deep; objects of the schema, too.
DEPTH_MAX = 60
#: Places that are looked at in a full neighbourhood of a hash table; tokens and keys beyond are unknown.
PROBES = 16

_U = np.uint64


@intrinsic
def _at(context: Any, array: Any) -> Any:
    """The address of an array's first element: indexing it counts no references and takes no index for a negative one."""
    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return target.make_array(signature.args[0])(target, builder, values[0]).data

    return types.CPointer(array.dtype)(array), generate


@nb.njit(nogil=True)
def _blank(buf: Any, p: Any) -> Any:
    """The place behind white space."""
    while buf[p] == 32 or buf[p] == 10 or buf[p] == 13 or buf[p] == 9:
        p += 1
    return p


@nb.njit(nogil=True)
def _literal(buf: Any, p: Any) -> Any:
    """The place behind true, false or null; -1 without."""
    c = buf[p]
    if c == 116 and buf[p + 1] == 114 and buf[p + 2] == 117 and buf[p + 3] == 101:
        return np.int64(p + 4)
    if c == 102 and buf[p + 1] == 97 and buf[p + 2] == 108 and buf[p + 3] == 115 and buf[p + 4] == 101:
        return np.int64(p + 5)
    if c == 110 and buf[p + 1] == 117 and buf[p + 2] == 108 and buf[p + 3] == 108:
        return np.int64(p + 4)
    return np.int64(-1)


@nb.njit(nogil=True)
def _string(buf: Any, p: Any) -> Any:
    """The place behind a string that begins at its opening quote; -1 for what msgspec must look at."""
    p += 1
    while True:
        c = buf[p]
        if c == 34:
            return np.int64(p + 1)
        if c < 32:
            return np.int64(-1)
        if c == 92:
            p += 1
            c = buf[p]
            if not (c == 34 or c == 92 or c == 47 or c == 98 or c == 102 or c == 110 or c == 114 or c == 116):
                return np.int64(-1)
        p += 1


@nb.njit(nogil=True)
def _digits(buf: Any, p: Any) -> Any:
    """The place behind a well-formed number, of any size; -1 without."""
    if buf[p] == 45:
        p += 1
    if buf[p] == 48:
        p += 1
    elif 49 <= buf[p] <= 57:
        while 48 <= buf[p] <= 57:
            p += 1
    else:
        return np.int64(-1)
    if 48 <= buf[p] <= 57:
        return np.int64(-1)
    if buf[p] == 46:
        p += 1
        if not 48 <= buf[p] <= 57:
            return np.int64(-1)
        while 48 <= buf[p] <= 57:
            p += 1
    if buf[p] == 101 or buf[p] == 69:
        p += 1
        if buf[p] == 45 or buf[p] == 43:
            p += 1
        if not 48 <= buf[p] <= 57:
            return np.int64(-1)
        while 48 <= buf[p] <= 57:
            p += 1
    return np.int64(p)


@nb.njit(nogil=True)
def _skipped(buf: Any, p: Any) -> Any:
    """The place behind any value; -1 for what msgspec must look at. The kinds of open brackets are bits of a word."""
    depth, objects = 0, _U(0)
    while True:
        # a value begins at p
        c = buf[p]
        is_closed = True
        if c == 34:
            p = _string(buf, p)
        elif c == 123 or c == 91:
            if depth >= DEPTH_MAX:
                return np.int64(-1)
            depth += 1
            objects = (objects << _U(1)) | _U(c == 123)
            p = _blank(buf, p + 1)
            if buf[p] == (125 if c == 123 else 93):
                depth -= 1
                objects >>= _U(1)
                p += 1
            else:
                is_closed = False
        elif c == 45 or 48 <= c <= 57:
            p = _digits(buf, p)
        else:
            p = _literal(buf, p)
        if p < 0:
            return np.int64(-1)
        while is_closed:
            if depth == 0:
                return np.int64(p)
            p = _blank(buf, p)
            is_object = objects & _U(1) == _U(1)
            c = buf[p]
            if c == 44:
                p = _blank(buf, p + 1)
                is_closed = False
            elif c == (125 if is_object else 93):
                depth -= 1
                objects >>= _U(1)
                p += 1
            else:
                return np.int64(-1)
        if objects & _U(1) == _U(1):                            # a member: its key first
            if buf[p] != 34:
                return np.int64(-1)
            p = _string(buf, p)
            if p < 0:
                return np.int64(-1)
            p = _blank(buf, p)
            if buf[p] != 58:
                return np.int64(-1)
            p = _blank(buf, p + 1)


@nb.njit(nogil=True)
def _hash(buf: Any, start: Any, end: Any, seed: Any) -> Any:
    """FNV-1a of some bytes, its upper half mixed into the lower."""
    h = _U(0xCBF29CE484222325) ^ seed
    for p in range(start, end):
        h = (h ^ _U(buf[p])) * _U(0x100000001B3)
    return h ^ (h >> _U(32))


@nb.njit(nogil=True)
def _found(buf: Any, start: Any, end: Any, seed: Any, owner: Any, table: Any, mask: Any, entries: Any, content: Any) -> Any:
    """The entry that holds these bytes and has this owner; -1 without. Entries: owner, start, end, value, in a row."""
    place = _hash(buf, start, end, seed + _U(owner)) & mask
    for _ in range(PROBES):
        entry = np.int64(table[np.int64(place)])
        if entry < 0:
            return np.int64(-1)
        row = 4 * entry
        if entries[row] == owner and entries[row + 2] - entries[row + 1] == end - start:
            offset, i = entries[row + 1], np.int64(0)
            while i < end - start and content[offset + i] == buf[start + i]:
                i += 1
            if i == end - start:
                return entry
        place = (place + _U(1)) & mask
    return np.int64(-1)


_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_OWN_BYTES = types.Array(types.uint8, 1, "C")
_PLACES = types.Array(types.int64, 1, "C")
_ENTRIES = types.Array(types.int64, 2, "C")
_TABLE = types.Array(types.int32, 1, "C")
_NUMBERS = types.Array(types.float64, 2, "C")
_LIMITS = types.Array(types.float64, 1, "C")
_WORDS = types.Array(types.uint64, 1, "C")

_SCAN = types.void(
    _BYTES, _PLACES, types.uint64,                              # events
    _TABLE, _ENTRIES, _OWN_BYTES, _ENTRIES, _LIMITS, _PLACES,   # keys
    _TABLE, _ENTRIES, _OWN_BYTES,                               # tokens
    _WORDS, _WORDS, _LIMITS,                                    # powers
    _NUMBERS, types.Array(types.int32, 2, "C"), types.Array(types.int64, 3, "C"), _NUMBERS, _OWN_BYTES, _PLACES)


def _scan(buf: Any, starts: Any, seed: Any,
          key_table: Any, key_entries: Any, key_bytes: Any, keys: Any, limits: Any, hints: Any,
          token_table: Any, token_entries: Any, token_bytes: Any,
          fives_high: Any, fives_low: Any, tens: Any,
          numbers: Any, codes: Any, spans: Any, vectors: Any, plain: Any, stamps: Any) -> None:
    """Read every event; see `columns_json.Scanner.scan` for what the arrays hold.

    keys   : (keys, 4): kind, place in the output, entries of a vector or the node of an object, 0
    limits : (keys,): a number must lie in [0, limit) where limit > 0
    hints  : (nodes + keys,): the key that came first in a node, or behind a key
    plain  : (n,): 1 where the event was read; stamps : (keys,), scratch
    """
    n, nodes = len(starts) - 1, len(hints) - len(keys)
    key_mask, token_mask = _U(len(key_table) - 1), _U(len(token_table) - 1)
    width = vectors.shape[1]
    stack = np.zeros(DEPTH_MAX, np.int64)
    for i in range(n):
        plain[i] = _event(_at(buf), starts[i], starts[i + 1] - 1, i, n, nodes, width, seed, _at(key_table), key_mask,
                          _at(key_entries), _at(key_bytes), _at(keys), _at(limits), _at(hints), _at(token_table), token_mask,
                          _at(token_entries), _at(token_bytes), _at(fives_high), _at(fives_low), _at(tens), _at(numbers),
                          _at(codes), _at(spans), _at(vectors), _at(stamps), _at(stack))


@nb.njit(nogil=True, forceinline=True)
def _key(buf: Any, p: Any, follows: Any, node: Any, seed: Any, hints: Any,
         key_table: Any, key_mask: Any, key_entries: Any, key_bytes: Any) -> Any:
    """(the key that stands behind an opening quote, -1 for one that nobody asks for; the place behind its closing quote).

    The key that came here the last time is tried first, then any of this object's. A place of -1 leaves it to msgspec.
    """
    key = hints[follows]
    if key >= 0:
        offset, j = key_entries[4 * key + 1], np.int64(0)
        length = key_entries[4 * key + 2] - offset
        while j < length and key_bytes[offset + j] == buf[p + j]:
            j += 1
        if j == length and buf[p + j] == 34:
            return key, np.int64(p + length + 1)
    start = p
    while buf[p] != 34:
        if buf[p] < 32 or buf[p] == 92:
            return np.int64(-1), np.int64(-1)
        p += 1
    key = _found(buf, start, p, seed, node, key_table, key_mask, key_entries, key_bytes)
    if key >= 0:
        hints[follows] = key
    return key, np.int64(p + 1)


@nb.njit(nogil=True, forceinline=True)
def _token(buf: Any, p: Any) -> Any:
    """The place behind a token: a string with its quotes, escapes unread, or a run of letters and digits; -1 without."""
    start = p
    if buf[p] == 34:
        p += 1
        while buf[p] != 34:
            if buf[p] < 32:
                return np.int64(-1)
            if buf[p] == 92:
                p += 1
                if buf[p] < 32:
                    return np.int64(-1)
            p += 1
        return np.int64(p + 1)
    while 48 <= buf[p] <= 57 or 97 <= buf[p] <= 122 or buf[p] == 45 or buf[p] == 43 or buf[p] == 46 or buf[p] == 69:
        p += 1
    return np.int64(p) if p > start else np.int64(-1)


@nb.njit(nogil=True, forceinline=True)
def _coded(buf: Any, p: Any, kind: Any, place: Any, at: Any, seed: Any, token_table: Any, token_mask: Any, token_entries: Any,
           token_bytes: Any, codes: Any, spans: Any) -> Any:
    """The place behind a token, whose code is written at `at`, or, where it is not known, where it stands; -1 without."""
    end = _token(buf, p)
    if end < 0:
        return end
    entry = np.int64(-1)
    if kind == TOKEN:
        entry = _found(buf, p, end, seed, place, token_table, token_mask, token_entries, token_bytes)
    if entry >= 0:
        codes[at] = np.int32(token_entries[4 * entry + 3])
    else:
        codes[at], spans[2 * at], spans[2 * at + 1] = np.int32(-1), p, end
    return end


@nb.njit(nogil=True, forceinline=True)
def _vector(buf: Any, p: Any, vectors: Any, first: Any, entries: Any, fives_high: Any, fives_low: Any, tens: Any) -> Any:
    """The place behind a list of so many numbers, written from `first` on; all missing where one is null. -1 without."""
    if buf[p] != 91:
        return np.int64(-1)
    p += 1
    is_missing = False
    for j in range(entries):
        p = _blank(buf, p)
        if j > 0:
            if buf[p] != 44:
                return np.int64(-1)
            p = _blank(buf, p + 1)
        if buf[p] == 110:
            p = _literal(buf, p)
            is_missing = True
        else:
            value, p = number(buf, p, fives_high, fives_low, tens)
            if p >= 0:
                vectors[first + j] = value
        if p < 0:
            return np.int64(-1)
    p = _blank(buf, p)
    if buf[p] != 93:
        return np.int64(-1)
    if is_missing:
        for j in range(entries):
            vectors[first + j] = math.nan
    return np.int64(p + 1)


@nb.njit(nogil=True)
def _event(buf: Any, p: Any, end: Any, i: Any, n: Any, nodes: Any, width: Any, seed: Any,
           key_table: Any, key_mask: Any, key_entries: Any, key_bytes: Any, keys: Any, limits: Any, hints: Any,
           token_table: Any, token_mask: Any, token_entries: Any, token_bytes: Any,
           fives_high: Any, fives_low: Any, tens: Any,
           numbers: Any, codes: Any, spans: Any, vectors: Any, stamps: Any, stack: Any) -> Any:
    """Read one event; 0 leaves it to msgspec."""
    depth, node, follows = np.int64(0), np.int64(0), np.int64(0)
    p = _blank(buf, p)
    if buf[p] != 123:
        return 0
    p += 1
    is_first = True
    while True:
        p = _blank(buf, p)
        c = buf[p]
        if c == 125:
            p += 1
            if depth == 0:
                break
            depth -= 1
            follows = stack[depth]
            node = key_entries[4 * (follows - nodes)]
            is_first = False
            continue
        if not is_first:
            if c != 44:
                return 0
            p = _blank(buf, p + 1)
            c = buf[p]
        if c != 34:
            return 0
        is_first = False
        key, p = _key(buf, p + 1, follows, node, seed, hints, key_table, key_mask, key_entries, key_bytes)
        if p < 0:
            return 0
        p = _blank(buf, p)
        if buf[p] != 58:
            return 0
        p = _blank(buf, p + 1)
        if key < 0:
            p = _skipped(buf, p)
            if p < 0:
                return 0
            continue
        if stamps[key] == i:                                    # it stands twice
            return 0
        stamps[key] = i
        follows = nodes + key
        kind, place = keys[4 * key], keys[4 * key + 1]
        if kind == TOKEN or kind == LOOSE:  # noqa: SIM109 (the compiler knows this form)
            p = _coded(buf, p, kind, place, place * n + i, seed, token_table, token_mask, token_entries, token_bytes, codes,
                       spans)
        elif buf[p] == 110:
            p = _literal(buf, p)                                # null: missing, as it was filled
        elif kind == NUMBER:
            value, p = number(buf, p, fives_high, fives_low, tens)
            if limits[key] > 0.0 and not 0.0 <= value < limits[key]:
                return 0
            if p >= 0:
                numbers[place * n + i] = value
        elif kind == OBJECT:
            if buf[p] != 123 or depth >= DEPTH_MAX:
                return 0
            p += 1
            stack[depth] = follows
            depth += 1
            follows = node = keys[4 * key + 2]
            is_first = True
        else:
            p = _vector(buf, p, vectors, i * width + place, keys[4 * key + 2], fives_high, fives_low, tens)
        if p < 0:
            return 0
    p = _blank(buf, p)
    return 1 if p == end else 0


def compiled(folder: str | None) -> Any:
    """`_scan` as machine code, kept in `folder` where one is given."""
    if folder is not None:
        nb.config.CACHE_DIR = folder
    return nb.njit(_SCAN, nogil=True, cache=folder is not None)(_scan)
