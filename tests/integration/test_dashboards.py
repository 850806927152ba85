"""The dashboards against what they meet in the world: a real Prometheus that watched a real run, and Grafana's own types.

The run has everything that a dashboard tells of: traffic with refused and late events, a drift, an alarm, a launch by the
local launcher, a verdict, a promotion, quiet again, and further detectors. Every query of every panel must parse and
return data somewhere in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml

from monitor.config import parse
from monitor.expose.api import Server, application
from monitor.flow import Batch
from monitor.ingest.source import MemorySource, records
from monitor.service import build
from tests.conftest import Process, free_port, missing, wait_until
from tests.crash import world
from tests.golden.test_dashboards import BOARDS, panels

_OPEN = build_opener(ProxyHandler({})).open
_STEP = 1
_CONFIG = """
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
  - job_name: tidemark
    static_configs: [{targets: ["127.0.0.1:PORT"]}]
"""
#: Queries that have no data in this run, and why: (dashboard, panel id, query).
EMPTY: dict[tuple[str, int, str], str] = {("service", 36, "A"): "this run sends its alerts to no Alertmanager itself"}
#: What Grafana puts in the place of its variables: all of everything, the columns and models of the run.
VARIABLES = {"job": ".+", "version": ".+", "segment": ".+", "detector": "cusum|psi|js|tv|ks|wasserstein|chi2", "column": "x",
             "__rate_interval": "5s", "__interval": "1s", "__range": "120s"}


def filled(expr, *, several):
    """The expression as Grafana sends it."""
    values = VARIABLES | {"model": ".+" if several else "m"}
    return re.sub(r"\$(\w+)", lambda found: values.get(found[1], found[0]), expr)


QUERIES = {(name, panel["id"], target["refId"]): filled(target["expr"], several=name != "model")
           for name, board in BOARDS.items() for panel in panels(board) for target in panel["targets"]}
ANNOTATIONS = {(name, one["name"]): filled(one["target"]["expr"], several=name != "model")
               for name, board in BOARDS.items() for one in board["annotations"]["list"] if "expr" in one["target"]}


class Paced(MemorySource):
    """Batches a few panes long, each after a while; then nothing new until `done`, as a topic that has gone silent."""

    def __init__(self, items, done, seconds):
        super().__init__(items)
        self.done, self.pause, self.seconds = done, threading.Event(), seconds

    def __iter__(self):
        for batch in super().__iter__():
            if batch.ended:
                while not self.done():
                    self.pause.wait(0.05)
                    yield Batch(assigned=self._assigned, caught_up=self._assigned)
            else:
                self.pause.wait(self.seconds)
            yield batch


class Run:
    """The service in a thread, with its HTTP server."""

    def __init__(self, folder):
        self.folder, self.over, self.stages, self.server, self.error = folder, threading.Event(), None, None, None
        tree = yaml.safe_load(world.configuration(folder, "127.0.0.1:1", "t", promote=True).read_text())
        del tree["kafka"]
        tree["files"] = {"paths": [str(folder / "unused.jsonl")]}
        tree["reports"] = {}
        tree.setdefault("limits", {})["memory_mb"] = 4_096              # reports and a detector on torch
        monitor = tree["monitors"][0]
        monitor["retrain"]["promote"]["settle_seconds"] = 0
        monitor["retrain"]["persist_panes"] = 12                        # the launch is waited for, and that is shown
        world.reference(folder / "second.json", "second")               # of one that is trained on GPUs, which are counted
        tree["monitors"].append(monitor | {"model": "second", "reference": str(folder / "second.json"), "retrain": {
            "launcher": {"type": "webhook", "url": "http://127.0.0.1:9", "gpus": 2}, "gpu_hours_per_week": 24, "above": 5,
            "capture_uri": str(folder / "captured")}})
        monitor["detectors"] = [
            {"name": "psi", "columns": ["x"], "threshold": 0.2, "window_panes": 4},
            {"name": "cusum", "columns": ["x", "error"], "options": {"mean": 0.05, "sd": 0.22}},
            {"name": "c2st", "columns": ["x"], "sample_rows": 50}]
        self.config = parse(yaml.safe_dump(tree))
        self.thread = threading.Thread(target=self._work, daemon=True)

    def _batches(self):
        parts = world.messages()
        for part in range(12):                      # five panes each
            cut = {name: (len(lines) * part // 12, len(lines) * (part + 1) // 12) for name, lines in parts.items()}
            yield Batch(parts=tuple(records("t", name, parts[name][low:high], first_offset=low)
                                    for name, (low, high) in cut.items()))

    def _work(self):
        try:
            self.stages = build(self.config, source=Paced(self._batches(), self.over.is_set, 1.0))
            try:
                self.stages.run()
            finally:
                self.stages.close()
        except BaseException as error:              # told by the fixture, in the test's own thread
            self.error = error

    def start(self):
        self.thread.start()
        wait_until(lambda: self.stages or self.error, what="the service being built")
        assert self.error is None, self.error
        self.server = Server(application(self.stages.exporter), "127.0.0.1", 0)
        self.server.start()

    def launches(self):
        assert self.error is None, self.error
        return self.stages.exporter.published.service.launches

    def stop(self):
        self.over.set()
        self.thread.join(30)
        if self.server is not None:
            self.server.stop()


class Prometheus:
    """Asks the server over its whole, short life."""

    def __init__(self, port):
        self.base = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path, **values):
        try:
            with _OPEN(f"{self.base}/{path}?{urlencode(values)}", timeout=30) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            raise AssertionError(json.load(error)["error"]) from None

    def is_ready(self):
        """It listens before it answers."""
        try:
            with _OPEN(self.base.replace("/api/v1", "/-/ready"), timeout=30):
                return True
        except OSError:
            return False

    def over_time(self, expr):
        """The result of a range query over everything that was scraped."""
        [(_, now)] = [self.get("query", query="time()")["result"]]
        result = self.get("query_range", query=expr, start=float(now) - 120, end=now, step=_STEP)["result"]
        return [one for one in result if any(value not in ("NaN",) for _, value in one["values"])]


@pytest.fixture(scope="module")
def prometheus(prometheus_binary, tmp_path_factory):
    """A Prometheus that watched the whole run."""
    folder = tmp_path_factory.mktemp("dashboards")
    run, port = Run(folder), free_port()
    run.start()
    (folder / "prometheus.yml").write_text(_CONFIG.replace("PORT", str(run.server.port)))
    process = Process([prometheus_binary, f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address=127.0.0.1:{port}",
                       f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"], folder / "prometheus.log")
    try:
        process.wait_port(port)
        server = Prometheus(port)
        wait_until(server.is_ready, what="Prometheus being ready")
        wait_until(lambda: any(launch.state == "promoted" for launch in run.launches()), 90, "a promotion")
        wait_until(lambda: server.get("query", query='tidemark_launches_total{outcome="promoted"} == 1')["result"], 30,
                   "the promotion being scraped")
        wait_until(lambda: server.get("query", query='tidemark_reference_info{version!="1"}')["result"], 60, "the new reference")
        wait_until(lambda: server.get("query", query="tidemark_report_seconds_count > 0")["result"], 120, "a report")
        yield server
    finally:
        run.stop()
        process.stop()


@pytest.mark.timeout(240)
def test_every_query_of_every_panel_parses_and_has_data_in_a_real_run(prometheus):
    without = {query for query, expr in QUERIES.items() if not prometheus.over_time(expr)}
    assert without == set(EMPTY)


def test_every_annotation_marks_something_in_a_real_run(prometheus):
    marked = {name for name, expr in ANNOTATIONS.items()
              if any(float(value) > 0 for one in prometheus.over_time(expr) for _, value in one["values"])}
    assert set(ANNOTATIONS) - marked == {("service", "Start")}         # it started before the first scrape


def test_the_panels_tell_the_story_of_the_run(prometheus):
    def values(name, panel, ref="A"):
        return {tuple(sorted(one["metric"].items())): [float(value) for _, value in one["values"]]
                for one in prometheus.over_time(QUERIES[name, panel, ref])}

    state = values("retraining", 11)
    assert {5.0} < set(state[("model", "m"), ("segment", "all"), ("version", "1")])      # it was in drift, and before that not
    launch = next(iter(values("retraining", 11, "B").values()))
    assert launch == sorted(launch)
    assert launch[-1] == 18.0                       # promoted
    assert {dict(labels)["version"] for labels in values("retraining", 11, "C")} == {"1", "1.new"}
    scores = {dict(labels)["column"]: max(found) for labels, found in values("model", 12).items()}
    assert scores["x"] > 1 > scores["c"]
    assert sum(found[-1] for found in values("model", 21, "A").values()) == pytest.approx(1.0)
    assert max(values("fleet", 3)[()]) == 1.0
    assert {dict(labels)["report"] for labels in values("model", 9)} >= {"m-1-drift", "m-1-wrong_type"}


# ---- Grafana's own types ----------------------------------------------------------------------------------------------

_SCHEMAS = {"11": "11.6.16", "12": "12.4.11"}
_TYPESCRIPT = "5.9.3"
#: Panel type -> folder and prefix of the module of its options.
_PANEL_TYPES = {"barchart": "BarChart", "gauge": "Gauge", "stat": "Stat", "state-timeline": "StateTimeline",
                "status-history": "StatusHistory", "table": "Table", "timeseries": "TimeSeries"}
_PRELUDE = """
// An enum's member is written in JSON as its value.
type Json<T> = unknown extends T ? unknown : T extends string ? `${T}` : T extends number | boolean | null | undefined ? T
  : T extends object ? { [K in keyof T]: Json<T[K]> } : never;
// The published types know a query in general; these are the fields of Prometheus' and of Grafana's own, as their plugins have
// them, and what Prometheus adds to an annotation.
type Query = DataQuery & { expr: string; format: "time_series" | "table"; instant: boolean; range: boolean;
  legendFormat?: string };
type Tagged = { type: "tags"; tags: string[]; matchAny: boolean; limit: number };
type Marks = DataQuery & ({ expr: string; interval: string } | Tagged);
type Annotation = Omit<AnnotationQuery, "target"> & { target: Marks; titleFormat?: string; textFormat?: string; expr?: string;
  step?: string };
type Board = Omit<Dashboard, "annotations"> & { annotations: { list: Annotation[] } };
"""


def typescript(name, board):
    """A program that only compiles if the dashboard is what the types of that Grafana say, field by field."""
    kinds = sorted({panel["type"] for panel in panels(board)})
    lines = ['import type { AnnotationQuery, Dashboard, DataQuery, Panel, RowPanel } from "@grafana/schema";']
    for kind in kinds:
        path = f"raw/{kind.replace('-', '')}/panelcfg/x/{_PANEL_TYPES[kind]}PanelCfg_types.gen"
        lines.append(f'import type * as {_PANEL_TYPES[kind]} from "{path}";')
    lines.append(_PRELUDE)
    lines.append(f"export const board: Json<Board> = {json.dumps(board)};")
    for panel in board["panels"]:
        here = f"{name}_{panel['id']}"
        kind = panel["type"]
        lines.append(f"const {here}: Json<{'RowPanel' if kind == 'row' else 'Panel'}> = {json.dumps(panel)};")
        if kind == "row":
            continue
        lines.append(f"const {here}_options: Partial<Json<{_PANEL_TYPES[kind]}.Options>> = {json.dumps(panel['options'])};")
        custom = panel["fieldConfig"]["defaults"].get("custom", {})
        if custom:
            lines.append(f"const {here}_custom: Partial<Json<{_PANEL_TYPES[kind]}.FieldConfig>> = {json.dumps(custom)};")
        lines.append(f"const {here}_targets: Json<Query>[] = {json.dumps(panel['targets'])};")
    return "\n".join([*lines, ""])


def types_of(major):
    """A folder with a TypeScript compiler and the types of that Grafana, kept from run to run."""
    cache = Path(os.environ.get("TIDEMARK_CACHE") or Path.home() / ".cache" / "tidemark")
    folder = cache / f"grafana-schema-{_SCHEMAS[major]}-typescript-{_TYPESCRIPT}"
    lack = "the dashboards are not checked against Grafana's types"
    if not (shutil.which("node") and shutil.which("npm")):
        missing("npm", f"no `node` and `npm` on PATH: {lack}")
    if not (folder / ".done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": {
            "@grafana/schema": _SCHEMAS[major], "typescript": _TYPESCRIPT}}))
        made = subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=folder,
                              capture_output=True, text=True, timeout=240, check=False)
        if made.returncode:
            missing("npm", f"npm could not fetch @grafana/schema: {lack}: {made.stderr.strip()[-200:]}")
        (folder / ".done").touch()
    return folder / "node_modules"


def complaints(work, major, boards):
    """What the compiler says of these dashboards; empty if their types are right."""
    modules = types_of(major)
    work.mkdir(parents=True, exist_ok=True)
    (work / "node_modules").symlink_to(modules)
    for name, board in boards.items():
        (work / f"{name}.ts").write_text(typescript(name, board), encoding="utf-8")
    (work / "tsconfig.json").write_text(json.dumps({"compilerOptions": {
        "strict": True, "noEmit": True, "skipLibCheck": True, "target": "es2022", "module": "esnext",
        "moduleResolution": "bundler", "types": [],
        "paths": {"raw/*": ["./node_modules/@grafana/schema/dist/esm/raw/composable/*"]}}, "include": ["*.ts"]}))
    ended = subprocess.run(["node", str(modules / "typescript" / "bin" / "tsc"), "-p", str(work)], cwd=work,
                           capture_output=True, text=True, timeout=240, check=False)
    return ended.stdout + ended.stderr


@pytest.mark.parametrize("major", _SCHEMAS)
def test_grafanas_own_types_accept_every_dashboard(tmp_path, major):
    assert complaints(tmp_path / "work", major, BOARDS) == ""


def test_the_type_check_sees_an_unknown_field_and_a_wrong_value(tmp_path):
    board, another = json.loads(json.dumps([BOARDS["fleet"], BOARDS["service"]]))
    one, other = [panel for panel in panels(board) if panel["type"] == "stat"][:2]
    one["options"]["colourMode"] = "value"
    other["options"]["graphMode"] = "hills"
    another["templating"]["list"][1]["refresh"] = "often"
    board["annotations"]["list"][0]["target"]["stride"] = "60s"
    said = complaints(tmp_path / "work", "12", {"fleet": board, "service": another})
    assert [word for word in ("colourMode", "hills", "VariableRefresh", "stride") if word not in said] == []
