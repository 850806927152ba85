"""Further detectors by name, computed and shown beside the decision: they raise no alarm and start no retraining.

Idea: for those who want the numbers that they know, next to ours and on the same window. Numbers from counts and from
series are made in the loop, as they cost micro- to milliseconds; tests on kept rows take up to seconds, so they run in one
thread beside it (`background`), and their readings are shown when they are ready, with the pane that they belong to.

Invariants. Nothing here is looked at by `policy` or `trigger`. A detector that raises is counted, logged once per kind of
error, and never stops the service. Numbers from counts and rows are functions of the panes in their window, so a restart
shows the same; a series detector is fed the kept rows of the retained panes again, and has forgotten what lay before.

Cost: none without `detectors:`; the pipeline then has no `Observer`. Per pane: 0.1-1 ms for each distance on counts at
20 columns, 1-10 us (KSWIN 0.3 ms) per kept value of a series, and what tests on rows take in their own thread. Memory: the
kept rows of `window_panes` panes. Neighbours: `plan` says what is computed, `sampled` runs tests on rows, `state.sample`
draws the rows, `expose` shows the readings.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.distances import EVIDENCE
from detectors.methods import bands, corrected, evaluate
from detectors.reference import Reference
from detectors.ring import Ring
from detectors.streaming import Streaming
from monitor.config import Detector
from monitor.decide.background import Background
from monitor.decide.plan import Plan, Planned, Target, plan, series, standardised
from monitor.decide.sampled import Failure, Request, answered
from monitor.errors import one_line
from monitor.flow import Reading, Sample, Window

log = logging.getLogger("tidemark")

#: model, version, detector
Key = tuple[str, str, str]


class Asked(NamedTuple):
    """What the configuration says of one model's further detectors."""

    detectors: Sequence[Detector]
    labels: Mapping[str, str]                       # label column -> kind
    where: str                                      # path of the list

    def plan(self, reference: Reference) -> Plan:
        """What they look at under a reference; ConfigError where that cannot be."""
        return plan(self.detectors, reference, self.labels, self.where)


class Kept(NamedTuple):
    """The kept rows of one decided pane."""

    pane: int
    sample: Sample
    events: int                                     # of the pane, kept or not


@dataclass(slots=True)
class _Watch:
    """What is remembered of one model."""

    version: str
    plan: Plan
    panes: deque[Kept] = field(default_factory=deque)
    series: dict[tuple[str, str], Streaming] = field(default_factory=dict)
    readings: dict[tuple[str, str], Reading] = field(default_factory=dict)


class Observer:
    """The further detectors of all models; `asked` is what the configuration says of each."""

    def __init__(self, asked: Mapping[str, Asked]) -> None:
        self._asked = asked
        self._skipped: Counter[tuple[str, str]] = Counter()
        self._failed: Counter[tuple[str, str]] = Counter()
        self._watches: dict[str, _Watch] = {}
        self._background: Background[Key, tuple[list[Reading], list[Failure]]] = Background()
        self._logged: set[tuple[str, str, str]] = set()

    def begin(self, model: str, version: str, reference: Reference) -> Plan:
        """Watch a model under a reference from now on; ConfigError where the detectors do not fit it."""
        made = self._asked[model].plan(reference) if model in self._asked else Plan(reference, ())
        watch = _Watch(version, made)
        for one in made.of("series"):
            for target in one.targets:
                watch.series[one.name, target.column] = series(one.said, target)
        self._watches[model] = watch
        return made

    def restore(self, model: str, kept: Iterable[Kept]) -> None:
        """Go on behind the retained panes, oldest first."""
        watch = self._watches[model]
        for pane in kept:
            watch.panes.append(pane)
            self._feed(model, watch, pane, math.nan)

    def end(self, model: str) -> None:
        """Watch a model no longer."""
        self._watches.pop(model, None)

    def detectors(self, model: str) -> tuple[Planned, ...]:
        """What is computed for a model; empty where nothing is."""
        watch = self._watches.get(model)
        return watch.plan.detectors if watch is not None else ()

    def __call__(self, window: Window, ring: Ring) -> None:
        """Take a decided pane: compute what costs little now, and ask for what is due."""
        watch = self._watches.get(window.model)
        if watch is None:
            return
        self._count(watch, window, ring)
        if not watch.plan.rows:
            return
        while watch.panes and watch.panes[0].pane <= window.pane - watch.plan.panes:
            watch.panes.popleft()
        if window.sample is not None:
            watch.panes.append(Kept(window.pane, window.sample, window.profile.events))
            self._feed(window.model, watch, watch.panes[-1], window.end)
        self._ask(watch, window)

    def readings(self, model: str) -> tuple[Reading, ...]:
        """The latest reading of every detector and column, in the order of the configuration."""
        self._fetch()
        watch = self._watches.get(model)
        if watch is None:
            return ()
        order = {one.name: place for place, one in enumerate(watch.plan.detectors)}
        return tuple(sorted(watch.readings.values(), key=lambda reading: order[reading.detector]))

    def counts(self, model: str) -> dict[str, dict[str, int]]:
        """What was `skipped` and what `failed`, by detector; those that never were are 0."""
        return {"skipped": {one.name: self._skipped[model, one.name] for one in self.detectors(model)
                            if one.method.source == "sample"},
                "failed": {one.name: self._failed[model, one.name] for one in self.detectors(model)}}

    def wait(self) -> None:
        """Until every test on rows that was asked for has answered: at the end of a bounded source."""
        self._background.wait()

    def close(self) -> None:
        """Leave what has not begun."""
        self._background.close()

    def _count(self, watch: _Watch, window: Window, ring: Ring) -> None:
        """Numbers from the counts of the last panes; of this one alone, where the windows have just begun anew."""
        before = window.pane - window.skipped - 1
        for one in watch.plan.of("counts"):         # turns: detectors
            if not one.is_due(window.pane, before):
                continue
            counts, events = window.profile.counts, window.profile.events
            if ring.panes:
                counts, events = ring.window(min(one.said.window_panes, ring.panes))
            try:
                with np.errstate(all="ignore"):
                    score = evaluate([one.name], watch.plan.reference, counts, events)[one.name]
                    mean, null = bands([one.name], watch.plan.reference, events)[one.name]
                    less = np.full_like(score, np.nan) if one.name in EVIDENCE else corrected(one.name, score, mean)
            except Exception as error:              # a detector that only observes must not stop the service
                self._note(window.model, Failure(one.name, "", error))
                continue
            for target in one.targets:
                drift = None if one.threshold is None else bool(score[target.row] >= one.threshold)
                watch.readings[one.name, target.column] = Reading(
                    one.name, target.column, target.role, window.pane, window.end, float(score[target.row]), drift, one.threshold,
                    _finite(null[target.row]), _finite(less[target.row]))

    def _feed(self, model: str, watch: _Watch, kept: Kept, end: float) -> None:
        """Give a pane's kept values to the series detectors; without an end nothing is shown of it (it was before)."""
        for one in watch.plan.of("series"):
            for target in one.targets:
                key = one.name, target.column
                try:
                    values = standardised(one.said, target, _values(watch.plan, target, kept.sample))
                    steps = watch.series[key].feed(values[np.isfinite(values)].tolist())
                except Exception as error:          # it begins anew: what it was left in is not known
                    self._note(model, Failure(*key, error))
                    watch.series[key] = watch.series[key].fresh()
                    continue
                if steps and math.isfinite(end):
                    drifts = [step for step in steps if step.drift]
                    watch.readings[key] = Reading(
                        *key, target.role, kept.pane, end, (drifts or steps)[-1].statistic, bool(drifts), one.threshold)

    def _ask(self, watch: _Watch, window: Window) -> None:
        """Hand over the tests on rows that are due, each with the rows of its own window."""
        before = window.pane - window.skipped - 1
        for one in watch.plan.of("sample"):
            panes = [kept for kept in watch.panes if kept.pane > window.pane - one.said.window_panes]
            if panes and one.is_due(window.pane, before):
                request = Request(watch.plan.reference, one, window.pane, window.end, tuple(kept.sample for kept in panes),
                                  sum(kept.events for kept in panes))
                if self._background.give((window.model, window.version, one.name), partial(answered, request)):
                    self._skipped[window.model, one.name] += 1

    def _fetch(self) -> None:
        for (model, version, detector), result in self._background.take():
            if isinstance(result, Exception):
                self._note(model, Failure(detector, "", result))
                continue
            readings, failures = result
            for failure in failures:
                self._note(model, failure)
            watch = self._watches.get(model)
            if watch is not None and watch.version == version:      # else it speaks of a reference that is gone
                watch.readings |= {(reading.detector, reading.column): reading for reading in readings}

    def _note(self, model: str, failure: Failure) -> None:
        """Count a failure; log the first of its kind."""
        self._failed[model, failure.detector] += 1
        kind = model, failure.detector, type(failure.error).__name__
        if kind not in self._logged:
            self._logged.add(kind)
            log.warning("Detector failed.", extra={
                "model": model, "detector": failure.detector, "column": failure.column, "kind": kind[2],
                "error": one_line(str(failure.error))[:300]})


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _values(plan: Plan, target: Target, sample: Sample) -> NDArray[np.float64]:
    """The series of one pane: a column's values, or the errors of the events whose label is there; NaN for missing."""
    if target.row >= 0:
        return _numbers(sample.columns[target.column])
    assert plan.errors is not None
    prediction, label, numbers = plan.errors
    said, true = sample.columns[prediction], sample.columns[label]
    if numbers:
        return np.abs(_numbers(said) - _numbers(true))
    return np.array([math.nan if a is None or b is None else float(a != b) for a, b in zip(said, true, strict=True)])


def _numbers(values: NDArray[np.float64] | Sequence[str | None]) -> NDArray[np.float64]:
    """Values as numbers: true is 1, false is 0."""
    if isinstance(values, np.ndarray):
        return values
    return np.array([math.nan if text is None else float(text == "true") for text in values])
