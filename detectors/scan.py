"""The default decision: the largest standardised difference between any recent window and the reference.

Idea: at every pane, for the last 1, 2, 4 ... 128 panes, each row is compared with the reference in a fixed set of ways:
four directions (location, scale, two shapes) and every single bin. The alarm is one comparison with one threshold, set
by the number of comparisons made in all and the false alarms allowed (union bound, valid under any dependence between
them). Scores are divided by that threshold: 1 is an alarm.

Invariants: a decision is a pure function of (reference, ring, knobs). Adding a window, a bin or a row without adding it
to `tests` breaks the promise; so does any second look at a pane.

Cost: O(8 J (4 K + K)) per pane, vectorised over windows, rows and bins: 0.6 ms at 20 columns on one core, nothing per
event. Memory: 8 J B counts of the windows and about ten temporaries of 8 J K floats (20 columns: 0.5 MB); the ring
itself is 129 J B 8 bytes.

Neighbours: `ring` sums panes, `reference` holds the other side, the service's policy turns scores into alarms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from detectors.binning import NumericBinning
from detectors.reference import Arrays, Reference
from detectors.ring import PANES_MAX, Ring

__all__ = ["WINDOWS", "Ring", "Scan", "Scores"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Window lengths in panes.
WINDOWS = tuple(2**power for power in range(PANES_MAX.bit_length()))
DIRECTIONS = 4
#: A window speaks from this many effective events on: below, the tail of a sum is not normal.
EFFECTIVE_EVENTS_MIN = 20
#: A bin speaks when it gained or lost at least this many events.
BIN_EXCESS_MIN = 4.0
#: Least s.d. of a bin in the severe score: a bin must surely move more than tolerance x 0.1 of all events.
SEVERE_SPREAD_FLOOR = 0.1
#: Share of false names among those that an alarm names (Benjamini and Hochberg 1995).
NAMES_FALSE_SHARE = 0.1
_Z95 = 1.96


@dataclass(frozen=True, slots=True, eq=False)
class Strongest:
    """Each row's strongest comparison at one tolerance, all (J,): the fields that `Scores` explains by the same names."""

    best_window: Ints
    window_events: Ints
    effect: Floats
    effect_lower: Floats
    effect_upper: Floats
    unit: tuple[str, ...]
    what: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What the scan says of one pane, for J rows and the 8 window lengths.

    rows            : names of the rows
    threshold       : the z that an alarm takes
    score, severe   : largest z / threshold at the tolerance, and at the one of retraining; NaN when nothing takes part
    z, z_severe     : (J, 8), largest over directions and bins; 0 where the window takes no part in the row
    best_window     : (J,), panes of the window of the row's strongest comparison
    window_events   : (J,), events in it
    effect, effect_lower, effect_upper : (J,), that comparison's difference with its 95 % interval. It was chosen for
                      being the largest, so it overstates; the intervals of later panes are honest
    unit, what      : per row, "sd" (reference standard deviations) or "share" (of all events), and which comparison
    quality, severe_quality : (J,), whether the row's strongest comparison speaks of data quality
    state           : per row "drift", "quiet", "below_ignore" (sure, but too small) or "too_few_events"
    named           : the rows that moved, strongest first
    shortest, shortest_severe : panes of the shortest window above the threshold, 0 if there is none
    strongest_severe : the comparisons that the severe score rests on; None where no row has severe evidence
    """

    rows: tuple[str, ...]
    threshold: float
    score: float
    severe: float
    z: Floats
    z_severe: Floats
    best_window: Ints
    window_events: Ints
    effect: Floats
    effect_lower: Floats
    effect_upper: Floats
    unit: tuple[str, ...]
    what: tuple[str, ...]
    quality: Bools
    severe_quality: Bools
    state: tuple[str, ...]
    named: tuple[int, ...]
    shortest: int
    shortest_severe: int
    strongest_severe: Strongest | None = None


class Scan:
    """A decision prepared for one reference and one set of knobs.

    tolerance             : shifts below this many reference standard deviations are not worth an alarm
    retrain_above         : only shifts surely above this are severe
    panes_per_false_alarm : A, panes between false alarms on average when nothing drifts; 43,200 minutes are 30 days
    """

    windows = WINDOWS

    def __init__(self, reference: Reference, *, tolerance: float = 0.1, retrain_above: float = 0.3,
                 panes_per_false_alarm: float = 43_200.0) -> None:
        arrays = reference.arrays
        rows, bins = arrays.c0.shape
        self.reference = reference
        self.tolerance, self.retrain_above = tolerance, retrain_above
        self.tests = 2 * len(WINDOWS) * (DIRECTIONS * rows + int(arrays.live.sum()))
        self.alpha = 1.0 / (panes_per_false_alarm * self.tests)
        self.threshold = float(-special.ndtri(self.alpha))
        # An estimated variance has fat tails: its z must reach the t quantile, not the normal one.
        self._nu_directions = nu_factor(self.threshold, self.alpha, arrays.nu_directions)
        nu_bins = nu_factor(self.threshold, self.alpha, arrays.nu_bins)
        self._bin_scale = 2 * nu_bins**2 / arrays.g_bins
        self._loss_limit = np.where(arrays.one_sided, -np.inf, -BIN_EXCESS_MIN)
        m = arrays.m[:, None]
        self._reference_entropy = _x_log_x(arrays.c0) + _x_log_x(m - arrays.c0) - _x_log_x(m)
        self._row_tests = 2 * len(WINDOWS) * (DIRECTIONS + arrays.live.sum(axis=1))
        self._words = tuple(_words(reference, j) for j in range(rows))
        self._fold = _Fold(arrays, reference.shape, bins)

    def smallest_visible_shift(self, window_events: float | None = None) -> Floats:
        """The shift of the mean, in reference s.d., that is found about surely, shape (J,).

        By the reference alone (an endless window without tolerance), or in a window of so many events with it.
        """
        arrays, deff = self.reference.arrays, self.reference.deff
        if window_events is None:
            return (self.threshold + 2) * np.sqrt(deff / arrays.m)
        if window_events <= 0:
            return np.full(len(deff), np.inf)
        return self.tolerance + (self.threshold + 2) * np.sqrt(deff * (1 / arrays.m + 1 / window_events))

    def __call__(self, ring: Ring) -> Scores:
        """The scores at the newest pane of `ring`."""
        lengths = np.array([w for w in WINDOWS if w <= ring.panes], np.int64)
        if not len(lengths) or self.reference.too_small:
            return self._silence()
        fine, _ = ring.windows(lengths)
        seen = self._compare(self._fold(fine), lengths)
        alarm, severe, raw = (seen.best(tolerance, floored) for tolerance, floored in
                              ((self.tolerance, False), (self.retrain_above, True), (0.0, False)))
        return self._scores(seen, alarm, severe, raw)

    def _compare(self, n: Floats, lengths: Ints) -> _Seen:
        """All comparisons of the scan counts `n`, shape (W, J, K), without a tolerance yet."""
        ref = self.reference.arrays
        events = n.sum(axis=2)                                                   # (W, J)
        N = np.maximum(events, 1.0)
        difference = np.matmul(n.transpose(1, 0, 2), ref.weights).transpose(1, 0, 2) / N[:, :, None] - ref.centre
        variance = ref.g_directions * (1 / N + 1 / ref.m)[:, :, None]            # (W, J, 4)
        skew = ref.skew / (6 * np.sqrt(N[:, :, None] / ref.g_directions))

        excess = n - N[:, :, None] * ref.p0                                      # (W, J, K)
        pooled, deviance = self._deviance(n, N)
        # Padded bins never speak: their excess is 0. Bins that only count when they gain have no lower limit.
        speaks = (excess >= BIN_EXCESS_MIN) | (excess <= self._loss_limit)
        strength = np.sqrt(np.where(speaks, deviance, 0.0) * self._bin_scale)
        spread = np.sqrt(pooled * (1 - pooled))
        per_gap = strength * N[:, :, None] / np.maximum(np.abs(excess), BIN_EXCESS_MIN)
        return _Seen(lengths=lengths, n=n, events=events,
                     takes_part=events / self.reference.deff >= EFFECTIVE_EVENTS_MIN,
                     difference=difference, variance=variance, skew=skew, nu_directions=self._nu_directions,
                     strength=strength, loss=per_gap * spread,
                     floored_loss=per_gap * np.maximum(spread, SEVERE_SPREAD_FLOOR))

    def _silence(self) -> Scores:
        """The scores where nothing takes part: no pane yet, or a reference too small for any decision."""
        J = len(self.reference.rows)
        none, zero, never = np.zeros((J, len(WINDOWS))), np.zeros(J), np.full(J, np.inf)
        return Scores(rows=self.reference.rows, threshold=self.threshold, score=float("nan"), severe=float("nan"),
                      z=none, z_severe=none.copy(), best_window=np.zeros(J, np.int64), window_events=np.zeros(J, np.int64),
                      effect=zero, effect_lower=-never, effect_upper=never, unit=("sd",) * J,
                      what=tuple(words[0] for words in self._words), quality=np.zeros(J, bool),
                      severe_quality=np.zeros(J, bool), state=("too_few_events",) * J, named=(), shortest=0,
                      shortest_severe=0)

    def _scores(self, seen: _Seen, alarm: Floats, severe: Floats, raw: Floats) -> Scores:
        """Collect the best comparisons of every window and row, each (W, J), into one answer per row."""
        z, z_severe = _by_row(alarm), _by_row(severe)
        top, top_severe, top_raw = z.max(axis=1), z_severe.max(axis=1), raw.max(axis=0)
        part: Bools = np.any(seen.takes_part, axis=0)
        known = bool(part.any())
        score = float(top.max()) / self.threshold if known else float("nan")

        # A row that is sure to differ, but by too little, is described by its strongest comparison without tolerance.
        passes = (top > self.threshold) | ((top > 0) & (top_raw <= self.threshold))
        window = _strongest_window(np.where(passes, alarm, raw))
        test = seen.strongest_test(window, np.where(passes, self.tolerance, 0.0), floored=False)
        severe_quality, strongest_severe = np.zeros(len(top), bool), None
        if top_severe.any():                                                     # rare: the next lines cost a tenth
            severe_window = _strongest_window(severe)
            severe_test = seen.strongest_test(severe_window, np.full(len(top), self.retrain_above), floored=True)
            severe_quality = self._quality(seen, severe_window, severe_test) & (top_severe > 0)
            strongest_severe = self._strongest(seen, severe_window, severe_test)
        found = self._strongest(seen, window, test)
        over, over_severe = (z > self.threshold).any(axis=0), (z_severe > self.threshold).any(axis=0)
        named = self._named(top)
        return Scores(
            rows=self.reference.rows, threshold=self.threshold, score=score,
            severe=float(top_severe.max()) / self.threshold if known else float("nan"),
            z=z, z_severe=z_severe, best_window=found.best_window, window_events=found.window_events,
            effect=found.effect, effect_lower=found.effect_lower, effect_upper=found.effect_upper,
            unit=found.unit, what=found.what,
            quality=self._quality(seen, window, test) & (top_raw > 0),
            severe_quality=severe_quality,
            state=self._states(top, top_raw, part, named if score > 1 else ()), named=named,
            shortest=WINDOWS[int(over.argmax())] if over.any() else 0,
            shortest_severe=WINDOWS[int(over_severe.argmax())] if over_severe.any() else 0,
            strongest_severe=strongest_severe)

    def _strongest(self, seen: _Seen, window: Ints, test: Ints) -> Strongest:
        """The comparisons (window, test) of every row in figures and words."""
        effect, half, is_bin = self._effect(seen, window, test)
        return Strongest(
            best_window=seen.lengths[window], window_events=seen.events[window, np.arange(len(window))].astype(np.int64),
            effect=effect, effect_lower=effect - half, effect_upper=effect + half,
            unit=tuple("share" if share else "sd" for share in is_bin.tolist()),
            what=tuple(words[k] for words, k in zip(self._words, test.tolist(), strict=True)))

    def _states(self, top: Floats, top_raw: Floats, part: Bools, named: tuple[int, ...]) -> tuple[str, ...]:
        """Why each row speaks or is quiet; a row that a standing alarm names is not called quiet."""
        state = np.where(top_raw > self.threshold, "below_ignore", "quiet")
        state = np.where(part, state, "too_few_events")
        state = np.where(top > self.threshold, "drift", state)
        state[list(named)] = "drift"
        return tuple(state.tolist())

    def _effect(self, seen: _Seen, window: Ints, test: Ints) -> tuple[Floats, Floats, Bools]:
        """Difference and half its 95 % interval in each row's strongest comparison, and whether that is a bin's."""
        ref, j = self.reference.arrays, np.arange(len(test))
        r, k = np.minimum(test, DIRECTIONS - 1), np.maximum(test - DIRECTIONS, 0)
        is_bin = test >= DIRECTIONS
        N = np.maximum(seen.events[window, j], 1.0)
        q, p = seen.n[window, j, k] / N, ref.p0[j, k]
        share_variance = ref.g_bins[j, k] * (q * (1 - q) / N + p * (1 - p) / ref.m)
        variance = np.where(is_bin, share_variance, seen.variance[window, j, r])
        return np.where(is_bin, q - p, seen.difference[window, j, r]), _Z95 * np.sqrt(variance), is_bin

    def _quality(self, seen: _Seen, window: Ints, test: Ints) -> Bools:
        """Whether the strongest comparison is a fault's bin, or such bins gained more than half of the variation."""
        ref, j = self.reference.arrays, np.arange(len(test))
        gap = seen.n[window, j] / np.maximum(seen.events[window, j], 1.0)[:, None] - ref.p0      # (J, K)
        gained = (np.maximum(gap, 0) * ref.fault).sum(axis=1)
        variation = np.abs(gap).sum(axis=1) / 2
        winner_is_fault = (test >= DIRECTIONS) & ref.fault[j, np.maximum(test - DIRECTIONS, 0)]
        quality: Bools = winner_is_fault | (gained > variation / 2)
        return quality

    def _named(self, top: Floats) -> tuple[int, ...]:
        """Rows that moved, strongest first, a tenth of them false; if an alarm stands, at least the strongest."""
        named = benjamini_hochberg(np.minimum(1.0, self._row_tests * special.ndtr(-top)))
        if not len(named) and top.max() > self.threshold:
            named = np.array([top.argmax()])
        return tuple(named[np.argsort(-top[named], kind="stable")].tolist())

    def _deviance(self, n: Floats, N: Floats) -> tuple[Floats, Floats]:
        """`bin_deviance` of all windows and rows, with what is known of the reference taken from the preparation."""
        ref = self.reference.arrays
        totals = np.stack([N, N + ref.m])                                        # (2, W, J)
        x = np.empty((2, 2, *n.shape))
        x[0, 0], x[1, 0] = n, n + ref.c0
        np.subtract(totals[..., None], x[:, 0], out=x[:, 1])
        inside, whole = _x_log_x(x).sum(axis=1), _x_log_x(totals)
        constant = (whole[1] - whole[0])[:, :, None] + self._reference_entropy
        return x[1, 0] / totals[1][:, :, None], inside[0] - inside[1] + constant


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """The comparisons of one pane: lengths (W,), events and takes_part (W, J), the others (W, J, 4 or K).

    A bin's z at a tolerance t is `strength - t loss`: the share of its evidence that lies within the tolerance is lost.
    """

    lengths: Ints
    n: Floats
    events: Floats
    takes_part: Bools
    difference: Floats
    variance: Floats
    skew: Floats
    nu_directions: Floats
    strength: Floats
    loss: Floats
    floored_loss: Floats

    def best(self, tolerance: float, floored: bool) -> Floats:
        """Largest z over directions and bins, shape (W, J), 0 where the window takes no part in the row."""
        z1 = direction_z(self.difference, self.variance, self.skew, tolerance) * self.nu_directions
        loss = self.floored_loss if floored else self.loss
        z2 = self.strength - tolerance * loss if tolerance else self.strength
        best: Floats = np.maximum(z1.max(axis=2), z2.max(axis=2)) * self.takes_part
        return best

    def strongest_test(self, window: Ints, tolerance: Floats, *, floored: bool) -> Ints:
        """Index among directions and bins of each row's largest z in its window, shape (J,); the mean if all are 0."""
        at = (window, np.arange(len(window)))
        z1 = direction_z(self.difference[at], self.variance[at], self.skew[at], tolerance[:, None]) * self.nu_directions
        z2 = self.strength[at] - tolerance[:, None] * (self.floored_loss if floored else self.loss)[at]
        best: Ints = np.concatenate([z1, np.maximum(z2, 0.0)], axis=1).argmax(axis=1)
        return best


class _Fold:
    """Sums of consecutive fine bins into scan bins, for all rows and windows in two numpy calls."""

    def __init__(self, arrays: Arrays, shape: tuple[int, int], bins: int) -> None:
        starts, targets = [], []
        for j, scan_of_fine in enumerate(arrays.scan_of_fine):  # turns: the rows, once per scan
            first = np.flatnonzero(np.diff(scan_of_fine, prepend=-1))
            starts.append(j * shape[1] + first)
            targets.append(j * bins + scan_of_fine[first])
        # Padding on the right of a row joins its last bin: it holds no counts.
        self._starts, self._targets = np.concatenate(starts), np.concatenate(targets)
        self._rows, self._bins = shape[0], bins

    def __call__(self, fine: Ints) -> Floats:
        """Scan counts (W, J, K) of fine counts (W, J, B)."""
        scan = np.zeros((len(fine), self._rows * self._bins))
        scan[:, self._targets] = np.add.reduceat(fine.reshape(len(fine), -1), self._starts, axis=1)
        return scan.reshape(len(fine), self._rows, self._bins)


def direction_z(difference: Floats, variance: Floats, skew: Floats, tolerance: float | Floats) -> Floats:
    """Standardised differences of directions beyond the tolerance, never below 0.

    skew : skewness of the weights / (6 sqrt(effective events)), the second term of the Cornish-Fisher expansion: the
           sum of a skewed score has unequal tails
    """
    z = np.maximum(np.abs(difference) - tolerance, 0.0) / np.sqrt(variance)
    return np.maximum(z - np.sign(difference) * skew * np.maximum(z * z - 1, 0.0), 0.0)


def bin_deviance(n: Floats, N: Floats, c: Floats, m: Floats) -> tuple[Floats, Floats]:
    """Pooled share, and half the likelihood ratio of "two shares" against "one", for n of N and c of m events."""
    deviance = (_x_log_x(n) + _x_log_x(N - n) + _x_log_x(c) + _x_log_x(m - c) - _x_log_x(n + c)
                - _x_log_x(N + m - n - c) + _x_log_x(N + m) - _x_log_x(N) - _x_log_x(m))
    return (n + c) / (N + m), np.maximum(deviance, 0.0)


def _x_log_x(x: Floats) -> Floats:
    """x ln x, 0 at 0. Sums of it lose 1e-16 of the largest term: with 1e9 events a z of 0 may read 0.003."""
    return x * np.log(np.maximum(x, 1e-300))


def nu_factor(threshold: float, alpha: float, nu: Floats) -> Floats:
    """What a z with an estimated variance is worth: normal quantile over t quantile, 1 for infinite `nu`."""
    finite = np.isfinite(nu)
    return np.where(finite, threshold / -special.stdtrit(np.where(finite, nu, 1.0), alpha), 1.0)


def benjamini_hochberg(p: Floats, false_share: float = NAMES_FALSE_SHARE) -> Ints:
    """Indices of the rows named at a false share of 10 %, by rising p."""
    order = np.argsort(p, kind="stable")
    passed = np.flatnonzero(p[order] <= false_share * np.arange(1, len(p) + 1) / len(p))
    return order[: passed[-1] + 1] if len(passed) else order[:0]


def _by_row(best: Floats) -> Floats:
    """(W, J) of the windows that exist as (J, 8)."""
    whole = np.zeros((best.shape[1], len(WINDOWS)))
    whole[:, : len(best)] = best.T
    return whole


def _strongest_window(best: Floats) -> Ints:
    """Index of the window with each row's largest z, (J,), the shortest of equals; the longest if nothing differs."""
    window: Ints = np.where(best.max(axis=0) > 0, best.argmax(axis=0), len(best) - 1)
    return window


def _words(reference: Reference, j: int) -> tuple[str, ...]:
    """What the comparisons of row j are called: four directions, then its scan bins."""
    row = reference.records[j]
    numeric = isinstance(row.binning, NumericBinning)
    directions = ("mean", "spread", "shape", "shape") if numeric else ("level mix",) * DIRECTIONS
    return (*directions, *row.binning.scan_words())
