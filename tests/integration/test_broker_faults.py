"""What networks, retention and leaders do to a source that reads, on real brokers: nothing lost in silence, nothing twice."""

import logging

import pytest

from monitor.config import Kafka
from monitor.errors import SourceFailed
from monitor.ingest.state_topic import ReplicaSource
from tests.chaos_proxy import ChaosProxy
from tests.conftest import wait_until
from tests.integration.reading import Reading, has, numbers, quick


@pytest.fixture
def proxy(kafka_broker):
    """Everything between the `proxied` listener and its clients goes through it."""
    with ChaosProxy(kafka_broker.told["proxied"], kafka_broker.behind["proxied"]) as proxy:
        yield proxy


def through(broker, group, **options):
    """As `quick`, through the proxy."""
    options = {"session_timeout_seconds": 2} | options
    return Kafka(bootstrap_servers=[broker.servers["proxied"]], group=group, **options)


def outages(caplog):
    """What was said of brokers that are away."""
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("Kafka ")]


def turns(n):
    """A condition that holds after n more batches."""
    left = iter(range(n))
    return lambda _: next(left, None) is None


# --- networks

@pytest.mark.parametrize("how", ["refused", "hanging"])
def test_brokers_that_are_away_for_longer_than_every_timeout_cost_a_few_log_lines_and_no_record(
        kafka_broker, unique_name, opened, proxy, caplog, hasty, how):
    caplog.set_level(logging.INFO, "tidemark")
    topic = kafka_broker.create_topic(unique_name("topic"), partitions=2)
    kafka_broker.produce(topic, numbers(0, 30))
    reading = Reading(opened(through(kafka_broker, unique_name("group")), [topic])).until(has(30))
    kafka_broker.produce(topic, numbers(0, 30), partition=1)
    if how == "refused":
        proxy.refuse = True
        proxy.cut()
    else:
        proxy.stall()
    kafka_broker.produce(topic, numbers(30, 60))
    reading.until(lambda r: r.away)
    before, reading.longest_seconds = proxy.accepted, 0.0
    reading.until(turns(12))                        # six seconds: session and request timeouts are two
    assert reading.longest_seconds < 5
    assert proxy.accepted - before < 60             # attempts have pauses between
    proxy.refuse = False
    proxy.flow()
    reading.until(has(90)).until(lambda r: not r.away)
    assert reading.offsets == {(topic, 0): list(range(60)), (topic, 1): list(range(30))}
    assert reading.lost == {}
    first, *reminders, last = outages(caplog)
    assert (first, last) == ("Kafka does not answer; trying again.", "Kafka answers again.")
    assert set(reminders) <= {"Kafka still does not answer."}
    assert len(reminders) <= 2                      # one for each cause that is sure


def test_connections_that_are_cut_in_the_middle_of_a_fetch_lose_and_repeat_nothing(
        kafka_broker, unique_name, opened, proxy, hasty):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, [b"%d-" % n + b"x" * 500 for n in range(6_000)])        # 3 MB
    source = opened(through(kafka_broker, unique_name("group"), poll_records=500, fetch_bytes=1 << 20), [topic])
    reading = Reading(source)
    for size in (40_000, 300_000, 700_001):
        proxy.cut_after(size)
        reading.until(lambda _: proxy.was_cut.is_set())
    reading.until(has(6_000))
    assert reading.offsets == {(topic, 0): list(range(6_000))}
    assert all(value.startswith(b"%d-" % n) for n, value in enumerate(reading.values[topic, 0]))


def test_answers_that_take_longer_than_a_request_may_are_asked_for_in_smaller_pieces(
        kafka_broker, unique_name, opened, proxy, hasty):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, [b"x" * 1000] * 2_000)                                  # 2 MB at 400 KB/s: five seconds
    source = opened(through(kafka_broker, unique_name("group"), fetch_bytes=4 << 20), [topic])
    proxy.bytes_per_second = 400_000
    reading = Reading(source).until(has(2_000))
    assert reading.offsets == {(topic, 0): list(range(2_000))}


def test_answers_that_are_late_only_make_reading_slower(kafka_broker, unique_name, opened, proxy, caplog):
    caplog.set_level(logging.INFO, "tidemark")
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, numbers(0, 100))
    proxy.delay_seconds = 0.25
    reading = Reading(opened(through(kafka_broker, unique_name("group"), session_timeout_seconds=6), [topic])).until(has(100))
    assert reading.offsets == {(topic, 0): list(range(100))}
    assert outages(caplog) == []


def test_a_byte_that_was_changed_on_the_way_is_never_delivered(kafka_broker, unique_name, opened, proxy, caplog, hasty):
    caplog.set_level(logging.INFO, "tidemark")
    topic = kafka_broker.create_topic(unique_name("topic"), partitions=2)
    sent = {partition: [b"p%d value-%d" % (partition, n) for n in range(100)] for partition in range(2)}
    kafka_broker.produce(topic, sent[0], partition=0)
    reading = Reading(opened(through(kafka_broker, unique_name("group")), [topic])).until(has(100))
    proxy.flip = b"p1 value-50"
    kafka_broker.produce(topic, sent[1], partition=1)
    reading.until(has(200)).until(lambda r: not r.away)
    assert proxy.flipped == 1
    assert reading.values == {(topic, partition): values for partition, values in sent.items()}
    assert outages(caplog)[0] == "Kafka does not answer; trying again."
    said = [record.error for record in caplog.records if record.getMessage() == outages(caplog)[0]]
    assert "failed crc check" in said[0]


# --- partitions, retention, topics

@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_partition_that_is_added_while_running_is_read_from_its_beginning(kafka_broker, unique_name, opened, hasty, start):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, numbers(0, 10))
    reading = Reading(opened(quick(kafka_broker, unique_name("group"), start=start), [topic])).until(lambda r: r.caught_up)
    kafka_broker.add_partitions(topic, 2)
    wait_until(lambda: _stored(kafka_broker, topic, numbers(0, 7)), 30, "the new partition being written to")
    reading.until(lambda r: (topic, 1) in r.offsets and len(r.offsets[topic, 1]) == 7)
    assert reading.offsets[topic, 1] == list(range(7))
    assert reading.lost == {}


def _stored(broker, topic, values):
    """Send to partition 1 as soon as brokers know it."""
    from kafka.errors import KafkaError

    try:
        broker.produce(topic, values, partition=1)
    except (KafkaError, AssertionError):
        return False
    return True


def test_with_latest_records_that_came_while_nobody_read_are_not_skipped_at_the_next_start(kafka_broker, unique_name, opened):
    topic, group = kafka_broker.create_topic(unique_name("topic"), partitions=2), unique_name("group")
    kafka_broker.produce(topic, numbers(0, 10))
    source = opened(quick(kafka_broker, group, start="latest"), [topic])
    reading = Reading(source).until(lambda r: len(r.next_offsets) == 2)
    assert (reading.count(), reading.next_offsets) == (0, {(topic, 0): 10, (topic, 1): 0})      # what a state keeps
    source.close()
    kafka_broker.produce(topic, numbers(0, 3), partition=1)
    kafka_broker.add_partitions(topic, 3)
    again = opened(quick(kafka_broker, group, start="latest"), [topic])
    again.seek(reading.next_offsets)
    second = Reading(again).until(has(3)).until(lambda r: len(r.next_offsets) == 3)
    assert second.offsets == {(topic, 1): [0, 1, 2]}
    assert second.next_offsets == {(topic, 0): 10, (topic, 1): 3, (topic, 2): 0}


def _retained_from(broker, topic):
    from kafka import KafkaConsumer, TopicPartition

    with KafkaConsumer(bootstrap_servers=broker.bootstrap_servers) as consumer:
        return consumer.beginning_offsets([TopicPartition(topic, 0)])[TopicPartition(topic, 0)]


@pytest.mark.parametrize("running", [True, False])
def test_segments_that_retention_removed_are_counted_exactly_and_said(kafka_broker, unique_name, opened, caplog, running):
    caplog.set_level(logging.WARNING, "tidemark")
    topic, group = kafka_broker.create_topic(
        unique_name("topic"), segment_bytes=1 << 20, retention_bytes=1 << 20), unique_name("group")
    kafka_broker.produce(topic, numbers(0, 40))
    source = opened(quick(kafka_broker, group), [topic])
    reading = Reading(source).until(has(40)).until(lambda r: r.caught_up)
    if running:
        source.hold([(topic, 0)])                   # as the pipeline does with a partition that is far ahead
        reading.until(turns(2))
    else:
        source.close()
    kafka_broker.produce(topic, [b"x" * 100_000] * 40)                                  # 4 MB
    first = wait_until(lambda: (found := _retained_from(kafka_broker, topic)) > 41 and found, 60, "retention")
    if running:
        source.hold([])
    else:
        source = opened(quick(kafka_broker, group), [topic])
        source.seek({(topic, 0): 40})
        reading.source, reading.batches = source, iter(source)
    reading.until(lambda r: r.offsets[topic, 0][-1] == 79)
    read = reading.offsets[topic, 0]
    fetched = [offset for offset in read if 40 <= offset < first]                       # before it was held
    assert read == [*range(40), *fetched, *range(reading.lost[topic, 0] + 40 + len(fetched), 80)]
    assert len(read) + reading.lost[topic, 0] == 80
    said = [record for record in caplog.records if record.getMessage() == "Retention overtook us."]
    assert sum(record.records for record in said) == reading.lost[topic, 0] > 0


def test_a_topic_that_was_made_anew_under_its_name_is_refused_even_where_the_offset_is_within_it(
        kafka_broker, unique_name, opened, hasty):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, numbers(0, 5))
    reading = Reading(opened(quick(kafka_broker, unique_name("group")), [topic])).until(has(5))
    kafka_broker.delete_topic(topic)
    reading.until(lambda r: r.away)
    assert "does not exist" in reading.away
    wait_until(lambda: _made(kafka_broker, topic), 30, "the topic being made anew")
    kafka_broker.produce(topic, numbers(100, 150))
    with pytest.raises(SourceFailed, match=r"expected the topic that was read so far \(\S{22}\), got another one"):
        reading.until(lambda _: False)
    assert reading.count() == 5


def test_a_topic_that_was_made_anew_while_nobody_read_is_refused_by_the_id_that_the_state_remembers(
        kafka_broker, unique_name, opened):
    topic, other = kafka_broker.create_topic(unique_name("topic")), kafka_broker.create_topic(unique_name("other"))
    for name in (topic, other):
        kafka_broker.produce(name, numbers(0, 5))
    first = Reading(opened(quick(kafka_broker, unique_name("group")), [topic, other])).until(
        lambda r: r.count() == 10 and len(r.topic_ids) == 2)
    first.source.close()
    known = first.topic_ids
    assert known == {name: _shown_by_the_broker(kafka_broker, name) for name in (topic, other)}
    kafka_broker.produce(other, numbers(5, 8))
    again = opened(quick(kafka_broker, unique_name("group")), [topic, other], topic_ids=known)       # as it was: read on
    again.seek(first.next_offsets)
    assert Reading(again).until(has(3)).values == {(other, 0): numbers(5, 8)}
    again.close()
    kafka_broker.delete_topic(topic)
    wait_until(lambda: _made(kafka_broker, topic), 30, "the topic being made anew")
    kafka_broker.produce(topic, numbers(100, 150))
    third = opened(quick(kafka_broker, unique_name("group")), [topic, other], topic_ids=known)
    third.seek({(topic, 0): 5, (other, 0): 8})
    reading = Reading(third)
    with pytest.raises(SourceFailed, match=rf"topic '{topic}': expected the topic that was read so far \({known[topic]}\), got "
                       rf"another one that was made under its name \({_shown_by_the_broker(kafka_broker, topic)}\); start with "
                       "another service.state"):
        reading.until(has(1))
    assert reading.count() == 0


def test_replicas_have_no_offset_in_a_topic_that_was_made_anew_so_that_their_owner_refuses_its_counts(kafka_broker, unique_name):
    from kafka import KafkaConsumer, TopicPartition
    from kafka.structs import OffsetAndMetadata

    topic, group = kafka_broker.create_topic(unique_name("topic")), unique_name("group")
    kafka_broker.produce(topic, numbers(0, 5))
    key = TopicPartition(topic, 0)

    def placed():
        source = ReplicaSource(quick(kafka_broker, group), [topic])
        try:
            found = []
            Reading(source).until(lambda _: found.append(source.moved()) or found[-1])
            return found[-1]
        finally:
            source.close()

    with KafkaConsumer(bootstrap_servers=kafka_broker.bootstrap_servers, group_id=group) as consumer:
        consumer.assign([key])
        consumer.commit({key: OffsetAndMetadata(5, "m=1,0", -1)})
    assert placed() == {(topic, 0): (5, "m=1,0")}
    kafka_broker.delete_topic(topic)
    wait_until(lambda: _made(kafka_broker, topic), 30, "the topic being made anew")
    kafka_broker.produce(topic, numbers(0, 50))
    assert placed() == {(topic, 0): None}


def _shown_by_the_broker(broker, topic):
    """The id as librdkafka has it, in the letters of Kafka's own tools."""
    from confluent_kafka import TopicCollection
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    return str(admin.describe_topics(TopicCollection([topic]))[topic].result(30).topic_id).translate(str.maketrans("+/", "-_"))


def _made(broker, topic):
    from kafka.errors import TopicAlreadyExistsError

    try:
        return broker.create_topic(topic)
    except TopicAlreadyExistsError:                 # its deletion is still under way
        return None


# --- transactions and compaction

def test_aborted_records_are_never_delivered_and_what_is_no_event_moves_the_offset(kafka_broker, unique_name, opened):
    from kafka import KafkaProducer

    topic = kafka_broker.create_topic(unique_name("topic"))
    with KafkaProducer(bootstrap_servers=kafka_broker.bootstrap_servers, transactional_id=unique_name("writer"),
                       compression_type="lz4") as producer:
        producer.init_transactions()
        for n, commits in enumerate([True, False, True, False]):
            producer.begin_transaction()
            for i in range(10):
                producer.send(topic, b"%d-%d" % (n, i), headers=[("trace", b"abc")], partition=0)
            producer.flush()
            (producer.commit_transaction if commits else producer.abort_transaction)()
    source = opened(quick(kafka_broker, unique_name("group")), [topic])
    reading = Reading(source).until(lambda r: r.next_offsets.get((topic, 0)) == 44 and r.caught_up)
    assert reading.values == {(topic, 0): [b"%d-%d" % (n, i) for n in (0, 2) for i in range(10)]}
    assert reading.offsets == {(topic, 0): [*range(10), *range(22, 32)]}
    assert source.lag() == {(topic, 0): 0}
    assert reading.lost == {}


def test_gaps_of_a_compacted_topic_are_no_loss(kafka_broker, unique_name, opened):
    from kafka import KafkaProducer

    topic = kafka_broker.create_topic(unique_name("topic"), cleanup_policy="compact", min_cleanable_dirty_ratio=0.01,
                                      segment_ms=100, delete_retention_ms=0)

    def send(count):
        with KafkaProducer(bootstrap_servers=kafka_broker.bootstrap_servers) as producer:
            for n in range(count):
                producer.send(topic, b"%d" % n, key=b"%d" % (n % 5), partition=0)

    def kept():
        send(10)                                    # a new segment begins with a record
        group = unique_name("group")
        found = Reading(opened(quick(kafka_broker, group), [topic])).until(lambda r: r.caught_up and r.count())
        return found if found.count() < found.next_offsets[topic, 0] else None

    send(200)
    reading = wait_until(kept, 60, "compaction")
    assert reading.lost == {}
    assert reading.offsets[topic, 0] == sorted(set(reading.offsets[topic, 0]))
    assert reading.values[topic, 0][-1] == b"9"


# --- leaders

def test_leaders_that_die_come_back_and_are_elected_again_lose_and_repeat_nothing(kafka_pair, unique_name, opened, hasty):
    topic = kafka_pair.create_topic(unique_name("topic"), placed={0: [2, 1], 1: [1, 2]})
    group, sent = unique_name("group"), 0
    reading = Reading(opened(quick(kafka_pair, group), [topic]))

    def send_and_read():
        nonlocal sent
        for partition in range(2):
            kafka_pair.produce(topic, numbers(sent, sent + 50), partition=partition)
        sent += 50
        reading.until(has(2 * sent))

    send_and_read()
    kafka_pair.mortal.stop()
    reading.until(lambda _: kafka_pair.leader(topic)[0] == 1)
    send_and_read()
    kafka_pair.mortal.start()
    reading.until(lambda _: kafka_pair.leader(topic)[1] == {1, 2})
    reading.until(lambda _: kafka_pair.elect_preferred(topic) and kafka_pair.leader(topic)[0] == 2)
    send_and_read()
    kafka_pair.mortal.restart(cleanly=True)
    send_and_read()
    assert reading.offsets == {(topic, partition): list(range(sent)) for partition in range(2)}
    assert reading.lost == {}
