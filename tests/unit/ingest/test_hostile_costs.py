"""What a hostile message may cost: no copy of one above the limit, no second look at a megabyte of escapes."""

from __future__ import annotations

import gc
import subprocess
import sys

import numpy as np
import pytest

from detectors.reference import Column
from monitor.config import Limits, Schema
from monitor.ingest import decode as decoding
from monitor.ingest.columns_json import ColumnParser
from monitor.ingest.decode import Decoder
from monitor.ingest.schema import StreamSchema
from monitor.ingest.source import records
from tests.conftest import package

COLUMNS = (Column("x", "numeric"), Column("c", "category"))


def decoder(**options) -> Decoder:
    return Decoder("m", StreamSchema.resolve(Schema(), COLUMNS), Limits(), **options)


def test_an_event_above_the_limit_is_not_copied_for_the_scanner():
    package("numba")
    seen = []

    def scan(buf, starts, *rest):
        seen.append((len(buf), np.diff(starts).tolist()))
        rest[-2][:] = 0                             # nothing is plain

    values = [b'{"x": 1}', b"x" * 50_000, None, b'{"x": 2}']
    _, good = ColumnParser({("x",): "numeric"}, {}, scan).parse(values, 1_000)
    assert not good.any()
    assert seen == [(len(b'{"x": 1}' * 2) + 4, [9, 1, 1, 9])]


@pytest.mark.parametrize(("tail", "reason"), [
    (b'\\ud800"}', "encoding"), (b'\\ud800x"}', "encoding"), (b'\\ud800xxxxx"}', "encoding"), (b'\\ud800xxxxxx"}', "encoding"),
    (b'\\ud800"   }', "encoding"), (b'\\udc00"}', "encoding"), (b'\\ud800", "c": "a"}', "encoding"),
    (b'\\ud83d\\u0020"}', "encoding"), (b"\\ud800", "json"), (b"\\ud83d\\ude0", "json"),
    (b'\\ud83d\\ude00"', "json"), (b"a\\u00e9", "json"),
])
def test_a_lone_surrogate_is_an_encoding_wherever_it_stands_and_a_cut_event_is_not(tail, reason):
    for before in (b'{"c": "', b'{"c": "' + b"a" * 5_000, b'{"c": "' + b"\\ud83d\\ude00" * 500):
        rows = decoder().decode(records("t", 0, [before + tail], times=[1]))
        assert [refusal.reason for refusal in rows.refusals] == [reason], before[:20] + tail


def test_a_message_of_nothing_but_escapes_is_looked_at_once(monkeypatch):
    looked_at = []

    class Search:
        def search(self, value):
            looked_at.append(len(value))

        def sub(self, new, value):
            looked_at.append(len(value))
            return value

    monkeypatch.setattr(decoding, "_SURROGATE", Search())
    for end in (b'"}', b"", b'\\ud8'):
        decoder().decode(records("t", 0, [b'{"c": "' + b"\\ud800" * 10_000 + end, b'{"c": "' + b"\\ud83d\\ude00" * 10_000 + end],
                                 times=[1, 1]))
    assert sum(looked_at) < 200


def test_settling_frees_what_can_be_freed_and_keeps_the_collector_on():
    code = """
import gc, weakref
from monitor.ingest.collector import YOUNG_OBJECTS, settle
class Circle: pass
def circle():
    one = Circle(); one.itself = one
    return weakref.ref(one)
before = circle(); settle()
assert before() is None and gc.isenabled() and gc.get_threshold()[0] == YOUNG_OBJECTS
frozen = gc.get_freeze_count(); assert frozen > 1_000
kept = Circle(); kept.itself = kept; ref = weakref.ref(kept); settle(); del kept
assert ref() is not None                            # set apart: not found any more ...
settle(); assert ref() is None                      # ... until everything is built anew
later = circle(); waste = [[] for _ in range(2 * YOUNG_OBJECTS)]
assert later() is None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert gc.get_freeze_count() == 0               # nothing of it happens by importing
