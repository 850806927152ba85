"""The trigger and its ledger: laws over sequences of alarms, one example per reason, and what the store gets."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import config
from monitor.errors import CheckpointRefused, TidemarkError
from monitor.flow import FINAL_STATES, Alarm, Launch, Mover
from monitor.retrain.ledger import (
    DECISIONS_MAX,
    Decision,
    Ledger,
    decision_from_json,
    decision_to_json,
    launch_from_json,
    launch_id,
    launch_to_json,
)
from monitor.retrain.trigger import REASON_COLUMNS_MAX, Trigger

HOUR, DAY = 3600.0, 86_400.0
OFFSETS = {("events", 0): 120, ("events", 1): 80}


def policy(**changes: Any) -> config.Retrain:
    return config.Retrain(**{"launcher": config.LocalLauncher(command=["train"]), **changes})


def mover(role: str = "input", what: str = "mean", column: str = "age", evidence: float = 2.0) -> Mover:
    return Mover(column, role, 0.5, 0.4, 0.6, evidence, what)


def alarm(at: float = 100 * DAY, episode: int = 1, **changes: Any) -> Alarm:
    whole: dict[str, Any] = {
        "model": "churn", "version": "7", "segment": "all", "episode": episode, "state": "severe", "kind": "drift",
        "score": 2.0, "severe_score": 1.5, "since": at - HOUR, "at": at, "pane": int(at // 60), "window_panes": 2,
        "window_events": 500, "movers": (mover(),)}
    return Alarm(**{**whole, **changes})


def trigger(ledger: Ledger | None = None, **changes: Any) -> Trigger:
    return Trigger({"churn": policy(**changes)}, ledger or Ledger(), clock=lambda: 5.0)


def end(ledger: Ledger, launch: Launch, state: str = "failed", cut_over_at: float = 0.0) -> None:
    ledger.put(replace(launch, state=state, steps=(*launch.steps, (state, 9.0)), cut_over_at=cut_over_at))  # type: ignore[arg-type]


def reloaded(ledger: Ledger) -> Ledger:
    """What a service finds after a restart: the ledger through JSON."""
    return Ledger([launch_from_json(launch_to_json(launch)) for launch in ledger.launches.values()],
                  [decision_from_json(decision_to_json(decision)) for decision in ledger.decisions])


def only_reason(made: Trigger, *alarms: Alarm) -> tuple[str, str]:
    made(alarms, OFFSETS)
    return made.ledger.decisions[-1].outcome, made.ledger.decisions[-1].reason


def test_a_severe_drift_of_a_watched_role_launches_once() -> None:
    made = trigger()
    assert only_reason(made, alarm()) == ("launch", "")
    (launch,) = made.ledger.launches.values()
    assert launch_id("churn", "7", 1) == launch.id
    assert (launch.state, launch.launcher, launch.decided_at) == ("approved", "local", 100 * DAY)
    assert launch.steps == (("proposed", 5.0), ("approved", 5.0))
    assert launch.offsets == {"events:0": 120, "events:1": 80}


@pytest.mark.parametrize(("reason", "given"), [
    ("quality", alarm(kind="quality")),
    ("reference_inadequate", alarm(reference_adequate=False)),
    ("roles", alarm(movers=(mover(role="path"),))),
    ("roles", alarm(movers=(mover(what="missing"), mover(what="above 17"), mover(what="unseen")))),
    ("roles", alarm(movers=())),
    ("not_configured", alarm(model="other")),
])
def test_each_no_has_its_reason(reason: str, given: Alarm) -> None:
    made = trigger(roles=["input", "prediction"])
    assert ("no", reason) == only_reason(made, given)
    assert not made.ledger.launches


def test_a_level_that_is_named_like_a_fault_is_still_drift() -> None:
    assert only_reason(trigger(), alarm(movers=(mover(what="level missing"),))) == ("launch", "")


@pytest.mark.parametrize("state", ["raised", "cleared"])
def test_alarms_that_are_not_severe_are_no_decision(state: str) -> None:
    made = trigger()
    made([alarm(state=state)], OFFSETS)
    assert (made.ledger.decisions, dict(made.ledger.launches)) == ((), {})


def test_an_episode_that_launched_never_launches_again_even_after_it_failed() -> None:
    made = trigger(cooldown_hours=0)
    made([alarm()], OFFSETS)
    end(made.ledger, *made.ledger.launches.values())
    assert only_reason(made, alarm(at=130 * DAY)) == ("no", "episode_done")


def test_one_launch_of_a_model_is_in_flight_at_a_time_until_the_monitor_has_cut_over() -> None:
    made = trigger(cooldown_hours=0, max_per_week=9)
    made([alarm()], OFFSETS)
    (launch,) = made.ledger.launches.values()
    assert only_reason(made, alarm(at=101 * DAY, episode=2)) == ("no", "in_flight")
    end(made.ledger, launch, "promoted")
    assert only_reason(made, alarm(at=102 * DAY, episode=3)) == ("no", "in_flight")
    assert [launch.id] == [waiting.id for waiting in made.ledger.awaiting_cut_over()]
    made.ledger.cut_over(launch, 103 * DAY)
    assert ([], launch.id) == (made.ledger.awaiting_cut_over(), made.ledger.promoted("churn").id)  # type: ignore[union-attr]
    assert only_reason(made, alarm(at=104 * DAY, episode=4)) == ("launch", "")


@pytest.mark.parametrize(("hours", "expected"), [(23.99, "cooldown"), (24.0, "")])
def test_the_cooldown_counts_from_the_last_launch(hours: float, expected: str) -> None:
    made = trigger()
    made([alarm()], OFFSETS)
    end(made.ledger, *made.ledger.launches.values())
    assert expected == only_reason(made, alarm(at=100 * DAY + hours * HOUR, episode=2))[1]


@pytest.mark.parametrize(("hours", "expected"), [(23.99, "cooldown"), (24.0, "")])
def test_the_cooldown_counts_from_the_cut_over_too(hours: float, expected: str) -> None:
    made = trigger()
    made([alarm()], OFFSETS)
    end(made.ledger, *made.ledger.launches.values(), "promoted", cut_over_at=110 * DAY)
    assert expected == only_reason(made, alarm(at=110 * DAY + hours * HOUR, version="7.r1", episode=1))[1]


def test_a_rejected_proposal_keeps_its_episode_and_its_cooldown_but_not_the_budget() -> None:
    made = trigger(approval="manual", max_per_week=1)
    made([alarm()], OFFSETS)
    (launch,) = made.ledger.launches.values()
    assert launch.state == "proposed"
    assert "refused" == made.reject(launch.id).state == made.reject(launch.id).state
    assert made.ledger.launches[launch.id].detail == "rejected by hand"
    assert only_reason(made, alarm(at=100 * DAY + HOUR, episode=2)) == ("no", "cooldown")
    assert made.budget_remaining("churn", 101 * DAY) == 1
    assert only_reason(made, alarm(at=102 * DAY, episode=3)) == ("launch", "")
    assert made.budget_remaining("churn", 102 * DAY) == 0


def test_approving_twice_is_approving_once_and_a_started_launch_cannot_be_answered() -> None:
    made = trigger(approval="manual")
    made([alarm()], OFFSETS)
    (launch,) = made.ledger.launches.values()
    assert made.approve(launch.id) == made.approve(launch.id)
    assert made.ledger.launches[launch.id].steps == (("proposed", 5.0), ("approved", 5.0))
    end(made.ledger, made.ledger.launches[launch.id], "running")
    for answer in (made.approve, made.reject):
        with pytest.raises(TidemarkError, match="got one that is running"):
            answer(launch.id)
    with pytest.raises(TidemarkError, match="got an unknown id; proposed now: none"):
        made.approve("nothing")


def test_the_trainer_reads_columns_effects_and_window_from_the_reason() -> None:
    made = trigger()
    named = (mover(column="weak", evidence=1.1), mover(column="strong", evidence=9.0))
    made([alarm(movers=named, severe_score=float("inf"))], OFFSETS)
    (launch,) = made.ledger.launches.values()
    reason = json.loads(launch.reason)
    assert reason["columns"] == ["strong", "weak"]
    assert reason["effects"][0] == {"column": "strong", "role": "input", "what": "mean", "value": 0.5,
                                    "lower": 0.4, "upper": 0.6, "unit": "sd"}
    assert reason["window"] == {"since": 100 * DAY - HOUR, "at": 100 * DAY, "panes": 2, "events": 500}
    assert (reason["kind"], reason["scores"]) == ("drift", {"alarm": 2.0, "severe": None})


def test_the_reason_stays_small_however_many_columns_moved() -> None:
    made = trigger()
    made([alarm(movers=tuple(mover(column=f"c{i}") for i in range(2_000)))], OFFSETS)
    (launch,) = made.ledger.launches.values()
    assert (len(json.loads(launch.reason)["columns"]),
                                           json.loads(launch.reason)["columns_total"]) == (REASON_COLUMNS_MAX, 2_000)
    assert len(launch.reason) < 10_000


# A week's life of one model: severe alarms at rising event times, launches that end in some way, restarts, replays.
days = st.lists(st.tuples(
    st.floats(0.01, 4.0),                                                           # days to the next alarm
    st.booleans(),                                                                  # a new episode, or the same again
    st.sampled_from(["failed", "timed_out", "refused", "promoted", "open"]),        # how an open launch has ended
    st.booleans(),                                                                  # a restart before it
    st.booleans(),                                                                  # the alarm is read a second time
), max_size=40)


@settings(max_examples=200, deadline=None)
@given(days, st.floats(0, 72), st.integers(0, 4), st.sampled_from(["automatic", "manual"]))
def test_no_sequence_of_alarms_breaks_episode_cooldown_budget_or_flight(
        life: list[tuple[float, bool, str, bool, bool]], cooldown: float, budget: int, approval: str) -> None:
    made = trigger(cooldown_hours=cooldown, max_per_week=budget, approval=approval)
    at, episode = 100 * DAY, 1
    for wait, is_new, ending, restarts, repeats in life:
        at, episode = at + wait * DAY, episode + is_new
        for launch in made.ledger.unfinished():
            if ending != "open":
                end(made.ledger, launch, ending, cut_over_at=at - HOUR / 10 if ending == "promoted" else 0.0)
        if restarts:
            made = Trigger(made.policies, reloaded(made.ledger), clock=made.clock)
        for _ in range(1 + repeats):
            made([alarm(at=at, episode=episode)], OFFSETS)
    launches = sorted(made.ledger.launches.values(), key=lambda launch: launch.decided_at)
    rejected = [launch for launch in launches if launch.state == "refused" and approval == "manual"]
    starts = [launch.decided_at for launch in launches if launch not in rejected]      # a rejected one cost nothing
    assert len({launch.episode for launch in launches}) == len(launches)
    assert sum(launch.state not in FINAL_STATES for launch in launches) <= 1
    for earlier, later in pairwise(launches):
        assert later.decided_at - max(earlier.decided_at, earlier.cut_over_at) >= cooldown * HOUR
    assert all(sum(start - 7 * DAY < other <= start for other in starts) <= budget for start in starts)


@settings(max_examples=100, deadline=None)
@given(days, st.data())
def test_a_crash_before_the_commit_and_the_replay_after_it_decide_the_same(
        life: list[tuple[float, bool, str, bool, bool]], data: st.DataObject) -> None:
    alarms, at, episode = [], 100 * DAY, 1
    for wait, is_new, *_ in life:
        at, episode = at + wait * DAY, episode + is_new
        alarms.append(alarm(at=at, episode=episode))
    undisturbed, crashed = trigger(), trigger()
    for given_alarm in alarms:
        undisturbed([given_alarm], OFFSETS)
        stored = reloaded(crashed.ledger)
        for _ in range(data.draw(st.integers(1, 3))):
            crashed = trigger(reloaded(stored))             # what was decided without a commit is forgotten
            crashed([given_alarm], OFFSETS)
    assert undisturbed.ledger.decisions == crashed.ledger.decisions
    assert dict(undisturbed.ledger.launches) == dict(crashed.ledger.launches)


def test_the_store_gets_exactly_what_changed() -> None:
    made = trigger(cooldown_hours=0)
    made([alarm()], OFFSETS)
    launches, decisions = made.ledger.changed()
    assert (len(launches), [decision.outcome for decision in decisions]) == (1, ["launch"])
    made.ledger.clear_changed()
    assert made.ledger.changed() == ([], [])
    made([alarm()], OFFSETS)
    made([alarm()], OFFSETS)                                # the same answer once more is no news
    assert [decision.reason for decision in made.ledger.changed()[1]] == ["episode_done"]
    assert not made.ledger.changed()[0]
    end(made.ledger, launches[0])
    assert [launch.state for launch in made.ledger.changed()[0]] == ["failed"]
    made.ledger.clear_changed(launches[0])
    assert made.ledger.changed()[0] == []
    assert len(made.ledger.changed()[1]) == 1


def test_a_loaded_ledger_has_nothing_to_store_and_goes_on_counting() -> None:
    made = trigger()
    made([alarm()], OFFSETS)
    again = reloaded(made.ledger)
    assert again.changed() == ([], [])
    assert again.decide(Decision("churn", "7", 9, 1.0, "no", "quality")).number == 2
    assert [decision.number for decision in again.changed()[1]] == [2]


def test_old_decisions_go_and_no_launch_does() -> None:
    ledger = Ledger()
    for episode in range(DECISIONS_MAX + 5):
        ledger.decide(Decision("churn", "7", episode, 1.0, "no", "quality"))
    assert (len(ledger.decisions), ledger.decisions[0].number) == (DECISIONS_MAX, 6)


def test_a_launch_is_itself_after_json() -> None:
    made = trigger()
    made([alarm()], OFFSETS)
    (launch,) = made.ledger.launches.values()
    full = replace(launch, champion=0.9, difference_lower=-0.1, progress="épochs 1/2", retry_at=3.5)
    assert full == launch_from_json(launch_to_json(full))


@pytest.mark.parametrize("damage", [
    {"state": "resting"}, {"colour": 1}, {"episode": "1"}, {"steps": []}, {"state": "running"}, {"id": None}])
def test_a_damaged_launch_is_refused(damage: dict[str, Any]) -> None:
    made = trigger()
    made([alarm()], OFFSETS)
    (launch,) = made.ledger.launches.values()
    with pytest.raises(CheckpointRefused, match="expected"):
        launch_from_json(json.dumps({**json.loads(launch_to_json(launch)), **damage}))
    for text in ("", "{", "[]", "null", '{"id": "x"}'):
        with pytest.raises(CheckpointRefused, match="expected the fields of a launch"):
            launch_from_json(text)
