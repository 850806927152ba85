"""Series as text: label text is prepared once, values are written as text.

Most of the cost of a scrape is text that never changes: names, labels, escapes. A `Series` keeps that text as one
template per family and stream, with a gap where each value goes; a cycle fills the gaps in one call. On 100,000 series
that is many times cheaper than setting as many gauges of the client library and letting it write them (benchmarks/
export_100k holds the ratio). It costs about 120 bytes of template per series, and the same again while text is made.

The invariant: a family appears once and in one piece, head first, so the parts of all streams are joined per family
(`Page`). The format is Prometheus' text format 0.0.4; it reads `nan`, `inf` and `-inf` as Python writes them.
Neighbours: `monitor.metrics` gives names and labels, `monitor.expose.exporter` the values.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from monitor.metrics import CATALOGUE, Metric

_LABEL = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})


def head(metric: Metric) -> str:
    """The HELP and TYPE lines of a family."""
    return f"# HELP {metric.name} {metric.help.translate(_HELP)}\n# TYPE {metric.name} {metric.type}\n"


def _written(name: str, names: Sequence[str], values: Sequence[str]) -> str:
    """Name and labels of one series, with a blank after them; lone surrogates, which UTF-8 cannot write, become '?'."""
    pairs = ",".join(f'{key}="{value.translate(_LABEL)}"' for key, value in zip(names, values, strict=True))
    text = f"{name}{{{pairs}}} " if pairs else f"{name} "
    return text.encode("utf-8", "replace").decode()


#: For the few series that the service writes every turn; large sets are `Series`, which keep their text themselves.
_prefix = lru_cache(maxsize=16_384)(_written)


class Series:
    """The series of one family whose label values are fixed.

    labels : per series the values of the family's labels, in the catalogue's order

    >>> from monitor.metrics import LAG
    >>> print(Series(LAG, [("events", "0"), ("events", "1")]).text([3, 4]), end="")
    tidemark_lag_events{topic="events",partition="0"} 3.0
    tidemark_lag_events{topic="events",partition="1"} 4.0
    """

    __slots__ = ("_count", "_template", "metric")

    def __init__(self, metric: Metric, labels: Iterable[Sequence[str]]) -> None:
        prefixes = [_written(metric.name, metric.labels, values).replace("%", "%%") for values in labels]
        self.metric = metric
        self._count = len(prefixes)
        self._template = "%r\n".join([*prefixes, ""])

    def __len__(self) -> int:
        return self._count

    def text(self, values: NDArray[np.float64] | Iterable[float]) -> str:
        """The lines of these series; as many values as labels, in the same order, NaN allowed."""
        return self._template % tuple(np.asarray(values, np.float64).tolist() if isinstance(values, np.ndarray)
                                      else map(float, values))


class Histogram:
    """A classic histogram of one label set: cumulated counts per bucket, sum and count."""

    __slots__ = ("_bounds", "_counts", "_sum", "_template")

    def __init__(self, metric: Metric, labels: Sequence[str]) -> None:
        self._bounds = metric.buckets
        self._counts = [0] * (len(metric.buckets) + 1)
        self._sum = 0.0
        bounds = [*map(repr, metric.buckets), "+Inf"]
        buckets = [_prefix(f"{metric.name}_bucket", (*metric.labels, "le"), (*labels, bound))
                   for bound in bounds]
        rest = [_prefix(f"{metric.name}_{part}", metric.labels, tuple(labels)) for part in ("sum", "count")]
        self._template = "%r\n".join([*(prefix.replace("%", "%%") for prefix in (*buckets, *rest)), ""])

    def __len__(self) -> int:
        return len(self._counts) + 2

    def observe(self, value: float) -> None:
        """Count one value; a value equal to a bucket's bound belongs to it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def text(self) -> str:
        """The lines of the histogram."""
        cumulated = np.cumsum(self._counts).tolist()
        return self._template % (*cumulated, self._sum, cumulated[-1])


class Page:
    """The families of one exposition, each in one piece in the catalogue's order, whatever the order they came in."""

    def __init__(self) -> None:
        self._parts: dict[str, list[str]] = {name: [] for name in CATALOGUE}
        self.series = 0                             # of all families added so far

    def add(self, metric: Metric, text: str, series: int) -> None:
        """Add finished lines of a family; `series` is how many they are."""
        self._parts[metric.name].append(text)
        self.series += series

    def put(self, metric: Metric, samples: Iterable[tuple[Sequence[str], float]]) -> None:
        """Add (label values, value) pairs of a family: for the few series whose labels come and go."""
        lines = [f"{_prefix(metric.name, metric.labels, tuple(labels))}{float(value)!r}\n" for labels, value in samples]
        self.add(metric, "".join(lines), len(lines))

    def text(self) -> str:
        """The whole exposition; families without a series keep their head, so that names and types are always there."""
        return "".join(head(CATALOGUE[name]) + "".join(parts) for name, parts in self._parts.items())
