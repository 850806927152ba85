"""Which alerts fire now, by what is shown: the conditions of Prometheus' rules, asked of the same snapshot.

The desk looks at one `Published` after the other and keeps, per set of labels, since when its condition holds, since
when the alert fires, and when it ended. An alert is the same alert as the one that the rules give: the same name, the
same labels but those that Prometheus adds for itself, the same words, the same waiting time before somebody hears of it.

Invariants. What is said is a function of the snapshot: after a restart the alarms that are open come from the state, and
the alerts go on. A service that is not ready says nothing, neither that something fires nor that it is over. What was
judged too long ago is not news: it ends, and TidemarkNoData begins. `keep_firing_for` has no counterpart, because it
bridges gaps between scrapes, and here are none. What Prometheus alone can see (the service being down, rates over a
quarter of an hour) is not sent.

Cost: some 20 µs per monitor and look, texts only when they are asked for. Neighbours: `alert_facts` has the texts,
`alert_sender` brings them away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from monitor import alert_words as words
from monitor.alert_limits import (
    COLLECTING_SECONDS_MAX,
    IN_FLIGHT,
    LOWER_IS_BETTER,
    NEWS_SECONDS,
    PROPOSED_SECONDS_MAX,
    TRAINING,
    Limits,
)
from monitor.alert_words import Words
from monitor.expose import alert_facts as facts
from monitor.expose.alert_facts import Links
from monitor.expose.judged import Judged, StreamKey, Values
from monitor.expose.snapshot import MonitorStatus, OpenAlarm, Published
from monitor.flow import FINAL_STATES, Launch

#: What ended is told again for so long, to an Alertmanager that was away: as long as Prometheus does.
RESOLVED_SECONDS = 900.0
#: Refusals are counted over so long, as the rules do.
REFUSED_SECONDS = 300.0

#: An alert's name and labels without those of the installation.
Key = tuple[str, tuple[tuple[str, str], ...]]
#: model, version, segment, kind, cause, state
Place = tuple[str, str, str, str, str, str]


@dataclass(frozen=True, slots=True)
class Told:
    """One alert as it is told: `ends_at` is None while it fires; times are seconds since 1970, wall clock."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    starts_at: float
    ends_at: float | None


@dataclass(slots=True)
class _Firing:
    """An alert that fires or has fired."""

    words: Words
    labels: dict[str, str]
    facts: Callable[[], Mapping[str, str]]
    starts_at: float
    ends_at: float | None = None
    said: Mapping[str, str] = field(default_factory=dict)          # what it said when it was last told


@dataclass(frozen=True, slots=True)
class _Held:
    """A condition that holds now."""

    words: Words
    labels: dict[str, str]
    facts: Callable[[], Mapping[str, str]]

    @property
    def key(self) -> Key:
        return self.words.name, tuple(sorted(self.labels.items()))


class Desk:
    """What fires and what has ended, from one look to the next.

    limits : per configured model; others have the defaults        labels : added to every alert
    retrain_label : whether TidemarkSevereDrift carries the label that routes it back as a trigger
    started : wall-clock time before which nothing was judged
    shared  : several replicas decide: a model that is no longer shown is another's to tell of, so nothing of it has ended;
              one that is shown anew was judged by another until then
    """

    def __init__(self, limits: Mapping[str, Limits], links: Links, labels: Mapping[str, str], *, retrain_label: bool = False,
                 started: float = 0.0, shared: bool = False) -> None:
        self._limits, self._links, self._labels = limits, links, labels
        self._retrain_label, self._started, self._shared = retrain_label, started, shared
        self._ours: dict[str, float] = {}           # model -> wall-clock time since which we tell of it
        self._pending: dict[Key, float] = {}
        self._firing: dict[Key, _Firing] = {}
        self._refusals: dict[str, deque[tuple[float, dict[str, int]]]] = {}

    def look(self, published: Published, now: float) -> bool:
        """Take note of a snapshot at a wall-clock time; whether an alert began or ended since the last look."""
        if not published.service.ready:
            return False
        changed = False
        if self._shared:
            self._ours = {status.model: self._ours.get(status.model, now) for status in published.service.monitors}
            self._firing = {key: firing for key, firing in self._firing.items() if firing.labels["model"] in self._ours}
        held = {one.key: one for one in self._held(published, now)}
        self._pending = {key: self._pending.get(key, now) for key in held}
        for key, one in held.items():
            known = self._firing.get(key)
            if known is not None and known.ends_at is None:
                known.facts = one.facts
            elif now - self._pending[key] >= words.seconds(one.words.waits):
                self._firing[key] = _Firing(one.words, one.labels, one.facts, now)
                changed = True
        for key, firing in list(self._firing.items()):
            if firing.ends_at is None and key not in held:
                firing.ends_at, changed = max(now, firing.starts_at), True
            elif firing.ends_at is not None and now - firing.ends_at > RESOLVED_SECONDS:
                del self._firing[key]
        return changed

    def told(self) -> tuple[Told, ...]:
        """Everything that fires, with its words of now, and what has ended lately, with its last words."""
        for firing in self._firing.values():
            if firing.ends_at is None or not firing.said:
                firing.said = facts.annotated(firing.words, firing.labels, firing.facts(), self._links)
        return tuple(Told({"alertname": firing.words.name, "severity": firing.words.severity, **firing.labels, **self._labels},
                          firing.said, firing.starts_at, firing.ends_at) for firing in self._firing.values())

    # ---- conditions ---------------------------------------------------------------------------------------------------

    def _held(self, published: Published, now: float) -> Iterator[_Held]:
        """Every condition that holds, monitor by monitor."""
        service = published.service
        streams = {judged.key: judged for judged, _ in published.judged}
        known = {(status.model, status.version) for status in service.monitors} | {key[:2] for key in streams}
        for status in service.monitors:
            model = status.model
            limits = self._limits.get(model, Limits(model))
            age = now - max(published.evaluated.get(model, 0.0), self._ours.get(model, self._started))
            is_fresh = age <= limits.stale_seconds
            launches = [launch for launch in service.launches if launch.model == model]
            opened = {key: alarm for key, alarm in service.open_alarms.items() if key[0] == model and key[:2] in known}
            refused = self._refused(status, now)
            yield from self._alarms(status, opened, streams, launches, refused, is_fresh, now)
            if is_fresh:
                yield from _states(model, streams)
            else:
                yield _Held(words.NO_DATA, {"model": model}, partial(_said_of_silence, age))
            is_severe = is_fresh and any(key[3:] == ("drift", "columns", "severe") for key in opened)
            yield from _budget_alerts(status, launches, is_severe, is_fresh)
            yield from _launch_alerts(status, launches, limits, now)

    def _alarms(self, status: MonitorStatus, opened: Mapping[Place, OpenAlarm], streams: Mapping[StreamKey, Judged],
                launches: list[Launch], refused: str, is_fresh: bool, now: float) -> Iterator[_Held]:
        """The alarms that are open; those that rest on a judgement only while it is fresh."""
        action = {words.ACTION_LABEL: words.ACTION_RETRAIN} if self._retrain_label else {}
        for (model, version, segment, kind, cause, reached), alarm in opened.items():
            labels = {"model": model, "version": version, "segment": segment}
            judged = streams.get((model, version, segment))
            if cause == "columns" and not is_fresh:
                continue
            if kind == "quality":
                yield _Held(words.DATA_FAULT, {**labels, "cause": cause}, partial(_said_of_fault, cause, alarm, judged, refused))
                continue
            severe = reached == "severe"
            scores = None if judged is None else judged.severe if severe else judged.score
            said = partial(_said_of_drift, alarm, judged, scores, launches, status, now)
            yield _Held(words.SEVERE_DRIFT, {**labels, **action}, said) if severe else _Held(words.DRIFT, labels, said)

    def _refused(self, status: MonitorStatus, now: float) -> str:
        """The commonest reason of refusals of the last five minutes; "" where there was none."""
        counts = {reason: count for (outcome, reason), count in status.events.items()
                  if outcome == "refused" and reason != "tombstone"}
        seen = self._refusals.setdefault(status.model, deque())
        if not seen or now - seen[-1][0] >= REFUSED_SECONDS / 30:
            seen.append((now, counts))
        while len(seen) > 1 and now - seen[1][0] >= REFUSED_SECONDS:
            seen.popleft()
        more = {reason: count - seen[0][1].get(reason, 0) for reason, count in counts.items()}
        most = max(more, key=lambda reason: more[reason], default="")
        return most if most and more[most] > 0 else ""


def _said_of_drift(alarm: OpenAlarm, judged: Judged | None, scores: Values | None, launches: list[Launch], status: MonitorStatus,
                   now: float) -> Mapping[str, str]:
    return {"since": facts.since(alarm), "columns": facts.columns(judged, scores), "word": "drift",
            "launched": facts.launched(launches, _left(status), now), "episode": f"{alarm.episode}"}


def _left(status: MonitorStatus) -> int | None:
    """Launches left this week; None where nothing is retrained."""
    return status.policy.budget_remaining if status.policy is not None else status.budget_remaining


def _said_of_fault(cause: str, alarm: OpenAlarm, judged: Judged | None, refused: str) -> Mapping[str, str]:
    return {"since": facts.since(alarm), "fault": facts.fault(cause, judged, refused),
            "word": "quality" if cause == "columns" else cause, "episode": f"{alarm.episode}"}


def _said_of_silence(age: float) -> Mapping[str, str]:
    return {"judged_age": facts.duration(age)}


def _states(model: str, streams: Mapping[StreamKey, Judged]) -> Iterator[_Held]:
    """What a stream is judged by, where that is not enough."""
    of_state = {"reference_inadequate": words.REFERENCE_INADEQUATE, "insufficient_data": words.INSUFFICIENT_DATA}
    for key, judged in streams.items():
        told = of_state.get(judged.evaluation.state)
        if key[0] == model and told is not None:
            yield _Held(told, dict(zip(("model", "version", "segment"), key, strict=True)), dict)


def _budget_alerts(status: MonitorStatus, launches: list[Launch], is_severe: bool, is_fresh: bool) -> Iterator[_Held]:
    """What keeps a model that is in severe drift from being retrained, and only a person can change."""
    policy, labels = status.policy, {"model": status.model}
    if _left(status) == 0 and is_severe and (not launches or launches[-1].state not in IN_FLIGHT):
        yield _Held(words.BUDGET_SPENT, labels, lambda: {"qualities": facts.qualities(launches, status)})
    if is_fresh and policy is not None and policy.waiting is not None and policy.waiting.reason == "breaker":
        yield _Held(words.BREAKER_OPEN, labels, dict)


def _launch_alerts(status: MonitorStatus, launches: list[Launch], limits: Limits, now: float) -> Iterator[_Held]:
    """What launches need somebody for: the latest one by its state, any of them by a call that fails."""
    for launcher in {one.launcher for one in launches if one.retry_at > 0 and one.state not in FINAL_STATES}:
        yield _Held(words.LAUNCHER_UNREACHABLE, {"model": status.model, "launcher": launcher}, dict)
    if not launches:
        return
    latest = launches[-1]
    state, age = latest.state, now - latest.steps[-1][1]
    labels = {"model": status.model, "launcher": latest.launcher}

    def said() -> Mapping[str, str]:
        return {"state": state, "launch_age": facts.launch_age(latest, now), "qualities": facts.qualities(launches, status)}

    if state in ("failed", "timed_out") and age < NEWS_SECONDS:
        yield _Held(words.RETRAINING_FAILED, labels, said)
    elif (state in TRAINING and age > limits.overdue_seconds) or (state == "approved" and age > COLLECTING_SECONDS_MAX):
        yield _Held(words.RETRAINING_STUCK, labels, said)
    elif state == "proposed" and age > PROPOSED_SECONDS_MAX:
        yield _Held(words.APPROVAL_WAITING, labels, said)
    elif state == "refused" and age < NEWS_SECONDS and _is_worse(facts.judged_launch(launches), status.metric):
        yield _Held(words.CHALLENGER_WORSE, labels, said)


def _is_worse(launch: Launch | None, metric: str) -> bool:
    if launch is None or launch.champion is None or launch.challenger is None:
        return False
    champion, challenger = launch.champion, launch.challenger
    return challenger > champion if metric in LOWER_IS_BETTER else challenger < champion
