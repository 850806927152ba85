"""From a drifting stream to a message: the service, Prometheus with the rendered rules, Alertmanager with the shipped routes."""

from __future__ import annotations

import json
import threading
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml

from dashboards.rules import Settings
from dashboards.rules_files import text
from monitor.expose.api import Server, application
from monitor.expose.exporter import Exporter
from monitor.service import build
from tests.conftest import Process, Stopwatch, free_port, wait_until
from tests.integration.alerting import DEPLOY, Feed, Receiver, shipped_alertmanager, watching

_OPEN = build_opener(ProxyHandler({})).open


@pytest.fixture
def service(tmp_path):
    """A running service, its address and what it reads."""
    config = watching(tmp_path)
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


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def alertmanager(receiver, tmp_path):
    """A real Alertmanager with the shipped routes and inhibitions; its receivers post to the test. Its port."""
    process, port = shipped_alertmanager(tmp_path, receiver.routes(), "the-token")
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
    except OSError:                                 # it starts
        return []


def test_a_drift_becomes_a_message_with_model_and_columns_within_ten_seconds_and_is_taken_back_when_it_is_over(
        service, prometheus, receiver):
    _, feed, _ = service
    feed.panes(40, 0.0)
    wait_until(lambda: scrapes(prometheus) == [1.0], what="Prometheus seeing a quiet model")
    assert receiver.messages == []

    watch = Stopwatch()
    feed.panes(10, 1.5)
    wait_until(lambda: receiver.alerts("tidemark-now", "TidemarkSevereDrift", "firing"), what="the message")
    assert watch.seconds() < 10
    _, _, alert = receiver.alerts("tidemark-now", "TidemarkSevereDrift", "firing")[0]
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

    states = wait_until(pending, what="Prometheus missing the service")
    assert states == ["pending"]                    # it waits two minutes before it wakes somebody
    assert receiver.messages == []
