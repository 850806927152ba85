"""Detectors that take one number after another: errors as labels arrive, loss, latency, a distance per pane.

Idea: one protocol for all of them, `update(value) -> Step(warning, drift, statistic)`. CUSUM and EWMA are our own, on
values standardised with a given mean and s.d.; the `river:` names run river's own classes behind an adapter that adds
what river leaves out: strict options, the statistic that is compared, and a refusal of what is no 0 or 1.

Invariants: the steps are a function of (name, options, values so far). Feeding in two parts equals feeding once, and a
detector is never pickled: after a restart `fresh()` is fed the stored series again. A value that is not finite is
skipped and counted; it changes nothing. After a drift every one of them begins anew, so `drift` is an event, not a
state. Those of river take what comes next as normal: slow drift is absorbed, their false alarms are not bounded
(docs/parity.md has figures), and they observe, outside the budget. Ours keep the mean that they were given.

Cost: 1 us a value for CUSUM, EWMA and ADWIN, 2-10 us for the others, 0.3 ms for KSWIN; a few hundred bytes each (KSWIN
and FHDDM keep a window). The limit of CUSUM is simulated once per setting, 0.3 s.

Neighbours: `method` describes, `methods` is the catalogue, `streaming_river` knows the classes of river, which is
imported when a `river:` detector is made.
"""

from __future__ import annotations

import difflib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from detectors.method import NUMERIC, Method
from detectors.options import known_options, within
from detectors.streaming_river import ADAPTERS, constructed, fhddm

Floats = NDArray[np.float64]
#: Larger values would overflow a sum of squares and leave a detector at NaN for good: they count as not finite.
VALUE_MAX = 1e100
#: Standardised values end here: further out they say nothing more, and E and S stay numbers.
_Z_MAX = 1e12


@dataclass(frozen=True, slots=True)
class Step:
    """What one value did.

    warning   : in the detector's zone before drift; never without such a zone, and not together with drift
    drift     : the value completed a detection; the detector begins anew with the next one
    statistic : what was compared with the threshold, as `METHODS` says per detector; larger is more drift where it is
                a distance; NaN before the first value
    """

    warning: bool
    drift: bool
    statistic: float


class Streaming(ABC):
    """A detector on one series of numbers; order matters, so one owner feeds it in time order.

    name, options : as given to `detector`        seen, skipped : values taken, values that were not finite
    """

    def __init__(self, name: str, options: Mapping[str, object]) -> None:
        self.name, self.options = name, dict(options)
        self.seen = self.skipped = 0
        self._last = math.nan

    def update(self, value: float | None) -> Step:
        """Take the next value. A missing or infinite one is counted and skipped: no flags, the last statistic."""
        try:
            number = math.nan if value is None else float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{self.name}: expected a number, got {value!r}; leave out what is none") from None
        if not abs(number) <= VALUE_MAX:
            self.skipped += 1
            return Step(False, False, self._last)
        step = self._take(number)
        self.seen += 1
        self._last = step.statistic
        return step

    def feed(self, values: Iterable[float | None]) -> list[Step]:
        """One step per value, in order."""
        return [self.update(value) for value in values]

    def fresh(self) -> Streaming:
        """The same detector before its first value: feed it the stored series to have this one again."""
        return detector(self.name, **self.options)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.name}: expected to be rebuilt from its series, got pickled; store the values and feed fresh()")

    @abstractmethod
    def _take(self, value: float) -> Step:
        """The step of one finite value."""


class Cusum(Streaming):
    """Cumulative sums of Page (1954) on z = (value - mean)/sd: S <- max(0, S + z - k), drift when S > h.

    mean, sd     : of the series when nothing drifts                    k : half the shift to find soonest, in s.d.
    h            : threshold; or
    values_per_false_alarm : the average run without drift that h shall give, `cusum_limit` finds it
    two_sided    : a second sum on -z; the statistic is the larger one

    h = 5 with k = .5 gives one false alarm per 930 independent normal values one-sided, per 465 two-sided.
    """

    def __init__(self, *, mean: float = 0.0, sd: float = 1.0, k: float = 0.5, h: float | None = None,
                 values_per_false_alarm: float | None = None, two_sided: bool = True) -> None:
        given = {"mean": mean, "sd": sd, "k": k, "h": h, "values_per_false_alarm": values_per_false_alarm, "two_sided": two_sided}
        super().__init__("cusum", given)
        self.mean, self.sd = _standard("cusum", mean, sd)
        self.k = within("cusum.k", k, 0.0, math.inf)
        if not isinstance(two_sided, bool):
            raise ValueError(f"cusum.two_sided: expected true or false, got {two_sided!r}")
        if h is not None and values_per_false_alarm is not None:
            raise ValueError("cusum: expected h or values_per_false_alarm, got both; leave one out")
        if values_per_false_alarm is not None:
            self.h = cusum_limit(values_per_false_alarm, k=self.k, two_sided=two_sided)
        else:
            self.h = within("cusum.h", 5.0 if h is None else h, 0.0, math.inf)
        self.two_sided = two_sided
        self._up = self._down = 0.0

    def _take(self, value: float) -> Step:
        z = _clipped((value - self.mean) / self.sd)
        self._up = max(0.0, self._up + z - self.k)
        self._down = max(0.0, self._down - z - self.k) if self.two_sided else 0.0
        statistic = max(self._up, self._down)
        drift = statistic > self.h
        if drift:
            self._up = self._down = 0.0
        return Step(False, drift, statistic)


class Ewma(Streaming):
    """Moving average E <- lambda z + (1 - lambda) E of Roberts (1959) on z = (value - mean)/sd.

    weight : lambda, 0 to 1      width : L; drift when |E| > L sqrt(lambda/(2 - lambda) (1 - (1 - lambda)^(2t))) at the
    t-th value. The statistic is |E| in s.d.; `limit` is what it was compared with. The defaults .2 and 3 give one false
    alarm per 560 independent normal values.
    """

    def __init__(self, *, mean: float = 0.0, sd: float = 1.0, weight: float = 0.2, width: float = 3.0) -> None:
        super().__init__("ewma", {"mean": mean, "sd": sd, "weight": weight, "width": width})
        self.mean, self.sd = _standard("ewma", mean, sd)
        self.weight = within("ewma.weight", weight, 0.0, 1.0)
        self.width = within("ewma.width", width, 0.0, math.inf)
        self.limit = 0.0
        self._average, self._values = 0.0, 0

    def _take(self, value: float) -> Step:
        z = _clipped((value - self.mean) / self.sd)
        self._values += 1
        self._average = self.weight * z + (1 - self.weight) * self._average
        spread = self.weight / (2 - self.weight) * (1 - (1 - self.weight) ** (2 * self._values))
        self.limit = self.width * math.sqrt(spread)
        statistic = abs(self._average)
        drift = statistic > self.limit
        if drift:
            self._average, self._values = 0.0, 0
        return Step(False, drift, statistic)


def cusum_limit(values_per_false_alarm: float, *, k: float = 0.5, two_sided: bool = True) -> float:
    """The threshold h of CUSUM that gives this average run length on independent normal values, within about 5 %.

    values_per_false_alarm : 2 to 1e12      k : above 0.05 (without a drift to zero the sums have no finite cycles)

    One series of 2 million normals from a fixed seed is cut into excursions from 0; the run length is the mean time of
    an excursion, up to h or back to 0, over the share of them that pass h. Where fewer than 1,000 pass, ln(run length)
    goes on with slope 2k, Lundberg's exponent of a normal walk. Two-sided: the two sums alarm at the sum of their rates.
    """
    within("cusum.values_per_false_alarm", values_per_false_alarm, 2.0, 1e12, closed=True)
    within("cusum.k", k, 0.05, 10.0, closed=True)
    return _simulated_limit(float(values_per_false_alarm) * (2 if two_sided else 1), float(k))


_EXCURSION_VALUES, _PASSES_MIN, _SEED = 2_000_000, 1000, 20_240_601


@lru_cache(maxsize=64)
def _simulated_limit(run_length: float, k: float) -> float:
    """h of the one-sided sum for this average run length."""
    walk = np.cumsum(np.random.default_rng(_SEED).standard_normal(_EXCURSION_VALUES) - k)
    lowest = np.minimum(np.minimum.accumulate(walk), 0.0)
    S = walk - lowest                                      # Lindley's recursion without a loop
    excursion = np.cumsum(np.diff(lowest, prepend=0.0) < 0)        # S returns to 0: one ends, the next begins
    ends = np.append(np.flatnonzero(np.diff(excursion)), len(S) - 1)
    highest = np.maximum.reduceat(S, np.append(0, ends[:-1] + 1))
    first_of_all = int(excursion[0])

    def simulated(h: float) -> float:
        above = np.flatnonzero(h < S)
        passes = above[np.diff(excursion[above], prepend=-1) > 0]  # the first value above h of each excursion
        after = int((ends[excursion[passes] - first_of_all] - passes).sum())   # not time without an alarm
        return (len(S) - after) / len(passes)

    top = float(np.partition(highest, -_PASSES_MIN)[-_PASSES_MIN])   # about 1,000 excursions go higher
    longest = simulated(top)
    if run_length >= longest:
        return top + math.log(run_length / longest) / (2 * k)
    low, high = 0.0, top
    for _ in range(20):                                    # to a millionth of the range
        middle = (low + high) / 2
        low, high = (middle, high) if simulated(middle) < run_length else (low, middle)
    return (low + high) / 2


class River(Streaming):
    """A class of river behind our protocol, options by river's own names and defaults.

    The binary ones take 1 for an error and 0 for a right answer, all of them: river's FHDDM looks for a fall of the
    share of ones (it takes 1 for right, whatever its page says), so it is handed 1 - value. KSWIN draws at random: its
    seed is 0 unless given, so that it can be rebuilt.
    """

    def __init__(self, name: str, options: Mapping[str, object]) -> None:
        super().__init__(name, options)
        self._adapter = ADAPTERS[name.removeprefix("river:")]
        self._theirs = constructed(name, self._adapter, options)

    def _take(self, value: float) -> Step:
        theirs, adapter = self._theirs, self._adapter
        share = 0.0
        if adapter.binary:
            if value not in (0.0, 1.0):
                raise ValueError(f"{self.name}: expected 0 (right) or 1 (an error), got {value!r}; feed it the error indicator, "
                                 "or a detector for numbers")
            if adapter.statistic is None:
                value = 1 - value
                share = ((0 if theirs.drift_detected else theirs.n_one) + value) / theirs.sliding_window_size
            value = int(value)
        theirs.update(value)
        drift = bool(theirs.drift_detected)
        warning = bool(getattr(theirs, "warning_detected", False)) and not drift
        return Step(warning, drift, adapter.statistic(theirs) if adapter.statistic else fhddm(theirs, share))


def detector(name: str, **options: Any) -> Streaming:
    """The detector of that name before its first value.

    name    : `cusum`, `ewma` or `river:` and a class of river's, as listed in `METHODS`
    options : of that detector, by name; what is unknown or out of range is a ValueError of one line

    >>> [round(step.statistic, 6) for step in detector("cusum").feed([0.2, 1.1, 1.4, 2.0, 1.6])]
    [0.0, 0.6, 1.5, 3.0, 4.1]
    """
    if name in ("cusum", "ewma"):
        maker = Cusum if name == "cusum" else Ewma
        known_options(name, options, list(inspect.signature(maker).parameters))
        return maker(**options)
    if name.removeprefix("river:") in ADAPTERS and name.startswith("river:"):
        return River(name, options)
    names = [method.name for method in METHODS]
    near = [known for known in names if known.split(":")[-1].lower() == name.split(":")[-1].replace("_", "").lower()]
    near = near or difflib.get_close_matches(name, names, 1) or names
    raise ValueError(f"{name}: expected the name of a streaming detector, got an unknown one; known: {', '.join(near)}")


def _standard(name: str, mean: object, sd: object) -> tuple[float, float]:
    return within(f"{name}.mean", mean, -VALUE_MAX, VALUE_MAX), within(f"{name}.sd", sd, 0.0, VALUE_MAX)


def _clipped(z: float) -> float:
    return min(max(z, -_Z_MAX), _Z_MAX)


_FLAGS = frozenset({"boolean"})
METHODS: tuple[Method, ...] = (
    Method("cusum", "series", "sum of s.d., 0 and up", NUMERIC, "Cumulative sum of what goes beyond k s.d. (Page 1954).",
           threshold=5.0),
    Method("ewma", "series", "s.d., 0 and up", NUMERIC, "Size of the exponentially weighted mean (Roberts 1959)."),
    Method("river:ADWIN", "series", "mean of the adaptive window, unit of the series: a level, not a distance", NUMERIC,
           "Adaptive window, cut where the means of two parts differ (Bifet and Gavaldà 2007), by river."),
    Method("river:PageHinkley", "series", "sum in units of the series, 0 and up", NUMERIC,
           "Cumulative deviation from the running mean above its minimum (Page 1954), by river.", threshold=50.0),
    Method("river:KSWIN", "series", "-log10 p", NUMERIC,
           "Kolmogorov-Smirnov test of the newest values against earlier ones (Raab et al. 2020), by river.",
           threshold=-math.log10(0.005)),
    Method("river:DDM", "series", "s.d. of the error rate above its minimum", _FLAGS,
           "Error rate above its lowest (Gama et al. 2004), by river.", threshold=3.0),
    Method("river:EDDM", "series", "1 - share of the longest gap, 0 to 1", _FLAGS,
           "Gaps between errors against their longest (Baena-García et al. 2006), by river.", threshold=0.1),
    Method("river:HDDMA", "series", "rise of the error rate, 0 to 1; its bound shrinks with the values", _FLAGS,
           "Rise of the mean beyond Hoeffding's bound (Frías-Blanco et al. 2015), by river."),
    Method("river:HDDMW", "series", "rise of the weighted error rate, -1 to 1; its bound shrinks with the values", _FLAGS,
           "Rise of the weighted mean beyond McDiarmid's bound (Frías-Blanco et al. 2015), by river."),
    Method("river:FHDDM", "series", "fall of the share of right answers below its best, 0 to 1", _FLAGS,
           "Share right in the window below its best by Hoeffding's bound (Pesaranghader and Viktor 2016), by river.",
           threshold=math.sqrt(math.log(1e6) / 200)),
)
