"""A judged pane as arrays with one entry per row of the reference: the form in which it is shown, exported and worded.

The scan describes a row by its strongest comparison, in standard deviations for a direction and in shares of events for
a bin. A panel needs one unit, the one of `alarm.ignore_below` and `retrain.above`; so a bin's share is divided by the
standard deviation of being in that bin, with the floor that the severe score has: the scale on which the scan itself
compares a bin with the tolerance. A row that takes part in no window has no score and no effect: NaN, never 0.

Bins are shown as the scan sees them (at most some 20 a column), since the fine ones under them are too many to look at.

What depends on the reference alone is made once, in a `Frame`; a pane costs a few array operations. Neighbours:
`detectors.scan` (whose scores these are), `monitor.expose.streams` (text), `monitor.expose.views` (JSON).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.reference import Reference
from detectors.scan import Scores
from monitor.flow import Evaluation
from monitor.metrics import OTHER

Values = NDArray[np.float64]

#: model, version, segment
StreamKey = tuple[str, str, str]

#: Least variance of a bin, as in the scan's severe score: else one event in a bin of its own is an endless effect.
_VARIANCE_FLOOR = 0.01
#: Role of rows that are made of several columns.
_JOINT = "joint"
_WORDS = ("bin ", "level ", "value ")
#: Comparisons of the scan before its bins.
_DIRECTIONS = 4


class WindowCounts(NamedTuple):
    """The window that the distances describe: counts per row and fine bin, shape (J, B), and its events."""

    counts: NDArray[np.int64]
    events: int


class Frame:
    """What every pane under one reference shares: names, roles, bins.

    columns, roles : per row; column names are distinct and none of them is the name of the folded rest
    bins           : per row the labels of its scan bins, distinct
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.columns = distinct([OTHER, *reference.rows])[1:]
        self.roles: tuple[str, ...] = tuple(column.role if column else _JOINT for column in reference.column_of_row)
        words = [row.binning.scan_words() for row in reference.records]
        self.bins = tuple(distinct(map(_bare, row)) for row in words)

    def visible(self, threshold: float) -> Values:
        """Smallest shift of each row's mean that an endless window finds almost surely, reference s.d., shape (J,)."""
        return (threshold + 2) * np.sqrt(self.reference.deff / self.reference.arrays.m)

    def scale(self, scores: Scores) -> Values:
        """What the rows' effects are divided by to be in standard deviations, shape (J,): 1 for directions."""
        arrays, scale = self.reference.arrays, np.ones(len(self.columns))
        for row, unit in enumerate(scores.unit):                # turns: the rows; only bins do anything
            if unit == "share":
                p0, m = arrays.p0[row, scores.test[row] - _DIRECTIONS], arrays.m[row]
                events = scores.window_events[row]
                pooled = ((p0 + scores.effect[row]) * events + p0 * m) / (events + m)
                scale[row] = np.sqrt(max(pooled * (1 - pooled), _VARIANCE_FLOOR))
        return scale

    def shares(self, row: int, counts: NDArray[np.int64]) -> Values:
        """Shares of events in the scan bins of a row, from its fine counts; NaN without events."""
        fold = self.reference.arrays.scan_of_fine[row]
        folded = np.bincount(fold, weights=counts[row, : len(fold)], minlength=len(self.bins[row]))
        total = folded.sum()
        return folded / total if total else np.full(len(folded), np.nan)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One judged pane, ready to be shown; arrays have one entry per row, higher is more drift, NaN is not known.

    score, severe        : 1 = alarm, 1 = worth a retraining
    effect, effect_lower : reference standard deviations, never negative      visible : smallest visible shift, the same
    distances            : detector -> values      thresholds : detector -> score at which it matters
    window               : counts behind distances and shares, where they were given
    """

    evaluation: Evaluation
    frame: Frame
    score: Values
    severe: Values
    effect: Values
    effect_lower: Values
    visible: Values
    distances: Mapping[str, Values]
    thresholds: Mapping[str, float]
    window: WindowCounts | None

    @classmethod
    def of(cls, evaluation: Evaluation, frame: Frame, distances: Mapping[str, Values], window: WindowCounts | None,
           thresholds: Mapping[str, float]) -> Judged:
        """The evaluation under its reference; distances may cover all rows or the columns only."""
        scores, rows = evaluation.scores, len(frame.columns)
        scale = frame.scale(scores)
        silent = np.array([state == "too_few_events" for state in scores.state], bool)
        lower = np.where(scores.effect >= 0, scores.effect_lower, -scores.effect_upper)

        def known(values: Values) -> Values:
            return np.where(silent, np.nan, values)

        return cls(
            evaluation=evaluation, frame=frame, thresholds=dict(thresholds), window=window,
            score=known(scores.evidence),
            severe=known(scores.z_severe.max(axis=1) / scores.threshold),
            effect=known(np.abs(scores.effect) / scale), effect_lower=known(np.maximum(lower, 0.0) / scale),
            visible=frame.visible(scores.threshold),
            distances={name: np.concatenate([values, np.full(rows - len(values), np.nan)])
                       for name, values in distances.items()})

    @property
    def key(self) -> StreamKey:
        """Model, version and segment."""
        window = self.evaluation.window
        return window.model, window.version, window.segment

    @property
    def rank(self) -> Values:
        """What rows are ordered by, shape (J,): the higher of the two scores, those without one last."""
        return np.nan_to_num(np.fmax(self.score, self.severe), nan=-1.0)

    @property
    def window_events(self) -> int:
        """Events of the window that the distances describe; of the pane, where no window was given."""
        return self.window.events if self.window is not None else self.evaluation.window.profile.events

    def shares(self, row: int) -> tuple[Values, Values]:
        """Shares of events per scan bin of a row, in the reference and in the window."""
        assert self.window is not None
        return self.frame.shares(row, self.frame.reference.arrays.counts), self.frame.shares(row, self.window.counts)


def distinct(names: Iterable[str], length: int = 128) -> tuple[str, ...]:
    """Names as label values: at most `length` characters, and a repeated one gets its number.

    Two equal label sets would make Prometheus refuse the whole scrape.

    >>> distinct(["a", "b", "a"])
    ('a', 'b', 'a#2')
    """
    seen: Counter[str] = Counter()
    taken: set[str] = set()
    result = []
    for name in names:
        short = name if len(name) <= length else name[:length - 1] + "…"
        unique = short
        while unique in taken:
            seen[short] += 1
            unique = f"{short}#{seen[short] + 1}"
        taken.add(unique)
        result.append(unique)
    return tuple(result)


def _bare(word: str) -> str:
    """A scan bin's words without what kind of bin it is: the label `bin` says that already."""
    return next((word.removeprefix(prefix) for prefix in _WORDS if word.startswith(prefix)), word)
