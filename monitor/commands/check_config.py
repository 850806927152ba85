"""`tidemark check-config -c FILE`: what a configuration will do, in sentences: budget -> threshold -> smallest visible
shift; memory; series; what is observed besides; who trains; whether reports are made. Nothing is started and nothing outside
the files is asked.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

import numpy as np

from detectors.scan import LOCATION_SHARE, Scan
from monitor.blackout import minutes
from monitor.commands.shared import counted, paragraph, print_json
from monitor.config import Config, FilePromotion, KServePromotion, Retrain, WebhookPromotion, load
from monitor.decide.plan import JOINT, Plan
from monitor.replicas import partition_of, refuse_unsupported
from monitor.reporting import why_none
from monitor.retrain.holdout import HOLDOUT_MEMORY_MAX
from monitor.sizing import MIB, memory_of, memory_warning, sizing
from monitor.watched import Watched, watched

#: Most series of a further detector's column: score, corrected score, band, verdict; and of the detector itself: pane,
#: threshold, failures, skipped.
SERIES_PER_READING, SERIES_PER_DETECTOR = 4, 4
#: Beside the models in the JSON: the memory of all of them.
MEMORY = "__memory__"
#: Columns of a further detector that are named.
NAMED = 5
#: How a further detector is computed, and what that costs.
HOW = {
    "counts": "from the counts at every pane end that is due, about a millisecond",
    "series": "value by value from the kept rows, 1-10 us each (river:KSWIN 0.3 ms)",
    "sample": "on kept rows in a thread of its own, up to seconds; a newer pane overtakes one that waits",
}
#: Series that a column of a stream takes: scores, effects, threshold, distances (docs/metrics.md has the list).
SERIES_PER_COLUMN = 12


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark check-config`."""
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Print the sentences; 0 when the configuration is sound."""
    config = load(args.config)
    if config.service.replicas is not None:
        refuse_unsupported(config)
    monitors = watched(config)
    memory, warning = sizing(config, monitors), memory_warning(config)
    if args.json:
        print_json({one.monitor.model: facts(config, one) for one in monitors} | {MEMORY: {
            "bytes": memory.bytes, "limit_bytes": memory.limit, "warning": warning,
            "terms": [asdict(term) for term in memory.terms]}})
        return 0
    for one in monitors:
        for line in sentences(config, one):
            print(paragraph(line.strip(), "  " if line.startswith(" ") else ""))
    print(paragraph(f"In all: at most {memory.bytes / MIB:,.0f} MiB of memory (limits.memory_mb {config.limits.memory_mb:,}), "
                    "which is the sum of:"))
    for term in memory.terms:
        lower = f"; lowered by {term.setting}" if term.setting else ""
        print(f"  {term.name:<32}{term.bytes / MIB:>9,.1f} MiB  {term.formula}{lower}")
    if any(one.monitor.retrain is not None for one in monitors):
        print(paragraph("Besides, while a challenger is judged: its held-back file, up to "
                        f"{HOLDOUT_MEMORY_MAX // MIB:,} MiB as columns; 100,000 rows of one number take some 10 MiB. Trainers of "
                        "the local launcher are processes of their own."))
    if warning:
        print(paragraph(f"Warning: {warning}."))
    print(paragraph(f"State in {config.service.state}, metrics on "
                    f"{'http' if config.service.tls is None else 'https'}://{config.service.listen}/metrics."))
    for line in shared(config):
        print(paragraph(line))
    if urls := config.alertmanager.urls:
        print(paragraph(f"Alerts are sent to {', '.join(urls)}, again every {config.alertmanager.resend_seconds:g} s while they "
                        "fire; let no Prometheus evaluate the rules for the same service besides."))
    return 0


def shared(config: Config) -> list[str]:
    """What several replicas share, and what each has for itself; nothing where there is one process."""
    replicas, limit = config.service.replicas, config.limits.launches
    if replicas is None:
        return []
    lines = [f"Replicas share the work by group {config.kafka.group} and the topic {replicas.topic}: any number of them counts, "
             f"at most {replicas.partitions} decide; {config.service.state} is a cache of each."]
    placed = {partition_of(monitor.model, replicas.partitions) for monitor in config.monitors if monitor.retrain is not None}
    if len(placed) > 1:
        lines.append(f"Warning: limits.launches = {limit} holds for each partition of that topic. The models that are retrained "
                     f"lie on {len(placed)} of them, so up to {limit * len(placed)} launches may be in flight in all; divide the "
                     "limit, or let the cluster's own quota bound them.")
    if any(monitor.retrain is not None and isinstance(monitor.retrain.promote, FilePromotion) for monitor in config.monitors):
        lines.append("Warning: a file is promoted by whichever replica decides about the model: its path must be the same file "
                     "for all of them.")
    return lines


def facts(config: Config, one: Watched) -> dict[str, object]:
    """The numbers of one monitor."""
    knobs, reference, plan = one.knobs(), one.reference, one.plan()
    panes = knobs.budget.panes_per_false_alarm(knobs.pane_seconds)
    scan = Scan(reference, tolerance=knobs.ignore_below, retrain_above=knobs.retrain_above, panes_per_false_alarm=panes,
                location_share=LOCATION_SHARE)
    visible = scan.smallest_visible_shift()
    worst = int(np.argmax(visible))
    return {
        "version": one.version, "columns": len(reference.columns), "rows": len(reference.rows),
        "reference_events": reference.events,
        "reference_digest": reference.digest, "reference_inadequate": reference.inadequate,
        "effective_reference_events": reference.independent_events,
        "panes_per_false_alarm": panes, "tests_per_pane": scan.tests,
        "threshold_z": scan.threshold, "threshold_z_mean": float(scan.location_threshold.min()),
        "smallest_visible_shift_median": float(np.median(visible)),
        "smallest_visible_shift_worst": float(visible[worst]), "worst_column": reference.rows[worst],
        "memory_bytes": memory_of(config, one), "reports": reported(config, one),
        "series": len(reference.rows) * SERIES_PER_COLUMN + sum(
            SERIES_PER_DETECTOR + SERIES_PER_READING * len(detector.targets) for detector in plan.detectors),
        "detectors": {detector.name: [target.column for target in detector.targets] for detector in plan.detectors},
        "sampled_rows_per_pane": plan.rows, "sampled_panes": plan.panes, "sampled_columns": len(plan.names),
    }


def sentences(config: Config, one: Watched) -> list[str]:
    """What will happen to one monitor."""
    monitor, numbers = one.monitor, facts(config, one)
    retrain = monitor.retrain
    source = f"topic {monitor.topic}" if config.kafka.bootstrap_servers else f"files {', '.join(config.files.paths)}"
    lines = [
        f"{monitor.model}, version {one.version}: {counted(len(one.reference.columns), 'column')} from {source}, "
        f"judged once per pane of {monitor.pane.seconds} s; a pane closes {monitor.pane.lateness_seconds} s after its end.",
        f"  False alarms accepted: {monitor.alarm.max_false_alarms}, which is one in {numbers['panes_per_false_alarm']:,.0f} "
        f"panes over {numbers['tests_per_pane']:,} comparisons each, so a comparison must reach z = "
        f"{numbers['threshold_z']:.2f}, one of a mean {numbers['threshold_z_mean']:.2f} (means have half of the false alarms).",
        f"  With {numbers['reference_events']:,} reference events (worth "
        f"{numbers['effective_reference_events']:,.0f} independent ones) the smallest shift that can be seen is "
        f"{numbers['smallest_visible_shift_median']:.2f} s.d. (median column), "
        f"{numbers['smallest_visible_shift_worst']:.2f} s.d. in {numbers['worst_column']}; below {monitor.alarm.ignore_below:g} "
        "it is ignored on purpose.",
    ]
    if numbers["reference_inadequate"]:
        lines.append(f"  The reference is inadequate ({numbers['reference_inadequate']}): "
                     "it may alarm but never start a retraining.")
    lines += observed(one.plan())
    why = numbers["reports"]
    lines.append("  Reports of its alarms have evidently's half, too." if not why else
                 f"  Reports of its alarms are made from counts alone, without evidently's half: {why}.")
    if retrain is None:
        lines.append("  No retraining: alarms only.")
    else:
        kind = str(retrain.launcher.__struct_config__.tag)
        lines.append(
            f"  Retraining by the {kind} launcher when {_asked(retrain.launch_on, retrain.above)}: once per episode, "
            f"{retrain.cooldown_hours:g} h apart, at most {retrain.max_per_week} a week, approval {retrain.approval}, after "
            f"{retrain.collect_events:,} labelled events since the alarm.")
        lines.append(f"  Not launched either: {_held_back(retrain)}.")
        lines.append(f"  A better challenger is {_promoted(retrain.promote)}.")
    return lines


def reported(config: Config, one: Watched) -> str:
    """Why the reports of a monitor's alarms lack evidently's half; empty where they have it."""
    return "the monitor is histograms_only" if one.monitor.histograms_only else why_none(config.reports, one.reference)


def _asked(launch_on: str, above: float) -> str:
    """What starts a retraining."""
    sure = f"the effect is surely above {above:g} s.d."
    return sure if launch_on == "alarm" else f"a person or Alertmanager asks for it (an alarm is severe when {sure})"


def _held_back(retrain: Retrain) -> str:
    """The limits of a policy that have no sentence of their own."""
    said = []
    if retrain.useless_max is not None:
        said.append(f"after {retrain.useless_max} launches in a row that brought nothing")
    if retrain.persist_panes > 1:
        said.append(f"before it is severe for {retrain.persist_panes} panes in a row")
    if retrain.learning_hours:
        said.append(f"in the first {retrain.learning_hours:g} h of a version")
    if retrain.gpu_hours_per_week is not None:
        said.append(f"beyond {retrain.gpu_hours_per_week:g} GPU hours a week")
    said += [f"{', '.join(one.days)} from {_time(one.start)} to {_time(one.end)} in {one.time_zone}" for one in retrain.blackout]
    if retrain.approval == "manual":
        said.append(f"when nobody approves it within {retrain.approval_hours:g} h")
    return "; ".join(said) or "nothing more"


def _time(given: str | int) -> str:
    minute = minutes(given)
    return str(given) if minute is None else f"{minute // 60:02d}:{minute % 60:02d}"


def _promoted(promote: FilePromotion | WebhookPromotion | KServePromotion | None) -> str:
    """How it reaches production, and when its reference judges."""
    if promote is None:
        return "not promoted: retrain.promote is not set"
    if isinstance(promote, FilePromotion):
        how = f"promoted by writing {promote.path}"
    elif isinstance(promote, WebhookPromotion):
        how = "promoted by a webhook" + (f", confirmed within {promote.confirm_hours:g} h" if promote.confirm_url else "")
    else:
        how = f"given to the InferenceService {promote.name} in namespace {promote.namespace}"
        if promote.canary_percent is not None:
            how += f", first {promote.canary_percent} % of the traffic for {promote.canary_hours:g} h"
        how += f", and taken back when it is not Ready after {promote.ready_minutes:g} minutes"
    return f"{how}; {promote.settle_seconds:g} s later its reference judges"


def observed(plan: Plan) -> list[str]:
    """What is computed and shown besides the decision, and what it costs."""
    lines = []
    for source, how in HOW.items():
        said = []
        for one in plan.of(source):
            columns = ", ".join(target.column for target in one.targets[:NAMED]) if one.targets[0].column != JOINT else \
                f"{counted(len(one.members), 'column')} together"
            columns += f" and {counted(len(one.targets) - NAMED, 'column')} more" if len(one.targets) > NAMED else ""
            words = [f"every {one.said.every_panes} panes"] if one.said.every_panes > 1 else []
            words += [f"drift from {one.threshold:.4g}"] if one.threshold is not None else []
            said.append(f"{one.name} of {columns}" + (f" ({', '.join(words)})" if words else ""))
        if said:
            lines.append(f"  Observed besides, without alarm or retraining: {'; '.join(said)}; {how}.")
    if plan.rows:
        lines.append(f"  For this at most {counted(plan.rows, 'row')} of {counted(len(plan.names), 'column')} are kept of each "
                     f"pane, in the state, too, {counted(plan.panes, 'pane')} back.")
    return lines
