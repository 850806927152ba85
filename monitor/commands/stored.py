"""The panes that a service has kept, decided again: what other thresholds would have said of the same counts.

A pane's counts are all that a decision rests on, so nothing is read from Kafka again, and the state itself is only
looked at. Every model version that is in the file is judged by its own reference, in the order in which they served.

Exact where the file still has every pane; else the first windows lack what came before the first kept pane, and an
alarm of the first 128 panes may come later than it did. Cost: one scan per pane, some 10 s for a week of minutes.
Neighbours: `replay` prints this beside what the service said itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import groupby

import msgspec

from detectors.scores import Scores
from monitor.decide.policy import Judge, Policy, PolicyState
from monitor.flow import Alarm, Window
from monitor.retrain.ledger import Decision, Ledger, decision_from_json
from monitor.retrain.trigger import Trigger
from monitor.state.panes import SEGMENT
from monitor.state.store import Store
from monitor.watched import Watched


@dataclass(slots=True)
class Again:
    """One model's kept panes, decided again.

    panes, events : how many there are      since, until : from where to where, seconds since 1970
    versions      : that served in them     cut_off : the state has forgotten panes of the version that serves now
    then, now     : alarms that the service raised since the first kept pane, and those that it would raise now
    decided_then, decided_now : what the trigger answered, and would answer
    """

    model: str
    panes: int = 0
    events: int = 0
    since: float = 0.0
    until: float = 0.0
    versions: list[str] = field(default_factory=list)
    cut_off: bool = False
    then: list[Alarm] = field(default_factory=list)
    now: list[Alarm] = field(default_factory=list)
    decided_then: list[Decision] = field(default_factory=list)
    decided_now: list[Decision] = field(default_factory=list)


def again(one: Watched, store: Store, tick: Callable[[], None] = lambda: None) -> Again:
    """Decide the kept panes of one model again, with the thresholds of its configuration."""
    model, knobs, retrain = one.monitor.model, one.knobs(), one.monitor.retrain
    found = Again(model)
    current, decided = store.decided_panes(model)
    judge = Judge({model: knobs})
    policy, ledger = Policy(judge), Ledger()
    trigger = Trigger({} if retrain is None else {model: retrain}, ledger, clock=lambda: found.until)
    for (version, pane_ms), panes in groupby(store.kept(model), key=lambda item: item[:2]):
        if found.versions:
            found.now += policy.end_episode(model, found.versions[-1], found.until, "new reference")
        judge.knobs = {model: replace(knobs, pane_seconds=pane_ms / 1000)}
        last: int | None = None
        before = found.panes
        for _, _, pane, profile in panes:
            if last is None:
                judge.begin(model, store.reference(profile.reference_digest), PolicyState())
            start, end = pane * pane_ms / 1000, (pane + 1) * pane_ms / 1000
            window = Window(model, version, SEGMENT, pane, start, end, profile, 0 if last is None else pane - last - 1)
            last = pane
            found.since = found.since if found.panes else start
            found.panes, found.events, found.until = found.panes + 1, found.events + profile.events, end
            scores = judge(window)
            alarms = policy(window, scores)
            found.now += alarms
            _offer(trigger, policy, window, scores, alarms, (found.panes - before) * pane_ms / 1000)
            tick()
        found.versions.append(version)
        found.cut_off |= version == current and decided > found.panes - before
    found.decided_now = list(ledger.decisions)
    alarms_then = [msgspec.json.decode(document, type=Alarm) for document in store.history("alarms", model)]
    decisions_then = [decision_from_json(document) for document in store.history("decisions", model)]
    found.then = [alarm for alarm in alarms_then if alarm.at > found.since]
    found.decided_then = [decision for decision in decisions_then if decision.at > found.since]
    return found


def _offer(trigger: Trigger, policy: Policy, window: Window, scores: Scores, alarms: tuple[Alarm, ...],
           judged_seconds: float) -> None:
    """Give the trigger what the service would; what it launches ends at once, so that cooldown and budget go on."""
    episode = policy.judge.states[window.model].severe.episode
    is_standing = not any(alarm.state == "severe" for alarm in alarms) and trigger.is_waiting(
        window.model, window.version, episode)
    if is_standing:
        standing = policy.standing(window, scores)
        alarms = () if standing is None else (standing,)
    trigger(alarms, {}, is_standing=is_standing, judged_seconds=judged_seconds)
    trigger.end_replayed(window.end)
