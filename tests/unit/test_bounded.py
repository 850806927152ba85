"""Nothing grows while a stage is slow or a backlog is sparse: what is held is stored early, and intake waits."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
import yaml

from monitor import pipeline
from monitor.config import parse
from monitor.decide.policy import Judge
from monitor.flow import Batch
from monitor.ingest.deadletters import DeadLetters
from monitor.ingest.source import MemorySource, records
from monitor.service import build
from monitor.state.place import Place
from monitor.state.retention import forget_old_versions
from monitor.state.store import KEPT_PANES, Store
from tests.crash import world

TOPIC, PANES = "t", 60
WAIT_SECONDS = 60.0                                 # far beyond what anything here takes; only a failure waits so long


def configuration(folder, **service):
    folder.mkdir(exist_ok=True)
    tree = yaml.safe_load(world.configuration(folder, "127.0.0.1:9", TOPIC, promote=False).read_text())
    tree["service"] |= service
    tree["monitors"][0]["retrain"] |= {"collect_events": 10**9, "capture_seconds": 1}
    return parse(yaml.safe_dump(tree))


def whole():
    """The world's records as one batch: sixty panes are decided in one turn."""
    return [Batch(parts=tuple(records(TOPIC, p, values, times=[0] * len(values)) for p, values in world.messages().items()),
                  assigned=frozenset((TOPIC, p) for p in range(world.PARTITIONS)))]


def several(cuts=4):
    """The same records in several batches, one behind the other in every partition."""
    found = world.messages()
    for cut in range(cuts):
        parts = []
        for p, values in found.items():
            first, end = len(values) * cut // cuts, len(values) * (cut + 1) // cuts
            parts.append(records(TOPIC, p, values[first:end], first_offset=first, times=[0] * (end - first)))
        yield Batch(parts=tuple(parts), assigned=frozenset((TOPIC, p) for p in range(world.PARTITIONS)))


def told(folder):
    """What the state says, without the clock's own times."""
    found = world.state(folder)
    for decision in found["decisions"]:
        decision.pop("at", None)
    for launch in found["launches"]:
        launch.pop("steps", None)
    return found


def decided_at_once(folder, monkeypatch, held_bytes, fail_at=None):
    """Run the one batch; (most decided panes that were held, checkpoints). `fail_at`: end as in a crash at that pane."""
    if held_bytes is not None:
        monkeypatch.setattr(pipeline, "HELD_BYTES", held_bytes)
    most, seen = [0], [0]

    def look(evaluation):
        seen[0] += 1
        most[0] = max(most[0], sum(map(len, stages.decided.values())))
        if seen[0] == fail_at:
            raise KeyboardInterrupt
    stages = build(configuration(folder, checkpoint_seconds=60), source=MemorySource(whole()), clock=lambda: 1.7e9 + 10**6,
                   on_evaluation=look)
    commits = [0]
    committed = stages.source.committed
    stages.source.committed = lambda offsets: (commits.__setitem__(0, commits[0] + 1), committed(offsets))
    try:
        stages.run()
    except KeyboardInterrupt:
        pass
    finally:
        stages.close()
    return most[0], commits[0]


def test_panes_that_one_batch_decides_are_stored_before_they_are_many(tmp_path, monkeypatch):
    many, few = decided_at_once(tmp_path / "held", monkeypatch, None)
    stages = build(configuration(tmp_path / "size"), source=MemorySource([]))
    pane_bytes = stages.judge.scans["m"].reference.shape[0] * stages.judge.scans["m"].reference.shape[1] * 8
    stages.close()
    fewer, more = decided_at_once(tmp_path / "bounded", monkeypatch, 5 * pane_bytes)
    assert many >= PANES
    assert fewer <= 6
    assert more > few + PANES // 6 - 2
    assert told(tmp_path / "bounded") == told(tmp_path / "held")


def test_a_crash_between_the_checkpoints_of_one_batch_loses_and_repeats_nothing(tmp_path, monkeypatch):
    decided_at_once(tmp_path / "undisturbed", monkeypatch, 2_000)
    decided_at_once(tmp_path / "crashed", monkeypatch, 2_000, fail_at=27)
    assert 0 < sum(pane[3] == 1 for pane in world.state(tmp_path / "crashed")["panes"]) < PANES
    decided_at_once(tmp_path / "crashed", monkeypatch, 2_000)
    assert told(tmp_path / "crashed") == told(tmp_path / "undisturbed")


@pytest.mark.parametrize("what", ["kept", "refusals"])
def test_rows_and_refused_records_that_wait_bring_the_checkpoint_before_its_time(what, tmp_path, monkeypatch):
    now = [1.7e9 + 10**6]
    stages = build(configuration(tmp_path, checkpoint_seconds=60), source=MemorySource([]), clock=lambda: now[0])
    stages.commit(Batch(), now=True)
    (batch, *_) = several()
    if what == "refusals":
        batch = replace(batch, parts=tuple(records(TOPIC, p, [b"{" * 50] * 50) for p in range(world.PARTITIONS)))
    stages.panes.add(batch, stages._decode(batch))
    stages.commit(batch)
    assert getattr(stages.panes, what)              # not due: a second has not passed, and it is little
    monkeypatch.setattr(pipeline, "HELD_BYTES", 5_000)
    stages.commit(Batch())
    assert not getattr(stages.panes, what)
    assert stages.held_bytes == 0
    stages.close()


class Gate:
    """A stage that stands still from its first call until it is let go."""

    def __init__(self, real):
        self.real, self.reached, self.free = real, threading.Event(), threading.Event()

    def __call__(self, *args, **options):
        self.reached.set()
        assert self.free.wait(WAIT_SECONDS)
        return self.real(*args, **options)


@pytest.mark.parametrize("stage", ["judge", "capture", "dead_letters", "store"])
def test_while_a_stage_is_slow_nothing_more_is_taken_and_afterwards_nothing_is_lost(stage, tmp_path, monkeypatch):
    taken = []

    class Counting(MemorySource):
        def __iter__(self):
            for batch in super().__iter__():
                taken.append(batch)
                yield batch

    now = [1.7e9 + 10**6]

    def clock():
        now[0] += 0.5
        return now[0]

    stages = build(configuration(tmp_path), source=Counting(list(several())), clock=clock)
    owner, name = {"judge": (Judge, "__call__"), "capture": (Place, "write"), "dead_letters": (DeadLetters, "_append"),
                   "store": (Store, "transaction")}[stage]
    gate = Gate(getattr(owner, name))
    monkeypatch.setattr(owner, name, lambda self, *args, **options: gate(self, *args, **options))
    loop = threading.Thread(target=stages.run)
    loop.start()
    assert gate.reached.wait(WAIT_SECONDS)
    held = len(taken)
    before = dict(stages.spent)
    for _ in range(3):
        loop.join(0.05)
    assert loop.is_alive()
    assert (len(taken), stages.spent) == (held, before)         # nothing more was asked of the source
    assert held < 4
    gate.free.set()
    loop.join(WAIT_SECONDS)
    assert not loop.is_alive()
    stream = stages.panes.streams["m"]
    counted, refused = stream.outcomes["counted"], sum(n for name, n in stream.outcomes.items() if name.startswith("refused"))
    assert counted + refused == sum(map(len, world.messages().values()))
    assert stages.captures["m"].dropped == 0
    text = stages.exporter.scrape().decode()
    seconds = {line.split('"')[1]: float(line.split()[-1]) for line in text.splitlines()
               if line.startswith("tidemark_loop_seconds_total{")}
    assert seconds[stage] >= 0.1                    # the metric names the stage that held everything up
    stages.close()


def test_a_version_that_ended_leaves_its_panes_for_a_week_of_panes_and_no_longer(tmp_path):
    stages = build(configuration(tmp_path), source=MemorySource(whole()), clock=lambda: 1.7e9 + 10**6)
    stages.run()
    stream = stages.panes.streams["m"]
    count = "SELECT count(*) FROM panes WHERE model = 'm'"
    with stages.store.transaction() as db:
        before = db.execute(count).fetchone()[0]
        db.execute("UPDATE panes SET version = 'old'")
        assert forget_old_versions(db, stream, stream.last_decided) == 0
        assert forget_old_versions(db, stream, stream.last_decided + KEPT_PANES - PANES // 2) > 0
        left = db.execute(count).fetchone()[0]
        db.execute("UPDATE panes SET version = '1'")
        assert forget_old_versions(db, stream, stream.last_decided + 2 * KEPT_PANES) == 0       # its own are the store's
    stages.close()
    assert 0 < left < before


def test_all_of_the_loops_time_is_in_its_stages(tmp_path):
    stages = build(configuration(tmp_path), source=MemorySource(whole()), clock=lambda: 1.7e9 + 10**6)
    began, first = pipeline.time.perf_counter(), stages._lapped
    stages.run()
    whole_time = stages._lapped - first
    assert sum(stages.spent.values()) == pytest.approx(whole_time)
    assert whole_time <= pipeline.time.perf_counter() - began + (began - first)
    assert json.dumps(sorted(stages.spent)) == json.dumps(sorted(pipeline.LOOP_STAGES))
    stages.close()
