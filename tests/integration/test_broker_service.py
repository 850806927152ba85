"""The service while its brokers are away, and what it says of records that retention took: log, metric, API, exit codes."""

import json

import pytest

from monitor.state.store import Store
from tests.chaos_proxy import ChaosProxy
from tests.conftest import package, wait_until
from tests.crash import world
from tests.integration.test_run import Service, produce

TOTAL = sum(len(values) for values in world.messages().values())


@pytest.fixture
def service(tmp_path, kafka_broker, unique_name):
    """A service that reads its topic through a proxy, and the proxy."""
    topic = kafka_broker.create_topic(unique_name("topic"), world.PARTITIONS)
    produce(kafka_broker, topic)
    made = Service(tmp_path / "service", kafka_broker.servers["proxied"], topic)
    made.topic = topic
    with ChaosProxy(kafka_broker.told["proxied"], kafka_broker.behind["proxied"]) as made.proxy:
        yield made
        if made.process is not None:
            made.process.stop()


def value(service, name):
    """One series of ours, by its whole name with labels; None where it is not shown."""
    answer = service.get("/metrics")
    lines = answer[1].splitlines() if answer and answer[0] == 200 else []
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), None)


def lines_about(service, text):
    return [line for line in service.log().splitlines() if text in line]


def test_brokers_that_go_and_come_back_are_shown_and_end_nothing(service, kafka_broker):
    service.start()
    service.read_up_to(TOTAL)
    assert value(service, "tidemark_source_connected") == 1
    service.proxy.refuse = True
    service.proxy.cut()
    wait_until(lambda: value(service, "tidemark_source_connected") == 0, 60, "the metric saying that the source is away")
    assert service.is_ready()                       # it answers, and what it knows stands
    service.proxy.refuse = False
    wait_until(lambda: value(service, "tidemark_source_connected") == 1, 60, "the metric saying that it is back")
    assert len(lines_about(service, "Kafka does not answer; trying again.")) == 1
    assert len(lines_about(service, "Kafka answers again.")) == 1
    service.proxy.refuse = True
    service.proxy.cut()
    wait_until(lambda: value(service, "tidemark_source_connected") == 0, 60, "the source being away again")
    assert service.end() == 0                       # SIGTERM ends it all the same, in time


def test_records_that_retention_took_while_it_was_down_stand_in_log_metric_and_api(service, kafka_broker):
    service.start()
    service.read_up_to(TOTAL)
    assert service.end() == 0
    before = {int(partition): offset for partition, offset in _ends(kafka_broker, service.topic).items()}
    for partition in before:
        kafka_broker.produce(service.topic, [b"{}"] * 7, partition=partition)
    kafka_broker.delete_records(service.topic, {0: before[0] + 5})
    service.start()
    name = 'tidemark_events_total{model="m",outcome="lost",reason="retention"}'
    wait_until(lambda: value(service, name) == 5, 60, "the metric counting five lost records")
    (line,) = lines_about(service, "Retention overtook us.")
    assert "records=5" in line
    assert service.topic in line
    (monitor,) = json.loads(service.get("/api/v1/monitors")[1])["monitors"]
    assert monitor["lost"] == 5


@pytest.mark.parametrize(("first", "second"), [("kafka-python", "librdkafka"), ("librdkafka", "kafka-python")])
def test_a_topic_made_anew_while_it_was_down_ends_it_and_a_state_that_knows_no_ids_learns_them_from_either_transport(
        tmp_path, kafka_broker, unique_name, first, second):
    package("confluent_kafka")
    topic = kafka_broker.create_topic(unique_name("topic"), world.PARTITIONS)
    produce(kafka_broker, topic)
    service = Service(tmp_path, kafka_broker.bootstrap_servers, topic)
    path = tmp_path / "state.db"

    def begun(transport):
        service.change(lambda tree: tree["kafka"].update(transport=transport))
        return service.start()

    def ids():
        found = world.state(tmp_path)
        return found["counters"][0].get("topic_ids") if found else None

    try:
        begun(first).read_up_to(TOTAL)
        wait_until(ids, 180, "the topic's id in the state")
        assert service.end() == 0
        known, counters = ids(), world.state(tmp_path)["counters"]
        assert list(known) == [topic]
        store = Store(path)
        with store.transaction() as db:             # as a version left it that knew of no ids
            db.execute("UPDATE streams SET counters = json_remove(counters, '$.topic_ids')")
        store.close()
        assert ids() is None
        begun(second)
        wait_until(lambda: service.is_ready() and ids() == known, 180, "the same id, told by the other transport")
        assert service.end() == 0
        assert world.state(tmp_path)["counters"] == counters
        kafka_broker.delete_topic(topic)
        wait_until(lambda: _made(kafka_broker, topic), 60, "the topic being made anew")
        for _ in range(2):                          # more than the offsets that are stored
            produce(kafka_broker, topic)
        before = world.state(tmp_path)
        begun(first)
        assert service.process.popen.wait(180) == 1
        (line,) = lines_about(service, "expected the topic that was read so far")
        assert f"({known[topic]}), got another one that was made under its name (" in line
        assert line.endswith("start with another service.state")
        assert world.state(tmp_path) == before
    finally:
        if service.process is not None:
            service.process.stop()


def _made(broker, topic):
    from kafka.errors import TopicAlreadyExistsError

    try:
        return broker.create_topic(topic, world.PARTITIONS)
    except TopicAlreadyExistsError:                 # its deletion is still under way
        return None


def _ends(broker, topic):
    from kafka import KafkaConsumer, TopicPartition

    with KafkaConsumer(bootstrap_servers=broker.bootstrap_servers) as consumer:
        keys = [TopicPartition(topic, partition) for partition in range(world.PARTITIONS)]
        return {key.partition: end for key, end in consumer.end_offsets(keys).items()}
