"""From a drifting stream to a message without Prometheus: the service sends its alerts to a real Alertmanager itself."""

from __future__ import annotations

import json
import logging
import subprocess
import threading
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml

from monitor.expose.alert_sender import sender
from monitor.expose.exporter import Exporter
from monitor.service import build
from tests.conftest import Stopwatch, free_port, wait_until
from tests.integration.alerting import Feed, Receiver, shipped_alertmanager, watching


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def alertmanager(receiver, tmp_path):
    """A function that starts a real Alertmanager with a name of its own and gives its process and port."""
    started = []

    def start(name, *flags, port=None):
        (tmp_path / name).mkdir(exist_ok=True)
        started.append(shipped_alertmanager(tmp_path / name, receiver.routes(), "the-token", *flags, port=port))
        return started[-1]

    yield start
    for process, _ in started:
        process.stop()


@pytest.fixture
def run(tmp_path):
    """A function that runs the service with these sections on a feed and gives its exporter; ended with the test."""
    running = []

    def start(feed, state=":memory:", **sections):
        config = watching(tmp_path, **sections)
        exporter = Exporter(10_000)
        alerts = sender(config, exporter)

        def loop():
            stages = build(config, source=feed, exporter=exporter, state=state)
            stages.run()
            stages.close()

        thread = threading.Thread(target=loop, name="tidemark")
        running.append((feed, thread, alerts))
        thread.start()
        if alerts is not None:
            alerts.start()
        return exporter, lambda: end(*running.pop())

    def end(feed, thread, alerts):
        if alerts is not None:
            alerts.stop()
        feed.fed.put(None)
        thread.join()

    yield start
    while running:
        end(*running.pop())


_OPEN = build_opener(ProxyHandler({})).open
#: `open-sesame`, hashed with bcrypt at its least cost.
HASH = "$2b$04$P2uApdP63uuZZ7WxO7qhr.0HYGjHOtNQOia.6r4hKdzh5KQ7sqgj6"


def told(port):
    """Names of the alerts that an Alertmanager holds as firing."""
    with _OPEN(f"http://127.0.0.1:{port}/api/v2/alerts?active=true", timeout=10) as answer:
        return sorted(alert["labels"]["alertname"] for alert in json.load(answer))


def lines(caplog, text):
    """Data of the log lines with this text."""
    return [record.error if hasattr(record, "error") else "" for record in caplog.records if record.getMessage() == text]


def section(*ports, **more):
    return {"urls": [f"http://127.0.0.1:{port}" for port in ports], "resend_seconds": 1, "grafana_url": "https://grafana.example",
            "service_url": "https://tidemark.example", "runbooks_url": "https://tidemark.example/docs/runbooks", **more}


def test_a_drift_becomes_a_message_without_prometheus_and_is_taken_back_when_it_is_over(run, receiver, alertmanager):
    _, port = alertmanager("one")
    feed = Feed()
    exporter, _ = run(feed, alertmanager=section(port, retrain_label=True))
    feed.panes(40, 0.0)
    wait_until(lambda: exporter.published.judged, what="a judged pane")
    assert receiver.messages == []

    watch = Stopwatch()
    feed.panes(10, 1.5)
    wait_until(lambda: receiver.alerts("tidemark-now", "TidemarkSevereDrift", "firing"), what="the message")
    assert watch.seconds() < 10
    _, _, alert = receiver.alerts("tidemark-now", "TidemarkSevereDrift", "firing")[0]
    assert alert["labels"] == {"alertname": "TidemarkSevereDrift", "severity": "critical", "model": "loans", "version": "7",
                               "segment": "all", "job": "tidemark", "tidemark_action": "retrain"}
    assert alert["annotations"]["description"].startswith(
        "Model loans, version 7, segment all, surely moved further than `retrain.above` since ")
    assert " Most: income (input) by 1." in alert["annotations"]["description"]
    assert alert["annotations"]["report_url"] == "https://tidemark.example/reports/loans-7-drift-1"
    wait_until(lambda: receiver.alerts("tidemark-trigger", "TidemarkSevereDrift", "firing"), what="the way back to tidemark")

    feed.panes(200, 0.0)
    wait_until(lambda: receiver.alerts("tidemark-now", "TidemarkSevereDrift", "resolved"), what="the end of it")


def test_every_alertmanager_hears_of_it_and_one_that_was_away_hears_of_it_when_it_is_back(run, alertmanager, caplog):
    caplog.set_level(logging.INFO)
    ports = [free_port(), free_port()]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    first, _ = alertmanager("one", port=ports[0])
    feed = Feed()
    exporter, _ = run(feed, alertmanager=section(*ports))
    wait_until(lambda: lines(caplog, "Alerts not taken."), what="a line on the one that is away")
    feed.panes(40, 0.0)
    feed.panes(10, 1.5)
    wait_until(lambda: told(ports[0]) == ["TidemarkDrift", "TidemarkSevereDrift"], what="the alerts in the first")

    alertmanager("two", port=ports[1])
    wait_until(lambda: told(ports[1]) == ["TidemarkDrift", "TidemarkSevereDrift"], what="the alerts in the second")
    first.kill()
    wait_until(lambda: any(line.startswith(f"{urls[0]}: ") and "Connection refused" in line
                           for line in lines(caplog, "Alerts not taken.")), what="a line on the first")
    alertmanager("one", port=ports[0])
    feed.panes(200, 0.0)
    wait_until(lambda: not exporter.published.service.open_alarms, what="the end of the alarm")
    wait_until(lambda: told(ports[0]) == told(ports[1]) == [], what="the end of it in both")
    # The one that was killed began anew without any alert, so what it holds does not say that it has been told again.
    wait_until(lambda: len(lines(caplog, "Alerts taken again.")) == 2, what="the line that the first takes alerts again")
    failed, words = lines(caplog, "Alerts not taken."), (
        "expected an Alertmanager there, got Connection refused; is it running, and is this its address?")
    assert failed[0] == f"{urls[1]}: {words}"
    assert f"{urls[0]}: {words}" in failed
    assert len(failed) <= 3                         # a post that was under way at the kill ends in words of its own
    posts = exporter.alert_posts()
    for url in urls:
        assert posts[url, "taken"] > 0
        assert posts[url, "failed"] > 0
        assert f'tidemark_alert_posts_total{{alertmanager="{url}",outcome="taken"}} ' in exporter.scrape().decode()


def test_after_a_restart_an_alert_goes_on_as_the_same_and_without_one_it_ends_by_itself(run, receiver, alertmanager, tmp_path):
    _, port = alertmanager("one")
    feed, state, quiet = Feed(), tmp_path / "state.db", {"resend_seconds": 3}
    exporter, end = run(feed, state, alertmanager=section(port, **quiet))
    feed.panes(40, 0.0)
    feed.panes(10, 1.5)
    wait_until(lambda: receiver.alerts("tidemark-now", "TidemarkSevereDrift", "firing"), what="the message")
    end()
    exporter, end = run(feed, state, alertmanager=section(port, **quiet))
    wait_until(lambda: exporter.published.service.ready, what="the restart")
    assert exporter.published.service.open_alarms
    taken = exporter.alert_posts()[f"http://127.0.0.1:{port}", "taken"]
    wait_until(lambda: exporter.alert_posts()[f"http://127.0.0.1:{port}", "taken"] > taken + 1, what="two more posts")
    assert told(port) == ["TidemarkDrift", "TidemarkSevereDrift"]
    assert len({alert["startsAt"] for _, _, alert in receiver.alerts("tidemark-now", "TidemarkSevereDrift", "firing")}) == 1
    assert receiver.alerts("tidemark-now", "TidemarkSevereDrift", "resolved") == []

    end()                                           # and nobody starts it again
    wait_until(lambda: receiver.alerts("tidemark-now", "TidemarkSevereDrift", "resolved"), what="the end after nine seconds")


@pytest.fixture
def guarded(alertmanager, tmp_path):
    """An Alertmanager behind TLS with an authority of its own and a password; its port."""
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1")
    for command in ("req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN=test-ca",
                    "req -newkey rsa:2048 -nodes -keyout am.key -out am.csr -subj /CN=alertmanager",
                    "x509 -req -in am.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out am.pem"):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "web.yml").write_text(yaml.safe_dump({
        "tls_server_config": {"cert_file": "am.pem", "key_file": "am.key"}, "basic_auth_users": {"tidemark": HASH}}))
    return alertmanager("one", f"--web.config.file={tmp_path / 'web.yml'}")[1]


def test_a_wrong_password_is_one_clear_line_and_the_right_one_works_as_soon_as_it_is_in_the_file(run, guarded, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "password").write_text("wrong\n")
    url = f"https://127.0.0.1:{guarded}"
    exporter, _ = run(Feed(), alertmanager=section() | {
        "urls": [url], "username": "tidemark", "password_file": str(tmp_path / "password"), "ca_file": str(tmp_path / "ca.pem")})
    wait_until(lambda: exporter.alert_posts()[url, "failed"] >= 2, what="two posts that fail")
    assert lines(caplog, "Alerts not taken.") == [
        f"{url}: expected an Alertmanager that takes alerts, got 401; it needs another token or password: see "
        "alertmanager.token_file, or username and password_file"]
    (tmp_path / "password").write_text("open-sesame\n")
    wait_until(lambda: exporter.alert_posts()[url, "taken"], what="a post that is taken")
    assert len(lines(caplog, "Alerts taken again.")) == 1
    assert "wrong" not in caplog.text.replace("wrong_type", "")


def test_an_authority_that_is_not_known_is_one_clear_line(run, guarded, tmp_path, caplog):
    url = f"https://127.0.0.1:{guarded}"
    exporter, _ = run(Feed(), alertmanager=section() | {"urls": [url]})
    wait_until(lambda: exporter.alert_posts()[url, "failed"], what="a post that fails")
    [line] = lines(caplog, "Alerts not taken.")
    assert line == (f"{url}: expected a certificate that can be trusted, got one that is not (unable to get local issuer "
                    "certificate); name its authority in alertmanager.ca_file")
