"""A real Kubernetes control plane for tests, without containers: etcd, API server with RBAC, controllers, scheduler.

Plain processes on 127.0.0.1 and ports of their own, one for the whole run, thrown away after it. There is no kubelet:
a test plays it, by writing the status of nodes and pods. What is therefore proven: a Job is admitted under the rights
that it claims, its pods land on a fitting node or wait and say why, deadlines, retries, quotas and TTL work, and our
code reads all that back. What is not: that the container runs.

Namespaces are per test (`namespace()`), nodes are the cluster's (`node()`), and a test removes its nodes.
Cost: 5 s to start, 490 MB. Built by tests/k8s/setup.sh into ${TIDEMARK_CACHE:-~/.cache/tidemark}/k8s-VERSION.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
import yaml

from tests.conftest import Process, free_port, wait_until

VERSION = re.search(r"\sk8s.io/kubernetes v([0-9.]+)", (Path(__file__).parent / "controlplane/go.mod").read_text())[1]
CACHE = Path(os.environ.get("TIDEMARK_CACHE") or Path.home() / ".cache" / "tidemark")
BIN = CACHE / f"k8s-{VERSION}"
CONTROLLERS = ("job-controller", "ttl-after-finished-controller", "garbage-collector-controller",
               "namespace-controller", "serviceaccount-controller", "root-ca-certificate-publisher-controller",
               "resourcequota-controller", "persistentvolume-binder-controller")
ADMIN_TOKEN = "admin-token"
#: Every creation of a Job is written down with its outcome, so that a test can count them, also of Jobs that are gone.
AUDIT = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: RequestResponse, verbs: [create], resources: [{group: batch, resources: [jobs]}]}
  - {level: None}
"""


def why_not() -> str:
    """Why no control plane can be started here; empty where one can."""
    for program in ("etcd", "openssl"):
        if shutil.which(program) is None:
            return f"no `{program}` on PATH; run tests/k8s/setup.sh"
    if not (BIN / ".done").exists():
        return f"nothing built in {BIN}; run tests/k8s/setup.sh"
    return ""


def definitions() -> list[Path]:
    """The files that define the kinds of crds.txt, as setup.sh fetched them; those that could not be had are not there."""
    lines = (Path(__file__).parent / "crds.txt").read_text().splitlines()
    entries = [line.split() for line in lines if not line.startswith("#")]
    return [CACHE / "k8s-crds" / f"{version}-{Path(file).name}" for _, version, file in entries]


def _without_descriptions(value: Any) -> Any:
    """A schema without its prose, which is two thirds of it: Argo's alone is more than etcd takes."""
    if isinstance(value, dict):
        return {key: _without_descriptions(item) for key, item in value.items()
                if key != "description" or not isinstance(item, str)}
    return [_without_descriptions(item) for item in value] if isinstance(value, list) else value


class RefusedError(Exception):
    """An answer of the API server to the test's own request that is not a success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class ControlPlane:
    """Start with `start()`, end with `stop()`; `request` and `apply` have every right, for the test's own hands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Start the four programs; returns when the API server is ready and the controllers have begun to work."""
        self._certificates()
        store, peer = free_port(), free_port()
        self._run("etcd", "--name=n", f"--data-dir={self.folder / 'etcd'}", "--unsafe-no-fsync",
                  f"--listen-client-urls=http://127.0.0.1:{store}", f"--advertise-client-urls=http://127.0.0.1:{store}",
                  f"--listen-peer-urls=http://127.0.0.1:{peer}",
                  f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
                  f"--initial-cluster=n=http://127.0.0.1:{peer}").wait_port(store)
        (self.folder / "audit.yaml").write_text(AUDIT)
        options = (
            f"--etcd-servers=http://127.0.0.1:{store}", "--bind-address=127.0.0.1",
            f"--secure-port={self.port}", "--tls-cert-file=k.pem", "--tls-private-key-file=k.key",
            "--token-auth-file=tokens.csv", "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=sa.key",
            "--service-account-signing-key-file=sa.key", "--service-cluster-ip-range=10.0.0.0/24",
            "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
            "--audit-policy-file=audit.yaml", "--audit-log-path=audit.log", "--audit-log-mode=blocking",
            # New nodes would carry a taint that only the node-lifecycle controller, which needs heartbeats, takes off.
            "--disable-admission-plugins=TaintNodesByCondition")
        self._server = self._run(BIN / "kube-apiserver", *options)
        self._server.wait_port(self.port, timeout=180)
        self._pool = urllib3.PoolManager(ca_certs=str(self.folder / "ca.pem"), retries=False)
        kubeconfig = self.kubeconfig("admin", ADMIN_TOKEN)
        wait_until(self._is_ready, 180, "the API server's /readyz")
        for program, options in (
            ("kube-controller-manager", ("--service-account-private-key-file=sa.key", "--root-ca-file=ca.pem",
                                         f"--controllers={','.join(CONTROLLERS)}")),
            ("kube-scheduler", ()),
        ):
            self._run(BIN / program, f"--kubeconfig={kubeconfig}", "--bind-address=127.0.0.1",
                      f"--secure-port={free_port()}", f"--cert-dir={self.folder / program}-certificates",
                      "--leader-elect=false", *options)
        self.namespace()                            # returns when the service account controller works

    def stop(self) -> None:
        """Kill everything; the folder is thrown away anyway."""
        for process in reversed(self.processes):
            process.kill()
            process.stop()
        self._pool.clear()

    @contextmanager
    def server_away(self) -> Iterator[None]:
        """The API server answers nothing while the block runs, as on a machine that hangs.

        Not killed: controllers and scheduler would come back only when a minute of their own backoff is over.
        """
        self._server.popen.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._server.popen.send_signal(signal.SIGCONT)

    def created(self, plural: str, namespace: str) -> list[str]:
        """The names of all objects of a kind that were ever created in a namespace, by the API server's audit log."""
        events = [json.loads(line) for line in (self.folder / "audit.log").read_text().splitlines()]
        return [str(event["responseObject"]["metadata"]["name"]) for event in events
                if event["verb"] == "create" and event.get("responseStatus", {}).get("code") == 201
                and event["objectRef"]["resource"] == plural and event["objectRef"].get("namespace") == namespace
                and "dryRun" not in event["requestURI"]]

    def kubeconfig(self, name: str, token: str, *, url: str | None = None) -> Path:
        """A file with which `token` reaches this server (or the one at `url`)."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {
                "server": url or self.url, "certificate-authority": str(self.folder / "ca.pem")}}],
            "users": [{"name": "it", "user": {"token": token}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        }))
        return path

    def request(self, method: str, path: str, body: Any = None, *, kind: str = "json", **query: str) -> dict[str, Any]:
        """One call with every right; `kind` is the body's: json, merge-patch+json, apply-patch+yaml."""
        answer = self._pool.request(
            method, f"{self.url}{path}" + (f"?{urlencode(query)}" if query else ""),
            body=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": f"application/{kind}"})
        if answer.status >= 400:
            raise RefusedError(answer.status, answer.data.decode()[:1000])
        document = json.loads(answer.data)
        return dict(document)

    def namespace(self) -> str:
        """A new namespace, ready for pods."""
        name = f"test-{next(self._numbers)}"
        self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

        def has_account() -> bool:
            try:
                return bool(self.request("GET", f"/api/v1/namespaces/{name}/serviceaccounts/default"))
            except RefusedError as error:
                if error.status != 404:
                    raise
                return False

        wait_until(has_account, 60, f"the default ServiceAccount of {name}")
        return name

    def apply(self, document: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        """Server-side apply of one manifest, unknown fields refused; `dry_run` stores nothing."""
        version, kind, metadata = document["apiVersion"], document["kind"], document["metadata"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        plural = next(each["name"] for each in self.request("GET", root)["resources"]
                      if each["kind"] == kind and "/" not in each["name"])
        where = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
        options = {"fieldManager": "test", "fieldValidation": "Strict", "force": "true"}
        return self.request("PATCH", f"{root}{where}/{plural}/{metadata['name']}", document, kind="apply-patch+yaml",
                            **options | ({"dryRun": "All"} if dry_run else {}))

    def define(self, path: Path) -> None:
        """Teach the server a kind, as its publisher defines it; returns when it is served.

        In its stored version alone, without conversions and webhooks: those need the kind's own controller.
        """
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        (document,) = [each for each in yaml.load_all(path.read_text(), Loader=loader) if each]
        document["spec"].pop("conversion", None)
        document["spec"]["versions"] = [each for each in document["spec"]["versions"] if each["storage"]]
        name = document["metadata"]["name"]
        definition = {"apiVersion": document["apiVersion"], "kind": document["kind"],
                      "metadata": {"name": name, "annotations": document["metadata"].get("annotations", {})},
                      "spec": _without_descriptions(document["spec"])}
        try:
            self.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        except RefusedError as error:
            if error.status != 409:                 # another test has taught it this kind
                raise
        group, plural = document["spec"]["group"], document["spec"]["names"]["plural"]
        version = document["spec"]["versions"][0]["name"]

        def is_served() -> bool:
            try:
                found = self.request("GET", f"/apis/{group}/{version}")["resources"]
            except RefusedError:
                return False
            return any(each["name"] == plural for each in found)

        wait_until(is_served, 180, f"kind {name}")

    def token(self, namespace: str, account: str) -> str:
        """A token of a ServiceAccount, as its pods get one."""
        answer = self.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", {
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}})
        return str(answer["status"]["token"])

    @contextmanager
    def node(self, name: str, *, gpus: int = 0, taint: bool = False) -> Iterator[str]:
        """A ready node with 8 CPUs, 64 GiB and `gpus`, while the block runs."""
        amounts = {"cpu": "8", "memory": "64Gi", "pods": "20", "ephemeral-storage": "100Gi"}
        if gpus:
            amounts["nvidia.com/gpu"] = str(gpus)
        taints = [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}] if taint else []
        self.request("POST", "/api/v1/nodes", {"spec": {"taints": taints}, "metadata": {
            "name": name, "labels": {"kubernetes.io/hostname": name}}})
        try:
            self.request("PATCH", f"/api/v1/nodes/{name}/status", {"status": {
                "capacity": amounts, "allocatable": amounts,
                "conditions": [{"type": "Ready", "status": "True", "reason": "Test"}]}}, kind="merge-patch+json")
            yield name
        finally:
            self.request("DELETE", f"/api/v1/nodes/{name}")

    def _run(self, program: str | Path, *options: str) -> Process:
        log = self.folder / f"{Path(program).name}.log"
        process = Process([program, *options], log, cwd=self.folder)
        self.processes.append(process)
        return process

    def _is_ready(self) -> bool:
        answer = self._pool.request("GET", f"{self.url}/readyz", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
        return bool(answer.status == 200)

    def _certificates(self) -> None:
        """A CA, the server's certificate, the key that signs ServiceAccount tokens, the admin's token."""
        (self.folder / "ext").write_text(
            "subjectAltName=DNS:localhost,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.0.0.1\n")
        (self.folder / "tokens.csv").write_text(f'{ADMIN_TOKEN},admin,1,"system:masters"\n')
        for command in (
            "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN=test-ca",
            "req -newkey rsa:2048 -nodes -keyout k.key -out k.csr -subj /CN=localhost",
            "x509 -req -in k.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out k.pem",
            "genpkey -algorithm RSA -out sa.key",
        ):
            subprocess.run(["openssl", *command.split()], cwd=self.folder, check=True, capture_output=True)
