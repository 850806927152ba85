"""The HTTP side: one port, one truth, guarded."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from dataclasses import replace

import httpx
import pytest

from monitor.errors import ConfigError
from monitor.expose import alertmanager, answers
from monitor.expose.api import STALLED_SECONDS, Server, application, openapi, read_token
from monitor.expose.exporter import Exporter
from monitor.expose.exposition import CONTENT_TYPE
from monitor.expose.guard import BODY_BYTES, HEAD_BYTES
from monitor.expose.inbox import INBOX_MAX, Asked, Inbox
from monitor.expose.rates import Rates
from monitor.expose.snapshot import ServiceSnapshot
from tests.unit.expose.shown import World, launch, snapshot, status

TOKEN = "correct-horse-battery-staple"
PATHS = ("/api/v1/monitors", "/api/v1/monitors/loans", "/api/v1/alarms", "/api/v1/triggers")


@pytest.fixture
def exporter():
    """An exporter that has shown one judged pane."""
    exporter = Exporter(10_000)
    World(12).show(exporter, shift=1.0, state="warning")
    exporter.service(snapshot())
    return exporter


@pytest.fixture
def serve():
    """A function that serves an application on a free port and gives a client of it."""
    started = []

    def start(exporter, **options):
        server = Server(application(exporter, **options), "127.0.0.1", 0)
        server.start()
        client = httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False)
        started.append((server, client))
        return client

    yield start
    for server, client in started:
        client.close()
        server.stop()


def test_metrics_are_the_exporters_bytes_in_the_text_format(exporter, serve):
    answer = serve(exporter).get("/metrics")
    assert (answer.status_code, answer.headers["content-type"]) == (200, CONTENT_TYPE)
    assert answer.content.startswith(exporter.published.text)
    assert "process_cpu_seconds_total" in answer.text


def test_the_api_and_the_metrics_tell_the_same_scores(exporter, serve):
    client = serve(exporter)
    monitor = client.get("/api/v1/monitors/loans").json()
    [stream] = monitor["streams"]
    assert (monitor["state"], monitor["counted"], monitor["refused"]["json"]) == ("warning", 900, 2)
    assert len(stream["columns"]) == stream["columns_total"] == 12 + 13      # and joint rows
    assert stream["columns"][0]["column"] == "column_0"
    assert stream["columns"][0]["distances"]["ks"] is None              # NaN is no JSON
    metrics = client.get("/metrics").text
    for column in stream["columns"]:
        assert f'column="{column["column"]}",detector="scan"}} {column["score"]!r}\n' in metrics
        labels = f'model="loans",version="1",segment="all",role="{column["role"]}",column="{column["column"]}"'
        assert f"tidemark_effect_lower{{{labels}}} {column['effect_lower']!r}\n" in metrics
        assert f"tidemark_effect{{{labels}}} {column['effect']!r}\n" in metrics


def test_the_list_names_every_monitor_with_its_highest_columns(exporter, serve):
    answer = serve(exporter).get("/api/v1/monitors").json()
    assert [monitor["model"] for monitor in answer["monitors"]] == ["loans"]
    assert len(answer["monitors"][0]["streams"][0]["columns"]) == 3


def test_alarms_and_triggers_are_listed_newest_first(exporter, serve):
    client = serve(exporter)
    assert [alarm["state"] for alarm in client.get("/api/v1/alarms").json()["alarms"]] == ["cleared", "raised"]
    assert client.get("/api/v1/triggers").json()["triggers"][0]["id"] == "0123456789ab"


def test_an_unknown_model_is_told_which_models_there_are(exporter, serve):
    answer = serve(exporter).get("/api/v1/monitors/nobody")
    assert answer.status_code == 404
    assert answer.json() == {"error": "no monitor of a model named 'nobody'", "known": ["loans"]}


def test_an_unknown_path_is_told_which_paths_there_are(exporter, serve):
    answer = serve(exporter).get("/api/v2")
    assert (answer.status_code, answer.json()["error"]) == (404, "not found")
    assert "/api/v1/monitors" in answer.json()["known"]


def test_nothing_can_be_changed_over_http(exporter, serve):
    client = serve(exporter)
    for path in ("/metrics", *(path for path in PATHS if path != "/api/v1/triggers")):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert client.request(method, path).status_code == 405


def test_ready_follows_the_service_and_says_what_is_waited_for(serve):
    exporter = Exporter(1_000)
    client = serve(exporter)
    answer = client.get("/-/ready")
    assert (answer.status_code, answer.text) == (503, "Not ready: starting: the stored state is not loaded yet\n")
    exporter.service(ServiceSnapshot(False, "waiting for partitions of loans.events"))
    assert "waiting for partitions of loans.events" in client.get("/-/ready").text
    exporter.service(ServiceSnapshot(True, ""))
    assert client.get("/-/ready").status_code == 200


def test_healthy_until_the_loop_has_shown_nothing_for_too_long(serve):
    now = [0.0]
    exporter = Exporter(1_000, monotonic=lambda: now[0])
    client = serve(exporter, monotonic=lambda: now[0])
    now[0] = 10 * STALLED_SECONDS
    assert client.get("/-/healthy").status_code == 200                  # a long start is not a stalled loop
    exporter.service(ServiceSnapshot())
    now[0] += STALLED_SECONDS
    assert client.get("/-/healthy").status_code == 200
    now[0] += 1
    assert client.get("/-/healthy").status_code == 503


def test_with_a_token_everything_below_api_asks_for_it_and_probes_do_not(exporter, serve):
    client = serve(exporter, token=TOKEN, rates=Rates({"changes": 60, "failures": 1_000}))
    for path in PATHS:
        assert client.get(path).status_code == 401
        assert client.get(path).headers["www-authenticate"] == "Bearer"
        for wrong in (f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", f"Basic {TOKEN}", TOKEN, "Bearer é"):
            assert client.get(path, headers={"Authorization": wrong.encode()}).status_code == 401
        assert client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    for path in ("/metrics", "/-/healthy", "/-/ready", "/openapi.json"):
        assert client.get(path).status_code == 200
    assert client.get("/api/unknown").status_code == 401                # nor does it tell what there is


def test_the_token_is_never_logged(exporter, serve, caplog, capfd):
    caplog.set_level(0)
    client = serve(exporter, token=TOKEN)
    client.get("/api/v1/alarms", headers={"Authorization": f"Bearer {TOKEN}"})
    client.get("/api/v1/alarms", headers={"Authorization": f"Bearer {TOKEN}x"})
    said = capfd.readouterr()
    assert TOKEN not in caplog.text + said.out + said.err


@pytest.mark.parametrize(("content", "why"), [
    (None, "No such file"), ("", "with 0"), ("short", "with 5"), ("x" * 20 + " y", "blanks"), ("é" * 20, "no header"),
])
def test_a_token_file_that_cannot_be_used_is_one_line(tmp_path, content, why):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=why) as error:
        read_token(str(path))
    assert str(error.value).startswith("service.token_file: expected")
    assert "\n" not in str(error.value)
    assert not content or content not in str(error.value)


def test_a_token_is_read_without_its_newline(tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert read_token(str(tmp_path / "token")) == TOKEN


def test_every_answer_forbids_caching_framing_and_sniffing(exporter, serve):
    client = serve(exporter, token=TOKEN)
    for path in ("/metrics", "/-/ready", "/api/v1/alarms", "/nowhere"):
        headers = client.get(path).headers
        assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers


def test_a_large_body_and_a_large_head_are_refused(exporter, serve):
    client = serve(exporter)
    assert client.request("GET", "/metrics", content=b"x" * (BODY_BYTES + 1)).status_code == 413
    assert client.request("GET", "/metrics", content=iter([b"x"])).status_code == 413       # of a length not said
    assert client.get("/metrics", headers={"X-Long": "x" * HEAD_BYTES}).status_code == 431
    assert client.get("/metrics").status_code == 200


def test_text_is_zipped_for_those_who_ask(exporter, serve):
    answer = serve(exporter).get("/metrics", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.content.startswith(exporter.published.text)


def test_a_reader_that_never_reads_holds_up_nobody(exporter, serve):
    client = serve(exporter)
    host, port = client.base_url.host, client.base_url.port
    stuck = [socket.create_connection((host, port)) for _ in range(5)]
    for connection in stuck:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")     # and never the blank line
    exporter.service(snapshot(status(late=99)))
    assert 'tidemark_late_events_total{model="loans"} 99.0' in client.get("/metrics").text
    for connection in stuck:
        connection.close()


def test_openapi_describes_every_api_path_and_every_field_of_the_answers(exporter, serve):
    client = serve(exporter)
    document = client.get("/openapi.json").json()
    by_method = {method: {path for path, methods in document["paths"].items() if method in methods} for method in ("get", "post")}
    assert by_method["post"] == {*answers.CHANGED, alertmanager.PATH}
    assert by_method["get"] == {*(path.replace("loans", "{model}") for path in PATHS), *answers.READ}
    schemas = document["components"]["schemas"]
    assert set(client.get("/api/v1/monitors/loans").json()) == set(schemas["MonitorView"]["properties"])
    column = client.get("/api/v1/monitors/loans").json()["streams"][0]["columns"][0]
    assert set(column) == set(schemas["ColumnView"]["properties"])
    assert "security" not in document
    assert openapi(secured=True)["security"] == [{"token": []}]


def test_a_taken_port_is_one_line_that_says_what_to_do(exporter):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as error:
            Server(application(exporter), "127.0.0.1", port).start()
    assert str(error.value) == (f"service.listen: expected a free address, got '127.0.0.1:{port}' "
                                "(Address already in use); stop the program that has it, or choose another port")


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_one_line(exporter, host):
    with pytest.raises(ConfigError, match=r"^service\.listen: expected .*; .*$"):
        Server(application(exporter), host, 0).start()


def test_a_stopped_server_frees_its_port_and_leaves_no_thread(exporter):
    before = threading.active_count()
    server = Server(application(exporter), "127.0.0.1", 0)
    server.start()
    again = Server(application(exporter), "127.0.0.1", server.port)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("GET", "/api/v1/alarms")
    assert json.loads(connection.getresponse().read())["alarms"]
    server.stop()
    server.stop()
    connection.close()
    again.start()
    again.stop()
    assert [thread for thread in threading.enumerate() if thread.name == "http"] == []
    assert threading.active_count() <= before + 8                       # the pool's idle threads end by themselves


def test_an_answer_to_a_proposed_launch_is_noted_for_the_loop(exporter, serve):
    inbox = Inbox(wait_seconds=0.0)
    running = replace(launch("running"), id="running")
    exporter.service(snapshot(status(), launches=(launch("proposed"), running)))
    client = serve(exporter, token=TOKEN, inbox=inbox)
    known, secret = launch("proposed").id, {"authorization": f"Bearer {TOKEN}"}
    asked = ((known, "approve"), (known, "reject"), ("running", "approve"), ("unknown", "approve"), (known, "promote"))
    answers = [client.post(f"/api/v1/triggers/{name}/{action}", headers=secret).status_code for name, action in asked]
    assert answers == [202, 202, 409, 404, 404]
    assert client.post(f"/api/v1/triggers/{known}/approve").status_code == 401
    assert [asked[:2] for asked in inbox.take()] == [("approve", known), ("reject", known)]
    assert inbox.take() == []


def test_without_a_token_nothing_can_be_changed(exporter, serve):
    inbox = Inbox()
    exporter.service(snapshot(status(), launches=(launch("proposed"),)))
    client = serve(exporter, inbox=inbox)
    for path in (f"/api/v1/triggers/{launch().id}/approve", "/api/v1/triggers", "/api/v1/monitors/loans/breaker/reset"):
        answer = client.post(path, json={"model": "loans"})
        assert (answer.status_code, answer.json()["error"]) == (
            403, "changing something needs a token: set service.token_file")
    assert inbox.take() == []


def test_more_answers_than_the_inbox_holds_are_sent_back():
    inbox = Inbox()
    assert [inbox.put(Asked("approve", str(n))) for n in range(INBOX_MAX + 1)] == [True] * INBOX_MAX + [False]
