"""A real Prometheus scrapes a real exporter over HTTP, and finds again what was decided."""

from __future__ import annotations

import json
import subprocess
import time
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest

from detectors.comparison import display
from monitor.expose.api import Server, application
from monitor.expose.exporter import Exporter
from monitor.flow import Reading
from tests.catalogue import differences
from tests.conftest import Process, free_port, wait_until
from tests.unit.expose.shown import POSTS, World, alarm, snapshot, status

_CONFIG = """
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
  - job_name: tidemark
    static_configs: [{targets: ["127.0.0.1:PORT"]}]
"""
_OPEN = build_opener(ProxyHandler({})).open


def show_with_distances(world, exporter, shift):
    evaluation = world.evaluation(shift, state="warning")
    profile = evaluation.window.profile
    distances = display(world.reference, profile.counts, profile.events)
    exporter.show(evaluation, world.reference, distances, (profile.counts, profile.events), seconds=0.003)
    return evaluation


@pytest.fixture
def service():
    """A running server and its exporter, in which everything has happened once."""
    exporter, world = Exporter(10_000), World(6)
    show_with_distances(world, exporter, shift=1.0)
    exporter.observe(("loans", "1", "all"), [Reading("hellinger", "city", "prediction", 0, 60.0, 0.3, True, 0.2, 0.1, 0.2)])
    exporter.alert_posts = lambda: POSTS
    exporter.reported("loans", 14.0)
    exporter.service(snapshot(status(skipped={"mmd": 1}, failed={"mmd": 0})))
    server = Server(application(exporter), "127.0.0.1", 0)
    server.start()
    yield server, exporter, world
    server.stop()


@pytest.fixture
def prometheus(prometheus_binary, service, tmp_path):
    """A function that asks a Prometheus which scrapes the service, and keeps exemplars: (path, parameters) -> data."""
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(_CONFIG.replace("PORT", str(service[0].port)))
    process = Process([
        prometheus_binary, f"--config.file={tmp_path / 'prometheus.yml'}", f"--web.listen-address=127.0.0.1:{port}",
        f"--storage.tsdb.path={tmp_path / 'data'}", "--log.level=warn",
        "--enable-feature=exemplar-storage"], tmp_path / "prometheus.log")
    process.wait_port(port)
    wait_until(lambda: answers(f"http://127.0.0.1:{port}/-/ready"), what="Prometheus being ready")

    def ask(path, **parameters):
        with _OPEN(f"http://127.0.0.1:{port}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    yield ask
    process.stop()


@pytest.fixture
def query(prometheus):
    """A function that asks it now: expression -> [(labels, value)]."""
    return lambda expression: [(series["metric"], float(series["value"][1]))
                               for series in prometheus("query", query=expression)["result"]]


@pytest.fixture
def exemplars(prometheus):
    """A function that asks it for the exemplars of all time: name -> series with theirs."""
    return lambda name: prometheus("query_exemplars", query=name, start=0, end=time.time() + 60)


def answers(url: str) -> bool:
    try:
        with _OPEN(url, timeout=10):
            return True
    except OSError:                                 # it starts
        return False


def scrape(server) -> str:
    with _OPEN(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_prometheus_finds_every_series_with_its_value(service, query):
    server, exporter, world = service
    wait_until(lambda: query("tidemark_state == 1"), what="a first scrape")
    assert query("up") == [({"__name__": "up", "instance": f"127.0.0.1:{server.port}", "job": "tidemark"}, 1.0)]
    [(labels, score)] = query('topk(1, tidemark_score{detector="scan"})')
    assert (labels["column"], labels["role"], labels["model"]) == ("column_0", "input", "loans")
    assert score > 1
    [(_, shown)] = query("tidemark_series")
    [(_, stored)] = query('count({__name__=~"tidemark_.+"})')
    assert stored == shown
    show_with_distances(world, exporter, shift=3.0)
    exporter.service(snapshot())
    wait_until(lambda: query('tidemark_effect{column="column_0"} > 2'), what="the next value")


def test_prometheus_joins_thresholds_scores_and_events_as_rules_do(service, query):
    wait_until(lambda: query("tidemark_state == 1"), what="a first scrape")
    over = query('tidemark_score > on (model, version, segment, detector) group_left tidemark_threshold')
    assert {labels["column"] for labels, _ in over if not labels["column"].startswith("joint[")} == {"column_0", "city"}
    assert {labels["detector"] for labels, _ in over if labels["column"] == "city"} == {"hellinger"}
    [(_, events)] = query('sum(tidemark_events_total{outcome=~"counted|refused|lost"})')
    assert events == 902
    assert query("sum by (of) (tidemark_bin_share{column='column_0'})")[0][1] == pytest.approx(1.0)
    assert query("histogram_quantile(0.5, tidemark_evaluation_seconds_bucket)")[0][1] <= 0.01


def test_prometheus_keeps_the_exemplar_that_names_the_alarm(service, exemplars):
    """The counter's series leads to the alarm, and so to its report: alert -> series -> exemplar -> /reports/{alarm}."""
    _, exporter, _ = service
    wait_until(lambda: exemplars("tidemark_alarms_total"), what="a first exemplar")
    (found,) = [one for one in exemplars("tidemark_alarms_total") if one["seriesLabels"]["state"] == "raised"]
    assert found["exemplars"][0]["labels"] == {"alarm": "loans-1-drift-1"}
    (launched,) = exemplars("tidemark_launches_total")
    assert launched["exemplars"][0]["labels"] == {"launch": "0123456789ab"}
    later = alarm(episode=7, at=time.time())
    exporter.service(snapshot(status(), alarms=(later,), alarm_counts={("loans", "1", "all", "drift", "raised"): 2}))
    wait_until(lambda: any(one["labels"] == {"alarm": "loans-1-drift-7"}
                           for series in exemplars("tidemark_alarms_total") for one in series["exemplars"]),
               what="the next exemplar")


def test_promtool_finds_nothing_to_complain_about(service, promtool_binary):
    checked = subprocess.run([promtool_binary, "check", "metrics"], input=scrape(service[0]), text=True, check=False,
                             capture_output=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_a_scrape_over_http_equals_the_catalogue_both_ways(service):
    assert differences(scrape(service[0]), complete=True) == []
