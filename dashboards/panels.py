"""What the four dashboards are built of: queries that only the catalogue's metrics can make, panels, rows, one frame.

`select` is the only way to write a metric into an expression: it takes the metric from `monitor.metrics` and refuses a
label that the metric does not have, so that a dashboard which names something that does not exist cannot be built.
Every panel has an id of its own that never changes (alerts link to it), a title, a description for somebody who sees it
for the first time, and a unit. Colours mean the same everywhere: orange is an alarm, red is one that is worth a
retraining, purple is what cannot be judged, grey is what is not known yet.

`grafana_foundation_sdk` is needed to build, not to run: what is built is checked in under `generated/`. Its layout is
left aside, because it lets rows overflow; `Row` places panels on the grid of 24 and insists that they fill it.
Neighbours: `fleet`, `model`, `retraining`, `service` (the dashboards), `publish` (what is checked in).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import barchart, gauge, stat, statetimeline, statushistory, table, timeseries
from grafana_foundation_sdk.builders import common as cb
from grafana_foundation_sdk.builders import dashboard as db
from grafana_foundation_sdk.builders import prometheus as pb
from grafana_foundation_sdk.models import common as cm
from grafana_foundation_sdk.models import dashboard as dm
from grafana_foundation_sdk.models import prometheus as pm

from monitor import metrics
from monitor.metrics import LAUNCH_STATES, STATES, Metric

Panel = (barchart.Panel | gauge.Panel | stat.Panel | statetimeline.Panel | statushistory.Panel | table.Panel
         | timeseries.Panel)
P = TypeVar("P", barchart.Panel, gauge.Panel, stat.Panel, statetimeline.Panel, statushistory.Panel, table.Panel,
            timeseries.Panel)

DATASOURCE = cm.DataSourceRef(type_val="prometheus", uid="${datasource}")
#: The uids of the four, which links, alerts and bookmarks name: they never change.
FLEET, MODEL, RETRAINING, SERVICE = "tidemark-fleet", "tidemark-model", "tidemark-retraining", "tidemark-service"
TAG = "tidemark"
#: What stands for the service's address until somebody says it.
SERVICE_ADDRESS = "https://tidemark.example"
#: Label that Prometheus gives every series; our queries all ask for it, so that two installations can share a server.
JOB = "job"

#: A state's place in `metrics.STATES` is the number that it is drawn by, and the order in which "worst first" sorts.
STATE_COLOURS: Mapping[str, str] = {
    "learning": "light-blue", "insufficient_data": "text", "reference_inadequate": "purple", "quiet": "green",
    "warning": "orange", "drift": "red",
}
#: States of a launch are drawn beside states of a stream, so their numbers begin after those.
LAUNCH_BASE = 10
LAUNCH_COLOURS: Mapping[str, str] = {
    "proposed": "yellow", "approved": "light-blue", "submitted": "light-blue", "running": "blue", "succeeded": "light-green",
    "failed": "red", "timed_out": "dark-red", "judged": "super-light-green", "promoted": "green", "refused": "orange",
}
#: States of a launch between the decision and the verdict, as alternatives of a regular expression.
UNDER_WAY = "|".join(state for state in LAUNCH_STATES if state not in metrics.LAUNCH_OUTCOMES)
#: Number of a reference that is in use, beside the two above.
IN_USE = 30

Steps = Sequence[tuple[float | None, str]]
#: The scan is scaled so that it alarms at 1.
ALARM: Steps = ((None, "green"), (1, "orange"))
SEVERE: Steps = ((None, "green"), (1, "red"))
PLAIN: Steps = ((None, "green"),)
ANY_IS_BAD: Steps = ((None, "green"), (1, "red"))
ANY_IS_AN_ALARM: Steps = ((None, "green"), (1, "orange"))
NEUTRAL: Steps = ((None, "blue"),)


# ---- queries ----------------------------------------------------------------------------------------------------------

def select(metric: Metric, part: str = "", /, **matchers: str) -> str:
    """An instant vector selector of a catalogue metric; a value that begins with `~` is a regular expression.

    part : `_bucket`, `_sum` or `_count` of a histogram; ValueError where the metric has no such label or part

    >>> select(metrics.SCORE, model="$model", detector="~scan.*")
    'tidemark_score{job=~"$job",model="$model",detector=~"scan.*"}'
    """
    if unknown := matchers.keys() - set(metric.labels):
        raise ValueError(f"{metric.name}: expected labels of {sorted(metric.labels)}, got {sorted(unknown)}")
    if part and (metric.kind != "histogram" or part not in ("_bucket", "_sum", "_count")):
        raise ValueError(f"{metric.name}: expected a histogram's part, got {part!r} of a {metric.kind}")
    texts = [f'{JOB}=~"$job"', *(f'{label}=~"{value[1:]}"' if value.startswith("~") else f'{label}="{value}"'
                                for label, value in matchers.items())]
    return f"{metric.name}{part}{{{','.join(texts)}}}"


def rate(metric: Metric, part: str = "", /, **matchers: str) -> str:
    """Per second, over the interval that suits the panel's resolution."""
    return f"rate({select(metric, part, **matchers)}[$__rate_interval])"


def increase(metric: Metric, /, **matchers: str) -> str:
    """How many more, over the interval that suits the panel's resolution."""
    return f"increase({select(metric, **matchers)}[$__rate_interval])"


def age(vector: str) -> str:
    """Seconds since the times that a vector holds."""
    return f"time() - {vector}"


def state_number(by: str, **matchers: str) -> str:
    """The state of each stream as its place in `metrics.STATES`."""
    return f"max by ({by}) (" + " or ".join(
        f"{place} * {select(metrics.STATE, **matchers, state=state)}" for place, state in enumerate(STATES)) + ")"


def launch_number(by: str, **matchers: str) -> str:
    """The state of each model's latest launch as its place in `metrics.LAUNCH_STATES`, from LAUNCH_BASE; none before one."""
    return f"max by ({by}) (" + " or ".join(
        f"{LAUNCH_BASE + place} * ({select(metrics.LAUNCH_STATE, **matchers, state=state)} == 1)"
        for place, state in enumerate(LAUNCH_STATES)) + ")"


def launches_in(states: str, **matchers: str) -> str:
    """How many models' latest launch is in these states (alternatives of a regular expression); 0 where there is none."""
    return f"sum(max by (model, launcher) ({select(metrics.LAUNCH_STATE, **matchers, state='~' + states)})) or vector(0)"


def highest_in_range(count: int, vector: str) -> str:
    """The series of a selector that were highest at any time of what is looked at: the same ones from left to right."""
    return f"{vector} and topk({count}, max_over_time({vector}[$__range] @ end()))"


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel; `legend` names its series, `table` asks for the last value as a table's rows."""

    expr: str
    legend: str = ""
    table: bool = False
    instant: bool = False


def _target(query: Query, ref: str) -> pb.Dataquery:
    target = pb.Dataquery().datasource(DATASOURCE).expr(query.expr).ref_id(ref)
    if query.table:
        return target.instant().format(pm.PromQueryFormat.TABLE)
    target = target.instant() if query.instant else target.range()
    return target.format(pm.PromQueryFormat.TIME_SERIES).legend_format(query.legend or "__auto")


# ---- panels -----------------------------------------------------------------------------------------------------------

def _panel(panel: P, number: int, title: str, description: str, unit: str, queries: Sequence[Query], steps: Steps) -> P:
    """What all panels have."""
    panel = panel.id(number).title(title).description(description).datasource(DATASOURCE).unit(unit).thresholds(
        thresholds(steps))
    for place, query in enumerate(queries):
        panel = panel.with_target(_target(query, chr(ord("A") + place)))
    return panel


def thresholds(steps: Steps) -> db.ThresholdsConfig:
    """Colours from a value on; the first has no value."""
    return db.ThresholdsConfig().mode(dm.ThresholdsMode.ABSOLUTE).steps(
        [dm.Threshold(value=value, color=colour) for value, colour in steps])


def number(id: int, title: str, description: str, expr: str, *, unit: str = "short", steps: Steps = PLAIN,
           none: str = "none", legend: str = "", mappings: Sequence[dm.ValueMap] = ()) -> stat.Panel:
    """One number, large; of several series the legend names each."""
    panel = _panel(stat.Panel(), id, title, description, unit, [Query(expr, legend, instant=True)], steps)
    return (panel.reduce_options(cb.ReduceDataOptions().calcs(["lastNotNull"])).graph_mode(cm.BigValueGraphMode.NONE)
            .color_mode(cm.BigValueColorMode.BACKGROUND_SOLID if steps is not NEUTRAL else cm.BigValueColorMode.VALUE)
            .no_value(none).mappings(list(mappings)))


def lines(id: int, title: str, description: str, queries: Sequence[Query], *, unit: str = "short", steps: Steps = PLAIN,
          label: str = "", least: float | None = 0, most: float | None = None, bars: bool = False,
          stacked: bool = False) -> timeseries.Panel:
    """Values over time; where `steps` has more than a base colour, each step is a dashed line."""
    panel = _panel(timeseries.Panel(), id, title, description, unit, queries, steps)
    panel = (panel.color_scheme(db.FieldColor().mode(dm.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
             .legend(cb.VizLegendOptions().show_legend(True).display_mode(cm.LegendDisplayMode.LIST)
                     .placement(cm.LegendPlacement.BOTTOM).calcs([]))
             .tooltip(cb.VizTooltipOptions().mode(cm.TooltipDisplayMode.MULTI).sort(cm.SortOrder.DESCENDING))
             .draw_style(cm.GraphDrawStyle.BARS if bars else cm.GraphDrawStyle.LINE).line_width(1)
             .fill_opacity(60 if bars else 25 if stacked else 0).show_points(cm.VisibilityMode.NEVER).span_nulls(False))
    if label:
        panel = panel.axis_label(label)
    if least is not None:
        panel = panel.min(least)
    if most is not None:
        panel = panel.max(most)
    if stacked:
        panel = panel.stacking(cb.StackingConfig().mode(cm.StackingMode.NORMAL).group("A"))
    if len(steps) > 1:
        panel = panel.thresholds_style(cb.GraphThresholdsStyleConfig().mode(cm.GraphThresholdsStyleMode.DASHED))
    return panel


def timeline(id: int, title: str, description: str, queries: Sequence[Query],
             mappings: Sequence[dm.ValueMap]) -> statetimeline.Panel:
    """States over time, one bar per series."""
    panel = _panel(statetimeline.Panel(), id, title, description, "none", queries, PLAIN)
    return (panel.mappings(list(mappings)).merge_values(True).show_value(cm.VisibilityMode.AUTO).row_height(0.8)
            .fill_opacity(80).line_width(0).align_value(_left()).legend(_no_legend()).tooltip(_tooltip()))


def heat_map(id: int, title: str, description: str, query: Query, *, unit: str = "short", steps: Steps,
             mappings: Sequence[dm.ValueMap] = ()) -> statushistory.Panel:
    """One row per series, time from left to right, the colour by thresholds."""
    panel = _panel(statushistory.Panel(), id, title, description, unit, [query], steps)
    return (panel.mappings(list(mappings)).show_value(cm.VisibilityMode.NEVER).row_height(0.9).col_width(1).line_width(0)
            .fill_opacity(85).max_data_points(120).legend(_no_legend()).tooltip(_tooltip())
            .color_scheme(db.FieldColor().mode(dm.FieldColorModeId.THRESHOLDS)))


@dataclass(frozen=True, slots=True)
class Cell:
    """How a table shows one query's value: under which head, in which unit, coloured by what."""

    head: str
    query: str
    unit: str = "short"
    steps: Steps | None = None
    mappings: Sequence[dm.ValueMap] = ()
    decimals: int | None = 2


def rows(id: int, title: str, description: str, keys: Mapping[str, str], cells: Sequence[Cell], *, order: str,
         links: Mapping[str, Sequence[tuple[str, str]]] | None = None, last: Mapping[str, str] | None = None) -> table.Panel:
    """A table: the labels `keys` (label -> head), then one column per cell, highest `order` first, then the labels `last`.

    links : head -> (title, address) that its cells lead to
    """
    last = last or {}
    panel = _panel(table.Panel(), id, title, description, "short",
                   [Query(cell.query, table=True) for cell in cells], PLAIN)
    values = [f"Value #{chr(ord('A') + place)}" for place in range(len(cells))] if len(cells) > 1 else ["Value"]
    panel = panel.with_transformation(dm.DataTransformerConfig(id_val="merge", options={}))
    panel = panel.with_transformation(dm.DataTransformerConfig(id_val="organize", options={
        "excludeByName": {"Time": True},
        "indexByName": {name: place for place, name in enumerate([*keys, *values, *last])},
        "renameByName": {**keys, **last, **{value: cell.head for value, cell in zip(values, cells, strict=True)}},
    }))
    for cell in cells:
        panel = panel.override_by_name(cell.head, _cell_properties(cell))
    for head, targets in (links or {}).items():
        panel = panel.override_by_name(head, [dm.DynamicConfigValue("links", [
            {"title": text, "url": url} for text, url in targets])])
    return panel.sort_by([cb.TableSortByFieldState().display_name(order).desc(True)]).cell_height(
        cm.TableCellHeight.SM).show_header(True)


def _cell_properties(cell: Cell) -> list[dm.DynamicConfigValue]:
    properties = [dm.DynamicConfigValue("unit", cell.unit)]
    if cell.decimals is not None:
        properties.append(dm.DynamicConfigValue("decimals", cell.decimals))
    if cell.mappings:
        properties.append(dm.DynamicConfigValue("mappings", list(cell.mappings)))
    if cell.steps:
        properties.append(dm.DynamicConfigValue("thresholds", {
            "mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in cell.steps]}))
    if cell.steps or cell.mappings:
        properties.append(dm.DynamicConfigValue("custom.cellOptions", {"type": "color-background", "mode": "basic"}))
    return properties


def bars_by_bin(id: int, title: str, description: str, queries: Mapping[str, str], key: str) -> barchart.Panel:
    """Bars side by side over the values of the label `key`, one series per query (name -> expression)."""
    panel = _panel(barchart.Panel(), id, title, description, "percentunit",
                   [Query(expr, table=True) for expr in queries.values()], PLAIN)
    renamed = {f"Value #{chr(ord('A') + place)}": name for place, name in enumerate(queries)}
    panel = panel.with_transformation(dm.DataTransformerConfig(id_val="joinByField", options={"byField": key, "mode": "outer"}))
    panel = panel.with_transformation(dm.DataTransformerConfig(id_val="filterFieldsByName", options={
        "include": {"names": [key, *renamed]}}))
    panel = panel.with_transformation(dm.DataTransformerConfig(id_val="organize", options={
        "excludeByName": {}, "indexByName": {}, "renameByName": renamed}))
    return (panel.x_field(key).min(0).group_width(0.8).bar_width(0.95).fill_opacity(70).x_tick_label_rotation(-45)
            .x_tick_label_max_length(20).show_value(cm.VisibilityMode.NEVER)
            .color_scheme(db.FieldColor().mode(dm.FieldColorModeId.PALETTE_CLASSIC))
            .tooltip(cb.VizTooltipOptions().mode(cm.TooltipDisplayMode.MULTI))
            .legend(cb.VizLegendOptions().show_legend(True).display_mode(cm.LegendDisplayMode.LIST)
                    .placement(cm.LegendPlacement.BOTTOM).calcs([])))


def meter(id: int, title: str, description: str, expr: str, *, unit: str = "percentunit", steps: Steps) -> gauge.Panel:
    """How much of a bound is used, 0 to 1."""
    panel = _panel(gauge.Panel(), id, title, description, unit, [Query(expr, instant=True)], steps)
    return panel.min(0).max(1).reduce_options(cb.ReduceDataOptions().calcs(["lastNotNull"]))


def _left() -> cm.TimelineValueAlignment:
    return cm.TimelineValueAlignment.LEFT


def _no_legend() -> cb.VizLegendOptions:
    return (cb.VizLegendOptions().show_legend(False).display_mode(cm.LegendDisplayMode.LIST)
            .placement(cm.LegendPlacement.BOTTOM).calcs([]))


def _tooltip() -> cb.VizTooltipOptions:
    return cb.VizTooltipOptions().mode(cm.TooltipDisplayMode.SINGLE)


# ---- words for numbers ------------------------------------------------------------------------------------------------

def _words(texts: Sequence[tuple[int, str, str]]) -> list[dm.ValueMap]:
    return [dm.ValueMap(options={str(value): dm.ValueMappingResult(text=text.replace("_", " "), color=colour, index=index)
                                 for index, (value, text, colour) in enumerate(texts)})]


def state_words() -> list[dm.ValueMap]:
    """The names and colours of the states of a stream."""
    return _words([(place, state, STATE_COLOURS[state]) for place, state in enumerate(STATES)])


def story_words() -> list[dm.ValueMap]:
    """States of streams, states of launches and references in use, as they stand on one time axis."""
    return _words([*((place, state, STATE_COLOURS[state]) for place, state in enumerate(STATES)),
                   *((LAUNCH_BASE + place, state, LAUNCH_COLOURS[state]) for place, state in enumerate(LAUNCH_STATES)),
                   (IN_USE, "in use", "blue")])


def yes_no(yes: str = "yes", no: str = "no", *, good: bool = True) -> list[dm.ValueMap]:
    """1 and 0 in words; `good` says which of them is green."""
    return _words([(1, yes, "green" if good else "red"), (0, no, "red" if good else "green")])


# ---- the frame --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Row:
    """A headed part of a dashboard: lines of panels with their widths, which fill the 24 places of the grid."""

    id: int
    title: str
    lines: Sequence[tuple[int, Sequence[tuple[int, Panel]]]]    # height, then (width, panel) from left to right


def variable(name: str, label: str, description: str, metric: Metric, of: str, *, several: bool = True, pattern: str = "",
             **matchers: str) -> db.QueryVariable:
    """A variable whose values are those of a label that there are now; `pattern` keeps those that match."""
    if of != JOB and of not in metric.labels:
        raise ValueError(f"{metric.name}: expected one of the labels {sorted(metric.labels)}, got {of!r}")
    if name == JOB:
        query = f"label_values({metric.name}, {of})"
    else:
        query = f"label_values({select(metric, **matchers)}, {of})"
    made = (db.QueryVariable(name).label(label).description(description).datasource(DATASOURCE).query(query)
            .refresh(dm.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(dm.VariableSort.ALPHABETICAL_ASC).multi(several))
    if pattern:
        made = made.regex(pattern)
    return made.include_all(True).all_value(".+") if several else made.include_all(False)


def service_address() -> db.TextBoxVariable:
    """The variable `service`: where people reach the service; `tidemark dashboards push` writes it into the dashboard."""
    return (db.TextBoxVariable("service").label("Service address").description("Where people reach tidemark: for reports.")
            .default_value(SERVICE_ADDRESS))


def model_variable(*, several: bool) -> db.QueryVariable:
    """The variable `model`: one where a page is about one, several elsewhere."""
    return variable("model", "Model", "Which models are shown.", metrics.STATE, "model", several=several)


def metric_annotation(name: str, colour: str, expr: str, title: str, text: str) -> db.AnnotationQuery:
    """Marks made of a metric: each run of values above 0 is a region.

    The query stands there twice, because Grafana 11 reads it beside the target and Grafana 12 in it.
    """
    return (db.AnnotationQuery().name(name).datasource(DATASOURCE).enable(True).hide(False).icon_color(colour)
            .expr(expr).step("60s").target(pb.Dataquery().expr(expr).interval("60s").ref_id("Anno"))
            .title_format(title).text_format(text))


def training(by: str, **matchers: str) -> db.AnnotationQuery:
    """Marks the times at which a training ran."""
    return metric_annotation("Training", "blue", f"max by ({by}) ({select(metrics.LAUNCH_STATE, **matchers, state='running')})",
                             "training", "by {{launcher}}")


def pushed_annotation(name: str, colour: str, *tags: str) -> db.AnnotationQuery:
    """Marks that `tidemark dashboards push` has written, with the whole story in their text."""
    target = db.AnnotationTarget().type("tags").tags([TAG, *tags]).match_any(False).limit(100)
    return (db.AnnotationQuery().name(name).datasource(cm.DataSourceRef(type_val="grafana", uid="-- Grafana --"))
            .enable(True).hide(False).icon_color(colour)
            .target(target))                        # type: ignore[arg-type]    # its own builder, not a query's


def board(uid: str, title: str, description: str, *, variables: Sequence[db.QueryVariable | db.TextBoxVariable],
          annotations: Sequence[db.AnnotationQuery], parts: Sequence[Row], since: str = "now-6h") -> dm.Dashboard:
    """The frame that all dashboards have: variables `datasource` and `job`, links to one another, read-only, laid out.

    Raises ValueError where a line does not fill the width or two panels have one id.
    """
    made = (db.Dashboard(title).uid(uid).description(description).tags([TAG]).readonly().refresh("30s").time(since, "now")
            .timezone("browser").tooltip(dm.DashboardCursorSync.CROSSHAIR)
            .link(db.DashboardLink("tidemark").type(dm.DashboardLinkType.DASHBOARDS).tags([TAG]).include_vars(True)
                  .keep_time(True).as_dropdown(False).target_blank(False).icon("external link").tooltip("").url(""))
            .with_variable(db.DatasourceVariable("datasource").label("Data source").type("prometheus"))
            .with_variable(variable(JOB, "Job", "Scrape jobs of tidemark.", metrics.BUILD_INFO, JOB)))
    for one in variables:
        made = made.with_variable(one)
    for annotation in annotations:
        made = made.annotation(annotation)
    dashboard = made.build()
    dashboard.panels = _laid_out(parts)
    ids = [panel.id_val for panel in dashboard.panels]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{uid}: expected each panel id once, got {sorted(map(str, ids))}")
    return dashboard


def _laid_out(parts: Sequence[Row]) -> list[dm.Panel | dm.RowPanel]:
    placed: list[dm.Panel | dm.RowPanel] = []
    y = 0
    for part in parts:
        placed.append(db.Row(part.title).id(part.id).collapsed(False).grid_pos(dm.GridPos(h=1, w=24, x=0, y=y)).build())
        y += 1
        for height, line in part.lines:
            if sum(width for width, _ in line) != 24:
                raise ValueError(f"row {part.title!r}: expected widths that add up to 24, got {[w for w, _ in line]}")
            x = 0
            for width, panel in line:
                placed.append(panel.grid_pos(dm.GridPos(h=height, w=width, x=x, y=y)).build())
                x += width
            y += height
    return placed
