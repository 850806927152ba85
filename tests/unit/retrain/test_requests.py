"""What people and programs ask of the trigger: a launch by hand, approvals and their expiry, the breaker's reset, the trail."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.decisions import ALERTMANAGER
from monitor.errors import TidemarkError
from monitor.flow import FINAL_STATES
from monitor.retrain.ledger import (
    Ledger,
    decision_from_json,
    decision_to_json,
    entry_from_json,
    entry_to_json,
    launch_from_json,
    launch_to_json,
)
from monitor.retrain.limits import REPLAYED, Moment
from monitor.retrain.trigger import Standing, Trigger
from tests.unit.retrain.test_trigger import DAY, HOUR, OFFSETS, alarm, end, policy

TOKEN = "token:ada"


class Wall:
    """A wall clock that is moved by hand."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def trigger(ledger: Ledger | None = None, clock: Any = None, launches_max: int = 4, **changes: Any) -> Trigger:
    return Trigger({"churn": policy(**changes), "other": policy()}, ledger or Ledger(), clock=clock or Wall(),
                   launches_max=launches_max)


def standing(at: float = 100 * DAY, **changes: Any) -> Standing:
    return Standing(**{"version": "7", "at": at, "judged_seconds": 1e9, "offsets": OFFSETS, **changes})


def reloaded(ledger: Ledger) -> Ledger:
    return Ledger([launch_from_json(launch_to_json(one)) for one in ledger.launches.values()],
                  [decision_from_json(decision_to_json(one)) for one in ledger.decisions],
                  [entry_from_json(entry_to_json(one)) for one in ledger.entries])


def useless(made: Trigger, count: int) -> None:
    """Launches of the model that failed, one a day, until now."""
    for number in range(count):
        made([alarm(at=(100 - count + number) * DAY, episode=number + 1)], OFFSETS)
        end(made.ledger, list(made.ledger.launches.values())[-1])


# ---- a launch by hand -----------------------------------------------------------------------------------------------------

def test_a_person_gets_a_launch_without_an_alarm_and_without_another_approval() -> None:
    made = trigger(approval="manual")
    fired = made.fire("churn", standing(), by=TOKEN, why="new price list")
    assert fired.launch is not None
    assert (fired.launch.state, fired.launch.episode, fired.launch.by, fired.launch.why) == (
        "approved", 0, TOKEN, "new price list")
    assert fired.launch.offsets == {"events:0": 120, "events:1": 80}
    reason = json.loads(fired.launch.reason)
    assert (reason["kind"], reason["window"], reason["asked"]) == (
        "asked", {"since": 0.0, "at": 100 * DAY, "panes": 0, "events": 0}, {"by": TOKEN, "why": "new price list"})
    (decision,), (entry,) = made.ledger.decisions, made.ledger.entries
    assert (decision.outcome, decision.launch, decision.by) == ("launch", fired.launch.id, TOKEN)
    assert (entry.action, entry.taken, entry.why, entry.launch) == ("fire", True, "new price list", fired.launch.id)


def test_an_open_alarm_is_what_the_trainer_is_told_of_and_has_had_its_launch_then() -> None:
    made = trigger(cooldown_hours=0)
    fired = made.fire("churn", standing(alarm=alarm(episode=5)), by=TOKEN)
    assert fired.launch is not None
    assert json.loads(fired.launch.reason)["columns"] == ["age"]
    end(made.ledger, fired.launch)
    made([alarm(episode=5)], OFFSETS)
    assert made.ledger.decisions[-1].reason == "episode_done"
    assert len(made.ledger.launches) == 1


def test_the_same_key_launches_once_for_ever_also_under_the_next_version_and_after_a_restart() -> None:
    made = trigger(cooldown_hours=0)
    first = made.fire("churn", standing(), by=ALERTMANAGER, key="fingerprint@1").launch
    assert first is not None
    end(made.ledger, first, "promoted", cut_over_at=101 * DAY)
    again = trigger(reloaded(made.ledger), cooldown_hours=0)
    answer = again.fire("churn", standing(120 * DAY, version="8"), by=ALERTMANAGER, key="fingerprint@1")
    assert (answer.launch and answer.launch.id, len(again.ledger.launches)) == (first.id, 1)
    assert again.ledger.changed() == ([], [])
    assert again.ledger.new_entries() == []
    assert "was decided for this request before" in answer.words
    other = again.fire("churn", standing(120 * DAY, version="8"), by=ALERTMANAGER, key="fingerprint@2").launch
    assert other is not None
    assert other.id != first.id
    end(again.ledger, other)
    third = again.fire("churn", standing(121 * DAY, version="8"), by=TOKEN, key="by hand").launch
    assert third is not None
    assert len({first.id, other.id, third.id}) == 3


def test_a_request_that_was_told_no_may_be_sent_again_and_is_one_line_of_the_trail_for_a_program() -> None:
    made = trigger()
    made([alarm()], OFFSETS)
    end(made.ledger, *made.ledger.launches.values())
    for hours in (1, 2, 3):
        answer = made.fire("churn", standing(100 * DAY + hours * HOUR), by=ALERTMANAGER, key="k")
        assert (answer.launch, answer.decision.reason, answer.decision.until) == (None, "cooldown", 101 * DAY)
    assert len(made.ledger.entries) == 1
    assert made.fire("churn", standing(101 * DAY), by=ALERTMANAGER, key="k").launch is not None


@pytest.mark.parametrize("by", [TOKEN, ALERTMANAGER])
@pytest.mark.parametrize(("held", "reason"), [
    ({"faulty": True}, "quality"), ({"adequate": False}, "reference_inadequate"), ({"judged_seconds": 60.0}, "learning")])
def test_never_on_broken_data_or_an_inadequate_reference_and_only_a_person_has_no_patience(
        by: str, held: dict[str, Any], reason: str) -> None:
    made = trigger(learning_hours=1)
    answer = made.fire("churn", standing(**held), by=by)
    expected = "" if (by, reason) == (TOKEN, "learning") else reason
    assert (answer.decision.reason, answer.launch is None) == (expected, bool(expected))


def test_a_person_meets_budget_breaker_and_blackout_and_may_set_them_aside_but_never_a_second_launch() -> None:
    made = trigger(useless_max=2, max_per_week=1, cooldown_hours=0)
    useless(made, 1)
    assert made.fire("churn", standing(), by=TOKEN).decision.reason == "budget"
    made.policies["churn"] = made.limits.policies["churn"] = policy(useless_max=1, max_per_week=9)  # type: ignore[index]
    refused = made.fire("churn", standing(), by=TOKEN)
    assert refused.decision.reason == "breaker"
    assert refused.words == ("no launch (breaker): 1 of 1 launches in a row brought nothing (retrain.useless_max); "
                             "`tidemark triggers reset churn` once the cause is found")
    forced = made.fire("churn", standing(faulty=True), by=TOKEN, force=True, why="mended the labels")
    assert forced.launch is not None
    assert made.ledger.entries[-1].words.endswith("(limits set aside)")
    second = made.fire("churn", standing(), by=TOKEN, force=True, why="again")
    assert (second.decision.reason, second.launch) == ("in_flight", None)


def test_a_program_cannot_set_limits_aside() -> None:
    made = trigger(max_per_week=0)
    assert made.fire("churn", standing(), by=ALERTMANAGER, force=True).decision.reason == "budget"


def test_what_alertmanager_asks_for_waits_for_approval_where_the_policy_says_so() -> None:
    launch = trigger(approval="manual").fire("churn", standing(), by=ALERTMANAGER, key="k").launch
    assert launch is not None
    assert launch.state == "proposed"


def test_a_dry_run_says_what_would_be_answered_and_writes_nothing() -> None:
    made = trigger()
    would = made.fire("churn", standing(), by=TOKEN, dry_run=True)
    assert (would.launch, would.words, would.decision.reason) == (None, "a launch would be decided", "")
    assert [limit.reason for limit in would.limits if limit.holds] == []
    made.fire("churn", standing(), by=TOKEN)
    made.ledger.clear_changed()
    assert made.fire("churn", standing(), by=TOKEN, dry_run=True).decision.reason == "in_flight"
    assert (made.ledger.changed(), made.ledger.new_entries()) == (([], []), [])


def test_a_model_without_a_policy_says_so() -> None:
    answer = trigger().fire("nobody", standing(), by=TOKEN)
    assert (answer.decision.reason, answer.words) == ("not_configured", "no launch (not_configured): the model has no `retrain`")


def test_words_of_any_length_are_cut_before_they_are_kept() -> None:
    made = trigger()
    launch = made.fire("churn", standing(), by="a" * 999, why="b" * 9_999, key="c" * 999).launch
    assert launch is not None
    assert (len(launch.by), len(launch.why), len(launch.key)) == (200, 1_000, 200)
    assert made.fire("churn", standing(), by=TOKEN, key="c" * 999).launch == launch


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["alarm", "fire", "force", "alertmanager"]), st.integers(1, 3),
                          st.sampled_from(["failed", "promoted", "open", "open"]), st.booleans()), max_size=25))
def test_whoever_asks_in_whatever_order_a_model_has_one_launch_in_flight_and_each_key_and_episode_one(
        life: list[tuple[str, int, str, bool]]) -> None:
    made, at = trigger(cooldown_hours=0, max_per_week=99, useless_max=None), 100 * DAY
    for what, number, ending, restarts in life:
        at += HOUR
        for launch in made.ledger.unfinished():
            if ending != "open":
                end(made.ledger, launch, ending, cut_over_at=at)
        if restarts:
            made = trigger(reloaded(made.ledger), cooldown_hours=0, max_per_week=99, useless_max=None)
        if what == "alarm":
            made([alarm(at=at, episode=number)], OFFSETS)
        else:
            made.fire("churn", standing(at, alarm=alarm(episode=number)), key=f"k{number}" if what == "alertmanager" else "",
                      by=ALERTMANAGER if what == "alertmanager" else TOKEN, force=what == "force")
        launches = list(made.ledger.launches.values())
        assert sum(launch.state not in FINAL_STATES for launch in launches) <= 1
        for of in ([launch.key for launch in launches if launch.key], [one.episode for one in launches if not one.key]):
            assert len(set(of)) == len(of)


# ---- severe for long enough -----------------------------------------------------------------------------------------------

def test_an_alarm_must_be_severe_for_persist_panes_in_a_row() -> None:
    made = trigger(persist_panes=3)
    minute, at = 60.0, 100 * DAY
    made([alarm(at=at, pane=int(at / 60) - 1)], OFFSETS)
    assert [(one.reason, one.until) for one in made.ledger.decisions] == [("persistence", at + 2 * minute)]
    assert made.is_waiting("churn", "7", 1)
    for pane, launched in ((1, 0), (2, 1)):
        made([alarm(at=at + pane * minute, pane=int(at / 60) - 1 + pane)], OFFSETS, is_standing=True)
        assert len(made.ledger.launches) == launched


def test_an_alarm_that_was_not_severe_for_a_while_is_waited_for_anew_also_after_a_restart() -> None:
    made, minute, at = trigger(persist_panes=3), 60.0, 100 * DAY
    made([alarm(at=at, pane=int(at / 60) - 1)], OFFSETS)
    made([alarm(at=at + 60 * minute, pane=int(at / 60) + 59)], OFFSETS)
    again = trigger(reloaded(made.ledger), persist_panes=3)
    for pane, launched in ((61, 0), (62, 1)):
        again([alarm(at=at + pane * minute, pane=int(at / 60) - 1 + pane)], OFFSETS, is_standing=True)
        assert len(again.ledger.launches) == launched


# ---- approval -------------------------------------------------------------------------------------------------------------

def test_a_proposal_that_nobody_answers_expires_on_the_wall_clock_and_is_recorded() -> None:
    clock = Wall()
    made = trigger(clock=clock, approval="manual", approval_hours=72, max_per_week=1, useless_max=1)
    made([alarm()], OFFSETS)
    (launch,) = made.ledger.launches.values()
    clock.now += 72 * HOUR - 1
    assert made.expire() == []
    clock.now += 1
    (ended,) = made.expire()
    assert (ended.state, ended.detail) == ("refused", "expired: nobody answered within 72 hours (retrain.approval_hours)")
    assert [(one.action, one.by, one.launch) for one in made.ledger.entries] == [("expire", "tidemark", launch.id)]
    assert made.expire() == []
    assert made.budget_remaining("churn", 100 * DAY) == 1               # nothing was trained
    made([alarm(at=102 * DAY, episode=2)], OFFSETS)
    assert made.ledger.decisions[-1].outcome == "launch"                # and nothing was useless
    with pytest.raises(TidemarkError, match="expected one that is proposed, got one that is refused"):
        made.approve(launch.id)


def test_who_answered_when_and_why_is_kept_once() -> None:
    made = trigger(approval="manual", clock=lambda: 77.0)
    made([alarm()], OFFSETS)
    (launch,) = made.ledger.launches
    made.reject(launch, by=TOKEN, why="a campaign, over tomorrow")
    made.reject(launch, by=TOKEN)
    (entry,) = made.ledger.new_entries()
    assert (entry.at, entry.action, entry.by, entry.model, entry.launch, entry.why, entry.taken) == (
        77.0, "reject", TOKEN, "churn", launch, "a campaign, over tomorrow", True)
    assert made.ledger.launches[launch].detail == "rejected by hand: a campaign, over tomorrow"
    made.ledger.clear_changed()
    assert (made.ledger.new_entries(), made.ledger.entries) == ([], (entry,))
    assert reloaded(made.ledger).entries == (entry,)


def test_a_proposal_is_not_approved_while_the_cluster_is_taken() -> None:
    made = trigger(approval="manual", launches_max=1)
    made([alarm()], OFFSETS)
    (proposed,) = made.ledger.launches
    other = made.fire("other", standing(), by=TOKEN).launch
    assert other is not None
    with pytest.raises(TidemarkError, match=r"1 of 1 launches are under way over all models \(limits.launches\); approve it"):
        made.approve(proposed)
    end(made.ledger, other)
    assert made.approve(proposed).state == "approved"


# ---- the breaker ------------------------------------------------------------------------------------------------------------

def test_useless_launches_stop_the_next_until_a_person_resets_and_the_standing_alarm_then_gets_its_own() -> None:
    made = trigger(useless_max=2, cooldown_hours=1, max_per_week=9)
    useless(made, 2)
    made([alarm(episode=9)], OFFSETS)
    assert made.ledger.decisions[-1].reason == "breaker"
    assert made.is_waiting("churn", "7", 9)
    assert len(made.reset("churn", "7", by=TOKEN, why="labels were late")) == 2
    assert [(one.action, one.why) for one in made.ledger.entries] == [("reset", "labels were late")]
    again = trigger(reloaded(made.ledger), useless_max=2, cooldown_hours=1, max_per_week=9)
    again([alarm(at=100 * DAY + 60, episode=9)], OFFSETS, is_standing=True)
    assert again.ledger.decisions[-1].outcome == "launch"
    with pytest.raises(TidemarkError, match="expected launches in a row that brought nothing, got none; the breaker is closed"):
        again.reset("churn", "8", by=TOKEN)


def test_a_reset_of_a_model_without_retraining_is_one_clear_line() -> None:
    with pytest.raises(TidemarkError, match="nobody: expected a model with `retrain`, got one without"):
        trigger().reset("nobody", "1", by=TOKEN)


# ---- what is shown ----------------------------------------------------------------------------------------------------------

def test_the_status_says_what_a_severe_alarm_waits_for_and_counts_every_answer() -> None:
    made = trigger()
    made([alarm()], OFFSETS)
    end(made.ledger, *made.ledger.launches.values())
    made([alarm(at=100 * DAY + HOUR, episode=2)], OFFSETS)
    status = made.status(Moment("churn", "7", 100 * DAY + HOUR, 1e9), 2)
    assert status is not None
    assert status.waiting is not None
    assert (status.waiting.reason, status.waiting.until) == ("cooldown", 101 * DAY)
    assert status.counts == {("launch", "none"): 1, ("no", "cooldown"): 1}
    assert (status.budget_remaining, status.useless, status.gpu_hours_remaining) == (1, 1, None)
    calm = made.status(Moment("churn", "7", 100 * DAY + HOUR, 1e9), None)
    assert calm is not None
    assert calm.waiting is None
    assert made.status(Moment("nobody", "7", 0.0, 0.0), None) is None


def test_an_old_answer_is_remembered_however_many_models_were_answered_since() -> None:
    """A thousand decisions are held; the latest of a model is not among what is dropped."""
    made = trigger(max_per_week=0)
    made([alarm()], OFFSETS)
    for episode in range(1_100):
        made([alarm(model="unknown", episode=episode)], OFFSETS)
        if episode == 500:                          # a restart reads what the store keeps of each model
            made = trigger(reloaded(made.ledger), max_per_week=0)
    assert all(one.model == "unknown" for one in made.ledger.decisions)
    assert made.is_waiting("churn", "7", 1)


def test_a_replayed_launch_counts_for_the_budget_and_not_for_the_breaker() -> None:
    made = trigger(approval="manual", useless_max=1, cooldown_hours=0)
    made([alarm()], OFFSETS)
    made.end_replayed(5.0)
    (launch,) = made.ledger.launches.values()
    assert (launch.state, launch.detail, made.budget_remaining("churn", 100 * DAY)) == ("refused", REPLAYED, 1)
    made([alarm(episode=2)], OFFSETS)
    assert made.ledger.decisions[-1].outcome == "launch"


def test_a_launch_stored_before_there_were_keys_is_read() -> None:
    made = trigger()
    made([alarm()], OFFSETS)
    (launch,) = made.ledger.launches.values()
    document = json.loads(launch_to_json(launch))
    for name in ("key", "by", "why", "gpus", "deadline_hours", "forgiven"):
        del document[name]
    assert launch_from_json(json.dumps(document)) == replace(launch, deadline_hours=0.0)
