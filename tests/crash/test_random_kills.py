"""The service as a real process on a real broker, killed at drawn moments, again and again: it ends as if undisturbed.

`TIDEMARK_KILLS` (200) and `TIDEMARK_SEED` (1) from the environment; `make crash` takes 1,000. A failure prints both and
how every life ended, so the round can be replayed; where the kill falls inside a life still depends on the machine.
"""

from __future__ import annotations

import os
from collections import Counter
from random import Random

import pytest

from tests.crash import world
from tests.crash.lives import Death, Round, Warm, producing

KILLS = int(os.environ.get("TIDEMARK_KILLS", "200"))
SEED = int(os.environ.get("TIDEMARK_SEED", "1"))
#: Some 50 kills a round; each fourth one goes through a promotion.
ROUNDS = max(2, -(-KILLS // 50))
PROMOTING = [number for number in range(ROUNDS) if number % 4 == 3 or number == ROUNDS - 1]
FRESH_SHARE = 0.05
#: What every 200 kills must have hit, however fast or slow the machine is.
MUST_HIT = ("start", "read", "transaction", "letters", "ending")


@pytest.fixture(scope="module")
def warm():
    parent = Warm()
    yield parent
    parent.close()


@pytest.fixture(scope="module")
def hits():
    found = Counter()
    yield found
    print(f"kills by phase: {dict(found.most_common())}")


def kill_round(number, folder, kafka_broker, warm, hits, *, promote=False):
    """A round of kills; the round, and what its folder holds in the end."""
    rng = Random(f"{SEED}-{number}")
    kills = KILLS * (number + 1) // ROUNDS - KILLS * number // ROUNDS
    topic = kafka_broker.create_topic(f"kills-{SEED}-{number}-{folder.name}", world.PARTITIONS)
    one = Round(folder, kafka_broker, topic, warm, promote=promote)
    try:
        with producing(kafka_broker) as producer:
            for life in range(kills):
                one.grow((life + 1) / kills, producer)
                one.kill_once(Death.drawn(rng, FRESH_SHARE), rng)
        hits.update(one.hits)
        return one, one.run_to_the_end()
    except BaseException as error:
        error.add_note(f"TIDEMARK_SEED={SEED} TIDEMARK_KILLS={KILLS} round {number}\n" + "\n".join(one.deaths)
                       + f"\n{one.last_lines()}")
        raise


def explained(one, found, undisturbed):
    """What differs, and how to see it again; empty where nothing does."""
    different = [name for name in undisturbed if found[name] != undisturbed[name]]
    return f"{different} differ; TIDEMARK_SEED={SEED} TIDEMARK_KILLS={KILLS}\n" + "\n".join(one.deaths) if different else ""


@pytest.mark.parametrize("number", sorted(set(range(ROUNDS)) - set(PROMOTING)))
def test_killed_at_any_moment_the_end_is_that_of_an_undisturbed_run_byte_for_byte(
        number, tmp_path, kafka_broker, warm, hits):
    one, found = kill_round(number, tmp_path / "killed", kafka_broker, warm, hits)
    calm = Round(tmp_path / "calm", kafka_broker, one.topic, warm)
    undisturbed = calm.run_to_the_end()
    if why := explained(one, found, undisturbed):
        pytest.fail(why, pytrace=False)
    assert len(one.starts()) == len(calm.starts()) == 1
    letters, whole = one.letters(), calm.letters()
    assert len(whole) == len(set(whole)) == world.PANES
    assert set(letters) == set(whole), "a dead letter was lost"
    # One may be there again for each kill between its being flushed and the checkpoint behind it, and for nothing else.
    assert max(Counter(letters).values()) <= 1 + sum(one.hits.values())


@pytest.mark.parametrize("number", PROMOTING)
def test_killed_at_any_moment_through_a_promotion_nothing_is_lost_or_doubled(number, tmp_path, kafka_broker, warm, hits):
    one, found = kill_round(number, tmp_path / "killed", kafka_broker, warm, hits, promote=True)
    state = world.state(one.folder)
    (counters,) = state["counters"]
    assert counters["outcomes"] == {"counted": one.total - world.PANES, "refused:type": world.PANES}, one.deaths
    assert sum(events for _, _, events, _, _ in state["panes"]) == counters["outcomes"]["counted"], one.deaths
    assert [(launch["state"], launch["new_version"]) for launch in state["launches"]] == [("promoted", "1.new")]
    assert len(one.starts()) == 1
    assert [alarm["state"] for alarm in state["alarms"] if not alarm["cause"]].count("cleared") == 1
    assert found["files"]


def test_the_kills_hit_every_part_of_a_life(hits):
    assert sum(hits.values()) >= KILLS
    print(f"kills by phase: {dict(hits.most_common())}")
    assert not set(MUST_HIT) - set(hits), dict(hits)
