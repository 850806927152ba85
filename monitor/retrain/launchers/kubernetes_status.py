"""One word about a training, read out of the object that the cluster keeps: one pure function per kind.

    status = read("Job", job, pods)                 -> queued, running, succeeded, failed, unknown, and why

What each kind calls the end differs, and each has its trap:

    Job           condition Complete | Failed; `SuccessCriteriaMet` and `FailureTarget` come while pods still run
    TrainJob      condition Complete | Failed
    PyTorchJob    condition Succeeded | Failed                      JobSet   condition Completed (so spelled) | Failed
    RayJob        jobStatus SUCCEEDED | FAILED, STOPPED; `jobDeploymentStatus: Complete` only says that the submitter ended
    Workflow      phase Succeeded | Failed, Error
    PipelineRun   one condition, Succeeded, whose status is the verdict

A condition counts only while its status is "True". *Queued* is all that has not begun to train: suspended, without a
node, with an image that cannot be pulled, or with too few of its pods running, since the others then only wait. What can
hardly get better by itself is called stuck, and stays queued, so that the queue timeout ends it. Objects may have no
status yet, null where a list is meant, conditions in any order and words that came after this was written: none of that
is an error, and none is taken for an end.

`pods` are those of the object, where they may be listed: they tell a pod that waits from one that runs, and its last
words. Cost: microseconds. Neighbours: `kubernetes_kinds` makes the objects, `kubernetes` fetches them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monitor.flow import JobStatus
from monitor.retrain.launchers.kubernetes_client import reason_of

Object = Mapping[str, Any]
Pods = Sequence[Mapping[str, Any]]

#: The last words of a trainer that are shown; its log has the rest.
WORDS_MAX = 300
#: Why a container waits when waiting will not help: a name, a reference or a command is wrong.
STUCK = frozenset({"ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError",
                   "CreateContainerError", "RunContainerError"})


def read(kind: str, found: Object, pods: Pods = ()) -> JobStatus:
    """How the training stands that `found`, an object of `kind`, carries out."""
    return _READERS[kind](found, pods)


def _job(job: Object, pods: Pods) -> JobStatus:
    status, conditions = _status(job), _conditions(job)
    if failed := conditions.get("Failed"):
        return _failed(reason_of(failed), pods)
    if "Complete" in conditions:
        return JobStatus("succeeded")
    if "Suspended" in conditions or (_spec(job).get("suspend") is True and not status.get("active")):
        return JobStatus("queued", reason_of(conditions.get("Suspended", {})))
    if interim := conditions.get("FailureTarget") or conditions.get("SuccessCriteriaMet"):
        return JobStatus("running", reason_of(interim))
    expected = _count(_spec(job).get("parallelism")) or 1
    ready = status.get("ready")
    if _count(ready) + _count(status.get("succeeded")) >= expected or _running(pods) >= expected:
        return JobStatus("running")
    if _count(status.get("active")) and ready is None and not pods:
        return JobStatus("running")                 # a server that does not say; pods may not be listed
    return _queued("", pods, failed=_count(status.get("failed")))


def _train_job(job: Object, pods: Pods) -> JobStatus:
    return _of_jobs(job, pods, "Complete", _entries(_status(job).get("jobsStatus")))


def _job_set(jobs: Object, pods: Pods) -> JobStatus:
    terminal = str(_status(jobs).get("terminalState") or "")
    if terminal == "Failed" and "Failed" not in _conditions(jobs):
        return _failed("", pods)
    if terminal == "Completed":
        return JobStatus("succeeded")
    return _of_jobs(jobs, pods, "Completed", _entries(_status(jobs).get("replicatedJobsStatus")))


def _of_jobs(found: Object, pods: Pods, success: str, children: Sequence[Object]) -> JobStatus:
    """Of a kind that is made of child Jobs, each counted as active from its first pending pod on, as ready with all pods."""
    conditions = _conditions(found)
    if failed := conditions.get("Failed"):
        return _failed(reason_of(failed), pods)
    if success in conditions:
        return JobStatus("succeeded")
    if "Suspended" in conditions or (_spec(found).get("suspend") is True and not children):
        return JobStatus("queued", reason_of(conditions.get("Suspended", {})))
    if any(_count(child.get("ready")) or _count(child.get("succeeded")) for child in children):
        return JobStatus("running")
    active = any(_count(child.get("active")) for child in children)
    if active and not pods and not any("ready" in child for child in children):
        return JobStatus("running")
    if active and pods and _running(pods) == len([each for each in pods if _phase(each) in {"Running", "Pending"}]) > 0:
        return JobStatus("running")                 # every pod runs, and none says that it is ready
    return _queued("", pods)


def _pytorch_job(job: Object, pods: Pods) -> JobStatus:
    conditions = _conditions(job)
    if failed := conditions.get("Failed"):
        return _failed(reason_of(failed), pods)
    if "Succeeded" in conditions:
        return JobStatus("succeeded")
    policy = _map(_spec(job).get("runPolicy"))
    if "Suspended" in conditions or (policy.get("suspend") is True and "Running" not in conditions):
        return JobStatus("queued", reason_of(conditions.get("Suspended", {})))
    if "Running" in conditions and not _all_wait(pods):
        return JobStatus("running")
    return _queued(reason_of(conditions.get("Restarting", {})), pods)


def _ray_job(job: Object, pods: Pods) -> JobStatus:
    status = _status(job)
    outcome, deployment = str(status.get("jobStatus") or ""), str(status.get("jobDeploymentStatus") or "")
    detail = reason_of(status)
    if deployment == "Retrying":
        return _queued(detail or "Retrying", pods)
    if deployment in {"Failed", "ValidationFailed"} or outcome in {"FAILED", "STOPPED"}:
        return _failed(detail or outcome or deployment, pods)
    if outcome == "SUCCEEDED":
        return JobStatus("succeeded")
    if deployment == "Complete":
        return JobStatus("unknown", f"the RayJob is Complete without a verdict of its job ({outcome or 'no jobStatus'})")
    if deployment in {"Suspended", "Suspending"} or (_spec(job).get("suspend") is True and not deployment):
        return JobStatus("queued", detail or deployment)
    if deployment in {"", "New", "Initializing", "Waiting"}:
        return _queued(detail, pods)
    return _queued(detail, pods) if _all_wait(pods) else JobStatus("running", _news(deployment, {"Running"}))


def _workflow(workflow: Object, pods: Pods) -> JobStatus:
    phase, message = str(_status(workflow).get("phase") or ""), str(_status(workflow).get("message") or "")
    if phase in {"Failed", "Error"}:
        return _failed(f"{phase}: {message}" if message else phase, pods)
    if phase == "Succeeded":
        return JobStatus("succeeded")
    if phase in {"", "Pending"} or _all_wait(pods):
        return _queued(message, pods)
    if _spec(workflow).get("suspend") is True:
        return JobStatus("queued", message or "suspended")
    return JobStatus("running", message or _news(phase, {"Running"}))


def _pipeline_run(run: Object, pods: Pods) -> JobStatus:
    verdict = next((each for each in _entries(_status(run).get("conditions")) if each.get("type") == "Succeeded"), {})
    value, reason = str(verdict.get("status") or ""), str(verdict.get("reason") or "")
    if value == "False":
        return _failed(reason_of(verdict), pods)
    if value == "True":
        return JobStatus("succeeded")
    if not value or reason == "PipelineRunPending" or _spec(run).get("status") == "PipelineRunPending" or _all_wait(pods):
        return _queued(reason_of(verdict), pods)
    return JobStatus("running", "" if reason in {"Running", "Started"} else reason_of(verdict))


_READERS: Mapping[str, Callable[[Object, Pods], JobStatus]] = {
    "Job": _job, "TrainJob": _train_job, "PyTorchJob": _pytorch_job, "JobSet": _job_set, "RayJob": _ray_job,
    "Workflow": _workflow, "PipelineRun": _pipeline_run,
}


def _failed(reason: str, pods: Pods) -> JobStatus:
    return JobStatus("failed", "; ".join(filter(None, [reason, _last_words(pods)])))


def _queued(reason: str, pods: Pods, *, failed: int = 0) -> JobStatus:
    """Queued, with what the object says, what its pods wait for, and how earlier attempts ended."""
    waiting = next(filter(None, map(_waits_for, pods)), "")
    attempts = f"{failed} failed before; {_last_words(pods)}".rstrip("; ") if failed else ""
    return JobStatus("queued", "; ".join(filter(None, [reason, waiting, attempts])))


def _map(value: Any) -> Object:
    return value if isinstance(value, dict) else {}


def _status(found: Object) -> Object:
    return _map(found.get("status"))


def _spec(found: Object) -> Object:
    return _map(found.get("spec"))


def _conditions(found: Object) -> dict[str, Object]:
    """The conditions that hold, by type."""
    return {str(each.get("type")): each for each in _entries(_status(found).get("conditions"))
            if each.get("status") == "True"}


def _entries(value: Any) -> list[Object]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _news(word: str, known: frozenset[str] | set[str]) -> str:
    """A word that we do not know, for people to see."""
    return "" if word in known else word


def _phase(pod: Object) -> str:
    return str(_status(pod).get("phase") or "")


def _running(pods: Pods) -> int:
    return sum(_phase(pod) == "Running" for pod in pods)


def _all_wait(pods: Pods) -> bool:
    """Whether pods are known, and none of them has come further than waiting."""
    return bool(pods) and all(_phase(pod) == "Pending" for pod in pods)


def _waits_for(pod: Object) -> str:
    """What a pending pod waits for: a node, an image, a volume; empty if it does not say."""
    if _phase(pod) != "Pending":
        return ""
    status = _status(pod)
    for condition in _entries(status.get("conditions")):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return reason_of(condition)
    for container in [*_entries(status.get("initContainerStatuses")), *_entries(status.get("containerStatuses"))]:
        if waiting := _map(_map(container.get("state")).get("waiting")):
            return ("stuck: " if str(waiting.get("reason")) in STUCK else "") + reason_of(waiting)
    return ""


def _last_words(pods: Pods) -> str:
    """How the newest failed pod's container ended: exit code, and the last of its log that the kubelet kept."""
    failed = [pod for pod in pods if _phase(pod) == "Failed"]
    newest = max(failed, key=lambda pod: str(_map(pod.get("metadata")).get("creationTimestamp", "")), default={})
    for container in _entries(_status(newest).get("containerStatuses")):
        if (ended := _map(_map(container.get("state")).get("terminated"))) and ended.get("exitCode"):
            words = " ".join(str(ended.get("message") or "").split())[-WORDS_MAX:]
            reason = f" ({ended['reason']})" if str(ended.get("reason") or "Error") not in {"Error", "Completed"} else ""
            return ": ".join(filter(None, [f"exit code {ended.get('exitCode')}{reason}", words]))
    return reason_of(_status(newest))               # evicted before a container ended: the pod says why
