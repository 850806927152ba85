"""The demo's world, its served model and its views."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from detectors.profile import Profile
from detectors.reference import Column, Reference
from detectors.scan import Ring, Scan
from monitor.demo.main import Options, run_demo
from monitor.demo.serve import ServedModel, Traffic, encode
from monitor.demo.view import JsonStory, LiveStory, PlainStory, Scene, top_columns
from monitor.demo.world import PIXELS, Camera, tilt_matrix
from monitor.errors import ConfigError
from monitor.flow import Evaluation, Window


def test_a_camera_that_hangs_straight_changes_nothing() -> None:
    assert np.allclose(np.eye(64), tilt_matrix(0.0, 0.0))


def test_a_quarter_turn_is_the_turn_of_the_image() -> None:
    image = np.arange(64.0)
    assert np.allclose(np.rot90(image.reshape(8, 8)), (tilt_matrix(90.0, 0.0) @ image).reshape(8, 8))


def test_the_same_seed_shows_the_same_frames() -> None:
    one, two = (Camera(5).frames([False, True, False]) for _ in range(2))
    assert np.array_equal(one.images, two.images)


def test_grey_values_stay_in_the_sensors_range() -> None:
    images = Camera(5).frames([True] * 500).images
    assert (images.min(), images.max()) == (0.0, 16.0)


def write_model(folder: Path, columns: tuple[str, ...] = PIXELS) -> Path:
    """A model that answers with the digit of the brightest of the first ten pixels."""
    save_file({"layer0.weight": np.eye(10, 64, dtype=np.float32), "layer0.bias": np.zeros(10, np.float32)},
              folder / "model.safetensors")
    described = {"version": "3", "classes": [str(digit) for digit in range(10)],
                 "columns": [{"name": name, "kind": "numeric", "mean": 8.0, "scale": 4.0} for name in columns]}
    (folder / "model.json").write_text(json.dumps(described))
    return folder / "model.json"


def test_the_served_model_answers_as_its_weights_say(tmp_path: Path) -> None:
    model = ServedModel(write_model(tmp_path))
    images = np.full((2, 64), 8.0)
    images[0, 7], images[1, 2] = 16.0, 12.0
    answers, scores = model(images)
    assert (model.version, answers) == ("3", ["7", "2"])
    assert scores == pytest.approx([np.e**2 / (np.e**2 + 9), np.e / (np.e + 9)])


def test_a_model_of_other_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a model of the 64 pixels, got 1 other columns"):
        ServedModel(write_model(tmp_path, ("age",)))


def test_an_event_says_everything_that_the_monitor_reads() -> None:
    frames = Camera(5).frames([False])
    (value,) = encode(41, np.array([1_700_000_000_123.0]), frames, ["4"], np.array([0.123456789]), ["9"])
    event = json.loads(value)
    assert list(event["features"].values()) == frames.images[0].tolist()
    del event["features"]
    assert event == {"id": "e41", "ts": 1_700_000_000_123, "prediction": "4", "score": 0.123456789, "label": "9"}


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A decided pane in which column b has moved."""
    rng = np.random.default_rng(2)
    rows = {"a": rng.normal(size=2000), "b": rng.normal(size=2000)}
    reference = Reference.fit(rows, [Column("a", "numeric"), Column("b", "numeric")], model="m", version="1")
    ring = Ring(reference)
    profile = reference.profile({"a": rng.normal(size=500), "b": rng.normal(1.0, 1.0, size=500)})
    ring.push(profile)
    window = Window("m", "1", "all", 0, 0.0, 1.0, Profile.empty(reference) + profile)
    evaluation = Evaluation(window, Scan(reference)(ring), (), "drift", 1, 0.0)
    return Scene(61.0, "drifting", "http://127.0.0.1:1/metrics", 1000.0, 5, Traffic(9, "1", 0.5, True), evaluation,
                 None, (0.1, 5.0))


def test_the_column_that_moved_stands_first(scene: Scene) -> None:
    assert scene.evaluation is not None
    assert [moved.name for moved in top_columns(scene.evaluation)] == ["b", "a"]


def test_the_live_view_shows_state_rate_columns_and_story(scene: Scene) -> None:
    from rich.console import Console

    out = io.StringIO()
    live = LiveStory(out)
    live.show(scene)
    live.tell("training", 1.0, "epoch 1", {})
    live.tell("training", 2.0, "epoch 2", {})
    Console(file=out, width=120).print(live._picture())
    shown = out.getvalue()
    for words in ("drift", "1,000 events/s", "accuracy 50.0%", "mean", "http://127.0.0.1:1/metrics", "1:01", "epoch 2"):
        assert words in shown
    assert "epoch 1" not in shown                     # epochs replace one another


def test_programs_get_one_json_object_per_event_and_nothing_else(scene: Scene) -> None:
    out = io.StringIO()
    with JsonStory(out) as story:
        story.show(scene)
        story.tell("alarm", 1.2345, "Alarm.", {"score": 2.0})
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [{"event": "alarm", "at": 1.23, "score": 2.0}]


def test_without_a_terminal_how_things_stand_is_one_line_in_ten_seconds(scene: Scene) -> None:
    out = io.StringIO()
    with PlainStory(out) as story:
        for _ in range(3):
            story.show(scene)
    (line,) = out.getvalue().splitlines()
    assert "drifting, 1,000 events/s, accuracy 50.0% (version 1), drift" in line


def test_a_demo_whose_time_is_over_says_what_did_not_happen_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    out = io.StringIO()
    assert run_demo(Options(seconds=0.0), JsonStory(out)) == 1
    last = json.loads(out.getvalue().splitlines()[-1])
    assert last["event"] == "failed"
    assert last["reason"].startswith("expected the first model within 90 s")
    assert list(tmp_path.iterdir()) == []
