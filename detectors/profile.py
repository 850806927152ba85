"""A profile: how many events fell into each bin of each row, and the laws by which profiles add.

Idea: everything that tidemark decides is a function of counts under the bins of one reference. Counts of two batches,
two partitions or two panes add up to the counts of both, in any order, and a window is a difference of running sums;
so a pane never has to remember its events.

Invariant: profiles of different references never meet. Each carries the digest of the reference whose bins it counts
in, and adding or subtracting across references is refused with both digests shown.

Cost: `rows x bins x 8` bytes in memory (20 columns of 80 fine bins: 13 kB), about a tenth of that as bytes, because
most bins of a short pane are empty. Adding two is one numpy addition.

Neighbours: `reference.Reference.profile` makes profiles from values, `ring.Ring` sums them into windows.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from detectors.reference import Reference

#: First bytes of a stored profile; the digit is the format's version.
_MAGIC = b"TMP1"
#: magic, reference digest (32 raw bytes), events, rows, bins; little-endian whatever the machine.
_MEND = "restore the store from a backup, or use the version that wrote it"
_HEAD = struct.Struct("<4s32sqII")


class ReferenceMismatch(ValueError):
    """Two things that do not belong to the same reference, or a reference file that cannot be trusted.

    The text is one line: where, what was expected, what was found and what to do.
    """


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """Counts of a set of events under one reference's fine bins.

    counts           : int64, shape (rows, bins), read-only; rows with fewer bins are padded with zeros on the right
    events           : how many events were counted; every row's counts add up to it
    reference_digest : sha256 of the reference that owns the bins, 64 hex digits
    """

    counts: NDArray[np.int64]
    events: int
    reference_digest: str

    def __post_init__(self) -> None:
        self.counts.flags.writeable = False

    @classmethod
    def empty(cls, reference: Reference) -> Profile:
        """The profile of no events: the zero of addition."""
        return cls(np.zeros(reference.shape, np.int64), 0, reference.digest)

    def __add__(self, other: Profile) -> Profile:
        self._require_same_reference(other, "add")
        return Profile(self.counts + other.counts, self.events + other.events, self.reference_digest)

    def __sub__(self, other: Profile) -> Profile:
        self._require_same_reference(other, "subtract")
        return Profile(self.counts - other.counts, self.events - other.events, self.reference_digest)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Profile):
            return NotImplemented
        return (self.reference_digest == other.reference_digest and self.events == other.events
                and np.array_equal(self.counts, other.counts))

    def __hash__(self) -> int:
        return hash((self.reference_digest, self.events, self.counts.tobytes()))

    def digest(self) -> str:
        """Sha256 of reference, events and counts, 64 hex digits: equal exactly for equal profiles."""
        return hashlib.sha256(self._head() + self._body()).hexdigest()

    def to_bytes(self) -> bytes:
        """The profile as bytes for a store: a head of 52 bytes, then the counts, compressed and checksummed."""
        return self._head() + zlib.compress(self._body(), 1)

    @classmethod
    def from_bytes(cls, stored: bytes) -> Profile:
        """The profile that `to_bytes` wrote; ValueError, one line, when the bytes are not one."""
        if len(stored) < _HEAD.size:
            raise ValueError(f"stored profile: expected {_HEAD.size} bytes or more, got {len(stored)}; {_MEND}")
        magic, digest, events, rows, bins = _HEAD.unpack_from(stored)
        if magic != _MAGIC:
            raise ValueError(f"stored profile: expected format {_MAGIC!r}, got {magic!r}; {_MEND}")
        try:
            body = zlib.decompress(stored[_HEAD.size:])
        except zlib.error as error:
            raise ValueError(f"stored profile: expected intact counts, got {error}; {_MEND}") from None
        if len(body) != rows * bins * 8:
            raise ValueError(f"stored profile: expected {rows} x {bins} counts, got {len(body)} bytes; {_MEND}")
        counts = np.frombuffer(body, "<i8").reshape(rows, bins).astype(np.int64)
        return cls(counts, events, digest.hex())

    def _head(self) -> bytes:
        return _HEAD.pack(_MAGIC, bytes.fromhex(self.reference_digest), self.events, *self.counts.shape)

    def _body(self) -> bytes:
        return self.counts.astype("<i8", copy=False).tobytes()

    def _require_same_reference(self, other: Profile, verb: str) -> None:
        if self.reference_digest != other.reference_digest:
            raise ReferenceMismatch(
                f"cannot {verb} profiles: expected reference {self.reference_digest}, got {other.reference_digest}; "
                "count the events again under one reference")
