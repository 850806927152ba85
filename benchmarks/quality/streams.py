"""The streams of the proof: ten without drift, each hard in its own way, and the drifts whose delay is measured.

Idea: what a detector promises is a rate over streams that nobody tuned it on. So every run draws a new reference and a
new stream from its own seed; the seed on the command line, the stream's place in the list and the run's number make it.

Invariant: equal (seed, stream, run) give equal rows in every process and whatever else is run. No run uses the small
whole numbers that tests use as seeds: all come through a seed sequence.

Cost: 1 to 3 us a row of 20 columns.

Neighbours: `detectors.synthetic` generates; `runs` lets the detectors watch; `tables` prints the names that stand here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from detectors.synthetic import MIXED, RARE, TIES, Quantity, Stream

#: Events of one pane, and panes of one run without drift: more than the scan's longest window of 128.
PANE_EVENTS, RUN_PANES = 250, 160
RUN_EVENTS = PANE_EVENTS * RUN_PANES
#: Panes without drift before a change, so that every peer's window is full when it comes.
WARM_PANES = 20
#: Distinct parts of the proof, so that no two share a seed.
NO_DRIFT_PART, DELAY_PART, EVIDENTLY_PART = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Quiet:
    """A stream without drift: its name, its columns, how they depend on their past, and rows of the reference."""

    name: str
    quantities: Sequence[Quantity] = MIXED
    ar: float = 0.0
    season: float = 0.0
    reference_rows: int = 10_000

    def stream(self, seed: int) -> Stream:
        """The stream of this seed, from its first row."""
        return Stream(seed, self.quantities, ar=self.ar, season=self.season)


QUIET = (
    Quiet("mixed, 20 columns"),
    Quiet("mixed, 100 columns", MIXED * 5),
    Quiet("AR(1) 0.5", ar=0.5),
    Quiet("AR(1) 0.9", ar=0.9),
    Quiet("daily season", season=0.7, reference_rows=60_000),
    Quiet("ties", TIES),
    Quiet("rare levels", RARE),
    Quiet("missing values", (Quantity("missing"),) * 20),
    Quiet("reference of 1,000", reference_rows=1_000),
    Quiet("reference of 50,000", reference_rows=50_000),
)
#: The stream on which thresholds are matched, knobs are tried and delays are measured.
COMMON = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A drift that begins at a pane boundary of the common stream: name, what `Stream.start` takes, and panes watched."""

    name: str
    drift: dict[str, object] = field(default_factory=dict)
    panes: int = 80
    #: Columns that change, for the peers that are too slow to watch all of them.
    columns: tuple[int, ...] = (0,)
    shown: bool = True


LONG = 160
CHANGES = (
    Change("mean +0.1", {"mean": 0.1}, LONG),
    Change("mean +0.25", {"mean": 0.25}),
    Change("mean +0.5", {"mean": 0.5}),
    Change("mean +1", {"mean": 1.0}),
    Change("all +0.1", {"mean": 0.1, "everywhere": True}, columns=tuple(range(20))),
    Change("s.d. × 1.3", {"spread": 1.3}),
    Change("two humps", {"two_humps": True}),
    Change("ramp to +0.5", {"mean": 0.5, "ramp_rows": 40_000}, LONG),
    Change("new level 2 %", {"replaced": 0.02, "constant": "new", "column": 15}, columns=(15,)),
    Change("constant 10 %", {"replaced": 0.1, "constant": 0.0}),
    Change("outlier 1 %", {"replaced": 0.01, "constant": 6.0}),
    Change("missing 3 %", {"replaced": 0.03}),
    Change("joint", {"joint": True}, columns=(0, 1)),
    Change("mean +0.15", {"mean": 0.15}, LONG, shown=False),
    Change("mean +0.35", {"mean": 0.35}, shown=False),
    Change("mean +0.7", {"mean": 0.7}, shown=False),
)


def seed_of(seed: int, part: int, place: int, run: int) -> int:
    """The seed of one run: 63 bits from the seed of the command line and the run's place in the proof."""
    low, high = np.random.SeedSequence([seed, part, place, run]).generate_state(2)
    return int(low) | (int(high) & 0x7FFFFFFF) << 32
