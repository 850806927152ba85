"""The kubernetes launcher against a real control plane, under its own ServiceAccount's token and rights only.

The test plays the kubelet: it writes nodes' and pods' status. Manifests of deploy/kubernetes are what is applied.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor import config
from monitor.errors import LaunchFailed
from monitor.flow import JobStatus, Launch
from monitor.retrain.launchers import kubernetes_client
from monitor.retrain.launchers.kubernetes import KubernetesJobs
from monitor.retrain.launchers.kubernetes_job import job_manifest
from monitor.retrain.launchers.kubernetes_pod import LAUNCH_LABEL, job_name
from tests.conftest import free_port, wait_until
from tests.integration.conftest import DEPLOY, documents
from tests.k8s.control_plane import ControlPlane

_numbers = itertools.count(1_000_000)


def pods(cluster: ControlPlane, namespace: str) -> list[dict[str, Any]]:
    return list(cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"])


def node_of(cluster: ControlPlane, namespace: str) -> str:
    """The node on which the namespace's first pod was put, once it was."""
    wait_until(lambda: any(pod["spec"].get("nodeName") for pod in pods(cluster, namespace)), 60, "scheduling")
    return str(next(pod["spec"]["nodeName"] for pod in pods(cluster, namespace) if "nodeName" in pod["spec"]))


def play(cluster: ControlPlane, namespace: str, phase: str, *, exit_code: int | None = None, words: str = "",
         conditions: Sequence[dict[str, str]] = ()) -> None:
    """Set every unfinished pod's status, as a kubelet would."""
    for pod in pods(cluster, namespace):
        if pod["status"]["phase"] in {"Succeeded", "Failed"}:
            continue
        state: dict[str, Any] = {"running": {}} if exit_code is None else {
            "terminated": {"exitCode": exit_code, "reason": "Error" if exit_code else "Completed", "message": words}}
        cluster.request("PATCH", f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}/status", {"status": {
            "phase": phase, "conditions": [{"type": "Ready", "status": "True" if phase == "Running" else "False"}, *conditions],
            "containerStatuses": [{"name": each["name"], "image": each["image"], "imageID": "", "restartCount": 0,
                                   "ready": phase == "Running", "state": state} for each in pod["spec"]["containers"]],
        }}, kind="merge-patch+json")


def until(jobs: KubernetesJobs, launch: Launch, state: str, timeout: float = 30) -> JobStatus:
    """The launch's status once it is `state`."""
    wait_until(lambda: jobs.status(launch).state == state, timeout, f"state {state}")
    return jobs.status(launch)


def test_a_job_lands_on_the_gpu_node_runs_and_comes_back_succeeded(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    jobs = launcher()
    with cluster.node("cpu"), cluster.node("gpu", gpus=1, taint=True):
        assert jobs.start(launch) == f"Job/{training}/{job_name(launch)}"
        assert node_of(cluster, training) == "gpu"
        play(cluster, training, "Running")
        until(jobs, launch, "running")
        play(cluster, training, "Succeeded", exit_code=0)
        assert until(jobs, launch, "succeeded") == JobStatus("succeeded")


def test_without_gpus_a_job_lands_on_the_cpu_node(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    with cluster.node("cpu"), cluster.node("gpu", gpus=1, taint=True):
        launcher(gpus=0).start(launch)
        assert node_of(cluster, training) == "cpu"


def test_a_failed_training_comes_back_with_exit_code_and_last_words(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    jobs = launcher()
    with cluster.node("gpu", gpus=1):
        jobs.start(launch)
        node_of(cluster, training)
        play(cluster, training, "Failed", exit_code=1, words="step 41\nloss is not finite\n")
        status = until(jobs, launch, "failed")
    assert status.detail.startswith("PodFailurePolicy")
    assert status.detail.endswith("exit code 1: step 41 loss is not finite")


def test_a_killed_pod_is_tried_again_as_often_as_the_limit_says(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    jobs = launcher(backoff_limit=1)
    with cluster.node("gpu", gpus=1):
        jobs.start(launch)
        node_of(cluster, training)
        play(cluster, training, "Failed", exit_code=137)
        wait_until(lambda: len(pods(cluster, training)) == 2, 60, "the second try")
        wait_until(lambda: "1 failed before; exit code 137" in jobs.status(launch).detail, 60, "its being told of")
        wait_until(lambda: all("nodeName" in pod["spec"] for pod in pods(cluster, training)), 60, "scheduling")
        play(cluster, training, "Failed", exit_code=137)
        assert until(jobs, launch, "failed").detail.startswith("BackoffLimitExceeded")


def test_a_preempted_pod_is_replaced_and_counts_toward_no_limit(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    jobs = launcher(backoff_limit=0)
    with cluster.node("gpu", gpus=1):
        jobs.start(launch)
        node_of(cluster, training)
        play(cluster, training, "Failed", exit_code=143, conditions=[
            {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}])
        wait_until(lambda: len(pods(cluster, training)) == 2, 60, "the pod in its place")
        assert jobs.status(launch).state == "queued"


def test_a_program_that_fails_is_not_tried_again(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    jobs = launcher(backoff_limit=5)
    with cluster.node("gpu", gpus=1):
        jobs.start(launch)
        node_of(cluster, training)
        play(cluster, training, "Failed", exit_code=1)
        status = until(jobs, launch, "failed")
        assert len(pods(cluster, training)) == 1
    assert status.detail.startswith("PodFailurePolicy")


def test_a_pod_without_a_fitting_node_is_queued_and_says_why(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    jobs = launcher()
    with cluster.node("cpu"):
        jobs.start(launch)
        wait_until(lambda: "Insufficient nvidia.com/gpu" in jobs.status(launch).detail, 60, "the scheduler's reason")
        assert jobs.status(launch).state == "queued"


def test_starting_twice_is_one_job(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    assert launcher().start(launch) == launcher().start(launch)
    listed = cluster.request("GET", f"/apis/batch/v1/namespaces/{training}/jobs")["items"]
    assert [job["metadata"]["labels"][LAUNCH_LABEL] for job in listed] == [launch.id]


def test_a_name_that_another_launch_holds_is_an_error(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    manifest = job_manifest(config.KubernetesLauncher(image="x", namespace=training), launch)
    manifest["metadata"]["labels"][LAUNCH_LABEL] = "somebodyelse"
    cluster.request("POST", f"/apis/batch/v1/namespaces/{training}/jobs", manifest)
    with pytest.raises(LaunchFailed, match="belongs to another launch") as refused:
        launcher().start(launch)
    assert not refused.value.retry
    assert launcher().status(launch).state == "unknown"


def test_a_job_that_was_removed_is_unknown_and_never_a_success(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    jobs = launcher()
    with cluster.node("gpu", gpus=1):
        jobs.start(launch)
        node_of(cluster, training)
        play(cluster, training, "Succeeded", exit_code=0)
        until(jobs, launch, "succeeded")
    # The TTL controller does this after keep_hours; here the hours are shortened on the stored Job.
    cluster.request("PATCH", f"/apis/batch/v1/namespaces/{training}/jobs/{job_name(launch)}",
                    {"spec": {"ttlSecondsAfterFinished": 0}}, kind="merge-patch+json")
    assert "gone" in until(jobs, launch, "unknown").detail


def test_cancelling_removes_the_job_and_its_pods_and_may_be_repeated(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    jobs = launcher()
    jobs.start(launch)
    wait_until(lambda: pods(cluster, training), 60, "a pod")
    jobs.cancel(launch)
    until(jobs, launch, "unknown")
    wait_until(lambda: not pods(cluster, training), 60, "the pods' removal")
    jobs.cancel(launch)


def test_the_deadline_fails_a_job_that_waits_or_runs_too_long(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    jobs = launcher(deadline_hours=1 / 3600, queue_hours=1 / 3600)
    jobs.start(launch)
    assert until(jobs, launch, "failed").detail.startswith("DeadlineExceeded")


def test_a_missing_right_is_named_with_what_to_apply(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    cluster.request("DELETE", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{training}/roles/tidemark-launcher")
    wanted = (f"Kubernetes: ServiceAccount tidemark/tidemark may not create jobs in namespace {training}, or there is "
              "no such namespace; apply the Role and RoleBinding of deploy/kubernetes/training there")

    def refusal() -> LaunchFailed | None:
        try:
            launcher().start(dataclasses.replace(launch, id=f"{next(_numbers):012x}"))
        except LaunchFailed as error:
            return error
        return None

    error = wait_until(refusal, 60, "the right's removal")
    assert (str(error), error.retry) == (wanted, False)


def test_a_missing_right_is_believed_when_it_is_still_missing_after_a_minute(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """An API server that has just come up refuses everybody until it has read its roles; see test_kubernetes_outbox."""
    monkeypatch.setattr(kubernetes_client, "FORBIDDEN_SECONDS", 60.0)
    now = [1_000.0]
    monkeypatch.setattr(kubernetes_client.time, "monotonic", lambda: now[0])
    elsewhere = launcher(namespace="nowhere")
    refusals = []
    for seconds in (0.0, 59.0, 60.0):
        now[0] = 1_000.0 + seconds
        with pytest.raises(LaunchFailed, match="may not create jobs in namespace nowhere") as refused:
            elsewhere.start(launch)
        refusals.append(refused.value.retry)
    assert refusals == [True, True, False]


def test_without_the_right_to_list_pods_the_status_is_still_right(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    role = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{training}/roles/tidemark-launcher"
    only_jobs = [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "delete"]}]
    cluster.request("PATCH", role, {"rules": only_jobs}, kind="merge-patch+json")
    jobs = launcher()
    with cluster.node("cpu"):
        jobs.start(launch)
        wait_until(lambda: pods(cluster, training), 60, "a pod")
        wait_until(lambda: jobs.status(launch) == JobStatus("queued"), 60, "queued without a reason")
        with cluster.node("gpu", gpus=1):
            node_of(cluster, training)
            play(cluster, training, "Running")
            assert until(jobs, launch, "running") == JobStatus("running")
            play(cluster, training, "Succeeded", exit_code=0)
            until(jobs, launch, "succeeded")


def test_a_log_that_may_not_be_read_or_cannot_be_had_takes_nothing_from_the_status(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], may: Callable[[str], None],
        launch: Launch) -> None:
    """Under the base Role the log is forbidden; with logs.yaml it is allowed, and there is no kubelet that has one."""
    jobs = launcher()
    with cluster.node("gpu", gpus=1):
        jobs.start(launch)
        node_of(cluster, training)
        play(cluster, training, "Running")
        assert until(jobs, launch, "running") == JobStatus("running")
        assert set(jobs._logs._allowed_at) == {training}
        may("logs")

        def is_allowed() -> bool:
            again = launcher()
            assert again.status(launch) == JobStatus("running")
            return again._logs._allowed_at == {}

        wait_until(is_allowed, 60, "the right to read logs")


def quota(cluster: ControlPlane, namespace: str, **hard: str) -> None:
    """A quota of the namespace, in force on return."""
    path = f"/api/v1/namespaces/{namespace}/resourcequotas"
    cluster.request("POST", path, {"metadata": {"name": "q"}, "spec": {"hard": hard}})
    wait_until(lambda: cluster.request("GET", f"{path}/q").get("status", {}).get("hard"), 60, "the quota")


def test_a_quota_of_jobs_that_is_used_up_may_be_tried_again(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    quota(cluster, training, **{"count/jobs.batch": "0"})
    with pytest.raises(LaunchFailed, match=f"the quota of namespace {training} is used up: .*quota: q, req") as full:
        launcher().start(launch)
    assert full.value.retry


def test_a_quota_of_gpus_that_is_used_up_shows_in_the_queued_job(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    quota(cluster, training, **{"requests.nvidia.com/gpu": "0"})
    jobs = launcher()
    jobs.start(launch)
    wait_until(lambda: "exceeded quota: q" in jobs.status(launch).detail, 60, "the quota's refusal")
    assert jobs.status(launch).state == "queued"


def test_a_pod_security_level_of_restricted_admits_the_pods(
        cluster: ControlPlane, training: str, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    cluster.request("PATCH", f"/api/v1/namespaces/{training}", {"metadata": {"labels": {
        "pod-security.kubernetes.io/enforce": "restricted"}}}, kind="merge-patch+json")
    launcher().start(launch)
    wait_until(lambda: pods(cluster, training), 60, "an admitted pod")


def test_what_the_server_finds_invalid_is_told_in_its_words(
        launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    wrong = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "Never"}
    with pytest.raises(LaunchFailed, match=r"the API server refuses the Job \(422\): .*tolerations\[0\]") as refused:
        launcher(tolerations=[wrong]).start(launch)
    assert not refused.value.retry


def test_a_wrong_token_is_told_without_the_token(
        cluster: ControlPlane, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    kubeconfig = cluster.kubeconfig("wrong", "not-a-token-of-ours")
    with pytest.raises(LaunchFailed, match=r"does not accept the credentials \(401\).*kubeconfig") as refused:
        launcher(kubeconfig=str(kubeconfig)).start(launch)
    assert not refused.value.retry
    assert "not-a-token-of-ours" not in str(refused.value)


def test_a_missing_namespace_is_told_to_one_who_may_know(
        cluster: ControlPlane, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    admin = launcher(kubeconfig=str(cluster.folder / "admin.yaml"), namespace="nowhere")
    with pytest.raises(LaunchFailed, match="there is no namespace nowhere; create it or set"):
        admin.start(launch)
    with pytest.raises(LaunchFailed, match="may not create jobs in namespace nowhere, or there is no such namespace"):
        launcher(namespace="nowhere").start(launch)


def test_a_server_that_is_down_is_worth_another_try(
        cluster: ControlPlane, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    url = f"https://127.0.0.1:{free_port()}"
    jobs = launcher(kubeconfig=str(cluster.kubeconfig("down", "any", url=url)))
    for call in (jobs.start, jobs.status, jobs.cancel):
        with pytest.raises(LaunchFailed, match=f"no answer from {url} .*refused") as down:
            call(launch)
        assert down.value.retry


def test_a_server_with_a_certificate_of_another_authority_is_not_talked_to(
        cluster: ControlPlane, tmp_path: Path, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    document = yaml.safe_load((cluster.folder / "admin.yaml").read_text())
    del document["clusters"][0]["cluster"]["certificate-authority"]
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(LaunchFailed, match="certificate verify failed") as refused:
        launcher(kubeconfig=str(path)).start(launch)
    assert not refused.value.retry
    assert "\n" not in str(refused.value)


def test_renewed_credentials_are_used_without_a_restart(
        cluster: ControlPlane, training: str, tmp_path: Path, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(cluster.kubeconfig("expired", "expired").read_text())
    jobs = launcher(kubeconfig=str(path))
    with pytest.raises(LaunchFailed, match="401"):
        jobs.start(launch)
    path.write_text((cluster.folder / "tidemark.yaml").read_text())
    assert jobs.start(launch) == f"Job/{training}/{job_name(launch)}"


def test_in_a_pod_the_service_accounts_own_token_is_used(
        cluster: ControlPlane, training: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    from kubernetes.config import incluster_config

    (tmp_path / "token").write_text(cluster.token("tidemark", "tidemark"))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(cluster.folder / "ca.pem"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.port))
    jobs = launcher(kubeconfig=None)
    assert jobs.start(launch) == f"Job/{training}/{job_name(launch)}"
    assert jobs.status(launch).state == "queued"


def test_a_kubeconfig_that_cannot_be_read_is_told_without_its_contents(
        tmp_path: Path, launcher: Callable[..., KubernetesJobs], launch: Launch) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text("users: [{name: x, user: {token: *sesame}}]")   # YAML's error quotes what follows the asterisk
    with pytest.raises(LaunchFailed, match="no usable client configuration") as refused:
        launcher(kubeconfig=str(path)).start(launch)
    assert "sesame" not in str(refused.value)


def test_the_manifests_of_deploy_are_accepted_by_the_server(cluster: ControlPlane) -> None:
    for name in ("tidemark", "ml"):
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    kinds = [cluster.apply(document, dry_run=True)["kind"] for document in documents()]
    assert sorted(kinds) == ["ConfigMap", "Deployment", "PersistentVolumeClaim", "Role", "RoleBinding", "Service",
                             "ServiceAccount"]


def test_the_configuration_of_the_config_map_is_valid() -> None:
    (text,) = [document["data"]["tidemark.yaml"] for document in documents() if document["kind"] == "ConfigMap"]
    parsed = config.parse(text)
    assert config.state_path(parsed.service.state) == Path("/var/lib/tidemark/state.db")
    retrain = parsed.monitors[0].retrain
    assert retrain is not None
    assert isinstance(retrain.launcher, config.KubernetesLauncher)
    KubernetesJobs(retrain.launcher, capture_uri=retrain.capture_uri)


def test_every_manifest_file_is_named_by_its_kustomization() -> None:
    for folder in (DEPLOY, DEPLOY / "service", DEPLOY / "training"):
        named = set(yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"])
        there = {path.name for path in folder.iterdir()} - {"kustomization.yaml"}
        assert named == there - {"kinds", "replicas"}      # applied one by one, where they are used; in place of the service
