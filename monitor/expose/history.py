"""What was decided before now: the latest judged panes of every model, for the page's lines over time.

Prometheus keeps history for as long as its owner likes; this is the little that a page needs where there is none. Every
decided pane leaves its two scores, its state and the score of every row; a cut-over to another version does not end the
history, each pane says by which version it was judged. After a restart it begins anew: alarms, decisions and launches
come from the store, lines do not, because judging the stored panes again would take as long as the panes' own scans.

The invariant: a pane that is noted is never written to, so that a reader may hold what `panes` gave while the loop goes
on noting.

Memory: PANES_KEPT x (2 J + 300) bytes per model and segment, for J rows: 170 kB at 20, 2.2 MB at 2,000. The counts of
one row (two rings of 129 panes of about 100 bins) take 200 times its part of it. Cost: 5 us a decided pane.
Neighbours: `exporter` owns it, `page` draws it.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.expose.judged import Frame
from monitor.flow import Evaluation
from monitor.metrics import STATES

#: Panes of a minute: 8 hours and a half. A page has room for no more on one line.
PANES_KEPT = 512
#: The largest finite number of 16 bits; scores are kept with three digits.
_HALF_MAX = 65_504.0
_STATES = list(STATES)

#: model, segment
HistoryKey = tuple[str, str]


class JudgedPane(NamedTuple):
    """One decided pane, as a line over time needs it.

    end, seconds  : its end (seconds since 1970, event time) and its length        state : place in `metrics.STATES`
    score, severe : the highest of any row, 1 = alarm and 1 = worth a retraining; NaN where nothing could be told
    scores        : of every row of `frame`, float16, shape (J,); NaN where too few events took part
    """

    end: float
    seconds: float
    state: int
    score: float
    severe: float
    frame: Frame
    scores: NDArray[np.float16]

    @property
    def version(self) -> str:
        """Version of the reference that judged it."""
        return self.frame.reference.version

    @classmethod
    def of(cls, evaluation: Evaluation, frame: Frame) -> JudgedPane:
        """What stays of an evaluation."""
        window, scores = evaluation.window, evaluation.scores
        silent = np.array([state == "too_few_events" for state in scores.state], bool)
        kept = np.where(silent, np.nan, np.minimum(scores.evidence, _HALF_MAX)).astype(np.float16)
        return cls(window.end, window.end - window.start, _STATES.index(evaluation.state), scores.score, scores.severe, frame,
                   kept)


class History:
    """The latest PANES_KEPT judged panes of one model and segment, oldest first."""

    def __init__(self) -> None:
        self._kept: deque[JudgedPane] = deque(maxlen=PANES_KEPT)
        self._given: tuple[JudgedPane, ...] | None = ()

    def note(self, pane: JudgedPane) -> None:
        """Add a pane; the oldest leaves."""
        self._kept.append(pane)
        self._given = None

    @property
    def panes(self) -> tuple[JudgedPane, ...]:
        """What is kept now; the same object until something is noted."""
        if self._given is None:
            self._given = tuple(self._kept)
        return self._given
