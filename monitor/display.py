"""What the service shows: the decided panes and its own numbers, given to the exporter as finished values.

The loop notes every decided pane and every alarm here; after each checkpoint `show` hands over, once per model, the
last pane that was decided since, and one `ServiceSnapshot`. So a burst of panes while catching up costs one rendering,
and nothing is shown that is not stored.

The invariant: what is shown is read from the same objects that decide (judge, ledger, panes), never counted twice.
Cost: one set of distances per model that decided something, besides the exporter's own. Neighbours: `pipeline` owns
it, `expose.exporter` renders, `expose.views` words it for the API.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from detectors.comparison import display
from detectors.scan import Scan
from monitor.decide.explain import columns, headline
from monitor.decide.observe import Observer
from monitor.decide.policy import Judge
from monitor.decide.quality import QualityChecks
from monitor.decisions import PolicyStatus
from monitor.expose.exporter import Exporter
from monitor.expose.report_maker import Maker
from monitor.expose.snapshot import MonitorStatus, OpenAlarm, ServiceSnapshot, Why
from monitor.flow import Alarm, Evaluation, Rows, Source
from monitor.ingest.deadletters import DeadLetters
from monitor.retrain.limits import Moment
from monitor.retrain.trigger import Trigger
from monitor.state.capture import Capture
from monitor.state.panes import SEGMENT, Panes, Stream
from monitor.state.set_clock import SetClock

#: Distances are shown for this many panes while nothing fires: enough events to be calm, few enough to be fresh.
SHOWN_PANES = 16
#: The latest alarms that the API lists.
ALARMS_SHOWN = 100


@dataclass(slots=True)
class Configured:
    """What the configuration says of one model; the state may have moved on to a promoted version."""

    version: str
    digest: str
    metric: str = ""
    launcher: str = ""
    settle_seconds: float = 0.0
    model_uri: str = ""                             # where the configured version's model is, as far as it is said


@dataclass(slots=True)
class Display:
    """What was decided since it was last shown, and what the service knows of itself."""

    exporter: Exporter
    panes: Panes
    judge: Judge
    trigger: Trigger
    source: Source
    dead_letters: DeadLetters
    configured: Mapping[str, Configured]
    clock: SetClock
    quality: QualityChecks | None = None
    observer: Observer | None = None
    alarms: list[Alarm] = field(default_factory=list)
    latest: dict[str, Evaluation] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)         # model -> how long its last pane took to judge
    retried: dict[str, int] = field(default_factory=dict)
    checkpoint: float | None = None                 # wall-clock time of the last commit
    reports: Maker | None = None
    captures: Mapping[str, Capture] = field(default_factory=dict)
    loop: Mapping[str, float] = field(default_factory=dict)         # seconds of the loop by stage, counted by its owner
    away: str = ""                                  # why the source cannot be read now
    _unshown: set[str] = field(default_factory=set)

    def note(self, evaluation: Evaluation) -> None:
        """Note a decided pane; the next `show` shows it, if no later one of its model comes before."""
        model = evaluation.window.model
        self.latest[model] = evaluation
        self._unshown.add(model)
        self.exporter.record(evaluation, self.judge.scans[model].reference)

    def note_alarm(self, alarm: Alarm) -> None:
        """Note an alarm; only the latest ALARMS_SHOWN are kept."""
        self.alarms = [*self.alarms, alarm][-ALARMS_SHOWN:]

    def note_rows(self, rows: Rows) -> None:
        """Note what decoding tells of itself."""
        if rows.retried:
            self.retried[rows.model] = self.retried.get(rows.model, 0) + rows.retried

    def forget(self, model: str, version: str) -> None:
        """A version is no longer judged: its series and its last pane are not shown any more."""
        self.latest.pop(model, None)
        self._unshown.discard(model)
        self.exporter.forget(model, version)

    def show(self) -> None:
        """Give the exporter what changed: the last pane of each model, and the service's own numbers."""
        for model in sorted(self._unshown):
            evaluation = self.latest[model]
            reference, ring = self.judge.scans[model].reference, self.judge.rings[model]
            width = evaluation.scores.shortest or max((w for w in Scan.windows if w <= min(SHOWN_PANES, ring.panes)), default=1)
            counts, events = ring.window(min(width, max(ring.panes, 1))) if ring.panes else (evaluation.window.profile.counts, 0)
            with np.errstate(all="ignore"):
                distances = display(reference, counts, events)
            if self.observer is not None:           # one that is configured stands for itself
                own = {one.name for one in self.observer.detectors(model)}
                distances = {name: values for name, values in distances.items() if name not in own}
            lines = headline(model, reference, evaluation.scores, self.judge.states[model], ring.panes)
            why = Why(tuple(lines), partial(columns, reference, self.judge.scans[model], evaluation.scores))
            self.exporter.show(evaluation, reference, distances, (counts, events), seconds=self.seconds.pop(model, None), why=why)
        self._unshown.clear()
        if self.observer is not None:
            for stream in self.panes.streams.values():
                self.exporter.observe((stream.model, stream.version, SEGMENT), self.observer.readings(stream.model))
        self.exporter.service(self.snapshot())

    def snapshot(self) -> ServiceSnapshot:
        """What the service knows of itself now."""
        counts = {
            (stream.model, stream.version, "all", *key.split(":")): count
            for stream in self.panes.streams.values()
            for key, count in self.judge.states[stream.model].alarms_total.items()
        }
        return ServiceSnapshot(
            ready=True, reason="", monitors=tuple(self._status(stream) for stream in self.panes.streams.values()),
            lag=dict(self.source.lag()), checkpoint=self.checkpoint,
            alarm_counts=counts,  # type: ignore[arg-type]
            open_alarms={key: opened for stream in self.panes.streams.values() for key, opened in self._open(stream)},
            alarms=tuple(self.alarms), launches=tuple(map(self.clock.shown, self.trigger.ledger.launches.values())),
            decided=self.trigger.ledger.decisions, audit=self.trigger.ledger.entries,
            dead_letters=self.dead_letters.counts(), loop=dict(self.loop), away=self.away,
            reports=None if self.reports is None else self.reports.shelf.folder,
        )

    def _open(self, stream: Stream) -> Iterable[tuple[tuple[str, str, str, str, str, str], OpenAlarm]]:
        """The alarms of a stream that are open, by what they are of (`metrics.ALARM_PLACES`)."""
        state = self.judge.states[stream.model]
        checks = None if self.quality is None else self.quality.states[stream.model]
        machines = ((state.alarm, "drift", "columns", "raised"), (state.severe, "drift", "columns", "severe"),
                    (state.quality, "quality", "columns", "raised"),
                    *(((checks.wrong_type, "quality", "wrong_type", "raised"), (checks.volume, "quality", "volume", "raised"))
                      if checks is not None else ()))
        for machine, *place in machines:
            if machine.firing:
                kind, cause, reached = place
                yield (stream.model, stream.version, SEGMENT, kind, cause, reached), OpenAlarm(machine.episode, machine.since)

    def _status(self, stream: Stream) -> MonitorStatus:
        configured = self.configured[stream.model]
        mark = self.panes.watermark(stream.model)
        events = {("counted", "none"): stream.outcomes["counted"], ("lost", "retention"): stream.outcomes["lost"]}
        for name, count in stream.outcomes.items():
            if name.startswith("refused:"):
                events["refused", name.removeprefix("refused:")] = count
        now = mark / 1000 if mark >= 0 else self.clock()
        capture = self.captures.get(stream.model)
        return MonitorStatus(
            stream.model, stream.version, events=events, late=stream.late, retried=self.retried.get(stream.model, 0),
            watermark=mark / 1000 if mark >= 0 else None, digest=stream.reference.digest, launcher=configured.launcher,
            metric=configured.metric,
            budget_remaining=self.trigger.budget_remaining(stream.model, now) if configured.launcher else None,
            reports={} if self.reports is None else self.reports.counts(stream.model),
            policy=self._policy(stream, now) if configured.launcher else None,
            capture=None if capture is None else (capture.waiting_bytes, capture.dropped),
            ended=dict(self.trigger.ledger.ended_before(stream.model)),
            calls_failed=dict(self.trigger.ledger.calls_failed_before(stream.model)),
            **({} if self.observer is None else self.observer.counts(stream.model)),
        )

    def _policy(self, stream: Stream, now: float) -> PolicyStatus | None:
        """How the model's retraining policy stands at event time `now`."""
        severe = self.judge.states[stream.model].severe
        return self.trigger.status(
            Moment(stream.model, stream.version, now, stream.decided_panes * stream.pane_ms / 1000),
            severe.episode if severe.firing else None)
