"""The part of the configuration that says when to retrain, who trains, and how a better model reaches production.

`monitor.config` holds the rest of the tree and re-exports these; the words for every field stand in `config_reference`.
The structs are strict and frozen, like all of them; what single fields cannot say is checked where it is used, before
anything starts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from monitor.config_file import NonNegative, Positive, Text
from monitor.errors import ConfigError


class LocalLauncher(Struct, forbid_unknown_fields=True, frozen=True, tag="local", tag_field="type"):
    """Train in a subprocess of this machine."""

    command: list[str]
    deadline_hours: Annotated[float, Meta(gt=0)] = 6.0
    environment: dict[str, str] = field(default_factory=dict)


class KubernetesLauncher(Struct, forbid_unknown_fields=True, frozen=True, tag="kubernetes", tag_field="type"):
    """Train on Kubernetes, in a Job or in another kind that the cluster knows."""

    image: str = ""
    namespace: str = "default"
    kind: Literal["Job", "TrainJob", "PyTorchJob", "JobSet", "RayJob", "Workflow", "PipelineRun"] = "Job"
    command: list[str] = field(default_factory=list)
    gpus: Annotated[int, Meta(ge=0, le=64)] = 1
    nodes: Annotated[int, Meta(ge=1, le=64)] = 1
    gpu_resource: str = "nvidia.com/gpu"
    cpu: str = "2"
    memory: str = "16Gi"
    shared_memory: str = "8Gi"
    deadline_hours: Annotated[float, Meta(gt=0, le=8_760)] = 6.0
    queue: str | None = None
    queue_hours: Annotated[float, Meta(gt=0, le=8_760)] = 12.0
    backoff_limit: Annotated[int, Meta(ge=0, le=10)] = 1
    keep_hours: Annotated[float, Meta(ge=0, le=8_760)] = 24.0
    template: str | None = None
    template_file: str | None = None
    runtime: str = "torch-distributed"
    service_account: str | None = None
    image_pull_secret: str | None = None
    environment_secret: str | None = None
    environment_secret_keys: list[str] = field(default_factory=list)
    volume_claim: str | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=lambda: [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}])
    environment: dict[str, str] = field(default_factory=dict)
    kubeconfig: str | None = None


class RestServer(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A server that is asked over HTTP, and how it lets us in: by a bearer token, by name and password, or openly."""

    url: Text
    token_file: str | None = None
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None


class AirflowLauncher(RestServer, forbid_unknown_fields=True, frozen=True, tag="airflow", tag_field="type", kw_only=True):
    """Train in a run of an Airflow DAG."""

    dag: Text
    api: Literal["v2", "v1"] = "v2"
    gpus: Annotated[int, Meta(ge=0, le=512)] = 1
    deadline_hours: Annotated[float, Meta(gt=0, le=8_760)] = 6.0
    queue_hours: Annotated[float, Meta(gt=0, le=8_760)] = 12.0
    environment: dict[str, str] = field(default_factory=dict)


class KfpLauncher(RestServer, forbid_unknown_fields=True, frozen=True, tag="kfp", tag_field="type", kw_only=True):
    """Train in a run of a Kubeflow pipeline."""

    pipeline: Text
    pipeline_version: str | None = None
    experiment: str | None = None
    namespace: str | None = None
    service_account: str | None = None
    parameters: dict[str, str] = field(default_factory=lambda: {
        "launch_id": "TIDEMARK_LAUNCH_ID", "model": "TIDEMARK_MODEL", "version": "TIDEMARK_VERSION",
        "reason": "TIDEMARK_REASON", "columns": "TIDEMARK_COLUMNS", "data_uri": "TIDEMARK_DATA_URI",
        "output_uri": "TIDEMARK_OUTPUT_URI"})
    gpus: Annotated[int, Meta(ge=0, le=512)] = 1
    deadline_hours: Annotated[float, Meta(gt=0, le=8_760)] = 6.0
    queue_hours: Annotated[float, Meta(gt=0, le=8_760)] = 12.0


class WebhookLauncher(RestServer, forbid_unknown_fields=True, frozen=True, tag="webhook", tag_field="type", kw_only=True):
    """Train by whatever takes a CloudEvent."""

    secret_file: str | None = None
    source: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9./-]{0,62}$")] = "tidemark"
    status_url: str | None = None
    cancel_event: bool = True
    gpus: Annotated[int, Meta(ge=0, le=512)] = 1
    deadline_hours: Annotated[float, Meta(gt=0, le=8_760)] = 6.0
    queue_hours: Annotated[float, Meta(gt=0, le=8_760)] = 12.0
    environment: dict[str, str] = field(default_factory=dict)


class FilePromotion(Struct, forbid_unknown_fields=True, frozen=True, tag="file", tag_field="type"):
    """Promote by writing a small JSON file that the serving code watches.

    `settle_seconds` is the time that serving needs to take the new model up everywhere; until it is over and what the
    champion still answered has been read, the old reference judges.
    """

    path: Text
    settle_seconds: NonNegative = 10.0


class WebhookPromotion(RestServer, forbid_unknown_fields=True, frozen=True, tag="webhook", tag_field="type", kw_only=True):
    """Promote by a signed CloudEvent to the program that deploys models."""

    secret_file: str | None = None
    source: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9./-]{0,62}$")] = "tidemark"
    confirm_url: str | None = None
    confirm_hours: Annotated[float, Meta(gt=0, le=720)] = 1.0
    settle_seconds: NonNegative = 60.0


class KServePromotion(Struct, forbid_unknown_fields=True, frozen=True, tag="kserve", tag_field="type"):
    """Promote by giving a KServe InferenceService the new model."""

    name: Text
    namespace: str = "default"
    canary_percent: Annotated[int, Meta(ge=1, le=99)] | None = None
    canary_hours: Annotated[float, Meta(gt=0, le=720)] = 24.0
    ready_minutes: Annotated[float, Meta(gt=0, le=1440)] = 30.0
    settle_seconds: NonNegative = 60.0
    kubeconfig: str | None = None


class Blackout(Struct, forbid_unknown_fields=True, frozen=True, rename={"start": "from", "end": "to"}):
    """Hours of the week in which no launch is decided, in the local time of a place.

    A period whose `to` is not later than its `from` ends on the day after the one on which it began.
    """

    days: Annotated[list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]], Meta(min_length=1)] = field(
        default_factory=lambda: ["mon", "tue", "wed", "thu", "fri", "sat", "sun"])
    start: str | int = "00:00"
    end: str | int = "24:00"
    time_zone: Text = "UTC"


def gpus(launcher: Struct) -> int:
    """GPUs of all pods of one training together; 0 where the launcher does not know."""
    return int(getattr(launcher, "gpus", 0)) * int(getattr(launcher, "nodes", 1))


#: What champion and challenger may be compared by, and of these the ones of which less is better.
Metric = Literal["accuracy", "balanced_accuracy", "f1", "roc_auc", "log_loss", "mean_absolute_error", "root_mean_squared_error",
                 "r2"]
#: The interval of the difference: what keeps its level best for the metric, or a paired bootstrap for every metric.
Interval = Literal["auto", "bootstrap"]
SMALLER_IS_BETTER: frozenset[str] = frozenset({"log_loss", "mean_absolute_error", "root_mean_squared_error"})


class Shadow(Struct, forbid_unknown_fields=True, frozen=True):
    """A time in which the challenger answers beside the champion, on live events, before it may take over."""

    prediction: Text
    hours: Annotated[float, Meta(gt=0, le=8_760)] = 24.0
    events_min: Positive = 500


class Retrain(Struct, forbid_unknown_fields=True, frozen=True):
    """When a retraining is worth it, who trains, and who may promote."""

    launcher: LocalLauncher | KubernetesLauncher | AirflowLauncher | KfpLauncher | WebhookLauncher
    launch_on: Literal["alarm", "request"] = "alarm"
    above: Annotated[float, Meta(gt=0, le=5)] = 0.3
    roles: list[Literal["input", "prediction", "score", "path"]] = field(
        default_factory=lambda: ["input", "prediction", "score", "path"])
    persist_panes: Annotated[int, Meta(ge=1, le=10_080)] = 1
    learning_hours: NonNegative = 0.0
    cooldown_hours: NonNegative = 24.0
    max_per_week: Annotated[int, Meta(ge=0)] = 2
    gpu_hours_per_week: Annotated[float, Meta(gt=0)] | None = None
    blackout: list[Blackout] = field(default_factory=list)
    useless_max: Positive | None = 3
    approval: Literal["automatic", "manual"] = "automatic"
    approval_hours: Annotated[float, Meta(gt=0, le=8_760)] = 72.0
    collect_events: Annotated[int, Meta(ge=0)] = 1_000
    capture_events: Positive = 200_000
    capture_uri: Text = "tidemark-data"
    capture_share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    capture_days: Annotated[float, Meta(gt=0, le=36_500)] | None = None
    capture_seconds: Annotated[float, Meta(ge=1, le=86_400)] = 300.0
    data_uri: Text | None = None
    metric: Metric = "accuracy"
    metric_interval: Interval = "auto"
    positive_label: Text | None = None
    min_improvement: NonNegative = 0.0
    holdout_events_min: Positive = 200
    shadow: Shadow | None = None
    promote: FilePromotion | WebhookPromotion | KServePromotion | None = None
    model_uri: str | None = None
    result_uris: list[Text] = field(default_factory=list)


def refuse_impossible_shadow(retrain: Retrain, where: str) -> None:
    """A shadow that nobody could be told of, or that could never see enough events."""
    shadow = retrain.shadow
    if shadow is None:
        return
    if not isinstance(retrain.promote, FilePromotion | WebhookPromotion):
        got = ("none" if retrain.promote is None else
               "kserve, which answers no request by two models (docs/promotion.md)")
        raise ConfigError(f"{where}.shadow: expected promote.type file or webhook, by which serving is told of the challenger, "
                          f"got {got}; add one, or remove shadow")
    if retrain.data_uri is not None:
        raise ConfigError(f"{where}.shadow: expected captured events, which the answers are compared on, got data_uri; "
                          "remove one of them")
    if retrain.metric in ("roc_auc", "log_loss"):
        raise ConfigError(f"{where}.shadow: expected a metric on answers, got {retrain.metric}, which needs scores of both "
                          "models; set metric to f1, balanced_accuracy or accuracy, or remove shadow")
    if shadow.events_min > retrain.capture_events:
        raise ConfigError(f"{where}.shadow.events_min: expected at most capture_events ({retrain.capture_events}), got "
                          f"{shadow.events_min}; raise capture_events, or lower it")


def refuse_stored_values(retrain: Retrain | None, dead_letters: str, where: str) -> None:
    """What would write a value of an event somewhere, of a monitor that keeps histograms only."""
    if dead_letters != "none":
        raise ConfigError(f"service.dead_letters: expected none, since {where} keeps histograms only and a refused event is kept "
                          f"whole, got {dead_letters!r}; set it to none, or watch that model by a service of its own")
    if retrain is not None and retrain.data_uri is None:
        raise ConfigError(f"{where}.retrain.data_uri: expected where the trainer finds its data, since with histograms_only no "
                          "event is captured to train on, got none; add it, or remove retrain or histograms_only")
