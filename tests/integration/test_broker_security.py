"""Ways into a secured broker, for real, and one clear line for each way that is closed."""

import logging
import threading
import time

import pytest

from monitor.config import Kafka, Security
from monitor.errors import ConfigError, SourceFailed, TidemarkError
from tests.chaos_proxy import ChaosProxy
from tests.integration.reading import Reading, has, numbers

#: A refusal is found in the first slice of the wait (2 s) and by asking; nothing of it may take the whole wait of 30 s.
SOON_SECONDS = 15


def settings(broker, way, **security):
    """A configuration for one of the broker's listeners; certificates by name, a password as it stands."""
    given = {"ca_file": str(broker.ca)} if "SSL" in security["protocol"] else {}
    if name := security.pop("certificate", None):
        given |= {"certificate_file": str(broker.folder / f"{name}.crt"), "key_file": str(broker.folder / f"{name}.key")}
    if word := security.pop("word", None):
        (broker.folder / "password").write_text(word + "\n")
        given["password_file"] = str(broker.folder / "password")
    return Kafka(bootstrap_servers=[broker.servers[way]], session_timeout_seconds=6, security=Security(**given | security))


@pytest.mark.parametrize(("way", "security"), [
    ("secure", {"protocol": "SASL_SSL", "mechanism": "SCRAM-SHA-256", "username": "carol", "word": "carol-secret"}),
    ("mutual", {"protocol": "SSL", "certificate": "client"}),
    ("elsewhere", {"protocol": "SSL", "check_hostname": False}),
], ids=["SCRAM-SHA-256", "mutual TLS", "another host's name, where it is not checked"])
def test_the_right_key_opens(kafka_broker, unique_name, opened, way, security):
    topic = kafka_broker.create_topic(unique_name("topic"))
    kafka_broker.produce(topic, numbers(0, 5))
    reading = Reading(opened(settings(kafka_broker, way, **security), [topic])).until(has(5))
    assert reading.offsets == {(topic, 0): [0, 1, 2, 3, 4]}


CLOSED = {
    "wrong PLAIN password": ("secure", {"protocol": "SASL_SSL", "mechanism": "PLAIN", "username": "alice", "word": "wrong-word"},
                             r"kafka.security: expected to be let in as 'alice' with PLAIN, got .*; check mechanism, user"),
    "unknown PLAIN user": ("secure", {"protocol": "SASL_SSL", "mechanism": "PLAIN", "username": "mallory", "word": "wrong-word"},
                           r"kafka.security: expected to be let in as 'mallory' with PLAIN, got "),
    "wrong SCRAM-SHA-256 password": (
        "secure", {"protocol": "SASL_SSL", "mechanism": "SCRAM-SHA-256", "username": "carol", "word": "wrong-word"},
        r"kafka.security: expected to be let in as 'carol' with SCRAM-SHA-256, got "),
    "unknown SCRAM-SHA-512 user": (
        "secure", {"protocol": "SASL_SSL", "mechanism": "SCRAM-SHA-512", "username": "mallory", "word": "wrong-word"},
        r"kafka.security: expected to be let in as 'mallory' with SCRAM-SHA-512, got "),
    "expired certificate of the broker": ("expired", {"protocol": "SSL"}, r"kafka.security: expected a certificate of "
                                          r"127.0.0.1:\d+ that we can trust, got one with 'certificate has expired'; have it"),
    "certificate of another host": ("elsewhere", {"protocol": "SSL"}, r"kafka.security: expected a certificate .* got one with "
                                    r"'IP address mismatch.*; name the broker as its certificate does"),
    "no certificate where one is asked for": ("mutual", {"protocol": "SSL"}, r"kafka.security.certificate_file: expected a "
                                              r"certificate that .* accepts, got .* for none; the broker asks for one"),
    "certificate that the broker does not trust": (
        "mutual", {"protocol": "SSL", "certificate": "foreign-client"},
        r"kafka.security.certificate_file: expected a certificate that .* accepts, got .*foreign-client.*; ask for one that the"),
    "TLS to a plaintext port": ("plain", {"protocol": "SSL"}, r"kafka.security.protocol: expected TLS at .*, got a broker that "
                                "speaks without it; use the port of a TLS listener"),
    "plaintext to a TLS port": ("mutual", {"protocol": "PLAINTEXT"}, r"kafka.security.protocol: expected a broker without TLS at "
                                r".*, got one with it; use SSL or SASL_SSL"),
    "no SASL to a SASL port": ("secure", {"protocol": "SSL"}, r"kafka.security.protocol: expected a broker that lets in with SSL "
                               r"at .*, got one that asks for SASL \(.*PLAIN.*\); use SASL_SSL"),
    "SASL to a port without": (
        "elsewhere", {"protocol": "SASL_SSL", "mechanism": "PLAIN", "username": "alice", "word": "wrong-word",
                      "check_hostname": False},
        r"kafka.security.protocol: expected a broker that asks for SASL at .*, got one without it; use SSL"),
}


#: What `diagnosis` finds, it finds for every transport; with the other one, the ways by which a client fails at all.
WAYS_TO_FAIL = ("wrong SCRAM-SHA-256 password", "certificate of another host", "no certificate where one is asked for")


@pytest.mark.parametrize(("opened", "name"), [*(("kafka-python", name) for name in CLOSED),
                                              *(("librdkafka", name) for name in WAYS_TO_FAIL)], indirect=["opened"])
def test_a_closed_way_is_one_line_soon_and_tells_no_secret(kafka_broker, opened, caplog, capfd, name):
    way, security, expected = CLOSED[name]
    caplog.set_level(logging.DEBUG)
    begun, threads = time.monotonic(), threading.active_count()
    with pytest.raises(SourceFailed, match="^" + expected) as error:
        opened(settings(kafka_broker, way, **security), ["t"])
    assert time.monotonic() - begun < SOON_SECONDS
    assert "\n" not in str(error.value)
    output = capfd.readouterr()
    assert "wrong-word" not in str(error.value) + caplog.text + output.out + output.err
    assert output.err == ""
    assert threading.active_count() <= threads


def test_our_own_expired_certificate_is_said_before_anything_is_asked(kafka_broker, opened):
    with pytest.raises(ConfigError, match=r"^kafka.security.certificate_file: expected a certificate that is valid now, "
                                          r"got .* with 'certificate has expired'; have it renewed"):
        opened(settings(kafka_broker, "mutual", protocol="SSL", certificate="expired-client"), ["t"])


def test_an_authority_of_others_is_one_line(kafka_broker, opened):
    kafka = settings(kafka_broker, "mutual", protocol="SSL", ca_file=str(kafka_broker.other_ca))
    with pytest.raises(SourceFailed, match=r"^kafka.security: expected a certificate of .* we can trust, got .*; check ca_file"):
        opened(kafka, ["t"])


def test_a_broker_that_names_an_address_that_cannot_be_reached_is_one_line(kafka_broker, unique_name, opened):
    topic = kafka_broker.create_topic(unique_name("topic"))
    server = f"127.0.0.1:{kafka_broker.behind['proxied']}"              # its cluster is at the proxy's port: nobody there
    with pytest.raises(TidemarkError, match=r"advertised.listeners"):
        opened(Kafka(bootstrap_servers=[server]), [topic], wait_seconds=5)


def test_a_password_that_is_changed_while_running_heals_when_its_file_is(
        kafka_broker, unique_name, opened, tmp_path, caplog, hasty):
    caplog.set_level(logging.INFO, "tidemark")
    topic, user, word = kafka_broker.create_topic(unique_name("topic")), unique_name("user"), tmp_path / "password"
    kafka_broker.set_password(user, "SCRAM-SHA-512", "word-of-before")
    word.write_text("word-of-before")
    kafka_broker.produce(topic, numbers(0, 10))
    kafka = Kafka(bootstrap_servers=[kafka_broker.servers["secure_proxied"]], group=unique_name("group"),
                  session_timeout_seconds=2, security=Security(
                      protocol="SASL_SSL", mechanism="SCRAM-SHA-512", username=user, password_file=str(word),
                      ca_file=str(kafka_broker.ca)))
    with ChaosProxy(kafka_broker.told["secure_proxied"], kafka_broker.behind["secure_proxied"]) as proxy:
        source = opened(kafka, [topic])
        reading = Reading(source).until(has(10))
        kafka_broker.set_password(user, "SCRAM-SHA-512", "word-of-today")
        kafka_broker.produce(topic, numbers(10, 20))
        proxy.cut()
        refused = f"kafka.security: expected to be let in as {user!r}, got "
        reading.until(lambda r: r.away.startswith(refused))             # the first word may be that the connection is lost
        before, turns = proxy.accepted, iter(range(100))
        reading.until(lambda _: next(turns) >= 12)                      # six seconds of refusals
        assert proxy.accepted - before < 40
        word.write_text("word-of-today")
        reading.until(has(20)).until(lambda r: not r.away)
        source.close()
    assert reading.offsets == {(topic, 0): list(range(20))}
    told = [record for record in caplog.records if record.getMessage().startswith("Kafka")]
    assert [record.getMessage() for record in (told[0], told[-1])] == ["Kafka does not answer; trying again.",
                                                                     "Kafka answers again."]
    assert {record.getMessage() for record in told[1:-1]} <= {"Kafka still does not answer."}
    assert len(told) <= 4
    assert any(record.error.startswith(refused) for record in told[:-1])
    assert "word-of" not in caplog.text
