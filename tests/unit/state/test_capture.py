"""Captured events: exactly those of the checkpoints, the same files from the same events, bounded, and readable by others."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.errors import ConfigError
from monitor.flow import Rows
from monitor.state import capture as module
from monitor.state.capture import Capture, read_text
from monitor.state.place import Place
from monitor.state.store import Store
from tests.unit.state.streams import cut, rows_at

DAY = 86_400_000


class Kept:
    """A capture with the store that a checkpoint writes to; `again` is what a new process finds."""

    def __init__(self, folder, *, events_max=1000, labels=("c",), names=("x", "c"), now=0.0, **options):
        self.folder, self.now = Path(folder), now
        self.options = {"events_max": events_max, "labels": labels, "names": names, "clock": lambda: self.now, **options}
        self.store = Store(self.folder / "state.db")
        self.capture = self._capture()

    def _capture(self):
        one = Capture("m", str(self.folder / "captured"), **self.options)
        one.restore(self.store.captures("m"), self.store.pending_captures("m"))
        return one

    def checkpoint(self, *parts, whole=False):
        for rows in parts:
            self.capture.add(rows)
        step = self.capture.write(whole=whole)
        with self.store.transaction() as db:
            self.store.save_captures(db, step)
        self.capture.forget(step.removed)
        return step

    def again(self, **options):
        self.options |= options
        self.capture = self._capture()
        return self.capture

    def close(self):
        self.store.close()

    def files(self):
        root = self.folder / "captured" / "events"
        return {str(path.relative_to(root)): path for path in sorted(root.rglob("*.parquet"))}

    def times(self):
        return sorted(t for path in self.files().values() for t in pq.ParquetFile(path).read()["timestamp"].to_pylist())


@pytest.fixture
def kept(tmp_path):
    made = []

    def make(folder="one", **options):
        (tmp_path / folder).mkdir(exist_ok=True)
        made.append(Kept(tmp_path / folder, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_events_are_in_files_of_their_model_day_partition_and_span_of_offsets(kept):
    one = kept(file_rows=10)
    one.checkpoint(rows_at([DAY + n for n in range(12)]), rows_at([2 * DAY], partition=3, first_offset=45), whole=True)
    assert list(one.files()) == [
        "model=m/day=1970-01-02/t-0-000000000000-000000000010.parquet",
        "model=m/day=1970-01-02/t-0-000000000010-000000000020.parquet",
        "model=m/day=1970-01-03/t-3-000000000040-000000000050.parquet"]
    assert [captured.rows for captured in one.capture.files] == [10, 2, 1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 59), max_size=6), st.sets(st.integers(0, 7), max_size=4), st.sets(st.integers(0, 7)))
def test_however_the_stream_is_cut_and_whenever_it_is_written_the_files_are_byte_for_byte_the_same(cuts, flushes, restarts):
    times = [DAY * (1 + (n % 7 == 3)) + 1000 * n for n in range(60)]
    folder = Path(tempfile.mkdtemp())
    try:
        contents = []
        for name, places, written, crashed in (("a", [], (), ()), ("b", sorted(cuts), flushes, restarts)):
            (folder / name).mkdir()
            one = Kept(folder / name, file_rows=16)
            edges = [0, *places, 60]
            for turn, (start, end) in enumerate(itertools.pairwise(edges)):
                for partition in (0, 1):
                    _, rest = cut(rows_at(times, partition=partition), start)
                    one.capture.add(cut(rest, end - start)[0])
                one.checkpoint(whole=turn in written)
                if turn in crashed:
                    one.again()
            one.checkpoint(whole=True)
            contents.append({name: path.read_bytes() for name, path in one.files().items()})
            one.close()
        assert contents[0] == contents[1]
        assert len(contents[0]) == 16
    finally:
        shutil.rmtree(folder)


def test_a_write_that_no_checkpoint_followed_is_undone_at_start_and_repeated(kept):
    one = kept(file_rows=100)
    one.checkpoint(rows_at([1000, 2000]), whole=True)
    one.checkpoint(rows_at([3000], first_offset=2))     # waits in the store
    one.capture.add(rows_at([4000], first_offset=3))
    one.capture.write(whole=True)                       # killed before the transaction
    assert one.times() == [1000, 2000, 3000, 4000]
    again = one.again()
    assert (one.times(), again.waiting) == ([1000, 2000], 1)
    one.checkpoint(rows_at([4000], first_offset=3), whole=True)
    assert one.times() == [1000, 2000, 3000, 4000]
    assert len(one.files()) == 1


def test_files_that_no_checkpoint_names_are_removed_at_start(kept):
    one = kept(file_rows=2)
    one.checkpoint(rows_at([1000, 2000]), whole=True)
    one.capture.add(rows_at([3000], first_offset=2))
    one.capture.write(whole=True)
    assert len(one.files()) == 2
    one.again()
    assert one.times() == [1000, 2000]


def test_the_events_of_another_state_are_left_and_written_anew_under_the_same_names(kept, caplog):
    one = kept(file_rows=4)
    one.checkpoint(rows_at([1000 * n for n in range(8)]), whole=True)
    before = {name: path.read_bytes() for name, path in one.files().items()}
    one.store.close()
    (one.folder / "state.db").unlink()
    one.store = Store(one.folder / "state.db")
    one.again()
    assert "another state" in caplog.text
    assert {name: path.read_bytes() for name, path in one.files().items()} == before
    one.checkpoint(rows_at([1000 * n for n in range(3)]))
    one.checkpoint(rows_at([1000 * n for n in range(3, 8)], first_offset=3), whole=True)
    assert {name: path.read_bytes() for name, path in one.files().items()} == before


def test_rows_wait_until_their_time_has_come_or_there_are_many(kept, monkeypatch):
    one = kept(seconds=300.0)
    one.checkpoint(rows_at([1000, 2000]))
    one.now = 299.0
    one.checkpoint()
    assert (one.files(), one.capture.waiting) == ({}, 2)
    one.now = 300.0
    one.checkpoint()
    assert (one.times(), one.capture.waiting) == ([1000, 2000], 0)
    monkeypatch.setattr(module, "PENDING_ROWS_MAX", 3)
    one.checkpoint(rows_at([3000, 4000, 5000], first_offset=2))
    assert one.capture.waiting == 0
    assert one.store.pending_captures("m") == []


def test_the_oldest_files_go_first_when_there_are_more_events_than_are_kept(kept):
    one = kept(events_max=25, file_rows=10)
    for start in range(0, 60, 4):
        one.checkpoint(rows_at([1000 * (start + i) for i in range(4)], first_offset=start), whole=True)
    assert one.times() == [1000 * n for n in range(60 - len(one.times()), 60)]
    assert 25 <= len(one.times()) <= 35
    root = one.folder / "captured"
    assert {captured.file for captured in one.store.captures("m")} == {
        str(path.relative_to(root)) for path in one.files().values()}


def test_files_older_than_the_days_that_are_kept_go(kept):
    one = kept(days_max=2.0)
    for day in range(6):
        one.checkpoint(rows_at([DAY * day + 5], first_offset=day), whole=True)
    assert one.times() == [DAY * day + 5 for day in (3, 4, 5)]
    assert not (one.folder / "captured/events/model=m/day=1970-01-01").exists()


def test_events_from_very_many_days_do_not_make_very_many_files(kept, monkeypatch):
    monkeypatch.setattr(module, "FILES_MAX", 4)
    one = kept()
    one.checkpoint(rows_at([DAY * day for day in range(10)]), whole=True)
    assert one.times() == [DAY * day for day in (6, 7, 8, 9)]
    assert one.store.captures("m") == one.capture.files


def test_a_share_of_the_events_is_the_same_one_however_the_stream_is_cut(kept):
    whole, parts = kept("whole", share=0.3, events_max=5000), kept("parts", share=0.3, events_max=5000)
    rows = rows_at([1000 * n for n in range(2000)])
    whole.checkpoint(rows, whole=True)
    for start in range(0, 2000, 77):
        _, rest = cut(rows, start)
        parts.checkpoint(cut(rest, min(77, len(rest)))[0], whole=start % 2 == 0)
    parts.checkpoint(whole=True)
    assert whole.times() == parts.times()
    # 600 expected of 2,000; 5 standard errors of a binomial share
    assert abs(len(whole.times()) - 600) < 5 * np.sqrt(2000 * 0.3 * 0.7)


def test_labelled_events_are_counted_from_a_time_on_in_files_and_among_those_that_wait(kept):
    one = kept()
    one.checkpoint(rows_at([1000 * n for n in range(10)]))     # every fifth has no label
    waiting = [one.capture.labelled_since(t) for t in (0, 5000, 99_000)]
    one.checkpoint(whole=True)
    assert waiting == [one.capture.labelled_since(t) for t in (0, 5000, 99_000)] == [8, 4, 0]
    assert kept("none", labels=()).capture.labelled_since(0) == 0


def test_columns_of_the_events_since_a_time_come_from_files_and_from_those_that_wait(kept):
    one = kept()
    one.checkpoint(rows_at([1000, 2000, 3000]), whole=True)
    one.checkpoint(rows_at([4000], first_offset=3))
    found = one.capture.events_since(2000, ["c"])
    assert found.column_names == ["c", "id", "timestamp"]
    assert found["id"].to_pylist() == ["t:0:1", "t:0:2", "t:0:3"]
    assert one.capture.events_since(9000, ["c"]).num_rows == 0
    assert kept("none").capture.events_since(0, ["c"]).num_rows == 0


def test_a_snapshot_keeps_its_events_when_the_capture_moves_on(kept):
    one = kept(events_max=4, file_rows=3)
    one.checkpoint(rows_at([1000, 2000, 3000]), whole=True)
    one.checkpoint(rows_at([4000], first_offset=3))
    folder = Path(one.capture.snapshot("abc"))
    for start in (4, 7, 10):
        one.checkpoint(rows_at([1000 * (start + i + 1) for i in range(3)], first_offset=start), whole=True)
    assert sorted(pq.read_table(folder)["timestamp"].to_pylist()) == [1000, 2000, 3000, 4000]
    assert pq.read_table(folder).column_names == ["x", "c", "id", "timestamp"]
    assert sorted(pq.read_table(folder)["id"].to_pylist()) == [f"t:0:{offset}" for offset in range(4)]


def test_a_snapshot_that_is_repeated_holds_every_event_once(kept):
    one = kept(file_rows=100)
    one.checkpoint(rows_at([1000, 2000]), whole=True)
    one.checkpoint(rows_at([3000], first_offset=2))
    one.capture.snapshot("abc")                         # killed before the launch was saved
    one.checkpoint(whole=True)
    assert sorted(pq.read_table(one.capture.snapshot("abc"))["timestamp"].to_pylist()) == [1000, 2000, 3000]
    one.checkpoint(rows_at([4000], first_offset=3))
    folder = one.capture.snapshot("abc")
    assert sorted(pq.read_table(folder)["timestamp"].to_pylist()) == [1000, 2000, 3000, 4000]


def test_a_storage_that_cannot_be_written_stops_nothing_and_nothing_is_lost_or_doubled(kept, monkeypatch, caplog):
    one = kept(file_rows=100)
    one.checkpoint(rows_at([1000]), whole=True)
    real = Place.write

    def broken(place, name, table):
        if "/t-1-" in name:                             # the file of partition 0 has grown before that
            raise OSError("bucket\naway")
        real(place, name, table)

    monkeypatch.setattr(Place, "write", broken)
    one.checkpoint(rows_at([2000], first_offset=1), rows_at([2000], partition=1), whole=True)
    assert (one.capture.waiting, [captured.rows for captured in one.capture.files]) == (2, [1])
    assert "they wait in the state" in caplog.text
    one.now += 1
    one.checkpoint(whole=True)                          # not asked again at once
    monkeypatch.setattr(Place, "write", real)
    assert sorted(pq.read_table(one.capture.snapshot("abc"))["id"].to_pylist()) == ["t:0:0", "t:0:1", "t:1:0"]
    assert sorted(one.capture.events_since(0, [])["id"].to_pylist()) == ["t:0:0", "t:0:1", "t:1:0"]
    one.now += module.AGAIN_SECONDS
    one.checkpoint(whole=True)
    assert (one.times(), one.capture.waiting) == ([1000, 2000, 2000], 0)


def test_without_a_storage_for_long_memory_stays_bounded_and_what_is_dropped_is_told(kept, monkeypatch, caplog):
    monkeypatch.setattr(Place, "write", lambda *_: (_ for _ in ()).throw(OSError("away")))
    one = kept(waiting_max=8_000)
    for start in range(0, 400, 20):
        one.checkpoint(rows_at([1000 * (start + n) for n in range(20)], first_offset=start))
    assert one.capture.dropped + one.capture.waiting == 400
    assert 0 < one.capture.waiting < 200
    assert 0 < one.capture.waiting_bytes <= 8_000
    assert "dropped" in caplog.text
    assert one.again().waiting + one.capture.dropped == one.capture.waiting
    assert one.capture.newest_time == 399_000


def test_a_file_that_somebody_removed_is_forgotten_and_told(kept, caplog):
    one = kept(file_rows=2)
    one.checkpoint(rows_at([1000, 2000, 3000]), whole=True)
    next(iter(one.files().values())).unlink()
    assert one.capture.labelled_since(0) in (1, 3)      # known to the files' own counts until the next start
    again = one.again()
    assert ("are gone" in caplog.text, [captured.rows for captured in again.files]) == (True, [1])
    one.checkpoint()
    assert one.store.captures("m") == again.files


def test_a_damaged_file_is_told_and_does_not_stop_the_capture(kept, caplog):
    one = kept(file_rows=100)
    one.checkpoint(rows_at([1000]), whole=True)
    next(iter(one.files().values())).write_bytes(b"PAR1 nonsense")
    one.again()
    one.checkpoint(rows_at([2000], first_offset=1), whole=True)
    assert (one.times(), "not readable" in caplog.text) == ([2000], True)


def test_other_columns_begin_another_file_inside_the_same_span(kept):
    one = kept(file_rows=100)
    one.checkpoint(rows_at([1000]), whole=True)
    one.checkpoint(rows_at([2000], first_offset=1))     # waits, with the old columns
    one.again(names=("x",), labels=())
    one.checkpoint(rows_at([3000], first_offset=2), whole=True)
    one.checkpoint(rows_at([4000], first_offset=3), whole=True)
    tables = [pq.ParquetFile(path).read() for path in one.files().values()]
    assert [table.column_names for table in tables] == [["x", "c", "id", "timestamp"], ["x", "id", "timestamp"]]
    assert [table["timestamp"].to_pylist() for table in tables] == [[1000, 2000], [3000, 4000]]
    assert one.capture.events_since(0, ["x"])["x"].null_count == 0
    assert one.capture.events_since(0, ["c"])["c"].to_pylist() == ["a", "b", None, None]


def test_another_length_of_spans_goes_on_in_the_files_that_are_there(kept):
    one = kept(file_rows=100)
    one.checkpoint(rows_at([1000]), whole=True)
    one.again(file_rows=7)
    one.checkpoint(rows_at([1000 * n for n in range(2, 121)], first_offset=1), whole=True)
    spans = [path.stem.split("-")[-2:] for path in one.files().values()]
    assert [(int(first), int(end)) for first, end in spans[:3]] == [(0, 100), (100, 105), (105, 112)]
    assert one.times() == [1000 * n for n in range(1, 121)]


def test_vectors_and_texts_are_kept_as_they_are(kept):
    one = kept(names=("v", "t"), labels=())
    vectors = np.array([[1.0, 2.0], [np.nan, np.nan], [0.5, -1.0]])
    one.checkpoint(Rows("m", "t", 0, np.arange(3), np.array([1, 2, 3]), {"v": vectors, "t": ["ä\n", None, "x" * 9000]}, 3, 3),
                   whole=True)
    table = pq.ParquetFile(next(iter(one.files().values()))).read()
    assert table["v"].to_pylist() == [[1.0, 2.0], None, [0.5, -1.0]]
    assert table["t"].to_pylist() == ["ä\n", None, "x" * 9000]


def test_pandas_and_a_data_set_read_the_folder_with_its_days(kept):
    one = kept(file_rows=4)
    one.checkpoint(rows_at([DAY * (n // 5) + n for n in range(20)]), whole=True)
    folder = one.folder / "captured" / "events"
    frame = pandas.read_parquet(folder / "model=m")
    assert len(frame) == 20
    assert sorted(frame["day"].astype(str).unique()) == [f"1970-01-0{n}" for n in (1, 2, 3, 4)]
    chosen = (ds.field("model") == "m") & (ds.field("day") == "1970-01-02")
    found = ds.dataset(folder, partitioning="hive").to_table(filter=chosen)
    assert sorted(found["timestamp"].to_pylist()) == [DAY + n for n in range(5, 10)]


def test_what_ended_launches_read_is_removed_after_a_while_and_nothing_that_one_still_reads(kept):
    one = kept(now=10_000_000.0, days_max=2.0)
    one.checkpoint(rows_at([1000]), whole=True)
    for name in ("open", "ended", "fresh"):
        (Path(one.capture.snapshot(name)).parent / "output").mkdir()
    assert one.capture.release({"ended": 10.0, "fresh": 9_900_000.0, "other": 0.0}) == ["ended"]
    root = one.folder / "captured/m/launches"
    assert sorted(str(path.relative_to(root)) for path in root.glob("*/*")) == [
        "ended/output", "fresh/data", "fresh/output", "open/data", "open/output"]
    assert one.capture.release({"ended": 10.0}) == []


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"retrain\.capture_uri: expected a place that can be written"):
        Capture("m", str(tmp_path / "file"), ("x",), (), 10)


@pytest.mark.parametrize(("uri", "words"), [
    ("s3://key:hush@bucket/prefix", "without credentials"), ("s3://bucket/x?region=hush", "without options")])
def test_a_place_with_credentials_or_options_is_refused_without_showing_them(uri, words):
    with pytest.raises(ConfigError, match=words) as raised:
        Capture("m", uri, ("x",), (), 10)
    assert "hush" not in str(raised.value)


def test_a_reference_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read: .*check the path"):
        read_text(str(tmp_path / "none.json"))
