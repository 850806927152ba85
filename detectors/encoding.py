"""Tables made into matrices that distances mean something on, and the joint tests run on tables by name.

Idea: a distance between rows adds columns up, so each column has to bring the same share. The reference fixes how:
numbers are standardised by its mean and s.d., categories become one 0/1 column per kept level, scaled so that the whole
column has variance 1, and embeddings pass as they are. What is missing is 0 beside an indicator of its own.

Invariant: an encoding is a pure function of the reference's columns; any table gets the same matrix columns, in the same
order, whatever its own values. Levels and missing values that the reference never had fall in columns that exist.

Cost: 8 bytes a matrix column and row; a number takes 2 matrix columns, a category at most 36.

Neighbours: `rows` has the kinds of columns; `kernels` and `classifier` take the matrices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.classifier import ClassifierTest, classifier
from detectors.kernels import FourierMMD, KernelTest, block_rows_for, mmd

Floats = NDArray[np.float64]
Values = NDArray[np.generic] | Sequence[object]

#: As many levels get a matrix column of their own; beyond them `rest` and the level's log share speak.
LEVELS_MAX = 32
_LEVEL_EVENTS_MIN, _LEVEL_SHARE_MIN = 5, 0.002


@dataclass(frozen=True, slots=True)
class _Number:
    """mean and sd of the reference's finite values; sd 0 for a constant, NaN where there was none."""

    name: str
    mean: float
    sd: float

    @property
    def width(self) -> int:
        return 2

    def encode(self, values: Values) -> Floats:
        """(n, 2): standardised value, and 1 where it is missing or infinite."""
        numbers = _numbers(self.name, values)
        known = np.isfinite(numbers)
        gap = np.where(known, numbers, self.mean) - self.mean
        if self.sd > 0:
            z = gap / self.sd
        elif self.sd == 0:
            z = np.sign(gap)                 # a constant has no scale: all that can be said is above or below
        else:
            z = np.zeros(len(numbers))
        return np.stack([z, ~known], axis=1).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class _Levels:
    """kept levels in order, log share (standardised) of every reference level, and the scale of the 0/1 columns."""

    name: str
    kept: tuple[object, ...]
    shares: Mapping[object, float]
    scale: float

    @property
    def width(self) -> int:
        return len(self.kept) + 3 + self.has_shares

    @property
    def has_shares(self) -> bool:
        """More levels than columns: the log share keeps what `rest` would hide."""
        return len(self.shares) > len(self.kept)

    def encode(self, values: Values) -> Floats:
        """(n, width): one column per kept level, then rest, unseen, missing, and the log share if levels were many."""
        at = {level: place for place, level in enumerate(self.kept)}
        rest = len(self.kept)
        levels = _levels(self.name, values)
        codes = np.array([rest + 2 if level is None else at.get(level, rest if level in self.shares else rest + 1)
                          for level in levels], dtype=np.int64)
        rows = np.zeros((len(levels), self.width))
        rows[np.arange(len(levels)), codes] = self.scale
        if self.has_shares:
            rows[:, -1] = [0.0 if level is None else self.shares.get(level, 0.0) for level in levels]
        return rows


@dataclass(frozen=True, slots=True)
class _Embedding:
    """A vector column of this many components, taken as it is."""

    name: str
    width: int

    def encode(self, values: Values) -> Floats:
        """(n, width), float64."""
        try:
            rows = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"{self.name}: expected vectors of numbers of one length, got others; "
                             "leave out rows without an embedding") from None
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"{self.name}: expected shape (rows, {self.width}) as in the reference, got {rows.shape}; "
                             "compare embeddings of one model")
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """How the columns of a table become matrix columns, as the reference fixed it."""

    parts: tuple[_Number | _Levels | _Embedding, ...]

    @classmethod
    def fit(cls, reference: Mapping[str, Values], kinds: Mapping[str, str]) -> Encoding:
        """From the reference's columns; `kinds` names those that count: numeric, category, boolean or embedding."""
        if not kinds:
            raise ValueError("encode kinds: expected at least one column, got none; name the columns to compare")
        return cls(tuple(_fitted(name, kind, _column(reference, name, "reference")) for name, kind in kinds.items()))

    @property
    def names(self) -> list[str]:
        """The column that each matrix column comes from; `name[3]` for a component of an embedding."""
        return [f"{part.name}[{at}]" if isinstance(part, _Embedding) else part.name
                for part in self.parts for at in range(part.width)]

    def encode(self, columns: Mapping[str, Values]) -> Floats:
        """The table as a matrix, (rows, len(names)); columns of unlike lengths are a ValueError."""
        encoded = [part.encode(_column(columns, part.name, "columns")) for part in self.parts]
        lengths = {part.name: len(rows) for part, rows in zip(self.parts, encoded, strict=True)}
        if len(set(lengths.values())) > 1:
            (one, first), (other, second) = min(lengths.items(), key=_length), max(lengths.items(), key=_length)
            raise ValueError(f"encode columns: expected columns of one length, got {first} in {one} and {second} in {other}")
        return np.concatenate(encoded, axis=1)


def encode(columns: Mapping[str, Values], kinds: Mapping[str, str], reference: Mapping[str, Values]) -> Floats:
    """The table `columns` as a matrix, by the encoding that `reference` fixes; see `Encoding` to encode several tables."""
    return Encoding.fit(reference, kinds).encode(columns)


def compare(name: str, reference: Mapping[str, Values], window: Mapping[str, Values], kinds: Mapping[str, str], *,
            seed: int, deff: float = 1.0, device: str = "auto") -> KernelTest | ClassifierTest:
    """The joint test of this name (`kernels.METHODS`) on two tables whose rows are in time order; `.score` is -log10 p.

    kinds : the columns to compare and their kinds          deff : design effect of the rows, 1 for independent ones
    """
    encoding = Encoding.fit(reference, kinds)
    x, y, block_rows = encoding.encode(reference), encoding.encode(window), block_rows_for(deff)
    if name == "mmd":
        return mmd(x, y, seed=seed, block_rows=block_rows, device=device)
    if name == "c2st":
        return classifier(x, y, seed=seed, block_rows=block_rows, deff=max(1.0, deff), names=encoding.names, device=device)
    if name == "fourier_mmd":
        fitted = FourierMMD.fit(x, seed=seed, block_rows=block_rows, device=device)
        return fitted.test(fitted.features(y), seed=seed)
    raise ValueError(f"method: expected mmd, c2st or fourier_mmd, got {name!r}")


def _fitted(name: str, kind: str, values: Values) -> _Number | _Levels | _Embedding:
    """How one column of the reference is encoded."""
    if kind == "numeric":
        numbers = _numbers(name, values)
        numbers = numbers[np.isfinite(numbers)]
        if len(numbers) == 0:
            return _Number(name, 0.0, float("nan"))
        if (numbers == numbers[0]).all():
            return _Number(name, float(numbers[0]), 0.0)
        # Through the largest magnitude: squares of values beyond 1e154 would be infinite.
        largest = float(np.abs(numbers).max())
        small = numbers / largest
        return _Number(name, float(small.mean()) * largest, float(small.std()) * largest)
    if kind in ("category", "boolean"):
        return _fitted_levels(name, values)
    if kind == "embedding":
        rows = np.asarray(values)
        if rows.ndim != 2 or rows.shape[1] == 0:
            raise ValueError(f"{name}: expected vectors of one length, shape (rows, width), got {rows.shape}; "
                             "leave out rows without an embedding")
        return _Embedding(name, rows.shape[1])
    raise ValueError(f"{name}: expected kind numeric, category, boolean or embedding, got {kind!r}")


def _fitted_levels(name: str, values: Values) -> _Levels:
    counts = Counter(level for level in _levels(name, values) if level is not None)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    total = counts.total()
    least = max(_LEVEL_EVENTS_MIN, _LEVEL_SHARE_MIN * total)
    kept = tuple(level for level, count in ordered[:LEVELS_MAX] if count >= least)
    p = np.array([count / total for _, count in ordered])
    spread = 1.0 - float((p * p).sum())
    logs = np.log(p) if total else p
    centre = float((p * logs).sum())
    sd = float(np.sqrt((p * (logs - centre) ** 2).sum())) or 1.0
    shares = {level: (float(log) - centre) / sd for (level, _), log in zip(ordered, logs, strict=True)}
    return _Levels(name, kept, shares, 1.0 / float(np.sqrt(spread)) if spread > 1e-12 else 1.0)


def _column(columns: Mapping[str, Values], name: str, where: str) -> Values:
    if name not in columns:
        raise ValueError(f"encode {where}: expected a column {name!r}, got {', '.join(map(str, columns)) or 'none'}")
    return columns[name]


def _numbers(name: str, values: Values) -> Floats:
    """float64, NaN for None; booleans are 0 and 1."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected numbers, got others; call the column a category, or leave it out") from None
    if numbers.ndim != 1:
        raise ValueError(f"{name}: expected one number per row, got shape {numbers.shape}; call it an embedding")
    return numbers


def _levels(name: str, values: Values) -> list[object]:
    """One level per row, None where it is missing (None or NaN)."""
    levels = values.tolist() if isinstance(values, np.ndarray) else list(values)
    levels = [None if level != level else level for level in levels]
    try:
        set(levels)
    except TypeError:
        raise ValueError(f"{name}: expected one level per row, got lists; call the column an embedding") from None
    return levels


def _length(item: tuple[str, int]) -> int:
    return item[1]
