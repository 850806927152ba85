"""The objects that train, of every kind, and the settings that are refused, without a server."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from monitor import config
from monitor.errors import ConfigError
from monitor.flow import Launch
from monitor.retrain.launchers.kubernetes import KubernetesJobs
from monitor.retrain.launchers.kubernetes_job import job_manifest
from monitor.retrain.launchers.kubernetes_kinds import KINDS
from monitor.retrain.launchers.kubernetes_pod import job_name, label_value

GOLDEN = Path(__file__).parents[2] / "golden"
LAUNCH = Launch(
    id="3f9c2a1b7d4e", model="employment", version="7", episode=3, launcher="kubernetes", state="approved",
    reason='{"columns": [{"name": "relationship", "effect": 0.61}], "panes": 4}', steps=(),
    data_uri="s3://tidemark/captures/3f9c2a1b7d4e/events.parquet", output_uri="s3://tidemark/captures/3f9c2a1b7d4e/")
FULL: dict[str, Any] = {
    "command": ["torchrun", "train.py"], "gpus": 2, "service_account": "trainer", "environment_secret": "trainer-environment",
    "image_pull_secret": "registry-login", "volume_claim": "checkpoints",
    "node_selector": {"nvidia.com/gpu.present": "true"}, "environment": {"OMP_NUM_THREADS": "4"}}
OF_A_TEMPLATE: dict[str, Any] = {
    "image": "", "template": "retrain", "service_account": "trainer", "environment_secret": "trainer-environment"}
#: What each kind is shown with: everything that it takes.
SHOWN: dict[str, dict[str, Any]] = {
    "Job": FULL, "IndexedJob": FULL | {"nodes": 2, "queue": "gpu-queue"},
    "TrainJob": FULL | {"nodes": 2, "queue": "gpu-queue", "environment_secret_keys": ["AWS_SECRET_ACCESS_KEY"]},
    "PyTorchJob": FULL | {"nodes": 3, "queue": "gpu-queue"}, "JobSet": FULL | {"nodes": 2, "queue": "gpu-queue"},
    "RayJob": FULL | {"nodes": 2, "queue": "gpu-queue"}, "Workflow": OF_A_TEMPLATE, "PipelineRun": OF_A_TEMPLATE}
CARRIES_PODS = ["Job", "TrainJob", "PyTorchJob", "JobSet", "RayJob"]


def settings(**changes: Any) -> config.KubernetesLauncher:
    return config.KubernetesLauncher(**{"image": "registry.example/train:7", "namespace": "ml"} | changes)


def shown(name: str, **changes: Any) -> config.KubernetesLauncher:
    """Settings of a kind, and of the Job with several nodes, with everything that it takes."""
    return settings(**{"kind": "Job" if name == "IndexedJob" else name} | SHOWN[name] | changes)


def objects(kind: config.KubernetesLauncher, launch: Launch = LAUNCH) -> list[dict[str, Any]]:
    return KubernetesJobs(kind, capture_uri="s3://tidemark/captures").manifests(launch)


def at(value: Any, place: tuple[str, ...]) -> list[Any]:
    """What stands at a place, `*` for any key or index."""
    if not place:
        return [value]
    below = value.values() if isinstance(value, dict) else value
    found = list(below) if place[0] == "*" else [value[place[0]]] if place[0] in value else []
    return [each for one in found for each in at(one, place[1:])]


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    (only,) = manifest["spec"]["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("name", SHOWN)
def test_the_objects_of_each_kind_are_the_golden_ones(name: str) -> None:
    """After a change on purpose: TIDEMARK_GOLDEN=write, then read the difference."""
    golden = GOLDEN / f"kubernetes_{name.lower()}.json"
    text = json.dumps(objects(shown(name)), indent=2) + "\n"
    if os.environ.get("TIDEMARK_GOLDEN") == "write":
        golden.write_text(text)
    assert golden.read_text() == text


@pytest.mark.parametrize("name", SHOWN)
def test_one_launch_is_one_object_whatever_its_state(name: str) -> None:
    later = dataclasses.replace(LAUNCH, state="running", attempts=3, external="x", progress="epoch 3")
    assert objects(shown(name)) == objects(shown(name), later)


@pytest.mark.parametrize("name", SHOWN)
def test_no_part_of_an_object_is_shared_so_that_yaml_needs_no_anchors(name: str) -> None:
    assert "&id" not in yaml.safe_dump_all(objects(shown(name)))


@pytest.mark.parametrize("name", CARRIES_PODS)
def test_every_kind_carries_the_same_restricted_pod(name: str) -> None:
    manifest = objects(shown(name))[0]
    found = [spec for place in KINDS[name].pods for spec in at(manifest, place)]
    assert found
    for spec in found:
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        assert {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in spec["volumes"]
        assert {"name": "tmp", "emptyDir": {}} in spec["volumes"]
        assert name == "TrainJob" or (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
        assert (spec["nodeSelector"], spec["serviceAccountName"]) == ({"nvidia.com/gpu.present": "true"}, "trainer")
        (only,) = spec["containers"]
        assert only["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                                           "readOnlyRootFilesystem": True}
        assert {"/dev/shm", "/tmp", "/data"} == {mount["mountPath"] for mount in only["volumeMounts"]}


@pytest.mark.parametrize("name", SHOWN)
def test_every_kind_is_told_the_whole_contract_and_no_secret_but_by_its_name(name: str) -> None:
    manifest = objects(shown(name))[0]
    text = json.dumps(manifest)
    places = {"TrainJob": ("spec", "trainer", "env"), "Workflow": ("spec", "arguments", "parameters"),
              "PipelineRun": ("spec", "params")}
    lists = at(manifest, places[name]) if name in places else [
        spec["containers"][0]["env"] for place in KINDS[manifest["kind"]].pods for spec in at(manifest, place)]
    assert lists
    for entries in lists:
        told = {each["name"]: each.get("value") for each in entries}
        assert (told["TIDEMARK_LAUNCH_ID"], told["TIDEMARK_MODEL"], told["TIDEMARK_VERSION"]) == (
            LAUNCH.id, LAUNCH.model, LAUNCH.version)
        assert (told["TIDEMARK_REASON"], told["TIDEMARK_COLUMNS"]) == (LAUNCH.reason, LAUNCH.columns)
        assert (told["TIDEMARK_DATA_URI"], told["TIDEMARK_OUTPUT_URI"]) == (LAUNCH.data_uri, LAUNCH.output_uri)
    assert "trainer-environment" in text


@pytest.mark.parametrize("name", [name for name, each in SHOWN.items() if "queue" in each])
def test_what_kueue_lets_go_is_created_suspended_with_its_queue(name: str) -> None:
    manifest = objects(shown(name))[0]
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu-queue"
    assert manifest["spec"].get("runPolicy", manifest["spec"])["suspend"] is True
    unqueued = objects(shown(name, queue=None))[0]
    assert "suspend" not in unqueued["spec"].get("runPolicy", unqueued["spec"])
    assert "kueue.x-k8s.io/queue-name" not in unqueued["metadata"]["labels"]


def test_a_program_that_fails_is_final_and_a_lost_pod_is_not() -> None:
    ignored, ended = job_manifest(settings(), LAUNCH)["spec"]["podFailurePolicy"]["rules"]
    assert ignored == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert ended == {"action": "FailJob", "onExitCodes": {
        "containerName": "trainer", "operator": "NotIn", "values": [134, 137, 139, 143]}}


def test_the_nodes_of_an_indexed_job_find_the_first_one_by_their_headless_service() -> None:
    job, service = objects(shown("IndexedJob"))
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"], spec["backoffLimit"]) == ("Indexed", 2, 2, 0)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["metadata"]["name"] == spec["template"]["spec"]["subdomain"] == job_name(LAUNCH)
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job_name(LAUNCH)}
    told = {each["name"]: each for each in container(job)["env"]}
    assert told["PET_MASTER_ADDR"]["value"] == f"{job_name(LAUNCH)}-0.{job_name(LAUNCH)}"
    assert (told["PET_NNODES"]["value"], told["PET_NPROC_PER_NODE"]["value"]) == ("2", "2")
    assert "job-completion-index" in told["PET_NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]


def test_the_cluster_adds_the_wait_to_the_deadline_unless_a_queue_stops_the_clock() -> None:
    queued = job_manifest(settings(deadline_hours=6, queue_hours=12, queue="q"), LAUNCH)["spec"]["activeDeadlineSeconds"]
    unqueued = job_manifest(settings(deadline_hours=6, queue_hours=12), LAUNCH)["spec"]["activeDeadlineSeconds"]
    assert (queued, unqueued) == (6 * 3600, 18 * 3600)


@pytest.mark.parametrize(("kind", "field", "value"), [
    (kind, field, {"command": ["x"], "nodes": 2, "backoff_limit": 3, "keep_hours": 1.0, "template": "t", "runtime": "r",
                   "node_selector": {"a": "b"}, "tolerations": [], "environment_secret_keys": ["A"]}.get(field, "17Gi"))
    for kind, each in KINDS.items() for field in each.refuses])
def test_a_setting_that_a_kind_cannot_take_is_refused_not_ignored(kind: str, field: str, value: Any) -> None:
    fitting = OF_A_TEMPLATE if "image" in KINDS[kind].refuses else {"command": ["x"]}
    with pytest.raises(ConfigError, match=rf"retrain.launcher.{field}: expected none for kind {kind}, got"):
        objects(settings(kind=kind, **fitting | {field: value}))


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True))
def test_every_model_name_gives_names_and_labels_that_kubernetes_takes(model: str) -> None:
    launch = dataclasses.replace(LAUNCH, model=model)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", job_name(launch))
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
    spec = job_manifest(settings(deadline_hours=0.0001, queue="q", keep_hours=1.5), LAUNCH)["spec"]
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (1, 5400)


def test_the_claimed_volume_is_mounted_where_the_captured_data_is() -> None:
    (manifest,) = KubernetesJobs(settings(volume_claim="tidemark-data"), capture_uri="/var/lib/tidemark-data").manifests(LAUNCH)
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
    ({"environment_secret": "s", "environment_secret_keys": ["A"], "environment": {"A": "x"}}, "expected A either here or in"),
    ({"environment_secret_keys": ["A"]}, "retrain.launcher.environment_secret: expected the Secret that holds"),
    ({"kind": "TrainJob", "environment_secret": "s"}, "retrain.launcher.environment_secret_keys: expected the keys to take"),
    ({"kind": "TrainJob", "runtime": "Runtime/x"}, "retrain.launcher.runtime: expected a Kubernetes name"),
    ({"kind": "Workflow", "image": ""}, "retrain.launcher.template: expected the name of the WorkflowTemplate to run, got none"),
    ({"kind": "PipelineRun", "image": ""}, "retrain.launcher.template: expected the name of the Pipeline to run, got none"),
    ({"kind": "Workflow", "image": "", "template": "r", "queue": "q"}, "retrain.launcher.queue: .* Kueue does not know"),
    ({"kind": "RayJob"}, "retrain.launcher.command: expected the entry point of the RayJob, got none"),
    ({"queue": "GPU"}, "retrain.launcher.queue: expected a Kubernetes name such as gpu-queue, got 'GPU'"),
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


ROLES = Path(__file__).parents[3] / "deploy" / "kubernetes" / "training"


@pytest.mark.parametrize("kind", KINDS)
def test_the_role_of_a_kind_gives_what_the_three_calls_need_and_no_more(kind: str) -> None:
    resource = KINDS[kind].resource
    role = next(iter(yaml.safe_load_all((ROLES / (resource.role or "role.yaml")).read_text())))
    of_the_kind, *further = role["rules"]
    assert of_the_kind == {"apiGroups": [resource.group], "resources": [resource.plural], "verbs": ["create", "get", "delete"]}
    assert [each["verbs"] for each in further] == ([["list"], ["list"]] if kind == "Job" else [])
