"""Promotion by KServe: the InferenceService gets the new model's URI, and must become Ready with it.

    begin    PATCH spec.predictor.<model>.storageUri, with canaryTrafficPercent where a canary is configured
    loading  until it is Ready                        -> done, or the canary's hours begin
    canary   until it was Ready for `canary_hours`    -> PATCH canaryTrafficPercent away: all traffic
    full     until it is Ready                        -> done
    undone   not Ready for `ready_minutes`            -> PATCH the old URI back; the promotion is refused with KServe's reason

Where it stands is kept in the InferenceService's annotation `tidemark.dev/promotion`, written in the same PATCH as what it
tells: a service that was killed goes on there, and the same launch again changes nothing. Each PATCH names the
resourceVersion that was read, so that nobody's change is overwritten; a URI that somebody else has set (a GitOps
controller, perhaps) ends the promotion. Ready means that KServe has seen this generation, says Ready, and has no newer
revision than the ready one; and it must hold at two looks in a row, since the controller's first pass over a change still
reports the old pods.

A canary needs Knative (`deploymentMode: Serverless` or `Knative`); elsewhere KServe would ignore the percentage, so the
promotion waits for a person instead. While a canary runs both models answer, and the old reference judges both. A
roll-back takes all traffic at once. Rights: get and patch on inferenceservices.serving.kserve.io. Cost: one GET per look.
Neighbour: `launchers.kubernetes_client`, the one door to the API server.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from monitor.config import KServePromotion
from monitor.documents import read_json
from monitor.errors import ConfigError, LaunchFailed, one_line
from monitor.flow import Launch
from monitor.retrain.launchers.kubernetes_client import Cluster, Manifest, Refused, Resource, reason_of
from monitor.retrain.promotions import ROLLBACK, PromotionRefused, PromotionWaits

RESOURCE = Resource("serving.kserve.io", "v1beta1", "inferenceservices", "InferenceService", "KServe")
ANNOTATION = "tidemark.dev/promotion"
MODE = "serving.kserve.io/deploymentMode"
#: In which KServe splits traffic; "" is not told, by a KServe of before 0.15 or one that has not looked yet.
SPLITTING = ("Serverless", "Knative", "")
WORDS_MAX = 300


class Step(msgspec.Struct, frozen=True):
    """Where a promotion stands; the annotation's content.

    since : wall-clock seconds at which the phase began       uri, canary : of the predictor before the promotion
    """

    launch: str
    phase: Literal["loading", "canary", "full", "done", "undone"]
    since: float
    uri: str
    reason: str = ""


class KServe:
    """A `Promotion` of one InferenceService."""

    def __init__(self, settings: KServePromotion, *, path: str = "retrain.promote") -> None:
        for name in ("name", "namespace"):
            if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", getattr(settings, name)):
                raise ConfigError(f"{path}.{name}: expected a name of Kubernetes (a-z, 0-9, -), got "
                                  f"{getattr(settings, name)!r}; mend it")
        self._cluster = Cluster(settings.kubeconfig, namespace=settings.namespace, path=path)
        self._settings, self._path = settings, path
        self._ready: dict[str, int] = {}            # launch id -> looks in a row at which it was Ready
        self._unready_since: dict[str, float] = {}  # launch id -> since when it is not, during a canary

    def promote(self, launch: Launch, now: float) -> str:
        """One step towards the new model with all traffic; returns the replaced model's URI."""
        try:
            return self._step(launch, now)
        except Refused as error:
            # Tried again whatever it is: hours of training are behind us, and people can mend rights and names.
            text = str(error)
            if error.status == 403:
                text = (f"Kubernetes: tidemark may not get or patch {RESOURCE.plural} in namespace {self._settings.namespace}, "
                        "or there is no such namespace; apply deploy/kubernetes/training/kinds/inferenceservice.yaml there")
            raise LaunchFailed(text, retry=True) from None

    def look(self) -> str:
        """What can be known of the InferenceService without changing it, in words; LaunchFailed where it cannot be had."""
        service = self._cluster.get(RESOURCE, self._settings.name)
        return f"InferenceService {self._settings.name} can be read; its model is {_predictor(service, self._settings.name)[1]}"

    def _step(self, launch: Launch, now: float) -> str:
        service = self._cluster.get(RESOURCE, self._settings.name)
        runtime, uri = _predictor(service, self._settings.name)
        step = _step_of(service)
        if step is None or step.launch != launch.id:
            self._begin(launch, service, runtime, uri, step, now)
        assert step is not None
        if step.phase == "undone":
            raise PromotionRefused(step.reason)
        if step.phase == "done":
            return step.uri
        if uri != launch.model_uri:
            raise PromotionRefused(f"InferenceService {self._settings.name} was given another model by somebody else while the "
                                   "promotion was under way; is it under GitOps? then promote by webhook")
        if step.phase == "canary":
            self._watch_canary(launch, service, runtime, step, now)
        if self._is_ready(launch, service):
            if step.phase == "loading" and self._has_canary(launch):
                self._save(service, Step(launch.id, "canary", now, step.uri))
                raise PromotionWaits(self._canary_words(0.0))
            self._save(service, Step(launch.id, "done", now, step.uri))
            return step.uri
        # One Ready look is not enough to go on, but enough not to undo: we may have been away for longer than the minutes.
        if now - step.since > self._settings.ready_minutes * 60 and not self._looks_ready(service):
            self._undo(launch, service, runtime, step, now)
        raise PromotionWaits(f"waiting for InferenceService {self._settings.name} to be Ready with version "
                             f"{launch.new_version}: {_why(service) or 'it must say so at two looks in a row'}")

    def _begin(self, launch: Launch, service: Manifest, runtime: str, uri: str, before: Step | None, now: float) -> None:
        """Give it the new model; PromotionWaits. A promotion that was given up half-way is taken over, with its own past."""
        if "://" not in launch.model_uri:
            raise PromotionRefused(f"model_uri: expected a URI that KServe can fetch (s3://, gs://, pvc:// ...), got "
                                   f"{launch.model_uri[:200]!r}; let the trainer write the model there")
        is_open = before is not None and before.phase in ("loading", "canary", "full")
        percent = service["spec"]["predictor"].get("canaryTrafficPercent")
        if percent not in (None, 100) and not is_open:
            raise LaunchFailed(f"Kubernetes: InferenceService {self._settings.name} has a canary of somebody else's "
                               f"({percent} %); end it first", retry=True)
        mode = str((service.get("status") or {}).get("deploymentMode")
                   or (service["metadata"].get("annotations") or {}).get(MODE) or "")
        if self._has_canary(launch) and mode not in SPLITTING:
            raise LaunchFailed(f"{self._path}.canary_percent: expected an InferenceService on Knative (deploymentMode "
                               f"Serverless or Knative), got {one_line(mode)[:40]}, which splits no traffic; remove "
                               "canary_percent or change the mode", retry=True)
        previous = before.uri if before is not None and is_open else uri
        self._save(service, Step(launch.id, "loading", now, previous), runtime, launch.model_uri,
                   self._settings.canary_percent if self._has_canary(launch) else None)
        raise PromotionWaits(f"InferenceService {self._settings.name} is given version {launch.new_version}")

    def _watch_canary(self, launch: Launch, service: Manifest, runtime: str, step: Step, now: float) -> None:
        """Wait for the canary's hours, then take all traffic; undone when it is not Ready for too long. Always raises."""
        if not self._looks_ready(service):
            begun = self._unready_since.setdefault(launch.id, now)
            if now - begun > self._settings.ready_minutes * 60:
                self._undo(launch, service, runtime, step, now)
            raise PromotionWaits(f"{self._canary_words(now - step.since)}, but it is not Ready: {_why(service)}")
        self._unready_since.pop(launch.id, None)
        if now - step.since < self._settings.canary_hours * 3600:
            raise PromotionWaits(self._canary_words(now - step.since))
        self._ready.pop(launch.id, None)
        self._save(service, Step(launch.id, "full", now, step.uri), runtime, launch.model_uri, None)
        raise PromotionWaits(f"version {launch.new_version} was Ready as a canary and gets all traffic now")

    def _undo(self, launch: Launch, service: Manifest, runtime: str, step: Step, now: float) -> None:
        """Give the old model back, and refuse."""
        reason = (f"InferenceService {self._settings.name} did not become Ready with version {launch.new_version} within "
                  f"{self._settings.ready_minutes:g} minutes ({self._path}.ready_minutes): "
                  f"{_why(service) or 'KServe gives no reason'}; it has its previous model back")
        self._save(service, Step(launch.id, "undone", now, step.uri, reason), runtime, step.uri, None)
        self._unready_since.pop(launch.id, None)
        raise PromotionRefused(reason)

    def _save(self, service: Manifest, step: Step, runtime: str = "", uri: str = "", percent: int | None = None) -> None:
        """One PATCH: where it stands, and, where a runtime is named, model and canary."""
        changes: Manifest = {"metadata": {
            "annotations": {ANNOTATION: msgspec.json.encode(step).decode()},
            "resourceVersion": service["metadata"]["resourceVersion"]}}
        if runtime:
            changes["spec"] = {"predictor": {"canaryTrafficPercent": percent, runtime: {"storageUri": uri}}}
        self._ready.pop(step.launch, None)
        self._cluster.patch(RESOURCE, self._settings.name, changes)

    def _is_ready(self, launch: Launch, service: Manifest) -> bool:
        """Whether it is Ready, at this look and at the one before."""
        if not self._looks_ready(service):
            self._ready.pop(launch.id, None)
            return False
        self._ready[launch.id] = self._ready.get(launch.id, 0) + 1
        return self._ready[launch.id] >= 2

    @staticmethod
    def _looks_ready(service: Manifest) -> bool:
        status = service.get("status") or {}
        if int(status.get("observedGeneration") or 0) < int(service["metadata"].get("generation") or 0):
            return False
        if (status.get("modelStatus") or {}).get("transitionStatus") in ("BlockedByFailedLoad", "InvalidSpec"):
            return False
        part = (status.get("components") or {}).get("predictor") or {}
        if part.get("latestCreatedRevision") and part["latestCreatedRevision"] != part.get("latestReadyRevision"):
            return False
        return any(each.get("type") == "Ready" and each.get("status") == "True" for each in status.get("conditions") or ())

    def _has_canary(self, launch: Launch) -> bool:
        return self._settings.canary_percent is not None and launch.launcher != ROLLBACK

    def _canary_words(self, seconds: float) -> str:
        return (f"canary: {self._settings.canary_percent} % of the traffic, for {seconds / 3600:.1f} of "
                f"{self._settings.canary_hours:g} hours")


def _predictor(service: Manifest, name: str) -> tuple[str, str]:
    """Which part of the predictor names the model, and its URI; LaunchFailed(retry=True) where none does."""
    predictor = (service.get("spec") or {}).get("predictor")
    parts = predictor if isinstance(predictor, dict) else {}
    # `model`, or the older form with the framework's name: pytorch, sklearn ...
    found = [(key, str(part["storageUri"])) for key, part in parts.items() if isinstance(part, dict) and part.get("storageUri")]
    if len(found) != 1:
        raise LaunchFailed(f"Kubernetes: InferenceService {name}: expected one storageUri in spec.predictor, got {len(found)}; "
                           "give its model by storageUri", retry=True)
    return found[0]


def _step_of(service: Manifest) -> Step | None:
    """The annotation, if it is one of ours."""
    text: Any = (service["metadata"].get("annotations") or {}).get(ANNOTATION)
    try:
        return read_json(text, Step) if isinstance(text, str) else None
    except msgspec.DecodeError:
        return None


def _why(service: Manifest) -> str:
    """KServe's own words on why it is not Ready: what failed to load, else the conditions that are not True."""
    status = service.get("status") or {}
    failure = (status.get("modelStatus") or {}).get("lastFailureInfo") or {}
    blocked = (status.get("modelStatus") or {}).get("transitionStatus") in ("BlockedByFailedLoad", "InvalidSpec")
    words = [reason_of(failure)] if blocked and failure else []
    words += [f"{each.get('type')} is {each.get('status')}: {reason_of(each)}".removesuffix(": ")
              for each in status.get("conditions") or () if each.get("status") != "True" and each.get("severity") != "Info"]
    return one_line("; ".join(filter(None, words)))[:WORDS_MAX]
