"""The framework-free example keeps the contract, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from detectors.reference import Reference
from monitor.flow import Launch
from monitor.retrain.challenger import judge

from .conftest import ROOT, captured, environment

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
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize(("columns", "says"), [
    ("", "TIDEMARK_COLUMNS: expected JSON"),
    ('[{"name": "x"}]', "TIDEMARK_COLUMNS: expected JSON"),
    ('[{"name": "x", "kind": "numeric", "role": "input"}]', "expected one label and one prediction"),
    ('[{"name": "absent", "kind": "numeric", "role": "label"}, {"name": "prediction", "kind": "category", '
     '"role": "prediction"}]', "expected the columns ['absent']"),
])
def test_the_example_without_a_framework_says_what_it_was_not_told(data: Path, tmp_path: Path, columns: str, says: str) -> None:
    done = run(data, tmp_path, TIDEMARK_COLUMNS=columns)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert says in done.stderr
