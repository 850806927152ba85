"""What an alert says: the one text behind Prometheus' rules and behind the alerts that the service sends itself.

Two writers fill these texts. `dashboards.rules_words` puts Prometheus' templates into the places, so that Prometheus
asks its own series when an alert fires; `monitor.expose.alert_facts` puts in what the service knows. The words, the
number of digits, the order and the links are here once, so that a person reads the same sentence by either way.

A place is written as `str.format` writes it. Places in braces with a format (`{effect:.2f}`) are numbers; the others
are labels of the alert (`{model}`) or one of the phrases below, which stands for nothing where its fact is not known.
A description answers, in this order: which model, which columns and how far, how sure, since when, what was done about
it, what to do. Pure text: this module imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: Uids of the dashboards that an alert links to.
MODEL, RETRAINING, SERVICE = "tidemark-model", "tidemark-retraining", "tidemark-service"
#: Columns that a description names: enough to act on, few enough to read on a phone.
COLUMNS: Final = 3
#: The label by which Alertmanager routes an alert back to tidemark as a trigger, and its value.
ACTION_LABEL, ACTION_RETRAIN = "tidemark_action", "retrain"
#: `job` of the service, where nobody says otherwise.
JOB = "tidemark"

# ---- phrases: what a place of a description stands for ----------------------------------------------------------------

SINCE = " since {time}"
MOST = " Most: {columns} (1 is an alarm)."
BETWEEN_COLUMNS = "; "
COLUMN = "{column} ({role}){effect}{lower}, evidence {evidence:.1f}"
EFFECT = " by {effect:.2f} reference s.d."
LOWER = ", surely {lower:.2f} or more"
NO_COLUMN = " No column has a score now."
LAUNCHED = " Retraining: the latest launch is {state}{launch_age}."
NOT_LAUNCHED = " Retraining: nothing was launched."
LAUNCH_AGE = " for {duration}"
LAUNCHES_LEFT = " Launches left this week: {left:.0f}."
QUALITIES = " By {metric} the challenger reached {challenger:.4g}{champion}."
CHAMPION = ", the champion {champion:.4g}"
REFUSED_REASON = " Mostly: {reason}."
#: What a fault of the data is, by its cause; any other cause is of columns, which are named.
FAULTS: Mapping[str, str] = {
    "wrong_type": " Too many records are refused.{refused_reason}",
    "volume": " Events come much slower or faster than usual, or not at all.",
}
#: Instead of what nobody knows.
UNKNOWN_AGE, UNKNOWN_STATE, UNKNOWN_EPISODE = "an unknown time", "unknown", "latest"


@dataclass(frozen=True, slots=True)
class Words:
    """What one alert is called and says.

    name      : also that of its runbook, docs/runbooks/NAME.md        severity : critical wakes, warning waits for the
    morning, info is only looked up        waits : how long it must hold before somebody hears of it, as Prometheus writes it
    summary   : one fixed sentence        description : all that is known, with places
    dashboard : path below Grafana's address        report : path below the service's; "" where there is no report
    """

    name: str
    severity: str
    summary: str
    description: str
    dashboard: str
    report: str = ""
    waits: str = ""

    def links(self, service_url: str, grafana_url: str, runbooks_url: str) -> dict[str, str]:
        """The annotations that are addresses, with places; an address that is not known gives no link."""
        return {name: f"{address}/{path}" for name, address, path in (
            ("runbook_url", runbooks_url, f"{self.name}.md"), ("dashboard_url", grafana_url, f"d/{self.dashboard}"),
            ("report_url", service_url, self.report)) if address and path}


_WHO = "Model {model}, version {version}, segment {segment}, "
_MODEL_BOARD = f"{MODEL}?var-model={{model}}"
_RETRAINING_BOARD = f"{RETRAINING}?var-model={{model}}"
_EXPLAIN = "`tidemark explain {model}` gives the reasons column by column"
_LATEST = "The latest retraining of model {model} "
_LISTED = "`tidemark triggers list` tells why"
#: MODEL-VERSION-WORD-EPISODE: the word is the alarm's kind, or its cause where it rests on no column. Each cause counts
#: episodes of its own, so the kind alone would name two alarms.
_REPORT = "reports/{model}-{version}-{word}-{episode}"

# ---- what was decided -------------------------------------------------------------------------------------------------

SEVERE_DRIFT = Words(
    "TidemarkSevereDrift", "critical", "A model's data has moved so far that a retraining is worth it.",
    _WHO + "surely moved further than `retrain.above`{since}.{columns}{launched} Do: " + _EXPLAIN + "; see that a retraining is "
    "under way, or start one; until it is promoted, trust the model less where these columns matter.", _MODEL_BOARD, _REPORT)
DRIFT = Words(
    "TidemarkDrift", "warning", "A model's data has moved away from its reference.",
    _WHO + "moved further than `alarm.ignore_below`{since}.{columns}{launched} Do: ask what changed at that time (a release, a "
    "campaign, a season); " + _EXPLAIN + ".", _MODEL_BOARD, _REPORT)
DATA_FAULT = Words(
    "TidemarkDataFault", "critical", "A model's data is broken, which no retraining mends.",
    _WHO + "has a fault of the data{since}.{fault} Nothing is retrained on it. Do: " + _EXPLAIN + "; ask the producer of what is "
    "named, and trust no prediction that rests on it until it is mended.", _MODEL_BOARD, _REPORT)
REFERENCE_INADEQUATE = Words(
    "TidemarkReferenceInadequate", "warning", "A model's reference is too small or too dependent to judge by.",
    _WHO + "is judged by a reference that cannot tell drift from its own noise: its alarms are not to be relied on and start no "
    "retraining. Do: fit a reference on more, or on a longer span of, events (`tidemark fit`); `tidemark check-config` says what "
    "a reference can see.", _MODEL_BOARD, waits="15m")
INSUFFICIENT_DATA = Words(
    "TidemarkInsufficientData", "info", "A model has too few events in every window to see anything.",
    _WHO + "is watched, but no window of the last 128 panes has had enough events for six hours: drift would not be seen. Do: "
    "take longer panes (`pane.seconds`), or look why so few events come.", _MODEL_BOARD, waits="6h")
NO_DATA = Words(
    "TidemarkNoData", "warning", "Nothing of a model was judged for too long.",
    "Model {model} was last judged {judged_age} ago (or not since the service started): no event closes its panes, so its drift "
    "is unknown, and alerts on its drift are silent. Do: see whether events reach the topic; whether the service lags behind it; "
    "whether one silent partition holds the watermark back.", _MODEL_BOARD, waits="5m")

# ---- what was retrained -----------------------------------------------------------------------------------------------

RETRAINING_FAILED = Words(
    "TidemarkRetrainingFailed", "warning", "A retraining failed or ran out of time.",
    _LATEST + "by the {launcher} launcher has {state} within the last day; its episode will not launch again by itself. Do: "
    + _LISTED + "; read the job's log, mend the cause, and retrain by hand.", _RETRAINING_BOARD)
RETRAINING_STUCK = Words(
    "TidemarkRetrainingStuck", "warning", "A retraining does not get on.",
    _LATEST + "is {state}{launch_age}, longer than it should be; no other can start meanwhile. An approved one waits for "
    "labelled events (`retrain.collect_events`), a running one for its job. Do: " + _LISTED + "; look at the job or at the "
    "labels.", _RETRAINING_BOARD, waits="5m")
APPROVAL_WAITING = Words(
    "TidemarkApprovalWaiting", "warning", "A proposed retraining waits for an answer.",
    _LATEST + "is proposed{launch_age} and starts only when a person approves it. Do: `tidemark triggers list`, then `tidemark "
    "triggers approve` or `reject` with the launch's id.", _RETRAINING_BOARD)
BUDGET_SPENT = Words(
    "TidemarkRetrainingBudgetSpent", "warning", "A model is in severe drift and has no launches left this week.",
    "Model {model} is in severe drift, no retraining is under way, and the week's launches (`retrain.max_per_week`) are used up."
    "{qualities} Do: find out why the earlier retrainings did not help before allowing more; a fault of the data or a change "
    "that the model cannot learn is not mended by training.", _RETRAINING_BOARD, waits="10m")
CHALLENGER_WORSE = Words(
    "TidemarkChallengerWorse", "warning", "A retrained model is worse than the one in production and was refused.",
    _LATEST + "was refused.{qualities} The model in production stays, and so does the drift. Do: see what the trainer learned "
    "from (too few new labels, the wrong span); " + _LISTED + ".", _RETRAINING_BOARD)

LAUNCHER_UNREACHABLE = Words(
    "TidemarkLauncherUnreachable", "warning", "A launch cannot get on: what it calls does not answer.",
    "A launch of model {model} by the {launcher} launcher repeats a call that fails, for ten minutes or more: the launcher, the "
    "store of its data or the promotion is not reached. It is tried again every five minutes until a day after the launch's "
    "deadline; no second job comes of it. Do: `tidemark triggers list` tells which call and why; `tidemark doctor` asks the "
    "cluster itself.", _RETRAINING_BOARD, waits="10m")
BREAKER_OPEN = Words(
    "TidemarkBreakerOpen", "warning", "A model is in severe drift, and its retrainings have been stopped.",
    "Model {model} is in severe drift, and as many launches in a row as `retrain.useless_max` allows have failed, timed out, "
    "been no better or been rolled back: nothing more is launched until a person says so or a new version comes. Do: `tidemark "
    "triggers list {model}` tells how each ended; mend the cause, then `tidemark triggers reset {model}`.", _RETRAINING_BOARD)

#: Every alert that the service can send itself, in the order of the page of runbooks.
ALL: tuple[Words, ...] = (
    SEVERE_DRIFT, DRIFT, DATA_FAULT, REFERENCE_INADEQUATE, INSUFFICIENT_DATA, NO_DATA,
    RETRAINING_FAILED, RETRAINING_STUCK, APPROVAL_WAITING, BUDGET_SPENT, CHALLENGER_WORSE, LAUNCHER_UNREACHABLE,
    BREAKER_OPEN)

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds(duration: str) -> int:
    """Seconds of a duration as Prometheus writes it: a whole number and one unit; 0 for none.

    >>> seconds("15m"), seconds("")
    (900, 0)
    """
    return int(duration[:-1]) * _UNITS[duration[-1]] if duration else 0
