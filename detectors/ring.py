"""The last 128 panes of one stream as running sums, so that any window is one subtraction.

Idea: entry t of the ring is the sum of all panes up to pane t. A window of w panes is entry t minus entry t - w, and
exactly so, because the sums are integers; nothing is summed again however long the window is.

Invariant: `window(w)` equals the sum of the last w profiles pushed since the ring was new or cleared.

Cost: 129 x J x B x 8 bytes (20 rows of 80 fine bins: 1.7 MB; 100 rows: 8.3 MB) and one J x B addition per pane; empty
panes take time and add nothing.

Neighbours: `profile` gives the panes, `scan` reads the windows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.profile import Profile, ReferenceMismatch
from detectors.reference import Reference

#: Longest window, in panes. The delay grows with the inverse square of a shift: an endless window finds any noise.
PANES_MAX = 128


class Ring:
    """Running sums of the pane counts of one stream since it began, or since it was cleared."""

    def __init__(self, reference: Reference) -> None:
        self.reference_digest = reference.digest
        self._sums = np.zeros((PANES_MAX + 1, *reference.shape), np.int64)
        self._events = np.zeros(PANES_MAX + 1, np.int64)
        self._panes = 0

    @property
    def panes(self) -> int:
        """Panes that have passed, t: windows longer than that do not exist yet."""
        return self._panes

    def push(self, profile: Profile) -> None:
        """Add the newest pane."""
        if profile.reference_digest != self.reference_digest:
            raise ReferenceMismatch(f"ring: expected a profile of reference {self.reference_digest}, got one of "
                                    f"{profile.reference_digest}; a new reference begins a new ring")
        before, now = self._panes % (PANES_MAX + 1), (self._panes + 1) % (PANES_MAX + 1)
        np.add(self._sums[before], profile.counts, out=self._sums[now])
        self._events[now] = self._events[before] + profile.events
        self._panes += 1

    def skip(self, empty_panes: int) -> None:
        """Let panes without events pass: windows move on, nothing is added."""
        assert empty_panes >= 0, "time does not run backwards"
        sums, events = self._sums[self._slot(0)].copy(), self._events[self._slot(0)]
        for _ in range(min(empty_panes, PANES_MAX + 1)):        # at most 129 turns, however long the silence was
            self._panes += 1
            self._sums[self._slot(0)], self._events[self._slot(0)] = sums, events
        behind = empty_panes - min(empty_panes, PANES_MAX + 1)
        if behind:                                              # all entries are equal now: only the number moves
            self._panes += behind

    def clear(self) -> None:
        """Forget every pane: what comes next is the first."""
        self._sums[:] = 0
        self._events[:] = 0
        self._panes = 0

    def window(self, panes: int) -> tuple[NDArray[np.int64], int]:
        """Fine counts (J, B) and events of the last `panes` panes, 1 to 128 and at most those that have passed."""
        counts, events = self.windows(np.array([panes]))
        return counts[0], int(events[0])

    def windows(self, panes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Fine counts (W, J, B) and events (W,) of several windows at once."""
        most = min(self._panes, PANES_MAX)
        if len(panes) and (panes.min() < 1 or panes.max() > most):
            raise ValueError(f"window: expected 1 to {most} panes, got {panes.tolist()}")
        now, then = self._slot(0), (self._panes - panes) % (PANES_MAX + 1)
        return self._sums[now] - self._sums[then], self._events[now] - self._events[then]

    def each(self) -> NDArray[np.int64]:
        """Fine counts of the panes that the ring holds, one by one and oldest first, (panes, J, B)."""
        slots = [self._slot(back) for back in range(min(self._panes, PANES_MAX), -1, -1)]
        return np.diff(self._sums[slots], axis=0)

    def _slot(self, back: int) -> int:
        return (self._panes - back) % (PANES_MAX + 1)
