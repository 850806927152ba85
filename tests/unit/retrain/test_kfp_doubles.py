"""A request to start that Kubeflow carries out late: one run survives, one output is judged, whatever happens in between.

A life is an approved launch carried to its end by `Retraining` against the contract server, with a store that is a
dictionary of JSON. The first request to start is cut off and stored at a moment that the test names, from "before we look
again" to "long after the launch has ended". The run that is stored late trains a worse model, so that a verdict on its
output would be another one. `fatal` is the instant (before or after a call of the store or the launcher) at which the
service is gone.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from detectors.reference import Column, Reference
from monitor import config
from monitor.flow import FINAL_STATES, JobStatus, Launch
from monitor.retrain.launch import Retraining
from monitor.retrain.launchers.kfp import KubeflowPipelines
from monitor.retrain.ledger import Ledger, launch_from_json, launch_to_json
from monitor.retrain.strays import LOOK_SECONDS_MAX as LOOK_SECONDS
from monitor.retrain.strays import WATCHED_SECONDS
from tests.contract_server import Asked, ContractServer, said
from tests.unit.retrain.rest_servers import KubeflowApi

Value = TypeVar("Value")
#: Two minutes: longer than it takes until somebody looks.
TRAINING_TURNS = 4
MOMENTS = ["before the next look", "between look and request", "after the second request", "while running",
           "with an older time of creation", "after success", "while judged", "after the end"]


class Killed(BaseException):
    """The service is gone; nobody may catch this."""


def trained(folder: Path, right: float) -> Path:
    """What a training leaves whose challenger is right in that share of cases; the champion in 80 %."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(2)
    label = rng.integers(0, 2, 400)
    old, new = (np.where(rng.random(400) < share, label, 1 - label) for share in (0.8, right))
    parquet.write_table(pa.table({"id": np.arange(400), "label": label, "challenger_prediction": new,
                                  "champion_prediction": old}), folder / "holdout.parquet")
    reference_of("8").save(folder / "reference.json")
    (folder / "result.json").write_text(json.dumps({"model_uri": "model.pt", "reference_uri": "reference.json", "metrics": {}}))
    return folder


@functools.cache
def reference_of(version: str) -> Reference:
    return Reference.fit({"age": np.random.default_rng(1).normal(0, 1, 500)}, [Column("age", "numeric", "input")],
                         model="churn", version=version)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What a training that is followed leaves, and what one that must not be judged does."""
    folder = tmp_path_factory.mktemp("models")
    return trained(folder / "good", 0.99), trained(folder / "bad", 0.5)


class Life:
    """One service after another over the same disk and the same Kubeflow."""

    def __init__(self, folder: Path, models: tuple[Path, Path], moment: str, fatal: int) -> None:
        self.folder, self.models, self.moment, self.fatal, self.passed = folder, models, moment, fatal, 0
        self.kubeflow, self.now, self.posts, self.turns = KubeflowApi(), 1_000.0, 0, 0
        self.began: dict[str, int] = {}
        self.kubeflow.cut, self.kubeflow.seen = 1, self.seen
        self.policy = config.Retrain(launcher=config.KfpLauncher(url="http://set-later", pipeline="p-1"), collect_events=0,
                                     promote=config.FilePromotion(path=str(folder / "champion.json")))
        launch = Launch("3f9c2a1b7d4e", "churn", "7", 1, "kfp", "approved", "{}", (("proposed", 999.0), ("approved", 999.0)))
        self.disk = {launch.id: launch_to_json(launch)}

    @property
    def launch(self) -> Launch:
        (launch,) = (launch_from_json(text) for text in self.disk.values())
        return launch

    def service(self, url: str) -> Retraining:
        launcher = KubeflowPipelines(config.KfpLauncher(url=url, pipeline="p-1"))
        return Retraining({"churn": self.policy}, Ledger([self.launch]), {"churn": Mortal(self, launcher)},
                          save=self.save, snapshot=lambda launch: str(self.folder / launch.id / "data"),
                          reference=lambda _: reference_of("7"), poll_seconds=0.0, rng=random.Random(1))

    def around(self, call: Callable[[], Value]) -> Value:
        for value in (None, call):
            self.passed += 1
            if self.passed == self.fatal:
                raise Killed
            if value is not None:
                done = value()
        self.passed += 1
        if self.passed == self.fatal:
            raise Killed
        return done

    def save(self, launch: Launch) -> None:
        self.around(lambda: self.disk.update({launch.id: launch_to_json(launch)}))

    def seen(self, asked: Asked) -> None:
        """What happens at Kubeflow when it is asked something."""
        if asked.method == "POST" and asked.path.endswith("/runs"):
            self.posts += 1
            if self.posts == 2 and self.moment == "between look and request":
                self.kubeflow.store_late()

    def pass_on(self) -> None:
        """A turn of Kubeflow: what is stored late is stored, runs go on, trainings end and leave their output."""
        kubeflow, state = self.kubeflow, self.launch.state
        if (self.moment, state) in {("before the next look", "submitted"), ("while running", "running"),
                                    ("after success", "succeeded"), ("while judged", "judged")} or (
                self.moment == "after the second request" and self.posts > 1):
            kubeflow.store_late()
        if self.moment == "with an older time of creation" and state == "running":
            kubeflow.store_late("2026-01-30T00:00:00Z")
        for run in kubeflow.runs:
            if run.get("state") == "CANCELING":
                run["state"] = "CANCELED"
            elif run.get("state") == "RUNNING" and self.turns >= self.began[run["run_id"]] + TRAINING_TURNS:
                followed = run["run_id"] == (self.launch.external or run["run_id"])
                output = Path(run["runtime_config"]["parameters"]["output_uri"])
                output.parent.mkdir(parents=True, exist_ok=True)
                output.symlink_to(self.models[0 if followed else 1])
                run["state"] = "SUCCEEDED"
            elif not run.get("state"):
                run["state"], self.began[run["run_id"]] = "RUNNING", self.turns

    def run(self) -> Launch:
        """Live, die and live again until the launch has ended, and then for the time that strays are looked for."""
        with ContractServer(self.kubeflow) as server:
            service = self.service(server.url)
            while self.launch.state not in FINAL_STATES:
                assert self.turns < 100, self.launch
                service = self.turn(service, server.url, 30.0)
            if self.moment == "after the end":
                self.now += WATCHED_SECONDS / 2
                self.kubeflow.store_late()
            for _ in range(5):
                service = self.turn(service, server.url, LOOK_SECONDS)
        return self.launch

    def turn(self, service: Retraining, url: str, seconds: float) -> Retraining:
        self.turns += 1
        self.pass_on()
        self.now += seconds
        try:
            service.advance(self.now, lambda _: 10)
        except Killed:
            return self.service(url)
        return service


class Mortal:
    """The launcher, around each of whose calls the service may be killed."""

    name = "kfp"

    def __init__(self, life: Life, inner: KubeflowPipelines) -> None:
        self.life, self.inner = life, inner

    def start(self, launch: Launch) -> str:
        return self.life.around(lambda: self.inner.start(launch))

    def status(self, launch: Launch) -> JobStatus:
        return self.inner.status(launch)

    def cancel(self, launch: Launch) -> None:
        self.life.around(lambda: self.inner.cancel(launch))


def lives(folder: Path, models: tuple[Path, Path], moment: str) -> Iterator[tuple[int, Life, Launch]]:
    """An undisturbed life, then lives killed at every other of its instants: the odd or the even ones, by moment."""
    fatal, instants = 0, 1
    while fatal <= instants:
        life = Life(folder / str(fatal), models, moment, fatal)
        end = life.run()
        yield fatal, life, end
        instants, fatal = (life.passed, MOMENTS.index(moment) % 2 + 1) if fatal == 0 else (instants, fatal + 2)


@pytest.mark.parametrize("moment", MOMENTS)
def test_of_two_runs_one_survives_and_one_output_is_judged(tmp_path: Path, models: tuple[Path, Path], moment: str) -> None:
    for fatal, life, end in lives(tmp_path, models, moment):
        runs = life.kubeflow.runs
        assert len(runs) == (1 if moment == "before the next look" else 2) or fatal, moment
        (followed,) = [run for run in runs if run["run_id"] == end.external]
        assert (fatal, end.state, end.verdict, followed["state"]) == (fatal, "promoted", "better", "SUCCEEDED")
        assert end.output_uri == followed["runtime_config"]["parameters"]["output_uri"]
        assert end.model_uri == f"{end.output_uri}/model.pt"
        assert [run["state"] for run in runs if run is not followed] == ["CANCELED"] * (len(runs) - 1)
        assert all(run["storage_state"] == "ARCHIVED" for run in runs if run is not followed)
        assert followed["run_id"] not in life.kubeflow.terminated
        assert len({run["runtime_config"]["parameters"]["output_uri"] for run in runs}) == len(runs)


@pytest.mark.parametrize("moment", ["between look and request", "while running", "after success", "after the end"])
def test_a_second_run_that_trains_to_its_end_before_anybody_looks_is_not_judged(
        tmp_path: Path, models: tuple[Path, Path], moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KubeflowPipelines, "_end_doubles", lambda *_: "")
    life = Life(tmp_path, models, moment, 0)
    end = life.run()
    outputs = {run["run_id"]: run["runtime_config"]["parameters"]["output_uri"] for run in life.kubeflow.runs}
    assert [run["state"] for run in life.kubeflow.runs] == ["SUCCEEDED", "SUCCEEDED"]
    assert (end.state, end.verdict, end.output_uri) == ("promoted", "better", outputs[end.external])


def settled(url: str) -> tuple[KubeflowPipelines, Launch]:
    launcher = KubeflowPipelines(config.KfpLauncher(url=url, pipeline="p-1"))
    launch = Launch("3f9c2a1b7d4e", "churn", "7", 1, "kfp", "running", "{}", (("submitted", 0.0), ("running", 1.0)),
                    output_uri="s3://t/output")
    return launcher, launch


def doubled(kubeflow: KubeflowApi, launcher: KubeflowPipelines, launch: Launch) -> Launch:
    """The launch with the run that it follows, while a second one runs."""
    external = launcher.start(launch)
    kubeflow.create({**{name: kubeflow.runs[0][name] for name in ("display_name", "pipeline_version_reference")},
                     "runtime_config": {"parameters": launcher._parameters(launch)}})
    for run in kubeflow.runs:
        run["state"] = "RUNNING"
    return Launch(**{**{name: getattr(launch, name) for name in launch.__slots__}, "external": external})


def test_a_second_run_that_cannot_be_ended_holds_up_nothing_and_is_told_and_tried_again() -> None:
    kubeflow = KubeflowApi()
    with ContractServer(kubeflow) as server:
        launcher, launch = settled(server.url)
        launch = doubled(kubeflow, launcher, launch)
        kubeflow.seen = lambda asked: server.misbehave(said({"message": "no right"}, 403)) if not asked.query else None
        status = launcher.status(launch)            # the list is answered by 403
        assert (status.state, status.output_uri) == ("running", kubeflow.runs[0]["runtime_config"]["parameters"]["output_uri"])
        assert status.progress.startswith("second runs of this launch cannot be looked for and ended: ")
        assert "no right" in status.progress
        kubeflow.seen = lambda _: None
        server.bad.clear()
        assert launcher.status(launch).progress == ""
        assert [run["state"] for run in kubeflow.runs] == ["RUNNING", "CANCELING"]


def test_cancelling_ends_every_run_of_the_launch() -> None:
    kubeflow = KubeflowApi()
    with ContractServer(kubeflow) as server:
        launcher, launch = settled(server.url)
        launcher.cancel(doubled(kubeflow, launcher, launch))
        assert [run["state"] for run in kubeflow.runs] == ["CANCELING", "CANCELING"]


def test_a_run_of_another_services_launch_of_the_same_id_is_left_alone() -> None:
    kubeflow = KubeflowApi()
    with ContractServer(kubeflow) as server:
        launcher, launch = settled(server.url)
        launch = doubled(kubeflow, launcher, launch)
        kubeflow.runs[1]["runtime_config"]["parameters"]["output_uri"] = "s3://staging/output/run-0a1b2c3d"
        launcher.status(launch)
        launcher.cancel(launch)
        assert [run["state"] for run in kubeflow.runs] == ["CANCELING", "RUNNING"]


def test_runs_of_one_second_are_put_in_the_same_order_by_everybody() -> None:
    kubeflow = KubeflowApi()
    with ContractServer(kubeflow) as server:
        launcher, launch = settled(server.url)
        doubled(kubeflow, launcher, launch)
        for run in kubeflow.runs:
            run["created_at"] = "2026-01-31T12:00:00Z"
        kubeflow.runs.reverse()
        assert launcher.start(launch) == min(run["run_id"] for run in kubeflow.runs)


def test_a_launch_that_ended_without_its_answer_has_its_late_run_ended(tmp_path: Path) -> None:
    """Given up while it was started: the run that is stored afterwards is nobody's."""
    kubeflow: Any = KubeflowApi()
    kubeflow.cut = 1
    with ContractServer(kubeflow) as server:
        launcher, launch = settled(server.url)
        with pytest.raises(Exception, match="no answer"):
            launcher.start(launch)
        failed = Launch(**{**{name: getattr(launch, name) for name in launch.__slots__}, "state": "failed",
                           "steps": (("submitted", 0.0), ("failed", 1.0))})
        service = Retraining({}, Ledger([failed]), {"churn": launcher}, save=lambda _: None, snapshot=lambda _: "",
                             reference=lambda _: reference_of("7"))
        service.advance(2.0, lambda _: 0)
        kubeflow.store_late()
        service.advance(3.0, lambda _: 0)
        assert kubeflow.terminated == [], "it is not time to look again"
        service.advance(2.0 + LOOK_SECONDS, lambda _: 0)
        assert kubeflow.terminated == [kubeflow.runs[0]["run_id"]]
