"""Tests on kept rows: one request, answered from nothing but what it carries.

A request holds the rows of the panes of one window, and the reference keeps rows of its own. evidently's tests see one
column after the other; joint tests see the columns as one matrix. Kept rows lie further apart than the events that they
stand for: of rows kept at a rate r, of events with design effect g, the design effect is 1 + r (g - 1), and the joint
tests permute and split blocks of that length.

Invariant: the answer is a function of the request; the seed of what draws at random is the pane's number. A column that
fails is told with its error, the others are answered. Cost: 1-5 ms a column for evidently's tests (seconds where they
permute), 0.1-1 s for joint ones on 4,000 rows. Neighbours: `observe` asks, in a thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors import encoding, parity
from detectors.domain import domain_classifier
from detectors.reference import Reference
from monitor.decide.plan import Planned, Target
from monitor.flow import TEXT_CHARACTERS, Reading, Sample

Values = NDArray[np.float64] | Sequence[str | None]
#: Rows that hardly depend on one another are taken as independent: blocks would only make the test coarser.
_INDEPENDENT = 1.05


class Failure(NamedTuple):
    """A detector that raised; `column` is empty where it is not one column's."""

    detector: str
    column: str
    error: Exception


@dataclass(frozen=True, slots=True)
class Request:
    """One test on rows, with all that it needs.

    panes  : the rows of each pane of the window, oldest first      events : of these panes, kept or not
    """

    reference: Reference
    planned: Planned
    pane: int
    end: float
    panes: tuple[Sample, ...]
    events: int


def answered(request: Request) -> tuple[list[Reading], list[Failure]]:
    """A reading for every column, and the errors of those that could not be read."""
    one, before = request.planned, request.reference.sample
    assert before is not None, "the plan refuses a reference without rows"
    if one.method.joint:
        return _joint(request, before)
    readings, failures = [], []
    for target in one.targets:                      # turns: columns
        score, drift = math.nan, None               # too few values are no number
        try:
            window = _column(request.panes, target.column)
            if target.kind == "text":
                found = domain_classifier(_texts(_cut(before[target.column])), _texts(window), request.pane % 2**31)
                score, drift = found.auc, None if math.isnan(found.auc) else found.lower > 0.5
                readings.append(_reading(request, target, score, drift))
                continue
            said = parity.evaluate(one.name, _cut(before[target.column]), window, target.kind)
            if said.state == "failed":
                raise ValueError(said.why)
            if said.state == "ok":
                score, drift = said.score, said.drift
        except Exception as error:                  # the other columns are still answered
            failures.append(Failure(one.name, target.column, error))
        readings.append(_reading(request, target, score, drift))
    return readings, failures


def _joint(request: Request, before: Mapping[str, Values]) -> tuple[list[Reading], list[Failure]]:
    """One number for all columns together."""
    one, (target,) = request.planned, request.planned.targets
    score = math.nan
    try:
        kinds = {column.name: column.kind for column in request.reference.columns if column.name in one.members}
        reference = _complete({name: _cut(before[name]) for name in kinds})
        window = _complete({name: _column(request.panes, name) for name in kinds})
        deff = _design_effect(request)
        score = encoding.compare(one.name, reference, window, kinds, seed=request.pane % 2**31, deff=deff).score
    except Exception as error:
        return [_reading(request, target, score, None)], [Failure(one.name, target.column, error)]
    return [_reading(request, target, score, None)], []


def _reading(request: Request, target: Target, score: float, drift: bool | None) -> Reading:
    """A reading; the configured threshold goes before the verdict of the detector's authors."""
    one = request.planned
    if one.said.threshold is not None and not math.isnan(score):
        drift = score >= one.said.threshold
    return Reading(one.name, target.column, target.role, request.pane, request.end, score, drift, one.threshold)


def _column(panes: Sequence[Sample], name: str) -> Values:
    """One column's values in all panes of the window, in time order."""
    parts = [sample.columns[name] for sample in panes]
    numbers = [values for values in parts if isinstance(values, np.ndarray)]
    if numbers:
        return np.concatenate(numbers)
    return [text for values in parts if not isinstance(values, np.ndarray) for text in values]


def _texts(values: Values) -> Sequence[str | None]:
    assert not isinstance(values, np.ndarray), "texts are lists"
    return values


def _cut(values: Values) -> Values:
    """The reference's values with texts as long as the kept rows': else a long text alone would be drift."""
    if isinstance(values, np.ndarray):
        return values
    return [text if text is None else text[:TEXT_CHARACTERS] for text in values]


def _complete(columns: Mapping[str, Values]) -> dict[str, Values]:
    """The rows that have every embedding; a missing number or category is taken as it is."""
    vectors = [values for values in columns.values() if isinstance(values, np.ndarray) and values.ndim == 2]
    if not vectors:
        return dict(columns)
    whole = np.flatnonzero(np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in vectors]))
    return {name: values[whole] if isinstance(values, np.ndarray) else [values[i] for i in whole.tolist()]
            for name, values in columns.items()}


def _design_effect(request: Request) -> float:
    """Of the kept rows, the largest of their columns, in the reference or in the window."""
    reference, members = request.reference, set(request.planned.members)
    assert reference.sample is not None
    rows = [row for row, column in enumerate(reference.column_of_row) if column is not None and column.name in members]
    largest = max(1.0, float(reference.deff[rows].max()))
    kept = sum(map(len, request.panes)) / max(request.events, 1)
    rate = min(1.0, max(kept, len(next(iter(reference.sample.values()))) / reference.events))
    effect = 1 + rate * (largest - 1)
    return effect if effect > _INDEPENDENT else 1.0
