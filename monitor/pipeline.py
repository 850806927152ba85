"""One event's way from the topic to a retraining job, one batch at a time.

`run` is the whole story; `Stages` below is what stands behind its words for several models at once. One thread runs it
and owns all state; the HTTP server reads finished snapshots, signals only set a flag.

Invariant: replaying a batch changes nothing. Records below the next offset are left out, a pane is decided once, and
what a batch caused is written with its offsets in one transaction: offsets, panes, alarm states, captured files and
the outbox. Only what that transaction holds is acted upon, so a crash anywhere leaves at most one job per episode.

Cost per event at 20 columns, by stage: benchmarks/end_to_end prints transport, decoding and counting; a decided pane
adds one scan and nothing per event. Neighbours: `service` builds the stages from a configuration.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from detectors.comparison import display
from detectors.profile import Profile
from detectors.scan import Scan, Scores
from monitor.decide.observe import Observer
from monitor.decide.plan import Plan
from monitor.decide.policy import Judge, Policy, PolicyState
from monitor.decide.quality import QualityChecks, commonest, named_unseen
from monitor.errors import ConfigError, TidemarkError
from monitor.expose.exporter import Exporter
from monitor.expose.inbox import Inbox
from monitor.expose.snapshot import MonitorStatus, OpenAlarm, ServiceSnapshot
from monitor.flow import Alarm, Batch, Clock, Evaluation, Launch, Rows, Sample, Source, TopicPartition, Window
from monitor.ingest.deadletters import DeadLetters
from monitor.retrain.launch import Retraining
from monitor.retrain.ledger import decision_to_json, launch_to_json
from monitor.retrain.trigger import Trigger
from monitor.state.capture import Capture
from monitor.state.panes import NO_PANE, SEGMENT, Panes, Stream
from monitor.state.sample import Sampling
from monitor.state.store import Store

log = logging.getLogger("tidemark")

Decode = Callable[[Batch], Sequence[Rows]]
#: Distances are shown for this many panes while nothing fires: enough events to be calm, few enough to be fresh.
SHOWN_PANES = 16
ALARMS_SHOWN = 100


def run(
    source: Iterable[Batch],
    decode: Decode,
    panes: Panes,
    scan: Callable[[Window], Scores],
    policy: Callable[[Window, Scores], tuple[Alarm, ...]],
    publish: Callable[[Window, Scores, tuple[Alarm, ...]], None],
    trigger: Callable[[Window, Scores, tuple[Alarm, ...]], None],
    commit: Callable[[Batch], None],
    advance: Callable[[], None],
) -> None:
    """Follow events from the topic to a retraining job, one batch at a time."""
    for batch in source:                                        # records and the offsets they came from
        panes.add(batch, decode(batch))                         # bytes -> columns -> counts in the open panes
        for window in panes.closed():                           # event time has passed the watermark
            scores = scan(window)                               # against the reference: pure numpy
            alarms = policy(window, scores)                     # large enough and certain enough
            publish(window, scores, alarms)                     # what Prometheus and Grafana see
            trigger(window, scores, alarms)                     # may ask for one training job, through the outbox
        commit(batch)                                           # offsets, panes, alarms, outbox: one transaction
        advance()                                               # what the outbox holds: start, follow, judge, promote


@dataclass(slots=True)
class Configured:
    """What the configuration says of one model; the state may have moved on to a promoted version."""

    version: str
    digest: str
    metric: str = ""
    launcher: str = ""
    settle_seconds: float = 0.0


@dataclass(slots=True)
class Stages:
    """The stages of every model, and what is noted between two checkpoints."""

    source: Source
    decode: Decode
    panes: Panes
    judge: Judge
    policy: Policy
    trigger: Trigger
    retraining: Retraining
    store: Store
    dead_letters: DeadLetters
    exporter: Exporter
    configured: Mapping[str, Configured]
    captures: Mapping[str, Capture]
    clock: Clock
    checkpoint_seconds: float = 1.0
    inbox: Inbox = field(default_factory=Inbox)
    launching: bool = True                          # replay decides but starts nothing
    on_evaluation: Callable[[Evaluation], None] | None = None
    quality: QualityChecks | None = None            # faults that no column shows
    observer: Observer | None = None                # further detectors, where any are configured
    latest: dict[str, Evaluation] = field(default_factory=dict)
    alarms: list[Alarm] = field(default_factory=list)
    decided: dict[str, dict[int, Profile]] = field(default_factory=dict)
    sampled: dict[str, dict[int, Sample]] = field(default_factory=dict)     # kept rows of the decided panes
    new_alarms: list[Alarm] = field(default_factory=list)
    retried: dict[str, int] = field(default_factory=dict)
    unshown: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    settling: dict[str, dict[TopicPartition, int]] = field(default_factory=dict)   # launch -> where the champion ends
    committed_at: float | None = None
    stopping: bool = False

    def run(self) -> None:
        """Follow the source until it ends or `stop` was called; the last checkpoint is written either way."""
        run(self._until_stopped(), self._decode, self.panes, self._scan, self._decide, self.publish, self.offer,
            self.commit, self.advance)
        if self.observer is not None and not self.stopping:
            self.observer.wait()                    # a bounded source has ended: what is shown last is complete
        self.commit(Batch(), now=True)

    def close(self) -> None:
        """Leave the source and give the state back; what was not committed is read again at the next start."""
        self.source.close()
        if self.observer is not None:
            self.observer.close()
        self.dead_letters.close()
        self.store.close()

    def stop(self) -> None:
        """End after the batch in hand; safe to call from a signal handler."""
        self.stopping = True

    def publish(self, window: Window, scores: Scores, alarms: tuple[Alarm, ...]) -> None:
        """Note a decided pane for the store and for what is shown."""
        stream, state = self.panes.streams[window.model], self.judge.states[window.model]
        stream.origin = max(stream.origin, state.origin)
        self.decided.setdefault(window.model, {})[window.pane] = window.profile
        if self.observer is not None:
            self.observer(window, self.judge.rings[window.model])
            if window.sample is not None:
                self.sampled.setdefault(window.model, {})[window.pane] = window.sample
        evaluation = Evaluation(
            window, scores, alarms, self.policy.state_name(window.model, scores),
            *self.policy.open_episode(window.model))
        self.latest[window.model] = evaluation
        self.unshown.add(window.model)
        self._note(alarms)
        if self.on_evaluation is not None:
            self.on_evaluation(evaluation)

    def offer(self, window: Window, scores: Scores, alarms: tuple[Alarm, ...]) -> None:
        """Give the trigger what is new, and a severe alarm that still stands where its last answer was `not now`."""
        state = self.judge.states[window.model].severe
        if not any(alarm.state == "severe" for alarm in alarms) and self.trigger.is_waiting(
                window.model, window.version, state.episode):
            standing = self.policy.standing(window, scores)
            alarms = (standing,) if standing is not None else ()
        self.trigger(alarms, self.panes.offsets(window.model))

    def commit(self, batch: Batch, *, now: bool = False) -> None:
        """The checkpoint, in the order that `state.store` explains; skipped while nothing is due."""
        self._answer()
        self._look_between_panes()
        launches, decisions = self.trigger.ledger.changed()
        due = self.committed_at is None or self.clock() - self.committed_at >= self.checkpoint_seconds
        if not (now or due or batch.ended or launches or decisions or self.new_alarms):
            return
        self.dead_letters.write(self.panes.refusals)                                    # 1
        self.dead_letters.flush()
        for rows in self.panes.kept:
            self.captures[rows.model].add(rows)
        files = {model: capture.write() for model, capture in self.captures.items()}    # 2
        with self.store.transaction() as db:                                            # 3
            for stream in self.panes.streams.values():
                self._save_stream(db, stream)
            for alarm in self.new_alarms:
                self.store.append(db, "alarms", alarm.model, [msgspec.json.encode(alarm).decode()])
            for decision in decisions:
                self.store.append(db, "decisions", decision.model, [decision_to_json(decision)])
            for launch in launches:
                self.store.save_launch(db, launch.id, launch.model, launch_to_json(launch))
            for added, removed in files.values():
                self.store.save_captures(db, added, removed)
        self.panes.refusals, self.panes.kept = [], []
        self.trigger.ledger.clear_changed()
        self.decided.clear()
        self.sampled.clear()
        self.new_alarms = []
        for model, (_, removed) in files.items():
            self.captures[model].forget(removed)
        self.source.committed(self.stored_offsets())                                    # 4
        self.committed_at = self.clock()
        self.show()

    def advance(self) -> None:
        """Carry each unfinished launch one step on; cut over to the reference of a promoted one."""
        if not self.launching:
            for launch in self.trigger.ledger.unfinished():     # as if it had ended at once: cooldown and budget go on
                self.trigger.ledger.put(replace(launch, state="refused", steps=(*launch.steps, ("refused", self.clock())),
                                                detail="replayed: nothing was launched"))
            return
        self.retraining.advance(self.clock(), self._captured)
        for launch in self.trigger.ledger.awaiting_cut_over():
            if self._has_settled(launch):
                self.cut_over(launch)

    def _answer(self) -> None:
        """Approve or reject what people answered over HTTP; what no longer can be is only told."""
        for action, launch in self.inbox.take():
            try:
                (self.trigger.approve if action == "approve" else self.trigger.reject)(launch)
                log.info("Launch answered.", extra={"launch": launch, "answer": action})
            except TidemarkError as error:
                log.warning("Answer not taken.", extra={"launch": launch, "answer": action, "error": str(error)})

    def _has_settled(self, launch: Launch) -> bool:
        """Whether the champion's last answers have been read: judged by the new reference they would raise an alarm.

        When serving has had its time to switch, we note how far each partition reaches, and wait until all that is read.
        After a restart in between the ends are noted anew, which only makes the wait longer.
        """
        if self.clock() - launch.steps[-1][1] < self.configured[launch.model].settle_seconds:
            return False
        offsets = self.panes.offsets(launch.model)
        if launch.id not in self.settling:
            lag = self.source.lag()
            self.settling[launch.id] = {key: offset + lag.get(key, 0) for key, offset in offsets.items()}
        if any(offsets[key] < end for key, end in self.settling[launch.id].items()):
            return False
        del self.settling[launch.id]
        return True

    def cut_over(self, launch: Launch) -> None:
        """Judge by the promoted model's reference from the next offsets on; one transaction, so it happens once.

          1. the alarm that the old reference raised is cleared, because its reason is gone
          2. a new stream begins at the offsets that the old one had reached, with an empty ring
          3. everything of it is written together with the launch's own last step
        """
        old = self.panes.streams[launch.model]
        reference = self.retraining.take_reference(launch)
        if reference is None:                       # not to be had now: the old one judges on, and it is tried again
            return
        at = (old.last_decided + 1) * old.pane_ms / 1000 if old.last_decided != NO_PANE else self.clock()
        self._note(self.policy.end_episode(launch.model, launch.version, at, "new reference"))  # 1
        previous = self.judge.states[launch.model]
        stream = old.successor(launch.new_version, reference)                           # 2
        self.commit(Batch(), now=True)              # what the old stream still holds stays under its own version
        self._observe_anew(stream)
        self.panes.replace(stream)
        self.judge.begin(launch.model, reference, PolicyState(alarms_total=previous.alarms_total))
        self.trigger.ledger.cut_over(launch, at)
        with self.store.transaction() as db:                                            # 3
            self.store.save_reference(db, reference)
            self.store.save_cutover(db, stream, old.version, at, f"launch {launch.id}")
            self._save_stream(db, stream)
            moved = self.trigger.ledger.launches[launch.id]
            self.store.save_launch(db, moved.id, moved.model, launch_to_json(moved))
        self.trigger.ledger.clear_changed(moved)
        self.latest.pop(launch.model, None)
        self.unshown.discard(launch.model)
        self.exporter.forget(old.model, old.version)
        log.info("Reference cut over.", extra={"model": stream.model, "version": stream.version, "previous": old.version})
        self.show()

    def show(self) -> None:
        """Give the exporter what changed: the last pane of each model, and the service's own numbers."""
        for model in sorted(self.unshown):
            evaluation = self.latest[model]
            reference, ring = self.judge.scans[model].reference, self.judge.rings[model]
            width = evaluation.scores.shortest or max((w for w in Scan.windows if w <= min(SHOWN_PANES, ring.panes)), default=1)
            counts, events = ring.window(min(width, max(ring.panes, 1))) if ring.panes else (evaluation.window.profile.counts, 0)
            with np.errstate(all="ignore"):
                distances = display(reference, counts, events)
            if self.observer is not None:           # one that is configured stands for itself
                own = {one.name for one in self.observer.detectors(model)}
                distances = {name: values for name, values in distances.items() if name not in own}
            self.exporter.show(evaluation, reference, distances, (counts, events), seconds=self.seconds.pop(model, None))
        self.unshown.clear()
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
            lag=dict(self.source.lag()), checkpoint=self.committed_at,
            alarm_counts=counts,  # type: ignore[arg-type]
            open_alarms={key: opened for stream in self.panes.streams.values() for key, opened in self._open(stream)},
            alarms=tuple(self.alarms[-ALARMS_SHOWN:]), launches=tuple(self.trigger.ledger.launches.values()),
            dead_letters=self.dead_letters.counts(),
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

    def stored_offsets(self) -> dict[TopicPartition, int]:
        """Per partition the smallest next offset over the models that read it: where the source must go on."""
        offsets: dict[TopicPartition, int] = {}
        for stream in self.panes.streams.values():
            for key, position in stream.positions.items():
                offsets[key] = min(offsets.get(key, position.next_offset), position.next_offset)
        return offsets

    def _until_stopped(self) -> Iterable[Batch]:
        for batch in self.source:
            yield batch
            if self.stopping:
                return
            self.source.hold(self.panes.waiting())

    def _decode(self, batch: Batch) -> Sequence[Rows]:
        decoded = self.decode(batch)
        for rows in decoded:
            if rows.retried:
                self.retried[rows.model] = self.retried.get(rows.model, 0) + rows.retried
        return decoded

    def _scan(self, window: Window) -> Scores:
        begun = time.perf_counter()
        scores = self.judge(window)
        self.seconds[window.model] = time.perf_counter() - begun
        return scores

    def _decide(self, window: Window, scores: Scores) -> tuple[Alarm, ...]:
        """The policy's alarms and those of the checks that need no score; new levels are named."""
        alarms = self.policy(window, scores)
        if self.quality is None:
            return alarms
        found = self.quality(window)
        self._count(found)
        return (*(named_unseen(alarm, self.quality.states[window.model].unseen) for alarm in alarms), *found)

    def _look_between_panes(self) -> None:
        """Faults that stop event time itself: nothing that can be read, or nothing at all, closes no pane."""
        if self.quality is None:
            return
        for stream in self.panes.streams.values():
            found: list[Alarm] = []
            for pane, notes in sorted(stream.notes.items()):
                if notes.in_a_row:
                    at = pane if pane != NO_PANE else int(self.clock() * 1000 // stream.pane_ms)
                    found += self.quality.in_a_row(_bare(stream, at), notes.in_a_row, commonest(notes.refused))
            silent = self.panes.silent_seconds(stream.model)
            if silent is not None and stream.last_decided != NO_PANE:
                newest = max(stream.open, default=stream.last_decided)
                found += self.quality.silent(_bare(stream, newest + int(silent * 1000 // stream.pane_ms)), silent, newest)
            self._count(found)
            self._note(found)

    def _count(self, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            counts, key = self.judge.states[alarm.model].alarms_total, f"{alarm.kind}:{alarm.state}"
            counts[key] = counts.get(key, 0) + 1

    def _note(self, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            self.new_alarms.append(alarm)
            self.alarms = [*self.alarms, alarm][-ALARMS_SHOWN:]
            log.info(f"Alarm {alarm.state}.", extra={
                "model": alarm.model, "version": alarm.version, "episode": alarm.episode, "kind": alarm.kind,
                "score": round(alarm.score, 3), "columns": [mover.column for mover in alarm.movers[:3]],
            })

    def _save_stream(self, db: object, stream: Stream) -> None:
        configured = self.configured[stream.model]
        policy = msgspec.json.encode(self.judge.states[stream.model]).decode()
        self.store.save_stream(
            db, stream, (configured.version, configured.digest), policy,  # type: ignore[arg-type]
            self.decided.get(stream.model, {}),
        )
        self.store.save_samples(db, stream, self.sampled.get(stream.model, {}))  # type: ignore[arg-type]
        if self.quality is not None:
            document = msgspec.json.encode(self.quality.states[stream.model]).decode()
            self.store.save_checks(db, stream.model, document)  # type: ignore[arg-type]
        stream.changed.clear()

    def _observe_anew(self, stream: Stream) -> None:
        """Look by the further detectors at the stream of a promoted version; without them, where its reference does not do."""
        if self.observer is None:
            return
        try:
            stream.sampling = sampling_of(self.observer.begin(stream.model, stream.version, stream.reference))
        except ConfigError as error:
            self.observer.end(stream.model)
            stream.sampling = None
            log.error("Further detectors left.", extra={"model": stream.model, "version": stream.version, "error": str(error)})

    def _captured(self, launch: Launch) -> int:
        """Labelled events that were captured since the launch's alarm began."""
        capture = self.captures.get(launch.model)
        since = msgspec.json.decode(launch.reason)["window"]["since"]
        return capture.labelled_since(int(since * 1000)) if capture else 0

    def _status(self, stream: Stream) -> MonitorStatus:
        configured = self.configured[stream.model]
        mark = self.panes.watermark(stream.model)
        events = {("counted", "none"): stream.outcomes["counted"], ("lost", "retention"): stream.outcomes["lost"]}
        for name, count in stream.outcomes.items():
            if name.startswith("refused:"):
                events["refused", name.removeprefix("refused:")] = count
        now = mark / 1000 if mark >= 0 else self.clock()
        return MonitorStatus(
            stream.model, stream.version, events=events, late=stream.late, retried=self.retried.get(stream.model, 0),
            watermark=mark / 1000 if mark >= 0 else None, digest=stream.reference.digest, launcher=configured.launcher,
            metric=configured.metric,
            budget_remaining=self.trigger.budget_remaining(stream.model, now) if configured.launcher else None,
            **({} if self.observer is None else self.observer.counts(stream.model)),
        )


def _bare(stream: Stream, pane: int) -> Window:
    """A pane without events: the time at which something was noticed between panes."""
    seconds = stream.pane_ms / 1000
    return Window(stream.model, stream.version, SEGMENT, pane, pane * seconds, (pane + 1) * seconds,
                  Profile.empty(stream.reference))


def sampling_of(plan: Plan) -> Sampling | None:
    """The rows that a plan's detectors need of each pane; None where none of them needs any."""
    return Sampling(plan.rows, plan.panes, plan.names) if plan.rows else None

