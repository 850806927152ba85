"""Embedding columns as a few ordinary numbers: where a vector lies, how far out, how long, and what is left over.

Idea: nobody can bin 768 dimensions, and nobody needs to. The reference's own cloud says which directions matter: its
leading principal directions, fitted on one half of the reference, turn every vector into 12 coordinates, one distance
within the cloud (`spread`, a Mahalanobis distance over the 32 leading directions), one distance out of it (`residual`,
the length of what these directions cannot express) and its length (`norm`). Those are numeric rows like any others:
binned and counted on the other half, tested by the scan within its one budget of false alarms.

Invariant: the rows of an event are a function of its vector alone, bit for bit: neither the other events of its batch
nor the machine's linear algebra has a say. Vectors are put on a grid of whole numbers (a power of two fine), and so are
the directions; both have so few bits that every partial sum of the matrix product stays below 2**53, where float64 is
exact and the order of summation does not matter. Vectors with a NaN or an infinity, and None, are missing: a row of NaN.

Robustness: a dimension moves by 16 times the reference's widest extent at most, so one entry of 1e30 among the reference's
vectors spoils neither the grid nor the directions, and among the stream's it is one event far outside.

Cost per event for all 15 rows, in batches of 300 and more: 0.5 us at 64 dimensions and 5 us at 768 (35 and 330 ns a row,
of which a number takes 7 to be counted), a tenth of what reading the vector from JSON costs. Fitting: about a second at
10,000 x 768. Memory: dimensions x 33 x 8 bytes.

Neighbours: `text` sends bags of words through the same directions, `reference` bins the rows.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Coordinates that become rows, and directions that `spread` and `residual` use (section 6 of the manual).
DIRECTIONS, LEADING = 12, 32
#: A cloud of at most so many dimensions shows all its directions: eight more rows cost less than a blind spot.
ALL_DIRECTIONS_MAX = 20
#: Half-width of the grid in units of the reference's widest extent: what lies farther out is far out all the same.
MARGIN = 16.0
#: Share of a dimension's entries that its extent covers.
_EXTENT_SHARE = 0.99
#: Directions whose s.d. is this small beside the first one's are rounding, not cloud.
_RANK_MIN = 1e-5
#: `residual` is given in steps of this share of the cloud's s.d.: finer, it would show the rounding of the directions.
_RESIDUAL_STEP = 1e-3
#: Vectors that the directions are fitted on, evenly spaced over half A; more do not move them.
FIT_ROWS_MAX = 20_000
#: Up to here all directions are computed; above, only the leading ones by random projection (Halko et al. 2011).
EXACT_DIMENSIONS_MAX = 800
_OVERSAMPLE, _POWER_TURNS = 16, 4
#: Entries that are worked on at once: a block stays in the processor's second-level cache.
_BLOCK_ENTRIES = 1 << 17
#: Exponents of the grid's step: beyond them lie numbers that nobody can square.
_EXPONENT_MAX = 500
#: Most dimensions of a column: an event of 1 MiB holds some 100,000 numbers as text.
DIMENSIONS_MAX = 1 << 17


def vectors(values: object) -> Floats:
    """An embedding column as float64, shape (n, dimensions): sequences of equal length, None for missing.

    A missing vector, or one with an entry that is not finite, is a row of NaN. ValueError, one line, for vectors of
    different lengths and for anything else than numbers; a column of None alone has no dimension: shape (n, 0).
    """
    if isinstance(values, np.ndarray) and values.dtype != object:
        if values.ndim != 2 or values.dtype.kind not in "iufb":
            raise ValueError(f"embedding: expected numbers of shape (events, dimensions), got {values.dtype} of shape "
                             f"{values.shape}; give one vector per event")
        found = values.astype(np.float64)
        found[~np.isfinite(found).all(axis=1)] = np.nan
        return found
    listed = list(values)  # type: ignore[call-overload]
    missing = np.array([_is_missing(value) for value in listed], dtype=bool)
    lengths = {np.shape(value) for value, absent in zip(listed, missing.tolist(), strict=True) if not absent}
    if len(lengths) > 1 or any(len(shape) != 1 for shape in lengths):
        shown = ", ".join(map(str, sorted(lengths)[:4]))
        raise ValueError(f"embedding: expected vectors of one length, got shapes {shown}; give one vector per event")
    dimensions = lengths.pop()[0] if lengths else 0
    found = np.full((len(listed), dimensions), np.nan)
    if dimensions and not missing.all():
        try:
            found[~missing] = np.array([value for value, absent in zip(listed, missing.tolist(), strict=True) if not absent],
                                       dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"embedding: expected numbers, got {' '.join(str(error).split())[:120]}") from None
        found[~np.isfinite(found).all(axis=1)] = np.nan
    return found


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """What one embedding column needs at run time; whole numbers unless said otherwise, all kept as float64.

    dim      : entries of a vector
    exponent : the grid's step is 2 ** exponent
    origin   : (dim,) the middle of the cloud, in steps
    axes     : (dim, leading) principal directions, times 2 ** `axis_bits`, by falling variance; the entry of largest
               size of each is positive
    centre   : (leading,) float, mean of half A along each         scale : (leading,) float, s.d. along each, in steps
    total    : float, s.d. of the cloud as a whole (root of its total variance), in steps
    directions : how many of the axes become rows
    """

    dim: int
    exponent: int
    origin: Floats
    axes: Floats
    centre: Floats
    scale: Floats
    total: float
    directions: int = DIRECTIONS
    _product: Floats = field(init=False, repr=False)
    _origin_length: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # One more axis: towards the origin, for the length of a vector in terms of what it differs from the origin.
        largest = float(np.abs(self.origin).max(initial=0.0))
        length = largest * math.sqrt(math.fsum(((self.origin / largest) ** 2).tolist())) if largest else 0.0
        towards = np.rint(self.origin / length * 2.0 ** axis_bits(self.dim)) if length else np.zeros(self.dim)
        object.__setattr__(self, "_product", np.ascontiguousarray(np.vstack([self.axes.T, towards])))
        object.__setattr__(self, "_origin_length", length)

    @classmethod
    def fit(cls, values: Floats, half_a: NDArray[np.bool_], *, directions: int | None = None) -> Embedding:
        """The directions of a reference column.

        values : float64 (n, dim), a row that is not finite throughout is missing
        half_a : bool (n,), the rows that the directions may look at
        directions : how many become rows; None: 12, or all of a cloud of at most 20 dimensions
        raises : ValueError, one line, for no dimension at all or for too many

        All missing, or all equal: no direction; `norm` and `residual` are left, which show any other vector.
        """
        if values.ndim != 2 or not 1 <= values.shape[1] <= DIMENSIONS_MAX:
            raise ValueError(f"embedding: expected vectors of 1 to {DIMENSIONS_MAX} numbers, got values of shape "
                             f"{values.shape}; check the column, or leave it out")
        dim = values.shape[1]
        chosen = np.flatnonzero(half_a)
        chosen = chosen[np.isfinite(values[chosen]).all(axis=1)]
        if len(chosen) > FIT_ROWS_MAX:
            chosen = chosen[np.linspace(0, len(chosen) - 1, FIT_ROWS_MAX).astype(np.int64)]
        sample = values[chosen]
        exponent, origin = _grid(sample, dim)
        steps = np.empty(sample.shape)
        _to_steps(sample, exponent, origin, steps)
        if len(steps):
            origin = origin + np.rint(steps.mean(axis=0))       # the plane of a flat cloud goes through its mean
            _to_steps(sample, exponent, origin, steps)
        mean = steps.mean(axis=0) if len(steps) else np.zeros(dim)
        steps -= mean
        total = math.sqrt(float(np.einsum("ij,ij->", steps, steps)) / max(1, len(steps)))
        found = _principal(steps, min(LEADING, dim, max(0, len(steps) - 1)))
        signs = np.sign(found[np.argmax(np.abs(found), axis=0), np.arange(found.shape[1])])
        axes = np.rint(found * signs * 2.0 ** axis_bits(dim))
        along = steps @ axes
        scale = along.std(axis=0) if len(steps) else np.zeros(0)
        kept = scale > _RANK_MIN * max(scale.max(initial=0.0), 2.0 ** axis_bits(dim))
        if directions is None:
            directions = DIRECTIONS if dim > ALL_DIRECTIONS_MAX else dim
        return cls(dim, exponent, origin, axes[:, kept], mean @ axes[:, kept], scale[kept], total,
                   min(directions, int(kept.sum())))

    @property
    def has_residual(self) -> bool:
        """Whether anything can lie outside the leading directions."""
        return len(self.scale) < self.dim

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rows: pc1 ..., spread, residual, norm; those that this cloud has."""
        return (*(f"pc{i}" for i in range(1, self.directions + 1)), *(("spread",) if self.directions else ()),
                *(("residual",) if self.has_residual else ()), "norm")

    def rows(self, values: Floats) -> Floats:
        """The rows of a batch, float64 (n, len(names)); NaN where a vector is missing.

        values : float64 (n, dim). ValueError, one line, for another number of dimensions.

        pc... and spread are in reference s.d. and their mean square; residual and norm in the vectors' own unit.
        """
        if values.ndim != 2 or values.shape[1] != self.dim:
            raise ValueError(f"embedding: expected values of shape (events, {self.dim}), got {values.shape}; "
                             "give the vectors of the model that the reference was fitted on")
        result = np.empty((len(self.names), len(values)))       # one row after the other, as they will be binned
        size = max(1, _BLOCK_ENTRIES // self.dim)
        steps = np.empty((min(size, len(values)), self.dim))
        for start in range(0, len(values), size):               # turns: blocks that fit the cache
            block = values[start:start + size]
            self._block(block, steps[: len(block)], result[:, start:start + size])
        return result.T

    def _block(self, values: Floats, steps: Floats, result: Floats) -> None:
        """The rows of a few hundred vectors; every operation is exact or works on one event at a time."""
        missing: NDArray[np.bool_] = np.zeros(0, bool)
        with np.errstate(invalid="ignore", over="ignore"):
            if not math.isfinite(values.sum()):                 # a quick look; finite sums have finite terms
                missing = np.logical_not(np.isfinite(values).all(axis=1))
                values = np.where(missing[:, None], 0.0, values)
        _to_steps(values, self.exponent, self.origin, steps)
        along = self._product @ steps.T                         # exact: see the invariant
        square = np.einsum("ij,ij->i", steps, steps)            # exact, too
        unit, step, length = 2.0 ** axis_bits(self.dim), 2.0 ** self.exponent, self._origin_length
        np.sqrt(np.maximum(square + 2 * length * (along[-1] / unit) + length * length, 0.0), out=result[-1])
        result[-1] *= step
        along = along[:-1]
        if self.has_residual:
            outside = square - _sum_of_squares(along) / unit**2
            width = _RESIDUAL_STEP * max(self.total, 1.0 / _RESIDUAL_STEP)
            result[-2] = np.rint(np.sqrt(np.maximum(outside, 0.0)) / width) * (width * step)
        if self.directions:
            along -= self.centre[:, None]
            along /= self.scale[:, None]
            result[: self.directions] = along[: self.directions]
            result[self.directions] = _sum_of_squares(along) / len(along)
        if len(missing):
            result[:, missing] = np.nan

    # ---- the file -------------------------------------------------------------------------------------------------

    def encode(self) -> dict[str, object]:
        """The embedding, ready for JSON, exact."""
        return {"dim": self.dim, "exponent": self.exponent, "directions": self.directions, "total": self.total,
                "origin": _packed(self.origin, "<f8"), "axes": _packed(self.axes, "<i4"),
                "centre": self.centre.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def decode(cls, item: Mapping[str, object]) -> Embedding:
        """What `encode` wrote; ValueError, one line, for anything else."""
        try:
            dim, exponent, directions = (_whole(item[key], key) for key in ("dim", "exponent", "directions"))
            total = float(item["total"])  # type: ignore[arg-type]
            centre, scale = (np.array(item[key], dtype=np.float64) for key in ("centre", "scale"))
            origin, axes = _unpacked(item["origin"], "<f8"), _unpacked(item["axes"], "<i4")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            _refuse(f"{type(error).__name__}: {error}")
        if not 1 <= dim <= DIMENSIONS_MAX or abs(exponent) > _EXPONENT_MAX:
            _refuse(f"{dim} dimensions and exponent {exponent}")
        leading = len(scale)
        if centre.shape != (leading,) or origin.shape != (dim,) or axes.shape != (dim * leading,) or leading > dim \
                or not 0 <= directions <= leading or bool(directions) != bool(leading):
            _refuse(f"arrays of shapes {centre.shape}, {scale.shape}, {origin.shape}, {axes.shape}, "
                    f"{directions} directions for {dim} dimensions")
        sound = np.isfinite(centre).all() and np.isfinite(origin).all() and np.isfinite(scale).all()
        if not (sound and (scale > 0).all() and math.isfinite(total) and total >= 0
                and (np.abs(axes) <= 2.0 ** axis_bits(dim)).all()):
            _refuse("numbers out of range")
        return cls(dim, exponent, origin, axes.reshape(dim, leading), centre, scale, total, directions)


def dimensions(expansions: Mapping[str, object]) -> dict[str, int]:
    """The lengths of the vectors among a reference's `expansions`, by column."""
    return {name: one.dim for name, one in expansions.items() if isinstance(one, Embedding)}


def grid_bits(dim: int) -> int:
    """Bits of a vector's entry on the grid: the sum of `dim` squares stays below 2**53."""
    return min(24, (53 - (dim - 1).bit_length()) // 2)


def axis_bits(dim: int) -> int:
    """Bits of a direction's entry: the sum of `dim` products stays below 2**53, since a unit vector's entries add up to
    the root of `dim` at most (and one bit for their rounding)."""
    return min(26, 52 - grid_bits(dim) - ((dim - 1).bit_length() + 1) // 2)


def _grid(sample: Floats, dim: int) -> tuple[int, Floats]:
    """Exponent of the grid's step and the middle of the cloud in steps, from vectors without missing entries."""
    if not len(sample):
        return 0, np.zeros(dim)
    with np.errstate(over="ignore", invalid="ignore"):
        middle = np.median(np.clip(sample, -1e150, 1e150), axis=0)
        away = np.minimum(np.abs(sample - middle), 1e150)
    extents = np.quantile(away, _EXTENT_SHARE, axis=0, method="higher")
    extent = float(extents.max()) or float(away.max()) or float(np.abs(middle).max())
    if not extent:
        return 0, np.zeros(dim)
    exponent = int(np.clip(math.frexp(extent * MARGIN)[1] - grid_bits(dim), -_EXPONENT_MAX, _EXPONENT_MAX))
    return exponent, np.rint(np.ldexp(middle, -exponent))


def _to_steps(values: Floats, exponent: int, origin: Floats, steps: Floats) -> None:
    """Finite vectors as whole steps from the origin, cut off at the grid's end, into `steps`."""
    limit = 2.0 ** grid_bits(len(origin))
    with np.errstate(over="ignore"):
        np.multiply(values, 2.0 ** -exponent, out=steps)        # exact: a power of two
    np.rint(steps, out=steps)
    steps -= origin
    np.maximum(steps, -limit, out=steps)                        # twice as fast as clip
    np.minimum(steps, limit, out=steps)


def _principal(centred: Floats, count: int) -> Floats:
    """The `count` leading principal directions of centred vectors, orthonormal, shape (dim, count)."""
    dim = centred.shape[1]
    if not count:
        return np.zeros((dim, 0))
    size = float(np.abs(centred).max()) or 1.0
    scaled = centred / size
    if dim <= EXACT_DIMENSIONS_MAX:
        _, vectors_found = np.linalg.eigh(scaled.T @ scaled)
        return np.ascontiguousarray(vectors_found[:, ::-1][:, :count])
    # Halko, Martinsson, Tropp 2011, algorithm 4.4: a random subspace, pulled towards the leading one by power turns.
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(scaled.T @ (scaled @ rng.standard_normal((dim, min(count + _OVERSAMPLE, dim)))))[0]
    for _ in range(_POWER_TURNS):
        basis = np.linalg.qr(scaled.T @ (scaled @ basis))[0]
    _, _, turned = np.linalg.svd(scaled @ basis, full_matrices=False)
    return np.ascontiguousarray((basis @ turned.T)[:, :count])


def _sum_of_squares(along: Floats) -> Floats:
    """Sums over the first axis of squares, added one direction after the other whatever the number of events."""
    total = np.zeros(along.shape[1])
    for row in along:                                           # turns: the directions, 32 at most
        total += row * row
    return total


def _packed(values: Floats, kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode()


def _unpacked(text: object, kind: str) -> Floats:
    return np.frombuffer(base64.b64decode(str(text), validate=True), dtype=kind).astype(np.float64)


def _whole(value: object, key: str) -> int:
    if type(value) is not int:
        raise ValueError(f"{key} is {value!r}")
    return value


def _refuse(got: str) -> NoReturn:
    raise ValueError(f"embedding: expected a column as it was fitted, got {' '.join(got.split())[:200]}; "
                     "fit the reference again, or restore the file")
