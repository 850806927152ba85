"""What a monitor's further detectors will look at: `detectors:` of the configuration, joined with the reference.

Idea: everything that can be wrong is found before anything starts: a name that does not exist, a column that does not, a
method that is not defined for a column's kind, an option that the detector does not have, a package that is not
installed, a reference that kept no rows. Each is one ConfigError with the path of the YAML. What comes out is a list of
(method, columns) that only has to be computed.

    counts   one number per column from the window's counts         psi, ks, chi2 ...
    sample   one number per column from kept rows                   evidently:*, or one for all columns: mmd, c2st
    series   fed value by value, with the kept rows of a pane       cusum, ewma, river:*

A series is a column's kept values in the order of (time, partition, offset), or `error`: 0 or 1 per event (prediction is
the label or not), of numbers the absolute difference, for the events whose label is there. A column that is called
`error` is that column. Neighbours: `observe` computes, `service` and `check-config` ask for the plan.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from detectors import comparison, methods, streaming
from detectors.method import Method
from detectors.reference import Reference
from detectors.streaming import Cusum, Streaming
from monitor.config import Detector
from monitor.errors import ConfigError

#: What stands for all columns together, and for the errors.
JOINT, ERROR = "__joint__", "error"
#: Series that are standardised with the reference's mean and s.d.: their thresholds are in standard deviations.
_BY_OPTIONS, _BY_VALUES = frozenset({"cusum", "ewma"}), frozenset({"river:PageHinkley"})
#: Beginning of a name, package that its detectors need, extra that brings it.
_PACKAGES = (("evidently:", "evidently", "report"), ("river:", "river", "river"), ("mmd", "torch", "torch"),
             ("c2st", "torch", "torch"), ("fourier_mmd", "torch", "torch"))


@dataclass(frozen=True, slots=True)
class Target:
    """One column that a detector gives a number for.

    row        : of the reference's rows, the column's first; -1 for a joint method and for the errors
    mean, sd   : what its values are standardised with before a series detector takes them
    is_defined : whether the detector has a number for what the reference holds of the column
    """

    column: str
    role: str
    kind: str
    row: int = -1
    mean: float = 0.0
    sd: float = 1.0
    is_defined: bool = True


@dataclass(frozen=True, slots=True)
class Planned:
    """One detector of the configuration, with the columns that it will look at.

    members   : columns of the matrix of a joint method
    threshold : score at which it is drift, as configured or as its authors have it; None: the detector alone knows
    """

    said: Detector
    method: Method
    targets: tuple[Target, ...]
    members: tuple[str, ...] = ()
    threshold: float | None = None

    @property
    def name(self) -> str:
        """As in the configuration and in the label `detector`."""
        return self.said.name

    def is_due(self, pane: int, before: int) -> bool:
        """Whether a pane that divides by `every_panes` has ended since the pane that was decided before."""
        return pane // self.said.every_panes != before // self.said.every_panes


@dataclass(frozen=True, slots=True)
class Plan:
    """All further detectors of one model under one reference.

    errors : (prediction, label, whether both are numbers), where a detector takes the errors
    """

    reference: Reference
    detectors: tuple[Planned, ...]
    errors: tuple[str, str, bool] | None = None
    names: tuple[str, ...] = field(init=False)      # columns and labels whose rows must be kept
    rows: int = field(init=False)                   # of each pane; 0: none are
    panes: int = field(init=False)                  # decided panes whose rows are kept

    def __post_init__(self) -> None:
        kept = [one for one in self.detectors if one.method.source != "counts"]
        names: dict[str, None] = {}
        for one in kept:
            names |= dict.fromkeys(one.members)
            names |= {target.column: None for target in one.targets if target.row >= 0}
            if any(target.row < 0 and not one.members for target in one.targets) and self.errors is not None:
                names |= dict.fromkeys(self.errors[:2])
        object.__setattr__(self, "names", tuple(names))
        object.__setattr__(self, "rows", max((one.said.sample_rows for one in kept), default=0))
        object.__setattr__(self, "panes", max((one.said.window_panes for one in kept), default=0))

    def of(self, source: str) -> list[Planned]:
        """The detectors that are computed from `counts`, a `sample` or a `series`."""
        return [one for one in self.detectors if one.method.source == source]


def plan(said: Sequence[Detector], reference: Reference, labels: Mapping[str, str], where: str) -> Plan:
    """The plan of one monitor; ConfigError for the first thing that cannot be.

    labels : label column -> kind      where : path of the list in the configuration
    """
    detectors, errors = [], None
    for index, one in enumerate(said):
        path = f"{where}[{index}]"
        method = _method(one, path)
        _refuse_absent(method, path)
        if method.source == "sample" and not reference.sample:
            raise ConfigError(f"{path}.name: expected a reference that keeps some of its rows for {one.name}, got one without; "
                              "fit it again with `tidemark fit`")
        if ERROR in one.columns and ERROR not in reference.rows:
            errors = _errors(one, method, reference, labels, f"{path}.columns[{one.columns.index(ERROR)}]")
        targets = _targets(one, method, reference, errors, path)
        members: tuple[str, ...] = ()
        if method.joint:
            members, targets = tuple(target.column for target in targets), (Target(JOINT, "joint", "joint"),)
        threshold = one.threshold if one.threshold is not None else method.threshold
        if method.source == "series":
            _refuse_unfit_series(one, path)
            threshold = _limit(one, method, series(one, targets[0], path))
        elif one.options:
            raise ConfigError(f"{path}.options.{next(iter(one.options))}: expected no parameters for {one.name}, got "
                              f"`{next(iter(one.options))}`; remove it")
        detectors.append(Planned(one, method, targets, members, threshold))
    return Plan(reference, tuple(detectors), errors)


def series(said: Detector, target: Target, where: str = "detectors") -> Streaming:
    """The detector of one series before its first value; ConfigError for options that it does not take."""
    options: dict[str, object] = dict(said.options)
    if said.name in _BY_OPTIONS and not options.keys() & {"mean", "sd"}:
        if target.row < 0:
            raise ConfigError(f"{where}.options: expected mean and sd of the errors, of which the reference knows nothing, got "
                              "none; give both")
        options |= {"mean": target.mean, "sd": target.sd}
    try:
        return streaming.detector(said.name, **options)
    except ImportError as error:
        raise ConfigError(f"{where}.name: {error}") from None
    except ValueError as error:
        text = str(error)
        option = text.startswith(f"{said.name}.")
        raise ConfigError(f"{where}.options{text.removeprefix(said.name) if option else ': ' + text}") from None


def standardised(said: Detector, target: Target, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values as the detector takes them."""
    if said.name in _BY_VALUES and target.row >= 0:
        return (values - target.mean) / target.sd
    return values


def _method(said: Detector, where: str) -> Method:
    try:
        return methods.method(said.name)
    except ValueError as error:
        raise ConfigError(f"{where}.name: {str(error).removeprefix('detector: ')}") from None


def _refuse_absent(method: Method, where: str) -> None:
    """A package that the detector needs and that is not installed."""
    for prefix, package, extra in _PACKAGES:
        if method.name.startswith(prefix) and find_spec(package) is None:
            raise ConfigError(f"{where}.name: expected the package {package} for {method.name}, got none; "
                              f"pip install 'tidemark[{extra}]'")


def _targets(
    said: Detector, method: Method, reference: Reference, errors: tuple[str, str, bool] | None, where: str
) -> tuple[Target, ...]:
    """The columns of the detector; all that it fits where none is named."""
    known = _known_targets(method, reference)
    fitting = {name: target for name, target in known.items() if target.kind in method.kinds and target.is_defined}
    if not said.columns:
        chosen = [target for target in fitting.values() if reference.column_of_row[target.row] is not None]
        if not chosen:
            raise ConfigError(f"{where}.name: expected a column of kind {_kinds(method)} for {said.name}, got none in the "
                              "reference; remove the detector")
        return tuple(chosen)
    targets = []
    for place, name in enumerate(said.columns):
        here = f"{where}.columns[{place}]"
        if name == ERROR and errors is not None and name not in known:
            targets.append(Target(ERROR, "label", "numeric" if errors[2] else "boolean"))
            continue
        if name not in known:
            near = difflib.get_close_matches(name, list(known), 1)
            raise ConfigError(f"{here}: expected a column of the reference, got {name!r}; "
                              + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)[:200]}"))
        if known[name].kind not in method.kinds:
            raise ConfigError(f"{here}: expected a column of kind {_kinds(method)} for {said.name}, got {name!r} of kind "
                              f"{known[name].kind}; name another column, or another detector for it")
        if name not in fitting:
            raise ConfigError(f"{here}: expected a column that {said.name} is defined for by what the reference holds of it, got "
                              f"{name!r} (constant, empty, or of more than two levels); name another one")
        targets.append(fitting[name])
    return tuple(targets)


def _known_targets(method: Method, reference: Reference) -> dict[str, Target]:
    """What may be named: rows of the reference where counts are looked at, else the columns themselves."""
    owners = reference.column_of_row
    found: dict[str, Target] = {}
    if method.source == "counts":
        defined = comparison.applies(method.name, reference)
        for row, (name, column) in enumerate(zip(reference.rows, owners, strict=True)):
            own = column is not None and column.name == name       # else a joint row, or one of several of its column
            found[name] = Target(name, column.role if column is not None else "joint",
                                 column.kind if column is not None and own else "numeric", row,
                                 is_defined=bool(defined[row]))
        return found
    for column in reference.columns:
        row, mean, sd, is_defined = owners.index(column), 0.0, 1.0, True
        if column.kind == "numeric" and method.source == "series":
            record = reference.records[row]
            present = record.counts[1:]
            is_defined = bool(present.sum()) and record.sd > 0
            if is_defined:                          # positions are the means of their bins' values, so this is exact
                mean, sd = float(present @ record.positions[1:] / present.sum()), record.sd
        found[column.name] = Target(column.name, column.role, column.kind, row, mean, sd, is_defined)
    return found


def _kinds(method: Method) -> str:
    return " or ".join(sorted(method.kinds))


def _errors(said: Detector, method: Method, reference: Reference, labels: Mapping[str, str], where: str) -> tuple[str, str, bool]:
    """The columns that the errors are made of: the one prediction and its one label."""
    predictions = [column for column in reference.columns if column.role == "prediction"]
    if method.source != "series":
        raise ConfigError(f"{where}: expected a detector of a series for the errors, got {said.name}; name a column, or take "
                          "cusum, ewma or a river: detector")
    if len(predictions) != 1 or len(labels) != 1:
        raise ConfigError(f"{where}: expected one prediction and one label to make errors of, got {len(predictions)} and "
                          f"{len(labels)}; give the monitor's schema one column of role label, or name a column")
    (prediction,), ((label, kind),) = predictions, labels.items()
    numbers = prediction.kind == "numeric"
    if numbers != (kind == "numeric"):
        raise ConfigError(f"{where}: expected a label of the prediction's kind, got {kind} for {prediction.kind}; "
                          f"set schema.columns.{label}.kind")
    if not {"numeric"} & method.kinds and numbers:
        raise ConfigError(f"{where}: expected errors of kind {_kinds(method)} for {said.name}, got absolute differences of "
                          "numbers; take a detector for numbers")
    return prediction.name, label, numbers


def _refuse_unfit_series(said: Detector, where: str) -> None:
    """Settings that mean nothing for a detector that takes every value and decides by its own options."""
    if said.threshold is not None:
        raise ConfigError(f"{where}.threshold: expected none for {said.name}, got {said.threshold}; it decides by its own "
                          "parameters, set them in options")
    if said.every_panes != 1:
        raise ConfigError(f"{where}.every_panes: expected 1 for {said.name}, which takes every value, got {said.every_panes}; "
                          "remove it")


def _limit(said: Detector, method: Method, made: Streaming) -> float | None:
    """What its statistic is compared with, where that is one number that its options leave as it is."""
    if isinstance(made, Cusum):
        return made.h
    return None if said.options else method.threshold
