"""Embedding and text columns on their way in: what is a vector, what is missing, what is refused."""

import json

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detectors.rows import Column
from monitor import config
from monitor.errors import ConfigError
from monitor.flow import Part
from monitor.ingest import decode as decode_module
from monitor.ingest import files
from monitor.ingest.columnar import TEXT_CELLS
from monitor.ingest.decode import Decoder
from monitor.ingest.files import FileSource
from monitor.ingest.schema import StreamSchema
from monitor.state.capture import Capture

T0 = 1_700_000_000_000
COLUMNS = [Column("e", "embedding"), Column("t", "text"), Column("x", "numeric")]


def resolve(dimensions=None):
    return StreamSchema.resolve(config.Schema(), COLUMNS, "monitors[0].schema", {"e": 3} if dimensions is None else dimensions)


def part_of(values):
    n = len(values)
    return Part("topic", 0, values, np.arange(n), np.full(n, T0), n)


def decode(*events, limits=None):
    return Decoder("m", resolve(), limits or config.Limits()).decode(part_of(list(events)))


def table(metadata=None, **columns):
    found = pa.table(columns)
    return Decoder("m", resolve(), config.Limits()).decode(part_of(found.replace_schema_metadata(metadata)))


def test_a_list_becomes_a_row_of_a_matrix_and_a_text_stays_one():
    rows = decode(b'{"e": [1, 2.5, -3e2], "t": "A text, \\u00e4.", "x": 1}', b'{"e": [0, 0, 0], "t": ""}')
    assert rows.columns["e"].dtype == np.float64
    np.testing.assert_array_equal([[1, 2.5, -300], [0, 0, 0]], rows.columns["e"])
    assert list(rows.columns["t"]) == ["A text, ä.", ""]


@pytest.mark.parametrize("value", ["null", "[1, null, 3]", "[1, NaN, 3]", "[NaN, NaN, NaN]", None])
def test_a_vector_that_is_absent_or_has_a_hole_is_missing(value):
    rows = decode((f'{{"e": {value}, "x": 1}}' if value else '{"x": 1}').encode(), b'{"e": [1, 2, 3], "x": 2}')
    np.testing.assert_array_equal([[np.nan] * 3, [1, 2, 3]], rows.columns["e"])
    assert rows.refusals == ()


@pytest.mark.parametrize("value", [
    "[]", "[1, 2]", "[1, 2, 3, 4]", "3", '"[1, 2, 3]"', '[1, "2", 3]', "[1, true, 3]", "[[1, 2, 3]]", "[1, [2], 3]",
    '{"0": 1}', "[1, {}, 3]", "true", "[" * 3 + "]" * 3])
def test_what_is_no_vector_of_that_length_is_refused_as_type(value):
    rows = decode(f'{{"e": {value}, "x": 1}}'.encode(), b'{"e": [1, 2, 3]}')
    assert [refusal.reason for refusal in rows.refusals] == ["type"]
    assert rows.offsets.tolist() == [1]
    np.testing.assert_array_equal([[1, 2, 3]], rows.columns["e"])


@pytest.mark.parametrize("value", ["[1, 2", "[1, Infinity, 2]", "[1, 1e400, 2]", "[1,, 2]"])
def test_what_is_no_json_is_refused_as_such(value):
    assert [refusal.reason for refusal in decode(f'{{"e": {value}}}'.encode()).refusals] == ["json"]


def test_a_vector_beyond_the_message_s_limit_is_never_parsed():
    rows = decode(json.dumps({"e": [0.5] * 400}).encode(), limits=config.Limits(message_bytes=1000))
    assert [refusal.reason for refusal in rows.refusals] == ["too_large"]


def test_numbers_in_a_text_column_are_their_text_and_lists_are_refused():
    rows = decode(b'{"t": 3}', b'{"t": true}', b'{"t": ["a"]}', b'{"t": {"a": 1}}', b'{}')
    assert list(rows.columns["t"]) == ["3", "true", None]
    assert [refusal.reason for refusal in rows.refusals] == ["type", "type"]


def test_an_alias_stands_in_for_vectors_that_are_missing():
    said = {"e": config.SchemaColumn(path="new", aliases=["old.e"])}
    schema = StreamSchema.resolve(config.Schema(columns=said), COLUMNS, "schema", {"e": 3})
    rows = Decoder("m", schema, config.Limits()).decode(
        part_of([b'{"new": [1, 2, 3]}', b'{"old": {"e": [4, 5, 6]}}', b'{"new": null, "old": null}']))
    np.testing.assert_array_equal([[1, 2, 3], [4, 5, 6], [np.nan] * 3], rows.columns["e"])


def test_the_blocks_of_a_part_cannot_be_seen_in_its_rows(monkeypatch):
    events = [json.dumps({"e": [i, i, i] if i % 7 else [i], "t": f"t{i}", "x": i}).encode() for i in range(50)]
    whole = decode(*events)
    monkeypatch.setattr(decode_module, "_BLOCK_ENTRIES", 3 * 4)
    cut = decode(*events)
    np.testing.assert_array_equal(whole.columns["e"], cut.columns["e"])
    assert list(whole.columns["t"]) == list(cut.columns["t"])
    assert whole.offsets.tolist() == cut.offsets.tolist() == [i for i in range(50) if i % 7]
    assert whole.refusals == cut.refusals
    assert [refusal.offset for refusal in cut.refusals] == list(range(0, 50, 7))


def test_a_part_without_records_has_an_empty_matrix():
    assert decode().columns["e"].shape == (0, 3)
    assert decode(b"{").columns["e"].shape == (0, 3)


def test_an_event_without_a_usable_time_takes_its_vector_with_it():
    schema = StreamSchema.resolve(config.Schema(timestamp="ts"), COLUMNS, "schema", {"e": 3})
    rows = Decoder("m", schema, config.Limits()).decode(
        part_of([b'{"ts": 1, "e": [1, 2, 3]}', b'{"e": [4, 5, 6]}', b'{"ts": 2, "e": [7, 8, 9]}']))
    np.testing.assert_array_equal([[1, 2, 3], [7, 8, 9]], rows.columns["e"])


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "numbers"), [
    (pa.list_(pa.float64()), float), (pa.list_(pa.float32()), float), (pa.list_(pa.int64()), int),
    (pa.large_list(pa.float16()), np.float16), (pa.list_(pa.float32(), 3), float)])
def test_lists_of_any_numbers_are_vectors(kind, numbers):
    rows = table(e=pa.array([[numbers(1), numbers(2), numbers(3)], None], kind), t=pa.array(["a", None]))
    np.testing.assert_array_equal([[1, 2, 3], [np.nan] * 3], rows.columns["e"])
    assert list(rows.columns["t"]) == ["a", None]


def test_lists_of_another_length_or_with_an_infinity_are_refused_alone():
    rows = table(e=pa.array([[1.0, 2, 3], [1.0], [1.0, None, 3], [1.0, np.inf, 3], [], [1.0, np.nan, 3], [4.0, 5, 6]]))
    assert [(refusal.offset, refusal.reason) for refusal in rows.refusals] == [(1, "type"), (3, "type"), (4, "type")]
    np.testing.assert_array_equal([[1, 2, 3], [np.nan] * 3, [np.nan] * 3, [4, 5, 6]], rows.columns["e"])


@pytest.mark.parametrize("column", [pa.array(["[1, 2, 3]"]), pa.array([[["a"]]]), pa.array([["a", "b", "c"]]), pa.array([1.0]),
                                    pa.array([{"a": 1}]), pa.array([True])])
def test_a_column_without_vectors_refuses_its_rows(column):
    assert [refusal.reason for refusal in table(e=column).refusals] == ["type"]


@pytest.mark.parametrize("columns", [{"x": pa.array([1.0])}, {"e": pa.nulls(1), "x": pa.array([1.0])}])
def test_an_absent_column_of_vectors_is_missing(columns):
    rows = table(**columns)
    assert rows.columns["e"].shape == (1, 3)
    assert np.isnan(rows.columns["e"]).all()


def test_vectors_in_csv_are_refused_and_told_where_they_can_stand():
    rows = table({TEXT_CELLS: b""}, e=pa.array(["[1, 2, 3]", None]))
    assert [refusal.offset for refusal in rows.refusals] == [0]
    assert "CSV has no lists, give Parquet or JSON lines" in rows.refusals[0].detail


def test_slices_of_a_table_keep_their_own_vectors():
    whole = pa.table({"e": pa.array([[float(i)] * 3 for i in range(10)] + [None], pa.list_(pa.float64(), 3))})
    rows = Decoder("m", resolve(), config.Limits()).decode(part_of(whole.slice(4, 3)))
    np.testing.assert_array_equal([[4] * 3, [5] * 3, [6] * 3], rows.columns["e"])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_blocks_of_files_are_bounded_in_bytes(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(files, "BLOCK_BYTES", 4_000)
    events = [{"e": np.random.default_rng(i).random(3).tolist(), "t": str(i) * 200, "x": i} for i in range(100)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(events), path)
    else:
        path.write_text("\n".join(map(json.dumps, events)))
    for start in (0, 37):
        source = FileSource([str(path)], "topic")
        source.seek({("topic", 0): start})
        decoder = Decoder("m", resolve(), config.Limits())
        rows = [decoder.decode(part) for batch in source for part in batch.parts]
        assert max(map(len, rows)) < 60
        assert [o for r in rows for o in r.offsets.tolist()] == list(range(start, 100))
        np.testing.assert_array_equal([event["e"] for event in events[start:]], np.concatenate([r.columns["e"] for r in rows]))


# ---- the schema -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schema", "words"), [
    ({"e": config.SchemaColumn(kind="numeric")}, "columns.e.kind: expected embedding, as in the reference, got numeric"),
    ({"t": config.SchemaColumn(kind="category")}, "columns.t.kind: expected text, as in the reference, got category"),
    ({"y": config.SchemaColumn(role="label", kind="embedding")}, "columns.y.kind: expected numeric, category or boolean"),
    ({"t": config.SchemaColumn(path="e")}, "expected one kind of value at e"),
])
def test_a_contradiction_names_its_key(schema, words):
    with pytest.raises(ConfigError) as error:
        StreamSchema.resolve(config.Schema(columns=schema), COLUMNS, "schema", {"e": 3})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_embedding_without_a_length_is_one_line():
    with pytest.raises(ConfigError, match=r"columns.e.kind: expected the length of its vectors from the reference"):
        resolve(dimensions={})


def test_two_lengths_cannot_share_a_place():
    columns = [Column("e", "embedding"), Column("f", "embedding")]
    said = {"f": config.SchemaColumn(path="e")}
    with pytest.raises(ConfigError, match="embedding of 4 numbers here and embedding of 3 numbers"):
        StreamSchema.resolve(config.Schema(columns=said), columns, "schema", {"e": 3, "f": 4})


def test_a_label_of_text_is_compared_as_a_category():
    said = {"y": config.SchemaColumn(role="label", kind="text")}
    (label,) = StreamSchema.resolve(config.Schema(columns=said), COLUMNS, "schema", {"e": 3}).labels
    assert label.kind == "category"


def test_the_configuration_takes_the_kinds():
    for kind in ("embedding", "text"):
        assert msgspec.convert({"kind": kind}, config.SchemaColumn).kind == kind


# ---- captured events ------------------------------------------------------------------------------------------------


def test_captured_vectors_and_texts_come_back_as_they_were(tmp_path):
    capture = Capture("m", str(tmp_path), ("e", "t", "x"), (), 100)
    capture.add(decode(b'{"e": [1, 2, 3], "t": "a b", "x": 1}', b'{"x": 2}'))
    capture.write(whole=True)
    capture.add(decode(b'{"e": [4, 5, 6], "t": ""}'))
    (file,) = capture.write(whole=True).added
    found = pq.ParquetFile(tmp_path / file.file).read()
    assert found["e"].to_pylist() == [[1, 2, 3], None, [4, 5, 6]]
    assert found["t"].to_pylist() == ["a b", None, ""]
    assert found.schema.field("e").type == pa.list_(pa.float64(), 3)
    again = Decoder("m", resolve(), config.Limits()).decode(part_of(found))
    np.testing.assert_array_equal([[1, 2, 3], [np.nan] * 3, [4, 5, 6]], again.columns["e"])
