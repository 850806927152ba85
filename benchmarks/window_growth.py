"""What a window costs does not grow with the reference, with its own length, or with the age of the stream.

    reference   binning and all scores of the same window against references of 10,000 and of 100,000 events
    window      a pane joins a window of 10 panes and one of 128, the longest: running sums, all distances
    age         a pane joins a stream of 140 panes and one of 600, and the scan judges all eight windows

The counts of a window must be the plain sum of its panes. A scan of a young stream has fewer windows to look at (four at
10 panes, eight from 128 on), so that age is measured from where they are all there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.events import Values, reference_of, values_of
from benchmarks.measure import Bench
from detectors.comparison import display
from detectors.profile import Profile
from detectors.reference import Reference
from detectors.ring import PANES_MAX
from detectors.scan import Ring, Scan

FEATURES, ROWS = 20, 10_000
AT_MOST = 1.2
TIMES = 20


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("window_growth: ours on the larger / ours on the smaller", argv, repeat=15)
    rows = bench.sized(ROWS, 300)
    window = values_of(FEATURES, rows, seed=5)
    small, large = reference_of(FEATURES, rows), reference_of(FEATURES, 10 * rows)
    bench.compare_at_most(f"reference of {rows} -> {10 * rows} events", easy=judged(small, window), hard=judged(large, window),
                          at_most=AT_MOST, names=("small", "large"))

    panes = [small.profile({name: values[i * 10:i * 10 + 100] for name, values in window.items()}) for i in range(20)]

    def of_panes(length: int) -> Callable[[], int]:
        ring, pushed = aged(small, panes, PANES_MAX + 2)

        def advance() -> int:
            counts, events = None, 0
            for _ in range(TIMES):
                ring.push(panes[pushed[0] % len(panes)])
                pushed[0] += 1
                counts, events = ring.window(length)
                with np.errstate(all="ignore"):
                    display(small, counts, events)
            plain = sum((panes[i % len(panes)].counts for i in range(pushed[0] - length, pushed[0])), np.zeros(small.shape, int))
            return int(np.array_equal(plain, counts))

        return advance

    bench.compare_at_most(f"window of 10 -> {PANES_MAX} panes", easy=of_panes(10), hard=of_panes(PANES_MAX), at_most=AT_MOST,
                          equal=lambda one, other: bool(one and other), names=("short", "long"))

    scan = Scan(small)                              # both ages are whole rounds of the 20 panes: their scores are equal

    def of_age(age: int) -> Callable[[], float]:
        ring, pushed = aged(small, panes, age)

        def decide() -> float:
            for _ in range(TIMES):
                ring.push(panes[pushed[0] % len(panes)])
                pushed[0] += 1
                scores = scan(ring)
            return scores.score

        return decide

    bench.compare_at_most("stream of 140 -> 600 panes, scanned", easy=of_age(140), hard=of_age(600),
                          at_most=AT_MOST, equal=lambda one, other: one == other, names=("young", "old"))
    return bench.finish()


def judged(reference: Reference, window: Values) -> Callable[[], object]:
    """Binning and all distances of a window, several times."""
    def run() -> object:
        for _ in range(5):
            profile = reference.profile(window)
            with np.errstate(all="ignore"):
                found = display(reference, profile.counts, profile.events)
        return found

    return run


def aged(reference: Reference, panes: Sequence[Profile], age: int) -> tuple[Ring, list[int]]:
    """A ring that has seen so many panes, and their number in a list, to be counted on."""
    ring = Ring(reference)
    for i in range(age):
        ring.push(panes[i % len(panes)])
    return ring, [age]


if __name__ == "__main__":
    sys.exit(main())
