"""From windows to alarms: the rings of running sums, the scan, and two state machines per stream.

`Judge` keeps one ring and one scan per model and turns a closed pane into scores. `Policy` turns scores into alarms:
*alarm* (large enough and certain enough to matter) and *severe* (surely above `retrain.above`) are two machines of the
same form. A machine fires when its score passes the threshold, once. Severe is over when every window up to
min(128, max(8, 4 w*)) panes is clearly below it, w* being the shortest window that fired; the alarm clears when that
has held for CALM_PANES panes in a row. Clearing the alarm empties the ring; the end of severe only moves its own
origin, because the alarm that goes on still needs the older panes.

Invariants. A decision is a pure function of the decided panes since the origin: the ring is not stored but built again
from the store's panes. An empty pane moves windows on but never clears an alarm: no data is not good news. A reference
under 200 rows decides nothing.

Cost: one scan per pane, under 1 ms at 20 columns; nothing per event. Sources: reference/statistics.md §2.5-2.8.
Neighbours: `state.panes` closes windows, `retrain.trigger` weighs severe alarms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.profile import Profile
from detectors.reference import Reference
from detectors.scan import Ring, Scan, Scores
from monitor.config import Budget
from monitor.flow import Alarm, Mover, Window

#: A running estimate of events per pane may drift by this factor before the threshold follows it.
BUDGET_STEP = 1.25
#: Panes in a row that must be calm before the alarm clears. At one, a lasting weak shift behind a strong one cleared by
#: a single lucky pane and was raised again (INSECTS at a budget of 30 days); as many as the shortest reach are
#: independent of one another.
CALM_PANES = 8
#: No more columns than this are named in one alarm; the API and the report show all.
MOVERS_MAX = 10


@dataclass(frozen=True, slots=True)
class Knobs:
    """What one monitor asks of its decisions."""

    budget: Budget
    pane_seconds: float
    ignore_below: float
    retrain_above: float
    roles: frozenset[str]                           # whose columns may make an alarm severe


class Machine(msgspec.Struct):
    """One alarm state: firing or not, and what must be remembered while it fires."""

    firing: bool = False
    episode: int = 0
    shortest: int = 0                               # w*, panes
    since: float = 0.0                              # seconds since 1970
    origin: int = -(2**62)                          # panes up to here take no part
    calm: int = 0                                   # panes in a row in which the episode could not be seen


class PolicyState(msgspec.Struct):
    """What the store keeps of one model's decisions."""

    alarm: Machine = msgspec.field(default_factory=Machine)
    severe: Machine = msgspec.field(default_factory=Machine)
    kind: str = "drift"
    panes_per_false_alarm: float = 0.0
    alarms_total: dict[str, int] = msgspec.field(default_factory=dict)     # "kind:state" -> count


@dataclass(slots=True)
class Judge:
    """Rings and scans of every model; calling it with a closed pane gives that pane's scores."""

    knobs: Mapping[str, Knobs]
    rings: dict[str, Ring] = field(default_factory=dict)
    scans: dict[str, Scan] = field(default_factory=dict)
    states: dict[str, PolicyState] = field(default_factory=dict)
    events_per_pane: dict[str, tuple[int, int]] = field(default_factory=dict)   # decided events, decided panes

    def begin(self, model: str, reference: Reference, state: PolicyState, decided: tuple[int, int] = (0, 0)) -> None:
        """Judge a model against a reference from now on, with an empty ring."""
        self.states[model] = state
        self.events_per_pane[model] = decided
        self.rings[model] = Ring(reference)
        state.panes_per_false_alarm = state.panes_per_false_alarm or self._budget(model)
        self.scans[model] = self._scan(model, reference)

    def restore(self, model: str, origin: int, decided: Iterable[tuple[int, Profile]]) -> None:
        """Fill the ring from stored panes, oldest first; `origin` is the last pane before the ring's first."""
        ring, last = self.rings[model], origin
        for pane, profile in decided:
            ring.skip(pane - last - 1)
            ring.push(profile)
            last = pane

    def __call__(self, window: Window) -> Scores:
        """Scores of the windows that end with this pane."""
        model = window.model
        events, panes = self.events_per_pane[model]
        self.events_per_pane[model] = events + window.profile.events, panes + 1
        self._follow_budget(model)
        ring = self.rings[model]
        ring.skip(window.skipped)
        ring.push(window.profile)
        return self.scans[model](ring)

    def _budget(self, model: str) -> float:
        knobs = self.knobs[model]
        events, panes = self.events_per_pane[model]
        return knobs.budget.panes_per_false_alarm(knobs.pane_seconds, events / panes if panes else None)

    def _follow_budget(self, model: str) -> None:
        """A budget in events follows the traffic, in steps, so that a threshold does not wander from pane to pane."""
        if self.knobs[model].budget.events is None:
            return
        state, wanted = self.states[model], self._budget(model)
        ratio = wanted / state.panes_per_false_alarm
        if ratio > BUDGET_STEP or ratio < 1 / BUDGET_STEP:
            state.panes_per_false_alarm = wanted
            self.scans[model] = self._scan(model, self.scans[model].reference)

    def _scan(self, model: str, reference: Reference) -> Scan:
        knobs = self.knobs[model]
        return Scan(
            reference, tolerance=knobs.ignore_below, retrain_above=knobs.retrain_above,
            panes_per_false_alarm=self.states[model].panes_per_false_alarm,
        )


@dataclass(slots=True)
class Policy:
    """Scores to alarms; the machines live in the judge's states, so that one object is stored."""

    judge: Judge

    def __call__(self, window: Window, scores: Scores) -> tuple[Alarm, ...]:
        """What changed with this pane: at most one alarm each of raised, severe, cleared."""
        model = window.model
        reference = self.judge.scans[model].reference
        if reference.too_small:
            return ()
        state, ring = self.judge.states[model], self.judge.rings[model]
        alarms: list[Alarm] = []
        z_severe = self._allowed(model, reference, scores, window)
        passed = scores.score > 1
        passed_severe = bool(np.any(z_severe > scores.threshold))
        if passed and not state.alarm.firing:
            state.kind = kind_of(scores.z, scores.quality)
            self._fire(state.alarm, window, scores.shortest, state.alarm.episode + 1)
            alarms.append(self._alarm("raised", window, scores, state, z_severe))
        if passed_severe and not state.severe.firing:
            state.kind = kind_of(z_severe, scores.severe_quality)
            shortest = _shortest(z_severe, scores.threshold)
            self._fire(state.severe, window, shortest, state.alarm.episode)
            alarms.append(self._alarm("severe", window, scores, state, z_severe))
        if window.profile.events:
            if state.severe.firing and _is_over(z_severe, scores.threshold, state.severe, ring.panes):
                state.severe.firing, state.severe.origin = False, window.pane
            calm = state.alarm.firing and _is_over(scores.z, scores.threshold, state.alarm, ring.panes)
            state.alarm.calm = state.alarm.calm + 1 if calm else 0
            if state.alarm.calm >= CALM_PANES:
                alarms.append(self._alarm("cleared", window, scores, state, z_severe, "quiet"))
                self._clear(model, state, window.pane)
        self._count(state, alarms)
        return tuple(alarms)

    def standing(self, window: Window, scores: Scores) -> Alarm | None:
        """The severe alarm that is open now, as this pane sees it; None when there is none."""
        state = self.judge.states[window.model]
        if not state.severe.firing or not window.profile.events:
            return None
        reference = self.judge.scans[window.model].reference
        return self._alarm("severe", window, scores, state, self._allowed(window.model, reference, scores, window))

    def end_episode(self, model: str, version: str, at: float, reason: str) -> tuple[Alarm, ...]:
        """Clear an open alarm because its reference ends at event time `at` (a promotion)."""
        state, ring = self.judge.states[model], self.judge.rings[model]
        if not state.alarm.firing:
            return ()
        pane = int(at // self.judge.knobs[model].pane_seconds) - 1
        end = Window(model, version, "all", pane, at - self.judge.knobs[model].pane_seconds, at,
                     Profile.empty(self.judge.scans[model].reference))
        scores = self.judge.scans[model](ring)      # of the panes that are there: the same after a restart
        alarm = self._alarm("cleared", end, scores, state, scores.z_severe, reason)
        self._clear(model, state, pane)
        self._count(state, [alarm])
        return (alarm,)

    def state_name(self, model: str, scores: Scores) -> str:
        """The one word of `tidemark_state`: what a person should think of this stream now."""
        state, reference = self.judge.states[model], self.judge.scans[model].reference
        if state.severe.firing:
            return "drift"
        if state.alarm.firing:
            return "warning"
        if reference.too_small or reference.inadequate:
            return "reference_inadequate"
        return "insufficient_data" if np.isnan(scores.score) else "quiet"

    def origin(self, model: str) -> int:
        """The last pane before the ring's first."""
        return self.judge.states[model].alarm.origin

    def _allowed(self, model: str, reference: Reference, scores: Scores, window: Window) -> NDArray[np.float64]:
        """Severe evidence of the rows that may start a retraining, in windows since severe was last cleared."""
        roles = self.judge.knobs[model].roles
        by_name = {column.name: column.role for column in reference.columns}
        # One turn per row: names to roles, a few hundred look-ups per pane at most.
        rows = np.array([by_name.get(row, "input") in roles for row in scores.rows], bool)
        since = window.pane - self.judge.states[model].severe.origin
        lengths = np.array(Scan.windows)
        return np.where(rows[:, None] & (lengths <= since)[None, :], scores.z_severe, 0.0)

    @staticmethod
    def _fire(machine: Machine, window: Window, shortest: int, episode: int) -> None:
        machine.firing, machine.episode, machine.shortest = True, episode, shortest
        machine.since = window.end - shortest * (window.end - window.start)

    def _clear(self, model: str, state: PolicyState, pane: int) -> None:
        state.alarm.firing = state.severe.firing = False
        state.alarm.calm = 0
        state.alarm.origin = state.severe.origin = pane
        self.judge.rings[model].clear()

    @staticmethod
    def _count(state: PolicyState, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            key = f"{alarm.kind}:{alarm.state}"
            state.alarms_total[key] = state.alarms_total.get(key, 0) + 1

    def _alarm(
        self, what: str, window: Window, scores: Scores, state: PolicyState, z_severe: NDArray[np.float64], reason: str = ""
    ) -> Alarm:
        reference = self.judge.scans[window.model].reference
        machine = state.severe if what == "severe" else state.alarm
        is_severe = what == "severe" and scores.strongest_severe is not None
        found = scores.strongest_severe if is_severe and scores.strongest_severe is not None else scores
        strongest = int(np.argmax(np.max(z_severe if is_severe else scores.z, axis=1)))
        return Alarm(
            model=window.model, version=window.version, segment=window.segment, episode=machine.episode,
            state=what,  # type: ignore[arg-type]
            kind=state.kind,  # type: ignore[arg-type]
            score=scores.score, severe_score=float(np.max(z_severe, initial=0.0)) / scores.threshold,
            since=machine.since, at=window.end, pane=window.pane, window_panes=machine.shortest,
            window_events=int(found.window_events[strongest]),
            movers=movers(reference, scores, z_severe if is_severe else None),
            reference_adequate=not reference.inadequate, reason=reason,
        )


def movers(
    reference: Reference, scores: Scores, z_severe: NDArray[np.float64] | None = None, most: int = MOVERS_MAX
) -> tuple[Mover, ...]:
    """The columns that an alarm names, strongest evidence first.

    z_severe : given for a severe alarm, which is explained by the comparisons that made it severe
    """
    roles = {column.name: column.role for column in reference.columns}
    severe = scores.strongest_severe if z_severe is not None else None
    found = scores if severe is None else severe
    top = np.max(scores.z if severe is None or z_severe is None else z_severe, axis=1)
    named = [row for row in scores.named if top[row] > 0]
    if not named and np.any(top > scores.threshold):
        named = [int(np.argmax(top))]
    return tuple(
        Mover(
            column=scores.rows[row], role=roles.get(scores.rows[row], "input"), effect=float(found.effect[row]),
            lower=float(found.effect_lower[row]), upper=float(found.effect_upper[row]),
            evidence=float(top[row]) / scores.threshold, what=found.what[row],
            unit="share" if found.unit[row] == "share" else "sd",
        )
        for row in sorted(named, key=lambda row: -top[row])[:most]
    )


def kind_of(z: NDArray[np.float64], quality: NDArray[np.bool_]) -> str:
    """`quality` when the strongest row's evidence is missing, unseen or out-of-range values, else `drift`."""
    return "quality" if quality[int(np.argmax(np.max(z, axis=1)))] else "drift"


def _shortest(z: NDArray[np.float64], threshold: float) -> int:
    """The shortest window with evidence above the threshold, in panes."""
    return int(Scan.windows[int(np.argmax(np.max(z, axis=0) > threshold))])


def _is_over(z: NDArray[np.float64], threshold: float, machine: Machine, panes: int) -> bool:
    """Whether every window that the episode could still be seen in is clearly below the threshold."""
    reach = min(128, max(8, 4 * machine.shortest))
    lengths = np.array(Scan.windows)
    looked = lengths <= min(reach, max(panes, 1))
    return bool(np.all(np.max(z[:, looked], axis=0, initial=0.0) < threshold - 1))
