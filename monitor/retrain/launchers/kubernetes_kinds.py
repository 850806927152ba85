"""One launch as an object of each kind that can train it: pure functions from configuration and launch to a manifest.

    KINDS["PyTorchJob"].manifest(settings, launch, volume_path)     the same launch gives the same object, byte for byte

    Job           batch/v1, one pod; with several `nodes` an Indexed Job beside a headless Service (`kubernetes_job`)
    TrainJob      Kubeflow Trainer 2.2 or later: the runtime's pod, patched into ours
    PyTorchJob    Kubeflow Training Operator 1.x: a Master and Workers
    JobSet        one replicated Job, restarted as a whole
    RayJob        a RayCluster of its own for the length of the job; the command is its entry point
    Workflow      Argo, from a WorkflowTemplate of the namespace      PipelineRun   Tekton, from a Pipeline
                  (the pods are the template's: it is told everything by parameters, secrets by their names)

What they share: a name made from the launch's id, labels and annotations, `suspend` where a Kueue queue decides when to
start, a deadline of the cluster's own. A program that fails is not tried again and a lost pod is, as far as the kind can
tell the two apart; each function says how. A kind that cannot take a setting refuses it (`KINDS[...].refuses`) instead of
ignoring it.

Cost: microseconds, a few kilobytes. Neighbours: `kubernetes_pod`, `kubernetes_status`, which reads the same kinds back.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from monitor import config
from monitor.flow import Launch
from monitor.retrain.launchers import kubernetes_pod as pod
from monitor.retrain.launchers import trainer_environment
from monitor.retrain.launchers.kubernetes_client import Manifest, Resource
from monitor.retrain.launchers.kubernetes_job import failure_rules, indexed, job_manifest

Settings = config.KubernetesLauncher
PATCH_MANAGER = "tidemark.dev/retraining"
#: How the training runtimes of Kubeflow Trainer call the Job and the container that train.
_NODE = "node"
_OF_THE_TEMPLATE = "its pods are the template's"
_POD_FIELDS = ("image", "command", "nodes", "gpu_resource", "cpu", "memory", "shared_memory", "backoff_limit",
               "image_pull_secret", "environment_secret_keys", "volume_claim", "node_selector", "tolerations")


@dataclass(frozen=True, slots=True)
class Kind:
    """What is particular to one kind.

    manifest     : (settings, launch, path of the claimed volume) -> object
    pod_selector : labels that the kind's controller puts on its pods; `{name}` and `{launch}` are filled in
    pods         : where pod specifications stand in the object, `*` for every entry of a list or map
    knows_queue  : whether Kueue can hold it back
    refuses      : fields of the settings that it cannot take, with the reason
    """

    resource: Resource
    manifest: Callable[[Settings, Launch, str], Manifest]
    pod_selector: str
    pods: tuple[tuple[str, ...], ...]
    knows_queue: bool
    refuses: Mapping[str, str]


def _job(settings: Settings, launch: Launch, volume_path: str) -> Manifest:
    return job_manifest(settings, launch, volume_path=volume_path)


def _suspended(settings: Settings) -> Manifest:
    """Where Kueue decides when to start, the object is made held back: without Kueue it waits, and never runs unqueued."""
    return {"suspend": True} if settings.queue else {}


def _object(settings: Settings, launch: Launch, kind: str, spec: Manifest) -> Manifest:
    return {"apiVersion": KINDS[kind].resource.api_version, "kind": kind, "metadata": pod.metadata(settings, launch),
            "spec": spec}


def _train_job(settings: Settings, launch: Launch, volume_path: str) -> Manifest:
    """Image, command, environment and resources are the trainer's; the rest of the pod is patched into the runtime's.

    Restarts, the TTL and what else a patch cannot reach (terminationMessagePolicy, the service account's token) are the
    runtime's.
    """
    kind, _, name = settings.runtime.rpartition("/")
    trainer: Manifest = {"image": settings.image, "numNodes": settings.nodes,
                         "env": pod.environment(settings, launch), "resourcesPerNode": pod.resources(settings)}
    if settings.gpus:
        trainer["numProcPerNode"] = settings.gpus
    if settings.command:
        trainer["command"] = list(settings.command)
    patched = {"metadata": {"labels": pod.labels(launch)}, "spec": {
        "securityContext": dict(pod.POD_SECURITY),
        "containers": [{"name": _NODE, "securityContext": dict(pod.CONTAINER_SECURITY),
                        "volumeMounts": pod.mounts(settings, volume_path)}],
        "volumes": pod.volumes(settings),
        **pod.placement(settings),
    }}
    return _object(settings, launch, "TrainJob", {
        **_suspended(settings),
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": kind or "ClusterTrainingRuntime", "name": name},
        "activeDeadlineSeconds": pod.deadline_seconds(settings),
        "trainer": trainer,
        "runtimePatches": [{"manager": PATCH_MANAGER, "trainingRuntimeSpec": {"template": {"spec": {
            "replicatedJobs": [{"name": _NODE, "template": {"spec": {"template": patched}}}]}}}}],
    })


def _pytorch_job(settings: Settings, launch: Launch, volume_path: str) -> Manifest:
    """`ExitCode` holds exit codes 1 to 127 for the program's own fault and takes 128 and more, a signal, for another try."""
    def replica(count: int) -> Manifest:
        return {"replicas": count, "restartPolicy": "ExitCode", "template": pod.pod_template(
            settings, launch, volume_path=volume_path, container="pytorch", restart=None)}

    workers = {"Worker": replica(settings.nodes - 1)} if settings.nodes > 1 else {}
    processes = {"nprocPerNode": str(settings.gpus)} if settings.gpus > 1 else {}
    return _object(settings, launch, "PyTorchJob", {
        "runPolicy": {
            **_suspended(settings),
            "cleanPodPolicy": "Running",            # finished pods stay until the TTL: their last words are read
            "backoffLimit": settings.backoff_limit,
            "activeDeadlineSeconds": pod.deadline_seconds(settings),
            "ttlSecondsAfterFinished": pod.seconds(settings.keep_hours),
        },
        **processes,
        "pytorchReplicaSpecs": {"Master": replica(1), **workers},
    })


def _job_set(settings: Settings, launch: Launch, volume_path: str) -> Manifest:
    """One replicated Job; when it fails, all of it is made anew, up to `backoff_limit` times.

    What a pod's failure means is the Job's policy to say, and a failure by that policy is final for the set. Of several
    nodes, one that exits 1 may only have lost its peer: those are made anew together, unless they say that it is final.
    """
    name = pod.job_name(launch)
    spec: Manifest = {
        "completionMode": "Indexed",
        "completions": settings.nodes,
        "parallelism": settings.nodes,
        "backoffLimit": 0,
        "activeDeadlineSeconds": pod.deadline_seconds(settings),
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": failure_rules(settings, gang=settings.nodes > 1)},
        "template": pod.pod_template(settings, launch, volume_path=volume_path,
                                     more=pod.torchrun(settings, address=f"{name}-{_NODE}-0-0.{name}")),
    }
    return _object(settings, launch, "JobSet", {
        **_suspended(settings),
        "ttlSecondsAfterFinished": pod.seconds(settings.keep_hours),
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {"maxRestarts": settings.backoff_limit, "rules": [
            {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"]}]},
        "replicatedJobs": [{"name": _NODE, "replicas": 1, "template": {"spec": spec}}],
    })


def _ray_job(settings: Settings, launch: Launch, volume_path: str) -> Manifest:
    """A head and `nodes - 1` workers. Ray cannot tell a failing program from a lost pod, so nothing is tried again.

    The operator submits over HTTP: the submitting pod of its default would not pass Pod Security "restricted".
    """
    def group() -> Manifest:
        return {"rayStartParams": {}, "template": pod.pod_template(
            settings, launch, volume_path=volume_path, with_command=False)}

    workers = [{"groupName": "workers", "replicas": settings.nodes - 1, "minReplicas": settings.nodes - 1,
                "maxReplicas": settings.nodes - 1, **group()}] if settings.nodes > 1 else []
    return _object(settings, launch, "RayJob", {
        **_suspended(settings),
        "entrypoint": shlex.join(settings.command),
        "submissionMode": "HTTPMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": pod.seconds(settings.keep_hours),
        "activeDeadlineSeconds": pod.deadline_seconds(settings),
        "backoffLimit": 0,
        "rayClusterSpec": {"headGroupSpec": group(), **({"workerGroupSpecs": workers} if workers else {})},
    })


def _parameters(settings: Settings, launch: Launch) -> list[Manifest]:
    """What a template is told: the trainer's environment under the same names, and secrets by their names alone."""
    secret = {"TIDEMARK_ENVIRONMENT_SECRET": settings.environment_secret} if settings.environment_secret else {}
    return [{"name": name, "value": value}
            for name, value in (settings.environment | trainer_environment(launch) | secret).items()]


def _workflow(settings: Settings, launch: Launch, volume_path: str) -> Manifest:
    """A run of a WorkflowTemplate of the namespace; retries are the template's."""
    account = {"serviceAccountName": settings.service_account} if settings.service_account else {}
    return _object(settings, launch, "Workflow", {
        "workflowTemplateRef": {"name": settings.template},
        "arguments": {"parameters": _parameters(settings, launch)},
        "activeDeadlineSeconds": pod.deadline_seconds(settings),
        "ttlStrategy": {"secondsAfterCompletion": pod.seconds(settings.keep_hours)},
        "podMetadata": {"labels": pod.labels(launch)},
        **account,
    })


def _pipeline_run(settings: Settings, launch: Launch, volume_path: str) -> Manifest:
    """A run of a Pipeline of the namespace; retries are the Pipeline's, and finished runs are removed by Tekton's pruner."""
    account = {"taskRunTemplate": {"serviceAccountName": settings.service_account}} if settings.service_account else {}
    return _object(settings, launch, "PipelineRun", {
        "pipelineRef": {"name": settings.template},
        "params": _parameters(settings, launch),
        "timeouts": {"pipeline": f"{pod.deadline_seconds(settings)}s"},
        **account,
    })


_NO_TEMPLATE = {"template": "it is made from no template; use kind Workflow or PipelineRun"}
_NO_RUNTIME = {"runtime": "only kind TrainJob has one"}
_TEMPLATE_ONLY = dict.fromkeys(_POD_FIELDS, _OF_THE_TEMPLATE) | _NO_RUNTIME

KINDS: Mapping[str, Kind] = {
    "Job": Kind(
        Resource("batch", "v1", "jobs", "Job"), _job, "batch.kubernetes.io/job-name={name}",
        (("spec", "template", "spec"),), True, _NO_TEMPLATE | _NO_RUNTIME),
    "TrainJob": Kind(
        Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob", "Kubeflow Trainer",
                 "kinds/trainjob.yaml"), _train_job,
        "jobset.sigs.k8s.io/jobset-name={name}",
        (("spec", "runtimePatches", "*", "trainingRuntimeSpec", "template", "spec", "replicatedJobs", "*", "template",
          "spec", "template", "spec"),), True,
        _NO_TEMPLATE | {"backoff_limit": "restarts are the training runtime's",
                        "keep_hours": "a TrainJob has no TTL; it stays until somebody removes it"}),
    "PyTorchJob": Kind(
        Resource("kubeflow.org", "v1", "pytorchjobs", "PyTorchJob", "Kubeflow's Training Operator",
                 "kinds/pytorchjob.yaml"), _pytorch_job,
        "training.kubeflow.org/job-name={name}",
        (("spec", "pytorchReplicaSpecs", "*", "template", "spec"),), True, _NO_TEMPLATE | _NO_RUNTIME),
    "JobSet": Kind(
        Resource("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet", "JobSet",
                 "kinds/jobset.yaml"), _job_set,
        "jobset.sigs.k8s.io/jobset-name={name}",
        (("spec", "replicatedJobs", "*", "template", "spec", "template", "spec"),), True, _NO_TEMPLATE | _NO_RUNTIME),
    "RayJob": Kind(
        Resource("ray.io", "v1", "rayjobs", "RayJob", "KubeRay",
                 "kinds/rayjob.yaml"), _ray_job, "tidemark.dev/launch={launch}",
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec"),
         ("spec", "rayClusterSpec", "workerGroupSpecs", "*", "template", "spec")), True,
        _NO_TEMPLATE | _NO_RUNTIME | {"backoff_limit": "Ray cannot tell a failing program from a lost pod; it is 0"}),
    "Workflow": Kind(
        Resource("argoproj.io", "v1alpha1", "workflows", "Workflow", "Argo Workflows",
                 "kinds/workflow.yaml"), _workflow,
        "workflows.argoproj.io/workflow={name}", (), False, _TEMPLATE_ONLY),
    "PipelineRun": Kind(
        Resource("tekton.dev", "v1", "pipelineruns", "PipelineRun", "Tekton Pipelines",
                 "kinds/pipelinerun.yaml"), _pipeline_run,
        "tekton.dev/pipelineRun={name}", (), False,
        _TEMPLATE_ONLY | {"keep_hours": "finished runs are removed by Tekton's pruner"}),
}


def beside(settings: Settings, launch: Launch) -> Manifest | None:
    """What has to stand beside the object: the headless Service by which the pods of an Indexed Job find the first one."""
    return indexed(settings, launch) if settings.kind == "Job" and settings.nodes > 1 else None
