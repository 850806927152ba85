"""A small watched world, judged for real: references, panes, snapshots for the tests of what is shown."""

from __future__ import annotations

from typing import Any

import numpy as np

from detectors.reference import Column, Reference
from detectors.scan import Ring, Scan
from monitor.decisions import Decision, Limit, PolicyStatus
from monitor.expose.exporter import Exporter
from monitor.expose.snapshot import MonitorStatus, OpenAlarm, ServiceSnapshot
from monitor.flow import Alarm, Evaluation, Launch, Window

EVENTS = 300
#: Posts to an Alertmanager.
POSTS = {("http://alertmanager:9093", "taken"): 3, ("http://alertmanager:9093", "failed"): 1}


class World:
    """One model whose columns are standard normal (and one category) until `shift` moves the first of them."""

    def __init__(self, columns: int = 3, *, model: str = "loans", version: str = "1", segment: str = "all",
                 seed: int = 1, names: list[str] | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        self.model, self.version, self.segment = model, version, segment
        self.names = names or [f"column_{i}" for i in range(columns - 1)] + ["city"]
        schema = [Column(name, "numeric") for name in self.names[:-1]]
        schema += [Column(self.names[-1], "category", "prediction")]
        self.reference = Reference.fit(self.rows(2_000, 0.0), schema, model=model, version=version)
        self.scan, self.ring, self.pane = Scan(self.reference), Ring(self.reference), -1

    def rows(self, n: int, shift: float) -> dict[str, Any]:
        rows: dict[str, Any] = {name: self.rng.normal(0.0, 1.0, n) for name in self.names[:-1]}
        rows[self.names[0]] += shift
        rows[self.names[-1]] = self.rng.choice(["Paris", 'L"o\\n', "Oslo"], n).tolist()
        return rows

    def evaluation(self, shift: float = 0.0, state: str = "quiet", n: int = EVENTS) -> Evaluation:
        """The next pane, judged."""
        self.pane += 1
        profile = self.reference.profile(self.rows(n, shift), n)
        self.ring.push(profile)
        start = self.pane * 60.0
        window = Window(self.model, self.version, self.segment, self.pane, start, start + 60, profile)
        return Evaluation(window, self.scan(self.ring), (), state, 0, None)

    def show(self, exporter: Exporter, shift: float = 0.0, **options: Any) -> Evaluation:
        """Judge the next pane and show it, with distances of the columns that say nothing but differ."""
        evaluation = self.evaluation(shift, **options)
        profile = evaluation.window.profile
        distances = {"psi": np.linspace(0, 1, len(self.names)), "ks": np.full(len(self.names), np.nan)}
        exporter.show(evaluation, self.reference, distances, (profile.counts, profile.events), seconds=0.004)
        return evaluation


def status(model: str = "loans", version: str = "1", **options: Any) -> MonitorStatus:
    values: dict[str, Any] = {"events": {("counted", "none"): 900, ("refused", "json"): 2}, "late": 3, "retried": 1,
                              "watermark": 180.0, "digest": "d1", "launcher": "local", "metric": "accuracy",
                              "budget_remaining": 1, "policy": policy(), "capture": (4_096, 2)}
    return MonitorStatus(model, version, **(values | options))


def policy() -> PolicyStatus:
    """A model in severe drift whose launch waits."""
    waiting = Decision("loans", "1", 1, 60.0, "no", "cooldown", until=3_600.0)
    return PolicyStatus(1, 12.5, 2, waiting, (Limit("cooldown", True, "it is not over", 3_600.0),), {("no", "cooldown"): 1})


def launch(state: str = "promoted", **options: Any) -> Launch:
    values: dict[str, Any] = {"champion": 0.8, "challenger": 0.9, "verdict": "better"}
    return Launch("0123456789ab", "loans", "1", 1, "local", state, "{}", (("proposed", 1.0),),  # type: ignore[arg-type]
                  **(values | options))


def alarm(**options: Any) -> Alarm:
    values: dict[str, Any] = {
        "model": "loans", "version": "1", "segment": "all", "episode": 1, "state": "raised", "kind": "drift",
        "score": 1.5,
        "severe_score": 0.2, "since": 0.0, "at": 60.0, "pane": 0, "window_panes": 1, "window_events": EVENTS}
    return Alarm(**(values | options))


def snapshot(*monitors: MonitorStatus, **options: Any) -> ServiceSnapshot:
    """A ready service in which everything has happened once."""
    values: dict[str, Any] = {
        "ready": True, "reason": "", "lag": {("loans.events", 0): 7}, "checkpoint": 1_700_000_000.0,
        "alarm_counts": {("loans", "1", "all", "drift", "raised"): 1}, "alarms": (alarm(), alarm(state="cleared")),
        "open_alarms": {("loans", "1", "all", "drift", "columns", "raised"): OpenAlarm(1, 60.0)},
        "launches": (launch(),), "dead_letters": {"written": 2, "dropped": 0}}
    return ServiceSnapshot(monitors=monitors or (status(),), **(values | options))
