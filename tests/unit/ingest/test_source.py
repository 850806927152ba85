"""The source in memory resumes where it is told, and crashes once."""

import pytest

from monitor.flow import Batch
from monitor.ingest.source import Crash, MemorySource, from_offset, records


def values(batches):
    return [value for batch in batches for part in batch.parts for value in part.values]


def test_a_crash_ends_the_first_run_and_the_second_reads_on_from_the_stored_offset():
    source = MemorySource([Batch(parts=(records("t", 0, [b"a", b"b"]),)), Crash(),
                           Batch(parts=(records("t", 0, [b"c"], first_offset=2),))])
    seen = []
    with pytest.raises(Crash):
        seen.extend(iter(source))
    source.seek({("t", 0): 1})
    again = list(source)
    assert values(again) == [b"b", b"c"]
    assert again[-1].ended


def test_a_source_that_was_not_sought_begins_again():
    source = MemorySource([Batch(parts=(records("t", 0, [b"a"]), records("t", 1, [b"b"])))])
    assert source.lag() == {("t", 0): 1, ("t", 1): 1}
    assert values(source) == [b"a", b"b"]
    assert source.lag() == {("t", 0): 0, ("t", 1): 0}
    source.seek({("t", 1): 1})
    assert values(source) == [b"a"]


def test_every_partition_is_assigned_from_the_first_batch_on():
    source = MemorySource([Batch(parts=(records("t", 0, [b"a"]),)), Batch(parts=(records("u", 3, [b"b"]),), ended=True)])
    batches = list(source)
    assert [batch.assigned for batch in batches] == [frozenset({("t", 0), ("u", 3)})] * 2
    assert [batch.ended for batch in batches] == [False, True]


def test_a_part_cut_at_an_offset_keeps_gaps():
    part = records("t", 0, [b"a", b"b"], first_offset=7, times=[1, 2])
    cut = from_offset(part, 8)
    assert (cut.values, cut.offsets.tolist(), cut.times.tolist(), cut.next_offset) == ([b"b"], [8], [2], 9)
    assert len(from_offset(part, 100)) == 0
