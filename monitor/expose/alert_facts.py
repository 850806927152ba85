"""What an alert says, filled with what the service knows: the same sentences that Prometheus' rules fill with series.

Each phrase of `monitor.alert_words` has its function here, and in `dashboards.rules_words` its template; both give the
same words, and numbers, times and durations are written as Prometheus writes them. A phrase whose fact is not known is
left out, as a template's is. One thing is said better here: a column that the series limit folds into one is named.

Pure functions of frozen values; nothing is asked of anybody. Neighbours: `alert_desk` decides which alerts there are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from monitor import alert_words
from monitor.alert_words import Words
from monitor.expose.judged import Judged, Values
from monitor.expose.snapshot import MonitorStatus, OpenAlarm
from monitor.flow import Launch

_JOINT = "joint"


@dataclass(frozen=True, slots=True)
class Links:
    """Addresses without a slash at the end; "" where one is not known, and then its link is left out."""

    service_url: str = ""
    grafana_url: str = ""
    runbooks_url: str = ""


def annotated(words: Words, labels: Mapping[str, str], facts: Mapping[str, str], links: Links) -> dict[str, str]:
    """Summary, description and links of one alert; every place of the words is a label or a fact."""
    places = {**labels, **facts}
    worded = replace(words, dashboard=words.dashboard.format_map(places), report=words.report.format_map(places))
    return {"summary": words.summary, "description": words.description.format_map(places),
            **worded.links(links.service_url, links.grafana_url, links.runbooks_url)}


def since(alarm: OpenAlarm) -> str:
    """Since when the alarm is seen."""
    return alert_words.SINCE.format(time=timestamp(alarm.since))


def columns(judged: Judged | None, scores: Values | None) -> str:
    """The columns that moved most by these scores: those past the threshold, else what there is, joint rows too."""
    if judged is None or scores is None:
        return alert_words.NO_COLUMN
    roles = np.array(judged.frame.roles)
    with np.errstate(invalid="ignore"):
        chosen = (scores >= 1) & (roles != _JOINT)
        if not chosen.any():
            chosen = scores > 0
    rows = sorted(np.flatnonzero(chosen).tolist(), key=lambda row: -scores[row])[:alert_words.COLUMNS]
    if not rows:
        return alert_words.NO_COLUMN
    return alert_words.MOST.format(columns=alert_words.BETWEEN_COLUMNS.join(
        alert_words.COLUMN.format(
            column=judged.frame.columns[row], role=judged.frame.roles[row],
            effect=alert_words.EFFECT.format(effect=judged.effect[row]),
            lower=alert_words.LOWER.format(lower=judged.effect_lower[row]), evidence=scores[row]) for row in rows))


def fault(cause: str, judged: Judged | None, refused: str) -> str:
    """What a fault of the data is; `refused` is the commonest reason of refusals, "" where there is none."""
    words = alert_words.FAULTS.get(cause)
    if words is None:
        return columns(judged, None if judged is None else judged.score)
    return words.format(refused_reason=alert_words.REFUSED_REASON.format(reason=refused) if refused else "")


def launched(launches: Sequence[Launch], budget: int | None, now: float) -> str:
    """What was done: the latest launch, how long it is in its state, and what is left of the week's."""
    left = "" if budget is None else alert_words.LAUNCHES_LEFT.format(left=budget)
    if not launches:
        return alert_words.NOT_LAUNCHED + left
    return alert_words.LAUNCHED.format(state=launches[-1].state, launch_age=launch_age(launches[-1], now)) + left


def launch_age(launch: Launch, now: float) -> str:
    """How long a launch is in its state."""
    return alert_words.LAUNCH_AGE.format(duration=duration(now - launch.steps[-1][1]))


def judged_launch(launches: Sequence[Launch]) -> Launch | None:
    """The latest launch whose challenger was compared with the champion."""
    return next((launch for launch in reversed(launches)
                 if launch.champion is not None and launch.challenger is not None), None)


def qualities(launches: Sequence[Launch], status: MonitorStatus) -> str:
    """The challenger's quality against the champion's."""
    launch = judged_launch(launches)
    if launch is None:
        return ""
    return alert_words.QUALITIES.format(metric=status.metric, challenger=launch.challenger,
                                        champion=alert_words.CHAMPION.format(champion=launch.champion))


def timestamp(seconds: float) -> str:
    """A time as Prometheus' `humanizeTimestamp` writes it: to the millisecond, without zeros at the end.

    >>> timestamp(0.5)
    '1970-01-01 00:00:00.5 +0000 UTC'
    """
    whole, milliseconds = divmod(int(seconds * 1e9) // 1_000_000, 1_000)
    fraction = f".{milliseconds:03}".rstrip("0").rstrip(".")
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(whole))}{fraction} +0000 UTC"


def duration(seconds: float) -> str:
    """A duration as Prometheus' `humanizeDuration` writes it.

    >>> duration(90_061), duration(61), duration(2.5), duration(0.25)
    ('1d 1h 1m 1s', '1m 1s', '2.5s', '250ms')
    """
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    if seconds >= 60:
        parts = [int(seconds) // 86_400, int(seconds) // 3_600 % 24, int(seconds) // 60 % 60, int(seconds) % 60]
        words = [f"{part}{unit}" for part, unit in zip(parts, "dhms", strict=True)]
        return sign + " ".join(words[next(place for place, part in enumerate(parts) if part):])
    if seconds >= 1 or seconds == 0:
        return f"{sign}{seconds:.4g}s"
    prefix = ""
    for unit in "munpfazy":
        if seconds >= 1:
            break
        prefix, seconds = unit, seconds * 1_000
    return f"{sign}{seconds:.4g}{prefix}s"
