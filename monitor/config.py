"""The configuration: one file, one tree, strict, every field with a safe default, its unit and the reason for it.

Each struct below is one node of the file; `config_reference` holds each field's unit, meaning and reason. `load` checks
the whole tree before anything starts, and raises ConfigError with path, expected, got and what to do. Secrets never stand
in the file: `*_file` names a file, or `${NAME}` an environment variable. Neighbours: `config_file` reads the YAML.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from monitor.blackout import periods
from monitor.config_alerts import Alertmanager, refuse_half_alertmanager
from monitor.config_file import NAME, Name, NonNegative, Positive, Text, read
from monitor.config_retrain import (
    AirflowLauncher,
    FilePromotion,
    KfpLauncher,
    KServePromotion,
    KubernetesLauncher,
    LocalLauncher,
    RestServer,
    Retrain,
    WebhookLauncher,
    WebhookPromotion,
    gpus,
    refuse_impossible_shadow,
    refuse_stored_values,
)
from monitor.errors import ConfigError, one_line

__all__ = [
    "NAME", "AirflowLauncher", "AlarmPolicy", "Alertmanager", "Budget", "Config", "Detector", "FilePromotion", "Files", "Grafana",
    "KServePromotion", "Kafka", "KfpLauncher", "KubernetesLauncher", "Limits", "LocalLauncher", "Monitor", "Pane", "Quality",
    "Replicas", "Reports", "RestServer", "Retrain", "Schema", "SchemaColumn", "Security", "Service", "Tls", "WebhookLauncher",
    "WebhookPromotion",
    "budget", "is_loopback", "known_hosts", "listen_address", "load", "parse", "state_path",
]

class Security(Struct, forbid_unknown_fields=True, frozen=True):
    """How to reach a secured Kafka."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    check_hostname: bool = True


class Kafka(Struct, forbid_unknown_fields=True, frozen=True):
    """The brokers that the topics of all monitors are read from."""

    bootstrap_servers: list[str] = field(default_factory=list)
    group: Text = "tidemark"
    security: Security = field(default_factory=Security)
    client_id: Text = "tidemark"
    start: Literal["earliest", "latest"] = "earliest"
    poll_records: Annotated[int, Meta(ge=1, le=100_000)] = 10_000
    idle_seconds: NonNegative = 30.0
    session_timeout_seconds: Annotated[float, Meta(ge=1, le=300)] = 45.0
    fetch_bytes: Annotated[int, Meta(ge=1_048_576)] = 16_777_216
    transport: Literal["kafka-python", "librdkafka"] = "kafka-python"
    decoder: Literal["auto", "msgspec", "columns"] = "auto"


class Files(Struct, forbid_unknown_fields=True, frozen=True):
    """Read events from files instead of Kafka: for tests, backfill and trying things out."""

    paths: list[str] = field(default_factory=list)


class Replicas(Struct, forbid_unknown_fields=True, frozen=True):
    """Several processes that share the work through Kafka: `docs/replicas.md`."""

    topic: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = "tidemark.state"
    partitions: Annotated[int, Meta(ge=1, le=1_000)] = 8
    replication: Annotated[int, Meta(ge=1, le=9)] = 3
    transaction_seconds: Annotated[float, Meta(ge=1, le=300)] = 10.0
    name: Text | None = None


class Tls(Struct, forbid_unknown_fields=True, frozen=True):
    """The port's certificate, and whose clients are let in; the files are read anew when they change."""

    certificate_file: Text
    key_file: Text
    key_password_file: Text | None = None
    client_ca_file: Text | None = None


class Service(Struct, forbid_unknown_fields=True, frozen=True):
    """The process: where it listens and where it keeps its state."""

    listen: str = "127.0.0.1:8080"
    state: str = "sqlite:///tidemark-state.db"
    token_file: str | None = None
    tls: Tls | None = None
    hosts: list[Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,253}$")]] = field(default_factory=list)
    checkpoint_seconds: Annotated[float, Meta(gt=0, le=60)] = 1.0
    dead_letters: str = "file:tidemark-dead-letters.jsonl"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    replicas: Replicas | None = None


class Limits(Struct, forbid_unknown_fields=True, frozen=True):
    """Every bound that protects the process; beyond one something is refused and counted, nothing grows."""

    message_bytes: Positive = 1_048_576
    unpacked_bytes: Positive = 16_777_216
    columns: Positive = 2_000
    open_panes: Positive = 500
    memory_mb: Positive = 2_048
    capture_mb: Annotated[int, Meta(ge=16)] = 128
    series: Positive = 50_000
    dead_letter_bytes: Positive = 1_073_741_824
    launches: Positive = 4


class SchemaColumn(Struct, forbid_unknown_fields=True, frozen=True):
    """Where one column sits in a message and what it is; what is not said comes from the reference."""

    path: str | None = None
    kind: Literal["numeric", "category", "boolean", "embedding", "text"] | None = None
    role: Literal["input", "prediction", "score", "path", "label"] | None = None
    aliases: list[str] = field(default_factory=list)


class Schema(Struct, forbid_unknown_fields=True, frozen=True):
    """How to read an event; by default every column of the reference is a top-level key of its own name."""

    format: Literal["json", "arrow"] = "json"
    prefix: str = ""
    timestamp: str | None = None
    timestamp_unit: Literal["seconds", "milliseconds", "iso8601"] = "milliseconds"
    id: str | None = None
    columns: dict[str, SchemaColumn] = field(default_factory=dict)


class Pane(Struct, forbid_unknown_fields=True, frozen=True):
    """The shortest slice of event time that is kept; a decision is taken once per pane."""

    seconds: Annotated[int, Meta(ge=1, le=604_800)] = 60
    lateness_seconds: Annotated[int, Meta(ge=0, le=604_800)] = 120


class AlarmPolicy(Struct, forbid_unknown_fields=True, frozen=True):
    """The one knob: how many false alarms you accept, and what is too small to matter."""

    max_false_alarms: str = "1 per 30 days"
    method: Literal["scan", "esr"] = "scan"
    ignore_below: Annotated[float, Meta(ge=0, le=3)] = 0.1


class Quality(Struct, forbid_unknown_fields=True, frozen=True):
    """Data faults that no column shows: records that cannot be read, and too many, too few or no events."""

    max_refused_share: Annotated[float, Meta(ge=0, lt=1)] | None = 0.001
    volume_factor: Annotated[float, Meta(ge=2)] | None = 10.0
    silent_panes: Positive | None = 10


class Detector(Struct, forbid_unknown_fields=True, frozen=True):
    """A further detector that is computed and shown; it raises no alarm and starts no retraining."""

    name: Text
    columns: list[Text] = field(default_factory=list)
    threshold: float | None = None
    every_panes: Annotated[int, Meta(ge=1, le=10_080)] = 1
    window_panes: Annotated[int, Meta(ge=1, le=128)] = 16
    sample_rows: Annotated[int, Meta(ge=10, le=10_000)] = 200
    options: dict[str, bool | int | float | str] = field(default_factory=dict)


class Monitor(Struct, forbid_unknown_fields=True, frozen=True):
    """One model to watch."""

    model: Name
    topic: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
    reference: Text
    version: Name | None = None
    schema: Schema = field(default_factory=Schema)
    pane: Pane = field(default_factory=Pane)
    alarm: AlarmPolicy = field(default_factory=AlarmPolicy)
    quality: Quality = field(default_factory=Quality)
    retrain: Retrain | None = None
    detectors: list[Detector] = field(default_factory=list)
    histograms_only: bool = False


class Grafana(Struct, forbid_unknown_fields=True, frozen=True):
    """The Grafana that `tidemark dashboards push` writes to; the running service never asks it for anything."""

    url: str | None = None
    token_file: str | None = None
    ca_file: str | None = None
    prometheus_url: str | None = None
    service_url: str | None = None
    folder: Text = "tidemark"


class Reports(Struct, forbid_unknown_fields=True, frozen=True):
    """The report of an alarm: evidently's beside ours, made in a process of its own."""

    enabled: bool | None = None
    rows: Annotated[int, Meta(ge=10, le=10_000)] = 100
    keep: Annotated[int, Meta(ge=1, le=10_000)] = 30
    seconds: Annotated[float, Meta(ge=1, le=3_600)] = 300.0
    folder: Text | None = None


class Config(Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file."""

    monitors: Annotated[list[Monitor], Meta(min_length=1)]
    service: Service = field(default_factory=Service)
    kafka: Kafka = field(default_factory=Kafka)
    files: Files = field(default_factory=Files)
    limits: Limits = field(default_factory=Limits)
    grafana: Grafana = field(default_factory=Grafana)
    reports: Reports = field(default_factory=Reports)
    alertmanager: Alertmanager = field(default_factory=Alertmanager)


class Brokers(Struct, forbid_unknown_fields=True, frozen=True):
    """Of a file, what it takes to read its topics; there may be nothing else in it yet."""

    kafka: Kafka = field(default_factory=Kafka)
    limits: Limits = field(default_factory=Limits)


# -- reading ---------------------------------------------------------------------------------------------------------

# Twelve digits are beyond any budget, and far from what arithmetic cannot hold.
_BUDGET = re.compile(r"\s*([0-9]{1,12})\s+per\s+(?:([0-9]{1,12})\s+)?(hour|day|week|month|event)s?\s*")
_SECONDS = {"hour": 3600.0, "day": 86400.0, "week": 7 * 86400.0, "month": 30 * 86400.0}
FILE_BYTES = 4 * 1024 * 1024


class Budget(Struct, frozen=True):
    """How many false alarms are accepted: `count` in `seconds` of event time, or in `events`."""

    count: int
    seconds: float | None
    events: int | None

    def panes_per_false_alarm(self, pane_seconds: float, events_per_pane: float | None = None) -> float:
        """A of the specification: panes between two false alarms on average, at least 1.

        A budget in events needs the usual number of events per pane; until it is known, one pane is taken to hold
        1,000 events, which only makes the first decisions a little more or less careful.
        """
        if self.seconds is not None:
            return max(1.0, self.seconds / pane_seconds / self.count)
        assert self.events is not None
        return max(1.0, self.events / (events_per_pane or 1000.0) / self.count)


def budget(text: str, where: str) -> Budget:
    """Read `1 per 30 days` or `1 per 1000000 events`."""
    match = _BUDGET.fullmatch(text)
    if match is None or int(match[1]) < 1 or int(match[2] or 1) < 1:
        raise ConfigError(
            f"{where}: expected false alarms per time or events such as '1 per 30 days' or '1 per 1000000 events', "
            f"got {text[:60]!r}; write it so"
        )
    count, amount, unit = int(match[1]), int(match[2] or 1), match[3]
    if unit == "event":
        return Budget(count, None, amount)
    return Budget(count, amount * _SECONDS[unit], None)


def load(path: str | os.PathLike[str]) -> Config:
    """Read and check a configuration file; relative paths in it stay relative to the working directory.

    Raises ConfigError: file absent or too large, not YAML, unknown key, wrong type, wrong value, contradiction.
    """
    return parse(_text(Path(path)), str(path))


def load_brokers(path: str | os.PathLike[str]) -> Brokers:
    """Read and check the sections `kafka` and `limits` of a configuration file; it need not be complete. Raises as `load`."""
    try:
        found = read(_text(Path(path)), Brokers, str(path), only=Brokers.__struct_fields__)
        if not found.kafka.bootstrap_servers:
            raise ConfigError(f"{path}: kafka.bootstrap_servers: expected brokers, got none; add them")
        _refuse_strange_brokers(found.kafka)
    except ConfigError as error:
        raise ConfigError(one_line(str(error))) from None
    return found


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > FILE_BYTES:
            raise ConfigError(f"{file}: expected a configuration of at most {FILE_BYTES} bytes, got {file.stat().st_size}; "
                              "split the service")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the configuration: {error.strerror}; give its path with -c") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: expected UTF-8 text, got other bytes; save it as UTF-8") from None


def parse(text: str, where: str = "configuration") -> Config:
    """Check the text of a configuration; `where` names it in errors."""
    try:
        config = read(text, Config, where)
        _refuse_contradictions(config)
    except ConfigError as error:                    # keys and values may hold anything, line breaks too
        raise ConfigError(one_line(str(error))) from None
    return config


def _refuse_contradictions(config: Config) -> None:
    """What single fields cannot say: names that clash, sources that are absent or two, budgets that cannot be read."""
    if bool(config.kafka.bootstrap_servers) == bool(config.files.paths):
        got, mend = ("both", "keep one of them") if config.files.paths else ("neither", "add one of them")
        raise ConfigError(f"kafka.bootstrap_servers: expected either brokers or files.paths, got {got}; {mend}")
    _refuse_strange_brokers(config.kafka)
    refuse_half_alertmanager(config.alertmanager)
    listen_address(config.service.listen)
    state_path(config.service.state)
    if not re.fullmatch(r"none|file:.+|topic:[A-Za-z0-9._-]{1,249}", config.service.dead_letters):
        raise ConfigError(
            f"service.dead_letters: expected `file:PATH`, `topic:NAME` or `none`, got {config.service.dead_letters!r}; mend it")
    seen: dict[str, int] = {}
    for index, monitor in enumerate(config.monitors):
        where = f"monitors[{index}]"
        for name in ("model", "topic", "version"):  # to a pattern's `$`, a newline at the end is the end
            if "\n" in (getattr(monitor, name) or ""):
                raise ConfigError(f"{where}.{name}: expected one line, got {getattr(monitor, name)!r}; mend it")
        if monitor.model in seen:
            raise ConfigError(
                f"{where}.model: expected a name used once, got {monitor.model!r} as in monitors[{seen[monitor.model]}]; "
                "rename one"
            )
        seen[monitor.model] = index
        budget(monitor.alarm.max_false_alarms, f"{where}.alarm.max_false_alarms")
        _refuse_repeated(monitor.detectors, f"{where}.detectors")
        panes = -(-monitor.pane.lateness_seconds // monitor.pane.seconds) + 2
        if panes > config.limits.open_panes:
            raise ConfigError(
                f"{where}.pane.lateness_seconds: expected at most {config.limits.open_panes - 2} panes of "
                f"{monitor.pane.seconds} s, got {monitor.pane.lateness_seconds}; lower it or raise limits.open_panes")
        retrain = monitor.retrain
        if retrain is not None and retrain.above < monitor.alarm.ignore_below:
            raise ConfigError(
                f"{where}.retrain.above: expected at least alarm.ignore_below ({monitor.alarm.ignore_below}), "
                f"got {retrain.above}; a retraining is worth more than an alarm"
            )
        if retrain is not None:
            _refuse_endless_no(retrain, f"{where}.retrain")
            refuse_impossible_shadow(retrain, f"{where}.retrain")
        if monitor.histograms_only:
            refuse_stored_values(retrain, config.service.dead_letters, where)
        if retrain is not None and isinstance(retrain.launcher, LocalLauncher) and not any(retrain.launcher.command[:1]):
            raise ConfigError(f"{where}.retrain.launcher.command: expected the trainer's command as a list, got []; "
                              "name the program")


def _refuse_endless_no(retrain: Retrain, where: str) -> None:
    """Limits by which nothing could ever be launched: a blackout without a gap, a budget below one training."""
    periods(retrain.blackout, f"{where}.blackout")
    hours, trained_on = retrain.gpu_hours_per_week, gpus(retrain.launcher)
    if hours is None:
        return
    if trained_on == 0:
        raise ConfigError(f"{where}.gpu_hours_per_week: expected a launcher that says its GPUs, got type "
                          f"{retrain.launcher.__struct_config__.tag}; bound it by max_per_week")
    needed = trained_on * retrain.launcher.deadline_hours
    if hours < needed:
        raise ConfigError(f"{where}.gpu_hours_per_week: expected at least {needed:g} for one training ({trained_on} GPUs for "
                          f"launcher.deadline_hours), got {hours:g}; raise it, or lower the deadline")


def _refuse_repeated(detectors: list[Detector], where: str) -> None:
    """Detectors and columns that are named twice: their series could not be told apart."""
    seen: dict[str, int] = {}
    for index, detector in enumerate(detectors):
        if detector.name in seen:
            raise ConfigError(f"{where}[{index}].name: expected a detector that is named once, got {detector.name!r} as in "
                              f"{where}[{seen[detector.name]}]; put their columns together")
        seen[detector.name] = index
        for place, column in enumerate(detector.columns):
            if column in detector.columns[:place]:
                raise ConfigError(f"{where}[{index}].columns[{place}]: expected each column once, got {column!r} again; "
                                  "remove one")


def _refuse_strange_brokers(kafka: Kafka) -> None:
    """Addresses, settings that only work together, and those that the protocol would silently leave unused."""
    for index, server in enumerate(kafka.bootstrap_servers):
        if not re.fullmatch(r"[^\s,/]+:[0-9]{1,5}", server):
            raise ConfigError(f"kafka.bootstrap_servers[{index}]: expected HOST:PORT, got {server!r}; one broker per entry")
    security, where = kafka.security, "kafka.security"
    protocol = security.protocol
    lacking = [name for name in ("mechanism", "username", "password_file") if not getattr(security, name)]
    if protocol.startswith("SASL") and lacking:
        raise ConfigError(f"{where}.{lacking[0]}: expected a value for {protocol}, got none; add it")
    if not protocol.startswith("SASL") and len(lacking) < 3:
        raise ConfigError(f"{where}.protocol: expected SASL_SSL or SASL_PLAINTEXT beside mechanism, username or password_file, "
                          f"got {protocol}; mend it, or remove them")
    files = [name for name in ("ca_file", "certificate_file", "key_file") if getattr(security, name)]
    if not protocol.endswith("SSL") and files:
        raise ConfigError(f"{where}.protocol: expected SSL or SASL_SSL beside {files[0]}, got {protocol}; "
                          "mend it, or remove that")
    if bool(security.certificate_file) != bool(security.key_file):
        raise ConfigError(f"{where}: expected certificate_file and key_file together, got one; add the other")


def listen_address(text: str) -> tuple[str, int]:
    """Host and port of `service.listen`; port 0 asks the system for a free one."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/]+):([0-9]{1,5})", text)
    if match is None or int(match[2]) > 65535:
        raise ConfigError(f"service.listen: expected HOST:PORT such as 127.0.0.1:8080, got {text!r}; mend it")
    return match[1].strip("[]"), int(match[2])


def is_loopback(host: str) -> bool:
    """Whether an address of `service.listen` is of this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def known_hosts(service: Service) -> list[str] | None:
    """The names that requests may be for, besides addresses; None where any name may lead to this port."""
    host = listen_address(service.listen)[0]
    if not is_loopback(host):
        return [*service.hosts, "localhost"] if service.hosts else None
    return [*service.hosts, "localhost"]


def state_path(text: str, where: str = "service.state") -> Path:
    """The file of `service.state`, or of a flag: sqlite:///relative or sqlite:////absolute."""
    if not text.startswith("sqlite:///") or len(text) <= len("sqlite:///"):
        raise ConfigError(f"{where}: expected sqlite:///PATH (four slashes for an absolute path), got {text!r}; mend it")
    return Path(text.removeprefix("sqlite:///"))
