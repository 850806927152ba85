"""A roll-back killed at every step: it happens once, the earlier model is promoted and judged, and no event is lost.

A life is a service in memory over a state file in which version 2 has taken the place of version 1. Somebody asks for the
roll-back, and asks again if the service died before it had stored the request. `fatal` is the number of an instant (before or
after a transaction of the store or a promotion) at which the service is gone; a new one starts from the file.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from detectors.reference import Reference
from monitor.config import Config, parse
from monitor.expose.inbox import Asked
from monitor.flow import Batch, Launch
from monitor.ingest.source import MemorySource, records
from monitor.pipeline import Stages
from monitor.retrain.ledger import launch_from_json
from monitor.service import build
from monitor.state.seal import reseal
from monitor.state.store import Store
from tests.crash import world

TOPIC, SLICE, PHASES = "t", 500, 4
#: Build, request, promotion, its saving, the last checkpoint of version 2, the cut-over: two instants each; then two more.
LAST = 14
ASKED = Asked("rollback", model="m", by="token:alice", why="wrong answers")


class Killed(BaseException):
    """The service is gone."""


class Instants:
    def __init__(self, fatal: int | None) -> None:
        self.fatal, self.passed = fatal, 0

    def __call__(self) -> None:
        self.passed += 1
        if self.passed == self.fatal:
            raise Killed


class Caught(MemorySource):
    """A source of which nothing is waiting: the champion's last answer is always read."""

    def lag(self) -> dict[tuple[str, int], int]:
        return {}


def configuration(folder: Path, made: Path | None = None) -> Config:
    """The configuration of a new folder, or of one that was copied from `made`."""
    path = made / "tidemark.yaml" if made else world.configuration(folder, "127.0.0.1:9", TOPIC, promote=True)
    tree = yaml.safe_load(path.read_text().replace(str(made or folder), str(folder)))
    tree["service"]["dead_letters"] = "none"
    tree["monitors"][0]["retrain"] |= {"collect_events": 10**9, "promote": {
        "type": "file", "path": str(folder / "promoted.json"), "settle_seconds": 0}}
    return parse(yaml.safe_dump(tree))


def batches() -> list[Batch]:
    messages = world.messages()
    longest = max(map(len, messages.values()))
    return [Batch(parts=tuple(records(TOPIC, p, values[start:start + SLICE], first_offset=start, times=[0] * SLICE)
                              for p, values in messages.items() if values[start:start + SLICE]),
                  assigned=frozenset((TOPIC, p) for p in messages)) for start in range(0, longest, SLICE)]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which version 2 was promoted by the file, and judges."""
    folder, now = tmp_path_factory.mktemp("before"), itertools.count(100, 20)     # promotions are looked at every 15 s
    stages = build(configuration(folder), source=Caught(batches()[:PHASES]), clock=lambda: float(next(now)))
    (folder / "promoted.json").write_text(json.dumps({"version": "1", "model_uri": "/models/1"}))
    try:
        stages.run()
        (launch,) = stages.trigger.ledger.launches.values()
        Reference.from_json(stages.judge.scans["m"].reference.to_json()).save(folder / "new.json")
        stages.trigger.ledger.put(replace(
            launch, state="judged", steps=(*launch.steps, ("judged", 100.0)), verdict="better", new_version="2",
            model_uri="/models/2", reference_uri=str(folder / "new.json")))
        stages.advance()                            # promotes, and cuts over
        stages.commit(Batch(), now=True)
        assert stages.panes.streams["m"].version == "2", stages.trigger.ledger.launches
    finally:
        stages.close()
    return folder


class Life:
    def __init__(self, before: Path, folder: Path, fatal: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(before, folder)
        self.folder, self.instants, self.now = folder, Instants(fatal), 1_000.0
        self.lives, self.was_back = 0, False
        self.source = Caught(batches()[PHASES:])
        self.config = configuration(folder, before)
        instants, whole = self.instants, Store.transaction

        @contextmanager
        def mortal(store: Store) -> Iterator[sqlite3.Connection]:
            instants()
            with whole(store) as db:
                yield db
            instants()

        monkeypatch.setattr(Store, "transaction", mortal)

    def service(self) -> Stages:
        stages = build(self.config, source=self.source, clock=self.clock)
        promotion = stages.retraining._promotions["m"]
        assert promotion is not None
        whole: Callable[[Launch, float], str] = promotion.promote

        def mortal(launch: Launch, now: float) -> str:
            self.instants()
            uri = whole(launch, now)
            self.instants()
            return uri

        promotion.promote = mortal  # type: ignore[method-assign]
        return stages

    def clock(self) -> float:
        self.now += 20.0                            # promotions are looked at every 15 s
        return self.now

    def run(self, asked: Asked = ASKED) -> None:
        while True:
            stages = None
            self.lives += 1
            try:
                stages = self.service()
                if not self.is_noted():
                    stages.inbox.put(asked)         # who got no answer asks again
                stages.run()
                return
            except Killed:
                self.was_back = any(one.launcher == "rollback" and one.cut_over_at for one in self.launches())
            finally:
                if stages is not None:
                    stages.store.close()

    def is_noted(self) -> bool:
        return any(launch.launcher == "rollback" for launch in self.launches())

    def alarms(self) -> list[Any]:
        found = [json.loads(text) for (text,) in self.rows("SELECT document FROM alarms ORDER BY seq")]
        return [(one["version"], one["episode"], one["state"], one["at"], one["cause"], one["score"]) for one in found]

    def launches(self) -> list[Launch]:
        return [launch_from_json(text) for (text,) in self.rows("SELECT document FROM launches ORDER BY rowid")]

    def rows(self, query: str) -> list[Any]:
        db = sqlite3.connect(f"file:{self.folder}/state.db?mode=ro", uri=True)
        try:
            return db.execute(query).fetchall()
        finally:
            db.close()


def facts(life: Life) -> dict[str, Any]:
    """What must not depend on where the service was killed."""
    training, back = life.launches()
    ((counters,),) = life.rows("SELECT counters FROM streams")
    told = json.loads((life.folder / "promoted.json").read_text())
    audit = [json.loads(text) for (text,) in life.rows("SELECT document FROM audit")]
    return {
        "stream": life.rows("SELECT version, digest FROM streams"),
        "launches": [(one.id, one.state, one.version, one.new_version, one.model_uri, one.detail) for one in (training, back)],
        "steps": [state for state, _ in back.steps],
        "cut over": bool(back.cut_over_at),
        "told": {name: told[name] for name in ("version", "previous_version", "model_uri", "launch_id", "cause", "champion")},
        "outcomes": json.loads(counters)["outcomes"],
        "audit": [(one["action"], one["by"], one["launch"], one["taken"]) for one in audit],
        "moved": [row[:2] for row in life.rows("SELECT version, previous FROM cutovers WHERE version = '1' ORDER BY partition")],
        "events": life.rows("SELECT sum(events) FROM panes"),
    }


def test_a_roll_back_killed_at_any_instant_happens_once_and_loses_no_event(
        before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        undisturbed = Life(before, tmp_path / "0", None, patch)
        undisturbed.run()
    whole = facts(undisturbed)
    training, back = undisturbed.launches()
    assert (training.previous_model_uri, back.previous_model_uri) == ("/models/1", "/models/2")
    assert whole["stream"][0] == ("1", Reference.load(before / "reference.json").digest)
    assert whole["steps"] == ["judged", "promoted"]
    assert whole["told"] == {"version": "1", "previous_version": "2", "model_uri": "/models/1", "launch_id": back.id,
                             "cause": "rollback", "champion": None}
    assert whole["audit"] == [("rollback", "token:alice", back.id, True)]
    assert whole["moved"] == [("1", "2")] * world.PARTITIONS
    assert whole["events"][0][0] == whole["outcomes"]["counted"]
    assert back.detail == "rolled back from version 2 to 1 by hand: wrong answers"
    assert undisturbed.instants.passed > LAST
    for fatal in range(1, LAST + 1):
        with monkeypatch.context() as patch:
            life = Life(before, tmp_path / str(fatal), fatal, patch)
            life.run()
        assert (fatal, facts(life)) == (fatal, whole)
        if life.was_back:                           # from there on the same panes are judged, and none of before
            assert (fatal, life.alarms()) == (fatal, undisturbed.alarms())
        assert life.lives == 2, "the service was never killed"
        shutil.rmtree(life.folder)
    assert life.was_back, "the instants do not reach the cut-over"


def test_a_version_that_comes_back_goes_on_numbering_its_episodes_and_leaves_its_old_panes(
        before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(before, tmp_path / "life", None, monkeypatch)
    db = sqlite3.connect(life.folder / "state.db")
    left = "WHERE version = '1' AND pane = (SELECT max(pane) FROM panes WHERE version = '1')"
    with db:                                        # version 1 ended with a pane that was not decided
        (pane,) = db.execute(f"SELECT pane FROM panes {left}").fetchone()
        db.execute(f"UPDATE panes SET decided = 0 {left}")
    db.close()
    reseal(life.folder / "state.db")
    life.run()
    assert life.rows(f"SELECT decided FROM panes WHERE version = '1' AND pane = {pane}") == [(2,)]
    alarms = [json.loads(text) for (text,) in life.rows("SELECT document FROM alarms ORDER BY seq")]
    drifts = [(one["version"], one["episode"]) for one in alarms if one["state"] == "raised" and not one["cause"]]
    assert len(drifts) == len(set(drifts))
    assert drifts[0] == ("1", 1)
    assert drifts[-1] == ("1", 2)


def test_what_cannot_be_rolled_back_to_is_refused_in_one_line_and_changes_nothing(
        before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(before, tmp_path / "life", None, monkeypatch)
    stages = life.service()
    try:
        for to, words in (("2", "m: expected an earlier version, got '2', which is the champion; --to may name 1"),
                          ("9", "m: expected a version that was champion and whose reference is kept, got '9'; --to may name 1")):
            stages.inbox.put(replace_version(ASKED, to))
            (answer,) = stages._answer()
            assert (answer[1].taken, answer[1].words) == (False, words)
        stages.inbox.put(ASKED)
        stages.inbox.put(ASKED)                     # twice before the loop turns
        first, second = stages._answer()
        assert first[1].taken
        assert first[1].launch == second[1].launch
        stages.commit(Batch(), now=True)
        stages.inbox.put(replace_version(ASKED, "9"))
        assert "expected no promotion under way, got launch" in stages._answer()[0][1].words
        for _ in range(3):
            stages.advance()
        assert stages.panes.streams["m"].version == "1"
        stages.inbox.put(ASKED)
        assert stages._answer()[0][1].words == (
            "m: expected a champion that was promoted, got version 1, with which the monitor began or to which it went back: "
            "there is nothing to go back to; --to may name 2")
        stages.inbox.put(replace_version(ASKED, "2"))
        assert stages._answer()[0][1].taken
        stages.commit(Batch(), now=True)
        for _ in range(3):
            stages.advance()
        assert stages.panes.streams["m"].version == "2"
        assert json.loads((life.folder / "promoted.json").read_text())["model_uri"] == "/models/2"
    finally:
        stages.close()


def replace_version(asked: Asked, version: str) -> Asked:
    return asked._replace(version=version)
