"""The dashboard `tidemark-service`: is tidemark itself well?

Whether it keeps up (lag, watermark, age of the checkpoint), what it throws away and why (refused, late, lost, dead
letters), what judging costs, and how near it is to its own limits (memory, series). The families `process_*` come from
the client library and carry the names that every other program uses: they are kept to tidemark's own processes by
joining them with `tidemark_build_info`. Neighbours: `panels` (what it is built of).
"""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as dm

from dashboards import panels as p
from dashboards.rules_alerts import CHECKPOINT_SECONDS_MAX, LAG_EVENTS_MIN, LATE_SHARE_MAX, REFUSED_SHARE_MAX
from monitor import metrics

_BUILD = p.select(metrics.BUILD_INFO)

#: Where the alerts fire, the panels turn to the colour of the alert's severity.
CHECKPOINT: p.Steps = ((None, "green"), (CHECKPOINT_SECONDS_MAX, "red"))
REFUSED: p.Steps = ((None, "green"), (REFUSED_SHARE_MAX, "orange"))
LAG: p.Steps = ((None, "green"), (LAG_EVENTS_MIN, "orange"))
LATE: p.Steps = ((None, "green"), (LATE_SHARE_MAX, "orange"))
#: Share of `limits.series` at which the budget is nearly spent.
SERIES_NEAR = 0.9


def _process(name: str, of: str = "{}") -> str:
    """A family of the client library, of tidemark's processes only; `of` is what is asked of it."""
    return of.format(f'{name}{{job=~"$job"}}') + f" and on (job, instance) {_BUILD}"


def _health() -> p.Row:
    checkpoint = p.age(f"min({p.select(metrics.CHECKPOINT)})")
    refused = f"sum({p.rate(metrics.EVENTS, model='~$model', outcome='refused')})"
    share = f"{refused} / sum({p.rate(metrics.EVENTS, model='~$model')})"
    return p.Row(1, "Health", [(4, [
        (3, p.number(2, "Ready", "Whether state is loaded and the source assigned; the same answer as /-/ready.",
                     f"min({p.select(metrics.READY)})", unit="none", steps=((None, "red"), (1, "green")),
                     mappings=p.yes_no("ready", "not ready"), none="down")),
        (3, p.number(8, "Source", "Whether the brokers can be read; while they cannot, the log says why.",
                     f"min({p.select(metrics.SOURCE)})", unit="none", steps=((None, "red"), (1, "green")),
                     mappings=p.yes_no("read", "away"), none="down")),
        (4, p.number(3, "Lag", "Records that were not read yet, all partitions together.",
                     f"sum({p.select(metrics.LAG)}) or vector(0)", steps=LAG)),
        (4, p.number(4, "Age of the checkpoint", "Time since state and offsets were last stored together.", checkpoint,
                     unit="s", steps=CHECKPOINT)),
        (4, p.number(5, "Refused", "Share of the records that could not be used.", share, unit="percentunit",
                     steps=REFUSED)),
        (4, p.meter(6, "Series budget", "Series shown, of `limits.series`; beyond it columns are folded into one.",
                    f"max({p.select(metrics.SERIES)} / {p.select(metrics.SERIES_LIMIT)})",
                    steps=((None, "green"), (SERIES_NEAR, "orange"), (1, "red")))),
        (2, p.number(7, "Version", "Version of tidemark that runs.", f"count by (version) ({_BUILD})", unit="none",
                     legend="{{version}}", steps=p.NEUTRAL)),
    ])])


def _flow() -> p.Row:
    thrown_away = p.increase(metrics.EVENTS, model="~$model", outcome="~refused|lost")
    late = f"sum by (model) ({p.rate(metrics.LATE_EVENTS, model='~$model')})"
    counted = f"sum by (model) ({p.rate(metrics.EVENTS, model='~$model', outcome='counted')})"
    return p.Row(10, "What comes in", [
        (8, [(12, p.lines(11, "Throughput", "Records per second by outcome; together they are all that went past.",
                          [p.Query(f"sum by (outcome) ({p.rate(metrics.EVENTS, model='~$model')})", "{{outcome}}")],
                          unit="cps", stacked=True)),
             (12, p.lines(12, "Throughput by model", "Events counted per second.",
                          [p.Query(counted, "{{model}}")], unit="cps"))]),
        (8, [(12, p.lines(13, "Lag", "Records not read yet, by partition. It falls after a burst; what grows for long is too "
                          "much traffic for one process.",
                          [p.Query(f"sum by (topic, partition) ({p.select(metrics.LAG)})", "{{topic}} {{partition}}")])),
             (12, p.lines(14, "Age of the watermark", "How far event time is behind the clock: panes close that much later.",
                          [p.Query(p.age(f"max by (model) ({p.select(metrics.WATERMARK, model='~$model')})"), "{{model}}")],
                          unit="s", least=None))]),
        (8, [(6, p.lines(15, "Refused and lost", "Records that could not be used, by reason, and those that the topic's "
                         "retention removed before they were read.",
                         [p.Query(f"sum by (outcome, reason) ({thrown_away})", "{{outcome}}: {{reason}}")], bars=True,
                         stacked=True)),
             (6, p.lines(16, "Late events", "Share of the counted events that came after their pane was judged and joined the "
                         "one that was open.", [p.Query(f"{late} / {counted}", "{{model}}")], unit="percentunit", steps=LATE)),
             (6, p.lines(18, "Events read twice", "Events that were read a second time because they held a NaN literal, which "
                         "JSON does not have; they are slow to read.",
                         [p.Query(f"sum by (model) ({p.increase(metrics.RETRIED_EVENTS, model='~$model')})", "{{model}}")],
                         bars=True)),
             (6, p.lines(17, "Dead letters", "Refused records that were set aside, and those that no longer fitted.",
                         [p.Query(f"sum by (outcome) ({p.increase(metrics.DEAD_LETTERS)})", "{{outcome}}")], bars=True))]),
    ])


def _judging() -> p.Row:
    buckets = f"sum by (le) ({p.rate(metrics.EVALUATION, '_bucket', model='~$model')})"
    reports = f"sum by (le) ({p.rate(metrics.REPORT, '_bucket', model='~$model')})"
    return p.Row(20, "Judging", [
        (8, [(12, p.lines(21, "Evaluation time", "How long judging one pane takes: half of them, and all but one in a hundred.",
                          [p.Query(f"histogram_quantile(0.5, {buckets})", "median"),
                           p.Query(f"histogram_quantile(0.99, {buckets})", "99 %")], unit="s")),
             (12, p.lines(22, "Panes judged", "Per second, by model.",
                          [p.Query(f"sum by (model) ({p.rate(metrics.EVALUATION, '_count', model='~$model')})", "{{model}}")],
                          unit="cps"))]),
        (8, [(8, p.lines(23, "Since the last judgement", "Time since a pane of each model was last judged.",
                         [p.Query(p.age(f"max by (model) ({p.select(metrics.LAST_EVALUATION, model='~$model')})"), "{{model}}")],
                         unit="s")),
             (8, p.lines(24, "Panes skipped by further detectors", "Panes that a configured detector on rows did not judge "
                         "because a newer one was there before it had begun.",
                         [p.Query(f"sum by (model, detector) ({p.increase(metrics.DETECTOR_SKIPPED, model='~$model')})",
                                  "{{model}} {{detector}}")], bars=True)),
             (8, p.lines(25, "Failures of further detectors", "Times that a configured detector failed on a column; the log "
                         "has the first of each kind.",
                         [p.Query(f"sum by (model, detector) ({p.increase(metrics.DETECTOR_FAILURES, model='~$model')})",
                                  "{{model}} {{detector}}")], bars=True))]),
        (8, [(12, p.lines(26, "Reports of alarms", "Reports by how they ended: with evidently's half (made), from counts alone "
                          "(plain), failed, or dropped because a newer one took their place.",
                          [p.Query(f"sum by (outcome) ({p.increase(metrics.REPORTS, model='~$model')})", "{{outcome}}")],
                          bars=True, stacked=True)),
             (12, p.lines(27, "Time to make a report", "How long evidently's half takes, in a process of its own: half of them, "
                          "and all but one in ten.",
                          [p.Query(f"histogram_quantile(0.5, {reports})", "median"),
                           p.Query(f"histogram_quantile(0.9, {reports})", "90 %")], unit="s"))]),
    ])


def _process_row() -> p.Row:
    return p.Row(30, "The process", [
        (8, [(8, p.lines(31, "Memory", "Resident memory of each process, against `limits.memory_mb` of the configuration.",
                         [p.Query(_process("process_resident_memory_bytes"), "{{instance}}")], unit="bytes")),
             (8, p.lines(32, "Processor", "Cores in use by each process.",
                         [p.Query(_process("process_cpu_seconds_total", "rate({}[$__rate_interval])"), "{{instance}}")])),
             (8, p.lines(33, "Age of the checkpoint", "Time since state and offsets were last stored together: what a restart "
                         "reads again.", [p.Query(p.age(p.select(metrics.CHECKPOINT)), "{{instance}}")], unit="s",
                         steps=CHECKPOINT))]),
        (8, [(8, p.lines(34, "Series", "Series shown and the most that may be.",
                         [p.Query(f"sum({p.select(metrics.SERIES)})", "shown"),
                          p.Query(f"sum({p.select(metrics.SERIES_LIMIT)})", "limits.series")])),
             (8, p.lines(35, "Hidden columns", "Columns that the limit folded into one; their scores are still computed and "
                         "still alarm.",
                         [p.Query(f"sum by (model, version) ({p.select(metrics.COLUMNS_HIDDEN, model='~$model')})",
                                  "{{model}} {{version}}")])),
             (8, p.lines(36, "Posts to Alertmanagers", "Posts of the open alerts to each Alertmanager of `alertmanager.urls`; "
                         "one that fails is tried again, and the log says why. Nothing, where Prometheus' rules give the alerts.",
                         [p.Query(f"sum by (alertmanager, outcome) ({p.increase(metrics.ALERT_POSTS)})",
                                  "{{alertmanager}} {{outcome}}")], bars=True))]),
        (8, [(12, p.lines(37, "What the loop does", "Share of the one loop's time by stage. Where waiting for records (source) "
                          "has next to none, the loop is at its limit, and the largest of the others holds the intake back.",
                          [p.Query(f"sum by (instance, stage) (rate({p.select(metrics.LOOP)}[$__rate_interval]))",
                                   "{{instance}} {{stage}}")], unit="percentunit", stacked=True)),
             (6, p.lines(38, "Captured rows that wait", "Bytes of captured rows that wait for `retrain.capture_uri`, against "
                         "`limits.capture_mb` over all models.",
                         [p.Query(p.select(metrics.CAPTURE_WAITING, model="~$model"), "{{model}}")], unit="bytes")),
             (6, p.lines(39, "Captured rows given up", "Captured rows that were dropped because their storage could not be "
                         "written for too long; the counts, and so the decisions, are not touched by it.",
                         [p.Query(f"sum by (model) ({p.increase(metrics.CAPTURE_DROPPED, model='~$model')})", "{{model}}")],
                         bars=True))]),
    ])


def dashboard() -> dm.Dashboard:
    """The built dashboard."""
    started = _process("process_start_time_seconds", "changes({}[2m])")
    return p.board(
        p.SERVICE, "tidemark / Service", "tidemark itself: throughput, lag, what is thrown away, cost, limits.",
        variables=[p.model_variable(several=True)], parts=[_health(), _flow(), _judging(), _process_row()],
        annotations=[p.metric_annotation("Start", "blue", started, "tidemark started", "{{instance}}")])
