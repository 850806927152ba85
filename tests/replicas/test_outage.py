"""Replicas whose broker goes away and comes back: they say so, stay, and count on without losing or repeating anything."""

from __future__ import annotations

import re
from urllib.request import ProxyHandler, build_opener

import pytest

from tests.conftest import missing
from tests.crash import world
from tests.kafka_broker import KafkaBroker, why_not
from tests.replicas.replica_world import Nursery, Replicas, configuration


@pytest.fixture
def mortal(tmp_path):
    """A broker of this test's own."""
    if lack := why_not():
        missing("kafka", lack)
    (tmp_path / "broker").mkdir()
    broker = KafkaBroker(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def pair(mortal, tmp_path):
    """Two replicas of the crash tests' world."""
    mortal.create_topic("input", world.PARTITIONS)
    nursery = Nursery()
    replicas = Replicas(nursery, tmp_path, configuration(tmp_path, mortal.bootstrap_servers, "input", state_topic="state"))
    for name in ("a", "b"):
        replicas.start(name)
    yield replicas
    replicas.close()
    nursery.close()


def shown(replicas, path):
    """What each replica answers at a path."""
    texts = []
    for name in replicas.running:
        address = re.findall(r'address="([^"]+)"', replicas.log(name).read_text())[-1]
        with build_opener(ProxyHandler({})).open(f"http://{address}{path}", timeout=30) as answer:
            texts.append(answer.read().decode())
    return texts


def test_replicas_wait_for_brokers_that_are_away_say_so_and_count_on(mortal, pair):
    def total():
        found = pair.state()
        return sum(offset for _, offset, _ in found["positions"]) if found else 0

    def feed(first, last):
        for partition, values in world.messages().items():
            mortal.produce("input", values[first:last], partition=partition)

    feed(0, 1000)
    pair.wait(lambda: total() == 3000, 120, "the first events")
    pair.wait(lambda: all('away":""' in text for text in shown(pair, "/api/v1/monitors")), 30, "nothing to tell")

    mortal.stop()
    pair.wait(lambda: all("\ntidemark_source_connected 0" in text for text in shown(pair, "/metrics")), 120, "that it is away")
    for text in shown(pair, "/api/v1/monitors"):
        assert re.search(r'"away":"[^"]{10,}', text), text
    pair.assert_running()

    mortal.start()
    feed(1000, 2000)
    pair.wait(lambda: total() == 6000, 180, "the events of after")
    pair.wait(lambda: all("\ntidemark_source_connected 1" in text for text in shown(pair, "/metrics")), 120, "that it is back")
    assert sum(row[2] for row in pair.state()["panes"]) <= 6000
    assert pair.stop_all() == [0, 0]
