"""A challenger in shadow: promoted when it is better there, too, refused when it is not, the same after a restart."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from detectors.reference import Column, Reference
from monitor import config
from monitor.config import parse
from monitor.config_retrain import Shadow
from monitor.errors import ConfigError
from monitor.flow import Launch
from monitor.retrain.launch import Retraining
from monitor.retrain.ledger import Ledger, launch_from_json, launch_to_json
from monitor.retrain.shadow import Shadows, Watching
from tests.crash import world

HOUR = 3600.0


def reference_of(version: str) -> Reference:
    return Reference.fit({"age": np.random.default_rng(1).normal(0, 1, 500)}, [Column("age", "numeric", "input")],
                         model="churn", version=version)


class World:
    """A judged launch, a stored outbox, real promotion files, and events that come as the test says."""

    def __init__(self, folder: Path, *, verdict: str = "better", **shadow) -> None:
        self.folder, self.now, self.reads = folder, 1000.0, 0
        reference_of("8").save(folder / "reference.json")
        self.policy = config.Retrain(
            launcher=config.LocalLauncher(command=["x"]), promote=config.FilePromotion(path=str(folder / "champion.json")),
            shadow=Shadow(**{"prediction": "shadow", "hours": 24.0, "events_min": 200, **shadow}))
        launch = Launch("3f9c2a1b7d4e", "churn", "7", 1, "local", "judged", "{}", (("judged", 0.0),), verdict=verdict,
                        champion=0.7, challenger=0.9, difference=0.2, difference_lower=0.1, difference_upper=0.3,
                        detail="held back", new_version="8", model_uri="m", reference_uri=str(folder / "reference.json"))
        self.disk = {launch.id: launch_to_json(launch)}
        self.rows: list[dict] = []
        self.newest = 5_000
        self.restart()

    def restart(self) -> None:
        self.service = Retraining(
            {"churn": self.policy}, Ledger([launch_from_json(text) for text in self.disk.values()]), {}, poll_seconds=0.0,
            save=lambda launch: self.disk.update({launch.id: launch_to_json(launch)}), snapshot=lambda _: "",
            reference=lambda _: reference_of("7"), rng=random.Random(1),
            shadows=Shadows({"churn": Watching("label", "answer", "shadow")}, self.events, lambda _: self.newest))

    def events(self, model: str, since_ms: int, names: list[str]) -> pa.Table:
        self.reads += 1
        rows = [row for row in self.rows if row["timestamp"] >= since_ms]
        return pa.table({name: pa.array([row[name] for row in rows], pa.int64() if name == "timestamp" else pa.string())
                         for name in [*names, "id", "timestamp"]})

    def come(self, n: int, *, champion: float = 0.7, challenger: float = 0.9, seed: int = 1, **fixed) -> None:
        rng = np.random.default_rng([seed, len(self.rows)])
        for i in range(n):
            label = int(rng.integers(0, 2))
            old, new = (str(label if rng.random() < right else 1 - label) for right in (champion, challenger))
            self.newest += 10
            self.rows.append({"label": str(label), "answer": old, "shadow": new, "id": f"{len(self.rows)}-{i}",
                              "timestamp": self.newest, **fixed})

    def turn(self, seconds: float = 61.0) -> Launch:
        self.now += seconds
        self.service.advance(self.now, lambda _: 0)
        return self.launch

    @property
    def launch(self) -> Launch:
        (launch,) = self.service.ledger.launches.values()
        return launch

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("champion*"))


def test_serving_is_told_of_the_challenger_in_a_file_of_its_own_and_the_champion_stays(tmp_path):
    world = World(tmp_path)
    world.turn()
    world.turn()
    assert (world.launch.state, world.files) == ("judged", ["champion.shadow.json"])
    told = json.loads((tmp_path / "champion.shadow.json").read_text())
    assert {name: told[name] for name in ("model", "version", "model_uri", "launch_id", "stage", "column")} == {
        "model": "churn", "version": "8", "model_uri": "m", "launch_id": "3f9c2a1b7d4e", "stage": "shadow", "column": "shadow"}
    assert world.launch.progress == "in shadow: 0 of 200 labelled events with both answers, 0.0 of 24 hours"


def test_a_challenger_that_is_better_in_shadow_is_promoted_with_the_figures_of_the_shadow(tmp_path):
    world = World(tmp_path)
    world.turn()
    world.come(199)
    world.turn()
    assert "199 of 200" in world.launch.progress
    world.come(60)
    world.turn()
    assert (world.launch.shadow_verdict, world.files) == ("better", [])
    end = world.turn()
    assert (end.state, world.files) == ("promoted", ["champion.json"])
    assert "in shadow: accuracy of" in end.detail
    assert "on 200 events" in end.detail
    assert "on held-back events: held back" in end.detail
    assert end.champion != 0.7


@pytest.mark.parametrize(("champion", "challenger", "verdict"), [(0.9, 0.7, "worse"), (0.8, 0.8, "not yet known")])
def test_a_challenger_that_is_not_better_in_shadow_is_refused_and_the_champion_stays(tmp_path, champion, challenger, verdict):
    world = World(tmp_path)
    world.turn()
    world.come(450, champion=champion, challenger=challenger)
    world.turn()
    if verdict == "not yet known":
        assert world.launch.state == "judged"
        world.turn(25 * HOUR)
    end = world.turn()
    assert (end.state, end.verdict, world.files) == ("refused", verdict, [])
    assert end.detail.startswith(f"the challenger is {verdict}: in shadow: accuracy of")


def test_without_answers_in_the_column_the_challenger_is_refused_with_what_to_look_at(tmp_path):
    world = World(tmp_path)
    world.turn()
    world.come(900, shadow=None)
    world.turn(25 * HOUR)
    end = world.turn()
    assert (end.state, end.verdict, end.champion) == ("refused", "not yet known", 0.7)
    assert "no labelled event with an answer in 'shadow' in 24 hours; does serving log it, and do labels come?" in end.detail


def test_answers_written_by_other_names_refuse_with_a_line_and_not_a_traceback(tmp_path):
    world = World(tmp_path)
    world.turn()
    world.come(300, shadow="stay", answer="leave")
    world.turn(25 * HOUR)
    end = world.turn()
    assert (end.state, end.verdict) == ("refused", "not yet known")
    assert "written alike" in end.detail


def test_events_from_before_the_shadow_are_not_compared(tmp_path):
    world = World(tmp_path)
    world.come(400)
    world.turn()
    world.turn()
    assert world.launch.progress.startswith("in shadow: 0 of 200")


def test_a_service_that_is_killed_at_any_turn_comes_to_the_same_end(tmp_path):
    ends = []
    for name, killed in (("whole", False), ("killed", True)):
        (tmp_path / name).mkdir()
        world = World(tmp_path / name)
        for turn in range(9):
            world.turn()
            if turn > 1:
                world.come(70, champion=0.78, challenger=0.84)
            if killed:
                world.restart()
        world.turn(25 * HOUR)
        world.turn()
        (launch,) = (launch_from_json(text) for text in world.disk.values())
        ends.append((launch.state, launch.verdict, launch.detail, launch.shadow_at, launch.shadow_since, world.files))
    assert ends[0] == ends[1]


def test_events_are_read_once_a_minute_however_often_the_loop_turns(tmp_path):
    world = World(tmp_path)
    world.turn()
    for _ in range(120):
        world.turn(1.0)
    assert world.reads == 2
    assert world.launch.progress.startswith("in shadow: 0 of 200")


def test_a_challenger_that_lost_on_held_back_events_or_cannot_be_judged_gets_no_shadow(tmp_path):
    world = World(tmp_path, verdict="worse")
    assert (world.turn().state, world.files) == ("refused", [])
    other = World(tmp_path)
    Reference.fit({"tall": np.random.default_rng(1).normal(0, 1, 500)}, [Column("tall", "numeric", "input")],
                  model="churn", version="8").save(tmp_path / "reference.json")
    assert (other.turn().state, other.files) == ("failed", [])
    assert "its reference does not fit" in other.launch.detail


def test_a_champion_that_changed_meanwhile_ends_the_shadow(tmp_path):
    world = World(tmp_path)
    world.turn()
    world.turn()
    world.service._version = lambda _: "9"
    assert (world.turn().state, world.files) == ("refused", [])


# -- the configuration ---------------------------------------------------------------------------------------------------

MONITOR = """
kafka: {{bootstrap_servers: ["k:9092"]}}
service: {{dead_letters: {letters}}}
monitors:
  - model: m
    topic: t
    reference: {folder}/reference.json
    histograms_only: {histograms}
    schema: {{columns: {{truth: {{role: label, kind: category}}}}}}
    detectors: {detectors}
    retrain:
      launcher: {{type: local, command: [x]}}
      {retrain}
"""


def configured(folder, retrain="", histograms="false", letters="none", detectors="[]"):
    world.reference(folder / "reference.json")
    return parse(MONITOR.format(folder=folder, retrain=retrain, histograms=histograms, letters=letters, detectors=detectors))


FILE = "promote: {type: file, path: /p/c.json}"


@pytest.mark.parametrize(("retrain", "words"), [
    ("shadow: {prediction: s}", r"retrain\.shadow: expected promote\.type file or webhook, .* got none"),
    ("promote: {type: kserve, name: x}\n      shadow: {prediction: s}",
     r"promote\.type file or webhook, .*got kserve, which answers no request by two models \(docs/promotion\.md\); add one"),
    (f"{FILE}\n      data_uri: /d\n      shadow: {{prediction: s}}", r"retrain\.shadow: expected captured events"),
    (f"{FILE}\n      metric: roc_auc\n      shadow: {{prediction: s}}", "which needs scores of both"),
    (f"{FILE}\n      capture_events: 100\n      shadow: {{prediction: s}}", r"events_min: expected at most capture_events"),
    (f"{FILE}\n      shadow: {{}}", r"shadow\.prediction: expected a value, got none"),
])
def test_a_shadow_that_could_not_work_is_one_line_before_anything_starts(tmp_path, retrain, words):
    with pytest.raises(ConfigError, match=words):
        configured(tmp_path, retrain)


def test_a_shadow_needs_one_label_and_a_column_of_its_own(tmp_path):
    from monitor.watched import watched

    with pytest.raises(ConfigError, match="expected a column that the reference does not watch, got 'x'"):
        watched(configured(tmp_path, f"{FILE}\n      shadow: {{prediction: x}}"))
    with pytest.raises(ConfigError, match="expected exactly one label column, got none"):
        watched(configured(tmp_path, f"{FILE}\n      shadow: {{prediction: truth}}"))
    (one,) = watched(configured(tmp_path, f"{FILE}\n      shadow: {{prediction: s}}"))
    assert one.schema().label_names == ("truth", "s")
    assert [label.name for label in one.labels()] == ["truth"]


@pytest.mark.parametrize(("changes", "words"), [
    ({"letters": "file:x.jsonl", "retrain": "data_uri: /d"}, "service.dead_letters: expected none"),
    ({}, r"retrain\.data_uri: expected where the trainer finds its data"),
])
def test_histograms_only_refuses_what_would_store_a_value(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        configured(tmp_path, histograms="true", **changes)


def test_histograms_only_refuses_detectors_that_need_rows(tmp_path):
    from monitor.watched import watched

    watched(configured(tmp_path, "data_uri: /d", "true", detectors="[{name: psi}]"))
    with pytest.raises(ConfigError, match=r"monitors\[0\]\.detectors: .*got 'cusum', which needs rows"):
        watched(configured(tmp_path, "data_uri: /d", "true", detectors="[{name: cusum}]"))
