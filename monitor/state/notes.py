"""What is noted of a pane beside its counts: records that were refused while it was open, and levels never seen before.

A refused record has no event time, so it belongs to the pane that the record before it in its partition belongs to: the
same pane however the stream was cut into batches. Unseen levels are kept by name for people; when there are more than
twenty, those with the smallest hashes, so that which are kept does not depend on the order either, and their events are
counted exactly (a level of the last twenty was among the twenty ever since it first came).

Invariant: the notes of a pane are a pure function of what its partitions hold.

Cost: nothing where nothing is refused or unseen; else one search per refused record, and 50 ns per event of a column with
unseen levels. Memory: 7 reasons and 20 names of 64 characters per column, for each open pane.
Neighbours: `panes` asks, `store` writes notes with the counters, `decide.quality` reads them in the closed pane.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detectors.binning import CategoryBinning, level_hash
from detectors.reference import Reference
from monitor.flow import Columns, Rows, place_of, places_of

#: Unseen levels that are kept by name, per pane and column, and characters of a name.
UNSEEN_NAMES, NAME_CHARACTERS = 20, 64
#: Reasons that are no fault: a record without a value deletes its key in a compacted topic.
NO_FAULT = frozenset({"tombstone"})


@dataclass(slots=True)
class Notes:
    """Of one pane: refused records by reason, the most of them in a row, and unseen levels with their events, by column."""

    refused: dict[str, int] = field(default_factory=dict)
    in_a_row: int = 0
    unseen: dict[str, dict[str, int]] = field(default_factory=dict)

    def join(self, other: Notes) -> None:
        """Take in what was noted of an earlier pane that will not close on its own."""
        for reason, count in other.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count
        self.in_a_row = max(self.in_a_row, other.in_a_row)
        for column, values in other.unseen.items():
            _keep(self.unseen.setdefault(column, {}), values.items())


def note_refusals(
    notes: dict[int, Notes], rows: Rows, panes: NDArray[np.int64], before: int, in_a_row: int
) -> int:
    """Note a part's refused records; how many in a row were refused at its end.

    panes    : of the part's readable records     before : the pane of the one before them
    in_a_row : records refused at the end of the partition's last part
    """
    refusals = [refusal for refusal in rows.refusals if refusal.reason not in NO_FAULT]
    if not refusals:
        return 0 if len(rows) else in_a_row
    places = np.searchsorted(places_of(rows.offsets, rows.within), [
        refusal.offset if rows.within is None else place_of(refusal.offset, refusal.row or 0) for refusal in refusals]).tolist()
    last = 0
    for refusal, place in zip(refusals, places, strict=True):       # turns: refused records
        in_a_row, last = (in_a_row if place == last else 0) + refusal.events, place
        note = notes.setdefault(int(panes[place - 1]) if place else before, Notes())
        note.refused[refusal.reason] = note.refused.get(refusal.reason, 0) + refusal.events
        note.in_a_row = max(note.in_a_row, in_a_row)
    return in_a_row if last == len(rows) else 0


def note_unseen(
    notes: dict[int, Notes], reference: Reference, columns: Columns, panes: NDArray[np.int64], seen: Iterable[int]
) -> None:
    """Note the levels that the reference has never seen.

    panes : of every event of `columns`     seen : the category rows of the reference that counted such a level
    """
    for j in seen:                                                  # turns: columns with unseen levels
        row = reference.records[j]
        values: Sequence[str | None] = columns.get(row.name, ())  # type: ignore[assignment]
        binning = row.binning
        assert isinstance(binning, CategoryBinning)
        new = {value for value in set(values) if value is not None and binning.code(value) == binning.bins - 1}
        found: dict[int, dict[str, int]] = {}
        for pane, value in zip(panes.tolist(), values, strict=False):       # turns: events
            if value in new:
                counts = found.setdefault(pane, {})
                name = str(value)[:NAME_CHARACTERS]
                counts[name] = counts.get(name, 0) + 1
        for pane, counts in found.items():
            _keep(notes.setdefault(pane, Notes()).unseen.setdefault(row.name, {}), counts.items())


def closed_with(notes: dict[int, Notes], pane: int) -> Notes:
    """The notes of a pane that closes, and of every earlier one, which are forgotten."""
    whole = Notes()
    for earlier in sorted(key for key in notes if key <= pane):
        whole.join(notes.pop(earlier))
    return whole


def category_rows(reference: Reference) -> NDArray[np.int64]:
    """The rows of a reference that count levels, and behind each its bin of unseen levels: int64 (c, 2)."""
    pairs = [(j, row.binning.bins - 1) for j, row in enumerate(reference.records) if isinstance(row.binning, CategoryBinning)]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _keep(kept: dict[str, int], more: Iterable[tuple[str, int]]) -> None:
    for name, count in more:
        kept[name] = kept.get(name, 0) + count
    if len(kept) > UNSEEN_NAMES:
        for name in sorted(kept, key=level_hash)[UNSEEN_NAMES:]:
            del kept[name]
