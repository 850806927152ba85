"""`tidemark explain MODEL -c FILE`: why a model is quiet, or is not.

Reads the state file beside the running service (it changes nothing) and judges the stored panes again: the answer is the
decision itself, not a copy of it. Where the model is retrained, it also says how each limit of the policy stands: the
same limits, asked in the same way, as the trigger asks.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console

from detectors.reference import Reference
from detectors.scan import Scan, Scores
from monitor.commands.shared import alarm_lines, counted, decision_lines, instant, limit_lines, paragraph, print_json, table
from monitor.config import Config, load, state_path
from monitor.decide.explain import columns, headline
from monitor.decide.policy import Judge, PolicyState
from monitor.decisions import Limit
from monitor.errors import ConfigError
from monitor.flow import Alarm
from monitor.retrain.ledger import Ledger, decision_from_json, kept_of, launch_from_json
from monitor.retrain.limits import Limits, Moment
from monitor.service import RING_PANES, resume
from monitor.state.store import Store
from monitor.watched import Watched, watched

ALARMS = 10


@dataclass(frozen=True, slots=True)
class Explained:
    """What a state file says of one model, judged again."""

    version: str
    reference: Reference
    scan: Scan
    scores: Scores | None                           # None before the first decided pane
    state: PolicyState
    panes: int
    alarms: list[str]
    decisions: list[str]
    launches: list[str]
    every_launch: list[str]                         # of all models: what is under way over all of them is bounded, too
    at: float                                       # end of the last decided pane, seconds since 1970; 0 before the first
    judged_seconds: float                           # event time for which this version has been judged


def explained(one: Watched, path: Path) -> Explained:
    """Look at the state beside the service that holds it."""
    store = Store(path, read_only=True)
    try:
        model = one.monitor.model
        stream, policy, _ = resume(one, store)
        judge = Judge({model: one.knobs()})
        judge.begin(model, stream.reference, policy, (stream.decided_events, stream.decided_panes))
        judge.restore(model, stream.origin, store.decided(stream, RING_PANES))
        ring, scan = judge.rings[model], judge.scans[model]
        return Explained(
            stream.version, stream.reference, scan, scan(ring) if ring.panes else None, policy, ring.panes,
            store.history("alarms", model), store.history("decisions", model), store.history("launches", model),
            every_launch=store.history("launches"),
            at=(stream.last_decided + 1) * stream.pane_ms / 1000 if stream.decided_panes else 0.0,
            judged_seconds=stream.decided_panes * stream.pane_ms / 1000)
    finally:
        store.close()


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark explain`."""
    parser.add_argument("model", help="a model of the configuration")
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Print the reasons."""
    config = load(args.config)
    names = [monitor.model for monitor in config.monitors]
    if args.model not in names:
        raise ConfigError(f"expected one of the models {', '.join(names)}, got {args.model!r}; name one of them")
    one = watched(config)[names.index(args.model)]
    seen = explained(one, state_path(config.service.state))
    lines = headline(args.model, seen.reference, seen.scores, seen.state, seen.panes)
    reasons = columns(seen.reference, seen.scan, seen.scores) if seen.scores is not None else []
    alarms = [msgspec.json.decode(document, type=Alarm) for document in seen.alarms][-ALARMS:]
    decisions = [decision_from_json(document) for document in seen.decisions][-ALARMS:]
    launches = [launch_from_json(document) for document in seen.launches][-ALARMS:]
    limits = _limits(config, one, seen)
    if args.json:
        print_json({"model": args.model, "version": seen.version, "sentences": lines, "columns": reasons,
                    "alarms": alarms, "decisions": decisions, "launches": launches, "limits": limits})
        return 0
    for line in lines:
        print(paragraph(line))
    if reasons:
        rows = [((why.column, f"{why.evidence:.2f}",
                  f"{counted(why.window_panes, 'pane')}, {counted(why.window_events, 'event')}" if why.window_panes else "-",
                  f"{why.visible:.2f} s.d.", why.sentence), "red" if why.state == "drift" else "") for why in reasons]
        Console().print(table(("column", "evidence", "window", "visible from", "why"), rows))
    if alarms:
        print(alarm_lines(alarms))
    if decisions:
        print(decision_lines(decisions))
    if limits:
        print(limit_lines(limits))
    for launch in launches:
        print(paragraph(f"{instant(launch.steps[-1][1])}  launch {launch.id}: {launch.state} {launch.detail}"))
    return 0


def _limits(config: Config, one: Watched, seen: Explained) -> tuple[Limit, ...]:
    """How the limits of the model's retraining stand at the last decided pane, whether or not an alarm is open."""
    model, retrain = one.monitor.model, one.monitor.retrain
    if retrain is None or not seen.at:
        return ()
    ledger = Ledger(map(launch_from_json, seen.every_launch), kept={model: kept_of(retrain.max_per_week, retrain.useless_max)})
    return Limits({model: retrain}, ledger, config.limits.launches)(Moment(model, seen.version, seen.at, seen.judged_seconds))
