"""Lines, strips and bars as inline SVG that fits any width: a phone's and a desk's.

A drawing has no view box of its own: texts, lines and dots stand at per cents of its width and keep their size; only
curves and strips lie in an inner drawing that is stretched, with strokes that are not. Each has a title and a
description, for those who hear the page; what it shows stands in a table or a list beside it, too.

Colours are classes (`style`), so that they follow the reader's scheme. Sizes are bounded: a line has at most 512 points,
a strip at most STRIP_CELLS cells of which equal neighbours are one, so that a page stays far below a megabyte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.expose.history import JudgedPane
from monitor.expose.page.html import Markup, element
from monitor.expose.page.style import HUES
from monitor.expose.page.words import decimals, share, tick
from monitor.metrics import STATES

#: As many as the dashboards' heat map draws: a cell is some pixels wide then.
STRIP_CELLS = 120
_SPARK_POINTS = 60
_STATES = list(STATES)
#: Colours of a score, as on the dashboards' heat map: from half of an alarm on, from an alarm on, from two.
BANDS: tuple[tuple[float, str], ...] = ((2.0, "red"), (1.0, "orange"), (0.5, "yellow"), (0.0, "green"))
_PLOT_TOP, _PLOT_HEIGHT = 20, 150
_TICKS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 1e4)


class Mark(NamedTuple):
    """Something that happened at a moment: drawn above the line (an alarm) or below it (what was done)."""

    at: float
    hue: str
    words: str
    above: bool


class Span(NamedTuple):
    """What a time axis shows, seconds since 1970."""

    start: float
    end: float

    @classmethod
    def of(cls, panes: Sequence[JudgedPane]) -> Span:
        """From the first pane's start to the last one's end; at least a second."""
        if not panes:
            return cls(0.0, 1.0)
        return cls(panes[0].end - panes[0].seconds, max(panes[-1].end, panes[0].end - panes[0].seconds + 1.0))

    def place(self, at: float, width: float = 100.0) -> float:
        """Where a moment lies, 0 to `width`."""
        return min(max((at - self.start) / (self.end - self.start), 0.0), 1.0) * width


def _picture(height: int, title: str, description: str, *parts: Markup | Iterable[Markup], kind: str = "chart") -> Markup:
    return element("svg", element("title", title), element("desc", description) if description else None, *parts,
                   class_=kind, height=height, role="img", aria_label=title)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


# ---- over time --------------------------------------------------------------------------------------------------------

def score_chart(panes: Sequence[JudgedPane], marks: Sequence[Mark], model: str) -> Markup:
    """The two scores of every pane on a square-root scale, the alarm's line at 1, what happened above and below."""
    span = Span.of(panes)
    scores = [pane.score for pane in panes]
    severe = [pane.severe for pane in panes]
    top = max(1.6, 1.1 * max((value for value in (*scores, *severe) if math.isfinite(value)), default=0.0))

    def height(value: float) -> float:
        return _PLOT_HEIGHT * (1 - math.sqrt(max(value, 0.0) / top))

    bottom = _PLOT_TOP + _PLOT_HEIGHT
    grid = []
    for value in _ticks(top):
        y = _number(_PLOT_TOP + height(value))
        grid.append(element("line", x1="0", x2="100%", y1=y, y2=y, class_="limit" if value == 1 else "grid"))
        if value:
            grid.append(element("text", "1 = alarm" if value == 1 else f"{value:g}", x="0", y=float(y) - 4))
    curves = element(
        "svg",
        element("path", d=_path(panes, severe, span, height), class_="severe"),
        element("path", d=_path(panes, scores, span, height), class_="score"),
        class_="inner", x="0", y=_PLOT_TOP, height=_PLOT_HEIGHT, width="100%", viewBox=f"0 0 1000 {_PLOT_HEIGHT}",
        preserveAspectRatio="none", aria_hidden="true")
    last = f", {decimals(scores[-1])} now" if scores else ""
    highest = max((value for value in scores if math.isfinite(value)), default=math.nan)
    return _picture(
        bottom + 34, f"Score of {model} over time", f"{len(panes)} panes; the highest score is {decimals(highest)}{last}; "
        f"1 is an alarm. {len(marks)} alarms and launches are marked.",
        grid, _mark_lines(marks, span, bottom), curves, _mark_dots(marks, span, bottom), _time_axis(span, bottom + 30))


def _ticks(top: float) -> list[float]:
    if top < 2:
        return [0.0, 0.5, 1.0]
    reached = [value for value in _TICKS if 1 < value <= top]
    return [0.0, 1.0, *(reached if len(reached) < 3 else reached[-2:])]


def _path(panes: Sequence[JudgedPane], values: Sequence[float], span: Span, height: object) -> str:
    """The line through the values at the panes' ends; it breaks where panes lack and where nothing could be told."""
    assert callable(height)
    parts, drawn = [], -math.inf
    for pane, value in zip(panes, values, strict=True):
        if not math.isfinite(value):
            drawn = -math.inf
            continue
        joined = pane.end - drawn <= 2.5 * pane.seconds
        x, y = _number(span.place(pane.end, 1000)), _number(height(value))
        parts.append(f"L{x} {y}" if joined else f"M{_number(span.place(pane.end - pane.seconds, 1000))} {y}H{x}")
        drawn = pane.end
    return "".join(parts)


def _mark_lines(marks: Sequence[Mark], span: Span, bottom: int) -> list[Markup]:
    lines = []
    for mark in marks:
        x = f"{span.place(mark.at):.2f}%"
        lines.append(element("line", x1=x, x2=x, y1=8 if mark.above else _PLOT_TOP, y2=bottom + (0 if mark.above else 8),
                             class_=f"mark {mark.hue}"))
    return lines


def _mark_dots(marks: Sequence[Mark], span: Span, bottom: int) -> list[Markup]:
    """A dot for each; those that would lie on one another stand beside one another."""
    dots = []
    beside: dict[bool, tuple[float, int]] = {}      # above the line or below it -> where the last one stands, its place in a row
    for mark in marks:
        at = span.place(mark.at)
        before, number = beside.get(mark.above, (-100.0, 0))
        number = number + 1 if at - before < 1.2 else 0
        beside[mark.above] = before if number else at, number
        dots.append(element("circle", element("title", mark.words), cx=f"{at:.2f}%", cy=8 if mark.above else bottom + 8, r=5,
                            class_=f"dot {mark.hue}", transform=f"translate({10 * number} 0)" if number else None))
    return dots


def _time_axis(span: Span, y: int) -> list[Markup]:
    """Three moments: a phone has room for no more."""
    length = span.end - span.start
    places = ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    return [element("text", tick(span.start + part * length, dated=part == 0, span=length), x=f"{part * 100:g}%", y=y,
                    text_anchor=anchor) for part, anchor in places]


def state_strip(panes: Sequence[JudgedPane], title: str) -> Markup:
    """The state of every pane, in the states' colours."""
    span = Span.of(panes)
    width, cells = 1000.0, []
    for state, run in groupby(panes, key=lambda pane: pane.state):
        ends = list(run)
        left, right = span.place(ends[0].end - ends[0].seconds, width), span.place(ends[-1].end, width)
        cells.append(element("rect", x=_number(left), y="0", width=_number(max(right - left, 1.0)), height="1",
                             class_=HUES[_STATES[state]]))
    return element("svg", element("title", title), cells, class_="states", viewBox=f"0 0 {width:g} 1",
                   preserveAspectRatio="none", role="img", aria_label=title)


def sparkline(panes: Sequence[JudgedPane]) -> Markup:
    """The score of the time kept, small; the dashed line is an alarm."""
    span = Span.of(panes)
    cells = np.full(_SPARK_POINTS, np.nan)
    for pane in panes:
        cell = min(int(span.place(pane.end, _SPARK_POINTS)), _SPARK_POINTS - 1)
        cells[cell] = np.fmax(cells[cell], pane.score)
    known = cells[np.isfinite(cells)]
    top = max(1.6, 1.1 * float(known.max())) if len(known) else 1.6
    points = [(place, 24 * (1 - math.sqrt(max(value, 0.0) / top))) for place, value in enumerate(cells.tolist())
              if math.isfinite(value)]
    path = "".join(f"{'L' if number else 'M'}{place} {_number(y)}" for number, (place, y) in enumerate(points))
    limit = _number(24 * (1 - math.sqrt(1 / top)))
    dashed = element("path", d=f"M0 {limit}H{_SPARK_POINTS - 1}", class_="limit", vector_effect="non-scaling-stroke")
    return element("svg", dashed, element("path", d=path, class_="score") if path else None, class_="spark",
                   viewBox=f"0 0 {_SPARK_POINTS - 1} 24", preserveAspectRatio="none", aria_hidden="true")


class Strip(NamedTuple):
    """One column over time: its highest score in the time shown and its cells."""

    column: str
    highest: float
    picture: Markup


def strips(panes: Sequence[JudgedPane], count: int) -> list[Strip]:
    """The columns that were highest in the time shown, highest first, each as a strip of coloured cells.

    A version's columns are found again by name in the next one's.
    """
    cells: dict[str, NDArray[np.float64]] = {}
    span = Span.of(panes)
    for frame, run in groupby(panes, key=lambda pane: pane.frame):
        judged = list(run)
        places = np.array([min(int(span.place(pane.end - pane.seconds / 2, STRIP_CELLS)), STRIP_CELLS - 1) for pane in judged])
        scores = np.stack([pane.scores for pane in judged]).astype(float)              # panes, rows
        matrix = np.full((STRIP_CELLS, scores.shape[1]), np.nan)
        np.fmax.at(matrix, places, scores)
        for row, column in enumerate(frame.columns):
            known = cells.get(column)
            cells[column] = matrix[:, row] if known is None else np.fmax(known, matrix[:, row])
    highest = {column: float(np.fmax.reduce(values, initial=-1.0)) for column, values in cells.items()}
    chosen = sorted(cells, key=lambda column: -highest[column])[:count]
    width = max(1, math.ceil(STRIP_CELLS * (panes[0].seconds / (span.end - span.start)))) if panes else 1
    return [Strip(column, highest[column] if highest[column] >= 0 else math.nan, _strip(cells[column], width))
            for column in chosen]


def _strip(values: NDArray[np.float64], width: int) -> Markup:
    """Cells of which equal neighbours are one; a pane that is longer than a cell fills as many as it lasts."""
    judged = [next((hue for least, hue in BANDS if value >= least), "") for value in values.tolist()]
    bands = list(judged)
    for place, hue in enumerate(judged):
        for other in range(max(0, place - width // 2), min(len(bands), place + width // 2 + 1)) if hue else ():
            bands[other] = bands[other] or hue
    drawn, place = [], 0
    for hue, run in groupby(bands):
        length = len(list(run))
        if hue:
            drawn.append(element("rect", x=place, y="0", width=length, height="1", class_=hue))
        place += length
    return element("svg", drawn, class_="strip", viewBox=f"0 0 {STRIP_CELLS} 1", preserveAspectRatio="none", aria_hidden="true")


# ---- reference and window ---------------------------------------------------------------------------------------------

def histogram(labels: Sequence[str], reference: Sequence[float], window: Sequence[float], column: str) -> Markup:
    """Shares per bin, the reference as broad bars behind the window's slim ones."""
    top = max((value for value in (*reference, *window) if value == value), default=0.0) or 1.0
    plot, head = 140, 18
    slot = 100 / max(len(labels), 1)
    levels = [(level, head + plot * (1 - level)) for level in (0.5, 1.0)]
    bars = [element("line", x1="0", x2="100%", y1=y, y2=y, class_="grid") for _, y in levels]
    for place, (label, *sides) in enumerate(zip(labels, reference, window, strict=True)):
        title = element("title", f"{label}: reference {share(sides[0])}, window {share(sides[1])}")
        for value, width, of in zip(sides, (0.84, 0.4), ("reference", "window"), strict=True):
            high = 0.0 if value != value else plot * value / top
            bars.append(element("rect", title, x=f"{slot * (place + (1 - width) / 2):.2f}%", width=f"{slot * width:.2f}%",
                                y=_number(head + plot - high), height=_number(high), class_=f"of-{of}"))
    bars += [element("text", share(top * level), x="0", y=y - 4, class_="over-bars") for level, y in levels]
    base = head + plot
    bars.append(element("line", x1="0", x2="100%", y1=base, y2=base, class_="zero"))
    named = sorted({round(part * (len(labels) - 1)) for part in (0, 0.25, 0.5, 0.75, 1)}) if labels else []
    for place in named:
        anchor = "start" if place == 0 else "end" if place == len(labels) - 1 else "middle"
        x = 0 if place == 0 else 100 if anchor == "end" else slot * (place + 0.5)
        bars.append(element("text", _edge(labels[place]), x=f"{x:.2f}%", y=base + 18, text_anchor=anchor))
    return _picture(base + 24, f"Reference and window of {column}",
                    f"Share of events in each of {len(labels)} bins; the numbers stand in the table below.", bars)


def _edge(label: str) -> str:
    """A bin by its lower edge, short enough for an axis.

    >>> _edge("[0.25, 1.5)"), _edge("missing")
    ('0.25', 'missing')
    """
    if label[:1] in "[(" and "," in label:
        edge = label[1:].split(",")[0]
        return f"{float(edge):.4g}" if edge.lstrip("-")[:1].isdigit() else edge
    return label[:14]


def twin_bars(reference: float, window: float, top: float) -> Markup:
    """Two shares of one level as bars, the reference's above the window's."""
    parts = [element("rect", x="0", y=y, width=f"{100 * value / top:.2f}%" if value == value else "0", height="7",
                     class_=f"of-{of}") for value, y, of in ((reference, 1, "reference"), (window, 9, "window"))]
    return element("svg", parts, class_="interval", aria_hidden="true")


def interval(lower: float, middle: float, upper: float, low: float, high: float) -> Markup:
    """A value with its interval on an axis from `low` to `high` that the rows of a table share; the line is 0."""
    def place(value: float) -> str:
        bounded = min(max(value, low), high) if value == value else 0.0
        return f"{2 + 96 * (bounded - low) / (high - low):.2f}%"

    return element(
        "svg", element("line", x1=place(0), x2=place(0), y1="0", y2="17", class_="zero"),
        element("line", x1=place(lower), x2=place(upper), y1="8.5", y2="8.5", class_="whisker"),
        element("circle", cx=place(middle), cy="8.5", r="3.5", class_="point"), class_="interval", aria_hidden="true")


# ---- keys -------------------------------------------------------------------------------------------------------------

def key(entries: Sequence[tuple[str, str]]) -> Markup:
    """What lines, dots and areas mean: (`line NAME`, `dot NAME` or `area NAME`, words)."""
    items = []
    for kind, words in entries:
        shape, name = kind.split(" ", 1)
        if shape == "line":
            sample = element("path", d="M0 6H18", class_=name)
        elif shape == "dot":
            sample = element("circle", cx="9", cy="6", r="4.5", class_=name)
        else:
            sample = element("rect", x="1", y="1", width="16", height="10", class_=name)
        items.append(element("li", element("svg", sample, viewBox="0 0 18 12", aria_hidden="true"), words))
    return element("ul", items, class_="key")
