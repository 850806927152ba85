"""The components that tests start do what the other tests rely on."""

from kafka import KafkaConsumer, KafkaProducer, TopicPartition


def test_the_real_broker_keeps_records_over_a_crash(kafka_broker, unique_name):
    topic = kafka_broker.create_topic(unique_name("topic"), partitions=2)
    kafka_broker.produce(topic, [b"before"], partition=1)

    kafka_broker.restart()
    kafka_broker.produce(topic, [b"after"], partition=1)

    consumer = KafkaConsumer(bootstrap_servers=kafka_broker.bootstrap_servers)
    partition = TopicPartition(topic, 1)
    consumer.assign([partition])
    consumer.seek(partition, 0)
    values = []
    while len(values) < 2:
        values += [record.value for records in consumer.poll(1000).values() for record in records]
    consumer.close()
    assert values == [b"before", b"after"]


def test_the_in_process_broker_hands_back_what_was_produced(mock_cluster, unique_name):
    topic = mock_cluster.create_topic(unique_name("topic"))
    producer = KafkaProducer(bootstrap_servers=mock_cluster.bootstrap_servers, api_version=(2, 3))
    producer.send(topic, b"value", key=b"key")
    producer.close()

    consumer = KafkaConsumer(bootstrap_servers=mock_cluster.bootstrap_servers, api_version=(2, 3),
                             auto_offset_reset="earliest", consumer_timeout_ms=10_000)
    # kafka-python 3.0 loses a subscription that comes while it bootstraps, and asks for the topic five minutes later;
    # with a told version the constructor does not wait for the bootstrap.
    consumer.bootstrap(timeout_ms=10_000)
    consumer.subscribe([topic])
    record = next(consumer)
    consumer.close()
    assert (record.key, record.value) == (b"key", b"value")
