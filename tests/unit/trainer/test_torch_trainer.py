"""The PyTorch trainer keeps the contract: what it leaves, and that tidemark judges it as the trainer says."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from detectors.reference import Column, Reference
from monitor.flow import Launch
from monitor.retrain.challenger import judge

from .conftest import AT, START_MS, Here, Train, rewritten, watched

EPOCHS = ("--epochs", "4", "--patience", "4", "--batch-size", "64")


def launch_of(output: Path) -> Launch:
    return Launch("0123456789ab", "m", "7", 1, "local", "succeeded", "{}", (("succeeded", 0.0),), output_uri=str(output))


@pytest.fixture
def trained(tmp_path: Path, here: Here, capsys: pytest.CaptureFixture[str]) -> Path:
    """One undisturbed training."""
    output = tmp_path / "trained"
    assert here(output, *EPOCHS) == 0, capsys.readouterr().err
    (output / "log.txt").write_text(capsys.readouterr().out)
    return output


def test_the_challenger_is_judged_better_by_tidemark_itself(trained: Path) -> None:
    verdict, result = judge(launch_of(trained), metric="accuracy", events_min=200)
    assert (verdict.verdict, result is not None and result.version) == ("better", "7.r012345")


def test_every_epoch_is_one_progress_line_with_loss_quality_and_time_to_go(trained: Path) -> None:
    lines = (trained / "log.txt").read_text().splitlines()
    for i, line in enumerate(lines[1:-1], start=1):
        words = line.split()
        assert words[:2] + [words[j] for j in (2, 4, 5, 7, 9, 11)] == [
            "epoch", f"{i}/4", "loss", "held-back", "loss", "accuracy", "eta", "s"]
        assert all(float(words[j]) >= 0 for j in (3, 6, 8, 10))
    assert len(lines) == 6
    assert (trained / "progress.txt").read_text().strip() in lines        # where a launcher far away finds one of them


def test_held_out_events_are_all_from_after_the_drift_and_spread_over_it(trained: Path) -> None:
    numbers = np.array([int(name[1:]) for name in parquet.read_table(trained / "holdout.parquet")["id"].to_pylist()])
    assert numbers.min() >= 2_000
    quarters = np.histogram(numbers, bins=4, range=(2_000, 6_000))[0]
    assert (quarters > 0.2 * len(numbers)).all()


def test_the_reference_describes_held_out_events_from_after_the_alarm_and_the_new_models_answers(trained: Path) -> None:
    reference = Reference.load(trained / "reference.json")
    held = parquet.read_table(trained / "holdout.parquet").to_pydict()
    settled = [answer for name, answer in zip(held["id"], held["challenger_prediction"], strict=True)
               if START_MS / 1000 + int(name[1:]) >= AT]
    assert (reference.model, reference.version, reference.inadequate) == ("m", "7.r012345", "")
    row = reference.records[reference.rows.index("prediction")]
    counts = dict(zip(row.binning.labels(), row.counts.tolist(), strict=True))
    assert (settled.count("yes"), settled.count("no")) == (counts["yes"], counts["no"])


def test_the_reference_has_the_columns_that_the_monitor_watches_in_their_order_and_kinds(
    data: Path, tmp_path: Path, here: Here,
) -> None:
    events = 6_000
    rng = np.random.default_rng(1)
    source = rewritten(
        tmp_path / "data", data, flag=pyarrow.array(rng.random(events) < 0.5), note=["fine so far"] * events,
        vector=pyarrow.array(rng.normal(size=(events, 3)).tolist()), route=["main"] * events,
        secret=rng.normal(size=events))
    columns = [Column("note", "text", "input"), Column("flag", "boolean", "input"), Column("x", "numeric", "input"),
               Column("vector", "embedding", "input"), Column("route", "category", "path"),
               Column("prediction", "category", "prediction"), Column("score", "numeric", "score")]
    told = [{"name": column.name, "kind": column.kind, "role": column.role} for column in columns]
    told.append({"name": "label", "kind": "category", "role": "label"})
    assert here(tmp_path / "output", "--epochs", "1", TIDEMARK_DATA_URI=str(source), TIDEMARK_COLUMNS=json.dumps(told)) == 0
    Reference.load(tmp_path / "output" / "reference.json").require(columns)
    model = json.loads((tmp_path / "output" / "model.json").read_text())
    assert [column["name"] for column in model["columns"]] == ["note", "flag", "x", "vector"]


def test_a_launch_that_has_its_result_is_not_trained_again(trained: Path, train: Train) -> None:
    before = os.stat(trained / "model.safetensors").st_mtime_ns
    begun = time.monotonic()
    done = train(trained, *EPOCHS)
    assert (done.returncode, done.stdout) == (0, "launch 0123456789ab has its result already\n")
    assert (os.stat(trained / "model.safetensors").st_mtime_ns, time.monotonic() - begun < 10) == (before, True)


def test_the_checkpoint_is_gone_when_the_result_is_there(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()} - {"log.txt", "progress.txt"}
    assert names == {"holdout.parquet", "model.json", "model.safetensors", "reference.json", "result.json",
                     "training_ids.parquet"}


def test_no_event_that_is_held_out_had_a_part_in_the_training(trained: Path) -> None:
    used, held = (parquet.read_table(trained / name)["id"].to_pylist() for name in ("training_ids.parquet", "holdout.parquet"))
    assert set(used).isdisjoint(held)
    metrics = json.loads((trained / "result.json").read_text())["metrics"]
    assert (len(used) > metrics["train_events"], len(held)) == (True, metrics["holdout_events"])


def test_the_class_that_scores_are_about_can_be_chosen(data: Path, tmp_path: Path, here: Here) -> None:
    said = np.array(parquet.read_table(data).sort_by("timestamp")["prediction"].to_pylist())
    source = rewritten(tmp_path / "data", data, score=np.where(said == "no", 0.8, 0.3))
    assert here(tmp_path / "output", *EPOCHS, "--positive", "no", TIDEMARK_DATA_URI=str(source)) == 0
    held = parquet.read_table(tmp_path / "output" / "holdout.parquet").to_pydict()
    for model in ("champion", "challenger"):
        scores, no = np.array(held[f"{model}_score"]), np.array(held[f"{model}_prediction"]) == "no"
        assert (scores[no].min() >= 0.5, scores[~no].max() <= 0.5) == (True, True)


def test_the_metrics_of_the_result_are_those_of_the_held_out_events(trained: Path) -> None:
    held = parquet.read_table(trained / "holdout.parquet").to_pydict()
    metrics = json.loads((trained / "result.json").read_text())["metrics"]
    for name, column in (("accuracy", "challenger_prediction"), ("champion_accuracy", "champion_prediction")):
        right = [answer == label for answer, label in zip(held[column], held["label"], strict=True)]
        assert np.mean(right) == pytest.approx(metrics[name])


def test_a_restored_model_gives_the_very_answers_of_the_holdout(trained: Path, data: Path) -> None:
    import contract
    import events
    import network

    model = network.restore((trained / "model.json").read_bytes(), (trained / "model.safetensors").read_bytes())
    read = events.read(str(data), contract.Roles("label", "prediction", "", ("x", "noise", "colour")), task="auto")
    held = parquet.read_table(trained / "holdout.parquet").to_pydict()
    answers, _ = model(read.rows(np.isin(read.ids, held["id"])).features)
    assert answers.tolist() == held["challenger_prediction"]


@pytest.mark.parametrize(("means", "champion"), [
    ("answer", lambda said, sure: sure),
    ("positive", lambda said, sure: np.where(said == "yes", sure, 1 - sure)),
])
def test_both_scores_of_the_holdout_are_probabilities_of_the_second_class_whatever_the_champion_logs(
    data: Path, tmp_path: Path, here: Here, means: str, champion: object,
) -> None:
    said = np.array(parquet.read_table(data).sort_by("timestamp")["prediction"].to_pylist())
    sure = np.random.default_rng(2).uniform(0.6, 1.0, len(said))
    source = rewritten(tmp_path / "data", data, score=champion(said, sure))  # type: ignore[operator]
    assert here(tmp_path / "output", *EPOCHS, TIDEMARK_DATA_URI=str(source)) == 0
    held = parquet.read_table(tmp_path / "output" / "holdout.parquet").to_pydict()
    for model in ("champion", "challenger"):
        scores, yes = np.array(held[f"{model}_score"]), np.array(held[f"{model}_prediction"]) == "yes"
        assert (scores[yes].min() >= 0.5, scores[~yes].max() <= 0.5) == (True, True)
    assert json.loads((tmp_path / "output" / "model.json").read_text())["score_means"] == means
    row = Reference.load(tmp_path / "output" / "reference.json")
    lowest = row.records[row.rows.index("score")].minimum
    assert (lowest < 0.4) == (means == "positive")


def test_a_regression_is_judged_in_the_labels_own_unit(data: Path, tmp_path: Path, here: Here) -> None:
    x = np.nan_to_num(parquet.read_table(data).sort_by("timestamp")["x"].to_numpy())
    values = 1000 + 50 * x
    label = values.copy()
    label[::100] = np.inf                                # a label that is no number is a label that is not known
    source = rewritten(tmp_path / "data", data, label=label, prediction=values + 40)
    assert here(tmp_path / "output", "--epochs", "4", TIDEMARK_DATA_URI=str(source),
                TIDEMARK_COLUMNS=watched(label="numeric", prediction="numeric")) == 0
    verdict, _ = judge(launch_of(tmp_path / "output"), metric="mean_absolute_error", events_min=200)
    assert (verdict.verdict, verdict.champion) == ("better", pytest.approx(40))
    assert verdict.challenger is not None
    assert verdict.challenger < 15


def test_images_are_trained_by_a_convolution_from_a_list_column_and_from_pixel_columns_alike(
    tmp_path: Path, here: Here,
) -> None:
    """A bright spot in the left or the right half of 8 x 8 pixels, anywhere: what a convolution sees at once."""
    rng, n = np.random.default_rng(5), 2_400
    right = rng.random(n) < 0.5
    images = rng.normal(0, 0.3, (n, 8, 8))
    images[np.arange(n), rng.integers(0, 8, n), rng.integers(0, 4, n) + 4 * right] += 4
    label = np.where(right, "right", "left").tolist()
    plain = {"id": [f"e{i}" for i in range(n)], "timestamp": START_MS + np.arange(n) * 1000, "label": label,
             "prediction": ["left"] * n}
    pixels = {f"p{i:02}": images.reshape(n, 64)[:, i] for i in range(64)}
    listed = {"image": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(images.reshape(-1)), 64)}
    nested = {"image": pyarrow.array(images.tolist())}
    metrics = []
    for name, columns, arguments, environment in (
            ("listed", listed, (), {"TIDEMARK_NETWORK": "image"}), ("nested", nested, (), {}),
            ("pixels", pixels, ("--network", "image", "--image-shape", "1x8x8"), {})):
        (tmp_path / name).mkdir()
        parquet.write_table(pyarrow.table({**plain, **columns}), tmp_path / name / "events.parquet")
        told = [{"name": column, "kind": "numeric" if name == "pixels" else "embedding", "role": "input"} for column in columns]
        told += [{"name": "prediction", "kind": "category", "role": "prediction"},
                 {"name": "label", "kind": "category", "role": "label"}]
        output = tmp_path / f"{name}-output"
        assert here(output, *arguments, "--epochs", "3", "--batch-size", "64", TIDEMARK_DATA_URI=str(tmp_path / name),
                    TIDEMARK_COLUMNS=json.dumps(told), TIDEMARK_REASON="{}", **environment) == 0
        model = json.loads((output / "model.json").read_text())
        assert (model["layout"]["network"], model["layout"]["image"]) == ("image", [1, 8, 8])
        metrics.append(json.loads((output / "result.json").read_text())["metrics"]["accuracy"])
    assert min(metrics) > 0.95
    assert metrics[0] == pytest.approx(metrics[1], abs=0.02)
