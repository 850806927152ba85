"""Damaged, cut, foreign and mixed-up state files: the service runs on correctly, or says in one line why not.

Never a traceback, never a silent fresh start, and a refused file is left as it was found. The damage is drawn from a seed;
a failing example prints it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

from monitor.errors import CheckpointRefused, TidemarkError
from monitor.state.seal import computed, reseal, stored
from monitor.state.store import Store
from tests.conftest import CHECKOUT
from tests.crash import world
from tests.crash.states import stream

SEED = int(os.environ.get("TIDEMARK_SEED", "1"))
EXAMPLES = int(os.environ.get("TIDEMARK_DAMAGES", "150"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A killed service's folder after half of the stream: a state file with its -wal. And what the whole stream gives."""
    folder = tmp_path_factory.mktemp("made")
    reference = folder / "reference.json"
    stream.fit(reference, "1")
    (folder / "whole").mkdir()
    stream.run(folder / "whole", reference, 0, None)
    (folder / "killed").mkdir()
    script = ("import os, signal, sys\nfrom pathlib import Path\nfrom tests.crash.states import stream\n"
              "from monitor.state.store import Store\n"
              "Store.close = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
              f"stream.run(Path(sys.argv[1]), Path(sys.argv[2]), 0, {stream.half()})\n")
    subprocess.run([sys.executable, "-c", script, str(folder / "killed"), str(reference)], cwd=CHECKOUT, timeout=60)
    assert (folder / "killed" / "state.db-wal").stat().st_size > 0
    # The same in one file, as after an orderly end.
    shutil.copytree(folder / "killed", folder / "ended")
    Store(folder / "ended" / "state.db").close()
    assert not (folder / "ended" / "state.db-wal").exists()
    return folder


def outcome(folder, reference):
    """Everything that counts, or the one line."""
    try:
        stream.run(folder, reference, 0, None)
    except TidemarkError as error:
        return str(error)
    found = world.state(folder)
    return {name: found[name] for name in ("panes", "positions", "counters", "alarms", "decisions")}


def contents(folder):
    """The files that hold the state; to look at one, SQLite lays an empty -wal beside it."""
    held = {name: (folder / name).read_bytes() for name in ("state.db", "state.db-wal") if (folder / name).is_file()}
    return {name: content for name, content in held.items() if content or name == "state.db"}


def damaged(content, rng):
    """The same bytes with one fault of a kind that disks, copies and people make."""
    size, kind = len(content), rng.choice(["flip", "flip", "flips", "cut", "zeros", "noise", "page", "lost", "grown"])
    at = rng.randrange(size)
    if kind == "flip":
        content[at] ^= 1 << rng.randrange(8)
    elif kind == "flips":
        for _ in range(rng.randrange(2, 20)):
            content[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[at:]
    elif kind == "zeros":
        length = min(rng.choice([16, 512, 4096]), size - at)
        content[at:at + length] = bytes(length)
    elif kind == "noise":
        length = min(rng.choice([4, 64, 4096]), size - at)
        content[at:at + length] = rng.randbytes(length)
    elif kind == "page":                            # a page that was written to another's place
        pages = max(1, size // 4096)
        one, other = rng.randrange(pages) * 4096, rng.randrange(pages) * 4096
        content[one:one + 4096] = content[other:other + 4096]
    elif kind == "lost":
        del content[at:at + rng.choice([1, 512, 4096])]
    else:
        content += rng.randbytes(rng.choice([1, 4096]))
    return kind


def test_whatever_is_damaged_the_counts_are_right_or_the_file_is_refused(made, tmp_path):
    reference = made / "reference.json"
    right = outcome(made / "whole", reference)
    seen = {"right": 0, "refused": 0}
    for number in range(EXAMPLES):
        rng = Random(f"{SEED}-{number}")
        folder = tmp_path / str(number)
        shutil.copytree(made / rng.choice(["killed", "ended"]), folder)
        path = folder / rng.choice(sorted(contents(folder)))
        content = bytearray(path.read_bytes())
        kind = damaged(content, rng)
        path.write_bytes(content)
        before = contents(folder)
        found = outcome(folder, reference)
        where = f"TIDEMARK_SEED={SEED} example {number}: {kind} in {path.name}"
        if isinstance(found, str):
            assert "\n" not in found, where
            assert "state.db" in found, f"{where}: {found}"
            assert "expected" in found, f"{where}: {found}"
            assert contents(folder) == before, f"{where}: refused, and yet changed"
            seen["refused"] += 1
        else:
            assert found == right, where
            seen["right"] += 1
        shutil.rmtree(folder)
    assert min(seen.values()) >= EXAMPLES // 20, seen


def foreign(path):
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE moz_places (url TEXT)")
    db.commit()
    db.close()


@pytest.mark.parametrize(("name", "words"), [
    ("empty", "expected a state file, got an empty one"),
    ("text", r"expected a state file \(SQLite\), got something else, which begins with b'service: {listen"),
    ("foreign", "expected a state file of tidemark, got another program's database"),
    ("bare", "expected a state file, got a database without any table"),
    ("header", "expected a whole state file, got damage"),
    ("half", "expected a whole state file, got damage"),
    ("no main file", "expected the state file beside its -wal, got none"),
    ("a folder", "expected a state file that can be opened and written, got: Is a directory"),
])
def test_what_is_no_state_file_is_refused_by_the_command_in_one_line_and_left_alone(made, tmp_path, name, words):
    import re

    folder = tmp_path
    for file in contents(made / "killed"):
        if name in ("header", "half", "no main file"):
            shutil.copy(made / "killed" / file, folder / file)
    path = folder / "state.db"
    if name == "empty":
        path.write_bytes(b"")
    elif name == "text":
        path.write_text("service: {listen: here}\n")
    elif name == "foreign":
        foreign(path)
    elif name == "bare":
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version = 3")
        db.close()
    elif name == "header":
        path.write_bytes(path.read_bytes()[:100])
        (folder / "state.db-wal").unlink()
    elif name == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        (folder / "state.db-wal").unlink()
    elif name == "no main file":
        path.unlink()
    else:
        path.mkdir()
    config = folder / "tidemark.yaml"
    config.write_text(stream.configuration(folder, made / "reference.json"))
    before = contents(folder) if name != "a folder" else {}
    ended = subprocess.run([sys.executable, "-m", "monitor.cli", "run", "-c", str(config)], cwd=CHECKOUT, text=True,
                           capture_output=True, timeout=120)
    (line,) = [line for line in ended.stderr.splitlines() if " INFO " not in line]
    assert ended.returncode == 2, line
    assert line.startswith(f"tidemark run: {path}: ")
    assert re.search(words, line), line
    assert re.search("restore it from a copy|service.state|check the folder", line), line
    if name != "a folder":
        assert contents(folder) == before


def test_the_wal_of_another_state_is_refused_and_the_file_under_it_stays_whole(made, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(made / "killed", other)
    Store(other / "state.db").close()
    stream_on = made / "reference.json"
    stream.run(other, stream_on, stream.half(), None)           # the same state, later
    later = contents(other)["state.db"]
    (other / "state.db-wal").write_bytes(contents(made / "killed")["state.db-wal"])     # and the -wal of before
    with pytest.raises(CheckpointRefused, match="expected"):
        Store(other / "state.db")
    assert contents(other)["state.db"] == later
    (other / "state.db-wal").unlink()
    Store(other / "state.db").close()


def test_a_value_that_somebody_changed_is_refused_until_it_is_sealed_again(made, tmp_path):
    shutil.copytree(made / "ended", tmp_path / "x")
    path = tmp_path / "x" / "state.db"
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE positions SET next_offset = next_offset + 1")
    db.close()
    for read_only in (False, True):
        with pytest.raises(CheckpointRefused, match="expected the rows that tidemark sealed, got others"):
            Store(path, read_only=read_only)
    reseal(path)
    Store(path).close()


def test_the_seal_that_moves_with_the_rows_is_the_one_that_the_rows_have(made):
    for name in ("killed", "ended", "whole"):
        db = sqlite3.connect(f"file:{made / name / 'state.db'}?mode=ro", uri=True)
        assert stored(db) == computed(db)
        db.close()


def test_values_that_sqlite_keeps_in_another_form_are_sealed_as_it_keeps_them(tmp_path):
    """REAL columns take whole numbers, INTEGER columns numpy's; the row that is read back must have the same digest."""
    store = Store(tmp_path / "state.db")
    with store.transaction() as db:
        db.execute("INSERT INTO cutovers VALUES ('m', '2', '1', 't', 0, 5, 7, 'x')")
        db.execute("INSERT INTO cutovers VALUES ('m', '3', '2', 't', ?, 5, 1e300, 'ü')", (int(np.int64(3)),))
        db.execute("UPDATE cutovers SET at = 9, next_offset = 6.0 WHERE version = '2'")
        db.execute("INSERT OR REPLACE INTO cutovers VALUES ('m', '3', '2', 't', 3, 5, -0.0, '')")
    store.close()
    Store(tmp_path / "state.db").close()


def test_a_transaction_that_was_rolled_back_leaves_the_seal_of_before(tmp_path):
    store = Store(tmp_path / "state.db")

    def broken():
        with store.transaction() as db:
            db.execute("INSERT INTO refs VALUES ('a', 'b')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    with store.transaction() as db:
        db.execute("INSERT INTO refs VALUES ('c', 'd')")
    store.close()
    Store(tmp_path / "state.db").close()


def test_a_beginning_that_was_killed_is_begun_again(tmp_path):
    (tmp_path / "state.db.new").write_bytes(b"half of")
    Store(tmp_path / "state.db").close()
    assert sorted(Path(tmp_path).iterdir()) == [tmp_path / "state.db", tmp_path / "state.db.lock"]
