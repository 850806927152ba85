"""A real one-node Apache Kafka (KRaft) for tests, started from Maven jars without any installation.

One process is broker and controller at once, with two listeners on 127.0.0.1: `bootstrap_servers` speaks plaintext,
`secure_bootstrap` TLS with SASL (PLAIN user alice, SCRAM-SHA-512 user bob). Its folder is thrown away, so it is
ended with SIGKILL; `restart()` keeps folder and ports, as a broker that was restarted does. Cost: format 2 s, start
3 s, restart 3 s with the class-data archive that the first run leaves beside the jars; about 350 MB.
The jars are fetched by tests/setup_components.sh into ${TIDEMARK_CACHE:-~/.cache/tidemark}/kafka-VERSION.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.conftest import Process, free_port

POM = Path(__file__).parent / "kafka" / "pom.xml"
VERSION = re.search(r"<kafka.version>(.+?)</", POM.read_text())[1]
JARS = Path(os.environ.get("TIDEMARK_CACHE") or Path.home() / ".cache" / "tidemark") / f"kafka-{VERSION}"
JVM = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Xlog:cds=off",
       "-Xlog:cds+dynamic=off", "-Djava.awt.headless=true", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]

PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAIN://127.0.0.1:{plain},SECURE://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAIN://127.0.0.1:{plain},SECURE://127.0.0.1:{secure}
listener.security.protocol.map=PLAIN:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAIN
log.dirs={folder}/data
num.partitions=4
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# a killed broker may register again only when its last session has ended: 9 s by default
broker.session.timeout.ms=1000
broker.heartbeat.interval.ms=200
num.network.threads=2
num.io.threads=2
log.cleaner.dedupe.buffer.size=10485760
# one event of the tests is 10 MB
message.max.bytes=20971520
replica.fetch.max.bytes=20971520
ssl.keystore.type=PEM
ssl.keystore.location={folder}/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_alice="alice-secret";
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"""


def why_not() -> str:
    """Why no broker can be started here; empty where one can."""
    for program in ("java", "openssl"):
        if shutil.which(program) is None:
            return f"no `{program}` on PATH; run tests/setup_components.sh"
    if not (JARS / ".done").exists():
        return f"no jars in {JARS}; run tests/setup_components.sh"
    return ""


def make_certificates(folder: Path) -> None:
    """Write ca.pem and broker.pem (key first, then certificate) for localhost and 127.0.0.1, valid two days."""
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN=test-ca",
        "req -newkey rsa:2048 -nodes -keyout broker.key -out broker.csr -subj /CN=localhost",
        "x509 -req -in broker.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out broker.crt",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    (folder / "broker.pem").write_bytes((folder / "broker.key").read_bytes() + (folder / "broker.crt").read_bytes())


class KafkaBroker:
    """A Kafka broker of its own: `bootstrap_servers`, `secure_bootstrap` and `ca` are what a client needs."""

    users: Mapping[str, tuple[str, str]] = {"PLAIN": ("alice", "alice-secret"), "SCRAM-SHA-512": ("bob", "bob-secret")}

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        plain, secure, controller = free_port(), free_port(), free_port()
        self.port = plain
        self.bootstrap_servers = f"127.0.0.1:{plain}"
        self.secure_bootstrap = f"127.0.0.1:{secure}"
        self.ca = folder / "ca.pem"
        self.process: Process | None = None
        make_certificates(folder)
        (folder / "server.properties").write_text(
            PROPERTIES.format(folder=folder, plain=plain, secure=secure, controller=controller))
        # An id that begins with "-" would be taken for an option.
        cluster = "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
        subprocess.run([*JVM, "-cp", f"{JARS}/*", "kafka.tools.StorageTool", "format", "-t", cluster,
                        "-c", "server.properties", "--add-scram", "SCRAM-SHA-512=[name=bob,password=bob-secret]"],
                       cwd=folder, check=True, capture_output=True)

    def start(self) -> None:
        """Start, or start again on the same folder and ports; returns when clients are answered."""
        archive = JARS / "kafka.jsa"
        self.new_archive = None if archive.exists() else JARS / f"kafka-{uuid.uuid4().hex}.jsa"
        sharing = f"-XX:SharedArchiveFile={archive}"
        if self.new_archive:
            sharing = f"-XX:ArchiveClassesAtExit={self.new_archive}"
        self.process = Process([*JVM, sharing, "-cp", f"{JARS}/*", "kafka.Kafka", "server.properties"],
                               self.folder / "broker.log", cwd=self.folder)
        self.process.wait_port(self.port, timeout=60)

    def stop(self, *, cleanly: bool = False) -> None:
        """End the broker: SIGKILL, or SIGTERM (`cleanly`, or when this run is to leave the class-data archive)."""
        if self.process is None:
            return
        if cleanly or self.new_archive:
            self.process.stop(timeout=30)
        else:
            self.process.kill()
            self.process.stop()
        self.process = None
        if self.new_archive and self.new_archive.exists():
            os.replace(self.new_archive, JARS / "kafka.jsa")       # atomic: another run may be doing the same

    def restart(self, *, cleanly: bool = False) -> None:
        """The same broker again, after a crash or (`cleanly`) an orderly end."""
        self.stop(cleanly=cleanly)
        self.start()

    def admin(self) -> Any:
        """A kafka-python admin client of the plaintext listener; close it."""
        from kafka import KafkaAdminClient

        return KafkaAdminClient(bootstrap_servers=self.bootstrap_servers)

    def create_topic(self, name: str, partitions: int = 1, **config: Any) -> str:
        """Make a topic; `config` are topic options with _ for . (`retention_ms=1000`). Returns the name."""
        from kafka.admin import NewTopic

        options = {key.replace("_", "."): str(value) for key, value in config.items()}
        admin = self.admin()
        admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=1, topic_configs=options)])
        admin.close()
        return name

    def produce(self, topic: str, values: Iterable[bytes | None], *, partition: int = 0, codec: str | None = None,
                times: Iterable[int] | None = None) -> None:
        """Send values to one partition and wait until they are stored; `times` are milliseconds since 1970."""
        from kafka import KafkaProducer

        producer = KafkaProducer(bootstrap_servers=self.bootstrap_servers, compression_type=codec, acks="all",
                                 max_request_size=20_971_520, linger_ms=5)
        stamps = iter(times) if times is not None else None
        for value in values:
            producer.send(topic, value, partition=partition, timestamp_ms=next(stamps) if stamps else None,
                          key=b"-" if value is None else None)
        producer.flush()
        producer.close()

    def delete_records(self, topic: str, before: Mapping[int, int]) -> None:
        """Do what retention does, at once: drop each partition's records below an offset."""
        from kafka import TopicPartition

        admin = self.admin()
        admin.delete_records({TopicPartition(topic, partition): offset for partition, offset in before.items()})
        admin.close()
