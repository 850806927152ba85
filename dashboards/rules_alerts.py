"""Every alert: what makes it fire, how long it waits, what it says.

Three groups. *What was decided*: an alarm of the service is open; no threshold and no wait of our own, since the decision
has both, but only while the judgement is fresh. *What was retrained*: the launch that an alarm asked for needs somebody.
*The service and its input*: it is down, behind, blind or short of room. Severity says who hears: `critical` wakes somebody,
`warning` waits for the morning, `info` is looked up when somebody looks.

Each number that stands here has its reason beside it; what depends on a monitor is a recorded series (`rules`).
Neighbours: `rules` renders them, `rules_words` has the templates, docs/runbooks/NAME.md says what to do.
"""

from __future__ import annotations

from dashboards.rules import (
    AGE,
    IS_FRESH,
    LAG,
    LATE,
    LAUNCH_AGE,
    OVERDUE,
    REFUSED,
    STALE,
    STREAM,
    Alert,
    Settings,
    by,
    on,
    quoted,
    series,
)
from dashboards.rules_words import (
    asked,
    columns,
    episode,
    fault,
    fault_episode,
    fault_since,
    number,
    refused_reason,
    since,
    worded,
)
from monitor import alert_words as words
from monitor import metrics
from monitor.alert_limits import COLLECTING_SECONDS_MAX, IN_FLIGHT, LOWER_IS_BETTER, NEWS_SECONDS, PROPOSED_SECONDS_MAX, TRAINING
from monitor.alert_words import MODEL, SERVICE, Words
from monitor.metrics import Metric

#: Fewer waiting records than this are read in seconds, whatever the trend.
LAG_EVENTS_MIN = 10_000
#: One refused record in a hundred for ten minutes: no accident. (`quality.max_refused_share` has an alarm of its own.)
REFUSED_SHARE_MAX = 0.01
#: One late event in twenty, for half an hour: the producer is slower than `pane.lateness_seconds` says.
LATE_SHARE_MAX = 0.05
#: Checkpoints are a second apart, a minute at most: two minutes without one is a disk or a lock.
CHECKPOINT_SECONDS_MAX = 120

_DRIFT, _SEVERE = ("drift", "columns", "raised"), ("drift", "columns", "severe")
_WHO = "Model {{ $labels.model }}, version {{ $labels.version }}, segment {{ $labels.segment }}, "
_MODEL_BOARD = f"{MODEL}?var-model={{{{ $labels.model }}}}"
_EXPLAIN = "`tidemark explain {{ $labels.model }}` gives the reasons column by column"


def alerts(settings: Settings) -> tuple[Alert, ...]:
    """All of them, in the order in which the page of runbooks has them."""
    observed = (_observed(),) if settings.observed else ()
    return (*_decided(settings), *observed, *_retrained(), *_events(), *_service(settings))


def _open(place: tuple[str, str, str]) -> str:
    return series(metrics.ALARM_OPEN, *(f"{label}={quoted(value)}" for label, value in
                                        zip(("kind", "cause", "state"), place, strict=True)))


def _launch(states: str) -> str:
    """Models whose latest launch is in one of these states, by launcher."""
    return f"max {by('model', 'launcher')} ({series(metrics.LAUNCH_STATE, f'state=~{quoted(states)}')}) == 1"


# ---- what was decided -------------------------------------------------------------------------------------------------

def _decided(settings: Settings) -> tuple[Alert, ...]:
    keeps, stream = settings.keep_firing, by(*STREAM)
    broken = series(metrics.ALARM_OPEN, 'kind="quality"', 'cause="columns"')
    unread = series(metrics.ALARM_OPEN, 'kind="quality"', 'cause!="columns"')
    # Refusals and silence are noticed between panes, when nothing is judged: the service being there is fresh enough.
    broken_or_unread = (f"(max {by(*STREAM, 'cause')} ({broken}) == 1)\nand {IS_FRESH}\nor\n"
                        f"(max {by(*STREAM, 'cause')} ({unread}) == 1)")
    state = {name: f'max {stream} ({series(metrics.STATE, f"state={quoted(name)}")}) == 1'
             for name in ("reference_inadequate", "insufficient_data")}
    action = {words.ACTION_LABEL: words.ACTION_RETRAIN} if settings.retrain_label else {}
    fault_word = '{{ if eq $labels.cause "columns" }}quality{{ else }}{{ $labels.cause }}{{ end }}'
    return (
        Alert(worded(words.SEVERE_DRIFT, since=since(_SEVERE), columns=columns("scan_severe"), word=_SEVERE[0],
                     episode=episode(_SEVERE)),
              f"(max {stream} ({_open(_SEVERE)}) == 1)\nand {IS_FRESH}", keeps, action),
        Alert(worded(words.DRIFT, since=since(_DRIFT), columns=columns("scan"), word=_DRIFT[0], episode=episode(_DRIFT)),
              f"(max {stream} ({_open(_DRIFT)}) == 1)\nand {IS_FRESH}", keeps),
        Alert(worded(words.DATA_FAULT, since=fault_since(), fault=fault("scan"), word=fault_word, episode=fault_episode()),
              broken_or_unread, keeps),
        Alert(worded(words.REFERENCE_INADEQUATE), f"{state['reference_inadequate']}\nand {IS_FRESH}", keeps="1h"),
        Alert(worded(words.INSUFFICIENT_DATA), f"{state['insufficient_data']}\nand {IS_FRESH}"),
        Alert(worded(words.NO_DATA), f"{AGE} > {STALE}"),
    )


def _observed() -> Alert:
    """For those who want to hear of a further detector, too; it decides nothing."""
    kept = by(*STREAM, "detector")
    late = f"max {by('model')} ({metrics.WATERMARK.name}) - {STALE}"
    return Alert(Words(
        "TidemarkObservedDrift", "info", "A further detector, which decides nothing, calls a model's data drift.",
        _WHO + "is called drift by {{ $labels.detector }}"
        + asked(f"sort_desc(topk(3, max by (column, detector) ({metrics.SCORE.name}{{@stream,detector=%q}}) and "
                f"max by (column, detector) ({metrics.DETECTOR_DRIFT.name}{{@stream}}) == 1))",
                ", most in {{ range $rank, $top := . }}{{ if $rank }}; {{ end }}{{ $top.Labels.column }} (score "
                '{{ $top.Value | printf "%.3g" }}){{ end }}', more="$labels.detector")
        + ". It raises no alarm and starts no retraining. Do: compare it with the scan's decision; " + _EXPLAIN + ".",
        _MODEL_BOARD, waits="15m"),
        f"(max {kept} ({metrics.DETECTOR_DRIFT.name}) == 1)\nand {on(*STREAM, 'detector')}\n"
        f"  (max {kept} ({metrics.DETECTOR_PANE.name}) > {on('model')} group_left () ({late}))", keeps="15m")


# ---- what was retrained -----------------------------------------------------------------------------------------------

def _retrained() -> tuple[Alert, ...]:
    launch = on("model", "launcher")
    young, in_flight, training = f"({LAUNCH_AGE} < {NEWS_SECONDS})", "|".join(IN_FLIGHT), "|".join(TRAINING)
    model = by("model")
    lower = quoted("|".join(LOWER_IS_BETTER))

    def quality(metric: Metric, sign: str) -> str:
        return f"max {by('model', 'metric')} ({series(metric, f'metric{sign}{lower}')})"

    worse = (f"{quality(metrics.CHALLENGER_QUALITY, '!~')} < {quality(metrics.CHAMPION_QUALITY, '!~')}\n      or\n        "
             f"{quality(metrics.CHALLENGER_QUALITY, '=~')} > {quality(metrics.CHAMPION_QUALITY, '=~')}")
    return (
        Alert(worded(words.RETRAINING_FAILED), f"({_launch('failed|timed_out')})\nand {launch} {young}"),
        Alert(worded(words.RETRAINING_STUCK),
              f"  (({_launch(training)})\n"
              f"   and {launch} ({LAUNCH_AGE} > {on('model')} group_left () {OVERDUE}))\nor\n"
              f"  (({_launch('approved')})\n   and {launch} ({LAUNCH_AGE} > {COLLECTING_SECONDS_MAX}))"),
        Alert(worded(words.APPROVAL_WAITING),
              f"({_launch('proposed')})\nand {launch} ({LAUNCH_AGE} > {PROPOSED_SECONDS_MAX})"),
        Alert(worded(words.BUDGET_SPENT),
              f"(max {model} ({metrics.RETRAIN_BUDGET.name}) == 0)\n"
              f"and {on('model')} (max {model} ({_open(_SEVERE)}) == 1)\n"
              f"and {IS_FRESH}\n"
              f"unless {on('model')} ({_launch(in_flight)})"),
        Alert(worded(words.CHALLENGER_WORSE),
              f"({_launch('refused')})\nand {launch} {young}\nand {on('model')}\n  (     {worse}\n  )"),
        *_held_up(),
    )


def _held_up() -> tuple[Alert, ...]:
    """A launch that cannot get on because something is not reached, and one that is not decided until a person looks."""
    retrying = f"max {by('model', 'launcher')} ({metrics.LAUNCH_RETRYING.name}) == 1"
    breaker = f"max {by('model')} ({series(metrics.LAUNCH_WAITING, 'reason=' + quoted('breaker'))}) == 1"
    return (Alert(worded(words.LAUNCHER_UNREACHABLE), retrying),
            Alert(worded(words.BREAKER_OPEN), f"({breaker})\nand {IS_FRESH}"))


# ---- what comes in ----------------------------------------------------------------------------------------------------

def _told(name: str, expression: str, severity: str, summary: str, description: str, waits: str = "") -> Alert:
    """An alert that only Prometheus can give, on the service or on what comes in."""
    return Alert(Words(name, severity, summary, description, SERVICE, waits=waits), expression)


def _events() -> tuple[Alert, ...]:
    lost = f'sum {by("model")} (increase({series(metrics.EVENTS, "outcome=" + quoted("lost"))}[15m])) > 0'
    dropped = f'sum {by()} (increase({series(metrics.DEAD_LETTERS, "outcome=" + quoted("dropped"))}[15m])) > 0'
    return (
        _told(
            "TidemarkLagGrowing", f"(min_over_time({LAG}[15m]) > {LAG_EVENTS_MIN})\nand (delta({LAG}[15m]) > 0)", "warning",
            "The service falls behind a topic.",
            "Topic {{ $labels.topic }} had at least {{ $value | humanize }} unread records for the last 15 minutes, and they "
            "become more: what is decided is about the past, and beyond the topic's retention records are lost. Do: look at "
            "the service's CPU and at how long a pane's judgement takes; give it more CPU, or split the monitors.",
            waits="5m"),
        _told(
            "TidemarkEventsLost", lost, "critical",
            "The topic's retention removed records before they were read.",
            "Of model {{ $labels.model }}, {{ $value | humanize }} records were removed before they were read in the last 15 "
            "minutes: they are in no pane and come never back. Do: bring the lag down, or lengthen the topic's retention.",
            ),
        _told(
            "TidemarkEventsRefused", f"{REFUSED} > {REFUSED_SHARE_MAX}", "warning",
            "Many of a model's records cannot be read.",
            "Of model {{ $labels.model }}, {{ $value | humanizePercentage }} of the records are refused." + refused_reason()
            + " What is decided rests on the others. Do: read the dead letters, each has its reason; compare the producer's "
            "messages with the monitor's schema.",
            waits="10m"),
        _told(
            "TidemarkDeadLettersDropped", dropped, "warning",
            "Refused records are no longer set aside.",
            "{{ $value | humanize }} refused records were dropped in the last 15 minutes, because the dead letters are full or "
            "cannot be written. Do: move the dead letters away, raise `limits.dead_letter_bytes`, and mend the producer.",
            ),
        _told(
            "TidemarkLateEvents", f"{LATE} > {LATE_SHARE_MAX}", "info",
            "Many of a model's events come after their pane was judged.",
            "Of model {{ $labels.model }}, {{ $value | humanizePercentage }} of the events come later than "
            "`pane.lateness_seconds` allows: none is lost, but they are counted in later panes. Do: raise "
            "`pane.lateness_seconds`, or look why a producer or a partition is slow.",
            waits="30m"),
    )


# ---- the service itself -----------------------------------------------------------------------------------------------

def _service(settings: Settings) -> tuple[Alert, ...]:
    up, stream = f"up{{job={quoted(settings.job)}}}", by(*STREAM)
    full = asked(f"max({metrics.SERIES.name}{{@place}})", number(".0f"), "?")
    limit = asked(f"max({metrics.SERIES_LIMIT.name}{{@place}})", number(".0f"), "?")
    return (
        _told(
            "TidemarkDown", f"max {by()} ({up}) == 0 or absent({up})", "critical",
            "Prometheus cannot reach tidemark.",
            "No instance of job {{ $labels.job }} has answered a scrape for two minutes: nothing is watched, and no other "
            "alert of tidemark can be trusted to be silent. Nothing is lost while the topic keeps its records: the service "
            "goes on where it stopped. Do: look at the process or the pod and at its last log lines.",
            waits="2m"),
        _told(
            "TidemarkSourceAway", f"min {by()} ({metrics.SOURCE.name}) == 0", "critical",
            "The service cannot read its brokers.",
            "tidemark (job {{ $labels.job }}) has not reached the brokers for five minutes, was refused by them, or found no "
            "leader: nothing is read or judged, and the lag cannot be seen. Nothing is lost while the topics keep their records. "
            "Do: the log and /api/v1/monitors say why; `tidemark doctor` asks the brokers itself.",
            waits="5m"),
        _told(
            "TidemarkNotReady", f"max {by()} ({metrics.READY.name}) == 0", "critical",
            "The service runs, but is not ready.",
            "tidemark (job {{ $labels.job }}) answers but has not begun to read for ten minutes. Do: ask /-/ready, which says "
            "what it waits for; look at the broker and at the state's volume.",
            waits="10m"),
        _told(
            "TidemarkCheckpointOld", f"time() - max {by()} ({metrics.CHECKPOINT.name}) > {CHECKPOINT_SECONDS_MAX}", "critical",
            "State and offsets are no longer stored.",
            "tidemark (job {{ $labels.job }}) stored its state {{ $value | humanizeDuration }} ago: it stands still, or the "
            "state cannot be written; after a crash it would read again from there. Do: look at the disk of `service.state`, "
            "then at the log.",
            waits="2m"),
        _told(
            "TidemarkSeriesLimitReached", f"max {stream} ({metrics.COLUMNS_HIDDEN.name}) > 0", "info",
            "Columns are folded into one, because the series limit is reached.",
            _WHO + f'shows {{{{ $value | printf "%.0f" }}}} columns as one `{metrics.OTHER}`: {full} of {limit} series are '
            "used. All columns are still judged and alarm; only their own series are not shown. Do: raise `limits.series` if "
            "Prometheus can take it, or watch fewer columns.",
            waits="15m"),
    )
