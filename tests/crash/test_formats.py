"""State files of older versions go on where they ended; those of newer ones are refused; a kill leaves one or the other.

`states/` holds what older versions wrote after the first half of a stream (states/stream.py), as SQL text.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from monitor.errors import CheckpointRefused
from monitor.state.store import Store
from monitor.state.tables import FORMATS
from tests.conftest import CHECKOUT
from tests.crash import world
from tests.crash.states import stream

STATES = Path(stream.__file__).parent
#: Every schema that a version has written: without samples and audit, without audit, and with both but no seal.
OLDER = ("format1-first", "format1-samples", "format1-audit")
READ = OLDER[1:]                                    # those whose references can still be read


def written(name, folder):
    folder.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(folder / "state.db")
    db.executescript((STATES / f"{name}.sql").read_text())
    db.execute("PRAGMA journal_mode=WAL")
    db.close()
    return folder / "state.db"


def counts(folder):
    found = world.state(folder)
    return {
        "panes": [(pane, events) for _, pane, events, _, _ in found["panes"]], "positions": found["positions"],
        "outcomes": [counters["outcomes"] for counters in found["counters"]]}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    stream.run(folder, STATES / "reference-2.json", 0, None)
    return folder


def test_the_newest_format_and_every_older_one_has_a_stored_state():
    assert {(STATES / f"{name}.sql").exists() for name in OLDER} == {True}
    assert {name.partition("-")[0] for name in OLDER} == {f"format{number}" for number in FORMATS[:-1]}


@pytest.mark.parametrize("name", READ)
def test_an_older_state_is_migrated_and_every_event_counts_once(name, tmp_path, undisturbed):
    written(name, tmp_path)
    stream.run(tmp_path, STATES / "reference-2.json", stream.half() - 30, None)      # some are delivered again
    assert counts(tmp_path) == counts(undisturbed)
    with sqlite3.connect(tmp_path / "state.db") as db:
        assert db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone() == (str(FORMATS[-1]),)
        assert db.execute("SELECT count(*) FROM meta WHERE key = 'seal'").fetchone() == (1,)
    db.close()
    Store(tmp_path / "state.db").close()


def test_a_state_whose_reference_can_no_longer_be_read_goes_on_under_a_new_version(tmp_path):
    path, old, new = written("format1-first", tmp_path), STATES / "reference-1.json", tmp_path / "reference.json"
    with pytest.raises(Exception, match="fit the reference again with this version of tidemark"):
        stream.run(tmp_path, old, stream.half(), None)
    stream.fit(new, "2")
    stream.run(tmp_path, new, stream.half() - 30, None)
    with sqlite3.connect(path) as db:
        outcomes = world.state(tmp_path)["counters"][0]["outcomes"]
        (counted,) = db.execute("SELECT sum(events) FROM panes").fetchone()
        assert db.execute("SELECT next_offset FROM positions").fetchone() == (len(stream.messages()),)
    db.close()
    refused = sum(value == b"{broken" for value in stream.messages())
    assert counted == len(stream.messages()) - refused
    assert sum(outcomes.values()) <= len(stream.messages())


@pytest.mark.parametrize(("number", "words"), [
    ("3", "a newer tidemark wrote it: start that version, or restore the copy from before the upgrade"),
    ("0", "restore it from a copy, or move it away"), ("", "restore it from a copy, or move it away")])
def test_another_format_is_refused_with_what_to_do_and_left_as_it_is(number, words, tmp_path):
    path = written("format1-audit", tmp_path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'format'", (number,))
    db.close()
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(CheckpointRefused, match=f"expected state format {FORMATS[-1]} or older, got .*{words}"):
            Store(path, read_only=read_only)
    assert path.read_bytes() == before


def test_an_older_state_can_be_looked_at_without_being_migrated(tmp_path):
    path = written("format1-first", tmp_path)
    before = path.read_bytes()
    store = Store(path, read_only=True)
    assert store.known("m") is not None
    assert store.history("audit") == []
    store.close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", OLDER)
def test_killed_at_any_moment_of_the_migration_the_file_is_old_or_new_and_whole(name, tmp_path):
    """Each kill falls between two statements, by a count of them, and once in each process at a drawn moment."""
    script = (
        "import os, signal, sqlite3, sys\n"
        "from monitor.state import seal\n"
        "from monitor.state.store import Store\n"
        "left = int(sys.argv[2])\n"
        "def count(*_):\n"
        "    global left\n"
        "    left -= 1\n"
        "    if left == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "whole = seal.connect\n"
        "def connect(*args, **kwargs):\n"
        "    db = whole(*args, **kwargs)\n"
        "    db.set_progress_handler(count, 1)\n"
        "    return db\n"
        "import monitor.state.store as store\n"
        "store.connect = connect\n"
        "for path in sys.argv[3:]:\n"
        "    if os.fork() == 0:\n"
        "        Store(path).close()\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "    left += int(sys.argv[1])\n")
    old, rng = written(name, tmp_path / "old"), Random(name)
    paths = [tmp_path / str(number) / "state.db" for number in range(25)]
    for path in paths:
        path.parent.mkdir()
        shutil.copy(old, path)
    step = rng.randrange(60, 90)
    subprocess.run([sys.executable, "-c", script, str(step), str(rng.randrange(1, 40)), *map(str, paths)], cwd=CHECKOUT,
                   check=True, timeout=120)
    formats = []
    for path in paths:
        with sqlite3.connect(path) as db:
            formats.append(db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()[0])
        db.close()
        store = Store(path)                         # whatever it is: whole, and migrated now
        assert store.known("m") is not None
        store.close()
    assert {"1", "2"} == set(formats), f"the kills do not reach both sides of the migration: {formats}"
