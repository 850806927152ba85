"""One launch as a `batch/v1` Job: a pure function from configuration and launch to a manifest, and the checks before.

    manifest = job_manifest(settings, launch)       the same launch gives the same Job, byte for byte

The Job's name is made from the launch's id, never from the clock, so that asking the API server twice is one Job. What
the manifest takes care of, because each was somebody's lost night:

  * `/dev/shm` is 64 MB in a container; data-loader workers and NCCL die on it. A memory-backed volume is put there. Its
    pages count against the memory limit, so it may not be larger.
  * a disruption (drain, preemption) uses up no retry; exit codes 2, 64 and 78 (usage, configuration) fail at once.
  * the deadline is the Job's, not the pod's: it holds over all retries together. A finished Job is removed by its TTL.
  * it runs under Pod Security "restricted" and OpenShift's restricted-v2 with any UID: nothing is written but `/tmp`,
    `/dev/shm` and the claimed volume. The trainer gets no Kubernetes credentials.

Cost: microseconds, a few kilobytes. Neighbour: `kubernetes.py`, which sends it. Nothing here imports the client.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

from monitor import config
from monitor.errors import ConfigError
from monitor.flow import Launch
from monitor.retrain.launchers import trainer_environment

#: A Kubernetes object as the API speaks it: a JSON document, whose form the API server checks, not our types.
Manifest = dict[str, Any]

CONTAINER = "trainer"
MODEL_LABEL, LAUNCH_LABEL = "tidemark.dev/model", "tidemark.dev/launch"
NAME_CHARACTERS = 63                                # of a label's value, and of a Job's name, which becomes one
#: Exit codes that another attempt cannot mend: shell usage, EX_USAGE, EX_CONFIG.
FINAL_EXIT_CODES = [2, 64, 78]
#: Where a claimed volume appears when the captured data itself is elsewhere (s3://...).
VOLUME_PATH = "/data"
#: A finished Job must stay long enough for a service that was down to learn how it ended.
KEEP_HOURS_MIN = 0.1

_SUFFIXES = {"m": Decimal("0.001"), "": Decimal(1)} | {
    suffix: Decimal(base**power)
    for base, suffixes in ((1000, ("k", "M", "G", "T", "P", "E")), (1024, ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")))
    for power, suffix in enumerate(suffixes, start=1)}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(m|k|[MGTPE]|[KMGTPE]i|)")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOLERATION = {"key", "operator", "value", "effect", "tolerationSeconds"}


def job_name(launch: Launch) -> str:
    """The Job's name: `tidemark-<model>-<launch id>`, at most 63 of a-z, 0-9 and `-`; one launch, one name."""
    room = NAME_CHARACTERS - len(f"tidemark--{launch.id}")
    model = re.sub(r"[^a-z0-9]+", "-", launch.model.lower()).strip("-")[:room].rstrip("-")
    return "-".join(part for part in ("tidemark", model, launch.id) if part)


def label_value(text: str) -> str:
    """`text` as a label's value: at most 63 of A-Z, a-z, 0-9, `-`, `_` and `.`, alphanumeric at both ends."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:NAME_CHARACTERS].strip("-_.")


def job_manifest(settings: config.KubernetesLauncher, launch: Launch, *, volume_path: str = VOLUME_PATH) -> Manifest:
    """The Job that trains `launch`.

    volume_path : where `settings.volume_claim` is mounted; the folder of the captured data when that is a folder

    Labels hold sanitised names, for selecting; annotations hold the names and the reason as they are, for people.
    """
    labels = {
        "app.kubernetes.io/name": "tidemark-trainer",
        "app.kubernetes.io/part-of": "tidemark",
        "app.kubernetes.io/managed-by": "tidemark",
        "app.kubernetes.io/component": "retraining",
        MODEL_LABEL: label_value(launch.model),
        LAUNCH_LABEL: launch.id,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(launch),
            "namespace": settings.namespace,
            "labels": labels,
            "annotations": {
                MODEL_LABEL: launch.model,
                "tidemark.dev/version": launch.version,
                "tidemark.dev/episode": str(launch.episode),
                "tidemark.dev/reason": launch.reason,
            },
        },
        "spec": {
            "backoffLimit": settings.backoff_limit,
            "activeDeadlineSeconds": math.ceil(settings.deadline_hours * 3600),
            "ttlSecondsAfterFinished": math.ceil(settings.keep_hours * 3600),
            "podReplacementPolicy": "Failed",       # one pod holds the GPUs at a time
            "podFailurePolicy": {"rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {
                    "containerName": CONTAINER, "operator": "In", "values": FINAL_EXIT_CODES}},
            ]},
            "template": {"metadata": {"labels": dict(labels)}, "spec": _pod(settings, launch, volume_path)},
        },
    }


def _pod(settings: config.KubernetesLauncher, launch: Launch, volume_path: str) -> Manifest:
    """The pod's specification; no owner, so that upgrading tidemark never removes a running training."""
    volumes: list[Manifest] = [
        {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}},
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts = [{"name": "dshm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp"}]
    if settings.volume_claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": settings.volume_claim}})
        mounts.append({"name": "data", "mountPath": volume_path})
    # The kubelet expands $(NAME) in values; ours are data, and a column may be called anything.
    ours = {name: value.replace("$", "$$") for name, value in trainer_environment(launch).items()}
    limits = {"memory": settings.memory}
    if settings.gpus:
        limits[settings.gpu_resource] = str(settings.gpus)
    container: Manifest = {
        "name": CONTAINER,
        "image": settings.image,
        "env": [{"name": name, "value": value}
                for name, value in ({"HOME": "/tmp"} | settings.environment | ours).items()],
        "resources": {"requests": {"cpu": settings.cpu, "memory": settings.memory}, "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True},
        # The last lines of the log become the pod's message: a failure's reason without the right to read logs.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    if settings.command:
        container["command"] = list(settings.command)
    if settings.environment_secret:
        container["envFrom"] = [{"secretRef": {"name": settings.environment_secret}}]
    pod: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": volumes,
    }
    if settings.service_account:
        pod["serviceAccountName"] = settings.service_account
    if settings.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": settings.image_pull_secret}]
    if settings.node_selector:
        pod["nodeSelector"] = dict(settings.node_selector)
    tolerations = [dict(each) for each in settings.tolerations if settings.gpus or not _is_for_gpus(settings, each)]
    if tolerations:
        pod["tolerations"] = tolerations
    return pod


def _is_for_gpus(settings: config.KubernetesLauncher, toleration: Mapping[str, Any]) -> bool:
    return toleration.get("key") in {settings.gpu_resource, "nvidia.com/gpu"}


def data_path(capture_uri: str) -> str | None:
    """The folder that `capture_uri` names, as written; None for data elsewhere (s3://...)."""
    if capture_uri.startswith("file://"):
        return capture_uri.removeprefix("file://")
    return None if "://" in capture_uri else capture_uri


def check(settings: config.KubernetesLauncher, *, capture_uri: str | None, path: str) -> None:
    """Refuse what the API server would refuse at three in the morning, and what it would accept and never run.

    capture_uri : where captured events are written; None skips the check that a Job can reach them
    path        : where the launcher stands in the configuration, `monitors[0].retrain.launcher`
    """
    if not settings.image or re.search(r"\s", settings.image):
        raise ConfigError(f"{path}.image: expected a container image, got {settings.image!r}")
    _check_amounts(settings, path)
    for field, pattern, example in (("namespace", _DNS_LABEL, "ml"), ("gpu_resource", _QUALIFIED, "nvidia.com/gpu"),
                                    ("service_account", _DNS_NAME, "trainer"),
                                    ("image_pull_secret", _DNS_NAME, "registry-login"),
                                    ("environment_secret", _DNS_NAME, "trainer-environment"),
                                    ("volume_claim", _DNS_NAME, "tidemark-data")):
        value = getattr(settings, field)
        if value is not None and not pattern.fullmatch(value):
            raise ConfigError(f"{path}.{field}: expected a Kubernetes name such as {example}, got {value!r}")
    _check_placement(settings, path)
    for name in settings.environment:
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"{path}.environment: expected names of letters, digits and _, got {name!r}")
        if name.startswith("TIDEMARK_"):
            raise ConfigError(f"{path}.environment: {name} is set by tidemark itself; use another name")
    if capture_uri is not None:
        _check_data(settings, capture_uri, path)


def _check_amounts(settings: config.KubernetesLauncher, path: str) -> None:
    """CPU, memory, shared memory and the time a finished Job is kept."""
    _quantity(settings.cpu, f"{path}.cpu", example="2 or 500m")
    memory = _bytes(settings.memory, f"{path}.memory", example="16Gi")
    if _bytes(settings.shared_memory, f"{path}.shared_memory", example="8Gi") > memory:
        raise ConfigError(f"{path}.shared_memory: expected at most the memory limit {settings.memory}, because its "
                          f"pages are charged to it, got {settings.shared_memory}; raise {path}.memory")
    if settings.keep_hours < KEEP_HOURS_MIN:
        raise ConfigError(f"{path}.keep_hours: expected at least {KEEP_HOURS_MIN}, or a finished Job is removed before "
                          f"its outcome was read, got {settings.keep_hours:g}")


def _check_placement(settings: config.KubernetesLauncher, path: str) -> None:
    """Node selector and tolerations."""
    for key, value in settings.node_selector.items():
        if not _QUALIFIED.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise ConfigError(f"{path}.node_selector: expected a label such as nvidia.com/gpu.present: \"true\", "
                              f"got {key}: {value!r}")
    for index, toleration in enumerate(settings.tolerations):
        if unknown := sorted(set(toleration) - _TOLERATION):
            raise ConfigError(f"{path}.tolerations[{index}]: expected keys of {', '.join(sorted(_TOLERATION))}, "
                              f"got {unknown[0]!r}")


def _check_data(settings: config.KubernetesLauncher, capture_uri: str, path: str) -> None:
    """The captured events must be somewhere that a pod on another machine can read."""
    folder = data_path(capture_uri)
    where = f"{path.removesuffix('.launcher')}.capture_uri"
    if folder is None:
        return
    if not settings.volume_claim:
        raise ConfigError(f"{where}: expected an address that the Job can reach (s3://...), or {path}.volume_claim "
                          f"with the volume that holds it, got {capture_uri!r}")
    pure = PurePosixPath(folder)
    if not pure.is_absolute() or str(pure) in {"/", "/tmp", "/dev", "/dev/shm"} or ":" in folder:
        raise ConfigError(f"{where}: expected the absolute path at which {path}.volume_claim is mounted here and in "
                          f"the Job, such as /data, got {capture_uri!r}")


def _quantity(text: str, where: str, *, example: str) -> Decimal:
    """The amount that a Kubernetes quantity says, greater than 0."""
    match = _QUANTITY.fullmatch(text)
    amount = Decimal(match[1].rstrip(".")) * _SUFFIXES[match[2]] if match else Decimal(0)
    if amount <= 0:
        raise ConfigError(f"{where}: expected a quantity such as {example}, got {text!r}")
    return amount


def _bytes(text: str, where: str, *, example: str) -> Decimal:
    """A quantity of memory; below one mebibyte a unit is missing or is `m`, thousandths of a byte."""
    amount = _quantity(text, where, example=example)
    if amount < 2**20:
        raise ConfigError(f"{where}: expected a quantity such as {example}, got {text!r}, which is less than 1Mi; "
                          "give the unit")
    return amount
