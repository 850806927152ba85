"""What the ledger lets go of, and what stays known of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from monitor.flow import Launch
from monitor.metrics import LAUNCH_OUTCOMES
from monitor.retrain.ledger import KEPT, Ledger, kept_of, launch_id
from monitor.retrain.limits import useless_row

HELD = sum(KEPT.values())


def launch(n, state="failed", version="7", **changes):
    approved = (("approved", 1.0),) if state != "refused" else ()
    return Launch(id=launch_id("m", version, n, changes.get("key", "")), model="m", version=version, episode=n, launcher="local",
                  state=state, reason="{}", steps=(("proposed", 0.0), *approved, (state, 2.0)), decided_at=100.0 * n,
                  cut_over_at=5.0 if state == "promoted" else 0.0, attempts=2, **changes)


def stored(ledger, launches):
    """Put launches as the trigger does, each with a checkpoint of its own."""
    for one in launches:
        ledger.put(one)
        ledger.clear_changed()
    return ledger


def mixed(count):
    return [launch(n, ("failed", "promoted", "refused", "timed_out")[n % 4]) for n in range(1, count + 1)]


def test_launches_without_end_are_a_bounded_number_in_memory_and_every_one_is_counted():
    ledger = stored(Ledger(), mixed(1_000))
    assert len(ledger.launches) == HELD
    counted = Counter(ledger.ended_before("m")) + Counter((one.launcher, one.state) for one in ledger.launches.values())
    assert counted == Counter(("local", one.state) for one in mixed(1_000))
    assert {state for _, state in counted} == set(LAUNCH_OUTCOMES)
    assert ledger.calls_failed_before("m")["local"] + sum(one.attempts for one in ledger.launches.values()) == 2_000


def test_a_restart_holds_the_same_and_counts_the_same():
    before, after = stored(Ledger(), mixed(500)), Ledger(iter(mixed(500)))
    assert list(after.launches) == list(before.launches)
    assert after.ended_before("m") == before.ended_before("m")


def test_what_is_open_or_not_stored_yet_stays_however_many_come_after_it():
    waiting, running = launch(1, "proposed"), launch(2, "running")
    promoted = replace(launch(3, "promoted"), cut_over_at=0.0)
    ledger = stored(Ledger(), [waiting, running, promoted, *mixed(400)[3:]])
    assert ledger.unfinished() == [waiting, running]
    assert ledger.awaiting_cut_over() == [promoted]
    for one in mixed(400)[3:300]:
        ledger.put(replace(one, detail="again"))
    assert all(name in ledger.launches for name in (one.id for one in ledger.changed()[0]))


@pytest.mark.parametrize("episode", [1, 17, 400])
def test_an_episode_that_launched_once_has_launched_for_ever(episode):
    ledger = stored(Ledger(), mixed(400))
    assert ledger.has_launched("m", "7", episode)
    assert not ledger.has_launched("m", "7", 401)
    assert not ledger.has_launched("m", "8", episode)


def test_a_key_is_found_among_those_that_are_only_stored():
    asked = [launch(n, key=f"key-{n}") for n in range(1, 300)]
    ledger = stored(Ledger(earlier=lambda model: iter(asked)), asked)
    assert ledger.asked_by("m", "key-3").id == asked[2].id
    assert asked[2].id not in ledger.launches
    assert ledger.asked_by("m", "key-0") is None


def test_a_policy_that_looks_back_further_has_what_it_looks_back_at():
    ledger = stored(Ledger(kept={"m": kept_of(max_per_week=200, useless_max=150)}), [launch(n) for n in range(1, 600)])
    assert len(useless_row(ledger.of_model("m"), "7")) == 200
    assert kept_of(2, None) == KEPT


def test_the_versions_that_a_roll_back_may_go_to_outlive_any_number_of_failures():
    first = launch(1, "promoted", previous_digest="d" * 64)
    ledger = stored(Ledger(), [first, *[launch(n) for n in range(2, 500)]])
    assert ledger.promoted("m") == first
    assert "d" * 64 in ledger.digests()
