"""What is rendered is what is checked in, complete, and the same every time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from dashboards.render import configuration_page, differing, main, metrics_page, pages, render, structs
from monitor import config
from monitor.config_reference import FIELDS
from monitor.metrics import CATALOGUE, LABELS

CHECKOUT = Path(__file__).resolve().parents[2]


def test_every_rendered_page_is_checked_in_as_the_code_renders_it_now():
    assert differing(CHECKOUT) == [], "run `make render` and read the difference"


def test_every_field_of_the_configuration_is_described_and_nothing_else():
    described = {(struct, field) for struct, fields in FIELDS.items() for field in fields}
    known = {(struct.__name__, field.name) for _, struct in structs(config.Config)
             for field in msgspec.structs.fields(struct)}
    assert known == described


def test_every_description_is_whole_sentences_and_says_units_in_words():
    for fields in FIELDS.values():
        for name, (unit, text) in fields.items():
            assert text[0].isupper() or not text[0].isalpha(), name
            assert text.endswith("."), name
            assert "  " not in text + unit, name
            for suffix, word in (("_seconds", "seconds"), ("_hours", "hours"), ("_bytes", "bytes"), ("_mb", "MiB")):
                assert not name.endswith(suffix) or unit == word, name


def test_the_pages_name_every_metric_label_and_field():
    metrics, configuration = metrics_page(), configuration_page()
    assert [name for name in (*CATALOGUE, *LABELS) if f"| `{name}` |" not in metrics] == []
    fields = [field.encode_name for _, struct in structs(config.Config) for field in msgspec.structs.fields(struct)]
    assert [field for field in fields if f"| `{field}` |" not in configuration] == []


@pytest.mark.parametrize("path", list(pages()))
def test_every_row_of_a_table_has_as_many_cells_as_its_head(path):
    cells = 0
    for line in pages()[path].splitlines():
        if not line.startswith("|"):
            cells = 0
            continue
        found = line.replace("\\|", "").count("|")
        assert found == (cells or found), line
        cells = found


def test_rendering_in_another_process_gives_the_same_bytes(tmp_path):
    subprocess.run([sys.executable, "-m", "dashboards.render", "--root", tmp_path], cwd=CHECKOUT, check=True,
                   env={"PYTHONHASHSEED": "12345"}, capture_output=True)
    assert {path: (tmp_path / path).read_text(encoding="utf-8") for path in pages()} == pages()


def test_check_names_a_page_that_was_changed_by_hand_and_writes_nothing(tmp_path, capsys):
    assert sorted(render(tmp_path)) == sorted(tmp_path / path for path in pages())
    assert render(tmp_path) == []
    assert main(["--check", "--root", str(tmp_path)]) == 0
    page = tmp_path / "docs" / "metrics.md"
    page.write_text("by hand\n", encoding="utf-8")
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert page.read_text(encoding="utf-8") == "by hand\n"
    assert capsys.readouterr().err == (
        "docs/metrics.md: expected what the code renders, got something else; run `make render`\n")
