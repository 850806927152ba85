"""`tidemark selftest -c FILE`: how honest and how quick this configuration is, measured on its own reference.

Streams are drawn from the law that the reference suggests (`detectors.law`) and judged as the service would judge them
(`simulation`): without drift, to count false alarms; with each kind of drift, to measure how soon it is found. Exit code
3 when more false alarms were seen than asked for, beyond what chance explains.

What it cannot say: anything about seasons, regimes and dependence that the reference does not show.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from monitor.commands.shared import counted, paragraph, print_json, progress_bar, table
from monitor.commands.simulation import DRIFT_PANES, Delay, Rate, Simulation
from monitor.config import load, state_path
from monitor.errors import CheckpointRefused, ConfigError
from monitor.service import resume
from monitor.state.store import Store
from monitor.watched import Watched, watched

#: Where neither the flag nor the state nor the reference knows how much traffic there is.
EVENTS_PER_PANE = 250
#: Columns that the table of smallest shifts shows; `--json` has all.
SHOWN_COLUMNS = 12


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark selftest`."""
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("--model", metavar="MODEL", help="only this model (default: every one, in turn)")
    parser.add_argument("--events-per-pane", type=float, metavar="N",
                        help="usual events in a pane (default: as the state knows, or as the reference's time span says)")
    parser.add_argument("--seconds", type=float, default=90.0, metavar="N", help="time for all of it (default 90)")
    parser.add_argument("--runs", type=int, metavar="N",
                        help="end after so many made-up references: with --seed and time enough, the same figures again")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other streams (default 0)")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Simulate and report."""
    for flag, value, least in (("--seconds", args.seconds, 1), ("--runs", args.runs, 1), ("--seed", args.seed, 0),
                               ("--events-per-pane", args.events_per_pane, 1)):
        if value is not None and not least <= value <= 1e9:
            raise ConfigError(f"{flag}: expected a number of at least {least}, got {value:g}")
    config = load(args.config)
    monitors = [one for one in watched(config) if args.model in (None, one.monitor.model)]
    if not monitors:
        raise ConfigError(f"--model: expected one of {', '.join(monitor.model for monitor in config.monitors)}, "
                          f"got {args.model!r}")
    simulations = [(one, _simulation(one, args, state_path(config.service.state))) for one in monitors]
    console = Console(stderr=True)
    with progress_bar(console) as progress:
        for one, simulation in simulations:
            share, begun = args.seconds / len(simulations), time.monotonic()
            task = progress.add_task(f"simulating {one.monitor.model}", total=round(share))

            def tick(task: Any = task, begun: float = begun) -> None:
                progress.update(task, completed=int(time.monotonic() - begun))

            simulation.run(clock=time.monotonic, until=begun + share, runs=args.runs, tick=tick)
    answers = [_answer(one, simulation) for one, simulation in simulations]
    if args.json:
        print_json(answers)
    else:
        for (one, simulation), answer in zip(simulations, answers, strict=True):
            _print(one, simulation, answer)
    return 3 if any(rate.is_too_high for _, simulation in simulations for rate in simulation.rates) else 0


def _simulation(one: Watched, args: argparse.Namespace, state: Path) -> Simulation:
    reference = one.reference
    if reference.too_small:
        raise ConfigError(f"{one.where}.reference: expected rows enough for a decision, got {reference.events}; there is nothing "
                          "to test, fit it on more rows")
    events = args.events_per_pane or _events_per_pane(one, state)
    simulation = Simulation(reference, one.knobs(), events_per_pane=events, seed=args.seed)
    if not simulation.law.columns:
        raise ConfigError(f"{one.where}.reference: expected columns that can be simulated, got only vectors and texts and no "
                          "sample of them; fit the reference again with a sample")
    return simulation


def _events_per_pane(one: Watched, state: Path) -> float:
    """Usual events in a pane: what the service counted, else what the reference's time span says, else 250."""
    if state.is_file():
        try:
            store = Store(state, read_only=True)
            try:
                stream = resume(one, store)[0]
            finally:
                store.close()
            if stream.decided_panes and stream.decided_events:
                return stream.decided_events / stream.decided_panes
        except CheckpointRefused:                   # a state of another configuration says nothing of this one
            pass
    span = one.reference.span
    if span is not None and span[1] > span[0]:
        return max(1.0, one.reference.events * one.monitor.pane.seconds / (span[1] - span[0]))
    return EVENTS_PER_PANE


def _answer(one: Watched, simulation: Simulation) -> dict[str, Any]:
    """Everything that was found, for programs."""
    reference, seconds = one.reference, one.monitor.pane.seconds
    scan = simulation.scan()
    alone, with_window = scan.smallest_visible_shift(), scan.smallest_visible_shift(simulation.events * scan.windows[-1])
    return {
        "model": one.monitor.model, "version": one.version, "reference_events": reference.events,
        "reference_inadequate": reference.inadequate, "method": getattr(simulation.knobs, "method", "scan"),
        "ignore_below": simulation.knobs.ignore_below, "panes_per_false_alarm": simulation.asked,
        "pane_seconds": seconds, "events_per_pane": simulation.events, "threshold": scan.threshold,
        "runs": simulation.runs, "seed": simulation.seed, "simulated_reference_events": simulation.reference_events,
        "left_out": list(simulation.law.left_out), "dependence_between_columns": simulation.law.sampled,
        "false_alarms": [_rate(rate) for rate in simulation.rates],
        "delays": [{
            "kind": delay.kind, "runs": len(delay.panes), "found": delay.found, "median_panes": delay.median,
            "median_seconds": delay.median * seconds, "columns": delay.columns, "panes": delay.panes,
        } for delay in simulation.delays],
        "smallest_visible_shift": [
            {"column": name, "joint": owner is None, "by_reference": float(least), "by_longest_window": float(visible)}
            for name, owner, least, visible in zip(reference.rows, reference.column_of_row, alone, with_window, strict=True)],
    }


def _rate(rate: Rate) -> dict[str, Any]:
    low, high = rate.interval()
    return {"asked_panes_per_alarm": rate.asked, "ignore_below": rate.ignore_below, "panes": rate.panes,
            "most_expected": rate.panes / rate.asked, "seen": rate.alarms, "severe": rate.severe,
            "per_pane": rate.alarms / rate.panes, "lower": low, "upper": high, "too_high": rate.is_too_high}


def _print(one: Watched, simulation: Simulation, answer: dict[str, Any]) -> None:
    console = Console()
    reference, seconds, law = one.reference, one.monitor.pane.seconds, simulation.law
    print(paragraph(
        f"{one.monitor.model} version {one.version}: asked for one false alarm in {simulation.asked:,.0f} panes of "
        f"{counted(seconds, 'second')}, shifts below {simulation.knobs.ignore_below:g} s.d. ignored; an alarm takes "
        + (f"a mean fortune of {simulation.asked:,.0f} stakes (method esr)." if answer["method"] == "esr"
           else f"{answer['threshold']:.2f} standard errors (method scan).")))
    print(paragraph(
        f"Simulated: {counted(simulation.runs, 'run')}, each with a new reference of {simulation.reference_events:,} rows and "
        f"panes of {counted(simulation.events, 'event')}, from this reference's own bins"
        + (" and the correlations of its sample" if law.sampled else "; its file has no sample, so columns are independent")
        + (", with the memory that its design effects show" if law.memory.any() else "")
        + ". Seasons and whatever the reference does not show are not in it."))
    if simulation.reference_events < reference.events:
        print(paragraph(f"The real reference has {reference.events:,} rows: real delays are shorter."))
    if law.left_out:
        print(paragraph(f"Left out, because the reference holds no sample of them: {', '.join(law.left_out)}."))
    if reference.inadequate:
        print(paragraph(f"The reference is inadequate ({reference.inadequate}): figures below are better than the truth."))
    console.print(table(
        ("asked: 1 in", "ignored below", "panes", "at most", "seen", "seen: 1 in (95 %)", "severe"),
        [((f"{rate.asked:,.0f}", f"{rate.ignore_below:g} s.d.", f"{rate.panes:,}", f"{rate.panes / rate.asked:,.1f}",
           str(rate.alarms), _one_in(rate), str(rate.severe)), "bold red" if rate.is_too_high else "")
         for rate in simulation.rates], "False alarms, in panes without drift, at rates that can be seen"))
    console.print(table(
        ("drift", "found", "median panes", "time"),
        [((delay.kind, f"{delay.found} of {len(delay.panes)}", *_median(delay, seconds)), "" if delay.found else "dim")
         for delay in simulation.delays if delay.panes], f"Delay at the asked rate, within {DRIFT_PANES} panes"))
    least = sorted((item for item in answer["smallest_visible_shift"] if not item["joint"]),
                   key=lambda item: -item["by_longest_window"])
    console.print(table(
        ("column", "in 128 panes, s.d.", "by the reference alone, s.d."),
        [((item["column"], f"{item['by_longest_window']:.3f}", f"{item['by_reference']:.3f}"), "")
         for item in least[:SHOWN_COLUMNS]],
        "Smallest shift that is found about surely, least visible first"))
    too_high = [rate for rate in simulation.rates if rate.is_too_high]
    print(paragraph(
        "More false alarms than asked for: do not trust the budget with this reference; fit it on more rows, in time order."
        if too_high else "No more false alarms than asked for, as far as so many panes can tell."))


def _one_in(rate: Rate) -> str:
    """The interval of the seen rate as panes per false alarm."""
    low, high = rate.interval()
    return f"{1 / high:,.0f} to {1 / low:,.0f}" if low else f"{1 / high:,.0f} or more"


def _median(delay: Delay, seconds: int) -> tuple[str, str]:
    if math.isinf(delay.median):
        return f"above {DRIFT_PANES}", f"above {lasting(DRIFT_PANES * seconds)}"
    return f"{delay.median:g}", lasting(delay.median * seconds)


def lasting(seconds: float) -> str:
    """A length of time in its largest fitting unit.

    >>> lasting(45), lasting(600), lasting(7 * 3600), lasting(3 * 86400)
    ('45 s', '10 min', '7.0 h', '3.0 days')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"
