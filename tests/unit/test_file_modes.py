"""What is written to disk, and who may read it: events are nobody else's."""

from __future__ import annotations

import os
import stat

import pytest

from monitor.config import Kafka, Limits
from monitor.expose.report_shelf import Shelf
from monitor.flow import Refusal
from monitor.ingest.deadletters import DeadLetters
from monitor.state.store import Store


@pytest.fixture(autouse=True)
def open_umask():
    """The most careless umask that there is."""
    before = os.umask(0)
    yield
    os.umask(before)


def others_may(path) -> int:
    return stat.S_IMODE(path.stat().st_mode) & 0o077


def test_the_state_and_what_sqlite_keeps_beside_it_are_the_owners_alone(tmp_path):
    store = Store(tmp_path / "state.db")
    try:
        with store.transaction() as db:
            db.execute("INSERT INTO meta VALUES ('x', 'y')")
        files = {path.name: others_may(path) for path in tmp_path.iterdir() if path.name != "state.db.lock"}
    finally:
        store.close()
    assert "state.db-wal" in files
    assert set(files.values()) == {0}, files


def test_dead_letters_are_the_owners_alone(tmp_path):
    letters = DeadLetters(f"file:{tmp_path}/dead.jsonl", Limits(dead_letter_bytes=400_000), Kafka())
    for n in range(6):
        letters.write([Refusal("t", 0, n, "json", "", b"x" * 60_000)])
        letters.flush()
    letters.close()
    assert {path.name: others_may(path) for path in tmp_path.iterdir()} == {"dead.jsonl": 0, "dead.jsonl.1": 0}


def test_reports_lie_in_a_folder_that_is_the_owners_alone(tmp_path):
    Shelf(tmp_path / "reports", 3).put_rows("m-1-drift-1", b"rows")
    assert others_may(tmp_path / "reports") == 0
