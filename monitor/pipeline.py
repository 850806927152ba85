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
from dataclasses import dataclass, field

import msgspec

from detectors.profile import Profile
from detectors.scan import Scores
from monitor.cutover import CutOver
from monitor.decide.observe import Observer
from monitor.decide.policy import Judge, Policy
from monitor.decide.quality import QualityChecks, commonest, named_unseen
from monitor.decisions import Entry
from monitor.display import Configured, Display
from monitor.errors import TidemarkError
from monitor.expose.exporter import Exporter
from monitor.expose.inbox import Asked, Inbox, Reply
from monitor.flow import (
    FINAL_STATES,
    Alarm,
    Batch,
    Clock,
    Evaluation,
    Launch,
    Rows,
    Sample,
    Source,
    TopicPartition,
    Window,
)
from monitor.ingest.deadletters import DeadLetters
from monitor.metrics import LOOP_STAGES
from monitor.reporting import Reporting
from monitor.retrain.launch import Retraining
from monitor.retrain.ledger import decision_to_json, entry_to_json, launch_from_json, launch_to_json
from monitor.retrain.trigger import Standing, Trigger
from monitor.state.capture import Capture
from monitor.state.panes import NO_PANE, Panes, Stream, bare, weight
from monitor.state.set_clock import SetClock
from monitor.state.store import KEPT_AUDIT, Store

log = logging.getLogger("tidemark")

Decode = Callable[[Batch], Sequence[Rows]]

#: Bytes of decided panes, rows for the capture and refused records that may wait for the next checkpoint; with more of them
#: it comes early. A second of one fast topic, and a seventh of what a sparse backlog of 1,000 columns decides in one turn.
HELD_BYTES = 64 << 20


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
    clock: SetClock
    checkpoint_seconds: float = 1.0
    inbox: Inbox = field(default_factory=Inbox)
    launching: bool = True                          # replay decides but starts nothing
    on_evaluation: Callable[[Evaluation], None] | None = None
    quality: QualityChecks | None = None            # faults that no column shows
    observer: Observer | None = None                # further detectors, where any are configured
    reporting: Reporting | None = None              # reports of alarms, where the state is kept in a file
    past_alarms: Sequence[Alarm] = ()               # what the store holds
    decided: dict[str, dict[int, Profile]] = field(default_factory=dict)
    sampled: dict[str, dict[int, Sample]] = field(default_factory=dict)     # kept rows of the decided panes
    new_alarms: list[Alarm] = field(default_factory=list)
    display: Display = field(init=False)
    cut_over: CutOver = field(init=False)
    apart: Callable[[Batch], Iterable[Batch]] | None = None     # cuts a batch whose messages unpack to more than they are
    committed_at: float | None = None               # wall-clock time of the last checkpoint
    elapsed: Clock = time.monotonic                 # what is waited for: it does not jump when the machine's time is set
    _committed: float | None = field(default=None, init=False)              # `elapsed` at the last checkpoint
    stopping: bool = False
    held_bytes: int = 0                             # of what waits for the next checkpoint
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LOOP_STAGES, 0.0))      # seconds of the loop by stage
    _weighed: tuple[int, int] = (0, 0)              # of the kept rows and of the refusals, how many are in `held_bytes`
    _lapped: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.display = Display(
            self.exporter, self.panes, self.judge, self.trigger, self.source, self.dead_letters, self.configured, self.clock,
            self.quality, self.observer, list(self.past_alarms),
            reports=None if self.reporting is None else self.reporting.maker, captures=self.captures, loop=self.spent)
        self.cut_over = CutOver(
            self.panes, self.judge, self.policy, self.trigger.ledger, self.retraining, self.store, self.source, self.display,
            self.configured, self.clock, self.observer, self._note, lambda: self.commit(Batch(), now=True), self._save_stream,
            *(() if self.reporting is None else (self.reporting.rows_of,)))

    @property
    def alarms(self) -> Sequence[Alarm]:
        """The latest alarms, oldest first."""
        return self.display.alarms

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
        if self.reporting is not None:
            self.reporting.close()
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
        self.held_bytes += window.profile.counts.nbytes
        if self.observer is not None:
            self.observer(window, self.judge.rings[window.model])
        if window.sample is not None:
            self.sampled.setdefault(window.model, {})[window.pane] = window.sample
            self.held_bytes += weight(window.sample.columns)
        evaluation = Evaluation(
            window, scores, alarms, self.policy.state_name(window.model, scores),
            *self.policy.open_episode(window.model))
        self.display.note(evaluation)
        self._note(alarms)
        if self.on_evaluation is not None:
            self.on_evaluation(evaluation)

    def offer(self, window: Window, scores: Scores, alarms: tuple[Alarm, ...]) -> None:
        """Give the trigger what is new, and a severe alarm that still stands where its last answer was `not now`."""
        stream, state = self.panes.streams[window.model], self.judge.states[window.model].severe
        is_standing = not any(alarm.state == "severe" for alarm in alarms) and self.trigger.is_waiting(
            window.model, window.version, state.episode)
        if is_standing:
            standing = self.policy.standing(window, scores)
            alarms = (standing,) if standing is not None else ()
        self.trigger(alarms, self.panes.offsets(window.model), is_standing=is_standing,
                     judged_seconds=stream.decided_panes * stream.pane_ms / 1000)
        self._lap("judge")
        if self.held_bytes >= HELD_BYTES:           # one batch of a sparse backlog may decide thousands of panes
            self._checkpoint(Batch())

    def commit(self, batch: Batch, *, now: bool = False) -> None:
        """The checkpoint, in the order that `state.store` explains; skipped while nothing is due."""
        self._lap("count")
        self.display.away = batch.away
        replies = self._answer()
        self._look_between_panes()
        launches, decisions = self.trigger.ledger.changed()
        entries = self.trigger.ledger.new_entries()
        due = (self._committed is None or self.elapsed() - self._committed >= self.checkpoint_seconds
               or self._is_full())
        if now or due or batch.ended or launches or decisions or entries or replies or self.new_alarms:
            self._checkpoint(batch, replies)

    def _checkpoint(self, batch: Batch, replies: Sequence[tuple[Asked, Reply]] = ()) -> None:
        """Store what is held; also between two decided panes of one batch, where everything that is counted is in a pane."""
        launches, decisions = self.trigger.ledger.changed()
        entries = self.trigger.ledger.new_entries()
        self.dead_letters.write(self.panes.refusals)                                    # 1
        self.dead_letters.flush()
        self._lap("dead_letters")
        for rows in self.panes.kept:
            self.captures[rows.model].add(rows)
        files = {model: capture.write(whole=batch.ended) for model, capture in self.captures.items()}     # 2
        self._lap("capture")
        with self.store.transaction() as db:                                            # 3
            for stream in self.panes.streams.values():
                self._save_stream(db, stream)
            for alarm in self.new_alarms:
                self.store.append(db, "alarms", alarm.model, [msgspec.json.encode(alarm).decode()])
            for decision in decisions:
                self.store.append(db, "decisions", decision.model, [decision_to_json(decision)])
            for entry in entries:
                # Any name may be asked for: those that are no model share one model's room.
                of = entry.model if entry.model in self.panes.streams else ""
                self.store.append(db, "audit", of, [entry_to_json(entry)], KEPT_AUDIT)
            for launch in launches:
                self.store.save_launch(db, launch.id, launch.model, launch_to_json(launch))
            for step in files.values():
                self.store.save_captures(db, step)
            if self.trigger.ledger.launches:
                self.clock.save(db, now=bool(launches))
        self.panes.refusals, self.panes.kept = [], []
        self.trigger.ledger.clear_changed()
        self.decided.clear()
        self.sampled.clear()
        self.new_alarms = []
        self.held_bytes, self._weighed = 0, (0, 0)
        self._lap("store")
        for model, step in files.items():
            self.captures[model].forget(step.removed)
        self.source.committed(self.stored_offsets())                                    # 4
        self.committed_at, self._committed = self.clock(), self.elapsed()
        self.display.checkpoint = self.committed_at
        if self.reporting is not None:
            self.reporting.keep()
        self.display.show()
        for asked, reply in replies:                                                    # 5
            self.inbox.reply(asked, reply)
        self._lap("show")

    def _is_full(self) -> bool:
        """Whether what waits for the checkpoint is so much that it must not grow."""
        rows, refusals = self._weighed
        self.held_bytes += sum(weight(kept.columns) + weight(kept.others) for kept in self.panes.kept[rows:])
        self.held_bytes += sum(len(refusal.value or b"") for refusal in self.panes.refusals[refusals:])
        self._weighed = len(self.panes.kept), len(self.panes.refusals)
        return self.held_bytes >= HELD_BYTES

    def _lap(self, stage: str) -> None:
        """Charge the time since the last lap to a stage of the loop: what of them is slow is what holds the intake back."""
        now = time.perf_counter()
        self.spent[stage] += now - self._lapped
        self._lapped = now

    def advance(self) -> None:
        """Carry each unfinished launch one step on; cut over to the reference of a promoted one."""
        if not self.launching:
            self.trigger.end_replayed(self.clock())
            return
        if self.reporting is not None:
            self.reporting.advance()
        self.trigger.expire()
        for launch in self.retraining.advance(self.clock.steady(), self._captured):
            if launch.state in FINAL_STATES and launch.model in self.captures:
                self.captures[launch.model].release(self._ended(launch.model))
        self.cut_over()

    def _answer(self) -> list[tuple[Asked, Reply]]:
        """Do what people asked over HTTP, or say why not; they are told once it is stored."""
        replies = []
        for asked in self.inbox.take():
            try:
                reply = self._answered(asked)
                log.info("Request answered.", extra={"asked": asked.action, "model": asked.model, "launch": reply.launch,
                                                     "by": asked.by, "answer": reply.words})
            except TidemarkError as error:
                reply = Reply(False, str(error), asked.launch)
                self.trigger.refuse(Entry(self.clock(), asked.action, asked.by, asked.model, asked.launch, asked.why,
                                          asked.key, False, str(error)))
                log.warning("Answer not taken.", extra={"launch": asked.launch, "answer": asked.action, "error": str(error)})
            replies.append((asked, reply))
        return replies

    def _answered(self, asked: Asked) -> Reply:
        """One request, done; TidemarkError where it cannot be."""
        said = {"by": asked.by, "why": asked.why}
        if asked.action in ("approve", "reject"):
            answer = self.trigger.approve if asked.action == "approve" else self.trigger.reject
            launch = answer(asked.launch, **said)
            return Reply(True, f"launch {launch.id} is {launch.state.replace('_', ' ')}", launch.id, launch.state)
        if asked.model not in self.panes.streams:
            raise TidemarkError(f"{asked.model[:80]!r}: expected one of the models {', '.join(self.panes.streams)}; name one")
        if asked.action == "reset":
            forgiven = self.trigger.reset(asked.model, self.panes.streams[asked.model].version, **said)
            return Reply(True, f"{len(forgiven)} launches of {asked.model} that brought nothing no longer count")
        if asked.action == "fire":
            fired = self.trigger.fire(asked.model, self._standing(asked.model), key=asked.key, force=asked.force,
                                      dry_run=asked.dry_run, **said)
            launch_id, state = (fired.launch.id, fired.launch.state) if fired.launch else ("", "")
            return Reply(not fired.decision.reason, fired.words, launch_id, state, fired.decision.reason, fired.decision.until,
                         fired.limits)
        if asked.action == "rollback":
            return self._rolled_back(asked)
        raise TidemarkError(f"{asked.action}: expected approve, reject, fire, reset or rollback; ask for one of them")

    def _rolled_back(self, asked: Asked) -> Reply:
        """Note that a model goes back to an earlier version; the next turns promote it and cut over to its reference."""
        stream, configured, now = self.panes.streams[asked.model], self.configured[asked.model], self.clock()
        at = (stream.last_decided + 1) * stream.pane_ms / 1000 if stream.last_decided != NO_PANE else now
        launch = self.retraining.roll_back(
            asked.model, stream.version, asked.version, by=asked.by, why=asked.why, at=at, now=now,
            uris=lambda version: configured.model_uri if version == configured.version else "", clock_set=self.clock.set_by)
        words = f"{asked.model} goes back from version {launch.version} to {launch.new_version} (launch {launch.id})"
        self.trigger.ledger.note(Entry(now, "rollback", asked.by, asked.model, launch.id, asked.why, words=words))
        return Reply(True, words, launch.id, launch.state)

    def _standing(self, model: str) -> Standing:
        """How a model stands, for somebody who asks for a launch without an alarm of its own."""
        stream, state = self.panes.streams[model], self.judge.states[model]
        checks = None if self.quality is None else self.quality.states[model]
        at = (stream.last_decided + 1) * stream.pane_ms / 1000 if stream.last_decided != NO_PANE else self.clock()
        machine = state.severe if state.severe.firing else state.alarm
        alarm = next((alarm for alarm in reversed(self.display.alarms) if machine.firing and alarm.kind == "drift" and (
            alarm.model, alarm.version, alarm.episode) == (model, stream.version, machine.episode)), None)
        return Standing(
            stream.version, at, stream.decided_panes * stream.pane_ms / 1000, self.panes.offsets(model), alarm,
            faulty=state.quality.firing or (checks is not None and (checks.wrong_type.firing or checks.volume.firing)),
            adequate=not self.judge.scans[model].reference.inadequate)

    def stored_offsets(self) -> dict[TopicPartition, int]:
        """Per partition the smallest next offset over the models that read it: where the source must go on."""
        offsets: dict[TopicPartition, int] = {}
        for stream in self.panes.streams.values():
            for key, position in stream.positions.items():
                offsets[key] = min(offsets.get(key, position.next_offset), position.next_offset)
        return offsets

    def _until_stopped(self) -> Iterable[Batch]:
        for batch in self.source:
            self._lap("source")
            for piece in (batch,) if self.apart is None else self.apart(batch):
                yield piece
                self._lap("launch")
                if self.stopping:
                    return
            self.source.hold(self.panes.waiting())

    def _decode(self, batch: Batch) -> Sequence[Rows]:
        decoded = self.decode(batch)
        for rows in decoded:
            self.display.note_rows(rows)
        self._lap("decode")
        return decoded

    def _scan(self, window: Window) -> Scores:
        self._lap("count")
        begun = time.perf_counter()
        scores = self.judge(window)
        self.display.seconds[window.model] = time.perf_counter() - begun
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
                    found += self.quality.in_a_row(bare(stream, at), notes.in_a_row, commonest(notes.refused))
            silent = self.panes.silent_seconds(stream.model)
            if silent is not None and stream.last_decided != NO_PANE:
                newest = max(stream.open, default=stream.last_decided)
                found += self.quality.silent(bare(stream, newest + int(silent * 1000 // stream.pane_ms)), silent, newest)
            self._count(found)
            self._note(found)

    def _count(self, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            counts, key = self.judge.states[alarm.model].alarms_total, f"{alarm.kind}:{alarm.state}"
            counts[key] = counts.get(key, 0) + 1

    def _note(self, alarms: Sequence[Alarm]) -> None:
        if self.reporting is not None:
            self.reporting.note(alarms)
        for alarm in alarms:
            self.new_alarms.append(alarm)
            self.display.note_alarm(alarm)
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
        needed = None if self.reporting is None else self.reporting.first_pane(stream.model)
        self.store.save_samples(db, stream, self.sampled.get(stream.model, {}), needed)  # type: ignore[arg-type]
        if self.quality is not None:
            document = msgspec.json.encode(self.quality.states[stream.model]).decode()
            self.store.save_checks(db, stream.model, document)  # type: ignore[arg-type]
        stream.changed.clear()

    def _ended(self, model: str) -> dict[str, float]:
        """When the launches of a model ended, by id, on the clock as it is set now."""
        stored = map(launch_from_json, self.store.each("launches", model))      # also those that the ledger has let go
        return {launch.id: launch.steps[-1][1] + self.clock.set_by - launch.clock_set for launch in stored
                if launch.state in FINAL_STATES}

    def _captured(self, launch: Launch) -> int:
        """Labelled events that were captured since the launch's alarm began."""
        capture = self.captures.get(launch.model)
        since = msgspec.json.decode(launch.reason)["window"]["since"]
        return capture.labelled_since(int(since * 1000)) if capture else 0
