"""The two pictures of the proof: delay against the size of a shift, and false alarms asked against seen.

Invariant: equal counts give equal bytes. Ids come from a fixed salt, no date is written, letters are drawn as paths, so
the files do not depend on the fonts of the reader.

Neighbours: `tables` computes the medians and intervals that are drawn here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.quality.ours import ESR_STRICT, SCAN
from benchmarks.quality.runs import KNOB_EVENTS
from benchmarks.quality.streams import CHANGES, PANE_EVENTS
from benchmarks.quality.tables import Result, median, median_interval, poisson_interval

#: Colours that differ in lightness, too; ours are the dark, thick ones.
OWN_COLOURS = {SCAN.name: "#0b3c6f", ESR_STRICT.name: "#2e8b57"}
PEER_COLOURS = ("#c25b00", "#8a6bb1", "#b23a48", "#7a7a7a", "#c9a227", "#4f9dbd")
DELAY_PEERS = ("KS + χ², 1,000", "PSI, 1,000", "mean shift, 1,000", "MMD, 500", "evidently, 1,000", "Page-Hinkley")
KNOB_PEERS = ("KS + χ², 250", "KS + χ², 1,000", "χ², 1,000", "mean shift, 250")
#: Where a delay that was not seen in the events watched is drawn.
NEVER = 60_000


def draw(result: Result, folder: Path) -> None:
    """Write quality-delay.svg and quality-knob.svg."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    style = {"svg.hashsalt": "tidemark", "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 10,
             "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
    with mpl.rc_context(style):
        for name, one in (("delay", _delay), ("knob", _knob)):
            figure, axes = plt.subplots(figsize=(8.4, 4.4), layout="constrained")
            one(axes, result)
            figure.savefig(folder / f"quality-{name}.svg", metadata={"Date": None, "Creator": None})
            plt.close(figure)


def _delay(axes, result: Result) -> None:                       # type: ignore[no-untyped-def]
    """Median delay against the shift of the mean of one column of twenty."""
    shifts = sorted((float(str(change.drift["mean"])), change.name) for change in CHANGES
                    if set(change.drift) == {"mean"})
    names = [*OWN_COLOURS, *(name for name in DELAY_PEERS if name in result["matching"])]
    for name, colour in zip(names, [*OWN_COLOURS.values(), *PEER_COLOURS], strict=False):
        points = [(shift, median(result, change, name), result["delays"][change][name])
                  for shift, change in shifts if name in result["delays"][change]]
        own = name in OWN_COLOURS
        x = [shift for shift, _, _ in points]
        y = np.array([min(middle, NEVER) for _, middle, _ in points])
        axes.plot(x, y, "o-" if own else "s--", color=colour, lw=2.2 if own else 1.2, ms=5 if own else 4, label=name,
                  zorder=3 if own else 2)
        if own:
            low, high = np.array([np.minimum(median_interval(delays), NEVER) for _, _, delays in points]).T
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    axes.set(xscale="log", yscale="log", xlabel="shift of the mean of one column, reference s.d.",
             ylabel="median events to the alarm", ylim=(PANE_EVENTS * 0.8, NEVER * 1.4))
    ticks = [shift for shift, _ in shifts]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks([250, 500, 1_000, 2_000, 5_000, 10_000, 20_000, NEVER],
                    ["250", "500", "1,000", "2,000", "5,000", "10,000", "20,000", "not seen"])
    axes.set_yticks([], minor=True)
    axes.set_title("Delay at one false alarm per 300,000 events", loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _knob(axes, result: Result) -> None:                        # type: ignore[no-untyped-def]
    """False alarms per million events, asked against seen, on the common stream."""
    asked = [1e6 / events for events in KNOB_EVENTS]
    names = [*OWN_COLOURS, *(name for name in KNOB_PEERS if name in result["asked"])]
    floor = 0.2
    for place, (name, colour) in enumerate(zip(names, [*OWN_COLOURS.values(), *PEER_COLOURS], strict=False)):
        counts = [result["asked"][name][str(events)] for events in KNOB_EVENTS]
        seen = np.array([alarms / events * 1e6 for alarms, events in counts])
        limits = np.array([[limit / events * 1e6 for limit in poisson_interval(alarms)] for alarms, events in counts])
        at = np.array(asked) * 1.05 ** (place - len(names) / 2)  # side by side, so that intervals can be told apart
        y = np.maximum(seen, floor)
        bars = np.abs(np.stack([y - np.maximum(limits[:, 0], floor), np.maximum(limits[:, 1], floor) - y]))
        own = name in OWN_COLOURS
        axes.errorbar(at, y, yerr=bars, fmt="o-" if own else "s--", color=colour, lw=2 if own else 1.1, ms=5, capsize=2,
                      elinewidth=1, label=name)
    line = [1.5, 70]
    axes.plot(line, line, color="black", lw=1, zorder=1)
    axes.annotate("as asked", (24, 24), textcoords="offset points", xytext=(2, -10), fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="false alarms asked, per million events",
             ylabel="false alarms seen, per million events")
    axes.set_xticks(asked, [f"{value:g}" for value in asked])
    axes.set_xticks([], minor=True)
    axes.set_yticks([floor, 1, 10, 100, 1_000], ["0", "1", "10", "100", "1,000"])
    axes.set_title("The rate that is asked, and the rate that is seen", loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
