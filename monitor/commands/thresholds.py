"""Thresholds on the command line: what a configuration would do with other ones, without editing it.

`replay` takes them, over files and over stored panes. They are checked as the configuration's own are.
"""

from __future__ import annotations

import argparse

from msgspec.structs import replace

from monitor.config import Config, Monitor, budget
from monitor.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--max-false-alarms", metavar="BUDGET", help="instead of alarm.max_false_alarms, such as '1 per 7 days'")
    parser.add_argument("--ignore-below", type=float, metavar="SD", help="instead of alarm.ignore_below, 0 to 3")
    parser.add_argument("--retrain-above", type=float, metavar="SD", help="instead of retrain.above, above 0, at most 5")


def changed(config: Config, args: argparse.Namespace) -> Config:
    """The configuration with the thresholds of the command line; ConfigError, one line, where they do not fit."""
    if args.max_false_alarms is not None:
        budget(args.max_false_alarms, "--max-false-alarms")
    if args.ignore_below is not None and not 0 <= args.ignore_below <= 3:
        raise ConfigError(f"--ignore-below: expected 0 to 3 standard deviations, got {args.ignore_below}")
    if args.retrain_above is not None:
        if not 0 < args.retrain_above <= 5:
            raise ConfigError(f"--retrain-above: expected above 0 and at most 5 standard deviations, got {args.retrain_above}")
        if all(monitor.retrain is None for monitor in config.monitors):
            raise ConfigError("--retrain-above: expected a monitor with `retrain`, got none; add it to the configuration")
    return replace(config, monitors=[_changed(monitor, args) for monitor in config.monitors])


def _changed(monitor: Monitor, args: argparse.Namespace) -> Monitor:
    alarm, retrain = monitor.alarm, monitor.retrain
    if args.max_false_alarms is not None:
        alarm = replace(alarm, max_false_alarms=args.max_false_alarms)
    if args.ignore_below is not None:
        alarm = replace(alarm, ignore_below=args.ignore_below)
    if retrain is not None and args.retrain_above is not None:
        retrain = replace(retrain, above=args.retrain_above)
    if retrain is not None and retrain.above < alarm.ignore_below:
        raise ConfigError(f"--ignore-below: expected at most the retraining's threshold ({retrain.above:g}) of {monitor.model}, "
                          f"got {alarm.ignore_below:g}; a retraining is worth more than an alarm")
    return replace(monitor, alarm=alarm, retrain=retrain)
