"""`tidemark rollback` and its route: the running service is asked with the token, and answers what it will do or why not."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from monitor.cli import main
from monitor.config import parse
from monitor.expose.api import Server, application
from monitor.flow import Batch, Launch
from monitor.ingest.source import MemorySource
from monitor.pipeline import Stages
from monitor.service import build
from tests.crash import world

TOKEN = "0123456789abcdef"


class Running:
    """A service with its port, whose loop turns in a thread of its own while a request waits."""

    def __init__(self, folder: Path, **retrain: Any) -> None:
        path = world.configuration(folder, "127.0.0.1:9", "t", promote=True)
        tree = yaml.safe_load(path.read_text())
        tree["service"]["dead_letters"] = "none"
        file = {"type": "file", "path": str(folder / "champion.json"), "settle_seconds": 0}
        tree["monitors"][0]["retrain"] |= {"promote": file, **retrain}
        now = itertools.count(100, 20)
        self.stages: Stages = build(parse(yaml.safe_dump(tree)), source=MemorySource([]), clock=lambda: float(next(now)))
        self.stages.commit(Batch(), now=True)
        self.server = Server(application(self.stages.exporter, TOKEN, inbox=self.stages.inbox), "127.0.0.1", 0)
        self.server.start()
        (folder / "token").write_text(TOKEN)
        tree["service"] |= {"listen": f"127.0.0.1:{self.server.port}", "token_file": str(folder / "token")}
        self.config = str(path)
        path.write_text(yaml.safe_dump(tree))
        self.over = threading.Event()
        self.loop = threading.Thread(target=self._turn, daemon=True)

    def _turn(self) -> None:
        while not self.over.wait(0.01):
            self.stages.commit(Batch())
            self.stages.advance()

    def promoted(self) -> Launch:
        """Version 1 was replaced by version 2 just now."""
        digest = self.stages.judge.scans["m"].reference.digest
        launch = Launch("3f9c2a1b7d4e", "m", "1", 1, "local", "promoted", "{}", (("promoted", 1.0),), new_version="2",
                        model_uri="/models/2", reference_uri=f"state:{digest}", previous_digest=digest)
        self.stages.trigger.ledger.put(launch)
        self.stages.commit(Batch(), now=True)
        self.stages.advance()
        self.stages.advance()
        assert self.stages.panes.streams["m"].version == "2"
        return launch

    def close(self) -> None:
        self.over.set()
        if self.loop.is_alive():
            self.loop.join(10)
        self.server.stop()
        self.stages.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    service = Running(tmp_path, model_uri="/models/1")
    yield service
    service.close()


def test_a_model_goes_back_by_one_command_and_the_trail_says_who_and_why(
        running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running.promoted()
    running.loop.start()
    assert main(["rollback", "m", "-c", running.config, "--why", "wrong answers", "--by", "alice"]) == 0
    assert "m goes back from version 2 to 1 (launch " in " ".join(capsys.readouterr().out.split())
    running.over.set()
    running.loop.join(10)
    for _ in range(3):
        running.stages.advance()
    assert running.stages.panes.streams["m"].version == "1"
    told = json.loads((tmp_path / "champion.json").read_text())
    assert (told["version"], told["model_uri"], told["cause"]) == ("1", "/models/1", "rollback")
    (entry,) = running.stages.trigger.ledger.entries
    assert (entry.action, entry.by, entry.why, entry.taken) == ("rollback", "token:alice", "wrong answers", True)
    assert main(["triggers", "list", "-c", running.config]) == 0
    assert "rolled back from version 2 to 1 by hand: wrong answers" in " ".join(capsys.readouterr().out.split())


def test_with_nothing_to_go_back_to_one_line_says_so(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    running.loop.start()
    assert main(["rollback", "m", "-c", running.config]) == 1
    assert "there is nothing to go back to" in " ".join(capsys.readouterr().out.split())
    assert main(["rollback", "m", "--to", "0", "-c", running.config]) == 1
    assert "expected a version that was champion and whose reference is kept, got '0': there is none" in " ".join(
        capsys.readouterr().out.split())
    assert main(["rollback", "other", "-c", running.config]) == 2
    assert "expected one of the models m" in capsys.readouterr().err


def test_where_the_earlier_model_is_must_be_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = Running(tmp_path)
    try:
        service.promoted()
        service.loop.start()
        assert main(["rollback", "m", "-c", service.config]) == 1
        said = " ".join(capsys.readouterr().out.split())
        assert "expected to know where the model of version 1 is, but nothing has said so; set retrain.model_uri" in said
    finally:
        service.close()


def test_without_a_promotion_there_is_no_roll_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = Running(tmp_path, promote=None)
    try:
        service.loop.start()
        assert main(["rollback", "m", "-c", service.config]) == 1
        assert "expected a monitor with retrain.promote, got one without" in " ".join(capsys.readouterr().out.split())
    finally:
        service.close()


def test_the_route_needs_the_token_and_a_body_that_can_be_read(running: Running) -> None:
    running.loop.start()
    url = f"http://127.0.0.1:{running.server.port}/api/v1/monitors/m/rollback"
    assert httpx.post(url).status_code == 401
    head = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.post(url, headers=head, content=b"[").status_code == 400
    assert httpx.post(url.replace("/m/", "/x/"), headers=head).status_code == 404
    answer = httpx.post(url, headers=head, json={"version": "1"})
    assert (answer.status_code, answer.json()["done"]) == (409, False)
    assert "which is the champion" in answer.json()["words"]
