"""The alarm machines: one rising edge, honest clearing, severe beside it, quality apart, restart changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.reference import Column, Reference
from monitor.config import Budget
from monitor.decide.explain import columns, headline
from monitor.decide.policy import Judge, Knobs, Policy, PolicyState
from monitor.flow import Window

COLUMNS = (Column("a", "numeric", "input"), Column("b", "numeric", "input"), Column("p", "numeric", "prediction"))
ROLES = frozenset({"input", "prediction"})
PANE = 200


@pytest.fixture(scope="module")
def reference():
    rng = np.random.default_rng(5)
    return Reference.fit({name: rng.normal(size=20_000) for name in "abp"}, COLUMNS, model="m", version="1")


class Run:
    """A judge and a policy fed with panes of normal values, shifted as told."""

    def __init__(self, reference, roles=ROLES, seed=11, budget=None):
        self.reference = reference
        self.judge = Judge({"m": Knobs(budget or Budget(1, 30 * 86400.0, None), 60.0, 0.1, 0.3, roles)})
        self.judge.begin("m", reference, PolicyState())
        self.policy = Policy(self.judge)
        self.rng = np.random.default_rng(seed)
        self.pane = 0
        self.history = []

    def window(self, events=PANE, skipped=0, missing=0.0, **shift):
        data = {name: self.rng.normal(size=events) + shift.get(name, 0.0) for name in "abp"}
        if missing:
            data["a"][: int(events * missing)] = np.nan
        self.pane += 1 + skipped
        return Window("m", "1", "all", self.pane, self.pane * 60.0, self.pane * 60.0 + 60, self.reference.profile(data, events),
                      skipped)

    def panes(self, count, **how):
        alarms = []
        for _ in range(count):
            window = self.window(**how)
            self.scores = self.judge(window)
            alarms += self.policy(window, self.scores)
            self.history.append(window)
        return [(alarm.state, alarm.kind) for alarm in alarms]

    @property
    def state(self):
        return self.policy.state_name("m", self.scores)


def test_one_lasting_shift_is_one_alarm_and_one_severe(reference):
    run = Run(reference)
    assert run.panes(40) == []
    assert run.state == "quiet"
    assert run.panes(60, a=0.8) == [("raised", "drift"), ("severe", "drift")]
    assert run.state == "drift"


def test_a_shift_below_retrain_above_alarms_and_is_never_severe(reference):
    run = Run(reference)
    assert run.panes(150, a=0.27) == [("raised", "drift")]
    assert run.state == "warning"


def test_an_alarm_clears_when_the_shift_is_over_and_a_second_one_is_a_new_episode(reference):
    run = Run(reference)
    first = run.panes(20, a=0.8) + run.panes(40)
    assert first == [("raised", "drift"), ("severe", "drift"), ("cleared", "drift")]
    run.panes(30, b=0.8)
    assert run.judge.states["m"].alarm.episode == run.judge.states["m"].severe.episode == 2


def test_a_worse_shift_in_an_open_alarm_is_its_own_severe_event(reference):
    run = Run(reference)
    assert run.panes(100, a=0.27) == [("raised", "drift")]
    assert run.panes(40, a=1.0) == [("severe", "drift")]


def test_severe_can_be_over_while_the_alarm_goes_on_and_does_not_fire_again_from_old_panes(reference):
    run = Run(reference)
    run.panes(20, a=1.0)
    assert run.panes(100, a=0.29) == []             # one calm pane by chance does not clear it: eight in a row would
    assert run.state == "warning"


def test_a_column_whose_role_is_not_asked_for_is_never_severe(reference):
    run = Run(reference, roles=frozenset({"prediction"}))
    assert run.panes(40, a=1.0) == [("raised", "drift")]
    assert ("severe", "drift") in run.panes(40, p=1.0)


def test_missing_values_are_a_quality_alarm(reference):
    run = Run(reference)
    alarms = run.panes(30, missing=0.3)
    assert alarms
    assert {kind for _, kind in alarms} == {"quality"}


def test_panes_without_events_never_clear_an_alarm(reference):
    run = Run(reference)
    run.panes(20, a=0.8)
    assert run.panes(20, skipped=20, events=0) == []
    assert run.judge.states["m"].alarm.firing


def test_an_alarm_names_the_column_with_its_effect_and_interval(reference):
    run = Run(reference)
    run.panes(10)
    window = None
    for _ in range(20):
        window = run.window(b=0.8)
        alarms = run.policy(window, run.judge(window))
        if alarms:
            break
    mover = alarms[0].movers[0]
    assert (alarms[0].state, mover.column, mover.what) == ("raised", "b", "mean")
    assert mover.lower < 0.8 < mover.upper
    assert alarms[0].since <= window.start
    assert mover.evidence > 1


def test_a_severe_alarm_is_explained_by_what_made_it_severe(reference):
    """A lasting small shift of one column must not be named for the large one of another."""
    run = Run(reference)
    run.panes(120, a=0.27)
    for _ in range(20):
        window = run.window(a=0.27, b=1.0)
        alarms = run.policy(window, run.judge(window))
        if alarms:
            break
    (alarm,) = alarms
    assert (alarm.state, alarm.movers[0].column) == ("severe", "b")
    assert alarm.movers[0].lower < 1.0 < alarm.movers[0].upper
    assert alarm.window_events <= 2 * PANE


def test_a_restart_at_any_pane_decides_the_same(reference):
    """Rings are built again from decided panes; gaps, alarms and clearings in between must not show."""
    def feed(run, restart_at=None):
        seen = []
        plan = [{}] * 20 + [{"a": 0.8}] * 15 + [{"skipped": 3}] + [{}] * 40 + [{"b": 0.5}] * 30
        for number, how in enumerate(plan):
            if number == restart_at:
                judge = Judge(run.judge.knobs)
                judge.begin("m", reference, run.judge.states["m"], run.judge.events_per_pane["m"])
                origin = max(0, run.judge.states["m"].alarm.origin)
                judge.restore("m", origin, [(w.pane, w.profile) for w in run.history if w.pane > max(origin, run.pane - 129)])
                run.judge, run.policy = judge, Policy(judge)
            window = run.window(**how)
            scores = run.judge(window)
            seen.append((round(scores.score, 12), [a.state for a in run.policy(window, scores)]))
            run.history.append(window)
        return seen

    undisturbed = feed(Run(reference))
    assert sum(len(states) for _, states in undisturbed) >= 3
    for restart_at in (1, 5, 21, 30, 36, 37, 50, 80, 100):
        assert feed(Run(reference), restart_at) == undisturbed


def test_a_budget_in_events_follows_the_traffic_in_steps(reference):
    run = Run(reference, budget=Budget(1, None, 1_000_000))
    before = run.judge.states["m"].panes_per_false_alarm
    run.panes(5)
    assert before == 1000
    assert run.judge.states["m"].panes_per_false_alarm == 1_000_000 / PANE
    threshold = run.judge.scans["m"].threshold
    run.panes(5, events=PANE + 10)
    assert run.judge.scans["m"].threshold == threshold


def test_a_promotion_clears_the_alarm_for_the_right_reason(reference):
    run = Run(reference)
    run.panes(20, a=0.8)
    at = (run.pane + 1) * 60.0
    (alarm,) = run.policy.end_episode("m", "1", at, "new reference")
    assert (alarm.state, alarm.reason, alarm.episode, alarm.pane) == ("cleared", "new reference", 1, run.pane)
    assert run.policy.end_episode("m", "1", at, "new reference") == ()


def test_every_silence_has_its_reason(reference):
    run = Run(reference)
    run.panes(128, a=0.06)
    reasons = {why.column: why for why in columns(reference, run.judge.scans["m"], run.scores)}
    assert "within chance" in reasons["b"].sentence or "too few" in reasons["b"].sentence
    assert reasons["a"].state in ("below_ignore", "quiet")
    assert any("is quiet over the last 128 panes" in line
               for line in headline("m", reference, run.scores, run.judge.states["m"], 128))
    few = Run(reference)
    few.panes(1, events=5)
    assert "too few events" in columns(reference, few.judge.scans["m"], few.scores)[0].sentence
