"""The store: what was written comes back, a crash leaves a whole checkpoint, a damaged file is refused."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest

from monitor.errors import CheckpointRefused, SourceFailed, StateInUse
from monitor.state.panes import Panes
from monitor.state.sample import Sampling, to_bytes
from monitor.state.seal import reseal
from monitor.state.store import Store
from tests.unit.state.streams import TOPIC, batch, panes_of, rows_at, small_reference, stream

REFERENCE = small_reference()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


def counted(path):
    """A store with three open panes, one of them decided."""
    store = Store(path)
    panes = panes_of(REFERENCE)
    panes.add(batch(), [rows_at([100, 1200, 2300, 2400])])
    decided = {window.pane: window.profile for window in panes.closed()}
    with store.transaction() as db:
        store.save_reference(db, REFERENCE)
        store.save_stream(db, panes.streams["m"], ("1", REFERENCE.digest), "{}", decided)
    return store, panes.streams["m"], decided


def test_a_stream_comes_back_as_it_was(path):
    store, before, decided = counted(path)
    store.close()
    store = Store(path)
    after = stream(store.reference(REFERENCE.digest))
    store.load(after)
    assert after.positions == before.positions
    assert after.outcomes == before.outcomes
    assert {pane: profile.digest() for pane, profile in after.open.items()} == {
        pane: profile.digest() for pane, profile in before.open.items()}
    assert {pane: p.digest() for pane, p in store.decided(after, 129)} == {pane: p.digest() for pane, p in decided.items()}
    store.close()


def test_the_ids_of_the_topics_come_back_with_the_positions_and_a_state_without_them_learns_them(path):
    panes, ids = panes_of(REFERENCE), {TOPIC: "new", "other": "x"}

    def saved():
        store = Store(path)
        with store.transaction() as db:
            store.save_stream(db, panes.streams["m"], ("1", REFERENCE.digest), "{}", {})
        after = stream(REFERENCE)
        store.load(after)
        store.close()
        return after.topic_ids

    panes.add(replace(batch(), topic_ids={TOPIC: "of an empty topic"}), [])
    panes.add(batch(), [rows_at([100, 1200])])
    assert saved() == {}                            # no position is of the first, and the second has no id
    panes, store = panes_of(REFERENCE), Store(path)
    with store.transaction() as db:                 # as a version wrote it that knew of none
        db.execute("UPDATE streams SET counters = json_remove(counters, '$.topic_ids')")
    store.load(panes.streams["m"])
    store.close()
    assert panes.streams["m"].positions
    panes.add(replace(batch(), topic_ids=ids), [])
    assert saved() == {TOPIC: "new"}
    assert panes.streams["m"].successor("2", REFERENCE).topic_ids == {TOPIC: "new"}
    store = Store(path)
    store.forget_topic_ids()
    store.close()
    store = Store(path)                             # sealed as it is now
    store.load(after := stream(REFERENCE))
    store.close()
    assert (after.topic_ids, after.positions) == ({}, panes.streams["m"].positions)


def test_a_model_that_was_counted_from_another_topic_of_the_name_is_refused():
    panes = panes_of(REFERENCE)
    panes.add(replace(batch(), topic_ids={TOPIC: "first"}), [rows_at([100])])
    panes.add(replace(batch(), topic_ids={}), [rows_at([200], first_offset=1)])            # a broker that tells none
    with pytest.raises(SourceFailed, match=r"'t': expected the topic that model m was counted from \(first\), got another one"):
        panes.add(replace(batch(), topic_ids={TOPIC: "second"}), [])


def test_a_transaction_that_breaks_leaves_the_checkpoint_before_it(path):
    store, _, _ = counted(path)

    def broken():
        with store.transaction() as db:
            db.execute("DELETE FROM panes")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    after = stream(REFERENCE)
    store.load(after)
    assert sum(profile.events for profile in after.open.values()) == 2
    store.close()


def test_a_second_process_is_refused_until_the_first_one_is_gone(path):
    store, _, _ = counted(path)
    with pytest.raises(StateInUse, match=r"another tidemark process holds; stop that process"):
        Store(path)
    assert Store(path, read_only=True).known("m") is not None
    store.close()
    Store(path).close()


@pytest.mark.parametrize("damage", ["garbage", "middle", "truncated"])
def test_a_damaged_file_is_refused_with_what_to_do(path, damage):
    store, _, _ = counted(path)
    store.close()
    content = bytearray(path.read_bytes())
    if damage == "garbage":
        content[:200] = b"x" * 200
    elif damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 3: len(content) // 3 + 9000] = b"\xff" * 9000
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointRefused, match="restore it from a copy, or move it away"):
        Store(path)


def test_a_state_of_another_format_is_refused(path):
    counted(path)[0].close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    with pytest.raises(CheckpointRefused, match="expected state format 2 or older, got 99; a newer tidemark wrote it"):
        Store(path)


def test_another_pane_length_under_the_same_version_is_refused(path):
    store, _, _ = counted(path)
    with pytest.raises(CheckpointRefused, match=r"pane\.seconds 60; give the monitor a new version"):
        store.load(stream(REFERENCE, pane_s=60))
    store.close()


def test_a_read_only_look_at_nothing_says_so(tmp_path):
    with pytest.raises(CheckpointRefused, match="expected a state file, got none"):
        Store(tmp_path / "none.db", read_only=True)


def test_history_keeps_its_newest_entries_in_order(path):
    store = Store(path)
    with store.transaction() as db:
        store.append(db, "alarms", "m", [f"{n}" for n in range(30)], keep=10)
    assert store.history("alarms", "m") == [f"{n}" for n in range(20, 30)]
    with store.transaction() as db:
        store.append(db, "alarms", "m", ["x"], keep=10)
    assert store.history("alarms", "m")[-2:] == ["29", "x"]
    assert len(store.history("alarms")) == 10
    store.close()


def test_next_offsets_are_those_of_the_stored_positions(path):
    store, before, _ = counted(path)
    after = stream(REFERENCE)
    store.load(after)
    assert after.positions[TOPIC, 0].next_offset == before.positions[TOPIC, 0].next_offset == 4
    store.close()


# -- sampled rows --------------------------------------------------------------------------------------------------------

SAMPLING = Sampling(rows=3, panes=2, names=("x", "c"))


def sampled(path):
    """A store with the rows of four panes: three decided, of which two are looked back at, and one open."""
    store, watched = Store(path), stream(REFERENCE)
    watched.sampling = SAMPLING
    panes = Panes([watched], clock=lambda: 0.0)
    panes.add(batch(), [rows_at([0, 100, 200, 300, 1_200, 2_300, 2_400, 3_500, 3_600])])
    windows = list(panes.closed())
    with store.transaction() as db:
        store.save_reference(db, REFERENCE)
        store.save_stream(db, watched, ("1", REFERENCE.digest), "{}", {window.pane: window.profile for window in windows})
        store.save_samples(db, watched, {window.pane: window.sample for window in windows})
    return store, watched, windows


def restored(store, sampling=SAMPLING, version="1"):
    after = stream(small_reference(version))
    after.sampling = sampling
    if version == "1":
        store.load(after)
    with store.transaction() as db:
        return after, store.restore_samples(db, after)


def test_sampled_rows_come_back_with_their_panes(path):
    store, before, windows = sampled(path)
    store.close()
    store = Store(path)
    after, decided = restored(store)
    assert {pane: to_bytes(sample) for pane, sample in after.samples.items()} == {
        pane: to_bytes(sample) for pane, sample in before.samples.items()} != {}
    assert [(pane, to_bytes(sample), sample.times.tolist(), events) for pane, sample, events in decided] == [
        (window.pane, to_bytes(window.sample), window.sample.times.tolist(), window.profile.events) for window in windows[1:]]
    store.close()


@pytest.mark.parametrize(("sampling", "version", "left"), [
    (SAMPLING, "1", 3), (None, "1", 0), (SAMPLING, "2", 0), (Sampling(3, 1, ("x",)), "1", 2),
    (Sampling(3, 2, ("x", "z")), "1", 3)])
def test_rows_that_no_detector_asks_for_any_more_are_dropped(path, sampling, version, left):
    store, _, _ = sampled(path)
    after, decided = restored(store, sampling, version)
    assert store._db.execute("SELECT count(*) FROM samples").fetchone()[0] == left
    if sampling is not None and "z" in sampling.names:          # without one of the columns they are of no use
        assert (after.samples, decided) == ({}, [])
    store.close()


def test_a_state_from_before_rows_were_sampled_goes_on(path):
    store, _, _ = sampled(path)
    store.close()
    db = sqlite3.connect(path)
    db.execute("DROP TABLE samples")
    db.close()
    reseal(path)
    store = Store(path)
    assert restored(store)[1] == []
    store.close()
    look = Store(path, read_only=True)
    look.close()
