"""The API's answers: a `Published` in words and numbers that a program can read.

The types below are the answers. They are encoded as they stand, and the OpenAPI document takes its schemas from them,
so that neither can say what the other does not. They are made on the HTTP thread, when asked for, from frozen values: a
reader costs the loop nothing. Numbers that do not exist (a distance of an empty window) are null. Neighbours:
`monitor.expose.snapshot` (what is read), `monitor.expose.api` (who answers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monitor.decisions import Decision, Limit, PolicyStatus
from monitor.expose.judged import Judged
from monitor.expose.snapshot import MonitorStatus, Published
from monitor.flow import Alarm, Launch, Reading
from monitor.metrics import STATES

#: Columns of each stream in the list of all monitors; the answer for one monitor has them all.
_COLUMNS_IN_LIST = 3


@dataclass(frozen=True, slots=True)
class ColumnView:
    """One column of a judged pane; higher is more drift."""

    column: str
    role: str
    score: float                                    # 1 = alarm
    severe_score: float                             # 1 = worth a retraining
    effect: float                                   # reference standard deviations, never negative
    effect_lower: float
    what: str                                       # the strongest comparison: "mean", "level Paris", "missing" ...
    moved: float                                    # by it, with sign, in its own unit
    moved_lower: float
    moved_upper: float
    moved_unit: str                                 # "sd" (reference standard deviations) or "share" (of events)
    state: str                                      # drift, quiet, below_ignore or too_few_events
    smallest_visible_shift: float                   # reference standard deviations
    distances: dict[str, float]


@dataclass(frozen=True, slots=True)
class DetectorView:
    """What one further detector last said of one column: it decides nothing; higher is more drift."""

    detector: str
    column: str                                     # `__joint__` for all columns together, `error` for the errors
    role: str
    pane: int
    end: float                                      # of that pane, seconds since 1970, event time
    score: float                                    # in the detector's own unit
    drift: bool | None                              # its own verdict; null where it has no threshold
    threshold: float | None
    score_null: float | None                        # 95 % point without drift at the window's size
    score_corrected: float | None                   # with its mean without drift taken off


@dataclass(frozen=True, slots=True)
class StreamView:
    """The latest judged pane of one model, version and segment; columns with the highest score first."""

    version: str
    segment: str
    state: str
    pane: int
    start: float                                    # seconds since 1970, event time
    end: float
    events: int                                     # in the pane
    window_events: int                              # in the window that the distances describe
    score: float                                    # the highest of its columns
    severe_score: float
    episode: int                                    # number of the open or latest alarm
    since: float | None                             # start of the open episode, seconds since 1970
    columns: list[ColumnView]
    columns_total: int
    columns_hidden: int                             # columns that /metrics folds into one
    detectors: list[DetectorView]                   # further detectors; empty in the list of all monitors


@dataclass(frozen=True, slots=True)
class PolicyView:
    """How a model's retraining policy stands: what the week leaves, and every limit in the order in which it is asked."""

    budget_remaining: int
    gpu_hours_remaining: float | None               # null where they are not bounded
    useless: int                                    # launches of the version in a row that brought nothing
    waiting: Decision | None                        # what the severe alarm that is open was answered, when it was a no for now
    limits: list[Limit]


@dataclass(frozen=True, slots=True)
class MonitorView:
    """One monitor: its traffic, its streams, its latest launch."""

    model: str
    version: str
    state: str                                      # the worst of its streams; learning before the first pane
    digest: str
    counted: int
    refused: dict[str, int]                         # by reason
    lost: int
    late: int
    watermark: float | None                         # seconds since 1970, event time
    budget_remaining: int | None
    launch: Launch | None
    policy: PolicyView | None                       # null where the model is not retrained
    streams: list[StreamView]


@dataclass(frozen=True, slots=True)
class Monitors:
    """All monitors, each stream with its three highest columns."""

    ready: bool
    reason: str
    away: str                                       # why the source cannot be read now; empty while it can
    monitors: list[MonitorView]


@dataclass(frozen=True, slots=True)
class Alarms:
    """The latest alarms, newest first: each change of a decision is one."""

    alarms: list[Alarm]


@dataclass(frozen=True, slots=True)
class Triggers:
    """The launches that were decided, newest first."""

    triggers: list[Launch]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a proposed launch that was noted."""

    launch: str
    action: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no answer, and what there is."""

    error: str
    known: list[str]


def monitors(published: Published) -> Monitors:
    """All monitors in the order of the configuration."""
    service = published.service
    return Monitors(service.ready, "" if service.ready else service.reason, service.away,
                    [_monitor(published, status, _COLUMNS_IN_LIST) for status in service.monitors])


def monitor(published: Published, model: str) -> MonitorView | None:
    """One monitor with all its columns; None where the configuration has no such model."""
    for status in published.service.monitors:
        if status.model == model:
            return _monitor(published, status, None)
    return None


def alarms(published: Published) -> Alarms:
    """The latest alarms, newest first."""
    return Alarms(list(reversed(published.service.alarms)))


def triggers(published: Published) -> Triggers:
    """The launches, newest first."""
    return Triggers(list(reversed(published.service.launches)))


def _monitor(published: Published, status: MonitorStatus, columns: int | None) -> MonitorView:
    streams = [_stream(judged, hidden, columns, published.observed.get(judged.key, ()) if columns is None else ())
               for judged, hidden in published.judged if judged.key[0] == status.model]
    worst = max((list(STATES).index(stream.state) for stream in streams), default=0)
    launches = [launch for launch in published.service.launches if launch.model == status.model]
    events = status.events
    return MonitorView(
        model=status.model, version=status.version, state=list(STATES)[worst], digest=status.digest,
        counted=sum(count for (outcome, _), count in events.items() if outcome == "counted"),
        refused={reason: count for (outcome, reason), count in events.items() if outcome == "refused"},
        lost=sum(count for (outcome, _), count in events.items() if outcome == "lost"),
        late=status.late, watermark=status.watermark, budget_remaining=status.budget_remaining,
        launch=launches[-1] if launches else None, policy=_policy(status.policy), streams=streams)


def _policy(policy: PolicyStatus | None) -> PolicyView | None:
    return None if policy is None else PolicyView(
        policy.budget_remaining, policy.gpu_hours_remaining, policy.useless, policy.waiting, list(policy.limits))


def _stream(judged: Judged, hidden: int, limit: int | None, readings: Sequence[Reading]) -> StreamView:
    evaluation = judged.evaluation
    window = evaluation.window
    order = np.argsort(-judged.rank, kind="stable")[:limit].tolist()
    return StreamView(
        version=window.version, segment=window.segment, state=evaluation.state, pane=window.pane, start=window.start,
        end=window.end, events=int(window.profile.events), window_events=judged.window_events,
        score=float(np.fmax.reduce(judged.score, initial=0.0)),
        severe_score=float(np.fmax.reduce(judged.severe, initial=0.0)),
        episode=evaluation.episode, since=evaluation.since,
        columns=[_column(judged, row) for row in order], columns_total=len(judged.frame.columns), columns_hidden=hidden,
        detectors=[DetectorView(
            reading.detector, reading.column, reading.role, reading.pane, reading.end, reading.score, reading.drift,
            reading.threshold, reading.null, reading.corrected) for reading in readings])


def _column(judged: Judged, row: int) -> ColumnView:
    scores = judged.evaluation.scores
    return ColumnView(
        column=judged.frame.columns[row], role=judged.frame.roles[row], score=float(judged.score[row]),
        severe_score=float(judged.severe[row]), effect=float(judged.effect[row]),
        effect_lower=float(judged.effect_lower[row]), what=scores.what[row], moved=float(scores.effect[row]),
        moved_lower=float(scores.effect_lower[row]), moved_upper=float(scores.effect_upper[row]),
        moved_unit=scores.unit[row], state=scores.state[row], smallest_visible_shift=float(judged.visible[row]),
        distances={name: float(values[row]) for name, values in judged.distances.items()})
