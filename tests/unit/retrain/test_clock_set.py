"""Every wait of a launch takes as long when the machine's clock is set meanwhile, forward or back, as when it is not.

Each wait is driven minute by minute with a restart before every turn, so that nothing in memory carries it; the clock is set
once, some minutes in, and what is measured is the time that really passed until the wait was over.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pyarrow as pa
import pytest

from monitor import config
from monitor.config_retrain import Shadow
from monitor.errors import LaunchFailed
from monitor.flow import FINAL_STATES, JobStatus, Launch
from monitor.retrain import launch as outbox
from monitor.retrain.launch import Retraining
from monitor.retrain.ledger import Ledger, launch_from_json, launch_to_json
from monitor.retrain.limits import gpu_hours
from monitor.retrain.promotions import PromotionWaits
from monitor.retrain.shadow import Shadows, Watching
from monitor.retrain.trigger import Trigger
from monitor.state.set_clock import SetClock
from tests.unit.retrain.test_shadow import reference_of
from tests.unit.retrain.test_trigger import OFFSETS, alarm
from tests.unit.state.test_set_clock import DAY, Machine

MINUTE, HOUR = 60.0, 3600.0
QUEUED, RUNNING = JobStatus("queued"), JobStatus("running")
REMOTE = config.KubernetesLauncher(image="x", queue="q", deadline_hours=1.0, queue_hours=0.5)
#: Further than any wait here, and as far back.
SETTINGS = (-60 * DAY, -2 * HOUR, 2 * HOUR, 60 * DAY)


class Remote:
    """A launcher that says what it is told to say, and a promotion that is never done; both remember when they were asked."""

    name = "kubernetes"

    def __init__(self) -> None:
        self.says: JobStatus | None = RUNNING
        self.asked = self.ended = 0
        self.promoting: list[float] = []

    def start(self, launch: Launch) -> str:
        return "Job/ml/it"

    def status(self, launch: Launch) -> JobStatus:
        self.asked += 1
        if self.says is None:
            raise LaunchFailed("away", retry=True)
        return self.says

    def cancel(self, launch: Launch) -> None:
        self.ended += 1

    def shadow(self, launch: Launch, column: str) -> None:
        pass

    def shadow_over(self, launch: Launch) -> None:
        pass

    def promote(self, launch: Launch, now: float) -> str:
        self.promoting.append(now)
        raise PromotionWaits("a canary")


class Life:
    """One launch on a machine whose clock is set by `by` after ten minutes; restarted before every turn."""

    def __init__(self, by: float, state: str, policy: config.Retrain | None = None, *, restarts: bool = True) -> None:
        self.machine, self.by, self.restarts = Machine(), by, restarts
        self.policy = policy or config.Retrain(launcher=REMOTE)
        self.remote, self.captured, self.service = Remote(), 0, None
        self.clock = self.machine.clock()
        self.disk = Launch("3f9c2a1b7d4e", "churn", "7", 1, "kubernetes", state, "{}", ((state, self.clock()),),
                           output_uri="/nowhere", verdict="better", detail="held back", new_version="8", model_uri="m")
        self.clock.save(self.machine.db, now=True)

    def store(self, launch: Launch) -> None:
        self.disk = launch

    def turn(self, seconds: float = MINUTE) -> Launch:
        if self.machine.elapsed <= 700.0 < self.machine.elapsed + seconds:
            self.machine.wall += self.by
        self.machine.passes(seconds)
        if self.restarts or self.service is None:
            self.clock = self.machine.clock()
            self.service = Retraining(
                {"churn": self.policy}, Ledger([launch_from_json(launch_to_json(self.disk))]), {"churn": self.remote},
                save=self.store, snapshot=lambda launch: "/nowhere/data", reference=lambda model: reference_of("7"),
                rng=random.Random(1), promotions={"churn": self.remote},
                shadows=Shadows({"churn": Watching("label", "answer", "shadow")} if self.policy.shadow else {},
                                lambda *_: pa.table({name: pa.array([], pa.string()) for name in
                                                     ("label", "answer", "shadow", "id", "timestamp")}), lambda _: 5_000))
        self.service.advance(self.clock.steady(), lambda launch: self.captured)
        self.disk = self.service.ledger.launches[self.disk.id]
        self.clock.save(self.machine.db, now=True)
        return self.disk

    def until(self, over: Callable[[Launch], bool], seconds: float = MINUTE) -> float:
        """Seconds that really pass until it is so."""
        for _ in range(2_000):
            if over(self.turn(seconds)):
                return self.machine.elapsed - 100.0
        raise AssertionError(f"never: {self.disk}")


def is_over(launch: Launch) -> bool:
    return launch.state in FINAL_STATES


def running(by: float) -> tuple[float, object]:
    life = Life(by, "submitted")
    return life.until(is_over), life.disk.detail


def waiting_in_its_queue(by: float) -> tuple[float, object]:
    life = Life(by, "submitted")
    life.remote.says = QUEUED
    return life.until(is_over), life.disk.detail


def charged_no_wait(by: float) -> tuple[float, object]:
    life = Life(by, "submitted")
    life.remote.says = QUEUED
    life.until(lambda _: life.machine.elapsed > 1_500.0)
    life.remote.says = RUNNING
    return life.until(is_over), (life.disk.detail, life.disk.queued_seconds, gpu_hours(life.disk))


def collecting(by: float) -> tuple[float, object]:
    life = Life(by, "approved", config.Retrain(launcher=REMOTE, collect_events=10))
    return life.until(is_over, HOUR / 4), life.disk.detail


def answering_in_shadow(by: float) -> tuple[float, object]:
    life = Life(by, "judged", config.Retrain(launcher=REMOTE, shadow=Shadow(prediction="shadow", hours=2.5)))
    return life.until(is_over, 5 * MINUTE), life.disk.detail


def given_up(by: float) -> tuple[float, object]:
    life = Life(by, "running", restarts=False)                  # how long calls fail is forgotten at a restart
    life.remote.says = None
    return life.until(is_over, 5 * MINUTE), life.disk.detail


def tried_again(by: float) -> tuple[float, object]:
    life = Life(by, "running")
    life.remote.says = None
    life.until(lambda _: life.machine.elapsed > 780.0, 1.0)
    return life.machine.elapsed, life.remote.asked


def asked_now_and_then(by: float) -> tuple[float, object]:
    life = Life(by, "running", restarts=False)
    life.until(lambda _: life.machine.elapsed > 900.0, 1.0)
    return life.machine.elapsed, life.remote.asked


def strays_looked_for(by: float) -> tuple[float, object]:
    life = Life(by, "succeeded", restarts=False)
    life.disk = Launch("3f9c2a1b7d4e", "churn", "7", 1, "kubernetes", "failed", "{}",
                       (("submitted", life.clock()), ("failed", life.clock())))
    life.until(lambda _: life.machine.elapsed > 1.5 * DAY, 5 * MINUTE)
    return life.machine.elapsed, (life.remote.asked, life.remote.ended)


WAITS = (running, waiting_in_its_queue, charged_no_wait, collecting, answering_in_shadow, given_up, tried_again,
         asked_now_and_then, strays_looked_for)


@cache
def undisturbed(wait: Callable[[float], tuple[float, object]]) -> tuple[float, object]:
    return wait(0.0)


@pytest.mark.parametrize("by", SETTINGS)
@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_takes_as_long_whatever_the_clock_is_set_to_meanwhile(wait, by, monkeypatch):
    monkeypatch.setattr(outbox, "checked_reference", lambda *_: None)
    assert wait(by) == undisturbed(wait)


@pytest.mark.parametrize("by", SETTINGS)
def test_a_promotion_is_told_a_time_that_passes_evenly(by, monkeypatch):
    monkeypatch.setattr("monitor.retrain.promote.checked_reference", lambda *_: reference_of("8"))
    life = Life(by, "judged")
    for _ in range(30):
        life.turn()
    gaps = [after - before for before, after in pairwise(life.remote.promoting)]
    assert gaps == pytest.approx([MINUTE] * 29)


@pytest.mark.parametrize("by", SETTINGS)
def test_a_proposal_expires_when_its_hours_have_really_passed(by):
    machine, ledger = Machine(), Ledger()

    def trigger(clock: SetClock) -> Trigger:
        return Trigger({"churn": config.Retrain(launcher=REMOTE, approval="manual", approval_hours=3.0)}, ledger, clock=clock,
                       set_by=lambda: clock.set_by)

    clock = machine.clock()
    clock()
    trigger(clock)([alarm()], OFFSETS)
    clock.save(machine.db, now=True)
    machine.passes(HOUR)
    machine.wall += by
    machine.passes(2 * HOUR - 1)
    clock = machine.clock()
    assert trigger(clock).expire() == []
    machine.passes(1)
    (ended,) = trigger(clock).expire()
    assert ended.steps[-1][1] - ended.steps[0][1] == pytest.approx(3 * HOUR)


@pytest.mark.parametrize("by", SETTINGS)
def test_what_begins_after_a_setting_has_the_times_of_the_clock_as_it_is_set_then(by):
    machine, ledger = Machine(), Ledger()
    clock = machine.clock()
    machine.wall += by
    made = Trigger({"churn": config.Retrain(launcher=REMOTE, approval="manual")}, ledger, clock=clock,
                   set_by=lambda: clock.set_by)
    made([alarm()], OFFSETS)
    (launch,) = ledger.launches.values()
    machine.passes(5.0)
    answered = made.approve(launch.id, by="a person")
    assert [at for _, at in answered.steps] == pytest.approx([machine.wall - 5.0, machine.wall])


def test_a_launch_that_was_stored_before_the_clock_was_watched_is_read():
    text = launch_to_json(Launch("3f9c2a1b7d4e", "m", "1", 1, "local", "running", "{}", (("running", 5.0),), clock_set=3.0))
    assert launch_from_json(text).clock_set == 3.0
    assert launch_from_json(text.replace(',"clock_set":3.0', "")).clock_set == 0.0
