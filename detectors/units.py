"""A column scaled or shifted as a whole: found from the counts of a window, with the factor and how well it fits.

Idea: if a producer changes the unit, every value becomes a x + b, so the window's distribution is the reference's, stretched
and moved. The window's share below each edge is a quantile of the window; the same quantile of the reference lies at
some x; the line through these pairs is (a, b). What decides is not the line but what it predicts: the reference's own
counts, stretched by (a, b), must give the window's share below *every* edge, to within sampling noise. Another shape
does not pass, however well its middle fits a line.

A genuine drift moves values, too. It is a unit change only beyond what drifts do: a factor outside [0.67, 1.5], or a shift
beyond 3 standard deviations. On skewed columns a drift *is* a factor (a lognormal one that moves by one standard
deviation of its logarithm is scaled by 2.7); so a factor must also move the column by more than 1.5, or spread it by a
factor outside [0.67, 1.5], where the reference is made normal (in normal scores).

Invariant: a pure function of the row and the counts. Values out of range are used only as shares below and above.

Cost: 0.1 ms with 80 bins where the movement is an ordinary drift, 0.3 ms beyond; only rows that moved surely are asked.

Neighbours: `faults` asks for it; conversions that people make by mistake are named from the table below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from detectors.binning import NumericBinning
from detectors.rows import Row

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Factors in here are drift, and so are shifts of fewer reference standard deviations.
FACTORS_OF_DRIFT = (0.67, 1.5)
SHIFT_OF_DRIFT = 3.0
#: A factor that moves the column by less than this in normal scores (and spreads it as little) is drift as well.
SCORES_OF_DRIFT = 1.5
#: Effective events, events in range, their share, and edges with events on both sides that a line may rest on.
EVENTS_MIN, IN_RANGE_MIN, IN_RANGE_SHARE, EDGES_MIN = 50, 20, 0.05, 5
#: Width, in standard deviations, of the rise at a single value.
STEP = 1e-10
#: Largest gap between predicted and seen shares: this many standard errors, and what straight lines inside bins cost.
GAP_ERRORS, GAP_OF_BINS = 1.3, 0.006
#: No line fits that leaves more events off it than this, whatever chance could explain (dependent columns: anything).
GAP_MAX = 0.05
#: The gap must be this much smaller than without the change: 1 / this.
GAP_GAIN = 3.0
#: Largest size of values, and smallest of a standard deviation as its inverse, that are looked at.
SIZE_MAX = 1e100
#: Conversions that are recognised, as (a, b, what they are); looked for also the other way round.
_CONVERSIONS = (
    (1.8, 32.0, "degrees Celsius to Fahrenheit"), (1.0, 273.15, "degrees Celsius to kelvin"),
    (2.54, 0.0, "inches to centimetres"), (25.4, 0.0, "inches to millimetres"), (0.3048, 0.0, "feet to metres"),
    (1.609344, 0.0, "miles to kilometres"), (0.45359237, 0.0, "pounds to kilograms"), (3.785411784, 0.0, "gallons to litres"),
    (4.184, 0.0, "calories to joules"), (3.6, 0.0, "metres per second to kilometres per hour"),
    (57.29577951, 0.0, "radians to degrees"), (60.0, 0.0, "hours to minutes, or minutes to seconds"),
    (3600.0, 0.0, "hours to seconds"), (24.0, 0.0, "days to hours"), (7.0, 0.0, "weeks to days"), (12.0, 0.0, "years to months"),
    (2.0, 0.0, ""), (10.0, 0.0, ""), (100.0, 0.0, ""), (1000.0, 0.0, ""), (1024.0, 0.0, ""), (1e6, 0.0, ""),
)


def _known() -> tuple[tuple[float, float, str], ...]:
    back = []
    for a, b, what in _CONVERSIONS:
        start, _, end = what.partition(" to ")
        if "," in what:
            reverse = "minutes to hours, or seconds to minutes"
        elif start.startswith("degrees"):
            reverse = f"degrees {end} to Celsius" if end == "Fahrenheit" else "kelvin to degrees Celsius"
        else:
            reverse = f"{end} to {start}" if what else ""
        back.append((1 / a, -b / a, reverse))
    return (*_CONVERSIONS, *back)


KNOWN = _known()
_KNOWN_A, _KNOWN_B = np.array([known[0] for known in KNOWN]), np.array([known[1] for known in KNOWN])


@dataclass(frozen=True, slots=True)
class Unit:
    """A change x -> a x + b of a whole column.

    a, b  : the line; exact where `name` or a round factor was recognised        gap : largest share of events off it
    name  : the conversion in words, or empty
    """

    a: float
    b: float
    gap: float
    name: str = ""

    def __str__(self) -> str:
        parts = [f"x {_digits(self.a)}"] if self.a != 1 else []
        if self.b:
            parts.append(f"{'+' if self.b > 0 else '-'} {_digits(abs(self.b))}")
        return " ".join(parts)


def unit_change(row: Row, counts: Ints) -> Unit | None:
    """The change of unit that turns the reference's row into a window's fine counts (bins,); None where there is none.

    A column with its sign turned round is found as well. None for categories and for windows of which too little lies in
    range.
    """
    if not isinstance(row.binning, NumericBinning):
        return None
    # Beyond these sizes squares leave float64; no unit of anything lies there.
    largest = float(np.abs(row.binning.edges).max())
    if not (1 / SIZE_MAX < row.sd < SIZE_MAX and largest < SIZE_MAX):
        return None
    shares = _Shares.of(row, counts)
    if shares is None:
        return None
    unchanged, mirrored = shares.gaps(np.array([1.0, -1.0]), np.zeros(2)).tolist()
    enough = min(shares.gap_limit, unchanged / GAP_GAIN)
    lines = shares.lines()
    fitted = shares.gaps(*lines) if lines is not None else np.full(1, np.inf)
    # A symmetric column that was shifted looks mirrored as well: the plain explanation comes first.
    if mirrored <= enough and fitted.min() > shares.gap_limit:
        return Unit(-1.0, 0.0, mirrored, "the sign is turned round")
    if shares.is_ordinary_drift():
        return None
    known = shares.gaps(_KNOWN_A, _KNOWN_B)
    at = int(known.argmin())
    a, b, name = KNOWN[at]
    # A conversion is named where it fits about as well as the line that was fitted freely, and no other one does.
    rivals = (np.abs(_KNOWN_A / a - 1) > 0.01) & (known < known[at] + shares.noise)
    is_close = known[at] <= min(enough, float(fitted.min()) + shares.noise / 2)
    if is_close and not rivals.any():
        return Unit(a, b, float(known[at]), name)
    if lines is not None:
        for i in np.argsort(fitted - shares.noise / 2 * np.array([0, 1, 1]), kind="stable").tolist():      # three turns
            line = float(lines[0][i]), float(lines[1][i])
            if fitted[i] <= enough and shares.is_beyond_drift(*line):
                return Unit(*line, float(fitted[i]))
    if is_close:                                    # one of several factors: nearly all values fell into a few bins
        return Unit(a, b, float(known[at]), "one of several factors that fit")
    return None


@dataclass(frozen=True, slots=True, eq=False)
class _Shares:
    """Reference and window as shares below; bins without the missing one.

    edges, beyond (E,) : the edges' values, and which edges lie just beyond that value: what is there is below them
    P, Q (E,) : share below each edge, of reference and window        noise : standard error of their difference
    knots, below (2 E - 1,) : the reference's distribution as straight lines: through the edges, and through each bin's
                              mean with the share that makes it the mean; a bin of one value rises at that value
    """

    edges: Floats
    beyond: NDArray[np.bool_]
    P: Floats
    Q: Floats
    noise: float
    knots: Floats
    below: Floats
    sd: float
    middle: float

    @classmethod
    def of(cls, row: Row, counts: Ints) -> _Shares | None:
        """None where too few events lie in range."""
        assert isinstance(row.binning, NumericBinning)
        edges = row.binning.edges
        n, c = counts[1 : len(edges) + 2].astype(np.float64), row.counts[1:].astype(np.float64)
        N, m = n.sum(), c[1:-1].sum()
        if min(N, m) < EVENTS_MIN * row.deff or n[1:-1].sum() < max(IN_RANGE_MIN, IN_RANGE_SHARE * N):
            return None
        p, Q = c[1:-1] / m, np.cumsum(n)[:-1] / N
        if np.count_nonzero(p) < EDGES_MIN:
            return None
        P = np.concatenate([[0.0], np.cumsum(p)])
        low, high, mean = edges[:-1], edges[1:], row.positions[2:-1]
        single = mean <= low
        inner = np.where(single, low + STEP * row.sd, mean)
        lower_part = np.where(single, 1.0, (high - mean) / (high - low))
        knots, below = np.empty(2 * len(p) + 1), np.empty(2 * len(p) + 1)
        knots[::2], knots[1::2] = edges, inner
        below[::2], below[1::2] = P, P[:-1] + lower_part * p
        np.maximum.accumulate(knots, out=knots)                 # an edge may follow its value by less than a step
        middle = float(np.interp(0.5, below, knots))
        beyond = np.concatenate([[False], np.nextafter(low, np.inf) == high])
        return cls(np.where(beyond, np.concatenate([low[:1], low]), edges), beyond, P, Q,
                   float(np.sqrt(row.deff * (1 / N + 1 / m))), knots, below, row.sd, middle)

    @property
    def gap_limit(self) -> float:
        """The largest gap that chance and the straight lines inside bins explain; few events do not excuse a bad fit."""
        return min(GAP_ERRORS * self.noise + GAP_OF_BINS, GAP_MAX)

    def gaps(self, a: Floats, b: Floats) -> Floats:
        """Largest difference over the edges between the window's share below and what a x + b of the reference predicts.

        a, b : shape (c,), several lines at once        returns : shape (c,)
        """
        turned = (a < 0)[:, None]
        x = (self.edges - b[:, None]) / a[:, None] + np.where(self.beyond ^ turned, 10 * STEP * self.sd, 0.0)
        shares = np.interp(x, self.knots, self.below, left=0.0, right=1.0)
        np.subtract(1.0, shares, out=shares, where=turned)
        gaps: Floats = np.abs(shares - self.Q).max(axis=1)
        return gaps

    def lines(self) -> tuple[Floats, Floats] | None:
        """(a, b), three each, through the pairs (reference quantile, edge): free, without constant, without factor.

        Pairs are weighted by how well a quantile is known. None where there are too few.
        """
        used = (self.Q > 0.002) & (self.Q < 0.998) & (np.diff(self.Q, prepend=0.0) > 0)
        if np.count_nonzero(used) < EDGES_MIN:
            return None
        y, u = self.edges[used], self.Q[used]
        x, w = np.interp(u, self.below, self.knots), u * (1 - u)
        w = w / w.sum()
        x0, y0 = float(w @ x), float(w @ y)
        spread, square = float(w @ (x - x0) ** 2), float(w @ x**2)
        if not spread > 0:
            return None
        a, through_zero = float(w @ ((x - x0) * (y - y0)) / spread), float(w @ (x * y) / square)
        if a <= 0 or through_zero <= 0:
            return None
        return np.array([a, through_zero, 1.0]), np.array([y0 - a * x0, 0.0, y0 - x0])

    def is_beyond_drift(self, a: float, b: float) -> bool:
        """Whether x -> a x + b is more than drifts do, surely: two standard errors beyond."""
        margin = 1 + 2 * self.noise
        moved = abs(a * self.middle + b - self.middle) / self.sd
        if FACTORS_OF_DRIFT[0] / margin < a < FACTORS_OF_DRIFT[1] * margin:
            return moved > SHIFT_OF_DRIFT + 2 * self.noise
        # Stretched about its own middle, with zero elsewhere: a spread has drifted, no unit changes like this.
        return not (moved < 0.25 + 2 * self.noise * max(1.0, a) and abs(self.middle) > self.sd)

    def is_ordinary_drift(self) -> bool:
        """Whether the movement is one that drifts make, where the reference is made normal."""
        used = (self.P > 0.005) & (self.P < 0.995) & (self.Q > 0.005) & (self.Q < 0.995)
        if np.count_nonzero(used) < 3:
            return False                            # too little in common to be a drift of that size
        s, t = ndtri(self.P[used]), ndtri(self.Q[used])
        spread = float(t.std())
        if spread <= 0:
            return False
        slope = float(((s - s.mean()) * (t - t.mean())).mean() / spread**2)
        shift = float(s.mean() - slope * t.mean())
        margin = 1 + 2 * self.noise
        ordinary = FACTORS_OF_DRIFT[0] / margin < slope < FACTORS_OF_DRIFT[1] * margin
        return ordinary and abs(shift) < SCORES_OF_DRIFT


def _digits(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.6g}"
