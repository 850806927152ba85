"""The figures and tables of docs/parity.md: what other tools' detectors say on data whose truth is known.

    python -m benchmarks.parity_figures            prints the tables, writes docs/figures/parity.json and the pictures
    python -m benchmarks.parity_figures --check    compares with the committed numbers instead; 1 if they differ

Four measurements, all seeded: alarms on windows without drift against the window's size; one absurd value in a window
with and without drift; the one-sample chi-square test against the two-sample one; river's detectors on 20 columns
without drift, independent and autocorrelated. evidently's and river's own code runs, through `detectors.parity` and
`detectors.streaming`; ours are the binned distances and tests on the same values.

About 50 s of one core, a quarter of it the import of evidently. The pictures are the same bytes every time with one
version of matplotlib: fixed ids, no date, text as text.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.binning import NumericBinning
from detectors.distances import ks, psi, wasserstein
from detectors.parity import evaluate
from detectors.streaming import detector
from detectors.synthetic import Quantity, Stream
from detectors.tests import chi2_two_sample, ks_p

Floats = NDArray[np.float64]
FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
#: Windows drawn per cell: a share of .05 is known to about .022, one of .5 to .05.
RUNS = 100
SIZES = (50, 100, 250, 500, 1000, 5000)
REFERENCE_ROWS, LEVELS = 5000, 20
CHI2_REFERENCE_ROWS = 1000
ABSURD = (0.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
ABSURD_ROWS = 5000
AUTOCORRELATIONS = (0.0, 0.5, 0.9)
STREAM_COLUMNS, STREAM_EVENTS, PANE_EVENTS = 20, 20_000, 250
#: Average run asked of CUSUM, per column: 20 columns share one false alarm in 50,000 events.
CUSUM_VALUES = 1_000_000
ALPHA = 0.05
SEED = 11
#: Shares of the levels, as of many real categories: a few are common and most are rare.
LEVEL_SHARES = np.arange(1, LEVELS + 1) ** -1.3
LEVEL_SHARES /= LEVEL_SHARES.sum()

Results = dict[str, Any]
#: Whether a method alarms on (reference, window).
Alarmed = Callable[[NDArray[Any], NDArray[Any]], bool]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write or compare."""
    parser = argparse.ArgumentParser(prog="benchmarks.parity_figures", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed numbers, write nothing")
    check = parser.parse_args(arguments).check
    results = {"size": alarms_by_size(), "absurd": absurd_value(), "chisquare": chisquare_by_size(), "streams": on_streams()}
    print("\n\n".join(tables(results).values()))
    text = json.dumps(results, indent=1) + "\n"
    committed = FIGURES / "parity.json"
    if check:
        same = committed.is_file() and committed.read_text() == text
        print("\nas committed" if same else f"\n{committed.name}: expected the committed numbers, got others", flush=True)
        return 0 if same else 1
    FIGURES.mkdir(parents=True, exist_ok=True)
    committed.write_text(text)
    draw(results)
    return 0


def alarms_by_size(sizes: tuple[int, ...] = SIZES, runs: int = RUNS) -> Results:
    """Share of no-drift windows that each method alarms on, by window size; reference of 5,000 rows, drawn anew."""
    rng = np.random.default_rng([SEED, 1])
    numeric: dict[str, Alarmed] = {
        **{f"evidently:{name}": _theirs(name, "numeric") for name in ("psi", "jensenshannon", "wasserstein")},
        "chi2 (ours), p < .05": lambda x, y: _chi2_p(*_counts(x, y)) < ALPHA,
        "ks (ours), p < .05": lambda x, y: _ks_p(*_counts(x, y)) < ALPHA,
    }
    levels: dict[str, Alarmed] = {
        **{f"evidently:{name}": _theirs(name, "category") for name in ("psi", "jensenshannon")},
        "chi2 (ours), p < .05": lambda x, y: _chi2_p(_level_counts(x), _level_counts(y)) < ALPHA,
    }
    names = [*(f"{name}, numbers" for name in numeric), *(f"{name}, levels" for name in levels)]
    alarms = {name: [0] * len(sizes) for name in names}
    for i, size in enumerate(sizes):
        for _ in range(runs):
            x, y = rng.standard_normal(REFERENCE_ROWS), rng.standard_normal(size)
            for name, alarmed in numeric.items():
                alarms[f"{name}, numbers"][i] += alarmed(x, y)
            a, b = _levels(rng, REFERENCE_ROWS), _levels(rng, size)
            for name, alarmed in levels.items():
                alarms[f"{name}, levels"][i] += alarmed(a, b)
    return {"sizes": list(sizes), "runs": runs, "shares": {name: [n / runs for n in counts] for name, counts in alarms.items()}}


def absurd_value() -> Results:
    """psi of a window shifted by 1 s.d. and wasserstein of one that is not, with one value replaced by an absurd one."""
    rng = np.random.default_rng([SEED, 2])
    x, same = rng.standard_normal(ABSURD_ROWS), rng.standard_normal(ABSURD_ROWS)
    binning = NumericBinning.fit(x)
    rows: Results = {name: [] for name in ("evidently:psi", "psi (ours)", "evidently:wasserstein", "wasserstein (ours)")}
    for value in ABSURD:
        shifted, quiet = same + 1, same.copy()
        if value:
            shifted[0] = quiet[0] = value
        rows["evidently:psi"].append(_digits(evaluate("evidently:psi", x, shifted, "numeric").statistic))
        rows["psi (ours)"].append(_digits(float(psi(binning.count(x)[None, 1:], binning.count(shifted)[None, 1:])[0])))
        rows["evidently:wasserstein"].append(_digits(evaluate("evidently:wasserstein", x, quiet, "numeric").statistic))
        rows["wasserstein (ours)"].append(_digits(_wasserstein(binning, x, quiet)))
    return {"values": list(ABSURD), "rows": ABSURD_ROWS, "statistics": rows}


def chisquare_by_size(sizes: tuple[int, ...] = SIZES, runs: int = RUNS) -> Results:
    """Share of no-drift windows with p < .05, 20 equally frequent levels and a reference of 1,000 rows."""
    rng = np.random.default_rng([SEED, 3])
    shares: dict[str, list[float]] = {"evidently:chisquare": [], "chi2 (ours)": []}
    for size in sizes:
        theirs = ours = 0
        for _ in range(runs):
            a, b = rng.integers(LEVELS, size=CHI2_REFERENCE_ROWS), rng.integers(LEVELS, size=size)
            theirs += evaluate("evidently:chisquare", a, b, "category").drift
            ours += _chi2_p(_level_counts(a), _level_counts(b)) < ALPHA
        shares["evidently:chisquare"].append(theirs / runs)
        shares["chi2 (ours)"].append(ours / runs)
    unseen = evaluate("evidently:chisquare", np.repeat(["a", "b"], 500), [*np.repeat(["a", "b"], 500), "c"], "category")
    p = _chi2_p(np.array([500, 500, 0]), np.array([500, 500, 1]))
    return {"sizes": list(sizes), "runs": runs, "shares": shares,
            "one unseen level": {"theirs": unseen.statistic, "ours": _digits(p)}}


def on_streams(events: int = STREAM_EVENTS) -> Results:
    """Alarms per million events and share of panes with one, of 20 columns without drift, each with its detector."""
    known: dict[str, dict[str, Any]] = {"river:ADWIN": {}, "river:PageHinkley": {},
                                        "cusum": {"values_per_false_alarm": CUSUM_VALUES}}
    said: Results = {name: {"alarms per million events": [], "share of panes": []} for name in known}
    for ar in AUTOCORRELATIONS:
        rows = Stream(SEED, (Quantity(),) * STREAM_COLUMNS, ar=ar).rows(events)
        for name, options in known.items():
            drifts = np.array([[step.drift for step in detector(name, **options).feed(np.asarray(values).tolist())]
                               for values in rows.values()])                # (columns, events)
            panes = drifts.any(axis=0).reshape(-1, PANE_EVENTS).any(axis=1)
            said[name]["alarms per million events"].append(round(float(drifts.sum()) / events * 1e6, 1))
            said[name]["share of panes"].append(round(float(panes.mean()), 3))
    return {"autocorrelations": list(AUTOCORRELATIONS), "events": events, "detectors": said}


def tables(results: Results) -> dict[str, str]:
    """The Markdown tables of the page, by section."""
    size, absurd, chi, streams = (results[name] for name in ("size", "absurd", "chisquare", "streams"))

    def percent(shares: list[float]) -> list[str]:
        return [f"{100 * share:.0f} %" for share in shares]

    def number(value: float) -> str:
        return f"{value:.3g}" if value >= 1e-4 else f"{value:.5f}"

    rows = [(name, *(f"{said['alarms per million events'][i]:.0f} / {100 * said['share of panes'][i]:.0f} %"
                     for i in range(len(streams["autocorrelations"])))) for name, said in streams["detectors"].items()]
    return {
        "size": _table(["rows in the window", *map(str, size["sizes"])],
                       [(name, *percent(shares)) for name, shares in size["shares"].items()]),
        "absurd": _table(["the value", *("none" if not value else f"{value:g}" for value in absurd["values"])],
                         [(name, *map(number, values)) for name, values in absurd["statistics"].items()]),
        "chisquare": _table(["rows in the window", *map(str, chi["sizes"])],
                            [(name, *percent(shares)) for name, shares in chi["shares"].items()]),
        "streams": _table(["alarms per million events / panes with one",
                           *("independent" if not ar else f"AR(1) {ar:g}" for ar in streams["autocorrelations"])], rows),
    }


def draw(results: Results) -> None:
    """Write one SVG for each of the first three measurements."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "tidemark", "svg.fonttype": "none", "axes.spines.top": False,
                                "axes.spines.right": False, "font.size": 9, "axes.grid": True, "grid.color": "#e4e4e4"})
    from cycler import cycler
    from matplotlib import pyplot

    def save(figure: Any, name: str) -> None:
        figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
        pyplot.close(figure)

    def shares(axes: Any, measured: Results, names: list[str]) -> None:
        blues = iter(("#1b6ca8", "#6fb3e0"))
        for name in names:
            ours = "(ours)" in name
            axes.plot(measured["sizes"], measured["shares"][name], "-o" if ours else "--s", markersize=3.5, label=name,
                      color=next(blues) if ours else None, linewidth=2.2 if ours else 1.3)
        axes.axhline(ALPHA, color="#888888", linewidth=0.8)
        axes.set(xscale="log", xlabel="rows in the window", ylim=(-0.03, 1.03))
        axes.set_xticks(measured["sizes"], [f"{size:,}" for size in measured["sizes"]])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=7.5)

    matplotlib.rcParams["axes.prop_cycle"] = cycler(color=["#c8553d", "#e09f3e", "#7d5ba6", "#588157"])
    figure, both = pyplot.subplots(1, 2, figsize=(8.4, 3.2), sharey=True)
    for axes, kind in zip(both, ("numbers", "levels"), strict=True):
        shares(axes, results["size"], [name for name in results["size"]["shares"] if name.endswith(kind)])
    both[0].set_ylabel("windows without drift that alarm")
    save(figure, "parity-window-size")

    absurd = results["absurd"]
    figure, both = pyplot.subplots(1, 2, figsize=(8.4, 3.2))
    places = range(len(absurd["values"]))
    for axes, name, title in zip(both, ("psi", "wasserstein"), ("mean moved by 1 s.d.", "nothing moved"), strict=True):
        axes.plot(places, absurd["statistics"][f"evidently:{name}"], "--s", markersize=3.5, label=f"evidently:{name}")
        axes.plot(places, absurd["statistics"][f"{name} (ours)"], "-o", markersize=3.5, color="#1b6ca8", linewidth=2.2,
                  label=f"{name} (ours)")
        axes.axhline(0.1, color="#888888", linewidth=0.8)
        axes.set(yscale="log", title=title, xlabel=f"one value of {absurd['rows']:,} replaced by", ylabel=name)
        axes.set_xticks(list(places), ["none" if not value else f"{value:g}" for value in absurd["values"]], fontsize=7.5)
        axes.legend(frameon=False, fontsize=7.5)
    save(figure, "parity-absurd-value")

    figure, axes = pyplot.subplots(figsize=(4.6, 3.2))
    shares(axes, results["chisquare"], list(results["chisquare"]["shares"]))
    axes.set_ylabel("windows without drift with p < .05")
    save(figure, "parity-chisquare")


def _table(head: list[str], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _theirs(name: str, kind: str) -> Alarmed:
    return lambda reference, window: evaluate(f"evidently:{name}", reference, window, kind).drift


def _levels(rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    return rng.choice(LEVELS, size=n, p=LEVEL_SHARES)


def _level_counts(levels: NDArray[Any]) -> NDArray[np.int64]:
    return np.bincount(levels, minlength=LEVELS)


def _counts(x: Floats, y: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts of both samples over the reference's fine bins, missing left out."""
    binning = NumericBinning.fit(x)
    return binning.count(x)[1:], binning.count(y)[1:]


def _chi2_p(reference: NDArray[np.int64], window: NDArray[np.int64]) -> float:
    return float(chi2_two_sample(reference[None], window[None])[2][0])


def _ks_p(reference: NDArray[np.int64], window: NDArray[np.int64]) -> float:
    h = 1 / reference.sum() + 1 / window.sum()
    return float(ks_p(ks(reference[None], window[None])[0], h))


def _wasserstein(binning: NumericBinning, x: Floats, y: Floats) -> float:
    """Our binned distance, in s.d. of x: values beyond its range count at the range's ends."""
    codes = binning.codes(x)
    counts = np.bincount(codes, minlength=binning.bins)
    means = np.bincount(codes, weights=x, minlength=binning.bins)[2:-1] / np.maximum(counts[2:-1], 1)
    positions = np.concatenate([[x.min()], means, [x.max()]])
    return float(wasserstein(counts[None, 1:], binning.count(y)[None, 1:], positions[None], np.array([x.std()]))[0])


def _digits(value: float) -> float:
    """Six significant digits: the committed numbers hold on other processors, too."""
    return value if not math.isfinite(value) or not value else float(f"{value:.6g}")


if __name__ == "__main__":
    sys.exit(main())
