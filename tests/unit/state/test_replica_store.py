"""A store whose truth is a topic: what was written there makes the same store again, and what was not has not happened."""

from __future__ import annotations

import pytest

from monitor.errors import CheckpointRefused
from monitor.state.replica_store import SHARE, MirroredStore, latest
from tests.unit.state.streams import batch, panes_of, rows_at, small_reference

REFERENCE = small_reference()


class Topic:
    """A partition of the state topic in memory."""

    def __init__(self):
        self.records, self.writes = [], 0

    def write(self, changes):
        self.writes += 1
        self.records += [(len(self.records) + place, key, value) for place, (key, value) in enumerate(changes)]

    def rows(self):
        return latest(self.records)[0]


def dump(store):
    return {table: store._db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in ("refs", "streams", "positions", "panes", "alarms", "decisions", "launches", "audit")}


def fill(store, times=(100, 1_200, 2_500)):
    panes = panes_of(REFERENCE)
    panes.add(batch(), [rows_at(list(times))])
    stream = panes.streams["m"]
    with store.transaction() as db:
        store.save_reference(db, REFERENCE)
        store.save_stream(db, stream, ("1", REFERENCE.digest), "{}", {})
        store.append(db, "alarms", "m", ["one", "two"])
        for name in ("b", "a"):
            store.save_launch(db, name, "m", name)
    return stream


def test_the_topic_makes_the_same_store_again(tmp_path):
    topic = Topic()
    store = MirroredStore(tmp_path / "one.db", {}, topic.write)
    fill(store)
    with store.transaction() as db:
        store.append(db, "alarms", "m", ["three"], keep=2)              # the oldest one goes
        store.save_launch(db, "a", "m", "moved on")
    again = MirroredStore(tmp_path / "two.db", topic.rows(), topic.write)
    assert dump(again) == dump(store)
    assert again.history("launches") == ["b", "moved on"]               # in the order in which they came
    assert again.history("alarms") == ["two", "three"]
    with again.transaction() as db:
        again.append(db, "alarms", "m", ["four"])
    assert [row[0] for row in again._db.execute("SELECT seq FROM alarms ORDER BY seq")] == [2, 3, 4]
    store.close()
    again.close()


def test_what_the_topic_did_not_take_is_not_in_the_file(tmp_path):
    topic = Topic()
    store = MirroredStore(tmp_path / "one.db", {}, topic.write)
    fill(store)
    before = dump(store)

    def refuse(changes):
        raise RuntimeError("fenced")

    store._write = refuse
    with pytest.raises(RuntimeError, match="fenced"), store.transaction() as db:
        store.save_launch(db, "c", "m", "never")
    assert dump(store) == before
    store._write = topic.write
    with store.transaction() as db:
        store.save_launch(db, "c", "m", "now")
    assert store.history("launches")[-1] == "now"
    store.close()


def test_a_share_leaves_the_topic_with_the_transaction_that_holds_its_counts(tmp_path):
    topic = Topic()
    topic.write([(SHARE + b"m/1", b"counts")])
    store = MirroredStore(tmp_path / "one.db", {}, topic.write)
    store.folded("m", 0, SHARE + b"m/1")
    with store.transaction() as db:
        store.save_launch(db, "a", "m", "a launch alone holds no counts")
    assert latest(topic.records)[1] == [(0, SHARE + b"m/1", b"counts")]
    assert store.shared("m") == 0
    fill(store)
    assert latest(topic.records)[1] == []
    assert store.shared("m") == 1
    assert MirroredStore(tmp_path / "two.db", topic.rows(), topic.write).shared("m") == 1
    store.close()


def test_a_transaction_that_changes_nothing_is_not_written(tmp_path):
    topic = Topic()
    store = MirroredStore(tmp_path / "one.db", {}, topic.write)
    stream = fill(store)
    writes = topic.writes
    with store.transaction() as db:
        store.save_stream(db, stream, ("1", REFERENCE.digest), "{}", {})
    assert topic.writes == writes
    store.close()


def test_rows_of_something_else_are_refused(tmp_path):
    for key, value in ((b"row/nothing/[1]", b"\x80"), (b"row/alarms/[1]", b"?")):
        with pytest.raises(CheckpointRefused, match="expected rows of our own"):
            MirroredStore(tmp_path / "one.db", {key: value}, lambda changes: None)
