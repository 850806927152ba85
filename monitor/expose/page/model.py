"""One model, from its state to the bins of one column, as the person on call asks.

Is it drifting, since when, and why does it say so; which columns, how far, how sure; how do reference and window of one
column look; is it the data rather than the world; what was done about it? The order, numbers, units and colours are
those of the dashboard `tidemark-model`; the sentences of each column are those of `tidemark explain`.

Sizes are bounded: COLUMNS_A_PAGE columns, STRIPS over time, STORIES of alarms and of launches. Cost: 20 to 60 ms at
2,000 columns, most of it the sentences. Neighbours: `columns` (tables and drawings of columns), `story`, `frame`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monitor.expose.history import JudgedPane
from monitor.expose.judged import Judged
from monitor.expose.page import columns
from monitor.expose.page.draw import Span, key, score_chart, state_strip
from monitor.expose.page.frame import Asked, page, tile
from monitor.expose.page.html import Markup, element
from monitor.expose.page.story import chip, episode_story, episodes, launch_story, marks
from monitor.expose.page.style import HUES
from monitor.expose.page.words import NONE, count, counted, decimals, instant, lasting, share
from monitor.expose.snapshot import MonitorStatus, Published
from monitor.flow import Launch, Reading
from monitor.metrics import STATES

#: Alarms, and launches, that are told; what is older is counted.
STORIES = 12
#: Readings of further detectors in the table.
READINGS = 60
_STATES = list(STATES)


def model(published: Published, asked: Asked, name: str) -> bytes | None:
    """The page of one model; None where the configuration has none of that name."""
    status = next((one for one in published.service.monitors if one.model == name), None)
    if status is None:
        return None
    streams = sorted((one for one, _ in published.judged if one.key[0] == name),
                     key=lambda one: -_STATES.index(one.evaluation.state))
    chosen = next((one for one in streams if (one.key[1], one.key[2]) == (asked.version, asked.segment)), None)
    judged = chosen or (streams[0] if streams else None)
    state = judged.evaluation.state if judged else "learning"
    launches = [launch for launch in published.service.launches if launch.model == name]
    panes = published.history.get((name, judged.key[2]), ()) if judged else _any_history(published, name)
    return page(
        f"{name}: {state.replace('_', ' ')} · tidemark", asked, published,
        element("h1", name),
        _state(status, judged, state, published), _choice(streams, judged, asked), _why(published, judged, name),
        _tiles(status, judged, launches), _over_time(panes, published, name), _alarms(published, asked, name, judged),
        columns.movers(published, asked, judged) if judged else None,
        columns.one_column(asked, judged, columns.chosen(judged, asked.column)) if judged else None,
        element("div", columns.joint(judged) if judged else None, _data(status, judged, published), class_="two"),
        _launches(launches, status),
        _readings(published.observed.get(judged.key, ())) if judged else None)


def _any_history(published: Published, name: str) -> tuple[JudgedPane, ...]:
    """What was judged before a cut-over, while nothing is judged by the new reference yet."""
    return next((panes for (model, _), panes in published.history.items() if model == name), ())


def _state(status: MonitorStatus, judged: Judged | None, state: str, published: Published) -> Markup:
    words: list[Markup | str] = [chip(state.replace("_", " "), HUES[state])]
    opened = [(place, alarm) for place, alarm in published.service.open_alarms.items()
              if place[:2] == (status.model, status.version)]
    if any(place[3] == "quality" for place, _ in opened):
        words.append(chip("fault of the data", "orange"))
    words.append(element("span", f"version {status.version}", class_="sub"))
    if judged is not None:
        end = judged.evaluation.window.end
        since = min((alarm.since for place, alarm in opened), default=None)
        if since is not None:
            words.append(element("span", "since ", instant(since), f", for {lasting(end - since)}", class_="sub"))
        words.append(element("span", "judged up to ", instant(end), class_="sub"))
    return element("div", words, class_="row")


def _choice(streams: Sequence[Judged], judged: Judged | None, asked: Asked) -> Markup | None:
    """Links to the other versions and segments, where there are any."""
    if len(streams) < 2:
        return None
    return element("nav", element("ul", [element("li", element(
        "a", f"{one.key[1]} {one.key[2]}", href=asked.link(version=one.key[1], segment=one.key[2], page=1),
        aria_current="true" if one is judged else None)) for one in streams[:50]], class_="choice"), aria_label="Segments")


def _why(published: Published, judged: Judged | None, name: str) -> Markup:
    why = published.why.get(judged.key) if judged is not None else None
    sentences: Sequence[str] = why.headline if why is not None else [
        f"No pane of {name} was judged since the service began to watch this reference: what follows is what is stored.",
        f"`tidemark explain {name}` says what the stored panes say."]
    return element("div", [element("p", sentence, class_="lead" if place == 0 else "sub")
                           for place, sentence in enumerate(sentences)], id="why")


def _tiles(status: MonitorStatus, judged: Judged | None, launches: Sequence[Launch]) -> Markup:
    tiles = []
    if judged is not None:
        highest, severe, effect = (float(np.fmax.reduce(values, initial=np.nan))
                                   for values in (judged.score, judged.severe, judged.effect))
        tiles = [
            tile("highest score; 1 is an alarm", decimals(highest), hue="orange" if highest >= 1 else ""),
            tile("highest severe score; 1 is worth a retraining", decimals(severe), hue="red" if severe >= 1 else ""),
            tile("largest effect, reference s.d.", decimals(effect)),
            tile("events in the window", count(judged.window_events))]
    tiles.append(tile("events counted", count(status.events.get(("counted", "none"), 0))))
    if status.budget_remaining is not None:
        tiles.append(tile("retrainings left this week", str(status.budget_remaining),
                          hue="" if status.budget_remaining else "orange"))
    if launches:
        tiles.append(tile("latest launch", launches[-1].state.replace("_", " ")))
    return element("ul", tiles, class_="tiles")


def _over_time(panes: Sequence[JudgedPane], published: Published, name: str) -> Markup:
    head = element("h2", "Score over time")
    if not panes:
        return element("section", head, element("p", "No pane was judged since the service was started.", class_="sub"))
    span = Span.of(panes)
    alarms = [alarm for alarm in published.service.alarms if alarm.model == name]
    launches = [launch for launch in published.service.launches if launch.model == name]
    found = marks(alarms, launches, span.start)
    entries = [("line score", "highest score"), ("line severe", "highest severe score"),
               ("line limit", "1 is an alarm, or worth a retraining")]
    entries += [(kind, words) for kind, words, hue, above in (
        ("dot orange", "alarm raised", "orange", True), ("dot red", "severe", "red", True),
        ("dot green", "cleared", "green", True), ("dot purple", "retraining decided", "purple", False),
        ("dot blue", "new reference", "blue", False)) if any((mark.hue, mark.above) == (hue, above) for mark in found)]
    length = lasting(span.end - span.start)
    return element(
        "section", head, element("p", f"{counted(len(panes), 'pane')} in {length} of event time, on a square-root scale; "
                                 "below it the state of each.", class_="sub"),
        score_chart(panes, found, name), state_strip(panes, f"State of {name} over time"), key(entries),
        key([(f"area {HUES[state]}", state.replace("_", " ")) for state in STATES
             if any(pane.state == _STATES.index(state) for pane in panes)]),
        columns.over_time(panes), id="time")


def _data(status: MonitorStatus, judged: Judged | None, published: Published) -> Markup:
    """What came in and what is wrong with it: refused, late, lost, and the columns that are missing or unseen most."""
    events = status.events
    everything = max(sum(events.values()), 1)
    refused = {reason: number for (outcome, reason), number in events.items() if outcome == "refused" and number}
    parts = [("Counted", count(events.get(("counted", "none"), 0)))]
    parts.append(("Refused", f"{count(sum(refused.values()))} ({share(sum(refused.values()) / everything)})" if refused else "0"))
    parts += [(f"as {reason.replace('_', ' ')}", f"{count(number)} ({share(number / everything)})")
              for reason, number in sorted(refused.items(), key=lambda one: -one[1])]
    parts += [("Late", count(status.late)), ("Lost to retention", count(events.get(("lost", "retention"), 0)))]
    lag = sum(published.service.lag.values())
    parts += [("Not yet read", f"{count(lag)}, of all topics"), ("Seen up to", instant(status.watermark))]
    if status.digest:
        parts.append(("Reference", f"version {status.version}, digest {status.digest[:12]}"))
    gaps = columns.gaps(judged) if judged is not None else None
    return element(
        "section", element("h2", "The data themselves"),
        element("p", "Faults of the data have alarms of their own and never start a retraining.", class_="sub"),
        element("dl", [(element("dt", name), element("dd", value)) for name, value in parts]), gaps, id="data")


def _alarms(published: Published, asked: Asked, name: str, judged: Judged | None) -> Markup:
    told = episodes(alarm for alarm in published.service.alarms if alarm.model == name)
    told.sort(key=lambda episode: not episode.is_open)          # stable: what is open first, then what changed last
    now = judged.evaluation.window.end if judged is not None else None
    older = len(told) - STORIES
    return element(
        "section", element("h2", "Alarms"),
        [episode_story(episode, published.service, now, reports=asked.reports) for episode in told[:STORIES]]
        if told else element("p", "None.", class_="sub"),
        element("p", f"and {older:,} more", class_="sub") if older > 0 else None, id="alarms")


def _launches(launches: Sequence[Launch], status: MonitorStatus) -> Markup | None:
    if not launches and not status.launcher:
        return None
    left = NONE if status.budget_remaining is None else str(status.budget_remaining)
    older = len(launches) - STORIES + sum(status.ended.values())
    return element(
        "section", element("h2", "Retrainings and verdicts"),
        element("p", f"{left} left in the running week. Times of steps are those of the clock on the wall.", class_="sub"),
        [launch_story(launch, status.metric) for launch in reversed(launches[-STORIES:])]
        if launches else element("p", "None yet.", class_="sub"),
        element("p", f"and {older:,} more", class_="sub") if older > 0 else None, id="launches")


def _readings(readings: Sequence[Reading]) -> Markup | None:
    """What further detectors say, which decides nothing."""
    if not readings:
        return None
    ordered = sorted(readings, key=lambda one: (not one.drift, one.detector, -np.nan_to_num(one.score, nan=-1.0)))
    rows = [element(
        "tr", element("th", one.detector, scope="row", class_="name"), element("td", one.column, class_="name"),
        element("td", decimals(one.score, 3), class_="n"),
        element("td", decimals(one.threshold, 3), class_="n"), element("td", decimals(one.null, 3), class_="n wide"),
        element("td", NONE if one.drift is None else chip("drift", "orange") if one.drift else chip("quiet", "green")))
        for one in ordered[:READINGS]]
    heads = (("Detector", ""), ("Column", ""), ("Score", "n"), ("Threshold", "n"), ("95 % without drift", "n wide"), ("Says", ""))
    return element(
        "section", element("h2", "Further detectors"),
        element("table", element("caption", "What they last said. They raise no alarm and start no retraining."),
                element("thead", element("tr", [element("th", words, scope="col", class_=kind or None)
                                                for words, kind in heads])), element("tbody", rows)),
        element("p", f"and {len(readings) - READINGS:,} more", class_="sub") if len(readings) > READINGS else None)
