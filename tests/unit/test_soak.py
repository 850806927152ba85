"""The judge of the soak: what grows without a bound fails it, and what is only filling does not."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from benchmarks import soak
from benchmarks.soak_world import SCENARIOS, sized
from monitor.pipeline import Stages
from monitor.retrain.ledger import KEPT
from monitor.state.store import Store
from tests.unit.test_bounded import configuration

ONE = sized(SCENARIOS["narrow"], batch=20, panes_of=4, pool=401, retrains=False, numbers=3, categories=1)
EVENTS = soak.POINTS * ONE.batch


@pytest.mark.parametrize("leaks", [False, True], ids=["as it is", "with a planted leak"])
def test_a_planted_leak_fails_a_short_run_and_without_one_it_holds(leaks, tmp_path, monkeypatch):
    held = Stages.publish

    def holding(stages, window, scores, alarms):
        held(stages, window, scores, alarms)
        stages.spent[f"pane {window.pane}"] = 0.0   # one entry a decided pane, for ever

    if leaks:
        monkeypatch.setattr(Stages, "publish", holding)
    found = soak.run(ONE, EVENTS, tmp_path, quiet=True)
    assert found["panes_decided"] > 3 * soak.CONTAINER_GROWTH
    # So short a run says nothing of the process, which is that of all tests: its memory is not asked for.
    told = [words.partition(":")[0] for words in found["wrong"] if "more entries" in words]
    assert told == (["stages.spent"] if leaks else [])


def looks(path, *sizes):
    return [Counter({path: size}) for size in sizes]


@pytest.mark.parametrize(("path", "sizes", "wrong"), [
    ("stages.panes.texts", (1_000, 1_100, 1_200), True),                    # grows, and nobody has said how far
    ("stages.panes.texts", (1_000, 1_200, 1_150), False),                   # goes up and down
    ("stages.panes.texts", (1_000, 1_010, 1_020), False),
    ("stages.panes.texts", (1_000, 1_100, 1_100, 1_100, 1_200), False),     # two steps in four: it is not what every pane adds to
    ("stages.panes.texts", (1_000, 1_020, 1_020, 1_040, 1_060), True),
    ("stages.display.alarms", (20, 50, 90), False),                         # filling, below its bound
    ("stages.display.alarms", (60, 100, 140), True),                        # above it
    ("stages.display.alarms[].movers", (300, 600, 900), False),
    ("stages.display.alarms[].movers", (3_000, 6_000, 9_000), True),
    ("stages.trigger.ledger._launches", (0, 30, 60), False),
    ("stages.trigger.ledger._launches", (30, sum(KEPT.values()), 3 * sum(KEPT.values())), True),
    ("stages.trigger.ledger._launches{}.steps", (100, 200, 300), False),
])
def test_a_container_that_grows_must_be_below_a_bound_of_its_own(path, sizes, wrong):
    assert bool(soak.grown(looks(path, *sizes), models=1)) == wrong


@pytest.mark.parametrize(("panes", "grows", "filling", "wrong"), [
    (40, 30, True, False),                                      # the rings of panes are not full: it says so, and no more
    (400, 0, False, False),
    (400, 30, False, True),
    (200, 30, False, True),                                     # full in the second half: what follows is judged
], ids=["too short", "flat", "growing", "growing when full"])
def test_resident_memory_must_be_flat_where_the_rings_of_panes_are_full(panes, grows, filling, wrong):
    points = [soak.Point(100 * n, panes * n / soak.POINTS, (500 + grows * n) * soak.MIB, 0, 1, 1, 1)
              for n in range(1, soak.POINTS + 1)]
    watcher = SimpleNamespace(source=SimpleNamespace(given=4_000, pool_bytes=0), points=points)
    found = soak.verdict(SCENARIOS["models"], watcher, 10**12, 500 * panes, {})
    assert found["filling"] == filling
    assert any("resident memory grew" in words for words in found["wrong"]) == wrong


def test_containers_are_found_wherever_the_service_holds_them(tmp_path):
    from monitor.ingest.source import MemorySource
    from monitor.service import build

    stages = build(configuration(tmp_path), source=MemorySource([]))
    try:
        before = soak.containers(stages)
        stages.trigger.ledger._entries.extend(["x"] * 30)
        stages.spent |= {f"{n}": 0.0 for n in range(40)}
        more = soak.containers(stages) - before
    finally:
        stages.close()
    assert dict(more) == {"stages.retraining._strays._ledger._entries": 30, "stages.spent": 40}


def test_history_is_read_by_pages_and_its_newest_lines_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("monitor.state.store.HISTORY_PAGE", 7)
    store = Store(tmp_path / "state.db")
    with store.transaction() as db:
        for n in range(50):
            store.append(db, "audit", f"m{n % 2}", [f"{n}"])
            store.save_launch(db, f"id{99 - n}", "m0", f"{n}")
    try:
        for table in ("audit", "launches"):
            assert store.history(table) == [f"{n}" for n in range(50)]
        assert store.history("audit", "m1") == [f"{n}" for n in range(1, 50, 2)]
        assert store.history("audit", latest=10) == [f"{n}" for n in range(40, 50)]
        assert store.history("audit", "m0", latest=3) == ["44", "46", "48"]
    finally:
        store.close()
