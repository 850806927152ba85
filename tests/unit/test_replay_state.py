"""`tidemark replay --state`: stored panes decided again, beside what the service said."""

import hashlib
import json
import sqlite3

import numpy as np
import pytest

from detectors.reference import Column, Reference
from monitor.cli import main
from monitor.config import load
from monitor.service import build
from monitor.state.seal import reseal

START_MS = 1_700_000_000_000
COLUMNS = (Column("x", "numeric"), Column("g", "category"))


def rows(n, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=n) + shift, "g": rng.choice(list("abc"), n).tolist()}


def append(path, data, first):
    with open(path, "a") as file:
        for i, (x, g) in enumerate(zip(data["x"].tolist(), data["g"], strict=True), start=first):
            file.write(json.dumps({"x": x, "g": g, "ts": START_MS + i * 600}) + "\n")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A service's state after 20 quiet, 20 drifting and 60 quiet panes of 100 events, with its configuration."""
    folder = tmp_path_factory.mktemp("replay")
    for version in ("1", "2"):
        Reference.fit(rows(5_000, 1), COLUMNS, model="m", version=version).save(folder / f"reference-{version}.json")
    for seed, shift, first, n in ((2, 0.0, 0, 2_000), (3, 0.6, 2_000, 2_000), (4, 0.0, 4_000, 6_000)):
        append(folder / "events.jsonl", rows(n, seed, shift), first)
    configure(folder, "1")
    serve(folder)
    return folder


def configure(folder, version):
    (folder / "tidemark.yaml").write_text(
        f"files: {{paths: ['{folder}/events.jsonl']}}\n"
        f"service: {{state: 'sqlite:///{folder}/state.db', dead_letters: none}}\n"
        f"monitors:\n  - {{model: m, topic: t, reference: '{folder}/reference-{version}.json', schema: {{timestamp: ts}},\n"
        "     retrain: {launcher: {type: local, command: [train]}}}\n")


def serve(folder):
    stages = build(load(folder / "tidemark.yaml"), launching=False)
    try:
        stages.run()
    finally:
        stages.close()


def replay(folder, capsys, *flags):
    code = main(["replay", "-c", str(folder / "tidemark.yaml"), "--state", f"sqlite:///{folder}/state.db", "--json", *flags])
    assert code == 0
    found, = json.loads(capsys.readouterr().out)
    return found


def test_the_same_thresholds_give_the_same_alarms_and_decisions(world, capsys):
    found = replay(world, capsys)
    assert {alarm["state"] for alarm in found["then"]} == {"raised", "severe", "cleared"}
    assert found["now"] == found["then"]
    assert [decision["outcome"] for decision in found["decided_now"]] == ["launch"]
    assert [decision["at"] for decision in found["decided_now"]] == [decision["at"] for decision in found["decided_then"]]
    assert (found["panes"], found["events"], found["cut_off"]) == (101, 10_000, False)


def test_other_thresholds_change_what_is_said_now_and_not_what_was_said_then(world, capsys):
    same = replay(world, capsys)
    blind = replay(world, capsys, "--ignore-below", "2", "--retrain-above", "2")
    assert blind["now"] == []
    assert blind["then"] == same["then"]
    alarm_only = replay(world, capsys, "--retrain-above", "1")
    assert {alarm["state"] for alarm in alarm_only["now"]} == {"raised", "cleared"}
    assert alarm_only["decided_now"] == []
    sharp = replay(world, capsys, "--max-false-alarms", "1 per hour")
    assert sharp["now"][0]["at"] <= same["now"][0]["at"]
    assert sharp["now"][0]["score"] != same["now"][0]["score"]


def test_the_state_is_left_as_it_is(world, capsys):
    before = hashlib.sha256((world / "state.db").read_bytes()).digest()
    replay(world, capsys, "--ignore-below", "0")
    assert hashlib.sha256((world / "state.db").read_bytes()).digest() == before


def test_people_see_then_and_now_side_by_side(world, capsys):
    flags = ["--retrain-above", "1", "--fail-on-alarm"]
    code = main(["replay", "-c", str(world / "tidemark.yaml"), "--state", f"sqlite:///{world}/state.db", *flags])
    said = capsys.readouterr().out
    assert code == 3
    assert "m version 1: all 101 panes, 10,000 events from 2023-11-14" in said
    assert said.index("Then: 1 alarm, 1 retraining") < said.index("Now: 1 alarm, 0 retrainings")


def test_files_are_replayed_with_other_thresholds_too(world, capsys):
    code = main(["replay", "-c", str(world / "tidemark.yaml"), str(world / "events.jsonl"), "--ignore-below", "2",
                 "--retrain-above", "2", "--json"])
    assert code == 0
    assert json.loads(capsys.readouterr().out)["alarms"] == []


def copy(world, folder):
    for file in world.iterdir():
        if file.suffix in (".db", ".json", ".jsonl"):
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_state_that_forgot_its_first_panes_says_so(world, tmp_path, capsys):
    folder = copy(world, tmp_path)
    configure(folder, "1")
    with sqlite3.connect(folder / "state.db") as db:
        db.execute("DELETE FROM panes WHERE pane IN (SELECT pane FROM panes ORDER BY pane LIMIT 30)")
    db.close()
    reseal(folder / "state.db")
    assert replay(folder, capsys)["cut_off"] is True
    main(["replay", "-c", str(folder / "tidemark.yaml"), "--state", f"sqlite:///{folder}/state.db"])
    said = capsys.readouterr().out
    assert "the last 71 panes that the state keeps" in said
    assert "Panes before these are forgotten" in said


def test_each_version_is_judged_by_its_own_reference(world, tmp_path, capsys):
    folder = copy(world, tmp_path)
    configure(folder, "1")
    (folder / "events.jsonl").write_text("")
    (folder / "state.db").unlink()
    append(folder / "events.jsonl", rows(3_000, 5), 0)
    serve(folder)
    Reference.fit(rows(5_000, 6, 0.6), COLUMNS, model="m", version="2").save(folder / "reference-2.json")
    configure(folder, "2")
    append(folder / "events.jsonl", rows(3_000, 7, 0.6), 3_000)
    serve(folder)
    found = replay(folder, capsys)
    assert found["versions"] == ["1", "2"]
    assert found["now"] == found["then"] == []


@pytest.mark.parametrize(("flags", "expected"), [
    ((), "expected files or --state, got neither; give one of them"),
    (("--state", "sqlite:///state.db", "events.jsonl"), "expected files or --state, got both; give one of them"),
    (("--state", "state.db"), "--state: expected sqlite:///PATH (four slashes for an absolute path), got 'state.db'; mend it"),
    (("--state", "sqlite:///none.db"), "none.db: expected a state file, got none; is `service.state` the running service's?"),
    (("x.csv", "--ignore-below", "4"), "--ignore-below: expected 0 to 3 standard deviations, got 4.0"),
    (("x.csv", "--ignore-below", "0.5"), "--ignore-below: expected at most the retraining's threshold (0.3) of m, got 0.5; "
                                         "a retraining is worth more than an alarm"),
    (("x.csv", "--retrain-above", "0"), "--retrain-above: expected above 0 and at most 5 standard deviations, got 0.0"),
    (("x.csv", "--max-false-alarms", "few"),
     "--max-false-alarms: expected false alarms per time or events such as '1 per 30 days' or '1 per 1000000 events', got 'few'; "
     "write it so"),
])
def test_a_mistake_is_one_line(world, capsys, flags, expected):
    configure(world, "1")
    assert main(["replay", "-c", str(world / "tidemark.yaml"), *flags]) == 2
    assert capsys.readouterr().err.strip() == f"tidemark replay: {expected}"


def test_a_threshold_for_retraining_needs_a_retraining(world, tmp_path, capsys):
    folder = copy(world, tmp_path)
    configure(folder, "1")
    text = (folder / "tidemark.yaml").read_text()
    (folder / "tidemark.yaml").write_text(text[:text.index(",\n     retrain")] + "}\n")
    assert main(["replay", "-c", str(folder / "tidemark.yaml"), "x.csv", "--retrain-above", "1"]) == 2
    assert "expected a monitor with `retrain`, got none" in capsys.readouterr().err
