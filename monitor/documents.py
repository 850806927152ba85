"""Documents that carry their own names, JSON or MessagePack, as what they are: `read_json`, `read_msgpack`.

Why not msgspec's own `decode(type=...)`: it looks a type up when it first meets it, and where two threads do so at once (the
owners of two partitions that restore their models, say) one of them finds the type half known, and the process dies of it
(seen with msgspec 0.22: one start of twenty, provoked). So types are looked up here, one after the other, and kept.

Neighbours: whoever reads what another process, a server or an earlier run of ours wrote. What is read all the time has a decoder
of its own, made when its module is imported.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

_Kind = TypeVar("_Kind")

_looking_up = threading.Lock()
_decoders: dict[tuple[Any, bool], Any] = {}


def _decoder(kind: Any, is_json: bool) -> Any:
    with _looking_up:
        if (kind, is_json) not in _decoders:
            _decoders[kind, is_json] = msgspec.json.Decoder(kind) if is_json else msgspec.msgpack.Decoder(kind)
        return _decoders[kind, is_json]


def read_json(document: str | bytes, kind: type[_Kind]) -> _Kind:
    """The document; raises msgspec.DecodeError, UnicodeError or RecursionError where it is none of this kind."""
    found: _Kind = _decoder(kind, True).decode(document)
    return found


def read_msgpack(document: bytes, kind: type[_Kind]) -> _Kind:
    """The same of MessagePack."""
    found: _Kind = _decoder(kind, False).decode(document)
    return found
