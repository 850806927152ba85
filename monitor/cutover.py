"""The cut-over: from a given offset on, a model is judged by the reference of the version that was promoted, or that came
back by a roll-back.

Until serving has switched, and until what the champion still answered has been read, the old reference judges: by the
new one those answers would raise an alarm. Then one transaction ends the old stream, begins the new one at the offsets
that the old one had reached, and writes the launch's last step, so that it happens once, whatever crashes. The new
stream begins with an empty window: it is learning, and `retrain.learning_hours` pass before it may start a retraining.

Cost: nothing per event; a cut-over is rare and writes one stream. Neighbours: `pipeline` owns it and gives it `note`,
`commit` and `save`, `retrain.launch` promotes and reads the new reference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from monitor.config import Reports
from monitor.decide.observe import Observer
from monitor.decide.plan import Plan
from monitor.decide.policy import Judge, Machine, Policy, PolicyState
from monitor.display import Configured, Display
from monitor.documents import read_json
from monitor.errors import ConfigError
from monitor.flow import Alarm, Launch, Source, TopicPartition
from monitor.reporting import sampling_of
from monitor.retrain.deadline import own_time
from monitor.retrain.launch import Retraining
from monitor.retrain.ledger import Ledger, launch_to_json
from monitor.state.panes import NO_PANE, Panes, Stream
from monitor.state.retention import forget_old_references, forget_old_versions
from monitor.state.set_clock import SetClock
from monitor.state.store import Store

log = logging.getLogger("tidemark")


class _Numbered(msgspec.Struct):
    """What an alarm is called by."""

    version: str
    episode: int


@dataclass(slots=True)
class CutOver:
    """Takes promoted launches over.

    note   : gives alarms to the store and to what is shown         commit : a checkpoint, now
    save   : writes a stream inside the transaction that is given
    """

    panes: Panes
    judge: Judge
    policy: Policy
    ledger: Ledger
    retraining: Retraining
    store: Store
    source: Source
    display: Display
    configured: Mapping[str, Configured]
    clock: SetClock
    observer: Observer | None
    note: Callable[[Sequence[Alarm]], None]
    commit: Callable[[], None]
    save: Callable[[object, Stream], None]
    rows_of: Callable[[str], Reports | None] = lambda model: None   # what is kept of a model for reports; None: nothing
    settling: dict[str, dict[TopicPartition, int]] = field(default_factory=dict)   # launch -> where the champion ends

    def __call__(self) -> None:
        """Cut over to the reference of every promoted launch whose champion has given its last answer."""
        for launch in self.ledger.awaiting_cut_over():
            if self._has_settled(launch):
                self.begin(launch)

    def _has_settled(self, launch: Launch) -> bool:
        """Whether the champion's last answers have been read: judged by the new reference they would raise an alarm.

        When serving has had its time to switch, we note how far each partition reaches, and wait until all that is read.
        After a restart in between the ends are noted anew, which only makes the wait longer. The time is the launch's own:
        it passes evenly, however the machine's clock is set.
        """
        if own_time(launch, self.clock.steady()) - launch.steps[-1][1] < self.configured[launch.model].settle_seconds:
            return False
        offsets = self.panes.offsets(launch.model)
        if launch.id not in self.settling:
            lag = self.source.lag()
            self.settling[launch.id] = {key: offset + lag.get(key, 0) for key, offset in offsets.items()}
        if any(offsets[key] < end for key, end in self.settling[launch.id].items()):
            return False
        del self.settling[launch.id]
        return True

    def begin(self, launch: Launch) -> None:
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
        self.note(self.policy.end_episode(launch.model, launch.version, at, "new reference"))   # 1
        previous = self.judge.states[launch.model]
        stream = old.successor(launch.new_version, reference)                           # 2
        self.commit()                               # what the old stream still holds stays under its own version
        self._observe_anew(stream)
        self.panes.replace(stream)
        self.judge.begin(launch.model, reference, self._begun(stream, previous))
        self.ledger.cut_over(launch, at)
        with self.store.transaction() as db:                                            # 3
            self.store.save_reference(db, reference)
            self.store.save_cutover(db, stream, old.version, at, f"launch {launch.id}")
            self.store.forget_open(db, stream.model, stream.version)
            forget_old_versions(db, stream, old.last_decided)
            self.save(db, stream)
            forget_old_references(db, self.ledger.digests() | {old.reference.digest})
            moved = self.ledger.launches[launch.id]
            self.store.save_launch(db, moved.id, moved.model, launch_to_json(moved))
        self.ledger.clear_changed(moved)
        self.display.forget(old.model, old.version)
        log.info("Reference cut over.", extra={"model": stream.model, "version": stream.version, "previous": old.version})
        self.display.show()

    def _begun(self, stream: Stream, previous: PolicyState) -> PolicyState:
        """Nothing fires. A version that comes back goes on numbering its episodes: their numbers name alarms and launches."""
        told = (read_json(document, _Numbered)
                for table in ("alarms", "launches") for document in self.store.each(table, stream.model))
        known = (one.episode for one in told if one.version == stream.version)
        return PolicyState(alarm=Machine(episode=max(known, default=0)), alarms_total=previous.alarms_total)

    def _observe_anew(self, stream: Stream) -> None:
        """Look by the further detectors at the stream of a promoted version; without them, where its reference does not do."""
        plan: Plan | None = None
        if self.observer is not None:
            try:
                plan = self.observer.begin(stream.model, stream.version, stream.reference)
            except ConfigError as error:
                self.observer.end(stream.model)
                log.error("Further detectors left.",
                          extra={"model": stream.model, "version": stream.version, "error": str(error)})
        stream.sampling = sampling_of(plan, stream.reference, self.rows_of(stream.model))
