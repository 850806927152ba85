"""The framework-free example keeps the contract, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detectors.reference import Reference
from monitor.flow import Launch
from monitor.retrain.challenger import judge

from .conftest import ROOT, captured, environment, rewritten

SCRIPT = ROOT / "examples" / "sklearn_trainer" / "train.py"


def run(data: Path, output: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT)], env=environment(data, output, **changes), capture_output=True, text=True,
                          timeout=120, check=False)


def test_the_example_without_a_framework_keeps_the_contract(data: Path, tmp_path: Path) -> None:
    done = run(data, tmp_path)
    assert done.returncode == 0, done.stderr
    launch = Launch("0123456789ab", "m", "7", 1, "local", "succeeded", "{}", (("succeeded", 0.0),), output_uri=str(tmp_path))
    verdict, result = judge(launch, metric="accuracy", events_min=200)
    assert result is not None
    reference = Reference.load(result.reference_uri)
    assert (verdict.verdict, result.version, reference.version) == ("better", "7-012345", "7-012345")
    watched = [(column.name, column.kind, column.role) for column in reference.columns]
    assert watched == [("x", "numeric", "input"), ("noise", "numeric", "input"), ("colour", "category", "input"),
                       ("prediction", "category", "prediction"), ("score", "numeric", "score")]


def test_the_example_without_a_framework_refuses_too_few_events(tmp_path: Path) -> None:
    captured(tmp_path / "data", 2_060)
    done = run(tmp_path / "data", tmp_path / "output")
    assert (done.returncode, len(done.stderr.splitlines())) == (78, 1)


@pytest.mark.parametrize(("changes", "code", "says"), [
    ({"TIDEMARK_COLUMNS": ""}, 64, "TIDEMARK_COLUMNS: expected JSON"),
    ({"TIDEMARK_COLUMNS": '[{"name": "x"}]'}, 64, "TIDEMARK_COLUMNS: expected JSON"),
    ({"TIDEMARK_COLUMNS": '[{"name": "x", "kind": "numeric", "role": "input"}]'}, 64, "expected one label and one prediction"),
    ({"TIDEMARK_COLUMNS": '[{"name": "absent", "kind": "numeric", "role": "label"}, {"name": "prediction", '
      '"kind": "category", "role": "prediction"}]'}, 78, "expected the columns ['absent']"),
    ({"TIDEMARK_LAUNCH_ID": ""}, 64, "TIDEMARK_LAUNCH_ID: expected in the environment"),
    ({"TIDEMARK_DATA_URI": "/nowhere"}, 78, "/nowhere: expected Parquet files, got none"),
    ({"TIDEMARK_REASON": "{"}, 1, "JSONDecodeError"),
])
def test_the_example_without_a_framework_says_in_one_line_what_is_wrong_and_whether_to_try_again(
    data: Path, tmp_path: Path, changes: dict[str, str], code: int, says: str,
) -> None:
    done = run(data, tmp_path, **changes)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert says in done.stderr


def test_the_example_without_a_framework_reads_folders_by_day_and_survives_absurd_numbers(data: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(size=6_000)
    noise[::5], noise[1::5], noise[2::5] = np.inf, -np.inf, np.nan
    rewritten(tmp_path / "data" / "noise=2023-11-14", data, noise=noise)
    done = run(tmp_path / "data", tmp_path / "output")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("done accuracy 0.9")
