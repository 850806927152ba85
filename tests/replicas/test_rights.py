"""What replicas ask of Kafka, on a broker that gives rights one by one: `tidemark doctor` names each that is lacking, and
those of docs/replicas.md are enough to count and to decide.

The broker is one of its own: the shared one has no authorizer. Whoever comes by its plain listener may do everything.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest
import yaml

from monitor.config import load
from monitor.ingest.state_probe import probe_replicas
from monitor.ingest.state_topic import ensure_topics
from tests.conftest import Process, missing, wait_until
from tests.crash import world
from tests.kafka_broker import KafkaBroker, why_not
from tests.replicas.replica_world import configuration

AUTHORIZER = """
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""
INPUT, STATE = "guarded-input", "guarded-state"
#: The table of docs/replicas.md: resource, whether its name is a prefix, rights. The group is named like the state topic.
PAGE = (
    ("TOPIC", INPUT, False, ("READ", "DESCRIBE")),
    ("TOPIC", STATE, True, ("READ", "WRITE", "DESCRIBE")),
    ("GROUP", STATE, False, ("READ",)),
    ("GROUP", f"{STATE}.owners", False, ("READ",)),
    ("TRANSACTIONAL_ID", f"{STATE}.", True, ("WRITE", "DESCRIBE")),
)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A broker on which alice may do nothing but what she is given."""
    if lack := why_not():
        missing("kafka", lack)
    broker = KafkaBroker(tmp_path_factory.mktemp("guarded"), AUTHORIZER)
    broker.start()
    broker.create_topic(INPUT, world.PARTITIONS)
    for partition, values in world.messages().items():
        broker.produce(INPUT, values[:200], partition=partition)
    yield broker
    broker.stop()


def give(broker, kind, name, is_prefix, rights):
    """Give alice rights."""
    from kafka.admin import ACL, ACLOperation, ACLPermissionType, ACLResourcePatternType, ResourcePattern, ResourceType

    admin = broker.admin()
    pattern = ResourcePattern(ResourceType[kind], name,
                              ACLResourcePatternType.PREFIXED if is_prefix else ACLResourcePatternType.LITERAL)
    admin.create_acls([ACL("User:alice", "*", ACLOperation[right], ACLPermissionType.ALLOW, pattern) for right in rights])
    admin.close()


@pytest.fixture(scope="module")
def guarded_config(guarded, tmp_path_factory):
    """A configuration of alice's, with a promotion."""
    folder = tmp_path_factory.mktemp("alice")
    (folder / "password").write_text("alice-secret")
    path = configuration(folder, guarded.secure_bootstrap, INPUT, state_topic=STATE, promote=True)
    tree = yaml.safe_load(path.read_text())
    tree["kafka"]["security"] = {"protocol": "SASL_SSL", "mechanism": "PLAIN", "username": "alice",
                                 "password_file": str(folder / "password"), "ca_file": str(guarded.ca)}
    path.write_text(yaml.safe_dump(tree))
    return path


def test_doctor_names_each_right_that_is_lacking_and_the_rights_of_the_page_are_enough(guarded, guarded_config, tmp_path):
    config = load(guarded_config)
    kafka, replicas = config.kafka, config.service.replicas

    def checked(topics=(INPUT,)):
        return {what: (ok, text) for what, ok, text in probe_replicas(kafka, replicas, topics, promotes=True)}

    found = checked()
    assert not any(ok for ok, _ in found.values()), found
    assert found["replicas transactions"][1].endswith(
        "WRITE and DESCRIBE on transactional ids that begin with guarded-state. (prefixed)")
    assert "ask for READ, WRITE and DESCRIBE" in found[f"replicas topic {STATE}"][1]

    # Somebody who may makes the topics; alice is given one right after the other, and told of the next that is lacking.
    plain = load(configuration(tmp_path, guarded.bootstrap_servers, INPUT, state_topic=STATE, promote=True))
    ensure_topics(plain.kafka, plain.service.replicas, promotes=True)
    give(guarded, *PAGE[0])
    before = [what for what, (ok, _) in found.items() if not ok]
    for resource in (PAGE[4], ("TOPIC", STATE, True, ("READ", "DESCRIBE")), PAGE[1], PAGE[2], PAGE[3]):
        give(guarded, *resource)

        def changed(before=before):
            found = checked()
            lacking = [what for what, (ok, _) in found.items() if not ok]
            return (found, lacking) if lacking != before else None

        found, lacking = wait_until(changed, 60, f"an effect of {resource}")
        before = lacking
        if resource[3] == ("READ", "DESCRIBE") and resource[1] == STATE:
            assert f"ask for WRITE and DESCRIBE on topic {STATE}" in found[f"replicas writing {STATE}"][1]
            assert "its settings are not told" in found[f"replicas topic {STATE}"][1]
        if resource == PAGE[2]:
            assert lacking == [f"replicas group {STATE}.owners"]
            assert f"READ on group {STATE}.owners and on topic {STATE}" in found[f"replicas group {STATE}.owners"][1]
    assert lacking == []

    # These are the rights of the page, and a replica counts and decides with them.
    rows = re.findall(r"^\| .*\| ([A-Z, ]+)[^|]*\|$", page_of_rights(), re.MULTILINE)
    assert [tuple(row.strip(" ;").split(", ")) for row in rows] == [rights for *_, rights in PAGE]
    process = Process([sys.executable, "-m", "monitor.cli", "run", "-c", guarded_config], tmp_path / "log.txt",
                      env={**os.environ, "PYTHONFAULTHANDLER": "1"})
    try:
        process.wait_said("Counting.", "Deciding.", timeout=300)
    finally:
        process.stop(20)


def page_of_rights() -> str:
    """The table under `## Rights`, without its head."""
    page = (Path(__file__).parents[2] / "docs" / "replicas.md").read_text()
    return page.partition("## Rights")[2].partition("\n## ")[0].partition("|---|---|\n")[2]


def test_doctor_finds_a_state_topic_that_would_forget(guarded, tmp_path):
    name = f"forgetful-{time.time_ns()}"
    config = load(configuration(tmp_path, guarded.bootstrap_servers, INPUT, state_topic=name))

    def checked():
        ((_, *found),) = probe_replicas(config.kafka, config.service.replicas, [], promotes=False)[:1]
        return found

    assert checked() == [True, "does not exist yet; the first start makes it"]
    guarded.create_topic(name, 2, cleanup_policy="delete", max_message_bytes=2 * (8 << 20))
    ok, words = checked()
    assert not ok
    assert words.startswith("expected cleanup.policy compact")
    assert words.endswith(f"--entity-name {name} --add-config cleanup.policy=compact")
    guarded.delete_topic(name)
    wait_until(lambda: "does not exist" in checked()[1], 30, "the topic's end")
    guarded.create_topic(name, 3)
    assert checked()[1].startswith("expected 2 partitions (service.replicas.partitions), got 3")
