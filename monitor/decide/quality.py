"""Data faults that no bin can show: records that cannot be read, and too many, too few or no events at all.

Idea: the scan sees what stands in an event; here it is counted what never became one. `wrong_type`: the share of refused
records is surely above what is tolerated (lower Beta bound over the last 1, 4, 16 ... 128 panes), or so many records in a
row were refused that no tolerated share explains it. `volume`: the rate of events is a large factor away from its usual
(median of the last 7 days), from that of the same time yesterday and of a week ago, so that nights and weekends are learnt
after the first one; or the stream is silent. Each cause is one machine: raised once, cleared when it is over, with a
gap between the two. Alarms are of kind `quality`: people mend the producer, nothing is retrained.

Invariants. What panes decide is a pure function of the decided panes: `QualityState` is stored with the offsets, the rates
are read from the stored panes at start. Only the silence that nobody has broken yet depends on the wall clock, since
event time stands still then; and it is looked at only where everything was read.

Cost: 0.1-0.2 ms per decided pane, nothing per event. Memory: 16 bytes per pane of 7 days, 10,080 at most; 128 tallies.
Neighbours: `state.panes` counts refusals into the pane that was open, `pipeline` asks and notes the alarms.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec
import numpy as np
from scipy.special import bdtr, betaincinv

from monitor.config import Quality
from monitor.flow import Alarm, Window

#: Panes over which refusals are summed, the chance of an alarm by chance at the tolerated share, least refusals of one.
REFUSED_WINDOWS, REFUSED_CHANCE, REFUSED_MIN = (1, 4, 16, 64, 128), 1e-7, 3
#: Refused in a row in one partition, with no readable record between, they are an alarm before any pane closes.
REFUSED_IN_A_ROW = 100
#: Panes that must be calm, at least; and how sure it must be that the share has halved.
CALM_WINDOWS, CALM_CHANCE = (8, 16, 32, 64, 128), 1e-3
#: Panes of which a rate is made (more where events are rare, so that this many are expected), and panes to learn from first.
RATE_PANES, RATE_PANES_MAX, RATE_EVENTS, LEARN_PANES = 10, 100, 40, 30
#: New levels that an alarm names.
NAMED_LEVELS = 5
#: Panes of history: what the store keeps, and no more than a week.
HISTORY_PANES, WEEK_SECONDS, DAY_SECONDS, SAME_TIME_SECONDS = 10_080, 7 * 86_400, 86_400, 1_800

Cause = Literal["wrong_type", "volume"]


class CauseState(msgspec.Struct):
    """One machine: whether its alarm stands, and what the clearing must know."""

    firing: bool = False
    episode: int = 0
    since: float = 0.0                              # seconds since 1970
    origin: int = -(2**62)                          # panes up to here take no part in raising
    newest: int = -(2**62)                          # the newest pane with events when it was raised: only later ones clear it
    share: float = 0.0                              # wrong_type: of refused records when it was raised, lower 5 % bound
    words: str = ""


class QualityState(msgspec.Struct):
    """What the store keeps of one model's checks."""

    wrong_type: CauseState = msgspec.field(default_factory=CauseState)
    volume: CauseState = msgspec.field(default_factory=CauseState)
    tallies: list[tuple[int, int, int]] = msgspec.field(default_factory=list)       # (pane, counted, refused), newest last
    unseen: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)         # latest unseen levels, by column


@dataclass(slots=True)
class History:
    """Events of the decided panes of the last week, in the order of time."""

    pane_seconds: float
    panes: array[int] = field(default_factory=lambda: array("q"))      # 8 bytes a pane, where a list takes 40
    events: array[int] = field(default_factory=lambda: array("q"))
    _median: tuple[int, float] | None = None        # (block of ten panes before which it holds, events per pane)

    @property
    def kept(self) -> int:
        """Panes that are looked back at: a week of them, and no more than the store keeps."""
        return max(LEARN_PANES, min(HISTORY_PANES, int(WEEK_SECONDS // self.pane_seconds)))

    def add(self, pane: int, events: int) -> None:
        """Note a decided pane and forget what is older than the history."""
        if self.panes and pane <= self.panes[-1]:   # two versions share the pane of their cut-over
            self.events[-1] += events
            return
        self.panes.append(pane)
        self.events.append(events)
        if self.panes[0] < pane - self.kept * 5 // 4:
            first = bisect_left(self.panes, pane - self.kept)
            del self.panes[:first], self.events[:first]

    def between(self, first: int, last: int) -> int:
        """Events of the panes first ... last."""
        return sum(self.events[bisect_left(self.panes, first):bisect_left(self.panes, last + 1)])

    def usual(self, before: int) -> float | None:
        """Median events per pane, over ten panes at a time, of the panes before this one; None while it is being learnt."""
        if not self.panes or before - self.panes[0] < LEARN_PANES:
            return None
        end = before // RATE_PANES                  # blocks of ten panes; the one that `before` lies in is not whole
        if self._median is None or self._median[0] != end:
            start = max(-(-self.panes[0] // RATE_PANES), end - self.kept // RATE_PANES)
            first, last = bisect_left(self.panes, start * RATE_PANES), bisect_left(self.panes, end * RATE_PANES)
            blocks = np.array(self.panes[first:last], np.int64) // RATE_PANES - start
            sums = np.bincount(blocks, weights=self.events[first:last], minlength=max(end - start, 1))
            self._median = end, float(np.median(sums) / RATE_PANES)
        return self._median[1]

    def expected(self, pane: int) -> list[float]:
        """What the rate is compared with: the median, and about the same time a day and a week ago where that was seen."""
        median = self.usual(pane - RATE_PANES + 1)
        if median is None:
            return []
        rates, around = [median], max(RATE_PANES // 2, int(SAME_TIME_SECONDS // self.pane_seconds))
        for seconds in (DAY_SECONDS, WEEK_SECONDS):
            for shift in (-around, 0, around):
                end = pane - int(seconds // self.pane_seconds) + shift
                if max(self.panes[0], self.panes[-1] - self.kept) <= end - RATE_PANES < pane - 3 * RATE_PANES:
                    rates.append(self.between(end - RATE_PANES + 1, end) / RATE_PANES)
        return rates


@dataclass(slots=True)
class QualityChecks:
    """The checks of every model; called with each closed pane, and between panes with how long nothing has come."""

    rules: Mapping[str, Quality]
    states: dict[str, QualityState] = field(default_factory=dict)
    histories: dict[str, History] = field(default_factory=dict)

    def begin(self, model: str, pane_seconds: float, state: QualityState, decided: Iterable[tuple[int, int]] = ()) -> None:
        """Go on from what was stored: the machines, and (pane, events) of the decided panes, oldest first."""
        self.states[model], self.histories[model] = state, History(pane_seconds)
        for pane, events in decided:
            self.histories[model].add(pane, events)

    def __call__(self, window: Window) -> tuple[Alarm, ...]:
        """What changed with this pane."""
        rule, state, history = self.rules[window.model], self.states[window.model], self.histories[window.model]
        if window.unseen:
            state.unseen |= {column: dict(values) for column, values in window.unseen.items()}
        history.add(window.pane, window.profile.events)
        state.tallies = [*state.tallies, (window.pane, window.profile.events, sum(window.refused.values()))]
        state.tallies = state.tallies[-REFUSED_WINDOWS[-1]:]
        alarms = []
        if rule.max_refused_share is not None:
            alarms += self._refused(window, state, rule.max_refused_share)
        if rule.volume_factor is not None or rule.silent_panes is not None:
            alarms += self._volume(window, state, history, rule)
        return tuple(alarms)

    def in_a_row(self, window: Window, refused: int, reason: str) -> tuple[Alarm, ...]:
        """A partition in which so many records in a row were refused that no pane needs to close.

        window : the pane (without counts) that the last readable event belongs to
        """
        rule, state = self.rules[window.model], self.states[window.model]
        machine = state.wrong_type
        if rule.max_refused_share is None or machine.firing or refused < REFUSED_IN_A_ROW or window.pane <= machine.origin:
            return ()
        words = f"{REFUSED_IN_A_ROW} records in a row were refused in one partition, reason {reason}"
        machine.share = 1.0
        return (_raise(machine, "wrong_type", window, 1 / rule.max_refused_share if rule.max_refused_share else np.inf, 1, 0,
                       words),)

    def silent(self, window: Window, seconds: float, newest: int) -> tuple[Alarm, ...]:
        """A stream of which everything was read and nothing has come for so many seconds of wall-clock time.

        window : an empty pane, as many panes after `newest`, the last one that has events, as the silence is long
        """
        rule, state, history = self.rules[window.model], self.states[window.model], self.histories[window.model]
        panes = int(seconds // history.pane_seconds)
        if rule.silent_panes is None or state.volume.firing or panes < rule.silent_panes:
            return ()
        found = self._silence(window, state, history, panes, rule.silent_panes)
        state.volume.newest = newest                # it may be open still, and its close ends no silence
        return found

    def _refused(self, window: Window, state: QualityState, limit: float) -> list[Alarm]:
        machine = state.wrong_type
        tallies = np.array([tally for tally in state.tallies if tally[0] > machine.origin] or [(0, 0, 0)])[::-1]
        counted, refused = np.cumsum(tallies[:, 1]), np.cumsum(tallies[:, 2])
        if not machine.firing:
            if window.in_a_row >= REFUSED_IN_A_ROW and window.refused:
                return list(self.in_a_row(window, window.in_a_row, commonest(window.refused)))
            for panes in REFUSED_WINDOWS:           # five turns at most
                n, r = int(counted[min(panes, len(tallies)) - 1]), int(refused[min(panes, len(tallies)) - 1])
                bound = betaincinv(r, n + 1, REFUSED_CHANCE) if r >= REFUSED_MIN else 0.0
                if bound > limit:
                    machine.share = float(betaincinv(r, n + 1, 0.05))       # the point estimate was chosen for being large
                    mostly = f", mostly {commonest(window.refused)}" if window.refused else ""
                    words = (f"{100 * r / (n + r):.2g} % of records refused ({r} of {n + r} in {min(panes, len(tallies))} "
                             f"panes{mostly}), {100 * limit:.2g} % are tolerated")
                    score = float(bound / limit) if limit else np.inf
                    return [_raise(machine, "wrong_type", window, score, min(panes, len(tallies)), n, words)]
            return []
        for panes in CALM_WINDOWS:                  # five turns at most
            after = tallies[:panes][tallies[:panes, 0] * self.histories[window.model].pane_seconds >= machine.since]
            n, r = int(after[:, 1].sum()), int(after[:, 2].sum())
            halved = bdtr(r, n + r, machine.share / 2) < CALM_CHANCE
            if len(after) >= panes and n and r <= limit * (n + r) and (halved or panes == CALM_WINDOWS[-1]):
                return [_clear(machine, "wrong_type", window, panes, n, f"{r} of {n + r} records refused in {panes} panes")]
        return []

    def _volume(self, window: Window, state: QualityState, history: History, rule: Quality) -> list[Alarm]:
        machine, factor = state.volume, rule.volume_factor or 10.0
        if not machine.firing and rule.silent_panes is not None and window.skipped >= rule.silent_panes:
            found = self._silence(window, state, history, window.skipped, rule.silent_panes)
            if found:
                return list(found)
        rates = history.expected(window.pane)
        if not rates or not rates[0]:
            return []
        panes = min(RATE_PANES_MAX, max(RATE_PANES, int(np.ceil(RATE_EVENTS / rates[0]))))
        events = history.between(window.pane - panes + 1, window.pane)
        rate, low, high = events / panes, min(rates), max(rates)
        if machine.firing:
            if low * 2 / factor <= rate <= high * factor / 2 and window.pane > machine.newest:
                return [_clear(machine, "volume", window, panes, events, f"{rate:.3g} events a pane again, {rates[0]:.3g} usual")]
            return []
        if rule.volume_factor is None or rates[0] * panes < RATE_EVENTS or window.pane - panes < machine.origin:
            return []
        words = f"{rate:.3g} events a pane over {panes} panes, {rates[0]:.3g} usual: "
        if rate * factor < low:
            score = min(low / (rate * factor), 1e3) if rate else 1e3
            return [_raise(machine, "volume", window, score, panes, events, words + f"more than {factor:g} times too few")]
        if rate > high * factor:
            return [_raise(machine, "volume", window, rate / (high * factor), panes, events,
                           words + f"more than {factor:g} times too many")]
        return []

    @staticmethod
    def _silence(window: Window, state: QualityState, history: History, panes: int, limit: int) -> tuple[Alarm, ...]:
        """An alarm where so long a silence is not usual for the stream, nor for this time of the day or week."""
        rates = history.expected(window.pane - window.skipped if window.profile.events else window.pane)
        if not rates or min(rates) * panes < RATE_EVENTS:
            return ()
        words = f"no events for {panes} panes, {rates[0]:.3g} a pane usual"
        return (_raise(state.volume, "volume", window, panes / limit, panes, 0, words),)


def named_unseen(alarm: Alarm, unseen: Mapping[str, Mapping[str, int]]) -> Alarm:
    """The alarm with the new levels in the words of the columns that moved because of them, commonest first.

    unseen : the latest levels that the reference has never seen, with their events, by column
    """
    movers = []
    for mover in alarm.movers:
        levels = unseen.get(mover.column)
        if levels and ("unseen" in mover.what or "never seen" in mover.words):
            commonest = sorted(levels, key=lambda name: (-levels[name], name))[:NAMED_LEVELS]
            more = f" and {len(levels) - NAMED_LEVELS} more" if len(levels) > NAMED_LEVELS else ""
            words = mover.words or "levels that the reference has never seen"
            mover = replace(mover, words=f"{words}: {', '.join(commonest)}{more}")
        movers.append(mover)
    return replace(alarm, movers=tuple(movers))


def commonest(refused: Mapping[str, int]) -> str:
    """The reason of most refusals, the first by name of equals."""
    return min(refused, key=lambda name: (-refused[name], name))


def _raise(machine: CauseState, cause: Cause, window: Window, score: float, panes: int, events: int, words: str) -> Alarm:
    machine.firing, machine.episode, machine.newest, machine.words = True, machine.episode + 1, window.pane, words
    machine.since = window.end - panes * (window.end - window.start)
    return _alarm("raised", machine, cause, window, score, panes, events, words)


def _clear(machine: CauseState, cause: Cause, window: Window, panes: int, events: int, words: str) -> Alarm:
    machine.firing, machine.origin, machine.words = False, window.pane, ""
    return _alarm("cleared", machine, cause, window, 0.0, panes, events, words)


def _alarm(what: Literal["raised", "cleared"], machine: CauseState, cause: Cause, window: Window, score: float, panes: int,
           events: int, words: str) -> Alarm:
    return Alarm(
        model=window.model, version=window.version, segment=window.segment, episode=machine.episode, state=what,
        kind="quality", score=float(min(score, 1e6)), severe_score=0.0, since=machine.since, at=window.end, pane=window.pane,
        window_panes=panes, window_events=events, reason="quiet" if what == "cleared" else "", cause=cause, words=words)
