"""The decision with a formal bound: a gambler who bets against "the stream is as the reference, within the tolerance".

Idea: at every pane some hundred bets begin anew on each row, each with one unit of money: *tilt* bets on a direction
(location, scale, two shapes) being higher or lower, and *bin* bets on one bin being more or less frequent. A bet pays at
most its stake on average while the stream is within tolerance of the reference, whatever the reference's own noise hid
(a chi-square ball around it for tilts, the exact limits of one share for bins). So the fortunes, summed over all panes
since the last alarm, average at most the number of panes; the first time that their mean over rows reaches A comes after
A panes or more on average. This is a theorem for independent events and holds at every look; no normal tail is assumed.

Invariants: with t panes bet on, the expected total is at most t under every law that the bets allow for. A pane without
events begins no bet and leaves the fortunes as they are: silence is no evidence, and the bound holds all the same. The
log stake of every bet is `gain x (one number of the pane) - cost x events`, so no (J, bets, K) matrix exists.

Cost: per pane one product (J, K) x (K, 4) and one exponential per bet, 24 + 6 live bins bets a row: 0.15 ms at 20 columns,
2 ms at 500 on one core. Memory: 48 bytes a bet, 0.2 MB at 20 columns and 3 MB at 500; the fortunes are 8 bytes of them.

Neighbours: `reference` holds the other side; `scan` gives what an alarm says of effect, interval and window, which this
decision cannot know: it has no window. Paper: Shin, Ramdas and Rinaldo, "E-detectors", arXiv 2203.03532, section 2.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from detectors.arrays import Arrays, Fold
from detectors.profile import Profile, ReferenceMismatch
from detectors.reference import Reference
from detectors.seen import DIRECTIONS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Sizes of the tilts of each direction, in reference standard deviations.
TILTS = ((0.05, 0.1, 0.2, 0.4, 0.8), (0.1, 0.3, 0.8), (0.15, 0.5), (0.15, 0.5))
#: Odds of the bins' bets, up and down.
ODDS = (1.3, 2.5, 10.0)
#: Chance that any of the limits of what the reference may have been fails, and how many a row is counted with.
REFERENCE_RISK, LIMITS_PER_ROW = 0.05, 40
#: A bin surely above the first share is not bet up, one below the second not down: nothing could be won.
UP_BASE_MAX, DOWN_BASE_MIN = 0.9, 0.02
#: Share of false names among those that an alarm names (e-BH: Wang and Ramdas 2022).
NAMES_FALSE_SHARE = 0.1
#: One pane multiplies a fortune by e^300 at most, and no fortune passes 1e250: sums stay finite.
_LOG_STAKE_MAX, _FORTUNE_MAX = 300.0, 1e250

#: First bytes of stored fortunes; the digit is the format's version. Then the bets' digest, panes and bets.
_MAGIC = b"TME1"
_HEAD = struct.Struct("<4s32sqQ")

# Every tilt: its direction and its signed size.
_TILT_DIRECTION = np.array([r for r, sizes in enumerate(TILTS) for _ in sizes for _ in "+-"])
_TILT_SIZE = np.array([sign * size for sizes in TILTS for size in sizes for sign in (1.0, -1.0)])


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the fortunes say after a pane.

    total     : mean over the rows that bet, 0 and up; on average at most `panes` without drift
    rows      : (J,), mean over each row's bets; 0 for a row without bets
    threshold : A, the total from which on it is an alarm
    panes     : panes bet on since the fortunes were new or cleared
    """

    total: float
    rows: Floats
    threshold: float
    panes: int

    @property
    def alarm(self) -> bool:
        """Whether the total has reached A."""
        return self.total >= self.threshold

    @property
    def score(self) -> float:
        """ln(1 + total) / ln(1 + A): 0 and up, 1 and more is an alarm; a show of hands, not a probability."""
        return math.log1p(self.total) / math.log1p(self.threshold)


class Fortunes:
    """The money of every bet of one stream; `ESR.begin` makes it, `ESR.update` changes it."""

    def __init__(self, bets_digest: bytes, bets: int) -> None:
        self.bets_digest = bets_digest
        self.panes = 0
        self.values: Floats = np.zeros(bets)

    def clear(self) -> None:
        """Take all money back: what comes next is the first pane."""
        self.panes = 0
        self.values = np.zeros(len(self.values))

    def to_bytes(self) -> bytes:
        """The fortunes for a store: a head of 52 bytes and 8 bytes a bet; `ESR.restore` reads them, to the last bit."""
        head = _HEAD.pack(_MAGIC, self.bets_digest, self.panes, len(self.values))
        return head + self.values.astype("<f8", copy=False).tobytes()


class ESR:
    """The e-SR decision prepared for one reference and one set of knobs.

    tolerance             : shifts below this many reference standard deviations are not worth an alarm
    panes_per_false_alarm : A, panes with events between false alarms on average at least
    spread_floor          : least s.d. of a bin where the tolerance widens its limits; 0.1 asks of a severe decision that
                            a bin surely moves by tolerance x 0.1 of all events, as the scan's severe score does
    """

    def __init__(self, reference: Reference, *, tolerance: float = 0.1, panes_per_false_alarm: float = 43_200.0,
                 spread_floor: float = 0.0) -> None:
        arrays, deff = reference.arrays, reference.deff
        rows, bins = arrays.c0.shape
        self.reference = reference
        self.tolerance, self.spread_floor, self.threshold = tolerance, spread_floor, panes_per_false_alarm
        self._risk = limit_risk(rows)
        self._fold = Fold(arrays, reference.shape, bins)
        tilts, cells = self._tilts(arrays, deff), self._bins(arrays, deff)
        row, test, gain, cost = (np.concatenate(pair) for pair in zip(tilts, cells, strict=True))
        order = np.argsort(row, kind="stable")
        self._row, self._test = row[order], test[order]
        self._cell = self._row * (DIRECTIONS + bins) + self._test
        self._gain, self._cost = gain[order] / deff[self._row], cost[order] / deff[self._row]
        bets = np.bincount(self._row, minlength=rows)
        self._bets = np.maximum(bets, 1)
        self._rows_betting = max(int(np.count_nonzero(bets)), 1)
        self._digest = hashlib.sha256(
            f"{reference.digest} {tolerance!r} {spread_floor!r} {TILTS} {ODDS}".encode()).digest()

    def begin(self) -> Fortunes:
        """The fortunes before the first pane."""
        return Fortunes(self._digest, len(self._gain))

    def restore(self, stored: bytes) -> Fortunes:
        """The fortunes that `Fortunes.to_bytes` wrote.

        raises : ReferenceMismatch for those of another reference or tolerance, ValueError for bytes that are none
        """
        if len(stored) < _HEAD.size or stored[:4] != _MAGIC:
            raise ValueError(f"stored fortunes: expected format {_MAGIC!r}, got {bytes(stored[:4])!r}; begin with new ones, or "
                             "use the version that wrote them")
        _, digest, panes, bets = _HEAD.unpack_from(stored)
        if digest != self._digest:
            raise ReferenceMismatch(
                f"stored fortunes: expected the bets of reference {self.reference.digest[:12]} at tolerance {self.tolerance:g}, "
                "got those of another reference or tolerance; begin with new ones")
        if bets != len(self._gain) or len(stored) != _HEAD.size + 8 * bets:
            raise ValueError(f"stored fortunes: expected {len(self._gain)} of 8 bytes each, got {len(stored) - _HEAD.size} "
                             "bytes; begin with new ones")
        fortunes = self.begin()
        fortunes.panes, fortunes.values = panes, np.frombuffer(stored, "<f8", offset=_HEAD.size).astype(np.float64)
        return fortunes

    def update(self, fortunes: Fortunes, pane: Profile) -> Evidence:
        """Let every bet play one pane, and say how much money there is."""
        if pane.reference_digest != self.reference.digest:
            raise ReferenceMismatch(f"e-SR: expected a profile of reference {self.reference.digest}, got one of "
                                    f"{pane.reference_digest}; a new reference begins with new fortunes")
        if pane.events:
            self.play(fortunes, self._fold(pane.counts[None])[0])
        return self.evidence(fortunes)

    def play(self, fortunes: Fortunes, counts: Floats) -> None:
        """One pane of scan counts (J, K), with at least one event: M <- (M + 1) exp(l) for every bet."""
        assert fortunes.bets_digest == self._digest, "fortunes of another reference or tolerance"
        stakes = self.log_stakes(counts)
        with np.errstate(over="ignore"):
            grown = (fortunes.values + 1) * np.exp(stakes)
        fortunes.values = np.minimum(grown, _FORTUNE_MAX)
        fortunes.panes += 1

    def log_stakes(self, counts: Floats) -> Floats:
        """l of every bet for scan counts (J, K), in nats, between -300 and 300; shape (bets,)."""
        sums = np.matmul(counts[:, None, :], self.reference.arrays.weights)[:, 0]
        seen = np.concatenate([sums, counts], axis=1).ravel()
        stakes: Floats = self._gain * seen[self._cell] - self._cost * counts.sum(axis=1)[self._row]
        return np.clip(stakes, -_LOG_STAKE_MAX, _LOG_STAKE_MAX)

    def evidence(self, fortunes: Fortunes) -> Evidence:
        """What the fortunes say now."""
        rows = np.bincount(self._row, weights=fortunes.values, minlength=len(self._bets)) / self._bets
        return Evidence(float(rows.sum()) / self._rows_betting, rows, self.threshold, fortunes.panes)

    def named(self, fortunes: Fortunes) -> tuple[int, ...]:
        """The rows that moved, most money first, a tenth of them false on average; the richest one at least."""
        rows = self.evidence(fortunes).rows
        named = e_benjamini_hochberg(rows / max(fortunes.panes, 1))
        return tuple(named.tolist()) or (int(rows.argmax()),)

    def strongest(self, fortunes: Fortunes) -> Ints:
        """What each row's richest bet is on: 0 ... 3 for a direction, 4 + k for scan bin k, -1 without bets; shape (J,)."""
        tests = np.full(len(self._bets), -1)
        order = np.lexsort((-fortunes.values, self._row))
        rows, first = np.unique(self._row[order], return_index=True)
        tests[rows] = self._test[order][first]
        return tests

    def _tilts(self, arrays: Arrays, deff: Floats) -> tuple[Ints, Ints, Floats, Floats]:
        """Row, direction, gain and cost of every tilt bet."""
        p = np.where(arrays.live, arrays.c0 + 0.5, 0.0) / (arrays.m + 0.5 * arrays.live.sum(axis=1))[:, None]
        radius = ball_radius(self.tolerance, deff, arrays.m, self._risk)
        cost = np.stack([tilt_cost(p, size * arrays.weights[:, :, r], radius)       # 24 turns, once per reference
                         for r, size in zip(_TILT_DIRECTION.tolist(), _TILT_SIZE.tolist(), strict=True)], axis=1)
        exists = (arrays.weights != 0).max(axis=1)[:, _TILT_DIRECTION]               # (J, 24)
        row, tilt = np.nonzero(exists)
        return row, _TILT_DIRECTION[tilt], _TILT_SIZE[tilt], cost[row, tilt]

    def _bins(self, arrays: Arrays, deff: Floats) -> tuple[Ints, Ints, Floats, Floats]:
        """Row, test, gain and cost of every bin bet: up at three odds, and down."""
        lower, upper = share_limits(arrays.c0 / deff[:, None], (arrays.m / deff)[:, None], self._risk)
        upper = np.minimum(upper + self.tolerance * self._spread(upper), 1.0)
        lower = np.maximum(lower - self.tolerance * self._spread(lower), 0.0)
        up = arrays.live & (upper < UP_BASE_MAX)
        down = arrays.live & ~arrays.one_sided & (lower > DOWN_BASE_MIN)
        rows, tests, gains, costs = [], [], [], []
        for may, base, sign in ((up, upper, 1), (down, lower, -1)):
            row, k = np.nonzero(may)
            for odds in ODDS:
                inside, outside = bin_stakes(base[row, k], odds**sign)
                rows.append(row)
                tests.append(DIRECTIONS + k)
                gains.append(inside - outside)
                costs.append(-outside)
        return np.concatenate(rows), np.concatenate(tests), np.concatenate(gains), np.concatenate(costs)

    def _spread(self, share: Floats) -> Floats:
        return np.maximum(np.sqrt(share * (1 - share)), self.spread_floor)


def limit_risk(rows: int) -> float:
    """Chance that one limit of what the reference may have been fails: 5 % over 40 limits in every row."""
    return REFERENCE_RISK / (LIMITS_PER_ROW * rows)


def ball_radius(tolerance: float, deff: Floats, m: Floats, risk: float) -> Floats:
    """rho of every row's chi-square ball, shape (J,): the tolerance and the reference's own noise, in reference s.d."""
    radius: Floats = tolerance - special.ndtri(risk) * np.sqrt(deff / m)
    return radius


def tilt_cost(p: Floats, tilt: Floats, radius: Floats) -> Floats:
    """What every event costs a tilt bet, in nats, shape (J,): ln sum p exp(tilt) + ln(1 + radius sd).

    p, tilt : shares of the bins and log of the tilt, (J, K)
    radius  : rho (J,), of the chi-square ball `sum (p' - p)^2 / p <= rho^2` within which the bet must not win. With
              h = exp(tilt) / sum p exp(tilt), the mean of h under p' is at most 1 + rho sd(h) there (Cauchy-Schwarz)
    """
    grown = np.exp(tilt)
    mean = (p * grown).sum(axis=1)
    sd = np.sqrt((p * (grown / mean[:, None] - 1) ** 2).sum(axis=1))
    cost: Floats = np.log(mean) + np.log1p(radius * sd)
    return cost


def share_limits(c: Floats, m: Floats, risk: float) -> tuple[Floats, Floats]:
    """Lower and upper limit of a share of which c of m were seen, each missed with chance `risk` (Clopper, Pearson 1934).

    >>> [round(float(limit), 6) for limit in share_limits(np.array(100.), np.array(1000.), 3.787879e-5)]
    [0.066351, 0.142377]
    """
    rest = np.maximum(m - c, 0.0)
    tiny = np.finfo(float).tiny                                                  # betaincinv is not defined at 0
    lower = np.where(c > 0, special.betaincinv(np.maximum(c, tiny), rest + 1, risk), 0.0)
    upper = np.where(rest > 0, special.betainccinv(c + 1, np.maximum(rest, tiny), risk), 1.0)
    return lower, upper


def bin_stakes(base: Floats, factor: float) -> tuple[Floats, Floats]:
    """Log stake of an event in the bin and of one outside, for a bet on the odds base / (1 - base) times `factor`.

    With q = base f / (1 - base + base f) an event pays q / base or (1 - q) / (1 - base): 1 on average at `base`, less
    at every share below it (f > 1) or above it (f < 1).
    """
    whole = 1 - base + base * factor
    return np.log(factor / whole), -np.log(whole)


def e_benjamini_hochberg(e: Floats, false_share: float = NAMES_FALSE_SHARE) -> Ints:
    """Indices of the rows with the k largest e-values, largest first: the largest k with k e_(k) / J >= 1 / false_share.

    >>> e_benjamini_hochberg(np.array([900., 60., 25., 4., .5])).tolist()
    [0, 1, 2]
    """
    order = np.argsort(-e, kind="stable")
    passed = np.flatnonzero(np.arange(1, len(e) + 1) * e[order] / len(e) >= 1 / false_share)
    return order[: passed[-1] + 1] if len(passed) else order[:0]
