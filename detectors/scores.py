"""What the scan says of one pane, row by row: how sure, how far, in which window, and whether it is drift or a fault.

Idea: evidence is kept in two parts. A row that moved because values are missing, unseen, out of range, constant or in
another unit tells of a broken producer, which must be repaired; everything else tells of a changed world, which a model
can learn. Each comparison lies in exactly one part, so both share one budget of false alarms, and a fault that stands
cannot hide a drift behind it.

Invariant: `score` is the largest evidence of either part over the threshold: 1 is an alarm.

Cost: J x 8 numbers for each kind of evidence. Neighbours: `scan` makes it; policies, exporters and people read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detectors.faults import Fault

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Strongest:
    """Each row's strongest comparison at one tolerance, all (J,): the fields that `Scores` explains by the same names."""

    best_window: Ints
    window_events: Ints
    effect: Floats
    effect_lower: Floats
    effect_upper: Floats
    test: Ints
    unit: tuple[str, ...]
    what: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What the scan says of one pane, for J rows and the 8 window lengths.

    rows            : names of the rows
    threshold       : the z that an alarm takes
    score, severe   : largest z / threshold at the tolerance, and at the one of retraining; NaN when nothing takes part
    z, z_quality    : (J, 8), largest over directions and bins, for drift and for faults of the data; 0 where the window
                      takes no part in the row
    z_severe        : (J, 8), drift at the tolerance of retraining
    z_lasting, z_lasting_quality : (J, 8), both kinds at half the tolerance (at most: without any where that is far from
                      an alarm, too): what an episode that began must fall below to be over, so that a shift of about
                      the tolerance does not come and go
    best_window     : (J,), panes of the window of the row's strongest comparison
    window_events   : (J,), events in it
    effect, effect_lower, effect_upper : (J,), that comparison's difference with its 95 % interval. It was chosen for
                      being the largest, so it overstates; the intervals of later panes are honest
    test            : (J,), which comparison: 0-3 for the directions, 4 and up for the scan's bins
    unit, what      : per row, "sd" (reference standard deviations) or "share" (of all events), and the comparison in words
    quality         : (J,), whether the row's strongest evidence tells of a fault of the data
    faults          : the faults of the rows over the threshold, by row
    state           : per row "drift", "quiet", "below_ignore" (sure, but too small) or "too_few_events"
    named           : the rows that moved, strongest first
    strongest_severe : the comparisons that the severe score rests on; None where no row has severe evidence
    bets            : scores of drift and of quality by the fortunes of `esr`, where those decide; None where z does
    """

    rows: tuple[str, ...]
    threshold: float
    score: float
    severe: float
    z: Floats
    z_quality: Floats
    z_severe: Floats
    z_lasting: Floats
    z_lasting_quality: Floats
    best_window: Ints
    window_events: Ints
    effect: Floats
    effect_lower: Floats
    effect_upper: Floats
    test: Ints
    unit: tuple[str, ...]
    what: tuple[str, ...]
    quality: Bools
    state: tuple[str, ...]
    named: tuple[int, ...]
    faults: Mapping[int, Fault] = field(default_factory=dict)
    strongest_severe: Strongest | None = None
    bets: tuple[float, float] | None = None

    @property
    def shortest(self) -> int:
        """Panes of the shortest window with evidence above the threshold, 0 if there is none."""
        over = (np.maximum(self.z, self.z_quality) > self.threshold).any(axis=0)
        return int(2 ** over.argmax()) if over.any() else 0

    @property
    def evidence(self) -> Floats:
        """Each row's evidence of either part over the threshold, (J,): 1 is an alarm."""
        strongest: Floats = np.maximum(self.z, self.z_quality).max(axis=1) / self.threshold
        return strongest

    def records(self) -> list[dict[str, Any]]:
        """One row of plain values for every row, the strongest evidence first."""
        drift, quality = self.z.max(axis=1), self.z_quality.max(axis=1)
        return [{
            "row": self.rows[j], "state": self.state[j], "kind": "quality" if self.quality[j] else "drift",
            "score": max(drift[j], quality[j]) / self.threshold, "severe": self.z_severe[j].max() / self.threshold,
            "what": self.what[j], "effect": self.effect[j], "effect_lower": self.effect_lower[j],
            "effect_upper": self.effect_upper[j], "unit": self.unit[j], "window_panes": int(self.best_window[j]),
            "window_events": int(self.window_events[j]), "named": j in self.named,
        } for j in np.argsort(-self.evidence, kind="stable").tolist()]

    def to_frame(self) -> pandas.DataFrame:
        """`records` as a pandas table; ImportError, one line, where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise ImportError("scores.to_frame: expected pandas, got no such package; install 'tidemark[report]', "
                              "or use scores.records()") from None
        return pandas.DataFrame(self.records())
