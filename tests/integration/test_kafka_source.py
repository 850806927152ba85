"""KafkaSource on a real broker: nothing lost, nothing twice, and one clear line when it cannot be read."""

import logging
import socket
import threading
import time

import pytest

from monitor.config import Kafka, Limits, Security
from monitor.demo.broker import API_VERSION
from monitor.errors import ConfigError, SourceFailed
from monitor.flow import Refusal
from monitor.ingest.deadletters import DeadLetters
from monitor.ingest.kafka import KafkaSource, probe
from tests.conftest import Stopwatch
from tests.integration.reading import Reading, has, numbers, quick


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
def test_every_codec_is_read_with_times_and_tombstones(kafka_broker, unique_name, opened, codec):
    topic = kafka_broker.create_topic(unique_name("topic"))
    sent = [*numbers(0, 500), None]
    kafka_broker.produce(topic, sent, codec=codec, times=range(1_700_000_000_000, 1_700_000_000_501))
    reading = Reading(opened(quick(kafka_broker, unique_name("group"), poll_records=200), [topic])).until(has(501))
    assert reading.values == {(topic, 0): sent}
    assert reading.offsets == {(topic, 0): list(range(501))}


def test_a_sought_partition_goes_on_there_and_another_starts_at_the_beginning(kafka_broker, unique_name, opened):
    topic = kafka_broker.create_topic(unique_name("topic"), partitions=2)
    for partition in (0, 1):
        kafka_broker.produce(topic, numbers(0, 20), partition=partition)
    source = opened(quick(kafka_broker, unique_name("group")), [topic])
    source.seek({(topic, 0): 15})
    reading = Reading(source).until(lambda r: r.count() >= 25 and len(r.caught_up) == 2)
    assert reading.offsets == {(topic, 0): list(range(15, 20)), (topic, 1): list(range(20))}
    assert reading.assigned == {(topic, 0), (topic, 1)}
    assert source.lag() == {(topic, 0): 0, (topic, 1): 0}


def test_group_offsets_follow_for_lag_tools_and_are_never_read(kafka_broker, unique_name, opened):
    from kafka import KafkaConsumer, TopicPartition

    topic, group = kafka_broker.create_topic(unique_name("topic")), unique_name("group")
    kafka_broker.produce(topic, numbers(0, 10))
    source = opened(quick(kafka_broker, group), [topic])
    reading = Reading(source).until(has(10))
    source.committed({(topic, 0): 7, ("elsewhere", 3): 1})
    with KafkaConsumer(bootstrap_servers=kafka_broker.bootstrap_servers, group_id=group) as observer:
        reading.until(lambda _: observer.committed(TopicPartition(topic, 0)) == 7)
    source.close()
    assert Reading(opened(quick(kafka_broker, group), [topic])).until(has(10)).offsets == {(topic, 0): list(range(10))}


def test_a_position_that_the_groups_offsets_moved_behind_our_back_is_placed_again(kafka_broker, unique_name):
    """What kafka-python does when its look-up of them ends after our seek: forward or back, nothing is skipped or doubled."""
    from kafka import TopicPartition

    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, numbers(0, 10))
    source = KafkaSource(quick(kafka_broker, unique_name("group")), [topic])
    try:
        reading = Reading(source).until(has(10))
        for moved in (15, 2):
            kafka_broker.produce(topic, numbers(reading.count(), reading.count() + 10))
            source._consumer._subscription.seek(TopicPartition(topic, 0), moved)
            reading.until(has(reading.count() + 10))
        assert reading.offsets == {(topic, 0): list(range(30))}
    finally:
        source.close()


def test_start_latest_leaves_out_what_was_there(kafka_broker, unique_name, opened):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, numbers(0, 10))
    reading = Reading(opened(quick(kafka_broker, unique_name("group"), start="latest"), [topic]))
    reading.until(lambda r: r.caught_up)
    kafka_broker.produce(topic, numbers(10, 12))
    assert reading.until(has(2)).offsets == {(topic, 0): [10, 11]}


def test_a_silent_topic_gives_an_empty_batch_every_second(kafka_broker, unique_name, opened):
    topic = kafka_broker.create_topic(unique_name("topic"), partitions=3)
    reading = Reading(opened(quick(kafka_broker, unique_name("group")), [topic])).until(lambda r: len(r.caught_up) == 3)
    reading.longest_seconds, turns = 0.0, iter(range(100))
    reading.until(lambda _: next(turns) >= 5)
    assert reading.longest_seconds < 1.0
    assert reading.count() == 0


def test_retention_that_overtook_the_stored_offset_is_counted(kafka_broker, unique_name, opened):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, numbers(0, 100))
    kafka_broker.delete_records(topic, {0: 60})
    source = opened(quick(kafka_broker, unique_name("group")), [topic])
    source.seek({(topic, 0): 25})
    reading = Reading(source).until(has(40))
    assert reading.lost == {(topic, 0): 35}
    assert reading.offsets == {(topic, 0): list(range(60, 100))}


def test_retention_that_overtakes_a_running_reader_is_counted(kafka_broker, unique_name, opened):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, [b"x" * 1000] * 4000)           # 4 MB, of which one fetch brings 1 MiB
    source = opened(quick(kafka_broker, unique_name("group"), poll_records=10, fetch_bytes=1 << 20), [topic])
    reading = Reading(source).until(has(10))
    kafka_broker.delete_records(topic, {0: 4000})
    kafka_broker.produce(topic, numbers(4000, 4005))
    reading.until(lambda r: r.offsets[topic, 0][-1] == 4004)
    read = reading.offsets[topic, 0]
    assert read == sorted(set(read))
    assert reading.lost[topic, 0] > 0
    assert len(read) + reading.lost[topic, 0] == 4005


def test_a_partition_with_more_waiting_is_not_caught_up(kafka_broker, unique_name, opened):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, numbers(0, 100))
    source = opened(quick(kafka_broker, unique_name("group"), poll_records=10), [topic])
    reading = Reading(source).until(has(1))
    assert (reading.count(), reading.caught_up, source.lag()) == (10, frozenset(), {(topic, 0): 90})
    reading.until(has(100))
    assert (reading.caught_up, source.lag()) == ({(topic, 0)}, {(topic, 0): 0})


def test_a_held_partition_waits_and_goes_on_where_it_was_without_loss_or_repetition(kafka_broker, unique_name, opened):
    topic = kafka_broker.create_topic(unique_name("topic"), 3)
    for partition in range(3):
        kafka_broker.produce(topic, numbers(0, 20_000), partition=partition, codec="lz4")
    source = opened(quick(kafka_broker, unique_name("group"), poll_records=700), [topic])
    reading = Reading(source).until(has(2_000))
    for turn in range(9):                           # held in turn, often in the middle of a fetch
        source.hold([(topic, turn % 3)])
        reading.take(next(reading.batches))
        before = len(reading.offsets.get((topic, turn % 3), []))
        reading.take(next(reading.batches))
        assert len(reading.offsets.get((topic, turn % 3), [])) == before
    source.hold([])
    reading.until(has(60_000), 30)
    assert all(offsets == list(range(20_000)) for offsets in reading.offsets.values())


def test_an_offset_beyond_the_end_is_refused_in_one_line(kafka_broker, unique_name, opened):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, numbers(0, 3))
    source = opened(quick(kafka_broker, unique_name("group")), [topic])
    source.seek({(topic, 0): 500})
    with pytest.raises(SourceFailed, match=r"go on at offset 500, got an end of 3; was the topic made anew\?"):
        Reading(source).until(has(1))


def test_two_members_share_the_partitions_without_loss_or_repetition(kafka_broker, unique_name, opened):
    topic, group = kafka_broker.create_topic(unique_name("topic"), partitions=4), unique_name("group")
    for partition in range(4):
        kafka_broker.produce(topic, numbers(0, 50), partition=partition)
    kafka = quick(kafka_broker, group)
    first = Reading(opened(kafka, [topic])).until(has(200))

    second = Reading(opened(kafka, [topic]))
    stop = threading.Event()
    thread = threading.Thread(target=lambda: second.until(lambda r: stop.is_set()))
    thread.start()
    try:
        first.until(lambda r: len(r.assigned) == 2)
        first.until(lambda r: len(getattr(second, "assigned", ())) == 2 and len(second.caught_up) == 2)
        assert first.assigned.isdisjoint(second.assigned)
        for partition in range(4):
            kafka_broker.produce(topic, numbers(50, 60), partition=partition)
        first.until(has(220))
        first.until(lambda _: second.count() >= 120)          # it has no state of its own: from the beginning
    finally:
        stop.set()
        thread.join()
    second.source.close()
    first.until(lambda r: len(r.assigned) == 4 and len(r.caught_up) == 4)
    first.until(has(240))
    assert first.offsets == {(topic, partition): list(range(60)) for partition in range(4)}
    assert all(read == list(range(60)) for read in second.offsets.values())


@pytest.mark.parametrize(("opened", "cleanly"), [("kafka-python", True), ("kafka-python", False)], indirect=["opened"])
def test_a_restarted_broker_is_waited_out_without_loss_or_repetition(kafka_broker, unique_name, opened, cleanly):
    topic = kafka_broker.create_topic(unique_name("topic"), partitions=2)
    kafka_broker.produce(topic, numbers(0, 30), partition=0)
    reading = Reading(opened(quick(kafka_broker, unique_name("group")), [topic])).until(has(30))
    thread = threading.Thread(target=kafka_broker.restart, kwargs={"cleanly": cleanly})
    thread.start()
    reading.until(lambda _: not thread.is_alive())
    kafka_broker.produce(topic, numbers(30, 60), partition=0)
    kafka_broker.produce(topic, numbers(0, 5), partition=1)
    reading.until(has(65))
    assert reading.offsets == {(topic, 0): list(range(60)), (topic, 1): list(range(5))}
    assert reading.lost == {}
    assert reading.longest_seconds < 3


# --- security, and what cannot be reached

def secure(broker, tmp_path, account, *, word=None, group="tidemark", **options):
    user, right = broker.users[account]
    (tmp_path / "password").write_text((word or right) + "\n")
    security = {"protocol": "SASL_SSL", "mechanism": account, "username": user, "ca_file": str(broker.ca),
                "password_file": str(tmp_path / "password")} | options
    return Kafka(bootstrap_servers=[broker.secure_bootstrap], group=group, security=Security(**security))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_tls_with_a_password_reads(kafka_broker, unique_name, opened, tmp_path, mechanism):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, numbers(0, 5))
    kafka = secure(kafka_broker, tmp_path, mechanism, group=unique_name("group"))
    assert Reading(opened(kafka, [topic])).until(has(5)).offsets == {(topic, 0): [0, 1, 2, 3, 4]}


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password_is_one_line_at_once_without_the_password(kafka_broker, tmp_path, mechanism, caplog, capfd,
                                                                           monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("kafka"), "handlers", [caplog.handler])     # whoever listens to the client
    watch = Stopwatch()
    with pytest.raises(SourceFailed) as error:
        KafkaSource(secure(kafka_broker, tmp_path, mechanism, word="wrong-secret"), ["t"])
    assert watch.seconds() < 15
    assert str(error.value).startswith("kafka.security: expected to be let in as ")
    assert "check mechanism, username and password_file" in str(error.value)
    output = capfd.readouterr()
    assert "wrong-secret" not in str(error.value) + caplog.text + output.out + output.err
    assert "\n" not in str(error.value)
    assert output.err == ""


def test_a_mechanism_that_the_broker_lacks_is_one_line(kafka_broker, tmp_path):
    (tmp_path / "password").write_text("x")
    kafka = Kafka(bootstrap_servers=[f"127.0.0.1:{kafka_broker.behind['secure_proxied']}"], security=Security(
        protocol="SASL_SSL", mechanism="SCRAM-SHA-256", username="carol", ca_file=str(kafka_broker.ca),
        password_file=str(tmp_path / "password")))
    with pytest.raises(SourceFailed, match=r"^kafka.security: .* SCRAM-SHA-256, got .the broker does not offer.*"):
        KafkaSource(kafka, ["t"], wait_seconds=8)


def test_a_certificate_of_another_authority_is_one_line_at_once(kafka_broker, tmp_path):
    kafka = secure(kafka_broker, tmp_path, "PLAIN", ca_file=None)
    watch = Stopwatch()
    with pytest.raises(SourceFailed, match=r"^kafka.security: expected a certificate .* check ca_file"):
        KafkaSource(kafka, ["t"])
    assert watch.seconds() < 15


def test_tls_to_a_plaintext_port_is_one_line(kafka_broker):
    kafka = Kafka(bootstrap_servers=[kafka_broker.bootstrap_servers],
                  security=Security(protocol="SSL", ca_file=str(kafka_broker.ca)))
    with pytest.raises(SourceFailed, match=r"^kafka\."):
        KafkaSource(kafka, ["t"], wait_seconds=4)


def test_plaintext_to_a_tls_port_is_one_line(kafka_broker):
    with pytest.raises(SourceFailed, match=r"expected a broker without TLS at .*, got one with it"):
        KafkaSource(Kafka(bootstrap_servers=[kafka_broker.secure_bootstrap]), ["t"], wait_seconds=4)


@pytest.mark.parametrize("server", ["127.0.0.1:1", "no-such-host.invalid:9092"])
def test_an_absent_broker_is_one_line_after_a_bounded_wait(server, capfd):
    begun, watch, threads = time.monotonic(), Stopwatch(), threading.active_count()
    with pytest.raises(SourceFailed) as error:
        KafkaSource(Kafka(bootstrap_servers=[server]), ["t"], wait_seconds=3)
    assert time.monotonic() - begun >= 3
    assert watch.seconds() < 15
    assert str(error.value).startswith("kafka.bootstrap_servers: expected a Kafka broker, got " + server)
    assert str(error.value).endswith("(waited 3 s)")
    assert capfd.readouterr().err == ""
    assert threading.active_count() <= threads


def test_one_reachable_broker_of_several_is_enough(unique_name, opened, mock_cluster):
    topic = mock_cluster.create_topic(unique_name("topic"))
    source = opened(Kafka(bootstrap_servers=["127.0.0.1:1", mock_cluster.bootstrap_servers]), [topic],
                    api_version=API_VERSION)
    Reading(source).until(lambda r: r.caught_up)


def test_an_absent_topic_names_the_nearest(kafka_broker, unique_name):
    topic = kafka_broker.create_topic(unique_name("topic"))
    with pytest.raises(SourceFailed) as error:
        KafkaSource(Kafka(bootstrap_servers=[kafka_broker.bootstrap_servers]), [topic + "x"])
    assert str(error.value).endswith(f"expected it to exist, got no such topic; did you mean {topic!r}?")


def test_a_password_file_that_cannot_be_read_names_its_key(kafka_broker, tmp_path):
    kafka = secure(kafka_broker, tmp_path, "PLAIN", password_file=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"^kafka.security.password_file: expected a readable file"):
        KafkaSource(kafka, ["t"])


def test_probe_tells_what_is_well_and_what_is_not(kafka_broker, unique_name, tmp_path):
    topic = kafka_broker.create_topic(unique_name("topic"), partitions=3)
    kafka_broker.produce(topic, numbers(0, 4))
    kafka = Kafka(bootstrap_servers=[kafka_broker.bootstrap_servers], group=unique_name("group"))
    checks = probe(kafka, [topic, topic + "-absent"])
    assert [ok for _, ok, _ in checks] == [True, True, True, False, True]
    assert checks[2][2] == "3 partitions, 4 records kept"
    refused = probe(secure(kafka_broker, tmp_path, "PLAIN", word="wrong"), [topic])
    assert [ok for _, ok, _ in refused] == [True, False]


def test_dead_letters_reach_their_topic_with_headers(kafka_broker, unique_name, opened):
    from kafka import KafkaConsumer

    topic = kafka_broker.create_topic(unique_name("topic"), max_message_bytes=200_000)
    kafka = Kafka(bootstrap_servers=[kafka_broker.bootstrap_servers])
    letters = DeadLetters(f"topic:{topic}", Limits(), kafka)
    letters.write([Refusal("t", 1, 42, "json", "bad", b"{"), Refusal("t", 1, 43, "too_large", "big", b"x" * 500_000)])
    letters.flush()
    assert letters.counts() == {"written": 2, "dropped": 0}
    letters.close()
    with KafkaConsumer(topic, bootstrap_servers=kafka_broker.bootstrap_servers, auto_offset_reset="earliest",
                       consumer_timeout_ms=20_000) as consumer:
        first, second = next(consumer), next(consumer)
    assert (first.value, dict(first.headers)["reason"], dict(first.headers)["offset"]) == (b"{", b"json", b"42")
    assert (second.value, dict(second.headers)["truncated"]) == (b"", b"500000")


def test_dead_letters_without_their_topic_are_dropped_and_counted(kafka_broker, unique_name):
    kafka = Kafka(bootstrap_servers=[kafka_broker.bootstrap_servers])
    letters = DeadLetters(f"topic:{unique_name('absent')}", Limits(), kafka)
    letters.write([Refusal("t", 1, 42, "json", "bad", b"{")])
    letters.close()
    assert letters.counts() == {"written": 0, "dropped": 1}


def test_nothing_listens_after_the_in_process_broker_is_closed():
    from monitor.demo.broker import InProcessBroker

    with InProcessBroker() as broker:
        host, _, port = broker.bootstrap_servers.rpartition(":")
        assert host == "127.0.0.1"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((host, int(port)), 1)


def test_a_member_joins_its_group_once(mock_cluster, unique_name, opened):
    """A second joining, a moment after the first, would cost this broker a session timeout of 45 s."""
    from kafka import KafkaProducer

    topic = mock_cluster.create_topic(unique_name("topic"), partitions=8)
    kafka = Kafka(bootstrap_servers=[mock_cluster.bootstrap_servers], group=unique_name("group"))
    reading = Reading(opened(kafka, [topic], api_version=API_VERSION)).until(lambda r: len(r.caught_up) == 8)
    turns = iter(range(100))
    reading.until(lambda _: next(turns) >= 4)                   # two seconds, in which look-ups are answered
    with KafkaProducer(bootstrap_servers=mock_cluster.bootstrap_servers, api_version=API_VERSION) as producer:
        producer.send(topic, b"value", partition=7)
    reading.until(has(1), seconds=10)
