"""Laws of panes: cut, order and replay change nothing; no event is lost; a pane is decided once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.flow import Batch
from tests.unit.state.streams import TOPIC, batch, cut, panes_of, rows_at, small_reference

REFERENCE = small_reference()
#: Event times of one partition, up to 3 s out of order, over 30 panes of 1 s.
TIMES = st.lists(st.integers(0, 30_000), min_size=1, max_size=60).map(
    lambda times: [t + (i * 7919) % 3000 for i, t in enumerate(sorted(times))])


def decided(panes):
    return [(w.pane, w.profile.events, w.profile.digest()) for w in panes.closed()]


def run_all(panes, parts, ended=True, partitions=(0,)):
    seen = []
    for part in parts:
        panes.add(batch(partitions), [part])
        seen += decided(panes)
    panes.add(batch(partitions, ended=ended), [])
    return seen + decided(panes)


@settings(max_examples=60, deadline=None)
@given(times=TIMES, where=st.integers(0, 60), lateness=st.integers(0, 2))
def test_panes_do_not_depend_on_where_the_stream_was_cut(times, where, lateness):
    rows = rows_at(times)
    whole = run_all(panes_of(REFERENCE, lateness_s=lateness), [rows])
    parts = [part for part in cut(rows, min(where, len(rows))) if len(part)]
    assert run_all(panes_of(REFERENCE, lateness_s=lateness), parts) == whole


@settings(max_examples=60, deadline=None)
@given(first=TIMES, second=TIMES, order=st.lists(st.booleans(), max_size=20))
def test_panes_do_not_depend_on_how_partitions_interleave(first, second, order):
    def parts(picks):
        queues = {0: list(cut(rows_at(first, 0), len(first) // 2)), 1: list(cut(rows_at(second, 1), len(second) // 2))}
        for pick in [*picks, *([False] * 2), *([True] * 2)]:
            queue = queues[int(pick)]
            if queue:
                part = queue.pop(0)
                if len(part):
                    yield part

    one = run_all(panes_of(REFERENCE), parts(order), partitions=(0, 1))
    other = run_all(panes_of(REFERENCE), parts([not pick for pick in order]), partitions=(0, 1))
    assert sorted(one) == sorted(other)


@settings(max_examples=60, deadline=None)
@given(times=TIMES, where=st.integers(0, 60), back=st.integers(1, 60))
def test_replaying_a_batch_changes_nothing(times, where, back):
    rows = rows_at(times)
    end = max(1, min(where, len(rows)))
    start = max(0, end - back)
    head, tail = cut(rows, end)
    again = cut(rows, start)[1]                     # begins among what was counted and goes beyond it
    panes, once = panes_of(REFERENCE), panes_of(REFERENCE)
    parts = [part for part in (head, again, head, tail) if len(part)]
    assert run_all(panes, parts) == run_all(once, [rows])
    assert panes.streams["m"].outcomes == once.streams["m"].outcomes


@settings(max_examples=60, deadline=None)
@given(times=TIMES, lateness=st.integers(0, 2))
def test_every_event_is_in_exactly_one_pane_and_no_pane_is_decided_twice(times, lateness):
    panes = panes_of(REFERENCE, lateness_s=lateness)
    seen = run_all(panes, [rows_at(times)])
    assert sum(events for _, events, _ in seen) == len(times) == panes.streams["m"].outcomes["counted"]
    assert len({pane for pane, _, _ in seen}) == len(seen)
    assert [pane for pane, _, _ in seen] == sorted(pane for pane, _, _ in seen)


def test_an_event_behind_its_partitions_clock_is_counted_late_in_the_open_pane():
    panes = panes_of(REFERENCE)
    panes.add(batch(), [rows_at([500, 1500, 2500, 100])])
    assert [(w.pane, w.profile.events) for w in panes.closed()] == [(0, 1), (1, 1)]
    assert panes.streams["m"].late == 1
    panes.add(batch(ended=True), [])
    assert [(w.pane, w.profile.events) for w in panes.closed()] == [(2, 2)]


def test_a_silent_partition_holds_the_watermark_until_it_has_been_idle():
    now = [0.0]
    panes = panes_of(REFERENCE, clock=lambda: now[0], idle_seconds=30)
    panes.add(batch((0, 1), caught_up=(1,)), [rows_at([500, 5500])])
    assert list(panes.closed()) == []
    now[0] = 31.0
    panes.add(batch((0, 1), caught_up=(1,)), [])
    assert [w.pane for w in panes.closed()] == [0]


def test_when_all_partitions_are_idle_what_is_open_is_closed_and_no_pane_is_invented():
    now = [0.0]
    panes = panes_of(REFERENCE, clock=lambda: now[0], idle_seconds=30)
    panes.add(batch((0,), caught_up=(0,)), [rows_at([500, 5500])])
    assert [w.pane for w in panes.closed()] == [0]
    panes.add(batch((0,), caught_up=(0,)), [])
    now[0] = 40.0
    panes.add(batch((0,), caught_up=(0,)), [])
    assert [(w.pane, w.skipped) for w in panes.closed()] == [(5, 4)]
    assert list(panes.closed()) == []


def test_records_that_retention_took_are_counted_as_lost_and_not_waited_for():
    panes = panes_of(REFERENCE)
    panes.add(batch(), [rows_at([100, 200])])
    panes.add(Batch(assigned=frozenset({(TOPIC, 0)}), lost={(TOPIC, 0): 8}), [rows_at([300], first_offset=10)])
    stream = panes.streams["m"]
    assert (stream.outcomes["counted"], stream.outcomes["lost"], stream.positions[TOPIC, 0].next_offset) == (3, 8, 11)


@settings(max_examples=60, deadline=None)
@given(first=TIMES, second=TIMES, room=st.integers(4, 9), lateness=st.integers(0, 2),
       cuts=st.lists(st.integers(0, 60), max_size=4))
def test_a_limit_of_open_panes_changes_when_events_are_counted_and_not_where(first, second, room, lateness, cuts):
    """One partition is read far ahead of the other, as from a backlog; the panes are those of an unlimited run."""
    def parts():
        yield rows_at(first, 0)
        rest, done = rows_at(second, 1), 0
        for at in sorted({*cuts, len(rest)}):
            if at > done and at <= len(rest):
                yield cut(cut(rest, at)[0], done)[1] if done else cut(rest, at)[0]
                done = at

    free, tight = panes_of(REFERENCE, lateness_s=lateness), panes_of(REFERENCE, lateness_s=lateness, open_panes_max=room)
    expected = run_all(free, parts(), partitions=(0, 1))
    assert run_all(tight, parts(), partitions=(0, 1)) == expected
    assert tight.waiting() == frozenset()
    assert tight.streams["m"].positions == free.streams["m"].positions
    assert tight.streams["m"].outcomes == free.streams["m"].outcomes
    assert tight.streams["m"].late == free.streams["m"].late


def test_events_far_ahead_of_a_slower_partition_wait_uncounted_and_their_partition_is_held():
    panes = panes_of(REFERENCE, open_panes_max=5)
    panes.add(batch((0, 1)), [rows_at([100], partition=1), rows_at(np.arange(20) * 1000)])
    assert list(panes.closed()) == []
    assert panes.waiting() == {(TOPIC, 0)}
    assert panes.offsets("m") == {(TOPIC, 0): 5, (TOPIC, 1): 1}
    assert len(panes.streams["m"].open) == 5
    panes.add(batch((0, 1)), [rows_at([18_500], partition=1, first_offset=1)])
    assert [(w.pane, w.profile.events) for w in panes.closed()] == [(0, 2), *((pane, 1) for pane in range(1, 18))]
    assert panes.waiting() == frozenset()
    assert panes.offsets("m") == {(TOPIC, 0): 20, (TOPIC, 1): 2}


def test_a_gap_longer_than_the_limit_of_open_panes_does_not_stop_the_stream():
    panes = panes_of(REFERENCE, open_panes_max=5)
    panes.add(batch(), [rows_at([100, 10_000_100, 20_000_100])])
    assert [(w.pane, w.skipped) for w in panes.closed()] == [(0, 0), (10_000, 9_999)]
    assert panes.waiting() == frozenset()


def test_waiting_events_before_lost_ones_are_counted():
    panes = panes_of(REFERENCE, open_panes_max=5)
    panes.add(batch((0, 1)), [rows_at([100], partition=1), rows_at(np.arange(20) * 1000)])
    panes.add(Batch(assigned=frozenset({(TOPIC, 0), (TOPIC, 1)}), lost={(TOPIC, 0): 30}), [])
    assert panes.streams["m"].outcomes == {"counted": 21, "lost": 30}
    assert panes.offsets("m")[TOPIC, 0] == 50


@pytest.mark.parametrize("gap", [1, 127, 500])
def test_skipped_panes_are_told(gap):
    panes = panes_of(REFERENCE)
    panes.add(batch(ended=True), [rows_at([0, (gap + 1) * 1000])])
    assert [(w.pane, w.skipped) for w in panes.closed()] == [(0, 0), (gap + 1, gap)]


@settings(max_examples=60, deadline=None)
@given(first=TIMES, second=TIMES, where=st.integers(0, 60), lateness=st.integers(0, 2))
def test_panes_do_not_depend_on_how_many_parts_one_batch_brings(first, second, where, lateness):
    parts = [part for rows in (rows_at(first, 0), rows_at(second, 1)) for part in cut(rows, min(where, len(rows))) if len(part)]
    alone, together = (panes_of(REFERENCE, lateness_s=lateness) for _ in range(2))
    for part in parts:
        alone.add(batch((0, 1)), [part])
    together.add(batch((0, 1)), parts)
    assert together.streams["m"].open == alone.streams["m"].open
    assert together.streams["m"].outcomes == alone.streams["m"].outcomes


def test_what_waits_behind_an_event_far_ahead_still_finds_its_pane_when_all_partitions_are_idle():
    now = [0.0]
    panes = panes_of(REFERENCE, clock=lambda: now[0], lateness_s=3, open_panes_max=5, idle_seconds=30)
    panes.add(batch((0,), caught_up=(0,)), [rows_at([100, 4_100, 5_100, 4_200])])
    for second in (0.0, 40.0):
        now[0] = second
        panes.add(batch((0,), caught_up=(0,)), [])
    assert [(w.pane, w.profile.events) for w in panes.closed()] == [(0, 1), (4, 2), (5, 1)]
