"""The reference: what it refuses, what it says of itself, and the file that cannot be wrong silently."""

import json

import numpy as np
import pytest

from detectors.profile import Profile
from detectors.reference import Column, Reference, ReferenceMismatch
from detectors.reference_file import digest_of
from detectors.synthetic import MIXED, Stream

COLUMNS = (Column("x", "numeric"), Column("kind", "category", "path"), Column("open", "boolean"), Column("y", "numeric", "label"))


def rows(n=2000, seed=1):
    rng = np.random.default_rng(seed)
    kind = [None if v > 7 else f"k{v}" for v in rng.integers(0, 9, n).tolist()]
    return {"x": np.where(rng.random(n) < 0.05, np.nan, rng.standard_normal(n)), "kind": kind,
            "open": [("true", "false")[v] for v in rng.integers(0, 2, n)], "y": rng.standard_normal(n)}


@pytest.fixture(scope="module")
def reference():
    return Reference.fit(rows(), COLUMNS, model="m", version="7", span=(1.5, 2.5))


def test_labels_are_not_watched(reference):
    assert reference.rows == ("x", "kind", "open", "joint[1]", "joint[2]", "joint[spread]")
    assert [column and column.name for column in reference.column_of_row] == ["x", "kind", "open", None, None, None]


def test_fitting_the_same_rows_again_gives_the_same_digest(reference):
    assert Reference.fit(rows(), COLUMNS, model="m", version="7", span=(1.5, 2.5)).digest == reference.digest
    assert Reference.fit(rows(seed=2), COLUMNS, model="m", version="7", span=(1.5, 2.5)).digest != reference.digest


def test_a_loaded_reference_counts_and_compares_as_the_saved_one(reference, tmp_path):
    path = tmp_path / "reference.json"
    reference.save(path)
    loaded = Reference.load(path)
    assert loaded.digest == reference.digest
    assert loaded.to_json() == reference.to_json()
    assert (loaded.span, loaded.columns, loaded.events) == (reference.span, reference.columns, reference.events)
    assert loaded.profile(rows(300, 5)) == reference.profile(rows(300, 5))
    for name in reference.arrays.__slots__:
        if name != "scan_of_fine":
            np.testing.assert_array_equal(getattr(loaded.arrays, name), getattr(reference.arrays, name), err_msg=name)


def changed(reference, **changes):
    """The reference's file with other content and a digest that fits it, as a careful hand could write it."""
    document = json.loads(reference.to_json())
    for key, value in changes.items():
        document[key] = value
    return json.dumps({**document, "digest": digest_of(document)})


@pytest.mark.parametrize(("defect", "says"), [
    (lambda r: "", "one JSON document"),
    (lambda r: r.to_json()[:500], "one JSON document"),
    (lambda r: "[" * 100_000, "one JSON document"),
    (lambda r: "[1, 2]", "format 'tidemark reference'"),
    (lambda r: '{"format": "other"}', "format 'tidemark reference'"),
    (lambda r: changed(r, format_version=1), "format version 2, got 1"),
    (lambda r: r.to_json().replace('"events": 2000', '"events": 3000'), "the file was changed after it was fitted"),
    (lambda r: changed(r, rows=[]), "joint weights of 0 columns"),
    (lambda r: changed(r, rows=json.loads(r.to_json())["rows"][:-1]), "3 joint rows, got 2"),
    (lambda r: changed(r, rows=json.loads(r.to_json())["rows"][::-1]), "rows of the columns"),
    (lambda r: changed(r, joint={"components": {"shape": [2, 2], "float64": ""}, "whitening": 3}), "a complete reference"),
    (lambda r: changed(r, expansions={"x": {"kind": "text"}}), "expected expansions of the columns []"),
    (lambda r: changed(r, sample={"x": [None]}), "a sample with every column"),
    (lambda r: changed(r, columns=[]), "joint weights of 0 columns"),
    (lambda r: changed(r, events="many"), "a complete reference, got ValueError"),
    (lambda r: changed(r, columns=[{"name": "x", "kind": "sound", "role": "input"}]), "a kind of numeric"),
    (lambda r: changed(r, rows=[{**json.loads(r.to_json())["rows"][0], "counts": [1, 2]}]), "arrays of shapes"),
    (lambda r: changed(r, rows=[{**json.loads(r.to_json())["rows"][0], "edges": [1.0, 0.0]}]), "rising edges"),
    (lambda r: changed(r, rows=[{**json.loads(r.to_json())["rows"][1], "seen": "?"}]), "a complete reference"),
])
def test_every_defect_of_a_file_is_one_line_that_names_file_expected_and_mend(reference, tmp_path, defect, says):
    path = tmp_path / "broken.json"
    path.write_text(defect(reference))
    with pytest.raises(ReferenceMismatch) as refusal:
        Reference.load(path)
    text = str(refusal.value)
    assert text.startswith(str(path))
    assert says in text
    assert "expected" in text
    assert "; " in text
    assert "\n" not in text


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ReferenceMismatch, match=r"broken\.json: expected UTF-8"):
        Reference.load(path)


@pytest.mark.parametrize(("data", "columns", "says"), [
    ({"x": [1.0]}, (Column("x", "numeric", "ignored"),), "expected a column to watch"),
    ({"z": [1.0]}, (Column("x", "numeric"),), "expected column 'x', got 'z'"),
    ({"x": []}, (Column("x", "numeric"),), "one length above 0"),
    ({"x": [1.0], "z": [1.0, 2.0]}, (Column("x", "numeric"), Column("z", "numeric")), "one length above 0"),
    ({"x": ["a", "b"]}, (Column("x", "numeric"),), "expected numeric values in column 'x'"),
])
def test_data_that_does_not_fit_the_schema_is_refused_in_one_line(data, columns, says):
    with pytest.raises(ReferenceMismatch, match=says) as refusal:
        Reference.fit(data, columns, model="m", version="7")
    assert "\n" not in str(refusal.value)


def test_another_schema_is_refused_naming_what_differs(reference):
    reference.require(COLUMNS)
    reference.require(COLUMNS[::-1])
    other = (Column("x", "category"), COLUMNS[1], Column("new", "numeric"), COLUMNS[3])
    with pytest.raises(ReferenceMismatch) as refusal:
        reference.require(other)
    assert reference.compare(other) == [
        "column open (boolean, input) is not in the schema", "column new (numeric, input) is not in the reference",
        "column x (numeric, input) is category, input in the schema"]
    assert all(difference in str(refusal.value) for difference in reference.compare(other))


def test_a_column_that_no_event_has_is_missing_in_all_of_them(reference):
    batch = rows(50)
    del batch["open"]
    assert reference.profile(batch).counts[2].tolist()[:3] == [50, 0, 0]
    assert reference.profile({}, n=4).counts[:, 0].tolist() == [4, 4, 4, 0, 0, 0]
    assert reference.profile({}, n=4).counts.sum(axis=1).tolist() == [4] * 6
    assert reference.profile({}) == Profile.empty(reference)


def test_true_and_false_in_data_are_the_levels_that_json_has():
    columns = (Column("open", "boolean"),)
    text = Reference.fit({"open": ["true", "false", None] * 300}, columns, model="m", version="1")
    values = Reference.fit({"open": [True, False, None] * 300}, columns, model="m", version="1")
    assert text.digest == values.digest
    array = Reference.fit({"open": np.array([True, False] * 450)}, columns, model="m", version="1")
    assert array.bin_labels(0) == ["missing", "false", "true", "rest", "unseen"]


def test_a_short_dependent_or_unordered_reference_says_why_it_is_inadequate():
    def fit(n, ar=0.0, **options):
        stream = Stream(4, MIXED[:3], ar=ar)
        return Reference.fit(stream.rows(n), stream.columns, model="m", version="1", **options)

    assert fit(5000).inadequate == ""
    assert "999 rows, 1000 are needed" in fit(999).inadequate
    assert "not in time order" in fit(5000, ordered=False).inadequate
    dependent = fit(5000, ar=0.97)
    assert "300 are needed: too dependent or too short" in dependent.inadequate
    assert dependent.m_eff < 300
    assert (fit(199).too_small, fit(200).too_small) == (True, False)


def test_progress_is_told_after_every_column():
    told = []
    Reference.fit(rows(), COLUMNS, model="m", version="7", progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_infinite_reference_values_do_not_stretch_the_bins():
    values = np.append(np.linspace(0, 1, 998), [np.inf, -np.inf])
    reference = Reference.fit({"x": values}, (Column("x", "numeric"),), model="m", version="1")
    assert reference.bin_labels(0)[1] == "below 0"
    assert reference.arrays.counts[0, [1, reference.shape[1] - 1]].tolist() == [1, 1]


def test_identifiers_and_counters_are_proposed_as_ignored_with_a_reason():
    n = 1000
    proposals = Reference.propose({
        "id": [f"e{i}" for i in range(n)], "row": np.arange(n), "age": np.arange(n) % 90, "open": [True, None] * (n // 2),
        "flag": np.ones(n, bool), "city": ["a", "b", "c", None] * (n // 4), "prediction": [0.5] * n, "nothing": [None] * n,
        "when": np.arange(n).astype("datetime64[s]")})
    assert [(p.column.name, p.column.kind, p.column.role, p.warning) for p in proposals] == [
        ("id", "category", "ignored", True), ("row", "numeric", "ignored", True), ("age", "numeric", "input", False),
        ("open", "boolean", "input", False), ("flag", "boolean", "input", False), ("city", "category", "input", False),
        ("prediction", "numeric", "prediction", False), ("nothing", "category", "input", True),
        ("when", "category", "ignored", True)]
    assert "1000 of them seen once" in proposals[0].reason
    half = [f"once{i}" for i in range(300)] + ["often"] * 300
    assert Reference.propose({"c": half})[0].column.role == "input"
    assert Reference.propose({"c": [*half, "one more"]})[0].column.role == "ignored"
    many = [f"v{i}" for i in range(50_001)] * 3
    assert "50001 levels" in Reference.propose({"c": many})[0].reason
