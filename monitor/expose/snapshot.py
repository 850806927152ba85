"""What is shown, as frozen values: one snapshot at a time, behind every panel, answer and probe.

The loop gives the exporter two things: each judged pane (`monitor.flow.Evaluation`) and, once a turn, a
`ServiceSnapshot` with what the service itself knows: events, lag, alarms, launches. The exporter makes one `Published`
of both and swaps one reference. The HTTP thread reads that reference once per request, so that `/metrics`, `/-/ready`
and the API never disagree and nobody takes a lock.

The invariant: nothing reachable from a `Published` is written to after it was made. Whoever fills a ServiceSnapshot
therefore hands over copies of mappings that it goes on counting in.

Neighbours: `monitor.expose.exporter` makes it, `monitor.expose.views` words it for the API.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from monitor.decisions import Decision, Entry, PolicyStatus
from monitor.expose.exposition import Exposition
from monitor.expose.history import HistoryKey, JudgedPane
from monitor.expose.judged import Judged, StreamKey
from monitor.flow import Alarm, ColumnReason, Launch, Reading, TopicPartition


class OpenAlarm(NamedTuple):
    """An alarm that is open: its episode, and the event time (seconds since 1970) since which it is seen."""

    episode: int
    since: float


class Why(NamedTuple):
    """Why a stream is quiet, or is not: what `tidemark explain` says.

    headline : what is decided about the whole, in sentences
    columns  : one answer per column, strongest evidence first; made when it is asked for, from values that do not change
    """

    headline: tuple[str, ...]
    columns: Callable[[], Sequence[ColumnReason]]


@dataclass(frozen=True, slots=True)
class MonitorStatus:
    """What the service knows of one monitor, besides its drift.

    events    : (outcome, reason) -> events; `counted` has the reason `none`, `lost` the reason `retention`
    late      : events that came after their pane was judged (they are among the counted)
    retried   : events that were read a second time because of a NaN literal
    watermark : event time, seconds since 1970; None before the first event
    digest    : of the reference in use          launcher : type of the launcher, "" where nothing is retrained
    metric    : what quality is measured by       budget_remaining : launches left this week; None without retraining
    skipped   : further detector on rows -> panes that a newer one overtook     failed : further detector -> failures
    reports   : outcome (`metrics.REPORT_OUTCOMES`) -> reports        policy : of retraining; None without
    capture   : bytes of captured rows that wait for their storage, and rows that were given up; None where none are kept
    ended     : (launcher, state) -> launches that ended earlier and are no longer among the snapshot's
    calls_failed : launcher -> failed calls of those
    """

    model: str
    version: str
    events: Mapping[tuple[str, str], int] = field(default_factory=dict)
    late: int = 0
    retried: int = 0
    watermark: float | None = None
    digest: str = ""
    launcher: str = ""
    metric: str = ""
    budget_remaining: int | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    reports: Mapping[str, int] = field(default_factory=dict)
    policy: PolicyStatus | None = None
    capture: tuple[int, int] | None = None
    ended: Mapping[tuple[str, str], int] = field(default_factory=dict)
    calls_failed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServiceSnapshot:
    """What the service knows of itself at one moment.

    ready, reason : whether the state is loaded and the source assigned, and if not, what is waited for
    lag           : records not yet read, per topic and partition
    checkpoint    : wall-clock time of the last commit, seconds since 1970; None before the first
    alarm_counts  : (model, version, segment, kind, state) -> alarms
    open_alarms   : (model, version, segment, kind, cause, state) -> the alarm that is open there
    alarms        : the latest alarms, oldest first; the giver bounds how many
    launches      : the launches that the ledger holds, oldest first: the open ones, and of each model the latest that ended
    decided       : the trigger's latest answers, oldest first
    audit         : what people and programs asked of the trigger, oldest first
    dead_letters  : records by outcome, `written` or `dropped`
    reports       : the folder of the alarms' reports; None where none are kept
    loop          : seconds of the loop by stage (`metrics.LOOP_STAGES`)
    away          : why the source cannot be read now; empty while it can
    """

    ready: bool = False
    reason: str = "starting: the stored state is not loaded yet"
    monitors: tuple[MonitorStatus, ...] = ()
    lag: Mapping[TopicPartition, int] = field(default_factory=dict)
    checkpoint: float | None = None
    alarm_counts: Mapping[tuple[str, str, str, str, str], int] = field(default_factory=dict)
    open_alarms: Mapping[tuple[str, str, str, str, str, str], OpenAlarm] = field(default_factory=dict)
    alarms: tuple[Alarm, ...] = ()
    launches: tuple[Launch, ...] = ()
    decided: tuple[Decision, ...] = ()
    audit: tuple[Entry, ...] = ()
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    reports: Path | None = None
    loop: Mapping[str, float] = field(default_factory=dict)
    away: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """Everything that is shown at one moment.

    exposition : the finished families of ours
    judged : the latest judged pane of every stream, each with the number of its columns that the exposition folds
    at     : monotonic time at which it was made, so that a stalled loop can be seen; None before the first
    observed : what further detectors last said of every stream
    history  : the latest judged panes of every model and segment, oldest first
    why      : of every stream, why it is quiet or is not
    evaluated : model -> wall-clock time at which a pane of it was last judged, seconds since 1970
    """

    exposition: Exposition
    service: ServiceSnapshot
    judged: tuple[tuple[Judged, int], ...] = ()
    at: float | None = None
    observed: Mapping[StreamKey, tuple[Reading, ...]] = field(default_factory=dict)
    history: Mapping[HistoryKey, tuple[JudgedPane, ...]] = field(default_factory=dict)
    why: Mapping[StreamKey, Why] = field(default_factory=dict)
    evaluated: Mapping[str, float] = field(default_factory=dict)

    @property
    def text(self) -> bytes:
        """Our families in Prometheus' text format."""
        return self.exposition.text()
