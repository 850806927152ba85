"""Our decisions as the proof watches them: one number per pane, larger is more drift, and a state that can be emptied.

Neighbours: `detectors.scan` and `detectors.esr` decide; `runs` counts and times them beside the peers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmarks.quality.streams import PANE_EVENTS
from detectors.esr import ESR
from detectors.profile import Profile
from detectors.reference import Reference
from detectors.ring import Ring
from detectors.scan import LOCATION_SHARE, Scan


class Decider(Protocol):
    """A decision over panes."""

    def statistic(self, pane: Profile) -> float:
        """Take a pane in and give the score: above 1 is an alarm at the rate that was asked."""

    def clear(self) -> None:
        """Forget every pane."""


class ScanDecider:
    """The scan over its ring."""

    def __init__(self, reference: Reference, tolerance: float, asked_events: float) -> None:
        self._scan = Scan(reference, tolerance=tolerance, panes_per_false_alarm=asked_events / PANE_EVENTS,
                          common_shift=True, location_share=LOCATION_SHARE)
        self._ring = Ring(reference)

    def statistic(self, pane: Profile) -> float:
        self._ring.push(pane)
        score = self._scan(self._ring).score
        return score if score == score else 0.0                 # NaN: nothing takes part yet

    def warm(self, pane: Profile) -> None:
        """Take a pane in without a decision."""
        self._ring.push(pane)

    def clear(self) -> None:
        self._ring.clear()


class EsrDecider:
    """e-SR over its fortunes."""

    def __init__(self, reference: Reference, tolerance: float, asked_events: float) -> None:
        self._esr = ESR(reference, tolerance=tolerance, panes_per_false_alarm=asked_events / PANE_EVENTS)
        self._fortunes = self._esr.begin()

    def statistic(self, pane: Profile) -> float:
        return self._esr.update(self._fortunes, pane).score

    def warm(self, pane: Profile) -> None:
        """Take a pane in without a decision."""
        self._esr.update(self._fortunes, pane)

    def clear(self) -> None:
        self._fortunes.clear()


@dataclass(frozen=True, slots=True)
class Own:
    """One of our decisions: its name in the tables, how it is made, and its tolerance."""

    name: str
    make: Callable[[Reference, float, float], ScanDecider | EsrDecider]
    tolerance: float

    def __call__(self, reference: Reference, asked_events: float) -> ScanDecider | EsrDecider:
        return self.make(reference, self.tolerance, asked_events)


SCAN, SCAN_TOLERANT = Own("scan", ScanDecider, 0.0), Own("scan, 0.1", ScanDecider, 0.1)
ESR_STRICT, ESR_TOLERANT = Own("e-SR", EsrDecider, 0.0), Own("e-SR, 0.1", EsrDecider, 0.1)
OURS = (SCAN, ESR_STRICT, SCAN_TOLERANT, ESR_TOLERANT)
#: Those whose false alarms are counted: without a tolerance, which is the harder case.
STRICT = (SCAN, ESR_STRICT)


def episodes(decider: Decider, panes: Iterable[Profile]) -> int:
    """Alarms over the panes, the state emptied after each."""
    alarms = 0
    for pane in panes:
        if decider.statistic(pane) > 1:
            alarms += 1
            decider.clear()
    return alarms


def peak(decider: Decider, panes: Iterable[Profile]) -> float:
    """The largest score over the panes, nothing emptied."""
    return max(decider.statistic(pane) for pane in panes)


def first_above(decider: Decider, panes: Iterable[Profile], level: float) -> int | None:
    """How many panes it took until the score was above the level, or None."""
    return next((taken for taken, pane in enumerate(panes, 1) if decider.statistic(pane) > level), None)


def profiles(reference: Reference, batch: dict[str, np.ndarray | list[str | None]]) -> list[Profile]:
    """The panes of a batch."""
    n = len(next(iter(batch.values())))
    panes = n // PANE_EVENTS
    return list(reference.profiles(batch, np.repeat(np.arange(panes), PANE_EVENTS), panes))
