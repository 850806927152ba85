"""One truth: for the same snapshot, Prometheus' rules and the service itself give the same alerts, word for word."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml

from dashboards.rules import Settings
from dashboards.rules_files import text
from monitor import alert_words
from monitor.alert_limits import Limits
from monitor.decisions import Decision, PolicyStatus
from monitor.expose.alert_desk import Desk
from monitor.expose.alert_facts import Links
from monitor.expose.api import Server, application
from monitor.expose.exporter import Exporter
from monitor.expose.snapshot import OpenAlarm
from monitor.flow import Launch
from tests.conftest import Process, free_port, wait_until
from tests.integration.alerting import DEPLOY
from tests.unit.expose.shown import World, snapshot, status

_OPEN = build_opener(ProxyHandler({})).open
NOW = time.time()
HOUR = 3_600.0
#: Model -> (state of its stream, open alarms as (kind, cause, state), its launches as (state, age, more), more of its status).
MODELS = {
    "severe": ("drift", [("drift", "columns", "raised"), ("drift", "columns", "severe")], [("failed", 2 * HOUR, {})], {}),
    "joint": ("warning", [("drift", "columns", "raised")], [], {"launcher": "", "budget_remaining": None}),
    "broken": ("quiet", [("quality", "columns", "raised"), ("quality", "wrong_type", "raised"), ("quality", "volume", "raised")],
               [("running", 9 * HOUR, {})], {}),
    "small": ("reference_inadequate", [], [("proposed", 0.5 * HOUR, {})], {}),
    "thin": ("insufficient_data", [], [("refused", HOUR, {"champion": 0.913642, "challenger": 0.8})], {}),
    "spent": ("drift", [("drift", "columns", "raised"), ("drift", "columns", "severe")],
              [("promoted", 99 * HOUR, {"champion": 2.5, "challenger": 2.0}),
               ("refused", 48 * HOUR, {"champion": 2.25, "challenger": 3e-7})],
              {"policy": PolicyStatus(0, None, 1, None, (), {}), "budget_remaining": 0, "metric": "mean_absolute_error"}),
    "worse": ("quiet", [], [("refused", 3 * HOUR, {"champion": 1.5, "challenger": 1234567.0})],
              {"metric": "mean_absolute_error"}),
    "waiting": ("quiet", [], [("approved", 30 * HOUR, {"retry_at": NOW, "attempts": 3})], {}),
    "stopped": ("drift", [("drift", "columns", "raised")], [], {"policy": PolicyStatus(
        2, None, 3, Decision("stopped", "1", 1, 0.0, "no", "breaker"), (), {})}),
    "silent": ("drift", [("drift", "columns", "raised"), ("quality", "volume", "raised")], [("timed_out", HOUR / 2, {})], {}),
}


def shown(exporter: Exporter, refused: int) -> None:
    """Show everything of MODELS, with so many refused events."""
    statuses, opened, launches = [], {}, []
    for model, (_, alarms, launched, more) in MODELS.items():
        statuses.append(status(model, events={("counted", "none"): 900, ("refused", "json"): 1, ("refused", "type"): refused,
                                              ("refused", "tombstone"): 10 * refused}, **more))
        for place, (kind, cause, state) in enumerate(alarms):
            opened[model, "1", "all", kind, cause, state] = OpenAlarm(3 + place, NOW - 7_000.25 - place)
        launches += [Launch(f"{model}{place}", model, "1", place + 1, "local", state, "{}", (("proposed", NOW - age),), **{
            "champion": None, **values}) for place, (state, age, values) in enumerate(launched)]
    exporter.service(replace(snapshot(*statuses), open_alarms=opened, launches=tuple(launches), alarms=()))


@pytest.fixture
def exporter():
    """What a service would show of MODELS; the last of them was judged half an hour ago."""
    clock = [time.time()]
    made = Exporter(100_000, clock=lambda: clock[0])
    for number, (model, (state, _, _, _)) in enumerate(MODELS.items()):
        clock[0] = time.time() - (1_800 if model == "silent" else 0)
        world = World(12, model=model, seed=number)
        if model == "joint":                        # nothing moved by itself: only the dependence between columns
            world.show(made, state=state)
        else:
            for _ in range(2):
                world.show(made, shift=1.5, state=state)
    shown(made, 2)
    return made


@pytest.fixture
def prometheus(prometheus_binary, exporter, tmp_path):
    """A Prometheus that scrapes it and evaluates the rules without their waiting times; its address."""
    server = Server(application(exporter), "127.0.0.1", 0)
    server.start()
    shipped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    shipped["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"}
    shipped["alerting"] = {}
    shipped["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(shipped))
    rules = text(Settings(retrain_label=True, labels={"team": "ml"}))
    (tmp_path / "rules.yaml").write_text(re.sub(r"^ +(for|keep_firing_for): .*\n", "", rules, flags=re.M))
    port = free_port()
    process = Process([
        prometheus_binary, f"--config.file={tmp_path / 'prometheus.yml'}", f"--web.listen-address=127.0.0.1:{port}",
        f"--storage.tsdb.path={tmp_path / 'prometheus'}", "--log.level=warn"], tmp_path / "prometheus.log")
    process.wait_port(port)
    yield f"http://127.0.0.1:{port}"
    process.stop()
    server.stop()


def said(alerts):
    """Alerts by their labels, with their annotations; seconds, which pass between two looks, left out."""
    return {tuple(sorted(labels.items())): {name: re.sub(r"(\d+m) \d+s", r"\1", words) for name, words in annotations.items()}
            for labels, annotations in alerts}


def by_rules(address):
    """Alerts on models that fire by Prometheus' word."""
    try:
        with _OPEN(f"{address}/api/v1/alerts", timeout=10) as answer:
            alerts = json.load(answer)["data"]["alerts"]
    except OSError:                                 # it starts
        return {}
    names = {words.name for words in alert_words.ALL}
    return said((alert["labels"], alert["annotations"]) for alert in alerts if alert["labels"]["alertname"] in names)


def test_rules_and_service_give_the_same_alerts_with_the_same_labels_and_words(exporter, prometheus, monkeypatch):
    monkeypatch.setattr(alert_words, "seconds", lambda duration: 0)
    settings = Settings()
    desk = Desk({model: Limits(model) for model in MODELS},
                Links(settings.service_url, settings.grafana_url, settings.runbooks_url), {"job": "tidemark", "team": "ml"},
                retrain_label=True, started=time.time() - 5_000)
    desk.look(exporter.published, time.time())
    wait_until(lambda: len(by_rules(prometheus)) > 10, what="Prometheus' alerts")
    shown(exporter, 50)                             # refusals that both see begin

    def by_service():
        desk.look(exporter.published, time.time())
        return said((one.labels, one.annotations) for one in desk.told() if one.ends_at is None)

    def differences():
        mine, theirs = by_service(), by_rules(prometheus)
        return [(labels, mine.get(labels), theirs.get(labels)) for labels in sorted(mine.keys() | theirs.keys())
                if mine.get(labels) != theirs.get(labels)]

    wait_until(lambda: not differences() and any("Mostly: type" in words["description"] for words in by_service().values()),
               timeout=60, what=f"the same alerts ({differences()})")
    names = {dict(labels)["alertname"] for labels in by_service()}
    assert names == {words.name for words in alert_words.ALL}
