"""Recording and alert rules for Prometheus, rendered from the catalogue and, where one is given, from a configuration.

Idea: the service decides and shows its decisions; a rule only says which of them somebody must hear of. So the alerts on
alarms have no threshold and no patience of their own (`tidemark_alarm_open` has both behind it), and those on the service
itself have the few limits that stand in `rules_alerts`. What depends on a monitor (how long a silence is too long, when a
training is overdue) becomes a recorded series per model, so that one alert serves every model and a model without a
configuration here has the default.

Invariants. A metric is named by its catalogue entry, so a typing error is a Python error. Alerts are aggregated to labels
that a restart does not change: the same trouble is the same alert before and after. An alarm that was judged too long ago
is not news: every alert on what was judged is joined with the age of the judgement, and what is stale is told by
TidemarkNoData instead. Links to runbook, dashboard and report are added here, never by hand.

Neighbours: `rules_alerts` has the alerts, `rules_words` what they say, `rules_files` the files that come of it,
docs/runbooks a page for each alert.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monitor import metrics
from monitor.config import Config, Monitor
from monitor.metrics import Metric

#: Labels that a Prometheus adds and that tell one service from another; `instance` and `pod` change with every restart.
PLACE = ("cluster", "namespace", "job")
STREAM = ("model", "version", "segment")
#: Variables of a template: what the alert's own labels are called in it, as matchers.
OWN: Mapping[str, tuple[str, ...]] = {"place": PLACE, "model": (*PLACE, "model"), "stream": (*PLACE, *STREAM)}
#: A stream that was not judged for so long tells nothing of now; in panes where a configuration says how long they are.
STALE_SECONDS, STALE_PANES = 900, 3
#: The launcher ends a training at its deadline; what is not over an hour later hangs.
DEADLINE_HOURS, OVERDUE_HOURS = 6.0, 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the alerts of one model depend on.

    stale_seconds    : without a judgement for so long, nothing that was judged is news
    overdue_seconds  : a launch that is so long in one state of its training hangs
    """

    model: str
    stale_seconds: int = STALE_SECONDS
    overdue_seconds: int = int((DEADLINE_HOURS + OVERDUE_HOURS) * 3600)

    @classmethod
    def of(cls, monitor: Monitor) -> Limits:
        """Those of a configured monitor."""
        pane = monitor.pane
        stale = max(STALE_SECONDS, STALE_PANES * pane.seconds + pane.lateness_seconds)
        hours = monitor.retrain.launcher.deadline_hours if monitor.retrain is not None else DEADLINE_HOURS
        return cls(monitor.model, stale, int((hours + OVERDUE_HOURS) * 3600))


@dataclass(frozen=True, slots=True)
class Settings:
    """What the rules of one installation depend on.

    job            : the `job` label that Prometheus scrapes the service under
    *_url          : where people reach the service, Grafana and the runbooks; without a slash at the end
    keep_firing    : how long an alert on an alarm outlives a gap in the scrapes, as Prometheus writes durations
    observed       : whether further detectors, which decide nothing, may alert (severity info)
    retrain_label  : whether TidemarkSevereDrift carries the label that routes it back to tidemark as a trigger
    labels         : added to every alert, for the routing of an installation
    limits         : per configured model; other models have the defaults
    """

    job: str = "tidemark"
    service_url: str = "https://tidemark.example"
    grafana_url: str = "https://grafana.example"
    runbooks_url: str = "https://tidemark.example/docs/runbooks"
    keep_firing: str = "15m"
    observed: bool = False
    retrain_label: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    limits: tuple[Limits, ...] = ()

    @classmethod
    def of(cls, config: Config, **said: Any) -> Settings:
        """Those of a configuration; `said` are further fields."""
        return cls(limits=tuple(map(Limits.of, config.monitors)), **said)


@dataclass(frozen=True, slots=True)
class Recording:
    """A series that Prometheus computes: `level:metric:operation`."""

    name: str
    expression: str

    def rule(self) -> dict[str, object]:
        """As a rule file has it."""
        return {"record": self.name, "expr": self.expression}


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that somebody must hear of.

    name        : also that of its runbook, docs/runbooks/NAME.md        severity : critical wakes, warning waits for
    the morning, info is only looked up        waits : Prometheus' `for`       keeps : its `keep_firing_for`
    summary     : one fixed sentence        description : all that is known, a template
    dashboard   : path below Grafana's address       report : path below the service's; "" where there is no report
    """

    name: str
    expression: str
    severity: str
    summary: str
    description: str
    dashboard: str
    waits: str = ""
    keeps: str = ""
    report: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def rule(self, settings: Settings) -> dict[str, object]:
        """As a rule file has it, with all links."""
        timing = {name: text for name, text in (("for", self.waits), ("keep_firing_for", self.keeps)) if text}
        links = {"runbook_url": f"{settings.runbooks_url}/{self.name}.md",
                 "dashboard_url": f"{settings.grafana_url}/d/{self.dashboard}"}
        if self.report:
            links["report_url"] = f"{settings.service_url}/{self.report}"
        return {
            "alert": self.name, "expr": self.expression, **timing,
            "labels": {"severity": self.severity, **self.labels, **settings.labels},
            "annotations": {name: _defined(template) for name, template in
                            (("summary", self.summary), ("description", self.description), *links.items())},
        }


def _defined(template: str) -> str:
    """A template with the variables that it uses: the matchers of the alert's own place, model or stream."""
    return "".join(f"{{{{ ${name} := printf `{','.join(f'{label}=%q' for label in labels)}` "
                   f"{' '.join(f'$labels.{label}' for label in labels)} }}}}"
                   for name, labels in OWN.items() if f"${name} " in template) + template


# ---- expressions ------------------------------------------------------------------------------------------------------

def by(*labels: str) -> str:
    """`by (cluster, namespace, job, ...)`: what an aggregation keeps."""
    return f"by ({', '.join((*PLACE, *labels))})"


def on(*labels: str) -> str:
    """`on (cluster, namespace, job, ...)`: what two sides of an operator must have in common."""
    return f"on ({', '.join((*PLACE, *labels))})"


def series(metric: Metric, *matchers: str) -> str:
    """A metric's selector; the labels that are matched must be its own.

    >>> series(metrics.STATE, 'state="drift"')
    'tidemark_state{state="drift"}'
    """
    for matcher in matchers:
        label = re.split(r"=~|!~|!=|=", matcher)[0]
        if label not in metric.labels:
            raise ValueError(f"{metric.name}: expected one of the labels {', '.join(metric.labels)}, got {label!r}; mend it")
    return f"{metric.name}{{{','.join(matchers)}}}" if matchers else metric.name


AGE = "model:tidemark_evaluation_age_seconds:min"
STALE = "model:tidemark_stale_seconds:limit"
FRESH = "model:tidemark_evaluation_fresh:bool"
OVERDUE = "model:tidemark_launch_overdue_seconds:limit"
LAUNCH_AGE = "model_launcher:tidemark_launch_state_age_seconds:min"
LAG = "topic:tidemark_lag_events:sum"
EVENTS = "model:tidemark_events:rate5m"
REFUSED = "model:tidemark_events_refused_per_events:ratio_rate5m"
LATE = "model:tidemark_events_late_per_events:ratio_rate5m"
SCORE = "model_version_segment:tidemark_score:max"

#: An alert on what was judged is joined with this: what was judged too long ago is no news.
IS_FRESH = f"{on('model')} ({FRESH} == 1)"


def recordings(settings: Settings) -> tuple[Recording, ...]:
    """Series that several alerts and panels share, in the order in which they build on one another."""
    model = by("model")
    events = series(metrics.EVENTS, 'reason!="tombstone"')
    refused = series(metrics.EVENTS, 'outcome="refused"', 'reason!="tombstone"')
    deciding = series(metrics.SCORE, 'detector=~"scan|scan_severe"')
    # A model that was not judged since the service started is as old as the process.
    started = f"max {by()} (process_start_time_seconds)"
    age = (f"time() - (\n    max {model} ({metrics.LAST_EVALUATION.name})\n  or\n"
           f"    0 * max {model} ({metrics.EVENTS.name}) + {on()} group_left () {started}\n)")
    return (
        Recording(AGE, age),
        *_limited(STALE, metrics.EVENTS, settings.limits, STALE_SECONDS, "stale_seconds"),
        Recording(FRESH, f"{AGE} <= bool {STALE}"),
        Recording(LAUNCH_AGE, f"time() - max {by('model', 'launcher')} ({metrics.LAUNCH_STATE_AT.name})"),
        *_limited(OVERDUE, metrics.LAUNCH_STATE_AT, settings.limits, Limits("").overdue_seconds, "overdue_seconds"),
        Recording(LAG, f"sum {by('topic')} ({metrics.LAG.name})"),
        Recording(EVENTS, f"sum {model} (rate({events}[5m]))"),
        Recording(REFUSED, f"sum {model} (rate({refused}[5m])) / ({EVENTS} > 0)"),
        Recording(LATE, f"sum {model} (rate({metrics.LATE_EVENTS.name}[5m])) / ({EVENTS} > 0)"),
        Recording(SCORE, f"max {by(*STREAM, 'detector')} ({deciding})"),
    )


def _limited(name: str, shown: Metric, limits: Sequence[Limits], default: int, limit: str) -> list[Recording]:
    """A limit as a series of every model that shows a metric: as configured, else the default."""
    known = [one for one in limits if getattr(one, limit) != default]
    others = [f"model!~{quoted('|'.join(re.escape(one.model) for one in known))}"] if known else []
    return [*(Recording(name, f"0 * max {by('model')} ({series(shown, 'model=' + quoted(one.model))}) + {getattr(one, limit)}")
              for one in known),
            Recording(name, f"0 * max {by('model')} ({series(shown, *others)}) + {default}")]


def quoted(text: str) -> str:
    r"""A PromQL string.

    >>> print(quoted(r"a\.b"))
    "a\\.b"
    """
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
