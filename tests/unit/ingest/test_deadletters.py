"""Dead letters reach their destination before the checkpoint, bounded, and what is dropped is counted."""

import base64
import errno
import json
import os

import pytest

from monitor import config
from monitor.flow import Refusal
from monitor.ingest import deadletters
from monitor.ingest.deadletters import DeadLetters


def refusal(offset, value=b"{bad"):
    return Refusal("t", 2, offset, "json", "malformed", value)


def opened(path, size=1 << 20):
    return DeadLetters(f"file:{path}", config.Limits(dead_letter_bytes=size), config.Kafka())


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_flushed_refusal_stands_in_the_file_with_its_place_reason_and_bytes(tmp_path):
    letters = opened(tmp_path / "new" / "dead.jsonl")
    letters.write([refusal(5, b"\xff{"), refusal(6, None)])
    assert not (tmp_path / "new").exists()
    letters.flush()
    first, second = lines(tmp_path / "new" / "dead.jsonl")
    assert (first["topic"], first["partition"], first["offset"], first["reason"]) == ("t", 2, 5, "json")
    assert base64.b64decode(first["value"]) == b"\xff{"
    assert second["value"] is None
    assert letters.counts() == {"written": 2, "dropped": 0}


def test_the_files_stay_below_their_bound_and_the_oldest_give_way_counted(tmp_path):
    path, bound = tmp_path / "dead.jsonl", 40_000
    letters = opened(path, bound)
    for offset in range(1000):
        letters.write([refusal(offset)])
        letters.flush()
    old = tmp_path / "dead.jsonl.1"
    kept = lines(old) + lines(path)
    assert path.stat().st_size + old.stat().st_size <= bound
    assert [line["offset"] for line in kept] == list(range(1000 - len(kept), 1000))
    assert letters.counts() == {"written": 1000, "dropped": 1000 - len(kept)}


def test_a_value_larger_than_the_file_is_cut_and_says_so(tmp_path):
    letters = opened(tmp_path / "dead.jsonl", 200_000)
    letters.write([refusal(1, b"x" * 1_000_000)])
    letters.flush()
    (line,) = lines(tmp_path / "dead.jsonl")
    assert line["truncated"] == 1_000_000
    assert 0 < len(base64.b64decode(line["value"])) < 100_000
    assert (tmp_path / "dead.jsonl").stat().st_size <= 100_000


def test_a_full_buffer_is_written_without_waiting_for_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(deadletters, "_BUFFER_BYTES", 100)
    letters = opened(tmp_path / "dead.jsonl")
    letters.write([refusal(i, b"x" * 60) for i in range(3)])
    assert [line["offset"] for line in lines(tmp_path / "dead.jsonl")] == [0, 1]


def test_a_destination_that_cannot_be_written_drops_and_counts(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    letters = opened(tmp_path / "file" / "dead.jsonl")
    for _ in range(3):
        letters.write([refusal(1)])
        letters.flush()
    assert letters.counts() == {"written": 0, "dropped": 3}
    assert [record.message for record in caplog.records] == ["Dead letters dropped."]


@pytest.mark.parametrize("how", ["none", "discard"])
def test_nothing_is_kept_where_nothing_is_wanted(tmp_path, how):
    letters = DeadLetters("none", config.Limits(), config.Kafka()) if how == "none" else opened(tmp_path / "dead.jsonl")
    if how == "discard":
        letters.discard()
    letters.write([refusal(1)])
    letters.close()
    assert list(tmp_path.iterdir()) == []
    assert letters.counts() == {"written": 0, "dropped": 1}


def test_a_line_that_a_kill_cut_short_is_removed_before_the_next_one(tmp_path):
    path = tmp_path / "dead.jsonl"
    before = opened(path)
    before.write([refusal(1)])
    before.flush()
    for torn in (b'{"topic": "t", "par', b"x" * 200_000):
        with open(path, "ab") as file:
            file.write(torn)
        after = opened(path)
        after.write([refusal(2)])
        after.flush()
    assert [line["offset"] for line in lines(path)] == [1, 2, 2]


@pytest.mark.parametrize("count", [3, 400])
def test_letters_wait_for_a_full_disk_and_none_is_lost_when_there_is_room_again(tmp_path, monkeypatch, caplog, count):
    path, room = tmp_path / "dead.jsonl", 250
    letters, whole = opened(path), os.fsync

    def full(handle):
        if os.fstat(handle).st_size > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(handle)

    monkeypatch.setattr(deadletters.os, "fsync", full)
    monkeypatch.setattr(deadletters, "_AGAIN_SECONDS", 0.0)
    for offset in range(count):
        letters.write([refusal(offset)])
        letters.flush()
    held = lines(path)
    assert 0 < len(held) < count
    assert letters.counts() == {"written": len(held), "dropped": 0}
    assert [record.message for record in caplog.records] == ["Dead letters wait."]
    monkeypatch.setattr(deadletters.os, "fsync", whole)
    letters.close()
    assert [line["offset"] for line in lines(path)] == list(range(count))
    assert letters.counts() == {"written": count, "dropped": 0}


def test_of_the_letters_that_wait_the_oldest_give_way_counted(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(deadletters.os, "fsync", full)
    monkeypatch.setattr(deadletters, "_BUFFER_BYTES", 1_000)
    letters = opened(tmp_path / "dead.jsonl")
    for offset in range(30):
        letters.write([refusal(offset, b"x" * 100)])
    assert letters.counts() == {"written": 0, "dropped": 20}
    letters.close()
    assert letters.counts() == {"written": 0, "dropped": 30}
    assert (tmp_path / "dead.jsonl").read_bytes() == b""
