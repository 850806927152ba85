"""The launcher that trains on Kubernetes, whatever kind of object carries the training.

    start    POST the object; 409 means that the name is taken: the same launch is success, another one is an error
    status   GET the object, and its pods and their logs' end where that is allowed, and read one word and a line out of them
    cancel   DELETE in the background; already gone is fine

What holds: `start` of one launch, however often and from however many processes, is one object, because the name comes
from the launch's id. The name alone is not enough, since a finished object is removed by its TTL and the name is free
again; the outbox remembers what was started, and never starts what runs. An object that is gone is `unknown`, never a
success. A launch remembers its kind and namespace (`<kind>/<namespace>/<name>`), so that it is followed and ended where it
was started, also when the configuration says another kind by now.

An Indexed Job gets its headless Service right after it, owned by it; a crash between the two is mended by the next
`start`, and a Service that is refused for good takes the Job with it.

`rehearse` sends the same object as a dry run: rights, admission and validation answer, nothing is stored.
Neighbours: `kubernetes_kinds` makes the objects, `kubernetes_template` lays the user's file over them, `kubernetes_check`
refuses what cannot work, `kubernetes_status` reads, `kubernetes_log` reads progress, `kubernetes_client` sends.
"""

from __future__ import annotations

import dataclasses
import json

from monitor import config
from monitor.errors import LaunchFailed
from monitor.flow import JobStatus, Launch
from monitor.retrain.launchers.kubernetes_check import check, data_path
from monitor.retrain.launchers.kubernetes_client import Cluster, Manifest, Refused, Resource, reason_of
from monitor.retrain.launchers.kubernetes_job import SERVICE
from monitor.retrain.launchers.kubernetes_kinds import KINDS, beside
from monitor.retrain.launchers.kubernetes_log import LogTails
from monitor.retrain.launchers.kubernetes_pod import LAUNCH_LABEL, VOLUME_PATH, job_name
from monitor.retrain.launchers.kubernetes_status import read
from monitor.retrain.launchers.kubernetes_template import Template

_PODS, _EVENTS = Resource("", "v1", "pods", "Pod"), Resource("", "v1", "events", "Event")
#: Kueue's own view of an object, by version: newer clusters first.
_WORKLOADS = tuple(Resource("kueue.x-k8s.io", version, "workloads", "Workload", "Kueue") for version in ("v1beta2", "v1beta1"))


#: A launch that is never started, to try a template on.
_ANY = Launch(id="0" * 12, model="any", version="0", episode=0, launcher="kubernetes", state="approved", reason="{}", steps=())


class KubernetesJobs:
    """A `monitor.flow.Launcher` that makes one object of each launch: a Job, or the kind that the settings name.

    settings    : the launcher's node of the configuration
    capture_uri : where captured events are written; a folder must be the mount path of `settings.volume_claim`;
                  None leaves that unchecked and mounts the claim at /data
    path        : where `settings` stands in the file, for errors
    """

    name = "kubernetes"

    def __init__(self, settings: config.KubernetesLauncher, *, capture_uri: str | None = None,
                 path: str = "retrain.launcher") -> None:
        check(settings, capture_uri=capture_uri, path=path)
        self._cluster = Cluster(settings.kubeconfig, namespace=settings.namespace, path=path)
        self._template = Template.load(settings, path=path) if settings.template_file else None
        self._settings = settings
        self._path = path
        self._logs = LogTails()
        self._volume_path = data_path(capture_uri or "") or VOLUME_PATH
        if self._template is not None:
            self.manifests(_ANY)                    # what does not fit is told now, not at the first launch

    def manifests(self, launch: Launch) -> list[Manifest]:
        """What `start` creates: the object, and the Service of an Indexed Job."""
        made = KINDS[self._settings.kind].manifest(self._settings, launch, self._volume_path)
        if self._template is not None:
            made = self._template.over(made)
        service = beside(self._settings, launch)
        # Written and read again: no two places share a part, and what is printed is what is sent.
        return [json.loads(json.dumps(each)) for each in (made, service) if each is not None]

    def start(self, launch: Launch) -> str:
        """Create the object, or find the one that an earlier call of this launch created; `<kind>/<namespace>/<name>`."""
        name, resource = job_name(launch), KINDS[self._settings.kind].resource
        manifest, *services = self.manifests(launch)
        try:
            made = self._cluster.create(resource, manifest)
        except Refused as error:
            if error.status != 409:
                raise
            made = self._require_same(resource, name, launch)
        for service in services:
            self._join(service, made, resource)
        return f"{self._settings.kind}/{self._settings.namespace}/{name}"

    def rehearse(self, launch: Launch) -> None:
        """Send everything that `start` sends as a dry run; LaunchFailed says what the API server would refuse."""
        resource = KINDS[self._settings.kind].resource
        manifest, *services = self.manifests(launch)
        self._cluster.create(resource, manifest, dry_run=True)
        for service in services:
            self._cluster.create(SERVICE, service, dry_run=True)

    def status(self, launch: Launch) -> JobStatus:
        """What the cluster says of the training; `unknown` when its object is gone."""
        kind, name, cluster = self._where(launch)
        try:
            found = cluster.get(KINDS[kind].resource, name)
        except Refused as error:
            if not error.absent:
                raise
            return JobStatus("unknown", f"{kind} {name} is gone from namespace {cluster.namespace}: removed by its TTL "
                                        f"({self._path}.keep_hours) or by a person")
        if _label(found) != launch.id:
            return JobStatus("unknown", f"{kind} {name} belongs to another launch ({_label(found) or 'no label'})")
        pods = cluster.list_quietly(_PODS, labels=KINDS[kind].pod_selector.format(name=name, launch=launch.id))
        status = read(kind, found, pods)
        if status.state == "running":
            return dataclasses.replace(status, progress=self._logs.line(cluster, launch.id, pods))
        if status.state != "queued" or pods:
            return status
        held = self._held_by(cluster, found) or status.detail or _warning(cluster, name)
        return JobStatus("queued", held)

    def cancel(self, launch: Launch) -> None:
        """Remove the object and all that belongs to it; no error if there is none."""
        kind, name, cluster = self._where(launch)
        cluster.delete(KINDS[kind].resource, name)

    def _where(self, launch: Launch) -> tuple[str, str, Cluster]:
        """Kind, name and namespace that a launch was started with; those of the settings where it does not say."""
        kind, _, rest = launch.external.partition("/")
        namespace, _, name = rest.partition("/")
        if kind not in KINDS or not name:
            return self._settings.kind, launch.external or job_name(launch), self._cluster
        if namespace == self._settings.namespace:
            return kind, name, self._cluster
        return kind, name, Cluster(self._settings.kubeconfig, namespace=namespace, path=self._path)

    def _require_same(self, resource: Resource, name: str, launch: Launch) -> Manifest:
        """The name was taken: this launch's object, or an error if it is another's."""
        try:
            found = self._cluster.get(resource, name)
        except Refused as error:
            if not error.absent:
                raise
            raise LaunchFailed(f"Kubernetes: {resource.kind} {name} was removed just now; try again", retry=True) from None
        if _label(found) != launch.id:
            raise LaunchFailed(f"Kubernetes: {resource.kind} {name} in namespace {self._settings.namespace} belongs to "
                               f"another launch ({_label(found) or 'no label'}, expected {launch.id}); remove or rename it")
        if found["metadata"].get("deletionTimestamp"):
            raise LaunchFailed(f"Kubernetes: {resource.kind} {name} of this launch is being removed; try again", retry=True)
        return found

    def _join(self, service: Manifest, owner: Manifest, resource: Resource) -> None:
        """Create what stands beside the object, so that it goes when its owner goes."""
        metadata = service["metadata"] | {"ownerReferences": [{
            "apiVersion": resource.api_version, "kind": resource.kind, "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"]}]}
        try:
            self._cluster.create(SERVICE, service | {"metadata": metadata})
        except Refused as error:
            if error.status == 409:
                return
            if not error.retry:                     # the Job could only wait for a name that never comes
                self._cluster.delete(resource, owner["metadata"]["name"])
            raise

    def _held_by(self, cluster: Cluster, found: Manifest) -> str:
        """What Kueue says about an object that it holds back, where its workloads may be listed."""
        uid = (found.get("metadata") or {}).get("uid")
        if not self._settings.queue or not uid:
            return ""
        for resource in _WORKLOADS:
            for workload in cluster.list_quietly(resource, labels=f"kueue.x-k8s.io/job-uid={uid}"):
                for condition in (workload.get("status") or {}).get("conditions") or ():
                    if condition.get("status") == "False" and condition.get("type") in {"QuotaReserved", "Admitted"}:
                        return f"Kueue: {reason_of(condition)}"
        return ""


def _warning(cluster: Cluster, name: str) -> str:
    """Why an object has no pods: the newest warning about it (quota, admission), if events may be listed."""
    events = cluster.list_quietly(_EVENTS, fields=f"involvedObject.name={name},type=Warning")
    newest = max(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime")), default={})
    return reason_of(newest)


def _label(found: Manifest) -> str:
    return str(((found.get("metadata") or {}).get("labels") or {}).get(LAUNCH_LABEL, ""))
