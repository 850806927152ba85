"""The checked-in dashboards: only what the catalogue has, every part findable, the rules of Grafana's dashboard-linter.

The linter's own rules are stated here again in Python over the JSON; where they are left aside, generated/.lint gives the
reason. That Grafana's types accept the JSON and that a real Prometheus answers is in tests/integration/test_dashboards.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from monitor.metrics import CATALOGUE, FOREIGN_PREFIXES

GENERATED = Path(__file__).resolve().parents[2] / "dashboards" / "generated"
BOARDS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(GENERATED.glob("*.json"))}
LINT = yaml.safe_load((GENERATED / ".lint").read_text(encoding="utf-8"))["exclusions"]

#: What may stand in an expression besides metrics, labels and numbers.
PROMQL = {
    "by", "on", "group_left", "group_right", "or", "and", "unless", "bool", "offset", "end",
    "max", "min", "sum", "count", "topk", "round", "rate", "increase", "changes", "max_over_time", "time", "vector", "scalar",
    "histogram_quantile", "label_replace", "label_join"}
#: Labels that no exporter gives: the server adds two, the histogram format one.
ADDED = {"job", "instance"}
#: Families that no panel shows, and why.
NOT_SHOWN = {
    "tidemark_threshold": "the scan's is always 1 and drawn as the panels' own line; a detector's is on the model's page",
}
BUILT_IN = {"__range", "__interval", "__rate_interval", "__url_time_range", "__data"}


def expressions(board):
    """(where, expression) of every query: panels, variables, annotations."""
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", re.fullmatch(r"label_values\((.+), \w+\)", variable["query"])[1]
    for annotation in board["annotations"]["list"]:
        if "expr" in annotation["target"]:
            yield f"annotation {annotation['name']}", annotation["target"]["expr"]


def panels(board):
    return [panel for panel in board["panels"] if panel["type"] != "row"]


EXPRESSIONS = [pytest.param(expr, id=f"{name}: {where}") for name, board in BOARDS.items() for where, expr in expressions(board)]
PANELS = [pytest.param(board, panel, id=f"{name}: {panel['title']}") for name, board in BOARDS.items() for panel in panels(board)]


def family(name):
    """The catalogue's entry of a name in an expression; None for a name of the client library."""
    if name.startswith(FOREIGN_PREFIXES):
        return None
    if name not in CATALOGUE:
        name = re.sub("_(bucket|sum|count)$", "", name)
        assert CATALOGUE[name].kind == "histogram"
    return CATALOGUE[name]


def labels_of(name):
    metric = family(name)
    return ADDED | (set() if metric is None else set(metric.labels) | ({"le"} if metric.kind == "histogram" else set()))


def selectors(expr):
    """(metric, {label: (operator, value)}) of every selector."""
    for name, matchers in re.findall(r"\b((?:tidemark|process|python)_\w+)(?:\{([^}]*)\})?", expr):
        yield name, {label: (operator, value) for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', matchers)}


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_an_expression_names_nothing_but_promql_and_the_catalogue(expr):
    rest = re.sub(r'"[^"]*"', "", expr)
    rest = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|on|group_left|group_right) \([^)]*\)", "", rest)
    names = set(re.findall(r"[a-zA-Z_]\w*", rest)) - PROMQL
    assert {name for name in names if family(name) is None and not name.startswith(FOREIGN_PREFIXES)} == set()
    assert names == {name for name, _ in selectors(expr)}


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_every_label_of_an_expression_is_one_that_its_metrics_have(expr):
    for name, matchers in selectors(expr):
        assert set(matchers) <= labels_of(name)
    known = set().union(*(labels_of(name) for name, _ in selectors(expr)))
    known |= set(re.findall(r'"(\w+)", "(?:\$1|-)"', expr))        # labels that the expression makes
    grouped = {label for group in re.findall(r"\b(?:by|on|group_left|group_right) \(([^)]*)\)", expr)
               for label in re.findall(r"\w+", group)}
    assert grouped <= known


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_values_of_closed_lists_are_on_their_lists(expr):
    for name, matchers in selectors(expr):
        metric = family(name)
        for label, (operator, value) in matchers.items():
            if metric is None or not metric.values or label not in ("state", "of", "outcome") or "$" in value:
                continue
            asked = value.split("|") if operator == "=~" else [value]
            assert set(asked) <= set(metric.values), (name, label)


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_a_legend_names_only_labels_that_the_result_has(board, panel):
    for target in panel["targets"]:
        legend = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
        by = re.findall(r"\bby \(([^)]*)\)", target["expr"])
        everything = set().union(*(labels_of(name) for name, _ in selectors(target["expr"])))
        outermost = set(re.findall(r"\w+", by[0])) if by else everything
        assert legend <= outermost


def test_every_family_of_the_catalogue_is_shown_or_has_a_reason_not_to_be():
    used = {family(name).name for board in BOARDS.values() for _, expr in expressions(board)
            for name, _ in selectors(expr) if family(name) is not None}
    assert set(CATALOGUE) - used == set(NOT_SHOWN)


def test_there_are_four_with_the_uids_that_alerts_and_bookmarks_name():
    assert {name: board["uid"] for name, board in BOARDS.items()} == {
        name: f"tidemark-{name}" for name in ("fleet", "model", "retraining", "service")}
    for board in BOARDS.values():
        assert "id" not in board                    # else Grafana takes it for one of its own
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        assert 38 <= board["schemaVersion"] <= 42
        assert (board["refresh"], board["tags"]) == ("30s", ["tidemark"])


@pytest.mark.parametrize("name", BOARDS)
def test_panels_fill_the_grid_without_overlap(name):
    taken = {}
    for panel in BOARDS[name]["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["title"]
    rows = max(y for _, y in taken) + 1
    assert set(taken) == {(x, y) for x in range(24) for y in range(rows)}


@pytest.mark.parametrize("name", BOARDS)
def test_only_variables_that_a_dashboard_has_are_used_in_it(name):
    board = BOARDS[name]
    text = json.dumps([board["panels"], board["annotations"], board["templating"]])
    used = set(re.findall(r"\$\{?([A-Za-z_]\w*)", text))
    assert used - BUILT_IN <= {variable["name"] for variable in board["templating"]["list"]}


def test_an_annotations_query_stands_where_grafana_11_and_where_grafana_12_looks_for_it():
    for board in BOARDS.values():
        assert board["annotations"]["list"]
        for one in board["annotations"]["list"]:
            assert (one.get("expr"), one.get("step")) == (one["target"].get("expr"), one["target"].get("interval"))
            assert (one["target"]["refId"], one["enable"]) == ("Anno", True)


def test_links_lead_to_dashboards_that_exist_with_variables_that_they_have():
    boards = {board["uid"]: {variable["name"] for variable in board["templating"]["list"]} for board in BOARDS.values()}
    links = [link["url"] for board in BOARDS.values() for panel in panels(board)
             for override in panel["fieldConfig"]["overrides"] for one in override["properties"] if one["id"] == "links"
             for link in one["value"]]
    assert len(links) >= 4
    for link in links:
        if link.startswith("${service}/"):
            assert "service" in boards["tidemark-model"]
            continue
        uid, query = re.fullmatch(r"/d/([a-z-]+)\?(.*)", link).groups()
        assert set(re.findall(r"\bvar-(\w+)=", query)) | set(re.findall(r"\$\{(\w+):queryparam\}", query)) <= boards[uid]
    for board in BOARDS.values():
        assert [(link["type"], link["tags"], link["keepTime"]) for link in board["links"]] == [("dashboards", ["tidemark"], True)]


def test_the_scan_is_marked_at_its_alarm_wherever_its_score_stands_alone():
    for board in BOARDS.values():
        for panel in panels(board):
            asked = [matchers.get("detector") for target in panel["targets"] for name, matchers in selectors(target["expr"])
                     if name == "tidemark_score"]
            if asked and set(asked) <= {("=", "scan"), ("=", "scan_severe")} and panel["type"] != "table":
                steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
                assert 1 in [step["value"] for step in steps], panel["title"]


def test_a_limit_that_an_alert_has_is_the_one_at_which_the_panel_turns():
    from dashboards import rules_alerts as limits

    last = {panel["id"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"]
            for panel in panels(BOARDS["service"])}
    assert {number: last[number] for number in (3, 4, 5, 16, 33)} == {
        3: limits.LAG_EVENTS_MIN, 4: limits.CHECKPOINT_SECONDS_MAX, 5: limits.REFUSED_SHARE_MAX, 16: limits.LATE_SHARE_MAX,
        33: limits.CHECKPOINT_SECONDS_MAX}


# ---- the rules of dashboard-linter 0.2 --------------------------------------------------------------------------------

#: Units of Grafana that we use; it shows any other as a mere suffix.
UNITS = {"none", "short", "percentunit", "s", "bytes", "cps"}
NEEDS_UNIT = {"stat", "table", "timeseries", "gauge"}


def excluded(rule, board, panel=None):
    entry = LINT.get(rule)
    if entry is None:
        return False
    return not entry.get("entries") or {"dashboard": board["title"], "panel": panel and panel["title"]} in entry["entries"]


def variables(board):
    return {variable["name"]: variable for variable in board["templating"]["list"]}


@pytest.mark.parametrize("name", BOARDS)
def test_lint_the_templates(name):
    board = BOARDS[name]
    [datasource] = [one for one in board["templating"]["list"] if one["type"] == "datasource"]
    assert (datasource["name"], datasource["label"], datasource["query"]) == ("datasource", "Data source", "prometheus")
    for wanted in ("job", "instance"):
        if not excluded(f"template-{wanted}-rule", board):
            one = variables(board)[wanted]
            assert (one["type"], one["label"], one["multi"], one["allValue"]) == ("query", wanted.capitalize(), True, ".+")
    for one in board["templating"]["list"]:
        if one["type"] == "query":
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert one["refresh"] == 2              # on change of the time range
            assert one["description"]
    assert board["editable"] is False


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_lint_the_panels(board, panel):
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["title"]
    assert panel["description"].endswith(".")
    defaults = panel["fieldConfig"]["defaults"]
    if panel["type"] in NEEDS_UNIT:
        assert defaults["unit"] in UNITS
        assert defaults["unit"] != "none" or defaults.get("mappings") or panel["title"] == "Version"
    for override in panel["fieldConfig"]["overrides"]:
        assert all(one["value"] in UNITS for one in override["properties"] if one["id"] == "unit")
    assert panel["targets"]


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_lint_the_targets(board, panel):
    assert [target["refId"] for target in panel["targets"]] == [chr(ord("A") + n) for n in range(len(panel["targets"]))]
    for target in panel["targets"]:
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        expr = target["expr"]
        for name, matchers in selectors(expr):
            assert matchers["job"] == ("=~", "$job"), name
            if not excluded("target-instance-rule", board, panel):
                assert matchers["instance"] == ("=~", "$instance")
            metric = family(name)
            if (metric is not None and metric.kind == "counter") or name.endswith("_total"):
                inside = re.search(rf"\b(rate|irate|increase)\({re.escape(name)}\b", expr)
                assert inside or excluded("target-counter-agg-rule", board, panel)
        for span in re.findall(r"\b(?:rate|irate|increase)\([^\[]*\[([^]]*)\]", expr):
            assert span == "$__rate_interval" or excluded("target-rate-interval-rule", board, panel)


def test_every_exclusion_names_a_panel_that_needs_it_and_a_reason():
    titles = {(board["title"], panel["title"]) for board in BOARDS.values() for panel in panels(board)}
    for rule in LINT.values():
        assert rule["reason"]
        assert {(entry["dashboard"], entry["panel"]) for entry in rule.get("entries", [])} <= titles


# ---- what the sidecar takes -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", BOARDS)
def test_the_sidecars_config_map_holds_the_same_dashboard_below_the_limit(name):
    text = (GENERATED.parents[1] / "deploy" / "grafana" / "sidecar" / f"{name}.yaml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    assert document["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert {key: json.loads(value) for key, value in document["data"].items()} == {f"tidemark-{name}.json": BOARDS[name]}
    assert len(text.encode()) < 900_000             # of 1 MiB


def test_the_three_ways_to_install_agree_on_names():
    from monitor.commands.dashboards import DATASOURCE_UID, FOLDER_UID, NAMES, trees

    deploy = GENERATED.parents[1] / "deploy" / "grafana"
    [provider] = yaml.safe_load((deploy / "provisioning/dashboards/tidemark.yaml").read_text())["providers"]
    assert (provider["folderUid"], provider["folder"], provider["type"]) == (FOLDER_UID, "tidemark", "file")
    [datasource] = yaml.safe_load((deploy / "provisioning/datasources/tidemark.yaml").read_text())["datasources"]
    assert (datasource["uid"], datasource["type"], datasource["access"]) == (DATASOURCE_UID, "prometheus", "proxy")
    assert yaml.safe_load((deploy / "sidecar/kustomization.yaml").read_text())["resources"] == [f"{name}.yaml" for name in NAMES]
    assert trees() == BOARDS
