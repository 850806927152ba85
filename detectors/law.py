"""The law that a reference suggests: a source of made-up events that look like its own, with and without drift.

Idea: a reference keeps counts and some sample rows, not its data. That is enough to draw events that have its columns'
distributions (every fine bin with its share, values spread evenly inside), the dependence between columns that its sample
shows (a Gaussian copula of normal scores), and the dependence over time that its design effects show (first-order
autoregression). A self-test draws a new reference and a stream from this one law, so that the stream truly does not
drift, and the noise of drawing a reference is part of what is measured.

Invariants: a stream is a function of (law, seed, rows asked for before). Reference and stream of one law differ by chance
alone; the law itself differs from the truth by the reference's own noise, which here does no harm.

What it cannot know: seasons and regimes (only the sum of their effect, as autoregression), dependence beyond
correlation, and what the reference never showed. Vectors and texts are drawn from the sample, vectors smoothed.

Cost: 30-60 ns a value and columns^2 multiplications an event: 2 us an event at 20 columns, 40 us at 500.

Neighbours: `synthetic` has the made-up streams of the benchmarks and `Drift`; `reference` is fitted on the draws again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtri

from detectors.binning import CategoryBinning, NumericBinning
from detectors.directions import normal_scores
from detectors.reference import Reference
from detectors.rows import Column, Row
from detectors.synthetic import Drift

Floats = NDArray[np.float64]
Values = Floats | list[str | None]

#: An autoregression nearer to 1 would not be stationary within any simulated stream.
AUTOREGRESSION_MAX = 0.998
#: A sampled vector is turned towards another one by at most this angle, so that none comes twice.
VECTOR_TURN_MAX = 0.6


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """One numeric column: places on the normal scale that bound its bins, and where its bins lie.

    edges (bins - 1,) : normal quantiles      low, width (bins,) : a value is `low + width u`, u uniform
    missing           : share of NaN          whole : values are whole numbers
    """

    edges: Floats
    low: Floats
    width: Floats
    missing: float
    whole: bool

    @classmethod
    def of(cls, row: Row, binning: NumericBinning) -> Numbers:
        """The column of a row of a reference."""
        counts, edges = row.counts[1:].astype(np.float64), binning.edges
        with np.errstate(over="ignore"):
            inner = np.nan_to_num(edges[1:] - edges[:-1])
        inner[np.nextafter(edges[:-1], np.inf) == edges[1:]] = 0.0              # a bin of one value
        before = np.nextafter(edges, -np.inf)                                   # an edge may lie just above its value
        whole = bool(np.all((edges == np.floor(edges)) | (before == np.floor(before))))
        return cls(_places(counts), np.concatenate([[-np.inf], edges[:-1], [np.inf]]), np.concatenate([[0.0], inner, [0.0]]),
                   _share(row.counts[0], row.counts.sum()), whole)

    def values(self, z: Floats, rng: np.random.Generator) -> Floats:
        """Values at the latents `z`, both (n,)."""
        bins = self.edges.searchsorted(z, side="right")
        values: Floats = self.low[bins] + self.width[bins] * rng.random(len(z))
        if self.whole:
            values = np.floor(values)
        if self.missing:
            values[rng.random(len(z)) < self.missing] = np.nan
        return values

    @property
    def middle(self) -> float:
        """The value at the middle of the law; NaN if it has none."""
        if self.missing == 1:
            return float("nan")
        return float(self.low[self.edges.searchsorted(0.0, side="right")])


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """One category column: places on the normal scale that bound its levels, and their names; the last ones are rare."""

    edges: Floats
    names: NDArray[np.object_]
    missing: float

    @classmethod
    def of(cls, row: Row, binning: CategoryBinning) -> Levels:
        """The column of a row: kept levels, as many others as the reference saw, and some that it did not (Good-Turing)."""
        kept, rest, others = row.counts[1:-2].astype(np.float64), float(row.counts[-2]), len(binning.seen)
        once = max(round(row.c0[-1] - row.counts[-1]) - 1, 0)                   # levels that were seen exactly once
        counts = np.concatenate([kept, np.full(others, rest / max(others, 1)), np.ones(once)])
        names = [*binning.levels, *(f"other {i}" for i in range(others)), *(f"new {i}" for i in range(once))]
        return cls(_places(counts), np.array(names or ["none"], object), _share(row.counts[0], row.counts.sum()))

    def values(self, z: Floats, rng: np.random.Generator) -> list[str | None]:
        """Levels at the latents `z` (n,), None for missing."""
        drawn = self.names[self.edges.searchsorted(z, side="right")]
        if self.missing:
            drawn[rng.random(len(z)) < self.missing] = None
        values: list[str | None] = drawn.tolist()
        return values


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """What events are drawn from.

    columns    : those that can be drawn         left_out : those that cannot: vectors and texts without a sample
    quantities : the law of every plain column, by name
    correlation (p, p), memory (p,) : of the plain columns' latents, between columns and from one event to the next
    pools      : sampled vectors or texts, by column
    sampled    : the reference kept rows that the dependence between columns is known from
    """

    columns: tuple[Column, ...]
    left_out: tuple[str, ...]
    quantities: Mapping[str, Numbers | Levels]
    correlation: Floats
    memory: Floats
    pools: Mapping[str, Values]
    sampled: bool
    _mixing: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        variance, vectors = np.linalg.eigh(self.correlation)
        object.__setattr__(self, "_mixing", vectors * np.sqrt(np.maximum(variance, 0.0)))

    @classmethod
    def of(cls, reference: Reference) -> Law:
        """The law that a reference suggests."""
        sample, expansions = reference.sample, reference.expansions
        rows = [row for row, plain in zip(reference.records, reference.is_plain.tolist(), strict=True) if plain]
        left_out = tuple(name for name in expansions if sample is None or name not in sample)
        quantities: dict[str, Numbers | Levels] = {
            row.name: Numbers.of(row, row.binning) if isinstance(row.binning, NumericBinning) else Levels.of(row, row.binning)
            for row in rows}
        growth = np.array([row.effect.g_directions[0] if np.isfinite(row.effect.nu_directions[0]) else 1.0 for row in rows])
        return cls(
            columns=tuple(column for column in reference.columns if column.name not in left_out), left_out=left_out,
            quantities=quantities, correlation=_correlation(rows, sample),
            memory=np.clip((growth - 1) / (growth + 1), 0.0, AUTOREGRESSION_MAX),
            pools={} if sample is None else {name: sample[name] for name in expansions if name in sample},
            sampled=sample is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """The plain columns, in the order of `correlation`."""
        return tuple(self.quantities)

    def closest_pair(self) -> tuple[int, int, float] | None:
        """The two plain columns of the strongest correlation, and it; None below two columns."""
        if len(self.names) < 2:
            return None
        strength = np.abs(np.triu(self.correlation, 1))
        a, b = np.unravel_index(int(strength.argmax()), strength.shape)
        return int(a), int(b), float(self.correlation[a, b])


class LawStream:
    """An endless stream of events of one law."""

    def __init__(self, law: Law, rng: np.random.Generator) -> None:
        self.law = law
        self._rng = rng
        self._last: Floats | None = None

    def rows(self, n: int, drift: Drift | None = None) -> dict[str, Values]:
        """The next n events as columns.

        drift : what is different in them: `mean`, `everywhere`, `spread`, `two_humps` (of the latents, so in the unit of
                effects), `replaced` and `constant`; `column` counts the plain columns, and `joint` makes it independent of
                the others. Ramps are not drawn
        """
        law, drift = self.law, drift or Drift()
        z = self._latents(n, drift)
        batch: dict[str, Values] = {}
        for place, (name, quantity) in enumerate(law.quantities.items()):
            values: Values = quantity.values(z[:, place], self._rng)
            if drift.replaced and place == drift.column:
                values = self._replaced(values, drift)
            batch[name] = values
        for name, pool in law.pools.items():
            batch[name] = self._pooled(pool, n)
        return batch

    def _latents(self, n: int, drift: Drift) -> Floats:
        """Normal scores (n, plain columns) of the next events."""
        law, rng = self.law, self._rng
        p = len(law.memory)
        noise = rng.standard_normal((n, p)) @ law._mixing.T
        if drift.joint:
            noise[:, drift.column] = rng.standard_normal(n)
        slow = np.flatnonzero(law.memory)
        if len(slow):
            last = rng.standard_normal(p) @ law._mixing.T if self._last is None else self._last
            for j in slow.tolist():                             # turns: the columns that depend on their past
                a = law.memory[j]
                noise[:, j] = lfilter([np.sqrt(1 - a * a)], [1.0, -a], noise[:, j], zi=[a * last[j]])[0]
            self._last = noise[-1].copy() if n else last
        where = slice(None) if drift.everywhere else slice(drift.column, drift.column + 1)
        if drift.two_humps:
            noise[:, where] = 0.8 * np.sign(noise[:, where]) + 0.6 * rng.standard_normal(noise[:, where].shape)
        noise[:, where] = noise[:, where] * drift.spread + drift.mean
        return noise

    def _replaced(self, values: Values, drift: Drift) -> Values:
        hit = self._rng.random(len(values)) < drift.replaced
        if isinstance(values, np.ndarray):
            assert not isinstance(drift.constant, str), "a number's constant is a number"
            return np.where(hit, np.nan if drift.constant is None else drift.constant, values)
        new = drift.constant if isinstance(drift.constant, str) else None
        return [new if replaced else value for value, replaced in zip(values, hit.tolist(), strict=True)]

    def _pooled(self, pool: Values, n: int) -> Values:
        chosen = self._rng.integers(0, len(pool), n)
        if isinstance(pool, list):
            return [pool[i] for i in chosen.tolist()]
        known = pool[np.isfinite(pool).all(axis=1)]
        vectors: Floats = pool[chosen]
        if len(known) < 2:
            return vectors
        # The cosine and sine of any angle, as weights of two independent deviations, leave the covariance as it is.
        angle, mean = self._rng.uniform(0, VECTOR_TURN_MAX, (n, 1)), known.mean(axis=0)
        other = known[self._rng.integers(0, len(known), n)]
        turned: Floats = mean + np.cos(angle) * (vectors - mean) + np.sin(angle) * (other - mean)
        return turned


def _places(counts: Floats) -> Floats:
    """The normal quantiles that divide the line in the shares of `counts`, (len(counts) - 1,)."""
    total = counts.sum()
    if not total:
        return np.full(max(len(counts) - 1, 0), np.inf)
    places: Floats = ndtri(np.clip(np.cumsum(counts)[:-1] / total, 0.0, 1.0))
    return places


def _share(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else 1.0


def _correlation(rows: list[Row], sample: Mapping[str, Values] | None) -> Floats:
    """Correlations of the plain columns' normal scores in the sample, (p, p), shrunk where rows are few for them."""
    p = len(rows)
    if sample is None or p < 2 or any(row.name not in sample for row in rows):
        return np.eye(p)
    scores = np.stack([normal_scores(np.maximum(row.counts, 1e-9) / max(row.counts.sum(), 1))
                       [row.binning.codes(sample[row.name])] for row in rows])  # type: ignore[arg-type]
    scores -= scores.mean(axis=1, keepdims=True)
    sd = np.sqrt(np.square(scores).mean(axis=1))
    n = scores.shape[1]
    found: Floats = scores @ scores.T / n / np.outer(np.where(sd > 1e-9, sd, 1.0), np.where(sd > 1e-9, sd, 1.0))
    found *= n / (n + p)                            # towards independence, by as much as there is noise in them
    np.fill_diagonal(found, 1.0)
    return found
