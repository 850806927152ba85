"""The manifests of several replicas: a real API server takes them, Pod Security *restricted* admits their pods, and the
configuration among them is one that replicas can run."""

from __future__ import annotations

import pytest
import yaml

from monitor import config
from monitor.replicas import refuse_unsupported
from tests.integration.conftest import DEPLOY, documents
from tests.k8s.control_plane import ControlPlane

REPLICAS = DEPLOY / "replicas"


def one(kind: str) -> dict:
    (found,) = [document for document in documents(REPLICAS) if document["kind"] == kind]
    return found


def test_the_server_takes_the_manifests_of_replicas_and_restricted_admits_their_pods(cluster: ControlPlane) -> None:
    for name in ("tidemark", "ml"):
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    kinds = [cluster.apply(document, dry_run=True)["kind"] for document in documents(REPLICAS)]
    assert sorted(kinds) == ["ConfigMap", "PodDisruptionBudget", "Role", "RoleBinding", "Service", "Service", "ServiceAccount",
                             "StatefulSet"]
    cluster.apply(one("ServiceAccount"))
    template = one("StatefulSet")["spec"]["template"]
    # The API server looks at the security of pods, not of what makes them.
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
           "metadata": {"name": "tidemark-0", "namespace": "tidemark", "labels": template["metadata"]["labels"]}}
    assert cluster.apply(pod, dry_run=True)["kind"] == "Pod"


def test_the_configuration_of_replicas_is_valid_and_fits_the_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "tidemark-0")
    parsed = config.parse(one("ConfigMap")["data"]["tidemark.yaml"])
    refuse_unsupported(parsed)
    assert parsed.service.replicas.name == "tidemark-0"
    (container,) = one("StatefulSet")["spec"]["template"]["spec"]["containers"]
    written = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert str(config.state_path(parsed.service.state).parent) in written
    assert parsed.service.dead_letters.startswith("topic:")     # a file would end with the pod


def test_everything_of_replicas_selects_their_pods_and_is_named() -> None:
    labels = one("StatefulSet")["spec"]["template"]["metadata"]["labels"].items()
    services = [document for document in documents(REPLICAS) if document["kind"] == "Service"]
    for selector in (one("StatefulSet")["spec"]["selector"]["matchLabels"],
                     one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
                     *(each["spec"]["selector"] for each in services)):
        assert selector.items() <= labels
    assert one("StatefulSet")["spec"]["serviceName"] in [service["metadata"]["name"] for service in services]
    named = set(yaml.safe_load((REPLICAS / "kustomization.yaml").read_text())["resources"])
    assert named == {path.name for path in REPLICAS.iterdir()} - {"kustomization.yaml"} | {"../training"}
