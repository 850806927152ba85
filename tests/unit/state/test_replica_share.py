"""What replicas counted adds up to what one process counts, in whatever pieces it comes."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.errors import CheckpointRefused
from monitor.state.panes import EVERYTHING, Position
from monitor.state.replica_share import (
    Counting,
    MergedPanes,
    Share,
    SharedRows,
    note_of,
    packed,
    read,
    read_note,
    rows_of,
    shared,
)
from tests.unit.state.streams import TOPIC, batch, cut, panes_of, rows_at, small_reference, stream

REFERENCE = small_reference()


def counting(open_panes_max=EVERYTHING):
    return Counting([stream(REFERENCE)], {}, clock=lambda: 0.0, open_panes_max=open_panes_max)


def sent(one):
    """What a replica sends, as it comes out of the topic; it is committed."""
    messages = [read(packed(message)) for _, message in one.messages()]
    one.committed()
    return messages


def merged(fresh):
    return MergedPanes([stream(REFERENCE)], fresh=lambda: [fresh.pop(0)] if fresh else [], clock=lambda: 0.0)


def test_shares_of_two_replicas_make_the_panes_of_one_process():
    times = np.arange(0, 9_000, 37)
    parts = [rows_at(times, partition, seed=partition) for partition in (0, 1)]
    alone = panes_of(REFERENCE)
    alone.add(batch((0, 1)), parts)
    whole = [(window.pane, window.profile, window.unseen) for window in alone.closed()]

    fresh, replicas = [], (counting(), counting())
    for place in (0, 1):
        first, second = cut(parts[place], 111)
        for rows in (first, second):
            replicas[place].add(batch((place,)), [rows])
            fresh += sent(replicas[place])
    owner, windows = merged(fresh), []
    while fresh:
        owner.add(batch((0, 1)), [])
        windows += [(window.pane, window.profile, window.unseen) for window in owner.closed()]
    assert windows == whole
    assert owner.streams["m"].outcomes == alone.streams["m"].outcomes
    assert owner.streams["m"].positions == alone.streams["m"].positions


def test_a_share_that_does_not_go_on_where_the_last_one_ended_is_refused():
    one = counting()
    first, second = cut(rows_at(np.arange(0, 2_000, 10)), 100)
    one.add(batch(), [first])
    sent(one)
    one.add(batch(), [second])
    gap = sent(one)
    owner = merged(gap)
    owner.streams["m"].positions[TOPIC, 0] = Position(40)
    with pytest.raises(CheckpointRefused, match="expected counts from offset 40 on, got counts from 100"):
        owner.add(batch(), [])


def test_what_was_not_committed_is_forgotten_when_partitions_are_placed_anew():
    one = counting()
    one.add(batch(), [rows_at(np.arange(0, 2_000, 10))])
    one.begin({(TOPIC, 0): (50, note_of({"m": (490, 2)}))})
    assert [message.panes for message in sent(one) if isinstance(message, Share)] in ([], [{}])
    one.add(batch(), [rows_at(np.arange(0, 2_000, 10))])        # from offset 0 on: what lies before 50 was counted before
    (share,) = [message for message in sent(one) if message.positions]
    assert share.positions == {0: (50, 200, 1990, 0)}
    assert sum(share.outcomes.values()) == 150


def test_a_share_for_a_decided_pane_joins_the_open_one_and_counts_as_late():
    one = counting()
    one.add(batch(), [rows_at([100, 200, 1_500])])
    owner = merged(sent(one))
    owner.streams["m"].last_decided = 4
    owner.add(batch(), [])
    assert {pane: profile.events for pane, profile in owner.streams["m"].open.items()} == {5: 3}
    assert owner.streams["m"].late == 3


def test_a_partition_far_ahead_of_another_replicas_is_held_until_that_has_come_closer():
    one = counting(open_panes_max=10)
    one.add(batch(), [rows_at([0, 60_000])])
    assert one.ahead({}) == frozenset()
    assert one.ahead({(TOPIC, 1): note_of({"m": (20_000, 0)})}) == {(TOPIC, 0)}
    assert one.ahead({(TOPIC, 1): note_of({"m": (55_000, 0)})}) == frozenset()


def test_a_note_beside_an_offset_comes_back_and_a_strange_one_says_nothing():
    clocks = {"a=b": (5, 0), "m": (-1, 3)}
    assert read_note(note_of(clocks)) == clocks
    assert read_note("") == read_note("somebody else's") == {}


def test_captured_rows_come_back_in_pieces_of_bounded_size(monkeypatch):
    monkeypatch.setattr("monitor.state.replica_share.ROWS_BYTES", 2_000)
    rows = rows_at(np.arange(0, 5_000, 10))
    pieces = list(shared(rows, {"x", "c"}, 1.0))
    assert len(pieces) > 3
    back = [rows_of(read(packed(piece))) for piece in pieces]
    assert np.concatenate([one.offsets for one in back]).tolist() == rows.offsets.tolist()
    assert np.concatenate([one.columns["x"] for one in back]).tolist() == rows.columns["x"].tolist()
    assert [text for one in back for text in one.columns["c"]] == list(rows.columns["c"])
    few = [len(rows_of(piece)) for piece in shared(rows, {"x"}, 0.2)]
    assert 50 < sum(few) < 150


def test_bytes_that_are_no_share_are_refused_in_one_line():
    for value in (b"", b"\x93\x01", b"not ours"):
        with pytest.raises(CheckpointRefused, match="expected a share of counts"):
            read(value)
    assert isinstance(read(packed(next(shared(rows_at([1]), {"x"}, 1.0)))), SharedRows)


def test_a_partition_is_idle_by_the_owners_own_clock_whatever_the_replicas_says():
    now, fresh = [5.0], []
    replica = Counting([stream(REFERENCE)], {}, clock=lambda: 1.7e9, open_panes_max=EVERYTHING)
    owner = MergedPanes([stream(REFERENCE)], fresh=lambda: fresh and [fresh.pop(0)], clock=lambda: now[0], idle_seconds=30.0)

    def turn(*parts, caught_up=(0,)):
        replica.add(batch((0,), caught_up), list(parts))
        fresh.extend(sent(replica))
        owner.add(batch((0,)), [])
        return owner.silent_seconds("m"), owner._idle()

    assert turn(rows_at(np.arange(0, 2_000, 10)))[1] == frozenset()
    now[0] += 29.0
    assert turn() == (29.0, frozenset())
    now[0] += 1.0
    assert turn() == (30.0, {(TOPIC, 0)})
    assert turn(caught_up=()) == (None, frozenset())            # it has something to read again
    now[0] += 7.0
    assert turn() == (0.0, frozenset())


def test_a_partition_that_stays_silent_is_told_of_again_for_an_owner_that_is_new():
    now = [100.0]
    replica = Counting([stream(REFERENCE)], {}, clock=lambda: now[0], open_panes_max=EVERYTHING, retell_seconds=30.0)

    def told(caught_up=(0,)):
        replica.add(batch((0,), caught_up), [])
        messages = [message for _, message in replica.messages()]
        if messages:
            replica.committed()
        return [message.silent for message in messages]

    assert told() == [{0: 100.0}]
    now[0] += 29.0
    assert told() == []
    now[0] += 1.0
    assert told() == [{0: 100.0}]
    now[0] += 1.0
    assert told() == []
    now[0] += 60.0
    assert told(caught_up=()) == [{0: -1.0}]
    now[0] += 60.0
    assert told(caught_up=()) == []
