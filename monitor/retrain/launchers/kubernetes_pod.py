"""The pod that trains, the same whatever kind of object carries it, and the names and labels that all of them bear.

    template = pod_template(settings, launch)       metadata and spec, for the place where a kind keeps its pods

What it takes care of, because each was somebody's lost night:

  * `/dev/shm` is 64 MB in a container; data-loader workers and NCCL die on it. A memory-backed volume is put there. Its
    pages count against the memory limit, so it may not be larger.
  * it runs under Pod Security "restricted" and OpenShift's restricted-v2 with any UID: nothing is written but `/tmp`,
    `/dev/shm` and the claimed volume. The trainer gets no Kubernetes credentials; secrets come by reference.
  * GPUs are a limit, which is their request, too; memory is request and limit; CPU is no limit, which would throttle data
    loading.
  * no owner: upgrading tidemark never removes a running training.

`torchrun` learns of nodes and processes by the PET_ variables that stand for its flags, as Kubeflow's operators tell them:
one command, `torchrun train.py`, fits every kind. Names are made from the launch's id, never from the clock.
Neighbours: `kubernetes_job` and `kubernetes_kinds` put the pod into objects. Nothing here imports the client.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from monitor import config
from monitor.flow import Launch
from monitor.retrain.launchers import trainer_environment
from monitor.retrain.launchers.kubernetes_client import Manifest

CONTAINER = "trainer"
MODEL_LABEL, LAUNCH_LABEL = "tidemark.dev/model", "tidemark.dev/launch"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
#: Of a name. The pods' own names, services and RayClusters add up to 23 to it, and must stay within 63 (Ray: 53).
NAME_CHARACTERS = 40
LABEL_CHARACTERS = 63
#: Where a claimed volume appears when the captured data itself is elsewhere (s3://...).
VOLUME_PATH = "/data"
#: Where the processes of several nodes meet: torchrun's own default.
RENDEZVOUS_PORT = 29500
POD_SECURITY: Mapping[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER_SECURITY: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}


def job_name(launch: Launch) -> str:
    """The object's name: `tidemark-<model>-<launch id>`, at most 40 of a-z, 0-9 and `-`; one launch, one name."""
    room = NAME_CHARACTERS - len(f"tidemark--{launch.id}")
    model = re.sub(r"[^a-z0-9]+", "-", launch.model.lower()).strip("-")[:room].rstrip("-")
    return "-".join(part for part in ("tidemark", model, launch.id) if part)


def label_value(text: str) -> str:
    """`text` as a label's value: at most 63 of A-Z, a-z, 0-9, `-`, `_` and `.`, alphanumeric at both ends."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:LABEL_CHARACTERS].strip("-_.")


def labels(launch: Launch) -> dict[str, str]:
    """What object and pods are selected by."""
    return {
        "app.kubernetes.io/name": "tidemark-trainer",
        "app.kubernetes.io/part-of": "tidemark",
        "app.kubernetes.io/managed-by": "tidemark",
        "app.kubernetes.io/component": "retraining",
        MODEL_LABEL: label_value(launch.model),
        LAUNCH_LABEL: launch.id,
    }


def metadata(settings: config.KubernetesLauncher, launch: Launch) -> Manifest:
    """Of the object: sanitised names as labels, for selecting; names and reason as they are as annotations, for people."""
    queue = {QUEUE_LABEL: settings.queue} if settings.queue else {}
    return {
        "name": job_name(launch),
        "namespace": settings.namespace,
        "labels": labels(launch) | queue,
        "annotations": {
            MODEL_LABEL: launch.model,
            "tidemark.dev/version": launch.version,
            "tidemark.dev/episode": str(launch.episode),
            "tidemark.dev/reason": launch.reason,
        },
    }


def seconds(hours: float) -> int:
    """Hours as whole seconds, never fewer."""
    return math.ceil(hours * 3600)


def deadline_seconds(settings: config.KubernetesLauncher) -> int:
    """The deadline that the cluster holds, also while tidemark is down.

    A suspended object's clock stands still until its queue lets it in. One that is not suspended is charged for the wait
    for a node, too, so that wait is added: else what started late would be ended early. tidemark itself counts only the
    hours after the wait.
    """
    return seconds(settings.deadline_hours if settings.queue else settings.deadline_hours + settings.queue_hours)


def environment(settings: config.KubernetesLauncher, launch: Launch, *, more: Sequence[Manifest] = ()) -> list[Manifest]:
    """The trainer's environment: `more`, then the user's, then ours, of which the later wins."""
    # The kubelet expands $(NAME) in values; ours are data, and a column may be called anything.
    ours = {name: value.replace("$", "$$") for name, value in trainer_environment(launch).items()}
    named = {name: {"name": name, "value": value} for name, value in (settings.environment | ours).items()}
    secrets = {key: {"name": key, "valueFrom": {"secretKeyRef": {"name": settings.environment_secret, "key": key}}}
               for key in settings.environment_secret_keys}
    return list(({"HOME": {"name": "HOME", "value": "/tmp"}} | {each["name"]: each for each in more} | secrets
                 | named).values())


def torchrun(settings: config.KubernetesLauncher, *, address: str = "") -> list[Manifest]:
    """What `torchrun` is told where no operator tells it; nothing for a single process.

    address : host name of the first node's pod, where there are several
    """
    told = {"PET_NPROC_PER_NODE": str(max(settings.gpus, 1))} if settings.gpus > 1 or settings.nodes > 1 else {}
    variables: list[Manifest] = [{"name": name, "value": value} for name, value in told.items()]
    if settings.nodes > 1:
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        variables += [
            {"name": "PET_NNODES", "value": str(settings.nodes)},
            {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}},
            {"name": "PET_MASTER_ADDR", "value": address},
            {"name": "PET_MASTER_PORT", "value": str(RENDEZVOUS_PORT)},
        ]
    return variables


def resources(settings: config.KubernetesLauncher) -> Manifest:
    """Requests and limits of the container."""
    limits = {"memory": settings.memory}
    if settings.gpus:
        limits[settings.gpu_resource] = str(settings.gpus)
    return {"requests": {"cpu": settings.cpu, "memory": settings.memory}, "limits": limits}


def volumes(settings: config.KubernetesLauncher) -> list[Manifest]:
    """Shared memory, `/tmp`, and the claim with the captured data where there is one."""
    found: list[Manifest] = [
        {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if settings.volume_claim:
        found.append({"name": "data", "persistentVolumeClaim": {"claimName": settings.volume_claim}})
    return found


def mounts(settings: config.KubernetesLauncher, volume_path: str) -> list[Manifest]:
    """Where the volumes appear in the container."""
    found = [{"name": "dshm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp"}]
    return [*found, {"name": "data", "mountPath": volume_path}] if settings.volume_claim else found


def placement(settings: config.KubernetesLauncher) -> Manifest:
    """Whose right and on which nodes the pod runs: the fields that are set, no others."""
    pod: Manifest = {}
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


def pod_template(settings: config.KubernetesLauncher, launch: Launch, *, volume_path: str = VOLUME_PATH,
                 container: str = CONTAINER, restart: str | None = "Never", with_command: bool = True,
                 more: Sequence[Manifest] = ()) -> Manifest:
    """Labels and specification of the pod.

    volume_path  : where `settings.volume_claim` is mounted; the folder of the captured data when that is a folder
    container    : its name, which some kinds prescribe       restart : None where the kind sets the policy itself
    with_command : False where the kind starts something else in the pod       more : further environment variables
    """
    trainer: Manifest = {
        "name": container,
        "image": settings.image,
        "env": environment(settings, launch, more=more),
        "resources": resources(settings),
        "securityContext": dict(CONTAINER_SECURITY),
        # The last lines of the log become the pod's message: a failure's reason without the right to read logs.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts(settings, volume_path),
    }
    if settings.command and with_command:
        trainer["command"] = list(settings.command)
    if settings.environment_secret and not settings.environment_secret_keys:
        trainer["envFrom"] = [{"secretRef": {"name": settings.environment_secret}}]
    policy = {} if restart is None else {"restartPolicy": restart}
    return {"metadata": {"labels": labels(launch)}, "spec": {
        **policy,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": dict(POD_SECURITY),
        "containers": [trainer],
        "volumes": volumes(settings),
        **placement(settings),
    }}


def _is_for_gpus(settings: config.KubernetesLauncher, toleration: Mapping[str, Any]) -> bool:
    return toleration.get("key") in {settings.gpu_resource, "nvidia.com/gpu"}
