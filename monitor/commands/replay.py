"""`tidemark replay -c FILE DATA...`: what would have been alarmed and launched on past data.

The whole pipeline runs on the files, with event time from the data; nothing is launched, stored or served, so a policy
can be tuned on the past in seconds. With `--state`, the panes that a service has kept are decided again instead, beside
what it said then; with `--ignore-below` and its like, either is done with other thresholds than the configuration's.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from monitor.commands import thresholds
from monitor.commands.shared import alarm_lines, counted, decision_lines, instant, paragraph, print_json, progress_bar
from monitor.commands.stored import Again, again
from monitor.config import Config, load, state_path
from monitor.errors import ConfigError, SourceFailed
from monitor.flow import Alarm, Evaluation
from monitor.ingest.files import FileSource
from monitor.service import build
from monitor.state.store import Store
from monitor.watched import watched


@dataclass(slots=True)
class Tally:
    """What is reported: every alarm and every decision, in order."""

    alarms: list[Alarm] = field(default_factory=list)
    panes: Counter[str] = field(default_factory=Counter)          # per model
    events: int = 0

    def __call__(self, evaluation: Evaluation) -> None:
        """Note one decided pane."""
        self.panes[evaluation.window.model] += 1
        self.events += evaluation.window.profile.events
        self.alarms.extend(evaluation.alarms)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark replay`."""
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("data", nargs="*", metavar="DATA", help="Parquet, CSV or JSON lines files, in time order")
    parser.add_argument("--state", metavar="URL", help="instead of data: decide the panes that this state file keeps again, such "
                                                       "as sqlite:///state.db; it is only read")
    thresholds.arguments(parser)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--fail-on-alarm", action="store_true", help="exit code 3 when anything was alarmed")


def run(args: argparse.Namespace) -> int:
    """Replay and report."""
    config = thresholds.changed(load(args.config), args)
    if bool(args.data) == bool(args.state):
        raise ConfigError(f"expected files or --state, got {'both' if args.data else 'neither'}; give one of them")
    if args.state:
        return _stored(config, state_path(args.state, "--state"), args)
    topics = sorted({monitor.topic for monitor in config.monitors})
    if len(topics) != 1:
        raise ConfigError(f"expected monitors of one topic, got {', '.join(topics)}; replay one at a time")
    console = Console(stderr=True)
    tally = Tally()
    with progress_bar(console) as progress:
        task = progress.add_task("replaying", total=None)

        def watch(evaluation: Evaluation) -> None:
            tally(evaluation)
            progress.update(task, completed=tally.events)

        try:
            stages = build(config, source=FileSource(args.data, topics[0]), launching=False, state=":memory:",
                           on_evaluation=watch)
            stages.dead_letters.discard()
            try:
                stages.run()
            finally:
                stages.close()
        except SourceFailed as error:               # here the source is a file that was named on the command line
            raise ConfigError(str(error)) from None
    decisions = list(stages.trigger.ledger.decisions)
    outcomes = {stream.model: dict(stream.outcomes) | {"late": stream.late} for stream in stages.panes.streams.values()}
    if args.json:
        print_json({"alarms": tally.alarms, "decisions": decisions, "panes": tally.panes, "events": outcomes})
    else:
        if tally.alarms:
            print(alarm_lines(tally.alarms))
        if decisions:
            print(decision_lines(decisions))
        for model, counts in outcomes.items():
            said = ", ".join(f"{count:,} {name.replace(':', ' for ')}" for name, count in sorted(counts.items()) if count)
            raised = sum(alarm.model == model and alarm.state == "raised" for alarm in tally.alarms)
            launched = sum(decision.model == model and decision.outcome == "launch" for decision in decisions)
            print(paragraph(f"{model}: events {said or 'none'}; {counted(tally.panes.get(model, 0), 'pane')} decided, "
                            f"{counted(raised, 'alarm')}, {counted(launched, 'retraining')}."))
    return 3 if args.fail_on_alarm and tally.alarms else 0


def _stored(config: Config, path: Path, args: argparse.Namespace) -> int:
    """Decide stored panes again and report."""
    monitors = watched(config)
    store = Store(path, read_only=True)
    try:
        with progress_bar(Console(stderr=True)) as progress:
            task = progress.add_task("deciding again", total=None)
            found = [again(one, store, lambda: progress.advance(task)) for one in monitors]
    finally:
        store.close()
    if args.json:
        print_json(found)
    else:
        for one in found:
            _print_again(one)
    return 3 if args.fail_on_alarm and any(one.now for one in found) else 0


def _print_again(one: Again) -> None:
    if not one.panes:
        print(paragraph(f"{one.model}: no decided panes in this state."))
        return
    which = f"the last {counted(one.panes, 'pane')} that the state keeps" if one.cut_off else f"all {counted(one.panes, 'pane')}"
    print(paragraph(f"{one.model} version {', '.join(one.versions)}: {which}, {counted(one.events, 'event')} from "
                    f"{instant(one.since)} to {instant(one.until)}."))
    if one.cut_off:
        print(paragraph("Panes before these are forgotten: an alarm of the first 128 panes may come later than it did."))
    for title, alarms, decisions in (("Then:", one.then, one.decided_then), ("Now:", one.now, one.decided_now)):
        raised = sum(alarm.state == "raised" for alarm in alarms)
        launched = sum(decision.outcome == "launch" for decision in decisions)
        print(f"{title} {counted(raised, 'alarm')}, {counted(launched, 'retraining')}")
        if alarms:
            print(alarm_lines(alarms))
        if decisions:
            print(decision_lines(decisions))
