"""docs/detectors.md is what the catalogue prints, complete."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from detectors import methods

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs" / "detectors.md"


def test_the_page_is_checked_in_as_the_catalogue_prints_it_now():
    printed = subprocess.run([sys.executable, "-m", "detectors.methods"], cwd=CHECKOUT, check=True, capture_output=True,
                             env={"PYTHONHASHSEED": "12345", "PYTHONIOENCODING": "ascii"}).stdout.decode("utf-8")
    assert methods.markdown() == printed
    assert PAGE.read_text(encoding="utf-8") == printed, "run `make render` and read the difference"


def test_the_page_has_a_row_for_every_name():
    rows = [line.split(" | ")[0].removeprefix("| ") for line in methods.markdown().splitlines() if line.startswith("| `")]
    assert sorted(set(rows)) == sorted(f"`{name}`" for name in methods.METHODS)


def test_every_row_of_a_table_has_as_many_cells_as_its_head():
    cells = 0
    for line in methods.markdown().splitlines():
        found = line.count("|") if line.startswith("|") else 0
        assert not (cells and found) or cells == found, line
        cells = found
