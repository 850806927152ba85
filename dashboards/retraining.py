"""The dashboard `tidemark-retraining`: alarm, launch, verdict and promotion on one time axis.

The story of a retraining is four families of series; here they share one time line, so that one sees which alarm asked
for which launch, how long it trained, what the verdict was and when the new reference took over. Beside it stand what
is left of the budget, why there was no launch, and the champion against the challenger. Neighbours: `panels`, `model`
(what moved).
"""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as dm

from dashboards import panels as p
from monitor import metrics


def _now() -> p.Row:
    ended = p.select(metrics.LAUNCHES, model="~$model", outcome="~failed|timed_out")
    return p.Row(1, "Now", [(5, [
        (5, p.number(2, "Under way", "Launches between the decision and the verdict.",
                     p.launches_in(p.UNDER_WAY, model="~$model"), steps=p.NEUTRAL)),
        (5, p.number(3, "Waiting for approval", "Proposed launches: `tidemark triggers approve` or `reject` answers them.",
                     p.launches_in("proposed", model="~$model"), steps=((None, "green"), (1, "yellow")))),
        (5, p.number(4, "Failed or timed out", "Launches that ended without a model, in the time shown.",
                     f"round(sum(increase({ended}[$__range]))) or vector(0)", steps=p.ANY_IS_BAD)),
        (9, p.number(5, "Budget left", "Launches that `retrain.max_per_week` still allows in the running week, by model.",
                     f"min by (model) ({p.select(metrics.RETRAIN_BUDGET, model='~$model')})", legend="{{model}}",
                     steps=((None, "orange"), (1, "green")))),
    ])])


def _story() -> p.Row:
    queries = [
        p.Query(p.state_number("model, version, segment", model="~$model"), "{{model}} {{version}} {{segment}}: state"),
        p.Query(p.launch_number("model, launcher", model="~$model"), "{{model}}: launch by {{launcher}}"),
        p.Query(f"{p.IN_USE} * max by (model, version) ({p.select(metrics.REFERENCE_INFO, model='~$model')})",
                "{{model}}: reference {{version}}"),
    ]
    severe = p.select(metrics.SCORE, model="~$model", detector="scan_severe")
    return p.Row(10, "From the alarm to the promotion", [
        (11, [(24, p.timeline(11, "Alarm, launch, verdict, promotion", "For each model: the state of its streams, the state of "
                              "its latest launch, and the reference that it is judged by, which changes at a promotion.",
                              queries, p.story_words()))]),
        (8, [(12, p.lines(12, "Is a retraining worth it?", "The highest severe score of each model; at the dashed line it is "
                          "worth a retraining.", [p.Query(f"max by (model) ({severe})", "{{model}}")], steps=p.SEVERE)),
             (12, p.lines(13, "Alarms about drift", "Raised, made severe and cleared; only a severe one asks for a retraining.",
                          [p.Query(f"sum by (model, state) ({p.increase(metrics.ALARMS, model='~$model', kind='drift')})",
                                   "{{model}} {{state}}")], bars=True))]),
    ])


def _decisions() -> p.Row:
    held = f"max by (model, reason) ({p.select(metrics.LAUNCH_WAITING, model='~$model')} == 1)"
    left = (f"(max by (model) ({p.select(metrics.LAUNCH_WAITING_UNTIL, model='~$model')}) - on (model) "
            f"max by (model) ({p.select(metrics.WATERMARK, model='~$model')}))")
    decided = p.increase(metrics.DECISIONS, model="~$model")
    calls = p.increase(metrics.LAUNCH_CALLS_FAILED, model="~$model")
    retrying = f"max by (model, launcher) ({p.select(metrics.LAUNCH_RETRYING, model='~$model')})"
    return p.Row(30, "Decisions", [
        (8, [(10, p.rows(31, "What a launch waits for", "Models in severe drift whose launch is held back, by which limit, and "
                         "how much event time is left of it, where that is known. `tidemark explain` tells all limits.",
                         {"model": "Model", "reason": "Waits for"},
                         [p.Cell("Waits", held, mappings=p.yes_no(good=False), decimals=0),
                          p.Cell("Over in", f"{held} * on (model) group_left () {left}", "s", decimals=0)],
                         order="Model")),
             (14, p.lines(32, "Answers of the trigger", "To severe alarms, and to who asked: a launch, or no and why not. The "
                          "same answer to the same alarm is one.",
                          [p.Query(f"sum by (outcome, reason) ({decided}) > 0", "{{outcome}} {{reason}}")], bars=True))]),
        (7, [(8, p.lines(33, "Launches in a row that brought nothing", "Failed, timed out or not better; at "
                         "`retrain.useless_max` the breaker opens, and nothing is launched until a person resets it.",
                         [p.Query(f"max by (model) ({p.select(metrics.USELESS_LAUNCHES, model='~$model')})", "{{model}}")])),
             (8, p.lines(34, "GPU time left", "What `retrain.gpu_hours_per_week` leaves of the running week, where it is set; a "
                         "launch under way counts its whole deadline.",
                         [p.Query(f"min by (model) ({p.select(metrics.GPU_SECONDS_REMAINING, model='~$model')})", "{{model}}")],
                         unit="s")),
             (8, p.lines(35, "Calls that failed", "Calls to launchers, stores and promotions that failed, and, as 1, the "
                         "launches that wait to repeat one.",
                         [p.Query(f"sum by (model, launcher) ({calls})", "{{model}}: failed calls, {{launcher}}"),
                          p.Query(retrying, "{{model}}: repeating, {{launcher}}")]))]),
    ])


def _outcomes() -> p.Row:
    champion = f"max by (model, metric) ({p.select(metrics.CHAMPION_QUALITY, model='~$model')})"
    challenger = f"max by (model, metric) ({p.select(metrics.CHALLENGER_QUALITY, model='~$model')})"
    key = "model, metric"
    total = p.select(metrics.LAUNCHES, model="~$model")
    cells = [p.Cell(outcome.replace("_", " ").capitalize(),
                    f"sum by (model, launcher) ({p.select(metrics.LAUNCHES, model='~$model', outcome=outcome)})", decimals=0)
             for outcome in metrics.LAUNCH_OUTCOMES]
    cells.append(p.Cell("For", p.age(f"max by (model, launcher) ({p.select(metrics.LAUNCH_STATE_AT, model='~$model')})"), "s",
                        decimals=0))
    cells.append(p.Cell("Latest", p.launch_number("model, launcher", model="~$model"), "none", mappings=p.story_words(),
                        decimals=None))
    return p.Row(20, "Outcomes", [
        (8, [(12, p.rows(21, "Launches by outcome", "All launches that the service knows of, and the state of the latest "
                         "with the time since it came into it.",
                         {"model": "Model", "launcher": "Launcher"}, cells, order="Failed",
                         links={"Model": [("What moved", f"/d/{p.MODEL}?var-model=${{__data.fields.Model}}&"
                                           "${datasource:queryparam}&${__url_time_range}")]})),
             (12, p.lines(22, "Launches that ended", "By how they ended.",
                          [p.Query(f"sum by (outcome) (increase({total}[$__rate_interval]))", "{{outcome}}")], bars=True))]),
        (9, [(10, p.lines(23, "Champion and challenger", "Quality on the same held-back events, from the latest judged launch.",
                          [p.Query(champion, "{{model}} champion, {{metric}}"),
                           p.Query(challenger, "{{model}} challenger, {{metric}}")], least=None)),
             (7, p.lines(24, "Challenger less champion", "Above 0 is a gain for a metric of which more is better, such as "
                         "accuracy; below 0 is one for an error.",
                         [p.Query(f"{challenger} - on ({key}) {champion}", "{{model}}, {{metric}}")], least=None)),
             (7, p.lines(25, "Budget", "Launches that are left in the running week.",
                         [p.Query(f"min by (model) ({p.select(metrics.RETRAIN_BUDGET, model='~$model')})", "{{model}}")]))]),
    ])


def dashboard() -> dm.Dashboard:
    """The built dashboard."""
    promoted = f"sum by (model) (increase({p.select(metrics.LAUNCHES, model='~$model', outcome='promoted')}[2m]))"
    return p.board(
        p.RETRAINING, "tidemark / Retraining", "From the alarm to the promotion: launches, verdicts, budget, champion and "
        "challenger.", since="now-2d",
        variables=[p.model_variable(several=True)], parts=[_now(), _story(), _decisions(), _outcomes()],
        annotations=[
            p.training("model, launcher", model="~$model"),
            p.metric_annotation("Promotion", "green", promoted, "{{model}}", "promoted"),
            p.pushed_annotation("Launches", "purple", "launch"),
            p.pushed_annotation("Verdicts", "yellow", "verdict"),
            p.pushed_annotation("Promotions, with their story", "green", "promotion")])
