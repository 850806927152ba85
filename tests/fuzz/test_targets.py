"""Every target on its corpus, on what hypothesis makes of it, and for a moment under atheris in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import CHECKOUT, Process, package, wait_until
from tests.fuzz import seeds
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
#: Inputs per target in the normal run: seconds each, on a busy machine. `make fuzz` gives them as long as one likes.
EXAMPLES = {"state": 8, "reference": 25, "holdout": 25, "result": 40, "decode": 60, "http": 60, "files": 60}
#: And under atheris, where starting takes most of the time.
RUNS = {"state": 10, "reference": 60, "holdout": 60, "http": 150}


def inputs(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_was_found_once_is_not_found_again(name):
    given_ = inputs(name)
    assert given_, "a target without a corpus"
    for data in given_:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_bytes_and_spoilt_seeds_do_no_more_than_is_promised(name):
    known, target = inputs(name), TARGETS[name]
    cut = st.tuples(st.sampled_from(known), st.sampled_from(known), st.integers(0, 400), st.integers(0, 400)).map(
        lambda one: one[0][:one[2]] + one[1][one[3]:])
    spoilt = st.tuples(st.sampled_from(known).filter(bool), st.binary(max_size=20)).map(lambda one: seeds.damaged(*one))

    @settings(max_examples=EXAMPLES.get(name, 100), deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=300), cut, spoilt))
    def holds(data):
        target(data)

    holds()


@pytest.fixture(scope="module")
def atheris_logs(tmp_path_factory):
    """The folder where each target's process leaves its log: one after the other, from one parent that instruments once."""
    package("atheris")
    folder = tmp_path_factory.mktemp("atheris")
    (folder / "new").mkdir()
    runs = ",".join(f"{name}={RUNS.get(name, 400)}" for name in TARGETS)
    parent = Process([sys.executable, "-m", "tests.fuzz.drive", runs, folder, "-seed=1", "-max_total_time=20", "-max_len=4000",
                      f"-artifact_prefix={folder}/", folder / "new"], folder / "parent.txt", cwd=CHECKOUT,
                     env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)
    yield folder, parent
    with contextlib.suppress(ProcessLookupError):   # its target's process with it
        os.killpg(parent.popen.pid, signal.SIGKILL)
    parent.stop()


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_runs_under_atheris_and_finds_nothing(name, atheris_logs):
    folder, parent = atheris_logs
    log = folder / f"{name}.log"

    def text():
        return log.read_text(errors="replace") if log.exists() else ""

    wait_until(lambda: "\nexit code " in text() or parent.popen.poll() is not None, 280, f"the end of {name}")
    assert text().endswith("\nexit code 0\n"), text()[-3_000:] or (folder / "parent.txt").read_text()[-3_000:]
    assert "INITED" in text(), "libFuzzer has not begun"
