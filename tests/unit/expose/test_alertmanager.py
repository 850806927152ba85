"""The receiver: which alert asks for a retraining, and what everything else is told."""

from __future__ import annotations

import json

import httpx
import pytest

from monitor.decisions import ALERTMANAGER
from monitor.expose.alertmanager import BODY_BYTES, PATH
from monitor.expose.api import Server, application
from monitor.expose.exporter import Exporter
from monitor.expose.inbox import INBOX_MAX, Asked, Inbox
from monitor.expose.snapshot import ServiceSnapshot
from tests.unit.expose.shown import launch, snapshot, status

TOKEN = "correct-horse-battery-staple"
SECRET = {"authorization": f"Bearer {TOKEN}"}
STARTED = "2026-11-22T01:09:30.804889329Z"
LABELS = {"alertname": "TidemarkSevereDrift", "model": "loans", "severity": "critical", "tidemark_action": "retrain"}


def alert(fingerprint="4446957535a08a12", status="firing", **changes):
    return {"status": status, "labels": LABELS, "annotations": {"summary": "It moved."}, "startsAt": STARTED,
            "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "http://prom/graph", "fingerprint": fingerprint, **changes}


def message(*alerts, **changes):
    """A message as Alertmanager 0.25 sends it, with a field that only later versions have."""
    return {"receiver": "tidemark-trigger", "status": "firing", "alerts": list(alerts), "groupLabels": {"model": "loans"},
            "commonLabels": LABELS, "commonAnnotations": {}, "externalURL": "http://am:9093", "version": "4",
            "groupKey": '{}:{model="loans"}', "truncatedAlerts": 0, "notification_reason": "first notification", **changes}


@pytest.fixture
def inbox():
    return Inbox()


@pytest.fixture
def exporter():
    made = Exporter(1_000)
    made.service(snapshot(status(), status("churn")))
    return made


@pytest.fixture
def post(exporter, inbox):
    """A function that posts a body to the receiver of a served application."""
    server = Server(application(exporter, TOKEN, inbox=inbox), "127.0.0.1", 0)
    server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False, headers=SECRET) as client:
        yield lambda body, **more: client.post(PATH, **{"json" if isinstance(body, dict) else "content": body}, **more)
    server.stop()


def test_an_alert_that_fires_with_the_label_asks_for_a_launch_of_its_model(post, inbox):
    answer = post(message(alert()))
    assert answer.status_code == 200
    assert answer.json() == {"alerts": [{
        "alertname": "TidemarkSevereDrift", "model": "loans", "fingerprint": "4446957535a08a12", "noted": True,
        "words": "the trigger answers it; see /api/v1/decisions"}], "truncated": 0}
    [asked] = inbox.take()
    assert (asked.action, asked.model, asked.by, asked.key, asked.why, asked.force) == (
        "fire", "loans", ALERTMANAGER, f"4446957535a08a12@{STARTED}", "TidemarkSevereDrift: It moved.", False)


@pytest.mark.parametrize(("changes", "words"), [
    ({"status": "resolved"}, "it is resolved, and only one that fires asks for a launch"),
    ({"labels": {"alertname": "TidemarkDrift", "model": "loans"}},
     'it has no label tidemark_action="retrain"; render the rules with --retrain-label'),
    ({"labels": {**LABELS, "tidemark_action": "page"}},
     'it has no label tidemark_action="retrain"; render the rules with --retrain-label'),
    ({"labels": {**LABELS, "model": "x"}}, "no model of this name is watched: expected one of loans, churn"),
    ({"labels": {"tidemark_action": "retrain"}}, "no model of this name is watched: expected one of loans, churn"),
])
def test_what_does_not_ask_is_told_why_and_taken_all_the_same(changes, words, post, inbox):
    answer = post(message(alert(**changes)))
    assert (answer.status_code, answer.json()["alerts"][0]["noted"], answer.json()["alerts"][0]["words"]) == (200, False, words)
    assert inbox.take() == []


def test_a_model_is_asked_for_once_per_message_and_alerts_that_were_cut_off_are_told_of(post, inbox):
    answer = post(message(alert("a"), alert("b"), alert("c", labels={**LABELS, "model": "churn"}), truncatedAlerts=7)).json()
    assert [one["noted"] for one in answer["alerts"]] == [True, False, True]
    assert answer["alerts"][1]["words"] == "another alert of this model in the same message asks already"
    assert answer["truncated"] == 7
    assert [asked.model for asked in inbox.take()] == ["loans", "churn"]


def test_an_alert_that_has_had_its_launch_asks_for_no_other(post, inbox, exporter):
    exporter.service(snapshot(status(), launches=(launch("running", key=f"4446957535a08a12@{STARTED}"),)))
    [told] = post(message(alert())).json()["alerts"]
    assert told["words"] == f"launch {launch().id} was decided for it before"
    [told] = post(message(alert(startsAt="2026-11-23T01:09:30Z"))).json()["alerts"]      # it began anew
    assert told["noted"]
    assert len(inbox.take()) == 1


@pytest.mark.parametrize(("body", "error"), [
    (b"", "Input data was truncated"), (b"{", "truncated"), (b"[]", "Expected `object`, got `array`"), (b"\xff", "invalid"),
    (message(version=4), "Expected `str`, got `int` - at `$.version`"),
    (message(alert(labels={"model": 1})), "Expected `str`, got `int` - at `$.alerts[0].labels[...]`"),
    (message(alert(labels=None)), "Expected `object`, got `null` - at `$.alerts[0].labels`"),
    (message(alert(status="suppressed")), "Invalid enum value 'suppressed' - at `$.alerts[0].status`"),
    (message(alert(fingerprint="a b")), "at `$.alerts[0].fingerprint`"),
    (message(alert(fingerprint="a\n")), "at `$.alerts[0].fingerprint`"),
    (message(alert(startsAt="now")), "at `$.alerts[0].startsAt`"),
    (message(truncatedAlerts=-1), "Expected `int` >= 0 - at `$.truncatedAlerts`"),
    ({"version": "4"}, "Object missing required field `alerts`"),
    (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion"),
])
def test_what_is_no_such_message_is_one_line_and_not_tried_again(body, error, post, inbox):
    answer = post(body)
    assert answer.status_code == 400
    said = answer.json()["error"]
    assert said.startswith("body: expected Alertmanager's webhook message, got: ")
    assert error in said
    assert "\n" not in said
    assert inbox.take() == []


def test_a_message_of_another_version_is_refused(post):
    answer = post(message(version="5"))
    assert answer.status_code == 400
    assert answer.json()["error"] == "version: expected '4', got '5'; use an Alertmanager that sends it"


def test_a_service_that_is_not_ready_and_an_inbox_that_is_full_make_alertmanager_try_again(post, inbox, exporter):
    for _ in range(INBOX_MAX):
        inbox.put(Asked("approve", "x"))
    answer = post(message(alert()))
    assert (answer.status_code, answer.json()["error"]) == (503, "too many requests wait for the loop; try again")
    exporter.service(ServiceSnapshot())
    answer = post(message(alert()))
    assert (answer.status_code, answer.json()["error"]) == (503, "not ready: starting: the stored state is not loaded yet")


def test_without_the_token_or_without_one_at_all_nothing_is_asked(post, inbox, exporter):
    assert post(message(alert()), headers={"authorization": ""}).status_code == 401
    assert post(message(alert()), headers={"authorization": f"Bearer {TOKEN}x"}).status_code == 401
    server = Server(application(exporter, inbox=inbox), "127.0.0.1", 0)
    server.start()
    answer = httpx.post(f"http://127.0.0.1:{server.port}{PATH}", json=message(alert()), headers=SECRET, trust_env=False)
    server.stop()
    assert (answer.status_code, answer.json()["error"]) == (403, "changing something needs a token: set service.token_file")
    assert inbox.take() == []


def test_a_large_message_is_read_with_its_length_or_without_and_one_beyond_the_limit_is_refused(post, inbox):
    large = json.dumps(message(*(alert(f"{n}", annotations={"summary": "x" * 1_000}) for n in range(500)))).encode()
    assert 600_000 < len(large) < BODY_BYTES
    assert post(large).status_code == 200
    assert post(iter([large[:100_000], large[100_000:]])).status_code == 200             # chunked, as a proxy may send it
    assert len(inbox.take()) == 2
    for body in (b"x" * (BODY_BYTES + 1), iter([b"x" * BODY_BYTES, b"x"])):
        answer = post(body)
        assert (answer.status_code, answer.json()["error"]) == (413, f"a body of at most {BODY_BYTES} bytes with its length said")


def test_the_reason_that_is_kept_is_one_line_and_bounded(post, inbox):
    post(message(alert(annotations={"summary": "a\nb\x1b" + "x" * 5_000})))
    [asked] = inbox.take()
    assert asked.why.startswith(r"TidemarkSevereDrift: a\nb\x1bxxx")
    assert len(asked.why) == 300
