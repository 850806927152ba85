"""The optional transport: its words for the client, what it says without the package, and how it reads on."""

import sys
import uuid

import pytest

from monitor.config import Kafka, Security
from monitor.demo.broker import API_VERSION
from monitor.errors import ConfigError, SourceFailed
from monitor.ingest import connection, librdkafka, outage
from monitor.ingest.kafka import KafkaSource
from tests.conftest import package


@pytest.fixture
def broker():
    package("confluent_kafka")
    from monitor.demo.broker import InProcessBroker

    with InProcessBroker() as broker:
        yield broker


def fill(broker, topic, first, last, partitions):
    producer = broker.producer()
    for i in range(first, last):
        producer.produce(topic, b"%d" % i, partition=i % partitions, timestamp=1_700_000_000_000 + i)
    assert producer.flush(30) == 0


def read(source, events, turns=120):
    """Values and offsets by partition, until so many came."""
    values, offsets = {}, {}
    for turn, batch in enumerate(source):
        assert turn < turns, values
        for part in batch.parts:
            values.setdefault(part.partition, []).extend(part.values)
            offsets.setdefault(part.partition, []).extend(part.offsets.tolist())
        if sum(map(len, values.values())) >= events:
            return values, offsets, batch
    raise AssertionError("the source ended")


def test_partitions_are_read_in_order_from_where_the_state_ends(broker):
    topic = broker.create_topic("t", 3)
    fill(broker, topic, 0, 300, 3)
    source = librdkafka.LibrdkafkaSource(Kafka(bootstrap_servers=[broker.bootstrap_servers], poll_records=70), [topic])
    try:
        source.seek({(topic, 1): 40})
        values, offsets, batch = read(source, 260)
        assert offsets == {0: [*range(100)], 1: [*range(40, 100)], 2: [*range(100)]}
        assert values[2] == [b"%d" % i for i in range(2, 300, 3)]
        assert batch.assigned == {(topic, 0), (topic, 1), (topic, 2)}
        source.hold([(topic, 0)])
        next(iter(source))
        fill(broker, topic, 300, 330, 3)
        assert set(read(source, 20)[0]) == {1, 2}
        source.hold([])
        assert read(source, 10)[1] == {0: [*range(100, 110)]}
        assert set(source.lag().values()) == {0}
    finally:
        source.close()


def test_an_absent_topic_and_an_offset_beyond_the_end_are_one_line(broker):
    kafka = Kafka(bootstrap_servers=[broker.bootstrap_servers])
    topic = broker.create_topic("orders")
    with pytest.raises(SourceFailed, match=r"'order': expected it to exist, got no such topic; did you mean 'orders'\?"):
        librdkafka.LibrdkafkaSource(kafka, ["order"])
    source = librdkafka.LibrdkafkaSource(kafka, [topic])
    try:
        source.seek({(topic, 0): 7})
        with pytest.raises(SourceFailed, match=r"go on at offset 7, got an end of 0; was the topic made anew\?"):
            read(source, 1)
    finally:
        source.close()


def test_without_an_id_the_fast_transport_waits_and_says_so_where_the_state_has_one_and_the_default_reads_on(
        broker, monkeypatch):
    """The broker in this process has no controller to ask for ids, and tells none in its metadata."""
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(outage, "GRACE_SECONDS", 0.5)
    topic, known = broker.create_topic("t"), {"t": "mNz0XniERSOVCi1Zgmq_bw"}
    fill(broker, topic, 0, 10, 1)
    kafka = Kafka(bootstrap_servers=[broker.bootstrap_servers])
    for source in (librdkafka.LibrdkafkaSource(kafka, [topic], topic_ids=known),
                   KafkaSource(kafka, [topic], api_version=API_VERSION, topic_ids=known)):
        try:
            if isinstance(source, KafkaSource):
                assert read(source, 10)[2].topic_ids == known
                continue
            away = next(batch for turn, batch in enumerate(source) if len(batch) or batch.away or turn > 120)
            assert (len(away), away.away) == (0, "the id of topic 't' was not told: " + away.away.partition(": ")[2])
            assert "controller" in away.away
        finally:
            source.close()


def test_an_id_is_written_as_kafkas_tools_do_and_zeros_are_none():
    assert connection.shown_id(uuid.UUID("98dcf45e-7884-4523-950a-2d59826abf6f").bytes) == "mNz0XniERSOVCi1Zgmq_bw"
    assert connection.shown_id(bytes(16)) == connection.shown_id(b"") == ""


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigError, match=r"kafka\.transport: expected the package confluent-kafka .*tidemark\[fast\]"):
        librdkafka.LibrdkafkaSource(Kafka(bootstrap_servers=["127.0.0.1:1"]), ["t"])
    assert librdkafka.probe(Kafka(bootstrap_servers=["127.0.0.1:1"]), ["t"])[0][1] is False


def test_every_security_option_reaches_the_client():
    security = Security(protocol="SASL_SSL", mechanism="SCRAM-SHA-512", username="bob", password_file="p", ca_file="ca.pem",
                        certificate_file="own.pem", key_file="own.key", check_hostname=False)
    settings = librdkafka.client_settings(Kafka(bootstrap_servers=["a:1", "b:2"], security=security), "word")
    expected = {"bootstrap.servers": "a:1,b:2", "security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.username": "bob", "sasl.password": "word", "ssl.ca.location": "ca.pem", "ssl.key.location": "own.key",
                "ssl.certificate.location": "own.pem", "ssl.endpoint.identification.algorithm": "none"}
    assert expected.items() <= settings.items()
    assert "ssl.ca.location" not in librdkafka.client_settings(Kafka(bootstrap_servers=["a:1"]), None)


class Told:
    """A consumer that tells an error once, behind so many messages of a turn."""

    def __init__(self, consumer, behind, **error):
        self._consumer, self._behind, self._error = consumer, behind, error

    def __getattr__(self, name):
        return getattr(self._consumer, name)

    def consume(self, count, seconds):
        messages = self._consumer.consume(count, seconds)
        if len(messages) > self._behind and self._error:
            library = package("confluent_kafka")
            error = library.KafkaError(self._error["code"], self._error["words"])
            messages.insert(self._behind, library.Message(topic=messages[0].topic(), partition=messages[0].partition(),
                                                          offset=messages[self._behind].offset(), error=error))
            self._error = {}
        return messages


def test_what_the_client_reads_behind_a_damaged_batch_is_not_taken_before_the_batch_itself_is(broker, caplog):
    topic = broker.create_topic("t", 1)
    fill(broker, topic, 0, 50, 1)
    source = librdkafka.LibrdkafkaSource(
        Kafka(bootstrap_servers=[broker.bootstrap_servers], session_timeout_seconds=1), [topic])
    try:
        source._client.consumer = Told(source._client.consumer, 20, code=package("confluent_kafka").KafkaError._BAD_MSG,
                                       words="MessageSet at offset 20 failed CRC32C check")
        assert read(source, 50)[1] == {0: [*range(50)]}
    finally:
        source.close()
    (said,) = [record.error for record in caplog.records if record.getMessage() == "Kafka does not answer; trying again."]
    assert said.startswith("topic 't' partition 0: record batch at offset 20 failed crc check")


def test_a_log_that_was_cut_back_is_refused(broker):
    topic = broker.create_topic("t", 1)
    fill(broker, topic, 0, 50, 1)
    source = librdkafka.LibrdkafkaSource(Kafka(bootstrap_servers=[broker.bootstrap_servers]), [topic])
    try:
        source._client.consumer = Told(source._client.consumer, 20, code=package("confluent_kafka").KafkaError._LOG_TRUNCATION,
                                       words="Partition log truncation detected: broker end offset is 7")
        with pytest.raises(SourceFailed, match=r"partition 0: expected the log that was read up to offset 0, got one that was "):
            read(source, 50)
    finally:
        source.close()


def test_who_has_no_broker_for_long_asks_as_a_new_client_does(broker, monkeypatch):
    monkeypatch.setattr(librdkafka, "_CUT_OFF_SECONDS", 0.1)
    monkeypatch.setattr("monitor.ingest.outage.GRACE_SECONDS", 0.1)
    topic = broker.create_topic("t", 1)
    fill(broker, topic, 0, 5, 1)
    source = librdkafka.LibrdkafkaSource(Kafka(bootstrap_servers=[broker.bootstrap_servers]), [topic])
    try:
        batches = iter(source)
        assert read(batches, 5)[1] == {0: [*range(5)]}
        broker.close()
        for turn, batch in enumerate(batches):
            assert turn < 60
            if batch.away.startswith("kafka.bootstrap_servers: expected a Kafka broker, got 127.0.0.1:"):
                break                               # the words of an attempt to make a client anew
    finally:
        source.close()
