"""From windows to alarms: the rings of running sums, the scan, and three state machines per stream.

`Judge` keeps one ring and one scan per model and turns a closed pane into scores. `Policy` turns scores into alarms:
*alarm* (drift: large enough and certain enough to matter), *severe* (drift surely above `retrain.above`) and *quality*
(the data broke) are three machines of the same form. A machine fires when its evidence passes the threshold, once.
Severe is over when every window up to min(128, max(8, 4 w*)) panes is clearly below it, w* being the shortest window that
fired; the others clear when that has held, even at half of `ignore_below`, for CALM_PANES panes in a row. A machine that
cleared looks only at panes since then (its origin); when neither alarm nor quality fires any more, the ring is emptied.

With `alarm.method: esr` the fortunes of `detectors.esr` raise alarm and quality instead of the scan's z; severe, effect,
columns and the end of an episode still come from the scan's windows.

Invariants. A decision is a pure function of the decided panes since the origin: the ring is not stored but built again
from the store's panes (fortunes are stored). An empty pane moves windows on but never clears an alarm: no data is not
good news. A reference under 200 rows decides nothing. A fault of the data never reaches severe, so never the trigger.

Cost: one scan per pane, 1 ms at 20 columns; nothing per event. Sources: reference/statistics.md §2.5-2.8, §3.
Neighbours: `state.panes` closes windows, `retrain.trigger` weighs severe alarms.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.dependence import DesignEffect
from detectors.esr import ESR, Evidence, Fortunes
from detectors.profile import Profile, ReferenceMismatch
from detectors.reference import Reference
from detectors.scan import LOCATION_SHARE, Ring, Scan, Scores
from detectors.scores import Strongest
from monitor.config import Budget
from monitor.flow import Alarm, AlarmKind, AlarmState, Mover, Window

Floats = NDArray[np.float64]

#: A running estimate of events per pane may drift by this factor before the threshold follows it.
BUDGET_STEP = 1.25
#: Panes in a row that must be calm before the alarm clears. At one, a lasting weak shift behind a strong one cleared by
#: a single lucky pane and was raised again (INSECTS at a budget of 30 days); as many as the shortest reach are
#: independent of one another.
CALM_PANES = 8
#: Panes of a stream from which its dependence is learnt, where the reference cannot tell.
LEARNING_PANES = Scan.windows[-1]
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
    method: str = "scan"                            # what raises: scan, or esr


class Machine(msgspec.Struct):
    """One alarm state: firing or not, and what must be remembered while it fires."""

    firing: bool = False
    episode: int = 0
    shortest: int = 0                               # w*, panes
    since: float = 0.0                              # seconds since 1970
    origin: int = -(2**62)                          # panes up to here take no part
    calm: int = 0                                   # panes in a row in which the episode could not be seen
    rows: list[str] = msgspec.field(default_factory=list)    # named when a fault was raised: all of them must calm down


class PolicyState(msgspec.Struct):
    """What the store keeps of one model's decisions."""

    alarm: Machine = msgspec.field(default_factory=Machine)
    severe: Machine = msgspec.field(default_factory=Machine)
    quality: Machine = msgspec.field(default_factory=Machine)
    origin: int = -(2**62)                          # the last pane before the ring's first
    panes_per_false_alarm: float = 0.0
    fortunes: bytes = b""                           # of the esr method
    effects: bytes = b""                            # design effects that were learnt from the stream
    alarms_total: dict[str, int] = msgspec.field(default_factory=dict)     # "kind:state" -> count


@dataclass(slots=True)
class Judge:
    """Rings and scans of every model; calling it with a closed pane gives that pane's scores."""

    knobs: Mapping[str, Knobs]
    rings: dict[str, Ring] = field(default_factory=dict)
    scans: dict[str, Scan] = field(default_factory=dict)
    states: dict[str, PolicyState] = field(default_factory=dict)
    events_per_pane: dict[str, tuple[int, int]] = field(default_factory=dict)   # decided events, decided panes
    bets: dict[str, tuple[ESR, Fortunes]] = field(default_factory=dict)         # of models with the esr method

    def begin(self, model: str, reference: Reference, state: PolicyState, decided: tuple[int, int] = (0, 0)) -> None:
        """Judge a model against a reference from now on, with an empty ring."""
        self.states[model] = state
        self.events_per_pane[model] = decided
        self.rings[model] = Ring(reference)
        state.panes_per_false_alarm = state.panes_per_false_alarm or self._budget(model)
        self._prepare(model, reference.with_effects(effects_from(reference, state.effects)) if state.effects else reference)

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
        self._learn_dependence(model, ring)
        scores = self.scans[model](ring)
        if model in self.bets:
            esr, fortunes = self.bets[model]
            evidence = esr.update(fortunes, window.profile)
            self.states[model].fortunes = fortunes.to_bytes()
            scores = by_bets(scores, evidence)
        return scores

    def _learn_dependence(self, model: str, ring: Ring) -> None:
        """How dependent events are, from the stream itself where the reference's rows are in no order; once, then frozen."""
        reference, state = self.scans[model].reference, self.states[model]
        if reference.ordered or reference.too_small or ring.panes < LEARNING_PANES:
            return
        learned = reference.with_dependence(ring.each())
        state.effects = effects_to_bytes(learned)
        self._prepare(model, learned)

    def clear(self, model: str) -> None:
        """Forget the panes and the fortunes of an episode that is over."""
        self.rings[model].clear()
        if model in self.bets:
            fortunes = self.bets[model][1]
            fortunes.clear()
            self.states[model].fortunes = fortunes.to_bytes()

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
            self._prepare(model, self.scans[model].reference)

    def _prepare(self, model: str, reference: Reference) -> None:
        """Scan and, where asked for, bets for the budget of now; fortunes go on under another budget."""
        knobs, state = self.knobs[model], self.states[model]
        self.scans[model] = Scan(
            reference, tolerance=knobs.ignore_below, retrain_above=knobs.retrain_above,
            panes_per_false_alarm=state.panes_per_false_alarm, common_shift=True, location_share=LOCATION_SHARE,
        )
        if knobs.method != "esr" or reference.too_small:
            return
        esr = ESR(reference, tolerance=knobs.ignore_below, panes_per_false_alarm=state.panes_per_false_alarm)
        try:
            fortunes = esr.restore(state.fortunes) if state.fortunes else esr.begin()
        except ReferenceMismatch:                   # stored under other knobs: `ignore_below` changed what is bet on
            fortunes = esr.begin()
        self.bets[model] = esr, fortunes


@dataclass(slots=True)
class Policy:
    """Scores to alarms; the machines live in the judge's states, so that one object is stored."""

    judge: Judge

    def __call__(self, window: Window, scores: Scores) -> tuple[Alarm, ...]:
        """What changed with this pane: at most one alarm each of raised, severe, cleared, for drift and for quality."""
        model = window.model
        reference = self.judge.scans[model].reference
        if reference.too_small:
            return ()
        state = self.judge.states[model]
        z_severe = self._allowed(model, reference, scores, window)
        alarms: list[Alarm] = []
        for machine, kind in self._open_to(state):
            z, by_bets = _part(scores, kind)
            seen = self._since(machine, z, window)
            passed = bool(np.any(seen > scores.threshold)) if by_bets is None else by_bets > 1
            if passed and not machine.firing:
                self._fire(machine, window, _shortest(seen, scores.threshold), self._next_episode(state))
                alarms.append(self._alarm("raised", kind, window, scores, machine, z_severe))
                machine.rows = [mover.column for mover in alarms[-1].movers] if kind == "quality" else []
        if np.any(z_severe > scores.threshold) and not state.severe.firing:
            self._fire(state.severe, window, _shortest(z_severe, scores.threshold),
                       state.alarm.episode if state.alarm.firing else self._next_episode(state))
            alarms.append(self._alarm("severe", "drift", window, scores, state.severe, z_severe))
        if window.profile.events:
            alarms += self._calm(state, window, scores, z_severe)
        self._count(state, alarms)
        return tuple(alarms)

    def _calm(self, state: PolicyState, window: Window, scores: Scores, z_severe: Floats) -> list[Alarm]:
        """Machines whose episodes are over with this pane."""
        model, alarms = window.model, []
        panes = self.judge.rings[model].panes
        if state.severe.firing and _is_over(z_severe, scores.threshold, state.severe, panes):
            state.severe.firing, state.severe.origin = False, window.pane
        was_open = state.alarm.firing or state.quality.firing
        for machine, kind in self._open_to(state):
            if not machine.firing:
                continue
            calm = _is_over(self._since(machine, _lasting(scores, kind, machine.rows), window), scores.threshold, machine, panes)
            machine.calm = machine.calm + 1 if calm else 0
            if machine.calm >= CALM_PANES:
                alarms.append(self._alarm("cleared", kind, window, scores, machine, z_severe, "quiet"))
                machine.firing, machine.calm, machine.origin = False, 0, window.pane
                if kind == "drift":
                    state.severe.firing, state.severe.origin = False, window.pane
        if was_open and not (state.alarm.firing or state.quality.firing):
            self._forget(model, state, window.pane)
        return alarms

    def standing(self, window: Window, scores: Scores) -> Alarm | None:
        """The severe alarm that is open now, as this pane sees it; None when there is none."""
        state = self.judge.states[window.model]
        if not state.severe.firing or not window.profile.events:
            return None
        reference = self.judge.scans[window.model].reference
        z_severe = self._allowed(window.model, reference, scores, window)
        return self._alarm("severe", "drift", window, scores, state.severe, z_severe)

    def end_episode(self, model: str, version: str, at: float, reason: str) -> tuple[Alarm, ...]:
        """Clear open alarms because their reference ends at event time `at` (a promotion)."""
        state, ring = self.judge.states[model], self.judge.rings[model]
        if not (state.alarm.firing or state.quality.firing):
            return ()
        pane = int(at // self.judge.knobs[model].pane_seconds) - 1
        end = Window(model, version, "all", pane, at - self.judge.knobs[model].pane_seconds, at,
                     Profile.empty(self.judge.scans[model].reference))
        scores = self.judge.scans[model](ring)      # of the panes that are there: the same after a restart
        alarms = tuple(self._alarm("cleared", kind, end, scores, machine, scores.z_severe, reason)
                       for machine, kind in self._open_to(state) if machine.firing)
        self._forget(model, state, pane)
        self._count(state, alarms)
        return alarms

    def state_name(self, model: str, scores: Scores) -> str:
        """The one word of `tidemark_state`: what a person should think of this stream now."""
        state, reference = self.judge.states[model], self.judge.scans[model].reference
        if state.severe.firing:
            return "drift"
        if state.alarm.firing or state.quality.firing:
            return "warning"
        if not (reference.ordered or reference.too_small):
            return "learning"
        if reference.too_small or reference.inadequate:
            return "reference_inadequate"
        return "insufficient_data" if np.isnan(scores.score) else "quiet"

    def open_episode(self, model: str) -> tuple[int, float | None]:
        """Number of the newest episode, and since when the open one is seen (drift before quality); None if none is."""
        state = self.judge.states[model]
        for machine in (state.alarm, state.quality):
            if machine.firing:
                return machine.episode, machine.since
        return max(state.alarm.episode, state.quality.episode), None

    def origin(self, model: str) -> int:
        """The last pane before the ring's first."""
        return self.judge.states[model].origin

    def _allowed(self, model: str, reference: Reference, scores: Scores, window: Window) -> Floats:
        """Severe evidence of the rows that may start a retraining, in windows since severe was last cleared."""
        roles = self.judge.knobs[model].roles
        # One turn per row: a few hundred look-ups per pane at most. Joint rows are made of inputs as a rule.
        rows = np.array([(column.role if column else "input") in roles for column in reference.column_of_row], bool)
        return self._since(self.judge.states[model].severe, np.where(rows[:, None], scores.z_severe, 0.0), window)

    @staticmethod
    def _since(machine: Machine, z: Floats, window: Window) -> Floats:
        """Evidence of the windows that began after the machine last cleared."""
        if window.pane - machine.origin >= Scan.windows[-1]:
            return z
        seen: Floats = np.where(np.array(Scan.windows) <= window.pane - machine.origin, z, 0.0)
        return seen

    @staticmethod
    def _open_to(state: PolicyState) -> tuple[tuple[Machine, AlarmKind], ...]:
        """The machines that people are told of, by the kind of their alarms."""
        return (state.alarm, "drift"), (state.quality, "quality")

    @staticmethod
    def _next_episode(state: PolicyState) -> int:
        return max(state.alarm.episode, state.severe.episode, state.quality.episode) + 1

    @staticmethod
    def _fire(machine: Machine, window: Window, shortest: int, episode: int) -> None:
        machine.firing, machine.episode, machine.shortest, machine.calm = True, episode, shortest, 0
        machine.since = window.end - shortest * (window.end - window.start)

    def _forget(self, model: str, state: PolicyState, pane: int) -> None:
        """All quiet: what comes next is the first pane."""
        for machine in (state.alarm, state.severe, state.quality):
            machine.firing, machine.calm, machine.origin = False, 0, pane
        state.origin = pane
        self.judge.clear(model)

    @staticmethod
    def _count(state: PolicyState, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            key = f"{alarm.kind}:{alarm.state}"
            state.alarms_total[key] = state.alarms_total.get(key, 0) + 1

    def _alarm(self, what: AlarmState, kind: AlarmKind, window: Window, scores: Scores, machine: Machine,
               z_severe: Floats, reason: str = "") -> Alarm:
        reference = self.judge.scans[window.model].reference
        severe = scores.strongest_severe if what == "severe" else None
        found, z = (scores, _part(scores, kind)[0]) if severe is None else (severe, z_severe)
        strongest = int(np.argmax(np.max(z, axis=1)))
        return Alarm(
            model=window.model, version=window.version, segment=window.segment, episode=machine.episode, state=what, kind=kind,
            score=_score(scores, kind), severe_score=float(np.max(z_severe, initial=0.0)) / scores.threshold,
            since=machine.since, at=window.end, pane=window.pane, window_panes=machine.shortest,
            window_events=int(found.window_events[strongest]), movers=movers(reference, scores, z, severe),
            reference_adequate=not reference.inadequate, reason=reason,
        )


def movers(reference: Reference, scores: Scores, z: Floats, severe: Strongest | None = None,
           most: int = MOVERS_MAX) -> tuple[Mover, ...]:
    """The columns that an alarm names, strongest evidence first.

    z      : (J, 8), the evidence that the alarm rests on
    severe : given for a severe alarm, which is explained by the comparisons that made it severe
    """
    found = scores if severe is None else severe
    top = np.max(z, axis=1)
    named = [row for row in scores.named if top[row] > 0]
    if not named and np.any(top > scores.threshold):
        named = [int(np.argmax(top))]
    owners = reference.column_of_row
    return tuple(
        Mover(
            column=scores.rows[row], role=owner.role if (owner := owners[row]) else "joint", effect=float(found.effect[row]),
            lower=float(found.effect_lower[row]), upper=float(found.effect_upper[row]),
            evidence=float(top[row]) / scores.threshold, what=found.what[row],
            unit="share" if found.unit[row] == "share" else "sd",
            words=scores.faults[row].words if row in scores.faults else "",
        )
        for row in sorted(named, key=lambda row: -top[row])[:most]
    )


def _part(scores: Scores, kind: AlarmKind) -> tuple[Floats, float | None]:
    """Evidence (J, 8) of one kind, and its score by the fortunes where those decide."""
    if kind == "drift":
        return scores.z, scores.bets[0] if scores.bets else None
    return scores.z_quality, scores.bets[1] if scores.bets else None


def _lasting(scores: Scores, kind: AlarmKind, rows: Sequence[str]) -> Floats:
    """Evidence (J, 8) that an episode goes on; a fault lasts while its columns are away, whatever that looks like now."""
    if kind == "drift":
        return scores.z_lasting
    still = np.isin(np.array(scores.rows), rows)
    return np.where(still[:, None], np.maximum(scores.z_lasting, scores.z_lasting_quality), scores.z_lasting_quality)


def _score(scores: Scores, kind: AlarmKind) -> float:
    """Evidence of one kind over what an alarm takes: 1 is an alarm; NaN while too few events take part."""
    z, by_bets = _part(scores, kind)
    return scores.score if np.isnan(scores.score) else float(z.max()) / scores.threshold if by_bets is None else by_bets


def by_bets(scores: Scores, evidence: Evidence) -> Scores:
    """Scores whose alarm is decided by fortunes: faulty rows' for quality, the others' for drift."""
    quality = scores.quality
    whole = float(evidence.rows.sum())

    def score(part: NDArray[np.bool_]) -> float:
        share = float(evidence.rows[part].sum()) / whole if whole > 0 else 0.0
        return math.log1p(share * evidence.total) / math.log1p(evidence.threshold)

    drift, fault = score(~quality), score(quality)
    return replace(scores, score=max(drift, fault), bets=(drift, fault))


def effects_to_bytes(reference: Reference) -> bytes:
    """A reference's design effects for the store, to the last bit."""
    numbers = [part for row in reference.records for part in (
        row.effect.g_directions, row.effect.nu_directions, row.effect.g_bins, row.effect.nu_bins)]
    return zlib.compress(np.concatenate(numbers).astype("<f8").tobytes())


def effects_from(reference: Reference, stored: bytes) -> list[DesignEffect]:
    """What `effects_to_bytes` wrote of a reference with these rows."""
    numbers, at, effects = np.frombuffer(zlib.decompress(stored), "<f8"), 0, []
    for row in reference.records:                               # turns: the rows, once per start
        bins = row.binning.scan_bins
        g, nu, g_bins, nu_bins = np.split(numbers[at : at + 8 + 2 * bins], [4, 8, 8 + bins])
        effects.append(DesignEffect(g, g_bins, nu, nu_bins))
        at += 8 + 2 * bins
    return effects


def _shortest(z: Floats, threshold: float) -> int:
    """The shortest window with evidence above the threshold, in panes; the one with the most where none is."""
    if not np.any(z > threshold):
        return int(Scan.windows[int(np.argmax(np.max(z, axis=0)))])
    return int(Scan.windows[int(np.argmax(np.max(z, axis=0) > threshold))])


def _is_over(z: Floats, threshold: float, machine: Machine, panes: int) -> bool:
    """Whether every window that the episode could still be seen in is clearly below the threshold."""
    reach = min(128, max(8, 4 * machine.shortest))
    lengths = np.array(Scan.windows)
    looked = lengths <= min(reach, max(panes, 1))
    return bool(np.all(np.max(z[:, looked], axis=0, initial=0.0) < threshold - 1))
