"""A challenger in shadow over the webhook promotion: the whole service, real captures and HTTP, and a serving that does as told.

The serving program takes signed events: told of a shadow it logs the challenger's answers in the named column of its events,
told of its end it stops, told of a promotion it answers by the new model. The service is stopped and started from its state
at every stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from detectors.reference import Reference
from monitor.config import Config, parse
from monitor.flow import Batch, Launch
from monitor.ingest.source import MemorySource, records
from monitor.pipeline import Stages
from monitor.service import build
from tests.contract_server import Answer, Asked, ContractServer, said
from tests.crash import world
from tests.unit.retrain.rest_servers import Receiver

TOPIC, SECRET, PER_PART = "t", "0123456789abcdef0123456789abcdef", 3_000
SHADOW, OVER, PROMOTED = "dev.tidemark.shadow", "dev.tidemark.shadow.ended", "dev.tidemark.promotion"


class Serving(Receiver):
    """Answers by the champion, which is right in 70 %, and logs what it was told to log."""

    def __init__(self, right: float) -> None:
        super().__init__(SECRET.encode())
        self.right, self.column, self.version, self.told = right, "", "1", list[str]()
        self.rng, self.served = np.random.default_rng(5), 0

    def __call__(self, asked: Asked) -> Answer:
        if asked.method == "GET":
            assert asked.path == "/live/2"
            return said({"version": self.version})
        answer = super().__call__(asked)
        event = asked.document
        self.told.append(event["type"])
        if event["type"] == SHADOW:
            assert (event["data"]["stage"], event["data"]["model_uri"]) == ("shadow", "/models/2")
            self.column = event["data"]["column"]
        elif event["type"] == OVER:
            self.column = ""
        elif event["type"] == PROMOTED:
            self.version = event["data"]["version"]
        return answer

    def serve(self, shift: float) -> Iterator[bytes]:
        """The next events; a minute of event time."""
        for _ in range(PER_PART):
            truth = int(self.rng.integers(0, 2))
            champion, challenger = (str(truth if self.rng.random() < share else 1 - truth) for share in (0.7, self.right))
            event = {"id": f"e{self.served}", "ts": world.START_MS + 20 * self.served, "c": "abc"[self.served % 3], "y": champion,
                     "x": float(self.rng.normal(shift)), "truth": str(truth)}
            yield json.dumps(event | ({self.column: challenger} if self.column else {})).encode()
            self.served += 1


class World:
    """The service over one state file, its events so far, and the clock."""

    def __init__(self, folder: Path, server: ContractServer, serving: Serving) -> None:
        (folder / "secret").write_text(SECRET)
        tree = yaml.safe_load(world.configuration(folder, "127.0.0.1:9", TOPIC, promote=False).read_text())
        tree["service"]["dead_letters"] = "none"
        tree["monitors"][0]["retrain"] |= {
            "collect_events": 10**9, "shadow": {"prediction": "challenger_answer", "hours": 1, "events_min": 500},
            "promote": {"type": "webhook", "url": f"{server.url}/hook", "secret_file": str(folder / "secret"),
                        "confirm_url": f"{server.url}/live/{{version}}", "settle_seconds": 0}}
        self.folder, self.serving, self.now = folder, serving, 1_000.0
        self.config: Config = parse(yaml.safe_dump(tree))
        self.messages: list[bytes] = []

    def clock(self) -> float:
        self.now += 1.0
        return self.now

    def live(self, shift: float, judged: Any = None) -> Launch:
        """One life of the service, in which the next events come; `judged` is put in place of a launch that would train."""
        self.messages.extend(self.serving.serve(shift))
        batch = Batch(parts=(records(TOPIC, 0, self.messages, first_offset=0, times=[0] * len(self.messages)),),
                      assigned=frozenset({(TOPIC, 0)}))
        stages = build(self.config, source=MemorySource([batch]), clock=self.clock)
        try:
            stages.run()
            if judged is not None:
                judged(stages)
            for _ in range(5):
                self.now += 61.0
                stages.advance()
                stages.commit(Batch(), now=True)
            (launch,) = stages.trigger.ledger.launches.values()
            return launch
        finally:
            stages.close()


@pytest.mark.parametrize(("right", "state", "verdict", "told"), [
    (0.9, "promoted", "better", [SHADOW, OVER, PROMOTED]), (0.5, "refused", "worse", [SHADOW, OVER])])
def test_a_challenger_answers_in_shadow_before_a_webhook_promotes_it(
        tmp_path: Path, right: float, state: str, verdict: str, told: list[str]) -> None:
    serving = Serving(right)

    def judged(stages: Stages) -> None:
        (launch,) = stages.trigger.ledger.launches.values()
        Reference.from_json(stages.judge.scans["m"].reference.to_json()).save(tmp_path / "new.json")
        stages.trigger.ledger.put(replace(
            launch, state="judged", steps=(*launch.steps, ("judged", 1_000.0)), verdict="better", new_version="2",
            champion=0.7, challenger=0.9, model_uri="/models/2", reference_uri=str(tmp_path / "new.json"), detail="held back"))

    with ContractServer(serving) as server:
        here = World(tmp_path, server, serving)
        launch = here.live(2.0, judged)
        assert (launch.state, serving.told, serving.column) == ("judged", [SHADOW], "challenger_answer")
        assert launch.progress.startswith("in shadow: 0 of 500 labelled events with both answers")
        launch = here.live(2.0)
        assert (launch.state, launch.shadow_verdict, launch.verdict) == (state, verdict, verdict)
        assert launch.detail.removeprefix("the challenger is worse: ").startswith("in shadow: accuracy of 0.")
        assert "on 500 events" in launch.detail
        # A restart in between has sent the same event again: the same id, the same bytes.
        assert list(dict.fromkeys(serving.told)) == told
        assert [event["type"] for event in serving.events.values()] == told
        assert serving.column == ""
        assert serving.version == ("2" if state == "promoted" else "1")
        assert not list(tmp_path.glob("*.shadow.json"))
