"""What further detectors say, as text: the readings of one stream, within the series that they may take.

A reading costs its score and, where they exist, its verdict, its band without drift and its corrected score; a detector
costs its threshold and the end of the pane that it judged. Detectors that may not show everything share the room equally;
each then shows the columns with its own highest scores and folds the rest into one `__other__` with their highest score
and verdict. A column that is shown stays until another one's score is clearly higher, as it does for the scan (`streams`).

Cost: 1-2 us per series of a stream whose readings changed. Neighbours: `monitor.decide.observe` makes the readings,
`monitor.expose.exporter` shares out the room, `monitor.expose.views` words them for the API.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monitor import metrics
from monitor.expose.exposition import Page
from monitor.expose.judged import StreamKey, distinct
from monitor.expose.streams import highest, share_out
from monitor.flow import Reading
from monitor.metrics import OTHER


class Observed:
    """The latest readings of one stream's further detectors."""

    def __init__(self, key: StreamKey) -> None:
        self.key = key
        self.readings: tuple[Reading, ...] = ()
        self._detectors: dict[str, list[Reading]] = {}
        self._shown: dict[str, list[str]] = {}      # columns that were shown last, where not all could be

    def update(self, readings: Sequence[Reading]) -> None:
        """Take newer readings."""
        self.readings = tuple(readings)
        self._detectors = {}
        for reading in readings:
            self._detectors.setdefault(reading.detector, []).append(reading)

    @property
    def fixed(self) -> int:
        """Series that are shown whatever the limit: pane and threshold of each detector."""
        return sum(1 + (readings[0].threshold is not None) for readings in self._detectors.values())

    @property
    def need(self) -> int:
        """Series beyond the fixed ones that would show everything."""
        return sum(map(_cost, self.readings))

    def put(self, page: Page, room: int) -> None:
        """Add the readings to the page, with at most `room` series beyond the fixed ones."""
        rooms = share_out(room, [sum(map(_cost, readings)) for readings in self._detectors.values()])
        for (detector, readings), share in zip(self._detectors.items(), rooms, strict=True):
            page.put(metrics.DETECTOR_PANE, [((*self.key, detector), max(reading.end for reading in readings))])
            threshold = readings[0].threshold
            page.put(metrics.THRESHOLD, [] if threshold is None else [((*self.key, detector), threshold)])
            labels = distinct([OTHER, *(reading.column for reading in readings)])[1:]
            named = [(reading.role, label, reading) for label, reading in zip(labels, readings, strict=True)]
            if share < sum(map(_cost, readings)):
                named = self._folded(detector, named, share)
            for role, label, reading in named:
                page.put(metrics.SCORE, [((*self.key, role, label, detector), reading.score)])
                if reading.drift is not None:
                    page.put(metrics.DETECTOR_DRIFT, [((*self.key, label, detector), reading.drift)])
                if reading.null is not None:
                    page.put(metrics.SCORE_NULL, [((*self.key, role, label, detector), reading.null)])
                if reading.corrected is not None:
                    page.put(metrics.SCORE_CORRECTED, [((*self.key, role, label, detector), reading.corrected)])

    def _folded(self, detector: str, named: list[tuple[str, str, Reading]], room: int) -> list[tuple[str, str, Reading]]:
        """The columns of highest score that there is room for, and one that stands for the rest."""
        slots = room // max(_cost(reading) for _, _, reading in named)
        if slots < 1:
            return []
        rank = np.nan_to_num(np.array([reading.score for _, _, reading in named], np.float64), nan=-1.0)
        before = [place for place, (_, label, _) in enumerate(named) if label in self._shown.get(detector, ())]
        chosen = sorted(highest(rank, before, slots - 1))
        self._shown[detector] = [named[place][1] for place in chosen]
        rest = [reading for place, (_, _, reading) in enumerate(named) if place not in chosen]
        drifts = [reading.drift for reading in rest if reading.drift is not None]
        nulls = [reading.null for reading in rest if reading.null is not None]
        corrected = [reading.corrected for reading in rest if reading.corrected is not None]
        one = rest[0]
        folded = Reading(
            detector, OTHER, OTHER, one.pane, one.end, float(np.fmax.reduce([reading.score for reading in rest])),
            any(drifts) if drifts else None, one.threshold, max(nulls) if nulls else None,
            max(corrected) if corrected else None)
        return [*(named[place] for place in chosen), (OTHER, OTHER, folded)]


def _cost(reading: Reading) -> int:
    """Series of one reading."""
    return 1 + (reading.drift is not None) + (reading.null is not None) + (reading.corrected is not None)
