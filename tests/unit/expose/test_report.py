"""Reports as they are kept, made and served; evidently itself is met in tests/integration/test_report.py."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import httpx
import numpy as np
import pytest
from msgspec.structs import replace

from monitor.expose.api import Server, application
from monitor.expose.exporter import Exporter
from monitor.expose.report import routes
from monitor.expose.report_facts import HISTOGRAMS, Facts, episode_of, facts_of, report_name
from monitor.expose.report_maker import QUEUE, Maker
from monitor.expose.report_page import page
from monitor.expose.report_shelf import Shelf, file_stem
from monitor.flow import Mover
from tests.conftest import wait_until
from tests.unit.expose.shown import World, alarm, launch, snapshot

TOKEN = "0123456789abcdef"
FAKE = "tests.unit.expose.report_fake"


def facts(episode=1, **options) -> Facts:
    raised = alarm(episode=episode, movers=(Mover("column_0", "input", 0.9, 0.8, 1.0, 2.5, "mean"),), score=2.5)
    return Facts(report_name(raised), raised, (raised,), **options)


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "reports", 30)


@pytest.fixture
def client(shelf):
    """A client of a service that knows the alarm loans-1-drift-1, and whose reports are on the shelf."""
    exporter = Exporter(10_000)
    exporter.service(snapshot(alarms=(alarm(), alarm(episode=2, kind="quality", cause="volume", words="no events for 12 panes")),
                              reports=shelf.folder))
    server = Server(application(exporter, TOKEN, more=routes(exporter)), "127.0.0.1", 0)
    server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False, auth=("anybody", TOKEN)) as made:
        yield made
    server.stop()


# -- what is said --------------------------------------------------------------------------------------------------------


def test_facts_hold_the_named_columns_first_with_the_shares_of_the_counts():
    world = World(30)
    window = world.evaluation(2.0).window
    raised = alarm(movers=(Mover("city", "prediction", 0.1, 0.0, 0.2, 1.1, "level Paris"),))
    found = facts_of(raised, world.reference, window.profile.counts, window.profile.events)
    assert [column.column for column in found.columns[:2]] == ["city", "column_0"]
    assert [column.named for column in found.columns[:2]] == [True, False]
    assert sum(bool(column.bins) for column in found.columns) == HISTOGRAMS
    moved = found.columns[1]
    assert sum(moved.window) == pytest.approx(1)
    assert sum(moved.reference) == pytest.approx(1)
    assert moved.window[-2] > 0.5 > moved.reference[-2]
    assert found.columns_total == len(world.reference.rows)


def test_an_alarm_that_rests_on_no_column_has_facts_without_columns():
    world = World(3)
    raised = alarm(kind="quality", cause="wrong_type")
    assert facts_of(raised, world.reference, np.ones(world.reference.shape, np.int64), 5).columns == ()


def test_a_page_tells_the_story_of_its_own_alarm_only():
    raised, cleared = alarm(), alarm(state="cleared", at=600.0, reason="quiet")
    changes = episode_of([raised, alarm(episode=2, at=300.0), cleared], "loans-1-drift-1")
    html = page(replace(facts(), changes=changes), [launch(), changed(launch(), episode=2, id="ffffffffffff")])
    assert "Over since 1970-01-01 00:10:00 UTC" in html
    assert "0123456789ab" in html
    assert "ffffffffffff" not in html
    assert "00:05:00" not in html


def changed(one, **options):
    """An alarm or a launch that differs in these."""
    return dataclasses.replace(one, **options)


def test_no_text_that_came_from_data_is_markup_of_the_page():
    evil = '<script>alert("x")</script>'
    raised = alarm(movers=(Mover(evil, "input", 0.9, 0.8, 1.0, 2.5, evil, words=evil),), words=evil)
    html = page(Facts("loans-1-drift-1", raised, (raised,), state="failed", why=evil), [changed(launch("failed"), detail=evil)])
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 5


# -- how it is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "../../etc/passwd", "/etc/passwd", "..", "", "a\0-1-drift-1", "../x-1-drift-1", "a/b-1-drift-1", "x" * 300 + "-1-drift-1",
    ".hidden-1-drift-1", "a-1-drift-1.html", "a\n-1-drift-1", "a-1-drift-1\n", "é-1-drift-1", "\ud800-1-drift-1"])
def test_a_name_never_leads_out_of_the_folder(shelf, name):
    path = shelf.path(name, ".html")
    assert path.parent == shelf.folder
    assert path.name.startswith("x-")


def test_names_that_are_no_file_names_are_kept_apart(shelf):
    for version in ("2024/05", "2024:05"):
        one = facts()
        shelf.put(replace(one, name=report_name(changed(one.alarm, version=version)), digest=version))
    assert shelf.facts("loans-2024/05-drift-1").digest == "2024/05"
    assert shelf.facts("loans-2024:05-drift-1").digest == "2024:05"


def test_only_the_latest_reports_are_kept(tmp_path):
    shelf = Shelf(tmp_path, 3)
    for episode in range(6):
        shelf.put_rows(f"loans-1-drift-{episode}", b"x")
        shelf.put(facts(episode))
        os.utime(shelf.path(f"loans-1-drift-{episode}", ".facts"), (episode, episode))
    assert {path.stem for path in tmp_path.iterdir()} == {f"loans-1-drift-{episode}" for episode in (3, 4, 5)}


def test_a_damaged_report_counts_as_absent(shelf):
    shelf.put(facts())
    shelf.path("loans-1-drift-1", ".facts").write_bytes(b"\x81half")
    assert shelf.facts("loans-1-drift-1") is None
    assert list(shelf.all()) == []


# -- how it is made ------------------------------------------------------------------------------------------------------


@pytest.fixture
def maker(shelf):
    made = Maker(shelf, 20.0, worker=FAKE)
    yield made
    made.close()


def ended(maker, name="loans-1-drift-1") -> Facts:
    maker.wait(60)
    assert maker.is_idle
    return maker.shelf.facts(name)


def test_a_report_is_made_in_a_process_of_its_own(maker, shelf):
    noted = []
    maker.note = lambda model, seconds: noted.append((model, seconds > 0))
    maker.offer(facts(), b"good")
    assert shelf.facts("loans-1-drift-1").state == "waiting"
    found = ended(maker)
    assert (found.state, found.rows, found.why) == ("made", (12, 34), "Left out: empty.")
    assert shelf.path("loans-1-drift-1", ".html").read_text() == "<!DOCTYPE html><p>good</p>"
    assert not shelf.path("loans-1-drift-1", ".rows").exists()
    assert (maker.counts("loans"), noted) == ({"made": 1}, [("loans", True)])


def test_a_process_that_crashes_is_a_failed_report_with_its_last_words_on_one_line(maker):
    maker.offer(facts(), b"crash")
    assert ended(maker).why == "ValueError: \\x1b[31mbad\\x1b[0m column"
    assert maker.counts("loans") == {"failed": 1}


def test_a_process_that_ends_well_without_a_report_has_failed(maker):
    maker.offer(facts(), b"vanish")
    assert ended(maker).state == "failed"


def test_a_process_that_hangs_is_ended_with_all_that_it_began(maker, shelf):
    now = [0.0]
    maker.monotonic = lambda: now[0]
    maker.offer(facts(), b"hang")
    maker.advance()
    child = wait_until(lambda: (shelf.folder / "child").is_file() and (shelf.folder / "child").read_text(), what="the child")
    now[0] = 21.0
    maker.advance()
    assert (maker.is_idle, shelf.facts("loans-1-drift-1").why) == (True, "it took more than reports.seconds = 20")
    wait_until(lambda: not _runs(int(child)), what="the end of the child")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_more_reports_than_wait_are_dropped_and_say_so(maker, shelf):
    for episode in range(QUEUE + 2):
        maker.offer(facts(episode), b"good")
    assert maker.counts("loans") == {"dropped": 2}
    assert "waited already" in shelf.facts(f"loans-1-drift-{QUEUE}").why


def test_a_later_change_of_the_same_alarm_takes_the_place_of_the_first(maker):
    maker.offer(facts(), b"hang")
    maker.advance()
    wait_until((maker.shelf.folder / "child").is_file, what="the first one at work")
    maker.offer(facts(events=7), b"good")
    assert (ended(maker).events, maker.counts("loans")) == (7, {"dropped": 1, "made": 1})


def test_a_folder_that_cannot_be_written_costs_the_report_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("")
    maker = Maker(Shelf(tmp_path / "file" / "reports", 3), 20.0, worker=FAKE)
    maker.offer(facts(), b"good")
    maker.offer(facts(2), None)
    maker.update(facts(3))
    maker.advance()
    assert maker.counts("loans") == {"failed": 3}


def test_what_waited_when_the_service_ended_is_made_after_the_next_start(maker, shelf):
    maker.offer(facts(), b"good")
    maker.close()
    again = Maker(shelf, 20.0, worker=FAKE)
    again.resume(shelf.facts("loans-1-drift-1"))
    assert ended(again).state == "made"


# -- how it is served ----------------------------------------------------------------------------------------------------


def test_reports_ask_for_the_token_where_there_is_one(client):
    for path in ("/reports", "/reports/loans-1-drift-1", "/reports/loans-1-drift-1/evidently"):
        answer = client.get(path, auth=("anybody", "wrong-wrong-wrong-"))
        assert (answer.status_code, answer.headers["www-authenticate"][:5]) == (401, "Basic")


def test_a_known_alarm_without_files_is_told_from_what_the_service_knows(client):
    answer = client.get("/reports/loans-1-volume-2")
    assert answer.status_code == 200
    assert "No events for 12 panes" in answer.text
    assert "There is none" in answer.text


def test_a_report_that_is_being_made_says_so_and_looks_again(client, shelf):
    shelf.put(facts(state="waiting"))
    answer = client.get("/reports/loans-1-drift-1")
    assert "It is being made" in answer.text
    assert 'http-equiv="refresh"' in answer.text
    shelf.put(facts(state="failed", why="it took too long"))
    answer = client.get("/reports/loans-1-drift-1")
    assert "It could not be made: it took too long" in answer.text
    assert "refresh" not in answer.text


def test_a_made_report_shows_evidentlys_document_in_a_frame_that_reaches_nobody(client, shelf):
    shelf.put(facts(state="made"))
    shelf.path("loans-1-drift-1", ".html").write_text("<p>theirs</p>")
    own = client.get("/reports/loans-1-drift-1")
    assert 'sandbox="allow-scripts"' in own.text
    assert 'src="/reports/loans-1-drift-1/evidently"' in own.text
    assert "script-src" not in own.headers["content-security-policy"]
    theirs = client.get("/reports/loans-1-drift-1/evidently")
    policy = theirs.headers["content-security-policy"]
    assert theirs.text == "<p>theirs</p>"
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert policy.endswith("sandbox allow-scripts")
    assert "http" not in policy.replace("http-equiv", "")
    assert theirs.headers["x-frame-options"] == "SAMEORIGIN"


def test_a_report_whose_file_is_gone_is_still_a_page(client, shelf):
    shelf.put(facts(state="made"))
    assert "its file is gone" in client.get("/reports/loans-1-drift-1").text
    assert client.get("/reports/loans-1-drift-1/evidently").status_code == 404


def test_a_document_that_belongs_to_no_kept_report_is_not_served(client, shelf):
    shelf.folder.mkdir()
    shelf.path("loans-1-drift-1", ".html").write_text("<p>whose?</p>")
    assert client.get("/reports/loans-1-drift-1/evidently").status_code == 404


def test_the_latest_report_of_a_kind_is_found_without_its_number(client, shelf):
    for episode in (2, 10, 9):
        shelf.put(facts(episode))
    answer = client.get("/reports/loans-1-drift-latest")
    assert (answer.status_code, answer.headers["location"]) == (302, "/reports/loans-1-drift-10")
    assert client.get("/reports/nobody-1-drift-latest").status_code == 404


@pytest.mark.parametrize("path", [
    "/reports/loans-1-drift-77", "/reports/..%2F..%2Fetc%2Fpasswd", "/reports/%2e%2e/%2e%2e/etc/passwd",
    "/reports/x%00-1-drift-1", "/reports/%2Fetc%2Fpasswd/evidently", "/reports/loans-1-drift-1%0a/evidently",
    "/reports/evidently"])
def test_what_is_no_report_is_not_found_whatever_lies_beside_the_folder(client, shelf, path):
    shelf.folder.mkdir()
    (shelf.folder.parent / "secret-1-drift-1.html").write_text("secret")
    answer = client.get(path)
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_an_unknown_report_is_answered_with_those_that_there_are(client):
    answer = client.get("/reports/loans-1-drift-77")
    assert "/reports/loans-1-drift-1" in answer.text
    assert "reports.keep" in answer.text


def test_the_list_names_every_report_newest_first(client, shelf):
    later = alarm(episode=5, at=9e8)
    shelf.put(Facts(report_name(later), later, (later,)))
    text = client.get("/reports").text
    assert text.index("loans-1-drift-5") < text.index("loans-1-drift-1")


def test_a_plain_name_stays_a_plain_file_name():
    assert file_stem("loans-1.2_b-wrong_type-12") == "loans-1.2_b-wrong_type-12"
