"""The columnar decoder is msgspec's, faster: every event gives the same values, bit for bit, or the same refusal."""

import json
import math
import os
import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import config
from monitor.errors import ConfigError
from monitor.flow import Part
from monitor.ingest import columns_json
from monitor.ingest.decode import Decoder
from monitor.ingest.schema import StreamSchema
from tests.conftest import package
from tests.unit.ingest.test_decode import COLUMNS, REFUSED, SCHEMA, Column, number

T0 = 1_700_000_000_000
WIDE = [*COLUMNS, Column("note", "text"), Column("größe", "numeric"), Column("sepal.length", "numeric"),
        Column("vec", "embedding"), Column("route", "category", "path")]
DIMENSIONS = {"vec": 3}
WIDE_SCHEMA = config.Schema(prefix="x", timestamp="ts", id="id", columns={
    "answer": config.SchemaColumn(path="answer", aliases=["meta.old.answer"]),
    "route": config.SchemaColumn(path="meta.route"), "truth": config.SchemaColumn(path="truth", role="label", kind="category")})


@pytest.fixture(scope="module")
def scan():
    package("numba")
    return columns_json.scan_of(config.Kafka(decoder="columns"))


def decoders(scan, schema=WIDE_SCHEMA, columns=WIDE, limits=None, **options):
    resolved = StreamSchema.resolve(schema, columns, "schema", dimensions=DIMENSIONS)
    return [Decoder("m", resolved, limits or config.Limits(), clock=lambda: T0 / 1000, **options),
            Decoder("m", resolved, limits or config.Limits(), clock=lambda: T0 / 1000, scan=scan, **options)]


def part_of(values):
    n = len(values)
    return Part("topic", 3, list(values), np.arange(100, 100 + n), np.full(n, T0 + 5), 100 + n)


def content(rows):
    """Everything that rows say, with numbers as their bits."""
    def plain(values):
        return values.tobytes() if isinstance(values, np.ndarray) else list(values)

    return {"columns": {name: plain(values) for name, values in rows.columns.items()},
            "others": {name: plain(values) for name, values in rows.others.items()},
            "times": rows.times.tolist(), "offsets": rows.offsets.tolist(), "refusals": rows.refusals,
            "read": rows.read, "retried": rows.retried, "next": rows.next_offset}


def assert_same(scan, values, **options):
    """Both decoders say the same of these messages, twice: what was learnt must change nothing."""
    plain, fast = decoders(scan, **options)
    part = part_of(values)
    expected = content(plain.decode(part))
    for _ in range(2):
        fast._columns_rest = 0
        assert content(fast.decode(part)) == expected


def event(rng, **more):
    """A message as producers write them, every field of the schema and some more."""
    x = {"age": rng.choice([rng.gauss(0, 1), rng.randint(-99, 99), None, round(rng.random(), 3),
                              rng.random() * 10**rng.randint(-30, 30)]),
         "sex": rng.choice(["f", "m", None, "d\u00e4nisch", 'a "quoted"\n\t\u2028', 3, 3.0, 2.5, True]),
         "member": rng.choice([True, False, None, 0, 1, "true"]), "note": f"text {rng.random()}", "gr\u00f6\u00dfe": rng.random(),
         "sepal.length": rng.randint(0, 10**17),
         "vec": rng.choice([None, [rng.random(), 2, None], [rng.random() for _ in range(3)]]),
         "more": rng.choice([[], {}, [1, {"a": [True, None, "x\\n"]}], "\u00e9", -0.0, 1e22, "\\"])}
    whole = {"ts": T0 - rng.randint(0, 10**6), "id": rng.choice([f"e{rng.random()}", rng.randint(0, 10**18)]),
             "answer": rng.choice("yn"),
             "x": x, "meta": {"route": rng.choice(["a", "b", "c"]), "old": {"answer": "z"}}, **more}
    if rng.random() < 0.2:
        whole["x"] = dict(rng.sample(sorted(x.items()), rng.randint(0, len(x))))
    if rng.random() < 0.2:
        whole = dict(rng.sample(sorted(whole.items()), rng.randint(3, len(whole))))
    style = rng.choice([{}, {"separators": (",", ":")}, {"indent": 1}, {"ensure_ascii": False}])
    return json.dumps(whole, **style).encode()


def mutated(rng, message):
    """The message with some bytes flipped, cut, inserted, doubled or swapped."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at, other = rng.randrange(len(message) + 1), rng.randrange(len(message) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            message = message[:at] + bytes([rng.randrange(256)]) + message[at + 1:]
        elif kind == 1:
            message = message[:at]
        elif kind == 2:
            message = message[:at] + rng.choice([b"\0", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b".",
                                                 b"e9", b" ", b"null", b"NaN", b"\xff", b"\\ud800", b"\\u0041",
                                                 b"1e400", b"true"]) + message[at:]
        elif kind == 3:
            message = message[:min(at, other)] + message[max(at, other):]
        elif kind == 4:
            message = message[:at] + message[min(at, other):max(at, other)] + message[at:]
        else:
            message = message[:at] + message[at:at + 1].swapcase() + message[at + 1:]
        if not message:
            return b""
    return message


@pytest.mark.parametrize("seed", range(6))
def test_whole_and_broken_messages_in_every_writing_give_what_msgspec_gives(scan, seed):
    rng = random.Random(seed)
    values = [event(rng) for _ in range(500)]
    values = [mutated(rng, value) if rng.random() < (seed % 3) / 2.5 else value for value in values]
    assert_same(scan, values)


@pytest.mark.parametrize("lone", [value for value, _ in REFUSED])
def test_each_refused_message_is_refused_alone_with_the_same_reason(scan, lone):
    good = [number(b"%d" % i) for i in range(30)]
    assert_same(scan, [*good[:15], lone, *good[15:], lone], schema=SCHEMA, columns=COLUMNS)


WRITINGS = ["-0", "-0.0", "0e5", "0.0e999", "1E+05", "1e-400", "5e-324", "2.2250738585072011e-308", "1.7976931348623157e308",
            "1.7976931348623159e308", "18446744073709551615", "18446744073709551616", "9007199254740993", "9007199254740993.0",
            "0.000000000000000000000000000001", "123456789012345678901234567890", "1.0000000000000002", "1e22", "1e23", "8.5e22",
            "01", "1.", ".5", "+1", "1e", "1e+", "- 1", "0x1", "1_0", "Infinity", "nan", "NaN", "null", "nul", "1 ", "\t1\n",
            "7e-1000000", "0.1e00000000000000000000000000000000000001", "9" * 19, "9" * 20, "0." + "0" * 400 + "1", "4.35",
            "0.3", "2.675", "1e-5"]


@pytest.mark.parametrize("text", WRITINGS)
def test_every_writing_of_a_number_is_the_same_double(scan, text):
    assert_same(scan, [number(text.encode())] * 20, schema=SCHEMA, columns=COLUMNS)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.tuples(st.integers(0, 10**19), st.integers(-330, 310)).map(lambda pair: f"{pair[0]}e{pair[1]}"),
    st.tuples(st.integers(-10**9, 10**9), st.integers(0, 10**18)).map(lambda pair: f"{pair[0]}.{pair[1]}"),
    st.integers(-2**70, 2**70).map(str)), min_size=16, max_size=40))
def test_numbers_are_the_nearest_doubles(scan, texts):
    assert_same(scan, [number(text.encode()) for text in texts], schema=SCHEMA, columns=COLUMNS)
    rows = decoders(scan, schema=SCHEMA, columns=COLUMNS)[1].decode(part_of([number(text.encode()) for text in texts]))
    if not rows.refusals:
        assert rows.columns["age"].tolist() == [float(text) for text in texts]


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
                    max_leaves=8)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["ts", "id", "answer", "x", "meta", "truth", "y", ""]), JSON | st.dictionaries(
    st.sampled_from(["age", "sex", "member", "note", "vec", "route", "old"]), JSON, max_size=5), max_size=7), min_size=16,
    max_size=24))
def test_any_json_document_gives_what_msgspec_gives(scan, documents):
    assert_same(scan, [json.dumps({"ts": T0, **document}).encode() for document in documents])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=16, max_size=24))
def test_any_bytes_give_what_msgspec_gives(scan, values):
    assert_same(scan, values)
    assert_same(scan, [b'{"x":' + value for value in values])


def test_layouts_may_alternate_from_event_to_event(scan):
    rng = random.Random(4)
    names = ["ts", "id", "answer", "x"]
    values = []
    for i in range(400):
        whole = {"ts": T0, "id": i, "answer": "y", "x": {"age": i, "sex": "f", "new": [i]}}
        values.append(json.dumps({name: whole[name] for name in rng.sample(names, 4)}).encode())
    assert_same(scan, values)
    fast = decoders(scan)[1]
    assert fast._columns.parse(values)[1].all()


def test_the_oversized_and_the_absent_are_refused_as_ever(scan):
    values = [number(b"1"), None, number(b"1" + b" " * 500), b""] * 10
    assert_same(scan, values, schema=SCHEMA, columns=COLUMNS, limits=config.Limits(message_bytes=200))


def test_levels_beyond_what_is_remembered_are_still_right(scan, monkeypatch):
    monkeypatch.setattr(columns_json, "LEVELS_MAX", 50)
    monkeypatch.setattr(columns_json, "TOKENS_MAX", 30)
    values = [json.dumps({"ts": T0, "x": {"sex": f"s{i % 200}", "age": i}, "answer": "long" * 60 if i % 7 == 0 else i}).encode()
              for i in range(1_000)]
    assert_same(scan, values)
    fast = decoders(scan)[1]
    rows = [fast.decode(part_of(values[i:i + 100])) for i in range(0, 1_000, 100)]
    assert [text for one in rows for text in one.columns["sex"]] == [f"s{i % 200}" for i in range(1_000)]
    assert len(fast._columns.tokens["x", "sex"].levels) <= 50


def test_parts_that_are_read_together_are_told_apart_again(scan):
    rng = random.Random(9)
    plain, fast = decoders(scan)
    parts = [part_of([mutated(rng, event(rng)) if rng.random() < 0.3 else event(rng) for _ in range(size)])
             for size in (0, 1, 40, 7, 300)]
    expected = [content(plain.decode(part)) for part in parts]
    found = [content(rows) for rows in fast.decode_all(parts)]
    assert sum(one["retried"] for one in found) == sum(one["retried"] for one in expected)
    for one in (*found, *expected):
        one.pop("retried")
    assert found == expected


def test_iso_times_and_seconds_are_read_alike(scan):
    texts = ["2023-11-14T22:13:20Z", "2023-11-14T22:13:20.123456+02:00", "2023-11-14 22:13:20", "yesterday", None, 5]
    values = [json.dumps({"ts": text, "x": {"age": 1}}).encode() for text in texts * 4]
    assert_same(scan, values, schema=config.Schema(prefix="x", timestamp="ts", timestamp_unit="iso8601"), columns=COLUMNS[:1])
    values = [json.dumps({"ts": seconds, "x": {"age": 1}}).encode() for seconds in (1_700_000_000.001, 0, -1, 2**33, 1.5e9) * 4]
    assert_same(scan, values, schema=config.Schema(prefix="x", timestamp="ts", timestamp_unit="seconds"), columns=COLUMNS[:1])


def test_ten_nested_objects_and_a_hundred_columns_find_their_places(scan):
    columns = [Column(f"n{i}", "numeric") for i in range(100)]
    schema = config.Schema(prefix="a.b.c.d.e.f.g.h.i.j", timestamp="ts")
    rng = random.Random(2)
    values = []
    for _ in range(60):
        inner = {f"n{i}": rng.random() for i in rng.sample(range(100), 100)}
        for key in "jihgfedcba":
            inner = {key: inner, "z" + key: 1}
        values.append(json.dumps({"ts": T0, **inner}).encode())
    assert_same(scan, values, schema=schema, columns=columns)


def test_the_scaling_by_powers_of_ten_is_exact_or_says_that_it_is_not(scan):
    from monitor.ingest.columns_numbers import FIVES_HIGH, FIVES_LOW, scaled

    rng, unsaid = random.Random(1), 0
    for _ in range(10_000):
        w, q = rng.getrandbits(rng.randint(1, 64)) or 1, rng.randint(-320, 305) if rng.random() < 0.3 else rng.randint(-40, 40)
        value = scaled(np.uint64(w), np.int64(q), FIVES_HIGH, FIVES_LOW)
        if math.isnan(value):
            unsaid += 1
        else:
            assert struct.pack("d", value) == struct.pack("d", float(f"{w}e{q}")), (w, q)
    assert unsaid < 500


def test_without_numba_auto_goes_on_and_columns_says_what_to_install(monkeypatch):
    def missing():
        raise ImportError("No module named 'numba'")

    monkeypatch.setattr(columns_json, "_compiled", missing)
    assert columns_json.scan_of(config.Kafka(decoder="auto", transport="librdkafka")) is None
    assert columns_json.scan_of(config.Kafka(decoder="msgspec", transport="librdkafka")) is None
    with pytest.raises(ConfigError, match=r"kafka\.decoder: expected the package numba .*tidemark\[fast\]"):
        columns_json.scan_of(config.Kafka(decoder="columns"))


def test_machine_code_is_kept_only_where_nobody_else_may_write(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = columns_json._folder()
    assert folder is not None
    assert folder.startswith(str(tmp_path))
    os.chmod(folder, 0o777)
    assert columns_json._folder() is None
