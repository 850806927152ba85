"""A run whose alarm has evidently draw its report, which is then read as a browser would read it: real rows, real evidently."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
import yaml

from monitor.cli import main
from monitor.config import parse
from monitor.errors import ConfigError
from monitor.expose.api import Server, application
from monitor.expose.report import routes
from monitor.flow import Batch
from monitor.ingest.source import MemorySource, records
from monitor.service import build
from monitor.state.seal import reseal
from tests.conftest import package
from tests.crash import world

package("evidently")
TOPIC, NAME = "t", "m-1-drift-1"
#: Attributes by which a document loads something.
LOADING = ("src", "href", "srcset", "data", "action", "formaction", "poster", "background")


class Memory(MemorySource):
    def lag(self):
        return {(TOPIC, partition): 0 for partition in range(world.PARTITIONS)}


def configuration(folder: Path, **reports) -> Path:
    path = world.configuration(folder, "127.0.0.1:9", TOPIC, promote=False)
    tree = yaml.safe_load(path.read_text())
    tree["service"]["dead_letters"] = "none"
    tree["monitors"][0].pop("retrain", None)
    tree["reports"] = reports
    path.write_text(yaml.safe_dump(tree))
    return path


def batches():
    return [Batch(parts=tuple(records(TOPIC, p, values, times=[0] * len(values)) for p, values in world.messages().items()),
                  assigned=frozenset((TOPIC, p) for p in range(world.PARTITIONS)))]


def started(folder: Path, source=None, **reports):
    return build(parse(configuration(folder, **reports).read_text()), source=source or Memory(batches()), clock=lambda: 0.0)


@dataclass
class Loaded(HTMLParser):
    """What a document says and what it would load."""

    text: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    script: str = ""
    _inside: str = ""

    def __post_init__(self):
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag, attrs):
        self._inside = tag if tag in ("script", "style") else ""
        self.loads += [value for name, value in attrs if name in LOADING and value]
        if tag == "meta" and dict(attrs).get("http-equiv", "").lower() == "refresh":
            self.loads.append(dict(attrs)["content"])

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.script += data
        elif self._inside == "style":
            self.loads += list(re.findall(r"url\(([^)]{0,200})", data)) + re.findall(r"@import[^;]{0,200}", data)
        else:
            self.text.append(data)


def read(html: str) -> Loaded:
    found = Loaded()
    found.feed(html)
    found.close()
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has ended, with its report made; the folder stays for the tests that begin anew on it."""
    folder = tmp_path_factory.mktemp("report")
    world.reference(folder / "reference.json")
    stages = started(folder)
    stages.run()
    waiting = stages.reporting.maker.shelf.facts(NAME)
    stages.reporting.maker.wait(300)
    stages.commit(Batch(), now=True)
    server = Server(application(stages.exporter, more=routes(stages.exporter)), "127.0.0.1", 0)
    server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False, timeout=60) as client:
        yield folder, stages, client, waiting
    server.stop()
    stages.close()


def test_an_alarm_has_its_report_made_beside_the_loop_within_its_time(run):
    _, stages, client, waiting = run
    assert waiting.state == "waiting"               # the loop had ended before evidently had
    found = stages.reporting.maker.shelf.facts(NAME)
    assert (found.state, found.rows[1]) == ("made", 1_000), found.why
    assert 50 <= found.rows[0] <= 100 * found.alarm.window_panes
    metrics = client.get("/metrics").text
    assert 'tidemark_reports_total{model="m",outcome="made"} 1.0' in metrics
    assert 'tidemark_report_seconds_count{model="m"} 1' in metrics


def test_the_report_has_the_columns_and_their_movement_and_loads_nothing_from_outside(run):
    _, stages, client, _ = run
    own, theirs = read(client.get(f"/reports/{NAME}").text), read(client.get(f"/reports/{NAME}/evidently").text)
    (alarm,) = {change.movers[0].column for change in stages.reporting.maker.shelf.facts(NAME).changes}
    words = " ".join(own.text)
    assert alarm == "x"
    assert "mean +" in words
    assert "s.d. [" in words
    assert own.loads == [f"/reports/{NAME}/evidently"]
    assert own.script == ""
    for column in ("x", "y", "c"):
        assert re.search(rf"Drift in column '{column}'|Drift in column \\u0027{column}\\u0027", theirs.script), column
    assert [address for address in theirs.loads if not address.strip("'\" ").startswith(("data:", "#"))] == []
    assert not re.search(r"Dataset Drift is", theirs.script)        # no verdict beside ours


def test_what_a_sampled_text_holds_cannot_end_evidentlys_script(run):
    from detectors.parity_report import drift_html

    evil = "</script><script>document.title='taken'</script>"
    levels = [["a", evil, None][place % 3] for place in range(90)]
    drawn = drift_html({evil: levels, "empty": [None] * 90}, {evil: levels[::-1], "empty": ["a"] * 90},
                       {evil: "category", "empty": "category"})
    assert "document.title=" in drawn.html
    assert "<script>document.title" not in drawn.html
    assert (drawn.columns, dict(drawn.left_out)) == ((evil,), {"empty": "no values in the reference's rows"})


def test_the_report_by_hand_is_one_file_and_is_made_of_the_state_alone(run, tmp_path, capsys):
    folder, _, _, _ = run
    kept = tmp_path / "kept.html"
    assert main(["report", NAME, "-c", str(folder / "tidemark.yaml"), "-o", str(kept)]) == 0
    found = read(kept.read_text())
    assert found.loads == []
    assert "srcdoc=" in kept.read_text()
    elsewhere = yaml.safe_load((folder / "tidemark.yaml").read_text())
    elsewhere["reports"] = {"folder": str(tmp_path / "nothing-here")}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(elsewhere))
    made = tmp_path / "made.html"
    assert main(["report", "m-1-drift-latest", "-c", str(tmp_path / "other.yaml"), "-o", str(made)]) == 0
    assert "with evidently's half" in capsys.readouterr().out.splitlines()[-1]
    assert "Drift in column" in made.read_text()
    assert main(["report", "m-1-drift-9", "-c", str(folder / "tidemark.yaml")]) == 2
    assert NAME in capsys.readouterr().err


def test_panes_that_are_gone_are_said_and_what_the_folder_keeps_is_shown(run, tmp_path, capsys):
    import shutil
    import sqlite3

    folder, _, _, _ = run
    for path in folder.glob("state.db*"):
        if path.is_file():
            shutil.copy(path, tmp_path / path.name)
    with sqlite3.connect(tmp_path / "state.db") as db:
        db.execute("DELETE FROM panes")
        db.execute("DELETE FROM samples")
    db.close()
    reseal(tmp_path / "state.db")
    tree = yaml.safe_load((folder / "tidemark.yaml").read_text())
    tree["service"]["state"] = f"sqlite:///{tmp_path / 'state.db'}"
    config = tmp_path / "tidemark.yaml"
    config.write_text(yaml.safe_dump(tree))
    assert main(["report", NAME, "-c", str(config), "-o", str(tmp_path / "x.html")]) == 2
    assert "older than what the state keeps" in capsys.readouterr().err
    tree["reports"] = {"folder": str(folder / "state.db.reports")}
    config.write_text(yaml.safe_dump(tree))
    assert main(["report", NAME, "-c", str(config), "-o", str(tmp_path / "x.html")]) == 0


def test_after_a_restart_an_open_alarm_without_a_report_gets_one(tmp_path):
    world.reference(tmp_path / "reference.json")
    stages = started(tmp_path)
    stages.run()
    stages.close()                                  # before evidently had ended: the report still waits
    shelf = stages.reporting.maker.shelf
    before = shelf.facts(NAME)
    for suffix in (".facts", ".rows", ".html"):
        shelf.remove(NAME, suffix)
    again = started(tmp_path, Memory([]))
    try:
        found = again.reporting.maker.shelf.facts(NAME)
        assert found.state == "waiting"
        assert shelf.path(NAME, ".rows").is_file()
        assert (found.columns, found.events, found.alarm) == (before.columns, before.events, before.alarm)
        assert not again.reporting.maker.is_idle
    finally:
        again.close()
    third = started(tmp_path, Memory([]))
    assert not third.reporting.maker.is_idle        # what waited waits again, and nothing is made twice
    third.close()


def test_without_reports_no_row_is_kept_and_the_page_says_why(tmp_path):
    world.reference(tmp_path / "reference.json")
    stages = started(tmp_path, enabled=False)
    stages.run()
    try:
        assert all(stream.sampling is None for stream in stages.panes.streams.values())
        found = stages.reporting.maker.shelf.facts(NAME)
        assert (found.state, found.why, bool(found.columns)) == ("none", "reports.enabled is false", True)
        assert stages.store.samples("m", "1", 0, 2**40) == []
    finally:
        stages.close()


def test_reports_that_are_asked_for_without_evidently_are_refused_at_the_start(tmp_path, monkeypatch):
    world.reference(tmp_path / "reference.json")
    monkeypatch.setattr("monitor.reporting.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"reports\.enabled: expected evidently .* pip install 'tidemark\[report\]'"):
        started(tmp_path, enabled=True)
    stages = started(tmp_path)                      # left to itself it goes on without
    stages.run()
    assert stages.reporting.maker.shelf.facts(NAME).why.startswith("evidently is not installed")
    stages.close()
