"""The dashboard `tidemark-model`: one model, from its state to the bins of one column.

It reads from top to bottom as the person on call asks: is it drifting and since when; which columns, how far and how
sure; how do the reference and the window of one column look; is it the data rather than the world; does it hurt? The
scan decides; what other detectors say is shown beside it and decides nothing. Bins, and therefore the variable
`column`, exist for the columns that moved most. Neighbours: `panels` (what it is built of), `fleet` (which leads here).
"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as db
from grafana_foundation_sdk.models import dashboard as dm

from dashboards import panels as p
from monitor import metrics
from monitor.metrics import Metric

_STREAM = "model, version, segment"
_SD = "reference standard deviations"


def _of(metric: Metric, **matchers: str) -> str:
    """A family of the chosen model, and of the chosen versions and segments where it has them."""
    chosen = {"model": "$model", "version": "~$version", "segment": "~$segment"}
    return p.select(metric, **{label: value for label, value in chosen.items() if label in metric.labels}, **matchers)


def _with_report(alarms: str) -> str:
    """The alarms with a label `report`: MODEL-VERSION-WORD, the word being the kind, or the cause where no column has it."""
    word = f'label_replace({alarms}, "word", "$1", "kind", "(.*)")'
    word = f'label_replace({word}, "word", "$1", "cause", "(wrong_type|volume)")'
    return f'label_join({word}, "report", "-", "model", "version", "word")'


def _state() -> p.Row:
    score, severe = _of(metrics.SCORE, detector="scan"), _of(metrics.SCORE, detector="scan_severe")
    numbers = [
        p.number(2, "State", "The worst state of the chosen streams.",
                 f"max({p.state_number(_STREAM, model='$model', version='~$version', segment='~$segment')})", unit="none",
                 mappings=p.state_words()),
        p.number(3, "Highest score", "Of any column; 1 is an alarm.", f"max({score})", steps=p.ALARM),
        p.number(4, "Highest severe score", "Of any column; 1 is worth a retraining.", f"max({severe})", steps=p.SEVERE),
        p.number(5, "Largest effect", f"How far the column that moved furthest moved, {_SD}.", f"max({_of(metrics.EFFECT)})",
                 steps=p.NEUTRAL),
        p.number(6, "Events in the window", "What distances and bins are taken from.", f"sum({_of(metrics.WINDOW_EVENTS)})",
                 steps=p.NEUTRAL),
        p.number(7, "Last judged", "Time since a pane of this model was last judged.",
                 p.age(f"max({_of(metrics.LAST_EVALUATION)})"), unit="s", steps=p.NEUTRAL),
    ]
    key = "kind, cause, state, version, report"
    cells = [
        p.Cell("Open for", p.age(f"min by ({key}) ({_with_report(_of(metrics.ALARM_SINCE))})"), "s", decimals=0),
        p.Cell("Episode", f"max by ({key}) ({_with_report(_of(metrics.ALARM_EPISODE))})", "none", decimals=0),
    ]
    alarms = p.rows(9, "Open alarms", "What is open now: drift or a fault of the data, what it rests on, since when (event "
                    "time), and the number by which its report and its launch are found. A click on the last column opens the "
                    "report, at the service address above.",
                    {"kind": "Kind", "cause": "Cause", "state": "How far", "version": "Version"}, cells, order="Open for",
                    links={"Report": [("Report", "${service}/reports/${__data.fields.Report}-${__data.fields.Episode}")]},
                    last={"report": "Report"})
    return p.Row(1, "State", [
        (4, [(4, number) for number in numbers]),
        (7, [(9, alarms),
             (15, p.timeline(8, "State over time", "State of each version and segment: since when, and for how long.",
                             [p.Query(p.state_number(_STREAM, model="$model", version="~$version", segment="~$segment"),
                                      "{{version}} {{segment}}")], p.state_words()))])])


def _movers() -> p.Row:
    score = _of(metrics.SCORE, detector="scan")
    key = "role, column"
    visible = f"max by (column) ({_of(metrics.SMALLEST_VISIBLE_SHIFT)})"
    effect = f"max by ({key}) ({_of(metrics.EFFECT)})"
    cells = [
        p.Cell("Score", f"max by ({key}) ({_of(metrics.SCORE, detector='scan')})", steps=p.ALARM),
        p.Cell("Severe score", f"max by ({key}) ({_of(metrics.SCORE, detector='scan_severe')})", steps=p.SEVERE),
        p.Cell("Effect", effect),
        p.Cell("Effect, at least", f"max by ({key}) ({_of(metrics.EFFECT_LOWER)})"),
        p.Cell("Smallest visible shift", f"0 * {effect} + on (column) group_left () {visible}"),
        p.Cell("PSI", f"max by ({key}) ({_of(metrics.SCORE, detector='psi')})", decimals=3),
        p.Cell("Jensen-Shannon", f"max by ({key}) ({_of(metrics.SCORE, detector='js')})", decimals=3),
    ]
    return p.Row(10, "What moved", [
        (12, [(24, p.heat_map(11, "Columns by time", "The score of the 25 columns that were highest in the time shown. Orange "
                              "is an alarm (1 or more), yellow is half of it.",
                              p.Query(f"max by ({key}) ({p.highest_in_range(25, score)})", "{{column}}"),
                              steps=((None, "green"), (0.5, "yellow"), (1, "orange"), (2, "red"))))]),
        (10, [(14, p.rows(12, "What moved most", f"All columns, the most evident first. Effects are {_SD}; the true one is at "
                          "least the lower end of its 95 % interval, and 0 there means that it cannot be told from no "
                          "movement. A shift smaller than the smallest visible one may go unseen.",
                          {"column": "Column", "role": "Role"}, cells, order="Score",
                          links={"Column": [("Its bins", f"/d/{p.MODEL}?var-column=${{__data.fields.Column:percentencode}}&"
                                             "${datasource:queryparam}&${model:queryparam}&${__url_time_range}")]})),
              (10, p.lines(13, "Effects", f"How far the ten columns that moved furthest moved, {_SD}.",
                           [p.Query(f"max by ({key}) ({p.highest_in_range(10, _of(metrics.EFFECT))})", "{{column}}")],
                           label="reference s.d."))]),
    ])


def _one_column() -> p.Row:
    share = {of: f"max by (bin) ({_of(metrics.BIN_SHARE, column='$column', of=of)})" for of in metrics.BIN_SHARE.values}
    both = _of(metrics.SCORE, column="$column", detector="~scan|scan_severe")
    return p.Row(20, "One column: $column", [
        (10, [(14, p.bars_by_bin(21, "Reference and window of $column", "Share of events in each bin, in the reference and in "
                                 "the window. Bins exist for the columns that moved most.", share, "bin")),
              (10, p.lines(22, "Score of $column", "The scan's scores of this column; the dashed line is an alarm.",
                           [p.Query(f"max by (detector) ({both})", "{{detector}}")], steps=p.ALARM))]),
        (9, [(12, p.lines(23, "Effect of $column", f"How far it moved, the lower end of the 95 % interval, and the smallest "
                          f"shift that can be seen, {_SD}.", [
                              p.Query(f"max({_of(metrics.EFFECT, column='$column')})", "effect"),
                              p.Query(f"max({_of(metrics.EFFECT_LOWER, column='$column')})", "effect, at least"),
                              p.Query(f"max({_of(metrics.SMALLEST_VISIBLE_SHIFT, column='$column')})", "smallest visible shift")],
                          label="reference s.d.")),
             (12, p.lines(24, "Distances of $column", "Distances between reference and window by name, each in its own unit, "
                          "and those of configured detectors. They decide nothing.",
                          [p.Query(f"max by (detector) ({_of(metrics.SCORE, column='$column', detector='~$detector')})",
                                   "{{detector}}")]))]),
    ])


def _joint_and_data() -> p.Row:
    refused = p.rate(metrics.EVENTS, model="$model", outcome="refused")
    everything = f"sum({p.rate(metrics.EVENTS, model='$model')})"
    joint = p.highest_in_range(10, _of(metrics.SCORE, role="joint", detector="scan"))
    return p.Row(30, "Columns together, and the data themselves", [
        (9, [(12, p.lines(31, "Joint drift", "Scores of what is made of several columns together: a change of how they go with "
                          "one another, which no single column shows. The dashed line is an alarm.",
                          [p.Query(f"max by (column) ({joint})", "{{column}}")], steps=p.ALARM)),
             (12, p.lines(32, "Missing and unseen values", "Share of the window's events without a value, and with a category "
                          "that the reference has never seen, of the columns that moved most.",
                          [p.Query(f"max by (column, bin) ({_of(metrics.BIN_SHARE, of='window', bin='~missing|unseen')})",
                                   "{{column}} {{bin}}")], unit="percentunit"))]),
        (8, [(8, p.lines(33, "Data alarms", "Alarms about the data (missing, unseen, out of range, refused, volume); they never "
                         "start a retraining.",
                         [p.Query(f"sum by (state) ({p.increase(metrics.ALARMS, model='$model', kind='quality')})",
                                  "{{state}}")], bars=True)),
             (8, p.lines(34, "Refused events", "Share of the records that could not be used, by reason.",
                         [p.Query(f"sum by (reason) ({refused}) / on () group_left () {everything}", "{{reason}}")],
                         unit="percentunit")),
             (8, p.lines(35, "Traffic", "Events counted per second, and those of them that came late.",
                         [p.Query(f"sum({p.rate(metrics.EVENTS, model='$model', outcome='counted')})", "counted"),
                          p.Query(f"sum({p.rate(metrics.LATE_EVENTS, model='$model')})", "late")], unit="cps"))]),
    ])


def _quality() -> p.Row:
    qualities = [p.Query(f"max by (metric) ({p.select(metric, model='$model')})", f"{who}, {{{{metric}}}}")
                 for who, metric in (("champion", metrics.CHAMPION_QUALITY), ("challenger", metrics.CHALLENGER_QUALITY))]
    corrected, null = (_of(metric, column="$column") for metric in (metrics.SCORE_CORRECTED, metrics.SCORE_NULL))
    return p.Row(40, "Quality where labels come, and further detectors", [
        (9, [(8, p.lines(41, "Errors of the model", "What configured detectors say about the model's errors, from events that "
                         "carry a label.", [p.Query(f"max by (detector) ({_of(metrics.SCORE, role='label')})", "{{detector}}")])),
             (8, p.lines(42, "Champion and challenger", "Quality on the held-back events of the latest judged launch.",
                         qualities, least=None)),
             (8, p.heat_map(43, "Verdicts of further detectors", "Whether each configured detector calls its latest pane drift. "
                            "They raise no alarm and start no retraining.",
                            p.Query(f"max by (detector, column) ({_of(metrics.DETECTOR_DRIFT)})", "{{detector}} {{column}}"),
                            unit="none", steps=p.ANY_IS_AN_ALARM, mappings=p.yes_no("drift", "quiet", good=False)))]),
        (8, [(12, p.lines(44, "Scores against their band", "Scores of configured detectors of $column, and what they reach in "
                          "5 % of windows without any drift.",
                          [p.Query(f"max by (detector) ({corrected})", "{{detector}}, corrected"),
                           p.Query(f"max by (detector) ({null})", "{{detector}}, 95 % without drift")])),
             (12, p.lines(45, "Age of further detectors' panes", "Time between the watermark and the latest pane that a "
                          "configured detector has judged: it grows where one cannot follow.",
                          [p.Query(f"scalar(max({_of(metrics.WATERMARK)})) - "
                                   f"max by (detector) ({_of(metrics.DETECTOR_PANE)})", "{{detector}}")], unit="s"))]),
    ])


def _variables() -> list[db.QueryVariable | db.TextBoxVariable]:
    return [
        p.model_variable(several=False),
        p.variable("version", "Version", "Versions of the model.", metrics.STATE, "version", model="$model"),
        p.variable("segment", "Segment", "Parts of the traffic.", metrics.STATE, "segment", model="$model"),
        p.variable("column", "Column", "The column whose bins are shown; the columns that moved most have bins.",
                   metrics.BIN_SHARE, "column", several=False, model="$model"),
        p.variable("detector", "Distances", "Distances and configured detectors.", metrics.SCORE, "detector",
                   pattern="/^(?!scan(_severe)?$)/", model="$model"),
        p.service_address(),
    ]


def dashboard() -> dm.Dashboard:
    """The built dashboard."""
    by = "version, segment, state"
    return p.board(
        p.MODEL, "tidemark / Model", "One model: its state, the columns that moved, one column's bins, the data, the quality.",
        variables=_variables(), parts=[_state(), _movers(), _one_column(), _joint_and_data(), _quality()],
        annotations=[
            p.metric_annotation("Alarm", "orange", f"max by ({by}) ({_of(metrics.STATE, state='~warning|drift')})",
                                "{{state}}", "version {{version}}, segment {{segment}}"),
            p.training("launcher", model="$model"),
            p.pushed_annotation("Story", "purple", "model:$model")])
