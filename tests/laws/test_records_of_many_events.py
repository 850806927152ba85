"""Laws of records that hold many events: each is counted whole, once, wherever the stream was cut and whatever had to wait."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.flow import Refusal
from monitor.state.notes import Notes
from monitor.state.sample import Sampling, to_bytes
from tests.unit.state.streams import TOPIC, batch, panes_of, rows_at, small_reference

REFERENCE = small_reference()
#: Records of one to six events over 30 panes of 1 s, some of them wide, up to 3 s out of order.
RECORDS = st.lists(st.lists(st.integers(0, 30_000), min_size=1, max_size=6), min_size=1, max_size=14).map(
    lambda records: [[t if i % 3 == 0 else min(record) + t % 900 for t in record]
                     for i, record in enumerate(sorted(records, key=min))])


def packed(records, partition=0):
    """The events of these records, whose values depend on their number in the stream."""
    lengths = [len(record) for record in records]
    rows = rows_at([t for record in records for t in record], partition)
    return replace(rows, offsets=np.repeat(np.arange(len(records)), lengths), next_offset=len(records),
                   within=np.concatenate([np.arange(n) for n in lengths]))


def between(rows, first, following):
    """The records of some offsets as a part of their own."""
    a, b = np.searchsorted(rows.offsets, (first, following)).tolist()
    return replace(rows, offsets=rows.offsets[a:b], times=rows.times[a:b], within=rows.within[a:b], next_offset=following,
                   read=b - a, columns={name: values[a:b] for name, values in rows.columns.items()},
                   refusals=tuple(one for one in rows.refusals if first <= one.offset < following))


def parts(rows, cuts):
    edges = sorted({0, rows.next_offset, *(min(cut, rows.next_offset) for cut in cuts)})
    return [between(rows, a, b) for a, b in pairwise(edges)]


def run(panes, given_parts, partitions=(0,)):
    panes.streams["m"].sampling = Sampling(rows=4, panes=3, names=("x", "c"))
    seen = []
    for part in [*given_parts, None]:
        panes.add(batch(partitions, ended=part is None), [] if part is None else [part])
        seen += [(window.pane, window.profile.digest(), to_bytes(window.sample), window.refused, window.in_a_row)
                 for window in panes.closed()]
    return seen


@settings(max_examples=60, deadline=None)
@given(records=RECORDS, cuts=st.lists(st.integers(0, 14), max_size=4), lateness=st.integers(0, 2))
def test_panes_and_samples_do_not_depend_on_where_the_stream_was_cut(records, cuts, lateness):
    rows = packed(records)
    assert run(panes_of(REFERENCE, lateness_s=lateness), parts(rows, cuts)) == run(
        panes_of(REFERENCE, lateness_s=lateness), [rows])


@settings(max_examples=60, deadline=None)
@given(records=RECORDS)
def test_counts_are_those_of_the_same_events_in_records_of_their_own(records):
    whole, alone = panes_of(REFERENCE), panes_of(REFERENCE)
    expected = run(alone, [rows_at([t for record in records for t in record])])
    assert [seen[:2] for seen in run(whole, [packed(records)])] == [seen[:2] for seen in expected]
    assert whole.streams["m"].late == alone.streams["m"].late


@settings(max_examples=60, deadline=None)
@given(first=RECORDS, second=RECORDS, room=st.integers(2, 9), cuts=st.lists(st.integers(0, 14), max_size=3),
       lateness=st.integers(0, 2))
def test_a_limit_of_open_panes_changes_when_records_are_counted_and_not_where(first, second, room, cuts, lateness):
    """One partition far ahead of the other, with records that are wider than the limit: all is counted, and nothing stops."""
    def given_parts():
        return [packed(first, 0), *parts(packed(second, 1), cuts)]

    free = panes_of(REFERENCE, lateness_s=lateness)
    tight = panes_of(REFERENCE, lateness_s=lateness, open_panes_max=room + lateness)
    expected = run(free, given_parts(), (0, 1))
    assert run(tight, given_parts(), (0, 1)) == expected
    assert tight.waiting() == frozenset()
    assert tight.streams["m"].positions == free.streams["m"].positions


@settings(max_examples=60, deadline=None)
@given(records=RECORDS, other=RECORDS, room=st.integers(2, 6))
def test_what_is_passed_is_counted_and_nothing_else_after_every_batch(records, other, room):
    """What a checkpoint would write: the offsets behind which nothing, and before which everything is in the panes."""
    panes = panes_of(REFERENCE, open_panes_max=room)
    stream, rows = panes.streams["m"], {0: packed(records, 0), 1: packed(other, 1)}
    decided = 0
    for partition in (0, 1):
        for part in parts(rows[partition], range(14)):
            panes.add(batch((0, 1)), [part])
            for window in panes.closed():
                decided += window.profile.events
                passed = sum(int(np.searchsorted(rows[key[1]].offsets, offset)) for key, offset in panes.offsets("m").items())
                assert decided + sum(profile.events for profile in stream.open.values()) == passed


@settings(max_examples=60, deadline=None)
@given(records=RECORDS, end=st.integers(1, 14), back=st.integers(1, 14))
def test_reading_records_again_changes_nothing(records, end, back):
    rows = packed(records)
    end = min(end, len(records))
    head, again, tail = between(rows, 0, end), between(rows, max(0, end - back), len(records)), between(rows, end, len(records))
    assert run(panes_of(REFERENCE), [head, again, head, tail]) == run(panes_of(REFERENCE), [rows])


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2), (2,)])
def test_refused_rows_belong_to_the_pane_of_the_row_before_them_and_count_as_many_as_they_are(cuts):
    """Record 0: rows 1 and 2 of four are bad. Record 1: unreadable, five events. Record 2: its first row is bad."""
    rows = packed([[100, 1_100], [2_100, 2_200]])
    rows = replace(rows, offsets=np.array([0, 0, 2, 2]), within=np.array([0, 3, 1, 2]), next_offset=3, refusals=(
        Refusal(TOPIC, 0, 0, "type", "", b"", 1), Refusal(TOPIC, 0, 0, "timestamp", "", b"", 2),
        Refusal(TOPIC, 0, 1, "type", "", b"", None, 5), Refusal(TOPIC, 0, 2, "type", "", b"", 0)))
    panes = panes_of(REFERENCE)
    seen = run(panes, parts(rows, cuts))
    assert [(pane, refused, in_a_row) for pane, _, _, refused, in_a_row in seen] == [
        (0, {"type": 1, "timestamp": 1}, 2), (1, {"type": 6}, 6), (2, {}, 0)]
    assert panes.streams["m"].outcomes == {"counted": 4, "refused:type": 7, "refused:timestamp": 1}
    assert panes.streams["m"].notes == dict[int, Notes]()
