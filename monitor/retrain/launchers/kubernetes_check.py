"""What is refused about the settings of a Kubernetes launcher before anything starts.

Each setting on its own (names, quantities, labels), and what several say together: fields that a kind does not take,
a queue for a kind that Kueue does not know, captured data that no pod could reach. The API server would refuse most of it
at three in the morning, and accept the rest and never run it. Errors are ConfigError with the path in the file. Nothing is
asked over the network; `tidemark manifest --server` and `tidemark doctor` do that.

Neighbours: `kubernetes` calls `check` when it is made, `kubernetes_kinds` says what each kind refuses,
`kubernetes_template` checks the user's file.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

from msgspec.structs import fields

from monitor import config
from monitor.errors import ConfigError
from monitor.retrain.launchers.kubernetes_kinds import KINDS

#: A finished training must stay long enough for a service that was down to learn how it ended.
KEEP_HOURS_MIN = 0.1

_SUFFIXES = {"m": Decimal("0.001"), "": Decimal(1)} | {
    suffix: Decimal(base**power)
    for base, suffixes in ((1000, ("k", "M", "G", "T", "P", "E")), (1024, ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")))
    for power, suffix in enumerate(suffixes, start=1)}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(m|k|[MGTPE]|[KMGTPE]i|)")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_RUNTIME = re.compile(r"((Cluster)?TrainingRuntime/)?[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_QUEUE = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")        # becomes a label's value
_QUALIFIED = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOLERATION = {"key", "operator", "value", "effect", "tolerationSeconds"}
#: Kinds whose pods are a template's: what of them is ours to check is its name.
_TEMPLATES = {"Workflow": "WorkflowTemplate", "PipelineRun": "Pipeline"}


def check(settings: config.KubernetesLauncher, *, capture_uri: str | None, path: str) -> None:
    """Refuse what the API server would refuse at three in the morning, and what it would accept and never run.

    capture_uri : where captured events are written; None skips the check that the training can reach them
    path        : where the launcher stands in the configuration, `monitors[0].retrain.launcher`
    """
    _check_kind(settings, path)
    _check_amounts(settings, path)
    for field, pattern, example in (("namespace", _DNS_LABEL, "ml"), ("gpu_resource", _QUALIFIED, "nvidia.com/gpu"),
                                    ("queue", _QUEUE, "gpu-queue"), ("template", _DNS_NAME, "retrain"),
                                    ("runtime", _RUNTIME, "torch-distributed"),
                                    ("service_account", _DNS_NAME, "trainer"),
                                    ("image_pull_secret", _DNS_NAME, "registry-login"),
                                    ("environment_secret", _DNS_NAME, "trainer-environment"),
                                    ("volume_claim", _DNS_NAME, "tidemark-data")):
        value = getattr(settings, field)
        if value is not None and not pattern.fullmatch(value):
            raise ConfigError(f"{path}.{field}: expected a Kubernetes name such as {example}, got {value!r}; mend it")
    _check_placement(settings, path)
    _check_environment(settings, path)
    if capture_uri is not None:
        _check_data(settings, capture_uri, path)


def _check_kind(settings: config.KubernetesLauncher, path: str) -> None:
    """What the kind needs, and what it cannot take: refused rather than ignored."""
    kind = KINDS[settings.kind]
    for field in fields(config.KubernetesLauncher):
        if field.name in kind.refuses and getattr(settings, field.name) != field_default(field):
            raise ConfigError(f"{path}.{field.name}: expected none for kind {settings.kind}, got "
                              f"{getattr(settings, field.name)!r}; {kind.refuses[field.name]}")
    if settings.queue and not kind.knows_queue:
        raise ConfigError(f"{path}.queue: expected none for kind {settings.kind}, got {settings.queue!r}; Kueue does not know "
                          "that kind, so queue the pods of its template")
    if settings.kind in _TEMPLATES:
        if not settings.template:
            raise ConfigError(f"{path}.template: expected the name of the {_TEMPLATES[settings.kind]} to run, got none; add it")
    elif not settings.image or re.search(r"\s", settings.image):
        raise ConfigError(f"{path}.image: expected a container image, got {settings.image!r}; name the one that trains")
    if settings.kind == "RayJob" and not any(settings.command[:1]):
        raise ConfigError(f"{path}.command: expected the entry point of the RayJob, got none; Ray starts in the image itself, "
                          "so say what it runs")


def field_default(field: Any) -> Any:
    """The value that a field has where nothing is said."""
    return field.default_factory() if callable(field.default_factory) else field.default


def _check_environment(settings: config.KubernetesLauncher, path: str) -> None:
    """Variables of the trainer, and the Secret that others come from."""
    for where, names in (("environment", settings.environment), ("environment_secret_keys", settings.environment_secret_keys)):
        for name in names:
            if not _VARIABLE.fullmatch(name):
                raise ConfigError(f"{path}.{where}: expected names of letters, digits and _, got {name!r}; rename it")
            if name.startswith("TIDEMARK_"):
                raise ConfigError(f"{path}.{where}: {name} is set by tidemark itself; use another name")
    if twice := sorted(set(settings.environment) & set(settings.environment_secret_keys)):
        raise ConfigError(f"{path}.environment: expected {twice[0]} either here or in environment_secret_keys, got both; "
                          "remove one")
    if settings.environment_secret_keys and not settings.environment_secret:
        raise ConfigError(f"{path}.environment_secret: expected the Secret that holds environment_secret_keys, got none; add it")
    if settings.kind == "TrainJob" and settings.environment_secret and not settings.environment_secret_keys:
        raise ConfigError(f"{path}.environment_secret_keys: expected the keys to take, got none; a TrainJob cannot take a whole "
                          "Secret, so name them")


def data_path(capture_uri: str) -> str | None:
    """The folder that `capture_uri` names, as written; None for data elsewhere (s3://...)."""
    if capture_uri.startswith("file://"):
        return capture_uri.removeprefix("file://")
    return None if "://" in capture_uri else capture_uri


def _check_amounts(settings: config.KubernetesLauncher, path: str) -> None:
    """CPU, memory, shared memory and the time a finished Job is kept."""
    _quantity(settings.cpu, f"{path}.cpu", example="2 or 500m")
    memory = _bytes(settings.memory, f"{path}.memory", example="16Gi")
    if _bytes(settings.shared_memory, f"{path}.shared_memory", example="8Gi") > memory:
        raise ConfigError(f"{path}.shared_memory: expected at most the memory limit {settings.memory}, because its "
                          f"pages are charged to it, got {settings.shared_memory}; raise {path}.memory")
    if settings.keep_hours < KEEP_HOURS_MIN:
        raise ConfigError(f"{path}.keep_hours: expected at least {KEEP_HOURS_MIN}, or a finished Job is removed before "
                          f"its outcome was read, got {settings.keep_hours:g}")


def _check_placement(settings: config.KubernetesLauncher, path: str) -> None:
    """Node selector and tolerations."""
    for key, value in settings.node_selector.items():
        if not _QUALIFIED.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise ConfigError(f"{path}.node_selector: expected a label such as nvidia.com/gpu.present: \"true\", "
                              f"got {key}: {value!r}")
    for index, toleration in enumerate(settings.tolerations):
        if unknown := sorted(set(toleration) - _TOLERATION):
            raise ConfigError(f"{path}.tolerations[{index}]: expected keys of {', '.join(sorted(_TOLERATION))}, "
                              f"got {unknown[0]!r}")


def _check_data(settings: config.KubernetesLauncher, capture_uri: str, path: str) -> None:
    """The captured events must be somewhere that a pod on another machine can read."""
    folder = data_path(capture_uri)
    where = f"{path.removesuffix('.launcher')}.capture_uri"
    if folder is None:
        return
    if not settings.volume_claim and settings.kind not in _TEMPLATES:
        raise ConfigError(f"{where}: expected an address that the {settings.kind} can reach (s3://...), or {path}.volume_claim "
                          f"with the volume that holds it, got {capture_uri!r}")
    pure = PurePosixPath(folder)
    if not pure.is_absolute() or str(pure) in {"/", "/tmp", "/dev", "/dev/shm"} or ":" in folder:
        raise ConfigError(f"{where}: expected the absolute path at which the volume is mounted here and in the "
                          f"{settings.kind}, such as /data, got {capture_uri!r}")


def _quantity(text: str, where: str, *, example: str) -> Decimal:
    """The amount that a Kubernetes quantity says, greater than 0."""
    match = _QUANTITY.fullmatch(text)
    amount = Decimal(match[1].rstrip(".")) * _SUFFIXES[match[2]] if match else Decimal(0)
    if amount <= 0:
        raise ConfigError(f"{where}: expected a quantity such as {example}, got {text!r}")
    return amount


def _bytes(text: str, where: str, *, example: str) -> Decimal:
    """A quantity of memory; below one mebibyte a unit is missing or is `m`, thousandths of a byte."""
    amount = _quantity(text, where, example=example)
    if amount < 2**20:
        raise ConfigError(f"{where}: expected a quantity such as {example}, got {text!r}, which is less than 1Mi; "
                          "give the unit")
    return amount
