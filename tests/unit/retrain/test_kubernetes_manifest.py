"""The Job's manifest and what is read out of a Job, without a server."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor import config
from monitor.errors import ConfigError
from monitor.flow import JobStatus, Launch
from monitor.retrain.launchers.kubernetes import KubernetesJobs, job_status
from monitor.retrain.launchers.kubernetes_job import job_manifest, job_name, label_value

GOLDEN = Path(__file__).parents[2] / "golden" / "kubernetes_job.json"
LAUNCH = Launch(
    id="3f9c2a1b7d4e", model="employment", version="7", episode=3, launcher="kubernetes", state="approved",
    reason='{"columns": [{"name": "relationship", "effect": 0.61}], "panes": 4}', steps=(),
    data_uri="s3://tidemark/captures/3f9c2a1b7d4e/events.parquet", output_uri="s3://tidemark/captures/3f9c2a1b7d4e/")
FULL = config.KubernetesLauncher(
    image="registry.example/train:7", namespace="ml", command=["torchrun", "train.py"], gpus=2,
    service_account="trainer", image_pull_secret="registry-login", environment_secret="trainer-environment",
    volume_claim="checkpoints",
    node_selector={"nvidia.com/gpu.present": "true"}, environment={"OMP_NUM_THREADS": "4"})


def settings(**changes: Any) -> config.KubernetesLauncher:
    return config.KubernetesLauncher(**{"image": "registry.example/train:7", "namespace": "ml"} | changes)


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    (only,) = manifest["spec"]["template"]["spec"]["containers"]
    return only


def test_the_manifest_is_the_golden_one() -> None:
    """After a change on purpose: TIDEMARK_GOLDEN=write, then read the difference."""
    text = json.dumps(job_manifest(FULL, LAUNCH), indent=2) + "\n"
    if os.environ.get("TIDEMARK_GOLDEN") == "write":
        GOLDEN.write_text(text)
    assert GOLDEN.read_text() == text


def test_one_launch_is_one_manifest() -> None:
    assert job_manifest(FULL, LAUNCH) == job_manifest(FULL, LAUNCH)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True))
def test_every_model_name_gives_names_and_labels_that_kubernetes_takes(model: str) -> None:
    launch = dataclasses.replace(LAUNCH, model=model)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", job_name(launch))
    assert job_name(launch).endswith(launch.id)
    assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", label_value(model))


def test_the_trainer_is_told_what_its_contract_says() -> None:
    told = {each["name"]: each["value"] for each in container(job_manifest(settings(), LAUNCH))["env"]}
    assert told == {
        "HOME": "/tmp", "TIDEMARK_LAUNCH_ID": LAUNCH.id, "TIDEMARK_MODEL": "employment", "TIDEMARK_VERSION": "7",
        "TIDEMARK_REASON": LAUNCH.reason, "TIDEMARK_COLUMNS": LAUNCH.columns, "TIDEMARK_DATA_URI": LAUNCH.data_uri,
        "TIDEMARK_OUTPUT_URI": LAUNCH.output_uri}


def test_a_dollar_in_the_reason_is_not_expanded_by_the_kubelet() -> None:
    launch = dataclasses.replace(LAUNCH, reason='{"column": "$(HOME)"}')
    told = {each["name"]: each["value"] for each in container(job_manifest(settings(), launch))["env"]}
    assert told["TIDEMARK_REASON"] == '{"column": "$$(HOME)"}'


def test_without_gpus_neither_the_limit_nor_their_toleration_is_asked_for() -> None:
    other = {"key": "pool", "operator": "Equal", "value": "batch", "effect": "NoSchedule"}
    manifest = job_manifest(settings(gpus=0, tolerations=[*settings().tolerations, other]), LAUNCH)
    assert container(manifest)["resources"]["limits"] == {"memory": "16Gi"}
    assert manifest["spec"]["template"]["spec"]["tolerations"] == [other]


def test_hours_become_whole_seconds_and_never_fewer() -> None:
    spec = job_manifest(settings(deadline_hours=0.0001, keep_hours=1.5), LAUNCH)["spec"]
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (1, 5400)


def test_the_claimed_volume_is_mounted_where_the_captured_data_is() -> None:
    jobs = KubernetesJobs(settings(volume_claim="tidemark-data"), capture_uri="/var/lib/tidemark-data")
    manifest = job_manifest(settings(volume_claim="tidemark-data"), LAUNCH, volume_path=jobs._volume_path)
    assert {"name": "data", "mountPath": "/var/lib/tidemark-data"} in container(manifest)["volumeMounts"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"memory": "16GB"}, "retrain.launcher.memory: expected a quantity such as 16Gi, got '16GB'"),
    ({"memory": "16"}, "retrain.launcher.memory: expected a quantity such as 16Gi, got '16', which is less than 1Mi"),
    ({"memory": "400m"}, "retrain.launcher.memory: .* less than 1Mi"),
    ({"cpu": "0"}, "retrain.launcher.cpu: expected a quantity such as 2 or 500m, got '0'"),
    ({"cpu": "two"}, "retrain.launcher.cpu: expected a quantity"),
    ({"shared_memory": "32Gi"}, "retrain.launcher.shared_memory: expected at most the memory limit 16Gi"),
    ({"image": ""}, "retrain.launcher.image: expected a container image, got ''"),
    ({"namespace": "ML"}, "retrain.launcher.namespace: expected a Kubernetes name such as ml, got 'ML'"),
    ({"gpu_resource": "nvidia com"}, "retrain.launcher.gpu_resource: expected a Kubernetes name"),
    ({"volume_claim": "a_b"}, "retrain.launcher.volume_claim: expected a Kubernetes name"),
    ({"keep_hours": 0.0}, "retrain.launcher.keep_hours: expected at least 0.1"),
    ({"node_selector": {"a b": "c"}}, "retrain.launcher.node_selector: expected a label"),
    ({"tolerations": [{"key": "a", "operater": "Exists"}]}, r"retrain.launcher.tolerations\[0\]: .* got 'operater'"),
    ({"environment": {"TIDEMARK_MODEL": "x"}}, "TIDEMARK_MODEL is set by tidemark itself"),
    ({"environment": {"A B": "x"}}, "retrain.launcher.environment: expected names of letters"),
    ({"kubeconfig": "/nowhere/kubeconfig"}, "retrain.launcher.kubeconfig: expected a file, got '/nowhere/kubeconfig'"),
])
def test_a_wrong_setting_is_refused_at_once_with_its_path(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KubernetesJobs(settings(**changes), capture_uri="s3://tidemark/captures")


@pytest.mark.parametrize(("claim", "uri", "message"), [
    (None, "tidemark-data", "retrain.capture_uri: expected an address that the Job can reach"),
    (None, "file:///data", "retrain.capture_uri: expected an address that the Job can reach"),
    ("tidemark-data", "tidemark-data", "retrain.capture_uri: expected the absolute path"),
    ("tidemark-data", "/tmp", "retrain.capture_uri: expected the absolute path"),
])
def test_data_that_a_pod_cannot_reach_is_refused(claim: str | None, uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KubernetesJobs(settings(volume_claim=claim), capture_uri=uri)


def condition(kind: str, reason: str = "", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": reason, "message": message}


def pod(phase: str, **status: Any) -> dict[str, Any]:
    return {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": phase} | status}


UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
PULLING = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
KILLED = {"state": {"terminated": {"exitCode": 137, "message": "step 9\nout of memory\n"}}}


@pytest.mark.parametrize(("status", "pods", "expected"), [
    ({}, [], JobStatus("queued")),
    ({"active": 1, "ready": 0}, [pod("Pending", conditions=[UNSCHEDULABLE])],
     JobStatus("queued", "Unschedulable: 0/3 nodes")),
    ({"active": 1, "ready": 0}, [pod("Pending", containerStatuses=[PULLING])],
     JobStatus("queued", "ImagePullBackOff: no such image")),
    ({"active": 1, "ready": 0}, [], JobStatus("queued")),
    ({"active": 1, "ready": 1}, [], JobStatus("running")),
    ({"active": 1, "ready": 0}, [pod("Running")], JobStatus("running")),
    ({"active": 1}, [], JobStatus("running")),
    ({"conditions": [condition("Suspended", "JobSuspended")]}, [], JobStatus("queued", "JobSuspended")),
    ({"conditions": [condition("SuccessCriteriaMet")], "active": 1}, [], JobStatus("running")),
    ({"conditions": [condition("FailureTarget", "DeadlineExceeded", "too long")]}, [],
     JobStatus("running", "DeadlineExceeded: too long")),
    ({"conditions": [condition("SuccessCriteriaMet"), condition("Complete")]}, [], JobStatus("succeeded")),
    ({"conditions": [condition("Failed", "BackoffLimitExceeded")]}, [pod("Failed", containerStatuses=[KILLED])],
     JobStatus("failed", "BackoffLimitExceeded; exit code 137: step 9 out of memory")),
    ({"failed": 1}, [pod("Failed", containerStatuses=[KILLED])],
     JobStatus("queued", "1 failed before; exit code 137: step 9 out of memory")),
    ({"conditions": [condition("Complete") | {"status": "False"}], "ready": 1}, [], JobStatus("running")),
])
def test_a_job_is_read_as_it_is(status: dict[str, Any], pods: list[dict[str, Any]], expected: JobStatus) -> None:
    assert job_status({"metadata": {}, "status": status}, pods) == expected
