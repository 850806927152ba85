"""A service's outbox in a process of its own, to be killed: real store, real launcher, one launch carried to its end.

    python -m tests.integration.outbox_process

has imported everything and reads lines `[FOLDER, KUBECONFIG, NAMESPACE, INSTANT]`. For each it forks a process that carries
the launch out, answers with its id, and with its exit status when it has ended (-9: SIGKILL).

INSTANT names the moment at which that process sends SIGKILL to itself: `before` or `after`, then `save:<state>` (the launch
is stored in that state) or `start` (the call that makes the Job); `never` lets it live. The wall clock runs SPEED times as
fast, so that waits between tries are short; it goes on over restarts. The Job's pods are played by the test.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from detectors.reference import Column, Reference
from monitor import config
from monitor.flow import FINAL_STATES, JobStatus, Launch
from monitor.retrain.launch import Retraining
from monitor.retrain.launchers.kubernetes import KubernetesJobs
from monitor.retrain.ledger import Ledger, launch_from_json, launch_to_json
from monitor.state.store import Store

SPEED = 50.0
LAUNCH = Launch("3f9c2a1b7d4e", "churn", "7", 1, "kubernetes", "approved", "{}", (("proposed", 0.0), ("approved", 0.0)))


def reference_of(version: str) -> Reference:
    return Reference.fit({"age": np.random.default_rng(1).normal(0, 1, 500)}, [Column("age", "numeric", "input")],
                         model="churn", version=version)


class Instant:
    """Ends the process at one moment of its life."""

    def __init__(self, fatal: str) -> None:
        self.fatal = fatal

    def __call__(self, name: str) -> None:
        if name == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


class Mortal:
    """The launcher, around whose `start` the process may be killed."""

    name = "kubernetes"

    def __init__(self, instant: Instant, inner: KubernetesJobs) -> None:
        self.instant, self.inner = instant, inner

    def start(self, launch: Launch) -> str:
        self.instant("before start")
        external = self.inner.start(launch)
        self.instant("after start")
        return external

    def status(self, launch: Launch) -> JobStatus:
        return self.inner.status(launch)

    def cancel(self, launch: Launch) -> None:
        self.inner.cancel(launch)


def main(folder: Path, kubeconfig: str, namespace: str, fatal: str) -> None:
    instant, store = Instant(fatal), Store(folder / "state.db")

    def save(launch: Launch) -> None:
        instant(f"before save:{launch.state}")
        with store.transaction() as db:
            store.save_launch(db, launch.id, launch.model, launch_to_json(launch))
        instant(f"after save:{launch.state}")

    stored = [launch_from_json(text) for text in store.history("launches")]
    if not stored:
        save(LAUNCH)
    ledger = Ledger(stored or [LAUNCH])
    settings = config.KubernetesLauncher(image="registry.example/train:7", namespace=namespace, kubeconfig=kubeconfig, gpus=0)
    policy = config.Retrain(launcher=settings, collect_events=0, promote=config.FilePromotion(path=str(folder / "champion.json")))
    service = Retraining(
        {"churn": policy}, ledger, {"churn": Mortal(instant, KubernetesJobs(settings, capture_uri="s3://t/captures"))},
        save=save, snapshot=lambda launch: str(folder / launch.id / "data"), reference=lambda _: reference_of("7"),
        poll_seconds=0.0)
    while ledger.launches[LAUNCH.id].state not in FINAL_STATES:
        service.advance(time.time() * SPEED, lambda _: 10)
        time.sleep(0.05)
    store.close()


def serve() -> None:
    """One life after the other, until the test closes the pipe."""
    for line in sys.stdin:
        folder, kubeconfig, namespace, fatal = json.loads(line)
        child = os.fork()
        if not child:
            log = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = 1
            try:
                main(Path(folder), kubeconfig, namespace, fatal)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    import kubernetes.client  # noqa: F401 (each life would take half a second for it)

    serve()
