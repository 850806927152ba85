"""Notes of panes: refused records and unseen levels belong to the same pane however the stream was cut, and are bounded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from monitor.flow import Refusal
from monitor.state.notes import NAME_CHARACTERS, UNSEEN_NAMES
from monitor.state.store import Store
from tests.unit.state.streams import TOPIC, batch, panes_of, rows_at, small_reference, stream

REFERENCE = small_reference()


def refused_at(rows, offsets, reason="type"):
    """The rows with some records refused: readable ones keep their offsets."""
    good = ~np.isin(rows.offsets, offsets)
    refusals = tuple(Refusal(TOPIC, rows.partition, int(o), reason, "", b"") for o in offsets if o in rows.offsets.tolist())
    return replace(rows, offsets=rows.offsets[good], times=rows.times[good], refusals=refusals,
                   columns={name: values[good] if isinstance(values, np.ndarray)
                            else [v for v, keep in zip(values, good.tolist(), strict=True) if keep]
                            for name, values in rows.columns.items()})


def closed(parts):
    panes = panes_of(REFERENCE)
    found = []
    for part in [*parts, None]:
        panes.add(batch(ended=part is None), [] if part is None else [part])
        found += [(w.pane, dict(w.refused), w.in_a_row, {c: dict(v) for c, v in w.unseen.items()}) for w in panes.closed()]
    return found


TIMES = [i * 100 for i in range(60)]
BAD = [0, 1, 5, 20, 21, 22, 23, 24, 40, 59]


def test_a_refused_record_belongs_to_the_pane_of_the_record_before_it():
    found = closed([refused_at(rows_at(TIMES), BAD)])
    assert [(sum(refused.values()), in_a_row) for _, refused, in_a_row, _ in found] == [
        (3, 2), (5, 5), (0, 0), (1, 1), (0, 0), (1, 1)]


@pytest.mark.parametrize("cut", [1, 2, 20, 22, 25, 41, 59])
def test_notes_do_not_depend_on_where_the_stream_was_cut(cut):
    whole = rows_at(TIMES)
    first, second = rows_at(TIMES[:cut]), rows_at(TIMES[cut:], first_offset=cut)
    assert closed([refused_at(first, BAD), refused_at(second, BAD)]) == closed([refused_at(whole, BAD)])


def test_tombstones_are_no_fault():
    assert all(not refused for _, refused, _, _ in closed([refused_at(rows_at(TIMES), BAD, "tombstone")]))


def test_unseen_levels_are_kept_by_name_with_their_events():
    found = closed([rows_at(TIMES)])
    assert [unseen for _, _, _, unseen in found] == [{"c": {"new": 2}}] * 6


def test_many_unseen_levels_keep_the_same_twenty_in_any_order():
    rows = rows_at([10] * 500)
    names = [f"level {i % 100:03d}" + "x" * 200 for i in range(500)]
    one = closed([replace(rows, columns={**rows.columns, "c": names})])
    other = closed([replace(rows, columns={**rows.columns, "c": names[::-1]})])
    kept = one[0][3]["c"]
    assert one == other
    assert len(kept) == UNSEEN_NAMES
    assert set(kept.values()) == {5}
    assert {len(name) for name in kept} == {NAME_CHARACTERS}


def test_notes_of_open_panes_survive_a_restart():
    panes = panes_of(REFERENCE)
    panes.add(batch(), [refused_at(rows_at(TIMES), [57, 58, 59])])
    live, store = panes.streams["m"], Store(":memory:")
    with store.transaction() as db:
        store.save_stream(db, live, ("1", REFERENCE.digest), "{}", {})
    again = stream(REFERENCE)
    store.load(again)
    store.close()
    assert again.notes == live.notes != {}
    assert [position.in_a_row for position in again.positions.values()] == [3]
