"""Promotion by KServe against a real API server that knows the InferenceService as KServe defines it.

KServe's controllers are not run: the test writes the status that they would write. What is proven: our patches pass the
kind's own validation under the rights of deploy/kubernetes/training/kinds/inferenceservice.yaml and no others, nothing of
the object but model, canary and our annotation changes, and every end of a promotion. What is not: that a model loads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from monitor.config import KServePromotion
from monitor.errors import ConfigError, LaunchFailed
from monitor.flow import Launch
from monitor.retrain.promotions import ROLLBACK, PromotionRefused, PromotionWaits
from monitor.retrain.promotions.kserve import RESOURCE, KServe
from tests.conftest import missing, wait_until
from tests.k8s.control_plane import ControlPlane, RefusedError, definitions

NOW, HOUR = 1_000_000.0, 3600.0
NEW = Launch("3f9c2a1b7d4e", "churn", "7", 1, "kubernetes", "judged", "{}", (("judged", NOW),), verdict="better",
             new_version="7.r3f9c2a", model_uri="s3://models/churn/new")
BACK = dataclasses.replace(NEW, id="aaaaaaaaaaaa", launcher=ROLLBACK, version="7.r3f9c2a", new_version="7",
                           model_uri="s3://models/churn/7")


class Service:
    """One InferenceService, and the hand of KServe's controller."""

    def __init__(self, cluster: ControlPlane, namespace: str, mode: str) -> None:
        self.cluster, self.mode = cluster, mode
        self.place = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices"
        cluster.request("POST", self.place, {
            "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
            "metadata": {"name": "churn", "annotations": {"serving.kserve.io/deploymentMode": mode, "team": "growth"}},
            "spec": {"predictor": {"minReplicas": 2, "model": {
                "modelFormat": {"name": "pytorch"}, "storageUri": "s3://models/churn/7",
                "resources": {"limits": {"cpu": "1", "memory": "2Gi"}}}}}})
        self.report(True)

    def get(self) -> dict[str, Any]:
        return self.cluster.request("GET", f"{self.place}/churn")

    def report(self, ready: bool, *, behind: bool = False, **model_status: Any) -> None:
        """What the controller says: of this generation, or (behind) of the one before."""
        generation = int(self.get()["metadata"]["generation"])
        revision = f"churn-predictor-{generation:05d}"
        self.cluster.request("PATCH", f"{self.place}/churn/status", {"status": {
            "observedGeneration": generation - behind, "deploymentMode": self.mode,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": "2026-01-01T00:00:00Z",
                            **({} if ready else {"reason": "PredictorNotReady", "message": "0 of 2 pods"})}],
            "components": {"predictor": {"latestCreatedRevision": revision,
                                         "latestReadyRevision": revision if ready else "churn-predictor-00001"}},
            "modelStatus": {"transitionStatus": "UpToDate" if ready else "InProgress", **model_status}}},
            kind="merge-patch+json")

    @property
    def predictor(self) -> dict[str, Any]:
        return dict(self.get()["spec"]["predictor"])


@pytest.fixture(scope="module")
def taught(cluster: ControlPlane) -> ControlPlane:
    """The control plane, taught this one kind of tests/k8s/crds.txt."""
    (path,) = [path for path in definitions() if "inferenceservices" in path.name]
    if not path.is_file():
        missing("kubernetes", f"no {path}; run tests/k8s/setup.sh")
    cluster.define(path)
    return cluster


@pytest.fixture
def serving(taught: ControlPlane, training: str, may: Callable[[str], None]) -> Callable[..., tuple[Service, KServe]]:
    """Makes an InferenceService and a promotion that acts with the ServiceAccount tidemark's token and nothing else."""
    kubeconfig = str(taught.kubeconfig("tidemark", taught.token("tidemark", "tidemark")))

    def make(mode: str = "Standard", *, allowed: bool = True, name: str = "churn", **changes: Any) -> tuple[Service, KServe]:
        if allowed:
            may("inferenceservice")
        service = Service(taught, training, mode)
        settings = KServePromotion(name=name, namespace=training, kubeconfig=kubeconfig, **changes)
        promotion = KServe(settings)
        if allowed and name == "churn":             # rights take a moment to reach the authorizer
            wait_until(lambda: _can_get(promotion), 60, "the rights")
        return service, promotion

    return make


def _can_get(promotion: KServe) -> bool:
    try:
        promotion._cluster.get(RESOURCE, "churn")
    except LaunchFailed:
        return False
    return True


def waits(promotion: KServe, launch: Launch, now: float) -> str:
    with pytest.raises(PromotionWaits) as waiting:
        promotion.promote(launch, now)
    return str(waiting.value)


def test_the_new_model_is_served_once_kserve_says_ready_of_it_twice(serving: Callable[..., tuple[Service, KServe]]) -> None:
    service, promotion = serving()
    before = service.predictor
    assert promotion.look() == "InferenceService churn can be read; its model is s3://models/churn/7"
    assert waits(promotion, NEW, NOW) == "InferenceService churn is given version 7.r3f9c2a"
    assert service.predictor == {**before, "model": {**before["model"], "storageUri": "s3://models/churn/new"}}
    assert service.get()["metadata"]["annotations"]["team"] == "growth"
    assert "waiting for InferenceService churn to be Ready" in waits(promotion, NEW, NOW + 1), "Ready of the old generation"
    service.report(False)
    assert waits(promotion, NEW, NOW + 2).endswith("Ready is False: PredictorNotReady: 0 of 2 pods")
    service.report(True)
    waits(promotion, NEW, NOW + 3)
    assert promotion.promote(NEW, NOW + 4) == "s3://models/churn/7"
    generation = service.get()["metadata"]["generation"]
    again = KServe(promotion._settings)             # a service that was killed before it saved `promoted`
    assert again.promote(NEW, NOW + 5) == "s3://models/churn/7"
    assert service.get()["metadata"]["generation"] == generation


def test_a_canary_takes_its_share_for_its_hours_and_then_all_the_traffic(
        serving: Callable[..., tuple[Service, KServe]]) -> None:
    service, promotion = serving("Knative", canary_percent=10, canary_hours=2.0)
    waits(promotion, NEW, NOW)
    assert service.predictor["canaryTrafficPercent"] == 10
    service.report(True)
    waits(promotion, NEW, NOW + 1)
    assert waits(promotion, NEW, NOW + 2) == "canary: 10 % of the traffic, for 0.0 of 2 hours"
    promotion = KServe(promotion._settings)         # killed and started again: it goes on where it was
    assert waits(promotion, NEW, NOW + HOUR) == "canary: 10 % of the traffic, for 1.0 of 2 hours"
    assert service.predictor["canaryTrafficPercent"] == 10
    assert "gets all traffic now" in waits(promotion, NEW, NOW + 2 + 2 * HOUR)
    assert "canaryTrafficPercent" not in service.predictor
    service.report(True)
    waits(promotion, NEW, NOW + 3 * HOUR)
    assert promotion.promote(NEW, NOW + 3 * HOUR + 1) == "s3://models/churn/7"


def test_a_revision_that_does_not_become_ready_is_taken_back_with_kserves_reason(
        serving: Callable[..., tuple[Service, KServe]]) -> None:
    service, promotion = serving("Serverless", canary_percent=10, ready_minutes=5.0)
    before = service.predictor
    waits(promotion, NEW, NOW)
    service.report(False, transitionStatus="BlockedByFailedLoad",
                   lastFailureInfo={"reason": "ModelLoadFailed", "message": "no such key"})
    waits(promotion, NEW, NOW + 299)
    for now in (NOW + 301, NOW + 302):              # the second time by a service that was killed before it saved `refused`
        with pytest.raises(PromotionRefused, match=r"did not become Ready with version 7\.r3f9c2a within 5 minutes .*"
                                                   r"ModelLoadFailed: no such key.*has its previous model back"):
            promotion.promote(NEW, now)
        assert service.predictor == before
        promotion = KServe(promotion._settings)


def test_a_canary_that_stops_being_ready_is_taken_back(serving: Callable[..., tuple[Service, KServe]]) -> None:
    service, promotion = serving("Knative", canary_percent=20, ready_minutes=5.0)
    before = service.predictor
    waits(promotion, NEW, NOW)
    service.report(True)
    waits(promotion, NEW, NOW + 1)
    waits(promotion, NEW, NOW + 2)
    service.report(False)
    assert "but it is not Ready" in waits(promotion, NEW, NOW + HOUR)
    with pytest.raises(PromotionRefused, match="previous model back"):
        promotion.promote(NEW, NOW + HOUR + 301)
    assert service.predictor == before


def test_a_roll_back_gives_the_old_model_all_the_traffic_at_once(serving: Callable[..., tuple[Service, KServe]]) -> None:
    service, promotion = serving("Knative", canary_percent=10, canary_hours=1.0)
    before = service.predictor
    waits(promotion, NEW, NOW)
    service.report(True)
    waits(promotion, NEW, NOW + 1)
    waits(promotion, NEW, NOW + 2)
    waits(promotion, NEW, NOW + 2 * HOUR)
    service.report(True)
    waits(promotion, NEW, NOW + 2 * HOUR + 1)
    promotion.promote(NEW, NOW + 2 * HOUR + 2)
    waits(promotion, BACK, NOW + 3 * HOUR)
    assert service.predictor == before
    service.report(True)
    waits(promotion, BACK, NOW + 3 * HOUR + 1)
    assert promotion.promote(BACK, NOW + 3 * HOUR + 2) == "s3://models/churn/new"


def test_a_model_that_somebody_else_sets_meanwhile_ends_the_promotion_and_stays(
        serving: Callable[..., tuple[Service, KServe]]) -> None:
    service, promotion = serving()
    waits(promotion, NEW, NOW)
    service.cluster.request("PATCH", f"{service.place}/churn", {"spec": {"predictor": {"model": {"storageUri": "s3://gitops"}}}},
                            kind="merge-patch+json")
    service.report(True)
    with pytest.raises(PromotionRefused, match=r"by somebody else .*GitOps"):
        promotion.promote(NEW, NOW + 1)
    assert service.predictor["model"]["storageUri"] == "s3://gitops"


def test_what_a_person_can_mend_is_waited_for(serving: Callable[..., tuple[Service, KServe]]) -> None:
    service, promotion = serving("RawDeployment", canary_percent=10)
    with pytest.raises(LaunchFailed, match=r"canary_percent: expected .*Knative.*, got RawDeployment, which splits no") as raised:
        promotion.promote(NEW, NOW)
    assert raised.value.retry
    service.cluster.request("PATCH", f"{service.place}/churn", {"spec": {"predictor": {"canaryTrafficPercent": 5}}},
                            kind="merge-patch+json")
    plain = KServe(changed(promotion._settings, canary_percent=None))
    with pytest.raises(LaunchFailed, match="has a canary of somebody else's") as raised:
        plain.promote(NEW, NOW)
    assert raised.value.retry
    absent = KServe(changed(promotion._settings, name="absent"))
    with pytest.raises(LaunchFailed, match="there is no InferenceService absent in namespace") as raised:
        absent.promote(NEW, NOW)
    assert raised.value.retry
    assert service.predictor["model"]["storageUri"] == "s3://models/churn/7"


def changed(settings: KServePromotion, **changes: Any) -> KServePromotion:
    return KServePromotion(**{name: getattr(settings, name) for name in settings.__struct_fields__} | changes)


def test_a_model_that_kserve_cannot_fetch_is_refused_before_anything_changes(
        serving: Callable[..., tuple[Service, KServe]]) -> None:
    service, promotion = serving()
    version = service.get()["metadata"]["resourceVersion"]
    with pytest.raises(PromotionRefused, match="expected a URI that KServe can fetch"):
        promotion.promote(dataclasses.replace(NEW, model_uri="/mnt/models/new"), NOW)
    assert service.get()["metadata"]["resourceVersion"] == version


def test_without_the_rights_it_says_what_to_apply_and_waits(serving: Callable[..., tuple[Service, KServe]]) -> None:
    _, promotion = serving(allowed=False)
    with pytest.raises(LaunchFailed, match=r"may not get or patch inferenceservices in namespace test-\d+.*"
                                           r"kinds/inferenceservice\.yaml there") as raised:
        promotion.promote(NEW, NOW)
    assert raised.value.retry


def test_a_change_by_somebody_faster_is_not_overwritten(serving: Callable[..., tuple[Service, KServe]]) -> None:
    service, promotion = serving()
    read = promotion._cluster.get

    def slow(*args: Any) -> Any:
        found = read(*args)
        service.cluster.request("PATCH", f"{service.place}/churn", {"spec": {"predictor": {"minReplicas": 7}}},
                                kind="merge-patch+json")
        return found

    promotion._cluster.get = slow  # type: ignore[method-assign]
    with pytest.raises(LaunchFailed, match="409") as raised:
        promotion.promote(NEW, NOW)
    assert raised.value.retry
    assert service.predictor["model"]["storageUri"] == "s3://models/churn/7"


def test_the_rights_reach_no_further(serving: Callable[..., tuple[Service, KServe]], taught: ControlPlane, training: str) -> None:
    _, promotion = serving()
    with pytest.raises(LaunchFailed, match=r"403|may not"):
        promotion._cluster.delete(RESOURCE, "churn")
    with pytest.raises(RefusedError, match=r"NotFound|not found"):
        taught.request("GET", f"/apis/serving.kserve.io/v1beta1/namespaces/{training}/inferenceservices/other")


@pytest.mark.parametrize(("changes", "words"), [
    ({"name": "Churn"}, r"retrain\.promote\.name: expected a name of Kubernetes"),
    ({"name": "churn", "namespace": "a/b"}, r"retrain\.promote\.namespace"),
    ({"name": "churn", "kubeconfig": "/nowhere"}, r"retrain\.promote\.kubeconfig: expected a file")])
def test_a_target_that_cannot_be_is_refused_at_the_start(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        KServe(KServePromotion(**changes))
