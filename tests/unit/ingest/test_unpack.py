"""What a record batch may become when it is unpacked, by the client's own reader of what was fetched."""

from __future__ import annotations

import tracemalloc

import pytest
from kafka import TopicPartition, codec
from kafka.consumer import fetcher
from kafka.consumer.fetcher import Fetcher
from kafka.record import MemoryRecords, default_records
from kafka.record.default_records import DefaultRecordBatchBuilder

from monitor.ingest import unpack

CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
MIB = 1 << 20


def packed(values, codec_number, base=0):
    """A record batch as a producer sends it and a broker stores it."""
    builder = DefaultRecordBatchBuilder(2, codec_number, False, -1, -1, -1, 1 << 30)
    for at, value in enumerate(values):
        builder.append(at, 1_000 + at, None, value, [])
    built = bytearray(builder.build())
    built[:8] = base.to_bytes(8, "big")             # a broker sets it; no checksum is over it
    return bytes(built)


def reader(content, first=0):
    """The client's own reader of what it fetched of one partition."""
    return Fetcher.PartitionRecords(first, TopicPartition("t", 0), fetcher.MemoryRecords(content))


@pytest.fixture(autouse=True)
def installed():
    assert unpack.install() == ""
    assert unpack.install() == ""


def test_the_client_looks_its_parts_up_where_they_are_put():
    assert fetcher.MemoryRecords is unpack.BoundedRecords
    assert all(getattr(default_records, f"{name}_decode") is bounded for name, bounded in unpack._BOUNDED.items())
    with unpack.one_turn(MIB):
        batch = reader(packed([b"x"], 1)).record_iterator
        assert [record.value for record in batch] == [b"x"]
    assert isinstance(unpack.BoundedRecords(packed([b"x"], 1)).next_batch(), unpack.BoundedBatch)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("values", [[b"one"], [b"%d" % n * 9 for n in range(3_000)], [b"z" * 900_000, b"", None]],
                         ids=["small", "many", "large"])
def test_what_is_within_the_bound_is_the_same_as_the_clients_own(name, values):
    content = packed(values, CODECS[name])
    alone = [(record.offset, record.value) for record in MemoryRecords(content).next_batch()]
    with unpack.one_turn(4 * MIB):
        assert [(record.offset, record.value) for record in reader(content).take()] == alone
    assert [value for _, value in alone] == values


@pytest.mark.parametrize("name", CODECS)
def test_a_bomb_takes_no_more_than_the_bound_and_is_one_record_that_says_so(name):
    bomb = packed([b"\0" * (64 * MIB), b"last"], CODECS[name], base=70)
    before, after = packed([b"before"], 0, base=69), packed([b"after"], CODECS[name], base=72)
    tracemalloc.start()
    with unpack.one_turn(8 * MIB):
        records = reader(before + bomb + after, first=69)
        first, lost = records.take()                # a turn ends with a bomb: to unpack many of them takes its time
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3 * 8 * MIB
    assert not records
    with unpack.one_turn(8 * MIB):
        (last,) = reader(after, first=records.next_fetch_offset).take()
    assert (first.value, last.value, last.offset) == (b"before", b"after", 72)
    assert lost.offset == 70
    assert lost.value.startswith(b"not read: a record batch of 2 records at offsets 70 to 71, more than 8 MiB unpacked")


@pytest.mark.parametrize("name", CODECS)
def test_a_batch_that_cannot_be_unpacked_is_one_record_that_says_so(name, monkeypatch):
    content = bytearray(packed([b"good" * 500], CODECS[name]))
    content[61 + 12:] = b"\xa5" * len(content[61 + 12:])
    records = Fetcher.PartitionRecords(0, TopicPartition("t", 0), fetcher.MemoryRecords(bytes(content)), check_crcs=False)
    with unpack.one_turn(MIB):
        (lost,) = records.take()
    assert b"cannot be unpacked" in lost.value


def test_a_turn_that_has_unpacked_enough_stops_behind_a_batch_and_the_next_one_goes_on_there():
    content = b"".join(packed([b"v" * 400_000] * 2, CODECS["zstd"], base=2 * n) for n in range(20))
    seen, at = [], 0
    while at < 40:
        with unpack.one_turn(4 * MIB):
            records = reader(content[len(content) // 20 * (at // 2):], first=at)
            found = records.take()
            assert not records                      # the client fetches again behind what was taken
        assert 0 < len(found) <= 12
        seen += [record.offset for record in found]
        at = records.next_fetch_offset
    assert seen == list(range(40))


def test_outside_of_a_turn_the_client_is_its_own():
    content = packed([b"\0" * (40 * MIB)], CODECS["zstd"])
    assert len(reader(content).take()[0].value) == 40 * MIB
    assert codec.zstd_decode is not default_records.zstd_decode
