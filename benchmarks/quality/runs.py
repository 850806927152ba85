"""What is run: every detector over every stream, as tasks that are functions of the seed alone, in a few processes.

Idea: two phases. First the streams without drift: episodes at each detector's own threshold (table 1), ours and the
peers' with a p-value at three asked rates (table 2), and on the common stream the largest statistic of every run. From
those peaks each detector's threshold is moved so that it gives one false alarm in 300,000 events. Second, the drifts:
the events from the change to the first pane at which a detector passes its moved threshold (table 3).

Matching: of R runs of 40,000 events k = R 40,000 / 300,000 may alarm, so the threshold is the (k + 1)-th largest peak:
exactly k runs lie above it. Every detector starts empty in every run, so each run counts at most one episode.

Invariant: the result is a function of (seed, sizes): tasks share nothing, and are collected by their place.

Cost: about seven minutes of one core at the default size.

Neighbours: `ours`, `windows`, `joint`, `libraries` are what runs; `tables` and `pictures` show the result.
"""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import libraries, ours
from benchmarks.quality.encode import Encoded, Encoder
from benchmarks.quality.joint import Mmd, Pca
from benchmarks.quality.streams import (
    CHANGES,
    COMMON,
    DELAY_PART,
    NO_DRIFT_PART,
    PANE_EVENTS,
    QUIET,
    RUN_EVENTS,
    RUN_PANES,
    WARM_PANES,
    Change,
    seed_of,
)
from benchmarks.quality.windows import WindowPeers, family_of
from detectors.reference import Reference
from detectors.synthetic import Batch, Stream

Floats = NDArray[np.float64]

#: Events for one false alarm: asked in table 1, tried in table 2, matched in table 3.
ASKED_EVENTS, KNOB_EVENTS, MATCHED_EVENTS = 1_000_000, (20_000, 100_000, 500_000), 300_000
#: What slow peers get of a stream at their defaults: rows of Page-Hinkley, rows and columns of KSWIN, evidently's windows.
PAGE_HINKLEY_ROWS, KSWIN_ROWS, KSWIN_COLUMNS, EVIDENTLY_WINDOWS = 5_000, 500, 8, 5
EVIDENTLY_EVENTS = (250, 1_000)
#: The window that evidently's delay is measured with.
EVIDENTLY_MATCHED = 1_000
#: Window peers whose statistic is -log10 p: they can be asked for a rate, by Bonferroni over columns and looks.
WITH_P = ("KS + χ²", "χ²", "mean shift")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is run.

    quiet, common : runs of each stream without drift; of the common one, on which thresholds are matched
    delay         : runs of every drift
    slow          : runs of the common stream on which slow peers (evidently, ADWIN, MMD) are matched
    slow_delay    : runs of every drift that slow peers watch
    river         : runs of each stream without drift that river's detectors and MMD get at their defaults
    """

    quiet: int = 8
    common: int = 30
    delay: int = 11
    slow: int = 15
    slow_delay: int = 5
    river: int = 1


SIZES = {"quick": Sizes(2, 8, 3, 8, 1), "default": Sizes(), "full": Sizes(40, 105, 45, 30, 15, 4)}


def quiet_run(seed: int, place: int, run: int, sizes: Sizes) -> dict[str, Any]:
    """One run of a stream without drift: episodes by detector; on the common stream peaks and asked rates, too."""
    quiet = QUIET[place]
    stream = quiet.stream(seed_of(seed, NO_DRIFT_PART, place, run))
    first = stream.rows(quiet.reference_rows)
    reference = Reference.fit(first, stream.columns, model="quality", version="1")
    batch = stream.rows(RUN_EVENTS)
    panes = ours.profiles(reference, batch)
    counts = {own.name: (ours.episodes(own(reference, ASKED_EVENTS), panes), RUN_EVENTS) for own in ours.STRICT}
    encoder = Encoder(first)
    seen = encoder(batch)
    statistics, defaults = _statistics(encoder, seen, seed_of(seed, NO_DRIFT_PART, place, run), mmd=run < sizes.river)
    for name, values in statistics.items():
        counts[name] = (_episodes(values, defaults[name], _panes_of(name)), RUN_EVENTS)
    if run < sizes.river:
        counts |= _river_defaults(encoder, seen, first_run=run == 0)
    if run == 0:
        counts |= _evidently_defaults(first, batch)
    found: dict[str, Any] = {"place": place, "counts": counts}
    if place == COMMON:
        found |= _common(reference, panes, encoder, seen, statistics, seed, run, sizes, first, batch)
    return found


def _statistics(encoder: Encoder, seen: Encoded, seed: int, *, mmd: bool) -> tuple[dict[str, Floats], dict[str, float]]:
    """Statistics per pane of all vectorised peers, and their default thresholds."""
    windows, pca = WindowPeers(encoder.reference), Pca(encoder)
    statistics = {**windows.statistics(seen), **pca.statistics(seen)}
    defaults = {name: pca.default if name in pca.names else windows.default(name) for name in statistics}
    if mmd:
        one = Mmd(encoder, np.random.default_rng(seed))
        statistics[one.name], defaults[one.name] = one.statistics(seen), one.default
    return statistics, defaults


def _panes_of(name: str) -> int:
    """The window in a peer's name, in panes."""
    return int(name.rsplit(", ", 1)[1].replace(",", "")) // PANE_EVENTS


def _episodes(statistic: Floats, threshold: float, window: int) -> int:
    """Alarms, the window emptied after each: it is silent until it is full again."""
    alarms, silent_until = 0, 0
    for pane in np.flatnonzero(statistic > threshold).tolist():
        if pane >= silent_until:
            alarms, silent_until = alarms + 1, pane + window
    return alarms


def _river_defaults(encoder: Encoder, seen: Encoded, *, first_run: bool) -> dict[str, tuple[int, int]]:
    """Panes with a detection by river's detectors as they come, and events looked at."""
    numbers = encoder.standardised(seen)
    if not numbers.shape[1]:
        return {}                                               # only categories: they take none
    looked_at = {"ADWIN": numbers, "Page-Hinkley": numbers[:PAGE_HINKLEY_ROWS]}
    if first_run:
        looked_at["KSWIN"] = numbers[:KSWIN_ROWS, :KSWIN_COLUMNS]
    return {name: (int(libraries.river_panes(name, part).sum()), len(part)) for name, part in looked_at.items()}


def _evidently_defaults(first: Batch, batch: Batch) -> dict[str, tuple[int, int]]:
    """evidently's windows with any drifted column, and with half of them, and events looked at."""
    peer, found = libraries.Evidently(first), {}
    for window in EVIDENTLY_EVENTS:
        looks = [peer.statistic(_part(batch, at * window, window), list(batch)) >= 1 for at in range(EVIDENTLY_WINDOWS)]
        events = EVIDENTLY_WINDOWS * window
        found[f"evidently any column, {window:,}"] = (sum(bool(look.any()) for look in looks), events)
        found[f"evidently data set, {window:,}"] = (sum(look.mean() >= libraries.EVIDENTLY_SHARE for look in looks), events)
    return found


def _part(batch: Batch, start: int, rows: int) -> Batch:
    return {name: values[start : start + rows] for name, values in batch.items()}


def _common(reference: Reference, panes: list[Any], encoder: Encoder, seen: Encoded, statistics: dict[str, Floats],
            seed: int, run: int, sizes: Sizes, first: Batch, batch: Batch) -> dict[str, Any]:
    """Peaks of every detector, and episodes at the rates that were asked."""
    asked: dict[str, dict[int, int]] = {own.name: {events: ours.episodes(own(reference, events), panes) for events in KNOB_EVENTS}
                                        for own in ours.STRICT}
    columns = len(reference.columns)
    for name, values in statistics.items():
        if family_of(name) in WITH_P:
            asked[name] = {events: _episodes(values, float(np.log10(events / PANE_EVENTS * columns)), _panes_of(name))
                           for events in KNOB_EVENTS}
    peaks = {own.name: ours.peak(own(reference, MATCHED_EVENTS), panes) for own in ours.OURS}
    peaks |= {name: float(values.max()) for name, values in statistics.items()}
    numbers = encoder.standardised(seen)
    peaks["Page-Hinkley"] = float(libraries.page_hinkley(numbers).max())
    if run < sizes.slow:
        mmd = Mmd(encoder, np.random.default_rng(seed_of(seed, NO_DRIFT_PART, COMMON, run)))
        peaks[mmd.name] = float(mmd.statistics(seen).max())
        peaks["ADWIN"] = float(libraries.adwin(numbers, libraries.DELTAS).max())
        peer = libraries.Evidently(first)
        looks = range(0, RUN_EVENTS, EVIDENTLY_MATCHED)
        peaks[f"evidently, {EVIDENTLY_MATCHED:,}"] = max(
            float(peer.statistic(_part(batch, start, EVIDENTLY_MATCHED), list(batch)).max()) for start in looks)
    return {"asked": asked, "peaks": peaks}


def delay_run(seed: int, run: int, levels: dict[str, float], sizes: Sizes) -> dict[str, dict[str, int | None]]:
    """Events from each change to each detector's alarm, by change and detector; None where there was none."""
    place_seed = seed_of(seed, DELAY_PART, COMMON, run)
    stream = QUIET[COMMON].stream(place_seed)
    first = stream.rows(QUIET[COMMON].reference_rows)
    reference = Reference.fit(first, stream.columns, model="quality", version="1")
    encoder, warm = Encoder(first), stream.rows(WARM_PANES * PANE_EVENTS)
    warm_panes = ours.profiles(reference, warm)
    slow = run < sizes.slow_delay
    windows, pca = WindowPeers(encoder.reference), Pca(encoder)
    mmd = Mmd(encoder, np.random.default_rng(place_seed)) if slow else None
    evidently = libraries.Evidently(first) if slow else None
    found: dict[str, dict[str, int | None]] = {}
    for change in CHANGES:                                      # turns: the drifts
        batch = _changed(stream, change)
        panes = ours.profiles(reference, batch)
        here: dict[str, int | None] = {}
        for own in ours.OURS:
            decider = own(reference, MATCHED_EVENTS)
            for pane in warm_panes:
                decider.warm(pane)
            here[own.name] = _events(ours.first_above(decider, panes, levels[own.name]))
        whole: Batch = {name: [*warm[name], *values] if isinstance(values, list) else np.concatenate([warm[name], values])
                        for name, values in batch.items()}
        seen = encoder(whole)
        statistics = {**windows.statistics(seen), **pca.statistics(seen),
                      "Page-Hinkley": libraries.page_hinkley(encoder.standardised(seen))}
        if mmd and evidently and change.shown:
            statistics[mmd.name] = mmd.statistics(seen)
            statistics["ADWIN"] = _adwin(encoder, seen, change, levels["ADWIN"])
            here[f"evidently, {EVIDENTLY_MATCHED:,}"] = _evidently_delay(evidently, batch, change, levels)
        for name, values in statistics.items():
            above = np.flatnonzero(values[WARM_PANES:] > levels[name])
            here[name] = _events(int(above[0]) + 1 if len(above) else None)
        found[change.name] = here
    return found


def _changed(stream: Stream, change: Change) -> Batch:
    """The rows after the change, from a copy of the stream: every change meets the same past."""
    after = copy.deepcopy(stream)
    after.start(**change.drift)
    return after.rows(change.panes * PANE_EVENTS)


def _events(panes: int | None) -> int | None:
    return None if panes is None else panes * PANE_EVENTS


def _adwin(encoder: Encoder, seen: Encoded, change: Change, level: float) -> Floats:
    """ADWIN's statistic on the columns that change, at the one delta that matters: the largest that the level allows."""
    places = [at for kind, at in map(encoder.column_of, change.columns) if kind == "number"]
    deltas = [delta for delta in libraries.DELTAS if -np.log10(delta) > level]
    return libraries.adwin(encoder.standardised(seen)[:, places], deltas[:1])


def _evidently_delay(peer: libraries.Evidently, batch: Batch, change: Change, levels: dict[str, float]) -> int | None:
    """Events until evidently's statistic of a changed column passes its level; others are not asked, to save time."""
    names = [f"c{place}" for place in change.columns]
    for start in range(0, change.panes * PANE_EVENTS, EVIDENTLY_MATCHED):
        statistic = peer.statistic(_part(batch, start, EVIDENTLY_MATCHED), names)
        if statistic.max() > levels[f"evidently, {EVIDENTLY_MATCHED:,}"]:
            return start + EVIDENTLY_MATCHED
    return None


def matched_level(peaks: list[float]) -> float:
    """The threshold that so many of the runs' peaks pass as one false alarm in `MATCHED_EVENTS` allows."""
    allowed = int(len(peaks) * RUN_EVENTS / MATCHED_EVENTS)
    return sorted(peaks, reverse=True)[min(allowed, len(peaks) - 1)]


def run_all(seed: int, sizes: Sizes, jobs: int, advance: Callable[[str, int, int], None]) -> dict[str, Any]:
    """The whole proof; `advance` is told (phase, tasks done, tasks in all)."""
    # Fresh processes: what this one has imported and opened stays here.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        places = sorted(range(len(QUIET)), key=lambda place: (place != COMMON, -len(QUIET[place].quantities)))
        tasks = [pool.submit(quiet_run, seed, place, run, sizes) for place in places
                 for run in range(sizes.common if place == COMMON else sizes.quiet)]
        quiet = list(_collected(tasks, "streams without drift", advance))
        peaks: dict[str, list[float]] = {}
        for found in quiet:
            for name, value in found.get("peaks", {}).items():
                peaks.setdefault(name, []).append(value)
        levels = {name: matched_level(values) for name, values in peaks.items()}
        later = [pool.submit(delay_run, seed, run, levels, sizes) for run in range(sizes.delay)]
        delays = list(_collected(later, "drifts", advance))
    return {"seed": seed, "sizes": asdict(sizes), "quiet": _counted(quiet), "asked": _asked(quiet),
            "matching": {name: {"level": levels[name], "runs": len(values)} for name, values in peaks.items()},
            "delays": {change.name: {name: [run[change.name][name] for run in delays if name in run[change.name]]
                                     for name in delays[0][change.name]} for change in CHANGES}}


def _collected(tasks: list[Future[Any]], phase: str, advance: Callable[[str, int, int], None]) -> Iterator[Any]:
    """Results in the order of the tasks, whichever ends first."""
    try:
        for done, task in enumerate(as_completed(tasks), 1):
            task.result()                                       # a failure ends the run at once
            advance(phase, done, len(tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
    return iter([task.result() for task in tasks])


def _counted(quiet: list[dict[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """Alarms and events by stream and detector."""
    total: dict[str, dict[str, list[int]]] = {one.name: {} for one in QUIET}
    for found in quiet:
        for name, (alarms, events) in found["counts"].items():
            entry = total[QUIET[found["place"]].name].setdefault(name, [0, 0])
            entry[0] += int(alarms)
            entry[1] += int(events)
    return total


def _asked(quiet: list[dict[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """Alarms and events by detector and events per false alarm asked."""
    total: dict[str, dict[str, list[int]]] = {}
    for found in quiet:
        for name, by_events in found.get("asked", {}).items():
            for asked, alarms in by_events.items():             # at most three
                entry = total.setdefault(name, {}).setdefault(str(asked), [0, 0])
                entry[0] += alarms
                entry[1] += RUN_PANES * PANE_EVENTS
    return total
