"""Every benchmark runs on a tiny input: its results are equal and its ratios are printed; nothing here is timed."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.events import columns_of, messages, reference_of
from benchmarks.measure import Bench

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", benchmarks.known())
def test_a_benchmark_finds_equal_results_and_prints_ratios(name, tmp_path):
    written = tmp_path / "rows.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--scale", "0.01", "--repeat", "1", "--json", str(written)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode in (0, 1), done.stderr[-2000:]       # 1 is a missed target: tiny inputs have no fair time
    rows = json.loads(written.read_text())["rows"]
    assert [row["name"] for row in rows if row["detail"] == "results differ"] == []
    ratios = [row for row in rows if row["unit"] == "x"]
    assert ratios
    assert all(row["value"] is not None and math.isfinite(row["value"]) and row["value"] > 0 for row in ratios)
    assert all(row["name"] in done.stdout for row in ratios)
    assert re.search(r"\d x +[<>]= ", done.stdout)


def test_unequal_results_are_a_missed_target_whatever_the_times(capsys):
    bench = Bench("unequal", ["--repeat", "1"])
    bench.compare("one and two", peer=lambda: 1, ours=lambda: 2, target=0.0, equal=lambda a, b: a == b)
    assert bench.finish() == 1
    assert "results differ" in capsys.readouterr().out


def test_a_ratio_beside_its_target_decides_the_exit_code(capsys):
    for value, code in ((1.19, 0), (1.21, 1), (math.nan, 1)):
        bench = Bench("growth", [])
        bench.bound("window", value, at_most=1.2)
        assert bench.finish() == code
    assert "MISSED" in capsys.readouterr().out


def test_a_benchmark_that_does_not_exist_is_refused_in_one_line(capsys):
    assert benchmarks.main(["end_to_ent", "--quick"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("features", "size"), [(20, 480), (100, 2080)])
def test_events_have_the_size_that_the_figures_are_stated_for(features, size):
    values = [json.loads(value) for value in messages(features, 300)]
    assert np.mean([len(value) for value in messages(features, 300)]) == pytest.approx(size, rel=0.05)
    assert all(list(value["features"]) == [column.name for column in columns_of(features)] for value in values)
    nulls = np.mean([field is None for value in values for field in value["features"].values()])
    assert 0.003 < nulls < 0.02
    assert len(reference_of(features, 300).columns) == features
