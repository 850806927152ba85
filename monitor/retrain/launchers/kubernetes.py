"""The launcher that trains in a Kubernetes Job, through the official client and plain documents.

    start    POST the Job; 409 means that the name is taken: the same launch is success, another one is an error
    status   GET the Job, and its pods where that is allowed, and read one word out of them
    cancel   DELETE in the background; already gone is fine

What holds: `start` of one launch, however often and from however many processes, is one Job, because the name comes
from the launch's id. The name alone is not enough, since a finished Job is removed by its TTL and the name is free
again; the outbox remembers what was started. A Job that is gone is `unknown`, never a success.

Every failure is a LaunchFailed of one line that says what the person must do; `retry` is true where the same call may
succeed later (server away, overloaded, quota used up) and false where it never will (no right, invalid, wrong
credentials). The client's own retries are off: the outbox retries, and counts.

The client is used for `CustomObjectsApi` and two raw listings only: documents in, documents out, so that a cluster
newer than the client's models is no obstacle. It takes 0.3 s and 40 MB to import, hence late. A call waits 3 s for
the connection and 10 s for the answer. Neighbour: `kubernetes_job.py`, which makes the manifest.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from monitor import config
from monitor.errors import ConfigError, LaunchFailed
from monitor.flow import JobStatus, Launch
from monitor.retrain.launchers.kubernetes_job import (
    LAUNCH_LABEL,
    VOLUME_PATH,
    Manifest,
    check,
    data_path,
    job_manifest,
    job_name,
)

TIMEOUT = (3, 10)                                   # seconds to connect, to answer
_JOBS = ("batch", "v1", "jobs")
#: What a listing of pods or events brings at most; a Job of ours has a handful.
_LISTED_MAX = 50
#: Answers after which the same call may succeed: timeout, conflict of two writers, too many requests.
_PASSING = frozenset({408, 409, 429})
#: The last words of a trainer that are shown; its log has the rest.
_WORDS_MAX = 300


_T = TypeVar("_T")


class _Refused(LaunchFailed):
    """An answer of the API server that is not a success; `status` is its HTTP status."""

    def __init__(self, message: str, *, status: int, retry: bool = False) -> None:
        super().__init__(message, retry=retry)
        self.status = status


class KubernetesJobs:
    """A `monitor.flow.Launcher` that makes a `batch/v1` Job of each launch.

    settings    : the launcher's node of the configuration
    capture_uri : where captured events are written; a folder must be the mount path of `settings.volume_claim`;
                  None leaves that unchecked and mounts the claim at /data
    path        : where `settings` stands in the file, for errors
    """

    name = "kubernetes"

    def __init__(self, settings: config.KubernetesLauncher, *, capture_uri: str | None = None,
                 path: str = "retrain.launcher") -> None:
        check(settings, capture_uri=capture_uri, path=path)
        if importlib.util.find_spec("kubernetes") is None:
            raise ConfigError(f"{path}.type: kubernetes needs an extra; pip install 'tidemark[kubernetes]'")
        if settings.kubeconfig is not None and not Path(settings.kubeconfig).expanduser().is_file():
            raise ConfigError(f"{path}.kubeconfig: expected a file, got {settings.kubeconfig!r}")
        self._settings = settings
        self._path = path
        self._volume_path = data_path(capture_uri or "") or VOLUME_PATH
        self._client: Any = None                    # a kubernetes.client.ApiClient; made by the first call

    def start(self, launch: Launch) -> str:
        """Create the Job, or find the one that an earlier call of this launch created; the Job's name."""
        name = job_name(launch)
        manifest = job_manifest(self._settings, launch, volume_path=self._volume_path)
        try:
            self._call("create", "jobs", lambda api: api.create_namespaced_custom_object(
                *self._place(), manifest, field_manager="tidemark", field_validation="Strict",
                _request_timeout=TIMEOUT))
        except _Refused as error:
            if error.status != 409:
                raise
            self._require_same(name, launch)
        return name

    def status(self, launch: Launch) -> JobStatus:
        """What the cluster says of the Job; `unknown` when it is gone."""
        name = launch.external or job_name(launch)
        try:
            job = self._get(name)
        except _Refused as error:
            if error.status != 404:
                raise
            return JobStatus("unknown", f"Job {name} is gone from namespace {self._settings.namespace}: removed by "
                                        f"its TTL ({self._path}.keep_hours) or by a person")
        if _label(job) != launch.id:
            return JobStatus("unknown", f"Job {name} belongs to another launch ({_label(job) or 'no label'})")
        pods = self._list_quietly("pods", label_selector=f"batch.kubernetes.io/job-name={name}")
        status = job_status(job, pods)
        if status.state == "queued" and not pods and not status.detail:
            return JobStatus("queued", self._warning(name))
        return status

    def cancel(self, launch: Launch) -> None:
        """Remove the Job and its pods; no error if there is none."""
        name = launch.external or job_name(launch)
        try:
            self._call("delete", "jobs", lambda api: api.delete_namespaced_custom_object(
                *self._place(), name, propagation_policy="Background", _request_timeout=TIMEOUT))
        except _Refused as error:
            if error.status != 404:
                raise

    def _place(self) -> tuple[str, str, str, str]:
        group, version, plural = _JOBS
        return group, version, self._settings.namespace, plural

    def _get(self, name: str) -> Manifest:
        job = self._call("get", "jobs", lambda api: api.get_namespaced_custom_object(
            *self._place(), name, _request_timeout=TIMEOUT))
        if not isinstance(job, dict):
            raise LaunchFailed(f"Kubernetes: expected a Job as the answer to get {name}, got {str(job)[:80]!r}; does "
                               "something else answer in the API server's place?")
        return job

    def _require_same(self, name: str, launch: Launch) -> None:
        """The name was taken: return if it is this launch's Job, raise if not."""
        try:
            job = self._get(name)
        except _Refused as error:
            if error.status != 404:
                raise
            raise LaunchFailed(f"Kubernetes: Job {name} was removed just now; try again", retry=True) from None
        if _label(job) != launch.id:
            raise LaunchFailed(f"Kubernetes: Job {name} in namespace {self._settings.namespace} belongs to another "
                               f"launch ({_label(job) or 'no label'}, expected {launch.id}); remove or rename it")
        if job["metadata"].get("deletionTimestamp"):
            raise LaunchFailed(f"Kubernetes: Job {name} of this launch is being removed; try again", retry=True)

    def _list_quietly(self, what: str, **selectors: str) -> list[Manifest]:
        """Pods or events of the namespace; none where they may not be listed: they only make the detail better."""
        from kubernetes.client import CoreV1Api

        def listing(api: Any) -> list[Manifest]:
            core: Any = CoreV1Api(api.api_client)
            call = core.list_namespaced_pod if what == "pods" else core.list_namespaced_event
            # Raw: the client's models refuse what they do not know, and then an error status is ours to see.
            answer = call(self._settings.namespace, limit=_LISTED_MAX, _preload_content=False,
                          _request_timeout=TIMEOUT, **selectors)
            return list(json.loads(answer.data).get("items") or ()) if answer.status == 200 else []

        try:
            return self._call("list", what, listing)
        except (LaunchFailed, ValueError):          # ValueError: an answer that is not JSON
            return []

    def _warning(self, name: str) -> str:
        """Why a Job has no pods: the newest warning about it (quota, admission), if events may be listed."""
        events = self._list_quietly("events", field_selector=f"involvedObject.name={name},type=Warning")
        newest = max(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime")), default={})
        return _reason(newest)

    def _call(self, verb: str, resource: str, request: Callable[[Any], _T]) -> _T:
        """Run one request; every way in which it can fail becomes one line."""
        from kubernetes.client import CustomObjectsApi
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        if self._client is None:
            self._client = _connect(self._settings.kubeconfig, self._path)
        try:
            return request(CustomObjectsApi(self._client))
        except ApiException as error:
            if error.status == 401:
                self._client = None                 # the next call reads the credentials anew: they may be renewed
            raise self._refusal(verb, resource, int(error.status or 0), str(error.body or error.reason or "")) from None
        except HTTPError as error:                  # no answer: refused, timed out, cut in the middle
            host = self._client.configuration.host
            raise LaunchFailed(f"Kubernetes: no answer from {host} ({_cause(error)}); is the API server up and "
                               "reachable from here?", retry=True) from None

    def _refusal(self, verb: str, resource: str, status: int, body: str) -> _Refused:
        """The API server's refusal in one line that says what to do."""
        namespace, message = self._settings.namespace, _message(body)
        if status == 401:
            text = ("the API server does not accept the credentials (401): expired, or of another cluster; check "
                    + (f"{self._path}.kubeconfig" if self._settings.kubeconfig else "the pod's ServiceAccount token"))
        elif status == 403 and "exceeded quota" in message:
            return _Refused(f"Kubernetes: the quota of namespace {namespace} is used up: {message}", status=403,
                            retry=True)
        elif status == 403 and (who := re.search(r'User "([^"]*)" cannot', message)):
            account = re.sub(r"^system:serviceaccount:([^:]+):(.+)$", r"ServiceAccount \1/\2", who[1])
            text = (f"{account} may not {verb} {resource} in namespace {namespace}, or there is no such namespace; "
                    "apply the Role and RoleBinding of deploy/kubernetes/training there")
        elif status == 404 and "namespaces" in message:
            text = f"there is no namespace {namespace}; create it or set {self._path}.namespace"
        elif status in {400, 403, 413, 422}:        # 403 without a user: an admission policy
            text = f"the API server refuses the Job ({status}): {message}"
        elif status == 0:                           # TLS, or an answer that is not Kubernetes'
            text = f"no usable answer: {message}"
        else:
            text = f"the API server answered {status} to {verb} {resource}: {message}"
        return _Refused(f"Kubernetes: {text}", status=status, retry=status in _PASSING or status >= 500)


def job_status(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]] = ()) -> JobStatus:
    """One word about a Job, with the reason where there is one.

    pods : those of the Job, if they are known

    Final is `Complete` or `Failed`, nothing else: `SuccessCriteriaMet` and `FailureTarget` come while pods still run.
    `status.active` counts pods that wait for a node, too, so running means a pod that is ready or in phase Running.
    """
    status = job.get("status") or {}
    conditions = {each.get("type"): each for each in status.get("conditions") or () if each.get("status") == "True"}
    if "Complete" in conditions:
        return JobStatus("succeeded")
    if failed := conditions.get("Failed"):
        return JobStatus("failed", "; ".join(filter(None, [_reason(failed), _last_words(pods)])))
    if "Suspended" in conditions:
        return JobStatus("queued", _reason(conditions["Suspended"]))
    interim = conditions.get("FailureTarget") or conditions.get("SuccessCriteriaMet")
    if status.get("ready") or any(_phase(pod) == "Running" for pod in pods) or interim:
        return JobStatus("running", _reason(interim or {}))
    if status.get("active") and status.get("ready") is None and not pods:
        return JobStatus("running")                 # a server that does not say; pods may not be listed
    waiting = next(filter(None, map(_waits_for, pods)), "")
    attempts = f"{status['failed']} failed before; {_last_words(pods)}".rstrip("; ") if status.get("failed") else ""
    return JobStatus("queued", "; ".join(filter(None, [waiting, attempts])))


def _label(job: Mapping[str, Any]) -> str:
    return str(((job.get("metadata") or {}).get("labels") or {}).get(LAUNCH_LABEL, ""))


def _phase(pod: Mapping[str, Any]) -> str:
    return str((pod.get("status") or {}).get("phase", ""))


def _reason(entry: Mapping[str, Any]) -> str:
    """`reason: message` of a condition, a container's state or an event."""
    return ": ".join(str(entry[key]).strip() for key in ("reason", "message") if entry.get(key))


def _waits_for(pod: Mapping[str, Any]) -> str:
    """What a pending pod waits for: a node, an image, a volume; empty if it does not say."""
    if _phase(pod) != "Pending":
        return ""
    status = pod["status"]
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _reason(condition)
    return next((_reason(state) for container in status.get("containerStatuses") or ()
                 if (state := (container.get("state") or {}).get("waiting"))), "")


def _last_words(pods: Sequence[Mapping[str, Any]]) -> str:
    """How the newest failed pod's container ended: exit code, and the last of its log that the kubelet kept."""
    failed = [pod for pod in pods if _phase(pod) == "Failed"]
    newest = max(failed, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), default=None)
    for container in (newest or {}).get("status", {}).get("containerStatuses") or ():
        if ended := (container.get("state") or {}).get("terminated"):
            words = " ".join(str(ended.get("message") or "").split())[-_WORDS_MAX:]
            return ": ".join(filter(None, [f"exit code {ended.get('exitCode')}", words]))
    return ""


def _message(body: str) -> str:
    """The `message` of the API's Status document, or the start of whatever came instead; one line."""
    try:
        document = json.loads(body)
        text = str(document["message"])
    except (ValueError, KeyError, TypeError):
        text = body[:200]
    return " ".join(text.split())


def _cause(error: BaseException) -> str:
    """The innermost reason of a connection error, without addresses of objects."""
    reason = getattr(error, "reason", None)
    inner = reason if isinstance(reason, BaseException) else error
    return re.sub(r"^.*?object at 0x[0-9a-f]+>:?\s*|^\w+\(.*?\):\s*", "", str(inner)) or type(inner).__name__


def _connect(kubeconfig: str | None, path: str) -> Any:
    """An ApiClient: by the named kubeconfig, else by the pod's own ServiceAccount, else by the user's kubeconfig."""
    from kubernetes import config as loading
    from kubernetes.client import ApiClient, Configuration

    load_incluster_config: Callable[..., None] = loading.load_incluster_config
    load_kube_config: Callable[..., None] = loading.load_kube_config
    settings = Configuration()
    try:
        if kubeconfig is None:
            try:
                load_incluster_config(client_configuration=settings)
            except loading.ConfigException:
                load_kube_config(client_configuration=settings, persist_config=False)
        else:
            load_kube_config(config_file=str(Path(kubeconfig).expanduser()), client_configuration=settings,
                             persist_config=False)
    except Exception as error:                      # the loader lets through whatever YAML, base64 and exec raise
        # Only the loader's own words are repeated: a YAML error quotes the file, and the file holds a token.
        words = str(error)[:200] if isinstance(error, loading.ConfigException | OSError) else type(error).__name__
        raise LaunchFailed(f"Kubernetes: no usable client configuration: {words}; run in a pod with a ServiceAccount "
                           f"token or set {path}.kubeconfig") from None
    settings.retries = False                        # see the module's text
    return ApiClient(settings)
