"""From a configuration to a running service: every stage is built, checked and given its stored state here.

Order, which matters: configuration and references are checked before anything is opened; the state is loaded before the
source is told where to go on; the HTTP server starts last and is ready only when all of this is done.

A model's version in the state may be ahead of the configuration's: a promotion moved it on, and the configuration still
says where it began. The state keeps the promoted reference itself, so that a restart needs no file of the trainer.
Neighbours: `watched` checks what all of it is built from, `pipeline` runs what is built here, `commands` asks for it.
"""

from __future__ import annotations

import logging
import time
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from monitor.config import Config, Reports, Retrain, state_path
from monitor.decide.observe import Kept, Observer
from monitor.decide.policy import Judge, Policy, PolicyState
from monitor.decide.quality import QualityChecks, QualityState
from monitor.display import ALARMS_SHOWN, Configured
from monitor.errors import CheckpointRefused, ConfigError, SourceFailed
from monitor.expose.exporter import Exporter
from monitor.expose.inbox import Inbox
from monitor.expose.report_maker import Maker
from monitor.expose.report_shelf import Shelf
from monitor.flow import Alarm, Batch, Clock, Evaluation, Launch, Launcher, Rows, Source
from monitor.ingest.arrow import ArrowDecoder, apart
from monitor.ingest.columns_json import scan_of
from monitor.ingest.deadletters import DeadLetters
from monitor.ingest.decode import Decoder
from monitor.ingest.files import FileSource
from monitor.ingest.kafka import KafkaSource
from monitor.ingest.librdkafka import LibrdkafkaSource
from monitor.pipeline import Stages
from monitor.reporting import Reporting, folder_of, refuse_impossible, sampling_of, why_none
from monitor.retrain.launch import Retraining
from monitor.retrain.launchers import launcher_for
from monitor.retrain.ledger import (
    ENTRIES_MAX,
    Ledger,
    decision_from_json,
    entry_from_json,
    kept_of,
    launch_from_json,
    launch_to_json,
)
from monitor.retrain.promote import promotion_for
from monitor.retrain.shadow import Shadows
from monitor.retrain.trigger import Trigger
from monitor.state.capture import Capture
from monitor.state.panes import Panes, Stream
from monitor.state.retention import forget_old_references, forget_old_versions
from monitor.state.set_clock import SetClock
from monitor.state.store import Store
from monitor.state.tables import stored
from monitor.watched import Watched, watched

log = logging.getLogger("tidemark")

#: Panes that a ring holds.
RING_PANES = 129


@dataclass(frozen=True, slots=True)
class Seat:
    """What one of several replicas brings of its own for the models that it decides about (`monitor.replicas`)."""

    monitors: Sequence[Watched]
    store: Store
    decode: Callable[[Batch], list[Rows]]
    panes: Callable[..., Panes]


def build(
    config: Config, *, clock: Clock = time.time, source: Source | None = None, launching: bool = True,
    state: Path | str | None = None, exporter: Exporter | None = None, inbox: Inbox | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None, seat: Seat | None = None,
    elapsed: Clock | None = None,
) -> Stages:
    """Everything that `run` needs, with its stored state loaded and its source at the stored offsets.

    source    : read this instead of what the configuration names       state : keep the state here (":memory:" for none)
    launching : False decides and writes down, but starts no training and captures nothing
    seat      : what one of several replicas brings of its own
    elapsed   : what intervals are measured by; the wall clock, which is set now and then, only says when something was
    """
    elapsed = elapsed or (time.monotonic if clock is time.time else clock)      # a clock that a test moves is both
    monitors = watched(config) if seat is None else list(seat.monitors)
    refuse_impossible(config)
    store = seat.store if seat is not None else Store(state if state is not None else state_path(config.service.state))
    try:
        ledger = _ledger(monitors, store)
        judge = Judge({one.monitor.model: one.knobs() for one in monitors})
        asked = {one.monitor.model: one.asked() for one in monitors if one.monitor.detectors}
        observer = Observer(asked) if asked else None
        shown, folder = exporter or Exporter(config.limits.series), folder_of(config, state) if launching else None
        streams = [_restored(one, store, judge, observer, one.reports if folder is not None else None) for one in monitors]
        with store.transaction() as db:
            told = SetClock.restored(db, clock, elapsed)
            forget_old_references(db, ledger.digests())
        capturing = [one for one in monitors if one.monitor.retrain and launching]
        captures = {one.monitor.model: _capture(one, store, (clock, elapsed), (config.limits.capture_mb << 20) // len(capturing))
                    for one in capturing}
        panes = (Panes if seat is None else seat.panes)(
                      streams, clock=elapsed, idle_seconds=config.kafka.idle_seconds, open_panes_max=config.limits.open_panes,
                      keep=[one.monitor.model for one in monitors if one.monitor.retrain and one.monitor.retrain.data_uri is None
                            and launching])
        policies = {one.monitor.model: one.monitor.retrain for one in monitors if one.monitor.retrain is not None}
        retraining = _retraining(monitors, policies, store, ledger, judge, panes, captures, launching=launching)
        stages = Stages(                            # whose source is opened here: all that can be refused was asked before
            source=source if source is not None else _source(config, monitors, ChainMap(*(one.topic_ids for one in streams))),
            decode=decoding(config, monitors, from_files=isinstance(source, FileSource)) if seat is None else seat.decode,
            apart=cutting(config, monitors) if seat is None else None, panes=panes, judge=judge, policy=Policy(judge),
            trigger=Trigger(policies, ledger, clock=told, launches_max=config.limits.launches, set_by=lambda: told.set_by),
            retraining=retraining, store=store,
            dead_letters=DeadLetters(config.service.dead_letters, config.limits, config.kafka), exporter=shown,
            captures=captures, clock=told, elapsed=elapsed, inbox=inbox or Inbox(),
            configured={one.monitor.model: _configured(one) for one in monitors},
            checkpoint_seconds=config.service.checkpoint_seconds, launching=launching, on_evaluation=on_evaluation,
            quality=_checks(monitors, store), observer=observer, past_alarms=_latest_alarms(store, judge.knobs),
            reporting=None if folder is None else _reporting(config, folder, store, judge, shown),
        )
        stages.source.seek(stages.stored_offsets())
    except BaseException:
        store.close()
        raise
    return stages


def _ledger(monitors: Sequence[Watched], store: Store) -> Ledger:
    """What the store holds of launches, decisions and the audit trail."""
    return Ledger(
        map(launch_from_json, store.each("launches")), map(decision_from_json, store.each("decisions")),
        map(entry_from_json, store.history("audit", latest=ENTRIES_MAX)),
        kept={one.monitor.model: kept_of(one.monitor.retrain.max_per_week, one.monitor.retrain.useless_max)
              for one in monitors if one.monitor.retrain is not None},
        earlier=lambda model: map(launch_from_json, store.each("launches", model)))


def _retraining(monitors: Sequence[Watched], policies: Mapping[str, Retrain], store: Store, ledger: Ledger, judge: Judge,
                panes: Panes, captures: Mapping[str, Capture], *, launching: bool) -> Retraining:
    """Launchers, promotions and shadows of every model that is retrained; none of them where nothing is launched."""
    launchers: dict[str, Launcher] = {}
    promotions = {}
    for one in monitors:
        if one.monitor.retrain is not None and launching:
            where, model = f"{one.where}.retrain", one.monitor.model
            launchers[model] = launcher_for(one.monitor.retrain.launcher, capture_uri=one.monitor.retrain.capture_uri,
                                            path=f"{where}.launcher")
            promotions[model] = promotion_for(one.monitor.retrain.promote, path=f"{where}.promote")

    def save(launch: Launch) -> None:
        with store.transaction() as db:
            store.save_launch(db, launch.id, launch.model, launch_to_json(launch))

    return Retraining(
        policies, ledger, launchers, save=save, snapshot=lambda launch: captures[launch.model].snapshot(launch.id),
        reference=lambda model: judge.scans[model].reference, labels={one.monitor.model: one.labels() for one in monitors},
        shadows=Shadows(
            {one.monitor.model: watching for one in monitors if (watching := one.watching()) is not None},
            lambda model, since_ms, names: captures[model].events_since(since_ms, names),
            lambda model: captures[model].newest_time),
        promotions=promotions, version=lambda model: panes.streams[model].version, kept=store.reference)


def _checks(monitors: Sequence[Watched], store: Store) -> QualityChecks:
    """The checks of data quality with what they remember."""
    checks = QualityChecks({one.monitor.model: one.monitor.quality for one in monitors})
    for one in monitors:
        document, seconds = store.checks(one.monitor.model), one.monitor.pane.seconds
        state = QualityState() if document is None else stored(document, QualityState)
        checks.begin(one.monitor.model, float(seconds), state, store.rates(one.monitor.model, seconds * 1000))
    return checks


def _reporting(config: Config, folder: Path, store: Store, judge: Judge, exporter: Exporter) -> Reporting:
    """The reports of alarms, with what was to be made when the service ended."""
    if (why := why_none(config.reports)) and config.reports.enabled is None:
        log.info("Reports are made from counts alone.", extra={"reason": why})
    maker = Maker(Shelf(folder, config.reports.keep), config.reports.seconds, note=exporter.reported)
    bare = frozenset(monitor.model for monitor in config.monitors if monitor.histograms_only)
    reporting = Reporting(config.reports, maker, store, judge, bare)
    for waiting, model in enumerate(judge.knobs):   # of one model at a time: of all together they are many
        reporting.restore(_alarms(store, model), resume=not waiting)
    return reporting


def _restored(one: Watched, store: Store, judge: Judge, observer: Observer | None, reports: Reports | None) -> Stream:
    """The model's stream as it was stored, in the judge's hands; noted in the store where something began or moved on."""
    stream, policy, previous = resume(one, store)
    judge.begin(one.monitor.model, stream.reference, policy, (stream.decided_events, stream.decided_panes))
    judge.restore(one.monitor.model, stream.origin, store.decided(stream, RING_PANES))
    plan = None if observer is None else observer.begin(one.monitor.model, stream.version, stream.reference)
    stream.sampling = sampling_of(plan, stream.reference, reports)
    if one.monitor.histograms_only:                 # what was sampled before goes with the next line but one
        stream.sampling, stream.histograms_only = None, True
    with store.transaction() as db:
        kept = store.restore_samples(db, stream)
        if observer is not None and plan is not None:
            observer.restore(one.monitor.model, (Kept(*pane) for pane in kept if pane[0] > stream.last_decided - plan.panes))
        store.save_reference(db, stream.reference)
        forget_old_versions(db, stream, stream.last_decided)
        if previous:
            store.save_cutover(db, stream, previous, 0.0, "configuration")
        configured = _configured(one)
        store.save_stream(db, stream, (configured.version, configured.digest), msgspec.json.encode(policy).decode(), {})
    return stream


def resume(one: Watched, store: Store) -> tuple[Stream, PolicyState, str]:
    """What the store holds of a model: its stream, its alarm states, and the version that the configuration ended.

    Three cases: the configuration is as it was (perhaps with a promoted version since: the stored one goes on); it names
    another version (a new stream begins at the offsets that the old one had reached); the model was never counted.
    """
    monitor, reference, version, policy, previous = one.monitor, one.reference, one.version, PolicyState(), ""
    known = store.known(monitor.model)
    if known is not None:
        stored_version, digest, configured_version, configured_digest, document = known
        as_before = (configured_version, configured_digest) == (one.version, one.reference.digest)
        as_promoted = (stored_version, digest) == (one.version, one.reference.digest)
        if not as_before and not as_promoted and one.version in (configured_version, stored_version):
            raise CheckpointRefused(
                f"{one.where}.reference: expected the reference {configured_digest[:12]} that version {one.version} of "
                f"{monitor.model} was counted with, got {one.reference.digest[:12]}; give the new reference a new version")
        policy = stored(document, PolicyState)
        if as_before or as_promoted:
            version = stored_version
            reference = one.reference if digest == one.reference.digest else store.reference(digest)
        else:
            policy, previous = PolicyState(alarms_total=policy.alarms_total), stored_version
    stream = Stream(
        monitor.model, version, monitor.topic, reference, monitor.pane.seconds * 1000, monitor.pane.lateness_seconds * 1000)
    store.load(stream)
    return (stream.successor(version, reference) if previous else stream), policy, previous


def _configured(one: Watched) -> Configured:
    retrain = one.monitor.retrain
    return Configured(one.version, one.reference.digest, retrain.metric if retrain else "",
                      str(retrain.launcher.__struct_config__.tag) if retrain else "",
                      retrain.promote.settle_seconds if retrain and retrain.promote else 0.0,
                      (retrain.model_uri or "") if retrain else "")


def _capture(one: Watched, store: Store, clocks: tuple[Clock, Clock], waiting_max: int) -> Capture:
    """Where one model's events are kept for its trainer, with what the store names."""
    retrain, schema = one.monitor.retrain, one.schema()
    assert retrain is not None
    names = (*(column.name for column in one.reference.columns), *schema.other_names)
    capture = Capture(one.monitor.model, retrain.capture_uri, names, tuple(label.name for label in one.labels()),
                      retrain.capture_events, retrain.capture_share, retrain.capture_days, retrain.capture_seconds,
                      waiting_max=waiting_max, clock=clocks[0], elapsed=clocks[1])
    capture.restore(store.captures(one.monitor.model), store.pending_captures(one.monitor.model))
    return capture


def _source(config: Config, monitors: Sequence[Watched], ids: Mapping[str, str]) -> Source:
    topics = sorted({one.monitor.topic for one in monitors})
    if config.files.paths:
        if len(topics) != 1:
            raise ConfigError(f"files.paths: expected monitors of one topic, got {', '.join(topics)}; use one file per topic")
        try:
            return FileSource(config.files.paths, topics[0])
        except SourceFailed as error:               # an absent file of the configuration is its mistake
            raise ConfigError(f"files.paths: {error}") from None
    return (LibrdkafkaSource if config.kafka.transport == "librdkafka" else KafkaSource)(config.kafka, topics, topic_ids=ids)


def decoding(config: Config, monitors: Sequence[Watched], *, from_files: bool = False) -> Callable[[Batch], list[Rows]]:
    """Decoders of every monitor; a topic that two monitors read is decoded for each. Files say themselves what they hold."""
    decoders: dict[str, list[Decoder | ArrowDecoder]] = {}
    from_files = from_files or bool(config.files.paths)
    scan = None if from_files or all(one.monitor.schema.format == "arrow" for one in monitors) else scan_of(config.kafka)
    for one in monitors:
        decoder = (_arrow(config, one) if one.monitor.schema.format == "arrow" and not from_files else
                   Decoder(one.monitor.model, one.schema(), config.limits, scan=scan))
        decoders.setdefault(one.monitor.topic, []).append(decoder)

    def decode(batch: Batch) -> list[Rows]:
        return [rows for topic, own in decoders.items() if (parts := [part for part in batch.parts if part.topic == topic])
                for decoder in own for rows in decoder.decode_all(parts)]

    return decode


def _arrow(config: Config, one: Watched) -> ArrowDecoder:
    return ArrowDecoder(one.monitor.model, one.schema(), config.limits, pane_ms=one.monitor.pane.seconds * 1000)


def cutting(config: Config, monitors: Sequence[Watched]) -> Callable[[Batch], Iterable[Batch]] | None:
    """What cuts a batch into pieces that may be decoded at once; None where no message unpacks to more than it is."""
    weigh = {one.monitor.topic: _arrow(config, one) for one in monitors if one.monitor.schema.format == "arrow"}
    return (lambda batch: apart(batch, weigh, config.limits.unpacked_bytes)) if weigh and not config.files.paths else None


def _alarms(store: Store, model: str) -> list[Alarm]:
    return [stored(document, Alarm) for document in store.history("alarms", model)]


def _latest_alarms(store: Store, models: Iterable[str]) -> list[Alarm]:
    """The latest alarms of all models, oldest first: what is shown at start."""
    latest: list[Alarm] = []
    for model in models:                            # of one model at a time: of 500 together they would be a gigabyte
        newest = [stored(document, Alarm) for document in store.history("alarms", model, latest=ALARMS_SHOWN)]
        latest = sorted((*latest, *newest), key=lambda alarm: alarm.at)[-ALARMS_SHOWN:]
    return latest
