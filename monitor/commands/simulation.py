"""The self-test's experiment: many made-up references and streams, judged exactly as the service would judge them.

Idea: one *run* draws a new reference from the law that the real one suggests, fits it, and lets streams of the same law
pass: one without drift, where every alarm is a false one, and one for each kind of drift, until it is found. Runs are
repeated while time is left. Because every run has its own reference, the noise of having drawn a reference is in the
result; the budget's promise is an average over exactly that.

The budget of a real monitor, one false alarm in weeks, is too rare to be seen in a minute. So the same decision is asked
for one in 50 and one in 500 panes: if these are kept, the knob is honest. Delays are measured at the real budget.

Invariants: run i is a function of (reference, knobs, seed, i), whatever the machine; only how many runs there are depends
on time. A measurement that time cut off is left out, one that the stream cut off counts as not found.

Cost: a fit of the reference per run and three decisions per pane. Neighbours: `detectors.law` draws, `decide.policy`
decides, `selftest` prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

from detectors.law import Law, LawStream, Levels, Numbers
from detectors.reference import Reference
from detectors.scan import Scan
from detectors.synthetic import Drift
from monitor.config import Budget
from monitor.decide.policy import Judge, Knobs, Policy, PolicyState
from monitor.flow import Window

#: Panes per false alarm that are asked for, at the configured `ignore_below` and at none.
ASKED, ASKED_STRICT = (50.0, 500.0), 100.0
#: Panes of a run without drift at 33 rows of the reference, and least; wider references get fewer.
QUIET_PANES, QUIET_PANES_MIN, QUIET_ROWS = 300, 60, 33
#: Panes before a drift, and panes in which it must be found.
WARM_PANES, DRIFT_PANES = 16, 150
#: Values drawn for one reference, and for one pane: beyond, fewer events stand for more.
REFERENCE_VALUES, PANE_VALUES, REFERENCE_EVENTS_MIN, PANE_EVENTS_MIN = 4_000_000, 100_000, 5_000, 250
#: A rate is called too high when chance alone would show it with this probability.
RISK = 0.001
#: So many runs must have had more than their share: one unlucky reference alarms again and again.
UNLUCKY = 2
#: From this share on a column is not called complete.
MISSING_MAX = 0.005
#: Two columns are dependent enough to see their dependence break.
CORRELATION_MIN = 0.3


@dataclass(slots=True)
class Rate:
    """False alarms at one asked rate.

    asked : panes per false alarm      ignore_below : reference s.d.      panes : without drift, in all
    counts : false alarms of every run; severe : those that would have asked for a retraining
    """

    asked: float
    ignore_below: float
    panes: int = 0
    counts: list[int] = field(default_factory=list)
    severe: int = 0

    @property
    def alarms(self) -> int:
        """False alarms in all."""
        return sum(self.counts)

    def interval(self, risk: float = 0.05) -> tuple[float, float]:
        """False alarms per pane, lower and upper limit: Poisson, widened where runs differ by more than chance."""
        spread = self._spread()
        seen = self.alarms / spread
        low = stats.gamma.ppf(risk / 2, seen) if seen else 0.0
        return float(low) * spread / self.panes, float(stats.gamma.ppf(1 - risk / 2, seen + 1)) * spread / self.panes

    @property
    def is_too_high(self) -> bool:
        """Whether more was seen than asked, beyond what chance and one unlucky reference explain."""
        if not self.panes or self.interval(2 * RISK)[0] <= 1 / self.asked:
            return False
        usual = self.panes / len(self.counts) / self.asked
        return sum(count > usual for count in self.counts) >= UNLUCKY

    def _spread(self) -> float:
        """How much more the runs differ than Poisson counts would; an unlucky reference alarms more than once."""
        mean = float(np.mean(self.counts)) if self.counts else 0.0
        return max(1.0, float(np.var(self.counts, ddof=1)) / mean) if mean and len(self.counts) > 1 else 1.0


@dataclass(slots=True)
class Delay:
    """How soon one kind of drift was found: per run the column and the panes, infinite where it was not within 150."""

    kind: str
    columns: list[str] = field(default_factory=list)
    panes: list[float] = field(default_factory=list)

    @property
    def found(self) -> int:
        """Runs in which it was found."""
        return int(np.isfinite(self.panes).sum())

    @property
    def median(self) -> float:
        """Median panes from the change to the alarm; infinite where half of the runs did not find it."""
        return float(np.median(self.panes)) if self.panes else float("nan")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of drift: what it is called, what changes, and the places of the columns it may be in."""

    words: str
    drift: Drift
    places: tuple[int, ...]


class Simulation:
    """The experiment for one reference and one set of knobs."""

    def __init__(self, reference: Reference, knobs: Knobs, *, events_per_pane: float, seed: int = 0) -> None:
        self.reference, self.seed = reference, seed
        self.law = Law.of(reference)
        width = max(len(self.law.columns), 1)
        self.events = max(1, round(min(events_per_pane, max(PANE_EVENTS_MIN, PANE_VALUES // width))))
        self.reference_events = min(reference.events, max(REFERENCE_EVENTS_MIN, REFERENCE_VALUES // width))
        self.quiet_panes = max(QUIET_PANES_MIN, min(QUIET_PANES, QUIET_PANES * QUIET_ROWS // len(reference.records)))
        self.asked = knobs.budget.panes_per_false_alarm(knobs.pane_seconds, events_per_pane)
        self.knobs = self._asking(knobs, self.asked)
        self.kinds = kinds(self.law)
        self.rates = [Rate(asked, knobs.ignore_below) for asked in ASKED]
        if knobs.ignore_below:
            self.rates.append(Rate(ASKED_STRICT, 0.0))
        self.delays = [Delay(kind.words) for kind in self.kinds]
        self.runs = 0

    def run(self, *, clock: Callable[[], float], until: float, runs: int | None = None,
            tick: Callable[[], None] = lambda: None) -> None:
        """Repeat runs until the clock says `until`, or for so many runs; `tick` is called after every pane."""
        while (runs is None or self.runs < runs) and (not self.runs or clock() < until):
            begun = clock()
            self._quiet(tick, lambda begun=begun: clock() < begun + (until - begun) / 2)  # type: ignore[misc]
            self._drifting(tick, lambda: clock() < until)
            self.runs += 1

    def scan(self) -> Scan:
        """The scan of the real reference at the asked budget: for its threshold and its smallest visible shifts."""
        return self._judge(self.reference, self.knobs).judge.scans[self.reference.model]

    def _quiet(self, tick: Callable[[], None], is_time: Callable[[], bool]) -> None:
        """A new reference, and a stream that does not drift, judged at every asked rate."""
        stream = LawStream(self.law, np.random.default_rng([self.seed, self.runs]))
        self._drawn = reference = self._reference(stream)
        judges = [self._judge(reference, replace(self._asking(self.knobs, rate.asked), ignore_below=rate.ignore_below))
                  for rate in self.rates]
        for rate in self.rates:
            rate.counts.append(0)
        for window in self._windows(reference, stream, self.quiet_panes):
            for place, (rate, policy) in enumerate(zip(self.rates, judges, strict=True)):   # two or three turns
                states = {alarm.state for alarm in policy(window, policy.judge(window))}
                rate.panes += 1
                if states & {"raised", "severe"}:               # an episode: the next one begins with nothing known
                    rate.counts[-1] += 1
                    rate.severe += "severe" in states
                    judges[place] = self._judge(reference, policy.judge.knobs[window.model])
            tick()
            if not is_time():
                return

    def _drifting(self, tick: Callable[[], None], is_time: Callable[[], bool]) -> None:
        """Every kind of drift once, from a run-dependent kind on, so that time cuts none off every time."""
        for turn in range(len(self.kinds)):
            place = (turn + self.runs) % len(self.kinds)
            kind, delay = self.kinds[place], self.delays[place]
            rng = np.random.default_rng([self.seed, self.runs, 1 + place])
            column = int(rng.choice(kind.places))
            panes = self._delay(LawStream(self.law, rng), replace(kind.drift, column=column), tick, is_time)
            if panes is None:
                return
            delay.columns.append("" if kind.drift.everywhere else self.law.names[column])
            delay.panes.append(panes)

    def _delay(self, stream: LawStream, drift: Drift, tick: Callable[[], None], is_time: Callable[[], bool]) -> float | None:
        """Panes from the change to the alarm; None when time was up before."""
        policy = self._judge(self._drawn, self.knobs)
        for window in self._windows(self._drawn, stream, WARM_PANES + DRIFT_PANES, drift):
            alarms = policy(window, policy.judge(window))
            tick()
            if any(alarm.state in ("raised", "severe") for alarm in alarms):
                if window.pane >= WARM_PANES:
                    return window.pane - WARM_PANES + 1
                policy = self._judge(self._drawn, self.knobs)   # a false alarm before the change is no detection
            if not is_time():
                return None
        return float("inf")

    def _reference(self, stream: LawStream) -> Reference:
        return Reference.fit(stream.rows(self.reference_events), self.law.columns, model=self.reference.model,
                             version=self.reference.version, ordered=self.reference.ordered, sample_rows=0)

    def _windows(self, reference: Reference, stream: LawStream, panes: int, drift: Drift | None = None) -> Iterator[Window]:
        """The panes of a stream; a drift begins after the warm ones."""
        seconds = self.knobs.pane_seconds
        for pane in range(panes):
            profile = reference.profile(stream.rows(self.events, drift if pane >= WARM_PANES else None))
            yield Window(reference.model, reference.version, "all", pane, pane * seconds, (pane + 1) * seconds, profile)

    @staticmethod
    def _judge(reference: Reference, knobs: Knobs) -> Policy:
        judge = Judge({reference.model: knobs})
        judge.begin(reference.model, reference, PolicyState())
        return Policy(judge)

    @staticmethod
    def _asking(knobs: Knobs, panes: float) -> Knobs:
        return replace(knobs, budget=Budget(1, panes * knobs.pane_seconds, None))


def kinds(law: Law) -> list[Kind]:
    """The kinds of drift that a law's columns can show, none of which a law without plain columns has."""
    quantities = list(law.quantities.values())
    everywhere = tuple(range(len(quantities)))
    numbers = tuple(i for i, quantity in enumerate(quantities) if isinstance(quantity, Numbers) and quantity.missing < 1)
    levels = tuple(i for i, quantity in enumerate(quantities) if isinstance(quantity, Levels))
    found = [Kind(f"mean of one column up by {shift:g} s.d.", Drift(mean=shift), everywhere) for shift in (0.25, 0.5, 1.0)]
    # Where values are missing, or 0, in the reference already, some more of them are no sharp change.
    full = tuple(i for i in everywhere if quantities[i].missing < MISSING_MAX) or everywhere
    without_zero = tuple(i for i in numbers if not _has_zeros(quantities[i])) or numbers
    found += [Kind("all columns up by 0.1 s.d.", Drift(mean=0.1, everywhere=True), everywhere),
              Kind("spread of one column times 1.3", Drift(spread=1.3), numbers),
              Kind("two humps instead of one, same mean and spread", Drift(two_humps=True), numbers),
              Kind("3 % of one column missing", Drift(replaced=0.03, constant=None), full),
              Kind("a new level in 2 % of one column", Drift(replaced=0.02, constant="a level never seen before"), levels),
              Kind("the value 0 in 10 % of one column", Drift(replaced=0.1, constant=0.0), without_zero)]
    pair = law.closest_pair()
    if pair is not None and abs(pair[2]) >= CORRELATION_MIN:
        a, b, r = pair
        words = f"{law.names[a]} independent of the others (its correlation with {law.names[b]} is {r:.2f})"
        found.append(Kind(words, Drift(joint=True), (a,)))
    return [kind for kind in found if kind.places]


def _has_zeros(quantity: Numbers | Levels) -> bool:
    """Whether 0 is a value of its own of a numeric column."""
    return isinstance(quantity, Numbers) and bool(np.any((quantity.low == 0) & (quantity.width == 0)))
