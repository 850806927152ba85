"""Faults that no column shows: refused records, too many, too few and no events; raised once, cleared when over."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from detectors.profile import Profile
from monitor.config import Quality
from monitor.decide.quality import QualityChecks, QualityState, named_unseen
from monitor.flow import Alarm, Mover, Window
from tests.unit.state.streams import small_reference

REFERENCE = small_reference()
ROWS, BINS = REFERENCE.shape


class Run:
    """Checks fed with panes of so many events and refusals."""

    def __init__(self, pane_seconds=60, **rule):
        self.rule, self.pane_seconds, self.pane, self.decided = Quality(**rule), pane_seconds, 0, []
        self.start(QualityState())

    def start(self, state):
        self.checks = QualityChecks({"m": self.rule})
        self.checks.begin("m", float(self.pane_seconds), state, self.decided)

    def restart(self):
        """Go on from what the store would hold."""
        self.start(msgspec.json.decode(msgspec.json.encode(self.checks.states["m"]), type=QualityState))

    def window(self, events, refused=0, skipped=0, in_a_row=0):
        self.pane += 1 + skipped
        at = self.pane * self.pane_seconds
        profile = Profile(np.zeros((ROWS, BINS), np.int64), events, REFERENCE.digest)
        return Window("m", "1", "all", self.pane, at, at + self.pane_seconds, profile, skipped,
                      refused={"type": refused} if refused else {}, in_a_row=in_a_row)

    def panes(self, count, events=250, **how):
        alarms = []
        for _ in range(count):
            window = self.window(events, **how)
            alarms += self.checks(window)
            self.decided.append((window.pane, events))
        return [(alarm.cause, alarm.state, alarm.kind) for alarm in alarms]

    def words(self, cause):
        return getattr(self.checks.states["m"], cause).words


RAISED, CLEARED = ("wrong_type", "raised", "quality"), ("wrong_type", "cleared", "quality")
MORE, LESS = ("volume", "raised", "quality"), ("volume", "cleared", "quality")


def test_single_broken_records_are_no_alarm():
    run = Run()
    assert run.panes(100) + run.panes(1, refused=1) + run.panes(50) + run.panes(1, refused=2) == []


def test_a_share_of_refused_records_surely_above_the_tolerated_one_is_one_alarm_with_its_figures():
    run = Run()
    run.panes(20)
    assert run.panes(20, refused=8) == [RAISED]
    assert run.words("wrong_type") == "3.1 % of records refused (8 of 258 in 1 panes, mostly type), 0.1 % are tolerated"


def test_the_tolerated_share_itself_is_no_alarm_in_a_year_of_panes():
    """Chance 1e-7 per look, 5 windows: 2,000 panes of 250 at a share of exactly 0.1 %."""
    run, rng = Run(), np.random.default_rng(4)
    assert [alarm for count in rng.binomial(250, 0.001, 2_000) for alarm in run.panes(1, refused=int(count))] == []


def test_the_alarm_clears_when_the_producer_was_mended_and_can_be_raised_again():
    run = Run()
    assert run.panes(10, refused=25) + run.panes(12) + run.panes(10, refused=25) == [RAISED, CLEARED, RAISED]


@pytest.mark.parametrize("events", [10, 250])
def test_a_lasting_fault_does_not_flap(events):
    run, rng = Run(), np.random.default_rng(5)
    alarms = [alarm for count in rng.binomial(events, 0.05, 400) for alarm in run.panes(1, events=events, refused=int(count))]
    assert alarms == [RAISED]


def test_many_refused_in_a_row_raise_before_any_pane_closes_and_the_pane_does_not_raise_again():
    run = Run()
    run.panes(5)
    bare = run.window(0)
    (alarm,) = run.checks.in_a_row(bare, 100, "json")
    assert (alarm.cause, alarm.pane, alarm.words) == ("wrong_type", bare.pane,
                                                      "100 records in a row were refused in one partition, reason json")
    assert run.checks.in_a_row(bare, 200, "json") == ()
    assert run.panes(1, refused=120, in_a_row=120) == []
    assert Run().checks.in_a_row(bare, 99, "json") == ()


def test_a_rate_ten_times_lower_or_higher_is_an_alarm_and_a_fifth_is_none():
    for events, expected in ((20, [MORE]), (50, []), (250, []), (1_250, []), (2_600, [MORE])):
        run = Run()
        run.panes(60)
        assert run.panes(40, events=events) == expected, events


def test_the_rate_alarm_clears_when_events_are_back():
    run = Run()
    run.panes(60)
    assert run.panes(15, events=5) + run.panes(15) == [MORE, LESS]


def test_nights_are_learnt_after_the_first_one():
    """Eight hours of a fiftieth of the traffic every night."""
    run = Run(pane_seconds=600)
    alarms = [[alarm for i in range(144) for alarm in run.panes(1, events=8 if i < 48 else 400)] for _ in range(5)]
    assert alarms[2:] == [[], [], []]


def test_rare_events_have_no_silence_worth_an_alarm():
    run = Run()
    assert run.panes(20, events=3, skipped=30) == []


def test_a_silence_is_an_alarm_when_the_stream_goes_on_and_before():
    run = Run()
    run.panes(60)
    assert run.panes(1, skipped=10)[:1] == [MORE]
    assert run.words("volume") == "no events for 10 panes, 250 a pane usual"
    other = Run()
    other.panes(60)
    bare = other.window(0, skipped=11)
    assert other.checks.silent(bare, 599.0, 60) == ()
    (alarm,) = other.checks.silent(bare, 600.0, 60)
    assert (alarm.cause, alarm.state, alarm.words) == ("volume", "raised", "no events for 10 panes, 250 a pane usual")
    assert other.checks.silent(bare, 660.0, 60) == ()
    assert other.panes(30) == [LESS]


def test_checks_that_are_turned_off_say_nothing():
    run = Run(max_refused_share=None, volume_factor=None, silent_panes=None)
    run.panes(60)
    assert run.panes(5, refused=200, in_a_row=200) + run.panes(20, events=1) + run.panes(1, skipped=50) == []
    assert run.checks.in_a_row(run.window(0), 500, "json") == run.checks.silent(run.window(0), 1e6, 60) == ()


@pytest.mark.parametrize("seed", range(4))
def test_a_restart_at_any_pane_changes_no_alarm(seed):
    rng = np.random.default_rng(seed)
    plan = [(int(e), int(r), int(s)) for e, r, s in zip(
        rng.choice([250, 250, 5, 4_000], 300) * (1 + np.arange(300) // 150), rng.choice([0, 0, 0, 9], 300),
        rng.choice([0] * 30 + [12], 300), strict=True)]
    whole, cut = Run(), Run()
    for events, refused, skipped in plan:
        one = whole.panes(1, events=events, refused=refused, skipped=skipped)
        if rng.random() < 0.2:
            cut.restart()
        assert cut.panes(1, events=events, refused=refused, skipped=skipped) == one
    assert whole.checks.states == cut.checks.states


def test_an_alarm_names_the_new_levels_of_the_columns_that_moved_because_of_them():
    mover = Mover("route", "path", 0.05, 0.03, 0.07, 2.0, "unseen", "share")
    other = Mover("x", "input", 0.5, 0.4, 0.6, 2.0, "mean")
    alarm = Alarm("m", "1", "all", 1, "raised", "quality", 2.0, 0.0, 0.0, 60.0, 1, 1, 250, (mover, other))
    named = named_unseen(alarm, {"route": {"a>fallback": 12, "b": 1, **{f"n{i}": 2 for i in range(5)}}, "x": {}})
    assert [one.words for one in named.movers] == [
        "levels that the reference has never seen: a>fallback, n0, n1, n2, n3 and 2 more", ""]
