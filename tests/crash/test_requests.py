"""What people asked, killed at every step: what was answered is kept, what was not is not half done, and a job is one job.

A life is a service with a manual policy over one state file, on a stream that has had its severe alarm, and one request:
to approve the proposal, to reject it, or a launch of its own with a key. `fatal` is the number of an instant (before or
after what the request passes through: the trigger, each write of the outbox, the reply, the launcher) at which the
service is gone. Then another one starts on the same file, and whoever had no answer asks again with the same words: the
end is that of an undisturbed life.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor.config import parse
from monitor.expose.inbox import Asked, Inbox, Reply
from monitor.flow import Batch, JobStatus, Launch
from monitor.ingest.source import MemorySource, records
from monitor.pipeline import Stages
from monitor.retrain.ledger import entry_from_json, launch_from_json
from monitor.retrain.trigger import Trigger
from monitor.service import build
from monitor.state.store import Store
from tests.crash import world

TOPIC, PERSON = "t", "token:ada"


class Killed(BaseException):
    """The service is gone; nobody may catch this."""


class Jobs:
    """A launcher that only remembers, as a cluster does: starting the same launch again finds the job that is there."""

    name = "local"

    def __init__(self) -> None:
        self.started: list[str] = []
        self.gone: set[str] = set()                 # finished, and removed by their time to live

    def start(self, launch: Launch) -> str:
        if launch.id not in self.started or launch.id in self.gone:
            self.started.append(launch.id)
            self.gone.discard(launch.id)
        return f"job-{launch.id}"

    def status(self, launch: Launch) -> JobStatus:
        return JobStatus("unknown", "not found") if launch.id in self.gone else JobStatus("running")

    def cancel(self, launch: Launch) -> None:
        self.gone.add(launch.id)


@pytest.fixture(scope="module")
def alarmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state file in which a launch is proposed."""
    folder = tmp_path_factory.mktemp("alarmed")
    tree = yaml.safe_load(world.configuration(folder, "127.0.0.1:9", TOPIC, promote=False).read_text())
    tree["service"] |= {"dead_letters": "none", "state": f"sqlite:///{folder}/state.db"}
    tree["monitors"][0]["retrain"] |= {"approval": "manual", "collect_events": 0, "cooldown_hours": 0}
    tree["monitors"][0]["quality"] = dict.fromkeys(("max_refused_share", "volume_factor", "silent_panes"))
    (folder / "tidemark.yaml").write_text(yaml.safe_dump(tree))
    batch = Batch(parts=tuple(records(TOPIC, p, values, times=[0] * len(values)) for p, values in world.messages().items()),
                  assigned=frozenset((TOPIC, p) for p in range(world.PARTITIONS)))
    stages = build(parse(yaml.safe_dump(tree)), source=MemorySource([batch]), clock=lambda: 1_000.0)
    stages.run()
    assert [launch.state for launch in stages.trigger.ledger.launches.values()] == ["proposed"]
    stages.close()
    return folder


class Life:
    """One service after another over one state file, which begins as a copy of the alarmed one."""

    def __init__(self, folder: Path, alarmed: Path, fatal: int, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        source, target = Store(alarmed / "state.db", read_only=True), folder / "state.db"
        source._db.execute("VACUUM INTO ?", (str(target),))
        source.close()
        tree = yaml.safe_load((alarmed / "tidemark.yaml").read_text())
        tree["service"]["state"] = f"sqlite:///{target}"
        tree["monitors"][0]["retrain"]["capture_uri"] = str(folder / "captured")
        self.folder, self.config, self.fatal, self.passed = folder, parse(yaml.safe_dump(tree)), fatal, 0
        self.jobs, self.now = Jobs(), 2_000.0
        self.replies: list[Reply] = []
        self.monkeypatch = monkeypatch

    def instant(self) -> None:
        self.passed += 1
        if self.passed == self.fatal:
            raise Killed

    def around(self, owner: Any, name: str) -> None:
        whole: Callable[..., Any] = getattr(owner, name)

        def mortal(*args: Any, **kwargs: Any) -> Any:
            self.instant()
            result = whole(*args, **kwargs)
            self.instant()
            return result

        self.monkeypatch.setattr(owner, name, mortal)

    def service(self) -> Stages:
        stages = build(self.config, source=MemorySource([]), clock=lambda: self.now)
        stages.retraining.launchers = {"m": self.jobs}
        stages.retraining._poll_seconds = 0.0
        return stages

    def run(self, asked: Asked, turns: int = 3) -> None:
        """Ask, turn the loop, die, and ask again where no answer came."""
        with self.monkeypatch.context() as patch:
            self.monkeypatch = patch
            for owner, name in ((Inbox, "reply"), (Trigger, "fire"), (Trigger, "approve"), (Trigger, "reject"),
                                (Store, "save_launch"), (Store, "append"), (Jobs, "start")):
                self.around(owner, name)
            for _ in range(2):
                stages: Stages | None = None
                try:
                    stages = self.service()
                    self.turn(stages, asked, turns)
                    return
                except Killed:
                    continue                        # gone with everything in memory; the file is what is left
                finally:
                    if stages is not None:
                        stages.store.close()

    def turn(self, stages: Stages, asked: Asked, turns: int) -> None:
        told = stages.inbox.reply

        def reply(one: Asked, what: Reply) -> None:
            told(one, what)
            self.replies.append(what)

        stages.inbox.reply = reply                  # type: ignore[method-assign]
        if not self.replies:
            stages.inbox.put(asked)
        for _ in range(turns):
            self.now += 10
            stages.commit(Batch())
            stages.advance()
        stages.commit(Batch(), now=True)

    def stored(self) -> tuple[list[Launch], list[tuple[str, bool]]]:
        store = Store(self.folder / "state.db", read_only=True)
        try:
            return ([launch_from_json(text) for text in store.history("launches")],
                    [(entry.action, entry.taken) for entry in map(entry_from_json, store.history("audit"))])
        finally:
            store.close()


def proposed(alarmed: Path) -> str:
    store = Store(alarmed / "state.db", read_only=True)
    try:
        return launch_from_json(store.history("launches")[0]).id
    finally:
        store.close()


def figures(life: Life) -> tuple[Any, ...]:
    launches, entries = life.stored()
    audit = [entry for entry in entries if entry[1]]        # who asks again may be told that it is too late
    return [(one.id, [state for state, _ in one.steps], one.by, one.why, one.key) for one in launches], audit, life.jobs.started


@pytest.mark.parametrize("action", ["approve", "reject", "fire"])
def test_killed_at_any_instant_a_request_is_done_once_and_a_launch_is_one_job(
        action: str, alarmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = proposed(alarmed)
    asked = Asked(action, launch, by=PERSON, why="seen") if action != "fire" else Asked(     # type: ignore[arg-type]
        "fire", model="m", by=PERSON, why="seen", key="k1")

    undisturbed = Life(tmp_path / "whole", alarmed, 0, monkeypatch)
    if action == "fire":
        reject(undisturbed, launch)
    undisturbed.run(asked)
    expected = figures(undisturbed)
    assert len(undisturbed.jobs.started) == (action != "reject")
    assert undisturbed.passed >= 8
    for fatal in range(1, undisturbed.passed + 1):
        life = Life(tmp_path / str(fatal), alarmed, 0, monkeypatch)
        if action == "fire":
            reject(life, launch)
        life.fatal = fatal
        life.run(asked)
        assert life.passed >= fatal, "the service was never killed"
        assert (fatal, expected) == (fatal, figures(life))


def reject(life: Life, launch: str) -> None:
    """The proposal of the alarm is out of the way."""
    life.run(Asked("reject", launch, by=PERSON), turns=1)
    life.replies, life.passed = [], 0


def test_who_is_told_that_it_is_done_is_told_after_it_is_stored(alarmed: Path, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(tmp_path / "life", alarmed, 0, monkeypatch)
    stages = life.service()
    seen: list[Any] = []

    def reply(asked: Asked, reply: Reply) -> None:
        seen.append((reply.taken, life.stored()[1]))

    stages.inbox.reply = reply                      # type: ignore[method-assign]
    stages.inbox.put(Asked("approve", proposed(alarmed), by=PERSON))
    stages.commit(Batch())
    stages.inbox.put(Asked("approve", "unknown", by=PERSON))
    stages.commit(Batch())
    stages.store.close()
    assert seen == [(True, [("approve", True)]), (False, [("approve", True), ("approve", False)])]


def test_a_finished_job_that_its_time_to_live_removed_does_not_run_again(alarmed: Path, tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster has forgotten the job; the outbox has not, through restarts and repeated requests."""
    life = Life(tmp_path / "life", alarmed, 0, monkeypatch)
    life.run(Asked("approve", proposed(alarmed), by=PERSON))
    (job,) = life.jobs.started
    life.jobs.gone.add(job)                         # it ended without a result, and was removed while we were away
    life.replies = []
    for _ in range(2):
        life.run(Asked("approve", proposed(alarmed), by=PERSON))
    (launch,), _ = life.stored()
    assert (launch.state, life.jobs.started) == ("failed", [job])
    assert "the job is gone and left no result.json" in launch.detail
