"""Further detectors in the running service: events from a file, the real pipeline and store, and a real scrape."""

from __future__ import annotations

import json
import sqlite3
import urllib.request

import numpy as np
import pytest
import yaml

from detectors.reference import Column, Reference
from monitor.config import parse
from monitor.expose.api import Server, application
from monitor.flow import Batch
from monitor.ingest.source import Crash, MemorySource, records
from monitor.service import build
from tests.catalogue import differences, series_of
from tests.conftest import package

COLUMNS = (Column("a", "numeric"), Column("b", "numeric"), Column("city", "category"), Column("y", "category", "prediction"))
START_MS = 1_700_000_000_000
PANES, PER_PANE, SHIFT_AT = 12, 300, 6
OURS = [
    {"name": "psi", "columns": ["a", "city"], "threshold": 0.2, "window_panes": 4},
    {"name": "evidently:psi", "columns": ["a", "city"], "window_panes": 4},
    {"name": "river:ADWIN", "columns": ["a", "error"]},
    {"name": "cusum", "columns": ["b"]},
    {"name": "mmd", "columns": ["a", "b"], "every_panes": 2, "window_panes": 2, "sample_rows": 60, "threshold": 2},
]


def values(rng, n, shift):
    a, b = rng.normal(shift, 1.0, n), rng.normal(10.0, 2.0, n)
    city = np.array(["Oslo", "Rome", "Kyiv"])[rng.integers(0, 3, n)]
    truth = np.where(rng.random(n) < 0.5, "yes", "no")
    wrong = rng.random(n) < (0.4 if shift else 0.1)
    return a, b, city, truth, np.where(wrong, np.where(truth == "yes", "no", "yes"), truth)


def messages():
    rng = np.random.default_rng(5)
    lines = []
    for pane in range(PANES):
        a, b, city, truth, y = values(rng, PER_PANE, 1.0 if pane >= SHIFT_AT else 0.0)
        lines += [json.dumps({"ts": START_MS + pane * 1000 + i * 1000 // PER_PANE, "a": a[i], "b": b[i], "city": city[i],
                              "y": y[i], "truth": truth[i]}) for i in range(PER_PANE)]
    return lines


def configuration(folder, detectors=OURS, **monitor):
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "events.jsonl").exists():
        rng = np.random.default_rng(4)
        a, b, city, _, y = values(rng, 6_000, 0.0)
        Reference.fit({"a": a, "b": b, "city": city.tolist(), "y": y.tolist()}, COLUMNS, model="m", version="1").save(
            folder / "reference.json")
        (folder / "events.jsonl").write_text("\n".join(messages()) + "\n", encoding="utf-8")
    return parse(yaml.safe_dump({
        "service": {"state": f"sqlite:///{folder}/state.db", "checkpoint_seconds": 0.05, "dead_letters": "none"},
        "files": {"paths": [str(folder / "events.jsonl")]},
        "reports": {"enabled": False},              # rows are kept for the detectors alone
        "monitors": [{"model": "m", "topic": "t", "reference": str(folder / "reference.json"),
                      "schema": {"timestamp": "ts", "columns": {"truth": {"role": "label", "kind": "category"}}},
                      "pane": {"seconds": 1, "lateness_seconds": 0}, "detectors": detectors, **monitor}],
    }))


def run(config, source=None):
    stages = build(config, clock=lambda: 2e9, source=source)
    try:
        stages.run()
    finally:
        stages.close()
    return stages


def fetched(stages, path):
    server = Server(application(stages.exporter), "127.0.0.1", 0)
    server.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.read().decode()
    finally:
        server.stop()


def stored(folder):
    db = sqlite3.connect(folder / "state.db")
    try:
        return db.execute("SELECT model, version, pane, document FROM samples ORDER BY pane").fetchall()
    finally:
        db.close()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    package("evidently")
    package("river")
    package("torch")
    stages = run(configuration(tmp_path_factory.mktemp("shown")))
    return stages, fetched(stages, "/metrics")


def test_ours_and_theirs_stand_side_by_side_in_a_real_scrape(shown):
    _, text = shown
    found = {(dict(labels)["detector"], dict(labels)["column"]): value for (name, labels), value in series_of(text).items()
             if name == "tidemark_score"}
    for detector in ("psi", "evidently:psi"):
        assert found[detector, "a"] > 0.2 > found[detector, "city"]
    assert found["mmd", "__joint__"] >= 2
    assert set(found) >= {("river:ADWIN", "a"), ("river:ADWIN", "error"), ("cusum", "b")}
    assert {column for detector, column in found if detector == "psi"} == {"a", "city"}     # it replaces the display


def test_verdicts_thresholds_and_bands_are_shown_where_there_are_any(shown):
    _, text = shown
    series = {(name, *(dict(labels).get(label, "") for label in ("detector", "column"))): value
              for (name, labels), value in series_of(text).items()}
    assert series["tidemark_detector_drift", "psi", "a"] == 1
    assert series["tidemark_detector_drift", "psi", "city"] == 0
    assert series["tidemark_detector_drift", "evidently:psi", "a"] == 1
    assert series["tidemark_detector_drift", "mmd", "__joint__"] == 1
    assert series["tidemark_threshold", "psi", ""] == 0.2
    assert series["tidemark_threshold", "cusum", ""] == 5.0
    assert 0 < series["tidemark_score_null", "psi", "a"] < 0.2
    assert ("tidemark_score_null", "evidently:psi", "a") not in series
    end = (START_MS // 1000) + PANES
    assert series["tidemark_detector_pane_timestamp_seconds", "psi", ""] == end
    assert series["tidemark_detector_pane_timestamp_seconds", "evidently:psi", ""] == end
    assert series["tidemark_detector_failures_total", "evidently:psi", ""] == 0


def test_the_scrape_is_what_the_catalogue_says_and_the_api_says_the_same(shown):
    stages, text = shown
    assert differences(text) == ["tidemark_lag_events has no series"]      # a file does not say how much is left
    view = json.loads(fetched(stages, "/api/v1/monitors/m"))["streams"][0]
    scores = {(dict(labels)["detector"], dict(labels)["column"]): value for (name, labels), value in series_of(text).items()
              if name == "tidemark_score"}
    assert len(view["detectors"]) == 8
    for reading in view["detectors"]:
        assert scores[reading["detector"], reading["column"]] == reading["score"]
    assert json.loads(fetched(stages, "/api/v1/monitors"))["monitors"][0]["streams"][0]["detectors"] == []


def test_further_detectors_change_no_alarm_and_no_pane(tmp_path):
    package("river")

    def decided(folder, detectors):
        stages = run(configuration(folder, detectors))
        db = sqlite3.connect(folder / "state.db")
        panes = db.execute("SELECT pane, events, decided, profile FROM panes ORDER BY pane").fetchall()
        db.close()
        return stages.alarms, panes

    assert decided(tmp_path / "with", OURS[:1] + OURS[2:4]) == decided(tmp_path / "without", [])


def test_without_further_detectors_no_row_is_hashed_and_none_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("monitor.state.panes.draw", None)           # calling it would be an error
    monkeypatch.setattr("monitor.state.sample.keys_of", None)
    stages = run(configuration(tmp_path, [{"name": "psi"}]))
    assert stages.panes.streams["m"].sampling is None
    assert stored(tmp_path) == []


def batches(cuts, crashes=()):
    lines, items, start = [line.encode() for line in messages()], [], 0
    for at in [*cuts, len(lines)]:
        items.append(Batch(parts=(records("t", 0, lines[start:at], first_offset=start),)))
        items += [Crash()] if at in crashes else []
        start = at
    return MemorySource(items)


def test_the_kept_rows_are_those_of_an_undisturbed_run_whatever_was_cut_or_killed(tmp_path):
    package("river")
    detectors = [{"name": "river:ADWIN", "columns": ["a", "error"], "window_panes": 5, "sample_rows": 40}]
    run(configuration(tmp_path / "once", detectors), batches([]))
    config = configuration(tmp_path / "killed", detectors)
    source, crashes = batches([100, 777, 1500, 2000, 2900], crashes=(777, 2000, 2900)), 0
    while True:
        stages = build(config, clock=lambda: 2e9, source=source)
        try:
            stages.run()
            break
        except Crash:
            crashes += 1
        finally:
            stages.close()
    assert crashes == 3
    assert stored(tmp_path / "killed") == stored(tmp_path / "once")
    assert len(stored(tmp_path / "once")) == 5      # of the panes that are looked back at, and no others


def test_a_restart_judges_the_next_pane_on_the_same_rows_and_counts(tmp_path):
    """Killed within pane 10 and built anew, the last pane's numbers from counts and rows are those of one run."""
    package("evidently")
    detectors = [OURS[0], OURS[1]]
    once = run(configuration(tmp_path / "once", detectors), batches([]))
    config, source = configuration(tmp_path / "twice", detectors), batches([3100], crashes=(3100,))
    with pytest.raises(Crash):
        run(config, source)
    twice = run(config, source)
    assert len(twice.observer.readings("m")) == 4
    assert twice.observer.readings("m") == once.observer.readings("m")
