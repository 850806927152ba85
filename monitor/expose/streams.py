"""The drift families of one stream (model, version, segment) as text, within the series that it may take.

Every column of a stream costs one series per detector and three more; the columns that moved most add two per bin. A
stream that may not show everything shows the columns with the highest scores, folds the rest into one `__other__`
that carries their highest values, and says how many it folded. A column that is shown stays until another one's score
is higher by half an alarm, so that noise does not make series come and go: each series that Prometheus has ever seen
costs it memory.

Label text is prepared when the choice of columns changes and kept until then; a pane that is judged costs array
selections and one filling of templates. `share_out` divides the common limit. Neighbours: `monitor.expose.exporter`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from monitor import metrics
from monitor.expose.exposition import Page, Series
from monitor.expose.judged import Judged, Values
from monitor.metrics import OTHER, Metric

#: A hidden column takes a shown one's place when its score is this much higher; 1 is an alarm, noise stays below half.
_STAY = 0.5
#: Columns whose bins are shown: more than a person compares at a glance costs series for nothing.
_BIN_COLUMNS = 5
#: Bins may take this part of a stream's room at most; the scores of more columns tell more than more bins.
_BIN_PART = 4


def share_out(room: int, needs: Sequence[int]) -> list[int]:
    """Series that each stream may take: all that it needs, or an equal part of what the smaller ones leave.

    >>> share_out(100, [10, 500, 60])
    [10, 45, 45]
    """
    given = [0] * len(needs)
    left = max(room, 0)
    for done, index in enumerate(sorted(range(len(needs)), key=lambda i: needs[i])):    # streams, smallest need first
        given[index] = min(needs[index], left // (len(needs) - done))
        left -= given[index]
    return given


class Stream:
    """What one stream shows: its latest judged pane, the columns chosen, and their finished text."""

    def __init__(self, judged: Judged) -> None:
        self.judged = judged
        self.hidden = 0                             # columns folded into one
        self._room = -1
        self._shown: tuple[int, ...] = ()
        self._bins: tuple[int, ...] = ()
        self._folds = False                         # whether there is room for the folded rest
        self._series: dict[Metric, Series] = {}
        self._texts: list[tuple[Metric, str, int]] = []
        self._labelled: tuple[object, ...] = ()     # what the label text was prepared for: of the columns,
        self._with_bins: tuple[object, ...] = ()    # and of the bins
        self._stale = True

    def update(self, judged: Judged) -> None:
        """Take a newer pane; the text is made when it is asked for."""
        if judged.frame is not self.judged.frame:   # another reference: nothing of the old choice means anything
            self._shown = self._bins = ()
        self.judged = judged
        self._stale = True

    @property
    def fixed(self) -> int:
        """Series that are shown whatever the limit: state, thresholds, events, hidden columns."""
        return len(metrics.STATES) + len(self.judged.thresholds) + 2

    @property
    def need(self) -> int:
        """Series beyond the fixed ones that would show everything."""
        judged = self.judged
        bins = sorted((2 * len(labels) for labels in judged.frame.bins), reverse=True)[:_BIN_COLUMNS]
        return len(judged.frame.columns) * self._column_cost + (sum(bins) if judged.window is not None else 0)

    @property
    def _column_cost(self) -> int:
        return 2 + len(self.judged.distances) + 3   # two scans, distances, effect, its lower end, the visible shift

    def put(self, page: Page, room: int) -> None:
        """Add the stream's families to the page, with at most `room` series beyond the fixed ones."""
        if self._stale or room != self._room:
            self._choose(room)
            self._label()
            self._texts = [(metric, self._series[metric].text(values), len(self._series[metric]))
                           for metric, values in self._values().items()]
            self._room, self._stale = room, False
        for metric, text, series in self._texts:
            page.add(metric, text, series)

    def _choose(self, room: int) -> None:
        """Which columns are shown, and the bins of which."""
        judged, cost = self.judged, self._column_cost
        rank, frame = judged.rank, self.judged.frame
        room_for_bins = max(room // _BIN_PART, room - len(judged.frame.columns) * cost)
        bins: list[int] = []
        for column in highest(rank, self._bins, min(_BIN_COLUMNS, len(rank)) if judged.window is not None else 0):
            if 2 * len(frame.bins[column]) <= room_for_bins:
                room_for_bins -= 2 * len(frame.bins[column])
                room -= 2 * len(frame.bins[column])
                bins.append(column)
        slots = room // cost
        count = len(rank) if slots >= len(rank) else max(slots - 1, 0)     # one slot is the folded rest's
        self._bins = tuple(sorted(bins))
        self._shown = tuple(sorted(highest(rank, self._shown, count)))
        self.hidden = len(rank) - count
        self._folds = count < len(rank) and slots >= 1

    def _label(self) -> None:
        """Prepare the label text, where what is shown is not what was shown before."""
        judged = self.judged
        frame, key = judged.frame, judged.key
        with_bins = (frame, self._bins)
        if with_bins != self._with_bins:            # these change more often than all others together
            self._with_bins = with_bins
            self._series[metrics.BIN_SHARE] = Series(metrics.BIN_SHARE, [
                (*key, frame.columns[column], label, of) for column in self._bins
                for of in metrics.BIN_SHARE.values for label in frame.bins[column]])
        labelled = (frame, self._shown, self._folds, tuple(judged.distances), tuple(judged.thresholds))
        if labelled == self._labelled:
            return
        self._labelled = labelled
        named = [(frame.roles[column], frame.columns[column]) for column in self._shown]
        if self._folds:
            named.append((OTHER, OTHER))
        detectors = ("scan", "scan_severe", *judged.distances)
        self._series |= {series.metric: series for series in (
            Series(metrics.SCORE, [(*key, *name, detector) for detector in detectors for name in named]),
            Series(metrics.THRESHOLD, [(*key, detector) for detector in judged.thresholds]),
            Series(metrics.EFFECT, [(*key, *name) for name in named]),
            Series(metrics.EFFECT_LOWER, [(*key, *name) for name in named]),
            Series(metrics.SMALLEST_VISIBLE_SHIFT, [(*key, column) for _, column in named]),
            Series(metrics.WINDOW_EVENTS, [key]),
            Series(metrics.STATE, [(*key, state) for state in metrics.STATES]),
            Series(metrics.COLUMNS_HIDDEN, [key]),
        )}

    def _values(self) -> Mapping[Metric, Values]:
        """The values of every family, in the order of its label text."""
        judged = self.judged
        shown = np.array(self._shown, np.intp)
        rest = np.delete(np.arange(len(judged.frame.columns)), shown) if self._folds else None

        def chosen(values: Values) -> Values:
            return values[shown] if rest is None else np.append(values[shown], np.fmax.reduce(values[rest]))

        scores = [judged.score, judged.severe, *judged.distances.values()]
        shares = [side for column in self._bins for side in judged.shares(column)]
        return {
            metrics.SCORE: np.concatenate([chosen(values) for values in scores]),
            metrics.THRESHOLD: np.array(list(judged.thresholds.values()), float),
            metrics.EFFECT: chosen(judged.effect),
            metrics.EFFECT_LOWER: chosen(judged.effect_lower),
            metrics.SMALLEST_VISIBLE_SHIFT: chosen(judged.visible),
            metrics.BIN_SHARE: np.concatenate(shares) if shares else np.empty(0),
            metrics.WINDOW_EVENTS: np.array([judged.window_events], float),
            metrics.STATE: np.array([state == judged.evaluation.state for state in metrics.STATES], float),
            metrics.COLUMNS_HIDDEN: np.array([self.hidden], float),
        }


def highest(rank: NDArray[np.float64], before: Sequence[int], count: int) -> list[int]:
    """The `count` columns of highest rank, highest first; those shown before are preferred to slightly higher ones."""
    if count <= 0:
        return []
    preferred = rank.copy()
    preferred[list(before)] += _STAY
    return [int(column) for column in np.argsort(-preferred, kind="stable")[:count]]
