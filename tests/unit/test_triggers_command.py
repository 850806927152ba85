"""`tidemark triggers` and the API against a running loop: what is asked is done, stored, told, and kept in the trail."""

from __future__ import annotations

import json
import threading
import time

import httpx
import pytest
import yaml

from monitor.cli import main
from monitor.config import parse
from monitor.expose.api import Server, application
from monitor.expose.inbox import WAITING_MAX, Asked, Inbox, Reply
from monitor.flow import Batch
from monitor.ingest.source import MemorySource, records
from monitor.service import build
from tests.crash import world

TOPIC, TOKEN = "t", "0123456789abcdef"


class Endless(MemorySource):
    """What there is, and then a turn without anything, again and again, as a broker gives it."""

    def __iter__(self):
        yield from super().__iter__()
        while True:
            time.sleep(0.005)
            yield Batch(assigned=frozenset((TOPIC, p) for p in range(world.PARTITIONS)))


class Service:
    """The loop in a thread, its server, and a configuration that finds it."""

    def __init__(self, folder, **retrain):
        path = world.configuration(folder, "127.0.0.1:9", TOPIC, promote=False)
        tree = yaml.safe_load(path.read_text())
        tree["service"] |= {"dead_letters": "none", "token_file": str(folder / "token")}
        tree["monitors"][0]["retrain"] |= {"collect_events": 10**9, "approval": "manual", **retrain}
        tree["monitors"][0]["quality"] = dict.fromkeys(("max_refused_share", "volume_factor", "silent_panes"))
        (folder / "token").write_text(TOKEN)
        batch = Batch(parts=tuple(records(TOPIC, p, values, times=[0] * len(values)) for p, values in world.messages().items()),
                      assigned=frozenset((TOPIC, p) for p in range(world.PARTITIONS)))
        self.inbox = Inbox()
        self.stages = build(parse(yaml.safe_dump(tree)), source=Endless([batch]), inbox=self.inbox)
        self.server = Server(application(self.stages.exporter, TOKEN, inbox=self.inbox), "127.0.0.1", 0)
        self.server.start()
        tree["service"]["listen"] = f"127.0.0.1:{self.server.port}"
        self.config = folder / "asked.yaml"
        self.config.write_text(yaml.safe_dump(tree))
        self.thread = threading.Thread(target=self.stages.run, daemon=True)
        self.thread.start()
        end = time.monotonic() + 60
        while not self.stages.exporter.published.service.launches:
            assert time.monotonic() < end, "no launch was decided"
            assert self.thread.is_alive()
            time.sleep(0.01)
        self.proposed = self.stages.exporter.published.service.launches[0].id

    def triggers(self, *argv):
        return main(["triggers", *argv, "-c", str(self.config)])

    def post(self, path, body=None, token=TOKEN):
        return httpx.post(f"http://127.0.0.1:{self.server.port}/api/v1/{path}", json=body, timeout=20,
                          headers={"authorization": f"Bearer {token}"})

    def get(self, path):
        return httpx.get(f"http://127.0.0.1:{self.server.port}/api/v1/{path}", timeout=20,
                         headers={"authorization": f"Bearer {TOKEN}"}).json()

    def stop(self):
        self.inbox.close()
        self.stages.stop()
        self.thread.join(30)
        self.server.stop()
        self.stages.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    running = Service(tmp_path_factory.mktemp("service"), cooldown_hours=0, max_per_week=2, useless_max=1)
    yield running
    running.stop()


def test_a_launch_is_asked_for_dry_and_in_earnest_answered_and_kept_in_the_trail(service, capsys):
    """One story, because each step rests on the one before."""
    assert service.triggers("fire", "m", "--dry-run") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"dry run: no launch (in_flight): launch {service.proposed} is proposed\n")
    assert "1 of 2 launches in 7 days are used (retrain.max_per_week)" in " ".join(said.split())
    assert service.get("audit") == {"audit": []}

    assert service.triggers("fire", "m", "--why", "new prices") == 1
    assert f"no launch (in_flight): launch {service.proposed} is proposed" in capsys.readouterr().out
    assert service.triggers("reject", service.proposed, "--why", "a campaign", "--by", "ada") == 0
    assert capsys.readouterr().out == f"launch {service.proposed} is refused\n"
    assert service.triggers("approve", service.proposed) == 1
    assert f"launch {service.proposed} is refused, no longer proposed" in capsys.readouterr().err

    assert service.triggers("fire", "m", "--why", "new prices", "--key", "once", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["done"], answer["state"], answer["key"], answer["reason"]) == (True, "approved", "once", "")
    assert service.triggers("fire", "m", "--key", "once") == 0
    assert f"launch {answer['launch']} was decided for this request before" in capsys.readouterr().out
    assert len(service.get("triggers")["triggers"]) == 2

    audit = service.get("audit")["audit"]
    assert [(entry["action"], entry["taken"], entry["why"]) for entry in reversed(audit)] == [
        ("fire", False, "new prices"), ("reject", True, "a campaign"), ("fire", True, "new prices")]
    assert (audit[1]["by"], audit[1]["launch"]) == ("token:ada", service.proposed)
    decisions = service.get("decisions")["decisions"]
    assert [(one["outcome"], one["reason"]) for one in reversed(decisions)] == [
        ("launch", ""), ("no", "in_flight"), ("launch", "")]

    assert service.triggers("list", "--audit") == 0
    said = capsys.readouterr().out
    assert f"token:ada: reject {service.proposed}: done" in said
    assert "why: a campaign" in said
    assert service.triggers("list", "m") == 0
    assert "asked for by token:" in capsys.readouterr().out
    assert main(["explain", "m", "-c", str(service.config)]) == 0
    said = capsys.readouterr().out
    assert "Limits of a retraining now:" in said
    assert f"holds  launch {answer['launch']} is approved" in said
    assert "1 of 2 launches in 7 days are used" in said                 # the rejected one does not count


def test_the_api_shows_every_limit_and_the_metrics_every_answer(service):
    policy = service.get("monitors/m")["policy"]
    assert [limit["reason"] for limit in policy["limits"]] == [
        "in_flight", "all_in_flight", "learning", "breaker", "cooldown", "budget", "gpu_hours", "blackout"]
    text = httpx.get(f"http://127.0.0.1:{service.server.port}/metrics", timeout=20).text
    assert 'tidemark_decisions_total{model="m",outcome="launch",reason="none"} ' in text
    assert 'tidemark_decisions_total{model="m",outcome="no",reason="blackout"} 0' in text
    assert 'tidemark_launch_waiting{model="m",reason="breaker"} 0' in text


@pytest.mark.parametrize(("path", "body", "status", "said"), [
    ("triggers", None, 400, "model: expected a model, got none; name one"),
    ("triggers", {"model": "nobody"}, 404, "no monitor of a model named 'nobody'"),
    ("triggers", {"model": "m", "colour": 1}, 400, "body: expected JSON with model, why, key, by, "),
    ("triggers", {"model": "m", "why": "w" * 1001}, 400, "body: expected JSON with"),
    ("triggers", {"model": "m", "force": "yes"}, 400, "body: expected JSON with"),
    ("triggers", [], 400, "body: expected JSON with"),
    ("triggers/unknown/approve", None, 404, "no launch 'unknown'"),
    ("triggers/unknown/promote", None, 404, "no answer named 'promote'"),
    ("monitors/nobody/breaker/reset", None, 404, "no monitor of a model named 'nobody'"),
])
def test_a_request_that_cannot_be_is_answered_in_one_line(service, path, body, status, said):
    answer = service.post(path, body)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(said)
    assert "\n" not in answer.json()["error"]


def test_without_the_right_token_nothing_is_asked(service):
    before = service.get("audit")
    for path in ("triggers", f"triggers/{service.proposed}/approve", "monitors/m/breaker/reset"):
        assert service.post(path, {"model": "m"}, token="fedcba9876543210").status_code == 401
    assert service.get("audit") == before


def test_a_breaker_that_is_closed_says_so_and_the_trail_keeps_who_asked(service, capsys):
    assert service.triggers("reset", "m", "--why", "labels are back") == 1
    assert capsys.readouterr().out == "m: expected launches in a row that brought nothing, got none; the breaker is closed\n"
    newest = service.get("audit")["audit"][0]
    assert (newest["action"], newest["taken"], newest["why"]) == ("reset", False, "labels are back")


@pytest.mark.parametrize(("argv", "said"), [
    (["fire"], "triggers fire: expected a model, got none; name one of the configuration"),
    (["approve"], "triggers approve: expected a launch, got none; `tidemark triggers list` shows them"),
    (["fire", "nobody"], "expected one of the models m, got 'nobody'; name one of them"),
    (["list", "nobody"], "expected one of the models m, got 'nobody'; name one of them"),
    (["fire", "m", "--force"], "--force: expected --why with the words for the audit trail, got none; say why"),
    (["approve", "x", "--dry-run"], "--dry-run: expected with `fire` only, got it with `approve`; remove it"),
    (["fire", "m", "--audit"], "--audit: expected with `list` only, got it with `fire`; remove it"),
])
def test_a_command_that_cannot_be_is_one_line(service, argv, said, capsys):
    assert service.triggers(*argv) == 2
    assert said in capsys.readouterr().err


def test_a_service_that_is_away_gives_back_the_key_that_starts_nothing_twice(tmp_path, service, capsys):
    tree = yaml.safe_load(service.config.read_text())
    tree["service"]["listen"] = "127.0.0.1:9"
    (tmp_path / "away.yaml").write_text(yaml.safe_dump(tree))
    assert main(["triggers", "fire", "m", "--key", "k7", "-c", str(tmp_path / "away.yaml")]) == 1
    said = capsys.readouterr().err
    assert "127.0.0.1:9: expected the running service there, got" in said
    assert "the same command with --key k7 asks for nothing twice" in said


# ---- the inbox ------------------------------------------------------------------------------------------------------------

def test_who_asks_gets_the_reply_to_his_own_request_and_nobody_waits_for_ever():
    inbox, got = Inbox(wait_seconds=120.0), {}
    asked = [Asked("fire", model="m", key="same") for _ in range(2)]    # equal, and not the same
    threads = [threading.Thread(target=lambda n=n: got.update({n: inbox.ask(asked[n])})) for n in range(2)]
    for thread in threads:
        thread.start()
    taken = []
    end = time.monotonic() + 20
    while len(taken) < 2:
        assert time.monotonic() < end
        taken += inbox.take()
        time.sleep(0.002)
    for one in taken:
        inbox.reply(one, Reply(True, f"for {id(one)}"))
    for thread in threads:
        thread.join(20)
    assert {n: got[n].words for n in got} == {n: f"for {id(asked[n])}" for n in range(2)}
    assert Inbox(wait_seconds=0.0).ask(asked[0]) is True
    waiting = threading.Thread(target=lambda: got.update({"closed": inbox.ask(asked[0])}))
    waiting.start()
    while not inbox.take():
        time.sleep(0.002)
    inbox.close()
    waiting.join(20)
    assert got.get("closed") is True                # long before its time


def test_only_so_many_wait_that_a_scrape_still_has_a_thread():
    inbox = Inbox(wait_seconds=20.0)
    threads = [threading.Thread(target=inbox.ask, args=(Asked("fire", model=str(n)),)) for n in range(WAITING_MAX)]
    for thread in threads:
        thread.start()
    taken, end = [], time.monotonic() + 20
    while len(taken) < WAITING_MAX:
        assert time.monotonic() < end
        taken += inbox.take()
        time.sleep(0.002)
    begun = time.monotonic()
    assert inbox.ask(Asked("fire", model="one more")) is True
    assert time.monotonic() - begun < 5
    inbox.close()
    for thread in threads:
        thread.join(20)
