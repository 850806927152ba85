"""The way back: a real Alertmanager routes an alert to the service, which launches once, and not while it is held back."""

from __future__ import annotations

import json
import re
import threading
import time
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from monitor.config_alerts import Alertmanager
from monitor.expose.alert_desk import Desk
from monitor.expose.alert_facts import Links
from monitor.expose.alert_sender import AlertSender
from monitor.expose.api import Server, application
from monitor.expose.exporter import Exporter
from monitor.expose.inbox import Inbox
from monitor.service import build
from tests.conftest import wait_until
from tests.integration.alerting import Feed, shipped_alertmanager, watching

_OPEN = build_opener(ProxyHandler({})).open
TOKEN = "a-token-of-the-service"
#: It waits for more labelled events than ever come: the launch is decided, and nothing is started.
RETRAIN = {"launcher": {"type": "local", "command": ["true"]}, "collect_events": 1_000_000, "launch_on": "request"}


@pytest.fixture
def service(tmp_path):
    """A running service with a token, that retrains; its exporter and the port of its API."""
    config = watching(tmp_path, retrain=RETRAIN | {"capture_uri": str(tmp_path / "data")})
    exporter, inbox, feed = Exporter(10_000), Inbox(), Feed()
    server = Server(application(exporter, TOKEN, inbox=inbox), "127.0.0.1", 0)
    server.start()

    def run():
        stages = build(config, source=feed, exporter=exporter, inbox=inbox, state=":memory:")
        stages.run()
        stages.close()

    thread = threading.Thread(target=run, name="tidemark")
    thread.start()
    feed.panes(20, 0.0)
    wait_until(lambda: exporter.published.judged, what="a judged pane")
    yield exporter, server.port, feed, config
    feed.fed.put(None)
    thread.join()
    server.stop()


@pytest.fixture
def alertmanager(service, tmp_path):
    """An Alertmanager with the shipped routes, whose trigger is the service; its address."""
    trigger = f"http://127.0.0.1:{service[1]}/api/v1/alertmanager"
    process, port = shipped_alertmanager(tmp_path, {"tidemark-trigger": trigger}, TOKEN, repeat="1s")
    yield f"http://127.0.0.1:{port}"
    process.stop()


def post(address, path, body):
    """Its answer to a POST."""
    asked = Request(f"{address}/api/v2/{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    with _OPEN(asked, timeout=10) as answer:
        return json.loads(answer.read() or b"null")


def alert(name, minutes=10, **labels):
    """An alert that ends in so many minutes."""
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60 * minutes))
    return {"labels": {"alertname": name, "job": "tidemark", **labels}, "annotations": {"summary": "It moved."}, "endsAt": end}


def severe(model, minutes=10):
    return alert("TidemarkSevereDrift", minutes, model=model, severity="critical", tidemark_action="retrain")


def notified(address, more):
    """Wait until the trigger was notified so many times more: of the marker, or of the alert and the marker."""
    def total():
        with _OPEN(f"{address}/metrics", timeout=10) as answer:
            words = answer.read().decode()
        return float(re.search(r'^alertmanager_notifications_total\{integration="webhook"\} (\S+)', words, re.M)[1])

    begun = total()
    wait_until(lambda: total() >= begun + more, what="further notifications")


def test_an_alert_starts_one_launch_unless_it_is_silenced_or_inhibited_and_its_repetitions_start_none(service, alertmanager):
    exporter = service[0]
    marker = severe("not-watched")                  # not held back: its notifications tell that time has passed
    matchers = [{"name": "model", "value": "loans", "isRegex": False, "isEqual": True}]
    day = {"startsAt": "2020-01-01T00:00:00Z", "endsAt": "2099-01-01T00:00:00Z"}
    silence = post(alertmanager, "silences", {"matchers": matchers, "createdBy": "test", "comment": "", **day})["silenceID"]
    post(alertmanager, "alerts", [severe("loans"), marker])
    notified(alertmanager, 2)
    assert exporter.published.service.launches == ()

    post(alertmanager, "alerts", [alert("TidemarkDown", severity="critical")])           # inhibits all others of the job
    post(alertmanager, "alerts", [severe("not-watched") | {"labels": marker["labels"] | {"job": "other"}}])
    with _OPEN(Request(f"{alertmanager}/api/v2/silence/{silence}", method="DELETE"), timeout=10):
        pass
    notified(alertmanager, 2)
    assert exporter.published.service.launches == ()

    post(alertmanager, "alerts", [alert("TidemarkDown", -1, severity="critical") | {"startsAt": "2020-01-01T00:00:00Z"}])
    [launch] = wait_until(lambda: exporter.published.service.launches, what="the launch")
    assert (launch.model, launch.by, launch.why) == ("loans", "alertmanager", "TidemarkSevereDrift: It moved.")
    notified(alertmanager, 4)                        # repetitions of both
    post(alertmanager, "alerts", [severe("loans", -1) | {"startsAt": "2020-01-01T00:00:00Z"}])
    notified(alertmanager, 2)
    assert [one.id for one in exporter.published.service.launches] == [launch.id]


def test_the_services_own_alert_comes_back_as_the_one_launch_that_its_drift_does_not_start_by_itself(service, alertmanager):
    exporter, _, feed, _ = service
    sending = AlertSender(Alertmanager([alertmanager]), exporter, Desk({}, Links(), {"job": "tidemark"}, retrain_label=True))
    feed.panes(20, 0.0)
    feed.panes(10, 1.5)
    wait_until(lambda: any(key[5] == "severe" for key in exporter.published.service.open_alarms), what="severe drift")
    assert [answer.reason for answer in exporter.published.service.decided] == ["on_request"]
    assert exporter.published.service.launches == ()

    sending.start()
    [launch] = wait_until(lambda: exporter.published.service.launches, what="the launch")
    notified(alertmanager, 3)                       # repeated, and nothing more
    sending.stop()
    assert [one.id for one in exporter.published.service.launches] == [launch.id]
    assert (launch.model, launch.by, launch.episode, launch.why) == (
        "loans", "alertmanager", 1, "TidemarkSevereDrift: A model's data has moved so far that a retraining is worth it.")
    fingerprint, started = launch.key.split("@")
    assert re.fullmatch(r"[0-9a-f]{16}", fingerprint)
    assert started.startswith(time.strftime("%Y-", time.gmtime()))
