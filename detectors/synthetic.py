"""Seeded streams with and without drift, for tests, benchmarks, the self-test and the documentation alike.

Idea: every column is a transformation of a latent standard normal, so that a shift, a scale or a correlation of the
latent reaches numbers, counts, zero-inflated values and categories in one known size. Latents may be autocorrelated
(AR(1), carried on from the reference into the stream) or ride on one seasonal wave.

Invariant: a stream is a function of (seed, how many rows were asked for before); the same calls give the same values.
A stream without drift has the law of its reference at every row.

Cost: about 50 ns a value for numbers, 150 ns for categories.

Neighbours: `Stream.rows` gives what `Reference.fit` and `Reference.profile` take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtr, pdtr

from detectors.rows import Column

Floats = NDArray[np.float64]
Batch = dict[str, Floats | list[str | None]]

Shape = Literal["normal", "lognormal", "poisson", "zero_inflated", "rounded", "missing"]
#: Share of missing values in a column of shape "missing"; mean of a "poisson" one; exponent of the levels' shares.
MISSING_SHARE, POISSON_MEAN, LEVEL_EXPONENT = 0.05, 3.0, 1.3
#: The mixed set: eight normal columns, two each of the other shapes, and categories of these numbers of levels.
MIXED_LEVELS = (3, 10, 50, 300)


@dataclass(frozen=True, slots=True)
class Quantity:
    """One synthetic column: a shape of numbers, or a category with `levels` levels of shares ~ 1 / rank^1.3."""

    shape: Shape = "normal"
    levels: int = 0

    def values(self, z: Floats, rng: np.random.Generator) -> Floats | list[str | None]:
        """The column's values at the latents `z`."""
        if self.levels:
            shares = np.arange(1, self.levels + 1) ** -LEVEL_EXPONENT
            bounds = np.cumsum(shares / shares.sum())[:-1]
            return [f"v{level}" for level in np.searchsorted(bounds, ndtr(z), side="right").tolist()]
        if self.shape == "missing":
            shown: Floats = np.where(rng.random(len(z)) < MISSING_SHARE, np.nan, z)
            return shown
        numbers: Floats = _NUMBERS[self.shape](z)
        return numbers


def _poisson(z: Floats) -> Floats:
    """The Poisson quantile at the latents' probabilities."""
    counts: Floats = np.searchsorted(pdtr(np.arange(40), POISSON_MEAN), ndtr(z)).astype(np.float64)
    return counts


_NUMBERS: dict[str, Callable[[Floats], Floats]] = {
    "normal": lambda z: z,
    "lognormal": np.exp,
    "poisson": _poisson,
    "zero_inflated": lambda z: np.maximum(0.0, z - 0.25),
    "rounded": lambda z: np.round(2 * z) / 2,
}

MIXED = (*[Quantity()] * 8, *[Quantity("lognormal")] * 2, *[Quantity("poisson")] * 2, *[Quantity("zero_inflated")] * 2,
         *[Quantity(levels=levels) for levels in MIXED_LEVELS], *[Quantity("missing")] * 2)
TIES = (*[Quantity("poisson")] * 7, *[Quantity("zero_inflated")] * 7, *[Quantity("rounded")] * 6)
RARE = (Quantity(levels=300),) * 20


@dataclass(frozen=True, slots=True)
class Drift:
    """What changes, in column 0 unless said.

    mean        : shift of the latent, in s.d.; `everywhere` shifts all columns      spread : factor on the latent
    two_humps   : the same mean and variance from two humps                         ramp_rows : rows until it is whole
    replaced    : share of values that become `constant` (NaN is missing; text is a new level of a category)
    joint       : the correlation of columns 0 and 1 falls from 0.7 to 0
    column      : which column, where it is not 0
    """

    mean: float = 0.0
    everywhere: bool = False
    spread: float = 1.0
    two_humps: bool = False
    ramp_rows: int = 0
    replaced: float = 0.0
    constant: float | str | None = np.nan
    joint: bool = False
    column: int = 0


@dataclass(slots=True)
class Stream:
    """An endless stream of rows.

    quantities : the columns; names are c0, c1 ...
    ar         : lag-one correlation of the latents, 0 to below 1
    season     : amplitude of one sine wave common to all columns, in s.d., with `day_rows` rows to a cycle
    drift      : what changes from the next row on; set it between calls of `rows`
    """

    seed: int
    quantities: Sequence[Quantity] = MIXED
    ar: float = 0.0
    season: float = 0.0
    day_rows: int = 20_000
    drift: Drift | None = None
    _rng: np.random.Generator = field(init=False, repr=False)
    _last: Floats | None = field(init=False, default=None, repr=False)
    _row: int = field(init=False, default=0, repr=False)
    _drift_row: int = field(init=False, default=0, repr=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The schema."""
        return tuple(Column(f"c{i}", "category" if quantity.levels else "numeric")
                     for i, quantity in enumerate(self.quantities))

    def start(self, **changes: object) -> None:
        """Begin a drift at the next row; the arguments are `Drift`'s."""
        self.drift, self._drift_row = replace(Drift(), **changes), self._row  # type: ignore[arg-type]

    def rows(self, n: int) -> Batch:
        """The next n rows as columns."""
        z = self._latent(n)
        names = [column.name for column in self.columns]
        batch: Batch = {name: quantity.values(z[:, i], self._rng)
                        for i, (name, quantity) in enumerate(zip(names, self.quantities, strict=True))}
        drift = self.drift
        if drift is not None and drift.replaced:
            self._replace(batch, names[drift.column], drift, n)
        self._row += n
        return batch

    def _latent(self, n: int) -> Floats:
        """The next n latent normals, shape (n, columns), drifted."""
        d, drift = len(self.quantities), self.drift or Drift()
        z = self._autocorrelated(self._rng.standard_normal((n, d)))
        if d > 1:
            correlation = 0.0 if drift.joint else 0.7
            z[:, 1] = correlation * z[:, 0] + np.sqrt(1 - correlation**2) * z[:, 1]
        if self.season:
            wave = self.season * np.sin(2 * np.pi * (self._row + np.arange(n)) / self.day_rows)
            z = (z + wave[:, None]) / np.sqrt(1 + self.season**2 / 2)
        where = slice(None) if drift.everywhere else slice(drift.column, drift.column + 1)
        if drift.two_humps:
            z[:, where] = 0.8 * np.sign(z[:, where]) + 0.6 * self._rng.standard_normal(z[:, where].shape)
        part = np.ones(n)
        if drift.ramp_rows:
            part = np.minimum(1.0, (self._row - self._drift_row + np.arange(n)) / drift.ramp_rows)
        z[:, where] = z[:, where] * drift.spread + drift.mean * part[:, None]
        return z

    def _autocorrelated(self, noise: Floats) -> Floats:
        """AR(1) latents of variance 1 from independent noise, carried on from the last row."""
        if not self.ar:
            return noise
        noise = noise * np.sqrt(1 - self.ar**2)
        last = self._rng.standard_normal((1, noise.shape[1]))[0] if self._last is None else self._last
        z: Floats = lfilter([1.0], [1.0, -self.ar], noise, axis=0, zi=self.ar * last.reshape(1, -1))[0]
        self._last = z[-1].copy() if len(z) else last
        return z

    def _replace(self, batch: Batch, name: str, drift: Drift, n: int) -> None:
        hit = self._rng.random(n) < drift.replaced
        values = batch[name]
        if isinstance(values, np.ndarray):
            assert not isinstance(drift.constant, str), "a number's constant is a number"
            values[hit] = np.nan if drift.constant is None else drift.constant
        else:
            for i in np.flatnonzero(hit).tolist():               # turns: the replaced rows
                values[i] = drift.constant if isinstance(drift.constant, str) else None
