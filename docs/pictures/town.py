"""The run behind the pictures: five models of a bank, watched for real while the world changes around them.

`loans` drifts, is retrained by examples/sklearn_trainer, beats its champion and is quiet again; `delivery` drifts by too
little for a retraining; `churn` loses a column to a broken producer; `pricing` has too few events to be judged; `fraud`
is quiet. Everything is a function of the seed and of the second: a pane is a second of event time, and `pace` says how
long one takes here. The service is the one of `tidemark run`, fed from memory; its launcher, trainer, state and HTTP
server are real.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detectors.reference import Column, Reference
from monitor.config import parse
from monitor.expose.api import Server, application
from monitor.expose.exporter import Exporter
from monitor.expose.page.routes import routes
from monitor.flow import Batch
from monitor.ingest.source import MemorySource, records
from monitor.service import build

ROOT = Path(__file__).resolve().parents[2]
TRAINER = ROOT / "examples" / "sklearn_trainer" / "train.py"
SEED = 5
#: Events a second of each model.
RATES = {"loans": 400, "delivery": 250, "churn": 200, "fraud": 300, "pricing": 1}
#: Seconds from the start at which the world of a model changes.
CHANGES = {"loans": 45, "delivery": 6, "churn": 40}
REFERENCE_EVENTS = 12_000
#: Seconds after the promotion: the new reference judges, and is quiet.
AFTERWARDS = 30
_LABEL = {"loans": "repaid"}

Values = dict[str, Any]


def loans(rng: np.random.Generator, n: int, changed: bool) -> Values:
    """Applications; after a rise of the interest rate others apply, by other ways, and repay for other reasons."""
    age = rng.gamma(9, 4.6, n).clip(18, 90)
    income = rng.lognormal(3.55 - 0.16 * changed, 0.42, n)
    rate = rng.normal(4.1 + 1.1 * changed, 0.85, n).clip(0.5, 14)
    amount = rng.lognormal(2.6, 0.55, n)
    ratio = (amount * (1 + rate / 12) / income).clip(0.02, 4)
    channel = rng.choice(["branch", "web", "app", "broker"], n, p=[.2, .3, .25, .25] if changed else [.34, .36, .18, .12])
    region = rng.choice(["north", "east", "south", "west", "abroad"], n, p=[.24, .22, .28, .2, .06])
    burden = 1.5 * ratio + (0.55 * (rate - 4.1) if not changed else -0.3 * (rate - 5.2)) - 0.012 * (age - 40)
    burden = burden + np.where(channel == "broker", 0.9 if changed else -0.2, 0.0)
    repaid = np.where(rng.logistic(0, 0.35, n) + 1.0 > burden, "yes", "no")
    return {"age": age, "income": income, "amount": amount, "rate": rate, "debt_ratio": ratio, "channel": channel,
            "region": region, "term_months": rng.choice([12.0, 24.0, 36.0, 60.0, 84.0], n), "repaid": repaid}


def delivery(rng: np.random.Generator, n: int, changed: bool) -> Values:
    """Parcels; after the change they go a little further."""
    distance = rng.gamma(2.4, 9.0, n) * (1.16 if changed else 1.0)
    return {"distance_km": distance, "weight_kg": rng.lognormal(0.6, 0.7, n), "stops": rng.poisson(14, n).astype(float),
            "weekday": rng.choice(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat"], n),
            "vehicle": rng.choice(["van", "bike"], n, p=[.8, .2]),
            "prediction": 30 + 1.4 * distance + rng.normal(0, 6, n)}


def churn(rng: np.random.Generator, n: int, changed: bool) -> Values:
    """Customers; after the change a producer forgets the tenure of every third."""
    tenure = rng.gamma(2.0, 14.0, n)
    tenure = np.where(rng.random(n) < (0.33 if changed else 0.0), np.nan, tenure)
    return {"tenure_months": tenure, "calls": rng.poisson(1.3, n).astype(float), "bill": rng.lognormal(3.3, 0.35, n),
            "plan": rng.choice(["basic", "plus", "family"], n, p=[.5, .35, .15]),
            "prediction": rng.choice(["stays", "leaves"], n, p=[.9, .1])}


def fraud(rng: np.random.Generator, n: int, changed: bool) -> Values:
    """Card payments."""
    return {"amount": rng.lognormal(3.1, 1.1, n), "hour": rng.integers(0, 24, n).astype(float),
            "distance_km": rng.exponential(7, n), "merchant": rng.choice(["grocery", "fuel", "travel", "online", "other"], n),
            "prediction": rng.beta(1.2, 30, n)}


def pricing(rng: np.random.Generator, n: int, changed: bool) -> Values:
    """Offers, of which there are few."""
    return {"margin": rng.normal(0.18, 0.05, n), "units": rng.poisson(60, n).astype(float), "prediction": rng.normal(12, 2, n)}


WORLDS = {"loans": loans, "delivery": delivery, "churn": churn, "fraud": fraud, "pricing": pricing}


class Town:
    """The models, their first references, and what they answer in a given second."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rng = folder, np.random.default_rng(SEED)
        spec = importlib.util.spec_from_file_location("sklearn_trainer", TRAINER)
        assert spec is not None
        assert spec.loader is not None
        self._trainer = importlib.util.module_from_spec(spec)
        sys.modules["sklearn_trainer"] = self._trainer
        spec.loader.exec_module(self._trainer)
        history = loans(self.rng, REFERENCE_EVENTS, False)
        self._inputs = [name for name in history if name != "repaid"]
        self._texts = [place for place, name in enumerate(self._inputs) if history[name].dtype.kind == "U"]
        self.model = self._trainer.train(self._matrix(history), history["repaid"].astype(object), self._texts)
        self.version = "7"
        for name in WORLDS:
            values = self.events(name, REFERENCE_EVENTS, changed=False)
            self.columns(name, values, folder / f"{name}.json")

    def _matrix(self, values: Values) -> Any:
        return np.column_stack([values[name].astype(object) for name in self._inputs])

    def events(self, name: str, n: int, *, changed: bool) -> Values:
        """Events of a model with its answers."""
        values = WORLDS[name](self.rng, n, changed)
        if name == "loans":
            values["prediction"] = self.model.predict(self._matrix(values)).astype(str)
        return values

    def columns(self, name: str, values: Values, path: Path) -> None:
        """The first reference."""
        watched = [column for column in values if column != _LABEL.get(name)]
        schema = [Column(column, "category" if values[column].dtype.kind == "U" else "numeric",
                         "prediction" if column == "prediction" else "input") for column in watched]
        version = self.version if name == "loans" else "3"
        Reference.fit({column: values[column].tolist() if values[column].dtype.kind == "U" else values[column]
                       for column in watched}, schema, model=name, version=version).save(path)

    def take_up(self) -> bool:
        """Answer by the promoted model from now on, if there is one; whether there is."""
        promoted = self.folder / "promoted.json"
        if self.version == "7" and promoted.exists():
            document = json.loads(promoted.read_text(encoding="utf-8"))
            self.model = pickle.loads((Path(document["model_uri"].removeprefix("file://"))).read_bytes())
            self.version = document["version"]
        return self.version != "7"

    def lines(self, name: str, second: int, at_ms: int) -> list[bytes]:
        """One second of a model's topic as JSON; now and then a record that cannot be read."""
        n = RATES[name]
        if n == 1 and second % 8:                   # an offer now and then
            return []
        values = self.events(name, n, changed=second >= CHANGES.get(name, 10**9))
        rows = zip(*(one.tolist() for one in values.values()), strict=True)
        found = []
        for place, row in enumerate(rows):
            event = {key: (None if value != value else value) if isinstance(value, float) else value
                     for key, value in zip(values, row, strict=True)}
            found.append(json.dumps({"id": f"{name}-{second}-{place}", "ts": at_ms + place * 1000 // n, **event}).encode())
        if second % 17 == 5 and n > 10:
            found[n // 2] = b'{"id": "broken", "ts": '
        return found


def configuration(folder: Path) -> Any:
    """As a user would write it."""
    monitors: list[dict[str, Any]] = []
    for name in WORLDS:
        monitor: dict[str, Any] = {
            "model": name, "topic": f"{name}.inference", "reference": str(folder / f"{name}.json"),
            "schema": {"timestamp": "ts", "id": "id"}, "pane": {"seconds": 1, "lateness_seconds": 1},
            "quality": {"max_refused_share": 0.01}}
        if name == "loans":
            monitor["schema"]["columns"] = {"repaid": {"role": "label", "kind": "category"}}
            monitor["detectors"] = [{"name": "psi", "threshold": 0.2}, {"name": "ks"}]
            monitor["retrain"] = {
                "above": 0.3, "collect_events": 9_000, "cooldown_hours": 24, "max_per_week": 2, "metric": "accuracy",
                "capture_uri": str(folder / "captured"), "promote": {"type": "file", "path": str(folder / "promoted.json"),
                                                                     "settle_seconds": 2},
                "launcher": {"type": "local", "command": [sys.executable, str(TRAINER)],
                             "environment": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}}
        monitors.append(monitor)
    return parse(yaml.safe_dump({
        "service": {"listen": "127.0.0.1:0", "state": f"sqlite:///{folder}/state.db", "checkpoint_seconds": 0.5,
                    "dead_letters": f"file:{folder}/dead.jsonl"},
        "files": {"paths": [str(folder / "memory")]}, "monitors": monitors}))


class Run:
    """The service in a thread of its own, with its HTTP server.

    pace : seconds that a second of event time takes here
    """

    def __init__(self, folder: Path, pace: float, seconds: float = 240.0) -> None:
        self.town, self.pace, self.folder = Town(folder), pace, folder
        self.exporter = Exporter(50_000)
        self.server = Server(application(self.exporter, more=routes(self.exporter)), "127.0.0.1", 0)
        self.error: BaseException | None = None
        self.second = 0
        self.finished, self._over, self._most = threading.Event(), threading.Event(), seconds
        self._thread = threading.Thread(target=self._work, daemon=True)

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server.port}"

    def start(self) -> None:
        """Serve and watch from now on."""
        self.server.start()
        self._thread.start()

    def stop(self) -> None:
        """End the service and its server."""
        self._over.set()
        self._thread.join(30)
        self.server.stop()

    def check(self) -> None:
        """Raise what ended the service."""
        if self.error is not None:
            raise self.error

    def _batches(self) -> Iterator[Batch]:
        offsets, after, due = dict.fromkeys(WORLDS, 0), 0, time.monotonic()
        begun = int(time.time()) - (0 if self.pace >= 0.9 else 300)
        while not self._over.is_set():
            parts = []
            for name in WORLDS:
                if lines := self.town.lines(name, self.second, (begun + self.second) * 1000):
                    parts.append(records(f"{name}.inference", 0, lines, first_offset=offsets[name]))
                offsets[name] += len(lines)
            yield Batch(parts=tuple(parts))
            after += self.town.take_up()
            self.second += 1
            if after >= AFTERWARDS or self.second >= self._most:        # the story is told; traffic goes on
                self.finished.set()
                due = max(due, time.monotonic() - 1.0 + self.pace)
            due += 1.0 if self.finished.is_set() else self.pace
            self._over.wait(max(due - time.monotonic(), 0.0))

    def _work(self) -> None:
        try:
            stages = build(configuration(self.folder), source=_Fed(self._batches()), exporter=self.exporter)
            try:
                stages.run()
            finally:
                stages.close()
        except BaseException as error:              # told by `check`, in the caller's thread
            self.error = error
        finally:
            self.finished.set()


class _Fed(MemorySource):
    """A memory source whose batches are made while it is read."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        super().__init__([])
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            assigned = frozenset((f"{name}.inference", 0) for name in WORLDS)
            yield Batch(parts=batch.parts, assigned=assigned, caught_up=assigned)
