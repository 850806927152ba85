"""The clock that is set: by how much it was, while the service ran, over a restart, a reboot and another machine."""

from __future__ import annotations

import logging
import sqlite3

import pytest

from monitor.errors import CheckpointRefused
from monitor.flow import Launch
from monitor.state.set_clock import SHOWN_SECONDS, STORED_SECONDS, SetClock, boot

DAY = 86_400.0


class Machine:
    """A wall clock that may be set, and one that may not."""

    def __init__(self, wall: float = 1e9, elapsed: float = 100.0) -> None:
        self.wall, self.elapsed = wall, elapsed
        self.db = sqlite3.connect(":memory:")
        self.db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")

    def passes(self, seconds: float) -> None:
        self.wall, self.elapsed = self.wall + seconds, self.elapsed + seconds

    def clock(self, boot: str = "this") -> SetClock:
        made = SetClock(lambda: self.wall, lambda: self.elapsed, boot=boot)
        made.restore(self.db)
        return made

    def reboots(self, off: float, wrong_by: float = 0.0) -> SetClock:
        self.wall, self.elapsed = self.wall + off + wrong_by, 7.0
        return self.clock("another")


@pytest.mark.parametrize("by", [-30 * DAY, -3600.0, -6.0, 6.0, 3600.0, 30 * DAY])
def test_a_clock_that_is_set_is_noticed_once_by_how_much_and_the_steady_time_goes_on(by, caplog):
    machine = Machine()
    clock = machine.clock()
    steady = clock.steady()
    with caplog.at_level(logging.WARNING):
        for turn in range(5):
            machine.passes(10.0)
            machine.wall += by if turn == 2 else 0.0
            steady += 10.0
            assert clock.steady() == pytest.approx(steady, abs=1e-6)
    assert clock.set_by == pytest.approx(by)
    (line,) = caplog.records
    assert (line.message, line.seconds) == ("The machine's clock was set.", pytest.approx(by))


def test_a_slow_correction_and_a_stop_between_two_readings_set_nothing():
    machine = Machine()
    clock = machine.clock()
    for _ in range(1000):
        machine.passes(60.0)
        machine.wall += 0.03                        # 500 ppm, the most that NTP slews by
        clock()
    assert clock.set_by == 0


@pytest.mark.parametrize("stops", range(12))
def test_a_process_that_is_stopped_between_two_readings_takes_its_stop_for_no_setting(stops):
    readings, now = iter(range(100)), [0.0]

    def passes() -> float:
        now[0] += 300.0 if next(readings) == stops else 0.001
        return now[0]

    clock = SetClock(lambda: 1e9 + passes(), passes)
    for _ in range(4):
        clock()
    assert clock.set_by == 0


def test_a_suspended_machines_sleep_is_no_time_that_anything_waited():
    machine = Machine()
    clock = machine.clock()
    before = clock.steady()
    machine.wall += 8 * 3600.0                      # CLOCK_MONOTONIC stood still
    assert clock.steady() == before


@pytest.mark.parametrize("by", [-3 * DAY, 3 * DAY])
@pytest.mark.parametrize("is_noticed", [False, True])
def test_after_a_crash_right_behind_the_setting_the_time_off_counts_and_the_setting_does_not(by, is_noticed):
    machine = Machine()
    clock = machine.clock()
    before = clock.steady()
    clock.save(machine.db, now=True)
    machine.wall += by
    if is_noticed:
        clock()
        clock.save(machine.db, now=False)
    machine.passes(120.0)
    assert machine.clock().steady() == pytest.approx(before + 120.0)


@pytest.mark.parametrize(("wrong", "later"), [
    (0.0, 0.0),                                     # nothing but a reboot
    (-40 * 365 * DAY, 40 * 365 * DAY),              # no battery: 1970 until the network is there
    (-3600.0, 3600.0),
])
def test_after_a_reboot_the_time_off_counts_where_it_is_known_and_time_never_goes_back(wrong, later):
    machine = Machine(wall=1.7e9)
    clock = machine.clock()
    before = clock.steady()
    clock.save(machine.db, now=True)
    again = machine.reboots(300.0, wrong)
    assert again.steady() == pytest.approx(before + (0.0 if wrong else 300.0))
    machine.wall += later
    machine.passes(60.0)
    assert again.steady() == pytest.approx(before + (0.0 if wrong else 300.0) + 60.0)


@pytest.mark.parametrize(("first", "then"), [(0.0, 0.0), (0.0, -DAY), (0.0, DAY), (-DAY, 0.0), (DAY, 0.0), (DAY, DAY)])
def test_another_machine_with_the_right_time_takes_the_time_off_from_whichever_clock_was_right(first, then):
    machine = Machine(wall=1e9 + first)             # wrong by `first` at the start, and set to be wrong by `then`
    clock = machine.clock()
    before = clock.steady()
    machine.wall = 1e9 + then
    clock()
    clock.save(machine.db, now=True)
    machine.wall = 1e9
    again = machine.reboots(300.0)
    # Where neither was right, and both ahead, the time off is not known, and nothing is waited for.
    assert again.steady() - before == pytest.approx(300.0 if 0.0 in (first, then) else 0.0)


def test_it_is_stored_with_launches_at_once_and_otherwise_now_and_then():
    machine = Machine()
    clock = machine.clock()

    def stored() -> object:
        return machine.db.execute("SELECT value FROM meta").fetchall()

    clock.save(machine.db, now=False)
    first = stored()
    assert first
    machine.passes(1.0)
    clock()
    clock.save(machine.db, now=False)
    assert stored() == first
    clock.save(machine.db, now=True)
    assert stored() != first
    machine.passes(STORED_SECONDS)
    clock()
    second = stored()
    clock.save(machine.db, now=False)
    assert stored() != second


def test_a_damaged_row_is_refused_in_one_line():
    machine = Machine()
    machine.db.execute("INSERT INTO meta VALUES ('clock', '{\"wall\": \"x\"}')")
    with pytest.raises(CheckpointRefused, match="stored Seen: expected its fields"):
        machine.clock()


def test_where_a_test_moves_the_clock_it_is_never_set_and_nothing_is_stored():
    machine = Machine()
    made = SetClock.restored(machine.db, clock := (lambda: machine.wall), clock)
    machine.wall += DAY
    assert (made(), made.steady(), made.set_by) == (machine.wall, machine.wall, 0.0)
    made.save(machine.db, now=True)
    assert not machine.db.execute("SELECT * FROM meta").fetchall()


def test_a_launch_is_shown_with_its_times_on_the_clock_as_it_is_set_now():
    machine = Machine()
    clock = machine.clock()
    launch = Launch("3f9c2a1b7d4e", "m", "1", 1, "local", "running", "{}", (("approved", 1e9), ("running", 1e9 + 5)))
    machine.passes(10.0)
    machine.wall += DAY
    clock()
    assert clock.shown(launch).steps == (("approved", 1e9 + DAY), ("running", 1e9 + 5 + DAY))
    machine.passes(SHOWN_SECONDS)
    clock()
    assert clock.shown(launch) is launch


def test_a_boot_has_a_name():
    assert boot() == boot() != ""
