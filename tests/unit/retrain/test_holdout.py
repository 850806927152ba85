"""What a trainer left, read without believing it: kinds that differ, sizes, ids that were trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from monitor.flow import Launch
from monitor.retrain import holdout as module
from monitor.retrain.challenger import judge
from monitor.retrain.holdout import ContractBroken, answers_of, read_holdout

N = 400


def columns(n: int = N) -> dict[str, Any]:
    """A champion that is right in 70 % and a challenger that is always right."""
    label = np.arange(n) % 2
    champion = np.where(np.arange(n) % 10 < 3, 1 - label, label)
    return {"id": [f"orders:0:{i}" for i in range(n)], "label": label, "champion_prediction": champion,
            "challenger_prediction": label}


def leave(folder: Path, rows: dict[str, Any], **result: Any) -> Launch:
    (folder / "result.json").write_text(json.dumps({"model_uri": "m", "reference_uri": "r", **result}))
    parquet.write_table(pa.table(rows), folder / "holdout.parquet")
    return Launch("3f9c2a1b7d4e", "churn", "7", 1, "local", "succeeded", "{}", (("succeeded", 1.0),), output_uri=str(folder))


def judged(folder: Path, rows: dict[str, Any], **result: Any) -> Any:
    return judge(leave(folder, rows, **result), metric="accuracy", events_min=200)[0]


WRITTEN = {
    "int": lambda v: pa.array(v), "float": lambda v: pa.array(v.astype(float)), "bool": lambda v: pa.array(v.astype(bool)),
    "text": lambda v: pa.array(list(map(str, v))), "decimal": lambda v: pa.array(v).cast(pa.decimal128(22, 2)),
    "truth": lambda v: pa.array(["True" if x else "False" for x in v]),
    "point": lambda v: pa.array([f"{x}.0" for x in v]), "dictionary": lambda v: pa.array(list(map(str, v))).dictionary_encode(),
    "numbers": lambda v: pa.array(v).dictionary_encode(),
}


@pytest.mark.parametrize("label", WRITTEN)
@pytest.mark.parametrize("answer", ["int", "bool", "text"])
def test_labels_and_answers_of_different_types_are_compared_by_what_they_mean(tmp_path, label, answer):
    texts = {"text", "truth", "point", "dictionary"}
    rows = columns()
    rows["label"] = WRITTEN[label](rows["label"])
    rows |= {name: WRITTEN[answer](np.asarray(rows[name])) for name in ("champion_prediction", "challenger_prediction")}
    verdict = judged(tmp_path, rows)
    if {label, answer} <= texts and label in ("truth", "point"):       # all texts: a text is the text it is
        assert (verdict.verdict, "written alike" in verdict.detail) == ("failed", True)
    else:
        assert (verdict.champion, verdict.challenger, verdict.verdict) == (0.7, 1.0, "better")


def test_names_on_one_side_and_codes_on_the_other_are_a_defect_and_no_verdict(tmp_path):
    rows = columns()
    rows["label"] = ["stay", "leave"] * (N // 2)
    verdict = judged(tmp_path, rows)
    assert verdict.verdict == "failed"
    assert "written alike, got label strings such as 'stay', champion_prediction numbers such as" in verdict.detail


def test_whole_numbers_that_float64_cannot_tell_apart_are_not_equal(tmp_path):
    rows, big = columns(), 2**60
    for name in ("label", "champion_prediction", "challenger_prediction"):
        rows[name] = np.asarray(rows[name], np.int64) + big
    assert (judged(tmp_path, rows).champion, judged(tmp_path, rows).challenger) == (0.7, 1.0)


def test_ids_may_be_numbers_texts_dictionaries_or_bytes_and_are_each_there_once(tmp_path):
    for ids in (np.arange(N), pa.array(list(map(str, range(N)))).dictionary_encode(), [str(i).encode() for i in range(N)]):
        assert judged(tmp_path, columns() | {"id": ids}).verdict == "better"
    twice = pa.array(["x", "x", *map(str, range(N - 2))]).dictionary_encode()
    assert "got 1 repeated" in judged(tmp_path, columns() | {"id": twice}).detail


@pytest.mark.parametrize(("result", "words"), [
    ({"training_offsets": {"orders:0": [[1000, 2000], [390, 395]]}}, "got 5 that result.json says it was"),
    ({"training_ids_uri": "trained.parquet"}, "got 3 that result.json says it was"),
    ({"training_ids_uri": "nowhere.parquet"}, "the ids that were trained on, got nothing"),
    ({"training_offsets": {"orders:0": [[1, 2, 3]]}}, "training_offsets"),
])
def test_events_that_the_challenger_was_trained_on_are_no_proof(tmp_path, result, words):
    parquet.write_table(pa.table({"id": ["orders:0:1", "orders:0:2", "orders:0:3", "other"]}), tmp_path / "trained.parquet")
    verdict = judged(tmp_path, columns(), **result)
    assert verdict.verdict == "failed"
    assert words in verdict.detail


def test_events_that_lie_beside_what_was_trained_on_are_taken(tmp_path):
    assert judged(tmp_path, columns(), training_offsets={"orders:0": [[400, 900]], "orders:1": [[0, 400]]}).verdict == "better"
    parquet.write_table(pa.table({"id": ["orders:0:400"]}), tmp_path / "trained.parquet")
    assert judged(tmp_path, columns(), training_ids_uri="trained.parquet").verdict == "better"


def test_a_few_bytes_that_stand_for_very_many_are_read_in_little_memory(tmp_path):
    """A megabyte of text in each of 200,000 rows is 200 GB as texts, and 2 MB as a dictionary."""
    n, long = 200_000, "x" * (1 << 20)
    codes = pa.array(np.zeros(n, np.int32))
    rows = {"id": np.arange(n), **{name: pa.DictionaryArray.from_arrays(codes, pa.array([long])) for name in (
        "label", "champion_prediction", "challenger_prediction")}}
    verdict = judged(tmp_path, rows)
    assert (verdict.verdict, verdict.champion) == ("not yet known", 1.0)


def test_more_bytes_or_rows_than_are_read_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HOLDOUT_MEMORY_MAX", 1000)
    assert "MiB uncompressed" in judged(tmp_path, columns()).detail
    monkeypatch.setattr(module, "HOLDOUT_EVENTS_MAX", 10)
    assert "expected 1 to 10 rows, got 400" in judged(tmp_path, columns()).detail
    monkeypatch.setattr(module, "HOLDOUT_BYTES_MAX", 10)
    assert "at most 10 bytes" in judged(tmp_path, columns()).detail


def test_scores_are_read_where_the_metric_needs_them(tmp_path):
    rows = columns() | {"champion_score": np.full(N, 0.5), "challenger_score": np.where(columns()["label"] == 1, 0.9, 0.1)}
    launch = leave(tmp_path, rows)
    assert judge(launch, metric="roc_auc", events_min=200)[0].verdict == "better"
    assert judge(launch, metric="log_loss", events_min=200)[0].verdict == "better"
    launch = leave(tmp_path, columns())
    verdict, _ = judge(launch, metric="roc_auc", events_min=200)
    assert (verdict.verdict, "add champion_score, challenger_score" in verdict.detail) == ("failed", True)
    launch = leave(tmp_path, rows | {"champion_score": np.full(N, np.nan)})
    assert "column champion_score: expected finite numbers" in judge(launch, metric="roc_auc", events_min=200)[0].detail
    launch = leave(tmp_path, rows | {"champion_score": ["high"] * N})
    assert "column champion_score: expected numbers, got strings such as 'high'" in judge(
        launch, metric="roc_auc", events_min=200)[0].detail


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"PAR1" + b"\xff" * 3000 + b"PAR1", b'{"id": 1}'])
def test_a_file_that_is_no_parquet_is_one_line(tmp_path, damage):
    (tmp_path / "holdout.parquet").write_bytes(damage)
    with pytest.raises(ContractBroken, match="expected a Parquet file") as raised:
        read_holdout(str(tmp_path / "holdout.parquet"), "accuracy")
    assert "\n" not in str(raised.value)


def test_every_cut_of_a_good_file_is_one_line(tmp_path):
    leave(tmp_path, columns())
    whole = (tmp_path / "holdout.parquet").read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "holdout.parquet").write_bytes(whole[:length])
        with pytest.raises(ContractBroken):
            read_holdout(str(tmp_path / "holdout.parquet"), "accuracy")


def test_two_columns_of_one_name_are_a_defect(tmp_path):
    table = pa.table(columns())
    table = table.append_column("label", table["label"])
    parquet.write_table(table, tmp_path / "holdout.parquet")
    with pytest.raises(ContractBroken, match="each column once, got label 2 times"):
        read_holdout(str(tmp_path / "holdout.parquet"), "accuracy")


def test_a_name_that_is_repeated_in_a_dictionary_is_one_class():
    twice = pa.chunked_array([pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), pa.array(["a", "a"]))])
    answers = answers_of(twice, pa.chunked_array([["a", "a"]]), pa.chunked_array([["a", "b"]]), where="x")
    assert (answers.label == answers.champion).all()
    assert (answers.label == answers.challenger).tolist() == [True, False]
