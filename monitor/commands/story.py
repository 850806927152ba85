"""Alarms, launches, verdicts and promotions as marks on a time axis, each with the id by which it is found again.

A pure function of what the running service's API says. An alarm is one region from the window that first showed it to
its clearing, however often it changed in between; a launch is one from its decision to its verdict; a verdict and a
promotion are moments. While something is open its mark has no end. The id is made of what names the thing and of
nothing that changes, so that pushing twice finds the first mark: `alarm:` and 12 hex digits of a digest of model,
version, segment, kind, cause and episode, or `launch:`, `verdict:`, `promotion:` and the launch's own id.

Texts are shown as HTML by Grafana, and names in them come from data: they are escaped here.
Neighbours: `grafana` writes the marks, `dashboards` reads the API.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from monitor.decide.explain import effect_text
from monitor.flow import FINAL_STATES, Alarm, Launch
from monitor.retrain.promotions import ROLLBACK

#: The tag that all marks have, and by which dashboards ask for them.
TAG = "tidemark"
#: Columns that a mark names; the rest are counted.
_COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Mark:
    """One mark: where it begins and ends (milliseconds since 1970; None: still open, or a moment), and what it says."""

    id: str
    start: int
    end: int | None
    tags: tuple[str, ...]
    text: str


def marks(alarms: Sequence[Alarm], launches: Sequence[Launch]) -> list[Mark]:
    """All marks of what the API told, in the order of time; the order of what is given does not matter."""
    episodes: dict[str, list[Alarm]] = {}
    for alarm in alarms:
        episodes.setdefault(alarm_id(alarm), []).append(alarm)
    found = [_of_episode(name, sorted(changes, key=lambda one: one.at)) for name, changes in episodes.items()]
    for launch in launches:
        found += _of_launch(launch)
    return sorted(found, key=lambda mark: (mark.start, mark.id))


def alarm_id(alarm: Alarm) -> str:
    """12 hex digits that an alarm keeps from its raising to its clearing, and shares with no other."""
    named = "\0".join((alarm.model, alarm.version, alarm.segment, alarm.kind, alarm.cause, str(alarm.episode)))
    return hashlib.sha256(named.encode()).hexdigest()[:12]


def _of_episode(name: str, changes: Sequence[Alarm]) -> Mark:
    """One alarm from its changes, oldest first. Those before the API's oldest are not known: then it begins where it can."""
    first, last = changes[0], changes[-1]
    starts = [alarm.since for alarm in changes if alarm.since > 0]
    start = _ms(min(starts) if starts else first.at)
    end = max(_ms(last.at), start) if last.state == "cleared" else None
    severe = any(alarm.state == "severe" for alarm in changes)
    told = next((alarm for alarm in reversed(changes) if alarm.state != "cleared"), last)
    head = f"{'Severe alarm' if severe else 'Alarm'} ({first.kind}) {first.episode} of {first.model} version {first.version}"
    parts = [head if first.segment == "all" else f"{head}, segment {first.segment}", told.words, *_columns(told)]
    if last.state == "cleared":
        parts.append(f"cleared: {last.reason or 'quiet'}")
    return Mark(f"alarm:{name}", start, end, _tags("alarm", first.model, f"alarm:{name}", *(["severe"] if severe else [])),
                _text(parts))


def _columns(alarm: Alarm) -> Iterator[str]:
    for mover in alarm.movers[:_COLUMNS]:
        text = effect_text(mover.what, mover.effect, mover.lower, mover.upper, mover.unit)
        yield f"{mover.role} {mover.column}: {text}" + (f" ({mover.words})" if mover.words else "")
    if len(alarm.movers) > _COLUMNS:
        yield f"and {len(alarm.movers) - _COLUMNS} more"


def _of_launch(launch: Launch) -> Iterator[Mark]:
    """The launch as a region, and its verdict and its promotion as moments, where it has come to them."""
    times: dict[str, float] = {}
    for state, at in launch.steps:
        times.setdefault(state, at)
    if not times:
        return
    if launch.launcher == ROLLBACK:                 # it trained nothing: the moment is all that there is to see
        if "promoted" in times:
            yield Mark(f"promotion:{launch.id}", _ms(times["promoted"]), None,
                       _tags("promotion", launch.model, f"promotion:{launch.id}"),
                       _text([f"Roll-back of {launch.model}: version {launch.new_version} takes the place of {launch.version}",
                              launch.detail]))
        return
    start = _ms(min(times.values()))
    ends = [at for state, at in times.items() if state == "judged" or state in FINAL_STATES]
    who = f"{launch.model} version {launch.version}, alarm {launch.episode}"
    yield Mark(f"launch:{launch.id}", start, max(_ms(min(ends)), start) if ends else None,
               _tags("launch", launch.model, f"launch:{launch.id}"),
               _text([f"Retraining {launch.id} of {who}", f"by {launch.launcher}: {launch.state.replace('_', ' ')}",
                      launch.detail]))
    if "judged" in times:
        yield Mark(f"verdict:{launch.id}", _ms(times["judged"]), None, _tags("verdict", launch.model, f"verdict:{launch.id}"),
                   _text([f"Verdict on {launch.id} of {who}: {launch.verdict or 'none'}", _comparison(launch)]))
    if "promoted" in times:
        yield Mark(f"promotion:{launch.id}", _ms(times["promoted"]), None,
                   _tags("promotion", launch.model, f"promotion:{launch.id}"),
                   _text([f"Promotion of {launch.model}: version {launch.new_version or 'new'} takes the place of "
                          f"{launch.version}", _comparison(launch)]))


def _comparison(launch: Launch) -> str:
    if launch.champion is None or launch.challenger is None:
        return ""
    text = f"champion {launch.champion:.4g}, challenger {launch.challenger:.4g}"
    if None in (launch.difference, launch.difference_lower, launch.difference_upper):
        return text
    return f"{text}, difference {launch.difference:+.4g} [{launch.difference_lower:+.4g}, {launch.difference_upper:+.4g}]"


def _tags(kind: str, model: str, *more: str) -> tuple[str, ...]:
    return (TAG, kind, f"model:{model}", *more)


def _text(parts: Iterable[str]) -> str:
    return "<br>".join(html.escape(part) for part in parts if part)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
