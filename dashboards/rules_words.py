"""What an alert says: templates that Prometheus fills with its own series at the moment of the alert.

A person on call has the message and nothing else yet. So a description answers, in this order: which model, which columns
and how far, how sure, since when, what was done about it, what to do. Columns, effects and launches are not labels (each
new value would be a new alert); the template asks Prometheus for them: `{{ with printf ... | query }}`.

Every question is asked with the alert's own labels, in quotes that `printf %q` makes, so that no column's name can break
out of its place; where a question has no answer, the sentence is left out or says so. Cost: up to nine instant queries per
alert that fires and evaluation, nothing for one that does not. Neighbours: `rules_alerts` puts them together.
"""

from __future__ import annotations

from dashboards.rules import AGE, LAUNCH_AGE, OWN
from monitor import metrics
from monitor.metrics import Metric

#: Columns that a description names: enough to act on, few enough to read on a phone.
COLUMNS = 3


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
    return f'{{{{ . | first | value | printf "{form}" }}}}'


def columns(detector: str) -> str:
    """Template: the columns that moved most by one detector, how far, at least how far, and how evident that is.

    Rows that stand for several columns together are named only where no column by itself is past the threshold, and so
    are columns below it: while an alarm is fading, or where only the dependence between columns changed.
    """
    effect = asked(f"max({metrics.EFFECT.name}{{@stream,role=%q,column=%q}})", " by " + number("%.2f") + " reference s.d.",
                   more="$top.Labels.role $top.Labels.column")
    lower = asked(f"max({metrics.EFFECT_LOWER.name}{{@stream,role=%q,column=%q}})", ", surely " + number("%.2f") + " or more",
                  more="$top.Labels.role $top.Labels.column")
    one = ("{{ range $rank, $top := . }}{{ if $rank }}; {{ end }}{{ $top.Labels.column }} ({{ $top.Labels.role }})"
           + effect + lower + ', evidence {{ $top.Value | printf "%.1f" }}{{ end }}')
    score, seen = metrics.SCORE.name, f'@stream,detector="{detector}"'
    single = f'max by (role, column) ({score}{{{seen},role!="joint"}} >= 1)'
    either = f"max by (role, column) ({score}{{{seen}}} > 0)"
    return asked(f"sort_desc(topk({COLUMNS}, {single} or on () {either}))", f" Most: {one} (1 is an alarm).",
                 " No column has a score now.")


def since(place: tuple[str, str, str], metric: Metric = metrics.ALARM_SINCE) -> str:
    """Template: since when the alarm is seen."""
    kind, cause, state = place
    return asked(f'max({metric.name}{{@stream,kind="{kind}",cause="{cause}",state="{state}"}})',
                 " since {{ . | first | value | humanizeTimestamp }}")


def launched() -> str:
    """Template: what was done: the latest launch, how long it is in its state, and what is left of the week's."""
    left = asked(f"max({metrics.RETRAIN_BUDGET.name}{{@model}})", " Launches left this week: " + number("%.0f") + ".")
    return asked(f"max by (state) ({metrics.LAUNCH_STATE.name}{{@model}} == 1)",
                 ' Retraining: the latest launch is {{ . | first | label "state" }}' + launch_age() + ".",
                 " Retraining: nothing was launched.") + left


def launch_state() -> str:
    """Template: the state of the model's latest launch in one word."""
    return asked(f"max by (state) ({metrics.LAUNCH_STATE.name}{{@model}} == 1)", '{{ . | first | label "state" }}', "unknown")


def launch_age() -> str:
    """Template: how long the latest launch is in its state."""
    return asked(f"min({LAUNCH_AGE}{{@model}})", " for {{ . | first | value | humanizeDuration }}")


def qualities() -> str:
    """Template: the challenger's quality against the champion's."""
    champion = asked(f"max({metrics.CHAMPION_QUALITY.name}{{@model}})", ", the champion " + number("%.4g"))
    return asked(f"max by (metric) ({metrics.CHALLENGER_QUALITY.name}{{@model}})",
                 ' By {{ . | first | label "metric" }} the challenger reached ' + number("%.4g") + champion + ".")


def last_judged() -> str:
    """Template: how long ago the model was judged."""
    return asked(f"min({AGE}{{@model}})", "{{ . | first | value | humanizeDuration }}", "an unknown time")


def refused_reason() -> str:
    """Template: the commonest reason of refusals."""
    refused = f'{metrics.EVENTS.name}{{@model,outcome="refused",reason!="tombstone"}}'
    return asked(f"topk(1, sum by (reason) (rate({refused}[5m])) > 0)", ' Mostly: {{ . | first | label "reason" }}.')


def report(place: tuple[str, str, str]) -> str:
    """Path of a drift alarm's report below the service's address."""
    kind, cause, state = place
    asking = f'max({metrics.ALARM_EPISODE.name}{{@stream,kind="{kind}",cause="{cause}",state="{state}"}})'
    return report_path(kind, asked(asking, number("%.0f"), "latest"))


def report_path(word: str, episode: str) -> str:
    """reports/MODEL-VERSION-WORD-EPISODE: the word is the alarm's kind, or its cause where it rests on no column.

    Each cause counts episodes of its own, so the kind alone would name two alarms.
    """
    return f"reports/{{{{ $labels.model }}}}-{{{{ $labels.version }}}}-{word}-{episode}"
