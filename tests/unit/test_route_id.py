"""Routes: the example that serving code copies, and a new fallback branch named by an alarm that rests on its events."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from detectors.reference import Column, Reference
from monitor.config import parse
from monitor.service import build

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "route_id" / "route_id.py"
_SPEC = importlib.util.spec_from_file_location("route_id", EXAMPLE)
assert _SPEC is not None
assert _SPEC.loader is not None
route_id = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(route_id)
Route = route_id.Route

START_MS, PANES, PER_PANE = 1_700_000_000_000, 40, 250


def test_a_route_is_its_nodes_in_their_order():
    assert Route(["features", "model-a"]).text == "features>model-a"
    assert Route(["model-a", "features"]).id != Route(["features", "model-a"]).id
    assert Route(["features", "model-a"]).id == "ae2f029696"         # for ever, on every machine


def test_the_same_route_has_the_same_id_in_another_process():
    code = f"import sys; sys.path.insert(0, {str(EXAMPLE.parent)!r}); from route_id import Route; print(Route(['a', 'b']).id)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={"PYTHONHASHSEED": "7"}).stdout
    assert other.strip() == Route(["a", "b"]).id


def test_a_node_that_fails_and_the_branch_behind_it_are_seen():
    route = Route()
    with pytest.raises(ValueError, match="away"), route.node("model-b"):
        raise ValueError("away")
    assert route.passed("fallback", 3) == 3
    assert route.text == "model-b!>fallback"


def test_length_and_number_of_routes_are_bounded():
    assert Route(["retry"] * 50).text == "retry*"
    long = Route(f"n{i}" for i in range(500)).text
    assert len(long.split(">")) == 12
    assert long.endswith("...")
    assert len(Route(["x" * 5_000]).text) == 32
    assert Route(["a\n>b", ""]).text == "a-b>unnamed"
    assert Route(["one more"], max_routes=0).text == "other"


def test_seldons_request_path_is_a_route():
    meta = {"requestPath": {"router": "img:1", "model-b": "img:2"}, "routing": {"router": 1}}
    assert route_id.of_seldon(meta["requestPath"], meta["routing"]).text == "router:1>model-b"


def events(rng, fallback_from, branch):
    """Forty panes of events with the nodes that they passed; 5 % take the branch from a pane on."""
    for pane in range(PANES):
        for i in range(PER_PANE):
            nodes = ["features", "model-a"] if rng.random() < 0.7 else ["cache", "model-a"]
            if pane >= fallback_from and rng.random() < 0.05:
                nodes = branch
            yield {"ts": START_MS + pane * 1000 + i * 4, "x": round(float(rng.normal()), 6), "nodes": nodes}


def alarms_of(folder, branch, known=()):
    """The alarms of a service that reads what the example wrote."""
    rng = np.random.default_rng(6)
    usual, rarer = Route(["features", "model-a"]).text, Route(["cache", "model-a"]).text
    texts = [usual if rng.random() < 0.7 else rarer for _ in range(8_000)]
    texts[::400] = [*known, *texts][:len(texts[::400])] if known else texts[::400]
    columns = (Column("x", "numeric"), Column("route", "category", "path"))
    reference = Reference.fit({"x": rng.normal(size=8_000), "route": texts}, columns, model="m", version="1")
    reference.save(folder / "reference.json")
    lines = "\n".join(json.dumps(event) for event in events(rng, 20, branch))
    written = subprocess.run([sys.executable, str(EXAMPLE)], input=lines, capture_output=True, text=True, check=True).stdout
    (folder / "events.jsonl").write_text(written)
    config = parse(yaml.safe_dump({
        "files": {"paths": [str(folder / "events.jsonl")]}, "service": {"dead_letters": "none"},
        "monitors": [{"model": "m", "topic": "t", "reference": str(folder / "reference.json"),
                      "pane": {"seconds": 1, "lateness_seconds": 0},
                      "schema": {"timestamp": "ts", "columns": {"route": {"role": "path"}}}}]}))
    stages = build(config, state=":memory:", launching=False)
    try:
        stages.run()
        return [alarm for alarm in stages.alarms if alarm.state == "raised"]
    finally:
        stages.close()


def test_a_new_fallback_branch_raises_an_alarm_that_names_the_column_and_the_route(tmp_path):
    (alarm,) = alarms_of(tmp_path, ["features!", "fallback"])
    mover = next(mover for mover in alarm.movers if mover.column == "route")
    assert (alarm.kind, mover.role) == ("quality", "path")
    assert mover.words.endswith(": features!>fallback")
    assert alarm.pane - START_MS // 1000 in range(20, 23)


def test_a_known_branch_that_more_requests_take_is_a_drift_that_names_it(tmp_path):
    (alarm,) = alarms_of(tmp_path, ["features!", "fallback"], known=["features!>fallback"] * 20)
    mover = next(mover for mover in alarm.movers if mover.column == "route")
    assert alarm.kind == "drift"
    assert mover.what == "level features!>fallback"


def routes(n, seed=0):
    """Route ids with a heavy tail: some 10,000 levels, most of them seen once or twice."""
    rng = np.random.default_rng(seed)
    return [f"r{rank}" for rank in np.minimum(rng.zipf(1.35, n), 10_000).tolist()]


def test_ten_thousand_routes_with_a_heavy_tail_keep_the_commonest_by_name():
    data = routes(60_000)
    reference = Reference.fit({"route": data}, [Column("route", "category", "path")])
    binning = reference.records[0].binning
    assert binning.levels[:3] == ("r1", "r2", "r3")
    assert len(binning.levels) <= 128
    counts = reference.profile({"route": ["r1", data[-1], "r-new", None, *sorted(set(data))[:50]]}).counts[0]
    assert (counts[0], counts[1] >= 1, counts[binning.bins - 1]) == (1, True, 1)


@pytest.mark.parametrize(("name", "values", "role"), [
    ("route_id", routes(2_000), "path"), ("requestPath", [f"a>{i // 2}" for i in range(4_000)], "path"),
    ("path", [f"{i}" for i in range(4_000)], "ignored"), ("pathology", [f"p{i}" for i in range(4_000)], "ignored"),
    ("city", ["a", "b"] * 50, "input")])
def test_a_column_called_a_path_is_no_identifier_because_it_has_many_levels(name, values, role):
    (proposal,) = Reference.propose({name: values})
    assert (proposal.column.kind, proposal.column.role) == ("category", role)
