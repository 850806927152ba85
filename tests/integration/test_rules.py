"""From a drifting stream to a message: the service, Prometheus with the rendered rules, Alertmanager with the shipped routes."""

from __future__ import annotations

import json
import queue
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import numpy as np
import pytest
import yaml

from dashboards.rules import Settings
from dashboards.rules_files import text
from detectors.reference import Column, Reference
from monitor.config import parse
from monitor.expose.api import Server, application
from monitor.expose.exporter import Exporter
from monitor.flow import Batch
from monitor.ingest.source import MemorySource, records
from monitor.service import build
from tests.conftest import Process, free_port, missing, wait_until

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COLUMNS = (Column("income", "numeric", "input"), Column("age", "numeric", "input"), Column("grade", "category", "prediction"))
TOPIC, PER_PANE = "loans.inference", 200
_OPEN = build_opener(ProxyHandler({})).open


class Feed(MemorySource):
    """A source that a test feeds while the service reads it; an empty batch five times a second, as a quiet broker gives."""

    def __init__(self) -> None:
        super().__init__([])
        self.fed: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self.rng, self.pane, self.offset = np.random.default_rng(5), 0, 0
        self.start_ms = int(time.time()) * 1000 - 3_600_000

    def __iter__(self):
        while True:
            try:
                batch = self.fed.get(timeout=0.2)
            except queue.Empty:
                batch = Batch(assigned=frozenset({(TOPIC, 0)}))
            if batch is None:
                return
            yield batch

    def panes(self, count: int, shift: float) -> None:
        """Feed so many panes of events; income is so many standard deviations higher."""
        events, times = [], []
        for pane in range(self.pane, self.pane + count):
            for place, row in enumerate(rows(self.rng, PER_PANE, shift)):
                times.append(self.start_ms + pane * 1000 + place)
                events.append(json.dumps(row).encode())
        self.pane += count
        self.fed.put(Batch(parts=(records(TOPIC, 0, events, first_offset=self.offset, times=times),),
                           assigned=frozenset({(TOPIC, 0)})))
        self.offset += len(events)


def rows(rng, count, shift):
    income, age = rng.normal(shift, 1, count), rng.normal(0, 1, count)
    grade = rng.choice(["a", "b"], count)
    return [{"income": float(i), "age": float(a), "grade": str(g)} for i, a, g in zip(income, age, grade, strict=True)]


@pytest.fixture
def service(tmp_path):
    """A running service, its address and what it reads."""
    made = rows(np.random.default_rng(1), 5_000, 0.0)
    columns = {column.name: [row[column.name] for row in made] for column in COLUMNS}
    Reference.fit(columns, COLUMNS, model="loans", version="7").save(tmp_path / "reference.json")
    config = parse(yaml.safe_dump({
        "service": {"dead_letters": "none", "checkpoint_seconds": 0.1}, "files": {"paths": ["unread"]},
        "monitors": [{"model": "loans", "topic": TOPIC, "reference": str(tmp_path / "reference.json"),
                      "pane": {"seconds": 1, "lateness_seconds": 0},
                      "quality": {"silent_panes": None, "volume_factor": None}}]}))
    exporter, feed = Exporter(10_000), Feed()
    server = Server(application(exporter), "127.0.0.1", 0)
    server.start()

    def run():
        stages = build(config, source=feed, exporter=exporter, state=":memory:")
        stages.run()
        stages.close()

    thread = threading.Thread(target=run, name="tidemark")
    thread.start()
    yield server, feed, config
    feed.fed.put(None)
    thread.join()
    server.stop()


class Receiver:
    """Notes every message that Alertmanager posts: when, to which receiver, with which token, its alerts."""

    def __init__(self) -> None:
        self.messages: list[tuple[float, str, str | None, dict]] = []
        noted = self.messages

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                noted.append((time.monotonic(), self.path.strip("/"), self.headers["Authorization"], body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args):
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def alerts(self, receiver, name, status):
        """(when, token, alert) of the messages of one alert to one receiver."""
        return [(at, token, alert) for at, path, token, body in list(self.messages) if path == receiver
                for alert in body["alerts"] if (alert["labels"]["alertname"], alert["status"]) == (name, status)]


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def alertmanager(receiver, tmp_path):
    """A real Alertmanager with the shipped routes and inhibitions; its receivers post to the test. Its port."""
    binary = shutil.which("prometheus-alertmanager") or missing(
        "alertmanager", "no `prometheus-alertmanager` on PATH; run tests/setup_components.sh")
    shipped = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text())
    (tmp_path / "token").write_text("the-token")
    shipped |= {"global": {}, "templates": [str(DEPLOY / "alertmanager" / "templates" / "*.tmpl")]}
    for route in (shipped["route"]["routes"][0], *shipped["route"]["routes"][0]["routes"]):
        route |= {"group_wait": "0s", "group_interval": "1s"}
    for one in shipped["receivers"]:
        token = one["name"] == "tidemark-trigger"
        http = {"authorization": {"type": "Bearer", "credentials_file": str(tmp_path / "token")}} if token else {}
        url = f"http://127.0.0.1:{receiver.port}/{one['name']}"
        shipped["receivers"][shipped["receivers"].index(one)] = {
            "name": one["name"], "webhook_configs": [{"url": url, "send_resolved": not token, "http_config": http}]}
    (tmp_path / "alertmanager.yml").write_text(yaml.safe_dump(shipped))
    port = free_port()
    process = Process([binary, f"--config.file={tmp_path / 'alertmanager.yml'}", f"--web.listen-address=127.0.0.1:{port}",
                       "--cluster.listen-address=", f"--storage.path={tmp_path / 'alertmanager'}", "--log.level=warn"],
                      tmp_path / "alertmanager.log")
    process.wait_port(port)
    yield port
    process.stop()


@pytest.fixture
def prometheus(prometheus_binary, service, alertmanager, tmp_path):
    """A real Prometheus with the shipped scrape configuration at one second, and the rules of the configuration. Its address."""
    server, _, config = service
    shipped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    shipped["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"}
    shipped["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{alertmanager}"]}]
    shipped["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(shipped))
    (tmp_path / "rules.yaml").write_text(text(Settings.of(config, keep_firing="1s", retrain_label=True)))
    port = free_port()
    process = Process([
        prometheus_binary, f"--config.file={tmp_path / 'prometheus.yml'}", f"--web.listen-address=127.0.0.1:{port}",
        f"--storage.tsdb.path={tmp_path / 'prometheus'}", "--log.level=warn"], tmp_path / "prometheus.log")
    process.wait_port(port)
    yield f"http://127.0.0.1:{port}"
    process.stop()


def scrapes(address) -> list[float]:
    """Value of `tidemark_state{state="quiet"}` as Prometheus has it; empty before the first scrape."""
    try:
        with _OPEN(f'{address}/api/v1/query?query=tidemark_state%7Bstate=%22quiet%22%7D', timeout=10) as answer:
            return [float(series["value"][1]) for series in json.load(answer)["data"]["result"]]
    except URLError:
        return []


def test_a_drift_becomes_a_message_with_model_and_columns_within_ten_seconds_and_is_taken_back_when_it_is_over(
        service, prometheus, receiver):
    _, feed, _ = service
    feed.panes(40, 0.0)
    wait_until(lambda: scrapes(prometheus) == [1.0], what="Prometheus seeing a quiet model")
    assert receiver.messages == []

    begun = time.monotonic()
    feed.panes(10, 1.5)
    wait_until(lambda: receiver.alerts("tidemark-now", "TidemarkSevereDrift", "firing"), what="the message")
    at, _, alert = receiver.alerts("tidemark-now", "TidemarkSevereDrift", "firing")[0]
    assert at - begun < 10
    assert {"model": "loans", "version": "7", "segment": "all", "severity": "critical", "job": "tidemark"}.items() <= \
        alert["labels"].items()
    said = alert["annotations"]["description"]
    assert said.startswith("Model loans, version 7, segment all, surely moved further than `retrain.above` since ")
    assert " Most: income (input) by 1." in said
    assert "Retraining: nothing was launched." in said
    assert "`tidemark explain loans`" in said
    assert alert["annotations"]["report_url"] == "https://tidemark.example/reports/loans-7-drift-1"
    assert alert["annotations"]["dashboard_url"] == "https://grafana.example/d/tidemark-model?var-model=loans"

    wait_until(lambda: receiver.alerts("tidemark-trigger", "TidemarkSevereDrift", "firing"), what="the way back to tidemark")
    assert receiver.alerts("tidemark-trigger", "TidemarkSevereDrift", "firing")[0][1] == "Bearer the-token"

    feed.panes(200, 0.0)
    wait_until(lambda: receiver.alerts("tidemark-now", "TidemarkSevereDrift", "resolved"), what="the end of it")
    wait_until(lambda: scrapes(prometheus) == [1.0], what="a quiet model")
    assert receiver.alerts("tidemark-trigger", "TidemarkSevereDrift", "resolved") == []
    assert {path for _, path, _, _ in receiver.messages} <= {"tidemark-now", "tidemark-day", "tidemark-trigger"}


def test_a_service_that_went_away_is_told_of(service, prometheus, receiver):
    server, feed, _ = service
    feed.panes(3, 0.0)
    wait_until(lambda: scrapes(prometheus), what="a first scrape")
    server.stop()
    alerts = f"{prometheus}/api/v1/alerts"

    def pending():
        with _OPEN(alerts, timeout=10) as answer:
            return [alert["state"] for alert in json.load(answer)["data"]["alerts"]
                    if alert["labels"]["alertname"] == "TidemarkDown"]

    wait_until(pending, what="Prometheus missing the service")
    assert pending() == ["pending"]                 # it waits two minutes before it wakes somebody
    assert receiver.messages == []
