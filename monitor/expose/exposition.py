"""Series as text: label text is prepared once, values are written as text.

Most of the cost of a scrape is text that never changes: names, labels, escapes. A `Series` keeps that text as one
template per family and stream, with a gap where each value goes; a cycle fills the gaps in one call. On 100,000 series
that is many times cheaper than setting as many gauges of the client library and letting it write them (benchmarks/
export_100k holds the ratio). It costs about 120 bytes of template per series, and the same again while text is made.

The invariant: a family appears once and in one piece, head first, so the parts of all streams are joined per family
(`Page`). What is finished is an `Exposition`: the lines of every family as bytes, made once, which both formats share. The
one is Prometheus' text format 0.0.4; it reads `nan`, `inf` and `-inf` as Python writes them. The other is OpenMetrics 1.0:
other heads, an end, and exemplars, which name the alarm or the launch that a counter counted last.
Neighbours: `monitor.metrics` gives names and labels, `monitor.expose.exporter` the values.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.metrics import CATALOGUE, Metric

_LABEL = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})
#: What the bytes of an answer to a scrape are, in either format.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
#: Characters of an exemplar's labels and values together, by the specification; a longer one is left out.
EXEMPLAR_CHARACTERS = 128
#: Times beyond it are no seconds since 1970 that anybody meant; such an exemplar has none.
_TIME_MAX = 1e11


def head(metric: Metric) -> str:
    """The HELP and TYPE lines of a family."""
    return f"# HELP {metric.name} {metric.help.translate(_HELP)}\n# TYPE {metric.name} {metric.type}\n"


def openmetrics_head(metric: Metric) -> str:
    """The TYPE and HELP lines of a family in OpenMetrics, where counters and infos are called without their endings."""
    name = metric.name.removesuffix({"counter": "_total", "info": "_info"}.get(metric.kind, ""))
    return f"# TYPE {name} {metric.kind}\n# HELP {name} {metric.help.translate(_LABEL)}\n"


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header asks for OpenMetrics and for nothing else more; without one the answer is plain text.

    >>> wants_openmetrics("application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
    True
    >>> wants_openmetrics("text/plain, application/openmetrics-text;q=0.5"), wants_openmetrics("*/*")
    (False, False)
    """
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in accept.lower().split(","):
        kind, *parameters = (word.strip() for word in part.split(";"))
        said = dict(word.partition("=")[::2] for word in parameters)
        if kind not in best or said.get("version", "1.0.0").strip('"') not in ("0.0.1", "0.0.4", "1.0.0"):
            continue
        try:
            quality = float(said.get("q", "1"))
        except ValueError:
            quality = 0.0
        best[kind] = max(best[kind], quality if 0 <= quality <= 1 else 0.0)
    return best["application/openmetrics-text"] > 0 and best["application/openmetrics-text"] >= best["text/plain"]


class Exemplar(NamedTuple):
    """What a counter counted last: the name and the value of one label, and when, in seconds since 1970."""

    label: str
    value: str
    at: float

    def text(self) -> str:
        """As it stands behind a sample; nothing where the specification has no room for it."""
        if len(self.label) + len(self.value) > EXEMPLAR_CHARACTERS:
            return ""
        at = f" {float(self.at)!r}" if 0 < self.at < _TIME_MAX else ""
        value = self.value.translate(_LABEL).encode("utf-8", "replace").decode()
        return f' # {{{self.label}="{value}"}} 1.0{at}'


@dataclass(frozen=True, slots=True)
class Exposition:
    """All families of ours, finished: their lines as UTF-8, in the catalogue's order.

    bodies : family -> lines, without a head      told : the same of the counters that have exemplars, with these
    """

    bodies: Mapping[str, bytes]
    told: Mapping[str, bytes]

    def text(self) -> bytes:
        """In Prometheus' text format; families without a series keep their head, so that names and types are always there."""
        return b"".join(part for name, body in self.bodies.items() for part in (_HEADS[name][0], body))

    def openmetrics(self) -> bytes:
        """In OpenMetrics, without the line that ends it: more families may follow."""
        return b"".join(part for name, body in self.bodies.items() for part in (_HEADS[name][1], self.told.get(name, body)))


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
        self._told: dict[str, list[str]] = {}       # of counters with exemplars
        self.series = 0                             # of all families added so far

    def add(self, metric: Metric, text: str, series: int) -> None:
        """Add finished lines of a family; `series` is how many they are."""
        self._parts[metric.name].append(text)
        self.series += series

    def put(self, metric: Metric, samples: Iterable[tuple[Sequence[str], float]],
            exemplars: Mapping[tuple[str, ...], Exemplar] | None = None) -> None:
        """Add (label values, value) pairs of a family: for the few series whose labels come and go.

        exemplars : of a counter, by label values; a family that has any is only ever put with them
        """
        pairs = [(tuple(labels), f"{_prefix(metric.name, metric.labels, tuple(labels))}{float(value)!r}")
                 for labels, value in samples]
        self.add(metric, "".join(f"{line}\n" for _, line in pairs), len(pairs))
        if exemplars is not None:
            self._told.setdefault(metric.name, []).extend(
                f"{line}{exemplars[labels].text() if labels in exemplars else ''}\n" for labels, line in pairs)

    def finished(self) -> Exposition:
        """What was added, as it is published."""
        return Exposition({name: "".join(parts).encode() for name, parts in self._parts.items()},
                          {name: "".join(lines).encode() for name, lines in self._told.items()})

    def text(self) -> str:
        """The whole exposition in Prometheus' text format."""
        return self.finished().text().decode()


#: The heads of every family, in the one format and in the other.
_HEADS = {name: (head(metric).encode(), openmetrics_head(metric).encode()) for name, metric in CATALOGUE.items()}
