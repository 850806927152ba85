"""The framework-free example keeps the contract, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from detectors.reference import Reference
from monitor.flow import Launch
from monitor.retrain.challenger import judge

from .conftest import ROOT, captured, environment

SCRIPT = ROOT / "examples" / "sklearn_trainer" / "train.py"


def run(data: Path, output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT)], env=environment(data, output), capture_output=True, text=True,
                          timeout=120, check=False)


def test_the_example_without_a_framework_keeps_the_contract(data: Path, tmp_path: Path) -> None:
    done = run(data, tmp_path)
    assert done.returncode == 0, done.stderr
    launch = Launch("0123456789ab", "m", "7", 1, "local", "succeeded", "{}", (("succeeded", 0.0),), output_uri=str(tmp_path))
    verdict, result = judge(launch, metric="accuracy", events_min=200)
    assert result is not None
    reference = Reference.load(result.reference_uri)
    assert (verdict.verdict, result.version, reference.version) == ("better", "7-012345", "7-012345")


def test_the_example_without_a_framework_refuses_too_few_events(tmp_path: Path) -> None:
    captured(tmp_path / "data", 2_060)
    done = run(tmp_path / "data", tmp_path / "output")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
