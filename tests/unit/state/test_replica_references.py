"""Which reference replicas count by after a promotion: what the owner tells them, when, and from when on they follow it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detectors.reference import Reference
from monitor.errors import CheckpointRefused
from monitor.state.panes import EVERYTHING
from monitor.state.replica_share import Counting, packed, read, read_judged, rows_of, shared
from monitor.state.replica_store import REFERENCE, MirroredStore, latest
from tests.unit.state.streams import batch, cut, rows_at, small_reference, stream

FIRST, SECOND = small_reference("1"), small_reference("2", seed=2)


class Topic:
    """What a store writes: a partition of the state topic and the topic of references."""

    def __init__(self):
        self.records = []

    def write(self, changes):
        self.records += [(len(self.records) + place, key, value) for place, (key, value) in enumerate(changes)]

    def told(self):
        """(version, configured) of each reference that was told, in order."""
        return [(one.version, one.configured) for one in (
            read_judged(value) for _, key, value in self.records if key.startswith(REFERENCE))]


def save(store, reference, configured):
    with store.transaction() as db:
        store.save_stream(db, stream(reference), (configured.version, configured.digest), "{}", {})


def test_replicas_are_told_of_a_reference_where_the_configuration_does_not_say_it_and_once(tmp_path):
    topic = Topic()
    store = MirroredStore(tmp_path / "a.db", {}, topic.write)
    save(store, FIRST, FIRST)
    assert topic.told() == []
    save(store, SECOND, FIRST)                                          # promoted
    save(store, SECOND, FIRST)
    assert topic.told() == [("2", FIRST.digest)]
    (value,) = [value for _, key, value in topic.records if key.startswith(REFERENCE)]
    assert Reference.from_json(read_judged(value).reference, "told").digest == SECOND.digest
    store.close()

    again = MirroredStore(tmp_path / "b.db", latest(topic.records)[0], topic.write)       # another owner knows what was told
    save(again, SECOND, FIRST)
    assert len(topic.told()) == 1
    save(again, FIRST, FIRST)                                           # rolled back: what was told is no longer so
    assert topic.told()[1:] == [("1", FIRST.digest)]
    again.close()


def test_a_replica_counts_by_another_reference_from_its_next_commit_on():
    counting = Counting([stream(FIRST)], {}, clock=lambda: 0.0, open_panes_max=EVERYTHING)
    first, rest = cut(rows_at(np.arange(0, 3_000, 10)), 100)
    second, third = cut(rest, 100)
    counting.add(batch(), [first])
    counting.judge(stream(SECOND))
    digests, events, began = [], [], []
    for rows in (second, third):
        counting.add(batch(), [rows])
        ((_, share),) = counting.messages()
        digests.append(share.digest)
        events.append(share.outcomes["counted"])
        began.append(share.positions[0][0])
        counting.committed()
    assert digests == [FIRST.digest, SECOND.digest]
    assert events == [200, 100]
    assert began == [-1, 200]                                           # no gap between the two


def test_nothing_but_a_reference_of_ours_is_taken_for_one():
    with pytest.raises(CheckpointRefused, match="topic of references: expected a reference of ours"):
        read_judged(packed(next(shared(rows_at([1]), {"x"}, 1.0))))


def test_events_of_one_record_keep_their_places_on_the_way_to_the_owner():
    rows = rows_at(np.arange(0, 400, 10))
    many = replace(rows, offsets=rows.offsets // 8, within=rows.offsets % 8)
    (found,) = [rows_of(read(packed(piece))) for piece in shared(many, {"x"}, 1.0)]
    assert found.within.tolist() == many.within.tolist()
    assert rows_of(next(shared(rows, {"x"}, 1.0))).within is None
    kept = [rows_of(piece) for piece in shared(many, {"x"}, 0.5)]
    assert 0 < sum(map(len, kept)) < len(many)
    assert len(set(np.concatenate([one.offsets for one in kept]).tolist())) > 1      # drawn by event, not by record
