"""What the tests of alerts share: a stream that is fed, a receiver of messages, a real Alertmanager with the shipped routes."""

from __future__ import annotations

import json
import queue
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detectors.reference import Column, Reference
from monitor.config import parse
from monitor.flow import Batch
from monitor.ingest.source import MemorySource, records
from tests.conftest import Process, free_port, missing

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COLUMNS = (Column("income", "numeric", "input"), Column("age", "numeric", "input"), Column("grade", "category", "prediction"))
TOPIC, PER_PANE = "loans.inference", 200


class Feed(MemorySource):
    """A source that a test feeds while the service reads it; an empty batch five times a second, as a quiet broker gives."""

    def __init__(self) -> None:
        super().__init__([])
        self.fed: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self.rng, self.pane, self.offset = np.random.default_rng(5), 0, 0
        self.start_ms = int(time.time()) * 1000 - 3_600_000

    def __iter__(self):
        while True:
            try:
                batch = self.fed.get(timeout=0.2)
            except queue.Empty:
                batch = Batch(assigned=frozenset({(TOPIC, 0)}))
            if batch is None:
                return
            yield batch

    def panes(self, count: int, shift: float) -> None:
        """Feed so many panes of events; income is so many standard deviations higher."""
        events, times = [], []
        for pane in range(self.pane, self.pane + count):
            for place, row in enumerate(rows(self.rng, PER_PANE, shift)):
                times.append(self.start_ms + pane * 1000 + place)
                events.append(json.dumps(row).encode())
        self.pane += count
        self.fed.put(Batch(parts=(records(TOPIC, 0, events, first_offset=self.offset, times=times),),
                           assigned=frozenset({(TOPIC, 0)})))
        self.offset += len(events)


def rows(rng, count, shift):
    income, age = rng.normal(shift, 1, count), rng.normal(0, 1, count)
    grade = rng.choice(["a", "b"], count)
    return [{"income": float(i), "age": float(a), "grade": str(g)} for i, a, g in zip(income, age, grade, strict=True)]


def watching(folder, retrain=None, **sections):
    """A configuration of one model whose panes are a second, with its reference beside it."""
    made = rows(np.random.default_rng(1), 5_000, 0.0)
    columns = {column.name: [row[column.name] for row in made] for column in COLUMNS}
    Reference.fit(columns, COLUMNS, model="loans", version="7").save(folder / "reference.json")
    return parse(yaml.safe_dump({
        "service": {"dead_letters": "none", "checkpoint_seconds": 0.1}, "files": {"paths": ["unread"]},
        "monitors": [{"model": "loans", "topic": TOPIC, "reference": str(folder / "reference.json"),
                      "pane": {"seconds": 1, "lateness_seconds": 0},
                      "quality": {"silent_panes": None, "volume_factor": None}, **({"retrain": retrain} if retrain else {})}],
        **sections}))


class Receiver:
    """Notes every message that Alertmanager posts: when, to which receiver, with which token, its alerts."""

    def __init__(self) -> None:
        self.messages: list[tuple[float, str, str | None, dict]] = []
        noted = self.messages

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                noted.append((time.monotonic(), self.path.strip("/"), self.headers["Authorization"], body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args):
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def routes(self):
        """Receiver of deploy/alertmanager -> address here."""
        return {name: f"http://127.0.0.1:{self.port}/{name}" for name in ("tidemark-now", "tidemark-day", "tidemark-trigger")}

    def alerts(self, receiver, name, status):
        """(when, token, alert) of the messages of one alert to one receiver."""
        return [(at, token, alert) for at, path, token, body in list(self.messages) if path == receiver
                for alert in body["alerts"] if (alert["labels"]["alertname"], alert["status"]) == (name, status)]


def shipped_alertmanager(folder, routes: dict[str, Any], token: str, *flags: str, port: int | None = None,
                         repeat: str = "1d") -> tuple[Process, int]:
    """A real Alertmanager with the shipped routes and inhibitions, made quick; its process and port.

    routes : receiver of deploy/alertmanager -> where it posts; the trigger's with the token; others hear nothing
    repeat : how often it repeats an alert to the trigger
    """
    binary = shutil.which("prometheus-alertmanager") or missing(
        "alertmanager", "no `prometheus-alertmanager` on PATH; run tests/setup_components.sh")
    shipped = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text())
    (folder / "token").write_text(token)
    shipped |= {"global": {}, "templates": [str(DEPLOY / "alertmanager" / "templates" / "*.tmpl")]}
    for route in (shipped["route"]["routes"][0], *shipped["route"]["routes"][0]["routes"]):
        route |= {"group_wait": "0s", "group_interval": "1s"}
        if route["receiver"] == "tidemark-trigger":
            route["repeat_interval"] = repeat
    for place, one in enumerate(shipped["receivers"]):
        is_trigger = one["name"] == "tidemark-trigger"
        http = {"authorization": {"type": "Bearer", "credentials_file": str(folder / "token")}} if is_trigger else {}
        told = one["name"] in routes
        shipped["receivers"][place] = {"name": one["name"], **({"webhook_configs": [
            {"url": routes[one["name"]], "send_resolved": not is_trigger, "http_config": http}]} if told else {})}
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(shipped))
    port = port or free_port()
    process = Process([binary, f"--config.file={folder / 'alertmanager.yml'}", f"--web.listen-address=127.0.0.1:{port}",
                       "--cluster.listen-address=", f"--storage.path={folder / 'alertmanager'}", "--log.level=warn", *flags],
                      folder / "alertmanager.log")
    process.wait_port(port)
    return process, port
