"""`tidemark replay -c FILE DATA...`: what would have been alarmed and launched on past data.

The whole pipeline runs on the files, with event time from the data; nothing is launched, stored or served, so a policy
can be tuned on the past in seconds.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from monitor.commands.shared import alarm_lines, counted, decision_lines, paragraph, print_json, progress_bar
from monitor.config import load
from monitor.errors import ConfigError, SourceFailed
from monitor.flow import Evaluation
from monitor.ingest.files import FileSource
from monitor.service import Tally, build


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark replay`."""
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("data", nargs="+", metavar="DATA", help="Parquet, CSV or JSON lines files, in time order")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--fail-on-alarm", action="store_true", help="exit code 3 when anything was alarmed")


def run(args: argparse.Namespace) -> int:
    """Replay and report."""
    config = load(args.config)
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
