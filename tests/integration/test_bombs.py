"""Record batches that become very large when they are unpacked, from a producer through a real broker to the source."""

from __future__ import annotations

from monitor.config import Limits
from monitor.ingest.kafka import KafkaSource
from tests.integration.reading import Reading, numbers, quick

LARGE = 40 << 20                                    # above the least bound of 32 MiB, and soon made


def thrown(broker, topic, codec):
    """Send one record of zeros: a few kilobytes as the broker sees them."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, compression_type=codec, acks="all",
                             max_request_size=2 * LARGE)
    producer.send(topic, b"\0" * LARGE, partition=0).get(60)
    producer.close()


def test_a_compressed_bomb_is_one_refused_record_and_what_comes_after_it_is_read(kafka_broker, unique_name):
    topic = kafka_broker.create_topic(unique_name("topic"))
    codecs = ("gzip", "lz4", "zstd")                # snappy packs 20 to 1: a broker's 1 MiB stays below the bound
    for n, codec in enumerate(codecs):
        kafka_broker.produce(topic, numbers(10 * n, 10 * n + 10), codec=codec)
        thrown(kafka_broker, topic, codec)
    kafka_broker.produce(topic, numbers(30, 40))
    source = KafkaSource(quick(kafka_broker, unique_name("group"), fetch_bytes=1 << 20), [topic])
    try:
        reading = Reading(source).until(lambda seen: seen.count() >= 43)
    finally:
        source.close()
    (values,), (offsets,) = reading.values.values(), reading.offsets.values()
    assert offsets == list(range(43))
    assert [value for value in values if value.startswith(b"{")] == numbers(0, 40)
    for at in (10, 21, 32):
        assert values[at].startswith(b"not read: a record batch of 1 records at offsets %d to %d, more than 32 MiB" % (at, at))
    assert max(map(len, values)) < Limits().message_bytes


def test_a_backlog_that_unpacks_to_much_is_read_whole_in_several_turns(kafka_broker, unique_name):
    topic = kafka_broker.create_topic(unique_name("topic"))
    sent = [b'{"n": %d, "text": "%s"}' % (n, b"z" * 700_000) for n in range(120)]          # 80 MiB, which pack to some kB
    kafka_broker.produce(topic, sent, codec="zstd")
    source = KafkaSource(quick(kafka_broker, unique_name("group"), fetch_bytes=1 << 20), [topic])
    sizes = []
    try:
        reading = Reading(source)
        while reading.count() < len(sent):
            before = reading.count()
            reading.until(lambda seen, before=before: seen.count() > before)
            sizes.append(sum(map(len, reading.values[topic, 0][before:])))
    finally:
        source.close()
    assert reading.values == {(topic, 0): sent}
    assert reading.offsets == {(topic, 0): list(range(len(sent)))}
    assert max(sizes) <= 64 << 20
