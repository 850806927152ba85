"""The metric catalogue: every number that tidemark shows to Prometheus, as pure data.

This is the contract between the service and everybody who looks at it. The exporter takes names, types, labels and help
texts from here; dashboards and rules look their metrics up here by attribute, so that a typing error is a Python error;
`docs/metrics.md` is rendered from here; a test scrapes a running service and compares names, types and label sets with
this module both ways. A metric that is not here does not exist.

Three senses hold everywhere. Higher is more drift, whatever the detector. One name is one quantity in one base unit,
and only counters end in `_total`. Every label is bounded by the configuration or by a closed list below, never by the
data: category values appear in `bin` only because the reference fixed them, and columns beyond the series budget are
folded into one `__other__`.

The module imports the standard library alone, so that anything may import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "info", "histogram"]

#: What the column and the role are called that stand for all columns beyond the series budget.
OTHER = "__other__"

#: Detectors that a score may come from. `scan` decides; `scan_severe` asks whether it is worth a retraining; the others
#: are distances between reference and window that people know, for display.
DETECTORS: Mapping[str, str] = {
    "scan": "evidence that the column moved further than `alarm.ignore_below`; 1 = alarm",
    "scan_severe": "evidence that it moved further than `retrain.above`; 1 = worth a retraining",
    "psi": "population stability index, nats",
    "ks": "Kolmogorov-Smirnov distance over the bins' edges, 0 to 1; none for categories",
    "js": "Jensen-Shannon distance, base 2, 0 to 1",
    "wasserstein": "Wasserstein-1 distance, reference standard deviations; none for categories",
    "tv": "total variation distance, 0 to 1",
    "chi2": "minus log10 of the two-sample chi-square test's p-value, at most 300",
}

#: What a stream (one model, version and segment) can be in; exactly one of them is 1.
STATES: Mapping[str, str] = {
    "learning": "before the first pane, or how dependent events are is being learnt (a reference in no order)",
    "insufficient_data": "too few events in every window to see anything",
    "reference_inadequate": "the reference is too small or too dependent to judge by",
    "quiet": "watched, and no alarm",
    "warning": "an alarm is raised: it moved further than `alarm.ignore_below`",
    "drift": "a severe alarm is raised: it moved further than `retrain.above`",
}

ALARM_KINDS = ("drift", "quality")
ALARM_STATES = ("raised", "severe", "cleared")

#: What an alarm rests on.
ALARM_CAUSES: Mapping[str, str] = {
    "columns": "columns moved, or a fault stands in them",
    "wrong_type": "too many records are refused",
    "volume": "too few, too many or no events",
}
#: Every alarm that can be open: its kind, its cause and how far it has come. A severe one is raised, too.
ALARM_PLACES = (
    ("drift", "columns", "raised"), ("drift", "columns", "severe"), ("quality", "columns", "raised"),
    ("quality", "wrong_type", "raised"), ("quality", "volume", "raised"),
)

#: Every record that was read ends in exactly one outcome: their sum is the number of records that went past.
OUTCOMES: Mapping[str, str] = {
    "counted": "it is in a pane; the reason is `none`",
    "refused": "it could not be used and went to the dead letters; the reason says why",
    "lost": "the topic's retention removed it before it was read; the reason is `retention`",
}

REFUSALS = ("tombstone", "too_large", "json", "arrow", "encoding", "depth", "type", "timestamp")

LAUNCH_STATES = (
    "proposed", "approved", "submitted", "running", "succeeded", "failed", "timed_out", "judged", "promoted", "refused",
)
LAUNCH_OUTCOMES = ("promoted", "refused", "failed", "timed_out")

#: Why a severe alarm, or somebody who asked, got no retraining: the whole, closed list, in the order in which it is asked.
DECISION_REASONS: Mapping[str, str] = {
    "not_configured": "the model has no `retrain`",
    "quality": "the data are broken, and training on them would not mend that",
    "reference_inadequate": "the reference is inadequate; fit one on more rows",
    "roles": "no column of retrain.roles moved enough",
    "on_request": "retrain.launch_on is `request`: a person or Alertmanager asks for a launch",
    "episode_done": "this episode has had its own",
    "persistence": "it is not severe for retrain.persist_panes yet; asked again while the alarm stands",
    "learning": "the version is not judged for retrain.learning_hours yet; asked again while the alarm stands",
    "in_flight": "another one is under way; asked again while the alarm stands",
    "all_in_flight": "limits.launches are under way over all models; asked again while the alarm stands",
    "breaker": "retrain.useless_max in a row brought nothing; `tidemark triggers reset` once the cause is found",
    "cooldown": "retrain.cooldown_hours since the last one are not over; asked again while the alarm stands",
    "budget": "retrain.max_per_week is used up; asked again while the alarm stands",
    "gpu_hours": "retrain.gpu_hours_per_week would be exceeded; asked again while the alarm stands",
    "blackout": "it is one of the hours of retrain.blackout; asked again while the alarm stands",
}
#: Those that time or a person may change: while the alarm stays severe, it is asked again.
WAITING_REASONS = ("persistence", "learning", "in_flight", "all_in_flight", "breaker", "cooldown", "budget", "gpu_hours",
                   "blackout")

#: How the report of an alarm ended.
REPORT_OUTCOMES: Mapping[str, str] = {
    "made": "evidently's half is there, too",
    "plain": "our own half alone: no rows, or no evidently",
    "failed": "evidently failed, or took too long; our own half is there",
    "dropped": "too many waited, or a newer one of the same alarm took its place",
}

#: What the loop spends its time on, in the order of an event's way: all of its time is in one of them.
LOOP_STAGES: Mapping[str, str] = {
    "source": "waiting for records and taking them: what is left when all the others are quick",
    "decode": "bytes to columns",
    "count": "columns to counts in panes, and what people asked",
    "judge": "decided panes: scan, alarms, further detectors on counts and series",
    "dead_letters": "refused records to their file or topic",
    "capture": "rows for retraining to their storage",
    "store": "the transaction of a checkpoint",
    "show": "text for Prometheus, reports, Kafka's own offsets",
    "launch": "steps of retraining: launchers, judging a challenger, promotion",
}

#: Names in the same scrape that are not ours: the client library's view of the process.
FOREIGN_PREFIXES = ("process_", "python_")

#: What each label means, and what bounds the number of its values.
LABELS: Mapping[str, str] = {
    "model": "`monitors[].model`; one value per monitor",
    "version": "version of the model whose reference is used; the old one leaves at cut-over",
    "segment": "named part of the traffic with its own counts and reference",
    "role": f"role of the column (`input`, `prediction`, `score`, `path`, `joint` for several, `label` for errors), or `{OTHER}`",
    "column": f"column of the reference; those beyond the series budget are one `{OTHER}`",
    "detector": "one of the detectors below, or a name in `monitors[].detectors`",
    "state": "one of a closed list, see the metric",
    "stage": "what the loop spends its time on, see the metric",
    "kind": "`drift`, or `quality` (missing, unseen, out of range)",
    "cause": "what an alarm rests on: `columns`, `wrong_type` or `volume`",
    "bin": "bin of the reference, by its edges or its category",
    "of": "`reference` or `window`",
    "outcome": "one of a closed list, see the metric",
    "reason": "one of a closed list: `none`, `retention`, why an event was refused, or why there is no launch",
    "topic": "Kafka topic, or the file that is read",
    "partition": "partition of the topic",
    "launcher": "`retrain.launcher.type`, or `rollback` of a model that was taken back",
    "metric": "`retrain.metric`: what quality is measured by",
    "alertmanager": "one of `alertmanager.urls`",
    "digest": "digest of the reference file",
    "python": "version of the interpreter",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of series.

    unit    : the base unit, in words; "" where there is none
    help    : one sentence, the same in `/metrics` and in the documentation
    values  : the closed list of the label that has one, for the documentation and for series that start at 0
    buckets : upper bounds of a histogram, without the infinite one
    always  : a running service shows at least one series; the others appear with their cause (a launch, a commit)
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    unit: str
    help: str
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    always: bool = True

    @property
    def type(self) -> str:
        """The word after `# TYPE`: the text format has no info type, such a metric is a gauge of 1."""
        return "gauge" if self.kind == "info" else self.kind


_STREAM = ("model", "version", "segment")

# ---- what moved ----------------------------------------------------------------------------------------------------
SCORE = Metric(
    "tidemark_score", "gauge", (*_STREAM, "role", "column", "detector"), "see detector",
    "How far a column moved from its reference by one detector; higher is more drift, and the scan alarms at 1.",
    values=tuple(DETECTORS))
THRESHOLD = Metric(
    "tidemark_threshold", "gauge", (*_STREAM, "detector"), "as the score",
    "Score of this detector at which it matters; only detectors that something is decided by have one.",
    values=tuple(DETECTORS))
EFFECT = Metric(
    "tidemark_effect", "gauge", (*_STREAM, "role", "column"), "reference standard deviations",
    "Size of the column's most evident movement in the window that shows it best, never negative; "
    "for a bin, the share of events that moved over the standard deviation of being in it.")
EFFECT_LOWER = Metric(
    "tidemark_effect_lower", "gauge", (*_STREAM, "role", "column"), "reference standard deviations",
    "Lower end of the effect's 95 % interval; 0 where it cannot be told from no movement.")
SMALLEST_VISIBLE_SHIFT = Metric(
    "tidemark_smallest_visible_shift", "gauge", (*_STREAM, "column"), "reference standard deviations",
    "Smallest shift of the column's mean that an endless window finds almost surely: what the reference allows.")
BIN_SHARE = Metric(
    "tidemark_bin_share", "gauge", (*_STREAM, "column", "bin", "of"), "share of events, 0 to 1",
    "Share of events in each bin of the columns that moved most, in the reference and in the window.",
    values=("reference", "window"))
WINDOW_EVENTS = Metric(
    "tidemark_window_events", "gauge", _STREAM, "events",
    "Events in the window that the distances and the bin shares are taken from.")

# ---- what further detectors say, which decides nothing -------------------------------------------------------------
DETECTOR_DRIFT = Metric(
    "tidemark_detector_drift", "gauge", (*_STREAM, "column", "detector"), "0 or 1",
    "Whether a configured detector calls its latest pane drift, at its own or the configured threshold; "
    "it raises no alarm and starts no retraining.", always=False)
SCORE_NULL = Metric(
    "tidemark_score_null", "gauge", (*_STREAM, "role", "column", "detector"), "as the score",
    "95 % point of a configured detector's score without drift, for a window of the present size.", always=False)
SCORE_CORRECTED = Metric(
    "tidemark_score_corrected", "gauge", (*_STREAM, "role", "column", "detector"), "as the score",
    "Score of a configured distance on counts with its mean without drift taken off, never negative: "
    "the same threshold suits windows of any size.", always=False)
DETECTOR_PANE = Metric(
    "tidemark_detector_pane_timestamp_seconds", "gauge", (*_STREAM, "detector"), "seconds since 1970",
    "End of the latest pane that a configured detector has judged, in event time.", always=False)
DETECTOR_SKIPPED = Metric(
    "tidemark_detector_skipped_total", "counter", ("model", "detector"), "panes",
    "Panes that a detector on rows did not judge, because a newer one was there before it had begun.", always=False)
DETECTOR_FAILURES = Metric(
    "tidemark_detector_failures_total", "counter", ("model", "detector"), "failures",
    "Times that a configured detector failed on a column; the log has the first of each kind.", always=False)

# ---- what was decided ----------------------------------------------------------------------------------------------
STATE = Metric(
    "tidemark_state", "gauge", (*_STREAM, "state"), "0 or 1",
    "State of the stream: 1 for the one it is in, 0 for the others.", values=tuple(STATES))
ALARMS = Metric(
    "tidemark_alarms_total", "counter", (*_STREAM, "kind", "state"), "alarms",
    "Alarms raised, made severe and cleared.", values=ALARM_STATES)
ALARM_OPEN = Metric(
    "tidemark_alarm_open", "gauge", (*_STREAM, "kind", "cause", "state"), "0 or 1",
    "Whether an alarm of this kind and cause is open; a severe one is raised, too.", values=("raised", "severe"))
ALARM_SINCE = Metric(
    "tidemark_alarm_since_timestamp_seconds", "gauge", (*_STREAM, "kind", "cause", "state"), "seconds since 1970",
    "Event time since which an open alarm is seen: the start of the shortest window that raised it.",
    values=("raised", "severe"), always=False)
ALARM_EPISODE = Metric(
    "tidemark_alarm_episode", "gauge", (*_STREAM, "kind", "cause", "state"), "number",
    "Number of an open alarm's episode, by which its report and its launch are found.",
    values=("raised", "severe"), always=False)
LAST_EVALUATION = Metric(
    "tidemark_last_evaluation_timestamp_seconds", "gauge", ("model",), "seconds since 1970",
    "Wall-clock time at which a pane of this model was last judged.")
EVALUATION = Metric(
    "tidemark_evaluation_seconds", "histogram", ("model",), "seconds",
    "Time that judging one closed pane took: scan, distances and decision.",
    buckets=(0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 10.0))

REPORTS = Metric(
    "tidemark_reports_total", "counter", ("model", "outcome"), "reports",
    "Reports of alarms by how they ended: made, plain (from counts alone), failed or dropped.", values=tuple(REPORT_OUTCOMES))
REPORT = Metric(
    "tidemark_report_seconds", "histogram", ("model",), "seconds",
    "Time that making evidently's half of a report took, in a process of its own.",
    buckets=(5.0, 15.0, 30.0, 60.0, 120.0, 300.0), always=False)

# ---- what came in --------------------------------------------------------------------------------------------------
EVENTS = Metric(
    "tidemark_events_total", "counter", ("model", "outcome", "reason"), "events",
    "Records that went past, each exactly once: counted, refused or lost to the topic's retention.",
    values=tuple(OUTCOMES))
LATE_EVENTS = Metric(
    "tidemark_late_events_total", "counter", ("model",), "events",
    "Counted events that came after their pane was judged and joined the pane that was open.")
RETRIED_EVENTS = Metric(
    "tidemark_retried_events_total", "counter", ("model",), "events",
    "Events read a second time because they held a NaN literal, which JSON does not have; they are slow to read.")
DEAD_LETTERS = Metric(
    "tidemark_dead_letters_total", "counter", ("outcome",), "records",
    "Refused records set aside with their reason (written), or left out because the dead letters were full (dropped).",
    values=("written", "dropped"))
LAG = Metric(
    "tidemark_lag_events", "gauge", ("topic", "partition"), "events",
    "Records of the partition that were not read yet.")
SOURCE = Metric(
    "tidemark_source_connected", "gauge", (), "0 or 1",
    "1 while the source can be read; 0 while brokers are away, refuse us or have no leader: the log says which.")
WATERMARK = Metric(
    "tidemark_watermark_timestamp_seconds", "gauge", ("model",), "seconds since 1970",
    "Event time up to which everything is believed to have been seen.")
CHECKPOINT = Metric(
    "tidemark_checkpoint_timestamp_seconds", "gauge", (), "seconds since 1970",
    "Wall-clock time at which state and offsets were last stored together.")

# ---- what was retrained --------------------------------------------------------------------------------------------
LAUNCHES = Metric(
    "tidemark_launches_total", "counter", ("model", "launcher", "outcome"), "launches",
    "Launches that ended, by how: promoted, refused (not better), failed or timed out.",
    values=LAUNCH_OUTCOMES, always=False)
LAUNCH_STATE = Metric(
    "tidemark_launch_state", "gauge", ("model", "launcher", "state"), "0 or 1",
    "State of the model's latest launch: 1 for the one it is in, 0 for the others; all 0 before the first launch.",
    values=LAUNCH_STATES, always=False)
LAUNCH_STATE_AT = Metric(
    "tidemark_launch_state_timestamp_seconds", "gauge", ("model", "launcher"), "seconds since 1970",
    "Wall-clock time at which the model's latest launch came into its state.", always=False)
LAUNCH_CALLS_FAILED = Metric(
    "tidemark_launch_calls_failed_total", "counter", ("model", "launcher"), "calls",
    "Calls that carry a launch on (to its launcher, the data's store or the promotion) and failed; most are tried again.",
    always=False)
LAUNCH_RETRYING = Metric(
    "tidemark_launch_retrying", "gauge", ("model", "launcher"), "0 or 1",
    "Whether a launch waits to repeat a call that failed: its launcher, store or promotion cannot be reached.", always=False)
DECISIONS = Metric(
    "tidemark_decisions_total", "counter", ("model", "outcome", "reason"), "decisions",
    "Answers of the trigger to severe alarms and to who asked, since the service started: a launch (reason `none`), or no "
    "and why not.", values=("launch", "no"), always=False)
LAUNCH_WAITING = Metric(
    "tidemark_launch_waiting", "gauge", ("model", "reason"), "0 or 1",
    "Whether a severe alarm stands whose launch waits for this reason to end.", values=WAITING_REASONS, always=False)
LAUNCH_WAITING_UNTIL = Metric(
    "tidemark_launch_waiting_until_timestamp_seconds", "gauge", ("model",), "seconds since 1970",
    "Event time at which what a launch waits for ends, as far as it is known.", always=False)
USELESS_LAUNCHES = Metric(
    "tidemark_useless_launches", "gauge", ("model",), "launches",
    "Launches of the version in a row that failed, timed out, were not better or were rolled back; at `retrain.useless_max` the "
    "breaker opens.",
    always=False)
GPU_SECONDS_REMAINING = Metric(
    "tidemark_retrain_gpu_seconds_remaining", "gauge", ("model",), "GPU seconds",
    "GPU time that `retrain.gpu_hours_per_week` still allows in the running week; a launch under way counts its deadline.",
    always=False)
RETRAIN_BUDGET = Metric(
    "tidemark_retrain_budget_remaining", "gauge", ("model",), "launches",
    "Launches that `retrain.max_per_week` still allows in the running week.", always=False)
CHAMPION_QUALITY = Metric(
    "tidemark_champion_quality", "gauge", ("model", "metric"), "as the metric",
    "Quality of the model in production on the held-back events of the latest judged launch.", always=False)
CHALLENGER_QUALITY = Metric(
    "tidemark_challenger_quality", "gauge", ("model", "metric"), "as the metric",
    "Quality of the freshly trained model on the same held-back events.", always=False)

# ---- the service itself --------------------------------------------------------------------------------------------
READY = Metric(
    "tidemark_ready", "gauge", (), "0 or 1",
    "1 once the stored state is loaded and the source is assigned; the same answer as /-/ready.")
ALERT_POSTS = Metric(
    "tidemark_alert_posts_total", "counter", ("alertmanager", "outcome"), "posts",
    "Posts of the open alerts to an Alertmanager of `alertmanager.urls`: taken by it, or failed and tried again.",
    values=("taken", "failed"), always=False)
LOOP = Metric(
    "tidemark_loop_seconds_total", "counter", ("stage",), "seconds",
    "Time of the one loop by what it was spent on; where `source` gets little of it, the stage that gets most holds intake back.",
    values=tuple(LOOP_STAGES))
CAPTURE_WAITING = Metric(
    "tidemark_capture_waiting_bytes", "gauge", ("model",), "bytes",
    "Captured rows that wait in the state for their storage.", always=False)
CAPTURE_DROPPED = Metric(
    "tidemark_capture_dropped_total", "counter", ("model",), "events",
    "Captured rows given up since the service started, the oldest first, because too many waited for a storage that "
    "cannot be written.", always=False)
SERIES = Metric(
    "tidemark_series", "gauge", (), "series",
    "Series of tidemark in this scrape.")
SERIES_LIMIT = Metric(
    "tidemark_series_limit", "gauge", (), "series",
    f"Series that limits.series allows; beyond it the columns with the lowest scores are one {OTHER}.")
COLUMNS_HIDDEN = Metric(
    "tidemark_columns_hidden", "gauge", _STREAM, "columns",
    f"Columns that the series limit folded into {OTHER}; their scores are still computed and still alarm.")
REFERENCE_INFO = Metric(
    "tidemark_reference_info", "info", ("model", "version", "digest"), "always 1",
    "The reference that the model is judged by.")
BUILD_INFO = Metric(
    "tidemark_build_info", "info", ("version", "python"), "always 1",
    "Version of tidemark and of the interpreter that runs it.")

#: All of the above by name, in the order in which they are shown.
CATALOGUE: Mapping[str, Metric] = {
    value.name: value for value in tuple(globals().values()) if isinstance(value, Metric)
}
