"""The decoder's semantics, pinned: what is a value, what is missing, what is refused and why."""

import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor import config
from monitor.flow import REASONS, Part
from monitor.ingest.columnar import TEXT_CELLS
from monitor.ingest.decode import Decoder
from monitor.ingest.schema import StreamSchema

T0 = 1_700_000_000_000


class Column(NamedTuple):
    name: str
    kind: str
    role: str = "input"


COLUMNS = [Column("age", "numeric"), Column("sex", "category"), Column("member", "boolean"),
           Column("answer", "category", "prediction")]
SCHEMA = config.Schema(prefix="x", timestamp="ts", id="id", columns={
    "answer": config.SchemaColumn(path="answer"), "truth": config.SchemaColumn(path="truth", role="label")})


def part_of(*values):
    n = len(values)
    return Part("topic", 3, list(values), np.arange(100, 100 + n), np.full(n, T0 + 5), 100 + n)


def decode(*values, schema=SCHEMA, columns=COLUMNS, limits=None):
    decoder = Decoder("m", StreamSchema.resolve(schema, columns, "monitors[0].schema"), limits or config.Limits())
    return decoder.decode(part_of(*values))


def event(**x):
    return json.dumps({"ts": T0, "id": "e1", "answer": "yes", "x": x}).encode()


def number(text):
    """An event whose column `age` is this JSON text."""
    return b'{"ts": 1700000000000, "answer": "yes", "x": {"age": ' + text + b'}}'


def test_a_whole_event_becomes_one_value_per_column():
    rows = decode(json.dumps({"ts": T0, "id": 7, "answer": 1, "truth": 0,
                              "x": {"age": 41, "sex": "f", "member": True, "more": [1, {"a": 2}]}}).encode())
    assert rows.columns["age"].tolist() == [41.0]
    assert [list(rows.columns[name]) for name in ("sex", "member", "answer")] == [["f"], ["true"], ["1"]]
    assert {name: list(values) for name, values in rows.others.items()} == {"truth": ["0"], "id": ["7"]}
    assert rows.times.tolist() == [T0]
    assert (rows.offsets.tolist(), rows.next_offset, rows.read, rows.refusals) == ([100], 101, 1, ())


@pytest.mark.parametrize("text", [b"NaN", b"null"])
def test_nan_and_null_are_missing(text):
    rows = decode(number(text))
    assert np.isnan(rows.columns["age"]).tolist() == [True]
    assert rows.retried == (text == b"NaN")


def test_a_nan_outside_the_schema_costs_nothing_but_a_second_reading():
    rows = decode(b'{"ts": 1700000000000, "other": [NaN, 1], "x": {"age": 2}}')
    assert (rows.columns["age"].tolist(), rows.retried) == ([2.0], 1)


@pytest.mark.parametrize("document", [b'{"ts": 1700000000000}', b'{"ts": 1700000000000, "x": null}',
                                      b'{"ts": 1700000000000, "x": {"unknown": 5}}'])
def test_absent_keys_and_objects_are_missing_and_unknown_ones_are_ignored(document):
    rows = decode(document)
    assert len(rows) == 1
    assert np.isnan(rows.columns["age"]).all()
    assert [list(rows.columns[name]) for name in ("sex", "member", "answer")] == [[None], [None], [None]]


@pytest.mark.parametrize(("text", "value"), [
    (b"3", 3.0), (b"1" * 50, float("1" * 50)), (b"1e3", 1000.0), (b"-0.5", -0.5), (b"1, \"age\": 2", 2.0)])
def test_numbers_of_every_writing_are_taken_and_of_a_duplicate_key_the_last(text, value):
    assert decode(number(text)).columns["age"].tolist() == [value]


@pytest.mark.parametrize("text", [b"3", b"1" * 50, b"1e3"])
def test_a_nan_beside_a_number_does_not_change_the_number(text):
    rows = decode(b'{"ts": 1700000000000, "n": NaN, "x": {"age": ' + text + b'}}')
    assert rows.columns["age"].tolist() == [float(text)]


DEEP = b"[" * 100_000 + b"]" * 100_000
REFUSED = [
    (None, "tombstone"),
    (b"", "json"),
    (number(b"1")[:-3], "json"),
    (number(b"1") + b" {}", "json"),
    (number(b"Infinity"), "json"),
    (number(b"-Infinity"), "json"),
    (number(b"1e400"), "json"),
    (number(b'NaN, "other": Infinity'), "json"),
    (number(b'NaN, "other": 1e400'), "json"),
    (b"null", "type"),
    (b"[]", "type"),
    (b"7", "type"),
    (number(b"true"), "type"),
    (number(b'"3"'), "type"),
    (number(b'"3", "other": NaN'), "type"),
    (number(b"[1]"), "type"),
    (b'{"ts": 1700000000000, "x": 5}', "type"),
    (b'{"ts": 1700000000000, "x": {"sex": {"a": 1}}}', "type"),
    (b'{"ts": 1700000000000, "x": {"member": 2}}', "type"),
    (b'{"ts": 1700000000000, "x": {"member": "yes"}}', "type"),
    (b'{"ts": 1700000000000, "x": {"sex": "\xff\xfe"}}', "encoding"),
    (b'{"ts": 1700000000000, "n": NaN, "x": {"sex": "\xff"}}', "encoding"),
    (b'{"ts": 1700000000000, "x": {"sex": "\\ud800"}}', "encoding"),
    (b'{"ts": 1700000000000, "n": NaN, "x": {"sex": "\\ud800"}}', "encoding"),
    (b"\xef\xbb\xbf" + number(b"1"), "encoding"),
    (b'{"ts": 1700000000000, "deep": ' + DEEP + b"}", "depth"),
    (b'{"ts": 1700000000000, "n": NaN, "deep": ' + DEEP + b"}", "depth"),
    (b'{"x": {"age": 1}}', "timestamp"),
    (b'{"ts": null}', "timestamp"),
    (b'{"ts": "1700000000000"}', "timestamp"),
    (b'{"ts": true}', "timestamp"),
    (b'{"ts": -1}', "timestamp"),
    (b'{"ts": ' + b"9" * 23 + b"}", "timestamp"),
    (b'{"ts": 8589934592000}', "timestamp"),
    (b'{"ts": 1700000000000, "x": {"sex": "' + b"a" * 10_000_000 + b'"}}', "too_large"),
]


@pytest.mark.parametrize(("value", "reason"), REFUSED, ids=[f"{i}-{r}" for i, (_, r) in enumerate(REFUSED)])
def test_a_bad_event_is_refused_alone_with_its_reason_place_and_bytes(value, reason):
    rows = decode(event(age=1), value, event(age=2))
    assert rows.columns["age"].tolist() == [1.0, 2.0]
    (refusal,) = rows.refusals
    assert refusal.reason == reason
    assert refusal.reason in REASONS
    assert (refusal.topic, refusal.partition, refusal.offset, refusal.value) == ("topic", 3, 101, value)
    assert len(refusal.detail) <= 200
    assert (rows.offsets.tolist(), rows.read) == ([100, 102], 3)


def test_every_refusal_stays_in_stream_order_whatever_its_reason():
    rows = decode(b'{"ts": -1}', b"{", event(age=1), b'{"x": {}}', None)
    assert [r.offset for r in rows.refusals] == [100, 101, 103, 104]
    assert rows.offsets.tolist() == [102]


@given(st.lists(st.one_of(st.binary(max_size=40), st.none(), st.integers().map(lambda i: b"%d" % i),
                          st.sampled_from([event(age=1), b"{}", b'{"ts": NaN}', b'{"ts":1e9999, "a": NaN}']))))
def test_every_record_is_a_row_or_a_refusal_and_nothing_raises(values):
    rows = decode(*values)
    assert len(rows) + len(rows.refusals) == rows.read == len(values)
    assert {r.reason for r in rows.refusals} <= set(REASONS)


@pytest.mark.parametrize(("unit", "text", "expected"), [
    ("milliseconds", b"1700000000123", 1_700_000_000_123),
    ("milliseconds", b"1.7e12", 1_700_000_000_000),
    ("milliseconds", b"1700000000123.9", 1_700_000_000_123),
    ("seconds", b"1700000000", 1_700_000_000_000),
    ("seconds", b"1700000000.001", 1_700_000_000_001),
    ("seconds", b"1.001", 1_001),
    ("iso8601", b'"2023-11-14T22:13:20Z"', 1_700_000_000_000),
    ("iso8601", b'"2023-11-15T00:13:20.123+02:00"', 1_700_000_000_123),
    ("iso8601", b'"2023-11-14T22:13:20"', 1_700_000_000_000),
])
def test_event_time_is_read_in_its_unit(unit, text, expected):
    schema = config.Schema(timestamp="meta.at", timestamp_unit=unit)
    rows = decode(b'{"meta": {"at": ' + text + b'}, "age": 1}', schema=schema)
    assert rows.times.tolist() == [expected]


@pytest.mark.parametrize("text", [b'"yesterday"', b"1700000000", b'"1969-12-31T23:59:59Z"', b'"2300-01-01T00:00:00Z"'])
def test_a_text_that_is_no_time_in_range_is_refused(text):
    rows = decode(b'{"at": ' + text + b"}", schema=config.Schema(timestamp="at", timestamp_unit="iso8601"))
    assert [r.reason for r in rows.refusals] == ["timestamp"]


def test_without_a_timestamp_path_the_record_s_own_time_counts():
    decoder = Decoder("m", StreamSchema.resolve(config.Schema(), COLUMNS), config.Limits())
    rows = decoder.decode(Part("t", 0, [b"{}", b"{}"], np.array([1, 2]), np.array([T0, -1]), 3))
    assert rows.times.tolist() == [T0]
    assert [(r.offset, r.reason) for r in rows.refusals] == [(2, "timestamp")]


def test_the_first_alias_that_has_a_value_wins():
    schema = config.Schema(columns={"age": config.SchemaColumn(aliases=["years", "old.age"]),
                                    "sex": config.SchemaColumn(aliases=["gender"])})
    rows = decode(b'{"age": 1, "years": 2, "sex": "a"}', b'{"years": 2, "gender": "b"}',
                  b'{"age": NaN, "old": {"age": 3}}', b'{"sex": null, "gender": 5}', b"{}", schema=schema)
    assert rows.columns["age"].tolist()[:3] == [1, 2, 3]
    assert list(rows.columns["sex"]) == ["a", "b", None, "5", None]


def test_a_number_as_a_category_is_its_text_and_whole_numbers_have_no_point():
    values = [b'3', b'3.0', b'2.5', b'true', b'"3.0"', b"null"]
    rows = decode(*[b'{"ts": 1700000000000, "answer": ' + value + b"}" for value in values])
    assert list(rows.columns["answer"]) == ["3", "3", "2.5", "true", "3.0", None]


def test_keys_with_dots_are_reached_by_name_and_by_backslash():
    columns = [Column("sepal.length", "numeric"), Column("width", "numeric")]
    schema = config.Schema(prefix="x", columns={"width": config.SchemaColumn(path=r"x.sepal\.width")})
    rows = decode(b'{"x": {"sepal.length": 1, "sepal.width": 2}}', schema=schema, columns=columns)
    assert [rows.columns[name].tolist() for name in ("sepal.length", "width")] == [[1], [2]]


def test_a_schema_of_one_column_and_an_empty_part_decode():
    rows = decode(schema=config.Schema(), columns=[Column("age", "numeric")])
    assert (len(rows), rows.columns["age"].shape, rows.next_offset) == (0, (0,), 100)
    assert decode(b'{"age": 4}', schema=config.Schema(), columns=[Column("age", "numeric")]).columns["age"] == [4]


# --- tables

def decode_table(table, schema=SCHEMA, columns=COLUMNS):
    n = len(table)
    decoder = Decoder("m", StreamSchema.resolve(schema, columns), config.Limits())
    return decoder.decode(Part("file", 0, table, np.arange(n), np.full(n, T0), n))


def test_a_table_decodes_as_its_rows_would_as_json():
    events = [{"ts": T0 + i, "id": f"e{i}", "answer": i % 2, "truth": i % 3,
               "x": {"age": age, "sex": sex, "member": i % 2 == 0}}
              for i, (age, sex) in enumerate([(1.5, "f"), (None, None), (3.0, "m")])]
    table = decode_table(pa.Table.from_pylist(events))
    stream = decode(*[json.dumps(e).encode() for e in events])
    assert table.times.tolist() == stream.times.tolist()
    np.testing.assert_array_equal(table.columns["age"], stream.columns["age"])
    for name in ("sex", "member", "answer"):
        assert list(table.columns[name]) == list(stream.columns[name])
    assert {k: list(v) for k, v in table.others.items()} == {k: list(v) for k, v in stream.others.items()}


def test_flat_and_bare_names_are_found_in_a_table():
    table = decode_table(pa.table({"ts": [T0], "x.age": [5], "sex": ["f"], "answer": pa.array(["a"]).dictionary_encode()}))
    assert table.columns["age"].tolist() == [5]
    assert list(table.columns["sex"]) == ["f"]
    assert list(table.columns["answer"]) == ["a"]


def test_a_wrong_cell_refuses_its_row_and_an_absent_column_is_missing():
    rows = decode_table(pa.table({"ts": [T0, T0, T0, -5], "age": [1.0, float("inf"), float("nan"), 2.0]}))
    assert [(r.offset, r.reason) for r in rows.refusals] == [(1, "type"), (3, "timestamp")]
    assert json.loads(rows.refusals[1].value)["ts"] == -5
    assert rows.offsets.tolist() == [0, 2]
    np.testing.assert_array_equal(rows.columns["age"], [1.0, np.nan])
    assert list(rows.columns["sex"]) == [None, None]


def test_text_is_no_number_in_parquet_but_is_one_in_csv():
    table = pa.table({"ts": [T0] * 5, "age": ["1.5", "", "NaN", "old", "inf"], "member": ["True", "0", None, "1", "1"]})
    strict = decode_table(table)
    assert {r.reason for r in strict.refusals} == {"type"}
    assert len(strict) == 0
    text = decode_table(table.replace_schema_metadata({TEXT_CELLS: b""}))
    assert [(r.offset, r.reason) for r in text.refusals] == [(3, "type"), (4, "type")]
    np.testing.assert_array_equal(text.columns["age"], [1.5, np.nan, np.nan])
    assert list(text.columns["member"]) == ["true", "false", None]


@pytest.mark.parametrize(("values", "unit"), [
    (pa.array([T0], pa.timestamp("ms")), "milliseconds"),
    (pa.array([T0 * 1_000_000], pa.timestamp("ns", tz="Europe/Rome")), "seconds"),
    (pa.array([T0 / 1000]), "seconds"),
    (pa.array(["2023-11-14T22:13:20Z"]), "iso8601"),
])
def test_a_table_s_time_column_is_read_by_its_type_or_its_unit(values, unit):
    rows = decode_table(pa.table({"at": values}), schema=config.Schema(timestamp="at", timestamp_unit=unit))
    assert rows.times.tolist() == [T0]


def test_an_event_from_next_year_is_refused_so_that_it_cannot_make_all_that_follows_late():
    schema = StreamSchema.resolve(config.Schema(timestamp="ts"), [Column("x", "numeric")])
    now = T0 / 1000
    decoder = Decoder("m", schema, config.Limits(), clock=lambda: now)
    stamps = [T0, T0 + 80_000_000, T0 + 31_536_000_000]
    rows = decoder.decode(part_of(*(b'{"ts": %d, "x": 1}' % stamp for stamp in stamps)))
    assert rows.offsets.tolist() == [100, 101]
    assert [(refusal.offset, refusal.reason) for refusal in rows.refusals] == [(102, "timestamp")]
