"""All models, the worst first: is anything wrong, with which one, and is something being done about it?

The numbers are those of the dashboard `tidemark-fleet`. Models are ordered by state, then by score; a hundred stand on one
page, the rest on the next. Cost: some 0.4 ms a model that is shown. Neighbours: `model` is where the names lead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monitor.expose.history import JudgedPane
from monitor.expose.judged import Values
from monitor.expose.page.draw import sparkline
from monitor.expose.page.frame import Asked, page, pager, tile
from monitor.expose.page.html import Markup, element
from monitor.expose.page.story import chip, episode_name, episodes
from monitor.expose.page.style import HUES, LAUNCH_HUES
from monitor.expose.page.words import NONE, address_of, count, decimals, instant, lasting
from monitor.expose.snapshot import MonitorStatus, Published
from monitor.flow import FINAL_STATES, Launch
from monitor.metrics import STATES

MODELS_A_PAGE = 100
LATEST = 8
_STATES = list(STATES)
_CANNOT = ("insufficient_data", "reference_inadequate")


@dataclass(frozen=True, slots=True)
class Line:
    """One model of the list: the worst of its streams."""

    status: MonitorStatus
    state: str
    score: float
    severe: float
    effect: float
    alarming: int                                   # columns with a score of 1 or more
    since: float | None                             # of the open drift alarm, event time
    faults: int                                     # open alarms about the data
    now: float | None                               # event time up to which it was judged
    launch: Launch | None
    panes: tuple[JudgedPane, ...]

    @property
    def model(self) -> str:
        """Its name."""
        return self.status.model


def lines(published: Published) -> list[Line]:
    """Every model, the worst first."""
    service = published.service
    judged = {key: one for one, _ in published.judged for key in [one.key]}
    by_model: dict[str, list[tuple[str, str, str]]] = {}
    for key in judged:
        by_model.setdefault(key[0], []).append(key)
    launches = {launch.model: launch for launch in service.launches}
    found = []
    for status in service.monitors:
        streams = [judged[key] for key in by_model.get(status.model, ())]
        worst = max(streams, key=lambda one: (_STATES.index(one.evaluation.state), _highest(one.score)), default=None)
        opened = {place: alarm for place, alarm in service.open_alarms.items() if place[:2] == (status.model, status.version)}
        drifting = [alarm.since for place, alarm in opened.items() if place[3] == "drift"]
        found.append(Line(
            status, worst.evaluation.state if worst else "learning", _highest(worst.score) if worst else float("nan"),
            _highest(worst.severe) if worst else float("nan"), _highest(worst.effect) if worst else float("nan"),
            int((worst.score >= 1).sum()) if worst else 0, min(drifting) if drifting else None,
            sum(place[3] == "quality" for place in opened), worst.evaluation.window.end if worst else None,
            launches.get(status.model), published.history.get((status.model, worst.key[2]), ()) if worst else ()))
    return sorted(found, key=lambda line: (-_STATES.index(line.state), -np.nan_to_num(line.score, nan=-1.0), line.model))


def _highest(values: Values) -> float:
    return float(np.fmax.reduce(values, initial=np.nan))


def fleet(published: Published, asked: Asked) -> bytes:
    """The page `/`."""
    every = lines(published)
    chosen = [line for line in every if _is_asked(line, asked)]
    pages = max(1, -(-len(chosen) // MODELS_A_PAGE))
    start = (min(asked.page, pages) - 1) * MODELS_A_PAGE
    bad = sum(line.state in ("warning", "drift") for line in every)
    return page(f"{bad} in alarm · tidemark" if bad else "tidemark", asked, published,
                element("h1", "Models"), _tiles(every, asked), _list(chosen, every, start, asked), _latest(published))


def _is_asked(line: Line, asked: Asked) -> bool:
    if asked.words and asked.words.casefold() not in line.model.casefold():
        return False
    return {"": True, "faults": line.faults > 0, "cannot": line.state in _CANNOT, "retraining": _under_way(line)}.get(
        asked.state, line.state == asked.state)


def _under_way(line: Line) -> bool:
    return line.launch is not None and line.launch.state not in FINAL_STATES


def _tiles(every: Sequence[Line], asked: Asked) -> Markup:
    numbers = (
        ("", "models watched", len(every), ""),
        ("drift", "in drift", sum(line.state == "drift" for line in every), "red"),
        ("warning", "with a warning", sum(line.state == "warning" for line in every), "orange"),
        ("faults", "with data alarms", sum(line.faults > 0 for line in every), "orange"),
        ("cannot", "cannot be judged", sum(line.state in _CANNOT for line in every), "purple"),
        ("retraining", "being retrained", sum(map(_under_way, every)), "blue"))
    return element("ul", [
        tile(words, str(number), hue=hue if number else "", current=asked.state == state,
             href=asked.link(state=state, page=1)) for state, words, number, hue in numbers], class_="tiles")


def _list(chosen: Sequence[Line], every: Sequence[Line], start: int, asked: Asked) -> Markup:
    search = element(
        "form", element("label", "Name", for_="q", class_="hidden"),
        element("input", id="q", name="q", type="search", value=asked.words, placeholder="Part of a name", maxlength="80"),
        element("input", type="hidden", name="state", value=asked.state) if asked.state else None,
        element("button", "Find"), method="get", action="/", role="search") if len(every) > 10 else None
    head = ("State", "Model", "Score", "Over time", "Effect", "Columns in alarm", "Drifting for", "Data alarms", "Events",
            "Launch")
    kinds = ("", "", "n", "", "n wide", "n wide", "n wide", "n wide", "n wide", "wide")
    body = [_row(line) for line in chosen[start:start + MODELS_A_PAGE]]
    table = element(
        "table", element("caption", "The worst first. A score of 1 is an alarm; effects are reference standard deviations."),
        element("thead", element("tr", [element("th", words, scope="col", class_=kind or None)
                                        for words, kind in zip(head, kinds, strict=True)])),
        element("tbody", body))
    nothing = "No model is watched yet." if not every else "None of them. "
    return element("section", search, table if body else element("p", nothing, element("a", "All models", href="/")),
                   pager(asked, len(chosen), MODELS_A_PAGE, "models"), aria_label="Models")


def _row(line: Line) -> Markup:
    score = f"n over {'red' if line.severe >= 1 else 'orange'}" if line.score >= 1 else "n"
    launch = line.launch
    return element(
        "tr", element("td", chip(line.state.replace("_", " "), HUES[line.state])),
        element("th", element("a", line.model, href=address_of(line.model)),
                element("span", f" {line.status.version}", class_="sub"), scope="row", class_="name"),
        element("td", decimals(line.score), class_=score), element("td", sparkline(line.panes)),
        element("td", decimals(line.effect), class_="n wide"),
        element("td", line.alarming or NONE, class_="n wide"),
        element("td", lasting(line.now - line.since) if line.since and line.now else NONE, class_="n wide"),
        element("td", line.faults or NONE, class_="n wide"),
        element("td", count(line.status.events.get(("counted", "none"), 0)), class_="n wide"),
        element("td", chip(launch.state.replace("_", " "), LAUNCH_HUES.get(launch.state, "grey")) if launch else NONE,
                class_="wide"))


def _latest(published: Published) -> Markup:
    told = episodes(published.service.alarms)[:LATEST]
    items = []
    for episode in told:
        alarm = episode.told
        moved = ", ".join(mover.column for mover in alarm.movers[:3]) or alarm.words
        items.append(element(
            "li", instant(episode.last.at), element(
                "span", element("a", alarm.model, href=address_of(alarm.model)), f" {alarm.version}: ",
                chip(episode.last.state, episode.hue), " ", episode_name(episode).lower(), f": {moved}" if moved else None)))
    listed = element("ol", items, class_="story") if items else element("p", "None since the state was begun.", class_="sub")
    return element("section", element("h2", "Latest alarms"), listed)
