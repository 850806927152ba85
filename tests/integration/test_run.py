"""`tidemark run` as a real process on a real broker: probes, scrapes, signals, and what is said when something is wrong."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml

from detectors.reference import Reference
from monitor.cli import main
from tests.catalogue import differences, series_of
from tests.conftest import Process, free_port, wait_until
from tests.contract_server import Answer, ContractServer
from tests.crash import world

_OPEN = build_opener(ProxyHandler({})).open


def fetch(port, path):
    """(status, body); None while nobody listens."""
    try:
        with _OPEN(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return None


class Service:
    """A folder with a configuration, and the process that runs on it."""

    def __init__(self, folder, broker, topic):
        self.folder, self.port = folder, free_port()
        self.path = world.configuration(folder, broker, topic, promote=False)
        self.change(lambda tree: tree["service"].update(listen=f"127.0.0.1:{self.port}"))
        self.process = None

    def change(self, edit):
        tree = yaml.safe_load(self.path.read_text())
        edit(tree)
        self.path.write_text(yaml.safe_dump(tree))

    def start(self, *flags):
        self.process = Process([*world.command(self.path), *flags], self.folder / "log.txt")
        return self

    def signal(self, number):
        self.process.popen.send_signal(number)

    def end(self):
        """SIGTERM; the exit code. How long it may take is for tests/crash/test_signals to say."""
        self.signal(signal.SIGTERM)
        return self.process.popen.wait(60)

    def log(self):
        return (self.folder / "log.txt").read_text()

    def offset(self):
        found = world.state(self.folder)
        return sum(position[1] for position in found["positions"]) if found else 0

    def said(self, text):
        wait_until(lambda: text in self.log(), what=f"the log saying {text!r}")

    def get(self, path):
        return fetch(self.port, path)

    def is_ready(self):
        assert self.process.popen.poll() is None, self.log()
        answer = self.get("/-/ready")
        return answer is not None and answer[0] == 200

    def read_up_to(self, total):
        wait_until(lambda: self.is_ready() and self.offset() >= total, 120, "everything being read")


@pytest.fixture
def make(tmp_path, kafka_broker, unique_name):
    """A function that makes a service on a topic of its own; all end with the test."""
    services = []

    def made(name="service", broker=None, topic=None, messages=True):
        if topic is None:
            topic = kafka_broker.create_topic(unique_name("topic"), world.PARTITIONS)
            if messages:
                produce(kafka_broker, topic)
        services.append(Service(tmp_path / name, broker or kafka_broker.bootstrap_servers, topic))
        services[-1].topic = topic
        return services[-1]

    yield made
    for service in services:
        if service.process is not None:
            service.process.stop()


def produce(broker, topic):
    for partition, values in world.messages().items():
        broker.produce(topic, values, partition=partition)


TOTAL = sum(len(values) for values in world.messages().values())


def command(*arguments):
    ended = subprocess.run([sys.executable, "-m", "monitor.cli", *map(str, arguments)], capture_output=True, text=True,
                           timeout=90)
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stdout, ended.stderr


def test_ready_is_503_until_the_first_checkpoint_and_200_after_it(make):
    hole = socket.create_server(("127.0.0.1", 0))           # a broker that accepts and never answers
    service = make(broker=f"127.0.0.1:{hole.getsockname()[1]}", messages=False)
    service.start()
    assert wait_until(lambda: service.get("/-/ready"), what="an answer")[0] == 503
    assert service.get("/-/healthy")[0] == 200
    assert service.end() == 0
    assert "Ended before the start was done." in service.log()
    hole.close()
    service = make("other", messages=False).start()
    wait_until(service.is_ready, 60, "being ready")


def test_metrics_and_api_agree_with_the_state(make):
    service = make().start()
    service.read_up_to(TOTAL)
    (counters,) = world.state(service.folder)["counters"]
    series = wait_until(lambda: agreeing(service, counters), 60, "the scrape showing the last checkpoint")
    assert value(series, "tidemark_events_total", outcome="counted") == TOTAL - world.PANES
    assert value(series, "tidemark_events_total", outcome="refused", reason="type") == world.PANES
    [monitor] = json.loads(service.get("/api/v1/monitors")[1])["monitors"]
    assert monitor["model"] == "m"
    alarms = json.loads(service.get("/api/v1/alarms")[1])["alarms"]
    assert [alarm["state"] for alarm in reversed(alarms)] == [alarm["state"] for alarm in world.state(service.folder)["alarms"]]


def test_a_scrape_of_the_whole_service_equals_the_catalogue_both_ways(make):
    service = make().start()
    service.read_up_to(TOTAL)
    wait_until(lambda: differences(service.get("/metrics")[1]) == [], what="every family that a running service always has")


def agreeing(service, counters):
    series = series_of(service.get("/metrics")[1])
    return series if value(series, "tidemark_events_total", outcome="counted") == counters["outcomes"]["counted"] else None


def value(series, name, **labels):
    wanted = set(labels.items())
    return sum(found for (of, having), found in series.items() if of == name and wanted <= having)


def test_sigterm_ends_with_0_and_everything_committed(make):
    service = make().start("--log-json")
    wait_until(lambda: service.is_ready() and service.offset() > 0, 60, "the first events")
    assert service.end() == 0
    last = json.loads(service.log().splitlines()[-1])
    assert (last["text"], sum(last["offsets"].values())) == ("Ended.", service.offset())
    service.start()
    service.read_up_to(TOTAL)
    (counters,) = world.state(service.folder)["counters"]
    assert counters["outcomes"] == {"counted": TOTAL - world.PANES, "refused:type": world.PANES}


def test_the_running_service_sends_its_alerts_itself_and_its_couriers_end_with_it(make, tmp_path):
    (tmp_path / "token").write_text("the-token")
    service = make()
    with ContractServer(lambda asked: Answer()) as alertmanager:
        service.change(lambda tree: tree.update(alertmanager={
            "urls": [alertmanager.url], "token_file": str(tmp_path / "token"), "resend_seconds": 1}))
        service.start()
        wait_until(lambda: any(alert["labels"]["alertname"] == "TidemarkDrift" for asked in alertmanager.asked
                               for alert in asked.document), 60, "the alert")
        assert {asked.headers["authorization"] for asked in alertmanager.asked} == {"Bearer the-token"}
        taken = f'tidemark_alert_posts_total{{alertmanager="{alertmanager.url}",outcome="taken"}} '
        wait_until(lambda: taken in service.get("/metrics")[1], what="the count of posts")
        assert service.end() == 0
    assert "the-token" not in service.log()
    assert "Traceback" not in service.log()


def test_sighup_takes_over_a_new_configuration_and_loses_no_count(make, kafka_broker):
    service = make().start()
    service.read_up_to(TOTAL)
    service.change(lambda tree: tree["monitors"][0].update(alarm={"ignore_below": 0.25}))
    service.signal(signal.SIGHUP)
    wait_until(lambda: service.log().count("Watching.") == 2, what="the new configuration")
    produce(kafka_broker, service.topic)
    service.read_up_to(2 * TOTAL)
    (counters,) = world.state(service.folder)["counters"]
    assert counters["outcomes"] == {"counted": 2 * (TOTAL - world.PANES), "refused:type": 2 * world.PANES}
    assert service.end() == 0


@pytest.mark.parametrize(("edit", "why"), [
    (lambda tree: tree["monitors"][0].update(panne=1), "monitors[0].panne: expected a known key"),
    (lambda tree: tree["monitors"][0].update(reference="none.json"), "monitors[0].reference: expected a file"),
    (lambda tree: tree["monitors"][0].update(pane={"seconds": 5}), "expected panes of 1 s"),
    (lambda tree: tree["monitors"][0].update(topic="no-such-topic"), "no-such-topic")])
def test_sighup_keeps_the_old_configuration_when_the_new_one_is_broken(make, kafka_broker, edit, why):
    service = make().start()
    service.read_up_to(TOTAL)
    service.change(edit)
    service.signal(signal.SIGHUP)
    service.said("Configuration not taken over.")
    assert why in next(line for line in service.log().splitlines() if "not taken over" in line)
    produce(kafka_broker, service.topic)
    service.read_up_to(2 * TOTAL)
    assert service.end() == 0


def test_a_port_in_use_is_one_line(make):
    service = make(messages=False)
    with socket.create_server(("127.0.0.1", service.port)):
        code, _, err = command("run", "-c", service.path)
        assert (code, err.count("\n")) == (2, 1)
        assert f"service.listen: expected a free address, got '127.0.0.1:{service.port}' (Address already in use); stop" in err
        code, out, _ = command("doctor", "-c", service.path)
        assert code == 1
        assert "FAIL listen: service.listen: expected a free address" in out


def test_a_broker_that_is_not_there_is_one_line_and_exit_code_1(make):
    service = make(broker=f"127.0.0.1:{free_port()}", topic="t")
    code, _, err = command("run", "-c", service.path)
    assert code == 1
    assert err.splitlines()[-1].startswith("tidemark run: kafka.bootstrap_servers: expected a Kafka broker, got 127.0.0.1:")
    assert len(err.splitlines()) == 2                       # and the line that says where it listened
    assert service.get("/-/ready") is None


def test_doctor_says_what_is_well_and_what_is_not(make):
    service = make()
    code, out, err = command("doctor", "-c", service.path)
    assert (code, err) == (0, "")
    assert all(line.startswith("ok   ") for line in out.splitlines())
    assert f"kafka topic {service.topic}: {world.PARTITIONS} partitions, {TOTAL} records kept" in out
    service.change(lambda tree: tree["monitors"][0].update(topic="no-such-topic"))
    service.change(lambda tree: tree["monitors"][0]["retrain"]["launcher"].update(command=["no-such-program"]))
    code, out, _ = command("doctor", "-c", service.path)
    assert code == 1
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("FAIL")] == [
        "FAIL launcher of m", "FAIL kafka topic no-such-topic"]
    assert {check["ok"] for check in json.loads(command("doctor", "-c", service.path, "--json")[1])} == {True, False}


def test_log_lines_are_one_line_each_and_hold_no_password(make, kafka_broker, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("wrong-secret-word\n")
    service = make(broker=kafka_broker.secure_bootstrap)
    secured = {"protocol": "SASL_SSL", "mechanism": "PLAIN", "username": "alice", "password_file": str(secret),
               "ca_file": str(kafka_broker.ca)}
    service.change(lambda tree: tree["kafka"].update(security=secured))
    code, _, err = command("run", "-c", service.path)
    assert code == 1
    assert "expected to be let in as 'alice' with PLAIN" in err.splitlines()[-1]
    assert "wrong-secret-word" not in err + command("doctor", "-c", service.path)[1]
    secret.write_text("alice-secret\n")
    service.change(lambda tree: tree["service"].update(log_level="DEBUG"))
    service.start("--log-json")
    service.read_up_to(TOTAL)
    assert service.end() == 0
    assert all(json.loads(line)["level"] for line in service.log().splitlines())
    assert "alice-secret" not in service.log()


def test_a_real_prometheus_finds_the_events_of_the_running_service(make, prometheus_binary, tmp_path):
    service, port = make().start(), free_port()
    service.read_up_to(TOTAL)
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        f"scrape_configs: [{{job_name: tidemark, static_configs: [{{targets: ['127.0.0.1:{service.port}']}}]}}]\n")
    prometheus = Process([prometheus_binary, f"--config.file={tmp_path / 'prometheus.yml'}",
                          f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={tmp_path / 'data'}",
                          "--log.level=warn"], tmp_path / "prometheus.log")
    try:
        prometheus.wait_port(port)

        def counted():
            answer = fetch(port, "/api/v1/query?" + urlencode({"query": 'tidemark_events_total{outcome="counted"}'}))
            result = json.loads(answer[1])["data"]["result"] if answer and answer[0] == 200 else []
            return [float(one["value"][1]) for one in result] == [TOTAL - world.PANES]

        wait_until(counted, 60, "Prometheus having scraped every event")
    finally:
        prometheus.stop()


def test_a_reference_is_fitted_from_the_newest_events_of_a_topic_and_its_entry_is_accepted(
        kafka_broker, unique_name, tmp_path, capsys):
    topic = kafka_broker.create_topic(unique_name("topic"), 2)
    for partition in range(2):
        kafka_broker.produce(topic, [json.dumps({
            "ts": world.START_MS + n, "features": {"age": n % 60, "sex": "fm"[n % 2]}, "y": str(n % 3)}).encode()
            for n in range(partition, 3000, 2)], partition=partition)
    servers = ["--bootstrap-servers", kafka_broker.bootstrap_servers]
    assert main(["fit", "--topic", topic, *servers, "--events", "2000", "-o", str(tmp_path / "reference.json"), "--model", "m",
                 "--timestamp", "ts", "--prediction", "y"]) == 0
    entry = yaml.safe_load(capsys.readouterr().out)
    reference = Reference.load(tmp_path / "reference.json")
    assert (reference.events, entry["monitors"][0]["topic"]) == (2000, topic)
    config = tmp_path / "tidemark.yaml"
    config.write_text(yaml.safe_dump(entry | {"kafka": {"bootstrap_servers": [kafka_broker.bootstrap_servers]}}))
    assert main(["check-config", "-c", str(config)]) == 0
    assert main(["fit", "--topic", topic + "x", *servers, "-o", str(tmp_path / "r"), "--model", "m"]) == 1
    assert f"'{topic}x'" in capsys.readouterr().err.replace('"', "'")
