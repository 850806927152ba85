"""Which references a state forgets: those that nothing judges by, looks back at or may go back to."""

from __future__ import annotations

import dataclasses

from detectors.profile import Profile
from monitor.flow import Launch
from monitor.ingest.source import MemorySource
from monitor.retrain.ledger import KEPT, launch_to_json
from monitor.service import build
from monitor.state.retention import forget_old_references
from monitor.state.store import Store
from tests.unit.test_bounded import configuration


def promoted(n, digest):
    return Launch(id=f"{n:012d}", model="m", version=f"{n}", episode=n, launcher="local", state="promoted", reason="{}",
                  steps=(("approved", 0.0), ("promoted", float(n))), cut_over_at=float(n), previous_digest=digest)


def digests(store):
    return {digest for (digest,) in store._db.execute("SELECT digest FROM refs")}


def test_a_start_drops_the_references_that_only_old_promotions_name(tmp_path):
    config = configuration(tmp_path)
    build(config, source=MemorySource([])).close()
    named = [f"{n:064d}" for n in range(KEPT["promoted"] + 5)]
    store = Store(tmp_path / "state.db")
    (present,) = digests(store)
    with store.transaction() as db:
        db.executemany("INSERT INTO refs VALUES (?, '{}')", [(digest,) for digest in (*named, "f" * 64)])
        for n, digest in enumerate(named, 1):
            store.save_launch(db, f"{n:012d}", "m", launch_to_json(promoted(n, digest)))
    store.close()
    build(config, source=MemorySource([])).close()
    store = Store(tmp_path / "state.db")
    assert digests(store) == {present, *named[5:]}
    assert len(store.history("launches")) == len(named)     # a launch itself is never forgotten
    store.close()


def test_the_reference_of_every_pane_that_is_there_stays(tmp_path):
    stages = build(configuration(tmp_path), source=MemorySource([]))
    empty = Profile.empty(stages.judge.scans["m"].reference)
    with stages.store.transaction() as db:
        db.executemany("INSERT INTO refs VALUES (?, '{}')", [("a" * 64,), ("b" * 64,), ("c" * 64,)])
        for version, digest in (("5", "a" * 64), ("6", "b" * 64)):
            for pane in range(3):
                profile = dataclasses.replace(empty, reference_digest=digest).to_bytes()
                db.execute("INSERT INTO panes VALUES ('m', ?, '', ?, 60000, 0, 1, ?)", (version, pane, profile))
        assert forget_old_references(db, ()) == 1
    assert digests(stages.store) == {empty.reference_digest, "a" * 64, "b" * 64}
    stages.close()
