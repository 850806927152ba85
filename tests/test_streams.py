"""The runs of `make test` are all of the tests, each once, and a failure of one fails the whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT, Process, wait_until
from tests.streams import WAITING, commands


def collected(folder, *options):
    """The tests that pytest takes from these folders."""
    made = subprocess.run([sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *options],
                          cwd=folder, text=True, capture_output=True, timeout=120)
    assert made.returncode == 0, made.stdout + made.stderr
    return [line for line in made.stdout.splitlines() if "::" in line]


def test_all_streams_together_are_every_test_once(tmp_path):
    """On a tree with this one's folders and one test in each: what collects them is the options, whatever is in them."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    folders = [path for path in (CHECKOUT / "tests").rglob("*") if path.is_dir() and not path.name.startswith(("_", "."))]
    for folder in [CHECKOUT / "tests", *folders]:
        here = tmp_path / folder.relative_to(CHECKOUT)
        here.mkdir(parents=True)
        (here / "test_one.py").write_text("def test_one(): pass\n")
    assert all((CHECKOUT / folder).is_dir() for folders in WAITING.values() for folder in folders)
    whole = collected(tmp_path)
    streams = {name: collected(tmp_path, *command[3:]) for name, command in commands([]).items()}
    assert len(whole) > 15
    assert sorted(name for names in streams.values() for name in names) == sorted(whole)
    assert any(name.startswith("tests/integration") for name in streams["serving"])
    assert any(name.startswith("tests/crash") for name in streams["killing"])
    assert any(name.startswith("tests/unit") for name in streams["computing"])


def run(tmp_path, *programs):
    """Streams of one line of Python each, two side by side."""
    script = tmp_path / "streams.py"
    named = ", ".join(f"{name!r}: [sys.executable, '-c', {program!r}]"
                      for name, program in zip(("first", "second", "third"), programs, strict=False))
    script.write_text(f"import sys\nfrom tests.streams import run\nsys.exit(run({{{named}}}, 2))\n")
    return Process([sys.executable, script], tmp_path / "log.txt", cwd=CHECKOUT, env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
                   start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))    # as with `&`


@pytest.mark.parametrize(("codes", "code", "last"), [
    ((0, 0), 0, "streams: all ended well, after"), ((1, 0), 1, "streams: failed: first (1), after"),
    ((0, 5), 1, "streams: failed: second (5), after"), ((2, 1), 1, "streams: failed: ")])
def test_a_failure_of_either_fails_both_and_what_each_said_is_there_as_a_whole(codes, code, last, tmp_path):
    said = "import sys; [print('{} line', n) for n in range(2000)]; sys.exit({})"
    process = run(tmp_path, said.format("one", codes[0]), said.format("two", codes[1]))
    assert process.popen.wait(60) == code
    process.stop()
    text = (tmp_path / "log.txt").read_text()
    assert [line for line in text.splitlines() if " line " in line] == [
        f"{name} line {n}" for name in ("one", "two") for n in range(2000)]
    assert text.splitlines()[-1].startswith(last)


def test_a_third_stream_begins_when_one_of_two_has_ended(tmp_path):
    begin = "import pathlib, time\nhere = pathlib.Path({!r}); there = set(path.name for path in here.glob('began-*'))\n"
    begin = begin.format(str(tmp_path)) + "(here / 'began-NAME').touch()\n"
    holding = "while not (here / 'go-NAME').exists(): time.sleep(0.02)\n"
    process = run(tmp_path, *((begin + holding).replace("NAME", name) for name in ("one", "two")),
                  begin.replace("NAME", "three") + "assert there == {'began-one', 'began-two'}; print('third')")
    wait_until(lambda: all((tmp_path / f"began-{name}").exists() for name in ("one", "two")), what="both running")
    assert not (tmp_path / "began-three").exists()
    (tmp_path / "go-two").touch()
    wait_until(lambda: (tmp_path / "began-three").exists(), what="the third")
    assert process.popen.poll() is None
    (tmp_path / "go-one").touch()
    assert process.popen.wait(60) == 0
    process.stop()
    said = (tmp_path / "log.txt").read_text()
    assert "streams: what third said\nthird\n" in said


def test_whoever_ends_the_whole_ends_both_as_ctrl_c_does_and_begins_no_other(tmp_path):
    """So that fixtures end their servers."""
    waiting = (f"import pathlib, time\nhere = pathlib.Path({str(tmp_path)!r}) / 'NAME'\ntry: here.touch(); time.sleep(600)\n"
               "except KeyboardInterrupt: here.with_suffix('.ended').touch(); raise SystemExit(2)\n")
    process = run(tmp_path, *(waiting.replace("NAME", name) for name in ("one", "two", "three")))
    wait_until(lambda: all((Path(tmp_path) / name).exists() for name in ("one", "two")), what="both running")
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(60) == 1
    process.stop()
    assert all((tmp_path / f"{name}.ended").exists() for name in ("one", "two"))
    assert not (tmp_path / "three").exists()
    assert "third (not begun)" in (tmp_path / "log.txt").read_text()
