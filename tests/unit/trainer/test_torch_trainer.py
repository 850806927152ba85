"""The PyTorch trainer keeps the contract: what it leaves, what it survives, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file

from detectors.reference import Reference
from monitor.flow import Launch
from monitor.retrain.challenger import judge

from .conftest import AT, START_MS, TRAINER, Train, captured, environment

#: Small batches make an epoch slow enough to be killed in.
EPOCHS = ("--epochs", "4", "--patience", "4", "--batch-size", "32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """One undisturbed training."""
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    done = subprocess.run([sys.executable, str(TRAINER), "--score", "score", *EPOCHS], capture_output=True, text=True,
                          env=environment(data, output), timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (output / "log.txt").write_text(done.stdout)
    return output


def launch_of(output: Path) -> Launch:
    return Launch("0123456789ab", "m", "7", 1, "local", "succeeded", "{}", (("succeeded", 0.0),), output_uri=str(output))


def test_the_challenger_is_judged_better_by_tidemark_itself(trained: Path) -> None:
    verdict, result = judge(launch_of(trained), metric="accuracy", events_min=200)
    assert (verdict.verdict, result is not None and result.version) == ("better", "7.r012345")


def test_every_epoch_is_one_progress_line(trained: Path) -> None:
    lines = (trained / "log.txt").read_text().splitlines()
    assert [f"epoch {i}/4" for i in range(1, 5)] == [" ".join(line.split()[:2]) for line in lines[1:-1]]


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
    assert {column.name: column.role for column in reference.columns} == {
        "x": "input", "noise": "input", "colour": "input", "prediction": "prediction", "score": "score"}
    row = reference.records[reference.rows.index("prediction")]
    counts = dict(zip(row.binning.labels(), row.counts.tolist(), strict=True))
    assert (settled.count("yes"), settled.count("no")) == (counts["yes"], counts["no"])


def test_a_killed_training_resumes_and_ends_with_the_very_weights_of_an_undisturbed_one(
    trained: Path, data: Path, tmp_path: Path, train: Train,
) -> None:
    output = tmp_path / "output"
    victim = subprocess.Popen([sys.executable, str(TRAINER), "--score", "score", *EPOCHS], text=True,
                              env=environment(data, output), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert victim.stdout is not None
    for line in victim.stdout:
        if line.startswith("epoch 2/"):
            victim.send_signal(signal.SIGKILL)
            break
    assert victim.wait(30) == -signal.SIGKILL
    assert not (output / "result.json").exists()
    done = train(output, *EPOCHS)
    assert (done.returncode, "resumed after epoch" in done.stdout) == (0, True)
    expected, got = load_file(trained / "model.safetensors"), load_file(output / "model.safetensors")
    assert expected.keys() == got.keys()
    assert all(np.array_equal(expected[name], got[name]) for name in expected)
    assert (trained / "holdout.parquet").read_bytes() == (output / "holdout.parquet").read_bytes()


def test_a_launch_that_has_its_result_is_not_trained_again(trained: Path, train: Train) -> None:
    before = os.stat(trained / "model.safetensors").st_mtime_ns
    begun = time.monotonic()
    done = train(trained, *EPOCHS)
    assert (done.returncode, done.stdout) == (0, "launch 0123456789ab has its result already\n")
    assert (os.stat(trained / "model.safetensors").st_mtime_ns, time.monotonic() - begun < 5) == (before, True)


def test_two_processes_train_one_model(tmp_path: Path, train: Train) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = train(tmp_path / "output", *EPOCHS, launch=torchrun)
    assert (done.returncode, done.stdout.count("epoch 1/4")) == (0, 1), done.stderr[-2000:]
    verdict, _ = judge(launch_of(tmp_path / "output"), metric="accuracy", events_min=200)
    assert verdict.verdict == "better"


def test_a_regression_with_a_loader_process_is_judged_in_the_labels_own_unit(tmp_path: Path, train: Train) -> None:
    captured(tmp_path / "data")
    table = parquet.read_table(tmp_path / "data")
    x = np.nan_to_num(table["x"].to_numpy())
    values = 1000 + 50 * x
    for name, numbers in (("label", values), ("prediction", values + 40)):
        table = table.set_column(table.column_names.index(name), name, [numbers])
    for file in (tmp_path / "data").iterdir():
        file.unlink()
    parquet.write_table(table, tmp_path / "data" / "events.parquet")
    # With a data-loader worker: a file system as large as this one is large enough for it.
    done = train(tmp_path / "output", "--epochs", "4", "--workers", "1", "--shared-memory", str(tmp_path),
                 TIDEMARK_DATA_URI=str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    verdict, _ = judge(launch_of(tmp_path / "output"), metric="mean_absolute_error", events_min=200)
    assert (verdict.verdict, verdict.champion) == ("better", pytest.approx(40))
    assert verdict.challenger is not None
    assert verdict.challenger < 15


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    return done.stderr


def test_data_loader_workers_are_refused_where_shared_memory_is_too_small(tmp_path: Path, train: Train) -> None:
    # A folder of a file system that cannot hold what so many workers keep ready stands for a small /dev/shm.
    line = refused(train(tmp_path / "output", "--workers", "64", "--batch-size", "2000000000",
                         "--shared-memory", str(tmp_path)))
    assert "MB free for 64 data-loader workers, got" in line
    assert "emptyDir" in line
    assert "--workers 0" in line


@pytest.mark.parametrize(("changes", "arguments", "words"), [
    ({"TIDEMARK_LAUNCH_ID": ""}, (), "TIDEMARK_LAUNCH_ID: expected in the environment"),
    ({"TIDEMARK_DATA_URI": "/nowhere"}, (), "expected a folder of Parquet files, got nothing at /nowhere"),
    ({"TIDEMARK_REASON": "{"}, (), "TIDEMARK_REASON: expected JSON"),
    ({"TIDEMARK_REASON": '{"window": {"since": "soon"}}'}, (), "TIDEMARK_REASON: expected JSON"),
    ({}, ("--label", "truth"), "expected a column 'truth'"),
    ({}, ("--label", "noise", "--task", "classification"), "expected at most 1,000 classes"),
    ({}, ("--task", "regression"), "column label: expected numbers for a regression, got text"),
])
def test_what_a_second_attempt_cannot_help_is_refused_in_one_line(
    tmp_path: Path, train: Train, changes: dict[str, str], arguments: tuple[str, ...], words: str,
) -> None:
    assert words in refused(train(tmp_path / "output", *arguments, **changes))


def test_too_few_events_are_refused(tmp_path: Path, train: Train) -> None:
    captured(tmp_path / "data", 60)
    line = refused(train(tmp_path / "output", TIDEMARK_DATA_URI=str(tmp_path / "data")))
    assert "raise retrain.collect_events" in line


def test_an_unexpected_error_is_one_line_and_exit_code_1(tmp_path: Path, train: Train) -> None:
    (tmp_path / "output").write_text("a file where the folder should be")
    done = train(tmp_path / "output")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_the_metrics_of_the_result_are_those_of_the_held_out_events(trained: Path) -> None:
    held = parquet.read_table(trained / "holdout.parquet").to_pydict()
    metrics = json.loads((trained / "result.json").read_text())["metrics"]
    for name, column in (("accuracy", "challenger_prediction"), ("champion_accuracy", "champion_prediction")):
        right = [answer == label for answer, label in zip(held[column], held["label"], strict=True)]
        assert np.mean(right) == pytest.approx(metrics[name])
