"""What the tests on the real Kubernetes control plane share: one of it for the whole run, and namespaces with our rights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor import config
from monitor.flow import Launch
from monitor.ingest import connection, outage
from monitor.retrain.launchers import kubernetes_client
from monitor.retrain.launchers.kubernetes import KubernetesJobs
from tests.conftest import missing, package, wait_until
from tests.integration.reading import TRANSPORTS
from tests.k8s.control_plane import ControlPlane, definitions, why_not

DEPLOY = Path(__file__).parents[2] / "deploy" / "kubernetes"
_numbers = itertools.count(1)


def documents(folder: Path = DEPLOY) -> Iterator[dict[str, Any]]:
    """Every manifest that the kustomization names, in its order, in the kustomization's namespace."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    for resource in kustomization["resources"]:
        path = folder / resource
        if path.is_dir():
            yield from documents(path)
        else:
            yield from yaml.safe_load_all(path.read_text())


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane (tests.k8s.control_plane.ControlPlane) that knows nothing but Kubernetes' own kinds."""
    if lack := why_not():
        missing("kubernetes", lack)
    control_plane = ControlPlane(tmp_path_factory.mktemp("kubernetes"))
    try:
        control_plane.start()
        yield control_plane
    finally:
        control_plane.stop()


@pytest.fixture(scope="session")
def taught(cluster: ControlPlane) -> ControlPlane:
    """The control plane, taught the kinds of tests/k8s/crds.txt: it validates them, and nothing acts on them."""
    for path in definitions():
        if not path.is_file():
            missing("kubernetes", f"no {path}; run tests/k8s/setup.sh")
        cluster.define(path)
    return cluster


@pytest.fixture
def training(cluster: ControlPlane) -> Iterator[str]:
    """A training namespace with the rights that deploy/kubernetes gives there, and nothing else."""
    namespace = cluster.namespace()
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tidemark"}})
    for document in documents():
        if document["kind"] == "ServiceAccount":
            cluster.apply(document)
        if document["kind"] in {"Role", "RoleBinding"}:
            cluster.apply(document | {"metadata": document["metadata"] | {"namespace": namespace}})
    yield namespace
    # A pod that is left waiting would take the next test's GPU.
    cluster.request("DELETE", f"/apis/batch/v1/namespaces/{namespace}/jobs", propagationPolicy="Background")
    cluster.request("DELETE", f"/api/v1/namespaces/{namespace}/pods", gracePeriodSeconds="0")
    wait_until(lambda: not cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"], 60, "the pods' removal")


@pytest.fixture(autouse=True)
def rights_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal for want of a right is one for good at once: the server of these tests has read its roles."""
    monkeypatch.setattr(kubernetes_client, "FORBIDDEN_SECONDS", 0.0)


@pytest.fixture
def may(cluster: ControlPlane, training: str) -> Callable[[str], None]:
    """Gives the ServiceAccount tidemark the further rights of one file of deploy/kubernetes/training/kinds."""
    def give(name: str) -> None:
        for document in yaml.safe_load_all((DEPLOY / "training" / "kinds" / f"{name}.yaml").read_text()):
            cluster.apply(document | {"metadata": document["metadata"] | {"namespace": training}})

    return give


@pytest.fixture
def launcher(cluster: ControlPlane, training: str) -> Callable[..., KubernetesJobs]:
    """Makes launchers that use the ServiceAccount tidemark's token and nothing else."""
    kubeconfig = cluster.kubeconfig("tidemark", cluster.token("tidemark", "tidemark"))

    def make(**changes: Any) -> KubernetesJobs:
        settings = {"image": "registry.example/train:7", "namespace": training, "kubeconfig": str(kubeconfig)} | changes
        return KubernetesJobs(config.KubernetesLauncher(**settings), capture_uri="s3://tidemark/captures")

    return make


@pytest.fixture
def launch() -> Launch:
    """A launch with an id of its own."""
    return Launch(id=f"{next(_numbers):012x}", model="employment", version="7", episode=1, launcher="kubernetes",
                  state="approved", reason="{}", steps=(), data_uri="s3://t/events", output_uri="s3://t/out")


@pytest.fixture(params=list(TRANSPORTS))
def opened(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Opens sources of each transport (`opened(kafka, topics)`), which are closed with the test."""
    if request.param == "librdkafka":
        package("confluent_kafka")
    sources: list[Any] = []

    def make(*args: Any, **options: Any) -> Any:
        sources.append(TRANSPORTS[request.param](*args, **options))
        return sources[-1]

    yield make
    for source in sources:
        source.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that look for new partitions every second, wait two for an answer and half of one before they complain."""
    monkeypatch.setattr(connection, "METADATA_SECONDS", 1.0)
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 2.0)
    monkeypatch.setattr(outage, "GRACE_SECONDS", 0.5)
