"""The exporter: what the loop decided, as the bytes that Prometheus reads and the values that the API words.

The loop calls `show` for every judged pane, `service` once a turn and `forget` at a cut-over. `show` and `forget` only
note; `service` makes the text, once, and swaps one immutable `Published`. A scrape reads finished bytes, so the loop
never waits for a reader nor a reader for the loop, and a burst of panes while catching up costs one rendering.

The invariant: what `/metrics` says and what the API says come from the same `Published`. The number of series is
bounded by the configuration, and that of columns by `series_limit`, which is shared among the streams;
`tidemark_series`, `tidemark_series_limit` and `tidemark_columns_hidden` say where it binds. The few series that every
monitor always has are outside the limit's reach but inside the count.

Cost: 1 to 2 µs per series of a stream that was judged (benchmarks/export_100k), a tenth of that of another. The client
library adds what it knows of the process (`process_*`, `python_*`), from a registry of our own, when scraped.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from detectors.reference import Reference
from monitor import metrics
from monitor.expose.exposition import Exemplar, Exposition, Histogram, Page
from monitor.expose.history import History, HistoryKey, JudgedPane
from monitor.expose.judged import Frame, Judged, StreamKey, Values, WindowCounts
from monitor.expose.observed import Observed
from monitor.expose.report_facts import report_name
from monitor.expose.retrained import put_calls, put_policy
from monitor.expose.snapshot import MonitorStatus, Published, ServiceSnapshot, Why
from monitor.expose.streams import Stream, share_out
from monitor.flow import Clock, Evaluation, Launch, Reading

#: The scan is scaled so that it alarms at 1.
SCAN_THRESHOLDS: Mapping[str, float] = {"scan": 1.0, "scan_severe": 1.0}


class Exporter:
    """Everything that is shown, made by one thread and read by others.

    series_limit : `limits.series`        clock : wall-clock time        monotonic : time that never goes back
    """

    def __init__(self, series_limit: int, *, clock: Clock = time.time,
                 monotonic: Callable[[], float] = time.monotonic) -> None:
        self._limit = series_limit
        self._clock = clock
        self._monotonic = monotonic
        self._frames: dict[tuple[str, str], Frame] = {}
        self._streams: dict[StreamKey, Stream] = {}
        self._observed: dict[StreamKey, Observed] = {}
        self._history: dict[HistoryKey, History] = {}
        self._why: dict[StreamKey, Why] = {}
        self._seconds: dict[str, Histogram] = {}
        self._reports: dict[str, Histogram] = {}
        self._evaluated: dict[str, float] = {}
        self._process = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)
        #: Posts to Alertmanagers by (address, outcome); whoever sends alerts replaces it.
        self.alert_posts: Callable[[], Mapping[tuple[str, str], int]] = dict
        self._published = Published(self._text(ServiceSnapshot()), ServiceSnapshot())

    @property
    def published(self) -> Published:
        """What is shown now; read it once per request."""
        return self._published

    def show(self, evaluation: Evaluation, reference: Reference, distances: Mapping[str, Values] | None = None,
             window_counts: tuple[NDArray[np.int64], int] | None = None, *,
             thresholds: Mapping[str, float] = SCAN_THRESHOLDS, seconds: float | None = None, why: Why | None = None) -> None:
        """Note a judged pane; the next `service` shows it.

        distances     : detector of `metrics.DETECTORS` -> value per row or per column; NaN where it does not exist
        window_counts : counts per row and bin of the window that the distances describe, and its events
        thresholds    : detector -> the score at which something is decided
        seconds       : how long judging took
        why           : why it is quiet, or is not
        """
        frame = self._frame(evaluation, reference)
        window = None if window_counts is None else WindowCounts(*window_counts)
        judged = Judged.of(evaluation, frame, distances or {}, window, thresholds)
        if judged.key in self._streams:
            self._streams[judged.key].update(judged)
        else:
            self._streams[judged.key] = Stream(judged)
        if why is not None:
            self._why[judged.key] = why
        model = evaluation.window.model
        self._evaluated[model] = self._clock()
        if seconds is not None:
            self._seconds.setdefault(model, Histogram(metrics.EVALUATION, (model,))).observe(seconds)

    def record(self, evaluation: Evaluation, reference: Reference) -> None:
        """Note a judged pane for the lines over time: every one of a burst, of which `show` sees the last."""
        window = evaluation.window
        history = self._history.setdefault((window.model, window.segment), History())
        history.note(JudgedPane.of(evaluation, self._frame(evaluation, reference)))

    def _frame(self, evaluation: Evaluation, reference: Reference) -> Frame:
        watched = (evaluation.window.model, evaluation.window.version)
        frame = self._frames.get(watched)
        if frame is None or frame.reference is not reference:
            frame = self._frames[watched] = Frame(reference)
        return frame

    def observe(self, key: StreamKey, readings: Sequence[Reading]) -> None:
        """Note what further detectors last said of a stream (model, version, segment); the next `service` shows it."""
        self._observed.setdefault(key, Observed(key)).update(readings)

    def reported(self, model: str, seconds: float) -> None:
        """Note how long a report took; the next `service` shows it."""
        self._report_seconds(model).observe(seconds)

    def _report_seconds(self, model: str) -> Histogram:
        return self._reports.setdefault(model, Histogram(metrics.REPORT, (model,)))

    def forget(self, model: str, version: str) -> None:
        """Note that this version is no longer watched; the next `service` shows none of its series."""
        self._streams = {key: stream for key, stream in self._streams.items() if key[:2] != (model, version)}
        self._observed = {key: observed for key, observed in self._observed.items() if key[:2] != (model, version)}
        self._why = {key: why for key, why in self._why.items() if key[:2] != (model, version)}
        self._frames.pop((model, version), None)

    def service(self, snapshot: ServiceSnapshot) -> None:
        """Show the panes noted since the last call, and this: the one place where anything becomes visible.

        A ready snapshot names every monitor that there is: what was noted of another model, which a new configuration
        no longer has, is forgotten.
        """
        if snapshot.ready:
            models = {status.model for status in snapshot.monitors}
            for key in [key for key in (*self._streams, *self._observed) if key[0] not in models]:
                self.forget(*key[:2])
            for model in models if snapshot.reports is not None else ():
                self._report_seconds(model)                 # from 0 on, so that the first report is seen as one
            for noted in (self._evaluated, self._seconds, self._reports):
                for model in noted.keys() - models:
                    del noted[model]
            self._history = {key: history for key, history in self._history.items() if key[0] in models}
        text = self._text(snapshot)
        judged = tuple((stream.judged, stream.hidden) for stream in self._streams.values())
        observed = {key: one.readings for key, one in self._observed.items()}
        history = {key: one.panes for key, one in self._history.items()}
        self._published = Published(text, snapshot, judged, self._monotonic(), observed, history, dict(self._why),
                                    dict(self._evaluated))

    def scrape(self, *, as_openmetrics: bool = False) -> bytes:
        """The whole answer to a scrape: our families, then the process'. Called by the HTTP thread."""
        finished = self._published.exposition
        if as_openmetrics:                          # the library ends its part with the line that ends the whole
            process: bytes = openmetrics.generate_latest(self._process)  # type: ignore[no-untyped-call]
            return finished.openmetrics() + process
        return finished.text() + generate_latest(self._process)

    def _text(self, snapshot: ServiceSnapshot) -> Exposition:
        page = Page()
        put_service(page, snapshot, self._streams)
        page.put(metrics.ALERT_POSTS, self.alert_posts().items())
        page.put(metrics.LAST_EVALUATION, [((model,), at) for model, at in self._evaluated.items()])
        for histogram in self._seconds.values():
            page.add(metrics.EVALUATION, histogram.text(), len(histogram))
        for histogram in self._reports.values():
            page.add(metrics.REPORT, histogram.text(), len(histogram))
        streams: list[Stream | Observed] = [*self._streams.values(), *self._observed.values()]
        fixed = sum(stream.fixed for stream in streams) + 2                # the two gauges below count themselves
        rooms = share_out(self._limit - page.series - fixed, [stream.need for stream in streams])
        for stream, room in zip(streams, rooms, strict=True):
            stream.put(page, room)
        page.put(metrics.SERIES_LIMIT, [((), self._limit)])
        page.put(metrics.SERIES, [((), page.series + 1)])
        return page.finished()


def put_service(page: Page, snapshot: ServiceSnapshot, streams: Collection[StreamKey]) -> None:
    """The families of the service itself. Known series start at 0, so that a first increase is seen as one."""
    page.put(metrics.BUILD_INFO, [((_own_version(), platform.python_version()), 1)])
    page.put(metrics.READY, [((), snapshot.ready)])
    page.put(metrics.CHECKPOINT, [((), snapshot.checkpoint)] if snapshot.checkpoint is not None else [])
    page.put(metrics.SOURCE, [((), not snapshot.away)])
    page.put(metrics.LAG, [((topic, str(partition)), lag) for (topic, partition), lag in sorted(snapshot.lag.items())])
    page.put(metrics.DEAD_LETTERS, [((outcome,), snapshot.dead_letters.get(outcome, 0))
                                    for outcome in metrics.DEAD_LETTERS.values])
    page.put(metrics.LOOP, [((stage,), snapshot.loop.get(stage, 0.0)) for stage in metrics.LOOP_STAGES])
    keys = {(status.model, status.version) for status in snapshot.monitors} | {key[:2] for key in streams}
    counts = {(*key, kind, state): 0
              for key in streams for kind in metrics.ALARM_KINDS for state in metrics.ALARM_STATES}
    counts |= {labels: count for labels, count in snapshot.alarm_counts.items() if labels[:2] in keys}
    page.put(metrics.ALARMS, counts.items(), {
        (alarm.model, alarm.version, alarm.segment, alarm.kind, alarm.state): Exemplar("alarm", report_name(alarm), alarm.at)
        for alarm in snapshot.alarms})
    opened = {labels: alarm for labels, alarm in snapshot.open_alarms.items() if labels[:2] in keys}
    places = {(*key, *place): 0 for key in streams for place in metrics.ALARM_PLACES}
    page.put(metrics.ALARM_OPEN, (places | dict.fromkeys(opened, 1)).items())
    page.put(metrics.ALARM_SINCE, [(labels, alarm.since) for labels, alarm in opened.items()])
    page.put(metrics.ALARM_EPISODE, [(labels, alarm.episode) for labels, alarm in opened.items()])
    launches: dict[str, list[Launch]] = {}
    for launch in snapshot.launches:
        launches.setdefault(launch.model, []).append(launch)
    for status in snapshot.monitors:
        _put_monitor(page, status, launches.get(status.model, []))


def _put_monitor(page: Page, status: MonitorStatus, launches: Sequence[Launch]) -> None:
    """One monitor's traffic and, where it is retrained, its launches (oldest first)."""
    model = status.model
    events = {("counted", "none"): 0, ("lost", "retention"): 0, **{("refused", why): 0 for why in metrics.REFUSALS}}
    page.put(metrics.EVENTS, [((model, *pair), count) for pair, count in (events | dict(status.events)).items()])
    page.put(metrics.LATE_EVENTS, [((model,), status.late)])
    page.put(metrics.RETRIED_EVENTS, [((model,), status.retried)])
    page.put(metrics.WATERMARK, [((model,), status.watermark)] if status.watermark is not None else [])
    page.put(metrics.REFERENCE_INFO, [((model, status.version, status.digest), 1)] if status.digest else [])
    page.put(metrics.REPORTS, [((model, outcome), status.reports.get(outcome, 0)) for outcome in metrics.REPORT_OUTCOMES])
    page.put(metrics.DETECTOR_SKIPPED, [((model, name), count) for name, count in status.skipped.items()])
    page.put(metrics.DETECTOR_FAILURES, [((model, name), count) for name, count in status.failed.items()])
    if status.capture is not None:
        page.put(metrics.CAPTURE_WAITING, [((model,), status.capture[0])])
        page.put(metrics.CAPTURE_DROPPED, [((model,), status.capture[1])])
    if status.policy is not None:
        put_policy(page, model, status.policy)
    elif status.budget_remaining is not None:
        page.put(metrics.RETRAIN_BUDGET, [((model,), status.budget_remaining)])
    launchers = sorted({launch.launcher for launch in launches} | {launcher for launcher, _ in status.ended}
                       | ({status.launcher} if status.launcher else set()))
    latest = launches[-1] if launches else None
    last: dict[tuple[str, ...], Exemplar] = {
        (model, launch.launcher, launch.state): Exemplar("launch", launch.id, launch.steps[-1][1]) for launch in launches}
    put_calls(page, model, launchers, launches, status.calls_failed)
    for launcher in launchers:
        for outcome in metrics.LAUNCH_OUTCOMES:
            ended = status.ended.get((launcher, outcome), 0)
            ended += sum(launch.launcher == launcher and launch.state == outcome for launch in launches)
            page.put(metrics.LAUNCHES, [((model, launcher, outcome), ended)], last)
        for state in metrics.LAUNCH_STATES:
            now = latest is not None and latest.launcher == launcher and latest.state == state
            page.put(metrics.LAUNCH_STATE, [((model, launcher, state), now)])
    if latest is not None:
        page.put(metrics.LAUNCH_STATE_AT, [((model, latest.launcher), latest.steps[-1][1])])
    for launch in reversed(launches):
        if launch.champion is not None and launch.challenger is not None:
            page.put(metrics.CHAMPION_QUALITY, [((model, status.metric), launch.champion)])
            page.put(metrics.CHALLENGER_QUALITY, [((model, status.metric), launch.challenger)])
            break


def _own_version() -> str:
    """Version of the installed distribution; `unknown` where the code runs without having been installed."""
    try:
        return version("tidemark")
    except PackageNotFoundError:
        return "unknown"
