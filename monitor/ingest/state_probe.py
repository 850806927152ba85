"""What replicas need of Kafka, looked at one by one for `tidemark doctor`: the topics as they must be, and each right.

A right is only sure where it was used. So a transaction is begun under a name of its own, with one record for each topic and
one offset for each group, and given up again: no reader of committed records sees any of it, no offset moves, nobody is
fenced. What a topic's settings are needs DESCRIBE_CONFIGS, which replicas do not: without it that is said, and no fault.

Cost: some ten requests. Neighbours: `state_topic` does the same for good, `commands.doctor` prints it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import AuthorizationError, KafkaError, UnknownTopicOrPartitionError

from monitor.config import Kafka, Replicas
from monitor.errors import SourceFailed, TidemarkError
from monitor.ingest.connection import client_options
from monitor.ingest.state_topic import RECORD_BYTES, StateWriter, creation, options_of, topics_of

Check = tuple[str, bool, str]


def probe_replicas(kafka: Kafka, replicas: Replicas, topics: Sequence[str], *, promotes: bool) -> list[Check]:
    """Checks for `tidemark doctor`: (what, whether it is well, one line).

    topics : of events      promotes : whether the topic of references is needed
    """
    try:
        admin = KafkaAdminClient(**client_options(kafka), request_timeout_ms=10_000)
    except (KafkaError, TidemarkError) as error:
        return [("replicas", False, f"kafka: expected to be let in, got {_named(error)}; see `kafka brokers`")]
    names = list(topics_of(replicas))[:2 if promotes else 1]
    checks: list[Check] = []
    is_there: dict[str, bool] = {}
    try:
        for name in names:
            is_there[name], ok, text = _topic(admin, replicas, name)
            checks.append((f"replicas topic {name}", ok, text))
    finally:
        admin.close()
    there = [name for name in names if is_there[name]]
    return [*checks, *_rights(kafka, replicas, there, topics)]


def _topic(admin: Any, replicas: Replicas, name: str) -> tuple[bool, bool, str]:
    """(whether we see a topic, whether it is as it must be, one line); of one that is not there, whether we may make it."""
    try:
        (found,) = admin.describe_topics([name])
        if found.get("error_code"):
            return False, *_absent(admin, replicas, name, found["error_code"])
        partitions = found["partitions"]
    except UnknownTopicOrPartitionError:
        return False, *_absent(admin, replicas, name, UnknownTopicOrPartitionError.errno)
    except KafkaError as error:
        return False, False, f"expected to be told of it, got {_named(error)}; ask for READ, WRITE and DESCRIBE on it"
    return True, *_fits(admin, replicas, name, partitions)


def _fits(admin: Any, replicas: Replicas, name: str, partitions: Sequence[Any]) -> tuple[bool, str]:
    wanted = topics_of(replicas)[name]
    if len(partitions) != wanted:
        return False, (f"expected {wanted} partitions (service.replicas.partitions), got {len(partitions)}; set it so, because "
                       "which partition holds a model follows from their number")
    copies = min(len(one["replica_nodes"]) for one in partitions)
    in_sync = min(len(one["isr_nodes"]) for one in partitions)
    if copies < replicas.replication:
        return False, (f"expected {replicas.replication} copies (service.replicas.replication), got {copies}; add copies with "
                       "kafka-reassign-partitions.sh, or set it so and live with what a broker's end loses")
    settings = _settings(admin, name)
    if not settings:
        asked = ", ".join(f"{key}={value}" for key, value in options_of(replicas).items())
        return True, (f"partitions: {len(partitions)}, copies: {copies}, in sync: {in_sync}; its settings are not told, which "
                      f"takes DESCRIBE_CONFIGS: see that it has {asked}")
    if fault := _fault(settings, replicas, copies, in_sync):
        expected, key = fault
        return False, (f"{expected}, got {settings.get(key)}; kafka-configs.sh --alter --entity-type topics --entity-name {name} "
                       f"--add-config {key}={options_of(replicas)[key]}")
    return True, (f"partitions: {len(partitions)}, compacted, copies: {copies}, in sync: {in_sync} of which "
                  f"{settings.get('min.insync.replicas')} must be")


def _fault(settings: dict[str, str], replicas: Replicas, copies: int, in_sync: int) -> tuple[str, str] | None:
    """What of a topic's settings would lose or stop something: (what is expected, the setting)."""
    if settings.get("cleanup.policy") != "compact":
        return "expected cleanup.policy compact, since time takes nothing from what is decided", "cleanup.policy"
    if int(settings.get("max.message.bytes", 0)) < 2 * RECORD_BYTES:
        return f"expected records of up to {2 * RECORD_BYTES} bytes to be taken", "max.message.bytes"
    needed = int(settings.get("min.insync.replicas", 1))
    if needed < int(options_of(replicas)["min.insync.replicas"]) or needed > in_sync or needed >= copies > 1:
        wanted = options_of(replicas)["min.insync.replicas"]
        return f"expected min.insync.replicas of {wanted} with {copies} copies, {in_sync} of them in sync", "min.insync.replicas"
    return None


def _settings(admin: Any, name: str) -> dict[str, str]:
    try:
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=None)], config_filter="all")
    except KafkaError:                              # it is no fault of the topic; nothing is told of it
        return {}
    return {key: str(value["value"]) for kind in found.values() for of, told in kind.items() if of == name
            for key, value in told.items()}


def _absent(admin: Any, replicas: Replicas, name: str, code: int) -> tuple[bool, str]:
    """A topic that is not there, or that we may not see."""
    how = creation(replicas, name)
    if code != UnknownTopicOrPartitionError.errno:
        return False, "expected the right to see it, got a refusal; ask for READ, WRITE and DESCRIBE on it"
    try:
        admin.create_topics([NewTopic(name, num_partitions=topics_of(replicas)[name], replication_factor=replicas.replication,
                                      topic_configs=options_of(replicas))], validate_only=True)
    except KafkaError as error:
        return False, f"expected it or the right to make it, got {_named(error)}; create it with: {how}"
    return True, "does not exist yet; the first start makes it"


def _rights(kafka: Kafka, replicas: Replicas, there: Sequence[str], topics: Sequence[str]) -> Iterator[Check]:
    """Every right that a transaction needs, by one that is given up."""
    name = f"{kafka.group}.doctor"
    ids = f"WRITE and DESCRIBE on transactional ids that begin with {kafka.group}. (prefixed)"
    try:
        writer = StateWriter(kafka, replicas, name, ask=ids)
    except TidemarkError as error:
        yield "replicas transactions", False, str(error)
        return
    yield "replicas transactions", True, f"may begin as {name!r}"
    tried: list[tuple[str, str, tuple[str, int] | None, str, str, str]] = [
        (f"replicas writing {topic}", topic, None, "", f"write to {topic!r}", f"WRITE and DESCRIBE on topic {topic}")
        for topic in there]
    placed = [(kafka.group, topics[0])] if topics else []
    placed += [(f"{kafka.group}.owners", replicas.topic)] if replicas.topic in there else []
    tried += [(f"replicas group {group}", topic, (topic, 0), group, f"commit offsets of {topic!r} as group {group!r}",
               f"READ on group {group} and on topic {topic}") for group, topic in placed]
    try:
        for check, topic, offset, group, what, ask in tried:
            try:
                writer.rehearse(topic, offset, group, what, ask)
                yield check, True, "its right was tried in a transaction that was given up"
            except SourceFailed as error:
                yield check, False, str(error)
            except TidemarkError as error:
                yield check, False, f"{error}; see that the brokers' transaction.state.log.* fit, and enough copies are in sync"
    finally:
        writer.close()


def _named(error: Exception) -> str:
    return "a refusal" if isinstance(error, AuthorizationError) else f"{type(error).__name__}: {str(error)[:200]}"
