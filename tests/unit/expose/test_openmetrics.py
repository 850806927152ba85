"""`/metrics` in OpenMetrics: the same series as the plain text, and what each counter counted last."""

from __future__ import annotations

import re

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from monitor import metrics
from monitor.expose.api import Server, application
from monitor.expose.exporter import Exporter
from monitor.expose.exposition import CONTENT_TYPE, OPENMETRICS, Exemplar, Page, openmetrics_head, wants_openmetrics
from tests.unit.expose.shown import World, alarm, launch, snapshot

#: What Prometheus 2 and 3 ask for, to the letter.
PROMETHEUS_2 = ("application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
                "text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
PROMETHEUS_3 = ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
                "application/openmetrics-text;version=0.0.1;q=0.5,"
                "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2")


def shown(**options) -> Exporter:
    exporter, world = Exporter(10_000), World(4)
    world.show(exporter, 1.0)
    exporter.reported("loans", 12.0)
    exporter.service(snapshot(**options))
    return exporter


def samples(families):
    return {(sample.name, frozenset(sample.labels.items())): sample for family in families for sample in family.samples}


def test_both_formats_show_the_same_series_with_the_same_values():
    exporter = shown()
    plain = samples(text_string_to_metric_families(exporter.scrape().decode()))
    other = samples(openmetrics_families(exporter.scrape(as_openmetrics=True).decode()))
    ours = [key for key in plain if key[0].startswith("tidemark_")]
    assert [key for key in other if key[0].startswith("tidemark_")] == ours
    assert [repr(other[key].value) for key in ours] == [repr(plain[key].value) for key in ours]
    assert {key[0] for key in plain} == {key[0] for key in other}


def test_an_alarm_counter_names_its_latest_alarm_and_a_launch_counter_its_latest_launch():
    exporter = shown(alarms=(alarm(), alarm(episode=2, at=120.5), alarm(episode=2, at=130.0, state="cleared"),
                             alarm(episode=3, kind="quality", cause="volume", at=140.0)),
                     alarm_counts={("loans", "1", "all", "drift", "raised"): 2})
    found = {(key[0], *(dict(key[1]).get(name, "") for name in ("kind", "state", "outcome"))): sample.exemplar
             for key, sample in samples(openmetrics_families(exporter.scrape(as_openmetrics=True).decode())).items()
             if sample.exemplar is not None}
    assert {key: (exemplar.labels, float(exemplar.timestamp)) for key, exemplar in found.items()} == {
        ("tidemark_alarms_total", "drift", "raised", ""): ({"alarm": "loans-1-drift-2"}, 120.5),
        ("tidemark_alarms_total", "drift", "cleared", ""): ({"alarm": "loans-1-drift-2"}, 130.0),
        ("tidemark_alarms_total", "quality", "raised", ""): ({"alarm": "loans-1-volume-3"}, 140.0),
        ("tidemark_launches_total", "", "", "promoted"): ({"launch": "0123456789ab"}, 1.0)}


def test_the_plain_text_has_no_exemplars():
    assert not re.search(rb"\} [^\n]* # ", shown().scrape())


def test_the_document_ends_once_and_every_family_has_its_openmetrics_type():
    text = shown(launches=(launch(),)).scrape(as_openmetrics=True).decode()
    assert text.count("# EOF") == 1
    assert text.endswith("# EOF\n")
    types = dict(re.findall(r"^# TYPE (tidemark_\S+) (\S+)$", text, re.MULTILINE))
    assert types == {
        metric.name.removesuffix({"counter": "_total", "info": "_info"}.get(metric.kind, "")): metric.kind
        for metric in metrics.CATALOGUE.values()}


@pytest.mark.parametrize(("exemplar", "text"), [
    (Exemplar("alarm", 'a"b\\c\n', 1.5), ' # {alarm="a\\"b\\\\c\\n"} 1.0 1.5'),
    (Exemplar("alarm", "x" * 123, 1.0), f' # {{alarm="{"x" * 123}"}} 1.0 1.0'),
    (Exemplar("alarm", "x" * 124, 1.0), ""),
    (Exemplar("alarm", "a", 0.0), ' # {alarm="a"} 1.0'),
    (Exemplar("alarm", "a", float("inf")), ' # {alarm="a"} 1.0'),
    (Exemplar("alarm", "a", float("nan")), ' # {alarm="a"} 1.0'),
    (Exemplar("alarm", "\ud800", 1.0), ' # {alarm="?"} 1.0 1.0')])
def test_an_exemplar_is_as_the_specification_has_it_or_not_there(exemplar, text):
    assert exemplar.text() == text


def test_parts_of_a_family_that_come_one_by_one_keep_their_exemplars():
    page = Page()
    for outcome in ("promoted", "failed"):
        page.put(metrics.LAUNCHES, [(("m", "local", outcome), 1)], {("m", "local", "failed"): Exemplar("launch", "ab", 2.0)})
    lines = page.finished().told[metrics.LAUNCHES.name].decode().splitlines()
    assert [line.partition(" # ")[2] for line in lines] == ["", '{launch="ab"} 1.0 2.0']


def test_a_help_text_is_escaped_as_openmetrics_has_it():
    from dataclasses import replace

    assert openmetrics_head(replace(metrics.READY, help='a "b"\n\\')) == (
        '# TYPE tidemark_ready gauge\n# HELP tidemark_ready a \\"b\\"\\n\\\\\n')


@pytest.mark.parametrize(("accept", "asked"), [
    (PROMETHEUS_2, True), (PROMETHEUS_3, True), ("", False), ("*/*", False), ("text/plain", False),
    ("text/html,*/*;q=0.8", False),
    ("application/openmetrics-text", True), ("application/openmetrics-text; version=0.0.1", True),
    ("application/openmetrics-text;version=2.0.0", False), ("application/openmetrics-text;q=0", False),
    ("APPLICATION/OpenMetrics-Text ; Q=0.5", True), ("application/openmetrics-text;q=bad", False),
    ("application/openmetrics-text;q=0.3,text/plain;q=0.4", False), ("application/openmetrics-text;q=nan", False),
    (";;,,=;q", False)])
def test_openmetrics_is_answered_to_whoever_asks_for_it_and_to_nobody_else(accept, asked):
    assert wants_openmetrics(accept) is asked


def test_the_format_is_negotiated_over_http():
    exporter = shown()
    server = Server(application(exporter), "127.0.0.1", 0)
    server.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
            plain, other = client.get("/metrics"), client.get("/metrics", headers={"accept": PROMETHEUS_2})
    finally:
        server.stop()
    assert (plain.headers["content-type"], other.headers["content-type"]) == (CONTENT_TYPE, OPENMETRICS)
    for answer in (plain, other):
        assert "accept" in [word.strip() for word in answer.headers["vary"].lower().split(",")]
    assert "# EOF" not in plain.text
    assert 'alarm="loans-1-drift-1"' in other.text
