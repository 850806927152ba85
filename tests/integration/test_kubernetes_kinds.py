"""Every kind that carries a training, against a real API server that knows the kinds as their publishers define them.

Their controllers are not run: the test writes the status that they would write. What is proven: our objects pass the
validation of each kind, under the rights of deploy/kubernetes/training and no others, and their ends come back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from monitor.errors import LaunchFailed
from monitor.flow import JobStatus, Launch
from monitor.retrain.launchers.kubernetes import KubernetesJobs
from monitor.retrain.launchers.kubernetes_kinds import KINDS
from monitor.retrain.launchers.kubernetes_pod import LAUNCH_LABEL, job_name
from tests.conftest import wait_until
from tests.k8s.control_plane import ControlPlane, RefusedError
from tests.unit.retrain.test_kubernetes_manifest import SHOWN

Make = Callable[..., KubernetesJobs]
CUSTOM = [kind for kind in KINDS if kind != "Job"]
QUEUED = [kind for kind in CUSTOM if KINDS[kind].knows_queue]
NOW = "2026-01-01T00:00:00Z"


def shown(kind: str) -> dict[str, Any]:
    """Settings of a kind with everything that it takes."""
    return {"kind": kind} | SHOWN[kind]


def url(kind: str, namespace: str, launch: Launch | None = None) -> str:
    resource = KINDS[kind].resource
    path = f"/apis/{resource.api_version}/namespaces/{namespace}/{resource.plural}"
    return path if launch is None else f"{path}/{job_name(launch)}"


def condition(kind: str, reason: str, status: str = "True", message: str = "as a controller says it") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": NOW}


#: kind -> what its controller writes while it trains, when it has succeeded, when it has failed, and our words for that.
COUNTS = {"name": "node", "active": 1, "ready": 1, "succeeded": 0, "failed": 0, "suspended": 0}
STATUSES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "TrainJob": ({"jobsStatus": [COUNTS]}, {"conditions": [condition("Complete", "AllJobsCompleted")]},
                 {"conditions": [condition("Failed", "DeadlineExceeded")]}, "DeadlineExceeded: as a controller says it"),
    "PyTorchJob": ({"conditions": [condition("Running", "PyTorchJobRunning")]},
                   {"conditions": [condition("Running", "x", "False"), condition("Succeeded", "PyTorchJobSucceeded")]},
                   {"conditions": [condition("Failed", "PyTorchJobFailed")]}, "PyTorchJobFailed: as a controller says it"),
    "JobSet": ({"replicatedJobsStatus": [COUNTS]},
               {"conditions": [condition("Completed", "AllJobsCompleted")], "terminalState": "Completed"},
               {"conditions": [condition("Failed", "ReachedMaxRestarts")], "terminalState": "Failed"},
               "ReachedMaxRestarts: as a controller says it"),
    "RayJob": ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"},
               {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"},
               {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": "exit 1"},
               "AppFailed: exit 1"),
    "Workflow": ({"phase": "Running"}, {"phase": "Succeeded"}, {"phase": "Error", "message": "no such template"},
                 "Error: no such template"),
    "PipelineRun": ({"conditions": [condition("Succeeded", "Running", "Unknown")]},
                    {"conditions": [condition("Succeeded", "Completed")]},
                    {"conditions": [condition("Succeeded", "PipelineRunTimeout", "False")]},
                    "PipelineRunTimeout: as a controller says it"),
}


def write_status(cluster: ControlPlane, kind: str, namespace: str, launch: Launch, status: dict[str, Any]) -> None:
    """As the kind's controller would; Argo's objects have no status of their own path."""
    place = url(kind, namespace, launch) + ("" if kind == "Workflow" else "/status")
    cluster.request("PATCH", place, {"status": status}, kind="merge-patch+json")


@pytest.mark.parametrize("kind", CUSTOM)
def test_a_training_of_each_kind_is_admitted_and_its_ends_come_back(
        taught: ControlPlane, training: str, may: Callable[[str], None], launcher: Make, launch: Launch, kind: str) -> None:
    may(kind.lower())
    jobs = launcher(**shown(kind))
    running, succeeded, failed, words = STATUSES[kind]
    started = dataclasses.replace(launch, external=jobs.start(launch))
    assert jobs.status(started).state == "queued"
    write_status(taught, kind, training, launch, running)
    assert jobs.status(started).state == "running"
    write_status(taught, kind, training, launch, succeeded)
    assert jobs.status(started) == JobStatus("succeeded")
    write_status(taught, kind, training, launch, dict.fromkeys(succeeded) | failed)
    assert jobs.status(started) == JobStatus("failed", words)
    jobs.cancel(started)
    assert jobs.status(started).state == "unknown"
    jobs.cancel(started)


@pytest.mark.parametrize("kind", CUSTOM)
def test_starting_twice_is_one_object_of_each_kind(
        taught: ControlPlane, training: str, may: Callable[[str], None], launcher: Make, launch: Launch, kind: str) -> None:
    may(kind.lower())
    assert launcher(**shown(kind)).start(launch) == launcher(**shown(kind)).start(launch)
    listed = taught.request("GET", url(kind, training))["items"]
    assert [each["metadata"]["labels"][LAUNCH_LABEL] for each in listed] == [launch.id]


@pytest.mark.parametrize("kind", CUSTOM)
def test_what_the_server_stores_is_what_was_sent(
        taught: ControlPlane, training: str, may: Callable[[str], None], launcher: Make, launch: Launch, kind: str) -> None:
    """Nothing is pruned: a field that the kind does not know would vanish, and the pod with it what it was for."""
    may(kind.lower())
    jobs = launcher(**shown(kind))
    jobs.start(launch)
    (sent,) = jobs.manifests(launch)
    assert_within(sent["spec"], taught.request("GET", url(kind, training, launch))["spec"], "spec")


def assert_within(sent: Any, stored: Any, path: str) -> None:
    """Everything sent is stored; the server may add defaults."""
    if isinstance(sent, dict):
        for key, value in sent.items():
            assert key in stored, f"{path}.{key} was not stored"
            assert_within(value, stored[key], f"{path}.{key}")
    elif isinstance(sent, list):
        assert len(sent) == len(stored), path
        for index, value in enumerate(sent):
            assert_within(value, stored[index], f"{path}[{index}]")
    else:
        assert sent == stored, path


@pytest.mark.parametrize("kind", QUEUED)
def test_a_training_that_is_queued_is_stored_suspended_and_says_what_kueue_says(
        taught: ControlPlane, training: str, may: Callable[[str], None], launcher: Make, launch: Launch, kind: str) -> None:
    may(kind.lower())
    may("kueue")
    jobs = launcher(**shown(kind))
    started = dataclasses.replace(launch, external=jobs.start(launch))
    stored = taught.request("GET", url(kind, training, launch))
    assert stored["spec"].get("runPolicy", stored["spec"])["suspend"] is True
    assert jobs.status(started) == JobStatus("queued")
    workload = f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{training}/workloads"
    pod_set = {"name": "main", "count": 1, "template": {"spec": {"containers": [{"name": "x", "image": "x"}]}}}
    taught.request("POST", workload, {
        "apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "Workload",
        "metadata": {"name": "w", "labels": {"kueue.x-k8s.io/job-uid": stored["metadata"]["uid"]}},
        "spec": {"queueName": "gpu-queue", "podSets": [pod_set]}})
    taught.request("PATCH", f"{workload}/w/status", {"status": {"conditions": [
        condition("QuotaReserved", "Pending", "False", "insufficient unused quota for nvidia.com/gpu")]}},
        kind="merge-patch+json")
    assert jobs.status(started) == JobStatus("queued", "Kueue: Pending: insufficient unused quota for nvidia.com/gpu")


@pytest.mark.parametrize("kind", CUSTOM)
def test_the_role_of_a_kind_gives_that_kind_and_no_other(
        taught: ControlPlane, training: str, may: Callable[[str], None], launcher: Make, launch: Launch, kind: str) -> None:
    may(kind.lower())
    launcher(**shown(kind)).rehearse(launch)
    for other in [each for each in CUSTOM if each != kind]:
        with pytest.raises(LaunchFailed, match=f"may not create {KINDS[other].resource.plural} in namespace {training}") as no:
            launcher(**shown(other)).rehearse(launch)
        assert str(no.value).endswith(f"RoleBinding of deploy/kubernetes/training/kinds/{other.lower()}.yaml there")
        assert not no.value.retry


def test_a_rehearsal_asks_for_everything_and_leaves_nothing(
        taught: ControlPlane, training: str, may: Callable[[str], None], launcher: Make, launch: Launch) -> None:
    may("trainjob")
    launcher(**shown("TrainJob")).rehearse(launch)
    assert taught.request("GET", url("TrainJob", training))["items"] == []
    with pytest.raises(LaunchFailed, match="may not create services"):
        launcher(nodes=2).rehearse(launch)
    may("indexedjob")
    launcher(nodes=2).rehearse(launch)
    assert taught.request("GET", f"/api/v1/namespaces/{training}/services")["items"] == []


def test_a_kind_that_the_cluster_does_not_know_is_told_with_what_to_install(
        cluster: ControlPlane, training: str, launcher: Make, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS["RayJob"]
    unknown = dataclasses.replace(kind, resource=dataclasses.replace(kind.resource, group="ray.example"))
    monkeypatch.setitem(KINDS, "RayJob", unknown)  # type: ignore[arg-type]
    admin = launcher(**shown("RayJob") | {"kubeconfig": str(cluster.folder / "admin.yaml")})
    wanted = ("Kubernetes: the cluster does not know kind RayJob of ray.example/v1; install KubeRay, or set another "
              "retrain.launcher.kind")
    for call in (admin.start, admin.status):
        with pytest.raises(LaunchFailed) as refused:
            call(launch)
        assert (str(refused.value), refused.value.retry) == (wanted, False)


def test_a_field_that_the_kind_does_not_have_is_refused_and_not_pruned(
        taught: ControlPlane, training: str, may: Callable[[str], None], launcher: Make, launch: Launch,
        tmp_path: Any) -> None:
    may("pytorchjob")
    path = tmp_path / "template.yaml"
    path.write_text("spec: {runPolicy: {schedulingPolicy: {queu: gold}}}")
    with pytest.raises(LaunchFailed, match=r'refuses the PyTorchJob \(400\): .*unknown field "spec.runPolicy.sched'):
        launcher(**shown("PyTorchJob") | {"template_file": str(path)}).start(launch)


def test_a_training_is_followed_and_ended_where_it_was_started(
        taught: ControlPlane, training: str, may: Callable[[str], None], launcher: Make, launch: Launch) -> None:
    """The configuration may say another kind and namespace by now."""
    may("jobset")
    external = launcher(**shown("JobSet")).start(launch)
    other = launcher(namespace="default")
    assert other.status(dataclasses.replace(launch, external=external)).state == "queued"
    other.cancel(dataclasses.replace(launch, external=external))
    with pytest.raises(RefusedError, match="404"):
        taught.request("GET", url("JobSet", training, launch))


def test_the_pods_of_an_indexed_job_have_the_names_that_they_look_for(
        cluster: ControlPlane, training: str, may: Callable[[str], None], launcher: Make, launch: Launch) -> None:
    may("indexedjob")
    jobs = launcher(nodes=2, gpus=1)
    jobs.start(launch)
    jobs.start(launch)                              # a crash between Job and Service is mended so
    name = job_name(launch)

    def both() -> list[dict[str, Any]]:
        items = cluster.request("GET", f"/api/v1/namespaces/{training}/pods")["items"]
        return list(items) if len(items) == 2 else []

    found = wait_until(both, 60, "both pods")
    assert {(pod["spec"]["hostname"], pod["spec"]["subdomain"]) for pod in found} == {(f"{name}-0", name), (f"{name}-1", name)}
    for pod in found:
        told = {each["name"]: each for each in pod["spec"]["containers"][0]["env"]}
        assert told["PET_MASTER_ADDR"]["value"] == f"{name}-0.{name}"
        assert pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] == pod["spec"]["hostname"][-1]
    service = cluster.request("GET", f"/api/v1/namespaces/{training}/services/{name}")
    assert service["spec"]["selector"].items() <= found[0]["metadata"]["labels"].items()
    jobs.cancel(launch)

    def is_gone() -> bool:
        return not cluster.request("GET", f"/api/v1/namespaces/{training}/services")["items"]

    wait_until(is_gone, 60, "the Service's removal with its Job")


def test_an_indexed_job_whose_service_is_refused_does_not_stay(
        cluster: ControlPlane, training: str, launcher: Make, launch: Launch) -> None:
    with pytest.raises(LaunchFailed, match="may not create services"):
        launcher(nodes=2).start(launch)
    wait_until(lambda: not cluster.request("GET", url("Job", training))["items"], 60, "the Job's removal")
