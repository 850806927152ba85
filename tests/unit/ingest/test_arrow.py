"""Arrow messages: every row is what the same event is as JSON, what is bad is refused with its place, and nothing is trusted."""

import datetime as dt
import decimal
import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import config
from monitor.flow import REASONS, Batch
from monitor.ingest import arrow_headers
from monitor.ingest.arrow import apart
from monitor.ingest.arrow_headers import declared
from monitor.ingest.decode import Decoder
from tests.unit.ingest.arrow_messages import COLUMNS, SCHEMA, T0, TYPES, decoder, message, of_events, part_of, resolved
from tests.unit.ingest.test_decode import Column

EVENT = {"ts": T0 + 1, "id": "a", "age": 40.5, "sex": "f", "member": True, "note": "hello you", "vec": [1.0, 2.0],
         "out": {"answer": "yes"}, "truth": "no"}
ONE = [Column("x", "numeric")]


def listed(values):
    """A column for comparison: NaN as None."""
    plain = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return [None if value != value else value for value in plain] if not (plain and isinstance(plain[0], list)) else [
        None if any(math.isnan(entry) for entry in value) else value for value in plain]


def one_column(array, kind="numeric", schema=None, **options):
    """What a column `x` of this array is read as."""
    columns = [Column("x", kind)]
    batch = pa.record_batch({"x": array})
    return decoder(schema or config.Schema(), columns, **options).decode(part_of([message(batch)]))


def test_a_message_of_many_events_gives_each_of_them_with_its_offset_and_row():
    second = {"ts": T0 + 2, "sex": "m", "out": None, "vec": None, "years": 12.0}
    rows = decoder().decode(part_of([of_events([EVENT, second]), of_events([EVENT])]))
    assert rows.refusals == ()
    assert (len(rows), rows.read, rows.next_offset) == (3, 3, 102)
    assert rows.offsets.tolist() == [100, 100, 101]
    assert rows.within.tolist() == [0, 1, 0]
    assert rows.times.tolist() == [T0 + 1, T0 + 2, T0 + 1]
    assert listed(rows.columns["age"]) == [40.5, 12.0, 40.5]
    assert {name: listed(rows.columns[name]) for name in ("sex", "member", "note", "answer")} == {
        "sex": ["f", "m", "f"], "member": ["true", None, "true"], "note": ["hello you", None, "hello you"],
        "answer": ["yes", None, "yes"]}
    assert listed(rows.columns["vec"]) == [[1.0, 2.0], None, [1.0, 2.0]]
    assert {name: listed(values) for name, values in rows.others.items()} == {
        "truth": ["no", None, "no"], "id": ["a", None, "a"]}


@pytest.mark.parametrize("options", [
    {}, {"compression": "zstd"}, {"compression": "lz4"}, {"as_file": True}, {"as_file": True, "compression": "zstd"}])
def test_streams_and_files_packed_or_not_say_the_same(options):
    rows = decoder().decode(part_of([of_events([EVENT] * 5, **options)]))
    assert (len(rows), rows.refusals) == (5, ())
    assert listed(rows.columns["age"]) == [40.5] * 5


@pytest.mark.parametrize(("kind", "array", "expected"), [
    ("numeric", pa.array([1, None, -3], pa.int8()), [1.0, None, -3.0]),
    ("numeric", pa.array([1, None, 2**63], pa.uint64()), [1.0, None, float(2**63)]),
    ("numeric", pa.array([1.5, math.nan, None], pa.float32()), [1.5, None, None]),
    ("numeric", pa.array(np.array([1.5, 2.5, 0.0], np.float16)), [1.5, 2.5, 0.0]),
    ("numeric", pa.array([decimal.Decimal("1.25"), None], pa.decimal128(9, 2)), [1.25, None]),
    ("numeric", pa.array([1.5, 1.5, None]).dictionary_encode(), [1.5, 1.5, None]),
    ("numeric", pa.nulls(2), [None, None]),
    ("category", pa.array(["a", None, ""], pa.large_string()), ["a", None, ""]),
    ("category", pa.array(["a", None, "long enough not to be inline"], pa.string_view()),
     ["a", None, "long enough not to be inline"]),
    ("category", pa.DictionaryArray.from_arrays(pa.array([1, 0, None, 2], pa.uint8()), pa.array(["a", "b", None])),
     ["b", "a", None, None]),
    ("category", pa.array([3, None], pa.int64()), ["3", None]),
    ("category", pa.array([3.0, 2.5, math.nan]), ["3", "2.5", None]),
    ("category", pa.array([True, None]), ["true", None]),
    ("category", pa.array([decimal.Decimal("2.50")], pa.decimal128(9, 2)), ["2.5"]),
    ("category", pa.nulls(2), [None, None]),
    ("boolean", pa.array([1, 0, None], pa.int8()), ["true", "false", None]),
    ("boolean", pa.array(["true", "false"]), ["true", "false"]),
    ("boolean", pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8())), ["true", "false", None]),
    ("text", pa.array(["some words", None]).dictionary_encode(), ["some words", None]),
    ("category", pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8())), ["true", "false", None]),
])
def test_every_type_that_holds_such_a_value_is_read_as_it(kind, array, expected):
    rows = one_column(array, kind)
    assert rows.refusals == ()
    assert listed(rows.columns["x"]) == expected


def test_a_tensor_is_a_vector():
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2]),
                                            pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)))
    rows = decoder(config.Schema(), [Column("vec", "embedding")]).decode(part_of([message(pa.record_batch({"vec": tensor}))]))
    assert listed(rows.columns["vec"]) == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(("unit", "array", "expected"), [
    ("milliseconds", pa.array([T0, T0 + 1]), [T0, T0 + 1]),
    ("seconds", pa.array([T0 / 1000 + 0.001]), [T0 + 1]),
    ("iso8601", pa.array(["2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00"]), [T0, T0]),
    ("iso8601", pa.array(["2023-11-14T22:13:20Z"]).dictionary_encode(), [T0]),
    ("milliseconds", pa.array([T0 // 1000], pa.timestamp("s")), [T0]),
    ("seconds", pa.array([T0 + 7], pa.timestamp("ms", tz="Europe/Berlin")), [T0 + 7]),
    ("iso8601", pa.array([T0 * 1000 + 999], pa.timestamp("us", tz="UTC")), [T0]),
    ("milliseconds", pa.array([T0 * 1_000_000 + 999_999], pa.timestamp("ns")), [T0]),
    ("milliseconds", pa.array([dt.date(2023, 11, 14)], pa.date32()), [T0 // 86_400_000 * 86_400_000]),
    ("milliseconds", pa.array([dt.date(2023, 11, 14)], pa.date64()), [T0 // 86_400_000 * 86_400_000]),
])
def test_times_are_arrow_timestamps_of_any_unit_and_zone_or_what_json_would_have(unit, array, expected):
    rows = one_column(array, schema=config.Schema(timestamp="x", timestamp_unit=unit, columns={
        "x": config.SchemaColumn(path="absent")}))
    assert rows.refusals == ()
    assert rows.times.tolist() == expected


@pytest.mark.parametrize("array", [
    pa.array([2**62], pa.timestamp("s")), pa.array([-1], pa.timestamp("ms")), pa.array([None], pa.timestamp("ns")),
    pa.array(["soon"]), pa.array([10**18]), pa.array([-0.5]), pa.array([math.inf]), pa.array([T0 + 2 * 86_400_000]),
    pa.array([None], pa.int64()), pa.array([[1]]), pa.array([True])])
def test_a_time_that_is_none_is_refused(array):
    rows = one_column(array, schema=config.Schema(timestamp="x", columns={"x": config.SchemaColumn(path="absent")}))
    assert [(refusal.reason, refusal.events) for refusal in rows.refusals] == [("timestamp", 1)]


def test_without_a_time_of_their_own_events_have_the_records():
    rows = decoder(config.Schema(), ONE).decode(part_of([message(pa.record_batch({"x": pa.array([1.0, 2.0])}))]))
    assert rows.times.tolist() == [T0 + 5, T0 + 5]


def test_one_bad_row_is_refused_alone_with_its_offset_row_and_values():
    events = [EVENT, EVENT | {"ts": None, "note": "ä"}, EVENT | {"age": math.inf}, EVENT]
    rows = decoder().decode(part_of([of_events([EVENT]), of_events(events)]))
    assert (len(rows), rows.read) == (3, 5)
    assert rows.within.tolist() == [0, 0, 3]
    first, second = rows.refusals
    assert (first.offset, first.row, first.reason, first.events) == (101, 1, "timestamp", 1)
    assert (second.offset, second.row, second.reason) == (101, 2, "type")
    assert second.detail == "expected a finite number in column age"
    assert json.loads(first.value) == events[1] | {"years": None}


def test_a_message_of_which_every_row_is_bad_is_refused_whole_and_counts_for_all_of_them():
    schema = TYPES.set(2, pa.field("age", pa.string()))
    value = of_events([EVENT | {"age": "old"}] * 7, schema)
    rows = decoder().decode(part_of([value, of_events([EVENT])]))
    (refusal,) = rows.refusals
    assert (refusal.offset, refusal.row, refusal.reason, refusal.events, refusal.value) == (100, None, "type", 7, value)
    assert refusal.detail == "all 7 rows: expected numbers, got string in column age"
    assert (len(rows), rows.read) == (1, 8)


def test_messages_of_several_schemas_keep_their_order():
    wide = pa.record_batch({"ts": pa.array([T0]), "x": pa.array([1], pa.int8()), "y": pa.array([0])})
    narrow = pa.record_batch({"x": pa.array([2.5, math.inf, 3.5]), "ts": pa.array([T0 + 1, T0 + 1, T0 + 2])})
    none = pa.record_batch({"ts": pa.array([T0 + 3])})
    values = [message(batch) for batch in (wide, narrow, none, wide)]
    rows = decoder(config.Schema(timestamp="ts"), ONE).decode(part_of(values))
    assert rows.offsets.tolist() == [100, 101, 101, 102, 103]
    assert rows.within.tolist() == [0, 0, 2, 0, 0]
    assert listed(rows.columns["x"]) == [1.0, 2.5, 3.5, None, 1.0]
    assert [(refusal.offset, refusal.row) for refusal in rows.refusals] == [(101, 1)]


def test_dictionaries_of_several_messages_need_not_agree():
    batches = [pa.record_batch({"x": pa.array(values).dictionary_encode()}) for values in (["a", "b"], ["b", None], ["c", "a"])]
    rows = decoder(config.Schema(), [Column("x", "category")]).decode(part_of([message(batch) for batch in batches]))
    assert listed(rows.columns["x"]) == ["a", "b", "b", None, "c", "a"]


def test_dotted_names_are_paths_and_of_two_columns_of_one_name_the_last_counts():
    schema = config.Schema(prefix="features")
    flat = pa.record_batch({"features.x": pa.array([1.0]), "x": pa.array([9.0])})
    twice = pa.RecordBatch.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["features.x", "features.x"])
    bare = pa.record_batch({"x": pa.array([9.0])})
    rows = decoder(schema, ONE).decode(part_of([message(batch) for batch in (flat, twice, bare)]))
    assert listed(rows.columns["x"]) == [1.0, 2.0, None]


def test_messages_without_rows_are_no_events_and_no_faults():
    none = message(schema=TYPES)
    empty = of_events([])
    rows = decoder().decode(part_of([none, empty, of_events([EVENT]), empty]))
    assert (len(rows), rows.read, rows.refusals, rows.next_offset) == (1, 1, (), 104)
    alone = decoder().decode(part_of([none]))
    assert (len(alone), alone.read, alone.next_offset, alone.within.tolist()) == (0, 0, 101, [])
    assert {name: len(values) for name, values in (alone.columns | alone.others).items()} == dict.fromkeys(
        [*alone.columns, *alone.others], 0)


GOOD = of_events([EVENT] * 20)
PACKED = of_events([EVENT] * 20, compression="zstd")
REFUSED = {
    "nothing": (b"", "arrow"), "no value": (None, "tombstone"), "JSON": (json.dumps(EVENT).encode(), "arrow"),
    "cut": (GOOD[:-40], "arrow"), "cut in the schema": (GOOD[:100], "arrow"), "twice": (GOOD * 2, "arrow"),
    "trailing": (GOOD + b"\0", "arrow"), "only the end": (GOOD[-8:], "arrow"), "long": (b"\xff" * 2_000_000, "too_large"),
    "an old stream": (GOOD[4:], "arrow"), "a batch without a schema": (GOOD[declared(GOOD).head.__len__():], "arrow"),
    "Parquet": (b"PAR1" + b"\0" * 50, "arrow"), "a file's mark": (b"ARROW1\0\0", "arrow"),
    "no time at all": (message(pa.record_batch({"age": pa.array([1.0])})), "timestamp"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_whole_and_its_neighbours_are_not(name):
    value, reason = REFUSED[name]
    rows = decoder().decode(part_of([GOOD, value, PACKED]))
    (refusal,) = rows.refusals
    assert (refusal.offset, refusal.reason, refusal.value, refusal.row) == (101, reason, value, None)
    assert refusal.reason in REASONS
    assert 0 < len(refusal.detail) <= 200
    assert len(rows) == 40


def test_no_cut_and_no_changed_byte_of_a_message_harms_its_neighbours():
    """Every length, and every byte changed once: read, or refused; never a word from pyarrow as a traceback."""
    reads = decoder()
    small = of_events([EVENT] * 2, compression="lz4")
    values = [small[:n] for n in range(0, len(small), 7)]
    values += [bytes([*small[:n], small[n] ^ 0x5A, *small[n + 1:]]) for n in range(len(small))]
    rows = reads.decode(part_of([value for value in values for value in (value, GOOD)]))
    good = np.isin(rows.offsets, np.arange(101, 101 + 2 * len(values), 2))
    assert good.sum() == 20 * len(values)
    assert {refusal.reason for refusal in rows.refusals} <= set(REASONS)
    assert len(rows) + sum(refusal.events for refusal in rows.refusals) == rows.read


def test_a_compressed_bomb_is_refused_before_it_is_unpacked():
    batch = pa.record_batch({"ts": pa.array(np.full(3_000_000, T0)), "age": pa.array(np.zeros(3_000_000))})
    value = message(batch, compression="zstd")
    assert len(value) < 20_000
    before = pa.default_memory_pool().max_memory()
    with_room = decoder(limits=config.Limits(unpacked_bytes=1 << 30))
    (refusal,) = decoder().decode(part_of([value])).refusals
    assert pa.default_memory_pool().max_memory() - before < 1_000_000
    assert refusal.reason == "too_large"
    assert refusal.detail == "3000000 rows, 408000000 bytes unpacked, limits.unpacked_bytes is 16777216"
    (refusal,) = with_room.decode(part_of([value])).refusals
    assert refusal.detail == "3000000 rows, at most 1048575 can be told apart"


def test_a_million_rows_without_a_byte_are_refused():
    """A null column has rows and no buffers: only the header says how many."""
    value = message(pa.record_batch({"age": pa.nulls(1_000_000)}))
    assert len(value) < 1_000
    (refusal,) = decoder(config.Schema(), COLUMNS).decode(part_of([value])).refusals
    assert refusal.reason == "too_large"


@pytest.mark.parametrize("kind", ["dictionary", "views"])
def test_one_long_text_that_many_rows_share_is_refused_before_it_is_written_out(kind):
    long = "x" * 100_000
    if kind == "dictionary":
        array = pa.DictionaryArray.from_arrays(pa.array(np.zeros(5_000, np.int8)), pa.array([long]))
    else:
        one = pa.array([long], pa.string_view())
        views = pa.py_buffer(one.buffers()[1].to_pybytes()[:16] * 5_000)
        array = pa.Array.from_buffers(pa.string_view(), 5_000, [None, views, *one.buffers()[2:]])
    value = message(pa.record_batch({"x": array}))
    (refusal,) = decoder(config.Schema(), [Column("x", "text")]).decode(part_of([value])).refusals
    assert (refusal.reason, refusal.detail) == (
        "too_large", "500000000 bytes of text unfolded, limits.unpacked_bytes is 16777216")


def test_a_lie_about_the_unpacked_size_is_refused():
    where = PACKED.index(b"\x28\xb5\x2f\xfd") - 8   # the size before the first zstd frame
    for size in (1, 2**40, -5):
        value = PACKED[:where] + size.to_bytes(8, "little", signed=True) + PACKED[where + 8:]
        (refusal,) = decoder().decode(part_of([value])).refusals
        assert refusal.reason in ("arrow", "too_large")


def test_many_batches_many_fields_and_many_additions_to_dictionaries_are_bounded():
    empty = pa.record_batch({"x": pa.array([], pa.float64())})
    limits = config.Limits(message_bytes=10 << 20)
    many = message(*[empty] * (arrow_headers.BATCHES_MAX + 1))
    (refusal,) = decoder(config.Schema(), ONE, limits).decode(part_of([many])).refusals
    assert refusal.reason == "too_large"
    names = [f"f{i}" for i in range(arrow_headers.FIELDS_MAX + 1)]
    wide = pa.RecordBatch.from_arrays([pa.nulls(0)] * len(names), names=names)
    (refusal,) = decoder(config.Schema(), ONE, limits).decode(part_of([message(wide)])).refusals
    assert (refusal.reason, refusal.detail) == ("too_large", "more than 10000 fields")
    levels = [f"l{i}" for i in range(arrow_headers.DELTAS_MAX + 3)]
    batches = [pa.record_batch({"x": pa.DictionaryArray.from_arrays(pa.array([i]), pa.array(levels[:i + 1]))})
               for i in range(len(levels))]
    value = message(*batches, emit_dictionary_deltas=True)
    (refusal,) = decoder(config.Schema(), [Column("x", "category")]).decode(part_of([value])).refusals
    assert refusal.reason == "too_large"
    value = message(*batches[:9], emit_dictionary_deltas=True)
    some = decoder(config.Schema(), [Column("x", "category")]).decode(part_of([value]))
    assert listed(some.columns["x"]) == levels[:9]


def test_events_of_a_message_beyond_half_of_the_open_panes_are_refused_one_by_one():
    limits = config.Limits(open_panes=6)
    times = [T0 - 3_600_000 + 60_000 * i for i in (0, 0, 1, 2, 50, 51, 1, 52)]
    batch = pa.record_batch({"ts": pa.array(times), "x": pa.array(np.arange(8.0))})
    rows = decoder(config.Schema(timestamp="ts"), ONE, limits).decode(part_of([message(batch)]))
    assert listed(rows.columns["x"]) == [0, 1, 2, 3, 6]
    assert [(refusal.row, refusal.reason) for refusal in rows.refusals] == [(4, "timestamp"), (5, "timestamp"), (7, "timestamp")]
    assert rows.refusals[0].detail == ("its message has events of 6 panes, of which 3 can be opened at once: "
                                       "half of limits.open_panes")


def test_a_schema_that_marks_its_cells_as_text_is_not_believed():
    batch = pa.record_batch({"x": pa.array(["1"])}).replace_schema_metadata({"tidemark.text_cells": ""})
    (refusal,) = decoder(config.Schema(), ONE).decode(part_of([message(batch)])).refusals
    assert refusal.reason == "type"


def test_a_batch_is_cut_into_pieces_that_may_be_unpacked_at_once():
    reads = decoder(config.Schema(timestamp="ts"), ONE)
    value = message(pa.record_batch({"ts": pa.array(np.full(1_000, T0)), "x": pa.array(np.zeros(1_000))}), compression="zstd")
    weight = reads.weight(value)
    keys = frozenset({("topic", 3), ("topic", 4), ("topic", 5), ("other", 0)})
    batch = Batch(parts=(part_of([value] * 5), part_of([value, None, b"junk", value], partition=4), part_of([b"{}"] * 3)),
                  assigned=keys, caught_up=keys, ended=True, lost={("topic", 3): 2})
    batch = Batch(parts=(*batch.parts[:2], replace(batch.parts[2], topic="other", partition=0)), assigned=keys,
                  caught_up=keys, ended=True, lost=batch.lost)
    pieces = list(apart(batch, {"topic": reads}, 2 * weight))
    assert [[(one.topic, one.partition, one.offsets.tolist(), one.next_offset) for one in piece.parts] for piece in pieces] == [
        [("topic", 3, [100, 101], 102)], [("topic", 3, [102, 103], 104)],
        [("topic", 3, [104], 105), ("topic", 4, [100, 101, 102], 103)],
        [("topic", 4, [103], 104), ("other", 0, [100, 101, 102], 103)]]
    assert [piece.ended for piece in pieces] == [False, False, False, True]
    assert [piece.lost for piece in pieces] == [{("topic", 3): 2}, {}, {}, {}]
    assert [keys - piece.caught_up for piece in pieces] == [
        {("topic", 3), ("topic", 4), ("other", 0)}, {("topic", 3), ("topic", 4), ("other", 0)},
        {("topic", 4), ("other", 0)}, set()]
    assert list(apart(batch, {"elsewhere": reads}, 1)) == [batch]


# -- the same events as JSON ---------------------------------------------------------------------------------------------

NUMBER = st.none() | st.floats(-1e6, 1e6) | st.just(0.0)
TEXT = st.none() | st.text(max_size=6)
EVENTS = st.lists(st.fixed_dictionaries({
    "ts": st.none() | st.integers(T0 - 10_000, T0 + 10_000) | st.sampled_from([-1, 10**17]), "id": TEXT, "age": NUMBER,
    "years": NUMBER, "sex": TEXT, "member": st.none() | st.booleans(), "note": TEXT,
    "vec": st.none() | st.lists(st.none() | st.floats(-1, 1), min_size=1, max_size=3),
    "out": st.none() | st.fixed_dictionaries({"answer": TEXT}), "truth": TEXT}), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(events=EVENTS, cuts=st.lists(st.integers(0, 12), max_size=3), packed=st.booleans())
def test_the_same_events_as_json_and_as_arrow_are_the_same_rows_and_refusals(events, cuts, packed):
    edges = sorted({0, len(events), *(min(cut, len(events)) for cut in cuts)})
    groups = [events[a:b] for a, b in pairwise(edges)]
    options = {"compression": "zstd"} if packed else {}
    ours = decoder().decode(part_of([of_events(group, **options) for group in groups]))
    theirs = Decoder("m", resolved(), config.Limits(), clock=lambda: T0 / 1000).decode(
        part_of([json.dumps(event).encode() for event in events]))
    place = [(offset, row) for offset, group in enumerate(groups, 100) for row in range(len(group))]
    assert [place.index(pair) for pair in zip(ours.offsets.tolist(), ours.within.tolist(), strict=True)] == (
        theirs.offsets - 100).tolist()
    assert ours.times.tolist() == theirs.times.tolist()
    for name in (*theirs.columns, *theirs.others):
        one, other = ({**rows.columns, **rows.others}[name] for rows in (ours, theirs))
        assert listed(one) == listed(other), name
    assert sum(refusal.events for refusal in ours.refusals) == len(theirs.refusals)
    assert ours.read == theirs.read == len(events)


@settings(max_examples=40, deadline=None)
@given(events=EVENTS, where=st.integers(0, 12))
def test_decoding_does_not_depend_on_how_records_came_together(events, where):
    values = [of_events([event]) for event in events]
    whole = decoder().decode(part_of(values))
    where = min(where, len(values))
    parts = [part for part in (part_of(values[:where]), part_of(values[where:], 100 + where)) if len(part)]
    cut = decoder().decode_all(parts)
    assert np.concatenate([rows.offsets for rows in cut]).tolist() == whole.offsets.tolist()
    for name in whole.columns:
        assert [value for rows in cut for value in listed(rows.columns[name])] == listed(whole.columns[name])
    assert [refusal for rows in cut for refusal in rows.refusals] == list(whole.refusals)
    assert SCHEMA.timestamp == "ts"
