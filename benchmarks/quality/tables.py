"""The tables of the proof, in Markdown, from what `runs` counted; and the page that holds them.

Idea: the page is written by the program between markers and compared with the committed counts by a test, so that no
figure in it can be older than its counts. Every figure has an interval: Poisson's exact one for alarms, order statistics
for medians.

Neighbours: `runs` counts, `pictures` draws the same counts.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.quality.ours import OURS, SCAN, STRICT
from benchmarks.quality.runs import KNOB_EVENTS
from benchmarks.quality.streams import CHANGES, PANE_EVENTS, QUIET

Result = dict[str, Any]

LEVEL = 0.95
SHOWN = tuple(change for change in CHANGES if change.shown)
OUR_NAMES = tuple(own.name for own in OURS)


def all_tables(result: Result) -> dict[str, str]:
    """Every generated part of the page by its marker."""
    return {"run": told(result), "false alarms": false_alarms(result), "peers' false alarms": peers_false_alarms(result),
            "knob": knob(result), "delay": delay(result), "peers' delay": peers_delay(result), "losses": losses(result)}


def told(result: Result) -> str:
    """One sentence on how much was run."""
    sizes, seed = result["sizes"], result["seed"]
    events = sum(result["quiet"][quiet.name][SCAN.name][1] for quiet in QUIET)
    option = {30: "", 105: " --full", 8: " --quick"}.get(sizes["common"], "")
    return (f"`python -m benchmarks.quality --seed {seed}{option} --write`: {events / 1e6:.1f} million events without drift, "
            f"{sizes['delay']} runs of every drift.")


# ---- table 1: false alarms ---------------------------------------------------------------------------------------------


def false_alarms(result: Result) -> str:
    """Ours, per million events, one per million asked, stream by stream."""
    rows = []
    for quiet in QUIET:
        counts = result["quiet"][quiet.name]
        rows.append([quiet.name, thousands(counts[SCAN.name][1]), *(rate(*counts[own.name]) for own in STRICT)])
    for_all = [_pooled(result, own.name) for own in STRICT]
    rows.append(["**all ten, pooled**", thousands(for_all[0][1]), *(f"**{rate(*pooled)}**" for pooled in for_all)])
    rows.append(["mean of the ten", "", *(f"{mean_rate(result, own.name):.2g}" for own in STRICT)])
    return table(["stream without drift", "events", *(own.name for own in STRICT)], rows)


def peers_false_alarms(result: Result) -> str:
    """Peers at their own defaults, per million events, stream by stream."""
    rows = []
    for name in peers_of(result):
        rates = [result["quiet"][quiet.name].get(name) for quiet in QUIET]
        if not any(rates):
            continue
        cells = ["–" if counts is None else f"{per_million(*counts):,.0f}" for counts in rates]
        rows.append([name, *cells, rate(*_pooled(result, name), digits=0)])
    return table(["peer, its default", *(quiet.name for quiet in QUIET), "pooled"], rows)


def mean_rate(result: Result, name: str) -> float:
    """Mean over the ten streams of a detector's false alarms per million."""
    return float(np.mean([per_million(*result["quiet"][quiet.name][name]) for quiet in QUIET]))


def _pooled(result: Result, name: str) -> tuple[int, int]:
    counts = [result["quiet"][quiet.name][name] for quiet in QUIET if name in result["quiet"][quiet.name]]
    return sum(alarms for alarms, _ in counts), sum(events for _, events in counts)


# ---- table 2: the knob -------------------------------------------------------------------------------------------------


def knob(result: Result) -> str:
    """Alarms expected at the rate that was asked, and alarms seen, on the common stream."""
    asked = result["asked"]
    events = asked[SCAN.name][str(KNOB_EVENTS[0])][1]
    rows = [[name, *(count(asked[name][str(each)][0]) for each in KNOB_EVENTS)]
            for name in sorted(asked, key=lambda name: (name not in OUR_NAMES, list(asked).index(name)))]
    heads = [f"1 per {each:,} ({events / each:g} expected)" for each in KNOB_EVENTS]
    return table([f"alarms in {thousands(events)} events", *heads], rows)


# ---- table 3: delay ----------------------------------------------------------------------------------------------------


def delay(result: Result) -> str:
    """Median events from change to alarm: ours, and the quickest peer."""
    rows = []
    for change in SHOWN:
        name, best = quickest(result, change.name)
        rows.append([change.name, *(median_cell(result, change.name, own) for own in OUR_NAMES),
                     f"{events_cell(best, change.panes)} {name}" if np.isfinite(best) else "none found it"])
    heads = ["scan", "e-SR", "scan, `ignore_below: 0.1`", "e-SR, `ignore_below: 0.1`", "quickest peer"]
    return table(["change", *heads], rows)


def peers_delay(result: Result) -> str:
    """Median events of every peer, with the threshold that it was moved to."""
    rows = []
    for name in peers_of(result):
        if name not in result["matching"]:
            continue
        cells = [events_cell(median(result, change.name, name), change.panes) for change in SHOWN]
        rows.append([name, f"{result['matching'][name]['level']:.3g}", *cells])
    return table(["peer", "threshold", *(change.name for change in SHOWN)], rows)


def losses(result: Result) -> str:
    """Where a peer is quicker than the scan by more than one pane at equal false alarms."""
    found = []
    for change in SHOWN:
        name, best = quickest(result, change.name)
        own = median(result, change.name, SCAN.name)
        if best + PANE_EVENTS < own:
            found.append(f"- {change.name}: {name} takes {events_cell(best, change.panes)} events, "
                         f"the scan {events_cell(own, change.panes)}.")
    return "\n".join(found) or "In no row of the table is a peer quicker than the scan by more than one pane."


def quickest(result: Result, change: str) -> tuple[str, float]:
    """The peer with the least median delay, and that delay; infinite where none found the change."""
    names = [name for name in peers_of(result) if name in result["delays"][change]]
    return min(((name, median(result, change, name)) for name in names), key=lambda pair: pair[1])


def median(result: Result, change: str, name: str) -> float:
    """Median delay in events, infinite where most runs had no alarm, NaN where the detector was not run."""
    delays = result["delays"][change].get(name)
    return float(np.median([np.inf if one is None else one for one in delays])) if delays else float("nan")


def median_interval(delays: list[int | None]) -> tuple[float, float]:
    """95 % interval of the median by order statistics; least and largest where there are too few for that."""
    ordered = sorted(np.inf if one is None else float(one) for one in delays)
    n = len(ordered)
    rank = int(stats.binom.ppf((1 - LEVEL) / 2, n, 0.5)) if n > 5 else 1
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[n - rank]


def median_cell(result: Result, change: str, name: str) -> str:
    """A median with its interval."""
    panes = next(one.panes for one in CHANGES if one.name == change)
    low, high = median_interval(result["delays"][change][name])
    middle = events_cell(median(result, change, name), panes)
    return middle if low == high else f"{middle} ({events_cell(low, panes)} – {events_cell(high, panes)})"


# ---- cells -------------------------------------------------------------------------------------------------------------


def peers_of(result: Result) -> list[str]:
    """Names of all peers, in the order in which they were met: windows, joint, online, evidently."""
    names = dict.fromkeys([*(name for quiet in QUIET for name in result["quiet"][quiet.name]), *result["matching"]])
    families = ("KS + χ²", "χ²", "PSI", "mean shift", "MMD", "PCA", "evidently", "ADWIN", "Page-Hinkley", "KSWIN")
    peers = [name for name in names if name not in OUR_NAMES]
    return sorted(peers, key=lambda name: (next(i for i, family in enumerate(families) if name.startswith(family)),
                                           list(names).index(name)))


def per_million(alarms: int, events: int) -> float:
    return alarms / events * 1e6


def poisson_interval(alarms: int) -> tuple[float, float]:
    """Exact 95 % interval of a Poisson mean (Garwood 1936)."""
    tail = (1 - LEVEL) / 2
    low = stats.chi2.ppf(tail, 2 * alarms) / 2 if alarms else 0.0
    return float(low), float(stats.chi2.isf(tail, 2 * alarms + 2) / 2)


def rate(alarms: int, events: int, digits: int = 1) -> str:
    """Alarms per million events with the interval."""
    low, high = (limit / events * 1e6 for limit in poisson_interval(alarms))
    return f"{per_million(alarms, events):,.{digits}f} ({low:,.{digits}f} – {high:,.{digits}f})"


def count(alarms: int) -> str:
    low, high = poisson_interval(alarms)
    return f"{alarms} ({low:.1f} – {high:.1f})"


def thousands(events: int) -> str:
    return f"{events:,}"


def events_cell(events: float, panes: int) -> str:
    """A delay, or that there was none in the panes that were watched."""
    if np.isnan(events):
        return "–"
    return f"{events:,.0f}" if np.isfinite(events) else f"> {panes * PANE_EVENTS:,}"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, its columns aligned."""
    widths = [max(3, *(len(row[i]) for row in [heads, *rows])) for i in range(len(heads))]
    lines = [[*heads], ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])], *rows]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


# ---- files -------------------------------------------------------------------------------------------------------------


def as_json(result: Result) -> str:
    """The counts as text; lists of numbers on one line each."""
    spread = json.dumps(result, indent=1, ensure_ascii=False)
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found.group()), spread) + "\n"


def write_page(page: Path, result: Result) -> None:
    """Put every generated part of the page in its place, between its markers."""
    page.write_text(filled(page.read_text(encoding="utf-8"), result), encoding="utf-8")


def filled(text: str, result: Result) -> str:
    """The page with every generated part as the counts say."""
    for name, part in all_tables(result).items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"docs/detection-quality.md: expected the markers {begin} and {end}, got none; put them back")
        text = f"{text.partition(begin)[0]}{begin}\n{part}\n{end}{text.partition(end)[2]}"
    return text
