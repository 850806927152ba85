"""The notebook and the library page run: every code cell in order, in one namespace, in a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("**/*.ipynb"))
#: Seconds that one may take, on a machine with other things to do.
SECONDS_MAX = 120

#: Runs cells of standard input as a notebook would: one namespace, a cell's number in every traceback.
RUNNER = """
import json, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning)
warnings.filterwarnings("ignore", category=PendingDeprecationWarning)
namespace = {"__name__": "__main__"}
for number, source in enumerate(json.load(sys.stdin), start=1):
    exec(compile(source, f"<code cell {number}>", "exec"), namespace)
"""


def code_cells(path):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "code"]


def run_cells(cells, folder):
    environment = {**os.environ, "MPLBACKEND": "Agg", "MPLCONFIGDIR": str(folder), "PYTHONPATH": str(ROOT),
                   "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", RUNNER], input=json.dumps(cells), capture_output=True, text=True,
                          timeout=SECONDS_MAX, cwd=folder, env=environment, check=False)


def test_there_is_a_notebook():
    assert [path.name for path in NOTEBOOKS] == ["drift_in_a_notebook.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_its_assertions_hold(path, tmp_path):
    cells = code_cells(path)
    assert sum(cell.count("\nassert ") for cell in cells) >= 10
    done = run_cells(cells, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_every_block_of_the_library_page_runs(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "library.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) >= 8
    done = run_cells(blocks, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""


def test_a_cell_that_fails_fails_the_run(tmp_path):
    done = run_cells(["x = 1", "\nassert x == 2"], tmp_path)
    assert done.returncode == 1
    assert "<code cell 2>" in done.stderr
