"""Columns of one judged pane: over time, by evidence, one of them bin by bin, several together, and where values lack.

All of it is read from a `Judged` (what `/metrics` shows) and from the sentences of `tidemark explain`. Neighbours:
`model` puts the parts together, `draw` draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detectors.binning import CategoryBinning
from monitor.expose.history import JudgedPane
from monitor.expose.judged import Judged
from monitor.expose.page.draw import BANDS, Span, histogram, interval, key, strips, twin_bars
from monitor.expose.page.frame import Asked, pager
from monitor.expose.page.html import Markup, element
from monitor.expose.page.words import NONE, counted, decimals, share, tick
from monitor.expose.snapshot import Published

#: As many as the dashboards' heat map has rows.
STRIPS = 25
COLUMNS_A_PAGE = 15
#: Columns that are offered for a closer look; any other is a click in the table away.
_OFFERED = 12
_JOINT_SHOWN = 14
_GAPS_SHOWN = 8
#: Bins that are no part of a number's range.
_SPECIAL = ("missing", "below", "above", "rest", "unseen")


def _hue(value: float, severe: float = 0.0) -> str:
    if severe >= 1:
        return "n over red"
    return "n over orange" if value >= 1 else "n"


def over_time(panes: Sequence[JudgedPane]) -> Markup:
    """The columns that were highest in the time shown: one row each, time from left to right."""
    rows = [element("tr", element("th", strip.column, scope="row", class_="name", title=strip.column),
                    element("td", strip.picture), element("td", decimals(strip.highest), class_=_hue(strip.highest)))
            for strip in strips(panes, STRIPS)]
    span = Span.of(panes)
    begin, end = (tick(at, dated=False, span=span.end - span.start) for at in span)
    words = {2.0: "2 and more", 1.0: "an alarm: 1 to 2", 0.5: "half of one", 0.0: "below"}
    return element(
        "div", element("h2", "Columns by time", class_="further"),
        element("table", element("caption", f"The score of the {len(rows)} columns that were highest in the time shown."),
                element("thead", element("tr", element("th", "Column", scope="col"),
                                         element("th", begin, element("span", end), scope="col"),
                                         element("th", "Highest", scope="col", class_="n"))),
                element("tbody", rows), class_="heat"),
        key([(f"area {hue}", words[least]) for least, hue in reversed(BANDS)]))


def chosen(judged: Judged, asked: str) -> int:
    """The row that is looked at: the one asked for, or the most evident column that is not made of several."""
    if asked in judged.frame.columns:
        return judged.frame.columns.index(asked)
    order = by_evidence(judged)
    return next((row for row in order if judged.frame.roles[row] != "joint"), order[0])


def by_evidence(judged: Judged) -> list[int]:
    """All rows, the most evident first."""
    return [int(row) for row in np.argsort(-judged.rank, kind="stable")]


def movers(published: Published, asked: Asked, judged: Judged) -> Markup:
    """All columns, the most evident first: score, effect with its interval, and the sentence that says why."""
    order = by_evidence(judged)
    pages = max(1, -(-len(order) // COLUMNS_A_PAGE))
    start = (min(asked.page, pages) - 1) * COLUMNS_A_PAGE
    rows = order[start:start + COLUMNS_A_PAGE]
    why = published.why.get(judged.key)
    sentences = {} if why is None else {one.column: one.sentence for one in why.columns()}
    names = judged.evaluation.scores.rows
    whiskers = {row: _in_sd(judged, row) for row in rows}
    reach = max((abs(end) for ends in whiskers.values() for end in ends if np.isfinite(end)), default=0.0) or 1.0
    body = [element(
        "tr", element("th", element("a", judged.frame.columns[row], href=_link(asked, judged, row)),
                      element("span", f" {judged.frame.roles[row]}", class_="sub"), scope="row", class_="name"),
        element("td", decimals(float(judged.score[row])), class_=_hue(float(judged.score[row]))),
        element("td", decimals(float(judged.severe[row])), class_=f"{_hue(0, float(judged.severe[row]))} wide"),
        element("td", _whisker(whiskers[row], reach), class_="wide"),
        element("td", sentences.get(names[row], NONE), class_="name"),
        element("td", decimals(float(judged.visible[row])), class_="n wide"),
        element("td", _distance(published, judged, "psi", row), class_="n wide"),
        element("td", _distance(published, judged, "js", row), class_="n wide"))
        for row in rows]
    heads = (("Column", ""), ("Score", "n"), ("Severe", "n wide"), (f"Effect, ±{decimals(reach)} reference s.d.", "wide"),
             ("Why", ""), ("Visible from", "n wide"), ("PSI", "n wide"), ("JS", "n wide"))
    return element(
        "section", element("h2", "What moved most"),
        element("table", element("caption", f"{counted(len(order), 'row')}, the most evident first. The bar is the 95 % "
                                 "interval; a shift below “visible from” (reference s.d.) may go unseen. PSI and Jensen-Shannon "
                                 "decide nothing."),
                element("thead", element("tr", [element("th", words, scope="col", class_=kind or None)
                                                for words, kind in heads])),
                element("tbody", body), class_="movers"),
        pager(asked, len(order), COLUMNS_A_PAGE, "columns"), id="columns")


def _link(asked: Asked, judged: Judged, row: int) -> str:
    """Where a column is looked at bin by bin."""
    return f"{asked.link(column=judged.frame.columns[row])}#column"


def _in_sd(judged: Judged, row: int) -> tuple[float, float, float]:
    """Lower end, effect and upper end in reference standard deviations, with their sign."""
    scores = judged.evaluation.scores
    moved, effect = abs(float(scores.effect[row])), float(judged.effect[row])
    if not (moved > 0 and effect > 0):
        return (float("nan"),) * 3
    scale = moved / effect
    return (float(scores.effect_lower[row]) / scale, float(scores.effect[row]) / scale, float(scores.effect_upper[row]) / scale)


def _whisker(ends: tuple[float, float, float], reach: float) -> Markup | None:
    lower, middle, upper = ends
    return interval(lower, middle, upper, -reach, reach) if np.isfinite(middle) else None


def _distance(published: Published, judged: Judged, name: str, row: int) -> str:
    """A distance of a row; that of a configured detector of the same name, where there is one."""
    values, column = judged.distances.get(name), judged.frame.columns[row]
    if values is not None:
        return decimals(float(values[row]), 3)
    readings = published.observed.get(judged.key, ())
    return next((decimals(one.score, 3) for one in readings if (one.detector, one.column) == (name, column)), NONE)


def one_column(asked: Asked, judged: Judged, row: int) -> Markup:
    """Reference against window of one column, and the way to others."""
    name = judged.frame.columns[row]
    order = [one for one in by_evidence(judged) if judged.frame.roles[one] != "joint"]
    offered = dict.fromkeys([*order[:_OFFERED], row])
    choice = element("nav", element("ul", [element("li", element(
        "a", judged.frame.columns[one], href=_link(asked, judged, one),
        aria_current="true" if one == row else None)) for one in offered], class_="choice"), aria_label="Columns")
    head = element("h2", f"Reference and window of {name}")
    if judged.window is None or not judged.window_events:
        return element("section", head, choice, element("p", "The window holds no events.", class_="sub"), id="column")
    bins = list(zip(judged.frame.bins[row], *(side.tolist() for side in judged.shares(row)), strict=True))
    bins = [(label, before, now) for label, before, now in bins
            if not label.startswith(_SPECIAL) or np.nan_to_num(before) > 0 or np.nan_to_num(now) > 0]
    labels = [label for label, _, _ in bins]
    is_category = isinstance(judged.frame.reference.records[row].binning, CategoryBinning)
    numbers = _bins(bins, bars=is_category)
    picture = numbers if is_category else [
        histogram(labels, [one for _, one, _ in bins], [one for _, _, one in bins], name),
        element("details", element("summary", f"The {len(bins)} bins in numbers"), numbers)]
    return element(
        "section", head, choice,
        element("p", f"Share of events in each bin; the window holds {counted(judged.window_events, 'event')}.", class_="sub"),
        picture, key([("area of-reference", "reference"), ("area of-window", "window")]), id="column")


def _bins(bins: Sequence[tuple[str, float, float]], *, bars: bool) -> Markup:
    top = max((value for _, *sides in bins for value in sides if value == value), default=0.0) or 1.0
    rows = [element("tr", element("th", label, scope="row", class_="name"),
                    element("td", twin_bars(before, now, top)) if bars else None,
                    element("td", share(before), class_="n"), element("td", share(now), class_="n"))
            for label, before, now in bins]
    return element("table", element("thead", element(
        "tr", element("th", "Bin", scope="col"), element("th", "Share of events", scope="col") if bars else None,
        element("th", "Reference", scope="col", class_="n"), element("th", "Window", scope="col", class_="n"))),
        element("tbody", rows))


def joint(judged: Judged) -> Markup | None:
    """What is made of several columns together: a change of how they go with one another."""
    rows = [row for row in by_evidence(judged) if judged.frame.roles[row] == "joint"]
    if not rows:
        return None
    scores = judged.evaluation.scores
    body = [element("tr", element("th", judged.frame.columns[row], scope="row", class_="name"),
                    element("td", decimals(float(judged.score[row])), class_=_hue(float(judged.score[row]))),
                    element("td", scores.what[row] if judged.score[row] >= 1 else "within chance", class_="name"))
            for row in rows[:_JOINT_SHOWN]]
    return element(
        "section", element("h2", "Columns together"),
        element("table", element("caption", "Scores of what is made of several columns: a change of how they go with one "
                                 "another, which no single column shows. 1 is an alarm."),
                element("thead", element("tr", element("th", "Row", scope="col"), element("th", "Score", scope="col", class_="n"),
                                         element("th", "What moved", scope="col"))), element("tbody", body)), id="joint")


def gaps(judged: Judged) -> Markup | None:
    """Shares of missing and unseen values of the columns where they are highest in the window; None where there are none."""
    if judged.window is None or not judged.window_events:
        return None
    found = []
    for row in by_evidence(judged)[:100]:
        if judged.frame.roles[row] == "joint":
            continue
        before, now = judged.shares(row)
        found += [(float(now[place]), float(before[place]), judged.frame.columns[row], label)
                  for place, label in enumerate(judged.frame.bins[row]) if label in ("missing", "unseen") and now[place] > 0]
    if not found:
        return None
    rows = [element("tr", element("th", column, scope="row", class_="name"), element("td", label),
                    element("td", share(before), class_="n"), element("td", share(now), class_="n"))
            for now, before, column, label in sorted(found, reverse=True)[:_GAPS_SHOWN]]
    return element(
        "table", element("caption", "Missing and unseen values, share of events"),
        element("thead", element("tr", *(element("th", words, scope="col", class_=kind or None) for words, kind in (
            ("Column", ""), ("Values", ""), ("Reference", "n"), ("Window", "n"))))), element("tbody", rows))
