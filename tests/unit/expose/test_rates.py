"""How often one address may: buckets, their bound, and what the port answers beyond it, to strangers' pages as well."""

from __future__ import annotations

import httpx
import pytest

from monitor.config import is_loopback, known_hosts, parse
from monitor.expose.api import Server, application
from monitor.expose.exporter import Exporter
from monitor.expose.inbox import Inbox
from monitor.expose.rates import ADDRESSES, MOST, Rates
from tests.unit.expose.shown import World, snapshot

TOKEN = "correct-horse-battery-staple"
BEARER = {"authorization": f"Bearer {TOKEN}"}


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def rates(clock):
    return Rates(monotonic=clock)


@pytest.fixture
def client(rates):
    """A client of a service on this machine."""
    exporter = Exporter(1_000)
    World(4).show(exporter)
    exporter.service(snapshot())
    server = Server(application(exporter, TOKEN, inbox=Inbox(0.0), hosts=["localhost", "tidemark.example"], rates=rates),
                    "127.0.0.1", 0)
    server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as made:
        yield made
    server.stop()


def test_an_address_has_so_many_acts_and_one_more_after_its_share_of_a_minute(rates, clock):
    assert [rates.wait("failures", "192.0.2.1") for _ in range(MOST["failures"])] == [0.0] * MOST["failures"]
    wait = rates.wait("failures", "192.0.2.1")
    assert wait == pytest.approx(60 / MOST["failures"])
    assert rates.wait("failures", "192.0.2.2") == 0
    assert rates.wait("changes", "192.0.2.1") == 0
    clock.now += wait
    assert rates.wait("failures", "192.0.2.1") == 0
    assert rates.wait("failures", "192.0.2.1") > 0
    clock.now += 1e6
    assert sum(rates.wait("failures", "192.0.2.1") == 0 for _ in range(100)) == MOST["failures"]


def test_asking_without_taking_costs_nothing(rates):
    assert [rates.wait("failures", "a", take=False) for _ in range(100)] == [0.0] * 100


def test_one_machine_is_one_address_however_many_it_has(rates):
    for n in range(MOST["changes"]):
        assert rates.wait("changes", f"2001:db8::{n:x}") == 0
    assert rates.wait("changes", "2001:db8::ffff:1%eth0") > 0
    assert rates.wait("changes", "2001:db8:0:1::1") == 0
    for _ in range(MOST["changes"]):
        rates.wait("changes", "::ffff:192.0.2.9")
    assert rates.wait("changes", "192.0.2.9") > 0


def test_addresses_without_end_take_no_memory_without_end(rates):
    for n in range(10 * ADDRESSES):
        rates.wait("failures", f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
    assert len(rates._left) == ADDRESSES


def test_wrong_tokens_are_answered_ten_times_and_then_not_looked_at(client, clock):
    wrong = {"authorization": "Bearer wrong"}
    answers = [client.get("/api/v1/alarms", headers=wrong).status_code for _ in range(MOST["failures"] + 1)]
    assert answers == [401] * MOST["failures"] + [429]
    refused = client.get("/api/v1/alarms", headers=BEARER)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "6")
    assert refused.json() == {"error": "fewer requests of this kind: come again in 6 s", "known": []}
    assert client.get("/api/v1/alarms").status_code == 401, "who offers no token is told that one is needed"
    assert client.get("/metrics").status_code == 200
    clock.now += 6
    assert client.get("/api/v1/alarms", headers=BEARER).status_code == 200


def test_what_changes_something_may_be_asked_sixty_times_a_minute_and_reading_is_not_counted(client, clock):
    def fire() -> int:
        return client.post("/api/v1/triggers", json={"model": "loans", "dry_run": True}, headers=BEARER).status_code

    answers = [fire() for _ in range(MOST["changes"] + 1)]
    assert set(answers[:-1]) <= {202, 503}
    assert answers[-1] == 429
    assert client.get("/api/v1/triggers", headers=BEARER).status_code == 200
    clock.now += 1
    assert fire() != 429


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "tidemark.example.evil", "", "localhost.",
                                  "x@localhost"])
def test_a_port_of_this_machine_answers_to_no_foreign_name(host, client):
    """A page whose own name is made to lead to 127.0.0.1 would else read everything in the browser of who visits it."""
    expected = 200 if host == "localhost." else 421
    for path in ("/metrics", "/api/v1/monitors", "/"):
        answer = client.get(path, headers={**BEARER, "host": host})
        assert answer.status_code == (404 if path == "/" and expected == 200 else expected), path
        if expected == 421:
            assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1", "[::1]:8080", "10.1.2.3:80", "tidemark.example:443"])
def test_addresses_and_known_names_are_answered(host, client):
    assert client.get("/-/healthy", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("said", [
    {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:1"}, {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"}, {"origin": "http://[broken"},
])
def test_nothing_is_changed_for_a_foreign_page_even_with_the_token(said, client):
    answer = client.post("/api/v1/triggers", json={"model": "loans", "dry_run": True}, headers={**BEARER, **said})
    assert answer.status_code == 403
    assert client.get("/api/v1/triggers", headers={**BEARER, **said}).status_code == 200


def test_a_page_of_our_own_may(client):
    own = {"origin": str(client.base_url).rstrip("/"), "sec-fetch-site": "same-origin"}
    assert client.post("/api/v1/triggers", json={"model": "loans", "dry_run": True}, headers={**BEARER, **own}).status_code == 202


@pytest.mark.parametrize(("listen", "hosts", "expected"), [
    ("127.0.0.1:80", "[]", ["localhost"]), ("[::1]:80", "[a.example]", ["a.example", "localhost"]),
    ("localhost:80", "[]", ["localhost"]),
    ("0.0.0.0:80", "[]", None), ("0.0.0.0:80", "[a.example]", ["a.example", "localhost"]), ("tidemark:80", "[]", None),
])
def test_which_names_are_known_by_where_it_listens(listen, hosts, expected):
    service = parse(f"files: {{paths: [a.jsonl]}}\nmonitors: [{{model: m, topic: t, reference: r}}]\n"
                    f"service: {{listen: '{listen}', hosts: {hosts}}}").service
    assert known_hosts(service) == expected
    assert is_loopback("127.8.8.8")
