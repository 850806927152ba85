"""Waiting on a real cluster: a training that gets no GPU is ended by the service's own clock, and `tidemark manifest` asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from monitor import cli, config
from monitor.errors import LaunchFailed
from monitor.flow import Launch
from monitor.retrain.launch import Retraining
from monitor.retrain.launchers.kubernetes import KubernetesJobs
from monitor.retrain.launchers.kubernetes_pod import job_name
from monitor.retrain.ledger import Ledger, launch_from_json, launch_to_json
from tests.conftest import wait_until
from tests.k8s.control_plane import ControlPlane

Make = Callable[..., KubernetesJobs]
HOUR = 3600.0


class Service:
    """The part of the service that carries launches out, made anew for every step, so that only what is stored counts."""

    def __init__(self, launch: Launch, jobs: KubernetesJobs, settings: config.KubernetesLauncher) -> None:
        self.stored, self.jobs = dataclasses.replace(launch, state="submitted", steps=(("submitted", 0.0),)), jobs
        self.policy = config.Retrain(launcher=settings)

    def step(self, hour: float) -> Launch:
        """The launch after one step at `hour`."""
        ledger = Ledger([launch_from_json(launch_to_json(self.stored))], [])
        retraining = Retraining({self.stored.model: self.policy}, ledger, {self.stored.model: self.jobs},
                                save=lambda launch: None, snapshot=lambda launch: "",
                                reference=lambda model: pytest.fail("not judged"), poll_seconds=0.0)
        retraining.advance(hour * HOUR, lambda launch: 0)
        self.stored = ledger.launches[self.stored.id]
        return self.stored


@pytest.mark.parametrize("queue", [None, "gpu-queue"])
def test_a_training_that_gets_no_gpu_is_ended_after_its_queue_hours_with_the_reason(
        cluster: ControlPlane, training: str, launcher: Make, launch: Launch, queue: str | None) -> None:
    """With a queue the Job is suspended and its own deadline never comes; without one the scheduler finds no node."""
    jobs = launcher(queue=queue, queue_hours=12)
    service = Service(launch, jobs, config.KubernetesLauncher(image="x", queue=queue, queue_hours=12))
    with cluster.node("cpu"):
        assert service.step(0.0).state == "running"
        reason = "Insufficient nvidia.com/gpu" if queue is None else "Suspended"
        wait_until(lambda: reason in service.step(0.1).progress, 60, "the reason why it waits")
        assert service.step(11.9).state == "running"
        ended = service.step(12.2)
    assert ended.state == "timed_out"
    assert ended.detail.startswith("waited in the queue for more than 12 hours (retrain.launcher.queue_hours); was ended")
    assert reason in ended.detail
    path = f"/apis/batch/v1/namespaces/{training}/jobs"
    wait_until(lambda: not cluster.request("GET", path)["items"], 60, f"the removal of {job_name(launch)}")


def test_the_manifest_is_printed_and_the_server_asked_only_where_that_is_wanted(
        cluster: ControlPlane, training: str, tmp_path: Path, launcher: Make, capsys: pytest.CaptureFixture[str]) -> None:
    launcher()                                      # writes the kubeconfig of the ServiceAccount
    path = tmp_path / "tidemark.yaml"
    path.write_text(yaml.safe_dump({
        "kafka": {"bootstrap_servers": ["kafka:9092"]},
        "monitors": [{"model": "churn", "topic": "t", "reference": "r.json", "retrain": {
            "capture_uri": "s3://tidemark/captures", "launcher": {
                "type": "kubernetes", "namespace": training, "image": "registry.example/train:7", "nodes": 2,
                "kubeconfig": str(cluster.folder / "tidemark.yaml")}}}]}))
    assert cli.main(["manifest", "churn", "-c", str(path)]) == 0
    printed = capsys.readouterr().out
    assert [each["kind"] for each in yaml.safe_load_all(printed)] == ["Job", "Service"]
    assert cli.main(["manifest", "churn", "-c", str(path), "--server"]) == 1
    assert "may not create services in namespace" in capsys.readouterr().err
    for document in yaml.safe_load_all(printed):
        assert cluster.apply(document, dry_run=True)["kind"] == document["kind"]


def test_the_manifest_of_what_makes_none_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tidemark.yaml"
    path.write_text(yaml.safe_dump({
        "kafka": {"bootstrap_servers": ["kafka:9092"]},
        "monitors": [{"model": "churn", "topic": "t", "reference": "r.json",
                      "retrain": {"launcher": {"type": "local", "command": ["x"]}}}]}))
    assert cli.main(["manifest", "churn", "-c", str(path)]) == 2
    assert cli.main(["manifest", "chrun", "-c", str(path)]) == 2
    local, unknown = capsys.readouterr().err.splitlines()
    assert local == ("tidemark manifest: monitors[0].retrain.launcher.type: expected kubernetes, got local; "
                     "only that launcher makes objects to show")
    assert unknown.startswith("tidemark manifest: MODEL: expected one of the models churn, got 'chrun'; name one that")


def test_doctor_says_which_right_is_missing_before_anything_is_launched(
        cluster: ControlPlane, training: str, may: Callable[[str], None], launcher: Make) -> None:
    from monitor.commands.doctor import _cluster

    launcher()                                      # writes the kubeconfig of the ServiceAccount
    settings = config.KubernetesLauncher(image="x", namespace=training, nodes=2,
                                         kubeconfig=str(cluster.folder / "tidemark.yaml"))
    with pytest.raises(LaunchFailed, match=r"may not create services .* deploy/kubernetes/training/kinds/indexedjob.yaml there"):
        _cluster("monitors[0].retrain.launcher", settings, "s3://tidemark/captures")
    may("indexedjob")
    said = wait_until(lambda: _allowed(lambda: _cluster("monitors[0].retrain.launcher", settings, "s3://t/c")), 60, "the right")
    assert said == f"a Job can be made and read in namespace {training}"


def _allowed(call: Callable[[], str]) -> str:
    """What the call says; empty while the API server's view of rights is not the new one yet."""
    try:
        return call()
    except LaunchFailed:
        return ""
