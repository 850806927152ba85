"""One launch as a `batch/v1` Job: one pod, or an Indexed Job of several nodes that train together under torchrun.

    manifest = job_manifest(settings, launch)       the same launch gives the same Job, byte for byte

What holds besides what the pod takes care of (`kubernetes_pod`):

  * a disruption (drain, preemption) uses up no retry. A program that fails is not tried again: every exit code ends the
    Job but those of a kill from outside or a crash of the runtime, which count toward `backoff_limit`.
  * the deadline is the Job's, not the pod's: it holds over all retries together. A finished Job is removed by its TTL.
  * several nodes are one training: completions = parallelism = nodes, and a node that fails ends all of them, since the
    others could only wait for it. They find the first one under `<job>-0.<job>`, by a headless Service that belongs to the
    Job and goes with it. JobSet is the better choice where nodes get lost often: it starts all of them anew.

Cost: microseconds, a few kilobytes. Neighbours: `kubernetes_kinds`, the other kinds; `kubernetes`, which sends it.
"""

from __future__ import annotations

from monitor import config
from monitor.flow import Launch
from monitor.retrain.launchers import kubernetes_pod as pod
from monitor.retrain.launchers.kubernetes_client import Manifest, Resource

SERVICE = Resource("", "v1", "services", "Service", role="kinds/indexedjob.yaml")
#: 128 + a signal: aborted (NCCL's watchdog), killed, memory violated, terminated. Another try may go well. A bus error is
#: not among them: it is a `/dev/shm` that is too small.
KILLED_EXIT_CODES = [134, 137, 139, 143]
#: What says that another try is vain, whoever else failed: shell usage, EX_USAGE, EX_CONFIG.
FINAL_EXIT_CODES = [2, 64, 78]


def failure_rules(settings: config.KubernetesLauncher, *, gang: bool) -> list[Manifest]:
    """What a pod's failure means, first match wins; anything else counts toward the backoff limit.

    gang : several nodes that are made anew together; one that exits 1 may only have lost its peer, so only codes that
           mean it are final, and a disruption is a failure of all
    """
    ended = {"action": "FailJob", "onExitCodes": {
        "containerName": pod.CONTAINER, **({"operator": "In", "values": FINAL_EXIT_CODES} if gang
                                           else {"operator": "NotIn", "values": KILLED_EXIT_CODES})}}
    disrupted = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return [{"action": "Count" if gang else "Ignore", **disrupted}, ended]


def job_manifest(settings: config.KubernetesLauncher, launch: Launch, *, volume_path: str = pod.VOLUME_PATH) -> Manifest:
    """The Job that trains `launch`.

    volume_path : where `settings.volume_claim` is mounted; the folder of the captured data when that is a folder
    """
    name, several = pod.job_name(launch), settings.nodes > 1
    template = pod.pod_template(settings, launch, volume_path=volume_path,
                                more=pod.torchrun(settings, address=f"{name}-0.{name}"))
    spec: Manifest = {
        "backoffLimit": 0 if several else settings.backoff_limit,
        "activeDeadlineSeconds": pod.deadline_seconds(settings),
        "ttlSecondsAfterFinished": pod.seconds(settings.keep_hours),
        "podReplacementPolicy": "Failed",           # one pod holds the GPUs at a time
        "podFailurePolicy": {"rules": failure_rules(settings, gang=False)},
        "template": template,
    }
    if several:
        template["spec"]["subdomain"] = name
        spec |= {"completionMode": "Indexed", "completions": settings.nodes, "parallelism": settings.nodes}
    if settings.queue:
        spec["suspend"] = True                      # Kueue lets it go; without Kueue it waits, and never runs unqueued
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": pod.metadata(settings, launch), "spec": spec}


def indexed(settings: config.KubernetesLauncher, launch: Launch) -> Manifest:
    """The headless Service that gives the pods of an Indexed Job their names; its owner is set when the Job exists."""
    name = pod.job_name(launch)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": settings.namespace, "labels": pod.labels(launch)},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,       # the nodes meet before any of them is ready
            "selector": {"batch.kubernetes.io/job-name": name},
            "ports": [{"name": "rendezvous", "port": pod.RENDEZVOUS_PORT}],
        },
    }
