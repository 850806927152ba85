"""How alerts are brought away: what is posted, when, and what is said where it is not taken."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from datetime import datetime

import pytest

from monitor import cli, config
from monitor.config_alerts import OWN_LABELS, Alertmanager
from monitor.errors import ConfigError
from monitor.expose import alert_door, alert_sender
from monitor.expose.alert_desk import Desk, Told
from monitor.expose.alert_facts import Links
from monitor.expose.alert_sender import AlertSender, sender, sheet
from monitor.expose.exporter import Exporter
from monitor.expose.snapshot import OpenAlarm
from tests.conftest import free_port, wait_until
from tests.contract_server import Answer, ContractServer
from tests.unit.expose.shown import World, snapshot, status

RAISED = ("loans", "1", "all", "drift", "columns", "raised")
MONITOR = {"model": "loans", "topic": "t", "reference": "r.json"}


def taken(asked):
    """An Alertmanager's answer to a post that is one."""
    assert (asked.method, asked.path, asked.query) == ("POST", "/api/v2/alerts", {})
    assert asked.headers["content-type"] == "application/json"
    for alert in asked.document:
        assert set(alert) == {"labels", "annotations", "startsAt", "endsAt"}
        assert alert["labels"]["alertname"]
        for name in ("startsAt", "endsAt"):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", alert[name])
        assert alert["startsAt"] <= alert["endsAt"]
    return Answer()


@pytest.fixture
def exporter():
    """An exporter of a model in drift."""
    made = Exporter(10_000)
    World(4).show(made, shift=1.5, state="drift")
    made.service(snapshot(open_alarms={RAISED: OpenAlarm(1, 60.0)}))
    return made


@pytest.fixture
def send(exporter, monkeypatch):
    """A function that sends to these addresses with short pauses; ended with the test."""
    monkeypatch.setattr(alert_sender, "PAUSE_SECONDS_MIN", 0.02)
    monkeypatch.setattr(alert_sender, "PAUSE_SECONDS_MAX", 0.05)
    running = []

    def start(*urls, **more):
        made = AlertSender(Alertmanager(list(urls), **more), exporter, Desk({}, Links(), {"job": "tidemark"}), look_seconds=0.01)
        made.start()
        running.append(made)
        return made

    yield start
    for one in running:
        one.stop()


@pytest.fixture
def server():
    """An Alertmanager that takes everything that it should."""
    with ContractServer(taken) as made:
        yield made
        assert made.complaints == []


def errors(caplog):
    return [record.error for record in caplog.records if record.getMessage() == "Alerts not taken."]


def when(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def test_what_fires_is_posted_at_once_again_every_resend_seconds_and_at_once_when_it_is_over(send, server, exporter):
    begun = time.time()
    send(server.url, resend_seconds=1.0)
    wait_until(lambda: len(server.asked) >= 3, what="three posts")
    [first], [second], [third] = (asked.document for asked in server.asked[:3])
    assert first["labels"] == {"alertname": "TidemarkDrift", "severity": "warning", "model": "loans", "version": "1",
                               "segment": "all", "job": "tidemark"}
    assert when(first["startsAt"]) == pytest.approx(begun, abs=5)
    assert first["startsAt"] == second["startsAt"] == third["startsAt"]
    assert 0.9 < when(third["endsAt"]) - when(second["endsAt"]) < 5
    assert 2 < when(first["endsAt"]) - when(first["startsAt"]) <= 3.1                    # three times resend_seconds

    exporter.service(snapshot(open_alarms={}))
    wait_until(lambda: any(when(alert["endsAt"]) <= time.time() for asked in server.asked for alert in asked.document),
               what="the end of it")


def test_an_empty_list_is_posted_too_so_that_a_mistake_shows_before_the_first_alarm(send, server, exporter):
    exporter.service(snapshot(open_alarms={}))
    send(server.url)
    wait_until(lambda: server.asked, what="a post")
    assert server.asked[0].document == []


def test_nothing_is_posted_before_the_service_is_ready(send, server):
    sending = AlertSender(Alertmanager([server.url]), Exporter(100), Desk({}, Links(), {}), look_seconds=0.001)
    sending.start()
    looked = threading.Event()
    looked.wait(0.2)
    sending.stop()
    assert server.asked == []


def test_many_alerts_are_posted_in_batches():
    told = [Told({"alertname": f"a{n}"}, {}, 0.0, None) for n in range(130)]
    made = sheet(1, told, 100.0, 180.0, "http://service")
    bodies = [json.loads(body) for body in made.bodies]
    assert [len(body) for body in bodies] == [64, 64, 2]
    assert bodies[0][0] == {"labels": {"alertname": "a0"}, "annotations": {}, "startsAt": "1970-01-01T00:00:00.000Z",
                            "endsAt": "1970-01-01T00:04:40.000Z", "generatorURL": "http://service"}


@pytest.mark.parametrize(("answer", "words"), [
    (Answer(401), "got 401; it needs another token or password: see alertmanager.token_file, or username and password_file"),
    (Answer(403), "got 403; this token or name may not send alerts: give it the right to"),
    (Answer(404), "got 404; expected its API v2 below this address: give the path that it is served under "
                  "(--web.route-prefix), too"),
    (Answer(302, headers={"Location": "http://elsewhere/login"}), "got 302, a redirection; give the address that it leads to"),
    (Answer(400, b'"start time must\n be before end"\x1b'), r'got 400 ("start time must\n be before end"\x1b); see its log'),
    (Answer(500), "got 500 (no reason given); see its log"),
])
def test_a_post_that_is_refused_is_one_line_once_and_tried_again(answer, words, send, server, caplog):
    caplog.set_level(logging.INFO)
    server.bad = [answer] * 3
    sending = send(server.url)
    wait_until(lambda: sending.posts()[server.url, "taken"], what="a post that is taken")
    assert errors(caplog) == [f"{server.url}: expected an Alertmanager that takes alerts, {words}"]
    assert sending.posts()[server.url, "failed"] == 3
    assert [record.getMessage() for record in caplog.records].count("Alerts taken again.") == 1


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_a_server_that_does_not_end_its_answer_holds_nobody_up(how, send, server, caplog, monkeypatch):
    monkeypatch.setattr(alert_door, "CALL_SECONDS", 0.3)
    server.bad = [Answer(200, b"x" * 100, how=how)]
    other = free_port()
    begun = time.monotonic()
    sending = send(server.url, f"http://127.0.0.1:{other}")
    wait_until(lambda: sending.posts()[server.url, "taken"], what="a post that is taken")
    assert time.monotonic() - begun < 15
    told = [line.split(": ")[0] for line in errors(caplog)]
    # Before it dripped, it had said 200.
    assert set(told) == {f"http://127.0.0.1:{other}", *([server.url] if how == "hang" else [])}


def test_another_failure_is_told_and_the_same_is_not(send, server, caplog):
    server.bad = [Answer(500), Answer(500), Answer(403), Answer(500)]
    sending = send(server.url)
    wait_until(lambda: sending.posts()[server.url, "taken"], what="a post that is taken")
    assert [re.search(r"got (\d+)", line)[1] for line in errors(caplog)] == ["500", "403", "500"]


def test_a_token_is_sent_read_anew_and_told_to_nobody(send, tmp_path, caplog):
    caplog.set_level(0)
    secret = tmp_path / "token"
    secret.write_text("first-secret\n")
    with ContractServer(lambda asked: taken(asked) if asked.headers.get("authorization") == "Bearer second-secret"
                        else Answer(500, b"first-secret is wrong")) as server:
        sending = send(server.url, token_file=str(secret))
        wait_until(lambda: sending.posts()[server.url, "failed"], what="a post that fails")
        secret.unlink()
        wait_until(lambda: any("No such file" in line for line in errors(caplog)), what="a line on the file")
        secret.write_text("second-secret")
        wait_until(lambda: sending.posts()[server.url, "taken"], what="a post that is taken")
    assert "-secret" not in caplog.text
    assert server.complaints == []


def test_stop_ends_a_call_in_hand_and_leaves_no_thread(send, server):
    server.bad = [Answer(how="hang")]
    sending = send(server.url)
    wait_until(lambda: server.asked, what="a post")
    begun = time.monotonic()
    sending.stop()
    sending.stop()
    assert time.monotonic() - begun < 5
    assert [thread for thread in threading.enumerate() if thread.name.startswith("alerts")] == []


def test_a_defect_in_the_desk_is_logged_and_ends_the_sending(exporter, caplog, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    sending = AlertSender(Alertmanager([f"http://127.0.0.1:{free_port()}"]), exporter, object(), look_seconds=0.001)
    sending.start()
    wait_until(lambda: "Alerts are no longer sent." in caplog.text, what="the line")
    sending.stop()


# ---- the configuration ------------------------------------------------------------------------------------------------

def parsed(**section):
    return config.parse(json.dumps({"monitors": [MONITOR], "files": {"paths": ["x"]}, **section}))


def test_without_an_address_nothing_is_sent():
    assert sender(parsed(), Exporter(100)) is None


def test_links_come_from_the_section_or_from_grafanas(exporter):
    urls = {"urls": ["http://am:9093/"], "retrain_label": True}
    made = sender(parsed(alertmanager=urls, grafana={"url": "http://g/", "service_url": "http://s"}), exporter)
    assert made.posts() == {("http://am:9093", "taken"): 0, ("http://am:9093", "failed"): 0}
    assert exporter.alert_posts() == made.posts()
    made._desk.look(exporter.published, time.time())
    [told] = made._desk.told()
    assert told.annotations["dashboard_url"] == "http://g/d/tidemark-model?var-model=loans"
    assert told.annotations["report_url"] == "http://s/reports/loans-1-drift-1"
    assert "runbook_url" not in told.annotations


URLS = ["https://am.example:9093"]


@pytest.mark.parametrize(("section", "said"), [
    ({"urls": ["am:9093"]}, "alertmanager.urls[0]: expected an address such as http://alertmanager:9093, got 'am:9093'; mend it"),
    ({"urls": ["http://am:99999"]}, "alertmanager.urls[0]: expected an address"),
    ({"urls": ["http://am/{x}"]}, "alertmanager.urls[0]: expected an address"),
    ({"urls": ["http://am?x=1"]}, "alertmanager.urls[0]: expected an address"),
    ({"urls": ["http://user:hunter2@am"]}, "alertmanager.urls[0]: expected an address without a name and password in it"),
    ({"urls": ["http://am", "http://am/"]}, "alertmanager.urls[1]: expected each Alertmanager once, got 'http://am/' again"),
    ({"urls": [f"http://am{n}" for n in range(9)]}, "alertmanager.urls: expected a list of length <= 8"),
    ({"token_file": "t"}, "alertmanager.urls: expected an address beside token_file, got none; add it, or remove token_file"),
    ({"urls": URLS, "token_file": "t", "username": "u"}, "alertmanager.token_file: expected a token or a name with a password"),
    ({"urls": URLS, "username": "u"}, "alertmanager.password_file: expected username and password_file together, got one"),
    ({"urls": URLS, "password_file": "p"}, "alertmanager.username: expected username and password_file together, got one"),
    ({"urls": URLS, "username": "a:b", "password_file": "p"}, "alertmanager.username: expected a name without a colon"),
    ({"urls": ["http://am"], "ca_file": "c"}, "alertmanager.ca_file: expected an address that begins with https beside it"),
    ({"urls": URLS, "labels": {"model": "x"}}, "alertmanager.labels: expected a label of your own such as team, got 'model'"),
    ({"urls": URLS, "labels": {"a-b": "x"}}, "alertmanager.labels: expected a label of your own such as team, got 'a-b'"),
    ({"urls": URLS, "labels": {"team": ""}}, "alertmanager.labels.team: expected some text, got ''"),
    ({"urls": URLS, "resend_seconds": 0}, "alertmanager.resend_seconds: "),
    ({"urls": URLS, "grafana_url": "grafana"}, "alertmanager.grafana_url: expected an address such as https://grafana.example"),
    ({"url": URLS}, "alertmanager.url: expected a known key, got `url`; did you mean `urls`?"),
])
def test_a_section_that_contradicts_itself_is_one_line(section, said):
    with pytest.raises(ConfigError) as error:
        parsed(alertmanager=section)
    assert str(error.value).startswith(said)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(("section", "content", "said"), [
    ({"token_file": "FILE"}, None, "token_file: expected a file with the secret, got 'FILE' (No such file or directory)"),
    ({"token_file": "FILE"}, b"", "token_file: expected a file with the secret, got 'FILE' that is empty"),
    ({"token_file": "FILE"}, b"a\nb", "token_file: expected a file with the secret, got 'FILE' that is empty or holds"),
    ({"username": "u", "password_file": "FILE"}, b"\xff",
     "password_file: expected a file with the secret, got 'FILE' (not UTF-8)"),
    ({"ca_file": "FILE"}, None, "ca_file: expected a file with certificates, got 'FILE' (No such file or directory)"),
    ({"ca_file": "FILE"}, b"x", "ca_file: expected a file with certificates, got 'FILE' (no certificates in PEM)"),
])
def test_a_file_that_cannot_be_used_is_told_before_anything_starts(section, content, said, tmp_path, exporter):
    path = str(tmp_path / "file")
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    section = {name: path if value == "FILE" else value for name, value in section.items()}
    with pytest.raises(ConfigError) as error:
        sender(parsed(alertmanager={"urls": URLS, **section}), exporter)
    assert str(error.value).startswith("alertmanager." + said.replace("FILE", path))


def test_labels_that_the_service_sets_are_those_of_its_alerts(exporter):
    desk = Desk({}, Links(), {}, retrain_label=True)
    World(4, model="b").show(exporter, state="reference_inadequate")
    opened = {(*RAISED[:3], kind, cause, state): OpenAlarm(1, 0.0) for kind, cause, state in (
        ("drift", "columns", "severe"), ("quality", "volume", "raised"))}
    exporter.service(snapshot(status(), status("b"), open_alarms=opened))
    for later in (0, 900):
        desk.look(exporter.published, time.time() + later)
    assert {name for told in desk.told() for name in told.labels} <= set(OWN_LABELS)


# ---- what the commands say of it --------------------------------------------------------------------------------------

@pytest.fixture
def file(tmp_path):
    """A function that writes a configuration with this section, beside a reference that fits; its path."""
    def written(section):
        World(4).reference.save(tmp_path / "r.json")
        (tmp_path / "config.yaml").write_text(json.dumps({
            "monitors": [MONITOR | {"reference": str(tmp_path / "r.json")}], "files": {"paths": [str(tmp_path / "r.json")]},
            "service": {"state": f"sqlite:///{tmp_path / 's.db'}", "listen": "127.0.0.1:0"}, "alertmanager": section}))
        return str(tmp_path / "config.yaml")
    return written


def test_doctor_knocks_at_every_alertmanager(file, server, capsys):
    gone = f"http://127.0.0.1:{free_port()}"
    assert cli.main(["doctor", "-c", file({"urls": [server.url, gone]})]) == 1
    said = capsys.readouterr().out
    assert f"ok   alertmanager {server.url}: it takes our alerts\n" in said
    assert f"FAIL alertmanager {gone}: {gone}: expected an Alertmanager there, got Connection refused" in said
    assert [asked.document for asked in server.asked] == [[]]


def test_check_config_says_where_alerts_go(file, capsys):
    assert cli.main(["check-config", "-c", file({"urls": URLS, "resend_seconds": 30})]) == 0
    assert "Alerts are sent to https://am.example:9093, again every 30 s while they fire" in capsys.readouterr().out
