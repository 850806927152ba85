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
    last_judged,
    launch_age,
    launch_state,
    launched,
    number,
    qualities,
    refused_reason,
    report,
    report_path,
    since,
)
from monitor import metrics
from monitor.metrics import Metric

#: Uids of the dashboards that an alert links to.
MODEL, RETRAINING, SERVICE = "tidemark-model", "tidemark-retraining", "tidemark-service"
#: Fewer waiting records than this are read in seconds, whatever the trend.
LAG_EVENTS_MIN = 10_000
#: One refused record in a hundred for ten minutes: no accident. (`quality.max_refused_share` has an alarm of its own.)
REFUSED_SHARE_MAX = 0.01
#: One late event in twenty, for half an hour: the producer is slower than `pane.lateness_seconds` says.
LATE_SHARE_MAX = 0.05
#: Checkpoints are a second apart, a minute at most: two minutes without one is a disk or a lock.
CHECKPOINT_SECONDS_MAX = 120
#: What became of a launch is news for a day.
NEWS_SECONDS = 86_400
#: Labelled events are collected for up to two weeks; after a day somebody should see that they come.
COLLECTING_SECONDS_MAX = 86_400
#: A proposal that nobody answered for so long was overlooked.
PROPOSED_SECONDS_MAX = 900
#: Metrics of quality of which less is better.
LOWER_IS_BETTER = ("mean_absolute_error",)

_DRIFT, _SEVERE = ("drift", "columns", "raised"), ("drift", "columns", "severe")
_WHO = "Model {{ $labels.model }}, version {{ $labels.version }}, segment {{ $labels.segment }}, "
_MODEL_BOARD = f"{MODEL}?var-model={{{{ $labels.model }}}}"
_RETRAINING_BOARD = f"{RETRAINING}?var-model={{{{ $labels.model }}}}"
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
    fault = (f"(max {by(*STREAM, 'cause')} ({broken}) == 1)\nand {IS_FRESH}\nor\n"
             f"(max {by(*STREAM, 'cause')} ({unread}) == 1)")
    state = {name: f'max {stream} ({series(metrics.STATE, f"state={quoted(name)}")}) == 1'
             for name in ("reference_inadequate", "insufficient_data")}
    return (
        Alert(
            "TidemarkSevereDrift", f"(max {stream} ({_open(_SEVERE)}) == 1)\nand {IS_FRESH}", "critical",
            "A model's data has moved so far that a retraining is worth it.",
            _WHO + "surely moved further than `retrain.above`" + since(_SEVERE) + "." + columns("scan_severe") + launched()
            + " Do: " + _EXPLAIN + "; see that a retraining is under way, or start one; until it is promoted, trust the model"
            " less where these columns matter.",
            _MODEL_BOARD, keeps=keeps, report=report(_SEVERE),
            labels={"tidemark_action": "retrain"} if settings.retrain_label else {}),
        Alert(
            "TidemarkDrift", f"(max {stream} ({_open(_DRIFT)}) == 1)\nand {IS_FRESH}", "warning",
            "A model's data has moved away from its reference.",
            _WHO + "moved further than `alarm.ignore_below`" + since(_DRIFT) + "." + columns("scan") + launched()
            + " Do: ask what changed at that time (a release, a campaign, a season); " + _EXPLAIN + ".",
            _MODEL_BOARD, keeps=keeps, report=report(_DRIFT)),
        Alert(
            "TidemarkDataFault", fault, "critical",
            "A model's data is broken, which no retraining mends.",
            _WHO + "has a fault of the data" + _fault_since() + '.{{ if eq $labels.cause "wrong_type" }} Too many records are '
            "refused." + refused_reason() + '{{ else if eq $labels.cause "volume" }} Events come much slower or faster than '
            "usual, or not at all.{{ else }}" + columns("scan") + "{{ end }} Nothing is retrained on it. Do: " + _EXPLAIN
            + "; ask the producer of what is named, and trust no prediction that rests on it until it is mended.",
            _MODEL_BOARD, keeps=keeps, report=_fault_report()),
        Alert(
            "TidemarkReferenceInadequate", f"{state['reference_inadequate']}\nand {IS_FRESH}", "warning",
            "A model's reference is too small or too dependent to judge by.",
            _WHO + "is judged by a reference that cannot tell drift from its own noise: its alarms are not to be relied on and "
            "start no retraining. Do: fit a reference on more, or on a longer span of, events (`tidemark fit`); "
            "`tidemark check-config` says what a reference can see.",
            _MODEL_BOARD, waits="15m", keeps="1h"),
        Alert(
            "TidemarkInsufficientData", f"{state['insufficient_data']}\nand {IS_FRESH}", "info",
            "A model has too few events in every window to see anything.",
            _WHO + "is watched, but no window of the last 128 panes has had enough events for six hours: drift would not be "
            "seen. Do: take longer panes (`pane.seconds`), or look why so few events come.",
            _MODEL_BOARD, waits="6h"),
        Alert(
            "TidemarkNoData", f"{AGE} > {STALE}", "warning",
            "Nothing of a model was judged for too long.",
            "Model {{ $labels.model }} was last judged " + last_judged() + " ago (or not since the service started): no event "
            "closes its panes, so its drift is unknown, and alerts on its drift are silent. Do: see whether events reach the "
            "topic; whether the service lags behind it; whether one silent partition holds the watermark back.",
            _MODEL_BOARD, waits="5m"),
    )


def _fault_since() -> str:
    """Since when: the alert has its cause as a label, which the question needs besides."""
    return asked(f'max({metrics.ALARM_SINCE.name}{{@stream,kind="quality",cause=%q}})',
                 " since {{ . | first | value | humanizeTimestamp }}", more="$labels.cause")


def _fault_report() -> str:
    """The path of its report: the cause, or the kind where columns are broken."""
    episode = asked(f'max({metrics.ALARM_EPISODE.name}{{@stream,kind="quality",cause=%q}})', number("%.0f"), "latest",
                    more="$labels.cause")
    return report_path('{{ if eq $labels.cause "columns" }}quality{{ else }}{{ $labels.cause }}{{ end }}', episode)


def _observed() -> Alert:
    """For those who want to hear of a further detector, too; it decides nothing."""
    kept = by(*STREAM, "detector")
    late = f"max {by('model')} ({metrics.WATERMARK.name}) - {STALE}"
    return Alert(
        "TidemarkObservedDrift",
        f"(max {kept} ({metrics.DETECTOR_DRIFT.name}) == 1)\nand {on(*STREAM, 'detector')}\n"
        f"  (max {kept} ({metrics.DETECTOR_PANE.name}) > {on('model')} group_left () ({late}))",
        "info", "A further detector, which decides nothing, calls a model's data drift.",
        _WHO + "is called drift by {{ $labels.detector }}"
        + asked(f"sort_desc(topk(3, max by (column, detector) ({metrics.SCORE.name}{{@stream,detector=%q}}) and "
                f"max by (column, detector) ({metrics.DETECTOR_DRIFT.name}{{@stream}}) == 1))",
                ", most in {{ range $rank, $top := . }}{{ if $rank }}; {{ end }}{{ $top.Labels.column }} (score "
                '{{ $top.Value | printf "%.3g" }}){{ end }}', more="$labels.detector")
        + ". It raises no alarm and starts no retraining. Do: compare it with the scan's decision; " + _EXPLAIN + ".",
        _MODEL_BOARD, waits="15m", keeps="15m")


# ---- what was retrained -----------------------------------------------------------------------------------------------

def _retrained() -> tuple[Alert, ...]:
    launch = on("model", "launcher")
    young, who = f"({LAUNCH_AGE} < {NEWS_SECONDS})", "The latest retraining of model {{ $labels.model }} "
    in_flight = "proposed|approved|submitted|running|succeeded|judged"
    listed = "`tidemark triggers list` tells why"
    model = by("model")
    lower = quoted("|".join(LOWER_IS_BETTER))

    def quality(metric: Metric, sign: str) -> str:
        return f"max {by('model', 'metric')} ({series(metric, f'metric{sign}{lower}')})"

    worse = (f"{quality(metrics.CHALLENGER_QUALITY, '!~')} < {quality(metrics.CHAMPION_QUALITY, '!~')}\n      or\n        "
             f"{quality(metrics.CHALLENGER_QUALITY, '=~')} > {quality(metrics.CHAMPION_QUALITY, '=~')}")
    return (
        Alert(
            "TidemarkRetrainingFailed", f"({_launch('failed|timed_out')})\nand {launch} {young}", "warning",
            "A retraining failed or ran out of time.",
            who + "by the {{ $labels.launcher }} launcher has " + launch_state() + " within the last day; its episode will not "
            "launch again by itself. Do: " + listed + "; read the job's log, mend the cause, and retrain by hand.",
            _RETRAINING_BOARD),
        Alert(
            "TidemarkRetrainingStuck",
            f"  (({_launch('submitted|running|succeeded|judged')})\n"
            f"   and {launch} ({LAUNCH_AGE} > {on('model')} group_left () {OVERDUE}))\nor\n"
            f"  (({_launch('approved')})\n   and {launch} ({LAUNCH_AGE} > {COLLECTING_SECONDS_MAX}))",
            "warning", "A retraining does not get on.",
            who + "is " + launch_state() + launch_age()
            + ", longer than it should be; no other can start meanwhile. An approved one waits for labelled events "
            "(`retrain.collect_events`), a running one for its job. Do: " + listed + "; look at the job or at the labels.",
            _RETRAINING_BOARD, waits="5m"),
        Alert(
            "TidemarkApprovalWaiting",
            f"({_launch('proposed')})\nand {launch} ({LAUNCH_AGE} > {PROPOSED_SECONDS_MAX})", "warning",
            "A proposed retraining waits for an answer.",
            who + "is proposed" + launch_age() + " and starts only when a person approves it. Do: `tidemark triggers list`, "
            "then `tidemark triggers approve` or `reject` with the launch's id.",
            _RETRAINING_BOARD),
        Alert(
            "TidemarkRetrainingBudgetSpent",
            f"(max {model} ({metrics.RETRAIN_BUDGET.name}) == 0)\n"
            f"and {on('model')} (max {model} ({_open(_SEVERE)}) == 1)\n"
            f"and {IS_FRESH}\n"
            f"unless {on('model')} ({_launch(in_flight)})", "warning",
            "A model is in severe drift and has no launches left this week.",
            "Model {{ $labels.model }} is in severe drift, no retraining is under way, and the week's launches "
            "(`retrain.max_per_week`) are used up." + qualities() + " Do: find out why the earlier retrainings did not help "
            "before allowing more; a fault of the data or a change that the model cannot learn is not mended by training.",
            _RETRAINING_BOARD, waits="10m"),
        Alert(
            "TidemarkChallengerWorse",
            f"({_launch('refused')})\nand {launch} {young}\nand {on('model')}\n  (     {worse}\n  )", "warning",
            "A retrained model is worse than the one in production and was refused.",
            who + "was refused." + qualities() + " The model in production stays, and so does the drift. Do: see what the "
            "trainer learned from (too few new labels, the wrong span); " + listed + ".",
            _RETRAINING_BOARD),
    )


# ---- what comes in ----------------------------------------------------------------------------------------------------

def _events() -> tuple[Alert, ...]:
    lost = f'sum {by("model")} (increase({series(metrics.EVENTS, "outcome=" + quoted("lost"))}[15m])) > 0'
    dropped = f'sum {by()} (increase({series(metrics.DEAD_LETTERS, "outcome=" + quoted("dropped"))}[15m])) > 0'
    return (
        Alert(
            "TidemarkLagGrowing", f"(min_over_time({LAG}[15m]) > {LAG_EVENTS_MIN})\nand (delta({LAG}[15m]) > 0)", "warning",
            "The service falls behind a topic.",
            "Topic {{ $labels.topic }} had at least {{ $value | humanize }} unread records for the last 15 minutes, and they "
            "become more: what is decided is about the past, and beyond the topic's retention records are lost. Do: look at "
            "the service's CPU and at how long a pane's judgement takes; give it more CPU, or split the monitors.",
            SERVICE, waits="5m"),
        Alert(
            "TidemarkEventsLost", lost, "critical",
            "The topic's retention removed records before they were read.",
            "Of model {{ $labels.model }}, {{ $value | humanize }} records were removed before they were read in the last 15 "
            "minutes: they are in no pane and come never back. Do: bring the lag down, or lengthen the topic's retention.",
            SERVICE),
        Alert(
            "TidemarkEventsRefused", f"{REFUSED} > {REFUSED_SHARE_MAX}", "warning",
            "Many of a model's records cannot be read.",
            "Of model {{ $labels.model }}, {{ $value | humanizePercentage }} of the records are refused." + refused_reason()
            + " What is decided rests on the others. Do: read the dead letters, each has its reason; compare the producer's "
            "messages with the monitor's schema.",
            SERVICE, waits="10m"),
        Alert(
            "TidemarkDeadLettersDropped", dropped, "warning",
            "Refused records are no longer set aside.",
            "{{ $value | humanize }} refused records were dropped in the last 15 minutes, because the dead letters are full or "
            "cannot be written. Do: move the dead letters away, raise `limits.dead_letter_bytes`, and mend the producer.",
            SERVICE),
        Alert(
            "TidemarkLateEvents", f"{LATE} > {LATE_SHARE_MAX}", "info",
            "Many of a model's events come after their pane was judged.",
            "Of model {{ $labels.model }}, {{ $value | humanizePercentage }} of the events come later than "
            "`pane.lateness_seconds` allows: none is lost, but they are counted in later panes. Do: raise "
            "`pane.lateness_seconds`, or look why a producer or a partition is slow.",
            SERVICE, waits="30m"),
    )


# ---- the service itself -----------------------------------------------------------------------------------------------

def _service(settings: Settings) -> tuple[Alert, ...]:
    up, stream = f"up{{job={quoted(settings.job)}}}", by(*STREAM)
    full = asked(f"max({metrics.SERIES.name}{{@place}})", number("%.0f"), "?")
    limit = asked(f"max({metrics.SERIES_LIMIT.name}{{@place}})", number("%.0f"), "?")
    return (
        Alert(
            "TidemarkDown", f"max {by()} ({up}) == 0 or absent({up})", "critical",
            "Prometheus cannot reach tidemark.",
            "No instance of job {{ $labels.job }} has answered a scrape for two minutes: nothing is watched, and no other "
            "alert of tidemark can be trusted to be silent. Nothing is lost while the topic keeps its records: the service "
            "goes on where it stopped. Do: look at the process or the pod and at its last log lines.",
            SERVICE, waits="2m"),
        Alert(
            "TidemarkNotReady", f"max {by()} ({metrics.READY.name}) == 0", "critical",
            "The service runs, but is not ready.",
            "tidemark (job {{ $labels.job }}) answers but has not begun to read for ten minutes. Do: ask /-/ready, which says "
            "what it waits for; look at the broker and at the state's volume.",
            SERVICE, waits="10m"),
        Alert(
            "TidemarkCheckpointOld", f"time() - max {by()} ({metrics.CHECKPOINT.name}) > {CHECKPOINT_SECONDS_MAX}", "critical",
            "State and offsets are no longer stored.",
            "tidemark (job {{ $labels.job }}) stored its state {{ $value | humanizeDuration }} ago: it stands still, or the "
            "state cannot be written; after a crash it would read again from there. Do: look at the disk of `service.state`, "
            "then at the log.",
            SERVICE, waits="2m"),
        Alert(
            "TidemarkSeriesLimitReached", f"max {stream} ({metrics.COLUMNS_HIDDEN.name}) > 0", "info",
            "Columns are folded into one, because the series limit is reached.",
            _WHO + f'shows {{{{ $value | printf "%.0f" }}}} columns as one `{metrics.OTHER}`: {full} of {limit} series are '
            "used. All columns are still judged and alarm; only their own series are not shown. Do: raise `limits.series` if "
            "Prometheus can take it, or watch fewer columns.",
            SERVICE, waits="15m"),
    )
