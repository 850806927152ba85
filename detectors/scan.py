"""The default decision: the largest standardised difference between any recent window and the reference.

Idea: at every pane, for the last 1, 2, 4 ... 128 panes, each row is compared with the reference in a fixed set of ways:
four directions (location, scale, two shapes) and every single bin. The alarm is one comparison with one threshold, set
by the number of comparisons made in all and the false alarms allowed (union bound, valid under any dependence between
them). Scores are divided by that threshold: 1 is an alarm. Comparisons of location, few among many, may have a share of
the allowed false alarms for themselves: what moves in production is mostly a mean.

Invariants: a decision is a pure function of (reference, ring, knobs). Adding a window, a bin or a row without adding it
to `tests` breaks the promise; so does any second look at a pane.

Cost: O(8 J (4 K + K)) per pane, vectorised over windows, rows and bins: 0.8 ms at 20 columns and 6 ms at 500 on one core,
nothing per event. Memory: 8 J B counts of the windows and about ten temporaries of 8 J K floats (20 columns: 0.5 MB); the
ring itself is 129 J B 8 bytes.

Neighbours: `ring` sums panes, `reference` holds the other side, `seen` one pane's comparisons; the service's policy turns
scores into alarms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from detectors.arrays import Fold
from detectors.binning import NumericBinning
from detectors.faults import Fault, faults
from detectors.profile import Profile
from detectors.reference import Reference
from detectors.ring import PANES_MAX, Ring
from detectors.scores import Scores, Strongest
from detectors.seen import ALARM, DIRECTIONS, LASTING, PLAIN, RAW, SEVERE, Bins, Seen, x_log_x
from detectors.shift import Common, CommonShift

__all__ = ["LOCATION_SHARE", "WINDOWS", "Ring", "Scan", "Scores"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Window lengths in panes.
WINDOWS = tuple(2**power for power in range(PANES_MAX.bit_length()))
#: A window speaks from this many effective events on: below, the tail of a sum is not normal.
EFFECTIVE_EVENTS_MIN = 20
#: A bin speaks when it gained or lost at least this many events.
BIN_EXCESS_MIN = 4.0
#: A bin whose z is surely below is passed over: among a row's hundreds of comparisons chance makes larger ones.
BIN_Z_MIN = 1.5
#: Least s.d. of a bin in the severe score: a bin must surely move more than tolerance x 0.1 of all events.
SEVERE_SPREAD_FLOOR = 0.1
#: Share of false names among those that an alarm names (Benjamini and Hochberg 1995).
NAMES_FALSE_SHARE = 0.1
#: Rarer false alarms cannot be promised: the tail of a sum of 20 events is not known so far out.
PANES_PER_FALSE_ALARM_MAX = 1e15
#: Faults are looked for from this far below the threshold on: where an alarm that stands is not over yet.
FAULT_MARGIN = 1.0
#: `location_share` of the service, `tidemark check` and the quality benchmark.
LOCATION_SHARE = 0.5
_Z95 = 1.96


class Scan:
    """A decision prepared for one reference and one set of knobs.

    tolerance             : shifts below this many reference standard deviations are not worth an alarm
    retrain_above         : only shifts surely above this are severe
    panes_per_false_alarm : A, panes between false alarms on average when nothing drifts; 43,200 minutes are 30 days
    max_false_alarms_per_events : the same knob per event, for streams that are fed by `update`: 1e-6 is one in a million.
                            A then follows the usual size of the panes, by steps of a quarter
    common_shift          : also test all means together (`shift`): a small shift of many columns is found sooner
    location_share        : share of the false alarms that the comparisons of location (of numbers and joint rows) have for
                            themselves, 0 to below 1. 0: each comparison has the same, and location, being few, the least

    `threshold` is what a comparison's z must reach, `location_threshold`, (J,), what one of location must.

    A service keeps its own rings and calls the scan with one; in a notebook, `update` keeps one here.
    """

    windows = WINDOWS

    def __init__(self, reference: Reference, *, tolerance: float = 0.1, retrain_above: float = 0.3,
                 panes_per_false_alarm: float = 43_200.0, max_false_alarms_per_events: float | None = None,
                 common_shift: bool = False, location_share: float = 0.0) -> None:
        if not 0 <= tolerance <= retrain_above < np.inf:
            raise ValueError(f"scan: expected 0 <= tolerance <= retrain_above, got {tolerance} and {retrain_above}; mend one")
        rate = max_false_alarms_per_events
        if not 1 <= panes_per_false_alarm <= PANES_PER_FALSE_ALARM_MAX or not (
                rate is None or 1 / PANES_PER_FALSE_ALARM_MAX <= rate < 1):
            raise ValueError(f"scan: expected panes_per_false_alarm of 1 to {PANES_PER_FALSE_ALARM_MAX:.0e} and a rate per event "
                             f"between 0 and 1, got {panes_per_false_alarm} and {rate}; mend them")
        if not 0 <= location_share < 1:
            raise ValueError(f"scan: expected location_share of 0 to below 1, got {location_share}; mend it")
        self._rate, self._seen, self._common_shift = rate, (0, 0), common_shift
        self.location_share = location_share
        self._ring: Ring | None = None                  # made by the first `update`: a service has rings of its own
        self._prepare(reference, tolerance, retrain_above, panes_per_false_alarm)

    def update(self, profile: Profile) -> Scores:
        """The scores after one more pane of a stream without gaps; `clear` forgets the panes before."""
        self._ring = self._ring or Ring(self.reference)
        self._ring.push(profile)                        # first: one of another reference is refused and changes nothing
        if self._rate is not None:
            events, panes = self._seen[0] + profile.events, self._seen[1] + 1
            self._seen = events, panes
            wanted = max(1.0, panes / (self._rate * max(events, 1)))
            if not 0.8 <= wanted / self.panes_per_false_alarm <= 1.25:
                self._prepare(self.reference, self.tolerance, self.retrain_above, wanted)
        return self(self._ring)

    def clear(self) -> None:
        """Begin again without any pane, as after a change of the world that was accepted."""
        self._ring = None

    def _prepare(self, reference: Reference, tolerance: float, retrain_above: float, panes_per_false_alarm: float) -> None:
        arrays = reference.arrays
        rows, bins = arrays.c0.shape
        self.reference = reference
        self.tolerance, self.retrain_above = tolerance, retrain_above
        self.panes_per_false_alarm = panes_per_false_alarm
        self._tolerances = np.array([tolerance, tolerance / 2, 0.0, retrain_above])
        self.tests = 2 * len(WINDOWS) * (DIRECTIONS * rows + int(arrays.live.sum()))
        numeric = [isinstance(row.binning, NumericBinning) for row in reference.records]    # a level mix has no location
        location_tests = 2 * len(WINDOWS) * sum(numeric) if self.location_share else 0
        share = self.location_share if location_tests else 0.0
        self.alpha = (1.0 - share) / (panes_per_false_alarm * (self.tests - location_tests))
        self.threshold = float(-special.ndtri(self.alpha))
        # An estimated variance has fat tails: its z must reach the t quantile, not the normal one.
        self._nu_directions = nu_factor(self.threshold, self.alpha, arrays.nu_directions)
        self.location_threshold = np.full(rows, self.threshold)
        if location_tests:
            alpha = share / (panes_per_false_alarm * location_tests)
            own = float(-special.ndtri(alpha))
            self.location_threshold[numeric] = own
            # z of location is told in units of the common threshold: reaching its own one is reaching 1, as for all others.
            self._nu_directions[numeric, 0] = (
                nu_factor(own, alpha, arrays.nu_directions[numeric, 0]) * self.threshold / own)
        nu_bins = nu_factor(self.threshold, self.alpha, arrays.nu_bins)
        self._bin_scale = 2 * nu_bins**2 / arrays.g_bins
        self._pearson_scale = self._bin_scale * arrays.m[:, None] / BIN_Z_MIN**2
        self._loss_limit = np.where(arrays.one_sided, -np.inf, -BIN_EXCESS_MIN)
        m = arrays.m[:, None]
        self._per_event, self._skew = 1 / arrays.m, arrays.skew * np.sqrt(arrays.g_directions) / 6
        self._reference_entropy = x_log_x(arrays.c0) + x_log_x(m - arrays.c0) - x_log_x(m)
        self._row_tests = 2 * len(WINDOWS) * (DIRECTIONS + arrays.live.sum(axis=1))
        self._words = tuple(_words(reference, j) for j in range(rows))
        self._plain = np.flatnonzero(reference.is_plain)
        self._of_faults = _fault_bins(reference)
        # One more comparison a window. `tests` counts both signs of bins that only count when they gain: these 16 of the
        # places that are never used are its own.
        self._common = CommonShift.of(reference) if self._common_shift else None
        self._fold = Fold(arrays, reference.shape, bins)

    def smallest_visible_shift(self, window_events: float | None = None) -> Floats:
        """The shift of the mean, in reference s.d., that is found about surely, shape (J,).

        By the reference alone (an endless window without tolerance), or in a window of so many events with it.
        """
        arrays, deff = self.reference.arrays, self.reference.deff
        if window_events is None:
            return (self.location_threshold + 2) * np.sqrt(deff / arrays.m)
        if window_events <= 0:
            return np.full(len(deff), np.inf)
        return self.tolerance + (self.location_threshold + 2) * np.sqrt(deff * (1 / arrays.m + 1 / window_events))

    def __call__(self, ring: Ring) -> Scores:
        """The scores at the newest pane of `ring`."""
        lengths = np.array([w for w in WINDOWS if w <= ring.panes], np.int64)
        if not len(lengths) or self.reference.too_small:
            return self._silence()
        fine, _ = ring.windows(lengths)
        seen = self._compare(self._fold(fine), lengths)
        best = seen.best(self._tolerances)
        common = None
        if self._common is not None:
            common = Common.of(self._common, seen, self._tolerances[PLAIN])
            np.maximum(best[PLAIN, 0, :, -1], common.z, out=best[PLAIN, 0, :, -1])
        return self._scores(seen, fine, best, common)

    def _compare(self, n: Floats, lengths: Ints) -> Seen:
        """All comparisons of the scan counts `n`, shape (W, J, K), without a tolerance yet."""
        ref = self.reference.arrays
        events = n.sum(axis=2)                                                   # (W, J)
        N = np.maximum(events, 1.0)
        difference = np.matmul(n.transpose(1, 0, 2), ref.weights).transpose(1, 0, 2) / N[:, :, None] - ref.centre
        variance = ref.g_directions * (1 / N + self._per_event)[:, :, None]      # (W, J, 4)
        skew = self._skew * (1 / np.sqrt(N))[:, :, None]

        takes_part = events / self.reference.deff >= EFFECTIVE_EVENTS_MIN
        excess = n - N[:, :, None] * ref.p0                                      # (W, J, K)
        # Padded bins never speak: their excess is 0. Bins that only count when they gain have no lower limit.
        speaks = ((excess >= BIN_EXCESS_MIN) | (excess <= self._loss_limit)) & takes_part[:, :, None]
        # Pearson's statistic is never below half the likelihood ratio, and needs no logarithm.
        pooled, total = n + ref.c0, (N + ref.m)[:, :, None]
        speaks &= excess * excess * self._pearson_scale * total >= N[:, :, None] * pooled * (total - pooled)
        bins = self._bins(n, N, excess, np.flatnonzero(speaks))
        return Seen(lengths=lengths, n=n, events=events, takes_part=takes_part, difference=difference, variance=variance,
                    skew=skew, nu_directions=self._nu_directions, bins=bins)

    def _bins(self, n: Floats, N: Floats, excess: Floats, at: NDArray[np.intp]) -> Bins:
        """The comparisons of the bins at places `at` of (W, J, K).

        Only of those that speak, a third of them all: they are half of a decision's cost.
        """
        ref, cells = self.reference.arrays, self.reference.arrays.c0.size
        cell, pair = at % cells, at // n.shape[2]                                # row and bin; window and row
        total = N + ref.m
        inside, pooled = n.ravel()[at], n.ravel()[at] + ref.c0.ravel()[cell]
        constant = x_log_x(total) - x_log_x(N)
        deviance = (x_log_x(inside) + x_log_x(N.ravel()[pair] - inside) - x_log_x(pooled)
                    - x_log_x(total.ravel()[pair] - pooled) + constant.ravel()[pair] + self._reference_entropy.ravel()[cell])
        z = np.sqrt(np.maximum(deviance, 0.0) * self._bin_scale.ravel()[cell])
        share = pooled / total.ravel()[pair]
        spread = np.sqrt(share * (1 - share))
        per_gap = z * N.ravel()[pair] / np.abs(excess.ravel()[at])
        return Bins(at, pair, n.shape, z, per_gap * spread, per_gap * np.maximum(spread, SEVERE_SPREAD_FLOOR),
                    self._of_faults.ravel()[cell])

    def _silence(self) -> Scores:
        """The scores where nothing takes part: no pane yet, or a reference too small for any decision."""
        J = len(self.reference.rows)
        none, zero, never = np.zeros((J, len(WINDOWS))), np.zeros(J), np.full(J, np.inf)
        return Scores(rows=self.reference.rows, threshold=self.threshold, score=float("nan"), severe=float("nan"),
                      z=none, z_quality=none.copy(), z_severe=none.copy(), z_lasting=none.copy(),
                      z_lasting_quality=none.copy(), best_window=np.zeros(J, np.int64),
                      window_events=np.zeros(J, np.int64), effect=zero, effect_lower=-never, effect_upper=never,
                      test=np.zeros(J, np.int64), unit=("sd",) * J, what=tuple(words[0] for words in self._words),
                      quality=np.zeros(J, bool), state=("too_few_events",) * J, named=())

    def _scores(self, seen: Seen, fine: Ints, best: Floats, common: Common | None) -> Scores:
        """Collect the best comparisons of every window and row into one answer per row.

        best   : what `Seen.best` gives, (4, 2, W, J)
        common : the shift of all columns together; it speaks in the last row, the joint spread
        """
        either = np.maximum(best[:, 0], best[:, 1])
        alarm, raw, severe = either[ALARM], either[RAW], best[SEVERE, 0]
        by_row = np.zeros((*best.shape[:2], best.shape[3], len(WINDOWS)))        # windows that do not exist yet say 0
        by_row[..., : best.shape[2]] = best.swapaxes(2, 3)
        (z, z_quality), (z_lasting, z_lasting_quality), z_severe = by_row[ALARM], by_row[LASTING], by_row[SEVERE, 0]
        tops = either.max(axis=1)
        top, top_raw = tops[ALARM], tops[RAW]
        part: Bools = np.any(seen.takes_part, axis=0)
        known = bool(part.any())

        # A row that is sure to differ, but by too little, is described by its strongest comparison without tolerance.
        passes = (top > self.threshold) | ((top > 0) & (top_raw <= self.threshold))
        window = _strongest_window(np.where(passes, alarm, raw))
        test = seen.strongest_test(window, np.where(passes, self.tolerance, 0.0), floored=False)
        found = self._strongest(seen, window, test, top_raw > self.threshold)
        if common is not None and raw[window[-1], -1] > 0 and common.z[RAW][window[-1]] >= raw[window[-1], -1]:
            found = common.explained(found, int(window[-1]), self.reference)

        # What a fault explains is no drift; what it does to joint rows is told by the column itself.
        causes, explained = self._faults(fine, alarm, top), np.zeros(len(top), bool)
        if causes:
            faulty = np.zeros(len(top), bool)
            faulty[list(causes)] = True
            explained = self._explained(faulty)
            for drift, fault in ((z, z_quality), (z_lasting, z_lasting_quality)):
                fault[faulty] = np.maximum(drift, fault)[faulty]
                drift[faulty | explained] = fault[explained] = 0.0
            z_severe[faulty | explained] = 0.0
            top = np.where(explained, 0.0, top)
        named = self._named(top)
        score = float(top.max()) / self.threshold if known else float("nan")
        strongest_severe = None
        if z_severe.any():                                                       # rare: the next lines cost a tenth
            severe_window = _strongest_window(severe)
            severe_test = seen.strongest_test(severe_window, np.full(len(top), self.retrain_above), floored=True)
            strongest_severe = self._strongest(seen, severe_window, severe_test, top_raw > self.threshold)
        return Scores(
            rows=self.reference.rows, threshold=self.threshold, score=score,
            severe=float(z_severe.max()) / self.threshold if known else float("nan"),
            z=z, z_quality=z_quality, z_severe=z_severe, z_lasting=z_lasting, z_lasting_quality=z_lasting_quality,
            best_window=found.best_window, window_events=found.window_events,
            effect=found.effect, effect_lower=found.effect_lower, effect_upper=found.effect_upper,
            test=found.test, unit=found.unit, what=found.what, quality=z_quality.max(axis=1) > z.max(axis=1), faults=causes,
            state=self._states(top, top_raw, part, named if score > 1 else ()), named=named,
            strongest_severe=strongest_severe)

    def _faults(self, fine: Ints, alarm: Floats, top: Floats) -> dict[int, Fault]:
        """What broke in the rows whose evidence, (W, J) and (J,), is near the threshold or above; mostly in none.

        Looked for in the shortest window that shows the change: longer ones mix it with what was before.
        """
        least = self.threshold - FAULT_MARGIN
        causes = {}
        for row in np.flatnonzero(top > least).tolist():        # turns: the rows that moved, 0.04 to 0.3 ms each
            fault = faults(self.reference, row, fine[int((alarm[:, row] > least).argmax()), row])
            if fault is not None:
                causes[row] = fault
        return causes

    def _explained(self, quality: Bools) -> Bools:
        """The joint rows that a faulty column would move as well, (J,)."""
        joint, explained = self.reference.joint, np.zeros(len(quality), bool)
        if joint is not None and quality.any():
            explained[-joint.rows:] = joint.involves(quality[self._plain])
        return explained

    def _strongest(self, seen: Seen, window: Ints, test: Ints, moved: Bools) -> Strongest:
        """The comparisons (window, test) of every row in figures and words."""
        effect, half, is_bin = self._effect(seen, window, test)
        return Strongest(
            best_window=seen.lengths[window], window_events=seen.events[window, np.arange(len(window))].astype(np.int64),
            effect=effect, effect_lower=effect - half, effect_upper=effect + half, test=test,
            unit=tuple("share" if share else "sd" for share in is_bin.tolist()),
            what=self._what(seen, window, test, moved))

    def _what(self, seen: Seen, window: Ints, test: Ints, moved: Bools) -> tuple[str, ...]:
        """What each row's comparison is called; a joint row that moved by the columns that matter most to it."""
        words = [words[k] for words, k in zip(self._words, test.tolist(), strict=True)]
        joint = self.reference.joint
        if joint is not None:
            first, plain = len(words) - joint.rows, self._plain
            for row in np.flatnonzero(moved[first:-1]).tolist():    # at most 12 turns; the spread is of all columns
                j = first + row
                shift = seen.difference[window[j], plain, 0] if test[j] == 0 else None
                names = [self.reference.rows[plain[c]] for c in joint.leading(row, shift)]
                words[j] = "joint change of " + ", ".join(names)
        return tuple(words)

    def _states(self, top: Floats, top_raw: Floats, part: Bools, named: tuple[int, ...]) -> tuple[str, ...]:
        """Why each row speaks or is quiet; a row that a standing alarm names is not called quiet."""
        state = np.where(top_raw > self.threshold, "below_ignore", "quiet")
        state = np.where(part, state, "too_few_events")
        state = np.where(top > self.threshold, "drift", state)
        state[list(named)] = "drift"
        return tuple(state.tolist())

    def _effect(self, seen: Seen, window: Ints, test: Ints) -> tuple[Floats, Floats, Bools]:
        """Difference and half its 95 % interval in each row's strongest comparison, and whether that is a bin's."""
        ref, j = self.reference.arrays, np.arange(len(test))
        r, k = np.minimum(test, DIRECTIONS - 1), np.maximum(test - DIRECTIONS, 0)
        is_bin = test >= DIRECTIONS
        N = np.maximum(seen.events[window, j], 1.0)
        q, p = seen.n[window, j, k] / N, ref.p0[j, k]
        share_variance = ref.g_bins[j, k] * (q * (1 - q) / N + p * (1 - p) / ref.m)
        variance = np.where(is_bin, share_variance, seen.variance[window, j, r])
        return np.where(is_bin, q - p, seen.difference[window, j, r]), _Z95 * np.sqrt(variance), is_bin

    def _named(self, top: Floats) -> tuple[int, ...]:
        """Rows that moved, strongest first, a tenth of them false; if an alarm stands, at least the strongest."""
        if top.max() <= self.threshold and self._row_tests.min() * special.ndtr(-top.max()) > NAMES_FALSE_SHARE:
            return ()
        named = benjamini_hochberg(np.minimum(1.0, self._row_tests * special.ndtr(-top)))
        if not len(named) and top.max() > self.threshold:
            named = np.array([top.argmax()])
        return tuple(named[np.argsort(-top[named], kind="stable")].tolist())


def _fault_bins(reference: Reference) -> Bools:
    """Which bins speak of a fault of the data, (J, K).

    A value out of range, unseen or missing is a fault of a column's data. In rows that are computed only missing is: they
    have no values that were never seen, only combinations; and joint rows are never missing.
    """
    fault = reference.arrays.fault.copy()
    fault[~reference.is_plain, 1:] = False
    fault[[column is None for column in reference.column_of_row], 0] = False
    return fault


def nu_factor(threshold: float, alpha: float, nu: Floats) -> Floats:
    """What a z with an estimated variance is worth: normal quantile over t quantile, 1 for infinite `nu`."""
    finite = np.isfinite(nu)
    return np.where(finite, threshold / -special.stdtrit(np.where(finite, nu, 1.0), alpha), 1.0)


def benjamini_hochberg(p: Floats, false_share: float = NAMES_FALSE_SHARE) -> Ints:
    """Indices of the rows named at a false share of 10 %, by rising p."""
    order = np.argsort(p, kind="stable")
    passed = np.flatnonzero(p[order] <= false_share * np.arange(1, len(p) + 1) / len(p))
    return order[: passed[-1] + 1] if len(passed) else order[:0]


def _strongest_window(best: Floats) -> Ints:
    """Index of the window with each row's largest z, (J,), the shortest of equals; the longest if nothing differs."""
    window: Ints = np.where(best.max(axis=0) > 0, best.argmax(axis=0), len(best) - 1)
    return window


def _words(reference: Reference, j: int) -> tuple[str, ...]:
    """What the comparisons of row j are called: four directions, then its scan bins."""
    row = reference.records[j]
    if reference.joint is not None and j >= len(reference.records) - reference.joint.rows:
        last = j == len(reference.records) - 1
        return ("joint spread" if last else "joint change",) * (DIRECTIONS + row.binning.scan_bins)
    numeric = isinstance(row.binning, NumericBinning)
    directions = ("mean", "spread", "shape", "shape") if numeric else ("level mix",) * DIRECTIONS
    return (*directions, *row.binning.scan_words())
