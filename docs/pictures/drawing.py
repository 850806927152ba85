"""Drawings of the dashboards: their JSON and the data of a real Prometheus, as one HTML page in Grafana's colours.

Grafana itself is not needed, and this is not Grafana: titles, places, queries, units, thresholds, mappings and colours are
read from the JSON, every number comes from the server that scraped the run, and a line below says what it is. Seven
kinds of panels are drawn, which are those that the dashboards use. Neighbours: `make` has it photographed.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

from monitor.expose.page.html import Markup, document, element

_OPEN = build_opener(ProxyHandler({})).open
CAPTION = "Drawn from the dashboard's JSON with the data of a real Prometheus; not a screenshot of Grafana."
#: Grafana's named colours, as its dark theme has them.
COLOURS = {
    "green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "yellow": "#fade2a", "purple": "#b877d9", "blue": "#5794f2",
    "light-blue": "#8ab8ff", "light-green": "#96d98d", "super-light-green": "#c8f2c2", "dark-red": "#c4162a", "text": "#ccccdc"}
_SERIES = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#56a64b", "#ffb357", "#a352cc",
           "#37872d")
_ROW = 30                                           # pixels of one unit of the grid's height
STYLE = """
*{box-sizing:border-box}body{margin:0;background:#111217;color:#ccccdc;font:13px/1.35 system-ui,"Liberation Sans",sans-serif;
font-variant-numeric:tabular-nums}h1{font-size:18px;font-weight:500;margin:14px 16px 4px}
.grid{display:grid;grid-template-columns:repeat(24,1fr);gap:8px;padding:8px 16px}
.head{grid-column:1/-1;font-weight:500;font-size:14px;padding-top:4px}
.panel{background:#181b1f;border:1px solid #25282d;border-radius:3px;padding:6px 8px;overflow:hidden;min-width:0;display:flex;
flex-direction:column}.panel h2{font-size:13px;font-weight:500;margin:0 0 4px;white-space:nowrap;overflow:hidden}
.big{flex:1;display:flex;flex-direction:column;align-items:center;justify-content:center;font-size:30px;font-weight:500;border-radius:3px}
.big small{font-size:12px}.rest{font-size:11px;color:#9fa2ac;display:flex;flex-wrap:wrap;gap:0 12px;
overflow:hidden;max-height:32px}
.rest i,.swatch{display:inline-block;width:14px;height:4px;border-radius:2px;margin-right:5px;vertical-align:middle}
table{border-collapse:collapse;width:100%;font-size:12px}th{text-align:left;color:#6e9fff;font-weight:500}
td,th{padding:4px 6px;border-bottom:1px solid #25282d;white-space:nowrap}td.n,th.n{text-align:right}
.lanes{display:grid;grid-template-columns:max-content 1fr;gap:3px 8px;align-items:center;font-size:11px}
.lanes span{text-align:right;max-width:190px;overflow:hidden;white-space:nowrap;text-overflow:ellipsis}
svg{display:block;width:100%;overflow:visible}svg text{font-size:11px;fill:#9fa2ac}
.note{padding:2px 16px 12px;color:#9fa2ac;font-size:12px}
"""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of a query: its labels, its legend and its points (seconds since 1970, value)."""

    labels: Mapping[str, str]
    legend: str
    points: tuple[tuple[float, float], ...]

    @property
    def last(self) -> float:
        """The newest value."""
        return self.points[-1][1] if self.points else math.nan


class Prometheus:
    """A server that scraped the run from `start` to `end`, seconds since 1970.

    variables : what Grafana would put in the place of `$name`
    """

    def __init__(self, port: int, start: float, end: float, variables: Mapping[str, str]) -> None:
        self._base = f"http://127.0.0.1:{port}/api/v1"
        self.start, self.end, self._variables = start, end, {"__rate_interval": "8s", "__interval": "1s",
                                                             "__range": f"{int(end - start)}s", "job": ".+", **variables}

    def _ask(self, path: str, **values: Any) -> Any:
        with _OPEN(f"{self._base}/{path}?{urlencode(values)}", timeout=60) as answer:
            return json.load(answer)["data"]["result"]

    def series(self, target: Mapping[str, Any]) -> list[Series]:
        """What a panel's query gives: over time, or its last value."""
        expr = re.sub(r"\$(\w+)", lambda found: self._variables.get(found[1], found[0]), target["expr"])
        if target.get("instant"):
            found = self._ask("query", query=expr, time=self.end)
        else:
            step = max(1, round((self.end - self.start) / 240))
            found = self._ask("query_range", query=expr, start=self.start, end=self.end, step=step)
        result = []
        for one in found:
            labels = {name: value for name, value in one["metric"].items() if name != "__name__"}
            points = [one["value"]] if "value" in one else one["values"]
            kept = tuple((float(at), float(value)) for at, value in points if value != "NaN")
            if kept:
                result.append(Series(labels, _legend(target.get("legendFormat", ""), labels), kept))
        return result


def _legend(form: str, labels: Mapping[str, str]) -> str:
    if form in ("", "__auto"):
        return ", ".join(labels.values()) or "value"
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), form)


def drawn(board: Mapping[str, Any], prometheus: Prometheus, *, title: str, rows: int = 99) -> bytes:
    """The dashboard as a page; its panels down to `rows` units of the grid."""
    panels = []
    for panel in board["panels"]:
        place = panel["gridPos"]
        if place["y"] >= rows:
            continue
        if panel["type"] == "row":
            panels.append(element("div", re.sub(r"\$(\w+)", lambda found: prometheus._variables.get(found[1], ""),
                                                panel["title"]),
                                  class_="head"))
            continue
        named = re.sub(r"\$(\w+)", lambda found: prometheus._variables.get(found[1], ""), panel["title"])
        panels.append(element(
            "div", element("h2", named), _DRAW[panel["type"]](panel, prometheus), class_="panel",
            style=f"grid-column:{place['x'] + 1}/span {place['w']};height:{place['h'] * _ROW + (place['h'] - 1) * 8}px"))
    return document(lang="en", head=[element("meta", charset="utf-8"), element("title", title), element("style", Markup(STYLE))],
                    body=[element("h1", title), element("div", panels, class_="grid"), element("div", CAPTION, class_="note")])


# ---- words and colours ------------------------------------------------------------------------------------------------

def _colour(name: str) -> str:
    return COLOURS.get(name, name)


def _by_steps(value: float, steps: Sequence[Mapping[str, Any]]) -> str:
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return _colour(reached[-1]) if reached else COLOURS["text"]


def _mapped(value: float, mappings: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    for mapping in mappings:
        found = mapping["options"].get(f"{value:g}")
        if found is not None:
            return found["text"], _colour(found["color"])
    return None


def _text(value: float, unit: str, decimals: int | None = None) -> str:
    if math.isnan(value):
        return ""
    if unit == "s":
        seconds = max(value, 0)
        return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
    if unit == "percentunit":
        return f"{100 * value:.{1 if decimals is None else decimals}f} %"
    places = decimals if decimals is not None else 0 if value == int(value) else 2
    text = f"{value:.{places}f}" if abs(value) < 10_000 else f"{value / 1000:.1f} K"
    return f"{text} c/s" if unit == "cps" else text


def _defaults(panel: Mapping[str, Any]) -> tuple[str, Sequence[Any], Sequence[Any]]:
    """Unit, threshold steps, value mappings."""
    defaults = panel["fieldConfig"]["defaults"]
    return defaults.get("unit", "short"), defaults.get("thresholds", {}).get("steps", []), defaults.get("mappings", [])


def _all(panel: Mapping[str, Any], prometheus: Prometheus) -> list[Series]:
    return [one for target in panel["targets"] for one in prometheus.series(target)]


# ---- panels -----------------------------------------------------------------------------------------------------------

def _stat(panel: Mapping[str, Any], prometheus: Prometheus) -> Markup:
    unit, steps, mappings = _defaults(panel)
    parts = []
    for one in _all(panel, prometheus)[:4]:
        mapped = _mapped(one.last, mappings)
        words, colour = mapped or (_text(one.last, unit), _by_steps(one.last, steps))
        fill = panel["options"]["colorMode"].startswith("background")
        parts.append(element("div", words, class_="big",
                             style=f"background:{colour};color:#111217" if fill else f"color:{colour}"))
    return element("div", parts or element("div", "none", class_="big"), style="flex:1;display:flex;gap:6px")


def _gauge(panel: Mapping[str, Any], prometheus: Prometheus) -> Markup:
    return _stat({**panel, "options": {"colorMode": "value"}}, prometheus)


def _height(panel: Mapping[str, Any], less: int) -> int:
    return int(panel["gridPos"]["h"] * _ROW + (panel["gridPos"]["h"] - 1) * 8 - less)


def _time_series(panel: Mapping[str, Any], prometheus: Prometheus) -> Markup:
    unit, steps, _ = _defaults(panel)
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    found = sorted(_all(panel, prometheus), key=lambda one: -max(value for _, value in one.points))
    height = _height(panel, 92)
    values = [value for one in found for _, value in one.points]
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    if stacked:
        sums: dict[float, float] = {}
        for one in found:
            for at, value in one.points:
                sums[at] = sums.get(at, 0.0) + value
        values = list(sums.values())
    low = min(0.0, *values) if values and panel["fieldConfig"]["defaults"].get("min") == 0 else min(values, default=0.0)
    high = max(values, default=1.0)
    if high == low:
        low, high = low - 0.1 * abs(low), high + 0.1 * abs(high) or 1.0
    high += 0.06 * (high - low)
    limits = [step["value"] for step in steps if step["value"] is not None]
    if limits and "dashed" in custom.get("thresholdsStyle", {}).get("mode", ""):
        high = max(high, 1.1 * limits[0])
    span = prometheus.end - prometheus.start

    def x(at: float) -> float:
        return 1000 * (at - prometheus.start) / span

    def y(value: float) -> float:
        return height * (1 - (value - low) / (high - low))

    lines, below = [], {}
    step = span / 240
    for place, one in enumerate(found[:24]):
        colour = _SERIES[place % len(_SERIES)]
        if custom.get("drawStyle") == "bars":
            lines += [element("rect", x=f"{x(at) - 2:.1f}", y=f"{y(value):.1f}", width="4", height=f"{height - y(value):.1f}",
                              fill=colour) for at, value in one.points if value > 0.01]
            continue
        top, path, before = [], [], -math.inf
        for at, value in one.points:
            base = below.get(at, 0.0) if stacked else 0.0
            top.append((x(at), y(value + base), y(base)))
            path.append(f"{'L' if at - before < 4 * max(step, 1) else 'M'}{x(at):.1f} {y(value + base):.1f}")
            before = at
            if stacked:
                below[at] = base + value
        if stacked and top:
            shape = " ".join(f"{a:.1f},{b:.1f}" for a, b, _ in top) + " " + " ".join(f"{a:.1f},{c:.1f}" for a, _,
                                                                                     c in reversed(top))
            lines.append(element("polygon", points=shape, fill=colour, fill_opacity="0.3"))
        lines.append(element("path", d="".join(path), fill="none", stroke=colour, stroke_width="1.4",
                             vector_effect="non-scaling-stroke"))
    grid = []
    for part in (0, 0.5, 1):
        at = low + part * (high - low) * 0.94
        grid.append(element("line", x1="0", x2="100%", y1=y(at), y2=y(at), stroke="#25282d"))
        grid.append(element("text", _text(at, unit), x="0", y=y(at) - 3))
    dashed = "dashed" in custom.get("thresholdsStyle", {}).get("mode", "")
    grid += [element("line", x1="0", x2="100%", y1=y(limit), y2=y(limit), stroke=_by_steps(limit, steps), stroke_dasharray="8 6")
             for limit in limits[:1] if dashed]
    inner = element("svg", lines, viewBox=f"0 0 1000 {height}", preserveAspectRatio="none", height=height, x="0", y="0",
                    width="100%")
    legend = [element("span", element("i", style=f"background:{_SERIES[place % len(_SERIES)]}"), one.legend)
              for place, one in enumerate(found[:24])]
    return Markup(element("svg", grid, inner, _times(prometheus, height + 14), height=height + 20)
                  + element("div", legend, class_="rest"))


def _times(prometheus: Prometheus, y: int) -> list[Markup]:
    return [element("text", time.strftime("%H:%M:%S", time.gmtime(prometheus.start + part * (prometheus.end - prometheus.start))),
                    x=f"{100 * part:g}%", y=y, text_anchor=anchor) for part, anchor in ((0, "start"), (0.5, "middle"), (1,
                                                                                                                        "end"))]


def _lanes(panel: Mapping[str, Any], prometheus: Prometheus) -> Markup:
    """State timelines and heat maps: one lane per series, equal neighbours as one."""
    _, steps, mappings = _defaults(panel)
    found = _all(panel, prometheus)
    if panel["type"] == "status-history":
        found.sort(key=lambda one: -max(value for _, value in one.points))
    room = max(int((_height(panel, 60)) / max(len(found), 1)) - 3, 5)
    span, lanes = prometheus.end - prometheus.start, []
    gap = 4 * max(1.0, span / 240)
    for one in found[:30]:
        cells: list[list[Any]] = []                 # begin, end, colour, words
        for at, value in one.points:
            words, colour = _mapped(value, mappings) or ("", _by_steps(value, steps))
            if cells and cells[-1][2:] == [colour, words] and at - cells[-1][1] <= gap:
                cells[-1][1] = at
            else:
                if cells and at - cells[-1][1] <= gap:
                    cells[-1][1] = at
                cells.append([at, at + span / 240, colour, words])
        parts = [element("rect", x=f"{100 * (begin - prometheus.start) / span:.2f}%", y="0", height=min(room, 40),
                         width=f"{100 * max(end - begin, span / 240) / span:.2f}%", fill=colour, fill_opacity="0.85")
                 for begin, end, colour, _ in cells]
        parts += [element("text", words, x=f"{100 * (begin - prometheus.start) / span + 0.5:.2f}%", y=min(room, 40) / 2 + 4,
                          style="fill:#111217") for begin, end, _, words in cells if words and end - begin > 0.09 * span]
        lanes += [element("span", one.legend), element("svg", parts, height=min(room, 40))]
    lanes += [element("span"), element("svg", _times(prometheus, 12), height="16")]
    return element("div", lanes, class_="lanes")


def _table(panel: Mapping[str, Any], prometheus: Prometheus) -> Markup:
    """The queries' last values merged by their labels, as the panel's own transformations say."""
    organize = next(one["options"] for one in panel["transformations"] if one["id"] == "organize")
    order, renamed = organize["indexByName"], organize["renameByName"]
    overrides = {one["matcher"]["options"]: {prop["id"]: prop["value"] for prop in one["properties"]}
                 for one in panel["fieldConfig"]["overrides"]}
    merged: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    several = len(panel["targets"]) > 1
    for target in panel["targets"]:
        for one in prometheus.series(target):
            key = tuple(sorted(one.labels.items()))
            merged.setdefault(key, {})[f"Value #{target['refId']}" if several else "Value"] = one.last
    by, heads = panel["options"]["sortBy"][0]["displayName"], sorted(order, key=lambda name: order[name])
    sorted_by = next((name for name in heads if renamed.get(name) == by), heads[0])
    lines = sorted(merged.items(), key=lambda item: -item[1].get(sorted_by, -math.inf))
    body = []
    for key, values in lines[:int((_height(panel, 64)) / 26)]:
        labels, cells = dict(key), []
        for name in heads:
            if not name.startswith("Value"):
                linked = "links" in overrides.get(renamed.get(name, name), {})
                cells.append(element("td", labels.get(name, ""), style="color:#6e9fff" if linked else None))
                continue
            how, value = overrides.get(renamed.get(name, name), {}), values.get(name, math.nan)
            mapped = _mapped(value, how.get("mappings", []))
            colour = mapped[1] if mapped else _by_steps(value, how["thresholds"]["steps"]) if "thresholds" in how else ""
            words = mapped[0] if mapped else _text(value, how.get("unit", "short"), how.get("decimals"))
            filled = colour and "custom.cellOptions" in how and not math.isnan(value)
            cells.append(element("td", words, class_="n", style=f"background:{colour};color:#111217" if filled else None))
        body.append(element("tr", cells))
    head = [element("th", renamed.get(name, name), class_="n" if name.startswith("Value") else None) for name in heads]
    return element("table", element("thead", element("tr", head)), element("tbody", body))


def _bar_chart(panel: Mapping[str, Any], prometheus: Prometheus) -> Markup:
    names = next(one["options"]["renameByName"] for one in panel["transformations"] if one["id"] == "organize")
    field = panel["options"]["xField"]
    sides = {names[f"Value #{target['refId']}"]: {one.labels.get(field, ""): one.last for one in prometheus.series(target)}
             for target in panel["targets"]}
    bins = sorted({name for side in sides.values() for name in side}, key=_edge)
    height, top = _height(panel, 110), max((value for side in sides.values() for value in side.values()), default=1.0)
    parts = [element("line", x1="0", x2="100%", y1=height, y2=height, stroke="#3c3f46"),
             element("text", _text(top, "percentunit"), x="0", y="10")]
    for place, name in enumerate(bins):
        for number, side in enumerate(sides.values()):
            high = (height - 14) * side.get(name, 0.0) / top
            parts.append(element("rect", x=f"{(place + 0.1 + 0.4 * number) * 100 / len(bins):.2f}%", y=f"{height - high:.1f}",
                                 width=f"{38 / len(bins):.2f}%", height=f"{high:.1f}", fill=_SERIES[number], fill_opacity="0.75"))
        if place % max(1, len(bins) // 4) == 0:
            parts.append(element("text", name[:18], x=f"{(place + 0.1) * 100 / len(bins):.2f}%", y=height + 16))
    legend = [element("span", element("i", style=f"background:{_SERIES[number]}"), name) for number, name in enumerate(sides)]
    return Markup(element("svg", parts, height=height + 24) + element("div", legend, class_="rest"))


def _edge(name: str) -> tuple[int, float, str]:
    """Bins in the order of their edges; missing and below first, above last."""
    number = re.search(r"-?[0-9][0-9.e+-]*", name)
    return (0 if name.startswith(("missing", "below")) else 2 if name.startswith("above") else 1,
            float(number[0].rstrip(".")) if number else math.inf, name)


_DRAW = {"stat": _stat, "gauge": _gauge, "timeseries": _time_series, "state-timeline": _lanes, "status-history": _lanes,
         "table": _table, "barchart": _bar_chart}
