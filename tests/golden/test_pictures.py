"""The pictures of the documentation: there, small, named in a page, and drawn from every kind of panel that there is."""

from __future__ import annotations

import json
import re

import pytest

from docs.pictures.drawing import CAPTION, Prometheus, drawn
from docs.pictures.make import BOARDS, FOLDER, PICTURE_BYTES
from tests.conftest import CHECKOUT

GENERATED = sorted((CHECKOUT / "dashboards" / "generated").glob("*.json"))


class Answering(Prometheus):
    """A server that has two series for every query."""

    def __init__(self) -> None:
        super().__init__(0, 1_000.0, 1_120.0, {"model": "loans", "column": "rate"})
        self.asked: list[str] = []

    def _ask(self, path, **values):
        self.asked.append(values["query"])
        labels = [{"model": name, "column": name, "bin": name, "version": "1", "role": "input"} for name in ("loans", "<b>")]
        points = [[1_000.0 + second, str(second % 7)] for second in range(0, 120, 2)]
        return [{"metric": one, **({"value": [1_120.0, "1"]} if path == "query" else {"values": points})} for one in labels]


@pytest.mark.parametrize("path", GENERATED, ids=[path.stem for path in GENERATED])
def test_every_panel_of_every_dashboard_is_drawn_with_an_answer_to_each_of_its_queries(path):
    board, server = json.loads(path.read_text()), Answering()
    page = drawn(board, server, title=board["title"]).decode()
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert page.count('class="panel"') == len(panels)
    assert len(server.asked) == sum(len(panel["targets"]) for panel in panels)
    assert not any("$model" in query or "$job" in query or "$__" in query for query in server.asked)
    assert CAPTION.replace("'", "&#x27;") in page
    assert "<b>" not in page
    assert "nan" not in re.sub("<style>.*</style>", "", page, flags=re.DOTALL)


def test_every_picture_is_small_and_shown_on_a_page():
    pages = "".join(path.read_text() for path in [CHECKOUT / "README.md", *CHECKOUT.glob("docs/*.md")])
    pictures = sorted(FOLDER.glob("*.png"))
    assert len(pictures) >= 4 + len(BOARDS)
    assert [path.name for path in pictures if path.stat().st_size > PICTURE_BYTES] == []
    assert [path.name for path in pictures if f"pictures/{path.name}" not in pages] == []
