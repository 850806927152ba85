"""Columns as one float32 matrix, by numbers that the training rows alone fixed; and what in it is an image.

    Encoder   fit on the training rows, then any rows -> float32 (n, width)
    image     which columns are the pixels of one image, and its shape (channels, height, width)

The invariant: the encoder is plain data (`columns`, written to model.json), and the same row gives the same numbers
wherever it is encoded: in training, in serving, in another process. No value can make the matrix infinite or NaN:
missing numbers are 0 with an indicator beside them, huge ones are cut, unknown categories fall into fixed buckets.

Cost: about 10 ns a number and 100 ns a category or text. Neighbours: `events` reads, `network` takes the matrix.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from contract import BadInput, BadUsage
from events import Events, Values, missing
from numpy.typing import NDArray

Floats = NDArray[np.float32]
#: A category's own columns, columns for all its other levels, columns for the words of a text.
LEVELS_MAX, HASH_BUCKETS, WORD_BUCKETS = 64, 8, 128
#: Scaled numbers are cut here: one absurd value must not steer a whole batch.
CUT = 8.0
#: Mean and scale come from the values between these shares, so that one 1e300 does not make all others equal.
TRIMMED = (0.005, 0.995)


class Encoder:
    """Columns as one float32 matrix.

    A numeric column becomes (x - mean) / scale, cut at 8, with 0 for missing and, where training rows missed it, an
    indicator. A vector becomes one such column per number; one that is an image has one mean and scale for all pixels.
    A category becomes one column per frequent level (at most 64), one for missing, and 8 for all other levels, by
    CRC-32: a level never seen still lands somewhere, always the same. A text becomes 128 buckets of its words.
    """

    def __init__(self, columns: Sequence[Mapping[str, Any]]) -> None:
        self.columns = [dict(column) for column in columns]

    @classmethod
    def fit(cls, features: Mapping[str, Values], *, pixels: Sequence[str] = (), texts: Sequence[str] = ()) -> Encoder:
        """The encoder of these training rows; pixels come first and share one mean and scale."""
        columns: list[dict[str, Any]] = []
        together = centre(np.concatenate([features[name].ravel() for name in pixels])) if pixels else None
        for name in (*pixels, *(name for name in features if name not in pixels)):       # one turn per column
            values = features[name]
            absent = missing(values)
            if name in texts:
                columns.append({"name": name, "kind": "text"})
            elif values.dtype == object:
                levels, counts = np.unique(values[~absent].astype(str), return_counts=True)
                order = np.lexsort((levels, -counts))[:LEVELS_MAX]
                columns.append({"name": name, "kind": "category", "levels": sorted(levels[order].tolist())})
            else:
                mean, scale = together or centre(values)
                size = {} if values.ndim == 1 else {"size": values.shape[1]}
                columns.append({"name": name, "kind": "numeric" if values.ndim == 1 else "vector", "mean": mean,
                                "scale": scale, "missing": bool(absent.any()) and name not in pixels, **size})
        return cls(columns)

    def width(self) -> int:
        """Columns of the matrix."""
        return sum(self._width(column) for column in self.columns)

    @staticmethod
    def _width(column: Mapping[str, Any]) -> int:
        if column["kind"] == "category":
            return len(column["levels"]) + 1 + HASH_BUCKETS
        if column["kind"] == "text":
            return WORD_BUCKETS
        return int(column.get("size", 1)) + bool(column["missing"])

    def matrix(self, features: Mapping[str, Values]) -> Floats:
        """Rows of features as float32 (n, width)."""
        rows = len(next(iter(features.values())))
        matrix = np.empty((rows, self.width()), np.float32)
        place = 0
        for column in self.columns:                      # one turn per column
            end = place + self._width(column)
            self._write(column, features[column["name"]], matrix[:, place:end])
            place = end
        return matrix

    @staticmethod
    def _write(column: Mapping[str, Any], values: Values, target: Floats) -> None:
        """One column into its part of the matrix."""
        if column["kind"] == "category":
            one_hot(column["levels"], values, target)
        elif column["kind"] == "text":
            words(values, target)
        else:
            if values.ndim == 2 and values.shape[1] != column.get("size"):
                raise BadInput(f"column {column['name']}: expected lists of {column.get('size')} numbers, "
                               f"got {values.shape[1]}; train on data of one length")
            numbers = values.reshape(len(values), -1).astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):        # inf - inf is missing, an overflow is cut
                scaled = np.clip((numbers - column["mean"]) / column["scale"], -CUT, CUT)
            size = scaled.shape[1]
            target[:, :size] = np.nan_to_num(scaled)
            if column["missing"]:
                target[:, size] = missing(values)


def centre(values: Values) -> tuple[float, float]:
    """Mean and scale of the finite values between the TRIMMED shares; (0, 1) where there is none, scale 1 for a constant."""
    # Cut where a square still fits into a float64 however many are summed up.
    finite = np.clip(values[np.isfinite(values)].astype(np.float64), -1e150, 1e150)
    if not len(finite):
        return 0.0, 1.0
    trimmed = np.clip(finite, *np.quantile(finite, TRIMMED))
    if trimmed.min() == trimmed.max():                   # a rare event among zeros: the rare ones make the scale
        trimmed = finite
    mean, scale = float(trimmed.mean()), float(trimmed.std())
    return mean, scale if scale > 1e-12 * max(1.0, abs(mean)) else 1.0


def one_hot(levels: Sequence[str], values: Values, target: Floats) -> None:
    """One category column into float32 (n, levels + 1 + HASH_BUCKETS)."""
    places: dict[str | None, int] = {level: i for i, level in enumerate(levels)}
    places[None] = len(levels)
    for level in set(values.tolist()) - places.keys():
        places[level] = len(levels) + 1 + zlib.crc32(str(level).encode()) % HASH_BUCKETS
    target[:] = 0.0
    target[np.arange(len(values)), [places[value] for value in values.tolist()]] = 1.0


def words(values: Values, target: Floats) -> None:
    """One text column into float32 (n, WORD_BUCKETS): how often each bucket's words occur, each row of length 1."""
    target[:] = 0.0
    buckets: dict[str, int] = {}
    for row, text in enumerate(values.tolist()):         # turns: events, as there is no array of words
        for word in (text or "").lower().split():
            if word not in buckets:
                buckets[word] = zlib.crc32(word.encode()) % WORD_BUCKETS
            target[row, buckets[word]] += 1.0
    target /= np.maximum(np.linalg.norm(target, axis=1, keepdims=True), 1e-6)


def image(events: Events, network: str, shape: str) -> tuple[tuple[str, ...], tuple[int, int, int] | None]:
    """The columns that are an image's pixels and its shape (channels, height, width); () and None for a table.

    network : "image", "tabular", or "auto": an image where a shape was given or nested lists were captured
    shape   : "8x8" or "3x32x32"; empty: nested lists tell it, else the image is square, of 1 or 3 channels

    The image is the one vector column if there is one, else all numeric columns in their order, row by row.
    """
    if network == "tabular" or (network == "auto" and not shape and not events.shapes):
        return (), None
    lists = [name for name in (*events.shapes, *events.features)
             if name in events.features and events.features[name].ndim == 2]
    numeric = [name for name, values in events.features.items() if values.dtype != object and values.ndim == 1]
    names = tuple(lists[:1] or numeric)
    pixels = sum(1 if events.features[name].ndim == 1 else events.features[name].shape[1] for name in names)
    if shape:
        sizes = [int(size) if size.isdigit() else 0 for size in shape.lower().split("x")]
        if len(sizes) not in (2, 3) or min(sizes) < 1:
            raise BadUsage(f"--image-shape: expected height x width or channels x height x width, such as 28x28 or "
                           f"3x32x32, got {shape!r}; give whole numbers")
        whole = (1, *sizes) if len(sizes) == 2 else tuple(sizes)
    else:
        nested = events.shapes.get(names[0]) if names else None
        whole = square(pixels) if nested is None else nested_shape(names[0], nested)
    if math.prod(whole) != pixels or min(whole) < 1:
        raise BadInput(f"--image-shape: expected {'x'.join(map(str, whole)) if min(whole) else 'a square'} to hold the "
                       f"{pixels} pixels of an event, got {math.prod(whole)}; give --image-shape, name the pixels by "
                       "--features, or use --network tabular")
    return names, (whole[0], whole[1], whole[2])


def nested_shape(name: str, sizes: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width) of nested lists: [height][width], or [channels][height][width]."""
    if len(sizes) == 2:
        return 1, sizes[0], sizes[1]
    if len(sizes) != 3 or sizes[0] not in (1, 2, 3, 4):
        raise BadInput(f"column {name}: expected lists as [height][width] or [channels][height][width] with 1 to 4 channels, "
                       f"got {' x '.join(map(str, sizes))}; write channels first")
    return sizes[0], sizes[1], sizes[2]


def square(pixels: int) -> tuple[int, int, int]:
    """The square image of so many pixels, of one or three channels; zeros where there is none."""
    for channels in (1, 3):
        side = math.isqrt(pixels // channels)
        if side >= 2 and channels * side * side == pixels:
            return channels, side, side
    return 0, 0, 0


