"""The outbox killed at every step: one training process, and the end that an undisturbed life has.

A life is an approved launch carried to its end by `Retraining` with a real local launcher, real files and a store that
is a dictionary of JSON. `fatal` is the number of an instant (before or after a call of the store, the launcher or the
snapshot) at which the service is gone: everything in memory is dropped and a new one starts from the stored JSON. The
outer two tests take every instant in turn; the third draws several deaths in one life, seeded by hypothesis.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from detectors.reference import Column, Reference
from monitor import config
from monitor.errors import LaunchFailed
from monitor.flow import FINAL_STATES, Alarm, JobStatus, Launch, Mover
from monitor.retrain.launch import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN, Retraining
from monitor.retrain.launchers.local import Local
from monitor.retrain.ledger import Ledger, launch_from_json, launch_to_json
from monitor.retrain.trigger import Trigger

Value = TypeVar("Value")

TRAINER = """
import os, shutil
output = os.environ["TIDEMARK_OUTPUT_URI"]
open(output + "/starts", "a").write("x")
for name in ("holdout.parquet", "reference.json", "result.json"):
    shutil.copy(os.environ["TIDEMARK_DATA_URI"] + "/" + name, output + "/" + name)
"""
FAILING = "import os; open(os.environ['TIDEMARK_OUTPUT_URI'] + '/starts', 'a').write('x'); raise SystemExit(2)"
ENDLESS = """
import os, time
open(os.environ["TIDEMARK_OUTPUT_URI"] + "/starts", "a").write("x")
time.sleep(600)
"""


class Killed(BaseException):
    """The service is gone; nobody may catch this."""


class Instants:
    """Counts the instants of a life and ends it at the fatal ones."""

    def __init__(self, fatal: set[int]) -> None:
        self.fatal, self.passed = fatal, 0

    def __call__(self) -> None:
        self.passed += 1
        if self.passed in self.fatal:
            raise Killed

    def around(self, call: Callable[[], Value]) -> Value:
        self()
        value = call()
        self()
        return value


class Mortal:
    """A local launcher around each of whose calls the service may be killed."""

    name = "local"

    def __init__(self, instants: Instants, command: list[str]) -> None:
        self.instants, self.inner = instants, Local(config.LocalLauncher(command=command), grace_seconds=0.2)

    def start(self, launch: Launch) -> str:
        return self.instants.around(lambda: self.inner.start(launch))

    def status(self, launch: Launch) -> JobStatus:
        return self.inner.status(launch)

    def cancel(self, launch: Launch) -> None:
        self.instants.around(lambda: self.inner.cancel(launch))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the trainer will leave: a better challenger and its reference."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(2)
    label = rng.integers(0, 2, 400)
    parquet.write_table(pa.table({
        "id": np.arange(400), "label": label, "challenger_prediction": label,
        "champion_prediction": np.where(rng.random(400) < 0.8, label, 1 - label)}), folder / "holdout.parquet")
    reference_of("8").save(folder / "reference.json")
    (folder / "result.json").write_text(json.dumps(
        {"model_uri": "model.pt", "reference_uri": "reference.json", "metrics": {"loss": 0.1}}))
    return folder


def reference_of(version: str) -> Reference:
    return Reference.fit({"age": np.random.default_rng(1).normal(0, 1, 500)}, [Column("age", "numeric", "input")],
                         model="churn", version=version)


class Life:
    """One service after another over the same disk."""

    def __init__(self, folder: Path, trained: Path, script: str, fatal: set[int], seconds_per_turn: float) -> None:
        self.folder, self.trained, self.seconds_per_turn = folder, trained, seconds_per_turn
        self.disk: dict[str, str] = {}
        self.instants = Instants(fatal)
        self.command = ["{python}", "-S", "-c", script]
        self.now = 1_000.0
        self.policy = config.Retrain(
            launcher=config.LocalLauncher(command=self.command, deadline_hours=1.0), collect_events=10,
            promote=config.FilePromotion(path=str(folder / "champion.json")))
        trigger = Trigger({"churn": self.policy}, Ledger(), clock=lambda: self.now)
        trigger([Alarm("churn", "7", "all", 1, "severe", "drift", 2.0, 1.5, 0.0, 60.0, 1, 1, 500,
                       (Mover("age", "input", 0.5, 0.4, 0.6, 2.0, "mean"),))], {("events", 0): 9})
        self.disk.update({launch.id: launch_to_json(launch) for launch in trigger.ledger.changed()[0]})

    def service(self) -> Retraining:
        ledger = Ledger([launch_from_json(text) for text in self.disk.values()])
        return Retraining({"churn": self.policy}, ledger, {"churn": Mortal(self.instants, self.command)},
                          save=self.save, snapshot=self.snapshot, reference=lambda _: reference_of("7"),
                          poll_seconds=0.0, rng=random.Random(1))

    def save(self, launch: Launch) -> None:
        self.instants.around(lambda: self.disk.update({launch.id: launch_to_json(launch)}))

    def snapshot(self, launch: Launch) -> str:
        return self.instants.around(lambda: self._linked(self.folder / launch.id / "data"))

    def _linked(self, data: Path) -> str:
        if not data.exists():
            data.parent.mkdir(parents=True, exist_ok=True)
            data.symlink_to(self.trained)
        return str(data)

    def run(self) -> Launch:
        """Live, die and live again until the stored launch is final."""
        service, deadline = self.service(), time.monotonic() + 60
        while time.monotonic() < deadline:
            (launch,) = (launch_from_json(text) for text in self.disk.values())
            if launch.state != "running" or self.starts(launch):        # time waits for the trainer to be there
                self.now += self.seconds_per_turn
            try:
                service.advance(self.now, lambda _: 10)
            except Killed:
                service = self.service()
            (launch,) = (launch_from_json(text) for text in self.disk.values())
            if launch.state in FINAL_STATES:
                return launch
            time.sleep(0.002)
        raise TimeoutError(f"never ended: {launch}")

    def starts(self, launch: Launch) -> str:
        path = self.folder / launch.id / "output" / "starts"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for output in tmp_path.rglob("launch.json"):           # nothing that a broken test left may run on
        claim = json.loads(output.read_text())
        Local(config.LocalLauncher(command=[]), grace_seconds=0.0).cancel(
            Launch(claim["id"], "churn", "7", 1, "local", "running", "{}", (), output_uri=str(output.parent)))


def figures(launch: Launch) -> dict[str, Any]:
    """The launch without times, process numbers and what counts failed calls."""
    whole = json.loads(launch_to_json(launch))
    states = [state for state, _ in whole.pop("steps")]
    for passing in ("external", "retry_at", "attempts", "data_uri", "output_uri", "reference_uri", "model_uri", "progress"):
        whole.pop(passing)
    return {**whole, "states": states}


@pytest.mark.parametrize(("script", "seconds_per_turn", "expected"), [
    (TRAINER, 1.0, "promoted"), (FAILING, 1.0, "failed"), (ENDLESS, 400.0, "timed_out")],
    ids=["promoted", "failed", "timed_out"])
def test_killed_at_any_instant_a_launch_is_one_process_with_the_undisturbed_end(
        folder: Path, trained: Path, script: str, seconds_per_turn: float, expected: str) -> None:
    undisturbed = Life(folder / "0", trained, script, set(), seconds_per_turn)
    whole = undisturbed.run()
    assert (whole.state, undisturbed.starts(whole)) == (expected, "x")
    assert undisturbed.instants.passed >= 8
    for fatal in range(1, undisturbed.instants.passed + 1):
        life = Life(folder / str(fatal), trained, script, {fatal}, seconds_per_turn)
        end = life.run()
        assert (fatal, figures(whole)) == (fatal, figures(end))
        assert (fatal, "x") == (fatal, life.starts(end))
        assert life.instants.passed >= fatal, "the service was never killed"
        promoted = folder / str(fatal) / "champion.json"
        if expected == "promoted":
            assert json.loads(promoted.read_text())["launch_id"] == end.id
        else:
            assert not promoted.exists()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(1, 40), max_size=12))
def test_killed_many_times_it_is_still_one_process_and_the_same_verdict(folder: Path, trained: Path,
                                                                       fatal: set[int]) -> None:
    here = folder / "again"
    shutil.rmtree(here, ignore_errors=True)
    life = Life(here, trained, TRAINER, fatal, 1.0)
    end = life.run()
    assert (end.state, end.verdict, life.starts(end)) == ("promoted", "better", "x")
    assert [state for state, _ in end.steps] == [
        "proposed", "approved", "submitted", "running", "succeeded", "judged", "promoted"]


def test_a_promoted_launch_gives_its_reference_before_and_after_a_restart(folder: Path, trained: Path) -> None:
    life = Life(folder, trained, TRAINER, set(), 1.0)
    end = life.run()
    restarted = life.service()
    assert [launch.id for launch in restarted.ledger.awaiting_cut_over()] == [end.id]
    reference = restarted.take_reference(end)
    assert reference is not None
    assert reference.digest == reference_of("8").digest
    Path(end.reference_uri).unlink()
    assert life.service().take_reference(end) is None


def test_a_job_that_vanished_is_judged_by_what_it_left(folder: Path, trained: Path) -> None:
    for left, expected in ((True, "promoted"), (False, "failed")):
        life = Life(folder / str(left), trained, TRAINER, set(), 1.0)
        life.policy = config.Retrain(**{**{name: getattr(life.policy, name) for name in life.policy.__struct_fields__},
                                        "launcher": config.LocalLauncher(command=["true"])})
        (launch,) = (launch_from_json(text) for text in life.disk.values())
        output = folder / str(left) / launch.id / "output"
        output.mkdir(parents=True)
        # A companion of an earlier boot claimed it: the machine was switched off during the training.
        (output / "launch.json").write_text(json.dumps({"id": launch.id, "pid": 1, "ticks": 1, "boot": "another"}))
        if left:
            shutil.copytree(trained, output, dirs_exist_ok=True)
        end = life.run()
        assert end.state == expected
        assert left or "left no result.json" in end.detail


class Away:
    """A launcher that cannot be reached, or refuses for good."""

    name = "local"

    def __init__(self, retry: bool) -> None:
        self.retry, self.calls = retry, 0

    def start(self, launch: Launch) -> str:
        self.calls += 1
        raise LaunchFailed("server away" if self.retry else "forbidden", retry=self.retry)

    def status(self, launch: Launch) -> JobStatus:
        raise AssertionError("never started")

    def cancel(self, launch: Launch) -> None:
        raise AssertionError("never started")


def test_a_launcher_that_is_away_is_asked_again_ever_more_seldom_and_given_up_in_the_end(folder: Path,
                                                                                        trained: Path) -> None:
    life, away = Life(folder, trained, TRAINER, set(), 1.0), Away(retry=True)
    service = life.service()
    service.launchers = {"churn": away}
    asked, now = [], 0.0
    (launch,) = service.ledger.unfinished()
    while service.ledger.unfinished():
        now += 1.0
        before = away.calls
        service.advance(launch.steps[0][1] + now, lambda _: 10)
        if away.calls > before:
            asked.append(now)
    waits = np.diff(asked)
    assert BACKOFF_SECONDS_MIN <= waits[0] <= 2 * BACKOFF_SECONDS_MIN + 1
    assert waits.min() >= BACKOFF_SECONDS_MIN
    assert BACKOFF_SECONDS_MAX / 2 <= waits[10:].min() <= waits.max() <= BACKOFF_SECONDS_MAX + 1
    end = launch_from_json(life.disk[launch.id])
    assert (end.state, end.attempts) == ("failed", away.calls)
    assert end.detail == f"given up after {away.calls} failed calls: server away"


def test_a_launcher_that_refuses_for_good_ends_the_launch_at_once(folder: Path, trained: Path) -> None:
    life, away = Life(folder, trained, TRAINER, set(), 1.0), Away(retry=False)
    service = life.service()
    service.launchers = {"churn": away}
    for _ in range(5):
        service.advance(2_000.0, lambda _: 10)
    (end,) = (launch_from_json(text) for text in life.disk.values())
    assert (end.state, end.detail, away.calls) == ("failed", "forbidden", 1)


def test_a_promotion_that_cannot_be_written_now_says_so_and_keeps_its_verdict(folder: Path, trained: Path) -> None:
    life = Life(folder, trained, TRAINER, set(), 1.0)
    (folder / "champion.json").mkdir()
    service, deadline = life.service(), time.monotonic() + 30
    (launch,) = service.ledger.unfinished()
    while not service.ledger.launches[launch.id].attempts:
        assert time.monotonic() < deadline
        life.now += 1.0
        service.advance(life.now, lambda _: 10)
    waiting = service.ledger.launches[launch.id]
    assert (waiting.state, waiting.verdict) == ("judged", "better")
    assert "accuracy of" in waiting.detail
    assert waiting.progress.startswith("will be tried again: retrain.promote.path")
    (folder / "champion.json").rmdir()
    end = life.run()
    assert (end.state, end.progress, end.detail) == ("promoted", "", waiting.detail)


def test_nothing_starts_before_enough_labelled_events_are_there(folder: Path, trained: Path) -> None:
    life, away = Life(folder, trained, TRAINER, set(), 1.0), Away(retry=False)
    service = life.service()
    service.launchers = {"churn": away}
    (launch,) = service.ledger.unfinished()
    service.advance(2_000.0, lambda _: 9)
    assert service.ledger.launches[launch.id].state == "approved"
    assert service.ledger.launches[launch.id].progress == "9 of 10 labelled events since the alarm began"
    service.advance(2_000.0 + 15 * 86_400, lambda _: 9)
    end = launch_from_json(life.disk[launch.id])
    assert (end.state, away.calls) == ("failed", 0)
    assert end.detail == ("only 9 of 10 labelled events since the alarm began, after 14 days; send labels, "
                          "or lower retrain.collect_events")


def test_a_proposed_launch_waits_for_a_person(folder: Path, trained: Path) -> None:
    life = Life(folder, trained, TRAINER, set(), 1.0)
    (launch,) = (launch_from_json(text) for text in life.disk.values())
    text = json.loads(launch_to_json(launch))
    life.disk[launch.id] = json.dumps({**text, "state": "proposed", "steps": text["steps"][:1]})
    assert life.service().advance(2_000.0, lambda _: 10) == []
