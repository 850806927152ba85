"""The challenger's judgement: known intervals, coverage by simulation, and one line for every defect of the files."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from monitor.errors import LaunchFailed
from monitor.flow import Launch
from monitor.retrain import challenger
from monitor.retrain.challenger import compare, judge, new_version
from monitor.retrain.holdout import answers_of
from monitor.retrain.intervals import paired_mean_interval, paired_proportion_interval

RESULT: dict[str, Any] = {"model_uri": "model.pt", "reference_uri": "reference.json", "metrics": {"accuracy": 0.9}}


def launch(folder: Path | str, version: str = "7") -> Launch:
    return Launch("3f9c2a1b7d4e", "churn", version, 1, "local", "succeeded", "{}", (("succeeded", 1.0),),
                  output_uri=str(folder))


def write(folder: Path, holdout: dict[str, Any] | None, result: Any = RESULT) -> Launch:
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(result if isinstance(result, str) else json.dumps(result))
    if holdout is not None:
        parquet.write_table(pa.table(holdout), folder / "holdout.parquet")
    return launch(folder)


def holdout(n: int = 400, seed: int = 5, old: float = 0.7, new: float = 0.9) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 10, n)
    predictions = [np.where(rng.random(n) < right, label, (label + 1) % 10) for right in (old, new)]
    return {"id": [f"e{i}" for i in range(n)], "label": label, "champion_prediction": predictions[0],
            "challenger_prediction": predictions[1]}


@pytest.mark.parametrize(("gained", "lost", "pairs", "confidence", "expected"), [
    (1, 7, 21, 0.95, (-0.517, -0.026)),       # Fagerland, Lydersen & Laake 2014, airway hyper-responsiveness
    (28, 25, 618, 0.90, (-0.0148, 0.0247)),   # R, PropCIs::scoreci.mp
])
def test_the_paired_interval_is_the_published_one(gained: int, lost: int, pairs: int, confidence: float,
                                                  expected: tuple[float, float]) -> None:
    interval = paired_proportion_interval(gained, lost, pairs, confidence)
    assert expected == pytest.approx(interval, abs=5e-4 if pairs == 21 else 5e-5)


@pytest.mark.parametrize("pairs", [1, 10, 200, 10_000])
def test_without_any_disagreement_the_interval_is_symmetric_and_known_in_closed_form(pairs: int) -> None:
    half = 1.959963984540054**2 / (pairs + 1.959963984540054**2)      # the root of n D^2 = z^2 D (1 - D)
    assert (-half, half) == pytest.approx(paired_proportion_interval(0, 0, pairs), abs=1e-7)


@given(st.integers(1, 3_000).flatmap(lambda n: st.integers(0, n).flatmap(
    lambda b: st.tuples(st.just(n), st.just(b), st.integers(0, n - b)))))
def test_the_paired_interval_holds_its_estimate_stays_in_range_and_mirrors(counts: tuple[int, int, int]) -> None:
    pairs, gained, lost = counts
    lower, upper = paired_proportion_interval(gained, lost, pairs)
    assert -1 <= lower <= (gained - lost) / pairs <= upper <= 1
    assert (-upper, -lower) == pytest.approx(paired_proportion_interval(lost, gained, pairs), abs=1e-9)


def answers(rows: dict[str, Any]) -> challenger.Answers:
    return answers_of(*(pa.chunked_array([pa.array(rows[name])])
                        for name in ("label", "champion_prediction", "challenger_prediction")), where="holdout.parquet")


@pytest.mark.parametrize(("gain", "loss"), [(0.05, 0.05), (0.10, 0.04), (0.01, 0.01), (0.30, 0.02)])
def test_the_accuracy_interval_misses_the_truth_in_no_more_than_its_five_percent(gain: float, loss: float) -> None:
    """2,000 seeded hold-outs of 300 events; the bound is 5 % plus 1 % for the normal approximation plus 3 s.e."""
    rng = np.random.default_rng(17)
    table = rng.multinomial(300, [gain, loss, 1 - gain - loss], size=2_000)
    intervals = {(b, c): paired_proportion_interval(b, c, 300) for b, c, _ in set(map(tuple, table.tolist()))}
    misses = sum(not low <= gain - loss <= high for low, high in (intervals[b, c] for b, c, _ in table.tolist()))
    assert misses <= 2_000 * 0.06 + 3 * sqrt(2_000 * 0.06 * 0.94)


def test_the_error_interval_misses_the_truth_in_about_five_percent_even_of_skewed_errors() -> None:
    """2,000 seeded hold-outs of 200 events with exponential differences of mean 1; 5 % plus 1 % plus 3 s.e."""
    rng = np.random.default_rng(23)
    misses = 0
    for _ in range(2_000):
        lower, upper = paired_mean_interval(rng.exponential(1.0, 200))
        misses += not lower <= 1.0 <= upper
    assert 2_000 * 0.05 - 3 * sqrt(2_000 * 0.05 * 0.95) <= misses <= 2_000 * 0.06 + 3 * sqrt(2_000 * 0.06 * 0.94)


def test_the_error_interval_is_students() -> None:
    """Mean 2, s.d. 1 of (1, 2, 3); t(0.975, 2) = 4.302653 (tables)."""
    margin = 4.302652729911275 / sqrt(3)
    assert (2 - margin, 2 + margin) == pytest.approx(paired_mean_interval(np.array([1.0, 2.0, 3.0])))


def test_equally_good_models_are_seldom_called_better() -> None:
    """500 seeded hold-outs of two equally good models: "better" at most in 2.5 % plus 3 s.e."""
    better = 0
    for seed in range(500):
        rows = holdout(300, seed=seed, old=0.8, new=0.8)
        verdict = compare(answers(rows), metric="accuracy", events_min=200)
        better += verdict.verdict == "better"
    assert better <= 500 * 0.025 + 3 * sqrt(500 * 0.025 * 0.975)


@pytest.mark.parametrize(("old", "new", "expected"), [
    (0.7, 0.9, "better"), (0.9, 0.7, "worse"), (0.8, 0.8, "not yet known")])
def test_the_verdict_follows_the_whole_interval(tmp_path: Path, old: float, new: float, expected: str) -> None:
    verdict, result = judge(write(tmp_path, holdout(old=old, new=new)), metric="accuracy", events_min=200)
    assert (expected, 400) == (verdict.verdict, verdict.events)
    assert result is not None
    assert verdict.lower is not None
    assert verdict.difference == pytest.approx(verdict.challenger - verdict.champion)  # type: ignore[operator]


def test_a_smaller_error_is_a_positive_difference(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    label = rng.normal(0, 1, 500)
    rows = {"id": np.arange(500), "label": label, "champion_prediction": label + rng.normal(0, 1, 500),
            "challenger_prediction": label + rng.normal(0, 0.2, 500)}
    verdict, _ = judge(write(tmp_path, rows), metric="mean_absolute_error", events_min=200)
    assert verdict.verdict == "better"
    assert verdict.difference == pytest.approx(verdict.champion - verdict.challenger)  # type: ignore[operator]
    assert verdict.difference == pytest.approx(0.8 * sqrt(2 / np.pi), abs=0.15)


def test_too_few_events_are_not_yet_known_however_large_the_difference(tmp_path: Path) -> None:
    verdict, result = judge(write(tmp_path, holdout(199, old=0.1, new=1.0)), metric="accuracy", events_min=200)
    assert verdict.verdict == "not yet known"
    assert "fewer than the 200" in verdict.detail
    assert verdict.challenger == 1.0
    assert result is not None


@pytest.mark.parametrize("kind", [
    pa.string(), pa.dictionary(pa.int32(), pa.string()), pa.bool_(), pa.int8(), pa.float32()])
def test_labels_may_be_of_any_kind_that_can_be_equal(tmp_path: Path, kind: pa.DataType) -> None:
    rows = holdout()
    for name in rows.keys() - {"id"}:
        values = (rows[name] % 2).tolist()
        rows[name] = pa.array(list(map(str, values)) if "string" in str(kind) else values).cast(kind)
    verdict, _ = judge(write(tmp_path, rows), metric="accuracy", events_min=200)
    assert verdict.verdict == "better"


def changed(**columns: Any) -> dict[str, Any]:
    return {**holdout(), **columns}


@pytest.mark.parametrize(("rows", "result", "words"), [
    (changed(), "{", "model_uri, reference_uri and metrics"),
    (changed(), {"model_uri": "m"}, "reference_uri"),
    (changed(), {**RESULT, "model_uri": ""}, "model_uri: expected 1 to 2,000 characters"),
    (changed(), {**RESULT, "model_uri": 7}, "model_uri"),
    (changed(), {**RESULT, "version": "a b"}, "version: expected letters"),
    (changed(), {**RESULT, "version": "7"}, "not the old '7'"),
    (changed(), {**RESULT, "metrics": {"text": "x" * (1 << 20)}}, "at most 1,048,576 bytes"),
    (None, RESULT, "held-back events, got nothing"),
    ({"id": [1], "label": [1]}, RESULT, "add champion_prediction, challenger_prediction"),
    (changed(id=["same"] * 400), RESULT, "expected every id once, got 399 repeated"),
    (changed(label=[None] * 400), RESULT, "column label: expected a value in every row, got 400 missing"),
    (changed(label=np.full(400, np.nan)), RESULT, "column label: expected finite numbers, got 400"),
    (changed(label=[f"c{v}" for v in holdout()["label"]]), RESULT, "written alike, got label strings such as 'c"),
    (changed(label=[[1]] * 400), RESULT, "expected numbers, booleans or strings"),
    ({name: values[:0] for name, values in holdout().items()}, RESULT, "rows, got 0"),
])
def test_each_defect_of_the_files_is_one_line_and_fails(tmp_path: Path, rows: dict[str, Any] | None, result: Any,
                                                        words: str) -> None:
    verdict, read = judge(write(tmp_path, rows, result), metric="accuracy", events_min=200)
    assert (verdict.verdict, read) == ("failed", None)
    assert words in verdict.detail
    assert str(tmp_path) in verdict.detail
    assert "\n" not in verdict.detail


def test_a_file_that_is_no_parquet_is_one_line_and_fails(tmp_path: Path) -> None:
    job = write(tmp_path, None)
    (tmp_path / "holdout.parquet").write_bytes(b"PAR1 and then nothing")
    assert "expected a Parquet file" in judge(job, metric="accuracy", events_min=1)[0].detail


def test_strings_have_no_absolute_error(tmp_path: Path) -> None:
    rows = changed(**{name: ["a"] * 400 for name in ("label", "champion_prediction", "challenger_prediction")})
    assert "set retrain.metric to accuracy" in judge(write(tmp_path, rows), metric="mean_absolute_error",
                                                     events_min=1)[0].detail


def test_an_overflow_is_a_defect_and_not_a_verdict(tmp_path: Path) -> None:
    rows = changed(label=np.full(400, -1.7e308), champion_prediction=np.full(400, 1.7e308),
                   challenger_prediction=np.zeros(400))
    assert judge(write(tmp_path, rows), metric="mean_absolute_error", events_min=1)[0].verdict == "failed"


def test_a_store_that_does_not_answer_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "locked"
    (folder / "result.json").mkdir(parents=True)
    assert "got a folder" in judge(launch(folder), metric="accuracy", events_min=1)[0].detail
    with pytest.raises(LaunchFailed) as raised:
        challenger.read_output("s3://bucket/result.json?endpoint_override=127.0.0.1:9&scheme=http&region=x", 10)
    assert raised.value.retry


def test_names_in_the_result_are_taken_relative_to_the_output_folder() -> None:
    assert challenger.output_path("s3://b/out/", "model.pt") == "s3://b/out/model.pt"
    assert challenger.output_path("s3://b/out", "s3://c/model.pt") == "s3://c/model.pt"
    assert challenger.output_path("/out", "/m/model.pt") == "/m/model.pt"


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True))
def test_the_new_version_differs_fits_and_does_not_grow(version: str) -> None:
    result = challenger.Result("m", "r")
    first = new_version(launch("x", version), result)
    second = new_version(launch("x", first.replace("3f9c2a", "91ab02")), result)
    assert len(first) <= 63
    assert first.endswith(".r3f9c2a")
    assert first == second
