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

from monitor import alert_words, metrics
from monitor.alert_limits import STALE_SECONDS, Limits
from monitor.alert_words import Words
from monitor.config import Config
from monitor.metrics import Metric

#: Labels that a Prometheus adds and that tell one service from another; `instance` and `pod` change with every restart.
PLACE = ("cluster", "namespace", "job")
STREAM = ("model", "version", "segment")
#: Variables of a template: what the alert's own labels are called in it, as matchers.
OWN: Mapping[str, tuple[str, ...]] = {"place": PLACE, "model": (*PLACE, "model"), "stream": (*PLACE, *STREAM)}


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

    job: str = alert_words.JOB
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

    words       : what it is called and says, with Prometheus' templates in the places (`rules_words.worded`)
    keeps       : its `keep_firing_for`        labels : beside the severity
    """

    words: Words
    expression: str
    keeps: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Also that of its runbook, docs/runbooks/NAME.md."""
        return self.words.name

    @property
    def severity(self) -> str:
        """`critical` wakes, `warning` waits for the morning, `info` is only looked up."""
        return self.words.severity

    def rule(self, settings: Settings) -> dict[str, object]:
        """As a rule file has it, with all links."""
        words = self.words
        timing = {name: text for name, text in (("for", words.waits), ("keep_firing_for", self.keeps)) if text}
        links = words.links(settings.service_url, settings.grafana_url, settings.runbooks_url)
        return {
            "alert": self.name, "expr": self.expression, **timing,
            "labels": {"severity": self.severity, **self.labels, **settings.labels},
            "annotations": {name: _defined(template) for name, template in
                            (("summary", words.summary), ("description", words.description), *links.items())},
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
