"""The user's YAML over the object: what it adds, and what is refused with its path before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor import config
from monitor.errors import ConfigError
from monitor.retrain.launchers.kubernetes import KubernetesJobs
from tests.unit.retrain.test_kubernetes_manifest import LAUNCH, SHOWN, at

RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}


def made(tmp_path: Path, text: str, **changes: Any) -> dict[str, Any]:
    """The object with `text` laid over it."""
    path = tmp_path / "template.yaml"
    path.write_text(text)
    settings = config.KubernetesLauncher(**{"image": "registry.example/train:7", "template_file": str(path)} | changes)
    return KubernetesJobs(settings, capture_uri="s3://tidemark/captures").manifests(LAUNCH)[0]


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["template"]["spec"]


def test_an_empty_file_of_each_kind_changes_nothing(tmp_path: Path) -> None:
    for name, shown in SHOWN.items():
        kind = {"kind": "Job" if name == "IndexedJob" else name} | shown
        path = tmp_path / "none.yaml"
        path.write_text("spec: {}")
        plain, laid = (KubernetesJobs(config.KubernetesLauncher(**{"image": "x"} | kind | more)).manifests(LAUNCH)
                       for more in ({}, {"template_file": str(path)}))
        assert plain == laid


def test_maps_are_merged_and_named_lists_by_their_names(tmp_path: Path) -> None:
    manifest = made(tmp_path, """
        kind: Job
        metadata: {labels: {team: churn}, annotations: {example.org/cost: "12"}}
        spec:
          template:
            metadata: {annotations: {sidecar.istio.io/inject: "false"}}
            spec:
              priorityClassName: batch
              nodeSelector: {zone: a}
              tolerations: [{key: pool, operator: Exists}]
              volumes: [{name: cache, emptyDir: {sizeLimit: 100Gi}}]
              initContainers: [{name: fetch, image: "registry.example/fetch:1"}]
              containers:
                - name: trainer
                  args: [--epochs, "3"]
                  env: [{name: HF_TOKEN, valueFrom: {secretKeyRef: {name: hub, key: token}}}, {name: HOME, value: /cache},
                        {name: LEVEL, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
                  resources: {limits: {ephemeral-storage: 100Gi, cpu: "8"}}
                  volumeMounts: [{name: cache, mountPath: /cache}]
                - {name: proxy, image: "registry.example/proxy:2"}
    """, node_selector={"gpu": "true"}, environment={"LEVEL": "info"})
    assert manifest["metadata"]["labels"]["team"] == "churn"
    assert manifest["metadata"]["labels"]["tidemark.dev/launch"] == LAUNCH.id
    assert manifest["metadata"]["annotations"]["example.org/cost"] == "12"
    spec = pod(manifest)
    assert (spec["priorityClassName"], spec["nodeSelector"]) == ("batch", {"gpu": "true", "zone": "a"})
    assert [each["key"] for each in spec["tolerations"]] == ["nvidia.com/gpu", "pool"]
    assert [each["name"] for each in spec["volumes"]] == ["dshm", "tmp", "cache"]
    trainer, proxy = spec["containers"]
    (fetch,) = spec["initContainers"]
    assert (trainer["image"], trainer["args"], proxy["image"]) == (
        "registry.example/train:7", ["--epochs", "3"], "registry.example/proxy:2")
    told = {each["name"]: each for each in trainer["env"]}
    assert told["HOME"] == {"name": "HOME", "value": "/cache"}
    assert told["LEVEL"] == {"name": "LEVEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}    # no value
    assert told["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert told["TIDEMARK_LAUNCH_ID"]["value"] == LAUNCH.id
    assert trainer["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": "1", "ephemeral-storage": "100Gi", "cpu": "8"}
    assert [each["mountPath"] for each in trainer["volumeMounts"]] == ["/dev/shm", "/tmp", "/cache"]
    assert [each["securityContext"] for each in (trainer, proxy, fetch)] == [RESTRICTED] * 3


def test_a_user_that_is_not_root_may_be_added(tmp_path: Path) -> None:
    spec = pod(made(tmp_path, """
        spec: {template: {spec: {securityContext: {runAsUser: 1000, fsGroup: 1000},
                                 containers: [{name: trainer, securityContext: {runAsUser: 1001}}]}}}"""))
    assert spec["securityContext"] == {
        "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, "runAsUser": 1000, "fsGroup": 1000}
    assert spec["containers"][0]["securityContext"] == RESTRICTED | {"runAsUser": 1001}


@pytest.mark.parametrize(("kind", "text", "place", "expected"), [
    ("JobSet", "replicatedJobs: [{name: node, template: {spec: {template: {spec: {hostAliases: [{ip: 10.1.1.1}]}}}}}]",
     ("replicatedJobs", "*", "template", "spec", "template", "spec", "hostAliases"), [[{"ip": "10.1.1.1"}]]),
    ("PyTorchJob", "pytorchReplicaSpecs: {Worker: {template: {spec: {schedulerName: volcano}}}}",
     ("pytorchReplicaSpecs", "*", "template", "spec", "schedulerName"), ["volcano"]),
    ("TrainJob", """runtimePatches: [{manager: tidemark.dev/retraining, trainingRuntimeSpec: {template: {spec: {replicatedJobs: [
     {name: node, template: {spec: {template: {spec: {terminationGracePeriodSeconds: 60}}}}}]}}}}]""",
     ("runtimePatches", "*", "trainingRuntimeSpec", "template", "spec", "replicatedJobs", "*", "template", "spec", "template",
      "spec", "terminationGracePeriodSeconds"), [60]),
    ("RayJob", "rayClusterSpec: {rayVersion: 2.46.0}", ("rayClusterSpec", "rayVersion"), ["2.46.0"]),
    ("Workflow", "synchronization: {mutexes: [{name: retrain}]}", ("synchronization", "mutexes", "*", "name"), ["retrain"]),
    ("PipelineRun", "workspaces: [{name: w, emptyDir: {}}]", ("workspaces", "*", "name"), ["w"]),
])
def test_each_kind_takes_a_part_in_its_own_form(
        tmp_path: Path, kind: str, text: str, place: tuple[str, ...], expected: list[Any]) -> None:
    manifest = made(tmp_path, f"spec:\n  {text}", **{"kind": kind} | SHOWN[kind])
    assert at(manifest["spec"], place) == expected


def in_pod(text: str) -> str:
    return f"spec: {{template: {{spec: {{{text}}}}}}}"


def in_trainer(text: str) -> str:
    return in_pod(f"containers: [{{name: trainer, {text}}}]")


POD = r"spec\.template\.spec\."
TRAINER = POD + r"containers\[0\]\."


@pytest.mark.parametrize(("text", "message"), [
    ("[]", "expected a part of a Job, such as `spec:`, got"),
    ("spec: [", "is not YAML"),
    ("spec: {template: {}, template: {}}", "the key 'template' is given twice"),
    ("kind: CronJob", "kind: expected Job, got 'CronJob'; remove it, or set retrain.launcher.kind"),
    ("apiVersion: batch/v2", "apiVersion: expected batch/v1, got 'batch/v2'"),
    ("status: {}", "status: expected a key that Kubernetes knows; known are apiVersion, kind, metadata, spec"),
    ("spec: {templat: {}}", r"spec\.templat: expected a key that Kubernetes knows; did you mean template\?"),
    ("spec: text", "spec: expected a mapping, got 'text'"),
    ("metadata: {name: x}", r"metadata\.name: expected a key"),
    ("metadata: {labels: {tidemark.dev/launch: x}}", r"metadata\.labels\.tidemark\.dev/launch: expected a name of yours"),
    ("metadata: {labels: {app.kubernetes.io/managed-by: x}}", "expected a name of yours"),
    ("metadata: {labels: {kueue.x-k8s.io/queue-name: x}}", "expected nothing, got 'x'; set retrain.launcher.queue"),
    ("spec: {template: {metadata: {labels: {tidemark.dev/launch: x}}}}",
     r"spec\.template\.metadata\.labels\.tidemark\.dev/launch: expected a name of yours, got 'x'"),
    ("metadata: {labels: {cost: 12}}", r"metadata\.labels\.cost: expected a text, got 12; write it in quotes"),
    ("spec: {suspend: true}", r"spec\.suspend: expected nothing, got True; set retrain\.launcher\.queue"),
    ("spec: {parallelism: 2}", r"spec\.parallelism: expected nothing, got 2; set retrain\.launcher\.nodes"),
    ("spec: {backoffLimit: 2}", r"set retrain\.launcher\.backoff_limit"),
    ("spec: {activeDeadlineSeconds: 2}", r"set retrain\.launcher\.deadline_hours"),
    ("spec: {backoffLimit: null}", r"spec\.backoffLimit: expected a value, got none; null removes nothing"),
    ("spec: {maxFailedIndexes: two}", r"spec\.maxFailedIndexes: expected a whole number, got 'two'"),
    (in_pod("hostNetwork: true"), POD + r"hostNetwork: expected nothing, got True; the security settings are tidemark's"),
    (in_pod("serviceAccountName: x"), POD + r"serviceAccountName: .* set retrain\.launcher\.service_account"),
    (in_pod("restartPolicy: OnFailure"), POD + r"restartPolicy: expected nothing, got 'OnFailure'"),
    (in_pod("automountServiceAccountToken: true"), POD + "automountServiceAccountToken: expected nothing"),
    (in_pod("nodeSelecter: {}"), POD + r"nodeSelecter: .* did you mean nodeSelector\?"),
    (in_pod("affinity: near"), POD + "affinity: expected a mapping, got 'near'"),
    (in_pod("priority: true"), POD + "priority: expected a whole number, got True"),
    (in_pod("securityContext: {runAsNonRoot: false}"), POD + r"securityContext\.runAsNonRoot: expected nothing, got False"),
    (in_pod("securityContext: {runAsUser: 0}"), POD + r"securityContext\.runAsUser: expected a user that is not root, got 0"),
    (in_pod("securityContext: {runAsUzer: 1}"), POD + r"securityContext\.runAsUzer: expected one of fsGroup"),
    (in_pod("volumes: [{name: dshm, emptyDir: {}}]"), POD + r"volumes\[0\]\.name: expected a name of yours, got 'dshm'"),
    (in_pod("volumes: [{name: x, hostPath: {path: /}}]"), POD + r"volumes\[0\]\.hostPath: expected nothing"),
    (in_pod("volumes: [{emptyDir: {}}]"), POD + r"volumes\[0\]: expected an entry with name"),
    (in_pod("volumes: [{name: x, emptyDir: {}}, {name: x, emptyDir: {}}]"), POD + r"volumes\[1\]\.name: expected each name once"),
    (in_pod("containers: {name: trainer}"), POD + "containers: expected a list, got a mapping"),
    (in_pod("containers: [{name: sidecar}]"), TRAINER + "image: expected the image of a further container, got none; .* trainer"),
    (in_pod("containers: [{name: s, image: x, securityContext: {privileged: true}}]"),
     TRAINER + r"securityContext\.privileged: expected nothing"),
    (in_trainer("image: x"), TRAINER + r"image: expected nothing, got 'x'; set retrain\.launcher\.image"),
    (in_trainer("command: [x]"), TRAINER + r"command: .* set retrain\.launcher\.command"),
    (in_trainer("imagge: x"), TRAINER + r"imagge: .* did you mean image\?"),
    (in_trainer("securityContext: {readOnlyRootFilesystem: false}"), TRAINER + r"securityContext\.readOnlyRootFilesystem"),
    (in_trainer("securityContext: {capabilities: {add: [SYS_ADMIN]}}"), TRAINER + r"securityContext\.capabilities"),
    (in_trainer("resources: {limits: {memory: 1Gi}}"), TRAINER + r"resources\.limits\.memory: .* set retrain\.launcher\.memory"),
    (in_trainer("resources: {limits: {nvidia.com/gpu: 8}}"), TRAINER + r".*nvidia\.com/gpu: .* set retrain\.launcher\.gpus"),
    (in_trainer("env: [{name: TIDEMARK_MODEL, value: x}]"), TRAINER + r"env\[0\]\.name: expected a name of yours"),
    (in_trainer("env: [{name: PIN, value: 4711}]"), TRAINER + r"env\[0\]\.value: expected a text, got 'int'; write it in quotes"),
    (in_pod("nodeSelector: {gpu: true}"), POD + r"nodeSelector\.gpu: expected a text, got True; write it in quotes"),
    (in_trainer("env: [HOME]"), TRAINER + r"env\[0\]: expected an entry with name, got 'HOME'"),
    (in_trainer("volumeMounts: [{name: x, mountPath: /dev/shm/}]"), TRAINER + r"volumeMounts\[0\]\.mountPath: expected another"),
])
def test_what_would_break_what_tidemark_answers_for_is_refused_with_its_path(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        made(tmp_path, text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("kind", "text", "message"), [
    ("TrainJob", "spec: {trainer: {image: x}}", r"spec\.trainer\.image: .* set retrain\.launcher\.image"),
    ("TrainJob", "spec: {runtimeRef: {name: x}}", r"set retrain\.launcher\.runtime"),
    ("TrainJob", "spec: {runtimePatches: [{manager: x}]}", r"runtimePatches\[0\]\.manager: expected one of tidemark\.dev"),
    ("PyTorchJob", "spec: {pytorchReplicaSpecs: {Chief: {}}}", r"pytorchReplicaSpecs\.Chief: expected one of Master, Worker"),
    ("PyTorchJob", "spec: {pytorchReplicaSpecs: {Master: {template: {spec: {hostPID: true}}}}}", r"template\.spec\.hostPID"),
    ("JobSet", "spec: {replicatedJobs: [{name: driver}]}", r"replicatedJobs\[0\]\.name: expected one of node, got 'driver'"),
    ("RayJob", "spec: {entrypoint: x}", r"set retrain\.launcher\.command"),
    ("RayJob", "spec: {rayClusterSpec: {headGroupSpec: {template: {spec: {hostIPC: true}}}}}", "hostIPC: expected nothing"),
    ("Workflow", "spec: {templates: []}", "the WorkflowTemplate has them"),
    ("Workflow", "spec: {arguments: {parameters: [{name: epochs, value: 3}]}}", r"parameters\[0\]\.value: expected a text"),
    ("Workflow", "spec: {arguments: {parameters: [{name: TIDEMARK_MODEL, value: x}]}}", r"parameters\[0\]\.name: expected a"),
    ("PipelineRun", "spec: {params: [{name: TIDEMARK_MODEL, value: x}]}", r"spec\.params\[0\]\.name: expected a name of yours"),
])
def test_each_kind_refuses_what_is_tidemarks_in_its_own_form(tmp_path: Path, kind: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(tmp_path, text, **{"kind": kind} | SHOWN[kind])


def test_a_file_that_does_not_fit_is_refused_before_anything_is_launched(tmp_path: Path) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(in_trainer("terminationMessagePolicy: File, volumeMounts: [{mountPath: /x}, {mountPath: /x}]"))
    settings = config.KubernetesLauncher(image="x", template_file=str(path))
    with pytest.raises(ConfigError, match=r"volumeMounts\[1\]\.mountPath: expected each name once, got '/x'; remove one"):
        KubernetesJobs(settings)


def test_a_file_that_cannot_be_read_is_told_with_the_path_in_the_configuration(tmp_path: Path) -> None:
    settings = config.KubernetesLauncher(image="x", template_file=str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ConfigError, match=r"retrain\.launcher\.template_file: expected a file, got"):
        KubernetesJobs(settings)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"retrain\.launcher\.template_file: cannot read .*: not UTF-8"):
        KubernetesJobs(config.KubernetesLauncher(image="x", template_file=str(tmp_path / "binary.yaml")))


def test_a_value_in_an_error_is_shown_by_its_shape_where_it_is_large(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        made(tmp_path, yaml.safe_dump({"spec": {"activeDeadlineSeconds": {"password": "sesame"}}}))
    assert "sesame" not in str(refused.value)
