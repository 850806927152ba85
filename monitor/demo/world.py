"""The demo's world: a camera that shows handwritten digits, and that is bumped one day.

The images are scikit-learn's digits: 1,797 real scans of 8 x 8 pixels, grey values 0 to 16, which ship inside the
package. An event is one of them, drawn with replacement, with sensor noise of its own; the reference and the stream
draw from the same pool, because a finite pool differs from another finite pool and would look like drift. After the
bump the camera hangs tilted and its sensor is dirty: every image is rotated, sheared and darker, and noisier.

Everything is a function of the seed and of how many events were drawn. Rotation and shear with linear interpolation
are one 64 x 64 matrix, made once, so that a thousand events cost two small matrix products, about 1 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from monitor.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = NDArray[np.float64]

#: The inputs, row by row from the top left.
PIXELS = tuple(f"p{row}{column}" for row in range(8) for column in range(8))

NOISE = 1.2                                          # grey values, standard deviation, every event anew
TILT_DEGREES = 18.0
TILT_SHEAR = 0.1
TILT_BRIGHTNESS = 0.8
TILT_NOISE = 2.0


@dataclass(frozen=True)
class Frames:
    """Events of the camera: images (n, 64) with grey values 0 to 16 to one decimal, and the digits they show."""

    images: Floats
    labels: NDArray[np.int64]


class Camera:
    """The camera and the digits before it.

    seed : of everything it draws
    """

    def __init__(self, seed: int) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ConfigError("the demo: expected the package scikit-learn, found none; "
                              "install it with: pip install 'tidemark[demo]'") from None
        images, labels = load_digits(return_X_y=True)
        self._pools = (np.asarray(images, float), np.asarray(images, float) @ tilt_matrix().T * TILT_BRIGHTNESS)
        self._labels = np.asarray(labels, np.int64)
        self._rng = np.random.default_rng(seed)

    def frames(self, tilted: Sequence[bool] | NDArray[np.bool_]) -> Frames:
        """The next events, one for each entry: before the bump (False) or after it (True)."""
        after = np.asarray(tilted, bool)
        chosen = self._rng.integers(0, len(self._labels), len(after))
        images = np.where(after[:, None], self._pools[1][chosen], self._pools[0][chosen])
        noise = np.where(after, TILT_NOISE, NOISE)[:, None]
        seen = images + self._rng.standard_normal(images.shape) * noise
        return Frames(np.round(np.clip(seen, 0.0, 16.0), 1).astype(np.float64), self._labels[chosen])


def tilt_matrix(degrees: float = TILT_DEGREES, shear: float = TILT_SHEAR) -> Floats:
    """What rotation and shear around the middle do to 64 pixels, shape (64, 64); interpolated, black outside."""
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    back = np.linalg.inv(turn @ np.array([[1.0, shear], [0.0, 1.0]]))
    matrix = np.zeros((64, 64))
    for target in range(64):                         # where each pixel of the new image came from
        place = back @ (np.array(divmod(target, 8)) - 3.5) + 3.5
        low = np.floor(place).astype(int)
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            source = low + np.array((row, column))
            if (source >= 0).all() and (source <= 7).all():
                matrix[target, source[0] * 8 + source[1]] = np.prod(1 - np.abs(place - source))
    return matrix


def write_events(folder: Path, frames: Frames, start_ms: int, rate: float) -> None:
    """Frames as captured events without a model, the training data of the first one: Parquet in `folder`."""
    import pyarrow
    from pyarrow import parquet

    n = len(frames.labels)
    columns: dict[str, object] = {name: frames.images[:, i] for i, name in enumerate(PIXELS)}   # 64 turns
    columns["id"] = [f"history-{i}" for i in range(n)]
    columns["timestamp"] = start_ms + (np.arange(n) * 1000 / rate).astype(np.int64)
    columns["label"] = [str(label) for label in frames.labels.tolist()]
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), folder / "history.parquet")
