"""Captured events: exactly those of the checkpoints, bounded, and a snapshot that later captures do not change."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from monitor.errors import ConfigError
from monitor.state.capture import Capture, read_text
from tests.unit.state.streams import rows_at


def capture(folder, events_max=1000, labels=("c",)):
    return Capture("m", str(folder), ("x", "c"), labels, events_max)


def test_files_that_no_checkpoint_names_are_removed_at_start(tmp_path):
    first = capture(tmp_path)
    first.add(rows_at([1000, 2000]))
    named, _ = first.write()
    first.add(rows_at([3000], first_offset=2))
    first.write()                                   # written, but the crash came before the transaction
    again = capture(tmp_path)
    again.restore(named)
    assert [path.name for path in (tmp_path / "m/events").iterdir()] == [named[0].file]
    assert sum(f.rows for f in again.files) == 2


def test_small_files_are_merged_and_the_oldest_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr("monitor.state.capture.MERGE_ROWS", 10)
    one = capture(tmp_path, events_max=25)
    for start in range(0, 60, 4):
        one.add(rows_at([1000 * (start + i) for i in range(4)], first_offset=start))
        _, removed = one.write()
        one.forget(removed)
    rows = [pq.read_table(tmp_path / "m/events" / captured.file) for captured in one.files]
    times = [t for table in rows for t in table["timestamp"].to_pylist()]
    assert times == [1000 * n for n in range(60 - len(times), 60)]
    assert 25 <= len(times) <= 35
    assert {path.name for path in (tmp_path / "m/events").iterdir()} == {captured.file for captured in one.files}


def test_labelled_events_are_counted_from_a_time_on(tmp_path):
    one = capture(tmp_path)
    one.add(rows_at([1000 * n for n in range(10)]))     # every fifth has no label
    one.write()
    assert (one.labelled_since(0), one.labelled_since(5000), one.labelled_since(99_000)) == (8, 4, 0)


def test_a_snapshot_keeps_its_events_when_the_capture_moves_on(tmp_path):
    one = capture(tmp_path, events_max=4)
    one.add(rows_at([1000, 2000, 3000]))
    one.write()
    folder = Path(one.snapshot("abc"))
    for start in (3, 6, 9):
        one.add(rows_at([1000 * (start + i) for i in range(3)], first_offset=start))
        _, removed = one.write()
        one.forget(removed)
    assert pq.read_table(folder)["timestamp"].to_pylist() == [1000, 2000, 3000]
    assert pq.read_table(folder).column_names == ["x", "c", "id", "timestamp"]
    assert pq.read_table(folder)["id"].to_pylist() == [f"t:0:{offset}" for offset in range(3)]


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"retrain\.capture_uri: expected a place that can be written"):
        capture(tmp_path / "file")


def test_a_reference_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read: .*check the path"):
        read_text(str(tmp_path / "none.json"))
