"""The limits of a policy: blackout hours over midnight and clock changes, budgets, patience, the breaker; and what they say."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import blackout, config, metrics
from monitor.config import parse
from monitor.config_retrain import Blackout
from monitor.decisions import Reason
from monitor.errors import ConfigError
from monitor.flow import Launch
from monitor.retrain.ledger import Ledger
from monitor.retrain.limits import REPLAYED, Limits, Moment, gpu_hours, useless_row

HOUR, DAY = 3600.0, 86_400.0
NOW = 100 * DAY
ZURICH = ZoneInfo("Europe/Zurich")


def at(text: str, zone: ZoneInfo = ZURICH, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


def periods(*given_periods: dict[str, Any]) -> tuple[blackout.Period, ...]:
    return blackout.periods([Blackout(**one) for one in given_periods], "blackout")


# ---- blackout -----------------------------------------------------------------------------------------------------------

def test_a_period_holds_from_its_start_to_before_its_end_in_local_time() -> None:
    office = periods({"days": ["mon", "tue"], "start": "08:00", "end": "18:00", "time_zone": "Europe/Zurich"})
    found = [blackout.is_within(office, at(text)) for text in (
        "2026-03-02T07:59:59", "2026-03-02T08:00", "2026-03-02T17:59:59", "2026-03-02T18:00", "2026-03-04T12:00")]
    assert found == [False, True, True, False, False]
    assert blackout.ends(office, at("2026-03-02T09:00")) == at("2026-03-02T18:00")


def test_a_period_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    night = periods({"days": ["fri"], "start": "22:00", "end": "06:00", "time_zone": "Europe/Zurich"})
    found = [blackout.is_within(night, at(text)) for text in (
        "2026-03-06T05:00", "2026-03-06T21:59", "2026-03-06T22:00", "2026-03-07T05:59", "2026-03-07T06:00", "2026-03-07T23:00")]
    assert found == [False, False, True, True, False, False]


def test_when_the_clocks_change_a_period_keeps_its_local_ends() -> None:
    """2026-03-29 has no 02:30, 2026-10-25 has it twice; the blackout ends when the clocks go forward, or at the second."""
    night = periods({"start": "22:00", "end": "02:30", "time_zone": "Europe/Zurich"})
    assert blackout.ends(night, at("2026-03-28T23:00")) == at("2026-03-29T03:00")
    assert blackout.ends(night, at("2026-10-24T23:00")) == at("2026-10-25T02:30", fold=1)
    assert blackout.is_within(night, at("2026-10-25T02:45", fold=0))    # before the clocks go back it is still night
    early = periods({"start": "02:30", "end": "04:00", "time_zone": "Europe/Zurich"})
    assert not blackout.is_within(early, at("2026-03-29T01:59:59"))
    assert blackout.is_within(early, at("2026-03-29T03:00"))


def test_periods_that_touch_are_one_blackout() -> None:
    both = periods({"start": "00:00", "end": "12:00"}, {"days": ["mon"], "start": "12:00", "end": "24:00"})
    monday, utc = "2026-03-02", ZoneInfo("UTC")
    assert blackout.ends(both, at(f"{monday}T03:00", utc)) == at("2026-03-03T12:00", utc)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sets(st.sampled_from(blackout.DAYS), min_size=1), st.integers(0, 1439), st.integers(1, 1440),
                          st.sampled_from(["UTC", "Europe/Zurich", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu"])),
                min_size=1, max_size=4), st.integers(1_700_000_000, 1_830_000_000))
def test_a_blackout_ends_at_the_first_moment_that_is_free(
        given_periods: list[tuple[set[str], int, int, str]], moment: int) -> None:
    made = tuple(blackout.Period(frozenset(map(blackout.DAYS.index, days)), start, end, ZoneInfo(zone))
                 for days, start, end, zone in given_periods if start != end)
    end = blackout.ends(made, float(moment))
    if end is None:
        assert all(blackout.is_within(made, moment + quarter * 900.0) for quarter in range(7 * 96))
        return
    assert not blackout.is_within(made, end)
    steps = int((end - moment) // 600)
    assert all(blackout.is_within(made, moment + step * 600.0) for step in range(steps + 1) if moment + step * 600.0 < end)


def test_local_time_is_that_of_the_clock_on_the_wall() -> None:
    """Beside a plain reading of the wall clock, on every quarter of an hour of a year without a change of clocks at night."""
    night = periods({"days": ["tue", "sat"], "start": "21:15", "end": "05:45", "time_zone": "Asia/Kathmandu"})
    zone = ZoneInfo("Asia/Kathmandu")
    moment = datetime(2026, 1, 1, tzinfo=zone)
    for _ in range(30 * 96):
        minute, today, before = moment.hour * 60 + moment.minute, moment.weekday(), (moment - timedelta(days=1)).weekday()
        expected = (today in (1, 5) and minute >= 21 * 60 + 15) or (before in (1, 5) and minute < 5 * 60 + 45)
        assert blackout.is_within(night, moment.timestamp()) is expected, moment
        moment += timedelta(minutes=15)


@pytest.mark.parametrize(("given_period", "said"), [
    ({"time_zone": "Europe/Zurch"}, "blackout[0].time_zone: expected a time zone such as Europe/Zurich or UTC, got "
                                    "'Europe/Zurch'; did you mean Europe/Zurich?"),
    ({"time_zone": "../etc/passwd"}, "blackout[0].time_zone: expected a time zone such as Europe/Zurich or UTC, got "
                                     "'../etc/passwd'; see the IANA list of time zones"),
    ({"time_zone": "Europe"}, "blackout[0].time_zone: expected a time zone"),
    ({"time_zone": "a\x00b"}, "blackout[0].time_zone: expected a time zone"),
    ({"start": "25:00"}, 'blackout[0].from: expected a time of day from "00:00" to "24:00", got \'25:00\'; write it so, in '
                         "quotes"),
    ({"end": "12"}, 'blackout[0].to: expected a time of day'),
    ({"end": 79_200}, 'blackout[0].to: expected a time of day'),
    ({"start": "٣:٠٠"}, 'blackout[0].from: expected a time of day'),
    ({"start": "08:00", "end": "8:00"}, "blackout[0].to: expected another time than `from`, got '8:00'; for whole days write"),
    ({}, "blackout: expected hours of the week that are left free, got none; nothing would ever be launched"),
])
def test_a_period_that_cannot_be_is_one_clear_line(given_period: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        periods(given_period)
    assert str(error.value).startswith(said)


def test_periods_that_cover_the_week_only_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected hours of the week that are left free"):
        periods({"start": "06:00", "end": "22:00", "time_zone": "Europe/Zurich"},
                {"start": "20:00", "end": "08:00", "time_zone": "UTC"})


CONFIGURED = """
files: {paths: [x]}
monitors: [{model: m, topic: t, reference: r, retrain: {launcher: %s, %s}}]
"""


@pytest.mark.parametrize(("launcher", "keys", "said"), [
    ("{type: local, command: [x]}", "blackout: [{from: 22:00, to: 06:00, time_zone: Mars/Olympus}]",
     "monitors[0].retrain.blackout[0].time_zone: expected a time zone such as"),
    ("{type: local, command: [x]}", "gpu_hours_per_week: 10",
     "monitors[0].retrain.gpu_hours_per_week: expected a launcher that says its GPUs, got type local; bound it by max_per_week"),
    ("{type: kubernetes, image: i, gpus: 2, deadline_hours: 6}", "gpu_hours_per_week: 10",
     "monitors[0].retrain.gpu_hours_per_week: expected at least 12 for one training (2 GPUs for launcher.deadline_hours), got "
     "10; raise it, or lower the deadline"),
    ("{type: local, command: [x]}", "persist_panes: 0", "monitors[0].retrain.persist_panes: expected a whole number >= 1, got 0"),
    ("{type: local, command: [x]}", "useless_max: 0", "monitors[0].retrain.useless_max: expected a whole number >= 1, got 0"),
    ("{type: local, command: [x]}", "approval_hours: 0", "monitors[0].retrain.approval_hours: expected a number > 0, got 0"),
    ("{type: local, command: [x]}", "blackout: [{form: 1}]",
     "monitors[0].retrain.blackout[0].form: expected a known key, got `form`; did you mean `from`?"),
])
def test_a_policy_that_could_never_launch_is_refused_before_anything_starts(launcher: str, keys: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(CONFIGURED % (launcher, keys))
    assert str(error.value).startswith(said)


def test_utc_needs_no_list_of_time_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slim image may have none; then every other name is refused, with what to install."""
    monkeypatch.setattr(blackout, "ZoneInfo", _nowhere)
    monkeypatch.setattr(blackout, "available_timezones", set)
    assert blackout.is_within(periods({"start": "08:00", "end": "09:00"}), at("2026-03-02T08:30", ZoneInfo("UTC")))
    with pytest.raises(ConfigError, match=r"time_zone: expected time zones on this machine, found none; install tzdata"):
        periods({"time_zone": "Europe/Zurich"})


def _nowhere(name: str) -> ZoneInfo:
    raise KeyError(name)


def test_a_time_without_quotes_is_read_as_it_is_meant() -> None:
    """To YAML, 22:00 is a number in base 60."""
    parsed = parse(CONFIGURED % ("{type: local, command: [x]}", "blackout: [{from: 22:00, to: 06:00}]"))
    assert parsed.monitors[0].retrain is not None
    (period,) = blackout.periods(parsed.monitors[0].retrain.blackout, "")
    assert (period.start, period.end) == (22 * 60, 6 * 60)


# ---- the others -----------------------------------------------------------------------------------------------------------

def policy(**changes: Any) -> config.Retrain:
    launcher = config.KubernetesLauncher(image="i", gpus=2, deadline_hours=5.0)
    return config.Retrain(**{"launcher": launcher, "cooldown_hours": 0.0, "max_per_week": 100, "useless_max": None, **changes})


def launch(number: int, state: str = "failed", days_ago: float = 1.0, hours: float | None = None, **changes: Any) -> Launch:
    """A launch of 2 GPUs and a deadline of 5 hours; `hours` of training where it was submitted."""
    steps: tuple[tuple[str, float], ...] = (("proposed", 0.0), ("approved", 0.0))
    if hours is not None:
        steps = (*steps, ("submitted", 0.0))
        steps = (*steps, ("succeeded", hours * HOUR)) if state not in ("running", "submitted") else steps
    whole: dict[str, Any] = {
        "id": f"l{number}", "model": "churn", "version": "7", "episode": number, "launcher": "kubernetes", "state": state,
        "reason": "{}", "steps": (*steps, (state, (hours or 0.0) * HOUR)), "decided_at": NOW - days_ago * DAY, "gpus": 2,
        "deadline_hours": 5.0}
    return Launch(**{**whole, **changes})


def limits(*launches: Launch, most: int = 4, **changes: Any) -> Limits:
    return Limits({"churn": policy(**changes)}, Ledger(launches), most)


def held(made: Limits, moment: Moment | None = None) -> dict[Reason, float]:
    return {limit.reason: limit.until for limit in made(moment or Moment("churn", "7", NOW, 1e9)) if limit.holds}


def test_nothing_holds_a_model_without_launches_back_and_every_limit_is_told() -> None:
    made = limits()
    assert held(made) == {}
    assert [limit.reason for limit in made(Moment("churn", "7", NOW, 0.0))] == [
        "in_flight", "all_in_flight", "learning", "breaker", "cooldown", "budget", "gpu_hours", "blackout"]


def test_a_week_s_gpu_hours_are_those_that_were_trained_and_the_deadline_of_what_still_runs() -> None:
    assert gpu_hours(launch(1, "promoted", hours=1.5)) == 3.0
    assert gpu_hours(launch(1, "running", hours=1.5)) == 10.0
    assert gpu_hours(launch(1, "approved")) == 10.0
    assert gpu_hours(launch(1, "failed")) == 0.0                        # never submitted: labels did not come
    assert gpu_hours(launch(1, "refused", detail=REPLAYED)) == 10.0     # a replay does not know how long it would have taken


def test_a_launch_waits_until_enough_gpu_hours_have_left_the_week() -> None:
    used = (launch(1, "promoted", 6, 4.0, cut_over_at=1.0), launch(2, "refused", 3, 2.0, verdict="better"))
    assert held(limits(*used, gpu_hours_per_week=22.0)) == {}           # 12 used, 10 needed
    assert held(limits(*used, gpu_hours_per_week=21.9)) == {"gpu_hours": NOW + DAY}
    assert held(limits(*used, gpu_hours_per_week=14.0)) == {"gpu_hours": NOW + DAY}
    assert held(limits(*used, gpu_hours_per_week=10.0)) == {"gpu_hours": NOW + 4 * DAY}
    assert held(limits(*used, gpu_hours_per_week=10.0), Moment("churn", "7", NOW + 4 * DAY, 1e9)) == {}


def test_the_budget_is_back_when_the_oldest_launch_leaves_the_week() -> None:
    used = tuple(launch(n, days_ago=days) for n, days in enumerate((8, 6, 5, 2)))
    assert held(limits(*used, max_per_week=4)) == {}
    assert held(limits(*used, max_per_week=3)) == {"budget": NOW + DAY}
    assert held(limits(*used, max_per_week=2)) == {"budget": NOW + 2 * DAY}
    assert held(limits(*used, max_per_week=0)) == {"budget": 0.0}       # never


def test_the_cooldown_says_when_it_is_over() -> None:
    assert held(limits(launch(1, days_ago=0.5), cooldown_hours=24)) == {"cooldown": NOW + 0.5 * DAY}


def test_a_version_is_judged_for_its_learning_hours_before_it_may_ask() -> None:
    made = limits(learning_hours=2.0)
    assert held(made, Moment("churn", "7", NOW, 1.5 * HOUR)) == {"learning": NOW + 0.5 * HOUR}
    assert held(made, Moment("churn", "7", NOW, 2 * HOUR)) == {}


def test_trainings_of_all_models_are_counted_together_and_proposals_are_not() -> None:
    others = (launch(1, "running", model="a"), launch(2, "proposed", model="b"), launch(3, "approved", model="c"))
    assert held(limits(*others, most=2)) == {"all_in_flight": 0.0}
    assert held(limits(*others, most=3)) == {}


@pytest.mark.parametrize(("ends", "row"), [
    (("failed", "timed_out", "worse"), 3),
    (("failed", "promoted", "failed"), 1),                              # a promotion begins anew
    (("failed", "rejected", "expired", "failed"), 2),                   # who is not trained says nothing
    (("failed", "better", "failed"), 2),                                # better, with nobody to promote it
    (("failed", "running"), 1),
    (("not yet known", "replayed"), 1),
    ((), 0),
])
def test_useless_launches_in_a_row_are_those_that_trained_and_brought_nothing(ends: tuple[str, ...], row: int) -> None:
    launches = []
    for number, end in enumerate(ends):
        made = launch(number, "refused" if end not in ("failed", "timed_out", "promoted", "running") else end)
        if end in ("worse", "better", "not yet known"):
            made = replace(made, verdict=end)
        if end in ("rejected", "expired"):
            made = replace(made, steps=(("proposed", 0.0), ("refused", 1.0)))
        launches.append(replace(made, detail=REPLAYED) if end == "replayed" else made)
    assert len(useless_row(launches, "7")) == row


def test_a_roll_back_trains_nothing_and_uses_up_nothing() -> None:
    back = launch(1, "failed", launcher="rollback")
    assert useless_row([launch(0), back, launch(2)], "7") == [launch(2), launch(0)]
    assert held(limits(back, max_per_week=1)) == {}


def promoted(number: int, version: str, new: str, launcher: str = "local") -> Launch:
    return replace(launch(number, "promoted", launcher=launcher), version=version, new_version=new)


@pytest.mark.parametrize(("history", "version", "row"), [
    ([("7", "7.a", "local")], "7.a", []),
    ([("7", "7.a", "local"), ("7.a", "7", "rollback")], "7", [0]),                          # promoted, and taken back
    ([("7", "7.a", "local"), ("7.a", "7", "rollback"), ("7", "7.b", "local"), ("7.b", "7", "rollback")], "7", [2, 0]),
    ([("7", "7.a", "local"), ("7.a", "7.b", "local"), ("7.b", "7", "rollback")], "7", [1, 0]),      # back over two
    ([("7", "7.a", "local"), ("7.a", "7.b", "local"), ("7.b", "7.a", "rollback")], "7.a", [1]),     # back over one of two
    ([("7", "7.a", "local"), ("7.a", "7", "rollback"), ("7", "7.a", "rollback")], "7.a", []),       # and forward again
    ([("7", "7.a", "local"), ("7.a", "7", "rollback"), ("7", "7.b", "local")], "7.b", []),          # a new version begins anew
])
def test_a_promotion_that_was_rolled_back_brought_nothing(history: list[tuple[str, str, str]], version: str,
                                                          row: list[int]) -> None:
    launches = [promoted(number, *one) for number, one in enumerate(history)]
    assert useless_row(launches, version) == [launches[number] for number in row]


def test_a_failure_of_a_version_that_is_rolled_back_does_not_hide_what_came_before() -> None:
    before, failed = promoted(1, "7", "7.a"), replace(launch(2), version="7.a")
    launches = [launch(0), before, failed, promoted(3, "7.a", "7", "rollback"), launch(4)]
    assert useless_row(launches, "7") == [launches[4], before, launches[0]]
    (breaker,) = [one for one in limits(*launches, useless_max=3)(Moment("churn", "7", NOW, 1e9)) if one.reason == "breaker"]
    assert breaker.holds
    assert breaker.words == ("3 of 3 launches in a row brought nothing (retrain.useless_max), 1 of them promoted and rolled "
                             "back; `tidemark triggers reset churn` once the cause is found")
    assert useless_row([replace(before, forgiven=True), *launches[2:]], "7") == [launches[4]]


def test_the_breaker_opens_at_its_number_and_a_new_version_or_a_person_closes_it() -> None:
    row = tuple(launch(n, days_ago=9 - n) for n in range(3))
    assert held(limits(*row, useless_max=4)) == {}
    assert held(limits(*row, useless_max=3)) == {"breaker": 0.0}
    assert held(limits(*row, useless_max=3), Moment("churn", "8", NOW, 1e9)) == {}
    assert held(limits(*row[:2], replace(row[2], forgiven=True), useless_max=1)) == {}


def test_a_blackout_holds_and_says_until_when() -> None:
    made = limits(blackout=[Blackout(start="22:00", end="06:00", time_zone="Europe/Zurich")])
    night = at("2026-03-02T23:00")
    assert held(made, Moment("churn", "7", night, 1e9)) == {"blackout": at("2026-03-03T06:00")}
    assert held(made, Moment("churn", "7", at("2026-03-03T06:00"), 1e9)) == {}


def test_the_reasons_of_the_code_are_those_of_the_catalogue() -> None:
    assert set(get_args(Reason)) - {""} == set(metrics.DECISION_REASONS)
    assert set(metrics.WAITING_REASONS) < set(metrics.DECISION_REASONS)
