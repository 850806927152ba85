"""How long a training may wait in its queue, that its wait is not charged for its deadline, and the progress that it left."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from monitor import config
from monitor.flow import JobStatus, Launch
from monitor.retrain.launch import Retraining
from monitor.retrain.ledger import Ledger, launch_from_json, launch_to_json

HOUR = 3600.0
QUEUED, RUNNING = JobStatus("queued", "Kueue: no quota"), JobStatus("running")
POLICY = config.Retrain(launcher=config.KubernetesLauncher(image="x", queue="q", deadline_hours=6, queue_hours=12))


class Recording:
    """A launcher that says what it is told to say, and remembers what was ended."""

    name = "kubernetes"

    def __init__(self) -> None:
        self.says = RUNNING
        self.ended: list[str] = []

    def start(self, launch: Launch) -> str:
        return "Job/ml/it"

    def status(self, launch: Launch) -> JobStatus:
        return self.says

    def cancel(self, launch: Launch) -> None:
        self.ended.append(launch.id)


class Life:
    """One launch that was submitted at hour 0; `at` lets the service take one step at an hour, a restart before each."""

    def __init__(self, policy: config.Retrain = POLICY, name: str = "kubernetes") -> None:
        self.policy, self.launcher = policy, Recording()
        self.launcher.name = name
        self.stored = Launch(id="3f9c2a1b7d4e", model="churn", version="7", episode=1, launcher=name, state="running",
                             reason="{}", steps=(("approved", 0.0), ("submitted", 0.0), ("running", 0.0)))

    def at(self, hour: float, says: JobStatus) -> Launch:
        """What is stored after a step at `hour` in which the launcher says `says`; nothing in memory outlives it."""
        self.launcher.says = says
        ledger = Ledger([launch_from_json(launch_to_json(self.stored))], [])
        retraining = Retraining({"churn": self.policy}, ledger, {"churn": self.launcher}, save=lambda launch: None,
                                snapshot=lambda launch: "", reference=lambda model: pytest.fail("not judged"),
                                rng=random.Random(1), poll_seconds=0.0)
        retraining.advance(hour * HOUR, lambda launch: 0)
        self.stored = ledger.launches[self.stored.id]
        return self.stored


def test_a_training_that_waits_too_long_is_ended_and_says_what_it_waited_for() -> None:
    life = Life()
    assert life.at(0.1, QUEUED).state == "running"
    assert life.at(12.0, QUEUED).state == "running"
    ended = life.at(12.2, QUEUED)
    assert (ended.state, life.launcher.ended) == ("timed_out", [ended.id])
    assert ended.detail == ("waited in the queue for more than 12 hours (retrain.launcher.queue_hours); was ended; "
                            "queued: Kueue: no quota")


def test_the_wait_is_not_charged_for_the_deadline() -> None:
    life = Life()
    life.at(0.1, QUEUED)
    life.at(8.0, QUEUED)
    assert life.at(8.1, RUNNING).state == "running"
    assert life.at(13.9, RUNNING).state == "running"
    ended = life.at(14.2, RUNNING)
    assert ended.state == "timed_out"
    assert ended.detail == "did not end within 6 hours (retrain.launcher.deadline_hours); was ended"


def test_a_training_that_its_queue_takes_back_waits_anew_and_keeps_its_hours() -> None:
    life = Life()
    life.at(0.1, QUEUED)
    life.at(10.0, RUNNING)
    life.at(14.0, QUEUED)                           # preempted after 4 of its 6 hours
    assert life.at(25.9, QUEUED).state == "running"
    life.at(25.95, RUNNING)
    assert life.at(27.8, RUNNING).state == "running"
    assert life.at(28.1, RUNNING).state == "timed_out"


def test_people_see_what_it_waits_for_while_it_waits_and_no_longer() -> None:
    life = Life()
    assert life.at(0.1, QUEUED).progress == "queued: Kueue: no quota"
    assert life.at(0.2, JobStatus("queued")).progress == "queued"
    assert life.at(0.3, RUNNING).progress == ""
    assert life.at(0.4, JobStatus("running", progress="epoch 2")).progress == "epoch 2"


def test_the_reason_outlives_a_crash_between_the_intention_and_the_end() -> None:
    life = Life()
    life.at(0.1, QUEUED)
    life.stored = dataclasses.replace(life.stored, detail="deadline passed, cancelling: waited too long; was ended")
    assert life.at(0.2, JobStatus("failed", "SIGTERM")).detail == "waited too long; was ended"


@pytest.mark.parametrize("backwards", [-5.0, -1e6])
def test_a_clock_that_was_set_back_ends_nothing(backwards: float) -> None:
    life = Life()
    life.at(1.0, QUEUED)
    assert life.at(1.0 + backwards, RUNNING).queued_seconds == 0.0
    assert life.at(1.1, RUNNING).state == "running"


def test_a_launcher_without_a_limit_of_its_queue_charges_the_wait() -> None:
    local: Any = config.LocalLauncher(command=["x"], deadline_hours=6)
    life = Life(config.Retrain(launcher=local), "local")
    life.at(0.1, QUEUED)
    assert life.at(6.1, QUEUED).state == "timed_out"


@pytest.mark.parametrize(("left", "shown"), [
    (b"epoch 1/9 loss 0.7\nepoch 2/9 loss 0.5, 40 s to go\n\n", "epoch 2/9 loss 0.5, 40 s to go"),
    (b"\x1b[2Kepoch 3\xff\n", "[2Kepoch 3\ufffd"), (b"\n \n", ""), (b"x" * 70_000, ""), (None, "")])
def test_the_last_line_that_a_trainer_left_is_its_progress_where_the_launcher_cannot_tell(tmp_path, left, shown) -> None:
    life = Life()
    life.stored = dataclasses.replace(life.stored, output_uri=str(tmp_path))
    if left is not None:
        (tmp_path / "progress.txt").write_bytes(left)
    assert life.at(1.0, RUNNING).progress == shown
    assert life.at(1.1, JobStatus("running", progress="the launcher knows")).progress == "the launcher knows"
