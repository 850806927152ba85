"""Data sets as columns: what each format's cells become, and that a broken file is one line with file and line."""

from __future__ import annotations

import datetime as dt
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from monitor.errors import ConfigError
from monitor.ingest.tables import as_kind, from_documents, read_files


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def lines_of(path, documents):
    return written(path, "\n".join(json.dumps(document) for document in documents))


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def refusal(*paths, **options):
    with pytest.raises(ConfigError) as refused:
        read_files(paths, **options)
    assert str(refused.value).isprintable()
    return str(refused.value)


def listed(values):
    return [None if value != value else value for value in (values.tolist() if isinstance(values, np.ndarray) else values)]


def test_the_same_rows_in_every_format_are_the_same_columns(tmp_path):
    rows = [{"x": 1.5, "c": "a", "b": True}, {"x": None, "c": None, "b": False}, {"x": 3.0, "c": "NA", "b": None}]
    csv = "x,c,b\n1.5,a,true\n,,false\n3.0,NA,\n"
    text = "\n".join(json.dumps(row) for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.pq")
    paths = [str(tmp_path / "a.parquet"), str(tmp_path / "a.pq"), written(tmp_path / "a.csv", csv),
             written(tmp_path / "a.jsonl", text), written(tmp_path / "b.csv.gz", gzip.compress(csv.encode())),
             written(tmp_path / "b.ndjson.gz", gzip.compress(text.encode()))]
    for path in paths:
        columns = read_files([path]).columns
        assert {name: listed(values) for name, values in columns.items()} == {
            "x": [1.5, None, 3.0], "c": ["a", None, "NA"], "b": [True, False, None]}, path


def test_csv_cells_that_were_asked_for_as_text_keep_their_zeros(tmp_path):
    path = written(tmp_path / "a.csv", "zip,n\n00123,007\n04567,008\n")
    columns = read_files([path], text=["zip"]).columns
    assert columns["zip"] == ["00123", "04567"]
    assert columns["n"].tolist() == [7.0, 8.0]


def test_one_csv_cell_of_text_makes_the_column_text(tmp_path):
    columns = read_files([written(tmp_path / "a.csv", "x,t\n1,true\ntwo,maybe\n")]).columns
    assert columns == {"x": ["1", "two"], "t": ["true", "maybe"]}


def test_nested_objects_are_dotted_names_and_say_their_path(tmp_path):
    found = read_files([lines_of(tmp_path / "a.jsonl", [{"f": {"x": 1, "k.ey": 2}, "a.b": 3, "list": ["a"]}])])
    assert found.columns == {"f.x": [1], "f.k.ey": [2], "a.b": [3]}
    assert found.paths == {"f.x": "f.x", "f.k.ey": "f.k\\.ey"}


def test_structs_are_taken_apart_like_nested_objects(tmp_path):
    found = read_files([parquet(tmp_path / "a.parquet", f=[{"x": 1.0, "g": {"y": "a"}}, {"x": None, "g": None}])])
    assert {name: listed(values) for name, values in found.columns.items()} == {"f.x": [1.0, None], "f.g.y": ["a", None]}
    assert found.paths == {"f.x": "f.x", "f.g.y": "f.g.y"}


def test_typed_columns_become_numbers_text_truth_values_or_times(tmp_path):
    day = dt.date(2024, 1, 2)
    path = parquet(
        tmp_path / "a.parquet", whole=pa.array([1, None], pa.int64()), dictionary=pa.array(["a", None]).dictionary_encode(),
        numbers=pa.array([1.5, 2.5]).dictionary_encode(), decimal=pa.array([1, None], pa.decimal128(5, 2)),
        date=pa.array([day, None]), instant=pa.array([dt.datetime(2024, 1, 2), None], pa.timestamp("us", "UTC")),
        nothing=pa.nulls(2), bytes=pa.array([b"a", b"b"]), items=pa.array([["a"], ["b"]]))
    columns = read_files([path]).columns
    assert {name: listed(columns[name]) for name in ("whole", "dictionary", "numbers", "decimal", "nothing")} == {
        "whole": [1.0, None], "dictionary": ["a", None], "numbers": [1.5, 2.5], "decimal": [1.0, None], "nothing": [None, None]}
    assert columns["date"].dtype == columns["instant"].dtype == np.dtype("datetime64[ms]")
    assert columns["date"][0] == columns["instant"][0] == np.datetime64(day)
    assert not {"bytes", "items"} & set(columns)


def test_nan_in_json_is_missing_and_in_a_text_it_stays(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"x": NaN, "name": "NaNcy"}\n\n{"x": 1, "name": "b"}\n')
    columns = read_files([path]).columns
    assert columns["name"] == ["NaNcy", "b"]
    assert listed(as_kind("x", columns["x"], "numeric")) == [None, 1.0]


def test_columns_that_a_file_lacks_are_missing_in_its_rows(tmp_path):
    seen = []
    found = read_files([
        parquet(tmp_path / "a.parquet", x=[1.0, 2.0], t=pa.array([0, 1], pa.timestamp("ms"))),
        lines_of(tmp_path / "b.jsonl", [{"c": "a", "x": 3}])], seen.append)
    assert seen == [2, 1]
    assert found.columns["x"] == [1.0, 2.0, 3]
    assert found.columns["c"] == [None, None, "a"]
    assert found.columns["t"].dtype.kind == "M"
    assert np.isnat(found.columns["t"][2])


def test_kinds_that_differ_between_files_become_one_column(tmp_path):
    found = read_files([parquet(tmp_path / "a.parquet", x=[1, 2]), lines_of(tmp_path / "b.jsonl", [{"x": "three"}])])
    assert as_kind("x", found.columns["x"], "category") == ["1", "2", "three"]


# -- as a kind ---------------------------------------------------------------------------------------------------------

def test_whole_numbers_as_a_category_are_the_texts_that_the_stream_makes_of_them():
    assert as_kind("c", np.array([1.0, 2.5, np.nan]), "category") == ["1", "2.5", None]
    assert as_kind("c", [True, 3, None, "a"], "category") == ["true", "3", None, "a"]


@pytest.mark.parametrize(("values", "kind", "line"), [
    ([1, "two"], "numeric", "column x: expected numbers, got 'two'; take it with --category x"),
    ([1, True], "numeric", "column x: expected numbers, got 'True'; take it with --category x"),
    ([True, "yes"], "boolean", "column x: expected true or false, got 'yes'; take it with --category x"),
    (np.array([0], "datetime64[ms]"), "numeric", "column x: expected numbers or text, got times; leave it out with --ignore x")])
def test_a_value_that_cannot_be_of_the_kind_is_one_line(values, kind, line):
    with pytest.raises(ConfigError) as refused:
        as_kind("x", values, kind)
    assert str(refused.value) == line


# -- broken files ------------------------------------------------------------------------------------------------------

def test_a_broken_line_is_told_with_its_number(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"x": 1}\n\n{"x": \n')
    assert refusal(path).startswith(f"{path}: line 3: expected a JSON object on one line, got: ")


@pytest.mark.parametrize("line", ['[{"x": 1}]', "3", '"text"', "{'x': 1}", "NaN", "[" * 100_000, '{"x": ' + "9" * 400 + "}",
                                  '{"a": {"x": -' + "9" * 400 + "}}"])
def test_a_line_that_is_no_usable_object_is_told_with_its_number(tmp_path, line):
    path = written(tmp_path / "a.jsonl", '{"x": 1}\n' + line)
    assert f"{path}: line 2: expected a JSON object" in refusal(path)


def test_a_csv_row_of_another_width_is_told_with_its_number(tmp_path):
    assert "Row #3" in refusal(written(tmp_path / "a.csv", "x,y\n1,2\n3\n"))


@pytest.mark.parametrize(("name", "content"), [
    ("a.parquet", b"no parquet at all"), ("a.csv.gz", b"no gzip"), ("a.jsonl.gz", b"no gzip"),
    ("b.jsonl.gz", gzip.compress(b'{"x": 1}\n' * 1000)[:-20]), ("c.jsonl.gz", gzip.compress(b"{}")[:10] + b"\xff" * 40),
    ("a.csv", b""), ("b.csv", b"x\n\xff\xfe\n")])
def test_a_file_that_is_not_what_its_name_says_is_one_line(tmp_path, name, content):
    path = written(tmp_path / name, content)
    assert refusal(path).startswith(f"{path}: ")


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b""), ("a.csv", b"x,y\n"), ("b.jsonl", b"{}\n{}\n")])
def test_a_file_without_rows_is_one_line(tmp_path, name, content):
    path = written(tmp_path / name, content)
    assert refusal(path) == f"{path}: expected rows, got none; give a file with data"


def test_absent_and_unknown_files_are_one_line(tmp_path):
    assert refusal(str(tmp_path / "a.csv")) == f"{tmp_path}/a.csv: expected a file, found none; check the path"
    assert refusal(str(tmp_path)) == f"{tmp_path}: expected a file, found none; check the path"
    assert "expected a file named .parquet, .csv, .jsonl or .ndjson" in refusal(written(tmp_path / "a.xlsx", b"x"))


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = written(tmp_path / "a.csv", "x,x\n1,2\n")
    assert refusal(path) == f"{path}: expected each column once, got two named 'x'; rename one"


def test_documents_of_a_topic_are_flattened_the_same_way():
    found = from_documents([{"a": {"b": 1}}, {"c": None}])
    assert found.columns == {"a.b": [1, None], "c": [None, None]}
    assert found.paths == {"a.b": "a.b"}


def test_lists_of_numbers_are_vectors_in_every_format_that_has_lists(tmp_path):
    rows = [{"e": [1, 2.5]}, {"e": None}, {"e": [3, None]}]
    expected = [[1, 2.5], [np.nan] * 2, [np.nan] * 2]
    for path in (lines_of(tmp_path / "a.jsonl", rows), parquet(tmp_path / "a.parquet", e=[row["e"] for row in rows]),
                 parquet(tmp_path / "b.parquet", e=pa.array([row["e"] for row in rows], pa.list_(pa.float32(), 2)))):
        found = read_files([path]).columns["e"]
        np.testing.assert_array_equal(expected, found)
        np.testing.assert_array_equal(expected, as_kind("e", found, "embedding"))


def test_vectors_in_nested_objects_say_their_path(tmp_path):
    found = read_files([lines_of(tmp_path / "a.jsonl", [{"f": {"e": [1, 2], "names": ["a"]}}])])
    assert list(found.columns) == ["f.e"]
    assert found.paths == {"f.e": "f.e"}


def test_files_with_vectors_of_one_length_become_one_matrix(tmp_path):
    paths = [parquet(tmp_path / "a.parquet", e=[[1.0, 2.0]]), lines_of(tmp_path / "b.jsonl", [{"e": [3, 4]}, {"e": None}]),
             lines_of(tmp_path / "c.jsonl", [{"other": 1}])]
    np.testing.assert_array_equal([[1, 2], [3, 4], [np.nan] * 2, [np.nan] * 2], read_files(paths).columns["e"])


@pytest.mark.parametrize("other", [[1.0], "text", 3.0])
def test_what_is_not_vectors_throughout_can_be_no_embedding(tmp_path, other):
    found = read_files([parquet(tmp_path / "a.parquet", e=[[1.0, 2.0]] * 2), lines_of(tmp_path / "b.jsonl", [{"e": other}])])
    with pytest.raises(ConfigError, match="column e: embedding: expected") as refused:
        as_kind("e", found.columns["e"], "embedding")
    assert str(refused.value).isprintable()


def test_lists_of_different_lengths_stay_lists_of_vectors(tmp_path):
    rows = [{"e": [1, 2]}, {"e": None}, {"e": [3]}, {"e": []}]
    for path in (lines_of(tmp_path / "a.jsonl", rows), parquet(tmp_path / "a.parquet", e=[row["e"] for row in rows])):
        found = read_files([path]).columns["e"]
        assert [value if value is None else value.tolist() for value in found] == [[1, 2], None, [3], []]


@pytest.mark.parametrize("kind", ["numeric", "category", "boolean", "text"])
def test_vectors_are_of_no_other_kind(kind):
    with pytest.raises(ConfigError, match="column e: expected one value per row, got vectors"):
        as_kind("e", np.zeros((3, 2)), kind)


def test_text_that_is_asked_for_is_taken_as_it_stands(tmp_path):
    found = read_files([written(tmp_path / "a.csv", "t\n007\n1.50\n")], text=["t"]).columns["t"]
    assert as_kind("t", found, "text") == ["007", "1.50"]


def test_a_number_beyond_float64_in_a_list_makes_it_no_column(tmp_path):
    found = read_files([written(tmp_path / "a.jsonl", '{"e": [1' + "0" * 400 + '], "x": 1}')])
    assert list(found.columns) == ["x"]
