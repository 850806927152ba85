"""The commands as their first user meets them: what they print, what they answer to a mistake, and their exit codes."""

from __future__ import annotations

import csv
import gzip
import json
import re
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detectors.reference import Reference
from monitor.cli import COMMANDS, main

START_MS = 1_700_000_000_000


def events(n, seed, shift=0.0, start=START_MS):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n) + shift
    return [{"id": f"e{seed}-{i}", "ts": start + i * 100, "x": round(float(x[i]), 5), "age": int(rng.integers(18, 80)),
             "country": "abc"[rng.integers(3)], "vip": bool(rng.random() < 0.2), "prediction": "yes" if x[i] > 0 else "no",
             "score": round(float(1 / (1 + np.exp(-x[i]))), 5), "truth": "yes" if x[i] > 0 else "no"} for i in range(n)]


def nested(event):
    return {"id": event["id"], "ts": event["ts"], "features": {k: event[k] for k in ("x", "age", "country", "vip")},
            "output": {"prediction": event["prediction"], "score": event["score"]}, "truth": event["truth"]}


def write_lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the same reference rows in every format, quiet and drifting events, and references of them."""
    folder = tmp_path_factory.mktemp("data")
    rows = events(6_000, 1)
    pq.write_table(pa.Table.from_pylist(rows), folder / "ref.parquet")
    write_csv(folder / "ref.csv", rows)
    (folder / "ref.csv.gz").write_bytes(gzip.compress((folder / "ref.csv").read_bytes()))
    write_lines(folder / "flat.jsonl", rows)
    write_lines(folder / "nested.jsonl", [nested(row) for row in rows])
    (folder / "nested.jsonl.gz").write_bytes(gzip.compress((folder / "nested.jsonl").read_bytes()))
    quiet, drifting = events(3_000, 2), events(3_000, 3, 1.0, START_MS + 300_000)
    write_csv(folder / "quiet.csv", quiet)
    write_csv(folder / "drift.csv", drifting)
    pq.write_table(pa.Table.from_pylist(quiet), folder / "quiet.parquet")
    write_lines(folder / "live.jsonl", quiet + drifting)
    write_lines(folder / "quiet.jsonl", quiet)
    write_lines(folder / "nested-live.jsonl", [nested(row) for row in quiet + drifting])
    assert main(["fit", str(folder / "ref.parquet"), "-o", str(folder / "ref.json"), "--model", "m", "--quiet", *ROLES]) == 0
    return folder


ROLES = ["--label", "truth", "--timestamp", "ts", "--id", "id"]
PANE = "    pane: {seconds: 10, lateness_seconds: 5}\n"
RETRAIN = "    retrain: {launcher: {type: local, command: ['true']}, capture_uri: CAPTURED, collect_events: 0}\n"


@pytest.fixture
def tidemark(capsys, monkeypatch, tmp_path):
    """A function that runs one command in an empty folder: arguments -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def configured(tmp_path, entry, live, extra=PANE, name="tidemark.yaml"):
    path = tmp_path / name
    path.write_text(f"service: {{listen: '127.0.0.1:0', state: 'sqlite:///{tmp_path}/state.db', dead_letters: none}}\n"
                    "reports: {enabled: false}\n"
                    f"files: {{paths: ['{live}']}}\n{entry.rstrip()}\n{extra}".replace("CAPTURED", str(tmp_path / "captured")))
    return path


def entry_of(data, reference="ref.json", model="m", version="1"):
    return (f"monitors:\n  - model: {model}\n    version: '{version}'\n    topic: t\n    reference: {data / reference}\n"
            "    schema: {timestamp: ts, id: id, columns: {truth: {role: label, kind: category}}}\n")


# -- fit ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("file", "live"), [
    ("ref.parquet", "live.jsonl"), ("ref.csv", "live.jsonl"), ("ref.csv.gz", "live.jsonl"), ("flat.jsonl", "live.jsonl"),
    ("nested.jsonl", "nested-live.jsonl"), ("nested.jsonl.gz", "nested-live.jsonl")])
def test_the_entry_that_fit_prints_is_a_configuration_that_replays(data, tidemark, tmp_path, file, live):
    roles = [*ROLES, *(["--prediction", "output.prediction", "--score", "output.score"] if "nested" in file else [])]
    code, entry, table = tidemark("fit", data / file, "-o", tmp_path / "r: #1.json", "--model", "m", *roles)
    assert code == 0
    assert re.search(r"prediction +│ category +│ prediction", table)
    config = configured(tmp_path, entry, data / live)
    assert tidemark("check-config", "-c", config)[0] == 0
    code, out, _ = tidemark("replay", "-c", config, data / live, "--json")
    answer = json.loads(out)
    assert answer["events"]["m"]["counted"] == 6_000
    assert [alarm["state"] for alarm in answer["alarms"]] == ["raised", "severe"]
    assert answer["alarms"][0]["at"] > START_MS / 1000 + 300


def test_every_format_gives_the_same_reference(data, tidemark, tmp_path):
    digests = set()
    for file in ("ref.parquet", "ref.csv", "ref.csv.gz", "flat.jsonl"):
        assert tidemark("fit", data / file, "-o", "r.json", "--model", "m", *ROLES)[0] == 0
        digests.add(json.loads((tmp_path / "r.json").read_text())["digest"])
    assert len(digests) == 1


def test_flags_say_roles_and_kinds(data, tidemark, tmp_path):
    code, entry, table = tidemark("fit", data / "ref.csv", "-o", "r.json", "--model", "m", *ROLES, "--path", "country",
                                  "--category", "age", "--ignore", "vip", "--rows", "0:5000", "--version", "v2")
    assert (code, 'version: "v2"' in entry) == (0, True)
    found = {cells[0]: cells[1:3] for cells in ([cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines())
             if len(cells) == 4}
    assert found["country"] == ["category", "path"]
    assert found["age"] == ["category", "input"]
    assert found["vip"] == ["boolean", "ignored"]
    assert "5,000 events" in table


@pytest.mark.parametrize(("stamp", "unit"), [("2024-01-01T00:00:00Z", "iso8601"), (1_700_000_000.5, "seconds"),
                                             (1_700_000_000_000, "milliseconds")])
def test_the_entry_says_the_unit_of_the_time(tidemark, tmp_path, stamp, unit):
    write_lines(tmp_path / "a.jsonl", [{"meta": {"at": stamp}, "x": i % 7} for i in range(300)])
    _, entry, _ = tidemark("fit", "a.jsonl", "-o", "r.json", "--model", "m", "--timestamp", "meta.at")
    assert f'timestamp: "meta.at"\n      timestamp_unit: {unit}' in entry


def test_a_time_column_is_not_watched(tidemark, tmp_path):
    pq.write_table(pa.table({"born": pa.array(range(300), pa.timestamp("s")), "x": np.arange(300) % 7}), tmp_path / "a.parquet")
    code, _, table = tidemark("fit", "a.parquet", "-o", "r.json", "--model", "m")
    assert code == 0
    assert re.search(r"born +│ numeric +│ ignored +│ a time", table)
    assert tidemark("fit", "a.parquet", "-o", "r.json", "--model", "m", "--numeric", "born")[::2] == (
        2, "tidemark fit: column born: expected numbers or text, got times; leave it out with --ignore born\n")


def test_empty_cells_of_a_csv_are_missing_in_fit_as_in_the_stream(tidemark, tmp_path):
    write_csv(tmp_path / "a.csv", [{"c": "" if i % 3 else "a", "x": i % 11, "zip": f"0{i % 5}"} for i in range(3_000)])
    assert tidemark("fit", "a.csv", "-o", "r.json", "--model", "m", "--category", "zip", "--quiet")[0] == 0
    code, out, _ = tidemark("check", "r.json", "a.csv", "--json")
    assert code == 0
    assert {column["psi"] for column in json.loads(out)["columns"] if column["role"] != "joint"} == {0.0}


@pytest.mark.parametrize(("days", "is_short"), [(2, True), (4, False)])
def test_a_declared_season_needs_three_cycles(tidemark, tmp_path, days, is_short):
    x = np.random.default_rng(5).normal(size=6_000).tolist()
    write_csv(tmp_path / "a.csv", [{"x": x[i], "ts": 1_700_000_000 + i * days * 86_400 // 6_000} for i in range(6_000)])
    assert tidemark("fit", "a.csv", "-o", "r.json", "--model", "m", "--timestamp", "ts", "--season-hours", "24",
                    "--sample-rows", "0", "--quiet")[0] == 0
    reference = Reference.load(tmp_path / "r.json")
    assert ("2.0 cycles of the declared season" in reference.inadequate) is is_short
    assert reference.cycles == pytest.approx(days, rel=0.01)
    assert reference.sample is None


@pytest.mark.parametrize(("flags", "says"), [
    (("--season-hours", "24"), "--season-hours: expected --timestamp beside it"),
    (("--season-hours", "0", "--timestamp", "ts"), "--season-hours: expected hours above 0"),
    (("--season-hours", "24", "--timestamp", "c"), "--season-hours: expected event times in column 'c'"),
    (("--sample-rows", "-1"), "--sample-rows: expected a whole number >= 0"),
])
def test_a_season_that_cannot_be_measured_is_one_line(tidemark, tmp_path, flags, says):
    write_csv(tmp_path / "a.csv", [{"x": i % 97, "c": "noon", "ts": i} for i in range(300)])
    code, out, err = tidemark("fit", "a.csv", "-o", "r.json", "--model", "m", *flags)
    assert (code, out) == (2, "")
    assert says in err


# -- check -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("file", "code"), [("quiet.csv", 0), ("quiet.parquet", 0), ("quiet.jsonl", 0), ("drift.csv", 3)])
def test_check_ends_with_3_for_drift_only(data, tidemark, file, code):
    ended, out, _ = tidemark("check", data / "ref.json", data / file)
    assert ended == code
    assert out.splitlines()[-1].startswith("drift: " if code else "quiet: ")
    assert "3,000 events against 6,000 reference events; 0 events refused." in out
    assert tidemark("check", data / "ref.json", data / file, "--json")[0] == code


def test_check_says_effect_interval_and_unit(data, tidemark):
    _, out, _ = tidemark("check", data / "ref.json", data / "drift.csv")
    assert re.search(r"x +│ input +│ drift +│ [\d.]+ +│ mean \+0\.9\d\d s\.d\. \[\+0\.\d\d\d, \+[01]\.\d\d\d\]", out)
    assert re.search(r"prediction +│ prediction +│ drift +│ [\d.]+ +│ level yes \+0\.3\d\d of events \[", out)


def test_check_as_json_holds_no_number_that_json_does_not_know(data, tidemark):
    def refuse(word):
        raise AssertionError(word)

    answer = json.loads(tidemark("check", data / "ref.json", data / "drift.csv", "--json")[1], parse_constant=refuse)
    assert answer["drift"] is True
    assert {column["column"]: column["ks"] for column in answer["columns"]}["country"] is None


@pytest.mark.parametrize("width", [80, 160])
def test_no_line_of_check_is_wider_than_the_terminal_and_nothing_is_cut(data, tidemark, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = tidemark("check", data / "ref.json", data / "drift.csv")
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out
    assert ("wasserstein" in out) == (width == 160)


def test_a_long_name_is_shown_whole_in_80_columns(tidemark, tmp_path, monkeypatch):
    name = "".join(chr(97 + i % 26) for i in range(120))
    write_lines(tmp_path / "a.jsonl", [{name: i % 7} for i in range(3_000)])
    monkeypatch.setenv("COLUMNS", "80")
    _, _, err = tidemark("fit", "a.jsonl", "-o", "r.json", "--model", "m")
    assert "".join(line.split("│")[1].strip() for line in err.splitlines() if "│" in line) == name


def test_check_finds_nested_columns_under_their_dotted_names(data, tidemark):
    assert tidemark("fit", data / "nested.jsonl", "-o", "r.json", "--model", "m", "--quiet", *ROLES)[0] == 0
    assert tidemark("check", "r.json", data / "nested.jsonl")[0] == 0
    assert tidemark("check", "r.json", data / "nested-live.jsonl")[0] == 3


def test_check_finds_columns_under_a_prefix(data, tidemark, tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"in": {"body": row}} for row in events(3_000, 2)])
    assert tidemark("check", data / "ref.json", "a.jsonl", "--prefix", "in.body")[0] == 0


def test_check_says_why_events_were_refused(data, tidemark, tmp_path):
    write_lines(tmp_path / "a.jsonl", [row | {"x": "one"} for row in events(10, 2)])
    code, _, err = tidemark("check", data / "ref.json", "a.jsonl")
    assert code == 2
    assert "a.jsonl: expected events, got none that can be used (10 refused, mostly type: " in err


def test_names_from_data_reach_the_terminal_as_plain_text(tidemark, tmp_path):
    rows = [{"[red]x": i % 7, "c": "\x1b[31m[bold]" if i % 2 else "b"} for i in range(3_000)]
    write_lines(tmp_path / "a.jsonl", rows)
    _, _, err = tidemark("fit", "a.jsonl", "-o", "r.json", "--model", "m")
    assert "[red]x" in err
    write_lines(tmp_path / "b.jsonl", [row | {"c": "\x1b[31m[bold]"} for row in rows])
    code, out, _ = tidemark("check", "r.json", "b.jsonl")
    assert code == 3
    assert "\x1b" not in out
    assert "[bold]" in out


# -- replay, check-config ----------------------------------------------------------------------------------------------

def test_replay_says_what_would_have_been_alarmed_and_launched(data, tidemark, tmp_path):
    config = configured(tmp_path, entry_of(data), data / "live.jsonl", PANE + RETRAIN)
    code, out, err = tidemark("replay", "-c", config, data / "live.jsonl", "--fail-on-alarm")
    assert (code, err) == (3, "")
    assert "2023-11-14T22:18:30Z  m version 1, episode 1: raised (drift)" in out
    assert re.search(r"^    input x: mean \+\d\.\d\d\d s\.d\. \[\+", out, re.M)
    assert "episode 1: a retraining is worth it" in out
    assert out.splitlines()[-1] == "m: events 6,000 counted; 60 panes decided, 1 alarm, 1 retraining."
    assert not (tmp_path / "state.db").exists()
    assert not (tmp_path / "captured").exists()


def test_replay_of_quiet_events_ends_with_0(data, tidemark, tmp_path):
    config = configured(tmp_path, entry_of(data), data / "live.jsonl")
    code, out, _ = tidemark("replay", "-c", config, data / "quiet.csv", "--fail-on-alarm")
    assert (code, out) == (0, "m: events 3,000 counted; 30 panes decided, 0 alarms, 0 retrainings.\n")


def test_replay_of_two_models_counts_the_panes_of_each(data, tidemark, tmp_path):
    assert tidemark("fit", data / "ref.csv", "-o", data / "n.json", "--model", "n", "--quiet", *ROLES)[0] == 0
    entries = entry_of(data) + PANE + entry_of(data, "n.json", "n").removeprefix("monitors:\n")
    config = configured(tmp_path, entries, data / "live.jsonl", PANE.replace("10", "100"))
    _, out, _ = tidemark("replay", "-c", config, data / "quiet.csv")
    assert [line.partition("; ")[2] for line in out.splitlines()] == [
        "30 panes decided, 0 alarms, 0 retrainings.", "3 panes decided, 0 alarms, 0 retrainings."]


def test_check_config_says_budget_threshold_and_smallest_shift(data, tidemark, tmp_path):
    config = configured(tmp_path, entry_of(data), data / "live.jsonl", PANE + RETRAIN)
    code, out, _ = tidemark("check-config", "-c", config)
    assert code == 0
    assert "6 columns from files" in out
    assert "False alarms accepted: 1 per 30 days, which is one in 259,200 panes" in out
    assert re.search(r"With 6,000 reference events \(worth [\d,]+ independent ones\) the smallest shift .* 0\.\d\d s\.d\.", out)
    assert "Retraining by the local launcher when the effect is surely above 0.3 s.d." in out
    facts = json.loads(tidemark("check-config", "-c", config, "--json")[1])["m"]
    assert facts["panes_per_false_alarm"] == 259_200
    assert facts["effective_reference_events"] <= facts["reference_events"]


def test_check_config_says_what_is_observed_besides_and_what_it_costs(data, tidemark, tmp_path):
    keys = PANE + """
    detectors:
      - {name: psi, columns: [x, country], threshold: 0.2}
      - {name: cusum, columns: [x], sample_rows: 50, window_panes: 8}
"""
    config = configured(tmp_path, entry_of(data), data / "live.jsonl", keys)
    code, out, _ = tidemark("check-config", "-c", config)
    assert code == 0
    text = " ".join(out.split())
    assert ("Observed besides, without alarm or retraining: psi of x, country (drift from 0.2); from the counts at every pane "
            "end that is due, about a millisecond.") in text
    assert "Observed besides, without alarm or retraining: cusum of x (drift from 5); value by value from the kept rows" in text
    assert "at most 50 rows of 1 column are kept of each pane, in the state, too, 8 panes back." in text
    facts = json.loads(tidemark("check-config", "-c", config, "--json")[1])["m"]
    assert facts["detectors"] == {"psi": ["x", "country"], "cusum": ["x"]}
    plain = configured(tmp_path, entry_of(data), data / "live.jsonl", PANE)
    without = json.loads(tidemark("check-config", "-c", plain, "--json")[1])["m"]
    assert facts["memory_bytes"] - without["memory_bytes"] == 50 * (8 + 4 * 8) * (500 + 8)
    assert facts["series"] - without["series"] == 4 + 2 * 4 + 4 + 4


# -- explain and the state ---------------------------------------------------------------------------------------------

def test_explain_tells_the_state_of_a_finished_run(data, tidemark, tmp_path):
    config = configured(tmp_path, entry_of(data), data / "live.jsonl", PANE + RETRAIN)
    run_service(config)
    code, out, err = tidemark("explain", "m", "-c", config)
    assert (code, err) == (0, "")
    assert "m drifts, surely above retrain.above: episode 1." in out
    assert re.search(r"x +│ [\d.]+ +│ \d+ panes?, [\d,]+ events +│ 0\.\d\d s\.d\. +│ moved: mean \+\d\.\d\d\d s\.d\. \[", out)
    assert re.search(r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ  launch [0-9a-f]{12}: ", out, re.M)
    answer = json.loads(tidemark("explain", "m", "-c", config, "--json")[1])
    assert [alarm["state"] for alarm in answer["alarms"]] == ["raised", "severe"]
    assert len(answer["columns"]) == 6 + 7            # and joint rows


def test_explain_reads_beside_the_process_that_holds_the_state(data, tidemark, tmp_path):
    from monitor.config import load
    from monitor.service import build

    config = configured(tmp_path, entry_of(data), data / "live.jsonl")
    stages = build(load(config))
    try:
        stages.run()
        code, out, _ = tidemark("explain", "m", "-c", config)
        assert code == 0
        assert "m has an open alarm" in out or "m drifts" in out
        assert "is held by a running service" in tidemark("doctor", "-c", config)[1]
    finally:
        stages.close()


def run_service(config):
    """`tidemark run` over files, to their end; its log."""
    ended = subprocess.run([sys.executable, "-m", "monitor.cli", "run", "-c", str(config)], capture_output=True, text=True,
                           timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def test_a_state_that_cannot_be_read_is_one_line(data, tidemark, tmp_path):
    config = configured(tmp_path, entry_of(data), data / "live.jsonl")
    code, _, err = tidemark("explain", "m", "-c", config)
    assert (code, err.count("\n")) == (2, 1)
    assert "expected a state file, got none" in err
    (tmp_path / "state.db").write_bytes(b"no database" * 1000)
    for command in (("explain", "m"), ("run",)):
        code, _, err = tidemark(*command, "-c", config) if command[0] == "explain" else failed(config)
        assert code == 2
        assert "expected a state file (SQLite" in err.splitlines()[-1]


def failed(config):
    ended = subprocess.run([sys.executable, "-m", "monitor.cli", "run", "-c", str(config)], capture_output=True, text=True,
                           timeout=60)
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stdout, ended.stderr


def test_another_reference_under_the_same_version_is_refused(data, tidemark, tmp_path):
    config = configured(tmp_path, entry_of(data), data / "quiet.jsonl")
    run_service(config)
    assert tidemark("fit", data / "quiet.csv", "-o", data / "other.json", "--model", "m", "--quiet", *ROLES)[0] == 0
    configured(tmp_path, entry_of(data, "other.json"), data / "quiet.jsonl")
    code, _, err = failed(config)
    assert code == 2
    assert err.splitlines()[-1].endswith("give the new reference a new version")


def test_another_pane_length_is_refused(data, tidemark, tmp_path):
    config = configured(tmp_path, entry_of(data), data / "quiet.jsonl")
    run_service(config)
    configured(tmp_path, entry_of(data), data / "quiet.jsonl", PANE.replace("10", "20"))
    code, _, err = failed(config)
    assert code == 2
    assert "expected panes of 10 s" in err.splitlines()[-1]
    assert "give the monitor a new version, or set it back" in err


@pytest.mark.parametrize("seconds", ["5", "10", "20"])
def test_a_new_version_goes_on_at_the_stored_offsets_whatever_its_panes(data, tidemark, tmp_path, seconds):
    config = configured(tmp_path, entry_of(data), data / "quiet.jsonl")
    assert '"t:0": 3000' in run_service(config)
    assert tidemark("fit", data / "ref.csv", "-o", data / "two.json", "--model", "m", "--version", "2", "--quiet", *ROLES)[0] == 0
    configured(tmp_path, entry_of(data, "two.json", version="2"), data / "live.jsonl", PANE.replace("10", seconds))
    assert '"t:0": 6000' in run_service(config)
    answer = json.loads(tidemark("explain", "m", "-c", config, "--json")[1])
    assert answer["version"] == "2"
    assert 0 < max(column["window_events"] for column in answer["columns"]) <= 3_000
    assert [alarm["state"] for alarm in answer["alarms"]][:1] == ["raised"]


# -- mistakes ----------------------------------------------------------------------------------------------------------

MISTAKES = [
    ((), "tidemark: the following arguments are required: COMMAND"),
    (("fti",), f"tidemark: expected one of the commands {', '.join(COMMANDS)}, got 'fti'; did you mean fit?"),
    (("fit",), "tidemark fit: the following arguments are required: -o/--output, --model"),
    (("fit", "-o", "r", "--model", "m"), "tidemark fit: expected either files or --topic, got neither"),
    (("fit", "D/ref.csv", "--topic", "t", "-o", "r", "--model", "m"),
     "tidemark fit: expected either files or --topic, got both"),
    (("fit", "D/ref.csv", "-o", "r", "--model", "m m"), "tidemark fit: --model: expected at most 63 letters, digits and . _ -"),
    (("fit", "D/ref.csv", "-o", "r", "--model", "m", "--version", ""), "tidemark fit: --version: expected at most 63 letters"),
    (("fit", "D/none.csv", "-o", "r", "--model", "m"), "tidemark fit: D/none.csv: expected a file, found none; check the path"),
    (("fit", "D/ref.csv", "-o", "none/r", "--model", "m", "--quiet"), "tidemark fit: none/r: cannot be written: No such file"),
    (("fit", "D/ref.csv", "-o", "r", "--model", "m", "--label", "trutth"),
     "tidemark fit: expected one of the columns age, country,"),
    (("fit", "D/ref.csv", "-o", "r", "--model", "m", "--numeric", "country"),
     "tidemark fit: column country: expected numbers, got"),
    (("fit", "D/ref.csv", "-o", "r", "--model", "m", "--rows", "5"),
     "tidemark fit: --rows: expected START:END such as 0:50000, got"),
    (("fit", "D/ref.csv", "-o", "r", "--model", "m", "--rows", "9:5"),
     "tidemark fit: --rows: expected some of the 6,000 rows, got"),
    (("fit", "D/ref.csv", "-o", "r", "--model", "m", "--rows", "²:5"), "tidemark fit: --rows: expected START:END such as"),
    (("fit", "--topic", "t", "-o", "r", "--model", "m"),
     "tidemark fit: --bootstrap-servers: expected HOST:PORT of each broker"),
    (("fit", "--topic", "t", "-o", "r", "--model", "m", "--bootstrap-servers", "a"),
     "tidemark fit: --bootstrap-servers: expected HOST"),
    (("fit", "D/ref.csv", "-o", "r", "--model", "m", "--events", "-1"),
     "tidemark fit: --events: expected a whole number >= 1, got -1"),
    (("fit", "D/ref.csv", "-o", "r", "--model", "m", "--lable", "x"),
     "tidemark fit: expected a known argument, got '--lable'; did you mean --label?"),
    (("fit", "D/ref.csv", "-o", "r", "--mod", "m"), "tidemark fit: the following arguments are required: --model"),
    (("check", "D/ref.json"), "tidemark check: the following arguments are required: DATA"),
    (("check", "D/none.json", "D/quiet.csv"),
     "tidemark check: D/none.json: cannot be read: No such file or directory; make it with"),
    (("check", "D/ref.csv", "D/quiet.csv"), "tidemark check: D/ref.csv: expected one JSON document, got"),
    (("check", "D/ref.json", "D/none.csv"), "tidemark check: D/none.csv: expected a file, found none; mend the path"),
    (("check", "D/ref.json", "D/ref.json"),
     "tidemark check: D/ref.json: expected a column of the reference such as 'x', got none"),
    (("check", "D/ref.json", "D"), "tidemark check: D: expected a file named .parquet, .csv, .jsonl or .ndjson"),
    (("check", "D/ref.json", "D/quiet.csv", "--false-alarm", "2"),
     "tidemark check: --false-alarm: expected a chance between 0 and 1"),
    (("check", "D/ref.json", "D/quiet.csv", "--false-alarm", "x"),
     "tidemark check: argument --false-alarm: invalid float value: 'x'"),
    (("check", "D/ref.json", "D/quiet.csv", "--ignore-below", "nan"),
     "tidemark check: --ignore-below: expected 0 to 3 standard"),
    (("check", "D/ref.json", "D/quiet.csv", "--prefix", ".."),
     "tidemark check: --prefix: expected keys separated by single dots"),
    (("run",), "tidemark run: the following arguments are required: -c/--config"),
    (("run", "-c", "none.yaml"),
     "tidemark run: none.yaml: cannot read the configuration: No such file or directory; give its path"),
    (("replay", "-c", "CONFIG", "D/none.csv"), "tidemark replay: D/none.csv: expected a file, found none; mend the path"),
    (("explain", "x", "-c", "CONFIG"), "tidemark explain: expected one of the models m, got 'x'; name one of them"),
    (("check-config", "-c", "D"), "tidemark check-config: D: cannot read the configuration: Is a directory"),
    (("doctor", "-c", "CONFIG", "--jsno"), "tidemark doctor: expected a known argument, got '--jsno'; did you mean --json?"),
]


@pytest.mark.parametrize(("arguments", "line"), MISTAKES)
def test_each_mistake_is_one_line_and_exit_code_2(data, tidemark, tmp_path, arguments, line):
    config = configured(tmp_path, entry_of(data), data / "live.jsonl")
    code, out, err = tidemark(*(re.sub(r"^D\b", str(data), word).replace("CONFIG", str(config)) for word in arguments))
    assert (code, out) == (2, "")
    assert err.replace(str(data), "D").startswith(line)
    assert (err.count("\n"), err[-1], "Traceback" in err) == (1, "\n", False)


@pytest.mark.parametrize(("keys", "line"), [
    ("reference: none.json", "none.json"), ("reference: tidemark.yaml", "tidemark.yaml"),
    ("reference: REF, version: '9'", "expected a reference of version '9', got '1'"),
    ("reference: REF, schema: {columns: {contry: {path: c}}}", "got 'contry'; did you mean 'country'?"),
    ("reference: REF, schema: {columns: {x: {kind: category}}}", "monitors[0].schema.columns.x.kind: expected numeric"),
    ("reference: REF, schema: {timestamp: a..b}", "monitors[0].schema.timestamp: expected keys separated by single dots"),
    ("reference: REF, detectors: [{name: psi}, {name: kss}]",
     "monitors[0].detectors[1].name: expected a known name, got 'kss'; did you mean 'ks'?"),
    ("reference: REF, detectors: [{name: ks, columns: [x, country]}]",
     "monitors[0].detectors[0].columns[1]: expected a column of kind numeric for ks, got 'country' of kind category")])
@pytest.mark.parametrize("command", ["check-config", "run"])
def test_what_the_reference_contradicts_is_one_line(data, tidemark, tmp_path, keys, line, command):
    config = configured(tmp_path, f"monitors:\n  - {{model: m, topic: t, {keys.replace('REF', str(data / 'ref.json'))}}}",
                        data / "live.jsonl", "")
    code, _, err = tidemark(command, "-c", config) if command != "run" else failed(config)
    assert code == 2
    assert line in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith(f"tidemark {command}: monitors[0].")


def test_an_absent_file_of_the_configuration_is_its_mistake(data, tidemark, tmp_path):
    config = configured(tmp_path, entry_of(data), tmp_path / "none.jsonl")
    code, _, err = failed(config)
    assert code == 2
    assert "files.paths: " in err.splitlines()[-1]
    code, out, _ = tidemark("doctor", "-c", config)
    assert code == 1
    assert f"FAIL file {tmp_path / 'none.jsonl'}: files.paths: expected a file that can be read" in out


def test_every_command_has_help(tidemark):
    for name in COMMANDS:
        code, out, _ = tidemark(name, "--help")
        assert code == 0
        assert out.startswith(f"usage: tidemark {name}")


def test_a_reader_that_goes_away_is_no_error(data, tmp_path):
    config = configured(tmp_path, entry_of(data), data / "live.jsonl")
    command = subprocess.Popen([sys.executable, "-m", "monitor.cli", "check-config", "-c", str(config)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    command.stdout.close()
    errors = command.stderr.read()
    assert (command.wait(30), errors) == (0, "")


def test_no_thread_outlives_a_command(data, tidemark, tmp_path):
    before = threading.active_count()
    tidemark("doctor", "-c", configured(tmp_path, entry_of(data), data / "live.jsonl"))
    assert threading.active_count() == before
