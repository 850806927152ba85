"""A real Apache Kafka (KRaft) for tests, of one node or two, started from Maven jars without any installation.

`KafkaBroker` is broker and controller in one process, with a listener on 127.0.0.1 for every way in that a test needs
(one process with many costs nothing; a second broker costs 350 MB and seconds):

    plain, secure       plaintext; TLS and SASL: PLAIN user alice, SCRAM-SHA-256 user carol, SCRAM-SHA-512 user bob
    mutual              TLS that asks for a client's certificate
    expired, elsewhere  TLS with a certificate whose time is over, with one for another host
    proxied, secure_proxied   as the first two (the second with SCRAM-SHA-512 only), told to clients as the port of a
                        tests.chaos_proxy.ChaosProxy that the test starts

`KafkaPair` adds a second node that only is a broker, so that it may die while the controller lives: leaders move.
Folders are thrown away, so the end is SIGKILL; `restart()` keeps folder and ports, as a broker that was restarted does.
Cost: format 2 s, start 3 s, restart 3 s with the class-data archive that the first run leaves beside the jars.
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

#: Of every node: small, quick to notice that a broker is gone.
COMMON = """
node.id={node}
process.roles={roles}
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
log.dirs={folder}/data
num.partitions=4
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
offsets.topic.num.partitions=1
offsets.topic.replication.factor={copies}
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# a killed broker may register again only when its last session has ended: 9 s by default
broker.session.timeout.ms=1000
broker.heartbeat.interval.ms=200
# only a topic that asks for it forgets, for events of the tests are years old; and it does so within a second
log.retention.ms=-1
log.retention.check.interval.ms=500
log.initial.task.delay.ms=500
num.network.threads=1
num.io.threads=2
log.cleaner.dedupe.buffer.size=10485760
log.cleaner.backoff.ms=500
# one event of the tests is 10 MB
message.max.bytes=20971520
replica.fetch.max.bytes=20971520
"""

#: The ways into a KafkaBroker: its listener's name and what it speaks.
WAYS = {"plain": "PLAINTEXT", "secure": "SASL_SSL", "mutual": "SSL", "expired": "SSL", "elsewhere": "SSL",
        "proxied": "PLAINTEXT", "secure_proxied": "SASL_SSL"}

SECURITY = """
inter.broker.listener.name=PLAIN
ssl.keystore.type=PEM
ssl.keystore.location={folder}/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
listener.name.mutual.ssl.client.auth=required
listener.name.expired.ssl.keystore.type=PEM
listener.name.expired.ssl.keystore.location={folder}/expired.pem
listener.name.elsewhere.ssl.keystore.type=PEM
listener.name.elsewhere.ssl.keystore.location={folder}/elsewhere.pem
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.secure_proxied.sasl.enabled.mechanisms=SCRAM-SHA-512
"""

SASL = """
listener.name.{name}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_alice="alice-secret";
listener.name.{name}.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.{name}.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
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
    """Write ca.pem and, each with its key first, what it signed: broker, expired, elsewhere, client, expired-client.

    The broker's and the expired one are for localhost and 127.0.0.1, `elsewhere` for another host; good ones for two days.
    `foreign-client` is signed by another authority, other-ca.pem.
    """
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    (folder / "other-names").write_text("subjectAltName=DNS:kafka.example\n")
    (folder / "client-names").write_text("extendedKeyUsage=clientAuth\n")

    def openssl(command: str) -> None:
        command = command.replace("-newkey", "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes")
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)

    openssl("req -x509 -newkey -days 2 -keyout ca.key -out ca.pem -subj /CN=test-ca")
    openssl("req -x509 -newkey -days 2 -keyout other-ca.key -out other-ca.pem -subj /CN=other-ca")
    for name, extension, days in (("broker", "names", 2), ("expired", "names", -1), ("elsewhere", "other-names", 2),
                                  ("client", "client-names", 2), ("expired-client", "client-names", -1)):
        openssl(f"req -newkey -keyout {name}.key -out {name}.csr -subj /CN={name}")
        openssl(f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} -extfile {extension} "
                f"-out {name}.crt")
        (folder / f"{name}.pem").write_bytes((folder / f"{name}.key").read_bytes() + (folder / f"{name}.crt").read_bytes())
    openssl("req -newkey -keyout foreign-client.key -out foreign-client.csr -subj /CN=foreign-client")
    openssl("x509 -req -in foreign-client.csr -CA other-ca.pem -CAkey other-ca.key -CAcreateserial -days 2 "
            "-extfile client-names -out foreign-client.crt")


class Node:
    """One Kafka process: its folder, its properties, its life. `port` is the one that clients are answered at."""

    def __init__(self, folder: Path, cluster: str, properties: str, port: int, *format_options: str) -> None:
        self.folder = folder
        self.port = port
        self.process: Process | None = None
        self.new_archive: Path | None = None
        folder.mkdir(exist_ok=True)
        (folder / "server.properties").write_text(properties)
        subprocess.run([*JVM, "-cp", f"{JARS}/*", "kafka.tools.StorageTool", "format", "-t", cluster,
                        "-c", "server.properties", *format_options], cwd=folder, check=True, capture_output=True)

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


def _new_cluster() -> str:
    # An id that begins with "-" would be taken for an option.
    return "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]


class Topics:
    """What a test does to topics; whoever inherits it has `bootstrap_servers`."""

    bootstrap_servers: str

    def admin(self) -> Any:
        """A kafka-python admin client of the plaintext listener; close it."""
        from kafka import KafkaAdminClient

        return KafkaAdminClient(bootstrap_servers=self.bootstrap_servers)

    def create_topic(self, name: str, partitions: int = 1, *, placed: Mapping[int, list[int]] | None = None,
                     **config: Any) -> str:
        """Make a topic; `config` are topic options with _ for . (`retention_ms=1000`). Returns the name.

        placed : the nodes of each partition, the preferred leader first, instead of one copy anywhere
        """
        from kafka.admin import NewTopic

        options = {key.replace("_", "."): str(value) for key, value in config.items()}
        admin = self.admin()
        new = (NewTopic(name, num_partitions=partitions, replication_factor=1, topic_configs=options) if placed is None
               else NewTopic(name, -1, -1, replica_assignments=placed, topic_configs=options))
        admin.create_topics([new])
        admin.close()
        return name

    def delete_topic(self, name: str) -> None:
        """Delete a topic."""
        admin = self.admin()
        admin.delete_topics([name])
        admin.close()

    def add_partitions(self, topic: str, total: int) -> None:
        """Give a topic more partitions."""
        admin = self.admin()
        admin.create_partitions({topic: total})
        admin.close()

    def set_password(self, user: str, mechanism: str, word: str) -> None:
        """Make a SCRAM user, or give it another password."""
        from kafka.admin import ScramMechanism, UserScramCredentialUpsertion

        kind = {"SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256, "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512}[mechanism]
        admin = self.admin()
        admin.alter_user_scram_credentials([UserScramCredentialUpsertion(user, kind, word)])
        admin.close()

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


class KafkaBroker(Topics, Node):
    """A Kafka broker of its own with every way in, see above; `ca` is the authority of all its certificates."""

    users: Mapping[str, tuple[str, str]] = {
        "PLAIN": ("alice", "alice-secret"), "SCRAM-SHA-256": ("carol", "carol-secret"), "SCRAM-SHA-512": ("bob", "bob-secret")}

    def __init__(self, folder: Path, more: str = "") -> None:
        """Lay a broker out; `more` are lines that its properties have besides."""
        ports = {name: free_port() for name in WAYS}
        # A client goes where the broker says that it is: at the proxy's port, which is another one than the listener's.
        told = ports | {name: free_port() for name in ("proxied", "secure_proxied")}
        self.behind, self.told = ports, told
        self.ca, self.other_ca = folder / "ca.pem", folder / "other-ca.pem"
        self.servers = {name: f"127.0.0.1:{port}" for name, port in told.items()}
        self.bootstrap_servers, self.secure_bootstrap = self.servers["plain"], self.servers["secure"]
        make_certificates(folder)
        controller = free_port()
        properties = COMMON + SECURITY + SASL.format(name="secure") + SASL.format(name="secure_proxied") + "\n".join((
            "listeners=" + ",".join(f"{name.upper()}://127.0.0.1:{port}" for name, port in ports.items())
            + f",CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners=" + ",".join(f"{name.upper()}://127.0.0.1:{port}" for name, port in told.items()),
            "listener.security.protocol.map=" + ",".join(f"{name.upper()}:{kind}" for name, kind in WAYS.items())
            + ",CONTROLLER:PLAINTEXT", more))
        scram = [option for mechanism, (user, word) in self.users.items() if mechanism.startswith("SCRAM")
                 for option in ("--add-scram", f"{mechanism}=[name={user},password={word}]")]
        super().__init__(folder, _new_cluster(), properties.format(
            folder=folder, node=1, roles="broker,controller", controller=controller, copies=1), ports["plain"], *scram)


class KafkaPair(Topics):
    """Two nodes: `steady` is controller and broker, `mortal` only a broker; every internal topic is on both."""

    def __init__(self, folder: Path) -> None:
        cluster, controller = _new_cluster(), free_port()
        nodes = []
        for number, roles in ((1, "broker,controller"), (2, "broker")):
            port = free_port()
            listeners = f"PLAIN://127.0.0.1:{port}" + (f",CONTROLLER://127.0.0.1:{controller}" if number == 1 else "")
            properties = COMMON + (
                f"listeners={listeners}\nadvertised.listeners=PLAIN://127.0.0.1:{port}\ninter.broker.listener.name=PLAIN\n"
                "listener.security.protocol.map=PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT\n"
                "auto.leader.rebalance.enable=false\nreplica.lag.time.max.ms=3000\n")
            nodes.append(Node(folder / f"node-{number}", cluster, properties.format(
                folder=folder / f"node-{number}", node=number, roles=roles, controller=controller, copies=2), port))
        self.steady, self.mortal = nodes
        self.bootstrap_servers = f"127.0.0.1:{self.steady.port}"

    def start(self) -> None:
        """Start both; returns when both answer."""
        self.steady.start()
        self.mortal.start()

    def stop(self) -> None:
        """End both."""
        self.mortal.stop()
        self.steady.stop()

    def leader(self, topic: str, partition: int = 0) -> tuple[int, set[int]]:
        """The node that leads a partition, and those that have all of it; (-1, nobody) while that cannot be asked."""
        from kafka.errors import KafkaError

        admin = self.admin()
        try:
            (found,) = admin.describe_topics([topic])
        except KafkaError:                          # it asked the node that has just died
            return -1, set()
        finally:
            admin.close()
        (one,) = (one for one in found["partitions"] if one["partition_index"] == partition)
        return one["leader_id"], set(one["isr_nodes"])

    def elect_preferred(self, topic: str, partition: int = 0) -> bool:
        """Give a partition back to its preferred leader; whether the request was taken, which needs that node in sync."""
        from kafka.errors import KafkaError
        from kafka.protocol.admin import ElectionType

        admin = self.admin()
        try:
            admin.elect_leaders(ElectionType.PREFERRED, {topic: [partition]})
        except KafkaError as error:
            return "NotNeeded" in type(error).__name__
        finally:
            admin.close()
        return True
