"""What a port that is open to a cluster withstands: many, slow, wrong and silent connections."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest

from monitor.expose.alertmanager import PATH
from monitor.expose.api import Server, application
from monitor.expose.exporter import Exporter
from monitor.expose.guard import BODY_BYTES, CONNECTIONS, Connection, Guard
from monitor.expose.inbox import Inbox
from tests.conftest import wait_until
from tests.unit.expose.shown import World, snapshot

TOKEN = "correct-horse-battery-staple"
SECONDS = 0.3
POST = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode()


@pytest.fixture
def port(monkeypatch):
    """Port of a served application whose patience is short."""
    monkeypatch.setattr(Connection, "head_seconds", SECONDS)
    monkeypatch.setattr(Connection, "read_seconds", SECONDS)
    monkeypatch.setattr(Guard.__init__, "__defaults__", (SECONDS,))
    exporter = Exporter(1_000_000)
    World(12).show(exporter)
    exporter.service(snapshot())
    server = Server(application(exporter, TOKEN, inbox=Inbox()), "127.0.0.1", 0)
    server.start()
    yield server.port
    server.stop()


@pytest.fixture
def connect(port):
    """A function that opens a connection and says something."""
    made = []

    def opened(said: bytes = b"") -> socket.socket:
        made.append(socket.create_connection(("127.0.0.1", port), timeout=10))
        made[-1].sendall(said)
        return made[-1]

    yield opened
    for one in made:
        one.close()


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of everything that comes until the end; 0 where nothing does."""
    got = b""
    try:
        while part := connection.recv(65_536):
            got += part
    except ConnectionResetError:
        pass
    if not got:
        return 0, {}, b""
    head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def test_a_connection_that_says_nothing_is_ended_and_one_that_says_too_little_is_told(connect):
    assert answer(connect()) == (0, {}, b"")
    status, headers, body = answer(connect(b"GET /metrics HTTP/1.1\r\nHost:"))
    assert (status, headers["connection"]) == (408, "close")
    assert json.loads(body) == {"error": "a request line and headers within 0.3 seconds", "known": []}


def test_a_head_that_comes_a_byte_at_a_time_does_not_last_longer_for_it(connect):
    slow, begun = connect(), time.monotonic()
    slow.settimeout(SECONDS / 20)
    for byte in b"GET /metrics HTTP/1.1\r\nX-Long: " + b"x" * 200:
        slow.sendall(bytes([byte]))
        try:
            said = slow.recv(65_536)
        except TimeoutError:
            continue
        break
    assert said.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - begun < 10 * SECONDS


def test_a_second_request_on_the_same_connection_has_the_same_time_for_its_head(connect):
    kept = connect(b"GET /-/ready HTTP/1.1\r\nHost: x\r\n\r\n")
    said = b""
    while not said.endswith(b"Ready.\n"):
        said += kept.recv(65_536)
    kept.sendall(b"GET /-/rea")
    assert answer(kept)[0] == 408


@pytest.mark.parametrize("said", [
    b"Content-Length: 1000\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n3\r\n{", b"Content-Length: 10\r\n\r\n",
])
def test_a_body_that_does_not_come_is_told_how_long_it_was_waited_for(said, connect):
    status, headers, body = answer(connect(POST + said))
    assert (status, headers["connection"]) == (408, "close")
    assert json.loads(body)["error"] == "a whole body within 0.3 seconds"


@pytest.mark.parametrize(("said", "status"), [
    (b"Content-Length: -1\r\n\r\n", 400), (b"Content-Length: x\r\n\r\n", 400),
    (b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
    (b"Content-Length: 99999999999999999999\r\n\r\n", 413), (b"Content-Length: 1048577\r\n\r\n", 413),
    (b"Transfer-Encoding: gzip\r\n\r\n", 400), (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    (b"Content-Length: 2\r\n\r\n{}and more", 400),
])
def test_a_length_that_is_wrong_is_an_answer_and_no_wait(said, status, connect):
    begun = time.monotonic()
    got, _, body = answer(connect(POST + said))
    assert got == status
    assert body
    assert time.monotonic() - begun < 5


def test_whoever_leaves_in_the_middle_of_a_body_leaves_nothing_in_the_log(connect, port, caplog, capfd):
    gone = connect(POST + b"Content-Length: 1000\r\n\r\n{")
    gone.close()
    assert httpx.get(f"http://127.0.0.1:{port}/-/ready", trust_env=False).status_code == 200
    assert "Exception" not in caplog.text + capfd.readouterr().err


def test_other_routes_take_a_small_body_only_and_its_length_must_be_said(port):
    secret = {"authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, headers=secret) as client:
        for body in (b"x" * (BODY_BYTES + 1), iter([b"{}"])):
            refused = client.post("/api/v1/triggers", content=body)
            assert refused.status_code == 413
            assert refused.json()["error"] == f"a body of at most {BODY_BYTES} bytes with its length said"


def test_a_probe_gets_through_however_many_connections_say_nothing(connect, port):
    idle = [connect(b"GET" if n % 2 else b"") for n in range(3 * CONNECTIONS)]
    for path in ("/-/healthy", "/-/ready", "/metrics"):
        assert httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code == 200
    assert len(idle) == 3 * CONNECTIONS


def test_an_answer_that_nobody_reads_ends_its_connection(connect, port):
    asked = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    unread = connect()
    unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)

    def is_ended():
        try:
            unread.send(asked * 20)
        except OSError:
            return True
        return False

    unread.settimeout(0.05)
    wait_until(is_ended, timeout=20, what="the end of a connection that is not read")
    assert httpx.get(f"http://127.0.0.1:{port}/-/ready", trust_env=False).status_code == 200
