"""What an alert says, as templates that Prometheus fills with its own series at the moment of the alert.

The sentences stand in `monitor.alert_words`, for this way and for the alerts that the service sends itself; here their
places are filled with questions. Columns, effects and launches are not labels (each new value would be a new alert);
the template asks Prometheus for them: `{{ with printf ... | query }}`.

Every question is asked with the alert's own labels, in quotes that `printf %q` makes, so that no column's name can break
out of its place; where a question has no answer, the sentence is left out or says so. Cost: up to nine instant queries per
alert that fires and evaluation, nothing for one that does not. Neighbours: `rules_alerts` puts them together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dashboards.rules import AGE, LAUNCH_AGE, OWN
from monitor import alert_words, metrics
from monitor.alert_words import Words
from monitor.metrics import Metric

_TIME = "{{ . | first | value | humanizeTimestamp }}"
_DURATION = "{{ . | first | value | humanizeDuration }}"


class Number:
    """A number's place in a phrase: Prometheus prints it in the format that the phrase asks for."""

    def __init__(self, of: str = ". | first | value") -> None:
        self._of = of

    def __format__(self, form: str) -> str:
        return f'{{{{ {self._of} | printf "%{form}" }}}}'


def worded(words: Words, **facts: str) -> Words:
    """The words with a template in every place: labels of the alert, and what `facts` and `FACTS` ask for."""
    own = {label: f"{{{{ $labels.{label} }}}}" for label in ("model", "version", "segment", "launcher")} | {**FACTS, **facts}
    return replace(words, description=words.description.format_map(own), dashboard=words.dashboard.format_map(own),
                   report=words.report.format_map(own))


def asked(expression: str, then: str, otherwise: str = "", *, more: str = "") -> str:
    """Template: `then` with the answer as `.`, `otherwise` where there is none.

    expression : PromQL in which `@stream`, `@model` or `@place` stands for the matchers of the alert's own labels, and
                 `%q` for each of `more`, further arguments of printf
    """
    own = next(name for name in OWN if f"@{name}" in expression)
    rest = f"{{{{ else }}}}{otherwise}" if otherwise else ""
    return (f"{{{{ with printf `{expression.replace(f'@{own}', '%[1]s')}` ${own} {more + ' ' if more else ''}| query }}}}"
            f"{then}{rest}{{{{ end }}}}")


def number(form: str) -> str:
    """Template: the first answer's number, as printf writes it."""
    return format(Number(), form)


def columns(detector: str) -> str:
    """Template: the columns that moved most by one detector, how far, at least how far, and how evident that is.

    Rows that stand for several columns together are named only where no column by itself is past the threshold, and so
    are columns below it: while an alarm is fading, or where only the dependence between columns changed.
    """
    effect = asked(f"max({metrics.EFFECT.name}{{@stream,role=%q,column=%q}})", alert_words.EFFECT.format(effect=Number()),
                   more="$top.Labels.role $top.Labels.column")
    lower = asked(f"max({metrics.EFFECT_LOWER.name}{{@stream,role=%q,column=%q}})", alert_words.LOWER.format(lower=Number()),
                  more="$top.Labels.role $top.Labels.column")
    column = alert_words.COLUMN.format(column="{{ $top.Labels.column }}", role="{{ $top.Labels.role }}", effect=effect,
                                       lower=lower, evidence=Number("$top.Value"))
    several = f"{{{{ range $rank, $top := . }}}}{{{{ if $rank }}}}{alert_words.BETWEEN_COLUMNS}{{{{ end }}}}{column}{{{{ end }}}}"
    score, seen = metrics.SCORE.name, f'@stream,detector="{detector}"'
    single = f'max by (role, column) ({score}{{{seen},role!="joint"}} >= 1)'
    either = f"max by (role, column) ({score}{{{seen}}} > 0)"
    return asked(f"sort_desc(topk({alert_words.COLUMNS}, {single} or on () {either}))",
                 alert_words.MOST.format(columns=several), alert_words.NO_COLUMN)


def since(place: tuple[str, str, str], metric: Metric = metrics.ALARM_SINCE) -> str:
    """Template: since when the alarm is seen."""
    kind, cause, state = place
    return asked(f'max({metric.name}{{@stream,kind="{kind}",cause="{cause}",state="{state}"}})',
                 alert_words.SINCE.format(time=_TIME))


def fault_since() -> str:
    """Template: since when a fault is seen; the alert has its cause as a label, which the question needs besides."""
    return asked(f'max({metrics.ALARM_SINCE.name}{{@stream,kind="quality",cause=%q}})', alert_words.SINCE.format(time=_TIME),
                 more="$labels.cause")


def fault(detector: str) -> str:
    """Template: what the fault is, by its cause."""
    words = {cause: text.format_map(FACTS) for cause, text in alert_words.FAULTS.items()}
    chosen = " else ".join(f'if eq $labels.cause "{cause}" }}}}{text}{{{{' for cause, text in words.items())
    return f"{{{{ {chosen} else }}}}{columns(detector)}{{{{ end }}}}"


def launched() -> str:
    """Template: what was done: the latest launch, how long it is in its state, and what is left of the week's."""
    left = asked(f"max({metrics.RETRAIN_BUDGET.name}{{@model}})", alert_words.LAUNCHES_LEFT.format(left=Number()))
    latest = alert_words.LAUNCHED.format(state='{{ . | first | label "state" }}', launch_age=launch_age())
    return asked(f"max by (state) ({metrics.LAUNCH_STATE.name}{{@model}} == 1)", latest, alert_words.NOT_LAUNCHED) + left


def launch_state() -> str:
    """Template: the state of the model's latest launch in one word."""
    return asked(f"max by (state) ({metrics.LAUNCH_STATE.name}{{@model}} == 1)", '{{ . | first | label "state" }}',
                 alert_words.UNKNOWN_STATE)


def launch_age() -> str:
    """Template: how long the latest launch is in its state."""
    return asked(f"min({LAUNCH_AGE}{{@model}})", alert_words.LAUNCH_AGE.format(duration=_DURATION))


def qualities() -> str:
    """Template: the challenger's quality against the champion's."""
    champion = asked(f"max({metrics.CHAMPION_QUALITY.name}{{@model}})", alert_words.CHAMPION.format(champion=Number()))
    return asked(f"max by (metric) ({metrics.CHALLENGER_QUALITY.name}{{@model}})", alert_words.QUALITIES.format(
        metric='{{ . | first | label "metric" }}', challenger=Number(), champion=champion))


def last_judged() -> str:
    """Template: how long ago the model was judged."""
    return asked(f"min({AGE}{{@model}})", _DURATION, alert_words.UNKNOWN_AGE)


def refused_reason() -> str:
    """Template: the commonest reason of refusals."""
    refused = f'{metrics.EVENTS.name}{{@model,outcome="refused",reason!="tombstone"}}'
    return asked(f"topk(1, sum by (reason) (rate({refused}[5m])) > 0)",
                 alert_words.REFUSED_REASON.format(reason='{{ . | first | label "reason" }}'))


def episode(place: tuple[str, str, str]) -> str:
    """Template: the number of a drift alarm's episode."""
    kind, cause, state = place
    return asked(f'max({metrics.ALARM_EPISODE.name}{{@stream,kind="{kind}",cause="{cause}",state="{state}"}})',
                 number(".0f"), alert_words.UNKNOWN_EPISODE)


def fault_episode() -> str:
    """Template: the number of a fault's episode; each cause counts its own."""
    return asked(f'max({metrics.ALARM_EPISODE.name}{{@stream,kind="quality",cause=%q}})', number(".0f"),
                 alert_words.UNKNOWN_EPISODE, more="$labels.cause")


#: Places that mean the same in every alert.
FACTS: Mapping[str, str] = {
    "launched": launched(), "state": launch_state(), "launch_age": launch_age(), "qualities": qualities(),
    "judged_age": last_judged(), "refused_reason": refused_reason(),
}
