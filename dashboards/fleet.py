"""The dashboard `tidemark-fleet`: every model at a glance, the worst first, each name leading to its own page.

The question it answers in five seconds: is anything wrong, with which model, and is something being done about it? A
state is drawn by its place in `metrics.STATES`, so that the order of the table, the colours and the words agree with
the API. Neighbours: `panels` (what it is built of), `model` (where the links lead).
"""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as dm

from dashboards import panels as p
from monitor import metrics

_STREAM = "model, version, segment"


def _models_in(state: str) -> str:
    return f"count(max by (model) ({p.select(metrics.STATE, model='~$model', state=state)}) == 1) or vector(0)"


def _of_model(by_model: str) -> str:
    """A value per model as one per stream, so that it fits into the table's rows."""
    return f"({by_model}) * on (model) group_right () max by ({_STREAM}) ({p.select(metrics.STATE, model='~$model')})"


def _at_a_glance() -> p.Row:
    watched = p.select(metrics.STATE, model="~$model")
    numbers = [
        p.number(2, "Models watched", "Models that have been judged at least once.",
                 f"count(count by (model) ({watched})) or vector(0)", steps=p.NEUTRAL),
        p.number(3, "In drift", "Models with a severe alarm: a column moved further than `retrain.above`, which is worth a "
                 "retraining.", _models_in("drift"), steps=p.ANY_IS_BAD),
        p.number(4, "With a warning", "Models with an alarm: a column moved further than `alarm.ignore_below`.",
                 _models_in("warning"), steps=p.ANY_IS_AN_ALARM),
        p.number(5, "Cannot be judged", "Models whose windows hold too few events, or whose reference is too small or too "
                 "dependent: quiet here means nothing.", _models_in("~insufficient_data|reference_inadequate"),
                 steps=((None, "green"), (1, "purple"))),
        p.number(6, "Retrainings under way", "Launches between the decision and the verdict.",
                 p.launches_in(p.UNDER_WAY, model="~$model"), steps=p.NEUTRAL),
        p.number(7, "Services ready", "Services that have loaded their state and read their source, of those that are scraped.",
                 f"min({p.select(metrics.READY)})", unit="none", mappings=p.yes_no("all ready", "not ready"),
                 steps=((None, "red"), (1, "green"))),
    ]
    return p.Row(1, "At a glance", [(4, [(4, panel) for panel in numbers])])


def _table() -> p.Row:
    score = p.select(metrics.SCORE, model="~$model", detector="scan")
    severe = p.select(metrics.SCORE, model="~$model", detector="scan_severe")
    drifting = p.select(metrics.ALARM_SINCE, model="~$model", kind="drift", state="raised")
    broken = p.select(metrics.ALARM_OPEN, model="~$model", kind="quality", state="raised")
    cells = [
        p.Cell("State", p.state_number(_STREAM, model="~$model"), "none", mappings=p.state_words(), decimals=None),
        p.Cell("Score", f"max by ({_STREAM}) ({score})", steps=p.ALARM),
        p.Cell("Severe score", f"max by ({_STREAM}) ({severe})", steps=p.SEVERE),
        p.Cell("Largest effect", f"max by ({_STREAM}) ({p.select(metrics.EFFECT, model='~$model')})"),
        p.Cell("Columns in alarm", f"count by ({_STREAM}) ({score} >= 1)", decimals=0),
        p.Cell("Drifting since", p.age(f"min by ({_STREAM}) ({drifting})"), "s", decimals=0),
        p.Cell("Data alarms", f"sum by ({_STREAM}) ({broken})", steps=p.ANY_IS_AN_ALARM, decimals=0),
        p.Cell("Events per second", _of_model(
            f"sum by (model) ({p.rate(metrics.EVENTS, model='~$model', outcome='counted')})")),
        p.Cell("Last judged", _of_model(p.age(f"max by (model) ({p.select(metrics.LAST_EVALUATION, model='~$model')})")), "s",
               decimals=0),
    ]
    to_model = f"/d/{p.MODEL}?var-model=${{__data.fields.Model}}&${{datasource:queryparam}}&${{__url_time_range}}"
    to_retraining = f"/d/{p.RETRAINING}?var-model=${{__data.fields.Model}}&${{datasource:queryparam}}&${{__url_time_range}}"
    panel = p.rows(
        11, "Models, the worst first",
        "One line per model, version and segment. A score of 1 is an alarm, a severe score of 1 is worth a retraining; "
        "effects are reference standard deviations. Click a model for its page.",
        {"model": "Model", "version": "Version", "segment": "Segment"}, cells, order="State",
        links={"Model": [("What moved", to_model), ("What was done about it", to_retraining)]})
    return p.Row(10, "Models", [(10, [(24, panel)])])


def _over_time() -> p.Row:
    score = p.select(metrics.SCORE, model="~$model", detector="scan")
    legend = "{{model}} {{version}} {{segment}}"
    return p.Row(20, "Over time", [
        (8, [(24, p.timeline(21, "State", "State of each stream: when it began to drift, and for how long.",
                             [p.Query(p.state_number(_STREAM, model="~$model"), legend)], p.state_words()))]),
        (9, [(12, p.heat_map(22, "Highest score of each model", "The highest score of any column; orange from 1 on, which is "
                             "an alarm.", p.Query(f"max by (model) ({score})", "{{model}}"), steps=p.ALARM)),
             (12, p.lines(23, "Highest score of each model", "The same as lines: how fast it rose. The dashed line is an alarm.",
                          [p.Query(f"max by (model) ({score})", "{{model}}")], steps=p.ALARM))]),
        (8, [(12, p.lines(24, "Events", "Events that were counted, per second.",
                          [p.Query(f"sum by (model) ({p.rate(metrics.EVENTS, model='~$model', outcome='counted')})",
                                   "{{model}}")], unit="cps", stacked=True)),
             (12, p.lines(25, "Alarms", "Alarms raised, made severe and cleared, by model.",
                          [p.Query(f"sum by (model, state) ({p.increase(metrics.ALARMS, model='~$model')})",
                                   "{{model}} {{state}}")], bars=True))]),
    ])


def dashboard() -> dm.Dashboard:
    """The built dashboard."""
    return p.board(
        p.FLEET, "tidemark / Fleet", "Every watched model at a glance, the worst first.",
        variables=[p.model_variable(several=True)], parts=[_at_a_glance(), _table(), _over_time()],
        annotations=[
            p.metric_annotation("Drift", "red", f"max by ({_STREAM}) ({p.select(metrics.STATE, model='~$model', state='drift')})",
                                "{{model}} {{version}}", "severe alarm of segment {{segment}}"),
            p.pushed_annotation("Promotions", "green", "promotion")])
