"""Batches as the matrices that peers take: numbers with NaN, level codes, and one standardised matrix of all columns.

Idea: every peer of the proof sees the same rows as ours, turned into arrays once. Levels are coded by the reference:
0 is missing, then every level that it holds, and the last code is anything else.

Cost: 10 ns a number and 60 ns a category.

Neighbours: `windows`, `joint` and `series` take what is made here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.synthetic import Batch

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows of a stream.

    numbers : (n, numeric columns), NaN for missing     levels : (n, category columns), codes below `width`
    """

    numbers: Floats
    levels: Ints
    width: int


class Encoder:
    """How batches of one stream become arrays, by its reference."""

    def __init__(self, reference: Batch) -> None:
        self._numbers = [name for name, values in reference.items() if isinstance(values, np.ndarray)]
        self._levels = {name: {level: code for code, level in enumerate(sorted(set(values) - {None}, key=str), 1)}
                        for name, values in reference.items() if not isinstance(values, np.ndarray)}
        self.width = max([2, *(len(codes) + 2 for codes in self._levels.values())])
        first = self(reference)
        self.mean, self.sd = np.nanmean(first.numbers, axis=0), np.nanstd(first.numbers, axis=0)
        # Frequency encoding of categories, standardised like a number.
        shares = [np.bincount(column, minlength=self.width) / max(len(column), 1) for column in first.levels.T]
        self._shares = [(share - share @ share) / max(np.sqrt(share @ (share - share @ share) ** 2), 1e-9) for share in shares]
        self.reference = first

    def __call__(self, batch: Batch) -> Encoded:
        """The arrays of a batch."""
        n = len(next(iter(batch.values())))
        numbers = [np.asarray(batch[name], np.float64) for name in self._numbers]
        levels = [np.array([0 if value is None else codes.get(value, self.width - 1) for value in batch[name]])
                  for name, codes in self._levels.items()]
        return Encoded(np.stack(numbers, axis=1) if numbers else np.zeros((n, 0)),
                       np.stack(levels, axis=1) if levels else np.zeros((n, 0), np.int64), self.width)

    def standardised(self, seen: Encoded) -> Floats:
        """Numbers only, in reference s.d. from the reference mean; NaN for missing."""
        return (seen.numbers - self.mean) / np.where(self.sd > 0, self.sd, 1.0)

    def matrix(self, seen: Encoded) -> Floats:
        """All columns standardised, (n, columns): missing numbers at the mean, categories by their frequency."""
        levels = [share[codes][:, None] for share, codes in zip(self._shares, seen.levels.T, strict=True)]
        return np.hstack([np.nan_to_num(self.standardised(seen), nan=0.0), *levels])

    def column_of(self, place: int) -> tuple[str, int]:
        """Where the column of this place in the schema went: "number" or "level", and its index there."""
        for kind, names in (("number", self._numbers), ("level", list(self._levels))):
            if f"c{place}" in names:
                return kind, names.index(f"c{place}")
        raise ValueError(f"column {place}: expected a column of the stream, got none; see its schema")
