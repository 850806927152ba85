"""The one door to a Kubernetes API server: documents in, documents out, every failure one line that says what to do.

    cluster = Cluster(None, namespace="ml", path="retrain.launcher")
    job = cluster.get(Resource("batch", "v1", "jobs", "Job"), name)

Every kind is reached by its REST path through the official client's `CustomObjectsApi`, also `batch/v1`: no models of the
client stand between, so a cluster newer than the client is no obstacle. The core group, which that cannot reach, has its
own few calls. An answer that is not a success is `Refused` (a LaunchFailed with the HTTP status); `retry` is true where the
same call may succeed later (server away, overloaded, quota used up) and false where it never will (invalid, wrong
credentials). A missing right is believed after FORBIDDEN_SECONDS: an API server that has just come up refuses everybody until it
has read its roles. No error repeats a token or a kubeconfig. Credentials are read again after a 401: they may have been renewed.

The client takes 0.3 s and 40 MB to import, hence late. A call waits 3 s for the connection and 10 s for the answer; the
client's own retries are off, because the outbox retries, and counts. Neighbour: `kubernetes`, the launcher.
"""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from monitor.errors import ConfigError, LaunchFailed

#: A Kubernetes object as the API speaks it: a JSON document, whose form the API server checks, not our types.
Manifest = dict[str, Any]

TIMEOUT = (3, 10)                                   # seconds to connect, to answer
#: What a listing of pods, events or workloads brings at most; a training of ours has a handful.
LISTED_MAX = 200
#: Answers after which the same call may succeed: timeout, conflict of two writers, too many requests.
_PASSING = frozenset({408, 409, 429})
_MESSAGE_MAX = 600
#: For how long a refusal for want of a right may pass by itself.
FORBIDDEN_SECONDS = 60.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object by its REST path; `group` is empty for the core API.

    needs : what serves it; role : the file under deploy/kubernetes/training that gives the right to it; both for errors
    """

    group: str
    version: str
    plural: str
    kind: str
    needs: str = ""
    role: str = ""

    @property
    def api_version(self) -> str:
        """What an object's `apiVersion` says."""
        return f"{self.group}/{self.version}" if self.group else self.version


class Refused(LaunchFailed):
    """An answer of the API server that is not a success.

    status : its HTTP status      absent : the named object does not exist, while its kind does
    """

    def __init__(self, message: str, *, status: int, retry: bool = False, absent: bool = False) -> None:
        super().__init__(message, retry=retry)
        self.status = status
        self.absent = absent


class Cluster:
    """One namespace of a cluster, by the named kubeconfig, else by the pod's own ServiceAccount, else by the user's."""

    def __init__(self, kubeconfig: str | None, *, namespace: str, path: str) -> None:
        """Check what can be checked without a call; `path` is where the settings stand in the file, for errors."""
        if importlib.util.find_spec("kubernetes") is None:
            raise ConfigError(f"{path}.type: kubernetes needs an extra; pip install 'tidemark[kubernetes]'")
        if kubeconfig is not None and not Path(kubeconfig).expanduser().is_file():
            raise ConfigError(f"{path}.kubeconfig: expected a file, got {kubeconfig!r}")
        self.namespace = namespace
        self._kubeconfig = kubeconfig
        self._path = path
        self._forbidden_since: float | None = None  # of the refusals for want of a right in a row; monotonic
        self._client: Any = None                    # a kubernetes.client.ApiClient; made by the first call

    def create(self, resource: Resource, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """POST; unknown fields are refused. `dry_run` goes through rights, admission and validation, and stores nothing."""
        options: dict[str, Any] = {"field_manager": "tidemark", "field_validation": "Strict", "_request_timeout": TIMEOUT}
        if dry_run:
            options["dry_run"] = "All"

        def creation(api: Any) -> Any:
            if resource.group:
                return api.create_namespaced_custom_object(
                    resource.group, resource.version, self.namespace, resource.plural, manifest, **options)
            return _raw(_core(api).create_namespaced_service, self.namespace, manifest, **options)

        return self._document(resource, "create", creation)

    def get(self, resource: Resource, name: str) -> Manifest:
        """GET one object."""
        return self._document(resource, "get", lambda api: api.get_namespaced_custom_object(
            resource.group, resource.version, self.namespace, resource.plural, name,
            _request_timeout=TIMEOUT))

    def patch(self, resource: Resource, name: str, changes: Manifest) -> Manifest:
        """PATCH by JSON merge; with `metadata.resourceVersion` in it, refused (409) if somebody was faster."""
        return self._document(resource, "patch", lambda api: api.patch_namespaced_custom_object(
            resource.group, resource.version, self.namespace, resource.plural, name, changes, field_manager="tidemark",
            _content_type="application/merge-patch+json", _request_timeout=TIMEOUT))

    def delete(self, resource: Resource, name: str) -> None:
        """DELETE in the background, with all that belongs to it; already gone is fine."""
        try:
            self._call(resource, "delete", lambda api: api.delete_namespaced_custom_object(
                resource.group, resource.version, self.namespace, resource.plural, name,
                propagation_policy="Background", _request_timeout=TIMEOUT))
        except Refused as error:
            if not error.absent:
                raise

    def list_quietly(self, resource: Resource, *, labels: str = "", fields: str = "") -> list[Manifest]:
        """Objects by label and field; none where they may not be listed: they only make a detail better."""
        selectors = {"label_selector": labels, "field_selector": fields}
        options: dict[str, Any] = {name: text for name, text in selectors.items() if text}

        def listing(api: Any) -> Any:
            if resource.group:
                return api.list_namespaced_custom_object(
                    resource.group, resource.version, self.namespace, resource.plural, limit=LISTED_MAX,
                    _request_timeout=TIMEOUT, **options)
            call = _core(api).list_namespaced_pod if resource.plural == "pods" else _core(api).list_namespaced_event
            return _raw(call, self.namespace, limit=LISTED_MAX, _request_timeout=TIMEOUT, **options)

        try:
            document = self._call(resource, "list", listing)
        except (LaunchFailed, ValueError):          # ValueError: an answer that is not JSON
            return []
        items = document.get("items") if isinstance(document, dict) else None
        return [item for item in items or () if isinstance(item, dict)]

    def log(self, pod: str, container: str, *, lines: int, limit: int) -> bytes:
        """The end of a container's log: its last `lines`, of them at most `limit` bytes."""
        def reading(api: Any) -> bytes:
            return _bytes(_core(api).read_namespaced_pod_log, pod, self.namespace, container=container, tail_lines=lines,
                          limit_bytes=limit, _request_timeout=TIMEOUT)

        return self._call(Resource("", "v1", "pods/log", "Pod", role="kinds/logs.yaml"), "list", reading)[:limit]

    def _document(self, resource: Resource, verb: str, request: Callable[[Any], Any]) -> Manifest:
        answer = self._call(resource, verb, request)
        if not isinstance(answer, dict):
            raise LaunchFailed(f"Kubernetes: expected a {resource.kind} as the answer to {verb} {resource.plural}, got "
                               f"{str(answer)[:80]!r}; does something else answer in the API server's place?")
        return answer

    def _call(self, resource: Resource, verb: str, request: Callable[[Any], _T]) -> _T:
        """Run one request; every way in which it can fail becomes one line."""
        from kubernetes.client import CustomObjectsApi
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        if self._client is None:
            self._client = _connect(self._kubeconfig, self._path)
        try:
            answer = request(CustomObjectsApi(self._client))
        except ApiException as error:
            if error.status == 401:
                self._client = None                 # the next call reads the credentials anew: they may be renewed
            raise self._refusal(resource, verb, int(error.status or 0), str(error.body or error.reason or "")) from None
        except HTTPError as error:                  # no answer: refused, timed out, cut in the middle
            host = self._client.configuration.host
            raise LaunchFailed(f"Kubernetes: no answer from {host} ({_cause(error)}); is the API server up and "
                               "reachable from here?", retry=True) from None
        if verb != "list":                          # what may be missing without harm says nothing of what may not
            self._forbidden_since = None
        return answer

    def _refusal(self, resource: Resource, verb: str, status: int, body: str) -> Refused:
        """The API server's refusal in one line that says what to do."""
        namespace, message, details = self.namespace, *_said(body)
        if status == 404 and details.get("name") and "namespaces" not in message:
            return Refused(f"Kubernetes: there is no {resource.kind} {details['name']} in namespace {namespace}",
                           status=404, absent=True)
        if status == 401:
            text = ("the API server does not accept the credentials (401): expired, or of another cluster; check "
                    + (f"{self._path}.kubeconfig" if self._kubeconfig else "the pod's ServiceAccount token"))
        elif status == 403 and "exceeded quota" in message:
            return Refused(f"Kubernetes: the quota of namespace {namespace} is used up: {message}", status=403, retry=True)
        elif status == 403 and (who := re.search(r'User "([^"]*)" cannot', message)):
            account = re.sub(r"^system:serviceaccount:([^:]+):(.+)$", r"ServiceAccount \1/\2", who[1])
            if verb != "list" and self._forbidden_since is None:
                self._forbidden_since = time.monotonic()
            is_new = verb != "list" and time.monotonic() - (self._forbidden_since or 0.0) < FORBIDDEN_SECONDS
            text = (f"{account} may not {verb} {resource.plural} in namespace {namespace}, or there is no such namespace; "
                    f"apply the Role and RoleBinding of deploy/kubernetes/training{resource.role and '/' + resource.role} there")
            return Refused(f"Kubernetes: {text}", status=403, retry=is_new)
        elif status == 404 and "namespaces" in message:
            text = f"there is no namespace {namespace}; create it or set {self._path}.namespace"
        elif status == 404:                         # a path that is not served names no object
            text = (f"the cluster does not know kind {resource.kind} of {resource.api_version}; install "
                    f"{resource.needs or 'what serves it'}, or set another {self._path}.kind")
        elif status in {400, 403, 413, 422}:        # 403 without a user: an admission policy
            text = f"the API server refuses the {resource.kind} ({status}): {message}{_hint(message)}"
        elif status == 0:                           # TLS, or an answer that is not Kubernetes'
            text = f"no usable answer: {message}"
        else:
            text = f"the API server answered {status} to {verb} {resource.plural}: {message}"
        return Refused(f"Kubernetes: {text}", status=status, retry=status in _PASSING or status >= 500)


def reason_of(entry: Mapping[str, Any]) -> str:
    """`reason: message` of a condition, a container's state or an event."""
    return ": ".join(str(entry[key]).strip() for key in ("reason", "message") if entry.get(key))


def _core(api: Any) -> Any:
    """The core group's own calls, which `CustomObjectsApi` cannot reach."""
    from kubernetes.client import CoreV1Api

    return CoreV1Api(api.api_client)


def _raw(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The document that a call brings, past the client's models, which refuse what they do not know."""
    return json.loads(_bytes(call, *arguments, **options).decode(errors="replace"))


def _bytes(call: Callable[..., Any], *arguments: Any, **options: Any) -> bytes:
    """What a call brings, as it came; ApiException for a refusal."""
    from kubernetes.client.exceptions import ApiException

    answer = call(*arguments, _preload_content=False, **options)
    content = bytes(answer.data)
    if not 200 <= answer.status < 300:              # raw, a refusal is not raised
        refused = ApiException(status=answer.status, reason=answer.reason)
        refused.body = content.decode(errors="replace")
        raise refused
    return content


def _said(body: str) -> tuple[str, Mapping[str, Any]]:
    """`message` and `details` of the API's Status document, or the start of whatever came instead; one line."""
    try:
        document = json.loads(body)
        text, details = str(document["message"]), document.get("details")
    except (ValueError, KeyError, TypeError, AttributeError):
        text, details = body, {}
    return " ".join(text.split())[:_MESSAGE_MAX], details if isinstance(details, dict) else {}


def _hint(message: str) -> str:
    """What to do about a refusal whose words do not say it."""
    if re.search(r'unknown field "spec\.(runtimePatches|activeDeadlineSeconds)"', message):
        return "; a TrainJob that carries its own pod needs Kubeflow Trainer 2.2 or later"
    return ""


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

