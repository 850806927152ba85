"""What the trainer reads and what it refuses: layouts, splits, and input that nobody promised to be good."""

from __future__ import annotations

import json
import os
from pathlib import Path

import contract
import encode
import events as captured_events
import numpy as np
import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from detectors.reference import Reference

from .conftest import START_MS, Here, captured, rewritten, watched

USAGE, CONFIGURATION = 64, 78
ROLES = contract.Roles("label", "prediction", "score", ("x", "noise", "colour"))


def table_of(data: Path) -> pyarrow.Table:
    return parquet.read_table(data, partitioning=None).sort_by("timestamp")


# ---- layouts ------------------------------------------------------------------------------------------------------------


def same(one: captured_events.Events, other: captured_events.Events) -> bool:
    numbers = all(np.array_equal(one.features[name], other.features[name], equal_nan=one.features[name].dtype != object)
                  for name in one.features)
    return numbers and one.ids.tolist() == other.ids.tolist() and one.times.tolist() == other.times.tolist()


def test_folders_by_day_are_read_as_a_flat_folder_is(data: Path, tmp_path: Path) -> None:
    table = table_of(data)
    for number, day in enumerate(("2023-11-14", "2023-11-15", "2023-11-16")):
        folder = tmp_path / "model=m" / f"day={day}"
        folder.mkdir(parents=True)
        parquet.write_table(table.slice(number * 2_000, 2_000), folder / f"{number}.parquet")
    one, other = (captured_events.read(str(folder), ROLES, task="auto") for folder in (data, tmp_path))
    assert same(one, other)


@pytest.mark.parametrize("name", ["day", "model", "label"])
def test_a_column_that_is_called_like_a_folders_key_is_the_files_own(data: Path, tmp_path: Path, name: str) -> None:
    """`day=...` folders must not give a column `day` the folder's value, nor make it an input where it is none."""
    folder = tmp_path / f"{name}=2023-11-14"
    values = np.arange(6_000) % 7 if name != "label" else table_of(data)["label"]
    rewritten(folder, data, **{name: values})
    inputs = ("x", "noise", "colour", *([name] if name != "label" else []))
    read = captured_events.read(str(tmp_path), contract.Roles("label", "prediction", "score", inputs), task="auto")
    if name == "label":
        assert set(read.labels.tolist()) == {"yes", "no"}
    else:
        assert read.features[name].tolist() == (np.arange(6_000) % 7).tolist()


def test_half_written_and_hidden_files_are_no_events(data: Path, tmp_path: Path) -> None:
    rewritten(tmp_path, data)
    (tmp_path / "day=2023-11-14").mkdir()
    for name in ("x.parquet.tmp", ".y.parquet", "_SUCCESS", "day=2023-11-14/_z.parquet", "notes.txt"):
        (tmp_path / name).write_bytes(b"not Parquet")
    assert len(captured_events.read(str(tmp_path), ROLES, task="auto")) == 6_000


def test_files_may_lack_a_column_or_hold_it_in_another_width(data: Path, tmp_path: Path) -> None:
    table = table_of(data)
    first = table.slice(0, 3_000).drop_columns(["colour"])
    first = first.set_column(first.column_names.index("noise"), "noise", first["noise"].cast(pyarrow.float32()))
    empty = pyarrow.nulls(3_000)
    second = table.slice(3_000)
    second = second.set_column(second.column_names.index("x"), "x", empty)
    parquet.write_table(first, tmp_path / "1.parquet")
    parquet.write_table(second, tmp_path / "2.parquet")
    read = captured_events.read(str(tmp_path), ROLES, task="auto")
    assert [value is None for value in read.features["colour"][:3]] == [True] * 3
    assert (np.isnan(read.features["x"][3_000:]).all(), np.isfinite(read.features["noise"]).all()) == (True, True)


def test_an_event_that_was_captured_twice_counts_once(data: Path, tmp_path: Path) -> None:
    table = table_of(data)
    parquet.write_table(pyarrow.concat_tables([table, table.slice(100, 500)]), tmp_path / "events.parquet")
    assert len(captured_events.read(str(tmp_path), ROLES, task="auto")) == 6_000


def test_times_may_be_parquet_timestamps(data: Path, tmp_path: Path) -> None:
    times = table_of(data)["timestamp"].cast(pyarrow.timestamp("ms"))
    rewritten(tmp_path, data, timestamp=times)
    assert captured_events.read(str(tmp_path), ROLES, task="auto").times[0] == START_MS


# ---- the split ----------------------------------------------------------------------------------------------------------


def plain_events(n: int, rng: np.random.Generator) -> captured_events.Events:
    labels = np.array(["a", "b"], object)[rng.integers(0, 2, n)]
    labels[rng.random(n) < 0.1] = None
    return captured_events.Events(
        times=np.sort(rng.integers(0, 10 * n, n)), ids=np.arange(n).astype(object), labels=labels, champion=None, score=None,
        features={"x": rng.normal(size=n)}, others={}, shapes={})


@settings(max_examples=60, deadline=None)
@given(n=st.integers(60, 6_000), since=st.one_of(st.none(), st.floats(0, 1)), share=st.floats(0.05, 0.8),
       rule=st.sampled_from(["spread", "newest"]), seed=st.integers(0, 9))
def test_no_row_has_two_parts_and_nothing_older_than_the_drift_is_held_out_where_enough_is_recent(
    n: int, since: float | None, share: float, rule: str, seed: int,
) -> None:
    events = plain_events(n, np.random.default_rng(seed))
    since_ms = None if since is None else int(since * 10 * n)
    parts = captured_events.split(events, since_ms, holdout_share=share, check_share=0.1, older_events=1_000, rule=rule)
    assert parts.shape == (n,)
    assert set(np.unique(parts)) <= {0, 1, 2, 3}
    trained = parts[(parts == captured_events.TRAIN) | (parts == captured_events.CHECK)]
    assert len(trained) <= events.labelled.sum()
    recent = n if since_ms is None else int((events.times >= since_ms).sum())
    if recent >= captured_events.REFERENCE_EVENTS_MIN and since_ms is not None:
        assert events.times[parts == captured_events.HELD].min() >= since_ms


def test_by_the_rule_newest_every_held_out_event_is_newer_than_every_other() -> None:
    events = plain_events(4_000, np.random.default_rng(1))
    parts = captured_events.split(events, None, holdout_share=0.3, check_share=0.1, older_events=0, rule="newest")
    held, check, train = (np.flatnonzero(parts == part) for part in (captured_events.HELD, captured_events.CHECK,
                                                                       captured_events.TRAIN))
    assert (held.min() > check.max(), check.min() > train.max()) == (True, True)
    assert len(held) / 4_000 == pytest.approx(0.3, abs=0.03)


def test_the_encoder_knows_nothing_of_what_is_held_out(data: Path, tmp_path: Path, here: Here) -> None:
    """Held-out events are made absurd: model.json's means, scales and levels stay the same."""
    columns = []
    for name in ("honest", "absurd"):
        table = table_of(data)
        read = captured_events.read(str(data), ROLES, task="auto")
        held = captured_events.split(read, (START_MS + 2_000_000), holdout_share=0.3, check_share=0.1,
                                     older_events=50_000) == captured_events.HELD
        noise = np.where(held & (name == "absurd"), 1e6, table["noise"].to_numpy())
        colour = np.where(held & (name == "absurd"), "violet", np.array(table["colour"].to_pylist(), object))
        source = rewritten(tmp_path / name, data, noise=noise, colour=pyarrow.array(colour.tolist(), pyarrow.string()))
        assert here(tmp_path / f"{name}-output", "--epochs", "1", TIDEMARK_DATA_URI=str(source)) == 0
        columns.append(json.loads((tmp_path / f"{name}-output" / "model.json").read_text())["columns"])
    assert columns[0] == columns[1]


# ---- input that nobody promised to be good ------------------------------------------------------------------------------


def test_absurd_columns_do_not_stop_a_training(data: Path, tmp_path: Path, here: Here) -> None:
    n, rng = 6_000, np.random.default_rng(4)
    noise = rng.normal(size=n)
    noise[::7], noise[1::7], noise[2::7], noise[3] = np.nan, np.inf, -np.inf, 1e300
    level = np.array([f"u{i}" for i in range(n)], object)                        # every category is new
    source = rewritten(tmp_path / "data", data, noise=noise, colour=pyarrow.array(level.tolist()),
                       empty=pyarrow.nulls(n, pyarrow.float64()), void=pyarrow.nulls(n), still=np.full(n, 3.0),
                       huge=np.where(rng.random(n) < 0.5, 1.7e308, -1.7e308))
    told = json.loads(watched()) + [{"name": name, "kind": kind, "role": "input"} for name, kind in (
        ("empty", "numeric"), ("void", "category"), ("still", "numeric"), ("huge", "numeric"))]
    assert here(tmp_path / "output", "--epochs", "3", TIDEMARK_DATA_URI=str(source), TIDEMARK_COLUMNS=json.dumps(told)) == 0
    metrics = json.loads((tmp_path / "output" / "result.json").read_text())["metrics"]
    assert metrics["accuracy"] > 0.9
    assert "empty" in [column.name for column in Reference.load(tmp_path / "output" / "reference.json").columns]


def test_one_absurd_value_does_not_hide_all_others() -> None:
    values = np.random.default_rng(1).normal(5, 2, 10_000)
    plain = encode.centre(values)
    values[7] = 1e300
    assert encode.centre(values) == pytest.approx(plain, rel=0.02)


@settings(max_examples=100, deadline=None)
@example([1.0], [float("nan"), float("inf"), 1e308])
@given(st.lists(st.one_of(st.floats(), st.just(float("nan"))), min_size=1, max_size=40),
       st.lists(st.floats(), min_size=1, max_size=40))
def test_no_number_makes_the_matrix_infinite(fitted: list[float], asked: list[float]) -> None:
    encoder = encode.Encoder.fit({"x": np.array(fitted)})
    matrix = encoder.matrix({"x": np.array(asked)})
    assert np.isfinite(matrix).all(), matrix
    assert np.abs(matrix).max() <= encode.CUT


def test_a_category_that_training_never_saw_changes_no_answer_by_untrained_weights() -> None:
    import network
    import torch

    encoder = encode.Encoder.fit({"c": np.array(["a", "b", "a"], object)})
    torch.manual_seed(1)
    net = network.build(network.Layout(encoder.width(), 2, (8,)))
    network.silence(net, torch.from_numpy(encoder.matrix({"c": np.array(["a", "b"], object)})))
    unseen = network.forward(net, torch.from_numpy(encoder.matrix({"c": np.array(["?", "!"], object)})), torch.device("cpu"))
    nothing = network.forward(net, torch.zeros((2, encoder.width())), torch.device("cpu"))
    assert torch.equal(unseen, nothing)


def refused(code: int, expected: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refusal: where, what was expected, what came, what to do."""
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (expected, "", 1), err
    for word in ("error: ", ": expected ", ", got ", "; "):
        assert word in err
    return err


@pytest.mark.parametrize(("changes", "arguments", "code", "words"), [
    ({"TIDEMARK_LAUNCH_ID": ""}, (), USAGE, "TIDEMARK_LAUNCH_ID: expected in the environment"),
    ({"TIDEMARK_OUTPUT_URI": ""}, (), USAGE, "TIDEMARK_OUTPUT_URI: expected in the environment"),
    ({"TIDEMARK_REASON": "{"}, (), USAGE, "TIDEMARK_REASON: expected JSON"),
    ({"TIDEMARK_REASON": "[]"}, (), USAGE, "TIDEMARK_REASON: expected JSON"),
    ({"TIDEMARK_REASON": '{"window": {"since": "soon"}}'}, (), USAGE, "TIDEMARK_REASON: expected JSON"),
    ({"TIDEMARK_REASON": '{"window": {"since": 1e999}}'}, (), USAGE, "TIDEMARK_REASON: expected JSON"),
    ({"TIDEMARK_COLUMNS": "{}x"}, (), USAGE, "TIDEMARK_COLUMNS: expected a JSON list"),
    ({"TIDEMARK_COLUMNS": '[{"name": "x", "kind": "number", "role": "input"}]'}, (), USAGE, "kind 'number'"),
    ({"TIDEMARK_COLUMNS": '[{"name": "x"}]'}, (), USAGE, "TIDEMARK_COLUMNS: expected a JSON list"),
    ({"TIDEMARK_NETWORK": "resnet"}, (), USAGE, "TIDEMARK_NETWORK: expected auto, tabular, image"),
    ({"TIDEMARK_DATA_URI": "nowhere://x"}, (), USAGE, "TIDEMARK_DATA_URI: expected a path"),
    ({"TIDEMARK_DATA_URI": "/nowhere"}, (), CONFIGURATION, "expected a folder of Parquet files, got nothing at /nowhere"),
    ({}, ("--label", "truth"), CONFIGURATION, "expected a column 'truth'"),
    ({}, ("--features", "x,y"), CONFIGURATION, "expected a column 'y'"),
    ({}, ("--label", "noise", "--task", "classification"), CONFIGURATION, "expected at most 1,000 classes"),
    ({}, ("--task", "regression"), CONFIGURATION, "column label: expected numbers for a regression, got text"),
    ({}, ("--network", "image", "--features", "x,noise"), CONFIGURATION, "--image-shape: expected a square"),
    ({}, ("--image-shape", "4y4"), USAGE, "--image-shape: expected height x width"),
    ({}, ("--image-shape", "3x3", "--features", "x,noise"), CONFIGURATION, "the 2 pixels of an event, got 9"),
    ({"TIDEMARK_COLUMNS": watched(colour="numeric")}, (), CONFIGURATION, "column colour: expected numbers"),
    ({"TIDEMARK_COLUMNS": watched(x="embedding")}, (), CONFIGURATION, "column x: expected lists of numbers"),
    ({}, ("--positive", "maybe"), CONFIGURATION, "--positive: expected a class of label (no, yes), got 'maybe'"),
    ({}, ("--prediction", "absent"), CONFIGURATION, "column absent: expected the champion's answers"),
    ({}, ("--prediction", "colour"), CONFIGURATION, "column colour: expected answers that are classes of label (no, yes)"),
])
def test_what_a_second_attempt_cannot_help_is_refused_in_one_line(
    tmp_path: Path, here: Here, capsys: pytest.CaptureFixture[str], changes: dict[str, str], arguments: tuple[str, ...],
    code: int, words: str,
) -> None:
    assert words in refused(here(tmp_path / "output", *arguments, **changes), code, capsys)


@pytest.mark.parametrize("arguments", [("--epochs", "0"), ("--epoch", "x"), ("--hidden", "12,"), ("--dropout", "nan"),
                                       ("--no-such",), ("--processes", "-1"), ("--holdout-share", "0.9")])
def test_wrong_options_are_one_line_and_code_64(
    tmp_path: Path, here: Here, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...],
) -> None:
    code = here(tmp_path / "output", *arguments)
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (USAGE, "", 1)


def test_too_few_events_are_refused(tmp_path: Path, here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    captured(tmp_path / "data", 60)
    line = refused(here(tmp_path / "output", TIDEMARK_DATA_URI=str(tmp_path / "data")), CONFIGURATION, capsys)
    assert "raise retrain.collect_events" in line


@pytest.mark.parametrize(("labels", "words"), [
    (["yes"] * 6_000, "expected at least two classes, got only 'yes'"),
    ([None] * 6_000, "expected at least 50 labelled events to hold out and more to train on, got 0 of 6000"),
])
def test_labels_of_one_class_or_none_are_refused(
    data: Path, tmp_path: Path, here: Here, capsys: pytest.CaptureFixture[str], labels: list[str | None], words: str,
) -> None:
    source = rewritten(tmp_path / "data", data, label=pyarrow.array(labels, pyarrow.string()))
    assert words in refused(here(tmp_path / "output", TIDEMARK_DATA_URI=str(source)), CONFIGURATION, capsys)


@pytest.mark.parametrize(("write", "words"), [
    (lambda folder: (folder / "a.parquet").write_bytes(b"PAR1 not really"), "expected Parquet files of one layout"),
    (lambda folder: parquet.write_table(pyarrow.table({"id": pyarrow.array([], pyarrow.string())}), folder / "a.parquet"),
     "expected a column 'timestamp', got id"),
    (lambda folder: None, "expected Parquet files, got none"),
    (lambda folder: parquet.write_table(pyarrow.table({
        "id": ["1"], "timestamp": [None], "label": ["a"], "x": [1.0], "noise": [1.0], "colour": ["a"]}), folder / "a.parquet"),
     "column timestamp: expected a time on every event"),
    (lambda folder: parquet.write_table(pyarrow.table({
        "id": ["1"], "timestamp": [1], "label": ["a"], "x": [[1.0, 2.0]], "noise": [{"a": 1}], "colour": ["a"]}),
        folder / "a.parquet"), "column noise: expected numbers, text or booleans, got struct"),
])
def test_files_that_are_no_events_are_refused(
    tmp_path: Path, here: Here, capsys: pytest.CaptureFixture[str], write: object, words: str,
) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")  # type: ignore[operator]
    code = here(tmp_path / "output", TIDEMARK_DATA_URI=str(tmp_path / "data"))
    assert words in refused(code, CONFIGURATION, capsys)


def test_lists_of_unequal_length_are_refused(
    data: Path, tmp_path: Path, here: Here, capsys: pytest.CaptureFixture[str],
) -> None:
    source = rewritten(tmp_path / "data", data, x=pyarrow.array([[1.0] * (1 + i % 2) for i in range(6_000)]))
    code = here(tmp_path / "output", TIDEMARK_DATA_URI=str(source), TIDEMARK_COLUMNS=watched(x="embedding"))
    assert "column x: expected lists of one length, got 2 lengths" in refused(code, CONFIGURATION, capsys)


def test_data_loader_workers_are_refused_where_shared_memory_is_too_small(
    tmp_path: Path, here: Here, capsys: pytest.CaptureFixture[str],
) -> None:
    # A file system that cannot hold what so many workers keep ready stands for a small /dev/shm.
    line = refused(here(tmp_path / "output", "--workers", "64", "--batch-size", "2000000000",
                        "--shared-memory", str(tmp_path)), CONFIGURATION, capsys)
    for words in ("MB free for 64 data-loader workers, got", "emptyDir", "--workers 0"):
        assert words in line


def test_an_unexpected_error_is_one_line_and_exit_code_1(
    tmp_path: Path, here: Here, capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "output").write_text("a file where the folder should be")
    code = here(tmp_path / "output")
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert os.linesep not in err.rstrip()
