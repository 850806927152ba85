"""The part of the configuration that says when to retrain, who trains, and how a better model reaches production.

`monitor.config` holds the rest of the tree and re-exports these; the words for every field stand in `config_reference`.
The structs are strict and frozen, like all of them; what single fields cannot say is checked where it is used, before
anything starts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from monitor.config_file import NonNegative, Positive, Text


class LocalLauncher(Struct, forbid_unknown_fields=True, frozen=True, tag="local", tag_field="type"):
    """Train in a subprocess of this machine."""

    command: list[str]
    deadline_hours: Annotated[float, Meta(gt=0)] = 6.0
    environment: dict[str, str] = field(default_factory=dict)


class KubernetesLauncher(Struct, forbid_unknown_fields=True, frozen=True, tag="kubernetes", tag_field="type"):
    """Train in a Kubernetes Job."""

    image: Text
    namespace: str = "default"
    kind: Literal["Job"] = "Job"
    command: list[str] = field(default_factory=list)
    gpus: Annotated[int, Meta(ge=0, le=64)] = 1
    gpu_resource: str = "nvidia.com/gpu"
    cpu: str = "2"
    memory: str = "16Gi"
    shared_memory: str = "8Gi"
    deadline_hours: Annotated[float, Meta(gt=0)] = 6.0
    backoff_limit: Annotated[int, Meta(ge=0, le=10)] = 1
    keep_hours: Annotated[float, Meta(ge=0)] = 24.0
    service_account: str | None = None
    image_pull_secret: str | None = None
    environment_secret: str | None = None
    volume_claim: str | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=lambda: [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}])
    environment: dict[str, str] = field(default_factory=dict)
    kubeconfig: str | None = None


class FilePromotion(Struct, forbid_unknown_fields=True, frozen=True, tag="file", tag_field="type"):
    """Promote by writing a small JSON file that the serving code watches.

    `settle_seconds` is the time that serving needs to take the new model up everywhere; until it is over and what the
    champion still answered has been read, the old reference judges.
    """

    path: Text
    settle_seconds: NonNegative = 10.0


class Retrain(Struct, forbid_unknown_fields=True, frozen=True):
    """When a retraining is worth it, who trains, and who may promote."""

    launcher: LocalLauncher | KubernetesLauncher
    above: Annotated[float, Meta(gt=0, le=5)] = 0.3
    roles: list[Literal["input", "prediction", "score", "path"]] = field(
        default_factory=lambda: ["input", "prediction", "score", "path"])
    cooldown_hours: NonNegative = 24.0
    max_per_week: Annotated[int, Meta(ge=0)] = 2
    approval: Literal["automatic", "manual"] = "automatic"
    collect_events: Annotated[int, Meta(ge=0)] = 1_000
    capture_events: Positive = 200_000
    capture_uri: Text = "tidemark-data"
    metric: Literal["accuracy", "mean_absolute_error"] = "accuracy"
    holdout_events_min: Positive = 200
    promote: FilePromotion | None = None
