"""A column of texts as numbers: the code of every event and the few texts that the codes stand for.

Idea: a batch of ten thousand events holds a handful of distinct categories. A list of Python texts costs 8 bytes and some
50 ns per value every time it is walked; codes are walked by numpy. Whoever knows nothing of it takes it for what it is, a
sequence of texts with None for missing; whoever is asked for every event (`binning`, `counting`) looks at each level once.

Invariant: `list(coded)` is the column. Level 0 is None; `levels` may grow behind the codes that are in use and is never
changed otherwise, so columns share one list. Several codes may stand for one text.

Cost: 4 bytes per event; slicing copies nothing; as a list about 15 ns per event.
Neighbours: the monitor's column decoder makes them, `binning.CategoryBinning` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class Coded(Sequence[str | None]):
    """Texts by code.

    codes : int32 (n,), places in `levels`      levels : the texts; the first is None
    """

    __slots__ = ("codes", "levels")

    def __init__(self, codes: NDArray[np.int32], levels: Sequence[str | None]) -> None:
        self.codes, self.levels = codes, levels

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> str | None: ...
    @overload
    def __getitem__(self, index: slice) -> Coded: ...
    def __getitem__(self, index: int | slice) -> str | Coded | None:
        if isinstance(index, slice):
            return Coded(self.codes[index], self.levels)
        return self.levels[int(self.codes[index])]

    def __iter__(self) -> Iterator[str | None]:
        return iter(self.tolist())

    def __repr__(self) -> str:
        return f"Coded({len(self.codes)} events, {len(self.levels)} levels)"

    def take(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> Coded:
        """The values at some places, or where a mask holds."""
        return Coded(self.codes[index], self.levels)

    def tolist(self) -> list[str | None]:
        """The column as a list of texts; one object per level, not per event."""
        levels = np.empty(len(self.levels), dtype=object)
        levels[:] = self.levels
        return levels[self.codes].tolist()  # type: ignore[no-any-return]

    def used(self) -> NDArray[np.intp]:
        """The codes that occur, rising."""
        return np.flatnonzero(np.bincount(self.codes, minlength=1))

    @classmethod
    def join(cls, parts: Sequence[Coded]) -> Coded:
        """Several columns one behind the other.

        >>> Coded.join([Coded(np.array([1, 0], np.int32), [None, "a"]), Coded(np.array([1], np.int32), [None, "b"])]).tolist()
        ['a', None, 'b']
        """
        first = parts[0]
        if all(part.levels is first.levels for part in parts):
            return cls(np.concatenate([part.codes for part in parts]), first.levels)
        places: dict[str | None, int] = {None: 0}
        codes = []
        for part in parts:                                      # turns: parts; each looks at its levels that occur
            table = np.zeros(len(part.levels), np.int32)
            for code in part.used().tolist():
                table[code] = places.setdefault(part.levels[code], len(places))
            codes.append(table[part.codes])
        return cls(np.concatenate(codes), list(places))
