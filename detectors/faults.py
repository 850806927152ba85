"""Whether a row moved because its data broke: missing, unseen, out of range, constant, or in another unit.

Idea: a broken producer leaves marks that a changing world does not. Its values go where the reference has nothing
(missing, unseen levels, below and above the range) while all others stay as they were; or they are all one value; or the
whole column is the old one times a factor. Such a row is repaired, not learned: its alarm is of kind `quality` and never
starts a retraining.

The rule for the first group: those bins gained more than half of what the row surely moved. What it moved is the total
variation of the scan's bins less what chance explains of it, so that 3 % missing in a window of 250 is seen as what it is.

Invariant: a pure function of (reference, row, counts). Rows made of several columns (joint rows) have no faults of their
own; rows of embeddings and texts only the one that their column was missing.

Cost: 70 us per row, and 0.3-0.5 ms where a unit change is looked into (2 busy cores); asked only of rows that moved
surely. The fault explains a movement, it does not find one: without evidence from the scan it must not be asked.

Neighbours: `units` fits the unit change; the scan finds what moved; the service words an alarm with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from detectors.binning import NumericBinning
from detectors.reference import Reference
from detectors.rows import Row
from detectors.units import unit_change

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FaultKind = Literal["missing", "unseen", "below", "above", "constant", "unit"]

#: z and events by which a bin must have gained to be a fault's; the scan's own evidence came first.
GAIN_Z, GAIN_EVENTS = 4.0, 4.0
#: A column is constant when this share of at least so many present events is in one bin, by chance below this probability.
CONSTANT_SHARE, CONSTANT_EVENTS, CONSTANT_CHANCE = 0.999, 20, 1e-12
#: A unit change is looked for where so much of the row moved: less is a few values, not all of them.
UNIT_VARIATION = 0.03


@dataclass(frozen=True, slots=True)
class Fault:
    """What broke in a column.

    share_before, share_after : share of the events that show it, in the reference and in the window (0 to 1). Missing,
                    unseen and out-of-range values are shares of all events, constant and unit of those with a value
    words         : one sentence for a person
    """

    kind: FaultKind
    share_before: float
    share_after: float
    words: str


def faults(reference: Reference, row: int, counts: Ints) -> Fault | None:
    """The data fault that explains why a row moved; None where the world may have changed.

    row    : 0 ... J - 1        counts : int64, the row's fine counts in the window, shape (B,), padded or not
    """
    record, column = reference.records[row], reference.column_of_row[row]
    if column is None or reference.too_small:
        return None
    counts = counts[: record.binning.bins]
    events = int(counts.sum())
    if not events or not record.counts.sum():
        return None
    is_plain = column.name == record.name
    gained = _gained(record, counts, is_plain)
    if not is_plain:
        return gained
    if not record.counts[1:].any():
        return _first_values(counts, events)
    return _constant(record, counts) or (None if _mostly_missing(gained) else _unit(record, counts)) or gained


def _mostly_missing(gained: Fault | None) -> bool:
    return gained is not None and gained.kind == "missing"


def _gained(row: Row, counts: Ints, is_plain: bool) -> Fault | None:
    """The fault whose bins hold more than half of what the row surely moved."""
    fold = row.binning.scan_of_fine
    n = np.bincount(fold, weights=counts, minlength=row.binning.scan_bins)
    c, raw = row.c0, np.bincount(fold, weights=row.counts, minlength=row.binning.scan_bins)
    N, m = float(n.sum()), float(c.sum())
    q, p = n / N, raw / raw.sum()
    gap = q - p
    last = len(c) - 1
    bins: dict[FaultKind, int] = {"missing": 0}
    if is_plain:
        bins |= {"below": 1, "above": last} if isinstance(row.binning, NumericBinning) else {"unseen": last}
    # Missing values that came back are a producer's change as well; nothing can be lost from the other bins.
    found = {kind: (abs(gap[k]) if kind == "missing" else gap[k]) for kind, k in bins.items()
             if (gap[k] > 0 or kind == "missing") and _moved(n[k], N, c[k], m, row.deff)}
    if not found:
        return None
    variance = p * (1 - p)
    h = row.deff * (1 / N + 1 / m)
    chance = np.sqrt(h / (2 * np.pi)) * np.sqrt(variance).sum() + np.sqrt(h * (1 - 2 / np.pi) * variance.sum())
    variation = float(np.abs(gap).sum() / 2)
    if sum(found.values()) <= (variation - chance) / 2:
        return None
    kind = max(found, key=lambda name: found[name])
    before, after = float(p[bins[kind]]), float(q[bins[kind]])
    return Fault(kind, before, after, _words(row, kind, before, after))


def _moved(n: float, N: float, c: float, m: float, deff: float) -> bool:
    """Whether a bin surely changed: n of N events against c of m."""
    if abs(n - N * c / m) < GAIN_EVENTS:
        return False
    deviance = (xlogy(n, n) + xlogy(N - n, N - n) + xlogy(c, c) + xlogy(m - c, m - c) - xlogy(n + c, n + c)
                - xlogy(N + m - n - c, N + m - n - c) + xlogy(N + m, N + m) - xlogy(N, N) - xlogy(m, m))
    return bool(2 * deviance > deff * GAIN_Z**2)


def _words(row: Row, kind: FaultKind, before: float, after: float) -> str:
    shares = f"in {_percent(after)} of events, {_percent(before)} in the reference"
    if kind == "missing":
        return f"missing {shares}"
    if kind == "unseen":
        return f"levels that the reference has never seen {shares}"
    bound = row.minimum if kind == "below" else row.maximum
    return f"{kind} the reference's {'least' if kind == 'below' else 'largest'} value {bound:.6g} {shares}"


def _first_values(counts: Ints, events: int) -> Fault | None:
    """A column of which the reference has no value at all."""
    present = int(counts[1:].sum())
    if present < GAIN_EVENTS:
        return None
    return Fault("unseen", 0.0, present / events, f"a value in {_percent(present / events)} of events, none in the reference")


def _constant(row: Row, counts: Ints) -> Fault | None:
    """All present events in one regular bin, which the reference did not fill like that."""
    numeric = isinstance(row.binning, NumericBinning)
    # Below, above, rest and unseen hold many values: what fills them need not be one.
    regular = slice(2, -1) if numeric else slice(1, -2)
    present, before = int(counts[1:].sum()), row.counts[1:].sum()
    if present < CONSTANT_EVENTS or np.count_nonzero(row.counts[1:]) < 2 or not len(counts[regular]):
        return None
    at = int(counts[regular].argmax()) + (2 if numeric else 1)
    share = counts[at] / present
    p0 = float(row.counts[at] / before)
    if share < CONSTANT_SHARE or p0 >= 1 or (present / row.deff) * np.log(max(p0, 1e-300)) > np.log(CONSTANT_CHANCE):
        return None
    label = row.binning.labels()[at]
    value = f"the level {label}" if not numeric else f"values in {label}" if label.endswith(")") else f"the value {label}"
    return Fault("constant", p0, float(share),
                 f"constant: {value} in {_percent(share)} of events with a value, {_percent(p0)} in the reference")


def _unit(row: Row, counts: Ints) -> Fault | None:
    """The column as a whole in another unit."""
    present, before = counts[1:].sum(), row.counts[1:].sum()
    if not present or np.abs(counts[1:] / present - row.counts[1:] / before).sum() / 2 < UNIT_VARIATION:
        return None
    unit = unit_change(row, counts)
    if unit is None:
        return None
    name = f" ({unit.name})" if unit.name else ""
    return Fault("unit", 0.0, 1.0, f"scaled or shifted as a whole: {unit}{name}, fits to {_percent(unit.gap)} of events")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else f"{100 * share:.2g} %"
