"""The outbox on a real API server: a process that is killed at every step makes one Job, and never another one.

What was created is counted in the API server's own audit log, so that a Job which is gone counts, too. The TTL controller is
the real one. There is no kubelet: the test writes the pods' status, and leaves what a trainer leaves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from monitor.flow import Launch
from monitor.retrain.launchers.kubernetes_pod import job_name
from monitor.retrain.ledger import launch_from_json
from tests.conftest import CHECKOUT, wait_until
from tests.integration.outbox_process import LAUNCH, reference_of
from tests.integration.test_kubernetes_launcher import node_of, play, pods
from tests.k8s.control_plane import ControlPlane, RefusedError

STEPS = ["before save:submitted", "after save:submitted", "before start", "after start", "before save:running",
         "after save:running"]
LAST_STEPS = ["before save:succeeded", "after save:succeeded", "before save:judged", "after save:judged",
              "before save:promoted", "after save:promoted"]


class Life:
    """One life of the service: a process of its own."""

    def __init__(self, nursery: Nursery, order: list[str]) -> None:
        self.nursery = nursery
        self.pid = int(nursery.ask(json.dumps(order)))
        self.code: int | None = None

    def wait(self) -> int:
        """Its exit status once it has ended; one that does not end within a minute is killed."""
        if self.code is None:
            timer = threading.Timer(60, os.kill, (self.pid, signal.SIGTERM))
            timer.start()
            self.code = int(self.nursery.answer())
            timer.cancel()
        return self.code

    def kill(self) -> None:
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):   # it has ended by itself
                os.kill(self.pid, signal.SIGKILL)
            self.wait()


class Nursery:
    """The process that lives are forked from."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen([sys.executable, "-m", "tests.integration.outbox_process"], cwd=CHECKOUT, text=True,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, line: str) -> str:
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{line}\n")
        self.popen.stdin.flush()
        return self.answer()

    def answer(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline()

    def close(self) -> None:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.close()
        self.popen.wait(30)
        self.popen.stdout.close()


class Service:
    """The service, started again and again over one folder."""

    def __init__(self, folder: Path, cluster: ControlPlane, namespace: str, nursery: Nursery) -> None:
        self.folder, self.cluster, self.namespace, self.nursery = folder, cluster, namespace, nursery
        self.kubeconfig = cluster.kubeconfig("outbox", cluster.token("tidemark", "tidemark"))
        self.started: list[Life] = []

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text()[-2000:] if path.exists() else ""

    def start(self, fatal: str = "never") -> Life:
        life = Life(self.nursery, [str(self.folder), str(self.kubeconfig), self.namespace, fatal])
        self.started.append(life)
        return life

    def dies(self, fatal: str) -> None:
        """Live until that instant."""
        assert self.start(fatal).wait() == -signal.SIGKILL, (fatal, self.log)

    def lives(self) -> Launch:
        """Live until the launch has ended."""
        assert self.start().wait() == 0, self.log
        launch = self.launch()
        assert launch is not None
        return launch

    def launch(self) -> Launch | None:
        if not (self.folder / "state.db").exists():
            return None
        db = sqlite3.connect(f"file:{self.folder}/state.db?mode=ro", uri=True, timeout=5)
        try:
            rows = db.execute("SELECT document FROM launches").fetchall()
        except sqlite3.OperationalError:
            return None
        finally:
            db.close()
        return launch_from_json(rows[0][0]) if rows else None

    def reaches(self, state: str) -> None:
        def is_there() -> bool:
            launch = self.launch()
            return launch is not None and launch.state == state

        wait_until(is_there, 60, f"state {state}")

    def job(self) -> dict[str, Any] | None:
        try:
            return self.cluster.request("GET", f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{job_name(LAUNCH)}")
        except RefusedError as error:
            if error.status != 404:
                raise
            return None

    def leave(self) -> None:
        """What a trainer leaves: a better challenger and its reference."""
        output = self.folder / LAUNCH.id / "output"
        output.mkdir(parents=True)
        rng = np.random.default_rng(2)
        label = rng.integers(0, 2, 400)
        parquet.write_table(pa.table({
            "id": np.arange(400), "label": label, "challenger_prediction": label,
            "champion_prediction": np.where(rng.random(400) < 0.8, label, 1 - label)}), output / "holdout.parquet")
        reference_of("8").save(output / "reference.json")
        (output / "result.json").write_text(json.dumps({"model_uri": "model.pt", "reference_uri": "reference.json"}))

    def succeed(self) -> None:
        """The pod's end, as a kubelet tells it, and the Job controller's word on it."""
        play(self.cluster, self.namespace, "Succeeded", exit_code=0)
        wait_until(lambda: any(each["type"] == "Complete" for each in ((self.job() or {}).get("status") or {}).get(
            "conditions") or ()), 60, "the Job's completion")

    def expire(self) -> None:
        """The Job's time to live is over: the real TTL controller removes it."""
        self.cluster.request("PATCH", f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{job_name(LAUNCH)}",
                             {"spec": {"ttlSecondsAfterFinished": 0}}, kind="merge-patch+json")
        wait_until(lambda: self.job() is None, 60, "removal by the TTL controller")

    @property
    def created(self) -> list[str]:
        return self.cluster.created("jobs", self.namespace)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def service(tmp_path: Path, cluster: ControlPlane, training: str, nursery: Nursery) -> Iterator[Service]:
    made = Service(tmp_path, cluster, training, nursery)
    yield made
    for life in made.started:
        life.kill()


def test_killed_at_every_step_a_launch_is_one_job(cluster: ControlPlane, service: Service) -> None:
    with cluster.node("cpu"):
        for step in STEPS:
            service.dies(step)
            assert len(service.created) == (step in STEPS[3:]), step
        running = service.start()
        node_of(cluster, service.namespace)
        play(cluster, service.namespace, "Running")
        service.reaches("running")
        running.kill()
        service.leave()
        service.succeed()
        for step in LAST_STEPS:
            service.dies(step)
        end = service.lives()
        assert (end.state, end.verdict) == ("promoted", "better")
        assert [state for state, _ in end.steps] == ["proposed", "approved", "submitted", "running", "succeeded", "judged",
                                                     "promoted"]
        service.expire()
        assert service.lives() == end
    assert service.created == [job_name(LAUNCH)]


@pytest.mark.parametrize("left", [True, False])
def test_a_job_that_its_ttl_removed_while_nobody_looked_is_judged_by_what_it_left_and_not_run_again(
        cluster: ControlPlane, service: Service, left: bool) -> None:
    with cluster.node("cpu"):
        service.dies("after save:running")
        node_of(cluster, service.namespace)
        play(cluster, service.namespace, "Running")
        if left:
            service.leave()
        service.succeed()
        service.expire()
        end = service.lives()
    assert end.state == ("promoted" if left else "failed")
    assert left or end.detail.startswith(f"the job is gone and left no result.json: Job {job_name(LAUNCH)} is gone")
    assert service.created == [job_name(LAUNCH)]
    assert pods(cluster, service.namespace) == [] or service.job() is None


@pytest.mark.parametrize("fatal", ["never", "after start"])
def test_an_api_server_that_hangs_and_comes_back_is_asked_again_and_the_launch_is_one_job(
        cluster: ControlPlane, service: Service, fatal: str) -> None:
    """It hangs while the Job is to be started, or found again after a kill."""
    if fatal != "never":
        service.dies(fatal)                         # the Job is there, and the outbox does not know it
    with cluster.server_away():
        process = service.start()
        wait_until(lambda: (service.launch() or LAUNCH).attempts > 0, 60, "a failed try")
        launch = service.launch()
        assert launch is not None
        assert launch.detail.startswith("will be tried again: Kubernetes: no answer from https://127.0.0.1")
    with cluster.node("cpu"):
        node_of(cluster, service.namespace)
        play(cluster, service.namespace, "Running")
        service.reaches("running")
        service.leave()
        service.succeed()
        assert process.wait() == 0, service.log
    end = service.launch()
    assert end is not None
    assert (end.state, service.created) == ("promoted", [job_name(LAUNCH)])

